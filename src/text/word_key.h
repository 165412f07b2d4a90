/* Words as keys of hash tables, and the slots of those tables.
 *
 * A word of up to 16 bytes is two numbers that, with its length, say exactly which word it is: a slot holds them
 * itself, so that a lookup touches one cache line. The vocabulary and the word cache of an encoder share this form,
 * and one key finds a word in both. Thread: any.
 */
#ifndef QR_TEXT_WORD_KEY_H
#define QR_TEXT_WORD_KEY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/hash.h"

enum { QR_WORD_MAX = 16, QR_WORD_LONG = QR_WORD_MAX + 2 };

typedef struct qr_word_key {
    uint64_t low, high; /* the bytes, zeros behind them; of a long word its hash and its length */
    uint64_t hash;
    uint8_t tag; /* length + 1, or QR_WORD_LONG: then low and high do not prove that a word is the same */
} qr_word_key;

typedef struct qr_word_slot {
    uint64_t low, high;
    uint8_t tag, count; /* tag 0: an empty slot */
    uint16_t unused;
    int32_t ids[3];
} qr_word_slot;
_Static_assert(sizeof(qr_word_slot) == 32, "two of them fill a cache line");

static inline uint64_t qr_word_hash(uint64_t low, uint64_t high, uint8_t tag)
{
    unsigned __int128 product = (unsigned __int128)(low ^ UINT64_C(0x9E3779B97F4A7C15)) *
                                (high ^ UINT64_C(0xE7037ED1A0B428DB) ^ (uint64_t)tag << 56);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline qr_word_key qr_word_key_from(uint64_t low, uint64_t high, uint8_t tag)
{
    return (qr_word_key){low, high, qr_word_hash(low, high, tag), tag};
}

static inline uint64_t qr_load64(const void *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof(value));
    return value;
}

/* len 1 to 16; all 16 bytes at word can be read. */
static inline qr_word_key qr_word_key_wide(const uint8_t *word, size_t len)
{
    size_t low_bits = len < 8 ? len * 8 : 64, high_bits = len * 8 - low_bits;
    uint64_t low = qr_load64(word) & (UINT64_MAX >> (64 - low_bits));
    uint64_t high = high_bits == 0 ? 0 : qr_load64(word + 8) & (UINT64_MAX >> (64 - high_bits));
    return qr_word_key_from(low, high, (uint8_t)(len + 1));
}

/* Any length; reads no other bytes. */
static inline qr_word_key qr_word_key_of(const void *text, size_t len)
{
    const uint8_t *word = text;
    uint64_t low = 0, high = 0;
    if (len > QR_WORD_MAX)
        return qr_word_key_from(qr_hash64(word, len, 0), len, QR_WORD_LONG);
    if (len >= 8) {
        low = qr_load64(word);
        high = len == 8 ? 0 : qr_load64(word + len - 8) >> (QR_WORD_MAX - len) * 8;
    } else if (len >= 4) {
        uint32_t front, back;
        memcpy(&front, word, sizeof(front));
        memcpy(&back, word + len - 4, sizeof(back));
        low = front | (uint64_t)back << (len - 4) * 8;
    } else if (len > 0) {
        low = word[0] | (uint64_t)word[len / 2] << len / 2 * 8 | (uint64_t)word[len - 1] << (len - 1) * 8;
    }
    return qr_word_key_from(low, high, (uint8_t)(len + 1));
}

static inline int qr_word_slot_is(const qr_word_slot *slot, const qr_word_key *key)
{
    return ((slot->low ^ key->low) | (slot->high ^ key->high) | (uint64_t)(slot->tag ^ key->tag)) == 0;
}

#endif
