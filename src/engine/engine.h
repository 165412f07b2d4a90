/* qr_engine inside: the engine thread's state, the inboxes that lead to it, the text pool before it.
 *
 *     submitter -> text queue -> text pool (prepare.c) -> inbox -+
 *     submitter (token ids: nothing to encode) ---------> inbox -+-> engine thread -> pollers -> readers
 *     reader: cancel, release -------------------------> cancels -+
 *
 * Inboxes are stacks linked through the requests themselves: pushing never blocks and takes no memory. Their bound
 * is waiting_count: sequences accepted and not yet scheduled.
 * Thread: fields say whose they are.
 */
#ifndef QR_ENGINE_ENGINE_H
#define QR_ENGINE_ENGINE_H

#include <pthread.h>

#include "base/queue.h"
#include "engine/metrics.h"
#include "engine/open.h"
#include "engine/output.h"
#include "engine/poller.h"

/* A step from its plan to its commit. */
typedef struct qr_flight {
    qr_arena arena;
    const qr_plan *plan;
    qr_step_result result;
    uint64_t begin_ns;
} qr_flight;

struct qr_engine {
    /* Immutable after open. */
    qr_model *model;
    qr_engine_plan plan;
    qr_prefix_key root;
    uint64_t seed;               /* of requests that bring none; 0: from the system */
    double read_rate, flop_rate; /* of the device, a second; 0: not measured */

    /* Any thread. */
    atomic_int refs;               /* the owner, and one per request */
    _Atomic(qr_request *) inbox;   /* prepared, by inbox_next */
    _Atomic(qr_request *) cancels; /* by cancel_next */
    _Atomic(qr_request *) freed;   /* the engine let go of them last, by free_next */
    atomic_uint signal;            /* counts pushes: the futex that the engine thread sleeps on */
    atomic_bool sleeping, idle;
    atomic_bool draining, closing, closed, failed, reset_cache;
    _Atomic uint64_t arrivals, output_bytes, rejections;
    atomic_int waiting_count;
    qr_queue text_queue;
    pthread_t *text_threads;
    int32_t text_thread_count;
    pthread_t thread;
    bool thread_started;

    /* Engine thread. */
    qr_scheduler *scheduler;
    qr_runner *runner;
    qr_flight flights[2];
    qr_flight *flying;      /* begun and not committed, or NULL: between steps only when `ahead` */
    bool ahead;             /* the next step is planned while the device runs the last */
    uint64_t landed_ns;     /* when the last step was committed */
    uint64_t device_end_ns; /* when it ended on the device; 0: the engine has slept since */
    qr_list live;           /* requests by live_node */
    qr_request *step_first; /* requests with news in this step, by step_next */
    qr_poller *dirty;       /* pollers with news in this step */
    unsigned seen_signal;
    qr_error failure;
    uint64_t allocations_at_ready;
    qr_metrics metrics;
    qr_engine_stats stats;

    /* Under stats_mutex: the copy that readers see. */
    pthread_mutex_t stats_mutex;
    qr_engine_stats public_stats;
};

/* One step: everything the engine does. Returns QR_DEVICE_FAILED when the device is lost. Engine thread. */
qr_status qr_engine_step(qr_engine *engine);
/* The same with the device a step ahead. */
qr_status qr_engine_step_ahead(qr_engine *engine);
/* The thread: steps until it is closing and nothing is left. */
void *qr_engine_run(void *engine);

/* Hands a prepared (or refused) request to the engine thread. Any thread. */
void qr_engine_post(qr_engine *engine, qr_request *request);
/* Wakes the engine thread when it sleeps. Any thread. */
void qr_engine_signal(qr_engine *engine);
void qr_engine_unref(qr_engine *engine);

/* prepare.c: template, encode, checks, memory, keys; then posts it. encoder: NULL when there is nothing to encode. */
void qr_prepare_request(qr_engine *engine, qr_encoder *encoder, qr_request *request);
/* The text pool's thread. */
void *qr_prepare_run(void *engine);

#endif
