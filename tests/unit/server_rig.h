/* A running server over the fake engine, and a client made of bare sockets. */
#ifndef QR_TESTS_SERVER_RIG_H
#define QR_TESTS_SERVER_RIG_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "fake_engine.h"
#include "server/server.h"

typedef struct rig {
    qr_engine *engine;
    qr_model model;
    qr_server *server;
    pthread_t thread;
    qr_status result;
    bool joined;
} rig;

static void *rig_main(void *user)
{
    rig *r = user;
    r->result = qr_server_run(r->server, r->engine, &r->model, NULL);
    return NULL;
}

static void rig_options(qr_server_options *options)
{
    qr_server_options_init(options);
    options->port = 0;
    options->handle_signals = false;
    options->access_log = false;
    static const char *const names[] = {"fake", "org/alias"};
    options->served_names = names;
    options->served_name_count = 2;
    static const char *const hosts[] = {"*"};
    options->allowed_hosts = hosts;
    options->allowed_host_count = 1;
}

static void rig_start(rig *r, const qr_server_options *options)
{
    qr_error err = {0};
    *r = (rig){.engine = fake_engine_new()};
    if (qr_server_open(options, &r->server, &err) != QR_OK) {
        (void)fprintf(stderr, "%s\n", err.message);
        abort();
    }
    pthread_create(&r->thread, NULL, rig_main, r);
}

static qr_status rig_join(rig *r)
{
    if (!r->joined)
        pthread_join(r->thread, NULL);
    r->joined = true;
    return r->result;
}

static inline void rig_stop(rig *r)
{
    if (!r->joined) {
        qr_server_stop(r->server);
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        qr_server_stop(r->server);
    }
    rig_join(r);
    qr_server_close(r->server);
    fake_engine_free(r->engine);
}

static int rig_connect(const rig *r)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)qr_server_port(r->server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 400; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        close(fd);
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
    return -1;
}

static void rig_send(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        bytes += sent;
        len -= (size_t)sent;
    }
}

/* Reads until `until` has been seen, the peer closes, or ms have passed. */
static void rig_read(int fd, const char *until, int ms, qr_buf *out)
{
    uint64_t end = qr_clock_ns() + (uint64_t)ms * 1000000;
    char piece[65536];
    while (qr_clock_ns() < end && (until == NULL || out->data == NULL || strstr(out->data, until) == NULL)) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 20) <= 0)
            continue;
        ssize_t got = recv(fd, piece, sizeof(piece), 0);
        if (got <= 0)
            return;
        qr_buf_append(out, piece, (size_t)got);
    }
}

/* Sends bytes on a new connection and returns what came until the close (or 20 s); freed by the caller. */
static inline char *rig_raw(const rig *r, const char *bytes, size_t len)
{
    qr_buf out = {0};
    int fd = rig_connect(r);
    rig_send(fd, bytes, len);
    rig_read(fd, NULL, 20000, &out);
    close(fd);
    return out.data != NULL ? out.data : strdup("");
}

static inline char *rig_request(const rig *r, const char *method, const char *path, const char *headers,
                                const char *body)
{
    qr_buf text = {0};
    qr_buf_printf(&text, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s", method, path, headers);
    if (body != NULL)
        qr_buf_printf(&text, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body),
                      body);
    else
        qr_buf_append_cstr(&text, "\r\n");
    char *reply = rig_raw(r, text.data, text.len);
    qr_buf_release(&text);
    return reply;
}

static inline int rig_status(const char *reply)
{
    return strncmp(reply, "HTTP/1.1 ", 9) == 0 ? atoi(reply + 9) : -1;
}

static inline const char *rig_body(const char *reply)
{
    const char *at = strstr(reply, "\r\n\r\n");
    return at != NULL ? at + 4 : "";
}

/* The payload of a chunked body, joined. */
static inline char *rig_dechunk(const char *body)
{
    qr_buf out = {0};
    for (;;) {
        char *end;
        unsigned long size = strtoul(body, &end, 16);
        if (end == body || size == 0 || strncmp(end, "\r\n", 2) != 0 || strlen(end + 2) < size)
            break;
        qr_buf_append(&out, end + 2, size);
        body = end + 2 + size + 2;
    }
    return out.data != NULL ? out.data : strdup("");
}

/* Waits until the engine holds no request. */
static inline bool rig_idle(rig *r, int ms)
{
    for (int i = 0; i < ms; i++) {
        if (fake_live(r->engine) == 0)
            return true;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return false;
}

#endif
