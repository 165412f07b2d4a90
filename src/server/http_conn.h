/* What the three files of the HTTP layer share: http.c (life of a connection), http_parse.c (llhttp's
 * callbacks), http_write.c (replies). Thread: I/O. */
#ifndef QR_SERVER_HTTP_CONN_H
#define QR_SERVER_HTTP_CONN_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <llhttp.h>

#include "base/list.h"
#include "base/str.h"
#include "server/http.h"
#include "server/limits.h"

typedef enum conn_state { CONN_HEAD, CONN_BODY, CONN_BUSY, CONN_FLUSH, CONN_LINGER, CONN_DEAD } conn_state;

/* A header while it is read: where its value lies in conn->head. */
typedef struct header_place {
    size_t offset, len;
    bool present;
} header_place;

struct qr_http_conn {
    qr_list node; /* in http->conns, or http->dead */
    qr_http *http;
    struct bufferevent *bev;
    struct event *deadline;
    uint64_t peer;
    uint64_t serial; /* tells it from a later one at the same address: the close watch holds serials */
    conn_state state;

    llhttp_t parser;
    qr_buf head; /* target and known values of this request */
    size_t head_bytes;
    int head_count;
    size_t target_bytes;
    char field[48]; /* the name of the header being read, in lower case */
    size_t field_bytes;
    bool field_too_long;
    int current; /* qr_http_header being read, or -1 */
    header_place places[QR_HEADER_COUNT];
    bool head_done; /* what comes now as headers are trailers */
    bool complete;  /* on_message_complete was called */
    bool head_started;
    qr_buf body;
    size_t body_charged; /* of http->body_bytes */
    qr_http_request request;
    qr_buf common; /* header lines of every reply to this request */

    bool keep_alive;
    bool http10;
    bool peer_closed; /* the peer has sent its last byte */
    bool stream_started;
    bool refused;
    int refuse_status;
    const char *refuse_type;
    qr_buf refuse_body;
    int status; /* of the reply */
    size_t reply_bytes;
    bool reported; /* hooks.finished was called for this request */
    void *owner;
};

struct qr_http {
    struct event_base *base;
    const qr_server_options *options;
    qr_http_hooks hooks;
    llhttp_settings_t settings;
    struct evconnlistener *listener;
    struct event *accept_retry; /* out of file descriptors: listen again a little later */
    struct event *reaper;
    int watch_fd; /* an epoll set of our own: who has closed while reads are off */
    struct event *watch;
    qr_list conns, dead;
    size_t conn_count;
    size_t body_bytes;
    qr_peer_counts peers;
    uint64_t serial;
    bool draining;
    int64_t date_s;
    char date[40];
};

/* http.c */
void conn_enter(qr_http_conn *conn, conn_state state);
void conn_kill(qr_http_conn *conn);
void conn_process(qr_http_conn *conn);
void conn_reset_request(qr_http_conn *conn);
/* http_parse.c */
void parse_settings_init(llhttp_settings_t *settings);
/* Feeds bytes; returns how many were taken. *failed: the connection cannot go on, a refusal is set. */
size_t parse_feed(qr_http_conn *conn, const char *bytes, size_t len, bool *failed);
/* http_write.c */
void write_refusal(qr_http_conn *conn);
void write_bare(int fd, int status);

#endif
