// links: qr_text
/* The tokenizer's own promises: the 0xFF rule, options, streams, folders, GGUF vocabularies, hand-written scanners,
 * and files that are wrong. */
#include <stdio.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "support/cmocka.h"
#include "support/loader_images.h"
#include "text/tokenizer_impl.h"

#define BPE_TAIL                                                                                \
    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\"," \
    "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xC4\xA0\":3,\"\xC4\xA0"                             \
    "a\":4,\"<\":5,\">\":6,\"|\":7,\"\xC3\xA9\":8,"                                             \
    "\"\xC3\x83\":9,\"\xC2\xA9\":10,\"'\":11,\"s\":12,\"1\":13,\"\xC4\x8A\":14},"               \
    "\"merges\":[\"a b\",\"\xC4\xA0 a\"]}}"
static const char byte_bpe[] =
    "{\"added_tokens\":[{\"id\":15,\"content\":\"<|a|>\",\"special\":true,\"normalized\":false},"
    "{\"id\":16,\"content\":\"<b>\",\"special\":false,\"normalized\":false}],"
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}," BPE_TAIL;

static qr_tokenizer *load(const char *json, const char *config)
{
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    if (qr_text_tokenizer_from_json(qr_str_of(json), qr_str_of(config), "test", &tokenizer, &err) != QR_OK)
        fail_msg("%s", err.message);
    return tokenizer;
}

static void assert_ids(const qr_tokenizer *tokenizer, const char *text, size_t len,
                       const qr_encode_options *options, const int32_t *want, size_t want_count)
{
    int32_t *ids = NULL;
    size_t count = 0;
    assert_int_equal(qr_tokenizer_encode(tokenizer, text, len, options, &ids, &count, NULL), QR_OK);
    if (count != want_count)
        for (size_t i = 0; i < count; i++)
            printf("%d ", ids[i]);
    assert_int_equal(count, want_count);
    if (count > 0)
        assert_memory_equal(ids, want, count * sizeof(*ids));
    qr_ids_free(ids);
}
#define ASSERT_IDS(tokenizer, text, options, ...)                                          \
    assert_ids(tokenizer, text, sizeof(text) - 1, options, (const int32_t[]){__VA_ARGS__}, \
               sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void byte_ff_keeps_text_from_becoming_a_special_token(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    ASSERT_IDS(t, "<|a|>ab", NULL, 15, 2);
    ASSERT_IDS(t, "<\xFF|a|>ab", NULL, 5, 7, 0, 7, 6, 2);
    ASSERT_IDS(t,
               "a\xFF"
               "b",
               NULL, 0, 1);
    ASSERT_IDS(t,
               "\xFF\xFF"
               "ab\xFF",
               NULL, 2);
    assert_ids(t, "", 0, NULL, NULL, 0);
    assert_ids(t, "\xFF", 1, NULL, NULL, 0);
    qr_tokenizer_close(t);
}

static void options_choose_which_added_tokens_count(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    qr_encode_options options;
    qr_encode_options_init(&options);
    options.parse_special = false;
    ASSERT_IDS(t, "<|a|><b>", &options, 5, 7, 0, 7, 6, 16);
    options.parse_special = true;
    ASSERT_IDS(t, "<|a|><b>", &options, 15, 16);
    qr_tokenizer_close(t);
}

static void invalid_utf8_becomes_the_replacement_character(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    int32_t *a = NULL, *b = NULL;
    size_t a_count = 0, b_count = 0;
    assert_int_equal(qr_tokenizer_encode(t, "a\xE9\x80z", 4, NULL, &a, &a_count, NULL), QR_OK);
    assert_int_equal(qr_tokenizer_encode(t, "a\xEF\xBF\xBDz", 5, NULL, &b, &b_count, NULL), QR_OK);
    assert_int_equal(a_count, b_count);
    qr_ids_free(a);
    qr_ids_free(b);
    qr_tokenizer_close(t);
}

static void ids_out_of_range_are_refused_or_ignored(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    const int32_t bad[] = {0, 17}, worse[] = {-1};
    char *text = NULL, out[256];
    size_t bytes;
    qr_error err = {0};
    qr_detokenizer stream;
    assert_int_equal(qr_tokenizer_vocab_size(t), 17);
    assert_int_equal(qr_tokenizer_decode(t, bad, 2, false, &text, &bytes, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "17"));
    assert_int_equal(qr_tokenizer_decode(t, worse, 1, false, &text, &bytes, &err), QR_INVALID_ARGUMENT);
    assert_null(qr_tokenizer_token(t, 17, NULL));
    assert_null(qr_tokenizer_token(t, INT32_MIN, NULL));
    qr_detokenizer_init(&stream, t, false);
    assert_int_equal(qr_detokenizer_push(&stream, INT32_MAX, out, sizeof(out)), 0);
    qr_tokenizer_close(t);
}

static void tokens_are_found_by_their_spelling(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    bool special = false;
    assert_int_equal(qr_tokenizer_find(t,
                                       "\xC4\xA0"
                                       "a",
                                       3),
                     4);
    assert_int_equal(qr_tokenizer_find(t, "<|a|>", 5), 15);
    assert_int_equal(qr_tokenizer_find(t, "zz", 2), -1);
    assert_string_equal(qr_tokenizer_token(t, 15, &special), "<|a|>");
    assert_true(special);
    assert_string_equal(qr_tokenizer_token(t, 4, &special), "\xC4\xA0"
                                                            "a");
    assert_false(special);
    qr_tokenizer_close(t);
}

static void stream_holds_back_half_a_character(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    char out[256];
    qr_detokenizer stream;
    qr_detokenizer_init(&stream, t, true);
    assert_int_equal(qr_detokenizer_push(&stream, 9, out, sizeof(out)), 0);  /* C3 */
    assert_int_equal(qr_detokenizer_push(&stream, 10, out, sizeof(out)), 2); /* A9 */
    assert_memory_equal(out, "\xC3\xA9", 2);
    assert_int_equal(qr_detokenizer_push(&stream, 15, out, sizeof(out)), 0); /* special */
    assert_int_equal(qr_detokenizer_push(&stream, 9, out, sizeof(out)), 0);
    assert_int_equal(qr_detokenizer_finish(&stream, out, sizeof(out)), 3);
    assert_memory_equal(out, "\xEF\xBF\xBD", 3);
    qr_tokenizer_close(t);
}

/* ---- GGUF ---- */

static qr_tokenizer *load_vocab(const char *model, const char *pre, const qr_str *tokens, const float *scores,
                                const int32_t *types, int32_t count, const qr_str *merges,
                                int32_t merge_count)
{
    qr_vocab vocab = {.model = qr_str_of(model),
                      .pre = qr_str_of(pre),
                      .tokens = tokens,
                      .scores = scores,
                      .types = types,
                      .token_count = count,
                      .merges = merges,
                      .merge_count = merge_count,
                      .bos = 1,
                      .eos = 2,
                      .unk = 0,
                      .pad = -1,
                      .eot = -1,
                      .add_bos = -1,
                      .add_eos = -1,
                      .add_space_prefix = -1,
                      .remove_extra_whitespaces = -1};
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    if (qr_text_tokenizer_from_vocab(&vocab, "test.gguf", &tokenizer, &err) != QR_OK)
        fail_msg("%s", err.message);
    return tokenizer;
}

static void sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes(void **state)
{
    (void)state;
    const qr_str tokens[] = {QR_STR("<unk>"),
                             QR_STR("<s>"),
                             QR_STR("</s>"),
                             QR_STR("<0xC3>"),
                             QR_STR("<0xA9>"),
                             QR_STR("\xE2\x96\x81"),
                             QR_STR("a"),
                             QR_STR("b"),
                             QR_STR("\xE2\x96\x81"
                                    "a"),
                             QR_STR("ab"),
                             QR_STR("aa")};
    const float scores[] = {0, 0, 0, 0, 0, -5, -6, -7, -1, -2, -3};
    const int32_t types[] = {2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1};
    qr_tokenizer *t = load_vocab("llama", "default", tokens, scores, types, 11, NULL, 0);
    char *text = NULL;
    size_t bytes;
    ASSERT_IDS(t, "ab", NULL, 1, 8, 7);
    ASSERT_IDS(t, "bab", NULL, 1, 5, 7, 9);
    ASSERT_IDS(t, "\xC3\xA9", NULL, 1, 5, 3, 4);
    ASSERT_IDS(t, "a</s>", NULL, 1, 8, 2);
    const int32_t ids[] = {1, 8, 7, 3, 4, 5, 9};
    assert_int_equal(qr_tokenizer_decode(t, ids, 7, true, &text, &bytes, NULL), QR_OK);
    assert_string_equal(text, "ab\xC3\xA9 ab");
    qr_free(text);
    /* a token's own bytes: with its space, half a character as it is, cut where there is no room */
    char piece[8] = "........";
    assert_int_equal(qr_tokenizer_piece(t, 8, piece, sizeof(piece)), 2);
    assert_memory_equal(piece, " a.", 3);
    assert_int_equal(qr_tokenizer_piece(t, 3, piece, sizeof(piece)), 1);
    assert_memory_equal(piece,
                        "\xC3"
                        "a.",
                        3);
    assert_int_equal(qr_tokenizer_piece(t, 2, piece, 2), 4);
    assert_memory_equal(piece, "</.", 3);
    assert_int_equal(qr_tokenizer_piece(t, 9, NULL, 0), 2);
    assert_int_equal(qr_tokenizer_piece(t, 11, piece, 8), 0);
    assert_int_equal(qr_tokenizer_piece(t, -1, piece, 8), 0);
    qr_tokenizer_close(t);
}

/* A later Unicode calls U+05C9 and U+1ADE marks; the reference's knows nothing of them. */
static void marks_that_the_reference_does_not_know_stand_alone(void **state)
{
    (void)state;
    assert_int_equal(qr_unicode_grapheme((const uint8_t *)"\xE2\x96\x81\xD7\x89", 5), 3);
    assert_int_equal(qr_unicode_grapheme((const uint8_t *)"a\xE1\xAB\x9E", 4), 1);
    assert_int_equal(qr_unicode_grapheme((const uint8_t *)"a\xCC\x81", 3), 3);
}

static void kept_special_tokens_are_not_skipped(void **state)
{
    (void)state;
    const qr_str tokens[] = {QR_STR("a"), QR_STR("<s>"), QR_STR("<|call|>"), QR_STR("b")};
    const int32_t types[] = {1, 3, 3, 1}, kept[] = {2}, ids[] = {1, 0, 2, 3, 1};
    qr_tokenizer *t = load_vocab("gpt2", "smollm", tokens, NULL, types, 4, NULL, 0);
    qr_detokenizer stream;
    char text[512];
    size_t len = 0;
    qr_detokenizer_init(&stream, t, true);
    stream.kept = kept;
    stream.kept_count = 1;
    for (size_t i = 0; i < QR_COUNT_OF(ids); i++)
        len += qr_detokenizer_push(&stream, ids[i], text + len, sizeof(text) - len);
    assert_int_equal(len, 10);
    assert_memory_equal(text, "a<|call|>b", 10);
    qr_tokenizer_close(t);
}

static void control_and_user_tokens_of_a_vocabulary_are_added_tokens(void **state)
{
    (void)state;
    const qr_str tokens[] = {QR_STR("a"),        QR_STR("<s>"), QR_STR("<|im_end|>"),
                             QR_STR("\xC3\xBC"), QR_STR("b"),   QR_STR("ab"),
                             QR_STR("\xC3\x83"), QR_STR("1"),   QR_STR("\xC2\xBC")};
    const int32_t types[] = {1, 3, 3, 4, 1, 1, 1, 1, 1};
    const qr_str merges[] = {QR_STR("a b")};
    qr_tokenizer *t = load_vocab("gpt2", "smollm", tokens, NULL, types, 9, merges, 1);
    int32_t ends[4];
    ASSERT_IDS(t, "ab<|im_end|>11\xC3\xBC", NULL, 5, 2, 7, 7, 3);
    assert_int_equal(qr_tokenizer_eos(t), 2);
    assert_int_equal(qr_tokenizer_end_ids(t, ends, 4), 1);
    assert_int_equal(ends[0], 2);
    qr_tokenizer_close(t);
}

static void vocabularies_that_are_wrong_are_refused(void **state)
{
    (void)state;
    const qr_str tokens[] = {QR_STR("a"), QR_STR("b")}, merges[] = {QR_STR("ab")};
    qr_vocab vocab = {.model = QR_STR("gpt2"),
                      .pre = QR_STR("no-such"),
                      .tokens = tokens,
                      .token_count = 2,
                      .bos = -1,
                      .eos = -1,
                      .unk = -1,
                      .pad = -1,
                      .eot = -1};
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no-such"));
    vocab.pre = QR_STR("gpt-2");
    vocab.eos = 2;
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_BAD_FILE);
    vocab.eos = -1;
    vocab.merges = merges;
    vocab.merge_count = 1;
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_BAD_FILE);
    vocab.model = QR_STR("rwkv");
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_UNSUPPORTED);
    vocab.token_count = 0;
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_BAD_FILE);
    vocab = (qr_vocab){.model = QR_STR("t5"),
                       .tokens = tokens,
                       .token_count = 2,
                       .bos = -1,
                       .eos = -1,
                       .unk = -1,
                       .pad = -1,
                       .eot = -1};
    assert_int_equal(qr_text_tokenizer_from_vocab(&vocab, "x", &tokenizer, &err), QR_BAD_FILE);
    assert_null(tokenizer);
}

/* ---- Folders ---- */

static void folder_brings_special_tokens_and_template(void **state)
{
    (void)state;
    temp_dir dir;
    qr_tokenizer *t = NULL;
    qr_error err = {0};
    temp_dir_init(&dir);
    assert_int_equal(qr_text_tokenizer_from_dir(dir.path, &t, &err), QR_NOT_FOUND);
    temp_dir_write_text(&dir, "tokenizer.json", byte_bpe);
    temp_dir_write_text(&dir, "special_tokens_map.json", "{\"eos_token\":{\"content\":\"<|a|>\"}}");
    temp_dir_write_text(
        &dir, "tokenizer_config.json",
        "{\"bos_token\":\"<b>\",\"add_bos_token\":true,\"tokenizer_class\":\"LlamaTokenizer\","
        "\"additional_special_tokens\":[\"<x>\",\"<|a|>\"],"
        "\"added_tokens_decoder\":{\"17\":{\"content\":\"<c>\",\"special\":true}},"
        "\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},{\"name\":\"default\",\"template\":"
        "\"D\"}]}");
    assert_int_equal(qr_text_tokenizer_from_dir(dir.path, &t, &err), QR_OK);
    assert_int_equal(qr_tokenizer_eos(t), 15);
    assert_int_equal(qr_tokenizer_bos(t), 16);
    assert_int_equal(qr_tokenizer_find(t, "<c>", 3), 17);
    assert_int_equal(qr_tokenizer_find(t, "<x>", 3), 18);
    assert_true(qr_str_equals(qr_tokenizer_special(t, QR_SPECIAL_EOS), "<|a|>"));
    assert_int_equal(qr_tokenizer_special(t, QR_SPECIAL_PAD).len, 0);
    assert_string_equal(qr_tokenizer_chat_template(t), "D");
    ASSERT_IDS(t, "ab<c>", NULL, 16, 2, 17);
    assert_int_equal(qr_tokenizer_set_chat_template(t, "{{ 'x' }}", &err), QR_OK);
    assert_string_equal(qr_tokenizer_chat_template(t), "{{ 'x' }}");
    assert_int_not_equal(qr_tokenizer_set_chat_template(t, "{% if %}", &err), QR_OK);
    assert_string_equal(qr_tokenizer_chat_template(t), "{{ 'x' }}");
    qr_tokenizer_close(t);
    temp_dir_write_text(&dir, "chat_template.jinja", "J");
    assert_int_equal(qr_text_tokenizer_from_dir(dir.path, &t, &err), QR_OK);
    assert_string_equal(qr_tokenizer_chat_template(t), "J");
    qr_tokenizer_close(t);
    temp_dir_write_text(&dir, "tokenizer_config.json", "{");
    assert_int_equal(qr_text_tokenizer_from_dir(dir.path, &t, &err), QR_BAD_FILE);
    assert_non_null(strstr(err.message, "tokenizer_config.json"));
    temp_dir_release(&dir);
}

/* ---- tokenizer.model ---- */

static void put_piece(qr_buf *out, const char *text, float score, int type)
{
    size_t len = strlen(text);
    qr_buf_printf(out, "%c%c%c%c", 0x0A, (int)(len + 9), 0x0A, (int)len);
    qr_buf_append(out, text, len);
    qr_buf_append_char(out, 0x15);
    qr_buf_append(out, &score, 4);
    qr_buf_printf(out, "%c%c", 0x18, type);
}

static void sentencepiece_model(qr_buf *out, int kind)
{
    put_piece(out, "<unk>", 0, 2);
    put_piece(out, "<s>", 0, 3);
    put_piece(out, "</s>", 0, 3);
    put_piece(out, "\xE2\x96\x81", -3, 1);
    put_piece(out, "a", -4, 1);
    put_piece(out, "b", -5, 1);
    put_piece(out, "ab", -1, 1);
    qr_buf_printf(out, "%c%c%c%c", 0x12, 2, 0x18, kind); /* trainer_spec: model_type */
}

static void sentencepiece_file_is_read_and_cut_ones_are_refused(void **state)
{
    (void)state;
    for (int kind = 1; kind <= 3; kind++) {
        qr_buf model = {0};
        qr_tokenizer *t = NULL;
        qr_error err = {0};
        sentencepiece_model(&model, kind);
        qr_status status = qr_text_tokenizer_from_model(qr_buf_str(&model), "x.model", &t, &err);
        assert_int_equal(status, kind == 3 ? QR_UNSUPPORTED : QR_OK);
        if (kind == 1)
            ASSERT_IDS(t, "  ab  ab ", NULL, 3, 6, 3, 6, 2);
        if (kind == 2)
            ASSERT_IDS(t, "ab b", NULL, 1, 3, 6, 3, 5);
        qr_tokenizer_close(t);
        for (size_t len = 0; len < model.len; len++) {
            qr_tokenizer *part = NULL;
            if (qr_text_tokenizer_from_model(qr_str_make(model.data, len), "cut.model", &part, &err) == QR_OK)
                qr_tokenizer_close(part); /* cut between two fields */
            else
                assert_null(part);
        }
        qr_buf_release(&model);
    }
}

static void rank_file_merges_by_rank(void **state)
{
    (void)state;
    static const char ranks[] = "YQ== 0\nYg== 1\nYWI= 2\r\nIA== 3\nIGE= 4\nww== 5\nqQ== 6\n";
    qr_tokenizer *t = NULL;
    qr_error err = {0};
    assert_int_equal(qr_text_tokenizer_from_model(qr_str_of(ranks), "r.tiktoken", &t, &err), QR_OK);
    ASSERT_IDS(t, "ab ab", NULL, 2, 3, 2);
    ASSERT_IDS(t, " aa\xC3\xA9", NULL, 4, 0, 5, 6);
    qr_tokenizer_close(t);
    static const char *const bad[] = {"YQ==0",  "YQ== ", "YQ== x", "YQ== 99999999",
                                      "!!== 1", "YQ 1",  "YQ== -1"};
    for (size_t i = 0; i < QR_COUNT_OF(bad); i++) {
        t = NULL;
        assert_int_equal(qr_text_tokenizer_from_model(qr_str_of(bad[i]), "bad.tiktoken", &t, &err),
                         QR_BAD_FILE);
        assert_null(t);
        assert_non_null(strstr(err.message, "line 1"));
    }
}

/* ---- Scanners ---- */

static void random_text(uint64_t *rng, qr_buf *out)
{
    static const char *const parts[] = {" ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "'s",
                                        "'S",
                                        "'ll",
                                        "'\xC5\xBF",
                                        "'",
                                        "abc",
                                        "AbC",
                                        "ABC",
                                        "1",
                                        "1234567",
                                        "!",
                                        "...",
                                        "/",
                                        "\xE4\xBD\xA0\xE5\xA5\xBD",
                                        "\xC2\xA0",
                                        "\xE3\x80\x80",
                                        "\xCC\x81",
                                        "\xC7\x85",
                                        "\xCA\xB0",
                                        "\xC2\xBD",
                                        "\xF0\x9F\x99\x82",
                                        "\xE2\x80\xA8",
                                        "\xC2\x85",
                                        "//\n/",
                                        "\xE0\xA4\xBF",
                                        "\xD9\xA3"};
    qr_buf_clear(out);
    for (uint64_t n = 1 + qr_rng_next(rng) % 10; n > 0; n--) {
        if (qr_rng_next(rng) % 4 != 0) {
            qr_buf_append_cstr(out, parts[qr_rng_next(rng) % QR_COUNT_OF(parts)]);
            continue;
        }
        char bytes[4];
        uint32_t c = (uint32_t)(qr_rng_next(rng) % (qr_rng_next(rng) % 2 ? 0x3000 : 0x110000));
        qr_buf_append(out, bytes, qr_utf8_encode(c >= 0xD800 && c < 0xE000 ? 'x' : c, bytes));
    }
}

static void scanners_say_what_their_expressions_say(void **state)
{
    (void)state;
    qr_match_data *match = qr_match_data_new();
    qr_buf text = {0};
    for (qr_scanner_kind kind = QR_SCAN_GPT2; kind < QR_SCAN_COUNT; kind++) {
        const char *expression = qr_scanner_expression(kind);
        qr_pattern *pattern = NULL;
        uint64_t rng = 42 + (uint64_t)kind;
        if (expression == NULL)
            continue; /* smollm and deepseek3 are several steps */
        assert_int_equal(qr_scanner_of(qr_str_of(expression)), kind);
        assert_int_equal(qr_pattern_new(qr_str_of(expression), &pattern, NULL), QR_OK);
        for (int i = 0; i < 20000; i++) {
            random_text(&rng, &text);
            qr_pattern_subject(pattern, match, qr_buf_str(&text));
            for (size_t at = 0; at < text.len;) {
                size_t begin = 0, end = 0,
                       next = qr_scanner_next(kind, (const uint8_t *)text.data, at, text.len);
                assert_int_equal(qr_pattern_find(pattern, match, at, &begin, &end), 1);
                if (begin != at || end != next)
                    fail_msg("scanner %d: '%s' at %zu: %zu, expression %zu to %zu", (int)kind, text.data, at,
                             next, begin, end);
                at = next;
            }
        }
        qr_pattern_free(pattern);
    }
    qr_buf_release(&text);
    qr_match_data_free(match);
}

/* Cuts every piece of text (each ends where the next begins) at the matches of an expression. */
static void split_isolated(const char *expression, qr_match_data *match, qr_str text, qr_ids *ends)
{
    qr_pattern *pattern = NULL;
    qr_ids out = {0};
    size_t piece = 0;
    assert_int_equal(qr_pattern_new(qr_str_of(expression), &pattern, NULL), QR_OK);
    for (size_t i = 0; i < ends->count; piece = (size_t)ends->data[i++]) {
        size_t begin = 0, end = 0, len = (size_t)ends->data[i] - piece, at = 0;
        qr_pattern_subject(pattern, match, qr_str_make(text.data + piece, len));
        while (at < len && qr_pattern_find(pattern, match, at, &begin, &end) == 1) {
            if (begin > at)
                QR_VEC_PUSH(&out, (int32_t)(piece + begin));
            QR_VEC_PUSH(&out, (int32_t)(piece + end));
            at = end;
        }
        if (at < len)
            QR_VEC_PUSH(&out, (int32_t)(piece + len));
    }
    QR_VEC_RELEASE(ends);
    *ends = out;
    qr_pattern_free(pattern);
}

static void one_scanner_does_the_three_steps_of_deepseek(void **state)
{
    (void)state;
    static const char *const asian[] = {"\xE3\x83\xBB", "\xE3\x82\xA0\n", "\xE3\x82\x99",
                                        "\xE3\x83\xBC", "\xE3\x83\xBB\n", "\x01"};
    qr_match_data *match = qr_match_data_new();
    qr_buf text = {0};
    uint64_t rng = 99;
    for (int i = 0; i < 5000; i++) {
        random_text(&rng, &text);
        qr_buf_append_cstr(&text, asian[qr_rng_next(&rng) % QR_COUNT_OF(asian)]);
        qr_buf_append_cstr(&text, asian[qr_rng_next(&rng) % QR_COUNT_OF(asian)]);
        qr_ids ends = {0};
        QR_VEC_PUSH(&ends, (int32_t)text.len);
        for (int step = 0; step < QR_DEEPSEEK3_STEPS; step++)
            split_isolated(qr_deepseek3_expressions[step], match, qr_buf_str(&text), &ends);
        for (size_t at = 0, k = 0; at < text.len; k++) {
            size_t next = qr_scanner_next(QR_SCAN_DEEPSEEK3, (const uint8_t *)text.data, at, text.len);
            if (next != (size_t)ends.data[k])
                fail_msg("'%s' at %zu: %zu, by three steps %d", text.data, at, next, (int)ends.data[k]);
            at = next;
        }
        QR_VEC_RELEASE(&ends);
    }
    qr_buf_release(&text);
    qr_match_data_free(match);
}

/* Mostly ASCII, where every rule of the patterns meets every other; runs are long enough to cross blocks. */
static void random_plain_text(uint64_t *rng, qr_buf *out)
{
    static const char often[] = "  \n\r\t''sstlreveMDaZ1!/(\v\x7F\x01";
    static const char *const rare[] = {"\xC5\xBF", "\xE4\xBD\xA0", "\xC2\xA0",
                                       "\xCC\x81", "\xD9\xA3",     "\xE2\x80\x99"};
    uint64_t rare_one_in = 4 + qr_rng_next(rng) % 300, repeat_most = 1 + qr_rng_next(rng) % 8;
    qr_buf_clear(out);
    for (uint64_t n = 1 + qr_rng_next(rng) % 120; n > 0; n--) {
        uint64_t repeat = qr_rng_next(rng) % 5 == 0 ? 1 + qr_rng_next(rng) % repeat_most : 1;
        if (qr_rng_next(rng) % rare_one_in == 0)
            qr_buf_append_cstr(out, rare[qr_rng_next(rng) % QR_COUNT_OF(rare)]);
        for (char c = often[qr_rng_next(rng) % (sizeof(often) - 1)]; repeat > 0; repeat--)
            qr_buf_append_char(out, c);
    }
}

static void blocks_end_words_where_characters_do(void **state)
{
    (void)state;
    qr_buf text = {0};
    uint64_t rng = 7;
    for (int i = 0; i < 60000; i++) {
        qr_scanner_kind kind = QR_SCAN_GPT2 + (qr_scanner_kind)(i % (QR_SCAN_COUNT - 1));
        random_plain_text(&rng, &text);
        uint8_t *exact = qr_alloc(text.len); /* no byte behind it may be read */
        memcpy(exact, text.data, text.len);
        size_t ends[2 * QR_SCANNER_BATCH_MIN], found = 0;
        for (size_t at = 0, k = 0; at < text.len; k++) {
            if (k == found) {
                found = qr_scanner_batch(kind, exact, at, text.len, ends, QR_COUNT_OF(ends));
                k = 0;
            }
            size_t next = qr_scanner_next(kind, exact, at, text.len);
            if (found == 0 || ends[k] != next)
                fail_msg("scanner %d: '%s' at %zu: %zu, by blocks %zu", (int)kind, text.data, at, next,
                         ends[k]);
            at = next;
        }
        qr_free(exact);
    }
    qr_buf_release(&text);
}

static void expressions_that_cannot_be_served_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "(",
                                      "[a",
                                      "a\\",
                                      "[[:alpha:]]",
                                      "\\p{NoSuchThing}",
                                      "\\X",
                                      "[^a&&b]",
                                      "\\u12",
                                      "(?<n>a)\\k<n>x)"};
    for (size_t i = 0; i < QR_COUNT_OF(bad); i++) {
        qr_pattern *pattern = NULL;
        qr_error err = {0};
        assert_int_equal(qr_pattern_new(qr_str_of(bad[i]), &pattern, &err), QR_UNSUPPORTED);
        assert_null(pattern);
        assert_true(err.message[0] != '\0');
    }
}

static void expression_that_backtracks_for_ever_meets_its_limit(void **state)
{
    (void)state;
    qr_pattern *pattern = NULL;
    qr_match_data *match = qr_match_data_new();
    qr_buf text = {0};
    size_t begin, end;
    for (int i = 0; i < 200; i++)
        qr_buf_append_cstr(&text, "aaaaaaaaaa");
    qr_buf_append_cstr(&text, "xb"); /* else a look for the b ends it at once */
    assert_int_equal(qr_pattern_new(QR_STR("(a|aa|aaa)+b"), &pattern, NULL), QR_OK);
    qr_pattern_subject(pattern, match, qr_buf_str(&text));
    assert_int_equal(qr_pattern_find(pattern, match, 0, &begin, &end), -1);
    qr_pattern_free(pattern);
    qr_match_data_free(match);
    qr_buf_release(&text);
}

/* ---- Size and damage ---- */

static void long_words_take_near_linear_time(void **state)
{
    (void)state;
    qr_tokenizer *t = load(byte_bpe, NULL);
    size_t counts[2];
    uint64_t took[2];
    for (int i = 0; i < 2; i++) {
        size_t len = (size_t)1 << (i == 0 ? 16 : 20);
        char *text = qr_alloc(len);
        int32_t *ids = NULL;
        for (size_t k = 0; k < len; k++)
            text[k] = k % 2 ? 'b' : 'a';
        uint64_t start = qr_clock_ns();
        assert_int_equal(qr_tokenizer_encode(t, text, len, NULL, &ids, &counts[i], NULL), QR_OK);
        took[i] = qr_clock_ns() - start;
        qr_ids_free(ids);
        qr_free(text);
    }
    assert_int_equal(counts[0], 1 << 15);
    assert_int_equal(counts[1], 1 << 19);
    printf("64 KiB in %.1f ms, 1 MiB in %.1f ms\n", (double)took[0] / 1e6, (double)took[1] / 1e6);
    qr_tokenizer_close(t);
}

static void wrong_files_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct {
        const char *json, *reason;
    } cases[] = {
        {"", "line 1"},
        {"[]", "object"},
        {"{}", "no model"},
        {"{\"model\":{}}", "no vocab"},
        {"{\"model\":{\"type\":\"Magic\",\"vocab\":{}}}", "Magic"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "-1"},
        {"{\"model\":{\"vocab\":{\"a\":99999999},\"merges\":[]}}", "99999999"},
        {"{\"model\":{\"vocab\":{\"a\":0.5},\"merges\":[]}}", "line 1"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "number 0"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", "number 0"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "not in the vocabulary"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "two parts"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]}}", "two parts"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}}", "line 1"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
        {"{\"model\":{\"type\":\"Unigram\",\"unk_id\":7,\"vocab\":[[\"a\",0]]}}", "unk_id 7"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "line 1"},
        {"{\"normalizer\":{\"type\":\"Nope\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", "Nope"},
        {"{\"normalizer\":{},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", "type"},
        {"{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"!\"},\"model\":{\"vocab\":{}}"
         "}",
         "base64"},
        {"{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////"
         "w==\"},\"model\":{\"vocab\":{}}}",
         "trie"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"},"
         "\"model\":{\"vocab\":{}}}",
         "expression"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Odd\"},"
         "\"model\":{\"vocab\":{}}}",
         "Odd"},
        {"{\"pre_tokenizer\":{\"type\":\"FixedLength\",\"length\":0},\"model\":{\"vocab\":{}}}",
         "FixedLength"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false,"
         "\"prepend_scheme\":\"first\"},"
         "\"model\":{\"vocab\":{}}}",
         "contradicts"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]"
         ",\"special_tokens\":{}},"
         "\"model\":{\"vocab\":{}}}",
         "'x'"},
        {"{\"decoder\":{\"type\":\"Strip\"},\"model\":{\"vocab\":{}}}", "Strip"},
        {"{\"added_tokens\":[{\"id\":1}],\"model\":{\"vocab\":{}}}", "content"},
        {"{\"model\":{\"vocab\":{\"a\":0}}} x", "line 1"},
    };
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        qr_tokenizer *tokenizer = NULL;
        qr_error err = {0};
        qr_status status = qr_text_tokenizer_from_json(qr_str_of(cases[i].json), qr_str_make(NULL, 0),
                                                       "bad.json", &tokenizer, &err);
        if (status == QR_OK || strstr(err.message, cases[i].reason) == NULL)
            fail_msg("%s: status %d, '%s' lacks '%s'", cases[i].json, (int)status, err.message,
                     cases[i].reason);
        assert_null(tokenizer);
    }
}

/* A chain of replacements multiplies; the text is refused before the memory is gone. */
static void exploding_normalizer_meets_its_limit(void **state)
{
    (void)state;
    qr_buf json = {0};
    qr_error err = {0};
    int32_t *ids = NULL;
    size_t count;
    qr_buf_append_cstr(&json, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 6; i++) {
        qr_buf_printf(&json, "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"",
                      i > 0 ? "," : "");
        for (int k = 0; k < 100; k++)
            qr_buf_append_char(&json, 'a');
        qr_buf_append_cstr(&json, "\"}");
    }
    qr_buf_append_cstr(&json,
                       "]},\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0},\"unk_token\":\"a\"}}");
    qr_tokenizer *t = load(json.data, NULL);
    assert_int_equal(qr_tokenizer_encode(t, "b", 1, NULL, &ids, &count, &err), QR_OK);
    qr_ids_free(ids);
    assert_int_equal(qr_tokenizer_encode(t, "a", 1, NULL, &ids, &count, &err), QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "grows"));
    qr_tokenizer_close(t);
    qr_buf_release(&json);
}

static void truncated_and_flipped_files_never_crash(void **state)
{
    (void)state;
    size_t len = sizeof(byte_bpe) - 1;
    uint64_t rng = 7;
    for (size_t i = 0; i < 4000; i++) {
        char *copy = qr_strndup(byte_bpe, len);
        size_t used = i < len ? i : len;
        qr_tokenizer *tokenizer = NULL;
        if (i >= len)
            copy[qr_rng_next(&rng) % len] = (char)qr_rng_next(&rng);
        if (qr_text_tokenizer_from_json(qr_str_make(copy, used), qr_str_make(NULL, 0), "bad", &tokenizer,
                                        NULL) == QR_OK) {
            int32_t *ids = NULL;
            size_t count;
            assert_int_equal(qr_tokenizer_encode(tokenizer, copy, used, NULL, &ids, &count, NULL), QR_OK);
            qr_ids_free(ids);
            qr_tokenizer_close(tokenizer);
        }
        qr_free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_ff_keeps_text_from_becoming_a_special_token),
        cmocka_unit_test(options_choose_which_added_tokens_count),
        cmocka_unit_test(invalid_utf8_becomes_the_replacement_character),
        cmocka_unit_test(ids_out_of_range_are_refused_or_ignored),
        cmocka_unit_test(tokens_are_found_by_their_spelling),
        cmocka_unit_test(stream_holds_back_half_a_character),
        cmocka_unit_test(sentencepiece_vocabulary_merges_by_score_and_falls_back_to_bytes),
        cmocka_unit_test(marks_that_the_reference_does_not_know_stand_alone),
        cmocka_unit_test(kept_special_tokens_are_not_skipped),
        cmocka_unit_test(control_and_user_tokens_of_a_vocabulary_are_added_tokens),
        cmocka_unit_test(vocabularies_that_are_wrong_are_refused),
        cmocka_unit_test(folder_brings_special_tokens_and_template),
        cmocka_unit_test(sentencepiece_file_is_read_and_cut_ones_are_refused),
        cmocka_unit_test(rank_file_merges_by_rank),
        cmocka_unit_test(scanners_say_what_their_expressions_say),
        cmocka_unit_test(one_scanner_does_the_three_steps_of_deepseek),
        cmocka_unit_test(blocks_end_words_where_characters_do),
        cmocka_unit_test(expressions_that_cannot_be_served_are_refused),
        cmocka_unit_test(expression_that_backtracks_for_ever_meets_its_limit),
        cmocka_unit_test(long_words_take_near_linear_time),
        cmocka_unit_test(wrong_files_are_refused_with_a_reason),
        cmocka_unit_test(exploding_normalizer_meets_its_limit),
        cmocka_unit_test(truncated_and_flipped_files_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
