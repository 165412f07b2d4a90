/* The wgmma kernel's launcher. Private to backend/cuda/. Thread: the engine thread. */
#ifndef QR_BACKEND_CUDA_GEMM_WGMMA_CUH
#define QR_BACKEND_CUDA_GEMM_WGMMA_CUH

#include "backend/cuda/gemm_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any shape (gemm_any.cu): slow. */
cudaError_t cuda_gemm_any(cudaStream_t stream, const cuda_gemm_job *job);
/* Whether the shape is one that the copy engine can read: K and the rows of x in whole 16-byte pieces. */
bool cuda_gemm_wgmma_fits(const cuda_gemm_job *job);
cudaError_t cuda_gemm_wgmma_init(void);
cudaError_t cuda_gemm_wgmma(cudaStream_t stream, const cuda_gemm_job *job, const cuda_gemm_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
