/* Words to ids: what the model makes of a word is remembered, so that the second sight of it is one lookup.
 *
 * The table grows with the text up to a bound and then begins anew. Ids that do not fit a slot, and the bytes of
 * words that are longer than a key, stand beside it.
 */
#include "text/tokenizer_impl.h"

enum {
    SLOTS_SMALL = 1 << 12,
    SLOTS_LARGE = 1 << 16, /* one huge page: to touch it costs less than a quarter of it in small ones */
    SLOTS_MAX = 1 << 18,
    TEXT_BYTES_PER_SLOT = 40, /* of the first text: about one new word in so many bytes */
    PROBES = 16,              /* slots that a word may stand in, from its own on */
    SLOT_IDS = 3,
    MANY_IDS =
        255, /* a slot's count: its ids stand in many_ids, from ids[0] on, ids[1] of them; so do those of
                       every long word, whose bytes stand in long_words from ids[2] on */
    MANY_IDS_MAX = 4 << 20,
    LONG_WORDS_MAX = 4 << 20, /* bytes */
    LONG_MAX = 512,           /* longer words are not worth keeping */
    LANE_BYTES_MAX = 96,      /* longer words hardly have few enough symbols */
    WORD_BATCH = 4 * QR_SCANNER_BATCH_MIN
};

static qr_status model_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    switch (tokenizer->model) {
    case QR_MODEL_BPE: return qr_bpe_word(encoder, word, len, ids, err);
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

/* ---- The table ---- */

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
    QR_VEC_RELEASE(&encoder->many_ids);
    qr_buf_release(&encoder->long_words);
}

static size_t more_slots(size_t count) { return QR_MAX(count * 2, (size_t)SLOTS_LARGE); }

void qr_word_cache_open(qr_encoder *encoder, size_t text_len)
{
    size_t count = SLOTS_SMALL;
    while (count < SLOTS_MAX && count < text_len / TEXT_BYTES_PER_SLOT)
        count = more_slots(count);
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

static inline bool is_known(const qr_encoder *encoder, const qr_word_key *key)
{
    return qr_word_slot_is(find_slot(encoder, key), key);
}

static void forget_all(qr_encoder *encoder)
{
    memset(encoder->words, 0, (encoder->word_mask + 1) * sizeof(*encoder->words));
    encoder->word_count = encoder->many_ids.count = 0;
    qr_buf_clear(&encoder->long_words);
}

static void grow(qr_encoder *encoder)
{
    size_t old_count = encoder->word_mask + 1;
    qr_word_slot *old = encoder->words;
    slots_make(encoder, more_slots(old_count));
    for (size_t i = 0; i < old_count; i++) {
        if (old[i].tag == 0)
            continue;
        qr_word_key key = qr_word_key_from(old[i].low, old[i].high, old[i].tag);
        *find_slot(encoder, &key) = old[i];
        encoder->word_count++;
    }
    qr_pages_unmap(old, old_count * sizeof(*old));
}

/* Before one more word. */
static void make_room(qr_encoder *encoder, size_t len, size_t count)
{
    size_t slots = encoder->word_mask + 1;
    bool full = encoder->word_count * 4 >= slots * 3;
    if ((full && slots == SLOTS_MAX) || encoder->many_ids.count + count > MANY_IDS_MAX ||
        encoder->long_words.len + len > LONG_WORDS_MAX)
        forget_all(encoder);
    else if (full)
        grow(encoder);
}

static void keep(qr_encoder *encoder, const uint8_t *word, size_t len, const qr_word_key *key,
                 const int32_t *ids, size_t count)
{
    make_room(encoder, len, count);
    qr_word_slot *slot = find_slot(encoder, key);
    encoder->word_count += slot->tag == 0;
    *slot = (qr_word_slot){.low = key->low, .high = key->high, .tag = key->tag, .count = (uint8_t)count};
    if (count <= SLOT_IDS && key->tag != QR_WORD_LONG) {
        for (size_t i = 0; i < count; i++)
            slot->ids[i] = ids[i];
        return;
    }
    slot->count = MANY_IDS;
    slot->ids[0] = (int32_t)encoder->many_ids.count;
    slot->ids[1] = (int32_t)count;
    append_ids(&encoder->many_ids, ids, count);
    if (key->tag != QR_WORD_LONG)
        return;
    slot->ids[2] = (int32_t)encoder->long_words.len;
    qr_buf_append(&encoder->long_words, word, len);
}

/* ---- Words ---- */

static qr_status encode_word(qr_encoder *encoder, const uint8_t *word, size_t len, const qr_word_key *key,
                             qr_ids *ids, qr_error *err)
{
    const qr_word_slot *slot = find_slot(encoder, key);
    bool known = qr_word_slot_is(slot, key);
    if (known &&
        (key->tag != QR_WORD_LONG || memcmp(encoder->long_words.data + slot->ids[2], word, len) == 0)) {
        if (slot->count != MANY_IDS)
            append_ids(ids, slot->ids, slot->count);
        else if (slot->ids[1] > 0) /* else there may be no list yet */
            append_ids(ids, encoder->many_ids.data + slot->ids[0], (size_t)slot->ids[1]);
        return QR_OK;
    }
    size_t before = ids->count;
    qr_status status = model_word(encoder, word, len, ids, err);
    size_t made = ids->count - before;
    if (status == QR_OK && !known && len <= LONG_MAX)
        keep(encoder, word, len, key, made > 0 ? ids->data + before : NULL, made);
    return status;
}

qr_status qr_encode_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    qr_word_key key = qr_word_key_of(word, len);
    return encode_word(encoder, word, len, &key, ids, err);
}

/* ---- Many words ---- */

/* Words come in batches, and so do the waits for memory: the places of a whole batch in the cache are asked for
 * before the first is looked at; at its first new word all new ones are found and learned side by side. */
typedef struct word_batch {
    const uint8_t *text;
    size_t len, count;
    size_t begins[WORD_BATCH], ends[WORD_BATCH];
    qr_word_key keys[WORD_BATCH];
} word_batch;

static inline void make_keys(const qr_encoder *encoder, word_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const uint8_t *word = batch->text + batch->begins[i];
        size_t len = batch->ends[i] - batch->begins[i];
        batch->keys[i] = len - 1 < QR_WORD_MAX && batch->begins[i] + QR_WORD_MAX <= batch->len
                             ? qr_word_key_wide(word, len)
                             : qr_word_key_of(word, len);
        __builtin_prefetch(&encoder->words[batch->keys[i].hash & encoder->word_mask]);
    }
}

static void learn_lanes(qr_encoder *encoder, const word_batch *batch, const uint8_t *places,
                        qr_bpe_lane *lanes, size_t count)
{
    qr_bpe_lanes_merge(&encoder->tokenizer->bpe, lanes, count);
    for (size_t i = 0; i < count; i++) {
        size_t at = places[i], begin = batch->begins[at];
        keep(encoder, batch->text + begin, batch->ends[at] - begin, &batch->keys[at],
             (const int32_t *)lanes[i].ids, lanes[i].count);
    }
}

static bool can_learn(const qr_tokenizer *tokenizer)
{
    return tokenizer->model == QR_MODEL_BPE && (tokenizer->byte_mode || !tokenizer->bpe.ignore_merges);
}

/* Puts the new words of the batch, from word `first` on, into the cache; not those that are long. */
static __attribute__((noinline)) void learn(qr_encoder *encoder, const word_batch *batch, size_t first)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    uint8_t fresh[WORD_BATCH], places[QR_BPE_LANES];
    qr_bpe_lane lanes[QR_BPE_LANES];
    size_t fresh_count = 0, lane_count = 0;
    for (size_t i = first; i < batch->count; i++) {
        if (is_known(encoder, &batch->keys[i]))
            continue;
        fresh[fresh_count++] = (uint8_t)i;
        if (tokenizer->bpe.ignore_merges)
            qr_token_table_prefetch(&tokenizer->raw, &batch->keys[i]);
    }
    for (size_t i = 0; i < fresh_count; i++) {
        const qr_word_key *key = &batch->keys[fresh[i]];
        size_t begin = batch->begins[fresh[i]], len = batch->ends[fresh[i]] - begin;
        const uint8_t *word = batch->text + begin;
        int32_t whole = tokenizer->bpe.ignore_merges && len <= LONG_MAX
                            ? qr_token_table_find_key(&tokenizer->raw, key, word, len)
                            : -1;
        if (whole >= 0) {
            keep(encoder, word, len, key, &whole, 1);
        } else if (len <= LANE_BYTES_MAX && qr_bpe_lane_begin(encoder, &lanes[lane_count], word, len)) {
            places[lane_count++] = fresh[i];
            if (lane_count < QR_BPE_LANES)
                continue;
            learn_lanes(encoder, batch, places, lanes, lane_count);
            lane_count = 0;
        }
    }
    learn_lanes(encoder, batch, places, lanes, lane_count);
}

/* Appends the ids of known words from word `first` on that have few of them; returns where it stopped. */
static inline size_t append_known(const qr_encoder *encoder, const word_batch *batch, size_t first,
                                  qr_ids *ids)
{
    QR_VEC_RESERVE(ids, ids->count + WORD_BATCH * SLOT_IDS);
    int32_t *out = ids->data + ids->count;
    size_t i = first;
    for (; i < batch->count; i++) {
        const qr_word_slot *slot = find_slot(encoder, &batch->keys[i]);
        if (!qr_word_slot_is(slot, &batch->keys[i]) || slot->count == MANY_IDS)
            break;
        memcpy(out, slot->ids, sizeof(slot->ids));
        out += slot->count;
    }
    ids->count = (size_t)(out - ids->data);
    return i;
}

static qr_status encode_batch(qr_encoder *encoder, word_batch *batch, qr_ids *ids, qr_error *err)
{
    qr_status status = QR_OK;
    bool may_learn = can_learn(encoder->tokenizer);
    make_keys(encoder, batch);
    for (size_t i = 0; (i = append_known(encoder, batch, i, ids)) < batch->count && status == QR_OK; i++) {
        const qr_word_key *key = &batch->keys[i];
        if (may_learn && !is_known(encoder, key)) {
            learn(encoder, batch, i);
            may_learn = false;
        }
        status = encode_word(encoder, batch->text + batch->begins[i], batch->ends[i] - batch->begins[i], key,
                             ids, err);
    }
    return status;
}

qr_status qr_encode_pieces(qr_encoder *encoder, const uint8_t *text, size_t len, const qr_piece *pieces,
                           size_t count, qr_ids *ids, qr_error *err)
{
    word_batch batch;
    batch.text = text;
    batch.len = len;
    qr_status status = QR_OK;
    for (size_t at = 0; at < count && status == QR_OK; at += batch.count) {
        batch.count = QR_MIN(count - at, (size_t)WORD_BATCH);
        for (size_t i = 0; i < batch.count; i++) {
            batch.begins[i] = pieces[at + i].begin;
            batch.ends[i] = pieces[at + i].end;
        }
        status = encode_batch(encoder, &batch, ids, err);
    }
    return status;
}

/* The words of a batch follow one another from `at` on. */
static size_t close_batch(word_batch *batch, size_t at)
{
    for (size_t i = 0; i < batch->count; at = batch->ends[i++])
        batch->begins[i] = at;
    return at;
}

qr_status qr_encode_scanned(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err)
{
    word_batch batch;
    batch.text = text;
    batch.len = len;
    qr_status status = QR_OK;
    for (size_t at = 0; at < len && status == QR_OK;) {
        batch.count =
            qr_scanner_batch(encoder->tokenizer->fast_scanner, text, at, len, batch.ends, WORD_BATCH);
        at = close_batch(&batch, at);
        status = encode_batch(encoder, &batch, ids, err);
    }
    return status;
}

static inline bool is_mark(const uint8_t *text, size_t at, size_t len)
{
    return at + 3 <= len && text[at] == 0xE2 && text[at + 1] == 0x96 && text[at + 2] == 0x81;
}

/* A SentencePiece-style BPE has no pre-tokenizer, but where no token holds the mark "▁" after another character,
 * no merge crosses such a border: cutting there changes nothing and makes words of a cacheable size. */
qr_status qr_encode_marked(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids, qr_error *err)
{
    word_batch batch;
    batch.text = text;
    batch.len = len;
    qr_status status = QR_OK;
    for (size_t at = 0; at < len && status == QR_OK;) {
        size_t begin = at;
        for (batch.count = 0; at < len && batch.count < WORD_BATCH; batch.ends[batch.count++] = at) {
            while (is_mark(text, at, len))
                at += 3;
            while (at < len && !is_mark(text, at, len))
                at++;
        }
        close_batch(&batch, begin);
        status = encode_batch(encoder, &batch, ids, err);
    }
    return status;
}
