#include "base/json.h"

#include <jansson.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/file.h"
#include "base/json_prepare.h"
#include "base/mem.h"
#include "base/utf8.h"

const qr_json_limits qr_json_limits_request = {
    .bytes_max = (size_t)32 << 20, .depth_max = 64, .values_max = 2000000, .memory_max = (size_t)256 << 20};
const qr_json_limits qr_json_limits_file = {.bytes_max = (size_t)64 << 20,
                                            .depth_max = 64,
                                            .values_max = 4000000,
                                            .memory_max = (size_t)1 << 30,
                                            .allow_duplicates = true};

static json_t *tree(const qr_json *json) { return (json_t *)(uintptr_t)json; }
static qr_json *wrap(json_t *json) { return (qr_json *)json; }

/* ---- Memory: what jansson takes while it parses is charged to this thread's budget ----------------- */

static _Thread_local struct {
    bool on, exceeded;
    size_t left;
} budget;

static void *budget_malloc(size_t bytes)
{
    if (budget.on && bytes > budget.left) {
        budget.exceeded = true;
        return NULL; /* jansson undoes its work and reports */
    }
    void *memory = qr_alloc(bytes);
    if (budget.on) {
        size_t taken = malloc_usable_size(memory) + sizeof(size_t);
        budget.left -= QR_MIN(taken, budget.left);
    }
    return memory;
}

static void budget_free(void *memory)
{
    if (budget.on && memory != NULL)
        budget.left += malloc_usable_size(memory) + sizeof(size_t);
    qr_free(memory);
}

static void install_allocator(void) { json_set_alloc_funcs(budget_malloc, budget_free); }

/* Every function that may create a value comes through here first. */
static void ready(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_allocator);
}

/* ---- Parsing --------------------------------------------------------------------------------------- */

static qr_status check_limits(qr_str text, const qr_json_limits *limits, qr_json_census *census,
                              qr_error *err)
{
    if (text.len > limits->bytes_max)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "JSON: %zu bytes, more than the limit of %zu", text.len,
                       limits->bytes_max);
    const char *nul = text.len > 0 ? memchr(text.data, '\0', text.len) : NULL;
    if (nul != NULL) /* jansson takes one after a number for the end of the text */
        return qr_fail(err, QR_INVALID_ARGUMENT, "JSON: NUL byte at offset %td", nul - text.data);
    *census = qr_json_take_census(text);
    if (census->depth > limits->depth_max)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "JSON: nested %zu deep, more than the limit of %zu",
                       census->depth, limits->depth_max);
    if (census->values > limits->values_max)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "JSON: about %zu values, more than the limit of %zu",
                       census->values, limits->values_max);
    return QR_OK;
}

qr_status qr_json_parse(qr_str text, const qr_json_limits *limits, qr_json **out, qr_error *err)
{
    ready();
    qr_json_census census;
    qr_status status = check_limits(text, limits, &census, err);
    if (status != QR_OK)
        return status;
    qr_buf repaired = {0};
    if (census.needs_repair) {
        qr_buf_append_str(&repaired, text);
        qr_json_repair(repaired.data, repaired.len);
        text = qr_buf_str(&repaired);
    }
    json_error_t error;
    size_t flags = JSON_DECODE_ANY | (limits->allow_duplicates ? 0 : JSON_REJECT_DUPLICATES);
    budget.on = true;
    budget.exceeded = false;
    budget.left = limits->memory_max;
    json_t *json = json_loadb(text.len > 0 ? text.data : "", text.len, flags, &error);
    budget.on = false;
    qr_buf_release(&repaired);
    if (json != NULL) {
        *out = wrap(json);
        return QR_OK;
    }
    if (budget.exceeded)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "JSON: needs more than the limit of %zu bytes of memory",
                       limits->memory_max);
    return qr_fail(err, QR_INVALID_ARGUMENT, "JSON: line %d, column %d: %s", error.line, error.column,
                   error.text);
}

qr_status qr_json_read_file(const char *path, qr_json **out, qr_error *err)
{
    qr_buf text = {0};
    qr_status status = qr_file_read(path, qr_json_limits_file.bytes_max, &text, err);
    if (status == QR_OK) {
        qr_str body = qr_buf_str(&text);
        if (qr_str_starts(body, QR_STR("\xEF\xBB\xBF")))
            body = qr_str_make(body.data + 3, body.len - 3);
        status = qr_json_parse(body, &qr_json_limits_file, out, err);
        if (status != QR_OK)
            qr_error_prefix(err, "%s", path);
    }
    qr_buf_release(&text);
    return status;
}

void qr_json_free(qr_json *json) { json_decref(tree(json)); }

/* ---- Reading --------------------------------------------------------------------------------------- */

qr_json_type qr_json_typeof(const qr_json *json)
{
    QR_ASSERT(json != NULL);
    switch (json_typeof(tree(json))) {
    case JSON_OBJECT: return QR_JSON_OBJECT;
    case JSON_ARRAY: return QR_JSON_ARRAY;
    case JSON_STRING: return QR_JSON_STRING;
    case JSON_INTEGER: return QR_JSON_INT;
    case JSON_REAL: return QR_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return QR_JSON_BOOL;
    case JSON_NULL: break;
    }
    return QR_JSON_NULL;
}

const char *qr_json_type_name(qr_json_type type)
{
    static const char *const names[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
    return (size_t)type < QR_COUNT_OF(names) ? names[type] : "unknown";
}

bool qr_json_is(const qr_json *json, qr_json_type type)
{
    return json != NULL && qr_json_typeof(json) == type;
}

const qr_json *qr_json_get(const qr_json *object, const char *key)
{
    return wrap(json_object_get(tree(object), key)); /* NULL for NULL and for what is not an object */
}

const qr_json *qr_json_find(const qr_json *object, qr_str key)
{
    return wrap(json_object_getn(tree(object), key.len > 0 ? key.data : "", key.len));
}

const qr_json *qr_json_at(const qr_json *array, size_t index)
{
    return wrap(json_array_get(tree(array), index));
}

size_t qr_json_count(const qr_json *container)
{
    return json_is_array(tree(container)) ? json_array_size(tree(container))
                                          : json_object_size(tree(container));
}

bool qr_json_bool(const qr_json *json, bool fallback)
{
    return json_is_boolean(tree(json)) ? json_is_true(tree(json)) : fallback;
}

int64_t qr_json_int(const qr_json *json, int64_t fallback)
{
    if (json_is_integer(tree(json)))
        return (int64_t)json_integer_value(tree(json));
    if (!json_is_real(tree(json)))
        return fallback;
    double value = json_real_value(tree(json));
    bool whole = value >= -0x1p63 && value < 0x1p63 && value == (double)(int64_t)value;
    return whole ? (int64_t)value : fallback;
}

double qr_json_number(const qr_json *json, double fallback)
{
    return json_is_number(tree(json)) ? json_number_value(tree(json)) : fallback;
}

qr_str qr_json_string(const qr_json *json)
{
    return qr_str_make(json_string_value(tree(json)), json_string_length(tree(json)));
}

const char *qr_json_cstring(const qr_json *json, const char *fallback)
{
    return json_is_string(tree(json)) ? json_string_value(tree(json)) : fallback;
}

void *qr_json_iter(const qr_json *object) { return json_object_iter(tree(object)); }
void *qr_json_iter_next(const qr_json *object, void *iter)
{
    return json_object_iter_next(tree(object), iter);
}
qr_str qr_json_iter_key(void *iter)
{
    return qr_str_make(json_object_iter_key(iter), json_object_iter_key_len(iter));
}
const qr_json *qr_json_iter_value(void *iter) { return wrap(json_object_iter_value(iter)); }

/* ---- Building -------------------------------------------------------------------------------------- */

/* Memory aborts in qr_alloc, so a NULL from jansson here is a value that it refuses: a bug of ours. */
static qr_json *made(json_t *json)
{
    QR_ASSERT(json != NULL);
    return wrap(json);
}

qr_json *qr_json_new_object(void)
{
    ready();
    return made(json_object());
}

qr_json *qr_json_new_array(void)
{
    ready();
    return made(json_array());
}

qr_json *qr_json_new_string(qr_str text)
{
    ready();
    if (qr_utf8_validate(text.data, text.len) == text.len)
        return made(json_stringn_nocheck(text.len > 0 ? text.data : "", text.len));
    qr_buf valid = {0};
    for (size_t at = 0; at < text.len;) {
        size_t good = qr_utf8_validate(text.data + at, text.len - at);
        qr_buf_append(&valid, text.data + at, good);
        at += good;
        if (at < text.len) {
            qr_buf_append_cstr(&valid, "\xEF\xBF\xBD");
            at += qr_utf8_invalid_length(text.data + at, text.len - at);
        }
    }
    qr_json *json = made(json_stringn_nocheck(valid.data, valid.len));
    qr_buf_release(&valid);
    return json;
}

qr_json *qr_json_new_raw_string(qr_str text)
{
    ready();
    return made(json_stringn_nocheck(text.len > 0 ? text.data : "", text.len));
}

qr_json *qr_json_new_int(int64_t value)
{
    ready();
    return made(json_integer(value));
}

qr_json *qr_json_new_real(double value)
{
    ready();
    return made(isfinite(value) ? json_real(value) : json_null());
}

qr_json *qr_json_new_bool(bool value) { return made(json_boolean(value)); }
qr_json *qr_json_new_null(void) { return made(json_null()); }

void qr_json_set(qr_json *object, const char *key, qr_json *value)
{
    QR_ASSERT(json_object_set_new_nocheck(tree(object), key, tree(value)) == 0);
}

void qr_json_push(qr_json *array, qr_json *value)
{
    QR_ASSERT(json_array_append_new(tree(array), tree(value)) == 0);
}

qr_json *qr_json_copy(const qr_json *json)
{
    ready();
    return made(json_deep_copy(tree(json)));
}
