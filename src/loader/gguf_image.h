/* Inside the loader: a parsed GGUF. Thread: immutable after qr_gguf_parse. */
#ifndef QR_LOADER_GGUF_IMAGE_H
#define QR_LOADER_GGUF_IMAGE_H

#include "base/file.h"
#include "base/map.h"
#include "base/vec.h"
#include "loader/gguf.h"

typedef enum qr_gguf_type {
    QR_GGUF_U8,
    QR_GGUF_I8,
    QR_GGUF_U16,
    QR_GGUF_I16,
    QR_GGUF_U32,
    QR_GGUF_I32,
    QR_GGUF_F32,
    QR_GGUF_BOOL,
    QR_GGUF_STRING,
    QR_GGUF_ARRAY,
    QR_GGUF_U64,
    QR_GGUF_I64,
    QR_GGUF_F64,
    QR_GGUF_TYPE_COUNT
} qr_gguf_type; /* the file's numbers */

typedef struct qr_gguf_pair {
    qr_str key;           /* view */
    uint32_t type;        /* qr_gguf_type */
    uint32_t element;     /* of an array */
    uint64_t count;       /* of an array; else 1 */
    const uint8_t *value; /* view; of an array: its first element */
} qr_gguf_pair;

typedef struct qr_gguf_tensor {
    qr_str name;       /* view */
    int n_dims;        /* 1..4 */
    uint64_t shape[4]; /* outermost first */
    uint32_t type;     /* ggml's number */
    uint64_t offset;   /* into the data section, unchecked */
} qr_gguf_tensor;

struct qr_gguf {
    char *file;          /* for messages */
    const uint8_t *data; /* the whole image */
    size_t bytes;
    qr_file_map map; /* when this object owns the mapping */
    QR_VEC(qr_gguf_pair) pairs;
    QR_VEC(qr_gguf_tensor) tensors;
    qr_str_map index; /* key -> pair */
    size_t alignment;
    size_t data_at; /* where the data section begins */
};

#endif
