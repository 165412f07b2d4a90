// links: qr_backend qr_quant qr_tensor qr_base
/* Ranks on the CPU: teams, what their collectives compute, and what becomes of those who wait for one that fails
 * (qr_team_ threads). */
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>

#include "backend/backend.h"
#include "backend/team.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/cmocka.h"

static qr_team *open_team(int ranks, int threads)
{
    qr_team *team = NULL;
    qr_error err = {0};
    if (qr_team_open(&(qr_device_options){.device = "cpu", .threads = threads}, ranks, &team, &err) != QR_OK)
        fail_msg("%s", err.message);
    assert_int_equal(qr_team_ranks(team), ranks);
    return team;
}

static void impossible_teams_are_refused(void **state)
{
    (void)state;
    qr_team *team = NULL;
    qr_error err = {0};
    qr_device_options cpu = {.device = "cpu"};
    assert_int_equal(qr_team_open(&cpu, 0, &team, &err), QR_INVALID_ARGUMENT);
    assert_int_equal(qr_team_open(&cpu, QR_RANKS_MAX + 1, &team, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "17"));
    assert_int_equal(qr_team_open(&(qr_device_options){.device = "sim"}, 2, &team, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "sim"));
    assert_int_equal(qr_team_open(&(qr_device_options){.device = "tpu"}, 2, &team, &err), QR_UNSUPPORTED);
    assert_null(team);
    qr_team_close(NULL);
}

static void ranks_share_the_threads(void **state)
{
    (void)state;
    qr_team *team = open_team(3, 7);
    static const char *const words[] = {"2 threads", "2 threads", "3 threads"};
    for (int i = 0; i < 3; i++)
        assert_non_null(strstr(qr_device_describe(qr_team_device(team, i)), words[i]));
    qr_team_close(team);
    team = open_team(4, 2); /* fewer threads than ranks: one each */
    assert_non_null(strstr(qr_device_describe(qr_team_device(team, 3)), "1 thread"));
    qr_team_close(team);
}

/* ---- Tasks ---- */

typedef struct task_log {
    atomic_int runs[QR_RANKS_MAX];
    qr_status status[QR_RANKS_MAX];
} task_log;

static qr_status log_run(void *arg, int rank, qr_error *err)
{
    task_log *log = arg;
    atomic_fetch_add(&log->runs[rank], 1);
    return log->status[rank] == QR_OK ? QR_OK : qr_fail(err, log->status[rank], "words of %d", rank);
}

static void every_rank_runs_every_task(void **state)
{
    (void)state;
    qr_team *team = open_team(4, 4);
    task_log log = {0};
    for (int i = 0; i < 500; i++) {
        assert_int_equal(qr_team_run(team, log_run, &log, NULL), QR_OK);
        for (int rank = 0; rank < 4; rank++)
            assert_int_equal(atomic_load(&log.runs[rank]), i + 1);
        if (i % 100 == 0)
            poll(NULL, 0, 1); /* ranks fall asleep */
    }
    qr_team_close(team);
}

static void the_error_is_the_one_that_failed_by_itself(void **state)
{
    (void)state;
    qr_team *team = open_team(4, 4);
    task_log log = {.status = {QR_CANCELLED, QR_CANCELLED, QR_DEVICE_FAILED, QR_CANCELLED}};
    qr_error err = {0};
    assert_int_equal(qr_team_run(team, log_run, &log, &err), QR_DEVICE_FAILED);
    assert_string_equal(err.message, "rank 2: words of 2");
    log = (task_log){.status = {QR_OK, QR_OUT_OF_MEMORY, QR_DEVICE_FAILED}};
    assert_int_equal(qr_team_run(team, log_run, &log, &err), QR_OUT_OF_MEMORY);
    assert_string_equal(err.message, "rank 1: words of 1");
    qr_team_close(team);
    team = open_team(1, 1); /* alone, nobody needs to be told which */
    log = (task_log){.status = {QR_OUT_OF_MEMORY}};
    assert_int_equal(qr_team_run(team, log_run, &log, &err), QR_OUT_OF_MEMORY);
    assert_string_equal(err.message, "words of 0");
    qr_team_close(team);
}

/* ---- Collectives ---- */

enum { ROWS_MAX = 70, COLS_MAX = 700 };

typedef struct collective {
    qr_team *team;
    int64_t rows, cols;
    float *x[QR_RANKS_MAX], *y[QR_RANKS_MAX];
    int fails; /* rank that fails instead of taking part; -1: none */
    int repeats;
} collective;

static const qr_backend *backend_of(const collective *c, int rank, qr_device **device)
{
    *device = qr_team_device(c->team, rank);
    return (*device)->backend;
}

static qr_status reduce(void *arg, int rank, qr_error *err)
{
    const collective *c = arg;
    qr_device *device;
    const qr_backend *backend = backend_of(c, rank, &device);
    qr_tensor x = {.data = c->x[rank], .rows = c->rows, .cols = c->cols, .row_stride = c->cols};
    for (int i = 0; i < c->repeats; i++) {
        if (rank == c->fails && i == c->repeats - 1) {
            poll(NULL, 0, 20); /* the others wait, then sleep */
            backend->group_fail(device);
            return qr_fail(err, QR_DEVICE_FAILED, "gone");
        }
        backend->all_reduce(device, x);
    }
    return backend->step_end(device, err);
}

static qr_status gather(void *arg, int rank, qr_error *err)
{
    const collective *c = arg;
    qr_device *device;
    const qr_backend *backend = backend_of(c, rank, &device);
    int64_t ranks = device->ranks, first = c->cols * rank / ranks;
    qr_tensor x = {.data = c->x[rank],
                   .rows = c->rows,
                   .cols = c->cols * (rank + 1) / ranks - first,
                   .row_stride = COLS_MAX};
    qr_tensor y = {.data = c->y[rank], .rows = c->rows, .cols = c->cols, .row_stride = c->cols};
    backend->all_gather(device, x, first, y);
    return backend->step_end(device, err);
}

static void open_collective(collective *c, int ranks)
{
    *c = (collective){.team = open_team(ranks, ranks + 1), .fails = -1, .repeats = 1};
    uint64_t seed = 7;
    for (int rank = 0; rank < ranks; rank++) {
        c->x[rank] = qr_calloc(ROWS_MAX * COLS_MAX, sizeof(float));
        c->y[rank] = qr_calloc(ROWS_MAX * COLS_MAX, sizeof(float));
        for (int i = 0; i < ROWS_MAX * COLS_MAX; i++) /* of all sizes, so that the order of a sum shows */
            c->x[rank][i] = (float)(int64_t)qr_rng_next(&seed) * (i % 3 == 0 ? 1e-19f : 1e-16f);
    }
}

static void close_collective(collective *c)
{
    for (int rank = 0; rank < qr_team_ranks(c->team); rank++) {
        qr_free(c->x[rank]);
        qr_free(c->y[rank]);
    }
    qr_team_close(c->team);
}

static void a_sum_is_taken_in_the_order_of_ranks(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {1, 2}, {1, 576}, {3, 7}, {17, 64}, {70, 700}};
    for (int ranks = 2; ranks <= 5; ranks++) {
        for (size_t s = 0; s < QR_COUNT_OF(shapes); s++) {
            collective c;
            open_collective(&c, ranks);
            c.rows = shapes[s][0];
            c.cols = shapes[s][1];
            int64_t count = c.rows * c.cols;
            float *sum = qr_calloc((size_t)count, sizeof(float));
            for (int64_t i = 0; i < count; i++) {
                sum[i] = c.x[0][i];
                for (int rank = 1; rank < ranks; rank++)
                    sum[i] += c.x[rank][i];
            }
            assert_int_equal(qr_team_run(c.team, reduce, &c, NULL), QR_OK);
            for (int rank = 0; rank < ranks; rank++)
                assert_memory_equal(c.x[rank], sum, (size_t)count * sizeof(float));
            qr_free(sum);
            close_collective(&c);
        }
    }
}

static void parts_of_rows_come_together(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 5; ranks++) {
        collective c;
        open_collective(&c, ranks);
        c.rows = 9;
        c.cols = 130; /* 26 at least, unevenly */
        assert_int_equal(qr_team_run(c.team, gather, &c, NULL), QR_OK);
        for (int rank = 0; rank < ranks; rank++)
            for (int64_t row = 0; row < c.rows; row++)
                for (int64_t col = 0, from = 0; col < c.cols; col++) {
                    from += col == c.cols * (from + 1) / ranks;
                    float want = c.x[from][row * COLS_MAX + col - c.cols * from / ranks];
                    assert_memory_equal(&c.y[rank][row * c.cols + col], &want, sizeof(float));
                }
        close_collective(&c);
    }
}

static void those_who_wait_for_a_rank_that_fails_give_up(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++) {
        collective c;
        open_collective(&c, ranks);
        c.rows = 4;
        c.cols = 100;
        c.repeats = 30;
        c.fails = ranks - 1;
        qr_error err = {0};
        assert_int_equal(qr_team_run(c.team, reduce, &c, &err), QR_DEVICE_FAILED);
        char want[32];
        snprintf(want, sizeof(want), "rank %d: gone", ranks - 1);
        assert_string_equal(err.message, want);
        c.fails = -1; /* nobody waits in it again */
        assert_int_equal(qr_team_run(c.team, reduce, &c, &err), QR_DEVICE_FAILED);
        assert_int_equal(qr_team_run(c.team, gather, &c, &err), QR_DEVICE_FAILED);
        close_collective(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(impossible_teams_are_refused),
        cmocka_unit_test(ranks_share_the_threads),
        cmocka_unit_test(every_rank_runs_every_task),
        cmocka_unit_test(the_error_is_the_one_that_failed_by_itself),
        cmocka_unit_test(a_sum_is_taken_in_the_order_of_ranks),
        cmocka_unit_test(parts_of_rows_come_together),
        cmocka_unit_test(those_who_wait_for_a_rank_that_fails_give_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
