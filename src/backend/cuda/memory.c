#include "backend/cuda/cuda.h"

#include "base/mem.h"

struct cuda_memory {
    struct cuda_memory *next;
    void *data;
};

void *cuda_own(cuda_device *device, size_t bytes, const char *what, qr_error *err)
{
    void *data = NULL;
    cudaError_t error = cudaMalloc(&data, QR_MAX(bytes, (size_t)256));
    if (error != cudaSuccess) {
        cudaGetLastError();
        (void)qr_fail(err, QR_OUT_OF_MEMORY, "cuda:%d: %s: %zu bytes: %s", device->ordinal, what, bytes,
                      cudaGetErrorString(error));
        return NULL;
    }
    struct cuda_memory *memory = qr_calloc(1, sizeof(*memory));
    *memory = (struct cuda_memory){.next = device->owned, .data = data};
    device->owned = memory;
    return data;
}

void cuda_owned_free(cuda_device *device)
{
    while (device->owned != NULL) {
        struct cuda_memory *memory = device->owned;
        device->owned = memory->next;
        cudaFree(memory->data);
        qr_free(memory);
    }
}

void *cuda_scratch_open(qr_device *device, size_t bytes, qr_error *err)
{
    void *data = NULL;
    cudaError_t error = cudaMalloc(&data, bytes);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize(); /* weights are in before the first step */
    if (error == cudaSuccess)
        return data;
    cudaGetLastError();
    (void)cuda_fail(cuda_of(device), QR_OUT_OF_MEMORY, error, "scratch", err);
    return NULL;
}

void cuda_scratch_close(qr_device *device, void *scratch, size_t bytes)
{
    (void)bytes;
    cuda_graphs_forget(cuda_of(device));
    cudaFree(scratch);
}
