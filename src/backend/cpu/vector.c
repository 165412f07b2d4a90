/* The row ops: each shares rows out to the pool in chunks, or runs in the caller when the work is tiny. */
#include "backend/cpu/vector.h"

#include <math.h>
#include <string.h>

#include "backend/cpu/linear.h"
#include "base/assert.h"
#include "base/mem.h"

/* Floats that a chunk should touch at least: some 3 us, more than what a wake-up costs. */
enum { CHUNK_FLOATS = 16384 };

const cpu_vector_kernels *cpu_vector_for(cpu_isa isa)
{
    switch (isa) {
    case CPU_ISA_AVX512: return &cpu_vector_avx512;
    case CPU_ISA_AVX2: return &cpu_vector_avx2;
    case CPU_ISA_GENERIC: break;
    }
    return &cpu_vector_generic;
}

/* The arguments of any row op. */
typedef struct rows_job {
    cpu_device *device;
    const cpu_vector_kernels *kernels;
    void (*run)(const struct rows_job *job, int64_t row);
    int64_t rows, chunk_rows;
    qr_tensor x, y, z;
    const float *w;
    float eps;
    int32_t head_dim;
    const void *table;  /* weight, or the cosine rows of rope */
    const int32_t *ids; /* or positions, or row numbers */
    void (*act)(float *gate, const float *up, int64_t n);
    void (*head)(float *x, const float *cs, int32_t rotary);
    int32_t rotary;
} rows_job;

static inline float *row_of(qr_tensor x, int64_t row) { return (float *)x.data + row * x.row_stride; }

static void rows_chunk(void *arg, int64_t chunk, int worker)
{
    (void)worker;
    const rows_job *job = arg;
    int64_t end = QR_MIN(job->rows, (chunk + 1) * job->chunk_rows);
    for (int64_t row = chunk * job->chunk_rows; row < end; row++)
        job->run(job, row);
}

static void run_rows(rows_job *job, int64_t rows, int64_t cols)
{
    job->kernels = job->device->vector;
    job->rows = rows;
    job->chunk_rows = QR_MAX(1, CHUNK_FLOATS / QR_MAX(cols, (int64_t)1));
    int64_t chunks = (rows + job->chunk_rows - 1) / job->chunk_rows;
    if (chunks > 1)
        cpu_pool_run(job->device->pool, chunks, rows_chunk, job);
    else
        for (int64_t row = 0; row < rows; row++)
            job->run(job, row);
}

static void run_embed(const rows_job *job, int64_t row)
{
    const qr_weight *table = job->table;
    int64_t id = job->ids[row] - table->row_begin;
    if (id >= 0 && id < table->rows)
        cpu_weight_row(job->device, table, id, row_of(job->y, row));
    else
        memset(row_of(job->y, row), 0, (size_t)job->y.cols * sizeof(float));
}

void cpu_embed(qr_device *device, const qr_weight *table, const int32_t *ids, qr_tensor y)
{
    rows_job job = {.device = (cpu_device *)device, .run = run_embed, .table = table, .ids = ids, .y = y};
    run_rows(&job, y.rows, y.cols);
}

static void run_rmsnorm(const rows_job *job, int64_t row)
{
    job->kernels->rmsnorm(row_of(job->x, row), job->w, job->eps, job->x.cols, row_of(job->y, row));
}

void cpu_rmsnorm(qr_device *device, qr_tensor x, const float *w, float eps, qr_tensor y)
{
    rows_job job = {.device = (cpu_device *)device, .run = run_rmsnorm, .x = x, .y = y, .w = w, .eps = eps};
    run_rows(&job, x.rows, x.cols);
}

static void run_add(const rows_job *job, int64_t row)
{
    job->kernels->add(row_of(job->x, row), row_of(job->y, row), job->x.cols);
}

void cpu_add(qr_device *device, qr_tensor x, qr_tensor y)
{
    rows_job job = {.device = (cpu_device *)device, .run = run_add, .x = x, .y = y};
    run_rows(&job, x.rows, x.cols);
}

static void run_add_rmsnorm(const rows_job *job, int64_t row)
{
    job->kernels->add_rmsnorm(row_of(job->x, row), row_of(job->y, row), job->w, job->eps, job->x.cols,
                              row_of(job->z, row));
}

void cpu_add_rmsnorm(qr_device *device, qr_tensor x, qr_tensor delta, const float *w, float eps, qr_tensor y)
{
    rows_job job = {.device = (cpu_device *)device,
                    .run = run_add_rmsnorm,
                    .x = x,
                    .y = delta,
                    .z = y,
                    .w = w,
                    .eps = eps};
    run_rows(&job, x.rows, x.cols);
}

static void run_act_mul(const rows_job *job, int64_t row)
{
    job->act(row_of(job->x, row), row_of(job->y, row), job->x.cols);
}

void cpu_act_mul(qr_device *device, qr_tensor gate, qr_tensor up, qr_activation activation)
{
    const cpu_vector_kernels *kernels = ((cpu_device *)device)->vector;
    rows_job job = {.device = (cpu_device *)device, .run = run_act_mul, .x = gate, .y = up};
    switch (activation) {
    case QR_ACT_SILU: job.act = kernels->silu_mul; break;
    case QR_ACT_GELU: job.act = kernels->gelu_mul; break;
    case QR_ACT_GELU_TANH: job.act = kernels->gelu_tanh_mul; break;
    }
    run_rows(&job, gate.rows, gate.cols);
}

static void run_head_norm(const rows_job *job, int64_t row)
{
    float *x = row_of(job->x, row);
    for (int64_t col = 0; col < job->x.cols; col += job->head_dim)
        job->kernels->rmsnorm(x + col, job->w, job->eps, job->head_dim, x + col);
}

void cpu_head_norm(qr_device *device, qr_tensor x, int32_t head_dim, const float *w, float eps)
{
    rows_job job = {.device = (cpu_device *)device,
                    .run = run_head_norm,
                    .x = x,
                    .w = w,
                    .eps = eps,
                    .head_dim = head_dim};
    run_rows(&job, x.rows, x.cols);
}

static void run_gather(const rows_job *job, int64_t row)
{
    memcpy(row_of(job->y, row), row_of(job->x, job->ids[row]), (size_t)job->x.cols * sizeof(float));
}

void cpu_gather(qr_device *device, qr_tensor x, const int32_t *rows, qr_tensor y)
{
    rows_job job = {.device = (cpu_device *)device, .run = run_gather, .x = x, .y = y, .ids = rows};
    run_rows(&job, y.rows, y.cols);
}

/* ---- Rope: cosines and sines by position, filled in when a position is first met ---- */

typedef struct rope_cache {
    float *rows; /* [positions][rotary]: rotary/2 cosines, rotary/2 sines; untouched pages take no memory */
    uint8_t *filled; /* [positions] */
    int64_t positions;
    size_t row_bytes, filled_bytes;
} rope_cache;

qr_status cpu_rope_prepare(qr_device *device, qr_rope_table *table, int64_t positions, qr_error *err)
{
    (void)device;
    rope_cache *cache = qr_calloc(1, sizeof(*cache));
    size_t row = (size_t)table->rotary_dim * sizeof(float);
    cache->positions = positions;
    cache->filled_bytes = (size_t)positions;
    if (qr_size_mul(row, (size_t)positions, &cache->row_bytes)) {
        cache->rows = qr_pages_map(cache->row_bytes, false);
        cache->filled = qr_pages_map(cache->filled_bytes, false);
    }
    table->prepared = cache;
    if (cache->rows == NULL || cache->filled == NULL) {
        cpu_rope_release(device, table);
        return qr_fail(err, QR_OUT_OF_MEMORY, "rope: %lld positions x %zu bytes: no memory",
                       (long long)positions, row);
    }
    return QR_OK;
}

void cpu_rope_release(qr_device *device, qr_rope_table *table)
{
    (void)device;
    rope_cache *cache = table->prepared;
    if (cache == NULL)
        return;
    if (cache->rows != NULL)
        qr_pages_unmap(cache->rows, cache->row_bytes);
    if (cache->filled != NULL)
        qr_pages_unmap(cache->filled, cache->filled_bytes);
    qr_free(cache);
    table->prepared = NULL;
}

/* Angles in double: a float product is off by 0.004 at position 131,072. */
static void rope_fill(const qr_rope_table *table, rope_cache *cache, int64_t position)
{
    int32_t half = table->rotary_dim / 2;
    float *row = cache->rows + position * table->rotary_dim;
    for (int32_t i = 0; i < half; i++) {
        double sine = 0, cosine = 0;
        sincos((double)position * (double)table->inv_freq[i], &sine, &cosine);
        row[i] = (float)cosine * table->scale;
        row[half + i] = (float)sine * table->scale;
    }
    cache->filled[position] = 1;
}

static void run_rope(const rows_job *job, int64_t row)
{
    float *x = row_of(job->x, row);
    const float *cs = (const float *)job->table + (int64_t)job->ids[row] * job->rotary;
    for (int64_t col = 0; col < job->x.cols; col += job->head_dim)
        job->head(x + col, cs, job->rotary);
}

void cpu_rope(qr_device *device, qr_tensor x, int32_t head_dim, const qr_rope_table *table,
              const int32_t *positions)
{
    rope_cache *cache = table->prepared;
    QR_ASSERT(cache != NULL);
    for (int64_t row = 0; row < x.rows; row++) {
        QR_ASSERT(positions[row] >= 0 && positions[row] < cache->positions);
        if (!cache->filled[positions[row]])
            rope_fill(table, cache, positions[row]);
    }
    const cpu_vector_kernels *kernels = ((cpu_device *)device)->vector;
    rows_job job = {.device = (cpu_device *)device,
                    .run = run_rope,
                    .x = x,
                    .head_dim = head_dim,
                    .table = cache->rows,
                    .ids = positions,
                    .head = table->interleaved ? kernels->rope_pairs : kernels->rope_halves,
                    .rotary = table->rotary_dim};
    run_rows(&job, x.rows, x.cols);
}
