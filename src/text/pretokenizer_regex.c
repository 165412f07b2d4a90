/* Expressions of tokenizer.json on PCRE2 with its JIT.
 *
 * Two differences are bridged. Syntax: the files speak Oniguruma's (Ruby) dialect, which `translate` rewrites.
 * Unicode: PCRE2's tables are of another version than the reference's, so the subject is a copy of the text in
 * which every character above ASCII is replaced by an old one of the same category, script question (Han or not)
 * and length ("stand-in"): \p{L} then means what the reference means, at PCRE2's full speed and with unchanged
 * offsets. Characters that the expression names itself, white space and those that fold to ASCII stay.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/utf8.h"
#include "text/tokenizer_impl.h"

enum { EXPRESSION_MAX = 1 << 16, NAMED_MAX = 512, MATCH_LIMIT = 10000000, HEAP_LIMIT_KIB = 65536 };

typedef struct code_range {
    uint32_t first, last;
} code_range;

struct qr_pattern {
    char *expression; /* as it was given */
    pcre2_code *code;
    QR_VEC(code_range) named;             /* characters above ASCII that the expression mentions */
    uint32_t stand_in[QR_GC_COUNT][2][5]; /* by category, Han, length; 0: none */
};

struct qr_match_data {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    qr_buf subject;
};

/* ---- Syntax ---- */

typedef struct translator {
    qr_str in;
    size_t at;
    qr_buf out;
    size_t atom;        /* where the last atom begins in out */
    size_t groups[256]; /* where the open groups begin */
    int depth;
    qr_pattern *pattern;
    const char *problem;
} translator;

/* \w inside a class; outside of one Oniguruma also counts six fractions and superscripts of Latin-1. */
static const char word_class[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}"
                                 "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
static const char word_extra[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

static void name_range(translator *t, uint32_t first, uint32_t last)
{
    code_range range = {first, last};
    if (last < 0x80)
        return;
    if (t->pattern->named.count >= NAMED_MAX)
        t->problem = "too many characters above ASCII";
    else
        QR_VEC_PUSH(&t->pattern->named, range);
}

static int peek(const translator *t, size_t ahead)
{
    return t->at + ahead < t->in.len ? (uint8_t)t->in.data[t->at + ahead] : -1;
}

static void put_codepoint(translator *t, uint32_t c)
{
    if (c < 0x80 && (c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
        qr_buf_append_char(&t->out, (char)c);
    else
        qr_buf_printf(&t->out, "\\x{%x}", c);
}

/* Hexadecimal digits at `at`; at most `most`; returns how many. */
static size_t read_hex(const translator *t, size_t at, size_t most, uint32_t *value)
{
    size_t count = 0;
    *value = 0;
    while (count < most && at + count < t->in.len) {
        int c = (uint8_t)t->in.data[at + count];
        int digit = c >= '0' && c <= '9'                 ? c - '0'
                    : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                         : -1;
        if (digit < 0)
            break;
        *value = *value * 16 + (uint32_t)digit;
        count++;
    }
    return count;
}

/* A property in its short spelling; writes it and moves behind it. */
static void property(translator *t)
{
    static const struct {
        const char *name, *value;
    } long_names[] = {{"Letter", "L"},
                      {"Mark", "M"},
                      {"Number", "N"},
                      {"Punctuation", "P"},
                      {"Symbol", "S"},
                      {"Separator", "Z"},
                      {"Other", "C"},
                      {"Uppercase_Letter", "Lu"},
                      {"Lowercase_Letter", "Ll"},
                      {"Titlecase_Letter", "Lt"},
                      {"Modifier_Letter", "Lm"},
                      {"Other_Letter", "Lo"},
                      {"Decimal_Number", "Nd"},
                      {"Han", "sc:Han"},
                      {"Script=Han", "sc:Han"},
                      {"Nonspacing_Mark", "Mn"},
                      {"Space_Separator", "Zs"}};
    size_t end = t->at + 3;
    while (end < t->in.len && t->in.data[end] != '}')
        end++;
    if (peek(t, 2) != '{' || end >= t->in.len) {
        t->problem = "property without braces";
        return;
    }
    qr_str name = qr_str_make(t->in.data + t->at + 3, end - t->at - 3);
    bool negative = peek(t, 1) == 'P';
    if (name.len > 0 && name.data[0] == '^') {
        negative = !negative;
        name = qr_str_make(name.data + 1, name.len - 1);
    }
    qr_str value = name;
    for (size_t i = 0; i < QR_COUNT_OF(long_names); i++)
        if (qr_str_equals(name, long_names[i].name))
            value = qr_str_of(long_names[i].value);
    qr_buf_printf(&t->out, "\\%c{%.*s}", negative ? 'P' : 'p', (int)value.len, value.data);
    t->at = end + 1;
}

/* A code point written as \x{..}, \xHH or \uHHHH; false: not one of these. */
static bool numbered_escape(translator *t, uint32_t *value)
{
    int kind = peek(t, 1);
    if (kind == 'u') {
        size_t digits = read_hex(t, t->at + 2, 4, value);
        if (digits != 4)
            t->problem = "\\u wants four digits";
        t->at += 2 + digits;
        return true;
    }
    if (kind != 'x')
        return false;
    bool braces = peek(t, 2) == '{';
    size_t digits = read_hex(t, t->at + (braces ? 3 : 2), braces ? 8 : 2, value);
    if (digits == 0 || *value > 0x10FFFF)
        t->problem = "bad \\x";
    t->at += 2 + digits + (braces ? 2 : 0);
    return true;
}

/* An escape that means a set or an assertion; literals are put as themselves. *value is the character, or
 * UINT32_MAX for a set. */
static void escape(translator *t, bool in_class, uint32_t *value)
{
    *value = UINT32_MAX;
    int kind = peek(t, 1);
    if (kind < 0) {
        t->problem = "ends in a backslash";
        return;
    }
    if (kind == 'p' || kind == 'P') {
        property(t);
        return;
    }
    if (numbered_escape(t, value))
        return;
    t->at += 2;
    switch (kind) {
    case 'n': *value = '\n'; return;
    case 'r': *value = '\r'; return;
    case 't': *value = '\t'; return;
    case 'f': *value = '\f'; return;
    case 'v': *value = '\v'; return;
    case 'a': *value = 7; return;
    case 'e': *value = 27; return;
    case 'w':
        if (in_class)
            qr_buf_append_cstr(&t->out, word_class);
        else
            qr_buf_printf(&t->out, "[%s%s]", word_class, word_extra);
        return;
    case 'W':
        if (in_class)
            t->problem = "\\W inside a class";
        qr_buf_printf(&t->out, "[^%s%s]", word_class, word_extra);
        return;
    case 'h': qr_buf_append_cstr(&t->out, in_class ? "0-9a-fA-F" : "[0-9a-fA-F]"); return;
    case 's':
    case 'S':
    case 'd':
    case 'D':
    case 'R': qr_buf_printf(&t->out, "\\%c", kind); return;
    case 'b':
    case 'B':
    case 'A':
    case 'z':
    case 'Z':
    case 'G':
        if (in_class) {
            *value = 8;
            return;
        }
        qr_buf_printf(&t->out, "\\%c", kind);
        return;
    default: break;
    }
    if (kind >= '0' && kind <= '9' && !in_class) {
        qr_buf_printf(&t->out, "\\%c", kind); /* a back-reference */
        return;
    }
    if ((kind >= 'a' && kind <= 'z') || (kind >= 'A' && kind <= 'Z') || kind >= 0x80)
        t->problem = "unknown escape";
    *value = (uint32_t)kind;
}

/* One member of a class: a character, a range or a set. */
static void class_member(translator *t)
{
    uint32_t first, last;
    if (peek(t, 0) == '\\') {
        escape(t, true, &first);
        if (first == UINT32_MAX)
            return;
    } else {
        t->at += qr_unicode_next((const uint8_t *)t->in.data + t->at, &first);
    }
    last = first;
    if (peek(t, 0) == '-' && peek(t, 1) != ']' && peek(t, 1) >= 0 && peek(t, 1) != '[' &&
        !(peek(t, 1) == '&' && peek(t, 2) == '&')) {
        t->at++;
        if (peek(t, 0) == '\\')
            escape(t, true, &last);
        else
            t->at += qr_unicode_next((const uint8_t *)t->in.data + t->at, &last);
    }
    if (last == UINT32_MAX || last < first) {
        t->problem = "bad range in a class";
        return;
    }
    name_range(t, first, last);
    put_codepoint(t, first);
    if (last != first) {
        qr_buf_append_char(&t->out, '-');
        put_codepoint(t, last);
    }
}

/* [[:name:]] by categories; false: not one. Names whose members are no union of categories are refused. */
static bool posix_class(translator *t)
{
    static const struct {
        const char *name, *value;
    } names[] = {{"[:digit:]", "\\p{Nd}"},
                 {"[:space:]", "\\s"},
                 {"[:punct:]", "\\p{P}\\p{S}"},
                 {"[:word:]", word_class},
                 {"[:xdigit:]", "0-9a-fA-F"}};
    qr_str rest = qr_str_make(t->in.data + t->at, t->in.len - t->at);
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        if (!qr_str_starts(rest, qr_str_of(names[i].name)))
            continue;
        qr_buf_append_cstr(&t->out, names[i].value);
        t->at += strlen(names[i].name);
        return true;
    }
    if (peek(t, 1) == ':')
        t->problem = "unsupported POSIX class";
    return false;
}

/* What stands between "[" and the closing "]" or "&&", one nested positive class being spliced in. */
static void class_members(translator *t)
{
    bool first = true;
    int nested = 0;
    while (t->problem == NULL && peek(t, 0) >= 0) {
        int c = peek(t, 0);
        if (c == ']' && (!first || nested > 0)) {
            if (nested == 0)
                return;
            nested--;
            t->at++;
        } else if (c == '&' && peek(t, 1) == '&' && nested == 0) {
            return;
        } else if (c == '[' && !posix_class(t)) {
            if (peek(t, 1) == '^')
                t->problem = "negated class inside a class";
            nested++;
            t->at++;
        } else if (c != '[') {
            class_member(t);
        }
        first = false;
    }
    if (t->problem == NULL)
        t->problem = "class without its end";
}

/* [...] and [A&&B], the latter as a look-ahead for B before A. */
static void char_class(translator *t)
{
    bool negative = peek(t, 1) == '^';
    t->at += negative ? 2 : 1;
    size_t begin = t->out.len;
    qr_buf_append_cstr(&t->out, negative ? "[^" : "[");
    class_members(t);
    if (t->problem == NULL && peek(t, 0) == '&') {
        if (negative)
            t->problem = "negated intersection";
        t->at += 2;
        qr_buf_append_char(&t->out, ']');
        char *left = qr_strndup(t->out.data + begin, t->out.len - begin);
        t->out.len = begin;
        bool bracketed = peek(t, 0) == '[';
        bool inverted = bracketed && peek(t, 1) == '^';
        t->at += (bracketed ? 1u : 0u) + (inverted ? 1u : 0u);
        qr_buf_append_cstr(&t->out, inverted ? "(?:(?![" : "(?:(?=[");
        class_members(t);
        if (bracketed)
            t->at++;
        qr_buf_printf(&t->out, "])%s)", left);
        qr_free(left);
        if (t->problem == NULL && peek(t, 0) != ']')
            t->problem = "class with more than one intersection";
        t->at++;
        return;
    }
    t->at++;
    qr_buf_append_char(&t->out, ']');
}

/* "(", "(?:" and so on, with Ruby's flag m written as s. */
static void open_group(translator *t)
{
    if (t->depth == (int)QR_COUNT_OF(t->groups)) {
        t->problem = "groups nested too deep";
        return;
    }
    t->groups[t->depth++] = t->out.len;
    qr_buf_append_char(&t->out, '(');
    t->at++;
    if (peek(t, 0) != '?')
        return;
    qr_buf_append_char(&t->out, '?');
    t->at++;
    while (peek(t, 0) == 'i' || peek(t, 0) == 'm' || peek(t, 0) == 'x' || peek(t, 0) == '-') {
        qr_buf_append_char(&t->out, peek(t, 0) == 'm' ? 's' : (char)peek(t, 0));
        t->at++;
    }
    while (peek(t, 0) == ':' || peek(t, 0) == '=' || peek(t, 0) == '!' || peek(t, 0) == '<' ||
           peek(t, 0) == '>') {
        qr_buf_append_char(&t->out, (char)peek(t, 0));
        t->at++;
    }
}

/* {n}, {n,m}, {,m}; a + behind it repeats (in Ruby it is not possessive). */
static bool interval(translator *t)
{
    size_t end = t->at + 1;
    bool comma = false, digit = false;
    while (end < t->in.len && t->in.data[end] != '}') {
        char c = t->in.data[end++];
        if (c == ',' && !comma)
            comma = true;
        else if (c >= '0' && c <= '9')
            digit = true;
        else
            return false;
    }
    if (end >= t->in.len || !digit)
        return false;
    qr_str text = qr_str_make(t->in.data + t->at, end + 1 - t->at);
    qr_buf tail = {0};
    qr_buf_append(&tail, t->out.data + t->atom, t->out.len - t->atom);
    t->out.len = t->atom;
    bool repeated = end + 1 < t->in.len && t->in.data[end + 1] == '+';
    qr_buf_append_cstr(&t->out, repeated ? "(?:" : "");
    qr_buf_append_str(&t->out, qr_buf_str(&tail));
    if (text.data[1] == ',')
        qr_buf_printf(&t->out, "{0%.*s", (int)(text.len - 1), text.data + 1);
    else
        qr_buf_append_str(&t->out, text);
    qr_buf_append_cstr(&t->out, repeated ? ")" : "");
    qr_buf_release(&tail);
    t->at = end + 1;
    return true;
}

static void translate_one(translator *t)
{
    int c = peek(t, 0);
    size_t begin = t->out.len;
    uint32_t value;
    switch (c) {
    case '\\':
        escape(t, false, &value);
        if (value != UINT32_MAX) {
            name_range(t, value, value);
            put_codepoint(t, value);
        }
        t->atom = begin;
        return;
    case '[':
        char_class(t);
        t->atom = begin;
        return;
    case '(': open_group(t); return;
    case ')':
        qr_buf_append_char(&t->out, ')');
        t->at++;
        if (t->depth > 0)
            t->atom = t->groups[--t->depth];
        return;
    case '{':
        if (interval(t))
            return;
        qr_buf_append_cstr(&t->out, "\\{");
        t->at++;
        t->atom = begin;
        return;
    case '*':
    case '+':
    case '?':
    case '|':
    case '^':
    case '$':
    case '.':
        qr_buf_append_char(&t->out, (char)c);
        t->at++;
        if (c == '.')
            t->atom = begin;
        return;
    default: break;
    }
    t->at += qr_unicode_next((const uint8_t *)t->in.data + t->at, &value);
    name_range(t, value, value);
    put_codepoint(t, value);
    t->atom = begin;
}

/* ---- Stand-ins ---- */

static bool is_named(const qr_pattern *pattern, uint32_t c)
{
    for (size_t i = 0; i < pattern->named.count; i++)
        if (c >= pattern->named.data[i].first && c <= pattern->named.data[i].last)
            return true;
    return false;
}

static void choose_stand_ins(qr_pattern *pattern)
{
    for (uint32_t i = 0; i < qr_unicode_stand_in_count; i++) {
        const qr_unicode_stand_in *row = &qr_unicode_stand_ins[i];
        uint32_t *slot = &pattern->stand_in[row->general][row->han][row->bytes];
        if (*slot == 0 && !is_named(pattern, row->codepoint))
            *slot = row->codepoint;
    }
}

static uint32_t stand_in_of(const qr_pattern *pattern, uint32_t c, size_t bytes)
{
    const qr_unicode_record *record = qr_unicode_of(c);
    bool circled =
        (record->flags & QR_UC_WORD) && (record->general == QR_GC_NO || record->general == QR_GC_SO);
    if ((record->flags & QR_UC_SPACE) || circled || c == 0x17F || c == 0x212A || is_named(pattern, c))
        return c;
    uint32_t other = pattern->stand_in[record->general][(record->flags & QR_UC_HAN) != 0][bytes];
    return other != 0 ? other : c;
}

void qr_pattern_subject(const qr_pattern *pattern, qr_match_data *data, qr_str text)
{
    qr_buf_clear(&data->subject);
    qr_buf_append_str(&data->subject, text);
    uint8_t *bytes = (uint8_t *)data->subject.data;
    for (size_t i = 0; i < text.len;) {
        if (bytes[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t c;
        size_t len = qr_unicode_next(bytes + i, &c);
        uint32_t other = stand_in_of(pattern, c, len);
        if (other != c)
            qr_utf8_encode(other, (char *)bytes + i);
        i += len;
    }
}

/* ---- Compiling and matching ---- */

static qr_status compile(qr_pattern *pattern, qr_str expression, qr_buf *translated, qr_error *err)
{
    int code;
    PCRE2_SIZE where;
    pattern->code =
        pcre2_compile((PCRE2_SPTR)translated->data, translated->len,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &code, &where, NULL);
    if (pattern->code == NULL) {
        char message[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof(message));
        return qr_fail(err, QR_UNSUPPORTED, "expression '%.*s': %s", (int)QR_MIN(expression.len, 80u),
                       expression.data, message);
    }
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
    choose_stand_ins(pattern);
    return QR_OK;
}

qr_status qr_pattern_new(qr_str expression, qr_pattern **out, qr_error *err)
{
    if (expression.len == 0 || expression.len > EXPRESSION_MAX)
        return qr_fail(err, QR_UNSUPPORTED, "expression of %zu bytes", expression.len);
    translator t = {.in = expression, .pattern = qr_calloc(1, sizeof(qr_pattern))};
    t.pattern->expression = qr_strndup(expression.data, expression.len);
    while (t.at < t.in.len && t.problem == NULL)
        translate_one(&t);
    qr_status status;
    if (t.problem != NULL)
        status = qr_fail(err, QR_UNSUPPORTED, "expression '%.*s': %s at byte %zu",
                         (int)QR_MIN(expression.len, 80u), expression.data, t.problem, t.at);
    else
        status = compile(t.pattern, expression, &t.out, err);
    qr_buf_release(&t.out);
    if (status == QR_OK)
        *out = t.pattern;
    else
        qr_pattern_free(t.pattern);
    return status;
}

void qr_pattern_free(qr_pattern *pattern)
{
    if (pattern == NULL)
        return;
    pcre2_code_free(pattern->code);
    QR_VEC_RELEASE(&pattern->named);
    qr_free(pattern->expression);
    qr_free(pattern);
}

const char *qr_pattern_expression(const qr_pattern *pattern) { return pattern->expression; }

qr_match_data *qr_match_data_new(void)
{
    qr_match_data *data = qr_calloc(1, sizeof(*data));
    data->match = pcre2_match_data_create(1, NULL);
    data->context = pcre2_match_context_create(NULL);
    pcre2_set_match_limit(data->context, MATCH_LIMIT);
    pcre2_set_heap_limit(data->context, HEAP_LIMIT_KIB);
    data->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    pcre2_jit_stack_assign(data->context, NULL, data->stack);
    return data;
}

void qr_match_data_free(qr_match_data *data)
{
    if (data == NULL)
        return;
    pcre2_match_data_free(data->match);
    pcre2_match_context_free(data->context);
    pcre2_jit_stack_free(data->stack);
    qr_buf_release(&data->subject);
    qr_free(data);
}

int qr_pattern_find(const qr_pattern *pattern, qr_match_data *data, size_t from, size_t *start, size_t *end)
{
    if (from > data->subject.len)
        return 0;
    const char *subject = data->subject.data != NULL ? data->subject.data : "";
    int count = pcre2_match(pattern->code, (PCRE2_SPTR)subject, data->subject.len, from, PCRE2_NO_UTF_CHECK,
                            data->match, data->context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter takes its memory from the heap */
        count = pcre2_match(pattern->code, (PCRE2_SPTR)subject, data->subject.len, from,
                            PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data->match, data->context);
    if (count == PCRE2_ERROR_NOMATCH)
        return 0;
    if (count < 0)
        return -1;
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(data->match);
    *start = found[0];
    *end = found[1];
    return 1;
}
