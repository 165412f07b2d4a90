/* Unigram: of all ways to cut a word into pieces the one with the greatest sum of scores (Viterbi). Pieces are
 * found through a trie held in one hash table of (node, byte). Ties go to the path found first, which is the one
 * whose last piece begins earliest, as in the reference. */
#include "text/tokenizer_impl.h"

#define UNKNOWN_PENALTY 10.0

static inline uint64_t edge_hash(uint64_t key)
{
    key *= UINT64_C(0x9E3779B97F4A7C15);
    return key ^ key >> 32;
}

static inline uint32_t trie_child(const qr_unigram *unigram, uint32_t node, uint8_t byte)
{
    uint64_t key = ((uint64_t)node << 8 | byte) + 1;
    for (size_t at = edge_hash(key) & unigram->trie_mask;; at = (at + 1) & unigram->trie_mask) {
        if (unigram->trie_keys[at] == key)
            return unigram->trie[at];
        if (unigram->trie_keys[at] == 0)
            return 0;
    }
}

static void trie_add(qr_unigram *unigram, const uint8_t *text, size_t len, int32_t id)
{
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++) {
        uint64_t key = ((uint64_t)node << 8 | text[i]) + 1;
        size_t at = edge_hash(key) & unigram->trie_mask;
        while (unigram->trie_keys[at] != 0 && unigram->trie_keys[at] != key)
            at = (at + 1) & unigram->trie_mask;
        if (unigram->trie_keys[at] == 0) {
            unigram->trie_keys[at] = key;
            unigram->trie[at] = (uint32_t)++unigram->trie_nodes;
            unigram->trie_ids[unigram->trie_nodes] = -1;
        }
        node = unigram->trie[at];
    }
    unigram->trie_ids[node] = id;
}

qr_status qr_unigram_finish(qr_tokenizer *tokenizer, qr_error *err)
{
    static const char hex[] = "0123456789ABCDEF";
    qr_unigram *unigram = &tokenizer->unigram;
    size_t bytes = 1, capacity = 64;
    unigram->min_score = 0;
    for (int32_t id = 0; id < tokenizer->model_count; id++) {
        bytes += qr_token_table_text(&tokenizer->spelled, id).len;
        if (id == 0 || unigram->scores[id] < unigram->min_score)
            unigram->min_score = unigram->scores[id];
    }
    if (bytes > 64 << 20)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: model: pieces of %zu bytes in all", tokenizer->name,
                       bytes);
    while (capacity < bytes * 2)
        capacity *= 2;
    unigram->trie_mask = capacity - 1;
    unigram->trie = qr_alloc(capacity * sizeof(*unigram->trie));
    unigram->trie_keys = qr_calloc(capacity, sizeof(*unigram->trie_keys));
    unigram->trie_ids = qr_alloc((bytes + 1) * sizeof(*unigram->trie_ids));
    unigram->trie_ids[0] = -1;
    for (int32_t id = 0; id < tokenizer->model_count; id++) {
        qr_str text = qr_token_table_text(&tokenizer->spelled, id);
        if (text.len > 0)
            trie_add(unigram, (const uint8_t *)text.data, text.len, id);
    }
    for (int byte = 0; byte < 256; byte++) {
        char name[] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'};
        unigram->bytes[byte] = qr_token_table_find(&tokenizer->spelled, name, sizeof(name));
    }
    return QR_OK;
}

void qr_unigram_release(qr_unigram *unigram)
{
    qr_free(unigram->scores);
    qr_free(unigram->trie);
    qr_free(unigram->trie_keys);
    qr_free(unigram->trie_ids);
    *unigram = (qr_unigram){0};
}

static size_t char_len(uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

/* starts[e]: where the best last piece of the first e bytes begins; UINT32_MAX: not reached. */
static void offer(qr_encoder *encoder, size_t end, size_t start, double score, int32_t id)
{
    if (encoder->starts.data[end] != UINT32_MAX && score <= encoder->scores.data[end])
        return;
    encoder->starts.data[end] = (uint32_t)start;
    encoder->scores.data[end] = score;
    encoder->nodes.data[end] = id;
}

static void best_path(qr_encoder *encoder, const uint8_t *word, size_t len)
{
    const qr_unigram *unigram = &encoder->tokenizer->unigram;
    double unknown = unigram->min_score - UNKNOWN_PENALTY;
    for (size_t i = 0; i <= len; i++)
        encoder->starts.data[i] = UINT32_MAX;
    encoder->scores.data[0] = 0;
    for (size_t at = 0; at < len;) {
        size_t width = char_len(word[at]);
        double here = encoder->scores.data[at];
        bool single = false;
        uint32_t node = 0;
        for (size_t i = at; i < len; i++) {
            node = trie_child(unigram, node, word[i]);
            if (node == 0)
                break;
            int32_t id = unigram->trie_ids[node];
            if (id < 0)
                continue;
            offer(encoder, i + 1, at, here + unigram->scores[id], id);
            single = single || i + 1 - at == width;
        }
        if (!single)
            offer(encoder, at + width, at, here + unknown, unigram->unk);
        at += width;
    }
}

/* Ids of word[start..end) that the path calls unknown. */
static void push_unknown(qr_encoder *encoder, const uint8_t *word, size_t start, size_t end, qr_ids *ids)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    const qr_unigram *unigram = &tokenizer->unigram;
    int32_t whole = qr_token_table_find(&tokenizer->spelled, word + start, end - start);
    if (whole >= 0 && (tokenizer->flags.data[whole] & QR_TOKEN_MODEL)) {
        QR_VEC_PUSH(ids, whole);
        return;
    }
    bool bytes = unigram->byte_fallback;
    for (size_t i = start; bytes && i < end; i++)
        bytes = unigram->bytes[word[i]] >= 0;
    for (size_t i = start; bytes && i < end; i++)
        QR_VEC_PUSH(ids, unigram->bytes[word[i]]);
    if (!bytes)
        QR_VEC_PUSH(ids, unigram->unk);
}

qr_status qr_unigram_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    const qr_unigram *unigram = &encoder->tokenizer->unigram;
    if (len >= UINT32_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "tokenizer: word of %zu bytes: too long", len);
    QR_VEC_RESERVE(&encoder->starts, len + 1);
    QR_VEC_RESERVE(&encoder->scores, len + 1);
    QR_VEC_RESERVE(&encoder->nodes, len + 1);
    best_path(encoder, word, len);
    /* Turn the path around in place: starts[e] of its pieces becomes a forward link in nodes' order. */
    size_t count = 0;
    for (size_t end = len; end > 0; end = encoder->starts.data[end])
        count++;
    QR_VEC_RESERVE(&encoder->bpe.ids, count + 1);
    uint32_t *ends = encoder->bpe.ids.data;
    for (size_t end = len, i = count; end > 0; end = encoder->starts.data[end])
        ends[--i] = (uint32_t)end;
    for (size_t i = 0, start = 0; i < count; i++) {
        int32_t id = encoder->nodes.data[ends[i]];
        if (id >= 0 && id != unigram->unk) {
            QR_VEC_PUSH(ids, id);
            start = ends[i];
            continue;
        }
        if (unigram->unk < 0)
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "tokenizer: text holds a character that the vocabulary lacks and "
                           "there is no unknown token");
        while (unigram->fuse_unk && i + 1 < count && encoder->nodes.data[ends[i + 1]] == unigram->unk)
            i++;
        push_unknown(encoder, word, start, ends[i], ids);
        start = ends[i];
    }
    return QR_OK;
}
