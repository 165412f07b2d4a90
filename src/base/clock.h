/* Monotonic and wall time. Thread: any. */
#ifndef QR_BASE_CLOCK_H
#define QR_BASE_CLOCK_H

#include <stdint.h>

uint64_t qr_clock_ns(void);    /* monotonic */
int64_t qr_clock_unix_s(void); /* wall clock, seconds since 1970 */

#endif
