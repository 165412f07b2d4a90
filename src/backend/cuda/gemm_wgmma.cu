/* The product on Hopper: weights are the 64-row operand and tokens the other, so that one instruction in one order
 * along K serves every M. A warp feeds a ring of stages by the copy engine, two groups of four warps compute.
 * Weights do not depend on the kernel before: the first stages of them are fetched while it still runs. */
#include <cudaTypedefs.h>

#include "backend/cuda/cuda.cuh"
#include "backend/cuda/gemm_wgmma.cuh"
#include "backend/cuda/hopper.cuh"

namespace
{

constexpr int COMPUTE = 256, THREADS = COMPUTE + 128;
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
    bool pairs; /* two rows of y may be stored at once */
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

struct block_view { /* shared memory, by address */
    uint32_t base;
    __device__ uint32_t full(int stage) const { return base + stage * 16; }
    __device__ uint32_t empty(int stage) const { return base + stage * 16 + 8; }
    __device__ uint32_t received() const { return base + CUDA_GEMM_STAGES_MAX * 16; }
    __device__ uint32_t taken() const { return received() + 8; }
    __device__ uint32_t data() const { return base + CUDA_GEMM_HEAD_BYTES; }
};

struct tile_place {
    int matrix, row_tile, token_tile; /* row_tile: of the matrix */
};

__device__ tile_place place_of(const job_params &p, int tile)
{
    int per_step = ROW_TILES_IN_STEP * p.plan.token_tiles, step = tile / per_step, at = tile % per_step;
    int width = min(ROW_TILES_IN_STEP, p.plan.row_tiles - step * ROW_TILES_IN_STEP);
    int row_tile = step * ROW_TILES_IN_STEP + at % width, matrix = 0;
    while (matrix + 1 < p.count && row_tile >= p.to[matrix + 1].first_tile)
        matrix++;
    return {matrix, row_tile - p.to[matrix].first_tile, at / width};
}

__device__ __forceinline__ int first_unit(const job_params &p)
{
    return p.plan.split == CUDA_SPLIT_CLUSTER ? blockIdx.x / 2 : blockIdx.x;
}
__device__ __forceinline__ int units(const job_params &p)
{
    return p.plan.split == CUDA_SPLIT_CLUSTER ? gridDim.x / 2 : gridDim.x;
}

/* ---- The feeding warp: one thread ---- */

struct feeder {
    const job_params &p;
    block_view shared;
    int rank;
    uint32_t part_bytes, stage_bytes, x_bytes;
    uint64_t weight_policy, x_policy;

    __device__ feeder(const job_params &params, block_view view, int cluster_rank)
        : p(params), shared(view), rank(cluster_rank)
    {
        part_bytes = 128u * p.plan.part_rows * p.plan.depth;
        x_bytes = 128u * p.plan.tokens * p.plan.depth;
        stage_bytes = p.plan.depth * p.plan.atom_bytes;
        x_policy = policy_evict_normal();
        weight_policy = p.plan.token_tiles > 1 ? x_policy : policy_evict_first();
    }
    /* The atom of K that a piece of a stage begins with. */
    __device__ int atom_of(int turn, int part) const
    {
        int segment = p.plan.split == CUDA_SPLIT_INSIDE ? part : rank;
        return turn * p.plan.depth + segment * p.plan.atoms;
    }
    __device__ void weights(const tile_place &at, int turn, int stage) const
    {
        barrier_expect(shared.full(stage), stage_bytes);
        uint32_t to = shared.data() + stage * stage_bytes;
        for (int part = 0; part < p.plan.parts; part++) {
            const CUtensorMap *map = &p.weight[p.out == CUDA_GEMM_SWIGLU ? part : at.matrix];
            tile_load(to + part * part_bytes, map, 0, at.row_tile * p.plan.part_rows, atom_of(turn, part),
                      shared.full(stage), weight_policy);
        }
    }
    __device__ void tokens(const tile_place &at, int turn, int stage) const
    {
        uint32_t to = shared.data() + stage * stage_bytes + p.plan.parts * part_bytes;
        int parts = p.plan.split == CUDA_SPLIT_INSIDE ? 2 : 1;
        for (int part = 0; part < parts; part++)
            tile_load(to + part * x_bytes, &p.x, 0, at.token_tile * p.plan.tokens, atom_of(turn, part),
                      shared.full(stage), x_policy);
    }
};

__device__ void feed(const job_params &p, block_view shared, int rank)
{
    feeder f(p, shared, rank);
    int turns = (p.plan.atoms + p.plan.depth - 1) / p.plan.depth, early = min(turns, p.plan.stages);
    int tile = first_unit(p), tiles = p.plan.row_tiles * p.plan.token_tiles;
    tile_place at = place_of(p, tile);
    for (int turn = 0; turn < early; turn++)
        f.weights(at, turn, turn);
    pdl_wait();
    for (int turn = 0; turn < early; turn++)
        f.tokens(at, turn, turn);
    ring r;
    for (int i = 0; i < early; i++)
        r.next(p.plan.stages);
    for (int turn = early; tile < tiles; turn = 0) {
        for (; turn < turns; turn++, r.next(p.plan.stages)) {
            barrier_wait(shared.empty(r.stage), r.parity ^ 1);
            f.weights(at, turn, r.stage);
            f.tokens(at, turn, r.stage);
        }
        tile += units(p);
        if (tile < tiles)
            at = place_of(p, tile);
    }
}

/* ---- The computing groups ---- */

/* A tile's sums over this group's part of K. */
template <int Blocks, int Tokens>
__device__ __forceinline__ void sum_tile(const job_params &p, block_view shared, int group, ring &r,
                                         float (&sum)[Blocks][Tokens / 2])
{
    const cuda_gemm_plan &plan = p.plan;
    uint32_t part_bytes = 128u * plan.part_rows * plan.depth, stage_bytes = plan.depth * plan.atom_bytes;
    bool inside = plan.split == CUDA_SPLIT_INSIDE, swiglu = p.out == CUDA_GEMM_SWIGLU;
    uint32_t row0 = inside ? 0 : swiglu ? group * plan.rows : group * Blocks * plan.rows;
    uint32_t a_at = shared.data() + row0 * 128 + (inside ? group * part_bytes : 0);
    uint32_t block_step = swiglu ? part_bytes : plan.rows * 128;
    uint32_t b_at =
        shared.data() + plan.parts * part_bytes + (inside ? group * plan.depth * Tokens * 128 : 0);
    int last = -1;
    for (int atom = 0; atom < plan.atoms; atom += plan.depth, r.next(plan.stages)) {
        barrier_wait(shared.full(r.stage), r.parity);
        uint32_t at = r.stage * stage_bytes;
        uint64_t a = operand_at(a_at + at), b = operand_at(b_at + at);
        int end = min(plan.depth, plan.atoms - atom);
        for (int i = 0; i < end; i++, a += plan.part_rows * 8, b += Tokens * 8) {
            product_begin();
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int block = 0; block < Blocks; block++)
                    product_step<Tokens>(sum[block], a + block * (block_step / 16) + 2 * k, b + 2 * k);
            product_commit();
            product_wait<1>();
            if (last >= 0 && i == 0 && threadIdx.x % 32 == 0)
                barrier_arrive(shared.empty(last));
        }
        last = r.stage;
    }
    product_wait<0>();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(shared.empty(last));
}

__device__ __forceinline__ void groups_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

/* Adds the other segment's sums; true for the group that then stores. */
template <int Count> __device__ __forceinline__ bool join_inside(float *exchange, int group, float *sum)
{
    int lane = threadIdx.x % 128;
    groups_sync(); /* the last tile's have been read */
    if (group == 1) {
#pragma unroll
        for (int i = 0; i < Count; i++)
            exchange[i * 128 + lane] = sum[i];
    }
    groups_sync();
    if (group == 1)
        return false;
#pragma unroll
    for (int i = 0; i < Count; i++)
        sum[i] += exchange[i * 128 + lane];
    return true;
}

/* Group g of both blocks has the same rows: block g takes them. */
template <int Count>
__device__ __forceinline__ bool join_cluster(block_view shared, uint32_t exchange, int group, int rank,
                                             uint32_t parity, float *sum)
{
    int lane = threadIdx.x % 128, peer = rank ^ 1;
    if (group != rank) {
        barrier_wait_cluster(shared.taken(), parity ^ 1);
        uint32_t to = peer_address(exchange + lane * 16, peer);
#pragma unroll
        for (int i = 0; i < Count; i += 4)
            peer_store(to + i * 512, make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]));
        peer_arrive(peer_address(shared.received(), peer));
        return false;
    }
    barrier_wait_cluster(shared.received(), parity);
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
        float4 v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                     : "r"(exchange + lane * 16 + i * 512)
                     : "memory");
        sum[i] += v.x;
        sum[i + 1] += v.y;
        sum[i + 2] += v.z;
        sum[i + 3] += v.w;
    }
    peer_arrive(peer_address(shared.taken(), peer));
    return true;
}

/* A pair (row r, tokens t and t + 1) of every lane becomes (token lane / 4, rows lane % 4 * 2 and + 1). */
__device__ __forceinline__ uint32_t transpose_pairs(uint32_t v)
{
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

/* 64 rows from `row` on (`rows` of them count) of the tokens from `token` on. */
template <int Tokens>
__device__ __forceinline__ void store_block(const job_params &p, const target &to, int row, int rows,
                                            int token, const float (&sum)[Tokens / 2])
{
    int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int in_block = warp * 16 + h * 8, mine = row + in_block + lane / 4,
            pair = row + in_block + lane % 4 * 2;
        if (in_block >= rows)
            continue;
        bool valid = mine < to.n;
        float bias = to.bias != NULL && valid ? to.bias[mine] : 0.0f;
#pragma unroll
        for (int j = 0; j < Tokens / 8; j++) {
            float low = sum[j * 4 + h * 2] + bias, high = sum[j * 4 + h * 2 + 1] + bias;
            int t = token + j * 8 + lane % 4 * 2;
            if (p.out == CUDA_GEMM_F32) {
                float *y = static_cast<float *>(to.y) + t * to.y_stride + mine;
                if (valid && t < p.m)
                    y[0] = low;
                if (valid && t + 1 < p.m)
                    y[to.y_stride] = high;
                continue;
            }
            if (p.pairs) {
                uint32_t two = transpose_pairs(bf16_pair(low, high));
                int there = token + j * 8 + lane / 4;
                if (there < p.m && pair < to.n)
                    *reinterpret_cast<uint32_t *>(static_cast<bf16 *>(to.y) + there * to.y_stride + pair) =
                        two;
                continue;
            }
            bf16 *y = static_cast<bf16 *>(to.y) + t * to.y_stride + mine;
            if (valid && t < p.m)
                y[0] = __float2bfloat16(low);
            if (valid && t + 1 < p.m)
                y[to.y_stride] = __float2bfloat16(high);
        }
    }
}

template <int Blocks, int Tokens>
__device__ __forceinline__ void store_tile(const job_params &p, const tile_place &at, int group,
                                           float (&sum)[Blocks][Tokens / 2])
{
    const target &to = p.to[at.matrix];
    int rows = p.plan.rows, token = at.token_tile * Tokens, row = at.row_tile * p.plan.tile_rows;
    if (p.out == CUDA_GEMM_SWIGLU) {
        if constexpr (Blocks == 2) {
#pragma unroll
            for (int i = 0; i < Tokens / 2; i++)
                sum[0][i] = sum[0][i] / (1.0f + __expf(-sum[0][i])) * sum[1][i];
            store_block<Tokens>(p, to, row + group * rows, rows, token, sum[0]);
        }
        return;
    }
    if (p.plan.split != CUDA_SPLIT_INSIDE)
        row += group * Blocks * rows;
#pragma unroll
    for (int block = 0; block < Blocks; block++)
        store_block<Tokens>(p, to, row + block * rows, rows, token, sum[block]);
}

template <int Blocks, int Tokens>
__device__ __forceinline__ void compute(const job_params &p, block_view shared, int group, int rank)
{
    const cuda_gemm_plan &plan = p.plan;
    ring r;
    uint32_t parity = 0;
    uint32_t exchange = shared.data() + plan.stages * plan.depth * plan.atom_bytes;
    for (int tile = first_unit(p); tile < plan.row_tiles * plan.token_tiles; tile += units(p), parity ^= 1) {
        float sum[Blocks][Tokens / 2] = {};
        sum_tile<Blocks, Tokens>(p, shared, group, r, sum);
        bool mine = true;
        if (plan.split == CUDA_SPLIT_INSIDE)
            mine = join_inside<Blocks * Tokens / 2>(static_cast<float *>(__cvta_shared_to_generic(exchange)),
                                                    group, &sum[0][0]);
        else if (plan.split == CUDA_SPLIT_CLUSTER)
            mine = join_cluster<Blocks * Tokens / 2>(shared, exchange, group, rank, parity, &sum[0][0]);
        if (mine)
            store_tile<Blocks, Tokens>(p, place_of(p, tile), group, sum);
    }
}

template <int Blocks, int Tokens>
__global__ void __launch_bounds__(THREADS, 1) product_kernel(const __grid_constant__ job_params p)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    constexpr bool LARGE = Blocks * Tokens > 128;
    block_view shared = {shared_address(memory)};
    bool cluster = p.plan.split == CUDA_SPLIT_CLUSTER;
    int rank = cluster ? static_cast<int>(cluster_rank()) : 0,
        group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < p.plan.stages; stage++) {
            barrier_init(shared.full(stage), 1);
            barrier_init(shared.empty(stage), COMPUTE / 32);
        }
        barrier_init(shared.received(), 128);
        barrier_init(shared.taken(), 128);
        barrier_init_fence();
    }
    if (cluster)
        cluster_sync();
    else
        __syncthreads();
    pdl_release();
    if (group == COMPUTE / 128) {
        if constexpr (LARGE)
            registers_lower<24>();
        if (threadIdx.x == COMPUTE)
            feed(p, shared, rank);
    } else {
        if constexpr (LARGE)
            registers_raise<240>();
        pdl_wait();
        compute<Blocks, Tokens>(p, shared, group, rank);
    }
    if (cluster) {
        __syncwarp();
        cluster_sync(); /* nobody leaves while the other writes here */
    }
}

/* ---- Launching ---- */

PFN_cuTensorMapEncodeTiled_v12000 encode_tiled;

/* A matrix of k BF16 numbers a row as [atom][row][64]; outside it are zeros. */
bool map_rows(CUtensorMap *map, const void *data, int64_t stride, int64_t rows, int k, int box_rows,
              int depth, CUtensorMapL2promotion promotion)
{
    cuuint64_t dims[3] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(k / 64)};
    cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride) * 2, 128};
    cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(depth)};
    cuuint32_t steps[3] = {1, 1, 1};
    return encode_tiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void *>(data), dims, strides,
                        box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool fill_params(job_params *p, const cuda_gemm_job *job, const cuda_gemm_plan *plan)
{
    p->count = job->out == CUDA_GEMM_SWIGLU ? 1 : job->count;
    p->m = job->m;
    p->out = job->out;
    p->plan = *plan;
    p->pairs = true;
    bool ok = map_rows(&p->x, job->x, job->x_stride, job->m, job->k, plan->tokens, plan->depth,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
    int tile = 0;
    for (int i = 0; i < job->count; i++) {
        const cuda_gemm_matrix &from = job->matrix[i];
        ok = ok && map_rows(&p->weight[i], from.weight, job->k, from.n, job->k, plan->part_rows, plan->depth,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
        p->to[i] = {from.y, from.bias, from.y_stride, from.n, tile};
        tile += (from.n + plan->tile_rows - 1) / plan->tile_rows;
        p->pairs = p->pairs && from.n % 2 == 0 && from.y_stride % 2 == 0 &&
                   reinterpret_cast<uintptr_t>(from.y) % 4 == 0;
    }
    return ok;
}

typedef void (*kernel_type)(const job_params);

kernel_type kernel_of(int blocks, int tokens)
{
    switch (blocks * 1000 + tokens) {
    case 1008: return product_kernel<1, 8>;
    case 1016: return product_kernel<1, 16>;
    case 1032: return product_kernel<1, 32>;
    case 1064: return product_kernel<1, 64>;
    case 1128: return product_kernel<1, 128>;
    case 2008: return product_kernel<2, 8>;
    case 2016: return product_kernel<2, 16>;
    case 2032: return product_kernel<2, 32>;
    case 2064: return product_kernel<2, 64>;
    default: return product_kernel<2, 128>;
    }
}

} // namespace

cudaError_t cuda_gemm_wgmma_init(void)
{
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error == cudaSuccess && found != cudaDriverEntryPointSuccess)
        error = cudaErrorNotSupported;
    encode_tiled = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
    for (int blocks = 1; blocks <= 2; blocks++)
        for (int tokens = 8; tokens <= 128 && error == cudaSuccess; tokens *= 2)
            error = cudaFuncSetAttribute(kernel_of(blocks, tokens),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, CUDA_GEMM_SHARED_MAX);
    return error;
}

bool cuda_gemm_wgmma_fits(const cuda_gemm_job *job)
{
    bool fits = encode_tiled != NULL && job->k % 64 == 0 && job->x_stride % 8 == 0 &&
                reinterpret_cast<uintptr_t>(job->x) % 16 == 0;
    for (int i = 0; i < job->count; i++)
        fits = fits && reinterpret_cast<uintptr_t>(job->matrix[i].weight) % 16 == 0;
    return fits;
}

cudaError_t cuda_gemm_wgmma(cudaStream_t stream, const cuda_gemm_job *job, const cuda_gemm_plan *plan)
{
    job_params p;
    if (!fill_params(&p, job, plan))
        return cudaErrorInvalidValue;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(plan->grid));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = static_cast<size_t>(plan->shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = plan->split == CUDA_SPLIT_CLUSTER ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel_of(plan->blocks, plan->tokens), p);
}
