/* The routes, and what is asked of a request before its body is read. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "server/hosts.h"
#include "server/state.h"

#define METHOD_GET  1u
#define METHOD_POST 2u

enum {
    ROUTE_OPEN = 1,   /* no key: a probe that knows none must work */
    ROUTE_JSON = 2,   /* a JSON body */
    ROUTE_PREFIX = 4, /* path is a prefix */
    ROUTE_PAGE = 8,   /* seen by a person: a missing key asks the browser for it */
    ROUTE_QUIET = 16  /* polled: logged at debug level */
};

typedef struct route {
    const char *path;
    unsigned methods;
    unsigned flags;
    void (*serve)(qr_server *server, qr_http_conn *conn);
} route;

static const route routes[] = {
    {"/v1/models", METHOD_GET, 0, qr_serve_models},
    {"/v1/models/", METHOD_GET, ROUTE_PREFIX, qr_serve_model},
    {"/v1/completions", METHOD_POST, ROUTE_JSON, qr_serve_completions},
    {"/v1/chat/completions", METHOD_POST, ROUTE_JSON, qr_serve_chat},
    {"/tokenize", METHOD_POST, ROUTE_JSON, qr_serve_tokenize},
    {"/detokenize", METHOD_POST, ROUTE_JSON, qr_serve_detokenize},
    {"/apply-template", METHOD_POST, ROUTE_JSON, qr_serve_apply_template},
    {"/v1/chat/completions/render", METHOD_POST, ROUTE_JSON, qr_serve_render_chat},
    {"/v1/completions/render", METHOD_POST, ROUTE_JSON, qr_serve_render_completions},
    {"/health", METHOD_GET, ROUTE_OPEN | ROUTE_QUIET, qr_serve_health},
    {"/ping", METHOD_GET | METHOD_POST, ROUTE_OPEN | ROUTE_QUIET, qr_serve_health},
    {"/health_generate", METHOD_GET, ROUTE_OPEN | ROUTE_QUIET, qr_serve_health_generate},
    {"/version", METHOD_GET, 0, qr_serve_version},
    {"/metrics", METHOD_GET, ROUTE_QUIET, qr_serve_metrics},
    {"/reset_prefix_cache", METHOD_POST, 0, qr_serve_reset_prefix_cache},
    {"/", METHOD_GET, ROUTE_PAGE, qr_serve_page},
    {"/style.css", METHOD_GET, ROUTE_PAGE, qr_serve_page},
    {"/app.js", METHOD_GET, ROUTE_PAGE, qr_serve_page},
    {"/favicon.svg", METHOD_GET, ROUTE_PAGE, qr_serve_page},
};
_Static_assert(QR_COUNT_OF(routes) <= QR_ROUTES_MAX, "more routes than counters");

const char *qr_route_path(size_t index) { return index < QR_COUNT_OF(routes) ? routes[index].path : NULL; }

/* Byte for byte: nothing is decoded or normalised, so no spelling but the listed one reaches a handler. */
static int route_find(qr_str path)
{
    for (size_t i = 0; i < QR_COUNT_OF(routes); i++) {
        qr_str wanted = qr_str_of(routes[i].path);
        if ((routes[i].flags & ROUTE_PREFIX) != 0 ? path.len > wanted.len && qr_str_starts(path, wanted)
                                                  : qr_str_equal(path, wanted))
            return (int)i;
    }
    return -1;
}

/* ---- Replies --------------------------------------------------------------------------------------- */

void qr_reply_error(qr_http_conn *conn, const qr_api_error *error)
{
    qr_buf body = {0};
    qr_api_error_append(error, &body);
    if (error->http == 429 || error->http == 503)
        qr_http_conn_add_header(conn, "Retry-After: 1\r\n");
    /* 499 is no status that a client can see: whatever cancelled the request, the server did. */
    qr_http_reply(conn, error->http == 499 ? 503 : error->http, "application/json", qr_buf_str(&body));
    qr_buf_release(&body);
}

void qr_reply_json(qr_http_conn *conn, qr_buf *json)
{
    qr_http_reply(conn, 200, "application/json", qr_buf_str(json));
    qr_buf_release(json);
}

static bool refuse(qr_http_conn *conn, int http, const char *code, const char *message)
{
    qr_api_error error = {0};
    qr_buf body = {0};
    (void)qr_api_fail(&error, http, code, NULL, "%s", message);
    qr_api_error_append(&error, &body);
    qr_http_refuse(conn, http, "application/json", qr_buf_str(&body));
    qr_buf_release(&body);
    return false;
}

/* ---- At the end of the head ------------------------------------------------------------------------ */

static bool plain_id(qr_str id)
{
    if (id.len == 0 || id.len > QR_HTTP_ID_MAX)
        return false;
    for (size_t i = 0; i < id.len; i++) {
        unsigned char c = (unsigned char)id.data[i];
        if (c <= ' ' || c >= 0x7f || c == '"' || c == '\\')
            return false;
    }
    return true;
}

static void choose_id(qr_http_conn *conn, const qr_http_request *request)
{
    qr_str given = request->headers[QR_HEADER_X_REQUEST_ID];
    if (given.data != NULL && plain_id(given)) {
        qr_http_conn_set_id(conn, given);
        return;
    }
    char id[33];
    (void)snprintf(id, sizeof(id), "%016llx%016llx", (unsigned long long)qr_rng_system(),
                   (unsigned long long)qr_rng_system());
    qr_http_conn_set_id(conn, qr_str_of(id));
}

static const char *allowed_origin(const qr_server *server, qr_str origin)
{
    if (origin.data == NULL)
        return NULL;
    for (size_t i = 0; i < server->options.allowed_origin_count; i++) {
        const char *allowed = server->options.allowed_origins[i];
        if (strcmp(allowed, "*") == 0 || qr_str_equals(origin, allowed))
            return allowed;
    }
    return NULL;
}

/* true: the reply is complete (a preflight, which never carries a key). */
static bool handle_cors(qr_server *server, qr_http_conn *conn, const qr_http_request *request)
{
    const char *allowed = allowed_origin(server, request->headers[QR_HEADER_ORIGIN]);
    if (allowed == NULL)
        return false;
    qr_http_conn_add_header(conn,
                            "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n"
                            "Access-Control-Expose-Headers: X-Request-Id, X-Quire-Seed, Retry-After\r\n",
                            allowed);
    if (request->method != QR_HTTP_OPTIONS ||
        request->headers[QR_HEADER_ACCESS_CONTROL_REQUEST_METHOD].data == NULL)
        return false;
    qr_http_conn_add_header(conn,
                            "Access-Control-Allow-Methods: GET, POST, OPTIONS\r\n"
                            "Access-Control-Allow-Headers: Authorization, Content-Type, X-Request-Id\r\n"
                            "Access-Control-Max-Age: 600\r\n");
    qr_http_refuse(conn, 204, NULL, qr_str_make("", 0));
    return true;
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* The password of "Basic base64(user:password)", which is how a browser sends the key for the page. */
static qr_str basic_password(qr_str encoded, char *out, size_t out_max)
{
    size_t len = 0;
    uint32_t bits = 0;
    int held = 0;
    for (size_t i = 0; i < encoded.len && encoded.data[i] != '='; i++) {
        int value = base64_value(encoded.data[i]);
        if (value < 0 || len >= out_max)
            return qr_str_make("", 0);
        bits = (bits << 6 | (uint32_t)value) & 0xFFFFFF;
        held += 6;
        if (held >= 8) {
            held -= 8;
            out[len++] = (char)(bits >> held & 0xFF);
        }
    }
    const char *colon = memchr(out, ':', len);
    return colon != NULL ? qr_str_make(colon + 1, len - (size_t)(colon - out) - 1) : qr_str_make("", 0);
}

/* Every key is compared, each in constant time: neither which nor where it differs can be measured. */
static bool key_matches(const qr_server *server, qr_str key)
{
    int matches = 0;
    for (size_t i = 0; i < server->options.api_key_count; i++) {
        const char *wanted = server->options.api_keys[i];
        matches |= qr_equal_constant_time(key.data, key.len, wanted, strlen(wanted));
    }
    return matches != 0;
}

static bool authorised(const qr_server *server, const qr_http_request *request)
{
    char decoded[1024];
    qr_str given = request->headers[QR_HEADER_AUTHORIZATION];
    if (server->options.api_key_count == 0)
        return true;
    if (given.len > 7 && strncasecmp(given.data, "Bearer ", 7) == 0)
        return key_matches(server, qr_str_make(given.data + 7, given.len - 7));
    if (given.len > 6 && strncasecmp(given.data, "Basic ", 6) == 0)
        return key_matches(
            server, basic_password(qr_str_make(given.data + 6, given.len - 6), decoded, sizeof(decoded)));
    return false;
}

static bool check_method(qr_http_conn *conn, const qr_http_request *request, const route *found)
{
    bool fits = ((request->method == QR_HTTP_GET || request->method == QR_HTTP_HEAD) &&
                 (found->methods & METHOD_GET) != 0) ||
                (request->method == QR_HTTP_POST && (found->methods & METHOD_POST) != 0);
    if (fits)
        return true;
    bool get = (found->methods & METHOD_GET) != 0, post = (found->methods & METHOD_POST) != 0;
    qr_http_conn_add_header(conn, "Allow: %s%s%s\r\n", get ? "GET, HEAD" : "", get && post ? ", " : "",
                            post ? "POST" : "");
    return refuse(conn, 405, "method_not_allowed",
                  "this route does not take that method; the Allow header says which");
}

static bool is_json_type(qr_str type)
{
    static const char json[] = "application/json";
    size_t len = sizeof(json) - 1;
    return type.len >= len && strncasecmp(type.data, json, len) == 0 &&
           (type.len == len || type.data[len] == ';' || type.data[len] == ' ' || type.data[len] == '\t');
}

/* A page of another site can make a browser post here without asking, but not with this type, and not without saying
 * so in Sec-Fetch-Site. */
static bool check_body(qr_server *server, qr_http_conn *conn, const qr_http_request *request,
                       const route *found)
{
    qr_str encoding = request->headers[QR_HEADER_CONTENT_ENCODING];
    if (encoding.len > 0 && !qr_str_equals(encoding, "identity"))
        return refuse(conn, 415, "unsupported_encoding",
                      "compressed bodies are not served: send the body without Content-Encoding");
    if ((found->flags & ROUTE_JSON) != 0 && !is_json_type(request->headers[QR_HEADER_CONTENT_TYPE]))
        return refuse(conn, 415, "unsupported_media_type",
                      "the body must be JSON: send Content-Type: application/json");
    if (request->method == QR_HTTP_POST &&
        qr_str_equals(request->headers[QR_HEADER_SEC_FETCH_SITE], "cross-site") &&
        allowed_origin(server, request->headers[QR_HEADER_ORIGIN]) == NULL)
        return refuse(conn, 403, "cross_site",
                      "another site's page may not post here: start the server with its origin allowed");
    return true;
}

bool qr_routes_head(void *user, qr_http_conn *conn)
{
    qr_server *server = user;
    const qr_http_request *request = qr_http_conn_request(conn);
    choose_id(conn, request);
    if (!qr_host_allowed(&server->options, request->headers[QR_HEADER_HOST]))
        return refuse(
            conn, 403, "host_not_allowed",
            "this Host is not served: start the server with --allowed-hosts NAME, or with an API key");
    if (handle_cors(server, conn, request))
        return false;
    int index = route_find(request->path);
    if (index >= 0 && (routes[index].flags & ROUTE_PAGE) != 0 && server->options.no_chat_page)
        index = -1;
    qr_http_conn_set_route(conn, index);
    const route *found = index >= 0 ? &routes[index] : NULL;
    if ((found == NULL || (found->flags & ROUTE_OPEN) == 0) && !authorised(server, request)) {
        bool page = found != NULL && (found->flags & ROUTE_PAGE) != 0;
        qr_http_conn_add_header(conn, "WWW-Authenticate: %s\r\n",
                                page ? "Basic realm=\"quire: the API key is the password\"" : "Bearer");
        return refuse(conn, 401, "invalid_api_key",
                      "the API key is missing or wrong: send Authorization: Bearer KEY");
    }
    if (found == NULL)
        return refuse(conn, 404, "not_found", "there is no such route");
    return check_method(conn, request, found) && check_body(server, conn, request, found);
}

void qr_routes_request(void *user, qr_http_conn *conn)
{
    routes[qr_http_conn_request(conn)->route].serve(user, conn);
}

/* ---- After the reply ------------------------------------------------------------------------------- */

const double qr_http_seconds_bounds[QR_HTTP_BUCKETS] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                        0.5,   1,    2.5,   5,    10,  60};

static void count(qr_server *server, int index, int status, double seconds, size_t request_bytes,
                  size_t reply_bytes)
{
    qr_route_counters *counters = &server->routes[index >= 0 ? index : QR_ROUTES_MAX];
    int status_class = status / 100;
    counters->requests[status_class >= 1 && status_class <= 5 ? status_class : 0]++;
    size_t bucket = 0;
    while (bucket < QR_HTTP_BUCKETS && seconds > qr_http_seconds_bounds[bucket])
        bucket++;
    counters->seconds_buckets[bucket]++;
    counters->seconds_sum += seconds;
    counters->request_bytes += request_bytes;
    counters->reply_bytes += reply_bytes;
}

void qr_routes_finished(void *user, qr_http_conn *conn, int status, size_t reply_bytes)
{
    qr_server *server = user;
    const qr_http_request *request = qr_http_conn_request(conn);
    double seconds = request->started_ns != 0 ? (double)(qr_clock_ns() - request->started_ns) / 1e9 : 0;
    count(server, request->route, status, seconds,
          request->declared_bytes > 0 ? (size_t)request->declared_bytes : 0, reply_bytes);
    if (!server->options.access_log)
        return;
    bool quiet = request->route >= 0 && (routes[request->route].flags & ROUTE_QUIET) != 0 && status == 200;
    char path[256], quoted[300];
    (void)snprintf(path, sizeof(path), "%.*s", (int)QR_MIN(request->path.len, sizeof(path) - 1),
                   request->path.data);
    qr_log(quiet ? QR_LOG_DEBUG : QR_LOG_INFO, "http",
           "method=%.*s path=%s status=%d ms=%.1f bytes=%zu id=%s",
           request->method_name.data != NULL ? (int)request->method_name.len : 1,
           request->method_name.data != NULL ? request->method_name.data : "-",
           qr_log_quote(path, quoted, sizeof(quoted)), status, seconds * 1e3, reply_bytes,
           request->id[0] != '\0' ? request->id : "-");
}
