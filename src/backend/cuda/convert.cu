/* Weights on their way in: every format to BF16, and seeded random numbers for load format dummy. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/kernels.h"
#include "quant/format.h"
#include "quant/format_headers.inc"

namespace {

__device__ __forceinline__ int64_t thread_index()
{
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/* A thread per block of the format (dense formats: per number). */
#define QR_FORMAT_ROW(name)                                                                                      \
    __global__ void expand_##name(const uint8_t *blocks, int64_t count, bf16 *out)                               \
    {                                                                                                         \
        int64_t i = thread_index();                                                                       \
        if (i >= count)                                                                                       \
            return;                                                                                           \
        float values[QR_TRAIT_BLOCK(name)];                                                                      \
        qr_##name##_dequant_block(blocks + i * QR_TRAIT_BYTES(name), values);                                       \
        for (int j = 0; j < QR_TRAIT_BLOCK(name); j++)                                                           \
            out[i * QR_TRAIT_BLOCK(name) + j] = __float2bfloat16(values[j]);                                     \
    }
#include "quant/formats.inc"
#undef QR_FORMAT_ROW

__device__ uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Box and Muller: two normal numbers from 64 random bits. */
__global__ void dummy_kernel(uint64_t seed, int64_t pairs, float sigma, __nv_bfloat162 *out)
{
    int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs; i += step) {
        uint64_t bits = mix(seed + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull);
        float u = (static_cast<float>(static_cast<uint32_t>(bits >> 40)) + 0.5f) * 0x1p-24f;
        float radius = sigma * sqrtf(-2.0f * __logf(u)), angle = static_cast<float>(static_cast<uint32_t>(bits));
        float sine, cosine;
        __sincosf(angle * 1.4629180792671596e-9f, &sine, &cosine); /* 2 pi / 2^32 */
        out[i] = __floats2bfloat162_rn(radius * cosine, radius * sine);
    }
}

} // namespace

cudaError_t cuda_launch_expand(cudaStream_t s, int format, const void *blocks, int64_t count, void *out)
{
    unsigned grid = static_cast<unsigned>((count + 255) / 256);
    switch (format) {
#define QR_FORMAT_ROW(name)                                                                                              \
    case QR_FORMAT_##name:                                                                                               \
        expand_##name<<<grid, 256, 0, s>>>(static_cast<const uint8_t *>(blocks), count, static_cast<bf16 *>(out));       \
        break;
#include "quant/formats.inc"
#undef QR_FORMAT_ROW
    default:
        return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t cuda_launch_dummy(cudaStream_t s, uint64_t seed, int64_t count, float sigma, void *out)
{
    dummy_kernel<<<2048, 256, 0, s>>>(seed, (count + 1) / 2, sigma, static_cast<__nv_bfloat162 *>(out));
    return cudaGetLastError();
}
