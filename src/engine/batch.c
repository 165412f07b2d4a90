#include "engine/batch.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

_Static_assert(QR_KV_TABLES_MAX == QR_KV_GROUPS_MAX, "kv/ and backend/ count groups alike");

/* Prompt rows of an item whose log-probabilities are still wanted: positions [first, end). */
static void prompt_jobs(const qr_plan_item *item, int64_t *first, int64_t *end)
{
    const qr_sequence *seq = item->seq;
    *first = QR_MAX(item->start, seq->prompt_rows_done);
    *end = seq->prompt_logits ? QR_MIN(item->start + item->count, seq->prompt_count - 1) : 0;
    *end = QR_MAX(*end, *first);
}

static int32_t count_jobs(const qr_plan *plan)
{
    int64_t count = 0, first, end;
    for (int32_t i = 0; i < plan->item_count; i++) {
        prompt_jobs(&plan->items[i], &first, &end);
        count += end - first + plan->items[i].samples;
    }
    return (int32_t)count;
}

static void add_prompt_jobs(const qr_plan *plan, int32_t index, int32_t first_row, qr_logit_job *jobs,
                            int32_t *rows, int32_t *count)
{
    const qr_plan_item *item = &plan->items[index];
    const qr_request *request = qr_output_of(item->seq)->request;
    int64_t first, end;
    prompt_jobs(item, &first, &end);
    for (int64_t p = first; p < end; p++) {
        rows[*count] = first_row + (int32_t)(p - item->start);
        jobs[(*count)++] =
            (qr_logit_job){.item = index,
                           .target = item->seq->ids[p + 1],
                           .top = request->prompt_columns - 1,
                           .logprobs = request->prompt_logprobs + (p + 1) * request->prompt_columns};
    }
}

static void add_sample_job(const qr_plan *plan, int32_t index, int32_t row, qr_logit_job *jobs, int32_t *rows,
                           int32_t *made)
{
    const qr_plan_item *item = &plan->items[index];
    const qr_output *output = qr_output_of(item->seq);
    const qr_request *request = output->request;
    int64_t count = item->start + item->count; /* tokens before the one that is sampled */
    item->seq->draw_row = *made;
    rows[*made] = row;
    jobs[(*made)++] = (qr_logit_job){.item = index,
                                     .samples = true,
                                     .input = {.params = &request->params,
                                               .ids = output->seq.ids,
                                               .prompt_count = output->seq.prompt_count,
                                               .count = count,
                                               .sample = (uint32_t)output->seq.sample},
                                     .logprobs = output->logprobs != NULL
                                                     ? output->logprobs + (count - output->seq.prompt_count) *
                                                                              request->columns
                                                     : NULL};
}

/* Ids, positions and sources of an item's rows. The last token may be one that the step in flight samples. */
static void fill_rows(const qr_plan_item *item, int32_t index, int32_t *ids, int32_t *positions,
                      int32_t *source, int32_t *seq_of)
{
    const qr_sequence *seq = item->seq;
    for (int32_t r = 0; r < item->count; r++) {
        bool known = item->start + r < seq->committed;
        ids[r] = known ? seq->ids[item->start + r] : 0;
        source[r] = known ? -1 : seq->draw_row;
        positions[r] = (int32_t)item->start + r;
        seq_of[r] = index;
    }
}

static void copy_tables(const qr_plan *plan, const qr_kv_space *kv, qr_batch *flat, qr_arena *arena)
{
    int32_t stride = 0;
    for (int32_t i = 0; i < plan->item_count; i++)
        stride = QR_MAX(stride, plan->items[i].seq->table.count);
    flat->table_stride = stride;
    for (int g = 0; g < kv->n_groups; g++) {
        int32_t *table = qr_arena_alloc(arena, (size_t)plan->item_count * (size_t)stride * sizeof(int32_t));
        for (int32_t i = 0; i < plan->item_count; i++) {
            const qr_block_table *from = &plan->items[i].seq->table;
            int32_t *row = table + (int64_t)i * stride;
            memcpy(row, from->blocks[g], (size_t)from->count * sizeof(int32_t));
            memset(row + from->count, 0xff, (size_t)(stride - from->count) * sizeof(int32_t));
        }
        flat->block_table[g] = table;
    }
}

const qr_step_batch *qr_batch_build(const qr_plan *plan, const qr_kv_space *kv, qr_arena *arena)
{
    size_t tokens = (size_t)plan->token_count, seqs = (size_t)plan->item_count;
    int32_t *ids = qr_arena_alloc(arena, tokens * sizeof(int32_t));
    int32_t *positions = qr_arena_alloc(arena, tokens * sizeof(int32_t));
    int32_t *source = qr_arena_alloc(arena, tokens * sizeof(int32_t));
    int32_t *seq_of = qr_arena_alloc(arena, tokens * sizeof(int32_t));
    int32_t *start = qr_arena_alloc(arena, (seqs + 1) * sizeof(int32_t));
    int32_t *context = qr_arena_alloc(arena, seqs * sizeof(int32_t));
    int32_t job_count = count_jobs(plan), jobs_made = 0, row = 0;
    qr_logit_job *jobs = qr_arena_alloc(arena, (size_t)QR_MAX(job_count, 1) * sizeof(qr_logit_job));
    int32_t *logit_rows = qr_arena_alloc(arena, (size_t)QR_MAX(job_count, 1) * sizeof(int32_t));
    for (int32_t i = 0; i < plan->item_count; i++) {
        const qr_plan_item *item = &plan->items[i];
        start[i] = row;
        context[i] = (int32_t)(item->start + item->count);
        fill_rows(item, i, ids + row, positions + row, source + row, seq_of + row);
        add_prompt_jobs(plan, i, row, jobs, logit_rows, &jobs_made);
        row += item->count;
        if (item->samples)
            add_sample_job(plan, i, row - 1, jobs, logit_rows, &jobs_made);
    }
    start[plan->item_count] = row;
    QR_ASSERT(row == plan->token_count && jobs_made == job_count);
    qr_step_batch *batch = QR_ARENA_NEW(arena, qr_step_batch);
    batch->plan = plan;
    batch->jobs = jobs;
    batch->flat = (qr_batch){.n_tokens = row,
                             .n_seqs = plan->item_count,
                             .token_ids = ids,
                             .positions = positions,
                             .source_row = source,
                             .seq_of_row = seq_of,
                             .seq_start = start,
                             .context_len = context,
                             .n_groups = kv->n_groups,
                             .block_size = kv->block_size,
                             .n_logit_rows = job_count,
                             .logit_rows = logit_rows};
    copy_tables(plan, kv, &batch->flat, arena);
    return batch;
}
