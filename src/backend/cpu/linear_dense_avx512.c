#include "backend/cpu/linear_avx512.h"

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/unroll.h"
#include "base/mem.h"

/* Products of dense weights. A step is a k of F32 or F16, or a pair of BF16: one fused multiply-add (two for BF16 without
 * a dot product) into each output's single accumulator, in the order of k. */

enum { ROWS_MAX = 6, PANELS_MAX = 4, STREAM_ROWS = 4, FETCH_UNITS = 4 };

typedef struct tile_at {
    const uint8_t *w[PANELS_MAX];
    const uint8_t *x[ROWS_MAX];
} tile_at;

CPU_INLINE __m512 splat(const uint8_t *p)
{
    float x;
    memcpy(&x, p, 4);
    return _mm512_set1_ps(x);
}

CPU_INLINE void step_fma(__m512 sum[ROWS_MAX][PANELS_MAX], const __m512 w[PANELS_MAX], const tile_at *at,
                         int64_t k, const int rows, const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512 x = splat(at->x[m] + 4 * k);
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_fmadd_ps(w[v], x, sum[m][v]);
    }
}

CPU_INLINE void block_f32(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, int64_t cols,
                          const int rows, const int panels)
{
    __m512 w[PANELS_MAX];
    (void)cols;
    CPU_EACH(v, panels)
    w[v] = _mm512_load_ps(at->w[v] + b * 64);
    step_fma(sum, w, at, b, rows, panels);
}

CPU_INLINE void block_f16(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, int64_t cols,
                          const int rows, const int panels)
{
    __m512 w[PANELS_MAX];
    (void)cols;
    CPU_EACH(v, panels)
    w[v] = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(at->w[v] + b * 32)));
    step_fma(sum, w, at, b, rows, panels);
}

CPU_INLINE void block_bf16(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, int64_t cols,
                           const int rows, const int panels)
{
    __m512 even[PANELS_MAX], odd[PANELS_MAX];
    CPU_EACH(v, panels)
    {
        __m512i pair = _mm512_load_si512(at->w[v] + b * 64);
        even[v] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        odd[v] = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
    }
    step_fma(sum, even, at, 2 * b, rows, panels);
    if (2 * b + 1 < cols)
        step_fma(sum, odd, at, 2 * b + 1, rows, panels);
}

CPU_INLINE void block_bf16_dot(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, int64_t cols,
                               const int rows, const int panels)
{
    __m512i w[PANELS_MAX];
    (void)cols;
    CPU_EACH(v, panels)
    w[v] = _mm512_load_si512(at->w[v] + b * 64);
    CPU_EACH(m, rows)
    {
        __m512i x = _mm512_castps_si512(splat(at->x[m] + 4 * b));
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_dpbf16_ps(sum[m][v], (__m512bh)w[v], (__m512bh)x);
    }
}

/* ---- Tiles ---- */

CPU_INLINE tile_at tile_begin(const cpu_tile *t, int64_t row, int64_t panel, const int rows, const int panels)
{
    tile_at at;
    CPU_EACH(v, panels)
    at.w[v] = t->w.data + (size_t)(panel + v) * t->w.panel_bytes;
    CPU_EACH(m, rows)
    at.x[m] = t->x->data + (t->row0 + row + m) * t->x->row_bytes;
    return at;
}

CPU_INLINE void tile_end(const cpu_tile *t, int64_t row, int64_t panel,
                         const __m512 sum[ROWS_MAX][PANELS_MAX], const int rows, const int panels)
{
    CPU_EACH(v, panels)
    {
        float *y = cpu_tile_at(t, row, panel + v);
        __mmask16 columns = cpu_panel_columns(t, panel + v);
        int64_t stride = t->y_stride;
        CPU_EACH(m, rows)
        _mm512_mask_storeu_ps(y + m * stride, columns, sum[m][v]);
    }
}

#define TILE_CASE(layout, n, panels)                    \
    case n:                                             \
        tile_##layout(t, row, panel, ahead, n, panels); \
        break;

#define TILE_ROWS(layout, name, panels)                                                         \
    static void name##_##layout(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead, \
                                int64_t rows)                                                   \
    {                                                                                           \
        switch (rows) {                                                                         \
            TILE_CASE(layout, 1, panels)                                                        \
            TILE_CASE(layout, 2, panels)                                                        \
            TILE_CASE(layout, 3, panels)                                                        \
            TILE_CASE(layout, 4, panels)                                                        \
            TILE_CASE(layout, 5, panels)                                                        \
            TILE_CASE(layout, 6, panels)                                                        \
        }                                                                                       \
    }

#define TILE_KERNEL(layout)                                                                        \
    CPU_INLINE void tile_##layout(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead,  \
                                  const int rows, const int panels)                                \
    {                                                                                              \
        tile_at at = tile_begin(t, row, panel, rows, panels);                                      \
        __m512 sum[ROWS_MAX][PANELS_MAX];                                                          \
        CPU_EACH(m, rows)                                                                          \
        CPU_EACH(v, panels)                                                                        \
        sum[m][v] = _mm512_setzero_ps();                                                           \
        CPU_ROLLED for (int64_t b = 0; b < t->w.units; b++)                                        \
        {                                                                                          \
            block_##layout(sum, &at, b, t->x->cols, rows, panels);                                 \
            if (b % FETCH_UNITS == FETCH_UNITS - 1)                                                \
                cpu_fetch_ahead(&ahead);                                                           \
        }                                                                                          \
        tile_end(t, row, panel, sum, rows, panels);                                                \
    }                                                                                              \
    TILE_ROWS(layout, group, 4)                                                                    \
    TILE_ROWS(layout, single, 1)                                                                   \
    void cpu_tile_##layout##_avx512(const cpu_tile *t)                                             \
    {                                                                                              \
        int64_t end = t->panel0 + t->panels;                                                       \
        for (int64_t panel = t->panel0, n; panel < end; panel += n) {                              \
            n = end - panel >= PANELS_MAX ? PANELS_MAX : 1;                                        \
            cpu_ahead ahead = cpu_ahead_of(t, panel + n, t->rows <= STREAM_ROWS ? 0 : n, ROWS_MAX, \
                                           t->w.units / FETCH_UNITS);                              \
            for (int64_t row = 0, rows; row < t->rows; row += rows) {                              \
                rows = cpu_tile_rows(t->rows - row, ROWS_MAX);                                     \
                (n == PANELS_MAX ? group_##layout : single_##layout)(t, row, panel, ahead, rows);  \
                ahead.next += ahead.step * ahead.calls;                                            \
            }                                                                                      \
        }                                                                                          \
    }

TILE_KERNEL(f32)
TILE_KERNEL(f16)
TILE_KERNEL(bf16)
TILE_KERNEL(bf16_dot)

void cpu_to_bf16_avx512(const float *x, int64_t cols, uint16_t *y)
{
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16)
        _mm256_storeu_si256((__m256i *)(y + k), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k)));
    if (k < cols) {
        __mmask16 left = (__mmask16)((1u << (cols - k)) - 1),
                  pad = (__mmask16)((1u << (QR_ROUND_UP(cols, 2) - k)) - 1);
        _mm256_mask_storeu_epi16(y + k, pad, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(left, x + k)));
    }
}
