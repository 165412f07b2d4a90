#include <immintrin.h>

#include "backend/cpu/pack.h"
#include "backend/cpu/unroll.h"
#include "base/mem.h"
#include "quant/format_headers.inc"

/* The fast path of loading: sixteen rows of blocks become panels by transposing 4-byte words, as fast as memory is
 * written (every byte is read and written once; a first write to a page costs the system as much again). */

/* Sixteen rows at the same column; where the weight ends, its last row stands in for the missing ones. */
typedef struct panel_rows {
    const uint8_t *row[CPU_PANEL];
} panel_rows;

static panel_rows rows_of(const qr_weight *w, int64_t panel)
{
    panel_rows from;
    size_t row_bytes = qr_format_row_bytes(w->format, w->cols);
    for (int r = 0; r < CPU_PANEL; r++) {
        int64_t row = QR_MIN(panel * CPU_PANEL + r, w->rows - 1);
        from.row[r] = (const uint8_t *)w->part[QR_PART_DATA].data + (size_t)row * row_bytes;
    }
    return from;
}

CPU_INLINE void transpose8(__m256i v[8])
{
    __m256i a[8], b[8];
    CPU_EACH(i, 4)
    {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    CPU_EACH(i, 2)
    {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    CPU_EACH(i, 4)
    {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* Eight words of each of sixteen rows -> eight vectors of sixteen words. */
CPU_INLINE void load_words(const panel_rows *from, size_t at, __m256i low[8], __m256i high[8])
{
    CPU_EACH(r, 8)
    {
        low[r] = _mm256_loadu_si256((const __m256i *)(from->row[r] + at));
        high[r] = _mm256_loadu_si256((const __m256i *)(from->row[r + 8] + at));
    }
    transpose8(low);
    transpose8(high);
}

CPU_INLINE void spread_words(const panel_rows *from, size_t at, __m256i flip, uint8_t *out)
{
    __m256i low[8], high[8];
    load_words(from, at, low, high);
    CPU_EACH(i, 8)
    {
        _mm256_store_si256((__m256i *)(out + i * 64), _mm256_xor_si256(low[i], flip));
        _mm256_store_si256((__m256i *)(out + i * 64 + 32), _mm256_xor_si256(high[i], flip));
    }
}

/* Four words of each row, for blocks of 16 bytes of nibbles. */
CPU_INLINE void spread_nibbles(const panel_rows *from, size_t at, uint8_t *out)
{
    CPU_EACH(group, 4)
    {
        __m128i v[4], a[4];
        CPU_EACH(r, 4)
        v[r] = _mm_loadu_si128((const __m128i *)(from->row[group * 4 + r] + at));
        a[0] = _mm_unpacklo_epi32(v[0], v[1]);
        a[1] = _mm_unpackhi_epi32(v[0], v[1]);
        a[2] = _mm_unpacklo_epi32(v[2], v[3]);
        a[3] = _mm_unpackhi_epi32(v[2], v[3]);
        uint8_t *to = out + group * 16;
        _mm_store_si128((__m128i *)to, _mm_unpacklo_epi64(a[0], a[2]));
        _mm_store_si128((__m128i *)(to + 64), _mm_unpackhi_epi64(a[0], a[2]));
        _mm_store_si128((__m128i *)(to + 128), _mm_unpacklo_epi64(a[1], a[3]));
        _mm_store_si128((__m128i *)(to + 192), _mm_unpackhi_epi64(a[1], a[3]));
    }
}

CPU_INLINE void spread_halves(const panel_rows *from, size_t at, uint8_t *out)
{
    uint16_t halves[CPU_PANEL];
    CPU_EACH(r, CPU_PANEL)
    memcpy(&halves[r], from->row[r] + at, 2);
    memcpy(out, halves, sizeof halves);
}

static void pack_q8_0(const panel_rows *from, int64_t blocks, uint8_t *out)
{
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *unit = out + b / 2 * 1088;
        size_t at = (size_t)b * sizeof(qr_q8_0_block);
        spread_halves(from, at, unit + b % 2 * 32);
        spread_words(from, at + offsetof(qr_q8_0_block, q), flip, unit + 64 + b % 2 * 512);
    }
}

static void pack_q4_0(const panel_rows *from, int64_t blocks, uint8_t *out)
{
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *unit = out + b / 2 * 576;
        size_t at = (size_t)b * sizeof(qr_q4_0_block);
        spread_halves(from, at, unit + b % 2 * 32);
        spread_nibbles(from, at + offsetof(qr_q4_0_block, q), unit + 64 + b % 2 * 256);
    }
}

static void pack_q4_1(const panel_rows *from, int64_t blocks, uint8_t *out)
{
    for (int64_t b = 0; b < blocks; b++, out += 320) {
        size_t at = (size_t)b * sizeof(qr_q4_1_block);
        spread_halves(from, at + offsetof(qr_q4_1_block, d), out);
        spread_halves(from, at + offsetof(qr_q4_1_block, m), out + 32);
        spread_nibbles(from, at + offsetof(qr_q4_1_block, q), out + 64);
    }
}

static void spread_k_scales(const panel_rows *from, size_t at, uint8_t *out)
{
    for (int r = 0; r < CPU_PANEL; r++)
        for (int j = 0; j < 8; j++) {
            int scale, min;
            qr_block_k_scale_min(from->row[r] + at, j, &scale, &min);
            out[j * CPU_PANEL + r] = (uint8_t)scale;
            out[128 + j * CPU_PANEL + r] = (uint8_t)min;
        }
}

static void pack_q4_k(const panel_rows *from, int64_t blocks, uint8_t *out)
{
    for (int64_t b = 0; b < blocks; b++, out += 2368) {
        size_t at = (size_t)b * sizeof(qr_q4_k_block);
        spread_halves(from, at + offsetof(qr_q4_k_block, d), out);
        spread_halves(from, at + offsetof(qr_q4_k_block, dmin), out + 32);
        spread_k_scales(from, at + offsetof(qr_q4_k_block, scales), out + 64);
        for (size_t part = 0; part < 4; part++)
            spread_words(from, at + offsetof(qr_q4_k_block, q) + part * 32, _mm256_setzero_si256(),
                         out + 320 + part * 512);
    }
}

/* Words of F32, or pairs of BF16, in whole eights; returns the count. */
static int64_t pack_words(const panel_rows *from, int64_t words, uint8_t *out)
{
    int64_t i = 0;
    for (; i + 8 <= words; i += 8)
        spread_words(from, (size_t)i * 4, _mm256_setzero_si256(), out + i * 64);
    return i;
}

/* A pair of F16 of sixteen rows, from its words, becomes two vectors of sixteen. */
CPU_INLINE void split_pairs(__m256i low, __m256i high, uint8_t *out)
{
    __m256i mask = _mm256_set1_epi32(0xffff);
    __m256i even = _mm256_packus_epi32(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
    __m256i odd = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
    _mm256_store_si256((__m256i *)out, _mm256_permute4x64_epi64(even, 0xd8));
    _mm256_store_si256((__m256i *)(out + 32), _mm256_permute4x64_epi64(odd, 0xd8));
}

static int64_t pack_f16(const panel_rows *from, int64_t cols, uint8_t *out)
{
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
        __m256i low[8], high[8];
        load_words(from, (size_t)k * 2, low, high);
        CPU_EACH(i, 8)
        split_pairs(low[i], high[i], out + (k + 2 * i) * 32);
    }
    return k;
}

/* Dense rows in the format they are held in; a width that is no multiple of the vector ends one by one. */
static bool pack_same(const qr_weight *w, cpu_layout layout, const panel_rows *from, uint8_t *out)
{
    int64_t done;
    if (layout == CPU_LAYOUT_F32 && w->format == QR_FORMAT_f32)
        done = pack_words(from, w->cols, out);
    else if (layout == CPU_LAYOUT_BF16 && w->format == QR_FORMAT_bf16)
        done = 2 * pack_words(from, w->cols / 2, out);
    else if (layout == CPU_LAYOUT_F16 && w->format == QR_FORMAT_f16)
        done = pack_f16(from, w->cols, out);
    else
        return false;
    for (int64_t k = done; k < w->cols; k++)
        for (int r = 0; r < CPU_PANEL; r++) {
            if (layout == CPU_LAYOUT_F32)
                memcpy(out + (k * CPU_PANEL + r) * 4, from->row[r] + k * 4, 4);
            else if (layout == CPU_LAYOUT_BF16)
                memcpy(out + (k / 2 * CPU_PANEL + r) * 4 + k % 2 * 2, from->row[r] + k * 2, 2);
            else
                memcpy(out + (k * CPU_PANEL + r) * 2, from->row[r] + k * 2, 2);
        }
    return true;
}

void cpu_pack_panel_avx2(const qr_weight *w, cpu_layout layout, int64_t panel, uint8_t *out)
{
    panel_rows from = rows_of(w, panel);
    int64_t blocks = w->cols / qr_format_get(w->format)->block;
    switch (w->format) {
    case QR_FORMAT_q8_0: pack_q8_0(&from, blocks, out); return;
    case QR_FORMAT_q4_0: pack_q4_0(&from, blocks, out); return;
    case QR_FORMAT_q4_1: pack_q4_1(&from, blocks, out); return;
    case QR_FORMAT_q4_k: pack_q4_k(&from, blocks, out); return;
    default:
        if (!pack_same(w, layout, &from, out))
            cpu_pack_panel_generic(w, layout, panel, out);
    }
}
