/* An activation: a view of rows in backend memory. Models pass it by value; it owns nothing (activations
 * live in the step's scratch, see backend/ops.h). Thread: any. */
#ifndef QR_TENSOR_TENSOR_H
#define QR_TENSOR_TENSOR_H

#include <stdint.h>

#include "tensor/dtype.h"

typedef struct qr_tensor {
    void *data; /* in the backend's memory: host on the CPU, device on a GPU */
    qr_dtype dtype;
    int64_t rows;       /* tokens of the batch, usually */
    int64_t cols;       /* features */
    int64_t row_stride; /* elements between rows, >= cols */
} qr_tensor;

#endif
