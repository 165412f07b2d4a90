/* The public face of the engine: quire.h's Engine, Requests and Watching. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/engine.h"

/* Work and no step for so long: something hangs. */
#define PROGRESS_NS_MAX (UINT64_C(30) * 1000000000)

/* ---- Memory of requests ---- */

void qr_engine_unref(qr_engine *e)
{
    if (atomic_fetch_sub(&e->refs, 1) == 1)
        qr_free(e);
}

static void request_destroy(qr_request *r)
{
    qr_engine *e = r->engine;
    qr_poller *poller = r->poller;
    atomic_fetch_sub(&e->output_bytes, r->charged_bytes);
    qr_request_free(r);
    qr_poller_unref(poller);
    qr_engine_unref(e);
}

void qr_request_drop(qr_request *r)
{
    if (qr_request_unref(r))
        request_destroy(r);
}

/* Frees what the engine thread let go of last. */
static void engine_reap(qr_engine *e)
{
    for (qr_request *r = atomic_exchange(&e->freed, NULL), *next; r != NULL; r = next) {
        next = r->free_next;
        request_destroy(r);
    }
}

/* ---- Opening and closing ---- */

/* The arena of a step takes the largest step at once, so that no step takes heap memory. */
static void step_arena_init(const qr_engine *e, qr_arena *arena)
{
    const qr_engine_options *o = &e->plan.options;
    size_t tokens = (size_t)o->max_num_batched_tokens, seqs = (size_t)o->max_num_seqs;
    size_t stride = (size_t)(e->plan.max_model_len / o->block_size) + 1;
    size_t bytes = tokens * (8 * sizeof(int32_t) + sizeof(qr_draw) + sizeof(qr_logit_job)) +
                   seqs * (3 * sizeof(qr_plan_item) + 32) +
                   (size_t)e->plan.scheduler.n_groups * seqs * stride * sizeof(int32_t) + 4096;
    qr_arena_init(arena, bytes);
    qr_arena_alloc(arena, bytes - 1024);
    qr_arena_reset(arena);
}

static void write_config_label(qr_engine *e)
{
    const qr_engine_plan *p = &e->plan;
    snprintf(e->metrics.config_label, sizeof(e->metrics.config_label),
             "block_size=\"%d\",cache_dtype=\"%s\",enable_prefix_caching=\"%s\",num_gpu_blocks=\"%d\","
             "prefix_caching_hash_algo=\"sha256\"",
             p->options.block_size, qr_dtype_name(p->runner.kv_dtype),
             p->options.enable_prefix_caching ? "True" : "False", p->scheduler.n_blocks);
    qr_metrics_set(&e->metrics, QR_METRIC_CACHE_CONFIG, 1);
    qr_metrics_set(&e->metrics, QR_METRIC_SLEEP_AWAKE, 1);
}

static qr_status start_threads(qr_engine *e, qr_error *err)
{
    int32_t wanted = e->plan.options.text_threads;
    e->text_threads = qr_calloc((size_t)wanted, sizeof(pthread_t));
    for (; e->text_thread_count < wanted; e->text_thread_count++)
        if (pthread_create(&e->text_threads[e->text_thread_count], NULL, qr_prepare_run, e) != 0)
            return qr_fail(err, QR_OUT_OF_MEMORY, "engine: the system gives no thread for the text pool");
    if (pthread_create(&e->thread, NULL, qr_engine_run, e) != 0)
        return qr_fail(err, QR_OUT_OF_MEMORY, "engine: the system gives no thread");
    e->thread_started = true;
    return QR_OK;
}

qr_status qr_engine_open(qr_model *model, const qr_engine_options *options, qr_engine **out, qr_error *err)
{
    qr_engine_plan plan;
    qr_status status =
        qr_engine_plan_make(model->team, model->nets, &model->net_options, options, true, &plan, err);
    if (status != QR_OK)
        return status;
    qr_engine *e = qr_calloc(1, sizeof(*e));
    atomic_init(&e->refs, 1);
    e->model = model;
    e->plan = plan;
    e->seed = plan.options.seed;
    e->stats.size = sizeof(e->stats);
    e->stats.block_size = plan.options.block_size;
    e->stats.kv_blocks = e->stats.kv_blocks_free = plan.scheduler.n_blocks;
    e->stats.last_progress_ns = qr_clock_ns();
    e->public_stats = e->stats;
    qr_list_init(&e->live);
    pthread_mutex_init(&e->stats_mutex, NULL);
    qr_queue_init(&e->text_queue, (size_t)plan.options.max_waiting + 1);
    qr_metrics_init(&e->metrics, plan.max_model_len);
    write_config_label(e);
    for (int i = 0; i < plan.ranks; i++) {
        const qr_rank_plan *rank = &plan.rank[i];
        qr_metrics_add_rank(&e->metrics, i, "weights",
                            rank->weights.mapped_bytes + rank->weights.copied_bytes);
        qr_metrics_add_rank(&e->metrics, i, "kv", rank->kv_bytes);
        qr_metrics_add_rank(&e->metrics, i, "scratch", rank->scratch_bytes);
    }
    qr_metrics_publish(&e->metrics);
    e->scheduler = qr_scheduler_new(&plan.scheduler);
    e->root = e->scheduler->root;
    qr_device_rates(qr_team_device(model->team, 0), &e->read_rate,
                    &e->flop_rate); /* before KV takes the memory */
    status = qr_runner_new(model->team, model->nets, &plan.runner, &e->runner, err);
    if (status == QR_OK) {
        e->ahead = plan.options.async_scheduling != NULL && strcmp(plan.options.async_scheduling, "auto") != 0
                       ? strcmp(plan.options.async_scheduling, "on") == 0
                       : qr_runner_runs_ahead(e->runner);
        for (int i = 0; i < (e->ahead ? 2 : 1); i++)
            step_arena_init(e, &e->flights[i].arena);
        status = start_threads(e, err);
    }
    if (status != QR_OK) {
        qr_engine_close(e);
        return status;
    }
    qr_engine_plan_log(&plan, "engine_open", model->team);
    *out = e;
    return QR_OK;
}

void qr_engine_close(qr_engine *e)
{
    if (e == NULL)
        return;
    atomic_store(&e->draining, true);
    qr_queue_close(&e->text_queue); /* what is in it still goes to the inbox */
    for (int32_t i = 0; i < e->text_thread_count; i++)
        pthread_join(e->text_threads[i], NULL);
    atomic_store(&e->closing, true);
    qr_engine_signal(e);
    if (e->thread_started)
        pthread_join(e->thread, NULL);
    atomic_store(&e->closed, true);
    for (qr_request *r = atomic_exchange(&e->cancels, NULL), *next; r != NULL; r = next) {
        next = r->cancel_next;
        qr_request_drop(r);
    }
    engine_reap(e);
    qr_runner_free(e->runner);
    qr_scheduler_free(e->scheduler);
    for (size_t i = 0; i < QR_COUNT_OF(e->flights); i++)
        qr_arena_release(&e->flights[i].arena);
    qr_metrics_release(&e->metrics);
    qr_queue_release(&e->text_queue);
    pthread_mutex_destroy(&e->stats_mutex);
    qr_free(e->text_threads);
    qr_engine_unref(e);
}

void qr_engine_drain(qr_engine *e) { atomic_store(&e->draining, true); }

int64_t qr_engine_max_model_len(const qr_engine *e) { return e->plan.max_model_len; }

void qr_engine_reset_prefix_cache(qr_engine *e)
{
    atomic_store(&e->reset_cache, true);
    qr_engine_signal(e);
}

/* ---- Requests ---- */

qr_status qr_poller_open(qr_engine *engine, qr_poller **out, qr_error *err)
{
    (void)engine;
    return qr_poller_new(out, err);
}

static qr_status refuse(qr_engine *e, qr_error *err, const char *what, uint64_t have, uint64_t most)
{
    atomic_fetch_add(&e->rejections, 1);
    return qr_fail(err, QR_BUSY, "engine: %s: %" PRIu64 " of %" PRIu64 " taken: try again later", what, have,
                   most);
}

/* Both budgets are taken before they are checked, so that submitters cannot pass them together. */
static qr_status charge(qr_engine *e, qr_request *r, qr_error *err)
{
    const qr_engine_options *o = &e->plan.options;
    if (r->n > o->max_waiting)
        return qr_fail(err, QR_INVALID_ARGUMENT, "request: n %d is more than may wait at all, %d", r->n,
                       o->max_waiting);
    int waiting = atomic_fetch_add(&e->waiting_count, r->n);
    if (waiting + r->n > o->max_waiting) {
        atomic_fetch_sub(&e->waiting_count, r->n);
        return refuse(e, err, "waiting sequences", (uint64_t)waiting, (uint64_t)o->max_waiting);
    }
    uint64_t wanted = qr_request_estimate_bytes(r, e->plan.max_model_len);
    uint64_t taken = atomic_fetch_add(&e->output_bytes, wanted);
    if (taken + wanted > o->output_bytes_max) {
        atomic_fetch_sub(&e->output_bytes, wanted);
        atomic_fetch_sub(&e->waiting_count, r->n);
        if (wanted > o->output_bytes_max)
            return qr_fail(err, QR_LIMIT_EXCEEDED,
                           "request: its output may take %" PRIu64 " bytes, the limit is %" PRIu64, wanted,
                           o->output_bytes_max);
        return refuse(e, err, "output bytes", taken, o->output_bytes_max);
    }
    r->charged_bytes = wanted;
    for (int32_t i = 0; i < r->n; i++)
        r->samples[i].counted_waiting = true;
    return QR_OK;
}

static void name_request(qr_engine *e, qr_request *r)
{
    r->arrival = atomic_fetch_add(&e->arrivals, 1);
    if (r->sampling.has_seed)
        r->seed = r->sampling.seed;
    else
        /* 63 bits, so that a client can send it back as the int64 that `seed` is. */
        r->seed = (e->seed != 0 ? qr_hash_mix(e->seed ^ qr_hash_mix(r->arrival + 1)) : qr_rng_system()) >> 1;
    if (r->id != NULL)
        return;
    char id[48];
    int length = snprintf(id, sizeof(id), "req-%" PRIu64, r->arrival);
    r->id = qr_arena_strndup(&r->arena, id, (size_t)length);
}

qr_status qr_request_submit(qr_engine *e, qr_poller *poller, const qr_request_options *options,
                            qr_request **out, qr_error *err)
{
    engine_reap(e);
    if (atomic_load(&e->draining))
        return qr_fail(err, QR_CLOSED, "engine: it is shutting down");
    if (atomic_load(&e->failed))
        return qr_fail(err, QR_DEVICE_FAILED, "engine: its device has failed");
    qr_request *r;
    qr_status status = qr_request_new(options, &r, err);
    if (status != QR_OK)
        return status;
    status = charge(e, r, err);
    if (status != QR_OK) {
        qr_request_free(r);
        return status;
    }
    name_request(e, r);
    r->engine = e;
    r->poller = poller;
    atomic_init(&r->refs, 2); /* the reader's and the engine's */
    atomic_fetch_add(&e->refs, 1);
    qr_poller_ref(poller);
    atomic_store_explicit(&r->queued_ns, qr_clock_ns(), memory_order_relaxed);
    *out = r;
    if (r->is_text || r->is_chat || r->sampling.bad_word_count > 0) {
        bool queued = qr_queue_push(&e->text_queue, r);
        QR_ASSERT(queued || atomic_load(&e->draining)); /* it holds as many as may wait */
        if (queued)
            return QR_OK;
        qr_fail(&r->error, QR_CLOSED, "engine: it is shutting down");
        qr_engine_post(e, r);
        return QR_OK;
    }
    qr_prepare_request(e, NULL, r);
    return QR_OK;
}

static bool all_ended(const qr_request *r)
{
    for (int32_t i = 0; i < r->n; i++)
        if (atomic_load_explicit(&r->samples[i].public_finish, memory_order_acquire) == QR_FINISH_NONE)
            return false;
    return true;
}

void qr_request_cancel(qr_request *r)
{
    qr_engine *e = r->engine;
    if (atomic_load(&e->closed) || all_ended(r) || atomic_exchange(&r->cancel_sent, true))
        return;
    atomic_store(&r->cancelled, true);
    qr_request_ref(r);
    qr_request *top = atomic_load(&e->cancels);
    do
        r->cancel_next = top;
    while (!atomic_compare_exchange_weak(&e->cancels, &top, r));
    qr_engine_signal(e);
}

void qr_request_release(qr_request *r)
{
    if (r == NULL)
        return;
    qr_engine *e = r->engine;
    atomic_store(&r->released, true);
    qr_request_cancel(r);
    bool closed = atomic_load(&e->closed);
    if (!closed)
        engine_reap(e);
    qr_request_drop(r);
}

const char *qr_finish_name(qr_finish finish)
{
    static const char *const names[] = {NULL, "stop", "length", "abort", "error"};
    return (size_t)finish < QR_COUNT_OF(names) ? names[finish] : NULL;
}

qr_sample_view qr_request_sample(const qr_request *r, int32_t sample)
{
    if (sample < 0 || sample >= r->n)
        return (qr_sample_view){0};
    const qr_output *output = &r->samples[sample];
    if (output->seq.ids == NULL) /* nothing was ever computed */
        return (qr_sample_view){.text = "", .finish = output->seen_finish};
    int64_t first = output->seq.prompt_count + r->prefix_count;
    int64_t count = QR_MAX(0, output->seen_tokens - first);
    const char *text = output->text_capacity > 0 ? output->text + output->text_begin : "";
    return (qr_sample_view){
        .token_ids = output->seq.ids + first,
        .token_count = (size_t)count,
        .text = text,
        .text_bytes = output->seen_text - output->text_begin,
        .logprobs = output->logprobs != NULL ? output->logprobs + r->prefix_count * r->columns : NULL,
        .logprob_columns = (size_t)r->columns,
        .finish = output->seen_finish};
}

const char *qr_request_prefix_text(const qr_request *r, size_t *bytes)
{
    const qr_output *output = &r->samples[0];
    *bytes = output->text_begin;
    return *bytes > 0 ? output->text : "";
}

qr_request_facts qr_request_describe(const qr_request *r)
{
    qr_request_facts facts = {.id = r->id,
                              .seed = r->seed,
                              .prompt_ids = r->samples[0].seq.ids,
                              .prompt_count = (size_t)r->prompt_count,
                              .cached_count = atomic_load_explicit(&r->cached_count, memory_order_relaxed),
                              .prompt_logprobs = r->prompt_logprobs,
                              .prompt_logprob_columns = (size_t)r->prompt_columns,
                              .queued_ns = atomic_load_explicit(&r->queued_ns, memory_order_relaxed),
                              .scheduled_ns = atomic_load_explicit(&r->scheduled_ns, memory_order_relaxed),
                              .first_token_ns =
                                  atomic_load_explicit(&r->first_token_ns, memory_order_relaxed),
                              .finished_ns = atomic_load_explicit(&r->finished_ns, memory_order_relaxed)};
    if (facts.prompt_ids == NULL)
        facts.prompt_count = 0;
    return facts;
}

/* ---- Scores ---- */

static qr_status score_wait(qr_poller *poller, qr_request *request, size_t count, float *out, qr_error *err)
{
    qr_event event;
    do
        qr_poller_poll(poller, &event, 1, -1);
    while (event.finish == QR_FINISH_NONE);
    if (event.finish == QR_FINISH_ERROR)
        return qr_fail(err, event.status, "%s", event.message);
    if (event.finish == QR_FINISH_ABORT)
        return qr_fail(err, QR_CANCELLED, "engine: it was closed");
    qr_request_facts facts = qr_request_describe(request);
    out[0] = 0;
    for (size_t i = 1; i < count; i++)
        out[i] = facts.prompt_logprobs[i * facts.prompt_logprob_columns].logprob;
    return QR_OK;
}

qr_status qr_score(qr_engine *e, const int32_t *ids, size_t count, float *out, qr_error *err)
{
    qr_request_options options;
    qr_request_options_init(&options);
    options.token_ids = ids;
    options.token_count = count;
    options.sampling.max_tokens = 0;
    options.sampling.prompt_logprobs = 0;
    options.sampling.detokenize = false;
    qr_poller *poller;
    qr_request *request;
    qr_status status = qr_poller_open(e, &poller, err);
    if (status != QR_OK)
        return status;
    status = qr_request_submit(e, poller, &options, &request, err);
    if (status == QR_OK) {
        status = score_wait(poller, request, count, out, err);
        qr_request_release(request);
    }
    qr_poller_close(poller);
    return status;
}

/* ---- Watching ---- */

void qr_engine_get_stats(const qr_engine *engine, qr_engine_stats *stats)
{
    qr_engine *e = (qr_engine *)(uintptr_t)engine; /* its mutex is not const */
    size_t size = stats->size;
    pthread_mutex_lock(&e->stats_mutex);
    qr_engine_stats copy = e->public_stats;
    pthread_mutex_unlock(&e->stats_mutex);
    uint64_t now = qr_clock_ns();
    bool idle = atomic_load(&e->idle);
    if (idle)
        copy.last_progress_ns = now;
    bool hangs = now > copy.last_progress_ns && now - copy.last_progress_ns > PROGRESS_NS_MAX;
    copy.device_failed = atomic_load(&e->failed);
    copy.healthy = !copy.device_failed && !hangs;
    copy.draining = atomic_load(&e->draining);
    copy.waiting = QR_MAX(copy.waiting, atomic_load(&e->waiting_count));
    copy.size = size;
    memcpy(stats, &copy, QR_MIN(size, sizeof(copy)));
}

size_t qr_engine_metrics(const qr_engine *engine, qr_metric **out)
{
    qr_engine *e = (qr_engine *)(uintptr_t)engine;
    size_t count = qr_metrics_read(&e->metrics, out);
    (*out)[QR_METRIC_REJECTIONS].value = (double)atomic_load(&e->rejections);
    return count;
}
