// links: qr_text
/* tests/golden/tokenizer/families.jsonl: every normalizer, pre-tokenizer, model and decoder, and real families cut
 * small, against what the reference answered (make.py beside it); and streams against whole decodings. */
#include <stdio.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "support/cmocka.h"
#include "text/tokenizer_impl.h"

typedef struct totals {
    int families, cases, wrong;
} totals;

static bool same_ids(const qr_json *want, const int32_t *ids, size_t count)
{
    bool same = qr_json_count(want) == count;
    for (size_t i = 0; same && i < count; i++)
        same = qr_json_int(qr_json_at(want, i), -1) == ids[i];
    return same;
}

/* Token by token, each piece whole characters, the sum equal to the decoding at once; and the same after priming
 * with the first half. */
static bool streams_equal(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip,
                          qr_str want)
{
    size_t room = qr_tokenizer_token_bytes_max(tokenizer) + 64;
    char *out = qr_alloc(room);
    bool same = true;
    for (size_t primed = 0; primed <= count; primed += count / 2 + 1) {
        qr_buf text = {0};
        qr_detokenizer stream;
        qr_detokenizer_init(&stream, tokenizer, skip);
        qr_detokenizer_prime(&stream, ids, primed);
        for (size_t i = primed; i < count; i++) {
            size_t len = qr_detokenizer_push(&stream, ids[i], out, room);
            same = same && qr_utf8_validate(out, len) == len;
            qr_buf_append(&text, out, len);
        }
        qr_buf_append(&text, out, qr_detokenizer_finish(&stream, out, room));
        same = same &&
               (primed == 0 ? qr_str_equal(qr_buf_str(&text), want) : qr_str_ends(want, qr_buf_str(&text)));
        qr_buf_release(&text);
    }
    qr_free(out);
    return same;
}

static void check_case(const qr_tokenizer *tokenizer, const qr_json *item, const char *name, totals *sum)
{
    qr_str text = qr_json_string(qr_json_at(item, 0)), decoded = qr_json_string(qr_json_at(item, 3));
    qr_encode_options options;
    int32_t *ids = NULL;
    size_t count = 0, bytes = 0;
    char *back = NULL;
    qr_error err = {0};
    qr_encode_options_init(&options);
    options.add_special_tokens = qr_json_bool(qr_json_at(item, 1), false);
    options.truncate_and_pad = true;
    qr_status status = qr_tokenizer_encode(tokenizer, text.data, text.len, &options, &ids, &count, &err);
    bool good = status == QR_OK && same_ids(qr_json_at(item, 2), ids, count);
    if (good && decoded.data != NULL) {
        status = qr_tokenizer_decode(tokenizer, ids, count, options.add_special_tokens, &back, &bytes, &err);
        good = status == QR_OK && qr_str_equal(decoded, qr_str_make(back, bytes));
        if (good && tokenizer->stream != QR_STREAM_CHAIN)
            good = streams_equal(tokenizer, ids, count, options.add_special_tokens, decoded);
    }
    sum->cases++;
    if (!good) {
        sum->wrong++;
        printf("%s: '%.*s': %s\n", name, (int)text.len, text.data, status != QR_OK ? err.message : "differs");
    }
    qr_free(ids);
    qr_free(back);
}

static void check_family(qr_str line, totals *sum)
{
    qr_json *json = NULL;
    qr_error err = {0};
    qr_buf config = {0};
    qr_tokenizer *tokenizer = NULL;
    if (qr_json_parse(line, &qr_json_limits_file, &json, &err) != QR_OK)
        fail_msg("%s", err.message);
    const char *name = qr_json_cstring(qr_json_get(json, "name"), "?");
    qr_json_write(qr_json_get(json, "tokenizer"), 0, &config);
    if (qr_text_tokenizer_from_json(qr_buf_str(&config), qr_str_make(NULL, 0), name, &tokenizer, &err) !=
        QR_OK)
        fail_msg("%s", err.message);
    const qr_json *cases = qr_json_get(json, "cases");
    for (size_t i = 0; i < qr_json_count(cases); i++)
        check_case(tokenizer, qr_json_at(cases, i), name, sum);
    sum->families++;
    qr_tokenizer_close(tokenizer);
    qr_buf_release(&config);
    qr_json_free(json);
}

static void every_family_answers_as_the_reference(void **state)
{
    (void)state;
    totals sum = {0};
    qr_buf file = {0};
    assert_int_equal(qr_file_read(QR_TESTS_DIR "/golden/tokenizer/families.jsonl", 64 << 20, &file, NULL),
                     QR_OK);
    for (size_t at = 0; at < file.len;) {
        const char *end = memchr(file.data + at, '\n', file.len - at);
        size_t len = end != NULL ? (size_t)(end - file.data) - at : file.len - at;
        check_family(qr_str_make(file.data + at, len), &sum);
        at += len + 1;
    }
    qr_buf_release(&file);
    printf("%d families, %d cases, %d wrong\n", sum.families, sum.cases, sum.wrong);
    assert_true(sum.families > 80);
    assert_int_equal(sum.wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_answers_as_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
