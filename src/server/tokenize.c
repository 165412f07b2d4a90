/* What can be asked of the tokenizer and the template without the engine, on the worker's thread: /tokenize (a prompt,
 * or chat messages), /detokenize, /apply-template (as llama-server's), and vLLM's render routes: the prompt's tokens of
 * a request that does not run. */
#include <stdint.h>

#include "base/mem.h"
#include "server/answer.h"

typedef struct tokenize_call {
    const qr_server *server;
    qr_api_params params;
    bool return_token_strs;
    int32_t *ids;
    size_t count;
} tokenize_call;

static bool flag(const qr_json *body, const char *name, bool fallback, bool *out, qr_api_error *error)
{
    const qr_json *value = qr_json_get(body, name);
    *out = fallback;
    if (value == NULL || qr_json_is(value, QR_JSON_NULL))
        return true;
    if (!qr_json_is(value, QR_JSON_BOOL))
        return qr_api_fail(error, 400, NULL, name, "%s: expected a boolean, got %s", name,
                           qr_json_type_name(qr_json_typeof(value)));
    *out = qr_json_bool(value, fallback);
    return true;
}

static bool check_model(const qr_server *server, const qr_json *body, qr_api_error *error)
{
    qr_str name = qr_json_string(qr_json_get(body, "model"));
    if (name.len == 0 || qr_server_serves_model(server, name))
        return true;
    return qr_api_fail(error, 404, "model_not_found", "model",
                       "that model is not served; /v1/models lists what is");
}

static bool encode(tokenize_call *call, qr_str text, bool add_special, qr_api_error *error)
{
    qr_encode_options options;
    qr_error err = {0};
    qr_encode_options_init(&options);
    options.add_special_tokens = add_special;
    qr_status status = qr_tokenizer_encode(call->server->tokenizer, text.data, text.len, &options, &call->ids,
                                           &call->count, &err);
    return status == QR_OK || qr_api_fail_status(error, status, err.message);
}

static bool encode_prompt(tokenize_call *call, const qr_json *body, qr_api_error *error)
{
    const qr_json *prompt = qr_json_get(body, "prompt");
    bool add_special;
    if (!qr_json_is(prompt, QR_JSON_STRING))
        return qr_api_fail(error, 400, NULL, "prompt", "prompt: expected a string (or give messages)");
    if (!flag(body, "add_special_tokens", true, &add_special, error))
        return false;
    return encode(call, qr_json_string(prompt), add_special, error);
}

/* The prompt of a chat request: the same reader, template variables and opening of a forced call as when it runs. */
static bool render_messages(const qr_server *server, qr_str raw, qr_api_params *params, qr_buf *prompt,
                            qr_api_error *error)
{
    qr_buf request = {0}, opening = {0};
    qr_error err = {0};
    char *text = NULL;
    size_t bytes = 0;
    qr_api_params_init(params, QR_API_CHAT, NULL);
    bool fine = qr_api_params_parse(params, raw, &server->limits, error) &&
                qr_answers_opening(server, params, &opening, error);
    if (fine) {
        qr_api_chat_json(params, server->default_kwargs, server->options.allow_special_in_content,
                         qr_buf_str(&opening), &request);
        qr_status status =
            qr_template_render(server->tokenizer, request.data, request.len, &text, &bytes, &err);
        fine = status == QR_OK || qr_api_fail_status(error, status, err.message);
        qr_buf_append(prompt, text, bytes);
    }
    qr_string_free(text);
    qr_buf_release(&request);
    qr_buf_release(&opening);
    return fine;
}

static bool encode_messages(tokenize_call *call, const qr_json *body, qr_str raw, qr_api_error *error)
{
    bool add_special;
    qr_buf prompt = {0};
    bool fine = flag(body, "add_special_tokens", false, &add_special, error) &&
                render_messages(call->server, raw, &call->params, &prompt, error) &&
                encode(call, qr_buf_str(&prompt), add_special, error);
    qr_buf_release(&prompt);
    qr_api_params_release(&call->params);
    return fine;
}

static bool run_apply_template(const qr_server *server, qr_str raw, qr_buf *reply, qr_api_error *error)
{
    qr_api_params params = {0};
    qr_buf prompt = {0};
    bool fine = render_messages(server, raw, &params, &prompt, error);
    size_t len = 0;
    for (size_t i = 0; i < prompt.len;
         i++) /* the marker inside spelled special tokens is for the encoder only */
        if ((unsigned char)prompt.data[i] != 0xFF)
            prompt.data[len++] = prompt.data[i];
    if (fine) {
        qr_buf_append_cstr(reply, "{\"prompt\":");
        qr_json_append_string(reply, qr_str_make(prompt.data != NULL ? prompt.data : "", len));
        qr_buf_append_char(reply, '}');
    }
    qr_buf_release(&prompt);
    qr_api_params_release(&params);
    return fine;
}

static void append_tokens(const tokenize_call *call, qr_buf *out)
{
    qr_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%lld,\"tokens\":[", call->count,
                  (long long)qr_engine_max_model_len(call->server->engine));
    for (size_t i = 0; i < call->count; i++)
        qr_buf_printf(out, i == 0 ? "%d" : ",%d", call->ids[i]);
    qr_buf_append_cstr(out, "],\"token_strs\":");
    if (!call->return_token_strs) {
        qr_buf_append_cstr(out, "null}");
        return;
    }
    for (size_t i = 0; i < call->count; i++) {
        bool special;
        const char *token = qr_tokenizer_token(call->server->tokenizer, call->ids[i], &special);
        qr_buf_append_char(out, i == 0 ? '[' : ',');
        qr_json_append_string(out, qr_str_of(token != NULL ? token : ""));
    }
    qr_buf_append_cstr(out, call->count == 0 ? "[]}" : "]}");
}

static bool read_object(qr_str raw, qr_json **body, qr_api_error *error)
{
    qr_error err = {0};
    if (qr_json_parse(raw, &qr_json_limits_request, body, &err) != QR_OK)
        return qr_api_fail(error, 400, "invalid_json", NULL, "the body is not JSON that is served: %s",
                           err.message);
    return qr_json_is(*body, QR_JSON_OBJECT) ||
           qr_api_fail(error, 400, NULL, NULL, "the body is not a JSON object");
}

static bool run_tokenize(const qr_server *server, qr_str raw, qr_buf *reply, qr_api_error *error)
{
    tokenize_call call = {.server = server};
    qr_json *body = NULL;
    bool fine = read_object(raw, &body, error) && check_model(server, body, error) &&
                flag(body, "return_token_strs", false, &call.return_token_strs, error);
    if (fine)
        fine = qr_json_get(body, "messages") != NULL ? encode_messages(&call, body, raw, error)
                                                     : encode_prompt(&call, body, error);
    if (fine)
        append_tokens(&call, reply);
    qr_ids_free(call.ids);
    qr_json_free(body);
    return fine;
}

/* ---- Render ---------------------------------------------------------------------------------------- */

/* One prompt as vLLM's render routes give it. */
static void append_rendered(const tokenize_call *call, const char *prefix, size_t index, qr_buf *out)
{
    qr_str model = call->params.model.len > 0 ? call->params.model : qr_str_of(call->server->model_name);
    qr_buf_printf(out, "%s{\"request_id\":\"%s-%zu\",\"model\":", index > 0 ? "," : "", prefix, index);
    qr_json_append_string(out, model);
    qr_buf_append_cstr(out, ",\"token_ids\":[");
    for (size_t i = 0; i < call->count; i++)
        qr_buf_printf(out, i == 0 ? "%d" : ",%d", call->ids[i]);
    qr_buf_append_cstr(out, "]}");
}

static bool run_render_chat(const qr_server *server, qr_str raw, qr_buf *reply, qr_api_error *error)
{
    tokenize_call call = {.server = server};
    qr_buf prompt = {0};
    bool fine = render_messages(server, raw, &call.params, &prompt, error) &&
                check_model(server, call.params.body, error) &&
                encode(&call, qr_buf_str(&prompt), call.params.add_special_tokens, error);
    if (fine)
        append_rendered(&call, "chatcmpl-render", 0, reply);
    qr_ids_free(call.ids);
    qr_buf_release(&prompt);
    qr_api_params_release(&call.params);
    return fine;
}

static bool run_render_completions(const qr_server *server, qr_str raw, qr_buf *reply, qr_api_error *error)
{
    tokenize_call call = {.server = server};
    qr_api_params_init(&call.params, QR_API_COMPLETION, NULL);
    bool fine = qr_api_params_parse(&call.params, raw, &server->limits, error) &&
                check_model(server, call.params.body, error);
    qr_buf_append_char(reply, '[');
    for (size_t i = 0; fine && i < call.params.prompt_count; i++) {
        const qr_api_prompt *prompt = &call.params.prompts[i];
        tokenize_call one = call;
        one.ids = NULL;
        if (prompt->text != NULL) {
            fine = encode(&one, qr_str_make(prompt->text, prompt->text_bytes), call.params.add_special_tokens,
                          error);
        } else {
            one.ids = (int32_t *)(uintptr_t)prompt->ids; /* borrowed */
            one.count = prompt->id_count;
        }
        if (fine)
            append_rendered(&one, "cmpl-render", i, reply);
        if (prompt->text != NULL)
            qr_ids_free(one.ids);
    }
    qr_buf_append_char(reply, ']');
    qr_api_params_release(&call.params);
    return fine;
}

/* ---- Back ------------------------------------------------------------------------------------------ */

static bool read_token_list(const qr_server *server, const qr_json *tokens, int32_t *ids, qr_api_error *error)
{
    for (size_t i = 0; i < qr_json_count(tokens); i++) {
        const qr_json *item = qr_json_at(tokens, i);
        int64_t id = qr_json_is(item, QR_JSON_INT) ? qr_json_int(item, -1) : -1;
        if (id < 0 || id >= server->limits.vocab_size)
            return qr_api_fail(error, 400, NULL, "tokens", "tokens[%zu] is not a token id in [0, %d)", i,
                               server->limits.vocab_size);
        ids[i] = (int32_t)id;
    }
    return true;
}

static bool run_detokenize(const qr_server *server, qr_str raw, qr_buf *reply, qr_api_error *error)
{
    qr_json *body = NULL;
    char *text = NULL;
    size_t bytes = 0;
    int32_t *ids = NULL;
    bool fine = read_object(raw, &body, error) && check_model(server, body, error);
    const qr_json *tokens = qr_json_get(body, "tokens");
    if (fine && !qr_json_is(tokens, QR_JSON_ARRAY))
        fine = qr_api_fail(error, 400, NULL, "tokens", "tokens: expected a list of token ids");
    if (fine) {
        ids = qr_calloc(qr_json_count(tokens) + 1, sizeof(*ids));
        fine = read_token_list(server, tokens, ids, error);
    }
    if (fine) {
        qr_error err = {0};
        qr_status status =
            qr_tokenizer_decode(server->tokenizer, ids, qr_json_count(tokens), false, &text, &bytes, &err);
        fine = status == QR_OK || qr_api_fail_status(error, status, err.message);
    }
    if (fine) {
        qr_buf_append_cstr(reply, "{\"prompt\":");
        qr_json_append_string(reply, qr_str_make(text, bytes));
        qr_buf_append_char(reply, '}');
    }
    qr_string_free(text);
    qr_free(ids);
    qr_json_free(body);
    return fine;
}

/* ---- The job --------------------------------------------------------------------------------------- */

typedef bool (*tokenize_run)(const qr_server *server, qr_str body, qr_buf *reply, qr_api_error *error);

typedef struct tokenize_job {
    qr_owner owner; /* QR_OWNER_TOKENIZE */
    qr_job job;
    qr_http_conn *conn; /* NULL: the client left */
    const qr_server *server;
    tokenize_run run;
    qr_buf body, reply;
    qr_api_error error;
    bool fine;
} tokenize_job;

static tokenize_job *job_of(qr_job *job) { return QR_LIST_ITEM(job, tokenize_job, job); }

static void job_run(qr_job *job)
{
    tokenize_job *self = job_of(job);
    self->fine = self->run(self->server, qr_buf_str(&self->body), &self->reply, &self->error);
}

static void job_done(qr_job *job)
{
    tokenize_job *self = job_of(job);
    if (self->conn != NULL && self->fine)
        qr_http_reply(self->conn, 200, "application/json", qr_buf_str(&self->reply));
    else if (self->conn != NULL)
        qr_reply_error(self->conn, &self->error);
    qr_buf_release(&self->body);
    qr_buf_release(&self->reply);
    qr_free(self);
}

void qr_tokenize_gone(void *owner) { ((tokenize_job *)owner)->conn = NULL; }

static void serve(qr_server *server, qr_http_conn *conn, tokenize_run run)
{
    qr_api_error error = {0};
    if (server->tokenizer == NULL) {
        (void)qr_api_fail(&error, 400, "no_tokenizer", NULL,
                          "this checkpoint has no tokenizer: prompts are token ids");
        qr_reply_error(conn, &error);
        return;
    }
    tokenize_job *self = qr_calloc(1, sizeof(*self));
    *self = (tokenize_job){.owner.kind = QR_OWNER_TOKENIZE,
                           .job = {job_run, job_done},
                           .conn = conn,
                           .server = server,
                           .run = run};
    qr_buf_append_str(&self->body, qr_http_conn_request(conn)->body);
    qr_http_conn_drop_body(conn);
    if (qr_worker_submit(server->worker, &self->job)) {
        qr_http_conn_set_owner(conn, self);
        return;
    }
    (void)qr_api_fail(&self->error, 429, "server_overloaded", NULL,
                      "too many requests of this kind wait already: try again");
    job_done(&self->job);
}

void qr_serve_tokenize(qr_server *server, qr_http_conn *conn) { serve(server, conn, run_tokenize); }

void qr_serve_detokenize(qr_server *server, qr_http_conn *conn) { serve(server, conn, run_detokenize); }

void qr_serve_apply_template(qr_server *server, qr_http_conn *conn)
{
    serve(server, conn, run_apply_template);
}

void qr_serve_render_chat(qr_server *server, qr_http_conn *conn) { serve(server, conn, run_render_chat); }

void qr_serve_render_completions(qr_server *server, qr_http_conn *conn)
{
    serve(server, conn, run_render_completions);
}
