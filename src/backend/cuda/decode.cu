/* Attention of single rows: a warp takes one split of one KV head and streams its keys and values through registers;
 * a second kernel adds the splits up. Bound by reading the pages: two tiles of 16 KB are under way per warp. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int WARPS = 4;

__device__ __forceinline__ uint32_t transpose8(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

template <typename T, int D> struct split_walk {
    static constexpr int J = D / 32; /* groups of 32 along a head */
    uint4 k[4][J], v[D / 8];
    uint32_t q[J][4];
    float out[D / 16][4], sum[4], maximum[2];

    __device__ __forceinline__ void load_keys(const T *page, int n, int c)
    {
#pragma unroll
        for (int b = 0; b < 4; b++)
#pragma unroll
            for (int j = 0; j < J; j++)
                k[b][j] = load_stream(page + tile_key(b, n) * D + j * 32 + c * 8);
    }

    __device__ __forceinline__ void load_values(const T *page, int n, int c)
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            v[i] = load_stream(page + (i * 8 + n) * 32 + c * 8);
    }

    __device__ __forceinline__ void scores(float (&s)[2][4])
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            s[h][0] = s[h][1] = s[h][2] = s[h][3] = 0;
#pragma unroll
            for (int j = 0; j < J; j++) {
                uint4 a = k[2 * h][j], b = k[2 * h + 1][j];
                mma16816<T>(s[h], a.x, b.x, a.y, b.y, q[j][0], q[j][1]);
                mma16816<T>(s[h], a.z, b.z, a.w, b.w, q[j][2], q[j][3]);
            }
        }
    }

    /* s: raw scores of keys (row n, columns are queries) -> weights in the second product's layout. */
    __device__ __forceinline__ void soften(float (&s)[2][4], float scale, uint32_t (&p)[4])
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float top = fmaxf(fmaxf(s[0][e], s[0][2 + e]), fmaxf(s[1][e], s[1][2 + e]));
            for (int step = 4; step < 32; step *= 2)
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
            float next = fmaxf(maximum[e], whole_maximum(top, scale));
            if (__any_sync(0xffffffffu, next > maximum[e])) {
                float factor = maximum[e] == NO_MAXIMUM ? 0.0f : rescale(maximum[e], next);
#pragma unroll
                for (int i = 0; i < D / 16; i++) {
                    out[i][e] *= factor;
                    out[i][2 + e] *= factor;
                }
                sum[e] *= factor;
                sum[2 + e] *= factor;
                maximum[e] = next;
            }
            float shift = weight_shift(next);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                s[h][e] = weight_of(s[h][e], scale, shift);
                s[h][2 + e] = weight_of(s[h][2 + e], scale, shift);
            }
        }
#pragma unroll
        for (int b = 0; b < 4; b++)
            p[b] = transpose8(pack_pair<T>(s[b / 2][b % 2 * 2], s[b / 2][b % 2 * 2 + 1]));
    }

    __device__ __forceinline__ void add_values(const uint32_t (&p)[4])
    {
        const uint32_t one = pair_of_ones<T>();
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint4 a = v[2 * i], b = v[2 * i + 1];
            mma16816<T>(out[i], a.x, b.x, a.y, b.y, p[0], p[1]);
            mma16816<T>(out[i], a.z, b.z, a.w, b.w, p[2], p[3]);
        }
        mma16816<T>(sum, one, one, one, one, p[0], p[1]);
        mma16816<T>(sum, one, one, one, one, p[2], p[3]);
    }
};

template <typename T, int D>
__device__ void run_split(const cuda_step_view &step, const cuda_attention_job &job, const int32_t *table, int seq,
                          int split, int head, int64_t task)
{
    const int lane = threadIdx.x % 32, n = lane / 4, c = lane % 4;
    const cuda_layer_pages &pages = job.pages;
    const int group = job.n_heads / pages.kv_heads, row = step.seq_start[seq], context = step.context[seq];
    const int first = pages.window > 0 ? max(0, context - pages.window) : 0;
    const int begin = max(split * CUDA_SPLIT, first / 32 * 32), end = min((split + 1) * CUDA_SPLIT, context);
    const int64_t page_numbers = static_cast<int64_t>(pages.block_size) * D;
    auto page_of = [&](int key) {
        int64_t block = table[key / pages.block_size];
        return (block * pages.kv_heads + head) * page_numbers + key % pages.block_size * D;
    };
    const T *keys = static_cast<const T *>(pages.keys), *values = static_cast<const T *>(pages.values);
    split_walk<T, D> walk;
    int64_t at = page_of(begin);
    walk.load_keys(keys + at, n, c);
    walk.load_values(values + at, n, c);
    const bf16 *q = static_cast<const bf16 *>(job.q.data) + row * job.q.stride + (head * group + n) * D;
#pragma unroll
    for (int j = 0; j < walk.J; j++) {
        uint4 words = make_uint4(0, 0, 0, 0);
        if (n < group)
            words = query_words<T>(*reinterpret_cast<const uint4 *>(q + j * 32 + c * 8));
        walk.q[j][0] = words.x;
        walk.q[j][1] = words.y;
        walk.q[j][2] = words.z;
        walk.q[j][3] = words.w;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        walk.out[i][0] = walk.out[i][1] = walk.out[i][2] = walk.out[i][3] = 0;
    walk.sum[0] = walk.sum[1] = walk.sum[2] = walk.sum[3] = 0;
    walk.maximum[0] = walk.maximum[1] = NO_MAXIMUM;
    for (int key = begin; key < end; key += 32) {
        float s[2][4];
        uint32_t p[4];
        walk.scores(s);
        const bool more = key + 32 < end, partial = key + 32 > end || key < first;
        int64_t next = more ? page_of(key + 32) : 0;
        if (more)
            walk.load_keys(keys + next, n, c);
        if (partial) {
#pragma unroll
            for (int b = 0; b < 4; b++) {
                int mine = key + tile_key(b, n);
                if (mine < first || mine >= end)
                    s[b / 2][b % 2 * 2] = s[b / 2][b % 2 * 2 + 1] = -INFINITY;
            }
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                walk.v[i] = keep_keys(walk.v[i], key + 8 * c, first, end);
        }
        walk.soften(s, job.scale, p);
        walk.add_values(p);
        if (more)
            walk.load_values(values + next, n, c);
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int query = 2 * c + e;
        if (query >= group)
            continue;
        float *to = job.partials + (task * job.n_heads + head * group + query) * (D + 2);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            to[i * 16 + n] = walk.out[i][e];
            to[i * 16 + 8 + n] = walk.out[i][2 + e];
        }
        if (n == 0) {
            to[D] = walk.maximum[e];
            to[D + 1] = walk.sum[e];
        }
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(32 * WARPS, 2) decode_kernel(cuda_step_view step, cuda_attention_job job)
{
    pdl_wait();
    pdl_release();
    const int32_t *meta = step.meta;
    const int group = job.pages.group, stride = meta[CUDA_META_STRIDE], heads = job.pages.kv_heads;
    const int32_t *list = meta + meta[CUDA_META_TASK_LIST + group], *table = meta + meta[CUDA_META_TABLE + group];
    const int works = (min(meta[CUDA_META_TASKS + group], job.task_end) - job.task_begin) * heads;
    for (int work = blockIdx.x * WARPS + threadIdx.x / 32; work < works; work += gridDim.x * WARPS) {
        int task = work / heads + job.task_begin, seq = list[2 * task];
        run_split<T, D>(step, job, table + seq * stride, seq, list[2 * task + 1], work % heads, task - job.task_begin);
    }
}

/* A block per (head, sequence), a thread per dimension: the splits from left to right. */
template <int D> __global__ void __launch_bounds__(D) combine_kernel(cuda_step_view step, cuda_attention_job job)
{
    pdl_wait();
    pdl_release();
    __shared__ float shared_max[D / 32], weights[D];
    const int head = blockIdx.x, seq = job.seq_begin + blockIdx.y, d = threadIdx.x, context = step.context[seq];
    const int row = step.seq_start[seq];
    if (context == 0 || step.seq_start[seq + 1] - row != 1)
        return;
    const int first = job.pages.window > 0 ? max(0, context - job.pages.window) : 0;
    const int splits = (context - 1) / CUDA_SPLIT - first / CUDA_SPLIT + 1;
    const int32_t *first_task = step.meta + step.meta[CUDA_META_FIRST_TASK + job.pages.group];
    const int64_t step_numbers = static_cast<int64_t>(job.n_heads) * (D + 2);
    const float *from = job.partials + (static_cast<int64_t>(first_task[seq] - job.task_begin) * job.n_heads + head) * (D + 2);
    float top = NO_MAXIMUM;
    for (int i = d; i < splits; i += D)
        top = fmaxf(top, from[i * step_numbers + D]);
    for (int s = 16; s > 0; s /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, s));
    if (d % 32 == 0)
        shared_max[d / 32] = top;
    __syncthreads();
    for (int i = 0; i < D / 32; i++)
        top = fmaxf(top, shared_max[i]);
    float sum = 0, out = 0;
    for (int base = 0; base < splits; base += D) {
        __syncthreads();
        int count = min(D, splits - base);
        if (d < count) {
            float mine = from[(base + d) * step_numbers + D];
            weights[d] = mine == NO_MAXIMUM ? 0.0f : rescale(mine, top);
        }
        __syncthreads();
#pragma unroll 8
        for (int i = 0; i < count; i++) {
            const float *split = from + (base + i) * step_numbers;
            out = __fmaf_rn(split[d], weights[i], out);
            sum = __fmaf_rn(split[D + 1], weights[i], sum);
        }
    }
    static_cast<bf16 *>(job.y.data)[row * job.y.stride + head * D + d] = __float2bfloat16(out * (1.0f / sum));
}

template <typename T, int D> cudaError_t launch(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    cudaError_t error = cuda_launch(decode_kernel<T, D>, dim3(static_cast<unsigned>(job->sm_count) * 2),
                                    dim3(32 * WARPS), 0, s, *step, *job);
    if (error != cudaSuccess)
        return error;
    dim3 grid(static_cast<unsigned>(job->n_heads), static_cast<unsigned>(job->seq_end - job->seq_begin));
    return cuda_launch(combine_kernel<D>, grid, dim3(D), 0, s, *step, *job);
}

} // namespace

bool cuda_attention_fits(int32_t n_heads, const cuda_layer_pages *pages)
{
    return pages->dtype != 0 && pages->lanes == 32 && n_heads / pages->kv_heads <= 8 &&
           (pages->head_dim == 64 || pages->head_dim == 128);
}

cudaError_t cuda_launch_decode(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    bool half = job->pages.dtype == 1;
    if (job->pages.head_dim == 64)
        return half ? launch<__half, 64>(s, step, job) : launch<bf16, 64>(s, step, job);
    return half ? launch<__half, 128>(s, step, job) : launch<bf16, 128>(s, step, job);
}
