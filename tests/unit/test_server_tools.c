// links: qr_server qr_text
/* Tool calls and reasoning over the fake engine: what a script says comes out in OpenAI's and vLLM's shapes, and a
 * stream says the same as the whole reply, however the text was cut into events. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server_rig.h"

#define HERMES "<tool_call> is how; {\"name\"}"
#define TOOLS                                                                                            \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":" \
    "\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}}}}},{"    \
    "\"type\":"                                                                                          \
    "\"function\",\"function\":{\"name\":\"now\"}}]"

/* The server, with its template and what it is to say. */
static void start(rig *r, const char *template, const char *tools, const char *reasoning)
{
    qr_server_options options;
    rig_options(&options);
    fake_template = template;
    if (tools != NULL)
        options.tool_call_parser = tools;
    if (reasoning != NULL)
        options.reasoning_parser = reasoning;
    rig_start(r, &options);
}

static void stop(rig *r)
{
    rig_stop(r);
    fake_template = fake_script = fake_prompt_end = NULL;
    fake_event_bytes = 0;
}

static char *chat(rig *r, const char *fields, bool stream, int status)
{
    qr_buf body = {0};
    qr_buf_printf(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":500%s%s%s}",
                  fields[0] != '\0' ? "," : "", fields,
                  stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    char *reply = rig_request(r, "POST", "/v1/chat/completions", "", body.data);
    if (rig_status(reply) != status)
        fail_msg("wanted %d for %s\ngot %s", status, body.data, reply);
    qr_buf_release(&body);
    return reply;
}

static void append(qr_buf *out, const qr_json *value) { qr_buf_append_str(out, qr_json_string(value)); }

/* One line of all that a client sees: "r(reasoning) c(content) name(arguments)... finish usage". Ids are checked. */
typedef struct seen {
    qr_buf reasoning, content, calls, finish, usage;
    char ids[8][40];
    int64_t count;
} seen;

static void see_id(seen *s, int64_t index, const qr_json *id)
{
    qr_str text = qr_json_string(id);
    assert_true(text.len > 0 && text.len < sizeof(s->ids[0]) && index < 8);
    for (int64_t i = 0; i < index; i++)
        assert_string_not_equal(s->ids[i], text.data);
    memcpy(s->ids[index], text.data, text.len + 1);
}

static void see_message(seen *s, const qr_json *message, bool stream)
{
    const qr_json *calls = qr_json_get(message, "tool_calls");
    qr_str old = qr_json_string(qr_json_get(message, "reasoning_content"));
    assert_true(qr_str_equal(old, qr_json_string(qr_json_get(message, "reasoning"))));
    qr_buf_append_str(&s->reasoning, old);
    append(&s->content, qr_json_get(message, "content"));
    for (size_t i = 0; i < qr_json_count(calls); i++) {
        const qr_json *call = qr_json_at(calls, i), *function = qr_json_get(call, "function");
        const qr_json *name = qr_json_get(function, "name");
        int64_t index = stream ? qr_json_int(qr_json_get(call, "index"), -1) : (int64_t)i;
        if (name != NULL) { /* begins: has id and type, once, and in order */
            assert_int_equal(index, s->count++);
            see_id(s, index, qr_json_get(call, "id"));
            assert_true(qr_str_equals(qr_json_string(qr_json_get(call, "type")), "function"));
            qr_buf_append_char(&s->calls, ' ');
            append(&s->calls, name);
        }
        assert_int_equal(index, s->count - 1); /* arguments go to the last call */
        append(&s->calls, qr_json_get(function, "arguments"));
    }
}

static char *line_of(seen *s)
{
    qr_buf out = {0};
    qr_buf_printf(&out, "r(%s) c(%s)%s %s %s", s->reasoning.len > 0 ? s->reasoning.data : "",
                  s->content.len > 0 ? s->content.data : "", s->calls.len > 0 ? s->calls.data : "",
                  s->finish.len > 0 ? s->finish.data : "", s->usage.len > 0 ? s->usage.data : "");
    qr_buf *all[] = {&s->reasoning, &s->content, &s->calls, &s->finish, &s->usage};
    for (size_t i = 0; i < QR_COUNT_OF(all); i++)
        qr_buf_release(all[i]);
    return out.data;
}

static qr_json *parsed(const char *text, size_t len)
{
    qr_json *json = NULL;
    assert_int_equal(qr_json_parse(qr_str_make(text, len), &qr_json_limits_request, &json, NULL), QR_OK);
    return json;
}

static void see_choice(seen *s, const qr_json *reply, const char *member, bool stream)
{
    const qr_json *choice = qr_json_at(qr_json_get(reply, "choices"), 0);
    if (choice != NULL)
        see_message(s, qr_json_get(choice, member), stream);
    append(&s->finish, qr_json_get(choice, "finish_reason"));
    const qr_json *completion = qr_json_get(qr_json_get(reply, "usage"), "completion_tokens");
    if (completion != NULL)
        qr_buf_printf(&s->usage, "%lld", (long long)qr_json_int(completion, -1));
}

static char *whole(rig *r, const char *fields)
{
    seen s = {0};
    char *reply = chat(r, fields, false, 200);
    qr_json *json = parsed(rig_body(reply), strlen(rig_body(reply)));
    see_choice(&s, json, "message", false);
    qr_json_free(json);
    free(reply);
    return line_of(&s);
}

static char *streamed(rig *r, const char *fields)
{
    seen s = {0};
    char *reply = chat(r, fields, true, 200), *stream = rig_dechunk(rig_body(reply));
    for (const char *at = stream; (at = strstr(at, "data: {")) != NULL; at++) {
        qr_json *chunk = parsed(at + 6, (size_t)(strstr(at, "\n\n") - at - 6));
        see_choice(&s, chunk, "delta", true);
        qr_json_free(chunk);
    }
    assert_non_null(strstr(stream, "data: [DONE]"));
    free(stream);
    free(reply);
    return line_of(&s);
}

/* Whole, then streamed with events of every size up to a dozen bytes, and all in one. */
static void expect(rig *r, const char *script, const char *fields, const char *want)
{
    fake_script = script;
    for (size_t bytes = 0; bytes <= 12; bytes++) {
        fake_event_bytes = bytes;
        char *got = bytes == 0 ? whole(r, fields) : streamed(r, fields);
        if (strncmp(got, want, strlen(want)) != 0)
            fail_msg("%s\n  events of %zu bytes\n  want %s\n  got  %s", script, bytes, want, got);
        free(got);
    }
    char *first = whole(r, fields), *second = streamed(r, fields); /* events as they come; usage too */
    assert_string_equal(first, second);
    free(first);
    free(second);
}

static void hermes_calls_reasoning_and_content_come_apart(void **state)
{
    rig r;
    (void)state;
    start(&r, HERMES " </think>", NULL, NULL);
    expect(&r,
           "<think>\nThe user wants w\xC3\xA9"
           "ather.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", "
           "\"arguments\": {\"city\": \"Z\xC3\xBCrich \\\"x\\\"\", \"days\": "
           "3}}\n</tool_call>\n<tool_call>\n{\"name\": "
           "\"now\", \"arguments\": {}}\n</tool_call>",
           TOOLS,
           "r(The user wants w\xC3\xA9"
           "ather.) c(Let me look.) get_weather{\"city\": \"Z\xC3\xBCrich \\\"x\\\"\", "
           "\"days\": 3} now{} tool_calls 2");
    expect(&r, "<think>a</think><tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>", "",
           "r(a) c(<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>) stop");
    expect(&r, "<think>a</think>b<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
           TOOLS ",\"tool_choice\":\"none\"",
           "r(a) c(b<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>) stop");
    expect(&r,
           "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call><tool_call>{\"name\": \"now\", "
           "\"arguments\": {\"a\": 1}}</tool_call>",
           TOOLS ",\"parallel_tool_calls\":false", "r() c() now{} tool_calls");
    expect(&r, "<think>secret</think>open", TOOLS ",\"include_reasoning\":false", "r() c(open) stop");
    expect(&r, "just text <tool", TOOLS ",\"tool_choice\":\"auto\"", "r() c(just text <tool) stop");
    fake_prompt_end = "<think>\n";
    expect(&r, "inside\n</think>\n\nout", TOOLS, "r(inside) c(out) stop");
    stop(&r);
}

static void every_style_is_served(void **state)
{
    static const struct {
        const char *style, *script, *want;
    } rows[] = {
        {"qwen3_coder",
         "Ok.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\n "
         "\"York\"\n</parameter>\n<parameter=days>\n2\n"
         "</parameter>\n</function>\n</tool_call>",
         "r() c(Ok.) get_weather{\"city\": \"New\\n \\\"York\\\"\", \"days\": 2} tool_calls"},
        {"llama3_json", "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}",
         "r() c() get_weather{\"city\": \"Oslo\"} tool_calls"},
        {"llama3_json", "{\"name\": \"unknown\", \"parameters\": {}}",
         "r() c({\"name\": \"unknown\", \"parameters\": {}}) stop"},
        {"pythonic", "[get_weather(city='Oslo', days=1), now()]",
         "r() c() get_weather{\"city\": \"Oslo\", \"days\": 1} now{} tool_calls"},
        {"mistral", "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]now[ARGS]{}",
         "r() c() get_weather{\"city\": \"Oslo\"} now{} tool_calls"},
        {"harmony",
         "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
         "<|constrain|>json<|message|>{}",
         "r(Hm.) c() now{} tool_calls"},
        {"openai", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi!",
         "r(Hm.) c(Hi!) stop"},
        {"none", "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
         "r() c(<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>) stop"},
    };
    (void)state;
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        rig r;
        start(&r, NULL, rows[i].style, "none");
        expect(&r, rows[i].script, TOOLS, rows[i].want);
        stop(&r);
    }
}

/* The prompt ends in the opening of a call, which the reply's text goes on from. */
static void a_forced_choice_opens_the_call(void **state)
{
    rig r;
    (void)state;
    start(&r, HERMES, NULL, NULL);
    expect(&r, "get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
           TOOLS ",\"tool_choice\":\"required\"", "r() c() get_weather{\"city\": \"Rome\"} tool_calls");
    expect(&r, " {\"city\": \"Rome\"}}\n</tool_call>",
           TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"get_weather\"}}",
           "r() c() get_weather{\"city\": \"Rome\"} stop");
    /* what never becomes a call is content, with its opening */
    expect(&r, "\nno", TOOLS ",\"tool_choice\":\"required\"", "r() c(<tool_call>\n{\"name\": \"\nno) stop");
    char *reply = chat(&r, TOOLS ",\"tool_choice\":\"required\",\"return_token_ids\":true", false, 200);
    qr_json *json = parsed(rig_body(reply), strlen(rig_body(reply)));
    const qr_json *ids = qr_json_get(json, "prompt_token_ids");
    assert_int_equal(qr_json_count(ids), strlen("hi<tool_call>\n{\"name\": \""));
    qr_json_free(json);
    free(reply);
    free(chat(&r, "\"tool_choice\":\"required\"", false, 400));
    free(chat(&r, TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"nope\"}}", false,
              400));
    free(chat(&r,
              "\"tools\":[{\"function\":{\"name\":\"<|im_end|>\"}}],\"tool_choice\":{\"type\":\"function\","
              "\"function\":{\"name\":\"<|im_end|>\"}}",
              false, 400));
    free(chat(&r, TOOLS ",\"tool_choice\":\"sometimes\"", false, 400));
    free(chat(&r, TOOLS ",\"tool_choice\":{\"type\":\"allowed_tools\"}", false, 400));
    stop(&r);
    start(&r, "a template without tools", NULL, NULL);
    reply = chat(&r, TOOLS ",\"tool_choice\":\"required\"", false, 400);
    assert_non_null(strstr(reply, "--tool-call-parser"));
    free(reply);
    free(chat(&r, TOOLS ",\"tool_choice\":\"auto\"", false, 200));
    stop(&r);
}

static void a_cut_call_says_length_and_logprobs_go_along(void **state)
{
    rig r;
    (void)state;
    start(&r, HERMES, NULL, NULL);
    fake_script = "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"bcdefg\"}}</tool_call>";
    expect(&r, fake_script, TOOLS ",\"max_completion_tokens\":50", "r() c() now{\"a\": \"bcd length 50");
    for (fake_event_bytes = 0; fake_event_bytes < 4; fake_event_bytes++) {
        char *reply = chat(&r, TOOLS ",\"logprobs\":true,\"return_token_ids\":true", true, 200);
        char *stream = rig_dechunk(rig_body(reply));
        size_t entries = 0, ids = 0;
        for (const char *at = stream; (at = strstr(at, "data: {")) != NULL; at++) {
            qr_json *chunk = parsed(at + 6, (size_t)(strstr(at, "\n\n") - at - 6));
            const qr_json *choice = qr_json_at(qr_json_get(chunk, "choices"), 0);
            entries += qr_json_count(qr_json_get(qr_json_get(choice, "logprobs"), "content"));
            ids += qr_json_count(qr_json_get(choice, "token_ids"));
            qr_json_free(chunk);
        }
        assert_int_equal(entries, strlen(fake_script));
        assert_int_equal(ids, strlen(fake_script));
        free(stream);
        free(reply);
    }
    stop(&r);
}

static void shapes_of_a_call_are_openais(void **state)
{
    rig r;
    (void)state;
    start(&r, HERMES, NULL, NULL);
    fake_script = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    char *reply = chat(&r, TOOLS, false, 200);
    const char *message = strstr(reply, "\"message\":");
    assert_non_null(message);
    static const char begin[] = "\"message\":{\"role\":\"assistant\",\"content\":null,\"refusal\":null,"
                                "\"tool_calls\":[{\"id\":\"call_";
    assert_memory_equal(message, begin, sizeof(begin) - 1);
    assert_non_null(
        strstr(message, "\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"{}\"}}]}"));
    free(reply);
    reply = chat(&r, TOOLS, true, 200);
    char *stream = rig_dechunk(rig_body(reply));
    assert_non_null(strstr(stream, "\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_"));
    assert_non_null(
        strstr(stream, "\",\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":\"\"}}]},"));
    assert_non_null(
        strstr(stream, "\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{"));
    assert_non_null(strstr(stream, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"tool_calls\""));
    free(stream);
    free(reply);
    stop(&r);
}

static void ask(rig *r, const char *path, const char *body, int status, const char *want)
{
    char *reply = rig_request(r, "POST", path, "", body);
    if (rig_status(reply) != status || strstr(rig_body(reply), want) == NULL)
        fail_msg("%s %s\nwanted %d %s\ngot %s", path, body, status, want, reply);
    free(reply);
}

/* The routes that show a prompt show the one that would run, the opening of a forced call included. */
static void prompts_can_be_looked_at(void **state)
{
    rig r;
    (void)state;
    start(&r, HERMES, NULL, NULL);
    fake_prompt_end = "#";
#define HI "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
    ask(&r, "/apply-template", HI "}", 200, "{\"prompt\":\"hi#\"}");
    ask(&r, "/apply-template", HI "," TOOLS ",\"tool_choice\":\"required\"}", 200,
        "{\"prompt\":\"hi#<tool_call>\\n{\\\"name\\\": \\\"\"}");
    ask(&r, "/tokenize", HI "}", 200, "{\"count\":3,\"max_model_len\":4096,\"tokens\":[104,105,35],");
    ask(&r, "/v1/chat/completions/render", HI ",\"model\":\"fake\"}", 200,
        "\"model\":\"fake\",\"token_ids\":[104,105,35]}");
    ask(&r, "/v1/completions/render", "{\"prompt\":[\"a\",\"bc\"]}", 200, "\"token_ids\":[98,99]}]");
    ask(&r, "/v1/completions/render", "{\"prompt\":[7,8]}", 200, "\"token_ids\":[7,8]}]");
    ask(&r, "/apply-template", "{}", 400, "messages is missing");
    ask(&r, "/apply-template", "[]", 400, "not a JSON object");
    ask(&r, "/v1/chat/completions/render", HI ",\"model\":\"other\"}", 404, "model_not_found");
    ask(&r, "/v1/completions/render", "{\"prompt\":[-1]}", 400, "prompt");
    ask(&r, "/tokenize", HI "," TOOLS ",\"tool_choice\":7}", 400, "tool_choice");
#undef HI
    stop(&r);
}

static void an_unknown_parser_is_refused_at_the_start(void **state)
{
    (void)state;
    qr_server *server = NULL;
    qr_error err = {0};
    qr_server_options options;
    rig_options(&options);
    options.tool_call_parser = "hermez";
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "unknown style hermez"));
    rig_options(&options);
    options.reasoning_parser = "loud";
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hermes_calls_reasoning_and_content_come_apart),
        cmocka_unit_test(every_style_is_served),
        cmocka_unit_test(a_forced_choice_opens_the_call),
        cmocka_unit_test(a_cut_call_says_length_and_logprobs_go_along),
        cmocka_unit_test(shapes_of_a_call_are_openais),
        cmocka_unit_test(prompts_can_be_looked_at),
        cmocka_unit_test(an_unknown_parser_is_refused_at_the_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
