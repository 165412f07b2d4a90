/* One thread beside the I/O thread: what takes long there must not hold up the streams. */
#include <event2/event.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/queue.h"
#include "server/state.h"

#define JOBS_MAX 256

struct qr_worker {
    pthread_t thread;
    qr_queue todo, done;
    int done_fd;
    struct event *done_event;
    size_t count; /* submitted and not yet done; I/O thread */
};

static void *worker_main(void *user)
{
    struct qr_worker *worker = user;
    qr_job *job;
    while ((job = qr_queue_pop(&worker->todo, UINT64_MAX)) != NULL) {
        job->run(job);
        bool pushed = qr_queue_push(&worker->done, job); /* it holds all that can be submitted */
        QR_ASSERT(pushed);
        uint64_t one = 1;
        (void)!write(worker->done_fd, &one, sizeof(one));
    }
    return NULL;
}

static void finish_jobs(struct qr_worker *worker)
{
    qr_job *job;
    while ((job = qr_queue_pop(&worker->done, 0)) != NULL) {
        worker->count--;
        job->done(job);
    }
}

static void on_done(evutil_socket_t fd, short what, void *user)
{
    uint64_t news;
    (void)what;
    (void)!read(fd, &news, sizeof(news));
    finish_jobs(user);
}

struct qr_worker *qr_worker_new(struct event_base *base)
{
    struct qr_worker *worker = qr_calloc(1, sizeof(*worker));
    qr_queue_init(&worker->todo, JOBS_MAX);
    qr_queue_init(&worker->done, JOBS_MAX);
    worker->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    worker->done_event = event_new(base, worker->done_fd, EV_READ | EV_PERSIST, on_done, worker);
    event_add(worker->done_event, NULL);
    int failed = pthread_create(&worker->thread, NULL, worker_main, worker);
    QR_ASSERT(worker->done_fd >= 0 && failed == 0);
    return worker;
}

void qr_worker_free(struct qr_worker *worker)
{
    if (worker == NULL)
        return;
    qr_queue_close(&worker->todo);
    pthread_join(worker->thread, NULL);
    finish_jobs(worker);
    event_free(worker->done_event);
    close(worker->done_fd);
    qr_queue_release(&worker->todo);
    qr_queue_release(&worker->done);
    qr_free(worker);
}

bool qr_worker_submit(struct qr_worker *worker, qr_job *job)
{
    if (worker->count >= JOBS_MAX)
        return false;
    worker->count++;
    bool pushed = qr_queue_push(&worker->todo, job);
    QR_ASSERT(pushed);
    return true;
}
