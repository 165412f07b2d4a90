// links: qr_text qr_base
/* The token ids that mistral-common makes of its sample conversations (../shared), with its SentencePiece models: they
 * spell the recorded texts, and each stretch between control tokens encodes to the recorded ids. (Its encoder gives the
 * stretches one by one, which is why a space that a template writes behind a control token is not in them: the model
 * puts one there itself.) The texts against the templates are in test_templates.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "quire.h"
#include "text/tokenizer.h"

static qr_buf read_shared(const char *format, const char *a, const char *b)
{
    const char *shared = qr_env("QR_SHARED_DIR");
    qr_error err = {0};
    qr_buf path = {0}, text = {0};
    if (shared == NULL) {
        printf("skipped: QR_SHARED_DIR is not set\n");
        skip();
    }
    qr_buf_printf(&path, "%s/data/", shared);
    qr_buf_printf(&path, format, a, b);
    if (qr_file_read(path.data, 16u << 20, &text, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_buf_release(&path);
    return text;
}

static qr_tokenizer *open_model(const char *file)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_buf bytes = read_shared("tokenizers/mistral/%s%s", file, "");
    if (qr_text_tokenizer_from_model(qr_buf_str(&bytes), file, &tokenizer, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_buf_release(&bytes);
    return tokenizer;
}

/* U+2581 is a space there (one file has plain ones already), <0x0A> a newline. */
static void append_plain(qr_buf *out, const char *text)
{
    while (*text != '\0') {
        bool space = strncmp(text, "\xe2\x96\x81", 3) == 0, newline = strncmp(text, "<0x0A>", 6) == 0;
        qr_buf_append_char(out, space ? ' ' : newline ? '\n' : *text);
        text += space ? 3 : newline ? 6 : 1;
    }
}

/* ids[from, to): what stands between two control tokens. */
static void check_stretch(const qr_tokenizer *tokenizer, const int32_t *ids, size_t from, size_t to)
{
    qr_buf text = {0};
    int32_t *got = NULL;
    size_t count = 0;
    bool special;
    qr_encode_options options;
    qr_encode_options_init(&options);
    options.add_special_tokens = options.parse_special = false;
    for (size_t i = from; i < to; i++)
        append_plain(&text, qr_tokenizer_token(tokenizer, ids[i], &special));
    assert_true(text.len > 0 && text.data[0] == ' ');
    assert_int_equal(
        qr_tokenizer_encode(tokenizer, text.data + 1, text.len - 1, &options, &got, &count, NULL), QR_OK);
    assert_int_equal(count, to - from);
    assert_memory_equal(got, ids + from, count * sizeof(*ids));
    qr_ids_free(got);
    qr_buf_release(&text);
}

static size_t check_sample(const qr_tokenizer *tokenizer, const char *sample, const char *version)
{
    qr_json *json = NULL;
    qr_buf tokens = read_shared("chat-templates/mistral-common/samples/%s/tokens_%s.json", sample, version);
    qr_buf recorded = read_shared("chat-templates/mistral-common/samples/%s/text_%s.txt", sample, version);
    qr_buf want = {0}, text = {0};
    append_plain(&want, recorded.data);
    assert_int_equal(qr_json_parse(qr_buf_str(&tokens), &qr_json_limits_request, &json, NULL), QR_OK);
    const qr_json *list = qr_json_get(json, "tokens");
    size_t count = qr_json_count(list), begin = 0;
    assert_true(count > 0);
    int32_t *ids = qr_calloc(count + 1, sizeof(*ids));
    for (size_t i = 0; i < count; i++) {
        bool special = false;
        ids[i] = (int32_t)qr_json_int(qr_json_at(list, i), -1);
        append_plain(&text, qr_tokenizer_token(tokenizer, ids[i], &special));
        if (!special)
            continue;
        if (i > begin)
            check_stretch(tokenizer, ids, begin, i);
        begin = i + 1;
    }
    if (begin < count)
        check_stretch(tokenizer, ids, begin, count);
    assert_string_equal(text.data, want.data);
    qr_free(ids);
    qr_json_free(json);
    qr_buf_release(&tokens);
    qr_buf_release(&recorded);
    qr_buf_release(&want);
    qr_buf_release(&text);
    return count;
}

static void conversations_are_the_ids_that_mistral_common_makes(void **state)
{
    static const char *const samples[] = {
        "get_weather_full", "get_weather_no_history", "get_weather_no_system_prompt",
        "no_tools",         "parallel_calls",         "several_calls"};
    (void)state;
    qr_tokenizer *v1 = open_model("tokenizer.model.v1");
    qr_tokenizer *v3 =
        open_model("mistral_instruct_tokenizer_240323.model.v3"); /* v2's vocabulary is the same */
    size_t tokens = check_sample(v1, "no_tools", "v1");
    for (size_t i = 0; i < QR_COUNT_OF(samples); i++)
        tokens += check_sample(v3, samples[i], "v2") + check_sample(v3, samples[i], "v3");
    printf("13 conversations of mistral-common, %zu tokens\n", tokens);
    qr_tokenizer_close(v1);
    qr_tokenizer_close(v3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversations_are_the_ids_that_mistral_common_makes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
