/* Answers: what the model said, split into reasoning, content and tool calls (qr_output_parser_* of quire.h) as it
 * comes, the same way for whole replies and for streams. A call whose text is passed on as it is has no answers.
 *
 *     qr_answers_begin (at submission: which styles, what the prompt has to end in, which tokens stay in the text)
 *       -> qr_answer_take (each event: the pieces) -> qr_answers_release
 * Thread: I/O.
 */
#ifndef QR_SERVER_ANSWER_H
#define QR_SERVER_ANSWER_H

#include "base/vec.h"
#include "server/call.h"

/* One tool call. A stream only counts its calls; a whole reply keeps what they say. */
typedef struct qr_answer_call {
    char id[32];
    qr_buf name, arguments;
} qr_answer_call;

struct qr_answer {
    qr_output_parser *parser;
    qr_buf reasoning, content; /* of whole replies */
    QR_VEC(qr_answer_call) calls;
};

/* Of the whole call. */
struct qr_answers {
    qr_output_parser_options options; /* borrows from the call and from what follows */
    const char *const *tool_names;
    qr_buf tools_json;
    qr_buf opening; /* what the prompt ends in beyond the template, and each answer begins with */
    int32_t kept_ids[16];
    size_t kept_count;
};

/* Sets call->answers when the text is to be split. false: the request asks for calls that cannot be had. */
bool qr_answers_begin(qr_call *call, qr_api_error *error);
void qr_answers_release(qr_call *call);
/* What the prompt of such a request ends in: appended to out. */
bool qr_answers_opening(const qr_server *server, const qr_api_params *params, qr_buf *out,
                        qr_api_error *error);

/* Called for each piece in turn. tool: of the three TOOL kinds. */
typedef void (*qr_answer_sink)(qr_call *call, qr_choice *choice, const qr_output_delta *piece,
                               const qr_answer_call *tool, void *user);
/* Takes an event's text; what the request does not want to see is left out. */
bool qr_answer_take(qr_call *call, qr_choice *choice, const qr_event *event, qr_answer_sink sink, void *user,
                    qr_api_error *error);
/* The sink of whole replies: keeps the pieces in choice->answer. */
void qr_answer_keep(qr_call *call, qr_choice *choice, const qr_output_delta *piece,
                    const qr_answer_call *tool, void *user);
/* "finish_reason" of a choice that has ended: a reply that called and was not cut says "tool_calls". */
const char *qr_answer_finish(const qr_call *call, const qr_choice *choice);

/* Resolves "auto" by the template and checks the names; once before a model is there, once with it. */
qr_status qr_answer_styles(qr_server *server, qr_error *err);

#endif
