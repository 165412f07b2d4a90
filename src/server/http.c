/* Life of connections: accepted, read, handed to the hooks, flushed, closed. */
#include "server/http.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/http_conn.h"

#define READ_BYTES_MAX   ((size_t)65536) /* read ahead of the parser at most */
#define LINGER_MS        2000
#define LINGER_BYTES_MAX ((size_t)1 << 20)
#define LISTEN_BACKLOG   1024

static struct timeval from_ms(int32_t ms) { return (struct timeval){ms / 1000, (ms % 1000) * 1000}; }

static void set_deadline(qr_http_conn *conn, int32_t ms)
{
    struct timeval tv = from_ms(ms);
    event_add(conn->deadline, &tv);
}

/* ---- State ----------------------------------------------------------------------------------------- */

void conn_reset_request(qr_http_conn *conn)
{
    llhttp_init(&conn->parser, HTTP_REQUEST, &conn->http->settings);
    conn->parser.data = conn;
    qr_buf_clear(&conn->head);
    qr_buf_clear(&conn->common);
    qr_http_conn_drop_body(conn);
    conn->head_bytes = conn->target_bytes = conn->field_bytes = 0;
    conn->head_count = 0;
    conn->current = -1;
    memset(conn->places, 0, sizeof(conn->places));
    conn->head_done = conn->complete = conn->head_started = conn->field_too_long = false;
    conn->stream_started = conn->refused = conn->reported = conn->http10 = false;
    conn->request = (qr_http_request){.declared_bytes = -1, .route = -1, .path = {"", 0}, .query = {"", 0}};
    conn->status = 0;
    conn->reply_bytes = 0;
    conn->keep_alive = false;
}

void conn_enter(qr_http_conn *conn, conn_state state)
{
    const qr_server_options *options = conn->http->options;
    if (conn->state == CONN_DEAD)
        return;
    conn->state = state;
    switch (state) {
    case CONN_HEAD:
        conn_reset_request(conn);
        set_deadline(conn, options->idle_timeout_ms);
        bufferevent_enable(conn->bev, EV_READ);
        break;
    case CONN_BODY: set_deadline(conn, options->body_timeout_ms); break;
    case CONN_BUSY:
        event_del(conn->deadline);
        bufferevent_disable(conn->bev, EV_READ);
        break;
    case CONN_FLUSH:
        bufferevent_disable(conn->bev, EV_READ);
        event_del(conn->deadline); /* the write timeout ends a reader that stalls */
        break;
    case CONN_LINGER:
        (void)shutdown(bufferevent_getfd(conn->bev), SHUT_WR);
        set_deadline(conn, LINGER_MS);
        conn->head_bytes = 0; /* now counts what is thrown away */
        bufferevent_enable(conn->bev, EV_READ);
        break;
    case CONN_DEAD: break;
    }
}

/* Nothing is freed inside a callback that may still use it: the reaper does it from the loop. */
void conn_kill(qr_http_conn *conn)
{
    qr_http *http = conn->http;
    if (conn->state == CONN_DEAD)
        return;
    bool busy = conn->state == CONN_BUSY;
    conn->state = CONN_DEAD;
    bufferevent_disable(conn->bev, EV_READ | EV_WRITE);
    event_del(conn->deadline);
    if (busy) {
        http->hooks.gone(http->hooks.user, conn);
        conn->owner = NULL;
        if (!conn->reported) {
            conn->reported = true;
            http->hooks.finished(http->hooks.user, conn, 0, conn->reply_bytes);
        }
    }
    qr_list_remove(&conn->node);
    qr_list_push_back(&http->dead, &conn->node);
    http->conn_count--;
    qr_peer_counts_remove(&http->peers, conn->peer);
    event_active(http->reaper, EV_TIMEOUT, 0);
}

static void conn_free(qr_http_conn *conn)
{
    qr_list_remove(&conn->node);
    qr_http_conn_drop_body(conn);
    event_free(conn->deadline);
    bufferevent_free(conn->bev); /* closes the socket, which leaves the close watch by that */
    qr_buf_release(&conn->head);
    qr_buf_release(&conn->common);
    qr_buf_release(&conn->refuse_body);
    qr_free(conn);
}

static void on_reap(evutil_socket_t fd, short what, void *user)
{
    qr_http *http = user;
    (void)fd;
    (void)what;
    while (!qr_list_empty(&http->dead))
        conn_free(QR_LIST_ITEM(http->dead.next, qr_http_conn, node));
}

/* ---- Reading --------------------------------------------------------------------------------------- */

static void conn_refuse_status(qr_http_conn *conn, int status, const char *message)
{
    qr_buf body = {0};
    qr_buf_printf(
        &body,
        "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}",
        message);
    qr_http_refuse(conn, status, "application/json", qr_buf_str(&body));
    qr_buf_release(&body);
    conn->keep_alive = false;
    write_refusal(conn);
}

/* One contiguous piece of what was read; false when there is none or it was the last that may be used. */
static bool conn_feed(qr_http_conn *conn)
{
    struct evbuffer *input = bufferevent_get_input(conn->bev);
    struct evbuffer_iovec piece;
    if (evbuffer_peek(input, -1, NULL, &piece, 1) < 1 || piece.iov_len == 0)
        return false;
    bool fresh = !conn->head_started;
    if (fresh)
        conn->request.started_ns = qr_clock_ns();
    bool failed;
    size_t taken = parse_feed(conn, piece.iov_base, piece.iov_len, &failed);
    evbuffer_drain(input, taken);
    if (failed) {
        write_refusal(conn);
        return false;
    }
    if (conn->complete) {
        conn_enter(conn, CONN_BUSY);
        if (conn->refused)
            write_refusal(conn);
        else
            conn->http->hooks.request(conn->http->hooks.user, conn);
        return false;
    }
    if (conn->state == CONN_HEAD && conn->head_done)
        conn_enter(conn, CONN_BODY);
    else if (fresh && conn->head_started)
        set_deadline(conn, conn->http->options->header_timeout_ms);
    return true;
}

void conn_process(qr_http_conn *conn)
{
    while ((conn->state == CONN_HEAD || conn->state == CONN_BODY) && conn_feed(conn)) {
    }
    /* A peer that has closed already will not come back for a reply that takes time. */
    if (conn->state == CONN_BUSY && conn->peer_closed)
        conn_kill(conn);
}

static void on_read(struct bufferevent *bev, void *user)
{
    qr_http_conn *conn = user;
    if (conn->state == CONN_LINGER) {
        struct evbuffer *input = bufferevent_get_input(bev);
        conn->head_bytes += evbuffer_get_length(input);
        evbuffer_drain(input, evbuffer_get_length(input));
        if (conn->head_bytes > LINGER_BYTES_MAX)
            conn_kill(conn);
        return;
    }
    conn_process(conn);
}

/* The reply has left: the next request, or the end. */
static void on_written(struct bufferevent *bev, void *user)
{
    qr_http_conn *conn = user;
    if (conn->state != CONN_FLUSH || evbuffer_get_length(bufferevent_get_output(bev)) != 0)
        return;
    if (conn->peer_closed) {
        conn_kill(conn);
        return;
    }
    if (!conn->keep_alive) {
        conn_enter(conn, CONN_LINGER);
        return;
    }
    conn_enter(conn, CONN_HEAD);
    if (conn->http->draining && evbuffer_get_length(bufferevent_get_input(bev)) == 0) {
        conn_kill(conn);
        return;
    }
    conn_process(conn);
}

static void on_event(struct bufferevent *bev, short what, void *user)
{
    qr_http_conn *conn = user;
    (void)bev;
    conn->peer_closed = true;
    if ((what & BEV_EVENT_EOF) != 0 && conn->state == CONN_FLUSH)
        return; /* it may still read */
    conn_kill(conn);
}

static void on_deadline(evutil_socket_t fd, short what, void *user)
{
    qr_http_conn *conn = user;
    (void)fd;
    (void)what;
    if (conn->state == CONN_HEAD && conn->head_started)
        conn_refuse_status(conn, 408, "the request's head took too long");
    else if (conn->state == CONN_BODY)
        conn_refuse_status(conn, 408, "the request's body took too long");
    else
        conn_kill(conn);
}

/* ---- The close watch -------------------------------------------------------------------------------
 * While a reply is made, reads are off, yet a client that leaves must be seen at once. libevent's EV_CLOSED would
 * do for a close; for a reset, its epoll backend wakes only readers and writers, and with neither the loop spins.
 * So each connection is also in an epoll set of our own, edge-triggered, whose descriptor is one read event. */

static void on_watch(evutil_socket_t fd, short what, void *user)
{
    qr_http *http = user;
    struct epoll_event event;
    (void)what;
    while (epoll_wait(fd, &event, 1, 0) == 1) {
        for (qr_list *node = http->conns.next; node != &http->conns; node = node->next) {
            qr_http_conn *conn = QR_LIST_ITEM(node, qr_http_conn, node);
            if (conn->serial != event.data.u64)
                continue;
            conn->peer_closed = true;
            if (conn->state == CONN_BUSY)
                conn_kill(conn);
            break;
        }
    }
}

static void watch_add(qr_http_conn *conn, int fd)
{
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.u64 = conn->serial};
    if (epoll_ctl(conn->http->watch_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        qr_log(QR_LOG_WARN, "http_watch", "errno=%d", errno);
}

/* ---- Accepting ------------------------------------------------------------------------------------- */

/* A peer behind a cut network sends nothing, not even a close, and what is written to it goes into the kernel's buffer:
 * its requests would run to their end. Unanswered data ends the connection by TCP_USER_TIMEOUT, a silent one by
 * probes. Sockets that are not TCP refuse all of it, and need none. */
static void set_socket_options(int fd, int32_t peer_timeout_ms)
{
    const int probes = 3, on = 1, every_s = QR_MAX(1, peer_timeout_ms / 1000 / (probes + 1));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &peer_timeout_ms, sizeof(peer_timeout_ms));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &every_s, sizeof(every_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

static void conn_new(qr_http *http, int fd, uint64_t peer)
{
    qr_http_conn *conn = qr_calloc(1, sizeof(*conn));
    conn->http = http;
    conn->peer = peer;
    conn->serial = ++http->serial;
    conn->bev = bufferevent_socket_new(http->base, fd, BEV_OPT_CLOSE_ON_FREE);
    conn->deadline = evtimer_new(http->base, on_deadline, conn);
    QR_ASSERT(conn->bev != NULL && conn->deadline != NULL);
    set_socket_options(fd, http->options->peer_timeout_ms);
    struct timeval write_timeout = from_ms(http->options->write_timeout_ms);
    bufferevent_set_timeouts(conn->bev, NULL, &write_timeout);
    bufferevent_setwatermark(conn->bev, EV_READ, 0, READ_BYTES_MAX);
    bufferevent_set_max_single_read(conn->bev, READ_BYTES_MAX);
    bufferevent_set_max_single_write(conn->bev, 4 * READ_BYTES_MAX);
    bufferevent_setcb(conn->bev, on_read, on_written, on_event, conn);
    qr_list_init(&conn->node);
    qr_list_push_back(&http->conns, &conn->node);
    http->conn_count++;
    watch_add(conn, fd);
    conn_enter(conn, CONN_HEAD);
    set_deadline(conn, http->options->header_timeout_ms); /* the first request has no idle time before it */
}

static void take(qr_http *http, int fd, const struct sockaddr *address)
{
    uint64_t peer = address != NULL ? qr_peer_key(address) : 0;
    int refuse = 0;
    if (http->conn_count >= (size_t)http->options->connections_max)
        refuse = 503;
    else if (!qr_peer_counts_add(&http->peers, peer, http->options->connections_per_address_max))
        refuse = 429;
    if (refuse != 0) {
        write_bare(fd, refuse);
        close(fd);
        qr_log(QR_LOG_WARN, "http_refused", "status=%d connections=%zu", refuse, http->conn_count);
        return;
    }
    conn_new(http, fd, peer);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int len,
                      void *user)
{
    (void)listener;
    (void)len;
    take(user, fd, address);
}

/* Out of descriptors: the backlog keeps the clients for a moment; trying again at once would spin. */
static void on_accept_error(struct evconnlistener *listener, void *user)
{
    qr_http *http = user;
    struct timeval pause = from_ms(100);
    qr_log(QR_LOG_WARN, "accept", "errno=%d", EVUTIL_SOCKET_ERROR());
    evconnlistener_disable(listener);
    event_add(http->accept_retry, &pause);
}

static void on_accept_retry(evutil_socket_t fd, short what, void *user)
{
    qr_http *http = user;
    (void)fd;
    (void)what;
    if (http->listener != NULL)
        evconnlistener_enable(http->listener);
}

/* ---- The server ------------------------------------------------------------------------------------ */

qr_http *qr_http_new(struct event_base *base, const qr_server_options *options, const qr_http_hooks *hooks)
{
    qr_http *http = qr_calloc(1, sizeof(*http));
    http->base = base;
    http->options = options;
    http->hooks = *hooks;
    parse_settings_init(&http->settings);
    qr_list_init(&http->conns);
    qr_list_init(&http->dead);
    qr_peer_counts_init(&http->peers);
    http->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    http->watch = event_new(base, http->watch_fd, EV_READ | EV_PERSIST, on_watch, http);
    http->reaper = event_new(base, -1, 0, on_reap, http);
    http->accept_retry = evtimer_new(base, on_accept_retry, http);
    QR_ASSERT(http->watch_fd >= 0 && http->watch != NULL && http->reaper != NULL &&
              http->accept_retry != NULL);
    event_add(http->watch, NULL);
    return http;
}

void qr_http_free(qr_http *http)
{
    if (http == NULL)
        return;
    if (http->listener != NULL)
        evconnlistener_free(http->listener);
    while (!qr_list_empty(&http->conns))
        conn_kill(QR_LIST_ITEM(http->conns.next, qr_http_conn, node));
    on_reap(-1, 0, http);
    event_free(http->watch);
    event_free(http->reaper);
    event_free(http->accept_retry);
    close(http->watch_fd);
    qr_peer_counts_release(&http->peers);
    qr_free(http);
}

qr_status qr_http_listen(qr_http *http, int fd, qr_error *err)
{
    http->listener = evconnlistener_new(http->base, on_accept, http,
                                        LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, LISTEN_BACKLOG, fd);
    if (http->listener == NULL)
        return qr_fail(err, QR_NETWORK, "server: cannot listen: %s", strerror(errno));
    evconnlistener_set_error_cb(http->listener, on_accept_error);
    return QR_OK;
}

void qr_http_adopt(qr_http *http, int fd)
{
    evutil_make_socket_nonblocking(fd);
    take(http, fd, NULL);
}

void qr_http_drain(qr_http *http)
{
    http->draining = true;
    if (http->listener != NULL)
        evconnlistener_free(http->listener);
    http->listener = NULL;
    for (qr_list *node = http->conns.next, *next; node != &http->conns; node = next) {
        qr_http_conn *conn = QR_LIST_ITEM(node, qr_http_conn, node);
        next = node->next;
        if (conn->state == CONN_HEAD && !conn->head_started)
            conn_kill(conn);
    }
}

size_t qr_http_connections(const qr_http *http) { return http->conn_count; }

const qr_http_request *qr_http_conn_request(const qr_http_conn *conn) { return &conn->request; }

void qr_http_conn_set_route(qr_http_conn *conn, int route) { conn->request.route = route; }

void qr_http_conn_set_id(qr_http_conn *conn, qr_str id)
{
    size_t len = QR_MIN(id.len, (size_t)QR_HTTP_ID_MAX);
    memcpy(conn->request.id, id.data, len);
    conn->request.id[len] = '\0';
}

void qr_http_conn_set_owner(qr_http_conn *conn, void *owner) { conn->owner = owner; }

void *qr_http_conn_owner(const qr_http_conn *conn) { return conn->owner; }

void qr_http_conn_drop_body(qr_http_conn *conn)
{
    conn->http->body_bytes -= conn->body_charged;
    conn->body_charged = 0;
    qr_buf_release(&conn->body);
    conn->request.body = qr_str_make("", 0);
}
