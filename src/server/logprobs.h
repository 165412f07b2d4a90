/* Log-probabilities as OpenAI and vLLM shape them. Thread: I/O. */
#ifndef QR_SERVER_LOGPROBS_H
#define QR_SERVER_LOGPROBS_H

#include "base/str.h"
#include "quire.h"

typedef struct qr_logprob_style {
    const qr_tokenizer *tokenizer; /* NULL: ids stand for text */
    bool as_ids;                   /* return_tokens_as_token_ids */
} qr_logprob_style;

/* `{"content":[...],"refusal":null}` for `count` tokens of `columns` entries each. */
void qr_logprobs_append_chat(qr_logprob_style style, const qr_logprob *rows, size_t count, size_t columns,
                             qr_buf *out);

/* Completions' four parallel lists, gathered over prompt (with echo) and output. */
typedef struct qr_logprob_lists {
    qr_logprob_style style;
    qr_buf tokens, values, tops, offsets;
    size_t offset; /* characters so far */
    size_t count;
} qr_logprob_lists;
void qr_logprob_lists_init(qr_logprob_lists *lists, qr_logprob_style style, size_t offset);
/* A token and its row; row NULL: no value (the first prompt token). */
void qr_logprob_lists_add(qr_logprob_lists *lists, int32_t token, const qr_logprob *row, size_t columns);
/* `{"tokens":...,"token_logprobs":...,"top_logprobs":...,"text_offset":...}`; releases the lists. */
void qr_logprob_lists_finish(qr_logprob_lists *lists, qr_buf *out);

/* vLLM's prompt_logprobs: [null, {"id": {"logprob","rank","decoded_token"}}, ...] */
void qr_logprobs_append_prompt(qr_logprob_style style, const qr_request_facts *facts, qr_buf *out);

#endif
