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
#include "quire.h"
#include "text/chat.h"

static const char tokenizer_json[] =
    "{\"version\": \"1.0\", \"added_tokens\": ["
    "{\"id\": 10, \"content\": \"<|im_start|>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": "
    "false, \"normalized\": false, \"special\": true},"
    "{\"id\": 11, \"content\": \"<|im_end|>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
    "\"normalized\": false, \"special\": true},"
    "{\"id\": 12, \"content\": \"<tool>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
    "\"normalized\": false, \"special\": false}],"
    "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
    "\"trim_offsets\": true, \"use_regex\": true},"
    "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"},"
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"<\": 0, \"|\": 1, \"i\": 2, \"m\": 3, \"_\": 4, \"e\": 5, "
    "\"n\": 6, \"d\": 7, \">\": 8, \"a\": 9}, \"merges\": []}}";

#define CHATML                                                                                             \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define SMOLLM2                                                                                          \
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "            \
    "'<|im_start|>system\n"                                                                              \
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"    \
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}" \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

static qr_tokenizer *open_tokenizer(const char *template_source)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_str config = QR_STR("{\"eos_token\": \"<|im_end|>\", \"bos_token\": \"<|im_start|>\"}");
    if (qr_text_tokenizer_from_json(qr_str_of(tokenizer_json), config, "test", &tokenizer, &err) != QR_OK)
        fail_msg("%s", err.message);
    if (template_source != NULL && qr_tokenizer_set_chat_template(tokenizer, template_source, &err) != QR_OK)
        fail_msg("%s", err.message);
    return tokenizer;
}

static qr_status render(const char *template_source, const char *request, char **text, qr_error *err)
{
    qr_tokenizer *tokenizer = open_tokenizer(template_source);
    qr_status status = qr_template_render(tokenizer, request, strlen(request), text, NULL, err);
    qr_tokenizer_close(tokenizer);
    return status;
}

static void expect(const char *template_source, const char *request, const char *want)
{
    char *text = NULL;
    qr_error err = {0};
    if (render(template_source, request, &text, &err) != QR_OK)
        fail_msg("%s", err.message);
    assert_string_equal(text, want);
    qr_free(text);
}

static void expect_error(const char *template_source, const char *request, qr_status status, const char *want)
{
    char *text = NULL;
    qr_error err = {0};
    assert_int_equal(render(template_source, request, &text, &err), status);
    if (strstr(err.message, want) == NULL)
        fail_msg("%s: want %s, got %s", request, want, err.message);
    assert_null(text);
}

static void smollm2s_template_renders(void **state)
{
    (void)state;
    expect(
        SMOLLM2, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    expect(SMOLLM2,
           "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": "
           "\"Hi\"}], "
           "\"add_generation_prompt\": false}",
           "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

static void variables_are_those_of_transformers(void **state)
{
    (void)state;
    const char *source = "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools }}{{ documents "
                         "}}{{ add_generation_prompt }}"
                         "{{ messages|length }}{{ enable_thinking }}";
    expect(source,
           "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"chat_template_kwargs\": "
           "{\"enable_thinking\": false}}",
           "<|im_start|><|im_end|>FalseNoneNoneTrue1False");
    expect("{{ tools|tojson }}{{ documents[0].text }}{{ bos_token }}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"type\": "
           "\"function\"}], \"documents\": "
           "[{\"text\": \"D\"}], \"chat_template_kwargs\": {\"bos_token\": \"B\"}}",
           "[{\"type\": \"function\"}]DB");
}

static void an_answers_prefix_comes_behind_the_prompt(void **state)
{
    (void)state;
#define USER "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"answer_prefix\": \"<|im_end|>[\"}"
    expect(CHATML, USER, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<|im_end|>[");
    expect("{{ messages[0].content + '<think>\n' }}", USER, "x<think>\n\n</think>\n\n<|im_end|>[");
    expect("{{ messages[0].content }}[THINK]", USER, "x[THINK][/THINK]<|im_end|>[");
    expect("{{ messages[0].content + '<think>\n\n</think>\n\n' }}", USER,
           "x<think>\n\n</think>\n\n<|im_end|>[");
#undef USER
}

static void special_tokens_spelled_in_untrusted_text_are_marked(void **state)
{
    (void)state;
    expect("{{ messages[0].content }}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"a<|im_end|>b <tool> <|im_start|>\"}]}",
           "a<\xff|im_end|>b <tool> <\xff|im_start|>");
    expect("{{ messages[0].content }}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"<<|im_end|><|im_en\"}]}",
           "<<\xff|im_end|><|im_en");
    expect("{{ messages[0].content }}",
           "{\"messages\": [{\"role\": \"assistant\", \"content\": \"<|im_end|>\"}]}", "<|im_end|>");
    expect("{{ messages[0].content }}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"<|im_end|>\"}], "
           "\"allow_special_in_content\": true}",
           "<|im_end|>");
    expect("{{ tools|tojson }}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"\"}], \"tools\": [{\"<|im_end|>\": "
           "[\"<|im_end|>\"]}]}",
           "[{\"<\xff|im_end|>\": [\"<\xff|im_end|>\"]}]");
    expect("{{ messages[0].role }}{{ messages[0].name|upper }}{{ messages[0].name|length }}",
           "{\"messages\": [{\"role\": \"to<|im_end|>\", \"content\": \"\", \"name\": \"<|im_end|>\"}]}",
           "to<\xff|im_end|><\xff|IM_END|>11");
}

static void marked_text_encodes_without_special_tokens(void **state)
{
    (void)state;
    qr_tokenizer *tokenizer = open_tokenizer("{{ messages[0].content }}<|im_end|>");
    const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"a<|im_end|>\"}]}";
    char *text = NULL;
    int32_t *ids = NULL;
    size_t bytes = 0, count = 0, specials = 0;
    qr_error err = {0};
    assert_int_equal(qr_template_render(tokenizer, request, strlen(request), &text, &bytes, &err), QR_OK);
    assert_int_equal(qr_tokenizer_encode(tokenizer, text, bytes, NULL, &ids, &count, &err), QR_OK);
    for (size_t i = 0; i < count; i++)
        specials += ids[i] == 11;
    assert_int_equal(specials, 1); /* the template's own */
    assert_int_equal(ids[count - 1], 11);
    assert_int_equal(count, 1 + 10 + 1); /* "a", ten characters, the token */
    qr_ids_free(ids);
    qr_free(text);
    qr_tokenizer_close(tokenizer);
}

static void parts_side_by_side_cannot_make_a_special_token(void **state)
{
    (void)state;
    const char *request =
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x<|im\"}, "
        "{\"type\": \"text\", \"text\": \"_end|>y\"}]}]}";
    expect("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", request, "x<\xff|im_end|>y");
    expect("{{ messages[0].content }}", request, "x<\xff|im\n_end|>y");
}

static void content_comes_as_the_template_wants_it(void **state)
{
    (void)state;
    const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
                          "\"one\"}, {\"type\": "
                          "\"input_text\", \"text\": \"two\"}, \"three\"]}]}";
    expect("{{ messages[0].content }}", request, "one\ntwo\nthree");
    expect("{% for p in messages[0].content %}[{{ p.type }}:{{ p.text }}]{% endfor %}", request,
           "[text:one][text:two][text:three]");
    expect("{% for m in messages %}{% if m.content is string %}s{% else %}{% for p in m.content %}p{% endfor "
           "%}{% endif %}{% endfor %}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}]}", "s");
    expect("{{ messages[0].content }}", "{\"messages\": [{\"role\": \"assistant\", \"content\": null}]}",
           "None");
    expect("{% for p in messages[0].content %}[{{ p.type }}:{{ p.text }}]{% endfor %}",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"<|im_end|>\"}]}", "[text:<\xff|im_end|>]");
}

static void tool_call_arguments_become_objects(void **state)
{
    (void)state;
    const char *source =
        "{{ messages[0].tool_calls[0].function.arguments|tojson }}{{ messages[0].tool_calls[0].id }}";
    expect(source,
           "{\"messages\": [{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"c\", "
           "\"function\": {\"name\": "
           "\"f\", \"arguments\": \"{\\\"b\\\": [1, \\\"<|im_end|>\\\"], \\\"a\\\": null}\"}}]}]}",
           "{\"b\": [1, \"<|im_end|>\"], \"a\": null}c");
    expect(source,
           "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"id\": 1, \"function\": "
           "{\"arguments\": {\"x\": 1}}}]}]}",
           "{\"x\": 1}1");
    expect(source,
           "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"id\": 1, \"function\": "
           "{\"arguments\": \"\"}}]}]}",
           "{}1");
    expect_error(source,
                 "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"arguments\": "
                 "\"{x\"}}]}]}",
                 QR_INVALID_ARGUMENT, "chat: messages[0]: tool_calls: arguments are not JSON");
}

static void a_final_message_is_left_open(void **state)
{
    (void)state;
    const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": "
                          "\"assistant\", \"content\": \"Once upon \"}], "
                          "\"continue_final_message\": true}";
    expect(CHATML, request, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOnce upon ");
    expect("{% for m in messages %}[{{ m.content|trim }}]{% endfor %}", request, "[Hi][Once upon");
    expect_error("{{ messages[0].content }}", request, QR_INVALID_ARGUMENT, "final message's text is not in");
    expect_error(
        CHATML,
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"continue_final_message\": true, "
        "\"add_generation_prompt\": true}",
        QR_INVALID_ARGUMENT, "exclude each other");
}

static void bad_requests_say_what_is_wrong(void **state)
{
    (void)state;
    expect_error(CHATML, "[]", QR_INVALID_ARGUMENT, "must be an object");
    expect_error(CHATML, "{", QR_INVALID_ARGUMENT, "line 1");
    expect_error(CHATML, "{}", QR_INVALID_ARGUMENT, "messages: must be a list that is not empty");
    expect_error(CHATML, "{\"messages\": []}", QR_INVALID_ARGUMENT, "not empty");
    expect_error(CHATML, "{\"messages\": [1]}", QR_INVALID_ARGUMENT, "messages[0]: must be an object");
    expect_error(CHATML, "{\"messages\": [{\"content\": \"x\"}]}", QR_INVALID_ARGUMENT, "messages[0]: role");
    expect_error(CHATML, "{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", QR_INVALID_ARGUMENT,
                 "content must be");
    expect_error(
        CHATML,
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \"image_url\": {}}]}]}",
        QR_UNSUPPORTED, "only text parts are supported, got type: image_url");
    expect_error(CHATML, "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]}",
                 QR_INVALID_ARGUMENT, "a text part without text");
    expect_error(CHATML, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": {}}",
                 QR_INVALID_ARGUMENT, "tools: must be a list");
    expect_error(CHATML,
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"chat_template_kwargs\": "
                 "{\"messages\": 1}}",
                 QR_INVALID_ARGUMENT, "messages has a field of its own");
    expect_error(CHATML,
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"add_generation_prompt\": 1}",
                 QR_INVALID_ARGUMENT, "must be true or false");
    expect_error("{{ raise_exception('Only users') }}",
                 "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", QR_INVALID_ARGUMENT,
                 "Only users");
    expect_error(NULL, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", QR_UNSUPPORTED,
                 "no chat template");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2s_template_renders),
        cmocka_unit_test(variables_are_those_of_transformers),
        cmocka_unit_test(an_answers_prefix_comes_behind_the_prompt),
        cmocka_unit_test(special_tokens_spelled_in_untrusted_text_are_marked),
        cmocka_unit_test(marked_text_encodes_without_special_tokens),
        cmocka_unit_test(parts_side_by_side_cannot_make_a_special_token),
        cmocka_unit_test(content_comes_as_the_template_wants_it),
        cmocka_unit_test(tool_call_arguments_become_objects),
        cmocka_unit_test(a_final_message_is_left_open),
        cmocka_unit_test(bad_requests_say_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
