/* What the card can do at most: a read of memory far larger than its caches, and a copy. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/limits.h"

namespace {

constexpr int THREADS = 512, UNROLL = 8;

/* Reads all of it; the sum is kept only where it has one value of 2^32, so that all but nothing is written. */
__global__ void __launch_bounds__(THREADS) read_kernel(const uint4 *from, int64_t count, uint32_t *never)
{
    int64_t step = static_cast<int64_t>(gridDim.x) * THREADS * UNROLL;
    uint32_t sum = 0;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS * UNROLL + threadIdx.x; at < count; at += step) {
        uint4 v[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            v[i] = at + i * THREADS < count ? load_stream(from + at + i * THREADS) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (sum == 0x5eed1e55u)
        *never = sum;
}

__global__ void __launch_bounds__(THREADS) copy_kernel(const uint4 *from, int64_t count, uint4 *to)
{
    int64_t step = static_cast<int64_t>(gridDim.x) * THREADS * UNROLL;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * THREADS * UNROLL + threadIdx.x; at < count; at += step) {
        uint4 v[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            if (at + i * THREADS < count)
                v[i] = load_stream(from + at + i * THREADS);
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            if (at + i * THREADS < count)
                to[at + i * THREADS] = v[i];
    }
}

} // namespace

cudaError_t cuda_launch_read(cudaStream_t s, const void *from, size_t bytes, int sm_count, void *never)
{
    read_kernel<<<4 * sm_count, THREADS, 0, s>>>(static_cast<const uint4 *>(from), static_cast<int64_t>(bytes / 16),
                                                 static_cast<uint32_t *>(never));
    return cudaGetLastError();
}

cudaError_t cuda_launch_copy(cudaStream_t s, const void *from, size_t bytes, int sm_count, void *to)
{
    copy_kernel<<<4 * sm_count, THREADS, 0, s>>>(static_cast<const uint4 *>(from), static_cast<int64_t>(bytes / 16),
                                                 static_cast<uint4 *>(to));
    return cudaGetLastError();
}
