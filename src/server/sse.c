#include "server/sse.h"

#include "base/json.h"

/* OpenAI's order of members. created and id are the call's; the text comes after. */
void qr_sse_prepare(qr_call *call)
{
    qr_buf *head = &call->head;
    qr_buf_append_cstr(head, "data: {\"id\":");
    qr_json_append_string(head, qr_str_of(call->id));
    qr_buf_printf(head, ",\"object\":\"%s\",\"created\":%lld,\"model\":", call->format->chunk_object,
                  (long long)call->created);
    qr_json_append_string(head, call->model);
    qr_buf_printf(head, ",\"system_fingerprint\":\"%s\",\"choices\":[", call->server->fingerprint);
}

/* A decimal without printf: this runs for every token. */
static void append_index(qr_buf *out, size_t value)
{
    char digits[24];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    qr_buf_append(out, digits + at, sizeof(digits) - at);
}

void qr_sse_chunk_begin(const qr_call *call, size_t index, qr_buf *out)
{
    qr_buf_append_str(out, qr_buf_str(&call->head));
    qr_buf_append_str(out, QR_STR("{\"index\":"));
    append_index(out, index);
    qr_buf_append_char(out, ',');
}

void qr_sse_chunk_end(const qr_call *call, qr_buf *out)
{
    qr_buf_append_str(out, QR_STR("}]"));
    if (call->params.continuous_usage) {
        qr_buf_append_str(out, QR_STR(",\"usage\":"));
        qr_usage_append(call, out);
    } else if (call->params.include_usage) {
        qr_buf_append_str(out, QR_STR(",\"usage\":null"));
    }
    qr_buf_append_str(out, QR_STR("}\n\n"));
}

void qr_sse_finish(const qr_call *call, qr_buf *out)
{
    if (call->params.include_usage) {
        qr_buf_append_str(out, qr_buf_str(&call->head));
        qr_buf_append_str(out, QR_STR("],\"usage\":"));
        qr_usage_append(call, out);
        qr_buf_append_str(out, QR_STR("}\n\n"));
    }
    qr_buf_append_str(out, QR_STR("data: [DONE]\n\n"));
}

void qr_sse_error(const qr_api_error *error, qr_buf *out)
{
    qr_buf_append_str(out, QR_STR("data: "));
    qr_api_error_append(error, out);
    qr_buf_append_str(out, QR_STR("\n\ndata: [DONE]\n\n"));
}

void qr_usage_append(const qr_call *call, qr_buf *out)
{
    size_t prompt = 0, cached = 0, completion = 0;
    for (size_t i = 0; i < call->prompt_count; i++) {
        if (!call->prompts[i].seen)
            continue;
        qr_request_facts facts = qr_request_describe(call->prompts[i].request);
        prompt += facts.prompt_count;
        cached += facts.cached_count;
    }
    for (size_t i = 0; i < call->choice_count; i++)
        completion += call->choices[i].tokens;
    qr_buf_printf(out, "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu", prompt,
                  completion, prompt + completion);
    if (call->server->options.created_unix_s == 0)
        qr_buf_printf(out, ",\"prompt_tokens_details\":{\"cached_tokens\":%zu}", cached);
    qr_buf_append_char(out, '}');
}
