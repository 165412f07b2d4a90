#include "kv/block_table.h"

#include "base/assert.h"
#include "base/mem.h"

static int32_t blocks_of(const qr_kv_space *space, int64_t tokens)
{
    return (int32_t)((tokens + space->block_size - 1) / space->block_size);
}

/* First block that a token at `position` sees in a group with this window. */
static int32_t first_visible(const qr_kv_space *space, int32_t window, int64_t position)
{
    int64_t first = window > 0 ? position - window + 1 : 0;
    return first > 0 ? (int32_t)(first / space->block_size) : 0;
}

void qr_kv_space_init(qr_kv_space *space, int n_groups, const int32_t *windows, int32_t n_blocks,
                      int32_t block_size)
{
    QR_ASSERT(n_groups > 0 && n_groups <= QR_KV_TABLES_MAX && block_size > 0);
    memset(space, 0, sizeof(*space));
    space->n_groups = n_groups;
    space->block_size = block_size;
    for (int g = 0; g < n_groups; g++) {
        space->window[g] = windows[g];
        qr_block_pool_init(&space->pool[g], n_blocks);
    }
}

void qr_kv_space_release(qr_kv_space *space)
{
    for (int g = 0; g < space->n_groups; g++)
        qr_block_pool_release(&space->pool[g]);
    memset(space, 0, sizeof(*space));
}

int32_t qr_kv_space_free(const qr_kv_space *space)
{
    int32_t least = INT32_MAX;
    for (int g = 0; g < space->n_groups; g++)
        least = QR_MIN(least, space->pool[g].free_count);
    return least;
}

/* Blocks that a sequence of `tokens` tokens holds at most in group g. */
static int32_t blocks_in_group(const qr_kv_space *space, int g, int64_t tokens, int32_t chunk)
{
    /* A chunk that starts inside a block sees a window that starts inside another one. */
    if (space->window[g] > 0)
        tokens = QR_MIN(tokens, (int64_t)space->window[g] + chunk + 2 * (int64_t)space->block_size);
    return blocks_of(space, tokens);
}

int32_t qr_kv_space_blocks_for(const qr_kv_space *space, int64_t tokens, int32_t chunk)
{
    int32_t most = 0;
    for (int g = 0; g < space->n_groups; g++)
        most = QR_MAX(most, blocks_in_group(space, g, tokens, chunk));
    return most;
}

int32_t qr_block_table_outlook(const qr_kv_space *space, const qr_block_table *table, int64_t tokens,
                               int32_t chunk)
{
    int32_t most = 0;
    for (int g = 0; g < space->n_groups; g++) {
        int32_t to_come = QR_MIN(blocks_in_group(space, g, tokens, chunk) - (table->count - table->first[g]),
                                 blocks_of(space, tokens) - table->count);
        most = QR_MAX(most, to_come);
    }
    return most;
}

/* ---- Hits ---- */

/* The longest m <= count such that group g has the blocks that a token at m * block_size sees. */
static int32_t match_group(const qr_kv_space *space, int g, const qr_prefix_key *keys, int32_t count)
{
    int32_t best = 0, run = 0; /* run: consecutive blocks that are there, ending at i */
    for (int32_t i = 0; i < count; i++) {
        run = qr_block_pool_find(&space->pool[g], &keys[i]) >= 0 ? run + 1 : 0;
        if (run == 0 && space->window[g] == 0)
            break;
        int32_t first = first_visible(space, space->window[g], (int64_t)(i + 1) * space->block_size);
        if (run >= i + 1 - first)
            best = i + 1;
    }
    return best;
}

int32_t qr_kv_space_match(const qr_kv_space *space, const qr_prefix_key *keys, int32_t count)
{
    /* A shorter hit in one group may be no hit in another, so until all agree. */
    for (bool agreed = false; !agreed && count > 0;) {
        agreed = true;
        for (int g = 0; g < space->n_groups; g++) {
            int32_t matched = match_group(space, g, keys, count);
            agreed = agreed && matched == count;
            count = matched;
        }
    }
    return count;
}

int32_t qr_block_table_shareable(const qr_kv_space *space, const qr_block_table *other, int32_t max)
{
    int32_t count = QR_MIN(max, other->count);
    for (int g = 0; g < space->n_groups; g++) {
        /* The other one's window has moved on: its first blocks are gone. */
        if (other->first[g] > first_visible(space, space->window[g], (int64_t)count * space->block_size))
            return 0;
    }
    return count;
}

static void table_begin(qr_kv_space *space, qr_block_table *table, int32_t count)
{
    QR_ASSERT(table->count == 0 && count <= table->capacity);
    table->count = count;
    table->keyed = 0;
    for (int g = 0; g < space->n_groups; g++) {
        table->first[g] = first_visible(space, space->window[g], (int64_t)count * space->block_size);
        for (int32_t i = 0; i < table->first[g]; i++)
            table->blocks[g][i] = -1;
    }
}

void qr_block_table_take_hit(qr_kv_space *space, qr_block_table *table, const qr_prefix_key *keys,
                             int32_t count)
{
    table_begin(space, table, count);
    table->keyed = count;
    for (int g = 0; g < space->n_groups; g++)
        for (int32_t i = table->first[g]; i < count; i++) {
            int32_t id = qr_block_pool_find(&space->pool[g], &keys[i]);
            QR_ASSERT(id >= 0);
            qr_block_pool_ref(&space->pool[g], id);
            table->blocks[g][i] = id;
        }
}

void qr_block_table_share(qr_kv_space *space, qr_block_table *table, const qr_block_table *other,
                          int32_t count)
{
    table_begin(space, table, count);
    table->keyed = QR_MIN(count, other->keyed);
    for (int g = 0; g < space->n_groups; g++)
        for (int32_t i = table->first[g]; i < count; i++) {
            table->blocks[g][i] = other->blocks[g][i];
            qr_block_pool_ref(&space->pool[g], table->blocks[g][i]);
        }
}

/* ---- Growing and giving back ---- */

int32_t qr_block_table_missing(const qr_kv_space *space, const qr_block_table *table, int64_t tokens)
{
    return QR_MAX(0, blocks_of(space, tokens) - table->count);
}

bool qr_block_table_grow(qr_kv_space *space, qr_block_table *table, int64_t tokens)
{
    int32_t missing = qr_block_table_missing(space, table, tokens);
    QR_ASSERT(table->count + missing <= table->capacity);
    if (missing > qr_kv_space_free(space))
        return false;
    for (int g = 0; g < space->n_groups; g++)
        for (int32_t i = 0; i < missing; i++)
            table->blocks[g][table->count + i] = qr_block_pool_take(&space->pool[g]);
    table->count += missing;
    return true;
}

void qr_block_table_slide(qr_kv_space *space, qr_block_table *table, int64_t position)
{
    for (int g = 0; g < space->n_groups; g++) {
        if (space->window[g] == 0)
            continue;
        int32_t first = QR_MIN(first_visible(space, space->window[g], position), table->count);
        for (int32_t i = first - 1; i >= table->first[g]; i--) {
            qr_block_pool_unref(&space->pool[g], table->blocks[g][i]);
            table->blocks[g][i] = -1;
        }
        table->first[g] = QR_MAX(table->first[g], first);
    }
}

void qr_block_table_publish(qr_kv_space *space, qr_block_table *table, const qr_prefix_key *keys,
                            int64_t tokens)
{
    int32_t full = (int32_t)(tokens / space->block_size);
    QR_ASSERT(full <= table->count);
    for (int32_t i = table->keyed; i < full; i++)
        for (int g = 0; g < space->n_groups; g++)
            if (table->blocks[g][i] >= 0)
                qr_block_pool_set_key(&space->pool[g], table->blocks[g][i], &keys[i]);
    table->keyed = QR_MAX(table->keyed, full);
}

void qr_block_table_clear(qr_kv_space *space, qr_block_table *table)
{
    for (int g = 0; g < space->n_groups; g++) {
        for (int32_t i = table->count - 1; i >= table->first[g]; i--)
            qr_block_pool_unref(&space->pool[g], table->blocks[g][i]);
        table->first[g] = 0;
    }
    table->count = 0;
    table->keyed = 0;
}

/* ---- Checks ---- */

static const char *check_group(const qr_kv_space *space, int g, const qr_block_table *const *tables,
                               int32_t table_count, int32_t *holders)
{
    for (int32_t t = 0; t < table_count; t++) {
        const qr_block_table *table = tables[t];
        for (int32_t i = 0; i < table->count; i++) {
            int32_t id = table->blocks[g][i];
            if ((id < 0) != (i < table->first[g]))
                return "a table's entries before its first block are not -1";
            if (id >= space->pool[g].n_blocks)
                return "a table names a block that does not exist";
            if (id >= 0)
                holders[id]++;
        }
    }
    for (int32_t id = 0; id < space->pool[g].n_blocks; id++)
        if (holders[id] != space->pool[g].blocks[id].refs)
            return holders[id] < space->pool[g].blocks[id].refs
                       ? "a block leaked: more references than holders"
                       : "a block has more holders than references";
    return NULL;
}

const char *qr_kv_space_check(const qr_kv_space *space, const qr_block_table *const *tables,
                              int32_t table_count)
{
    const char *wrong = NULL;
    for (int g = 0; g < space->n_groups && wrong == NULL; g++) {
        wrong = qr_block_pool_check(&space->pool[g]);
        if (wrong != NULL)
            break;
        int32_t *holders = qr_calloc((size_t)space->pool[g].n_blocks, sizeof(int32_t));
        wrong = check_group(space, g, tables, table_count, holders);
        qr_free(holders);
    }
    return wrong;
}
