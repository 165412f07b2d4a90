#include "engine/scheduler.h"

#include "base/assert.h"
#include "base/mem.h"

/* Long prompts that a plan looks past in search of short ones. */
#define LOOKAHEAD_MAX 32

/* Of the prompt rows that wait, one in so many may go into a step that others share. */
#define QUEUE_SHARE   8

typedef struct plan_state {
    qr_plan *plan;
    int32_t budget;        /* rows left */
    int32_t prompt_budget; /* of them for prompts */
    int32_t prompt_most;   /* what prompt_budget began with */
    bool fair;             /* the first pass over prompts: short ones before a second long one */
    bool long_taken;
    int32_t promised; /* blocks that running sequences still need for tokens they have */
} plan_state;

/* ---- Making ---- */

qr_scheduler *qr_scheduler_new(const qr_scheduler_options *options)
{
    QR_ASSERT(options->max_num_seqs > 0 && options->max_num_seqs <= options->max_num_batched_tokens);
    QR_ASSERT(options->shared_prompt_rows > 0);
    qr_scheduler *s = qr_calloc(1, sizeof(*s));
    s->options = *options;
    qr_kv_space_init(&s->kv, options->n_groups, options->window, options->n_blocks, options->block_size);
    qr_prefix_key_root(&s->root, options->seed);
    qr_list_init(&s->waiting);
    s->running = qr_calloc((size_t)options->max_num_seqs, sizeof(qr_sequence *));
    return s;
}

void qr_scheduler_free(qr_scheduler *s)
{
    if (s == NULL)
        return;
    qr_kv_space_release(&s->kv);
    qr_free(s->running);
    qr_free(s);
}

int32_t qr_scheduler_blocks_needed(const qr_scheduler_options *options, int64_t tokens_max)
{
    qr_kv_space shape = {.n_groups = options->n_groups, .block_size = options->block_size};
    for (int g = 0; g < options->n_groups; g++)
        shape.window[g] = options->window[g];
    return qr_kv_space_blocks_for(&shape, tokens_max, options->max_num_batched_tokens);
}

/* ---- Order and queues ---- */

static bool better(const qr_scheduler *s, const qr_sequence *a, const qr_sequence *b)
{
    if (s->options.priority && a->priority != b->priority)
        return a->priority < b->priority;
    if (a->arrival != b->arrival)
        return a->arrival < b->arrival;
    return a->sample < b->sample;
}

/* New ones belong near the end and preempted ones near the front: look from the right side. */
static void waiting_insert(qr_scheduler *s, qr_sequence *seq, bool from_front)
{
    qr_list *at = &s->waiting;
    if (from_front) {
        for (at = s->waiting.next; at != &s->waiting; at = at->next)
            if (better(s, seq, QR_LIST_ITEM(at, qr_sequence, node)))
                break;
    } else {
        while (at->prev != &s->waiting && better(s, seq, QR_LIST_ITEM(at->prev, qr_sequence, node)))
            at = at->prev;
    }
    qr_list_insert_before(at, &seq->node);
    seq->state = QR_SEQUENCE_WAITING;
    s->waiting_count++;
}

static void waiting_remove(qr_scheduler *s, qr_sequence *seq)
{
    qr_list_remove(&seq->node);
    s->waiting_count--;
}

static void running_insert(qr_scheduler *s, qr_sequence *seq)
{
    QR_ASSERT(s->running_count < s->options.max_num_seqs);
    int32_t at = s->running_count++;
    for (; at > 0 && better(s, seq, s->running[at - 1]); at--)
        s->running[at] = s->running[at - 1];
    s->running[at] = seq;
    seq->state = QR_SEQUENCE_RUNNING;
}

static void running_remove(qr_scheduler *s, qr_sequence *seq)
{
    int32_t at = s->running_count - 1;
    while (at >= 0 && s->running[at] != seq)
        at--;
    QR_ASSERT(at >= 0);
    s->running_count--;
    for (; at < s->running_count; at++)
        s->running[at] = s->running[at + 1];
}

/* Blocks of the prompt that the samples of a request can share: the last token is always recomputed. */
static int32_t shared_blocks(const qr_scheduler *s, const qr_sequence *seq)
{
    return (int32_t)((seq->prompt_count - 1) / s->options.block_size);
}

void qr_scheduler_add(qr_scheduler *s, qr_sequence *seq)
{
    QR_ASSERT(seq->state == QR_SEQUENCE_NEW && seq->prompt_count > 0 && seq->committed >= seq->prompt_count);
    QR_ASSERT(seq->committed <= seq->tokens_max);
    qr_list_init(&seq->node);
    seq->plan_item = -1;
    const qr_sequence *first = seq->first;
    bool held = first != seq && shared_blocks(s, seq) > 0 && first->state != QR_SEQUENCE_FINISHED &&
                first->computed < (int64_t)shared_blocks(s, seq) * s->options.block_size;
    if (held) {
        seq->state = QR_SEQUENCE_HELD;
        s->held_count++;
    } else {
        waiting_insert(s, seq, false);
    }
}

/* Sample 0 has computed what the others share, or never will. */
static void release_held(qr_scheduler *s, qr_sequence *first)
{
    for (qr_sequence *seq = first->next; seq != NULL; seq = seq->next) {
        if (seq->state != QR_SEQUENCE_HELD)
            continue;
        s->held_count--;
        waiting_insert(s, seq, true);
    }
}

/* ---- Plans ---- */

/* Puts rows [planned, planned + count) into the plan, as a new item or at the end of the sequence's item. */
static void plan_rows(qr_scheduler *s, plan_state *p, qr_sequence *seq, int32_t count)
{
    if (seq->plan_item < 0) {
        seq->plan_item = p->plan->item_count++;
        p->plan->items[seq->plan_item] =
            (qr_plan_item){.seq = seq, .start = seq->planned, .epoch = seq->epoch};
        seq->in_flight++;
    }
    qr_plan_item *item = &p->plan->items[seq->plan_item];
    int64_t prompt_left = seq->prompt_count - seq->planned;
    int64_t prompt_rows = QR_MAX(0, QR_MIN(prompt_left, count));
    s->prompt_rows += (uint64_t)prompt_rows;
    s->decode_rows += (uint64_t)(count - prompt_rows);
    item->count += count;
    seq->planned += count;
    p->plan->token_count += count;
    p->budget -= count;
    if (seq->planned == qr_sequence_expected(seq) && seq->planned < seq->tokens_max) {
        item->samples = true;
        seq->pending++;
    }
}

static void preempt(qr_scheduler *s, plan_state *p, qr_sequence *victim)
{
    if (victim->plan_item >= 0) { /* planned a moment ago: taken out again */
        qr_plan_item *item = &p->plan->items[victim->plan_item];
        p->budget += item->count;
        p->plan->token_count -= item->count;
        victim->pending -= item->samples;
        victim->in_flight--;
        victim->plan_item = -1;
        item->count = 0;
    }
    qr_block_table_clear(&s->kv, &victim->table);
    victim->computed = victim->planned = 0;
    victim->epoch++;
    victim->preempted_in = s->plans;
    s->preemptions++;
    running_remove(s, victim);
    waiting_insert(s, victim, true);
}

/* Plans up to `want` rows of a running sequence, as far as blocks can be had. Blocks of worse sequences are taken
 * only when not even one row fits. Returns the rows planned. */
static int32_t grant(qr_scheduler *s, plan_state *p, qr_sequence *seq, int64_t want)
{
    want = QR_MIN(want, p->budget);
    if (want <= 0)
        return 0;
    if (seq->plan_item < 0)
        qr_block_table_slide(&s->kv, &seq->table, seq->planned);
    for (;;) {
        int64_t room = ((int64_t)seq->table.count + qr_kv_space_free(&s->kv)) * s->options.block_size;
        if (room > seq->planned) {
            want = QR_MIN(want, room - seq->planned);
            break;
        }
        qr_sequence *worst = s->running[s->running_count - 1];
        if (!better(s, seq, worst))
            return 0;
        preempt(s, p, worst);
    }
    bool grown = qr_block_table_grow(&s->kv, &seq->table, seq->planned + want);
    QR_ASSERT(grown);
    plan_rows(s, p, seq, (int32_t)want);
    return (int32_t)want;
}

static int32_t grant_prompt(qr_scheduler *s, plan_state *p, qr_sequence *seq, int64_t want)
{
    int32_t granted = grant(s, p, seq, QR_MIN(want, p->prompt_budget));
    p->prompt_budget -= granted;
    return granted;
}

/* A prompt alone may take the whole step. In company so many rows as give the kernels their speed: more would only make
 * every one of a burst wait longer for its first token, and every decode for its next. A long queue takes more, up to
 * half: it waits for the throughput. */
static void divide_budget(qr_scheduler *s, plan_state *p)
{
    int32_t prompts = s->waiting_count, most = s->options.max_num_batched_tokens;
    int64_t rows = 0;
    for (int32_t i = 0; i < s->running_count; i++) {
        prompts += s->running[i]->plan_item < 0;
        rows += s->running[i]->plan_item < 0 ? qr_sequence_rows_left(s->running[i]) : 0;
    }
    for (const qr_list *node = s->waiting.next; node != &s->waiting; node = node->next)
        rows += qr_sequence_rows_left(QR_LIST_ITEM(node, qr_sequence, node));
    if (prompts > 1 || p->plan->item_count > 0) {
        int64_t shared = QR_MAX(QR_MIN(rows / QUEUE_SHARE, most / 2), s->options.shared_prompt_rows);
        most = (int32_t)QR_MIN(most, shared);
    }
    p->prompt_budget = p->prompt_most = most;
}

static void plan_decodes(qr_scheduler *s, plan_state *p)
{
    bool prefilling = false;
    for (int32_t i = 0; i < s->running_count; i++)
        prefilling = prefilling || qr_sequence_rows_left(s->running[i]) > 1;
    /* With a budget hardly larger than the number of sequences, prompts still get on. */
    int32_t kept = prefilling ? QR_MAX(1, s->options.max_num_batched_tokens / 8) : 0;
    for (int32_t i = 0; i < s->running_count && p->budget > kept; i++)
        if (qr_sequence_rows_left(s->running[i]) == 1)
            grant(s, p, s->running[i], 1);
}

/* How many rows of a prompt this pass may plan. */
static int64_t prompt_share(const qr_scheduler *s, plan_state *p, const qr_sequence *seq)
{
    const qr_plan_item *item = seq->plan_item >= 0 ? &p->plan->items[seq->plan_item] : NULL;
    if (item != NULL && item->samples) /* the next row's token comes out of this step */
        return 0;
    int64_t left = qr_sequence_rows_left(seq);
    int64_t threshold = QR_MAX(1, p->prompt_most / 2);
    if (s->options.long_prefill_token_threshold > 0) { /* stated: it binds whoever waits */
        int64_t taken = item != NULL ? item->count : 0;
        return QR_MIN(left, QR_MAX(0, s->options.long_prefill_token_threshold - taken));
    }
    if (!p->fair || left <= threshold)
        return left;
    if (p->long_taken)
        return 0;
    p->long_taken = true;
    return threshold;
}

/* ---- Admission ---- */

static void keys_extend(qr_scheduler *s, qr_sequence *seq, int64_t tokens)
{
    int32_t full = (int32_t)(tokens / s->options.block_size);
    if (full <= seq->keys_ready)
        return;
    qr_prefix_keys_extend(seq->keys, seq->keys_ready, full, &s->root, seq->ids, s->options.block_size,
                          seq->salt, seq->salt_bytes);
    seq->keys_ready = full;
}

/* The leading blocks that need not be computed, from the cache or from a sample of the same request, go into the
 * empty table. At least one row is left to compute. Returns the tokens read from the cache. */
static int64_t take_prefix(qr_scheduler *s, qr_sequence *seq)
{
    int64_t rows = QR_MIN(seq->committed, seq->tokens_max - 1);
    int64_t usable = QR_MAX(0, rows - 1);
    if (seq->prompt_logits && seq->prompt_rows_done < seq->prompt_count - 1)
        usable = QR_MIN(usable, seq->prompt_rows_done);
    int32_t blocks = (int32_t)(usable / s->options.block_size);
    int32_t hit = 0;
    if (s->options.prefix_caching && seq->read_cache && seq->keys != NULL) {
        keys_extend(s, seq, usable);
        hit = qr_kv_space_match(&s->kv, seq->keys, blocks);
    }
    int32_t most = QR_MIN(blocks, shared_blocks(s, seq)), shared = 0;
    const qr_sequence *from = NULL;
    for (const qr_sequence *other = seq->first; other != NULL; other = other->next) {
        if (other == seq || other->state != QR_SEQUENCE_RUNNING)
            continue;
        int32_t there = (int32_t)QR_MIN(most, other->computed / s->options.block_size);
        there = qr_block_table_shareable(&s->kv, &other->table, there);
        if (there > shared) {
            shared = there;
            from = other;
        }
    }
    if (shared > hit)
        qr_block_table_share(&s->kv, &seq->table, &from->table, shared);
    else
        qr_block_table_take_hit(&s->kv, &seq->table, seq->keys, hit);
    seq->computed = seq->planned = (int64_t)seq->table.count * s->options.block_size;
    return shared > hit ? 0 : seq->computed;
}

static void undo_prefix(qr_scheduler *s, qr_sequence *seq)
{
    qr_block_table_clear(&s->kv, &seq->table);
    seq->computed = seq->planned = 0;
}

/* Whether everything it has fits beside what the running ones still need, with some room for their decodes. */
static bool fits(qr_scheduler *s, const plan_state *p, const qr_sequence *seq)
{
    if (s->running_count == 0)
        return true;
    int32_t needs = qr_block_table_outlook(&s->kv, &seq->table, qr_sequence_expected(seq),
                                           s->options.max_num_batched_tokens);
    return qr_kv_space_free(&s->kv) >= p->promised + needs + (s->running_count + 7) / 8;
}

/* Under priority scheduling room is made at the cost of a worse priority (not merely of a later arrival). */
static bool make_room(qr_scheduler *s, plan_state *p, const qr_sequence *seq)
{
    if (!s->options.priority || s->running_count == 0)
        return false;
    qr_sequence *worst = s->running[s->running_count - 1];
    if (worst->priority <= seq->priority)
        return false;
    preempt(s, p, worst);
    return true;
}

static int32_t promised_blocks(const qr_scheduler *s)
{
    int32_t promised = 0;
    for (int32_t i = 0; i < s->running_count; i++)
        promised += qr_block_table_outlook(&s->kv, &s->running[i]->table, qr_sequence_expected(s->running[i]),
                                           s->options.max_num_batched_tokens);
    return promised;
}

typedef enum admission { ADMITTED, SKIPPED, FULL } admission;

static admission admit(qr_scheduler *s, plan_state *p, qr_sequence *seq)
{
    /* Preempted just now, or before and its last token is not here yet. */
    if (seq->in_flight > 0 || seq->preempted_in == s->plans)
        return SKIPPED;
    while (s->running_count == s->options.max_num_seqs)
        if (!make_room(s, p, seq))
            return FULL;
    int64_t cached = take_prefix(s, seq);
    while (!fits(s, p, seq)) {
        if (!make_room(s, p, seq)) {
            undo_prefix(s, seq);
            return FULL;
        }
        p->promised = promised_blocks(s);
    }
    int64_t want = prompt_share(s, p, seq);
    if (want <= 0) {
        undo_prefix(s, seq);
        return SKIPPED;
    }
    if (seq->admitted_count++ == 0) {
        seq->cached = cached;
        s->prefix_queries += (uint64_t)seq->committed;
        s->prefix_hits += (uint64_t)cached;
    }
    waiting_remove(s, seq);
    running_insert(s, seq);
    int32_t granted = grant_prompt(s, p, seq, want);
    QR_ASSERT(granted > 0);
    p->promised = promised_blocks(s);
    return ADMITTED;
}

static void plan_admissions(qr_scheduler *s, plan_state *p)
{
    int skipped = 0;
    p->promised = promised_blocks(s);
    for (qr_list *node = s->waiting.next;
         node != &s->waiting && QR_MIN(p->budget, p->prompt_budget) > 0 && skipped < LOOKAHEAD_MAX;) {
        qr_list *before = node->prev; /* stays: it was skipped */
        admission result = admit(s, p, QR_LIST_ITEM(node, qr_sequence, node));
        if (result == FULL)
            break;
        skipped += result == SKIPPED;
        node = result == SKIPPED ? node->next : before->next;
    }
}

/* Items that were taken out again go; sequences forget their place. */
static void plan_end(qr_plan *plan)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        if (plan->items[i].count == 0)
            continue;
        plan->items[i].seq->plan_item = -1;
        plan->items[kept++] = plan->items[i];
    }
    plan->item_count = kept;
}

const qr_plan *qr_scheduler_plan(qr_scheduler *s, qr_arena *arena)
{
    qr_plan *plan = QR_ARENA_NEW(arena, qr_plan);
    /* Those that ran before, and in each pass those admitted: none of these is taken out in its own pass. */
    plan->items = qr_arena_alloc(arena, 3 * (size_t)s->options.max_num_seqs * sizeof(qr_plan_item));
    s->plans++;
    plan_state p = {.plan = plan, .budget = s->options.max_num_batched_tokens};
    plan_decodes(s, &p);
    divide_budget(s, &p);
    for (int pass = 0; pass < 2; pass++) {
        p.fair = pass == 0;
        p.long_taken = false;
        for (int32_t i = 0; i < s->running_count && QR_MIN(p.budget, p.prompt_budget) > 0; i++)
            if (!p.fair || qr_sequence_rows_left(s->running[i]) > 1)
                grant_prompt(s, &p, s->running[i], prompt_share(s, &p, s->running[i]));
        plan_admissions(s, &p);
    }
    plan_end(plan);
    return plan;
}

/* ---- Commits ---- */

bool qr_scheduler_commit(qr_scheduler *s, const qr_plan_item *item)
{
    qr_sequence *seq = item->seq;
    seq->in_flight--;
    seq->pending -= item->samples;
    if (seq->state == QR_SEQUENCE_FINISHED)
        return false;
    if (item->epoch != seq->epoch) /* preempted since: its rows are gone, its token counts */
        return true;
    seq->computed += item->count;
    seq->prompt_rows_done = QR_MAX(seq->prompt_rows_done, QR_MIN(seq->computed, seq->prompt_count));
    if (s->options.prefix_caching && seq->keys != NULL) {
        keys_extend(s, seq, seq->computed);
        qr_block_table_publish(&s->kv, &seq->table, seq->keys, seq->computed);
    }
    if (seq->first == seq && s->held_count > 0 &&
        seq->computed >= (int64_t)shared_blocks(s, seq) * s->options.block_size)
        release_held(s, seq);
    return true;
}

void qr_scheduler_finish(qr_scheduler *s, qr_sequence *seq)
{
    switch (seq->state) {
    case QR_SEQUENCE_HELD: s->held_count--; break;
    case QR_SEQUENCE_WAITING: waiting_remove(s, seq); break;
    case QR_SEQUENCE_RUNNING:
        running_remove(s, seq);
        qr_block_table_clear(&s->kv, &seq->table);
        break;
    case QR_SEQUENCE_NEW:
    case QR_SEQUENCE_FINISHED: break;
    }
    seq->state = QR_SEQUENCE_FINISHED;
    if (seq->first == seq)
        release_held(s, seq);
}

void qr_scheduler_reset_cache(qr_scheduler *s)
{
    for (int g = 0; g < s->kv.n_groups; g++)
        qr_block_pool_forget(&s->kv.pool[g], true);
}
