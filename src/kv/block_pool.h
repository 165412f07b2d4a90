/* Block pool: which KV blocks are free, which are held and by how many, and which block holds which prefix.
 *
 *     take            -> held, refs = 1 (the least recently used free block; what it cached is forgotten)
 *     ref             -> held, refs + 1 (a free block is unlinked from the middle of the list, O(1))
 *     unref, refs = 0 -> free: at the back of the list when it caches a prefix, else at the front
 *
 * A free block that has a key still caches that prefix until it is taken. Holders give their blocks back from
 * the last to the first (block_table.c), so that the tail of a prefix is evicted before its head. A key names
 * at most one block; a second block with the same content stays without a key.
 *
 * Invariants (qr_block_pool_check):
 *  1. refs == 0 exactly for the blocks on the free list; free_count is its length.
 *  2. Every keyed block is found by its key and by no other; keyed_count counts them.
 *  3. Keys are whole SHA-256 values: equal keys mean equal tokens, parents and extra bytes.
 * No memory is taken after qr_block_pool_init. Thread: one owner (the engine thread).
 */
#ifndef QR_KV_BLOCK_POOL_H
#define QR_KV_BLOCK_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "kv/prefix_key.h"

typedef struct qr_block {
    int32_t refs;
    int32_t free_prev, free_next; /* neighbours on the free list; the sentinel is block n_blocks */
    int32_t chain_next;           /* next block with a key in the same bucket, or -1 */
    bool keyed;
    qr_prefix_key key;
} qr_block;

typedef struct qr_block_pool {
    qr_block *blocks;      /* [n_blocks + 1] */
    int32_t *buckets;      /* [bucket_count] first block of a chain, or -1 */
    uint32_t bucket_count; /* a power of two */
    int32_t n_blocks, free_count, keyed_count;
    uint64_t evictions; /* keyed blocks that were taken for something else */
} qr_block_pool;

void qr_block_pool_init(qr_block_pool *pool, int32_t n_blocks); /* n_blocks > 0 */
void qr_block_pool_release(qr_block_pool *pool);

int32_t qr_block_pool_take(qr_block_pool *pool); /* -1: none is free */
void qr_block_pool_ref(qr_block_pool *pool, int32_t id);
void qr_block_pool_unref(qr_block_pool *pool, int32_t id);

/* The block that caches `key`, held or free, or -1. */
int32_t qr_block_pool_find(const qr_block_pool *pool, const qr_prefix_key *key);
/* Says that the held block `id` now holds `key`; does nothing when the block or the key is taken. */
void qr_block_pool_set_key(qr_block_pool *pool, int32_t id, const qr_prefix_key *key);
/* Forgets the keys of all free blocks; held ones keep theirs only when `free_only`. */
void qr_block_pool_forget(qr_block_pool *pool, bool free_only);

/* Walks everything; returns NULL or what is wrong. For tests. */
const char *qr_block_pool_check(const qr_block_pool *pool);

#endif
