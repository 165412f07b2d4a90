/* The KV cache's bookkeeping over all groups, and the block tables of sequences.
 *
 * Layers with equal windows form a group; a group has its own pool of n_blocks blocks and every sequence has
 * one table per group. All groups have the same block size, so block i of a table covers the tokens
 * [i * block_size, (i + 1) * block_size) in each. An entry is a block id, or -1 once it left the window.
 *
 * A prefix hit of m blocks must hold in every group: a group without a window needs blocks [0, m), one with
 * window w those that the token at m * block_size still sees. Full blocks are never written again, so holders
 * share them freely; the partial last block of a table is always its own.
 * No memory is taken after init (tables are given their arrays). Thread: one owner (the engine thread).
 */
#ifndef QR_KV_BLOCK_TABLE_H
#define QR_KV_BLOCK_TABLE_H

#include "kv/block_pool.h"

#define QR_KV_TABLES_MAX 2 /* groups */

typedef struct qr_kv_space {
    int n_groups;
    int32_t block_size;
    int32_t window[QR_KV_TABLES_MAX]; /* 0: none; else a token at p sees (p - window, p] */
    qr_block_pool pool[QR_KV_TABLES_MAX];
} qr_kv_space;

typedef struct qr_block_table {
    int32_t *blocks[QR_KV_TABLES_MAX]; /* caller's memory: [capacity] each */
    int32_t capacity, count;
    int32_t first[QR_KV_TABLES_MAX]; /* entries before it are -1 */
    int32_t keyed;                   /* full blocks [0, keyed) were offered to the prefix cache */
} qr_block_table;

void qr_kv_space_init(qr_kv_space *space, int n_groups, const int32_t *windows, int32_t n_blocks,
                      int32_t block_size);
void qr_kv_space_release(qr_kv_space *space);
/* The least number of free blocks over the groups. */
int32_t qr_kv_space_free(const qr_kv_space *space);
/* Blocks that a sequence of `tokens` tokens holds at most in any group while it is computed in chunks of
 * at most `chunk`. */
int32_t qr_kv_space_blocks_for(const qr_kv_space *space, int64_t tokens, int32_t chunk);

/* The longest hit: how many leading blocks of keys[0..count) can be read instead of computed. */
int32_t qr_kv_space_match(const qr_kv_space *space, const qr_prefix_key *keys, int32_t count);
/* How many leading blocks of `other`, at most `max`, an empty table may share. */
int32_t qr_block_table_shareable(const qr_kv_space *space, const qr_block_table *other, int32_t max);

/* These fill an empty table: by a hit that qr_kv_space_match found, or from another table. */
void qr_block_table_take_hit(qr_kv_space *space, qr_block_table *table, const qr_prefix_key *keys,
                             int32_t count);
void qr_block_table_share(qr_kv_space *space, qr_block_table *table, const qr_block_table *other,
                          int32_t count);

/* Blocks that must be free for the table to cover `tokens` tokens. */
int32_t qr_block_table_missing(const qr_kv_space *space, const qr_block_table *table, int64_t tokens);
/* Blocks that it still takes, at most, until it has computed `tokens` tokens in chunks of `chunk`. */
int32_t qr_block_table_outlook(const qr_kv_space *space, const qr_block_table *table, int64_t tokens,
                               int32_t chunk);
/* Grows the table to cover `tokens` tokens; false and unchanged when a group has too few free blocks. */
bool qr_block_table_grow(qr_kv_space *space, qr_block_table *table, int64_t tokens);
/* Frees what a token at `position` and later ones no longer see. */
void qr_block_table_slide(qr_kv_space *space, qr_block_table *table, int64_t position);
/* Offers the full blocks up to `tokens` computed tokens to the prefix cache. */
void qr_block_table_publish(qr_kv_space *space, qr_block_table *table, const qr_prefix_key *keys,
                            int64_t tokens);
/* Gives everything back, last block first. */
void qr_block_table_clear(qr_kv_space *space, qr_block_table *table);

/* Checks pools and that refs equal the number of tables that hold each block. NULL or what is wrong. */
const char *qr_kv_space_check(const qr_kv_space *space, const qr_block_table *const *tables,
                              int32_t table_count);

#endif
