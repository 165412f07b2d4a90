// links: qr_kv
/* Block pool and block tables: life of a block, eviction order, windows, hits in several groups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kv/block_table.h"

#define BLOCK 4

static qr_prefix_key key_of(uint8_t name)
{
    qr_prefix_key key;
    memset(&key, name, sizeof(key));
    return key;
}

static void a_pool_hands_out_each_block_once(void **state)
{
    (void)state;
    qr_block_pool pool;
    qr_block_pool_init(&pool, 5);
    bool seen[5] = {false};
    for (int i = 0; i < 5; i++) {
        int32_t id = qr_block_pool_take(&pool);
        assert_in_range(id, 0, 4);
        assert_false(seen[id]);
        seen[id] = true;
    }
    assert_int_equal(qr_block_pool_take(&pool), -1);
    assert_null(qr_block_pool_check(&pool));
    for (int32_t id = 0; id < 5; id++)
        qr_block_pool_unref(&pool, id);
    assert_int_equal(pool.free_count, 5);
    assert_null(qr_block_pool_check(&pool));
    qr_block_pool_release(&pool);
}

static void a_free_keyed_block_is_found_until_it_is_taken(void **state)
{
    (void)state;
    qr_block_pool pool;
    qr_block_pool_init(&pool, 3);
    qr_prefix_key a = key_of(1), b = key_of(2);
    int32_t first = qr_block_pool_take(&pool), second = qr_block_pool_take(&pool);
    qr_block_pool_set_key(&pool, first, &a);
    qr_block_pool_set_key(&pool, second, &b);
    qr_block_pool_unref(&pool, first);
    qr_block_pool_unref(&pool, second);
    assert_int_equal(qr_block_pool_find(&pool, &a), first);
    qr_block_pool_ref(&pool, first); /* unlinked from the middle */
    assert_null(qr_block_pool_check(&pool));
    assert_int_not_equal(qr_block_pool_take(&pool), second); /* the one without a key goes first */
    assert_int_equal(qr_block_pool_take(&pool), second);
    assert_int_equal(qr_block_pool_find(&pool, &b), -1);
    assert_int_equal(pool.evictions, 1);
    assert_int_equal(qr_block_pool_take(&pool), -1);
    assert_null(qr_block_pool_check(&pool));
    qr_block_pool_release(&pool);
}

static void free_keyed_blocks_leave_least_recently_used_first(void **state)
{
    (void)state;
    qr_block_pool pool;
    qr_block_pool_init(&pool, 4);
    int32_t id[4];
    for (int i = 0; i < 4; i++) {
        id[i] = qr_block_pool_take(&pool);
        qr_prefix_key key = key_of((uint8_t)(i + 1));
        qr_block_pool_set_key(&pool, id[i], &key);
    }
    const int order[4] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++)
        qr_block_pool_unref(&pool, id[order[i]]);
    for (int i = 0; i < 4; i++)
        assert_int_equal(qr_block_pool_take(&pool), id[order[i]]);
    qr_block_pool_release(&pool);
}

static void a_second_block_with_the_same_content_stays_without_a_key(void **state)
{
    (void)state;
    qr_block_pool pool;
    qr_block_pool_init(&pool, 2);
    qr_prefix_key key = key_of(7);
    int32_t first = qr_block_pool_take(&pool), second = qr_block_pool_take(&pool);
    qr_block_pool_set_key(&pool, first, &key);
    qr_block_pool_set_key(&pool, second, &key);
    assert_int_equal(pool.keyed_count, 1);
    assert_int_equal(qr_block_pool_find(&pool, &key), first);
    qr_block_pool_release(&pool);
}

static void forgetting_leaves_held_blocks_their_keys(void **state)
{
    (void)state;
    qr_block_pool pool;
    qr_block_pool_init(&pool, 2);
    qr_prefix_key a = key_of(1), b = key_of(2);
    int32_t held = qr_block_pool_take(&pool), freed = qr_block_pool_take(&pool);
    qr_block_pool_set_key(&pool, held, &a);
    qr_block_pool_set_key(&pool, freed, &b);
    qr_block_pool_unref(&pool, freed);
    qr_block_pool_forget(&pool, true);
    assert_int_equal(qr_block_pool_find(&pool, &a), held);
    assert_int_equal(qr_block_pool_find(&pool, &b), -1);
    qr_block_pool_forget(&pool, false);
    assert_int_equal(qr_block_pool_find(&pool, &a), -1);
    assert_null(qr_block_pool_check(&pool));
    qr_block_pool_release(&pool);
}

/* ---- Tables ---- */

#define TABLE_BLOCKS 64
typedef struct table_memory {
    qr_block_table table;
    int32_t ids[QR_KV_TABLES_MAX][TABLE_BLOCKS];
} table_memory;

static qr_block_table *table_init(table_memory *memory)
{
    memset(memory, 0, sizeof(*memory));
    for (int g = 0; g < QR_KV_TABLES_MAX; g++)
        memory->table.blocks[g] = memory->ids[g];
    memory->table.capacity = TABLE_BLOCKS;
    return &memory->table;
}

static void make_keys(qr_prefix_key *keys, int32_t count, int32_t first_id)
{
    int32_t ids[TABLE_BLOCKS * BLOCK];
    for (int32_t i = 0; i < count * BLOCK; i++)
        ids[i] = first_id + i;
    qr_prefix_key root;
    qr_prefix_key_root(&root, 0);
    qr_prefix_keys_extend(keys, 0, count, &root, ids, BLOCK, "", 0);
}

static void a_table_grows_by_whole_blocks_or_not_at_all(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 1, (int32_t[]){0}, 3, BLOCK);
    table_memory memory;
    qr_block_table *table = table_init(&memory);
    assert_true(qr_block_table_grow(&space, table, 5));
    assert_int_equal(table->count, 2);
    assert_true(qr_block_table_grow(&space, table, 8));
    assert_int_equal(table->count, 2);
    assert_int_equal(qr_block_table_missing(&space, table, 20), 3);
    assert_false(qr_block_table_grow(&space, table, 20));
    assert_int_equal(table->count, 2);
    qr_block_table_clear(&space, table);
    assert_int_equal(qr_kv_space_free(&space), 3);
    qr_kv_space_release(&space);
}

static void the_tail_of_a_prefix_is_evicted_before_its_head(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 1, (int32_t[]){0}, 4, BLOCK);
    qr_prefix_key keys[4];
    make_keys(keys, 4, 100);
    table_memory memory;
    qr_block_table *table = table_init(&memory);
    qr_block_table_grow(&space, table, 4 * BLOCK);
    qr_block_table_publish(&space, table, keys, 4 * BLOCK);
    qr_block_table_clear(&space, table);
    assert_int_equal(qr_kv_space_match(&space, keys, 4), 4);
    for (int left = 3; left >= 0; left--) {
        qr_block_pool_take(&space.pool[0]);
        assert_int_equal(qr_kv_space_match(&space, keys, 4), left);
    }
    qr_kv_space_release(&space);
}

static void a_hit_is_shared_and_counted(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 2, (int32_t[]){0, 8}, 16, BLOCK);
    qr_prefix_key keys[5];
    make_keys(keys, 5, 0);
    table_memory a, b;
    qr_block_table *first = table_init(&a), *second = table_init(&b);
    qr_block_table_grow(&space, first, 18);
    qr_block_table_publish(&space, first, keys, 18);
    assert_int_equal(first->keyed, 4);
    assert_int_equal(qr_kv_space_match(&space, keys, 5), 4);
    qr_block_table_take_hit(&space, second, keys, 4);
    /* A token at 16 sees (8, 16] in the second group: block 2 on. */
    assert_int_equal(second->first[0], 0);
    assert_int_equal(second->first[1], 2);
    assert_int_equal(second->blocks[1][1], -1);
    assert_int_equal(second->blocks[1][2], first->blocks[1][2]);
    assert_null(qr_kv_space_check(&space, (const qr_block_table *[]){first, second}, 2));
    assert_non_null(qr_kv_space_check(&space, (const qr_block_table *[]){first}, 1)); /* the check can fail */
    qr_block_table_clear(&space, first);
    assert_null(qr_kv_space_check(&space, (const qr_block_table *[]){second}, 1));
    qr_block_table_clear(&space, second);
    assert_null(qr_kv_space_check(&space, NULL, 0));
    qr_kv_space_release(&space);
}

static void a_window_frees_what_no_later_token_sees(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 1, (int32_t[]){6}, 16, BLOCK);
    table_memory memory;
    qr_block_table *table = table_init(&memory);
    qr_block_table_grow(&space, table, 20);
    qr_block_table_slide(&space, table, 8); /* sees 3..8: block 0 still */
    assert_int_equal(table->first[0], 0);
    qr_block_table_slide(&space, table, 9); /* sees 4..9 */
    assert_int_equal(table->first[0], 1);
    assert_int_equal(table->blocks[0][0], -1);
    qr_block_table_slide(&space, table, 19); /* sees 14..19: block 3 on */
    assert_int_equal(table->first[0], 3);
    assert_int_equal(space.pool[0].free_count, 14);
    assert_null(qr_kv_space_check(&space, (const qr_block_table *[]){table}, 1));
    qr_block_table_clear(&space, table);
    assert_int_equal(space.pool[0].free_count, 16);
    qr_kv_space_release(&space);
}

static void a_hit_must_hold_in_every_group(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 2, (int32_t[]){0, 4}, 16, BLOCK);
    qr_prefix_key keys[4];
    make_keys(keys, 4, 0);
    table_memory memory;
    qr_block_table *table = table_init(&memory);
    qr_block_table_grow(&space, table, 16);
    /* Only blocks 0 and 1 get keys in the window's group, all four in the other. */
    for (int i = 0; i < 4; i++)
        qr_block_pool_set_key(&space.pool[0], table->blocks[0][i], &keys[i]);
    for (int i = 0; i < 2; i++)
        qr_block_pool_set_key(&space.pool[1], table->blocks[1][i], &keys[i]);
    assert_int_equal(qr_kv_space_match(&space, keys, 4), 2);
    /* A hole that the window does not reach is no obstacle. */
    qr_block_pool_set_key(&space.pool[1], table->blocks[1][3], &keys[3]);
    assert_int_equal(qr_kv_space_match(&space, keys, 4), 4);
    assert_int_equal(qr_kv_space_match(&space, keys, 3), 2);
    qr_block_table_clear(&space, table);
    qr_kv_space_release(&space);
}

static void a_table_shares_only_what_the_other_still_holds(void **state)
{
    (void)state;
    qr_kv_space space;
    qr_kv_space_init(&space, 2, (int32_t[]){0, 4}, 16, BLOCK);
    table_memory a, b;
    qr_block_table *first = table_init(&a), *second = table_init(&b);
    qr_block_table_grow(&space, first, 14);
    assert_int_equal(qr_block_table_shareable(&space, first, 2), 2);
    qr_block_table_share(&space, second, first, 2);
    assert_int_equal(second->count, 2);
    assert_int_equal(second->blocks[0][1], first->blocks[0][1]);
    assert_null(qr_kv_space_check(&space, (const qr_block_table *[]){first, second}, 2));
    qr_block_table_slide(&space, first, 13); /* the window's group: sees 10..13 */
    assert_int_equal(qr_block_table_shareable(&space, first, 2), 0);
    qr_block_table_clear(&space, first);
    qr_block_table_clear(&space, second);
    assert_null(qr_kv_space_check(&space, NULL, 0));
    qr_kv_space_release(&space);
}

static void random_use_keeps_every_invariant(void **state)
{
    (void)state;
    enum { TABLES = 6, STEPS = 4000 };
    uint64_t random = 12345;
    qr_kv_space space;
    qr_kv_space_init(&space, 2, (int32_t[]){0, 10}, 24, BLOCK);
    static table_memory memory[TABLES];
    const qr_block_table *tables[TABLES];
    static qr_prefix_key keys[3][16];
    for (int i = 0; i < 3; i++)
        make_keys(keys[i], 16, i * 1000);
    int64_t tokens[TABLES] = {0};
    int which[TABLES] = {0};
    for (int i = 0; i < TABLES; i++)
        tables[i] = table_init(&memory[i]);
    for (int step = 0; step < STEPS; step++) {
        int t = (int)(qr_rng_next(&random) % TABLES);
        qr_block_table *table = &memory[t].table;
        switch (qr_rng_next(&random) % 4) {
        case 0:
            qr_block_table_clear(&space, table);
            tokens[t] = 0;
            break;
        case 1:
            if (table->count == 0) {
                which[t] = (int)(qr_rng_next(&random) % 3);
                int32_t hit = qr_kv_space_match(&space, keys[which[t]], 16);
                qr_block_table_take_hit(&space, table, keys[which[t]], hit);
                tokens[t] = (int64_t)hit * BLOCK;
            }
            break;
        default: {
            int64_t more = QR_MIN(tokens[t] + (int64_t)(qr_rng_next(&random) % 9), 16 * BLOCK);
            qr_block_table_slide(&space, table, tokens[t]);
            if (qr_block_table_grow(&space, table, more)) {
                tokens[t] = more;
                qr_block_table_publish(&space, table, keys[which[t]], more);
            }
        }
        }
        const char *wrong = qr_kv_space_check(&space, tables, TABLES);
        if (wrong != NULL)
            fail_msg("step %d: %s", step, wrong);
    }
    for (int i = 0; i < TABLES; i++)
        qr_block_table_clear(&space, &memory[i].table);
    assert_int_equal(qr_kv_space_free(&space), 24);
    qr_kv_space_release(&space);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pool_hands_out_each_block_once),
        cmocka_unit_test(a_free_keyed_block_is_found_until_it_is_taken),
        cmocka_unit_test(free_keyed_blocks_leave_least_recently_used_first),
        cmocka_unit_test(a_second_block_with_the_same_content_stays_without_a_key),
        cmocka_unit_test(forgetting_leaves_held_blocks_their_keys),
        cmocka_unit_test(a_table_grows_by_whole_blocks_or_not_at_all),
        cmocka_unit_test(the_tail_of_a_prefix_is_evicted_before_its_head),
        cmocka_unit_test(a_hit_is_shared_and_counted),
        cmocka_unit_test(a_window_frees_what_no_later_token_sees),
        cmocka_unit_test(a_hit_must_hold_in_every_group),
        cmocka_unit_test(a_table_shares_only_what_the_other_still_holds),
        cmocka_unit_test(random_use_keeps_every_invariant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
