/* --device sim: the engine whole, the device a clock: no weights, no work, the same tokens however a request is run. */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "unit/engine_rig.h"

#define PROMPT 70

static const char config_json[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":4096,"
    "\"intermediate_size\":14336,\"num_hidden_layers\":32,\"num_attention_heads\":32,"
    "\"num_key_value_heads\":8,\"vocab_size\":128256,\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-5,"
    "\"rope_theta\":500000.0,\"hidden_act\":\"silu\",\"torch_dtype\":\"bfloat16\",\"eos_token_id\":128001}";

static char folder[64], config_path[80];
static qr_model *model; /* an 8B, of which only config.json exists; a step takes no time to speak of */
static int32_t prompt[PROMPT];

static qr_status open_on(const char *device, qr_model **out, qr_error *err)
{
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = folder;
    options.load_format = "dummy";
    options.device = device;
    return qr_model_open(&options, out, err);
}

static int open_model(void **state)
{
    (void)state;
    qr_error err = {0};
    snprintf(folder, sizeof(folder), "/tmp/quire-sim-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(config_path, sizeof(config_path), "%s/config.json", folder);
    RIG_OK(qr_file_write(config_path, config_json, sizeof(config_json) - 1, &err), err);
    RIG_OK(open_on("sim:flops=1e20,bandwidth=1e17,overhead=0", &model, &err), err);
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = 1000 + 7 * i;
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    qr_model_close(model);
    unlink(config_path);
    return rmdir(folder);
}

static rig_job sampled(int64_t max_tokens, uint64_t seed)
{
    rig_job job = rig_job_of(prompt, PROMPT, max_tokens);
    job.options.sampling.temperature = 1;
    job.options.sampling.has_seed = true;
    job.options.sampling.seed = seed;
    job.options.sampling.ignore_eos = true;
    return job;
}

static rig_output alone(rig_job job, const qr_engine_options *options)
{
    rig r;
    rig_open(&r, model, options);
    rig_run(&r, &job, 1);
    rig_check_quiet(&r);
    rig_close(&r);
    free(job.prompt_logprobs);
    return job.out[0];
}

static void release(rig_output *out)
{
    free(out->ids);
    free(out->text);
    free(out->logprobs);
}

static void tokens_do_not_depend_on_company_chunks_or_hits(void **state)
{
    (void)state;
    qr_engine_options options = rig_options();
    rig_output wanted = alone(sampled(60, 5), &options);
    options.max_num_batched_tokens = 9; /* chunks of an odd size */
    options.max_num_seqs = 8;
    options.num_kv_blocks = 40; /* and preemption: eight such requests need 128 */
    rig r;
    rig_open(&r, model, &options);
    rig_job jobs[8];
    for (int round = 0; round < 2; round++) { /* the second reads the first's prefix */
        for (int i = 0; i < 8; i++)
            jobs[i] = sampled(60, 5 + (uint64_t)i);
        rig_run(&r, jobs, 8);
        rig_same("in company", &wanted, &jobs[0].out[0]);
        assert_memory_not_equal(wanted.ids, jobs[1].out[0].ids, 60 * sizeof(int32_t));
        rig_free(jobs, 8);
    }
    assert_true(rig_stats(&r).preemptions > 0);
    rig_check_quiet(&r);
    rig_close(&r);
    release(&wanted);
}

static void a_resumed_request_goes_on_with_the_same_tokens(void **state)
{
    (void)state;
    qr_engine_options options = rig_options();
    rig_output wanted = alone(sampled(50, 9), &options);
    rig_job rest = sampled(50, 9);
    rest.options.output_prefix_ids = wanted.ids;
    rest.options.output_prefix_count = 23;
    rig_output out = alone(rest, &options);
    assert_int_equal(out.count, 27);
    assert_memory_equal(out.ids, wanted.ids + 23, 27 * sizeof(int32_t));
    release(&out);
    int32_t other[23];
    memcpy(other, wanted.ids, sizeof(other));
    other[22] ^= 1; /* a wrong last token shows */
    rest.options.output_prefix_ids = other;
    out = alone(rest, &options);
    assert_memory_not_equal(out.ids, wanted.ids + 23, 27 * sizeof(int32_t));
    release(&out);
    release(&wanted);
}

static void rows_for_the_host_peak_at_the_drawn_token(void **state)
{
    (void)state;
    qr_engine_options options = rig_options();
    rig_job greedy = rig_job_of(prompt, PROMPT, 12);
    greedy.options.sampling.ignore_eos = true;
    rig_output wanted = alone(greedy, &options);
    greedy.options.sampling.logprobs = 2;
    greedy.options.sampling.prompt_logprobs = 0;
    rig_output out = alone(greedy, &options);
    assert_memory_equal(out.ids, wanted.ids, 12 * sizeof(int32_t));
    for (size_t i = 0; i < out.count; i++) {
        assert_int_equal(out.logprobs[i * out.columns].rank, 1);
        assert_true(out.logprobs[i * out.columns].logprob > -1e-6f);
    }
    release(&out);
    release(&wanted);
}

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Twenty tokens of 15 ms are not there before 0.3 s, and cost the processor next to nothing. */
static void a_step_takes_its_time_and_no_processor(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_model *slow = NULL;
    RIG_OK(open_on("sim:flops=1e20,bandwidth=1.501e12,overhead=5e-3", &slow, &err),
           err); /* 15.01 GB: 10 ms */
    rig r;
    qr_engine_options options = rig_options();
    rig_open(&r, slow, &options);
    rig_job job = sampled(20, 1);
    double cpu = cpu_seconds();
    rig_run(&r, &job, 1);
    cpu = cpu_seconds() - cpu;
    uint64_t ns = job.facts.finished_ns - job.facts.scheduled_ns;
    assert_true(ns >= 20 * UINT64_C(14990000));
    assert_true(cpu < 0.15);
    qr_engine_stats stats = rig_stats(&r);
    assert_int_equal(stats.steps, 20);
    assert_true(stats.bytes_moved_total > 20 * UINT64_C(15000000000));
    rig_free(&job, 1);
    rig_close(&r);
    qr_model_close(slow);
}

static void the_plan_is_made_for_the_simulated_memory(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_model *small = NULL;
    RIG_OK(open_on("sim:memory=2e10", &small, &err), err);
    qr_engine *engine = NULL;
    qr_engine_options options;
    qr_engine_options_init(&options);
    RIG_OK(qr_engine_open(small, &options, &engine, &err), err);
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(engine, &stats);
    int64_t bytes = stats.kv_blocks * stats.block_size * 131072; /* 128 KiB a token */
    assert_in_range(bytes, 1000000000, 20000000000 - 16060000000);
    qr_engine_close(engine);
    options.kv_cache_memory_bytes = UINT64_C(10000000000);
    assert_int_equal(qr_engine_open(small, &options, &engine, &err), QR_OUT_OF_MEMORY);
    qr_model_close(small);
}

static void wrong_options_are_named(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "sim:speed=1",   "sim:flops",    "sim:flops=",      "sim:flops=1e12;memory=1e9",
        "sim:flops=nan", "sim:memory=1", "sim:overhead=-1", "sim:bandwidth=0",
        "sim:seed=1e17", "sim:=1",
    };
    for (size_t i = 0; i < QR_COUNT_OF(wrong); i++) {
        qr_error err = {0};
        qr_model *none = NULL;
        assert_int_equal(open_on(wrong[i], &none, &err), QR_INVALID_ARGUMENT);
        assert_non_null(strstr(err.message, "device: sim: "));
        assert_null(none);
    }
    qr_error err = {0};
    qr_model *none = NULL;
    assert_int_equal(open_on("simulator", &none, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "sim[:options]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_do_not_depend_on_company_chunks_or_hits),
        cmocka_unit_test(a_resumed_request_goes_on_with_the_same_tokens),
        cmocka_unit_test(rows_for_the_host_peak_at_the_drawn_token),
        cmocka_unit_test(a_step_takes_its_time_and_no_processor),
        cmocka_unit_test(the_plan_is_made_for_the_simulated_memory),
        cmocka_unit_test(wrong_options_are_named),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
