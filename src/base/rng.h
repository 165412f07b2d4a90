/* Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC'11). The same (key, counter) gives the
 * same bits on every machine; nothing is stored between calls. Thread: any. */
#ifndef QR_BASE_RNG_H
#define QR_BASE_RNG_H

#include <stdint.h>

void qr_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* What a random number is for: part of the counter, so that two uses never share a stream. */
typedef enum qr_rng_purpose { QR_RNG_SAMPLE = 0, QR_RNG_TEST = 1, QR_RNG_WEIGHTS = 2 } qr_rng_purpose;

/* Uniform in [0, 1) with 53 bits for (seed, sample index, absolute position, purpose). */
double qr_rng_uniform(uint64_t seed, uint32_t sample, uint64_t position, qr_rng_purpose purpose);

/* A small sequential generator for tests and simulations (splitmix64). */
static inline uint64_t qr_rng_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 64 unpredictable bits from the system, for seeds of requests that bring none. */
uint64_t qr_rng_system(void);

#endif
