/* Calls written in Python: [name(key=literal, ...), ...]. Literals are rewritten as JSON byte by byte; nothing is
 * evaluated, and what is no literal makes the text content (or ends the call where it stands). */
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/output_parser.h"

enum { DEPTH_MAX = 60, WORD_BYTES_MAX = 256 };
enum { P_START, P_CONTENT, P_TAGGED, P_CALLS, P_CALL };
enum { A_KEY, A_KEY_TEXT, A_VALUE, A_STRING, A_ESCAPE, A_HEX, A_WORD, A_AFTER, A_COLON };

void qr_call_python_reset(qr_call_python *y)
{
    qr_buf word = y->word;
    qr_buf_clear(&word);
    *y = (qr_call_python){.first = true, .word = word};
}

static bool is_identifier(char c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
}

static void put(qr_output_parser *p, const char *text)
{
    qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, text, strlen(text));
}
static void put_byte(qr_output_parser *p, char c) { qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, c); }

/* ---- Literals ---- */

static bool is_json_number(const char *text)
{
    const char *c = text + (*text == '-');
    size_t digits = strspn(c, "0123456789");
    if (digits == 0 || (digits > 1 && c[0] == '0'))
        return false;
    c += digits;
    if (*c == '.') {
        digits = strspn(++c, "0123456789");
        c += digits;
        if (digits == 0)
            return false;
    }
    if (*c == 'e' || *c == 'E') {
        c += 1 + (c[1] == '+' || c[1] == '-');
        digits = strspn(c, "0123456789");
        c += digits;
        if (digits == 0)
            return false;
    }
    return *c == '\0';
}

/* True, False, None and numbers (.5, 5., 1_000 as Python allows) become JSON. */
static bool put_word(qr_output_parser *p, qr_buf *word)
{
    static const char *const names[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"},
                                           {"true", "true"}, {"false", "false"}, {"null", "null"}};
    char number[WORD_BYTES_MAX * 2]; /* each byte of a word (half as many at most) may grow to three */
    size_t len = 0;
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        if (qr_str_equals(qr_buf_str(word), names[i][0])) {
            put(p, names[i][1]);
            return true;
        }
    }
    for (size_t i = 0; i < word->len; i++) {
        char c = word->data[i], before = i > 0 ? word->data[i - 1] : '\0',
             after = i + 1 < word->len ? word->data[i + 1] : '\0';
        bool digit_before = before >= '0' && before <= '9', digit_after = after >= '0' && after <= '9';
        if (c == '_' && digit_before && digit_after)
            continue;
        if (c == '.' && !digit_before)
            number[len++] = '0';
        number[len++] = c;
        if (c == '.' && !digit_after)
            number[len++] = '0';
    }
    number[len] = '\0';
    if (!is_json_number(number))
        return false;
    put(p, number);
    return true;
}

static void put_codepoint(qr_output_parser *p, uint32_t codepoint)
{
    char bytes[4];
    qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, bytes, qr_utf8_encode(codepoint, bytes));
}

static void put_string_byte(qr_output_parser *p, char c)
{
    static const char hex[] = "0123456789abcdef";
    if (c == '"' || c == '\\') {
        put_byte(p, '\\');
        put_byte(p, c);
    } else if (c == '\n') {
        put(p, "\\n");
    } else if ((unsigned char)c < 0x20) {
        put(p, (char[7]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], '\0'});
    } else {
        put_byte(p, c);
    }
}

static bool feed_escape(qr_output_parser *p, qr_call_python *y, char c)
{
    static const char from[] = "\\'\"nrtbf", to[] = "\\'\"\n\r\t\b\f";
    const char *hit = c != '\0' ? strchr(from, c) : NULL;
    y->state = A_STRING;
    if (hit != NULL) {
        char plain = to[hit - from];
        const char *known = plain == '\r'   ? "\\r"
                            : plain == '\t' ? "\\t"
                            : plain == '\b' ? "\\b"
                            : plain == '\f' ? "\\f"
                                            : NULL;
        if (known != NULL)
            put(p, known);
        else
            put_string_byte(p, plain);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        y->digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        y->codepoint = 0;
        y->state = A_HEX;
    } else if (c != '\n') { /* an unknown escape keeps its backslash in Python */
        put(p, "\\\\");
        put_string_byte(p, c);
    }
    return true;
}

static bool feed_hex(qr_output_parser *p, qr_call_python *y, char c)
{
    bool digit = c >= '0' && c <= '9', letter = (c | 32) >= 'a' && (c | 32) <= 'f';
    if (!digit && !letter)
        return false;
    y->codepoint = y->codepoint * 16 + (uint32_t)(digit ? c - '0' : (c | 32) - 'a' + 10);
    if (--y->digits > 0)
        return true;
    y->state = A_STRING;
    if (y->codepoint < 0x80)
        put_string_byte(p, (char)y->codepoint);
    else
        put_codepoint(p, y->codepoint);
    return true;
}

/* ---- The arguments of one call ---- */

static char top(const qr_call_python *y) { return y->depth > 0 ? y->stack[y->depth - 1] : '\0'; }

static bool open_container(qr_output_parser *p, qr_call_python *y, char c)
{
    if (y->depth == DEPTH_MAX)
        return false;
    y->stack[y->depth++] = c == '{' ? 'k' : c; /* k: a dict that waits for a key */
    put_byte(p, c == '{' ? '{' : '[');
    y->state = A_VALUE;
    y->first = true;
    return true;
}

static bool close_container(qr_output_parser *p, qr_call_python *y, char c)
{
    char open = top(y);
    bool fits =
        (c == ']' && open == '[') || (c == ')' && open == '(') || (c == '}' && (open == 'k' || open == '{'));
    if (!fits)
        return false;
    y->depth--;
    put_byte(p, c == '}' ? '}' : ']');
    y->state = A_AFTER;
    y->first = false;
    return true;
}

static void end_of_value(qr_call_python *y)
{
    y->state = A_AFTER;
    if (top(y) == 'k')
        y->state = A_COLON;
}

static bool feed_value_start(qr_output_parser *p, qr_call_python *y, char c)
{
    if (qr_output_is_space(c))
        return true;
    if ((c == ']' || c == ')' || c == '}') && y->depth > 0 && top(y) != '{')
        return close_container(p, y, c); /* empty, or after a last comma */
    if (y->depth > 0 && !y->first)
        put(p, ", ");
    y->first = false;
    bool key = top(y) == 'k';
    if (c == '"' || c == '\'') {
        y->quote = c;
        y->state = A_STRING;
        put_byte(p, '"');
        return true;
    }
    if (key) /* JSON has string keys only */
        return false;
    if (c == '[' || c == '{' || c == '(')
        return open_container(p, y, c);
    qr_buf_clear(&y->word);
    qr_buf_append_char(&y->word, c);
    y->state = A_WORD;
    return is_identifier(c) || c == '-' || c == '.';
}

static qr_call_result feed_after(qr_output_parser *p, qr_call_python *y, char c)
{
    if (qr_output_is_space(c))
        return QR_CALL_MORE;
    if (y->depth == 0) {
        if (c == ')') {
            put_byte(p, '}');
            return QR_CALL_END;
        }
        y->state = A_KEY;
        return c == ',' ? QR_CALL_MORE : QR_CALL_BAD;
    }
    if (c == ',') {
        y->state = A_VALUE;
        if (top(y) == '{')
            y->stack[y->depth - 1] = 'k';
        y->first = false;
        return QR_CALL_MORE;
    }
    return close_container(p, y, c) ? QR_CALL_MORE : QR_CALL_BAD;
}

static qr_call_result feed_key(qr_output_parser *p, qr_call_python *y, char c)
{
    if (y->state == A_KEY && qr_output_is_space(c))
        return QR_CALL_MORE;
    if (y->state == A_KEY && c == ')') {
        put_byte(p, '}');
        return QR_CALL_END;
    }
    if (is_identifier(c) && y->word.len < WORD_BYTES_MAX) {
        if (y->state == A_KEY)
            qr_buf_clear(&y->word);
        qr_buf_append_char(&y->word, c);
        y->state = A_KEY_TEXT;
        return QR_CALL_MORE;
    }
    if (y->state == A_KEY_TEXT && qr_output_is_space(c))
        return QR_CALL_MORE;
    if (y->state != A_KEY_TEXT || c != '=')
        return QR_CALL_BAD; /* positional arguments have no name to go by */
    put(p, y->first ? "\"" : ", \"");
    qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, y->word.data, y->word.len);
    put(p, "\": ");
    y->first = false;
    y->state = A_VALUE;
    return QR_CALL_MORE;
}

static qr_call_result feed_word(qr_output_parser *p, qr_call_python *y, char c)
{
    if ((is_identifier(c) || c == '.' || c == '-' || c == '+') && y->word.len < WORD_BYTES_MAX / 2) {
        qr_buf_append_char(&y->word, c);
        return QR_CALL_MORE;
    }
    if (!put_word(p, &y->word))
        return QR_CALL_BAD;
    end_of_value(y);
    return feed_after(p, y, c);
}

qr_call_result qr_call_python_feed(qr_output_parser *p, char c)
{
    qr_call_python *y = &p->python;
    bool ok = true;
    switch (y->state) {
    case A_KEY:
    case A_KEY_TEXT: return feed_key(p, y, c);
    case A_VALUE: ok = feed_value_start(p, y, c); break;
    case A_STRING:
        if (c == '\\') {
            y->state = A_ESCAPE;
        } else if (c == y->quote) {
            put_byte(p, '"');
            end_of_value(y);
        } else {
            put_string_byte(p, c);
        }
        break;
    case A_ESCAPE: ok = feed_escape(p, y, c); break;
    case A_HEX: ok = feed_hex(p, y, c); break;
    case A_WORD: return feed_word(p, y, c);
    case A_COLON:
        if (qr_output_is_space(c))
            break;
        ok = c == ':';
        put(p, ": ");
        y->stack[y->depth - 1] = '{';
        y->first = true; /* no comma before the value */
        y->state = A_VALUE;
        break;
    default: return feed_after(p, y, c);
    }
    return ok ? QR_CALL_MORE : QR_CALL_BAD;
}

/* ---- The list of calls ---- */

static void give_raw(qr_output_parser *p)
{
    for (size_t i = 0; i < p->raw.len; i++)
        qr_output_content(p, p->raw.data[i]);
    qr_buf_clear(&p->raw);
    qr_buf_clear(&p->header);
    p->state = P_CONTENT;
}

static void calls_byte(qr_output_parser *p, char c)
{
    qr_str name = qr_buf_str(&p->header);
    if (c == ']' && p->after_call && name.len == 0) {
        qr_buf_clear(&p->raw);
        p->state = P_CONTENT;
        return;
    }
    qr_buf_append_char(&p->raw, c);
    if ((is_identifier(c) || c == '.') && name.len < WORD_BYTES_MAX) {
        qr_buf_append_char(&p->header, c);
    } else if (c == '(' && name.len > 0 && qr_output_knows_tool(p, name)) {
        qr_output_begin_call(p, name);
        put_byte(p, '{');
        qr_buf_clear(&p->header);
        qr_call_python_reset(&p->python);
        p->state = P_CALL;
    } else if (name.len > 0 || !(qr_output_is_space(c) || (c == ',' && p->after_call))) {
        give_raw(p);
    }
}

static void plain_byte(qr_output_parser *p, char c)
{
    bool waits = p->state == P_START || p->state == P_TAGGED;
    if (waits && c == '[') {
        qr_buf_append_char(&p->raw, c);
        p->state = P_CALLS;
        return;
    }
    if (waits && !qr_output_is_space(c))
        give_raw(p);
    qr_output_content(p, c);
}

void qr_tools_python_feed(qr_output_parser *p, char c)
{
    if (p->state == P_CALLS) {
        calls_byte(p, c);
        return;
    }
    if (p->state == P_CALL) {
        qr_call_result result = qr_call_python_feed(p, c);
        if (result == QR_CALL_MORE)
            return;
        qr_output_end_call(p);
        p->state = result == QR_CALL_END ? P_CALLS : P_CONTENT;
        if (result == QR_CALL_BAD)
            qr_tools_python_feed(p, c);
        return;
    }
    int mark = qr_mark_finder_feed(&p->marks, c, plain_byte, p);
    if (mark == 0) {
        qr_buf_append_cstr(&p->raw, p->marks.marks[0]);
        p->state = P_TAGGED;
    } else if (mark == 1) {
        qr_buf_clear(&p->space);
    }
}

void qr_tools_python_finish(qr_output_parser *p)
{
    qr_mark_finder_flush(&p->marks, plain_byte, p);
    qr_output_end_call(p);
    if (p->state != P_CALL && !(p->state == P_CALLS && p->after_call && p->header.len == 0))
        give_raw(p);
    qr_buf_clear(&p->raw);
}
