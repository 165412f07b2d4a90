/* JSON values (RFC 8259) over jansson, which nothing else includes.
 *
 * Parsing is bounded before memory is taken: depth and number of values are counted by a scan of the
 * text first, and jansson's own allocations are charged to a thread-local budget. NUL in strings and
 * duplicate keys are refused (or kept, last wins, when `allow_duplicates`); lone surrogates become
 * U+FFFD. Multi-megabyte files (tokenizer.json, safetensors headers) use json_scan.h instead.
 * Thread: a value belongs to one thread at a time.
 */
#ifndef QR_BASE_JSON_H
#define QR_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

typedef struct qr_json qr_json; /* an alias of json_t, borrowed unless said otherwise */

typedef struct qr_json_limits {
    size_t bytes_max; /* of text */
    size_t depth_max;
    size_t values_max;
    size_t memory_max; /* of the tree */
    bool allow_duplicates;
} qr_json_limits;

extern const qr_json_limits qr_json_limits_request; /* 32 MiB, 64 deep, 2 M values, 256 MiB */
extern const qr_json_limits qr_json_limits_file;    /* config files of a model: 64 MiB, 64, 4 M, 1 GiB */

/* *out is owned by the caller: qr_json_free. Errors: QR_INVALID_ARGUMENT with line and column,
 * QR_LIMIT_EXCEEDED. */
qr_status qr_json_parse(qr_str text, const qr_json_limits *limits, qr_json **out, qr_error *err);
qr_status qr_json_read_file(const char *path, qr_json **out, qr_error *err);
void qr_json_free(qr_json *json);

typedef enum qr_json_type {
    QR_JSON_NULL,
    QR_JSON_BOOL,
    QR_JSON_INT,
    QR_JSON_REAL,
    QR_JSON_STRING,
    QR_JSON_ARRAY,
    QR_JSON_OBJECT
} qr_json_type;

qr_json_type qr_json_typeof(const qr_json *json);        /* json must not be NULL */
const char *qr_json_type_name(qr_json_type type);        /* "null", "boolean", "integer", "number", ... */
bool qr_json_is(const qr_json *json, qr_json_type type); /* false for NULL */

const qr_json *qr_json_get(const qr_json *object, const char *key); /* NULL when absent or not an object */
const qr_json *qr_json_find(const qr_json *object, qr_str key);     /* the same, by slice */
const qr_json *qr_json_at(const qr_json *array, size_t index);      /* NULL when out of range */
size_t qr_json_count(const qr_json *container);                     /* array or object; else 0 */

bool qr_json_bool(const qr_json *json, bool fallback);
int64_t qr_json_int(const qr_json *json, int64_t fallback); /* reals with an integer value count */
double qr_json_number(const qr_json *json, double fallback);
qr_str qr_json_string(const qr_json *json); /* {NULL, 0} when not a string */
const char *qr_json_cstring(const qr_json *json, const char *fallback);

/* Iteration in document order: for (void *it = qr_json_iter(o); it; it = qr_json_iter_next(o, it)). */
void *qr_json_iter(const qr_json *object);
void *qr_json_iter_next(const qr_json *object, void *iter);
qr_str qr_json_iter_key(void *iter);
const qr_json *qr_json_iter_value(void *iter);

/* Building; containers own what is put in. */
qr_json *qr_json_new_object(void);
qr_json *qr_json_new_array(void);
qr_json *qr_json_new_string(qr_str text);     /* invalid UTF-8 becomes U+FFFD */
qr_json *qr_json_new_raw_string(qr_str text); /* bytes as they are: for trees that are read, never written */
qr_json *qr_json_new_int(int64_t value);
qr_json *qr_json_new_real(double value);
qr_json *qr_json_new_bool(bool value);
qr_json *qr_json_new_null(void);
void qr_json_set(qr_json *object, const char *key, qr_json *value);
void qr_json_push(qr_json *array, qr_json *value);
qr_json *qr_json_copy(const qr_json *json); /* deep; owned by the caller */

/* Appends compact JSON text (keys in order). indent > 0 pretty-prints. */
void qr_json_write(const qr_json *json, int indent, qr_buf *out);

/* Writing without a tree, for streams: appends text as a JSON string with its quotes; invalid UTF-8
 * becomes U+FFFD. */
void qr_json_append_string(qr_buf *out, qr_str text);
/* Shortest text that reads back as the same double; never nan or inf (those become null). */
void qr_json_append_number(qr_buf *out, double value);

#endif
