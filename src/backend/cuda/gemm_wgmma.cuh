/* The wgmma kernel's launcher. Private to backend/cuda/. Thread: the engine thread. */
#ifndef QR_BACKEND_CUDA_GEMM_WGMMA_CUH
#define QR_BACKEND_CUDA_GEMM_WGMMA_CUH

#include "backend/cuda/gemm_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any shape (gemm_any.cu): slow. */
cudaError_t cuda_gemm_any(cudaStream_t stream, const cuda_gemm_job *job);
/* Whether the copy engine can read the operands: K in whole atoms of 64, addresses and rows in whole 16 bytes. */
bool cuda_gemm_wgmma_fits(const cuda_gemm_job *job);
cudaError_t cuda_gemm_wgmma_init(cuda_gemm_chip *chip);
cudaError_t cuda_gemm_wgmma(cudaStream_t stream, const cuda_gemm_job *job, const cuda_gemm_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
