#include "server/api_error.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/json.h"

bool qr_api_fail(qr_api_error *error, int http, const char *code, const char *param, const char *format, ...)
{
    if (error->http != 0)
        return false;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(error->message, sizeof(error->message), format, args);
    va_end(args);
    error->http = http;
    error->code = code;
    (void)snprintf(error->param, sizeof(error->param), "%s", param != NULL ? param : "");
    return false;
}

static const char *code_of(qr_status status)
{
    switch (status) {
    case QR_BUSY: return "server_overloaded";
    case QR_CLOSED: return "server_shutting_down";
    case QR_DEVICE_FAILED: return "device_failed";
    case QR_LIMIT_EXCEEDED: return "limit_exceeded";
    default: return NULL;
    }
}

bool qr_api_fail_status(qr_api_error *error, qr_status status, const char *message)
{
    return qr_api_fail(error, qr_status_http(status), code_of(status), NULL, "%s",
                       message != NULL && message[0] != '\0' ? message : qr_status_text(status));
}

const char *qr_api_error_type(int http)
{
    switch (http) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 503: return "service_unavailable_error";
    default: return http >= 500 ? "server_error" : "invalid_request_error";
    }
}

void qr_api_error_append(const qr_api_error *error, qr_buf *out)
{
    /* snprintf may have cut a character in two; the writer makes U+FFFD of that. */
    qr_buf_append_cstr(out, "{\"error\":{\"message\":");
    qr_json_append_string(out, qr_str_of(error->message));
    qr_buf_printf(out, ",\"type\":\"%s\",\"param\":", qr_api_error_type(error->http));
    if (error->param[0] != '\0')
        qr_json_append_string(out, qr_str_of(error->param));
    else
        qr_buf_append_cstr(out, "null");
    if (error->code != NULL)
        qr_buf_printf(out, ",\"code\":\"%s\"}}", error->code);
    else
        qr_buf_append_cstr(out, ",\"code\":null}}");
}
