// links: qr_text qr_loader
/* Every tokenizer vector of ../shared/data, family by family, with a table at the end. Without that folder the
 * program says so and is skipped; tests/golden/tokenizer holds what is proven everywhere. */
#include <stdio.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "loader/gguf.h"
#include "support/cmocka.h"
#include "text/tokenizer.h"

typedef struct row {
    char name[64];
    int checks, wrong;
} row;

static row rows[128];
static int row_count;
static char data_dir[512];

static row *begin_row(const char *kind, const char *name)
{
    row *r = &rows[row_count++];
    snprintf(r->name, sizeof(r->name), "%s %s", kind, name);
    return r;
}

static const char *at_path(const char *a, const char *b, const char *c)
{
    static char path[4][800];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, sizeof(path[0]), "%s/%s/%s%s", data_dir, a, b, c);
    return out;
}

static void complain(row *r, qr_str text, const int32_t *got, size_t count, const char *what)
{
    if (r->wrong++ >= 3)
        return;
    printf("%s: %s of '%.*s':", r->name, what, (int)QR_MIN(text.len, 80u),
           text.data != NULL ? text.data : "");
    for (size_t i = 0; i < count && i < 24; i++)
        printf(" %d", got[i]);
    printf("\n");
}

static void check_ids(row *r, const qr_tokenizer *tokenizer, qr_str text, bool special, const int32_t *want,
                      size_t want_count)
{
    qr_encode_options options;
    int32_t *ids = NULL;
    size_t count = 0;
    qr_error err = {0};
    qr_encode_options_init(&options);
    options.add_special_tokens = special;
    options.truncate_and_pad = true;
    r->checks++;
    qr_status status = qr_tokenizer_encode(tokenizer, text.data, text.len, &options, &ids, &count, &err);
    if (status != QR_OK)
        printf("%s: %s\n", r->name, err.message);
    if (status != QR_OK || count != want_count || (count > 0 && memcmp(ids, want, count * sizeof(*ids)) != 0))
        complain(r, text, ids, count, "ids");
    qr_ids_free(ids);
}

static void check_decode(row *r, const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip,
                         qr_str want)
{
    char *text = NULL;
    size_t bytes = 0;
    r->checks++;
    if (qr_tokenizer_decode(tokenizer, ids, count, skip, &text, &bytes, NULL) != QR_OK ||
        !qr_str_equal(qr_str_make(text, bytes), want))
        complain(r, qr_str_make(text, bytes), ids, count, "decoding");
    qr_free(text);
}

static int32_t *ids_of(const qr_json *json, size_t *count)
{
    *count = qr_json_count(json);
    int32_t *ids = qr_calloc(*count + 1, sizeof(*ids));
    for (size_t i = 0; i < *count; i++)
        ids[i] = (int32_t)qr_json_int(qr_json_at(json, i), -1);
    return ids;
}

static qr_tokenizer *open_json(const char *path)
{
    qr_tokenizer *tokenizer = NULL;
    qr_buf text = {0};
    qr_error err = {0};
    qr_status status = qr_file_read(path, 1 << 30, &text, &err);
    if (status == QR_OK)
        status = qr_text_tokenizer_from_json(qr_buf_str(&text), qr_str_make(NULL, 0), path, &tokenizer, &err);
    if (status != QR_OK)
        printf("%s\n", err.message);
    qr_buf_release(&text);
    assert_int_equal(status, QR_OK);
    return tokenizer;
}

/* ---- hf-rust-goldens ---- */

static void check_pair(row *r, const qr_tokenizer *tokenizer, const qr_json *line)
{
    qr_encoder *encoder = qr_encoder_new(tokenizer);
    qr_ids ids = {0}, types = {0};
    size_t want_count, type_count;
    int32_t *want = ids_of(qr_json_get(line, "ids_special"), &want_count);
    int32_t *want_types = ids_of(qr_json_get(line, "type_ids"), &type_count);
    qr_str a = qr_json_string(qr_json_at(qr_json_get(line, "pair"), 0)),
           b = qr_json_string(qr_json_at(qr_json_get(line, "pair"), 1));
    qr_encode_options options;
    qr_encode_options_init(&options);
    options.truncate_and_pad = true;
    r->checks++;
    if (qr_encoder_encode_pair(encoder, a, b, &options, &ids, &types, NULL) != QR_OK ||
        ids.count != want_count || memcmp(ids.data, want, want_count * sizeof(*want)) != 0 ||
        types.count != type_count || memcmp(types.data, want_types, type_count * sizeof(*want)) != 0)
        complain(r, a, ids.data, ids.count, "pair");
    qr_free(want);
    qr_free(want_types);
    QR_VEC_RELEASE(&ids);
    QR_VEC_RELEASE(&types);
    qr_encoder_free(encoder);
}

static void check_line(row *r, const qr_tokenizer *tokenizer, const qr_json *line)
{
    if (qr_json_get(line, "pair") != NULL) {
        check_pair(r, tokenizer, line);
        return;
    }
    static const char *const keys[] = {"ids", "ids_special"}, *const texts[] = {"decoded",
                                                                                "decoded_skip_special"};
    qr_str text = qr_json_string(qr_json_get(line, "text"));
    for (int i = 0; i < 2; i++) {
        size_t count;
        int32_t *ids = ids_of(qr_json_get(line, keys[i]), &count);
        qr_str decoded = qr_json_string(qr_json_get(line, texts[i]));
        check_ids(r, tokenizer, text, i == 1, ids, count);
        if (decoded.data != NULL)
            check_decode(r, tokenizer, ids, count, i == 1, decoded);
        qr_free(ids);
    }
}

static void hugging_face_goldens_are_equal(void **state)
{
    static const char *const names[] = {
        "all-MiniLM-L6-v2", "bert-base-uncased", "clip",    "deepseek",     "gpt-2",
        "gpt-oss",          "llama-2",           "llama-3", "mistral-nemo", "phi-3-mini",
        "qwen2.5",          "roberta-base",      "t5-small"};
    (void)state;
    for (size_t n = 0; n < QR_COUNT_OF(names); n++) {
        row *r = begin_row("tokenizer.json", names[n]);
        char sub[128];
        snprintf(sub, sizeof(sub), "tokenizers/%s", names[n]);
        qr_tokenizer *tokenizer = open_json(at_path(sub, "tokenizer", ".json"));
        qr_buf lines = {0};
        assert_int_equal(qr_file_read(at_path("tokenizer-vectors/hf-rust-goldens", names[n], ".jsonl"),
                                      1 << 26, &lines, NULL),
                         QR_OK);
        for (size_t at = 0; at < lines.len;) {
            const char *end = memchr(lines.data + at, '\n', lines.len - at);
            size_t len = end != NULL ? (size_t)(end - lines.data) - at : lines.len - at;
            qr_json *line = NULL;
            assert_int_equal(
                qr_json_parse(qr_str_make(lines.data + at, len), &qr_json_limits_file, &line, NULL), QR_OK);
            check_line(r, tokenizer, line);
            qr_json_free(line);
            at += len + 1;
        }
        qr_buf_release(&lines);
        qr_tokenizer_close(tokenizer);
        assert_int_equal(r->wrong, 0);
    }
}

/* ---- llama.cpp ---- */

static const char *vocab_path(const char *name, const char *suffix)
{
    char file[128];
    snprintf(file, sizeof(file), "ggml-vocab-%s.gguf", name);
    return at_path("tokenizer-vectors/llama.cpp", file, suffix);
}

typedef struct gguf_vocab {
    qr_gguf *gguf;
    qr_vocab vocab;
    void *memory[4];
} gguf_vocab;

static int32_t gguf_id(const qr_gguf *gguf, const char *key)
{
    uint64_t value;
    return qr_gguf_u64(gguf, key, &value) ? (int32_t)value : -1;
}

static int gguf_flag(const qr_gguf *gguf, const char *key)
{
    bool value;
    return qr_gguf_bool(gguf, key, &value) ? value : -1;
}

static void read_vocab(const char *path, gguf_vocab *out)
{
    qr_error err = {0};
    *out = (gguf_vocab){0};
    if (qr_gguf_open(path, &out->gguf, &err) != QR_OK)
        fail_msg("%s", err.message);
    const qr_gguf *g = out->gguf;
    qr_vocab *v = &out->vocab;
    qr_gguf_str(g, "tokenizer.ggml.model", &v->model);
    qr_gguf_str(g, "tokenizer.ggml.pre", &v->pre);
    int64_t count = qr_gguf_array_count(g, "tokenizer.ggml.tokens"),
            merges = qr_gguf_array_count(g, "tokenizer.ggml.merges");
    assert_true(count > 0);
    qr_str *tokens = out->memory[0] = qr_calloc((size_t)count, sizeof(*tokens));
    qr_gguf_str_array(g, "tokenizer.ggml.tokens", tokens, count);
    float *scores = out->memory[1] = qr_calloc((size_t)count, sizeof(*scores));
    int32_t *types = out->memory[2] = qr_calloc((size_t)count, sizeof(*types));
    v->tokens = tokens;
    v->token_count = (int32_t)count;
    v->scores = qr_gguf_f32_array(g, "tokenizer.ggml.scores", scores, count) ? scores : NULL;
    v->types = qr_gguf_i32_array(g, "tokenizer.ggml.token_type", types, count) ? types : NULL;
    if (merges > 0) {
        qr_str *list = out->memory[3] = qr_calloc((size_t)merges, sizeof(*list));
        qr_gguf_str_array(g, "tokenizer.ggml.merges", list, merges);
        v->merges = list;
        v->merge_count = (int32_t)merges;
    }
    v->bos = gguf_id(g, "tokenizer.ggml.bos_token_id");
    v->eos = gguf_id(g, "tokenizer.ggml.eos_token_id");
    v->unk = gguf_id(g, "tokenizer.ggml.unknown_token_id");
    v->pad = gguf_id(g, "tokenizer.ggml.padding_token_id");
    v->eot = gguf_id(g, "tokenizer.ggml.eot_token_id");
    v->add_bos = gguf_flag(g, "tokenizer.ggml.add_bos_token");
    v->add_eos = gguf_flag(g, "tokenizer.ggml.add_eos_token");
    v->add_space_prefix = gguf_flag(g, "tokenizer.ggml.add_space_prefix");
    v->remove_extra_whitespaces = gguf_flag(g, "tokenizer.ggml.remove_extra_whitespaces");
}

static void release_vocab(gguf_vocab *vocab)
{
    for (int i = 0; i < 4; i++)
        qr_free(vocab->memory[i]);
    qr_gguf_close(vocab->gguf);
}

/* Texts parted by a line "__ggml_vocab_test__", and a line of ids for each. */
static void check_texts(row *r, const qr_tokenizer *tokenizer, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    qr_buf texts = {0}, lines = {0};
    assert_int_equal(qr_file_read(vocab_path(name, ".inp"), 1 << 24, &texts, NULL), QR_OK);
    assert_int_equal(qr_file_read(vocab_path(name, ".out"), 1 << 24, &lines, NULL), QR_OK);
    size_t at = 0, line_at = 0;
    while (at <= texts.len && line_at < lines.len) {
        ptrdiff_t end = qr_str_find(qr_buf_str(&texts), QR_STR(mark), at);
        size_t stop = end >= 0 ? (size_t)end : texts.len;
        if (end < 0 && stop > at && texts.data[stop - 1] == '\n')
            stop--;
        qr_ids want = {0};
        while (line_at < lines.len && lines.data[line_at] != '\n') {
            char *next;
            long id = strtol(lines.data + line_at, &next, 10);
            if (next == lines.data + line_at)
                break;
            QR_VEC_PUSH(&want, (int32_t)id);
            line_at = (size_t)(next - lines.data);
        }
        while (line_at < lines.len && lines.data[line_at++] != '\n')
            ;
        if (end >= 0 || stop > at)
            check_ids(r, tokenizer, qr_str_make(texts.data + at, stop - at), false, want.data, want.count);
        QR_VEC_RELEASE(&want);
        if (end < 0)
            break;
        at = stop + sizeof(mark) - 1;
    }
    qr_buf_release(&texts);
    qr_buf_release(&lines);
}

static void gguf_vocabularies_give_the_recorded_ids(void **state)
{
    static const char *const names[] = {"bert-bge", "deepseek-coder", "deepseek-llm", "falcon",
                                        "gpt-2",    "llama-spm",      "mpt",          "phi-3",
                                        "refact",   "starcoder"};
    (void)state;
    int wrong = 0;
    for (size_t n = 0; n < QR_COUNT_OF(names); n++) {
        row *r = begin_row("gguf", names[n]);
        gguf_vocab vocab;
        qr_tokenizer *tokenizer = NULL;
        qr_error err = {0};
        read_vocab(vocab_path(names[n], ""), &vocab);
        if (qr_text_tokenizer_from_vocab(&vocab.vocab, names[n], &tokenizer, &err) != QR_OK)
            fail_msg("%s", err.message);
        release_vocab(&vocab);
        check_texts(r, tokenizer, names[n]);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    assert_int_equal(wrong, 0);
}

static void llama_cpp_texts_agree_with_tokenizer_json(void **state)
{
    static const char *const pairs[][2] = {
        {"llama-bpe", "llama-3"},        {"qwen2", "qwen2.5"},    {"gpt-2", "gpt-2"},
        {"roberta-bpe", "roberta-base"}, {"phi-3", "phi-3-mini"}, {"llama-spm", "llama-2"},
        {"deepseek-r1-qwen", "qwen2.5"}};
    (void)state;
    int wrong = 0;
    for (size_t n = 0; n < QR_COUNT_OF(pairs); n++) {
        row *r = begin_row("llama.cpp texts", pairs[n][0]);
        char sub[128];
        snprintf(sub, sizeof(sub), "tokenizers/%s", pairs[n][1]);
        qr_tokenizer *tokenizer = open_json(at_path(sub, "tokenizer", ".json"));
        check_texts(r, tokenizer, pairs[n][0]);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    assert_int_equal(wrong, 0);
}

/* ---- Others ---- */

static qr_json *read_json(const char *path)
{
    qr_json *json = NULL;
    qr_error err = {0};
    if (qr_json_read_file(path, &json, &err) != QR_OK)
        fail_msg("%s", err.message);
    return json;
}

static void microsoft_ids_of_a_rust_file_are_equal(void **state)
{
    static const char *const pairs[][2] = {
        {"tokens_gpt2", "gpt-2"}, {"tokens_r50k_base", "gpt-2"}, {"tokens_gpt_4o", "gpt-oss"}};
    (void)state;
    int wrong = 0;
    qr_buf text = {0};
    assert_int_equal(qr_file_read(at_path("tokenizer-vectors/microsoft-tokenizer", "lib.rs", ".txt"), 1 << 24,
                                  &text, NULL),
                     QR_OK);
    for (size_t n = 0; n < QR_COUNT_OF(pairs); n++) {
        row *r = begin_row("microsoft", pairs[n][0]);
        char sub[128];
        size_t count;
        snprintf(sub, sizeof(sub), "tokenizers/%s", pairs[n][1]);
        qr_tokenizer *tokenizer = open_json(at_path(sub, "tokenizer", ".json"));
        qr_json *json = read_json(at_path("tokenizer-vectors/microsoft-tokenizer", pairs[n][0], ".json"));
        int32_t *ids = ids_of(json, &count);
        check_ids(r, tokenizer, qr_buf_str(&text), false, ids, count);
        check_decode(r, tokenizer, ids, count, false, qr_buf_str(&text));
        qr_free(ids);
        qr_json_free(json);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    qr_buf_release(&text);
    assert_int_equal(wrong, 0);
}

static void swift_encodings_are_equal(void **state)
{
    static const struct {
        const char *file, *tokenizer;
        bool special;
    } cases[] = {{"llama_3.2_encoded", "llama-3", true},
                 {"gpt2_encoded_tokens", "gpt-2", true},
                 {"bert_uncased_encoded", "bert-base-uncased", true},
                 {"t5_base_encoded", "t5-small", true},
                 {"llama_encoded", "llama-2", true}};
    (void)state;
    int wrong = 0;
    for (size_t n = 0; n < QR_COUNT_OF(cases); n++) {
        row *r = begin_row("swift", cases[n].file);
        char sub[128];
        size_t count;
        snprintf(sub, sizeof(sub), "tokenizers/%s", cases[n].tokenizer);
        qr_tokenizer *tokenizer = open_json(at_path(sub, "tokenizer", ".json"));
        qr_json *json = read_json(at_path("tokenizer-vectors/swift-transformers", cases[n].file, ".json"));
        int32_t *ids = ids_of(qr_json_get(json, "token_ids"), &count);
        check_ids(r, tokenizer, qr_json_string(qr_json_get(json, "text")), cases[n].special, ids, count);
        qr_free(ids);
        qr_json_free(json);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    assert_int_equal(wrong, 0);
}

static void swift_test_cases_are_equal(void **state)
{
    static const char *const pairs[][2] = {{"bert-base-uncased", "bert-base-uncased"},
                                           {"google-bert/bert-base-uncased", "bert-base-uncased"},
                                           {"distilgpt2", "gpt-2"},
                                           {"t5-base", "t5-small"},
                                           {"coreml-projects/Llama-2-7b-chat-coreml", "llama-2"},
                                           {"pcuenq/Llama-3.2-1B-Instruct-tokenizer", "llama-3"}};
    (void)state;
    qr_json *json = read_json(at_path("tokenizer-vectors/swift-transformers", "tokenizer_tests", ".json"));
    int wrong = 0;
    for (void *it = qr_json_iter(json); it != NULL; it = qr_json_iter_next(json, it)) {
        qr_str key = qr_json_iter_key(it);
        for (size_t n = 0; n < QR_COUNT_OF(pairs); n++) {
            if (!qr_str_equals(key, pairs[n][0]))
                continue;
            row *r = begin_row("swift cases", pairs[n][0]);
            char sub[128];
            snprintf(sub, sizeof(sub), "tokenizers/%s", pairs[n][1]);
            qr_tokenizer *tokenizer = open_json(at_path(sub, "tokenizer", ".json"));
            for (size_t i = 0; i < qr_json_count(qr_json_iter_value(it)); i++) {
                const qr_json *item = qr_json_at(qr_json_iter_value(it), i);
                size_t count;
                int32_t *ids = ids_of(qr_json_get(qr_json_get(item, "encoded"), "input_ids"), &count);
                check_ids(r, tokenizer, qr_json_string(qr_json_get(item, "input")), true, ids, count);
                qr_free(ids);
            }
            qr_tokenizer_close(tokenizer);
            wrong += r->wrong;
        }
    }
    qr_json_free(json);
    assert_int_equal(wrong, 0);
}

static qr_tokenizer *open_model(const char *path, qr_status want, qr_error *err)
{
    qr_tokenizer *tokenizer = NULL;
    qr_buf bytes = {0};
    *err = (qr_error){0};
    assert_int_equal(qr_file_read(path, 1 << 30, &bytes, NULL), QR_OK);
    qr_status status = qr_text_tokenizer_from_model(qr_buf_str(&bytes), path, &tokenizer, err);
    if (status != want)
        printf("%s\n", err->message);
    assert_int_equal(status, want);
    qr_buf_release(&bytes);
    return tokenizer;
}

static void rank_files_give_the_recorded_ids(void **state)
{
    static const char *const pairs[][3] = {
        {"tokens_gpt_3.5_turbo", "tokenizers/cl100k", "cl100k_base.tiktoken"},
        {"tokens_gpt_4o", "tokenizers/gpt-oss", "o200k_base.tiktoken"}};
    (void)state;
    int wrong = 0;
    qr_buf text = {0};
    qr_error err;
    assert_int_equal(qr_file_read(at_path("tokenizer-vectors/microsoft-tokenizer", "lib.rs", ".txt"), 1 << 24,
                                  &text, NULL),
                     QR_OK);
    for (size_t n = 0; n < QR_COUNT_OF(pairs); n++) {
        row *r = begin_row("tiktoken", pairs[n][2]);
        size_t count;
        qr_tokenizer *tokenizer = open_model(at_path(pairs[n][1], pairs[n][2], ""), QR_OK, &err);
        qr_json *json = read_json(at_path("tokenizer-vectors/microsoft-tokenizer", pairs[n][0], ".json"));
        int32_t *ids = ids_of(json, &count);
        check_ids(r, tokenizer, qr_buf_str(&text), false, ids, count);
        check_decode(r, tokenizer, ids, count, false, qr_buf_str(&text));
        qr_free(ids);
        qr_json_free(json);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    qr_buf_release(&text);
    assert_int_equal(wrong, 0);
}

static void model_files_agree_with_tokenizer_json(void **state)
{
    static const char *const pairs[][2] = {{"llama-bpe", "llama-3"}, {"llama-spm", "llama-2"}};
    (void)state;
    int wrong = 0;
    qr_error err;
    for (size_t n = 0; n < QR_COUNT_OF(pairs); n++) {
        row *r = begin_row("tokenizer.model", pairs[n][1]);
        char sub[128];
        snprintf(sub, sizeof(sub), "tokenizers/%s", pairs[n][1]);
        qr_tokenizer *tokenizer = open_model(at_path(sub, "tokenizer", ".model"), QR_OK, &err);
        check_texts(r, tokenizer, pairs[n][0]);
        qr_tokenizer_close(tokenizer);
        wrong += r->wrong;
    }
    assert_int_equal(wrong, 0);
}

static void broken_rank_files_are_refused_with_their_line(void **state)
{
    static const char *const names[] = {"test_tiktoken_invalid_base64", "test_tiktoken_invalid_rank",
                                        "test_tiktoken_no_space"};
    (void)state;
    for (size_t n = 0; n < QR_COUNT_OF(names); n++) {
        qr_error err;
        assert_null(
            open_model(at_path("tokenizer-vectors/meta-pytorch", names[n], ".model"), QR_BAD_FILE, &err));
        printf("broken: %s\n", strrchr(err.message, '/'));
        assert_non_null(strstr(err.message, "line"));
    }
}

static void mangled_vocabulary_is_refused_with_its_merge(void **state)
{
    (void)state;
    qr_buf text = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_error err = {0};
    const char *path = at_path("tokenizers/broken", "llama-2.nbsp-mangled.tokenizer", ".json");
    assert_int_equal(qr_file_read(path, 1 << 26, &text, NULL), QR_OK);
    assert_int_equal(
        qr_text_tokenizer_from_json(qr_buf_str(&text), qr_str_make(NULL, 0), "mangled", &tokenizer, &err),
        QR_BAD_FILE);
    printf("broken: %s\n", err.message);
    assert_non_null(strstr(err.message, "merges"));
    qr_buf_release(&text);
}

static void print_table(void)
{
    int checks = 0, wrong = 0;
    for (int i = 0; i < row_count; i++) {
        printf("%-44s %6d checks %4d wrong\n", rows[i].name, rows[i].checks, rows[i].wrong);
        checks += rows[i].checks;
        wrong += rows[i].wrong;
    }
    printf("%-44s %6d checks %4d wrong\n", "all", checks, wrong);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hugging_face_goldens_are_equal),
        cmocka_unit_test(gguf_vocabularies_give_the_recorded_ids),
        cmocka_unit_test(llama_cpp_texts_agree_with_tokenizer_json),
        cmocka_unit_test(microsoft_ids_of_a_rust_file_are_equal),
        cmocka_unit_test(swift_encodings_are_equal),
        cmocka_unit_test(swift_test_cases_are_equal),
        cmocka_unit_test(rank_files_give_the_recorded_ids),
        cmocka_unit_test(model_files_agree_with_tokenizer_json),
        cmocka_unit_test(broken_rank_files_are_refused_with_their_line),
        cmocka_unit_test(mangled_vocabulary_is_refused_with_its_merge),
    };
    const char *shared = qr_env("QR_SHARED_DIR");
    snprintf(data_dir, sizeof(data_dir), "%s/data", shared != NULL ? shared : "../shared");
    if (!qr_file_is_dir(at_path("tokenizer-vectors", "hf-rust-goldens", ""))) {
        printf("skipped: %s is not there (tokenizer vectors; set QR_SHARED_DIR)\n", data_dir);
        return 77;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    print_table();
    return failed;
}
