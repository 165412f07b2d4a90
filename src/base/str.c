#include "base/str.h"

#include <stdio.h>

#include "base/assert.h"
#include "base/mem.h"

bool qr_str_equal(qr_str a, qr_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}
bool qr_str_equals(qr_str a, const char *text) { return qr_str_equal(a, qr_str_of(text)); }

bool qr_str_starts(qr_str text, qr_str prefix)
{
    return text.len >= prefix.len && qr_str_equal(qr_str_make(text.data, prefix.len), prefix);
}

bool qr_str_ends(qr_str text, qr_str suffix)
{
    return text.len >= suffix.len &&
           qr_str_equal(qr_str_make(text.data + (text.len - suffix.len), suffix.len), suffix);
}

ptrdiff_t qr_str_find(qr_str text, qr_str needle, size_t from)
{
    if (from > text.len || needle.len > text.len - from)
        return -1;
    if (needle.len == 0)
        return (ptrdiff_t)from;
    const char *hit = memmem(text.data + from, text.len - from, needle.data, needle.len);
    return hit != NULL ? hit - text.data : -1;
}

void qr_buf_init(qr_buf *buf) { *buf = (qr_buf){0}; }

void qr_buf_release(qr_buf *buf)
{
    qr_free(buf->data);
    *buf = (qr_buf){0};
}

void qr_buf_clear(qr_buf *buf)
{
    buf->len = 0;
    if (buf->data != NULL)
        buf->data[0] = '\0';
}

void qr_buf_reserve(qr_buf *buf, size_t extra)
{
    size_t wanted = 0;
    QR_ASSERT(qr_size_add(buf->len, extra, &wanted) && qr_size_add(wanted, 1, &wanted));
    if (wanted <= buf->capacity)
        return;
    size_t grown = buf->capacity + buf->capacity / 2 + 64;
    buf->capacity = QR_MAX(wanted, grown);
    buf->data = qr_realloc(buf->data, buf->capacity);
    buf->data[buf->len] = '\0';
}

void qr_buf_append(qr_buf *buf, const void *bytes, size_t len)
{
    qr_buf_reserve(buf, len);
    if (len > 0)
        memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
    buf->data[buf->len] = '\0';
}

void qr_buf_append_str(qr_buf *buf, qr_str text) { qr_buf_append(buf, text.data, text.len); }
void qr_buf_append_cstr(qr_buf *buf, const char *text) { qr_buf_append(buf, text, strlen(text)); }
void qr_buf_append_char(qr_buf *buf, char c) { qr_buf_append(buf, &c, 1); }

void qr_buf_printf(qr_buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    qr_buf_vprintf(buf, format, args);
    va_end(args);
}

void qr_buf_vprintf(qr_buf *buf, const char *format, va_list args)
{
    qr_buf_reserve(buf, 64);
    va_list again;
    va_copy(again, args);
    size_t room = buf->capacity - buf->len;
    int len = vsnprintf(buf->data + buf->len, room, format, args);
    QR_ASSERT(len >= 0);
    if ((size_t)len >= room) {
        qr_buf_reserve(buf, (size_t)len);
        vsnprintf(buf->data + buf->len, (size_t)len + 1, format, again);
    }
    va_end(again);
    buf->len += (size_t)len;
}

char *qr_buf_detach(qr_buf *buf, size_t *len)
{
    qr_buf_reserve(buf, 0);
    char *data = buf->data;
    if (len != NULL)
        *len = buf->len;
    *buf = (qr_buf){0};
    return data;
}
