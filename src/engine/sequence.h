/* qr_sequence: one sample of a request as the scheduler sees it: token counts and a block table.
 *
 * The whole scheduler rests on four counts:
 *
 *     computed <= planned <= committed + pending <= tokens_max
 *
 *   committed  tokens whose ids are known (prompt, output_prefix_ids, sampled and committed)
 *   pending    tokens that steps in flight will sample; 0 when every step is committed before the next plan
 *   computed   leading tokens whose keys and values are in the cache, by committed steps or by a hit
 *   planned    computed, plus the rows of steps in flight
 *
 * A plan moves `planned` towards committed + pending; there is no prefill or decode state. The life of a
 * sequence, with the blocks that it may hold in brackets:
 *
 *     NEW [none] -----qr_scheduler_add-----> WAITING [none]
 *      |                                      |   ^
 *      | (samples 1..n-1 of a request whose   |   | qr_scheduler_plan: preempted, a better one
 *      |  prompt has full blocks to share)    |   | needs its blocks (they may be hit again later)
 *      v                                      v   |
 *     HELD [none] --qr_scheduler_commit------> RUNNING [those of its planned tokens, less what left a window;
 *      |            or _finish of sample 0:    |        full ones may be shared with others]
 *      |            to WAITING, then as all    |
 *      |                                       | qr_scheduler_finish, from any state: stopped, cancelled,
 *      +-----------------> FINISHED [none] <---+ failed. Steps in flight still name it: it stays in memory
 *                                                until in_flight is 0.
 *
 * WAITING to RUNNING is qr_scheduler_plan (admission). Blocks may be given back while a step that reads them is
 * in flight, since a device runs steps in order: whoever gets them writes later.
 * Thread: the engine thread, once it was handed to qr_scheduler_add.
 */
#ifndef QR_ENGINE_SEQUENCE_H
#define QR_ENGINE_SEQUENCE_H

#include "base/assert.h"
#include "base/list.h"
#include "kv/block_table.h"

typedef enum qr_sequence_state {
    QR_SEQUENCE_NEW,
    QR_SEQUENCE_HELD,
    QR_SEQUENCE_WAITING,
    QR_SEQUENCE_RUNNING,
    QR_SEQUENCE_FINISHED
} qr_sequence_state;

typedef struct qr_sequence {
    /* Set by the owner before qr_scheduler_add. */
    struct qr_sequence *first; /* sample 0 of the request; itself when it is that */
    struct qr_sequence *next;  /* the request's next sample, or NULL */
    uint64_t arrival;          /* order of submission; equal for the samples of a request */
    int32_t priority, sample;
    int32_t *ids; /* [tokens_max] prompt, then output; [0, committed) are there */
    int64_t prompt_count;
    int64_t committed;
    int64_t tokens_max;  /* it ends with so many tokens */
    qr_prefix_key *keys; /* [tokens_max / block_size], or NULL: no prefix caching */
    int32_t keys_ready;  /* keys of the first blocks that are made already */
    const void *salt;
    size_t salt_bytes;
    bool read_cache;    /* false: publishes blocks but reads no hit */
    bool prompt_logits; /* wants every prompt row computed once: no hit before that */
    bool
        host_draws; /* its tokens are drawn on the host: the next row is planned once the last is committed */

    /* The scheduler's. */
    qr_sequence_state state;
    int64_t computed, planned;
    int64_t pending;
    int64_t prompt_rows_done; /* most prompt rows that were ever computed here, for prompt_logits */
    int64_t cached;           /* tokens read from the prefix cache at the first admission */
    uint32_t epoch;           /* preemptions so far: rows in flight from before do not count */
    uint64_t preempted_in;    /* the plan that did it last, counted from 1 */
    int32_t in_flight;        /* plan items that are not committed */
    int32_t draw_row;         /* logit row of the step in flight that samples its pending token (batch.c) */
    int32_t plan_item;        /* in the plan that is being made, or -1 */
    int64_t admitted_count;   /* admissions so far */
    qr_block_table table;     /* its arrays are the owner's: [capacity] */
    qr_list node;             /* in the waiting list */
} qr_sequence;

/* Tokens there will be once everything in flight is committed. */
static inline int64_t qr_sequence_expected(const qr_sequence *seq) { return seq->committed + seq->pending; }
/* Rows that could be planned now. The last token of a full sequence is never computed. */
static inline int64_t qr_sequence_rows_left(const qr_sequence *seq)
{
    int64_t until = seq->host_draws ? seq->committed : qr_sequence_expected(seq);
    if (until > seq->tokens_max - 1)
        until = seq->tokens_max - 1;
    return until > seq->planned ? until - seq->planned : 0;
}

/* Appends a sampled token to the ids. */
static inline void qr_sequence_append(qr_sequence *seq, int32_t id)
{
    QR_ASSERT(seq->committed < seq->tokens_max);
    seq->ids[seq->committed++] = id;
}

#endif
