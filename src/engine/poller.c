#include "engine/poller.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

/* ---- Life ---- */

qr_status qr_poller_new(qr_poller **out, qr_error *err)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return qr_fail(err, QR_IO_ERROR, "poller: eventfd: %s", strerror(errno));
    qr_poller *poller = qr_calloc(1, sizeof(*poller));
    poller->fd = fd;
    atomic_init(&poller->refs, 1);
    *out = poller;
    return QR_OK;
}

void qr_poller_ref(qr_poller *poller) { atomic_fetch_add(&poller->refs, 1); }

void qr_poller_unref(qr_poller *poller)
{
    if (atomic_fetch_sub(&poller->refs, 1) != 1)
        return;
    close(poller->fd);
    qr_free(poller);
}

int qr_poller_fd(const qr_poller *poller) { return poller->fd; }

/* ---- Engine's side ---- */

void qr_poller_push(qr_poller *poller, qr_request *request)
{
    if (atomic_load(&request->released) || atomic_exchange(&request->in_news, true))
        return;
    qr_request_ref(request);
    qr_request *top = atomic_load(&poller->news);
    do
        request->news_next = top;
    while (!atomic_compare_exchange_weak(&poller->news, &top, request));
}

qr_request *qr_poller_take_if_closed(qr_poller *poller)
{
    return atomic_load(&poller->closed) ? atomic_exchange(&poller->news, NULL) : NULL;
}

void qr_poller_wake(qr_poller *poller)
{
    if (atomic_exchange(&poller->signalled, true))
        return;
    uint64_t one = 1;
    ssize_t written = write(poller->fd, &one, sizeof(one));
    (void)written; /* it fails only when the counter is full, and then the eventfd is readable */
}

/* ---- Reader's side ---- */

/* Moves the stack to the end of the reader's queue, oldest first. */
static void take_news(qr_poller *poller)
{
    qr_request *top = atomic_exchange(&poller->news, NULL), *oldest = NULL;
    qr_request *newest = top;
    while (top != NULL) {
        qr_request *next = top->news_next;
        top->news_next = oldest;
        oldest = top;
        top = next;
    }
    if (oldest == NULL)
        return;
    if (poller->last != NULL)
        poller->last->news_next = oldest;
    else
        poller->first = oldest;
    poller->last = newest;
}

static qr_request *pop_first(qr_poller *poller)
{
    qr_request *request = poller->first;
    poller->first = request->news_next;
    if (poller->first == NULL)
        poller->last = NULL;
    return request;
}

/* Not everything of it fitted into the caller's array: first again next time, unless the engine has just put it on
 * the stack. */
static bool push_back(qr_poller *poller, qr_request *request)
{
    if (atomic_exchange(&request->in_news, true))
        return false;
    request->news_next = poller->first;
    poller->first = request;
    if (poller->last == NULL)
        poller->last = request;
    return true;
}

static bool fill_event(qr_output *output, qr_event *event)
{
    qr_request *request = output->request;
    /* The finish is stored last and so read first. */
    qr_finish finish = (qr_finish)atomic_load_explicit(&output->public_finish, memory_order_acquire);
    size_t text = atomic_load_explicit(&output->public_text, memory_order_acquire);
    int64_t tokens = atomic_load_explicit(&output->public_tokens, memory_order_acquire);
    if (finish == output->seen_finish && text == output->seen_text && tokens == output->seen_tokens)
        return false;
    const qr_sequence *seq = &output->seq;
    int64_t first = output->seen_tokens - seq->prompt_count; /* among the output tokens */
    *event =
        (qr_event){.request = request,
                   .user = request->user,
                   .sample = seq->sample,
                   .token_ids = tokens > output->seen_tokens ? seq->ids + output->seen_tokens : NULL,
                   .token_count = (size_t)(tokens - output->seen_tokens),
                   .text = output->text != NULL ? output->text + output->seen_text : "",
                   .text_bytes = text - output->seen_text,
                   .logprobs = output->logprobs != NULL ? output->logprobs + first * request->columns : NULL,
                   .finish = finish,
                   .stop_token = -1,
                   .stop_string = -1};
    if (finish != QR_FINISH_NONE) {
        event->stop_token = output->stop_token;
        event->stop_string = output->stop_string;
        event->status = output->status;
        event->message = finish == QR_FINISH_ERROR ? request->error.message : NULL;
    }
    output->seen_finish = finish;
    output->seen_text = text;
    output->seen_tokens = tokens;
    return true;
}

/* Events of the first request on the queue. */
static size_t take_events(qr_poller *poller, qr_event *events, size_t events_max)
{
    qr_request *request = pop_first(poller);
    atomic_store(&request->in_news, false); /* from here on the engine pushes it again */
    size_t count = 0;
    bool released = atomic_load(&request->released);
    for (int32_t i = 0; i < request->n && !released; i++) {
        if (count == events_max) {
            if (push_back(poller, request))
                return count;
            break;
        }
        count += fill_event(&request->samples[i], &events[count]);
    }
    qr_request_drop(request);
    return count;
}

/* True when there is nothing left: the eventfd is clear then. */
static bool clear_signal(qr_poller *poller)
{
    if (poller->first != NULL)
        return false;
    uint64_t value;
    ssize_t got = read(poller->fd, &value, sizeof(value));
    (void)got; /* nothing to read is as good */
    atomic_store(&poller->signalled, false);
    take_news(poller); /* what came in between found the flag still set */
    return poller->first == NULL;
}

static bool wait_for_news(qr_poller *poller, int timeout_ms, uint64_t deadline_ns)
{
    struct pollfd wanted = {.fd = poller->fd, .events = POLLIN};
    for (;;) {
        int left_ms = timeout_ms;
        if (timeout_ms > 0) {
            uint64_t now = qr_clock_ns();
            left_ms = now < deadline_ns ? (int)((deadline_ns - now + 999999) / 1000000) : 0;
        }
        int ready = poll(&wanted, 1, left_ms);
        if (ready >= 0 || errno != EINTR)
            return ready > 0;
    }
}

size_t qr_poller_poll(qr_poller *poller, qr_event *events, size_t events_max, int timeout_ms)
{
    uint64_t deadline = timeout_ms > 0 ? qr_clock_ns() + (uint64_t)timeout_ms * 1000000 : 0;
    for (;;) {
        size_t count = 0;
        take_news(poller);
        while (poller->first != NULL && count < events_max)
            count += take_events(poller, events + count, events_max - count);
        bool left = !clear_signal(poller);
        if (left)
            qr_poller_wake(poller);
        if (count > 0 || timeout_ms == 0 || events_max == 0)
            return count;
        if (!left && !wait_for_news(poller, timeout_ms, deadline))
            return 0;
    }
}

void qr_poller_close(qr_poller *poller)
{
    if (poller == NULL)
        return;
    atomic_store(&poller->closed, true);
    take_news(poller);
    while (poller->first != NULL) {
        qr_request *request = pop_first(poller);
        atomic_store(&request->in_news, false);
        qr_request_drop(request);
    }
    qr_poller_unref(poller);
}
