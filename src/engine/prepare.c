/* Everything between a submitted request and the engine's inbox: template, encode, checks against the model, output
 * memory, sampler parameters, block keys. Runs in the text pool, or in the submitter when the prompt is token ids
 * already. A request that turns out wrong goes to the inbox all the same, marked with its error. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "text/chat.h"

/* Prompt tokens that the detokenizer sees before the first output token: enough for a character in pieces. */
#define PRIME_TOKENS 8

/* ---- Prompts ---- */

static qr_status render_chat(const qr_engine *e, const qr_request *r, qr_buf *text, qr_error *err)
{
    qr_json *json;
    qr_status status = qr_json_parse(r->chat_json, &qr_json_limits_request, &json, err);
    if (status != QR_OK)
        return status;
    status = qr_chat_render(e->model->tokenizer, json, qr_clock_unix_s(), text, err);
    qr_json_free(json);
    return status;
}

/* A text that cannot fit whatever its tokens are is refused before it is encoded. */
static qr_status check_text_length(const qr_engine *e, const qr_request *r, size_t bytes, qr_error *err)
{
    size_t token_bytes = qr_tokenizer_token_bytes_max(e->model->tokenizer), most;
    if (r->truncate != 0 || !qr_size_mul(token_bytes, (size_t)e->plan.max_model_len, &most) || bytes <= most)
        return QR_OK;
    return qr_fail(err, QR_INVALID_ARGUMENT,
                   "prompt: %zu bytes are more than %lld tokens, the model's maximum length", bytes,
                   (long long)e->plan.max_model_len);
}

static qr_status encode(qr_engine *e, qr_encoder *encoder, qr_request *r, qr_error *err)
{
    if (!r->is_text && !r->is_chat)
        return QR_OK;
    if (encoder == NULL)
        return qr_fail(err, QR_UNSUPPORTED, "prompt: the checkpoint has no tokenizer: give token ids");
    qr_encode_options options;
    qr_encode_options_init(&options);
    options.add_special_tokens = r->is_text && r->add_special_tokens;
    options.parse_special = r->is_chat || r->parse_special;
    qr_buf rendered = {0};
    qr_status status = r->is_chat ? render_chat(e, r, &rendered, err) : QR_OK;
    qr_str text = r->is_chat ? qr_buf_str(&rendered) : r->text;
    if (status == QR_OK)
        status = check_text_length(e, r, text.len, err);
    if (status == QR_OK)
        status = qr_encoder_encode(encoder, text, &options, &r->prompt, err);
    qr_buf_release(&rendered);
    return status;
}

static void truncate_prompt(const qr_engine *e, qr_request *r)
{
    int64_t answer =
        r->must_fit && r->sampling.max_tokens > 0 ? r->sampling.max_tokens : r->sampling.max_tokens != 0;
    int64_t keep = r->truncate == -1 ? e->plan.max_model_len - answer : r->truncate;
    int64_t count = (int64_t)r->prompt.count;
    if (r->truncate == 0 || count <= keep || keep < 1)
        return;
    memmove(r->prompt.data, r->prompt.data + (count - keep), (size_t)keep * sizeof(int32_t));
    r->prompt.count = (size_t)keep;
}

static qr_status check_ids(const char *what, const int32_t *ids, int64_t count, int32_t vocab, qr_error *err)
{
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return qr_fail(err, QR_INVALID_ARGUMENT, "%s: id %d at %lld: the vocabulary has %d", what, ids[i],
                           (long long)i, vocab);
    return QR_OK;
}

static qr_status check_prompt(const qr_engine *e, qr_request *r, qr_error *err)
{
    int32_t vocab = qr_net_vocab(e->model->nets[0]);
    int64_t count = (int64_t)r->prompt.count, most = e->plan.max_model_len - (r->sampling.max_tokens != 0);
    if (count == 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "prompt: it has no tokens");
    if (count > most)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "prompt: %lld tokens: the model's maximum length of %lld leaves room for %lld",
                       (long long)count, (long long)e->plan.max_model_len, (long long)most);
    if (r->must_fit && r->sampling.max_tokens > e->plan.max_model_len - count)
        return qr_fail(
            err, QR_INVALID_ARGUMENT,
            "max_tokens: %lld is more than the %lld that the model's maximum length of %lld leaves beside "
            "the prompt's %lld tokens",
            (long long)r->sampling.max_tokens, (long long)(e->plan.max_model_len - count),
            (long long)e->plan.max_model_len, (long long)count);
    qr_status status = check_ids("prompt", r->prompt.data, count, vocab, err);
    if (status == QR_OK)
        status = check_ids("output_prefix_ids", r->prefix_ids, r->prefix_count, vocab, err);
    if (status != QR_OK)
        return status;
    const qr_sampling_params *s = &r->sampling;
    if (s->logprobs > e->plan.options.max_logprobs || s->prompt_logprobs > e->plan.options.max_logprobs)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "sampling: logprobs %d, prompt_logprobs %d: at most %d (max_logprobs)", s->logprobs,
                       s->prompt_logprobs, e->plan.options.max_logprobs);
    if (s->stop_count > 0 && (!s->detokenize || e->model->tokenizer == NULL))
        return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: stop strings need detokenize and a tokenizer");
    r->prompt_count = count;
    return QR_OK;
}

/* ---- Sampling ---- */

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void make_stop_ids(const qr_engine *e, qr_request *r)
{
    const qr_sampling_params *s = &r->sampling;
    int32_t ends = s->ignore_eos ? 0 : e->model->end_id_count;
    int32_t *ids = qr_arena_alloc(&r->arena, (s->stop_token_id_count + (size_t)ends + 1) * sizeof(int32_t));
    int32_t count = 0;
    for (size_t i = 0; i < s->stop_token_id_count; i++)
        ids[count++] = s->stop_token_ids[i];
    for (int32_t i = 0; i < ends; i++)
        ids[count++] = e->model->end_ids[i];
    qsort(ids, (size_t)count, sizeof(int32_t), compare_ids);
    r->stop_ids = (qr_id_list){ids, count};
}

static qr_status encode_word(qr_encoder *encoder, const char *word, bool space, qr_arena *arena,
                             qr_id_list *out, qr_error *err)
{
    qr_encode_options options;
    qr_encode_options_init(&options);
    options.add_special_tokens = false;
    qr_buf text = {0};
    if (space)
        qr_buf_append_char(&text, ' ');
    qr_buf_append_cstr(&text, word + strspn(word, " "));
    qr_ids ids = {0};
    qr_status status = qr_encoder_encode(encoder, qr_buf_str(&text), &options, &ids, err);
    if (status == QR_OK) {
        int32_t *copy = qr_arena_alloc(arena, (ids.count + 1) * sizeof(int32_t));
        memcpy(copy, ids.data, ids.count * sizeof(int32_t));
        *out = (qr_id_list){copy, (int32_t)ids.count};
    }
    QR_VEC_RELEASE(&ids);
    qr_buf_release(&text);
    return status;
}

/* Each word as it stands and after a space, when that is another first token of as many tokens (vLLM's rule). */
static qr_status encode_bad_words(qr_encoder *encoder, qr_request *r, qr_id_list **words, int32_t *count,
                                  qr_error *err)
{
    *count = 0;
    *words = qr_arena_alloc(&r->arena, (2 * r->sampling.bad_word_count + 1) * sizeof(qr_id_list));
    if (r->sampling.bad_word_count > 0 && encoder == NULL)
        return qr_fail(err, QR_UNSUPPORTED, "sampling: bad_words need a tokenizer");
    for (size_t i = 0; i < r->sampling.bad_word_count; i++) {
        qr_id_list plain, spaced;
        qr_status status = encode_word(encoder, r->sampling.bad_words[i], false, &r->arena, &plain, err);
        if (status == QR_OK)
            status = encode_word(encoder, r->sampling.bad_words[i], true, &r->arena, &spaced, err);
        if (status != QR_OK)
            return status;
        if (plain.count > 0)
            (*words)[(*count)++] = plain;
        if (spaced.count > 0 && spaced.count == plain.count && spaced.ids[0] != plain.ids[0])
            (*words)[(*count)++] = spaced;
    }
    return QR_OK;
}

static qr_status make_sampler(qr_engine *e, qr_encoder *encoder, qr_request *r, qr_error *err)
{
    qr_id_list *bad_words;
    int32_t bad_word_count;
    make_stop_ids(e, r);
    qr_status status = encode_bad_words(encoder, r, &bad_words, &bad_word_count, err);
    if (status != QR_OK)
        return status;
    return qr_sampler_params_make(&r->sampling, r->seed, qr_net_vocab(e->model->nets[0]), r->stop_ids,
                                  bad_words, bad_word_count, &r->arena, &r->params, err);
}

/* ---- Memory and sequences ---- */

static void fill_sequence(qr_engine *e, qr_request *r, qr_output *output, int32_t shared_keys)
{
    qr_sequence *seq = &output->seq;
    const qr_sequence *first = &r->samples[0].seq;
    seq->arrival = r->arrival;
    seq->priority = r->priority;
    seq->salt = r->salt.data;
    seq->salt_bytes = r->salt.len;
    seq->read_cache = r->read_cache;
    seq->prompt_logits = r->prompt_columns > 0 && seq == first;
    seq->host_draws = qr_sampler_needs_host(&r->params, 0);
    seq->keys_ready = shared_keys;
    if (seq->keys != NULL && seq != first)
        memcpy(seq->keys, first->keys, (size_t)shared_keys * sizeof(qr_prefix_key));
    if (output->text_capacity > 0) {
        int64_t primed = QR_MIN(r->prompt_count, PRIME_TOKENS);
        qr_detokenizer_init(&output->detokenizer, e->model->tokenizer, r->sampling.skip_special_tokens);
        output->detokenizer.kept = r->kept_ids;
        output->detokenizer.kept_count = r->kept_count;
        qr_detokenizer_prime(&output->detokenizer, seq->ids + r->prompt_count - primed, (size_t)primed);
    }
    qr_output_replay(output, r->prefix_ids, r->prefix_count, r->prefix_text_bytes);
}

static qr_status reserve(qr_engine *e, qr_request *r, qr_error *err)
{
    int64_t room = e->plan.max_model_len - r->prompt_count;
    int64_t output = r->sampling.max_tokens >= 0 ? QR_MIN(r->sampling.max_tokens, room) : room;
    const qr_tokenizer *tokenizer = r->sampling.detokenize ? e->model->tokenizer : NULL;
    const qr_output_shape shape = {.tokens_max = r->prompt_count + output,
                                   .block_size = e->plan.options.block_size,
                                   .token_bytes_max =
                                       tokenizer != NULL ? qr_tokenizer_token_bytes_max(tokenizer) : 0,
                                   .n_groups = e->plan.scheduler.n_groups,
                                   .keys = e->plan.scheduler.prefix_caching};
    qr_status status = qr_request_reserve(r, &shape, err);
    if (status != QR_OK)
        return status;
    qr_sequence *first = &r->samples[0].seq;
    int32_t full = first->keys != NULL ? (int32_t)(r->prompt_count / shape.block_size) : 0;
    qr_prefix_keys_extend(first->keys, 0, full, &e->root, first->ids, shape.block_size, r->salt.data,
                          r->salt.len);
    for (int32_t i = 0; i < r->n; i++)
        fill_sequence(e, r, &r->samples[i], full);
    return QR_OK;
}

/* ---- The text pool ---- */

void qr_prepare_request(qr_engine *e, qr_encoder *encoder, qr_request *r)
{
    qr_error *err = &r->error;
    qr_status status = QR_OK;
    if (!atomic_load(&r->cancelled)) {
        status = encode(e, encoder, r, err);
        if (status == QR_OK)
            truncate_prompt(e, r);
        if (status == QR_OK)
            status = check_prompt(e, r, err);
        if (status == QR_OK)
            status = make_sampler(e, encoder, r, err);
        if (status == QR_OK)
            status = reserve(e, r, err);
    }
    r->error.status = status;
    qr_engine_post(e, r);
}

void *qr_prepare_run(void *arg)
{
    qr_engine *e = arg;
    qr_encoder *encoder = e->model->tokenizer != NULL ? qr_encoder_new(e->model->tokenizer) : NULL;
    for (qr_request *r; (r = qr_queue_pop(&e->text_queue, UINT64_MAX)) != NULL;)
        qr_prepare_request(e, encoder, r);
    if (encoder != NULL)
        qr_encoder_free(encoder);
    return NULL;
}
