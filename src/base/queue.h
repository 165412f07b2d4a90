/* A bounded queue of pointers between threads: many producers, many consumers, a mutex and a condition;
 * capacity fixed at init, no memory taken afterwards. Thread: any. */
#ifndef QR_BASE_QUEUE_H
#define QR_BASE_QUEUE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct qr_queue {
    pthread_mutex_t mutex;
    pthread_cond_t nonempty;
    void **items;
    size_t capacity, head, count;
    bool closed;
} qr_queue;

void qr_queue_init(qr_queue *queue, size_t capacity);
void qr_queue_release(qr_queue *queue);
/* false when full or closed. */
bool qr_queue_push(qr_queue *queue, void *item);
/* Waits up to timeout_ns (UINT64_MAX: for ever, 0: not at all); NULL when none came or closed and empty. */
void *qr_queue_pop(qr_queue *queue, uint64_t timeout_ns);
void qr_queue_close(qr_queue *queue); /* wakes all waiters; pops drain what is left */
size_t qr_queue_count(qr_queue *queue);

#endif
