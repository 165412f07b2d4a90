/* The harmony format of gpt-oss: messages with a channel. `analysis` is reasoning, a message to a function is a call,
 * the rest is content. The prompt ends in <|start|>assistant, so the text begins inside a header. */
#include <string.h>

#include "base/mem.h"
#include "text/output_parser.h"

enum { H_FIRST, H_HEADER, H_BODY, H_BETWEEN };
enum { B_CONTENT, B_REASONING, B_CALL, B_OTHER };
enum { M_START, M_CHANNEL, M_MESSAGE, M_END, M_RETURN, M_CALL, M_CONSTRAIN };
enum { HEADER_BYTES_MAX = 1024 };

/* The header is kept as text in which <|channel|> is \1 and <|constrain|> is \2. */
static qr_str word_after(qr_str text, const char *what)
{
    ptrdiff_t at = qr_str_find(text, qr_str_of(what), 0);
    if (at < 0)
        return qr_str_make("", 0);
    size_t begin = (size_t)at + strlen(what), end = begin;
    while (end < text.len && !qr_output_is_space(text.data[end]) && text.data[end] > '\2')
        end++;
    return qr_str_make(text.data + begin, end - begin);
}

static bool from_assistant(qr_str header)
{
    while (header.len > 0 && qr_output_is_space(header.data[0]))
        header = qr_str_make(header.data + 1, header.len - 1);
    return header.len == 0 || header.data[0] == '\1' || qr_str_starts(header, QR_STR("to=")) ||
           qr_str_starts(header, QR_STR("assistant"));
}

static void open_body(qr_output_parser *p)
{
    qr_str header = qr_buf_str(&p->header);
    qr_str channel = header.len > 0 ? word_after(header, "\1") : qr_str_make("", 0);
    qr_str recipient = header.len > 0 ? word_after(header, "to=") : qr_str_make("", 0);
    p->state = H_BODY;
    p->body = qr_str_equals(channel, "analysis") ? B_REASONING : B_CONTENT;
    if (!from_assistant(header)) {
        p->body = B_OTHER; /* another's message, which a model makes up when it does not stop */
    } else if (recipient.len > 0 && p->keep_calls) {
        if (qr_str_starts(recipient, QR_STR("functions.")))
            recipient = qr_str_make(recipient.data + 10, recipient.len - 10);
        p->body = B_CALL;
        qr_output_begin_call(p, recipient);
    }
    qr_buf_clear(&p->header);
}

static void close_body(qr_output_parser *p)
{
    if (p->body == B_CALL)
        qr_output_end_call(p);
    p->state = H_BETWEEN;
}

static void body_byte(qr_output_parser *p, char c)
{
    if (p->body == B_CALL)
        qr_output_byte(p, QR_OUTPUT_TOOL_ARGUMENTS, c);
    else if (p->body == B_REASONING)
        qr_output_byte(p, QR_OUTPUT_REASONING, c);
    else if (p->body == B_CONTENT)
        qr_output_byte(p, QR_OUTPUT_CONTENT, c);
}

static void give_header(qr_output_parser *p)
{
    p->state = H_BODY;
    p->body = B_CONTENT;
    for (size_t i = 0; i < p->header.len; i++)
        body_byte(p, p->header.data[i]);
    qr_buf_clear(&p->header);
}

/* Text that begins without a mark may only be " to=..."; otherwise it is an answer without a header. */
static bool may_be_header(qr_str text)
{
    static const char wanted[] = "to=";
    while (text.len > 0 && qr_output_is_space(text.data[0]))
        text = qr_str_make(text.data + 1, text.len - 1);
    size_t common = QR_MIN(text.len, sizeof(wanted) - 1);
    return common == 0 || memcmp(text.data, wanted, common) == 0;
}

static void text_byte(qr_output_parser *p, char c)
{
    switch (p->state) {
    case H_FIRST:
    case H_HEADER:
        qr_buf_append_char(&p->header, c);
        if (p->state == H_FIRST ? !may_be_header(qr_buf_str(&p->header)) : p->header.len > HEADER_BYTES_MAX)
            give_header(p);
        return;
    case H_BODY: body_byte(p, c); return;
    default: /* between messages: nothing belongs here but white space */
        if (qr_output_is_space(c))
            return;
        p->state = H_BODY;
        p->body = B_CONTENT;
        body_byte(p, c);
    }
}

void qr_tools_harmony_feed(qr_output_parser *p, char c)
{
    int mark = qr_mark_finder_feed(&p->marks, c, text_byte, p);
    switch (mark) {
    case M_START:
        if (p->state == H_BODY)
            close_body(p);
        qr_buf_clear(&p->header);
        p->state = H_HEADER;
        return;
    case M_CHANNEL:
        if (p->state == H_BODY)
            close_body(p);
        if (p->state == H_BETWEEN)
            qr_buf_clear(&p->header);
        p->state = H_HEADER;
        qr_buf_append_char(&p->header, '\1');
        return;
    case M_CONSTRAIN:
        if (p->state == H_HEADER)
            qr_buf_append_char(&p->header, '\2');
        return;
    case M_MESSAGE:
        if (p->state != H_BODY)
            open_body(p);
        return;
    case M_END:
    case M_RETURN:
    case M_CALL:
        if (p->state == H_BODY)
            close_body(p);
        qr_buf_clear(&p->header);
        p->state = H_BETWEEN;
        return;
    default: return;
    }
}

void qr_tools_harmony_finish(qr_output_parser *p)
{
    qr_mark_finder_flush(&p->marks, text_byte, p);
    if (p->state == H_FIRST && p->header.len > 0)
        give_header(p);
    if (p->state == H_BODY)
        close_body(p);
}
