#include "kv/prefix_key.h"

#include "base/hash.h"

static void put_u64(uint8_t out[8], uint64_t value)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

void qr_prefix_key_root(qr_prefix_key *root, uint64_t seed)
{
    uint8_t bytes[8];
    put_u64(bytes, seed);
    qr_sha256 sha;
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, "quire prefix root", 17);
    qr_sha256_update(&sha, bytes, sizeof(bytes));
    qr_sha256_final(&sha, root->bytes);
}

static void update_ids(qr_sha256 *sha, const int32_t *ids, size_t count)
{
    uint8_t bytes[256];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t id = (uint32_t)ids[i];
        for (int b = 0; b < 4; b++)
            bytes[used++] = (uint8_t)(id >> (8 * b));
        if (used == sizeof(bytes)) {
            qr_sha256_update(sha, bytes, used);
            used = 0;
        }
    }
    qr_sha256_update(sha, bytes, used);
}

void qr_prefix_key_next(qr_prefix_key *key, const qr_prefix_key *parent, const int32_t *ids, size_t count,
                        const void *extra, size_t extra_bytes)
{
    uint8_t length[8];
    qr_sha256 sha;
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, parent->bytes, sizeof(parent->bytes));
    put_u64(length, extra_bytes);
    qr_sha256_update(&sha, length, sizeof(length));
    if (extra_bytes > 0)
        qr_sha256_update(&sha, extra, extra_bytes);
    put_u64(length, count);
    qr_sha256_update(&sha, length, sizeof(length));
    update_ids(&sha, ids, count);
    qr_sha256_final(&sha, key->bytes);
}

void qr_prefix_keys_extend(qr_prefix_key *keys, int32_t from, int32_t to, const qr_prefix_key *root,
                           const int32_t *ids, int32_t block_size, const void *extra, size_t extra_bytes)
{
    for (int32_t i = from; i < to; i++) {
        const qr_prefix_key *parent = i == 0 ? root : &keys[i - 1];
        qr_prefix_key_next(&keys[i], parent, ids + (int64_t)i * block_size, (size_t)block_size, extra,
                           i == 0 ? extra_bytes : 0);
    }
}
