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

/* One order of operations for all. */
__device__ __forceinline__ float2 rotate(float u, float v, float2 cs)
{
    return make_float2(__fmaf_rn(u, cs.x, -(v * cs.y)), __fmaf_rn(v, cs.x, u * cs.y));
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
        float2 turned = rotate(__bfloat162float(head[a]), __bfloat162float(head[b]), table[pair]);
        head[a] = __float2bfloat16(turned.x);
        head[b] = __float2bfloat16(turned.y);
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

template <> __device__ __forceinline__ fp8 convert<fp8>(float x) { return fp8(x); } /* up to 448, as they are */

/* ---- All at once: a warp per head of q, k or v, a lane per two pairs ---- */

constexpr int HEADS = 4; /* of a block */

template <typename T> __device__ __forceinline__ void store_pair(T *at, float low, float high)
{
    at[0] = convert<T>(low);
    at[1] = convert<T>(high);
}
template <> __device__ __forceinline__ void store_pair<bf16>(bf16 *at, float low, float high)
{
    *reinterpret_cast<uint32_t *>(at) = bf16_pair(low, high);
}

/* Where the warp's numbers go: a row of an activation, or the pages' slot of a head. */
template <typename T> struct head_target {
    bf16 *row;
    T *page;
    int slot;

    __device__ __forceinline__ void put(const cuda_layer_pages &pages, int dim, float low, float high) const
    {
        if (row != nullptr)
            *reinterpret_cast<uint32_t *>(row + dim) = bf16_pair(low, high);
        else
            store_pair(page + page_at(pages, slot, dim), low, high);
    }
};

/* Factor of a head's numbers and the weights that follow it: 1 and none without a norm. */
struct head_scale {
    float inverse;
    const float *w;

    __device__ __forceinline__ head_scale(const bf16 *head, const float *w, int dim, float eps, int lane)
        : inverse(1), w(w)
    {
        if (w == nullptr)
            return;
        float sum = 0;
        for (int i = 2 * lane; i < dim; i += 64) {
            uint32_t pair = *reinterpret_cast<const uint32_t *>(head + i);
            sum += bf16_low(pair) * bf16_low(pair) + bf16_high(pair) * bf16_high(pair);
        }
        for (int step = 16; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        inverse = rsqrtf(sum / static_cast<float>(dim) + eps);
    }
    __device__ __forceinline__ float2 pair(const bf16 *head, int i) const
    {
        uint32_t words = *reinterpret_cast<const uint32_t *>(head + i);
        float2 x = make_float2(bf16_low(words), bf16_high(words));
        return w == nullptr ? x : make_float2(x.x * inverse * w[i], x.y * inverse * w[i + 1]);
    }
};

template <typename T>
__device__ __forceinline__ void rotate_head(const cuda_rope_store_job &job, const bf16 *head, const head_scale &scale,
                                            const head_target<T> &to, int position, int lane)
{
    const int half = job.rope.rotary / 2;
    const float2 *table = reinterpret_cast<const float2 *>(job.rope.cos_sin) + static_cast<int64_t>(position) * half;
    for (int p = 2 * lane; p < half; p += 64) {
        const float2 c0 = table[p], c1 = table[p + 1];
        const int first = job.rope.interleaved ? 2 * p : p, second = job.rope.interleaved ? 2 * p + 2 : p + half;
        const float2 a = scale.pair(head, first), b = scale.pair(head, second);
        if (job.rope.interleaved) {
            const float2 u = rotate(a.x, a.y, c0), v = rotate(b.x, b.y, c1);
            to.put(job.pages, first, u.x, u.y);
            to.put(job.pages, second, v.x, v.y);
        } else {
            const float2 u = rotate(a.x, b.x, c0), v = rotate(a.y, b.y, c1);
            to.put(job.pages, first, u.x, v.x);
            to.put(job.pages, second, u.y, v.y);
        }
    }
    for (int i = 2 * half + 2 * lane; i < job.pages.head_dim; i += 64) {
        float2 x = scale.pair(head, i);
        to.put(job.pages, i, x.x, x.y);
    }
}

/* The step's facts were there before the kernels before this one: read while those end. */
template <typename T>
__global__ void __launch_bounds__(32 * HEADS)
    rope_store_kernel(const __grid_constant__ cuda_rope_store_job job, const __grid_constant__ cuda_step_view step)
{
    const int dim = job.pages.head_dim, kv_heads = job.pages.kv_heads, q_heads = job.q.cols / dim;
    const int row = blockIdx.x, lane = threadIdx.x % 32;
    int head = blockIdx.y * HEADS + threadIdx.x / 32;
    const int seq = step.seq_of_row[row], position = step.positions[row];
    const bool stored = head >= q_heads, keeps = step.context[seq] > 0; /* not a row that fills the batch up */
    int64_t block = 0;
    if (stored && keeps)
        block = step.meta[step.meta[CUDA_META_TABLE + job.pages.group] + seq * step.meta[CUDA_META_STRIDE] +
                          position / job.pages.block_size];
    pdl_wait();
    pdl_release();
    if (head >= q_heads + 2 * kv_heads || (stored && !keeps))
        return;
    const bool is_value = head >= q_heads + kv_heads;
    const cuda_rows &from = !stored ? job.q : is_value ? job.v : job.k;
    head -= !stored ? 0 : is_value ? q_heads + kv_heads : q_heads;
    bf16 *numbers = static_cast<bf16 *>(from.data) + row * from.stride + head * dim;
    head_target<T> to = {numbers, nullptr, 0};
    if (stored) {
        T *pages = static_cast<T *>(is_value ? job.pages.values : job.pages.keys);
        to = {nullptr, pages + (block * kv_heads + head) * job.pages.block_size * dim, position % job.pages.block_size};
    }
    const head_scale scale(numbers, stored ? (is_value ? nullptr : job.k_norm) : job.q_norm, dim, job.eps, lane);
    if (!is_value) {
        rotate_head(job, numbers, scale, to, position, lane);
        return;
    }
    for (int i = 2 * lane; i < dim; i += 64) {
        float2 x = scale.pair(numbers, i);
        to.put(job.pages, i, x.x, x.y);
    }
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
    if (job->pages.dtype == CUDA_DTYPE_F8)
        return cuda_launch(store_kernel<fp8>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
    if (job->pages.dtype == 1)
        return cuda_launch(store_kernel<__half>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
    return cuda_launch(store_kernel<bf16>, grid, dim3(256), 0, s, job->k, job->v, job->pages, *step);
}

bool cuda_rope_store_fits(const cuda_rope_store_job *job)
{
    return job->rope.rotary % 4 == 0 && job->pages.head_dim % 2 == 0;
}

cudaError_t cuda_launch_rope_store(cudaStream_t s, const cuda_step_view *step, const cuda_rope_store_job *job)
{
    const int heads = job->q.cols / job->pages.head_dim + 2 * job->pages.kv_heads;
    const dim3 grid(static_cast<unsigned>(step->n_tokens), static_cast<unsigned>((heads + HEADS - 1) / HEADS));
    if (job->pages.dtype == 0)
        return cuda_launch(rope_store_kernel<float>, grid, dim3(32 * HEADS), 0, s, *job, *step);
    if (job->pages.dtype == CUDA_DTYPE_F8)
        return cuda_launch(rope_store_kernel<fp8>, grid, dim3(32 * HEADS), 0, s, *job, *step);
    if (job->pages.dtype == 1)
        return cuda_launch(rope_store_kernel<__half>, grid, dim3(32 * HEADS), 0, s, *job, *step);
    return cuda_launch(rope_store_kernel<bf16>, grid, dim3(32 * HEADS), 0, s, *job, *step);
}
