/* A device that only keeps time: for capacity planning and for routers, autoscalers and schedulers under test with
 * many engines on one machine. Everything above it is real (scheduler, KV bookkeeping, server); weights, KV and
 * activations take no memory and ops compute nothing.
 *
 * A step lasts overhead + max(bytes / bandwidth, flops / rate) of the ops' own counts (ops.c): the roofline of the
 * whole step. It sleeps to its end, so a simulated engine costs the processor its bookkeeping alone. The overhead
 * stands for the host's part of a step: a step that begins within that time of the last one's end counts from that
 * end, so that what the host really took, or a late wake-up, does not add up.
 *
 * The token at a position is a hash of the device's seed, the position, the token before and the request's random
 * number there: the same request gives the same tokens wherever and however it is run, resumed or repeated.
 * Sampling parameters change nothing else, but for rows that the host samples (penalties, masks, log-probabilities):
 * their logits are flat with one peak at that token.
 * Thread: as ops.h. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "backend/backend.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"

#define ROWS_MAX 65536 /* of a step, as the engine bounds them */
#define PEAK     40.0f /* nats above the rest: no vocabulary outweighs it */

typedef struct sim_device {
    qr_device base;
    double flops, bandwidth, overhead, memory, seed; /* a second; bytes a second; seconds; bytes */
    uint64_t weight_bytes;
    const qr_batch *batch; /* while a step runs */
    uint64_t begin_ns, free_ns;
    double step_s;
    int32_t *ids;  /* [ROWS_MAX] drawn in the last step, by logit row */
    float *logits; /* one row, in scratch */
    int32_t vocab;
} sim_device;

static sim_device *sim_of(qr_device *device) { return (sim_device *)(void *)device; }

/* ---- Opening ---- */

typedef struct sim_option {
    const char *name;
    size_t offset;
    double low, high;
} sim_option;

static const sim_option sim_options[] = {
    {"flops", offsetof(sim_device, flops), 1e6, 1e21},
    {"bandwidth", offsetof(sim_device, bandwidth), 1e3, 1e18},
    {"memory", offsetof(sim_device, memory), 1e6, 1e15},
    {"overhead", offsetof(sim_device, overhead), 0, 60},
    {"seed", offsetof(sim_device, seed), 0, 9e15},
};

static const sim_option *find_option(const char *text, size_t len)
{
    for (size_t i = 0; i < QR_COUNT_OF(sim_options); i++)
        if (strlen(sim_options[i].name) == len && strncmp(text, sim_options[i].name, len) == 0)
            return &sim_options[i];
    return NULL;
}

/* "name=number" pairs with commas between them. */
static qr_status read_options(sim_device *device, const char *text, qr_error *err)
{
    for (const char *at = text; *at != '\0';) {
        size_t len = strcspn(at, "=,");
        const sim_option *option = at[len] == '=' ? find_option(at, len) : NULL;
        if (option == NULL)
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "device: sim: \"%.32s\": flops, bandwidth, memory, overhead or seed, then = and a "
                           "number, is expected",
                           at);
        char *end;
        const char *digits = at + len + 1;
        double value = strtod(digits, &end);
        if (end == digits || (*end != ',' && *end != '\0') ||
            !(value >= option->low && value <= option->high))
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "device: sim: %s must be a number in [%g, %g], got \"%.32s\"", option->name,
                           option->low, option->high, digits);
        *(double *)(void *)((char *)device + option->offset) = value;
        at = *end == ',' ? end + 1 : end;
    }
    return QR_OK;
}

static void sim_close(qr_device *device)
{
    qr_free(sim_of(device)->ids);
    qr_free(device);
}

/* The defaults are what good kernels get out of an H100 SXM: 60 % of the dense BF16 rate, 80 % of the bandwidth and
 * 92 % of the memory of its data sheet. */
static qr_status sim_open(const qr_device_options *options, qr_device **out, qr_error *err)
{
    sim_device *device = qr_calloc(1, sizeof(*device));
    device->base.backend = &qr_backend_sim;
    device->flops = 0.6 * 989e12;
    device->bandwidth = 0.8 * 3.35e12;
    device->memory = 0.92 * 80e9;
    device->overhead = 200e-6;
    device->ids = qr_calloc(ROWS_MAX, sizeof(int32_t));
    const char *colon = options->device != NULL ? strchr(options->device, ':') : NULL;
    qr_status status = read_options(device, colon != NULL ? colon + 1 : "", err);
    if (status != QR_OK) {
        sim_close(&device->base);
        return status;
    }
    snprintf(device->base.description, sizeof(device->base.description),
             "sim seed %.0f, %.4g FLOP/s, %.4g B/s, %.4g B, %.4g s a step", device->seed, device->flops,
             device->bandwidth, device->memory, device->overhead);
    *out = &device->base;
    return QR_OK;
}

static uint64_t sim_memory_available(const qr_device *device, double share)
{
    (void)share; /* its memory is stated net */
    const sim_device *sim = (const sim_device *)(const void *)device;
    return sim->memory > (double)sim->weight_bytes ? (uint64_t)sim->memory - sim->weight_bytes : 0;
}

/* ---- What takes no memory ---- */

static size_t sim_weight_bytes(const qr_device *device, const qr_weight *weight,
                               const qr_prepare_options *options)
{
    (void)device;
    const qr_format_traits *traits = qr_format_get(weight->format);
    size_t row = traits->block == 1 ? (size_t)weight->cols * qr_dtype_bytes(options->compute)
                                    : qr_format_row_bytes(weight->format, weight->cols);
    return row * (size_t)weight->rows;
}

/* `packed` names the device for want of anything else: the parts are then no longer read or counted. */
static qr_status sim_weight_prepare(qr_device *device, qr_weight *weight, const qr_prepare_options *options,
                                    qr_error *err)
{
    (void)err;
    weight->packed = device;
    weight->packed_bytes = sim_weight_bytes(device, weight, options);
    sim_of(device)->weight_bytes += weight->packed_bytes;
    return QR_OK;
}

static void sim_weight_release(qr_device *device, qr_weight *weight)
{
    sim_of(device)->weight_bytes -= weight->packed_bytes;
    weight->packed = NULL;
    weight->packed_bytes = 0;
}

static qr_status sim_vector_prepare(qr_device *device, const qr_weight *weight, const float **out,
                                    qr_error *err)
{
    static const float nothing;
    (void)device;
    (void)weight;
    (void)err;
    *out = &nothing;
    return QR_OK;
}

static qr_status sim_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                             int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err)
{
    (void)err;
    qr_kv *kv = qr_calloc(1, sizeof(*kv));
    qr_kv_spec *own = qr_calloc((size_t)n_layers, sizeof(*own));
    uint8_t *group = qr_calloc((size_t)n_layers, sizeof(*group));
    int32_t windows[QR_KV_GROUPS_MAX];
    int groups = qr_kv_groups(specs, n_layers, windows);
    memcpy(own, specs, (size_t)n_layers * sizeof(*own));
    for (int layer = 0; layer < n_layers; layer++)
        while (group[layer] < groups - 1 && windows[group[layer]] != specs[layer].window)
            group[layer]++;
    *kv = (qr_kv){.device = device,
                  .n_layers = n_layers,
                  .n_groups = groups,
                  .specs = own,
                  .group = group,
                  .n_blocks = n_blocks,
                  .block_size = block_size,
                  .dtype = dtype};
    *out = kv;
    return QR_OK;
}

static void sim_kv_close(qr_kv *kv)
{
    qr_free((void *)(uintptr_t)kv->specs);
    qr_free((void *)(uintptr_t)kv->group);
    qr_free(kv);
}

/* Addresses to give out; a page is taken only where drawn_logits writes a row. */
static void *sim_scratch_open(qr_device *device, size_t bytes, qr_error *err)
{
    (void)device;
    (void)err;
    void *scratch =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return scratch != MAP_FAILED ? scratch : NULL;
}

static void sim_scratch_close(qr_device *device, void *scratch, size_t bytes)
{
    (void)device;
    munmap(scratch, bytes);
}

static size_t sim_linear_scratch_bytes(const qr_device *device, int64_t rows, int64_t cols)
{
    (void)device;
    (void)rows;
    (void)cols;
    return 0;
}

static size_t sim_attention_scratch_bytes(const qr_device *device, int32_t n_heads, int32_t head_dim,
                                          const qr_batch *batch)
{
    (void)device;
    (void)n_heads;
    (void)head_dim;
    (void)batch;
    return 0;
}

/* ---- Time ---- */

static void sim_step_begin(qr_device *device, qr_kv *kv, const qr_batch *batch)
{
    (void)kv;
    sim_device *sim = sim_of(device);
    uint64_t now = qr_clock_ns(), overlap_ns = (uint64_t)(sim->overhead * 1e9);
    sim->batch = batch;
    sim->begin_ns = now - sim->free_ns <= overlap_ns ? sim->free_ns : now;
}

static void sim_step_work(qr_device *device, uint64_t bytes, uint64_t flops)
{
    sim_device *sim = sim_of(device);
    sim->step_s = sim->overhead + fmax((double)bytes / sim->bandwidth, (double)flops / sim->flops);
}

static qr_status sim_step_end(qr_device *device, qr_error *err)
{
    (void)err;
    sim_device *sim = sim_of(device);
    sim->free_ns = sim->begin_ns + (uint64_t)(sim->step_s * 1e9);
    sim->batch = NULL;
    struct timespec until = {.tv_sec = (time_t)(sim->free_ns / 1000000000),
                             .tv_nsec = (long)(sim->free_ns % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
    return QR_OK;
}

/* ---- Draws ---- */

static bool sim_draws(const qr_device *device, int32_t vocab)
{
    (void)device;
    return vocab > 0;
}

static int32_t token_of(const sim_device *sim, int32_t row, double uniform, int32_t vocab)
{
    int32_t at = sim->batch->logit_rows[row];
    uint64_t bits;
    memcpy(&bits, &uniform, sizeof(bits));
    uint64_t hash = qr_hash_mix((uint64_t)sim->seed + UINT64_C(0x9e3779b97f4a7c15));
    hash = qr_hash_mix(hash ^ bits);
    hash = qr_hash_mix(
        hash ^ ((uint64_t)(uint32_t)sim->batch->positions[at] << 32 | (uint32_t)sim->batch->token_ids[at]));
    return (int32_t)(hash % (uint64_t)vocab);
}

static void sim_draw(qr_device *device, qr_tensor logits, const qr_draw *draws, int32_t first, int32_t count)
{
    sim_device *sim = sim_of(device);
    QR_ASSERT(first >= 0 && count <= ROWS_MAX - first);
    sim->logits = logits.data;
    sim->vocab = (int32_t)logits.cols;
    for (int32_t i = 0; i < count; i++)
        sim->ids[first + i] = token_of(sim, first + i, draws[i].uniform, sim->vocab);
}

static int32_t sim_drawn(const qr_device *device, int32_t row)
{
    return ((const sim_device *)(const void *)device)->ids[row];
}

/* Valid until the next call: the engine looks at one row at a time. */
static const float *sim_drawn_logits(const qr_device *device, int32_t row)
{
    const sim_device *sim = (const sim_device *)(const void *)device;
    memset(sim->logits, 0, (size_t)sim->vocab * sizeof(float));
    sim->logits[sim->ids[row]] = PEAK;
    return sim->logits;
}

/* ---- Ops that do nothing ---- */

static void sim_embed(qr_device *device, const qr_weight *table, const int32_t *ids, qr_tensor y)
{
    (void)device;
    (void)table;
    (void)ids;
    (void)y;
}

static void sim_rmsnorm(qr_device *device, qr_tensor x, const float *w, float eps, qr_tensor y)
{
    (void)device;
    (void)x;
    (void)w;
    (void)eps;
    (void)y;
}

static void sim_add(qr_device *device, qr_tensor x, qr_tensor y)
{
    (void)device;
    (void)x;
    (void)y;
}

static void sim_add_rmsnorm(qr_device *device, qr_tensor x, qr_tensor delta, const float *w, float eps,
                            qr_tensor y)
{
    (void)delta;
    sim_rmsnorm(device, x, w, eps, y);
}

static void sim_linear(qr_device *device, qr_tensor x, const qr_weight *const *w, const float *const *bias,
                       int count, qr_tensor *y, void *scratch)
{
    (void)device;
    (void)x;
    (void)w;
    (void)bias;
    (void)count;
    (void)y;
    (void)scratch;
}

static void sim_linear_swiglu(qr_device *device, qr_tensor x, const qr_weight *gate, const qr_weight *up,
                              qr_tensor y, void *scratch)
{
    (void)device;
    (void)x;
    (void)gate;
    (void)up;
    (void)y;
    (void)scratch;
}

static void sim_act_mul(qr_device *device, qr_tensor gate, qr_tensor up, qr_activation activation)
{
    (void)activation;
    sim_add(device, gate, up);
}

static void sim_head_norm(qr_device *device, qr_tensor x, int32_t head_dim, const float *w, float eps)
{
    (void)head_dim;
    sim_rmsnorm(device, x, w, eps, x);
}

static qr_status sim_rope_prepare(qr_device *device, qr_rope_table *table, int64_t positions, qr_error *err)
{
    (void)device;
    (void)table;
    (void)positions;
    (void)err;
    return QR_OK;
}

static void sim_rope_release(qr_device *device, qr_rope_table *table)
{
    (void)device;
    (void)table;
}

static void sim_rope(qr_device *device, qr_tensor x, int32_t head_dim, const qr_rope_table *table,
                     const int32_t *positions)
{
    (void)device;
    (void)x;
    (void)head_dim;
    (void)table;
    (void)positions;
}

static void sim_kv_store(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor k,
                         qr_tensor v)
{
    (void)device;
    (void)kv;
    (void)layer;
    (void)batch;
    (void)k;
    (void)v;
}

static void sim_attention(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor q,
                          int32_t n_heads, float scale, qr_tensor y, void *scratch)
{
    (void)n_heads;
    (void)scale;
    (void)scratch;
    sim_kv_store(device, kv, layer, batch, q, y);
}

static void sim_gather(qr_device *device, qr_tensor x, const int32_t *rows, qr_tensor y)
{
    (void)device;
    (void)x;
    (void)rows;
    (void)y;
}

const qr_backend qr_backend_sim = {
    .name = "sim",
    .open = sim_open,
    .close = sim_close,
    .memory_available = sim_memory_available,
    .block_size = 32,
    .batched_tokens = 8192,
    .shared_rows = 1024,
    .activation = QR_DTYPE_BF16,
    .logit_rows = 512,
    .kv_f8 = true,
    .own_memory = true,
    .weight_prepare = sim_weight_prepare,
    .weight_release = sim_weight_release,
    .weight_prepared_bytes = sim_weight_bytes,
    .vector_prepare = sim_vector_prepare,
    .kv_open = sim_kv_open,
    .kv_close = sim_kv_close,
    .scratch_open = sim_scratch_open,
    .scratch_close = sim_scratch_close,
    .linear_scratch_bytes = sim_linear_scratch_bytes,
    .step_begin = sim_step_begin,
    .step_work = sim_step_work,
    .step_end = sim_step_end,
    .embed = sim_embed,
    .rmsnorm = sim_rmsnorm,
    .add = sim_add,
    .add_rmsnorm = sim_add_rmsnorm,
    .linear = sim_linear,
    .linear_swiglu = sim_linear_swiglu,
    .act_mul = sim_act_mul,
    .head_norm = sim_head_norm,
    .rope_prepare = sim_rope_prepare,
    .rope_release = sim_rope_release,
    .rope = sim_rope,
    .kv_store = sim_kv_store,
    .attention_scratch_bytes = sim_attention_scratch_bytes,
    .attention = sim_attention,
    .gather = sim_gather,
    .draws = sim_draws,
    .draw = sim_draw,
    .drawn = sim_drawn,
    .drawn_logits = sim_drawn_logits,
};
