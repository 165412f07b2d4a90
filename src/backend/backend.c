#include "backend/backend.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "quire.h"

/* The list of backends, the preferred first: "auto" takes the first that opens, but the last, which computes nothing.
 * A backend is a folder and a line. */
static const qr_backend *const backends[] = {
#ifdef QR_WITH_CUDA
    &qr_backend_cuda,
#endif
    &qr_backend_cpu,
    &qr_backend_sim,
};

bool qr_device_is_auto(const char *text)
{
    return text == NULL || text[0] == '\0' || strcmp(text, "auto") == 0;
}

/* "cuda" and "cuda:1" name the same backend. */
static bool names_backend(const char *text, const char *name)
{
    size_t len = strlen(name);
    return strncmp(text, name, len) == 0 && (text[len] == '\0' || text[len] == ':');
}

static qr_status open_auto(const qr_device_options *options, qr_device **out, qr_error *err)
{
    qr_status status = QR_UNSUPPORTED;
    for (size_t i = 0; i + 1 < QR_COUNT_OF(backends) && status != QR_OK; i++)
        status = backends[i]->open(options, out, err);
    return status;
}

static qr_status open_named(const qr_device_options *options, qr_device **out, qr_error *err)
{
    if (options->threads < 0 || options->threads > 4096)
        return qr_fail(err, QR_INVALID_ARGUMENT, "threads: must be 0 (all) to 4096, got %d",
                       options->threads);
    if (qr_device_is_auto(options->device))
        return open_auto(options, out, err);
    for (size_t i = 0; i < QR_COUNT_OF(backends); i++)
        if (names_backend(options->device, backends[i]->name))
            return backends[i]->open(options, out, err);
    return qr_fail(err, QR_UNSUPPORTED,
                   "device: unknown \"%.32s\"; this build has: auto, cpu, %ssim[:options]", options->device,
                   QR_COUNT_OF(backends) > 2 ? "cuda[:N], " : "");
}

qr_status qr_device_open(const qr_device_options *options, qr_device **out, qr_error *err)
{
    qr_status status = open_named(options, out, err);
    if (status != QR_OK)
        return status;
    (*out)->rank = options->rank;
    (*out)->ranks = QR_MAX(options->ranks, 1);
    return QR_OK;
}

void qr_device_close(qr_device *device)
{
    if (device != NULL)
        device->backend->close(device);
}

void qr_device_break(qr_device *device)
{
    if (device->backend->fault != NULL)
        device->backend->fault(device);
    else
        device->broken = true;
}

const char *qr_device_name(const qr_device *device) { return device->backend->name; }
const char *qr_device_describe(const qr_device *device) { return device->description; }
int32_t qr_device_block_size(const qr_device *device) { return device->backend->block_size; }
int32_t qr_device_batched_tokens(const qr_device *device) { return device->backend->batched_tokens; }
int32_t qr_device_edits(const qr_device *device) { return device->backend->edits; }
int32_t qr_device_shared_rows(const qr_device *device) { return device->backend->shared_rows; }
bool qr_device_owns_memory(const qr_device *device) { return device->backend->own_memory; }
bool qr_device_holds_kv(const qr_device *device, qr_dtype dtype)
{
    return dtype == QR_DTYPE_F32 || dtype == QR_DTYPE_F16 || dtype == QR_DTYPE_BF16 ||
           (dtype == QR_DTYPE_F8_E4M3 && device->backend->kv_f8);
}
int32_t qr_device_logit_rows(const qr_device *device) { return device->backend->logit_rows; }
uint64_t qr_device_memory_available(const qr_device *device, double share)
{
    return device->backend->memory_available(device, share);
}

void qr_device_rates(qr_device *device, double *read_bytes, double *flops)
{
    *read_bytes = *flops = 0;
    if (device->backend->rates != NULL)
        device->backend->rates(device, read_bytes, flops);
}

int qr_device_host_threads(const qr_device *device)
{
    return device->backend->host_threads != NULL ? device->backend->host_threads(device) : 1;
}

void qr_device_host_run(qr_device *device, int64_t count, qr_host_task task, void *arg)
{
    if (device->backend->host_run != NULL) {
        device->backend->host_run(device, count, task, arg);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        task(arg, i, 0);
}

qr_status qr_bench_limits(const char *device_name, int threads, bool refresh, char **json, qr_error *err)
{
    const qr_device_options options = {.device = device_name, .threads = threads};
    qr_device *device = NULL;
    qr_status status = qr_device_open(&options, &device, err);
    if (status == QR_OK && device->backend->limits == NULL)
        status = qr_fail(err, QR_UNSUPPORTED, "limits: %s has none to measure", device->description);
    else if (status == QR_OK)
        status = device->backend->limits(device, refresh, json, err);
    qr_device_close(device);
    return status;
}

/* ---- Weights ---- */

qr_status qr_weight_prepare(qr_device *device, qr_weight *weight, const qr_prepare_options *options,
                            qr_error *err)
{
    QR_ASSERT(qr_weight_present(weight) && weight->packed == NULL);
    return device->backend->weight_prepare(device, weight, options, err);
}

void qr_weight_release(qr_device *device, qr_weight *weight)
{
    device->backend->weight_release(device, weight);
}

size_t qr_weight_prepared_bytes(const qr_device *device, const qr_weight *weight,
                                const qr_prepare_options *options)
{
    return device->backend->weight_prepared_bytes(device, weight, options);
}

qr_status qr_vector_prepare(qr_device *device, const qr_weight *weight, const float **out, qr_error *err)
{
    QR_ASSERT(weight->rows == 1);
    return device->backend->vector_prepare(device, weight, out, err);
}

qr_status qr_rope_prepare(qr_device *device, qr_rope_table *table, int64_t positions, qr_error *err)
{
    QR_ASSERT(table->rotary_dim > 0 && table->rotary_dim % 2 == 0 && positions > 0);
    return device->backend->rope_prepare(device, table, positions, err);
}

size_t qr_rope_bytes(const qr_device *device, const qr_rope_table *table, int64_t positions)
{
    return device->backend->rope_bytes != NULL ? device->backend->rope_bytes(table, positions) : 0;
}

void qr_rope_release(qr_device *device, qr_rope_table *table)
{
    device->backend->rope_release(device, table);
}

/* ---- KV cache ---- */

size_t qr_kv_block_bytes(const qr_kv_spec *specs, int n_layers, int32_t block_size, qr_dtype dtype)
{
    size_t bytes = 0;
    for (int i = 0; i < n_layers; i++)
        bytes += 2 * (size_t)specs[i].n_kv_heads * (size_t)specs[i].head_dim * (size_t)block_size *
                 qr_dtype_bytes(dtype);
    return bytes;
}

int qr_kv_groups(const qr_kv_spec *specs, int n_layers, int32_t group_window[QR_KV_GROUPS_MAX])
{
    int count = 0;
    for (int i = 0; i < n_layers; i++) {
        int group = 0;
        while (group < count && group_window[group] != specs[i].window)
            group++;
        if (group < count)
            continue;
        if (count == QR_KV_GROUPS_MAX)
            return -1;
        group_window[count++] = specs[i].window;
    }
    return count;
}

qr_status qr_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                     int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err)
{
    int32_t windows[QR_KV_GROUPS_MAX];
    QR_ASSERT(n_layers > 0 && n_blocks > 0 && qr_kv_groups(specs, n_layers, windows) > 0);
    if (block_size < 8 || block_size % 8 != 0 || block_size > 4096)
        return qr_fail(err, QR_INVALID_ARGUMENT, "block_size: must be a multiple of 8 up to 4096, got %d",
                       block_size);
    return device->backend->kv_open(device, specs, n_layers, n_blocks, block_size, dtype, out, err);
}

void qr_kv_close(qr_kv *kv)
{
    if (kv != NULL)
        kv->device->backend->kv_close(kv);
}

int qr_kv_group_of(const qr_kv *kv, int layer)
{
    QR_ASSERT(layer >= 0 && layer < kv->n_layers);
    return kv->group[layer];
}
