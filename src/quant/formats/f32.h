/* F32: IEEE single, little-endian. */
#ifndef QR_QUANT_FORMATS_F32_H
#define QR_QUANT_FORMATS_F32_H

#include "quant/block.h"

#define QR_F32_NAME      "F32"
#define QR_F32_BLOCK     1
#define QR_F32_BYTES     4
#define QR_F32_HF_DTYPE  "F32"
#define QR_F32_GGML_TYPE 0
#define QR_TRAITS_f32    QR_F32_NAME, QR_F32_HF_DTYPE, QR_F32_GGML_TYPE, QR_F32_BLOCK, QR_F32_BYTES

typedef struct __attribute__((packed)) qr_f32_block {
    float value;
} qr_f32_block;
QR_BLOCK_ASSERT(qr_f32_block, QR_F32_BYTES);

QR_BLOCK_FN void qr_f32_dequant_block(const void *block, float *out)
{
    const qr_f32_block *b = (const qr_f32_block *)block;
    out[0] = b->value;
}

#endif
