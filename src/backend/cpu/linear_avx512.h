/* What the two files of AVX-512 products share. Private to backend/cpu/, only for *_avx512.c. Thread: as cpu.h. */
#ifndef QR_BACKEND_CPU_LINEAR_AVX512_H
#define QR_BACKEND_CPU_LINEAR_AVX512_H

#include <immintrin.h>

#include "backend/cpu/linear.h"
#include "base/mem.h"

void cpu_tile_f32_avx512(const cpu_tile *tile);
void cpu_tile_f16_avx512(const cpu_tile *tile);
void cpu_tile_bf16_avx512(const cpu_tile *tile);     /* widened to F32 */
void cpu_tile_bf16_dot_avx512(const cpu_tile *tile); /* needs AVX512_BF16; x in BF16 */
void cpu_to_bf16_avx512(const float *x, int64_t cols, uint16_t *y);

/* Where output (row of the tile, first column of the panel) goes. */
static inline float *cpu_tile_at(const cpu_tile *t, int64_t row, int64_t panel)
{
    return t->y + row * t->y_stride + (panel - t->panel0) * CPU_PANEL;
}

/* Columns of the panel that the weight has. */
static inline __mmask16 cpu_panel_columns(const cpu_tile *t, int64_t panel)
{
    int64_t left = t->w.rows - panel * CPU_PANEL;
    return left >= CPU_PANEL ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

/* While a kernel works on some panels it fetches the next ones into L2, a few lines a block of K, spread evenly over the
 * tiles of rows: memory is read at the pace of the arithmetic. (Few rows need none of it: their products wait for
 * memory, and the loads run ahead by themselves.) Zen 4, one core, Q8_0 with 8 rows: 248 GOP/s without, 326 with. */
typedef struct cpu_ahead {
    const uint8_t *next;
    int64_t step;  /* bytes a call; 0: nothing to fetch */
    int64_t calls; /* in a tile */
} cpu_ahead;

/* For `panels` panels from `panel` on, as far as the tile has them, in tiles of up to rows_max rows that make `calls`
 * calls. */
static inline cpu_ahead cpu_ahead_of(const cpu_tile *t, int64_t panel, int64_t panels, int64_t rows_max,
                                     int64_t calls)
{
    cpu_ahead ahead = {.next = t->w.data + (size_t)panel * t->w.panel_bytes, .calls = QR_MAX(calls, 1)};
    panels = QR_MIN(panels, t->panel0 + t->panels - panel);
    if (panels > 0) {
        int64_t all = (t->rows + rows_max - 1) / rows_max * ahead.calls;
        int64_t lines = panels * (int64_t)t->w.panel_bytes / 64;
        ahead.step = (lines + all - 1) / all * 64;
    }
    return ahead;
}

static inline __attribute__((always_inline)) void cpu_fetch_ahead(cpu_ahead *ahead)
{
    for (int64_t i = 0; i < ahead->step; i += 64)
        _mm_prefetch((const char *)ahead->next + i, _MM_HINT_T1);
    ahead->next += ahead->step;
}

#endif
