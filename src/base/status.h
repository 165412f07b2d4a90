/* Operating errors: a status code plus an optional message in the caller's memory.
 *
 * `qr_status` and `qr_error` are public (quire.h). A function that can fail for a reason outside the
 * program (file, network, request) returns qr_status and takes `qr_error *err` last; `err` may be NULL.
 * A bug is not an error: use QR_ASSERT (assert.h). Thread: any.
 */
#ifndef QR_BASE_STATUS_H
#define QR_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quire.h"

/* Writes the message ("where: what: the values") into err when it is not NULL and returns `status`, so
 * that `return qr_fail(err, QR_INVALID_ARGUMENT, "%s: ...", path)` is one line. Truncates at 255 bytes,
 * never inside a UTF-8 character. */
qr_status qr_fail(qr_error *err, qr_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts `prefix: ` before the message that err already holds; for callers that know the "where". */
void qr_error_prefix(qr_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* HTTP status code of a status (quire.h's QR_STATUS_MAP). */
int qr_status_http(qr_status status);

#endif
