/* Which kernel makes a product. The choice depends on shapes and alignment alone, and every cut of the wgmma kernel
 * gives the same bits. */
#include "backend/cuda/gemm_wgmma.cuh"

static int processors = 1;

size_t cuda_gemm_workspace_bytes(void) { return 0; }

cudaError_t cuda_gemm_init(void *workspace, int sm_count)
{
    (void)workspace;
    processors = sm_count;
    return cuda_gemm_wgmma_init();
}

cudaError_t cuda_gemm(cudaStream_t stream, const cuda_gemm_job *job)
{
    if (!cuda_gemm_wgmma_fits(job))
        return cuda_gemm_any(stream, job);
    cuda_gemm_plan plan = cuda_gemm_choose(job, processors);
    return cuda_gemm_wgmma(stream, job, &plan);
}
