/* Collectives over peer memory. Every rank launches the same kernels in the same order; block b of one rank talks to
 * block b of the others alone, by packets into mailboxes that lie in the receiver's memory. A packet carries the number
 * of the call beside its numbers, in the same store, so there is nothing to fence and nothing to clear: two sets of boxes
 * in turn are enough, since a rank begins call n only when it has everybody's packets of call n - 1, and they sent those
 * when call n - 2 was over for them. The count of calls lies in device memory: a recorded step is replayed as it is.
 *
 * Sums are taken in the order of ranks in F32 and rounded once: bits do not depend on a message's size or place. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/kernels.h"

namespace {

constexpr int THREADS = CUDA_GROUP_THREADS, BLOCKS = CUDA_GROUP_BLOCKS, PASSES = CUDA_GROUP_PASSES;
constexpr unsigned long long PATIENCE_NS = 10000000000ull; /* of a rank for the others */

/* ---- Packets ---- */

__device__ __forceinline__ uint4 *packet_at(const cuda_group &g, int to, int from, uint32_t call, int pass, int thread)
{
    int set = static_cast<int>(call & 1) * g.ranks + from;
    return static_cast<uint4 *>(g.mail[to]) + ((set * PASSES + pass) * BLOCKS + blockIdx.x) * THREADS + thread;
}

/* Halves of 8 bytes are written whole: each carries the call. Never 0, which the boxes begin with. */
__device__ __forceinline__ uint32_t stamp_of(uint32_t call) { return 2 * call + 1; }

__device__ __forceinline__ void send(uint4 *to, uint2 value, uint32_t call)
{
    uint32_t stamp = stamp_of(call);
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(stamp), "r"(value.y),
                 "r"(stamp)
                 : "memory");
}

/* The word that a failure sets, in host memory: looked at rarely. */
__device__ __noinline__ bool gave_up(uint32_t *failed, unsigned long long *since)
{
    uint32_t word;
    asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(word) : "l"(failed) : "memory");
    if (word != CUDA_GROUP_FINE)
        return true;
    unsigned long long now = global_ns();
    if (*since == 0)
        *since = now;
    if (now - *since < PATIENCE_NS)
        return false;
    asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(failed), "r"(static_cast<uint32_t>(CUDA_GROUP_WAITED))
                 : "memory");
    return true;
}

__device__ __forceinline__ uint2 receive(uint32_t *failed, const uint4 *from, uint32_t call)
{
    uint32_t stamp = stamp_of(call);
    unsigned long long since = 0;
    for (uint32_t turn = 1;; turn++) {
        uint4 v;
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(from)
                     : "memory");
        if (v.y == stamp && v.w == stamp)
            return make_uint2(v.x, v.z);
        if (turn % 4096 == 0 && gave_up(failed, &since))
            return make_uint2(0, 0);
    }
}

/* ---- Numbers ---- */

/* Sums of what 8 bytes hold. */
template <typename T> struct sum_of;
template <> struct sum_of<bf16> {
    float v[4];
    __device__ __forceinline__ void set(uint2 x)
    {
        v[0] = bf16_low(x.x), v[1] = bf16_high(x.x), v[2] = bf16_low(x.y), v[3] = bf16_high(x.y);
    }
    __device__ __forceinline__ void add(uint2 x)
    {
        v[0] += bf16_low(x.x), v[1] += bf16_high(x.x), v[2] += bf16_low(x.y), v[3] += bf16_high(x.y);
    }
    __device__ __forceinline__ uint2 get() const { return make_uint2(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])); }
};
template <> struct sum_of<float> {
    float v[2];
    __device__ __forceinline__ void set(uint2 x) { v[0] = __uint_as_float(x.x), v[1] = __uint_as_float(x.y); }
    __device__ __forceinline__ void add(uint2 x) { v[0] += __uint_as_float(x.x), v[1] += __uint_as_float(x.y); }
    __device__ __forceinline__ uint2 get() const { return make_uint2(__float_as_uint(v[0]), __float_as_uint(v[1])); }
};

/* ---- A small sum: everybody sends all of it to everybody. 8 bytes a packet; a rank receives (ranks - 1) times twice
 * the message, one way across the links after the kernel has begun. ---- */

template <typename T>
__global__ void __launch_bounds__(THREADS) reduce_small_kernel(const __grid_constant__ cuda_group g, uint2 *x, int units)
{
    pdl_wait();
    pdl_release();
    uint32_t call = g.calls[blockIdx.x];
    int stride = static_cast<int>(gridDim.x) * THREADS, first = static_cast<int>(blockIdx.x) * THREADS + threadIdx.x;
    for (int u = first, pass = 0; u < units; u += stride, pass++) {
        uint2 own = x[u];
        for (int i = 1; i < g.ranks; i++) { /* each begins with its neighbour */
            int to = g.rank + i < g.ranks ? g.rank + i : g.rank + i - g.ranks;
            send(packet_at(g, to, g.rank, call, pass, threadIdx.x), own, call);
        }
    }
    for (int u = first, pass = 0; u < units; u += stride, pass++) {
        sum_of<T> sum;
        uint2 own = x[u];
        for (int from = 0; from < g.ranks; from++) {
            uint2 part =
                from == g.rank ? own : receive(g.failed, packet_at(g, g.rank, from, call, pass, threadIdx.x), call);
            if (from == 0)
                sum.set(part);
            else
                sum.add(part);
        }
        x[u] = sum.get();
    }
    __syncthreads();
    if (threadIdx.x == 0)
        g.calls[blockIdx.x] = call + 1;
}

/* ---- Large messages: meet, work on everybody's memory, meet again ---- */

/* Everybody tells where its memory is; what was done to it before the kernel is done. */
__device__ void meet_with(const cuda_group &g, uint32_t call, void *own, char **at)
{
    int rank = static_cast<int>(threadIdx.x);
    if (rank < g.ranks && rank != g.rank) {
        unsigned long long address = reinterpret_cast<unsigned long long>(own);
        __threadfence_system(); /* what earlier kernels wrote there is out before the address is */
        send(packet_at(g, rank, g.rank, call, 0, 0),
             make_uint2(static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)), call);
        uint2 v = receive(g.failed, packet_at(g, g.rank, rank, call, 0, 0), call);
        __threadfence_system();
        address = static_cast<unsigned long long>(v.y) << 32 | v.x;
        at[rank] = reinterpret_cast<char *>(address); /* NULL: gave up */
    } else if (rank == g.rank) {
        at[rank] = static_cast<char *>(own);
    }
    __syncthreads();
}

/* Everybody's block b is through: what it wrote here is here. */
__device__ void meet_after(const cuda_group &g, uint32_t call)
{
    __threadfence_system();
    __syncthreads();
    int rank = static_cast<int>(threadIdx.x);
    if (rank < g.ranks && rank != g.rank) {
        send(packet_at(g, rank, g.rank, call, 0, 1), make_uint2(0, 0), call);
        receive(g.failed, packet_at(g, g.rank, rank, call, 0, 1), call);
        __threadfence_system();
    }
    __syncthreads();
    if (threadIdx.x == 0)
        g.calls[blockIdx.x] = call + 1;
}

__device__ __forceinline__ bool all_there(const cuda_group &g, char *const *at)
{
    for (int rank = 0; rank < g.ranks; rank++)
        if (at[rank] == nullptr)
            return false;
    return true;
}

__device__ __forceinline__ uint4 load_peer(const void *at)
{
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

/* Each rank sums a part of the message from everybody's memory into everybody's: units of 16 bytes, four a thread in
 * flight. Each way across a link: the message once (for two ranks). */
template <typename T>
__global__ void __launch_bounds__(THREADS) reduce_large_kernel(const __grid_constant__ cuda_group g, void *x, int64_t units)
{
    constexpr int FLIGHT = 4;
    __shared__ char *at[CUDA_GROUP_RANKS];
    pdl_wait();
    pdl_release();
    uint32_t call = g.calls[blockIdx.x];
    meet_with(g, call, x, at);
    int64_t end = units * (g.rank + 1) / g.ranks;
    int64_t first = units * g.rank / g.ranks + static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
    if (!all_there(g, at))
        end = 0;
    for (int64_t u = first; u < end; u += FLIGHT * stride) {
        sum_of<T> low[FLIGHT], high[FLIGHT];
        for (int rank = 0; rank < g.ranks; rank++) {
            uint4 part[FLIGHT];
#pragma unroll
            for (int i = 0; i < FLIGHT; i++)
                part[i] = u + i * stride < end ? load_peer(at[rank] + (u + i * stride) * 16) : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                uint2 a = make_uint2(part[i].x, part[i].y), b = make_uint2(part[i].z, part[i].w);
                if (rank == 0)
                    low[i].set(a), high[i].set(b);
                else
                    low[i].add(a), high[i].add(b);
            }
        }
        for (int rank = 0; rank < g.ranks; rank++)
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                uint2 a = low[i].get(), b = high[i].get();
                if (u + i * stride < end)
                    *reinterpret_cast<uint4 *>(at[rank] + (u + i * stride) * 16) = make_uint4(a.x, a.y, b.x, b.y);
            }
    }
    meet_after(g, call);
}

/* Each rank writes its columns into everybody's rows. Run: numbers at a time. */
template <int Run> struct run_of;
template <> struct run_of<4> {
    typedef float4 type;
};
template <> struct run_of<1> {
    typedef float type;
};

template <int Run>
__global__ void __launch_bounds__(THREADS) gather_ranks_kernel(const __grid_constant__ cuda_group g, cuda_rows x,
                                                              int64_t first, cuda_rows y)
{
    typedef typename run_of<Run>::type run;
    __shared__ char *at[CUDA_GROUP_RANKS];
    pdl_wait();
    pdl_release();
    uint32_t call = g.calls[blockIdx.x];
    meet_with(g, call, y.data, at);
    int runs = x.cols / Run;
    int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS, count = static_cast<int64_t>(x.rows) * runs;
    if (!all_there(g, at))
        count = 0;
    for (int64_t u = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; u < count; u += stride) {
        int64_t row = u / runs, col = u % runs * Run;
        run v = *reinterpret_cast<const run *>(static_cast<const float *>(x.data) + row * x.stride + col);
        for (int rank = 0; rank < g.ranks; rank++)
            *reinterpret_cast<run *>(reinterpret_cast<float *>(at[rank]) + row * y.stride + first + col) = v;
    }
    meet_after(g, call);
}

unsigned blocks_for(int64_t work) /* by units that a thread takes one of */
{
    int64_t blocks = (work + THREADS - 1) / THREADS;
    return static_cast<unsigned>(blocks < 1 ? 1 : blocks < BLOCKS ? blocks : BLOCKS);
}

} // namespace

size_t cuda_group_mail_bytes(int ranks)
{
    return static_cast<size_t>(2 * ranks) * PASSES * BLOCKS * THREADS * sizeof(uint4);
}

cudaError_t cuda_launch_all_reduce(cudaStream_t s, const cuda_group *group, void *x, int64_t bytes, bool bf16_numbers)
{
    if (bytes <= CUDA_GROUP_SMALL) {
        int units = static_cast<int>((bytes + 7) / 8);
        return cuda_launch(bf16_numbers ? reduce_small_kernel<bf16> : reduce_small_kernel<float>,
                           dim3(blocks_for(units)), dim3(THREADS), 0, s, *group, static_cast<uint2 *>(x), units);
    }
    return cuda_launch(bf16_numbers ? reduce_large_kernel<bf16> : reduce_large_kernel<float>, dim3(BLOCKS),
                       dim3(THREADS), 0, s, *group, x, (bytes + 15) / 16);
}

cudaError_t cuda_launch_all_gather(cudaStream_t s, const cuda_group *group, cuda_rows x, int64_t first, cuda_rows y)
{
    bool fours = x.cols % 4 == 0 && x.stride % 4 == 0 && y.stride % 4 == 0 && first % 4 == 0;
    /* All ranks take as many blocks: by y, whose shape they share, not by their own columns. */
    dim3 grid(blocks_for(static_cast<int64_t>(y.rows) * y.cols / 4 / group->ranks));
    return cuda_launch(fours ? gather_ranks_kernel<4> : gather_ranks_kernel<1>, grid, dim3(THREADS), 0, s, *group, x,
                       first, y);
}
