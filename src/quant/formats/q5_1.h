/* Q5_1 (ggml block_q5_1): 32 values = d * q + m; nibbles as in Q4_1, the fifth bit of value i is bit i of
 * `high` (little-endian). 6 bits a value. */
#ifndef QR_QUANT_FORMATS_Q5_1_H
#define QR_QUANT_FORMATS_Q5_1_H

#include "quant/block.h"

#define QR_Q5_1_NAME      "Q5_1"
#define QR_Q5_1_BLOCK     32
#define QR_Q5_1_BYTES     24
#define QR_Q5_1_HF_DTYPE  ""
#define QR_Q5_1_GGML_TYPE 7
#define QR_TRAITS_q5_1    QR_Q5_1_NAME, QR_Q5_1_HF_DTYPE, QR_Q5_1_GGML_TYPE, QR_Q5_1_BLOCK, QR_Q5_1_BYTES

typedef struct __attribute__((packed)) qr_q5_1_block {
    uint16_t d, m; /* half */
    uint8_t high[4];
    uint8_t q[16];
} qr_q5_1_block;
QR_BLOCK_ASSERT(qr_q5_1_block, QR_Q5_1_BYTES);

QR_BLOCK_FN void qr_q5_1_dequant_block(const void *block, float *out)
{
    const qr_q5_1_block *b = (const qr_q5_1_block *)block;
    float d = qr_block_half(b->d), m = qr_block_half(b->m);
    uint32_t high;
    memcpy(&high, b->high, 4);
    for (int i = 0; i < 16; i++) {
        int low = (b->q[i] & 15) | (int)(high >> i & 1u) << 4;
        int top = b->q[i] >> 4 | (int)(high >> (i + 16) & 1u) << 4;
        out[i] = d * (float)low + m;
        out[i + 16] = d * (float)top + m;
    }
}

#endif
