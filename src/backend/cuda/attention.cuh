/* What the attention kernels share, so that prefill and decode give the same bits.
 *
 * Keys are summed in splits of CUDA_SPLIT absolute positions. In a split, products run along the keys from left to
 * right in steps of 16; splits are added from left to right. Maxima are rounded up to whole numbers (scores are
 * exponents of 2), so that rescaling by a new maximum multiplies by a power of two and changes no bit: it does not
 * matter which keys a kernel looks at together before it takes the exponentials. The sum of the weights is a product
 * with ones, rounded as the values' products are.
 *
 * The numbers of a product's 16 summands are chosen so that a thread's share lies side by side in memory: in a group
 * of 32 along the sum, lane % 4 = c holds 8c .. 8c + 7, the first four in one m16n8k16, the others in the next.
 * Private to backend/cuda/. Thread: any.
 */
#ifndef QR_BACKEND_CUDA_ATTENTION_CUH
#define QR_BACKEND_CUDA_ATTENTION_CUH

#include "backend/cuda/cuda.cuh"
#include "backend/cuda/kernels.h"

/* Which key of a tile of 32 is row n of the product's block b (0..3). */
__device__ __forceinline__ int tile_key(int b, int n) { return 8 * (n >> 1) + 2 * b + (n & 1); }

template <typename T> __device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <> __device__ __forceinline__ uint32_t pack_pair<bf16>(float low, float high) { return bf16_pair(low, high); }
template <> __device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high)
{
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}
/* Two numbers that the model computed in BF16, as the pages' type. */
template <typename T> __device__ __forceinline__ uint32_t query_pair(uint32_t pair);
template <> __device__ __forceinline__ uint32_t query_pair<bf16>(uint32_t pair) { return pair; }
template <> __device__ __forceinline__ uint32_t query_pair<__half>(uint32_t pair)
{
    return pack_pair<__half>(bf16_low(pair), bf16_high(pair));
}
template <typename T> __device__ __forceinline__ uint4 query_words(uint4 v)
{
    return make_uint4(query_pair<T>(v.x), query_pair<T>(v.y), query_pair<T>(v.z), query_pair<T>(v.w));
}
template <typename T> __device__ __forceinline__ uint32_t pair_of_ones();
template <> __device__ __forceinline__ uint32_t pair_of_ones<bf16>() { return 0x3f803f80u; }
template <> __device__ __forceinline__ uint32_t pair_of_ones<__half>() { return 0x3c003c00u; }

#define NO_MAXIMUM (-INFINITY)

/* 2^(from - to) for whole numbers from <= to; exact; 0 where nothing was seen. */
__device__ __forceinline__ float rescale(float from, float to)
{
    float steps = from - to;
    return steps >= -126.0f ? __int_as_float((127 + static_cast<int>(steps)) << 23) : 0.0f;
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

/* Keeps the numbers of a value word whose keys lie in [from, to): key is the first of its two. */
__device__ __forceinline__ uint32_t keep_keys(uint32_t pair, int key, int from, int to)
{
    uint32_t low = key >= from && key < to ? 0x0000ffffu : 0, high = key + 1 >= from && key + 1 < to ? 0xffff0000u : 0;
    return pair & (low | high);
}
__device__ __forceinline__ uint4 keep_keys(uint4 v, int key, int from, int to)
{
    return make_uint4(keep_keys(v.x, key, from, to), keep_keys(v.y, key + 2, from, to),
                      keep_keys(v.z, key + 4, from, to), keep_keys(v.w, key + 6, from, to));
}

#endif
