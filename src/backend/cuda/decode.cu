/* Attention of single rows: a block takes splits of one KV head, their keys as rows of the products and the group's
 * query heads as their columns; a warp brings in tiles ahead, also of what the block does next. Short sequences are
 * done whole where there are many, the splits of others are added up by a second kernel: the same sums. Bound by
 * reading the pages. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int PRODUCER = 4 /* warp */, THREADS = 32 * (PRODUCER + 1), BARRIER = 1, QUERIES = 8;
constexpr int PARTIAL = 4; /* numbers beside a split's values: maximum and sum */
constexpr int TILES = CUDA_SPLIT / CUDA_TILE;

/* What a block does at a time: keys [begin, end) of a sequence and KV head. partial: where a single split goes; -1: it
 * is all that the sequence has. */
struct decode_work {
    int row, head, partial, first, begin, end;
};

/* Bytes: of a number in the pages. */
template <int D, int Bytes> struct decode_shared {
    static constexpr int SLOTS = Bytes == 2 ? 3 : 4;
    unsigned char slots[SLOTS][CUDA_TILE * D * Bytes], image[Bytes == 2 ? 1024 : CUDA_TILE * D * 2];
    unsigned char queries[QUERIES * D * 2], weights[QUERIES * CUDA_TILE * 2];
    float tops[4][QUERIES], maximum[QUERIES], factor[QUERIES], sums[TILES][QUERIES][4][8], inverse[QUERIES];
    uint64_t full[SLOTS], empty[SLOTS];
    decode_work work[SLOTS]; /* that a slot's tile begins; row -1: there is no more */
};

/* The warp that brings tiles in. Older keys were stored by earlier steps: only the newest one's tile waits for the
 * kernels before this one. Blocks begin with their own number and then take the next, by a counter that the kernel
 * after this one sets back. */
template <int D, int Bytes> struct decode_producer {
    const cuda_step_view &step;
    const cuda_attention_job &job;
    decode_shared<D, Bytes> &shared;
    int lane;
    ring_place<decode_shared<D, Bytes>::SLOTS> place;
    bool waited;

    __device__ __forceinline__ void wait_for_kernels()
    {
        if (!waited)
            pdl_wait();
        waited = true;
    }

    __device__ __forceinline__ void await_slot() { barrier_wait(shared_address(&shared.empty[place.slot]), place.parity ^ 1); }

    __device__ __forceinline__ void fetch(int work)
    {
        const int32_t *task = step.meta + step.meta[CUDA_META_TASK_LIST + job.pages.group] + 4 * (work / job.pages.kv_heads);
        const int seq = task[0], head = work % job.pages.kv_heads, context = step.context[seq];
        const int first = job.pages.window > 0 ? max(0, context - job.pages.window) : 0;
        const int begin = max(task[1] * CUDA_SPLIT, first / CUDA_TILE * CUDA_TILE);
        const int end = min((task[1] + task[2]) * CUDA_SPLIT, context);
        const auto keys = source_of<D, Bytes>(step, job.pages, job.pages.keys, seq, head);
        const auto values = source_of<D, Bytes>(step, job.pages, job.pages.values, seq, head);
        for (int key = begin; key < end; key += CUDA_TILE) {
            if (key + CUDA_TILE >= context)
                wait_for_kernels();
            await_slot();
            if (key == begin && lane == 0)
                shared.work[place.slot] = {step.seq_start[seq], head, task[3], first, begin, end};
            keys.fetch_keys(shared_address(shared.slots[place.slot]), shared_address(&shared.full[place.slot]), key, first, end, lane);
            place.next();
            await_slot();
            values.fetch_values(shared_address(shared.slots[place.slot]), shared_address(&shared.full[place.slot]), key, first, end, lane);
            place.next();
        }
    }

    __device__ __forceinline__ void run()
    {
        const int works = step.meta[CUDA_META_TASKS + job.pages.group] * job.pages.kv_heads;
        int *taken = const_cast<int32_t *>(step.meta) + CUDA_META_TAKEN;
        for (int work = blockIdx.x; work < works;) {
            fetch(work);
            wait_for_kernels();
            work = lane == 0 ? gridDim.x + atomicAdd(taken, 1) : 0;
            work = __shfl_sync(0xffffffffu, work, 0);
        }
        await_slot();
        if (lane == 0) {
            shared.work[place.slot].row = -1;
            barrier_arrive(shared_address(&shared.full[place.slot]));
        }
    }
};

template <typename T, int D, int Bytes> struct decode_consumer {
    static constexpr int BLOCKS = D / 64;
    const cuda_step_view &step;
    const cuda_attention_job &job;
    decode_shared<D, Bytes> &shared;
    int warp, n, c; /* a thread has keys n and n + 8 of the warp's 16 in each 64, queries 2 c and 2 c + 1 */
    ring_place<decode_shared<D, Bytes>::SLOTS> place;
    float s[2][4], out[BLOCKS][4], maximum[2];      /* of the split under way */
    float total[BLOCKS][4], top[2];                 /* of the splits before it */
    float query_top, query_sum; /* of query thread / 8 */

    __device__ __forceinline__ void sync() { threads_sync(BARRIER, 128); }

    __device__ __forceinline__ void load_queries(const decode_work &work)
    {
        const int group = job.n_heads / job.pages.kv_heads, thread = threadIdx.x;
        const int query = thread / (D / 8), piece = thread % (D / 8);
        if (query < QUERIES) {
            const bf16 *q = static_cast<const bf16 *>(job.q.data) + static_cast<int64_t>(work.row) * job.q.stride +
                            (work.head * group + query) * D + piece * 8;
            *reinterpret_cast<uint4 *>(shared.queries + image_at<BLOCKS>(query, piece)) =
                query < group ? query_words<T>(q) : make_uint4(0, 0, 0, 0);
        }
        fence_async_proxy();
        sync();
    }

    __device__ __forceinline__ void score(uint32_t keys)
    {
        const uint32_t queries = shared_address(shared.queries);
#pragma unroll
        for (int b = 0; b < 2; b++) {
            product_begin();
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                int at = k / 4 * 1024 + k % 4 * 32;
                wgmma_narrow<T, 0>(s[b], image_operand<BLOCKS>(keys + b * 8 * BLOCKS * 1024 + at),
                                   image_operand<BLOCKS>(queries + at), k > 0);
            }
        }
        product_commit();
        wgmma_wait(s[0], s[1]);
    }

    __device__ __forceinline__ void mask(int key, int from, int to)
    {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = key + i / 4 * 64 + warp * 16 + i % 4 / 2 * 8 + n;
            if (at < from || at >= to)
                s[i / 4][i % 4] = -INFINITY;
        }
    }

    /* Scores to weights, in shared memory as the second product's operand. Returns its other: the values. */
    __device__ __forceinline__ uint32_t soften(int tile, bool fresh)
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float raw = fmaxf(fmaxf(s[0][e], s[0][2 + e]), fmaxf(s[1][e], s[1][2 + e]));
            for (int step = 4; step < 32; step *= 2)
                raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, step));
            if (n == 0)
                shared.tops[warp][2 * c + e] = raw;
        }
        sync();
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int query = 2 * c + e;
            float raw = fmaxf(fmaxf(shared.tops[0][query], shared.tops[1][query]),
                              fmaxf(shared.tops[2][query], shared.tops[3][query]));
            float next = fmaxf(fresh ? NO_MAXIMUM : maximum[e], whole_maximum(raw, job.scale));
            float factor = fresh ? 0.0f : rescale_from(maximum[e], next), shift = weight_shift(next);
            maximum[e] = next;
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                out[b][e] *= factor;
                out[b][2 + e] *= factor;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &weight = s[i / 2][i % 2 * 2 + e];
                weight = weight_of(weight, job.scale, shift);
                int piece = i / 2 * 8 + warp * 2 + i % 2;
                *reinterpret_cast<T *>(shared.weights + image_at<2>(query, piece) + 2 * n) = round_to<T>(weight);
            }
            shared.sums[tile][query][warp][n] = ((s[0][e] + s[0][2 + e]) + s[1][e]) + s[1][2 + e];
            if (warp == 0 && n == 0) {
                shared.factor[query] = factor;
                shared.maximum[query] = next;
            }
        }
        const uint32_t values = take_tile();
        fence_async_proxy();
        sync();
        return values;
    }

    __device__ __forceinline__ void add_values(uint32_t values, bool fresh)
    {
        const uint32_t weights = shared_address(shared.weights);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            product_begin();
#pragma unroll
            for (int k = 0; k < CUDA_TILE / 16; k++)
                wgmma_narrow<T, 1>(out[b], image_operand<BLOCKS>(values + b * 1024 + k * 2 * BLOCKS * 1024),
                                   image_operand<2>(weights + k / 4 * 1024 + k % 4 * 32), k > 0 || !fresh);
        }
        product_commit();
        wgmma_wait(out[0], out[BLOCKS - 1]);
    }

    __device__ __forceinline__ uint32_t await_slot()
    {
        barrier_wait(shared_address(&shared.full[place.slot]), place.parity);
        return shared_address(shared.slots[place.slot]);
    }
    __device__ __forceinline__ void free_slot()
    {
        if (n == 0 && c == 0)
            barrier_arrive(shared_address(&shared.empty[place.slot]));
        place.next();
    }

    /* The tile of a slot as an image, and the slot free where that is a copy. */
    __device__ __forceinline__ uint32_t take_tile()
    {
        const uint32_t slot = await_slot();
        if (Bytes == 2)
            return slot;
        const unsigned char *raw = shared.slots[place.slot];
#pragma unroll
        for (int i = threadIdx.x; i < CUDA_TILE * D / 16; i += 128)
            expand_piece<D>(shared.image, i / (D / 16), i % (D / 16), *reinterpret_cast<const uint4 *>(raw + i * 16));
        fence_async_proxy();
        free_slot();
        return shared_address(shared.image);
    }
    __device__ __forceinline__ void leave_tile()
    {
        if (Bytes == 2)
            free_slot();
    }

    /* The sum of a tile's weights for a query: lanes have n. */
    __device__ __forceinline__ float tile_sum(int tile, int query, int lane)
    {
        const float(*part)[8] = shared.sums[tile][query];
        return (part[0][lane] + part[1][lane]) + (part[2][lane] + part[3][lane]);
    }

    /* The sum of a split's weights, in the eight threads of each query. */
    __device__ __forceinline__ float split_sum(int query, int tiles)
    {
        float sum = tile_sum(0, query, threadIdx.x % 8);
        if (tiles > 1)
            sum = sum * shared.factor[query] + tile_sum(1, query, threadIdx.x % 8);
        for (int step = 1; step < 8; step *= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        return sum;
    }

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < 4 * BLOCKS; i++)
            total[i / 4][i % 4] = 0;
        top[0] = top[1] = query_top = NO_MAXIMUM;
        query_sum = 0;
    }

    /* total += out, from left to right. */
    __device__ __forceinline__ void end_split(int tiles)
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float next = fmaxf(top[e], maximum[e]);
            float old_factor = rescale_from(top[e], next), new_factor = rescale_from(maximum[e], next);
#pragma unroll
            for (int i = 0; i < 2 * BLOCKS; i++) {
                float &sum = total[i / 2][i % 2 * 2 + e];
                sum = __fmaf_rn(out[i / 2][i % 2 * 2 + e], new_factor, sum * old_factor);
            }
            top[e] = next;
        }
        if (warp < 2) {
            const int query = threadIdx.x / 8;
            float next = fmaxf(query_top, shared.maximum[query]);
            query_sum = __fmaf_rn(split_sum(query, tiles), rescale_from(shared.maximum[query], next),
                                  query_sum * rescale_from(query_top, next));
            query_top = next;
        }
    }

    __device__ __forceinline__ void store_partial(const decode_work &work, int tiles)
    {
        const int group = job.n_heads / job.pages.kv_heads;
        float *to = job.partials + (static_cast<int64_t>(work.partial) * job.n_heads + work.head * group) * (D + PARTIAL);
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (2 * c + e < group)
#pragma unroll
                for (int i = 0; i < 2 * BLOCKS; i++)
                    to[(2 * c + e) * (D + PARTIAL) + i / 2 * 64 + warp * 16 + i % 2 * 8 + n] = out[i / 2][i % 2 * 2 + e];
        if (warp >= 2)
            return;
        const int query = threadIdx.x / 8;
        float sum = split_sum(query, tiles);
        if (threadIdx.x % 8 == 0 && query < group) {
            to[query * (D + PARTIAL) + D] = shared.maximum[query];
            to[query * (D + PARTIAL) + D + 1] = sum;
        }
    }

    __device__ __forceinline__ void store(const decode_work &work)
    {
        const int group = job.n_heads / job.pages.kv_heads;
        if (warp < 2 && threadIdx.x % 8 == 0)
            shared.inverse[threadIdx.x / 8] = 1.0f / query_sum;
        sync();
        bf16 *y = static_cast<bf16 *>(job.y.data) + static_cast<int64_t>(work.row) * job.y.stride + work.head * group * D;
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (2 * c + e < group)
#pragma unroll
                for (int i = 0; i < 2 * BLOCKS; i++)
                    y[(2 * c + e) * D + i / 2 * 64 + warp * 16 + i % 2 * 8 + n] =
                        __float2bfloat16(total[i / 2][i % 2 * 2 + e] * shared.inverse[2 * c + e]);
    }

    __device__ __forceinline__ void run(const decode_work &work)
    {
        load_queries(work);
        clear();
        int tile = 0;
        for (int key = work.begin; key < work.end; key += CUDA_TILE, tile++) {
            if (key % CUDA_SPLIT == 0 && key > work.begin) {
                end_split(tile);
                tile = 0;
            }
            if (Bytes == 1)
                sync(); /* the products before are done with the image */
            const uint32_t keys = take_tile();
            if (Bytes == 1)
                sync();
            score(keys);
            leave_tile();
            if (key < work.first || key + CUDA_TILE > work.end)
                mask(key, work.first, work.end);
            const uint32_t values = soften(tile, tile == 0);
            add_values(values, tile == 0);
            leave_tile();
        }
        if (work.partial >= 0) {
            store_partial(work, tile);
            return;
        }
        end_split(tile);
        store(work);
    }
};

template <typename T, int D, int Bytes>
__global__ void __launch_bounds__(THREADS, 2)
    decode_kernel(const __grid_constant__ cuda_step_view step, const __grid_constant__ cuda_attention_job job)
{
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    decode_shared<D, Bytes> &shared = *reinterpret_cast<decode_shared<D, Bytes> *>(dynamic_shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < decode_shared<D, Bytes>::SLOTS; i++) {
            barrier_init(shared_address(&shared.full[i]), 1);
            barrier_init(shared_address(&shared.empty[i]), 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    pdl_release();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    if (warp == PRODUCER) {
        decode_producer<D, Bytes> producer = {step, job, shared, lane};
        producer.run();
        return;
    }
    pdl_wait();
    decode_consumer<T, D, Bytes> consumer = {step, job, shared, warp, lane / 4, lane % 4};
    for (;;) {
        consumer.await_slot();
        const decode_work work = shared.work[consumer.place.slot];
        if (work.row < 0)
            break;
        consumer.run(work);
    }
}

/* Blocks take (sequence, head, part of the head) in turn: the splits from left to right. They are brought in ROUND at a
 * time by all threads; a thread per number then adds. */
template <int D, int Parts> struct combine_block {
    static constexpr int DIMS = D / Parts, LANES = DIMS / 4, ROUND = Parts == 1 ? 32 : 256,
                         AHEAD = ROUND * LANES / 128;
    float values[ROUND][DIMS], factors[ROUND], sums[ROUND], tops[4];

    /* from: the first split of a head, `pitch` numbers apart */
    __device__ __forceinline__ void run(const float *from, int64_t pitch, int splits, int part, bf16 *y)
    {
        const int thread = threadIdx.x;
        float top = NO_MAXIMUM, sum = 0, out = 0;
        for (int i = thread; i < splits; i += 128)
            top = fmaxf(top, from[i * pitch + D]);
        for (int s = 16; s > 0; s /= 2)
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, s));
        if (thread % 32 == 0)
            tops[thread / 32] = top;
        for (int base = 0; base < splits; base += ROUND, from += ROUND * pitch) {
            const int count = min(ROUND, splits - base);
            float4 ahead[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int at = thread / LANES + i * (128 / LANES);
                if (at < count)
                    ahead[i] = *reinterpret_cast<const float4 *>(from + at * pitch + part * DIMS + thread % LANES * 4);
            }
            __syncthreads();
            top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
            for (int i = thread; i < count; i += 128) {
                factors[i] = rescale_from(from[i * pitch + D], top);
                sums[i] = from[i * pitch + D + 1];
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int at = thread / LANES + i * (128 / LANES);
                if (at < count)
                    *reinterpret_cast<float4 *>(&values[at][thread % LANES * 4]) = ahead[i];
            }
            __syncthreads();
            if (thread < DIMS)
#pragma unroll 8
                for (int i = 0; i < count; i++) {
                    out = __fmaf_rn(values[i][thread], factors[i], out);
                    sum = __fmaf_rn(sums[i], factors[i], sum);
                }
        }
        if (thread < DIMS)
            y[part * DIMS + thread] = __float2bfloat16(out * (1.0f / sum));
        __syncthreads();
    }
};

template <int D, int Parts>
__global__ void __launch_bounds__(128)
    combine_kernel(const __grid_constant__ cuda_step_view step, const __grid_constant__ cuda_attention_job job)
{
    __shared__ __align__(16) combine_block<D, Parts> block;
    pdl_wait();
    pdl_release();
    if (blockIdx.x == 0 && threadIdx.x == 0)
        const_cast<int32_t *>(step.meta)[CUDA_META_TAKEN] = 0;
    const int heads = job.n_heads, works = step.meta[CUDA_META_MERGES + job.pages.group] * heads * Parts;
    const int32_t *list = step.meta + step.meta[CUDA_META_MERGE_LIST + job.pages.group];
    const int64_t pitch = static_cast<int64_t>(heads) * (D + PARTIAL);
    for (int work = blockIdx.x; work < works; work += gridDim.x) {
        const int32_t *merge = list + 3 * (work / Parts / heads);
        const int head = work / Parts % heads;
        block.run(job.partials + merge[1] * pitch + head * (D + PARTIAL), pitch, merge[2], work % Parts,
                  static_cast<bf16 *>(job.y.data) + step.seq_start[merge[0]] * job.y.stride + head * D);
    }
}

template <typename T, int D, int Bytes = 2>
cudaError_t launch(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    const int works = job->n_heads * step->n_seqs, blocks = job->sm_count;
    cudaError_t error = cuda_launch(decode_kernel<T, D, Bytes>, dim3(static_cast<unsigned>(blocks) * 2), dim3(THREADS),
                                    sizeof(decode_shared<D, Bytes>), s, *step, *job);
    if (error != cudaSuccess)
        return error;
    if (works < 4 * blocks)
        return cuda_launch(combine_kernel<D, 4>, dim3(static_cast<unsigned>(min(works, blocks) * 4)), dim3(128), 0, s, *step,
                           *job);
    return cuda_launch(combine_kernel<D, 1>, dim3(static_cast<unsigned>(min(works, 12 * blocks))), dim3(128), 0, s, *step,
                       *job);
}

template <typename T, int D, int Bytes = 2> cudaError_t allow_shared()
{
    return cudaFuncSetAttribute(decode_kernel<T, D, Bytes>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(sizeof(decode_shared<D, Bytes>)));
}

} // namespace

size_t cuda_decode_partial_bytes(int32_t n_heads, int32_t head_dim)
{
    return static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim + PARTIAL) * sizeof(float);
}

bool cuda_attention_fits(int32_t n_heads, const cuda_layer_pages *pages)
{
    const bool rows_of_8_bits = pages->dtype == CUDA_DTYPE_F8 && pages->block_size % PAGE_KEYS == 0 &&
                                (pages->head_dim == 64 || pages->head_dim == 128);
    return (pages->image || rows_of_8_bits) && n_heads / pages->kv_heads <= QUERIES;
}

cudaError_t cuda_decode_init(void)
{
    cudaError_t errors[] = {allow_shared<bf16, 64>(), allow_shared<bf16, 128>(), allow_shared<__half, 64>(),
                            allow_shared<__half, 128>(), allow_shared<__half, 64, 1>(),
                            allow_shared<__half, 128, 1>()};
    for (cudaError_t error : errors)
        if (error != cudaSuccess)
            return error;
    return cudaSuccess;
}

cudaError_t cuda_launch_decode(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    if (job->pages.dtype == CUDA_DTYPE_F8)
        return job->pages.head_dim == 64 ? launch<__half, 64, 1>(s, step, job) : launch<__half, 128, 1>(s, step, job);
    bool half = job->pages.dtype == 1;
    if (job->pages.head_dim == 64)
        return half ? launch<__half, 64>(s, step, job) : launch<bf16, 64>(s, step, job);
    return half ? launch<__half, 128>(s, step, job) : launch<bf16, 128>(s, step, job);
}
