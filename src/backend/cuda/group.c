/* Ranks on GPUs of one host that reach each other's memory. */
#include "backend/cuda/cuda.h"

#include <stdatomic.h>

#include "base/assert.h"
#include "base/mem.h"

struct cuda_shared {
    atomic_int members;
    uint32_t *failed; /* pinned: kernels look at it while they wait */
};

/* Memory of either is at hand for the other's kernels from now on, also what is taken later. */
static qr_status reach(const cuda_device *from, const cuda_device *to, qr_error *err)
{
    int can = 0;
    cudaError_t error = cudaDeviceCanAccessPeer(&can, from->ordinal, to->ordinal);
    if (error == cudaSuccess && !can)
        return qr_fail(err, QR_UNSUPPORTED, "device: cuda:%d does not reach the memory of cuda:%d",
                       from->ordinal, to->ordinal);
    if (error == cudaSuccess)
        error = cudaSetDevice(from->ordinal);
    if (error == cudaSuccess)
        error = cudaDeviceEnablePeerAccess(to->ordinal, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        error = cudaSuccess;
    }
    return error == cudaSuccess ? QR_OK : cuda_fail(from, QR_DEVICE_FAILED, error, "access to a peer", err);
}

/* Mailbox and counts of a rank, in its memory. */
static qr_status open_member(cuda_device *device, int rank, int ranks, qr_error *err)
{
    size_t bytes = cuda_group_mail_bytes(ranks), calls = CUDA_GROUP_BLOCKS * sizeof(uint32_t);
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error != cudaSuccess)
        return cuda_fail(device, QR_DEVICE_FAILED, error, "group", err);
    device->group.rank = rank;
    device->group.ranks = ranks;
    device->group.mail[rank] = cuda_own(device, bytes, "mailbox", err);
    device->group.calls = cuda_own(device, calls, "mailbox", err);
    if (device->group.mail[rank] == NULL || device->group.calls == NULL)
        return QR_OUT_OF_MEMORY;
    error = cudaMemset(device->group.mail[rank], 0, bytes);
    if (error == cudaSuccess)
        error = cudaMemset(device->group.calls, 0, calls);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize();
    return error == cudaSuccess ? QR_OK : cuda_fail(device, QR_DEVICE_FAILED, error, "mailbox", err);
}

qr_status cuda_group_open(qr_device *const *devices, int count, qr_error *err)
{
    if (count > CUDA_GROUP_RANKS)
        return qr_fail(err, QR_UNSUPPORTED, "device: %d ranks; %d GPUs of one host are served", count,
                       CUDA_GROUP_RANKS);
    qr_status status = QR_OK;
    for (int i = 0; i < count && status == QR_OK; i++)
        for (int j = 0; j < count && status == QR_OK; j++)
            if (i != j)
                status = reach(cuda_of(devices[i]), cuda_of(devices[j]), err);
    for (int i = 0; i < count && status == QR_OK; i++)
        status = open_member(cuda_of(devices[i]), i, count, err);
    if (status != QR_OK)
        return status;
    struct cuda_shared *shared = qr_calloc(1, sizeof(*shared));
    cudaError_t error = cudaHostAlloc((void **)&shared->failed, sizeof(uint32_t), cudaHostAllocPortable);
    if (error != cudaSuccess) {
        qr_free(shared);
        return cuda_fail(cuda_of(devices[0]), QR_OUT_OF_MEMORY, error, "pinned memory", err);
    }
    *shared->failed = CUDA_GROUP_FINE;
    atomic_init(&shared->members, count);
    for (int i = 0; i < count; i++) {
        cuda_device *device = cuda_of(devices[i]);
        device->shared = shared;
        device->group.failed = shared->failed;
        for (int j = 0; j < count; j++)
            device->group.mail[j] = cuda_of(devices[j])->group.mail[j];
    }
    cuda_use(devices[0]);
    return QR_OK;
}

void cuda_group_leave(cuda_device *device)
{
    struct cuda_shared *shared = device->shared;
    device->shared = NULL;
    if (shared == NULL || atomic_fetch_sub(&shared->members, 1) != 1)
        return;
    cudaFreeHost(shared->failed);
    qr_free(shared);
}

void cuda_group_fail(qr_device *base)
{
    volatile uint32_t *failed = cuda_of(base)->shared->failed;
    if (*failed == CUDA_GROUP_FINE)
        *failed = CUDA_GROUP_FAILED;
}

qr_status cuda_group_status(const cuda_device *device, qr_error *err)
{
    uint32_t failed = device->shared != NULL ? *(volatile uint32_t *)device->shared->failed : CUDA_GROUP_FINE;
    if (failed == CUDA_GROUP_FINE)
        return QR_OK;
    if (failed == CUDA_GROUP_WAITED)
        return qr_fail(err, QR_DEVICE_FAILED, "cuda:%d: the ranks waited for each other too long",
                       device->ordinal);
    return qr_fail(err, QR_CANCELLED, "cuda:%d: gave up: another rank has failed", device->ordinal);
}

void cuda_all_reduce(qr_device *base, qr_tensor x)
{
    cuda_device *device = cuda_of(base);
    int64_t bytes = x.rows * x.cols * (int64_t)qr_dtype_bytes(x.dtype);
    if (!cuda_idle(device))
        cuda_check(
            device,
            cuda_launch_all_reduce(device->stream, &device->group, x.data, bytes, x.dtype == QR_DTYPE_BF16),
            "sum over ranks");
}

void cuda_all_gather(qr_device *base, qr_tensor x, int64_t first, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    cuda_rows from = {
        .data = x.data, .stride = x.row_stride, .rows = (int32_t)x.rows, .cols = (int32_t)x.cols};
    cuda_rows to = {.data = y.data, .stride = y.row_stride, .rows = (int32_t)y.rows, .cols = (int32_t)y.cols};
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_all_gather(device->stream, &device->group, from, first, to),
                   "logits of all ranks");
}
