#include "engine/engine.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/* ---- Inboxes ---- */

void qr_engine_signal(qr_engine *e)
{
    atomic_fetch_add(&e->signal, 1);
    if (atomic_load(&e->sleeping))
        syscall(SYS_futex, (uint32_t *)(void *)&e->signal, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void qr_engine_post(qr_engine *e, qr_request *request)
{
    qr_request *top = atomic_load(&e->inbox);
    do
        request->inbox_next = top;
    while (!atomic_compare_exchange_weak(&e->inbox, &top, request));
    qr_engine_signal(e);
}

/* Lets go of a request on the engine thread, which frees nothing itself: the next API call does. */
static void engine_drop(qr_engine *e, qr_request *request)
{
    if (!qr_request_unref(request))
        return;
    qr_request *top = atomic_load(&e->freed);
    do
        request->free_next = top;
    while (!atomic_compare_exchange_weak(&e->freed, &top, request));
}

/* This step has news of the request, or must look whether it has. */
static void engine_touch(qr_engine *e, qr_request *request)
{
    if (request->in_step)
        return;
    request->in_step = true;
    request->step_next = e->step_first;
    e->step_first = request;
}

/* ---- Ends ---- */

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return from_ns != 0 && to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

static void measure_output(qr_engine *e, const qr_output *output, uint64_t now)
{
    static const qr_metric_id reasons[] = {[QR_FINISH_STOP] = QR_METRIC_SUCCESS_STOP,
                                           [QR_FINISH_LENGTH] = QR_METRIC_SUCCESS_LENGTH,
                                           [QR_FINISH_ABORT] = QR_METRIC_SUCCESS_ABORT,
                                           [QR_FINISH_ERROR] = QR_METRIC_SUCCESS_ERROR};
    const qr_request *r = output->request;
    qr_metrics_add(&e->metrics, reasons[output->finish], 1);
    if (output->first_token_ns == 0)
        return;
    int64_t tokens = qr_output_count(output) - r->prefix_count;
    uint64_t scheduled = atomic_load_explicit(&r->scheduled_ns, memory_order_relaxed);
    double decode = seconds(output->first_token_ns, now);
    qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_GENERATION, (double)tokens);
    qr_metrics_observe(&e->metrics, QR_METRIC_INFERENCE_TIME, seconds(scheduled, now));
    qr_metrics_observe(&e->metrics, QR_METRIC_PREFILL_TIME, seconds(scheduled, output->first_token_ns));
    qr_metrics_observe(&e->metrics, QR_METRIC_DECODE_TIME, decode);
    if (tokens > 1)
        qr_metrics_observe(&e->metrics, QR_METRIC_PER_TOKEN, decode / (double)(tokens - 1));
}

static void count_scheduled(qr_engine *e, qr_output *output)
{
    if (output->counted_waiting)
        atomic_fetch_sub(&e->waiting_count, 1);
    output->counted_waiting = false;
}

static void measure_request(qr_engine *e, const qr_request *r, uint64_t now)
{
    int64_t most = 0;
    for (int32_t i = 0; i < r->n; i++)
        most = QR_MAX(most, qr_output_count(&r->samples[i]) - r->prefix_count);
    qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_MAX_GENERATION, (double)most);
    qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_PROMPT, (double)r->prompt_count);
    qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_N, r->n);
    if (r->sampling.max_tokens >= 0)
        qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_MAX_TOKENS, (double)r->sampling.max_tokens);
    qr_metrics_observe(&e->metrics, QR_METRIC_END_TO_END,
                       seconds(atomic_load_explicit(&r->queued_ns, memory_order_relaxed), now));
}

/* The sample has its finish: blocks go back, the request ends with its last sample. */
static void engine_end_output(qr_engine *e, qr_output *output, uint64_t now)
{
    qr_request *r = output->request;
    qr_scheduler_finish(e->scheduler, &output->seq);
    count_scheduled(e, output);
    measure_output(e, output, now);
    engine_touch(e, r);
    if (--r->live > 0)
        return;
    r->state = QR_REQUEST_ENDED;
    measure_request(e, r, now);
    atomic_store_explicit(&r->finished_ns, now, memory_order_relaxed);
}

static void engine_end_request(qr_engine *e, qr_request *r, qr_finish finish, qr_status status)
{
    uint64_t now = qr_clock_ns();
    for (int32_t i = 0; i < r->n && r->state != QR_REQUEST_ENDED; i++) {
        qr_output *output = &r->samples[i];
        if (output->finish != QR_FINISH_NONE)
            continue;
        qr_output_end(output, finish, status);
        engine_end_output(e, output, now);
    }
}

/* ---- The inbox ---- */

/* Nothing to compute: output_prefix_ids end it, or no token is wanted and no log-probability of the prompt. */
static void end_if_complete(qr_engine *e, qr_output *output)
{
    const qr_sequence *seq = &output->seq;
    bool full = seq->committed >= seq->tokens_max;
    bool rows_wanted = seq->prompt_logits && seq->prompt_count > 1;
    if (output->finish == QR_FINISH_NONE && full && !rows_wanted)
        qr_output_end(output, QR_FINISH_LENGTH, QR_OK);
    if (output->finish != QR_FINISH_NONE)
        engine_end_output(e, output, qr_clock_ns());
    else
        qr_scheduler_add(e->scheduler, &output->seq);
}

static void engine_admit(qr_engine *e, qr_request *r)
{
    qr_list_push_back(&e->live, &r->live_node);
    r->state = QR_REQUEST_LIVE;
    r->live = r->n;
    if (atomic_load(&e->failed)) {
        r->error = e->failure;
        engine_end_request(e, r, QR_FINISH_ERROR, e->failure.status);
    } else if (r->error.status != QR_OK) {
        engine_end_request(e, r, QR_FINISH_ERROR, r->error.status);
    } else if (atomic_load(&r->cancelled) || r->pages == NULL) {
        engine_end_request(e, r, QR_FINISH_ABORT, QR_OK);
    } else {
        for (int32_t i = 0; i < r->n; i++)
            end_if_complete(e, &r->samples[i]);
    }
}

/* The stack in the order in which it was filled. */
static qr_request *take_inbox(qr_engine *e)
{
    qr_request *top = atomic_exchange(&e->inbox, NULL), *oldest = NULL;
    while (top != NULL) {
        qr_request *next = top->inbox_next;
        top->inbox_next = oldest;
        oldest = top;
        top = next;
    }
    return oldest;
}

static void engine_drain_inbox(qr_engine *e)
{
    e->seen_signal = atomic_load(&e->signal);
    atomic_store(&e->idle, false);
    for (qr_request *r = take_inbox(e), *next; r != NULL; r = next) {
        next = r->inbox_next;
        engine_admit(e, r);
    }
    for (qr_request *r = atomic_exchange(&e->cancels, NULL), *next; r != NULL; r = next) {
        next = r->cancel_next;
        if (r->state == QR_REQUEST_LIVE) /* one that is not here yet is refused when it comes */
            engine_end_request(e, r, QR_FINISH_ABORT, QR_OK);
        engine_drop(e, r);
    }
    if (atomic_exchange(&e->reset_cache, false))
        qr_scheduler_reset_cache(e->scheduler);
    if (atomic_load(&e->closing))
        for (qr_list *node = e->live.next; node != &e->live; node = node->next)
            engine_end_request(e, QR_LIST_ITEM(node, qr_request, live_node), QR_FINISH_ABORT, QR_OK);
}

/* ---- Commit ---- */

static void note_scheduled(qr_engine *e, qr_output *output, uint64_t now)
{
    qr_request *r = output->request;
    if (!output->counted_waiting)
        return;
    count_scheduled(e, output);
    if (output->seq.first != &output->seq)
        return;
    atomic_store_explicit(&r->scheduled_ns, now, memory_order_relaxed);
    atomic_store_explicit(&r->cached_count, (size_t)QR_MIN(output->seq.cached, r->prompt_count),
                          memory_order_relaxed);
    uint64_t queued = atomic_load_explicit(&r->queued_ns, memory_order_relaxed);
    int64_t cached = QR_MIN(output->seq.cached, r->prompt_count);
    qr_metrics_observe(&e->metrics, QR_METRIC_QUEUE_TIME, seconds(queued, now));
    qr_metrics_add(&e->metrics, QR_METRIC_PROMPT_TOKENS, (double)r->prompt_count);
    qr_metrics_add(&e->metrics, QR_METRIC_PROMPT_CACHED, (double)cached);
    qr_metrics_add(&e->metrics, QR_METRIC_PROMPT_HIT, (double)cached);
    qr_metrics_add(&e->metrics, QR_METRIC_PROMPT_COMPUTED, (double)(r->prompt_count - cached));
    qr_metrics_observe(&e->metrics, QR_METRIC_REQUEST_PREFILL_COMPUTED, (double)(r->prompt_count - cached));
    e->stats.prompt_tokens += (uint64_t)r->prompt_count;
    e->stats.cached_tokens += (uint64_t)cached;
}

static void note_token(qr_engine *e, qr_output *output, uint64_t now)
{
    qr_request *r = output->request;
    if (output->first_token_ns == 0) {
        uint64_t queued = atomic_load_explicit(&r->queued_ns, memory_order_relaxed);
        output->first_token_ns = now;
        qr_metrics_observe(&e->metrics, QR_METRIC_FIRST_TOKEN, seconds(queued, now));
        if (atomic_load_explicit(&r->first_token_ns, memory_order_relaxed) == 0)
            atomic_store_explicit(&r->first_token_ns, now, memory_order_relaxed);
    } else {
        qr_metrics_observe(&e->metrics, QR_METRIC_INTER_TOKEN, seconds(output->last_token_ns, now));
    }
    output->last_token_ns = now;
    e->stats.generation_tokens++;
}

static void commit_item(qr_engine *e, const qr_plan_item *item, int32_t token, uint64_t now)
{
    qr_output *output = qr_output_of(item->seq);
    qr_sequence *seq = item->seq;
    if (!qr_scheduler_commit(e->scheduler, item))
        return;
    engine_touch(e, output->request);
    if (item->samples && token < 0) {
        qr_fail(&output->request->error, QR_DEVICE_FAILED, "logits: no finite value at position %lld",
                (long long)seq->committed - 1);
        qr_output_end(output, QR_FINISH_ERROR, QR_DEVICE_FAILED);
    } else if (item->samples) {
        qr_sequence_append(seq, token);
        note_token(e, output, now);
        qr_output_accept(output);
    } else if (seq->committed >= seq->tokens_max && seq->computed >= seq->tokens_max - 1) {
        qr_output_end(output, QR_FINISH_LENGTH, QR_OK); /* only the prompt's log-probabilities were wanted */
    }
    if (output->finish != QR_FINISH_NONE)
        engine_end_output(e, output, now);
}

static void engine_commit(qr_engine *e, const qr_plan *plan, const qr_step_result *result)
{
    uint64_t now = qr_clock_ns();
    for (int32_t i = 0; i < plan->item_count; i++)
        commit_item(e, &plan->items[i], plan->items[i].samples ? result->tokens[i] : -1, now);
    e->stats.steps++;
    e->stats.bytes_moved_total += result->bytes;
    e->stats.flops_total += result->flops;
    qr_metrics_observe(&e->metrics, QR_METRIC_ITERATION_TOKENS, plan->token_count);
}

/* Time by the host's clock, without what two steps overlap; and by the device's. */
static void engine_measure(qr_engine *e, const qr_flight *flight)
{
    const qr_step_result *r = &flight->result;
    uint64_t now = qr_clock_ns();
    uint64_t took = now - QR_MAX(flight->begin_ns, e->landed_ns);
    e->stats.step_ns_total += took;
    e->landed_ns = now;
    if (e->read_rate > 0 && e->flop_rate > 0) {
        double roof = QR_MAX((double)r->bytes / e->read_rate, (double)r->flops / e->flop_rate);
        e->stats.roof_ns_total += (uint64_t)(1e9 * roof);
        qr_metrics_set(&e->metrics, QR_METRIC_ROOF_SHARE, 1e9 * roof / (double)took);
    }
    if (r->device_end_ns <= r->device_begin_ns)
        return;
    e->stats.device_busy_ns_total += r->device_end_ns - r->device_begin_ns;
    if (e->device_end_ns != 0 && r->device_begin_ns > e->device_end_ns)
        e->stats.device_idle_ns_total += r->device_begin_ns - e->device_end_ns;
    e->device_end_ns = r->device_end_ns;
}

/* ---- Publish ---- */

static void publish_request(qr_engine *e, qr_request *r)
{
    bool news = false;
    for (int32_t i = 0; i < r->n; i++)
        news = qr_output_publish(&r->samples[i]) || news;
    if (!news)
        return;
    qr_poller *poller = r->poller;
    qr_poller_push(poller, r);
    for (qr_request *left = qr_poller_take_if_closed(poller), *next; left != NULL; left = next) {
        next = left->news_next;
        engine_drop(e, left);
    }
    if (!poller->dirty) {
        poller->dirty = true;
        poller->dirty_next = e->dirty;
        e->dirty = poller;
    }
}

static void publish_stats(qr_engine *e)
{
    const qr_scheduler *s = e->scheduler;
    qr_engine_stats *stats = &e->stats;
    stats->last_progress_ns = qr_clock_ns();
    stats->running = s->running_count;
    stats->waiting = QR_MAX(atomic_load(&e->waiting_count), s->waiting_count + s->held_count);
    stats->kv_blocks = s->options.n_blocks;
    stats->kv_blocks_free = qr_kv_space_free(&s->kv);
    stats->kv_usage = 1 - (double)stats->kv_blocks_free / (double)stats->kv_blocks;
    stats->preemptions = s->preemptions;
    stats->prefix_queries = s->prefix_queries;
    stats->prefix_hits = s->prefix_hits;
    stats->engine_heap_allocations = qr_alloc_count() - e->allocations_at_ready;
    qr_metrics *m = &e->metrics;
    qr_metrics_set(m, QR_METRIC_RUNNING, stats->running);
    qr_metrics_set(m, QR_METRIC_WAITING, stats->waiting);
    qr_metrics_set(m, QR_METRIC_WAITING_CAPACITY, stats->waiting);
    qr_metrics_set(m, QR_METRIC_KV_USAGE, stats->kv_usage);
    qr_metrics_set(m, QR_METRIC_KV_USAGE_OLD, stats->kv_usage);
    qr_metrics_set(m, QR_METRIC_PREFIX_QUERIES, (double)s->prefix_queries);
    qr_metrics_set(m, QR_METRIC_PREFIX_HITS, (double)s->prefix_hits);
    qr_metrics_set(m, QR_METRIC_PREEMPTIONS, (double)s->preemptions);
    qr_metrics_set(m, QR_METRIC_GENERATION_TOKENS, (double)stats->generation_tokens);
    qr_metrics_set(m, QR_METRIC_FLOPS, (double)stats->flops_total);
    qr_metrics_set(m, QR_METRIC_READ_BYTES, (double)stats->bytes_moved_total);
    qr_metrics_set(m, QR_METRIC_STEP_SECONDS, (double)stats->step_ns_total * 1e-9);
    qr_metrics_set(m, QR_METRIC_ROOF_SECONDS, (double)stats->roof_ns_total * 1e-9);
    qr_metrics_set(m, QR_METRIC_DEVICE_BUSY, (double)stats->device_busy_ns_total * 1e-9);
    qr_metrics_set(m, QR_METRIC_DEVICE_IDLE, (double)stats->device_idle_ns_total * 1e-9);
    qr_metrics_publish(m);
    pthread_mutex_lock(&e->stats_mutex);
    e->public_stats = *stats;
    pthread_mutex_unlock(&e->stats_mutex);
}

/* Counts first, then one eventfd write per poller, then what has ended is let go. */
static void engine_publish(qr_engine *e)
{
    publish_stats(e);
    for (qr_request *r = e->step_first; r != NULL; r = r->step_next)
        publish_request(e, r);
    for (qr_poller *poller = e->dirty; poller != NULL; poller = poller->dirty_next) {
        poller->dirty = false;
        qr_poller_wake(poller);
    }
    e->dirty = NULL;
    for (qr_request *r = e->step_first, *next; r != NULL; r = next) {
        next = r->step_next;
        r->in_step = false;
        if (r->state != QR_REQUEST_ENDED)
            continue;
        qr_list_remove(&r->live_node);
        engine_drop(e, r);
    }
    e->step_first = NULL;
}

/* ---- Steps ---- */

static void engine_wait_for_work(qr_engine *e)
{
    e->device_end_ns = 0;
    atomic_store(&e->idle, true);
    atomic_store(&e->sleeping, true);
    while (atomic_load(&e->signal) == e->seen_signal && !atomic_load(&e->closing))
        syscall(SYS_futex, (uint32_t *)(void *)&e->signal, FUTEX_WAIT_PRIVATE, e->seen_signal, NULL, NULL, 0);
    atomic_store(&e->sleeping, false);
}

/* Nothing to plan and nothing under way. */
static void engine_rest(qr_engine *e)
{
    QR_ASSERT(e->scheduler->running_count == 0 && e->scheduler->waiting_count == 0);
    engine_publish(e); /* the inbox may have ended requests: cancelled, refused */
    engine_wait_for_work(e);
}

/* Plans into the flight; false: there is nothing to do. */
static bool engine_plan(qr_engine *e, qr_flight *flight)
{
    qr_arena_reset(&flight->arena);
    engine_drain_inbox(e);
    flight->plan = qr_scheduler_plan(e->scheduler, &flight->arena);
    return !qr_plan_empty(flight->plan);
}

/* Hands the planned step to the device. Its requests stay in memory until it is over, even if they end before. */
static qr_status engine_begin(qr_engine *e, qr_flight *flight)
{
    const qr_plan *plan = flight->plan;
    flight->begin_ns = qr_clock_ns();
    for (int32_t i = 0; i < plan->item_count; i++) {
        qr_output *output = qr_output_of(plan->items[i].seq);
        qr_request_ref(output->request);
        note_scheduled(e, output, flight->begin_ns);
    }
    const qr_step_batch *batch = qr_batch_build(plan, &e->scheduler->kv, &flight->arena);
    return qr_runner_begin(e->runner, batch, &flight->arena, &flight->result, &e->failure);
}

static qr_status engine_finish(qr_engine *e, qr_flight *flight)
{
    return qr_runner_finish(e->runner, &flight->result, &e->failure);
}

static void engine_land(qr_engine *e, qr_flight *flight)
{
    const qr_plan *plan = flight->plan;
    for (int32_t i = 0; i < plan->item_count; i++)
        engine_drop(e, qr_output_of(plan->items[i].seq)->request);
}

static qr_status engine_device_failed(qr_engine *e, qr_status status)
{
    qr_log(QR_LOG_ERROR, "device_failed", "message=\"%s\"", e->failure.message);
    e->failure.status = status;
    atomic_store(&e->failed, true);
    for (qr_list *node = e->live.next; node != &e->live; node = node->next) {
        qr_request *r = QR_LIST_ITEM(node, qr_request, live_node);
        if (r->state == QR_REQUEST_LIVE)
            r->error = e->failure;
        engine_end_request(e, r, QR_FINISH_ERROR, status);
    }
    engine_publish(e);
    return status;
}

/* One step. Everything the engine does, it does here, in this order, on this thread. */
qr_status qr_engine_step(qr_engine *e)
{
    qr_flight *step = &e->flights[0];
    if (!engine_plan(e, step)) { /* drains the inbox first */
        engine_rest(e);
        return QR_OK;
    }
    qr_status status = engine_begin(e, step);
    if (status == QR_OK)
        status = engine_finish(e, step);
    if (status == QR_OK) {
        engine_commit(e, step->plan, &step->result);
        engine_measure(e, step);
        engine_publish(e);
    } else {
        engine_device_failed(e, status); /* fails every running request */
    }
    engine_land(e, step);
    return status;
}

/* A sequence of it goes on only from the token that the host draws: planned without it, it would fall into every
 * second step and out of step with the others of its kind. */
static bool engine_must_wait_for(const qr_flight *flight)
{
    for (int32_t i = 0; i < flight->plan->item_count; i++)
        if (flight->plan->items[i].samples && flight->plan->items[i].seq->host_draws)
            return true;
    return false;
}

/* The same with the device a step ahead: while it runs one step the host plans the next and hands it over, and only
 * then looks at what the first one gave. A sequence that ends in a step has a row too many in the next. */
qr_status qr_engine_step_ahead(qr_engine *e)
{
    qr_flight *last = e->flying, *next = last == &e->flights[0] ? &e->flights[1] : &e->flights[0];
    bool waits = last != NULL && engine_must_wait_for(last);
    e->flying = !waits && engine_plan(e, next) ? next : NULL;
    if (last == NULL && e->flying == NULL) {
        engine_rest(e);
        return QR_OK;
    }
    qr_status status = e->flying != NULL ? engine_begin(e, next) : QR_OK;
    if (status == QR_OK && last != NULL)
        status = engine_finish(e, last);
    if (status == QR_OK && last != NULL) {
        engine_commit(e, last->plan, &last->result);
        engine_measure(e, last);
        engine_publish(e);
    }
    if (last != NULL)
        engine_land(e, last);
    if (status == QR_OK)
        return QR_OK;
    engine_device_failed(e, status);
    if (e->flying != NULL)
        engine_land(e, e->flying);
    e->flying = NULL;
    return status;
}

void *qr_engine_run(void *arg)
{
    qr_engine *e = arg;
    qr_status (*step)(qr_engine *) = e->ahead ? qr_engine_step_ahead : qr_engine_step;
    e->allocations_at_ready = qr_alloc_count();
    while (!atomic_load(&e->closing) || !qr_list_empty(&e->live) || atomic_load(&e->inbox) != NULL ||
           e->flying != NULL)
        step(e);
    return NULL;
}
