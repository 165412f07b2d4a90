#include "backend/cpu/linear_avx2.h"

#include <string.h>

#include "backend/cpu/pack.h"

/* Products of 8-bit activations with block formats: maddubs takes 4 k of 8 rows at a time, unsigned bytes of the weights
 * and signed ones of a broadcast. A panel of sixteen rows is two halves of eight. Pair sums are 16-bit, so how many steps
 * may be added before they are widened depends on the bits of a weight: 8 for nibbles, 2 for six bits, 1 for eight. */

/* Few rows take both halves at once, so that memory is read once and in order; more rows take one half at a time, so
 * that sums stay in registers. */
enum { ROWS_MAX = 4, WIDE_ROWS = 2 };

typedef struct tile_at {
    const uint8_t *numbers, *halves,
        *bytes; /* the panel, as far in as the half's numbers, 2-byte and 1-byte scales are */
    const uint8_t *x[ROWS_MAX];
    const uint8_t *aux[ROWS_MAX]; /* cpu_block [blocks] */
    int64_t blocks;
    cpu_ahead ahead;
} tile_at;

typedef __m256 tile_sum[ROWS_MAX][2];
typedef __m256i tile_dot[ROWS_MAX][2];

CPU_INLINE __m256i splat4(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
CPU_INLINE const cpu_block *aux_of(const tile_at *at, int m, int64_t b)
{
    return (const cpu_block *)at->aux[m] + b;
}
CPU_INLINE __m256i ones(void) { return _mm256_set1_epi16(1); }
CPU_INLINE __m256i numbers(const tile_at *at, int64_t w, const int h)
{
    return _mm256_load_si256((const __m256i *)(at->numbers + w + h * 32));
}

/* Scales of half h: `w` is where those of the panel's sixteen rows begin. */
CPU_INLINE __m256 halves(const tile_at *at, int64_t w, const int h)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(at->halves + w + h * 16)));
}
CPU_INLINE __m128i eight_bytes(const tile_at *at, int64_t w, const int h)
{
    return _mm_loadl_epi64((const __m128i *)(at->bytes + w + h * 8));
}
CPU_INLINE __m256 bytes8(const tile_at *at, int64_t w, const int h)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(at, w, h)));
}
CPU_INLINE __m256 signed8(const tile_at *at, int64_t w, const int h)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(at, w, h)));
}
CPU_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
CPU_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

CPU_INLINE void dot_begin(tile_dot dot, const int rows, const int wide)
{
    CPU_EACH(m, rows)
    CPU_EACH(h, wide)
    dot[m][h] = _mm256_setzero_si256();
}

/* dot (16-bit) += one step. */
CPU_INLINE void step(tile_dot dot, const __m256i q[2], const tile_at *at, int64_t k, const int rows,
                     const int wide)
{
    CPU_EACH(m, rows)
    {
        __m256i x = splat4(at->x[m] + k);
        CPU_EACH(h, wide)
        {
            dot[m][h] = _mm256_add_epi16(dot[m][h], _mm256_maddubs_epi16(q[h], x));
            CPU_KEEP(dot[m][h]);
        }
    }
}

/* The same of two vectors of weights against one x. */
CPU_INLINE void step_two(tile_dot a_dot, tile_dot b_dot, const __m256i a[2], const __m256i b[2],
                         const tile_at *at, int64_t k, const int rows, const int wide)
{
    CPU_EACH(m, rows)
    {
        __m256i x = splat4(at->x[m] + k);
        CPU_EACH(h, wide)
        {
            a_dot[m][h] = _mm256_add_epi16(a_dot[m][h], _mm256_maddubs_epi16(a[h], x));
            b_dot[m][h] = _mm256_add_epi16(b_dot[m][h], _mm256_maddubs_epi16(b[h], x));
            CPU_KEEP(a_dot[m][h]);
            CPU_KEEP(b_dot[m][h]);
        }
    }
}

CPU_INLINE void widen(tile_dot dot, const int rows, const int wide)
{
    CPU_EACH(m, rows)
    CPU_EACH(h, wide)
    dot[m][h] = _mm256_madd_epi16(dot[m][h], ones());
}

/* sum += d (of the weights) * d (of x) * dot */
CPU_INLINE void scale(tile_sum sum, tile_dot dot, const __m256 d[2], const tile_at *at, int64_t b,
                      const int rows, const int wide)
{
    CPU_EACH(m, rows)
    {
        __m256 dx = _mm256_set1_ps(aux_of(at, m, b)->d);
        CPU_EACH(h, wide)
        sum[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m][h]), _mm256_mul_ps(d[h], dx), sum[m][h]);
    }
}

CPU_INLINE void shift(tile_sum sum, const __m256 low[2], const tile_at *at, int64_t b, const int rows,
                      const int wide)
{
    CPU_EACH(m, rows)
    {
        __m256 ds = _mm256_set1_ps(aux_of(at, m, b)->ds);
        CPU_EACH(h, wide)
        sum[m][h] = _mm256_fmadd_ps(low[h], ds, sum[m][h]);
    }
}

/* Below: one unit of each layout, `w` bytes into the panel, whose first block is b. */

/* The byte q + 128 is two nibbles: 16-bit sums of each over the whole block need one widening at the end. Zen 4, one core,
 * 12 rows: 136 GOP/s, 58 % of what maddubs, madd and add can do; |q| against x with q's sign, widened every step, reaches
 * 128, since sign, maddubs and madd share two of the four pipes. */
CPU_INLINE void block_q8_0(tile_sum sum, const tile_at *at, int64_t w, int64_t b, const int half,
                           const int rows, const int wide)
{
    tile_dot low_dot, high_dot;
    __m256i low[2], high[2];
    __m256 d[2];
    dot_begin(low_dot, rows, wide);
    dot_begin(high_dot, rows, wide);
    CPU_EACH(s, 8)
    {
        CPU_EACH(h, wide)
        {
            __m256i q = numbers(at, w + 64 + half * 512 + s * 64, h);
            low[h] = low_nibbles(q);
            high[h] = high_nibbles(q);
        }
        step_two(low_dot, high_dot, low, high, at, (b + half) * 32 + s * 4, rows, wide);
    }
    CPU_EACH(m, rows)
    {
        __m256i offset = _mm256_set1_epi32(aux_of(at, m, b + half)->c128);
        CPU_EACH(h, wide)
        {
            __m256i tops = _mm256_madd_epi16(high_dot[m][h], _mm256_set1_epi16(16));
            low_dot[m][h] =
                _mm256_add_epi32(_mm256_madd_epi16(low_dot[m][h], ones()), _mm256_add_epi32(tops, offset));
        }
    }
    CPU_EACH(h, wide)
    d[h] = halves(at, w + half * 32, h);
    scale(sum, low_dot, d, at, b + half, rows, wide);
}

CPU_INLINE void unit_q8_0(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int wide)
{
    block_q8_0(sum, at, w, b, 0, rows, wide);
    cpu_fetch_ahead(&at->ahead);
    if (b + 1 < at->blocks)
        block_q8_0(sum, at, w, b, 1, rows, wide);
    cpu_fetch_ahead(&at->ahead);
}

/* Eight steps of nibbles: 8 * 15 * 127 * 2 fits 16 bits. */
CPU_INLINE void dot_nibbles(tile_dot dot, const tile_at *at, int64_t w, int64_t k, const int rows,
                            const int wide)
{
    __m256i low[2], high[2];
    dot_begin(dot, rows, wide);
    CPU_EACH(s, 4)
    {
        CPU_EACH(h, wide)
        {
            __m256i packed = numbers(at, w + s * 64, h);
            low[h] = low_nibbles(packed);
            high[h] = high_nibbles(packed);
        }
        step(dot, low, at, k + s * 4, rows, wide);
        step(dot, high, at, k + s * 4 + 16, rows, wide);
    }
    widen(dot, rows, wide);
}

CPU_INLINE void block_q4_0(tile_sum sum, const tile_at *at, int64_t w, int64_t b, const int half,
                           const int rows, const int wide)
{
    tile_dot dot;
    __m256 d[2];
    dot_nibbles(dot, at, w + 64 + half * 256, (b + half) * 32, rows, wide);
    CPU_EACH(m, rows)
    {
        __m256i offset = _mm256_set1_epi32(aux_of(at, m, b + half)->c128 >> 4);
        CPU_EACH(h, wide)
        dot[m][h] = _mm256_add_epi32(dot[m][h], offset);
    }
    CPU_EACH(h, wide)
    d[h] = halves(at, w + half * 32, h);
    scale(sum, dot, d, at, b + half, rows, wide);
}

CPU_INLINE void unit_q4_0(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int wide)
{
    block_q4_0(sum, at, w, b, 0, rows, wide);
    cpu_fetch_ahead(&at->ahead);
    if (b + 1 < at->blocks)
        block_q4_0(sum, at, w, b, 1, rows, wide);
    cpu_fetch_ahead(&at->ahead);
}

CPU_INLINE void unit_q4_1(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int wide)
{
    tile_dot dot;
    __m256 d[2], low[2];
    dot_nibbles(dot, at, w + 64, b * 32, rows, wide);
    CPU_EACH(h, wide)
    {
        d[h] = halves(at, w, h);
        low[h] = halves(at, w + 32, h);
    }
    scale(sum, dot, d, at, b, rows, wide);
    shift(sum, low, at, b, rows, wide);
    cpu_fetch_ahead(&at->ahead);
}

CPU_INLINE void sub_q4_k(tile_sum sum, const tile_at *at, int64_t w, int64_t b, int64_t sub, const int high,
                         const int rows, const int wide)
{
    tile_dot dot;
    __m256i q[2];
    __m256 d[2], low[2];
    dot_begin(dot, rows, wide);
    CPU_EACH(s, 8)
    {
        CPU_EACH(h, wide)
        {
            __m256i packed = numbers(at, w + 320 + sub / 2 * 512 + s * 64, h);
            q[h] = high ? high_nibbles(packed) : low_nibbles(packed);
        }
        step(dot, q, at, (b + sub) * 32 + s * 4, rows, wide);
    }
    widen(dot, rows, wide);
    CPU_EACH(h, wide)
    {
        d[h] = _mm256_mul_ps(halves(at, w, h), bytes8(at, w + 64 + sub * 16, h));
        low[h] = _mm256_mul_ps(halves(at, w + 32, h), bytes8(at, w + 192 + sub * 16, h));
        low[h] = _mm256_sub_ps(_mm256_setzero_ps(), low[h]);
    }
    scale(sum, dot, d, at, b + sub, rows, wide);
    shift(sum, low, at, b + sub, rows, wide);
}

CPU_INLINE void unit_q4_k(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int wide)
{
    CPU_ROLLED for (int64_t sub = 0; sub < 8; sub += 2)
    {
        sub_q4_k(sum, at, w, b, sub, 0, rows, wide);
        cpu_fetch_ahead(&at->ahead);
        sub_q4_k(sum, at, w, b, sub + 1, 1, rows, wide);
        cpu_fetch_ahead(&at->ahead);
    }
}

CPU_INLINE __m256i six_bits(const tile_at *at, int64_t w, const int s, const int h)
{
    __m256i packed = numbers(at, w + s % 2 * 64, h), high = numbers(at, w + 128, h);
    __m256i top = s < 2 ? _mm256_slli_epi16(high, 4 - 2 * s) : _mm256_srli_epi16(high, 2 * s - 4);
    return _mm256_or_si256(s < 2 ? low_nibbles(packed) : high_nibbles(packed),
                           _mm256_and_si256(top, _mm256_set1_epi8(0x30)));
}

/* 16 k with a scale of their own: two steps of 63 * 127 * 2 fit 16 bits, four do not. */
CPU_INLINE void half_q6_k(tile_sum sum, const tile_at *at, int64_t w, int64_t b, int64_t sub,
                          const int second, const int rows, const int wide)
{
    tile_dot dot, pairs;
    __m256i q[2];
    __m256 d[2];
    CPU_EACH(m, rows)
    CPU_EACH(h, wide)
    {
        const cpu_block *aux = aux_of(at, m, b + sub / 2);
        dot[m][h] = _mm256_set1_epi32(second ? (aux->c128 >> 2) - aux->c32 : aux->c32);
    }
    CPU_EACH(two, 2)
    {
        dot_begin(pairs, rows, wide);
        CPU_EACH(s, 2)
        {
            CPU_EACH(h, wide)
            q[h] = six_bits(at, w + 320 + sub * 192, two * 2 + s, h);
            step(pairs, q, at, b * 32 + sub * 16 + (two * 2 + s) * 4, rows, wide);
        }
        widen(pairs, rows, wide);
        CPU_EACH(m, rows)
        CPU_EACH(h, wide)
        dot[m][h] = _mm256_add_epi32(dot[m][h], pairs[m][h]);
    }
    CPU_EACH(h, wide)
    d[h] = _mm256_mul_ps(halves(at, w, h), signed8(at, w + 32 + sub * 16, h));
    scale(sum, dot, d, at, b + sub / 2, rows, wide);
}

CPU_INLINE void unit_q6_k(tile_sum sum, tile_at *at, int64_t w, int64_t b, const int rows, const int wide)
{
    CPU_ROLLED for (int64_t sub = 0; sub < 16; sub += 2)
    {
        half_q6_k(sum, at, w, b, sub, 0, rows, wide);
        half_q6_k(sum, at, w, b, sub + 1, 1, rows, wide);
        cpu_fetch_ahead(&at->ahead);
    }
}

/* ---- Tiles ---- */

CPU_INLINE tile_at tile_begin(const cpu_tile *t, int64_t row, int64_t panel, int half, cpu_ahead ahead,
                              const int rows)
{
    const uint8_t *w = t->w.data + (size_t)panel * t->w.panel_bytes;
    tile_at at = {.numbers = w + half * 32,
                  .halves = w + half * 16,
                  .bytes = w + half * 8,
                  .blocks = t->x->cols / CPU_BLOCK,
                  .ahead = ahead};
    CPU_EACH(m, rows)
    {
        at.x[m] = t->x->data + (t->row0 + row + m) * t->x->row_bytes;
        at.aux[m] = at.x[m] + cpu_record_blocks(t->x->cols);
    }
    return at;
}

#define TILE_CASE(layout, n, wide)                          \
    case n:                                                 \
        tile_##layout(t, row, panel, half, ahead, n, wide); \
        break;

#define TILE_KERNEL(layout, unit_k, unit_bytes)                                                             \
    CPU_INLINE void tile_##layout(const cpu_tile *t, int64_t row, int64_t panel, int half, cpu_ahead ahead, \
                                  const int rows, const int wide)                                           \
    {                                                                                                       \
        tile_at at = tile_begin(t, row, panel, half, ahead, rows);                                          \
        tile_sum sum;                                                                                       \
        CPU_EACH(m, rows)                                                                                   \
        CPU_EACH(h, wide)                                                                                   \
        sum[m][h] = _mm256_setzero_ps();                                                                    \
        CPU_ROLLED for (int64_t b = 0, w = 0; b < at.blocks; b += (unit_k) / CPU_BLOCK, w += (unit_bytes))  \
            unit_##layout(sum, &at, w, b, rows, wide);                                                      \
        CPU_EACH(m, rows)                                                                                   \
        CPU_EACH(h, wide)                                                                                   \
        cpu_store_half(t, row + m, panel, half + h, sum[m][h]);                                             \
    }                                                                                                       \
    static void rows_##layout(const cpu_tile *t, int64_t row, int64_t panel, int half, cpu_ahead ahead,     \
                              int64_t rows)                                                                 \
    {                                                                                                       \
        switch (rows) {                                                                                     \
            TILE_CASE(layout, 1, 2)                                                                         \
            TILE_CASE(layout, 2, 2)                                                                         \
            TILE_CASE(layout, 3, 1)                                                                         \
            TILE_CASE(layout, 4, 1)                                                                         \
        }                                                                                                   \
    }                                                                                                       \
    static void kernel_##layout(const cpu_tile *t)                                                          \
    {                                                                                                       \
        for (int64_t panel = t->panel0; panel < t->panel0 + t->panels; panel++) {                           \
            cpu_ahead ahead = cpu_ahead_of(t, panel + 1, t->rows <= WIDE_ROWS ? 0 : 1, ROWS_MAX,            \
                                           t->w.units * ((unit_k) / CPU_BLOCK));                            \
            for (int64_t row = 0, rows; row < t->rows; row += rows) {                                       \
                rows = cpu_tile_rows(t->rows - row, ROWS_MAX);                                              \
                rows_##layout(t, row, panel, 0, ahead, rows);                                               \
                if (rows > WIDE_ROWS)                                                                       \
                    rows_##layout(t, row, panel, 1, (cpu_ahead){0}, rows);                                  \
                ahead.next += ahead.step * ahead.calls;                                                     \
            }                                                                                               \
        }                                                                                                   \
    }

TILE_KERNEL(q8_0, 64, 1088)
TILE_KERNEL(q4_0, 64, 576)
TILE_KERNEL(q4_1, 32, 320)
TILE_KERNEL(q4_k, 256, 2368)
TILE_KERNEL(q6_k, 256, 3392)

/* ---- Activations ---- */

CPU_INLINE float max_of(__m256 v)
{
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

CPU_INLINE int sum_of(__m256i v)
{
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

static void quantize(const float *x, int64_t cols, uint8_t *record)
{
    cpu_block *aux = (cpu_block *)(record + cpu_record_blocks(cols));
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t b = 0; b < cols / CPU_BLOCK; b++, x += CPU_BLOCK) {
        __m256 v[4], top = _mm256_setzero_ps();
        __m256i q[4];
        CPU_EACH(i, 4)
        {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[i]));
        }
        float most = max_of(top);
        __m256 inverse = _mm256_set1_ps(most > 0 ? 127.0f / most : 0);
        CPU_EACH(i, 4)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        int first = sum_of(_mm256_add_epi32(q[0], q[1])), second = sum_of(_mm256_add_epi32(q[2], q[3]));
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_store_si256((__m256i *)(record + b * CPU_BLOCK), _mm256_permutevar8x32_epi32(bytes, order));
        int sum = (int)((uint32_t)first + (uint32_t)second);
        float d = most / 127.0f;
        aux[b] = (cpu_block){
            .d = d, .ds = d * (float)sum, .c128 = cpu_times(-128, sum), .c32 = cpu_times(-32, first)};
    }
}

const cpu_linear_kernels cpu_linear_avx2 = {
    .name = "avx2",
    .form = {[CPU_LAYOUT_Q8_0] = CPU_FORM_Q8,
             [CPU_LAYOUT_Q4_0] = CPU_FORM_Q8,
             [CPU_LAYOUT_Q4_1] = CPU_FORM_Q8,
             [CPU_LAYOUT_Q4_K] = CPU_FORM_Q8,
             [CPU_LAYOUT_Q6_K] = CPU_FORM_Q8},
    .tile = {[CPU_LAYOUT_PARTS] = cpu_tile_parts,
             [CPU_LAYOUT_F32] = cpu_tile_f32_avx2,
             [CPU_LAYOUT_F16] = cpu_tile_f16_avx2,
             [CPU_LAYOUT_BF16] = cpu_tile_bf16_avx2,
             [CPU_LAYOUT_Q8_0] = kernel_q8_0,
             [CPU_LAYOUT_Q4_0] = kernel_q4_0,
             [CPU_LAYOUT_Q4_1] = kernel_q4_1,
             [CPU_LAYOUT_Q4_K] = kernel_q4_k,
             [CPU_LAYOUT_Q6_K] = kernel_q6_k},
    .quantize = quantize,
};
