#include "backend/cpu/linear.h"
#include "backend/cpu/vector.h"

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

/* Values that one thread converts in less time than it takes to share them out. */
enum { CONVERT_CHUNK = 16384 };

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
    int64_t first_chunk, n_chunks;
} linear_part;

typedef struct linear_job {
    const cpu_vector_kernels *vector;
    int64_t rows;
    int64_t panels_per_chunk, rows_per_chunk, row_chunks;
    int count;
    linear_part part[QR_LINEAR_MAX];
} linear_job;

/* What a panel takes: the memory it comes from or the arithmetic, in rough nanoseconds of one core; good enough to
 * size chunks. */
static double panel_cost_ns(const linear_part *part, int64_t rows)
{
    double bytes = (double)cpu_panel_bytes((cpu_layout)part->weight->layout, part->weight->cols);
    double products = (double)part->weight->cols * CPU_PANEL * (double)rows;
    return QR_MAX(bytes / 25, products / 100);
}

/* Chunks of at least 2 us (taking one costs 0.1), and enough of them that threads which progress at different
 * speeds still end together. Rows are split only where the panels alone are too few for that. */
static void size_chunks(linear_job *job, int threads)
{
    double total = 0;
    int64_t panels = 0;
    for (int i = 0; i < job->count; i++) {
        int64_t count = cpu_panel_count(job->part[i].weight->rows);
        panels += count;
        total += (double)count * panel_cost_ns(&job->part[i], job->rows);
    }
    double wanted = total / QR_MIN(QR_MAX(total / 2000, 1), (double)threads * 8);
    int64_t per_chunk = (int64_t)(wanted / (total / (double)panels) + 0.5);
    int64_t group = QR_MIN(CPU_PANEL_GROUP, QR_MAX(panels / threads, 1));
    job->panels_per_chunk = QR_MAX(group, per_chunk / group * group);
    job->rows_per_chunk = job->rows;
    while (job->rows_per_chunk > 48 &&
           panels / job->panels_per_chunk * (job->rows / job->rows_per_chunk) < (int64_t)threads * 4)
        job->rows_per_chunk = (job->rows_per_chunk + 1) / 2;
    job->row_chunks = (job->rows + job->rows_per_chunk - 1) / job->rows_per_chunk;
}

static int64_t lay_out_chunks(linear_job *job)
{
    int64_t chunks = 0;
    for (int i = 0; i < job->count; i++) {
        int64_t panels = cpu_panel_count(job->part[i].weight->rows);
        job->part[i].first_chunk = chunks;
        chunks += (panels + job->panels_per_chunk - 1) / job->panels_per_chunk * job->row_chunks;
    }
    return chunks;
}

/* The tile of a chunk, its y not yet set. */
static cpu_tile chunk_tile(const linear_job *job, const linear_part *part, int64_t chunk)
{
    int64_t row0 = chunk % job->row_chunks * job->rows_per_chunk;
    int64_t panel0 = chunk / job->row_chunks * job->panels_per_chunk;
    return (cpu_tile){.x = part->x,
                      .row0 = row0,
                      .rows = QR_MIN(job->rows_per_chunk, job->rows - row0),
                      .weight = part->weight,
                      .w = part->panels,
                      .panel0 = panel0,
                      .panels = QR_MIN(job->panels_per_chunk, cpu_panel_count(part->weight->rows) - panel0)};
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

static void linear_chunk(void *arg, int64_t chunk, int worker)
{
    const linear_job *job = arg;
    (void)worker;
    int i = job->count - 1;
    while (chunk < job->part[i].first_chunk)
        i--;
    const linear_part *part = &job->part[i];
    cpu_tile tile = chunk_tile(job, part, chunk - part->first_chunk);
    tile.y = tile_output(&tile, part->y);
    tile.y_stride = part->y.row_stride;
    part->kernel(&tile);
    if (part->bias != NULL)
        add_bias(&tile, part->bias);
}

static linear_part part_of(const cpu_device *device, const qr_weight *weight, const cpu_rows *x,
                           const float *bias, qr_tensor y)
{
    cpu_tile_kernel kernel = device->linear->tile[weight->layout];
    QR_ASSERT(kernel != NULL);
    return (linear_part){
        .weight = weight, .panels = cpu_panels_of(weight), .kernel = kernel, .x = x, .bias = bias, .y = y};
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
        size_chunks(&job, cpu_pool_threads(cpu->pool));
        cpu_pool_run(cpu->pool, lay_out_chunks(&job), linear_chunk, &job);
    }
}

/* ---- Gated MLP ---- */

/* Gate goes to its place in y, up waits beside it for a tile of this size: 8 KB of stack. */
enum { SWIGLU_ROWS = 32, SWIGLU_COLS = CPU_PANEL_GROUP * CPU_PANEL };

static void swiglu_tile(const linear_job *job, cpu_tile tile)
{
    _Alignas(64) float up[SWIGLU_ROWS * SWIGLU_COLS];
    const linear_part *part = job->part;
    float *gate = tile_output(&tile, part->y);
    tile.y = gate;
    tile.y_stride = part->y.row_stride;
    part[0].kernel(&tile);
    tile.x = part[1].x;
    tile.weight = part[1].weight;
    tile.w = part[1].panels;
    tile.y = up;
    tile.y_stride = SWIGLU_COLS;
    part[1].kernel(&tile);
    for (int64_t row = 0; row < tile.rows; row++)
        job->vector->silu_mul(gate + row * part->y.row_stride, up + row * SWIGLU_COLS, tile_cols(&tile));
}

static void swiglu_chunk(void *arg, int64_t chunk, int worker)
{
    const linear_job *job = arg;
    (void)worker;
    cpu_tile whole = chunk_tile(job, job->part, chunk), tile = whole;
    for (int64_t panel = 0; panel < whole.panels; panel += CPU_PANEL_GROUP) {
        tile.panel0 = whole.panel0 + panel;
        tile.panels = QR_MIN(CPU_PANEL_GROUP, whole.panels - panel);
        for (int64_t row = 0; row < whole.rows; row += SWIGLU_ROWS) {
            tile.row0 = whole.row0 + row;
            tile.rows = QR_MIN(SWIGLU_ROWS, whole.rows - row);
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
                      .count = 2,
                      .part = {part_of(cpu, gate, &rows, NULL, y), part_of(cpu, up, &up_rows, NULL, y)}};
    size_chunks(&job, cpu_pool_threads(cpu->pool));
    int64_t panels = cpu_panel_count(gate->rows);
    int64_t chunks = (panels + job.panels_per_chunk - 1) / job.panels_per_chunk * job.row_chunks;
    cpu_pool_run(cpu->pool, chunks, swiglu_chunk, &job);
}
