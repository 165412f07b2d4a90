#include "backend/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

bool cuda_check(cuda_device *device, cudaError_t error, const char *op)
{
    if (error == cudaSuccess)
        return true;
    if (device->error == cudaSuccess) {
        device->error = error;
        device->error_op = op;
    }
    return false;
}

qr_status cuda_fail(const cuda_device *device, qr_status status, cudaError_t error, const char *what,
                    qr_error *err)
{
    return qr_fail(err, status, "cuda:%d: %s: %s", device->ordinal, what, cudaGetErrorString(error));
}

/* "cuda" or "cuda:2". */
static qr_status read_ordinal(const char *name, int *ordinal, qr_error *err)
{
    *ordinal = 0;
    if (name == NULL || strncmp(name, "cuda:", 5) != 0)
        return QR_OK;
    char *end;
    long value = strtol(name + 5, &end, 10);
    if (end == name + 5 || *end != '\0' || value < 0 || value > 255)
        return qr_fail(err, QR_INVALID_ARGUMENT, "device: \"%.32s\": cuda:N needs a number", name);
    *ordinal = (int)value;
    return QR_OK;
}

static qr_status find_device(int ordinal, struct cudaDeviceProp *facts, qr_error *err)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return qr_fail(err, QR_UNSUPPORTED, "device: no NVIDIA GPU here: %s",
                       error != cudaSuccess ? cudaGetErrorString(error) : "the driver lists none");
    if (ordinal >= count)
        return qr_fail(err, QR_UNSUPPORTED, "device: cuda:%d: there are %d", ordinal, count);
    error = cudaSetDevice(ordinal);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(facts, ordinal);
    if (error != cudaSuccess)
        return qr_fail(err, QR_UNSUPPORTED, "device: cuda:%d: %s", ordinal, cudaGetErrorString(error));
    if (facts->major != 9)
        return qr_fail(err, QR_UNSUPPORTED,
                       "device: cuda:%d: %.64s has compute capability %d.%d; this build serves 9.0", ordinal,
                       facts->name, facts->major, facts->minor);
    return QR_OK;
}

static qr_status open_parts(cuda_device *device, qr_error *err)
{
    cudaError_t error = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cuda_decode_init();
    if (error == cudaSuccess)
        error = cuda_prefill_init();
    if (error != cudaSuccess)
        return cuda_fail(device, QR_DEVICE_FAILED, error, "open", err);
    size_t bytes = cuda_gemm_workspace_bytes();
    void *workspace = NULL;
    if (bytes > 0) {
        workspace = cuda_own(device, bytes, "workspace", err);
        if (workspace == NULL)
            return QR_OUT_OF_MEMORY;
        cuda_check(device, cudaMemset(workspace, 0, bytes), "workspace");
    }
    error = cuda_gemm_init(workspace, device->sm_count);
    if (error != cudaSuccess)
        return cuda_fail(device, QR_DEVICE_FAILED, error, "products", err);
    qr_status status = cuda_staging_open(device, err);
    if (status == QR_OK)
        status = cuda_step_open(device, err);
    return status == QR_OK ? cuda_draws_open(device, err) : status;
}

void cuda_use(qr_device *device)
{
    cuda_check(cuda_of(device), cudaSetDevice(cuda_of(device)->ordinal), "device");
}

static void cuda_close(qr_device *base)
{
    cuda_device *device = cuda_of(base);
    cuda_use(base);
    if (device->stream != NULL)
        cudaStreamSynchronize(device->stream);
    cuda_step_close(device);
    cuda_group_leave(device);
    qr_free(device->no_logits);
    cuda_staging_close(device);
    cuda_owned_free(device);
    if (device->host_logits != NULL)
        cudaFreeHost(device->host_logits);
    if (device->stream != NULL)
        cudaStreamDestroy(device->stream);
    qr_free(device);
}

static qr_status cuda_open(const qr_device_options *options, qr_device **out, qr_error *err)
{
    int ordinal = 0;
    struct cudaDeviceProp facts;
    qr_status status = read_ordinal(options->device, &ordinal, err);
    ordinal += options->rank; /* ranks take the GPUs from the named one on */
    /* Loading a kernel at its first launch may wait for the device, which may wait for a peer that waits likewise. */
    if (options->ranks > 1)
        setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    if (status == QR_OK)
        status = find_device(ordinal, &facts, err);
    if (status != QR_OK)
        return status;
    cuda_device *device = qr_calloc(1, sizeof(*device));
    device->base.backend = &qr_backend_cuda;
    device->ordinal = ordinal;
    device->sm_count = facts.multiProcessorCount;
    device->memory_total = facts.totalGlobalMem;
    snprintf(device->base.description, sizeof(device->base.description), "cuda:%d %.64s, sm_%d%d, %d SMs",
             ordinal, facts.name, facts.major, facts.minor, facts.multiProcessorCount);
    status = open_parts(device, err);
    if (status != QR_OK) {
        cuda_close(&device->base);
        return status;
    }
    *out = &device->base;
    return QR_OK;
}

static uint64_t cuda_memory_available(const qr_device *base, double share)
{
    const cuda_device *device = (const cuda_device *)base;
    size_t free_bytes = 0, total = 0;
    if (cudaSetDevice(device->ordinal) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        return 0;
    uint64_t kept = total - (uint64_t)((double)total * share);
    return free_bytes > kept ? free_bytes - kept : 0;
}

const qr_backend qr_backend_cuda = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .use = cuda_use,
    .group_open = cuda_group_open,
    .group_fail = cuda_group_fail,
    .all_reduce = cuda_all_reduce,
    .all_gather = cuda_all_gather,
    .memory_available = cuda_memory_available,
    .block_size = 32,
    .batched_tokens = 8192,
    .shared_rows = 1024,
    .edits = CUDA_EDITS_MAX,
    .activation = QR_DTYPE_BF16,
    .logit_rows = CUDA_GRAPH_ROWS,
    .kv_f8 = true,
    .own_memory = true,
    .limits = cuda_limits,
    .rates = cuda_rates,
    .fault = cuda_fault,
    .weight_prepare = cuda_weight_prepare,
    .weight_release = cuda_weight_release,
    .weight_prepared_bytes = cuda_weight_prepared_bytes,
    .vector_prepare = cuda_vector_prepare,
    .kv_open = cuda_kv_open,
    .kv_close = cuda_kv_close,
    .scratch_open = cuda_scratch_open,
    .scratch_close = cuda_scratch_close,
    .linear_scratch_bytes = cuda_linear_scratch_bytes,
    .step_batch = cuda_step_batch,
    .step_begin = cuda_step_begin,
    .step_end = cuda_step_end,
    .step_wait = cuda_step_wait,
    .step_times = cuda_step_times,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .add = cuda_add,
    .add_rmsnorm = cuda_add_rmsnorm,
    .linear = cuda_linear,
    .linear_swiglu = cuda_linear_swiglu,
    .act_mul = cuda_act_mul,
    .head_norm = cuda_head_norm,
    .rope_prepare = cuda_rope_prepare,
    .rope_release = cuda_rope_release,
    .rope_bytes = cuda_rope_bytes,
    .rope = cuda_rope_apply,
    .kv_store = cuda_kv_store,
    .rope_store = cuda_rope_store,
    .attention_scratch_bytes = cuda_attention_scratch_bytes,
    .attention = cuda_attention,
    .gather = cuda_gather,
    .draws = cuda_draws_served,
    .draw = cuda_draw_rows,
    .drawn = cuda_drawn,
    .drawn_logits = cuda_drawn_logits,
    .logits = cuda_logits,
};
