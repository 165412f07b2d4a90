/* /metrics: the engine's metrics under vLLM's names, and HTTP's own; /reset_prefix_cache. Text format 0.0.4. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/state.h"

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

static void append_number(qr_buf *out, double value)
{
    char text[40];
    if (value == floor(value) && fabs(value) < 1e15)
        (void)snprintf(text, sizeof(text), "%.1f", value);
    else
        (void)snprintf(text, sizeof(text), "%.17g", value);
    qr_buf_append_cstr(out, text);
}

/* A bound as Python's client prints it: 0.001, 1.0, 2.5. */
static void append_bound(qr_buf *out, double value)
{
    char text[40];
    (void)snprintf(text, sizeof(text), value == floor(value) && fabs(value) < 1e15 ? "%.1f" : "%.10g", value);
    qr_buf_append_cstr(out, text);
}

static void append_label_text(qr_buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\\' || *text == '"')
            qr_buf_append_char(out, '\\');
        if (*text == '\n')
            qr_buf_append_cstr(out, "\\n");
        else
            qr_buf_append_char(out, *text);
    }
}

static void append_labels(const qr_server *server, const char *extra, qr_buf *out)
{
    qr_buf_append_cstr(out, "engine=\"0\",model_name=\"");
    append_label_text(out, server->model_name);
    qr_buf_append_char(out, '"');
    if (extra != NULL && extra[0] != '\0')
        qr_buf_printf(out, ",%s", extra);
}

static void append_histogram(const char *name, const char *labels, const double *bounds,
                             const uint64_t *buckets, size_t bound_count, double sum, qr_buf *out)
{
    uint64_t total = 0;
    for (size_t i = 0; i <= bound_count; i++) {
        total += buckets[i];
        qr_buf_printf(out, "%s_bucket{%s,le=\"", name, labels);
        if (i < bound_count)
            append_bound(out, bounds[i]);
        else
            qr_buf_append_cstr(out, "+Inf");
        qr_buf_printf(out, "\"} %llu.0\n", (unsigned long long)total);
    }
    qr_buf_printf(out, "%s_count{%s} %llu.0\n%s_sum{%s} ", name, labels, (unsigned long long)total, name,
                  labels);
    append_number(out, sum);
    qr_buf_append_char(out, '\n');
}

static void append_metric(const qr_server *server, const qr_metric *metric, bool first, qr_buf *out)
{
    static const char *const types[] = {"gauge", "counter", "histogram"};
    bool counter = metric->type == QR_METRIC_COUNTER;
    const char *suffix = counter && !qr_str_ends(qr_str_of(metric->name), QR_STR("_total")) ? "_total" : "";
    if (first)
        qr_buf_printf(out, "# HELP %s%s %s\n# TYPE %s%s %s\n", metric->name, suffix, metric->help,
                      metric->name, suffix, types[metric->type]);
    qr_buf labels = {0};
    append_labels(server, metric->label, &labels);
    if (metric->type == QR_METRIC_HISTOGRAM) {
        append_histogram(metric->name, labels.data, metric->bounds, metric->buckets, metric->bound_count,
                         metric->value, out);
    } else {
        qr_buf_printf(out, "%s%s{%s} ", metric->name, suffix, labels.data);
        append_number(out, metric->value);
        qr_buf_append_char(out, '\n');
    }
    qr_buf_release(&labels);
}

static void append_engine(const qr_server *server, qr_buf *out)
{
    qr_metric *metrics = NULL;
    size_t count = qr_engine_metrics(server->engine, &metrics);
    for (size_t i = 0; i < count; i++)
        append_metric(server, &metrics[i], i == 0 || strcmp(metrics[i].name, metrics[i - 1].name) != 0, out);
    qr_metrics_free(metrics);
}

/* ---- HTTP ------------------------------------------------------------------------------------------ */

static const char *handler_name(size_t index)
{
    const char *path = qr_route_path(index);
    return path != NULL ? path : "none";
}

static bool route_used(const qr_route_counters *counters)
{
    for (size_t i = 0; i < 6; i++) {
        if (counters->requests[i] != 0)
            return true;
    }
    return false;
}

static void append_request_counts(const qr_server *server, qr_buf *out)
{
    qr_buf_append_cstr(
        out,
        "# HELP http_requests_total Requests by route and class of status (gone: the client left first).\n"
        "# TYPE http_requests_total counter\n");
    for (size_t i = 0; i <= QR_ROUTES_MAX; i++) {
        for (int c = 0; c < 6; c++) {
            uint64_t value = server->routes[i].requests[c];
            if (value == 0)
                continue;
            char status[8] = "gone";
            if (c > 0)
                (void)snprintf(status, sizeof(status), "%dxx", c);
            qr_buf_printf(out, "http_requests_total{handler=\"%s\",status=\"%s\"} %llu.0\n", handler_name(i),
                          status, (unsigned long long)value);
        }
    }
}

static void append_sizes(const qr_server *server, const char *name, const char *help, bool reply, qr_buf *out)
{
    qr_buf_printf(out, "# HELP %s %s\n# TYPE %s counter\n", name, help, name);
    for (size_t i = 0; i <= QR_ROUTES_MAX; i++) {
        const qr_route_counters *counters = &server->routes[i];
        if (route_used(counters))
            qr_buf_printf(out, "%s{handler=\"%s\"} %llu.0\n", name, handler_name(i),
                          (unsigned long long)(reply ? counters->reply_bytes : counters->request_bytes));
    }
}

static void append_http(const qr_server *server, qr_buf *out)
{
    append_request_counts(server, out);
    qr_buf_append_cstr(out, "# HELP http_request_duration_seconds From a request's first byte to its reply.\n"
                            "# TYPE http_request_duration_seconds histogram\n");
    for (size_t i = 0; i <= QR_ROUTES_MAX; i++) {
        const qr_route_counters *counters = &server->routes[i];
        char label[80];
        (void)snprintf(label, sizeof(label), "handler=\"%s\"", handler_name(i));
        if (route_used(counters))
            append_histogram("http_request_duration_seconds", label, qr_http_seconds_bounds,
                             counters->seconds_buckets, QR_HTTP_BUCKETS, counters->seconds_sum, out);
    }
    append_sizes(server, "http_request_size_bytes_total", "Declared bytes of request bodies.", false, out);
    append_sizes(server, "http_response_size_bytes_total", "Bytes of replies, heads included.", true, out);
    qr_buf_printf(out,
                  "# HELP quire_http_connections Open connections.\n# TYPE quire_http_connections gauge\n"
                  "quire_http_connections %zu.0\n",
                  qr_http_connections(server->http));
}

void qr_serve_metrics(qr_server *server, qr_http_conn *conn)
{
    qr_buf out = {0};
    append_engine(server, &out);
    append_http(server, &out);
    qr_http_reply(conn, 200, METRICS_CONTENT_TYPE, qr_buf_str(&out));
    qr_buf_release(&out);
}

void qr_serve_reset_prefix_cache(qr_server *server, qr_http_conn *conn)
{
    qr_engine_reset_prefix_cache(server->engine);
    qr_http_reply(conn, 200, "application/json", QR_STR("{\"status\":\"ok\"}"));
}
