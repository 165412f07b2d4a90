/* What the two files of AVX2 products share. Private to backend/cpu/, only for *_avx2.c. Thread: as cpu.h. */
#ifndef QR_BACKEND_CPU_LINEAR_AVX2_H
#define QR_BACKEND_CPU_LINEAR_AVX2_H

#include <immintrin.h>

#include "backend/cpu/linear_tile.h"

void cpu_tile_f32_avx2(const cpu_tile *tile);
void cpu_tile_f16_avx2(const cpu_tile *tile);
void cpu_tile_bf16_avx2(const cpu_tile *tile);

/* Eight outputs of a panel's half; only columns that the weight has. */
static inline __attribute__((always_inline)) void cpu_store_half(const cpu_tile *t, int64_t row,
                                                                 int64_t panel, int half, __m256 sum)
{
    int64_t left = t->w.rows - panel * CPU_PANEL - half * 8;
    float *y = cpu_tile_at(t, row, panel) + half * 8;
    if (left >= 8)
        _mm256_storeu_ps(y, sum);
    else if (left > 0)
        _mm256_maskstore_ps(
            y, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            sum);
}

#endif
