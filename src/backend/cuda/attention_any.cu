/* Attention for any head size, group, block size and pages' type, in F32: a warp per (row, head), keys in tiles of 32
 * from left to right. For small models and odd shapes; the tensor-core kernels serve the rest. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int DIMS_MAX = 16; /* of a head, per lane: 512 */

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float number(__half x) { return __half2float(x); }

__device__ __forceinline__ float number(fp8 x) { return static_cast<float>(x); }

__device__ __forceinline__ float warp_max(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ __forceinline__ float warp_sum(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <typename T> __global__ void __launch_bounds__(32) any_kernel(cuda_step_view step, cuda_attention_job job)
{
    pdl_wait();
    pdl_release();
    const cuda_layer_pages &pages = job.pages;
    const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, dim = pages.head_dim;
    const int seq = step.seq_of_row[row], position = step.positions[row], size = pages.block_size;
    if (step.context[seq] == 0)
        return;
    const int32_t *table =
        step.meta + step.meta[CUDA_META_TABLE + pages.group] + seq * step.meta[CUDA_META_STRIDE];
    const int kv_head = head / (job.n_heads / pages.kv_heads);
    const int first = pages.window > 0 ? max(0, position - pages.window + 1) : 0;
    const bf16 *q = static_cast<const bf16 *>(job.q.data) + row * job.q.stride + head * dim;
    float out[DIMS_MAX] = {}, sum = 0, maximum = NO_MAXIMUM;
    for (int key0 = first / 32 * 32; key0 <= position; key0 += 32) {
        int key = key0 + lane;
        bool seen = key >= first && key <= position;
        int64_t page = 0;
        float score = -INFINITY;
        if (seen) {
            page = (static_cast<int64_t>(table[key / size]) * pages.kv_heads + kv_head) * size * dim;
            score = 0;
            for (int i = 0; i < dim; i++)
                score = fmaf(__bfloat162float(q[i]),
                             number(static_cast<const T *>(pages.keys)[page + page_at(pages, key % size, i)]), score);
            score *= job.scale;
        }
        float next = fmaxf(maximum, warp_max(score));
        float factor = maximum == NO_MAXIMUM ? 0.0f : exp2f(maximum - next);
        float weight = seen ? exp2f(score - next) : 0.0f;
        sum = sum * factor + warp_sum(weight);
        maximum = next;
        for (int i = 0; i < DIMS_MAX && i * 32 < dim; i++)
            out[i] *= factor;
        for (int other = 0; other < 32; other++) {
            float p = __shfl_sync(0xffffffffu, weight, other);
            int64_t base = __shfl_sync(0xffffffffu, page, other);
            int slot = (key0 + other) % size;
            if (key0 + other < first || key0 + other > position)
                continue;
#pragma unroll
            for (int i = 0; i < DIMS_MAX; i++)
                if (i * 32 + lane < dim)
                    out[i] = fmaf(p,
                                  number(static_cast<const T *>(pages.values)[base + page_at(pages, slot, i * 32 + lane)]),
                                  out[i]);
        }
    }
    bf16 *y = static_cast<bf16 *>(job.y.data) + row * job.y.stride + head * dim;
#pragma unroll
    for (int i = 0; i < DIMS_MAX; i++)
        if (i * 32 + lane < dim)
            y[i * 32 + lane] = __float2bfloat16(out[i] / sum);
}

} // namespace

cudaError_t cuda_launch_attention_any(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    dim3 grid(static_cast<unsigned>(step->n_tokens), static_cast<unsigned>(job->n_heads));
    if (job->pages.dtype == 0)
        return cuda_launch(any_kernel<float>, grid, dim3(32), 0, s, *step, *job);
    if (job->pages.dtype == 1)
        return cuda_launch(any_kernel<__half>, grid, dim3(32), 0, s, *step, *job);
    if (job->pages.dtype == CUDA_DTYPE_F8)
        return cuda_launch(any_kernel<fp8>, grid, dim3(32), 0, s, *step, *job);
    return cuda_launch(any_kernel<bf16>, grid, dim3(32), 0, s, *step, *job);
}
