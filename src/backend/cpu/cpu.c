#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <string.h>

#include "backend/cpu/linear.h"
#include "backend/cpu/pack.h"
#include "backend/cpu/vector.h"
#include "base/cpuid.h"
#include "base/mem.h"

/* avx512 means the byte and word forms with VNNI, as every core since Ice Lake and Zen 4 has them; a CPU with AVX-512
 * but no VNNI is served by the AVX2 kernels. */
static bool isa_present(cpu_isa isa)
{
    const qr_cpu_features *has = qr_cpu_detect();
    switch (isa) {
    case CPU_ISA_AVX512: return has->avx2 && has->avx512 && has->avx512_vnni;
    case CPU_ISA_AVX2: return has->avx2;
    case CPU_ISA_GENERIC: break;
    }
    return true;
}

static const char *const isa_names[] = {
    [CPU_ISA_GENERIC] = "generic", [CPU_ISA_AVX2] = "avx2", [CPU_ISA_AVX512] = "avx512"};

static qr_status choose_isa(const char *name, cpu_isa *isa, qr_error *err)
{
    if (name == NULL || name[0] == '\0' || strcmp(name, "auto") == 0) {
        *isa = isa_present(CPU_ISA_AVX512) ? CPU_ISA_AVX512
               : isa_present(CPU_ISA_AVX2) ? CPU_ISA_AVX2
                                           : CPU_ISA_GENERIC;
        return QR_OK;
    }
    for (int i = CPU_ISA_GENERIC; i <= CPU_ISA_AVX512; i++) {
        if (strcmp(name, isa_names[i]) != 0)
            continue;
        if (!isa_present((cpu_isa)i))
            return qr_fail(err, QR_UNSUPPORTED, "isa: %s: this CPU (%.64s) does not have it", name,
                           qr_cpu_model_name());
        *isa = (cpu_isa)i;
        return QR_OK;
    }
    return qr_fail(err, QR_INVALID_ARGUMENT, "isa: unknown \"%.32s\"; there are: auto, generic, avx2, avx512",
                   name);
}

/* Ranks share the threads: 7 among 3 are 2, 2 and 3. */
static int own_threads(const qr_device_options *options)
{
    int all = options->threads > 0 ? options->threads : qr_cpu_count(), ranks = QR_MAX(options->ranks, 1);
    return QR_MAX(1, all * (options->rank + 1) / ranks - all * options->rank / ranks);
}

static void describe(cpu_device *device)
{
    snprintf(device->base.description, sizeof device->base.description, "cpu %s%s%s, %d thread%s",
             isa_names[device->isa], device->vnni ? "+vnni" : "", device->bf16 ? "+bf16" : "",
             cpu_pool_threads(device->pool), cpu_pool_threads(device->pool) == 1 ? "" : "s");
}

static qr_status cpu_open(const qr_device_options *options, qr_device **out, qr_error *err)
{
    cpu_isa isa = CPU_ISA_GENERIC;
    qr_status status = choose_isa(options->isa, &isa, err);
    if (status != QR_OK)
        return status;
    cpu_device *device = qr_calloc(1, sizeof *device);
    device->base.backend = &qr_backend_cpu;
    device->isa = isa;
    device->vnni = isa == CPU_ISA_AVX512;
    device->bf16 = isa == CPU_ISA_AVX512 && qr_cpu_detect()->avx512_bf16;
    device->pool = cpu_pool_new(own_threads(options));
    qr_arena_init(&device->vectors, 64 << 10);
    device->linear = cpu_linear_for(isa, device->bf16);
    device->vector = cpu_vector_for(isa);
    describe(device);
    *out = &device->base;
    return QR_OK;
}

static void cpu_close(qr_device *device)
{
    cpu_device *cpu = (cpu_device *)device;
    cpu_pool_free(cpu->pool);
    cpu_group_leave(cpu);
    cpu_regions_close(cpu);
    qr_arena_release(&cpu->vectors);
    qr_free(cpu);
}

static uint64_t cpu_memory_available(const qr_device *device, double share)
{
    (void)share;
    return qr_memory_available() / (uint64_t)device->ranks;
}

static int cpu_host_threads(const qr_device *device)
{
    return cpu_pool_threads(((const cpu_device *)device)->pool);
}

static void cpu_host_run(qr_device *device, int64_t count, qr_host_task task, void *arg)
{
    cpu_pool_run(((cpu_device *)device)->pool, count, task, arg);
}

static void *cpu_scratch_open(qr_device *device, size_t bytes, qr_error *err)
{
    (void)device;
    void *scratch = qr_pages_map(bytes, true);
    if (scratch == NULL)
        (void)qr_fail(err, QR_OUT_OF_MEMORY, "scratch: the system refuses %zu bytes", bytes);
    return scratch;
}

static void cpu_scratch_close(qr_device *device, void *scratch, size_t bytes)
{
    (void)device;
    qr_pages_unmap(scratch, bytes);
}

/* Ops are done when they return: a step has nothing to begin or to wait for. */
static void cpu_step_begin(qr_device *device, qr_kv *kv, const qr_batch *batch)
{
    (void)device;
    (void)kv;
    (void)batch;
}

static qr_status cpu_step_end(qr_device *device, qr_error *err)
{
    return cpu_group_status((const cpu_device *)device, err);
}

const qr_backend qr_backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .memory_available = cpu_memory_available,
    .limits = cpu_limits,
    .host_threads = cpu_host_threads,
    .host_run = cpu_host_run,
    .block_size = 16,
    .batched_tokens = 512,
    .shared_rows = 256,
    .weight_prepare = cpu_weight_prepare,
    .weight_release = cpu_weight_release,
    .weight_prepared_bytes = cpu_weight_prepared_bytes,
    .vector_prepare = cpu_vector_prepare,
    .kv_open = cpu_kv_open,
    .kv_close = cpu_kv_close,
    .scratch_open = cpu_scratch_open,
    .scratch_close = cpu_scratch_close,
    .linear_scratch_bytes = cpu_linear_scratch_bytes,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .group_open = cpu_group_open,
    .group_fail = cpu_group_fail,
    .all_reduce = cpu_all_reduce,
    .all_gather = cpu_all_gather,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .add = cpu_add,
    .add_rmsnorm = cpu_add_rmsnorm,
    .linear = cpu_linear,
    .linear_swiglu = cpu_linear_swiglu,
    .act_mul = cpu_act_mul,
    .head_norm = cpu_head_norm,
    .rope_prepare = cpu_rope_prepare,
    .rope_release = cpu_rope_release,
    .rope = cpu_rope,
    .kv_store = cpu_kv_store,
    .attention_scratch_bytes = cpu_attention_scratch_bytes,
    .attention = cpu_attention,
    .gather = cpu_gather,
};
