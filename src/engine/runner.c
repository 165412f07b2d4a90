#include "engine/runner.h"

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
    bool draws; /* the device samples */
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
    if (runner->draws)
        qr_ops_promise_draws(runner->ops);
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
    int32_t *tokens; /* by item */
} logit_slice;

static void run_job(void *arg, int64_t index, int worker)
{
    const logit_slice *slice = arg;
    const qr_logit_job *job = &slice->jobs[index];
    const float *logits = slice->logits + index * slice->runner->vocab;
    qr_sampler_scratch *scratch = slice->runner->scratch[worker];
    if (!job->samples) {
        qr_logprobs_of(logits, slice->runner->vocab, job->target, job->top, scratch, job->logprobs);
        return;
    }
    qr_sampler_input input = job->input;
    input.logits = logits;
    slice->tokens[job->item] = qr_sample(&input, scratch, job->logprobs);
}

/* Rows whose logits the host must see: log-probabilities, masks and penalties. */
static bool needs_host(const qr_logit_job *job)
{
    const qr_sampler_params *p = job->input.params;
    return !job->samples || p->logprobs >= 0 || p->penalised || p->bias_count > 0 || p->bad_word_count > 0 ||
           p->allowed.count > 0 || job->input.count - job->input.prompt_count < p->min_tokens;
}

static qr_draw draw_of(const qr_logit_job *job)
{
    if (needs_host(job))
        return (qr_draw){.to_host = true, .top_p = 1};
    const qr_sampler_input *input = &job->input;
    const qr_sampler_params *p = input->params;
    qr_draw draw = {.temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p, .top_k = p->top_k};
    if (p->temperature > 0)
        draw.uniform = qr_rng_uniform(p->seed, input->sample, (uint64_t)input->count, QR_RNG_SAMPLE);
    return draw;
}

/* The device draws; rows that need the host come to it afterwards. */
static qr_status run_drawing(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena,
                             qr_step_result *result, qr_error *err)
{
    int32_t rows = batch->flat.n_logit_rows;
    qr_draw *draws = qr_arena_alloc(arena, (size_t)QR_MAX(rows, 1) * sizeof(qr_draw));
    qr_ops_begin(runner->ops, &batch->flat);
    qr_tensor hidden = qr_net_forward(runner->net, runner->ops);
    for (int32_t first = 0; first < rows; first += runner->max_logit_rows) {
        int32_t count = QR_MIN(runner->max_logit_rows, rows - first);
        size_t mark = qr_ops_mark(runner->ops);
        for (int32_t i = first; i < first + count; i++)
            draws[i] = draw_of(&batch->jobs[i]);
        qr_net_draw(runner->net, runner->ops, hidden, draws + first, first, count, first + count == rows);
        qr_ops_release(runner->ops, mark);
    }
    qr_ops_work(runner->ops, &result->bytes, &result->flops);
    qr_status status = qr_ops_end(runner->ops, err);
    for (int32_t i = 0; i < rows && status == QR_OK; i++) {
        logit_slice slice = {runner, batch->jobs + i, NULL, result->tokens};
        if (!draws[i].to_host) {
            result->tokens[batch->jobs[i].item] = qr_ops_drawn(runner->ops, i);
            continue;
        }
        slice.logits = qr_ops_drawn_logits(runner->ops, i);
        run_job(&slice, 0, 0);
    }
    return status;
}

qr_status qr_runner_run(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena,
                        qr_step_result *result, qr_error *err)
{
    result->tokens = qr_arena_alloc(arena, (size_t)batch->plan->item_count * sizeof(int32_t));
    if (runner->draws)
        return run_drawing(runner, batch, arena, result, err);
    qr_ops_begin(runner->ops, &batch->flat);
    qr_tensor hidden = qr_net_forward(runner->net, runner->ops);
    int32_t rows = batch->flat.n_logit_rows;
    for (int32_t first = 0; first < rows; first += runner->max_logit_rows) {
        int32_t count = QR_MIN(runner->max_logit_rows, rows - first);
        size_t mark = qr_ops_mark(runner->ops);
        const float *logits = qr_net_logits(runner->net, runner->ops, hidden, first, count);
        logit_slice slice = {runner, batch->jobs + first, logits, result->tokens};
        qr_device_host_run(runner->device, count, run_job, &slice);
        qr_ops_release(runner->ops, mark);
    }
    qr_ops_work(runner->ops, &result->bytes, &result->flops);
    return qr_ops_end(runner->ops, err);
}
