/* F16: IEEE half, little-endian. */
#ifndef QR_QUANT_FORMATS_F16_H
#define QR_QUANT_FORMATS_F16_H

#include "quant/block.h"

#define QR_F16_NAME      "F16"
#define QR_F16_BLOCK     1
#define QR_F16_BYTES     2
#define QR_F16_HF_DTYPE  "F16"
#define QR_F16_GGML_TYPE 1
#define QR_TRAITS_f16    QR_F16_NAME, QR_F16_HF_DTYPE, QR_F16_GGML_TYPE, QR_F16_BLOCK, QR_F16_BYTES

typedef struct __attribute__((packed)) qr_f16_block {
    uint16_t value;
} qr_f16_block;
QR_BLOCK_ASSERT(qr_f16_block, QR_F16_BYTES);

QR_BLOCK_FN void qr_f16_dequant_block(const void *block, float *out)
{
    const qr_f16_block *b = (const qr_f16_block *)block;
    out[0] = qr_block_half(b->value);
}

#endif
