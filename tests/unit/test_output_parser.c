// links: qr_text qr_base
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "quire.h"

/* What came out, in one line: "r(reasoning) c(content) name(arguments) ...", pieces of a kind joined. */
typedef struct outcome {
    qr_buf reasoning, content, calls;
    int open_call;
} outcome;

static void take(outcome *o, const qr_output_delta *deltas, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const qr_output_delta *d = &deltas[i];
        switch (d->kind) {
        case QR_OUTPUT_CONTENT:
            assert_int_equal(d->tool_index, -1);
            qr_buf_append(&o->content, d->text, d->bytes);
            break;
        case QR_OUTPUT_REASONING: qr_buf_append(&o->reasoning, d->text, d->bytes); break;
        case QR_OUTPUT_TOOL_BEGIN:
            assert_false(o->open_call);
            o->open_call = 1;
            qr_buf_printf(&o->calls, " %d:%.*s", d->tool_index, (int)d->bytes, d->text);
            break;
        case QR_OUTPUT_TOOL_ARGUMENTS:
            assert_true(o->open_call);
            qr_buf_append(&o->calls, d->text, d->bytes);
            break;
        case QR_OUTPUT_TOOL_END:
            assert_true(o->open_call);
            o->open_call = 0;
            qr_buf_append_cstr(&o->calls, ";");
            break;
        }
    }
}

static qr_buf finish(qr_output_parser *parser, outcome *o)
{
    const qr_output_delta *deltas = NULL;
    size_t count = 0;
    qr_error err = {0};
    qr_buf line = {0};
    assert_int_equal(qr_output_parser_finish(parser, &deltas, &count, &err), QR_OK);
    take(o, deltas, count);
    assert_false(o->open_call);
    qr_output_parser_free(parser);
    qr_buf_printf(&line, "r(%s) c(%s)%s", o->reasoning.len > 0 ? o->reasoning.data : "",
                  o->content.len > 0 ? o->content.data : "", o->calls.len > 0 ? o->calls.data : "");
    qr_buf_release(&o->reasoning);
    qr_buf_release(&o->content);
    qr_buf_release(&o->calls);
    return line;
}

static qr_output_parser *open_parser(const qr_output_parser_options *options)
{
    qr_error err = {0};
    qr_output_parser *parser = NULL;
    if (qr_output_parser_new(options, &parser, &err) != QR_OK)
        fail_msg("%s", err.message);
    return parser;
}

static void push(qr_output_parser *parser, outcome *o, const char *text, size_t bytes)
{
    const qr_output_delta *deltas = NULL;
    size_t count = 0;
    assert_int_equal(qr_output_parser_push(parser, text, bytes, &deltas, &count, NULL), QR_OK);
    take(o, deltas, count);
}

/* cuts: bit i set: the text is cut after byte i (for the first 64 bytes); step: and after every `step` bytes. */
static qr_buf parse(const qr_output_parser_options *options, const char *text, size_t first, size_t step)
{
    qr_output_parser *parser = open_parser(options);
    outcome o = {0};
    size_t len = strlen(text), at = QR_MIN(first, len);
    push(parser, &o, text, at);
    while (at < len) {
        size_t piece = QR_MIN(step, len - at);
        push(parser, &o, text + at, piece);
        at += piece;
    }
    return finish(parser, &o);
}

static void expect(const qr_output_parser_options *options, const char *text, const char *want)
{
    size_t len = strlen(text);
    for (size_t step = 1; step <= 7; step++) {
        for (size_t first = 0; first <= len;
             first++) { /* every place for the first cut, then pieces of every size */
            qr_buf got = parse(options, text, first, step == 7 ? len + 1 : step);
            if (strcmp(got.data, want) != 0)
                fail_msg("%s\n  first %zu, step %zu\n  want %s\n  got  %s", text, first, step, want,
                         got.data);
            qr_buf_release(&got);
        }
    }
}

static qr_output_parser_options options_for(const char *reasoning, const char *tools)
{
    qr_output_parser_options options;
    qr_output_parser_options_init(&options);
    options.reasoning = reasoning;
    options.tools = tools;
    return options;
}

static void reasoning_is_split_off(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("think", "none");
    expect(&o, "<think>\nLet me see.\n\nYes.\n</think>\n\nThe answer.\n",
           "r(Let me see.\n\nYes.) c(The answer.\n)");
    expect(&o, "  <think></think>x", "r() c(x)");
    expect(&o, "No thought. <think>not at the start</think>",
           "r() c(No thought. <think>not at the start</think>)");
    expect(&o, "<think>cut </thi", "r(cut </thi) c()");
    expect(&o, "<thin", "r() c(<thin)");
    expect(&o, " \n ", "r() c( \n )");
    expect(&o, "<think>a<think>b</think></think>c", "r(a<think>b) c(</think>c)");
    o.reasoning_open = true;
    expect(&o, "\nfrom the prompt\n</think>\nok", "r(from the prompt) c(ok)");
    expect(&o, "never closed\n", "r(never closed\n) c()");
    expect(&o, "<think>\nrepeated</think>x", "r(repeated) c(x)");
    o = options_for("deepseek_r1", "none");
    expect(&o, "no mark at the start\n</think>\n\nx", "r(no mark at the start) c(x)");
    o = options_for("mistral", "none");
    expect(&o, "[THINK]a <think>[/THINK]b", "r(a <think>) c(b)");
    o = options_for("none", "none");
    expect(&o, "<think>a</think> b ", "r() c(<think>a</think> b )");
    assert_true(qr_output_parser_prompt_opens("x<think>\n", 9));
    assert_false(qr_output_parser_prompt_opens("x<think>\n\n</think>\n\n", 20));
    assert_false(qr_output_parser_prompt_opens("", 0));
}

static void hermes_calls_are_parsed(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("think", "hermes");
    expect(&o,
           "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Z\xc3\xbcrich\", \"n\": [1, "
           "-2.5e3, null]}}\n</tool_call>",
           "r() c() 0:get_weather{\"city\": \"Z\xc3\xbcrich\", \"n\": [1, -2.5e3, null]};");
    expect(&o,
           "<think>hm</think>\n\nOf course.\n<tool_call>\n{\"arguments\": {\"a\":1}, \"name\": "
           "\"f\"}\n</tool_call>\n"
           "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>\n",
           "r(hm) c(Of course.) 0:f{\"a\":1}; 1:g{};");
    expect(&o, "a < b and <tool_calls> are text ", "r() c(a < b and <tool_calls> are text )");
    expect(&o, "<tool_call>not json</tool_call>", "r() c(<tool_call>not json</tool_call>)");
    expect(&o, "<tool_call>{\"name\": \"f\"}</tool_call>", "r() c() 0:f{};");
    expect(&o, "<tool_call>{\"nome\": \"f\"}</tool_call> x",
           "r() c(<tool_call>{\"nome\": \"f\"}</tool_call> x)");
    expect(&o, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\\\u00e9\\\"}\"}</tool_call>",
           "r() c() 0:f{\"a\": \"\\u00e9\"};");
    expect(&o, "<tool_call>{\"name\": \"f\\u0031\", \"arguments\": {\"t\": \"a\nb\tc\"}}</tool_call>",
           "r() c() 0:f1{\"t\": \"a\\nb\\tc\"};");
    expect(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"cut\": \"he", "r() c() 0:f{\"cut\": \"he;");
    expect(&o, "<tool_call>{\"name\": \"f\", \"argu", "r() c(<tool_call>{\"name\": \"f\", \"argu)");
    expect(&o, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 01}}</tool_call>",
           "r() c(1}}) 0:f{\"a\": 0;");
    expect(&o, "<tool_call>{\"name\": \"f\", \"id\": 7, \"arguments\": 5}</tool_call>\n\n done",
           "r() c(\n\n done) 0:f5;");
    o.tool_choice = "none";
    expect(&o, "<tool_call>{\"name\": \"f\"}</tool_call>", "r() c(<tool_call>{\"name\": \"f\"}</tool_call>)");
}

static void llama3_json_calls_are_parsed(void **state)
{
    (void)state;
    static const char *const names[] = {"f", "get_time"};
    qr_output_parser_options o = options_for("none", "llama3_json");
    o.tool_names = names;
    o.tool_name_count = 2;
    expect(&o, "{\"name\": \"f\", \"parameters\": {\"x\": \"1\"}}", "r() c() 0:f{\"x\": \"1\"};");
    expect(&o,
           " {\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_time\", "
           "\"parameters\": {\"z\": []}} ",
           "r() c() 0:f{}; 1:get_time{\"z\": []};");
    expect(&o, "<|python_tag|>{\"name\": \"other\", \"parameters\": {}}", "r() c() 0:other{};");
    expect(&o, "{\"name\": \"Bob\", \"age\": 3}", "r() c({\"name\": \"Bob\", \"age\": 3})");
    expect(&o, "{\"name\": \"f\", \"age\": 3}", "r() c({\"name\": \"f\", \"age\": 3})");
    expect(&o, "{\"answer\": {\"name\": \"f\"}}", "r() c({\"answer\": {\"name\": \"f\"}})");
    expect(&o, "{\"name\": \"get_time\"}", "r() c() 0:get_time{};");
    expect(&o, "The object {\"name\": \"f\", \"parameters\": {}} is text",
           "r() c(The object {\"name\": \"f\", \"parameters\": {}} is text)");
    expect(&o, "<|python_tag|>print(1)", "r() c(<|python_tag|>print(1))");
    expect(&o, "{\"name\": \"f\", \"parameters\": {}} and text", "r() c( and text) 0:f{};");
}

static void mistral_calls_are_parsed(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("none", "mistral");
    expect(&o,
           "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [\"]\"]}, \"id\": \"abc\"}, {\"name\": "
           "\"g\", \"arguments\": {}}]",
           "r() c() 0:f{\"a\": [\"]\"]}; 1:g{};");
    expect(&o,
           "Sure. [TOOL_CALLS]get_weather{\"city\": \"Paris\"}[TOOL_CALLS]add[ARGS]{\"a\": "
           "1}[TOOL_CALLS]x[CALL_ID]c1[ARGS]{}",
           "r() c(Sure.) 0:get_weather{\"city\": \"Paris\"}; 1:add{\"a\": 1}; 2:x{};");
    expect(&o, "[TOOL_CALLS]what is this?", "r() c([TOOL_CALLS]what is this?)");
    expect(&o, "[TOOL_CALLS][1]", "r() c([TOOL_CALLS][1])");
    expect(&o, "[TOOL_CALL] [INST] text", "r() c([TOOL_CALL] [INST] text)");
    expect(&o, "[TOOL_CALLS]f{\"a\": 1", "r() c() 0:f{\"a\": 1;");
    expect(&o, "[TOOL_CALLS]", "r() c([TOOL_CALLS])");
}

static void pythonic_calls_are_rewritten_as_json(void **state)
{
    (void)state;
    static const char *const names[] = {"f", "get_weather", "ns.g"};
    qr_output_parser_options o = options_for("none", "pythonic");
    o.tool_names = names;
    o.tool_name_count = 3;
    expect(&o, "[get_weather(city='San Francisco', metric=\"celsius\"), f()]",
           "r() c() 0:get_weather{\"city\": \"San Francisco\", \"metric\": \"celsius\"}; 1:f{};");
    expect(&o, "[f(a=[1, -2.5, (True, None,), [],], b={'k': {\"x\": .5}, 'l': []}, c=1_000, d=[] , e = 5.)]",
           "r() c() 0:f{\"a\": [1, -2.5, [true, null], []], \"b\": {\"k\": {\"x\": 0.5}, \"l\": []}, \"c\": "
           "1000, \"d\": [], \"e\": 5.0};");
    expect(&o, "[f(s='it\\'s \"q\" \\n \\x41\\u00e9\\q')]",
           "r() c() 0:f{\"s\": \"it's \\\"q\\\" \\n A\xc3\xa9\\\\q\"};");
    expect(&o, "<|python_start|>[ns.g(x=1)]<|python_end|>", "r() c() 0:ns.g{\"x\": 1};");
    expect(&o, "[1, 2, 3] is a list", "r() c([1, 2, 3] is a list)");
    expect(&o, "[link](http://x)", "r() c([link](http://x))");
    expect(&o, "[unknown(x=1)]", "r() c([unknown(x=1)])");
    expect(&o, "[f(__import__('os').system('x'))]", "r() c(('os').system('x'))]) 0:f{;");
    expect(&o, "[f(a=open('x'))]", "r() c(('x'))]) 0:f{\"a\": ;");
    expect(&o, "[f(a={1: 2})]", "r() c(1: 2})]) 0:f{\"a\": {;");
    expect(&o, "[f(a='cut", "r() c() 0:f{\"a\": \"cut;");
    expect(&o, "Plain [f(a=1)]", "r() c(Plain [f(a=1)])");
}

static void tagged_parameters_become_json(void **state)
{
    (void)state;
    static const char tools[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"s\":{"
        "\"type\":"
        "\"string\"},\"n\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"l\":{\"type\":\"array\"},"
        "\"x\":{"
        "\"type\":[\"number\",\"null\"]},\"y\":{\"type\":[\"string\",\"null\"]},\"z\":{\"anyOf\":[]}}}}}]";
    static const char *const names[] = {"f", "g"};
    qr_output_parser_options o = options_for("think", "qwen3_coder");
    o.tools_json = tools;
    o.tools_json_bytes = sizeof(tools) - 1;
    o.tool_names = names;
    o.tool_name_count = 2;
    expect(&o,
           "<think>hm</think>\n\nSure.\n<tool_call>\n<function=f>\n<parameter=s>\nline \"1\"\n\n\tl\\ine "
           "2\n\n</parameter>\n"
           "<parameter=n>\n-3\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n</function>\n</tool_call>\n"
           "<tool_call>\n<function=g>\n</function>\n</tool_call>",
           "r(hm) c(Sure.) 0:f{\"s\": \"line \\\"1\\\"\\n\\n\\tl\\\\ine 2\\n\", \"n\": -3, \"b\": true}; "
           "1:g{};");
    expect(&o,
           "<tool_call><function=f><parameter=l>[1, \"a\nb\",\n{}]</parameter><parameter=n>3 "
           "apples</parameter><parameter=x>"
           "null</parameter><parameter=y>7</parameter><parameter=z>{\"q\": "
           "1}</parameter><parameter=new>\n4\n</parameter>"
           "</function></tool_call>",
           "r() c() 0:f{\"l\": [1, \"a\\nb\",\n{}], \"n\": \"3 apples\", \"x\": null, \"y\": \"7\", \"z\": "
           "{\"q\": 1}, "
           "\"new\": \"4\"};");
    expect(&o,
           "<tool_call><function=f><parameter=l>[1,]</parameter><parameter=n>1.5e</parameter></function></"
           "tool_call>!",
           "r() c(!) 0:f{\"l\": \"[1,]\", \"n\": \"1.5e\"};");
    expect(&o, "<function=f>\n<parameter=s>\n<b>\n</b>\n</parameter>\n</function>",
           "r() c() 0:f{\"s\": \"<b>\\n</b>\"};");
    expect(&o, "write <function=h> or <function=> and <tool_call> in text </tool_call>",
           "r() c(write <function=h> or <function=> and <tool_call> in text </tool_call>)");
    expect(&o, "<tool_call>\n<function=f>\n<parameter=s>\ncut <", "r() c() 0:f{\"s\": \"cut <;");
    expect(&o, "<tool_call>\n<function=f>\n<parameter=n>\n12", "r() c() 0:f{\"n\": 12;");
    expect(&o, "<tool_call>\n<function=f", "r() c(<tool_call>\n<function=f)");
    expect(&o, "<tool_call><function=f></tool_call> x", "r() c( x) 0:f{};");
    o.tools_json = NULL;
    expect(&o, "<tool_call><function=f><parameter=n>3</parameter></function></tool_call>",
           "r() c() 0:f{\"n\": \"3\"};");
    o.tools_json = "[";
    o.tools_json_bytes = 1;
    qr_output_parser *parser = NULL;
    assert_int_equal(qr_output_parser_new(&o, &parser, NULL), QR_INVALID_ARGUMENT);
}

/* The opening of a forced call, and the whole that it begins. */
static void openings_begin_calls_in_every_style(void **state)
{
    static const struct {
        const char *style, *template, *required, *required_rest, *named, *named_rest;
    } rows[] = {
        {"hermes", "", "<tool_call>\n{\"name\": \"", "f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
         "<tool_call>\n{\"name\": \"f\", \"arguments\":", " {\"a\": 1}}\n</tool_call>"},
        {"llama3_json", "", "{\"name\": \"", "f\", \"parameters\": {\"a\": 1}}",
         "{\"name\": \"f\", \"parameters\":", " {\"a\": 1}}"},
        {"mistral", "[TOOL_CALLS] [{", "[TOOL_CALLS] [{\"name\": \"", "f\", \"arguments\": {\"a\": 1}}]",
         "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\":", " {\"a\": 1}}]"},
        {"mistral", "[TOOL_CALLS][{", "[TOOL_CALLS][{\"name\": \"", "f\", \"arguments\": {\"a\": 1}}]",
         "[TOOL_CALLS][{\"name\": \"f\", \"arguments\":", " {\"a\": 1}}]"},
        {"mistral", "[TOOL_CALLS]x[ARGS]", "[TOOL_CALLS]", "f[ARGS]{\"a\": 1}", "[TOOL_CALLS]f[ARGS]",
         "{\"a\": 1}"},
        {"pythonic", "", "[", "f(a=1)]", "[f(", "a=1)]"},
        {"qwen3_coder", "",
         "<tool_call>\n<function=", "f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
         "<tool_call>\n<function=f>\n", "<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"},
        {"harmony", "", "<|channel|>commentary to=functions.", "f <|constrain|>json<|message|>{\"a\": 1}",
         "<|channel|>commentary to=functions.f <|constrain|>json<|message|>", "{\"a\": 1}"},
    };
    (void)state;
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        for (int named = 0; named < 2; named++) {
            qr_output_parser_options o = options_for("think", rows[i].style);
            o.chat_template = rows[i].template;
            o.tool_choice = named ? "named" : "required";
            o.tool_name = named ? "f" : NULL;
            o.tools_json = "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":"
                           "\"integer\"}}}}}]";
            o.tools_json_bytes = strlen(o.tools_json);
            qr_output_parser *parser = open_parser(&o);
            assert_string_equal(qr_output_parser_opening(parser), named ? rows[i].named : rows[i].required);
            qr_output_parser_free(parser);
            qr_buf text = {0};
            qr_buf_append_cstr(&text, named ? rows[i].named : rows[i].required);
            qr_buf_append_cstr(&text, named ? rows[i].named_rest : rows[i].required_rest);
            expect(&o, text.data, "r() c() 0:f{\"a\": 1};");
            qr_buf_release(&text);
        }
    }
    qr_output_parser_options o = options_for("think", "hermes");
    qr_output_parser *parser = open_parser(&o);
    assert_string_equal(qr_output_parser_opening(parser), "");
    assert_string_equal(qr_output_parser_mark(parser, 0), "<tool_call>");
    assert_string_equal(qr_output_parser_mark(parser, 3), "</think>");
    assert_null(qr_output_parser_mark(parser, 4));
    qr_output_parser_free(parser);
}

static void harmony_messages_go_where_their_channel_says(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("none", "harmony");
    expect(&o,
           "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>Hello "
           "<|x|>!<|return|>",
           "r(Think.) c(Hello <|x|>!)");
    expect(&o,
           "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary "
           "to=functions.get_weather "
           "<|constrain|>json<|message|>{\"city\": \"SF\"}<|call|>",
           "r(a) c() 0:get_weather{\"city\": \"SF\"};");
    expect(&o,
           " to=functions.f<|channel|>commentary json<|message|>{}<|call|><|start|>functions.f "
           "to=assistant<|channel|>commentary"
           "<|message|>made up<|end|><|start|>assistant<|channel|>commentary<|message|>Note.<|end|>",
           "r() c(Note.) 0:f{};");
    expect(&o, "<|channel|>commentary to=browser.search code<|message|>{\"q\": 1}<|call|>",
           "r() c() 0:browser.search{\"q\": 1};");
    expect(&o, "no header at all", "r() c(no header at all)");
    expect(&o, "<|channel|>analysis<|message|>cut", "r(cut) c()");
    expect(&o, "<|channel|>fin", "r() c()");
    o.tool_choice = "none";
    expect(&o, "<|channel|>commentary to=functions.f<|message|>{}<|call|>", "r() c({})");
}

static void forced_choices_are_parsed(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("think", "hermes");
    o.constrained = true;
    o.tool_choice = "required";
    expect(&o,
           "<think>x</think>[{\"name\": \"f\", \"parameters\": {\"a\": 1}}, {\"name\": \"g\", "
           "\"parameters\": {}}]",
           "r(x) c() 0:f{\"a\": 1}; 1:g{};");
    o.tool_choice = "named";
    o.tool_name = "pick";
    expect(&o, " {\"name\": \"a value\", \"l\": [1]} ", "r() c() 0:pick{\"name\": \"a value\", \"l\": [1]};");
    o.constrained = false;
    expect(&o, "<tool_call>{\"name\": \"pick\", \"arguments\": {}}</tool_call>", "r() c() 0:pick{};");
}

static void styles_are_found_in_the_chat_template(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("auto", "auto");
    o.chat_template = "...<tool_call>\n ... </think> ...";
    expect(&o, "<think>a</think><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
           "r(a) c() 0:f{};");
    o.chat_template = "{{ '[TOOL_CALLS]' }}";
    expect(&o, "<think>a</think>[TOOL_CALLS]f{}", "r() c(<think>a</think>) 0:f{};");
    o.chat_template = "<|start|>assistant<|channel|>final<|message|>";
    expect(&o, "<|channel|>final<|message|>x", "r() c(x)");
    o.chat_template = "plain";
    expect(&o, "[TOOL_CALLS]f{}", "r() c([TOOL_CALLS]f{})");
    o.chat_template = NULL;
    expect(&o, "x", "r() c(x)");
    static const char *const rows[][3] = {
        {"<tool_call><function=", "none", "qwen3_coder"},
        {"<tool_call><arg_key></think>", "think", "none"},
        {"<function=x>{}</function><|python_tag|>", "none", "none"},
        {"[TOOL_CALLS] [/THINK]", "mistral", "mistral"},
        {"<|channel|><|message|></think>", "harmony", "harmony"},
        {"<|python_tag|>", "none", "llama3_json"},
        {"<|python_start|>", "none", "pythonic"},
    };
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        const char *reasoning = NULL, *tools = NULL;
        qr_output_parser_detect(rows[i][0], &reasoning, &tools);
        assert_string_equal(reasoning, rows[i][1]);
        assert_string_equal(tools, rows[i][2]);
    }
}

static void what_is_held_back_is_bounded(void **state)
{
    (void)state;
    qr_output_parser_options o = options_for("none", "hermes");
    o.memory_bytes_max = 1000;
    qr_output_parser *parser = open_parser(&o);
    const qr_output_delta *deltas = NULL;
    size_t count = 0;
    qr_error err = {0};
    qr_buf text = {0};
    qr_buf_append_cstr(&text, "<tool_call>{\"arguments\": \"");
    for (int i = 0; i < 2000; i++)
        qr_buf_append_char(&text, 'x');
    assert_int_equal(qr_output_parser_push(parser, text.data, text.len, &deltas, &count, &err),
                     QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "more than 1000 bytes held back"));
    assert_int_equal(qr_output_parser_finish(parser, &deltas, &count, &err), QR_LIMIT_EXCEEDED);
    qr_output_parser_free(parser);
    qr_output_parser_free(NULL);
    qr_buf_release(&text);
    /* arguments that stream hold nothing back, however deep and long */
    parser = open_parser(&o);
    outcome got = {0};
    const char *begin = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"";
    push(parser, &got, begin, strlen(begin));
    for (int i = 0; i < 5000; i++)
        push(parser, &got, "yyyyyyyyyy", 10);
    qr_buf line = finish(parser, &got);
    assert_true(line.len > 50000);
    qr_buf_release(&line);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_output_parser *parser = NULL;
    qr_output_parser_options o = options_for("none", "xml");
    assert_int_equal(qr_output_parser_new(&o, &parser, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "tools: unknown style xml"));
    o = options_for("loud", "none");
    assert_int_equal(qr_output_parser_new(&o, &parser, &err), QR_INVALID_ARGUMENT);
    o = options_for("none", "none");
    o.tool_choice = "maybe";
    assert_int_equal(qr_output_parser_new(&o, &parser, &err), QR_INVALID_ARGUMENT);
    o.tool_choice = "named";
    assert_int_equal(qr_output_parser_new(&o, &parser, &err), QR_INVALID_ARGUMENT);
    assert_null(parser);
    assert_int_equal(qr_output_parser_new(NULL, &parser, &err), QR_OK);
    qr_output_parser_free(parser);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reasoning_is_split_off),
        cmocka_unit_test(hermes_calls_are_parsed),
        cmocka_unit_test(llama3_json_calls_are_parsed),
        cmocka_unit_test(mistral_calls_are_parsed),
        cmocka_unit_test(pythonic_calls_are_rewritten_as_json),
        cmocka_unit_test(tagged_parameters_become_json),
        cmocka_unit_test(openings_begin_calls_in_every_style),
        cmocka_unit_test(harmony_messages_go_where_their_channel_says),
        cmocka_unit_test(forced_choices_are_parsed),
        cmocka_unit_test(styles_are_found_in_the_chat_template),
        cmocka_unit_test(what_is_held_back_is_bounded),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
