/* Sampling parameters: the public struct's defaults and bounds, and the prepared form a request keeps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "sample/sampler.h"

#define GREEDY_BELOW          1e-5f
#define TEMPERATURE_MIN       1e-2f
#define N_MAX                 128
#define STOP_STRINGS_MAX      64
#define STOP_STRING_BYTES_MAX 1024
#define ID_LIST_MAX           4096
#define LOGPROBS_MAX          1000000

void qr_sampling_params_init(qr_sampling_params *params)
{
    *params = (qr_sampling_params){
        .size = sizeof(*params),
        .n = 1,
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
        .max_tokens = 16,
        .logprobs = -1,
        .prompt_logprobs = -1,
        .detokenize = true,
        .skip_special_tokens = true,
    };
}

/* NaN fails every comparison, so the test is written as "inside", never as "outside". */
static qr_status check_float(const char *name, float value, double low, double high, qr_error *err)
{
    if ((double)value >= low && (double)value <= high)
        return QR_OK;
    return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: %s must be between %g and %g, got %g", name, low,
                   high, (double)value);
}

static qr_status check_int(const char *name, int64_t value, int64_t low, int64_t high, qr_error *err)
{
    if (value >= low && value <= high)
        return QR_OK;
    return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: %s must be between %lld and %lld, got %lld", name,
                   (long long)low, (long long)high, (long long)value);
}

static qr_status check_strings(const char *name, const char *const *strings, size_t count, qr_error *err)
{
    qr_status status = check_int(name, (int64_t)count, 0, STOP_STRINGS_MAX, err);
    if (status != QR_OK)
        return qr_fail(err, status, "sampling: at most %d %s strings, got %zu", STOP_STRINGS_MAX, name,
                       count);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = strings[i] != NULL ? strlen(strings[i]) : 0;
        if (bytes == 0 || bytes > STOP_STRING_BYTES_MAX)
            return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: %s[%zu] must hold 1 to %d bytes, got %zu",
                           name, i, STOP_STRING_BYTES_MAX, bytes);
    }
    return QR_OK;
}

static qr_status check_counts(const qr_sampling_params *p, qr_error *err)
{
    qr_status status = QR_OK;
    if ((status = check_int("n", p->n, 1, N_MAX, err)) != QR_OK ||
        (status = check_int("top_k", p->top_k, -1, INT32_MAX, err)) != QR_OK ||
        (status = check_int("max_tokens", p->max_tokens, -1, INT32_MAX, err)) != QR_OK ||
        (status = check_int("min_tokens", p->min_tokens, 0, INT32_MAX, err)) != QR_OK ||
        (status = check_int("logprobs", p->logprobs, -1, LOGPROBS_MAX, err)) != QR_OK ||
        (status = check_int("prompt_logprobs", p->prompt_logprobs, -1, LOGPROBS_MAX, err)) != QR_OK ||
        (status = check_int("number of stop_token_ids", (int64_t)p->stop_token_id_count, 0, ID_LIST_MAX,
                            err)) != QR_OK ||
        (status = check_int("number of logit_bias entries", (int64_t)p->logit_bias_count, 0, ID_LIST_MAX,
                            err)) != QR_OK)
        return status;
    if (p->max_tokens >= 0 && p->min_tokens > p->max_tokens)
        return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: min_tokens %lld is more than max_tokens %lld",
                       (long long)p->min_tokens, (long long)p->max_tokens);
    return QR_OK;
}

qr_status qr_sampling_params_check(const qr_sampling_params *p, qr_error *err)
{
    qr_status status = QR_OK;
    if ((status = check_counts(p, err)) != QR_OK ||
        (status = check_float("temperature", p->temperature, 0, 100, err)) != QR_OK ||
        (status = check_float("min_p", p->min_p, 0, 1, err)) != QR_OK ||
        (status = check_float("presence_penalty", p->presence_penalty, -2, 2, err)) != QR_OK ||
        (status = check_float("frequency_penalty", p->frequency_penalty, -2, 2, err)) != QR_OK ||
        (status = check_float("repetition_penalty", p->repetition_penalty, 1e-3, 1e3, err)) != QR_OK ||
        (status = check_strings("stop", p->stop, p->stop_count, err)) != QR_OK ||
        (status = check_strings("bad_words", p->bad_words, p->bad_word_count, err)) != QR_OK)
        return status;
    if (!(p->top_p > 0 && p->top_p <= 1))
        return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: top_p must be above 0 and at most 1, got %g",
                       (double)p->top_p);
    for (size_t i = 0; i < p->logit_bias_count; i++)
        if (!isfinite(p->logit_bias[i].bias))
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "sampling: logit_bias of token %d must be finite, got %g", p->logit_bias[i].token,
                           (double)p->logit_bias[i].bias);
    return QR_OK;
}

static qr_status check_id(const char *name, int32_t id, int32_t vocab, qr_error *err)
{
    if (id >= 0 && id < vocab)
        return QR_OK;
    return qr_fail(err, QR_INVALID_ARGUMENT, "sampling: %s holds token id %d, the vocabulary has %d", name,
                   id, vocab);
}

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static const int32_t *copy_ids(const int32_t *ids, size_t count, qr_arena *arena)
{
    int32_t *copy = QR_ARENA_ARRAY(arena, int32_t, count);
    if (count > 0)
        memcpy(copy, ids, count * sizeof(*ids));
    return copy;
}

static qr_status copy_allowed(const qr_sampling_params *from, int32_t vocab, qr_arena *arena, qr_id_list *out,
                              qr_error *err)
{
    if (from->allowed_token_id_count > (size_t)vocab)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "sampling: allowed_token_ids holds %zu ids, the vocabulary has %d",
                       from->allowed_token_id_count, vocab);
    for (size_t i = 0; i < from->allowed_token_id_count; i++) {
        qr_status status = check_id("allowed_token_ids", from->allowed_token_ids[i], vocab, err);
        if (status != QR_OK)
            return status;
    }
    *out = (qr_id_list){NULL, (int32_t)from->allowed_token_id_count};
    if (out->count > 0) {
        int32_t *sorted = (int32_t *)copy_ids(from->allowed_token_ids, from->allowed_token_id_count, arena);
        qsort(sorted, (size_t)out->count, sizeof(*sorted), compare_ids);
        out->ids = sorted;
    }
    return QR_OK;
}

static qr_status copy_bias(const qr_sampling_params *from, int32_t vocab, qr_arena *arena,
                           qr_sampler_params *out, qr_error *err)
{
    for (size_t i = 0; i < from->logit_bias_count; i++) {
        qr_status status = check_id("logit_bias", from->logit_bias[i].token, vocab, err);
        if (status != QR_OK)
            return status;
    }
    qr_logit_bias *copy = QR_ARENA_ARRAY(arena, qr_logit_bias, from->logit_bias_count);
    if (from->logit_bias_count > 0)
        memcpy(copy, from->logit_bias, from->logit_bias_count * sizeof(*copy));
    out->bias = copy;
    out->bias_count = (int32_t)from->logit_bias_count;
    return QR_OK;
}

static const qr_id_list *copy_bad_words(const qr_id_list *from, int32_t count, qr_arena *arena)
{
    qr_id_list *lists = QR_ARENA_ARRAY(arena, qr_id_list, (size_t)count);
    for (int32_t i = 0; i < count; i++) {
        lists[i].count = from[i].count;
        lists[i].ids = copy_ids(from[i].ids, (size_t)from[i].count, arena);
    }
    return lists;
}

static qr_status check_stop_ids(const qr_sampling_params *from, int32_t vocab, qr_error *err)
{
    for (size_t i = 0; i < from->stop_token_id_count; i++) {
        qr_status status = check_id("stop_token_ids", from->stop_token_ids[i], vocab, err);
        if (status != QR_OK)
            return status;
    }
    return QR_OK;
}

qr_status qr_sampler_params_make(const qr_sampling_params *from, uint64_t seed, int32_t vocab,
                                 qr_id_list end_ids, const qr_id_list *bad_words, int32_t bad_word_count,
                                 qr_arena *arena, qr_sampler_params *out, qr_error *err)
{
    qr_sampler_params made = {
        .temperature = from->temperature < GREEDY_BELOW ? 0 : QR_MAX(from->temperature, TEMPERATURE_MIN),
        .top_p = from->top_p,
        .min_p = from->min_p,
        .top_k = from->top_k > 0 && from->top_k < vocab ? from->top_k : 0,
        .repetition_penalty = from->repetition_penalty,
        .presence_penalty = from->presence_penalty,
        .frequency_penalty = from->frequency_penalty,
        .penalised =
            from->repetition_penalty != 1 || from->presence_penalty != 0 || from->frequency_penalty != 0,
        .seed = seed,
        .min_tokens = from->min_tokens,
        .logprobs = from->logprobs,
        .vocab = vocab,
    };
    qr_status status = check_stop_ids(from, vocab, err);
    if (status == QR_OK)
        status = copy_allowed(from, vocab, arena, &made.allowed, err);
    if (status == QR_OK)
        status = copy_bias(from, vocab, arena, &made, err);
    if (status != QR_OK)
        return status;
    made.end_ids = (qr_id_list){copy_ids(end_ids.ids, (size_t)end_ids.count, arena), end_ids.count};
    made.bad_words = copy_bad_words(bad_words, bad_word_count, arena);
    made.bad_word_count = bad_word_count;
    *out = made;
    return QR_OK;
}
