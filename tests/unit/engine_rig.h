/* Helpers of the engine's tests: open a checkpoint and an engine, run requests together, keep what they gave. */
#ifndef QR_TESTS_ENGINE_RIG_H
#define QR_TESTS_ENGINE_RIG_H

#include <poll.h>
#include <stdio.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quire.h"
#include "support/cmocka.h"

#define MODELS          QR_TESTS_DIR "/golden/models/"
#define RIG_SAMPLES_MAX 8

typedef struct rig {
    qr_model *model;
    qr_engine *engine;
    qr_poller *poller;
} rig;

/* What one sample gave, copied. */
typedef struct rig_output {
    int32_t *ids;
    size_t count;
    char *text;
    size_t text_bytes;
    qr_logprob *logprobs;
    size_t columns;
    qr_finish finish;
    int32_t stop_token, stop_string;
    qr_status status;
    char message[256];
    size_t events;
    /* Put together from events alone. */
    size_t event_tokens, event_text;
} rig_output;

typedef struct rig_job {
    qr_request_options options;
    qr_request *request;
    rig_output out[RIG_SAMPLES_MAX];
    qr_request_facts facts; /* its pointers are gone once the request is released */
    qr_logprob *prompt_logprobs;
    int ended;
} rig_job;

#define RIG_OK(call, err)                             \
    do {                                              \
        if ((call) != QR_OK)                          \
            fail_msg("%s: %s", #call, (err).message); \
    } while (0)

__attribute__((unused)) static qr_model *rig_model_ranks(const char *path, const char *isa, int threads,
                                                         int ranks)
{
    qr_error err = {0};
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = path;
    options.isa = isa != NULL ? isa : "auto";
    options.threads = threads;
    options.tensor_parallel_size = ranks;
    qr_model *model = NULL;
    RIG_OK(qr_model_open(&options, &model, &err), err);
    return model;
}

__attribute__((unused)) static qr_model *rig_model(const char *path, const char *isa, int threads)
{
    return rig_model_ranks(path, isa, threads, 1);
}

/* What rig_options says of async_scheduling: tests run once without and once with a step planned ahead. */
__attribute__((unused)) static const char *rig_async = "off";

#define RIG_RUN_BOTH_WAYS(tests, setup, teardown)                                      \
    (cmocka_run_group_tests_name("one step after the other", tests, setup, teardown) + \
     (rig_async = "on", cmocka_run_group_tests_name("a step planned ahead", tests, setup, teardown)))
/* Small pools, so that tests see pressure; the caller may change what it likes. */
__attribute__((unused)) static qr_engine_options rig_options(void)
{
    qr_engine_options options;
    qr_engine_options_init(&options);
    options.num_kv_blocks = 1024;
    options.block_size = 8;
    options.max_num_seqs = 64;
    options.max_num_batched_tokens = 128;
    options.async_scheduling = rig_async;
    return options;
}

__attribute__((unused)) static void rig_open(rig *r, qr_model *model, const qr_engine_options *options)
{
    qr_error err = {0};
    r->model = model;
    RIG_OK(qr_engine_open(model, options, &r->engine, &err), err);
    RIG_OK(qr_poller_open(r->engine, &r->poller, &err), err);
}

__attribute__((unused)) static qr_engine_stats rig_stats(const rig *r)
{
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(r->engine, &stats);
    return stats;
}

/* Nothing is left behind: all blocks are free, nothing waits, no step took heap memory. */
__attribute__((unused)) static void rig_check_quiet(const rig *r)
{
    qr_engine_stats stats = rig_stats(r);
    for (int i = 0; i < 5000 && (stats.running + stats.waiting > 0 || stats.kv_blocks_free < stats.kv_blocks);
         i++) {
        poll(NULL, 0, 1);
        stats = rig_stats(r);
    }
    assert_int_equal(stats.running, 0);
    assert_int_equal(stats.waiting, 0);
    assert_int_equal(stats.kv_blocks_free, stats.kv_blocks);
    assert_int_equal(stats.engine_heap_allocations, 0);
    assert_true(stats.healthy);
}

__attribute__((unused)) static void rig_close(rig *r)
{
    qr_poller_close(r->poller);
    qr_engine_close(r->engine);
}

/* ---- Jobs ---- */

__attribute__((unused)) static rig_job rig_job_of(const int32_t *ids, size_t count, int64_t max_tokens)
{
    rig_job job;
    memset(&job, 0, sizeof(job));
    qr_request_options_init(&job.options);
    job.options.token_ids = ids;
    job.options.token_count = count;
    job.options.sampling.max_tokens = max_tokens;
    job.options.sampling.temperature = 0;
    return job;
}

__attribute__((unused)) static void *rig_copy(const void *bytes, size_t size)
{
    if (bytes == NULL)
        return NULL;
    void *copy = malloc(size + 1);
    memcpy(copy, bytes, size);
    ((char *)copy)[size] = '\0';
    return copy;
}

/* An event continues exactly where the one before ended. */
__attribute__((unused)) static void rig_take_event(const qr_event *event)
{
    rig_job *job = event->user;
    rig_output *out = &job->out[event->sample];
    qr_sample_view view = qr_request_sample(event->request, event->sample);
    assert_ptr_equal(event->request, job->request);
    assert_int_equal(out->finish, QR_FINISH_NONE);
    out->events++;
    if (event->token_count > 0)
        assert_ptr_equal(event->token_ids, view.token_ids + out->event_tokens);
    if (event->text_bytes > 0)
        assert_ptr_equal(event->text, view.text + out->event_text);
    if (event->logprobs != NULL && event->token_count > 0)
        assert_ptr_equal(event->logprobs, view.logprobs + out->event_tokens * view.logprob_columns);
    out->event_tokens += event->token_count;
    out->event_text += event->text_bytes;
    if (event->finish == QR_FINISH_NONE)
        return;
    out->finish = event->finish;
    out->stop_token = event->stop_token;
    out->stop_string = event->stop_string;
    out->status = event->status;
    if (event->message != NULL)
        snprintf(out->message, sizeof(out->message), "%s", event->message);
    job->ended++;
}

__attribute__((unused)) static void rig_keep(rig_job *job)
{
    job->facts = qr_request_describe(job->request);
    job->prompt_logprobs =
        rig_copy(job->facts.prompt_logprobs,
                 job->facts.prompt_count * job->facts.prompt_logprob_columns * sizeof(qr_logprob));
    for (int32_t i = 0; i < job->options.sampling.n && i < RIG_SAMPLES_MAX; i++) {
        rig_output *out = &job->out[i];
        qr_sample_view view = qr_request_sample(job->request, i);
        assert_int_equal(view.token_count, out->event_tokens);
        assert_int_equal(view.text_bytes, out->event_text);
        assert_int_equal(view.finish, out->finish);
        out->ids = rig_copy(view.token_ids, view.token_count * sizeof(int32_t));
        out->count = view.token_count;
        out->text = rig_copy(view.text, view.text_bytes);
        out->text_bytes = view.text_bytes;
        out->columns = view.logprob_columns;
        out->logprobs = rig_copy(view.logprobs, view.token_count * view.logprob_columns * sizeof(qr_logprob));
    }
}

__attribute__((unused)) static void rig_submit(rig *r, rig_job *job)
{
    qr_error err = {0};
    job->options.user = job;
    RIG_OK(qr_request_submit(r->engine, r->poller, &job->options, &job->request, &err), err);
}

/* Takes events until `done` says so of the jobs; fails when nothing happens. */
__attribute__((unused)) static void rig_wait(rig *r, const rig_job *jobs, int count,
                                             bool (*done)(const rig_job *jobs, int count))
{
    while (!done(jobs, count)) {
        qr_event events[5];
        size_t got = qr_poller_poll(r->poller, events, QR_COUNT_OF(events), 20000);
        if (got == 0)
            fail_msg("nothing happened for 20 s");
        for (size_t i = 0; i < got; i++)
            rig_take_event(&events[i]);
    }
}

__attribute__((unused)) static bool rig_all_ended(const rig_job *jobs, int count)
{
    for (int i = 0; i < count; i++)
        if (jobs[i].ended < jobs[i].options.sampling.n)
            return false;
    return true;
}

__attribute__((unused)) static bool rig_first_began(const rig_job *jobs, int count)
{
    (void)count;
    return jobs[0].out[0].event_tokens > 0 || jobs[0].ended > 0;
}

/* Follows submitted jobs to their ends, keeps their output and releases them. */
__attribute__((unused)) static void rig_finish(rig *r, rig_job *jobs, int count)
{
    rig_wait(r, jobs, count, rig_all_ended);
    for (int i = 0; i < count; i++) {
        rig_keep(&jobs[i]);
        qr_request_release(jobs[i].request);
        jobs[i].request = NULL;
    }
}

__attribute__((unused)) static void rig_run(rig *r, rig_job *jobs, int count)
{
    for (int i = 0; i < count; i++)
        rig_submit(r, &jobs[i]);
    rig_finish(r, jobs, count);
}

__attribute__((unused)) static void rig_free(rig_job *jobs, int count)
{
    for (int i = 0; i < count; i++) {
        free(jobs[i].prompt_logprobs);
        for (int k = 0; k < RIG_SAMPLES_MAX; k++) {
            free(jobs[i].out[k].ids);
            free(jobs[i].out[k].text);
            free(jobs[i].out[k].logprobs);
        }
    }
}

/* Tokens, log-probabilities, text and finish, to the bit. */
__attribute__((unused)) static void rig_same(const char *what, const rig_output *a, const rig_output *b)
{
    size_t same = 0;
    while (same < a->count && same < b->count && a->ids[same] == b->ids[same])
        same++;
    if (a->count != b->count || same < a->count)
        fail_msg("%s: tokens differ from number %zu on (of %zu and %zu)", what, same, a->count, b->count);
    assert_int_equal(a->columns, b->columns);
    if (a->columns > 0 && memcmp(a->logprobs, b->logprobs, a->count * a->columns * sizeof(qr_logprob)) != 0)
        fail_msg("%s: the tokens are equal, their log-probabilities are not", what);
    assert_int_equal(a->text_bytes, b->text_bytes);
    assert_memory_equal(a->text, b->text, a->text_bytes);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->stop_token, b->stop_token);
}

#endif
