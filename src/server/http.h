/* HTTP/1.1 over libevent's bufferevents and llhttp: bytes become requests, replies become bytes.
 *
 * A connection is in one state at a time:
 *
 *      accept --> HEAD --> BODY --> BUSY --> FLUSH --> HEAD (keep-alive) or LINGER --> gone
 *                  |        |        ^         ^
 *                  |        +--------+         |   no body: HEAD -> BUSY
 *                  +---------------------------+   refused at the end of the head: HEAD -> FLUSH
 *
 *  HEAD    reads a request's head; deadline: idle until the first byte, then absolute
 *  BODY    reads its body; absolute deadline
 *  BUSY    the hooks own it; reads are off, a close by the peer is still seen (hooks.gone)
 *  FLUSH   the reply's last bytes leave; then the next request, pipelined or not
 *  LINGER  the reply left before the request was read: what still arrives is thrown away for a moment, since a
 *          close with unread bytes would reset the connection and lose the reply
 *
 * Limits hold before memory is taken: head bytes and count while the head is parsed, the declared length at
 * its end, each piece of a body before it is kept. Thread: I/O.
 */
#ifndef QR_SERVER_HTTP_H
#define QR_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "server/server.h"

struct event_base;

typedef struct qr_http qr_http;
typedef struct qr_http_conn qr_http_conn;

typedef enum qr_http_method {
    QR_HTTP_OTHER,
    QR_HTTP_GET,
    QR_HTTP_HEAD,
    QR_HTTP_POST,
    QR_HTTP_OPTIONS
} qr_http_method;

/* The headers that mean something here; the others are counted against the limits and dropped. */
#define QR_HTTP_HEADER_MAP(X)               \
    X(HOST, "host")                         \
    X(AUTHORIZATION, "authorization")       \
    X(CONTENT_TYPE, "content-type")         \
    X(CONTENT_ENCODING, "content-encoding") \
    X(EXPECT, "expect")                     \
    X(ORIGIN, "origin")                     \
    X(X_REQUEST_ID, "x-request-id")         \
    X(SEC_FETCH_SITE, "sec-fetch-site")     \
    X(IF_NONE_MATCH, "if-none-match")       \
    X(X_QUIRE_MARKS, "x-quire-marks")       \
    X(ACCESS_CONTROL_REQUEST_METHOD, "access-control-request-method")

typedef enum qr_http_header {
#define X(name, text) QR_HEADER_##name,
    QR_HTTP_HEADER_MAP(X)
#undef X
        QR_HEADER_COUNT
} qr_http_header;

#define QR_HTTP_ID_MAX 100 /* with "chatcmpl-" before it, it fits the 128 bytes of qr_request_options */

/* A request; valid from hooks.head until its reply ends. Slices are borrowed from the connection. */
typedef struct qr_http_request {
    qr_http_method method;
    qr_str method_name;
    qr_str path;  /* as it came: never decoded, never normalised; without query, scheme and authority */
    qr_str query; /* after '?', may be empty */
    qr_str headers[QR_HEADER_COUNT]; /* data NULL: absent */
    bool has_body;
    int64_t declared_bytes;      /* Content-Length; -1 when chunked or absent */
    qr_str body;                 /* complete in hooks.request */
    int route;                   /* the hooks' own */
    char id[QR_HTTP_ID_MAX + 1]; /* X-Request-Id of the reply */
    uint64_t started_ns;         /* first byte of the head */
} qr_http_request;

typedef struct qr_http_hooks {
    void *user;
    /* End of the head, before any body. May add common headers; false after qr_http_refuse. */
    bool (*head)(void *user, qr_http_conn *conn);
    /* The request is complete: reply now, or keep the connection and reply later. */
    void (*request)(void *user, qr_http_conn *conn);
    /* A BUSY connection is going away (the peer left, or a write failed): forget it. No reply is possible. */
    void (*gone)(void *user, qr_http_conn *conn);
    /* A reply has been handed to the socket (status 0: the peer left before). For counters and the access log. */
    void (*finished)(void *user, qr_http_conn *conn, int status, size_t reply_bytes);
} qr_http_hooks;

/* options: filled by qr_limits_fill; borrowed. */
qr_http *qr_http_new(struct event_base *base, const qr_server_options *options, const qr_http_hooks *hooks);
/* Closes every connection. */
void qr_http_free(qr_http *http);
/* Takes over a bound socket and listens. */
qr_status qr_http_listen(qr_http *http, int fd, qr_error *err);
/* Serves one connected socket, as if it had been accepted (tests, fuzzing). */
void qr_http_adopt(qr_http *http, int fd);
/* Stops accepting and closes idle connections; the others close after their reply. */
void qr_http_drain(qr_http *http);
size_t qr_http_connections(const qr_http *http);

const qr_http_request *qr_http_conn_request(const qr_http_conn *conn);
void qr_http_conn_set_route(qr_http_conn *conn, int route);
void qr_http_conn_set_id(qr_http_conn *conn, qr_str id);
/* What the owner of a BUSY connection hangs on it; NULL again when the reply ends. */
void qr_http_conn_set_owner(qr_http_conn *conn, void *owner);
void *qr_http_conn_owner(const qr_http_conn *conn);
/* Gives the body's memory back early; request.body is empty afterwards. */
void qr_http_conn_drop_body(qr_http_conn *conn);
/* A whole header line with CRLF that every reply to this request carries. */
void qr_http_conn_add_header(qr_http_conn *conn, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* From hooks.head: the reply is this one. Closes afterwards when the request has a body. */
void qr_http_refuse(qr_http_conn *conn, int status, const char *content_type, qr_str body);

/* The reply of a BUSY connection, all at once. Copies body. */
void qr_http_reply(qr_http_conn *conn, int status, const char *content_type, qr_str body);

/* Or piece by piece (200). A piece is a buffer whose first QR_HTTP_PIECE_RESERVE bytes are free for the chunk's
 * size: it leaves as one write. `piece` is cleared. A reader that lags too far ends the connection: hooks.gone is
 * called and false returned. */
#define QR_HTTP_PIECE_RESERVE 10
void qr_http_stream_begin(qr_http_conn *conn, const char *content_type);
bool qr_http_stream_write(qr_http_conn *conn, qr_buf *piece);
void qr_http_stream_end(qr_http_conn *conn);

const char *qr_http_reason(int status);

#endif
