/* Two GPUs of one host as the ranks of one model: their collectives against sums made here, an engine over them (alone, in
 * company, with a rank that fails), and with --time what a sum costs inside a recorded step (--sums: that alone). Ends with 77 where there are
 * not two GPUs. (qr_engine_ threads.) */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>

#include "backend/cuda/cuda.h"
#include "backend/team.h"
#include "base/clock.h"
#include "unit/engine_rig.h"

enum { RANKS = 2 };

static int failures;

static void report(bool ok, const char *what)
{
    failures += !ok;
    printf("%-64s %s\n", what, ok ? "ok" : "FAILED");
}

/* ---- Collectives ---- */

typedef struct collective {
    qr_team *team;
    int64_t rows, cols, first[RANKS]; /* gather: where a rank's columns begin */
    qr_dtype dtype;
    bool gather;
    void *in[RANKS], *out[RANKS]; /* host */
    void *x[RANKS], *y[RANKS];    /* device */
    cudaGraphExec_t recorded[RANKS];
    double us; /* of a sum in a recorded step */
    int calls;
} collective;

static bool fine(cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        printf("%s: %s\n", what, cudaGetErrorString(error));
    return error == cudaSuccess;
}

static int64_t own_cols(const collective *c, int rank)
{
    return !c->gather ? c->cols : (rank + 1 < RANKS ? c->first[rank + 1] : c->cols) - c->first[rank];
}

static size_t bytes_of(const collective *c, int64_t cols)
{
    return (size_t)(c->rows * cols) * qr_dtype_bytes(c->dtype);
}

/* Memory is taken and given back while nobody waits for a peer: the driver may want to wait for all devices. */
static qr_status take_memory(void *arg, int rank, qr_error *err)
{
    collective *c = arg;
    bool ok = fine(cudaMalloc(&c->x[rank], bytes_of(c, own_cols(c, rank)) + 64), "memory") &&
              fine(cudaMalloc(&c->y[rank], bytes_of(c, c->cols) + 64), "memory") &&
              fine(cudaMemset(c->x[rank], 0, bytes_of(c, own_cols(c, rank))), "memory") &&
              fine(cudaDeviceSynchronize(), "memory");
    return ok ? QR_OK : qr_fail(err, QR_OUT_OF_MEMORY, "memory");
}

static qr_status give_memory(void *arg, int rank, qr_error *err)
{
    collective *c = arg;
    (void)err;
    cudaFree(c->x[rank]);
    cudaFree(c->y[rank]);
    if (c->recorded[rank] != NULL)
        cudaGraphExecDestroy(c->recorded[rank]);
    return QR_OK;
}

static qr_status run_collective(void *arg, int rank, qr_error *err)
{
    collective *c = arg;
    qr_device *device = qr_team_device(c->team, rank);
    cudaStream_t stream = cuda_of(device)->stream;
    size_t in = bytes_of(c, own_cols(c, rank)), out = bytes_of(c, c->cols);
    void *x = c->x[rank], *y = c->y[rank];
    qr_tensor tx = {x, c->dtype, c->rows, own_cols(c, rank), own_cols(c, rank)};
    qr_tensor ty = {y, c->dtype, c->rows, c->cols, c->cols};
    bool ok = true;
    for (int i = 0; i < c->calls && ok; i++) {
        ok = fine(cudaMemcpyAsync(x, c->in[rank], in, cudaMemcpyHostToDevice, stream), "copy");
        if (c->gather)
            device->backend->all_gather(device, tx, c->first[rank], ty);
        else
            device->backend->all_reduce(device, tx);
    }
    ok =
        ok &&
        fine(cudaMemcpyAsync(c->out[rank], c->gather ? y : x, out, cudaMemcpyDeviceToHost, stream), "copy") &&
        fine(cudaStreamSynchronize(stream), "collective");
    return ok ? QR_OK : qr_fail(err, QR_DEVICE_FAILED, "collective");
}

static float number(const void *data, int64_t i, qr_dtype dtype)
{
    return dtype == QR_DTYPE_F32 ? ((const float *)data)[i] : qr_bf16_to_f32(((const uint16_t *)data)[i]);
}

static void fill_input(collective *c, uint64_t *seed)
{
    for (int rank = 0; rank < RANKS; rank++) {
        int64_t count = c->rows * own_cols(c, rank);
        c->in[rank] = qr_calloc((size_t)count, sizeof(float));
        c->out[rank] = qr_calloc((size_t)(c->rows * c->cols), sizeof(float));
        for (int64_t i = 0; i < count; i++) {
            float v = (float)(int64_t)qr_rng_next(seed) * 1e-18f;
            if (c->dtype == QR_DTYPE_F32)
                ((float *)c->in[rank])[i] = v;
            else
                ((uint16_t *)c->in[rank])[i] = qr_f32_to_bf16(v);
        }
    }
}

static int64_t wrong_numbers(const collective *c)
{
    int64_t wrong = 0;
    for (int64_t i = 0; i < c->rows * c->cols; i++) {
        float want;
        if (c->gather) {
            int64_t row = i / c->cols, col = i % c->cols;
            int rank = col >= c->first[1];
            want = number(c->in[rank], row * own_cols(c, rank) + col - c->first[rank], c->dtype);
        } else {
            want = number(c->in[0], i, c->dtype) + number(c->in[1], i, c->dtype);
            if (c->dtype == QR_DTYPE_BF16)
                want = qr_bf16_to_f32(qr_f32_to_bf16(want));
        }
        for (int rank = 0; rank < RANKS; rank++) {
            float got = number(c->out[rank], i, c->dtype);
            wrong += memcmp(&got, &want, sizeof(float)) != 0;
        }
    }
    return wrong;
}

static void check_collective(qr_team *team, int64_t rows, int64_t cols, int64_t second, qr_dtype dtype,
                             uint64_t *seed)
{
    collective c = {
        .team = team, .rows = rows, .cols = cols, .first = {0, second}, .dtype = dtype, .gather = second > 0};
    char what[96];
    c.calls = 3; /* both sets of mailboxes, one of them twice */
    fill_input(&c, seed);
    qr_error err = {0};
    qr_status status = qr_team_run(team, take_memory, &c, &err);
    if (status == QR_OK)
        status = qr_team_run(team, run_collective, &c, &err);
    qr_team_run(team, give_memory, &c, NULL);
    int64_t wrong = status == QR_OK ? wrong_numbers(&c) : -1;
    snprintf(what, sizeof(what), "%s %s %lld x %lld: %lld wrong", c.gather ? "gather" : "sum",
             qr_dtype_name(dtype), (long long)rows, (long long)cols, (long long)wrong);
    report(wrong == 0, what);
    for (int rank = 0; rank < RANKS; rank++) {
        qr_free(c.in[rank]);
        qr_free(c.out[rank]);
    }
}

static void check_collectives(qr_team *team)
{
    static const int64_t sums[][2] = {{1, 1},      {1, 7},       {1, 4096},    {3, 4096},
                                      {16, 4096},  {64, 4096},   {65, 4096},   {1, 131075},
                                      {128, 4096}, {1000, 3001}, {2048, 4096}, {2, 4096}};
    uint64_t seed = 11;
    for (size_t i = 0; i < QR_COUNT_OF(sums); i++) {
        check_collective(team, sums[i][0], sums[i][1], 0, QR_DTYPE_BF16, &seed);
        check_collective(team, sums[i][0], sums[i][1], 0, QR_DTYPE_F32, &seed);
    }
    check_collective(team, 1, 128256, 64128, QR_DTYPE_F32, &seed);
    check_collective(team, 33, 1000, 496, QR_DTYPE_F32, &seed);
    check_collective(team, 5, 131, 64, QR_DTYPE_F32, &seed); /* not in fours */
}

/* ---- Time in a recorded step ---- */

enum { RECORDED = 64, TRIALS = 20 };

static qr_status record_rank(void *arg, int rank, qr_error *err)
{
    collective *c = arg;
    qr_device *device = qr_team_device(c->team, rank);
    cudaStream_t stream = cuda_of(device)->stream;
    cudaGraph_t graph = NULL;
    bool ok = fine(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording");
    for (int i = 0; i < RECORDED && ok; i++)
        device->backend->all_reduce(device, (qr_tensor){c->x[rank], c->dtype, c->rows, c->cols, c->cols});
    ok = ok && fine(cudaStreamEndCapture(stream, &graph), "recording") &&
         fine(cudaGraphInstantiate(&c->recorded[rank], graph, 0), "recording");
    cudaGraphDestroy(graph);
    return ok ? QR_OK : qr_fail(err, QR_DEVICE_FAILED, "recording");
}

static qr_status time_rank(void *arg, int rank, qr_error *err)
{
    collective *c = arg;
    cudaStream_t stream = cuda_of(qr_team_device(c->team, rank))->stream;
    cudaEvent_t begin, end;
    bool ok = fine(cudaEventCreate(&begin), "event") && fine(cudaEventCreate(&end), "event");
    float best = INFINITY;
    for (int i = 0; i < TRIALS && ok; i++) {
        float ms = 0;
        ok = fine(cudaEventRecord(begin, stream), "event") &&
             fine(cudaGraphLaunch(c->recorded[rank], stream), "graph") &&
             fine(cudaEventRecord(end, stream), "event") && fine(cudaStreamSynchronize(stream), "graph") &&
             fine(cudaEventElapsedTime(&ms, begin, end), "event");
        best = fminf(best, ms);
    }
    if (rank == 0)
        c->us = (double)best * 1e3 / RECORDED;
    return ok ? QR_OK : qr_fail(err, QR_DEVICE_FAILED, "timing");
}

static void time_sums(qr_team *team)
{
    static const int64_t kib[] = {2, 8, 16, 64, 256, 512, 1024, 4096, 16384, 65536};
    for (size_t i = 0; i < QR_COUNT_OF(kib); i++) {
        collective c = {.team = team, .rows = 1, .cols = kib[i] * 512, .dtype = QR_DTYPE_BF16};
        qr_error err = {0};
        bool ok = qr_team_run(team, take_memory, &c, &err) == QR_OK &&
                  qr_team_run(team, record_rank, &c, &err) == QR_OK &&
                  qr_team_run(team, time_rank, &c, &err) == QR_OK;
        qr_team_run(team, give_memory, &c, NULL);
        if (ok)
            printf("all-reduce in a graph, %6lld KiB: %8.2f us, %6.1f GB/s each way\n", (long long)kib[i],
                   c.us, (double)kib[i] * 1.024 / c.us);
        else
            report(false, err.message);
    }
}

/* ---- The engine ---- */

#define MODEL MODELS "llama-gqa4-llama3"

static qr_model *open_model(void)
{
    qr_error err = {0};
    qr_model_options options;
    qr_model_options_init(&options);
    options.path = MODEL;
    options.device = "cuda";
    options.tensor_parallel_size = RANKS;
    qr_model *model = NULL;
    RIG_OK(qr_model_open(&options, &model, &err), err);
    return model;
}

static rig_job the_job(const int32_t *ids)
{
    rig_job job = rig_job_of(ids, 30, 40);
    job.options.sampling.ignore_eos = true;
    job.options.sampling.temperature = 0.8f;
    job.options.sampling.has_seed = true;
    job.options.sampling.seed = 5;
    return job;
}

static void check_engine(void **state)
{
    (void)state;
    enum { MANY = 12 };
    qr_model *model = open_model();
    qr_engine_options options = rig_options();
    options.block_size = 32;
    int32_t ids[MANY][30];
    for (int i = 0; i < MANY; i++)
        for (int k = 0; k < 30; k++)
            ids[i][k] = 2 + (i * 13 + k * 7) % 120;
    rig alone, crowd;
    rig_open(&alone, model, &options);
    rig_job one = the_job(ids[0]), many[MANY];
    rig_run(&alone, &one, 1);
    rig_close(&alone);
    options.max_num_batched_tokens = 64;
    options.async_scheduling = "auto"; /* planned ahead */
    rig_open(&crowd, model, &options);
    for (int i = 0; i < MANY; i++)
        many[i] = the_job(ids[i]);
    rig_run(&crowd, many, MANY);
    assert_int_equal(one.out[0].count, 40);
    rig_same("company over two GPUs", &one.out[0], &many[0].out[0]);
    rig_check_quiet(&crowd);
    rig_close(&crowd);
    rig_free(&one, 1);
    rig_free(many, MANY);
    qr_model_close(model);
}

static void check_failing_rank(void **state)
{
    (void)state;
    setenv("QUIRE_TEST_FAULT_STEP", "9", 1);
    setenv("QUIRE_TEST_FAULT_RANK", "1", 1);
    qr_model *model = open_model();
    qr_engine_options options = rig_options();
    options.block_size = 32;
    rig r;
    rig_open(&r, model, &options);
    int32_t ids[30];
    for (int k = 0; k < 30; k++)
        ids[k] = 3 + k;
    rig_job job = the_job(ids);
    uint64_t begin = qr_clock_ns();
    rig_run(&r, &job, 1);
    printf("a failing rank: %.3f s: %s\n", (double)(qr_clock_ns() - begin) / 1e9, job.out[0].message);
    assert_int_equal(job.out[0].status, QR_DEVICE_FAILED);
    assert_memory_equal(job.out[0].message, "rank ",
                        5); /* a trap takes the peer's context along: either may be named */
    rig_free(&job, 1);
    rig_close(&r);
    qr_model_close(model);
}

int main(int argc, char **argv)
{
    qr_team *team = NULL;
    qr_error err = {0};
    if (qr_team_open(&(qr_device_options){.device = "cuda"}, RANKS, &team, &err) != QR_OK) {
        printf("skipped: %s\n", err.message);
        return 77;
    }
    bool only_time = argc > 1 && strcmp(argv[1], "--sums") == 0;
    if (!only_time)
        check_collectives(team);
    if (only_time || (argc > 1 && strcmp(argv[1], "--time") == 0))
        time_sums(team);
    qr_team_close(team);
    if (only_time)
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_engine),
        cmocka_unit_test(check_failing_rank), /* last: the device is lost to this process */
    };
    failures += cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d failed\n", failures);
    return failures > 0;
}
