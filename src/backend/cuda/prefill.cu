/* Attention of several rows of a sequence: a block takes up to 128 (row, head) pairs that share a KV head and walks
 * their keys in tiles of 32, fetched ahead; a warp has 16 of the rows,
 * with their queries and sums in registers. All query heads of a group go together, so that a page is read
 * once. Bound by the tensor cores. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int WARPS = CUDA_PREFILL_ROWS / 16, THREADS = 32 * WARPS, STAGES = 4;

template <typename T, int D> struct prefill_shared {
    T keys[STAGES][32 * D];   /* [key][dim], 16-byte pieces swizzled */
    T values[STAGES][D * 32]; /* [dim][key] */
};

/* Where piece p (16 bytes) of row r lies: neighbours of a row pair use different halves of the banks. */
template <int D> __device__ __forceinline__ int piece_at(int row, int piece)
{
    return row * D + (piece ^ (row & 1) << 2) * 8;
}

template <typename T> __device__ __forceinline__ uint4 piece(const T *at) { return *reinterpret_cast<const uint4 *>(at); }

/* A thread's share of 16 rows: rows n and n + 8 of the product. */
template <typename T, int D> struct prefill_rows {
    uint4 q[D / 32][2];
    float out[D / 8][4], sum[2], maximum[2];       /* of the split under way */
    float total[D / 8][4], total_sum[2], top[2];   /* of the splits before it */

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
        sum[0] = sum[1] = 0;
        maximum[0] = maximum[1] = NO_MAXIMUM;
    }

    __device__ __forceinline__ void clear_total()
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            total[i][0] = total[i][1] = total[i][2] = total[i][3] = 0;
        total_sum[0] = total_sum[1] = 0;
        top[0] = top[1] = NO_MAXIMUM;
    }

    /* Ends a split: total += out, from left to right. */
    __device__ __forceinline__ void end_split()
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float next = fmaxf(top[e], maximum[e]);
            float old_factor = top[e] == NO_MAXIMUM ? 0.0f : rescale(top[e], next);
            float new_factor = maximum[e] == NO_MAXIMUM ? 0.0f : rescale(maximum[e], next);
#pragma unroll
            for (int i = 0; i < D / 8; i++)
#pragma unroll
                for (int x = 2 * e; x < 2 * e + 2; x++)
                    total[i][x] = __fmaf_rn(out[i][x], new_factor, total[i][x] * old_factor);
            total_sum[e] = __fmaf_rn(sum[e], new_factor, total_sum[e] * old_factor);
            top[e] = next;
        }
    }

    __device__ __forceinline__ void scores(const T *keys, int n, int c, float (&s)[4][4]) const
    {
#pragma unroll
        for (int b = 0; b < 4; b++) {
            s[b][0] = s[b][1] = s[b][2] = s[b][3] = 0;
#pragma unroll
            for (int j = 0; j < D / 32; j++) {
                uint4 k = piece(keys + piece_at<D>(tile_key(b, n), 4 * j + c));
                mma16816<T>(s[b], q[j][0].x, q[j][1].x, q[j][0].y, q[j][1].y, k.x, k.y);
                mma16816<T>(s[b], q[j][0].z, q[j][1].z, q[j][0].w, q[j][1].w, k.z, k.w);
            }
        }
    }

    __device__ __forceinline__ void soften(float (&s)[4][4], float scale)
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float raw = NO_MAXIMUM;
#pragma unroll
            for (int b = 0; b < 4; b++)
                raw = fmaxf(raw, fmaxf(s[b][2 * e], s[b][2 * e + 1]));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 1));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 2));
            float next = fmaxf(maximum[e], whole_maximum(raw, scale));
            if (__any_sync(0xffffffffu, next > maximum[e])) {
                float factor = maximum[e] == NO_MAXIMUM ? 0.0f : rescale(maximum[e], next);
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    out[i][2 * e] *= factor;
                    out[i][2 * e + 1] *= factor;
                }
                sum[e] *= factor;
                maximum[e] = next;
            }
            float shift = weight_shift(next);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                s[b][2 * e] = weight_of(s[b][2 * e], scale, shift);
                s[b][2 * e + 1] = weight_of(s[b][2 * e + 1], scale, shift);
            }
        }
    }

    /* key: of the lane's first value; only keys in [from, to) count when masked. */
    __device__ __forceinline__ void add_values(const float (&s)[4][4], const T *values, int n, int c, bool masked,
                                               int key, int from, int to)
    {
        const uint32_t one = pair_of_ones<T>();
        uint32_t p[4][2];
#pragma unroll
        for (int b = 0; b < 4; b++) {
            p[b][0] = pack_pair<T>(s[b][0], s[b][1]);
            p[b][1] = pack_pair<T>(s[b][2], s[b][3]);
        }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            uint4 v = piece(values + (i * 8 + n) * 32 + c * 8);
            if (masked)
                v = keep_keys(v, key, from, to);
            mma16816<T>(out[i], p[0][0], p[0][1], p[1][0], p[1][1], v.x, v.y);
            mma16816<T>(out[i], p[2][0], p[2][1], p[3][0], p[3][1], v.z, v.w);
        }
        float sums[4] = {sum[0], sum[0], sum[1], sum[1]};
        mma16816<T>(sums, p[0][0], p[0][1], p[1][0], p[1][1], one, one);
        mma16816<T>(sums, p[2][0], p[2][1], p[3][0], p[3][1], one, one);
        sum[0] = sums[0];
        sum[1] = sums[2];
    }
};

template <typename T, int D> struct tile_source {
    const T *keys, *values;
    const int32_t *table;
    int32_t block_size, heads, head;

    __device__ __forceinline__ void fetch(prefill_shared<T, D> &shared, int stage, int key) const
    {
        int64_t block = table[key / block_size];
        int64_t at = ((block * heads + head) * block_size + key % block_size) * D;
        for (int i = threadIdx.x; i < 32 * D / 8; i += THREADS) {
            copy_async16(shared.keys[stage] + piece_at<D>(i / (D / 8), i % (D / 8)), keys + at + i * 8, true);
            copy_async16(shared.values[stage] + i * 8, values + at + i * 8, true);
        }
    }
};

/* One tile: rows from tile[1] on of sequence tile[0], one KV head. */
template <typename T, int D>
__device__ __forceinline__ void run_tile(const cuda_step_view &step, const cuda_attention_job &job,
                                         prefill_shared<T, D> &shared, const int32_t *tile, int head)
{
    const cuda_layer_pages &pages = job.pages;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = lane / 4, c = lane % 4;
    const int group = job.n_heads / pages.kv_heads, tile_rows = CUDA_PREFILL_ROWS / group;
    const int seq = tile[0], row0 = tile[1], rows = min(tile_rows, step.seq_start[seq + 1] - row0);
    const int position0 = step.positions[row0], end = position0 + rows, window = pages.window;
    const int first = window > 0 ? max(0, position0 - window + 1) : 0, begin = first / 32 * 32;
    const tile_source<T, D> source = {
        static_cast<const T *>(pages.keys), static_cast<const T *>(pages.values),
        step.meta + step.meta[CUDA_META_TABLE + pages.group] + seq * step.meta[CUDA_META_STRIDE], pages.block_size,
        pages.kv_heads, head};
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (begin + 32 * stage < end)
            source.fetch(shared, stage, begin + 32 * stage);
        copy_async_commit();
    }
    prefill_rows<T, D> rows16;
    int position[2], token[2], query[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int r = warp * 16 + e * 8 + n;
        token[e] = r / group;
        query[e] = head * group + r % group;
        bool real = token[e] < rows && r < tile_rows * group;
        position[e] = position0 + min(token[e], rows - 1);
        const bf16 *q = static_cast<const bf16 *>(job.q.data) + (row0 + token[e]) * job.q.stride + query[e] * D;
#pragma unroll
        for (int j = 0; j < D / 32; j++)
            rows16.q[j][e] = real ? query_words<T>(*reinterpret_cast<const uint4 *>(q + j * 32 + c * 8))
                                  : make_uint4(0, 0, 0, 0);
        token[e] = real ? token[e] : -1;
    }
    rows16.clear();
    rows16.clear_total();
    int stage = 0;
    for (int key = begin; key < end; key += 32, stage = stage == STAGES - 1 ? 0 : stage + 1) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (key + 32 * (STAGES - 1) < end)
            source.fetch(shared, stage == 0 ? STAGES - 1 : stage - 1, key + 32 * (STAGES - 1));
        copy_async_commit();
        if (key % CUDA_SPLIT == 0 && key > begin) {
            rows16.end_split();
            rows16.clear();
        }
        float s[4][4];
        rows16.scores(shared.keys[stage], n, c, s);
        const bool masked = key + 31 > position0 || (window > 0 && key <= end - 1 - window);
        if (masked) {
#pragma unroll
            for (int b = 0; b < 4; b++)
#pragma unroll
                for (int x = 0; x < 4; x++) {
                    int at = key + 8 * c + 2 * b + x % 2, mine = position[x / 2];
                    if (at > mine || (window > 0 && at <= mine - window))
                        s[b][x] = -INFINITY;
                }
        }
        rows16.soften(s, job.scale);
        rows16.add_values(s, shared.values[stage], n, c, masked, key + 8 * c, first, end);
    }
    rows16.end_split();
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (token[e] < 0)
            continue;
        float inverse = 1.0f / rows16.total_sum[e];
        bf16 *y = static_cast<bf16 *>(job.y.data) + (row0 + token[e]) * job.y.stride + query[e] * D;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            *reinterpret_cast<uint32_t *>(y + i * 8 + 2 * c) =
                bf16_pair(rows16.total[i][2 * e] * inverse, rows16.total[i][2 * e + 1] * inverse);
    }
}

/* Blocks take tiles in turn, the longest first. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1) prefill_kernel(cuda_step_view step, cuda_attention_job job)
{
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    prefill_shared<T, D> &shared = *reinterpret_cast<prefill_shared<T, D> *>(dynamic_shared);
    pdl_wait();
    pdl_release();
    const int heads = job.pages.kv_heads, works = heads * step.prefill_tiles;
    for (int work = blockIdx.x; work < works; work += gridDim.x) {
        const int32_t *tile = step.meta + step.prefill_offset + 2 * (step.prefill_tiles - 1 - work / heads);
        run_tile<T, D>(step, job, shared, tile, work % heads);
        copy_async_wait<0>();
        __syncthreads();
    }
}

template <typename T, int D> cudaError_t launch(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    int works = job->pages.kv_heads * step->prefill_tiles, blocks = job->sm_count;
    return cuda_launch(prefill_kernel<T, D>, dim3(static_cast<unsigned>(works < blocks ? works : blocks)),
                       dim3(THREADS), sizeof(prefill_shared<T, D>), s, *step, *job);
}

template <typename T, int D> cudaError_t allow_shared()
{
    return cudaFuncSetAttribute(prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(sizeof(prefill_shared<T, D>)));
}

} // namespace

cudaError_t cuda_attention_init(void)
{
    cudaError_t errors[] = {allow_shared<bf16, 64>(), allow_shared<bf16, 128>(), allow_shared<__half, 64>(),
                            allow_shared<__half, 128>()};
    for (cudaError_t error : errors)
        if (error != cudaSuccess)
            return error;
    return cudaSuccess;
}

cudaError_t cuda_launch_prefill(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    bool half = job->pages.dtype == 1;
    if (job->pages.head_dim == 64)
        return half ? launch<__half, 64>(s, step, job) : launch<bf16, 64>(s, step, job);
    return half ? launch<__half, 128>(s, step, job) : launch<bf16, 128>(s, step, job);
}
