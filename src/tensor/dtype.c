#include "tensor/dtype.h"

#include "base/assert.h"
#include "base/mem.h"

size_t qr_dtype_bytes(qr_dtype dtype)
{
    static const size_t bytes[QR_DTYPE_COUNT] = {[QR_DTYPE_F32] = 4,
                                                 [QR_DTYPE_F16] = 2,
                                                 [QR_DTYPE_BF16] = 2,
                                                 [QR_DTYPE_I32] = 4,
                                                 [QR_DTYPE_F8_E4M3] = 1};
    QR_ASSERT((unsigned)dtype < QR_DTYPE_COUNT);
    return bytes[dtype];
}

const char *qr_dtype_name(qr_dtype dtype)
{
    static const char *const names[QR_DTYPE_COUNT] = {[QR_DTYPE_F32] = "float32",
                                                      [QR_DTYPE_F16] = "float16",
                                                      [QR_DTYPE_BF16] = "bfloat16",
                                                      [QR_DTYPE_I32] = "int32",
                                                      [QR_DTYPE_F8_E4M3] = "fp8_e4m3"};
    QR_ASSERT((unsigned)dtype < QR_DTYPE_COUNT);
    return names[dtype];
}

int qr_dtype_parse(const char *name)
{
    static const struct {
        const char *name;
        qr_dtype dtype;
    } spellings[] = {{"float32", QR_DTYPE_F32},     {"float", QR_DTYPE_F32},   {"fp32", QR_DTYPE_F32},
                     {"f32", QR_DTYPE_F32},         {"float16", QR_DTYPE_F16}, {"half", QR_DTYPE_F16},
                     {"fp16", QR_DTYPE_F16},        {"f16", QR_DTYPE_F16},     {"int32", QR_DTYPE_I32},
                     {"bfloat16", QR_DTYPE_BF16},   {"bf16", QR_DTYPE_BF16},   {"fp8", QR_DTYPE_F8_E4M3},
                     {"fp8_e4m3", QR_DTYPE_F8_E4M3}};
    if (name == NULL)
        return -1;
    if (strncmp(name, "torch.", 6) == 0) /* "torch.bfloat16" in old config files */
        name += 6;
    for (size_t i = 0; i < QR_COUNT_OF(spellings); i++)
        if (strcmp(name, spellings[i].name) == 0)
            return (int)spellings[i].dtype;
    return -1;
}

float qr_f16_to_f32(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t exponent = (x >> 10) & 0x1fu;
    uint32_t mantissa = x & 0x3ffu;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        /* Zero and subnormals: the value is mantissa * 2^-24, exact in float. */
        float f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

uint16_t qr_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) /* NaN: keep the payload's top bits, stay quiet */
        return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) { /* below 2^-14: adding 0.5 lets the FPU round to units of 2^-24 */
        float magic;
        memcpy(&magic, &bits, 4);
        magic += 0.5f;
        memcpy(&bits, &magic, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    uint32_t odd = (bits >> 13) & 1u;
    return (uint16_t)(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}
