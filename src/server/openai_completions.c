/* /v1/completions: text or token ids in, one choice for each prompt and sample. */
#include "server/call.h"
#include "server/logprobs.h"
#include "server/sse.h"

static qr_logprob_style style_of(const qr_call *call)
{
    return (qr_logprob_style){call->server->tokenizer, call->params.return_tokens_as_token_ids};
}

static qr_str text_of(const qr_buf *buf) { return buf->data != NULL ? qr_buf_str(buf) : qr_str_make("", 0); }

/* The prompt's tokens, the first of them without a value. */
static void add_prompt_logprobs(qr_logprob_lists *lists, const qr_request_facts *facts)
{
    for (size_t i = 0; i < facts->prompt_count; i++) {
        const qr_logprob *row = facts->prompt_logprobs != NULL
                                    ? facts->prompt_logprobs + i * facts->prompt_logprob_columns
                                    : NULL;
        qr_logprob_lists_add(lists, facts->prompt_ids[i], row, facts->prompt_logprob_columns);
    }
}

static void completion_open(qr_call *call, qr_choice *choice, qr_buf *out)
{
    if (!call->params.echo && !call->params.return_token_ids)
        return;
    qr_request_facts facts = qr_choice_facts(choice);
    qr_buf text = {0};
    if (call->params.echo)
        qr_call_append_prompt_text(call, choice->prompt, &text);
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_cstr(out, "\"text\":");
    qr_json_append_string(out, text_of(&text));
    qr_buf_append_cstr(out, ",\"logprobs\":");
    if (call->params.echo && call->params.sampling.logprobs >= 0) {
        qr_logprob_lists lists;
        qr_logprob_lists_init(&lists, style_of(call), 0);
        add_prompt_logprobs(&lists, &facts);
        choice->text_offset = lists.offset;
        qr_logprob_lists_finish(&lists, out);
    } else {
        qr_buf_append_cstr(out, "null");
    }
    qr_buf_append_cstr(out, ",\"finish_reason\":null");
    if (call->params.return_token_ids) {
        qr_buf_append_cstr(out, ",\"prompt_token_ids\":");
        qr_call_append_ids(out, facts.prompt_ids, facts.prompt_count);
    }
    qr_sse_chunk_end(call, out);
    qr_buf_release(&text);
}

static void append_stream_logprobs(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out)
{
    size_t columns = (size_t)call->params.sampling.logprobs + 1;
    qr_logprob_lists lists;
    qr_logprob_lists_init(&lists, style_of(call), choice->text_offset);
    for (size_t i = 0; i < event->token_count; i++)
        qr_logprob_lists_add(&lists, event->token_ids[i], event->logprobs + i * columns, columns);
    choice->text_offset = lists.offset;
    qr_logprob_lists_finish(&lists, out);
}

static void completion_chunk(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out)
{
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_str(out, QR_STR("\"text\":"));
    qr_json_append_string(out, qr_str_make(event->text != NULL ? event->text : "", event->text_bytes));
    qr_buf_append_str(out, QR_STR(",\"logprobs\":"));
    if (event->logprobs != NULL && call->params.sampling.logprobs >= 0)
        append_stream_logprobs(call, choice, event, out);
    else
        qr_buf_append_str(out, QR_STR("null"));
    qr_buf_append_str(out, QR_STR(",\"finish_reason\":null"));
    if (call->params.return_token_ids) {
        qr_buf_append_str(out, QR_STR(",\"token_ids\":"));
        qr_call_append_ids(out, event->token_ids, event->token_count);
    }
    qr_sse_chunk_end(call, out);
}

static void completion_close(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_cstr(out, "\"text\":\"\",\"logprobs\":null,\"finish_reason\":");
    qr_call_append_finish(out, choice->finish);
    if (qr_call_has_stop_reason(call, choice)) {
        qr_buf_append_cstr(out, ",\"stop_reason\":");
        qr_call_append_stop_reason(call, choice, out);
    }
    qr_sse_chunk_end(call, out);
}

/* With echo the lists cover the prompt too, its first token without a value. */
static void append_whole_logprobs(qr_call *call, qr_choice *choice, qr_sample_view view, qr_buf *out)
{
    qr_logprob_lists lists;
    qr_logprob_lists_init(&lists, style_of(call), 0);
    if (call->params.echo) {
        qr_request_facts facts = qr_choice_facts(choice);
        add_prompt_logprobs(&lists, &facts);
    }
    for (size_t i = 0; i < view.token_count && view.logprobs != NULL; i++)
        qr_logprob_lists_add(&lists, view.token_ids[i], view.logprobs + i * view.logprob_columns,
                             view.logprob_columns);
    qr_logprob_lists_finish(&lists, out);
}

static void append_prompt_members(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_request_facts facts = qr_choice_facts(choice);
    qr_buf_printf(out, ",\"seed\":%lld", (long long)facts.seed);
    if (call->params.return_token_ids) {
        qr_buf_append_cstr(out, ",\"prompt_token_ids\":");
        qr_call_append_ids(out, facts.prompt_ids, facts.prompt_count);
    }
    if (call->params.sampling.prompt_logprobs >= 0) {
        qr_buf_append_cstr(out, ",\"prompt_logprobs\":");
        qr_logprobs_append_prompt(style_of(call), &facts, out);
    }
    if (call->params.return_prompt_text) {
        qr_buf text = {0};
        qr_call_append_prompt_text(call, choice->prompt, &text);
        qr_buf_append_cstr(out, ",\"prompt_text\":");
        qr_json_append_string(out, text_of(&text));
        qr_buf_release(&text);
    }
}

static void completion_choice(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sample_view view = qr_choice_view(choice);
    qr_buf text = {0};
    if (call->params.echo)
        qr_call_append_prompt_text(call, choice->prompt, &text);
    qr_buf_append(&text, view.text, view.text_bytes);
    qr_buf_printf(out, "{\"index\":%zu,\"text\":", choice->index);
    qr_json_append_string(out, text_of(&text));
    qr_buf_release(&text);
    qr_buf_append_cstr(out, ",\"logprobs\":");
    if (call->params.sampling.logprobs >= 0)
        append_whole_logprobs(call, choice, view, out);
    else
        qr_buf_append_cstr(out, "null");
    qr_buf_append_cstr(out, ",\"finish_reason\":");
    qr_call_append_finish(out, choice->finish);
    qr_buf_append_cstr(out, ",\"stop_reason\":");
    qr_call_append_stop_reason(call, choice, out);
    if (call->params.return_token_ids) {
        qr_buf_append_cstr(out, ",\"token_ids\":");
        qr_call_append_ids(out, view.token_ids, view.token_count);
    }
    append_prompt_members(call, choice, out);
    qr_buf_append_char(out, '}');
}

static void completion_extras(qr_call *call, qr_buf *out)
{
    (void)call;
    (void)out;
}

static const qr_call_format completion_format = {
    .id_prefix = "cmpl",
    .whole_object = "text_completion",
    .chunk_object = "text_completion",
    .open = completion_open,
    .chunk = completion_chunk,
    .close = completion_close,
    .choice = completion_choice,
    .extras = completion_extras,
};

void qr_serve_completions(qr_server *server, qr_http_conn *conn)
{
    qr_call_begin(server, conn, &completion_format, QR_API_COMPLETION);
}
