/* A tokenizer from a GGUF vocabulary: the model by `tokenizer.ggml.model`, the pre-tokenizer by
 * `tokenizer.ggml.pre`, whose names stand for the expressions of the original tokenizers. */
#include <stdlib.h>

#include "text/tokenizer_impl.h"

/* ---- Pre-tokenizers by name ---- */

#define GPT2_NAMES                                                                        \
    "gpt-2\0phi-2\0jina-es\0jina-de\0jina-v2-es\0jina-v2-de\0gigachat\0a.x-4.0\0mellum\0" \
    "modern-bert\0mpt\0olmo\0jais\0trillion\0granite-docling\0exaone4\0"
#define LLAMA3_NAMES "llama-bpe\0llama3\0llama-v3\0falcon3\0falcon-h1\0pixtral\0midm-2.0\0lfm2\0"
#define QWEN2_NAMES \
    "qwen2\0deepseek-r1-qwen\0kormo\0megrez\0stablelm2\0hunyuan\0solar-open\0grok-2\0f2llmv2\0"
#define CL100K_NAMES    "dbrx\0smaug-bpe\0glm4\0chatglm-bpe\0"
#define DIGITS_NAMES    "smollm\0starcoder\0refact\0command-r\0codeshell\0exaone\0minerva-7b\0mellum2\0"
#define O200K_NAMES     "gpt-4o\0llama4\0minimax-m2\0"
#define DEEPSEEK3_NAMES "deepseek-v3\0hunyuan-dense\0joyai-llm\0"

/* Cased letters, as the DeepSeek tokenizers list them. */
#define DEEPSEEK_LETTERS                                                                              \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}"   \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-"    \
    "\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-"   \
    "\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-"  \
    "\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-" \
    "\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}"   \
    "\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-" \
    "\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-" \
    "\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}"    \
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"  \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}"   \
    "\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-" \
    "\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-" \
    "\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}"   \
    "\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

typedef struct pre_row {
    const char *names; /* each followed by a NUL, then an empty one */
    const char *expressions[7];
    qr_scanner_kind scanner; /* after the expressions; or the whole */
    const char *after;       /* one more expression after the scanner */
    bool ignore_merges, add_bos, add_sep, nfc;
} pre_row;

static const pre_row pre_rows[] = {
    {.names = GPT2_NAMES, .scanner = QR_SCAN_GPT2},
    {.names = "roberta-bpe\0jina-v1-en\0jina-v2-code\0", .scanner = QR_SCAN_GPT2, .add_sep = true},
    {.names = LLAMA3_NAMES, .scanner = QR_SCAN_CL100K_3, .ignore_merges = true, .add_bos = true},
    {.names = QWEN2_NAMES, .scanner = QR_SCAN_CL100K_1, .nfc = true},
    {.names = CL100K_NAMES, .scanner = QR_SCAN_CL100K_3},
    {.names = DIGITS_NAMES, .expressions = {"\\p{N}"}, .scanner = QR_SCAN_GPT2},
    {.names = O200K_NAMES, .scanner = QR_SCAN_O200K},
    {.names = "tekken\0", .scanner = QR_SCAN_NEMO, .ignore_merges = true, .add_bos = true},
    {.names = "falcon\0",
     .expressions = {"[\\p{P}\\$\\+<=>\\^~\\|`]+"},
     .scanner = QR_SCAN_GPT2,
     .after = "[0-9][0-9][0-9]"},
    {.names = "deepseek-llm\0",
     .expressions =
         {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+",
          "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
          "\\s+\\z", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"}},
    {.names = "deepseek-coder\0",
     .expressions = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
                     "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"}},
    {.names = DEEPSEEK3_NAMES, .scanner = QR_SCAN_DEEPSEEK3},
    {.names = "qwen35\0",
     .expressions = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|"
                     " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .nfc = true},
    {.names = "poro-chat\0bloom\0gpt3-finnish\0",
     .expressions = {" ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"}},
    {.names = "viking\0",
     .expressions = {" ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+",
                     "\\p{N}"}},
    {.names = "chameleon\0",
     .expressions = {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )",
                     "\\p{N}", "[\\p{P}!-/:-@\\[-`{-~]"},
     .scanner = QR_SCAN_GPT2,
     .add_bos = true},
    {.names = "bailingmoe\0",
     .expressions =
         {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|"
          "\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
    {.names = "seed-coder\0",
     .expressions =
         {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {.names = "superbpe\0", .expressions = {"\\p{N}+", "(?=(\\d{3})+(?!\\d))"}},
    {.names = "kimi-k2\0",
     .expressions =
         {"[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
          "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?"
          "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
          "\\s+(?!\\S)|\\s+"}},
    /* No name: what files written before the key existed get. */
    {.names = "default\0",
     .expressions = {"[\\p{P}\\$\\+<=>\\^~\\|]+"},
     .scanner = QR_SCAN_GPT2,
     .after = "\\p{N}+"},
};

static const pre_row *find_pre(qr_str name)
{
    if (name.len == 0)
        name = QR_STR("default");
    for (size_t i = 0; i < QR_COUNT_OF(pre_rows); i++)
        for (const char *at = pre_rows[i].names; *at != '\0'; at += strlen(at) + 1)
            if (qr_str_equals(name, at))
                return &pre_rows[i];
    return NULL;
}

static qr_status add_expression(qr_tokenizer *tokenizer, const char *expression, qr_error *err)
{
    qr_pretokenizer_step step = {.kind = QR_PRE_SPLIT, .behavior = QR_SPLIT_ISOLATED};
    if (strcmp(expression, "\\p{N}") == 0) {
        step.kind = QR_PRE_DIGITS;
        step.split = true;
    } else {
        qr_status status = qr_pattern_new(qr_str_of(expression), &step.pattern, err);
        if (status != QR_OK)
            return status;
    }
    QR_VEC_PUSH(&tokenizer->pretokenizers, step);
    return QR_OK;
}

static qr_status add_pre(qr_tokenizer *tokenizer, const pre_row *row, qr_error *err)
{
    qr_status status = QR_OK;
    for (size_t i = 0; i < QR_COUNT_OF(row->expressions) && row->expressions[i] != NULL && status == QR_OK;
         i++)
        status = add_expression(tokenizer, row->expressions[i], err);
    qr_pretokenizer_step scan = {
        .kind = QR_PRE_SPLIT, .behavior = QR_SPLIT_ISOLATED, .scanner = row->scanner};
    qr_pretokenizer_step bytes = {.kind = QR_PRE_BYTE_LEVEL};
    if (row->scanner == QR_SCAN_GPT2 && row->after == NULL)
        bytes.scanner = QR_SCAN_GPT2;
    else if (row->scanner != QR_SCAN_NONE)
        QR_VEC_PUSH(&tokenizer->pretokenizers, scan);
    if (status == QR_OK && row->after != NULL)
        status = add_expression(tokenizer, row->after, err);
    if (status == QR_OK && strcmp(row->names, "default") == 0)
        status = add_expression(tokenizer, "[0-9][0-9][0-9]", err);
    QR_VEC_PUSH(&tokenizer->pretokenizers, bytes);
    if (row->nfc) {
        qr_normalizer_step form = {.kind = QR_NORM_FORM, .form = QR_FORM_NFC};
        QR_VEC_PUSH(&tokenizer->normalizers, form);
    }
    return status;
}

/* ---- Tokens ---- */

static int type_of(const qr_vocab *vocab, int32_t id)
{
    return vocab->types != NULL ? vocab->types[id] : QR_VOCAB_NORMAL;
}

static qr_status check_vocab(const qr_vocab *vocab, const char *name, qr_error *err)
{
    if (vocab->token_count <= 0 || vocab->token_count > QR_BPE_ID_MAX)
        return qr_fail(err, QR_BAD_FILE, "%s: vocabulary of %d tokens (1 to %d)", name, vocab->token_count,
                       QR_BPE_ID_MAX);
    if (vocab->merge_count < 0 || vocab->merge_count >= QR_BPE_RANK_MAX)
        return qr_fail(err, QR_BAD_FILE, "%s: %d merges (at most %d)", name, vocab->merge_count,
                       QR_BPE_RANK_MAX);
    for (int32_t id = 0; id < vocab->token_count; id++)
        if (vocab->tokens[id].len > QR_TOKEN_BYTES_MAX)
            return qr_fail(err, QR_BAD_FILE, "%s: token %d of %zu bytes", name, id, vocab->tokens[id].len);
    const int32_t ids[] = {vocab->bos, vocab->eos, vocab->unk, vocab->pad, vocab->eot};
    static const char *const names[] = {"bos", "eos", "unknown", "padding", "eot"};
    for (size_t i = 0; i < QR_COUNT_OF(ids); i++)
        if (ids[i] < -1 || ids[i] >= vocab->token_count)
            return qr_fail(err, QR_BAD_FILE, "%s: %s token %d of %d", name, names[i], ids[i],
                           vocab->token_count);
    return QR_OK;
}

/* All spellings; control and user-defined tokens also become added tokens. */
static qr_status add_tokens(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool wordpiece, qr_error *err)
{
    qr_buf spelled = {0};
    qr_status status = QR_OK;
    for (int32_t id = 0; id < vocab->token_count; id++) {
        int type = type_of(vocab, id);
        bool model = type == QR_VOCAB_NORMAL || type == QR_VOCAB_USER_DEFINED || type == QR_VOCAB_BYTE;
        qr_str text = vocab->tokens[id];
        if (wordpiece && model) { /* "▁word" begins a word, the rest continues one */
            qr_buf_clear(&spelled);
            bool begins = qr_str_starts(text, QR_STR("\xE2\x96\x81"));
            qr_buf_append_cstr(&spelled, begins ? "" : "##");
            qr_buf_append(&spelled, text.data + (begins ? 3 : 0), text.len - (begins ? 3 : 0));
            text = qr_buf_str(&spelled);
        }
        qr_tokenizer_set_token(tokenizer, id, text.data != NULL ? text : QR_STR(""),
                               model ? QR_TOKEN_MODEL : 0);
    }
    tokenizer->model_count = vocab->token_count;
    for (int32_t id = 0; id < vocab->token_count && status == QR_OK; id++) {
        int type = type_of(vocab, id);
        qr_added_token token = {.special = type == QR_VOCAB_CONTROL || type == QR_VOCAB_UNKNOWN};
        if (token.special || type == QR_VOCAB_USER_DEFINED)
            status = qr_tokenizer_add(tokenizer, vocab->tokens[id], token, id, err);
    }
    qr_buf_release(&spelled);
    return status;
}

/* "left right"; a pair that the vocabulary cannot join is of no use and skipped, as its readers do. */
static qr_status add_merges(qr_tokenizer *tokenizer, const qr_vocab *vocab, qr_error *err)
{
    qr_buf both = {0};
    qr_status status = QR_OK;
    qr_bpe_init(&tokenizer->bpe, (size_t)vocab->merge_count);
    for (int32_t i = 0; i < vocab->merge_count && status == QR_OK; i++) {
        qr_str merge = vocab->merges[i];
        const char *space = merge.len > 1 ? memchr(merge.data + 1, ' ', merge.len - 1) : NULL;
        if (space == NULL) {
            status = qr_fail(err, QR_BAD_FILE, "%s: merge %d, '%.*s', is not two parts with a space between",
                             tokenizer->name, i, (int)QR_MIN(merge.len, 40u), merge.data);
            break;
        }
        size_t left_len = (size_t)(space - merge.data);
        qr_buf_clear(&both);
        if (!qr_byte_alphabet_decode(qr_str_make(merge.data, left_len), &both))
            continue;
        size_t middle = both.len;
        if (!qr_byte_alphabet_decode(qr_str_make(space + 1, merge.len - left_len - 1), &both))
            continue;
        int32_t left = qr_token_table_find(&tokenizer->raw, both.data, middle);
        int32_t right = qr_token_table_find(&tokenizer->raw, both.data + middle, both.len - middle);
        int32_t merged = qr_token_table_find(&tokenizer->raw, both.data, both.len);
        if (left >= 0 && right >= 0 && merged >= 0)
            qr_bpe_add(&tokenizer->bpe, (uint32_t)left, (uint32_t)right, (uint32_t)i, (uint32_t)merged);
    }
    qr_buf_release(&both);
    return status;
}

/* ---- SentencePiece BPE: merges from scores ---- */

typedef struct scored_id {
    float score;
    int32_t id;
} scored_id;

static int compare_scores(const void *a, const void *b)
{
    const scored_id *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Of all pairs that make a token the one whose token has the greatest score merges first. */
static void merges_of_scores(qr_tokenizer *tokenizer, const qr_vocab *vocab)
{
    scored_id *order = qr_alloc((size_t)vocab->token_count * sizeof(*order));
    size_t count = 0;
    for (int32_t id = 0; id < vocab->token_count; id++) {
        bool usable = (tokenizer->flags.data[id] & QR_TOKEN_MODEL) && type_of(vocab, id) != QR_VOCAB_BYTE;
        float score = vocab->scores != NULL ? vocab->scores[id] : -(float)id;
        if (usable && score == score)
            order[count++] = (scored_id){score, id};
    }
    qsort(order, count, sizeof(*order), compare_scores);
    int32_t *ids = qr_alloc((count + 1) * sizeof(*ids));
    for (size_t i = 0; i < count; i++)
        ids[i] = order[i].id;
    qr_bpe_merge_in_order(tokenizer, ids, count);
    qr_free(ids);
    qr_free(order);
}

/* ---- Families ---- */

static void push_normalizer(qr_tokenizer *tokenizer, qr_normalizer_kind kind, qr_str text, qr_str needle)
{
    qr_normalizer_step step = {.kind = kind,
                               .text = qr_tokenizer_own(tokenizer, text),
                               .text_len = text.len,
                               .needle = qr_tokenizer_own(tokenizer, needle),
                               .needle_len = needle.len};
    QR_VEC_PUSH(&tokenizer->normalizers, step);
}

/* SentencePiece's treatment of spaces: extra ones go, one stands before the text, all become the mark. */
static void push_space_rules(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool sentencepiece)
{
    qr_str mark = QR_STR("\xE2\x96\x81");
    bool extra = vocab->remove_extra_whitespaces == 1;
    if (extra)
        push_normalizer(tokenizer, QR_NORM_SPACES, QR_STR(""), QR_STR(""));
    if (vocab->add_space_prefix != 0)
        push_normalizer(tokenizer, QR_NORM_PREPEND, mark, QR_STR(""));
    push_normalizer(tokenizer, QR_NORM_REPLACE, mark, QR_STR(" "));
    if (extra && sentencepiece)
        push_normalizer(tokenizer, QR_NORM_TRAILING, mark, QR_STR(""));
}

static void push_decoder(qr_tokenizer *tokenizer, qr_decoder_step step)
{
    QR_VEC_PUSH(&tokenizer->decoders, step);
}

static qr_status load_gpt2(qr_tokenizer *tokenizer, const qr_vocab *vocab, const pre_row *pre, qr_error *err)
{
    tokenizer->byte_mode = true;
    qr_token_table_init(&tokenizer->raw, (size_t)vocab->token_count);
    qr_status status = add_pre(tokenizer, pre, err);
    if (status == QR_OK)
        status = add_tokens(tokenizer, vocab, false, err);
    if (status == QR_OK)
        status = add_merges(tokenizer, vocab, err);
    tokenizer->bpe.ignore_merges = pre->ignore_merges;
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_BYTE_LEVEL});
    return status;
}

static qr_status load_llama(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool sentencepiece, qr_error *err)
{
    qr_str mark = QR_STR("\xE2\x96\x81");
    qr_status status = add_tokens(tokenizer, vocab, false, err);
    if (status != QR_OK)
        return status;
    merges_of_scores(tokenizer, vocab);
    tokenizer->bpe.byte_fallback = true;
    tokenizer->bpe.unk = vocab->unk;
    if (sentencepiece && vocab->precompiled_charsmap.len > 0)
        status = qr_tokenizer_add_charsmap(tokenizer, vocab->precompiled_charsmap, true, err);
    if (status != QR_OK)
        return status;
    push_space_rules(tokenizer, vocab, sentencepiece);
    char *space = qr_tokenizer_own(tokenizer, QR_STR(" "));
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_REPLACE,
                                              .text = space,
                                              .text_len = 1,
                                              .needle = qr_tokenizer_own(tokenizer, mark),
                                              .needle_len = mark.len});
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_BYTE_FALLBACK});
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_FUSE});
    if (vocab->add_space_prefix != 0)
        push_decoder(tokenizer,
                     (qr_decoder_step){.kind = QR_DEC_STRIP, .text = space, .text_len = 1, .start = 1});
    return QR_OK;
}

static qr_status load_bert(qr_tokenizer *tokenizer, const qr_vocab *vocab, qr_error *err)
{
    qr_normalizer_step normalizer = {
        .kind = QR_NORM_BERT, .clean_text = true, .chinese = true, .strip_accents = true, .lowercase = true};
    qr_pretokenizer_step pre = {.kind = QR_PRE_BERT};
    tokenizer->model = QR_MODEL_WORDPIECE;
    QR_VEC_PUSH(&tokenizer->normalizers, normalizer);
    QR_VEC_PUSH(&tokenizer->pretokenizers, pre);
    tokenizer->wordpiece.prefix = qr_tokenizer_own(tokenizer, QR_STR("##"));
    tokenizer->wordpiece.chars_max = 100;
    tokenizer->wordpiece.unk = vocab->unk;
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_WORDPIECE,
                                              .text = tokenizer->wordpiece.prefix,
                                              .text_len = 2,
                                              .cleanup = true});
    return add_tokens(tokenizer, vocab, true, err);
}

static qr_status load_t5(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool sentencepiece, qr_error *err)
{
    qr_str mark = QR_STR("\xE2\x96\x81");
    qr_pretokenizer_step pre = {.kind = QR_PRE_METASPACE,
                                .text = qr_tokenizer_own(tokenizer, mark),
                                .text_len = 3,
                                .scheme =
                                    vocab->add_space_prefix != 0 ? QR_PREPEND_ALWAYS : QR_PREPEND_NEVER};
    tokenizer->model = QR_MODEL_UNIGRAM;
    if (vocab->scores == NULL)
        return qr_fail(err, QR_BAD_FILE, "%s: vocabulary of model t5 has no scores", tokenizer->name);
    if (vocab->precompiled_charsmap.len > 0) {
        qr_status status =
            qr_tokenizer_add_charsmap(tokenizer, vocab->precompiled_charsmap, sentencepiece, err);
        if (status != QR_OK)
            return status;
    }
    if (sentencepiece) {
        push_space_rules(tokenizer, vocab, true);
    } else {
        if (vocab->remove_extra_whitespaces == 1)
            push_normalizer(tokenizer, QR_NORM_SPACES, QR_STR(""), QR_STR(""));
        QR_VEC_PUSH(&tokenizer->pretokenizers, pre);
    }
    push_decoder(tokenizer, (qr_decoder_step){.kind = QR_DEC_METASPACE,
                                              .text = pre.text,
                                              .text_len = 3,
                                              .prefix = vocab->add_space_prefix != 0});
    tokenizer->unigram.scores = qr_alloc((size_t)vocab->token_count * sizeof(double));
    for (int32_t id = 0; id < vocab->token_count; id++)
        tokenizer->unigram.scores[id] = vocab->scores[id];
    tokenizer->unigram.unk = vocab->unk;
    tokenizer->unigram.fuse_unk = true;
    for (int32_t id = 0; id < vocab->token_count; id++)
        tokenizer->unigram.byte_fallback |= type_of(vocab, id) == QR_VOCAB_BYTE;
    return add_tokens(tokenizer, vocab, false, err);
}

/* What add_special_tokens puts around the text. */
static void add_post(qr_tokenizer *tokenizer, const qr_vocab *vocab, const pre_row *pre)
{
    bool llama = qr_str_equals(vocab->model, "llama"), bert = qr_str_equals(vocab->model, "bert");
    bool t5 = qr_str_equals(vocab->model, "t5"), sep = pre != NULL && pre->add_sep;
    bool bos = vocab->add_bos >= 0 ? vocab->add_bos : llama || bert || sep || (pre != NULL && pre->add_bos);
    bool eos = vocab->add_eos >= 0 ? vocab->add_eos : bert || t5 || sep;
    qr_template_item begin = {vocab->bos, 0}, text = {QR_ITEM_TEXT, 0}, end = {vocab->eos, 0};
    if (bos && vocab->bos >= 0)
        QR_VEC_PUSH(&tokenizer->post, begin);
    QR_VEC_PUSH(&tokenizer->post, text);
    if (eos && vocab->eos >= 0)
        QR_VEC_PUSH(&tokenizer->post, end);
}

/* A chat model's end of turn, when the file does not say it. */
static int32_t guess_eot(const qr_tokenizer *tokenizer)
{
    static const char *const names[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        int32_t id = qr_tokenizer_id_of(tokenizer, qr_str_of(names[i]));
        if (id >= 0 && (tokenizer->flags.data[id] & QR_TOKEN_SPECIAL))
            return id;
    }
    return -1;
}

static void set_special(qr_tokenizer *tokenizer, qr_special_name name, int32_t id)
{
    tokenizer->special_ids[name] = id;
    if (id >= 0)
        tokenizer->special_text[name] =
            qr_tokenizer_own(tokenizer, qr_token_table_text(&tokenizer->spelled, id));
}

qr_status qr_tokenizer_load_vocab(qr_tokenizer *tokenizer, const qr_vocab *vocab, bool sentencepiece,
                                  qr_error *err)
{
    const pre_row *pre = NULL;
    qr_status status;
    if (qr_str_equals(vocab->model, "gpt2")) {
        pre = find_pre(vocab->pre);
        if (pre == NULL)
            return qr_fail(err, QR_UNSUPPORTED, "%s: tokenizer.ggml.pre '%.*s' is not known", tokenizer->name,
                           (int)QR_MIN(vocab->pre.len, 40u), vocab->pre.data);
        status = load_gpt2(tokenizer, vocab, pre, err);
    } else if (qr_str_equals(vocab->model, "llama")) {
        status = load_llama(tokenizer, vocab, sentencepiece, err);
    } else if (qr_str_equals(vocab->model, "bert")) {
        status = load_bert(tokenizer, vocab, err);
    } else if (qr_str_equals(vocab->model, "t5")) {
        status = load_t5(tokenizer, vocab, sentencepiece, err);
    } else {
        return qr_fail(err, QR_UNSUPPORTED, "%s: tokenizer.ggml.model '%.*s' is not supported",
                       tokenizer->name, (int)QR_MIN(vocab->model.len, 40u), vocab->model.data);
    }
    if (status != QR_OK)
        return status;
    add_post(tokenizer, vocab, pre);
    set_special(tokenizer, QR_SPECIAL_BOS, vocab->bos);
    set_special(tokenizer, QR_SPECIAL_EOS, vocab->eos);
    set_special(tokenizer, QR_SPECIAL_UNK, vocab->unk);
    set_special(tokenizer, QR_SPECIAL_PAD, vocab->pad);
    tokenizer->eot = vocab->eot >= 0 ? vocab->eot : guess_eot(tokenizer);
    if (vocab->chat_template.len > 0)
        status = qr_tokenizer_load_template(tokenizer, vocab->chat_template, err);
    return status;
}

qr_status qr_text_tokenizer_from_vocab(const qr_vocab *vocab, const char *name, qr_tokenizer **out,
                                       qr_error *err)
{
    qr_status status = check_vocab(vocab, name, err);
    if (status != QR_OK)
        return status;
    qr_tokenizer *tokenizer = qr_tokenizer_make(name);
    status = qr_tokenizer_load_vocab(tokenizer, vocab, false, err);
    if (status == QR_OK)
        status = qr_tokenizer_finish(tokenizer, err);
    if (status == QR_OK)
        *out = tokenizer;
    else
        qr_tokenizer_destroy(tokenizer);
    return status;
}
