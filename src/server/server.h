/* The HTTP server: OpenAI's API over one engine, and the chat page.
 *
 *     qr_server_options options;
 *     qr_server_options_init(&options);
 *     qr_server_open(&options, &server, &err);         // checks the options, takes the port: before a long load
 *     qr_server_run(server, engine, model, &err);      // listens and serves until stopped and drained
 *     qr_server_close(server);
 *
 * Between open and run the port is bound but does not listen: clients are refused, not kept waiting.
 * One I/O thread: the caller of qr_server_run. A second, small thread tokenises for /tokenize.
 * Thread: open, run and close from one thread; qr_server_stop from any, and from signal handlers.
 */
#ifndef QR_SERVER_SERVER_H
#define QR_SERVER_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quire.h"

typedef struct qr_server qr_server;

/* 0 in a number means "the default" (see limits.c), so a zeroed field is safe. Strings are borrowed until
 * qr_server_close. */
typedef struct qr_server_options {
    const char *host;            /* default "127.0.0.1"; a name, an IPv4 or IPv6 address ("::" is all) */
    int port;                    /* default 8000; 0: any free one (qr_server_port says which) */
    bool sockets_only;           /* listens nowhere: serves what qr_server_adopt brings */
    const char *const *api_keys; /* any of these opens every route; none: no key is asked for */
    size_t api_key_count;
    const char *const *served_names; /* the first one is what responses say; none: "model" */
    size_t served_name_count;
    const char *model_root; /* "root" of /v1/models; NULL: the first served name */
    const char
        *generation_config; /* "auto" (default): the checkpoint's defaults apply; "vllm": they do not */
    const char *default_chat_template_kwargs; /* JSON object merged under each request's own, or NULL */
    const char *response_role;                /* default "assistant" */
    const char
        *tool_call_parser; /* how tool calls are read out of the text: a style of quire.h's output parsers,
                                   * "none", or "auto" (default): what the chat template shows */
    const char *reasoning_parser;  /* and reasoning; likewise */
    bool allow_special_in_content; /* Hugging Face's behaviour: text in messages may spell special tokens */
    const char *const *allowed_origins; /* CORS: exact origins, or "*"; none (default): CORS is off */
    size_t allowed_origin_count;
    const char *const *allowed_hosts; /* Host names that are served besides what hosts.h says; "*": all */
    size_t allowed_host_count;
    bool no_chat_page;   /* "/" is then 404 */
    bool handle_signals; /* default true: SIGTERM and SIGINT drain, a second one ends at once */
    bool access_log;     /* default true: a log line a request */
    /* Not 0: replies say they were created then, and leave out what differs between equal runs (cached_tokens). */
    int64_t created_unix_s;

    /* Limits, all enforced before memory is taken. */
    int32_t connections_max;             /* in all; 0: 1024 (and what the file limit allows) */
    int32_t connections_per_address_max; /* 0: 512 */
    size_t header_bytes_max;             /* of one request's head; 0: 32 KiB */
    int32_t header_count_max;            /* 0: 100 */
    size_t body_bytes_max;               /* of one request; 0: 16 MiB */
    size_t body_bytes_total_max;         /* of all bodies held at once; 0: 256 MiB */
    size_t stream_pending_bytes_max;     /* a stream whose reader lags by more is cancelled; 0: 1 MiB */
    int32_t prompts_max;                 /* prompts in one request; 0: 1024 */
    int32_t n_max;                       /* samples of one prompt; 0: 128 */
    int32_t stop_max;                    /* stop strings of one request; 0: 64 */

    /* Deadlines in milliseconds; header and body ones are absolute. 0: the default. */
    int32_t header_timeout_ms; /* from the first byte (or the accept) to the end of the head; 10 s */
    int32_t body_timeout_ms;   /* from there to the end of the body; 60 s */
    int32_t idle_timeout_ms;   /* between requests on one connection; 75 s */
    int32_t write_timeout_ms;  /* a reader that takes no byte for this long is gone; 30 s */
    int32_t peer_timeout_ms; /* a peer that acknowledges nothing for this long is gone: a cut network; 20 s */
    int32_t health_generate_timeout_ms; /* 20 s */
    int32_t drain_timeout_ms;           /* after stop: what still runs then is cancelled; 30 s; -1: at once */
    int32_t stats_interval_ms;          /* of the throughput line; 10 s; -1: off */

    /* Called once listening, from qr_server_run; may be NULL. */
    void (*on_ready)(void *user, const char *host, int port);
    void *on_ready_user;
} qr_server_options;
void qr_server_options_init(qr_server_options *options);

/* Errors: QR_INVALID_ARGUMENT names the option, QR_NETWORK with host, port and the system's reason. */
qr_status qr_server_open(const qr_server_options *options, qr_server **out, qr_error *err);
int qr_server_port(const qr_server *server);
/* Returns QR_OK after a drain, QR_DEVICE_FAILED when the engine's device failed. */
qr_status qr_server_run(qr_server *server, qr_engine *engine, qr_model *model, qr_error *err);
/* Serves one connected stream socket, as if it had been accepted. In the thread of qr_server_run: from on_ready. */
void qr_server_adopt(qr_server *server, int fd);
/* First call: stop accepting, let requests finish, then qr_server_run returns. Second: at once.
 * Async-signal-safe. */
void qr_server_stop(qr_server *server);
void qr_server_close(qr_server *server); /* NULL is allowed */

#endif
