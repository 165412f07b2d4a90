/* The op table that a backend fills: a backend is a folder and one line in backend.c. Contracts of the ops are in
 * ops.h; ops.c has checked shapes and taken output memory before it calls here, and never calls while planning.
 * Only backend.c, ops.c and the backends include this file. Thread: as ops.h.
 */
#ifndef QR_BACKEND_BACKEND_H
#define QR_BACKEND_BACKEND_H

#include "backend/ops.h"

/* Every backend's device and KV structs begin with these. */
struct qr_device {
    const struct qr_backend *backend;
    bool broken; /* by qr_device_break */
    char description[128];
    int rank, ranks; /* 0 of 1 unless it is one of a team; set by backend.c */
};
struct qr_kv {
    qr_device *device;
    int n_layers, n_groups;
    const qr_kv_spec *specs; /* [n_layers], owned */
    const uint8_t *group;    /* [n_layers], owned */
    int32_t n_blocks, block_size;
    qr_dtype dtype;
};

typedef struct qr_backend {
    const char *name; /* "cpu" */
    qr_status (*open)(const qr_device_options *options, qr_device **out, qr_error *err);
    void (*close)(qr_device *device);
    void (*use)(qr_device *device); /* the calling thread works for it from now on; NULL: nothing to do */
    uint64_t (*memory_available)(const qr_device *device, double share); /* qr_device_memory_available */
    void (*fault)(
        qr_device *); /* makes it fail as a lost one does (tests); NULL: qr_device_break says so itself */
    void (*rates)(qr_device *, double *read_bytes, double *flops); /* qr_device_rates; NULL: not measured */
    qr_status (*limits)(qr_device *, bool refresh, char **json, qr_error *); /* qr_bench_limits */
    int32_t block_size, batched_tokens, shared_rows;
    int32_t edits; /* qr_device_edits */
    qr_dtype
        activation; /* of activations other than the residual stream (the embedding's rows), which is F32 */
    int32_t logit_rows; /* rows of logits to hold at a time; 0: a few */
    bool kv_f8;         /* its KV caches may be of 8-bit numbers */
    bool own_memory;    /* its memory serves nothing else: KV may take what is left */

    /* Threads of the host; NULL: there is only the caller. */
    int (*host_threads)(const qr_device *device);
    void (*host_run)(qr_device *device, int64_t count, qr_host_task task, void *arg);

    qr_status (*weight_prepare)(qr_device *, qr_weight *, const qr_prepare_options *, qr_error *);
    void (*weight_release)(qr_device *, qr_weight *);
    size_t (*weight_prepared_bytes)(const qr_device *, const qr_weight *, const qr_prepare_options *);
    qr_status (*vector_prepare)(qr_device *, const qr_weight *, const float **, qr_error *);

    qr_status (*kv_open)(qr_device *, const qr_kv_spec *, int n_layers, int32_t n_blocks, int32_t block_size,
                         qr_dtype, qr_kv **, qr_error *);
    void (*kv_close)(qr_kv *);

    void *(*scratch_open)(qr_device *, size_t bytes, qr_error *); /* NULL: out of memory */
    void (*scratch_close)(qr_device *, void *scratch, size_t bytes);
    size_t (*linear_scratch_bytes)(const qr_device *, int64_t rows,
                                   int64_t cols); /* for quantised activations */

    /* The batch as the ops of this step will see it (copied, rows filled up), or NULL: as it is. Called with kv NULL
     * while planning. */
    const qr_batch *(*step_batch)(qr_device *, qr_kv *, const qr_batch *, bool only_draws);
    void (*step_begin)(qr_device *, qr_kv *, const qr_batch *);
    /* What the step's ops had to move and do (ops.h), told just before step_end; NULL: it does not ask. */
    void (*step_work)(qr_device *, uint64_t bytes, uint64_t flops);
    /* Hands over what is left of the step. A backend with step_wait has not finished then: the next step may be made
     * behind it, and so far only that one; step_wait waits for the step before. Without it step_end waits itself. */
    qr_status (*step_end)(qr_device *, qr_error *);
    qr_status (*step_wait)(qr_device *, qr_error *);
    /* Of the step last waited for, by the device's clock; NULL: it has none. */
    void (*step_times)(const qr_device *, uint64_t *begin_ns, uint64_t *end_ns);

    /* Ranks: devices of this backend that compute together (team.h). NULL: it works alone.
     * group_open makes one group of them; it lives as long as they do. group_fail ends all waiting in it, now and from
     * then on: collectives return without a result and step_end says QR_CANCELLED (any thread). Collectives are called
     * by all ranks in the same order with the same shapes. all_reduce: x, dense, becomes the sum over the ranks, taken
     * in their order. all_gather: every rank's x goes into every rank's y from that rank's column `first` on. */
    qr_status (*group_open)(qr_device *const *devices, int count, qr_error *);
    void (*group_fail)(qr_device *);
    void (*all_reduce)(qr_device *, qr_tensor x);
    void (*all_gather)(qr_device *, qr_tensor x, int64_t first, qr_tensor y);

    /* Rows of ids that the table (row_begin, rows) does not have become zero. */
    void (*embed)(qr_device *, const qr_weight *, const int32_t *ids, qr_tensor y);
    void (*rmsnorm)(qr_device *, qr_tensor x, const float *w, float eps, qr_tensor y);
    void (*add)(qr_device *, qr_tensor x, qr_tensor y);
    void (*add_rmsnorm)(qr_device *, qr_tensor x, qr_tensor delta, const float *w, float eps, qr_tensor y);
    void (*linear)(qr_device *, qr_tensor x, const qr_weight *const *w, const float *const *bias, int count,
                   qr_tensor *y, void *scratch);
    void (*linear_swiglu)(qr_device *, qr_tensor x, const qr_weight *gate, const qr_weight *up, qr_tensor y,
                          void *scratch);
    void (*act_mul)(qr_device *, qr_tensor gate, qr_tensor up, qr_activation);
    void (*head_norm)(qr_device *, qr_tensor x, int32_t head_dim, const float *w, float eps);
    qr_status (*rope_prepare)(qr_device *, qr_rope_table *, int64_t positions, qr_error *);
    void (*rope_release)(qr_device *, qr_rope_table *);
    size_t (*rope_bytes)(const qr_rope_table *, int64_t positions); /* NULL: as good as none */
    void (*rope)(qr_device *, qr_tensor x, int32_t head_dim, const qr_rope_table *, const int32_t *positions);
    void (*kv_store)(qr_device *, qr_kv *, int layer, const qr_batch *, qr_tensor k, qr_tensor v);
    /* NULL: head_norm, rope and kv_store one by one. */
    void (*rope_store)(qr_device *, qr_kv *, int layer, const qr_batch *, const qr_tensor qkv[3],
                       const qr_head_norms *, const qr_rope_table *);
    size_t (*attention_scratch_bytes)(const qr_device *, int32_t n_heads, int32_t head_dim, const qr_batch *);
    void (*attention)(qr_device *, qr_kv *, int layer, const qr_batch *, qr_tensor q, int32_t n_heads,
                      float scale, qr_tensor y, void *scratch);
    void (*gather)(qr_device *, qr_tensor x, const int32_t *rows, qr_tensor y);
    /* Draws (ops.h); NULL: it cannot. */
    bool (*draws)(const qr_device *, int32_t vocab);
    void (*draw)(qr_device *, qr_tensor logits, const qr_draw *, int32_t first, int32_t count);
    int32_t (*drawn)(const qr_device *, int32_t row);
    const float *(*drawn_logits)(const qr_device *, int32_t row);
    const float *(*logits)(qr_device *, qr_tensor logits); /* to host memory; NULL: it is host memory */
} qr_backend;

/* No device was named: the first backend that opens serves. */
bool qr_device_is_auto(const char *device);

extern const qr_backend qr_backend_cpu, qr_backend_cuda, qr_backend_sim;

#endif
