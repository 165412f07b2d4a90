/* Runs a batch on a model: forward, logits in slices, one draw or one row of log-probabilities per logit row.
 * Thread: the engine thread.
 */
#ifndef QR_ENGINE_RUNNER_H
#define QR_ENGINE_RUNNER_H

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
/* Takes all memory that steps need. Errors: QR_OUT_OF_MEMORY. */
qr_status qr_runner_new(const qr_net *net, qr_device *device, const qr_runner_options *options,
                        qr_runner **out, qr_error *err);
void qr_runner_free(qr_runner *runner);

typedef struct qr_step_result {
    int32_t *tokens; /* [items]: the sampled id, -1: no finite logit; unset for items that do not sample */
    uint64_t bytes, flops; /* that the step had to move and do */
} qr_step_result;
/* result->tokens lies in the arena. Log-probabilities go where the jobs say. Errors: QR_DEVICE_FAILED. */
qr_status qr_runner_run(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena,
                        qr_step_result *result, qr_error *err);

#endif
