/* Hashes: SHA-256 (FIPS 180-4; block keys, file checks) and a fast 64-bit one for tables in memory
 * (not stable across versions, never written to disk). Thread: any. */
#ifndef QR_BASE_HASH_H
#define QR_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct qr_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} qr_sha256;

/* Uses the SHA extensions where the CPU has them. */
void qr_sha256_init(qr_sha256 *sha);
void qr_sha256_update(qr_sha256 *sha, const void *data, size_t bytes);
void qr_sha256_final(qr_sha256 *sha, uint8_t digest[32]);
void qr_sha256_hex(const uint8_t digest[32], char hex[65]);

uint64_t qr_hash64(const void *data, size_t bytes, uint64_t seed);
static inline uint64_t qr_hash_mix(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    return x ^ (x >> 32);
}

/* Equal without leaking where the first difference is; lengths may differ (then false). */
int qr_equal_constant_time(const void *a, size_t a_len, const void *b, size_t b_len);

#endif
