#include "backend/cpu/cpu.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/mem.h"

/* One 64-bit word is the whole hand-over: a generation, how many chunks the job has and the next one to take. A
 * chunk is taken by adding one to it with compare-and-swap; that can only succeed while the job still has a
 * chunk, so the job cannot end, and task and arg cannot change, before the taker has run it. */
enum { TICKET_BITS = 20 };
#define TICKET_MAX ((INT64_C(1) << TICKET_BITS) - 1)

/* Waiting first spins: between the ops of a step there are a few microseconds, and waking a sleeper takes 50. */
#define SPIN_NS    UINT64_C(20000)

struct cpu_pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic int64_t done; /* chunks of this job that have been run */
    _Alignas(64) cpu_task task;        /* the job: written while no chunk can be taken */
    void *arg;
    int64_t first;                         /* chunk number of the job's chunk 0 */
    _Alignas(64) _Atomic uint32_t wakeups; /* futex of the sleepers */
    _Atomic int32_t sleepers;
    _Atomic bool stop;
    atomic_flag busy;
    int threads;
    pthread_t *workers;
};

typedef struct pool_worker {
    cpu_pool *pool;
    int index;
} pool_worker;

static inline void cpu_relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline int64_t ticket_next(uint64_t ticket) { return (int64_t)(ticket & TICKET_MAX); }
static inline int64_t ticket_count(uint64_t ticket) { return (int64_t)(ticket >> TICKET_BITS & TICKET_MAX); }
static inline bool ticket_open(uint64_t ticket) { return ticket_next(ticket) < ticket_count(ticket); }

/* Runs chunks until none is left to take. */
static void run_chunks(cpu_pool *pool, int worker)
{
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while (ticket_open(ticket)) {
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        pool->task(pool->arg, pool->first + ticket_next(ticket), worker);
        atomic_fetch_add_explicit(&pool->done, 1, memory_order_acq_rel);
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}

static bool has_work(cpu_pool *pool)
{
    return ticket_open(atomic_load(&pool->ticket)) || atomic_load(&pool->stop);
}

/* true: there is work (or the pool stops); false: spun in vain. */
static bool spin_for_work(cpu_pool *pool)
{
    uint64_t until = qr_clock_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (has_work(pool))
                return true;
            cpu_relax();
        }
    } while (qr_clock_ns() < until);
    return false;
}

/* The count of sleepers is raised before the last look for work, and the caller looks at it after it has
 * published: one of the two sees the other. */
static void sleep_for_work(cpu_pool *pool)
{
    uint32_t seen = atomic_load(&pool->wakeups);
    atomic_fetch_add(&pool->sleepers, 1);
    if (!has_work(pool))
        futex_wait(&pool->wakeups, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void wake_sleepers(cpu_pool *pool)
{
    if (atomic_load(&pool->sleepers) == 0)
        return;
    atomic_fetch_add(&pool->wakeups, 1);
    futex_wake_all(&pool->wakeups);
}

static void *worker_main(void *arg)
{
    pool_worker me = *(pool_worker *)arg;
    qr_free(arg);
    while (!atomic_load(&me.pool->stop)) {
        run_chunks(me.pool, me.index);
        if (!spin_for_work(me.pool))
            sleep_for_work(me.pool);
    }
    return NULL;
}

/* The last chunks run elsewhere; if that takes longer than a chunk should, whoever has them has lost its core:
 * give it this one. */
static void wait_done(cpu_pool *pool, int64_t count)
{
    uint64_t until = 0;
    while (atomic_load_explicit(&pool->done, memory_order_acquire) < count) {
        for (int i = 0; i < 32 && atomic_load_explicit(&pool->done, memory_order_acquire) < count; i++)
            cpu_relax();
        uint64_t now = qr_clock_ns();
        if (until == 0)
            until = now + SPIN_NS;
        else if (now > until)
            sched_yield();
    }
}

static void run_job(cpu_pool *pool, int64_t first, int64_t count, cpu_task task, void *arg)
{
    pool->task = task;
    pool->arg = arg;
    pool->first = first;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    uint64_t generation = (atomic_load_explicit(&pool->ticket, memory_order_relaxed) >> 2 * TICKET_BITS) + 1;
    atomic_store(&pool->ticket, generation << 2 * TICKET_BITS | (uint64_t)count << TICKET_BITS);
    wake_sleepers(pool);
    run_chunks(pool, 0);
    wait_done(pool, count);
}

void cpu_pool_run(cpu_pool *pool, int64_t n_chunks, cpu_task task, void *arg)
{
    /* Two engines on one device: the second does its work alone rather than wait. */
    bool alone = n_chunks <= 1 || pool->threads == 1 || atomic_flag_test_and_set(&pool->busy);
    if (alone) {
        for (int64_t i = 0; i < n_chunks; i++)
            task(arg, i, 0);
        return;
    }
    for (int64_t first = 0; first < n_chunks; first += TICKET_MAX)
        run_job(pool, first, QR_MIN(n_chunks - first, TICKET_MAX), task, arg);
    atomic_flag_clear(&pool->busy);
}

int cpu_pool_threads(const cpu_pool *pool) { return pool->threads; }

static bool start_worker(cpu_pool *pool, int index)
{
    pool_worker *worker = qr_alloc(sizeof *worker);
    *worker = (pool_worker){.pool = pool, .index = index};
    if (pthread_create(&pool->workers[index - 1], NULL, worker_main, worker) == 0)
        return true;
    qr_free(worker);
    return false;
}

cpu_pool *cpu_pool_new(int threads)
{
    QR_ASSERT(threads >= 1);
    cpu_pool *pool = qr_pages_map(sizeof *pool, false); /* for its alignment */
    QR_ASSERT(pool != NULL);
    atomic_flag_clear(&pool->busy);
    pool->workers = qr_calloc((size_t)threads, sizeof *pool->workers);
    pool->threads = 1;
    while (pool->threads < threads && start_worker(pool, pool->threads))
        pool->threads++;
    return pool;
}

void cpu_pool_free(cpu_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->wakeups, 1);
    futex_wake_all(&pool->wakeups);
    for (int i = 1; i < pool->threads; i++)
        pthread_join(pool->workers[i - 1], NULL);
    qr_free(pool->workers);
    qr_pages_unmap(pool, sizeof *pool);
}
