/* OpenAI-shaped errors: {"error":{"message","type","param","code"}}. Messages say what was wrong and how to put
 * it right; never pointers, paths or memory contents. Thread: any. */
#ifndef QR_SERVER_API_ERROR_H
#define QR_SERVER_API_ERROR_H

#include <stdbool.h>

#include "base/status.h"
#include "base/str.h"

typedef struct qr_api_error {
    int http;         /* 0: none */
    const char *code; /* a constant, or NULL */
    char param[80];   /* the field, or "" */
    char message[640];
} qr_api_error;

/* Fills *error and returns false, so that `return qr_api_fail(...)` is one line. The first error stays. */
bool qr_api_fail(qr_api_error *error, int http, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* From the library's error. */
bool qr_api_fail_status(qr_api_error *error, qr_status status, const char *message);

/* "invalid_request_error", "rate_limit_error", ... of an HTTP status. */
const char *qr_api_error_type(int http);
/* Appends the JSON object. */
void qr_api_error_append(const qr_api_error *error, qr_buf *out);

#endif
