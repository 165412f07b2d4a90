/* A counter that threads wait on: a waiter spins for some 20 us, since what it waits for is mostly that near and waking
 * a sleeper takes 50, then sleeps on a futex. Zeroed memory is a gate. Thread: any. */
#ifndef QR_BASE_GATE_H
#define QR_BASE_GATE_H

#include <stdatomic.h>
#include <stdint.h>

typedef struct qr_gate {
    _Atomic uint32_t count;
    _Atomic int32_t sleepers;
} qr_gate;

static inline uint32_t qr_gate_count(qr_gate *gate) { return atomic_load(&gate->count); }
/* Adds one and wakes all waiters. What the caller wrote before is seen by whoever sees the new count. */
void qr_gate_open(qr_gate *gate);
/* Returns once the count is not `seen`. */
void qr_gate_wait(qr_gate *gate, uint32_t seen);

#endif
