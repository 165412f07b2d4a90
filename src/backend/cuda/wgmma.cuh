/* Products of four warps whose operands are images of whole rows (attention's pages), also read across, and what goes
 * with them. Private to backend/cuda/. Thread: any.
 *
 * An image: groups of 8 rows, in each group blocks of 64 columns, in a block rows of 128 bytes whose
 * 16-byte pieces are exchanged (piece ^ row), aligned to 1024 bytes. A group has as many blocks as a row of the matrix
 * has; the image may be read along its rows (sums along columns) or across (sums along rows, "transposed").
 */
#ifndef QR_BACKEND_CUDA_WGMMA_CUH
#define QR_BACKEND_CUDA_WGMMA_CUH

#include "backend/cuda/cuda.cuh"
#include "backend/cuda/hopper.cuh"

/* Where 16-byte piece p of row r begins in an image whose rows have Blocks * 64 numbers of two bytes. */
template <int Blocks> __device__ __forceinline__ int image_at(int row, int piece)
{
    return ((row >> 3) * Blocks + (piece >> 3)) * 1024 + (row & 7) * 128 + ((piece ^ row) & 7) * 16;
}

/* An image from `address` on, summed along its columns or rows; Blocks as above. 16 columns further: address + 32 in a
 * block; 16 rows further: two groups. */
template <int Blocks> __device__ __forceinline__ uint64_t image_operand(uint32_t address)
{
    constexpr uint64_t block = 1024 >> 4, group = Blocks * 1024 >> 4, swizzled_by_128_bytes = 1;
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | block << 16 | group << 32 | swizzled_by_128_bytes << 62;
}

/* ---- Products ---- */

/* Registers that products in flight read or write: not moved across this. */
template <int N> __device__ __forceinline__ void wgmma_settle(float (&sums)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}
template <int N> __device__ __forceinline__ void wgmma_settle(uint32_t (&words)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(words[i])::"memory");
}
/* Waits for all products; their sums may be read from here on. */
template <typename... Sums> __device__ __forceinline__ void wgmma_wait(Sums &...sums)
{
    product_wait<0>();
    (wgmma_settle(sums), ...);
}

/* What generic stores wrote to shared memory is what products and bulk copies see. */
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define SUMS_4 \
    "%0, %1, %2, %3"
#define OUT_4 \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define SUMS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OUT_32 \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), \
    "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), \
    "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), \
    "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SUMS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63"
#define OUT_64 \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), \
    "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), \
    "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), \
    "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), \
    "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), \
    "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), \
    "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), \
    "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

/* d (64 rows x 2 or 16 times the array's length / 2) = A B, or += when `add`. T is bf16 or __half.
 *   wgmma_rows     A and B from images, both summed along columns: 128 columns of the result
 *   wgmma_mix      A from registers, B from an image summed along its rows: 64 or 128 columns
 *   wgmma_narrow   8 columns: A from an image, summed along its rows if Across, B from an image along columns */
template <typename T> __device__ void wgmma_rows(float (&d)[64], uint64_t a, uint64_t b, int add);
template <typename T>
__device__ void wgmma_mix(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int add);
template <typename T>
__device__ void wgmma_mix(float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int add);
template <typename T, int Across> __device__ void wgmma_narrow(float (&d)[4], uint64_t a, uint64_t b, int add);

#define WGMMA(SHAPE, TYPE, SUMS, A, B, ADD, FLAGS) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n" \
    "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " {" SUMS "}, " A ", " B ", p, 1, 1, " FLAGS ";\n}\n"

#define WGMMA_OF_TYPE(T, TYPE) \
    template <> __device__ __forceinline__ void wgmma_rows<T>(float (&d)[64], uint64_t a, uint64_t b, int add) \
    { \
        asm volatile(WGMMA("m64n128k16", TYPE, SUMS_64, "%64", "%65", "%66", "0, 0") : OUT_64 \
                     : "l"(a), "l"(b), "r"(add)); \
    } \
    template <> \
    __device__ __forceinline__ void wgmma_mix<T>(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
                                                 uint64_t b, int add) \
    { \
        asm volatile(WGMMA("m64n128k16", TYPE, SUMS_64, "{%64, %65, %66, %67}", "%68", "%69", "1") : OUT_64 \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add)); \
    } \
    template <> \
    __device__ __forceinline__ void wgmma_mix<T>(float (&d)[32], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
                                                 uint64_t b, int add) \
    { \
        asm volatile(WGMMA("m64n64k16", TYPE, SUMS_32, "{%32, %33, %34, %35}", "%36", "%37", "1") : OUT_32 \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add)); \
    } \
    template <> \
    __device__ __forceinline__ void wgmma_narrow<T, 0>(float (&d)[4], uint64_t a, uint64_t b, int add) \
    { \
        asm volatile(WGMMA("m64n8k16", TYPE, SUMS_4, "%4", "%5", "%6", "0, 0") : OUT_4 : "l"(a), "l"(b), "r"(add)); \
    } \
    template <> \
    __device__ __forceinline__ void wgmma_narrow<T, 1>(float (&d)[4], uint64_t a, uint64_t b, int add) \
    { \
        asm volatile(WGMMA("m64n8k16", TYPE, SUMS_4, "%4", "%5", "%6", "1, 0") : OUT_4 : "l"(a), "l"(b), "r"(add)); \
    }
WGMMA_OF_TYPE(bf16, "bf16")
WGMMA_OF_TYPE(__half, "f16")

/* ---- Barriers and bulk copies ---- */

/* A barrier of `count` threads, a multiple of 32; number: 1..15. */
__device__ __forceinline__ void threads_sync(int number, int count)
{
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(count) : "memory");
}
__device__ __forceinline__ void threads_arrive(int number, int count)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(count) : "memory");
}

/* bytes: a multiple of 16, announced to the barrier. */
__device__ __forceinline__ void copy_bulk(uint32_t shared, const void *global, int bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* A ring of slots that a producer fills and consumers empty: where either is. */
template <int Slots> struct ring_place {
    int slot = 0, parity = 0;

    __device__ __forceinline__ void next()
    {
        if (++slot == Slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

#endif
