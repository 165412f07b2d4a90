/* Runs a batch on a model: forward, logits in slices, one draw or one row of log-probabilities per logit row. All ranks
 * of the model run it, each on its own pages and scratch; what is sampled is taken from rank 0.
 * Thread: the engine thread.
 */
#ifndef QR_ENGINE_RUNNER_H
#define QR_ENGINE_RUNNER_H

#include "backend/team.h"
#include "engine/batch.h"
#include "model/model.h"

typedef struct qr_runner_options {
    int32_t n_blocks, block_size;
    qr_dtype kv_dtype;
    size_t scratch_bytes;
    int32_t max_logit_rows; /* rows of logits held at a time */
    int32_t max_logprobs;
} qr_runner_options;

typedef struct qr_runner qr_runner;
/* Takes all memory that steps need. nets: one per rank of the team. Errors: QR_OUT_OF_MEMORY. */
qr_status qr_runner_new(qr_team *team, qr_net *const *nets, const qr_runner_options *options, qr_runner **out,
                        qr_error *err);
void qr_runner_free(qr_runner *runner);

/* Whether the device runs a step while the host makes the next (qr_runner_begin n + 1 before qr_runner_finish n). */
bool qr_runner_runs_ahead(const qr_runner *runner);

typedef struct qr_step_result {
    const qr_step_batch *batch;
    int32_t *tokens; /* [items]: the sampled id, -1: no finite value; unset for items that do not sample */
    int32_t *drawn;  /* [logit rows]: the same by row */
    qr_draw *draws;
    uint64_t bytes, flops;                   /* that the step had to move and do, of rank 0 */
    uint64_t device_begin_ns, device_end_ns; /* by the device's clock; 0 where it has none */
} qr_step_result;

/* Hands a batch to the device; rows whose ids are not known yet take those that the batch begun before draws (which
 * was begun, and may not be finished). result and what it points to (in the arena) live until the batch that comes
 * next is finished. Errors: QR_DEVICE_FAILED. */
qr_status qr_runner_begin(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena,
                          qr_step_result *result, qr_error *err);
/* Waits for the batch that was begun first of those not finished: fills result->tokens, and puts log-probabilities
 * where the jobs say. Errors: QR_DEVICE_FAILED. */
qr_status qr_runner_finish(qr_runner *runner, qr_step_result *result, qr_error *err);

#endif
