#include "net_run.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

static qr_status load_rank(void *arg, int rank, qr_error *err)
{
    net_run *run = arg;
    return qr_net_load(run->nets[rank], qr_team_device(run->team, rank),
                       &(qr_net_options){.dtype = run->options.dtype, .positions = run->options.context_max},
                       err);
}

static qr_status open_net(net_run *run, qr_error *err)
{
    const net_run_options *o = &run->options;
    qr_status status = qr_weights_open(o->path, &run->weights, err);
    if (status == QR_OK)
        status = qr_config_read(run->weights, NULL, &run->arena, &run->config, err);
    for (int i = 0; i < run->options.ranks && status == QR_OK; i++)
        status = qr_net_bind(run->weights, &run->config, i, run->options.ranks, &run->nets[i], err);
    if (status != QR_OK)
        return status;
    run->net = run->nets[0];
    qr_device_options device = {
        .device = o->device != NULL ? o->device : "cpu", .isa = o->isa, .threads = o->threads};
    status = qr_team_open(&device, o->ranks, &run->team, err);
    return status == QR_OK ? qr_team_run(run->team, load_rank, run, err) : status;
}

/* Blocks are dealt out from the back, so that a sequence's are neither adjacent nor ascending. */
static void deal_blocks(net_run *run, int32_t n_blocks)
{
    int32_t seqs = run->options.seqs_max, stride = run->table_stride;
    for (int32_t seq = 0; seq < seqs; seq++)
        for (int32_t i = 0; i < stride; i++)
            run->tables[seq * stride + i] = n_blocks - 1 - (i * seqs + seq);
}

static qr_status open_rank(void *arg, int rank, qr_error *err)
{
    net_run *run = arg;
    const net_run_options *o = &run->options;
    qr_device *device = qr_team_device(run->team, rank);
    int n_layers = 0;
    const qr_kv_spec *specs = qr_net_kv_specs(run->nets[rank], &n_layers);
    qr_dtype dtype = o->kv_dtype >= 0 ? (qr_dtype)o->kv_dtype
                                      : qr_net_kv_dtype(run->net, &(qr_net_options){.dtype = o->dtype});
    qr_status status = qr_kv_open(device, specs, n_layers, run->table_stride * o->seqs_max, o->block_size,
                                  dtype, &run->kv[rank], err);
    if (status != QR_OK)
        return status;
    size_t scratch = qr_net_scratch_bytes(run->nets[rank], device,
                                          &(qr_net_step){.n_tokens = o->rows_max,
                                                         .n_seqs = o->seqs_max,
                                                         .n_logit_rows = o->rows_max,
                                                         .max_logit_rows = 16,
                                                         .context_max = o->context_max,
                                                         .block_size = o->block_size});
    return qr_ops_open(device, run->kv[rank], scratch, &run->ops[rank], err);
}

static qr_status open_memory(net_run *run, qr_error *err)
{
    const net_run_options *o = &run->options;
    run->table_stride = (o->context_max + o->block_size - 1) / o->block_size;
    int32_t n_blocks = run->table_stride * o->seqs_max;
    run->tables = qr_calloc((size_t)n_blocks, sizeof(int32_t));
    run->logits = qr_calloc((size_t)o->rows_max * (size_t)qr_net_vocab(run->net), sizeof(float));
    deal_blocks(run, n_blocks);
    return qr_team_run(run->team, open_rank, run, err);
}

qr_status net_run_open(net_run *run, const net_run_options *options, qr_error *err)
{
    *run = (net_run){.options = *options};
    run->options.ranks = QR_MAX(options->ranks, 1);
    qr_arena_init(&run->arena, (size_t)1 << 16);
    qr_status status = open_net(run, err);
    if (status == QR_OK)
        status = open_memory(run, err);
    if (status != QR_OK)
        net_run_close(run);
    return status;
}

void net_run_close(net_run *run)
{
    for (int i = 0; i < QR_RANKS_MAX; i++) {
        qr_ops_close(run->ops[i]);
        qr_kv_close(run->kv[i]);
        qr_net_free(run->nets[i]);
    }
    qr_team_close(run->team);
    if (run->weights != NULL)
        qr_weights_close(run->weights);
    qr_arena_release(&run->arena);
    qr_free(run->tables);
    qr_free(run->logits);
    *run = (net_run){0};
}

static qr_status step_rank(void *arg, int rank, qr_error *err)
{
    net_run *run = arg;
    qr_ops *ops = run->ops[rank];
    int32_t vocab = qr_net_vocab(run->net), n_logits = run->batch->n_logit_rows;
    qr_ops_begin(ops, run->batch);
    qr_tensor hidden = qr_net_forward(run->nets[rank], ops);
    for (int32_t first = 0; first < n_logits; first += 16) {
        size_t mark = qr_ops_mark(ops);
        int32_t slice = QR_MIN(16, n_logits - first);
        const float *logits = qr_net_logits(run->nets[rank], ops, hidden, first, slice);
        if (rank == 0)
            memcpy(run->logits + (size_t)first * (size_t)vocab, logits,
                   (size_t)slice * (size_t)vocab * sizeof(float));
        qr_ops_release(ops, mark);
    }
    if (rank == 0)
        qr_ops_work(ops, &run->bytes, &run->flops);
    return qr_ops_end(ops, err);
}

const float *net_run_step(net_run *run, const net_run_rows *rows, int32_t count, bool all_logits)
{
    const net_run_options *o = &run->options;
    int32_t total = 0;
    for (int32_t i = 0; i < count; i++)
        total += rows[i].count;
    QR_ASSERT(total <= o->rows_max && count <= o->seqs_max);
    int32_t *memory =
        qr_calloc((size_t)total * 5 + (size_t)count * (2 + (size_t)run->table_stride) + 1, sizeof(int32_t));
    int32_t *ids = memory, *positions = ids + total, *source = positions + total, *seq_of = source + total;
    int32_t *logit_rows = seq_of + total, *context = logit_rows + total, *starts = context + count;
    int32_t *table = starts + count + 1, n_logits = 0, row = 0;
    for (int32_t i = 0; i < count; i++) {
        starts[i] = row;
        context[i] = rows[i].start + rows[i].count;
        memcpy(table + i * run->table_stride, run->tables + rows[i].seq * run->table_stride,
               (size_t)run->table_stride * sizeof(int32_t));
        for (int32_t j = 0; j < rows[i].count; j++, row++) {
            ids[row] = rows[i].ids[j];
            positions[row] = rows[i].start + j;
            source[row] = -1;
            seq_of[row] = i;
            if (all_logits || j == rows[i].count - 1)
                logit_rows[n_logits++] = row;
        }
    }
    starts[count] = total;
    qr_batch batch = {.n_tokens = total,
                      .n_seqs = count,
                      .token_ids = ids,
                      .positions = positions,
                      .source_row = source,
                      .seq_of_row = seq_of,
                      .seq_start = starts,
                      .context_len = context,
                      .n_groups = QR_KV_GROUPS_MAX,
                      .block_table = {table, table},
                      .table_stride = run->table_stride,
                      .block_size = o->block_size,
                      .n_logit_rows = n_logits,
                      .logit_rows = logit_rows};
    run->batch = &batch;
    qr_status status = qr_team_run(run->team, step_rank, run, NULL);
    QR_ASSERT(status == QR_OK);
    qr_free(memory);
    return run->logits;
}

int32_t net_run_argmax(const float *logits, int32_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}
