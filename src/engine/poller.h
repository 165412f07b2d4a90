/* A poller: news of requests for one reader thread.
 *
 * The engine pushes a request onto the poller's list when it has published something and the request is not on it
 * yet (in_news), and writes the eventfd at most once a step. The reader takes the list, clears in_news, then reads
 * the counts: what is published later pushes the request again. Being on the list holds a reference.
 * Thread: qr_poller_push, _wake and _take_if_closed by the engine thread; the rest by the reader.
 */
#ifndef QR_ENGINE_POLLER_H
#define QR_ENGINE_POLLER_H

#include "engine/request.h"

struct qr_poller {
    atomic_int refs; /* the reader, and one per request */
    atomic_bool closed;
    int fd;
    _Atomic(qr_request *) news; /* a stack, newest first */
    atomic_bool signalled;      /* the eventfd is readable */
    qr_request *first, *last;   /* reader: taken from the stack, oldest first */
    qr_poller *dirty_next;      /* engine thread: pollers with news in this step */
    bool dirty;
};

qr_status qr_poller_new(qr_poller **out, qr_error *err);
void qr_poller_ref(qr_poller *poller);
void qr_poller_unref(qr_poller *poller);

void qr_poller_push(qr_poller *poller, qr_request *request);
void qr_poller_wake(qr_poller *poller);
/* What was pushed while the reader closed the poller (linked by news_next), or NULL: to be dropped. */
qr_request *qr_poller_take_if_closed(qr_poller *poller);

/* Drops a reference to a request and frees it when it was the last (engine/api.c). Not for the engine thread. */
void qr_request_drop(qr_request *request);

#endif
