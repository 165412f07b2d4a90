/* Q5_K (ggml block_q5_K): as Q4_K, with a fifth bit: that of value i of sub-block j is bit j of `high[i]`.
 * 5.5 bits a value. */
#ifndef QR_QUANT_FORMATS_Q5_K_H
#define QR_QUANT_FORMATS_Q5_K_H

#include "quant/block.h"

#define QR_Q5_K_NAME      "Q5_K"
#define QR_Q5_K_BLOCK     256
#define QR_Q5_K_BYTES     176
#define QR_Q5_K_HF_DTYPE  ""
#define QR_Q5_K_GGML_TYPE 13
#define QR_TRAITS_q5_k    QR_Q5_K_NAME, QR_Q5_K_HF_DTYPE, QR_Q5_K_GGML_TYPE, QR_Q5_K_BLOCK, QR_Q5_K_BYTES

typedef struct __attribute__((packed)) qr_q5_k_block {
    uint16_t d, dmin;   /* half */
    uint8_t scales[12]; /* qr_block_k_scale_min */
    uint8_t high[32];
    uint8_t q[128];
} qr_q5_k_block;
QR_BLOCK_ASSERT(qr_q5_k_block, QR_Q5_K_BYTES);

QR_BLOCK_FN void qr_q5_k_dequant_block(const void *block, float *out)
{
    const qr_q5_k_block *b = (const qr_q5_k_block *)block;
    float d = qr_block_half(b->d), dmin = qr_block_half(b->dmin);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        qr_block_k_scale_min(b->scales, j, &scale, &min);
        float step = d * (float)scale, low = dmin * (float)min;
        const uint8_t *q = b->q + j / 2 * 32;
        int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++)
            out[j * 32 + i] = step * (float)((q[i] >> shift & 15) | (b->high[i] >> j & 1) << 4) - low;
    }
}

#endif
