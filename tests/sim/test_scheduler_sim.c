// links: qr_engine qr_kv
/* The real scheduler and KV bookkeeping against a fake device, from a seed: random arrivals, lengths, priorities,
 * cancels, samples, salts, pools so small that preemption is forced, one and two window groups, commit delay 0 and
 * 1. The device keeps in every cache slot the hash of all tokens up to it, so a row that reads a block that was
 * freed, overwritten, shared wrongly or out of its window is seen at once; the next token is a function of that
 * hash, so every sequence must equal the one that it gives alone.
 *
 *     QR_SIM_SEED=n runs one seed, QR_SIM_SEEDS=n so many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/scheduler.h"

enum { REQUESTS_MAX = 24, SAMPLES_MAX = 4, TOKENS_MAX = 80, BLOCKS_MAX = 400, END = 0, VOCAB = 50 };

typedef struct sim_sequence {
    qr_sequence seq;
    int32_t ids[TOKENS_MAX];
    int32_t device_ids[TOKENS_MAX]; /* what the device sampled: ahead of ids when a step is in flight */
    int64_t device_count;
    qr_prefix_key keys[TOKENS_MAX];
    int32_t blocks[QR_KV_TABLES_MAX][TOKENS_MAX];
    bool prompt_row_done[TOKENS_MAX];
    uint64_t seed;
    int64_t given; /* output_prefix_ids */
    bool cancelled;
} sim_sequence;

typedef struct sim_request {
    sim_sequence sample[SAMPLES_MAX];
    int samples;
    int64_t arrives_at;
    char salt[4];
} sim_request;

typedef struct sim_step {
    qr_arena arena;
    const qr_plan *plan;
    int32_t tokens[3 * 64];
} sim_step;

typedef struct sim {
    uint64_t seed, random;
    int delay;
    qr_scheduler_options options;
    qr_scheduler *scheduler;
    sim_request requests[REQUESTS_MAX];
    int request_count, arrived;
    uint64_t slots[QR_KV_TABLES_MAX][BLOCKS_MAX * 16]; /* the device's cache */
    int64_t steps;
    int64_t rows_run, hits, preemptions;
} sim;

#define SIM_CHECK(sim_, condition, ...)                                             \
    do {                                                                            \
        if (!(condition)) {                                                         \
            print_error("seed %llu, step %lld: ", (unsigned long long)(sim_)->seed, \
                        (long long)(sim_)->steps);                                  \
            fail_msg(__VA_ARGS__);                                                  \
        }                                                                           \
    } while (0)

static int64_t pick(sim *s, int64_t low, int64_t high)
{
    return low + (int64_t)(qr_rng_next(&s->random) % (uint64_t)(high - low + 1));
}
static bool chance(sim *s, int percent) { return pick(s, 1, 100) <= percent; }

/* ---- The fake model ---- */

static uint64_t prefix_hash(uint64_t before, int32_t id)
{
    return qr_hash_mix(before * 31 + (uint64_t)(uint32_t)id + 1);
}

static int32_t next_token(uint64_t prefix, uint64_t seed, int32_t sample)
{
    return (int32_t)(qr_hash_mix(prefix ^ qr_hash_mix(seed + (uint64_t)sample)) % VOCAB);
}

static uint64_t hash_until(const int32_t *ids, int64_t count)
{
    uint64_t hash = 0;
    for (int64_t i = 0; i < count; i++)
        hash = prefix_hash(hash, ids[i]);
    return hash;
}

/* ---- A random world ---- */

static void choose_options(sim *s)
{
    qr_scheduler_options *o = &s->options;
    o->block_size = (int32_t)pick(s, 1, 8);
    o->max_num_batched_tokens = (int32_t)(chance(s, 30) ? pick(s, 1, 6) : pick(s, 4, 64));
    o->max_num_seqs = (int32_t)pick(s, 1, QR_MIN(o->max_num_batched_tokens, 16));
    o->shared_prompt_rows = (int32_t)pick(s, 1, 32);
    o->long_prefill_token_threshold = chance(s, 25) ? (int32_t)pick(s, 1, 20) : 0;
    o->n_groups = (int)pick(s, 1, 2);
    for (int g = 0; g < o->n_groups; g++)
        o->window[g] = chance(s, 50) ? (int32_t)pick(s, 1, 30) : 0;
    o->prefix_caching = chance(s, 75);
    o->priority = chance(s, 40);
    o->seed = qr_rng_next(&s->random);
    int32_t needed = qr_scheduler_blocks_needed(o, TOKENS_MAX);
    o->n_blocks = needed + (int32_t)(chance(s, 60) ? pick(s, 0, 8) : pick(s, 0, 200));
    SIM_CHECK(s, o->n_blocks <= BLOCKS_MAX, "the pool is larger than the device");
}

static void make_request(sim *s, int index)
{
    sim_request *r = &s->requests[index];
    r->samples = chance(s, 25) ? (int)pick(s, 2, SAMPLES_MAX) : 1;
    r->arrives_at = index == 0 ? 0 : s->requests[index - 1].arrives_at + (chance(s, 50) ? 0 : pick(s, 0, 12));
    int64_t prompt = chance(s, 20) ? pick(s, 30, 60) : pick(s, 1, 24);
    int64_t more = chance(s, 8) ? 0 : pick(s, 1, TOKENS_MAX - prompt < 20 ? TOKENS_MAX - prompt : 20);
    int64_t given = r->samples == 1 && more > 2 && chance(s, 15) ? pick(s, 1, more - 1) : 0;
    bool prompt_logits = more == 0 || chance(s, 10), reads = chance(s, 90);
    if (more == 0 && prompt < 2)
        prompt = 2;                            /* nothing to compute is not the scheduler's business */
    uint64_t family = (uint64_t)pick(s, 1, 3); /* prompts of a family share their beginning */
    int64_t shared = pick(s, 0, prompt);
    uint64_t seed = qr_rng_next(&s->random);
    snprintf(r->salt, sizeof(r->salt), "%s", chance(s, 15) ? "s" : "");
    int32_t priority = (int32_t)pick(s, 0, 3);
    bool host_draws = chance(s, 20);
    for (int k = 0; k < r->samples; k++) {
        sim_sequence *q = &r->sample[k];
        for (int64_t i = 0; i < prompt; i++) {
            uint64_t source = i < shared ? family : seed;
            q->ids[i] = 1 + (int32_t)(qr_hash_mix(source * 1000 + (uint64_t)i) % (VOCAB - 1));
        }
        q->seed = seed;
        q->given = given;
        q->seq = (qr_sequence){.first = &r->sample[0].seq,
                               .next = k + 1 < r->samples ? &r->sample[k + 1].seq : NULL,
                               .arrival = (uint64_t)index,
                               .priority = priority,
                               .sample = k,
                               .ids = q->ids,
                               .prompt_count = prompt,
                               .committed = prompt,
                               .tokens_max = prompt + more,
                               .keys = s->options.prefix_caching ? q->keys : NULL,
                               .salt = r->salt,
                               .salt_bytes = strlen(r->salt),
                               .read_cache = reads,
                               .prompt_logits = prompt_logits && k == 0,
                               .host_draws = host_draws};
        for (int64_t i = 0; i < given; i++)
            qr_sequence_append(&q->seq, 1 + (int32_t)pick(s, 0, VOCAB - 2));
        q->device_count = q->seq.committed;
        memcpy(q->device_ids, q->ids, sizeof(q->ids));
        for (int g = 0; g < QR_KV_TABLES_MAX; g++)
            q->seq.table.blocks[g] = q->blocks[g];
        q->seq.table.capacity = TOKENS_MAX;
    }
}

static sim_sequence *owner_of(qr_sequence *seq) { return (sim_sequence *)(void *)seq; }

/* ---- The fake device ---- */

static void run_row(sim *s, const qr_plan_item *item, int64_t position)
{
    sim_sequence *q = owner_of(item->seq);
    const qr_sequence *seq = item->seq;
    int32_t bs = s->options.block_size;
    SIM_CHECK(s, position < q->device_count, "a row at %lld of %lld tokens", (long long)position,
              (long long)q->device_count);
    uint64_t hash = 0;
    for (int64_t p = 0; p <= position; p++) {
        hash = prefix_hash(hash, q->device_ids[p]);
        for (int g = 0; g < s->options.n_groups; g++) {
            if (s->options.window[g] > 0 && p <= position - s->options.window[g])
                continue;
            SIM_CHECK(s, p / bs < seq->table.count, "token %lld has no block", (long long)p);
            int32_t block = seq->table.blocks[g][p / bs];
            SIM_CHECK(s, block >= 0, "token %lld needs a block that left the window", (long long)p);
            uint64_t *slot = &s->slots[g][(int64_t)block * bs + p % bs];
            if (p == position) {
                SIM_CHECK(s, s->scheduler->kv.pool[g].blocks[block].refs == 1 || *slot == hash,
                          "a shared block is written");
                *slot = hash;
            }
            SIM_CHECK(s, *slot == hash, "sample %d reads a wrong slot: block %d, token %lld of row %lld",
                      seq->sample, block, (long long)p, (long long)position);
        }
    }
    if (position < seq->prompt_count)
        q->prompt_row_done[position] = true;
    s->rows_run++;
}

/* Runs a plan; sampled tokens go to step->tokens, and are known to the device at once. */
static void device_run(sim *s, sim_step *step)
{
    for (int32_t i = 0; i < step->plan->item_count; i++) {
        const qr_plan_item *item = &step->plan->items[i];
        sim_sequence *q = owner_of(item->seq);
        for (int32_t r = 0; r < item->count; r++)
            run_row(s, item, item->start + r);
        if (!item->samples)
            continue;
        SIM_CHECK(s, item->start + item->count == q->device_count, "a sample that is not of the last token");
        step->tokens[i] = next_token(hash_until(q->device_ids, q->device_count), q->seed, q->seq.sample);
        q->device_ids[q->device_count++] = step->tokens[i];
    }
}

/* ---- Invariants ---- */

static void check_state(sim *s)
{
    const qr_block_table *tables[REQUESTS_MAX * SAMPLES_MAX];
    int32_t count = 0;
    for (int i = 0; i < s->arrived; i++)
        for (int k = 0; k < s->requests[i].samples; k++) {
            qr_sequence *seq = &s->requests[i].sample[k].seq;
            SIM_CHECK(s,
                      seq->computed <= seq->planned && seq->planned <= qr_sequence_expected(seq) &&
                          qr_sequence_expected(seq) <= seq->tokens_max && seq->pending >= 0,
                      "counts: computed %lld, planned %lld, committed %lld, pending %lld, most %lld",
                      (long long)seq->computed, (long long)seq->planned, (long long)seq->committed,
                      (long long)seq->pending, (long long)seq->tokens_max);
            SIM_CHECK(s, seq->state == QR_SEQUENCE_RUNNING || seq->table.count == 0,
                      "state %d holds %d blocks", seq->state, seq->table.count);
            tables[count++] = &seq->table;
        }
    const char *wrong = qr_kv_space_check(&s->scheduler->kv, tables, count);
    SIM_CHECK(s, wrong == NULL, "%s", wrong);
}

static bool in_plan(const qr_plan *plan, const qr_sequence *seq)
{
    for (int32_t i = 0; i < plan->item_count; i++)
        if (plan->items[i].seq == seq)
            return true;
    return false;
}

static void check_plan(sim *s, const qr_plan *plan, qr_sequence *best, int32_t waiting_before)
{
    int32_t rows = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const qr_plan_item *item = &plan->items[i];
        rows += item->count;
        SIM_CHECK(s, item->count > 0 && item->seq->state == QR_SEQUENCE_RUNNING,
                  "an item without rows or blocks");
        SIM_CHECK(s, item->start + item->count == item->seq->planned, "an item that does not end at planned");
        SIM_CHECK(s, !item->seq->host_draws || item->seq->planned <= item->seq->committed,
                  "a row whose id the host has yet to draw");
        for (int32_t j = 0; j < i; j++)
            SIM_CHECK(s, plan->items[j].seq != item->seq, "a sequence is planned twice");
    }
    SIM_CHECK(s, rows == plan->token_count && rows <= s->options.max_num_batched_tokens,
              "%d rows, token_count %d, budget %d", rows, plan->token_count,
              s->options.max_num_batched_tokens);
    SIM_CHECK(s, s->scheduler->running_count <= s->options.max_num_seqs, "too many run");
    bool yielded = s->options.priority && best != NULL && best->state == QR_SEQUENCE_WAITING;
    SIM_CHECK(s, best == NULL || yielded || in_plan(plan, best), "the best running sequence gets no row");
    SIM_CHECK(s, s->delay > 0 || waiting_before == 0 || plan->item_count > 0,
              "sequences wait and nothing is planned");
}

static void check_result(sim *s, sim_sequence *q)
{
    qr_sequence *seq = &q->seq;
    for (int64_t i = seq->prompt_count; i < seq->committed; i++)
        SIM_CHECK(s, q->ids[i] == q->device_ids[i], "token %lld was lost or moved", (long long)i);
    for (int64_t i = seq->prompt_count + q->given; i < seq->committed; i++)
        SIM_CHECK(s, q->ids[i] == next_token(hash_until(q->ids, i), q->seed, seq->sample),
                  "token %lld is not the one of a run alone", (long long)i);
    if (q->cancelled)
        return;
    SIM_CHECK(s, seq->committed == seq->tokens_max || q->ids[seq->committed - 1] == END,
              "ended at %lld of %lld tokens", (long long)seq->committed, (long long)seq->tokens_max);
    for (int64_t i = 0; seq->prompt_logits && i < seq->prompt_count - 1; i++)
        SIM_CHECK(s, q->prompt_row_done[i], "prompt row %lld was never computed", (long long)i);
}

/* ---- Steps ---- */

static void arrive(sim *s)
{
    while (s->arrived < s->request_count && s->requests[s->arrived].arrives_at <= s->steps) {
        sim_request *r = &s->requests[s->arrived++];
        for (int k = 0; k < r->samples; k++)
            qr_scheduler_add(s->scheduler, &r->sample[k].seq);
    }
}

static void cancel_some(sim *s)
{
    if (s->arrived == 0 || !chance(s, 3))
        return;
    sim_request *r = &s->requests[pick(s, 0, s->arrived - 1)];
    for (int k = 0; k < r->samples; k++) {
        r->sample[k].cancelled = r->sample[k].cancelled || r->sample[k].seq.state != QR_SEQUENCE_FINISHED;
        qr_scheduler_finish(s->scheduler, &r->sample[k].seq);
    }
}

static void commit(sim *s, sim_step *step)
{
    for (int32_t i = 0; i < step->plan->item_count; i++) {
        const qr_plan_item *item = &step->plan->items[i];
        qr_sequence *seq = item->seq;
        if (!qr_scheduler_commit(s->scheduler, item))
            continue;
        bool ends =
            !item->samples && seq->computed >= seq->tokens_max - 1 && seq->committed == seq->tokens_max;
        if (item->samples) {
            qr_sequence_append(seq, step->tokens[i]);
            ends = step->tokens[i] == END || seq->committed == seq->tokens_max;
        }
        if (ends)
            qr_scheduler_finish(s->scheduler, seq);
    }
    step->plan = NULL;
}

static qr_sequence *best_running(sim *s)
{
    for (int32_t i = 0; i < s->scheduler->running_count; i++)
        if (qr_sequence_rows_left(s->scheduler->running[i]) > 0)
            return i == 0 ? s->scheduler->running[0] : NULL;
    return NULL;
}

static bool all_ended(const sim *s)
{
    if (s->arrived < s->request_count)
        return false;
    for (int i = 0; i < s->request_count; i++)
        for (int k = 0; k < s->requests[i].samples; k++)
            if (s->requests[i].sample[k].seq.state != QR_SEQUENCE_FINISHED)
                return false;
    return true;
}

static void step_once(sim *s, sim_step *step)
{
    qr_arena_reset(&step->arena);
    qr_sequence *best = best_running(s);
    int32_t waiting = s->scheduler->waiting_count + s->scheduler->running_count;
    step->plan = qr_scheduler_plan(s->scheduler, &step->arena);
    check_plan(s, step->plan, best, waiting);
    device_run(s, step);
}

static void simulate(sim *s)
{
    sim_step steps[2];
    for (int i = 0; i < 2; i++) {
        qr_arena_init(&steps[i].arena, 1 << 16);
        steps[i].plan = NULL;
    }
    for (s->steps = 0; !all_ended(s); s->steps++) {
        SIM_CHECK(s, s->steps < 20000, "no end");
        sim_step *now = &steps[s->steps & 1], *before = &steps[(s->steps + 1) & 1];
        arrive(s);
        cancel_some(s);
        if (chance(s, 1))
            qr_scheduler_reset_cache(s->scheduler);
        step_once(s, now);
        check_state(s);
        if (s->delay == 0)
            commit(s, now);
        else if (before->plan != NULL)
            commit(s, before);
        check_state(s);
    }
    for (int i = 0; i < 2; i++) { /* whoever is last in flight finds its sequence ended */
        if (steps[i].plan != NULL)
            commit(s, &steps[i]);
        qr_arena_release(&steps[i].arena);
    }
}

static void run_seed(uint64_t seed, sim *s)
{
    memset(s, 0, sizeof(*s));
    s->seed = s->random = seed;
    s->delay = (int)(seed & 1);
    choose_options(s);
    s->request_count = (int)pick(s, 1, REQUESTS_MAX);
    for (int i = 0; i < s->request_count; i++)
        make_request(s, i);
    s->scheduler = qr_scheduler_new(&s->options);
    simulate(s);
    for (int i = 0; i < s->request_count; i++)
        for (int k = 0; k < s->requests[i].samples; k++) {
            check_result(s, &s->requests[i].sample[k]);
            SIM_CHECK(s, s->requests[i].sample[k].seq.in_flight == 0, "rows are still in flight");
        }
    SIM_CHECK(s, qr_kv_space_free(&s->scheduler->kv) == s->options.n_blocks, "blocks are missing at the end");
    SIM_CHECK(s,
              s->scheduler->waiting_count == 0 && s->scheduler->running_count == 0 &&
                  s->scheduler->held_count == 0,
              "queues are not empty at the end");
    s->hits = (int64_t)s->scheduler->prefix_hits;
    s->preemptions = (int64_t)s->scheduler->preemptions;
    qr_scheduler_free(s->scheduler);
}

static void every_seed_keeps_every_invariant(void **state)
{
    (void)state;
    const char *one = getenv("QR_SIM_SEED"), *many = getenv("QR_SIM_SEEDS");
    uint64_t from = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one != NULL ? 1 : many != NULL ? strtoull(many, NULL, 10) : 3000;
    sim *s = malloc(sizeof(*s));
    int64_t rows = 0, hits = 0, preemptions = 0, steps = 0;
    for (uint64_t seed = from; seed < from + count; seed++) {
        run_seed(seed, s);
        rows += s->rows_run;
        hits += s->hits;
        preemptions += s->preemptions;
        steps += s->steps;
    }
    free(s);
    print_message("%llu seeds: %lld steps, %lld rows, %lld tokens hit, %lld preemptions\n",
                  (unsigned long long)count, (long long)steps, (long long)rows, (long long)hits,
                  (long long)preemptions);
    if (count >= 1000) { /* the world must be rough enough to mean something */
        assert_true(preemptions > (int64_t)count / 2);
        assert_true(hits > (int64_t)count);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_seed_keeps_every_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
