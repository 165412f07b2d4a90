#include "engine/runner.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"

struct qr_runner {
    const qr_net *net;
    qr_device *device;
    qr_kv *kv;
    qr_ops *ops;
    qr_sampler_scratch **scratch; /* [threads] */
    int threads;
    int32_t max_logit_rows, vocab;
    bool draws;          /* the device samples */
    bool ahead;          /* and runs while the next step is made */
    uint64_t fault_step; /* the device is made to fail in this step, counted from 1 (tests); 0: never */
    uint64_t steps;
    const int32_t *last_drawn; /* by logit row, of the step that was begun last (when not ahead) */
};

qr_status qr_runner_new(const qr_net *net, qr_device *device, const qr_runner_options *options,
                        qr_runner **out, qr_error *err)
{
    qr_runner *runner = qr_calloc(1, sizeof(*runner));
    runner->net = net;
    runner->device = device;
    runner->max_logit_rows = options->max_logit_rows;
    runner->vocab = qr_net_vocab(net);
    int n_layers;
    const qr_kv_spec *specs = qr_net_kv_specs(net, &n_layers);
    qr_status status = qr_kv_open(device, specs, n_layers, options->n_blocks, options->block_size,
                                  options->kv_dtype, &runner->kv, err);
    if (status == QR_OK)
        status = qr_ops_open(device, runner->kv, options->scratch_bytes, &runner->ops, err);
    if (status != QR_OK) {
        qr_runner_free(runner);
        return status;
    }
    runner->draws = qr_device_draws(device, runner->vocab);
    runner->ahead = runner->draws && qr_device_runs_ahead(device);
    if (runner->draws)
        qr_ops_promise_draws(runner->ops);
    const char *fault = qr_env("QUIRE_TEST_FAULT_STEP");
    runner->fault_step = fault != NULL ? strtoull(fault, NULL, 10) : 0;
    runner->threads = qr_device_host_threads(device);
    runner->scratch = qr_calloc((size_t)runner->threads, sizeof(*runner->scratch));
    for (int i = 0; i < runner->threads; i++)
        runner->scratch[i] = qr_sampler_scratch_new(runner->vocab, options->max_logprobs);
    *out = runner;
    return QR_OK;
}

void qr_runner_free(qr_runner *runner)
{
    if (runner == NULL)
        return;
    for (int i = 0; i < runner->threads; i++)
        qr_sampler_scratch_free(runner->scratch[i]);
    qr_free(runner->scratch);
    if (runner->ops != NULL)
        qr_ops_close(runner->ops);
    if (runner->kv != NULL)
        qr_kv_close(runner->kv);
    qr_free(runner);
}

/* A slice of logit rows, each of them a job of its own. */
typedef struct logit_slice {
    const qr_runner *runner;
    const qr_logit_job *jobs;
    const float *logits;
    int32_t *drawn; /* by row */
} logit_slice;

static void run_job(void *arg, int64_t index, int worker)
{
    const logit_slice *slice = arg;
    const qr_logit_job *job = &slice->jobs[index];
    const float *logits = slice->logits + index * slice->runner->vocab;
    qr_sampler_scratch *scratch = slice->runner->scratch[worker];
    slice->drawn[index] = -1;
    if (!job->samples) {
        qr_logprobs_of(logits, slice->runner->vocab, job->target, job->top, scratch, job->logprobs);
        return;
    }
    qr_sampler_input input = job->input;
    input.logits = logits;
    slice->drawn[index] = qr_sample(&input, scratch, job->logprobs);
}

/* Rows whose logits the host must see: log-probabilities, masks and penalties. */
static bool needs_host_row(const qr_logit_job *job)
{
    return !job->samples ||
           qr_sampler_needs_host(job->input.params, job->input.count - job->input.prompt_count);
}

static qr_draw draw_of(const qr_logit_job *job)
{
    if (needs_host_row(job))
        return (qr_draw){.to_host = true, .top_p = 1};
    const qr_sampler_input *input = &job->input;
    const qr_sampler_params *p = input->params;
    qr_draw draw = {.temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p, .top_k = p->top_k};
    if (p->temperature > 0)
        draw.uniform = qr_rng_uniform(p->seed, input->sample, (uint64_t)input->count, QR_RNG_SAMPLE);
    return draw;
}

/* ---- Steps ---- */

/* The batch with the ids that the one before drew, for devices that do not look them up themselves. */
static const qr_batch *with_known_ids(const qr_runner *runner, const qr_batch *batch, qr_arena *arena)
{
    int32_t unknown = 0;
    for (int32_t i = 0; i < batch->n_tokens; i++)
        unknown += batch->source_row[i] >= 0;
    if (unknown == 0)
        return batch;
    int32_t *ids = qr_arena_alloc(arena, (size_t)batch->n_tokens * sizeof(int32_t));
    for (int32_t i = 0; i < batch->n_tokens; i++) {
        int32_t row = batch->source_row[i];
        ids[i] = row < 0 ? batch->token_ids[i] : QR_MAX(runner->last_drawn[row], 0);
    }
    qr_batch *known = QR_ARENA_NEW(arena, qr_batch);
    *known = *batch;
    known->token_ids = ids;
    return known;
}

/* The device draws all rows but those that the host must see. */
static void draw_rows(qr_runner *runner, qr_tensor hidden, qr_step_result *result)
{
    const qr_step_batch *batch = result->batch;
    int32_t rows = batch->flat.n_logit_rows;
    for (int32_t first = 0; first < rows; first += runner->max_logit_rows) {
        int32_t count = QR_MIN(runner->max_logit_rows, rows - first);
        size_t mark = qr_ops_mark(runner->ops);
        for (int32_t i = first; i < first + count; i++)
            result->draws[i] = draw_of(&batch->jobs[i]);
        qr_net_draw(runner->net, runner->ops, hidden, result->draws + first, first, count,
                    first + count == rows);
        qr_ops_release(runner->ops, mark);
    }
}

/* The host samples all rows. */
static void sample_rows(qr_runner *runner, qr_tensor hidden, qr_step_result *result)
{
    const qr_step_batch *batch = result->batch;
    int32_t rows = batch->flat.n_logit_rows;
    for (int32_t first = 0; first < rows; first += runner->max_logit_rows) {
        int32_t count = QR_MIN(runner->max_logit_rows, rows - first);
        size_t mark = qr_ops_mark(runner->ops);
        const float *logits = qr_net_logits(runner->net, runner->ops, hidden, first, count);
        logit_slice slice = {runner, batch->jobs + first, logits, result->drawn + first};
        qr_device_host_run(runner->device, count, run_job, &slice);
        qr_ops_release(runner->ops, mark);
    }
}

/* What the device drew; rows that need the host come to it now. */
static void collect_rows(qr_runner *runner, qr_step_result *result)
{
    const qr_step_batch *batch = result->batch;
    for (int32_t i = 0; i < batch->flat.n_logit_rows; i++) {
        if (!result->draws[i].to_host) {
            result->drawn[i] = qr_ops_drawn(runner->ops, i);
            continue;
        }
        logit_slice slice = {runner, batch->jobs + i, qr_ops_drawn_logits(runner->ops, i), result->drawn + i};
        run_job(&slice, 0, 0);
    }
}

qr_status qr_runner_begin(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena,
                          qr_step_result *result, qr_error *err)
{
    size_t rows = (size_t)QR_MAX(batch->flat.n_logit_rows, 1);
    *result =
        (qr_step_result){.batch = batch,
                         .tokens = qr_arena_alloc(arena, (size_t)batch->plan->item_count * sizeof(int32_t)),
                         .drawn = qr_arena_alloc(arena, rows * sizeof(int32_t)),
                         .draws = qr_arena_alloc(arena, rows * sizeof(qr_draw))};
    qr_ops_begin(runner->ops, runner->ahead ? &batch->flat : with_known_ids(runner, &batch->flat, arena));
    qr_tensor hidden = qr_net_forward(runner->net, runner->ops);
    if (runner->draws)
        draw_rows(runner, hidden, result);
    else
        sample_rows(runner, hidden, result);
    qr_ops_work(runner->ops, &result->bytes, &result->flops);
    if (++runner->steps == runner->fault_step)
        qr_device_break(runner->device);
    if (runner->ahead)
        return qr_ops_launch(runner->ops, err);
    qr_status status = qr_ops_end(runner->ops, err);
    if (status == QR_OK && runner->draws)
        collect_rows(runner, result);
    runner->last_drawn = result->drawn;
    return status;
}

qr_status qr_runner_finish(qr_runner *runner, qr_step_result *result, qr_error *err)
{
    const qr_step_batch *batch = result->batch;
    qr_status status = runner->ahead ? qr_ops_wait(runner->ops, err) : QR_OK;
    if (status != QR_OK)
        return status;
    if (runner->ahead)
        collect_rows(runner, result);
    for (int32_t i = 0; i < batch->flat.n_logit_rows; i++)
        if (batch->jobs[i].samples)
            result->tokens[batch->jobs[i].item] = result->drawn[i];
    qr_ops_times(runner->ops, &result->device_begin_ns, &result->device_end_ns);
    return QR_OK;
}

bool qr_runner_runs_ahead(const qr_runner *runner) { return runner->ahead; }
