#include "backend/cpu/pack.h"

#include <inttypes.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/format_headers.inc"

const cpu_layout_traits cpu_layouts[CPU_LAYOUT_COUNT] = {
    [CPU_LAYOUT_PARTS] = {"parts", 1, 0, 0},      [CPU_LAYOUT_F32] = {"f32", 1, 0, 64},
    [CPU_LAYOUT_F16] = {"f16", 1, 0, 32},         [CPU_LAYOUT_BF16] = {"bf16", 2, 0, 64},
    [CPU_LAYOUT_Q8_0] = {"q8_0", 64, 64, 1088},   [CPU_LAYOUT_Q4_0] = {"q4_0", 64, 64, 576},
    [CPU_LAYOUT_Q4_1] = {"q4_1", 32, 64, 320},    [CPU_LAYOUT_Q4_K] = {"q4_k", 256, 320, 2368},
    [CPU_LAYOUT_Q6_K] = {"q6_k", 256, 320, 3392},
};

static int64_t layout_units(cpu_layout layout, int64_t cols)
{
    return (cols + cpu_layouts[layout].unit - 1) / cpu_layouts[layout].unit;
}

/* Panels that a kernel reads side by side must not start in the same cache set. */
size_t cpu_panel_bytes(cpu_layout layout, int64_t cols)
{
    size_t bytes =
        QR_ROUND_UP((size_t)layout_units(layout, cols) * (size_t)cpu_layouts[layout].bytes, (size_t)64);
    return bytes > 0 && bytes % 4096 == 0 ? bytes + 64 : bytes;
}

cpu_panels cpu_panels_of(const qr_weight *weight)
{
    cpu_layout layout = (cpu_layout)weight->layout;
    return (cpu_panels){.data = weight->packed,
                        .panel_bytes = cpu_panel_bytes(layout, weight->cols),
                        .units = layout_units(layout, weight->cols),
                        .rows = weight->rows};
}

/* ---- Memory: weights share regions, so that small matrices lie in 2 MB pages too ---- */

#define REGION_BYTES ((size_t)256 << 20) /* address space; pages are taken as they are written */

typedef struct cpu_region {
    struct cpu_region *next;
    uint8_t *pages;
    size_t bytes, used;
    int live; /* weights in it */
} cpu_region;

static cpu_region *region_new(size_t bytes)
{
    size_t wanted = QR_MAX(bytes, REGION_BYTES);
    uint8_t *pages = qr_pages_map(wanted, true);
    if (pages == NULL) {
        wanted = bytes;
        pages = qr_pages_map(wanted, true);
    }
    if (pages == NULL)
        return NULL;
    cpu_region *region = qr_calloc(1, sizeof *region);
    region->pages = pages;
    region->bytes = wanted;
    return region;
}

static void *region_take(cpu_device *device, size_t bytes)
{
    bytes = QR_ROUND_UP(bytes, (size_t)64);
    cpu_region *region = device->regions;
    if (region == NULL || region->bytes - region->used < bytes) {
        region = region_new(bytes);
        if (region == NULL)
            return NULL;
        region->next = device->regions;
        device->regions = region;
    }
    void *memory = region->pages + region->used;
    region->used += bytes;
    region->live++;
    return memory;
}

static void region_free(cpu_region *region)
{
    qr_pages_unmap(region->pages, region->bytes);
    qr_free(region);
}

static void region_give(cpu_device *device, const void *memory)
{
    cpu_region **link = &device->regions;
    while (*link != NULL) {
        cpu_region *region = *link;
        if ((const uint8_t *)memory >= region->pages &&
            (const uint8_t *)memory < region->pages + region->bytes) {
            if (--region->live == 0) {
                *link = region->next;
                region_free(region);
            }
            return;
        }
        link = &region->next;
    }
}

void cpu_regions_close(cpu_device *device)
{
    while (device->regions != NULL) {
        cpu_region *next = device->regions->next;
        region_free(device->regions);
        device->regions = next;
    }
}

/* ---- Which layout ---- */

static bool format_is_dense(qr_format format)
{
    return format == QR_FORMAT_f32 || format == QR_FORMAT_f16 || format == QR_FORMAT_bf16;
}

static cpu_layout dense_layout(qr_dtype dtype)
{
    return dtype == QR_DTYPE_F16 ? CPU_LAYOUT_F16 : dtype == QR_DTYPE_BF16 ? CPU_LAYOUT_BF16 : CPU_LAYOUT_F32;
}

static cpu_layout format_layout(qr_format format, qr_dtype compute)
{
    if (format_is_dense(format))
        return dense_layout(compute);
    switch (format) {
    case QR_FORMAT_q8_0:
    case QR_FORMAT_q5_0: /* five signed bits are eight signed bits */ return CPU_LAYOUT_Q8_0;
    case QR_FORMAT_q4_0: return CPU_LAYOUT_Q4_0;
    case QR_FORMAT_q4_1: return CPU_LAYOUT_Q4_1;
    case QR_FORMAT_q4_k: return CPU_LAYOUT_Q4_K;
    case QR_FORMAT_q6_k: return CPU_LAYOUT_Q6_K;
    default: return CPU_LAYOUT_PARTS;
    }
}

static bool format_is_dtype(qr_format format, qr_dtype dtype)
{
    return (format == QR_FORMAT_f32 && dtype == QR_DTYPE_F32) ||
           (format == QR_FORMAT_f16 && dtype == QR_DTYPE_F16) ||
           (format == QR_FORMAT_bf16 && dtype == QR_DTYPE_BF16);
}

/* The one place that decides between the mapping as it is and a packed copy. The generic kernels read the
 * container's own blocks; the others want panels. */
static cpu_layout choose_layout(const cpu_device *device, const qr_weight *w,
                                const qr_prepare_options *options)
{
    cpu_layout layout = format_layout(w->format, options->compute);
    if (options->dummy_seed != 0)
        return layout == CPU_LAYOUT_PARTS ? CPU_LAYOUT_Q8_0 : layout;
    if (device->linear != &cpu_linear_generic)
        return layout;
    bool widened = options->compute == QR_DTYPE_F32; /* reading is exact */
    return format_is_dense(w->format) && !widened && !format_is_dtype(w->format, options->compute)
               ? layout
               : CPU_LAYOUT_PARTS;
}

size_t cpu_weight_prepared_bytes(const qr_device *device, const qr_weight *weight,
                                 const qr_prepare_options *options)
{
    cpu_layout layout = choose_layout((const cpu_device *)device, weight, options);
    if (layout == CPU_LAYOUT_PARTS)
        return 0;
    return (size_t)cpu_panel_count(weight->rows) * cpu_panel_bytes(layout, weight->cols);
}

/* ---- Packing ---- */

typedef struct pack_job {
    const qr_weight *weight;
    cpu_layout layout;
    cpu_pack_panel pack;
    uint64_t dummy_seed;
    uint8_t *out;
    size_t panel_bytes;
    int64_t panels, panels_per_chunk;
} pack_job;

static void pack_chunk(void *arg, int64_t chunk, int worker)
{
    const pack_job *job = arg;
    (void)worker;
    int64_t end = QR_MIN((chunk + 1) * job->panels_per_chunk, job->panels);
    for (int64_t panel = chunk * job->panels_per_chunk; panel < end; panel++) {
        uint8_t *out = job->out + (size_t)panel * job->panel_bytes;
        if (job->dummy_seed != 0)
            cpu_pack_panel_dummy(job->weight, job->layout, panel, job->dummy_seed, out);
        else
            job->pack(job->weight, job->layout, panel, out);
    }
}

static qr_status check_parts(const qr_weight *w, qr_error *err)
{
    const qr_weight_part *part = &w->part[QR_PART_DATA];
    int block = qr_format_get(w->format)->block;
    size_t bytes = 0;
    if (w->cols % block != 0)
        return qr_fail(err, QR_UNSUPPORTED, "%s: %s wants rows of a multiple of %d values, got %" PRId64,
                       w->name, qr_format_get(w->format)->name, block, w->cols);
    if (!qr_size_mul((size_t)w->rows, qr_format_row_bytes(w->format, w->cols), &bytes) || part->bytes < bytes)
        return qr_fail(err, QR_BAD_FILE, "%s: has %zu bytes, %" PRId64 " x %" PRId64 " %s need %zu", w->name,
                       part->bytes, w->rows, w->cols, qr_format_get(w->format)->name, bytes);
    return QR_OK;
}

qr_status cpu_weight_prepare(qr_device *device, qr_weight *weight, const qr_prepare_options *options,
                             qr_error *err)
{
    cpu_device *cpu = (cpu_device *)device;
    qr_status status = options->dummy_seed != 0 ? QR_OK : check_parts(weight, err);
    if (status != QR_OK)
        return status;
    cpu_layout layout = choose_layout(cpu, weight, options);
    weight->layout = layout;
    if (layout == CPU_LAYOUT_PARTS)
        return QR_OK;
    size_t bytes = cpu_weight_prepared_bytes(device, weight, options);
    void *out = region_take(cpu, bytes);
    if (out == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "%s: the system refuses %zu bytes for its packed copy",
                       weight->name, bytes);
    pack_job job = {.weight = weight,
                    .layout = layout,
                    .pack = cpu->isa == CPU_ISA_GENERIC ? cpu_pack_panel_generic : cpu_pack_panel_avx2,
                    .dummy_seed = options->dummy_seed,
                    .out = out,
                    .panel_bytes = cpu_panel_bytes(layout, weight->cols),
                    .panels = cpu_panel_count(weight->rows)};
    job.panels_per_chunk = QR_MAX(1, (int64_t)((128 << 10) / job.panel_bytes));
    cpu_pool_run(cpu->pool, (job.panels + job.panels_per_chunk - 1) / job.panels_per_chunk, pack_chunk, &job);
    weight->packed = out;
    weight->packed_bytes = bytes;
    return QR_OK;
}

void cpu_weight_release(qr_device *device, qr_weight *weight)
{
    if (weight->packed != NULL)
        region_give((cpu_device *)device, weight->packed);
    weight->packed = NULL;
    weight->packed_bytes = 0;
    weight->layout = CPU_LAYOUT_PARTS;
}

qr_status cpu_vector_prepare(qr_device *device, const qr_weight *weight, const float **out, qr_error *err)
{
    qr_status status = check_parts(weight, err);
    if (status != QR_OK)
        return status;
    float *vector = qr_arena_alloc(&((cpu_device *)device)->vectors, (size_t)weight->cols * sizeof *vector);
    qr_format_get(weight->format)->dequant_row(weight->part[QR_PART_DATA].data, vector, weight->cols);
    *out = vector;
    return QR_OK;
}
