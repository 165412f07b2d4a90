/* Q8_0 (ggml block_q8_0): 32 values = d * q, q in -128..127. 8.5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q8_0_H
#define QR_QUANT_FORMATS_Q8_0_H

#include "quant/block.h"

#define QR_Q8_0_NAME      "Q8_0"
#define QR_Q8_0_BLOCK     32
#define QR_Q8_0_BYTES     34
#define QR_Q8_0_HF_DTYPE  ""
#define QR_Q8_0_GGML_TYPE 8
#define QR_TRAITS_q8_0    QR_Q8_0_NAME, QR_Q8_0_HF_DTYPE, QR_Q8_0_GGML_TYPE, QR_Q8_0_BLOCK, QR_Q8_0_BYTES

typedef struct __attribute__((packed)) qr_q8_0_block {
    uint16_t d; /* half */
    int8_t q[32];
} qr_q8_0_block;
QR_BLOCK_ASSERT(qr_q8_0_block, QR_Q8_0_BYTES);

QR_BLOCK_FN void qr_q8_0_dequant_block(const void *block, float *out)
{
    const qr_q8_0_block *b = (const qr_q8_0_block *)block;
    float d = qr_block_half(b->d);
    for (int i = 0; i < 32; i++)
        out[i] = d * (float)b->q[i];
}

#endif
