/* Q5_0 (ggml block_q5_0): 32 values = d * (q - 16); nibbles as in Q4_0, the fifth bit of value i is bit i of
 * `high` (little-endian). 5.5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q5_0_H
#define QR_QUANT_FORMATS_Q5_0_H

#include "quant/block.h"

#define QR_Q5_0_NAME      "Q5_0"
#define QR_Q5_0_BLOCK     32
#define QR_Q5_0_BYTES     22
#define QR_Q5_0_HF_DTYPE  ""
#define QR_Q5_0_GGML_TYPE 6
#define QR_TRAITS_q5_0    QR_Q5_0_NAME, QR_Q5_0_HF_DTYPE, QR_Q5_0_GGML_TYPE, QR_Q5_0_BLOCK, QR_Q5_0_BYTES

typedef struct __attribute__((packed)) qr_q5_0_block {
    uint16_t d; /* half */
    uint8_t high[4];
    uint8_t q[16];
} qr_q5_0_block;
QR_BLOCK_ASSERT(qr_q5_0_block, QR_Q5_0_BYTES);

QR_BLOCK_FN void qr_q5_0_dequant_block(const void *block, float *out)
{
    const qr_q5_0_block *b = (const qr_q5_0_block *)block;
    float d = qr_block_half(b->d);
    uint32_t high;
    memcpy(&high, b->high, 4);
    for (int i = 0; i < 16; i++) {
        int low = (b->q[i] & 15) | (int)(high >> i & 1u) << 4;
        int top = b->q[i] >> 4 | (int)(high >> (i + 16) & 1u) << 4;
        out[i] = d * (float)(low - 16);
        out[i + 16] = d * (float)(top - 16);
    }
}

#endif
