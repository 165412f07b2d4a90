/* The product on Hopper: weights are the 64-row operand and tokens the other, so that one instruction in one order
 * along K serves every M. Two warps feed a ring of stages by the copy engine, one or two groups of four warps compute.
 * Weights do not depend on the kernel before: as many as the ring holds are fetched while it still runs. */
#include <cudaTypedefs.h>

#include "backend/cuda/cuda.cuh"
#include "backend/cuda/gemm_wgmma.cuh"
#include "backend/cuda/hopper.cuh"

namespace
{

constexpr int THREADS_MAX = 3 * 128;
constexpr int ROW_TILES_IN_STEP = 8; /* walked together through the tokens: their weights stay in L2 */

struct target {
    void *y;
    const float *bias;
    int64_t y_stride;
    int n, first_tile;
};

struct job_params {
    CUtensorMap weight[CUDA_GEMM_MATRICES], x;
    target to[CUDA_GEMM_MATRICES];
    int count, m;
    cuda_gemm_out out;
    int up_first; /* woven: up lies before gate */
    cuda_gemm_plan plan;
};

struct ring { /* a place in the ring of stages */
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next(int stages)
    {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

struct block_view { /* a block's shared memory, by address, and its place in the cluster */
    uint32_t base;
    int rank, segment, row_peer, token_peer;
    __device__ uint32_t full(int stage) const { return base + stage * 16; }
    __device__ uint32_t empty(int stage) const { return base + stage * 16 + 8; }
    __device__ uint32_t received() const { return base + CUDA_GEMM_STAGES_MAX * 16; }
    __device__ uint32_t taken() const { return received() + 8; }
    __device__ uint32_t data() const { return base + CUDA_GEMM_HEAD_BYTES; }
};

__device__ block_view view_of(const job_params &p, uint32_t base)
{
    const cuda_gemm_cut &cut = p.plan.cut;
    int rank = p.plan.cluster > 1 ? static_cast<int>(cluster_rank()) : 0, rest = rank;
    block_view view = {base, rank, 0, 0, 0};
    if (cut.split == CUDA_GEMM_CLUSTER) {
        view.segment = rest % 2;
        rest /= 2;
    }
    view.row_peer = rest % cut.row_peers;
    view.token_peer = rest / cut.row_peers;
    return view;
}

__device__ __forceinline__ int rank_of(const job_params &p, int segment, int row_peer, int token_peer)
{
    int rank = token_peer * p.plan.cut.row_peers + row_peer;
    return p.plan.cut.split == CUDA_GEMM_CLUSTER ? rank * 2 + segment : rank;
}

struct tile_place {
    int matrix, row_tile,
        token_tile; /* row_tile: of the matrix; may lie past its end, as may the token tile */
};

__device__ tile_place place_of(const job_params &p, const block_view &view, int tile)
{
    const cuda_gemm_plan &plan = p.plan;
    int per_step = ROW_TILES_IN_STEP * plan.token_tiles, step = tile / per_step, at = tile % per_step;
    int width = min(ROW_TILES_IN_STEP, plan.row_tiles - step * ROW_TILES_IN_STEP), matrix = 0;
    int row_tile = (step * ROW_TILES_IN_STEP + at % width) * plan.cut.row_peers + view.row_peer;
    while (matrix + 1 < p.count && row_tile >= p.to[matrix + 1].first_tile)
        matrix++;
    return {matrix, row_tile - p.to[matrix].first_tile, at / width * plan.cut.token_peers + view.token_peer};
}

__device__ __forceinline__ int tiles_of(const job_params &p) { return p.plan.row_tiles * p.plan.token_tiles; }
__device__ __forceinline__ int first_tile(const job_params &p) { return blockIdx.x / p.plan.cluster; }
__device__ __forceinline__ int tile_step(const job_params &p) { return gridDim.x / p.plan.cluster; }

/* ---- The feeding warps: one thread of one brings weights, of the other tokens ---- */

/* What a feeder brings: a box of atoms and rows, for itself or, by shares, for all blocks in mask. */
struct feeder {
    uint32_t offset, part_offset; /* in a stage: of this block's share; from part to part */
    uint32_t bytes;               /* that come to this block in a stage, from all */
    int row, atom;                /* its share's place in the tile and in the segment */
    uint16_t mask;
    uint64_t policy;
};

__device__ feeder share_of(const job_params &p, int rows, int peers, int me)
{
    const cuda_gemm_plan &plan = p.plan;
    feeder f = {};
    f.part_offset = 128u * rows * plan.depth;
    f.bytes = plan.parts * f.part_offset;
    f.atom = plan.depth > 1 ? me * (plan.depth / peers) : 0;
    f.row = plan.depth > 1 ? 0 : me * (rows / peers);
    f.offset = 128u * (f.atom * rows + f.row);
    return f;
}

__device__ feeder weight_feeder(const job_params &p, const block_view &view)
{
    const cuda_gemm_cut &cut = p.plan.cut;
    feeder f = share_of(p, cut.rows, cut.token_peers, view.token_peer);
    f.policy = p.plan.token_tiles > 1 ? policy_evict_normal() : policy_evict_first();
    for (int i = 0; i < cut.token_peers; i++)
        f.mask |= 1 << rank_of(p, view.segment, view.row_peer, i);
    return f;
}

__device__ feeder token_feeder(const job_params &p, const block_view &view)
{
    const cuda_gemm_cut &cut = p.plan.cut;
    feeder f = share_of(p, cut.tokens, cut.row_peers, view.row_peer);
    f.offset += p.plan.parts * 128u * cut.rows * p.plan.depth;
    f.policy = policy_evict_normal();
    for (int i = 0; i < cut.row_peers; i++)
        f.mask |= 1 << rank_of(p, view.segment, i, view.token_peer);
    return f;
}

template <bool Woven, bool Shared>
__device__ __forceinline__ void fetch(uint32_t to, const CUtensorMap *map, int row, int atom,
                                      uint32_t barrier, const feeder &f)
{
    if constexpr (Woven && Shared)
        woven_multicast(to, map, row, atom, barrier, f.mask, f.policy);
    else if constexpr (Woven)
        woven_load(to, map, row, atom, barrier, f.policy);
    else if constexpr (Shared)
        tile_multicast(to, map, 0, row, atom, barrier, f.mask, f.policy);
    else
        tile_load(to, map, 0, row, atom, barrier, f.policy);
}

/* A thread alone is slow: nothing in its inner loop that can be outside. */
template <bool Weights, bool Woven, bool Shared>
__device__ void feed(const job_params &p, const block_view &view, const feeder &f)
{
    const int depth = p.plan.depth, stages = p.plan.stages, atoms = p.plan.atoms;
    const int feed_atoms = p.plan.cut.split == CUDA_GEMM_TURNS ? 2 * atoms : atoms;
    const uint32_t stage_bytes = depth * p.plan.atom_bytes, base = view.data() + f.offset;
    const bool two = p.plan.parts == 2;
    uint32_t parity = 1, to = base, barrier = view.full(0);
    int stage = 0;
    for (int tile = first_tile(p); tile < tiles_of(p); tile += tile_step(p)) {
        tile_place at = place_of(p, view, tile);
        const CUtensorMap *map = Weights ? &p.weight[at.matrix] : &p.x;
        int row = (Weights ? at.row_tile * p.plan.cut.rows : at.token_tile * p.plan.cut.tokens) + f.row;
        if (Woven)
            row /= 16;
        for (int turn = 0, atom = view.segment * atoms + f.atom; turn < feed_atoms;
             turn += depth, atom += depth) {
            barrier_wait(barrier + 8, parity);
            barrier_expect(barrier, f.bytes);
            fetch<Woven, Shared>(to, map, row, atom, barrier, f);
            if (two)
                fetch<Woven, Shared>(to + f.part_offset, map, row, atom + atoms, barrier, f);
            to += stage_bytes;
            barrier += 16;
            if (++stage == stages) {
                stage = 0;
                to = base;
                barrier = view.full(0);
                parity ^= 1;
            }
        }
    }
}

__device__ void feed_weights(const job_params &p, const block_view &view)
{
    feeder f = weight_feeder(p, view);
    bool shared = p.plan.cut.token_peers > 1;
    if (p.plan.woven && shared)
        feed<true, true, true>(p, view, f);
    else if (p.plan.woven)
        feed<true, true, false>(p, view, f);
    else if (shared)
        feed<true, false, true>(p, view, f);
    else
        feed<true, false, false>(p, view, f);
}

__device__ void feed_tokens(const job_params &p, const block_view &view)
{
    feeder f = token_feeder(p, view);
    pdl_wait();
    if (p.plan.cut.row_peers > 1)
        feed<false, false, true>(p, view, f);
    else
        feed<false, false, false>(p, view, f);
}

/* ---- The computing groups ---- */

/* A warp has read a stage: whoever writes into it is told. */
struct releaser {
    uint32_t offset; /* of this lane's reader of the news, from this block's address of a barrier */
    bool tells, far;

    __device__ releaser(const job_params &p, const block_view &view)
    {
        const cuda_gemm_cut &cut = p.plan.cut;
        int lane = threadIdx.x % 32, peers = cut.row_peers + cut.token_peers - 1;
        tells = lane < peers;
        far = peers > 1;
        int rank = view.rank;
        if (lane < cut.row_peers)
            rank = rank_of(p, view.segment, lane, view.token_peer);
        else if (tells) {
            int other = lane - cut.row_peers;
            rank = rank_of(p, view.segment, view.row_peer, other + (other >= view.token_peer));
        }
        offset = far ? peer_address(view.base, rank) - view.base : 0;
    }
    __device__ __forceinline__ void release(uint32_t barrier) const
    {
        if (tells && far)
            peer_arrive(barrier + offset);
        else if (tells)
            barrier_arrive(barrier);
    }
};

/* A tile's sums over this group's part of K. */
template <int Tokens>
__device__ __forceinline__ void sum_tile(const job_params &p, const block_view &view, const releaser &readers,
                                         int group, ring &r, float (&sum)[Tokens / 2])
{
    const cuda_gemm_plan &plan = p.plan;
    uint32_t weight_bytes = 128u * plan.cut.rows * plan.depth, stage_bytes = plan.depth * plan.atom_bytes;
    bool inside = plan.cut.split == CUDA_GEMM_INSIDE;
    uint32_t a_at = view.data() + group * (inside ? weight_bytes : 64 * 128);
    uint32_t b_at =
        view.data() + plan.parts * weight_bytes + (inside ? group * plan.depth * Tokens * 128 : 0);
    constexpr bool LONG =
        Tokens >= 128; /* products that take longer than telling: one stage's always wait behind */
    int last = -1;
    for (int atom = 0; atom < plan.atoms; atom += plan.depth, r.next(plan.stages)) {
        barrier_wait(view.full(r.stage), r.parity);
        uint32_t at = r.stage * stage_bytes;
        uint32_t a = operand_low(a_at + at), b = operand_low(b_at + at);
        int end = min(plan.depth, plan.atoms - atom);
        for (int i = 0; i < end; i++, a += plan.cut.rows * 8, b += Tokens * 8) {
            product_begin();
#pragma unroll
            for (int k = 0; k < 4; k++)
                product_step<Tokens>(sum, operand_of(a + 2 * k), operand_of(b + 2 * k));
            product_commit();
            if (LONG)
                product_wait<1>();
            if (LONG && i == 0 && last >= 0)
                readers.release(view.empty(last));
        }
        last = r.stage;
        if (!LONG) {
            product_wait<0>();
            readers.release(view.empty(last));
        }
    }
    if (LONG) {
        product_wait<0>();
        readers.release(view.empty(last));
    }
}

__device__ __forceinline__ void groups_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
__device__ __forceinline__ void group_sync(int group)
{
    asm volatile("bar.sync %0, 128;" ::"r"(group + 2) : "memory");
}

/* Adds the other segment's sums; true for the group that then stores. */
template <int Count>
__device__ __forceinline__ bool join_inside(uint32_t exchange, int group, float (&sum)[Count])
{
    uint32_t at = exchange + threadIdx.x % 128 * 16;
    groups_sync(); /* the last tile's have been read */
    if (group == 1) {
#pragma unroll
        for (int i = 0; i < Count; i += 4)
            shared_store4(at + i * 512, make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
    }
    groups_sync();
    if (group == 1)
        return false;
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
        float4 v = shared_load4(at + i * 512);
        sum[i] += v.x;
        sum[i + 1] += v.y;
        sum[i + 2] += v.z;
        sum[i + 3] += v.w;
    }
    return true;
}

/* Sends the sums of the tokens' half that the other block finishes, and adds what it sends for this block's half. */
template <int Tokens, int Half>
__device__ __forceinline__ void join_half(const job_params &p, const block_view &view, uint32_t exchange,
                                          uint32_t parity, float (&sum)[Tokens / 2])
{
    constexpr int COUNT = Tokens / 4;
    int peer = view.rank ^ 1, pitch = p.plan.cut.groups * 128 * 16, at = threadIdx.x * 16;
    if (threadIdx.x == 0)
        barrier_expect(view.received(), COUNT / 4 * pitch);
    barrier_wait(view.taken(), parity ^ 1);
    uint32_t to = peer_address(exchange + at, peer), received = peer_address(view.received(), peer);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const float *from = &sum[(1 - Half) * COUNT + i];
        peer_store(to + i / 4 * pitch, make_float4(from[0], from[1], from[2], from[3]), received);
    }
    barrier_wait(view.received(), parity);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        float4 v = shared_load4(exchange + at + i / 4 * pitch);
        float *mine = &sum[Half * COUNT + i];
        mine[0] += v.x;
        mine[1] += v.y;
        mine[2] += v.z;
        mine[3] += v.w;
    }
    peer_arrive(peer_address(view.taken(), peer));
}

/* A pair (row r, tokens t and t + 1) of every lane becomes (token lane / 4, rows lane % 4 * 2 and + 1). */
__device__ __forceinline__ uint32_t transpose_pairs(uint32_t v)
{
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

/* silu(gate) * up of token i of the pair. */
__device__ __forceinline__ float woven_value(const job_params &p, const float *sum, int i)
{
    float gate = p.up_first ? sum[2 + i] : sum[i], up = p.up_first ? sum[i] : sum[2 + i];
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/* Four 8 x 8 matrices of BF16 pairs; lane l gives where column l % 8 of matrix l / 8 goes. */
__device__ __forceinline__ void store_transposed(uint32_t at, const uint32_t (&v)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

/* Eight rows of y from `first` on, this warp's, for the tokens from `token` on. */
template <cuda_gemm_out Out> struct eight_rows {
    const target &to;
    int first, m, lane;
    float bias;

    __device__ eight_rows(const job_params &p, const target &target, int row)
        : to(target), first(row), m(p.m), lane(threadIdx.x % 32), bias(0.0f)
    {
        if (Out != CUDA_GEMM_SWIGLU && to.bias != NULL && first + lane / 4 < to.n)
            bias = to.bias[first + lane / 4];
    }
    /* This lane's sums: of row lane / 4 and tokens lane % 4 * 2 and + 1 of eight. */
    __device__ __forceinline__ void store(int token, float low, float high) const
    {
        low += bias;
        high += bias;
        if constexpr (Out == CUDA_GEMM_F32) {
            int row = first + lane / 4, t = token + lane % 4 * 2;
            float *y = static_cast<float *>(to.y) + t * to.y_stride + row;
            if (row < to.n && t < m)
                y[0] = low;
            if (row < to.n && t + 1 < m)
                y[to.y_stride] = high;
        } else {
            uint32_t two = transpose_pairs(bf16_pair(low, high));
            int row = first + lane % 4 * 2, t = token + lane / 4;
            if (row < to.n && t < m)
                *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(to.y) + t * to.y_stride + row) = two;
        }
    }
};

struct product_place { /* a product's 64 rows: those of y from `row` on, `rows` of the 64 count */
    int matrix, row, rows, token;
    int half; /* of the tokens, or -1 for all */
};

/* Few tokens: from the registers to y. */
template <int Tokens, cuda_gemm_out Out>
__device__ __forceinline__ void store_direct(const job_params &p, const product_place &at,
                                             const float (&sum)[Tokens / 2])
{
    constexpr int HALF = Tokens >= 16 ? Tokens / 16 : 1; /* in eights */
    const target &to = p.to[at.matrix];
    int in_product = threadIdx.x % 128 / 32 * 16;
    if constexpr (Out == CUDA_GEMM_SWIGLU) {
        eight_rows<Out> rows(p, to, at.row + in_product / 2);
#pragma unroll
        for (int j = 0; j < Tokens / 8; j++)
            if (in_product < at.rows && (at.half < 0 || j / HALF == at.half))
                rows.store(at.token + j * 8, woven_value(p, &sum[j * 4], 0), woven_value(p, &sum[j * 4], 1));
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            eight_rows<Out> rows(p, to, at.row + in_product + h * 8);
#pragma unroll
            for (int j = 0; j < Tokens / 8; j++)
                if (in_product + h * 8 < at.rows && (at.half < 0 || j / HALF == at.half))
                    rows.store(at.token + j * 8, sum[j * 4 + h * 2], sum[j * 4 + h * 2 + 1]);
        }
    }
}

/* 64 tokens of a group's product lie in shared memory as 128 bytes each, in pieces of 8 rows; a piece's place changes
 * with the token, so that a warp's accesses spread over the banks. */
__device__ __forceinline__ uint32_t staged_at(uint32_t stage, int token, int piece)
{
    return stage + token * 128 + ((piece ^ token) % 8) * 16;
}

/* Many tokens, BF16: transposed through shared memory, then whole rows to y. */
template <int Tokens, cuda_gemm_out Out>
__device__ __forceinline__ void store_staged(const job_params &p, const product_place &at, uint32_t stage,
                                             const float (&sum)[Tokens / 2])
{
    constexpr int PIECES = Out == CUDA_GEMM_SWIGLU ? 4 : 8;
    const target &to = p.to[at.matrix];
    int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, group = threadIdx.x / 128;
    float bias[2] = {0.0f, 0.0f};
    for (int h = 0; h < 2 && Out != CUDA_GEMM_SWIGLU && to.bias != NULL; h++)
        if (at.row + warp * 16 + h * 8 + lane / 4 < to.n)
            bias[h] = to.bias[at.row + warp * 16 + h * 8 + lane / 4];
#pragma unroll
    for (int t = 0; t < Tokens; t += 64) {
        if (at.half >= 0 && t / (Tokens / 2) != at.half)
            continue;
        group_sync(group); /* what lay here has been read */
        if constexpr (Out == CUDA_GEMM_SWIGLU) {
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                uint32_t v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *x = &sum[t / 2 + (j + i) * 4];
                    v[i] = bf16_pair(woven_value(p, x, 0), woven_value(p, x, 1));
                }
                store_transposed(staged_at(stage, j * 8 + lane, warp), v);
            }
        } else {
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                const float *x = &sum[t / 2 + j * 4];
                uint32_t v[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = bf16_pair(x[i * 2] + bias[i % 2], x[i * 2 + 1] + bias[i % 2]);
                store_transposed(staged_at(stage, (j + lane / 16) * 8 + lane % 8, warp * 2 + lane / 8 % 2),
                                 v);
            }
        }
        group_sync(group);
#pragma unroll 2
        for (int i = threadIdx.x % 128; i < 64 * PIECES; i += 128) {
            int token = i / PIECES, piece = i % PIECES, row = at.row + piece * 8, m = at.token + t + token;
            if (m < p.m && row < to.n && piece * 8 * (8 / PIECES) < at.rows)
                *reinterpret_cast<float4 *>(static_cast<bf16 *>(to.y) + m * to.y_stride + row) =
                    shared_load4(staged_at(stage, token, piece));
        }
    }
}

template <int Tokens, cuda_gemm_out Out>
__device__ __forceinline__ void compute(const job_params &p, const block_view &view, int group)
{
    const cuda_gemm_plan &plan = p.plan;
    cuda_gemm_split split = plan.cut.split;
    releaser readers(p, view);
    ring r;
    uint32_t parity = 0, exchange = view.data() + plan.stages * plan.depth * plan.atom_bytes;
    uint32_t stage = exchange + plan.exchange_bytes + group * 64 * 128;
    int first = split == CUDA_GEMM_INSIDE ? 0 : group * 64,
        half = split == CUDA_GEMM_CLUSTER ? view.segment : -1;
    for (int tile = first_tile(p); tile < tiles_of(p); tile += tile_step(p), parity ^= 1) {
        float sum[Tokens / 2] = {};
        sum_tile<Tokens>(p, view, readers, group, r, sum);
        if constexpr (Tokens == CUDA_GEMM_TURN_TOKENS) {
            float more[Tokens / 2] = {};
            sum_tile<Tokens>(p, view, readers, group, r, more);
#pragma unroll
            for (int i = 0; i < Tokens / 2; i++)
                sum[i] += more[i];
        } else if constexpr (Tokens >= 16) {
            if (half == 0)
                join_half<Tokens, 0>(p, view, exchange, parity, sum);
            else if (half == 1)
                join_half<Tokens, 1>(p, view, exchange, parity, sum);
        }
        if (split == CUDA_GEMM_INSIDE && !join_inside(exchange, group, sum))
            continue;
        tile_place tile_at = place_of(p, view, tile);
        product_place at = {tile_at.matrix, tile_at.row_tile * plan.y_rows + (plan.woven ? first / 2 : first),
                            plan.cut.rows - first, tile_at.token_tile * Tokens, half};
        if constexpr (Out != CUDA_GEMM_F32 && Tokens >= CUDA_GEMM_STAGED_TOKENS)
            store_staged<Tokens, Out>(p, at, stage, sum);
        else
            store_direct<Tokens, Out>(p, at, sum);
    }
}

template <int Tokens, cuda_gemm_out Out>
__global__ void __launch_bounds__(THREADS_MAX, 1) product_kernel(const __grid_constant__ job_params p)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    constexpr bool LARGE = Tokens > 128;
    const cuda_gemm_cut &cut = p.plan.cut;
    block_view view = view_of(p, shared_address(memory));
    int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < p.plan.stages; stage++) {
            barrier_init(view.full(stage), 2);
            barrier_init(view.empty(stage), cut.groups * 4 * (cut.row_peers + cut.token_peers - 1));
        }
        barrier_init(view.received(), 1);
        barrier_init(view.taken(), cut.groups * 128);
        barrier_init_fence();
    }
    if (p.plan.cluster > 1)
        cluster_sync();
    else
        __syncthreads();
    pdl_release();
    if (group == cut.groups) {
        if constexpr (LARGE)
            registers_lower<40>();
        int warp = __shfl_sync(0xffffffffu, threadIdx.x % 128 / 32, 0);
        if (warp == 0 && elect_one())
            feed_weights(p, view);
        else if (warp == 1 && elect_one())
            feed_tokens(p, view);
    } else {
        if constexpr (LARGE)
            registers_raise<232>();
        pdl_wait();
        compute<Tokens, Out>(p, view, group);
    }
    if (p.plan.cluster > 1) {
        __syncwarp();
        cluster_sync(); /* nobody leaves while others write here */
    }
}

/* ---- Launching ---- */

PFN_cuTensorMapEncodeTiled_v12000 encode_tiled;

bool encode(CUtensorMap *map, int rank, const void *data, const cuuint64_t *dims, const cuuint64_t *strides,
            const cuuint32_t *box)
{
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    return encode_tiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(rank),
                        const_cast<void *>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* A matrix of k BF16 numbers a row as [atom][row][64]; outside it are zeros. */
bool map_rows(CUtensorMap *map, const void *data, int64_t stride, int64_t rows, int k, int box_rows,
              int depth)
{
    const cuuint64_t dims[3] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(k / 64)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride) * 2, 128};
    const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(depth)};
    return encode(map, 3, data, dims, strides, box);
}

int64_t distance_of(const cuda_gemm_job *job)
{
    return static_cast<const char *>(job->matrix[1].weight) -
           static_cast<const char *>(job->matrix[0].weight);
}

/* Gate and up as one matrix [atom][rows / 8][2][8][64]: 8 rows of the one that lies first, 8 of the other. */
bool map_woven(CUtensorMap *map, const cuda_gemm_job *job, int box_rows, int depth)
{
    cuuint64_t row = static_cast<cuuint64_t>(job->k) * 2, n = static_cast<cuuint64_t>(job->matrix[0].n);
    int64_t distance = distance_of(job);
    const cuuint64_t dims[5] = {64, 8, 2, n / 8, static_cast<cuuint64_t>(job->k / 64)};
    const cuuint64_t strides[4] = {row, static_cast<cuuint64_t>(distance < 0 ? -distance : distance), row * 8,
                                   128};
    const cuuint32_t box[5] = {64, 8, 2, static_cast<cuuint32_t>(box_rows / 16),
                               static_cast<cuuint32_t>(depth)};
    return encode(map, 5, job->matrix[distance < 0 ? 1 : 0].weight, dims, strides, box);
}

bool fill_params(job_params *p, const cuda_gemm_job *job, const cuda_gemm_plan *plan)
{
    const cuda_gemm_cut &cut = plan->cut;
    bool by_atoms = plan->depth > 1; /* how blocks of a cluster share the work of fetching */
    int tile = 0, rows = by_atoms ? cut.rows : cut.rows / cut.token_peers;
    int row_depth = by_atoms ? plan->depth / cut.token_peers : 1;
    p->count = plan->woven ? 1 : job->count;
    p->m = job->m;
    p->out = job->out;
    p->plan = *plan;
    p->up_first = plan->woven && distance_of(job) < 0;
    bool ok = map_rows(&p->x, job->x, job->x_stride, job->m, job->k,
                       by_atoms ? cut.tokens : cut.tokens / cut.row_peers,
                       by_atoms ? plan->depth / cut.row_peers : 1);
    for (int i = 0; i < p->count; i++) {
        const cuda_gemm_matrix &from = job->matrix[i];
        ok = ok &&
             (plan->woven ? map_woven(&p->weight[i], job, rows, row_depth)
                          : map_rows(&p->weight[i], from.weight, job->k, from.n, job->k, rows, row_depth));
        p->to[i] = {from.y, from.bias, from.y_stride, from.n, tile};
        tile += (from.n + plan->y_rows - 1) / plan->y_rows;
    }
    return ok;
}

typedef void (*kernel_type)(const job_params);

template <cuda_gemm_out Out> kernel_type kernel_for(int tokens)
{
    switch (tokens) {
    case 8: return product_kernel<8, Out>;
    case 16: return product_kernel<16, Out>;
    case 32: return product_kernel<32, Out>;
    case 64: return product_kernel<64, Out>;
    case 128: return product_kernel<128, Out>;
    case 192: return product_kernel<192, Out>;
    default: return product_kernel<256, Out>;
    }
}

kernel_type kernel_of(int tokens, cuda_gemm_out out)
{
    switch (out) {
    case CUDA_GEMM_BF16: return kernel_for<CUDA_GEMM_BF16>(tokens);
    case CUDA_GEMM_F32: return kernel_for<CUDA_GEMM_F32>(tokens);
    default: return kernel_for<CUDA_GEMM_SWIGLU>(tokens);
    }
}

struct launch { /* a launch's configuration with its attributes */
    cudaLaunchAttribute attributes[3] = {};
    cudaLaunchConfig_t config = {};
    launch(int grid, int cluster, int threads, int shared_bytes, cudaStream_t stream)
    {
        attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[0].val.programmaticStreamSerializationAllowed = 1;
        attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
        attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
        attributes[2].id = cudaLaunchAttributeClusterDimension;
        attributes[2].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
        config.gridDim = dim3(static_cast<unsigned>(grid));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
        config.stream = stream;
        config.attrs = attributes;
        config.numAttrs = cluster > 1 ? 3 : 2;
    }
};

} // namespace

cudaError_t cuda_gemm_wgmma_init(cuda_gemm_chip *chip)
{
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error == cudaSuccess && found != cudaDriverEntryPointSuccess)
        error = cudaErrorNotSupported;
    encode_tiled = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
    for (int out = CUDA_GEMM_BF16; out <= CUDA_GEMM_SWIGLU; out++)
        for (int tokens : {8, 16, 32, 64, 128, 192, 256})
            if (error == cudaSuccess)
                error =
                    cudaFuncSetAttribute(kernel_of(tokens, static_cast<cuda_gemm_out>(out)),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, CUDA_GEMM_SHARED_MAX);
    for (int i = 1; i < 4 && error == cudaSuccess; i++) {
        launch probe(chip->clusters[0] >> i << i, 1 << i, THREADS_MAX, CUDA_GEMM_SHARED_MAX, 0);
        error =
            cudaOccupancyMaxActiveClusters(&chip->clusters[i], kernel_of(256, CUDA_GEMM_BF16), &probe.config);
    }
    return error;
}

/* BF16 goes to memory in whole 16 bytes. */
static bool stores_eights(const cuda_gemm_matrix &to)
{
    return to.n % 8 == 0 && to.y_stride % 8 == 0 && reinterpret_cast<uintptr_t>(to.y) % 16 == 0;
}

bool cuda_gemm_wgmma_fits(const cuda_gemm_job *job)
{
    bool fits = encode_tiled != NULL && job->k % 64 == 0 && job->x_stride % 8 == 0 &&
                reinterpret_cast<uintptr_t>(job->x) % 16 == 0;
    for (int i = 0; i < job->count; i++)
        fits = fits && reinterpret_cast<uintptr_t>(job->matrix[i].weight) % 16 == 0 &&
               (job->out == CUDA_GEMM_F32 || stores_eights(job->matrix[i]));
    if (job->out == CUDA_GEMM_SWIGLU)
        fits = fits && job->matrix[0].n % 8 == 0 && llabs(distance_of(job)) < 1ll << 40;
    return fits;
}

cudaError_t cuda_gemm_wgmma(cudaStream_t stream, const cuda_gemm_job *job, const cuda_gemm_plan *plan)
{
    job_params p;
    if (!fill_params(&p, job, plan))
        return cudaErrorInvalidValue;
    launch l(plan->grid, plan->cluster, (plan->cut.groups + 1) * 128, plan->shared_bytes, stream);
    return cudaLaunchKernelEx(&l.config, kernel_of(plan->cut.tokens, job->out), p);
}
