#include "server/resume.h"

#include "base/mem.h"
#include "server/answer.h"
#include "server/logprobs.h"

/* ---- The request ---- */

static bool read_flag(const qr_json *value, const char *name, bool *out, qr_api_error *error)
{
    const qr_json *flag = qr_json_get(value, name);
    if (flag == NULL)
        return true;
    *out = qr_json_bool(flag, false);
    return qr_json_is(flag, QR_JSON_BOOL) ||
           qr_api_fail(error, 400, NULL, "resume", "resume: %s: expected a boolean", name);
}

static bool read_count(const qr_json *value, const char *name, int64_t *out, qr_api_error *error)
{
    const qr_json *count = qr_json_get(value, name);
    *out = qr_json_int(count, -1);
    return (qr_json_is(count, QR_JSON_INT) && *out >= 0) ||
           qr_api_fail(error, 400, NULL, "resume", "resume: %s: expected an integer that is not negative",
                       name);
}

bool qr_api_resume_read(const qr_json *value, qr_api_resume *out, qr_api_error *error)
{
    if (!qr_json_is(value, QR_JSON_OBJECT))
        return qr_api_fail(error, 400, NULL, "resume", "resume: expected an object");
    out->given = true;
    return read_count(value, "created", &out->created, error) &&
           read_count(value, "text_bytes", &out->text_bytes, error) &&
           read_flag(value, "opened", &out->opened, error) && read_flag(value, "closed", &out->closed, error);
}

bool qr_api_resume_settle(const qr_api_params *params, qr_api_error *error)
{
    bool asked = params->output_prefix_count > 0 || params->resume.given;
    if (!asked)
        return true;
    if (params->sampling.n != 1 || params->prompt_count != 1)
        return qr_api_fail(error, 400, NULL, params->resume.given ? "resume" : "output_prefix_ids",
                           "output_prefix_ids and resume: only of one prompt and n = 1");
    if (!params->sampling.has_seed && params->sampling.temperature > 0)
        return qr_api_fail(error, 400, NULL, "seed",
                           "output_prefix_ids and resume: need the seed of the reply that they continue");
    if (params->resume.given && !params->stream)
        return qr_api_fail(error, 400, NULL, "resume", "resume: needs stream: true");
    return true;
}

/* ---- The call ---- */

void qr_resume_begin(qr_call *call)
{
    const qr_api_params *params = &call->params;
    call->marks = qr_str_equals(qr_http_conn_request(call->conn)->headers[QR_HEADER_X_QUIRE_MARKS], "1");
    if (params->output_prefix_count == 0 && !params->resume.given)
        return;
    qr_choice *choice = &call->choices[0];
    choice->tokens = params->output_prefix_count;
    if (!params->resume.given)
        return;
    call->created = params->resume.created;
    choice->text_bytes = (size_t)params->resume.text_bytes;
    choice->opened = params->resume.opened;
}

void qr_resume_add_headers(const qr_call *call)
{
    if (call->marks)
        qr_http_conn_add_header(call->conn, "X-Quire-Created: %lld\r\nX-Quire-Fingerprint: %s\r\n",
                                (long long)call->created, qr_model_fingerprint(call->server->model));
}

/* Where text_offset of the log-probabilities goes on. */
static void find_offset(const qr_call *call, qr_choice *choice)
{
    const qr_api_params *params = &call->params;
    qr_logprob_lists lists;
    qr_buf unused = {0};
    qr_logprob_lists_init(&lists,
                          (qr_logprob_style){call->server->tokenizer, params->return_tokens_as_token_ids}, 0);
    qr_request_facts facts = qr_choice_facts(choice);
    for (size_t i = 0; params->echo && i < facts.prompt_count; i++)
        qr_logprob_lists_add(&lists, facts.prompt_ids[i], NULL, 0);
    for (size_t i = 0; i < params->output_prefix_count; i++)
        qr_logprob_lists_add(&lists, params->output_prefix_ids[i], NULL, 0);
    choice->text_offset = lists.offset;
    qr_logprob_lists_finish(&lists, &unused);
    qr_buf_release(&unused);
}

static void ignore_piece(qr_call *call, qr_choice *choice, const qr_output_delta *piece,
                         const qr_answer_call *tool, void *user)
{
    (void)call;
    (void)choice;
    (void)piece;
    (void)tool;
    (void)user;
}

bool qr_resume_choice(qr_call *call, qr_choice *choice, qr_api_error *error)
{
    const qr_api_params *params = &call->params;
    if (params->output_prefix_count == 0 && !params->resume.opened)
        return true;
    if (params->kind == QR_API_COMPLETION && params->stream && params->sampling.logprobs >= 0)
        find_offset(call, choice);
    qr_event before = {.finish = QR_FINISH_NONE};
    before.text = qr_request_prefix_text(choice->prompt->request, &before.text_bytes);
    if (!params->resume.given)
        choice->text_bytes += before.text_bytes;
    if (call->answers == NULL)
        return true;
    /* The splitter sees what the client has. */
    return qr_answer_take(call, choice, &before, ignore_piece, NULL, error);
}

static void append_number(qr_buf *out, size_t value)
{
    char digits[24];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    qr_buf_append(out, digits + at, sizeof(digits) - at);
}

void qr_resume_mark(const qr_call *call, qr_choice *choice, qr_buf *out)
{
    const int32_t *ids = qr_choice_view(choice).token_ids - call->params.output_prefix_count;
    size_t from = QR_MAX(choice->marked, call->params.output_prefix_count);
    qr_buf_append_str(out, QR_STR(": quire "));
    append_number(out, choice->index);
    qr_buf_append_char(out, ' ');
    append_number(out, choice->text_bytes);
    qr_buf_append_char(out, ' ');
    for (size_t i = from; i < choice->tokens; i++) {
        if (i > from)
            qr_buf_append_char(out, ',');
        append_number(out, (size_t)ids[i]);
    }
    if (choice->finish != QR_FINISH_NONE)
        qr_buf_append_str(out, QR_STR(" closed"));
    qr_buf_append_str(out, QR_STR("\n\n"));
    choice->marked = choice->tokens;
}
