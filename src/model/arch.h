/* An architecture is ONE file, model/arch/x.c: a struct of weights, a table of names, a forward, and
 * `const qr_arch qr_arch_x`; its file name registers it (generated model/arch_list.inc).
 *
 * The table has a row per tensor: where it goes (an offset into the layer struct for names with {layer}, else into
 * the model struct), its names in both containers, its shape in terms of the config, how tensor parallelism cuts it,
 * and the config field that says whether the checkpoint has it.
 * Thread: immutable.
 */
#ifndef QR_MODEL_ARCH_H
#define QR_MODEL_ARCH_H

#include <stddef.h>

#include "model/layers.h"
#include "model/model.h"

typedef enum qr_dim {
    QR_DIM_ONE,
    QR_DIM_VOCAB,
    QR_DIM_HIDDEN,
    QR_DIM_Q,
    QR_DIM_KV,
    QR_DIM_FF,
    QR_DIM_HEAD
} qr_dim;

/* Where a row's tensor goes: a qr_weight (matrix, embedding, head) or a const float * (vector). */
typedef enum qr_role { QR_ROLE_MATRIX, QR_ROLE_VECTOR, QR_ROLE_EMBEDDING, QR_ROLE_HEAD } qr_role;

/* Which side ranks divide among them, in whole heads and blocks (share.c). ROWS: each computes some of the outputs; COLS:
 * each has some of the inputs, and outputs are summed over ranks (for a vector: it goes with divided outputs). */
typedef enum qr_shard { QR_SHARD_NONE, QR_SHARD_ROWS, QR_SHARD_COLS } qr_shard;

typedef struct qr_arch_row {
    qr_role role;
    const char *hf, *gguf; /* "{layer}" stands for the layer's number and makes the row one per layer */
    size_t offset;
    qr_dim rows, cols; /* vectors: rows QR_DIM_ONE */
    qr_shard shard;
    size_t when; /* 1 + offset of a bool of qr_model_config that must be true; 0: always there */
} qr_arch_row;

#define QR_WHEN(field) (1 + offsetof(qr_model_config, field))

/* Rows as the tables write them; dimensions and sides without their prefix. */
#define QR_MATRIX(hf, gguf, offset, rows, cols, side)                                      \
    {                                                                                      \
        QR_ROLE_MATRIX, hf, gguf, offset, QR_DIM_##rows, QR_DIM_##cols, QR_SHARD_##side, 0 \
    }
#define QR_VECTOR(hf, gguf, offset, cols, side, when)                                      \
    {                                                                                      \
        QR_ROLE_VECTOR, hf, gguf, offset, QR_DIM_ONE, QR_DIM_##cols, QR_SHARD_##side, when \
    }
#define QR_EMBEDDING(hf, gguf, offset)                                                     \
    {                                                                                      \
        QR_ROLE_EMBEDDING, hf, gguf, offset, QR_DIM_VOCAB, QR_DIM_HIDDEN, QR_SHARD_ROWS, 0 \
    }
#define QR_HEAD(hf, gguf, offset)                                                     \
    {                                                                                 \
        QR_ROLE_HEAD, hf, gguf, offset, QR_DIM_VOCAB, QR_DIM_HIDDEN, QR_SHARD_ROWS, 0 \
    }

/* What forward gets. */
typedef struct qr_arch_model {
    const qr_model_config *config; /* of this rank: its heads and its width of the gated half */
    const qr_rope_table *rope;
    const void *model;  /* the architecture's model struct */
    const void *layers; /* [n_layers] of its layer struct */
} qr_arch_model;

typedef struct qr_arch {
    const char *name;
    const char *hf_class;  /* config.json architectures[0] */
    const char *gguf_name; /* general.architecture, or NULL */
    const qr_arch_row *rows;
    size_t row_count;
    size_t model_bytes, layer_bytes;
    /* Checks what only this architecture knows; NULL: nothing. */
    qr_status (*check)(const qr_model_config *config, qr_error *err);
    /* The final normed hidden states of the logit rows (model.h). */
    qr_tensor (*forward)(const qr_arch_model *m, qr_ops *ops);
} qr_arch;

/* NULL: no such architecture. */
const qr_arch *qr_arch_find(const char *architecture);
const qr_arch *qr_arch_at(size_t index); /* NULL past the end */

#endif
