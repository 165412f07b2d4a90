#include "base/hash.h"

#include <string.h>

#include "base/cpuid.h"
#include "base/sha256_blocks.h"

/* FIPS 180-4, section 4.2.2. */
const uint32_t qr_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }
static uint32_t load_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static void store_be32(uint8_t *p, uint32_t x)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> (24 - 8 * i));
}

static void block_generic(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] = load_be32(block + 4 * t);
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = s1 + w[t - 7] + s0 + w[t - 16];
    }
    uint32_t v[8]; /* a..h */
    memcpy(v, state, sizeof(v));
    for (int t = 0; t < 64; t++) {
        uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t t1 = v[7] + s1 + choice + qr_sha256_k[t] + w[t];
        uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += t1;
        v[0] = t1 + s0 + majority;
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

void qr_sha256_blocks_generic(uint32_t state[8], const uint8_t *data, size_t count)
{
    for (size_t i = 0; i < count; i++)
        block_generic(state, data + 64 * i);
}

static void blocks(uint32_t state[8], const uint8_t *data, size_t count)
{
#if defined(__x86_64__)
    if (qr_cpu_detect()->sha) {
        qr_sha256_blocks_x86(state, data, count);
        return;
    }
#endif
    qr_sha256_blocks_generic(state, data, count);
}

void qr_sha256_init(qr_sha256 *sha)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(sha->state, start, sizeof(start));
    sha->bytes = 0;
}

void qr_sha256_update(qr_sha256 *sha, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    size_t held = (size_t)(sha->bytes % 64);
    sha->bytes += bytes;
    if (held > 0) {
        size_t part = bytes < 64 - held ? bytes : 64 - held;
        if (part > 0)
            memcpy(sha->block + held, at, part);
        if (held + part < 64)
            return;
        blocks(sha->state, sha->block, 1);
        at += part;
        bytes -= part;
    }
    if (bytes >= 64)
        blocks(sha->state, at, bytes / 64);
    if (bytes % 64 > 0)
        memcpy(sha->block, at + bytes / 64 * 64, bytes % 64);
}

void qr_sha256_final(qr_sha256 *sha, uint8_t digest[32])
{
    uint8_t tail[128] = {0};
    size_t held = (size_t)(sha->bytes % 64);
    memcpy(tail, sha->block, held);
    tail[held] = 0x80;
    size_t count = held < 56 ? 1 : 2;
    store_be32(tail + 64 * count - 8, (uint32_t)(sha->bytes >> 29));
    store_be32(tail + 64 * count - 4, (uint32_t)(sha->bytes << 3));
    blocks(sha->state, tail, count);
    for (int i = 0; i < 8; i++)
        store_be32(digest + 4 * i, sha->state[i]);
}

void qr_sha256_hex(const uint8_t digest[32], char hex[65])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[64] = '\0';
}

/* Multiply to 128 bits and fold: one full-width multiplication mixes 16 bytes. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t load64(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof(x));
    return x;
}

uint64_t qr_hash64(const void *data, size_t bytes, uint64_t seed)
{
    static const uint64_t k0 = UINT64_C(0x9e3779b97f4a7c15), k1 = UINT64_C(0xd6e8feb86659fd93);
    const uint8_t *p = data;
    uint64_t h = seed ^ fold(bytes ^ k0, k1);
    size_t left = bytes;
    for (; left > 16; left -= 16, p += 16)
        h = fold(load64(p) ^ h, load64(p + 8) ^ k0);
    uint64_t a = 0, b = 0;
    if (left >= 8) {
        a = load64(p);
        b = load64(p + left - 8);
    } else {
        for (size_t i = 0; i < left; i++)
            a |= (uint64_t)p[i] << (8 * i);
    }
    return qr_hash_mix(fold(a ^ h, b ^ k1) ^ h);
}

int qr_equal_constant_time(const void *a, size_t a_len, const void *b, size_t b_len)
{
    /* The length of a (what the client sent) decides the time, never the secret's content. */
    const volatile uint8_t *x = a, *y = b;
    uint8_t different = a_len != b_len;
    for (size_t i = 0; i < a_len; i++)
        different |= (uint8_t)(x[i] ^ (b_len > 0 ? y[i % b_len] : 0));
    return different == 0;
}
