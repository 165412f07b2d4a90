/* Weight formats: how a matrix's numbers are stored along K. One header per format in quant/formats/ is the
 * registration: the build turns the file names into QR_FORMAT_ROW lines (generated quant/formats.inc).
 *
 * A format header `quant/formats/x.h`, usable from C and CUDA, defines (for the name `x`, upper case `X`):
 *     #define QR_X_NAME       "Q8_0"     printed name
 *     #define QR_X_BLOCK      32         values in a block, along K
 *     #define QR_X_BYTES      34         bytes of a block
 *     #define QR_X_HF_DTYPE   ""         safetensors dtype string, or ""
 *     #define QR_X_GGML_TYPE  8          GGUF tensor type, or -1
 *     static inline void qr_x_dequant_block(const void *block, float *out);   QR_X_BLOCK values
 *     #define QR_TRAITS_x     QR_X_NAME, QR_X_HF_DTYPE, QR_X_GGML_TYPE, QR_X_BLOCK, QR_X_BYTES
 * and the layout as a packed struct with a _Static_assert, with the source of the layout named.
 * Thread: any.
 */
#ifndef QR_QUANT_FORMAT_H
#define QR_QUANT_FORMAT_H

#include <stddef.h>
#include <stdint.h>

typedef enum qr_format {
#define QR_FORMAT_ROW(name) QR_FORMAT_##name,
#include "quant/formats.inc"
#undef QR_FORMAT_ROW
    QR_FORMAT_COUNT,
    QR_FORMAT_NONE = -1
} qr_format; /* QR_FORMAT_f32, QR_FORMAT_bf16, QR_FORMAT_q8_0, ... */

typedef struct qr_format_traits {
    const char *name;
    const char *hf_dtype;
    int ggml_type;
    int block;                                                   /* values, along K */
    int bytes;                                                   /* of a block */
    void (*dequant_row)(const void *row, float *out, int64_t n); /* n: a multiple of block */
} qr_format_traits;

const qr_format_traits *qr_format_get(qr_format format);
qr_format qr_format_by_hf_dtype(const char *dtype, size_t len); /* QR_FORMAT_NONE: unknown */
qr_format qr_format_by_ggml_type(uint32_t type);
/* Bytes of a row of n values; n must be a multiple of the block. */
size_t qr_format_row_bytes(qr_format format, int64_t n);

/* For code that is generated per row: `#include "quant/format_headers.inc"` brings every header, then inside
 * QR_FORMAT_ROW(x) these are the block's constants. */
#define QR_TRAIT_BLOCK_(name, hf, ggml, block, bytes) block
#define QR_TRAIT_BYTES_(name, hf, ggml, block, bytes) bytes
#define QR_TRAIT_PICK_(pick, traits)                  pick(traits)
#define QR_TRAIT_BLOCK(x)                             QR_TRAIT_PICK_(QR_TRAIT_BLOCK_, QR_TRAITS_##x)
#define QR_TRAIT_BYTES(x)                             QR_TRAIT_PICK_(QR_TRAIT_BYTES_, QR_TRAITS_##x)

#endif
