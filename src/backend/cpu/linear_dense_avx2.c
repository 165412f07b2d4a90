#include <string.h>

#include "backend/cpu/linear_avx2.h"

/* Products of dense weights with F32 activations: one fused multiply-add a k into each output's accumulator. Twelve
 * accumulators of eight are enough for its latency, and leave room for the weights of sixteen rows. */

enum { ROWS_MAX = 6, STREAM_ROWS = 2, FETCH_UNITS = 4 };

typedef struct tile_at {
    const uint8_t *w;
    const uint8_t *x[ROWS_MAX];
} tile_at;

CPU_INLINE void step_fma(__m256 sum[ROWS_MAX][2], __m256 low, __m256 high, const tile_at *at, int64_t k,
                         const int rows)
{
    CPU_EACH(m, rows)
    {
        float value;
        memcpy(&value, at->x[m] + 4 * k, 4);
        __m256 x = _mm256_set1_ps(value);
        sum[m][0] = _mm256_fmadd_ps(low, x, sum[m][0]);
        sum[m][1] = _mm256_fmadd_ps(high, x, sum[m][1]);
    }
}

CPU_INLINE void unit_f32(__m256 sum[ROWS_MAX][2], const tile_at *at, int64_t b, int64_t cols, const int rows)
{
    const float *w = (const float *)(at->w + b * 64);
    (void)cols;
    step_fma(sum, _mm256_load_ps(w), _mm256_load_ps(w + 8), at, b, rows);
}

CPU_INLINE void unit_f16(__m256 sum[ROWS_MAX][2], const tile_at *at, int64_t b, int64_t cols, const int rows)
{
    const __m128i *w = (const __m128i *)(at->w + b * 32);
    (void)cols;
    step_fma(sum, _mm256_cvtph_ps(_mm_load_si128(w)), _mm256_cvtph_ps(_mm_load_si128(w + 1)), at, b, rows);
}

CPU_INLINE __m256 even_bf16(__m256i pair) { return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)); }
CPU_INLINE __m256 odd_bf16(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000u)));
}

/* The pair is loaded twice: kept over the even step it would be the seventeenth register. */
CPU_INLINE void unit_bf16(__m256 sum[ROWS_MAX][2], const tile_at *at, int64_t b, int64_t cols, const int rows)
{
    const __m256i *w = (const __m256i *)(at->w + b * 64);
    step_fma(sum, even_bf16(_mm256_load_si256(w)), even_bf16(_mm256_load_si256(w + 1)), at, 2 * b, rows);
    __asm__("" : "+r"(w));
    if (2 * b + 1 < cols)
        step_fma(sum, odd_bf16(_mm256_load_si256(w)), odd_bf16(_mm256_load_si256(w + 1)), at, 2 * b + 1,
                 rows);
}

#define TILE_CASE(layout, n)                    \
    case n:                                     \
        tile_##layout(t, row, panel, ahead, n); \
        break;

#define TILE_KERNEL(layout)                                                                                 \
    CPU_INLINE void tile_##layout(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead,           \
                                  const int rows)                                                           \
    {                                                                                                       \
        tile_at at = {.w = t->w.data + (size_t)panel * t->w.panel_bytes};                                   \
        __m256 sum[ROWS_MAX][2];                                                                            \
        CPU_EACH(m, rows)                                                                                   \
        {                                                                                                   \
            at.x[m] = t->x->data + (t->row0 + row + m) * t->x->row_bytes;                                   \
            sum[m][0] = sum[m][1] = _mm256_setzero_ps();                                                    \
        }                                                                                                   \
        CPU_ROLLED for (int64_t b = 0; b < t->w.units; b++)                                                 \
        {                                                                                                   \
            unit_##layout(sum, &at, b, t->x->cols, rows);                                                   \
            if (b % FETCH_UNITS == FETCH_UNITS - 1)                                                         \
                cpu_fetch_ahead(&ahead);                                                                    \
        }                                                                                                   \
        CPU_EACH(m, rows)                                                                                   \
        CPU_EACH(h, 2)                                                                                      \
        cpu_store_half(t, row + m, panel, h, sum[m][h]);                                                    \
    }                                                                                                       \
    static void rows_##layout(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead, int64_t rows) \
    {                                                                                                       \
        switch (rows) {                                                                                     \
            TILE_CASE(layout, 1)                                                                            \
            TILE_CASE(layout, 2)                                                                            \
            TILE_CASE(layout, 3)                                                                            \
            TILE_CASE(layout, 4)                                                                            \
            TILE_CASE(layout, 5)                                                                            \
            TILE_CASE(layout, 6)                                                                            \
        }                                                                                                   \
    }                                                                                                       \
    void cpu_tile_##layout##_avx2(const cpu_tile *t)                                                        \
    {                                                                                                       \
        for (int64_t panel = t->panel0; panel < t->panel0 + t->panels; panel++) {                           \
            cpu_ahead ahead = cpu_ahead_of(t, panel + 1, t->rows <= STREAM_ROWS ? 0 : 1, ROWS_MAX,          \
                                           t->w.units / FETCH_UNITS);                                       \
            for (int64_t row = 0, rows; row < t->rows; row += rows) {                                       \
                rows = cpu_tile_rows(t->rows - row, ROWS_MAX);                                              \
                rows_##layout(t, row, panel, ahead, rows);                                                  \
                ahead.next += ahead.step * ahead.calls;                                                     \
            }                                                                                               \
        }                                                                                                   \
    }

TILE_KERNEL(f32)
TILE_KERNEL(f16)
TILE_KERNEL(bf16)
