/* What the format headers share: how they declare functions for C and CUDA, and half to float without a
 * library call. Layouts are those of ggml's block types (ggml-common.h describes the structs,
 * ggml-quants.c the arithmetic); safetensors' dense dtypes are blocks of one value. Thread: any. */
#ifndef QR_QUANT_BLOCK_H
#define QR_QUANT_BLOCK_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define QR_BLOCK_FN              static inline __host__ __device__
#define QR_BLOCK_ASSERT(type, n) static_assert(sizeof(type) == (n), #type " must match the file's layout")
#else
#define QR_BLOCK_FN              static inline
#define QR_BLOCK_ASSERT(type, n) _Static_assert(sizeof(type) == (n), #type " must match the file's layout")
#endif

/* IEEE half to float, exact. The multiplication turns a re-based exponent into the right one and makes
 * subnormals normal, so only infinities and NaN need a second look. */
QR_BLOCK_FN float qr_block_half(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fffu) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
    if ((half & 0x7c00u) == 0x7c00u)
        bits |= 0x7f800000u;
    bits |= (uint32_t)(half & 0x8000u) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* Scale and minimum j of the 8 sub-blocks of Q4_K and Q5_K: six bits each, packed into 12 bytes. The first
 * four pairs lie in the low bits of bytes 0..7; the last four have their low nibbles in bytes 8..11 and
 * their high two bits on top of the first ones. */
QR_BLOCK_FN void qr_block_k_scale_min(const uint8_t *packed, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *min = packed[j + 4] >> 4 | (packed[j] >> 6) << 4;
    }
}

#endif
