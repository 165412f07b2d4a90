/* Rotary positions, norms of heads, and the store of keys and values into pages. */
#include "backend/cuda/attention.cuh"

namespace {

/* In double: at position 100,000 the angle has no bits to spare in float. */
__global__ void table_kernel(const float *inv_freq, int half, int64_t positions, float scale, float *cos_sin)
{
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= positions * half)
        return;
    double sine, cosine;
    sincos(static_cast<double>(i / half) * static_cast<double>(inv_freq[i % half]), &sine, &cosine);
    cos_sin[2 * i] = static_cast<float>(cosine * static_cast<double>(scale));
    cos_sin[2 * i + 1] = static_cast<float>(sine * static_cast<double>(scale));
}

/* A block per row; threads over its pairs. */
__global__ void rope_kernel(cuda_rows x, int head_dim, cuda_rope rope, const int32_t *positions)
{
    pdl_wait();
    pdl_release();
    bf16 *row = static_cast<bf16 *>(x.data) + blockIdx.x * x.stride;
    int half = rope.rotary / 2, position = positions[blockIdx.x];
    const float2 *table = reinterpret_cast<const float2 *>(rope.cos_sin) + static_cast<int64_t>(position) * half;
    for (int i = threadIdx.x; i < x.cols / head_dim * half; i += blockDim.x) {
        bf16 *head = row + i / half * head_dim;
        int pair = i % half, a = rope.interleaved ? 2 * pair : pair, b = rope.interleaved ? a + 1 : pair + half;
        float2 cs = table[pair];
        float u = __bfloat162float(head[a]), v = __bfloat162float(head[b]);
        head[a] = __float2bfloat16(u * cs.x - v * cs.y);
        head[b] = __float2bfloat16(v * cs.x + u * cs.y);
    }
}

/* A warp per head. */
__global__ void head_norm_kernel(cuda_rows x, int head_dim, const float *w, float eps)
{
    pdl_wait();
    pdl_release();
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (head >= x.cols / head_dim)
        return;
    bf16 *at = static_cast<bf16 *>(x.data) + blockIdx.x * x.stride + head * head_dim;
    float sum = 0;
    for (int i = lane; i < head_dim; i += 32) {
        float v = __bfloat162float(at[i]);
        sum += v * v;
    }
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    float inverse = rsqrtf(sum / static_cast<float>(head_dim) + eps);
    for (int i = lane; i < head_dim; i += 32)
        at[i] = __float2bfloat16(__bfloat162float(at[i]) * inverse * w[i]);
}

template <typename T> __device__ __forceinline__ T convert(float x);
template <> __device__ __forceinline__ bf16 convert<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ float convert<float>(float x) { return x; }
template <> __device__ __forceinline__ __half convert<__half>(float x)
{
    return __float2half(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

/* A block per row. */
template <typename T>
__global__ void store_kernel(cuda_rows k, cuda_rows v, cuda_layer_pages pages, cuda_step_view step)
{
    pdl_wait();
    pdl_release();
    int row = blockIdx.x, seq = step.seq_of_row[row], position = step.positions[row];
    if (step.context[seq] == 0)
        return; /* a row that fills the batch up */
    const int32_t *table = step.meta + step.meta[CUDA_META_TABLE + pages.group];
    int64_t block = table[seq * step.meta[CUDA_META_STRIDE] + position / pages.block_size];
    int slot = position % pages.block_size, dim = pages.head_dim;
    const bf16 *from_k = static_cast<const bf16 *>(k.data) + row * k.stride;
    const bf16 *from_v = static_cast<const bf16 *>(v.data) + row * v.stride;
    for (int i = threadIdx.x; i < k.cols; i += blockDim.x) {
        int64_t head = (block * pages.kv_heads + i / dim) * pages.block_size * dim;
        int64_t at = head + page_at(pages, slot, i % dim);
        static_cast<T *>(pages.keys)[at] = convert<T>(__bfloat162float(from_k[i]));
        static_cast<T *>(pages.values)[at] = convert<T>(__bfloat162float(from_v[i]));
    }
}

} // namespace

cudaError_t cuda_launch_rope_table(cudaStream_t s, const float *inv_freq, int32_t half, int64_t positions, float scale,
                                   float *cos_sin)
{
    unsigned blocks = static_cast<unsigned>((positions * half + 255) / 256);
    table_kernel<<<blocks, 256, 0, s>>>(inv_freq, half, positions, scale, cos_sin);
    return cudaGetLastError();
}

cudaError_t cuda_launch_rope(cudaStream_t s, cuda_rows x, int32_t head_dim, cuda_rope rope, const int32_t *positions)
{
    return cuda_launch(rope_kernel, dim3(static_cast<unsigned>(x.rows)), dim3(256), 0, s, x, head_dim, rope, positions);
}

cudaError_t cuda_launch_head_norm(cudaStream_t s, cuda_rows x, int32_t head_dim, const float *w, float eps)
{
    dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>((x.cols / head_dim + 7) / 8));
    return cuda_launch(head_norm_kernel, grid, dim3(256), 0, s, x, head_dim, w, eps);
}

cudaError_t cuda_launch_kv_store(cudaStream_t s, const cuda_step_view *step, const cuda_store_job *job)
{
    dim3 grid(static_cast<unsigned>(step->n_tokens));
    if (job->pages.dtype == 0)
        return cuda_launch(store_kernel<float>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
    if (job->pages.dtype == 1)
        return cuda_launch(store_kernel<__half>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
    return cuda_launch(store_kernel<bf16>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
}
