/* Attention of several rows of a sequence: a block takes up to 128 (row, head) pairs that share a KV head and walks
 * their keys in tiles of 32, fetched three tiles deep. All query heads of a group go together, so that a page is read
 * once. Bound by the tensor cores. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int WARPS = 4, BLOCKS = 2; /* of 16 rows, per warp */
constexpr int THREADS = 32 * WARPS, STAGES = 3;

template <typename T, int D> struct prefill_shared {
    T keys[STAGES][32 * D];   /* [key][dim], 16-byte pieces swizzled */
    T values[STAGES][D * 32]; /* [dim][key] */
    T q[WARPS * BLOCKS * 16 * D]; /* [row][dim], swizzled as the keys */
};

/* Where piece p (16 bytes) of row r lies: neighbours of a row pair use different halves of the banks. */
template <int D> __device__ __forceinline__ int piece_at(int row, int piece)
{
    return row * D + (piece ^ (row & 1) << 2) * 8;
}

template <typename T> __device__ __forceinline__ uint4 piece(const T *at) { return *reinterpret_cast<const uint4 *>(at); }

template <typename T, int D> struct prefill_rows {
    float out[BLOCKS][D / 8][4], sum[BLOCKS][4], maximum[BLOCKS][2];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) {
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                out[m][i][0] = out[m][i][1] = out[m][i][2] = out[m][i][3] = 0;
            sum[m][0] = sum[m][1] = sum[m][2] = sum[m][3] = 0;
            maximum[m][0] = maximum[m][1] = NO_MAXIMUM;
        }
    }

    __device__ __forceinline__ void scale_rows(int m, int e, float factor)
    {
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            out[m][i][2 * e] *= factor;
            out[m][i][2 * e + 1] *= factor;
        }
        sum[m][2 * e] *= factor;
    }

    __device__ __forceinline__ void scores(const T *q, const T *keys, int warp, int n, int c, float (&s)[BLOCKS][4][4])
    {
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int b = 0; b < 4; b++)
                s[m][b][0] = s[m][b][1] = s[m][b][2] = s[m][b][3] = 0;
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            uint4 a[BLOCKS][2];
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) {
                int row = (warp * BLOCKS + m) * 16 + n;
                a[m][0] = piece(q + piece_at<D>(row, 4 * j + c));
                a[m][1] = piece(q + piece_at<D>(row + 8, 4 * j + c));
            }
#pragma unroll
            for (int b = 0; b < 4; b++) {
                uint4 k = piece(keys + piece_at<D>(tile_key(b, n), 4 * j + c));
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) {
                    mma16816<T>(s[m][b], a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y, k.x, k.y);
                    mma16816<T>(s[m][b], a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w, k.z, k.w);
                }
            }
        }
    }

    __device__ __forceinline__ void soften(float (&s)[BLOCKS][4][4], float scale)
    {
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float top = NO_MAXIMUM;
#pragma unroll
                for (int b = 0; b < 4; b++)
                    top = fmaxf(top, fmaxf(s[m][b][2 * e], s[m][b][2 * e + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                float next = fmaxf(maximum[m][e], whole_maximum(top, scale));
                if (__any_sync(0xffffffffu, next > maximum[m][e])) {
                    scale_rows(m, e, maximum[m][e] == NO_MAXIMUM ? 0.0f : rescale(maximum[m][e], next));
                    maximum[m][e] = next;
                }
                float shift = weight_shift(next);
#pragma unroll
                for (int b = 0; b < 4; b++) {
                    s[m][b][2 * e] = weight_of(s[m][b][2 * e], scale, shift);
                    s[m][b][2 * e + 1] = weight_of(s[m][b][2 * e + 1], scale, shift);
                }
            }
    }

    /* key: of the lane's first value; only keys in [from, to) count when masked. */
    __device__ __forceinline__ void add_values(float (&s)[BLOCKS][4][4], const T *values, int n, int c, bool masked,
                                               int key, int from, int to)
    {
        const uint32_t one = pair_of_ones<T>();
        uint32_t p[BLOCKS][4][2];
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int b = 0; b < 4; b++) {
                p[m][b][0] = pack_pair<T>(s[m][b][0], s[m][b][1]);
                p[m][b][1] = pack_pair<T>(s[m][b][2], s[m][b][3]);
            }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            uint4 v = piece(values + (i * 8 + n) * 32 + c * 8);
            if (masked)
                v = keep_keys(v, key, from, to);
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) {
                mma16816<T>(out[m][i], p[m][0][0], p[m][0][1], p[m][1][0], p[m][1][1], v.x, v.y);
                mma16816<T>(out[m][i], p[m][2][0], p[m][2][1], p[m][3][0], p[m][3][1], v.z, v.w);
            }
        }
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) {
            float unused[4] = {sum[m][0], sum[m][0], sum[m][2], sum[m][2]};
            mma16816<T>(unused, p[m][0][0], p[m][0][1], p[m][1][0], p[m][1][1], one, one);
            mma16816<T>(unused, p[m][2][0], p[m][2][1], p[m][3][0], p[m][3][1], one, one);
            sum[m][0] = unused[0];
            sum[m][2] = unused[2];
        }
    }
};

/* The rows' sums over the splits before this one: values in the block's piece of job.sums, [number][thread], which stays
 * in L2; the rest in registers. */
template <typename T, int D> struct earlier_splits {
    float sum[BLOCKS][2], maximum[BLOCKS][2];
    bool any;

    /* earlier += now, left to right; leaves the total in both. */
    __device__ __forceinline__ void add(prefill_rows<T, D> &now, float *values)
    {
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float before = any ? maximum[m][e] : NO_MAXIMUM, top = fmaxf(before, now.maximum[m][e]);
                float old_factor = before == NO_MAXIMUM ? 0.0f : rescale(before, top);
                float new_factor = now.maximum[m][e] == NO_MAXIMUM ? 0.0f : rescale(now.maximum[m][e], top);
#pragma unroll
                for (int i = 0; i < D / 8; i++)
#pragma unroll
                    for (int x = 2 * e; x < 2 * e + 2; x++) {
                        float *at = values + ((m * (D / 8) + i) * 4 + x) * THREADS + threadIdx.x;
                        float old = any ? *at : 0.0f;
                        *at = now.out[m][i][x] = __fmaf_rn(now.out[m][i][x], new_factor, old * old_factor);
                    }
                float old = any ? sum[m][e] : 0.0f;
                sum[m][e] = now.sum[m][2 * e] = __fmaf_rn(now.sum[m][2 * e], new_factor, old * old_factor);
                maximum[m][e] = top;
            }
        any = true;
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
    float *sums = job.sums + static_cast<int64_t>(blockIdx.x) * CUDA_PREFILL_ROWS * D;
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
    for (int i = threadIdx.x; i < CUDA_PREFILL_ROWS * D / 8; i += THREADS) {
        int r = i / (D / 8), token = r / group;
        uint4 words = make_uint4(0, 0, 0, 0);
        if (token < rows)
            words = query_words<T>(*reinterpret_cast<const uint4 *>(
                static_cast<const bf16 *>(job.q.data) + (row0 + token) * job.q.stride + (head * group + r % group) * D +
                i % (D / 8) * 8));
        *reinterpret_cast<uint4 *>(shared.q + piece_at<D>(r, i % (D / 8))) = words;
    }
    int position[BLOCKS][2];
#pragma unroll
    for (int m = 0; m < BLOCKS; m++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            position[m][e] = position0 + min(((warp * BLOCKS + m) * 16 + e * 8 + n) / group, rows - 1);
    prefill_rows<T, D> now;
    earlier_splits<T, D> earlier;
    earlier.any = false;
    now.clear();
    int stage = 0;
    for (int key = begin; key < end; key += 32, stage = stage == STAGES - 1 ? 0 : stage + 1) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (key + 32 * (STAGES - 1) < end)
            source.fetch(shared, stage == 0 ? STAGES - 1 : stage - 1, key + 32 * (STAGES - 1));
        copy_async_commit();
        if (key % CUDA_SPLIT == 0 && key > begin) {
            earlier.add(now, sums);
            now.clear();
        }
        float s[BLOCKS][4][4];
        now.scores(shared.q, shared.keys[stage], warp, n, c, s);
        const bool masked = key + 31 > position0 || (window > 0 && key <= end - 1 - window);
        if (masked) {
#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                for (int b = 0; b < 4; b++)
#pragma unroll
                    for (int x = 0; x < 4; x++) {
                        int at = key + 8 * c + 2 * b + x % 2, mine = position[m][x / 2];
                        if (at > mine || (window > 0 && at <= mine - window))
                            s[m][b][x] = -INFINITY;
                    }
        }
        now.soften(s, job.scale);
        now.add_values(s, shared.values[stage], n, c, masked, key + 8 * c, first, end);
    }
    if (earlier.any)
        earlier.add(now, sums);
#pragma unroll
    for (int m = 0; m < BLOCKS; m++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int r = (warp * BLOCKS + m) * 16 + e * 8 + n, token = r / group;
            if (token >= rows || r >= tile_rows * group)
                continue;
            float inverse = 1.0f / now.sum[m][2 * e];
            bf16 *y = static_cast<bf16 *>(job.y.data) + (row0 + token) * job.y.stride + (head * group + r % group) * D;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *reinterpret_cast<uint32_t *>(y + i * 8 + 2 * c) =
                    bf16_pair(now.out[m][i][2 * e] * inverse, now.out[m][i][2 * e + 1] * inverse);
        }
}

/* Blocks take tiles in turn, the longest first. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 2) prefill_kernel(cuda_step_view step, cuda_attention_job job)
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
    int works = job->pages.kv_heads * step->prefill_tiles, blocks = 2 * job->sm_count;
    return cuda_launch(prefill_kernel<T, D>, dim3(static_cast<unsigned>(works < blocks ? works : blocks)), dim3(THREADS), sizeof(prefill_shared<T, D>), s, *step, *job);
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
