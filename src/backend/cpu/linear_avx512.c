#include "backend/cpu/linear_avx512.h"

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/pack.h"
#include "backend/cpu/unroll.h"
#include "base/mem.h"

/* Products of 8-bit activations with block formats: vpdpbusd takes 4 k of 16 rows at a time, unsigned weights from a
 * panel and a broadcast of 4 signed activations. */

enum { ROWS_MAX = 6, PANELS_MAX = 2 };

/* One tile: where its panels and its rows of x are. */
typedef struct tile_at {
    const uint8_t *scales[PANELS_MAX], *numbers[PANELS_MAX];
    const uint8_t *x[ROWS_MAX];
    const uint8_t *aux[ROWS_MAX]; /* cpu_block [] */
} tile_at;

CPU_INLINE __m512i splat4(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
CPU_INLINE const cpu_block *aux_of(const tile_at *at, int m, int64_t b)
{
    return (const cpu_block *)at->aux[m] + b;
}
CPU_INLINE __m512 halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p)); }
CPU_INLINE __m512 bytes16(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p)));
}
CPU_INLINE __m512 signed16(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)p)));
}
CPU_INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
CPU_INLINE __m512i high_nibbles(__m512i v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

/* dot += one step: w[v] against 4 k of each row. */
CPU_INLINE void step(__m512i dot[ROWS_MAX][PANELS_MAX], const __m512i w[PANELS_MAX], const tile_at *at,
                     int64_t k, const int rows, const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512i x = splat4(at->x[m] + k);
        CPU_EACH(v, panels)
        dot[m][v] = _mm512_dpbusd_epi32(dot[m][v], w[v], x);
    }
}

/* sum += d (of the weights) * d (of x) * dot */
CPU_INLINE void scale(__m512 sum[ROWS_MAX][PANELS_MAX], __m512i dot[ROWS_MAX][PANELS_MAX],
                      const __m512 d[PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                      const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512 dx = _mm512_set1_ps(aux_of(at, m, b)->d);
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][v]), _mm512_mul_ps(d[v], dx), sum[m][v]);
    }
}

/* sum += low * (d * sum of q): what a minimum adds; low is negated where the format subtracts it. */
CPU_INLINE void shift(__m512 sum[ROWS_MAX][PANELS_MAX], const __m512 low[PANELS_MAX], const tile_at *at,
                      int64_t b, const int rows, const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512 ds = _mm512_set1_ps(aux_of(at, m, b)->ds);
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_fmadd_ps(low[v], ds, sum[m][v]);
    }
}

CPU_INLINE void block_q8_0(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                           const int panels)
{
    __m512i dot[ROWS_MAX][PANELS_MAX], w[PANELS_MAX];
    __m512 d[PANELS_MAX];
    CPU_EACH(m, rows)
    CPU_EACH(v, panels)
    dot[m][v] = _mm512_set1_epi32(aux_of(at, m, b)->c128);
    CPU_EACH(s, 8)
    {
        CPU_EACH(v, panels)
        w[v] = _mm512_load_si512(at->numbers[v] + b * 512 + s * 64);
        step(dot, w, at, b * 32 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    d[v] = halves(at->scales[v] + b * 32);
    scale(sum, dot, d, at, b, rows, panels);
}

/* Eight steps of nibbles in four vectors: steps s (low) and s + 4 (high). */
CPU_INLINE void dot_nibbles(__m512i dot[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                            const int panels)
{
    __m512i w[PANELS_MAX], high[PANELS_MAX];
    CPU_EACH(s, 4)
    {
        CPU_EACH(v, panels)
        {
            __m512i packed = _mm512_load_si512(at->numbers[v] + b * 256 + s * 64);
            w[v] = low_nibbles(packed);
            high[v] = high_nibbles(packed);
        }
        step(dot, w, at, b * 32 + s * 4, rows, panels);
        step(dot, high, at, b * 32 + s * 4 + 16, rows, panels);
    }
}

CPU_INLINE void block_q4_0(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                           const int panels)
{
    __m512i dot[ROWS_MAX][PANELS_MAX];
    __m512 d[PANELS_MAX];
    CPU_EACH(m, rows)
    CPU_EACH(v, panels)
    dot[m][v] = _mm512_srai_epi32(_mm512_set1_epi32(aux_of(at, m, b)->c128), 4);
    dot_nibbles(dot, at, b, rows, panels);
    CPU_EACH(v, panels)
    d[v] = halves(at->scales[v] + b * 32);
    scale(sum, dot, d, at, b, rows, panels);
}

CPU_INLINE void block_q4_1(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                           const int panels)
{
    __m512i dot[ROWS_MAX][PANELS_MAX];
    __m512 d[PANELS_MAX], low[PANELS_MAX];
    CPU_EACH(m, rows)
    CPU_EACH(v, panels)
    dot[m][v] = _mm512_setzero_si512();
    dot_nibbles(dot, at, b, rows, panels);
    CPU_EACH(v, panels)
    {
        d[v] = halves(at->scales[v] + b * 64);
        low[v] = halves(at->scales[v] + b * 64 + 32);
    }
    scale(sum, dot, d, at, b, rows, panels);
    shift(sum, low, at, b, rows, panels);
}

/* A sub-block of 32: nibbles of eight vectors that it shares with its neighbour. */
CPU_INLINE void sub_q4_k(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, int sub,
                         const int high, const int rows, const int panels)
{
    __m512i dot[ROWS_MAX][PANELS_MAX], w[PANELS_MAX];
    __m512 d[PANELS_MAX], low[PANELS_MAX];
    CPU_EACH(m, rows)
    CPU_EACH(v, panels)
    dot[m][v] = _mm512_setzero_si512();
    CPU_EACH(s, 8)
    {
        CPU_EACH(v, panels)
        {
            __m512i packed = _mm512_load_si512(at->numbers[v] + b * 2048 + sub / 2 * 512 + s * 64);
            w[v] = high ? high_nibbles(packed) : low_nibbles(packed);
        }
        step(dot, w, at, b * CPU_SUPER + sub * 32 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    {
        const uint8_t *scales = at->scales[v] + b * 320;
        d[v] = _mm512_mul_ps(halves(scales), bytes16(scales + 64 + sub * 16));
        low[v] = _mm512_sub_ps(_mm512_setzero_ps(),
                               _mm512_mul_ps(halves(scales + 32), bytes16(scales + 192 + sub * 16)));
    }
    scale(sum, dot, d, at, b * 8 + sub, rows, panels);
    shift(sum, low, at, b * 8 + sub, rows, panels);
}

CPU_INLINE void block_q4_k(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                           const int panels)
{
    for (int sub = 0; sub < 8; sub += 2) {
        sub_q4_k(sum, at, b, sub, 0, rows, panels);
        sub_q4_k(sum, at, b, sub + 1, 1, rows, panels);
    }
}

/* Half a block of 32: 16 k with a scale of their own. */
CPU_INLINE void half_q6_k(__m512 sum[ROWS_MAX][PANELS_MAX], __m512i dot[ROWS_MAX][PANELS_MAX],
                          const tile_at *at, int64_t b, int sub, const int rows, const int panels)
{
    __m512i w[PANELS_MAX];
    __m512 d[PANELS_MAX];
    CPU_EACH(s, 4)
    {
        CPU_EACH(v, panels)
        {
            const uint8_t *numbers = at->numbers[v] + b * 3072 + sub * 192;
            __m512i packed = _mm512_load_si512(numbers + s % 2 * 64), high = _mm512_load_si512(numbers + 128);
            __m512i top = s < 2 ? _mm512_slli_epi16(high, 4 - 2 * s) : _mm512_srli_epi16(high, 2 * s - 4);
            w[v] = _mm512_or_si512(s < 2 ? low_nibbles(packed) : high_nibbles(packed),
                                   _mm512_and_si512(top, _mm512_set1_epi8(0x30)));
        }
        step(dot, w, at, b * CPU_SUPER + sub * 16 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    {
        const uint8_t *scales = at->scales[v] + b * 288;
        d[v] = _mm512_mul_ps(halves(scales), signed16(scales + 32 + sub * 16));
    }
    scale(sum, dot, d, at, b * 8 + sub / 2, rows, panels);
}

CPU_INLINE void block_q6_k(__m512 sum[ROWS_MAX][PANELS_MAX], const tile_at *at, int64_t b, const int rows,
                           const int panels)
{
    __m512i dot[ROWS_MAX][PANELS_MAX];
    for (int sub = 0; sub < 16; sub += 2) {
        CPU_EACH(m, rows)
        CPU_EACH(v, panels)
        dot[m][v] = _mm512_set1_epi32(aux_of(at, m, b * 8 + sub / 2)->c32);
        half_q6_k(sum, dot, at, b, sub, rows, panels);
        CPU_EACH(m, rows)
        {
            const cpu_block *aux = aux_of(at, m, b * 8 + sub / 2);
            __m512i rest = _mm512_sub_epi32(_mm512_srai_epi32(_mm512_set1_epi32(aux->c128), 2),
                                            _mm512_set1_epi32(aux->c32));
            CPU_EACH(v, panels)
            dot[m][v] = rest;
        }
        half_q6_k(sum, dot, at, b, sub + 1, rows, panels);
    }
}

/* ---- Tiles ---- */

CPU_INLINE tile_at tile_begin(const cpu_tile *t, int64_t row, int64_t panel, const int rows, const int panels)
{
    tile_at at;
    CPU_EACH(v, panels)
    {
        at.scales[v] = t->w.data + (size_t)(panel + v) * t->w.panel_bytes;
        at.numbers[v] = at.scales[v] + t->w.numbers;
    }
    CPU_EACH(m, rows)
    {
        at.x[m] = t->x->data + (t->row0 + row + m) * t->x->row_bytes;
        at.aux[m] = at.x[m] + cpu_record_blocks(t->x->cols);
    }
    return at;
}

CPU_INLINE void tile_end(const cpu_tile *t, int64_t row, int64_t panel,
                         const __m512 sum[ROWS_MAX][PANELS_MAX], const int rows, const int panels)
{
    CPU_EACH(v, panels)
    {
        float *y = cpu_tile_at(t, row, panel + v);
        CPU_EACH(m, rows)
        _mm512_mask_storeu_ps(y + m * t->y_stride, cpu_panel_columns(t, panel + v), sum[m][v]);
    }
}

#define TILE_CASE(layout, n, panels)             \
    case n:                                      \
        tile_##layout(t, row, panel, n, panels); \
        break;

#define TILE_ROWS(layout, name, panels)                                                      \
    static void name##_##layout(const cpu_tile *t, int64_t row, int64_t panel, int64_t rows) \
    {                                                                                        \
        switch (rows) {                                                                      \
            TILE_CASE(layout, 1, panels)                                                     \
            TILE_CASE(layout, 2, panels)                                                     \
            TILE_CASE(layout, 3, panels)                                                     \
            TILE_CASE(layout, 4, panels)                                                     \
            TILE_CASE(layout, 5, panels)                                                     \
            TILE_CASE(layout, 6, panels)                                                     \
        }                                                                                    \
    }

#define TILE_KERNEL(layout)                                                                      \
    CPU_INLINE void tile_##layout(const cpu_tile *t, int64_t row, int64_t panel, const int rows, \
                                  const int panels)                                              \
    {                                                                                            \
        tile_at at = tile_begin(t, row, panel, rows, panels);                                    \
        __m512 sum[ROWS_MAX][PANELS_MAX];                                                        \
        CPU_EACH(m, rows)                                                                        \
        CPU_EACH(v, panels)                                                                      \
        sum[m][v] = _mm512_setzero_ps();                                                         \
        for (int64_t b = 0; b < t->w.blocks; b++)                                                \
            block_##layout(sum, &at, b, rows, panels);                                           \
        tile_end(t, row, panel, sum, rows, panels);                                              \
    }                                                                                            \
    TILE_ROWS(layout, pair, 2)                                                                   \
    TILE_ROWS(layout, single, 1)                                                                 \
    static void kernel_##layout(const cpu_tile *t)                                               \
    {                                                                                            \
        int64_t end = t->panel0 + t->panels;                                                     \
        for (int64_t panel = t->panel0; panel < end; panel += 2)                                 \
            for (int64_t row = 0, n; row < t->rows; row += n) {                                  \
                n = cpu_tile_rows(t->rows - row, ROWS_MAX);                                      \
                (panel + 1 < end ? pair_##layout : single_##layout)(t, row, panel, n);           \
            }                                                                                    \
    }

TILE_KERNEL(q8_0)
TILE_KERNEL(q4_0)
TILE_KERNEL(q4_1)
TILE_KERNEL(q4_k)
TILE_KERNEL(q6_k)

/* ---- Activations ---- */

static void quantize(const float *x, int64_t cols, uint8_t *record)
{
    cpu_block *aux = (cpu_block *)(record + cpu_record_blocks(cols));
    for (int64_t b = 0; b < cols / CPU_BLOCK; b++, x += CPU_BLOCK) {
        __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0);
        __m512i ql = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        __m512i qh = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        _mm_store_si128((__m128i *)(record + b * CPU_BLOCK), _mm512_cvtsepi32_epi8(ql));
        _mm_store_si128((__m128i *)(record + b * CPU_BLOCK + 16), _mm512_cvtsepi32_epi8(qh));
        int first = _mm512_reduce_add_epi32(ql), sum = first + _mm512_reduce_add_epi32(qh);
        float d = top / 127.0f;
        aux[b] = (cpu_block){
            .d = d, .ds = d * (float)sum, .c128 = cpu_times(-128, sum), .c32 = cpu_times(-32, first)};
    }
}

#define BLOCK_FORMS                                                                                    \
    [CPU_LAYOUT_Q8_0] = CPU_FORM_Q8, [CPU_LAYOUT_Q4_0] = CPU_FORM_Q8, [CPU_LAYOUT_Q4_1] = CPU_FORM_Q8, \
    [CPU_LAYOUT_Q4_K] = CPU_FORM_Q8, [CPU_LAYOUT_Q6_K] = CPU_FORM_Q8
#define ALL_TILES(bf16_tile)                                                                           \
    [CPU_LAYOUT_PARTS] = cpu_tile_parts, [CPU_LAYOUT_F32] = cpu_tile_f32_avx512,                       \
    [CPU_LAYOUT_F16] = cpu_tile_f16_avx512, [CPU_LAYOUT_BF16] = (bf16_tile),                           \
    [CPU_LAYOUT_Q8_0] = kernel_q8_0, [CPU_LAYOUT_Q4_0] = kernel_q4_0, [CPU_LAYOUT_Q4_1] = kernel_q4_1, \
    [CPU_LAYOUT_Q4_K] = kernel_q4_k, [CPU_LAYOUT_Q6_K] = kernel_q6_k

const cpu_linear_kernels cpu_linear_avx512 = {
    .name = "avx512",
    .form = {BLOCK_FORMS},
    .tile = {ALL_TILES(cpu_tile_bf16_avx512)},
    .quantize = quantize,
};

const cpu_linear_kernels cpu_linear_avx512_bf16 = {
    .name = "avx512+bf16",
    .form = {BLOCK_FORMS, [CPU_LAYOUT_BF16] = CPU_FORM_BF16},
    .tile = {ALL_TILES(cpu_tile_bf16_dot_avx512)},
    .quantize = quantize,
    .to_bf16 = cpu_to_bf16_avx512,
};
