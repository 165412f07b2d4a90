/* The operations that models call. ops.c checks shapes, takes output memory from the step's scratch and
 * dispatches to the backend's table (backend.h): one level of indirection.
 *
 * A qr_ops is one execution: device, KV cache, batch and scratch. In planning mode (qr_ops_plan_begin) ops
 * check shapes and take scratch but compute nothing: the peak is the exact scratch a batch shape needs.
 * Determinism: each output row depends only on its own sequence's tokens; every reduction has one order that
 * depends on shapes of the model and on absolute positions, never on the batch, the chunking or the threads.
 * Several devices may compute one model together (team.h): each is a rank that runs the same ops on its share, and the
 * ops that need all shares say so. Sums over ranks are taken in the order of ranks.
 * Thread: the engine thread (it is worker 0 of the CPU pool); with several ranks, each rank's own.
 */
#ifndef QR_BACKEND_OPS_H
#define QR_BACKEND_OPS_H

#include <stdbool.h>

#include "backend/batch.h"
#include "base/status.h"
#include "loader/config.h"
#include "quant/weight.h"
#include "tensor/tensor.h"

typedef struct qr_device qr_device; /* an opened backend: threads, streams, memory */
typedef struct qr_kv qr_kv;         /* the paged KV cache of all layers in device memory */
typedef struct qr_ops qr_ops;

/* ---- Devices ---- */

typedef struct qr_device_options {
    const char *device; /* "auto", "cpu", "cuda", "cuda:1", "sim", "sim:flops=4e14,overhead=1e-3" */
    const char *isa;    /* "auto", "generic", "avx2", "avx512" */
    int threads;        /* 0: all */
    int rank, ranks;    /* which of how many that will work together; 0 of 0: it works alone */
} qr_device_options;
qr_status qr_device_open(const qr_device_options *options, qr_device **out, qr_error *err);
void qr_device_close(qr_device *device);
/* For tests: the step under way fails, and whatever comes after it, as when the device is lost. */
void qr_device_break(qr_device *device);
const char *qr_device_name(const qr_device *device); /* "cpu" */
const char *qr_device_describe(
    const qr_device *device); /* "cpu avx512+vnni+bf16, 2 threads": part of the fingerprint */
/* What may be taken now: of a device's own memory `share` of all of it, less what is taken already (by anyone); of memory
 * that ranks share, this one's part. */
uint64_t qr_device_memory_available(const qr_device *device, double share);
/* Bytes a second that it can read and BF16 operations that it can do, measured (at the first call; takes 1 GiB for as
 * long); 0: not measured. */
void qr_device_rates(qr_device *device, double *read_bytes, double *flops);
int32_t qr_device_block_size(const qr_device *device); /* the page size it wants: 16 on the CPU */
int32_t qr_device_batched_tokens(
    const qr_device *device); /* a good token budget for a step: 512 on the CPU */
int32_t qr_device_shared_rows(
    const qr_device *device); /* rows of prompts that make a step efficient: 256 there */
bool qr_device_owns_memory(const qr_device *device); /* KV may take all that weights and scratch leave */
bool qr_device_holds_kv(const qr_device *device, qr_dtype dtype); /* whether its KV caches can be of that */
int32_t qr_device_logit_rows(const qr_device *device); /* rows of logits to hold at a time; 0: a few */

/* Work of the host beside the device's ops (sampling): task(arg, index, worker) for each index in [0, count), in any
 * order, on the threads that the backend has anyway; worker < qr_device_host_threads. */
typedef void (*qr_host_task)(void *arg, int64_t index, int worker);
int qr_device_host_threads(const qr_device *device);
void qr_device_host_run(qr_device *device, int64_t count, qr_host_task task, void *arg);

/* ---- Weights ---- */

/* Decides whether the weight is used in place or copied into a packed layout, and does it (in parallel).
 * compute: the dtype dense weights are held in (--dtype). Only matrices go through here; use_as_embedding: rows are
 * also read one by one by qr_op_embed. `dummy_seed` != 0: fills with seeded random-normal numbers instead of reading
 * the parts (load format dummy). Errors: QR_OUT_OF_MEMORY, QR_UNSUPPORTED. */
typedef struct qr_prepare_options {
    qr_dtype compute;
    bool use_as_embedding;
    uint64_t dummy_seed;
} qr_prepare_options;
qr_status qr_weight_prepare(qr_device *device, qr_weight *weight, const qr_prepare_options *options,
                            qr_error *err);
void qr_weight_release(qr_device *device, qr_weight *weight);
/* What prepare would do, without doing it: bytes copied (0: mapped as it is). For inspect and the memory plan. */
size_t qr_weight_prepared_bytes(const qr_device *device, const qr_weight *weight,
                                const qr_prepare_options *options);
/* Vectors (norms, biases) become F32 in `arena`-like memory of the device: *out owned by the device until it
 * closes. */
qr_status qr_vector_prepare(qr_device *device, const qr_weight *weight, const float **out, qr_error *err);

/* ---- KV cache ---- */

size_t qr_kv_block_bytes(const qr_kv_spec *specs, int n_layers, int32_t block_size, qr_dtype dtype);
/* specs of all layers; n_blocks per group. Errors: QR_OUT_OF_MEMORY. */
qr_status qr_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                     int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err);
void qr_kv_close(qr_kv *kv);
int qr_kv_group_of(const qr_kv *kv, int layer);
/* Groups layers by window: fills group_window[] and returns the count, or -1 when more than QR_KV_GROUPS_MAX. Pure. */
int qr_kv_groups(const qr_kv_spec *specs, int n_layers, int32_t group_window[QR_KV_GROUPS_MAX]);

/* ---- Execution ---- */

/* scratch_bytes: from planning. */
qr_status qr_ops_open(qr_device *device, qr_kv *kv, size_t scratch_bytes, qr_ops **out, qr_error *err);
void qr_ops_close(qr_ops *ops);
/* A planning ops needs no memory: device, specs' shapes and a batch shape are enough. */
qr_ops *qr_ops_plan_new(qr_device *device);
size_t qr_ops_scratch_peak(const qr_ops *ops);

void qr_ops_begin(qr_ops *ops, const qr_batch *batch); /* a step; scratch empty again */
/* Waits for the device. QR_DEVICE_FAILED, which also ends the waiting of the other ranks: theirs is QR_CANCELLED. */
qr_status qr_ops_end(qr_ops *ops, qr_error *err);
/* qr_ops_end in two halves, so that the host can make the next step while the device runs this one: begin 1, launch 1,
 * begin 2, launch 2, wait 1, begin 3, ... On a device that does not run ahead, launch does all of it. */
qr_status qr_ops_launch(qr_ops *ops, qr_error *err);
qr_status qr_ops_wait(qr_ops *ops, qr_error *err);
bool qr_device_runs_ahead(const qr_device *device);
/* When the step last waited for began and ended, by the device's clock; 0 where it has none. */
void qr_ops_times(const qr_ops *ops, uint64_t *begin_ns, uint64_t *end_ns);
const qr_batch *qr_ops_batch(const qr_ops *ops);

/* Scratch is a stack: release what was taken since the mark (a layer's temporaries). */
size_t qr_ops_mark(const qr_ops *ops);
void qr_ops_release(qr_ops *ops, size_t mark);
/* Bytes and FLOPs that the ops of this step had to move and do, counted as they are called. */
void qr_ops_work(const qr_ops *ops, uint64_t *bytes, uint64_t *flops);

/* Shapes: T = rows of x (batch->n_tokens unless said). Activations are F32 on the CPU; on a GPU the residual stream
 * (what embed returns) is F32, the rest BF16. */

/* An uninitialised activation [rows, cols] from the scratch: what a caller keeps across a mark. */
qr_tensor qr_op_tensor(qr_ops *ops, int64_t rows, int64_t cols);

/* [T] ids of the batch -> [T, hidden]. Ids were checked against the vocabulary at submission. With several ranks each
 * has some of the table's rows, and all get the sum. */
qr_tensor qr_op_embed(qr_ops *ops, const qr_weight *table);
/* y = x / rms(x) * w, per row. */
qr_tensor qr_op_rmsnorm(qr_ops *ops, qr_tensor x, const float *w, float eps);
/* x += y; in place. */
void qr_op_add(qr_ops *ops, qr_tensor x, qr_tensor y);
/* x += y in place, then returns rmsnorm(x): one pass. */
qr_tensor qr_op_add_rmsnorm(qr_ops *ops, qr_tensor x, qr_tensor y, const float *w, float eps);
/* y[i] = x W[i]^T (+ bias[i], may be NULL): [T, K] x [N_i, K] -> [T, N_i]; up to 3 matrices that share x, so that x
 * is quantised or converted once and threads are started once. */
#define QR_LINEAR_MAX 3
void qr_op_linear(qr_ops *ops, qr_tensor x, const qr_weight *const *weights, const float *const *biases,
                  int count, qr_tensor *y);
/* The same for one matrix into y [T, N], which the caller took. bias may be NULL. */
void qr_op_linear_into(qr_ops *ops, qr_tensor x, const qr_weight *weight, const float *bias, qr_tensor y);
/* The same where each rank has some of the columns of W and of x: y is the sum of all ranks' products, plus bias. */
void qr_op_linear_sum(qr_ops *ops, qr_tensor x, const qr_weight *weight, const float *bias, qr_tensor y);
/* silu(x Wg^T) * (x Wu^T): the gated MLP's first half, fused. */
qr_tensor qr_op_linear_swiglu(qr_ops *ops, qr_tensor x, const qr_weight *gate, const qr_weight *up);
/* Other gated activations: "silu", "gelu", "gelu_tanh"; out = act(gate) * up, in place in gate. */
typedef enum qr_activation { QR_ACT_SILU, QR_ACT_GELU, QR_ACT_GELU_TANH } qr_activation;
void qr_op_act_mul(qr_ops *ops, qr_tensor gate, qr_tensor up, qr_activation activation);
/* RMS norm of each head of x [T, heads * head_dim] in place; w [head_dim] (Qwen3). */
void qr_op_head_norm(qr_ops *ops, qr_tensor x, int32_t head_dim, const float *w, float eps);
/* Rotary embedding in place by the batch's positions. table: qr_rope_table, made once per model. */
typedef struct qr_rope_table {
    const float *inv_freq; /* [rotary_dim / 2], scaling applied; model arena */
    int32_t rotary_dim;    /* <= head_dim; the rest passes through */
    float scale;           /* of cos and sin (YaRN's attention factor); 1 */
    bool interleaved;      /* pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2) */
    void *prepared; /* the backend's: cosines and sines by position, each computed once, when first needed */
} qr_rope_table;
/* positions: all that qr_op_rope will be asked for lie below it. The table must not move until it is released.
 * Errors: QR_OUT_OF_MEMORY. */
qr_status qr_rope_prepare(qr_device *device, qr_rope_table *table, int64_t positions, qr_error *err);
void qr_rope_release(qr_device *device, qr_rope_table *table);
/* What prepare takes of the device's memory. */
size_t qr_rope_bytes(const qr_device *device, const qr_rope_table *table, int64_t positions);
void qr_op_rope(qr_ops *ops, qr_tensor x, int32_t head_dim, const qr_rope_table *table);
/* Writes k, v [T, n_kv_heads * head_dim] of the batch's rows into the layer's pages. */
void qr_op_kv_store(qr_ops *ops, int layer, qr_tensor k, qr_tensor v);
/* What lies between the products and attention, at once: head_norm of q and k (a norm NULL: none), rope of both, and
 * kv_store. q in place; k is used up. */
typedef struct qr_head_norms {
    const float *q, *k; /* [head_dim] */
    float eps;
} qr_head_norms;
void qr_op_rope_store(qr_ops *ops, int layer, const qr_tensor qkv[3], const qr_head_norms *norms,
                      const qr_rope_table *table);
/* Causal attention of q [T, n_heads * head_dim] over the layer's pages (own rows are stored before):
 * softmax(scale q k^T) v -> [T, n_heads * head_dim]. Window from the layer's spec. The walk over KV is a function
 * of absolute position only; masked rows are never read as values. */
qr_tensor qr_op_attention(qr_ops *ops, int layer, qr_tensor q, int32_t n_heads, float scale);
/* Rows of x named by rows[count] -> [count, cols]. */
qr_tensor qr_op_gather(qr_ops *ops, qr_tensor x, const int32_t *rows, int32_t count);
/* Logits in host memory, F32 [x.rows, vocabulary]; valid until the scratch is released. Waits for the device. With several
 * ranks each has some of the head's rows, and all get the logits of the whole. */
const float *qr_op_logits(qr_ops *ops, qr_tensor x, const qr_weight *head);

/* ---- Drawing on the device: for backends that can; the logits then stay there ---- */

/* What masks and penalties make of one logit x of a row, each step rounded: x + bias (-inf bans it; NaN counts as
 * -inf), then x > 0 ? x / repetition : x * repetition, then - frequency, then - presence. */
typedef struct qr_logit_edit {
    int32_t id;
    float bias, repetition, frequency, presence;
} qr_logit_edit;

/* How a row's token is drawn (sample/sampler.h's rules). */
typedef struct qr_draw {
    float temperature; /* 0: greedy */
    float top_p, min_p;
    int32_t top_k;
    double uniform; /* [0, 1): the draw */
    bool to_host;   /* leave it to the host: bring the logits instead */
    const qr_logit_edit
        *edits; /* [edit_count] made before the draw, an id at most once; read by qr_op_draw alone */
    int32_t edit_count;
} qr_draw;
bool qr_device_draws(const qr_device *device, int32_t vocab);
int32_t qr_device_edits(
    const qr_device *device); /* edits that a step may bring; 0: none, such rows go to the host */
/* Promise: all logits of this execution will be asked for by qr_op_draw, none by qr_op_logits, so that a step needs
 * nothing of the host before its end (and may be replayed from a recording). */
void qr_ops_promise_draws(qr_ops *ops);
/* Draws for rows [first, first + count) of the batch's logit rows, whose hidden states are x (x may have more rows:
 * what fills a batch up). Results are there after qr_ops_end or qr_ops_wait, until the next of these; every rank has
 * them. */
void qr_op_draw(qr_ops *ops, qr_tensor x, const qr_weight *head, const qr_draw *draws, int32_t first,
                int32_t count);
int32_t qr_ops_drawn(const qr_ops *ops, int32_t row);             /* -1: no finite logit */
const float *qr_ops_drawn_logits(const qr_ops *ops, int32_t row); /* of rows with to_host */

#endif
