/* qr_weight: a matrix [rows = N out features, cols = K in features], row-major along K in its container's
 * format, plus what a backend prepared from it. y = x W^T. Vectors (norms, biases) are rows = 1.
 *
 * The loader fills the parts (views into the mapping); the backend's weight_prepare() may copy them into a
 * packed layout that it tags, and then the parts are no longer read. Thread: immutable after load.
 */
#ifndef QR_QUANT_WEIGHT_H
#define QR_QUANT_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/format.h"

typedef struct qr_weight_part {
    const void *data;
    size_t bytes;
} qr_weight_part;

/* AWQ, GPTQ and compressed-tensors come as several parts; dense and GGUF formats use DATA alone. */
enum { QR_PART_DATA, QR_PART_SCALES, QR_PART_ZEROS, QR_PART_PERM, QR_PART_COUNT };

typedef struct qr_weight {
    qr_format format; /* of the parts */
    int64_t rows, cols;
    int64_t row_begin, rows_all; /* a rank's rows: where they begin in the whole, and its rows; else 0 */
    qr_weight_part part[QR_PART_COUNT];
    const char *name; /* for messages and inspect; model arena */
    /* Prepared by the backend (owned by it; weight_release gives it back). */
    int layout; /* backend-private tag; 0: the parts as they are */
    void *packed;
    size_t packed_bytes;
} qr_weight;

static inline bool qr_weight_present(const qr_weight *w) { return w->rows > 0; }

#endif
