// links: qr_server qr_text
/* HTTP itself: framing, limits, deadlines, keys, closes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "server/hosts.h"
#include "server_rig.h"

#define CHAT "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"
#define LONG "{\"model\":\"fake\",\"prompt\":\"hi\",\"max_tokens\":500,\"ignore_eos\":true,\"stream\":%s}"

static void expect_status(const rig *r, const char *raw, int status)
{
    char *reply = rig_raw(r, raw, strlen(raw));
    if (rig_status(reply) != status)
        print_error("wanted %d for %.60s, got %.300s\n", status, raw, reply);
    assert_int_equal(rig_status(reply), status);
    free(reply);
}

static size_t count_of(const char *text, const char *what)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at++)
        count++;
    return count;
}

static void pipelined_requests_are_answered_in_order_on_one_connection(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    rig_start(&r, &options);
    static const char two[] =
        "GET /version HTTP/1.1\r\nHost: x\r\n\r\nPOST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/json\r\nContent-Length: 60\r\n\r\n" CHAT
        "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_int_equal(strlen(CHAT), 60);
    char *reply = rig_raw(&r, two, strlen(two));
    const char *version = strstr(reply, "{\"version\""), *chat = strstr(reply, "chat.completion"),
               *missing = strstr(reply, " 404 ");
    assert_non_null(version);
    assert_non_null(chat);
    assert_non_null(missing);
    assert_true(version < chat && chat < missing);
    assert_int_equal(count_of(reply, "Connection: close"), 1);
    free(reply);
    rig_stop(&r);
    (void)state;
}

static void a_request_cut_anywhere_is_the_same_request(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    rig_start(&r, &options);
    static const char text[] =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n14\r\n{\"prompt\":\"hi\",\"max_\r\n0d;ext=1\r\ntokens\":   "
        "4}\r\n0\r\nX-T: 1\r\n\r\n";
    for (size_t cut = 1; cut < strlen(text); cut += 7) {
        qr_buf out = {0};
        int fd = rig_connect(&r), on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        rig_send(fd, text, cut);
        nanosleep(&(struct timespec){0, 2000000}, NULL);
        rig_send(fd, text + cut, strlen(text) - cut);
        rig_read(fd, NULL, 2000, &out);
        close(fd);
        assert_int_equal(rig_status(out.data), 200);
        assert_non_null(strstr(out.data, "\"text\":\"Once\""));
        qr_buf_release(&out);
    }
    rig_stop(&r);
    (void)state;
}

static void what_is_not_sound_http_is_refused(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.header_bytes_max = 2048;
    options.body_bytes_max = 4096;
    rig_start(&r, &options);
    expect_status(&r, "hello\r\n\r\n", 400);
    expect_status(&r, "GET / HTTP/1.1\r\n\r\n", 400); /* no Host */
    expect_status(&r, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400);
    expect_status(&r, "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
    expect_status(&r, "GET nothing HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    expect_status(&r, "GET /health\nHost: a\n\n", 400);
    expect_status(
        &r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        400);
    expect_status(&r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
                  400);
    expect_status(&r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n", 400);
    expect_status(&r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                  400);
    expect_status(&r,
                  "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
                  "4097\r\n\r\n",
                  413);
    expect_status(
        &r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
        415);
    expect_status(&r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", 415);
    expect_status(&r,
                  "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Encoding: "
                  "gzip\r\nContent-Length: 2\r\n\r\n{}",
                  415);
    expect_status(&r, "POST /tokenize HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n{}",
                  417);
    expect_status(&r, "DELETE /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405);
    expect_status(&r, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400);
    qr_buf many = {0};
    qr_buf_append_cstr(&many, "GET /health HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < 101; i++)
        qr_buf_append_cstr(&many, "A: b\r\n");
    qr_buf_append_cstr(&many, "\r\n");
    expect_status(&r, many.data, 431);
    qr_buf_clear(&many);
    qr_buf_printf(&many, "GET /health HTTP/1.1\r\nHost: a\r\nLong: %02000d", 0);
    qr_buf_printf(&many, "%02000d\r\n\r\n", 0);
    expect_status(&r, many.data, 431);
    qr_buf_clear(&many);
    qr_buf_append_cstr(&many, "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: "
                              "application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; i++)
        qr_buf_printf(&many, "7d0\r\n%02000d\r\n", 0);
    expect_status(&r, many.data, 413);
    qr_buf_release(&many);
    rig_stop(&r);
    (void)state;
}

static void every_route_but_health_needs_the_key_however_it_is_spelled(void **state)
{
    rig r;
    qr_server_options options;
    static const char *const keys[] = {"first-key", "s3cret"};
    rig_options(&options);
    options.api_keys = keys;
    options.api_key_count = 2;
    rig_start(&r, &options);
    static const char *const guarded[] = {"/v1/models",
                                          "/version",
                                          "/metrics",
                                          "/",
                                          "/app.js",
                                          "/nothing",
                                          "//v1/models",
                                          "/v1/../health",
                                          "/health/../v1/models",
                                          "/health%2f..%2fv1/models",
                                          "/%2e/v1/models",
                                          "/health/",
                                          "/HEALTH",
                                          "/health;x",
                                          "http://x/v1/models",
                                          "http://health/v1/models",
                                          "/v1/models?/health",
                                          "/v1/models/x"};
    for (size_t i = 0; i < sizeof(guarded) / sizeof(guarded[0]); i++) {
        char *reply = rig_request(&r, "GET", guarded[i], "", NULL);
        assert_int_equal(rig_status(reply), 401);
        assert_non_null(strstr(reply, "WWW-Authenticate: "));
        free(reply);
    }
    static const struct {
        const char *method, *path, *header;
        int status;
    } cases[] = {
        {"GET", "/health", "", 200},
        {"GET", "/health?x=1", "", 200},
        {"GET", "http://x/health", "", 200},
        {"GET", "/ping", "", 200},
        {"GET", "/health_generate", "", 200},
        {"GET", "/v1/models", "Authorization: Bearer s3cret\r\n", 200},
        {"GET", "/v1/models", "authorization: bearer first-key \r\n", 200},
        {"GET", "/v1/models", "Authorization: Bearer s3cre\r\n", 401},
        {"GET", "/v1/models", "Authorization: Bearer s3cret2\r\n", 401},
        {"GET", "/v1/models", "Authorization: Bearer \r\n", 401},
        {"GET", "/v1/models", "Authorization: s3cret\r\n", 401},
        {"GET", "/version", "Authorization: Basic dXNlcjpzM2NyZXQ=\r\n", 200},
        {"GET", "/version", "Authorization: Basic dXNlcjpzM2NyZXQhIQ==\r\n", 401},
        {"GET", "/version", "Authorization: Basic !!!\r\n", 401},
        {"GET", "//v1/models", "Authorization: Bearer s3cret\r\n", 404},
        {"OPTIONS", "/v1/models", "", 401},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *reply = rig_request(&r, cases[i].method, cases[i].path, cases[i].header, NULL);
        if (rig_status(reply) != cases[i].status)
            print_error("%s %s: %.100s\n", cases[i].path, cases[i].header, reply);
        assert_int_equal(rig_status(reply), cases[i].status);
        free(reply);
    }
    rig_stop(&r);
    (void)state;
}

static void a_wrong_key_is_answered_before_the_body_arrives(void **state)
{
    rig r;
    qr_server_options options;
    static const char *const keys[] = {"k"};
    rig_options(&options);
    options.api_keys = keys;
    options.api_key_count = 1;
    rig_start(&r, &options);
    expect_status(&r,
                  "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                  "application/json\r\nContent-Length: 1000000\r\n\r\n",
                  401);
    rig_stop(&r);
    (void)state;
}

static void expect_100_continue_is_met_before_the_body_is_sent(void **state)
{
    rig r;
    qr_server_options options;
    qr_buf out = {0};
    rig_options(&options);
    rig_start(&r, &options);
    int fd = rig_connect(&r);
    static const char head[] = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nExpect: "
                               "100-continue\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n";
    rig_send(fd, head, strlen(head));
    rig_read(fd, "\r\n\r\n", 2000, &out);
    assert_string_equal(out.data, "HTTP/1.1 100 Continue\r\n\r\n");
    rig_send(fd, CHAT, 60);
    rig_read(fd, "}]", 2000, &out);
    assert_non_null(strstr(out.data, "HTTP/1.1 200 OK"));
    close(fd);
    qr_buf_release(&out);
    rig_stop(&r);
    (void)state;
}

static void head_gives_the_length_and_no_body(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    rig_start(&r, &options);
    char *get = rig_request(&r, "GET", "/version", "", NULL),
         *head = rig_request(&r, "HEAD", "/version", "", NULL);
    char wanted[64];
    (void)snprintf(wanted, sizeof(wanted), "Content-Length: %zu\r\n", strlen(rig_body(get)));
    assert_non_null(strstr(head, wanted));
    assert_string_equal(rig_body(head), "");
    free(get);
    free(head);
    rig_stop(&r);
    (void)state;
}

static void slow_heads_and_bodies_meet_absolute_deadlines(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.header_timeout_ms = 150;
    options.body_timeout_ms = 150;
    rig_start(&r, &options);
    static const char *const starts[] = {"GET /health HTTP/1.1\r\nA: ",
                                         "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: "
                                         "application/json\r\nContent-Length: 500\r\n\r\n{"};
    for (int i = 0; i < 2; i++) {
        qr_buf out = {0};
        int fd = rig_connect(&r);
        uint64_t begun = qr_clock_ns();
        rig_send(fd, starts[i], strlen(starts[i]));
        for (int drip = 0; drip < 40 && out.len == 0;
             drip++) { /* a byte now and then does not move the deadline */
            rig_send(fd, "a", 1);
            rig_read(fd, "HTTP", 20, &out);
        }
        assert_true(qr_clock_ns() - begun < 1500 * UINT64_C(1000000));
        assert_int_equal(rig_status(out.data), 408);
        close(fd);
        qr_buf_release(&out);
    }
    rig_stop(&r);
    (void)state;
}

/* mode 0: close, 1: half-close, 2: reset. */
static void leave(int fd, int mode)
{
    struct linger hard = {1, 0};
    if (mode == 1) {
        (void)shutdown(fd, SHUT_WR);
        return;
    }
    if (mode == 2)
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close(fd);
}

static void a_client_that_leaves_cancels_at_every_stage(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    rig_start(&r, &options);
    r.engine->step_us = 20000;
    for (int round = 0; round < 12; round++) {
        bool stream = (round / 3) % 2 == 1, stuck = round >= 6;
        char body[256], text[512];
        r.engine->stuck = stuck; /* as a request that waits in the queue */
        (void)snprintf(body, sizeof(body), LONG, stream ? "true" : "false");
        int len = snprintf(text, sizeof(text),
                           "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                           "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                           strlen(body), body);
        int fd = rig_connect(&r);
        rig_send(fd, text, (size_t)len);
        for (int i = 0; i < 500 && fake_live(r.engine) == 0; i++)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        assert_int_equal(fake_live(r.engine), 1);
        leave(fd, round % 3);
        if (!rig_idle(&r, 1000))
            print_error("round %d: still running\n", round);
        assert_true(rig_idle(&r, 1));
        if (round % 3 == 1)
            close(fd);
    }
    r.engine->stuck = false;
    rig_stop(&r);
    (void)state;
}

static void bytes_that_arrive_during_a_reply_wait_and_do_not_grow_the_server(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    rig_start(&r, &options);
    r.engine->stuck = true;
    int fd = rig_connect(&r);
    char text[512], body[256];
    (void)snprintf(body, sizeof(body), LONG, "true");
    int len = snprintf(text, sizeof(text),
                       "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                       "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
    rig_send(fd, text, (size_t)len);
    char *flood = calloc(1, 1 << 20);
    size_t taken = 0;
    for (int i = 0; i < 64; i++) { /* the socket's buffers fill, the server takes nothing more */
        ssize_t sent = send(fd, flood, 1 << 20, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            nanosleep(&(struct timespec){0, 2000000}, NULL);
        taken += sent > 0 ? (size_t)sent : 0;
    }
    assert_true(taken < (size_t)24 << 20);
    leave(fd, 2);
    assert_true(rig_idle(&r, 1000));
    free(flood);
    rig_stop(&r);
    (void)state;
}

static void a_reader_that_stalls_is_given_up(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.write_timeout_ms = 200;
    options.stream_pending_bytes_max = 4096;
    rig_start(&r, &options);
    r.engine->step_us = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0), small = 1024;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)qr_server_port(r.server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    close(rig_connect(&r)); /* it listens */
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    /* enough output to overfill the sockets' buffers: many samples */
    const char *body =
        "{\"prompt\":\"hi\",\"max_tokens\":500,\"ignore_eos\":true,\"stream\":true,\"n\":128,\"logprobs\":3}";
    char text[512];
    int len = snprintf(text, sizeof(text),
                       "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                       "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
    rig_send(fd, text, (size_t)len);
    for (int i = 0; i < 1000 && r.engine->submitted == 0; i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    assert_true(rig_idle(&r, 5000));
    assert_true(r.engine->cancels >= 1);
    close(fd);
    rig_stop(&r);
    (void)state;
}

static void connections_are_capped_by_address_and_in_all(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.connections_per_address_max = 3;
    rig_start(&r, &options);
    int held[3];
    char *reply;
    for (int i = 0; i < 3; i++)
        held[i] = rig_connect(&r);
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    reply = rig_request(&r, "GET", "/health", "", NULL);
    assert_int_equal(rig_status(reply), 429);
    assert_non_null(strstr(reply, "Retry-After: "));
    free(reply);
    for (int i = 0; i < 3; i++)
        close(held[i]);
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    reply = rig_request(&r, "GET", "/health", "", NULL);
    assert_int_equal(rig_status(reply), 200);
    free(reply);
    rig_stop(&r);
    (void)state;
}

static void connections_in_all_are_capped_too(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.connections_max = 2;
    rig_start(&r, &options);
    int first = rig_connect(&r), second = rig_connect(&r);
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    char *reply = rig_request(&r, "GET", "/health", "", NULL);
    assert_int_equal(rig_status(reply), 503);
    assert_non_null(strstr(reply, "Retry-After: "));
    free(reply);
    close(first);
    close(second);
    rig_stop(&r);
    (void)state;
}

static void bodies_in_all_have_a_budget_that_is_given_back(void **state)
{
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.body_bytes_total_max = 5000;
    rig_start(&r, &options);
    static const char head[] =
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
        "Content-Length: 4000\r\n\r\n";
    char *part = calloc(1, 3001);
    memset(part, ' ', 3000);
    int held = rig_connect(&r);
    rig_send(held, head, strlen(head));
    rig_send(held, part, 3000);
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    expect_status(&r, head, 503);
    close(held); /* a body that never came whole gives its bytes back, too */
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    for (int i = 0; i < 3; i++) { /* and so does one that was served */
        qr_buf text = {0};
        qr_buf_append_cstr(&text, head);
        qr_buf_printf(&text, "{\"prompt\":\"ab\"%*s}", 4000 - 15, "");
        expect_status(&r, text.data, 200);
        qr_buf_release(&text);
    }
    free(part);
    rig_stop(&r);
    (void)state;
}

static void stop_lets_a_stream_finish_and_refuses_new_clients(void **state)
{
    rig r;
    qr_server_options options;
    qr_buf out = {0};
    char text[512];
    rig_options(&options);
    rig_start(&r, &options);
    r.engine->step_us = 4000;
    int fd = rig_connect(&r), idle = rig_connect(&r);
    const char *body = "{\"prompt\":\"hi\",\"max_tokens\":40,\"ignore_eos\":true,\"stream\":true}";
    int len = snprintf(text, sizeof(text),
                       "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                       "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
    rig_send(fd, text, (size_t)len);
    rig_read(fd, "data: ", 2000, &out);
    qr_server_stop(r.server);
    rig_read(fd, NULL, 3000, &out);
    assert_non_null(strstr(out.data, "data: [DONE]"));
    assert_non_null(strstr(out.data, "\"finish_reason\":\"length\""));
    assert_int_equal(rig_join(&r), QR_OK);
    close(fd);
    close(idle);
    qr_buf_release(&out);
    rig_stop(&r);
    (void)state;
}

static void what_outlasts_the_drain_is_cancelled(void **state)
{
    rig r;
    qr_server_options options;
    qr_buf out = {0};
    char text[512], body[256];
    rig_options(&options);
    options.drain_timeout_ms = 100;
    rig_start(&r, &options);
    r.engine->step_us = 20000;
    int fd = rig_connect(&r);
    (void)snprintf(body, sizeof(body), LONG, "true");
    int len = snprintf(text, sizeof(text),
                       "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                       "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
    rig_send(fd, text, (size_t)len);
    rig_read(fd, "data: ", 2000, &out);
    uint64_t begun = qr_clock_ns();
    qr_server_stop(r.server);
    rig_read(fd, NULL, 3000, &out);
    assert_non_null(strstr(out.data, "\"finish_reason\":\"abort\""));
    assert_int_equal(rig_join(&r), QR_OK);
    assert_true(qr_clock_ns() - begun < 3000 * UINT64_C(1000000));
    close(fd);
    qr_buf_release(&out);
    rig_stop(&r);
    (void)state;
}

static void cors_is_off_unless_an_origin_is_allowed(void **state)
{
    rig r;
    qr_server_options options;
    static const char *const origins[] = {"https://app.example"};
    static const char preflight[] = "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n";
    rig_options(&options);
    rig_start(&r, &options);
    char *reply = rig_request(&r, "OPTIONS", "/v1/chat/completions", preflight, NULL);
    assert_int_equal(rig_status(reply), 405);
    assert_null(strstr(reply, "Access-Control"));
    free(reply);
    reply = rig_request(&r, "POST", "/reset_prefix_cache", "Sec-Fetch-Site: cross-site\r\n", NULL);
    assert_int_equal(rig_status(reply), 403);
    free(reply);
    rig_stop(&r);
    options.allowed_origins = origins;
    options.allowed_origin_count = 1;
    rig_start(&r, &options);
    reply = rig_request(&r, "OPTIONS", "/v1/chat/completions", preflight, NULL);
    assert_int_equal(rig_status(reply), 204);
    assert_non_null(strstr(reply, "Access-Control-Allow-Origin: https://app.example\r\n"));
    free(reply);
    reply = rig_request(&r, "GET", "/version", "Origin: https://evil.example\r\n", NULL);
    assert_null(strstr(reply, "Access-Control"));
    free(reply);
    rig_stop(&r);
    (void)state;
}

static void a_taken_port_is_refused_by_name(void **state)
{
    rig r;
    qr_server_options options;
    qr_server *second = NULL;
    qr_error err = {0};
    rig_options(&options);
    rig_start(&r, &options);
    close(rig_connect(&r));
    options.port = qr_server_port(r.server);
    assert_int_equal(qr_server_open(&options, &second, &err), QR_NETWORK);
    assert_non_null(strstr(err.message, "127.0.0.1 port"));
    rig_stop(&r);
    (void)state;
}

static void options_out_of_range_are_named(void **state)
{
    qr_server_options options;
    qr_server *server = NULL;
    qr_error err = {0};
    rig_options(&options);
    options.header_count_max = -1;
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "header_count_max"));
    rig_options(&options);
    options.generation_config = "maybe";
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
    rig_options(&options);
    options.default_chat_template_kwargs = "{\"messages\":[]}";
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
    rig_options(&options);
    options.port = 65536;
    assert_int_equal(qr_server_open(&options, &server, &err), QR_INVALID_ARGUMENT);
    (void)state;
}

static void expect_host(const qr_server_options *options, const char *host, bool allowed)
{
    if (qr_host_allowed(options, qr_str_of(host)) != allowed)
        fail_msg("%s listening on %s: wanted %d", host, options->host, allowed);
}

static void a_host_that_dns_may_have_rebound_is_refused(void **state)
{
    static const char *const own[] = {"localhost",
                                      "LOCALHOST:8000",
                                      "localhost.:80",
                                      "a.localhost",
                                      "127.0.0.1:8000",
                                      "[::1]:8000",
                                      "192.168.1.7",
                                      "[fe80::1]",
                                      "host.docker.internal:8000",
                                      ""};
    static const char *const others[] = {"evil.example",
                                         "evil.example:8000",
                                         "localhost.evil.example",
                                         "127.0.0.1.evil.example",
                                         "[evil]",
                                         ":80",
                                         "[",
                                         "notlocalhost"};
    static const char *const listed[] = {"llm.example", ".inner.example"}, *const all[] = {"*"};
    qr_server_options options;
    (void)state;
    qr_server_options_init(&options);
    for (size_t i = 0; i < QR_COUNT_OF(own); i++)
        expect_host(&options, own[i], true);
    for (size_t i = 0; i < QR_COUNT_OF(others); i++)
        expect_host(&options, others[i], false);
    options.allowed_hosts = listed;
    options.allowed_host_count = 2;
    expect_host(&options, "LLM.example:443", true);
    expect_host(&options, "a.inner.example", true);
    expect_host(&options, "inner.example", true);
    expect_host(&options, "sub.llm.example", false);
    expect_host(&options, "xinner.example", false);
    options.host = "0.0.0.0"; /* a list counts wherever the server listens */
    expect_host(&options, "evil.example", false);
    options.allowed_hosts = all;
    options.allowed_host_count = 1;
    expect_host(&options, "evil.example", true);
    options.allowed_host_count = 0; /* who reaches it by the network calls it by any name */
    expect_host(&options, "evil.example", true);
    options.host = "::1";
    expect_host(&options, "evil.example", false);
    static const char *const key[] = {"k"};
    options.api_keys = key;
    options.api_key_count = 1;
    expect_host(&options, "evil.example", true);

    rig r;
    rig_options(&options);
    options.allowed_host_count = 0;
    rig_start(&r, &options);
    expect_status(&r, "GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403);
    expect_status(&r, "GET /health HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n", 200);
    expect_status(&r, "GET /health HTTP/1.0\r\n\r\n", 200);
    rig_stop(&r);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pipelined_requests_are_answered_in_order_on_one_connection),
        cmocka_unit_test(a_request_cut_anywhere_is_the_same_request),
        cmocka_unit_test(what_is_not_sound_http_is_refused),
        cmocka_unit_test(every_route_but_health_needs_the_key_however_it_is_spelled),
        cmocka_unit_test(a_wrong_key_is_answered_before_the_body_arrives),
        cmocka_unit_test(expect_100_continue_is_met_before_the_body_is_sent),
        cmocka_unit_test(head_gives_the_length_and_no_body),
        cmocka_unit_test(slow_heads_and_bodies_meet_absolute_deadlines),
        cmocka_unit_test(a_client_that_leaves_cancels_at_every_stage),
        cmocka_unit_test(bytes_that_arrive_during_a_reply_wait_and_do_not_grow_the_server),
        cmocka_unit_test(a_reader_that_stalls_is_given_up),
        cmocka_unit_test(connections_are_capped_by_address_and_in_all),
        cmocka_unit_test(connections_in_all_are_capped_too),
        cmocka_unit_test(bodies_in_all_have_a_budget_that_is_given_back),
        cmocka_unit_test(stop_lets_a_stream_finish_and_refuses_new_clients),
        cmocka_unit_test(what_outlasts_the_drain_is_cancelled),
        cmocka_unit_test(cors_is_off_unless_an_origin_is_allowed),
        cmocka_unit_test(a_taken_port_is_refused_by_name),
        cmocka_unit_test(options_out_of_range_are_named),
        cmocka_unit_test(a_host_that_dns_may_have_rebound_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
