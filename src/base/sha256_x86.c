#include "base/sha256_blocks.h"

#if defined(__x86_64__)

#include <immintrin.h>

/* The SHA instructions keep the state as the pairs {a,b,e,f} and {c,d,g,h}, high lane first; two rounds
 * each step on one pair using the other. */
__attribute__((target("sha,sse4.1,ssse3"))) static void block_x86(__m128i state[2], const uint8_t *block)
{
    const __m128i byte_swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    __m128i abef = state[0], cdgh = state[1];
    __m128i w[4]; /* the last 16 words of the schedule, oldest in w[group % 4] */
    for (int group = 0; group < 16; group++) {
        __m128i *now = &w[group % 4];
        if (group < 4) {
            *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(block + 16 * group)),
                                    byte_swap);
        } else {
            const __m128i w1 = w[(group + 1) % 4], w2 = w[(group + 2) % 4], w3 = w[(group + 3) % 4];
            __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(*now, w1), _mm_alignr_epi8(w3, w2, 4));
            *now = _mm_sha256msg2_epu32(sum, w3);
        }
        __m128i wk =
            _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)(const void *)(qr_sha256_k + 4 * group)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0E));
    }
    state[0] = _mm_add_epi32(state[0], abef);
    state[1] = _mm_add_epi32(state[1], cdgh);
}

__attribute__((target("sha,sse4.1,ssse3"))) void qr_sha256_blocks_x86(uint32_t state[8], const uint8_t *data,
                                                                      size_t count)
{
    __m128i pairs[2] = {
        _mm_set_epi32((int)state[0], (int)state[1], (int)state[4], (int)state[5]),
        _mm_set_epi32((int)state[2], (int)state[3], (int)state[6], (int)state[7]),
    };
    for (size_t i = 0; i < count; i++)
        block_x86(pairs, data + 64 * i);
    static const uint8_t place[2][4] = {{5, 4, 1, 0}, {7, 6, 3, 2}};
    for (int pair = 0; pair < 2; pair++) {
        uint32_t lanes[4];
        _mm_storeu_si128((__m128i *)(void *)lanes, pairs[pair]);
        for (int lane = 0; lane < 4; lane++)
            state[place[pair][lane]] = lanes[lane];
    }
}

#endif
