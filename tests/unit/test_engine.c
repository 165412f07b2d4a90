/* Requests through quire.h on a small checkpoint: samples, seeds, limits, cancelling at every stage, refusals,
 * resuming, scores, watching, closing. */
#include <math.h>
#include <pthread.h>

#include "unit/engine_rig.h"

#define PROMPT 40
#define EOS    127 /* of the golden checkpoints */

static qr_model *model;
static int32_t prompt[PROMPT];

static void fill(int32_t *ids, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = 2 + (int32_t)(qr_rng_next(&seed) % 120);
}

static int open_model(void **state)
{
    (void)state;
    model = rig_model(MODELS "llama-gqa4-llama3", NULL, 2);
    fill(prompt, PROMPT, 1);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    qr_model_close(model);
    return 0;
}

static rig_job sampled(int64_t max_tokens, uint64_t seed)
{
    rig_job job = rig_job_of(prompt, PROMPT, max_tokens);
    job.options.sampling.temperature = 1;
    job.options.sampling.has_seed = true;
    job.options.sampling.seed = seed;
    job.options.sampling.ignore_eos = true;
    job.options.sampling.logprobs = 0;
    return job;
}

/* ---- What a request gives ---- */

static void a_greedy_run_gives_the_golden_ids(void **state)
{
    (void)state;
    qr_file_map map;
    qr_error err = {0};
    RIG_OK(qr_file_map_open(MODELS "expected/llama-gqa4-llama3.bin", &map, &err), err);
    const int32_t *ids =
        (const int32_t *)(const void *)map.data; /* 40 of prompt, 16 greedy: golden/models/README.md */
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job job = rig_job_of(ids, 40, 16);
    job.options.sampling.ignore_eos = true;
    rig_run(&r, &job, 1);
    assert_int_equal(job.out[0].count, 16);
    assert_memory_equal(job.out[0].ids, ids + 40, 16 * sizeof(int32_t));
    assert_int_equal(job.out[0].finish, QR_FINISH_LENGTH);
    rig_free(&job, 1);
    rig_close(&r);
    qr_file_map_close(&map);
}

static void samples_share_a_prompt_and_nothing_else(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job many = sampled(20, 11), one = sampled(20, 11);
    many.options.sampling.n = 5;
    rig_run(&r, &many, 1);
    uint64_t queried = rig_stats(&r).prefix_queries;
    rig_run(&r, &one, 1);
    rig_same("sample 0 of five", &one.out[0], &many.out[0]);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(many.out[i].count, 20);
        for (int k = 0; k < i; k++)
            assert_true(memcmp(many.out[i].ids, many.out[k].ids, 20 * sizeof(int32_t)) != 0);
    }
    assert_int_equal(queried, 5 * PROMPT);
    rig_check_quiet(&r);
    rig_free(&many, 1);
    rig_free(&one, 1);
    rig_close(&r);

    /* The same without a prefix cache: the blocks are shared all the same, the bits too. */
    options.enable_prefix_caching = false;
    rig_open(&r, model, &options);
    rig_job again = sampled(20, 11), first = sampled(20, 11);
    again.options.sampling.n = 5;
    first.options.sampling.n = 5;
    rig_run(&r, &first, 1);
    rig_run(&r, &again, 1);
    for (int i = 0; i < 5; i++)
        rig_same("no prefix cache", &first.out[i], &again.out[i]);
    assert_int_equal(again.facts.cached_count, 0);
    rig_check_quiet(&r);
    rig_free(&again, 1);
    rig_free(&first, 1);
    rig_close(&r);
}

static void a_seed_decides_and_one_is_given_when_none_comes(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job jobs[4] = {sampled(12, 5), sampled(12, 5), sampled(12, 6), sampled(12, 0)};
    jobs[3].options.sampling.has_seed = false;
    rig_run(&r, jobs, 4);
    rig_same("one seed", &jobs[0].out[0], &jobs[1].out[0]);
    assert_true(memcmp(jobs[0].out[0].ids, jobs[2].out[0].ids, 12 * sizeof(int32_t)) != 0);
    rig_job again = sampled(12, jobs[3].facts.seed);
    rig_run(&r, &again, 1);
    rig_same("the reported seed", &jobs[3].out[0], &again.out[0]);
    rig_free(jobs, 4);
    rig_free(&again, 1);
    rig_close(&r);
}

static void stop_ids_end_a_sample_after_min_tokens(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job free_run = sampled(20, 3);
    rig_run(&r, &free_run, 1);
    int32_t stop = free_run.out[0].ids[4], first = 4;
    while (first > 0 && free_run.out[0].ids[first - 1] == stop)
        first--;
    rig_job stopped = sampled(20, 3), later = sampled(20, 3);
    stopped.options.sampling.stop_token_ids = &stop;
    stopped.options.sampling.stop_token_id_count = 1;
    later.options.sampling.stop_token_ids = &stop;
    later.options.sampling.stop_token_id_count = 1;
    later.options.sampling.min_tokens = 10;
    rig_run(&r, &stopped, 1);
    rig_run(&r, &later, 1);
    assert_int_equal(stopped.out[0].finish, QR_FINISH_STOP);
    assert_int_equal(stopped.out[0].stop_token, stop);
    assert_int_equal(stopped.out[0].ids[stopped.out[0].count - 1], stop);
    assert_memory_equal(stopped.out[0].ids, free_run.out[0].ids, stopped.out[0].count * sizeof(int32_t));
    assert_in_range(later.out[0].count, 11, 20);
    for (size_t i = 0; i < 10; i++)
        assert_int_not_equal(later.out[0].ids[i], stop);
    rig_free(&free_run, 1);
    rig_free(&stopped, 1);
    rig_free(&later, 1);
    rig_close(&r);
}

static void the_end_of_sequence_token_ends_unless_ignored(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    const qr_logit_bias push = {EOS, 1000};
    rig_job ends = rig_job_of(prompt, PROMPT, 8), ignores = rig_job_of(prompt, PROMPT, 8);
    ends.options.sampling.logit_bias = ignores.options.sampling.logit_bias = &push;
    ends.options.sampling.logit_bias_count = ignores.options.sampling.logit_bias_count = 1;
    ignores.options.sampling.ignore_eos = true;
    rig_run(&r, &ends, 1);
    rig_run(&r, &ignores, 1);
    assert_int_equal(ends.out[0].count, 1);
    assert_int_equal(ends.out[0].stop_token, EOS);
    assert_int_equal(ends.out[0].finish, QR_FINISH_STOP);
    assert_int_equal(ignores.out[0].count, 8);
    assert_int_equal(ignores.out[0].finish, QR_FINISH_LENGTH);
    rig_free(&ends, 1);
    rig_free(&ignores, 1);
    rig_close(&r);
}

static void the_context_limits_what_max_tokens_does_not(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.max_model_len = 60;
    rig_open(&r, model, &options);
    assert_int_equal(qr_engine_max_model_len(r.engine), 60);
    rig_job rest = sampled(-1, 1), over = sampled(1000, 1), truncated = sampled(-1, 1);
    truncated.options.truncate_prompt_tokens = 10;
    rig_run(&r, &rest, 1);
    rig_run(&r, &over, 1);
    rig_run(&r, &truncated, 1);
    assert_int_equal(rest.out[0].count, 20);
    assert_int_equal(rest.out[0].finish, QR_FINISH_LENGTH);
    rig_same("more than the context", &rest.out[0], &over.out[0]);
    assert_int_equal(truncated.facts.prompt_count, 10);
    assert_int_equal(truncated.out[0].count, 50);
    rig_check_quiet(&r);
    rig_free(&rest, 1);
    rig_free(&over, 1);
    rig_free(&truncated, 1);
    rig_close(&r);
}

static void a_resumed_stream_continues_the_interrupted_one(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job whole = sampled(24, 9);
    whole.options.sampling.presence_penalty = 0.5f;
    rig_run(&r, &whole, 1);
    for (size_t cut = 1; cut < 24; cut += 5) {
        rig_job rest = sampled(24, 9);
        rest.options.sampling.presence_penalty = 0.5f;
        rest.options.output_prefix_ids = whole.out[0].ids;
        rest.options.output_prefix_count = cut;
        rig_run(&r, &rest, 1);
        assert_int_equal(rest.out[0].count, 24 - cut);
        assert_memory_equal(rest.out[0].ids, whole.out[0].ids + cut, (24 - cut) * sizeof(int32_t));
        assert_memory_equal(rest.out[0].logprobs, whole.out[0].logprobs + cut,
                            (24 - cut) * sizeof(qr_logprob));
        rig_free(&rest, 1);
    }
    rig_job nothing_left = sampled(24, 9);
    nothing_left.options.output_prefix_ids = whole.out[0].ids;
    nothing_left.options.output_prefix_count = 24;
    rig_run(&r, &nothing_left, 1);
    assert_int_equal(nothing_left.out[0].count, 0);
    assert_int_equal(nothing_left.out[0].finish, QR_FINISH_LENGTH);
    rig_job no_room = sampled(0, 9);
    no_room.options.sampling.logprobs = -1;
    no_room.options.sampling.prompt_logprobs = 0;
    no_room.options.output_prefix_ids = whole.out[0].ids;
    no_room.options.output_prefix_count = 3;
    rig_run(&r, &no_room, 1);
    assert_int_equal(no_room.out[0].finish, QR_FINISH_LENGTH);
    rig_check_quiet(&r);
    rig_free(&whole, 1);
    rig_free(&nothing_left, 1);
    rig_free(&no_room, 1);
    rig_close(&r);
}

/* A prompt computed in chunks and tokens computed one by one give the same numbers to the bit. */
static void scores_equal_the_log_probabilities_of_the_run(void **state)
{
    (void)state;
    rig r;
    qr_error err = {0};
    qr_engine_options options = rig_options();
    options.max_num_batched_tokens = 64;
    rig_open(&r, model, &options);
    rig_job job = sampled(30, 4);
    rig_run(&r, &job, 1);
    int32_t all[PROMPT + 30];
    float scores[PROMPT + 30];
    memcpy(all, prompt, sizeof(prompt));
    memcpy(all + PROMPT, job.out[0].ids, 30 * sizeof(int32_t));
    RIG_OK(qr_score(r.engine, all, PROMPT + 30, scores, &err), err);
    assert_true(scores[0] == 0);
    for (int i = 0; i < 30; i++)
        if (scores[PROMPT + i] != job.out[0].logprobs[i].logprob)
            fail_msg("token %d: %.9g alone, %.9g in a prompt", i, (double)job.out[0].logprobs[i].logprob,
                     (double)scores[PROMPT + i]);
    RIG_OK(qr_score(r.engine, all, 1, scores, &err), err);
    assert_true(scores[0] == 0);
    rig_check_quiet(&r);
    rig_free(&job, 1);
    rig_close(&r);
}

static void log_probabilities_of_a_prompt_are_a_distribution(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.max_logprobs = 128;
    rig_open(&r, model, &options);
    rig_job job = rig_job_of(prompt, PROMPT, 0);
    job.options.sampling.prompt_logprobs = 128;
    rig_run(&r, &job, 1);
    assert_int_equal(job.out[0].count, 0);
    assert_int_equal(job.out[0].finish, QR_FINISH_LENGTH);
    assert_int_equal(job.facts.prompt_logprob_columns, 129);
    assert_int_equal(job.prompt_logprobs[0].token, -1);
    for (int p = 1; p < PROMPT; p++) {
        const qr_logprob *row = job.prompt_logprobs + p * 129;
        double sum = 0;
        assert_int_equal(row[0].token, prompt[p]);
        for (int i = 1; i <= 128; i++) {
            sum += exp((double)row[i].logprob);
            assert_int_equal(row[i].rank, i);
            assert_true(i == 1 || row[i].logprob <= row[i - 1].logprob);
        }
        assert_true(fabs(sum - 1) < 1e-4);
        assert_true(row[0].logprob == row[row[0].rank].logprob);
    }
    rig_free(&job, 1);
    rig_close(&r);
}

static void nothing_wanted_is_nothing_computed(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job echo = rig_job_of(prompt, PROMPT, 0);
    rig_run(&r, &echo, 1);
    assert_int_equal(echo.out[0].finish, QR_FINISH_LENGTH);
    assert_int_equal(echo.facts.prompt_count, PROMPT);
    assert_int_equal(rig_stats(&r).steps, 0);
    rig_free(&echo, 1);
    rig_close(&r);
}

/* ---- Refusals ---- */

static void expect_error(rig *r, rig_job job, const char *word)
{
    rig_run(r, &job, 1);
    assert_int_equal(job.out[0].finish, QR_FINISH_ERROR);
    assert_int_not_equal(job.out[0].status, QR_OK);
    assert_int_equal(job.out[0].count, 0);
    if (strstr(job.out[0].message, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", job.out[0].message, word);
    rig_free(&job, 1);
}

static void a_wrong_prompt_ends_with_its_reason(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.max_model_len = 32;
    rig_open(&r, model, &options);
    expect_error(&r, rig_job_of(prompt, PROMPT, 4), "maximum length of 32");
    rig_job fit = rig_job_of(prompt, 20, 13);
    fit.options.max_tokens_must_fit = true;
    expect_error(&r, fit, "max_tokens: 13 is more than the 12 that the model's maximum length of 32 leaves");
    fit = rig_job_of(prompt, 20, 12);
    fit.options.max_tokens_must_fit = true;
    rig_run(&r, &fit, 1);
    assert_int_equal(fit.out[0].finish, QR_FINISH_LENGTH);
    rig_free(&fit, 1);
    fit = rig_job_of(prompt, PROMPT, 4); /* what is cut to fit leaves room for the answer */
    fit.options.max_tokens_must_fit = true;
    fit.options.truncate_prompt_tokens = -1;
    rig_run(&r, &fit, 1);
    assert_int_equal(fit.out[0].finish, QR_FINISH_LENGTH);
    rig_free(&fit, 1);
    int32_t ids[3] = {5, 128, 6};
    expect_error(&r, rig_job_of(ids, 3, 4), "id 128 at 1");
    ids[1] = -1;
    expect_error(&r, rig_job_of(ids, 3, 4), "id -1 at 1");
    ids[1] = 7;
    rig_job text = rig_job_of(NULL, 0, 4);
    text.options.text = "hello";
    text.options.text_bytes = 5;
    expect_error(&r, text, "no tokenizer");
    rig_job stops = rig_job_of(ids, 3, 4);
    const char *const stop[] = {"x"};
    stops.options.sampling.stop = stop;
    stops.options.sampling.stop_count = 1;
    expect_error(&r, stops, "stop strings");
    rig_job many = rig_job_of(ids, 3, 4);
    many.options.sampling.logprobs = 21;
    expect_error(&r, many, "max_logprobs");
    rig_job fine = rig_job_of(prompt, 31, 4); /* one token fits */
    rig_run(&r, &fine, 1);
    assert_int_equal(fine.out[0].count, 1);
    rig_free(&fine, 1);
    rig_check_quiet(&r);
    rig_close(&r);
}

static void refuse_submit(rig *r, const qr_request_options *o, qr_status status, const char *word)
{
    qr_error err = {0};
    qr_request *request = NULL;
    assert_int_equal(qr_request_submit(r->engine, r->poller, o, &request, &err), status);
    assert_null(request);
    if (strstr(err.message, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void wrong_options_are_refused_at_submission(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job job = rig_job_of(prompt, PROMPT, 4);
    qr_request_options o = job.options;
    o.text = "and a text";
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "one of text, token_ids and chat_json");
    o = job.options;
    o.token_ids = NULL;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "one of text");
    o = job.options;
    o.token_count = 0;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "at least one id");
    o = job.options;
    o.sampling.temperature = NAN;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "temperature");
    o = job.options;
    o.output_prefix_ids = prompt;
    o.output_prefix_count = 2;
    o.sampling.n = 2;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "output_prefix_ids");
    o = job.options;
    o.truncate_prompt_tokens = -2;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "truncate_prompt_tokens");
    char id[200];
    memset(id, 'x', sizeof(id));
    id[199] = '\0';
    o = job.options;
    o.request_id = id;
    refuse_submit(&r, &o, QR_INVALID_ARGUMENT, "request_id");
    rig_close(&r);
}

static void a_full_queue_says_busy_and_recovers(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.max_num_seqs = 1;
    options.max_waiting = 3;
    rig_open(&r, model, &options);
    rig_job job = sampled(-1, 1);
    job.options.sampling.n = 4;
    refuse_submit(&r, &job.options, QR_INVALID_ARGUMENT, "n 4");
    enum { MANY = 40 };
    static rig_job jobs[MANY];
    int accepted = 0, refused = 0;
    for (int i = 0; i < MANY; i++) {
        qr_error err = {0};
        jobs[accepted] = sampled(-1, 1);
        jobs[accepted].options.user = &jobs[accepted];
        qr_status status =
            qr_request_submit(r.engine, r.poller, &jobs[accepted].options, &jobs[accepted].request, &err);
        assert_true(status == QR_OK || status == QR_BUSY);
        accepted += status == QR_OK;
        refused += status == QR_BUSY;
    }
    assert_true(refused > 0 && accepted >= 3);
    rig_finish(&r, jobs, accepted);
    for (int i = 0; i < accepted; i++)
        assert_int_equal(jobs[i].out[0].finish, QR_FINISH_LENGTH);
    qr_metric *metrics;
    size_t count = qr_engine_metrics(r.engine, &metrics);
    for (size_t i = 0; i < count; i++)
        if (strcmp(metrics[i].name, "vllm:admission_rejections") == 0)
            assert_int_equal((int)metrics[i].value, refused);
    qr_metrics_free(metrics);
    rig_free(jobs, accepted);
    rig_job after = sampled(2, 1);
    rig_run(&r, &after, 1);
    rig_check_quiet(&r);
    rig_free(&after, 1);
    rig_close(&r);
}

static void the_output_budget_bounds_what_is_accepted(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.output_bytes_max = 4000;
    rig_open(&r, model, &options);
    rig_job large = sampled(-1, 1);
    large.options.sampling.logprobs = 20;
    refuse_submit(&r, &large.options, QR_LIMIT_EXCEEDED, "the limit is 4000");
    for (int i = 0; i < 20; i++) { /* what is released is given back */
        rig_job small = sampled(4, 1);
        rig_run(&r, &small, 1);
        assert_int_equal(small.out[0].count, 4);
        rig_free(&small, 1);
    }
    rig_close(&r);
}

static void engine_options_are_checked(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_engine *engine = NULL;
    qr_engine_options options = rig_options();
    options.max_num_batched_tokens = 10;
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "max_num_seqs 64"));
    options = rig_options();
    options.max_model_len = 1000;
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "128"));
    options = rig_options();
    options.max_model_len = 100;
    options.num_kv_blocks = 5;
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_OUT_OF_MEMORY);
    qr_model *never = NULL; /* told before a weight is read, too */
    qr_model_options model_options;
    qr_model_options_init(&model_options);
    model_options.path = MODELS "llama-gqa4-llama3";
    model_options.device = "cpu";
    model_options.engine_options = &options;
    assert_int_equal(qr_model_open(&model_options, &never, &err), QR_OUT_OF_MEMORY);
    assert_non_null(strstr(err.message, "KV"));
    assert_null(never);
    assert_non_null(strstr(err.message, "5 blocks"));
    options = rig_options();
    options.kv_cache_dtype = "int8";
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "int8"));
    options.kv_cache_dtype = "fp8";
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "kv_cache_dtype fp8: cpu"));
    assert_null(engine);
    /* Too little KV for the context: a shorter one is served, and said. */
    options = rig_options();
    options.num_kv_blocks = 5;
    rig r;
    rig_open(&r, model, &options);
    assert_int_equal(qr_engine_max_model_len(r.engine), 40);
    rig_close(&r);
}

/* ---- Cancelling ---- */

static void a_request_can_be_cancelled_at_every_stage(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = 4; /* the prompt takes ten steps */
    rig_open(&r, model, &options);
    uint64_t random = 8;
    for (int i = 0; i < 300; i++) {
        rig_job job = sampled(-1, (uint64_t)i);
        job.options.sampling.n = 1 + i % 3;
        rig_submit(&r, &job);
        for (uint64_t spin = qr_rng_next(&random) % 60; spin > 0; spin--) {
            qr_event event;
            if (qr_poller_poll(r.poller, &event, 1, 0) > 0)
                rig_take_event(&event);
        }
        qr_request_cancel(job.request);
        qr_request_cancel(job.request); /* twice is once */
        if (i % 2 == 0) {
            rig_finish(&r, &job, 1);
            for (int k = 0; k < job.options.sampling.n; k++)
                assert_true(job.out[k].finish == QR_FINISH_ABORT || job.out[k].finish == QR_FINISH_LENGTH);
        } else {
            qr_request_release(job.request); /* no event of it comes afterwards: it would have a dead user */
        }
        rig_free(&job, 1);
    }
    rig_check_quiet(&r);
    rig_close(&r);
}

static void a_released_request_still_lets_others_run(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job kept = sampled(40, 2), alone = sampled(40, 2);
    rig_job dropped[10];
    rig_submit(&r, &kept);
    for (int i = 0; i < 10; i++) {
        dropped[i] = sampled(-1, (uint64_t)i);
        rig_submit(&r, &dropped[i]);
    }
    for (int i = 0; i < 10; i++)
        qr_request_release(dropped[i].request);
    rig_finish(&r, &kept, 1);
    rig_run(&r, &alone, 1);
    rig_same("others were dropped", &alone.out[0], &kept.out[0]);
    rig_check_quiet(&r);
    rig_free(&kept, 1);
    rig_free(&alone, 1);
    rig_close(&r);
}

/* ---- Closing ---- */

static void draining_ends_what_was_accepted_and_refuses_the_rest(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job job = sampled(60, 1);
    rig_submit(&r, &job);
    qr_engine_drain(r.engine);
    rig_job late = sampled(1, 1);
    refuse_submit(&r, &late.options, QR_CLOSED, "shutting down");
    assert_true(rig_stats(&r).draining);
    rig_finish(&r, &job, 1);
    assert_int_equal(job.out[0].count, 60);
    rig_free(&job, 1);
    rig_close(&r);
}

static void closing_aborts_what_runs(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        rig r;
        qr_engine_options options = rig_options();
        rig_open(&r, model, &options);
        rig_job jobs[3] = {sampled(-1, 1), sampled(-1, 2), sampled(-1, 3)};
        for (int i = 0; i < 3; i++)
            rig_submit(&r, &jobs[i]);
        if (round % 2 == 0)
            rig_wait(&r, jobs, 1, rig_first_began);
        qr_engine_close(r.engine);
        rig_wait(&r, jobs, 3, rig_all_ended);
        for (int i = 0; i < 3; i++) {
            assert_true(jobs[i].out[0].finish == QR_FINISH_ABORT ||
                        jobs[i].out[0].finish == QR_FINISH_LENGTH);
            qr_request_release(jobs[i].request);
        }
        qr_poller_close(r.poller);
    }
}

/* ---- Watching ---- */

static const qr_metric *find_metric(const qr_metric *metrics, size_t count, const char *name,
                                    const char *label)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(metrics[i].name, name) == 0 && strcmp(metrics[i].label, label) == 0)
            return &metrics[i];
    fail_msg("no metric %s{%s}", name, label);
    return NULL;
}

static void the_numbers_add_up(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job jobs[3] = {sampled(10, 1), sampled(20, 2), sampled(30, 3)};
    rig_run(&r, jobs, 3);
    rig_check_quiet(&r);
    qr_engine_stats stats = rig_stats(&r);
    assert_int_equal(stats.generation_tokens, 60);
    assert_int_equal(stats.prompt_tokens, 3 * PROMPT);
    assert_in_range(stats.steps, 30, 40);
    assert_true(stats.bytes_moved_total > 0 && stats.flops_total > 0 && stats.step_ns_total > 0);
    qr_metric *m;
    size_t count = qr_engine_metrics(r.engine, &m);
    assert_int_equal((int)find_metric(m, count, "vllm:generation_tokens", "")->value, 60);
    assert_int_equal((int)find_metric(m, count, "vllm:request_success", "finished_reason=\"length\"")->value,
                     3);
    const qr_metric *first = find_metric(m, count, "vllm:time_to_first_token_seconds", "");
    uint64_t in_buckets = 0;
    for (size_t i = 0; i <= first->bound_count; i++)
        in_buckets += first->buckets[i];
    assert_int_equal(first->count, 3);
    assert_int_equal(in_buckets, 3);
    assert_int_equal(find_metric(m, count, "vllm:inter_token_latency_seconds", "")->count, 57);
    assert_true(find_metric(m, count, "vllm:e2e_request_latency_seconds", "")->value > 0);
    assert_int_equal((int)find_metric(m, count, "vllm:request_generation_tokens", "")->value, 60);
    qr_metrics_free(m);
    qr_request_facts facts = jobs[1].facts;
    assert_true(facts.queued_ns > 0 && facts.queued_ns <= facts.scheduled_ns);
    assert_true(facts.scheduled_ns < facts.first_token_ns && facts.first_token_ns < facts.finished_ns);
    rig_free(jobs, 3);
    rig_close(&r);
}

static void resetting_the_prefix_cache_forgets_it(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job jobs[3] = {sampled(2, 1), sampled(2, 1), sampled(2, 1)};
    rig_run(&r, &jobs[0], 1);
    rig_run(&r, &jobs[1], 1);
    assert_int_equal(jobs[1].facts.cached_count, 32); /* 39 tokens may be read: four blocks of eight */
    qr_engine_reset_prefix_cache(r.engine);
    rig_run(&r, &jobs[2], 1);
    assert_int_equal(jobs[2].facts.cached_count, 0);
    rig_same("after the reset", &jobs[0].out[0], &jobs[2].out[0]);
    rig_free(jobs, 3);
    rig_close(&r);
}

static void a_poller_waits_and_its_descriptor_tells(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    qr_event event;
    struct pollfd fd = {.fd = qr_poller_fd(r.poller), .events = POLLIN};
    assert_int_equal(qr_poller_poll(r.poller, &event, 1, 0), 0);
    assert_int_equal(qr_poller_poll(r.poller, &event, 1, 5), 0);
    assert_int_equal(poll(&fd, 1, 0), 0);
    rig_job job = sampled(5, 1);
    rig_submit(&r, &job);
    assert_int_equal(poll(&fd, 1, 10000), 1);
    rig_finish(&r, &job, 1);
    assert_int_equal(qr_poller_poll(r.poller, &event, 1, 0), 0);
    assert_int_equal(poll(&fd, 1, 0), 0); /* clear again */
    rig_free(&job, 1);
    rig_close(&r);
}

/* ---- Several threads ---- */

typedef struct client {
    rig r;
    pthread_t thread;
    int number;
    rig_job expected;
    int wrong;
} client;

static void *client_run(void *arg)
{
    client *c = arg;
    for (int i = 0; i < 15; i++) {
        rig_job job = sampled(16, 3);
        rig_submit(&c->r, &job);
        if ((i + c->number) % 4 == 0) {
            qr_request_release(job.request);
            continue;
        }
        rig_finish(&c->r, &job, 1);
        c->wrong += job.out[0].count != c->expected.out[0].count ||
                    memcmp(job.out[0].ids, c->expected.out[0].ids, job.out[0].count * sizeof(int32_t)) != 0;
        rig_free(&job, 1);
    }
    return NULL;
}

static void readers_on_several_threads_do_not_disturb_each_other(void **state)
{
    (void)state;
    enum { CLIENTS = 4 };
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job expected = sampled(16, 3);
    rig_run(&r, &expected, 1);
    static client clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        qr_error err = {0};
        clients[i] = (client){.number = i, .expected = expected, .r = {model, r.engine, NULL}};
        RIG_OK(qr_poller_open(r.engine, &clients[i].r.poller, &err), err);
        pthread_create(&clients[i].thread, NULL, client_run, &clients[i]);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        assert_int_equal(clients[i].wrong, 0);
        qr_poller_close(clients[i].r.poller);
    }
    rig_check_quiet(&r);
    rig_free(&expected, 1);
    rig_close(&r);
}

static void inspect_prints_the_plan_without_loading(void **state)
{
    (void)state;
    qr_error err = {0};
    char *json = NULL;
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = MODELS "gguf-llama-q4_1/model.gguf";
    qr_engine_options engine = rig_options();
    RIG_OK(qr_model_inspect(&options, &engine, &json, &err), err);
    assert_non_null(strstr(json, "\"kv_blocks\":1024"));
    assert_non_null(strstr(json, "\"architecture\":\"llama\""));
    qr_string_free(json);
    json = NULL;
    engine.kv_cache_memory_bytes = UINT64_C(1) << 50;
    engine.num_kv_blocks = 1 << 25;
    assert_int_equal(qr_model_inspect(&options, &engine, &json, &err), QR_OUT_OF_MEMORY);
    assert_non_null(json); /* the numbers are there all the same */
    assert_non_null(strstr(err.message, "GB available"));
    qr_string_free(json);
    options.path = MODELS "there-is-none";
    json = NULL;
    assert_int_equal(qr_model_inspect(&options, NULL, &json, &err), QR_NOT_FOUND);
    assert_null(json);
}

static void shares_and_ways_out_of_range_are_refused(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_engine *engine = NULL;
    static const double shares[] = {-0.1, 1.01, NAN, INFINITY};
    for (size_t i = 0; i < QR_COUNT_OF(shares); i++) {
        qr_engine_options options = rig_options();
        options.gpu_memory_utilization = shares[i];
        assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, "gpu_memory_utilization"));
    }
    qr_engine_options options = rig_options();
    options.async_scheduling = "yes";
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "async_scheduling"));
}

/* Requests under way fail with the device's word, later ones are refused, closing does not hang. */
static void a_lost_device_is_a_state(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = rig_options();
    qr_error err = {0};
    setenv("QUIRE_TEST_FAULT_STEP", "5", 1);
    qr_model *doomed = rig_model(MODELS "llama-gqa4-llama3", NULL, 2);
    rig_open(&r, doomed, &options);
    unsetenv("QUIRE_TEST_FAULT_STEP");
    rig_job jobs[3];
    for (int i = 0; i < 3; i++) {
        jobs[i] = sampled(30, (uint64_t)i);
        jobs[i].options.sampling.n = i == 1 ? 4 : 1;
        jobs[i].options.sampling.ignore_eos = true;
    }
    rig_run(&r, jobs, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].out[0].finish, QR_FINISH_ERROR);
        assert_int_equal(jobs[i].out[0].status, QR_DEVICE_FAILED);
        assert_non_null(strstr(jobs[i].out[0].message, "cpu"));
        assert_true(jobs[i].out[0].count < 30);
    }
    qr_engine_stats stats = rig_stats(&r);
    assert_true(stats.device_failed && !stats.healthy);
    assert_int_equal(stats.running + stats.waiting, 0);
    assert_int_equal(stats.kv_blocks_free, stats.kv_blocks);
    qr_request *request = NULL;
    rig_job late = sampled(3, 9);
    assert_int_equal(qr_request_submit(r.engine, r.poller, &late.options, &request, &err), QR_DEVICE_FAILED);
    rig_free(jobs, 3);
    rig_close(&r);
    qr_model_close(doomed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_greedy_run_gives_the_golden_ids),
        cmocka_unit_test(samples_share_a_prompt_and_nothing_else),
        cmocka_unit_test(a_seed_decides_and_one_is_given_when_none_comes),
        cmocka_unit_test(stop_ids_end_a_sample_after_min_tokens),
        cmocka_unit_test(the_end_of_sequence_token_ends_unless_ignored),
        cmocka_unit_test(the_context_limits_what_max_tokens_does_not),
        cmocka_unit_test(a_resumed_stream_continues_the_interrupted_one),
        cmocka_unit_test(scores_equal_the_log_probabilities_of_the_run),
        cmocka_unit_test(log_probabilities_of_a_prompt_are_a_distribution),
        cmocka_unit_test(nothing_wanted_is_nothing_computed),
        cmocka_unit_test(a_wrong_prompt_ends_with_its_reason),
        cmocka_unit_test(wrong_options_are_refused_at_submission),
        cmocka_unit_test(a_full_queue_says_busy_and_recovers),
        cmocka_unit_test(the_output_budget_bounds_what_is_accepted),
        cmocka_unit_test(engine_options_are_checked),
        cmocka_unit_test(a_request_can_be_cancelled_at_every_stage),
        cmocka_unit_test(a_released_request_still_lets_others_run),
        cmocka_unit_test(draining_ends_what_was_accepted_and_refuses_the_rest),
        cmocka_unit_test(closing_aborts_what_runs),
        cmocka_unit_test(the_numbers_add_up),
        cmocka_unit_test(resetting_the_prefix_cache_forgets_it),
        cmocka_unit_test(a_poller_waits_and_its_descriptor_tells),
        cmocka_unit_test(readers_on_several_threads_do_not_disturb_each_other),
        cmocka_unit_test(inspect_prints_the_plan_without_loading),
        cmocka_unit_test(shares_and_ways_out_of_range_are_refused),
        cmocka_unit_test(a_lost_device_is_a_state),
    };
    return RIG_RUN_BOTH_WAYS(tests, open_model, close_model);
}
