/* One thread beside the I/O thread, for /tokenize and /detokenize: a long text must not hold up the streams. */
#include <event2/event.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/queue.h"
#include "server/state.h"

#define JOBS_MAX 64

typedef struct job {
    qr_owner owner;     /* QR_OWNER_JOB */
    qr_list node;       /* worker->all, for the end; I/O thread */
    qr_http_conn *conn; /* NULL: the client left; I/O thread */
    const qr_server *server;
    qr_job_run run;
    qr_buf body, reply;
    qr_api_error error;
    bool fine;
} job;

struct qr_worker {
    pthread_t thread;
    qr_queue todo, done;
    int done_fd;
    struct event *done_event;
    qr_list all;
    size_t count;
};

static void *worker_main(void *user)
{
    struct qr_worker *worker = user;
    job *next;
    while ((next = qr_queue_pop(&worker->todo, UINT64_MAX)) != NULL) {
        next->fine = next->run(next->server, qr_buf_str(&next->body), &next->reply, &next->error);
        bool pushed = qr_queue_push(&worker->done, next); /* holds as many as todo and the one in hand */
        QR_ASSERT(pushed);
        uint64_t one = 1;
        (void)!write(worker->done_fd, &one, sizeof(one));
    }
    return NULL;
}

static void job_free(struct qr_worker *worker, job *done)
{
    qr_list_remove(&done->node);
    worker->count--;
    qr_buf_release(&done->body);
    qr_buf_release(&done->reply);
    qr_free(done);
}

static void on_done(evutil_socket_t fd, short what, void *user)
{
    struct qr_worker *worker = user;
    uint64_t news;
    job *done;
    (void)what;
    (void)!read(fd, &news, sizeof(news));
    while ((done = qr_queue_pop(&worker->done, 0)) != NULL) {
        if (done->conn != NULL && done->fine)
            qr_http_reply(done->conn, 200, "application/json", qr_buf_str(&done->reply));
        else if (done->conn != NULL)
            qr_reply_error(done->conn, &done->error);
        job_free(worker, done);
    }
}

struct qr_worker *qr_worker_new(qr_server *server)
{
    struct qr_worker *worker = qr_calloc(1, sizeof(*worker));
    qr_queue_init(&worker->todo, JOBS_MAX);
    qr_queue_init(&worker->done, JOBS_MAX + 1);
    qr_list_init(&worker->all);
    worker->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    worker->done_event = event_new(server->base, worker->done_fd, EV_READ | EV_PERSIST, on_done, worker);
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
    while (!qr_list_empty(&worker->all))
        job_free(worker, QR_LIST_ITEM(worker->all.next, job, node));
    event_free(worker->done_event);
    close(worker->done_fd);
    qr_queue_release(&worker->todo);
    qr_queue_release(&worker->done);
    qr_free(worker);
}

void qr_worker_submit(qr_server *server, qr_http_conn *conn, qr_job_run run)
{
    struct qr_worker *worker = server->worker;
    qr_api_error error = {0};
    if (worker->count >= JOBS_MAX) {
        (void)qr_api_fail(&error, 429, "server_overloaded", NULL,
                          "%d requests of this kind wait already: try again", JOBS_MAX);
        qr_reply_error(conn, &error);
        return;
    }
    job *next = qr_calloc(1, sizeof(*next));
    next->owner.kind = QR_OWNER_JOB;
    next->conn = conn;
    next->server = server;
    next->run = run;
    qr_buf_append_str(&next->body, qr_http_conn_request(conn)->body);
    qr_http_conn_drop_body(conn);
    qr_list_push_back(&worker->all, &next->node);
    worker->count++;
    qr_http_conn_set_owner(conn, next);
    bool pushed = qr_queue_push(&worker->todo, next);
    QR_ASSERT(pushed);
}

void qr_worker_job_gone(void *owner) { ((job *)owner)->conn = NULL; }
