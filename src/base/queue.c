#include "base/queue.h"

#include <errno.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/mem.h"

void qr_queue_init(qr_queue *queue, size_t capacity)
{
    QR_ASSERT(capacity > 0);
    *queue = (qr_queue){.capacity = capacity, .items = qr_calloc(capacity, sizeof(void *))};
    pthread_condattr_t attributes;
    QR_ASSERT(pthread_mutex_init(&queue->mutex, NULL) == 0);
    QR_ASSERT(pthread_condattr_init(&attributes) == 0);
    QR_ASSERT(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
    QR_ASSERT(pthread_cond_init(&queue->nonempty, &attributes) == 0);
    pthread_condattr_destroy(&attributes);
}

void qr_queue_release(qr_queue *queue)
{
    pthread_cond_destroy(&queue->nonempty);
    pthread_mutex_destroy(&queue->mutex);
    qr_free(queue->items);
    queue->items = NULL;
}

bool qr_queue_push(qr_queue *queue, void *item)
{
    QR_ASSERT(item != NULL);
    pthread_mutex_lock(&queue->mutex);
    bool room = !queue->closed && queue->count < queue->capacity;
    if (room) {
        queue->items[(queue->head + queue->count) % queue->capacity] = item;
        queue->count++;
        pthread_cond_signal(&queue->nonempty);
    }
    pthread_mutex_unlock(&queue->mutex);
    return room;
}

static struct timespec deadline_after(uint64_t timeout_ns)
{
    uint64_t now = qr_clock_ns();
    uint64_t at = timeout_ns < UINT64_MAX / 2 - now ? now + timeout_ns : UINT64_MAX / 2;
    return (struct timespec){.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)};
}

/* Waits with the mutex held until there is an item, the queue is closed or the time is up. */
static void wait_for_item(qr_queue *queue, uint64_t timeout_ns)
{
    if (timeout_ns == UINT64_MAX) {
        while (queue->count == 0 && !queue->closed)
            pthread_cond_wait(&queue->nonempty, &queue->mutex);
        return;
    }
    struct timespec deadline = deadline_after(timeout_ns);
    while (queue->count == 0 && !queue->closed)
        if (pthread_cond_timedwait(&queue->nonempty, &queue->mutex, &deadline) == ETIMEDOUT)
            return;
}

void *qr_queue_pop(qr_queue *queue, uint64_t timeout_ns)
{
    void *item = NULL;
    pthread_mutex_lock(&queue->mutex);
    if (timeout_ns > 0)
        wait_for_item(queue, timeout_ns);
    if (queue->count > 0) {
        item = queue->items[queue->head];
        queue->head = (queue->head + 1) % queue->capacity;
        queue->count--;
    }
    pthread_mutex_unlock(&queue->mutex);
    return item;
}

void qr_queue_close(qr_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->closed = true;
    pthread_cond_broadcast(&queue->nonempty);
    pthread_mutex_unlock(&queue->mutex);
}

size_t qr_queue_count(qr_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    size_t count = queue->count;
    pthread_mutex_unlock(&queue->mutex);
    return count;
}
