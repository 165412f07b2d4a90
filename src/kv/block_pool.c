#include "kv/block_pool.h"

#include "base/assert.h"
#include "base/mem.h"

/* ---- Free list: circular, the sentinel is blocks[n_blocks] ---- */

static void list_link(qr_block_pool *pool, int32_t prev, int32_t id, int32_t next)
{
    pool->blocks[id].free_prev = prev;
    pool->blocks[id].free_next = next;
    pool->blocks[prev].free_next = id;
    pool->blocks[next].free_prev = id;
    pool->free_count++;
}

static void list_unlink(qr_block_pool *pool, int32_t id)
{
    qr_block *block = &pool->blocks[id];
    pool->blocks[block->free_prev].free_next = block->free_next;
    pool->blocks[block->free_next].free_prev = block->free_prev;
    block->free_prev = block->free_next = -1;
    pool->free_count--;
}

static void list_push_front(qr_block_pool *pool, int32_t id)
{
    list_link(pool, pool->n_blocks, id, pool->blocks[pool->n_blocks].free_next);
}

static void list_push_back(qr_block_pool *pool, int32_t id)
{
    list_link(pool, pool->blocks[pool->n_blocks].free_prev, id, pool->n_blocks);
}

/* ---- Keys: chains through the blocks themselves ---- */

static uint32_t bucket_of(const qr_block_pool *pool, const qr_prefix_key *key)
{
    uint32_t hash; /* a SHA-256 value: any four bytes are uniform */
    memcpy(&hash, key->bytes, sizeof(hash));
    return hash & (pool->bucket_count - 1);
}

static void key_drop(qr_block_pool *pool, int32_t id)
{
    qr_block *block = &pool->blocks[id];
    if (!block->keyed)
        return;
    int32_t *link = &pool->buckets[bucket_of(pool, &block->key)];
    while (*link != id) {
        QR_ASSERT(*link >= 0);
        link = &pool->blocks[*link].chain_next;
    }
    *link = block->chain_next;
    block->chain_next = -1;
    block->keyed = false;
    pool->keyed_count--;
}

int32_t qr_block_pool_find(const qr_block_pool *pool, const qr_prefix_key *key)
{
    int32_t id = pool->buckets[bucket_of(pool, key)];
    while (id >= 0 && !qr_prefix_key_equal(&pool->blocks[id].key, key))
        id = pool->blocks[id].chain_next;
    return id;
}

void qr_block_pool_set_key(qr_block_pool *pool, int32_t id, const qr_prefix_key *key)
{
    qr_block *block = &pool->blocks[id];
    QR_ASSERT(block->refs > 0);
    if (block->keyed || qr_block_pool_find(pool, key) >= 0)
        return;
    block->key = *key;
    block->keyed = true;
    int32_t *bucket = &pool->buckets[bucket_of(pool, key)];
    block->chain_next = *bucket;
    *bucket = id;
    pool->keyed_count++;
}

void qr_block_pool_forget(qr_block_pool *pool, bool free_only)
{
    for (int32_t id = 0; id < pool->n_blocks; id++)
        if (!free_only || pool->blocks[id].refs == 0)
            key_drop(pool, id);
}

/* ---- Life ---- */

void qr_block_pool_init(qr_block_pool *pool, int32_t n_blocks)
{
    QR_ASSERT(n_blocks > 0 && n_blocks < INT32_MAX);
    memset(pool, 0, sizeof(*pool));
    pool->n_blocks = n_blocks;
    pool->blocks = qr_calloc((size_t)n_blocks + 1, sizeof(qr_block));
    pool->bucket_count = 16;
    while (pool->bucket_count < (uint32_t)n_blocks)
        pool->bucket_count *= 2;
    pool->buckets = qr_alloc(pool->bucket_count * sizeof(int32_t));
    memset(pool->buckets, 0xff, pool->bucket_count * sizeof(int32_t));
    pool->blocks[n_blocks].free_prev = pool->blocks[n_blocks].free_next = n_blocks;
    for (int32_t id = 0; id < n_blocks; id++) {
        pool->blocks[id].chain_next = -1;
        list_push_back(pool, id);
    }
}

void qr_block_pool_release(qr_block_pool *pool)
{
    qr_free(pool->blocks);
    qr_free(pool->buckets);
    memset(pool, 0, sizeof(*pool));
}

int32_t qr_block_pool_take(qr_block_pool *pool)
{
    if (pool->free_count == 0)
        return -1;
    int32_t id = pool->blocks[pool->n_blocks].free_next;
    list_unlink(pool, id);
    if (pool->blocks[id].keyed)
        pool->evictions++;
    key_drop(pool, id);
    pool->blocks[id].refs = 1;
    return id;
}

void qr_block_pool_ref(qr_block_pool *pool, int32_t id)
{
    QR_ASSERT(id >= 0 && id < pool->n_blocks);
    if (pool->blocks[id].refs++ == 0)
        list_unlink(pool, id);
}

void qr_block_pool_unref(qr_block_pool *pool, int32_t id)
{
    QR_ASSERT(id >= 0 && id < pool->n_blocks && pool->blocks[id].refs > 0);
    if (--pool->blocks[id].refs > 0)
        return;
    /* A block that caches nothing is worth nothing: it goes first. */
    if (pool->blocks[id].keyed)
        list_push_back(pool, id);
    else
        list_push_front(pool, id);
}

/* ---- Checks ---- */

static const char *check_free_list(const qr_block_pool *pool)
{
    int32_t count = 0, prev = pool->n_blocks;
    for (int32_t id = pool->blocks[prev].free_next; id != pool->n_blocks; id = pool->blocks[id].free_next) {
        if (id < 0 || id >= pool->n_blocks || ++count > pool->n_blocks)
            return "the free list leaves the pool or runs in a circle";
        if (pool->blocks[id].free_prev != prev)
            return "the free list's back links are wrong";
        if (pool->blocks[id].refs != 0)
            return "a held block is on the free list";
        prev = id;
    }
    if (count != pool->free_count)
        return "free_count is not the length of the free list";
    for (int32_t id = 0; id < pool->n_blocks; id++)
        count += pool->blocks[id].refs > 0;
    return count == pool->n_blocks ? NULL : "a block is neither free nor held";
}

const char *qr_block_pool_check(const qr_block_pool *pool)
{
    const char *wrong = check_free_list(pool);
    if (wrong != NULL)
        return wrong;
    int32_t keyed = 0, chained = 0;
    for (int32_t id = 0; id < pool->n_blocks; id++) {
        if (pool->blocks[id].refs < 0)
            return "a reference count is negative";
        if (!pool->blocks[id].keyed)
            continue;
        keyed++;
        if (qr_block_pool_find(pool, &pool->blocks[id].key) != id)
            return "a keyed block is not found by its key";
    }
    for (uint32_t b = 0; b < pool->bucket_count; b++)
        for (int32_t id = pool->buckets[b]; id >= 0 && chained <= keyed; id = pool->blocks[id].chain_next)
            chained++;
    if (keyed != pool->keyed_count || chained != keyed)
        return "keyed_count is wrong";
    return NULL;
}
