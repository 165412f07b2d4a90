#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "base/vec.h"

/* ---- Strings and numbers --------------------------------------------------------------------------- */

static void append_escape(qr_buf *out, unsigned char c)
{
    static const char letters[0x20] = {['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    static const char hex[] = "0123456789abcdef";
    char letter = c < 0x20 ? letters[c] : (char)c; /* the quote and the backslash stand for themselves */
    if (letter != 0) {
        qr_buf_append(out, (const char[]){'\\', letter}, 2);
        return;
    }
    qr_buf_append(out, (const char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
}

/* Bytes from `at` that go out as they are: up to an escape or a byte that is not UTF-8. */
static size_t plain_run(qr_str text, size_t at)
{
    size_t start = at;
    while (at < text.len) {
        unsigned char c = (unsigned char)text.data[at];
        uint32_t codepoint;
        size_t step = 1;
        if (c < 0x20 || c == '"' || c == '\\')
            break;
        if (c >= 0x80 && (step = qr_utf8_decode(text.data + at, text.len - at, &codepoint)) == 0)
            break;
        at += step;
    }
    return at - start;
}

void qr_json_append_string(qr_buf *out, qr_str text)
{
    qr_buf_reserve(out, text.len + 2);
    qr_buf_append_char(out, '"');
    for (size_t at = 0; at < text.len;) {
        size_t run = plain_run(text, at);
        qr_buf_append(out, text.data + at, run);
        at += run;
        if (at == text.len)
            break;
        unsigned char c = (unsigned char)text.data[at];
        if (c < 0x80) {
            append_escape(out, c);
            at++;
        } else {
            qr_buf_append_cstr(out, "\xEF\xBF\xBD");
            at += qr_utf8_invalid_length(text.data + at, text.len - at);
        }
    }
    qr_buf_append_char(out, '"');
}

void qr_json_append_number(qr_buf *out, double value)
{
    if (!isfinite(value)) {
        qr_buf_append_cstr(out, "null");
        return;
    }
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (digits == 17 || strtod(text, NULL) == value)
            break;
    }
    char *comma = strchr(text, ','); /* the program that uses the library may have set a locale */
    if (comma != NULL)
        *comma = '.';
    qr_buf_append_cstr(out, text);
    if (strpbrk(text, ".e") == NULL)
        qr_buf_append_cstr(out, ".0"); /* so that it reads back as a real */
}

/* ---- Trees ----------------------------------------------------------------------------------------- */

/* One open container; a stack of them instead of recursion. */
typedef struct level {
    json_t *container;
    void *iter;   /* object: the next member */
    size_t index; /* items written so far */
} level;

typedef QR_VEC(level) level_stack;

static void append_scalar(json_t *json, qr_buf *out)
{
    switch (json_typeof(json)) {
    case JSON_STRING:
        qr_json_append_string(out, qr_str_make(json_string_value(json), json_string_length(json)));
        break;
    case JSON_INTEGER: qr_buf_printf(out, "%lld", (long long)json_integer_value(json)); break;
    case JSON_REAL: qr_json_append_number(out, json_real_value(json)); break;
    case JSON_TRUE: qr_buf_append_cstr(out, "true"); break;
    case JSON_FALSE: qr_buf_append_cstr(out, "false"); break;
    default: qr_buf_append_cstr(out, "null"); break;
    }
}

/* Writes a scalar, or the opening of a container, which is then the innermost level. */
static void begin_value(json_t *json, level_stack *levels, qr_buf *out)
{
    if (json_is_object(json) || json_is_array(json)) {
        qr_buf_append_char(out, json_is_object(json) ? '{' : '[');
        level opened = {.container = json, .iter = json_is_object(json) ? json_object_iter(json) : NULL};
        QR_VEC_PUSH(levels, opened);
        return;
    }
    append_scalar(json, out);
}

static void append_break(int indent, size_t depth, qr_buf *out)
{
    if (indent <= 0)
        return;
    qr_buf_append_char(out, '\n');
    for (size_t i = 0; i < depth * (size_t)indent; i++)
        qr_buf_append_char(out, ' ');
}

/* The next value of the innermost level, its comma and key written; NULL at the end. */
static json_t *next_value(level *top, size_t depth, int indent, qr_buf *out)
{
    bool is_object = json_is_object(top->container);
    if (is_object ? top->iter == NULL : top->index == json_array_size(top->container))
        return NULL;
    if (top->index++ > 0)
        qr_buf_append_char(out, ',');
    append_break(indent, depth, out);
    if (!is_object)
        return json_array_get(top->container, top->index - 1);
    json_t *value = json_object_iter_value(top->iter);
    qr_json_append_string(out,
                          qr_str_make(json_object_iter_key(top->iter), json_object_iter_key_len(top->iter)));
    qr_buf_append_cstr(out, indent > 0 ? ": " : ":");
    top->iter = json_object_iter_next(top->container, top->iter);
    return value;
}

void qr_json_write(const qr_json *json, int indent, qr_buf *out)
{
    level_stack levels = {0};
    begin_value((json_t *)(uintptr_t)json, &levels, out);
    while (levels.count > 0) {
        level *top = &levels.data[levels.count - 1];
        json_t *value = next_value(top, levels.count, indent, out);
        if (value != NULL) {
            begin_value(value, &levels, out);
            continue;
        }
        levels.count--;
        if (top->index > 0)
            append_break(indent, levels.count, out);
        qr_buf_append_char(out, json_is_object(top->container) ? '}' : ']');
    }
    QR_VEC_RELEASE(&levels);
}
