/* Replies: whole or piece by piece. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "server/http_conn.h"

const char *qr_http_reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } reasons[] = {
        {200, "OK"},
        {204, "No Content"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
        if (reasons[i].status == status)
            return reasons[i].text;
    }
    return "Unknown";
}

static const char *date_now(qr_http *http)
{
    int64_t now = qr_clock_unix_s();
    if (now != http->date_s) {
        struct tm tm;
        time_t seconds = (time_t)now;
        gmtime_r(&seconds, &tm);
        strftime(http->date, sizeof(http->date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
        http->date_s = now;
    }
    return http->date;
}

/* The head of a reply into out; length < 0: chunked, or until the close for HTTP/1.0. */
static void head_append(qr_http_conn *conn, qr_buf *out, int status, const char *content_type, int64_t length)
{
    if (conn->http->draining)
        conn->keep_alive = false;
    qr_buf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\nServer: quire\r\n", status, qr_http_reason(status),
                  date_now(conn->http));
    if (content_type != NULL)
        qr_buf_printf(out, "Content-Type: %s\r\n", content_type);
    if (length >= 0 && status != 204 && status != 304)
        qr_buf_printf(out, "Content-Length: %lld\r\n", (long long)length);
    else if (length < 0 && !conn->http10)
        qr_buf_append_cstr(out, "Transfer-Encoding: chunked\r\n");
    if (conn->request.id[0] != '\0')
        qr_buf_printf(out, "X-Request-Id: %s\r\n", conn->request.id);
    qr_buf_append_cstr(out, "X-Content-Type-Options: nosniff\r\n");
    qr_buf_append_str(out, qr_buf_str(&conn->common));
    if (!conn->keep_alive)
        qr_buf_append_cstr(out, "Connection: close\r\n");
    else if (conn->http10)
        qr_buf_append_cstr(out, "Connection: keep-alive\r\n");
    qr_buf_append_cstr(out, "\r\n");
    conn->status = status;
}

static void report(qr_http_conn *conn)
{
    if (conn->reported)
        return;
    conn->reported = true;
    conn->http->hooks.finished(conn->http->hooks.user, conn, conn->status, conn->reply_bytes);
}

static void write_whole(qr_http_conn *conn, int status, const char *content_type, qr_str body)
{
    qr_buf out = {0};
    head_append(conn, &out, status, content_type, (int64_t)body.len);
    if (conn->request.method != QR_HTTP_HEAD && status != 204 && status != 304)
        qr_buf_append_str(&out, body);
    conn->reply_bytes += out.len;
    bufferevent_write(conn->bev, out.data, out.len);
    qr_buf_release(&out);
    report(conn);
    conn->owner = NULL;
    conn_enter(conn, CONN_FLUSH);
}

void qr_http_refuse(qr_http_conn *conn, int status, const char *content_type, qr_str body)
{
    if (conn->refused)
        return;
    conn->refused = true;
    conn->refuse_status = status;
    conn->refuse_type = content_type;
    qr_buf_clear(&conn->refuse_body);
    qr_buf_append_str(&conn->refuse_body, body);
}

void write_refusal(qr_http_conn *conn)
{
    write_whole(conn, conn->refuse_status, conn->refuse_type, qr_buf_str(&conn->refuse_body));
}

void qr_http_reply(qr_http_conn *conn, int status, const char *content_type, qr_str body)
{
    QR_ASSERT(conn->state == CONN_BUSY && !conn->stream_started);
    write_whole(conn, status, content_type, body);
}

void qr_http_stream_begin(qr_http_conn *conn, const char *content_type)
{
    QR_ASSERT(conn->state == CONN_BUSY && !conn->stream_started);
    conn->stream_started = true;
    if (conn->http10)
        conn->keep_alive = false; /* the close is what ends it */
    qr_buf out = {0};
    head_append(conn, &out, 200, content_type, -1);
    conn->reply_bytes += out.len;
    bufferevent_write(conn->bev, out.data, out.len);
    qr_buf_release(&out);
}

bool qr_http_stream_write(qr_http_conn *conn, qr_buf *piece)
{
    QR_ASSERT(conn->stream_started && piece->len >= QR_HTTP_PIECE_RESERVE);
    size_t payload = piece->len - QR_HTTP_PIECE_RESERVE;
    size_t start = QR_HTTP_PIECE_RESERVE;
    if (payload == 0)
        return true;
    if (evbuffer_get_length(bufferevent_get_output(conn->bev)) >
        conn->http->options->stream_pending_bytes_max) {
        conn_kill(conn); /* the reader lags by more than it may */
        return false;
    }
    if (!conn->http10) {
        char size[QR_HTTP_PIECE_RESERVE + 1];
        int len = snprintf(size, sizeof(size), "%zx\r\n", payload);
        QR_ASSERT(len > 0 && len <= QR_HTTP_PIECE_RESERVE);
        start -= (size_t)len;
        memcpy(piece->data + start, size, (size_t)len);
        qr_buf_append(piece, "\r\n", 2);
    }
    conn->reply_bytes += piece->len - start;
    bufferevent_write(conn->bev, piece->data + start, piece->len - start);
    qr_buf_clear(piece);
    return true;
}

void qr_http_stream_end(qr_http_conn *conn)
{
    QR_ASSERT(conn->stream_started && conn->state == CONN_BUSY);
    if (!conn->http10)
        bufferevent_write(conn->bev, "0\r\n\r\n", 5);
    report(conn);
    conn->owner = NULL;
    conn_enter(conn, CONN_FLUSH);
}

void qr_http_conn_add_header(qr_http_conn *conn, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    qr_buf_vprintf(&conn->common, format, args);
    va_end(args);
}

/* For a connection that is not taken: a few bytes that fit any fresh socket's buffer. */
void write_bare(int fd, int status)
{
    char text[160];
    int len = snprintf(text, sizeof(text),
                       "HTTP/1.1 %d %s\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n",
                       status, qr_http_reason(status));
    (void)!send(fd, text, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)shutdown(fd, SHUT_WR);
}
