/* How the tile kernels are written: functions that are always inlined into a caller that gives the tile's size as
 * constants, and loops over the tile that unroll whole, so that its arrays become registers.
 * Private to backend/cpu/. Thread: any.
 */
#ifndef QR_BACKEND_CPU_UNROLL_H
#define QR_BACKEND_CPU_UNROLL_H

#define CPU_INLINE static inline __attribute__((always_inline))

#ifdef __clang__
#define CPU_UNROLL _Pragma("clang loop unroll(full)")
#define CPU_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define CPU_UNROLL _Pragma("GCC unroll 16")
#define CPU_ROLLED _Pragma("GCC unroll 1")
#endif

/* The vector as it is now: integer sums may be taken in any order, and the compiler would make trees of our chains that
 * want more registers than there are. */
#define CPU_KEEP(vector)   __asm__("" : "+x"(vector))

/* CPU_ROLLED before a loop: its body is long enough; clang would unroll it and compile for minutes. */

/* for (i = 0; i < count; i++), unrolled; count is a constant after inlining. */
#define CPU_EACH(i, count) CPU_UNROLL for (int i = 0; i < (count); i++)

#endif
