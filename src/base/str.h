/* Byte slices and growing byte buffers. Bytes are not NUL-terminated unless a function says so.
 * Thread: none shared. */
#ifndef QR_BASE_STR_H
#define QR_BASE_STR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A borrowed slice; who owns the bytes is said where it is used. */
typedef struct qr_str {
    const char *data;
    size_t len;
} qr_str;

#define QR_STR(literal) ((qr_str){(literal), sizeof(literal) - 1})
static inline qr_str qr_str_of(const char *text) { return (qr_str){text, text != NULL ? strlen(text) : 0}; }
static inline qr_str qr_str_make(const char *data, size_t len) { return (qr_str){data, len}; }
bool qr_str_equal(qr_str a, qr_str b);
bool qr_str_equals(qr_str a, const char *text);
bool qr_str_starts(qr_str text, qr_str prefix);
bool qr_str_ends(qr_str text, qr_str suffix);
/* Index of needle in text at or after `from`, or -1. */
ptrdiff_t qr_str_find(qr_str text, qr_str needle, size_t from);

/* A growing buffer on the heap; zero-initialise or qr_buf_init. `data` is always NUL-terminated at
 * `len` once anything was appended, so it can be printed. */
typedef struct qr_buf {
    char *data;
    size_t len;
    size_t capacity;
} qr_buf;

void qr_buf_init(qr_buf *buf);
void qr_buf_release(qr_buf *buf);
void qr_buf_clear(qr_buf *buf); /* len = 0, memory kept */
void qr_buf_reserve(qr_buf *buf, size_t extra);
void qr_buf_append(qr_buf *buf, const void *bytes, size_t len);
void qr_buf_append_str(qr_buf *buf, qr_str text);
void qr_buf_append_cstr(qr_buf *buf, const char *text);
void qr_buf_append_char(qr_buf *buf, char c);
void qr_buf_printf(qr_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void qr_buf_vprintf(qr_buf *buf, const char *format, va_list args);
/* Hands the bytes to the caller (qr_free), NUL-terminated, and empties the buffer. */
char *qr_buf_detach(qr_buf *buf, size_t *len);
static inline qr_str qr_buf_str(const qr_buf *buf) { return (qr_str){buf->data, buf->len}; }

#endif
