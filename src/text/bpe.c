/* Byte-pair encoding: of all neighbouring pairs that a merge is known for, the one of lowest rank is merged,
 * leftmost first, until none is left.
 *
 * Short words (nearly all) keep their symbols in small arrays and look for the minimum in a line; long ones use
 * a linked list and a heap, O(n log n), so that a megabyte of one letter is no attack.
 */
#include "base/assert.h"
#include "text/tokenizer_impl.h"

enum { LINEAR_MAX = 64 };
#define NO_PAIR UINT64_MAX

static inline uint64_t pair_hash(uint32_t left, uint32_t right)
{
    uint64_t x = ((uint64_t)left << 32 | right) * UINT64_C(0x9E3779B97F4A7C15);
    return x ^ x >> 32;
}

void qr_bpe_init(qr_bpe *bpe, size_t merges)
{
    size_t capacity = 64, bits = 1024;
    while (capacity < merges * 2)
        capacity *= 2;
    while (bits < merges * 8)
        bits *= 2;
    *bpe = (qr_bpe){.pair_mask = capacity - 1, .unk = -1};
    bpe->pairs = qr_alloc(capacity * sizeof(*bpe->pairs));
    memset(bpe->pairs, 0xFF, capacity * sizeof(*bpe->pairs));
    bpe->pair_filter = qr_calloc(bits / 64, sizeof(uint64_t));
    bpe->filter_mask = bits - 1;
    for (int i = 0; i < 256; i++)
        bpe->bytes[i] = bpe->last_bytes[i] = -1;
}

void qr_bpe_release(qr_bpe *bpe)
{
    qr_free(bpe->pairs);
    qr_free(bpe->pair_filter);
    *bpe = (qr_bpe){0};
}

static void pairs_grow(qr_bpe *bpe)
{
    size_t old_capacity = bpe->pair_mask + 1, capacity = old_capacity * 2;
    qr_pair_slot *slots = qr_alloc(capacity * sizeof(*slots));
    memset(slots, 0xFF, capacity * sizeof(*slots));
    for (size_t i = 0; i < old_capacity; i++) {
        if (bpe->pairs[i].left == UINT32_MAX)
            continue;
        size_t at = pair_hash(bpe->pairs[i].left, bpe->pairs[i].right) & (capacity - 1);
        while (slots[at].left != UINT32_MAX)
            at = (at + 1) & (capacity - 1);
        slots[at] = bpe->pairs[i];
    }
    qr_free(bpe->pairs);
    bpe->pairs = slots;
    bpe->pair_mask = capacity - 1;
}

void qr_bpe_add(qr_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t hash = pair_hash(left, right);
    size_t at = hash & bpe->pair_mask;
    while (bpe->pairs[at].left != UINT32_MAX && (bpe->pairs[at].left != left || bpe->pairs[at].right != right))
        at = (at + 1) & bpe->pair_mask;
    bool fresh = bpe->pairs[at].left == UINT32_MAX;
    bpe->pairs[at] = (qr_pair_slot){left, right, rank, id}; /* of a merge given twice the later counts */
    size_t bit = (hash >> 20) & bpe->filter_mask;
    bpe->pair_filter[bit / 64] |= UINT64_C(1) << bit % 64;
    if (fresh && ++bpe->pair_count * 2 > bpe->pair_mask + 1)
        pairs_grow(bpe);
}

/* rank << 32 | id, or NO_PAIR. */
static inline uint64_t pair_find(const qr_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t hash = pair_hash(left, right);
    size_t bit = (hash >> 20) & bpe->filter_mask;
    if ((bpe->pair_filter[bit / 64] >> bit % 64 & 1) == 0)
        return NO_PAIR;
    for (size_t at = hash & bpe->pair_mask;; at = (at + 1) & bpe->pair_mask) {
        const qr_pair_slot *slot = &bpe->pairs[at];
        if (slot->left == left && slot->right == right)
            return (uint64_t)slot->rank << 32 | slot->id;
        if (slot->left == UINT32_MAX)
            return NO_PAIR;
    }
}

/* Merges count (<= LINEAR_MAX) symbols in place; returns how many are left. */
static size_t merge_linear(const qr_bpe *bpe, uint32_t *ids, size_t count)
{
    uint64_t pairs[LINEAR_MAX];
    for (size_t i = 0; i + 1 < count; i++)
        pairs[i] = pair_find(bpe, ids[i], ids[i + 1]);
    while (count > 1) {
        size_t best = 0;
        uint64_t least = pairs[0];
        for (size_t i = 1; i + 1 < count; i++) {
            if (pairs[i] >> 32 < least >> 32) { /* of equal ranks the leftmost */
                least = pairs[i];
                best = i;
            }
        }
        if (least == NO_PAIR)
            break;
        ids[best] = (uint32_t)least;
        count--;
        memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof(*ids));
        if (best + 1 < count) {
            memmove(pairs + best + 1, pairs + best + 2, (count - best - 2) * sizeof(*pairs));
            pairs[best] = pair_find(bpe, ids[best], ids[best + 1]);
        }
        if (best > 0)
            pairs[best - 1] = pair_find(bpe, ids[best - 1], ids[best]);
    }
    return count;
}

/* ---- Long words: heap of rank << 32 | position ---- */

static void heap_down(uint64_t *heap, size_t count, size_t at)
{
    uint64_t item = heap[at];
    for (;;) {
        size_t child = at * 2 + 1;
        if (child >= count)
            break;
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (item <= heap[child])
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

static void heap_push(qr_bpe_scratch *scratch, uint64_t item)
{
    QR_VEC_PUSH(&scratch->heap, item);
    uint64_t *heap = scratch->heap.data;
    size_t at = scratch->heap.count - 1;
    while (at > 0 && item < heap[(at - 1) / 2]) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

static void heap_pair(const qr_bpe *bpe, qr_bpe_scratch *scratch, uint32_t at, uint32_t next)
{
    uint64_t pair = pair_find(bpe, scratch->ids.data[at], scratch->ids.data[next]);
    scratch->pairs.data[at] = pair;
    if (pair != NO_PAIR)
        heap_push(scratch, (pair >> 32) << 32 | at);
}

/* Merges scratch->ids of `count` symbols; the result is at the front. */
static size_t merge_heap(const qr_bpe *bpe, qr_bpe_scratch *scratch, size_t count)
{
    QR_VEC_RESERVE(&scratch->next, count);
    QR_VEC_RESERVE(&scratch->previous, count);
    QR_VEC_RESERVE(&scratch->pairs, count);
    uint32_t *ids = scratch->ids.data, *next = scratch->next.data, *previous = scratch->previous.data;
    uint64_t *pairs = scratch->pairs.data;
    scratch->heap.count = 0;
    for (size_t i = 0; i < count; i++) {
        next[i] = i + 1 < count ? (uint32_t)i + 1 : UINT32_MAX;
        previous[i] = (uint32_t)i - 1;
        pairs[i] = i + 1 < count ? pair_find(bpe, ids[i], ids[i + 1]) : NO_PAIR;
        if (pairs[i] != NO_PAIR)
            QR_VEC_PUSH(&scratch->heap, (pairs[i] >> 32) << 32 | i);
    }
    for (size_t i = scratch->heap.count / 2; i-- > 0;)
        heap_down(scratch->heap.data, scratch->heap.count, i);
    while (scratch->heap.count > 0) {
        uint64_t top = scratch->heap.data[0];
        scratch->heap.data[0] = scratch->heap.data[--scratch->heap.count];
        if (scratch->heap.count > 0)
            heap_down(scratch->heap.data, scratch->heap.count, 0);
        uint32_t at = (uint32_t)top;
        if (pairs[at] == NO_PAIR || pairs[at] >> 32 != top >> 32)
            continue; /* merged away or changed since */
        uint32_t gone = next[at], after = next[gone];
        ids[at] = (uint32_t)pairs[at];
        next[at] = after;
        pairs[gone] = pairs[at] = NO_PAIR;
        if (after != UINT32_MAX) {
            previous[after] = at;
            heap_pair(bpe, scratch, at, after);
        }
        if (previous[at] != UINT32_MAX)
            heap_pair(bpe, scratch, previous[at], at);
    }
    size_t out = 0;
    for (uint32_t i = 0; i != UINT32_MAX; i = next[i])
        ids[out++] = ids[i];
    return out;
}

static void append_merged(qr_encoder *encoder, size_t count, qr_ids *ids)
{
    const qr_bpe *bpe = &encoder->tokenizer->bpe;
    uint32_t *symbols = encoder->bpe.ids.data;
    if (count > 1)
        count = count <= LINEAR_MAX ? merge_linear(bpe, symbols, count) : merge_heap(bpe, &encoder->bpe, count);
    QR_VEC_RESERVE(ids, ids->count + count);
    for (size_t i = 0; i < count; i++)
        ids->data[ids->count++] = (int32_t)symbols[i];
}

/* ---- Byte mode ---- */

/* Symbols of a word of bytes. A byte that the vocabulary lacks becomes the unknown token, or nothing. */
static size_t byte_symbols(const qr_bpe *bpe, const uint8_t *word, size_t len, uint32_t *out)
{
    size_t count = 0;
    bool unknown = false;
    for (size_t i = 0; i < len; i++) {
        int32_t id = i + 1 == len && bpe->suffix != NULL ? bpe->last_bytes[word[i]] : bpe->bytes[word[i]];
        if (id >= 0) {
            out[count++] = (uint32_t)id;
            unknown = false;
        } else if (bpe->unk >= 0) {
            if (!unknown || !bpe->fuse_unk)
                out[count++] = (uint32_t)bpe->unk;
            unknown = true;
        }
    }
    return count;
}

void qr_bpe_word_bytes(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (tokenizer->bpe.ignore_merges) {
        int32_t whole = qr_token_table_find(&tokenizer->raw, word, len);
        if (whole >= 0) {
            QR_VEC_PUSH(ids, whole);
            return;
        }
    }
    QR_VEC_RESERVE(&encoder->bpe.ids, len);
    append_merged(encoder, byte_symbols(&tokenizer->bpe, word, len, encoder->bpe.ids.data), ids);
}

/* ---- Character mode ---- */

typedef struct symbol_state {
    size_t count;
    bool unknown; /* one is waiting to be written */
} symbol_state;

static void flush_unknown(const qr_bpe *bpe, uint32_t *out, symbol_state *state)
{
    if (state->unknown)
        out[state->count++] = (uint32_t)bpe->unk;
    state->unknown = false;
}

/* "<0xXX>" of each byte, if the vocabulary has all of them. An unknown token that waits stays waiting, as in
 * the reference. */
static bool fall_back_to_bytes(const qr_bpe *bpe, const uint8_t *text, size_t len, uint32_t *out,
                               symbol_state *state)
{
    if (!bpe->byte_fallback)
        return false;
    for (size_t i = 0; i < len; i++)
        if (bpe->bytes[text[i]] < 0)
            return false;
    for (size_t i = 0; i < len; i++)
        out[state->count++] = (uint32_t)bpe->bytes[text[i]];
    return true;
}

static void char_symbol(const qr_tokenizer *tokenizer, qr_str spelled, uint32_t *out, symbol_state *state)
{
    const qr_bpe *bpe = &tokenizer->bpe;
    int32_t id = qr_token_table_find(&tokenizer->spelled, spelled.data, spelled.len);
    if (id >= 0 && (tokenizer->flags.data[id] & QR_TOKEN_MODEL)) {
        flush_unknown(bpe, out, state);
        out[state->count++] = (uint32_t)id;
        return;
    }
    if (fall_back_to_bytes(bpe, (const uint8_t *)spelled.data, spelled.len, out, state) || bpe->unk < 0)
        return;
    if (!bpe->fuse_unk)
        flush_unknown(bpe, out, state);
    state->unknown = true;
}

static size_t char_symbols(qr_encoder *encoder, const uint8_t *word, size_t len)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    const qr_bpe *bpe = &tokenizer->bpe;
    uint32_t *out = encoder->bpe.ids.data;
    symbol_state state = {0};
    for (size_t i = 0; i < len;) {
        uint32_t c;
        size_t width = qr_unicode_next(word + i, &c);
        bool last = i + width >= len;
        qr_str spelled = qr_str_make((const char *)word + i, width);
        if ((i > 0 && bpe->prefix != NULL) || (last && bpe->suffix != NULL)) {
            qr_buf_clear(&encoder->temporary);
            if (i > 0 && bpe->prefix != NULL)
                qr_buf_append_cstr(&encoder->temporary, bpe->prefix);
            qr_buf_append_str(&encoder->temporary, spelled);
            if (last && bpe->suffix != NULL)
                qr_buf_append_cstr(&encoder->temporary, bpe->suffix);
            spelled = qr_buf_str(&encoder->temporary);
        }
        char_symbol(tokenizer, spelled, out, &state);
        i += width;
    }
    flush_unknown(bpe, out, &state);
    return state.count;
}

qr_status qr_bpe_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    const qr_bpe *bpe = &tokenizer->bpe;
    if (bpe->ignore_merges) {
        int32_t whole = qr_token_table_find(&tokenizer->spelled, word, len);
        if (whole >= 0 && (tokenizer->flags.data[whole] & QR_TOKEN_MODEL)) {
            QR_VEC_PUSH(ids, whole);
            return QR_OK;
        }
    }
    /* A character gives at most one symbol a byte, and those of a prefix and a suffix. */
    size_t extra = (bpe->prefix != NULL ? strlen(bpe->prefix) * len : 0) +
                   (bpe->suffix != NULL ? strlen(bpe->suffix) : 0);
    if (len + extra >= UINT32_MAX / 2)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "tokenizer: word of %zu bytes: too long", len);
    QR_VEC_RESERVE(&encoder->bpe.ids, len + extra + 1);
    append_merged(encoder, char_symbols(encoder, word, len), ids);
    return QR_OK;
}

/* ---- The tables that follow from the vocabulary ---- */

static qr_status find_byte_tokens(qr_tokenizer *tokenizer, qr_error *err)
{
    static const char hex[] = "0123456789ABCDEF";
    qr_bpe *bpe = &tokenizer->bpe;
    qr_buf key = {0};
    for (int byte = 0; byte < 256; byte++) {
        if (!tokenizer->byte_mode) {
            char name[] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'};
            bpe->bytes[byte] = qr_token_table_find(&tokenizer->spelled, name, sizeof(name));
            continue;
        }
        char c = (char)byte;
        bpe->bytes[byte] = qr_token_table_find(&tokenizer->raw, &c, 1);
        if (bpe->suffix == NULL)
            continue;
        qr_buf_clear(&key);
        qr_buf_append_char(&key, c);
        qr_buf_append_cstr(&key, bpe->suffix);
        bpe->last_bytes[byte] = qr_token_table_find(&tokenizer->raw, key.data, key.len);
    }
    qr_buf_release(&key);
    if (tokenizer->byte_mode && bpe->prefix != NULL)
        return qr_fail(err, QR_UNSUPPORTED, "%s: model: continuing_subword_prefix with ByteLevel", tokenizer->name);
    return QR_OK;
}

qr_status qr_bpe_finish(qr_tokenizer *tokenizer, qr_error *err) { return find_byte_tokens(tokenizer, err); }
