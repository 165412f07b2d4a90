/* Attention of several rows of a sequence: a block takes up to 128 (row, head) pairs that share a KV head, 64 for each
 * of two warpgroups that multiply in turns, so that one's products run while the other takes exponentials. A third
 * brings in tiles of keys and values. All query heads of a group go together, so that a page is read once. Bound by the
 * tensor cores. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int SLOTS = 6, GROUPS = 2, ROWS = CUDA_PREFILL_ROWS / GROUPS, THREADS = 128 * (1 + GROUPS);
constexpr int OWN_BARRIER = 1, TURN_BARRIER = OWN_BARRIER + GROUPS; /* + warpgroup */
/* Of a thread; 168 at the start. */
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

template <int D> struct prefill_shared {
    unsigned char slots[SLOTS][CUDA_TILE * D * 2], queries[GROUPS][ROWS * D * 2];
    uint64_t full[SLOTS], empty[SLOTS];
};

/* What a block does at a time: rows of one sequence and a KV head. */
struct prefill_work {
    int seq, head, row0, rows, position0, first, begin, end;

    __device__ __forceinline__ prefill_work(const cuda_step_view &step, const cuda_attention_job &job, int work)
    {
        const int heads = job.pages.kv_heads, tile_rows = CUDA_PREFILL_ROWS / (job.n_heads / heads);
        const int32_t *tile = step.meta + step.prefill_offset + 2 * (step.prefill_tiles - 1 - work / heads);
        head = work % heads;
        seq = tile[0];
        row0 = tile[1];
        rows = min(tile_rows, step.seq_start[seq + 1] - row0);
        position0 = step.positions[row0];
        end = position0 + rows;
        first = job.pages.window > 0 ? max(0, position0 - job.pages.window + 1) : 0;
        begin = first / CUDA_TILE * CUDA_TILE;
    }
};

/* Blocks take works in turn, the longest first, every other time in the other direction. */
__device__ __forceinline__ int work_of(int round)
{
    int block = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return round * gridDim.x + block;
}

template <typename T, int D>
__device__ __forceinline__ void produce(const cuda_step_view &step, const cuda_attention_job &job,
                                        prefill_shared<D> &shared, int works, int lane)
{
    ring_place<SLOTS> place;
    for (int round = 0; round * gridDim.x < works; round++) {
        if (work_of(round) >= works)
            continue;
        const prefill_work work(step, job, work_of(round));
        const auto keys = source_of<D, 2>(step, job.pages, job.pages.keys, work.seq, work.head);
        const auto values = source_of<D, 2>(step, job.pages, job.pages.values, work.seq, work.head);
        for (int key = work.begin; key < work.end; key += CUDA_TILE) {
            barrier_wait(shared_address(&shared.empty[place.slot]), place.parity ^ 1);
            keys.fetch_keys(shared_address(shared.slots[place.slot]), shared_address(&shared.full[place.slot]), key, work.first, work.end,
                            lane);
            place.next();
            barrier_wait(shared_address(&shared.empty[place.slot]), place.parity ^ 1);
            values.fetch_values(shared_address(shared.slots[place.slot]), shared_address(&shared.full[place.slot]), key, work.first,
                                work.end, lane);
            place.next();
        }
    }
}

/* A thread's share of 64 rows: rows n and n + 8 of its warp's 16; columns 8 j + 2 c and the next. */
template <typename T, int D> struct prefill_rows {
    float s[64];                                    /* scores of a tile, then weights */
    float out[D / 2], sum[2][2], maximum[2];        /* of the split under way */
    float total[D / 2], total_sum[2], top[2];       /* of the splits before it */

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            total[i] = 0;
        total_sum[0] = total_sum[1] = 0;
        top[0] = top[1] = NO_MAXIMUM;
        begin_split();
    }
    /* out is overwritten by the split's first product */
    __device__ __forceinline__ void begin_split()
    {
        sum[0][0] = sum[0][1] = sum[1][0] = sum[1][1] = 0;
        maximum[0] = maximum[1] = NO_MAXIMUM;
    }

    /* total += out, from left to right. */
    __device__ __forceinline__ void end_split()
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float all = sum[e][0] + sum[e][1];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            float next = fmaxf(top[e], maximum[e]);
            float old_factor = rescale_from(top[e], next), new_factor = rescale_from(maximum[e], next);
#pragma unroll
            for (int i = 0; i < D / 8; i++)
#pragma unroll
                for (int x = 4 * i + 2 * e; x < 4 * i + 2 * e + 2; x++)
                    total[x] = __fmaf_rn(out[x], new_factor, total[x] * old_factor);
            total_sum[e] = __fmaf_rn(all, new_factor, total_sum[e] * old_factor);
            top[e] = next;
        }
    }

    __device__ __forceinline__ void start_scores(uint32_t queries, uint32_t keys)
    {
        product_begin();
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            int at = k / 4 * 1024 + k % 4 * 32;
            wgmma_rows<T>(s, image_operand<D / 64>(queries + at), image_operand<D / 64>(keys + at), k > 0);
        }
        product_commit();
    }

    __device__ __forceinline__ void mask(const int (&position)[2], int window, int key, int c)
    {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            int at = key + i / 4 * 8 + 2 * c + i % 2, mine = position[i / 2 % 2];
            if (at > mine || (window > 0 && at <= mine - window))
                s[i] = -INFINITY;
        }
    }

    __device__ __forceinline__ void raise(const float (&next)[2], bool has_out)
    {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float factor = rescale_from(maximum[e], next[e]);
            if (has_out) {
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    out[4 * i + 2 * e] *= factor;
                    out[4 * i + 2 * e + 1] *= factor;
                }
            }
            sum[e][0] *= factor;
            sum[e][1] *= factor;
            maximum[e] = next[e];
        }
    }

    /* Scores to weights. has_out: it is not the split's first tile. */
    __device__ __forceinline__ void soften(float scale, bool has_out)
    {
        float next[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float raw = NO_MAXIMUM;
#pragma unroll
            for (int j = 0; j < 16; j++)
                raw = fmaxf(raw, fmaxf(s[4 * j + 2 * e], s[4 * j + 2 * e + 1]));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 1));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 2));
            next[e] = fmaxf(maximum[e], whole_maximum(raw, scale));
        }
        if (__any_sync(0xffffffffu, next[0] > maximum[0] || next[1] > maximum[1]))
            raise(next, has_out);
        const float shift[2] = {weight_shift(maximum[0]), weight_shift(maximum[1])};
#pragma unroll
        for (int i = 0; i < 64; i++)
            s[i] = weight_of(s[i], scale, shift[i / 2 % 2]);
#pragma unroll
        for (int x = 0; x < 4; x++) {
            float part[4];
#pragma unroll
            for (int w = 0; w < 4; w++)
                part[w] = ((s[8 * w + x] + s[8 * w + 4 + x]) + s[32 + 8 * w + x]) + s[36 + 8 * w + x];
            sum[x / 2][x % 2] += (part[0] + part[1]) + (part[2] + part[3]);
        }
    }

    __device__ __forceinline__ void add_values(uint32_t values, bool has_out)
    {
        uint32_t p[32];
#pragma unroll
        for (int i = 0; i < 32; i++)
            p[i] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
        wgmma_settle(p);
        product_begin();
#pragma unroll
        for (int k = 0; k < 8; k++)
            wgmma_mix<T>(out, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                         image_operand<D / 64>(values + k * 2 * (D / 64) * 1024), k > 0 || has_out);
        product_commit();
        wgmma_wait(out);
        wgmma_settle(p); /* its registers were read until here */
    }
};

/* The 64 queries of a warpgroup as an image. */
template <typename T, int D>
__device__ __forceinline__ void load_queries(const cuda_attention_job &job, const prefill_work &work, unsigned char *image,
                                             int row_begin, int thread)
{
    const int group = job.n_heads / job.pages.kv_heads;
#pragma unroll
    for (int i = thread; i < ROWS * D / 8; i += 128) {
        int row = i / (D / 8), piece = i % (D / 8), token = (row_begin + row) / group;
        int head = work.head * group + (row_begin + row) % group;
        uint4 words = make_uint4(0, 0, 0, 0);
        if (token < work.rows)
            words = query_words<T>(static_cast<const bf16 *>(job.q.data) + (work.row0 + token) * job.q.stride + head * D +
                                   piece * 8);
        *reinterpret_cast<uint4 *>(image + image_at<D / 64>(row, piece)) = words;
    }
    fence_async_proxy();
}

template <typename T, int D> struct prefill_consumer {
    const cuda_step_view &step;
    const cuda_attention_job &job;
    prefill_shared<D> &shared;
    int group, thread; /* the warpgroup, and which of its threads this is */
    ring_place<SLOTS> place;
    prefill_rows<T, D> rows;

    __device__ __forceinline__ void take_turn() { threads_sync(TURN_BARRIER + group, 128 * GROUPS); }
    __device__ __forceinline__ void pass_turn() { threads_arrive(TURN_BARRIER + (group ^ 1), 128 * GROUPS); }
    __device__ __forceinline__ uint32_t await_slot()
    {
        barrier_wait(shared_address(&shared.full[place.slot]), place.parity);
        return shared_address(shared.slots[place.slot]);
    }
    __device__ __forceinline__ void free_slot(int slot)
    {
        if (thread % 32 == 0)
            barrier_arrive(shared_address(&shared.empty[slot]));
    }

    __device__ __forceinline__ void walk(const prefill_work &work, const int (&position)[2])
    {
        const uint32_t queries = shared_address(shared.queries[group]);
        uint32_t slot = await_slot();
        take_turn();
        rows.start_scores(queries, slot);
        pass_turn();
        wgmma_wait(rows.s);
        for (int key = work.begin;; key += CUDA_TILE) {
            free_slot(place.slot);
            place.next();
            if (key + CUDA_TILE - 1 > work.position0 || (job.pages.window > 0 && key <= work.end - 1 - job.pages.window))
                rows.mask(position, job.pages.window, key, thread % 4);
            const bool fresh = key % CUDA_SPLIT == 0 || key == work.begin;
            if (fresh && key > work.begin) {
                rows.end_split();
                rows.begin_split();
            }
            rows.soften(job.scale, !fresh);
            slot = await_slot();
            take_turn();
            rows.add_values(slot, !fresh);
            free_slot(place.slot);
            place.next();
            if (key + CUDA_TILE >= work.end)
                break;
            slot = await_slot();
            rows.start_scores(queries, slot);
            pass_turn();
            wgmma_wait(rows.s);
        }
        pass_turn();
        rows.end_split();
    }

    __device__ __forceinline__ void run(const prefill_work &work)
    {
        const int heads = job.n_heads / job.pages.kv_heads, n = thread % 32 / 4, c = thread % 4;
        const int row0 = ROWS * group + thread / 32 * 16 + n;
        load_queries<T, D>(job, work, shared.queries[group], ROWS * group, thread);
        const int position[2] = {work.position0 + min(row0 / heads, work.rows - 1),
                                 work.position0 + min((row0 + 8) / heads, work.rows - 1)};
        threads_sync(OWN_BARRIER + group, 128);
        rows.clear();
        walk(work, position);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = row0 + 8 * e, token = row / heads;
            if (token >= work.rows || row >= CUDA_PREFILL_ROWS / heads * heads)
                continue;
            float inverse = 1.0f / rows.total_sum[e];
            bf16 *y = static_cast<bf16 *>(job.y.data) + (work.row0 + token) * job.y.stride +
                      (work.head * heads + row % heads) * D + 2 * c;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *reinterpret_cast<uint32_t *>(y + i * 8) =
                    bf16_pair(rows.total[4 * i + 2 * e] * inverse, rows.total[4 * i + 2 * e + 1] * inverse);
        }
    }
};

template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ cuda_step_view step, const __grid_constant__ cuda_attention_job job)
{
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    prefill_shared<D> &shared = *reinterpret_cast<prefill_shared<D> *>(dynamic_shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) {
            barrier_init(shared_address(&shared.full[i]), 1);
            barrier_init(shared_address(&shared.empty[i]), GROUPS * 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    pdl_wait();
    pdl_release();
    const int works = job.pages.kv_heads * step.prefill_tiles, group = threadIdx.x / 128 - 1;
    if (group < 0) {
        registers_lower<PRODUCER_REGISTERS>();
        if (threadIdx.x < 32)
            produce<T, D>(step, job, shared, works, threadIdx.x);
    } else {
        registers_raise<CONSUMER_REGISTERS>();
        prefill_consumer<T, D> consumer = {step, job, shared, group, static_cast<int>(threadIdx.x) % 128};
        if (group == 1)
            consumer.pass_turn();
        for (int round = 0; round * gridDim.x < works; round++)
            if (work_of(round) < works)
                consumer.run(prefill_work(step, job, work_of(round)));
    }
}

template <typename T, int D> cudaError_t launch(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    int works = job->pages.kv_heads * step->prefill_tiles, blocks = job->sm_count;
    return cuda_launch(prefill_kernel<T, D>, dim3(static_cast<unsigned>(works < blocks ? works : blocks)),
                       dim3(THREADS), sizeof(prefill_shared<D>), s, *step, *job);
}

template <typename T, int D> cudaError_t allow_shared()
{
    return cudaFuncSetAttribute(prefill_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(sizeof(prefill_shared<D>)));
}

} // namespace

cudaError_t cuda_prefill_init(void)
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
