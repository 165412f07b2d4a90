/* The fields of a conversation: messages, tools, tool_choice; and the JSON that the template is rendered from. */
#include <string.h>

#include "base/mem.h"
#include "server/openai_fields.h"

#define TOOL_NAME_BYTES_MAX 256

/* ---- Tools ----------------------------------------------------------------------------------------- */

static qr_str tool_name(const qr_json *tool)
{
    return qr_json_string(qr_json_get(qr_json_get(tool, "function"), "name"));
}

bool qr_field_tools(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, name, "a list of tools", value);
    for (size_t i = 0; i < qr_json_count(value); i++) {
        qr_str function = tool_name(qr_json_at(value, i));
        if (function.len == 0 || function.len > TOOL_NAME_BYTES_MAX)
            return qr_api_fail(
                reader->error, 400, NULL, name,
                "tools[%zu]: expected {\"type\":\"function\",\"function\":{\"name\":...}} with a "
                "name of 1 to %d bytes",
                i, TOOL_NAME_BYTES_MAX);
    }
    reader->params->tools = qr_json_count(value) > 0 ? value : NULL;
    return true;
}

bool qr_field_tool_choice(qr_field_reader *reader, const char *name, const qr_json *value)
{
    static const struct {
        const char *name;
        qr_tool_choice choice;
    } rows[] = {
        {"auto", QR_TOOL_CHOICE_AUTO}, {"none", QR_TOOL_CHOICE_NONE}, {"required", QR_TOOL_CHOICE_REQUIRED}};
    qr_api_params *params = reader->params;
    qr_str word = qr_json_string(value);
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        params->tool_choice = rows[i].choice;
        if (qr_str_equals(word, rows[i].name))
            return true;
    }
    params->tool_choice = QR_TOOL_CHOICE_NAMED;
    params->tool_choice_name = tool_name(value);
    return params->tool_choice_name.len > 0 ||
           qr_api_fail(reader->error, 400, NULL, name,
                       "tool_choice: expected \"none\", \"auto\", \"required\" or "
                       "{\"type\":\"function\",\"function\":{\"name\":...}}");
}

/* It goes into the prompt among the model's own marks. */
static bool is_plain_name(qr_str name)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/";
    return name.len == 0 || strspn(name.data, allowed) == name.len;
}

static bool settle_tools(qr_field_reader *reader)
{
    const qr_api_params *params = reader->params;
    if (params->tool_choice <= QR_TOOL_CHOICE_NONE)
        return true;
    if (params->tools == NULL)
        return qr_api_fail(reader->error, 400, NULL, "tool_choice",
                           "tool_choice: needs tools to choose from");
    if (!is_plain_name(params->tool_choice_name))
        return qr_api_fail(reader->error, 400, NULL, "tool_choice",
                           "tool_choice: a name may have letters, digits and _-.:/ when it is chosen");
    for (size_t i = 0; i < qr_json_count(params->tools); i++)
        if (qr_str_equal(tool_name(qr_json_at(params->tools, i)), params->tool_choice_name))
            return true;
    return params->tool_choice == QR_TOOL_CHOICE_REQUIRED ||
           qr_api_fail(reader->error, 400, NULL, "tool_choice",
                       "tool_choice: \"%.100s\" is none of the tools", params->tool_choice_name.data);
}

size_t qr_api_tool_names(const qr_api_params *params, const char *const **out)
{
    size_t count = qr_json_count(params->tools);
    const char **names = qr_calloc(count + 1, sizeof(*names));
    for (size_t i = 0; i < count; i++)
        names[i] = tool_name(qr_json_at(params->tools, i)).data;
    *out = names;
    return count;
}

/* ---- Messages -------------------------------------------------------------------------------------- */

static bool read_message(qr_field_reader *reader, const qr_json *message, size_t index)
{
    static const char *const roles[] = {"system", "developer", "user",   "assistant",
                                        "tool",   "function",  "ipython"};
    if (!qr_json_is(message, QR_JSON_OBJECT))
        return qr_api_fail(reader->error, 400, NULL, "messages", "messages[%zu]: expected an object, got %s",
                           index, qr_json_type_name(qr_json_typeof(message)));
    qr_str role = qr_json_string(qr_json_get(message, "role"));
    if (role.len == 0 || role.len > 64)
        return qr_api_fail(reader->error, 400, NULL, "messages",
                           "messages[%zu]: role: expected a string such as \"%s\"", index, roles[2]);
    const qr_json *content = qr_json_get(message, "content");
    if (content == NULL || qr_json_is(content, QR_JSON_NULL)) {
        if (!qr_str_equals(role, "assistant"))
            return qr_api_fail(reader->error, 400, NULL, "messages", "messages[%zu]: content is missing",
                               index);
    } else if (!qr_json_is(content, QR_JSON_STRING) && !qr_json_is(content, QR_JSON_ARRAY)) {
        return qr_api_fail(reader->error, 400, NULL, "messages",
                           "messages[%zu]: content: expected a string or a list of parts, got %s", index,
                           qr_json_type_name(qr_json_typeof(content)));
    }
    return true;
}

bool qr_field_messages(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_ARRAY))
        return qr_field_wrong_type(reader, name, "a list of messages", value);
    if (qr_json_count(value) == 0)
        return qr_api_fail(reader->error, 400, NULL, name, "messages: the list is empty");
    for (size_t i = 0; i < qr_json_count(value); i++) {
        if (!read_message(reader, qr_json_at(value, i), i))
            return false;
    }
    reader->params->messages = value;
    return true;
}

bool qr_field_template_kwargs(qr_field_reader *reader, const char *name, const qr_json *value)
{
    if (!qr_json_is(value, QR_JSON_OBJECT))
        return qr_field_wrong_type(reader, name, "an object", value);
    reader->params->template_kwargs = value;
    return qr_api_check_kwargs(value, reader->error);
}

bool qr_field_settle_chat(qr_field_reader *reader)
{
    const qr_api_params *params = reader->params;
    if (params->messages == NULL)
        return qr_api_fail(reader->error, 400, NULL, "messages", "messages is missing");
    if (params->continue_final_message && params->add_generation_prompt)
        return qr_api_fail(reader->error, 400, NULL, "continue_final_message",
                           "continue_final_message: needs add_generation_prompt: false");
    if (params->continue_final_message && params->tool_choice >= QR_TOOL_CHOICE_REQUIRED)
        return qr_api_fail(reader->error, 400, "not_served", "tool_choice",
                           "tool_choice: a final message that goes on cannot begin with a call");
    return settle_tools(reader);
}

/* ---- The chat template's variables ----------------------------------------------------------------- */

bool qr_api_check_kwargs(const qr_json *kwargs, qr_api_error *error)
{
    static const char *const reserved[] = {
        "messages",      "tools",        "documents", "add_generation_prompt", "continue_final_message",
        "chat_template", "conversation", "tokenize"};
    for (size_t i = 0; i < QR_COUNT_OF(reserved); i++) {
        if (qr_json_get(kwargs, reserved[i]) != NULL)
            return qr_api_fail(error, 400, NULL, "chat_template_kwargs",
                               "chat_template_kwargs: \"%s\" may not be set there", reserved[i]);
    }
    return true;
}

static void append_member(qr_buf *out, const char *name, const qr_json *value)
{
    if (value == NULL)
        return;
    qr_buf_printf(out, ",\"%s\":", name);
    qr_json_write(value, 0, out);
}

static void append_kwargs(qr_buf *out, const qr_json *kwargs, const qr_json *but_not_in, bool *first)
{
    if (kwargs == NULL)
        return;
    for (void *it = qr_json_iter(kwargs); it != NULL; it = qr_json_iter_next(kwargs, it)) {
        const char *key = qr_json_iter_key(it).data;
        if (but_not_in != NULL && qr_json_get(but_not_in, key) != NULL)
            continue;
        if (!*first)
            qr_buf_append_char(out, ',');
        *first = false;
        qr_json_append_string(out, qr_json_iter_key(it));
        qr_buf_append_char(out, ':');
        qr_json_write(qr_json_iter_value(it), 0, out);
    }
}

void qr_api_chat_json(const qr_api_params *params, const qr_json *default_kwargs, bool allow_special,
                      qr_str answer_prefix, qr_buf *out)
{
    qr_buf_append_cstr(out, "{\"messages\":");
    qr_json_write(params->messages, 0, out);
    append_member(out, "tools", params->tool_choice == QR_TOOL_CHOICE_NONE ? NULL : params->tools);
    append_member(out, "documents", params->documents);
    qr_buf_printf(out, ",\"add_generation_prompt\":%s,\"continue_final_message\":%s",
                  params->add_generation_prompt ? "true" : "false",
                  params->continue_final_message ? "true" : "false");
    if (allow_special)
        qr_buf_append_cstr(out, ",\"allow_special_in_content\":true");
    if (answer_prefix.len > 0) {
        qr_buf_append_cstr(out, ",\"answer_prefix\":");
        qr_json_append_string(out, answer_prefix);
    }
    bool first = true;
    qr_buf_append_cstr(out, ",\"chat_template_kwargs\":{");
    append_kwargs(out, params->template_kwargs, NULL, &first);
    append_kwargs(out, default_kwargs, params->template_kwargs, &first);
    if (params->reasoning_effort.len > 0 &&
        qr_json_get(params->template_kwargs, "reasoning_effort") == NULL &&
        qr_json_get(default_kwargs, "reasoning_effort") == NULL) {
        qr_buf_append_cstr(out, first ? "\"reasoning_effort\":" : ",\"reasoning_effort\":");
        qr_json_append_string(out, params->reasoning_effort);
    }
    qr_buf_append_cstr(out, "}}");
}
