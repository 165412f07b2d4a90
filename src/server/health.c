/* /health and /ping: does the engine make progress? /health_generate: does a token come out at the other end? */
#include <event2/event.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/state.h"

void qr_serve_health(qr_server *server, qr_http_conn *conn)
{
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(server->engine, &stats);
    qr_api_error error = {0};
    if (stats.device_failed)
        (void)qr_api_fail(&error, 503, "unhealthy", NULL, "the engine's device failed");
    else if (!stats.healthy)
        (void)qr_api_fail(&error, 503, "unhealthy", NULL, "the engine has work and makes no progress");
    else if (stats.draining || server->stops_seen > 0)
        (void)qr_api_fail(&error, 503, "server_shutting_down", NULL, "the server is shutting down");
    if (error.http != 0) {
        qr_reply_error(conn, &error);
        return;
    }
    qr_http_reply(conn, 200, "application/json", QR_STR("{\"status\":\"ok\"}"));
}

/* One probe at a time however many ask: the route needs no key, so it must not multiply work. */
typedef struct qr_health_probe {
    qr_owner owner; /* QR_OWNER_PROBE */
    qr_request *request;
    struct event *timeout;
} qr_health_probe;

typedef struct health_waiter {
    qr_owner owner; /* QR_OWNER_HEALTH_WAITER */
    qr_list node;
    qr_http_conn *conn;
} health_waiter;

static void answer(qr_server *server, const char *failure)
{
    while (!qr_list_empty(&server->health_waiters)) {
        health_waiter *waiter = QR_LIST_ITEM(server->health_waiters.next, health_waiter, node);
        qr_api_error error = {0};
        qr_list_remove(&waiter->node);
        if (failure != NULL) {
            (void)qr_api_fail(&error, 503, "unhealthy", NULL, "no token came out of the engine: %s", failure);
            qr_reply_error(waiter->conn, &error);
        } else {
            qr_http_reply(waiter->conn, 200, "application/json", QR_STR("{\"status\":\"ok\"}"));
        }
        qr_free(waiter);
    }
}

static void probe_end(qr_server *server)
{
    qr_health_probe *probe = server->probe;
    if (probe == NULL)
        return;
    server->probe = NULL;
    if (probe->request != NULL)
        qr_request_release(probe->request);
    event_free(probe->timeout);
    qr_free(probe);
}

static void on_timeout(evutil_socket_t fd, short what, void *user)
{
    qr_server *server = user;
    (void)fd;
    (void)what;
    qr_log(QR_LOG_ERROR, "health_generate", "result=timeout");
    probe_end(server);
    answer(server, "the time for it is over");
}

void qr_health_event(qr_server *server, const qr_event *event)
{
    if (event->finish == QR_FINISH_NONE || server->probe == NULL || event->user != server->probe)
        return;
    bool fine = event->finish == QR_FINISH_LENGTH || event->finish == QR_FINISH_STOP;
    answer(server, fine ? NULL : event->message != NULL ? event->message : "it was cancelled");
    probe_end(server);
}

static void probe_begin(qr_server *server)
{
    qr_health_probe *probe = qr_calloc(1, sizeof(*probe));
    probe->owner.kind = QR_OWNER_PROBE;
    probe->timeout = evtimer_new(server->base, on_timeout, server);
    server->probe = probe;
    int32_t token = server->tokenizer != NULL ? qr_tokenizer_bos(server->tokenizer) : 0;
    token = token >= 0 ? token : 0;
    qr_request_options options;
    qr_request_options_init(&options);
    options.token_ids = &token;
    options.token_count = 1;
    options.sampling.max_tokens = 1;
    options.sampling.temperature = 0;
    options.sampling.detokenize = false;
    options.request_id = "health";
    options.user = probe;
    qr_error err = {0};
    qr_status status = qr_request_submit(server->engine, server->poller, &options, &probe->request, &err);
    if (status == QR_OK) {
        int32_t ms = server->options.health_generate_timeout_ms;
        struct timeval tv = {ms / 1000, (ms % 1000) * 1000};
        event_add(probe->timeout, &tv);
        return;
    }
    /* A full queue is no illness while steps go on: a prober that restarted the server would make it worse. */
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(server->engine, &stats);
    answer(server, status == QR_BUSY && stats.healthy ? NULL : err.message);
    probe_end(server);
}

void qr_serve_health_generate(qr_server *server, qr_http_conn *conn)
{
    health_waiter *waiter = qr_calloc(1, sizeof(*waiter));
    waiter->owner.kind = QR_OWNER_HEALTH_WAITER;
    waiter->conn = conn;
    qr_list_push_back(&server->health_waiters, &waiter->node);
    qr_http_conn_set_owner(conn, waiter);
    if (server->probe == NULL)
        probe_begin(server);
}

void qr_health_waiter_gone(qr_server *server, void *owner)
{
    health_waiter *waiter = owner;
    (void)server;
    qr_list_remove(&waiter->node);
    qr_free(waiter);
}

void qr_health_release(qr_server *server) { probe_end(server); }
