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
#define NO_MERGE    UINT64_MAX
#define AFTER_PLAIN 0x80000000u /* in qr_bpe.characters: only where no ASCII character stands before */

static inline uint64_t pair_key(uint32_t left, uint32_t right) { return left | (uint64_t)right << 32; }

static inline uint64_t key_hash(uint64_t key)
{
    key *= UINT64_C(0x9E3779B97F4A7C15);
    return key ^ key >> 32;
}

static inline size_t filter_bit(const qr_bpe *bpe, uint64_t hash) { return (hash >> 24) & bpe->filter_mask; }

void qr_bpe_init(qr_bpe *bpe, size_t merges)
{
    size_t capacity = 256, bits = 1 << 15;
    while (capacity * 2 < merges * 3)
        capacity *= 2;
    while (bits < merges * 8)
        bits *= 2;
    *bpe = (qr_bpe){.pair_mask = capacity - 1, .unk = -1};
    bpe->pairs = qr_pages_zeroed(capacity * sizeof(*bpe->pairs));
    bpe->pair_filter = qr_pages_zeroed(bits / 8);
    bpe->filter_mask = bits - 1;
    for (int i = 0; i < 256; i++)
        bpe->bytes[i] = bpe->last_bytes[i] = -1;
}

void qr_bpe_release(qr_bpe *bpe)
{
    if (bpe->pairs != NULL) {
        qr_pages_unmap(bpe->pairs, (bpe->pair_mask + 1) * sizeof(*bpe->pairs));
        qr_pages_unmap(bpe->pair_filter, (bpe->filter_mask + 1) / 8);
    }
    qr_free(bpe->characters);
    qr_free(bpe->byte_merges);
    *bpe = (qr_bpe){0};
}

static void pairs_grow(qr_bpe *bpe)
{
    size_t old_capacity = bpe->pair_mask + 1, mask = old_capacity * 2 - 1;
    qr_pair_slot *slots = qr_pages_zeroed((mask + 1) * sizeof(*slots));
    for (size_t i = 0; i < old_capacity; i++) {
        if (bpe->pairs[i].merge == 0)
            continue;
        size_t at = key_hash(bpe->pairs[i].key) & mask;
        while (slots[at].merge != 0)
            at = (at + 1) & mask;
        slots[at] = bpe->pairs[i];
    }
    qr_pages_unmap(bpe->pairs, old_capacity * sizeof(*slots));
    bpe->pairs = slots;
    bpe->pair_mask = mask;
}

void qr_bpe_prefetch(const qr_bpe *bpe, uint32_t left, uint32_t right)
{
    __builtin_prefetch(&bpe->pairs[key_hash(pair_key(left, right)) & bpe->pair_mask], 1);
}

void qr_bpe_add(qr_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t key = pair_key(left, right), hash = key_hash(key);
    size_t at = hash & bpe->pair_mask;
    while (bpe->pairs[at].merge != 0 && bpe->pairs[at].key != key)
        at = (at + 1) & bpe->pair_mask;
    bool fresh = bpe->pairs[at].merge == 0;
    /* Of a merge given twice the later counts. */
    bpe->pairs[at] = (qr_pair_slot){key, (uint64_t)(rank + 1) << 32 | id};
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

/* The two halves of a lookup: could there be such a pair, and what it merges to, or NO_MERGE. */
static inline bool may_merge(const qr_bpe *bpe, uint64_t hash)
{
    size_t bit = filter_bit(bpe, hash);
    return bpe->pair_filter[bit / 64] >> bit % 64 & 1;
}

static inline uint64_t find_merge(const qr_bpe *bpe, uint64_t key, uint64_t hash)
{
    for (size_t at = hash & bpe->pair_mask;; at = (at + 1) & bpe->pair_mask) {
        const qr_pair_slot *slot = &bpe->pairs[at];
        if (slot->merge == 0)
            return NO_MERGE;
        if (slot->key == key)
            return slot->merge;
    }
}

static inline uint64_t pair_merge(const qr_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t key = pair_key(left, right), hash = key_hash(key);
    return may_merge(bpe, hash) ? find_merge(bpe, key, hash) : NO_MERGE;
}

/* Merges count (<= LINEAR_MAX) symbols in place; returns how many are left. merges: of each with the next. */
static size_t merge_linear(const qr_bpe *bpe, uint32_t *ids, uint64_t *merges, size_t count)
{
    while (count > 1) {
        uint64_t least = NO_MERGE;
        size_t best = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            best = merges[i] < least ? i : best;
            least = merges[i] < least ? merges[i] : least;
        }
        if (least == NO_MERGE)
            break;
        ids[best] = (uint32_t)least;
        count--;
        for (size_t i = best + 1; i < count; i++)
            ids[i] = ids[i + 1];
        for (size_t i = best + 1; i + 1 < count; i++)
            merges[i] = merges[i + 1];
        if (best + 1 < count)
            merges[best] = pair_merge(bpe, ids[best], ids[best + 1]);
        if (best > 0)
            merges[best - 1] = pair_merge(bpe, ids[best - 1], ids[best]);
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
    uint64_t merge = pair_merge(bpe, scratch->ids.data[at], scratch->ids.data[next]);
    scratch->merges.data[at] = merge;
    if (merge != NO_MERGE)
        heap_push(scratch, merge >> 32 << 32 | at);
}

static void heap_fill(const qr_bpe *bpe, qr_bpe_scratch *scratch, size_t count)
{
    QR_VEC_RESERVE(&scratch->next, count);
    QR_VEC_RESERVE(&scratch->previous, count);
    QR_VEC_RESERVE(&scratch->merges, count);
    scratch->heap.count = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t merge =
            i + 1 < count ? pair_merge(bpe, scratch->ids.data[i], scratch->ids.data[i + 1]) : NO_MERGE;
        scratch->next.data[i] = i + 1 < count ? (uint32_t)i + 1 : UINT32_MAX;
        scratch->previous.data[i] = (uint32_t)i - 1;
        scratch->merges.data[i] = merge;
        if (merge != NO_MERGE)
            QR_VEC_PUSH(&scratch->heap, merge >> 32 << 32 | i);
    }
    for (size_t i = scratch->heap.count / 2; i-- > 0;)
        heap_down(scratch->heap.data, scratch->heap.count, i);
}

/* Merges scratch->ids of `count` symbols; the result is at the front. */
static size_t merge_heap(const qr_bpe *bpe, qr_bpe_scratch *scratch, size_t count)
{
    heap_fill(bpe, scratch, count);
    uint32_t *ids = scratch->ids.data, *next = scratch->next.data, *previous = scratch->previous.data;
    uint64_t *merges = scratch->merges.data;
    while (scratch->heap.count > 0) {
        uint64_t top = scratch->heap.data[0];
        scratch->heap.data[0] = scratch->heap.data[--scratch->heap.count];
        if (scratch->heap.count > 0)
            heap_down(scratch->heap.data, scratch->heap.count, 0);
        uint32_t at = (uint32_t)top;
        if (merges[at] >> 32 != top >> 32)
            continue; /* merged away or changed since */
        uint32_t gone = next[at], after = next[gone];
        ids[at] = (uint32_t)merges[at];
        next[at] = after;
        merges[gone] = merges[at] = NO_MERGE;
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

static void append_symbols(qr_ids *ids, const uint32_t *symbols, size_t count)
{
    QR_VEC_RESERVE(ids, ids->count + count);
    for (size_t i = 0; i < count; i++)
        ids->data[ids->count++] = (int32_t)symbols[i];
}

static void append_merged(qr_encoder *encoder, size_t count, qr_ids *ids)
{
    const qr_bpe *bpe = &encoder->tokenizer->bpe;
    uint32_t *symbols = encoder->bpe.ids.data;
    if (count > LINEAR_MAX) {
        count = merge_heap(bpe, &encoder->bpe, count);
    } else {
        uint64_t merges[LINEAR_MAX];
        for (size_t i = 0; i + 1 < count; i++)
            merges[i] = pair_merge(bpe, symbols[i], symbols[i + 1]);
        count = merge_linear(bpe, symbols, merges, count);
    }
    append_symbols(ids, symbols, count);
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

/* ---- One word ---- */

/* A character gives at most one symbol a byte, and those of a prefix and a suffix. */
static size_t symbols_max(const qr_bpe *bpe, size_t len)
{
    return len + (bpe->prefix != NULL ? strlen(bpe->prefix) * len : 0) +
           (bpe->suffix != NULL ? strlen(bpe->suffix) : 0) + 1;
}

/* Into encoder->bpe.ids. */
static size_t word_symbols(qr_encoder *encoder, const uint8_t *word, size_t len)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    QR_VEC_RESERVE(&encoder->bpe.ids, symbols_max(&tokenizer->bpe, len));
    return tokenizer->byte_mode ? byte_symbols(&tokenizer->bpe, word, len, encoder->bpe.ids.data)
                                : char_symbols(encoder, word, len);
}

qr_status qr_bpe_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (tokenizer->bpe.ignore_merges) {
        int32_t whole = part_id(tokenizer, tokenizer->byte_mode ? &tokenizer->raw : &tokenizer->spelled,
                                (const char *)word, len);
        if (whole >= 0) {
            QR_VEC_PUSH(ids, whole);
            return QR_OK;
        }
    }
    if (symbols_max(&tokenizer->bpe, len) > UINT32_MAX / 2)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "tokenizer: word of %zu bytes: too long", len);
    append_merged(encoder, word_symbols(encoder, word, len), ids);
    return QR_OK;
}

/* ---- Many short words side by side: while the memory of one lookup is on its way, those of other words are ---- */

/* Wants the merge of the symbols at two places; the slot of one that cannot be stands for all of those. */
static inline void ask(const qr_bpe *bpe, qr_bpe_lane *lane, unsigned at, unsigned next)
{
    uint64_t hash = key_hash(pair_key(lane->ids[at], lane->ids[next]));
    bool may = may_merge(bpe, hash);
    __builtin_prefetch(&bpe->pairs[hash & bpe->pair_mask & -(size_t)may]);
    lane->merges[at] = NO_MERGE;
    lane->asked |= (uint64_t)may << at;
}

static inline unsigned next_place(uint64_t alive, unsigned at)
{
    return (unsigned)__builtin_ctzll((alive & -(UINT64_C(2) << at)) | UINT64_C(1) << QR_BPE_LANE_SYMBOLS);
}

static inline void answer(const qr_bpe *bpe, qr_bpe_lane *lane)
{
    for (; lane->asked != 0; lane->asked &= lane->asked - 1) {
        unsigned at = (unsigned)__builtin_ctzll(lane->asked);
        uint64_t key = pair_key(lane->ids[at], lane->ids[next_place(lane->alive, at)]);
        lane->merges[at] = find_merge(bpe, key, key_hash(key)) | at << QR_BPE_ID_BITS;
    }
}

/* The first merge of the lowest rank. */
static inline uint64_t least_merge(const qr_bpe_lane *lane)
{
    uint64_t least[4] = {NO_MERGE, NO_MERGE, NO_MERGE, NO_MERGE};
    for (unsigned i = 0; i < lane->places; i += 4)
        for (unsigned k = 0; k < 4; k++)
            least[k] = QR_MIN(least[k], lane->merges[i + k]);
    return QR_MIN(QR_MIN(least[0], least[1]), QR_MIN(least[2], least[3]));
}

/* One merge and the questions that follow from it; false when there is none. */
static inline bool advance(const qr_bpe *bpe, qr_bpe_lane *lane)
{
    uint64_t merge = least_merge(lane);
    if (merge == NO_MERGE)
        return false;
    unsigned at = (unsigned)(merge >> QR_BPE_ID_BITS) % QR_BPE_LANE_SYMBOLS,
             gone = next_place(lane->alive, at);
    uint64_t before = lane->alive & ((UINT64_C(1) << at) - 1);
    lane->ids[at] = (uint32_t)merge & (QR_BPE_ID_MAX - 1);
    lane->alive &= ~(UINT64_C(1) << gone);
    lane->merges[at] = lane->merges[gone] = NO_MERGE;
    unsigned next = next_place(lane->alive, at);
    if (next < QR_BPE_LANE_SYMBOLS)
        ask(bpe, lane, at, next);
    if (before != 0)
        ask(bpe, lane, 63 - (unsigned)__builtin_clzll(before), at);
    return true;
}

bool qr_bpe_lane_begin(qr_encoder *encoder, qr_bpe_lane *lane, const uint8_t *word, size_t len)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    const qr_bpe *bpe = &tokenizer->bpe;
    unsigned count = (unsigned)word_symbols(encoder, word, len);
    if (count > QR_BPE_LANE_SYMBOLS)
        return false;
    memcpy(lane->ids, encoder->bpe.ids.data, count * sizeof(*lane->ids));
    lane->alive = (UINT64_C(1) << count) - 1;
    lane->asked = 0;
    lane->places = QR_ROUND_UP(count, 4u);
    bool plain =
        tokenizer->byte_mode && count == len && bpe->byte_merges != NULL; /* its symbols are its bytes */
    for (unsigned i = 0; i < lane->places; i++) {
        lane->merges[i] = NO_MERGE;
        if (i + 1 >= count)
            continue;
        if (plain)
            lane->merges[i] = bpe->byte_merges[word[i] << 8 | word[i + 1]] | i << QR_BPE_ID_BITS;
        else
            ask(bpe, lane, i, i + 1);
    }
    return true;
}

static void close_lane(qr_bpe_lane *lane)
{
    lane->count = 0;
    for (uint64_t alive = lane->alive; alive != 0; alive &= alive - 1)
        lane->ids[lane->count++] = lane->ids[__builtin_ctzll(alive)];
}

void qr_bpe_lanes_merge(const qr_bpe *bpe, qr_bpe_lane *lanes, size_t count)
{
    uint8_t open[QR_BPE_LANES];
    for (size_t i = 0; i < count; i++)
        open[i] = (uint8_t)i;
    while (count > 0) {
        size_t left = 0;
        for (size_t i = 0; i < count; i++) {
            qr_bpe_lane *lane = &lanes[open[i]];
            answer(bpe, lane);
            open[left] = open[i];
            if (advance(bpe, lane))
                left++;
            else
                close_lane(lane);
        }
        count = left;
    }
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
static uint32_t sure_merge(const outer_ranks *outer, uint64_t merge, uint32_t first, uint32_t last,
                           bool *plain)
{
    uint32_t rank = (uint32_t)(merge >> 32);
    if (rank == NO_RANK || rank >= outer->as_right[first] || rank >= outer->as_left[last])
        return NO_RANK;
    *plain = *plain || rank >= outer->after_ascii[first];
    return (uint32_t)merge;
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
        uint64_t front = bpe->byte_merges[text[0] << 8 | text[1]],
                 back = bpe->byte_merges[text[1] << 8 | text[2]];
        uint32_t merged = sure_merge(outer, QR_MIN(front, back), ids[0], ids[2], &plain);
        if (merged == NO_RANK)
            return 0;
        ids[0] = front < back ? merged : ids[0];
        ids[1] = front < back ? ids[2] : merged;
    }
    uint32_t token = sure_merge(outer, pair_merge(bpe, ids[0], ids[1]), ids[0], ids[1], &plain);
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

static bool is_part_of_character(qr_str text)
{
    return text.len > 0 && text.len < 4 && (uint8_t)text.data[0] >= 0x80;
}

/* Only what can be a part of a character matters here: of the merges most are told apart by a bit each. */
static void find_outer_ranks(const qr_tokenizer *tokenizer, outer_ranks *outer)
{
    const qr_bpe *bpe = &tokenizer->bpe;
    size_t ids = tokenizer->flags.count;
    uint64_t *parts = qr_calloc(ids / 64 + 1, sizeof(*parts));
    for (size_t id = 0; id < ids; id++)
        if (is_part_of_character(qr_token_table_text(&tokenizer->raw, (int32_t)id)))
            parts[id / 64] |= UINT64_C(1) << id % 64;
    for (size_t i = 0; i <= bpe->pair_mask; i++) {
        if (bpe->pairs[i].merge == 0)
            continue;
        uint32_t left = (uint32_t)bpe->pairs[i].key, right = (uint32_t)(bpe->pairs[i].key >> 32);
        uint32_t rank = (uint32_t)(bpe->pairs[i].merge >> 32);
        if ((parts[left / 64] >> left % 64 & 1) &&
            begins_character(qr_token_table_text(&tokenizer->raw, (int32_t)right)))
            outer->as_left[left] = QR_MIN(outer->as_left[left], rank);
        if ((parts[right / 64] >> right % 64 & 1) == 0)
            continue;
        qr_str before = qr_token_table_text(&tokenizer->raw, (int32_t)left);
        if (before.len > 0 && (uint8_t)before.data[before.len - 1] < 0x80)
            outer->after_ascii[right] = QR_MIN(outer->after_ascii[right], rank);
        else if (ends_character(before))
            outer->as_right[right] = QR_MIN(outer->as_right[right], rank);
    }
    qr_free(parts);
}

/* Characters of two and three bytes whose token is sure: they enter the merging as one symbol. */
static void find_characters(qr_tokenizer *tokenizer)
{
    qr_bpe *bpe = &tokenizer->bpe;
    size_t ids = tokenizer->flags.count;
    uint32_t *memory = qr_alloc((ids * 3 + 1) * sizeof(uint32_t));
    outer_ranks outer = {memory, memory + ids, memory + ids * 2};
    memset(memory, 0xFF, ids * 3 * sizeof(uint32_t));
    find_outer_ranks(tokenizer, &outer);
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

/* Only where each byte is a token, wherever it stands. */
static bool find_byte_merges(qr_bpe *bpe)
{
    for (int byte = 0; byte < 256; byte++)
        if (bpe->bytes[byte] < 0 || bpe->suffix != NULL)
            return false;
    bpe->byte_merges = qr_alloc(65536 * sizeof(*bpe->byte_merges));
    for (int left = 0; left < 256; left++)
        for (int right = 0; right < 256; right++)
            bpe->byte_merges[left << 8 | right] =
                pair_merge(bpe, (uint32_t)bpe->bytes[left], (uint32_t)bpe->bytes[right]);
    return true;
}

qr_status qr_bpe_finish(qr_tokenizer *tokenizer, qr_error *err)
{
    qr_status status = find_byte_tokens(tokenizer, err);
    if (status == QR_OK && tokenizer->byte_mode && find_byte_merges(&tokenizer->bpe))
        find_characters(tokenizer);
    return status;
}
