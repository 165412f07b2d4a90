#include "engine/runner.h"

#include "base/mem.h"

struct qr_runner {
    const qr_net *net;
    qr_device *device;
    qr_kv *kv;
    qr_ops *ops;
    qr_sampler_scratch **scratch; /* [threads] */
    int threads;
    int32_t max_logit_rows, vocab;
};

qr_status qr_runner_new(const qr_net *net, qr_device *device, const qr_runner_options *options, qr_runner **out,
                        qr_error *err)
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

qr_status qr_runner_run(qr_runner *runner, const qr_step_batch *batch, qr_arena *arena, qr_step_result *result,
                        qr_error *err)
{
    result->tokens = qr_arena_alloc(arena, (size_t)batch->plan->item_count * sizeof(int32_t));
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
