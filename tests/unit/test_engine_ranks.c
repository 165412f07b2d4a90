/* An engine over several ranks: what it says of itself, what it refuses, and what becomes of it when a rank fails. */
#include <stdlib.h>

#include "unit/engine_rig.h"

#define MODEL MODELS "llama-gqa4-llama3"

static qr_status try_model(const char *path, int ranks, qr_error *err)
{
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = path;
    options.device = "cpu";
    options.tensor_parallel_size = ranks;
    qr_model *model = NULL;
    qr_status status = qr_model_open(&options, &model, err);
    qr_model_close(model);
    return status;
}

static void what_cannot_be_shared_is_refused_with_the_numbers(void **state)
{
    (void)state;
    qr_error err = {0};
    assert_int_equal(try_model(MODELS "llama-odd-heads", 2, &err), QR_UNSUPPORTED);
    assert_string_equal(err.message, "tensor parallelism: 2 ranks cannot share 7 query heads");
    assert_int_equal(try_model(MODELS "gguf-llama-q4_0/model.gguf", 2, &err), QR_UNSUPPORTED);
    assert_string_equal(err.message, "tensor parallelism: 2 ranks cannot share or repeat 3 key-value heads");
    assert_int_equal(try_model(MODELS "gguf-llama-yarn-q8_0/model.gguf", 2, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "share its 96 columns by 48"));
    assert_non_null(strstr(err.message, "blocks of 32 (Q8_0)"));
    assert_int_equal(try_model(MODEL, 17, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "17"));
    assert_int_equal(try_model(MODEL, -1, &err), QR_INVALID_ARGUMENT);
    assert_int_equal(try_model(MODEL, 0, &err), QR_OK);
}

static void the_fingerprint_counts_the_ranks(void **state)
{
    (void)state;
    qr_model *one = rig_model_ranks(MODEL, "auto", 1, 1), *two = rig_model_ranks(MODEL, "auto", 2, 2);
    assert_null(strstr(qr_model_fingerprint(one), "tensor-parallel"));
    assert_non_null(strstr(qr_model_fingerprint(two), "tensor-parallel 2"));
    qr_model_close(one);
    qr_model_close(two);
}

static void inspect_shows_every_rank_s_plan(void **state)
{
    (void)state;
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = MODEL;
    options.device = "cpu";
    options.tensor_parallel_size = 4;
    char *json = NULL;
    qr_error err = {0};
    RIG_OK(qr_model_inspect(&options, NULL, &json, &err), err);
    assert_non_null(strstr(json, "\"tensor_parallel_size\":4"));
    assert_non_null(strstr(json, "\"rank 0\""));
    assert_non_null(strstr(json, "\"rank 3\""));
    qr_string_free(json);
}

static double rank_metric(const rig *r, const char *label)
{
    qr_metric *metrics = NULL;
    size_t count = qr_engine_metrics(r->engine, &metrics);
    double value = -1;
    for (size_t i = 0; i < count; i++)
        if (strcmp(metrics[i].name, "quire:rank_memory_bytes") == 0 && strcmp(metrics[i].label, label) == 0)
            value = metrics[i].value;
    qr_metrics_free(metrics);
    return value;
}

static void metrics_show_what_every_rank_holds(void **state)
{
    (void)state;
    rig one, four;
    qr_engine_options options = rig_options();
    qr_model *alone = rig_model_ranks(MODEL, "auto", 1, 1), *team = rig_model_ranks(MODEL, "auto", 4, 4);
    rig_open(&one, alone, &options);
    rig_open(&four, team, &options);
    double kv = rank_metric(&one, "rank=\"0\",kind=\"kv\""),
           weights = rank_metric(&one, "rank=\"0\",kind=\"weights\"");
    assert_true(kv > 0 && weights > 0);
    assert_true(rank_metric(&one, "rank=\"1\",kind=\"kv\"") < 0);
    assert_true(rank_metric(&four, "rank=\"3\",kind=\"kv\"") ==
                kv / 2); /* two key-value heads, each held twice */
    double share = rank_metric(&four, "rank=\"3\",kind=\"weights\"");
    assert_true(share > weights / 4 && share < weights / 2);
    assert_true(rank_metric(&four, "rank=\"3\",kind=\"scratch\"") > 0);
    rig_close(&one);
    rig_close(&four);
    qr_model_close(alone);
    qr_model_close(team);
}

static void two_engines_take_turns_on_one_team(void **state)
{
    (void)state;
    enum { MANY = 6 };
    qr_model *model = rig_model_ranks(MODEL, "auto", 2, 2);
    qr_engine_options options = rig_options();
    rig rigs[2];
    rig_job jobs[2][MANY];
    int32_t ids[MANY][9];
    for (int e = 0; e < 2; e++) {
        rig_open(&rigs[e], model, &options);
        for (int i = 0; i < MANY; i++) {
            for (int k = 0; k < 9; k++)
                ids[i][k] = 3 + (i * 7 + k * 5) % 100;
            jobs[e][i] = rig_job_of(ids[i], 9, 25);
            jobs[e][i].options.sampling.ignore_eos = true;
            rig_submit(&rigs[e], &jobs[e][i]);
        }
    }
    for (int e = 0; e < 2; e++)
        rig_finish(&rigs[e], jobs[e], MANY);
    for (int i = 0; i < MANY; i++)
        rig_same("another engine", &jobs[0][i].out[0], &jobs[1][i].out[0]);
    for (int e = 0; e < 2; e++) {
        rig_check_quiet(&rigs[e]);
        rig_free(jobs[e], MANY);
        rig_close(&rigs[e]);
    }
    qr_model_close(model);
}

static void check_failure(int ranks, int failing)
{
    char rank[32], who[32];
    snprintf(rank, sizeof(rank), "%d", failing);
    snprintf(who, sizeof(who), "rank %d: ", failing);
    setenv("QUIRE_TEST_FAULT_STEP", "5", 1);
    setenv("QUIRE_TEST_FAULT_RANK", rank, 1);
    rig r;
    qr_engine_options options = rig_options();
    qr_model *model = rig_model_ranks(MODEL, "auto", ranks, ranks);
    rig_open(&r, model, &options);
    unsetenv("QUIRE_TEST_FAULT_STEP");
    unsetenv("QUIRE_TEST_FAULT_RANK");
    const int32_t ids[] = {5, 6, 7, 8};
    rig_job jobs[3] = {rig_job_of(ids, 4, 40), rig_job_of(ids, 3, 40), rig_job_of(ids, 2, 40)};
    for (int i = 0; i < 3; i++)
        jobs[i].options.sampling.ignore_eos = true;
    rig_run(&r, jobs, 3); /* it ends: nobody waits for ever */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].out[0].finish, QR_FINISH_ERROR);
        assert_int_equal(jobs[i].out[0].status, QR_DEVICE_FAILED);
        assert_ptr_equal(strstr(jobs[i].out[0].message, who), jobs[i].out[0].message);
        assert_non_null(strstr(jobs[i].out[0].message, "broken for a test"));
    }
    assert_false(rig_stats(&r).healthy);
    rig_job late = rig_job_of(ids, 4, 4);
    qr_error err = {0};
    assert_int_equal(qr_request_submit(r.engine, r.poller, &late.options, &late.request, &err),
                     QR_DEVICE_FAILED);
    rig_free(jobs, 3);
    rig_close(&r);
    qr_model_close(model);
}

static void a_rank_that_fails_ends_all_requests_and_is_named(void **state)
{
    (void)state;
    check_failure(2, 0);
    check_failure(2, 1);
    check_failure(4, 2);
}

static void a_rank_without_memory_is_named(void **state)
{
    (void)state;
    qr_model *model = rig_model_ranks(MODEL, "auto", 2, 2);
    qr_engine_options options = rig_options();
    options.num_kv_blocks = 1 << 26;
    qr_engine *engine = NULL;
    qr_error err = {0};
    assert_int_equal(qr_engine_open(model, &options, &engine, &err), QR_OUT_OF_MEMORY);
    assert_non_null(strstr(err.message, "rank 0"));
    rig r; /* and the team still serves */
    options = rig_options();
    rig_open(&r, model, &options);
    const int32_t ids[] = {5, 6, 7, 8};
    rig_job job = rig_job_of(ids, 4, 4);
    rig_run(&r, &job, 1);
    assert_true(job.out[0].count > 0);
    rig_free(&job, 1);
    rig_close(&r);
    qr_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_shared_is_refused_with_the_numbers),
        cmocka_unit_test(the_fingerprint_counts_the_ranks),
        cmocka_unit_test(inspect_shows_every_rank_s_plan),
        cmocka_unit_test(metrics_show_what_every_rank_holds),
        cmocka_unit_test(two_engines_take_turns_on_one_team),
        cmocka_unit_test(a_rank_that_fails_ends_all_requests_and_is_named),
        cmocka_unit_test(a_rank_without_memory_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
