/* Words to ids: what the model makes of a word is remembered, so that the second sight of it is one lookup.
 *
 * Words of up to 16 bytes stand in a table of slots that grows with the text up to a bound; longer ones in a second
 * one with their bytes beside it. Both forget rather than grow without end.
 */
#include "base/hash.h"
#include "text/tokenizer_impl.h"

enum {
    SLOTS_MIN = 1 << 12,
    SLOTS_MAX = 1 << 18,
    TEXT_BYTES_PER_SLOT = 32, /* of the first text: about one new word in so many bytes */
    PROBES = 16,              /* slots that a word may stand in, from its own on */
    SLOT_IDS = 3,
    MANY_IDS = 255, /* a slot's count: its ids stand in many_ids, from ids[0] on, ids[1] of them */
    MANY_IDS_MAX = 4 << 20,
    WORD_BATCH = 2 * QR_SCANNER_BATCH_MIN,
    LONG_SLOTS = 1 << 15,
    LONG_MAX = 512,         /* longer words are not worth keeping */
    LONG_KEYS_MAX = 4 << 20 /* bytes of keys; then that cache starts anew */
};

static qr_status model_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    switch (tokenizer->model) {
    case QR_MODEL_BPE:
        if (!tokenizer->byte_mode)
            return qr_bpe_word(encoder, word, len, ids, err);
        if (len >= UINT32_MAX / 2)
            return qr_fail(err, QR_LIMIT_EXCEEDED, "tokenizer: word of %zu bytes: too long", len);
        qr_bpe_word_bytes(encoder, word, len, ids);
        return QR_OK;
    case QR_MODEL_UNIGRAM: return qr_unigram_word(encoder, word, len, ids, err);
    case QR_MODEL_WORDPIECE: qr_wordpiece_word(encoder, word, len, ids); return QR_OK;
    case QR_MODEL_WORDLEVEL: qr_wordlevel_word(encoder, word, len, ids); return QR_OK;
    }
    return QR_OK;
}

static inline void append_ids(qr_ids *ids, const int32_t *from, size_t count)
{
    QR_VEC_RESERVE(ids, ids->count + count);
    if (count > 0)
        memcpy(ids->data + ids->count, from, count * sizeof(*from));
    ids->count += count;
}

/* ---- Long words ---- */

static bool long_find(qr_encoder *encoder, const uint8_t *word, size_t len, uint64_t hash, qr_ids *ids)
{
    if (encoder->longs == NULL) {
        encoder->longs = qr_calloc(LONG_SLOTS, sizeof(*encoder->longs));
        return false;
    }
    const qr_long_slot *slot = &encoder->longs[qr_hash_mix(hash) % LONG_SLOTS];
    if (slot->hash != hash || slot->key_len != len ||
        memcmp(encoder->long_keys.data + slot->key_offset, word, len) != 0)
        return false;
    append_ids(ids, encoder->long_ids.data + slot->ids_offset, slot->ids_count);
    return true;
}

static void long_keep(qr_encoder *encoder, const uint8_t *word, size_t len, uint64_t hash, const int32_t *ids,
                      size_t count)
{
    if (encoder->long_keys.len + len > LONG_KEYS_MAX) {
        memset(encoder->longs, 0, LONG_SLOTS * sizeof(*encoder->longs));
        qr_buf_clear(&encoder->long_keys);
        encoder->long_ids.count = 0;
    }
    encoder->longs[qr_hash_mix(hash) % LONG_SLOTS] =
        (qr_long_slot){hash, (uint32_t)encoder->long_keys.len, (uint32_t)len,
                       (uint32_t)encoder->long_ids.count, (uint32_t)count};
    qr_buf_append(&encoder->long_keys, word, len);
    append_ids(&encoder->long_ids, ids, count);
}

static qr_status long_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    if (len > LONG_MAX)
        return model_word(encoder, word, len, ids, err);
    uint64_t hash = qr_hash64(word, len, 0) | 1; /* an empty slot has hash 0 */
    if (long_find(encoder, word, len, hash, ids))
        return QR_OK;
    size_t before = ids->count;
    qr_status status = model_word(encoder, word, len, ids, err);
    if (status == QR_OK)
        long_keep(encoder, word, len, hash, ids->data + before, ids->count - before);
    return status;
}

/* ---- Short words ---- */

static void slots_make(qr_encoder *encoder, size_t count)
{
    encoder->words = qr_pages_zeroed(count * sizeof(*encoder->words));
    encoder->word_mask = count - 1;
    encoder->word_count = 0;
}

void qr_word_cache_free(qr_encoder *encoder)
{
    if (encoder->words != NULL)
        qr_pages_unmap(encoder->words, (encoder->word_mask + 1) * sizeof(*encoder->words));
    qr_free(encoder->longs);
    QR_VEC_RELEASE(&encoder->long_ids);
    QR_VEC_RELEASE(&encoder->many_ids);
    qr_buf_release(&encoder->long_keys);
}

void qr_word_cache_open(qr_encoder *encoder, size_t text_len)
{
    size_t count = SLOTS_MIN;
    while (count < SLOTS_MAX && count < text_len / TEXT_BYTES_PER_SLOT)
        count *= 2;
    if (encoder->words == NULL)
        slots_make(encoder, count);
}

/* The slot that holds the word, else the empty one where it belongs, else its first. */
static inline qr_word_slot *find_slot(const qr_encoder *encoder, const qr_word_key *key)
{
    for (size_t i = 0; i < PROBES; i++) {
        qr_word_slot *slot = &encoder->words[(key->hash + i) & encoder->word_mask];
        if (qr_word_slot_is(slot, key) || slot->tag == 0)
            return slot;
    }
    return &encoder->words[key->hash & encoder->word_mask];
}

/* Makes room: twice the slots, or at the bound none of the old words. */
static void grow(qr_encoder *encoder)
{
    size_t old_count = encoder->word_mask + 1;
    qr_word_slot *old = encoder->words;
    encoder->words = NULL;
    slots_make(encoder, QR_MIN(old_count * 2, (size_t)SLOTS_MAX));
    for (size_t i = 0; i < old_count && old_count < SLOTS_MAX; i++) {
        if (old[i].tag == 0)
            continue;
        qr_word_key key = qr_word_key_from(old[i].low, old[i].high, old[i].tag);
        *find_slot(encoder, &key) = old[i];
        encoder->word_count++;
    }
    if (encoder->word_count == 0)
        encoder->many_ids.count = 0;
    qr_pages_unmap(old, old_count * sizeof(*old));
}

static void keep(qr_encoder *encoder, const qr_word_key *key, const int32_t *ids, size_t count)
{
    if (encoder->many_ids.count + count > MANY_IDS_MAX) {
        memset(encoder->words, 0, (encoder->word_mask + 1) * sizeof(*encoder->words));
        encoder->word_count = encoder->many_ids.count = 0;
    }
    if (++encoder->word_count * 4 > (encoder->word_mask + 1) * 3)
        grow(encoder);
    qr_word_slot *slot = find_slot(encoder, key);
    *slot = (qr_word_slot){.low = key->low, .high = key->high, .tag = key->tag, .count = (uint8_t)count};
    if (count <= SLOT_IDS) {
        for (size_t i = 0; i < count; i++)
            slot->ids[i] = ids[i];
        return;
    }
    slot->count = MANY_IDS;
    slot->ids[0] = (int32_t)encoder->many_ids.count;
    slot->ids[1] = (int32_t)count;
    append_ids(&encoder->many_ids, ids, count);
}

static qr_status new_word(qr_encoder *encoder, const uint8_t *word, const qr_word_key *key, qr_ids *ids,
                          qr_error *err)
{
    size_t before = ids->count;
    qr_status status = model_word(encoder, word, key->tag - 1u, ids, err);
    if (status == QR_OK)
        keep(encoder, key, ids->data + before, ids->count - before);
    return status;
}

static inline void append_slot(const qr_encoder *encoder, const qr_word_slot *slot, qr_ids *ids)
{
    if (slot->count == MANY_IDS) {
        append_ids(ids, encoder->many_ids.data + slot->ids[0], (size_t)slot->ids[1]);
        return;
    }
    QR_VEC_RESERVE(ids, ids->count + SLOT_IDS);
    memcpy(ids->data + ids->count, slot->ids, sizeof(slot->ids));
    ids->count += slot->count;
}

static qr_status short_word(qr_encoder *encoder, const uint8_t *word, const qr_word_key *key, qr_ids *ids,
                            qr_error *err)
{
    const qr_word_slot *slot = find_slot(encoder, key);
    if (!qr_word_slot_is(slot, key))
        return new_word(encoder, word, key, ids, err);
    append_slot(encoder, slot, ids);
    return QR_OK;
}

qr_status qr_encode_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    if (len > QR_WORD_MAX)
        return long_word(encoder, word, len, ids, err);
    qr_word_key key = qr_word_key_of(word, len);
    return short_word(encoder, word, &key, ids, err);
}

/* ---- The words of a scanner ---- */

/* Words come in batches, and so do the waits for memory: the places of a whole batch in the cache are asked for
 * before the first is looked at; at its first new word all new ones are found and learned side by side. */
typedef struct word_batch {
    const uint8_t *text;
    size_t begin, count;
    size_t ends[WORD_BATCH];
    qr_word_key keys[WORD_BATCH];
} word_batch;

static void read_batch(const qr_encoder *encoder, const uint8_t *text, size_t begin, size_t len,
                       word_batch *batch)
{
    batch->text = text;
    batch->begin = begin;
    batch->count =
        qr_scanner_batch(encoder->tokenizer->fast_scanner, text, begin, len, batch->ends, WORD_BATCH);
    for (size_t i = 0; i < batch->count; begin = batch->ends[i++]) {
        size_t word_len = batch->ends[i] - begin;
        if (word_len > QR_WORD_MAX) {
            batch->keys[i] = (qr_word_key){.tag = QR_WORD_LONG};
            continue;
        }
        batch->keys[i] = begin + QR_WORD_MAX <= len ? qr_word_key_wide(text + begin, word_len)
                                                    : qr_word_key_of(text + begin, word_len);
        __builtin_prefetch(&encoder->words[batch->keys[i].hash & encoder->word_mask]);
    }
}

static void learn_lanes(qr_encoder *encoder, const word_batch *batch, const uint8_t *places,
                        qr_bpe_lane *lanes, size_t count)
{
    qr_bpe_lanes_merge(&encoder->tokenizer->bpe, lanes, count);
    for (size_t i = 0; i < count; i++)
        keep(encoder, &batch->keys[places[i]], (const int32_t *)lanes[i].ids, lanes[i].count);
}

/* Puts the new short words of the batch, from word `first` on, into the cache. */
static __attribute__((noinline)) void learn(qr_encoder *encoder, const word_batch *batch, size_t first)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    uint8_t fresh[WORD_BATCH], places[QR_BPE_LANES];
    qr_bpe_lane lanes[QR_BPE_LANES];
    size_t fresh_count = 0, lane_count = 0;
    for (size_t i = first; i < batch->count; i++) {
        const qr_word_key *key = &batch->keys[i];
        if (key->tag == QR_WORD_LONG || qr_word_slot_is(find_slot(encoder, key), key))
            continue;
        fresh[fresh_count++] = (uint8_t)i;
        if (tokenizer->bpe.ignore_merges)
            qr_token_table_prefetch(&tokenizer->raw, key);
    }
    for (size_t i = 0; i < fresh_count; i++) {
        size_t at = fresh[i], len = batch->keys[at].tag - 1u;
        const uint8_t *word = batch->text + batch->ends[at] - len;
        int32_t whole = tokenizer->bpe.ignore_merges
                            ? qr_token_table_find_key(&tokenizer->raw, &batch->keys[at], word, len)
                            : -1;
        if (whole >= 0) {
            keep(encoder, &batch->keys[at], &whole, 1);
            continue;
        }
        qr_bpe_lane_begin(&tokenizer->bpe, &lanes[lane_count], word, len);
        places[lane_count++] = (uint8_t)at;
        if (lane_count == QR_BPE_LANES) {
            learn_lanes(encoder, batch, places, lanes, lane_count);
            lane_count = 0;
        }
    }
    learn_lanes(encoder, batch, places, lanes, lane_count);
}

qr_status qr_encode_scanned(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err)
{
    word_batch batch;
    qr_status status = QR_OK;
    for (size_t at = 0; at < len && status == QR_OK;) {
        bool learned = false;
        read_batch(encoder, text, at, len, &batch);
        for (size_t i = 0; i < batch.count && status == QR_OK; at = batch.ends[i++]) {
            const qr_word_key *key = &batch.keys[i];
            const qr_word_slot *slot = find_slot(encoder, key);
            if (qr_word_slot_is(slot, key)) {
                append_slot(encoder, slot, ids);
                continue;
            }
            if (key->tag == QR_WORD_LONG) {
                status = long_word(encoder, text + at, batch.ends[i] - at, ids, err);
                continue;
            }
            if (!learned)
                learn(encoder, &batch, i);
            learned = true;
            status = short_word(encoder, text + at, key, ids, err);
        }
    }
    return status;
}

/* A SentencePiece-style BPE has no pre-tokenizer, but where no token holds the mark "▁" after another character,
 * no merge crosses such a border: cutting there changes nothing and makes words of a cacheable size. */
qr_status qr_encode_marked(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err)
{
    size_t begin = 0;
    qr_status status = QR_OK;
    while (begin < len && status == QR_OK) {
        size_t end = begin;
        while (end + 2 < len && memcmp(text + end, "\xE2\x96\x81", 3) == 0)
            end += 3;
        const uint8_t *mark = NULL;
        if (end < len)
            mark = memmem(text + end, len - end, "\xE2\x96\x81", 3);
        end = mark != NULL ? (size_t)(mark - text) : len;
        status = qr_encode_word(encoder, text + begin, end - begin, ids, err);
        begin = end;
    }
    return status;
}
