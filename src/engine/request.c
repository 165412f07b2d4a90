#include "engine/request.h"

#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"

#define REQUEST_ID_BYTES_MAX 128
#define SALT_BYTES_MAX       4096
#define KEPT_SPECIAL_MAX     64
/* The detokenizer wants this much room beside the longest token. */
#define TEXT_SLACK           64

/* ---- Copying the options ---- */

static const void *copy_bytes(qr_arena *arena, const void *bytes, size_t size)
{
    if (size == 0)
        return NULL;
    void *copy = qr_arena_alloc(arena, size);
    memcpy(copy, bytes, size);
    return copy;
}

static const char *const *copy_strings(qr_arena *arena, const char *const *strings, size_t count)
{
    const char **copy = qr_arena_alloc(arena, (count + 1) * sizeof(char *));
    for (size_t i = 0; i < count; i++)
        copy[i] = qr_arena_strndup(arena, strings[i], strlen(strings[i]));
    copy[count] = NULL;
    return copy;
}

static void copy_sampling(qr_request *r, const qr_sampling_params *from)
{
    qr_sampling_params_init(&r->sampling);
    memcpy(&r->sampling, from, QR_MIN(from->size, sizeof(r->sampling)));
    r->sampling.size = sizeof(r->sampling);
    qr_sampling_params *s = &r->sampling;
    s->stop = copy_strings(&r->arena, s->stop, s->stop_count);
    s->bad_words = copy_strings(&r->arena, s->bad_words, s->bad_word_count);
    s->stop_token_ids = copy_bytes(&r->arena, s->stop_token_ids, s->stop_token_id_count * sizeof(int32_t));
    s->logit_bias = copy_bytes(&r->arena, s->logit_bias, s->logit_bias_count * sizeof(qr_logit_bias));
    s->allowed_token_ids =
        copy_bytes(&r->arena, s->allowed_token_ids, s->allowed_token_id_count * sizeof(int32_t));
    qr_str *stops = QR_ARENA_ARRAY(&r->arena, qr_str, s->stop_count + 1);
    for (size_t i = 0; i < s->stop_count; i++)
        stops[i] = qr_str_of(s->stop[i]);
    r->stop = (qr_stop_strings){stops, (int32_t)s->stop_count};
}

static qr_status copy_prompt(qr_request *r, const qr_request_options *o, qr_error *err)
{
    int given = (o->text != NULL) + (o->token_ids != NULL) + (o->chat_json != NULL);
    if (given != 1)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "request: one of text, token_ids and chat_json is wanted: got %d", given);
    r->is_text = o->text != NULL;
    r->is_chat = o->chat_json != NULL;
    if (r->is_text)
        r->text = qr_str_make(qr_arena_strndup(&r->arena, o->text, o->text_bytes), o->text_bytes);
    if (r->is_chat)
        r->chat_json =
            qr_str_make(qr_arena_strndup(&r->arena, o->chat_json, o->chat_json_bytes), o->chat_json_bytes);
    if (o->token_ids != NULL) {
        if (o->token_count == 0)
            return qr_fail(err, QR_INVALID_ARGUMENT, "request: token_ids: at least one id is wanted");
        QR_VEC_RESERVE(&r->prompt, o->token_count);
        memcpy(r->prompt.data, o->token_ids, o->token_count * sizeof(int32_t));
        r->prompt.count = o->token_count;
    }
    return QR_OK;
}

static qr_status copy_rest(qr_request *r, const qr_request_options *o, qr_error *err)
{
    size_t id_bytes = o->request_id != NULL ? strlen(o->request_id) : 0;
    if (id_bytes > REQUEST_ID_BYTES_MAX)
        return qr_fail(err, QR_INVALID_ARGUMENT, "request: request_id: %zu bytes, at most %d", id_bytes,
                       REQUEST_ID_BYTES_MAX);
    size_t salt_bytes = o->cache_salt != NULL ? strlen(o->cache_salt) : 0;
    if (salt_bytes > SALT_BYTES_MAX)
        return qr_fail(err, QR_INVALID_ARGUMENT, "request: cache_salt: %zu bytes, at most %d", salt_bytes,
                       SALT_BYTES_MAX);
    if (o->output_prefix_count > 0 && (o->sampling.n != 1 || o->output_prefix_ids == NULL))
        return qr_fail(err, QR_INVALID_ARGUMENT, "request: output_prefix_ids: needs n = 1, got n = %d",
                       o->sampling.n);
    if (o->kept_special_count > KEPT_SPECIAL_MAX)
        return qr_fail(err, QR_INVALID_ARGUMENT, "request: kept_special_ids: %zu ids, at most %d",
                       o->kept_special_count, KEPT_SPECIAL_MAX);
    if (o->output_prefix_text_bytes < -1)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "request: output_prefix_text_bytes must be -1 or more, got %lld",
                       (long long)o->output_prefix_text_bytes);
    if (o->truncate_prompt_tokens < -1)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "request: truncate_prompt_tokens must be -1 or more, got %lld",
                       (long long)o->truncate_prompt_tokens);
    r->id = id_bytes > 0 ? qr_arena_strndup(&r->arena, o->request_id, id_bytes) : NULL;
    r->salt = qr_str_make(qr_arena_strndup(&r->arena, o->cache_salt != NULL ? o->cache_salt : "", salt_bytes),
                          salt_bytes);
    r->prefix_ids = copy_bytes(&r->arena, o->output_prefix_ids, o->output_prefix_count * sizeof(int32_t));
    r->prefix_count = (int64_t)o->output_prefix_count;
    r->kept_ids = copy_bytes(&r->arena, o->kept_special_ids, o->kept_special_count * sizeof(int32_t));
    r->kept_count = o->kept_special_count;
    r->prefix_text_bytes = o->output_prefix_text_bytes;
    r->add_special_tokens = o->add_special_tokens;
    r->parse_special = o->parse_special;
    r->read_cache = !o->skip_reading_prefix_cache;
    r->must_fit = o->max_tokens_must_fit;
    r->truncate = o->truncate_prompt_tokens;
    r->priority = o->priority;
    r->user = o->user;
    return QR_OK;
}

void qr_request_options_init(qr_request_options *options)
{
    *options = (qr_request_options){.size = sizeof(*options),
                                    .add_special_tokens = true,
                                    .parse_special = true,
                                    .output_prefix_text_bytes = -1};
    qr_sampling_params_init(&options->sampling);
}

qr_status qr_request_new(const qr_request_options *options, qr_request **out, qr_error *err)
{
    qr_request_options o;
    qr_request_options_init(&o);
    memcpy(&o, options, QR_MIN(options->size, sizeof(o)));
    qr_status status = qr_sampling_params_check(&o.sampling, err);
    if (status != QR_OK)
        return status;
    qr_request *r = qr_calloc(1, sizeof(*r));
    qr_arena_init(&r->arena, 2048);
    copy_sampling(r, &o.sampling);
    if ((status = copy_prompt(r, &o, err)) != QR_OK || (status = copy_rest(r, &o, err)) != QR_OK) {
        qr_request_free(r);
        return status;
    }
    r->n = r->sampling.n;
    r->columns = r->sampling.logprobs >= 0 ? 1 + r->sampling.logprobs : 0;
    r->prompt_columns = r->sampling.prompt_logprobs >= 0 ? 1 + r->sampling.prompt_logprobs : 0;
    r->samples = QR_ARENA_ARRAY(&r->arena, qr_output, (size_t)r->n);
    for (int32_t i = 0; i < r->n; i++) {
        qr_output *sample = &r->samples[i];
        sample->request = r;
        sample->stop_token = sample->stop_string = -1;
        sample->seq.first = &r->samples[0].seq;
        sample->seq.next = i + 1 < r->n ? &r->samples[i + 1].seq : NULL;
        sample->seq.sample = i;
    }
    *out = r;
    return QR_OK;
}

void qr_request_free(qr_request *r)
{
    if (r->pages != NULL)
        munmap(r->pages, r->pages_bytes);
    QR_VEC_RELEASE(&r->prompt);
    qr_arena_release(&r->arena);
    qr_free(r);
}

uint64_t qr_request_estimate_bytes(const qr_request *r, int64_t max_model_len)
{
    int64_t output =
        r->sampling.max_tokens >= 0 ? QR_MIN(r->sampling.max_tokens, max_model_len) : max_model_len;
    uint64_t prompt =
        r->prompt.count + r->text.len / 2 + r->chat_json.len / 2; /* ids: rarely over one in two bytes */
    prompt = QR_MIN(prompt, (uint64_t)max_model_len);
    uint64_t per_output = sizeof(int32_t) + 8 + (uint64_t)r->columns * sizeof(qr_logprob);
    uint64_t sources = r->text.len + r->chat_json.len;
    return sources + prompt * (uint64_t)r->prompt_columns * sizeof(qr_logprob) +
           (uint64_t)r->n * (prompt * 8 + (uint64_t)output * per_output + sizeof(qr_output));
}

/* ---- Output memory ---- */

/* Hands out pieces of the mapping; with base 0 it only measures. Sizes were bounded by the caller: ids by the
 * model's length, columns and n by the parameters' limits, so that 64 bits hold every sum. */
typedef struct layout {
    uintptr_t base;
    size_t used;
} layout;

static void *layout_take(layout *l, size_t count, size_t item_bytes)
{
    l->used = QR_ROUND_UP(l->used, (size_t)64);
    void *piece = (void *)(l->base + l->used); /* not used while measuring */
    l->used += count * item_bytes;
    return piece;
}

static void lay_out_sample(qr_request *r, qr_output *sample, const qr_output_shape *shape, layout *l)
{
    size_t tokens = (size_t)shape->tokens_max, output = tokens - (size_t)r->prompt_count;
    size_t blocks = (tokens + (size_t)shape->block_size - 1) / (size_t)shape->block_size;
    qr_sequence *seq = &sample->seq;
    seq->ids = layout_take(l, tokens, sizeof(int32_t));
    seq->keys = shape->keys ? layout_take(l, blocks, sizeof(qr_prefix_key)) : NULL;
    for (int g = 0; g < shape->n_groups; g++)
        seq->table.blocks[g] = layout_take(l, blocks, sizeof(int32_t));
    seq->table.capacity = (int32_t)blocks;
    seq->tokens_max = shape->tokens_max;
    sample->logprobs =
        r->columns > 0 ? layout_take(l, output * (size_t)r->columns, sizeof(qr_logprob)) : NULL;
    sample->text_capacity =
        shape->token_bytes_max > 0 ? (output + 2) * (shape->token_bytes_max + TEXT_SLACK) : 0;
    sample->text = layout_take(l, sample->text_capacity, 1);
}

static size_t lay_out(qr_request *r, const qr_output_shape *shape, void *base)
{
    layout l = {.base = (uintptr_t)base};
    for (int32_t i = 0; i < r->n; i++)
        lay_out_sample(r, &r->samples[i], shape, &l);
    if (r->prompt_columns > 0)
        r->prompt_logprobs =
            layout_take(&l, (size_t)r->prompt_count * (size_t)r->prompt_columns, sizeof(qr_logprob));
    return QR_ROUND_UP(l.used + 1, (size_t)4096);
}

qr_status qr_request_reserve(qr_request *r, const qr_output_shape *shape, qr_error *err)
{
    size_t bytes = lay_out(r, shape, NULL);
    /* Reserved, not taken: a page costs memory once something is written to it. */
    void *pages =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED)
        return qr_fail(err, QR_OUT_OF_MEMORY, "request: output: the system refuses to reserve %zu bytes",
                       bytes);
    r->pages = pages;
    r->pages_bytes = bytes;
    lay_out(r, shape, pages);
    for (int32_t i = 0; i < r->n; i++) {
        qr_sequence *seq = &r->samples[i].seq;
        memcpy(seq->ids, r->prompt.data, (size_t)r->prompt_count * sizeof(int32_t));
        seq->prompt_count = seq->committed = r->prompt_count;
    }
    if (r->prompt_logprobs != NULL) /* nothing comes before the first token */
        for (int32_t c = 0; c < r->prompt_columns; c++)
            r->prompt_logprobs[c].token = -1;
    return QR_OK;
}
