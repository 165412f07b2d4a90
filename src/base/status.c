#include "base/status.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

#define X(name, code, http, text) [code] = {#name, text, http},
static const struct {
    const char *name, *text;
    int http;
} statuses[] = {QR_STATUS_MAP(X)};
#undef X

static bool status_known(qr_status status)
{
    return (size_t)status < sizeof(statuses) / sizeof(statuses[0]) && statuses[status].name != NULL;
}

const char *qr_status_name(qr_status status)
{
    return status_known(status) ? statuses[status].name : "UNKNOWN";
}
const char *qr_status_text(qr_status status)
{
    return status_known(status) ? statuses[status].text : "unknown status";
}
int qr_status_http(qr_status status) { return status_known(status) ? statuses[status].http : 500; }

/* The message is one line whatever a file name or a request put into it. */
static void message_tidy(char *message)
{
    size_t len = qr_utf8_complete_prefix(message, strlen(message));
    message[len] = '\0';
    for (char *c = message; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
}

qr_status qr_fail(qr_error *err, qr_status status, const char *format, ...)
{
    if (err == NULL)
        return status;
    char message[sizeof(err->message)]; /* an argument may be err->message itself */
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    message_tidy(message);
    memcpy(err->message, message, sizeof(message));
    err->status = status;
    return status;
}

void qr_error_prefix(qr_error *err, const char *format, ...)
{
    if (err == NULL)
        return;
    char prefix[sizeof(err->message)];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof(prefix), format, args);
    va_end(args);
    char rest[sizeof(err->message)];
    memcpy(rest, err->message, sizeof(rest));
    qr_fail(err, err->status, "%s: %s", prefix, rest);
}
