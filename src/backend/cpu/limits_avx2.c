#include <immintrin.h>

#include "backend/cpu/limits_loops.h"

#define ONES _mm256_set1_epi32(0x01010101)

LIMIT_LOOP(fma_ymm, __m256i, __m256, _mm256_setzero_ps(), ONES,
           _mm256_fmadd_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), a))

/* maddubs does not depend on its accumulator: the empty asm keeps the chains from sharing one. */
static inline __m256i maddubs_madd(__m256i x, __m256i y)
{
    __asm__ volatile("" : "+x"(x));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), y);
}
LIMIT_LOOP(maddubs_ymm, __m256i, __m256i, _mm256_setzero_si256(), ONES,
           _mm256_add_epi32(a, maddubs_madd(x, y)))

const cpu_limit_loop cpu_limit_loops_avx2[] = {
    {"fma_ymm", "GFLOP/s", CPU_LIMIT_CHAINS * 16, fma_ymm},
    {"maddubs_madd_add_ymm", "GOP/s", CPU_LIMIT_CHAINS * 64, maddubs_ymm},
    {0},
};

void cpu_limit_read_avx2(const void *data, size_t bytes)
{
    const __m256i *p = data;
    __m256i sum[4] = {ONES, ONES, ONES, ONES};
    for (size_t i = 0; i < bytes / 32; i += 4)
        CPU_EACH(j, 4)
    sum[j] = _mm256_or_si256(sum[j], _mm256_load_si256(p + i + (size_t)j));
    CPU_EACH(j, 4)
    __asm__ volatile("" : : "x"(sum[j]));
}
