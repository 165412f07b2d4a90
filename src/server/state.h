/* The server's own state, shared by its files: what qr_server.h hides. Thread: I/O, but for `stop_fd`. */
#ifndef QR_SERVER_STATE_H
#define QR_SERVER_STATE_H

#include "base/json.h"
#include "base/list.h"
#include "server/http.h"
#include "server/openai_common.h"
#include "server/server.h"

struct event;
struct event_base;
struct qr_worker;

/* What /metrics says of HTTP. Status classes 1xx..5xx; class 0: the client left before a reply. */
#define QR_HTTP_BUCKETS 12
typedef struct qr_route_counters {
    uint64_t requests[6];
    uint64_t seconds_buckets[QR_HTTP_BUCKETS + 1]; /* not cumulative; the last is the rest */
    double seconds_sum;
    uint64_t request_bytes, reply_bytes;
} qr_route_counters;

extern const double qr_http_seconds_bounds[QR_HTTP_BUCKETS];

#define QR_ROUTES_MAX 32

struct qr_server {
    qr_server_options options; /* filled */
    const char *model_name;    /* the first served name */
    int listen_fd;             /* -1 once http owns it */
    int port;
    int stop_fd;
    int stops_seen;
    struct event_base *base;
    struct event *stop_event, *poll_event, *signal_events[2], *stats_timer, *drain_timer;
    qr_http *http;
    struct qr_worker *worker;

    qr_engine *engine;
    qr_model *model;
    const qr_tokenizer *tokenizer; /* NULL: the checkpoint has none */
    qr_poller *poller;
    qr_json *generation_config;               /* NULL: vLLM's defaults */
    qr_json *default_kwargs;                  /* of the chat template, or NULL */
    const char *reasoning_style, *tool_style; /* of answers: "auto" is resolved */
    qr_api_limits limits;
    char fingerprint[48]; /* system_fingerprint */
    int64_t started_unix_s;

    qr_list calls; /* in flight */
    qr_list dirty; /* calls with bytes for their stream, within one poll */
    qr_list ended; /* calls to free once a poll's events are all seen */
    qr_list health_waiters;
    struct qr_health_probe *probe;

    qr_route_counters routes[QR_ROUTES_MAX + 1]; /* the last: no such route */
    qr_engine_stats last_stats;                  /* of the throughput line */
    uint64_t last_stats_ns;
    bool last_active;
    uint64_t drain_until_ns;
    bool cancelled; /* the drain's time is over */
    qr_status result;
};

/* What hangs on an event's `user` and on a connection's owner: its first member. */
typedef enum qr_owner_kind {
    QR_OWNER_CALL,
    QR_OWNER_PROBE,
    QR_OWNER_TOKENIZE,
    QR_OWNER_HEALTH_WAITER
} qr_owner_kind;
typedef struct qr_owner {
    qr_owner_kind kind;
} qr_owner;

/* ---- The handlers, one file each -------------------------------------------------------------------- */

void qr_serve_models(qr_server *server, qr_http_conn *conn); /* models.c */
void qr_serve_model(qr_server *server, qr_http_conn *conn);
void qr_serve_version(qr_server *server, qr_http_conn *conn);
void qr_serve_chat(qr_server *server, qr_http_conn *conn);        /* openai_chat.c */
void qr_serve_completions(qr_server *server, qr_http_conn *conn); /* openai_completions.c */
void qr_serve_tokenize(qr_server *server, qr_http_conn *conn);    /* tokenize.c */
void qr_serve_detokenize(qr_server *server, qr_http_conn *conn);
void qr_serve_apply_template(qr_server *server, qr_http_conn *conn);
void qr_serve_render_chat(qr_server *server, qr_http_conn *conn);
void qr_serve_render_completions(qr_server *server, qr_http_conn *conn);
void qr_serve_health(qr_server *server, qr_http_conn *conn); /* health.c */
void qr_serve_health_generate(qr_server *server, qr_http_conn *conn);
void qr_serve_metrics(qr_server *server, qr_http_conn *conn); /* prometheus.c */
void qr_serve_reset_prefix_cache(qr_server *server, qr_http_conn *conn);
void qr_serve_page(qr_server *server, qr_http_conn *conn); /* page.c */

/* routes.c: the hooks of http.h over a table of routes. */
bool qr_routes_head(void *server, qr_http_conn *conn);
void qr_routes_request(void *server, qr_http_conn *conn);
void qr_routes_finished(void *server, qr_http_conn *conn, int status, size_t reply_bytes);
const char *qr_route_path(size_t index); /* NULL past the end */
void qr_reply_error(qr_http_conn *conn, const qr_api_error *error);
void qr_reply_json(qr_http_conn *conn, qr_buf *json); /* 200; releases json */
bool qr_server_serves_model(const qr_server *server, qr_str name);

/* call.c: generation. */
void qr_call_events(qr_server *server);           /* all that the poller has */
void qr_call_gone(qr_server *server, void *call); /* the client left */
void qr_calls_cancel(qr_server *server);          /* the drain's time is over */
void qr_calls_release(qr_server *server);         /* once no connection is left */

/* health.c */
void qr_health_event(qr_server *server, const qr_event *event);
void qr_health_waiter_gone(qr_server *server, void *waiter);
void qr_health_release(qr_server *server);

/* stats.c: the throughput line. */
void qr_stats_line(qr_server *server);

/* worker.c: a thread for work that would hold up the I/O thread: long bodies, long replies, /tokenize. `run` is called on
 * the worker's thread, `done` afterwards on the I/O thread (also when the server ends). The job is its owner's memory
 * until `done`. */
typedef struct qr_job {
    void (*run)(struct qr_job *job);
    void (*done)(struct qr_job *job);
} qr_job;
struct qr_worker *qr_worker_new(struct event_base *base);
/* Ends the thread after the jobs it has; calls their `done`. NULL is allowed. */
void qr_worker_free(struct qr_worker *worker);
/* false: too many wait already. */
bool qr_worker_submit(struct qr_worker *worker, qr_job *job);
void qr_tokenize_gone(void *owner); /* tokenize.c: the client left */

#endif
