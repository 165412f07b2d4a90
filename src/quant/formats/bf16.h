/* BF16: the upper half of an IEEE single, little-endian. */
#ifndef QR_QUANT_FORMATS_BF16_H
#define QR_QUANT_FORMATS_BF16_H

#include "quant/block.h"

#define QR_BF16_NAME      "BF16"
#define QR_BF16_BLOCK     1
#define QR_BF16_BYTES     2
#define QR_BF16_HF_DTYPE  "BF16"
#define QR_BF16_GGML_TYPE 30
#define QR_TRAITS_bf16    QR_BF16_NAME, QR_BF16_HF_DTYPE, QR_BF16_GGML_TYPE, QR_BF16_BLOCK, QR_BF16_BYTES

typedef struct __attribute__((packed)) qr_bf16_block {
    uint16_t value;
} qr_bf16_block;
QR_BLOCK_ASSERT(qr_bf16_block, QR_BF16_BYTES);

QR_BLOCK_FN void qr_bf16_dequant_block(const void *block, float *out)
{
    const qr_bf16_block *b = (const qr_bf16_block *)block;
    uint32_t bits = (uint32_t)b->value << 16;
    memcpy(out, &bits, 4);
}

#endif
