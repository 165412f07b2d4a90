/* /v1/chat/completions: OpenAI's shapes, byte for byte where no extra field was asked for. */
#include "server/answer.h"
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

/* ---- Chunks of an answer that is split ---- */

/* Tokens and their logprobs go with an event's first chunk. */
typedef struct piece_writer {
    const qr_event *event; /* NULL once its tokens are out */
    qr_buf *out;
} piece_writer;

static void end_piece(qr_call *call, piece_writer *writer)
{
    const qr_event *event = writer->event;
    qr_buf *out = writer->out;
    writer->event = NULL;
    qr_buf_append_str(out, QR_STR("},\"logprobs\":"));
    if (event != NULL && event->logprobs != NULL && call->params.sampling.logprobs >= 0)
        qr_logprobs_append_chat(style_of(call), event->logprobs, event->token_count,
                                (size_t)call->params.sampling.logprobs + 1, out);
    else
        qr_buf_append_str(out, QR_STR("null"));
    qr_buf_append_str(out, QR_STR(",\"finish_reason\":null"));
    if (event != NULL && call->params.return_token_ids) {
        qr_buf_append_str(out, QR_STR(",\"token_ids\":"));
        qr_call_append_ids(out, event->token_ids, event->token_count);
    }
    qr_sse_chunk_end(call, out);
}

/* vLLM's clients read the older name of reasoning, too. */
static void append_reasoning(qr_str text, qr_buf *out)
{
    qr_buf_append_str(out, QR_STR("\"reasoning\":"));
    qr_json_append_string(out, text);
    qr_buf_append_str(out, QR_STR(",\"reasoning_content\":"));
    qr_json_append_string(out, text);
}

static void append_call(const qr_answer_call *tool, qr_str name, qr_str arguments, qr_buf *out)
{
    qr_buf_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", tool->id);
    qr_json_append_string(out, name);
    qr_buf_append_str(out, QR_STR(",\"arguments\":"));
    qr_json_append_string(out, arguments);
    qr_buf_append_char(out, '}');
}

static void write_piece(qr_call *call, qr_choice *choice, const qr_output_delta *piece,
                        const qr_answer_call *tool, void *user)
{
    piece_writer *writer = user;
    qr_buf *out = writer->out;
    qr_str text = qr_str_make(piece->text, piece->bytes);
    if (piece->kind == QR_OUTPUT_TOOL_END)
        return;
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_str(out, QR_STR("\"delta\":{"));
    if (tool != NULL) {
        qr_buf_printf(out, "\"tool_calls\":[{\"index\":%d,", piece->tool_index);
        if (piece->kind == QR_OUTPUT_TOOL_BEGIN) {
            append_call(tool, text, qr_str_make("", 0), out);
        } else {
            qr_buf_append_str(out, QR_STR("\"function\":{\"arguments\":"));
            qr_json_append_string(out, text);
            qr_buf_append_char(out, '}');
        }
        qr_buf_append_str(out, QR_STR("}]"));
    } else if (piece->kind == QR_OUTPUT_REASONING) {
        append_reasoning(text, out);
    } else {
        qr_buf_append_str(out, QR_STR("\"content\":"));
        qr_json_append_string(out, text);
    }
    end_piece(call, writer);
}

static bool chat_pieces(qr_call *call, qr_choice *choice, const qr_event *event, qr_buf *out,
                        qr_api_error *error)
{
    piece_writer writer = {event, out};
    if (!qr_answer_take(call, choice, event, write_piece, &writer, error))
        return false;
    bool tokens_asked = call->params.return_token_ids || call->params.sampling.logprobs >= 0;
    if (writer.event != NULL && event->token_count > 0 && tokens_asked) { /* their text is still held back */
        qr_sse_chunk_begin(call, choice->index, out);
        qr_buf_append_str(out, QR_STR("\"delta\":{\"content\":\"\""));
        end_piece(call, &writer);
    }
    return true;
}

static void append_finish(const qr_call *call, const qr_choice *choice, qr_buf *out)
{
    const char *name = qr_answer_finish(call, choice);
    qr_buf_printf(out, name != NULL ? "\"%s\"" : "null", name);
}

static void chat_close(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sse_chunk_begin(call, choice->index, out);
    qr_buf_append_cstr(out, "\"delta\":{},\"logprobs\":null,\"finish_reason\":");
    append_finish(call, choice, out);
    if (qr_call_has_stop_reason(call, choice)) {
        qr_buf_append_cstr(out, ",\"stop_reason\":");
        qr_call_append_stop_reason(call, choice, out);
    }
    qr_sse_chunk_end(call, out);
}

static void append_calls(const struct qr_answer *answer, qr_buf *out)
{
    qr_buf_append_cstr(out, ",\"tool_calls\":[");
    for (size_t i = 0; i < answer->calls.count; i++) {
        const qr_answer_call *tool = &answer->calls.data[i];
        qr_buf_append_cstr(out, i == 0 ? "{" : ",{");
        append_call(tool, qr_buf_str(&tool->name), qr_buf_str(&tool->arguments), out);
        qr_buf_append_char(out, '}');
    }
    qr_buf_append_char(out, ']');
}

/* No content beside calls or reasoning is null. */
static void append_message(qr_call *call, const qr_choice *choice, qr_sample_view view, qr_buf *out)
{
    const struct qr_answer *answer = choice->answer;
    qr_buf text = {0};
    qr_buf_append_str(&text, echoed(call));
    if (answer != NULL)
        qr_buf_append_str(&text, qr_buf_str(&answer->content));
    else
        qr_buf_append(&text, view.text, view.text_bytes);
    bool calls = answer != NULL && answer->calls.count > 0,
         thought = answer != NULL && answer->reasoning.len > 0;
    qr_buf_append_cstr(out, ",\"message\":{\"role\":");
    qr_json_append_string(out, qr_str_of(call->server->options.response_role));
    qr_buf_append_cstr(out, ",\"content\":");
    if (text.len == 0 && (calls || thought))
        qr_buf_append_cstr(out, "null");
    else
        qr_json_append_string(out, text.data != NULL ? qr_buf_str(&text) : qr_str_make("", 0));
    qr_buf_append_cstr(out, ",\"refusal\":null");
    if (thought) {
        qr_buf_append_char(out, ',');
        append_reasoning(qr_buf_str(&answer->reasoning), out);
    }
    if (calls)
        append_calls(answer, out);
    qr_buf_append_char(out, '}');
    qr_buf_release(&text);
}

static void chat_choice(qr_call *call, qr_choice *choice, qr_buf *out)
{
    qr_sample_view view = qr_choice_view(choice);
    qr_buf_printf(out, "{\"index\":%zu", choice->index);
    append_message(call, choice, view, out);
    qr_buf_append_cstr(out, ",\"logprobs\":");
    if (view.logprobs != NULL && view.logprob_columns > 0)
        qr_logprobs_append_chat(style_of(call), view.logprobs, view.token_count, view.logprob_columns, out);
    else
        qr_buf_append_cstr(out, "null");
    qr_buf_append_cstr(out, ",\"finish_reason\":");
    append_finish(call, choice, out);
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
    .pieces = chat_pieces,
    .close = chat_close,
    .choice = chat_choice,
    .extras = chat_extras,
};

void qr_serve_chat(qr_server *server, qr_http_conn *conn)
{
    qr_call_begin(server, conn, &chat_format, QR_API_CHAT);
}
