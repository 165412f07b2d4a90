/* Element types of activations, KV and dense weights, and their conversions.
 * Quantised weights are formats (quant/format.h). Thread: any. */
#ifndef QR_TENSOR_DTYPE_H
#define QR_TENSOR_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* F8_E4M3: 1 sign, 4 exponent, 3 fraction bits, up to 448, no infinity; of KV caches only. */
typedef enum qr_dtype {
    QR_DTYPE_F32,
    QR_DTYPE_F16,
    QR_DTYPE_BF16,
    QR_DTYPE_I32,
    QR_DTYPE_F8_E4M3,
    QR_DTYPE_COUNT
} qr_dtype;

size_t qr_dtype_bytes(qr_dtype dtype);
const char *qr_dtype_name(qr_dtype dtype); /* "float32", "float16", "bfloat16", "int32", "fp8_e4m3" */
/* "float32", "float", "fp32", "half", ... -> dtype; -1 when unknown. */
int qr_dtype_parse(const char *name);

/* Round to nearest even; NaN stays NaN. */
static inline float qr_bf16_to_f32(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline uint16_t qr_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float qr_f16_to_f32(uint16_t x);
uint16_t qr_f32_to_f16(float f);

#endif
