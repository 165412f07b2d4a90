/* The public functions of output parsing, the sink, and the splitter of <think> blocks. */
#include "text/output_parser.h"

#include <string.h>

#include "base/mem.h"
#include "base/status.h"

enum { MEMORY_DEFAULT = 1 << 20 };
enum { THINK_START, THINK_AFTER_OPEN, THINK_INSIDE, THINK_AFTER_CLOSE, THINK_CONTENT };

/* How reasoning is marked, by the name of the option. */
static const struct {
    const char *name;
    const char *marks[2]; /* NULL: by the style of the calls, or not at all */
    bool open;            /* the answer is taken to begin inside */
} reasonings[] = {
    {"none", {NULL}, false},
    {"think", {"<think>", "</think>"}, false},
    {"deepseek_r1", {"<think>", "</think>"}, true},
    {"mistral", {"[THINK]", "[/THINK]"}, false},
    {"harmony", {NULL}, false},
};

/* ---- The sink -------------------------------------------------------------------------------------- */

void qr_output_emit(qr_output_parser *p, qr_output_kind kind, const char *text, size_t bytes)
{
    bool tool = kind >= QR_OUTPUT_TOOL_BEGIN;
    qr_output_delta *last = p->deltas.count > 0 ? &p->deltas.data[p->deltas.count - 1] : NULL;
    if (last != NULL && last->kind == kind && kind != QR_OUTPUT_TOOL_BEGIN && kind != QR_OUTPUT_TOOL_END) {
        last->bytes += bytes;
    } else {
        qr_output_delta delta = {.kind = kind, .tool_index = tool ? p->tool_count - 1 : -1, .bytes = bytes};
        QR_VEC_PUSH(&p->deltas, delta);
    }
    qr_buf_append(&p->text, text, bytes);
}

bool qr_output_knows_tool(const qr_output_parser *p, qr_str name)
{
    for (size_t i = 0; i < p->tool_name_count; i++)
        if (qr_str_equals(name, p->tool_names[i]))
            return true;
    return p->tool_name_count == 0;
}

void qr_output_begin_call(qr_output_parser *p, qr_str name)
{
    p->in_call = true;
    p->after_call = true;
    p->tool_count++;
    qr_buf_clear(&p->raw);
    qr_buf_clear(&p->space);
    qr_output_emit(p, QR_OUTPUT_TOOL_BEGIN, name.data, name.len);
}

void qr_output_end_call(qr_output_parser *p)
{
    if (p->in_call)
        qr_output_emit(p, QR_OUTPUT_TOOL_END, "", 0);
    p->in_call = false;
}

void qr_output_content(qr_output_parser *p, char c)
{
    if (qr_output_is_space(c)) {
        qr_buf_append_char(&p->space, c);
        return;
    }
    qr_output_emit(p, QR_OUTPUT_CONTENT, p->space.data, p->space.len);
    qr_buf_clear(&p->space);
    qr_output_byte(p, QR_OUTPUT_CONTENT, c);
}

/* ---- Marks ----------------------------------------------------------------------------------------- */

static bool may_become(const qr_mark_finder *finder, int *whole)
{
    *whole = -1;
    for (int i = 0; i < finder->count; i++) {
        size_t len = strlen(finder->marks[i]);
        if ((size_t)finder->held_bytes > len ||
            memcmp(finder->marks[i], finder->held, (size_t)finder->held_bytes) != 0)
            continue;
        if (len == (size_t)finder->held_bytes)
            *whole = i;
        return true;
    }
    return false;
}

int qr_mark_finder_feed(qr_mark_finder *finder, char c, void (*release)(qr_output_parser *, char),
                        qr_output_parser *p)
{
    int whole = -1;
    finder->held[finder->held_bytes++] = c;
    while (finder->held_bytes > 0 && !may_become(finder, &whole)) {
        char first = finder->held[0];
        memmove(finder->held, finder->held + 1, (size_t)--finder->held_bytes);
        release(p, first);
    }
    if (whole >= 0)
        finder->held_bytes = 0;
    return whole;
}

void qr_mark_finder_flush(qr_mark_finder *finder, void (*release)(qr_output_parser *, char),
                          qr_output_parser *p)
{
    int count = finder->held_bytes;
    char held[QR_OUTPUT_MARK_BYTES_MAX];
    memcpy(held, finder->held, (size_t)count);
    finder->held_bytes = 0;
    for (int i = 0; i < count; i++)
        release(p, held[i]);
}

/* ---- The machine of the style ---------------------------------------------------------------------- */

static void style_feed(qr_output_parser *p, char c)
{
    switch (p->style) {
    case QR_TOOLS_NONE: qr_output_byte(p, QR_OUTPUT_CONTENT, c); return;
    case QR_TOOLS_PYTHONIC: qr_tools_python_feed(p, c); return;
    case QR_TOOLS_HARMONY: qr_tools_harmony_feed(p, c); return;
    case QR_TOOLS_XML: qr_tools_xml_feed(p, c); return;
    case QR_TOOLS_HERMES:
    case QR_TOOLS_LLAMA3:
    case QR_TOOLS_MISTRAL:
    case QR_TOOLS_LIST:
    case QR_TOOLS_NAMED: qr_tools_json_feed(p, c); return;
    }
}

static void style_finish(qr_output_parser *p)
{
    if (p->style == QR_TOOLS_PYTHONIC)
        qr_tools_python_finish(p);
    else if (p->style == QR_TOOLS_HARMONY)
        qr_tools_harmony_finish(p);
    else if (p->style == QR_TOOLS_XML)
        qr_tools_xml_finish(p);
    else if (p->style != QR_TOOLS_NONE)
        qr_tools_json_finish(p);
    if (!p->after_call) /* white space at the end is content, unless it follows a call */
        qr_output_emit(p, QR_OUTPUT_CONTENT, p->space.data, p->space.len);
    qr_buf_clear(&p->space);
}

/* ---- <think> --------------------------------------------------------------------------------------- */

static void give_newlines(qr_output_parser *p)
{
    for (size_t i = 0; i < p->newlines.len; i++) {
        if (p->think_state == THINK_INSIDE)
            qr_output_byte(p, QR_OUTPUT_REASONING, p->newlines.data[i]);
        else
            style_feed(p, p->newlines.data[i]);
    }
    qr_buf_clear(&p->newlines);
}

/* A byte that belongs to no mark. */
static void think_byte(qr_output_parser *p, char c)
{
    switch (p->think_state) {
    case THINK_START: /* white space may come before the mark */
        if (qr_output_is_space(c)) {
            qr_buf_append_char(&p->newlines, c);
            return;
        }
        p->think_state = THINK_CONTENT;
        give_newlines(p);
        style_feed(p, c);
        return;
    case THINK_AFTER_OPEN:
        if (c == '\n')
            return;
        p->think_state = THINK_INSIDE;
        /* fall through */
    case THINK_INSIDE:
        if (c == '\n') {
            qr_buf_append_char(&p->newlines, c);
            return;
        }
        give_newlines(p);
        qr_output_byte(p, QR_OUTPUT_REASONING, c);
        return;
    case THINK_AFTER_CLOSE:
        if (qr_output_is_space(c))
            return;
        p->think_state = THINK_CONTENT;
        /* fall through */
    default: style_feed(p, c);
    }
}

/* A mark where it means nothing is text. */
static void think_text(qr_output_parser *p, const char *text)
{
    for (; *text != '\0'; text++)
        think_byte(p, *text);
}

static void think_feed(qr_output_parser *p, char c)
{
    if (p->think_state == THINK_CONTENT) {
        style_feed(p, c);
        return;
    }
    int mark = qr_mark_finder_feed(&p->think_marks, c, think_byte, p);
    if (p->think_state == THINK_CONTENT) {
        qr_mark_finder_flush(&p->think_marks, think_byte, p); /* content has no marks of ours */
        if (mark >= 0)
            think_text(p, p->think_marks.marks[mark]);
        return;
    }
    if (mark == 0 && (p->think_state == THINK_START || p->think_state == THINK_AFTER_OPEN)) {
        qr_buf_clear(&p->newlines); /* some models repeat the mark that the prompt ends in */
        p->think_state = THINK_AFTER_OPEN;
    } else if (mark == 1 && (p->think_state == THINK_INSIDE || p->think_state == THINK_AFTER_OPEN)) {
        qr_buf_clear(&p->newlines);
        p->think_state = THINK_AFTER_CLOSE;
    } else if (mark >= 0) {
        think_text(p, p->think_marks.marks[mark]);
    }
}

/* ---- Styles ---------------------------------------------------------------------------------------- */

/* The first name of a style is its own, the rest are what vLLM calls it. */
static const struct {
    const char *name;
    qr_tool_style style;
} tool_styles[] = {
    {"none", QR_TOOLS_NONE},          {"hermes", QR_TOOLS_HERMES},     {"llama3_json", QR_TOOLS_LLAMA3},
    {"llama4_json", QR_TOOLS_LLAMA3}, {"pythonic", QR_TOOLS_PYTHONIC}, {"llama4_pythonic", QR_TOOLS_PYTHONIC},
    {"mistral", QR_TOOLS_MISTRAL},    {"harmony", QR_TOOLS_HARMONY},   {"openai", QR_TOOLS_HARMONY},
    {"qwen3_coder", QR_TOOLS_XML},    {"qwen3_xml", QR_TOOLS_XML},
};
static const char *const reasoning_aliases[][2] = {
    {"qwen3", "think"},       {"glm45", "think"},      {"deepseek_v3", "think"},     {"granite4", "think"},
    {"nemotron_v3", "think"}, {"minimax_m2", "think"}, {"openai_gptoss", "harmony"},
};

static bool contains(const char *text, const char *what)
{
    return text != NULL && strstr(text, what) != NULL;
}

static qr_tool_style detect_style(const char *template)
{
    bool tool_call = contains(template, "<tool_call>"), function = contains(template, "<function=");
    if (contains(template, "<|channel|>") && contains(template, "<|message|>"))
        return QR_TOOLS_HARMONY;
    if (contains(template, "<arg_key>") || (function && !tool_call))
        return QR_TOOLS_NONE; /* GLM's and Functionary's ways, which are not read yet */
    if (tool_call)
        return function ? QR_TOOLS_XML : QR_TOOLS_HERMES;
    if (contains(template, "[TOOL_CALLS]"))
        return QR_TOOLS_MISTRAL;
    if (contains(template, "<|python_start|>") || contains(template, "[func_name1(params_name1"))
        return QR_TOOLS_PYTHONIC;
    if (contains(template, "<|python_tag|>") || contains(template, "\"parameters\": dictionary"))
        return QR_TOOLS_LLAMA3;
    return QR_TOOLS_NONE;
}

static const char *detect_reasoning(const char *template)
{
    if (detect_style(template) == QR_TOOLS_HARMONY)
        return "harmony";
    return contains(template, "</think>") ? "think" : contains(template, "[/THINK]") ? "mistral" : "none";
}

void qr_output_parser_detect(const char *chat_template, const char **reasoning, const char **tools)
{
    qr_tool_style style = detect_style(chat_template);
    *reasoning = detect_reasoning(chat_template);
    for (size_t i = QR_COUNT_OF(tool_styles); i-- > 0;)
        if (tool_styles[i].style == style)
            *tools = tool_styles[i].name;
}

/* Models that write lists of objects differ in one space. */
static const char *mistral_opening(const char *template)
{
    return contains(template, "[TOOL_CALLS] [") ? "[TOOL_CALLS] [{\"name\": " : "[TOOL_CALLS][{\"name\": ";
}

/* It ends where the models' own tokens would, so that what follows is what they have seen. */
static void make_opening(qr_output_parser *p, const char *template, bool named)
{
    qr_buf *out = &p->opening;
    const char *name = p->tool_name;
    bool mistral_list = p->style == QR_TOOLS_MISTRAL && !contains(template, "[ARGS]");
    switch (p->style) {
    case QR_TOOLS_HERMES: qr_buf_append_cstr(out, "<tool_call>\n{\"name\": "); break;
    case QR_TOOLS_LLAMA3: qr_buf_append_cstr(out, "{\"name\": "); break;
    case QR_TOOLS_MISTRAL:
        qr_buf_append_cstr(out, mistral_list ? mistral_opening(template) : "[TOOL_CALLS]");
        break;
    case QR_TOOLS_PYTHONIC: qr_buf_printf(out, "[%s%s", name, named ? "(" : ""); return;
    case QR_TOOLS_XML: qr_buf_printf(out, "<tool_call>\n<function=%s%s", name, named ? ">\n" : ""); return;
    case QR_TOOLS_HARMONY:
        qr_buf_printf(out, "<|channel|>commentary to=functions.%s%s", name,
                      named ? " <|constrain|>json<|message|>" : "");
        return;
    default: return;
    }
    if (p->style == QR_TOOLS_MISTRAL && !mistral_list) {
        qr_buf_printf(out, "%s%s", name, named ? "[ARGS]" : "");
    } else if (named) {
        qr_json_append_string(out, qr_str_of(name));
        qr_buf_printf(out, ", \"%s\":", p->style == QR_TOOLS_LLAMA3 ? "parameters" : "arguments");
    } else {
        qr_buf_append_char(out, '"');
    }
}

const char *qr_output_parser_opening(const qr_output_parser *p)
{
    return p->opening.data != NULL ? p->opening.data : "";
}

const char *qr_output_parser_mark(const qr_output_parser *p, size_t index)
{
    int count = 0;
    const char *const *marks = qr_tools_marks(p->style, &count);
    if (index < (size_t)count)
        return marks[index];
    index -= (size_t)count;
    return p->think && index < 2 ? p->think_marks.marks[index] : NULL;
}

/* ---- Options --------------------------------------------------------------------------------------- */

static qr_status parse_tools(const qr_output_parser_options *o, qr_output_parser *p, qr_error *err)
{
    const char *tools = o->tools != NULL ? o->tools : "none";
    if (strcmp(tools, "auto") == 0) {
        p->style = detect_style(o->chat_template);
        return QR_OK;
    }
    for (size_t i = 0; i < QR_COUNT_OF(tool_styles); i++) {
        if (strcmp(tools, tool_styles[i].name) == 0) {
            p->style = tool_styles[i].style;
            return QR_OK;
        }
    }
    return qr_fail(err, QR_INVALID_ARGUMENT, "output parser: tools: unknown style %.60s", tools);
}

static qr_status parse_reasoning(const qr_output_parser_options *o, qr_output_parser *p, qr_error *err)
{
    const char *reasoning = o->reasoning != NULL ? o->reasoning : "none";
    if (strcmp(reasoning, "auto") == 0)
        reasoning = detect_reasoning(o->chat_template);
    for (size_t i = 0; i < QR_COUNT_OF(reasoning_aliases); i++)
        if (strcmp(reasoning, reasoning_aliases[i][0]) == 0)
            reasoning = reasoning_aliases[i][1];
    size_t at = 0;
    while (at < QR_COUNT_OF(reasonings) && strcmp(reasoning, reasonings[at].name) != 0)
        at++;
    if (at == QR_COUNT_OF(reasonings))
        return qr_fail(err, QR_INVALID_ARGUMENT, "output parser: reasoning: unknown style %.60s", reasoning);
    if (strcmp(reasoning, "harmony") == 0) /* its channels are read together or not at all */
        p->style = QR_TOOLS_HARMONY;
    p->think = reasonings[at].marks[0] != NULL && p->style != QR_TOOLS_HARMONY;
    p->think_marks = (qr_mark_finder){.marks = reasonings[at].marks, .count = 2};
    bool open = o->reasoning_open || reasonings[at].open;
    p->think_state = !p->think ? THINK_CONTENT : open ? THINK_AFTER_OPEN : THINK_START;
    return QR_OK;
}

static qr_status parse_choice(const qr_output_parser_options *o, qr_output_parser *p, qr_error *err)
{
    const char *choice = o->tool_choice != NULL ? o->tool_choice : "auto";
    bool none = strcmp(choice, "none") == 0, required = strcmp(choice, "required") == 0;
    bool named = strcmp(choice, "named") == 0;
    if (!none && !required && !named && strcmp(choice, "auto") != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "output parser: tool_choice: unknown %.60s", choice);
    if (named && (o->tool_name == NULL || o->tool_name[0] == '\0'))
        return qr_fail(err, QR_INVALID_ARGUMENT, "output parser: tool_choice named: needs tool_name");
    p->keep_calls = !none;
    if (none && p->style != QR_TOOLS_HARMONY)
        p->style = QR_TOOLS_NONE;
    if (o->constrained && (required || named))
        p->style = named ? QR_TOOLS_NAMED : QR_TOOLS_LIST;
    p->tool_name = qr_strdup(named ? o->tool_name : "");
    if (named || required)
        make_opening(p, o->chat_template, named);
    return QR_OK;
}

static qr_status parse_schemas(const qr_output_parser_options *o, qr_output_parser *p, qr_error *err)
{
    if (o->tools_json == NULL || p->style != QR_TOOLS_XML)
        return QR_OK;
    qr_str text = qr_str_make(o->tools_json, o->tools_json_bytes);
    return qr_json_parse(text, &qr_json_limits_request, &p->xml.tools, err);
}

void qr_output_parser_options_init(qr_output_parser_options *options)
{
    *options = (qr_output_parser_options){.size = sizeof(*options)};
}

qr_status qr_output_parser_new(const qr_output_parser_options *options, qr_output_parser **out, qr_error *err)
{
    qr_output_parser_options o = {0};
    if (options != NULL)
        memcpy(&o, options, QR_MIN(options->size, sizeof(o)));
    qr_output_parser *p = qr_calloc(1, sizeof(*p));
    qr_status status = parse_tools(&o, p, err);
    if (status == QR_OK)
        status = parse_reasoning(&o, p, err);
    if (status == QR_OK)
        status = parse_choice(&o, p, err);
    if (status == QR_OK)
        status = parse_schemas(&o, p, err);
    if (status != QR_OK) {
        qr_output_parser_free(p);
        return status;
    }
    p->memory_max = o.memory_bytes_max > 0 ? o.memory_bytes_max : MEMORY_DEFAULT;
    p->tool_name_count = o.tool_name_count;
    p->tool_names = qr_calloc(o.tool_name_count + 1, sizeof(char *));
    for (size_t i = 0; i < o.tool_name_count; i++)
        p->tool_names[i] = qr_strdup(o.tool_names[i]);
    qr_tools_init(p);
    *out = p;
    return QR_OK;
}

void qr_output_parser_free(qr_output_parser *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; p->tool_names != NULL && i < p->tool_name_count; i++)
        qr_free(p->tool_names[i]);
    qr_free(p->tool_names);
    qr_free(p->tool_name);
    qr_buf *buffers[] = {&p->newlines,    &p->raw,      &p->space,    &p->header,    &p->opening,
                         &p->python.word, &p->xml.name, &p->xml.word, &p->xml.value, &p->text};
    qr_json_free(p->xml.tools);
    for (size_t i = 0; i < QR_COUNT_OF(buffers); i++)
        qr_buf_release(buffers[i]);
    qr_call_object_release(&p->object);
    QR_VEC_RELEASE(&p->deltas);
    qr_free(p);
}

bool qr_output_parser_prompt_opens(const char *prompt, size_t bytes)
{
    qr_str text = qr_str_make(prompt, bytes);
    while (text.len > 0 && qr_output_is_space(text.data[text.len - 1]))
        text.len--;
    return qr_str_ends(text, QR_STR("<think>")) || qr_str_ends(text, QR_STR("[THINK]"));
}

/* ---- Pushing --------------------------------------------------------------------------------------- */

static void start_batch(qr_output_parser *p)
{
    p->deltas.count = 0;
    qr_buf_clear(&p->text);
}

static void hand_out(qr_output_parser *p, const qr_output_delta **deltas, size_t *count)
{
    size_t at = 0, kept = 0;
    for (size_t i = 0; i < p->deltas.count; i++) {
        qr_output_delta delta = p->deltas.data[i];
        delta.text = p->text.data != NULL ? p->text.data + at : "";
        at += delta.bytes;
        bool empty = delta.bytes == 0 && delta.kind <= QR_OUTPUT_REASONING;
        if (!empty)
            p->deltas.data[kept++] = delta;
    }
    p->deltas.count = kept;
    *deltas = p->deltas.data;
    *count = kept;
}

static size_t held_bytes(const qr_output_parser *p)
{
    return p->newlines.len + p->raw.len + p->space.len + p->header.len + p->python.word.len +
           p->object.raw_key.len + p->object.name.len + p->object.arguments.len + p->xml.word.len +
           p->xml.value.len;
}

qr_status qr_output_parser_push(qr_output_parser *p, const char *text, size_t bytes,
                                const qr_output_delta **deltas, size_t *count, qr_error *err)
{
    start_batch(p);
    for (size_t i = 0; i < bytes && !p->failed; i++) {
        think_feed(p, text[i]);
        p->failed = held_bytes(p) > p->memory_max; /* after each byte: the same wherever the text was cut */
    }
    if (p->failed)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "output parser: more than %zu bytes held back", p->memory_max);
    hand_out(p, deltas, count);
    return QR_OK;
}

qr_status qr_output_parser_finish(qr_output_parser *p, const qr_output_delta **deltas, size_t *count,
                                  qr_error *err)
{
    if (p->failed)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "output parser: more than %zu bytes held back", p->memory_max);
    start_batch(p);
    qr_mark_finder_flush(&p->think_marks, think_byte, p);
    if (p->think_state == THINK_START)
        p->think_state = THINK_CONTENT;
    give_newlines(p);
    style_finish(p);
    hand_out(p, deltas, count);
    return QR_OK;
}

int32_t qr_output_parser_tool_count(const qr_output_parser *p) { return p->tool_count; }
