/* Token strings by id and ids by string; the byte alphabet of byte-level vocabularies. */
#include "base/hash.h"
#include "text/tokenizer_impl.h"

uint32_t qr_token_hash(const void *text, size_t len)
{
    const uint8_t *p = text;
    uint64_t a = 0, b = 0;
    if (len >= 8) {
        memcpy(&a, p, 8);
        memcpy(&b, p + len - 8, 8);
        for (size_t i = 8; i + 8 < len; i += 8) {
            uint64_t c;
            memcpy(&c, p + i, 8);
            a = (a ^ c) * UINT64_C(0x9E3779B97F4A7C15);
            a ^= a >> 29;
        }
    } else if (len >= 4) {
        uint32_t x, y;
        memcpy(&x, p, 4);
        memcpy(&y, p + len - 4, 4);
        a = x;
        b = y;
    } else if (len > 0) {
        a = p[0] | (uint64_t)p[len / 2] << 8 | (uint64_t)p[len - 1] << 16;
    }
    unsigned __int128 product =
        (unsigned __int128)(a ^ UINT64_C(0xA0761D6478BD642F)) * (b ^ UINT64_C(0xE7037ED1A0B428DB) ^ len);
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    return (uint32_t)(folded ^ folded >> 32);
}

void qr_token_table_init(qr_token_table *table, size_t expected)
{
    size_t capacity = 64;
    while (capacity < expected * 2)
        capacity *= 2;
    table->mask = capacity - 1;
    table->used = 0;
    table->slots = qr_calloc(capacity, sizeof(*table->slots));
    qr_buf_reserve(&table->text, expected * 8 + 64);
}

void qr_token_table_release(qr_token_table *table)
{
    qr_buf_release(&table->text);
    QR_VEC_RELEASE(&table->items);
    qr_free(table->slots);
    *table = (qr_token_table){0};
}

static void table_grow(qr_token_table *table)
{
    size_t old_capacity = table->mask + 1, capacity = old_capacity * 2;
    uint64_t *slots = qr_calloc(capacity, sizeof(*slots));
    for (size_t i = 0; i < old_capacity; i++) {
        if (table->slots[i] == 0)
            continue;
        size_t at = table->slots[i] >> 32 & (capacity - 1);
        while (slots[at] != 0)
            at = (at + 1) & (capacity - 1);
        slots[at] = table->slots[i];
    }
    qr_free(table->slots);
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

void qr_token_table_set(qr_token_table *table, int32_t id, qr_str text)
{
    if (table->slots == NULL)
        qr_token_table_init(table, 64);
    uint32_t hash = qr_token_hash(text.data, text.len);
    qr_token_table_store(table, id, text);
    size_t at = hash & table->mask;
    for (; table->slots[at] != 0; at = (at + 1) & table->mask)
        if (table->slots[at] >> 32 == hash &&
            qr_str_equal(qr_token_table_text(table, (int32_t)(uint32_t)table->slots[at] - 1), text))
            return;
    table->slots[at] = (uint64_t)hash << 32 | ((uint32_t)id + 1);
    if (++table->used * 2 > table->mask)
        table_grow(table);
}

/* memcmp without the call for what most tokens are. */
static inline bool same_bytes(const char *a, const char *b, size_t len)
{
    uint64_t x, y;
    uint32_t u, v;
    if (len > 16)
        return memcmp(a, b, len) == 0;
    if (len >= 8) {
        memcpy(&x, a, 8);
        memcpy(&y, b, 8);
        if (x != y)
            return false;
        memcpy(&x, a + len - 8, 8);
        memcpy(&y, b + len - 8, 8);
        return x == y;
    }
    if (len >= 4) {
        memcpy(&u, a, 4);
        memcpy(&v, b, 4);
        if (u != v)
            return false;
        memcpy(&u, a + len - 4, 4);
        memcpy(&v, b + len - 4, 4);
        return u == v;
    }
    return len == 0 || (a[0] == b[0] && a[len / 2] == b[len / 2] && a[len - 1] == b[len - 1]);
}

int32_t qr_token_table_find_hashed(const qr_token_table *table, uint32_t hash, const void *text, size_t len)
{
    for (size_t at = hash & table->mask; table->slots[at] != 0; at = (at + 1) & table->mask) {
        if (table->slots[at] >> 32 != hash)
            continue;
        int32_t id = (int32_t)(uint32_t)table->slots[at] - 1;
        qr_str known = qr_token_table_text(table, id);
        if (known.len == len && same_bytes(known.data, text, len))
            return id;
    }
    return -1;
}

int32_t qr_token_table_find(const qr_token_table *table, const void *text, size_t len)
{
    return table->slots != NULL ? qr_token_table_find_hashed(table, qr_token_hash(text, len), text, len) : -1;
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
