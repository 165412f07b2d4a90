#include "backend/cuda/cuda.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

static qr_status take_layers(cuda_kv *kv, qr_error *err)
{
    cuda_device *device = cuda_of(kv->base.device);
    for (int i = 0; i < kv->base.n_layers; i++) {
        size_t block = qr_kv_block_bytes(&kv->base.specs[i], 1, kv->base.block_size, kv->base.dtype);
        cudaError_t error = cudaErrorMemoryAllocation;
        if (qr_size_mul(block, (size_t)kv->base.n_blocks, &kv->layer_bytes[i]))
            error = cudaMalloc(&kv->layers[i], kv->layer_bytes[i]);
        if (error != cudaSuccess) {
            cudaGetLastError();
            kv->layers[i] = NULL;
            return qr_fail(err, QR_OUT_OF_MEMORY, "cuda:%d: kv cache: layer %d: %d blocks of %zu bytes: %s",
                           device->ordinal, i, kv->base.n_blocks, block, cudaGetErrorString(error));
        }
        /* Slots that nobody wrote are multiplied by weights of zero: they must be numbers. */
        error = cudaMemsetAsync(kv->layers[i], 0, kv->layer_bytes[i], device->stream);
        if (error != cudaSuccess)
            return cuda_fail(device, QR_DEVICE_FAILED, error, "kv cache", err);
    }
    return QR_OK;
}

qr_status cuda_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                       int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err)
{
    QR_ASSERT(qr_device_holds_kv(device, dtype));
    int32_t windows[QR_KV_GROUPS_MAX] = {0};
    int n_groups = qr_kv_groups(specs, n_layers, windows);
    QR_ASSERT(n_groups > 0);
    for (int i = 0; i < n_layers; i++)
        if (specs[i].head_dim > 512)
            return qr_fail(err, QR_UNSUPPORTED, "cuda: heads of %d numbers; up to 512 are served",
                           specs[i].head_dim);
    cuda_kv *kv = qr_calloc(1, sizeof(*kv));
    qr_kv_spec *own_specs = qr_calloc((size_t)n_layers, sizeof(*own_specs));
    memcpy(own_specs, specs, (size_t)n_layers * sizeof(*specs));
    uint8_t *group = qr_calloc((size_t)n_layers, 1);
    for (int i = 0; i < n_layers; i++)
        while (windows[group[i]] != specs[i].window)
            group[i]++;
    kv->base = (qr_kv){.device = device,
                       .n_layers = n_layers,
                       .n_groups = n_groups,
                       .specs = own_specs,
                       .group = group,
                       .n_blocks = n_blocks,
                       .block_size = block_size,
                       .dtype = dtype};
    kv->layers = qr_calloc((size_t)n_layers, sizeof(void *));
    kv->layer_bytes = qr_calloc((size_t)n_layers, sizeof(size_t));
    qr_status status = take_layers(kv, err);
    if (status != QR_OK) {
        cuda_kv_close(&kv->base);
        return status;
    }
    *out = &kv->base;
    return QR_OK;
}

void cuda_kv_close(qr_kv *base)
{
    cuda_kv *kv = (cuda_kv *)base;
    cuda_graphs_forget(cuda_of(base->device));
    for (int i = 0; i < base->n_layers; i++)
        if (kv->layers[i] != NULL)
            cudaFree(kv->layers[i]);
    qr_free(kv->layers);
    qr_free(kv->layer_bytes);
    qr_free((void *)base->specs);
    qr_free((void *)base->group);
    qr_free(kv);
}

_Static_assert((int)QR_DTYPE_F8_E4M3 == CUDA_DTYPE_F8, "kernels know it by number");

/* What the products on the tensor cores read (attention.cuh). */
static bool is_image(const qr_kv *kv, const qr_kv_spec *spec)
{
    return qr_dtype_bytes(kv->dtype) == 2 && kv->block_size % 32 == 0 &&
           (spec->head_dim == 64 || spec->head_dim == 128);
}

cuda_layer_pages cuda_kv_layer(const cuda_kv *kv, int layer)
{
    const qr_kv_spec *spec = &kv->base.specs[layer];
    return (cuda_layer_pages){.keys = kv->layers[layer],
                              .values = (char *)kv->layers[layer] + kv->layer_bytes[layer] / 2,
                              .kv_heads = spec->n_kv_heads,
                              .head_dim = spec->head_dim,
                              .block_size = kv->base.block_size,
                              .image = is_image(&kv->base, spec),
                              .dtype = kv->base.dtype,
                              .window = spec->window,
                              .group = kv->base.group[layer]};
}
