/* Launchers of the .cu files, in C types. Each puts one kernel (or two) on the stream and returns the launch's error.
 * Activations are BF16 unless a name says otherwise; the residual stream is F32. Rows are `stride` numbers apart.
 * Private to backend/cuda/. Thread: the engine thread.
 */
#ifndef QR_BACKEND_CUDA_KERNELS_H
#define QR_BACKEND_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- A step's facts in device memory: one block of int32, filled by one copy (step.c) ---- */

enum {
    CUDA_META_STRIDE, /* entries of a sequence in a block table */
    CUDA_META_TAKEN,  /* decode: works that blocks took beyond their first; 0 between kernels */
    CUDA_META_TABLE,  /* + group: where the block table begins */
    CUDA_META_TASKS = CUDA_META_TABLE + 2, /* + group: decode tasks */
    CUDA_META_TASK_LIST =
        CUDA_META_TASKS + 2, /* + group: where (sequence, split, splits, partial result or -1) begin */
    CUDA_META_MERGES = CUDA_META_TASK_LIST + 2, /* + group: sequences with partial results */
    CUDA_META_MERGE_LIST =
        CUDA_META_MERGES + 2, /* + group: where (sequence, first partial result, splits) begin */
    CUDA_META_HEADER = 32
};

typedef struct cuda_rows { /* rows of an activation */
    void *data;
    int64_t stride;
    int32_t rows, cols;
} cuda_rows;

enum { CUDA_DRAWS_MAX = 65536 };
typedef struct cuda_results { /* what a step gives: by %globaltimer, and the drawn tokens by logit row */
    unsigned long long begin_ns, end_ns;
    int32_t ids[CUDA_DRAWS_MAX];
} cuda_results;

typedef struct cuda_step_view { /* device addresses of a step's facts */
    const int32_t *meta, *ids, *source, *positions, *seq_of_row, *context, *seq_start, *logit_rows;
    cuda_results *results; /* of the step before, until a row is drawn */
    int32_t n_tokens, n_seqs;
    int32_t prefill_tiles, prefill_offset; /* (sequence, first row) pairs from meta + offset on */
    bool has_decode;
} cuda_step_view;

/* ---- rows.cu ---- */

/* A step's first kernel: notes when it begins. A row whose id is not known on the host yet takes the one that the
 * step before drew (source). The table has rows [first, first + count) of the vocabulary; other ids give zeros. */
cudaError_t cuda_launch_embed(cudaStream_t s, const void *table, int32_t first, int32_t count,
                              const cuda_step_view *step, cuda_rows y_f32);
cudaError_t cuda_launch_rmsnorm(cudaStream_t s, cuda_rows x_f32, const float *w, float eps, cuda_rows y);
cudaError_t cuda_launch_add(cudaStream_t s, cuda_rows x_f32, cuda_rows delta);
cudaError_t cuda_launch_add_rmsnorm(cudaStream_t s, cuda_rows x_f32, cuda_rows delta, const float *w,
                                    float eps, cuda_rows y);
/* activation: qr_activation */
cudaError_t cuda_launch_act_mul(cudaStream_t s, cuda_rows gate, cuda_rows up, int activation);
/* item: bytes of a number */
cudaError_t cuda_launch_gather(cudaStream_t s, cuda_rows x, const int32_t *rows, cuda_rows y, int item);

/* ---- rope.cu ---- */

typedef struct cuda_rope {
    const float *cos_sin; /* [positions][rotary / 2][2] */
    int32_t rotary, positions;
    bool interleaved;
} cuda_rope;
cudaError_t cuda_launch_rope_table(cudaStream_t s, const float *inv_freq, int32_t half, int64_t positions,
                                   float scale, float *cos_sin);
cudaError_t cuda_launch_rope(cudaStream_t s, cuda_rows x, int32_t head_dim, cuda_rope rope,
                             const int32_t *positions);
cudaError_t cuda_launch_head_norm(cudaStream_t s, cuda_rows x, int32_t head_dim, const float *w, float eps);

/* ---- KV pages: a layer's keys, then its values, lie [block][head][slot][dim]. Of 8 bits: e4m3 at scale 1, what lies
 * beyond 448 becomes 448 ---- */

typedef struct cuda_layer_pages {
    void *keys, *values;
    int32_t kv_heads, head_dim, block_size;
    bool image; /* of 16-bit numbers, as products read them (attention.cuh); else rows of head_dim numbers */
    int dtype;  /* qr_dtype */
    int32_t window;
    int group; /* which block table */
} cuda_layer_pages;

typedef struct cuda_store_job {
    cuda_rows k, v;
    cuda_layer_pages pages;
} cuda_store_job;
cudaError_t cuda_launch_kv_store(cudaStream_t s, const cuda_step_view *step, const cuda_store_job *job);

typedef struct cuda_rope_store_job {
    cuda_rows q, k, v;
    cuda_layer_pages pages;
    const float *q_norm, *k_norm; /* NULL: none */
    float eps;
    cuda_rope rope;
} cuda_rope_store_job;
/* Norms of heads, rotary positions and the store at once, where numbers come in pairs (else one by one). */
bool cuda_rope_store_fits(const cuda_rope_store_job *job);
cudaError_t cuda_launch_rope_store(cudaStream_t s, const cuda_step_view *step,
                                   const cuda_rope_store_job *job);

/* ---- Attention ---- */

enum {
    CUDA_SPLIT = 256,       /* keys of a partial softmax, by absolute position */
    CUDA_PREFILL_ROWS = 128 /* query rows x heads of a prefill tile */
};

typedef struct cuda_attention_job {
    cuda_rows q, y;
    int32_t n_heads;
    float scale;
    cuda_layer_pages pages;
    float *partials; /* decode: cuda_decode_partial_bytes for each */
    int sm_count;
} cuda_attention_job;
size_t cuda_decode_partial_bytes(int32_t n_heads, int32_t head_dim); /* of a split's result */
/* Whether the tensor-core kernels serve these pages; else cuda_launch_attention_any does. */
bool cuda_attention_fits(int32_t n_heads, const cuda_layer_pages *pages);
cudaError_t cuda_launch_decode(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job);
cudaError_t cuda_launch_prefill(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job);
cudaError_t cuda_launch_attention_any(cudaStream_t s, const cuda_step_view *step,
                                      const cuda_attention_job *job);
enum { CUDA_DTYPE_F8 = 4 }; /* QR_DTYPE_F8_E4M3 of cuda_layer_pages.dtype */
cudaError_t cuda_decode_init(void);
cudaError_t cuda_prefill_init(void);

/* ---- draw.cu ---- */

typedef struct cuda_draw { /* qr_draw, as the kernel reads it */
    float temperature, top_p, min_p;
    int32_t top_k;
    double uniform;
    int32_t edits, unused; /* of the first row of a launch: how many edits come before it */
} cuda_draw;

enum { CUDA_EDITS_MAX = 1 << 17 };
typedef struct cuda_edit { /* qr_logit_edit of a row of the launch's logits */
    int32_t row, id;
    float bias, repetition, frequency, presence;
} cuda_edit;
/* draws->edits of them, read on the device. */
cudaError_t cuda_launch_edits(cudaStream_t s, float *logits, int64_t stride, const cuda_draw *draws,
                              const cuda_edit *edits);
bool cuda_draw_fits(int32_t vocab);
/* results->ids[first + i] from row i of the logits by draws[i]; -1: nothing in it is above -inf. Notes when it ends. */
cudaError_t cuda_launch_draw(cudaStream_t s, const float *logits, int64_t stride, int32_t rows, int32_t vocab,
                             const cuda_draw *draws, int32_t first, cuda_results *results);
cudaError_t cuda_launch_trap(cudaStream_t s); /* for tests: the context is lost */
/* The end of a step that draws nothing. */
cudaError_t cuda_launch_stamp(cudaStream_t s, cuda_results *results);

/* ---- group.cu: several GPUs ---- */

enum {
    CUDA_GROUP_RANKS = 8,
    CUDA_GROUP_THREADS = 256,
    CUDA_GROUP_BLOCKS =
        128,               /* that all run at once on any GPU served here: they wait for each other's peers */
    CUDA_GROUP_PASSES = 2, /* packets of a thread in a small sum */
    CUDA_GROUP_SMALL = CUDA_GROUP_PASSES * CUDA_GROUP_BLOCKS * CUDA_GROUP_THREADS * 8 /* bytes: 512 KiB */
};
enum { CUDA_GROUP_FINE, CUDA_GROUP_FAILED, CUDA_GROUP_WAITED /* too long */ };

typedef struct cuda_group { /* what a rank's kernels get */
    int32_t rank, ranks;
    void *mail[CUDA_GROUP_RANKS]; /* of each rank, in its memory, zero at first */
    uint32_t *calls;              /* [CUDA_GROUP_BLOCKS] so far, by block; in own memory */
    uint32_t *failed;             /* CUDA_GROUP_FINE until somebody fails; in host memory, the same for all */
} cuda_group;
size_t cuda_group_mail_bytes(int ranks);
/* x becomes the sum over ranks. Up to 15 bytes behind it are touched. */
cudaError_t cuda_launch_all_reduce(cudaStream_t s, const cuda_group *group, void *x, int64_t bytes,
                                   bool bf16_numbers);
/* F32 rows: x goes into everybody's y from column `first` on. */
cudaError_t cuda_launch_all_gather(cudaStream_t s, const cuda_group *group, cuda_rows x, int64_t first,
                                   cuda_rows y);

/* ---- convert.cu: weights ---- */

/* count blocks of a format -> BF16 */
cudaError_t cuda_launch_expand(cudaStream_t s, int format, const void *blocks, int64_t count, void *out);
cudaError_t cuda_launch_dummy(cudaStream_t s, uint64_t seed, int64_t count, float sigma, void *out);

#ifdef __cplusplus
}
#endif
#endif
