#include "backend/cpu/kv.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

enum {
    STORE_ROWS = 16, /* a slice that is converted at once, on the stack */
    STORE_COLS = 64,
    RUN_TOKENS = 256
};

static const cpu_vector_kernels *kernels_of(const cpu_device *device, int32_t block_size)
{
    /* 16 lanes do not divide a block of 8 or 24 keys; the AVX2 kernels' 8 do. */
    return block_size % device->vector->key_lanes == 0 ? device->vector : &cpu_vector_avx2;
}

/* One mapping for all layers; the last run is rounded up, and its unused blocks are never touched. */
static qr_status map_runs(cpu_pages *pages, qr_error *err)
{
    qr_kv *kv = &pages->base.base;
    while ((2 << pages->run_shift) * kv->block_size <= RUN_TOKENS)
        pages->run_shift++;
    size_t runs = ((size_t)kv->n_blocks + ((size_t)1 << pages->run_shift) - 1) >> pages->run_shift;
    size_t block = qr_kv_block_bytes(kv->specs, kv->n_layers, kv->block_size, kv->dtype);
    pages->run_bytes = block << pages->run_shift;
    if (qr_size_mul(pages->run_bytes, runs, &pages->memory_bytes))
        pages->memory = qr_pages_map(pages->memory_bytes, true);
    if (pages->memory == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "kv cache: %d blocks of %zu bytes: no memory", kv->n_blocks,
                       block);
    char *at = pages->memory;
    for (int i = 0; i < kv->n_layers; i++) {
        pages->base.pages[i] = at;
        pages->base.page_bytes[i] = qr_kv_block_bytes(&kv->specs[i], 1, kv->block_size, kv->dtype)
                                    << pages->run_shift;
        at += pages->base.page_bytes[i];
    }
    return QR_OK;
}

qr_status cpu_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                      int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err)
{
    QR_ASSERT(dtype == QR_DTYPE_F32 || dtype == QR_DTYPE_F16 || dtype == QR_DTYPE_BF16);
    int32_t windows[QR_KV_GROUPS_MAX] = {0};
    int n_groups = qr_kv_groups(specs, n_layers, windows);
    QR_ASSERT(n_groups > 0);
    qr_kv_spec *own_specs = qr_calloc((size_t)n_layers, sizeof(*own_specs));
    memcpy(own_specs, specs, (size_t)n_layers * sizeof(*specs));
    uint8_t *group = qr_calloc((size_t)n_layers, 1);
    for (int i = 0; i < n_layers; i++)
        while (windows[group[i]] != specs[i].window)
            group[i]++;
    cpu_pages *pages = qr_calloc(1, sizeof(*pages));
    pages->base.base = (qr_kv){.device = device,
                               .n_layers = n_layers,
                               .n_groups = n_groups,
                               .specs = own_specs,
                               .group = group,
                               .n_blocks = n_blocks,
                               .block_size = block_size,
                               .dtype = dtype};
    pages->base.pages = qr_calloc((size_t)n_layers, sizeof(void *));
    pages->base.page_bytes = qr_calloc((size_t)n_layers, sizeof(size_t));
    pages->kernels = kernels_of((cpu_device *)device, block_size);
    pages->item_bytes = qr_dtype_bytes(dtype);
    qr_status status = map_runs(pages, err);
    if (status != QR_OK) {
        cpu_kv_close(&pages->base.base);
        return status;
    }
    *out = &pages->base.base;
    return QR_OK;
}

void cpu_kv_close(qr_kv *kv)
{
    cpu_pages *pages = (cpu_pages *)kv;
    if (pages->memory != NULL)
        qr_pages_unmap(pages->memory, pages->memory_bytes);
    qr_free(pages->base.pages);
    qr_free(pages->base.page_bytes);
    qr_free((void *)kv->specs);
    qr_free((void *)kv->group);
    qr_free(pages);
}

/* ---- Storing ---- */

typedef struct store_job {
    const cpu_pages *pages;
    const qr_batch *batch;
    int layer;
    qr_tensor k, v;
    int64_t chunk_rows;
} store_job;

/* Up to STORE_COLS floats in the cache's type. */
static void convert(const cpu_pages *pages, const float *x, void *y, int64_t n)
{
    switch (pages->base.base.dtype) {
    case QR_DTYPE_F16: pages->kernels->to_f16(x, y, n); break;
    case QR_DTYPE_BF16: pages->kernels->to_bf16(x, y, n); break;
    default: memcpy(y, x, (size_t)n * sizeof(float)); break;
    }
}

/* Transposes [count][STORE_COLS] into the lanes from `lane` on. */
static void scatter16(const uint16_t *x, int64_t count, int64_t cols, uint16_t *y, int64_t lanes)
{
    for (int64_t d = 0; d < cols; d++)
        for (int64_t j = 0; j < count; j++)
            y[d * lanes + j] = x[j * STORE_COLS + d];
}

static void scatter32(const float *x, int64_t count, int64_t cols, float *y, int64_t lanes)
{
    for (int64_t d = 0; d < cols; d++)
        for (int64_t j = 0; j < count; j++)
            y[d * lanes + j] = x[j * STORE_COLS + d];
}

/* K of `count` rows that share a key group, one head. */
static void store_keys(const store_job *job, int64_t row, int64_t count, int64_t head, int64_t block,
                       int64_t slot)
{
    const cpu_pages *pages = job->pages;
    int64_t dim = pages->base.base.specs[job->layer].head_dim, lanes = pages->kernels->key_lanes;
    char *page = cpu_pages_head(pages, job->layer, block, head, false);
    for (int64_t d = 0; d < dim; d += STORE_COLS) {
        float slice[STORE_ROWS * STORE_COLS];
        int64_t cols = QR_MIN((int64_t)STORE_COLS, dim - d);
        for (int64_t j = 0; j < count; j++)
            convert(pages, (const float *)job->k.data + (row + j) * job->k.row_stride + head * dim + d,
                    (char *)slice + (size_t)(j * STORE_COLS) * pages->item_bytes, cols);
        int64_t at = (slot / lanes * dim + d) * lanes + slot % lanes;
        if (pages->item_bytes == 2)
            scatter16((const uint16_t *)(const void *)slice, count, cols, (uint16_t *)(void *)page + at,
                      lanes);
        else
            scatter32(slice, count, cols, (float *)(void *)page + at, lanes);
    }
}

static void store_values(const store_job *job, int64_t row, int64_t count, int64_t head, int64_t block,
                         int64_t slot)
{
    const cpu_pages *pages = job->pages;
    int64_t dim = pages->base.base.specs[job->layer].head_dim;
    char *page =
        cpu_pages_head(pages, job->layer, block, head, true) + (size_t)(slot * dim) * pages->item_bytes;
    for (int64_t j = 0; j < count; j++)
        convert(pages, (const float *)job->v.data + (row + j) * job->v.row_stride + head * dim,
                page + (size_t)(j * dim) * pages->item_bytes, dim);
}

/* Rows of one sequence in runs that stay within a key group. */
static void store_chunk(void *arg, int64_t chunk, int worker)
{
    (void)worker;
    const store_job *job = arg;
    const qr_batch *batch = job->batch;
    const qr_kv *kv = &job->pages->base.base;
    const int32_t *table = batch->block_table[kv->group[job->layer]];
    int64_t lanes = job->pages->kernels->key_lanes, heads = kv->specs[job->layer].n_kv_heads;
    int64_t end = QR_MIN((int64_t)batch->n_tokens, (chunk + 1) * job->chunk_rows);
    for (int64_t row = chunk * job->chunk_rows, count; row < end; row += count) {
        int64_t seq = batch->seq_of_row[row], position = batch->positions[row];
        count = QR_MIN(QR_MIN(end, (int64_t)batch->seq_start[seq + 1]) - row, lanes - position % lanes);
        int64_t block = table[seq * batch->table_stride + position / kv->block_size];
        QR_ASSERT(block >= 0 && block < kv->n_blocks);
        for (int64_t head = 0; head < heads; head++) {
            store_keys(job, row, count, head, block, position % kv->block_size);
            store_values(job, row, count, head, block, position % kv->block_size);
        }
    }
}

/* Moves the rows once: read F32, written in the cache's type; the transposition is what costs (some 2 ns a value). */
void cpu_kv_store(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor k, qr_tensor v)
{
    store_job job = {.pages = (cpu_pages *)kv, .batch = batch, .layer = layer, .k = k, .v = v};
    job.chunk_rows = QR_MAX(STORE_ROWS, QR_ROUND_UP(8192 / QR_MAX(k.cols, (int64_t)1), STORE_ROWS));
    int64_t chunks = (batch->n_tokens + job.chunk_rows - 1) / job.chunk_rows;
    if (chunks > 1)
        cpu_pool_run(((cpu_device *)device)->pool, chunks, store_chunk, &job);
    else
        store_chunk(&job, 0, 0);
}
