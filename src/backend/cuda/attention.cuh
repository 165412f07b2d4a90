/* What the attention kernels share, so that prefill and decode give the same bits.
 *
 * Keys are taken in tiles of CUDA_TILE and summed in splits of CUDA_SPLIT absolute positions. In a split, products run
 * along the keys from left to right in steps of 16, on the same instruction (wgmma) whichever operand the keys are;
 * splits are added from left to right. The sum of a tile's weights has one tree too: key = 64 b + 16 w + 8 h + n of the
 * tile; for each n and w over b, h ascending, then over w pairwise; tiles ascending; at the split's end over n pairwise.
 * Maxima are rounded up to whole numbers (scores are exponents of 2), so that rescaling by a new maximum multiplies by
 * a power of two and changes no bit.
 *
 * Pages of 16-bit numbers hold images that products read (wgmma.cuh), a row of the image per key, so that a tile comes
 * into shared memory by a few bulk copies. Private to backend/cuda/. Thread: any.
 */
#ifndef QR_BACKEND_CUDA_ATTENTION_CUH
#define QR_BACKEND_CUDA_ATTENTION_CUH

#include <cuda_fp8.h>

#include "backend/cuda/kernels.h"
#include "backend/cuda/wgmma.cuh"

typedef __nv_fp8_e4m3 fp8;

enum { CUDA_TILE = 128, PAGE_KEYS = 32 /* a block's keys are a multiple */ };

/* Where number `dim` of a key stands among the numbers of its block and head. */
__device__ __forceinline__ int page_at(const cuda_layer_pages &pages, int slot, int dim)
{
    if (!pages.image)
        return slot * pages.head_dim + dim;
    int at = pages.head_dim == 128 ? image_at<2>(slot, dim / 8) : image_at<1>(slot, dim / 8);
    return at / 2 + dim % 8;
}

/* ---- Numbers ---- */

template <typename T> __device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <> __device__ __forceinline__ uint32_t pack_pair<bf16>(float low, float high) { return bf16_pair(low, high); }
template <> __device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high)
{
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}
template <typename T> __device__ __forceinline__ T round_to(float x);
template <> __device__ __forceinline__ bf16 round_to<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ __half round_to<__half>(float x) { return __float2half(x); }

/* Two numbers that the model computed in BF16, as the products' type. */
template <typename T> __device__ __forceinline__ uint32_t query_pair(uint32_t pair);
template <> __device__ __forceinline__ uint32_t query_pair<bf16>(uint32_t pair) { return pair; }
template <> __device__ __forceinline__ uint32_t query_pair<__half>(uint32_t pair)
{
    return pack_pair<__half>(bf16_low(pair), bf16_high(pair));
}
template <typename T> __device__ __forceinline__ uint4 query_words(const bf16 *from)
{
    uint4 v = *reinterpret_cast<const uint4 *>(from);
    return make_uint4(query_pair<T>(v.x), query_pair<T>(v.y), query_pair<T>(v.z), query_pair<T>(v.w));
}

#define NO_MAXIMUM (-INFINITY)

/* 2^(from - to) for whole numbers from <= to; exact; 0 where nothing was seen. */
__device__ __forceinline__ float rescale(float from, float to)
{
    float steps = from - to;
    return steps >= -126.0f ? __int_as_float((127 + static_cast<int>(steps)) << 23) : 0.0f;
}
__device__ __forceinline__ float rescale_from(float from, float to)
{
    return from == NO_MAXIMUM ? 0.0f : rescale(from, to);
}

/* The whole maximum of scores, from their raw maximum. */
__device__ __forceinline__ float whole_maximum(float raw, float scale) { return ceilf(raw * scale); }

/* 2^(raw * scale - maximum), rounded first to the grid of [128, 256) where it does not depend on the maximum.
 * shift: 254 - maximum. */
__device__ __forceinline__ float weight_of(float raw, float scale, float shift)
{
    return exp2_fast(__fadd_rn(__fmaf_rn(raw, scale, shift), -254.0f));
}
__device__ __forceinline__ float weight_shift(float maximum)
{
    return maximum == NO_MAXIMUM ? 254.0f : 254.0f - maximum;
}

/* ---- Pages of 8-bit numbers: rows as they are, expanded to images of F16 (exact) ---- */

__device__ __forceinline__ uint32_t expand_pair(uint32_t two_bytes)
{
    uint32_t pair;
    asm("{\n.reg .b16 low;\ncvt.u16.u32 low, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}" : "=r"(pair) : "r"(two_bytes));
    return pair;
}
__device__ __forceinline__ uint4 expand_eight(uint32_t low, uint32_t high)
{
    return make_uint4(expand_pair(low & 0xffffu), expand_pair(low >> 16), expand_pair(high & 0xffffu),
                      expand_pair(high >> 16));
}

/* 16 numbers of a row to their place in an image; piece: which 16. Neighbours begin with different halves, for the
 * banks' sake. */
template <int D> __device__ __forceinline__ void expand_piece(unsigned char *image, int row, int piece, uint4 v)
{
    const uint4 halves[2] = {expand_eight(v.x, v.y), expand_eight(v.z, v.w)};
    const bool swapped = D == 128 && piece >= 4;
    *reinterpret_cast<uint4 *>(image + image_at<D / 64>(row, 2 * piece + swapped)) = swapped ? halves[1] : halves[0];
    *reinterpret_cast<uint4 *>(image + image_at<D / 64>(row, 2 * piece + !swapped)) = swapped ? halves[0] : halves[1];
}

/* ---- Tiles of keys or values, brought into shared memory by one warp ---- */

template <int D, int Bytes> struct tile_source {
    static constexpr int ROW = D * Bytes, PART = Bytes == 2 ? 128 : ROW, PARTS = ROW / PART; /* a row lies in parts */
    const char *data;
    const int32_t *table;
    int block_size, heads, head;

    __device__ __forceinline__ const char *page(int key) const
    {
        int64_t block = table[key / block_size];
        return data + (block * heads + head) * block_size * ROW + key % block_size * ROW;
    }
    static __device__ __forceinline__ int part_at(int row, int part)
    {
        return Bytes == 2 ? ((row >> 3) * PARTS + part) * 1024 + (row & 7) * 128 : row * ROW;
    }

    /* Keys [from, to) of the tile that begins at `key`, as whole pages. */
    __device__ __forceinline__ void fetch_keys(uint32_t slot, uint32_t full, int key, int from, int to, int lane) const
    {
        int first = (max(from, key) - key) / PAGE_KEYS, end = (min(to, key + CUDA_TILE) - key + PAGE_KEYS - 1) / PAGE_KEYS;
        if (lane == 0)
            barrier_expect(full, (end - first) * PAGE_KEYS * ROW);
        __syncwarp();
        if (lane >= first && lane < end)
            copy_bulk(slot + lane * PAGE_KEYS * ROW, page(key + lane * PAGE_KEYS), PAGE_KEYS * ROW, full);
    }

    /* The same for values: exactly the rows [from, to), the tile's others zero: what other sequences left in a page may
     * be NaN. */
    __device__ __forceinline__ void fetch_values(uint32_t slot, uint32_t full, int key, int from, int to, int lane) const
    {
        int first = max(from, key) - key, end = min(to, key + CUDA_TILE) - key;
        if (first == 0 && end == CUDA_TILE) {
            fetch_keys(slot, full, key, from, to, lane);
            return;
        }
        for (int i = lane; i < CUDA_TILE * ROW / 16; i += 32) {
            int row = i / (ROW / 16), byte = i % (ROW / 16) * 16;
            if (row < first || row >= end)
                asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(slot + part_at(row, byte / PART) +
                                                                              byte % PART),
                             "r"(0)
                             : "memory");
        }
        fence_async_proxy();
        __syncwarp();
        if (lane == 0)
            barrier_expect(full, (end - first) * ROW);
        __syncwarp();
        for (int piece = 0; piece < CUDA_TILE; piece += PAGE_KEYS) {
            int a = max(first - piece, 0), b = min(end - piece, PAGE_KEYS);
            if (a >= b)
                continue;
            const char *from_page = page(key + piece);
            uint32_t to_slot = slot + piece * ROW;
            if (b - a == PAGE_KEYS) {
                if (lane == 0)
                    copy_bulk(to_slot, from_page, PAGE_KEYS * ROW, full);
                continue;
            }
            for (int i = lane; i < PAGE_KEYS * PARTS; i += 32)
                if (i / PARTS >= a && i / PARTS < b)
                    copy_bulk(to_slot + part_at(i / PARTS, i % PARTS), from_page + part_at(i / PARTS, i % PARTS), PART,
                              full);
        }
    }
};

template <int D, int Bytes>
__device__ __forceinline__ tile_source<D, Bytes> source_of(const cuda_step_view &step, const cuda_layer_pages &pages,
                                                           const void *data, int seq, int head)
{
    const int32_t *table = step.meta + step.meta[CUDA_META_TABLE + pages.group];
    return {static_cast<const char *>(data), table + static_cast<int64_t>(seq) * step.meta[CUDA_META_STRIDE],
            pages.block_size, pages.kv_heads, head};
}

#endif
