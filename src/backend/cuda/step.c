/* A step's facts: the batch and what attention has to do, gathered in pinned memory and copied at once. */
#include "backend/cuda/cuda.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

qr_status cuda_step_open(cuda_device *device, qr_error *err)
{
    cuda_step *step = &device->step;
    size_t bytes = (size_t)CUDA_META_ROOM * sizeof(int32_t);
    cudaError_t error = cudaHostAlloc((void **)&step->host, bytes, cudaHostAllocDefault);
    if (error != cudaSuccess)
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, "pinned memory", err);
    step->device = cuda_own(device, bytes, "step", err);
    step->capacity = CUDA_META_ROOM;
    return step->device != NULL ? QR_OK : QR_OUT_OF_MEMORY;
}

void cuda_step_close(cuda_device *device)
{
    if (device->step.host != NULL)
        cudaFreeHost(device->step.host);
    device->step.host = NULL;
}

/* ---- Gathering ---- */

typedef struct fact_writer {
    cuda_step *step;
    size_t used;
} fact_writer;

static int32_t *take(fact_writer *w, size_t count)
{
    QR_ASSERT(count <= w->step->capacity - w->used);
    int32_t *at = w->step->host + w->used;
    w->used += count;
    return at;
}

static const int32_t *put(fact_writer *w, const int32_t *from, size_t count)
{
    int32_t *to = take(w, count);
    memcpy(to, from, count * sizeof(int32_t));
    return to;
}

static const int32_t *on_device(const cuda_step *step, const int32_t *host)
{
    return step->device + (host - step->host);
}

static int32_t split_count(int32_t context, int32_t window)
{
    int32_t first = window > 0 ? QR_MAX(0, context - window) : 0;
    return (context - 1) / CUDA_SPLIT - first / CUDA_SPLIT + 1;
}

static bool is_single(const qr_batch *b, int32_t seq)
{
    return b->seq_start[seq + 1] - b->seq_start[seq] == 1 && b->context_len[seq] > 0;
}

/* Decode tasks of a group: the splits of every sequence with one row. */
static void put_tasks(fact_writer *w, const qr_batch *b, int group, int32_t window)
{
    int32_t *meta = w->step->host, count = 0;
    meta[CUDA_META_FIRST_TASK + group] = (int32_t)w->used;
    int32_t *first_task = take(w, (size_t)b->n_seqs);
    meta[CUDA_META_TASK_LIST + group] = (int32_t)w->used;
    for (int32_t seq = 0; seq < b->n_seqs; seq++) {
        first_task[seq] = count;
        if (!is_single(b, seq))
            continue;
        int32_t splits = split_count(b->context_len[seq], window), last = (b->context_len[seq] - 1) / CUDA_SPLIT;
        for (int32_t split = last - splits + 1; split <= last; split++, count++) {
            int32_t *task = take(w, 2);
            task[0] = seq;
            task[1] = split;
        }
    }
    meta[CUDA_META_TASKS + group] = count;
}

/* Tiles of the sequences with several rows, the later rows of each last (they are taken from the end). */
static void put_tiles(fact_writer *w, const qr_batch *b, int32_t tile_rows)
{
    cuda_step_view *view = &w->step->view;
    view->prefill_offset = (int32_t)w->used;
    view->prefill_tiles = 0;
    for (int32_t seq = 0; seq < b->n_seqs; seq++) {
        for (int32_t row = b->seq_start[seq]; row < b->seq_start[seq + 1] && !is_single(b, seq); row += tile_rows) {
            int32_t *tile = take(w, 2);
            tile[0] = seq;
            tile[1] = row;
            view->prefill_tiles++;
        }
    }
}

static void put_batch(fact_writer *w, const qr_batch *from)
{
    cuda_step *step = w->step;
    size_t tokens = (size_t)from->n_tokens, seqs = (size_t)from->n_seqs;
    size_t table = seqs * (size_t)from->table_stride;
    qr_batch *b = &step->batch;
    *b = *from;
    take(w, CUDA_META_HEADER);
    b->token_ids = put(w, from->token_ids, tokens);
    b->positions = put(w, from->positions, tokens);
    b->seq_of_row = put(w, from->seq_of_row, tokens);
    b->context_len = put(w, from->context_len, seqs);
    b->seq_start = put(w, from->seq_start, seqs + 1);
    b->logit_rows = put(w, from->logit_rows, (size_t)from->n_logit_rows);
    for (int g = 0; g < from->n_groups; g++) {
        step->host[CUDA_META_TABLE + g] = (int32_t)w->used;
        b->block_table[g] = put(w, from->block_table[g], table);
    }
    step->host[CUDA_META_STRIDE] = from->table_stride;
    step->view = (cuda_step_view){.meta = step->device,
                                  .ids = on_device(step, b->token_ids),
                                  .positions = on_device(step, b->positions),
                                  .seq_of_row = on_device(step, b->seq_of_row),
                                  .context = on_device(step, b->context_len),
                                  .seq_start = on_device(step, b->seq_start),
                                  .logit_rows = on_device(step, b->logit_rows),
                                  .n_tokens = b->n_tokens,
                                  .n_seqs = b->n_seqs};
}

/* What a step may come to, before its facts are gathered. */
static bool has_room(const cuda_step *step, const qr_batch *b)
{
    size_t tasks = 0, room = CUDA_META_HEADER + 5 * (size_t)b->n_tokens + 8 * (size_t)b->n_seqs;
    for (int32_t i = 0; i < b->n_seqs; i++)
        tasks += (size_t)b->context_len[i] / CUDA_SPLIT + 2;
    room += 2 * (size_t)b->n_groups * tasks + (size_t)b->n_groups * (size_t)b->n_seqs * (size_t)b->table_stride;
    return room + 4 * (size_t)b->n_tokens <= step->capacity;
}

/* Longer tables than ever before: rare, and never within a graph. */
static void grow(cuda_device *device, const qr_batch *b)
{
    cuda_step *step = &device->step;
    while (!has_room(step, b) && device->error == cudaSuccess) {
        size_t capacity = 2 * step->capacity;
        int32_t *host = NULL;
        if (!cuda_check(device, cudaHostAlloc((void **)&host, capacity * sizeof(int32_t), cudaHostAllocDefault), "step"))
            return;
        cudaFreeHost(step->host);
        step->host = host;
        step->device = cuda_own(device, capacity * sizeof(int32_t), "step", NULL);
        step->capacity = capacity;
        if (step->device == NULL)
            cuda_check(device, cudaErrorMemoryAllocation, "step");
    }
}

const qr_batch *cuda_step_batch(qr_device *base, qr_kv *kv, const qr_batch *from)
{
    cuda_device *device = cuda_of(base);
    if (kv == NULL) { /* planning */
        device->step.rows_max = QR_MAX(device->step.rows_max, from->n_tokens);
        return from;
    }
    grow(device, from);
    fact_writer w = {.step = &device->step};
    put_batch(&w, from);
    const qr_batch *b = &device->step.batch;
    int32_t windows[QR_KV_GROUPS_MAX] = {0};
    int groups = qr_kv_groups(kv->specs, kv->n_layers, windows);
    for (int g = 0; g < groups; g++)
        put_tasks(&w, b, g, windows[g]);
    int32_t heads = QR_MAX(device->n_heads / kv->specs[0].n_kv_heads, 1);
    put_tiles(&w, b, QR_MAX(CUDA_PREFILL_ROWS / heads, 1));
    device->step.view.has_decode = false;
    for (int32_t seq = 0; seq < b->n_seqs; seq++)
        device->step.view.has_decode = device->step.view.has_decode || is_single(b, seq);
    device->step.used = w.used;
    return b;
}

void cuda_step_begin(qr_device *base, qr_kv *kv, const qr_batch *batch)
{
    (void)kv;
    (void)batch;
    cuda_device *device = cuda_of(base);
    cuda_step *step = &device->step;
    cudaSetDevice(device->ordinal);
    cuda_check(device,
               cudaMemcpyAsync(step->device, step->host, step->used * sizeof(int32_t), cudaMemcpyHostToDevice,
                               device->stream),
               "step");
}

qr_status cuda_step_end(qr_device *base, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    cuda_check(device, cudaStreamSynchronize(device->stream), "step");
    if (device->error == cudaSuccess)
        return QR_OK;
    return cuda_fail(device, QR_DEVICE_FAILED, device->error, device->error_op, err);
}
