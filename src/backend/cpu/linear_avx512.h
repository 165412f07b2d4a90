/* What the two files of AVX-512 products share. Private to backend/cpu/, only for *_avx512.c. Thread: as cpu.h. */
#ifndef QR_BACKEND_CPU_LINEAR_AVX512_H
#define QR_BACKEND_CPU_LINEAR_AVX512_H

#include <immintrin.h>

#include "backend/cpu/linear_tile.h"

void cpu_tile_f32_avx512(const cpu_tile *tile);
void cpu_tile_f16_avx512(const cpu_tile *tile);
void cpu_tile_bf16_avx512(const cpu_tile *tile);     /* widened to F32 */
void cpu_tile_bf16_dot_avx512(const cpu_tile *tile); /* needs AVX512_BF16; x in BF16 */
void cpu_to_bf16_avx512(const float *x, int64_t cols, uint16_t *y);

/* Columns of the panel that the weight has. */
static inline __mmask16 cpu_panel_columns(const cpu_tile *t, int64_t panel)
{
    int64_t left = t->w.rows - panel * CPU_PANEL;
    return left >= CPU_PANEL ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

#endif
