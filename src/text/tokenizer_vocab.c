/* Token strings by id and ids by string; the byte alphabet of byte-level vocabularies. */
#include "text/tokenizer_impl.h"

enum { LOAD_PERCENT = 70 };

/* Pages begin where a cache line does, and large tables get large ones. */
static qr_word_slot *slots_new(size_t capacity) { return qr_pages_zeroed(capacity * sizeof(qr_word_slot)); }

static void slots_free(const qr_token_table *table)
{
    if (table->slots != NULL)
        qr_pages_unmap(table->slots, (table->mask + 1) * sizeof(*table->slots));
}

void qr_token_table_init(qr_token_table *table, size_t expected)
{
    size_t capacity = 128;
    while (capacity * LOAD_PERCENT < expected * 100)
        capacity *= 2;
    table->mask = capacity - 1;
    table->used = 0;
    table->slots = slots_new(capacity);
    qr_buf_reserve(&table->text, expected * 8 + 64);
}

void qr_token_table_release(qr_token_table *table)
{
    qr_buf_release(&table->text);
    QR_VEC_RELEASE(&table->items);
    slots_free(table);
    *table = (qr_token_table){0};
}

static void table_grow(qr_token_table *table)
{
    size_t capacity = (table->mask + 1) * 2;
    qr_word_slot *slots = slots_new(capacity);
    for (size_t i = 0; i <= table->mask; i++) {
        const qr_word_slot *old = &table->slots[i];
        if (old->tag == 0)
            continue;
        size_t at = qr_word_hash(old->low, old->high, old->tag) & (capacity - 1);
        while (slots[at].tag != 0)
            at = (at + 1) & (capacity - 1);
        slots[at] = *old;
    }
    slots_free(table);
    table->slots = slots;
    table->mask = capacity - 1;
}

void qr_token_table_store(qr_token_table *table, int32_t id, qr_str text)
{
    size_t wanted = (size_t)id + 1;
    if (wanted > table->items.count) {
        QR_VEC_RESERVE(&table->items, wanted);
        memset(table->items.data + table->items.count, 0,
               (wanted - table->items.count) * sizeof(*table->items.data));
        table->items.count = wanted;
    }
    table->items.data[id] = (qr_token_text){(uint32_t)table->text.len, (uint32_t)text.len};
    qr_buf_append(&table->text, text.data, text.len);
    qr_buf_append_char(&table->text, '\0');
}

static bool is_long_word(const qr_token_table *table, int32_t id, const void *text, size_t len)
{
    qr_str known = qr_token_table_text(table, id);
    return known.len == len && memcmp(known.data, text, len) == 0;
}

/* The slot of the word, or the empty one where it belongs. */
static inline qr_word_slot *find_slot(const qr_token_table *table, const qr_word_key *key, const void *text,
                                      size_t len)
{
    for (size_t at = key->hash & table->mask;; at = (at + 1) & table->mask) {
        qr_word_slot *slot = &table->slots[at];
        if (slot->tag == 0)
            return slot;
        if (qr_word_slot_is(slot, key) &&
            (key->tag != QR_WORD_LONG || is_long_word(table, slot->ids[0], text, len)))
            return slot;
    }
}

static void insert(qr_token_table *table, int32_t id, const qr_word_key *key)
{
    qr_str text = qr_token_table_text(table, id);
    qr_word_slot *slot = find_slot(table, key, text.data, text.len);
    if (slot->tag != 0)
        return;
    *slot = (qr_word_slot){.low = key->low, .high = key->high, .tag = key->tag, .count = 1, .ids = {id}};
    if (++table->used * 100 > (table->mask + 1) * LOAD_PERCENT)
        table_grow(table);
}

void qr_token_batch_add(qr_token_batch *batch, qr_token_table *table, int32_t id)
{
    if (table->slots == NULL)
        qr_token_table_init(table, 64);
    qr_str text = qr_token_table_text(table, id);
    qr_word_key key = qr_word_key_of(text.data, text.len);
    qr_token_table_prefetch(table, &key);
    batch->keys[batch->count] = key;
    batch->ids[batch->count++] = id;
    if (batch->count == QR_TOKEN_BATCH)
        qr_token_batch_flush(batch, table);
}

void qr_token_batch_flush(qr_token_batch *batch, qr_token_table *table)
{
    for (size_t i = 0; i < batch->count; i++)
        insert(table, batch->ids[i], &batch->keys[i]);
    batch->count = 0;
}

void qr_token_table_set(qr_token_table *table, int32_t id, qr_str text)
{
    qr_token_batch one = {.count = 0};
    qr_token_table_store(table, id, text);
    qr_token_batch_add(&one, table, id);
    qr_token_batch_flush(&one, table);
}

int32_t qr_token_table_find_key(const qr_token_table *table, const qr_word_key *key, const void *text,
                                size_t len)
{
    const qr_word_slot *slot = find_slot(table, key, text, len);
    return slot->tag != 0 ? slot->ids[0] : -1;
}

int32_t qr_token_table_find(const qr_token_table *table, const void *text, size_t len)
{
    if (table->slots == NULL)
        return -1;
    qr_word_key key = qr_word_key_of(text, len);
    return qr_token_table_find_key(table, &key, text, len);
}

/* GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards in order. */
static bool is_printable(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/* Value of alphabet character U+0100 + i. */
static const uint8_t moved_bytes[68] = {
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x10,
    0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x7F,
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90,
    0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xAD};

bool qr_byte_alphabet_decode(qr_str text, qr_buf *out)
{
    const uint8_t *p = (const uint8_t *)text.data;
    qr_buf_reserve(out, text.len + 1);
    uint8_t *to = (uint8_t *)out->data + out->len;
    for (size_t i = 0; i < text.len;) {
        if (p[i] < 0x80) {
            if (!is_printable(p[i]))
                return false;
            *to++ = p[i++];
            continue;
        }
        if (p[i] >= 0xE0 || i + 1 >= text.len)
            return false;
        uint32_t c = (p[i] & 0x1Fu) << 6 | (p[i + 1] & 0x3Fu);
        i += 2;
        if (c >= 0x100 && c < 0x100 + QR_COUNT_OF(moved_bytes))
            *to++ = moved_bytes[c - 0x100];
        else if (c < 0x100 && is_printable(c))
            *to++ = (uint8_t)c;
        else
            return false;
    }
    *to = '\0';
    out->len = (size_t)((char *)to - out->data);
    return true;
}

void qr_byte_alphabet_encode(const uint8_t *bytes, size_t len, qr_buf *out)
{
    for (size_t i = 0; i < len; i++) {
        uint32_t c = bytes[i];
        if (!is_printable(c)) {
            uint32_t index = 0;
            while (moved_bytes[index] != c)
                index++;
            c = 0x100 + index;
        }
        if (c < 0x80) {
            qr_buf_append_char(out, (char)c);
            continue;
        }
        char pair[2] = {(char)(0xC0 | c >> 6), (char)(0x80 | (c & 0x3F))};
        qr_buf_append(out, pair, 2);
    }
}
