/* quire bench online: requests arrive one by one at a rate (a Poisson process, seeded), and those count whose first
 * token and whose time between tokens keep the limits given: the goodput. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "cli/bench.h"

typedef struct online {
    bench *bench;
    bench_batch batch;
    int count;
    uint64_t *arrival_ns;  /* [count], from start_ns */
    qr_request **requests; /* [count], NULL: not submitted yet, or refused */
    double *first_ms;      /* [served] */
    double *between_ms;    /* [served], mean of a request */
    int submitted, refused, finished, served, in_time;
    uint64_t start_ns, end_ns;
} online;

static void draw_arrivals(online *o)
{
    double at = 0, rate = o->bench->options->bench_rate;
    uint64_t seed = o->bench->options->seed > 0 ? (uint64_t)o->bench->options->seed : 0;
    for (int i = 0; i < o->count; i++) {
        o->arrival_ns[i] = (uint64_t)(at * 1e9);
        if (rate > 0)
            at -= log(1.0 - qr_rng_uniform(seed, 0, (uint64_t)i, QR_RNG_TEST)) / rate;
    }
}

/* Submits what has arrived. A full queue refuses, as the server would. */
static qr_status submit_due(online *o, int32_t *ids, qr_error *err)
{
    uint64_t now = qr_clock_ns() - o->start_ns;
    while (o->submitted < o->count && o->arrival_ns[o->submitted] <= now) {
        int index = o->submitted++;
        qr_status status = bench_submit(o->bench, &o->batch, index, ids, &o->requests[index], err);
        if (status == QR_BUSY)
            o->refused++;
        else if (status != QR_OK)
            return status;
    }
    return QR_OK;
}

static int wait_ms(const online *o)
{
    if (o->submitted == o->count)
        return -1;
    uint64_t now = qr_clock_ns() - o->start_ns, next = o->arrival_ns[o->submitted];
    return next <= now ? 0 : (int)QR_MIN((next - now + 999999) / 1000000, 1000u);
}

static void take_finished(online *o, qr_request *request)
{
    const cli_options *options = o->bench->options;
    qr_request_facts facts = qr_request_describe(request);
    size_t tokens = qr_request_sample(request, 0).token_count;
    double first = (double)(facts.first_token_ns - facts.queued_ns) / 1e6;
    double between =
        tokens > 1 ? (double)(facts.finished_ns - facts.first_token_ns) / 1e6 / (double)(tokens - 1) : 0;
    o->first_ms[o->served] = first;
    o->between_ms[o->served++] = between;
    o->in_time += (options->bench_first_ms <= 0 || first <= options->bench_first_ms) &&
                  (options->bench_between_ms <= 0 || between <= options->bench_between_ms);
}

static qr_status serve_all(online *o, int32_t *ids, qr_error *err)
{
    qr_status status = QR_OK;
    o->start_ns = qr_clock_ns();
    while (status == QR_OK && o->finished + o->refused < o->count) {
        status = submit_due(o, ids, err);
        if (status != QR_OK || o->finished + o->refused == o->count)
            break;
        qr_event events[64];
        size_t got = qr_poller_poll(o->bench->poller, events, QR_COUNT_OF(events), wait_ms(o));
        for (size_t i = 0; i < got && status == QR_OK; i++) {
            if (events[i].finish == QR_FINISH_ERROR)
                status = qr_fail(err, events[i].status, "%s", events[i].message);
            else if (events[i].finish != QR_FINISH_NONE)
                take_finished(o, events[i].request);
            o->finished += events[i].finish != QR_FINISH_NONE;
        }
    }
    o->end_ns = qr_clock_ns();
    return status;
}

static double percentile(const double *sorted, int count, int percent)
{
    return count > 0 ? sorted[(size_t)(count - 1) * (size_t)percent / 100] : 0;
}

static void put_result(online *o)
{
    bench *b = o->bench;
    double seconds = (double)(o->end_ns - o->start_ns) / 1e9;
    qsort(o->first_ms, (size_t)o->served, sizeof(double), bench_compare);
    qsort(o->between_ms, (size_t)o->served, sizeof(double), bench_compare);
    bench_put_settings(b);
    qr_json_set(b->result, "num_prompts", qr_json_new_int(o->count));
    qr_json_set(b->result, "refused", qr_json_new_int(o->refused));
    bench_put(b->result, "request_rate", b->options->bench_rate);
    bench_put(b->result, "elapsed_s", seconds);
    bench_put(b->result, "requests_per_s", o->served / seconds);
    bench_put(b->result, "output_tokens_per_s", (double)o->served * b->options->bench_output / seconds);
    bench_put(b->result, "first_token_p50_ms", percentile(o->first_ms, o->served, 50));
    bench_put(b->result, "first_token_p99_ms", percentile(o->first_ms, o->served, 99));
    bench_put(b->result, "between_tokens_p50_ms", percentile(o->between_ms, o->served, 50));
    bench_put(b->result, "between_tokens_p99_ms", percentile(o->between_ms, o->served, 99));
    bench_put(b->result, "in_time_percent", 100.0 * o->in_time / o->count);
    bench_put(b->result, "goodput_requests_per_s", o->in_time / seconds);
}

qr_status bench_online(bench *b, qr_error *err)
{
    const cli_options *options = b->options;
    online o = {.bench = b,
                .batch = {.input = options->bench_input, .output = options->bench_output},
                .count = options->bench_prompts};
    if (options->bench_rate < 0 || options->bench_first_ms < 0 || options->bench_between_ms < 0)
        return qr_fail(
            err, QR_INVALID_ARGUMENT,
            "--request-rate, --goodput-ttft-ms and --goodput-tpot-ms must not be negative, got %g, %g and %g",
            (double)options->bench_rate, (double)options->bench_first_ms, (double)options->bench_between_ms);
    size_t count = (size_t)o.count;
    int32_t *ids = qr_calloc((size_t)options->bench_input, sizeof(*ids));
    o.arrival_ns = qr_calloc(count, sizeof(*o.arrival_ns));
    o.requests = qr_calloc(count, sizeof(*o.requests));
    o.first_ms = qr_calloc(count, sizeof(*o.first_ms));
    o.between_ms = qr_calloc(count, sizeof(*o.between_ms));
    draw_arrivals(&o);
    qr_status status = serve_all(&o, ids, err);
    if (status == QR_OK)
        put_result(&o);
    for (size_t i = 0; i < count; i++)
        if (o.requests[i] != NULL)
            qr_request_release(o.requests[i]);
    qr_free(ids);
    qr_free(o.arrival_ns);
    qr_free(o.requests);
    qr_free(o.first_ms);
    qr_free(o.between_ms);
    return status;
}
