/* Drawing tokens, a block per row of logits, by the rules of sample/sampler.h: greedy takes the lowest id of the maxima;
 * else weights exp((x - max) / temperature), min-p, top-k (ties stay), top-p, and one draw by the row's uniform number:
 * in the order of ids when nothing was cut, in the order of weights otherwise. Cuts and draws walk histograms of the
 * weights' bits with counts and masses as whole numbers, so that the order of additions does not matter; nothing is
 * sorted. Bound by reading the row from L2: twice for a plain draw, a dozen times with top-k and top-p. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/kernels.h"

namespace {

constexpr int THREADS = 1024, WARPS = THREADS / 32, BINS = 1024, SUM_BLOCK = 512, SUM_BLOCKS_MAX = 1024;
constexpr float MASS_UNIT = 0x1p40f; /* a weight of one, in whole numbers */

struct draw_shared {
    union {
        struct {
            unsigned count[BINS];
            unsigned long long mass[BINS];
        } bins;
        struct {
            double sums[SUM_BLOCKS_MAX];
            float block[SUM_BLOCK];
        };
    };
    double left;
    float values[WARPS];
    int ids[WARPS];
    unsigned long long totals[WARPS];
    unsigned bits, position;
    unsigned long long above;
    int id;
};

struct draw_row {
    const float *logits;
    int vocab;
    float maximum, scale, min_p;

    __device__ __forceinline__ float weight(int i) const
    {
        float w = __expf((logits[i] - maximum) * scale); /* NaN: 0, by the comparison */
        return w >= min_p && w > 0 ? fminf(w, 1.0f) : 0.0f;
    }
};

__device__ __forceinline__ unsigned long long mass_of(float weight)
{
    return static_cast<unsigned long long>(weight * MASS_UNIT);
}

/* The lowest id of the largest value, -1 when nothing is above -inf. */
__device__ int find_maximum(const float *x, int n, draw_shared &shared, float *maximum)
{
    float best = -INFINITY;
    int id = -1;
    for (int i = threadIdx.x; i < n; i += THREADS)
        if (x[i] > best) {
            best = x[i];
            id = i;
        }
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, step);
        int other_id = __shfl_xor_sync(0xffffffffu, id, step);
        if (other > best || (other == best && static_cast<unsigned>(other_id) < static_cast<unsigned>(id))) {
            best = other;
            id = other_id;
        }
    }
    if (threadIdx.x % 32 == 0) {
        shared.values[threadIdx.x / 32] = best;
        shared.ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        if (shared.values[w] > best ||
            (shared.values[w] == best && static_cast<unsigned>(shared.ids[w]) < static_cast<unsigned>(id))) {
            best = shared.values[w];
            id = shared.ids[w];
        }
    __syncthreads();
    *maximum = best;
    return id;
}

/* A warp finds where the sum of the block's values passes shared.left; past the end by rounding: its last weight. */
__device__ void draw_within(int base, draw_shared &shared)
{
    constexpr int EACH = SUM_BLOCK / 32;
    const int lane = threadIdx.x, begin = lane * EACH;
    double sum = 0;
    int last = -1;
    for (int i = begin; i < begin + EACH; i++) {
        sum += static_cast<double>(shared.block[i]);
        last = shared.block[i] > 0 ? i : last;
    }
    double after = sum;
    for (int step = 1; step < 32; step *= 2) {
        double other = __shfl_up_sync(0xffffffffu, after, step);
        after += lane >= step ? other : 0;
    }
    unsigned passed = __ballot_sync(0xffffffffu, last >= 0 && after > shared.left);
    unsigned filled = __ballot_sync(0xffffffffu, last >= 0);
    int chosen = passed != 0 ? __ffs(static_cast<int>(passed)) - 1 : 31 - __clz(static_cast<int>(filled));
    if (lane != chosen)
        return;
    double before = after - sum;
    int id = last;
    for (int i = begin; i < begin + EACH; i++) {
        before += static_cast<double>(shared.block[i]);
        if (shared.block[i] > 0 && before > shared.left) {
            id = i;
            break;
        }
    }
    shared.id = base + id;
}

/* In the order of ids: whole blocks by their sums, then one value after the other. */
__device__ int draw_plain(const draw_row &row, double uniform, draw_shared &shared)
{
    const int lane = threadIdx.x % 32, blocks = (row.vocab + SUM_BLOCK - 1) / SUM_BLOCK;
    for (int b = threadIdx.x / 32; b < blocks; b += WARPS) {
        float sum = 0;
        for (int i = b * SUM_BLOCK + lane; i < min((b + 1) * SUM_BLOCK, row.vocab); i += 32)
            sum += row.weight(i);
        for (int step = 16; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane == 0)
            shared.sums[b] = static_cast<double>(sum);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0, before = 0;
        for (int b = 0; b < blocks; b++)
            total += shared.sums[b];
        double target = uniform * total;
        int last = 0, b = 0;
        for (; b < blocks; before += shared.sums[b++]) {
            if (shared.sums[b] > 0)
                last = b;
            if (shared.sums[b] > 0 && before + shared.sums[b] > target)
                break;
        }
        if (b == blocks) /* rounding: the last block with weight */
            before -= shared.sums[b = last];
        shared.position = static_cast<unsigned>(b);
        shared.left = target - before;
        shared.id = -1;
    }
    __syncthreads();
    const int block = static_cast<int>(shared.position) * SUM_BLOCK;
    if (threadIdx.x < SUM_BLOCK)
        shared.block[threadIdx.x] = block + threadIdx.x < row.vocab ? row.weight(block + threadIdx.x) : 0.0f;
    __syncthreads();
    if (threadIdx.x < 32)
        draw_within(block, shared);
    __syncthreads();
    return shared.id;
}

/* The weight, as bits, at which the values from the largest down reach `wanted` (a count, or a mass), among weights of
 * at least `least`; above: count or mass of those beyond it. */
template <bool Mass>
__device__ unsigned descend(const draw_row &row, unsigned least, unsigned long long wanted, draw_shared &shared,
                            unsigned long long *above)
{
    unsigned prefix = 0;
    unsigned long long before = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        for (int i = threadIdx.x; i < BINS; i += THREADS) {
            shared.bins.count[i] = 0;
            shared.bins.mass[i] = 0;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
            float w = row.weight(i);
            unsigned bits = __float_as_uint(w);
            if (bits == 0 || bits < least || (shift < 20 && bits >> (shift + 10) != prefix))
                continue;
            unsigned bin = bits >> shift & (BINS - 1);
            if (Mass)
                atomicAdd(&shared.bins.mass[bin], mass_of(w));
            else
                atomicAdd(&shared.bins.count[bin], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = BINS - 1, last = -1;
            unsigned long long sum = before;
            for (; bin >= 0; bin--) {
                unsigned long long here = Mass ? shared.bins.mass[bin] : shared.bins.count[bin];
                if (here > 0)
                    last = bin;
                if (here > 0 && sum + here >= wanted)
                    break;
                sum += here;
            }
            if (bin < 0) /* fewer than wanted: all of them */
                sum -= Mass ? shared.bins.mass[bin = max(last, 0)] : shared.bins.count[bin = max(last, 0)];
            shared.position = static_cast<unsigned>(bin);
            shared.above = sum;
        }
        __syncthreads();
        prefix = prefix << 10 | shared.position;
        before = shared.above;
        __syncthreads();
    }
    *above = before;
    return prefix;
}

/* Mass of all weights of at least `least`. */
__device__ unsigned long long mass_from(const draw_row &row, unsigned least, draw_shared &shared)
{
    unsigned long long sum = 0;
    for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
        float w = row.weight(i);
        sum += __float_as_uint(w) >= least ? mass_of(w) : 0;
    }
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0)
        shared.totals[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < WARPS; w++)
        sum += shared.totals[w];
    __syncthreads();
    return sum;
}

/* The id of the `index`-th weight with these bits, by ids; the last one when there are fewer. */
__device__ int nth_with(const draw_row &row, unsigned bits, unsigned long long index, draw_shared &shared)
{
    const int each = (row.vocab + THREADS - 1) / THREADS, begin = threadIdx.x * each;
    const int end = min(begin + each, row.vocab);
    unsigned mine = 0;
    for (int i = begin; i < end; i++)
        mine += __float_as_uint(row.weight(i)) == bits;
    shared.bins.count[threadIdx.x] = mine;
    if (threadIdx.x == 0)
        shared.id = -1;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned long long before = 0;
        int thread = 0, last = -1;
        for (; thread < THREADS; before += shared.bins.count[thread++]) {
            if (shared.bins.count[thread] > 0)
                last = thread;
            if (before + shared.bins.count[thread] > index)
                break;
        }
        shared.position = static_cast<unsigned>(thread == THREADS ? last : thread);
        shared.above = thread == THREADS ? before : index - before; /* beyond the last: its last */
    }
    __syncthreads();
    if (threadIdx.x == shared.position) {
        unsigned long long left = shared.above;
        for (int i = begin; i < end; i++)
            if (__float_as_uint(row.weight(i)) == bits) {
                shared.id = i;
                if (left-- == 0)
                    break;
            }
    }
    __syncthreads();
    return shared.id;
}

__device__ int draw_cut(const draw_row &row, const cuda_draw &p, draw_shared &shared)
{
    unsigned least = 1;
    unsigned long long above = 0;
    if (p.top_k > 0)
        least = max(1u, descend<false>(row, 1, static_cast<unsigned long long>(p.top_k), shared, &above));
    unsigned long long mass = mass_from(row, least, shared);
    if (p.top_p < 1) {
        unsigned long long wanted =
            max(1ull, static_cast<unsigned long long>(ceil(static_cast<double>(p.top_p) * static_cast<double>(mass))));
        unsigned bits = descend<true>(row, least, wanted, shared, &above);
        unsigned long long each = max(1ull, mass_of(__uint_as_float(bits)));
        unsigned long long ties = wanted > above ? (wanted - above + each - 1) / each : 1;
        mass = min(mass, above + ties * each);
        least = max(least, bits);
    }
    unsigned long long target = static_cast<unsigned long long>(p.uniform * static_cast<double>(mass));
    unsigned bits = descend<true>(row, least, target + 1, shared, &above);
    unsigned long long each = max(1ull, mass_of(__uint_as_float(bits)));
    return nth_with(row, bits, target > above ? (target - above) / each : 0, shared);
}

__global__ void __launch_bounds__(THREADS) draw_kernel(const float *logits, int64_t stride, int vocab,
                                                       const cuda_draw *draws, int32_t first,
                                                       cuda_results *results)
{
    __shared__ draw_shared shared;
    pdl_wait();
    pdl_release();
    const cuda_draw p = draws[blockIdx.x];
    draw_row row = {logits + blockIdx.x * stride, vocab, 0, 0, p.min_p};
    int id = find_maximum(row.logits, vocab, shared, &row.maximum);
    if (p.temperature > 0 && id >= 0 && row.maximum < INFINITY) {
        row.scale = 1.0f / p.temperature;
        id = p.top_k > 0 || p.top_p < 1 ? draw_cut(row, p, shared) : draw_plain(row, p.uniform, shared);
    }
    if (threadIdx.x == 0) {
        results->ids[first + blockIdx.x] = id;
        atomicMax(&results->end_ns, global_ns());
    }
}

/* The host's arithmetic, rounding for rounding. */
__global__ void __launch_bounds__(256) edit_kernel(float *logits, int64_t stride, const cuda_draw *draws,
                                                   const cuda_edit *edits)
{
    pdl_wait();
    pdl_release();
    const int count = draws->edits;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const cuda_edit edit = edits[i];
        float *at = logits + edit.row * stride + edit.id, x = *at;
        x = __fadd_rn(x == x ? x : -INFINITY, edit.bias);
        x = x > 0 ? __fdiv_rn(x, edit.repetition) : __fmul_rn(x, edit.repetition);
        *at = __fsub_rn(__fsub_rn(x, edit.frequency), edit.presence);
    }
}

__global__ void trap_kernel() { asm volatile("trap;"); }

__global__ void stamp_kernel(cuda_results *results)
{
    pdl_wait();
    pdl_release();
    results->end_ns = global_ns();
}

} // namespace

bool cuda_draw_fits(int32_t vocab) { return vocab <= SUM_BLOCK * SUM_BLOCKS_MAX; }

cudaError_t cuda_launch_draw(cudaStream_t s, const float *logits, int64_t stride, int32_t rows, int32_t vocab,
                             const cuda_draw *draws, int32_t first, cuda_results *results)
{
    return cuda_launch(draw_kernel, dim3(static_cast<unsigned>(rows)), dim3(THREADS), 0, s, logits, stride, vocab, draws,
                       first, results);
}

cudaError_t cuda_launch_edits(cudaStream_t s, float *logits, int64_t stride, const cuda_draw *draws,
                              const cuda_edit *edits)
{
    return cuda_launch(edit_kernel, dim3(64), dim3(256), 0, s, logits, stride, draws, edits);
}

cudaError_t cuda_launch_trap(cudaStream_t s) { return cuda_launch(trap_kernel, dim3(1), dim3(1), 0, s); }

cudaError_t cuda_launch_stamp(cudaStream_t s, cuda_results *results)
{
    return cuda_launch(stamp_kernel, dim3(1), dim3(1), 0, s, results);
}
