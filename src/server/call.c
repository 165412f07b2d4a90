#include "server/call.h"

#include <event2/event.h>

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/answer.h"
#include "server/logprobs.h"
#include "server/resume.h"
#include "server/sse.h"

#define EVENTS_PER_POLL    256
/* What the worker takes over, so that one request holds up the streams for less than 1 ms. Measured on an EPYC of family
 * 25, model 17 with other work on it: 64 KiB of text are read in 0.67 ms, 64 KiB of token ids in 1.67 ms; 2,000 entries
 * are written in 1.27 ms. */
#define LONG_BODY_BYTES    ((size_t)32 << 10)
#define LONG_REPLY_ENTRIES ((size_t)1000)

/* ---- Life ------------------------------------------------------------------------------------------ */

static void call_free(qr_call *call)
{
    for (size_t i = 0; i < call->prompt_count; i++) {
        if (call->prompts[i].request != NULL)
            qr_request_release(call->prompts[i].request);
    }
    qr_list_remove(&call->node);
    qr_list_remove(&call->dirty);
    qr_buf_release(&call->body);
    qr_buf_release(&call->reply);
    qr_answers_release(call);
    qr_api_params_release(&call->params);
    qr_buf_release(&call->chat_json);
    qr_buf_release(&call->head);
    qr_buf_release(&call->piece);
    qr_free(call->prompts);
    qr_free(call->choices);
    qr_free(call);
}

/* The reply is complete, or there is no one to reply to. What still runs is cancelled now; memory that events of this
 * poll may still name goes with the batch. */
static void call_end(qr_call *call)
{
    if (call->ended)
        return;
    call->ended = true;
    for (size_t i = 0; i < call->prompt_count; i++) {
        if (call->prompts[i].request != NULL)
            qr_request_cancel(call->prompts[i].request);
    }
    qr_list_remove(&call->node);
    if (!call->at_worker)
        qr_list_push_back(&call->server->ended, &call->node);
    event_active(call->server->poll_event, EV_READ,
                 0); /* the end of the next poll frees it, also one without news */
}

static void free_ended(qr_server *server)
{
    while (!qr_list_empty(&server->ended))
        call_free(QR_LIST_ITEM(server->ended.next, qr_call, node));
}

void qr_call_gone(qr_server *server, void *owner)
{
    qr_call *call = owner;
    (void)server;
    call->conn = NULL;
    call_end(call);
}

static qr_call *call_new(qr_server *server, qr_http_conn *conn, const qr_call_format *format,
                         qr_api_kind kind)
{
    qr_call *call = qr_calloc(1, sizeof(*call));
    call->owner.kind = QR_OWNER_CALL;
    call->server = server;
    call->conn = conn;
    call->format = format;
    int64_t created = server->options.created_unix_s;
    call->created = created != 0 ? created : qr_clock_unix_s();
    qr_list_init(&call->node);
    qr_list_init(&call->dirty);
    qr_api_params_init(&call->params, kind, server->generation_config);
    return call;
}

static void reply_error(qr_call *call, const qr_api_error *error)
{
    qr_http_conn *conn = call->conn;
    call->conn = NULL;
    if (conn != NULL)
        qr_reply_error(conn, error);
    call_end(call);
}

/* ---- Submitting ------------------------------------------------------------------------------------ */

/* The id must be harmless in a header and in the log. */
static bool id_is_plain(qr_str id)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    return strspn(id.data, allowed) == id.len;
}

static bool choose_id(qr_call *call, qr_api_error *error)
{
    qr_str given = call->params.request_id;
    if (given.len > 0 && !id_is_plain(given))
        return qr_api_fail(error, 400, NULL, "request_id",
                           "request_id: only letters, digits and -_.: may stand in it");
    const char *base = given.len > 0 ? given.data : qr_http_conn_request(call->conn)->id;
    (void)snprintf(call->id, sizeof(call->id), "%s-%s", call->format->id_prefix, base);
    return true;
}

static bool choose_model(qr_call *call, qr_api_error *error)
{
    qr_str name = call->params.model;
    call->model = qr_str_of(call->server->model_name);
    if (name.data == NULL || name.len == 0)
        return true;
    if (!qr_server_serves_model(call->server, name))
        return qr_api_fail(error, 404, "model_not_found", "model",
                           "the model \"%.200s\" is not served; /v1/models lists what is", name.data);
    call->model = name;
    return true;
}

static void lay_out(qr_call *call)
{
    size_t n = (size_t)call->params.sampling.n;
    call->prompt_count = call->params.prompt_count;
    call->choice_count = call->choices_left = call->prompt_count * n;
    call->prompts = qr_calloc(call->prompt_count, sizeof(*call->prompts));
    call->choices = qr_calloc(call->choice_count, sizeof(*call->choices));
    for (size_t i = 0; i < call->prompt_count; i++)
        call->prompts[i] = (qr_call_prompt){.owner.kind = QR_OWNER_CALL, .call = call, .index = i};
    for (size_t i = 0; i < call->choice_count; i++)
        call->choices[i] = (qr_choice){.index = i,
                                       .prompt = &call->prompts[i / n],
                                       .sample = (int32_t)(i % n),
                                       .stop_token = -1,
                                       .stop_string = -1};
}

static void fill_options(qr_call *call, qr_call_prompt *prompt, qr_request_options *options)
{
    const qr_api_params *params = &call->params;
    qr_request_options_init(options);
    if (params->kind == QR_API_CHAT) {
        options->chat_json = call->chat_json.data;
        options->chat_json_bytes = call->chat_json.len;
    } else {
        const qr_api_prompt *source = &params->prompts[prompt->index];
        options->text = source->text;
        options->text_bytes = source->text_bytes;
        options->token_ids = source->ids;
        options->token_count = source->id_count;
    }
    options->add_special_tokens = params->add_special_tokens;
    options->sampling = params->sampling;
    options->priority = params->priority;
    options->cache_salt = params->cache_salt.data;
    options->request_id = call->id;
    options->truncate_prompt_tokens = params->truncate_prompt_tokens;
    options->output_prefix_ids = params->output_prefix_ids;
    options->output_prefix_count = params->output_prefix_count;
    if (params->resume.given)
        options->output_prefix_text_bytes = params->resume.text_bytes;
    options->user = prompt;
    options->max_tokens_must_fit = params->max_tokens_given;
    if (call->answers != NULL) {
        options->kept_special_ids = call->answers->kept_ids;
        options->kept_special_count = call->answers->kept_count;
    }
}

static bool submit(qr_call *call, qr_api_error *error)
{
    qr_server *server = call->server;
    qr_error err = {0};
    if (call->params.kind == QR_API_CHAT)
        qr_api_chat_json(&call->params, server->default_kwargs, server->options.allow_special_in_content,
                         call->answers != NULL ? qr_buf_str(&call->answers->opening) : qr_str_make("", 0),
                         &call->chat_json);
    for (size_t i = 0; i < call->prompt_count; i++) {
        qr_request_options options;
        fill_options(call, &call->prompts[i], &options);
        qr_status status =
            qr_request_submit(server->engine, server->poller, &options, &call->prompts[i].request, &err);
        if (status != QR_OK)
            return qr_api_fail_status(error, status, err.message);
    }
    qr_buf_release(&call->chat_json); /* the engine has its copy */
    return true;
}

static bool call_submit(qr_call *call, qr_api_error *error)
{
    if (!choose_model(call, error) || !choose_id(call, error) || !qr_answers_begin(call, error))
        return false;
    if (call->params.unknown[0] != '\0')
        qr_log(QR_LOG_WARN, "unknown_fields", "id=%s ignored=\"%s\"", call->id, call->params.unknown);
    lay_out(call);
    qr_resume_begin(call);
    return submit(call, error);
}

/* The body has been read, here or by the worker. */
static void call_continue(qr_call *call)
{
    if (call->parsed && call_submit(call, &call->error)) {
        qr_list_push_back(&call->server->calls, &call->node);
        return;
    }
    reply_error(call, &call->error);
}

static void parse(qr_call *call, qr_str body)
{
    call->parsed = qr_api_params_parse(&call->params, body, &call->server->limits, &call->error);
}

static qr_call *call_of(qr_job *job) { return QR_LIST_ITEM(job, qr_call, job); }

static void run_parse(qr_job *job)
{
    qr_call *call = call_of(job);
    parse(call, qr_buf_str(&call->body));
    qr_buf_release(&call->body);
}

/* The worker is done with the call; false: the client has left in the meantime, and so does the call. */
static bool from_worker(qr_call *call)
{
    call->at_worker = false;
    if (!call->ended)
        return true;
    qr_list_push_back(&call->server->ended, &call->node);
    event_active(call->server->poll_event, EV_READ, 0);
    return false;
}

static void parse_done(qr_job *job)
{
    qr_call *call = call_of(job);
    if (from_worker(call))
        call_continue(call);
}

/* false: the worker has too much to do already. */
static bool to_worker(qr_call *call, void (*run)(qr_job *job), void (*done)(qr_job *job))
{
    call->job = (qr_job){run, done};
    call->at_worker = qr_worker_submit(call->server->worker, &call->job);
    return call->at_worker;
}

void qr_call_begin(qr_server *server, qr_http_conn *conn, const qr_call_format *format, qr_api_kind kind)
{
    qr_call *call = call_new(server, conn, format, kind);
    qr_str body = qr_http_conn_request(conn)->body;
    qr_http_conn_set_owner(conn, call);
    if (body.len > LONG_BODY_BYTES) {
        qr_buf_append_str(&call->body, body);
        qr_http_conn_drop_body(conn);
        if (to_worker(call, run_parse, parse_done))
            return;
        (void)qr_api_fail(&call->error, 429, "server_overloaded", NULL,
                          "too many long requests wait already: try again");
        reply_error(call, &call->error);
        return;
    }
    parse(call, body);
    qr_http_conn_drop_body(conn); /* the JSON tree does not borrow from it */
    call_continue(call);
}

/* ---- Replying -------------------------------------------------------------------------------------- */

static void mark_dirty(qr_call *call)
{
    if (qr_list_empty(&call->dirty))
        qr_list_push_back(&call->server->dirty, &call->dirty);
}

/* The piece's first bytes belong to the HTTP layer. */
static void piece_reserve(qr_call *call)
{
    static const char blank[QR_HTTP_PIECE_RESERVE];
    if (call->piece.len == 0)
        qr_buf_append(&call->piece, blank, sizeof(blank));
}

/* Before the first byte an error is the reply's status, afterwards an event of the stream. */
static void call_fail(qr_call *call, const qr_api_error *error)
{
    if (!call->opened) {
        reply_error(call, error);
        return;
    }
    piece_reserve(call);
    qr_sse_error(error, &call->piece);
    call->choices_left = 0;
    mark_dirty(call);
}

/* A prompt failed. */
static void prompt_failed(qr_call *call, const qr_event *event)
{
    qr_api_error error = {0};
    (void)qr_api_fail_status(&error, event->status, event->message);
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(call->server->engine, &stats);
    if (stats.device_failed) {
        call->server->result = QR_DEVICE_FAILED;
        qr_server_stop(call->server);
    }
    call_fail(call, &error);
}

/* Of the first prompt, the one that most requests have; the others' stand in the choices. */
static void add_seed_header(qr_call *call)
{
    if (!call->prompts[0].seen)
        return;
    qr_request_facts facts = qr_request_describe(call->prompts[0].request);
    qr_http_conn_add_header(call->conn, "X-Quire-Seed: %lld\r\n", (long long)facts.seed);
}

static void stream_open(qr_call *call)
{
    call->opened = true;
    qr_sse_prepare(call);
    add_seed_header(call);
    qr_resume_add_headers(call);
    qr_http_conn_add_header(call->conn, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n");
    qr_http_stream_begin(call->conn, QR_SSE_CONTENT_TYPE);
}

/* The chunks of an event. */
static bool stream_choice(qr_call *call, qr_choice *choice, const qr_event *event, qr_api_error *error)
{
    const qr_call_format *format = call->format;
    if (!choice->opened)
        format->open(call, choice, &call->piece);
    choice->opened = true;
    bool tokens_asked = call->params.return_token_ids || call->params.sampling.logprobs >= 0;
    if (call->answers != NULL && !format->pieces(call, choice, event, &call->piece, error))
        return false;
    if (call->answers == NULL && (event->text_bytes > 0 || (event->token_count > 0 && tokens_asked)))
        format->chunk(call, choice, event, &call->piece);
    if (event->finish != QR_FINISH_NONE)
        format->close(call, choice, &call->piece);
    return true;
}

static void stream_event(qr_call *call, qr_choice *choice, const qr_event *event)
{
    if (!call->opened)
        stream_open(call);
    piece_reserve(call);
    size_t before = call->piece.len;
    qr_api_error error = {0};
    if (!call->params.resume.closed && !stream_choice(call, choice, event, &error)) {
        call_fail(call, &error);
        return;
    }
    if (call->marks && call->piece.len > before)
        qr_resume_mark(call, choice, &call->piece);
    if (call->choices_left == 0)
        qr_sse_finish(call, &call->piece);
    mark_dirty(call);
}

static void write_whole(qr_call *call)
{
    qr_buf *out = &call->reply;
    qr_buf_append_cstr(out, "{\"id\":");
    qr_json_append_string(out, qr_str_of(call->id));
    qr_buf_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", call->format->whole_object,
                  (long long)call->created);
    qr_json_append_string(out, call->model);
    qr_buf_printf(out, ",\"system_fingerprint\":\"%s\",\"choices\":[", call->server->fingerprint);
    for (size_t i = 0; i < call->choice_count; i++) {
        if (i > 0)
            qr_buf_append_char(out, ',');
        call->format->choice(call, &call->choices[i], out);
    }
    qr_buf_append_cstr(out, "],\"usage\":");
    qr_usage_append(call, out);
    call->format->extras(call, out);
    qr_buf_append_char(out, '}');
}

static void send_whole(qr_call *call)
{
    qr_http_conn *conn = call->conn;
    add_seed_header(call);
    call->conn = NULL;
    qr_http_reply(conn, 200, "application/json", qr_buf_str(&call->reply));
    call_end(call);
}

static void run_write(qr_job *job) { write_whole(call_of(job)); }

static void write_done(qr_job *job)
{
    qr_call *call = call_of(job);
    if (from_worker(call))
        send_whole(call);
}

/* Logprob entries of the reply, each of which costs a decode. */
static size_t entry_count(const qr_call *call)
{
    const qr_sampling_params *sampling = &call->params.sampling;
    size_t entries = 0;
    for (size_t i = 0; i < call->choice_count && sampling->logprobs >= 0; i++)
        entries += call->choices[i].tokens * ((size_t)sampling->logprobs + 1);
    for (size_t i = 0; i < call->prompt_count && sampling->prompt_logprobs >= 0; i++)
        entries += qr_request_describe(call->prompts[i].request).prompt_count *
                   ((size_t)sampling->prompt_logprobs + 1);
    return entries;
}

static void reply_whole(qr_call *call)
{
    if (entry_count(call) > LONG_REPLY_ENTRIES && to_worker(call, run_write, write_done))
        return;
    write_whole(call);
    send_whole(call);
}

/* ---- Events ---------------------------------------------------------------------------------------- */

static void call_event(const qr_event *event)
{
    qr_call_prompt *prompt = event->user;
    qr_call *call = prompt->call;
    if (call->ended || call->choices_left == 0)
        return;
    bool first = !prompt->seen;
    prompt->seen = true;
    if (event->finish == QR_FINISH_ERROR) {
        prompt_failed(call, event);
        return;
    }
    qr_choice *choice =
        &call->choices[prompt->index * (size_t)call->params.sampling.n + (size_t)event->sample];
    choice->tokens += event->token_count;
    choice->text_bytes += event->text_bytes;
    if (event->finish != QR_FINISH_NONE && choice->finish == QR_FINISH_NONE) {
        choice->finish = event->finish;
        choice->stop_token = event->stop_token;
        choice->stop_string = event->stop_string;
        call->choices_left--;
    }
    qr_api_error error = {0};
    if (first && !qr_resume_choice(call, choice, &error))
        call_fail(call, &error);
    else if (call->params.stream)
        stream_event(call, choice, event);
    else if (call->answers != NULL && !qr_answer_take(call, choice, event, qr_answer_keep, NULL, &error))
        call_fail(call, &error);
    else if (call->choices_left == 0)
        reply_whole(call);
}

/* One write a poll for each stream with news. */
static void flush_dirty(qr_server *server)
{
    while (!qr_list_empty(&server->dirty)) {
        qr_call *call = QR_LIST_ITEM(server->dirty.next, qr_call, dirty);
        qr_list_remove(&call->dirty);
        if (call->conn == NULL || call->ended)
            continue;
        if (!qr_http_stream_write(call->conn, &call->piece))
            continue; /* the reader lagged too far: qr_call_gone has ended the call */
        if (call->choices_left == 0) {
            qr_http_conn *conn = call->conn;
            call->conn = NULL;
            qr_http_stream_end(conn);
            call_end(call);
        }
    }
}

void qr_call_events(qr_server *server)
{
    qr_event events[EVENTS_PER_POLL];
    size_t count;
    do {
        count = qr_poller_poll(server->poller, events, EVENTS_PER_POLL, 0);
        for (size_t i = 0; i < count; i++) {
            const qr_owner *owner = events[i].user;
            if (owner->kind == QR_OWNER_CALL)
                call_event(&events[i]);
            else
                qr_health_event(server, &events[i]);
        }
        flush_dirty(server);
        free_ended(server);
    } while (count == EVENTS_PER_POLL);
}

void qr_calls_cancel(qr_server *server)
{
    for (qr_list *node = server->calls.next; node != &server->calls; node = node->next) {
        qr_call *call = QR_LIST_ITEM(node, qr_call, node);
        for (size_t i = 0; i < call->prompt_count; i++)
            qr_request_cancel(call->prompts[i].request);
    }
}

void qr_calls_release(qr_server *server) { free_ended(server); }

/* ---- For the formats ------------------------------------------------------------------------------- */

qr_request_facts qr_choice_facts(const qr_choice *choice)
{
    return qr_request_describe(choice->prompt->request);
}

qr_sample_view qr_choice_view(const qr_choice *choice)
{
    return qr_request_sample(choice->prompt->request, choice->sample);
}

void qr_call_append_finish(qr_buf *out, qr_finish finish)
{
    const char *name = qr_finish_name(finish);
    if (name != NULL)
        qr_buf_printf(out, "\"%s\"", name);
    else
        qr_buf_append_cstr(out, "null");
}

/* The end-of-sequence token is no stop reason, only what the request itself listed. */
static bool stop_token_listed(const qr_call *call, int32_t token)
{
    const qr_sampling_params *sampling = &call->params.sampling;
    for (size_t i = 0; i < sampling->stop_token_id_count; i++) {
        if (sampling->stop_token_ids[i] == token)
            return true;
    }
    return false;
}

bool qr_call_has_stop_reason(const qr_call *call, const qr_choice *choice)
{
    return choice->finish == QR_FINISH_STOP &&
           (choice->stop_string >= 0 || stop_token_listed(call, choice->stop_token));
}

void qr_call_append_stop_reason(const qr_call *call, const qr_choice *choice, qr_buf *out)
{
    if (!qr_call_has_stop_reason(call, choice))
        qr_buf_append_cstr(out, "null");
    else if (choice->stop_string >= 0 && (size_t)choice->stop_string < call->params.sampling.stop_count)
        qr_json_append_string(out, qr_str_of(call->params.sampling.stop[choice->stop_string]));
    else
        qr_buf_printf(out, "%d", choice->stop_token);
}

void qr_call_append_ids(qr_buf *out, const int32_t *ids, size_t count)
{
    qr_buf_append_char(out, '[');
    for (size_t i = 0; i < count; i++)
        qr_buf_printf(out, i == 0 ? "%d" : ",%d", ids[i]);
    qr_buf_append_char(out, ']');
}

void qr_call_append_prompt_text(const qr_call *call, const qr_call_prompt *prompt, qr_buf *out)
{
    if (call->params.prompts != NULL && call->params.prompts[prompt->index].text != NULL) {
        const qr_api_prompt *source = &call->params.prompts[prompt->index];
        qr_buf_append(out, source->text, source->text_bytes);
        return;
    }
    char *text = NULL;
    size_t bytes = 0;
    qr_request_facts facts = qr_request_describe(prompt->request);
    if (call->server->tokenizer == NULL ||
        qr_tokenizer_decode(call->server->tokenizer, facts.prompt_ids, facts.prompt_count, false, &text,
                            &bytes, NULL) != QR_OK)
        return;
    qr_buf_append(out, text, bytes);
    qr_string_free(text);
}
