#include "engine/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/mem.h"

#define LOGIT_ROWS     64 /* held at a time, unless the device says otherwise */
#define MODEL_LEN_MAX  (INT64_C(1) << 24)
#define BLOCK_SIZE_MAX 1024
#define SEQS_MAX       4096
#define BATCHED_MAX    65536
#define BLOCKS_MAX     (1 << 26)
#define GPU_SHARE      0.92
#define GPU_SLACK      ((uint64_t)512 << 20) /* recorded steps, and code that the driver loads at its first use */

void qr_engine_options_init(qr_engine_options *options)
{
    *options = (qr_engine_options){
        .size = sizeof(*options), .enable_prefix_caching = true, .deterministic = true, .max_logprobs = 20};
}

static qr_status check_range(const char *name, int64_t value, int64_t low, int64_t high, qr_error *err)
{
    if (value >= low && value <= high)
        return QR_OK;
    return qr_fail(err, QR_INVALID_ARGUMENT, "engine: %s must be between %lld and %lld, got %lld", name,
                   (long long)low, (long long)high, (long long)value);
}

static qr_status fill_options(qr_engine_options *o, const qr_device *device, qr_error *err)
{
    if (o->max_num_seqs == 0)
        o->max_num_seqs = 256;
    if (o->max_num_batched_tokens == 0)
        o->max_num_batched_tokens = QR_MAX(qr_device_batched_tokens(device), o->max_num_seqs);
    if (o->block_size == 0)
        o->block_size = qr_device_block_size(device);
    if (o->max_waiting == 0)
        o->max_waiting = 4096;
    if (o->output_bytes_max == 0)
        o->output_bytes_max = (uint64_t)1 << 30;
    if (o->text_threads == 0)
        o->text_threads = 1;
    if (o->gpu_memory_utilization == 0)
        o->gpu_memory_utilization = GPU_SHARE;
    qr_status status;
    if ((status = check_range("max_model_len", o->max_model_len, 0, MODEL_LEN_MAX, err)) != QR_OK ||
        (status = check_range("max_num_seqs", o->max_num_seqs, 1, SEQS_MAX, err)) != QR_OK ||
        (status = check_range("max_num_batched_tokens", o->max_num_batched_tokens, 1, BATCHED_MAX, err)) !=
            QR_OK ||
        (status = check_range("long_prefill_token_threshold", o->long_prefill_token_threshold, 0, INT32_MAX,
                              err)) != QR_OK ||
        (status = check_range("block_size", o->block_size, 1, BLOCK_SIZE_MAX, err)) != QR_OK ||
        (status = check_range("num_kv_blocks", o->num_kv_blocks, 0, BLOCKS_MAX, err)) != QR_OK ||
        (status = check_range("max_logprobs", o->max_logprobs, 0, 1000000, err)) != QR_OK ||
        (status = check_range("max_waiting", o->max_waiting, 1, 1 << 20, err)) != QR_OK ||
        (status = check_range("text_threads", o->text_threads, 1, 64, err)) != QR_OK)
        return status;
    if (!(o->gpu_memory_utilization > 0 && o->gpu_memory_utilization <= 1))
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "engine: gpu_memory_utilization must be above 0 and at most 1, got %g",
                       o->gpu_memory_utilization);
    const char *ahead = o->async_scheduling != NULL ? o->async_scheduling : "auto";
    if (strcmp(ahead, "auto") != 0 && strcmp(ahead, "on") != 0 && strcmp(ahead, "off") != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "engine: async_scheduling must be auto, on or off, got %s",
                       ahead);
    if (o->max_num_batched_tokens < o->max_num_seqs)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "engine: max_num_batched_tokens %d is less than max_num_seqs %d: not every sample "
                       "could get a row",
                       o->max_num_batched_tokens, o->max_num_seqs);
    return QR_OK;
}

static qr_status choose_kv_dtype(qr_engine_plan *plan, const qr_device *device, const qr_net *net,
                                 const qr_net_options *net_options, qr_error *err)
{
    const char *name = plan->options.kv_cache_dtype;
    plan->runner.kv_dtype = qr_net_kv_dtype(net, net_options);
    if (name == NULL || strcmp(name, "auto") == 0)
        return QR_OK;
    int dtype = qr_dtype_parse(name);
    if (dtype < 0 || dtype == QR_DTYPE_I32)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "engine: kv_cache_dtype must be auto, float32, float16, bfloat16 or fp8, got %s",
                       name);
    if (!qr_device_holds_kv(device, (qr_dtype)dtype))
        return qr_fail(err, QR_UNSUPPORTED, "engine: kv_cache_dtype %s: %s does not serve it", name,
                       qr_device_name(device));
    plan->runner.kv_dtype = (qr_dtype)dtype;
    return QR_OK;
}

/* Memory for KV: as much as was asked for, else `share`, at most what can be used. */
static int32_t choose_blocks(const qr_engine_plan *plan, const qr_rank_plan *rank, uint64_t share)
{
    const qr_engine_options *o = &plan->options;
    if (o->num_kv_blocks > 0)
        return o->num_kv_blocks;
    uint64_t useful = (uint64_t)o->max_num_seqs * (uint64_t)plan->blocks_per_sequence;
    uint64_t blocks = o->kv_cache_memory_bytes > 0 ? o->kv_cache_memory_bytes / rank->block_bytes
                                                   : QR_MIN(share / rank->block_bytes, useful);
    return (int32_t)QR_MIN(QR_MAX(blocks, 1), BLOCKS_MAX);
}

/* The longest sequence that n_blocks hold. */
static int64_t longest_sequence(const qr_scheduler_options *s, int64_t context)
{
    if (qr_scheduler_blocks_needed(s, context) <= s->n_blocks)
        return context;
    int64_t low = 0, high = context; /* blocks_needed grows with the length */
    while (low + 1 < high) {
        int64_t middle = low + (high - low) / 2;
        if (qr_scheduler_blocks_needed(s, middle) <= s->n_blocks)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void fill_scheduler(qr_engine_plan *plan, const qr_device *device, const qr_kv_spec *specs,
                           int n_layers, uint64_t seed)
{
    const qr_engine_options *o = &plan->options;
    plan->scheduler = (qr_scheduler_options){.max_num_seqs = o->max_num_seqs,
                                             .max_num_batched_tokens = o->max_num_batched_tokens,
                                             .long_prefill_token_threshold = o->long_prefill_token_threshold,
                                             .block_size = o->block_size,
                                             .prefix_caching = o->enable_prefix_caching,
                                             .priority = o->priority_scheduling,
                                             .seed = seed};
    plan->scheduler.shared_prompt_rows = qr_device_shared_rows(device);
    plan->scheduler.n_groups = qr_kv_groups(specs, n_layers, plan->scheduler.window);
}

static size_t step_scratch(const qr_engine_plan *plan, const qr_net *net, qr_device *device, int64_t context)
{
    qr_net_step step = {.n_tokens = plan->options.max_num_batched_tokens,
                        .n_seqs = plan->options.max_num_seqs,
                        .n_logit_rows = plan->options.max_num_batched_tokens,
                        .max_logit_rows = plan->runner.max_logit_rows,
                        .context_max = (int32_t)context,
                        .block_size = plan->options.block_size};
    return qr_net_scratch_bytes(net, device, &step);
}

/* A quarter of what there is; of a device's own memory, all that the largest step leaves. */
static uint64_t kv_share(const qr_engine_plan *plan, const qr_net *net, qr_device *device, uint64_t budget,
                         int64_t context)
{
    if (!qr_device_owns_memory(device))
        return budget / 4;
    uint64_t others = step_scratch(plan, net, device, context) + GPU_SLACK;
    return budget > others ? budget - others : 0;
}

/* "engine", or "engine: rank 1". */
static const char *rank_name(const qr_engine_plan *plan, int index, char out[32])
{
    snprintf(out, 32, plan->ranks > 1 ? "engine: rank %d" : "engine", index);
    return out;
}

/* What the rank has, and *blocks: as many as it can hold beside its weights. */
static qr_status plan_rank(qr_engine_plan *plan, const qr_net *net, qr_device *device,
                           const qr_net_options *net_options, int64_t context, bool loaded, int index,
                           int32_t *blocks, qr_error *err)
{
    const qr_engine_options *o = &plan->options;
    qr_rank_plan *rank = &plan->rank[index];
    char who[32];
    int n_layers;
    const qr_kv_spec *specs = qr_net_kv_specs(net, &n_layers);
    qr_net_plan(net, device, net_options, &rank->weights);
    bool stated = o->kv_cache_memory_bytes > 0 || o->num_kv_blocks > 0;
    rank->available_bytes = qr_device_memory_available(device, stated ? 1 : o->gpu_memory_utilization);
    rank->block_bytes = qr_kv_block_bytes(specs, n_layers, plan->options.block_size, plan->runner.kv_dtype);
    uint64_t weights = loaded ? 0 : rank->weights.copied_bytes;
    if (weights > rank->available_bytes)
        return qr_fail(err, QR_OUT_OF_MEMORY, "%s: %.2f GB wanted for weights alone, %.2f GB available",
                       rank_name(plan, index, who), (double)weights / 1e9,
                       (double)rank->available_bytes / 1e9);
    *blocks =
        choose_blocks(plan, rank, kv_share(plan, net, device, rank->available_bytes - weights, context));
    return QR_OK;
}

static void count_bytes(qr_engine_plan *plan, const qr_team *team, qr_net *const *nets)
{
    for (int i = 0; i < plan->ranks; i++) /* one size for all: equal steps have equal places in it */
        plan->runner.scratch_bytes =
            QR_MAX(plan->runner.scratch_bytes,
                   step_scratch(plan, nets[i], qr_team_device(team, i), plan->max_model_len));
    plan->runner.n_blocks = plan->scheduler.n_blocks;
    plan->runner.block_size = plan->options.block_size;
    for (int i = 0; i < plan->ranks; i++) {
        plan->rank[i].scratch_bytes = plan->runner.scratch_bytes;
        plan->rank[i].kv_bytes = plan->rank[i].block_bytes * (uint64_t)plan->scheduler.n_blocks;
    }
    uint64_t tables =
        (uint64_t)plan->options.max_num_seqs * (uint64_t)plan->blocks_per_sequence * sizeof(int32_t);
    plan->bookkeeping_bytes = (uint64_t)plan->scheduler.n_groups *
                                  ((uint64_t)plan->scheduler.n_blocks * (sizeof(qr_block) + 8) + tables) +
                              (uint64_t)qr_net_vocab(nets[0]) * 32 +
                              (uint64_t)plan->options.max_num_batched_tokens * (16 + sizeof(qr_logit_job));
}

static qr_status check_fits(const qr_engine_plan *plan, int index, bool loaded, qr_error *err)
{
    const qr_rank_plan *rank = &plan->rank[index];
    uint64_t weights = loaded ? 0 : rank->weights.copied_bytes;
    uint64_t rest = rank->scratch_bytes + plan->bookkeeping_bytes, total = weights + rank->kv_bytes + rest;
    if (total <= rank->available_bytes)
        return QR_OK;
    char who[32];
    return qr_fail(err, QR_OUT_OF_MEMORY,
                   "%s: %.2f GB wanted (weights %.2f, KV %.2f, scratch %.2f), %.2f GB available",
                   rank_name(plan, index, who), (double)total / 1e9, (double)weights / 1e9,
                   (double)rank->kv_bytes / 1e9, (double)rest / 1e9, (double)rank->available_bytes / 1e9);
}

qr_status qr_engine_plan_make(const qr_team *team, qr_net *const *nets, const qr_net_options *net_options,
                              const qr_engine_options *options, bool loaded, qr_engine_plan *plan,
                              qr_error *err)
{
    memset(plan, 0, sizeof(*plan));
    qr_engine_options_init(&plan->options);
    if (options != NULL)
        memcpy(&plan->options, options, QR_MIN(options->size, sizeof(plan->options)));
    qr_engine_options *o = &plan->options;
    const qr_net *net = nets[0];
    qr_device *device = qr_team_device(team, 0);
    qr_status status;
    if ((status = fill_options(o, device, err)) != QR_OK ||
        (status = choose_kv_dtype(plan, device, net, net_options, err)) != QR_OK)
        return status;
    const qr_model_config *config = qr_net_config(net);
    if (o->max_model_len > config->context)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "engine: max_model_len %lld is more than the checkpoint's %lld",
                       (long long)o->max_model_len, (long long)config->context);
    int n_layers;
    const qr_kv_spec *specs = qr_net_kv_specs(net, &n_layers);
    fill_scheduler(plan, device, specs, n_layers, o->seed);
    if (plan->scheduler.n_groups < 0)
        return qr_fail(err, QR_UNSUPPORTED, "engine: the layers have more than %d different windows",
                       QR_KV_TABLES_MAX);
    int64_t wanted = o->max_model_len > 0 ? o->max_model_len : config->context;
    plan->blocks_per_sequence = qr_scheduler_blocks_needed(&plan->scheduler, wanted);
    int32_t logit_rows = qr_device_logit_rows(device) > 0 ? qr_device_logit_rows(device) : LOGIT_ROWS;
    plan->runner.max_logit_rows = QR_MIN(logit_rows, o->max_num_batched_tokens);
    plan->ranks = qr_team_ranks(team);
    plan->scheduler.n_blocks = BLOCKS_MAX;
    for (int i = 0; i < plan->ranks; i++) {
        int32_t blocks = 0;
        status =
            plan_rank(plan, nets[i], qr_team_device(team, i), net_options, wanted, loaded, i, &blocks, err);
        if (status != QR_OK)
            return status;
        plan->scheduler.n_blocks = QR_MIN(plan->scheduler.n_blocks, blocks);
    }
    plan->max_model_len = longest_sequence(&plan->scheduler, wanted);
    plan->blocks_per_sequence = qr_scheduler_blocks_needed(&plan->scheduler, QR_MAX(plan->max_model_len, 1));
    plan->runner.max_logprobs = o->max_logprobs;
    count_bytes(plan, team, nets);
    if (plan->max_model_len < QR_MIN(wanted, 2) || (o->max_model_len > 0 && plan->max_model_len < wanted))
        return qr_fail(
            err, QR_OUT_OF_MEMORY,
            "engine: KV cache: %d blocks of %d tokens hold a sequence of %lld tokens, max_model_len is %lld",
            plan->scheduler.n_blocks, o->block_size, (long long)plan->max_model_len, (long long)wanted);
    for (int i = 0; i < plan->ranks && status == QR_OK; i++)
        status = check_fits(plan, i, loaded, err);
    return status;
}

static void log_rank(const qr_engine_plan *p, const char *event, const qr_rank_plan *rank, const char *device)
{
    char quoted[160];
    qr_log(QR_LOG_INFO, event,
           "rank=%d device=%s available_bytes=%" PRIu64 " weights_copied_bytes=%" PRIu64
           " weights_mapped_bytes=%" PRIu64 " kv_bytes=%" PRIu64 " kv_tokens=%" PRId64
           " scratch_bytes=%" PRIu64 " max_model_len=%" PRId64
           " kv_blocks=%d block_size=%d kv_dtype=%s max_num_seqs=%d max_num_batched_tokens=%d",
           (int)(rank - p->rank), qr_log_quote(device, quoted, sizeof(quoted)), rank->available_bytes,
           rank->weights.copied_bytes, rank->weights.mapped_bytes, rank->kv_bytes,
           (int64_t)p->scheduler.n_blocks * p->options.block_size, rank->scratch_bytes, p->max_model_len,
           p->scheduler.n_blocks, p->options.block_size, qr_dtype_name(p->runner.kv_dtype),
           p->options.max_num_seqs, p->options.max_num_batched_tokens);
}

void qr_engine_plan_log(const qr_engine_plan *plan, const char *event, const qr_team *team)
{
    for (int i = 0; i < plan->ranks; i++)
        log_rank(plan, event, &plan->rank[i], qr_device_describe(qr_team_device(team, i)));
}

static void put_int(qr_json *object, const char *key, uint64_t value)
{
    qr_json_set(object, key, qr_json_new_int((int64_t)value));
}

static qr_json *rank_json(const qr_rank_plan *rank)
{
    qr_json *json = qr_json_new_object();
    put_int(json, "available_bytes", rank->available_bytes);
    put_int(json, "weights_mapped_bytes", rank->weights.mapped_bytes);
    put_int(json, "weights_copied_bytes", rank->weights.copied_bytes);
    put_int(json, "weights_read_bytes_per_token", rank->weights.read_bytes);
    put_int(json, "kv_block_bytes", rank->block_bytes);
    put_int(json, "kv_bytes", rank->kv_bytes);
    put_int(json, "scratch_bytes", rank->scratch_bytes);
    return json;
}

qr_json *qr_engine_plan_json(const qr_engine_plan *plan, const qr_team *team)
{
    qr_json *json = rank_json(&plan->rank[0]);
    qr_json_set(json, "kv_dtype", qr_json_new_string(qr_str_of(qr_dtype_name(plan->runner.kv_dtype))));
    put_int(json, "kv_bytes_per_token", plan->rank[0].block_bytes / (uint64_t)plan->options.block_size);
    put_int(json, "kv_blocks", (uint64_t)plan->scheduler.n_blocks);
    put_int(json, "kv_groups", (uint64_t)plan->scheduler.n_groups);
    put_int(json, "block_size", (uint64_t)plan->options.block_size);
    put_int(json, "bookkeeping_bytes", plan->bookkeeping_bytes);
    put_int(json, "max_model_len", (uint64_t)plan->max_model_len);
    put_int(json, "max_num_seqs", (uint64_t)plan->options.max_num_seqs);
    put_int(json, "max_num_batched_tokens", (uint64_t)plan->options.max_num_batched_tokens);
    if (plan->ranks == 1)
        return json;
    qr_json *ranks = qr_json_new_object();
    for (int i = 0; i < plan->ranks; i++) {
        char name[16];
        snprintf(name, sizeof(name), "rank %d", i);
        qr_json *rank = rank_json(&plan->rank[i]);
        qr_json_set(rank, "device",
                    qr_json_new_string(qr_str_of(qr_device_describe(qr_team_device(team, i)))));
        qr_json_set(ranks, name, rank);
    }
    qr_json_set(json, "ranks", ranks);
    return json;
}
