#include "backend/cpu/linear.h"
#include "backend/cpu/vector.h"

#include <stdatomic.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

const cpu_linear_kernels *cpu_linear_for(cpu_isa isa, bool bf16)
{
    switch (isa) {
    case CPU_ISA_AVX512: return bf16 ? &cpu_linear_avx512_bf16 : &cpu_linear_avx512;
    case CPU_ISA_AVX2: return &cpu_linear_avx2;
    case CPU_ISA_GENERIC: break;
    }
    return &cpu_linear_generic;
}

/* ---- Bringing x into the form that the weights want ---- */

/* Rows that lie a multiple of 4096 bytes apart fall into one cache set: a tile of rows would evict itself. */
static int64_t spread(int64_t bytes)
{
    bytes = QR_ROUND_UP(bytes, 64);
    return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

static int64_t form_row_bytes(cpu_form form, int64_t cols)
{
    switch (form) {
    case CPU_FORM_Q8: return spread(cpu_record_blocks(cols) + cols / CPU_BLOCK * (int64_t)sizeof(cpu_block));
    case CPU_FORM_BF16: return spread(QR_ROUND_UP(cols, 2) * 2);
    default: return spread(cols * 4);
    }
}

size_t cpu_linear_scratch_bytes(const qr_device *device, int64_t rows, int64_t cols)
{
    (void)device;
    /* The two largest forms: gate and up may want different ones at once. */
    int64_t row = form_row_bytes(CPU_FORM_F32, cols) +
                  QR_MAX(form_row_bytes(CPU_FORM_Q8, cols), form_row_bytes(CPU_FORM_BF16, cols));
    return (size_t)rows * (size_t)row;
}

typedef struct convert_job {
    const cpu_linear_kernels *kernels;
    cpu_form form;
    qr_tensor x;
    uint8_t *out;
    int64_t row_bytes, rows_per_chunk;
} convert_job;

static void convert_row(const convert_job *job, int64_t row)
{
    const float *x = (const float *)job->x.data + row * job->x.row_stride;
    uint8_t *out = job->out + row * job->row_bytes;
    if (job->form == CPU_FORM_Q8)
        job->kernels->quantize(x, job->x.cols, out);
    else if (job->form == CPU_FORM_BF16)
        job->kernels->to_bf16(x, job->x.cols, (uint16_t *)out);
    else
        memcpy(out, x, (size_t)job->x.cols * sizeof *x);
}

static void convert_chunk(void *arg, int64_t chunk, int worker)
{
    const convert_job *job = arg;
    (void)worker;
    int64_t end = QR_MIN((chunk + 1) * job->rows_per_chunk, job->x.rows);
    for (int64_t row = chunk * job->rows_per_chunk; row < end; row++)
        convert_row(job, row);
}

/* Values that one thread converts in the time that it takes to share them out. */
enum { CONVERT_CHUNK = 4096 };

static cpu_rows convert(cpu_device *device, cpu_form form, qr_tensor x, void *scratch)
{
    if (form == CPU_FORM_F32 && (x.rows == 1 || x.row_stride % 1024 != 0))
        return (cpu_rows){.data = x.data, .row_bytes = x.row_stride * 4, .cols = x.cols};
    convert_job job = {.kernels = device->linear,
                       .form = form,
                       .x = x,
                       .out = scratch,
                       .row_bytes = form_row_bytes(form, x.cols),
                       .rows_per_chunk = QR_MAX(1, CONVERT_CHUNK / x.cols)};
    cpu_pool_run(device->pool, (x.rows + job.rows_per_chunk - 1) / job.rows_per_chunk, convert_chunk, &job);
    return (cpu_rows){.data = scratch, .row_bytes = job.row_bytes, .cols = x.cols};
}

/* ---- Chunks ---- */

typedef struct linear_part {
    const qr_weight *weight;
    cpu_panels panels;
    cpu_tile_kernel kernel;
    const cpu_rows *x;
    const float *bias;
    qr_tensor y;
} linear_part;

/* Chunks of a worker's own run of panels: it takes them in order from the front, others that have run out take from the
 * back. Front and back share a word. */
enum { RUNS_MAX = 64 };
typedef struct chunk_run {
    _Alignas(64) _Atomic uint64_t ends; /* back << 32 | front */
} chunk_run;

/* A chunk is a run of panels, numbered through all parts, times a run of rows. Reading memory in one long run is worth
 * much: two threads that take every other 70 KB read 33 GB/s here, each its own half 63 (Zen 4, 1.1 MB in all); so
 * each thread has a run of its own, and chunks are only as large as it takes to end together. */
typedef struct linear_job {
    const cpu_vector_kernels *vector;
    int64_t rows, rows_per_chunk, row_chunks;
    int64_t panels, panels_per_chunk;
    int count, runs;
    linear_part part[QR_LINEAR_MAX];
    chunk_run run[RUNS_MAX];
} linear_job;

/* What a panel takes: the memory it comes from or the arithmetic, in rough nanoseconds of one core; good enough to
 * size chunks. */
static double panel_cost_ns(const linear_part *part, int64_t rows)
{
    double bytes = (double)cpu_panel_bytes((cpu_layout)part->weight->layout, part->weight->cols);
    double products = (double)part->weight->cols * CPU_PANEL * (double)rows;
    return QR_MAX(bytes / 30, products / 150);
}

/* Chunks of at least a microsecond; taking one costs a tenth. total_ns: of all panels. Rows are split only where the
 * panels alone are too few. */
static void cut_chunks(linear_job *job, double total_ns, int threads)
{
    int64_t group =
        QR_MIN(cpu_panel_group((cpu_layout)job->part[0].weight->layout), QR_MAX(job->panels / threads, 1));
    double share = QR_MAX(total_ns / (threads * 16), 1000) / total_ns;
    job->panels_per_chunk = QR_ROUND_UP((int64_t)(share * (double)job->panels) + 1, group);
    int64_t chunks = (job->panels + job->panels_per_chunk - 1) / job->panels_per_chunk;
    job->rows_per_chunk = job->rows;
    while (job->rows_per_chunk > 48 && chunks * (job->rows / job->rows_per_chunk) < (int64_t)threads * 4)
        job->rows_per_chunk = (job->rows_per_chunk + 1) / 2;
    job->row_chunks = (job->rows + job->rows_per_chunk - 1) / job->rows_per_chunk;
}

static uint64_t run_ends(uint64_t front, uint64_t back) { return back << 32 | front; }

/* Deals the chunks out and runs them; the task calls take_chunk once. */
static void run_chunks(cpu_pool *pool, linear_job *job, cpu_task task)
{
    int64_t chunks = (job->panels + job->panels_per_chunk - 1) / job->panels_per_chunk * job->row_chunks;
    job->runs = QR_MIN(cpu_pool_threads(pool), RUNS_MAX);
    for (int i = 0; i < job->runs; i++)
        atomic_init(&job->run[i].ends,
                    run_ends((uint64_t)(chunks * i / job->runs), (uint64_t)(chunks * (i + 1) / job->runs)));
    cpu_pool_run(pool, chunks, task, job);
}

/* -1: the run is empty. */
static int64_t take_from(chunk_run *run, bool front)
{
    uint64_t ends = atomic_load_explicit(&run->ends, memory_order_relaxed);
    for (;;) {
        uint64_t first = ends & UINT32_MAX, back = ends >> 32;
        if (first >= back)
            return -1;
        uint64_t left = front ? run_ends(first + 1, back) : run_ends(first, back - 1);
        if (atomic_compare_exchange_weak_explicit(&run->ends, &ends, left, memory_order_relaxed,
                                                  memory_order_relaxed))
            return (int64_t)(front ? first : back - 1);
    }
}

/* Every call of the task finds a chunk: there are as many of them. */
static int64_t take_chunk(linear_job *job, int worker)
{
    int own = worker % job->runs;
    int64_t chunk = take_from(&job->run[own], true);
    for (int i = 1; chunk < 0; i++)
        chunk = take_from(&job->run[(own + i) % job->runs], false);
    return chunk;
}

/* Panels [first, end) of a part and the rows of a chunk; y is not yet set. */
static cpu_tile chunk_tile(const linear_job *job, const linear_part *part, int64_t chunk, int64_t first,
                           int64_t end)
{
    int64_t row0 = chunk % job->row_chunks * job->rows_per_chunk;
    return (cpu_tile){.x = part->x,
                      .row0 = row0,
                      .rows = QR_MIN(job->rows_per_chunk, job->rows - row0),
                      .weight = part->weight,
                      .w = part->panels,
                      .panel0 = first,
                      .panels = end - first};
}

static float *tile_output(const cpu_tile *tile, qr_tensor y)
{
    return (float *)y.data + tile->row0 * y.row_stride + tile->panel0 * CPU_PANEL;
}

static int64_t tile_cols(const cpu_tile *tile)
{
    return QR_MIN(tile->panels * CPU_PANEL, tile->weight->rows - tile->panel0 * CPU_PANEL);
}

static void add_bias(const cpu_tile *tile, const float *bias)
{
    int64_t cols = tile_cols(tile);
    bias += tile->panel0 * CPU_PANEL;
    for (int64_t row = 0; row < tile->rows; row++)
        for (int64_t col = 0; col < cols; col++)
            tile->y[row * tile->y_stride + col] += bias[col];
}

static void linear_tile(const linear_part *part, cpu_tile tile)
{
    tile.y = tile_output(&tile, part->y);
    tile.y_stride = part->y.row_stride;
    part->kernel(&tile);
    if (part->bias != NULL)
        add_bias(&tile, part->bias);
}

static void linear_chunk(void *arg, int64_t permit, int worker)
{
    linear_job *job = arg;
    (void)permit;
    int64_t chunk = take_chunk(job, worker), first = chunk / job->row_chunks * job->panels_per_chunk;
    int64_t end = QR_MIN(first + job->panels_per_chunk, job->panels);
    for (const linear_part *part = job->part; part < job->part + job->count && end > 0; part++) {
        int64_t panels = cpu_panel_count(part->weight->rows);
        if (first < panels)
            linear_tile(part, chunk_tile(job, part, chunk, QR_MAX(first, 0), QR_MIN(end, panels)));
        first -= panels;
        end -= panels;
    }
}

static linear_part part_of(const cpu_device *device, const qr_weight *weight, const cpu_rows *x,
                           const float *bias, qr_tensor y)
{
    cpu_tile_kernel kernel = device->linear->tile[weight->layout];
    QR_ASSERT(kernel != NULL);
    return (linear_part){
        .weight = weight, .panels = cpu_panels_of(weight), .kernel = kernel, .x = x, .bias = bias, .y = y};
}

static void run_parts(const cpu_device *device, linear_job *job)
{
    double ns = 0;
    for (int i = 0; i < job->count; i++) {
        int64_t panels = cpu_panel_count(job->part[i].weight->rows);
        job->panels += panels;
        ns += (double)panels * panel_cost_ns(&job->part[i], job->rows);
    }
    cut_chunks(job, ns, cpu_pool_threads(device->pool));
    run_chunks(device->pool, job, linear_chunk);
}

void cpu_linear(qr_device *device, qr_tensor x, const qr_weight *const *w, const float *const *bias,
                int count, qr_tensor *y, void *scratch)
{
    cpu_device *cpu = (cpu_device *)device;
    for (int form = 0; form < CPU_FORM_COUNT; form++) {
        linear_job job = {.rows = x.rows};
        cpu_rows rows;
        for (int i = 0; i < count; i++)
            if ((int)cpu->linear->form[w[i]->layout] == form)
                job.part[job.count++] = part_of(cpu, w[i], &rows, bias[i], y[i]);
        if (job.count == 0)
            continue;
        rows = convert(cpu, (cpu_form)form, x, scratch);
        run_parts(cpu, &job);
    }
}

/* ---- Gated MLP ---- */

/* Gate goes to its place in y, up waits beside it for a tile of so many rows and values in all: 8 KB of stack. Few rows
 * make wide tiles, so that memory is read in long runs. */
enum { SWIGLU_ROWS = 32, SWIGLU_VALUES = 2048 };

static void swiglu_tile(const linear_job *job, cpu_tile tile)
{
    _Alignas(64) float up[SWIGLU_VALUES];
    const linear_part *part = job->part;
    float *gate = tile_output(&tile, part->y);
    int64_t up_stride = tile.panels * CPU_PANEL;
    tile.y = gate;
    tile.y_stride = part->y.row_stride;
    part[0].kernel(&tile);
    tile.x = part[1].x;
    tile.weight = part[1].weight;
    tile.w = part[1].panels;
    tile.y = up;
    tile.y_stride = up_stride;
    part[1].kernel(&tile);
    for (int64_t row = 0; row < tile.rows; row++)
        job->vector->silu_mul(gate + row * part->y.row_stride, up + row * up_stride, tile_cols(&tile));
}

static void swiglu_chunk(void *arg, int64_t permit, int worker)
{
    linear_job *job = arg;
    (void)permit;
    int64_t chunk = take_chunk(job, worker), first = chunk / job->row_chunks * job->panels_per_chunk;
    int64_t end = QR_MIN(first + job->panels_per_chunk, job->panels);
    cpu_tile whole = chunk_tile(job, job->part, chunk, first, end), tile = whole;
    int64_t rows = QR_MIN(whole.rows, SWIGLU_ROWS);
    int64_t panels = SWIGLU_VALUES / CPU_PANEL / rows / 4 * 4;
    for (int64_t panel = 0; panel < whole.panels; panel += panels) {
        tile.panel0 = whole.panel0 + panel;
        tile.panels = QR_MIN(panels, whole.panels - panel);
        for (int64_t row = 0; row < whole.rows; row += rows) {
            tile.row0 = whole.row0 + row;
            tile.rows = QR_MIN(rows, whole.rows - row);
            swiglu_tile(job, tile);
        }
    }
}

void cpu_linear_swiglu(qr_device *device, qr_tensor x, const qr_weight *gate, const qr_weight *up,
                       qr_tensor y, void *scratch)
{
    cpu_device *cpu = (cpu_device *)device;
    cpu_form form = cpu->linear->form[gate->layout], up_form = cpu->linear->form[up->layout];
    cpu_rows rows = convert(cpu, form, x, scratch), up_rows = rows;
    if (up_form != form)
        up_rows = convert(cpu, up_form, x, (uint8_t *)scratch + x.rows * form_row_bytes(form, x.cols));
    linear_job job = {.vector = cpu->vector,
                      .rows = x.rows,
                      .panels = cpu_panel_count(gate->rows),
                      .count = 2,
                      .part = {part_of(cpu, gate, &rows, NULL, y), part_of(cpu, up, &up_rows, NULL, y)}};
    double panel_ns = panel_cost_ns(&job.part[0], x.rows) + panel_cost_ns(&job.part[1], x.rows);
    cut_chunks(&job, panel_ns * (double)job.panels, cpu_pool_threads(cpu->pool));
    run_chunks(cpu->pool, &job, swiglu_chunk);
}
