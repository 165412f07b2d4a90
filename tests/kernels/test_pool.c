// links: qr_backend qr_quant qr_tensor
#include "support/cmocka.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "backend/cpu/cpu.h"
#include "base/mem.h"

enum { CHUNKS = 5000 };

typedef struct seen {
    _Atomic int times[CHUNKS];
    _Atomic int bad_worker;
    int threads;
} seen;

static void mark(void *arg, int64_t chunk, int worker)
{
    seen *s = arg;
    atomic_fetch_add(&s->times[chunk], 1);
    if (worker < 0 || worker >= s->threads)
        atomic_store(&s->bad_worker, 1);
}

static void run_and_check(cpu_pool *pool, int64_t chunks)
{
    seen *s = qr_calloc(1, sizeof *s);
    s->threads = cpu_pool_threads(pool);
    cpu_pool_run(pool, chunks, mark, s);
    for (int64_t i = 0; i < CHUNKS; i++)
        assert_int_equal(s->times[i], i < chunks ? 1 : 0);
    assert_int_equal(s->bad_worker, 0);
    qr_free(s);
}

static void test_every_chunk_runs_once_for_any_count_and_any_number_of_threads(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        cpu_pool *pool = cpu_pool_new(threads);
        assert_int_equal(cpu_pool_threads(pool), threads);
        for (int64_t chunks = 0; chunks <= CHUNKS; chunks = chunks * 3 + 1)
            run_and_check(pool, chunks);
        cpu_pool_free(pool);
    }
}

static void test_results_of_a_job_are_seen_after_it_and_jobs_follow_each_other(void **state)
{
    (void)state;
    cpu_pool *pool = cpu_pool_new(3);
    for (int job = 0; job < 2000; job++)
        run_and_check(pool, job % 7);
    cpu_pool_free(pool);
}

static void test_workers_that_went_to_sleep_wake_up(void **state)
{
    (void)state;
    cpu_pool *pool = cpu_pool_new(3);
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        run_and_check(pool, 100);
    }
    cpu_pool_free(pool);
}

static void *second_caller(void *arg)
{
    for (int i = 0; i < 100; i++)
        run_and_check(arg, 50);
    return NULL;
}

static void test_two_callers_at_once_both_get_all_their_chunks(void **state)
{
    (void)state;
    cpu_pool *pool = cpu_pool_new(2);
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, second_caller, pool), 0);
    (void)second_caller(pool);
    pthread_join(other, NULL);
    cpu_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_chunk_runs_once_for_any_count_and_any_number_of_threads),
        cmocka_unit_test(test_results_of_a_job_are_seen_after_it_and_jobs_follow_each_other),
        cmocka_unit_test(test_workers_that_went_to_sleep_wake_up),
        cmocka_unit_test(test_two_callers_at_once_both_get_all_their_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
