/* The engine on the GPU: a request gives the same bits alone, among others, with any chunk size, on a prefix hit, after
 * preemption, in recorded steps and op by op, with a step planned ahead and without, drawn on the device and on the
 * host; a GPU that fails is a state. On random weights of a shape that the fast kernels serve. Ends with 77 where there
 * is no GPU. */
#include <unistd.h>

#include "backend/ops.h"
#include "unit/engine_rig.h"

enum { PROMPT = 700, OUTPUT = 60, VOCAB = 4096 };

static qr_model *model;
static int32_t prompt[PROMPT];
static rig_job expected;

static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", "
    "\"hidden_size\": 1024, \"intermediate_size\": 2816, \"num_hidden_layers\": 4, \"num_attention_heads\": "
    "8, "
    "\"num_key_value_heads\": 2, \"head_dim\": 128, \"vocab_size\": 4096, \"max_position_embeddings\": 8192, "
    "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false, \"torch_dtype\": "
    "\"bfloat16\", \"bos_token_id\": 1, \"eos_token_id\": 2}";

static void fill(int32_t *ids, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = 3 + (int32_t)(qr_rng_next(&seed) % (VOCAB - 3));
}

static qr_model *open_model(void)
{
    char dir[] = "/tmp/quire-gpu-XXXXXX", path[64];
    qr_error err = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    RIG_OK(qr_file_write(path, config, sizeof(config) - 1, &err), err);
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = dir;
    options.device = "cuda";
    options.load_format = "dummy";
    options.dummy_seed = 7;
    qr_model *opened = NULL;
    RIG_OK(qr_model_open(&options, &opened, &err), err);
    unlink(path);
    rmdir(dir);
    return opened;
}

static qr_engine_options gpu_options(void)
{
    qr_engine_options options = rig_options();
    options.block_size = 0;
    options.num_kv_blocks = 2048;
    options.max_num_batched_tokens = 2048;
    options.max_num_seqs = 128;
    return options;
}

/* Log-probabilities: the host draws, and every bit of the logits counts. */
static rig_job the_job(void)
{
    rig_job job = rig_job_of(prompt, PROMPT, OUTPUT);
    qr_sampling_params *s = &job.options.sampling;
    s->temperature = 0.9f;
    s->top_p = 0.95f;
    s->has_seed = true;
    s->seed = 77;
    s->logprobs = 4;
    s->ignore_eos = true;
    return job;
}

/* Nothing but ids: the device draws. */
static rig_job drawn_job(float temperature, float top_p, int32_t top_k)
{
    rig_job job = the_job();
    job.options.sampling.logprobs = -1;
    job.options.sampling.temperature = temperature;
    job.options.sampling.top_p = top_p;
    job.options.sampling.top_k = top_k;
    return job;
}

static void run_alone(const qr_engine_options *options, rig_job *job)
{
    rig r;
    rig_open(&r, model, options);
    rig_run(&r, job, 1);
    rig_check_quiet(&r);
    rig_close(&r);
}

static int setup(void **state)
{
    (void)state;
    fill(prompt, PROMPT, 3);
    model = open_model();
    qr_engine_options options = gpu_options();
    options.async_scheduling = "off";
    expected = the_job();
    run_alone(&options, &expected);
    return expected.out[0].count == OUTPUT ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    rig_free(&expected, 1);
    qr_model_close(model);
    return 0;
}

static void chunks_do_not_change_bits(void **state)
{
    (void)state;
    static const int32_t budgets[] = {40, 129, 256, 700, 2048};
    for (size_t i = 0; i < QR_COUNT_OF(budgets); i++) {
        qr_engine_options options = gpu_options();
        options.max_num_seqs = 1;
        options.max_num_batched_tokens = budgets[i];
        rig_job job = the_job();
        run_alone(&options, &job);
        rig_same("chunks", &expected.out[0], &job.out[0]);
        rig_free(&job, 1);
    }
}

/* Others of all lengths come and go: steps are recorded and not, mixed and not. */
static void run_among(int others, int32_t budget, int64_t longest)
{
    rig r;
    qr_engine_options options = gpu_options();
    options.max_num_batched_tokens = budget;
    rig_open(&r, model, &options);
    rig_job *jobs = calloc((size_t)others + 1, sizeof(*jobs));
    int32_t *ids = calloc((size_t)others + 1, 1024 * sizeof(*ids));
    uint64_t random = 5;
    for (int i = 0; i <= others; i++) {
        int32_t *mine = ids + (size_t)i * 1024;
        size_t count = 1 + qr_rng_next(&random) % (uint64_t)longest;
        fill(mine, count, (uint64_t)i + 1000);
        jobs[i] = rig_job_of(mine, count, 1 + (int64_t)(qr_rng_next(&random) % 70));
        jobs[i].options.sampling.temperature = i % 2 == 0 ? 1 : 0;
        jobs[i].options.sampling.logprobs = i % 5 == 0 ? 2 : -1;
    }
    jobs[others / 2] = the_job();
    rig_run(&r, jobs, others + 1);
    rig_same("a batch", &expected.out[0], &jobs[others / 2].out[0]);
    rig_check_quiet(&r);
    rig_free(jobs, others + 1);
    free(jobs);
    free(ids);
    rig_close(&r);
}

static void company_does_not_change_bits(void **state)
{
    (void)state;
    run_among(7, 2048, 1000);
    run_among(60, 2048, 900);
    run_among(120, 512, 300);
    run_among(30, 128, 200); /* hardly a step without some prompt */
}

static void a_prefix_hit_does_not_change_bits(void **state)
{
    (void)state;
    rig r;
    qr_engine_options options = gpu_options();
    rig_open(&r, model, &options);
    rig_job jobs[2] = {the_job(), the_job()};
    for (int i = 0; i < 2; i++) {
        rig_run(&r, &jobs[i], 1);
        rig_same("a prefix hit", &expected.out[0], &jobs[i].out[0]);
    }
    assert_true(jobs[1].facts.cached_count > PROMPT / 2);
    rig_check_quiet(&r);
    rig_free(jobs, 2);
    rig_close(&r);
}

static void preemption_does_not_change_bits(void **state)
{
    (void)state;
    enum { MANY = 9 };
    rig r;
    qr_engine_options options = gpu_options();
    options.max_model_len = PROMPT + OUTPUT + 1;
    options.num_kv_blocks = 56; /* of 32 tokens: two sequences and a little */
    options.max_num_batched_tokens = 256;
    rig_open(&r, model, &options);
    rig_job jobs[MANY];
    int32_t ids[MANY][300];
    for (int i = 0; i < MANY; i++) {
        fill(ids[i], 300, (uint64_t)i + 50);
        jobs[i] = i % 3 == 2 ? the_job() : rig_job_of(ids[i], 300, 200);
        jobs[i].options.sampling.ignore_eos = true;
    }
    rig_run(&r, jobs, MANY);
    assert_true(rig_stats(&r).preemptions > 0);
    for (int i = 2; i < MANY; i += 3)
        rig_same("preemption", &expected.out[0], &jobs[i].out[0]);
    rig_check_quiet(&r);
    rig_free(jobs, MANY);
    rig_close(&r);
}

/* The device's draws are the host's, and recorded steps give what steps op by op give. */
static void the_device_draws_what_the_host_draws(void **state)
{
    (void)state;
    static const struct {
        float temperature, top_p;
        int32_t top_k;
        float repetition, presence, frequency;
    } cases[] = {{0, 1, 0, 1, 0, 0},        {1, 1, 0, 1, 0, 0},          {0.9f, 0.95f, 0, 1, 0, 0},
                 {0.8f, 1, 40, 1, 0, 0},    {1.3f, 0.9f, 200, 1, 0, 0},  {0, 1, 0, 1.4f, 0, 0},
                 {1, 1, 0, 1, 1.5f, -0.5f}, {0.9f, 0.9f, 50, 0.8f, 0, 2}};
    static const qr_logit_bias bias[] = {{17, -100}, {400, 3.5f}, {4000, 1.25f}};
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        qr_engine_options options = gpu_options();
        rig_job device = drawn_job(cases[i].temperature, cases[i].top_p, cases[i].top_k);
        device.options.sampling.repetition_penalty = cases[i].repetition;
        device.options.sampling.presence_penalty = cases[i].presence;
        device.options.sampling.frequency_penalty = cases[i].frequency;
        device.options.sampling.logit_bias = bias;
        device.options.sampling.logit_bias_count = i % 2 == 1 ? QR_COUNT_OF(bias) : 0;
        rig_job host = device, beside = device;
        host.options.sampling.logprobs = 0;
        run_alone(&options, &device);
        run_alone(&options, &host);
        assert_int_equal(device.out[0].count, OUTPUT);
        assert_memory_equal(device.out[0].ids, host.out[0].ids, OUTPUT * sizeof(int32_t));
        /* Beside a prompt that is computed in small pieces no step is recorded. */
        rig r;
        options.max_num_batched_tokens = 64;
        options.max_num_seqs = 8;
        rig_open(&r, model, &options);
        static int32_t other[4000];
        fill(other, QR_COUNT_OF(other), 4);
        rig_job jobs[2] = {beside, rig_job_of(other, QR_COUNT_OF(other), 1)};
        rig_run(&r, jobs, 2);
        assert_memory_equal(device.out[0].ids, jobs[0].out[0].ids, OUTPUT * sizeof(int32_t));
        rig_close(&r);
        rig_free(jobs, 2);
        rig_free(&device, 1);
        rig_free(&host, 1);
    }
}

static void a_lost_gpu_is_a_state(void **state)
{
    (void)state;
    rig r;
    qr_error err = {0};
    qr_engine_options options = gpu_options();
    setenv("QUIRE_TEST_FAULT_STEP", "9", 1);
    rig_open(&r, model, &options);
    unsetenv("QUIRE_TEST_FAULT_STEP");
    rig_job jobs[3] = {drawn_job(1, 1, 0), the_job(), drawn_job(0, 1, 0)};
    rig_run(&r, jobs, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].out[0].finish, QR_FINISH_ERROR);
        assert_int_equal(jobs[i].out[0].status, QR_DEVICE_FAILED);
        assert_non_null(strstr(jobs[i].out[0].message, "cuda:0"));
    }
    print_message("%s\n", jobs[0].out[0].message);
    assert_true(rig_stats(&r).device_failed && !rig_stats(&r).healthy);
    qr_request *request = NULL;
    assert_int_equal(qr_request_submit(r.engine, r.poller, &jobs[0].options, &request, &err),
                     QR_DEVICE_FAILED);
    rig_free(jobs, 3);
    rig_close(&r);
}

int main(void)
{
    qr_device *device;
    qr_error err = {0};
    if (qr_device_open(&(qr_device_options){.device = "cuda"}, &device, &err) != QR_OK) {
        print_message("skipped: %s\n", err.message);
        return 77;
    }
    qr_device_close(device);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_do_not_change_bits),
        cmocka_unit_test(company_does_not_change_bits),
        cmocka_unit_test(a_prefix_hit_does_not_change_bits),
        cmocka_unit_test(preemption_does_not_change_bits),
        cmocka_unit_test(the_device_draws_what_the_host_draws),
    };
    const struct CMUnitTest last[] = {
        cmocka_unit_test(a_lost_gpu_is_a_state)}; /* nothing runs here after it */
    return RIG_RUN_BOTH_WAYS(tests, setup, teardown) +
           cmocka_run_group_tests_name("the device is lost", last, setup, teardown);
}
