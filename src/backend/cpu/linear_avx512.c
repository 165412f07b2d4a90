#include "backend/cpu/linear_avx512.h"

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/pack.h"
#include "backend/cpu/unroll.h"
#include "base/mem.h"

/* Products of 8-bit activations with block formats: vpdpbusd takes 4 k of 16 rows at a time, unsigned weights from a
 * panel and a broadcast of 4 signed activations. */

/* Up to STREAM_ROWS rows the memory is the limit, and one panel at a time, a single stream, is read fastest. */
enum { ROWS_MAX = 6, PANELS_MAX = 2, STREAM_ROWS = 2 };

/* One tile: where its panels and its rows of x are. */
typedef struct tile_at {
    const uint8_t *w[PANELS_MAX];
    const uint8_t *x[ROWS_MAX];
    const uint8_t *aux[ROWS_MAX]; /* cpu_block [blocks] */
    int64_t blocks;
    cpu_ahead ahead;
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

typedef __m512 tile_sum[ROWS_MAX][PANELS_MAX];
typedef __m512i tile_dot[ROWS_MAX][PANELS_MAX];

/* dot += one step: w[v] against 4 k of each row. */
CPU_INLINE void step(tile_dot dot, const __m512i w[PANELS_MAX], const tile_at *at, int64_t k, const int rows,
                     const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512i x = splat4(at->x[m] + k);
        CPU_EACH(v, panels)
        dot[m][v] = _mm512_dpbusd_epi32(dot[m][v], w[v], x);
    }
}

/* sum += d (of the weights) * d (of x) * dot */
CPU_INLINE void scale(tile_sum sum, tile_dot dot, const __m512 d[PANELS_MAX], const tile_at *at, int64_t b,
                      const int rows, const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512 dx = _mm512_set1_ps(aux_of(at, m, b)->d);
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[m][v]), _mm512_mul_ps(d[v], dx), sum[m][v]);
    }
}

/* sum += low * (d * sum of q): what a minimum adds. */
CPU_INLINE void shift(tile_sum sum, const __m512 low[PANELS_MAX], const tile_at *at, int64_t b,
                      const int rows, const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512 ds = _mm512_set1_ps(aux_of(at, m, b)->ds);
        CPU_EACH(v, panels)
        sum[m][v] = _mm512_fmadd_ps(low[v], ds, sum[m][v]);
    }
}

CPU_INLINE void dot_begin(tile_dot dot, const int rows, const int panels)
{
    CPU_EACH(m, rows)
    CPU_EACH(v, panels)
    dot[m][v] = _mm512_setzero_si512();
}

/* Starts from what the offset 128 >> shift of unsigned weights adds too much. */
CPU_INLINE void dot_begin_offset(tile_dot dot, const tile_at *at, int64_t b, const int right, const int rows,
                                 const int panels)
{
    CPU_EACH(m, rows)
    {
        __m512i offset = _mm512_set1_epi32(aux_of(at, m, b)->c128);
        CPU_EACH(v, panels)
        dot[m][v] = right == 0 ? offset : _mm512_srai_epi32(offset, right);
    }
}

/* Below: one unit of each layout, `w` bytes into the panels, whose first block is b. */

CPU_INLINE void block_q8_0(tile_sum sum, const tile_at *at, int64_t w, int64_t b, const int half,
                           const int rows, const int panels)
{
    tile_dot dot;
    __m512i q[PANELS_MAX];
    __m512 d[PANELS_MAX];
    dot_begin_offset(dot, at, b + half, 0, rows, panels);
    CPU_EACH(s, 8)
    {
        CPU_EACH(v, panels)
        q[v] = _mm512_load_si512(at->w[v] + w + 64 + half * 512 + s * 64);
        step(dot, q, at, (b + half) * 32 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    d[v] = halves(at->w[v] + w + half * 32);
    scale(sum, dot, d, at, b + half, rows, panels);
}

/* Both blocks of a unit for few rows: all loads of the unit stand before the first product. Mixed, the products that
 * wait for memory fill the scheduler and keep the next loads out of it. */
CPU_INLINE void stream_q8_0(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows)
{
    tile_dot dot;
    __m512i q[16];
    __m512 d[2];
    CPU_EACH(half, 2)
    d[half] = halves(at->w[0] + w + half * 32);
    CPU_EACH(s, 16)
    q[s] = _mm512_load_si512(at->w[0] + w + 64 + s * 64);
    CPU_EACH(s, 16)
    __asm__ volatile("" : "+v"(q[s]));
    CPU_EACH(half, 2)
    {
        dot_begin_offset(dot, at, b + half, 0, rows, 1);
        CPU_EACH(s, 8)
        step(dot, &q[half * 8 + s], at, (b + half) * 32 + s * 4, rows, 1);
        scale(sum, dot, &d[half], at, b + half, rows, 1);
    }
}

CPU_INLINE void unit_q8_0(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int panels)
{
    if (rows <= 3 && panels == 1 && b + 1 < at->blocks) {
        stream_q8_0(sum, at, w, b, rows);
        return;
    }
    block_q8_0(sum, at, w, b, 0, rows, panels);
    cpu_fetch_ahead(&at->ahead);
    if (b + 1 < at->blocks)
        block_q8_0(sum, at, w, b, 1, rows, panels);
    cpu_fetch_ahead(&at->ahead);
}

/* Eight steps of nibbles in four vectors: steps s (low) and s + 4 (high). */
CPU_INLINE void dot_nibbles(tile_dot dot, const tile_at *at, int64_t w, int64_t k, const int rows,
                            const int panels)
{
    __m512i low[PANELS_MAX], high[PANELS_MAX];
    CPU_EACH(s, 4)
    {
        CPU_EACH(v, panels)
        {
            __m512i packed = _mm512_load_si512(at->w[v] + w + s * 64);
            low[v] = low_nibbles(packed);
            high[v] = high_nibbles(packed);
        }
        step(dot, low, at, k + s * 4, rows, panels);
        step(dot, high, at, k + s * 4 + 16, rows, panels);
    }
}

CPU_INLINE void block_q4_0(tile_sum sum, const tile_at *at, int64_t w, int64_t b, const int half,
                           const int rows, const int panels)
{
    tile_dot dot;
    __m512 d[PANELS_MAX];
    dot_begin_offset(dot, at, b + half, 4, rows, panels);
    dot_nibbles(dot, at, w + 64 + half * 256, (b + half) * 32, rows, panels);
    CPU_EACH(v, panels)
    d[v] = halves(at->w[v] + w + half * 32);
    scale(sum, dot, d, at, b + half, rows, panels);
}

CPU_INLINE void unit_q4_0(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int panels)
{
    block_q4_0(sum, at, w, b, 0, rows, panels);
    cpu_fetch_ahead(&at->ahead);
    if (b + 1 < at->blocks)
        block_q4_0(sum, at, w, b, 1, rows, panels);
    cpu_fetch_ahead(&at->ahead);
}

CPU_INLINE void unit_q4_1(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int panels)
{
    tile_dot dot;
    __m512 d[PANELS_MAX], low[PANELS_MAX];
    dot_begin(dot, rows, panels);
    dot_nibbles(dot, at, w + 64, b * 32, rows, panels);
    CPU_EACH(v, panels)
    {
        d[v] = halves(at->w[v] + w);
        low[v] = halves(at->w[v] + w + 32);
    }
    scale(sum, dot, d, at, b, rows, panels);
    shift(sum, low, at, b, rows, panels);
    cpu_fetch_ahead(&at->ahead);
}

/* A sub-block of 32: the low or high nibbles of eight vectors that it shares with its neighbour. */
CPU_INLINE void sub_q4_k(tile_sum sum, const tile_at *at, int64_t w, int64_t b, int64_t sub, const int high,
                         const int rows, const int panels)
{
    tile_dot dot;
    __m512i q[PANELS_MAX];
    __m512 d[PANELS_MAX], low[PANELS_MAX];
    dot_begin(dot, rows, panels);
    CPU_EACH(s, 8)
    {
        CPU_EACH(v, panels)
        {
            __m512i packed = _mm512_load_si512(at->w[v] + w + 320 + sub / 2 * 512 + s * 64);
            q[v] = high ? high_nibbles(packed) : low_nibbles(packed);
        }
        step(dot, q, at, (b + sub) * 32 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    {
        const uint8_t *scales = at->w[v] + w;
        d[v] = _mm512_mul_ps(halves(scales), bytes16(scales + 64 + sub * 16));
        low[v] = _mm512_mul_ps(halves(scales + 32), bytes16(scales + 192 + sub * 16));
        low[v] = _mm512_sub_ps(_mm512_setzero_ps(), low[v]);
    }
    scale(sum, dot, d, at, b + sub, rows, panels);
    shift(sum, low, at, b + sub, rows, panels);
}

CPU_INLINE void unit_q4_k(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int panels)
{
    CPU_ROLLED for (int64_t sub = 0; sub < 8; sub += 2)
    {
        sub_q4_k(sum, at, w, b, sub, 0, rows, panels);
        cpu_fetch_ahead(&at->ahead);
        sub_q4_k(sum, at, w, b, sub + 1, 1, rows, panels);
        cpu_fetch_ahead(&at->ahead);
    }
}

/* Half a block of 32: 16 k with a scale of their own. */
CPU_INLINE void half_q6_k(tile_sum sum, tile_dot dot, const tile_at *at, int64_t w, int64_t b, int64_t sub,
                          const int rows, const int panels)
{
    __m512i q[PANELS_MAX];
    __m512 d[PANELS_MAX];
    CPU_EACH(s, 4)
    {
        CPU_EACH(v, panels)
        {
            const uint8_t *numbers = at->w[v] + w + 320 + sub * 192;
            __m512i packed = _mm512_load_si512(numbers + s % 2 * 64), high = _mm512_load_si512(numbers + 128);
            __m512i top = s < 2 ? _mm512_slli_epi16(high, 4 - 2 * s) : _mm512_srli_epi16(high, 2 * s - 4);
            q[v] = _mm512_or_si512(s < 2 ? low_nibbles(packed) : high_nibbles(packed),
                                   _mm512_and_si512(top, _mm512_set1_epi8(0x30)));
        }
        step(dot, q, at, b * 32 + sub * 16 + s * 4, rows, panels);
    }
    CPU_EACH(v, panels)
    d[v] = _mm512_mul_ps(halves(at->w[v] + w), signed16(at->w[v] + w + 32 + sub * 16));
    scale(sum, dot, d, at, b + sub / 2, rows, panels);
}

CPU_INLINE void unit_q6_k(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int panels)
{
    tile_dot dot;
    CPU_ROLLED for (int64_t sub = 0; sub < 16; sub += 2)
    {
        CPU_EACH(m, rows)
        CPU_EACH(v, panels)
        dot[m][v] = _mm512_set1_epi32(aux_of(at, m, b + sub / 2)->c32);
        half_q6_k(sum, dot, at, w, b, sub, rows, panels);
        dot_begin_offset(dot, at, b + sub / 2, 2, rows, panels);
        CPU_EACH(m, rows)
        CPU_EACH(v, panels)
        dot[m][v] = _mm512_sub_epi32(dot[m][v], _mm512_set1_epi32(aux_of(at, m, b + sub / 2)->c32));
        half_q6_k(sum, dot, at, w, b, sub + 1, rows, panels);
        cpu_fetch_ahead(&at->ahead);
    }
}

/* ---- Tiles ---- */

CPU_INLINE tile_at tile_begin(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead, const int rows,
                              const int panels)
{
    tile_at at;
    at.ahead = ahead;
    at.blocks = t->x->cols / CPU_BLOCK;
    CPU_EACH(v, panels)
    at.w[v] = t->w.data + (size_t)(panel + v) * t->w.panel_bytes;
    CPU_EACH(m, rows)
    {
        at.x[m] = t->x->data + (t->row0 + row + m) * t->x->row_bytes;
        at.aux[m] = at.x[m] + cpu_record_blocks(t->x->cols);
    }
    return at;
}

CPU_INLINE void tile_end(const cpu_tile *t, int64_t row, int64_t panel, const tile_sum sum, const int rows,
                         const int panels)
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

#define TILE_KERNEL(layout, unit_k, unit_bytes, stream_rows)                                               \
    CPU_INLINE void tile_##layout(const cpu_tile *t, int64_t row, int64_t panel, cpu_ahead ahead,          \
                                  const int rows, const int panels)                                        \
    {                                                                                                      \
        tile_at at = tile_begin(t, row, panel, ahead, rows, panels);                                       \
        tile_sum sum;                                                                                      \
        CPU_EACH(m, rows)                                                                                  \
        CPU_EACH(v, panels)                                                                                \
        sum[m][v] = _mm512_setzero_ps();                                                                   \
        CPU_ROLLED for (int64_t b = 0, w = 0; b < at.blocks; b += (unit_k) / CPU_BLOCK, w += (unit_bytes)) \
        {                                                                                                  \
            unit_##layout(sum, &at, w, b, rows, panels);                                                   \
        }                                                                                                  \
        tile_end(t, row, panel, sum, rows, panels);                                                        \
    }                                                                                                      \
    TILE_ROWS(layout, pair, 2)                                                                             \
    TILE_ROWS(layout, single, 1)                                                                           \
    static void kernel_##layout(const cpu_tile *t)                                                         \
    {                                                                                                      \
        int64_t end = t->panel0 + t->panels;                                                               \
        for (int64_t panel = t->panel0, n; panel < end; panel += n) {                                      \
            n = t->rows <= (stream_rows) ? 1 : QR_MIN(2, end - panel);                                     \
            cpu_ahead ahead = cpu_ahead_of(t, panel + n, t->rows <= (stream_rows) ? 0 : n, ROWS_MAX,       \
                                           t->w.units * ((unit_k) / CPU_BLOCK));                           \
            for (int64_t row = 0, rows; row < t->rows; row += rows) {                                      \
                rows = cpu_tile_rows(t->rows - row, ROWS_MAX);                                             \
                (n == 2 ? pair_##layout : single_##layout)(t, row, panel, ahead, rows);                    \
                ahead.next += ahead.step * ahead.calls;                                                    \
            }                                                                                              \
        }                                                                                                  \
    }

TILE_KERNEL(q8_0, 64, 1088, 3)
TILE_KERNEL(q4_0, 64, 576, 1)
TILE_KERNEL(q4_1, 32, 320, 1)
TILE_KERNEL(q4_k, 256, 2368, 1)
TILE_KERNEL(q6_k, 256, 3392, 1)

/* ---- Activations ---- */

/* The largest magnitudes of two blocks, a and b, over the four 128-bit lanes: a, a, b, b. */
CPU_INLINE __m512 two_tops(const __m512 v[4])
{
    __m512 a = _mm512_max_ps(_mm512_abs_ps(v[0]), _mm512_abs_ps(v[1]));
    __m512 b = _mm512_max_ps(_mm512_abs_ps(v[2]), _mm512_abs_ps(v[3]));
    __m512 top = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    top = _mm512_max_ps(top, _mm512_shuffle_f32x4(top, top, 0xb1));
    top = _mm512_max_ps(top, _mm512_permute_ps(top, 0x4e));
    return _mm512_max_ps(top, _mm512_permute_ps(top, 0xb1));
}

/* a / 127, b / 127, 127 / a, 127 / b in one division; 127 / 0 is 0. */
CPU_INLINE __m128 two_scales(__m512 tops)
{
    __m128 both = _mm_unpacklo_ps(_mm512_castps512_ps128(tops), _mm512_extractf32x4_ps(tops, 2));
    __m128 by = _mm_set1_ps(127);
    __m128 top = _mm_movelh_ps(both, by), bottom = _mm_movelh_ps(by, both);
    return _mm_maskz_div_ps(_mm_cmp_ps_mask(bottom, _mm_setzero_ps(), _CMP_NEQ_UQ), top, bottom);
}

CPU_INLINE __m512 spread2(__m128 scales, const int a, const int b)
{
    __m512i at = _mm512_inserti64x4(_mm512_set1_epi32(a), _mm256_set1_epi32(b), 1);
    return _mm512_permutexvar_ps(at, _mm512_castps128_ps512(scales));
}

/* Two blocks at once, 64 values: a division, and the sums of q, are then shared. */
CPU_INLINE void quantize_two(const float *x, uint8_t *q, cpu_block *aux)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 v[4];
    __m512i n[4];
    CPU_EACH(i, 4)
    v[i] = _mm512_loadu_ps(x + 16 * i);
    __m128 scales = two_scales(two_tops(v));
    __m512 d = spread2(scales, 0, 1), inverse = spread2(scales, 2, 3);
    __m512 inverse_a = _mm512_shuffle_f32x4(inverse, inverse, 0x00);
    __m512 inverse_b = _mm512_shuffle_f32x4(inverse, inverse, 0xff);
    CPU_EACH(i, 4)
    n[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], i < 2 ? inverse_a : inverse_b));
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
    bytes = _mm512_permutexvar_epi32(order, bytes);
    _mm512_storeu_si512(q, bytes);

    /* Lanes: the sums of the first and the second half of a, then of b. */
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0x4e));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, 0xb1));
    __m512i first = _mm512_shuffle_i32x4(sums, sums, 0xa0);
    __m512i sum = _mm512_add_epi32(first, _mm512_shuffle_i32x4(sums, sums, 0xf5)),
            zero = _mm512_setzero_si512();
    __m512i block = _mm512_castps_si512(d);
    block =
        _mm512_mask_mov_epi32(block, 0x2222, _mm512_castps_si512(_mm512_mul_ps(d, _mm512_cvtepi32_ps(sum))));
    block = _mm512_mask_sub_epi32(block, 0x4444, zero, _mm512_slli_epi32(sum, 7));
    block = _mm512_mask_sub_epi32(block, 0x8888, zero, _mm512_slli_epi32(first, 5));
    _mm_storeu_si128((__m128i *)aux, _mm512_castsi512_si128(block));
    _mm_storeu_si128((__m128i *)(aux + 1), _mm512_extracti32x4_epi32(block, 2));
}

static void quantize(const float *x, int64_t cols, uint8_t *record)
{
    cpu_block *aux = (cpu_block *)(record + cpu_record_blocks(cols));
    int64_t k = 0;
    for (; k + 64 <= cols; k += 64)
        quantize_two(x + k, record + k, aux + k / CPU_BLOCK);
    if (k < cols) { /* one block is left */
        float last[64] = {0};
        uint8_t q[64];
        cpu_block two[2];
        memcpy(last, x + k, CPU_BLOCK * sizeof *x);
        quantize_two(last, q, two);
        memcpy(record + k, q, CPU_BLOCK);
        aux[k / CPU_BLOCK] = two[0];
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
