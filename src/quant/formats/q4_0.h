/* Q4_0 (ggml block_q4_0): 32 values = d * (q - 8); byte i holds value i (low nibble) and i + 16 (high).
 * 4.5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q4_0_H
#define QR_QUANT_FORMATS_Q4_0_H

#include "quant/block.h"

#define QR_Q4_0_NAME      "Q4_0"
#define QR_Q4_0_BLOCK     32
#define QR_Q4_0_BYTES     18
#define QR_Q4_0_HF_DTYPE  ""
#define QR_Q4_0_GGML_TYPE 2
#define QR_TRAITS_q4_0    QR_Q4_0_NAME, QR_Q4_0_HF_DTYPE, QR_Q4_0_GGML_TYPE, QR_Q4_0_BLOCK, QR_Q4_0_BYTES

typedef struct __attribute__((packed)) qr_q4_0_block {
    uint16_t d; /* half */
    uint8_t q[16];
} qr_q4_0_block;
QR_BLOCK_ASSERT(qr_q4_0_block, QR_Q4_0_BYTES);

QR_BLOCK_FN void qr_q4_0_dequant_block(const void *block, float *out)
{
    const qr_q4_0_block *b = (const qr_q4_0_block *)block;
    float d = qr_block_half(b->d);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b->q[i] & 15) - 8);
        out[i + 16] = d * (float)((b->q[i] >> 4) - 8);
    }
}

#endif
