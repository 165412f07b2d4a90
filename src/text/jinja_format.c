/* `format % values`, str.format and the format specification of Python. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

enum { WIDTH_MAX = 1 << 20, PRECISION_MAX = 400 };

typedef struct spec {
    qr_str fill;
    char align; /* '<' '>' '=' '^' or 0 */
    char sign;  /* '+' '-' ' ' or 0 */
    bool alternate, zero;
    char group;               /* ',' '_' or 0 */
    int64_t width, precision; /* -1: not given */
    char type;
} spec;

/* ---- Numbers as text ---- */

static void pad(qr_jrun *run, const spec *s, char default_align, qr_str sign, qr_str body)
{
    int64_t length = (int64_t)(sign.len + qr_jtext_count(body)), missing = s->width - length;
    char align = s->align != 0 ? s->align : default_align;
    int64_t left = missing <= 0 || align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    if (align == '=')
        qr_jinja_write(run, sign);
    for (int64_t i = 0; i < left && qr_jinja_charge(run, 1); i++)
        qr_jinja_write(run, s->fill);
    if (align != '=')
        qr_jinja_write(run, sign);
    qr_jinja_write(run, body);
    for (int64_t i = left; i < missing && qr_jinja_charge(run, 1); i++)
        qr_jinja_write(run, s->fill);
}

/* Puts the group sign into the digits before the point. */
static qr_str group_digits(const spec *s, const char *digits, char *out, int group)
{
    size_t whole = strspn(digits, "0123456789abcdefABCDEF"), len = 0;
    for (size_t i = 0; i < whole; i++) {
        if (i > 0 && (whole - i) % (size_t)group == 0)
            out[len++] = s->group;
        out[len++] = digits[i];
    }
    size_t rest = strlen(digits + whole);
    memcpy(out + len, digits + whole, rest + 1);
    return qr_str_make(out, len + rest);
}

static qr_str sign_of(const spec *s, bool negative)
{
    return negative ? QR_STR("-") : s->sign == '+' ? QR_STR("+") : s->sign == ' ' ? QR_STR(" ") : QR_STR("");
}

static void to_radix(uint64_t value, unsigned radix, bool upper, char out[72])
{
    const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char reversed[72];
    int count = 0;
    do {
        reversed[count++] = digits[value % radix];
        value /= radix;
    } while (value > 0);
    for (int i = 0; i < count; i++)
        out[i] = reversed[count - 1 - i];
    out[count] = '\0';
}

static void format_int(qr_jrun *run, const spec *s, int64_t value)
{
    char digits[72], grouped[160], sign[4] = "";
    unsigned radix = s->type == 'x' || s->type == 'X' ? 16 : s->type == 'o' ? 8 : s->type == 'b' ? 2 : 10;
    qr_str prefix = sign_of(s, value < 0);
    to_radix(value < 0 ? 0 - (uint64_t)value : (uint64_t)value, radix, s->type == 'X', digits);
    memcpy(sign, prefix.data, prefix.len);
    size_t sign_len = prefix.len;
    if (s->alternate && radix != 10) {
        sign[sign_len++] = '0';
        sign[sign_len++] = s->type;
    }
    qr_str body = s->group != 0 ? group_digits(s, digits, grouped, radix == 10 ? 3 : 4) : qr_str_of(digits);
    pad(run, s, '>', qr_str_make(sign, sign_len), body);
}

/* `g` of Python keeps the point with '#', as C does; repr-like where no type is given. */
static void float_text(qr_jrun *run, const spec *s, double value, char *out, size_t out_bytes)
{
    char pattern[16];
    double magnitude = fabs(value);
    int precision = (int)(s->precision < 0 ? 6 : QR_MIN(s->precision, (int64_t)PRECISION_MAX));
    char type = s->type;
    if (!isfinite(value)) {
        snprintf(out, out_bytes, "%s", isnan(value) ? "nan" : "inf");
        return;
    }
    if (type == 0 && s->precision < 0) {
        size_t mark = run->out->len;
        qr_jinja_write_float(run, magnitude);
        qr_jv text = qr_jinja_take(run, mark);
        snprintf(out, out_bytes, "%.*s", (int)text.len, text.s);
        return;
    }
    if (type == '%') {
        magnitude *= 100;
        type = 'f';
    }
    snprintf(pattern, sizeof(pattern), "%%%s.*%c", s->alternate ? "#" : "",
             type == 0 || type == 'n' ? 'g' : type);
    snprintf(out, out_bytes, pattern, precision, magnitude);
    bool bare = type == 0 && strpbrk(out, ".e") == NULL;
    size_t len = strlen(out);
    if (len + 3 < out_bytes)
        memcpy(out + len, s->type == '%' ? "%" : bare ? ".0" : "", s->type == '%' ? 2 : bare ? 3 : 1);
}

static void format_float(qr_jrun *run, const spec *s, double value)
{
    char digits[PRECISION_MAX + 400], grouped[PRECISION_MAX + 560];
    float_text(run, s, value, digits, sizeof(digits) - 8);
    bool negative = signbit(value) && !isnan(value);
    if (s->type == 'E' || s->type == 'F' || s->type == 'G')
        for (char *c = digits; *c != '\0'; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
    qr_str body = s->group != 0 ? group_digits(s, digits, grouped, 3) : qr_str_of(digits);
    pad(run, s, '>', sign_of(s, negative), body);
}

static void format_text(qr_jrun *run, const spec *s, qr_str text)
{
    if (s->precision >= 0)
        text.len = qr_jtext_offset(text, (size_t)s->precision);
    pad(run, s, '<', QR_STR(""), text);
}

/* ---- format(value, specification) ---- */

static int64_t parse_number(qr_str text, size_t *at)
{
    int64_t value = 0;
    if (*at >= text.len || text.data[*at] < '0' || text.data[*at] > '9')
        return -1;
    for (; *at < text.len && text.data[*at] >= '0' && text.data[*at] <= '9'; ++*at)
        value = QR_MIN(value * 10 + (text.data[*at] - '0'), (int64_t)WIDTH_MAX + 1);
    return value;
}

static bool is_align(char c) { return c == '<' || c == '>' || c == '=' || c == '^'; }

static bool parse_spec(qr_jrun *run, qr_str text, spec *s)
{
    size_t at = 0, first = text.len > 0 ? qr_jtext_offset(text, 1) : 0;
    *s = (spec){.fill = QR_STR(" "), .width = -1, .precision = -1};
    if (first > 0 && first < text.len && is_align(text.data[first])) {
        s->fill = qr_str_make(text.data, first);
        s->align = text.data[first];
        at = first + 1;
    } else if (text.len > 0 && is_align(text.data[0])) {
        s->align = text.data[at++];
    }
    if (at < text.len && (text.data[at] == '+' || text.data[at] == '-' || text.data[at] == ' '))
        s->sign = text.data[at++];
    if (at < text.len && text.data[at] == '#')
        s->alternate = text.data[at++] == '#';
    if (at < text.len && text.data[at] == '0' && s->align == 0) {
        s->zero = true;
        s->fill = QR_STR("0");
        s->align = '=';
        at++;
    }
    s->width = parse_number(text, &at);
    if (at < text.len && (text.data[at] == ',' || text.data[at] == '_'))
        s->group = text.data[at++];
    if (at < text.len && text.data[at] == '.') {
        at++;
        s->precision = parse_number(text, &at);
        if (s->precision < 0) {
            qr_jinja_raise(run, "Format specifier missing precision");
            return false;
        }
    }
    if (at < text.len)
        s->type = text.data[at++];
    if (at < text.len || s->width > WIDTH_MAX) {
        qr_jinja_raise(run, "Invalid format specifier '%.*s'", (int)QR_MIN(text.len, (size_t)60), text.data);
        return false;
    }
    return true;
}

static void unknown_code(qr_jrun *run, const spec *s, qr_jv value)
{
    qr_jinja_raise(run, "Unknown format code '%c' for object of type '%s'", s->type, qr_jv_type_name(value));
}

static void format_string(qr_jrun *run, const spec *s, qr_jv value)
{
    spec padded = *s;
    if (s->zero) /* zeros go to the right of a string */
        padded.align = '<';
    if (s->type != 0 && s->type != 's')
        unknown_code(run, s, value);
    else if (s->sign != 0 || s->alternate || s->group != 0)
        qr_jinja_raise(run, "sign, '#' and ',' are not allowed in a string format specifier");
    else if (padded.align == '=')
        qr_jinja_raise(run, "'=' alignment not allowed in string format specifier");
    else
        format_text(run, &padded, qr_jv_slice(value));
}

static void write_formatted(qr_jrun *run, qr_jv value, qr_str text)
{
    spec s;
    if (text.len == 0) {
        qr_jinja_write_str(run, value);
        return;
    }
    if (!parse_spec(run, text, &s))
        return;
    bool integer_type = s.type == 0 || (s.type != '\0' && strchr("bdoxXn", s.type) != NULL);
    bool float_type = s.type != '\0' && strchr("eEfFgG%", s.type) != NULL;
    if (value.kind == QR_JV_STRING) {
        format_string(run, &s, value);
    } else if (qr_jv_is_integral(value) && s.type == 'c') {
        size_t mark = run->out->len;
        qr_jinja_write_codepoint(run, (uint32_t)value.i);
        format_text(run, &s, qr_jv_slice(qr_jinja_take(run, mark)));
    } else if (qr_jv_is_integral(value) && integer_type) {
        format_int(run, &s, value.i);
    } else if (qr_jv_is_number(value) &&
               (float_type || (value.kind == QR_JV_FLOAT && (s.type == 0 || s.type == 'n')))) {
        format_float(run, &s, qr_jv_to_double(value));
    } else if (qr_jv_is_number(value)) {
        unknown_code(run, &s, value);
    } else {
        qr_jinja_raise(run, "unsupported format string passed to %s.__format__", qr_jv_type_name(value));
    }
}

/* ---- str.format ---- */

typedef struct formatter {
    const qr_jargs *args;
    uint32_t next; /* automatic numbering */
    int numbering; /* 0: none yet, 1: automatic, 2: manual */
    bool safe;     /* the format is Markup: values are escaped */
} formatter;

static bool argument_at(qr_jrun *run, const formatter *f, int64_t index, qr_jv *value)
{
    if (index >= (int64_t)f->args->count) {
        qr_jinja_raise(run, "Replacement index %lld out of range for positional args tuple",
                       (long long)index);
        return false;
    }
    *value = f->args->positional[index];
    return true;
}

static bool first_part(qr_jrun *run, formatter *f, qr_str name, qr_jv *value)
{
    size_t at = 0;
    int64_t index = name.len == 0 ? (int64_t)f->next++ : parse_number(name, &at);
    bool numeric = name.len == 0 || (index >= 0 && at == name.len);
    if (numeric) {
        int kind = name.len == 0 ? 1 : 2;
        if (f->numbering != 0 && f->numbering != kind) {
            qr_jinja_raise(run, "cannot switch between manual and automatic field numbering");
            return false;
        }
        f->numbering = kind;
        return argument_at(run, f, index, value);
    }
    for (uint32_t i = 0; i < f->args->keyword_count; i++) {
        if (qr_str_equal(f->args->names[i], name)) {
            *value = f->args->keywords[i];
            return true;
        }
    }
    qr_jinja_raise(run, "KeyError: '%.*s'", (int)QR_MIN(name.len, (size_t)80), name.data);
    return false;
}

/* field: name, then .attribute and [key] parts */
static bool field_value(qr_jrun *run, formatter *f, qr_str field, qr_jv *value)
{
    size_t end = 0;
    while (end < field.len && field.data[end] != '.' && field.data[end] != '[')
        end++;
    if (!first_part(run, f, qr_str_make(field.data, end), value))
        return false;
    while (end < field.len && !qr_jinja_failed(run)) {
        bool bracket = field.data[end] == '[';
        size_t begin = ++end;
        while (end < field.len &&
               (bracket ? field.data[end] != ']' : field.data[end] != '.' && field.data[end] != '['))
            end++;
        qr_str part = qr_str_make(field.data + begin, end - begin);
        size_t digits = 0;
        int64_t index = parse_number(part, &digits);
        if (!bracket)
            *value = qr_jinja_getattr(run, *value, part, qr_jinja_method_id(part));
        else
            *value = qr_jinja_getitem(run, *value,
                                      index >= 0 && digits == part.len ? qr_jv_int(index) : qr_jv_str(part));
        end += bracket;
    }
    return !qr_jinja_failed(run);
}

/* The specification may hold fields itself, one level deep. */
static qr_str expand_spec(qr_jrun *run, formatter *f, qr_str text)
{
    if (text.len == 0 || memchr(text.data, '{', text.len) == NULL)
        return text;
    size_t mark = run->out->len;
    for (size_t i = 0; i < text.len && !qr_jinja_failed(run); i++) {
        if (text.data[i] != '{') {
            qr_jinja_write_char(run, text.data[i]);
            continue;
        }
        const char *close = memchr(text.data + i, '}', text.len - i);
        size_t end = close != NULL ? (size_t)(close - text.data) : text.len;
        qr_jv value = {0};
        if (field_value(run, f, qr_str_make(text.data + i + 1, end - i - 1), &value))
            qr_jinja_write_str(run, value);
        i = end;
    }
    return qr_jv_slice(qr_jinja_take(run, mark));
}

static void write_field(qr_jrun *run, formatter *f, qr_str field)
{
    size_t end = 0;
    char conversion = '\0';
    int brackets = 0;
    for (; end < field.len; end++) {
        brackets += (field.data[end] == '[') - (field.data[end] == ']');
        if (brackets == 0 && (field.data[end] == ':' || field.data[end] == '!'))
            break;
    }
    qr_str name = qr_str_make(field.data, end), text = QR_STR("");
    if (end < field.len && field.data[end] == '!') {
        conversion = end + 1 < field.len ? field.data[end + 1] : '?';
        end += 2;
        if (end < field.len && field.data[end] != ':')
            qr_jinja_raise(run, "expected ':' after conversion specifier");
    }
    if (end < field.len)
        text = qr_str_make(field.data + end + 1, field.len - end - 1);
    qr_jv value = {0};
    if (qr_jinja_failed(run) || !field_value(run, f, name, &value))
        return;
    text = expand_spec(run, f, text);
    if (conversion == 'r' || conversion == 'a')
        value = qr_jv_to_repr(run, value);
    else if (conversion == 's')
        value = qr_jv_to_str(run, value);
    else if (conversion != '\0')
        qr_jinja_raise(run, "Unknown conversion specifier '%c'", conversion);
    if (f->safe && !qr_jinja_failed(run)) {
        size_t mark = run->out->len;
        write_formatted(run, value, text);
        bool kept = value.kind == QR_JV_STRING && (value.flag & QR_JV_SAFE);
        qr_jv out = qr_jinja_take(run, mark);
        qr_jinja_write(run, qr_jv_slice(kept ? out : qr_jv_escape(run, out)));
    } else if (!qr_jinja_failed(run)) {
        write_formatted(run, value, text);
    }
}

/* Where the field that begins at `at` ends (the index of its brace), or text.len. */
static size_t field_end(qr_str text, size_t at)
{
    int depth = 1;
    for (; at < text.len; at++) {
        depth += (text.data[at] == '{') - (text.data[at] == '}');
        if (depth == 0)
            break;
    }
    return at;
}

qr_jv qr_jinja_format(qr_jrun *run, qr_jv format, const qr_jargs *args)
{
    formatter f = {.args = args, .safe = (format.flag & QR_JV_SAFE) != 0};
    qr_str text = qr_jv_slice(format);
    size_t mark = run->out->len;
    for (size_t i = 0; i < text.len && qr_jinja_charge(run, 1); i++) {
        char c = text.data[i];
        if (c != '{' && c != '}') {
            qr_jinja_write_char(run, c);
        } else if (i + 1 < text.len && text.data[i + 1] == c) {
            qr_jinja_write_char(run, c);
            i++;
        } else if (c == '}') {
            return qr_jinja_raise(run, "Single '}' encountered in format string");
        } else {
            size_t end = field_end(text, i + 1);
            if (end == text.len)
                return qr_jinja_raise(run, i + 1 == text.len ? "Single '{' encountered in format string"
                                                             : "expected '}' before end of string");
            write_field(run, &f, qr_str_make(text.data + i + 1, end - i - 1));
            i = end;
        }
    }
    return qr_jv_with_flag(qr_jinja_take(run, mark), format.flag);
}

/* ---- format % values ---- */

typedef struct percent {
    qr_jv values;
    const qr_jargs *keywords; /* or NULL */
    uint32_t next;
    bool is_tuple, used_mapping, safe;
} percent;

static bool next_value(qr_jrun *run, percent *p, qr_jv *value)
{
    uint32_t count = p->is_tuple ? p->values.len : 1;
    if (p->next >= count) {
        qr_jinja_raise(run, "not enough arguments for format string");
        return false;
    }
    *value = p->is_tuple ? p->values.items[p->next] : p->values;
    p->next++;
    return true;
}

static bool mapped_value(qr_jrun *run, percent *p, qr_str key, qr_jv *value)
{
    p->used_mapping = true;
    *value = (qr_jv){0};
    if (p->keywords != NULL) {
        for (uint32_t i = 0; i < p->keywords->keyword_count; i++)
            if (qr_str_equal(p->keywords->names[i], key))
                *value = p->keywords->keywords[i];
    } else if (p->values.kind == QR_JV_DICT) {
        *value = qr_jv_dict_get(run, p->values, qr_jv_str(key));
    } else {
        qr_jinja_raise(run, "format requires a mapping");
        return false;
    }
    if (value->kind == QR_JV_MISSING)
        qr_jinja_raise(run, "KeyError: '%.*s'", (int)QR_MIN(key.len, (size_t)80), key.data);
    return !qr_jinja_failed(run);
}

/* Flags, width, precision after the '%' (and its (key)) at *at. */
static bool percent_spec(qr_jrun *run, percent *p, qr_str text, size_t *at, spec *s)
{
    *s = (spec){.fill = QR_STR(" "), .width = -1, .precision = -1};
    bool left = false;
    for (; *at < text.len && memchr("-+ #0", text.data[*at], 5) != NULL; ++*at) {
        char flag = text.data[*at];
        left = left || flag == '-';
        s->sign = flag == '+' || (flag == ' ' && s->sign != '+') ? flag : s->sign;
        s->alternate = s->alternate || flag == '#';
        s->zero = s->zero || flag == '0';
    }
    for (int part = 0; part < 2; part++) {
        int64_t *number = part == 0 ? &s->width : &s->precision;
        if (part == 1) {
            if (*at >= text.len || text.data[*at] != '.')
                break;
            ++*at;
        }
        qr_jv value;
        if (*at < text.len && text.data[*at] == '*') {
            ++*at;
            if (!next_value(run, p, &value) || !qr_jinja_want_int(run, value, number))
                return false;
            left = left || (part == 0 && *number < 0);
            *number = QR_MIN(*number < 0 ? -(*number + 1) + 1 : *number, (int64_t)WIDTH_MAX + 1);
        } else {
            *number = parse_number(text, at);
            if (part == 1 && *number < 0)
                *number = 0;
        }
    }
    s->align = left ? '<' : '>';
    if (s->width > WIDTH_MAX || s->precision > WIDTH_MAX)
        qr_jinja_raise(run, "width or precision too big");
    return !qr_jinja_failed(run);
}

static void percent_int(qr_jrun *run, spec *s, qr_jv value)
{
    if (value.kind == QR_JV_FLOAT && s->type == 'd' && isfinite(value.d) && fabs(value.d) < 9e18)
        value = qr_jv_int((int64_t)value.d);
    if (!qr_jv_is_integral(value)) {
        qr_jinja_raise(run, "%%%c format: %s is required, not %s", s->type,
                       s->type == 'd' ? "a real number" : "an integer", qr_jv_type_name(value));
        return;
    }
    if (s->zero && s->align == '>') {
        s->fill = QR_STR("0");
        s->align = '=';
    }
    format_int(run, s, value.i);
}

static void percent_float(qr_jrun *run, spec *s, qr_jv value)
{
    if (!qr_jv_is_number(value)) {
        qr_jinja_raise(run, "must be real number, not %s", qr_jv_type_name(value));
        return;
    }
    if (s->zero && s->align == '>') {
        s->fill = QR_STR("0");
        s->align = '=';
    }
    format_float(run, s, qr_jv_to_double(value));
}

static void percent_char(qr_jrun *run, const spec *s, qr_jv value)
{
    size_t mark = run->out->len;
    if (qr_jv_is_integral(value) && value.i >= 0 && value.i <= 0x10ffff)
        qr_jinja_write_codepoint(run, (uint32_t)value.i);
    else if (value.kind == QR_JV_STRING && qr_jtext_count(qr_jv_slice(value)) == 1)
        qr_jinja_write(run, qr_jv_slice(value));
    else
        qr_jinja_raise(run, "%%c requires int or char");
    format_text(run, s, qr_jv_slice(qr_jinja_take(run, mark)));
}

static void percent_value(qr_jrun *run, percent *p, spec *s, qr_jv value)
{
    switch (s->type) {
    case 's':
        value = p->safe ? qr_jv_escape(run, value) : qr_jv_to_str(run, value);
        format_text(run, s, qr_jv_slice(value));
        return;
    case 'r':
    case 'a':
        value = qr_jv_to_repr(run, value);
        if (p->safe)
            value = qr_jv_escape(run, value);
        format_text(run, s, qr_jv_slice(value));
        return;
    case 'c': percent_char(run, s, value); return;
    case 'd':
    case 'i':
    case 'u':
        s->type = 'd';
        percent_int(run, s, value);
        return;
    case 'x':
    case 'X':
    case 'o': percent_int(run, s, value); return;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': percent_float(run, s, value); return;
    default:
        qr_jinja_raise(run, "unsupported format character '%c' (0x%x)", s->type,
                       (unsigned)(unsigned char)s->type);
    }
}

/* One directive; *at stands after the '%'. */
static void percent_directive(qr_jrun *run, percent *p, qr_str text, size_t *at)
{
    qr_jv value = {0};
    bool mapped = *at < text.len && text.data[*at] == '(';
    if (mapped) {
        size_t begin = *at + 1;
        int depth = 1;
        for (++*at; *at < text.len && depth > 0; ++*at)
            depth += (text.data[*at] == '(') - (text.data[*at] == ')');
        if (depth > 0) {
            qr_jinja_raise(run, "incomplete format key");
            return;
        }
        if (!mapped_value(run, p, qr_str_make(text.data + begin, *at - 1 - begin), &value))
            return;
    }
    spec s;
    if (!percent_spec(run, p, text, at, &s))
        return;
    while (*at < text.len && memchr("hlL", text.data[*at], 3) != NULL)
        ++*at;
    if (*at >= text.len) {
        qr_jinja_raise(run, "incomplete format");
        return;
    }
    s.type = text.data[(*at)++];
    if (s.type == '%')
        qr_jinja_write_char(run, '%');
    else if (mapped || next_value(run, p, &value))
        percent_value(run, p, &s, value);
}

qr_jv qr_jinja_percent(qr_jrun *run, qr_jv format, qr_jv values, const qr_jargs *keywords)
{
    percent p = {.values = values,
                 .keywords = keywords,
                 .is_tuple = values.kind == QR_JV_TUPLE && keywords == NULL,
                 .safe = (format.flag & QR_JV_SAFE) != 0};
    qr_str text = qr_jv_slice(format);
    size_t mark = run->out->len, from = 0;
    for (size_t at = 0; at < text.len && qr_jinja_charge(run, 1);) {
        const char *sign = memchr(text.data + at, '%', text.len - at);
        if (sign == NULL)
            break;
        at = (size_t)(sign - text.data);
        qr_jinja_write(run, qr_str_make(text.data + from, at - from));
        at++;
        percent_directive(run, &p, text, &at);
        from = at;
    }
    qr_jinja_write(run, qr_str_make(text.data + from, text.len - from));
    /* what Python can subscript by a key may be left over; a single value or part of a tuple may not */
    bool may_stay = p.used_mapping || values.kind == QR_JV_DICT || values.kind == QR_JV_LIST ||
                    values.kind == QR_JV_RANGE || values.kind == QR_JV_UNDEFINED || keywords != NULL;
    uint32_t count = p.is_tuple ? values.len : 1;
    if (p.next < count && !may_stay)
        qr_jinja_raise(run, "not all arguments converted during string formatting");
    return qr_jv_with_flag(qr_jinja_take(run, mark), format.flag);
}
