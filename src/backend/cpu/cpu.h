/* The CPU backend's shared parts: device, thread pool, and the table of kernels that the ISA levels fill
 * (C defaults first, then each level overrides; nothing asks for the CPU again). Private to backend/cpu/.
 * Thread: the engine thread is worker 0; pool workers run what cpu_pool_run hands them.
 */
#ifndef QR_BACKEND_CPU_CPU_H
#define QR_BACKEND_CPU_CPU_H

#include "backend/backend.h"
#include "base/arena.h"

typedef enum cpu_isa { CPU_ISA_GENERIC, CPU_ISA_AVX2, CPU_ISA_AVX512 } cpu_isa;

/* ---- Thread pool (pool.c): work is taken in chunks by an atomic counter, so that a preempted core delays one
 * chunk and not the whole op; workers spin some 20 us at a barrier, then sleep. ---- */
typedef struct cpu_pool cpu_pool;
cpu_pool *cpu_pool_new(int threads); /* threads - 1 workers beside the caller */
void cpu_pool_free(cpu_pool *pool);
int cpu_pool_threads(const cpu_pool *pool);
/* Calls task(arg, chunk, worker) for each chunk in [0, n_chunks), from any worker, in any order; returns when all
 * are done. n_chunks <= 1 runs in the caller. */
typedef void (*cpu_task)(void *arg, int64_t chunk, int worker);
void cpu_pool_run(cpu_pool *pool, int64_t n_chunks, cpu_task task, void *arg);

/* ---- Kernel tables: one for linear.c and its kernels (linear.h), one for the rest (vector.h) ---- */
struct cpu_linear_kernels;
struct cpu_vector_kernels;

typedef struct cpu_device {
    qr_device base; /* first */
    cpu_isa isa;
    bool vnni, bf16;
    cpu_pool *pool;
    struct cpu_group *group;    /* the ranks that it works with, or NULL (group.c) */
    qr_arena vectors;           /* norms and biases as F32 */
    struct cpu_region *regions; /* packed weights (pack.c) */
    const struct cpu_linear_kernels *linear;
    const struct cpu_vector_kernels *vector;
} cpu_device;

qr_status cpu_limits(qr_device *, bool refresh, char **json, qr_error *); /* limits.c */
/* ---- Ranks (group.c) ---- */
qr_status cpu_group_open(qr_device *const *devices, int count, qr_error *err);
void cpu_group_leave(cpu_device *device);
void cpu_group_fail(qr_device *device);
/* QR_CANCELLED once the group has failed. */
qr_status cpu_group_status(const cpu_device *device, qr_error *err);
void cpu_all_reduce(qr_device *device, qr_tensor x);
void cpu_all_gather(qr_device *device, qr_tensor x, int64_t first, qr_tensor y);

typedef struct cpu_kv {
    qr_kv base;   /* first */
    void **pages; /* [n_layers] K and V pages of a layer; layout is kv.c's and attention's secret */
    size_t *page_bytes;
} cpu_kv;

#endif
