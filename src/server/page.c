/* The chat page: web/ as the build embedded it, under a policy that lets it load nothing from elsewhere. */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "server/state.h"
#include "server/web_assets.h"

static const qr_web_asset *asset_find(qr_str name)
{
    for (size_t i = 0; i < qr_web_asset_count; i++) {
        if (qr_str_equals(name, qr_web_assets[i].name))
            return &qr_web_assets[i];
    }
    return NULL;
}

void qr_serve_page(qr_server *server, qr_http_conn *conn)
{
    const qr_http_request *request = qr_http_conn_request(conn);
    qr_str name = request->path.len == 1 ? QR_STR("index.html")
                                         : qr_str_make(request->path.data + 1, request->path.len - 1);
    const qr_web_asset *asset = asset_find(name);
    (void)server;
    if (asset == NULL) {
        qr_api_error error = {0};
        (void)qr_api_fail(&error, 404, "not_found", NULL, "this build has no chat page");
        qr_reply_error(conn, &error);
        return;
    }
    char tag[24];
    (void)snprintf(tag, sizeof(tag), "\"%016llx\"",
                   (unsigned long long)qr_hash64(asset->data, asset->bytes, 0));
    qr_http_conn_add_header(
        conn,
        "ETag: %s\r\nCache-Control: no-cache\r\nReferrer-Policy: no-referrer\r\n"
        "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'\r\n",
        tag);
    if (qr_str_equals(request->headers[QR_HEADER_IF_NONE_MATCH], tag)) {
        qr_http_reply(conn, 304, NULL, qr_str_make("", 0));
        return;
    }
    qr_http_reply(conn, 200, asset->content_type, qr_str_make((const char *)asset->data, asset->bytes));
}
