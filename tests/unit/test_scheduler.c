// links: qr_engine qr_kv
/* Policy of the scheduler, case by case; tests/sim runs it against everything at once. */
#include <stdio.h>

#include "base/mem.h"
#include "engine/scheduler.h"
#include "support/cmocka.h"

enum { TOKENS = 2048, SEQS = 80 };

typedef struct world {
    qr_scheduler *scheduler;
    qr_arena arena;
    qr_sequence seqs[SEQS];
    int count;
    int32_t steps_done;
} world;

static void world_open(world *w, qr_scheduler_options options)
{
    memset(w, 0, sizeof(*w));
    if (options.n_groups == 0)
        options.n_groups = 1;
    if (options.block_size == 0)
        options.block_size = 16;
    if (options.shared_prompt_rows == 0)
        options.shared_prompt_rows = 256;
    w->scheduler = qr_scheduler_new(&options);
    qr_arena_init(&w->arena, 1 << 16);
}

static void world_close(world *w)
{
    for (int i = 0; i < w->count; i++) {
        qr_scheduler_finish(w->scheduler, &w->seqs[i]);
        free(w->seqs[i].ids);
        free(w->seqs[i].keys);
        free(w->seqs[i].table.blocks[0]);
        free(w->seqs[i].table.blocks[1]);
    }
    assert_int_equal(qr_kv_space_free(&w->scheduler->kv), w->scheduler->options.n_blocks);
    qr_scheduler_free(w->scheduler);
    qr_arena_release(&w->arena);
}

/* A sequence whose prompt is 1000 * family, + 1, ... */
static qr_sequence *make(world *w, int64_t prompt, int64_t more, int family)
{
    qr_sequence *seq = &w->seqs[w->count];
    int64_t most = prompt + more;
    *seq = (qr_sequence){.first = seq,
                         .arrival = (uint64_t)w->count,
                         .prompt_count = prompt,
                         .committed = prompt,
                         .tokens_max = most,
                         .read_cache = true};
    w->count++;
    seq->ids = calloc((size_t)most, sizeof(int32_t));
    seq->keys = calloc((size_t)most, sizeof(qr_prefix_key));
    for (int64_t i = 0; i < prompt; i++)
        seq->ids[i] = family * 1000 + (int32_t)i;
    for (int g = 0; g < QR_KV_TABLES_MAX; g++)
        seq->table.blocks[g] = calloc((size_t)most, sizeof(int32_t));
    seq->table.capacity = (int32_t)most;
    return seq;
}

static qr_sequence *add(world *w, int64_t prompt, int64_t more, int family)
{
    qr_sequence *seq = make(w, prompt, more, family);
    qr_scheduler_add(w->scheduler, seq);
    return seq;
}

static const qr_plan *plan(world *w)
{
    qr_arena_reset(&w->arena);
    return qr_scheduler_plan(w->scheduler, &w->arena);
}

static void commit(world *w, const qr_plan *p)
{
    for (int32_t i = 0; i < p->item_count; i++) {
        qr_sequence *seq = p->items[i].seq;
        if (!qr_scheduler_commit(w->scheduler, &p->items[i]) || !p->items[i].samples)
            continue;
        qr_sequence_append(seq, 7);
        if (seq->committed == seq->tokens_max)
            qr_scheduler_finish(w->scheduler, seq);
    }
    w->steps_done++;
}

static int32_t rows_of(const qr_plan *p, const qr_sequence *seq)
{
    for (int32_t i = 0; i < p->item_count; i++)
        if (p->items[i].seq == seq)
            return p->items[i].count;
    return 0;
}

static void a_burst_of_prompts_is_finished_one_after_the_other(void **state)
{
    (void)state;
    world w;
    world_open(&w,
               (qr_scheduler_options){.max_num_seqs = 16, .max_num_batched_tokens = 512, .n_blocks = 400});
    int first_step[16];
    for (int i = 0; i < 16; i++) {
        add(&w, 128, 64, i);
        first_step[i] = -1;
    }
    for (int step = 1; step <= 9; step++) {
        const qr_plan *p = plan(&w);
        assert_true(p->token_count <= 512);
        commit(&w, p);
        for (int i = 0; i < 16; i++)
            if (first_step[i] < 0 && w.seqs[i].committed > 128)
                first_step[i] = step;
    }
    /* Two prompts a step, whatever the decodes beside them: the eighth of sixteen is there at half time. */
    for (int i = 0; i < 16; i++)
        assert_int_equal(first_step[i], 1 + i / 2);
    world_close(&w);
}

static void a_long_queue_takes_more_of_a_shared_step(void **state)
{
    (void)state;
    enum { BUDGET = 4096, SHARED = 512, PROMPT = 128 };
    for (int waiting = 2; waiting <= 62; waiting += 20) {
        world w;
        world_open(&w, (qr_scheduler_options){.max_num_seqs = 64,
                                              .max_num_batched_tokens = BUDGET,
                                              .shared_prompt_rows = SHARED,
                                              .n_blocks = 2000});
        qr_sequence *decode = add(&w, 10, 50, 0);
        commit(&w, plan(&w));
        for (int i = 0; i < waiting; i++)
            add(&w, PROMPT, 5, i + 1);
        const qr_plan *p = plan(&w);
        int32_t queue = waiting * PROMPT, prompts = p->token_count - 1;
        assert_int_equal(rows_of(p, decode), 1);
        assert_int_equal(prompts, queue < SHARED ? queue : queue / 8 > SHARED ? queue / 8 : SHARED);
        world_close(&w);
    }
}

static void a_prompt_alone_takes_the_whole_step(void **state)
{
    (void)state;
    world w;
    world_open(&w,
               (qr_scheduler_options){.max_num_seqs = 16, .max_num_batched_tokens = 512, .n_blocks = 400});
    qr_sequence *alone = add(&w, 1000, 5, 1);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, alone), 512);
    commit(&w, p);
    qr_sequence *other = add(&w, 100, 5, 2);
    p = plan(&w);
    assert_int_equal(rows_of(p, alone), 156);
    assert_int_equal(rows_of(p, other), 100);
    world_close(&w);
}

static void decodes_come_before_prompts(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8, .max_num_batched_tokens = 32, .n_blocks = 200});
    qr_sequence *a = add(&w, 16, 50, 1), *b = add(&w, 16, 50, 2);
    commit(&w, plan(&w));
    qr_sequence *prompt = add(&w, 200, 5, 3);
    for (int i = 0; i < 5; i++) {
        const qr_plan *p = plan(&w);
        assert_int_equal(rows_of(p, a), 1);
        assert_int_equal(rows_of(p, b), 1);
        assert_int_equal(rows_of(p, prompt), 30);
        commit(&w, p);
    }
    world_close(&w);
}

static void a_long_prompt_does_not_starve_short_ones(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8, .max_num_batched_tokens = 64, .n_blocks = 400});
    qr_sequence *first = add(&w, 1000, 5, 1), *second = add(&w, 1000, 5, 2);
    qr_sequence *small = add(&w, 20, 5, 3);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, first), 44); /* half, and what the short one leaves */
    assert_int_equal(rows_of(p, small), 20);
    assert_int_equal(rows_of(p, second), 0);
    commit(&w, p);
    assert_int_equal(small->committed, 21);
    /* Alone with another long one, it takes what is left over after its half. */
    p = plan(&w);
    assert_int_equal(rows_of(p, small), 1);
    assert_int_equal(rows_of(p, first), 63);
    world_close(&w);
}

static void a_stated_threshold_binds(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8,
                                          .max_num_batched_tokens = 64,
                                          .n_blocks = 400,
                                          .long_prefill_token_threshold = 10});
    qr_sequence *first = add(&w, 1000, 5, 1), *second = add(&w, 25, 5, 2);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, first), 10);
    assert_int_equal(rows_of(p, second), 10);
    world_close(&w);
}

static void a_prefix_hit_is_whole_blocks_and_leaves_a_token(void **state)
{
    (void)state;
    world w;
    world_open(
        &w, (qr_scheduler_options){
                .max_num_seqs = 8, .max_num_batched_tokens = 256, .n_blocks = 100, .prefix_caching = true});
    commit(&w, (add(&w, 64, 5, 1), plan(&w)));
    qr_sequence *same = add(&w, 64, 5, 1), *longer = add(&w, 70, 5, 1), *other = add(&w, 64, 5, 2);
    const qr_plan *p = plan(&w);
    assert_int_equal(same->cached, 48); /* 64 would leave nothing to compute */
    assert_int_equal(rows_of(p, same), 16);
    assert_int_equal(longer->cached, 64);
    assert_int_equal(rows_of(p, longer), 6);
    assert_int_equal(other->cached, 0);
    assert_int_equal(w.scheduler->prefix_queries, 64 + 64 + 70 + 64);
    assert_int_equal(w.scheduler->prefix_hits, 48 + 64);
    world_close(&w);
}

static void one_that_wants_the_prompts_logits_reads_no_hit_but_publishes(void **state)
{
    (void)state;
    world w;
    world_open(
        &w, (qr_scheduler_options){
                .max_num_seqs = 8, .max_num_batched_tokens = 256, .n_blocks = 100, .prefix_caching = true});
    qr_sequence *first = make(&w, 64, 5, 1);
    first->prompt_logits = true;
    qr_scheduler_add(w.scheduler, first);
    commit(&w, plan(&w));
    qr_sequence *second = make(&w, 64, 5, 1);
    second->prompt_logits = true;
    qr_scheduler_add(w.scheduler, second);
    qr_sequence *third = add(&w, 64, 5, 1);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, second), 64);
    assert_int_equal(rows_of(p, third), 16);
    world_close(&w);
}

static void samples_wait_for_the_first_and_share_its_blocks(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8, .max_num_batched_tokens = 32, .n_blocks = 100});
    qr_sequence *first = make(&w, 70, 5, 1), *second = make(&w, 70, 5, 1);
    first->next = second;
    second->first = first;
    second->arrival = first->arrival;
    second->sample = 1;
    qr_scheduler_add(w.scheduler, first);
    qr_scheduler_add(w.scheduler, second);
    assert_int_equal(second->state, QR_SEQUENCE_HELD);
    for (int i = 0; i < 2; i++) {
        const qr_plan *p = plan(&w);
        assert_int_equal(rows_of(p, second), 0);
        commit(&w, p);
    }
    assert_int_equal(second->state, QR_SEQUENCE_WAITING); /* 64 tokens are there: all that can be shared */
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, first), 6);
    assert_int_equal(rows_of(p, second), 6);
    for (int i = 0; i < 4; i++)
        assert_int_equal(first->table.blocks[0][i], second->table.blocks[0][i]);
    assert_int_not_equal(first->table.blocks[0][4], second->table.blocks[0][4]);
    world_close(&w);
}

static void the_latest_gives_way_when_blocks_run_out(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8, .max_num_batched_tokens = 64, .n_blocks = 5});
    qr_sequence *a = add(&w, 30, 40, 1), *b = add(&w, 15, 40, 2);
    int64_t b_before = 0;
    while (w.scheduler->preemptions == 0) {
        b_before = b->committed;
        commit(&w, plan(&w));
        assert_true(w.steps_done < 60);
    }
    assert_int_equal(b->state, QR_SEQUENCE_WAITING);
    assert_int_equal(a->state, QR_SEQUENCE_RUNNING);
    assert_int_equal(b->table.count, 0);
    assert_in_range(b->committed, b_before, b_before + 1); /* its tokens stay */
    while (a->state != QR_SEQUENCE_FINISHED || b->state != QR_SEQUENCE_FINISHED) {
        commit(&w, plan(&w));
        assert_true(w.steps_done < 200);
    }
    assert_int_equal(a->committed, 70);
    assert_int_equal(b->committed, 55);
    world_close(&w);
}

static void nothing_overtakes_one_that_does_not_fit(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 8, .max_num_batched_tokens = 256, .n_blocks = 10});
    add(&w, 100, 20, 1);
    commit(&w, plan(&w));
    qr_sequence *large = add(&w, 100, 5, 2), *small = add(&w, 4, 5, 3);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, large), 0);
    assert_int_equal(rows_of(p, small), 0);
    world_close(&w);
}

static void a_better_priority_takes_the_place_of_a_worse_one(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){
                       .max_num_seqs = 1, .max_num_batched_tokens = 64, .n_blocks = 50, .priority = true});
    qr_sequence *low = make(&w, 20, 20, 1);
    low->priority = 5;
    qr_scheduler_add(w.scheduler, low);
    commit(&w, plan(&w));
    qr_sequence *equal = make(&w, 20, 3, 2), *high = make(&w, 20, 3, 3);
    equal->priority = 5;
    high->priority = -1;
    qr_scheduler_add(w.scheduler, equal);
    qr_scheduler_add(w.scheduler, high);
    const qr_plan *p = plan(&w);
    assert_int_equal(rows_of(p, high), 20);
    assert_int_equal(rows_of(p, low), 0);
    assert_int_equal(low->state, QR_SEQUENCE_WAITING);
    commit(&w, p);
    while (high->state != QR_SEQUENCE_FINISHED)
        commit(&w, plan(&w));
    p = plan(&w); /* the one that came first goes on */
    assert_true(rows_of(p, low) > 0);
    assert_int_equal(rows_of(p, equal), 0);
    world_close(&w);
}

static void a_plan_before_the_commit_counts_what_is_in_flight(void **state)
{
    (void)state;
    world w;
    world_open(&w, (qr_scheduler_options){.max_num_seqs = 4, .max_num_batched_tokens = 64, .n_blocks = 50});
    qr_sequence *seq = add(&w, 20, 3, 1);
    qr_arena second;
    qr_arena_init(&second, 1 << 12);
    const qr_plan *one = plan(&w);
    assert_true(one->items[0].samples);
    const qr_plan *two = qr_scheduler_plan(w.scheduler, &second);
    assert_int_equal(two->items[0].start, 20); /* the row of the token that step one samples */
    assert_int_equal(seq->pending, 2);
    commit(&w, one);
    const qr_plan *three = plan(&w);
    assert_int_equal(three->items[0].start, 21);
    commit(&w, two);
    qr_arena_reset(&second);
    assert_true(
        qr_plan_empty(qr_scheduler_plan(w.scheduler, &second))); /* the third token will be the last */
    commit(&w, three);
    assert_int_equal(seq->state, QR_SEQUENCE_FINISHED);
    assert_int_equal(seq->committed, 23);
    qr_arena_release(&second);
    world_close(&w);
}

static void blocks_leave_with_their_window(void **state)
{
    (void)state;
    world w;
    world_open(
        &w,
        (qr_scheduler_options){
            .max_num_seqs = 4, .max_num_batched_tokens = 32, .n_blocks = 12, .n_groups = 1, .window = {20}});
    qr_sequence *seq = add(&w, 300, 20, 1); /* twenty blocks pass through twelve */
    while (seq->state != QR_SEQUENCE_FINISHED) {
        commit(&w, plan(&w));
        assert_true(seq->table.count - seq->table.first[0] <= 5);
        assert_true(w.steps_done < 100);
    }
    assert_int_equal(w.scheduler->preemptions, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_of_prompts_is_finished_one_after_the_other),
        cmocka_unit_test(a_long_queue_takes_more_of_a_shared_step),
        cmocka_unit_test(a_prompt_alone_takes_the_whole_step),
        cmocka_unit_test(decodes_come_before_prompts),
        cmocka_unit_test(a_long_prompt_does_not_starve_short_ones),
        cmocka_unit_test(a_stated_threshold_binds),
        cmocka_unit_test(a_prefix_hit_is_whole_blocks_and_leaves_a_token),
        cmocka_unit_test(one_that_wants_the_prompts_logits_reads_no_hit_but_publishes),
        cmocka_unit_test(samples_wait_for_the_first_and_share_its_blocks),
        cmocka_unit_test(the_latest_gives_way_when_blocks_run_out),
        cmocka_unit_test(nothing_overtakes_one_that_does_not_fit),
        cmocka_unit_test(a_better_priority_takes_the_place_of_a_worse_one),
        cmocka_unit_test(a_plan_before_the_commit_counts_what_is_in_flight),
        cmocka_unit_test(blocks_leave_with_their_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
