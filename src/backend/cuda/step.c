/* A step's facts: the batch and what attention has to do, gathered in pinned memory and copied at once. */
#include "backend/cuda/cuda.h"

#include <stddef.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

static cudaError_t open_slot(cuda_slot *slot, size_t facts_bytes)
{
    cudaError_t error = cudaHostAlloc((void **)&slot->facts, facts_bytes, cudaHostAllocDefault);
    if (error == cudaSuccess)
        error =
            cudaHostAlloc((void **)&slot->draws, CUDA_DRAWS_MAX * sizeof(cuda_draw), cudaHostAllocDefault);
    if (error == cudaSuccess)
        error =
            cudaHostAlloc((void **)&slot->edits, CUDA_EDITS_MAX * sizeof(cuda_edit), cudaHostAllocDefault);
    if (error == cudaSuccess)
        error = cudaHostAlloc((void **)&slot->results, sizeof(cuda_results), cudaHostAllocDefault);
    if (error == cudaSuccess)
        error = cudaEventCreateWithFlags(&slot->done, cudaEventDisableTiming);
    slot->host_rows = qr_calloc(CUDA_DRAWS_MAX, sizeof(int32_t));
    return error;
}

static void close_slot(cuda_slot *slot)
{
    void *const pinned[] = {slot->facts, slot->draws, slot->edits, slot->results, slot->host_logits};
    for (size_t i = 0; i < QR_COUNT_OF(pinned); i++)
        if (pinned[i] != NULL)
            cudaFreeHost(pinned[i]);
    if (slot->done != NULL)
        cudaEventDestroy(slot->done);
    qr_free(slot->host_rows);
    *slot = (cuda_slot){0};
}

qr_status cuda_step_open(cuda_device *device, qr_error *err)
{
    cuda_step *step = &device->step;
    size_t bytes = (size_t)CUDA_META_ROOM * sizeof(int32_t);
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cudaError_t error = open_slot(&step->slots[i], bytes);
        if (error != cudaSuccess)
            return cuda_fail(device, QR_OUT_OF_MEMORY, error, "pinned memory", err);
    }
    step->device = cuda_own(device, bytes, "step", err);
    step->capacity = CUDA_META_ROOM;
    return step->device != NULL ? QR_OK : QR_OUT_OF_MEMORY;
}

void cuda_step_close(cuda_device *device)
{
    cuda_graphs_forget(device);
    for (int i = 0; i < CUDA_SLOTS; i++)
        close_slot(&device->step.slots[i]);
}

/* ---- Gathering ---- */

typedef struct fact_writer {
    cuda_step *step;
    cuda_results *results;
    size_t used;
} fact_writer;

static int32_t *take(fact_writer *w, size_t count)
{
    QR_ASSERT(count <= w->step->capacity - w->used);
    int32_t *at = w->step->host + w->used;
    w->used += count;
    return at;
}

/* `count` numbers, filled up to `room` with next, next + step, ... */
static const int32_t *put(fact_writer *w, const int32_t *from, size_t count, size_t room, int32_t next,
                          int32_t step)
{
    int32_t *to = take(w, room);
    if (count > 0)
        memcpy(to, from, count * sizeof(int32_t));
    for (size_t i = count; i < room; i++, next += step)
        to[i] = next;
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

/* What fills a batch up has no context: neither kind. */
static bool is_single(const qr_batch *b, int32_t seq)
{
    return b->seq_start[seq + 1] - b->seq_start[seq] == 1 && b->context_len[seq] > 0;
}

static bool is_several(const qr_batch *b, int32_t seq)
{
    return b->seq_start[seq + 1] - b->seq_start[seq] > 1;
}

typedef struct decode_share { /* how many splits of a group a block comes to */
    int32_t total, each;
} decode_share;

static decode_share share_of(const cuda_device *device, const qr_batch *b, int32_t window, int32_t kv_heads)
{
    decode_share share = {0};
    for (int32_t seq = 0; seq < b->n_seqs; seq++)
        share.total += is_single(b, seq) ? split_count(b->context_len[seq], window) : 0;
    share.each = (int32_t)((int64_t)share.total * kv_heads / (2 * device->sm_count));
    return share;
}

static void put_task(fact_writer *w, int32_t seq, int32_t split, int32_t splits, int32_t partial)
{
    memcpy(take(w, 4), (int32_t[]){seq, split, splits, partial}, 4 * sizeof(int32_t));
}

/* Decode tasks of a group. Short sequences are done whole, first, as long as the splits of the others are enough to
 * even out the blocks at the end; so are those for whose partial results there is no room. */
static void put_tasks(const cuda_device *device, fact_writer *w, const qr_batch *b, int group,
                      const qr_kv_spec *spec)
{
    int32_t *meta = w->step->host, tasks = 0, merges = 0, partials = 0, done = 0;
    decode_share share = share_of(device, b, spec->window, spec->n_kv_heads);
    meta[CUDA_META_MERGE_LIST + group] = (int32_t)w->used;
    int32_t *merge = take(w, 3 * (size_t)b->n_seqs);
    meta[CUDA_META_TASK_LIST + group] = (int32_t)w->used;
    for (int32_t seq = 0; seq < b->n_seqs; seq++) {
        if (!is_single(b, seq))
            continue;
        int32_t splits = split_count(b->context_len[seq], spec->window);
        int32_t first = (b->context_len[seq] - 1) / CUDA_SPLIT - splits + 1;
        bool short_one = splits <= share.each / 4 && done + splits <= share.total - share.total / 8;
        if (splits == 1 || short_one || partials + splits > CUDA_PARTIALS_MAX) {
            put_task(w, seq, first, splits, -1);
            tasks++;
            done += splits;
            continue;
        }
        memcpy(merge + 3 * merges++, (int32_t[]){seq, partials, splits}, 3 * sizeof(int32_t));
        partials += splits;
    }
    for (int32_t i = 0; i < merges; i++) {
        int32_t seq = merge[3 * i], splits = merge[3 * i + 2];
        int32_t first = (b->context_len[seq] - 1) / CUDA_SPLIT - splits + 1;
        for (int32_t k = 0; k < splits; k++, tasks++)
            put_task(w, seq, first + k, 1, merge[3 * i + 1] + k);
    }
    meta[CUDA_META_TASKS + group] = tasks;
    meta[CUDA_META_MERGES + group] = merges;
}

/* Tiles of the sequences with several rows, the later rows of each last (they are taken from the end). */
static void put_tiles(fact_writer *w, const qr_batch *b, int32_t tile_rows)
{
    cuda_step_view *view = &w->step->view;
    view->prefill_offset = (int32_t)w->used;
    view->prefill_tiles = 0;
    for (int32_t seq = 0; seq < b->n_seqs; seq++) {
        for (int32_t row = b->seq_start[seq]; row < b->seq_start[seq + 1] && is_several(b, seq);
             row += tile_rows) {
            int32_t *tile = take(w, 2);
            tile[0] = seq;
            tile[1] = row;
            view->prefill_tiles++;
        }
    }
}

/* `rows` rows and sequences where the batch has fewer: the rest have no context and no block. */
static void put_batch(fact_writer *w, const qr_batch *from, int32_t rows)
{
    cuda_step *step = w->step;
    size_t tokens = (size_t)QR_MAX(from->n_tokens, rows), seqs = (size_t)QR_MAX(from->n_seqs, rows);
    size_t logits = (size_t)QR_MAX(from->n_logit_rows, rows), stride = (size_t)from->table_stride;
    qr_batch *b = &step->batch;
    *b = *from;
    b->n_tokens = (int32_t)tokens;
    b->n_seqs = (int32_t)seqs;
    b->n_logit_rows = (int32_t)logits;
    memset(take(w, CUDA_META_HEADER), 0, CUDA_META_HEADER * sizeof(int32_t));
    b->token_ids = put(w, from->token_ids, (size_t)from->n_tokens, tokens, 0, 0);
    b->source_row =
        put(w, from->source_row, from->source_row != NULL ? (size_t)from->n_tokens : 0, tokens, -1, 0);
    b->positions = put(w, from->positions, (size_t)from->n_tokens, tokens, 0, 0);
    b->seq_of_row = put(w, from->seq_of_row, (size_t)from->n_tokens, tokens, from->n_seqs, 1);
    b->context_len = put(w, from->context_len, (size_t)from->n_seqs, seqs, 0, 0);
    b->seq_start = put(w, from->seq_start, (size_t)from->n_seqs + 1, seqs + 1, from->n_tokens + 1, 1);
    b->logit_rows = put(w, from->logit_rows, (size_t)from->n_logit_rows, logits, from->n_logit_rows, 1);
    for (int g = 0; g < from->n_groups; g++) {
        step->host[CUDA_META_TABLE + g] = (int32_t)w->used;
        b->block_table[g] = put(w, from->block_table[g], (size_t)from->n_seqs * stride, seqs * stride, -1, 0);
    }
    step->host[CUDA_META_STRIDE] = from->table_stride;
    step->view = (cuda_step_view){.meta = step->device,
                                  .ids = on_device(step, b->token_ids),
                                  .source = on_device(step, b->source_row),
                                  .results = w->results,
                                  .positions = on_device(step, b->positions),
                                  .seq_of_row = on_device(step, b->seq_of_row),
                                  .context = on_device(step, b->context_len),
                                  .seq_start = on_device(step, b->seq_start),
                                  .logit_rows = on_device(step, b->logit_rows),
                                  .n_tokens = b->n_tokens,
                                  .n_seqs = b->n_seqs};
}

/* What a step may come to, before its facts are gathered. */
static bool has_room(const cuda_step *step, const qr_batch *b, int32_t padded)
{
    size_t seqs = (size_t)QR_MAX(b->n_seqs, padded), tokens = (size_t)QR_MAX(b->n_tokens, padded);
    size_t tasks = 0, room = CUDA_META_HEADER + 10 * tokens + 14 * seqs;
    for (int32_t i = 0; i < b->n_seqs; i++)
        tasks += (size_t)b->context_len[i] / CUDA_SPLIT + 2;
    room += 4 * (size_t)b->n_groups * tasks + (size_t)b->n_groups * seqs * (size_t)b->table_stride;
    return room <= step->capacity;
}

/* Longer tables than ever before: rare. */
static void grow(cuda_device *device, const qr_batch *b, int32_t padded)
{
    cuda_step *step = &device->step;
    while (!has_room(step, b, padded) && device->error == cudaSuccess) {
        size_t capacity = 2 * step->capacity;
        cuda_graphs_forget(device); /* waits for the device, too */
        for (int i = 0; i < CUDA_SLOTS; i++) {
            int32_t *facts = NULL;
            if (!cuda_check(device,
                            cudaHostAlloc((void **)&facts, capacity * sizeof(int32_t), cudaHostAllocDefault),
                            "step"))
                return;
            cudaFreeHost(step->slots[i].facts);
            step->slots[i].facts = facts;
        }
        step->host = cuda_slot_made(device)->facts;
        step->device = cuda_own(device, capacity * sizeof(int32_t), "step", NULL);
        step->capacity = capacity;
        if (step->device == NULL)
            cuda_check(device, cudaErrorMemoryAllocation, "step");
    }
}

/* ---- Recorded steps: one per number of rows, for steps in which every sequence has one row that is drawn for ---- */

/* 1, 2, 4, 8, by 8 to 64, by 16 to 256, by 32 to 1024. */
static int32_t padded_rows(int32_t rows)
{
    if (rows > 4)
        return QR_ROUND_UP(rows, rows <= 64 ? 8 : rows <= 256 ? 16 : 32);
    return rows <= 2 ? rows : 4;
}

/* Which recording serves so many padded rows. */
static int bucket_of(int32_t padded)
{
    return padded <= 4     ? padded / 2
           : padded <= 64  ? 2 + padded / 8
           : padded <= 256 ? 6 + padded / 16
                           : 14 + padded / 32;
}

static bool can_replay(const cuda_step *step, const qr_batch *b, int32_t *padded)
{
    if (b->n_seqs != b->n_tokens || b->n_logit_rows != b->n_tokens || b->n_tokens > CUDA_GRAPH_ROWS)
        return false;
    *padded = padded_rows(b->n_tokens);
    return *padded <= step->rows_max;
}

void cuda_graphs_forget(cuda_device *device)
{
    if (device->stream != NULL)
        cudaStreamSynchronize(device->stream);
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        if (device->step.graphs[i] != NULL)
            cudaGraphExecDestroy(device->step.graphs[i]);
        device->step.graphs[i] = NULL;
    }
}

/* ---- A step ---- */

static const qr_kv_spec *spec_of_group(const qr_kv *kv, int group)
{
    int layer = 0;
    while (kv->group[layer] != group)
        layer++;
    return &kv->specs[layer];
}

const qr_batch *cuda_step_batch(qr_device *base, qr_kv *kv, const qr_batch *from, bool only_draws)
{
    cuda_device *device = cuda_of(base);
    cuda_step *step = &device->step;
    if (kv == NULL) { /* planning */
        step->rows_max = QR_MAX(step->rows_max, from->n_tokens);
        return from;
    }
    QR_ASSERT(step->launched - step->waited < CUDA_SLOTS);
    cuda_slot *slot = cuda_slot_made(device);
    step->host = slot->facts;
    int32_t padded = 0;
    bool replay = only_draws && can_replay(step, from, &padded);
    grow(device, from, padded);
    fact_writer w = {.step = step, .results = device->draws.results};
    put_batch(&w, from, replay ? padded : 0);
    const qr_batch *b = &step->batch;
    for (int g = 0; g < kv->n_groups; g++)
        put_tasks(device, &w, b, g, spec_of_group(kv, g));
    int32_t heads = QR_MAX(device->n_heads / kv->specs[0].n_kv_heads, 1);
    put_tiles(&w, b, QR_MAX(CUDA_PREFILL_ROWS / heads, 1));
    step->view.has_decode = step->host[CUDA_META_TASKS] > 0;
    step->used = w.used;
    step->bucket = replay ? bucket_of(padded) : -1;
    step->mode = !replay                              ? CUDA_MODE_EAGER
                 : step->graphs[step->bucket] != NULL ? CUDA_MODE_REPLAY
                                                      : CUDA_MODE_RECORD;
    slot->host_count = slot->host_copied = slot->edit_count = 0;
    device->draws.total = 0;
    return b;
}

static void upload_facts(cuda_device *device)
{
    cuda_step *step = &device->step;
    cuda_check(device,
               cudaMemcpyAsync(step->device, step->host, step->used * sizeof(int32_t), cudaMemcpyHostToDevice,
                               device->stream),
               "step");
}

void cuda_step_begin(qr_device *base, qr_kv *kv, const qr_batch *batch)
{
    (void)kv;
    (void)batch;
    cuda_device *device = cuda_of(base);
    if (device->error != cudaSuccess)
        return;
    cuda_check(device, cudaSetDevice(device->ordinal), "step");
    if (device->step.mode == CUDA_MODE_RECORD)
        cuda_check(device, cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal),
                   "recording");
    else
        upload_facts(device);
}

static void end_recording(cuda_device *device)
{
    cudaGraph_t graph = NULL;
    cudaError_t error = cudaStreamEndCapture(device->stream, &graph);
    if (cuda_check(device, error, "recording") && device->error == cudaSuccess) {
        cuda_check(device, cudaGraphInstantiate(&device->step.graphs[device->step.bucket], graph, 0),
                   "recording");
        device->step.graph_logits[device->step.bucket] = device->draws.logits;
    }
    if (graph != NULL)
        cudaGraphDestroy(graph);
    if (device->error == cudaSuccess)
        upload_facts(device);
}

static qr_status failure_of(const cuda_device *device, qr_error *err)
{
    if (device->error != cudaSuccess)
        return cuda_fail(device, QR_DEVICE_FAILED, device->error, device->error_op, err);
    return cuda_group_status(device, err);
}

/* One small copy: when the step ran, and the tokens that it drew. */
static void fetch_results(cuda_device *device, cuda_slot *slot)
{
    const cuda_draws *d = &device->draws;
    if (d->total == 0)
        cuda_check(device, cuda_launch_stamp(device->stream, d->results), "step");
    size_t bytes = offsetof(cuda_results, ids) + (size_t)d->total * sizeof(int32_t);
    cuda_check(device,
               cudaMemcpyAsync(slot->results, d->results, bytes, cudaMemcpyDeviceToHost, device->stream),
               "step");
    cuda_check(device, cudaEventRecord(slot->done, device->stream), "step");
}

qr_status cuda_step_end(qr_device *base, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    cuda_step *step = &device->step;
    if (step->mode == CUDA_MODE_RECORD)
        end_recording(device);
    if (step->mode != CUDA_MODE_EAGER && device->error == cudaSuccess) {
        cuda_draws_upload(device, 0, device->draws.total);
        cuda_edits_upload(device, 0);
        cuda_check(device, cudaGraphLaunch(step->graphs[step->bucket], device->stream), "step");
        cuda_draws_logits(device, step->graph_logits[step->bucket]);
    }
    step->mode = CUDA_MODE_EAGER;
    if (device->error == cudaSuccess)
        fetch_results(device, cuda_slot_made(device));
    step->launched++;
    return failure_of(device, err);
}

qr_status cuda_step_wait(qr_device *base, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    cuda_step *step = &device->step;
    QR_ASSERT(step->waited != step->launched);
    if (device->error == cudaSuccess)
        cuda_check(device, cudaEventSynchronize(step->slots[step->waited % CUDA_SLOTS].done), "step");
    step->waited++;
    return failure_of(device, err);
}

void cuda_fault(qr_device *base)
{
    cuda_device *device = cuda_of(base);
    cuda_check(device, cuda_launch_trap(device->stream), "fault");
}

void cuda_step_times(const qr_device *base, uint64_t *begin_ns, uint64_t *end_ns)
{
    const cuda_results *results = cuda_slot_done((const cuda_device *)base)->results;
    *begin_ns = results->begin_ns;
    *end_ns = results->end_ns;
}
