/* How a product is cut for the wgmma kernel (gemm_wgmma.cu): plain arithmetic on shapes, so that it can be tested
 * without a GPU. The cut decides speed alone: the order of each sum is fixed by cuda_gemm_segments.
 *
 * A block of the grid works on tiles: `rows` rows of weights for each of its products of 64 rows (fewer than 64 leave
 * the rest of the product unused), times `tokens` tokens. Two groups of four warps compute, `blocks` products each.
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
    CUDA_SPLIT_NONE,   /* one segment */
    CUDA_SPLIT_INSIDE, /* the two groups of a block take one each, for the same rows */
    CUDA_SPLIT_CLUSTER /* the two blocks of a cluster take one each, for the same rows */
} cuda_gemm_split;

typedef struct cuda_gemm_plan {
    cuda_gemm_split split;
    int32_t blocks, tokens;   /* 1 or 2; 8, 16, 32, 64 or 128 */
    int32_t rows;             /* a multiple of 8, at most 64 */
    int32_t tile_rows;        /* rows of y that a tile gives */
    int32_t segments, atoms;  /* atoms: 64 numbers along K; of a segment */
    int32_t parts, part_rows; /* pieces of weights that a stage holds */
    int32_t atom_bytes;       /* of weights and tokens in a stage, per atom */
    int32_t depth, stages;    /* atoms of a stage; stages in flight */
    int32_t row_tiles, token_tiles, grid;
    int32_t shared_bytes;
} cuda_gemm_plan;

enum {
    CUDA_GEMM_HEAD_BYTES = 1024, /* barriers */
    CUDA_GEMM_STAGES_MAX = 32,
    CUDA_GEMM_SHARED_MAX = 227 * 1024,
    CUDA_GEMM_OVERRUN = 8192 /* what a product of fewer than 64 rows reads past the last stage */
};

/* Segments that a sum over K is cut into: each is summed from left to right, then they are added. */
int32_t cuda_gemm_segments(int64_t rows, int32_t k);
/* Rows of all matrices of the job. */
int64_t cuda_gemm_rows(const cuda_gemm_job *job);
/* The fastest cut, by a model of the chip. */
cuda_gemm_plan cuda_gemm_choose(const cuda_gemm_job *job, int sm_count);
/* The cut with these choices; false when it does not fit. */
bool cuda_gemm_cut(const cuda_gemm_job *job, int sm_count, cuda_gemm_split split, int32_t blocks,
                   int32_t tokens, int32_t rows, cuda_gemm_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
