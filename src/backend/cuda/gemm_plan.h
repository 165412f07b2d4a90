/* How a product is cut for the wgmma kernel (gemm_wgmma.cu): plain arithmetic on shapes, so that it can be tested
 * without a GPU. The cut decides speed alone: the order of each sum is fixed by cuda_gemm_segments.
 *
 * A block of the grid works on tiles: `rows` rows of weights times `tokens` tokens. Its `groups` groups of four warps
 * compute 64 rows each, the last perhaps fewer. Blocks form clusters: `row_peers`
 * of them have other rows for the same tokens and fetch a share of the tokens each, for all; `token_peers` likewise.
 * For SwiGLU a tile's rows are woven, 8 of gate and 8 of up in turn.
 * Private to backend/cuda/. Thread: any.
 */
#ifndef QR_BACKEND_CUDA_GEMM_PLAN_H
#define QR_BACKEND_CUDA_GEMM_PLAN_H

#include "backend/cuda/gemm.cuh"

#ifdef __cplusplus
extern "C" {
#endif

/* Who sums the segments of K. */
typedef enum cuda_gemm_split {
    CUDA_GEMM_WHOLE,   /* there is one segment */
    CUDA_GEMM_INSIDE,  /* the two groups of a block take one each, for the same rows */
    CUDA_GEMM_CLUSTER, /* two blocks of a cluster take one each, for the same rows */
    CUDA_GEMM_TURNS    /* every group takes one after the other, with registers for both */
} cuda_gemm_split;

typedef struct cuda_gemm_cut { /* what may be chosen */
    cuda_gemm_split split;
    int32_t groups;                 /* 1 or 2 */
    int32_t tokens;                 /* 8, 16, ... 256 */
    int32_t rows;                   /* of weights in a tile: a multiple of 8, of 16 when woven */
    int32_t row_peers, token_peers; /* 1, 2 or 4 */
} cuda_gemm_cut;

typedef struct cuda_gemm_plan {
    cuda_gemm_cut cut;
    int32_t woven;                     /* 0 or 1 */
    int32_t y_rows;                    /* of y in a tile */
    int32_t segments, atoms;           /* atoms: 64 numbers along K; of a segment */
    int32_t cluster;                   /* blocks in one */
    int32_t parts;                     /* of a stage: 2 for CUDA_GEMM_INSIDE, else 1 */
    int32_t atom_bytes, depth, stages; /* of a stage per atom; atoms of a stage; stages in flight */
    int32_t row_tiles, token_tiles;    /* for a cluster: row_peers and token_peers tiles count as one */
    int32_t exchange_bytes;            /* of shared memory, for segments that are joined there */
    int32_t grid, shared_bytes;
} cuda_gemm_plan;

enum {
    CUDA_GEMM_HEAD_BYTES = 1024, /* barriers */
    CUDA_GEMM_STAGES_MAX = 32,
    CUDA_GEMM_TURN_TOKENS = 192, /* with CUDA_GEMM_TURNS, and only there */
    CUDA_GEMM_STAGED_TOKENS =
        128, /* from so many on BF16 leaves through shared memory, 64 tokens a group at a time */
    CUDA_GEMM_SHARED_MAX = 227 * 1024
};

typedef struct cuda_gemm_chip {
    int32_t clusters[4]; /* of 1, 2, 4 and 8 blocks that run at once */
} cuda_gemm_chip;

/* Rows of all matrices of the job. */
int64_t cuda_gemm_rows(const cuda_gemm_job *job);
/* Segments that a sum over K is cut into: each is summed from left to right, then they are added. */
int32_t cuda_gemm_segments(int64_t rows, int32_t k);
/* The plan for these choices; false when they do not fit the job or the chip. */
bool cuda_gemm_plan_for(const cuda_gemm_job *job, const cuda_gemm_chip *chip, const cuda_gemm_cut *cut,
                        cuda_gemm_plan *plan);
/* Calls use for every cut that fits. */
void cuda_gemm_each_plan(const cuda_gemm_job *job, const cuda_gemm_chip *chip,
                         void (*use)(void *context, const cuda_gemm_plan *plan), void *context);
/* The fastest by a model of the chip. */
cuda_gemm_plan cuda_gemm_choose(const cuda_gemm_job *job, const cuda_gemm_chip *chip);

#ifdef __cplusplus
}
#endif
#endif
