/* The server's life: socket, loop, signals, drain. */
#include "server/server.h"

#include <errno.h>
#include <event2/event.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/limits.h"
#include "server/answer.h"

#define SEQUENCES_MAX  4096 /* prompts x n of one request */
#define DRAIN_CHECK_MS 20
#define CANCEL_MS      2000 /* from cancelling what outlasted the drain to closing on it */

/* ---- Open ------------------------------------------------------------------------------------------ */

static int bind_one(const struct addrinfo *address)
{
    int on = 1, off = 0;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (address->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0)
        return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

static int bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &len) != 0)
        return 0;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)&address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)&address;
    return ntohs(address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

static qr_status bind_host(const char *host, int port, int *out, qr_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *addresses = NULL;
    char service[8];
    (void)snprintf(service, sizeof(service), "%d", port);
    int failed = getaddrinfo(host, service, &hints, &addresses);
    if (failed != 0)
        return qr_fail(err, QR_NETWORK, "server: host %s: %s", host, gai_strerror(failed));
    int fd = -1;
    for (const struct addrinfo *at = addresses; at != NULL && fd < 0; at = at->ai_next)
        fd = bind_one(at);
    int reason = errno;
    freeaddrinfo(addresses);
    if (fd < 0)
        return qr_fail(err, QR_NETWORK, "server: cannot bind %s port %d: %s", host, port, strerror(reason));
    *out = fd;
    return QR_OK;
}

static qr_status parse_default_kwargs(qr_server *server, qr_error *err)
{
    const char *text = server->options.default_chat_template_kwargs;
    if (text == NULL)
        return QR_OK;
    qr_api_error error = {0};
    qr_status status = qr_json_parse(qr_str_of(text), &qr_json_limits_request, &server->default_kwargs, err);
    if (status != QR_OK) {
        qr_error_prefix(err, "server: default_chat_template_kwargs");
        return status;
    }
    if (!qr_json_is(server->default_kwargs, QR_JSON_OBJECT))
        return qr_fail(err, QR_INVALID_ARGUMENT, "server: default_chat_template_kwargs: not a JSON object");
    if (!qr_api_check_kwargs(server->default_kwargs, &error))
        return qr_fail(err, QR_INVALID_ARGUMENT, "server: default_%.200s", error.message);
    return QR_OK;
}

qr_status qr_server_open(const qr_server_options *options, qr_server **out, qr_error *err)
{
    qr_server *server = qr_calloc(1, sizeof(*server));
    server->options = *options;
    server->listen_fd = server->stop_fd = -1;
    qr_list_init(&server->calls);
    qr_list_init(&server->dirty);
    qr_list_init(&server->ended);
    qr_list_init(&server->health_waiters);
    server->model_name = options->served_name_count > 0 ? options->served_names[0] : "model";
    qr_status status = qr_limits_fill(&server->options, err);
    if (status == QR_OK)
        status = parse_default_kwargs(server, err);
    if (status == QR_OK)
        status = qr_answer_styles(server, err);
    if (status == QR_OK && !options->sockets_only)
        status = bind_host(options->host, options->port, &server->listen_fd, err);
    if (status != QR_OK) {
        qr_server_close(server);
        return status;
    }
    qr_limits_fit_files(&server->options);
    server->port = server->listen_fd >= 0 ? bound_port(server->listen_fd) : -1;
    server->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    QR_ASSERT(server->stop_fd >= 0);
    *out = server;
    return QR_OK;
}

int qr_server_port(const qr_server *server) { return server->port; }
void qr_server_adopt(qr_server *server, int fd) { qr_http_adopt(server->http, fd); }

void qr_server_close(qr_server *server)
{
    if (server == NULL)
        return;
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    if (server->stop_fd >= 0)
        close(server->stop_fd);
    qr_json_free(server->default_kwargs);
    qr_free(server);
}

void qr_server_stop(qr_server *server)
{
    uint64_t one = 1;
    (void)!write(server->stop_fd, &one, sizeof(one));
}

/* ---- Stop and drain -------------------------------------------------------------------------------- */

static void set_timer(struct event *timer, int32_t ms)
{
    struct timeval tv = {ms / 1000, (ms % 1000) * 1000};
    event_add(timer, &tv);
}

static void on_drain_check(evutil_socket_t fd, short what, void *user)
{
    qr_server *server = user;
    uint64_t now = qr_clock_ns();
    (void)fd;
    (void)what;
    if (qr_http_connections(server->http) == 0) {
        event_base_loopbreak(server->base);
        return;
    }
    if (!server->cancelled && now >= server->drain_until_ns) {
        qr_log(QR_LOG_WARN, "drain", "result=timeout connections=%zu", qr_http_connections(server->http));
        server->cancelled = true;
        server->drain_until_ns = now + (uint64_t)CANCEL_MS * 1000000;
        qr_calls_cancel(server);
    } else if (server->cancelled && now >= server->drain_until_ns) {
        event_base_loopbreak(server->base);
        return;
    }
    set_timer(server->drain_timer, DRAIN_CHECK_MS);
}

static void stop(qr_server *server)
{
    server->stops_seen++;
    if (server->stops_seen > 1) {
        event_base_loopbreak(server->base);
        return;
    }
    int32_t ms = server->options.drain_timeout_ms;
    qr_log(QR_LOG_INFO, "drain", "connections=%zu timeout_ms=%d", qr_http_connections(server->http), ms);
    server->drain_until_ns = qr_clock_ns() + (ms > 0 ? (uint64_t)ms * 1000000 : 0);
    qr_http_drain(server->http);
    qr_engine_drain(server->engine);
    set_timer(server->drain_timer, 0);
}

static void on_stop(evutil_socket_t fd, short what, void *user)
{
    uint64_t times = 0;
    (void)what;
    if (read(fd, &times, sizeof(times)) != (ssize_t)sizeof(times))
        return;
    stop(user);
}

static void on_signal(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    stop(user);
}

/* ---- Run ------------------------------------------------------------------------------------------- */

static void on_poll(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    qr_call_events(user);
}

static void on_stats(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    qr_stats_line(user);
}

static void on_gone(void *user, qr_http_conn *conn)
{
    qr_owner *owner = qr_http_conn_owner(conn);
    if (owner == NULL)
        return;
    switch (owner->kind) {
    case QR_OWNER_CALL: qr_call_gone(user, owner); break;
    case QR_OWNER_TOKENIZE: qr_tokenize_gone(owner); break;
    case QR_OWNER_HEALTH_WAITER: qr_health_waiter_gone(user, owner); break;
    case QR_OWNER_PROBE: break;
    }
}

static void read_model(qr_server *server)
{
    uint8_t digest[32];
    char hex[65];
    qr_sha256 sha;
    const char *fingerprint = qr_model_fingerprint(server->model);
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, fingerprint != NULL ? fingerprint : "",
                     fingerprint != NULL ? strlen(fingerprint) : 0);
    qr_sha256_final(&sha, digest);
    qr_sha256_hex(digest, hex);
    (void)snprintf(server->fingerprint, sizeof(server->fingerprint), "quire-%.20s-%.8s", qr_version(), hex);
    server->tokenizer = qr_model_tokenizer(server->model);
    server->limits = (qr_api_limits){.vocab_size = qr_model_vocab_size(server->model),
                                     .n_max = server->options.n_max,
                                     .prompts_max = server->options.prompts_max,
                                     .stop_max = server->options.stop_max,
                                     .sequences_max = SEQUENCES_MAX};
    const char *config = qr_model_generation_config(server->model);
    qr_error err = {0};
    if (qr_answer_styles(server, &err) == QR_OK) /* the names were checked before the model was loaded */
        qr_log(QR_LOG_INFO, "answers", "reasoning=%s tools=%s", server->reasoning_style, server->tool_style);
    if (config == NULL || strcmp(server->options.generation_config, "auto") != 0)
        return;
    if (qr_json_parse(qr_str_of(config), &qr_json_limits_request, &server->generation_config, &err) != QR_OK)
        qr_log(QR_LOG_WARN, "generation_config", "ignored=\"%s\"", err.message);
}

static void loop_begin(qr_server *server)
{
    const qr_http_hooks hooks = {.user = server,
                                 .head = qr_routes_head,
                                 .request = qr_routes_request,
                                 .gone = on_gone,
                                 .finished = qr_routes_finished};
    struct event_config *config = event_config_new();
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    server->base = event_base_new_with_config(config);
    event_config_free(config);
    QR_ASSERT(server->base != NULL);
    server->http = qr_http_new(server->base, &server->options, &hooks);
    server->worker = qr_worker_new(server->base);
    server->stop_event = event_new(server->base, server->stop_fd, EV_READ | EV_PERSIST, on_stop, server);
    server->poll_event =
        event_new(server->base, qr_poller_fd(server->poller), EV_READ | EV_PERSIST, on_poll, server);
    server->stats_timer = event_new(server->base, -1, EV_PERSIST, on_stats, server);
    server->drain_timer = evtimer_new(server->base, on_drain_check, server);
    event_add(server->stop_event, NULL);
    event_add(server->poll_event, NULL);
    if (server->options.stats_interval_ms > 0)
        set_timer(server->stats_timer, server->options.stats_interval_ms);
    static const int signals[2] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2 && server->options.handle_signals; i++) {
        server->signal_events[i] = evsignal_new(server->base, signals[i], on_signal, server);
        event_add(server->signal_events[i], NULL);
    }
}

static void loop_end(qr_server *server)
{
    qr_http_free(server->http); /* ends what still runs: qr_call_gone */
    qr_worker_free(server->worker);
    qr_calls_release(server);
    qr_health_release(server);
    struct event *events[] = {server->stop_event,  server->poll_event,       server->stats_timer,
                              server->drain_timer, server->signal_events[0], server->signal_events[1]};
    for (size_t i = 0; i < QR_COUNT_OF(events); i++) {
        if (events[i] != NULL)
            event_free(events[i]);
    }
    event_base_free(server->base);
    server->base = NULL;
    server->http = NULL;
    qr_json_free(server->generation_config);
    server->generation_config = NULL;
}

qr_status qr_server_run(qr_server *server, qr_engine *engine, qr_model *model, qr_error *err)
{
    server->engine = engine;
    server->model = model;
    server->started_unix_s = qr_clock_unix_s();
    server->last_stats.size = sizeof(server->last_stats);
    server->last_stats_ns = qr_clock_ns();
    server->result = QR_OK;
    qr_status status = qr_poller_open(engine, &server->poller, err);
    if (status != QR_OK)
        return status;
    (void)signal(SIGPIPE, SIG_IGN); /* a client that left is an error of the write, not of the process */
    read_model(server);
    loop_begin(server);
    if (server->listen_fd >= 0)
        status = qr_http_listen(server->http, server->listen_fd, err);
    if (status == QR_OK) {
        server->listen_fd = -1;
        qr_log(QR_LOG_INFO, "listening", "host=%s port=%d model=\"%s\"", server->options.host, server->port,
               server->model_name);
        if (server->options.on_ready != NULL)
            server->options.on_ready(server->options.on_ready_user, server->options.host, server->port);
        event_base_dispatch(server->base);
        status = server->result;
        if (status != QR_OK)
            (void)qr_fail(err, status, "server: the engine's device failed");
    }
    loop_end(server);
    qr_poller_close(server->poller);
    server->poller = NULL;
    return status;
}
