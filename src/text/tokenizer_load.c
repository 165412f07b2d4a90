/* tokenizer.json: one pass of the pull scanner over the file; the small parts go through qr_json, vocabulary and
 * merges straight into their tables. */
#include "base/json_scan.h"
#include "text/tokenizer_impl.h"

/* ---- The object ---- */

qr_tokenizer *qr_tokenizer_make(const char *name)
{
    qr_tokenizer *tokenizer = qr_calloc(1, sizeof(*tokenizer));
    tokenizer->name = qr_strdup(name != NULL ? name : "tokenizer");
    for (int i = 0; i < QR_SPECIAL_COUNT; i++)
        tokenizer->special_ids[i] = -1;
    tokenizer->eot = -1;
    tokenizer->bpe.unk = tokenizer->unigram.unk = tokenizer->wordpiece.unk = -1;
    return tokenizer;
}

void qr_tokenizer_destroy(qr_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    qr_encoder_free(tokenizer->spare);
    qr_token_table_release(&tokenizer->spelled);
    qr_token_table_release(&tokenizer->raw);
    qr_token_table_release(&tokenizer->decoded);
    QR_VEC_RELEASE(&tokenizer->flags);
    qr_bpe_release(&tokenizer->bpe);
    qr_unigram_release(&tokenizer->unigram);
    qr_added_release(tokenizer);
    for (size_t i = 0; i < tokenizer->normalizers.count; i++)
        qr_pattern_free(tokenizer->normalizers.data[i].pattern);
    for (size_t i = 0; i < tokenizer->pretokenizers.count; i++)
        qr_pattern_free(tokenizer->pretokenizers.data[i].pattern);
    for (size_t i = 0; i < tokenizer->decoders.count; i++)
        qr_pattern_free(tokenizer->decoders.data[i].pattern);
    QR_VEC_RELEASE(&tokenizer->normalizers);
    QR_VEC_RELEASE(&tokenizer->pretokenizers);
    QR_VEC_RELEASE(&tokenizer->decoders);
    QR_VEC_RELEASE(&tokenizer->post);
    QR_VEC_RELEASE(&tokenizer->post_pair);
    for (size_t i = 0; i < tokenizer->owned.count; i++)
        qr_free(tokenizer->owned.data[i]);
    QR_VEC_RELEASE(&tokenizer->owned);
    qr_jinja_free(tokenizer->template_compiled);
    qr_free(tokenizer->template_source);
    qr_buf_release(&tokenizer->byte_text);
    qr_free(tokenizer->name);
    qr_free(tokenizer);
}

char *qr_tokenizer_own(qr_tokenizer *tokenizer, qr_str text)
{
    char *copy = qr_alloc(text.len + 1);
    if (text.len > 0)
        memcpy(copy, text.data, text.len);
    copy[text.len] = '\0';
    QR_VEC_PUSH(&tokenizer->owned, copy);
    return copy;
}

/* Keeps flags and spellings; returns the table that shall find the token. */
static qr_token_table *store_token(qr_tokenizer *tokenizer, int32_t id, qr_str text, uint8_t flags)
{
    if ((size_t)id >= tokenizer->flags.count) {
        QR_VEC_RESERVE(&tokenizer->flags, (size_t)id + 1);
        memset(tokenizer->flags.data + tokenizer->flags.count, 0, (size_t)id + 1 - tokenizer->flags.count);
        tokenizer->flags.count = (size_t)id + 1;
    }
    tokenizer->flags.data[id] |= flags | QR_TOKEN_PRESENT;
    qr_token_table_store(&tokenizer->spelled, id, text);
    if (!tokenizer->byte_mode)
        return &tokenizer->spelled;
    qr_buf_clear(&tokenizer->byte_text);
    bool bytes = qr_byte_alphabet_decode(text, &tokenizer->byte_text);
    qr_token_table_store(&tokenizer->raw, id, bytes ? qr_buf_str(&tokenizer->byte_text) : text);
    return bytes && (flags & QR_TOKEN_MODEL) ? &tokenizer->raw : &tokenizer->spelled;
}

void qr_tokenizer_set_token(qr_tokenizer *tokenizer, int32_t id, qr_str text, uint8_t flags)
{
    qr_token_batch one = {.count = 0};
    qr_token_table *table = store_token(tokenizer, id, text, flags);
    qr_token_batch_add(&one, table, id);
    qr_token_batch_flush(&one, table);
}

void qr_tokenizer_set_bytes(qr_tokenizer *tokenizer, int32_t id, qr_str bytes)
{
    qr_buf_clear(&tokenizer->byte_text);
    qr_byte_alphabet_encode((const uint8_t *)bytes.data, bytes.len, &tokenizer->byte_text);
    qr_str spelled =
        qr_str_make(qr_strndup(tokenizer->byte_text.data != NULL ? tokenizer->byte_text.data : "",
                               tokenizer->byte_text.len),
                    tokenizer->byte_text.len);
    qr_buf_clear(&tokenizer->byte_text);
    qr_tokenizer_set_token(tokenizer, id, spelled, QR_TOKEN_MODEL);
    qr_free((char *)(uintptr_t)spelled.data);
    tokenizer->model_count++;
}

int32_t qr_tokenizer_id_of(const qr_tokenizer *tokenizer, qr_str text)
{
    int32_t id = qr_token_table_find(&tokenizer->spelled, text.data, text.len);
    if (id >= 0 || !tokenizer->byte_mode)
        return id;
    qr_buf bytes = {0};
    if (qr_byte_alphabet_decode(text, &bytes))
        id = qr_token_table_find(&tokenizer->raw, bytes.data, bytes.len);
    qr_buf_release(&bytes);
    return id;
}

/* The id that the reference gives to an added token that its vocabulary does not know. */
static int32_t next_added_id(const qr_tokenizer *tokenizer)
{
    int32_t most = -1;
    for (size_t i = 0; i < tokenizer->added.count; i++)
        most = QR_MAX(most, tokenizer->added.data[i].id);
    return most >= tokenizer->model_count || (tokenizer->model_count == 0 && most >= 0)
               ? most + 1
               : tokenizer->model_count;
}

qr_status qr_tokenizer_add(qr_tokenizer *tokenizer, qr_str text, qr_added_token token, int32_t wanted,
                           qr_error *err)
{
    if (text.len == 0) /* the reference ignores it */
        return QR_OK;
    if (text.len > QR_TOKEN_BYTES_MAX || tokenizer->added.count >= QR_ADDED_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: added_tokens: %zu tokens, one of %zu bytes",
                       tokenizer->name, tokenizer->added.count, text.len);
    int32_t id = wanted >= 0 ? wanted : qr_tokenizer_id_of(tokenizer, text);
    bool known =
        id >= 0 && (size_t)id < tokenizer->flags.count && (tokenizer->flags.data[id] & QR_TOKEN_PRESENT);
    if (id < 0)
        id = next_added_id(tokenizer);
    if (id >= QR_TOKEN_ID_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: added_tokens: id %d", tokenizer->name, (int)id);
    uint8_t flags = QR_TOKEN_ADDED | (token.special ? QR_TOKEN_SPECIAL : 0);
    if (known) {
        if (!token.special)
            tokenizer->flags.data[id] &= (uint8_t)~QR_TOKEN_SPECIAL;
        tokenizer->flags.data[id] |= flags;
    } else {
        qr_tokenizer_set_token(tokenizer, id, text, flags);
    }
    token.id = id;
    for (size_t i = 0; i < tokenizer->added.count; i++) {
        if (tokenizer->added.data[i].id == id) {
            tokenizer->added.data[i] = token;
            return QR_OK;
        }
    }
    QR_VEC_PUSH(&tokenizer->added, token);
    return QR_OK;
}

/* ---- The model ---- */

typedef struct model_reader {
    qr_tokenizer *tokenizer;
    qr_json_scan scan;
    qr_buf key, left, right; /* unescaped strings */
    bool have_type, have_vocab, have_merges, prefix_given;
    bool byte_fallback, fuse_unk, fuse_given, ignore_merges;
    int64_t unk_id;
    int64_t chars_max;
    char *unk_token, *prefix, *suffix; /* owned by the tokenizer */
    QR_VEC(double) scores;
    qr_json_scan merges; /* where the merges stand, when they come before the vocabulary */
    bool merges_later;
    qr_error *err;
} model_reader;

static qr_status scan_failed(const qr_json_scan *scan, const char *name, qr_error *err)
{
    qr_json_scan_error(scan, name, err);
    if (err != NULL)
        err->status = QR_BAD_FILE;
    return QR_BAD_FILE;
}

/* The next string, unescaped into buf when it has to be. */
static bool read_string(qr_json_scan *scan, qr_buf *buf, qr_str *out)
{
    bool escaped;
    if (!qr_json_scan_string(scan, out, &escaped))
        return false;
    if (escaped) {
        qr_buf_clear(buf);
        qr_buf_reserve(buf, out->len + 1);
        qr_json_scan_unescape(*out, buf);
        *out = qr_buf_str(buf);
    }
    return true;
}

static qr_status bad_token(const model_reader *reader, qr_str text, int64_t id)
{
    return qr_fail(reader->err, QR_BAD_FILE,
                   "%s: model: vocab: '%.*s' has id %lld (0 to %d, at most %d bytes)",
                   reader->tokenizer->name, (int)QR_MIN(text.len, 40u), text.data, (long long)id,
                   QR_TOKEN_ID_MAX - 1, QR_TOKEN_BYTES_MAX);
}

/* {"token": id, ...} */
static qr_status read_vocab_object(model_reader *reader)
{
    qr_json_scan *scan = &reader->scan;
    qr_tokenizer *tokenizer = reader->tokenizer;
    qr_token_table *table = tokenizer->byte_mode ? &tokenizer->raw : &tokenizer->spelled;
    qr_str raw;
    qr_token_batch batch = {.count = 0}, others = {.count = 0};
    qr_json_scan_object(scan);
    while (qr_json_scan_key(scan, &raw)) {
        int64_t id;
        qr_str text = raw;
        if (memchr(raw.data, '\\', raw.len) != NULL) {
            qr_buf_clear(&reader->key);
            qr_buf_reserve(&reader->key, raw.len + 1);
            qr_json_scan_unescape(raw, &reader->key);
            text = qr_buf_str(&reader->key);
        }
        if (!qr_json_scan_int(scan, &id))
            break;
        if (id < 0 || id >= QR_TOKEN_ID_MAX || text.len > QR_TOKEN_BYTES_MAX)
            return bad_token(reader, text, id);
        qr_token_table *home = store_token(tokenizer, (int32_t)id, text, QR_TOKEN_MODEL);
        qr_token_batch_add(home == table ? &batch : &others, home, (int32_t)id);
        tokenizer->model_count++;
    }
    qr_token_batch_flush(&batch, table);
    qr_token_batch_flush(&others, &tokenizer->spelled);
    return scan->failed ? scan_failed(scan, tokenizer->name, reader->err) : QR_OK;
}

/* [["piece", score], ...]: a Unigram model. */
static qr_status read_vocab_array(model_reader *reader)
{
    qr_json_scan *scan = &reader->scan;
    qr_tokenizer *tokenizer = reader->tokenizer;
    tokenizer->model = QR_MODEL_UNIGRAM;
    reader->have_type = true;
    qr_json_scan_array(scan);
    while (qr_json_scan_item(scan)) {
        qr_str text;
        double score;
        if (!qr_json_scan_array(scan) || !qr_json_scan_item(scan) ||
            !read_string(scan, &reader->key, &text) || !qr_json_scan_item(scan) ||
            !qr_json_scan_number(scan, &score))
            break;
        while (qr_json_scan_item(scan))
            qr_json_scan_skip(scan);
        if (tokenizer->model_count >= QR_TOKEN_ID_MAX || text.len > QR_TOKEN_BYTES_MAX)
            return bad_token(reader, text, tokenizer->model_count);
        qr_tokenizer_set_token(tokenizer, tokenizer->model_count++, text, QR_TOKEN_MODEL);
        QR_VEC_PUSH(&reader->scores, score);
    }
    return scan->failed ? scan_failed(scan, tokenizer->name, reader->err) : QR_OK;
}

/* Merges are resolved in batches: the three lookups of each go to random places in memory, and asking for all of
 * a batch before the first is used hides most of the wait. */
typedef struct merge_entry {
    size_t offset, left_len, len; /* the two parts, one after the other, in merge_batch.text */
    qr_word_key keys[3];          /* of the left, the right, both */
    int32_t ids[3];
    uint32_t rank;
} merge_entry;

typedef struct merge_batch {
    qr_buf text;
    size_t count;
    merge_entry entries[QR_TOKEN_BATCH];
} merge_batch;

static qr_status bad_merge(const model_reader *reader, const merge_batch *batch, const merge_entry *entry)
{
    const char *what = entry->ids[0] < 0 ? "the first" : entry->ids[1] < 0 ? "the second" : "the result";
    const char *text = batch->text.data + entry->offset;
    return qr_fail(reader->err, QR_BAD_FILE,
                   "%s: model: merges: '%.*s' with '%.*s' (number %u): %s is not in the vocabulary",
                   reader->tokenizer->name, (int)QR_MIN(entry->left_len, 40u), text,
                   (int)QR_MIN(entry->len - entry->left_len, 40u), text + entry->left_len, entry->rank, what);
}

/* With a continuing_subword_prefix the result is spelled without the right part's. */
static int32_t find_prefixed(model_reader *reader, const qr_token_table *table, const char *text,
                             const merge_entry *entry)
{
    size_t cut = QR_MIN(strlen(reader->prefix), entry->len - entry->left_len);
    qr_buf_clear(&reader->key);
    qr_buf_append(&reader->key, text, entry->left_len);
    qr_buf_append(&reader->key, text + entry->left_len + cut, entry->len - entry->left_len - cut);
    return qr_token_table_find(table, reader->key.data, reader->key.len);
}

static qr_status flush_merges(model_reader *reader, merge_batch *batch)
{
    qr_tokenizer *tokenizer = reader->tokenizer;
    const qr_token_table *table = tokenizer->byte_mode ? &tokenizer->raw : &tokenizer->spelled;
    for (size_t i = 0; i < batch->count; i++) {
        merge_entry *entry = &batch->entries[i];
        const char *text = batch->text.data + entry->offset;
        entry->keys[0] = qr_word_key_of(text, entry->left_len);
        entry->keys[1] = qr_word_key_of(text + entry->left_len, entry->len - entry->left_len);
        entry->keys[2] = qr_word_key_of(text, entry->len);
        for (int k = 0; k < 3; k++)
            qr_token_table_prefetch(table, &entry->keys[k]);
    }
    for (size_t i = 0; i < batch->count; i++) {
        merge_entry *entry = &batch->entries[i];
        const char *text = batch->text.data + entry->offset;
        entry->ids[0] = qr_token_table_find_key(table, &entry->keys[0], text, entry->left_len);
        entry->ids[1] = qr_token_table_find_key(table, &entry->keys[1], text + entry->left_len,
                                                entry->len - entry->left_len);
        if (reader->prefix != NULL)
            entry->ids[2] = find_prefixed(reader, table, text, entry);
        else
            entry->ids[2] = qr_token_table_find_key(table, &entry->keys[2], text, entry->len);
        if (entry->ids[0] < 0 || entry->ids[1] < 0 || entry->ids[2] < 0)
            return bad_merge(reader, batch, entry);
        qr_bpe_prefetch(&tokenizer->bpe, (uint32_t)entry->ids[0], (uint32_t)entry->ids[1]);
    }
    for (size_t i = 0; i < batch->count; i++) {
        merge_entry *entry = &batch->entries[i];
        qr_bpe_add(&tokenizer->bpe, (uint32_t)entry->ids[0], (uint32_t)entry->ids[1], entry->rank,
                   (uint32_t)entry->ids[2]);
    }
    batch->count = 0;
    qr_buf_clear(&batch->text);
    return QR_OK;
}

static bool batch_part(const model_reader *reader, qr_buf *out, qr_str text)
{
    if (reader->tokenizer->byte_mode)
        return qr_byte_alphabet_decode(text, out);
    qr_buf_append_str(out, text);
    return true;
}

/* In byte mode a part outside the byte alphabet can never be met: the merge only has to name known tokens. */
static qr_status check_unused_merge(const model_reader *reader, qr_str left, qr_str right, uint32_t rank)
{
    const qr_tokenizer *tokenizer = reader->tokenizer;
    if (qr_tokenizer_id_of(tokenizer, left) >= 0 && qr_tokenizer_id_of(tokenizer, right) >= 0)
        return QR_OK;
    return qr_fail(reader->err, QR_BAD_FILE,
                   "%s: model: merges: '%.*s' with '%.*s' (number %u): not in the vocabulary",
                   tokenizer->name, (int)QR_MIN(left.len, 40u), left.data, (int)QR_MIN(right.len, 40u),
                   right.data, rank);
}

static qr_status add_merge(model_reader *reader, merge_batch *batch, qr_str left, qr_str right, uint32_t rank)
{
    merge_entry *entry = &batch->entries[batch->count];
    entry->offset = batch->text.len;
    entry->rank = rank;
    bool usable = batch_part(reader, &batch->text, left);
    entry->left_len = batch->text.len - entry->offset;
    usable = usable && batch_part(reader, &batch->text, right);
    entry->len = batch->text.len - entry->offset;
    if (!usable) {
        batch->text.len = entry->offset;
        return check_unused_merge(reader, left, right, rank);
    }
    return ++batch->count == QR_TOKEN_BATCH ? flush_merges(reader, batch) : QR_OK;
}

/* "left right" or ["left", "right"]. */
static qr_status read_merge(model_reader *reader, qr_json_scan *scan, merge_batch *batch, uint32_t rank)
{
    qr_str left, right;
    if (qr_json_scan_peek(scan) == '[') {
        bool pair = qr_json_scan_array(scan) && qr_json_scan_item(scan) &&
                    read_string(scan, &reader->left, &left) && qr_json_scan_item(scan) &&
                    read_string(scan, &reader->right, &right) && !qr_json_scan_item(scan);
        if (scan->failed)
            return QR_OK; /* the caller says what */
        if (!pair)
            return qr_fail(reader->err, QR_BAD_FILE, "%s: model: merges: number %u is not two parts",
                           reader->tokenizer->name, rank);
        return add_merge(reader, batch, left, right, rank);
    }
    if (!read_string(scan, &reader->left, &left))
        return QR_OK;
    const char *space = memchr(left.data, ' ', left.len);
    size_t first = space != NULL ? (size_t)(space - left.data) : 0;
    if (space == NULL || memchr(space + 1, ' ', left.len - first - 1) != NULL)
        return qr_fail(reader->err, QR_BAD_FILE,
                       "%s: model: merges: number %u, '%.*s', is not two parts with a space between",
                       reader->tokenizer->name, rank, (int)QR_MIN(left.len, 60u), left.data);
    right = qr_str_make(space + 1, left.len - first - 1);
    return add_merge(reader, batch, qr_str_make(left.data, first), right, rank);
}

static qr_status read_merges(model_reader *reader, qr_json_scan *scan)
{
    qr_tokenizer *tokenizer = reader->tokenizer;
    uint32_t rank = 0;
    if (tokenizer->flags.count > QR_BPE_ID_MAX)
        return qr_fail(reader->err, QR_LIMIT_EXCEEDED, "%s: model: ids up to %zu, more than %d",
                       tokenizer->name, tokenizer->flags.count - 1, QR_BPE_ID_MAX);
    qr_bpe_init(&tokenizer->bpe, (size_t)tokenizer->model_count * 2);
    if (qr_json_scan_peek(scan) != '[') { /* an empty object, as one converter writes it */
        qr_json_scan_skip(scan);
        return scan->failed ? scan_failed(scan, tokenizer->name, reader->err) : QR_OK;
    }
    merge_batch *batch = qr_calloc(1, sizeof(*batch));
    qr_status status = QR_OK;
    qr_json_scan_array(scan);
    while (status == QR_OK && qr_json_scan_item(scan)) {
        if (rank == QR_BPE_RANK_MAX)
            status = qr_fail(reader->err, QR_LIMIT_EXCEEDED, "%s: model: more than %d merges",
                             tokenizer->name, QR_BPE_RANK_MAX);
        else
            status = read_merge(reader, scan, batch, rank++);
    }
    if (status == QR_OK && scan->failed)
        status = scan_failed(scan, tokenizer->name, reader->err);
    if (status == QR_OK)
        status = flush_merges(reader, batch);
    qr_buf_release(&batch->text);
    qr_free(batch);
    return status;
}

/* A flag that may be null. */
static void read_flag(qr_json_scan *scan, bool *out)
{
    if (qr_json_scan_peek(scan) == 'n')
        qr_json_scan_null(scan);
    else
        qr_json_scan_bool(scan, out);
}

/* A string that may be null; empty counts as null. */
static void read_own(model_reader *reader, char **out)
{
    qr_str text;
    if (qr_json_scan_peek(&reader->scan) == 'n')
        qr_json_scan_null(&reader->scan);
    else if (read_string(&reader->scan, &reader->key, &text) && text.len > 0)
        *out = qr_tokenizer_own(reader->tokenizer, text);
}

static qr_status read_type(model_reader *reader)
{
    static const char *const names[] = {"BPE", "Unigram", "WordPiece", "WordLevel"};
    qr_str text;
    if (!read_string(&reader->scan, &reader->key, &text))
        return QR_OK;
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        if (qr_str_equals(text, names[i])) {
            reader->tokenizer->model = (qr_model_kind)i;
            reader->have_type = true;
            return QR_OK;
        }
    }
    return qr_fail(reader->err, QR_UNSUPPORTED, "%s: model: type '%.*s' is not supported",
                   reader->tokenizer->name, (int)QR_MIN(text.len, 40u), text.data);
}

static qr_status read_dropout(model_reader *reader)
{
    double dropout = 0;
    if (qr_json_scan_peek(&reader->scan) == 'n')
        qr_json_scan_null(&reader->scan);
    else if (qr_json_scan_number(&reader->scan, &dropout) && dropout != 0)
        return qr_fail(reader->err, QR_UNSUPPORTED, "%s: model: dropout of %g", reader->tokenizer->name,
                       dropout);
    return QR_OK;
}

static void read_optional_int(qr_json_scan *scan, int64_t *out)
{
    if (qr_json_scan_peek(scan) == 'n')
        qr_json_scan_null(scan);
    else
        qr_json_scan_int(scan, out);
}

static qr_status read_model_key(model_reader *reader, qr_str key)
{
    qr_json_scan *scan = &reader->scan;
    if (qr_str_equals(key, "type"))
        return read_type(reader);
    if (qr_str_equals(key, "vocab")) {
        reader->have_vocab = true;
        return qr_json_scan_peek(scan) == '[' ? read_vocab_array(reader) : read_vocab_object(reader);
    }
    if (qr_str_equals(key, "merges")) {
        reader->have_merges = true;
        if (reader->have_vocab)
            return read_merges(reader, scan);
        reader->merges = *scan;
        reader->merges_later = true;
        qr_json_scan_skip(scan);
    } else if (qr_str_equals(key, "dropout")) {
        return read_dropout(reader);
    } else if (qr_str_equals(key, "unk_token")) {
        read_own(reader, &reader->unk_token);
    } else if (qr_str_equals(key, "continuing_subword_prefix")) {
        reader->prefix_given = true;
        read_own(reader, &reader->prefix);
    } else if (qr_str_equals(key, "end_of_word_suffix")) {
        read_own(reader, &reader->suffix);
    } else if (qr_str_equals(key, "byte_fallback")) {
        read_flag(scan, &reader->byte_fallback);
    } else if (qr_str_equals(key, "fuse_unk")) {
        reader->fuse_given = qr_json_scan_peek(scan) != 'n';
        read_flag(scan, &reader->fuse_unk);
    } else if (qr_str_equals(key, "ignore_merges")) {
        read_flag(scan, &reader->ignore_merges);
    } else if (qr_str_equals(key, "unk_id")) {
        read_optional_int(scan, &reader->unk_id);
    } else if (qr_str_equals(key, "max_input_chars_per_word")) {
        read_optional_int(scan, &reader->chars_max);
    } else {
        qr_json_scan_skip(scan);
    }
    return QR_OK;
}

/* The unknown token must be one the model has: the reference fails on the first text that needs it. */
static qr_status find_unk(const model_reader *reader, int32_t *out)
{
    *out = -1;
    if (reader->unk_token == NULL)
        return QR_OK;
    *out = qr_tokenizer_id_of(reader->tokenizer, qr_str_of(reader->unk_token));
    return QR_OK;
}

static qr_status set_unigram(model_reader *reader)
{
    qr_tokenizer *tokenizer = reader->tokenizer;
    qr_unigram *unigram = &tokenizer->unigram;
    if (reader->scores.count != (size_t)tokenizer->model_count)
        return qr_fail(
            reader->err, QR_BAD_FILE,
            "%s: model: vocab: a Unigram's is one list of [piece, score], here %zu scores and %d pieces",
            tokenizer->name, reader->scores.count, tokenizer->model_count);
    if (reader->unk_id >= tokenizer->model_count)
        return qr_fail(reader->err, QR_BAD_FILE, "%s: model: unk_id %lld of %d pieces", tokenizer->name,
                       (long long)reader->unk_id, tokenizer->model_count);
    unigram->unk = (int32_t)reader->unk_id;
    unigram->byte_fallback = reader->byte_fallback;
    unigram->fuse_unk = true;
    unigram->scores = qr_alloc((reader->scores.count + 1) * sizeof(double));
    if (reader->scores.count > 0)
        memcpy(unigram->scores, reader->scores.data, reader->scores.count * sizeof(double));
    return QR_OK;
}

static qr_status set_model(model_reader *reader)
{
    qr_tokenizer *tokenizer = reader->tokenizer;
    if (!reader->have_vocab)
        return qr_fail(reader->err, QR_BAD_FILE, "%s: model: has no vocab", tokenizer->name);
    if (!reader->have_type)
        tokenizer->model = reader->have_merges                                ? QR_MODEL_BPE
                           : reader->chars_max >= 0 || reader->prefix != NULL ? QR_MODEL_WORDPIECE
                                                                              : QR_MODEL_WORDLEVEL;
    qr_bpe *bpe = &tokenizer->bpe;
    switch (tokenizer->model) {
    case QR_MODEL_UNIGRAM: return set_unigram(reader);
    case QR_MODEL_WORDPIECE:
    case QR_MODEL_WORDLEVEL:
        if (reader->prefix == NULL && !reader->prefix_given)
            reader->prefix = qr_tokenizer_own(tokenizer, QR_STR("##"));
        if (reader->unk_token == NULL)
            reader->unk_token = qr_tokenizer_own(
                tokenizer, tokenizer->model == QR_MODEL_WORDPIECE ? QR_STR("[UNK]") : QR_STR("<unk>"));
        tokenizer->wordpiece.prefix = reader->prefix;
        tokenizer->wordpiece.chars_max =
            reader->chars_max >= 0 ? (uint32_t)QR_MIN(reader->chars_max, UINT32_MAX) : 100;
        return find_unk(reader, &tokenizer->wordpiece.unk);
    case QR_MODEL_BPE: break;
    }
    if (!reader->have_merges)
        qr_bpe_init(bpe, 0);
    bpe->prefix = reader->prefix;
    bpe->suffix = reader->suffix;
    bpe->fuse_unk = reader->fuse_unk;
    bpe->byte_fallback = reader->byte_fallback;
    bpe->ignore_merges = reader->ignore_merges;
    return find_unk(reader, &bpe->unk);
}

static bool wants_byte_mode(const qr_tokenizer *tokenizer)
{
    size_t count = tokenizer->pretokenizers.count;
    if (count == 0 || tokenizer->pretokenizers.data[count - 1].kind != QR_PRE_BYTE_LEVEL)
        return false;
    for (size_t i = 0; i + 1 < count; i++)
        if (tokenizer->pretokenizers.data[i].kind == QR_PRE_BYTE_LEVEL)
            return false;
    return true;
}

/* Not a BPE after all: the spellings need their lookup table. */
static void leave_byte_mode(qr_tokenizer *tokenizer)
{
    qr_token_table old = tokenizer->spelled;
    tokenizer->spelled = (qr_token_table){0};
    tokenizer->byte_mode = false;
    for (size_t id = 0; id < tokenizer->flags.count; id++)
        if (tokenizer->flags.data[id] & QR_TOKEN_PRESENT)
            qr_token_table_set(&tokenizer->spelled, (int32_t)id, qr_token_table_text(&old, (int32_t)id));
    qr_token_table_release(&old);
    qr_token_table_release(&tokenizer->raw);
}

/* scan stands before the model's object and is moved behind it. */
static qr_status read_model(qr_tokenizer *tokenizer, qr_json_scan *scan, qr_error *err)
{
    model_reader reader = {.tokenizer = tokenizer, .scan = *scan, .unk_id = -1, .chars_max = -1, .err = err};
    qr_str key;
    qr_status status = QR_OK;
    tokenizer->byte_mode = wants_byte_mode(tokenizer);
    qr_token_table_init(&tokenizer->spelled, tokenizer->byte_mode ? 1024 : 65536);
    if (tokenizer->byte_mode)
        qr_token_table_init(&tokenizer->raw, 131072);
    qr_json_scan_object(&reader.scan);
    while (status == QR_OK && qr_json_scan_key(&reader.scan, &key))
        status = read_model_key(&reader, key);
    if (status == QR_OK && reader.scan.failed)
        status = scan_failed(&reader.scan, tokenizer->name, err);
    if (status == QR_OK && reader.merges_later)
        status = read_merges(&reader, &reader.merges);
    if (status == QR_OK)
        status = set_model(&reader);
    if (status == QR_OK && tokenizer->byte_mode && tokenizer->model != QR_MODEL_BPE)
        leave_byte_mode(tokenizer);
    *scan = reader.scan;
    qr_buf_release(&reader.key);
    qr_buf_release(&reader.left);
    qr_buf_release(&reader.right);
    QR_VEC_RELEASE(&reader.scores);
    return status;
}

/* ---- The file ---- */

static qr_status parse_added(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    for (size_t i = 0; i < qr_json_count(json); i++) {
        const qr_json *item = qr_json_at(json, i);
        qr_str text = qr_json_string(qr_json_get(item, "content"));
        if (text.data == NULL)
            return qr_fail(err, QR_BAD_FILE, "%s: added_tokens: number %zu has no content", tokenizer->name,
                           i);
        bool special = qr_json_bool(qr_json_get(item, "special"), false);
        qr_added_token token = {.special = special,
                                .lstrip = qr_json_bool(qr_json_get(item, "lstrip"), false),
                                .rstrip = qr_json_bool(qr_json_get(item, "rstrip"), false),
                                .single_word = qr_json_bool(qr_json_get(item, "single_word"), false),
                                .normalized = qr_json_bool(qr_json_get(item, "normalized"), !special)};
        qr_status status = qr_tokenizer_add(tokenizer, text, token, -1, err);
        if (status != QR_OK)
            return status;
    }
    return QR_OK;
}

static uint32_t bounded(const qr_json *json, const char *key)
{
    int64_t value = qr_json_int(qr_json_get(json, key), 0);
    return (uint32_t)QR_MIN(QR_MAX(value, 0), 1 << 24);
}

static void parse_padding(qr_tokenizer *tokenizer, const qr_json *json)
{
    if (!qr_json_is(json, QR_JSON_OBJECT))
        return;
    const qr_json *strategy = qr_json_get(json, "strategy");
    uint32_t id = bounded(json, "pad_id");
    tokenizer->padding =
        (qr_padding){.on = true,
                     .fixed = qr_json_get(strategy, "Fixed") != NULL,
                     .left = qr_str_equals(qr_json_string(qr_json_get(json, "direction")), "Left"),
                     .length = bounded(strategy, "Fixed"),
                     .multiple = bounded(json, "pad_to_multiple_of"),
                     .id = (int32_t)QR_MIN(id, (uint32_t)QR_TOKEN_ID_MAX - 1)};
}

static void parse_truncation(qr_tokenizer *tokenizer, const qr_json *json)
{
    if (!qr_json_is(json, QR_JSON_OBJECT))
        return;
    tokenizer->truncation =
        (qr_truncation){.on = true,
                        .left = qr_str_equals(qr_json_string(qr_json_get(json, "direction")), "Left"),
                        .length = bounded(json, "max_length")};
}

typedef struct small_parts {
    qr_json *added, *normalizer, *pretokenizer, *post, *decoder, *padding, *truncation;
} small_parts;

static qr_status read_part(qr_json_scan *scan, const char *name, qr_json **out, qr_error *err)
{
    qr_str raw;
    if (!qr_json_scan_raw(scan, &raw))
        return scan_failed(scan, name, err);
    qr_json_free(*out);
    *out = NULL;
    qr_status status = qr_json_parse(raw, &qr_json_limits_file, out, err);
    if (status != QR_OK)
        qr_error_prefix(err, "%s", name);
    return status == QR_INVALID_ARGUMENT ? QR_BAD_FILE : status;
}

static void free_parts(small_parts *parts)
{
    qr_json_free(parts->added);
    qr_json_free(parts->normalizer);
    qr_json_free(parts->pretokenizer);
    qr_json_free(parts->post);
    qr_json_free(parts->decoder);
    qr_json_free(parts->padding);
    qr_json_free(parts->truncation);
}

/* Reads the top level; the model as soon as its pre-tokenizer is known. */
static qr_status read_top(qr_tokenizer *tokenizer, qr_str json, small_parts *parts, qr_error *err)
{
    struct {
        const char *key;
        qr_json **part;
    } rows[] = {{"added_tokens", &parts->added},
                {"normalizer", &parts->normalizer},
                {"pre_tokenizer", &parts->pretokenizer},
                {"post_processor", &parts->post},
                {"decoder", &parts->decoder},
                {"padding", &parts->padding},
                {"truncation", &parts->truncation}};
    qr_json_scan scan, model;
    qr_str key;
    bool have_model = false, model_later = false;
    qr_status status = QR_OK;
    qr_json_scan_init(&scan, json);
    qr_json_scan_object(&scan);
    while (status == QR_OK && qr_json_scan_key(&scan, &key)) {
        size_t row = 0;
        while (row < QR_COUNT_OF(rows) && !qr_str_equals(key, rows[row].key))
            row++;
        if (row < QR_COUNT_OF(rows)) {
            status = read_part(&scan, tokenizer->name, rows[row].part, err);
            if (status == QR_OK && rows[row].part == &parts->pretokenizer)
                status = qr_tokenizer_parse_pretokenizer(tokenizer, parts->pretokenizer, err);
        } else if (qr_str_equals(key, "model") && !have_model) {
            have_model = true;
            model_later = parts->pretokenizer == NULL;
            model = scan;
            if (model_later)
                qr_json_scan_skip(&scan);
            else
                status = read_model(tokenizer, &scan, err);
        } else {
            qr_json_scan_skip(&scan);
        }
    }
    if (status == QR_OK && (scan.failed || !qr_json_scan_end(&scan)))
        status = scan_failed(&scan, tokenizer->name, err);
    if (status == QR_OK && !have_model)
        return qr_fail(err, QR_BAD_FILE, "%s: has no model", tokenizer->name);
    return status == QR_OK && model_later ? read_model(tokenizer, &model, err) : status;
}

qr_status qr_tokenizer_load_json(qr_tokenizer *tokenizer, qr_str json, qr_error *err)
{
    small_parts parts = {0};
    qr_status status = read_top(tokenizer, json, &parts, err);
    if (status == QR_OK)
        status = qr_tokenizer_parse_normalizer(tokenizer, parts.normalizer, err);
    if (status == QR_OK)
        status = qr_tokenizer_parse_post(tokenizer, parts.post, err);
    if (status == QR_OK)
        status = qr_tokenizer_parse_decoder(tokenizer, parts.decoder, err);
    if (status == QR_OK)
        status = parse_added(tokenizer, parts.added, err);
    parse_padding(tokenizer, parts.padding);
    parse_truncation(tokenizer, parts.truncation);
    free_parts(&parts);
    return status;
}

qr_status qr_tokenizer_load_config(qr_tokenizer *tokenizer, qr_str config, const char *name, qr_error *err)
{
    qr_json *json = NULL;
    qr_status status = qr_json_parse(config, &qr_json_limits_file, &json, err);
    if (status != QR_OK) {
        qr_error_prefix(err, "%s", name);
        return QR_BAD_FILE;
    }
    status = qr_tokenizer_parse_config(tokenizer, json, err);
    qr_json_free(json);
    return status;
}

qr_status qr_text_tokenizer_from_json(qr_str json, qr_str config_json, const char *name, qr_tokenizer **out,
                                      qr_error *err)
{
    qr_tokenizer *tokenizer = qr_tokenizer_make(name);
    qr_status status = qr_tokenizer_load_json(tokenizer, json, err);
    if (status == QR_OK && config_json.len > 0)
        status = qr_tokenizer_load_config(tokenizer, config_json, "tokenizer_config.json", err);
    if (status == QR_OK)
        status = qr_tokenizer_finish(tokenizer, err);
    if (status == QR_OK)
        *out = tokenizer;
    else
        qr_tokenizer_destroy(tokenizer);
    return status;
}
