/* cuBLASLt where it is installed, opened at run time: the oracle of tests/gpu and the yardstick of bench/gpu. Its sums
 * may depend on M, so that no product of a deterministic run goes through it. Private to backend/cuda/.
 * Thread: the engine thread.
 */
#ifndef QR_BACKEND_CUDA_CUBLASLT_H
#define QR_BACKEND_CUDA_CUBLASLT_H

#include "backend/cuda/gemm.cuh"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_cublaslt cuda_cublaslt;
typedef struct cuda_cublaslt_product cuda_cublaslt_product;

enum { CUDA_CUBLASLT_CHOICES = 16, CUDA_CUBLASLT_WORKSPACE = 64 << 20 };

/* NULL where there is no such library. workspace: CUDA_CUBLASLT_WORKSPACE bytes of device memory. */
cuda_cublaslt *cuda_cublaslt_open(void *workspace);
void cuda_cublaslt_close(cuda_cublaslt *library);
/* Matrix 0 of the job, without its bias and its activation; NULL when the library has no kernel for it. */
cuda_cublaslt_product *cuda_cublaslt_plan(cuda_cublaslt *library, const cuda_gemm_job *job);
void cuda_cublaslt_free(cuda_cublaslt_product *product);
/* How many kernels its heuristics offer, best guess first. */
int cuda_cublaslt_choices(const cuda_cublaslt_product *product);
/* Status of the library, 0 for success. */
int cuda_cublaslt_run(cuda_cublaslt_product *product, int choice, cudaStream_t stream,
                      const cuda_gemm_job *job);

#ifdef __cplusplus
}
#endif
#endif
