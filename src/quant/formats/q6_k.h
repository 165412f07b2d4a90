/* Q6_K (ggml block_q6_K): 16 sub-blocks of 16 values = (d * scale) * (q - 32), q of six bits. Each half of 128 values
 * has 64 bytes of low nibbles (values 0..63 low, 64..127 high) and 32 bytes of high bits, two a value: byte
 * i serves values i, i + 32, i + 64, i + 96. 6.5625 bits a value. */
#ifndef QR_QUANT_FORMATS_Q6_K_H
#define QR_QUANT_FORMATS_Q6_K_H

#include "quant/block.h"

#define QR_Q6_K_NAME      "Q6_K"
#define QR_Q6_K_BLOCK     256
#define QR_Q6_K_BYTES     210
#define QR_Q6_K_HF_DTYPE  ""
#define QR_Q6_K_GGML_TYPE 14
#define QR_TRAITS_q6_k    QR_Q6_K_NAME, QR_Q6_K_HF_DTYPE, QR_Q6_K_GGML_TYPE, QR_Q6_K_BLOCK, QR_Q6_K_BYTES

typedef struct __attribute__((packed)) qr_q6_k_block {
    uint8_t low[128];
    uint8_t high[64];
    int8_t scales[16];
    uint16_t d; /* half */
} qr_q6_k_block;
QR_BLOCK_ASSERT(qr_q6_k_block, QR_Q6_K_BYTES);

QR_BLOCK_FN void qr_q6_k_dequant_block(const void *block, float *out)
{
    const qr_q6_k_block *b = (const qr_q6_k_block *)block;
    float d = qr_block_half(b->d);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, at = i % 128;
        int low = b->low[half * 64 + at % 64] >> (at / 64 * 4) & 15;
        int high = b->high[half * 32 + at % 32] >> (at / 32 * 2) & 3;
        out[i] = d * (float)b->scales[i / 16] * (float)((low | high << 4) - 32);
    }
}

#endif
