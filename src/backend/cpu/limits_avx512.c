#include <immintrin.h>

#include "backend/cpu/limits_loops.h"

#define ONES    _mm512_set1_epi32(0x01010101)
#define ONES256 _mm256_set1_epi32(0x01010101)

LIMIT_LOOP(fma_zmm, __m512i, __m512, _mm512_setzero_ps(), ONES,
           _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), a))
LIMIT_LOOP(dpbusd_ymm, __m256i, __m256i, _mm256_setzero_si256(), ONES256, _mm256_dpbusd_epi32(a, x, y))
LIMIT_LOOP(dpbusd_zmm, __m512i, __m512i, _mm512_setzero_si512(), ONES, _mm512_dpbusd_epi32(a, x, y))
LIMIT_LOOP(dpbf16_zmm, __m512i, __m512, _mm512_setzero_ps(), ONES,
           _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y))

const cpu_limit_loop cpu_limit_loops_avx512[] = {
    {"fma_zmm", "GFLOP/s", CPU_LIMIT_CHAINS * 32, fma_zmm},
    {"vpdpbusd_ymm", "GOP/s", CPU_LIMIT_CHAINS * 64, dpbusd_ymm},
    {"vpdpbusd_zmm", "GOP/s", CPU_LIMIT_CHAINS * 128, dpbusd_zmm},
    {0},
};

const cpu_limit_loop cpu_limit_loops_bf16[] = {
    {"vdpbf16ps_zmm", "GFLOP/s", CPU_LIMIT_CHAINS * 64, dpbf16_zmm},
    {0},
};

void cpu_limit_read_avx512(const void *data, size_t bytes)
{
    const __m512i *p = data;
    __m512i sum[4] = {ONES, ONES, ONES, ONES};
    for (size_t i = 0; i < bytes / 64; i += 4)
        CPU_EACH(j, 4)
    sum[j] = _mm512_or_si512(sum[j], _mm512_load_si512(p + i + (size_t)j));
    CPU_EACH(j, 4)
    __asm__ volatile("" : : "v"(sum[j]));
}
