/* Calls of tagged parameters, as Qwen3-Coder writes them:
 *
 *     <tool_call> <function=name> <parameter=key> value </parameter> ... </function> </tool_call>
 *
 * A value is text between two newlines that belong to the tags. The tool's schema says which are no strings; such a
 * value is kept until it ends, and becomes a string after all when it is no JSON of that kind. */
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "text/output_parser.h"

enum { NAME_BYTES_MAX = 512 };
enum { X_CONTENT, X_TAGGED, X_NAME, X_PARAMETERS, X_KEY, X_STRING, X_VALUE };
enum { M_TOOL_CALL, M_END_TOOL_CALL, M_FUNCTION };
enum { B_PARAMETER, B_END_FUNCTION, B_END_TOOL_CALL };
enum { V_STRING, V_NUMBER, V_BOOLEAN, V_JSON };

static const char *const body_marks[] = {"<parameter=", "</function>", "</tool_call>"};
static const char *const value_marks[] = {"</parameter>"};

static void put(qr_output_parser *p, qr_str text)
{
    qr_output_emit(p, QR_OUTPUT_TOOL_ARGUMENTS, text.data, text.len);
}

/* ---- Types ----------------------------------------------------------------------------------------- */

static const qr_json *properties_of(const qr_json *tools, const qr_buf *name)
{
    for (size_t i = 0; i < qr_json_count(tools); i++) {
        const qr_json *tool = qr_json_at(tools, i), *function = qr_json_get(tool, "function");
        function = function != NULL ? function : tool;
        if (qr_str_equal(qr_json_string(qr_json_get(function, "name")), qr_buf_str(name)))
            return qr_json_get(qr_json_get(function, "parameters"), "properties");
    }
    return NULL;
}

static uint8_t kind_of_type(qr_str type)
{
    static const struct {
        const char *name;
        uint8_t kind;
    } rows[] = {{"integer", V_NUMBER}, {"number", V_NUMBER}, {"boolean", V_BOOLEAN},
                {"object", V_JSON},    {"array", V_JSON},    {"null", V_JSON}};
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++)
        if (qr_str_equals(type, rows[i].name))
            return rows[i].kind;
    return V_STRING;
}

/* Of several types any JSON will do, unless a string is one of them. */
static uint8_t kind_of_parameter(const qr_output_parser *p, qr_str key)
{
    const qr_json *schema = qr_json_find(properties_of(p->xml.tools, &p->xml.name), key);
    const qr_json *type = qr_json_get(schema, "type");
    if (type == NULL)
        return qr_json_get(schema, "anyOf") != NULL || qr_json_get(schema, "oneOf") != NULL ? V_JSON
                                                                                            : V_STRING;
    if (!qr_json_is(type, QR_JSON_ARRAY))
        return kind_of_type(qr_json_string(type));
    for (size_t i = 0; i < qr_json_count(type); i++)
        if (kind_of_type(qr_json_string(qr_json_at(type, i))) == V_STRING)
            return V_STRING;
    return V_JSON;
}

static qr_str trimmed(const qr_buf *value)
{
    qr_str text = value->len > 0 ? qr_buf_str(value) : qr_str_make("", 0);
    while (text.len > 0 && qr_output_is_space(text.data[0]))
        text = qr_str_make(text.data + 1, text.len - 1);
    while (text.len > 0 && qr_output_is_space(text.data[text.len - 1]))
        text.len--;
    return text;
}

static bool is_json(qr_str text)
{
    qr_json_checker checker;
    qr_json_step step = QR_JSON_STEP_MORE;
    qr_json_checker_init(&checker);
    for (size_t i = 0; i < text.len; i++) {
        if (step == QR_JSON_STEP_MORE)
            step = qr_json_checker_step(&checker, text.data[i]);
        else
            return false; /* the text was trimmed: nothing may come after the value */
        if (step == QR_JSON_STEP_BAD || step == QR_JSON_STEP_END_BEFORE)
            return false;
    }
    if (step == QR_JSON_STEP_MORE && text.len > 0) /* a number ends only with what follows it */
        step = qr_json_checker_step(&checker, ' ');
    return step == QR_JSON_STEP_END || step == QR_JSON_STEP_END_BEFORE;
}

static bool is_word(qr_str text, const char *word)
{
    return text.len == strlen(word) && strncasecmp(text.data, word, text.len) == 0;
}

/* ---- Values ---------------------------------------------------------------------------------------- */

static void put_string_byte(qr_output_parser *p, char c)
{
    if (c == '"' || c == '\\')
        qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, '\\');
    qr_output_put_argument(p, NULL, true, c);
}

/* The value's last newline belongs to the end tag, so a newline waits for what follows. */
static void string_byte(qr_output_parser *p, char c)
{
    qr_call_xml *x = &p->xml;
    bool begin = x->first;
    x->first = false;
    if (x->held_newline)
        put_string_byte(p, '\n');
    x->held_newline = false;
    if (c == '\n' && begin)
        return;
    if (c == '\n')
        x->held_newline = true;
    else
        put_string_byte(p, c);
}

static void value_byte(qr_output_parser *p, char c) { qr_buf_append_char(&p->xml.value, c); }

static void put_as_string(qr_output_parser *p, qr_str text)
{
    qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, '"');
    for (size_t i = 0; i < text.len; i++)
        put_string_byte(p, text.data[i]);
    qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, '"');
}

static void put_json(qr_output_parser *p, qr_str text)
{
    qr_json_checker checker;
    qr_json_checker_init(&checker);
    for (size_t i = 0; i < text.len; i++) {
        bool inside = qr_json_checker_in_string(&checker);
        (void)qr_json_checker_step(&checker, text.data[i]);
        qr_output_put_argument(p, NULL, inside, text.data[i]);
    }
}

static void put_value(qr_output_parser *p)
{
    qr_str text = trimmed(&p->xml.value);
    char first = text.len > 0 ? text.data[0] : '\0';
    bool number = first == '-' || (first >= '0' && first <= '9');
    if (is_word(text, "null") || is_word(text, "none"))
        put(p, QR_STR("null"));
    else if (is_word(text, "true") && p->xml.kind != V_NUMBER)
        put(p, QR_STR("true"));
    else if (is_word(text, "false") && p->xml.kind != V_NUMBER)
        put(p, QR_STR("false"));
    else if ((p->xml.kind == V_JSON || (p->xml.kind == V_NUMBER && number)) && is_json(text))
        put_json(p, text);
    else
        put_as_string(p, text);
    qr_buf_clear(&p->xml.value);
}

static void begin_value(qr_output_parser *p)
{
    qr_call_xml *x = &p->xml;
    qr_buf key = {0};
    qr_json_append_string(&key, qr_buf_str(&x->word));
    put(p, x->some ? QR_STR(", ") : QR_STR(""));
    put(p, qr_buf_str(&key));
    put(p, QR_STR(": "));
    qr_buf_release(&key);
    x->kind = kind_of_parameter(p, qr_buf_str(&x->word));
    x->some = x->first = true;
    x->held_newline = false;
    qr_buf_clear(&x->value);
    x->marks = (qr_mark_finder){.marks = value_marks, .count = 1};
    p->state = x->kind == V_STRING ? X_STRING : X_VALUE;
    if (x->kind == V_STRING)
        qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, '"');
}

static void begin_parameters(qr_output_parser *p)
{
    p->xml.marks = (qr_mark_finder){.marks = body_marks, .count = 3};
    p->state = X_PARAMETERS;
}

static void end_value(qr_output_parser *p)
{
    if (p->state == X_VALUE)
        put_value(p);
    else
        qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, '"');
    begin_parameters(p);
}

/* ---- The call -------------------------------------------------------------------------------------- */

static void give_raw(qr_output_parser *p)
{
    for (size_t i = 0; i < p->raw.len; i++)
        qr_output_content(p, p->raw.data[i]);
    qr_buf_clear(&p->raw);
    p->state = X_CONTENT;
}

static void content_byte(qr_output_parser *p, char c)
{
    if (p->state == X_TAGGED && qr_output_is_space(c)) {
        qr_buf_append_char(&p->raw, c);
        return;
    }
    if (p->state == X_TAGGED)
        give_raw(p);
    qr_output_content(p, c);
}

static void content_mark(qr_output_parser *p, int mark)
{
    if (mark == M_END_TOOL_CALL && p->after_call) {
        qr_buf_clear(&p->space);
        return;
    }
    if (p->state == X_TAGGED && mark != M_FUNCTION)
        give_raw(p);
    qr_buf_append_cstr(&p->raw, p->marks.marks[mark]);
    if (mark == M_END_TOOL_CALL) {
        give_raw(p);
        return;
    }
    p->strict = mark == M_FUNCTION && p->state != X_TAGGED; /* without its tag it may be text */
    p->state = mark == M_TOOL_CALL ? X_TAGGED : X_NAME;
    qr_buf_clear(&p->xml.word);
}

/* A name up to its ">". false: it is none. */
static bool name_byte(qr_output_parser *p, char c)
{
    qr_buf *word = &p->xml.word;
    if (c == '\n' || c == '<' || word->len > NAME_BYTES_MAX)
        return false;
    qr_buf_append_char(word, c);
    return true;
}

static void function_byte(qr_output_parser *p, char c)
{
    qr_call_xml *x = &p->xml;
    bool known = !p->strict || qr_output_knows_tool(p, qr_buf_str(&x->word));
    if (c == '>' && x->word.len > 0 && known) {
        qr_buf_clear(&x->name);
        qr_buf_append_str(&x->name, qr_buf_str(&x->word));
        qr_output_begin_call(p, qr_buf_str(&x->name));
        put(p, QR_STR("{"));
        x->some = false;
        begin_parameters(p);
        return;
    }
    qr_buf_append_char(&p->raw, c);
    if (c == '>' || !name_byte(p, c))
        give_raw(p);
}

static void end_call(qr_output_parser *p)
{
    put(p, QR_STR("}"));
    qr_output_end_call(p);
    p->state = X_CONTENT;
}

/* Between parameters nothing counts but the marks. */
static void ignore_byte(qr_output_parser *p, char c)
{
    (void)p;
    (void)c;
}

static void key_byte(qr_output_parser *p, char c)
{
    if (c == '>')
        begin_value(p);
    else if (!name_byte(p, c))
        begin_parameters(p);
}

static void parameters_mark(qr_output_parser *p, int mark)
{
    if (mark == B_PARAMETER) {
        qr_buf_clear(&p->xml.word);
        p->state = X_KEY;
    } else if (mark == B_END_FUNCTION || mark == B_END_TOOL_CALL) {
        end_call(p);
    }
}

void qr_tools_xml_feed(qr_output_parser *p, char c)
{
    qr_mark_finder *inner = &p->xml.marks;
    int mark = -1;
    switch (p->state) {
    case X_NAME: function_byte(p, c); return;
    case X_KEY: key_byte(p, c); return;
    case X_PARAMETERS: parameters_mark(p, qr_mark_finder_feed(inner, c, ignore_byte, p)); return;
    case X_STRING: mark = qr_mark_finder_feed(inner, c, string_byte, p); break;
    case X_VALUE: mark = qr_mark_finder_feed(inner, c, value_byte, p); break;
    default:
        mark = qr_mark_finder_feed(&p->marks, c, content_byte, p);
        if (mark >= 0)
            content_mark(p, mark);
        return;
    }
    if (mark >= 0)
        end_value(p);
}

/* A call that was cut ends as far as it got. */
void qr_tools_xml_finish(qr_output_parser *p)
{
    if (p->state == X_STRING) {
        qr_mark_finder_flush(&p->xml.marks, string_byte, p);
        if (p->xml.held_newline)
            put_string_byte(p, '\n');
    } else if (p->state == X_VALUE) {
        qr_mark_finder_flush(&p->xml.marks, value_byte, p);
        put(p, trimmed(&p->xml.value));
    }
    qr_mark_finder_flush(&p->marks, content_byte, p);
    if (p->in_call)
        qr_output_end_call(p);
    else
        give_raw(p);
    qr_buf_clear(&p->raw);
}
