/* Calls written in JSON: the byte-wise checker, the call object, and the machines of hermes, llama3_json, mistral and
 * of constrained output. */
#include <string.h>

#include "base/json_scan.h"
#include "base/mem.h"
#include "text/output_parser.h"

enum { DEPTH_MAX = 64, NAME_BYTES_MAX = 512 };

/* ---- One JSON value, byte by byte ------------------------------------------------------------------ */

enum {
    J_VALUE,
    J_FIRST_KEY,
    J_KEY,
    J_COLON,
    J_FIRST_ITEM,
    J_AFTER,
    J_STRING,
    J_ESCAPE,
    J_HEX,
    J_WORD,
    J_MINUS,
    J_ZERO,
    J_INT,
    J_POINT,
    J_FRACTION,
    J_E,
    J_E_SIGN,
    J_EXPONENT,
    J_DONE
};

void qr_json_checker_init(qr_json_checker *k) { *k = (qr_json_checker){.state = J_VALUE}; }

static qr_json_step close_value(qr_json_checker *k)
{
    k->state = k->depth == 0 ? J_DONE : J_AFTER;
    return k->depth == 0 ? QR_JSON_STEP_END : QR_JSON_STEP_MORE;
}

static qr_json_step open_container(qr_json_checker *k, bool object)
{
    if (k->depth == DEPTH_MAX)
        return QR_JSON_STEP_BAD;
    k->stack = k->stack << 1 | object;
    k->depth++;
    k->state = object ? J_FIRST_KEY : J_FIRST_ITEM;
    return QR_JSON_STEP_MORE;
}

static qr_json_step close_container(qr_json_checker *k, bool object)
{
    if (k->depth == 0 || (k->stack & 1) != object)
        return QR_JSON_STEP_BAD;
    k->stack >>= 1;
    k->depth--;
    return close_value(k);
}

static qr_json_step open_value(qr_json_checker *k, char c)
{
    k->key = false;
    switch (c) {
    case '{': return open_container(k, true);
    case '[': return open_container(k, false);
    case '"': k->state = J_STRING; return QR_JSON_STEP_MORE;
    case '-': k->state = J_MINUS; return QR_JSON_STEP_MORE;
    case '0': k->state = J_ZERO; return QR_JSON_STEP_MORE;
    case 't':
    case 'f':
    case 'n':
        k->state = J_WORD;
        k->word = c;
        k->literal = 1;
        return QR_JSON_STEP_MORE;
    default:
        if (c < '1' || c > '9')
            return QR_JSON_STEP_BAD;
        k->state = J_INT;
        return QR_JSON_STEP_MORE;
    }
}

static qr_json_step step_string(qr_json_checker *k, char c)
{
    if (k->state == J_HEX) {
        bool hex = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f');
        if (--k->digits == 0)
            k->state = J_STRING;
        return hex ? QR_JSON_STEP_MORE : QR_JSON_STEP_BAD;
    }
    if (k->state == J_ESCAPE) {
        k->state = c == 'u' ? J_HEX : J_STRING;
        k->digits = 4;
        return c == 'u' || (c != '\0' && strchr("\"\\/bfnrt", c) != NULL) ? QR_JSON_STEP_MORE
                                                                          : QR_JSON_STEP_BAD;
    }
    if (c == '\\')
        k->state = J_ESCAPE;
    if (c != '"')
        return c == '\0' ? QR_JSON_STEP_BAD : QR_JSON_STEP_MORE;
    if (k->key) {
        k->state = J_COLON;
        return QR_JSON_STEP_MORE;
    }
    return close_value(k);
}

static qr_json_step step_word(qr_json_checker *k, char c)
{
    const char *word = k->word == 't' ? "true" : k->word == 'f' ? "false" : "null";
    if (word[k->literal] != c)
        return QR_JSON_STEP_BAD;
    return word[++k->literal] == '\0' ? close_value(k) : QR_JSON_STEP_MORE;
}

static bool number_goes_on(qr_json_checker *k, char c)
{
    bool digit = c >= '0' && c <= '9', e = c == 'e' || c == 'E';
    switch (k->state) {
    case J_MINUS: k->state = c == '0' ? J_ZERO : J_INT; return digit;
    case J_ZERO: k->state = c == '.' ? J_POINT : J_E; return c == '.' || e;
    case J_INT: k->state = c == '.' ? J_POINT : e ? J_E : J_INT; return digit || c == '.' || e;
    case J_POINT: k->state = J_FRACTION; return digit;
    case J_FRACTION: k->state = e ? J_E : J_FRACTION; return digit || e;
    case J_E: k->state = digit ? J_EXPONENT : J_E_SIGN; return digit || c == '+' || c == '-';
    case J_E_SIGN: k->state = J_EXPONENT; return digit;
    default: return digit; /* J_EXPONENT */
    }
}

static qr_json_step step_structure(qr_json_checker *k, char c)
{
    if (qr_output_is_space(c))
        return QR_JSON_STEP_MORE;
    switch (k->state) {
    case J_FIRST_ITEM: return c == ']' ? close_container(k, false) : open_value(k, c);
    case J_FIRST_KEY:
        if (c == '}')
            return close_container(k, true);
        /* fall through */
    case J_KEY:
        k->state = J_STRING;
        k->key = true;
        return c == '"' ? QR_JSON_STEP_MORE : QR_JSON_STEP_BAD;
    case J_COLON: k->state = J_VALUE; return c == ':' ? QR_JSON_STEP_MORE : QR_JSON_STEP_BAD;
    case J_AFTER:
        if (c == '}' || c == ']')
            return close_container(k, c == '}');
        k->state = k->stack & 1 ? J_KEY : J_VALUE;
        return c == ',' ? QR_JSON_STEP_MORE : QR_JSON_STEP_BAD;
    default: return open_value(k, c);
    }
}

qr_json_step qr_json_checker_step(qr_json_checker *k, char c)
{
    uint8_t before = k->state;
    if (before >= J_STRING && before <= J_HEX)
        return step_string(k, c);
    if (before == J_WORD)
        return step_word(k, c);
    if (before < J_MINUS)
        return step_structure(k, c);
    if (before == J_DONE)
        return QR_JSON_STEP_BAD;
    if (number_goes_on(k, c))
        return QR_JSON_STEP_MORE;
    bool complete = before == J_ZERO || before == J_INT || before == J_FRACTION || before == J_EXPONENT;
    if (!complete)
        return QR_JSON_STEP_BAD;
    if (close_value(k) == QR_JSON_STEP_END)
        return QR_JSON_STEP_END_BEFORE;
    return step_structure(k, c);
}

/* ---- The call object ------------------------------------------------------------------------------- */

enum { O_OPEN, O_KEY, O_KEY_TEXT, O_COLON, O_VALUE, O_IN_VALUE, O_NEXT };
enum { K_OTHER, K_NAME, K_ARGUMENTS };

void qr_call_object_reset(qr_call_object *o)
{
    qr_buf key = o->raw_key, name = o->name, arguments = o->arguments;
    qr_buf_clear(&key);
    qr_buf_clear(&name);
    qr_buf_clear(&arguments);
    *o = (qr_call_object){.raw_key = key, .name = name, .arguments = arguments};
}

void qr_call_object_release(qr_call_object *o)
{
    qr_buf_release(&o->raw_key);
    qr_buf_release(&o->name);
    qr_buf_release(&o->arguments);
}

/* A byte of arguments as JSON has to have it: models write raw newlines into strings. */
void qr_output_put_argument(qr_output_parser *p, qr_buf *out, bool in_string, char c)
{
    static const char hex[] = "0123456789abcdef";
    char text[6] = {c};
    size_t len = 1;
    if (in_string && (unsigned char)c < 0x20) {
        char known = c == '\n' ? 'n' : c == '\t' ? 't' : c == '\r' ? 'r' : '\0';
        memcpy(text,
               known != '\0' ? (char[6]){'\\', known}
                             : (char[6]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]},
               6);
        len = known != '\0' ? 2 : 6;
    }
    if (out != NULL)
        qr_buf_append(out, text, len);
    else
        qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, text, len);
}

bool qr_json_checker_in_string(const qr_json_checker *k) { return k->state >= J_STRING && k->state <= J_HEX; }

static void unescape_in_place(qr_buf *buf)
{
    qr_buf out = {0};
    qr_buf_append_cstr(&out, "");
    qr_json_scan_unescape(qr_buf_str(buf), &out);
    qr_buf_release(buf);
    *buf = out;
}

static bool classify_key(const qr_output_parser *p, qr_call_object *o)
{
    static const char *const others[] = {"type", "id", "function", "description"};
    qr_str key = qr_buf_str(&o->raw_key);
    o->key = K_OTHER;
    if (qr_str_equals(key, "name") && !o->saw_name)
        o->key = K_NAME;
    else if ((qr_str_equals(key, "arguments") || qr_str_equals(key, "parameters")) && !o->saw_arguments)
        o->key = K_ARGUMENTS;
    if (o->key != K_OTHER || !p->strict)
        return true;
    for (size_t i = 0; i < QR_COUNT_OF(others);
         i++) /* an object with other members is an answer, not a call */
        if (qr_str_equals(key, others[i]))
            return true;
    return false;
}

static bool name_is_done(qr_output_parser *p, qr_call_object *o)
{
    unescape_in_place(&o->name);
    o->saw_name = true;
    if (o->name.len == 0 || (p->strict && !qr_output_knows_tool(p, qr_buf_str(&o->name))))
        return false;
    if (o->saw_arguments) {
        qr_output_begin_call(p, qr_buf_str(&o->name));
        qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, o->arguments.data, o->arguments.len);
    }
    return true;
}

static void arguments_are_done(qr_output_parser *p, qr_call_object *o)
{
    o->saw_arguments = true;
    if (!o->arguments_are_string)
        return;
    unescape_in_place(&o->arguments);
    if (o->arguments.len == 0)
        qr_buf_append_cstr(&o->arguments, "{}");
    if (o->saw_name) {
        qr_output_begin_call(p, qr_buf_str(&o->name));
        qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, o->arguments.data, o->arguments.len);
    }
}

static bool value_opens(qr_output_parser *p, qr_call_object *o, char c)
{
    qr_json_checker_init(&o->value);
    if (o->key == K_NAME)
        return c == '"';
    o->arguments_are_string = o->key == K_ARGUMENTS ? c == '"' : o->arguments_are_string;
    if (o->key == K_ARGUMENTS && o->saw_name && c != '"')
        qr_output_begin_call(p, qr_buf_str(&o->name));
    return true;
}

static void take_value_byte(qr_output_parser *p, qr_call_object *o, bool was_string, bool is_string, char c)
{
    if (o->key == K_NAME || (o->key == K_ARGUMENTS && o->arguments_are_string)) {
        if (was_string && is_string) /* without the quotes */
            qr_output_put_argument(p, o->key == K_NAME ? &o->name : &o->arguments, true, c);
    } else if (o->key == K_ARGUMENTS) {
        qr_output_put_argument(p, o->saw_name ? NULL : &o->arguments, was_string, c);
    }
}

static bool value_is_done(qr_output_parser *p, qr_call_object *o)
{
    o->state = O_NEXT;
    if (o->key == K_NAME)
        return name_is_done(p, o);
    if (o->key == K_ARGUMENTS)
        arguments_are_done(p, o);
    return true;
}

static qr_call_result close_object(qr_output_parser *p, qr_call_object *o)
{
    if (!o->saw_name || (p->strict && !o->saw_arguments && p->tool_name_count == 0))
        return QR_CALL_BAD;
    if (!p->in_call) {
        qr_output_begin_call(p, qr_buf_str(&o->name));
        qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, "{}", 2);
    }
    qr_output_end_call(p);
    return QR_CALL_END;
}

static qr_call_result feed_structure(qr_output_parser *p, qr_call_object *o, char c)
{
    if (qr_output_is_space(c))
        return QR_CALL_MORE;
    uint8_t state = o->state;
    if (state == O_OPEN) {
        o->state = O_KEY;
        return c == '{' ? QR_CALL_MORE : QR_CALL_BAD;
    }
    if (state == O_COLON) {
        o->state = O_VALUE;
        return c == ':' ? QR_CALL_MORE : QR_CALL_BAD;
    }
    if (state == O_NEXT && c == '}')
        return close_object(p, o);
    if (state == O_NEXT) {
        o->state = O_KEY;
        return c == ',' ? QR_CALL_MORE : QR_CALL_BAD;
    }
    qr_json_checker_init(&o->value);
    qr_buf_clear(&o->raw_key);
    o->state = O_KEY_TEXT;
    return c == '"' && qr_json_checker_step(&o->value, c) == QR_JSON_STEP_MORE ? QR_CALL_MORE : QR_CALL_BAD;
}

static qr_call_result feed_value(qr_output_parser *p, qr_call_object *o, char c)
{
    bool was_string = qr_json_checker_in_string(&o->value);
    qr_json_step step = qr_json_checker_step(&o->value, c);
    if (step == QR_JSON_STEP_BAD)
        return QR_CALL_BAD;
    if (step != QR_JSON_STEP_END_BEFORE)
        take_value_byte(p, o, was_string, qr_json_checker_in_string(&o->value), c);
    if (step == QR_JSON_STEP_MORE)
        return QR_CALL_MORE;
    if (!value_is_done(p, o))
        return QR_CALL_BAD;
    return step == QR_JSON_STEP_END ? QR_CALL_MORE : feed_structure(p, o, c);
}

qr_call_result qr_call_object_feed(qr_output_parser *p, char c)
{
    qr_call_object *o = &p->object;
    if (o->state == O_KEY_TEXT) {
        qr_json_step step = qr_json_checker_step(&o->value, c);
        if (step == QR_JSON_STEP_MORE)
            qr_buf_append_char(&o->raw_key, c);
        if (step != QR_JSON_STEP_END)
            return step == QR_JSON_STEP_MORE ? QR_CALL_MORE : QR_CALL_BAD;
        o->state = O_COLON;
        return classify_key(p, o) ? QR_CALL_MORE : QR_CALL_BAD;
    }
    if (o->state == O_VALUE && !qr_output_is_space(c)) {
        o->state = O_IN_VALUE;
        if (!value_opens(p, o, c))
            return QR_CALL_BAD;
    }
    return o->state == O_IN_VALUE ? feed_value(p, o, c) : feed_structure(p, o, c);
}

/* ---- The machines ---------------------------------------------------------------------------------- */

enum { T_START, T_CONTENT, T_TAGGED, T_CALL, T_AFTER, T_LIST, T_HEAD, T_NAME, T_ARGUMENTS };

const char *const *qr_tools_marks(qr_tool_style style, int *count)
{
    static const struct {
        int count;
        const char *marks[QR_OUTPUT_MARKS_MAX];
    } rows[] = {
        [QR_TOOLS_HERMES] = {2, {"<tool_call>", "</tool_call>"}},
        [QR_TOOLS_LLAMA3] = {1, {"<|python_tag|>"}},
        [QR_TOOLS_PYTHONIC] = {2, {"<|python_start|>", "<|python_end|>"}},
        [QR_TOOLS_MISTRAL] = {3, {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}},
        [QR_TOOLS_HARMONY] = {7,
                              {"<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>",
                               "<|constrain|>"}},
        [QR_TOOLS_XML] = {3, {"<tool_call>", "</tool_call>", "<function="}},
        [QR_TOOLS_NAMED] = {0, {NULL}},
    };
    *count = rows[style].count;
    return rows[style].marks;
}

void qr_tools_init(qr_output_parser *p)
{
    int count = 0;
    const char *const *marks = qr_tools_marks(p->style, &count);
    if (p->style == QR_TOOLS_MISTRAL)
        count = 1; /* the others stand inside a call */
    p->marks = (qr_mark_finder){.marks = marks, .count = count};
    p->state = p->style == QR_TOOLS_HERMES || p->style == QR_TOOLS_MISTRAL ? T_CONTENT : T_START;
}

/* What was held for a call is content after all. */
static void give_raw(qr_output_parser *p)
{
    for (size_t i = 0; i < p->raw.len; i++)
        qr_output_content(p, p->raw.data[i]);
    qr_buf_clear(&p->raw);
    p->state = T_CONTENT;
}

static void start_call(qr_output_parser *p, bool strict)
{
    qr_call_object_reset(&p->object);
    p->strict = strict;
    p->state = T_CALL;
}

static void plain_byte(qr_output_parser *p, char c)
{
    if (p->state != T_START || qr_output_is_space(c)) {
        qr_output_content(p, c);
        return;
    }
    bool list = p->style == QR_TOOLS_LIST;
    if (p->style == QR_TOOLS_NAMED) {
        qr_output_begin_call(p, qr_str_of(p->tool_name));
        qr_json_checker_init(&p->object.value);
        p->state = T_ARGUMENTS;
        qr_tools_json_feed(p, c);
    } else if (c == '{') {
        start_call(p, !list);
        qr_tools_json_feed(p, c);
    } else if (c == '[' && list) {
        qr_buf_append_char(&p->raw, c);
        p->state = T_LIST;
    } else {
        p->state = T_CONTENT;
        qr_output_content(p, c);
    }
}

static void found_mark(qr_output_parser *p, int mark)
{
    if (p->style == QR_TOOLS_HERMES && mark == 1) { /* the end of a call that is over, or just text */
        for (const char *c = p->marks.marks[1]; !p->after_call && *c != '\0'; c++)
            qr_output_content(p, *c);
        if (p->after_call)
            qr_buf_clear(&p->space);
        return;
    }
    qr_buf_append_cstr(&p->raw, p->marks.marks[mark]);
    qr_call_object_reset(&p->object);
    p->strict = false;
    p->state = p->style == QR_TOOLS_HERMES ? T_CALL : p->style == QR_TOOLS_MISTRAL ? T_HEAD : T_TAGGED;
}

static void call_byte(qr_output_parser *p, char c)
{
    if (!p->in_call)
        qr_buf_append_char(&p->raw, c);
    switch (qr_call_object_feed(p, c)) {
    case QR_CALL_MORE: return;
    case QR_CALL_END:
        p->state = p->style == QR_TOOLS_HERMES ? T_CONTENT : p->style == QR_TOOLS_LLAMA3 ? T_AFTER : T_LIST;
        return;
    case QR_CALL_BAD: break;
    }
    if (!p->in_call) {
        give_raw(p);
        return;
    }
    qr_output_end_call(p); /* it ends as far as it got */
    p->state = T_CONTENT;
    qr_tools_json_feed(p, c);
}

/* Between calls, or between a mark and its call: `opens` begins one, `passes` may stand between. */
static void between_byte(qr_output_parser *p, char c, const char *passes)
{
    qr_buf_append_char(&p->raw, c);
    if (qr_output_is_space(c) || (c != '\0' && strchr(passes, c) != NULL))
        return;
    if (c != '{') {
        give_raw(p);
        return;
    }
    p->raw.len--;
    start_call(p, p->strict);
    call_byte(p, c);
}

static void list_byte(qr_output_parser *p, char c)
{
    if (c == ']' && p->after_call) {
        qr_buf_clear(&p->raw);
        p->state = T_CONTENT;
        return;
    }
    between_byte(p, c, ",");
}

static void begin_named_call(qr_output_parser *p)
{
    qr_str head = qr_buf_str(&p->header), name = head;
    const char *bracket = memchr(head.data, '[', head.len);
    if (bracket != NULL) /* name[CALL_ID]id[ARGS] */
        name.len = (size_t)(bracket - head.data);
    while (name.len > 0 && qr_output_is_space(name.data[name.len - 1]))
        name.len--;
    qr_output_begin_call(p, name);
    qr_buf_clear(&p->header);
    qr_json_checker_init(&p->object.value);
    p->state = T_ARGUMENTS;
}

static bool is_name_byte(char c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || c == '-' ||
           c == '.' || c == ':';
}

static void head_byte(qr_output_parser *p, char c)
{
    if (p->state == T_HEAD && (c == '[' || qr_output_is_space(c))) {
        qr_buf_append_char(&p->raw, c);
        p->state = c == '[' ? T_LIST : T_HEAD;
        return;
    }
    if (p->state == T_NAME && c == '{') {
        begin_named_call(p);
        qr_tools_json_feed(p, c);
        return;
    }
    bool bracketed = p->header.len > 0 && memchr(p->header.data, '[', p->header.len) != NULL;
    bool fits = is_name_byte(c) ||
                (p->state == T_NAME && (c == '[' || qr_output_is_space(c) || (bracketed && c == ']')));
    qr_buf_append_char(&p->raw, c);
    qr_buf_append_char(&p->header, c);
    p->state = T_NAME;
    if (!fits || p->header.len > NAME_BYTES_MAX) {
        qr_buf_clear(&p->header);
        give_raw(p);
    }
}

static void arguments_byte(qr_output_parser *p, char c)
{
    bool was_string = qr_json_checker_in_string(&p->object.value);
    qr_json_step step = qr_json_checker_step(&p->object.value, c);
    if (step == QR_JSON_STEP_MORE || step == QR_JSON_STEP_END)
        qr_output_put_argument(p, NULL, was_string, c);
    if (step == QR_JSON_STEP_MORE)
        return;
    qr_output_end_call(p);
    p->state = T_CONTENT;
    if (step != QR_JSON_STEP_END)
        qr_tools_json_feed(p, c);
}

void qr_tools_json_feed(qr_output_parser *p, char c)
{
    switch (p->state) {
    case T_START:
    case T_CONTENT: {
        int mark = qr_mark_finder_feed(&p->marks, c, plain_byte, p);
        if (mark >= 0)
            found_mark(p, mark);
        return;
    }
    case T_CALL: call_byte(p, c); return;
    case T_TAGGED: between_byte(p, c, ""); return;
    case T_AFTER: between_byte(p, c, ";"); return;
    case T_LIST: list_byte(p, c); return;
    case T_HEAD:
    case T_NAME: head_byte(p, c); return;
    case T_ARGUMENTS: arguments_byte(p, c); return;
    default: return;
    }
}

void qr_tools_json_finish(qr_output_parser *p)
{
    qr_mark_finder_flush(&p->marks, plain_byte, p);
    if (p->in_call)
        qr_output_end_call(p);
    bool leftover = p->after_call && (p->state == T_AFTER || p->state == T_LIST);
    if (!leftover) /* a separator after the last call is nothing */
        give_raw(p);
    qr_buf_clear(&p->raw);
}
