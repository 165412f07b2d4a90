// links: qr_server qr_text
/* The API's shapes over the fake engine: what a client of OpenAI or vLLM reads, byte for byte where it matters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/log.h"
#include "server/openai_common.h"
#include "server_rig.h"

static rig shared_rig;

static int setup(void **state)
{
    qr_server_options options;
    rig_options(&options);
    rig_start(&shared_rig, &options);
    (void)state;
    return 0;
}

static int teardown(void **state)
{
    rig_stop(&shared_rig);
    (void)state;
    return 0;
}

static char *post(const char *path, const char *body, int status)
{
    char *reply = rig_request(&shared_rig, "POST", path, "", body);
    if (rig_status(reply) != status)
        print_error("wanted %d for %s %.200s\ngot %.600s\n", status, path, body, reply);
    assert_int_equal(rig_status(reply), status);
    return reply;
}

static void has(const char *reply, const char *text)
{
    if (strstr(reply, text) == NULL)
        print_error("no %s\nin %s\n", text, reply);
    assert_non_null(strstr(reply, text));
}

static void has_not(const char *reply, const char *text)
{
    if (strstr(reply, text) != NULL)
        print_error("unwanted %s\nin %s\n", text, reply);
    assert_null(strstr(reply, text));
}

/* The value of `"created":N` differs from run to run. */
static void hide_created(char *text)
{
    for (char *at = text; (at = strstr(at, "\"created\":")) != NULL; at++) {
        char *digit = at + 10, *end = digit;
        while (*end >= '0' && *end <= '9')
            end++;
        *digit = '0';
        memmove(digit + 1, end, strlen(end) + 1);
    }
}

#define HEAD(object)       \
    "\"object\":\"" object \
    "\",\"created\":0,\"model\":\"fake\",\"system_fingerprint\":\"quire-0.1.0-b5d54c39\","

static void a_chat_reply_has_openais_shape(void **state)
{
    char *reply = post("/v1/chat/completions",
                       "{\"model\":\"fake\",\"request_id\":\"r1\",\"messages\":[{\"role\":\"user\","
                       "\"content\":\"abcd\"}],\"max_tokens\":4}",
                       200);
    hide_created(reply);
    assert_string_equal(
        rig_body(reply),
        "{\"id\":\"chatcmpl-r1\"," HEAD(
            "chat.completion") "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                               "\"content\":\"Once\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":"
                               "\"length\",\"stop_reason\":null}],"
                               "\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":4,\"total_tokens\":8,"
                               "\"prompt_tokens_details\":{\"cached_tokens\":2}},"
                               "\"seed\":42}");
    has(reply, "X-Quire-Seed: 42\r\n");
    has(reply, "X-Request-Id: ");
    free(reply);
    (void)state;
}

/* All deltas of choice `index`, joined; stops at a chunk that is not of the shape. */
static void joined(const char *stream, const char *key, int index, qr_buf *out)
{
    for (const char *at = stream; (at = strstr(at, "data: {")) != NULL; at++) {
        const char *end = strstr(at, "\n\n");
        assert_non_null(end);
        qr_json *chunk = NULL;
        assert_int_equal(
            qr_json_parse(qr_str_make(at + 6, (size_t)(end - at - 6)), &qr_json_limits_request, &chunk, NULL),
            QR_OK);
        const qr_json *choice = qr_json_at(qr_json_get(chunk, "choices"), 0);
        if (choice != NULL && qr_json_int(qr_json_get(choice, "index"), -1) == index) {
            const qr_json *delta = qr_json_get(choice, "delta");
            qr_str text = qr_json_string(qr_json_get(delta != NULL ? delta : choice, key));
            qr_buf_append(out, text.data != NULL ? text.data : "", text.len);
        }
        qr_json_free(chunk);
    }
}

#define CHUNK(choice)                                                                                  \
    "data: {\"id\":\"chatcmpl-r2\"," HEAD("chat.completion.chunk") "\"choices\":[{\"index\":0," choice \
                                                                   "}],\"usage\":null}\n\n"

static void a_chat_stream_is_role_text_finish_usage_done(void **state)
{
    char *reply = post(
        "/v1/chat/completions",
        "{\"model\":\"fake\",\"request_id\":\"r2\",\"messages\":[{\"role\":\"user\",\"content\":\"abcd\"}],"
        "\"max_tokens\":1,\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
        200);
    char *stream = rig_dechunk(rig_body(reply));
    hide_created(stream);
    assert_string_equal(
        stream,
        CHUNK("\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
              "\"finish_reason\":null") CHUNK("\"delta\":{\"content\":\"O\"},\"logprobs\":null,\"finish_"
                                              "reason\":"
                                              "null")
            CHUNK("\"delta\":{},\"logprobs\":null,\"finish_reason\":"
                  "\"length\"") "data: {\"id\":\"chatcmpl-r2\"," HEAD("chat.completion.chunk") "\"choices\":["
                                                                                               "],\"usage\":{"
                                                                                               "\"prompt_"
                                                                                               "tokens\":4,"
                                                                                               "\"completion_"
                                                                                               "tokens\":1,"
                                                                                               "\"total_"
                                                                                               "tokens\":5,"
                                                                                               "\"prompt_"
                                                                                               "tokens_"
                                                                                               "details\":{"
                                                                                               "\"cached_"
                                                                                               "tokens\":2}}}"
                                                                                               "\n\ndata: "
                                                                                               "[DONE]\n\n");
    has(reply, "Content-Type: text/event-stream");
    has(reply, "Cache-Control: no-cache");
    free(stream);
    free(reply);
    (void)state;
}

static void streamed_text_is_the_whole_text(void **state)
{
    static const char *const extras[] = {"",
                                         ",\"stop\":[\"engine\"]",
                                         ",\"n\":3",
                                         ",\"logprobs\":true,\"top_logprobs\":2",
                                         ",\"return_token_ids\":true",
                                         ",\"max_tokens\":57"};
    for (size_t i = 0; i < sizeof(extras) / sizeof(extras[0]); i++) {
        char body[512];
        for (int step = 1; step <= 3000; step += 1500) { /* one token a poll, and many */
            shared_rig.engine->step_us = step;
            (void)snprintf(body, sizeof(body), "{\"messages\":[{\"role\":\"user\",\"content\":\"abcd\"}]%s}",
                           extras[i]);
            char *whole = post("/v1/chat/completions", body, 200);
            (void)snprintf(body, sizeof(body),
                           "{\"messages\":[{\"role\":\"user\",\"content\":\"abcd\"}],\"stream\":true%s}",
                           extras[i]);
            char *reply = post("/v1/chat/completions", body, 200), *stream = rig_dechunk(rig_body(reply));
            qr_json *parsed = NULL;
            assert_int_equal(
                qr_json_parse(qr_str_of(rig_body(whole)), &qr_json_limits_request, &parsed, NULL), QR_OK);
            const qr_json *choices = qr_json_get(parsed, "choices");
            for (size_t c = 0; c < qr_json_count(choices); c++) {
                qr_buf text = {0};
                joined(stream, "content", (int)c, &text);
                assert_string_equal(
                    text.data,
                    qr_json_cstring(qr_json_get(qr_json_get(qr_json_at(choices, c), "message"), "content"),
                                    ""));
                qr_buf_release(&text);
            }
            qr_json_free(parsed);
            free(whole);
            free(reply);
            free(stream);
        }
    }
    shared_rig.engine->step_us = 200;
    (void)state;
}

static void completions_take_strings_lists_and_ids(void **state)
{
    static const struct {
        const char *prompt;
        int choices;
    } cases[] = {{"\"abc\"", 1},
                 {"[\"abc\",\"defg\"]", 2},
                 {"[65,66,67]", 1},
                 {"[[65],[66,67],[68]]", 3},
                 {"\"\"", 1}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char body[256];
        qr_json *parsed = NULL;
        (void)snprintf(body, sizeof(body), "{\"prompt\":%s,\"max_tokens\":2,\"n\":2}", cases[i].prompt);
        char *reply = post("/v1/completions", body, 200);
        assert_int_equal(qr_json_parse(qr_str_of(rig_body(reply)), &qr_json_limits_request, &parsed, NULL),
                         QR_OK);
        assert_int_equal(qr_json_count(qr_json_get(parsed, "choices")), cases[i].choices * 2);
        assert_int_equal(qr_json_int(qr_json_get(qr_json_get(parsed, "usage"), "completion_tokens"), -1),
                         cases[i].choices * 4);
        qr_json_free(parsed);
        free(reply);
    }
    (void)state;
}

static void completions_show_echo_logprobs_and_ids(void **state)
{
    char *reply = post("/v1/completions",
                       "{\"prompt\":[65,66],\"max_tokens\":2,\"echo\":true,\"return_token_ids\":true}", 200);
    has(reply, "\"text\":\"ABOn\"");
    has(reply, "\"token_ids\":[79,110]");
    has(reply, "\"prompt_token_ids\":[65,66]");
    free(reply);
    reply = post("/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":2,\"logprobs\":1}", 200);
    has(reply, "\"logprobs\":{\"tokens\":[\"O\",\"n\"],\"token_logprobs\":[-0.25,-0.25],\"top_logprobs\":[{"
               "\"a\":-0.5,\"O\":-0.25},"
               "{\"a\":-0.5,\"n\":-0.25}],\"text_offset\":[0,1]}");
    free(reply);
    reply =
        post("/v1/completions",
             "{\"prompt\":\"x\",\"max_tokens\":1,\"logprobs\":0,\"return_tokens_as_token_ids\":true}", 200);
    has(reply, "\"tokens\":[\"token_id:79\"]");
    free(reply);
    reply = post("/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":0,\"echo\":true}", 200);
    has(reply, "\"text\":\"x\"");
    free(reply);
    (void)state;
}

static void chat_logprobs_have_openais_shape(void **state)
{
    char *reply = post("/v1/chat/completions",
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":1,\"logprobs\":"
                       "true,\"top_logprobs\":1}",
                       200);
    has(reply, "\"logprobs\":{\"content\":[{\"token\":\"O\",\"logprob\":-0.25,\"bytes\":[79],\"top_"
               "logprobs\":[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]}]}],\"refusal\":null}");
    free(reply);
    (void)state;
}

static void a_stop_string_is_the_stop_reason(void **state)
{
    char *reply = post("/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":50,\"stop\":\"time\"}", 200);
    has(reply, "\"finish_reason\":\"stop\",\"stop_reason\":\"time\"");
    free(reply);
    reply = post("/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":50,\"stop\":\"time\",\"stream\":true}",
                 200);
    has(reply, "\"finish_reason\":\"stop\",\"stop_reason\":\"time\"");
    free(reply);
    (void)state;
}

static void a_prompt_that_turns_out_wrong_is_a_400_also_when_streamed(void **state)
{
    static const char *const streams[] = {"false", "true"};
    for (int i = 0; i < 2; i++) {
        char body[128];
        (void)snprintf(
            body, sizeof(body),
            "{\"prompt\":[\"fine\",\"fail\"],\"max_tokens\":500,\"ignore_eos\":true,\"stream\":%s}",
            streams[i]);
        char *reply = rig_request(&shared_rig, "POST", "/v1/completions", "", body);
        /* The other prompt may have begun the stream: then the error is its last event. */
        if (rig_status(reply) == 200)
            has(reply, "data: {\"error\":{\"message\":\"template: line 1: failed on "
                       "purpose\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n\ndata: "
                       "[DONE]");
        else
            has(reply, "{\"error\":{\"message\":\"template: line 1: failed on "
                       "purpose\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}");
        assert_true(i == 1 || rig_status(reply) == 400);
        free(reply);
        assert_true(rig_idle(&shared_rig, 1000));
    }
    (void)state;
}

static void a_full_queue_is_a_429_with_retry_after(void **state)
{
    shared_rig.engine->capacity = 1;
    char *reply = post("/v1/completions", "{\"prompt\":[\"a\",\"b\"]}", 429);
    has(reply, "Retry-After: ");
    has(reply, "\"code\":\"server_overloaded\"");
    free(reply);
    shared_rig.engine->capacity = FAKE_REQUESTS_MAX;
    assert_true(rig_idle(&shared_rig, 1000));
    (void)state;
}

/* ---- Bad fields ------------------------------------------------------------------------------------ */

static void a_wrong_field_is_a_400_that_names_it(void **state)
{
    static const struct {
        const char *field, *value;
    } cases[] = {
        {"n", "0"},
        {"n", "-1"},
        {"n", "129"},
        {"n", "2147483648"},
        {"n", "1000000000"},
        {"n", "1.5"},
        {"n", "\"1\""},
        {"n", "[]"},
        {"best_of", "2"},
        {"temperature", "-0.1"},
        {"temperature", "1e308"},
        {"temperature", "\"hot\""},
        {"temperature", "101"},
        {"top_p", "0"},
        {"top_p", "1.01"},
        {"top_p", "-1"},
        {"top_k", "-2"},
        {"top_k", "9223372036854775807"},
        {"min_p", "2"},
        {"presence_penalty", "2.1"},
        {"frequency_penalty", "-2.1"},
        {"repetition_penalty", "0"},
        {"seed", "1.5"},
        {"seed", "\"7\""},
        {"max_tokens", "-1"},
        {"max_tokens", "0"},
        {"max_tokens", "9223372036854775807"},
        {"min_tokens", "-1"},
        {"min_tokens", "17"},
        {"stop", "\"\""},
        {"stop", "[1]"},
        {"stop", "{}"},
        {"stop_token_ids", "[-1]"},
        {"stop_token_ids", "[257]"},
        {"stop_token_ids", "7"},
        {"logit_bias", "{\"-1\":1}"},
        {"logit_bias", "{\"9999\":1}"},
        {"logit_bias", "{\"x\":1}"},
        {"logit_bias", "{\"1\":101}"},
        {"logit_bias", "{\"1\":\"1\"}"},
        {"logit_bias", "[]"},
        {"allowed_token_ids", "[]"},
        {"allowed_token_ids", "[300]"},
        {"bad_words", "\"x\""},
        {"bad_words", "[\"\"]"},
        {"logprobs", "-1"},
        {"logprobs", "true"},
        {"logprobs", "1000000000"},
        {"prompt_logprobs", "-1"},
        {"stream", "1"},
        {"stream_options", "{}"},
        {"stream_options", "[]"},
        {"echo", "\"yes\""},
        {"suffix", "\"x\""},
        {"use_beam_search", "true"},
        {"structured_outputs", "{\"json\":{}}"},
        {"guided_json", "{}"},
        {"guided_regex", "\"(a+)+$\""},
        {"prompt_embeds", "\"AAAA\""},
        {"response_format", "{\"type\":\"json_object\"}"},
        {"response_format", "{\"type\":\"json_schema\",\"json_schema\":{}}"},
        {"response_format", "\"text\""},
        {"kv_transfer_params", "{\"a\":1}"},
        {"cache_salt", "\"\""},
        {"priority", "2147483648"},
        {"truncate_prompt_tokens", "-2"},
        {"request_id", "\"a\\nb\""},
        {"length_penalty", "2"},
        {"stream_interval", "4"},
        {"thinking_token_budget", "5"},
        {"logprob_token_ids", "[1]"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char body[256], wanted[96];
        (void)snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"%s\":%s}", cases[i].field, cases[i].value);
        (void)snprintf(wanted, sizeof(wanted), "\"param\":\"%s\"", cases[i].field);
        char *reply = post("/v1/completions", body, 400);
        has(reply, "\"type\":\"invalid_request_error\"");
        has(reply, wanted);
        free(reply);
    }
    (void)state;
}

static void null_and_harmless_values_are_as_absent(void **state)
{
    static const char *const fields[] = {"\"n\":null",
                                         "\"stop\":null",
                                         "\"seed\":null",
                                         "\"seed\":-1",
                                         "\"seed\":9223372036854775807",
                                         "\"logit_bias\":{}",
                                         "\"suffix\":null",
                                         "\"suffix\":\"\"",
                                         "\"best_of\":1",
                                         "\"use_beam_search\":false",
                                         "\"response_format\":{\"type\":\"text\"}",
                                         "\"user\":\"me\"",
                                         "\"stop\":[]",
                                         "\"temperature\":-0.0",
                                         "\"temperature\":0",
                                         "\"n\":1.0",
                                         "\"unknown_field\":{\"deep\":[1]}",
                                         "\"prompt_embeds\":null",
                                         "\"model\":\"org/alias\"",
                                         "\"model\":\"\"",
                                         "\"length_penalty\":1.0",
                                         "\"bad_words\":[]",
                                         "\"priority\":-5",
                                         "\"cache_salt\":\"s\""};
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        char body[256];
        (void)snprintf(body, sizeof(body), "{\"prompt\":\"x\",\"max_tokens\":1,%s}", fields[i]);
        free(post("/v1/completions", body, 200));
    }
    (void)state;
}

static void bodies_that_are_not_a_request_are_refused(void **state)
{
    static const char *const chat[] = {
        "",
        "{",
        "[]",
        "null",
        "\"x\"",
        "{}",
        "{\"messages\":null}",
        "{\"messages\":[]}",
        "{\"messages\":{}}",
        "{\"messages\":\"hi\"}",
        "{\"messages\":[1]}",
        "{\"messages\":[{}]}",
        "{\"messages\":[{\"role\":\"user\"}]}",
        "{\"messages\":[{\"role\":1,\"content\":\"x\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":5}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":NaN}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":Infinity}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":1e999}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":1,\"n\":2}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0000\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_logprobs\":3}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\"}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{\"name\":\"f\"}]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":{}}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template\":\"{{ 1 }}\"}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":{\"tokenize\":true}}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"continue_final_message\":true}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"functions\":[{}]}"};
    for (size_t i = 0; i < sizeof(chat) / sizeof(chat[0]); i++)
        free(post("/v1/chat/completions", chat[i], 400));
    static const char *const prompts[] = {"null",          "[]",          "{}",      "5",      "[[]]",
                                          "[\"a\",1]",     "[1,\"a\"]",   "[1.5]",   "[-1]",   "[257]",
                                          "[99999999999]", "[[1],\"a\"]", "[[[1]]]", "[true]", "[null]"};
    for (size_t i = 0; i < sizeof(prompts) / sizeof(prompts[0]); i++) {
        char body[128];
        (void)snprintf(body, sizeof(body), "{\"prompt\":%s}", prompts[i]);
        char *reply = post("/v1/completions", body, 400);
        has(reply, "\"param\":\"prompt\"");
        free(reply);
    }
    (void)state;
}

static void a_million_prompts_or_levels_cost_one_400(void **state)
{
    qr_buf body = {0};
    qr_buf_append_cstr(&body, "{\"prompt\":[\"a\"");
    for (int i = 0; i < 1000000; i++)
        qr_buf_append_cstr(&body, ",\"a\"");
    qr_buf_append_cstr(&body, "]}");
    free(post("/v1/completions", body.data, 400));
    qr_buf_clear(&body);
    qr_buf_append_cstr(&body, "{\"prompt\":");
    for (int i = 0; i < 100000; i++)
        qr_buf_append_char(&body, '[');
    free(post("/v1/completions", body.data, 400));
    qr_buf_clear(&body);
    qr_buf_append_cstr(&body, "{\"prompt\":\"x\"");
    for (int i = 0; i < 1000; i++)
        qr_buf_printf(&body, ",\"k%d\":1", i);
    qr_buf_append_cstr(&body, "}");
    free(post("/v1/completions", body.data, 400));
    qr_buf_release(&body);
    (void)state;
}

static void long_bodies_and_long_replies_go_by_the_worker(void **state)
{
    char *padding = calloc(1, 200001);
    memset(padding, 'x', 200000);
    qr_buf body = {0};
    qr_buf_printf(
        &body,
        "{\"prompt\":\"a\",\"user\":\"%s\",\"max_tokens\":500,\"ignore_eos\":true,\"n\":4,\"logprobs\":3}",
        padding);
    char *by_worker = post("/v1/completions", body.data, 200);
    char *here =
        post("/v1/completions",
             "{\"prompt\":\"a\",\"max_tokens\":500,\"ignore_eos\":true,\"n\":4,\"logprobs\":3}", 200);
    assert_string_equal(strstr(by_worker, "\"choices\""), strstr(here, "\"choices\""));
    free(by_worker);
    free(here);
    /* Clients that leave while the worker has their call: before, during and after. */
    for (int i = 0; i < 40; i++) {
        qr_buf text = {0};
        qr_buf_printf(&text,
                      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                      "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                      body.len, body.data);
        int fd = rig_connect(&shared_rig);
        rig_send(fd, text.data, text.len);
        nanosleep(&(struct timespec){0, i * 4000000}, NULL);
        close(fd);
        qr_buf_release(&text);
    }
    assert_true(rig_idle(&shared_rig, 2000));
    qr_buf_release(&body);
    free(padding);
    (void)state;
}

/* ---- The other routes ------------------------------------------------------------------------------ */

static void models_lists_every_name_and_an_unknown_one_is_a_404(void **state)
{
    char *reply = rig_request(&shared_rig, "GET", "/v1/models", "", NULL);
    has(reply, "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\"");
    has(reply, "\"id\":\"org/alias\"");
    has(reply, "\"max_model_len\":4096");
    free(reply);
    reply = rig_request(&shared_rig, "GET", "/v1/models/org%2Falias", "", NULL);
    assert_int_equal(rig_status(reply), 200);
    free(reply);
    reply = rig_request(&shared_rig, "GET", "/v1/models/no%00pe", "", NULL);
    assert_int_equal(rig_status(reply), 404);
    free(reply);
    reply = post("/v1/chat/completions",
                 "{\"model\":\"gpt-4\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 404);
    has(reply, "\"param\":\"model\",\"code\":\"model_not_found\"");
    free(reply);
    (void)state;
}

static void tokenize_and_detokenize_are_inverse(void **state)
{
    char *reply = post("/tokenize", "{\"prompt\":\"ABC\"}", 200);
    assert_string_equal(rig_body(reply),
                        "{\"count\":3,\"max_model_len\":4096,\"tokens\":[65,66,67],\"token_strs\":null}");
    free(reply);
    reply = post("/tokenize",
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"AB\"}],\"return_token_strs\":true}", 200);
    assert_string_equal(
        rig_body(reply),
        "{\"count\":2,\"max_model_len\":4096,\"tokens\":[65,66],\"token_strs\":[\"A\",\"B\"]}");
    free(reply);
    reply = post("/detokenize", "{\"tokens\":[65,66,67]}", 200);
    assert_string_equal(rig_body(reply), "{\"prompt\":\"ABC\"}");
    free(reply);
    static const char *const bad[] = {"{}",
                                      "[]",
                                      "{",
                                      "{\"prompt\":1}",
                                      "{\"messages\":[]}",
                                      "{\"prompt\":\"x\",\"add_special_tokens\":1}",
                                      "{\"prompt\":\"x\",\"model\":1}"};
    for (size_t i = 0; i + 1 < sizeof(bad) / sizeof(bad[0]); i++)
        free(post("/tokenize", bad[i], 400));
    static const char *const bad_ids[] = {"{}", "{\"tokens\":1}", "{\"tokens\":[-1]}", "{\"tokens\":[257]}",
                                          "{\"tokens\":[\"a\"]}"};
    for (size_t i = 0; i < sizeof(bad_ids) / sizeof(bad_ids[0]); i++)
        free(post("/detokenize", bad_ids[i], 400));
    (void)state;
}

static void health_follows_the_engine_not_the_socket(void **state)
{
    char *reply = rig_request(&shared_rig, "GET", "/health", "", NULL);
    assert_int_equal(rig_status(reply), 200);
    free(reply);
    shared_rig.engine->healthy = false;
    reply = rig_request(&shared_rig, "GET", "/health", "", NULL);
    assert_int_equal(rig_status(reply), 503);
    free(reply);
    shared_rig.engine->healthy = true;
    reply = rig_request(&shared_rig, "GET", "/health_generate", "", NULL);
    assert_int_equal(rig_status(reply), 200);
    free(reply);
    (void)state;
}

static void health_generate_says_503_when_no_token_comes(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.health_generate_timeout_ms = 100;
    rig_start(&r, &options);
    r.engine->stuck = true;
    char *reply = rig_request(&r, "GET", "/health_generate", "", NULL);
    assert_int_equal(rig_status(reply), 503);
    free(reply);
    assert_true(rig_idle(&r, 500));
    r.engine->stuck = false;
    reply = rig_request(&r, "GET", "/health_generate", "", NULL);
    assert_int_equal(rig_status(reply), 200);
    free(reply);
    rig_stop(&r);
    (void)state;
}

static void metrics_are_prometheus_text(void **state)
{
    char *reply = rig_request(&shared_rig, "GET", "/metrics", "", NULL);
    has(reply, "Content-Type: text/plain; version=0.0.4");
    has(reply, "# TYPE vllm:num_requests_running "
               "gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"fake\"} 2.0\n");
    has(reply,
        "# TYPE vllm:request_success_total "
        "counter\nvllm:request_success_total{engine=\"0\",model_name=\"fake\",finished_reason=\"stop\"} 5.0\n"
        "vllm:request_success_total{engine=\"0\",model_name=\"fake\",finished_reason=\"abort\"} 1.0\n");
    has(reply, "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"fake\",le=\"0.5\"} 1.0\n"
               "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"fake\",le=\"1.0\"} 3.0\n"
               "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"fake\",le=\"+Inf\"} 6.0\n"
               "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"fake\"} 6.0\n"
               "vllm:time_to_first_token_seconds_sum{engine=\"0\",model_name=\"fake\"} 4.25\n");
    has(reply, "http_requests_total{handler=\"/v1/models\",status=\"2xx\"} ");
    free(reply);
    (void)state;
}

static void the_documentation_lists_every_field_as_it_is_read(void **state)
{
    qr_buf page = {0}, row = {0};
    assert_int_equal(qr_file_read(QR_TESTS_DIR "/../docs/http-api.md", 1 << 20, &page, NULL), QR_OK);
    for (size_t i = 0; qr_api_field_row(i, &row); i++) {
        has(page.data, row.data);
        qr_buf_clear(&row);
    }
    qr_buf_release(&page);
    qr_buf_release(&row);
    (void)state;
}

static char seen_log[8192];

static void keep_log(void *user, qr_log_level level, const char *line)
{
    (void)user;
    (void)level;
    if (strstr(line, "throughput") != NULL || strstr(line, "unknown_fields") != NULL)
        (void)snprintf(seen_log + strlen(seen_log), sizeof(seen_log) - strlen(seen_log), "%s\n", line);
}

static void the_log_has_vllms_throughput_line_and_unknown_fields(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.stats_interval_ms = 30;
    qr_log_set(QR_LOG_INFO, keep_log, NULL);
    rig_start(&r, &options);
    free(rig_request(&r, "POST", "/v1/completions", "",
                     "{\"prompt\":\"a\",\"max_tokens\":2,\"strange\":1,\"odd\\\"\":2}"));
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    rig_stop(&r);
    qr_log_set(QR_LOG_OFF, NULL, NULL);
    has(seen_log, "Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: ");
    has(seen_log, "Running: 1 reqs, Waiting: 0 reqs, KV cache usage: 0.0%, Prefix cache hit rate: 0.0%");
    has(seen_log, "ignored=\"strange,odd?\"");
    (void)state;
}

static void the_request_id_comes_back_unless_it_could_do_harm(void **state)
{
    char *reply = rig_request(&shared_rig, "GET", "/version", "X-Request-Id: abc-1\r\n", NULL);
    has(reply, "X-Request-Id: abc-1\r\n");
    free(reply);
    reply = rig_request(&shared_rig, "GET", "/version", "X-Request-Id: a\"b c\r\n", NULL);
    has_not(reply, "a\"b");
    free(reply);
    (void)state;
}

static void a_stream_says_how_far_it_is_to_whom_asks(void **state)
{
    const char *body = "{\"prompt\":\"ab\",\"max_tokens\":4,\"stream\":true}";
    char *plain = post("/v1/completions", body, 200);
    has_not(plain, "\n: quire");
    has_not(plain, "X-Quire-Created");
    char *marked = rig_request(&shared_rig, "POST", "/v1/completions", "X-Quire-Marks: 1\r\n", body);
    has(marked, "X-Quire-Created: ");
    has(marked, "X-Quire-Fingerprint: ");
    qr_buf ids = {0};
    bool closed = false;
    size_t text_bytes = 0;
    for (const char *at = marked; (at = strstr(at, "\n: quire 0 ")) != NULL; at++) {
        char list[64] = "";
        assert_false(closed);
        assert_memory_equal(at - 2, "}\n", 2); /* behind a chunk */
        int got = sscanf(at, "\n: quire 0 %zu %63[0-9,]", &text_bytes, list);
        assert_true(got >= 1);
        qr_buf_append_cstr(&ids, ids.len > 0 && got == 2 ? "," : "");
        qr_buf_append_cstr(&ids, list);
        closed = strncmp(strstr(at + 1, "\n\n") - 7, " closed", 7) == 0;
    }
    assert_string_equal(ids.data, "79,110,99,101"); /* "Once" */
    assert_int_equal(text_bytes, 4);
    assert_true(closed);
    qr_buf_release(&ids);
    free(plain);
    free(marked);
    (void)state;
}

static void a_resumption_needs_what_it_continues(void **state)
{
    static const char *const wrong[] = {
        "\"output_prefix_ids\":[1],\"n\":2,\"seed\":1",
        "\"output_prefix_ids\":[1]",
        "\"output_prefix_ids\":[9999],\"seed\":1",
        "\"resume\":[],\"seed\":1,\"stream\":true",
        "\"resume\":{\"created\":1},\"seed\":1,\"stream\":true",
        "\"resume\":{\"created\":1,\"text_bytes\":-1},\"seed\":1,\"stream\":true",
        "\"resume\":{\"created\":1,\"text_bytes\":1,\"closed\":1},\"seed\":1,\"stream\":true",
        "\"resume\":{\"created\":1,\"text_bytes\":1},\"seed\":1",
    };
    for (size_t i = 0; i < QR_COUNT_OF(wrong); i++) {
        char body[256];
        snprintf(body, sizeof(body), "{\"prompt\":\"ab\",\"max_tokens\":4,%s}", wrong[i]);
        free(post("/v1/completions", body, 400));
    }
    char *fine =
        post("/v1/completions",
             "{\"prompt\":\"ab\",\"max_tokens\":4,\"stream\":true,\"seed\":1,\"resume\":{\"created\":77,"
             "\"text_bytes\":0,\"opened\":true}}",
             200);
    has(fine, "\"created\":77,");
    free(fine);
    (void)state;
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_reply_has_openais_shape),
        cmocka_unit_test(a_chat_stream_is_role_text_finish_usage_done),
        cmocka_unit_test(streamed_text_is_the_whole_text),
        cmocka_unit_test(completions_take_strings_lists_and_ids),
        cmocka_unit_test(completions_show_echo_logprobs_and_ids),
        cmocka_unit_test(chat_logprobs_have_openais_shape),
        cmocka_unit_test(a_stop_string_is_the_stop_reason),
        cmocka_unit_test(a_prompt_that_turns_out_wrong_is_a_400_also_when_streamed),
        cmocka_unit_test(a_full_queue_is_a_429_with_retry_after),
        cmocka_unit_test(a_wrong_field_is_a_400_that_names_it),
        cmocka_unit_test(null_and_harmless_values_are_as_absent),
        cmocka_unit_test(bodies_that_are_not_a_request_are_refused),
        cmocka_unit_test(a_million_prompts_or_levels_cost_one_400),
        cmocka_unit_test(long_bodies_and_long_replies_go_by_the_worker),
        cmocka_unit_test(models_lists_every_name_and_an_unknown_one_is_a_404),
        cmocka_unit_test(tokenize_and_detokenize_are_inverse),
        cmocka_unit_test(health_follows_the_engine_not_the_socket),
        cmocka_unit_test(health_generate_says_503_when_no_token_comes),
        cmocka_unit_test(metrics_are_prometheus_text),
        cmocka_unit_test(the_documentation_lists_every_field_as_it_is_read),
        cmocka_unit_test(the_log_has_vllms_throughput_line_and_unknown_fields),
        cmocka_unit_test(the_request_id_comes_back_unless_it_could_do_harm),
        cmocka_unit_test(a_stream_says_how_far_it_is_to_whom_asks),
        cmocka_unit_test(a_resumption_needs_what_it_continues),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
