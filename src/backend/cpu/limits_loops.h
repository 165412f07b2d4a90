/* How limits_avx2.c and limits_avx512.c write their loops: CPU_LIMIT_CHAINS accumulators that stay in registers and a
 * multiplicand that the compiler must believe to be new every time. Private to backend/cpu/. Thread: any.
 */
#ifndef QR_BACKEND_CPU_LIMITS_LOOPS_H
#define QR_BACKEND_CPU_LIMITS_LOOPS_H

#include "backend/cpu/limits.h"
#include "backend/cpu/unroll.h"

/* step: an expression of a (an accumulator), x and y (vectors of integers). */
#define LIMIT_LOOP(function, vector, acc_type, zero, ones, step)                  \
    static void function(int64_t iterations)                                      \
    {                                                                             \
        acc_type sum[CPU_LIMIT_CHAINS];                                           \
        vector x = ones, y = ones;                                                \
        CPU_EACH(i, CPU_LIMIT_CHAINS)                                             \
        {                                                                         \
            sum[i] = zero;                                                        \
            __asm__ volatile("" : "+x"(sum[i])); /* or equal chains become one */ \
        }                                                                         \
        for (int64_t n = 0; n < iterations; n++) {                                \
            __asm__ volatile("" : "+x"(x), "+x"(y));                              \
            CPU_EACH(i, CPU_LIMIT_CHAINS)                                         \
            {                                                                     \
                acc_type a = sum[i];                                              \
                sum[i] = step;                                                    \
            }                                                                     \
        }                                                                         \
        CPU_EACH(i, CPU_LIMIT_CHAINS)                                             \
        __asm__ volatile("" : : "x"(sum[i]));                                     \
    }

#endif
