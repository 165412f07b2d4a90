#include "base/gate.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#define SPIN_NS UINT64_C(20000)

static bool is_open(qr_gate *gate, uint32_t seen) { return qr_gate_count(gate) != seen; }

static bool spin(qr_gate *gate, uint32_t seen)
{
    uint64_t until = qr_clock_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (is_open(gate, seen))
                return true;
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
        }
    } while (qr_clock_ns() < until);
    return false;
}

/* The count of sleepers is raised before the kernel compares the word, and the opener reads it after it has written the
 * word: one of the two sees the other. */
void qr_gate_wait(qr_gate *gate, uint32_t seen)
{
    if (spin(gate, seen))
        return;
    atomic_fetch_add(&gate->sleepers, 1);
    while (!is_open(gate, seen))
        syscall(SYS_futex, (uint32_t *)&gate->count, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&gate->sleepers, 1);
}

void qr_gate_open(qr_gate *gate)
{
    atomic_fetch_add(&gate->count, 1);
    if (atomic_load(&gate->sleepers) > 0)
        syscall(SYS_futex, (uint32_t *)&gate->count, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
