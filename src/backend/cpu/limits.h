/* Loops that reach the limits of a machine: read bandwidth and the rate of each instruction that the kernels are made
 * of. limits.c times them. Private to backend/cpu/. Thread: any.
 */
#ifndef QR_BACKEND_CPU_LIMITS_H
#define QR_BACKEND_CPU_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Independent chains in a loop: enough for the latency of every instruction at two a cycle. */
enum { CPU_LIMIT_CHAINS = 12 };

typedef struct cpu_limit_loop {
    const char *name;
    const char *unit;
    int ops; /* multiplications and additions of an iteration */
    void (*run)(int64_t iterations);
} cpu_limit_loop;

typedef void (*cpu_limit_read)(const void *data, size_t bytes); /* bytes: a multiple of 1024 */

/* Tables end with a NULL name. */
extern const cpu_limit_loop cpu_limit_loops_avx2[], cpu_limit_loops_avx512[], cpu_limit_loops_bf16[];
void cpu_limit_read_avx2(const void *data, size_t bytes);
void cpu_limit_read_avx512(const void *data, size_t bytes);

#endif
