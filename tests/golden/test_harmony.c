// links: qr_text qr_base
/* The harmony format of gpt-oss against the files of openai/harmony's own tests (../shared): what its library renders,
 * token ids it parses. The prompts are rendered by the checkpoint's template, which differs from the library in a few
 * places that the rows name; Jinja2 says the same as we do there (test_templates.c), so those are the template's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "quire.h"
#include "text/jinja_tree.h"
#include "text/tokenizer.h"

#define NOW 1751112000 /* 2025-06-28 12:00 UTC */

static char *shared_path(const char *name)
{
    const char *shared = qr_env("QR_SHARED_DIR");
    if (shared == NULL) {
        printf("skipped: QR_SHARED_DIR is not set\n");
        skip();
    }
    qr_buf path = {0};
    qr_buf_printf(&path, "%s/data/%s", shared, name);
    return path.data;
}

static qr_buf read_shared(const char *name)
{
    qr_error err = {0};
    qr_buf text = {0};
    char *path = shared_path(name);
    if (qr_file_read(path, 1u << 20, &text, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_free(path);
    return text;
}

/* ---- Prompts --------------------------------------------------------------------------------------- */

#define USER(text)    "{\"role\":\"user\",\"content\":\"" text "\"}"
#define CAPITAL       USER("What is the capital of the largest country in the world?")
#define ROBOT         "{\"role\":\"developer\",\"content\":\"Answer the user's questions like a robot.\"}"
#define EFFORT(level) "\"reasoning_effort\":\"" level "\""
#define WEATHER_ARGUMENTS(name, type)                                                                     \
    "\"parameters\":{\"type\":\"object\",\"required\":[\"" name "\"],\"properties\":{\"" name "\":{" type \
    "},"                                                                                                  \
    "\"format\":{\"type\":\"string\",\"enum\":[\"celsius\",\"fahrenheit\"],\"default\":\"celsius\"}}}"
#define FUNCTION(name, text, more) \
    "{\"type\":\"function\",\"function\":{\"name\":\"" name "\",\"description\":\"" text "\"" more "}}"

typedef struct edit {
    const char *from, *to;
} edit;
/* The library leaves the date out unless it is given one; the template always has it. */
#define NO_DATE                          \
    {                                    \
        "Current date: 2025-06-28\n", "" \
    }
/* The template wants a message to look at. */
#define NO_MESSAGE                             \
    {                                          \
        "<|start|>user<|message|>x<|end|>", "" \
    }
/* The template ends instructions with an empty line, also where no tools follow. */
#define NO_BLANK                             \
    {                                        \
        "robot.\n\n<|end|>", "robot.<|end|>" \
    }

typedef struct prompt_row {
    const char *file, *context;
    edit edits[3];
    bool from_user;       /* the library renders no system message when it is given none */
    const char *cut[2];   /* of the library's text: from the first to before the second */
    bool no_final_prompt; /* add_generation_prompt is off */
} prompt_row;

static const prompt_row prompt_rows[] = {
    {.file = "test_simple_convo", .context = "\"messages\":[" USER("What is 2 + 2?") "]", .edits = {NO_DATE}},
    {.file = "test_simple_convo_low_effort_no_instruction",
     .context = "\"messages\":[" CAPITAL "]," EFFORT("low"),
     .edits = {NO_DATE}},
    {.file = "test_simple_convo_medium_effort_no_instruction",
     .context = "\"messages\":[" CAPITAL "]," EFFORT("medium"),
     .edits = {NO_DATE}},
    {.file = "test_simple_convo_high_effort_no_instruction",
     .context = "\"messages\":[" CAPITAL "]," EFFORT("high"),
     .edits = {NO_DATE}},
    {.file = "test_simple_convo_low_effort",
     .context = "\"messages\":[" ROBOT "," CAPITAL "]," EFFORT("low"),
     .edits = {NO_DATE, NO_BLANK}},
    {.file = "test_simple_convo_medium_effort",
     .context = "\"messages\":[" ROBOT "," CAPITAL "]," EFFORT("medium"),
     .edits = {NO_DATE, NO_BLANK}},
    {.file = "test_simple_convo_high_effort",
     .context = "\"messages\":[" ROBOT "," CAPITAL "]," EFFORT("high"),
     .edits = {NO_DATE, NO_BLANK}},
    {.file = "test_no_tools", .context = "\"messages\":[" USER("x") "]", .edits = {NO_MESSAGE}},
    {.file = "test_browser_tool_only",
     .context = "\"messages\":[" USER("x") "],\"builtin_tools\":[\"browser\"]",
     .edits = {NO_MESSAGE}},
    {.file = "test_browser_and_python_tool",
     .context = "\"messages\":[" USER("x") "],\"builtin_tools\":[\"browser\",\"python\"]",
     .edits = {NO_MESSAGE}},
    {.file = "test_browser_and_function_tool",
     .context = "\"messages\":[" USER("x") "],\"builtin_tools\":[\"browser\"],\"tools\":[" FUNCTION(
         "lookup_weather",
         "Use this tool to lookup the weather in a given location. Call it with the parameter 'location', "
         "can be any "
         "textual description of a location.",
         ",\"parameters\":{\"type\":\"object\",\"required\":[\"location\"],\"properties\":{\"location\":{"
         "\"type\":"
         "\"string\"}}}") "]",
     .edits = {NO_MESSAGE}},
    /* The template puts a comma behind a last default; kitchensink's notes (examples, titles, oneOf) are the library's. */
    {.file = "test_render_functions_with_parameters",
     .context = "\"messages\":[{\"role\":\"developer\",\"content\":\"Always respond in riddles\"}," USER(
         "Wha"
         "t "
         "is "
         "the"
         " we"
         "ath"
         "er "
         "lik"
         "e "
         "in "
         "SF"
         "?") "]," EFFORT("high") ",\"tools\":[" FUNCTION("get_location", "Gets the location of the user.",
                                                          "") "," FUNCTION("get_current_weather",
                                                                           "Gets the current weather in the "
                                                                           "provided "
                                                                           "location.",
                                                                           "," WEATHER_ARGUMENTS(
                                                                               "location",
                                                                               "\"type\":\"string\","
                                                                               "\"description\":\"The "
                                                                               "city and state, e.g. San "
                                                                               "Francisco, "
                                                                               "CA\"")) "," FUNCTION("get_"
                                                                                                     "multipl"
                                                                                                     "e_"
                                                                                                     "weather"
                                                                                                     "s",
                                                                                                     "Gets "
                                                                                                     "the "
                                                                                                     "current"
                                                                                                     " "
                                                                                                     "weather"
                                                                                                     " in "
                                                                                                     "the "
                                                                                                     "provide"
                                                                                                     "d "
                                                                                                     "list "
                                                                                                     "of "
                                                                                                     "locatio"
                                                                                                     "ns.",
                                                                                                     "," WEATHER_ARGUMENTS(
                                                                                                         "loc"
                                                                                                         "ati"
                                                                                                         "on"
                                                                                                         "s",
                                                                                                         "\"t"
                                                                                                         "ype"
                                                                                                         "\":"
                                                                                                         "\"a"
                                                                                                         "rra"
                                                                                                         "y\""
                                                                                                         ","
                                                                                                         "\"i"
                                                                                                         "tem"
                                                                                                         "s\""
                                                                                                         ":{"
                                                                                                         "\"t"
                                                                                                         "ype"
                                                                                                         "\":"
                                                                                                         "\"s"
                                                                                                         "tri"
                                                                                                         "ng"
                                                                                                         "\"}"
                                                                                                         ","
                                                                                                         "\"d"
                                                                                                         "esc"
                                                                                                         "rip"
                                                                                                         "tio"
                                                                                                         "n\""
                                                                                                         ":"
                                                                                                         "\"L"
                                                                                                         "ist"
                                                                                                         " of"
                                                                                                         " ci"
                                                                                                         "ty "
                                                                                                         "and"
                                                                                                         " "
                                                                                                         "sta"
                                                                                                         "te,"
                                                                                                         " e."
                                                                                                         "g. "
                                                                                                         "[\\"
                                                                                                         "\"S"
                                                                                                         "an "
                                                                                                         "Fra"
                                                                                                         "nci"
                                                                                                         "sco"
                                                                                                         ", "
                                                                                                         "CA"
                                                                                                         "\\"
                                                                                                         "\","
                                                                                                         " \\"
                                                                                                         "\"N"
                                                                                                         "ew "
                                                                                                         "Yor"
                                                                                                         "k, "
                                                                                                         "NY"
                                                                                                         "\\"
                                                                                                         "\"]"
                                                                                                         "\"")) "]",
     .edits = {{"default: celsius,\n", "default: celsius\n"}},
     .cut = {"// A function with various complex schemas.", "} // namespace functions"}},
    {.file = "test_dropping_cot_by_default",
     .context = "\"messages\":[" USER(
         "What is 2 + 2?") ",{\"role\":\"assistant\",\"thinking\":\"User asks a simple "
                           "question.\",\"content\":\"2 + 2 equals 4.\"}," USER("What about 9 / 2?") "]",
     .from_user = true},
    /* The template does not say <|constrain|> of a call in the past, and writes a result as JSON. */
    {.file = "test_does_not_drop_if_ongoing_analysis",
     .context = "\"messages\":[" USER(
         "What is the weather in SF?") ",{\"role\":\"assistant\",\"thinking\":\"User asks: "
                                       "\xe2\x80\x9cWhat is the weather in SF?\xe2\x80\x9d We "
                                       "need to use lookup_weather tool.\",\"tool_calls\":[{"
                                       "\"type\":\"function\",\"function\":{\"name\":\"lookup_"
                                       "weather\",\"arguments\":{\"location\":\"San "
                                       "Francisco\"}}}]},{\"role\":\"tool\",\"content\":{"
                                       "\"temperature\":20,\"description\":\"sunny\"}}]",
     .edits = {{"commentary json<|message|>", "commentary <|constrain|>json<|message|>"},
               {"lookup_weather to=assistant<|channel|>commentary<|message|>{\"temp",
                "lookup_weather<|message|>{\"temp"}},
     .from_user = true},
    /* A last answer ends in <|return|> there, since it is what the model would be trained to say. */
    {.file = "test_keep_analysis_between_finals",
     .context = "\"messages\":[" USER(
         "What is 2 + 2?") ",{\"role\":\"assistant\",\"thinking\":\"two and two\","
                           "\"content\":\"4\"}," USER(
                               "What is 3 + 5?") ",{\"role\":\"assistant\",\"thinking\":"
                                                 "\"thinking 3+5\",\"content\":\"8\"}]",
     .edits = {{"8<|return|>", "8<|end|>"}},
     .from_user = true,
     .no_final_prompt = true},
};

static void replace_all(qr_buf *text, edit change)
{
    qr_buf out = {0};
    size_t at = 0, from_len = strlen(change.from);
    for (ptrdiff_t hit; (hit = qr_str_find(qr_buf_str(text), qr_str_of(change.from), at)) >= 0;) {
        qr_buf_append(&out, text->data + at, (size_t)hit - at);
        qr_buf_append_cstr(&out, change.to);
        at = (size_t)hit + from_len;
    }
    qr_buf_append(&out, text->data + at, text->len - at);
    qr_buf_release(text);
    *text = out;
}

static void cut_out(qr_buf *text, const char *from, const char *until)
{
    char *begin = strstr(text->data, from), *end = strstr(text->data, until);
    assert_true(begin != NULL && end != NULL && begin < end);
    memmove(begin, end, strlen(end) + 1);
    text->len -= (size_t)(end - begin);
}

static void render_row(const qr_jinja *jinja, const prompt_row *row, qr_buf *out)
{
    qr_error err = {0};
    qr_buf request = {0};
    qr_json *context = NULL;
    qr_buf_printf(&request, "{%s,\"add_generation_prompt\":%s}", row->context,
                  row->no_final_prompt ? "false" : "true");
    assert_int_equal(qr_json_parse(qr_buf_str(&request), &qr_json_limits_request, &context, &err), QR_OK);
    if (qr_jinja_render(jinja, context, NOW, NULL, out, &err) != QR_OK)
        fail_msg("%s: %s", row->file, err.message);
    qr_json_free(context);
    qr_buf_release(&request);
    for (size_t i = 0; i < QR_COUNT_OF(row->edits) && row->edits[i].from != NULL; i++) {
        assert_non_null(
            strstr(out->data, row->edits[i].from)); /* a difference that is gone has to leave the table */
        replace_all(out, row->edits[i]);
    }
    if (row->from_user)
        cut_out(out, "<|start|>system", "<|start|>user");
}

static void trim_end(qr_buf *text)
{
    while (text->len > 0 && text->data[text->len - 1] == '\n')
        text->data[--text->len] = '\0';
}

static void prompts_render_as_openais_library_does(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_jinja *jinja = NULL;
    qr_buf source = read_shared("chat-templates/llama.cpp/openai-gpt-oss-120b.jinja");
    const qr_jsyntax syntax = {.trim_blocks = true, .lstrip_blocks = true};
    assert_int_equal(qr_jinja_compile_with(qr_buf_str(&source), &syntax, &jinja, &err), QR_OK);
    for (size_t i = 0; i < QR_COUNT_OF(prompt_rows); i++) {
        const prompt_row *row = &prompt_rows[i];
        qr_buf name = {0}, got = {0};
        qr_buf_printf(&name, "chat-templates/openai-harmony/%s.txt", row->file);
        qr_buf want = read_shared(name.data);
        if (row->cut[0] != NULL)
            cut_out(&want, row->cut[0], row->cut[1]);
        render_row(jinja, row, &got);
        trim_end(&want);
        trim_end(&got);
        if (strcmp(got.data, want.data) != 0)
            fail_msg("%s\n  want %s\n  got  %s", row->file, want.data, got.data);
        qr_buf_release(&name);
        qr_buf_release(&got);
        qr_buf_release(&want);
    }
    printf("%zu prompts of openai/harmony rendered\n", QR_COUNT_OF(prompt_rows));
    qr_jinja_free(jinja);
    qr_buf_release(&source);
}

/* ---- Tokens ---------------------------------------------------------------------------------------- */

static qr_tokenizer *open_tokenizer(void)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    char *path = shared_path("tokenizers/gpt-oss");
    if (qr_text_tokenizer_from_dir(path, &tokenizer, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_free(path);
    return tokenizer;
}

static size_t read_ids(const char *file, int32_t *ids, size_t max)
{
    qr_buf name = {0};
    qr_buf_printf(&name, "chat-templates/openai-harmony/%s.txt", file);
    qr_buf text = read_shared(name.data);
    size_t count = 0;
    for (char *at = text.data, *end; count < max; at = end) {
        long id = strtol(at, &end, 10);
        if (end == at)
            break;
        ids[count++] = (int32_t)id;
    }
    qr_buf_release(&name);
    qr_buf_release(&text);
    return count;
}

static void encode_equals(const qr_tokenizer *tokenizer, const char *text, const int32_t *want,
                          size_t want_count)
{
    int32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(qr_tokenizer_encode(tokenizer, text, strlen(text), NULL, &ids, &count, NULL), QR_OK);
    assert_int_equal(count, want_count);
    assert_memory_equal(ids, want, count * sizeof(*ids));
    qr_ids_free(ids);
}

/* "r(reasoning) c(content) name(arguments)..." of what the model wrote. */
static void parse_equals(const char *text, const char *want)
{
    qr_output_parser_options options;
    qr_output_parser *parser = NULL;
    qr_buf parts[3] = {{0}}, line = {0};
    qr_output_parser_options_init(&options);
    options.tools = options.reasoning = "harmony";
    assert_int_equal(qr_output_parser_new(&options, &parser, NULL), QR_OK);
    for (size_t at = 0, len = strlen(text); at <= len; at++) {
        const qr_output_delta *deltas = NULL;
        size_t count = 0;
        qr_status status = at < len ? qr_output_parser_push(parser, text + at, 1, &deltas, &count, NULL)
                                    : qr_output_parser_finish(parser, &deltas, &count, NULL);
        assert_int_equal(status, QR_OK);
        for (size_t i = 0; i < count; i++) {
            qr_output_kind kind = deltas[i].kind;
            qr_buf *to = &parts[kind == QR_OUTPUT_REASONING ? 0 : kind == QR_OUTPUT_CONTENT ? 1 : 2];
            qr_buf_append_cstr(to, kind == QR_OUTPUT_TOOL_BEGIN ? " " : "");
            qr_buf_append(to, deltas[i].text, deltas[i].bytes);
        }
    }
    qr_buf_printf(&line, "r(%s) c(%s)%s", parts[0].len > 0 ? parts[0].data : "",
                  parts[1].len > 0 ? parts[1].data : "", parts[2].len > 0 ? parts[2].data : "");
    assert_string_equal(line.data, want);
    for (size_t i = 0; i < 3; i++)
        qr_buf_release(&parts[i]);
    qr_buf_release(&line);
    qr_output_parser_free(parser);
}

static void answers_in_token_ids_are_read(void **state)
{
    static const char *const rows[][2] = {
        {"test_simple_reasoning_response",
         "r(User asks: \"What is 2 + 2?\" Simple arithmetic. Provide answer.) c(2 + 2 = 4.)"},
        {"test_simple_tool_call",
         "r(User asks: \"What is the weather in Tokyo?\" We need to use lookup_weather "
         "tool.) c() lookup_weather{\"location\": \"Tokyo\"}"},
    };
    (void)state;
    qr_tokenizer *tokenizer = open_tokenizer();
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        int32_t ids[256];
        char *text = NULL;
        size_t bytes = 0, count = read_ids(rows[i][0], ids, QR_COUNT_OF(ids));
        assert_true(count > 20);
        assert_int_equal(qr_tokenizer_decode(tokenizer, ids, count, false, &text, &bytes, NULL), QR_OK);
        encode_equals(tokenizer, text, ids, count);
        parse_equals(text, rows[i][1]);
        qr_free(text);
    }
    qr_tokenizer_close(tokenizer);
}

static void answers_in_text_are_read(void **state)
{
    (void)state;
    qr_buf streamed = read_shared("chat-templates/openai-harmony/test_streamable_parser.txt");
    qr_buf result = read_shared("chat-templates/openai-harmony/test_tool_response_parsing.txt");
    const char *message = strstr(streamed.data, "<|message|>") + 11, *end = strstr(message, "<|end|>");
    qr_buf want = {0};
    qr_buf_printf(&want,
                  "r(%.*s) c() browser.search{\"query\": \"current US president July 2025\", \"topn\": 10, "
                  "\"source\": \"news\"}",
                  (int)(end - message), message);
    parse_equals(streamed.data, want.data);
    parse_equals(result.data, "r() c()"); /* a tool's message is none of the model's */
    qr_buf_release(&want);
    qr_buf_release(&streamed);
    qr_buf_release(&result);
}

/* What the template has no way to say: reasoning kept from earlier turns, two channels only, other dates. */
static const char *const unrendered[] = {"test_preserve_cot", "test_reasoning_system_message",
                                         "test_reasoning_system_message_no_instruction",
                                         "test_reasoning_system_message_with_dates"};

/* Every text goes to ids and back; each mark is one token. */
static void texts_survive_the_tokenizer(void **state)
{
    (void)state;
    qr_tokenizer *tokenizer = open_tokenizer();
    size_t tokens = 0, rendered = QR_COUNT_OF(prompt_rows), texts = rendered + QR_COUNT_OF(unrendered);
    for (size_t i = 0; i < texts; i++) {
        qr_buf name = {0};
        int32_t *ids = NULL;
        char *back = NULL;
        size_t count = 0, bytes = 0, marks = 0;
        qr_buf_printf(&name, "chat-templates/openai-harmony/%s.txt",
                      i < rendered ? prompt_rows[i].file : unrendered[i - rendered]);
        qr_buf text = read_shared(name.data);
        assert_int_equal(qr_tokenizer_encode(tokenizer, text.data, text.len, NULL, &ids, &count, NULL),
                         QR_OK);
        assert_int_equal(qr_tokenizer_decode(tokenizer, ids, count, false, &back, &bytes, NULL), QR_OK);
        assert_string_equal(back, text.data);
        for (const char *at = text.data; (at = strstr(at, "<|")) != NULL; at++)
            marks++;
        for (size_t k = 0; k < count; k++)
            marks -= ids[k] >= 200000;
        assert_int_equal(marks, 0);
        tokens += count;
        qr_ids_free(ids);
        qr_free(back);
        qr_buf_release(&text);
        qr_buf_release(&name);
    }
    printf("%zu texts, %zu tokens\n", texts, tokens);
    qr_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_render_as_openais_library_does),
        cmocka_unit_test(answers_in_token_ids_are_read),
        cmocka_unit_test(answers_in_text_are_read),
        cmocka_unit_test(texts_survive_the_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
