/* Weights: tensors by name over any container, mapped and not copied. Two containers: a Hugging Face folder
 * (model.safetensors, or shards with model.safetensors.index.json) and a GGUF file (v2, v3; a split set
 * NAME-00001-of-0000N.gguf opens by its first file).
 *
 * Opening checks every offset, shape, count and size with overflow-safe arithmetic: after qr_weights_open
 * each entry's [data, data + bytes) lies in a mapping and bytes equals what format and shape say. Errors are
 * one line with file, tensor and values (QR_BAD_FILE). Thread: immutable after open.
 */
#ifndef QR_LOADER_WEIGHTS_H
#define QR_LOADER_WEIGHTS_H

#include "base/status.h"
#include "base/str.h"
#include "quant/format.h"

typedef enum qr_container { QR_CONTAINER_SAFETENSORS, QR_CONTAINER_GGUF } qr_container;

#define QR_WEIGHTS_DIMS_MAX 8
typedef struct qr_weights_entry {
    const char *name;       /* as the container spells it */
    const char *file;       /* path of the file it lies in */
    qr_format format;       /* QR_FORMAT_NONE: a dtype that no format has (I64, BOOL, ...) */
    const char *dtype_name; /* as the container spells it */
    int n_dims;
    int64_t shape[QR_WEIGHTS_DIMS_MAX]; /* outermost first (PyTorch order) in both containers: [rows, cols] */
    const uint8_t
        *data; /* aligned only as the file has it: readers of wider types use memcpy or unaligned loads */
    size_t bytes;
} qr_weights_entry;

typedef struct qr_weights qr_weights;
qr_status qr_weights_open(const char *path, qr_weights **out, qr_error *err);
void qr_weights_close(qr_weights *weights);
/* A folder of which only the configuration matters (dummy weights): no tensors. */
qr_status qr_weights_open_empty(const char *dir, qr_weights **out, qr_error *err);

qr_container qr_weights_container(const qr_weights *weights);
const char *qr_weights_path(const qr_weights *weights);
size_t qr_weights_count(const qr_weights *weights);
const qr_weights_entry *qr_weights_at(const qr_weights *weights, size_t index);
const qr_weights_entry *qr_weights_find(const qr_weights *weights, const char *name); /* NULL: not there */
/* Sum of all tensors' bytes. */
uint64_t qr_weights_bytes(const qr_weights *weights);
/* Tells the kernel that the pages of [data, data+bytes) will be read soon, or are no longer needed. */
void qr_weights_will_need(const qr_weights *weights);
void qr_weights_forget(const qr_weights *weights, const void *data, size_t bytes);

/* GGUF metadata (NULL for safetensors); see loader/gguf.h. */
struct qr_gguf;
const struct qr_gguf *qr_weights_gguf(const qr_weights *weights);

#endif
