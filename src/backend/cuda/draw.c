/* Draws: parameters in by one copy, ids back by one, and the logits of rows that the host samples itself. */
#include "backend/cuda/cuda.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

qr_status cuda_draws_open(cuda_device *device, qr_error *err)
{
    cuda_draws *d = &device->draws;
    size_t params = CUDA_DRAWS_MAX * sizeof(cuda_draw), ids = CUDA_DRAWS_MAX * sizeof(int32_t);
    cudaError_t error = cudaHostAlloc((void **)&d->params, params, cudaHostAllocDefault);
    if (error == cudaSuccess)
        error = cudaHostAlloc((void **)&d->ids, ids, cudaHostAllocDefault);
    if (error != cudaSuccess)
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, "pinned memory", err);
    memset(d->params, 0, params);
    d->host_rows = qr_calloc(CUDA_DRAWS_MAX, sizeof(int32_t));
    d->device_params = cuda_own(device, params, "draws", err);
    d->device_ids = cuda_own(device, ids, "draws", err);
    return d->device_params != NULL && d->device_ids != NULL ? QR_OK : QR_OUT_OF_MEMORY;
}

void cuda_draws_close(cuda_device *device)
{
    if (device->draws.params != NULL)
        cudaFreeHost(device->draws.params);
    if (device->draws.ids != NULL)
        cudaFreeHost(device->draws.ids);
    qr_free(device->draws.host_rows);
}

bool cuda_draws_served(const qr_device *device, int32_t vocab)
{
    (void)device;
    return cuda_draw_fits(vocab);
}

void cuda_draws_upload(cuda_device *device, int32_t first, int32_t count)
{
    cuda_draws *d = &device->draws;
    cuda_check(device,
               cudaMemcpyAsync(d->device_params + first, d->params + first, (size_t)count * sizeof(cuda_draw),
                               cudaMemcpyHostToDevice, device->stream),
               "draw");
}

/* Room for logits in pinned memory; what is there stays. */
bool cuda_host_logits_room(cuda_device *device, size_t bytes)
{
    float *data = NULL;
    if (bytes <= device->host_logits_bytes)
        return true;
    if (!cuda_check(device, cudaStreamSynchronize(device->stream), "logits") ||
        !cuda_check(device, cudaHostAlloc((void **)&data, bytes, cudaHostAllocDefault), "logits"))
        return false;
    if (device->host_logits != NULL) {
        memcpy(data, device->host_logits, device->host_logits_bytes);
        cudaFreeHost(device->host_logits);
    }
    device->host_logits = data;
    device->host_logits_bytes = bytes;
    return true;
}

/* Of the rows in host_rows that have not been copied yet; they are rows of the last call. */
void cuda_draws_logits(cuda_device *device, qr_tensor logits)
{
    cuda_draws *d = &device->draws;
    size_t row = (size_t)logits.cols * sizeof(float);
    if (d->host_count == d->host_copied || !cuda_host_logits_room(device, (size_t)d->host_count * row))
        return;
    for (; d->host_copied < d->host_count; d->host_copied++)
        cuda_check(device,
                   cudaMemcpyAsync((char *)device->host_logits + (size_t)d->host_copied * row,
                                   (const char *)logits.data +
                                       (size_t)(d->host_rows[d->host_copied] - d->first) * row,
                                   row, cudaMemcpyDeviceToHost, device->stream),
                   "logits");
}

void cuda_draw_rows(qr_device *base, qr_tensor logits, const qr_draw *draws, int32_t first, int32_t count)
{
    cuda_device *device = cuda_of(base);
    cuda_draws *d = &device->draws;
    int32_t rows = (int32_t)logits.rows;
    QR_ASSERT(first >= 0 && first + rows <= CUDA_DRAWS_MAX && logits.row_stride == logits.cols);
    for (int32_t i = 0; i < rows; i++) {
        static const qr_draw nothing = {.top_p = 1};
        const qr_draw *draw = i < count ? &draws[i] : &nothing;
        d->params[first + i] = (cuda_draw){.temperature = draw->to_host ? 0 : draw->temperature,
                                           .top_p = draw->top_p,
                                           .min_p = draw->min_p,
                                           .top_k = draw->top_k,
                                           .uniform = draw->uniform};
        if (draw->to_host)
            d->host_rows[d->host_count++] = first + i;
    }
    d->first = first;
    d->count = rows;
    d->logits = logits;
    if (cuda_idle(device))
        return;
    if (device->step.mode == CUDA_MODE_EAGER)
        cuda_draws_upload(device, first, rows);
    cuda_check(device,
               cuda_launch_draw(device->stream, logits.data, logits.row_stride, rows, (int32_t)logits.cols,
                                d->device_params + first, d->device_ids + first),
               "draw");
    cuda_check(device,
               cudaMemcpyAsync(d->ids + first, d->device_ids + first, (size_t)rows * sizeof(int32_t),
                               cudaMemcpyDeviceToHost, device->stream),
               "draw");
    if (device->step.mode == CUDA_MODE_EAGER)
        cuda_draws_logits(device, logits);
}

int32_t cuda_drawn(const qr_device *device, int32_t row)
{
    return ((const cuda_device *)device)->draws.ids[row];
}

const float *cuda_drawn_logits(const qr_device *base, int32_t row)
{
    const cuda_device *device = (const cuda_device *)base;
    const cuda_draws *d = &device->draws;
    int32_t low = 0, high = d->host_count - 1;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (d->host_rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    QR_ASSERT(d->host_count > 0 && d->host_rows[low] == row);
    return device->host_logits + (size_t)low * (size_t)d->logits.cols;
}

const float *cuda_logits(qr_device *base, qr_tensor logits)
{
    cuda_device *device = cuda_of(base);
    size_t bytes = (size_t)logits.rows * (size_t)logits.cols * sizeof(float);
    QR_ASSERT(device->step.mode == CUDA_MODE_EAGER);
    if (!cuda_host_logits_room(device, bytes)) {
        qr_free(device->no_logits); /* numbers to look at until the step's end says what happened */
        return device->no_logits = qr_calloc(bytes, 1);
    }
    bool ok = device->error == cudaSuccess &&
              cuda_check(device,
                         cudaMemcpyAsync(device->host_logits, logits.data, bytes, cudaMemcpyDeviceToHost,
                                         device->stream),
                         "logits") &&
              cuda_check(device, cudaStreamSynchronize(device->stream), "logits");
    if (!ok)
        memset(device->host_logits, 0, bytes);
    return device->host_logits;
}
