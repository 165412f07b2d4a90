// links: qr_server qr_engine
/* What a client may send. The first byte chooses: C a chat body, P a completion body, H raw bytes on a connection. */
#include <event2/event.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "server/http.h"
#include "server/limits.h"
#include "server/openai_common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse_body(qr_api_kind kind, qr_str body)
{
    static const qr_api_limits limits = {
        .vocab_size = 300, .n_max = 8, .prompts_max = 16, .stop_max = 4, .sequences_max = 64};
    qr_api_params params;
    qr_api_error error = {0};
    qr_buf out = {0};
    qr_api_params_init(&params, kind, NULL);
    if (qr_api_params_parse(&params, body, &limits, &error)) {
        if (kind == QR_API_CHAT)
            qr_api_chat_json(&params, NULL, false, qr_str_make(NULL, 0), &out);
    } else {
        qr_api_error_append(&error, &out);
        qr_json *parsed = NULL;
        /* whatever came in, an error goes out as JSON */
        if (qr_json_parse(qr_buf_str(&out), &qr_json_limits_request, &parsed, NULL) != QR_OK)
            __builtin_trap();
        qr_json_free(parsed);
    }
    qr_buf_release(&out);
    qr_api_params_release(&params);
}

static bool on_head(void *user, qr_http_conn *conn)
{
    (void)user;
    if (qr_http_conn_request(conn)->path.len % 5 != 4)
        return true;
    qr_http_refuse(conn, 404, "text/plain", QR_STR("no"));
    return false;
}

static void on_request(void *user, qr_http_conn *conn)
{
    qr_buf piece = {0};
    (void)user;
    if (qr_http_conn_request(conn)->path.len % 2 == 0) {
        qr_http_reply(conn, 200, "text/plain", qr_http_conn_request(conn)->body);
        return;
    }
    qr_http_stream_begin(conn, "text/plain");
    qr_buf_append(&piece, "0123456789a piece", 17);
    if (qr_http_stream_write(conn, &piece))
        qr_http_stream_end(conn);
    qr_buf_release(&piece);
}

static void on_gone(void *user, qr_http_conn *conn)
{
    (void)user;
    (void)conn;
}

static void on_finished(void *user, qr_http_conn *conn, int status, size_t bytes)
{
    (void)user;
    (void)conn;
    (void)status;
    (void)bytes;
}

static void read_bytes(const uint8_t *data, size_t size)
{
    const qr_http_hooks hooks = {
        .head = on_head, .request = on_request, .gone = on_gone, .finished = on_finished};
    qr_server_options options;
    int pair[2];
    qr_server_options_init(&options);
    options.header_bytes_max = 2048;
    options.body_bytes_max = 4096;
    if (qr_limits_fill(&options, NULL) != QR_OK || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return;
    struct event_base *base = event_base_new();
    qr_http *http = qr_http_new(base, &options, &hooks);
    qr_http_adopt(http, pair[0]);
    size_t cut = size > 0 ? data[0] % (size + 1) : 0; /* in two pieces */
    (void)!send(pair[1], data, cut, MSG_NOSIGNAL | MSG_DONTWAIT);
    event_base_loop(base, EVLOOP_NONBLOCK);
    (void)!send(pair[1], data + cut, size - cut, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (int i = 0; i < 6; i++)
        event_base_loop(base, EVLOOP_NONBLOCK);
    close(pair[1]);
    event_base_loop(base, EVLOOP_NONBLOCK);
    qr_http_free(http);
    event_base_free(base);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] == 'C')
        parse_body(QR_API_CHAT, qr_str_make((const char *)data + 1, size - 1));
    else if (data[0] == 'P')
        parse_body(QR_API_COMPLETION, qr_str_make((const char *)data + 1, size - 1));
    else if (data[0] == 'H')
        read_bytes(data + 1, size - 1);
    return 0;
}
