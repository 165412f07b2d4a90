/* The portable product, for shapes that the copy engine cannot read: one tile shape for every M, K in steps of 32 from
 * left to right, so that a row's bits depend on nothing but the row. Correct for any shape; fast for none. */
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/gemm_wgmma.cuh"

namespace
{

constexpr int TILE_M = 64, TILE_N = 64, TILE_K = 32,
              PITCH = TILE_K + 8; /* padded: fragments without bank conflicts */
constexpr int THREADS = 128;

struct tile_shared {
    bf16 x[TILE_M * PITCH];
    bf16 w[2][TILE_N * PITCH];
};

/* [64][32] numbers of a matrix [rows][cols]; zero outside. */
__device__ void load_tile(bf16 *tile, const bf16 *from, int64_t stride, int row0, int rows, int col0,
                          int cols)
{
    bool vectors = cols % 8 == 0 && stride % 8 == 0;
    for (int i = threadIdx.x; i < 64 * TILE_K / 8; i += THREADS) {
        int r = i / (TILE_K / 8), c = i % (TILE_K / 8) * 8;
        const bf16 *at = from + (row0 + r) * stride + col0 + c;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row0 + r < rows && vectors && col0 + c < cols) {
            v = *reinterpret_cast<const uint4 *>(at);
        } else if (row0 + r < rows && !vectors) {
            bf16 some[8];
            for (int j = 0; j < 8; j++)
                some[j] = col0 + c + j < cols ? at[j] : __float2bfloat16(0.0f);
            v = make_uint4(*reinterpret_cast<uint32_t *>(some), *reinterpret_cast<uint32_t *>(some + 2),
                           *reinterpret_cast<uint32_t *>(some + 4), *reinterpret_cast<uint32_t *>(some + 6));
        }
        *reinterpret_cast<uint4 *>(tile + r * PITCH + c) = v;
    }
}

__device__ __forceinline__ uint32_t pair_at(const bf16 *tile, int row, int col)
{
    return *reinterpret_cast<const uint32_t *>(tile + row * PITCH + col);
}

/* A warp's 16 rows times 64 columns. */
__device__ void multiply(const bf16 *x, const bf16 *w, int warp, int lane, float (&sum)[8][4])
{
    int r = lane / 4, c = lane % 4 * 2;
    for (int k = 0; k < TILE_K; k += 16) {
        uint32_t a0 = pair_at(x, warp * 16 + r, k + c), a1 = pair_at(x, warp * 16 + r + 8, k + c);
        uint32_t a2 = pair_at(x, warp * 16 + r, k + c + 8), a3 = pair_at(x, warp * 16 + r + 8, k + c + 8);
#pragma unroll
        for (int n = 0; n < 8; n++)
            mma16816<bf16>(sum[n], a0, a1, a2, a3, pair_at(w, n * 8 + r, k + c),
                           pair_at(w, n * 8 + r, k + c + 8));
    }
}

__device__ void store(const cuda_gemm_matrix &to, cuda_gemm_out out, int row, int col, float value)
{
    if (to.bias != NULL)
        value += to.bias[col];
    if (out == CUDA_GEMM_F32)
        static_cast<float *>(to.y)[row * to.y_stride + col] = value;
    else
        static_cast<bf16 *>(to.y)[row * to.y_stride + col] = __float2bfloat16(value);
}

__global__ void __launch_bounds__(THREADS) tile_kernel(const cuda_gemm_job job)
{
    __shared__ __align__(16) tile_shared shared;
    pdl_wait();
    pdl_release();
    int matrix = 0, tile = blockIdx.x;
    bool swiglu = job.out == CUDA_GEMM_SWIGLU;
    while (!swiglu && tile >= (job.matrix[matrix].n + TILE_N - 1) / TILE_N)
        tile -= (job.matrix[matrix++].n + TILE_N - 1) / TILE_N;
    const cuda_gemm_matrix &to = job.matrix[matrix];
    int n0 = tile * TILE_N, m0 = blockIdx.y * TILE_M, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum[2][8][4] = {};
    for (int k = 0; k < job.k; k += TILE_K) {
        load_tile(shared.x, static_cast<const bf16 *>(job.x), job.x_stride, m0, job.m, k, job.k);
        load_tile(shared.w[0], static_cast<const bf16 *>(to.weight), job.k, n0, to.n, k, job.k);
        if (swiglu)
            load_tile(shared.w[1], static_cast<const bf16 *>(job.matrix[1].weight), job.k, n0, to.n, k,
                      job.k);
        __syncthreads();
        multiply(shared.x, shared.w[0], warp, lane, sum[0]);
        if (swiglu)
            multiply(shared.x, shared.w[1], warp, lane, sum[1]);
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = m0 + warp * 16 + lane / 4 + i / 2 * 8, col = n0 + n * 8 + lane % 4 * 2 + i % 2;
            float gate = sum[0][n][i];
            if (row < job.m && col < to.n)
                store(to, job.out, row, col, swiglu ? gate / (1.0f + __expf(-gate)) * sum[1][n][i] : gate);
        }
}

} // namespace

cudaError_t cuda_gemm_any(cudaStream_t stream, const cuda_gemm_job *job)
{
    unsigned tiles = 0;
    int count = job->out == CUDA_GEMM_SWIGLU ? 1 : job->count;
    for (int i = 0; i < count; i++)
        tiles += static_cast<unsigned>((job->matrix[i].n + TILE_N - 1) / TILE_N);
    dim3 grid(tiles, static_cast<unsigned>((job->m + TILE_M - 1) / TILE_M));
    return cuda_launch(tile_kernel, grid, dim3(THREADS), 0, stream, *job);
}
