/* tojson as transformers overrides it: Python's json.dumps. */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "text/jinja_run.h"

typedef struct dump {
    const qr_jdump *options;
    int level;
} dump;

static void dump_value(qr_jrun *run, dump *d, qr_jv value);

static void write_unit(qr_jrun *run, uint32_t unit)
{
    char text[16];
    snprintf(text, sizeof(text), "\\u%04x", (unsigned)unit);
    qr_jinja_write(run, qr_str_make(text, 6));
}

static void write_escape(qr_jrun *run, uint32_t c)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    for (size_t i = 0; i + 1 < sizeof(from); i++) {
        if (c == (uint32_t)from[i]) {
            char text[2] = {'\\', to[i]};
            qr_jinja_write(run, qr_str_make(text, 2));
            return;
        }
    }
    if (c >= 0x10000) {
        write_unit(run, 0xd800 + ((c - 0x10000) >> 10));
        write_unit(run, 0xdc00 + ((c - 0x10000) & 0x3ff));
    } else {
        write_unit(run, c);
    }
}

static void dump_string(qr_jrun *run, qr_str text, bool ascii)
{
    size_t from = 0, i = 0;
    qr_jinja_write_char(run, '"');
    while (i < text.len) {
        uint32_t c = (unsigned char)text.data[i];
        size_t bytes = c < 0x80 ? 1 : qr_jtext_decode(text.data + i, text.len - i, &c);
        bool raw_byte = bytes == 1 && c >= 0x80; /* no UTF-8: passes as it is */
        if (c < 0x20 || c == '"' || c == '\\' || (ascii && c > 0x7e && !raw_byte)) {
            qr_jinja_write(run, qr_str_make(text.data + from, i - from));
            write_escape(run, c);
            from = i + bytes;
        }
        i += bytes;
    }
    qr_jinja_write(run, qr_str_make(text.data + from, i - from));
    qr_jinja_write_char(run, '"');
}

static void dump_float(qr_jrun *run, double value)
{
    if (isnan(value))
        qr_jinja_write(run, QR_STR("NaN"));
    else if (isinf(value))
        qr_jinja_write(run, value < 0 ? QR_STR("-Infinity") : QR_STR("Infinity"));
    else
        qr_jinja_write_float(run, value);
}

static void newline(qr_jrun *run, const dump *d)
{
    if (!d->options->pretty)
        return;
    qr_jinja_write_char(run, '\n');
    for (int i = 0; i < d->level && qr_jinja_charge(run, 1); i++)
        qr_jinja_write(run, d->options->indent);
}

static void separate(qr_jrun *run, const dump *d, bool first)
{
    if (!first)
        qr_jinja_write(run, d->options->item_separator);
    newline(run, d);
}

static void dump_list(qr_jrun *run, dump *d, qr_jv list)
{
    if (list.len == 0) {
        qr_jinja_write(run, QR_STR("[]"));
        return;
    }
    qr_jinja_write_char(run, '[');
    d->level++;
    for (uint32_t i = 0; i < list.len && qr_jinja_charge(run, 1); i++) {
        separate(run, d, i == 0);
        dump_value(run, d, qr_jv_list_at(list, i));
    }
    d->level--;
    newline(run, d);
    qr_jinja_write_char(run, ']');
}

static void dump_key(qr_jrun *run, const dump *d, qr_jv key)
{
    qr_jv text = key;
    if (key.kind == QR_JV_NONE)
        text = QR_JV_TEXT("null");
    else if (key.kind == QR_JV_BOOL)
        text = key.i ? QR_JV_TEXT("true") : QR_JV_TEXT("false");
    else if (key.kind == QR_JV_INT || key.kind == QR_JV_FLOAT)
        text = qr_jv_to_str(run, key);
    else if (key.kind != QR_JV_STRING)
        qr_jinja_raise(run, "keys must be str, int, float, bool or None, not %s", qr_jv_type_name(key));
    if (!qr_jinja_failed(run))
        dump_string(run, qr_jv_slice(text), d->options->ensure_ascii);
    qr_jinja_write(run, d->options->key_separator);
}

/* The pairs of a dict, sorted by key when asked for. */
static bool pairs_of(qr_jrun *run, const dump *d, qr_jv *dict, qr_jlist *pairs)
{
    qr_jv view = {.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = dict};
    if (!qr_jv_to_list(run, view, pairs))
        return false;
    if (!d->options->sort_keys)
        return true;
    qr_jlist keys = {0};
    for (uint32_t i = 0; i < pairs->count; i++)
        qr_jlist_push(run, &keys, pairs->items[i].items[0]);
    return !qr_jinja_failed(run) && qr_jinja_sort(run, keys.items, pairs->items, pairs->count, false);
}

static void dump_entry(qr_jrun *run, dump *d, bool first, qr_jv key, qr_jv value)
{
    separate(run, d, first);
    dump_key(run, d, key);
    dump_value(run, d, value);
}

static void dump_dict(qr_jrun *run, dump *d, qr_jv dict)
{
    if (qr_jv_length(dict) == 0) {
        qr_jinja_write(run, QR_STR("{}"));
        return;
    }
    qr_jinja_write_char(run, '{');
    d->level++;
    if ((dict.flag & QR_JV_JSON) && !d->options->sort_keys) {
        void *at = qr_json_iter(dict.json);
        for (bool first = true; at != NULL && qr_jinja_charge(run, 1); first = false) {
            dump_entry(run, d, first, qr_jv_str(qr_json_iter_key(at)),
                       qr_jv_from_json(qr_json_iter_value(at)));
            at = qr_json_iter_next(dict.json, at);
        }
    } else {
        qr_jlist pairs = {0};
        bool ok = pairs_of(run, d, &dict, &pairs);
        for (uint32_t i = 0; ok && i < pairs.count && qr_jinja_charge(run, 1); i++)
            dump_entry(run, d, i == 0, pairs.items[i].items[0], pairs.items[i].items[1]);
    }
    d->level--;
    newline(run, d);
    qr_jinja_write_char(run, '}');
}

static void dump_value(qr_jrun *run, dump *d, qr_jv value)
{
    if (!qr_jinja_enter(run, 2)) {
        qr_jinja_leave(run, 2);
        return;
    }
    switch (value.kind) {
    case QR_JV_NONE: qr_jinja_write(run, QR_STR("null")); break;
    case QR_JV_BOOL: qr_jinja_write(run, value.i ? QR_STR("true") : QR_STR("false")); break;
    case QR_JV_INT: qr_jinja_write_str(run, value); break;
    case QR_JV_FLOAT: dump_float(run, value.d); break;
    case QR_JV_STRING: dump_string(run, qr_jv_slice(value), d->options->ensure_ascii); break;
    case QR_JV_LIST:
    case QR_JV_TUPLE: dump_list(run, d, value); break;
    case QR_JV_DICT: dump_dict(run, d, value); break;
    default: qr_jinja_raise(run, "Object of type %s is not JSON serializable", qr_jv_type_name(value));
    }
    qr_jinja_leave(run, 2);
}

void qr_jinja_write_json(qr_jrun *run, qr_jv value, const qr_jdump *options)
{
    dump d = {.options = options};
    dump_value(run, &d, value);
}
