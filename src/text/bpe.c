/* Byte-pair encoding: of all neighbouring pairs that a merge is known for, the one of lowest rank is merged,
 * leftmost first, until none is left.
 *
 * Short words (nearly all) keep their symbols in small arrays and look for the minimum in a line; long ones use
 * a linked list and a heap, O(n log n), so that a megabyte of one letter is no attack.
 */
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

enum { LINEAR_MAX = 64, CHARACTERS = 0x10000 };
#define NO_RANK     UINT32_MAX
#define AFTER_PLAIN 0x80000000u /* in qr_bpe.characters: only where no ASCII character stands before */
#define NO_PAIR     UINT64_MAX
#define KEY_MASK    ((UINT64_C(1) << 2 * QR_PAIR_ID_BITS) - 1)

static inline uint64_t pair_key(uint32_t left, uint32_t right)
{
    return left | (uint64_t)right << QR_PAIR_ID_BITS;
}

static inline uint64_t key_hash(uint64_t key)
{
    key *= UINT64_C(0x9E3779B97F4A7C15);
    return key ^ key >> 32;
}

static inline size_t filter_bit(const qr_bpe *bpe, uint64_t hash) { return (hash >> 24) & bpe->filter_mask; }

void qr_bpe_init(qr_bpe *bpe, size_t merges)
{
    size_t capacity = 64, bits = 1024;
    while (capacity * 2 < merges * 3)
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
    qr_free(bpe->characters);
    QR_VEC_RELEASE(&bpe->rank_ids);
    *bpe = (qr_bpe){0};
}

static void pairs_grow(qr_bpe *bpe)
{
    size_t old_capacity = bpe->pair_mask + 1, capacity = old_capacity * 2;
    uint64_t *slots = qr_alloc(capacity * sizeof(*slots));
    memset(slots, 0xFF, capacity * sizeof(*slots));
    for (size_t i = 0; i < old_capacity; i++) {
        if (bpe->pairs[i] == NO_PAIR)
            continue;
        size_t at = key_hash(bpe->pairs[i] & KEY_MASK) & (capacity - 1);
        while (slots[at] != NO_PAIR)
            at = (at + 1) & (capacity - 1);
        slots[at] = bpe->pairs[i];
    }
    qr_free(bpe->pairs);
    bpe->pairs = slots;
    bpe->pair_mask = capacity - 1;
}

void qr_bpe_prefetch(const qr_bpe *bpe, uint32_t left, uint32_t right)
{
    __builtin_prefetch(&bpe->pairs[key_hash(pair_key(left, right)) & bpe->pair_mask], 1);
}

void qr_bpe_add(qr_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t key = pair_key(left, right), hash = key_hash(key);
    size_t at = hash & bpe->pair_mask;
    while (bpe->pairs[at] != NO_PAIR && (bpe->pairs[at] & KEY_MASK) != key)
        at = (at + 1) & bpe->pair_mask;
    bool fresh = bpe->pairs[at] == NO_PAIR;
    bpe->pairs[at] = key | (uint64_t)rank
                               << 2 * QR_PAIR_ID_BITS; /* of a merge given twice the later counts */
    while (bpe->rank_ids.count <= rank)
        QR_VEC_PUSH(&bpe->rank_ids, -1);
    bpe->rank_ids.data[rank] = (int32_t)id;
    size_t bit = filter_bit(bpe, hash);
    bpe->pair_filter[bit / 64] |= UINT64_C(1) << bit % 64;
    if (fresh && ++bpe->pair_count * 3 > (bpe->pair_mask + 1) * 2)
        pairs_grow(bpe);
}

static int32_t part_id(const qr_tokenizer *tokenizer, const qr_token_table *table, const char *text,
                       size_t len)
{
    int32_t id = qr_token_table_find(table, text, len);
    return id >= 0 && (tokenizer->flags.data[id] & QR_TOKEN_MODEL) ? id : -1;
}

void qr_bpe_merge_in_order(qr_tokenizer *tokenizer, const int32_t *order, size_t count)
{
    const qr_token_table *table = tokenizer->byte_mode ? &tokenizer->raw : &tokenizer->spelled;
    enum { SPLIT_BYTES_MAX = 512 }; /* a longer token is not worth its square of work */
    qr_bpe_init(&tokenizer->bpe, count * 2);
    for (size_t i = 0; i < count; i++) {
        qr_str text = qr_token_table_text(table, order[i]);
        for (size_t cut = 1; cut < text.len && text.len <= SPLIT_BYTES_MAX; cut++) {
            if (!tokenizer->byte_mode && ((uint8_t)text.data[cut] & 0xC0) == 0x80)
                continue;
            int32_t left = part_id(tokenizer, table, text.data, cut);
            int32_t right = left >= 0 ? part_id(tokenizer, table, text.data + cut, text.len - cut) : -1;
            if (right >= 0)
                qr_bpe_add(&tokenizer->bpe, (uint32_t)left, (uint32_t)right, (uint32_t)i, (uint32_t)order[i]);
        }
    }
}

/* Rank of the merge of two neighbours, or NO_RANK. */
static inline uint32_t pair_rank(const qr_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t key = pair_key(left, right), hash = key_hash(key);
    size_t bit = filter_bit(bpe, hash);
    if ((bpe->pair_filter[bit / 64] >> bit % 64 & 1) == 0)
        return NO_RANK;
    for (size_t at = hash & bpe->pair_mask;; at = (at + 1) & bpe->pair_mask) {
        uint64_t slot = bpe->pairs[at];
        if ((slot & KEY_MASK) == key)
            return (uint32_t)(slot >> 2 * QR_PAIR_ID_BITS);
        if (slot == NO_PAIR)
            return NO_RANK;
    }
}

/* Merges count (<= LINEAR_MAX) symbols in place; returns how many are left. */
static size_t merge_linear(const qr_bpe *bpe, uint32_t *ids, size_t count)
{
    uint32_t ranks[LINEAR_MAX];
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = pair_rank(bpe, ids[i], ids[i + 1]);
    while (count > 1) {
        uint64_t first = UINT64_MAX; /* rank, then place: a minimum without branches */
        for (size_t i = 0; i + 1 < count; i++) {
            uint64_t item = (uint64_t)ranks[i] << 32 | i;
            first = item < first ? item : first;
        }
        size_t best = (uint32_t)first;
        uint32_t least = (uint32_t)(first >> 32);
        if (least == NO_RANK)
            break;
        ids[best] = (uint32_t)bpe->rank_ids.data[least];
        count--;
        for (size_t i = best + 1; i < count; i++)
            ids[i] = ids[i + 1];
        for (size_t i = best + 1; i + 1 < count; i++)
            ranks[i] = ranks[i + 1];
        if (best + 1 < count)
            ranks[best] = pair_rank(bpe, ids[best], ids[best + 1]);
        if (best > 0)
            ranks[best - 1] = pair_rank(bpe, ids[best - 1], ids[best]);
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
    uint32_t rank = pair_rank(bpe, scratch->ids.data[at], scratch->ids.data[next]);
    scratch->ranks.data[at] = rank;
    if (rank != NO_RANK)
        heap_push(scratch, (uint64_t)rank << 32 | at);
}

static void heap_fill(const qr_bpe *bpe, qr_bpe_scratch *scratch, size_t count)
{
    QR_VEC_RESERVE(&scratch->next, count);
    QR_VEC_RESERVE(&scratch->previous, count);
    QR_VEC_RESERVE(&scratch->ranks, count);
    scratch->heap.count = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t rank =
            i + 1 < count ? pair_rank(bpe, scratch->ids.data[i], scratch->ids.data[i + 1]) : NO_RANK;
        scratch->next.data[i] = i + 1 < count ? (uint32_t)i + 1 : UINT32_MAX;
        scratch->previous.data[i] = (uint32_t)i - 1;
        scratch->ranks.data[i] = rank;
        if (rank != NO_RANK)
            QR_VEC_PUSH(&scratch->heap, (uint64_t)rank << 32 | i);
    }
    for (size_t i = scratch->heap.count / 2; i-- > 0;)
        heap_down(scratch->heap.data, scratch->heap.count, i);
}

/* Merges scratch->ids of `count` symbols; the result is at the front. */
static size_t merge_heap(const qr_bpe *bpe, qr_bpe_scratch *scratch, size_t count)
{
    heap_fill(bpe, scratch, count);
    uint32_t *ids = scratch->ids.data, *next = scratch->next.data, *previous = scratch->previous.data;
    uint32_t *ranks = scratch->ranks.data;
    while (scratch->heap.count > 0) {
        uint64_t top = scratch->heap.data[0];
        scratch->heap.data[0] = scratch->heap.data[--scratch->heap.count];
        if (scratch->heap.count > 0)
            heap_down(scratch->heap.data, scratch->heap.count, 0);
        uint32_t at = (uint32_t)top, rank = (uint32_t)(top >> 32);
        if (ranks[at] != rank)
            continue; /* merged away or changed since */
        uint32_t gone = next[at], after = next[gone];
        ids[at] = (uint32_t)bpe->rank_ids.data[rank];
        next[at] = after;
        ranks[gone] = ranks[at] = NO_RANK;
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
        count =
            count <= LINEAR_MAX ? merge_linear(bpe, symbols, count) : merge_heap(bpe, &encoder->bpe, count);
    QR_VEC_RESERVE(ids, ids->count + count);
    for (size_t i = 0; i < count; i++)
        ids->data[ids->count++] = (int32_t)symbols[i];
}

/* ---- Byte mode ---- */

/* The token that the character at word[i] is sure to become, or 0; *width: its length. */
static inline uint32_t sure_character(const qr_bpe *bpe, const uint8_t *word, size_t len, size_t i,
                                      size_t *width)
{
    if (word[i] < 0xC2 || word[i] >= 0xF0)
        return 0;
    *width = word[i] < 0xE0 ? 2 : 3;
    if (i + *width > len || (i + *width == len && bpe->suffix != NULL))
        return 0;
    uint32_t c;
    qr_unicode_next(word + i, &c);
    uint32_t token = bpe->characters[c];
    if ((token & AFTER_PLAIN) && i > 0 && word[i - 1] < 0x80)
        return 0;
    return token & ~AFTER_PLAIN;
}

/* Symbols of a word of bytes. A byte that the vocabulary lacks becomes the unknown token, or nothing. */
static size_t byte_symbols(const qr_bpe *bpe, const uint8_t *word, size_t len, uint32_t *out)
{
    size_t count = 0, width;
    bool unknown = false;
    for (size_t i = 0; i < len; i++) {
        uint32_t whole =
            word[i] >= 0x80 && bpe->characters != NULL ? sure_character(bpe, word, len, i, &width) : 0;
        if (whole != 0) {
            out[count++] = whole - 1;
            unknown = false;
            i += width - 1;
            continue;
        }
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
        return qr_fail(err, QR_UNSUPPORTED, "%s: model: continuing_subword_prefix with ByteLevel",
                       tokenizer->name);
    return QR_OK;
}

/* Least rank of a merge that could take a symbol at the edge of a character away: as_left with the symbol on the
 * left of something that begins a character, as_right with it on the right of something that ends one, after_ascii
 * of something that ends in ASCII (a space, mostly). */
typedef struct outer_ranks {
    uint32_t *as_left, *as_right, *after_ascii;
} outer_ranks;

/* What [first, second] merges to before anything outside can take part, else NO_RANK; *plain: only if no ASCII
 * stands before it. */
static uint32_t sure_merge(const qr_bpe *bpe, const outer_ranks *outer, uint32_t rank, uint32_t first,
                           uint32_t last, bool *plain)
{
    if (rank == NO_RANK || rank >= outer->as_right[first] || rank >= outer->as_left[last])
        return NO_RANK;
    *plain = *plain || rank >= outer->after_ascii[first];
    return (uint32_t)bpe->rank_ids.data[rank];
}

/* The token that these bytes become whatever stands around them, as qr_bpe.characters holds it; 0: not sure. */
static uint32_t sure_token(const qr_bpe *bpe, const outer_ranks *outer, const uint8_t *text, size_t len)
{
    uint32_t ids[3] = {0};
    bool plain = false;
    for (size_t i = 0; i < len; i++) {
        if (bpe->bytes[text[i]] < 0)
            return 0;
        ids[i] = (uint32_t)bpe->bytes[text[i]];
    }
    if (len == 3) {
        uint32_t front = pair_rank(bpe, ids[0], ids[1]), back = pair_rank(bpe, ids[1], ids[2]);
        uint32_t merged = sure_merge(bpe, outer, QR_MIN(front, back), ids[0], ids[2], &plain);
        if (merged == NO_RANK)
            return 0;
        ids[0] = front < back ? merged : ids[0];
        ids[1] = front < back ? ids[2] : merged;
    }
    uint32_t token = sure_merge(bpe, outer, pair_rank(bpe, ids[0], ids[1]), ids[0], ids[1], &plain);
    return token == NO_RANK ? 0 : (token + 1) | (plain ? AFTER_PLAIN : 0);
}

static bool begins_character(qr_str text) { return text.len > 0 && ((uint8_t)text.data[0] & 0xC0) != 0x80; }

static bool ends_character(qr_str text)
{
    size_t tail = 0; /* continuation bytes at the end */
    while (tail < text.len && ((uint8_t)text.data[text.len - 1 - tail] & 0xC0) == 0x80)
        tail++;
    if (tail == text.len)
        return tail > 0 && tail < 4; /* the rest of a character that began before */
    uint8_t lead = (uint8_t)text.data[text.len - 1 - tail];
    return tail == (lead < 0x80 ? 0u : lead < 0xE0 ? 1u : lead < 0xF0 ? 2u : 3u);
}

/* Characters of two and three bytes whose token is sure: they enter the merging as one symbol. */
static void find_characters(qr_tokenizer *tokenizer)
{
    qr_bpe *bpe = &tokenizer->bpe;
    size_t ids = tokenizer->flags.count;
    uint32_t *memory = qr_alloc((ids * 3 + 1) * sizeof(uint32_t));
    outer_ranks outer = {memory, memory + ids, memory + ids * 2};
    memset(memory, 0xFF, ids * 3 * sizeof(uint32_t));
    for (size_t i = 0; i <= bpe->pair_mask; i++) {
        uint64_t pair = bpe->pairs[i];
        if (pair == NO_PAIR)
            continue;
        uint32_t left = pair & (QR_BPE_ID_MAX - 1), right = pair >> QR_PAIR_ID_BITS & (QR_BPE_ID_MAX - 1);
        uint32_t rank = (uint32_t)(pair >> 2 * QR_PAIR_ID_BITS);
        qr_str before = qr_token_table_text(&tokenizer->raw, (int32_t)left);
        if (begins_character(qr_token_table_text(&tokenizer->raw, (int32_t)right)))
            outer.as_left[left] = QR_MIN(outer.as_left[left], rank);
        if (before.len > 0 && (uint8_t)before.data[before.len - 1] < 0x80)
            outer.after_ascii[right] = QR_MIN(outer.after_ascii[right], rank);
        else if (ends_character(before))
            outer.as_right[right] = QR_MIN(outer.as_right[right], rank);
    }
    bpe->characters = qr_calloc(CHARACTERS, sizeof(*bpe->characters));
    for (uint32_t c = 0x80; c < CHARACTERS; c++) {
        char text[4];
        if (c >= 0xD800 && c < 0xE000)
            continue;
        size_t len = qr_utf8_encode(c, text);
        bpe->characters[c] = sure_token(bpe, &outer, (const uint8_t *)text, len);
    }
    qr_free(memory);
}

qr_status qr_bpe_finish(qr_tokenizer *tokenizer, qr_error *err)
{
    qr_status status = find_byte_tokens(tokenizer, err);
    if (status == QR_OK && tokenizer->byte_mode)
        find_characters(tokenizer);
    return status;
}
