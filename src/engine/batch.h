/* From a plan to a batch: flat arrays in the step arena, and for each row of logits what is to be done with it.
 * Thread: the engine thread.
 */
#ifndef QR_ENGINE_BATCH_H
#define QR_ENGINE_BATCH_H

#include "backend/batch.h"
#include "engine/request.h"
#include "engine/scheduler.h"

/* One row of logits: the next token of a sample, or the log-probabilities of a prompt position. */
typedef struct qr_logit_job {
    int32_t item; /* of the plan */
    bool samples;
    int32_t target;         /* prompt rows: the token that follows */
    int32_t top;            /* prompt rows: how many best ones */
    qr_sampler_input input; /* sampled rows, without logits */
    qr_logprob *logprobs;   /* where they go, or NULL */
} qr_logit_job;

typedef struct qr_step_batch {
    qr_batch flat;
    const qr_plan *plan;
    const qr_logit_job *jobs; /* [flat.n_logit_rows] */
} qr_step_batch;

const qr_step_batch *qr_batch_build(const qr_plan *plan, const qr_kv_space *kv, qr_arena *arena);

#endif
