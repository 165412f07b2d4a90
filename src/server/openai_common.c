#include "server/openai_fields.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/http.h"

#define TOP_LEVEL_KEYS_MAX   256
#define LIST_MAX             4096 /* logit_bias, bad_words, stop_token_ids */
#define STOP_BYTES_MAX       1024
#define OUTPUT_PREFIX_MAX    ((size_t)1 << 20)
#define CACHE_SALT_BYTES_MAX 1024

typedef enum field_type {
    FIELD_BOOL,
    FIELD_INT32,
    FIELD_INT64,
    FIELD_FLOAT,
    FIELD_STRING,  /* max: bytes */
    FIELD_ARRAY,   /* kept as JSON */
    FIELD_ANY,     /* kept as JSON */
    FIELD_SPECIAL, /* a function of its own */
    FIELD_ONLY,    /* known; only the values in `only` are served */
    FIELD_ACCEPTED /* known; has no effect here */
} field_type;

typedef struct field_row {
    const char *name;
    unsigned kinds;
    field_type type;
    size_t offset;
    double min, max;
    bool above_min; /* min itself is not allowed */
    bool (*read)(qr_field_reader *reader, const char *name, const qr_json *value);
    const char *only; /* JSON texts separated by '|' */
} field_row;

/* ---- Readers of single fields ---------------------------------------------------------------------- */

bool qr_field_wrong_type(qr_field_reader *reader, const char *name, const char *wanted, const qr_json *value)
{
    return qr_api_fail(reader->error, 400, NULL, name, "%s: expected %s, got %s", name, wanted,
                       qr_json_type_name(qr_json_typeof(value)));
}

static bool read_number(qr_field_reader *reader, const field_row *row, const qr_json *value, double *out)
{
    qr_json_type type = qr_json_typeof(value);
    if (type != QR_JSON_INT && type != QR_JSON_REAL)
        return qr_field_wrong_type(reader, row->name, row->type == FIELD_FLOAT ? "a number" : "an integer",
                                   value);
    double number = qr_json_number(value, NAN);
    if (row->type != FIELD_FLOAT && number != floor(number))
        return qr_api_fail(reader->error, 400, NULL, row->name, "%s: expected an integer, got %g", row->name,
                           number);
    bool fits = number <= row->max && (row->above_min ? number > row->min : number >= row->min);
    if (!fits)
        return qr_api_fail(reader->error, 400, NULL, row->name, "%s: %.10g is not in %c%.10g, %.10g]",
                           row->name, number, row->above_min ? '(' : '[', row->min, row->max);
    *out = number;
    return true;
}

static bool read_stored(qr_field_reader *reader, const field_row *row, const qr_json *value)
{
    char *at = (char *)reader->params + row->offset;
    double number = 0;
    if (row->type == FIELD_BOOL) {
        if (!qr_json_is(value, QR_JSON_BOOL))
            return qr_field_wrong_type(reader, row->name, "a boolean", value);
        *(bool *)(void *)at = qr_json_bool(value, false);
        return true;
    }
    if (!read_number(reader, row, value, &number))
        return false;
    if (row->type == FIELD_INT32)
        *(int32_t *)(void *)at = (int32_t)number;
    else if (row->type == FIELD_INT64)
        *(int64_t *)(void *)at = (int64_t)number;
    else
        *(float *)(void *)at = (float)number;
    return true;
}

static bool read_seed(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_INT))
        return qr_field_wrong_type(reader, name, "an integer", value);
    reader->params->sampling.has_seed = true;
    reader->params->sampling.seed = (uint64_t)qr_json_int(value, 0);
    return true;
}

static bool read_string(qr_field_reader *reader, const field_row *row, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_STRING))
        return qr_field_wrong_type(reader, row->name, "a string", value);
    qr_str text = qr_json_string(value);
    if ((double)text.len > row->max || (double)text.len < row->min)
        return qr_api_fail(reader->error, 400, NULL, row->name, "%s: %zu bytes is not in [%.0f, %.0f]",
                           row->name, text.len, row->min, row->max);
    *(qr_str *)(void *)((char *)reader->params + row->offset) = text;
    return true;
}

/* A list of strings, or one string, into the arena. */
static bool read_strings(qr_field_reader *reader, const char *name, const qr_json *value, size_t count_max,
                         const char *const **out, size_t *out_count)
{
    bool single = qr_json_is(value, QR_JSON_STRING);
    if (!single && !qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, name, "a string or a list of strings", value);
    size_t count = single ? 1 : qr_json_count(value);
    if (count > count_max)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: %zu entries, at most %zu are served", name,
                           count, count_max);
    if (count == 0)
        return true;
    const char **items = QR_ARENA_ARRAY(&reader->params->arena, const char *, count);
    for (size_t i = 0; i < count; i++) {
        const qr_json *item = single ? value : qr_json_at(value, i);
        if (!qr_json_is(item, QR_JSON_STRING))
            return qr_field_wrong_type(reader, name, "strings", item);
        qr_str text = qr_json_string(item);
        if (text.len == 0 || text.len > STOP_BYTES_MAX)
            return qr_api_fail(reader->error, 400, NULL, name, "%s: entry %zu has %zu bytes, not 1 to %d",
                               name, i, text.len, STOP_BYTES_MAX);
        items[i] = text.data;
    }
    *out = items;
    *out_count = count;
    return true;
}

static bool read_stop(qr_field_reader *reader, const char *name, const qr_json *value)
{
    qr_sampling_params *sampling = &reader->params->sampling;
    return read_strings(reader, name, value, (size_t)reader->limits->stop_max, &sampling->stop,
                        &sampling->stop_count);
}

static bool read_bad_words(qr_field_reader *reader, const char *name, const qr_json *value)
{
    qr_sampling_params *sampling = &reader->params->sampling;
    if (!qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, name, "a list of strings", value);
    return read_strings(reader, name, value, LIST_MAX, &sampling->bad_words, &sampling->bad_word_count);
}

static bool read_id(qr_field_reader *reader, const char *name, const qr_json *value, int32_t *out)
{
    if (!qr_json_is(value, QR_JSON_INT))
        return qr_field_wrong_type(reader, name, "token ids (integers)", value);
    int64_t id = qr_json_int(value, -1);
    if (id < 0 || id >= reader->limits->vocab_size)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: token id %lld is not in [0, %d)", name,
                           (long long)id, reader->limits->vocab_size);
    *out = (int32_t)id;
    return true;
}

static bool read_ids(qr_field_reader *reader, const char *name, const qr_json *value, size_t count_max,
                     const int32_t **out, size_t *out_count)
{
    if (!qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, name, "a list of token ids", value);
    size_t count = qr_json_count(value);
    if (count > count_max)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: %zu entries, at most %zu are served", name,
                           count, count_max);
    int32_t *ids = QR_ARENA_ARRAY(&reader->params->arena, int32_t, count);
    for (size_t i = 0; i < count; i++) {
        if (!read_id(reader, name, qr_json_at(value, i), &ids[i]))
            return false;
    }
    *out = ids;
    *out_count = count;
    return true;
}

static bool read_stop_ids(qr_field_reader *reader, const char *name, const qr_json *value)
{
    qr_sampling_params *sampling = &reader->params->sampling;
    return read_ids(reader, name, value, LIST_MAX, &sampling->stop_token_ids, &sampling->stop_token_id_count);
}

static bool read_allowed_ids(qr_field_reader *reader, const char *name, const qr_json *value)
{
    qr_sampling_params *sampling = &reader->params->sampling;
    if (qr_json_is(value, QR_JSON_ARRAY) && qr_json_count(value) == 0)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: an empty list would allow no token at all",
                           name);
    return read_ids(reader, name, value, (size_t)reader->limits->vocab_size, &sampling->allowed_token_ids,
                    &sampling->allowed_token_id_count);
}

static bool read_prefix_ids(qr_field_reader *reader, const char *name, const qr_json *value)
{
    return read_ids(reader, name, value, OUTPUT_PREFIX_MAX, &reader->params->output_prefix_ids,
                    &reader->params->output_prefix_count);
}

static bool read_resume(qr_field_reader *reader, const char *name, const qr_json *value)
{
    (void)name;
    return qr_api_resume_read(value, &reader->params->resume, reader->error);
}

static bool read_bias(qr_field_reader *reader, const char *name, qr_str key, const qr_json *value,
                      qr_logit_bias *out)
{
    char digits[16];
    char *end = NULL;
    if (key.len == 0 || key.len >= sizeof(digits))
        return qr_api_fail(reader->error, 400, NULL, name, "%s: a key is not a token id", name);
    memcpy(digits, key.data, key.len);
    digits[key.len] = '\0';
    long long id = strtoll(digits, &end, 10);
    if (*end != '\0' || digits[0] < '0' || digits[0] > '9' || id >= reader->limits->vocab_size)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: a key is not a token id in [0, %d)", name,
                           reader->limits->vocab_size);
    qr_json_type type = qr_json_typeof(value);
    double bias = qr_json_number(value, NAN);
    if ((type != QR_JSON_INT && type != QR_JSON_REAL) || !(bias >= -100 && bias <= 100))
        return qr_api_fail(reader->error, 400, NULL, name,
                           "%s: the bias of token %lld is not a number in [-100, 100]", name, id);
    *out = (qr_logit_bias){.token = (int32_t)id, .bias = (float)bias};
    return true;
}

static bool read_logit_bias(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_OBJECT))
        return qr_field_wrong_type(reader, name, "an object of token id to bias", value);
    size_t count = qr_json_count(value), at = 0;
    if (count > LIST_MAX)
        return qr_api_fail(reader->error, 400, NULL, name, "%s: %zu entries, at most %d are served", name,
                           count, LIST_MAX);
    qr_logit_bias *rows = QR_ARENA_ARRAY(&reader->params->arena, qr_logit_bias, count);
    for (void *it = qr_json_iter(value); it != NULL; it = qr_json_iter_next(value, it)) {
        if (!read_bias(reader, name, qr_json_iter_key(it), qr_json_iter_value(it), &rows[at++]))
            return false;
    }
    reader->params->sampling.logit_bias = rows;
    reader->params->sampling.logit_bias_count = count;
    return true;
}

static bool read_stream_options(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_OBJECT))
        return qr_field_wrong_type(reader, name, "an object", value);
    static const char *const keys[] = {"include_usage", "continuous_usage_stats"};
    bool flags[2] = {false, false};
    for (size_t i = 0; i < 2; i++) {
        const qr_json *flag = qr_json_get(value, keys[i]);
        if (flag == NULL || qr_json_is(flag, QR_JSON_NULL))
            continue;
        if (!qr_json_is(flag, QR_JSON_BOOL))
            return qr_field_wrong_type(reader, name, "booleans inside", flag);
        flags[i] = qr_json_bool(flag, false);
    }
    reader->params->stream_options_given = true;
    reader->params->include_usage = flags[0];
    reader->params->continuous_usage = flags[0] && flags[1];
    return true;
}

static bool read_response_format(qr_field_reader *reader, const char *name, const qr_json *value)
{
    qr_str type = qr_json_string(qr_json_get(value, "type"));
    if (qr_str_equals(type, "text"))
        return true;
    if (qr_str_equals(type, "json_object") || qr_str_equals(type, "json_schema") ||
        qr_str_equals(type, "structural_tag"))
        return qr_api_fail(reader->error, 400, "not_served", name,
                           "response_format: type \"%s\" is not served yet, only \"text\"", type.data);
    return qr_api_fail(reader->error, 400, NULL, name,
                       "response_format: expected an object with type \"text\"");
}

static bool read_completion_logprobs(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_INT))
        return qr_field_wrong_type(reader, name, "an integer", value);
    int64_t count = qr_json_int(value, -1);
    if (count < 0 || count > reader->limits->vocab_size)
        return qr_api_fail(reader->error, 400, NULL, name, "logprobs: %lld is not in [0, %d]",
                           (long long)count, reader->limits->vocab_size);
    reader->params->sampling.logprobs = (int32_t)count;
    return true;
}

/* ---- The table ------------------------------------------------------------------------------------- */

#define AT(member)       offsetof(qr_api_params, member)
#define SAMPLING(member) offsetof(qr_api_params, sampling.member)
#define BOTH             (QR_API_CHAT | QR_API_COMPLETION)
#define ROW_BOOL(name, kinds, where)                            \
    {                                                           \
        name, kinds, FIELD_BOOL, where, 0, 1, false, NULL, NULL \
    }
#define ROW_INT32(name, kinds, where, min, max)                      \
    {                                                                \
        name, kinds, FIELD_INT32, where, min, max, false, NULL, NULL \
    }
#define ROW_INT64(name, kinds, where, min, max)                      \
    {                                                                \
        name, kinds, FIELD_INT64, where, min, max, false, NULL, NULL \
    }
#define ROW_FLOAT(name, where, min, max)                            \
    {                                                               \
        name, BOTH, FIELD_FLOAT, where, min, max, false, NULL, NULL \
    }
#define ROW_FLOAT_ABOVE(name, where, min, max)                     \
    {                                                              \
        name, BOTH, FIELD_FLOAT, where, min, max, true, NULL, NULL \
    }
#define ROW_STRING(name, kinds, where, min, max)                      \
    {                                                                 \
        name, kinds, FIELD_STRING, where, min, max, false, NULL, NULL \
    }
#define ROW_SPECIAL(name, kinds, function)                         \
    {                                                              \
        name, kinds, FIELD_SPECIAL, 0, 0, 0, false, function, NULL \
    }
#define ROW_ONLY(name, kinds, values)                         \
    {                                                         \
        name, kinds, FIELD_ONLY, 0, 0, 0, false, NULL, values \
    }
#define ROW_ACCEPTED(name, kinds)                               \
    {                                                           \
        name, kinds, FIELD_ACCEPTED, 0, 0, 0, false, NULL, NULL \
    }
#define ROW_JSON(name, kinds, type, where)                \
    {                                                     \
        name, kinds, type, where, 0, 0, false, NULL, NULL \
    }

static const field_row field_rows[] = {
    ROW_STRING("model", BOTH, AT(model), 0, 1024),
    ROW_SPECIAL("messages", QR_API_CHAT, qr_field_messages),
    ROW_JSON("prompt", QR_API_COMPLETION, FIELD_ANY, AT(prompt)),
    /* sampling */
    ROW_INT32("n", BOTH, SAMPLING(n), 1, 16384),
    ROW_INT32("best_of", BOTH, AT(best_of), 1, 16384),
    ROW_FLOAT("temperature", SAMPLING(temperature), 0, 100),
    ROW_FLOAT_ABOVE("top_p", SAMPLING(top_p), 0, 1),
    ROW_INT32("top_k", BOTH, SAMPLING(top_k), -1, INT32_MAX),
    ROW_FLOAT("min_p", SAMPLING(min_p), 0, 1),
    ROW_FLOAT_ABOVE("repetition_penalty", SAMPLING(repetition_penalty), 0, 100),
    ROW_FLOAT("presence_penalty", SAMPLING(presence_penalty), -2, 2),
    ROW_FLOAT("frequency_penalty", SAMPLING(frequency_penalty), -2, 2),
    ROW_SPECIAL("seed", BOTH, read_seed),
    ROW_INT64("max_tokens", BOTH, SAMPLING(max_tokens), 0, INT32_MAX),
    ROW_INT64("max_completion_tokens", BOTH, AT(max_completion_tokens), 0, INT32_MAX),
    ROW_INT64("min_tokens", BOTH, SAMPLING(min_tokens), 0, INT32_MAX),
    ROW_BOOL("ignore_eos", BOTH, SAMPLING(ignore_eos)),
    ROW_SPECIAL("stop", BOTH, read_stop),
    ROW_SPECIAL("stop_token_ids", BOTH, read_stop_ids),
    ROW_BOOL("include_stop_str_in_output", BOTH, SAMPLING(include_stop_str_in_output)),
    ROW_BOOL("skip_special_tokens", BOTH, SAMPLING(skip_special_tokens)),
    ROW_SPECIAL("logit_bias", BOTH, read_logit_bias),
    ROW_SPECIAL("allowed_token_ids", BOTH, read_allowed_ids),
    ROW_SPECIAL("bad_words", BOTH, read_bad_words),
    /* what comes back */
    ROW_BOOL("stream", BOTH, AT(stream)),
    ROW_SPECIAL("stream_options", BOTH, read_stream_options),
    ROW_BOOL("logprobs", QR_API_CHAT, AT(chat_logprobs)),
    ROW_INT32("top_logprobs", QR_API_CHAT, AT(top_logprobs), 0, INT32_MAX),
    ROW_SPECIAL("logprobs", QR_API_COMPLETION, read_completion_logprobs),
    ROW_INT32("prompt_logprobs", BOTH, SAMPLING(prompt_logprobs), 0, INT32_MAX),
    ROW_BOOL("echo", BOTH, AT(echo)),
    ROW_BOOL("return_token_ids", BOTH, AT(return_token_ids)),
    ROW_BOOL("return_tokens_as_token_ids", BOTH, AT(return_tokens_as_token_ids)),
    ROW_BOOL("return_prompt_text", BOTH, AT(return_prompt_text)),
    ROW_BOOL("include_reasoning", QR_API_CHAT, AT(include_reasoning)),
    /* the prompt */
    ROW_BOOL("add_special_tokens", BOTH, AT(add_special_tokens)),
    ROW_BOOL("add_generation_prompt", QR_API_CHAT, AT(add_generation_prompt)),
    ROW_BOOL("continue_final_message", QR_API_CHAT, AT(continue_final_message)),
    ROW_INT64("truncate_prompt_tokens", BOTH, AT(truncate_prompt_tokens), -1, INT32_MAX),
    ROW_SPECIAL("output_prefix_ids", BOTH, read_prefix_ids),
    ROW_SPECIAL("resume", BOTH, read_resume),
    ROW_SPECIAL("tools", QR_API_CHAT, qr_field_tools),
    ROW_SPECIAL("tool_choice", QR_API_CHAT, qr_field_tool_choice),
    ROW_BOOL("parallel_tool_calls", QR_API_CHAT, AT(parallel_tool_calls)),
    ROW_JSON("documents", QR_API_CHAT, FIELD_ARRAY, AT(documents)),
    ROW_SPECIAL("chat_template_kwargs", QR_API_CHAT, qr_field_template_kwargs),
    ROW_STRING("reasoning_effort", QR_API_CHAT, AT(reasoning_effort), 1, 32),
    /* the engine */
    ROW_INT32("priority", BOTH, AT(priority), INT32_MIN, INT32_MAX),
    ROW_STRING("cache_salt", BOTH, AT(cache_salt), 1, CACHE_SALT_BYTES_MAX),
    ROW_STRING("request_id", BOTH, AT(request_id), 1, QR_HTTP_ID_MAX),
    /* known, served in part */
    ROW_SPECIAL("response_format", BOTH, read_response_format),
    ROW_ONLY("use_beam_search", BOTH, "false"),
    ROW_ONLY("length_penalty", BOTH, "1|1.0"),
    ROW_ONLY("early_stopping", BOTH, "false"),
    ROW_ONLY("suffix", QR_API_COMPLETION, "\"\""),
    ROW_ONLY("prompt_embeds", QR_API_COMPLETION, ""),
    ROW_ONLY("structured_outputs", BOTH, "{}"),
    ROW_ONLY("guided_json", BOTH, ""),
    ROW_ONLY("guided_regex", BOTH, ""),
    ROW_ONLY("guided_choice", BOTH, ""),
    ROW_ONLY("guided_grammar", BOTH, ""),
    ROW_ONLY("guided_decoding_backend", BOTH, ""),
    ROW_ONLY("guided_whitespace_pattern", BOTH, ""),
    ROW_ONLY("functions", QR_API_CHAT, "[]"),
    ROW_ONLY("function_call", QR_API_CHAT, "\"none\"|\"auto\""),
    ROW_ONLY("modalities", QR_API_CHAT, "[\"text\"]|[]"),
    ROW_ONLY("audio", QR_API_CHAT, ""),
    ROW_ONLY("web_search_options", QR_API_CHAT, ""),
    ROW_ONLY("chat_template", QR_API_CHAT, ""),
    ROW_ONLY("mm_processor_kwargs", BOTH, "{}"),
    ROW_ONLY("media_io_kwargs", BOTH, "{}"),
    ROW_ONLY("spaces_between_special_tokens", BOTH, "true"),
    ROW_ONLY("truncation_side", BOTH, "\"left\""),
    ROW_ONLY("logprob_token_ids", BOTH, "[]"),
    ROW_ONLY("return_token_offsets", BOTH, "false"),
    ROW_ONLY("stream_interval", BOTH, "1"),
    ROW_ONLY("kv_transfer_params", BOTH, "{}"),
    ROW_ONLY("ec_transfer_params", BOTH, "{}"),
    ROW_ONLY("vllm_xargs", BOTH, "{}"),
    ROW_ONLY("repetition_detection", BOTH, ""),
    ROW_ONLY("thinking_token_budget", BOTH, ""),
    ROW_ONLY("watermarking", BOTH, "false"),
    ROW_ONLY("store", QR_API_CHAT, "false"),
    /* known, without effect here */
    ROW_ACCEPTED("user", BOTH),
    ROW_ACCEPTED("metadata", QR_API_CHAT),
    ROW_ACCEPTED("service_tier", QR_API_CHAT),
    ROW_ACCEPTED("safety_identifier", QR_API_CHAT),
    ROW_ACCEPTED("prompt_cache_key", QR_API_CHAT),
    ROW_ACCEPTED("prediction", QR_API_CHAT),
    ROW_ACCEPTED("verbosity", QR_API_CHAT),
    ROW_ACCEPTED("session_id", BOTH),
};

static const char *type_name(const field_row *row)
{
    switch (row->type) {
    case FIELD_BOOL: return "boolean";
    case FIELD_INT32:
    case FIELD_INT64: return "integer";
    case FIELD_FLOAT: return "number";
    case FIELD_STRING: return "string";
    case FIELD_ARRAY: return "list";
    case FIELD_ANY:
    case FIELD_SPECIAL: return "as OpenAI's or vLLM's";
    case FIELD_ONLY: return "not served yet";
    case FIELD_ACCEPTED: return "accepted, without effect";
    }
    return "";
}

bool qr_api_field_row(size_t index, qr_buf *out)
{
    if (index >= QR_COUNT_OF(field_rows))
        return false;
    const field_row *row = &field_rows[index];
    const char *where = row->kinds == BOTH ? "both" : row->kinds == QR_API_CHAT ? "chat" : "completions";
    qr_buf_printf(out, "| `%s` | %s | %s", row->name, where, type_name(row));
    if (row->type == FIELD_INT32 || row->type == FIELD_INT64 || row->type == FIELD_FLOAT)
        qr_buf_printf(out, " in %c%.10g, %.10g]", row->above_min ? '(' : '[', row->min, row->max);
    else if (row->type == FIELD_STRING)
        qr_buf_printf(out, " of %.0f to %.0f bytes", row->min, row->max);
    for (const char *at = row->type == FIELD_ONLY ? row->only : ""; *at != '\0';) {
        int len = (int)strcspn(at, "|");
        qr_buf_printf(out, "%s `%.*s`", at == row->only ? "; only" : " or", len, at);
        at += len + (at[len] == '|');
    }
    qr_buf_append_cstr(out, " |\n");
    return true;
}

/* ---- Reading a body -------------------------------------------------------------------------------- */

/* Whether value, written compactly, is one of the texts in `only`. */
static bool only_allows(const char *only, const qr_json *value)
{
    qr_json_type type = qr_json_typeof(value);
    if ((type == QR_JSON_ARRAY || type == QR_JSON_OBJECT) && qr_json_count(value) > 1)
        return false;
    qr_buf text = {0};
    qr_json_write(value, 0, &text);
    bool found = false;
    for (const char *at = only; !found && *at != '\0';) {
        size_t len = strcspn(at, "|");
        found = qr_str_equal(qr_buf_str(&text), qr_str_make(at, len));
        at += len + (at[len] == '|');
    }
    qr_buf_release(&text);
    return found;
}

static bool read_kept(qr_field_reader *reader, const field_row *row, const qr_json *value)
{
    if (row->type == FIELD_ARRAY && !qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, row->name, "a list", value);
    *(const qr_json **)(void *)((char *)reader->params + row->offset) = value;
    return true;
}

static bool read_field(qr_field_reader *reader, const field_row *row, const qr_json *value)
{
    switch (row->type) {
    case FIELD_BOOL:
    case FIELD_INT32:
    case FIELD_INT64:
    case FIELD_FLOAT: return read_stored(reader, row, value);
    case FIELD_STRING: return read_string(reader, row, value);
    case FIELD_ARRAY:
    case FIELD_ANY: return read_kept(reader, row, value);
    case FIELD_SPECIAL: return row->read(reader, row->name, value);
    case FIELD_ONLY:
        if (only_allows(row->only, value))
            return true;
        return qr_api_fail(reader->error, 400, "not_served", row->name, "%s is not served yet%s%s", row->name,
                           row->only[0] != '\0' ? ": only " : "", row->only);
    case FIELD_ACCEPTED: return true;
    }
    return true;
}

static const field_row *find_row(qr_str key, qr_api_kind kind)
{
    for (size_t i = 0; i < QR_COUNT_OF(field_rows); i++) {
        if ((field_rows[i].kinds & (unsigned)kind) != 0 && qr_str_equals(key, field_rows[i].name))
            return &field_rows[i];
    }
    return NULL;
}

/* Names of ignored fields for the log: printable ASCII, cut to fit. */
static void note_unknown(qr_api_params *params, qr_str key)
{
    size_t at = strlen(params->unknown);
    if (at > 0 && at + 1 < sizeof(params->unknown))
        params->unknown[at++] = ',';
    for (size_t i = 0; i < key.len && at + 1 < sizeof(params->unknown); i++)
        params->unknown[at++] =
            key.data[i] > ' ' && key.data[i] < 0x7f && key.data[i] != '"' ? key.data[i] : '?';
    params->unknown[at] = '\0';
}

static bool read_fields(qr_field_reader *reader, const qr_json *body)
{
    if (!qr_json_is(body, QR_JSON_OBJECT))
        return qr_api_fail(reader->error, 400, NULL, NULL, "the body is not a JSON object");
    if (qr_json_count(body) > TOP_LEVEL_KEYS_MAX)
        return qr_api_fail(reader->error, 400, NULL, NULL, "the body has %zu fields, at most %d are read",
                           qr_json_count(body), TOP_LEVEL_KEYS_MAX);
    for (void *it = qr_json_iter(body); it != NULL; it = qr_json_iter_next(body, it)) {
        const qr_json *value = qr_json_iter_value(it);
        const field_row *row = find_row(qr_json_iter_key(it), reader->params->kind);
        if (row == NULL)
            note_unknown(reader->params, qr_json_iter_key(it));
        else if (!qr_json_is(value, QR_JSON_NULL) && !read_field(reader, row, value))
            return false;
    }
    return true;
}

/* ---- Prompts --------------------------------------------------------------------------------------- */

static bool prompt_from_ids(qr_field_reader *reader, const qr_json *ids, qr_api_prompt *out)
{
    if (qr_json_count(ids) == 0)
        return qr_api_fail(reader->error, 400, NULL, "prompt", "prompt: a list of token ids is empty");
    return read_ids(reader, "prompt", ids, SIZE_MAX, &out->ids, &out->id_count);
}

static bool prompt_from_string(qr_api_prompt *out, const qr_json *value)
{
    qr_str text = qr_json_string(value);
    out->text = text.data;
    out->text_bytes = text.len;
    return true;
}

static bool read_prompts(qr_field_reader *reader)
{
    qr_api_params *params = reader->params;
    const qr_json *prompt = params->prompt;
    if (prompt == NULL)
        return qr_api_fail(reader->error, 400, NULL, "prompt", "prompt is missing");
    bool array = qr_json_is(prompt, QR_JSON_ARRAY);
    if (!array && !qr_json_is(prompt, QR_JSON_STRING))
        return qr_field_wrong_type(reader, "prompt", "a string, a list of strings, or token ids", prompt);
    const qr_json *first = array ? qr_json_at(prompt, 0) : NULL;
    if (array && first == NULL)
        return qr_api_fail(reader->error, 400, NULL, "prompt", "prompt: the list is empty");
    bool single = !array || qr_json_is(first, QR_JSON_INT);
    size_t count = single ? 1 : qr_json_count(prompt);
    if (count > (size_t)reader->limits->prompts_max)
        return qr_api_fail(reader->error, 400, NULL, "prompt",
                           "prompt: %zu prompts in one request, at most %d are served", count,
                           reader->limits->prompts_max);
    params->prompts = QR_ARENA_ARRAY(&params->arena, qr_api_prompt, count);
    params->prompt_count = count;
    if (single)
        return array ? prompt_from_ids(reader, prompt, &params->prompts[0])
                     : prompt_from_string(&params->prompts[0], prompt);
    for (size_t i = 0; i < count; i++) {
        const qr_json *item = qr_json_at(prompt, i);
        if (qr_json_typeof(item) != qr_json_typeof(first) ||
            (!qr_json_is(item, QR_JSON_STRING) && !qr_json_is(item, QR_JSON_ARRAY)))
            return qr_api_fail(reader->error, 400, NULL, "prompt",
                               "prompt[%zu]: expected a string or token ids, all of one kind", i);
        bool fine = qr_json_is(item, QR_JSON_STRING) ? prompt_from_string(&params->prompts[i], item)
                                                     : prompt_from_ids(reader, item, &params->prompts[i]);
        if (!fine)
            return false;
    }
    return true;
}

/* ---- What fields say together ---------------------------------------------------------------------- */

static bool settle_lengths(qr_field_reader *reader)
{
    qr_api_params *params = reader->params;
    qr_sampling_params *sampling = &params->sampling;
    if (params->max_completion_tokens >= 0)
        sampling->max_tokens = params->max_completion_tokens;
    const qr_json *given = qr_json_get(params->body, "max_tokens");
    params->max_tokens_given =
        params->max_completion_tokens >= 0 || (given != NULL && !qr_json_is(given, QR_JSON_NULL));
    if (sampling->max_tokens == 0 && !params->echo && sampling->prompt_logprobs < 0)
        return qr_api_fail(reader->error, 400, NULL, "max_tokens",
                           "max_tokens: 0 is served only with echo or prompt_logprobs");
    if (sampling->max_tokens >= 0 && sampling->min_tokens > sampling->max_tokens)
        return qr_api_fail(reader->error, 400, NULL, "min_tokens",
                           "min_tokens: %lld is more than max_tokens, %lld", (long long)sampling->min_tokens,
                           (long long)sampling->max_tokens);
    return true;
}

static bool settle_logprobs(qr_field_reader *reader)
{
    qr_api_params *params = reader->params;
    qr_sampling_params *sampling = &params->sampling;
    if (params->top_logprobs > 0 && !params->chat_logprobs)
        return qr_api_fail(reader->error, 400, NULL, "top_logprobs", "top_logprobs: needs logprobs: true");
    if (params->kind == QR_API_CHAT && params->chat_logprobs)
        sampling->logprobs = params->top_logprobs > 0 ? params->top_logprobs : 0;
    if (params->stream && sampling->prompt_logprobs >= 0)
        return qr_api_fail(reader->error, 400, NULL, "prompt_logprobs",
                           "prompt_logprobs: not served with stream: true");
    if (params->kind == QR_API_COMPLETION && params->echo && sampling->logprobs >= 0 &&
        sampling->prompt_logprobs < 0)
        sampling->prompt_logprobs = sampling->logprobs; /* echo shows them with the output's */
    return true;
}

static bool settle(qr_field_reader *reader)
{
    qr_api_params *params = reader->params;
    if (params->kind == QR_API_CHAT && !qr_field_settle_chat(reader))
        return false;
    if (params->sampling.n > reader->limits->n_max)
        return qr_api_fail(reader->error, 400, NULL, "n", "n: %d is more than the %d samples that are served",
                           params->sampling.n, reader->limits->n_max);
    if (params->best_of > params->sampling.n)
        return qr_api_fail(reader->error, 400, "not_served", "best_of", "best_of: more than n is not served");
    if (params->prompt_count * (size_t)params->sampling.n > (size_t)reader->limits->sequences_max)
        return qr_api_fail(reader->error, 400, NULL, "n",
                           "n: %zu prompts x %d samples is more than the %d that are served in one request",
                           params->prompt_count, params->sampling.n, reader->limits->sequences_max);
    if (params->stream_options_given && !params->stream)
        return qr_api_fail(reader->error, 400, NULL, "stream_options", "stream_options: needs stream: true");
    if (params->return_prompt_text && params->stream)
        return qr_api_fail(reader->error, 400, "not_served", "return_prompt_text",
                           "return_prompt_text: not served with stream: true");
    if (!settle_lengths(reader) || !settle_logprobs(reader) || !qr_api_resume_settle(params, reader->error))
        return false;
    qr_error err = {0};
    if (qr_sampling_params_check(&params->sampling, &err) != QR_OK)
        return qr_api_fail(reader->error, 400, NULL, NULL, "%s", err.message);
    return true;
}

bool qr_api_params_parse(qr_api_params *params, qr_str body, const qr_api_limits *limits, qr_api_error *error)
{
    qr_field_reader reader = {params, limits, error};
    qr_error err = {0};
    qr_status status = qr_json_parse(body, &qr_json_limits_request, &params->body, &err);
    if (status != QR_OK)
        return qr_api_fail(error, 400, "invalid_json", NULL, "the body is not JSON that is served: %s",
                           err.message);
    if (!read_fields(&reader, params->body))
        return false;
    params->prompt_count = 1;
    if (params->kind == QR_API_COMPLETION && !read_prompts(&reader))
        return false;
    return settle(&reader);
}

/* ---- Defaults -------------------------------------------------------------------------------------- */

static void default_float(const qr_json *config, const char *key, float *target)
{
    const qr_json *value = qr_json_get(config, key);
    if (qr_json_is(value, QR_JSON_INT) || qr_json_is(value, QR_JSON_REAL))
        *target = (float)qr_json_number(value, (double)*target);
}

void qr_api_params_init(qr_api_params *params, qr_api_kind kind, const qr_json *config)
{
    *params = (qr_api_params){.kind = kind,
                              .max_completion_tokens = -1,
                              .top_logprobs = -1,
                              .parallel_tool_calls = true,
                              .include_reasoning = true,
                              .add_generation_prompt = kind == QR_API_CHAT,
                              .add_special_tokens = kind == QR_API_COMPLETION};
    qr_arena_init(&params->arena, 4096);
    qr_sampling_params *sampling = &params->sampling;
    qr_sampling_params_init(sampling);
    if (kind == QR_API_CHAT)
        sampling->max_tokens = -1;
    if (config == NULL)
        return;
    default_float(config, "temperature", &sampling->temperature);
    default_float(config, "top_p", &sampling->top_p);
    default_float(config, "min_p", &sampling->min_p);
    default_float(config, "repetition_penalty", &sampling->repetition_penalty);
    sampling->top_k = (int32_t)qr_json_int(qr_json_get(config, "top_k"), sampling->top_k);
    int64_t new_tokens = qr_json_int(qr_json_get(config, "max_new_tokens"), -1);
    if (new_tokens > 0)
        sampling->max_tokens = new_tokens;
}

void qr_api_params_release(qr_api_params *params)
{
    qr_json_free(params->body);
    qr_arena_release(&params->arena);
    params->body = NULL;
}
