/* Encoding: added tokens, normalizer, pre-tokenizer, model, post-processor, in the reference's order; and the
 * word cache that makes the second sight of a word cheap. */
#include "base/assert.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

enum {
    SHORT_MAX = 16,            /* bytes of a word in the first cache */
    SHORT_SLOTS_MIN = 1 << 12, /* slots of 32 bytes */
    SHORT_SLOTS_MAX = 1 << 18,
    MANY_IDS = 255, /* a slot's count: its ids stand in many_ids, from ids[0] on, ids[1] of them */
    WORD_BATCH = 64,
    LONG_SLOTS = 1 << 15,
    LONG_MAX = 512,         /* longer words are not worth keeping */
    LONG_KEYS_MAX = 4 << 20 /* bytes of keys; then that cache starts anew */
};

qr_encoder *qr_encoder_new(const qr_tokenizer *tokenizer)
{
    qr_encoder *encoder = qr_calloc(1, sizeof(*encoder));
    encoder->tokenizer = tokenizer;
    return encoder;
}

void qr_encoder_free(qr_encoder *encoder)
{
    if (encoder == NULL)
        return;
    qr_buf_release(&encoder->clean);
    qr_buf_release(&encoder->temporary);
    qr_buf_release(&encoder->text[0]);
    for (int i = 0; i < 2; i++) {
        qr_buf_release(&encoder->text[i + 1]);
        qr_buf_release(&encoder->norm[i]);
        qr_buf_release(&encoder->bert[i]);
        QR_VEC_RELEASE(&encoder->pieces[i]);
    }
    QR_VEC_RELEASE(&encoder->ranges);
    QR_VEC_RELEASE(&encoder->bpe.ids);
    QR_VEC_RELEASE(&encoder->bpe.next);
    QR_VEC_RELEASE(&encoder->bpe.previous);
    QR_VEC_RELEASE(&encoder->bpe.heap);
    QR_VEC_RELEASE(&encoder->bpe.ranks);
    QR_VEC_RELEASE(&encoder->scores);
    QR_VEC_RELEASE(&encoder->nodes);
    QR_VEC_RELEASE(&encoder->starts);
    QR_VEC_RELEASE(&encoder->ids);
    QR_VEC_RELEASE(&encoder->second_ids);
    QR_VEC_RELEASE(&encoder->long_ids);
    QR_VEC_RELEASE(&encoder->many_ids);
    qr_buf_release(&encoder->long_keys);
    qr_match_data_free(encoder->match);
    qr_free(encoder->words);
    qr_free(encoder->longs);
    qr_free(encoder);
}

/* ---- Words ---- */

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
    QR_VEC_RESERVE(ids, ids->count + slot->ids_count);
    if (slot->ids_count > 0)
        memcpy(ids->data + ids->count, encoder->long_ids.data + slot->ids_offset,
               slot->ids_count * sizeof(int32_t));
    ids->count += slot->ids_count;
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
    QR_VEC_RESERVE(&encoder->long_ids, encoder->long_ids.count + count);
    if (count > 0)
        memcpy(encoder->long_ids.data + encoder->long_ids.count, ids, count * sizeof(int32_t));
    encoder->long_ids.count += count;
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

typedef struct word_key {
    uint64_t low, high, hash;
    size_t len;
} word_key;

/* A word of 1 to 16 bytes as two numbers that, with its length, say exactly which word it is. */
static inline word_key make_key(const uint8_t *word, size_t len)
{
    word_key key = {.len = len};
    if (len >= 8) {
        memcpy(&key.low, word, 8);
        memcpy(&key.high, word + len - 8, 8);
    } else if (len >= 4) {
        uint32_t a, b;
        memcpy(&a, word, 4);
        memcpy(&b, word + len - 4, 4);
        key.low = a;
        key.high = b;
    } else {
        key.low = word[0] | (uint64_t)word[len / 2] << 8 | (uint64_t)word[len - 1] << 16;
    }
    unsigned __int128 product = (unsigned __int128)(key.low ^ UINT64_C(0x9E3779B97F4A7C15)) *
                                (key.high ^ UINT64_C(0xE7037ED1A0B428DB) ^ len << 56);
    key.hash = (uint64_t)product ^ (uint64_t)(product >> 64);
    return key;
}

/* The slot that holds the word, or the empty one where it belongs. */
static inline qr_word_slot *find_slot(const qr_encoder *encoder, const word_key *key)
{
    for (size_t at = key->hash & encoder->word_mask;; at = (at + 1) & encoder->word_mask) {
        qr_word_slot *slot = &encoder->words[at];
        if ((slot->low == key->low && slot->high == key->high && slot->len == key->len) || slot->len == 0)
            return slot;
    }
}

static uint64_t slot_hash(const qr_word_slot *slot)
{
    unsigned __int128 product = (unsigned __int128)(slot->low ^ UINT64_C(0x9E3779B97F4A7C15)) *
                                (slot->high ^ UINT64_C(0xE7037ED1A0B428DB) ^ (uint64_t)slot->len << 56);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Makes room for one more word: twice the slots, or at the bound none of the old. */
static void grow_words(qr_encoder *encoder)
{
    size_t old_slots = encoder->word_mask + 1;
    if (old_slots == SHORT_SLOTS_MAX) {
        memset(encoder->words, 0, old_slots * sizeof(*encoder->words));
        encoder->word_count = 1; /* the one that is coming */
        encoder->many_ids.count = 0;
        return;
    }
    qr_word_slot *old = encoder->words;
    encoder->words = qr_calloc(old_slots * 2, sizeof(*encoder->words));
    encoder->word_mask = old_slots * 2 - 1;
    for (size_t i = 0; i < old_slots; i++) {
        if (old[i].len == 0)
            continue;
        size_t at = slot_hash(&old[i]) & encoder->word_mask;
        while (encoder->words[at].len != 0)
            at = (at + 1) & encoder->word_mask;
        encoder->words[at] = old[i];
    }
    qr_free(old);
}

static __attribute__((noinline)) qr_status short_miss(qr_encoder *encoder, const uint8_t *word,
                                                      const word_key *key, qr_ids *ids, qr_error *err)
{
    size_t before = ids->count;
    qr_status status = model_word(encoder, word, key->len, ids, err);
    size_t count = ids->count - before;
    if (status != QR_OK)
        return status;
    if (++encoder->word_count * 4 > (encoder->word_mask + 1) * 3)
        grow_words(encoder);
    qr_word_slot *slot = find_slot(encoder, key);
    *slot =
        (qr_word_slot){.low = key->low, .high = key->high, .len = (uint8_t)key->len, .count = (uint8_t)count};
    if (count <= QR_COUNT_OF(slot->ids)) {
        for (size_t i = 0; i < count; i++)
            slot->ids[i] = ids->data[before + i];
        return QR_OK;
    }
    slot->count = MANY_IDS;
    slot->ids[0] = (int32_t)encoder->many_ids.count;
    slot->ids[1] = (int32_t)count;
    QR_VEC_RESERVE(&encoder->many_ids, encoder->many_ids.count + count);
    memcpy(encoder->many_ids.data + encoder->many_ids.count, ids->data + before, count * sizeof(int32_t));
    encoder->many_ids.count += count;
    return QR_OK;
}

static inline qr_status short_word(qr_encoder *encoder, const uint8_t *word, const word_key *key, qr_ids *ids,
                                   qr_error *err)
{
    const qr_word_slot *slot = find_slot(encoder, key);
    if (slot->len == 0)
        return short_miss(encoder, word, key, ids, err);
    if (slot->count == MANY_IDS) {
        QR_VEC_RESERVE(ids, ids->count + (size_t)slot->ids[1]);
        memcpy(ids->data + ids->count, encoder->many_ids.data + slot->ids[0],
               (size_t)slot->ids[1] * sizeof(int32_t));
        ids->count += (size_t)slot->ids[1];
        return QR_OK;
    }
    QR_VEC_RESERVE(ids, ids->count + 3);
    memcpy(ids->data + ids->count, slot->ids, sizeof(slot->ids));
    ids->count += slot->count;
    return QR_OK;
}

static qr_status encode_word(qr_encoder *encoder, const uint8_t *word, size_t len, qr_ids *ids, qr_error *err)
{
    if (len > SHORT_MAX)
        return long_word(encoder, word, len, ids, err);
    word_key key = make_key(word, len);
    return short_word(encoder, word, &key, ids, err);
}

/* ---- Pieces ---- */

/* Words come in batches: the places of a whole batch in the cache are asked for before the first is looked at. */
static qr_status encode_scanned(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids,
                                qr_error *err)
{
    qr_scanner_kind kind = encoder->tokenizer->fast_scanner;
    size_t ends[WORD_BATCH], at = 0;
    word_key keys[WORD_BATCH];
    qr_status status = QR_OK;
    while (at < len && status == QR_OK) {
        size_t count = qr_scanner_batch(kind, text, at, len, ends, WORD_BATCH), begin = at;
        for (size_t i = 0; i < count; begin = ends[i++]) {
            keys[i].len = ends[i] - begin;
            if (keys[i].len > SHORT_MAX)
                continue;
            keys[i] = make_key(text + begin, keys[i].len);
            __builtin_prefetch(&encoder->words[keys[i].hash & encoder->word_mask]);
        }
        for (size_t i = 0; i < count && status == QR_OK; at = ends[i++])
            status = keys[i].len > SHORT_MAX ? long_word(encoder, text + at, keys[i].len, ids, err)
                                             : short_word(encoder, text + at, &keys[i], ids, err);
    }
    return status;
}

/* A SentencePiece-style BPE has no pre-tokenizer, but where no token holds the mark "▁" after another character,
 * no merge crosses such a border: cutting there changes nothing and makes words of a cacheable size. */
static qr_status encode_marked(qr_encoder *encoder, const uint8_t *text, size_t len, qr_ids *ids,
                               qr_error *err)
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
        status = encode_word(encoder, text + begin, end - begin, ids, err);
        begin = end;
    }
    return status;
}

/* One piece of normalized text that holds no added token. */
static qr_status encode_piece(qr_encoder *encoder, qr_str text, bool at_start, bool continues, qr_ids *ids,
                              qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (text.len == 0)
        return QR_OK;
    if (tokenizer->fast_scanner != QR_SCAN_NONE) {
        if (tokenizer->fast_prefix_space && !continues && text.data[0] != ' ') {
            qr_buf_clear(&encoder->text[1]);
            qr_buf_append_char(&encoder->text[1], ' ');
            qr_buf_append_str(&encoder->text[1], text);
            text = qr_buf_str(&encoder->text[1]);
        }
        return encode_scanned(encoder, (const uint8_t *)text.data, text.len, ids, err);
    }
    if (tokenizer->pretokenizers.count == 0) {
        if (tokenizer->model == QR_MODEL_BPE && tokenizer->bpe.cut_at_mark)
            return encode_marked(encoder, (const uint8_t *)text.data, text.len, ids, err);
        return encode_word(encoder, (const uint8_t *)text.data, text.len, ids, err);
    }
    int which = 0, buffer = 1;
    qr_buf_clear(&encoder->text[1]);
    qr_buf_append_str(&encoder->text[1], text);
    qr_piece whole = {0, text.len, at_start, continues};
    encoder->pieces[0].count = 0;
    QR_VEC_PUSH(&encoder->pieces[0], whole);
    qr_status status = qr_pretokenize(encoder, &which, &buffer, err);
    for (size_t i = 0; i < encoder->pieces[which].count && status == QR_OK; i++) {
        qr_piece piece = encoder->pieces[which].data[i];
        const uint8_t *word = (const uint8_t *)encoder->text[buffer].data + piece.begin;
        if (tokenizer->model == QR_MODEL_BPE && tokenizer->bpe.cut_at_mark)
            status = encode_marked(encoder, word, piece.end - piece.begin, ids, err);
        else
            status = encode_word(encoder, word, piece.end - piece.begin, ids, err);
    }
    return status;
}

/* A piece between added tokens of the raw text: normalize, look for added tokens again, encode the rest. */
static qr_status encode_between(qr_encoder *encoder, qr_str text, bool at_start, bool continues,
                                bool parse_special, qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    if (text.len == 0)
        return QR_OK;
    if (tokenizer->normalizers.count > 0) {
        qr_buf_clear(&encoder->text[0]);
        qr_status status = qr_normalize(tokenizer, encoder, text, continues, &encoder->text[0], err);
        if (status != QR_OK)
            return status;
        text = qr_buf_str(&encoder->text[0]);
    }
    size_t search = 0, floor = 0;
    qr_added_match match;
    while (
        qr_added_next(tokenizer, &tokenizer->normalized_set, text, parse_special, &search, floor, &match)) {
        if (match.begin > floor) {
            qr_str piece = qr_str_make(text.data + floor, match.begin - floor);
            qr_status status =
                encode_piece(encoder, piece, at_start && floor == 0, continues && floor == 0, ids, err);
            if (status != QR_OK)
                return status;
        }
        QR_VEC_PUSH(ids, match.id);
        floor = match.end;
    }
    if (floor >= text.len)
        return QR_OK;
    return encode_piece(encoder, qr_str_make(text.data + floor, text.len - floor), at_start && floor == 0,
                        continues && floor == 0, ids, err);
}

/* A stretch without the byte 0xFF. */
static qr_status encode_stretch(qr_encoder *encoder, qr_str text, bool continues, bool parse_special,
                                qr_ids *ids, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    size_t search = 0, floor = 0;
    qr_added_match match;
    while (qr_added_next(tokenizer, &tokenizer->plain_set, text, parse_special, &search, floor, &match)) {
        if (match.begin > floor) {
            qr_str piece = qr_str_make(text.data + floor, match.begin - floor);
            qr_status status = encode_between(encoder, piece, !continues && floor == 0,
                                              continues && floor == 0, parse_special, ids, err);
            if (status != QR_OK)
                return status;
        }
        QR_VEC_PUSH(ids, match.id);
        floor = match.end;
    }
    if (floor >= text.len)
        return QR_OK;
    return encode_between(encoder, qr_str_make(text.data + floor, text.len - floor), !continues && floor == 0,
                          continues && floor == 0, parse_special, ids, err);
}

/* ---- The whole text ---- */

/* Copies text with U+FFFD for what is not UTF-8, the byte 0xFF kept. */
static void clean_text(qr_str text, qr_buf *out)
{
    qr_buf_clear(out);
    while (text.len > 0) {
        size_t valid = qr_utf8_validate(text.data, text.len);
        qr_buf_append(out, text.data, valid);
        text = qr_str_make(text.data + valid, text.len - valid);
        if (text.len == 0)
            break;
        size_t bad = 1;
        if ((uint8_t)text.data[0] == 0xFF) {
            qr_buf_append_char(out, (char)0xFF);
        } else {
            bad = qr_utf8_invalid_length(text.data, text.len);
            qr_buf_append(out, "\xEF\xBF\xBD", 3);
        }
        text = qr_str_make(text.data + bad, text.len - bad);
    }
}

static qr_status encode_sequence(qr_encoder *encoder, qr_str text, bool parse_special, qr_ids *ids,
                                 qr_error *err)
{
    if (encoder->words == NULL) {
        encoder->words = qr_calloc(SHORT_SLOTS_MIN, sizeof(*encoder->words));
        encoder->word_mask = SHORT_SLOTS_MIN - 1;
    }
    QR_VEC_RESERVE(ids, ids->count + text.len / 8 + 1);
    if (text.len > 0 && qr_utf8_validate(text.data, text.len) == text.len)
        return encode_stretch(encoder, text, false, parse_special, ids, err);
    clean_text(text, &encoder->clean);
    text = qr_buf_str(&encoder->clean);
    qr_status status = QR_OK;
    bool continues = false;
    while (text.len > 0 && status == QR_OK) {
        const char *cut = memchr(text.data, 0xFF, text.len);
        size_t len = cut != NULL ? (size_t)(cut - text.data) : text.len;
        status = encode_stretch(encoder, qr_str_make(text.data, len), continues, parse_special, ids, err);
        len += cut != NULL;
        continues = continues || len > 1 || cut == NULL;
        text = qr_str_make(text.data + len, text.len - len);
    }
    return status;
}

static void truncate(const qr_truncation *truncation, size_t room, qr_ids *ids)
{
    if (!truncation->on || ids->count <= room)
        return;
    if (truncation->left)
        memmove(ids->data, ids->data + (ids->count - room), room * sizeof(*ids->data));
    ids->count = room;
}

static void pad(const qr_padding *padding, size_t begin, qr_ids *ids)
{
    size_t count = ids->count - begin, wanted = padding->fixed ? padding->length : count;
    if (!padding->on)
        return;
    if (padding->multiple > 0 && wanted % padding->multiple != 0)
        wanted += padding->multiple - wanted % padding->multiple;
    if (wanted <= count)
        return;
    QR_VEC_RESERVE(ids, begin + wanted);
    if (padding->left)
        memmove(ids->data + begin + (wanted - count), ids->data + begin, count * sizeof(*ids->data));
    for (size_t i = 0; i < wanted - count; i++)
        ids->data[begin + (padding->left ? i : count + i)] = padding->id;
    ids->count = begin + wanted;
}

/* What the template puts around one or two sequences. */
static void assemble(qr_encoder *encoder, const qr_template_items *items, bool pair, qr_ids *ids,
                     qr_ids *types)
{
    static const qr_template_item plain[] = {{QR_ITEM_TEXT, 0}, {QR_ITEM_SECOND, 1}};
    const qr_template_item *list = items->count > 0 ? items->data : plain;
    size_t count = items->count > 0 ? items->count : pair ? 2 : 1;
    for (size_t i = 0; i < count; i++) {
        const qr_ids *part = list[i].id == QR_ITEM_SECOND ? &encoder->second_ids : &encoder->ids;
        const int32_t *data = list[i].id >= 0 ? &list[i].id : part->data;
        size_t part_count = list[i].id >= 0 ? 1 : part->count;
        QR_VEC_RESERVE(ids, ids->count + part_count);
        if (part_count > 0)
            memcpy(ids->data + ids->count, data, part_count * sizeof(*data));
        ids->count += part_count;
        for (size_t k = 0; types != NULL && k < part_count; k++)
            QR_VEC_PUSH(types, list[i].type);
    }
}

/* Of two sequences the longer gives way first, as the reference's LongestFirst. */
static void truncate_pair(const qr_truncation *truncation, size_t room, qr_ids *first, qr_ids *second)
{
    if (!truncation->on || first->count + second->count <= room)
        return;
    bool swap = first->count > second->count;
    size_t less = swap ? second->count : first->count, more = less > room ? less : QR_MAX(less, room - less);
    if (less + more > room) {
        less = room / 2;
        more = less + room % 2;
    }
    truncate(truncation, swap ? more : less, first);
    truncate(truncation, swap ? less : more, second);
}

static size_t added_by(const qr_template_items *items)
{
    size_t added = 0;
    for (size_t i = 0; i < items->count; i++)
        added += items->data[i].id >= 0;
    return added;
}

static qr_encode_options chosen_options(const qr_encode_options *options)
{
    qr_encode_options chosen;
    qr_encode_options_init(&chosen);
    if (options != NULL)
        memcpy(&chosen, options, QR_MIN(options->size, sizeof(chosen)));
    return chosen;
}

static const qr_template_items no_items;

qr_status qr_encoder_encode(qr_encoder *encoder, qr_str text, const qr_encode_options *options, qr_ids *ids,
                            qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    qr_encode_options chosen = chosen_options(options);
    const qr_template_items *items = chosen.add_special_tokens ? &tokenizer->post : &no_items;
    bool direct = items->count == 0 && !chosen.truncate_and_pad;
    encoder->ids.count = 0;
    size_t before = ids->count;
    qr_status status =
        encode_sequence(encoder, text, chosen.parse_special, direct ? ids : &encoder->ids, err);
    if (status != QR_OK)
        ids->count = before;
    if (status != QR_OK || direct)
        return status;
    size_t added = added_by(items), most = tokenizer->truncation.length;
    if (chosen.truncate_and_pad)
        truncate(&tokenizer->truncation, most > added ? most - added : 0, &encoder->ids);
    assemble(encoder, items, false, ids, NULL);
    if (chosen.truncate_and_pad)
        pad(&tokenizer->padding, before, ids);
    return QR_OK;
}

qr_status qr_encoder_encode_pair(qr_encoder *encoder, qr_str text, qr_str second,
                                 const qr_encode_options *options, qr_ids *ids, qr_ids *types, qr_error *err)
{
    const qr_tokenizer *tokenizer = encoder->tokenizer;
    qr_encode_options chosen = chosen_options(options);
    const qr_template_items *items = chosen.add_special_tokens ? &tokenizer->post_pair : &no_items;
    encoder->ids.count = encoder->second_ids.count = 0;
    size_t before = ids->count, types_before = types != NULL ? types->count : 0;
    qr_status status = encode_sequence(encoder, text, chosen.parse_special, &encoder->ids, err);
    if (status == QR_OK)
        status = encode_sequence(encoder, second, chosen.parse_special, &encoder->second_ids, err);
    if (status != QR_OK)
        return status;
    size_t added = added_by(items), most = tokenizer->truncation.length;
    if (chosen.truncate_and_pad)
        truncate_pair(&tokenizer->truncation, most > added ? most - added : 0, &encoder->ids,
                      &encoder->second_ids);
    assemble(encoder, items, true, ids, types);
    if (chosen.truncate_and_pad) {
        pad(&tokenizer->padding, before, ids);
        while (types != NULL && types->count - types_before < ids->count - before)
            QR_VEC_PUSH(types, 0);
    }
    return QR_OK;
}
