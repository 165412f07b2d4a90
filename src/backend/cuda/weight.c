/* Weights: every matrix is held in BF16 in device memory, blocks of GGUF expanded to the values that they stand for.
 * They come in through two pinned buffers, so that the disk is read while the last piece crosses the bus. */
#include "backend/cuda/cuda.h"

#include <string.h>

#include "base/assert.h"
#include "base/hash.h"
#include "base/mem.h"

enum { STAGING_BYTES = 16 << 20 };

static const float dummy_sigma = 0.02f;

qr_status cuda_staging_open(cuda_device *device, qr_error *err)
{
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < 2 && error == cudaSuccess; i++) {
        error = cudaHostAlloc(&device->staging[i], STAGING_BYTES, cudaHostAllocDefault);
        if (error == cudaSuccess)
            error = cudaEventCreateWithFlags(&device->staged[i], cudaEventDisableTiming);
    }
    if (error != cudaSuccess)
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, "pinned memory", err);
    device->device_staging = cuda_own(device, 2 * (size_t)STAGING_BYTES, "staging", err);
    return device->device_staging != NULL ? QR_OK : QR_OUT_OF_MEMORY;
}

void cuda_staging_close(cuda_device *device)
{
    for (int i = 0; i < 2; i++) {
        if (device->staging[i] != NULL)
            cudaFreeHost(device->staging[i]);
        if (device->staged[i] != NULL)
            cudaEventDestroy(device->staged[i]);
    }
}

static size_t bf16_bytes(const qr_weight *w) { return (size_t)w->rows * (size_t)w->cols * 2; }

size_t cuda_weight_prepared_bytes(const qr_device *device, const qr_weight *w,
                                  const qr_prepare_options *options)
{
    (void)device;
    (void)options;
    return QR_ROUND_UP(bf16_bytes(w), (size_t)512);
}

/* Pieces of whole blocks, two in flight. */
static cudaError_t upload(cuda_device *device, const qr_weight *w)
{
    const qr_format_traits *traits = qr_format_get(w->format);
    const char *from = w->part[QR_PART_DATA].data;
    int64_t count = w->rows * w->cols / traits->block, piece = STAGING_BYTES / traits->bytes;
    cudaError_t error = cudaSuccess;
    for (int64_t done = 0, turn = 0; done < count && error == cudaSuccess; done += piece, turn ^= 1) {
        int64_t blocks = QR_MIN(piece, count - done);
        size_t bytes = (size_t)blocks * (size_t)traits->bytes;
        char *raw = (char *)device->device_staging + turn * STAGING_BYTES;
        char *to = (char *)w->packed + done * traits->block * 2;
        bool same = w->format == QR_FORMAT_bf16;
        error = cudaEventSynchronize(device->staged[turn]);
        memcpy(device->staging[turn], from + done * traits->bytes, bytes);
        if (error == cudaSuccess)
            error = cudaMemcpyAsync(same ? to : raw, device->staging[turn], bytes, cudaMemcpyHostToDevice,
                                    device->stream);
        if (error == cudaSuccess && !same)
            error = cuda_launch_expand(device->stream, w->format, raw, blocks, to);
        if (error == cudaSuccess)
            error = cudaEventRecord(device->staged[turn], device->stream);
    }
    return error;
}

/* Before anything is read: a part that is shorter than its shape says would be read past its end. */
static qr_status check_parts(const qr_weight *w, qr_error *err)
{
    const qr_format_traits *traits = qr_format_get(w->format);
    if (w->cols % traits->block != 0)
        return qr_fail(err, QR_BAD_FILE, "%s: rows of %lld values are not whole %s blocks", w->name,
                       (long long)w->cols, traits->name);
    size_t bytes = 0;
    if (!qr_size_mul(qr_format_row_bytes(w->format, w->cols), (size_t)w->rows, &bytes) ||
        w->part[QR_PART_DATA].bytes < bytes)
        return qr_fail(err, QR_BAD_FILE, "%s: %zu bytes of data, its shape needs %zu", w->name,
                       w->part[QR_PART_DATA].bytes, bytes);
    return QR_OK;
}

qr_status cuda_weight_prepare(qr_device *base, qr_weight *w, const qr_prepare_options *options, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    qr_status status = options->dummy_seed != 0 ? QR_OK : check_parts(w, err);
    if (status != QR_OK)
        return status;
    if (w->rows > INT32_MAX || w->cols > INT32_MAX)
        return qr_fail(err, QR_UNSUPPORTED, "%s: more than 2^31 rows or columns", w->name);
    size_t bytes = cuda_weight_prepared_bytes(base, w, options);
    cudaError_t error = cudaMalloc(&w->packed, bytes);
    if (error != cudaSuccess) {
        cudaGetLastError();
        w->packed = NULL;
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, w->name, err);
    }
    w->packed_bytes = bf16_bytes(w);
    w->layout = 1;
    if (options->dummy_seed != 0)
        error =
            cuda_launch_dummy(device->stream, options->dummy_seed ^ qr_hash64(w->name, strlen(w->name), 0),
                              w->rows * w->cols, dummy_sigma, w->packed);
    else
        error = upload(device, w);
    if (error == cudaSuccess)
        return QR_OK;
    cuda_weight_release(base, w);
    return cuda_fail(device, QR_DEVICE_FAILED, error, w->name, err);
}

void cuda_weight_release(qr_device *device, qr_weight *w)
{
    (void)device;
    if (w->packed != NULL)
        cudaFree(w->packed);
    w->packed = NULL;
    w->packed_bytes = 0;
    w->layout = 0;
}

qr_status cuda_vector_prepare(qr_device *base, const qr_weight *w, const float **out, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    qr_status status = check_parts(w, err);
    if (status != QR_OK)
        return status;
    size_t bytes = (size_t)w->cols * sizeof(float);
    float *values = qr_calloc((size_t)w->cols, sizeof(float));
    qr_format_get(w->format)->dequant_row(w->part[QR_PART_DATA].data, values, w->cols);
    void *data = cuda_own(device, bytes, w->name, err);
    cudaError_t error = data != NULL ? cudaMemcpy(data, values, bytes, cudaMemcpyHostToDevice) : cudaSuccess;
    qr_free(values);
    if (data == NULL)
        return QR_OUT_OF_MEMORY;
    *out = data;
    return error == cudaSuccess ? QR_OK : cuda_fail(device, QR_DEVICE_FAILED, error, w->name, err);
}
