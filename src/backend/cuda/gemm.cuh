/* The matrix products: y = x W^T for BF16 weights and activations with F32 sums. Plain C, so that the glue in C calls
 * it too; the kernels are gemm*.cu.
 *
 * Contract:
 *  - Determinism: the order in which a sum over K is taken depends on (N, K) alone, never on M, on the other rows or
 *    on timing: row m of a product has the same bits at every M.
 *  - M <= 64 streams the weights once at the memory's rate; above that tensor cores are the limit.
 *  - Every launch goes on `stream` and may be captured into a graph: nothing is allocated, no host work is left
 *    behind, no host memory is read later. Kernels may be launched with programmatic serialisation and then begin with
 *    griddepcontrol.wait before they touch x or y (weights may be fetched before it).
 *  - Rows of x and y past M are neither read as numbers that matter nor written.
 * Thread: the engine thread.
 */
#ifndef QR_BACKEND_CUDA_GEMM_CUH
#define QR_BACKEND_CUDA_GEMM_CUH

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cuda_gemm_out {
    CUDA_GEMM_BF16,  /* y BF16 = sum + bias */
    CUDA_GEMM_F32,   /* y F32 = sum + bias */
    CUDA_GEMM_SWIGLU /* matrices 0 and 1 are gate and up: y[0] BF16 = silu(gate) * up, from the F32 sums */
} cuda_gemm_out;

typedef struct cuda_gemm_matrix {
    const void *weight; /* BF16 [n][k], rows k numbers apart, 256-byte aligned */
    const float *bias;  /* [n] or NULL */
    void *y;            /* [m][n], rows y_stride numbers apart, 16-byte aligned when n % 8 == 0 */
    int64_t y_stride;
    int32_t n;
} cuda_gemm_matrix;

#define CUDA_GEMM_MATRICES 3

typedef struct cuda_gemm_job {
    cuda_gemm_matrix matrix[CUDA_GEMM_MATRICES]; /* that share x: run as one launch */
    int32_t count;
    int32_t m,
        k; /* any, also k not a multiple of 8 (rows are then not aligned); fast for k % 64 == 0, n % 8 == 0 */
    const void *x; /* BF16 [m][k], rows x_stride numbers apart, 16-byte aligned when k % 8 == 0 */
    int64_t x_stride;
    cuda_gemm_out out;
} cuda_gemm_job;

/* Once per device, before any product: sets attributes, takes workspaces. workspace: device memory of
 * cuda_gemm_workspace_bytes(), zeroed, that nothing else uses. */
size_t cuda_gemm_workspace_bytes(void);
cudaError_t cuda_gemm_init(void *workspace, int sm_count);
cudaError_t cuda_gemm(cudaStream_t stream, const cuda_gemm_job *job);

#ifdef __cplusplus
}
#endif
#endif
