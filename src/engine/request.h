/* A request: one prompt, 1..n samples, from submission to release.
 *
 *     qr_request_submit
 *        |  copies the options, charges the output budget, counts n waiting sequences
 *        v
 *     PREPARING [no blocks] ---- engine/prepare.c, text pool (or the submitter, when there is nothing to encode):
 *        |                       template, encode, checks, output memory, block keys
 *        v  inbox
 *     qr_engine_step: engine_admit
 *        |-- refused by prepare, or cancelled, or nothing to compute --> ENDED [no blocks]
 *        v
 *     LIVE: each sample is a qr_sequence (sequence.h draws its states and says which blocks each may hold)
 *        |  output_accept: stop id, stop string, length; qr_request_cancel; a failed device
 *        v
 *     ENDED [no blocks] when its last sample has ended and no step in flight names it
 *        |
 *        v  the reader has released it and the engine has let go of it (refs == 0): freed by whichever API call
 *           comes next (engine_reap): the engine thread itself frees nothing
 *
 * Output is append-only: ids, text and logprobs of a sample lie in one reserved mapping as large as the request can
 * need at most (pages are taken as they are written), so it never overflows, nothing is copied, and pointers in
 * events stay valid until release. The engine writes behind the published counts, the reader reads before them.
 * Thread: fields say whose they are.
 */
#ifndef QR_ENGINE_REQUEST_H
#define QR_ENGINE_REQUEST_H

#include <stdatomic.h>

#include "base/arena.h"
#include "base/status.h"
#include "engine/sequence.h"
#include "sample/sampler.h"
#include "text/tokenizer.h"

typedef struct qr_output {
    qr_sequence seq; /* first: a sequence is its sample */
    qr_request *request;

    /* Engine thread; the memory is the request's mapping. */
    char *text; /* output text, then room for one more token */
    size_t text_capacity, text_count;
    size_t text_begin;    /* text before it was seen already (output_prefix_ids) and is not emitted */
    qr_logprob *logprobs; /* [output tokens][columns], or NULL */
    qr_detokenizer detokenizer;
    qr_finish finish;
    int32_t stop_token, stop_string;
    qr_status status;     /* of QR_FINISH_ERROR: the message is the request's */
    bool counted_waiting; /* part of the engine's waiting_count until first scheduled */
    uint64_t first_token_ns, last_token_ns;

    /* Published by the engine, read by the reader. */
    _Atomic int64_t public_tokens; /* ids [0, n) of seq.ids are final */
    _Atomic size_t public_text;
    _Atomic int public_finish; /* stored last: what goes with it was stored before */

    /* Reader's thread: what its events have covered. */
    int64_t seen_tokens;
    size_t seen_text;
    qr_finish seen_finish;
} qr_output;

typedef struct qr_stop_strings {
    const qr_str *strings;
    int32_t count;
} qr_stop_strings;

typedef enum qr_request_state { QR_REQUEST_PREPARING, QR_REQUEST_LIVE, QR_REQUEST_ENDED } qr_request_state;

struct qr_request {
    qr_engine *engine;
    qr_poller *poller;
    void *user;
    const char *id;

    /* Shared. */
    atomic_int refs; /* reader, engine, and each place it is queued at */
    atomic_bool cancelled, released;
    atomic_bool in_news; /* on the poller's list, or about to be */
    atomic_bool cancel_sent;
    qr_request *inbox_next, *cancel_next, *news_next, *free_next; /* links of those lists */

    /* Submitter and text pool, then immutable. */
    qr_arena arena;
    qr_sampling_params sampling; /* its pointers lead into the arena */
    qr_str text, chat_json;      /* the source, when it is one of these */
    bool is_text, is_chat;
    bool add_special_tokens, parse_special, read_cache, must_fit;
    int64_t truncate;
    int32_t priority;
    qr_str salt;
    const int32_t *prefix_ids; /* output_prefix_ids */
    const int32_t *kept_ids;   /* kept_special_ids */
    size_t kept_count;
    int64_t prefix_count;
    int64_t prefix_text_bytes; /* of their text, seen already; -1: all of it */
    uint64_t seed, arrival;
    uint64_t charged_bytes; /* of the output budget */
    qr_ids prompt;          /* the encoder appends here; then sample 0's ids are used */
    int64_t prompt_count;
    qr_stop_strings stop;
    qr_id_list stop_ids; /* sorted: stop_token_ids, and the model's end ids unless ignore_eos */
    qr_sampler_params params;
    qr_logprob *prompt_logprobs; /* [prompt_count][prompt_columns] in the mapping, or NULL */
    int32_t prompt_columns, columns;
    qr_output *samples;
    int32_t n;
    void *pages; /* the mapping */
    size_t pages_bytes;
    qr_error error; /* of prepare or the engine; written before an ERROR finish is published */

    /* Engine thread. */
    qr_request_state state;
    int32_t live;          /* samples that have not ended */
    qr_list live_node;     /* the engine's list of live requests */
    qr_request *step_next; /* requests that this step has news of */
    bool in_step;

    /* Written by the engine, read by anyone. */
    atomic_size_t cached_count;
    _Atomic uint64_t queued_ns, scheduled_ns, first_token_ns, finished_ns;
};

static inline qr_output *qr_output_of(qr_sequence *seq) { return (qr_output *)(void *)seq; }
/* Output tokens so far, output_prefix_ids included. */
static inline int64_t qr_output_count(const qr_output *sample)
{
    return sample->seq.committed - sample->seq.prompt_count;
}

/* ---- Making (submitter's thread) ---- */

/* Copies the options; does not read the engine's state. Errors: QR_INVALID_ARGUMENT names the field. */
qr_status qr_request_new(const qr_request_options *options, qr_request **out, qr_error *err);
/* Frees all of it; refs must be 0. */
void qr_request_free(qr_request *request);

/* What the outputs of such a request will take, as far as can be said before encoding. */
uint64_t qr_request_estimate_bytes(const qr_request *request, int64_t max_model_len);

/* ---- Output memory (text pool or submitter) ---- */

typedef struct qr_output_shape {
    int64_t tokens_max;     /* prompt and output */
    size_t token_bytes_max; /* text that one token can add; 0: no text */
    int32_t block_size;     /* for keys and block tables */
    int n_groups;
    bool keys;
} qr_output_shape;
/* Maps and lays out the memory of all samples, and copies the prompt into each. QR_OUT_OF_MEMORY. */
qr_status qr_request_reserve(qr_request *request, const qr_output_shape *shape, qr_error *err);

/* ---- References (any thread) ---- */

static inline void qr_request_ref(qr_request *request) { atomic_fetch_add(&request->refs, 1); }
/* True for the last one: the caller passes it to the engine's free list or frees it. */
static inline bool qr_request_unref(qr_request *request) { return atomic_fetch_sub(&request->refs, 1) == 1; }

#endif
