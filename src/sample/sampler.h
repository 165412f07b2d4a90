/* Sampling: from one row of logits to a token id and its log-probabilities.
 *
 * The order, as vLLM's: raw logprobs are taken first (before anything below); then allowed ids, min_tokens
 * (bans end ids), bad words, logit bias, penalties; then temperature, min-p, top-k, top-p; then one draw by a
 * counter-based generator keyed by (seed, sample index, position, purpose): the result depends on nothing but the
 * row, the parameters, the tokens so far and that key. Greedy (temperature < 1e-5) takes the lowest id of the
 * maxima. All sums run in a fixed order.
 *
 * A qr_sampler_params is prepared once per request (bad words encoded, ids checked); a qr_sampler_state per
 * sample holds token counts. Nothing here takes heap memory after qr_sampler_new.
 * Thread: params immutable; state and scratch belong to the engine thread (scratch: one per worker).
 */
#ifndef QR_SAMPLE_SAMPLER_H
#define QR_SAMPLE_SAMPLER_H

#include "backend/ops.h"
#include "base/arena.h"
#include "base/status.h"
#include "quire.h"

typedef struct qr_id_list {
    const int32_t *ids;
    int32_t count;
} qr_id_list;

typedef struct qr_sampler_params {
    float temperature; /* 0: greedy */
    float top_p, min_p;
    int32_t top_k; /* 0: off */
    float repetition_penalty, presence_penalty, frequency_penalty;
    bool penalised; /* any of the three is not neutral */
    uint64_t seed;
    int64_t min_tokens;
    const qr_logit_bias *bias;
    int32_t bias_count;
    qr_id_list allowed;          /* sorted; count 0: all */
    const qr_id_list *bad_words; /* token sequences */
    int32_t bad_word_count;
    qr_id_list end_ids; /* banned until min_tokens: eos and stop ids */
    int32_t logprobs;   /* -1: none */
    int32_t vocab;      /* columns of a logits row that are real tokens */
} qr_sampler_params;

/* Whether drawing the next token after `output_count` of them takes masks, penalties or log-probabilities: then the
 * tokens before it must be known to the host. */
static inline bool qr_sampler_needs_host(const qr_sampler_params *p, int64_t output_count)
{
    return p->logprobs >= 0 || p->penalised || p->bias_count > 0 || p->bad_word_count > 0 ||
           p->allowed.count > 0 || output_count < p->min_tokens;
}

/* Copies what it needs of `from` into the request's arena and checks ids against the vocabulary
 * (QR_INVALID_ARGUMENT names field, id and vocabulary). bad_words: already encoded. */
qr_status qr_sampler_params_make(const qr_sampling_params *from, uint64_t seed, int32_t vocab,
                                 qr_id_list end_ids, const qr_id_list *bad_words, int32_t bad_word_count,
                                 qr_arena *arena, qr_sampler_params *out, qr_error *err);

/* Scratch for one row: vocabulary-sized arrays, taken once. */
typedef struct qr_sampler_scratch qr_sampler_scratch;
qr_sampler_scratch *qr_sampler_scratch_new(int32_t vocab_max, int32_t logprobs_max);
void qr_sampler_scratch_free(qr_sampler_scratch *scratch);

/* What a draw looks at. ids[0..prompt_count) is the prompt, the rest output so far (output_prefix_ids included). */
typedef struct qr_sampler_input {
    const qr_sampler_params *params;
    const float *logits; /* [vocab], not changed */
    const int32_t *ids;
    int64_t prompt_count, count;
    uint32_t sample; /* index among n */
} qr_sampler_input;

/* The edits that make a row of logits the one that qr_sample draws from, for devices that draw themselves (qr_draw);
 * every id at most once. -1: they are more than `most`, or only listed ids are allowed: the host must draw. */
int32_t qr_sampler_edits(const qr_sampler_input *input, qr_sampler_scratch *scratch, qr_logit_edit *edits,
                         int32_t most);

/* Returns the id. When params->logprobs >= 0 fills logprobs[0..logprobs] : [0] the chosen token with its rank, then the
 * best `logprobs` ones in order. Rows with NaN are treated as -inf; a row without any finite entry gives id -1 (the
 * engine fails the request). */
int32_t qr_sample(const qr_sampler_input *input, qr_sampler_scratch *scratch, qr_logprob *logprobs);

/* Raw log-probabilities of a prompt position: entry [0] is `target` with its rank, then the `top` best. */
void qr_logprobs_of(const float *logits, int32_t vocab, int32_t target, int32_t top,
                    qr_sampler_scratch *scratch, qr_logprob *out);

#endif
