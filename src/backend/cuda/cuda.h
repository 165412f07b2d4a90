/* The CUDA backend's shared parts, in C: the device, its memory and the step under way. Kernels are launched through
 * kernels.h and gemm.cuh. Errors of launches are kept in the device until the step ends: the first one names the op.
 * Private to backend/cuda/. Thread: the engine thread.
 */
#ifndef QR_BACKEND_CUDA_CUDA_H
#define QR_BACKEND_CUDA_CUDA_H

#include "backend/backend.h"
#include "backend/cuda/gemm.cuh"
#include "backend/cuda/kernels.h"

struct cuda_memory; /* an allocation that lives as long as the device (memory.c) */

/* How a step runs: op by op, op by op into a recording, or as a recording, with ops that do nothing. */
typedef enum cuda_mode { CUDA_MODE_EAGER, CUDA_MODE_RECORD, CUDA_MODE_REPLAY } cuda_mode;

enum { CUDA_GRAPH_ROWS = 1024, CUDA_GRAPHS = 47, CUDA_SLOTS = 2 };

/* What the host writes for a step and reads of it. Two steps may be under way, one that the device runs and one behind
 * it: each has a slot, in turn. All of it is pinned. */
typedef struct cuda_slot {
    int32_t *facts;   /* [capacity] of the step */
    cuda_draw *draws; /* [CUDA_DRAWS_MAX] */
    cuda_edit *edits; /* [CUDA_EDITS_MAX] */
    int32_t edit_count;
    cuda_results *results;
    int32_t *host_rows; /* rows whose logits go to the host, ascending (not pinned) */
    int32_t host_count, host_copied;
    float *host_logits; /* of host_rows */
    size_t host_logits_bytes;
    cudaEvent_t done;
} cuda_slot;

typedef struct cuda_draws {
    cuda_draw *params; /* in device memory */
    cuda_edit *edits;
    cuda_results *results;
    int32_t first, count, total; /* of the last call; total: rows of all calls of this step */
    qr_tensor logits;            /* of the last call */
} cuda_draws;

typedef struct cuda_step {
    cuda_slot slots[CUDA_SLOTS];
    unsigned launched, waited; /* steps so far */
    cuda_mode mode;
    int bucket;                          /* of graphs[], when it is one */
    cudaGraphExec_t graphs[CUDA_GRAPHS]; /* recorded steps with one row a sequence, by padded rows */
    qr_tensor graph_logits[CUDA_GRAPHS];
    int32_t *host, *device; /* the facts: in the step's slot, and where they are copied */
    size_t capacity, used;  /* int32 in each */
    int32_t rows_max;       /* of planned steps */
    qr_batch batch;         /* what the ops see: points into host */
    cuda_step_view view;
} cuda_step;

typedef struct cuda_device {
    qr_device base; /* first */
    int ordinal, sm_count;
    int32_t n_heads; /* query heads, once planned */
    uint64_t memory_total;
    double read_rate, flop_rate; /* measured, a second; 0: not yet */
    cudaStream_t stream;
    cudaError_t error; /* the first since the device was opened */
    const char *error_op;
    struct cuda_memory *owned;
    cuda_step step;
    cuda_draws draws;
    void *staging[2]; /* pinned: weights on their way in */
    cudaEvent_t staged[2];
    void *device_staging;
    float *host_logits; /* pinned */
    size_t host_logits_bytes;
    float *no_logits;
    cuda_group group;           /* its view; ranks 0: it works alone */
    struct cuda_shared *shared; /* what the ranks have in common (group.c) */
} cuda_device;

typedef struct cuda_kv {
    qr_kv base;    /* first */
    void **layers; /* [n_layers] keys, then values */
    size_t *layer_bytes;
} cuda_kv;

static inline cuda_device *cuda_of(qr_device *device) { return (cuda_device *)device; }

/* Keeps the first error; true when all is well. */
bool cuda_check(cuda_device *device, cudaError_t error, const char *op);
/* qr_fail with the device's name and the runtime's word for the error. */
qr_status cuda_fail(const cuda_device *device, qr_status status, cudaError_t error, const char *what,
                    qr_error *err);

/* Makes the calling thread the device's. */
void cuda_use(qr_device *);

/* ---- group.c ---- */

qr_status cuda_group_open(qr_device *const *devices, int count, qr_error *);
void cuda_group_leave(cuda_device *);
void cuda_group_fail(qr_device *);
void cuda_all_reduce(qr_device *, qr_tensor x);
void cuda_all_gather(qr_device *, qr_tensor x, int64_t first, qr_tensor y);
/* QR_OK until a rank has failed. */
qr_status cuda_group_status(const cuda_device *, qr_error *);

/* ---- memory.c ---- */

/* Device memory until the device closes; NULL with QR_OUT_OF_MEMORY. */
void *cuda_own(cuda_device *device, size_t bytes, const char *what, qr_error *err);
void cuda_owned_free(cuda_device *device);
void *cuda_scratch_open(qr_device *device, size_t bytes, qr_error *err);
void cuda_scratch_close(qr_device *device, void *scratch, size_t bytes);

/* ---- weight.c ---- */

qr_status cuda_weight_prepare(qr_device *, qr_weight *, const qr_prepare_options *, qr_error *);
void cuda_weight_release(qr_device *, qr_weight *);
size_t cuda_weight_prepared_bytes(const qr_device *, const qr_weight *, const qr_prepare_options *);
qr_status cuda_vector_prepare(qr_device *, const qr_weight *, const float **, qr_error *);
qr_status cuda_staging_open(cuda_device *, qr_error *);
void cuda_staging_close(cuda_device *);

/* ---- kv.c ---- */

qr_status cuda_kv_open(qr_device *, const qr_kv_spec *, int n_layers, int32_t n_blocks, int32_t block_size,
                       qr_dtype, qr_kv **, qr_error *);
void cuda_kv_close(qr_kv *);
cuda_layer_pages cuda_kv_layer(const cuda_kv *kv, int layer);

/* ---- step.c ---- */

enum { CUDA_PARTIALS_MAX = 16384 /* results of single splits in a step */ };
enum { CUDA_META_ROOM = 1 << 22 }; /* int32 for a step's facts: 256 contexts of 16k blocks */

qr_status cuda_step_open(cuda_device *, qr_error *);
void cuda_step_close(cuda_device *);
/* The batch in pinned memory, as the ops will see it. kv NULL: planning, nothing is gathered. */
const qr_batch *cuda_step_batch(qr_device *, qr_kv *, const qr_batch *, bool only_draws);
void cuda_step_begin(qr_device *, qr_kv *, const qr_batch *);
qr_status cuda_step_end(qr_device *, qr_error *);
qr_status cuda_step_wait(qr_device *, qr_error *);
void cuda_fault(qr_device *); /* a kernel that traps: an error that the context does not get over */
void cuda_step_times(const qr_device *, uint64_t *begin_ns, uint64_t *end_ns);
/* Recorded steps hold addresses of weights, pages and scratch: forgotten when any of those goes. */
void cuda_graphs_forget(cuda_device *);
/* The slot of the step that is being made, and of the one that was waited for last. */
static inline cuda_slot *cuda_slot_made(cuda_device *device)
{
    return &device->step.slots[device->step.launched % CUDA_SLOTS];
}
static inline const cuda_slot *cuda_slot_done(const cuda_device *device)
{
    return &device->step.slots[(device->step.waited - 1) % CUDA_SLOTS];
}
/* Ops have nothing to do: the step is replayed, or the device has failed. */
static inline bool cuda_idle(const cuda_device *device)
{
    return device->error != cudaSuccess || device->step.mode == CUDA_MODE_REPLAY;
}

/* ---- draw.c ---- */

qr_status cuda_draws_open(cuda_device *, qr_error *);
bool cuda_draws_served(const qr_device *, int32_t vocab);
void cuda_draw_rows(qr_device *, qr_tensor logits, const qr_draw *, int32_t first, int32_t count);
/* Copies of the draws' parameters, and of the logits that the host wants; on the stream. */
void cuda_draws_upload(cuda_device *, int32_t first, int32_t count);
void cuda_edits_upload(cuda_device *, int32_t first);
void cuda_draws_logits(cuda_device *, qr_tensor logits);
int32_t cuda_drawn(const qr_device *, int32_t row);
const float *cuda_drawn_logits(const qr_device *, int32_t row);
/* Room in pinned memory, on the stream; what is there stays. */
bool cuda_host_logits_room(cuda_device *, float **data, size_t *have, size_t bytes);

/* ---- limits.c ---- */

qr_status cuda_limits(qr_device *, bool refresh, char **json, qr_error *);
void cuda_rates(qr_device *, double *read_bytes, double *flops);

/* ---- ops ---- */

void cuda_embed(qr_device *, const qr_weight *, const int32_t *ids, qr_tensor y);
void cuda_rmsnorm(qr_device *, qr_tensor x, const float *w, float eps, qr_tensor y);
void cuda_add(qr_device *, qr_tensor x, qr_tensor y);
void cuda_add_rmsnorm(qr_device *, qr_tensor x, qr_tensor delta, const float *w, float eps, qr_tensor y);
size_t cuda_linear_scratch_bytes(const qr_device *, int64_t rows, int64_t cols);
void cuda_linear(qr_device *, qr_tensor x, const qr_weight *const *w, const float *const *bias, int count,
                 qr_tensor *y, void *scratch);
void cuda_linear_swiglu(qr_device *, qr_tensor x, const qr_weight *gate, const qr_weight *up, qr_tensor y,
                        void *scratch);
void cuda_act_mul(qr_device *, qr_tensor gate, qr_tensor up, qr_activation);
void cuda_head_norm(qr_device *, qr_tensor x, int32_t head_dim, const float *w, float eps);
qr_status cuda_rope_prepare(qr_device *, qr_rope_table *, int64_t positions, qr_error *);
void cuda_rope_release(qr_device *, qr_rope_table *);
size_t cuda_rope_bytes(const qr_rope_table *, int64_t positions);
void cuda_rope_apply(qr_device *, qr_tensor x, int32_t head_dim, const qr_rope_table *,
                     const int32_t *positions);
void cuda_kv_store(qr_device *, qr_kv *, int layer, const qr_batch *, qr_tensor k, qr_tensor v);
void cuda_rope_store(qr_device *, qr_kv *, int layer, const qr_batch *, const qr_tensor qkv[3],
                     const qr_head_norms *, const qr_rope_table *);
size_t cuda_attention_scratch_bytes(const qr_device *, int32_t n_heads, int32_t head_dim, const qr_batch *);
void cuda_attention(qr_device *, qr_kv *, int layer, const qr_batch *, qr_tensor q, int32_t n_heads,
                    float scale, qr_tensor y, void *scratch);
void cuda_gather(qr_device *, qr_tensor x, const int32_t *rows, qr_tensor y);
const float *cuda_logits(qr_device *, qr_tensor logits);

#endif
