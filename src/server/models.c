/* /v1/models, /v1/models/NAME, /version. */
#include <stdio.h>
#include <string.h>

#include "server/state.h"

bool qr_server_serves_model(const qr_server *server, qr_str name)
{
    for (size_t i = 0; i < server->options.served_name_count; i++) {
        if (qr_str_equals(name, server->options.served_names[i]))
            return true;
    }
    return server->options.served_name_count == 0 && qr_str_equals(name, server->model_name);
}

static void append_model(const qr_server *server, const char *name, qr_buf *out)
{
    qr_buf_append_cstr(out, "{\"id\":");
    qr_json_append_string(out, qr_str_of(name));
    qr_buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"quire\",\"root\":",
                  (long long)server->started_unix_s);
    qr_json_append_string(
        out, qr_str_of(server->options.model_root != NULL ? server->options.model_root : server->model_name));
    qr_buf_printf(out, ",\"parent\":null,\"max_model_len\":%lld,\"permission\":[]}",
                  (long long)qr_engine_max_model_len(server->engine));
}

void qr_serve_models(qr_server *server, qr_http_conn *conn)
{
    qr_buf out = {0};
    qr_buf_append_cstr(&out, "{\"object\":\"list\",\"data\":[");
    append_model(server, server->model_name, &out);
    for (size_t i = 1; i < server->options.served_name_count; i++) {
        qr_buf_append_char(&out, ',');
        append_model(server, server->options.served_names[i], &out);
    }
    qr_buf_append_cstr(&out, "]}");
    qr_reply_json(conn, &out);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A client writes a name's slash as %2F. Only the name is decoded, after the route and the key were checked. */
static size_t decode_name(qr_str encoded, char *out, size_t out_max)
{
    size_t len = 0;
    for (size_t i = 0; i < encoded.len && len < out_max; i++) {
        int high = i + 2 < encoded.len ? hex_value(encoded.data[i + 1]) : -1;
        int low = i + 2 < encoded.len ? hex_value(encoded.data[i + 2]) : -1;
        if (encoded.data[i] == '%' && high >= 0 && low >= 0) {
            out[len++] = (char)(high << 4 | low);
            i += 2;
        } else {
            out[len++] = encoded.data[i];
        }
    }
    return len;
}

void qr_serve_model(qr_server *server, qr_http_conn *conn)
{
    char name[512];
    qr_str path = qr_http_conn_request(conn)->path;
    size_t skip = strlen("/v1/models/");
    size_t len = decode_name(qr_str_make(path.data + skip, path.len - skip), name, sizeof(name) - 1);
    name[len] = '\0';
    if (strlen(name) != len || !qr_server_serves_model(server, qr_str_make(name, len))) {
        qr_api_error error = {0};
        (void)qr_api_fail(&error, 404, "model_not_found", "model",
                          "that model is not served; /v1/models lists what is");
        qr_reply_error(conn, &error);
        return;
    }
    qr_buf out = {0};
    append_model(server, name, &out);
    qr_reply_json(conn, &out);
}

void qr_serve_version(qr_server *server, qr_http_conn *conn)
{
    qr_buf out = {0};
    qr_buf_printf(&out, "{\"version\":\"%s\",\"fingerprint\":", qr_version());
    qr_json_append_string(&out, qr_str_of(qr_model_fingerprint(server->model)));
    qr_buf_append_char(&out, '}');
    qr_reply_json(conn, &out);
}
