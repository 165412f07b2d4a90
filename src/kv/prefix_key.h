/* The key of a full block: SHA-256 over the parent block's key, the block's token ids and extra bytes (the
 * request's cache salt; adapters and media later), never shortened. The chain starts from a root made of the
 * configured seed: engines with equal seeds make equal keys. Thread: any.
 */
#ifndef QR_KV_PREFIX_KEY_H
#define QR_KV_PREFIX_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct qr_prefix_key {
    uint8_t bytes[32];
} qr_prefix_key;

static inline bool qr_prefix_key_equal(const qr_prefix_key *a, const qr_prefix_key *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void qr_prefix_key_root(qr_prefix_key *root, uint64_t seed);
/* Layout hashed: parent (32), extra length (8, little-endian), extra, token count (8), ids (4 each). */
void qr_prefix_key_next(qr_prefix_key *key, const qr_prefix_key *parent, const int32_t *ids, size_t count,
                        const void *extra, size_t extra_bytes);
/* Keys of blocks [from, to) of `ids`; keys[i] is block i's, keys[0..from) are there. The extra bytes enter
 * the first block only: the chain carries them on. */
void qr_prefix_keys_extend(qr_prefix_key *keys, int32_t from, int32_t to, const qr_prefix_key *root,
                           const int32_t *ids, int32_t block_size, const void *extra, size_t extra_bytes);

#endif
