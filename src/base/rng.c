#include "base/rng.h"

#include <sys/random.h>

#include "base/clock.h"

void qr_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The counter is (position, sample, purpose): 64 + 32 + 32 bits, so no two uses share a block. */
double qr_rng_uniform(uint64_t seed, uint32_t sample, uint64_t position, qr_rng_purpose purpose)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), sample, (uint32_t)purpose};
    uint32_t bits[4];
    qr_philox(bits, counter, key);
    uint64_t wide = (uint64_t)bits[1] << 32 | bits[0];
    return (double)(wide >> 11) * 0x1p-53;
}

uint64_t qr_rng_system(void)
{
    uint64_t bits = 0;
    if (getrandom(&bits, sizeof(bits), 0) == (ssize_t)sizeof(bits))
        return bits;
    uint64_t state = qr_clock_ns() ^ (uint64_t)(uintptr_t)&bits;
    return qr_rng_next(&state);
}
