/* The attention kernel of one tile of keys, once for every instruction set. For each query row of the tile:
 * scores = q K^T, max, p = 2^(score - max), sum, out = p V. Keys are lanes in the first product and head dimensions
 * in the second, so that every sum is one chain per lane in the order of dimensions, or of keys: the bits do not
 * depend on which rows share the call. Keys outside a row's range get p = 0; keys outside all rows' ranges are not
 * read as values, and as keys they only reach lanes that are masked.
 * Work: 4 x head_dim FLOPs a query-key pair; the data (K and V of the tile) stays in L1 or L2 between row groups.
 * Private to backend/cpu/. Thread: any.
 */
#include "backend/cpu/simd.h"
#include "backend/cpu/unroll.h"
#include "backend/cpu/vector.h"
#include "base/mem.h"

enum { SCORES = CPU_ATTENTION_TILE };

SIMD_INLINE vf load_kv(const void *base, int64_t index, const qr_dtype dtype)
{
    if (dtype == QR_DTYPE_F32)
        return vf_load((const float *)base + index);
    if (dtype == QR_DTYPE_F16)
        return vf_load_f16((const uint16_t *)base + index);
    return vf_load_bf16((const uint16_t *)base + index);
}

/* The last vector of a head whose dimension is no multiple of the lanes: `left` of it. */
SIMD_INLINE vf load_kv_some(const void *base, int64_t index, int32_t left, const qr_dtype dtype)
{
    if (left >= VF)
        return load_kv(base, index, dtype);
    if (dtype == QR_DTYPE_F32)
        return vf_load_n((const float *)base + index, left);
    uint16_t some[VF] = {0};
    memcpy(some, (const uint16_t *)base + index, (size_t)left * sizeof(some[0]));
    return load_kv(some, 0, dtype);
}

/* The cache line that holds item `index` of a page, into L2: blocks that do not ascend are runs of some 2 KB, too short
 * for the hardware's own prefetcher (a Zen 4 core: 11 GB/s alone, 12 with prefetches into L1, 20 into L2). */
SIMD_INLINE void fetch_kv(const void *base, int64_t index, const qr_dtype dtype)
{
    __builtin_prefetch((const char *)base + index * (dtype == QR_DTYPE_F32 ? 4 : 2), 0, 2);
}

SIMD_INLINE const void *offset_kv(const void *base, int64_t index, const qr_dtype dtype)
{
    return (const char *)base + index * (dtype == QR_DTYPE_F32 ? 4 : 2);
}

/* scores[m][VF (group0 + g) ..] for `groups` groups of VF keys. */
SIMD_INLINE void score_groups(const cpu_attention_tile *t, int32_t group0, const int rows, const int groups,
                              const qr_dtype dtype)
{
    const int64_t dim = t->head_dim;
    const void *k[8], *next[8];
    const int64_t line = 64 / (dtype == QR_DTYPE_F32 ? 4 : 2), fetch_step = VF >= line ? 1 : line / VF;
    vf acc[CPU_ATTENTION_ROWS][8];
    CPU_EACH(g, groups)
    {
        uint32_t slot = (uint32_t)(t->start + (group0 + g) * VF), block = slot / (uint32_t)t->block_size;
        int64_t at = (slot - block * (uint32_t)t->block_size) * dim;
        k[g] = offset_kv(t->k_blocks[block], at, dtype);
        next[g] = t->ahead > 0 ? offset_kv(t->k_blocks[block + (uint32_t)t->ahead], at, dtype) : NULL;
    }
    CPU_EACH(m, rows)
    CPU_EACH(g, groups)
    acc[m][g] = vf_set(0);
    for (int64_t d = 0; d < dim; d++) {
        vf key[8];
        if (t->ahead > 0 && d % fetch_step == 0) {
            CPU_EACH(g, groups)
            fetch_kv(next[g], d * VF, dtype);
        }
        CPU_EACH(g, groups)
        key[g] = load_kv(k[g], d * VF, dtype);
        CPU_EACH(m, rows)
        {
            vf q = vf_set(t->q[m * dim + d]);
            CPU_EACH(g, groups)
            acc[m][g] = vf_fma(q, key[g], acc[m][g]);
        }
    }
    CPU_EACH(m, rows)
    CPU_EACH(g, groups)
    vf_store(t->scores + m * SCORES + (group0 + g) * VF, acc[m][g]);
}

/* Scores of row m in groups [group0, group1) -> p, max and sum. */
SIMD_INLINE void softmax_row(const cpu_attention_tile *t, int m, int32_t group0, int32_t group1)
{
    float *s = t->scores + m * SCORES;
    vf top = vf_set(CPU_ATTENTION_EMPTY), sum = vf_set(0);
    for (int32_t g = group0; g < group1; g++) {
        int32_t from = t->first[m] - g * VF, to = t->last[m] - g * VF;
        vf x = vf_load(s + g * VF);
        if (from > 0 || to < VF) {
            x = vf_keep(x, from, to);
            vf_store(s + g * VF, x);
        }
        top = vf_max(top, x);
    }
    t->max[m] = vf_top(top);
    vf max = vf_set(t->max[m]);
    for (int32_t g = group0; g < group1; g++) {
        vf p = vf_exp2(vf_sub(vf_load(s + g * VF), max));
        vf_store(s + g * VF, p);
        sum = vf_add(sum, p);
    }
    t->sum[m] = vf_sum(sum);
}

/* out[m][col0 + n VF ..] for `vectors` vectors: sum over keys [from, to) of p x value. left: columns from col0 on. */
SIMD_INLINE void value_columns(const cpu_attention_tile *t, int32_t from, int32_t to, int32_t col0,
                               int32_t left, const int rows, const int vectors, const qr_dtype dtype)
{
    const int64_t dim = t->head_dim, line = 64 / (dtype == QR_DTYPE_F32 ? 4 : 2);
    vf acc[CPU_ATTENTION_ROWS][8];
    CPU_EACH(m, rows)
    CPU_EACH(n, vectors)
    acc[m][n] = vf_set(0);
    for (int32_t key = from; key < to;) {
        int32_t block = (t->start + key) / t->block_size, slot = (t->start + key) % t->block_size;
        int32_t end = QR_MIN(to, key + t->block_size - slot);
        const void *v = offset_kv(t->v_blocks[block], slot * dim + col0, dtype);
        const void *next =
            t->ahead > 0 ? offset_kv(t->v_blocks[block + t->ahead], slot * dim + col0, dtype) : NULL;
        for (; key < end; key++, v = offset_kv(v, dim, dtype)) {
            vf value[8];
            if (t->ahead > 0) {
                for (int32_t i = 0; i < vectors * VF; i += (int32_t)line)
                    fetch_kv(next, i, dtype);
                next = offset_kv(next, dim, dtype);
            }
            CPU_EACH(n, vectors)
            value[n] = vectors == 1 ? load_kv_some(v, 0, left, dtype) : load_kv(v, n * VF, dtype);
            CPU_EACH(m, rows)
            {
                vf p = vf_set(t->scores[m * SCORES + key]);
                CPU_EACH(n, vectors)
                acc[m][n] = vf_fma(p, value[n], acc[m][n]);
            }
        }
    }
    CPU_EACH(m, rows)
    CPU_EACH(n, vectors)
    {
        float *out = t->out + m * dim + col0 + n * VF;
        if (vectors == 1 && left < VF)
            vf_store_n(out, acc[m][n], left);
        else
            vf_store(out, acc[m][n]);
    }
}

SIMD_INLINE void tile_rows(const cpu_attention_tile *t, const int rows, const qr_dtype dtype)
{
    /* As many vectors side by side as registers hold with `rows` sums of each: of 32 with AVX-512, else 16. */
    const int wide = VF == 16 || rows <= 2 ? 4 : rows <= 4 ? 3 : 2;
    int32_t from = SCORES, to = 0;
    for (int m = 0; m < rows; m++) {
        t->max[m] = CPU_ATTENTION_EMPTY;
        t->sum[m] = 0;
        if (t->first[m] < t->last[m]) {
            from = QR_MIN(from, t->first[m]);
            to = QR_MAX(to, t->last[m]);
        }
    }
    if (from >= to)
        return;
    int32_t group0 = from / VF, group1 = (to + VF - 1) / VF, g = group0;
    for (; g + wide <= group1; g += wide)
        score_groups(t, g, rows, wide, dtype);
    for (; g + 2 <= group1; g += 2)
        score_groups(t, g, rows, 2, dtype);
    if (g < group1)
        score_groups(t, g, rows, 1, dtype);
    for (int m = 0; m < rows; m++)
        softmax_row(t, m, group0, group1);
    int32_t col = 0;
    for (; col + wide * VF <= t->head_dim; col += wide * VF)
        value_columns(t, from, to, col, t->head_dim - col, rows, wide, dtype);
    for (; col + 2 * VF <= t->head_dim; col += 2 * VF)
        value_columns(t, from, to, col, t->head_dim - col, rows, 2, dtype);
    for (; col < t->head_dim; col += VF)
        value_columns(t, from, to, col, t->head_dim - col, rows, 1, dtype);
}

/* Rows that a pass takes of those left: each size is code of its own, so five go as 3 + 2, and without vector
 * instructions two at a time must do. */
SIMD_INLINE int pass_rows(int left)
{
    if (SIMD_NONE)
        return QR_MIN(left, 2);
    return left == 5 ? 3 : left;
}

SIMD_INLINE void tile_any(const cpu_attention_tile *tile, const qr_dtype dtype)
{
    cpu_attention_tile t = *tile;
    for (int left = tile->rows; left > 0; left -= t.rows) {
        t.rows = pass_rows(left);
        switch (t.rows) {
        case 1: tile_rows(&t, 1, dtype); break;
        case 2: tile_rows(&t, 2, dtype); break;
#if !SIMD_NONE
        case 3: tile_rows(&t, 3, dtype); break;
        case 4: tile_rows(&t, 4, dtype); break;
        case 6: tile_rows(&t, 6, dtype); break;
#endif
        }
        t.q += (int64_t)t.rows * t.head_dim;
        t.out += (int64_t)t.rows * t.head_dim;
        t.first += t.rows;
        t.last += t.rows;
        t.max += t.rows;
        t.sum += t.rows;
    }
}

static void attention_f32(const cpu_attention_tile *t) { tile_any(t, QR_DTYPE_F32); }
static void attention_f16(const cpu_attention_tile *t) { tile_any(t, QR_DTYPE_F16); }
static void attention_bf16(const cpu_attention_tile *t) { tile_any(t, QR_DTYPE_BF16); }

static void attention_merge(float *acc, float *acc_max, float *acc_sum, const float *part, float part_max,
                            float part_sum, int32_t head_dim)
{
    float max = QR_MAX(*acc_max, part_max), both[VF] = {*acc_max - max, part_max - max};
    vf_store(both, vf_exp2(vf_load(both)));
    vf a = vf_set(both[0]), b = vf_set(both[1]);
    for (int32_t i = 0, left = head_dim; left > 0; i += VF, left -= VF) {
        if (left >= VF)
            vf_store(acc + i, vf_fma(vf_load(part + i), b, vf_mul(vf_load(acc + i), a)));
        else
            vf_store_n(acc + i, vf_fma(vf_load_n(part + i, left), b, vf_mul(vf_load_n(acc + i, left), a)),
                       left);
    }
    *acc_max = max;
    *acc_sum = *acc_sum * both[0] + part_sum * both[1];
}
