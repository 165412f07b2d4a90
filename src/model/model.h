/* qr_net: a checkpoint bound to an architecture: weights found and checked, prepared for a device, and run.
 *
 * Tensor parallelism: each rank has a net of its own, bound to its share of the same checkpoint by the table's column
 * (arch.h): heads of queries, keys and values, columns of the gated half and rows of the vocabulary are divided;
 * key-value heads are repeated when there are fewer than ranks. Rank r's share follows that of rank r - 1.
 *
 * Three stages, each usable alone: qr_net_bind reads names and shapes only (enough for inspect, plans and dry
 * scratch sizes), qr_net_load prepares the weights on a device, qr_net_forward runs a step. The weights (mapping),
 * config and device must outlive the net. Errors name file, tensor and values.
 * Thread: bind and load by one thread; afterwards immutable, forward by the engine thread.
 */
#ifndef QR_MODEL_MODEL_H
#define QR_MODEL_MODEL_H

#include "backend/ops.h"
#include "loader/config.h"
#include "loader/weights.h"

typedef struct qr_net qr_net;

typedef struct qr_net_options {
    int dtype;           /* a qr_dtype that dense matrices are held in, or -1: as the checkpoint has them */
    uint64_t dummy_seed; /* != 0: seeded random numbers instead of the file's (load format dummy) */
    int64_t positions;   /* positions that will be asked for lie below this; 0: the checkpoint's context */
    qr_progress_fn progress; /* may be NULL */
    void *progress_user;
} qr_net_options;

/* Finds every tensor that the architecture needs and checks its shape and format; refuses unknown ones (but rotary
 * inv_freq buffers and an output head that the config ties). The net is rank `rank` of `ranks` (0 of 1: the whole).
 * Errors: QR_UNSUPPORTED (architecture, rope kind, quantisation, activation; heads, widths or blocks that so many ranks
 * cannot share), QR_BAD_FILE. */
qr_status qr_net_bind(const qr_weights *weights, const qr_model_config *config, int rank, int ranks,
                      qr_net **out, qr_error *err);
/* Prepares the rank's share of all weights for its device; reads nothing else. Once per net. Errors: QR_OUT_OF_MEMORY,
 * QR_UNSUPPORTED. */
qr_status qr_net_load(qr_net *net, qr_device *device, const qr_net_options *options, qr_error *err);
void qr_net_free(qr_net *net); /* NULL is allowed */

/* ---- Facts (after bind) ---- */

const qr_model_config *qr_net_config(const qr_net *net);             /* the whole's */
const char *qr_net_architecture(const qr_net *net);                  /* "llama" */
const qr_kv_spec *qr_net_kv_specs(const qr_net *net, int *n_layers); /* one per layer, of this rank */
uint64_t qr_net_parameters(const qr_net *net); /* the whole's; a tied head counts once */
int32_t qr_net_vocab(const qr_net *net);       /* rows of the whole output head */
bool qr_net_tied(const qr_net *net);           /* the head is the embedding */
/* The dtype that --kv-cache-dtype auto means: F32 for F32 checkpoints, BF16 for BF16, else F16. */
qr_dtype qr_net_kv_dtype(const qr_net *net, const qr_net_options *options);

typedef struct qr_net_memory {
    uint64_t mapped_bytes; /* used in place, in the file's pages */
    uint64_t copied_bytes; /* packed matrices, norms and biases; tables of positions on a GPU */
    uint64_t read_bytes;   /* weight bytes that a step of one token reads */
} qr_net_memory;
/* What loading on this device takes, without loading. */
void qr_net_plan(const qr_net *net, const qr_device *device, const qr_net_options *options,
                 qr_net_memory *memory);

/* Bytes of scratch that a step needs at most: n_tokens rows in up to n_seqs sequences with contexts up to
 * context_max, logits of up to logit_rows rows at a time, and n_logit_rows rows of hidden states. */
typedef struct qr_net_step {
    int32_t n_tokens, n_seqs, n_logit_rows, max_logit_rows;
    int32_t context_max, block_size;
} qr_net_step;
size_t qr_net_scratch_bytes(const qr_net *net, qr_device *device, const qr_net_step *step);

/* Every tensor that the net uses, for inspect. */
typedef struct qr_net_tensor {
    const qr_weights_entry *entry;
    bool is_matrix;
    int64_t rows, cols;        /* of the whole */
    const qr_weight *prepared; /* matrices: this rank's share as it runs; NULL for vectors */
} qr_net_tensor;
size_t qr_net_tensor_count(const qr_net *net);
qr_net_tensor qr_net_tensor_at(const qr_net *net, size_t index);

/* ---- Running (after load); between qr_ops_begin and qr_ops_end ---- */

/* The final normed hidden states of the batch's logit rows: [n_logit_rows, hidden], in scratch until the step's end.
 * Keys and values of all rows are stored. Without logit rows the tensor has no rows. */
qr_tensor qr_net_forward(const qr_net *net, qr_ops *ops);
/* Logits F32 [count, vocab] of the hidden rows [first, first + count), in host memory until qr_ops_release to a mark
 * before; the caller keeps count within the planned max_logit_rows and releases between slices. */
const float *qr_net_logits(const qr_net *net, qr_ops *ops, qr_tensor hidden, int32_t first, int32_t count);
/* Draws tokens for the same rows on the device (qr_op_draw); `last`: no rows of the batch follow, so that the rows that
 * fill it up go along. */
void qr_net_draw(const qr_net *net, qr_ops *ops, qr_tensor hidden, const qr_draw *draws, int32_t first,
                 int32_t count, bool last);

#endif
