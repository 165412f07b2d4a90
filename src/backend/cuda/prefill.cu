/* Attention of several rows of a sequence: a block takes up to 128 (row, head) pairs that share a KV head, 64 for each
 * of two warpgroups. A warpgroup multiplies the next tile's keys and this one's values, and takes exponentials of the
 * next scores while the values' products run; the two start products in turns. A third brings in tiles of keys and
 * values. All query heads of a group go together, so that a page is read once. Bound by the tensor cores. */
#include "backend/cuda/attention.cuh"

namespace {

constexpr int STAGES = 2, GROUPS = 2, ROWS = CUDA_PREFILL_ROWS / GROUPS, THREADS = 128 * (1 + GROUPS);
constexpr int OWN_BARRIER = 1, TURN_BARRIER = OWN_BARRIER + GROUPS; /* + warpgroup */
/* Of a thread; 168 at the start. */
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

enum { KEYS, VALUES };

template <int D> struct prefill_shared {
    unsigned char tiles[2][STAGES][CUDA_TILE * D * 2], queries[GROUPS][ROWS * D * 2];
    float4 totals[GROUPS][D / 8][128]; /* of each thread: the sum of the splits before the one under way */
    uint64_t full[2][STAGES], empty[2][STAGES];
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

/* Brings tiles in: one warp by bulk copies; four where pages are of 8 bits and have to be expanded. */
template <int D, int Bytes> struct prefill_producer {
    const cuda_step_view &step;
    const cuda_attention_job &job;
    prefill_shared<D> &shared;
    int thread;
    ring_place<STAGES> place; /* of keys and of values */

    /* Rows [from, to) of the tile from `key` on, the others zero. */
    __device__ __forceinline__ void expand(const tile_source<D, Bytes> &source, unsigned char *tile, uint32_t full,
                                           int key, int from, int to)
    {
#pragma unroll 4
        for (int i = thread; i < CUDA_TILE * D / 16; i += 128) {
            const int row = i / (D / 16), piece = i % (D / 16);
            uint4 v = make_uint4(0, 0, 0, 0);
            if (key + row >= from && key + row < to)
                v = *reinterpret_cast<const uint4 *>(source.page(key + row) + piece * 16);
            expand_piece<D>(tile, row, piece, v);
        }
        fence_async_proxy();
        __syncwarp();
        if (thread % 32 == 0)
            barrier_arrive(full);
    }

    __device__ __forceinline__ void fetch(const tile_source<D, Bytes> &source, int kind, int key, const prefill_work &work)
    {
        unsigned char *tile = shared.tiles[kind][place.slot];
        const uint32_t full = shared_address(&shared.full[kind][place.slot]);
        barrier_wait(shared_address(&shared.empty[kind][place.slot]), place.parity ^ 1);
        if (Bytes == 1)
            expand(source, tile, full, key, work.first, work.end);
        else if (kind == VALUES)
            source.fetch_values(shared_address(tile), full, key, work.first, work.end, thread);
        else
            source.fetch_keys(shared_address(tile), full, key, work.first, work.end, thread);
    }

    __device__ __forceinline__ void run(const prefill_work &work)
    {
        const auto keys = source_of<D, Bytes>(step, job.pages, job.pages.keys, work.seq, work.head);
        const auto values = source_of<D, Bytes>(step, job.pages, job.pages.values, work.seq, work.head);
        for (int key = work.begin; key < work.end; key += CUDA_TILE, place.next()) {
            fetch(keys, KEYS, key, work);
            fetch(values, VALUES, key, work);
        }
    }
};

/* Of a split, for a thread's two rows: the sums of its keys' weights by key % 2, and the whole maximum. */
struct split_state {
    float sum[2][2], maximum[2];

    __device__ __forceinline__ void begin()
    {
        sum[0][0] = sum[0][1] = sum[1][0] = sum[1][1] = 0;
        maximum[0] = maximum[1] = NO_MAXIMUM;
    }
};

/* A thread's share of 64 rows: rows n and n + 8 of its warp's 16; columns 8 j + 2 c and the next. */
template <typename T, int D> struct prefill_rows {
    float s[64];     /* scores of a tile, then weights */
    uint32_t p[32];  /* weights, as the second product's operand */
    float out[D / 2]; /* of the split under way */
    split_state split;
    float factor[2]; /* that out has to be multiplied by */
    float4 (*totals)[128];
    float total_sum[2], top[2]; /* of the splits before it */
    bool has_out, has_total, raised;

    __device__ __forceinline__ void begin(float4 (*totals_of_thread)[128])
    {
        totals = totals_of_thread;
        has_out = has_total = false;
        total_sum[0] = total_sum[1] = 0;
        top[0] = top[1] = NO_MAXIMUM;
        split.begin();
    }

    /* total += out, from left to right. */
    __device__ __forceinline__ void end_split(const split_state &ended)
    {
        float old_factor[2], new_factor[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float all = ended.sum[e][0] + ended.sum[e][1];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            float next = fmaxf(top[e], ended.maximum[e]);
            old_factor[e] = rescale_from(top[e], next);
            new_factor[e] = rescale_from(ended.maximum[e], next);
            total_sum[e] = __fmaf_rn(all, new_factor[e], total_sum[e] * old_factor[e]);
            top[e] = next;
        }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            float4 t = make_float4(0, 0, 0, 0);
            if (has_total)
                t = totals[i][0];
            totals[i][0] = make_float4(__fmaf_rn(out[4 * i], new_factor[0], t.x * old_factor[0]),
                                       __fmaf_rn(out[4 * i + 1], new_factor[0], t.y * old_factor[0]),
                                       __fmaf_rn(out[4 * i + 2], new_factor[1], t.z * old_factor[1]),
                                       __fmaf_rn(out[4 * i + 3], new_factor[1], t.w * old_factor[1]));
        }
        has_total = true;
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

    __device__ __forceinline__ void start_values(uint32_t values)
    {
        wgmma_settle(p);
        product_begin();
#pragma unroll
        for (int k = 0; k < 8; k++)
            wgmma_mix<T>(out, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
                         image_operand<D / 64>(values + k * 2 * (D / 64) * 1024), k > 0 || has_out);
        product_commit();
        has_out = true;
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

    /* Scores to weights; out, which products may be adding to, is left for scale_out. */
    __device__ __forceinline__ void soften(float scale)
    {
        float next[2], shift[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float raw = NO_MAXIMUM;
#pragma unroll
            for (int j = 0; j < 16; j++)
                raw = fmaxf(raw, fmaxf(s[4 * j + 2 * e], s[4 * j + 2 * e + 1]));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 1));
            raw = fmaxf(raw, __shfl_xor_sync(0xffffffffu, raw, 2));
            next[e] = fmaxf(split.maximum[e], whole_maximum(raw, scale));
            shift[e] = weight_shift(next[e]);
            factor[e] = rescale_from(split.maximum[e], next[e]);
        }
        raised = __any_sync(0xffffffffu, next[0] > split.maximum[0] || next[1] > split.maximum[1]);
#pragma unroll
        for (int i = 0; i < 64; i++)
            s[i] = weight_of(s[i], scale, shift[i / 2 % 2]);
#pragma unroll
        for (int x = 0; x < 4; x++) {
            float part[4];
#pragma unroll
            for (int w = 0; w < 4; w++)
                part[w] = ((s[8 * w + x] + s[8 * w + 4 + x]) + s[32 + 8 * w + x]) + s[36 + 8 * w + x];
            float &sum = split.sum[x / 2][x % 2];
            sum = (raised ? sum * factor[x / 2] : sum) + ((part[0] + part[1]) + (part[2] + part[3]));
        }
        split.maximum[0] = next[0];
        split.maximum[1] = next[1];
    }

    __device__ __forceinline__ void scale_out()
    {
        if (raised)
#pragma unroll
            for (int i = 0; i < D / 2; i++)
                out[i] *= factor[i / 2 % 2];
    }

    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int i = 0; i < 32; i++)
            p[i] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
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
    ring_place<STAGES> keys, values;
    prefill_rows<T, D> rows;

    __device__ __forceinline__ void take_turn() { threads_sync(TURN_BARRIER + group, 128 * GROUPS); }
    __device__ __forceinline__ void pass_turn() { threads_arrive(TURN_BARRIER + (group ^ 1), 128 * GROUPS); }
    __device__ __forceinline__ uint32_t await_tile(int kind, const ring_place<STAGES> &place)
    {
        barrier_wait(shared_address(&shared.full[kind][place.slot]), place.parity);
        return shared_address(shared.tiles[kind][place.slot]);
    }
    __device__ __forceinline__ void free_tile(int kind, ring_place<STAGES> &place)
    {
        if (thread % 32 == 0)
            barrier_arrive(shared_address(&shared.empty[kind][place.slot]));
        place.next();
    }

    __device__ __forceinline__ void soften(const prefill_work &work, const int (&position)[2], int key)
    {
        const int window = job.pages.window;
        if (key + CUDA_TILE - 1 > work.position0 || (window > 0 && key <= work.end - 1 - window))
            rows.mask(position, window, key, thread % 4);
        rows.soften(job.scale);
    }

    __device__ __forceinline__ void walk(const prefill_work &work, const int (&position)[2])
    {
        const uint32_t queries = shared_address(shared.queries[group]);
        uint32_t key_tile = await_tile(KEYS, keys);
        take_turn();
        rows.start_scores(queries, key_tile);
        pass_turn();
        wgmma_wait(rows.s);
        free_tile(KEYS, keys);
        soften(work, position, work.begin);
        rows.pack();
        for (int key = work.begin + CUDA_TILE; key < work.end; key += CUDA_TILE) {
            key_tile = await_tile(KEYS, keys);
            const uint32_t value_tile = await_tile(VALUES, values);
            take_turn();
            rows.start_scores(queries, key_tile);
            rows.start_values(value_tile);
            pass_turn();
            product_wait<1>();
            wgmma_settle(rows.s);
            free_tile(KEYS, keys);
            const split_state before = rows.split;
            if (key % CUDA_SPLIT == 0)
                rows.split.begin();
            soften(work, position, key);
            product_wait<0>();
            wgmma_settle(rows.out);
            wgmma_settle(rows.p);
            free_tile(VALUES, values);
            if (key % CUDA_SPLIT == 0) {
                rows.end_split(before);
                rows.has_out = false;
            } else {
                rows.scale_out();
            }
            rows.pack();
        }
        const uint32_t value_tile = await_tile(VALUES, values);
        take_turn();
        rows.start_values(value_tile);
        pass_turn();
        wgmma_wait(rows.out);
        wgmma_settle(rows.p);
        free_tile(VALUES, values);
        rows.end_split(rows.split);
    }

    __device__ __forceinline__ void run(const prefill_work &work)
    {
        const int heads = job.n_heads / job.pages.kv_heads, n = thread % 32 / 4, c = thread % 4;
        const int row0 = ROWS * group + thread / 32 * 16 + n;
        load_queries<T, D>(job, work, shared.queries[group], ROWS * group, thread);
        const int position[2] = {work.position0 + min(row0 / heads, work.rows - 1),
                                 work.position0 + min((row0 + 8) / heads, work.rows - 1)};
        threads_sync(OWN_BARRIER + group, 128);
        rows.begin(reinterpret_cast<float4(*)[128]>(&shared.totals[group][0][thread]));
        walk(work, position);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = row0 + 8 * e, token = row / heads;
            if (token >= work.rows || row >= CUDA_PREFILL_ROWS / heads * heads)
                continue;
            const float inverse = 1.0f / rows.total_sum[e];
            bf16 *y = static_cast<bf16 *>(job.y.data) + (work.row0 + token) * job.y.stride +
                      (work.head * heads + row % heads) * D + 2 * c;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                const float4 total = rows.totals[i][0];
                *reinterpret_cast<uint32_t *>(y + i * 8) = e == 0 ? bf16_pair(total.x * inverse, total.y * inverse)
                                                                  : bf16_pair(total.z * inverse, total.w * inverse);
            }
        }
    }
};

template <typename T, int D, int Bytes>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ cuda_step_view step, const __grid_constant__ cuda_attention_job job)
{
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    prefill_shared<D> &shared = *reinterpret_cast<prefill_shared<D> *>(dynamic_shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            barrier_init(shared_address(&shared.full[i / STAGES][i % STAGES]), Bytes == 2 ? 1 : 4);
            barrier_init(shared_address(&shared.empty[i / STAGES][i % STAGES]), GROUPS * 4);
        }
        barrier_init_fence();
    }
    __syncthreads();
    pdl_wait();
    pdl_release();
    const int works = job.pages.kv_heads * step.prefill_tiles, group = threadIdx.x / 128 - 1;
    if (group < 0) {
        registers_lower<PRODUCER_REGISTERS>();
        prefill_producer<D, Bytes> producer = {step, job, shared, static_cast<int>(threadIdx.x)};
        for (int round = 0; round * gridDim.x < works && threadIdx.x < (Bytes == 2 ? 32 : 128); round++)
            if (work_of(round) < works)
                producer.run(prefill_work(step, job, work_of(round)));
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

template <typename T, int D, int Bytes = 2>
cudaError_t launch(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    int works = job->pages.kv_heads * step->prefill_tiles, blocks = job->sm_count;
    return cuda_launch(prefill_kernel<T, D, Bytes>, dim3(static_cast<unsigned>(works < blocks ? works : blocks)),
                       dim3(THREADS), sizeof(prefill_shared<D>), s, *step, *job);
}

template <typename T, int D, int Bytes = 2> cudaError_t allow_shared()
{
    return cudaFuncSetAttribute(prefill_kernel<T, D, Bytes>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(sizeof(prefill_shared<D>)));
}

} // namespace

cudaError_t cuda_prefill_init(void)
{
    cudaError_t errors[] = {allow_shared<bf16, 64>(), allow_shared<bf16, 128>(), allow_shared<__half, 64>(),
                            allow_shared<__half, 128>(), allow_shared<__half, 64, 1>(),
                            allow_shared<__half, 128, 1>()};
    for (cudaError_t error : errors)
        if (error != cudaSuccess)
            return error;
    return cudaSuccess;
}

cudaError_t cuda_launch_prefill(cudaStream_t s, const cuda_step_view *step, const cuda_attention_job *job)
{
    if (job->pages.dtype == CUDA_DTYPE_F8)
        return job->pages.head_dim == 64 ? launch<__half, 64, 1>(s, step, job) : launch<__half, 128, 1>(s, step, job);
    bool half = job->pages.dtype == 1;
    if (job->pages.head_dim == 64)
        return half ? launch<__half, 64>(s, step, job) : launch<bf16, 64>(s, step, job);
    return half ? launch<__half, 128>(s, step, job) : launch<bf16, 128>(s, step, job);
}
