/* quire run-batch -i IN -o OUT MODEL: an OpenAI batch file through the engine. Each line goes over a socket pair to the
 * server in this process (batch_lanes.h), so that fields, limits, errors and replies are those of /v1. What is done
 * stands in a journal (batch_journal.h): a run that was killed and started again gives the same bytes as one that
 * was not. For that a request without a seed gets one from --seed and its line, and `created` is the time of the input
 * file. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/vec.h"
#include "cli/batch_journal.h"
#include "cli/batch_lanes.h"
#include "cli/cli.h"

#define LANES_MAX 384 /* 2 descriptors each, of the usual 1,024 */

typedef struct batch {
    const cli_options *options;
    qr_server *server;
    qr_file_map input;
    QR_VEC(qr_str) lines; /* those that are not blank */
    char input_hash[65];
    int64_t input_time;
    batch_journal journal;
    batch_lane lanes[LANES_MAX];
    size_t lane_count, next, errors;
    pthread_t thread;
    bool started;
    qr_status status;
    qr_error error;
} batch;

/* ---- Input ---- */

static bool is_blank(qr_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (memchr(" \t\r", text.data[i], 3) == NULL)
            return false;
    return true;
}

static void split_lines(batch *b)
{
    const char *data = (const char *)b->input.data;
    for (size_t at = 0; at < b->input.bytes;) {
        const char *end = memchr(data + at, '\n', b->input.bytes - at);
        size_t len = (end != NULL ? (size_t)(end - data) : b->input.bytes) - at;
        if (!is_blank(qr_str_make(data + at, len)))
            QR_VEC_PUSH(&b->lines, qr_str_make(data + at, len));
        at += len + 1;
    }
}

static qr_status open_input(batch *b, qr_error *err)
{
    const char *in = b->options->batch_input, *out = b->options->batch_output;
    struct stat input, output;
    if (in == NULL || out == NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "-i IN.jsonl and -o OUT.jsonl are expected; see quire run-batch --help");
    qr_status status = qr_file_map_open(in, &b->input, err);
    if (status != QR_OK)
        return status;
    if (stat(in, &input) != 0)
        return qr_fail(err, QR_IO_ERROR, "%s: cannot be looked at", in);
    if (stat(out, &output) == 0 && output.st_dev == input.st_dev && output.st_ino == input.st_ino)
        return qr_fail(err, QR_INVALID_ARGUMENT, "%s: input and output are one file", out);
    b->input_time = input.st_mtim.tv_sec;
    uint8_t digest[32];
    qr_sha256 sha;
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, b->input.data, b->input.bytes);
    qr_sha256_final(&sha, digest);
    qr_sha256_hex(digest, b->input_hash);
    split_lines(b);
    return QR_OK;
}

/* What decides the results, besides the input: a journal of other results is not gone on with. */
static qr_status open_journal(batch *b, const qr_model *model, qr_error *err)
{
    qr_buf header = {0};
    qr_buf_printf(&header, "{\"quire_batch\":1,\"input\":\"%s\",\"run\":", b->input_hash);
    qr_buf run = {0};
    qr_buf_printf(&run, "%s seed %lld max_model_len %lld created %lld %s", qr_model_fingerprint(model),
                  (long long)b->options->seed, (long long)b->options->engine.max_model_len,
                  (long long)b->input_time, b->options->server.generation_config);
    qr_json_append_string(&header, qr_buf_str(&run));
    qr_buf_append_char(&header, '}');
    qr_status status =
        batch_journal_open(&b->journal, b->options->batch_output, qr_buf_str(&header), b->lines.count, err);
    qr_buf_release(&run);
    qr_buf_release(&header);
    return status;
}

/* ---- Output ---- */

/* OpenAI's line; `error` as vLLM gives it beside: the error object when the status says so. */
static qr_status put_reply(batch *b, size_t line, qr_str custom_id, int http, qr_str body, qr_error *err)
{
    qr_buf out = {0};
    qr_buf_printf(&out, "{\"id\":\"batch_req_%zu\",\"custom_id\":", line);
    qr_json_append_string(&out, custom_id);
    qr_buf_printf(&out, ",\"response\":{\"status_code\":%d,\"request_id\":\"batch-%zu\",\"body\":", http,
                  line);
    qr_buf_append_str(&out, body);
    qr_buf_append_str(&out, QR_STR("},\"error\":"));
    qr_buf_append_str(&out, http >= 400 ? body : QR_STR("null"));
    qr_buf_append_char(&out, '}');
    b->errors += http >= 400;
    qr_status status = batch_journal_add(&b->journal, line, qr_buf_str(&out), err);
    qr_buf_release(&out);
    return status;
}

/* A line that is no request. */
static qr_status put_refusal(batch *b, size_t line, qr_str custom_id, const char *message, qr_error *err)
{
    qr_buf out = {0};
    qr_buf_printf(&out, "{\"id\":\"batch_req_%zu\",\"custom_id\":", line);
    if (custom_id.data != NULL)
        qr_json_append_string(&out, custom_id);
    else
        qr_buf_append_str(&out, QR_STR("null"));
    qr_buf_append_str(&out,
                      QR_STR(",\"response\":null,\"error\":{\"code\":\"invalid_batch_line\",\"message\":"));
    qr_json_append_string(&out, qr_str_of(message));
    qr_buf_append_str(&out, QR_STR("}}"));
    b->errors++;
    qr_status status = batch_journal_add(&b->journal, line, qr_buf_str(&out), err);
    qr_buf_release(&out);
    return status;
}

/* ---- Lines ---- */

typedef struct batch_request {
    qr_json *json; /* owned */
    qr_str custom_id;
    const char *path;
    qr_json *body; /* owned */
} batch_request;

static void request_release(batch_request *request)
{
    qr_json_free(request->json);
    qr_json_free(request->body);
}

static bool wrong(qr_error *err, const char *message)
{
    (void)qr_fail(err, QR_INVALID_ARGUMENT, "%s", message);
    return false;
}

static bool read_request(batch *b, size_t line, batch_request *request, qr_error *err)
{
    static const char *const paths[] = {"/v1/chat/completions", "/v1/completions"};
    if (qr_json_parse(b->lines.data[line], &qr_json_limits_request, &request->json, err) != QR_OK)
        return false;
    if (!qr_json_is(request->json, QR_JSON_OBJECT))
        return wrong(err, "the line is not a JSON object");
    request->custom_id = qr_json_string(qr_json_get(request->json, "custom_id"));
    if (request->custom_id.data == NULL)
        return wrong(err, "custom_id: a string is expected");
    if (!qr_str_equals(qr_json_string(qr_json_get(request->json, "method")), "POST"))
        return wrong(err, "method: only \"POST\" is served");
    for (size_t i = 0; i < QR_COUNT_OF(paths); i++)
        if (qr_str_equals(qr_json_string(qr_json_get(request->json, "url")), paths[i]))
            request->path = paths[i];
    if (request->path == NULL)
        return wrong(err, "url: /v1/chat/completions and /v1/completions are served");
    const qr_json *body = qr_json_get(request->json, "body");
    if (!qr_json_is(body, QR_JSON_OBJECT))
        return wrong(err, "body: an object is expected");
    if (qr_json_bool(qr_json_get(body, "stream"), false))
        return wrong(err, "body: stream is not served in a batch");
    request->body = qr_json_copy(body);
    return true;
}

/* Of a request that brings none: from --seed (0 when absent) and its line, so that it is the same in every run. */
static void add_seed(const batch *b, size_t line, qr_json *body)
{
    const qr_json *seed = qr_json_get(body, "seed");
    if (seed != NULL && !qr_json_is(seed, QR_JSON_NULL))
        return;
    uint64_t base = b->options->seed > 0 ? (uint64_t)b->options->seed : 0;
    qr_json_set(body, "seed",
                qr_json_new_int((int64_t)(qr_hash_mix(qr_hash_mix(base + 1) ^ (line + 1)) >> 1)));
}

static qr_status start_line(batch *b, batch_lane *lane, size_t line, qr_error *err)
{
    batch_request request = {0};
    qr_error reason = {0};
    qr_status status = QR_OK;
    if (!read_request(b, line, &request, &reason)) {
        status = put_refusal(b, line, request.custom_id, reason.message, err);
    } else {
        qr_buf body = {0};
        add_seed(b, line, request.body);
        qr_json_write(request.body, 0, &body);
        batch_lane_post(lane, line, request.path, qr_buf_str(&body));
        qr_buf_release(&body);
    }
    request_release(&request);
    return status;
}

/* A server's fault is not a result: the run ends, and one that follows tries again. */
static qr_status take_reply(void *user, const batch_reply *reply, qr_error *err)
{
    batch *b = user;
    if (reply->status >= 500)
        return qr_fail(err, QR_DEVICE_FAILED, "request %zu: status %d: %.*s", reply->line + 1, reply->status,
                       (int)QR_MIN(reply->body.len, (size_t)150), reply->body.data);
    batch_request request = {0};
    (void)read_request(b, reply->line, &request, NULL);
    qr_status status = put_reply(b, reply->line, request.custom_id, reply->status, reply->body, err);
    request_release(&request);
    return status;
}

/* ---- The run ---- */

static batch_lane *free_lane(batch *b)
{
    for (size_t i = 0; i < b->lane_count; i++)
        if (b->lanes[i].fd >= 0 && !b->lanes[i].busy)
            return &b->lanes[i];
    return NULL;
}

static bool any_busy(const batch *b)
{
    for (size_t i = 0; i < b->lane_count; i++)
        if (b->lanes[i].busy)
            return true;
    return false;
}

static qr_status feed(batch *b, qr_error *err)
{
    qr_status status = QR_OK;
    batch_lane *lane;
    while (b->next < b->lines.count && (lane = free_lane(b)) != NULL && status == QR_OK) {
        if (b->journal.outputs[b->next].bytes == 0)
            status = start_line(b, lane, b->next, err);
        b->next++;
    }
    return status;
}

static qr_status run_lines(batch *b, qr_error *err)
{
    qr_status status = QR_OK;
    while (status == QR_OK && b->journal.done < b->lines.count) {
        size_t before = b->journal.done;
        status = feed(b, err);
        if (status == QR_OK && any_busy(b))
            status = batch_lanes_turn(b->lanes, b->lane_count, take_reply, b, err);
        if (status == QR_OK && b->journal.done > before)
            status = batch_journal_sync(&b->journal, err);
        cli_progress_bar(NULL, "requests", b->journal.done, b->lines.count);
    }
    return status;
}

static void *run_client(void *user)
{
    batch *b = user;
    b->status = run_lines(b, &b->error);
    for (size_t i = 0; i < b->lane_count; i++)
        batch_lane_close(&b->lanes[i]);
    qr_server_stop(b->server);
    return NULL;
}

/* In the server's thread, once it runs. */
static void open_lanes(void *user, const char *host, int port)
{
    batch *b = user;
    (void)host;
    (void)port;
    int32_t seqs = b->options->engine.max_num_seqs > 0 ? b->options->engine.max_num_seqs : 256;
    size_t wanted = QR_MIN((size_t)(seqs + seqs / 4 + 1), (size_t)LANES_MAX);
    wanted = QR_MIN(wanted, b->lines.count);
    for (; b->lane_count < wanted; b->lane_count++) {
        int server_end;
        if (batch_lane_open(&b->lanes[b->lane_count], &server_end, &b->error) != QR_OK)
            break;
        qr_server_adopt(b->server, server_end);
    }
    b->started = b->lane_count > 0 && pthread_create(&b->thread, NULL, run_client, b) == 0;
    if (b->started)
        return;
    b->status = qr_fail(&b->error, QR_OUT_OF_MEMORY, "batch: the system gives no socket or no thread");
    qr_server_stop(b->server);
}

static qr_status run(batch *b, qr_model *model, qr_error *err)
{
    if (b->journal.done == b->lines.count)
        return QR_OK;
    qr_server_options server = b->options->server;
    server.sockets_only = true;
    server.handle_signals = server.access_log = false;
    server.connections_per_address_max = LANES_MAX + 8;
    server.stats_interval_ms = -1;
    server.served_names = b->options->served_names.items;
    server.served_name_count = b->options->served_names.count;
    server.created_unix_s = b->input_time;
    server.on_ready = open_lanes;
    server.on_ready_user = b;
    qr_engine *engine = NULL;
    qr_status status = qr_engine_open(model, &b->options->engine, &engine, err);
    if (status == QR_OK)
        status = qr_server_open(&server, &b->server, err);
    if (status == QR_OK)
        status = qr_server_run(b->server, engine, model, err);
    if (b->started)
        pthread_join(b->thread, NULL);
    if (status == QR_OK && b->status != QR_OK) {
        *err = b->error;
        status = b->status;
    }
    qr_server_close(b->server);
    qr_engine_close(engine);
    return status;
}

static qr_status run_all(batch *b, cli_options *options, qr_error *err)
{
    qr_model *model = NULL;
    qr_status status = open_input(b, err);
    if (status == QR_OK)
        status = cli_model_open(options, &model, err);
    if (status != QR_OK)
        return status;
    cli_default_served_names(options);
    status = open_journal(b, model, err);
    if (status == QR_OK) {
        status = run(b, model, err);
        if (status == QR_OK)
            status = batch_journal_finish(&b->journal, options->batch_output, err);
        batch_journal_close(&b->journal);
    }
    qr_model_close(model);
    return status;
}

int cli_run_batch(cli_options *options)
{
    qr_error err = {0};
    uint64_t begin = qr_clock_ns();
    if (options->batch_model != NULL && options->arguments.count == 0)
        options->arguments.items[options->arguments.count++] = options->batch_model;
    if (options->arguments.count != 1) {
        (void)qr_fail(&err, QR_INVALID_ARGUMENT, "one MODEL is expected; see quire run-batch --help");
        return cli_fail("run-batch", &err);
    }
    batch *b = qr_calloc(1, sizeof(*b));
    b->options = options;
    qr_status status = run_all(b, options, &err);
    if (status == QR_OK)
        fprintf(stderr, "quire run-batch: %zu requests, %zu of this run refused, %.1f s: %s\n",
                b->lines.count, b->errors, (double)(qr_clock_ns() - begin) * 1e-9, options->batch_output);
    QR_VEC_RELEASE(&b->lines);
    qr_file_map_close(&b->input);
    qr_free(b);
    return status == QR_OK ? 0 : cli_fail("run-batch", &err);
}
