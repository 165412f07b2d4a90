/* Measuring the card: launchers of limits.cu, and cuBLASLt's product where the library is there. limits.c puts them
 * together. Private to backend/cuda/. Thread: one.
 */
#ifndef QR_BACKEND_CUDA_LIMITS_H
#define QR_BACKEND_CUDA_LIMITS_H

#include <stdbool.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t cuda_launch_read(cudaStream_t s, const void *from, size_t bytes, int sm_count, void *never);
cudaError_t cuda_launch_copy(cudaStream_t s, const void *from, size_t bytes, int sm_count, void *to);

#ifdef __cplusplus
}
#endif
#endif
