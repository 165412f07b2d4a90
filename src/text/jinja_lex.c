/* Tokens of a template, as Jinja2's lexer cuts them: whitespace control, trim_blocks, lstrip_blocks, raw. */
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/jinja_tree.h"

enum { BRACKETS_MAX = 200, TOKENS_MAX = 4 << 20 };

typedef struct lexer {
    qr_jcompile *compile;
    qr_str text;
    size_t pos;
    char brackets[BRACKETS_MAX]; /* the closing one that is expected */
    int bracket_count;
} lexer;

static bool at(const lexer *lex, size_t pos, const char *what)
{
    size_t len = strlen(what);
    return pos + len <= lex->text.len && memcmp(lex->text.data + pos, what, len) == 0;
}

static char byte_at(const lexer *lex, size_t pos) { return pos < lex->text.len ? lex->text.data[pos] : '\0'; }

static size_t skip_space(const lexer *lex, size_t pos)
{
    while (pos < lex->text.len) {
        uint32_t codepoint = 0;
        size_t bytes = qr_jtext_decode(lex->text.data + pos, lex->text.len - pos, &codepoint);
        if (!qr_jtext_is_space(codepoint))
            break;
        pos += bytes;
    }
    return pos;
}

static void push(lexer *lex, qr_jtok type, size_t pos, qr_str text)
{
    qr_jtokens *tokens = &lex->compile->tokens;
    if (tokens->count >= TOKENS_MAX) {
        qr_jcompile_fail(lex->compile, (uint32_t)pos, "more than %d tokens", TOKENS_MAX);
        return;
    }
    if (tokens->count == tokens->capacity) {
        tokens->capacity = tokens->capacity * 2 + 256;
        tokens->data = qr_realloc(tokens->data, tokens->capacity * sizeof(qr_jtoken));
    }
    tokens->data[tokens->count++] = (qr_jtoken){(uint8_t)type, (uint32_t)pos, text};
}

/* Emits text[begin, end) as the tag's whitespace control leaves it. sign: '-', '+' or 0; strip: lstrip_blocks
 * counts for this kind of tag. */
static void push_data(lexer *lex, size_t begin, size_t end, char sign, bool strip)
{
    qr_str data = qr_str_make(lex->text.data + begin, end - begin);
    if (sign == '-') {
        data = qr_jtext_trim(data, false, true);
    } else if (sign != '+' && strip) {
        const char *newline = memrchr(data.data, '\n', data.len);
        size_t line = newline != NULL ? (size_t)(newline - data.data) + 1 : 0;
        bool line_starts = line > 0 || begin == 0 || lex->text.data[begin - 1] == '\n';
        qr_str rest = qr_str_make(data.data + line, data.len - line);
        if (line_starts && qr_jtext_trim(rest, true, false).len == 0)
            data.len = line;
    }
    if (data.len > 0)
        push(lex, QR_JT_DATA, begin, data);
}

/* Past the end of a block or comment tag whose closing text (2 bytes, its sign before it) is at pos. */
static size_t after_close(const lexer *lex, size_t pos, char sign)
{
    pos += 2;
    if (sign == '-')
        return skip_space(lex, pos);
    if (sign != '+' && lex->compile->syntax.trim_blocks && byte_at(lex, pos) == '\n')
        pos++;
    return pos;
}

static char sign_at(const lexer *lex, size_t pos)
{
    char c = byte_at(lex, pos);
    return c == '-' || c == '+' ? c : '\0';
}

/* Matches `raw` and the end of the tag at pos (after the sign): where the raw text begins, or 0. */
static size_t match_raw(const lexer *lex, size_t pos)
{
    pos = skip_space(lex, pos);
    if (!at(lex, pos, "raw"))
        return 0;
    pos = skip_space(lex, pos + 3);
    if (at(lex, pos, "-%}"))
        return skip_space(lex, pos + 3);
    return at(lex, pos, "%}") ? pos + 2 : 0;
}

/* Matches an endraw tag at pos: where it ends, or 0. */
static size_t match_endraw(const lexer *lex, size_t pos)
{
    pos += 2;
    pos = skip_space(lex, pos + (sign_at(lex, pos) != '\0'));
    if (!at(lex, pos, "endraw"))
        return 0;
    pos = skip_space(lex, pos + 6);
    char sign = sign_at(lex, pos);
    pos += sign != '\0';
    return at(lex, pos, "%}") ? after_close(lex, pos, sign) : 0;
}

static void lex_raw(lexer *lex, size_t begin)
{
    for (size_t pos = begin; pos < lex->text.len; pos++) {
        if (!at(lex, pos, "{%"))
            continue;
        size_t end = match_endraw(lex, pos);
        if (end == 0)
            continue;
        push_data(lex, begin, pos, sign_at(lex, pos + 2), lex->compile->syntax.lstrip_blocks);
        lex->pos = end;
        return;
    }
    qr_jcompile_fail(lex->compile, (uint32_t)begin, "Missing end of raw directive");
}

static void lex_comment(lexer *lex, size_t begin)
{
    ptrdiff_t found = qr_str_find(lex->text, QR_STR("#}"), begin);
    if (found < 0) {
        qr_jcompile_fail(lex->compile, (uint32_t)begin, "Missing end of comment tag");
        return;
    }
    size_t close = (size_t)found;
    char sign = close > begin ? sign_at(lex, close - 1) : '\0';
    lex->pos = after_close(lex, close, sign);
}

/* ---- Inside tags ---- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* (\d+_)*\d+ at pos (a digit is there): where it ends. */
static size_t digits(const lexer *lex, size_t pos)
{
    while (is_digit(byte_at(lex, pos)) || (byte_at(lex, pos) == '_' && is_digit(byte_at(lex, pos + 1))))
        pos++;
    return pos;
}

static bool in_radix(char c, int radix)
{
    int value = is_digit(c) ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : 99;
    return value < radix;
}

static size_t integer_end(const lexer *lex, size_t pos)
{
    if (byte_at(lex, pos) != '0')
        return digits(lex, pos);
    char kind = (char)(byte_at(lex, pos + 1) | 32);
    int radix = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 0;
    size_t end = pos + 2;
    if (radix > 0) {
        while (in_radix(byte_at(lex, end), radix) ||
               (byte_at(lex, end) == '_' && in_radix(byte_at(lex, end + 1), radix)))
            end++;
        if (end > pos + 2)
            return end;
    }
    end = pos + 1;
    while (byte_at(lex, end) == '0' || (byte_at(lex, end) == '_' && byte_at(lex, end + 1) == '0'))
        end++;
    return end;
}

static void lex_number(lexer *lex)
{
    size_t begin = lex->pos, end = digits(lex, begin);
    bool is_float = false;
    if (byte_at(lex, end) == '.' && is_digit(byte_at(lex, end + 1))) {
        end = digits(lex, end + 1);
        is_float = true;
    }
    if ((byte_at(lex, end) | 32) == 'e') {
        size_t exponent = end + 1 + (sign_at(lex, end + 1) != '\0');
        if (is_digit(byte_at(lex, exponent))) {
            end = digits(lex, exponent);
            is_float = true;
        }
    }
    if (!is_float || (begin > 0 && lex->text.data[begin - 1] == '.')) {
        is_float = false;
        end = integer_end(lex, begin);
    }
    push(lex, is_float ? QR_JT_FLOAT : QR_JT_INTEGER, begin,
         qr_str_make(lex->text.data + begin, end - begin));
    lex->pos = end;
}

static uint32_t hex_value(const char *text, size_t len, bool *ok)
{
    uint32_t value = 0;
    for (size_t i = 0; i < len; i++) {
        if (!in_radix(text[i], 16))
            *ok = false;
        value = value * 16 + (uint32_t)(is_digit(text[i]) ? text[i] - '0' : (text[i] | 32) - 'a' + 10);
    }
    return value;
}

static char simple_escape(char c)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *hit = c != '\0' ? strchr(from, c) : NULL;
    return hit != NULL ? to[hit - from] : '\0';
}

/* One escape at text[i] == '\\', i + 1 < len: appends what it stands for, returns its length or 0. */
static size_t unescape_one(const char *text, size_t len, char **out)
{
    char c = text[1], simple = simple_escape(c);
    if (simple != '\0') {
        *(*out)++ = simple;
        return 2;
    }
    if (c == '\n')
        return 2;
    size_t wanted = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t codepoint = 0;
    size_t used = 2 + wanted;
    if (c >= '0' && c <= '7') {
        for (used = 1; used < len && used < 4 && text[used] >= '0' && text[used] <= '7'; used++)
            codepoint = codepoint * 8 + (uint32_t)(text[used] - '0');
    } else if (wanted > 0) {
        bool ok = len >= used;
        codepoint = ok ? hex_value(text + 2, wanted, &ok) : 0;
        if (!ok || codepoint > 0x10ffff)
            return 0;
    } else if (c == 'N') {
        return 0; /* \N{NAME} needs the names of all characters */
    } else {
        *(*out)++ = '\\';
        return 1;
    }
    *out += qr_utf8_encode(codepoint, *out);
    return used;
}

static qr_str unescape(lexer *lex, qr_str raw, size_t pos)
{
    if (raw.len == 0 || memchr(raw.data, '\\', raw.len) == NULL)
        return raw;
    char *text = qr_jcompile_alloc(lex->compile, raw.len + 8), *out = text;
    for (size_t i = 0; i < raw.len;) {
        if (raw.data[i] != '\\') {
            *out++ = raw.data[i++];
            continue;
        }
        size_t used = unescape_one(raw.data + i, raw.len - i, &out);
        if (used == 0) {
            qr_jcompile_fail(lex->compile, (uint32_t)(pos + i), "this escape in a string is not supported");
            return raw;
        }
        i += used;
    }
    return qr_str_make(text, (size_t)(out - text));
}

static void lex_string(lexer *lex)
{
    size_t begin = lex->pos;
    char quote = byte_at(lex, begin);
    size_t end = begin + 1;
    while (end < lex->text.len && lex->text.data[end] != quote)
        end += lex->text.data[end] == '\\' ? 2 : 1;
    if (end >= lex->text.len) {
        qr_jcompile_fail(lex->compile, (uint32_t)begin, "unexpected char %c: the string has no end", quote);
        return;
    }
    qr_str raw = qr_str_make(lex->text.data + begin + 1, end - begin - 1);
    push(lex, QR_JT_STRING, begin, unescape(lex, raw, begin + 1));
    lex->pos = end + 1;
}

static bool lex_name(lexer *lex)
{
    size_t end = lex->pos;
    while (end < lex->text.len) {
        uint32_t codepoint = 0;
        size_t bytes = qr_jtext_decode(lex->text.data + end, lex->text.len - end, &codepoint);
        if (!qr_jtext_is_word(codepoint))
            break;
        end += bytes;
    }
    qr_str name = qr_str_make(lex->text.data + lex->pos, end - lex->pos);
    if (name.len == 0)
        return false;
    if (!qr_jtext_is(name, QR_JCLASS_IDENTIFIER))
        qr_jcompile_fail(lex->compile, (uint32_t)lex->pos, "Invalid character in identifier");
    push(lex, QR_JT_NAME, lex->pos, name);
    lex->pos = end;
    return true;
}

static void track_bracket(lexer *lex, char c)
{
    char closing = c == '(' ? ')' : c == '[' ? ']' : c == '{' ? '}' : '\0';
    if (closing != '\0') {
        if (lex->bracket_count == BRACKETS_MAX)
            qr_jcompile_fail(lex->compile, (uint32_t)lex->pos, "brackets nested deeper than %d",
                             BRACKETS_MAX);
        else
            lex->brackets[lex->bracket_count++] = closing;
    } else if (c == ')' || c == ']' || c == '}') {
        if (lex->bracket_count == 0)
            qr_jcompile_fail(lex->compile, (uint32_t)lex->pos, "unexpected '%c'", c);
        else if (lex->brackets[--lex->bracket_count] != c)
            qr_jcompile_fail(lex->compile, (uint32_t)lex->pos, "unexpected '%c', expected '%c'", c,
                             lex->brackets[lex->bracket_count]);
    }
}

static void lex_operator(lexer *lex)
{
    static const struct {
        char text[3];
        uint8_t type;
    } operators[] = {
        {"//", QR_JT_FLOORDIV}, {"**", QR_JT_POW},      {"==", QR_JT_EQ},    {"!=", QR_JT_NE},
        {">=", QR_JT_GE},       {"<=", QR_JT_LE},       {"+", QR_JT_ADD},    {"-", QR_JT_SUB},
        {"/", QR_JT_DIV},       {"*", QR_JT_MUL},       {"%", QR_JT_MOD},    {"~", QR_JT_TILDE},
        {"[", QR_JT_LBRACKET},  {"]", QR_JT_RBRACKET},  {"(", QR_JT_LPAREN}, {")", QR_JT_RPAREN},
        {"{", QR_JT_LBRACE},    {"}", QR_JT_RBRACE},    {">", QR_JT_GT},     {"<", QR_JT_LT},
        {"=", QR_JT_ASSIGN},    {".", QR_JT_DOT},       {":", QR_JT_COLON},  {"|", QR_JT_PIPE},
        {",", QR_JT_COMMA},     {";", QR_JT_SEMICOLON},
    };
    for (size_t i = 0; i < QR_COUNT_OF(operators); i++) {
        if (!at(lex, lex->pos, operators[i].text))
            continue;
        track_bracket(lex, operators[i].text[0]);
        push(lex, operators[i].type, lex->pos, qr_str_of(operators[i].text));
        lex->pos += strlen(operators[i].text);
        return;
    }
    uint32_t codepoint = 0;
    size_t bytes = qr_jtext_decode(lex->text.data + lex->pos, lex->text.len - lex->pos, &codepoint);
    qr_jcompile_fail(lex->compile, (uint32_t)lex->pos, "unexpected char '%.*s'", (int)bytes,
                     lex->text.data + lex->pos);
}

/* The end of the tag at lex->pos, when brackets are balanced. */
static bool lex_tag_end(lexer *lex, bool block)
{
    char sign = sign_at(lex, lex->pos);
    if (lex->bracket_count > 0 || (!block && sign == '+'))
        return false;
    size_t close = lex->pos + (sign != '\0');
    if (!at(lex, close, block ? "%}" : "}}"))
        return false;
    push(lex, block ? QR_JT_BLOCK_END : QR_JT_VARIABLE_END, lex->pos, QR_STR(""));
    if (block)
        lex->pos = after_close(lex, close, sign);
    else
        lex->pos = sign == '-' ? skip_space(lex, close + 2) : close + 2;
    return true;
}

static void lex_tag(lexer *lex, bool block)
{
    lex->bracket_count = 0;
    while (lex->pos < lex->text.len && !lex->compile->failed) {
        if (lex_tag_end(lex, block))
            return;
        size_t next = skip_space(lex, lex->pos);
        char c = byte_at(lex, next);
        if (next > lex->pos)
            lex->pos = next;
        else if (is_digit(c))
            lex_number(lex);
        else if (c == '"' || c == '\'')
            lex_string(lex);
        else if (!lex_name(lex))
            lex_operator(lex);
    }
}

/* The next "{{", "{%" or "{#" at or after pos, or the end. */
static size_t find_tag(const lexer *lex, size_t pos)
{
    while (pos < lex->text.len) {
        const char *brace = memchr(lex->text.data + pos, '{', lex->text.len - pos);
        if (brace == NULL)
            break;
        pos = (size_t)(brace - lex->text.data);
        char next = byte_at(lex, pos + 1);
        if (next == '{' || next == '%' || next == '#')
            return pos;
        pos++;
    }
    return lex->text.len;
}

static void lex_root(lexer *lex)
{
    size_t begin = lex->pos, tag = find_tag(lex, begin);
    if (tag == lex->text.len) {
        push(lex, QR_JT_DATA, begin, qr_str_make(lex->text.data + begin, tag - begin));
        lex->pos = tag;
        return;
    }
    char kind = byte_at(lex, tag + 1), sign = sign_at(lex, tag + 2);
    size_t inside = tag + 2 + (sign != '\0');
    push_data(lex, begin, tag, sign, kind != '{' && lex->compile->syntax.lstrip_blocks);
    lex->pos = inside;
    if (kind == '#') {
        lex_comment(lex, inside);
        return;
    }
    size_t raw = kind == '%' ? match_raw(lex, inside) : 0;
    if (raw > 0) {
        lex_raw(lex, raw);
        return;
    }
    push(lex, kind == '%' ? QR_JT_BLOCK_BEGIN : QR_JT_VARIABLE_BEGIN, tag, QR_STR(""));
    lex_tag(lex, kind == '%');
}

bool qr_jinja_lex(qr_jcompile *compile)
{
    lexer lex = {.compile = compile, .text = compile->jinja->source};
    size_t valid = qr_utf8_validate(lex.text.data, lex.text.len);
    if (valid < lex.text.len)
        qr_jcompile_fail(compile, (uint32_t)valid, "not valid UTF-8");
    while (lex.pos < lex.text.len && !compile->failed)
        lex_root(&lex);
    push(&lex, QR_JT_EOF, lex.text.len, QR_STR(""));
    return !compile->failed;
}
