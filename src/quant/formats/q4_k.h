/* Q4_K (ggml block_q4_K): 8 sub-blocks of 32 values = (d * scale) * q - (dmin * min). A pair of sub-blocks shares
 * 32 bytes: the first in the low nibbles, the second in the high ones. 4.5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q4_K_H
#define QR_QUANT_FORMATS_Q4_K_H

#include "quant/block.h"

#define QR_Q4_K_NAME      "Q4_K"
#define QR_Q4_K_BLOCK     256
#define QR_Q4_K_BYTES     144
#define QR_Q4_K_HF_DTYPE  ""
#define QR_Q4_K_GGML_TYPE 12
#define QR_TRAITS_q4_k    QR_Q4_K_NAME, QR_Q4_K_HF_DTYPE, QR_Q4_K_GGML_TYPE, QR_Q4_K_BLOCK, QR_Q4_K_BYTES

typedef struct __attribute__((packed)) qr_q4_k_block {
    uint16_t d, dmin;   /* half */
    uint8_t scales[12]; /* qr_block_k_scale_min */
    uint8_t q[128];
} qr_q4_k_block;
QR_BLOCK_ASSERT(qr_q4_k_block, QR_Q4_K_BYTES);

QR_BLOCK_FN void qr_q4_k_dequant_block(const void *block, float *out)
{
    const qr_q4_k_block *b = (const qr_q4_k_block *)block;
    float d = qr_block_half(b->d), dmin = qr_block_half(b->dmin);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        qr_block_k_scale_min(b->scales, j, &scale, &min);
        float step = d * (float)scale, low = dmin * (float)min;
        const uint8_t *q = b->q + j / 2 * 32;
        int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++)
            out[j * 32 + i] = step * (float)(q[i] >> shift & 15) - low;
    }
}

#endif
