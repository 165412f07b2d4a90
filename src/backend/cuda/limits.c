/* The card's limits, for shares of the roof: bytes read and copied a second, BF16 operations a second. */
#include "backend/cuda/limits.h"

#include <dlfcn.h>
#include <string.h>

#include <cublasLt.h>

#include "backend/cuda/cuda.h"
#include "base/json.h"
#include "base/mem.h"

enum { SIDE = 8192 };
static const size_t read_bytes_most = (size_t)2 << 30;

/* ---- cuBLASLt, opened when it is there: an install needs only the driver ---- */

typedef struct blas {
    void *library;
    cublasLtHandle_t handle;
    __typeof__(&cublasLtMatmul) matmul;
    cublasLtMatmulDesc_t job;
    cublasLtMatrixLayout_t side;
    cublasLtMatmulHeuristicResult_t choice;
    void *workspace;
} blas;

enum { BLAS_WORKSPACE = 32 << 20 };

static bool blas_choose(blas *b)
{
    __typeof__(&cublasLtMatmulDescCreate) describe =
        (__typeof__(describe))dlsym(b->library, "cublasLtMatmulDescCreate");
    __typeof__(&cublasLtMatrixLayoutCreate) layout =
        (__typeof__(layout))dlsym(b->library, "cublasLtMatrixLayoutCreate");
    __typeof__(&cublasLtMatmulDescSetAttribute) set =
        (__typeof__(set))dlsym(b->library, "cublasLtMatmulDescSetAttribute");
    __typeof__(&cublasLtMatmulPreferenceCreate) prefer =
        (__typeof__(prefer))dlsym(b->library, "cublasLtMatmulPreferenceCreate");
    __typeof__(&cublasLtMatmulPreferenceSetAttribute) set_preference =
        (__typeof__(set_preference))dlsym(b->library, "cublasLtMatmulPreferenceSetAttribute");
    __typeof__(&cublasLtMatmulAlgoGetHeuristic) choose =
        (__typeof__(choose))dlsym(b->library, "cublasLtMatmulAlgoGetHeuristic");
    if (describe == NULL || layout == NULL || set == NULL || prefer == NULL || set_preference == NULL ||
        choose == NULL)
        return false;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference = NULL;
    size_t workspace = BLAS_WORKSPACE;
    int found = 0;
    return describe(&b->job, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           set(b->job, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) ==
               CUBLAS_STATUS_SUCCESS &&
           layout(&b->side, CUDA_R_16BF, SIDE, SIDE, SIDE) == CUBLAS_STATUS_SUCCESS &&
           prefer(&preference) == CUBLAS_STATUS_SUCCESS &&
           set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                          sizeof(workspace)) == CUBLAS_STATUS_SUCCESS &&
           choose(b->handle, b->job, b->side, b->side, b->side, b->side, preference, 1, &b->choice, &found) ==
               CUBLAS_STATUS_SUCCESS &&
           found > 0;
}

static bool blas_open(blas *b)
{
    b->library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (b->library == NULL)
        return false;
    __typeof__(&cublasLtCreate) create = (__typeof__(create))dlsym(b->library, "cublasLtCreate");
    b->matmul = (__typeof__(b->matmul))dlsym(b->library, "cublasLtMatmul");
    return create != NULL && b->matmul != NULL && create(&b->handle) == CUBLAS_STATUS_SUCCESS &&
           blas_choose(b) && cudaMalloc(&b->workspace, BLAS_WORKSPACE) == cudaSuccess;
}

static cudaError_t blas_run(const blas *b, cudaStream_t stream, const void *x, const void *w, void *y)
{
    const float one = 1, zero = 0;
    return b->matmul(b->handle, b->job, &one, w, b->side, x, b->side, &zero, y, b->side, y, b->side,
                     &b->choice.algo, b->workspace, BLAS_WORKSPACE, stream) == CUBLAS_STATUS_SUCCESS
               ? cudaSuccess
               : cudaErrorUnknown;
}

/* ---- Measuring ---- */

typedef struct trial {
    cuda_device *device;
    char *memory;
    size_t bytes;
    int turns;
    blas blas;
    bool own; /* the product is ours */
} trial;

typedef cudaError_t (*trial_fn)(const trial *t);

static cudaError_t run_read(const trial *t)
{
    return cuda_launch_read(t->device->stream, t->memory, t->bytes, t->device->sm_count, t->memory);
}

static cudaError_t run_copy(const trial *t)
{
    return cuda_launch_copy(t->device->stream, t->memory, t->bytes / 2, t->device->sm_count,
                            t->memory + t->bytes / 2);
}

static cudaError_t run_product(const trial *t)
{
    const size_t bytes = (size_t)SIDE * SIDE * 2;
    void *x = t->memory, *w = t->memory + bytes, *y = t->memory + 2 * bytes;
    if (!t->own)
        return blas_run(&t->blas, t->device->stream, x, w, y);
    cuda_gemm_job job = {.count = 1, .m = SIDE, .k = SIDE, .x = x, .x_stride = SIDE, .out = CUDA_GEMM_BF16};
    job.matrix[0] = (cuda_gemm_matrix){.weight = w, .y = y, .y_stride = SIDE, .n = SIDE};
    return cuda_gemm(t->device->stream, &job);
}

/* Milliseconds of the best of some runs after one to warm up. */
static cudaError_t best_of(const trial *t, trial_fn run, double *best_ms)
{
    cudaEvent_t begin = NULL, end = NULL;
    cudaError_t error = cudaEventCreate(&begin);
    if (error == cudaSuccess)
        error = cudaEventCreate(&end);
    *best_ms = 1e9;
    for (int i = 0; i < t->turns && error == cudaSuccess; i++) {
        float ms = 0;
        cudaEventRecord(begin, t->device->stream);
        error = run(t);
        cudaEventRecord(end, t->device->stream);
        if (error == cudaSuccess)
            error = cudaEventSynchronize(end);
        if (error == cudaSuccess)
            error = cudaEventElapsedTime(&ms, begin, end);
        if (i > 0)
            *best_ms = QR_MIN(*best_ms, (double)ms);
    }
    if (begin != NULL)
        cudaEventDestroy(begin);
    if (end != NULL)
        cudaEventDestroy(end);
    return error;
}

static void put(qr_json *out, const char *key, double value)
{
    qr_json_set(out, key, qr_json_new_real(value));
}

static cudaError_t measure(trial *t, qr_json *out)
{
    double ms = 0;
    const double flops = 2.0 * SIDE * SIDE * SIDE;
    cudaError_t error = cuda_launch_dummy(t->device->stream, 1, (int64_t)(t->bytes / 2), 0.02f, t->memory);
    if (error == cudaSuccess)
        error = best_of(t, run_read, &ms);
    put(out, "read_gb_per_s", (double)t->bytes / ms / 1e6);
    if (error == cudaSuccess)
        error = best_of(t, run_copy, &ms);
    put(out, "copy_gb_per_s", (double)t->bytes / ms / 1e6);
    double own = 0, library = 0;
    t->own = true;
    if (error == cudaSuccess && (error = best_of(t, run_product, &ms)) == cudaSuccess)
        own = flops / ms / 1e9;
    t->own = false;
    if (error == cudaSuccess && blas_open(&t->blas) && (error = best_of(t, run_product, &ms)) == cudaSuccess)
        library = flops / ms / 1e9;
    put(out, "bf16_tflop_per_s", QR_MAX(own, library));
    put(out, "bf16_tflop_per_s_own", own);
    if (library > 0)
        put(out, "bf16_tflop_per_s_cublaslt", library);
    return error;
}

qr_status cuda_limits(qr_device *base, bool refresh, char **json, qr_error *err)
{
    (void)refresh; /* a second's work: not worth a cache */
    cuda_device *device = cuda_of(base);
    cuda_use(base);
    trial t = {.device = device, .bytes = read_bytes_most, .turns = 8};
    cudaError_t error = cudaMalloc((void **)&t.memory, t.bytes);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, "limits: 2 GiB to read", err);
    }
    qr_json *out = qr_json_new_object();
    qr_json_set(out, "device", qr_json_new_string(qr_str_of(base->description)));
    error = measure(&t, out);
    cudaFree(t.blas.workspace);
    cudaFree(t.memory);
    qr_buf text = {0};
    qr_json_write(out, 2, &text);
    qr_json_free(out);
    if (error == cudaSuccess)
        *json = qr_buf_detach(&text, NULL);
    else
        qr_buf_release(&text);
    return error == cudaSuccess ? QR_OK : cuda_fail(device, QR_DEVICE_FAILED, error, "limits", err);
}

/* Quick: what an engine states its work as shares of. */
void cuda_rates(qr_device *base, double *read_bytes, double *flops)
{
    cuda_device *device = cuda_of(base);
    cuda_use(base);
    trial t = {.device = device, .bytes = read_bytes_most / 2, .turns = 3, .own = true};
    double read_ms = 0, product_ms = 0;
    if (device->read_rate <= 0 && device->error == cudaSuccess &&
        cudaMalloc((void **)&t.memory, t.bytes) == cudaSuccess) {
        if (cuda_launch_dummy(device->stream, 1, (int64_t)(t.bytes / 2), 0.02f, t.memory) == cudaSuccess &&
            best_of(&t, run_read, &read_ms) == cudaSuccess &&
            best_of(&t, run_product, &product_ms) == cudaSuccess) {
            device->read_rate = (double)t.bytes / read_ms * 1e3;
            device->flop_rate = 2.0 * SIDE * SIDE * SIDE / product_ms * 1e3;
        }
        cudaFree(t.memory);
    }
    cudaGetLastError(); /* no room to measure in is not an error */
    *read_bytes = device->read_rate;
    *flops = device->flop_rate;
}
