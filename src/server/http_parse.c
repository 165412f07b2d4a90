/* llhttp's callbacks: from bytes to a request, each limit checked before anything is kept. */
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/http_conn.h"

#define TARGET_BYTES_MAX 8192

static const char *const header_names[QR_HEADER_COUNT] = {
#define X(name, text) text,
    QR_HTTP_HEADER_MAP(X)
#undef X
};

/* Headers whose second copy would make the request mean two things. */
static bool header_is_single(int header)
{
    return header == QR_HEADER_HOST || header == QR_HEADER_AUTHORIZATION ||
           header == QR_HEADER_CONTENT_TYPE || header == QR_HEADER_ORIGIN;
}

static void refuse_text(qr_http_conn *conn, int status, const char *message)
{
    if (conn->refused)
        return;
    qr_buf body = {0};
    qr_buf_append_cstr(&body, "{\"error\":{\"message\":");
    qr_buf_append_char(&body, '"');
    qr_buf_append_cstr(&body, message);
    qr_buf_append_cstr(&body, "\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}");
    qr_http_refuse(conn, status, "application/json", qr_buf_str(&body));
    qr_buf_release(&body);
}

/* Charges head bytes; false (with a refusal) past the limit. */
static bool head_charge(qr_http_conn *conn, size_t bytes)
{
    conn->head_bytes += bytes;
    if (conn->head_bytes <= conn->http->options->header_bytes_max)
        return true;
    refuse_text(conn, 431, "the request's headers are larger than the server allows");
    return false;
}

static int on_message_begin(llhttp_t *parser)
{
    qr_http_conn *conn = parser->data;
    conn->head_started = true;
    return 0;
}

static int on_url(llhttp_t *parser, const char *at, size_t len)
{
    qr_http_conn *conn = parser->data;
    if (!head_charge(conn, len))
        return -1;
    if (conn->target_bytes + len > TARGET_BYTES_MAX) {
        refuse_text(conn, 414, "the request target is longer than 8192 bytes");
        return -1;
    }
    qr_buf_append(&conn->head, at, len);
    conn->target_bytes += len;
    return 0;
}

static int on_header_field(llhttp_t *parser, const char *at, size_t len)
{
    qr_http_conn *conn = parser->data;
    if (!head_charge(conn, len))
        return -1;
    if (conn->field_bytes == 0 && ++conn->head_count > conn->http->options->header_count_max) {
        refuse_text(conn, 431, "the request has more headers than the server allows");
        return -1;
    }
    if (conn->field_bytes + len >= sizeof(conn->field)) {
        conn->field_too_long = true;
        conn->field_bytes = sizeof(conn->field) - 1;
        return 0;
    }
    for (size_t i = 0; i < len; i++) {
        char c = at[i];
        conn->field[conn->field_bytes++] = (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    return 0;
}

static int on_header_field_complete(llhttp_t *parser)
{
    qr_http_conn *conn = parser->data;
    conn->current = -1;
    /* Trailers come after the decision was made: they are counted, never read. */
    if (!conn->field_too_long && !conn->head_done) {
        for (int i = 0; i < QR_HEADER_COUNT; i++) {
            if (qr_str_equals(qr_str_make(conn->field, conn->field_bytes), header_names[i]))
                conn->current = i;
        }
    }
    conn->field_bytes = 0;
    conn->field_too_long = false;
    if (conn->current < 0)
        return 0;
    header_place *place = &conn->places[conn->current];
    if (place->present && header_is_single(conn->current)) {
        refuse_text(conn, 400, "a header that may come once came twice");
        return -1;
    }
    *place = (header_place){.offset = conn->head.len, .len = 0, .present = true};
    return 0;
}

static int on_header_value(llhttp_t *parser, const char *at, size_t len)
{
    qr_http_conn *conn = parser->data;
    if (!head_charge(conn, len))
        return -1;
    if (memchr(at, '\0', len) != NULL) {
        refuse_text(conn, 400, "a header value holds a NUL byte");
        return -1;
    }
    if (conn->current < 0)
        return 0;
    qr_buf_append(&conn->head, at, len);
    conn->places[conn->current].len += len;
    return 0;
}

static int on_header_value_complete(llhttp_t *parser)
{
    qr_http_conn *conn = parser->data;
    conn->current = -1;
    return head_charge(conn, 4) ? 0 : -1; /* ": " and CRLF */
}

static qr_str trim(qr_str text)
{
    while (text.len > 0 && (text.data[text.len - 1] == ' ' || text.data[text.len - 1] == '\t'))
        text.len--;
    while (text.len > 0 && (text.data[0] == ' ' || text.data[0] == '\t')) {
        text.data++;
        text.len--;
    }
    return text;
}

/* Splits the target; false when it is in no form that we serve. Only an exact path is ever compared, so an
 * encoded or doubled slash is an unknown path and not another spelling of a known one. */
static bool split_target(qr_http_request *request, qr_str target)
{
    if (target.len == 1 && target.data[0] == '*' && request->method == QR_HTTP_OPTIONS) {
        request->path = target;
        return true;
    }
    if (target.len > 7 && strncasecmp(target.data, "http://", 7) == 0) {
        const char *slash = memchr(target.data + 7, '/', target.len - 7);
        if (slash == NULL)
            return false;
        target = qr_str_make(slash, target.len - (size_t)(slash - target.data));
    }
    if (target.len == 0 || target.data[0] != '/' || memchr(target.data, '#', target.len) != NULL)
        return false;
    const char *mark = memchr(target.data, '?', target.len);
    request->path = target;
    request->query = qr_str_make("", 0);
    if (mark != NULL) {
        request->path.len = (size_t)(mark - target.data);
        request->query = qr_str_make(mark + 1, target.len - request->path.len - 1);
    }
    return true;
}

static qr_http_method method_of(uint8_t method)
{
    switch (method) {
    case HTTP_GET: return QR_HTTP_GET;
    case HTTP_HEAD: return QR_HTTP_HEAD;
    case HTTP_POST: return QR_HTTP_POST;
    case HTTP_OPTIONS: return QR_HTTP_OPTIONS;
    default: return QR_HTTP_OTHER;
    }
}

static void request_fill(qr_http_conn *conn)
{
    qr_http_request *request = &conn->request;
    for (int i = 0; i < QR_HEADER_COUNT; i++) {
        if (conn->places[i].present)
            request->headers[i] =
                trim(qr_str_make(conn->head.data + conn->places[i].offset, conn->places[i].len));
    }
    request->method = method_of(conn->parser.method);
    request->method_name = qr_str_of(llhttp_method_name((llhttp_method_t)conn->parser.method));
    bool chunked = (conn->parser.flags & F_CHUNKED) != 0;
    bool sized = (conn->parser.flags & F_CONTENT_LENGTH) != 0;
    request->declared_bytes =
        sized && !chunked ? (int64_t)QR_MIN(conn->parser.content_length, (uint64_t)INT64_MAX) : -1;
    request->has_body = chunked || request->declared_bytes > 0;
    conn->http10 = conn->parser.http_major == 1 && conn->parser.http_minor == 0;
}

/* What HTTP itself asks of a head; the hooks ask the rest. */
static bool head_is_sound(qr_http_conn *conn)
{
    const qr_http_request *request = &conn->request;
    if (conn->parser.http_major != 1 || conn->parser.http_minor > 1) {
        refuse_text(conn, 505, "only HTTP/1.0 and HTTP/1.1 are served");
        return false;
    }
    if (!split_target(&conn->request, qr_str_make(conn->head.data, conn->target_bytes))) {
        refuse_text(conn, 400, "the request target is not an absolute path");
        return false;
    }
    if (!conn->http10 && (request->headers[QR_HEADER_HOST].data == NULL)) {
        refuse_text(conn, 400, "an HTTP/1.1 request needs a Host header");
        return false;
    }
    if (conn->http10 && (conn->parser.flags & F_CHUNKED) != 0) {
        refuse_text(conn, 400, "an HTTP/1.0 request cannot be chunked");
        return false;
    }
    qr_str expect = request->headers[QR_HEADER_EXPECT];
    if (expect.data != NULL && !(expect.len == 12 && strncasecmp(expect.data, "100-continue", 12) == 0)) {
        refuse_text(conn, 417, "the only expectation that is met is 100-continue");
        return false;
    }
    return true;
}

static bool length_fits(qr_http_conn *conn)
{
    const qr_http *http = conn->http;
    int64_t declared = conn->request.declared_bytes;
    if (declared > 0 && (uint64_t)declared > http->options->body_bytes_max) {
        refuse_text(conn, 413, "the request's body is larger than the server allows");
        return false;
    }
    if (declared > 0 && http->body_bytes + (size_t)declared > http->options->body_bytes_total_max) {
        qr_http_conn_add_header(conn, "Retry-After: 1\r\n");
        refuse_text(conn, 503, "the server holds as many request bodies as it may: try again");
        return false;
    }
    return true;
}

static int on_headers_complete(llhttp_t *parser)
{
    qr_http_conn *conn = parser->data;
    conn->head_done = true;
    parser->upgrade = 0; /* an offer that we do not take up, as HTTP allows; the request itself is served */
    qr_buf_append_char(&conn->head, '\0'); /* the last append: slices into head.data are stable from here */
    request_fill(conn);
    bool fine =
        head_is_sound(conn) && conn->http->hooks.head(conn->http->hooks.user, conn) && length_fits(conn);
    if (fine && conn->request.has_body && conn->request.headers[QR_HEADER_EXPECT].data != NULL &&
        !conn->http10)
        bufferevent_write(conn->bev, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    if (!fine && (conn->request.has_body || parser->method == HTTP_CONNECT)) {
        conn->keep_alive = false;
        return -1; /* the refusal leaves now, the body is not read */
    }
    return 0;
}

static int on_body(llhttp_t *parser, const char *at, size_t len)
{
    qr_http_conn *conn = parser->data;
    qr_http *http = conn->http;
    if (len > http->options->body_bytes_max || conn->body.len > http->options->body_bytes_max - len) {
        refuse_text(conn, 413, "the request's body is larger than the server allows");
        return -1;
    }
    if (http->body_bytes + len > http->options->body_bytes_total_max) {
        qr_http_conn_add_header(conn, "Retry-After: 1\r\n");
        refuse_text(conn, 503, "the server holds as many request bodies as it may: try again");
        return -1;
    }
    http->body_bytes += len;
    conn->body_charged += len;
    qr_buf_append(&conn->body, at, len);
    return 0;
}

static int on_message_complete(llhttp_t *parser)
{
    qr_http_conn *conn = parser->data;
    conn->complete = true;
    conn->keep_alive = llhttp_should_keep_alive(parser) != 0;
    conn->request.body = qr_str_make(conn->body.data != NULL ? conn->body.data : "", conn->body.len);
    return HPE_PAUSED;
}

void parse_settings_init(llhttp_settings_t *settings)
{
    llhttp_settings_init(settings);
    settings->on_message_begin = on_message_begin;
    settings->on_url = on_url;
    settings->on_header_field = on_header_field;
    settings->on_header_field_complete = on_header_field_complete;
    settings->on_header_value = on_header_value;
    settings->on_header_value_complete = on_header_value_complete;
    settings->on_headers_complete = on_headers_complete;
    settings->on_body = on_body;
    settings->on_message_complete = on_message_complete;
}

size_t parse_feed(qr_http_conn *conn, const char *bytes, size_t len, bool *failed)
{
    enum llhttp_errno code = llhttp_execute(&conn->parser, bytes, len);
    *failed = false;
    if (code == HPE_OK)
        return len;
    const char *at = llhttp_get_error_pos(&conn->parser);
    size_t taken = at != NULL && at >= bytes && at <= bytes + len ? (size_t)(at - bytes) : len;
    if (code == HPE_PAUSED && conn->complete)
        return taken;
    *failed = true;
    conn->keep_alive = false;
    if (!conn->refused && code == HPE_INVALID_VERSION)
        refuse_text(conn, 505, "only HTTP/1.0 and HTTP/1.1 are served");
    else if (!conn->refused)
        refuse_text(conn, 400, "this is not an HTTP request");
    return taken;
}
