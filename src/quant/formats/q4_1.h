/* Q4_1 (ggml block_q4_1): 32 values = d * q + m; byte i holds value i (low nibble) and i + 16 (high).
 * 5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q4_1_H
#define QR_QUANT_FORMATS_Q4_1_H

#include "quant/block.h"

#define QR_Q4_1_NAME      "Q4_1"
#define QR_Q4_1_BLOCK     32
#define QR_Q4_1_BYTES     20
#define QR_Q4_1_HF_DTYPE  ""
#define QR_Q4_1_GGML_TYPE 3
#define QR_TRAITS_q4_1    QR_Q4_1_NAME, QR_Q4_1_HF_DTYPE, QR_Q4_1_GGML_TYPE, QR_Q4_1_BLOCK, QR_Q4_1_BYTES

typedef struct __attribute__((packed)) qr_q4_1_block {
    uint16_t d, m; /* half */
    uint8_t q[16];
} qr_q4_1_block;
QR_BLOCK_ASSERT(qr_q4_1_block, QR_Q4_1_BYTES);

QR_BLOCK_FN void qr_q4_1_dequant_block(const void *block, float *out)
{
    const qr_q4_1_block *b = (const qr_q4_1_block *)block;
    float d = qr_block_half(b->d), m = qr_block_half(b->m);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b->q[i] & 15) + m;
        out[i + 16] = d * (float)(b->q[i] >> 4) + m;
    }
}

#endif
