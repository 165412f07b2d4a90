/* Ranks on the CPU: collectives over the memory that they share anyway. A rank puts its tensor on the table, meets the
 * others, does its part on everybody's memory and meets them again; so nothing is copied, and a number is summed by one
 * rank, in the order of ranks, whatever else is in the tensor. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/team.h"
#include "base/assert.h"
#include "base/gate.h"
#include "base/mem.h"

enum { SUM_VALUES = 256, CHUNK_VALUES = 8192 };

struct cpu_group {
    _Alignas(64) atomic_int arrived; /* at this meeting */
    _Alignas(64) qr_gate meetings;   /* opened by the last to arrive, and by a failure */
    atomic_bool failed;
    atomic_int members;
    int ranks;
    qr_tensor table[QR_RANKS_MAX]; /* between the two meetings of a collective */
};

qr_status cpu_group_open(qr_device *const *devices, int count, qr_error *err)
{
    QR_ASSERT(count <= QR_RANKS_MAX);
    struct cpu_group *group = qr_pages_map(sizeof(*group), false); /* for its alignment */
    if (group == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "ranks: the system refuses %zu bytes", sizeof(*group));
    group->ranks = count;
    atomic_init(&group->members, count);
    for (int i = 0; i < count; i++)
        ((cpu_device *)devices[i])->group = group;
    return QR_OK;
}

void cpu_group_leave(cpu_device *device)
{
    if (device->group != NULL && atomic_fetch_sub(&device->group->members, 1) == 1)
        qr_pages_unmap(device->group, sizeof(*device->group));
}

void cpu_group_fail(qr_device *device)
{
    struct cpu_group *group = ((cpu_device *)device)->group;
    atomic_store(&group->failed, true);
    qr_gate_open(&group->meetings);
}

qr_status cpu_group_status(const cpu_device *device, qr_error *err)
{
    if (device->group == NULL || !atomic_load(&device->group->failed))
        return QR_OK;
    return qr_fail(err, QR_CANCELLED, "cpu: gave up: another rank has failed");
}

/* Waits for all ranks. false: one of them has failed, now or before. */
static bool meet(struct cpu_group *group)
{
    uint32_t seen = qr_gate_count(&group->meetings);
    if (atomic_load(&group->failed)) /* looked at after the count: a failure from here on opens the gate */
        return false;
    if (atomic_fetch_add(&group->arrived, 1) + 1 == group->ranks) {
        atomic_store(&group->arrived, 0);
        qr_gate_open(&group->meetings);
    } else {
        qr_gate_wait(&group->meetings, seen);
    }
    return !atomic_load(&group->failed);
}

static bool show(cpu_device *device, qr_tensor x)
{
    device->group->table[device->base.rank] = x;
    return meet(device->group);
}

/* ---- Sums ---- */

typedef struct sum_job {
    const struct cpu_group *group;
    int64_t begin, end; /* values, of all rows one after the other */
} sum_job;

static void sum_chunk(void *arg, int64_t chunk, int worker)
{
    (void)worker;
    const sum_job *job = arg;
    const qr_tensor *table = job->group->table;
    int64_t begin = job->begin + chunk * CHUNK_VALUES, end = QR_MIN(job->end, begin + CHUNK_VALUES);
    for (int64_t at = begin, count; at < end; at += count) {
        float sum[SUM_VALUES];
        count = QR_MIN((int64_t)SUM_VALUES, end - at);
        memcpy(sum, (const float *)table[0].data + at, (size_t)count * sizeof(float));
        for (int rank = 1; rank < job->group->ranks; rank++) {
            const float *x = (const float *)table[rank].data + at;
            for (int64_t i = 0; i < count; i++)
                sum[i] += x[i];
        }
        for (int rank = 0; rank < job->group->ranks; rank++)
            memcpy((float *)table[rank].data + at, sum, (size_t)count * sizeof(float));
    }
}

/* Each value moves once to and once from every rank's memory. */
void cpu_all_reduce(qr_device *base, qr_tensor x)
{
    cpu_device *device = (cpu_device *)base;
    QR_ASSERT(x.dtype == QR_DTYPE_F32);
    if (!show(device, x))
        return;
    int64_t values = x.rows * x.cols, rank = base->rank, ranks = base->ranks;
    sum_job job = {device->group, values * rank / ranks, values * (rank + 1) / ranks};
    int64_t chunks = (job.end - job.begin + CHUNK_VALUES - 1) / CHUNK_VALUES;
    cpu_pool_run(device->pool, chunks, sum_chunk, &job);
    meet(device->group);
}

/* ---- Rows in parts ---- */

void cpu_all_gather(qr_device *base, qr_tensor x, int64_t first, qr_tensor y)
{
    cpu_device *device = (cpu_device *)base;
    QR_ASSERT(x.dtype == QR_DTYPE_F32 && first + x.cols <= y.cols);
    if (!show(device, y))
        return;
    for (int64_t row = 0; row < x.rows; row++) {
        const float *from = (const float *)x.data + row * x.row_stride;
        for (int rank = 0; rank < base->ranks; rank++) {
            const qr_tensor *to = &device->group->table[rank];
            memcpy((float *)to->data + row * to->row_stride + first, from, (size_t)x.cols * sizeof(float));
        }
    }
    meet(device->group);
}
