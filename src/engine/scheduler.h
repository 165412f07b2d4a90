/* The scheduler: pure policy over sequences and block ids. No I/O, no clock, no device, no logits.
 *
 * A step has one token budget. A plan spends it in this order:
 *   1. every running sequence that lacks one row (a decode), best first;
 *   2. prompts, best first, each finished before the next begins, so that a burst's first tokens come one after
 *      the other. A prompt alone may take all of it; with company prompts take shared_prompt_rows together, and
 *      up to half of the budget when a long queue waits. One longer than the threshold (default: half of what
 *      prompts may take) takes at most so much, and other long ones wait for what the short ones leave;
 *   3. what is left goes to the long ones after all.
 * "Better" is the lower (priority, arrival, sample); without priority scheduling (arrival, sample).
 *
 * A running sequence that finds no block takes those of the worst running one that is worse than itself (which
 * is preempted and recomputes later, usually from prefix hits), else it pauses. The best unfinished sequence
 * can take all blocks and gets at least one row in every step, so everything ends. A waiting sequence is admitted
 * when its whole prompt fits beside what running ones still need; nothing overtakes one that does not fit. Under
 * priority scheduling a waiting sequence preempts running ones of a worse priority.
 *
 * Sequence of calls: plan n, [plan n+1,] commit n, ... : a plan may be made before the one before is committed
 * (commit delay 1), not more. No memory is taken after qr_scheduler_new; plans live in the caller's arena.
 * Thread: the engine thread.
 */
#ifndef QR_ENGINE_SCHEDULER_H
#define QR_ENGINE_SCHEDULER_H

#include "base/arena.h"
#include "engine/sequence.h"

typedef struct qr_scheduler_options {
    int32_t max_num_seqs; /* running sequences, <= max_num_batched_tokens */
    int32_t max_num_batched_tokens;
    int32_t shared_prompt_rows;           /* > 0: rows of prompts in a step with others that serve all best */
    int32_t long_prefill_token_threshold; /* 0: budget / 2 while others wait */
    int n_groups;
    int32_t window[QR_KV_TABLES_MAX];
    int32_t n_blocks, block_size;
    bool prefix_caching, priority;
    uint64_t seed; /* of the hash chain */
} qr_scheduler_options;

/* Rows [start, start + count) of a sequence; the last one yields the next token when `samples`. */
typedef struct qr_plan_item {
    qr_sequence *seq;
    int64_t start;
    int32_t count;
    bool samples;
    uint32_t epoch;
} qr_plan_item;

typedef struct qr_plan {
    qr_plan_item *items;
    int32_t item_count, token_count;
} qr_plan;
static inline bool qr_plan_empty(const qr_plan *plan) { return plan->item_count == 0; }

typedef struct qr_scheduler {
    qr_scheduler_options options;
    qr_kv_space kv;
    qr_prefix_key root;
    qr_list waiting;       /* sequences, best first */
    qr_sequence **running; /* [max_num_seqs], best first */
    int32_t running_count, waiting_count, held_count;
    uint64_t plans, preemptions;
    uint64_t prefix_queries, prefix_hits; /* tokens, at first admissions */
    uint64_t prompt_rows, decode_rows;    /* planned so far */
} qr_scheduler;

qr_scheduler *qr_scheduler_new(const qr_scheduler_options *options);
void qr_scheduler_free(qr_scheduler *scheduler);

/* Samples of a request are added in order, sample 0 first, before the next plan. */
void qr_scheduler_add(qr_scheduler *scheduler, qr_sequence *seq);
const qr_plan *qr_scheduler_plan(qr_scheduler *scheduler, qr_arena *arena);
/* The item's step is done. True when a sampled token (item->samples) is to be appended: the sequence has not
 * ended meanwhile. Items are committed in the order of their plans. */
bool qr_scheduler_commit(qr_scheduler *scheduler, const qr_plan_item *item);
/* Ends it and gives its blocks back. Harmless when it has ended. */
void qr_scheduler_finish(qr_scheduler *scheduler, qr_sequence *seq);
/* Forgets the prefixes that no running sequence holds. */
void qr_scheduler_reset_cache(qr_scheduler *scheduler);

/* Blocks that the largest sequence needs: a scheduler with fewer must not be made. */
int32_t qr_scheduler_blocks_needed(const qr_scheduler_options *options, int64_t tokens_max);

#endif
