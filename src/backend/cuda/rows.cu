/* Row kernels: embedding, norms, additions, activations, gather. All of them are bound by the bytes they move. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/kernels.h"

namespace {

__global__ void embed_kernel(const bf16 *table, int first, int count, cuda_step_view step, cuda_rows y)
{
    pdl_wait();
    pdl_release();
    if (blockIdx.x == 0 && threadIdx.x == 0)
        step.results->begin_ns = global_ns();
    int source = step.source[blockIdx.x];
    int id = source < 0 ? step.ids[blockIdx.x] : max(step.results->ids[source], 0);
    bool here = id >= first && id - first < count;
    const bf16 *from = table + static_cast<int64_t>(here ? id - first : 0) * y.cols;
    float *to = static_cast<float *>(y.data) + blockIdx.x * y.stride;
    for (int i = threadIdx.x; i < y.cols; i += blockDim.x)
        to[i] = here ? __bfloat162float(from[i]) : 0;
}

/* A row in registers: PER_THREAD numbers a thread in runs of 4. Add: x += delta first. One order of sums for a given
 * width, whatever the rows. */
template <int Threads, int Runs, bool Add>
__global__ void __launch_bounds__(Threads) norm_kernel(cuda_rows x, cuda_rows delta, const float *w, float eps,
                                                       cuda_rows y)
{
    pdl_wait();
    pdl_release();
    float *from = static_cast<float *>(x.data) + blockIdx.x * x.stride;
    const bf16 *plus = static_cast<const bf16 *>(delta.data) + blockIdx.x * delta.stride;
    bf16 *to = static_cast<bf16 *>(y.data) + blockIdx.x * y.stride;
    float4 v[Runs];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < Runs; i++) {
        int at = (i * Threads + threadIdx.x) * 4;
        v[i] = make_float4(0, 0, 0, 0);
        if (at >= x.cols)
            continue;
        v[i] = *reinterpret_cast<const float4 *>(from + at);
        if (Add) {
            uint2 d = *reinterpret_cast<const uint2 *>(plus + at);
            v[i].x += bf16_low(d.x);
            v[i].y += bf16_high(d.x);
            v[i].z += bf16_low(d.y);
            v[i].w += bf16_high(d.y);
            *reinterpret_cast<float4 *>(from + at) = v[i];
        }
        sum += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
    }
    float inverse = rsqrtf(block_sum<Threads>(sum) / static_cast<float>(x.cols) + eps);
#pragma unroll
    for (int i = 0; i < Runs; i++) {
        int at = (i * Threads + threadIdx.x) * 4;
        if (at >= x.cols)
            continue;
        float4 g = *reinterpret_cast<const float4 *>(w + at);
        uint2 out = make_uint2(bf16_pair(v[i].x * inverse * g.x, v[i].y * inverse * g.y),
                               bf16_pair(v[i].z * inverse * g.z, v[i].w * inverse * g.w));
        *reinterpret_cast<uint2 *>(to + at) = out;
    }
}

/* Any width. */
template <bool Add>
__global__ void __launch_bounds__(256) norm_any_kernel(cuda_rows x, cuda_rows delta, const float *w, float eps,
                                                       cuda_rows y)
{
    pdl_wait();
    pdl_release();
    float *from = static_cast<float *>(x.data) + blockIdx.x * x.stride;
    const bf16 *plus = static_cast<const bf16 *>(delta.data) + blockIdx.x * delta.stride;
    bf16 *to = static_cast<bf16 *>(y.data) + blockIdx.x * y.stride;
    float sum = 0;
    for (int i = threadIdx.x; i < x.cols; i += 256) {
        float v = from[i];
        if (Add)
            from[i] = v += __bfloat162float(plus[i]);
        sum += v * v;
    }
    float inverse = rsqrtf(block_sum<256>(sum) / static_cast<float>(x.cols) + eps);
    for (int i = threadIdx.x; i < x.cols; i += 256)
        to[i] = __float2bfloat16(from[i] * inverse * w[i]);
}

template <bool Add>
cudaError_t launch_norm(cudaStream_t s, cuda_rows x, cuda_rows delta, const float *w, float eps, cuda_rows y)
{
    unsigned rows = static_cast<unsigned>(x.rows);
    if (x.cols % 4 != 0 || x.stride % 4 != 0 || y.stride % 4 != 0 || (Add && delta.stride % 4 != 0) || x.cols > 16384)
        return cuda_launch(norm_any_kernel<Add>, dim3(rows), dim3(256), 0, s, x, delta, w, eps, y);
    if (x.cols <= 1024)
        return cuda_launch(norm_kernel<256, 1, Add>, dim3(rows), dim3(256), 0, s, x, delta, w, eps, y);
    if (x.cols <= 4096)
        return cuda_launch(norm_kernel<512, 2, Add>, dim3(rows), dim3(512), 0, s, x, delta, w, eps, y);
    return cuda_launch(norm_kernel<512, 8, Add>, dim3(rows), dim3(512), 0, s, x, delta, w, eps, y);
}

__global__ void add_kernel(cuda_rows x, cuda_rows delta)
{
    pdl_wait();
    pdl_release();
    float *to = static_cast<float *>(x.data) + blockIdx.x * x.stride;
    const bf16 *plus = static_cast<const bf16 *>(delta.data) + blockIdx.x * delta.stride;
    for (int i = threadIdx.x; i < x.cols; i += blockDim.x)
        to[i] += __bfloat162float(plus[i]);
}

__device__ float activate(float x, int activation)
{
    if (activation == 0)
        return x / (1.0f + __expf(-x));
    if (activation == 1)
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return x / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
}

__global__ void act_mul_kernel(cuda_rows gate, cuda_rows up, int activation)
{
    pdl_wait();
    pdl_release();
    bf16 *g = static_cast<bf16 *>(gate.data) + blockIdx.x * gate.stride;
    const bf16 *u = static_cast<const bf16 *>(up.data) + blockIdx.x * up.stride;
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < gate.cols)
        g[i] = __float2bfloat16(activate(__bfloat162float(g[i]), activation) * __bfloat162float(u[i]));
}

template <typename Item> __global__ void gather_kernel(cuda_rows x, const int32_t *rows, cuda_rows y)
{
    pdl_wait();
    pdl_release();
    const Item *from = static_cast<const Item *>(x.data) + rows[blockIdx.x] * x.stride;
    Item *to = static_cast<Item *>(y.data) + blockIdx.x * y.stride;
    for (int i = threadIdx.x; i < y.cols; i += blockDim.x)
        to[i] = from[i];
}

} // namespace

cudaError_t cuda_launch_embed(cudaStream_t s, const void *table, int32_t first, int32_t count,
                              const cuda_step_view *step, cuda_rows y)
{
    return cuda_launch(embed_kernel, dim3(static_cast<unsigned>(y.rows)), dim3(256), 0, s,
                       static_cast<const bf16 *>(table), first, count, *step, y);
}

cudaError_t cuda_launch_rmsnorm(cudaStream_t s, cuda_rows x, const float *w, float eps, cuda_rows y)
{
    return launch_norm<false>(s, x, x, w, eps, y);
}

cudaError_t cuda_launch_add_rmsnorm(cudaStream_t s, cuda_rows x, cuda_rows delta, const float *w, float eps,
                                    cuda_rows y)
{
    return launch_norm<true>(s, x, delta, w, eps, y);
}

cudaError_t cuda_launch_add(cudaStream_t s, cuda_rows x, cuda_rows delta)
{
    return cuda_launch(add_kernel, dim3(static_cast<unsigned>(x.rows)), dim3(256), 0, s, x, delta);
}

cudaError_t cuda_launch_act_mul(cudaStream_t s, cuda_rows gate, cuda_rows up, int activation)
{
    dim3 grid(static_cast<unsigned>(gate.rows), static_cast<unsigned>((gate.cols + 255) / 256));
    return cuda_launch(act_mul_kernel, grid, dim3(256), 0, s, gate, up, activation);
}

cudaError_t cuda_launch_gather(cudaStream_t s, cuda_rows x, const int32_t *rows, cuda_rows y, int item)
{
    dim3 grid(static_cast<unsigned>(y.rows));
    return item == 4 ? cuda_launch(gather_kernel<float>, grid, dim3(256), 0, s, x, rows, y)
                     : cuda_launch(gather_kernel<bf16>, grid, dim3(256), 0, s, x, rows, y);
}
