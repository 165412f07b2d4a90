/* Filters over single values, and the table of all. */
#include "text/jinja_filters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define FILTER(name) \
    static qr_jv filter_##name(qr_jrun *run, qr_jv value, const qr_jv *args, const qr_jargs *raw)
#define UNUSED ((void)run, (void)value, (void)args, (void)raw)

/* ---- Numbers ---- */

FILTER(abs)
{
    UNUSED;
    if (value.kind == QR_JV_FLOAT)
        return qr_jv_float(fabs(value.d));
    if (qr_jv_is_integral(value) && value.i != INT64_MIN)
        return qr_jv_int(value.i < 0 ? -value.i : value.i);
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    return qr_jinja_raise(run, "bad operand type for abs(): '%s'", qr_jv_type_name(value));
}

/* Digits with single underscores between them, without: false when it is no number of that shape. */
static bool clean_number(qr_str text, char *out, size_t out_bytes)
{
    size_t len = 0;
    text = qr_jtext_trim(text, true, true);
    if (text.len == 0 || text.len >= out_bytes)
        return false;
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] != '_') {
            out[len++] = text.data[i];
            continue;
        }
        bool between = i > 0 && i + 1 < text.len && text.data[i - 1] != '_' && text.data[i + 1] != '_';
        if (!between)
            return false;
    }
    out[len] = '\0';
    return true;
}

static bool text_to_int(qr_str text, int base, int64_t *out)
{
    char digits[80], *end = NULL;
    if (!clean_number(text, digits, sizeof(digits)))
        return false;
    const char *body = digits + (digits[0] == '-' || digits[0] == '+');
    char kind = body[0] == '0' ? (char)(body[1] | 32) : '\0';
    int implied = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    bool prefixed = implied != 0 && (base == 0 || base == implied);
    if (base == 0)
        base = implied != 0 ? implied : 10;
    if (base < 2 || base > 36)
        return false;
    char plain[80];
    snprintf(plain, sizeof(plain), "%s%s", digits[0] == '-' ? "-" : "", body + (prefixed ? 2 : 0));
    if (!((plain[plain[0] == '-'] | 32) >= 'a' ||
          (plain[plain[0] == '-'] >= '0' && plain[plain[0] == '-'] <= '9')))
        return false;
    if (base == 16 && (plain[(plain[0] == '-') + 1] | 32) == 'x')
        return false; /* strtoll would take a second prefix */
    *out = strtoll(plain, &end, base);
    return *end == '\0' && *out != INT64_MAX && *out != INT64_MIN;
}

static bool text_to_float(qr_str text, double *out)
{
    char digits[512], *end = NULL;
    if (!clean_number(text, digits, sizeof(digits)) || strpbrk(digits, "xXpP(") != NULL)
        return false;
    *out = strtod(digits, &end);
    return end != digits && *end == '\0';
}

static bool value_to_float(qr_jv value, double *out)
{
    if (value.kind == QR_JV_STRING)
        return text_to_float(qr_jv_slice(value), out);
    if (!qr_jv_is_number(value))
        return false;
    *out = qr_jv_to_double(value);
    return true;
}

FILTER(int)
{
    UNUSED;
    int64_t base = 10, out = 0;
    double real = 0;
    qr_jv fallback = args[0].kind != QR_JV_MISSING ? args[0] : qr_jv_int(0);
    if (args[1].kind != QR_JV_MISSING && !qr_jinja_want_int(run, args[1], &base))
        return qr_jv_none();
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    if (qr_jv_is_integral(value))
        return qr_jv_int(value.i);
    if (value.kind == QR_JV_STRING && text_to_int(qr_jv_slice(value), (int)base, &out))
        return qr_jv_int(out);
    if (!value_to_float(value, &real) || !isfinite(real))
        return fallback;
    if (fabs(real) >= 9.2e18)
        return qr_jinja_raise(run, "integers beyond 64 bits are not supported");
    return qr_jv_int((int64_t)real);
}

FILTER(float)
{
    UNUSED;
    double out = 0;
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    if (value_to_float(value, &out))
        return qr_jv_float(out);
    return args[0].kind != QR_JV_MISSING ? args[0] : qr_jv_float(0.0);
}

/* round(x, n): to the nearest decimal, exact ties to even, as printf does on the exact binary value. */
static double round_float(double value, int64_t digits)
{
    char text[400];
    if (digits >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)QR_MIN(digits, (int64_t)330 - 310), value);
        return isfinite(value) && fabs(value) < 1e300 ? strtod(text, NULL) : value;
    }
    double scale = pow(10, (double)QR_MIN(-digits, (int64_t)308));
    return nearbyint(value / scale) * scale;
}

static qr_jv round_int(int64_t value, int64_t digits)
{
    if (digits >= 0)
        return qr_jv_int(value);
    if (digits < -18)
        return qr_jv_int(0);
    int64_t scale = 1;
    for (; digits < 0; digits++)
        scale *= 10;
    int64_t rest = value % scale, down = value - rest;
    if (rest < 0) {
        rest += scale;
        down -= scale;
    }
    bool up = rest * 2 > scale || (rest * 2 == scale && (down / scale) % 2 != 0);
    return qr_jv_int(up ? down + scale : down);
}

FILTER(round)
{
    UNUSED;
    int64_t digits = 0;
    qr_str method = args[1].kind == QR_JV_STRING ? qr_jv_slice(args[1]) : QR_STR("common");
    bool common = qr_str_equals(method, "common"), ceiling = qr_str_equals(method, "ceil");
    if (!common && !ceiling && !qr_str_equals(method, "floor"))
        return qr_jinja_raise(run, "method must be common, ceil or floor");
    if (args[0].kind != QR_JV_MISSING && !qr_jinja_want_int(run, args[0], &digits))
        return qr_jv_none();
    if (value.kind == QR_JV_UNDEFINED)
        return qr_jinja_undefined_use(run, value);
    if (!qr_jv_is_number(value))
        return qr_jinja_raise(run, "type %s doesn't define __round__ method", qr_jv_type_name(value));
    if (common && value.kind != QR_JV_FLOAT)
        return round_int(value.i, digits);
    double x = qr_jv_to_double(value);
    if (common)
        return qr_jv_float(round_float(x, digits));
    double scale = pow(10, (double)digits);
    return qr_jv_float((ceiling ? ceil(x * scale) : floor(x * scale)) / scale);
}

FILTER(filesizeformat)
{
    UNUSED;
    static const char *const units[2][8] = {{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
                                            {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    bool binary = qr_jv_truth(args[0]);
    double bytes = 0, base = binary ? 1024 : 1000, unit = base;
    if (!value_to_float(value, &bytes))
        return qr_jinja_raise(run, "could not convert to float");
    if (bytes == 1)
        return QR_JV_TEXT("1 Byte");
    if (bytes < base)
        return qr_jv_printf(run, "%lld Bytes", (long long)bytes);
    int i = 0;
    for (unit = base * base; i < 7 && bytes >= unit; i++)
        unit *= base;
    return qr_jv_printf(run, "%.1f %s", base * bytes / unit, units[binary][i]);
}

/* ---- Text ---- */

static qr_jv change_case(qr_jrun *run, qr_jv value, qr_jcase mode)
{
    value = qr_jv_soft_str(run, value);
    return qr_jv_with_flag(qr_jv_case(run, qr_jv_slice(value), mode), value.flag);
}

FILTER(upper) { return UNUSED, change_case(run, value, QR_JCASE_UPPER); }
FILTER(lower) { return UNUSED, change_case(run, value, QR_JCASE_LOWER); }
FILTER(capitalize) { return UNUSED, change_case(run, value, QR_JCASE_CAPITALIZE); }
FILTER(string) { return UNUSED, qr_jv_soft_str(run, value); }
FILTER(escape) { return UNUSED, qr_jv_escape(run, value); }
FILTER(forceescape) { return UNUSED, qr_jv_escape(run, qr_jv_to_str(run, value)); }
FILTER(safe) { return UNUSED, qr_jv_with_flag(qr_jv_to_str(run, value), QR_JV_SAFE); }

FILTER(trim)
{
    UNUSED;
    return qr_jv_strip(run, qr_jv_soft_str(run, value), args[0], true, true);
}

/* Words begin after white space, brackets, '<' or a hyphen. */
FILTER(title)
{
    UNUSED;
    qr_str text = qr_jv_slice(qr_jv_soft_str(run, value));
    size_t mark = run->out->len;
    for (size_t i = 0; i < text.len && qr_jinja_charge(run, 1);) {
        size_t begin = i, first = 0;
        uint32_t c = 0;
        bool separator = false;
        while (i < text.len) {
            size_t bytes = qr_jtext_decode(text.data + i, text.len - i, &c);
            bool is_separator =
                qr_jtext_is_space(c) || (c < 128 && c != 0 && strchr("-({[<", (int)c) != NULL);
            if (i == begin) {
                separator = is_separator;
                first = bytes;
            } else if (is_separator != separator) {
                break;
            }
            i += bytes;
        }
        qr_jinja_write_case(run, qr_str_make(text.data + begin, first), QR_JCASE_UPPER);
        qr_jinja_write_case(run, qr_str_make(text.data + begin + first, i - begin - first), QR_JCASE_LOWER);
    }
    return qr_jinja_take(run, mark);
}

FILTER(replace)
{
    UNUSED;
    int64_t limit = -1;
    if (qr_jinja_given(args[2]) && !qr_jinja_want_int(run, args[2], &limit))
        return qr_jv_none();
    qr_jv text = qr_jv_to_str(run, value), old = qr_jv_to_str(run, args[0]),
          fresh = qr_jv_to_str(run, args[1]);
    return qr_jv_replace(run, qr_jv_slice(text), qr_jv_slice(old), qr_jv_slice(fresh), limit);
}

FILTER(center)
{
    UNUSED;
    int64_t width = 80;
    if (args[0].kind != QR_JV_MISSING && !qr_jinja_want_int(run, args[0], &width))
        return qr_jv_none();
    return qr_jv_center(run, qr_jv_soft_str(run, value), width, QR_STR(" "), 0);
}

static void write_indent(qr_jrun *run, qr_jv indent)
{
    if (indent.kind == QR_JV_STRING)
        qr_jinja_write(run, qr_jv_slice(indent));
    else
        for (int64_t i = 0; i < indent.i && qr_jinja_charge(run, 1); i++)
            qr_jinja_write_char(run, ' ');
}

FILTER(indent)
{
    UNUSED;
    qr_jv width = args[0].kind != QR_JV_MISSING ? args[0] : qr_jv_int(4);
    bool first = qr_jv_truth(args[1]), blank = qr_jv_truth(args[2]);
    qr_jlist lines = {0};
    int64_t unused = 0;
    if (width.kind != QR_JV_STRING && !qr_jinja_want_int(run, width, &unused))
        return qr_jv_none();
    qr_jv text =
        qr_jinja_binary(run, QR_JOP_ADD, value, qr_jv_with_flag(QR_JV_TEXT("\n"), value.flag & QR_JV_SAFE));
    if (text.kind != QR_JV_STRING)
        return qr_jinja_failed(run) ? qr_jv_none() : qr_jinja_raise(run, "indent needs a string");
    qr_jv_splitlines(run, qr_jv_slice(text), false, &lines);
    size_t mark = run->out->len;
    for (uint32_t i = 0; i < lines.count && qr_jinja_charge(run, 1); i++) {
        if (i > 0)
            qr_jinja_write_char(run, '\n');
        if (i == 0 ? first : blank || lines.items[i].len > 0)
            write_indent(run, width);
        qr_jinja_write(run, qr_jv_slice(lines.items[i]));
    }
    return qr_jv_with_flag(qr_jinja_take(run, mark), value.flag & QR_JV_SAFE);
}

FILTER(truncate)
{
    UNUSED;
    int64_t length = 255, leeway = 5;
    qr_str end = QR_STR("..."), text = value.kind == QR_JV_STRING ? qr_jv_slice(value) : QR_STR("");
    int64_t count = qr_jv_length(value);
    if ((args[0].kind != QR_JV_MISSING && !qr_jinja_want_int(run, args[0], &length)) ||
        (qr_jinja_given(args[3]) && !qr_jinja_want_int(run, args[3], &leeway)))
        return qr_jv_none();
    if (args[2].kind == QR_JV_STRING)
        end = qr_jv_slice(args[2]);
    int64_t end_count = (int64_t)qr_jtext_count(end);
    if (length < end_count || leeway < 0)
        return qr_jinja_raise(
            run, length < end_count ? "expected length >= %lld, got %lld" : "expected leeway >= 0",
            (long long)end_count, (long long)length);
    if (count < 0)
        return qr_jinja_raise(run, "object of type '%s' has no len()", qr_jv_type_name(value));
    if (count - leeway <= length)
        return value;
    if (value.kind != QR_JV_STRING)
        return qr_jinja_raise(run, "truncate needs a string, not %s", qr_jv_type_name(value));
    text.len = qr_jtext_offset(text, (size_t)(length - end_count));
    const char *space = qr_jv_truth(args[1]) || text.len == 0 ? NULL : memrchr(text.data, ' ', text.len);
    if (space != NULL)
        text.len = (size_t)(space - text.data);
    size_t mark = run->out->len;
    qr_jinja_write(run, text);
    qr_jinja_write(run, end);
    return qr_jinja_take(run, mark);
}

FILTER(wordcount)
{
    UNUSED;
    qr_str text = qr_jv_slice(qr_jv_soft_str(run, value));
    int64_t count = 0;
    bool inside = false;
    for (size_t i = 0; i < text.len;) {
        uint32_t c = 0;
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        bool word = qr_jtext_is_word(c);
        count += word && !inside;
        inside = word;
    }
    return qr_jv_int(count);
}

static bool url_safe(unsigned char c, bool query)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '.' || c == '-' || c == '~' || (c == '/' && !query);
}

static void write_url(qr_jrun *run, qr_jv value, bool query)
{
    qr_str text = qr_jv_slice(qr_jv_to_str(run, value));
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        char escape[8];
        if (url_safe(c, query) || (query && c == ' ')) {
            qr_jinja_write_char(run, c == ' ' ? '+' : (char)c);
            continue;
        }
        snprintf(escape, sizeof(escape), "%%%02X", c);
        qr_jinja_write(run, qr_str_make(escape, 3));
    }
}

FILTER(urlencode)
{
    UNUSED;
    qr_jiter iter;
    qr_jv item, source = value;
    qr_jlist pair;
    size_t mark = run->out->len;
    bool pairs = qr_jv_is_sequence(value) || value.kind == QR_JV_DICT || value.kind == QR_JV_GENERATOR ||
                 value.kind == QR_JV_VIEW || value.kind == QR_JV_UNDEFINED;
    if (!pairs) {
        write_url(run, value, false);
        return qr_jinja_take(run, mark);
    }
    if (value.kind == QR_JV_DICT)
        source = (qr_jv){.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = &value};
    if (!qr_jiter_init(run, &iter, source))
        return qr_jv_none();
    for (bool first = true; qr_jiter_next(run, &iter, &item); first = false) {
        if (!qr_jv_to_list(run, item, &pair) || pair.count != 2)
            return qr_jinja_raise(run, "urlencode needs pairs");
        qr_jinja_write(run, first ? QR_STR("") : QR_STR("&"));
        write_url(run, pair.items[0], true);
        qr_jinja_write_char(run, '=');
        write_url(run, pair.items[1], true);
    }
    return qr_jinja_take(run, mark);
}

FILTER(xmlattr)
{
    UNUSED;
    qr_jiter iter;
    qr_jv item, view = {.kind = QR_JV_VIEW, .aux = QR_JVIEW_ITEMS, .view = &value};
    if (value.kind != QR_JV_DICT || !qr_jiter_init(run, &iter, view))
        return qr_jinja_raise(run, "'%s' object has no attribute 'items'", qr_jv_type_name(value));
    size_t mark = run->out->len;
    while (qr_jiter_next(run, &iter, &item)) {
        qr_jv key = item.items[0];
        if (item.items[1].kind == QR_JV_NONE || item.items[1].kind == QR_JV_UNDEFINED)
            continue;
        for (uint32_t i = 0; key.kind == QR_JV_STRING && i < key.len; i++)
            if (strchr(" \t\n\r\f\v/>=", key.s[i]) != NULL)
                return qr_jinja_raise(run, "Invalid character in attribute name");
        bool space = run->out->len > mark || args[0].kind == QR_JV_MISSING || qr_jv_truth(args[0]);
        qr_jinja_write(run, space ? QR_STR(" ") : QR_STR(""));
        qr_jinja_write(run, qr_jv_slice(qr_jv_escape(run, key)));
        qr_jinja_write(run, QR_STR("=\""));
        qr_jinja_write(run, qr_jv_slice(qr_jv_escape(run, item.items[1])));
        qr_jinja_write_char(run, '"');
    }
    return qr_jinja_take(run, mark);
}

/* ---- Other ---- */

FILTER(default)
{
    UNUSED;
    bool use = value.kind == QR_JV_UNDEFINED || (qr_jv_truth(args[1]) && !qr_jv_truth(value));
    return !use ? value : args[0].kind != QR_JV_MISSING ? args[0] : QR_JV_TEXT("");
}

FILTER(attr)
{
    UNUSED;
    qr_jv name = qr_jv_to_str(run, args[0]);
    qr_jv found = qr_jinja_attribute_only(run, value, qr_jv_slice(name));
    if (found.kind != QR_JV_MISSING || qr_jinja_failed(run))
        return found.kind != QR_JV_MISSING ? found : qr_jv_none();
    return (qr_jv){
        .kind = QR_JV_UNDEFINED, .aux = QR_JV_NO_ATTRIBUTE, .flag = value.kind, .len = name.len, .s = name.s};
}

FILTER(format)
{
    UNUSED;
    if (raw->count > 0 && raw->keyword_count > 0)
        return qr_jinja_raise(run, "can't handle positional and keyword arguments at the same time");
    value = qr_jv_soft_str(run, value);
    if (raw->keyword_count > 0)
        return qr_jinja_percent(run, value, qr_jv_none(), raw);
    qr_jv tuple = {.kind = QR_JV_TUPLE, .len = raw->count, .items = raw->positional};
    return qr_jinja_percent(run, value, tuple, NULL);
}

static bool json_separators(qr_jrun *run, qr_jv value, qr_jdump *dump)
{
    qr_jlist pair;
    if (!qr_jinja_given(value))
        return true;
    if (!qr_jv_to_list(run, value, &pair))
        return false;
    if (pair.count != 2 || pair.items[0].kind != QR_JV_STRING || pair.items[1].kind != QR_JV_STRING) {
        qr_jinja_raise(run, "separators must be a tuple of two strings");
        return false;
    }
    dump->item_separator = qr_jv_slice(pair.items[0]);
    dump->key_separator = qr_jv_slice(pair.items[1]);
    return true;
}

FILTER(tojson)
{
    UNUSED;
    qr_jdump dump = {.ensure_ascii = qr_jv_truth(args[0]),
                     .sort_keys = qr_jv_truth(args[3]),
                     .item_separator = QR_STR(", "),
                     .key_separator = QR_STR(": ")};
    if (qr_jinja_given(args[1])) {
        dump.pretty = true;
        dump.item_separator = QR_STR(",");
        int64_t width = 0;
        if (args[1].kind == QR_JV_STRING) {
            dump.indent = qr_jv_slice(args[1]);
        } else {
            if (!qr_jinja_want_int(run, args[1], &width))
                return qr_jv_none();
            qr_jv spaces = qr_jinja_binary(run, QR_JOP_MUL, QR_JV_TEXT(" "), qr_jv_int(width));
            dump.indent = qr_jv_slice(spaces);
        }
    }
    if (qr_jinja_failed(run) || !json_separators(run, args[2], &dump))
        return qr_jv_none();
    size_t mark = run->out->len;
    qr_jinja_write_json(run, value, &dump);
    return qr_jinja_take(run, mark);
}

FILTER(striptags)
{
    UNUSED;
    qr_str text = qr_jv_slice(qr_jv_to_str(run, value));
    size_t mark = run->out->len, from = 0;
    for (const char *open; (open = memchr(text.data + from, '<', text.len - from)) != NULL;) {
        size_t at = (size_t)(open - text.data);
        bool comment = qr_str_starts(qr_str_make(open, text.len - at), QR_STR("<!--"));
        ptrdiff_t close =
            comment ? qr_str_find(text, QR_STR("-->"), at + 4) : qr_str_find(text, QR_STR(">"), at);
        if (close < 0 || !qr_jinja_charge(run, 1))
            break;
        qr_jinja_write(run, qr_str_make(text.data + from, at - from));
        from = (size_t)close + (comment ? 3 : 1);
    }
    qr_jinja_write(run, qr_str_make(text.data + from, text.len - from));
    qr_jv stripped = qr_jinja_take(run, mark);
    qr_jv words = qr_jinja_string_method(run, stripped, qr_jinja_method_id(QR_STR("split")), &(qr_jargs){0});
    qr_jv joined = qr_jinja_string_method(run, QR_JV_TEXT(" "), qr_jinja_method_id(QR_STR("join")),
                                          &(qr_jargs){.positional = &words, .count = 1});
    static const char *const entities[][2] = {{"&lt;", "<"},   {"&gt;", ">"},    {"&#39;", "'"},
                                              {"&#34;", "\""}, {"&quot;", "\""}, {"&amp;", "&"}};
    for (size_t i = 0; i < QR_COUNT_OF(entities) && !qr_jinja_failed(run); i++)
        joined =
            qr_jv_replace(run, qr_jv_slice(joined), qr_str_of(entities[i][0]), qr_str_of(entities[i][1]), -1);
    return joined;
}

/* Known to Jinja2, of no use to a chat template, and not the same twice or very large to get right. */
FILTER(refused)
{
    UNUSED;
    return qr_jinja_raise(run, "this filter is not supported (random, urlize, wordwrap, pprint)");
}

static const qr_jfilter filters[] = {
    {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"trim", filter_trim, "chars", 0},
    {"default", filter_default, "default_value boolean", 0},
    {"d", filter_default, "default_value boolean", 0},
    {"string", filter_string, NULL, 0},
    {"abs", filter_abs, NULL, 0},
    {"attr", filter_attr, "name", 1},
    {"capitalize", filter_capitalize, NULL, 0},
    {"center", filter_center, "width", 0},
    {"e", filter_escape, NULL, 0},
    {"escape", filter_escape, NULL, 0},
    {"filesizeformat", filter_filesizeformat, "binary", 0},
    {"float", filter_float, "default", 0},
    {"forceescape", filter_forceescape, NULL, 0},
    {"format", filter_format, "*", 0},
    {"indent", filter_indent, "width first blank", 0},
    {"int", filter_int, "default base", 0},
    {"lower", filter_lower, NULL, 0},
    {"pprint", filter_refused, "*", 0},
    {"random", filter_refused, "*", 0},
    {"replace", filter_replace, "old new count", 2},
    {"round", filter_round, "precision method", 0},
    {"safe", filter_safe, NULL, 0},
    {"striptags", filter_striptags, NULL, 0},
    {"title", filter_title, NULL, 0},
    {"truncate", filter_truncate, "length killwords end leeway", 0},
    {"upper", filter_upper, NULL, 0},
    {"urlencode", filter_urlencode, NULL, 0},
    {"urlize", filter_refused, "*", 0},
    {"wordcount", filter_wordcount, NULL, 0},
    {"wordwrap", filter_refused, "*", 0},
    {"xmlattr", filter_xmlattr, "autospace", 0},
};

static const qr_jfilter *find_in(const qr_jfilter *rows, size_t count, qr_str name)
{
    for (size_t i = 0; i < count; i++)
        if (qr_str_equals(name, rows[i].name))
            return &rows[i];
    return NULL;
}

const qr_jfilter *qr_jinja_find_filter(qr_str name)
{
    const qr_jfilter *row = find_in(filters, QR_COUNT_OF(filters), name);
    return row != NULL ? row : find_in(qr_jinja_sequence_filters, qr_jinja_sequence_filter_count, name);
}
