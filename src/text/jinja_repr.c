/* str() and repr() of values, as Python prints them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

/* ---- Numbers ---- */

static void write_int(qr_jrun *run, int64_t value)
{
    char digits[32];
    int len = snprintf(digits, sizeof(digits), "%lld", (long long)value);
    qr_jinja_write(run, qr_str_make(digits, (size_t)len));
}

/* Shortest digits that read back: if 15 do, they are it; else 16, else 17. */
static void shortest(double value, char text[40])
{
    for (int precision = 14; precision <= 16; precision++) {
        snprintf(text, 40, "%.*e", precision, value);
        if (strtod(text, NULL) == value)
            return;
    }
}

void qr_jinja_write_float(qr_jrun *run, double value)
{
    if (isnan(value) || isinf(value)) {
        qr_jinja_write(run, qr_str_of(isnan(value) ? "nan" : value < 0 ? "-inf" : "inf"));
        return;
    }
    char text[40], digits[24], out[48];
    shortest(value, text);
    int exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10), count = 0;
    for (const char *c = text; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9')
            digits[count++] = *c;
    while (count > 1 && digits[count - 1] == '0')
        count--;
    digits[count] = '\0';
    const char *sign = signbit(value) ? "-" : "";
    if (exponent < -4 || exponent >= 16)
        snprintf(out, sizeof(out), "%s%c%s%se%c%02d", sign, digits[0], count > 1 ? "." : "", digits + 1,
                 exponent < 0 ? '-' : '+', abs(exponent));
    else if (exponent < 0)
        snprintf(out, sizeof(out), "%s0.%.*s%s", sign, -exponent - 1, "0000", digits);
    else if (count <= exponent + 1)
        snprintf(out, sizeof(out), "%s%s%.*s.0", sign, digits, exponent + 1 - count, "0000000000000000");
    else
        snprintf(out, sizeof(out), "%s%.*s.%s", sign, exponent + 1, digits, digits + exponent + 1);
    qr_jinja_write(run, qr_str_of(out));
}

/* ---- Strings ---- */

static void write_escape(qr_jrun *run, uint32_t c)
{
    char text[16];
    const char *known = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : NULL;
    if (known == NULL) {
        snprintf(text, sizeof(text),
                 c < 0x100     ? "\\x%02x"
                 : c < 0x10000 ? "\\u%04x"
                               : "\\U%08x",
                 (unsigned)c);
        known = text;
    }
    qr_jinja_write(run, qr_str_of(known));
}

static void write_quoted(qr_jrun *run, qr_str text)
{
    bool single = text.len > 0 && memchr(text.data, '\'', text.len) != NULL;
    bool both = single && memchr(text.data, '"', text.len) != NULL;
    char quote = single && !both ? '"' : '\'';
    qr_jinja_write_char(run, quote);
    size_t from = 0, i = 0;
    while (i < text.len) {
        uint32_t c = 0;
        size_t bytes = qr_jtext_decode(text.data + i, text.len - i, &c);
        bool slash = c == '\\' || c == (uint32_t)quote;
        if (slash || !qr_jtext_printable(c)) {
            qr_jinja_write(run, qr_str_make(text.data + from, i - from));
            if (slash)
                qr_jinja_write_char(run, '\\');
            else
                write_escape(run, c);
            from = slash ? i : i + bytes;
        }
        i += bytes;
    }
    qr_jinja_write(run, qr_str_make(text.data + from, i - from));
    qr_jinja_write_char(run, quote);
}

void qr_jinja_write_escaped(qr_jrun *run, qr_str text)
{
    size_t from = 0;
    for (size_t i = 0; i < text.len; i++) {
        const char *entity = NULL;
        switch (text.data[i]) {
        case '&': entity = "&amp;"; break;
        case '<': entity = "&lt;"; break;
        case '>': entity = "&gt;"; break;
        case '\'': entity = "&#39;"; break;
        case '"': entity = "&#34;"; break;
        default: continue;
        }
        qr_jinja_write(run, qr_str_make(text.data + from, i - from));
        qr_jinja_write(run, qr_str_of(entity));
        from = i + 1;
    }
    qr_jinja_write(run, qr_str_make(text.data + from, text.len - from));
}

qr_jv qr_jv_escape(qr_jrun *run, qr_jv value)
{
    if (value.kind == QR_JV_STRING && (value.flag & QR_JV_SAFE))
        return value;
    qr_jv text = qr_jv_to_str(run, value);
    size_t mark = run->out->len;
    qr_jinja_write_escaped(run, qr_jv_slice(text));
    return qr_jv_with_flag(qr_jinja_take(run, mark), QR_JV_SAFE);
}

/* ---- Containers ---- */

static void write_items(qr_jrun *run, qr_jv value, const char *open, const char *close)
{
    qr_jiter iter;
    qr_jv item;
    uint32_t count = 0;
    qr_jinja_write(run, qr_str_of(open));
    if (qr_jinja_enter(run, 1) && qr_jiter_init(run, &iter, value)) {
        for (; qr_jiter_next(run, &iter, &item); count++) {
            if (count > 0)
                qr_jinja_write(run, QR_STR(", "));
            qr_jinja_write_repr(run, item);
        }
    }
    qr_jinja_leave(run, 1);
    if (value.kind == QR_JV_TUPLE && count == 1)
        qr_jinja_write(run, QR_STR(","));
    qr_jinja_write(run, qr_str_of(close));
}

static void write_dict(qr_jrun *run, qr_jv dict)
{
    qr_jiter iter;
    qr_jv view = {.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = &dict}, item;
    bool first = true;
    qr_jinja_write(run, QR_STR("{"));
    if (qr_jinja_enter(run, 1) && qr_jiter_init(run, &iter, view)) {
        for (; qr_jiter_next(run, &iter, &item); first = false) {
            if (!first)
                qr_jinja_write(run, QR_STR(", "));
            qr_jinja_write_repr(run, item.items[0]);
            qr_jinja_write(run, QR_STR(": "));
            qr_jinja_write_repr(run, item.items[1]);
        }
    }
    qr_jinja_leave(run, 1);
    qr_jinja_write(run, QR_STR("}"));
}

static void write_object(qr_jrun *run, qr_jv value)
{
    char text[200];
    const qr_jrange *range = value.range;
    switch (value.kind) {
    case QR_JV_RANGE:
        snprintf(text, sizeof(text), range->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)",
                 (long long)range->start, (long long)range->stop, (long long)range->step);
        break;
    case QR_JV_MACRO:
        snprintf(text, sizeof(text), "<Macro %s%.150s%s>", value.macro->def->name != NULL ? "'" : "",
                 value.macro->def->name != NULL ? value.macro->def->name->data : "anonymous",
                 value.macro->def->name != NULL ? "'" : "");
        break;
    case QR_JV_LOOP:
        snprintf(text, sizeof(text), "<LoopContext %lld/%lld>", (long long)value.loop->index0 + 1,
                 (long long)value.loop->length);
        break;
    default: /* Python prints an address here: nobody can depend on it */
        snprintf(text, sizeof(text), "<%s object>", qr_jv_type_name(value));
    }
    qr_jinja_write(run, qr_str_of(text));
}

static void write_view(qr_jrun *run, qr_jv value)
{
    qr_jinja_write(run, qr_str_of(qr_jv_type_name(value)));
    write_items(run, value, "([", "])");
}

void qr_jinja_write_repr(qr_jrun *run, qr_jv value)
{
    if (qr_jinja_failed(run))
        return;
    switch (value.kind) {
    case QR_JV_UNDEFINED: qr_jinja_write(run, QR_STR("Undefined")); return;
    case QR_JV_STRING:
        if (value.flag & QR_JV_SAFE)
            qr_jinja_write(run, QR_STR("Markup("));
        write_quoted(run, qr_jv_slice(value));
        if (value.flag & QR_JV_SAFE)
            qr_jinja_write(run, QR_STR(")"));
        return;
    case QR_JV_LIST: write_items(run, value, "[", "]"); return;
    case QR_JV_TUPLE: write_items(run, value, "(", ")"); return;
    case QR_JV_DICT: write_dict(run, value); return;
    case QR_JV_VIEW: write_view(run, value); return;
    case QR_JV_NAMESPACE:
        qr_jinja_write(run, QR_STR("<Namespace "));
        write_dict(run, qr_jv_of_dict(value.dict));
        qr_jinja_write(run, QR_STR(">"));
        return;
    default: qr_jinja_write_str(run, value);
    }
}

void qr_jinja_write_str(qr_jrun *run, qr_jv value)
{
    switch (value.kind) {
    case QR_JV_STRING: qr_jinja_write(run, qr_jv_slice(value)); return;
    case QR_JV_UNDEFINED: return;
    case QR_JV_NONE: qr_jinja_write(run, QR_STR("None")); return;
    case QR_JV_BOOL: qr_jinja_write(run, value.i ? QR_STR("True") : QR_STR("False")); return;
    case QR_JV_INT: write_int(run, value.i); return;
    case QR_JV_FLOAT: qr_jinja_write_float(run, value.d); return;
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_DICT:
    case QR_JV_VIEW:
    case QR_JV_NAMESPACE: qr_jinja_write_repr(run, value); return;
    default: write_object(run, value);
    }
}

qr_jv qr_jv_to_str(qr_jrun *run, qr_jv value)
{
    if (value.kind == QR_JV_STRING)
        return qr_jv_with_flag(value, 0);
    size_t mark = run->out->len;
    qr_jinja_write_str(run, value);
    return qr_jinja_take(run, mark);
}

qr_jv qr_jv_to_repr(qr_jrun *run, qr_jv value)
{
    size_t mark = run->out->len;
    qr_jinja_write_repr(run, value);
    return qr_jinja_take(run, mark);
}

qr_jv qr_jv_soft_str(qr_jrun *run, qr_jv value)
{
    return value.kind == QR_JV_STRING ? value : qr_jv_to_str(run, value);
}
