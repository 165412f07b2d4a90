/* /v1/chat/completions: OpenAI's shapes, byte for byte where no extra field was asked for. */
#include "server/call.h"
#include "server/logprobs.h"
#include "server/sse.h"

static qr_logprob_style style_of(const qr_call *call)
{
    return (qr_logprob_style){call->server->tokenizer, call->params.return_tokens_as_token_ids};
}

/* The last message's own text, when the reply is to repeat it (echo). */
static qr_str echoed(const qr_call *call)
{
    const qr_json *messages = call->params.messages;
    const qr_json *last = qr_json_at(messages, qr_json_count(messages) - 1);
    if (!call->params.echo ||
        !qr_str_equals(qr_json_string(qr_json_get(last, "role")), call->server->options.response_role))
        return qr_str_make("", 0);
    qr_str content = qr_json_string(qr_json_get(last, "content"));
    return content.data != NULL ? content : qr_str_make("", 0);
}

static void append_content_chunk(qr_call *call, size_t index, qr_str text, qr_buf *out)
{
    qr_sse_chunk_begin(call, index, out);
    qr_buf_append_str(out, QR_STR("\"delta\":{\"content\":"));
    qr_json_append_string(out, text);
    qr_buf_append_str(out, QR_STR("},\"logprobs\":null,\"finish_reason\":null"));
    qr_sse_chunk_end(call, out);
}

static void chat_open(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_str echo = echoed(call);
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_cstr(out, "\"delta\":{\"role\":");
    qr_json_append_string(out, qr_str_of(call->server->options.response_role));
    qr_buf_append_cstr(out, ",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null");
    if (call->params.return_token_ids) {
        qr_request_facts facts = qr_choice_facts(choice);
        qr_buf_append_cstr(out, ",\"prompt_token_ids\":");
        qr_call_append_ids(out, facts.prompt_ids, facts.prompt_count);
    }
    qr_sse_chunk_end(call, out);
    if (echo.len > 0)
        append_content_chunk(call, choice->index, echo, out);
}

static void chat_chunk(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out)
{
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_str(out, QR_STR("\"delta\":{\"content\":"));
    qr_json_append_string(out, qr_str_make(event->text != NULL ? event->text : "", event->text_bytes));
    qr_buf_append_str(out, QR_STR("},\"logprobs\":"));
    if (event->logprobs != NULL && call->params.sampling.logprobs >= 0)
        qr_logprobs_append_chat(style_of(call), event->logprobs, event->token_count,
                                (size_t)call->params.sampling.logprobs + 1, out);
    else
        qr_buf_append_str(out, QR_STR("null"));
    qr_buf_append_str(out, QR_STR(",\"finish_reason\":null"));
    if (call->params.return_token_ids) {
        qr_buf_append_str(out, QR_STR(",\"token_ids\":"));
        qr_call_append_ids(out, event->token_ids, event->token_count);
    }
    qr_sse_chunk_end(call, out);
}

static void chat_close(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_cstr(out, "\"delta\":{},\"logprobs\":null,\"finish_reason\":");
    qr_call_append_finish(out, choice->finish);
    if (qr_call_has_stop_reason(call, choice)) {
        qr_buf_append_cstr(out, ",\"stop_reason\":");
        qr_call_append_stop_reason(call, choice, out);
    }
    qr_sse_chunk_end(call, out);
}

static void append_message(qr_call *call, qr_sample_view view, qr_buf *out)
{
    qr_buf text = {0};
    qr_buf_append_str(&text, echoed(call));
    qr_buf_append(&text, view.text, view.text_bytes);
    qr_buf_append_cstr(out, ",\"message\":{\"role\":");
    qr_json_append_string(out, qr_str_of(call->server->options.response_role));
    qr_buf_append_cstr(out, ",\"content\":");
    qr_json_append_string(out, text.data != NULL ? qr_buf_str(&text) : qr_str_make("", 0));
    qr_buf_append_cstr(out, ",\"refusal\":null}");
    qr_buf_release(&text);
}

static void chat_choice(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sample_view view = qr_choice_view(choice);
    qr_buf_printf(out, "{\"index\":%zu", choice->index);
    append_message(call, view, out);
    qr_buf_append_cstr(out, ",\"logprobs\":");
    if (view.logprobs != NULL && view.logprob_columns > 0)
        qr_logprobs_append_chat(style_of(call), view.logprobs, view.token_count, view.logprob_columns, out);
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
    qr_buf_append_char(out, '}');
}

static void chat_extras(qr_call *call, qr_buf *out)
{
    const qr_call_prompt *prompt = &call->prompts[0];
    qr_request_facts facts = qr_request_describe(prompt->request);
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
        qr_call_append_prompt_text(call, prompt, &text);
        qr_buf_append_cstr(out, ",\"prompt_text\":");
        qr_json_append_string(out, text.data != NULL ? qr_buf_str(&text) : qr_str_make("", 0));
        qr_buf_release(&text);
    }
}

static const qr_call_format chat_format = {
    .id_prefix = "chatcmpl",
    .whole_object = "chat.completion",
    .chunk_object = "chat.completion.chunk",
    .open = chat_open,
    .chunk = chat_chunk,
    .close = chat_close,
    .choice = chat_choice,
    .extras = chat_extras,
};

void qr_serve_chat(qr_server *server, qr_http_conn *conn)
{
    qr_call_begin(server, conn, &chat_format, QR_API_CHAT);
}
