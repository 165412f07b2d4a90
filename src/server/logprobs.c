#include "server/logprobs.h"

#include <math.h>
#include <stdio.h>

#include "base/json.h"

/* What stands below the lowest finite value: JSON has no -inf (OpenAI and vLLM write the same). */
#define LOGPROB_FLOOR (-9999.0)
/* Longer tokens are asked for twice. */
#define TOKEN_BYTES   ((size_t)256)

static double floored(float logprob)
{
    return isfinite(logprob) && (double)logprob > LOGPROB_FLOOR ? (double)logprob : LOGPROB_FLOOR;
}

/* Nine digits read back as the same float. */
static void append_value(qr_buf *out, float logprob)
{
    char text[32];
    int len = snprintf(text, sizeof(text), "%.9g", floored(logprob));
    qr_buf_append(out, text, (size_t)len);
}

/* The token's bytes, which may be half a character; valid until the next call with the same scratch. */
static qr_str token_text(qr_logprob_style style, int32_t token, qr_buf *scratch)
{
    qr_buf_clear(scratch);
    if (style.as_ids || style.tokenizer == NULL) {
        qr_buf_printf(scratch, "token_id:%d", token);
        return qr_buf_str(scratch);
    }
    qr_buf_reserve(scratch, TOKEN_BYTES);
    size_t bytes = qr_tokenizer_piece(style.tokenizer, token, scratch->data, TOKEN_BYTES);
    if (bytes > TOKEN_BYTES) {
        qr_buf_reserve(scratch, bytes);
        (void)qr_tokenizer_piece(style.tokenizer, token, scratch->data, bytes);
    }
    scratch->len = bytes;
    return qr_buf_str(scratch);
}

static size_t characters(qr_str text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.len; i++)
        count += ((unsigned char)text.data[i] & 0xC0) != 0x80;
    return count;
}

static void append_bytes(qr_buf *out, qr_str text)
{
    qr_buf_append_char(out, '[');
    for (size_t i = 0; i < text.len; i++)
        qr_buf_printf(out, i == 0 ? "%u" : ",%u", (unsigned)(unsigned char)text.data[i]);
    qr_buf_append_char(out, ']');
}

static void append_chat_entry(qr_logprob_style style, const qr_logprob *entry, qr_buf *scratch, qr_buf *out)
{
    qr_str text = token_text(style, entry->token, scratch);
    qr_buf_append_cstr(out, "{\"token\":");
    qr_json_append_string(out, text);
    qr_buf_append_cstr(out, ",\"logprob\":");
    append_value(out, entry->logprob);
    qr_buf_append_cstr(out, ",\"bytes\":");
    append_bytes(out, text);
}

void qr_logprobs_append_chat(qr_logprob_style style, const qr_logprob *rows, size_t count, size_t columns,
                             qr_buf *out)
{
    qr_buf scratch = {0};
    qr_buf_append_cstr(out, "{\"content\":[");
    for (size_t i = 0; i < count; i++) {
        const qr_logprob *row = rows + i * columns;
        if (i > 0)
            qr_buf_append_char(out, ',');
        append_chat_entry(style, row, &scratch, out);
        qr_buf_append_cstr(out, ",\"top_logprobs\":[");
        for (size_t c = 1; c < columns && row[c].token >= 0; c++) {
            if (c > 1)
                qr_buf_append_char(out, ',');
            append_chat_entry(style, &row[c], &scratch, out);
            qr_buf_append_char(out, '}');
        }
        qr_buf_append_cstr(out, "]}");
    }
    qr_buf_append_cstr(out, "],\"refusal\":null}");
    qr_buf_release(&scratch);
}

void qr_logprob_lists_init(qr_logprob_lists *lists, qr_logprob_style style, size_t offset)
{
    *lists = (qr_logprob_lists){.style = style, .offset = offset};
}

/* The best, then the chosen one unless it is among them. Two tokens that read the same (halves of a character) give a
 * key twice, as vLLM's dictionary would merge them; return_tokens_as_token_ids tells them apart. */
static void append_top(qr_logprob_lists *lists, const qr_logprob *row, size_t columns, qr_buf *scratch)
{
    bool chosen_seen = false;
    size_t written = 0;
    qr_buf_append_char(&lists->tops, '{');
    for (size_t c = 1; c <= columns; c++) {
        const qr_logprob *entry = c < columns ? &row[c] : &row[0];
        if (entry->token < 0 || (c == columns && chosen_seen))
            continue;
        chosen_seen = chosen_seen || entry->token == row[0].token;
        if (written++ > 0)
            qr_buf_append_char(&lists->tops, ',');
        qr_json_append_string(&lists->tops, token_text(lists->style, entry->token, scratch));
        qr_buf_append_char(&lists->tops, ':');
        append_value(&lists->tops, entry->logprob);
    }
    qr_buf_append_char(&lists->tops, '}');
}

void qr_logprob_lists_add(qr_logprob_lists *lists, int32_t token, const qr_logprob *row, size_t columns)
{
    qr_buf scratch = {0};
    if (lists->count++ > 0) {
        qr_buf_append_char(&lists->tokens, ',');
        qr_buf_append_char(&lists->values, ',');
        qr_buf_append_char(&lists->tops, ',');
        qr_buf_append_char(&lists->offsets, ',');
    }
    qr_json_append_string(&lists->tokens, token_text(lists->style, token, &scratch));
    qr_buf_printf(&lists->offsets, "%zu", lists->offset);
    qr_logprob_style plain = {lists->style.tokenizer, false};
    lists->offset += characters(token_text(plain, token, &scratch));
    if (row == NULL || row[0].token < 0) {
        qr_buf_append_cstr(&lists->values, "null");
        qr_buf_append_cstr(&lists->tops, "null");
    } else {
        append_value(&lists->values, row[0].logprob);
        append_top(lists, row, columns, &scratch);
    }
    qr_buf_release(&scratch);
}

void qr_logprob_lists_finish(qr_logprob_lists *lists, qr_buf *out)
{
    qr_buf_append_cstr(out, "{\"tokens\":[");
    qr_buf_append_str(out, qr_buf_str(&lists->tokens));
    qr_buf_append_cstr(out, "],\"token_logprobs\":[");
    qr_buf_append_str(out, qr_buf_str(&lists->values));
    qr_buf_append_cstr(out, "],\"top_logprobs\":[");
    qr_buf_append_str(out, qr_buf_str(&lists->tops));
    qr_buf_append_cstr(out, "],\"text_offset\":[");
    qr_buf_append_str(out, qr_buf_str(&lists->offsets));
    qr_buf_append_cstr(out, "]}");
    qr_buf_release(&lists->tokens);
    qr_buf_release(&lists->values);
    qr_buf_release(&lists->tops);
    qr_buf_release(&lists->offsets);
}

static void append_prompt_entry(qr_logprob_style style, const qr_logprob *entry, qr_buf *scratch, qr_buf *out)
{
    qr_buf_printf(out, "\"%d\":{\"logprob\":", entry->token);
    append_value(out, entry->logprob);
    qr_buf_printf(out, ",\"rank\":%d,\"decoded_token\":", entry->rank);
    qr_json_append_string(out, token_text(style, entry->token, scratch));
    qr_buf_append_char(out, '}');
}

void qr_logprobs_append_prompt(qr_logprob_style style, const qr_request_facts *facts, qr_buf *out)
{
    qr_buf scratch = {0};
    size_t columns = facts->prompt_logprob_columns;
    qr_buf_append_char(out, '[');
    for (size_t i = 0; facts->prompt_logprobs != NULL && i < facts->prompt_count; i++) {
        const qr_logprob *row = facts->prompt_logprobs + i * columns;
        if (i > 0)
            qr_buf_append_char(out, ',');
        if (row[0].token < 0) {
            qr_buf_append_cstr(out, "null");
            continue;
        }
        qr_buf_append_char(out, '{');
        append_prompt_entry(style, &row[0], &scratch, out);
        for (size_t c = 1; c < columns; c++) {
            if (row[c].token < 0 || row[c].token == row[0].token)
                continue;
            qr_buf_append_char(out, ',');
            append_prompt_entry(style, &row[c], &scratch, out);
        }
        qr_buf_append_char(out, '}');
    }
    qr_buf_append_char(out, ']');
    qr_buf_release(&scratch);
}
