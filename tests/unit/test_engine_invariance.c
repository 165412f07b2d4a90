/* The same request gives bit-identical tokens and log-probabilities alone, among 64 others, with any chunk size, on a
 * prefix hit, after preemption and with any number of threads: for each kind of checkpoint and instruction set, and by
 * any one number of ranks. */
#include "base/cpuid.h"
#include "unit/engine_rig.h"

#define PROMPT 45
#define OUTPUT 30
#ifdef __SANITIZE_THREAD__
#define STRIDE 4 /* it looks for races, which do not depend on the format */
#else
#define STRIDE 1
#endif

static const char *const paths[] = {
    MODELS "llama-gqa4-llama3",
    MODELS "llama-odd-heads",
    MODELS "llama-bias-bf16",
    MODELS "gguf-llama-q4_1/model.gguf",
    MODELS "gguf-llama-yarn-q8_0/model.gguf",
    MODELS "gguf-llama-q4_k_m/model.gguf",
    MODELS "gguf-mistral-window-split/model-00001-of-00003.gguf", /* every layer slides */
    MODELS "qwen2-window",                                        /* two groups */
    MODELS "qwen3-gqa8-bf16",
};

static int32_t prompt[PROMPT];

static void fill(int32_t *ids, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = 2 + (int32_t)(qr_rng_next(&seed) % 120);
}

static rig_job the_job(void)
{
    rig_job job = rig_job_of(prompt, PROMPT, OUTPUT);
    qr_sampling_params *s = &job.options.sampling;
    s->temperature = 0.9f;
    s->repetition_penalty = 1.1f;
    s->top_p = 0.95f;
    s->has_seed = true;
    s->seed = 77;
    s->logprobs = 4;
    s->prompt_logprobs = 2;
    s->ignore_eos = true;
    return job;
}

static void same_as(const char *what, const rig_job *expected, const rig_job *job)
{
    rig_same(what, &expected->out[0], &job->out[0]);
    size_t rows = job->facts.prompt_count * job->facts.prompt_logprob_columns;
    if (job->options.sampling.prompt_logprobs >= 0 &&
        memcmp(expected->prompt_logprobs, job->prompt_logprobs, rows * sizeof(qr_logprob)) != 0)
        fail_msg("%s: the prompt's log-probabilities differ", what);
}

static void run_alone(qr_model *model, const qr_engine_options *options, rig_job *job)
{
    rig r;
    rig_open(&r, model, options);
    rig_run(&r, job, 1);
    rig_check_quiet(&r);
    rig_close(&r);
}

static void check_chunks(qr_model *model, const rig_job *expected)
{
    static const int32_t budgets[] = {1, 2, 3, 7, 16, 33, 64};
    for (size_t i = 0; i < QR_COUNT_OF(budgets); i++) {
        qr_engine_options options = rig_options();
        options.max_num_seqs = 1;
        options.max_num_batched_tokens = budgets[i];
        rig_job job = the_job();
        run_alone(model, &options, &job);
        same_as("chunks", expected, &job);
        rig_free(&job, 1);
    }
}

static void check_batch(qr_model *model, const rig_job *expected, int others)
{
    rig r;
    qr_engine_options options = rig_options();
    options.max_num_seqs = others + 1;
    rig_open(&r, model, &options);
    rig_job *jobs = calloc((size_t)others + 1, sizeof(*jobs));
    int32_t(*ids)[64] = calloc((size_t)others + 1, sizeof(*ids));
    uint64_t random = 5;
    for (int i = 0; i <= others; i++) {
        size_t count = 1 + qr_rng_next(&random) % 60;
        fill(ids[i], count, (uint64_t)i + 1000);
        jobs[i] = rig_job_of(ids[i], count, 1 + (int64_t)(qr_rng_next(&random) % 40));
        jobs[i].options.sampling.temperature = 1;
    }
    jobs[others / 2] = the_job();
    rig_run(&r, jobs, others + 1);
    same_as("a batch", expected, &jobs[others / 2]);
    rig_check_quiet(&r);
    rig_free(jobs, others + 1);
    free(jobs);
    free(ids);
    rig_close(&r);
}

static void check_prefix_hit(qr_model *model, const rig_job *expected)
{
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, model, &options);
    rig_job jobs[3] = {the_job(), the_job(), the_job()};
    for (int i = 0; i < 3; i++) {
        jobs[i].options.sampling.prompt_logprobs = -1; /* they would read no hit */
        if (i == 2)
            jobs[i].options.cache_salt = "other";
        rig_run(&r, &jobs[i], 1);
        same_as("a prefix hit", expected, &jobs[i]);
        assert_int_equal(jobs[i].facts.cached_count, i == 1 ? PROMPT / 8 * 8 : 0);
    }
    /* With the log-probabilities of the prompt nothing is read, and everything is right. */
    rig_job whole = the_job();
    rig_run(&r, &whole, 1);
    assert_int_equal(whole.facts.cached_count, 0);
    same_as("prompt_logprobs beside a cached prefix", expected, &whole);
    rig_check_quiet(&r);
    rig_free(jobs, 3);
    rig_free(&whole, 1);
    rig_close(&r);
}

static void check_preemption(qr_model *model, const rig_job *expected)
{
    enum { MANY = 12 };
    rig r;
    qr_engine_options options = rig_options();
    options.max_model_len = PROMPT + OUTPUT + 1;
    options.num_kv_blocks = 22; /* two sequences and a little */
    options.max_num_batched_tokens = 32;
    options.max_num_seqs = 16;
    rig_open(&r, model, &options);
    rig_job jobs[MANY];
    int32_t ids[MANY][12];
    for (int i = 0; i < MANY; i++) {
        fill(ids[i], 12, (uint64_t)i + 50);
        jobs[i] = i % 3 == 2 ? the_job() : rig_job_of(ids[i], 12, 50);
        jobs[i].options.sampling.ignore_eos = true;
    }
    rig_run(&r, jobs, MANY);
    assert_true(rig_stats(&r).preemptions > 0);
    for (int i = 2; i < MANY; i += 3)
        same_as("preemption", expected, &jobs[i]);
    rig_check_quiet(&r);
    rig_free(jobs, MANY);
    rig_close(&r);
}

/* A better priority takes the only place of a request that has begun. */
static void check_priority(qr_model *model, const rig_job *expected)
{
    rig r;
    qr_engine_options options = rig_options();
    options.priority_scheduling = true;
    options.max_num_seqs = 1;
    options.max_num_batched_tokens = 16;
    rig_open(&r, model, &options);
    int32_t ids[12];
    fill(ids, 12, 9);
    /* The first may be through before the second comes: then once more. */
    for (int attempt = 0; attempt < 200 && rig_stats(&r).preemptions == 0; attempt++) {
        rig_job jobs[2] = {the_job(), rig_job_of(ids, 12, 5)};
        jobs[0].options.priority = 3;
        rig_submit(&r, &jobs[0]);
        rig_wait(&r, jobs, 1, rig_first_began);
        rig_submit(&r, &jobs[1]);
        rig_finish(&r, jobs, 2);
        same_as("preemption by priority", expected, &jobs[0]);
        rig_free(jobs, 2);
        rig_check_quiet(&r);
    }
    assert_true(rig_stats(&r).preemptions > 0);
    rig_close(&r);
}

static void check_model(const char *path, const char *isa, int ranks)
{
    print_message("%s on %s by %d\n", path + strlen(MODELS), isa, ranks);
    qr_model *model = rig_model_ranks(path, isa, 2 * ranks, ranks);
    qr_engine_options options = rig_options();
    rig_job expected = the_job();
    run_alone(model, &options, &expected);
    assert_int_equal(expected.out[0].count, OUTPUT);
    check_chunks(model, &expected);
    check_batch(model, &expected, 64);
    check_prefix_hit(model, &expected);
    if (strstr(path, "mistral-window") == NULL) /* behind a window nothing grows, so nothing has to go */
        check_preemption(model, &expected);
    check_priority(model, &expected);
    qr_model_close(model);

    model = rig_model_ranks(path, isa, ranks, ranks);
    rig_job one_thread = the_job();
    run_alone(model, &options, &one_thread);
    same_as("one thread", &expected, &one_thread);
    qr_model_close(model);
    rig_free(&expected, 1);
    rig_free(&one_thread, 1);
}

static void check_all(const char *isa)
{
    fill(prompt, PROMPT, 3);
    for (size_t i = 0; i < QR_COUNT_OF(paths); i += STRIDE)
        check_model(paths[i], isa, 1);
}

static void bits_do_not_depend_on_the_company_in_generic_c(void **state)
{
    (void)state;
    check_all("generic");
}

static void bits_do_not_depend_on_the_company_with_avx2(void **state)
{
    (void)state;
    if (!qr_cpu_detect()->avx2)
        skip();
    check_all("avx2");
}

static void bits_do_not_depend_on_the_company_with_avx512(void **state)
{
    (void)state;
    if (!qr_cpu_detect()->avx512)
        skip();
    check_all("avx512");
}

static void bits_do_not_depend_on_the_company_by_two_to_four_ranks(void **state)
{
    (void)state;
    fill(prompt, PROMPT, 3);
    check_model(MODELS "llama-bias-bf16", "auto", 2);
    check_model(MODELS "qwen2-window", "auto", 2);
    check_model(MODELS "gguf-llama-q4_1/model.gguf", "auto", 3);
    check_model(MODELS "llama-gqa4-llama3", "auto", 4); /* two key-value heads: each is held twice */
    check_model(MODELS "llama-gqa4-llama3", "generic", 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_depend_on_the_company_by_two_to_four_ranks),
        cmocka_unit_test(bits_do_not_depend_on_the_company_with_avx512),
        cmocka_unit_test(bits_do_not_depend_on_the_company_with_avx2),
        cmocka_unit_test(bits_do_not_depend_on_the_company_in_generic_c),
    };
    return RIG_RUN_BOTH_WAYS(tests, NULL, NULL);
}
