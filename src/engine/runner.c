#include "engine/runner.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"

typedef struct runner_rank {
    const qr_net *net;
    qr_device *device;
    qr_kv *kv;
    qr_ops *ops;
} runner_rank;

struct qr_runner {
    qr_team *team;
    runner_rank ranks[QR_RANKS_MAX];
    qr_runner_options options;
    qr_sampler_scratch **scratch; /* [threads], of rank 0's device */
    int threads;
    int32_t max_logit_rows, vocab;
    bool draws;          /* the device samples */
    bool ahead;          /* and runs while the next step is made */
    uint64_t fault_step; /* a device is made to fail in this step, counted from 1 (tests); 0: never */
    int fault_rank;      /* which one's */
    uint64_t steps;
    qr_logit_edit *edits;      /* [qr_device_edits] of the rows that are drawn at a time */
    int32_t edit_count;        /* of this step */
    const int32_t *last_drawn; /* by logit row, of the step that was begun last (when not ahead) */
};

/* On the rank's thread: its pages and scratch. */
static qr_status open_rank(void *arg, int index, qr_error *err)
{
    qr_runner *runner = arg;
    runner_rank *rank = &runner->ranks[index];
    const qr_runner_options *o = &runner->options;
    int n_layers;
    const qr_kv_spec *specs = qr_net_kv_specs(rank->net, &n_layers);
    qr_status status =
        qr_kv_open(rank->device, specs, n_layers, o->n_blocks, o->block_size, o->kv_dtype, &rank->kv, err);
    if (status == QR_OK)
        status = qr_ops_open(rank->device, rank->kv, o->scratch_bytes, &rank->ops, err);
    if (status == QR_OK && runner->draws)
        qr_ops_promise_draws(rank->ops);
    return status;
}

static void read_fault(qr_runner *runner)
{
    const char *step = qr_env("QUIRE_TEST_FAULT_STEP"), *rank = qr_env("QUIRE_TEST_FAULT_RANK");
    runner->fault_step = step != NULL ? strtoull(step, NULL, 10) : 0;
    runner->fault_rank = rank != NULL ? (int)strtol(rank, NULL, 10) : 0;
}

qr_status qr_runner_new(qr_team *team, qr_net *const *nets, const qr_runner_options *options, qr_runner **out,
                        qr_error *err)
{
    qr_runner *runner = qr_calloc(1, sizeof(*runner));
    qr_device *device = qr_team_device(team, 0);
    runner->team = team;
    runner->options = *options;
    runner->max_logit_rows = options->max_logit_rows;
    runner->vocab = qr_net_vocab(nets[0]);
    for (int i = 0; i < qr_team_ranks(team); i++)
        runner->ranks[i] = (runner_rank){.net = nets[i], .device = qr_team_device(team, i)};
    runner->draws = qr_device_draws(device, runner->vocab);
    runner->ahead = runner->draws && qr_device_runs_ahead(device);
    qr_status status = qr_team_run(team, open_rank, runner, err);
    if (status != QR_OK) {
        qr_runner_free(runner);
        return status;
    }
    read_fault(runner);
    if (runner->draws && qr_device_edits(device) > 0)
        runner->edits = qr_calloc((size_t)qr_device_edits(device), sizeof(qr_logit_edit));
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
    qr_free(runner->edits);
    for (int i = 0; i < qr_team_ranks(runner->team); i++) {
        qr_ops_close(runner->ranks[i].ops);
        qr_kv_close(runner->ranks[i].kv);
    }
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

/* Masks and penalties as edits of the logits; false: the host must see the row. */
static bool add_edits(qr_runner *runner, const qr_logit_job *job, qr_draw *draw)
{
    const qr_sampler_params *p = job->input.params;
    int32_t room = qr_device_edits(runner->ranks[0].device) - runner->edit_count;
    if (!job->samples || p->logprobs >= 0)
        return false;
    if (!qr_sampler_needs_host(p, job->input.count - job->input.prompt_count))
        return true;
    if (room <= 0)
        return false;
    draw->edits = runner->edits + runner->edit_count;
    draw->edit_count =
        qr_sampler_edits(&job->input, runner->scratch[0], runner->edits + runner->edit_count, room);
    runner->edit_count += QR_MAX(draw->edit_count, 0);
    return draw->edit_count >= 0;
}

static qr_draw draw_of(qr_runner *runner, const qr_logit_job *job)
{
    const qr_sampler_input *input = &job->input;
    const qr_sampler_params *p = input->params;
    qr_draw draw = {0};
    if (!add_edits(runner, job, &draw))
        return (qr_draw){.to_host = true, .top_p = 1};
    draw.temperature = p->temperature;
    draw.top_p = p->top_p;
    draw.min_p = p->min_p;
    draw.top_k = p->top_k;
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

/* A step as every rank runs it. */
typedef struct runner_step {
    qr_runner *runner;
    const qr_batch *batch;
    qr_step_result *result;
} runner_step;

/* The device draws all rows but those that the host must see. */
static void draw_rows(const runner_step *step, const runner_rank *rank, qr_tensor hidden)
{
    int32_t rows = step->batch->n_logit_rows, most = step->runner->max_logit_rows;
    for (int32_t first = 0; first < rows; first += most) {
        int32_t count = QR_MIN(most, rows - first);
        size_t mark = qr_ops_mark(rank->ops);
        qr_net_draw(rank->net, rank->ops, hidden, step->result->draws + first, first, count,
                    first + count == rows);
        qr_ops_release(rank->ops, mark);
    }
}

/* The host samples all rows, slice by slice, from rank 0's logits; the others wait for it in those of the next. */
static void sample_rows(const runner_step *step, const runner_rank *rank, qr_tensor hidden)
{
    int32_t rows = step->batch->n_logit_rows, most = step->runner->max_logit_rows;
    for (int32_t first = 0; first < rows; first += most) {
        int32_t count = QR_MIN(most, rows - first);
        size_t mark = qr_ops_mark(rank->ops);
        const float *logits = qr_net_logits(rank->net, rank->ops, hidden, first, count);
        logit_slice slice = {step->runner, step->result->batch->jobs + first, logits,
                             step->result->drawn + first};
        if (rank == step->runner->ranks)
            qr_device_host_run(rank->device, count, run_job, &slice);
        qr_ops_release(rank->ops, mark);
    }
}

static qr_status begin_rank(void *arg, int index, qr_error *err)
{
    const runner_step *step = arg;
    const runner_rank *rank = &step->runner->ranks[index];
    qr_ops_begin(rank->ops, step->batch);
    if (step->runner->steps == step->runner->fault_step && index == step->runner->fault_rank)
        qr_device_break(rank->device);
    qr_tensor hidden = qr_net_forward(rank->net, rank->ops);
    if (step->runner->draws)
        draw_rows(step, rank, hidden);
    else
        sample_rows(step, rank, hidden);
    if (index == 0)
        qr_ops_work(rank->ops, &step->result->bytes, &step->result->flops);
    return step->runner->ahead ? qr_ops_launch(rank->ops, err) : qr_ops_end(rank->ops, err);
}

static qr_status wait_rank(void *arg, int index, qr_error *err)
{
    const qr_runner *runner = arg;
    return qr_ops_wait(runner->ranks[index].ops, err);
}

/* What the device drew; rows that need the host come to it now. Every rank has them. */
static void collect_rows(qr_runner *runner, qr_step_result *result)
{
    const qr_step_batch *batch = result->batch;
    const qr_ops *ops = runner->ranks[0].ops;
    for (int32_t i = 0; i < batch->flat.n_logit_rows; i++) {
        if (!result->draws[i].to_host) {
            result->drawn[i] = qr_ops_drawn(ops, i);
            continue;
        }
        logit_slice slice = {runner, batch->jobs + i, qr_ops_drawn_logits(ops, i), result->drawn + i};
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
    runner->edit_count = 0;
    for (int32_t i = 0; i < batch->flat.n_logit_rows && runner->draws; i++)
        result->draws[i] = draw_of(runner, &batch->jobs[i]);
    runner->steps++;
    runner_step step = {.runner = runner,
                        .batch = runner->ahead ? &batch->flat : with_known_ids(runner, &batch->flat, arena),
                        .result = result};
    qr_status status = qr_team_run(runner->team, begin_rank, &step, err);
    if (status == QR_OK && runner->draws && !runner->ahead)
        collect_rows(runner, result);
    runner->last_drawn = result->drawn;
    return status;
}

qr_status qr_runner_finish(qr_runner *runner, qr_step_result *result, qr_error *err)
{
    const qr_step_batch *batch = result->batch;
    qr_status status = runner->ahead ? qr_team_run(runner->team, wait_rank, runner, err) : QR_OK;
    if (status != QR_OK)
        return status;
    if (runner->ahead)
        collect_rows(runner, result);
    for (int32_t i = 0; i < batch->flat.n_logit_rows; i++)
        if (batch->jobs[i].samples)
            result->tokens[batch->jobs[i].item] = result->drawn[i];
    qr_ops_times(runner->ranks[0].ops, &result->device_begin_ns, &result->device_end_ns);
    return QR_OK;
}

bool qr_runner_runs_ahead(const qr_runner *runner) { return runner->ahead; }
