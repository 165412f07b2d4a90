/* Draws: parameters in by one copy, ids back by one, and the logits of rows that the host samples itself. */
#include "backend/cuda/cuda.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

qr_status cuda_draws_open(cuda_device *device, qr_error *err)
{
    cuda_draws *d = &device->draws;
    d->params = cuda_own(device, CUDA_DRAWS_MAX * sizeof(cuda_draw), "draws", err);
    d->edits = cuda_own(device, CUDA_EDITS_MAX * sizeof(cuda_edit), "draws", err);
    d->results = cuda_own(device, sizeof(cuda_results), "draws", err);
    if (d->params == NULL || d->edits == NULL || d->results == NULL)
        return QR_OUT_OF_MEMORY;
    cuda_check(device, cudaMemset(d->results, 0, sizeof(cuda_results)), "draws");
    return QR_OK;
}

bool cuda_draws_served(const qr_device *device, int32_t vocab)
{
    (void)device;
    return cuda_draw_fits(vocab);
}

void cuda_draws_upload(cuda_device *device, int32_t first, int32_t count)
{
    cuda_check(device,
               cudaMemcpyAsync(device->draws.params + first, cuda_slot_made(device)->draws + first,
                               (size_t)count * sizeof(cuda_draw), cudaMemcpyHostToDevice, device->stream),
               "draw");
}

/* Those of the step from `first` on. */
void cuda_edits_upload(cuda_device *device, int32_t first)
{
    const cuda_slot *slot = cuda_slot_made(device);
    if (slot->edit_count > first)
        cuda_check(device,
                   cudaMemcpyAsync(device->draws.edits + first, slot->edits + first,
                                   (size_t)(slot->edit_count - first) * sizeof(cuda_edit),
                                   cudaMemcpyHostToDevice, device->stream),
                   "draw");
}

bool cuda_host_logits_room(cuda_device *device, float **data, size_t *have, size_t bytes)
{
    float *more = NULL;
    if (bytes <= *have)
        return true;
    if (!cuda_check(device, cudaStreamSynchronize(device->stream), "logits") ||
        !cuda_check(device, cudaHostAlloc((void **)&more, bytes, cudaHostAllocDefault), "logits"))
        return false;
    if (*data != NULL) {
        memcpy(more, *data, *have);
        cudaFreeHost(*data);
    }
    *data = more;
    *have = bytes;
    return true;
}

/* Of the rows in host_rows that have not been copied yet; they are rows of the last call. */
void cuda_draws_logits(cuda_device *device, qr_tensor logits)
{
    cuda_slot *slot = cuda_slot_made(device);
    size_t row = (size_t)logits.cols * sizeof(float);
    if (slot->host_count == slot->host_copied ||
        !cuda_host_logits_room(device, &slot->host_logits, &slot->host_logits_bytes,
                               (size_t)slot->host_count * row))
        return;
    for (; slot->host_copied < slot->host_count; slot->host_copied++)
        cuda_check(
            device,
            cudaMemcpyAsync((char *)slot->host_logits + (size_t)slot->host_copied * row,
                            (const char *)logits.data +
                                (size_t)(slot->host_rows[slot->host_copied] - device->draws.first) * row,
                            row, cudaMemcpyDeviceToHost, device->stream),
            "logits");
}

static void put_edits(cuda_slot *slot, int32_t row, const qr_draw *draw)
{
    QR_ASSERT(draw->edit_count <= CUDA_EDITS_MAX - slot->edit_count);
    for (int32_t i = 0; i < draw->edit_count; i++) {
        const qr_logit_edit *edit = &draw->edits[i];
        slot->edits[slot->edit_count++] = (cuda_edit){.row = row,
                                                      .id = edit->id,
                                                      .bias = edit->bias,
                                                      .repetition = edit->repetition,
                                                      .frequency = edit->frequency,
                                                      .presence = edit->presence};
    }
}

/* The draws of a call go in; returns where its edits begin. */
static int32_t put_draws(cuda_slot *slot, const qr_draw *draws, int32_t first, int32_t count, int32_t rows)
{
    static const qr_draw nothing = {.top_p = 1}; /* of rows that fill the batch up */
    int32_t edits = slot->edit_count;
    for (int32_t i = 0; i < rows; i++) {
        const qr_draw *draw = i < count ? &draws[i] : &nothing;
        slot->draws[first + i] = (cuda_draw){.temperature = draw->to_host ? 0 : draw->temperature,
                                             .top_p = draw->top_p,
                                             .min_p = draw->min_p,
                                             .top_k = draw->top_k,
                                             .uniform = draw->uniform};
        put_edits(slot, i, draw);
        if (draw->to_host)
            slot->host_rows[slot->host_count++] = first + i;
    }
    slot->draws[first].edits = slot->edit_count - edits;
    return edits;
}

void cuda_draw_rows(qr_device *base, qr_tensor logits, const qr_draw *draws, int32_t first, int32_t count)
{
    cuda_device *device = cuda_of(base);
    cuda_draws *d = &device->draws;
    cuda_slot *slot = cuda_slot_made(device);
    int32_t rows = (int32_t)logits.rows;
    QR_ASSERT(first >= 0 && first + rows <= CUDA_DRAWS_MAX && logits.row_stride == logits.cols);
    int32_t edits = put_draws(slot, draws, first, count, rows);
    bool eager = device->step.mode == CUDA_MODE_EAGER;
    d->first = first;
    d->count = rows;
    d->total = first + rows;
    d->logits = logits;
    if (cuda_idle(device))
        return;
    if (eager) {
        cuda_draws_upload(device, first, rows);
        cuda_edits_upload(device, edits);
    }
    if (!eager || slot->edit_count > edits) /* a recorded step may bring some the next time */
        cuda_check(device,
                   cuda_launch_edits(device->stream, logits.data, logits.row_stride, d->params + first,
                                     d->edits + edits),
                   "draw");
    cuda_check(device,
               cuda_launch_draw(device->stream, logits.data, logits.row_stride, rows, (int32_t)logits.cols,
                                d->params + first, first, d->results),
               "draw");
    if (eager)
        cuda_draws_logits(device, logits);
}

int32_t cuda_drawn(const qr_device *device, int32_t row)
{
    return cuda_slot_done((const cuda_device *)device)->results->ids[row];
}

const float *cuda_drawn_logits(const qr_device *base, int32_t row)
{
    const cuda_device *device = (const cuda_device *)base;
    const cuda_slot *slot = cuda_slot_done(device);
    int32_t low = 0, high = slot->host_count - 1;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (slot->host_rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    QR_ASSERT(slot->host_count > 0 && slot->host_rows[low] == row);
    return slot->host_logits + (size_t)low * (size_t)device->draws.logits.cols;
}

const float *cuda_logits(qr_device *base, qr_tensor logits)
{
    cuda_device *device = cuda_of(base);
    size_t bytes = (size_t)logits.rows * (size_t)logits.cols * sizeof(float);
    QR_ASSERT(device->step.mode == CUDA_MODE_EAGER);
    if (!cuda_host_logits_room(device, &device->host_logits, &device->host_logits_bytes, bytes)) {
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
