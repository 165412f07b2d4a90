/* Paged attention: the work of a step is cut into items (a sequence, a KV head, some of its query rows, a run of key
 * tiles) that the pool takes one by one. All query heads of a KV group go together, so that a page is read once.
 *
 * Keys are walked in tiles of CPU_ATTENTION_TILE absolute positions; each tile is a softmax of its own, and tiles are
 * merged from left to right. So a prefill chunk, a decode, and a decode whose tiles were shared out among threads
 * (few sequences, long contexts) compute the same bits: only who holds a tile's result until the merge differs.
 */
#include <string.h>

#include "backend/cpu/kv.h"
#include "base/assert.h"
#include "base/mem.h"

enum {
    ITEM_ROWS = 48,       /* query rows x heads of a prefill item */
    ITEMS_PER_THREAD = 6, /* enough to even out what the threads take */
    TILE_BLOCKS = CPU_ATTENTION_TILE / 8 + 1,
    AHEAD_BLOCKS = 4,    /* prefetched while one is read: some 8 KB, what memory has under way */
    AHEAD_SIZE_MAX = 32, /* longer blocks the hardware follows by itself */
    PARTIAL_BYTES_MAX = 64 << 20,
    INLINE_FLOPS = 200000 /* some 4 us: not worth a wake-up */
};

typedef struct attention_item {
    int32_t seq, head;  /* KV head */
    int32_t row0, rows; /* query rows of the batch */
    int32_t tile0, tile1;
    float *partials;     /* [tile1 - tile0][group][partial]: NULL when the item merges by itself */
    int32_t merge_tiles; /* > 0: the first of a split row's items; tiles from here on, in all its items */
} attention_item;

typedef struct attention_job {
    const cpu_pages *pages;
    const qr_batch *batch;
    const int32_t *table;
    int layer, group; /* group: query heads per KV head */
    int32_t head_dim, window;
    float scale;
    qr_tensor q, y;
    attention_item *items;
    int64_t item_count, item_max;
    float *partials, *partials_end;
    char *workers;
    size_t worker_bytes;
} attention_job;

/* A worker's memory, for `rows` query rows x heads. */
typedef struct attention_rows {
    float *q, *acc, *max, *sum, *part, *scores;
    int32_t *first, *last;
} attention_rows;

/* ---- Scratch ---- */

static size_t floats(size_t count) { return QR_ROUND_UP(count * sizeof(float), (size_t)64); }

static size_t rows_max(int32_t group) { return (size_t)QR_MAX(group, ITEM_ROWS); }

static size_t worker_bytes(int32_t group, int32_t head_dim)
{
    size_t rows = rows_max(group), dim = (size_t)head_dim;
    return 2 * floats(rows * dim) + 4 * floats(rows + CPU_ATTENTION_ROWS) + floats(CPU_ATTENTION_ROWS * dim) +
           floats(CPU_ATTENTION_ROWS * CPU_ATTENTION_TILE);
}

static attention_rows worker_rows(const attention_job *job, int worker)
{
    char *at = job->workers + (size_t)worker * job->worker_bytes;
    size_t rows = rows_max(job->group), dim = (size_t)job->head_dim;
    attention_rows r;
    r.q = (float *)(void *)at;
    r.acc = (float *)(void *)(at += floats(rows * dim));
    r.max = (float *)(void *)(at += floats(rows * dim));
    r.sum = (float *)(void *)(at += floats(rows + CPU_ATTENTION_ROWS));
    r.first = (int32_t *)(void *)(at += floats(rows + CPU_ATTENTION_ROWS));
    r.last = (int32_t *)(void *)(at += floats(rows + CPU_ATTENTION_ROWS));
    r.part = (float *)(void *)(at += floats(rows + CPU_ATTENTION_ROWS));
    r.scores = (float *)(void *)(at += floats(CPU_ATTENTION_ROWS * dim));
    return r;
}

/* Items: each sequence's rows in tiles, and room for splits. n_heads stands for KV heads, which it bounds. */
static size_t item_capacity(int threads, int32_t n_heads, const qr_batch *batch)
{
    size_t tiles = (size_t)batch->n_tokens / (ITEM_ROWS / 2) + (size_t)batch->n_seqs;
    return (size_t)n_heads * tiles + (size_t)(ITEMS_PER_THREAD * threads + n_heads);
}

static int64_t partial_floats(int32_t head_dim) { return QR_ROUND_UP(head_dim + 2, 16); }

/* Room to split one row of the longest context; several shorter ones share it. */
static size_t partial_bytes(int32_t n_heads, int32_t head_dim, const qr_batch *batch)
{
    int32_t longest = 0;
    for (int32_t i = 0; i < batch->n_seqs; i++)
        longest = QR_MAX(longest, batch->context_len[i]);
    size_t tiles = (size_t)(longest + CPU_ATTENTION_TILE - 1) / CPU_ATTENTION_TILE;
    size_t bytes = tiles * (size_t)n_heads * (size_t)partial_floats(head_dim) * sizeof(float);
    return QR_MIN(bytes, (size_t)PARTIAL_BYTES_MAX);
}

size_t cpu_attention_scratch_bytes(const qr_device *device, int32_t n_heads, int32_t head_dim,
                                   const qr_batch *batch)
{
    int threads = cpu_pool_threads(((const cpu_device *)device)->pool);
    size_t items = QR_ROUND_UP(item_capacity(threads, n_heads, batch) * sizeof(attention_item), (size_t)64);
    return items + partial_bytes(n_heads, head_dim, batch) +
           (size_t)threads * worker_bytes(n_heads, head_dim);
}

/* ---- Cutting the work ---- */

static int32_t first_key(const attention_job *job, int32_t position)
{
    return job->window > 0 ? QR_MAX(0, position - job->window + 1) : 0;
}

static void add_item(attention_job *job, attention_item item)
{
    QR_ASSERT(job->item_count < job->item_max);
    job->items[job->item_count++] = item;
}

/* One query row's tiles in up to `runs` items with partial results; false: no room for them. */
static bool add_split(attention_job *job, attention_item whole, int32_t runs)
{
    int32_t tiles = whole.tile1 - whole.tile0;
    runs = QR_MIN(runs, tiles);
    int64_t per_tile = job->group * partial_floats(job->head_dim);
    if (runs < 2 || job->partials + tiles * per_tile > job->partials_end ||
        job->item_count + runs > job->item_max)
        return false;
    for (int32_t run = 0; run < runs; run++) {
        attention_item item = whole;
        item.tile0 = whole.tile0 + (int32_t)((int64_t)tiles * run / runs);
        item.tile1 = whole.tile0 + (int32_t)((int64_t)tiles * (run + 1) / runs);
        item.partials = job->partials + (item.tile0 - whole.tile0) * per_tile;
        item.merge_tiles = run == 0 ? tiles : 0;
        add_item(job, item);
    }
    job->partials += tiles * per_tile;
    return true;
}

/* The rows of a sequence, its last (and longest) ones first. */
static void add_sequence(attention_job *job, int32_t seq, int32_t kv_heads, int32_t runs)
{
    const qr_batch *batch = job->batch;
    int32_t row0 = batch->seq_start[seq], end = batch->seq_start[seq + 1];
    int32_t step = QR_MAX(1, ITEM_ROWS / job->group);
    for (int32_t row = row0 + (end - row0 - 1) / step * step; row >= row0; row -= step) {
        int32_t rows = QR_MIN(step, end - row);
        attention_item item = {.seq = seq, .row0 = row, .rows = rows};
        item.tile0 = first_key(job, batch->positions[row]) / CPU_ATTENTION_TILE;
        item.tile1 = batch->positions[row + rows - 1] / CPU_ATTENTION_TILE + 1;
        for (item.head = 0; item.head < kv_heads; item.head++)
            if (runs < 2 || rows > 1 || !add_split(job, item, runs))
                add_item(job, item);
    }
}

/* Splits rows of a single query only where there is too little to share out otherwise. */
static void cut_work(attention_job *job, int threads, int32_t kv_heads)
{
    const qr_batch *batch = job->batch;
    int64_t wanted = (int64_t)ITEMS_PER_THREAD * threads, whole = (int64_t)batch->n_seqs * kv_heads;
    int32_t runs = threads > 1 && whole < wanted ? (int32_t)(wanted / whole) : 1;
    for (int32_t seq = 0; seq < batch->n_seqs; seq++)
        add_sequence(job, seq, kv_heads, runs);
}

/* ---- Doing it ---- */

/* Queries of the item, scaled so that scores are exponents of 2: [rows][group] x head_dim. */
static void load_queries(const attention_job *job, const attention_item *item, attention_rows *r)
{
    for (int32_t i = 0; i < item->rows; i++) {
        const float *q = (const float *)job->q.data + (item->row0 + i) * job->q.row_stride +
                         (int64_t)item->head * job->group * job->head_dim;
        job->pages->kernels->scale(r->q + (int64_t)i * job->group * job->head_dim, q, job->scale,
                                   (int64_t)job->group * job->head_dim);
    }
    for (int32_t m = 0; m < item->rows * job->group; m++) {
        r->max[m] = CPU_ATTENTION_EMPTY;
        r->sum[m] = 0;
    }
}

/* Which keys of the tile each row sees, as offsets in the tile; returns their union. */
static bool see_keys(const attention_job *job, const attention_item *item, int32_t key0, attention_rows *r,
                     int32_t *from, int32_t *to)
{
    *from = CPU_ATTENTION_TILE;
    *to = 0;
    for (int32_t i = 0; i < item->rows; i++) {
        int32_t position = job->batch->positions[item->row0 + i];
        int32_t first = QR_MAX(first_key(job, position) - key0, 0);
        int32_t last = QR_MIN(position + 1 - key0, (int32_t)CPU_ATTENTION_TILE);
        if (first >= last)
            first = last = 0;
        else {
            *from = QR_MIN(*from, first);
            *to = QR_MAX(*to, last);
        }
        for (int g = 0; g < job->group; g++) {
            r->first[i * job->group + g] = first;
            r->last[i * job->group + g] = last;
        }
    }
    return *from < *to;
}

static const void *block_page(const attention_job *job, const attention_item *item, int32_t block, bool value)
{
    int32_t id = job->table[(int64_t)item->seq * job->batch->table_stride + block];
    QR_ASSERT(id >= 0 && id < job->pages->base.base.n_blocks);
    return cpu_pages_head(job->pages, job->layer, id, item->head, value);
}

/* Pages of the blocks that hold keys [key0 + from, key0 + to): all of K, all of V, and the first K blocks of the next
 * tile (or again the last), which is the order in which they are read. No one reads the
 * blocks before those keys: they may be gone. */
static void find_blocks(const attention_job *job, const attention_item *item, int32_t key0, int32_t from,
                        int32_t to, const void **pages, cpu_attention_tile *t)
{
    int32_t size = t->block_size, base = key0 / size, first = (key0 + from) / size - base;
    int32_t blocks = (key0 + to - 1) / size + 1 - base;
    t->start = key0 % size;
    t->k_blocks = pages;
    t->v_blocks = pages + blocks;
    for (int32_t b = 0; b < blocks; b++) {
        pages[b] = block_page(job, item, base + QR_MAX(b, first), false);
        pages[blocks + b] = block_page(job, item, base + QR_MAX(b, first), true);
    }
    int32_t tile_end = key0 + CPU_ATTENTION_TILE, length = job->batch->context_len[item->seq];
    for (int32_t i = 0; i < AHEAD_BLOCKS; i++) {
        int32_t block = tile_end / size + i;
        bool more = tile_end < length && block * size < length && tile_end / CPU_ATTENTION_TILE < item->tile1;
        pages[2 * blocks + i] = more ? block_page(job, item, block, false) : pages[2 * blocks - 1];
    }
}

static bool sees_any(const cpu_attention_tile *t)
{
    for (int32_t m = 0; m < t->rows; m++)
        if (t->first[m] < t->last[m])
            return true;
    return false;
}

static void merge_row(const attention_job *job, float *acc, float *max, float *sum, const float *part,
                      float part_max, float part_sum)
{
    if (part_sum == 0 && part_max == CPU_ATTENTION_EMPTY)
        return;
    if (*sum == 0 && *max == CPU_ATTENTION_EMPTY) {
        memcpy(acc, part, (size_t)job->head_dim * sizeof(float));
        *max = part_max;
        *sum = part_sum;
        return;
    }
    job->pages->kernels->attention_merge(acc, max, sum, part, part_max, part_sum, job->head_dim);
}

/* Rows [m, m + t->rows) of the item against the tile; the first tile that a row group sees goes straight to acc. */
static void run_row_group(const attention_job *job, cpu_attention_kernel kernel, cpu_attention_tile *t,
                          attention_rows *r, int32_t m)
{
    int64_t dim = job->head_dim;
    float part_max[CPU_ATTENTION_ROWS], part_sum[CPU_ATTENTION_ROWS];
    t->q = r->q + m * dim;
    t->first = r->first + m;
    t->last = r->last + m;
    if (!sees_any(t))
        return;
    bool fresh = true;
    for (int32_t i = 0; i < t->rows; i++)
        fresh = fresh && r->sum[m + i] == 0 && r->max[m + i] == CPU_ATTENTION_EMPTY;
    t->out = fresh ? r->acc + m * dim : r->part;
    t->max = fresh ? r->max + m : part_max;
    t->sum = fresh ? r->sum + m : part_sum;
    kernel(t);
    for (int32_t i = 0; i < t->rows && !fresh; i++)
        merge_row(job, r->acc + (m + i) * dim, r->max + m + i, r->sum + m + i, r->part + i * dim, part_max[i],
                  part_sum[i]);
}

static void save_partials(const attention_job *job, const attention_rows *r, float *partials)
{
    int64_t dim = job->head_dim, stride = partial_floats(job->head_dim);
    for (int g = 0; g < job->group; g++) {
        float *partial = partials + g * stride;
        memcpy(partial, r->acc + g * dim, (size_t)dim * sizeof(float));
        partial[dim] = r->max[g];
        partial[dim + 1] = r->sum[g];
    }
}

static void reset_rows(attention_rows *r, int32_t rows)
{
    for (int32_t m = 0; m < rows; m++) {
        r->max[m] = CPU_ATTENTION_EMPTY;
        r->sum[m] = 0;
    }
}

static void write_row(const attention_job *job, int64_t row, int64_t head, const float *acc, float sum)
{
    float *y = (float *)job->y.data + row * job->y.row_stride + head * job->head_dim;
    job->pages->kernels->scale(y, acc, 1.0f / sum, job->head_dim);
}

static void run_item(void *arg, int64_t chunk, int worker)
{
    const attention_job *job = arg;
    const attention_item *item = &job->items[chunk];
    attention_rows r = worker_rows(job, worker);
    int32_t rows = item->rows * job->group, block_size = job->pages->base.base.block_size;
    const void *pages[2 * TILE_BLOCKS + AHEAD_BLOCKS];
    cpu_attention_kernel kernel = job->pages->kernels->attention[job->pages->base.base.dtype];
    cpu_attention_tile t = {.block_size = block_size, .head_dim = job->head_dim, .scores = r.scores};
    load_queries(job, item, &r);
    for (int32_t tile = item->tile0; tile < item->tile1; tile++) {
        int32_t key0 = tile * CPU_ATTENTION_TILE, from = 0, to = 0;
        if (!see_keys(job, item, key0, &r, &from, &to))
            continue;
        find_blocks(job, item, key0, from, to, pages, &t);
        t.ahead = block_size <= AHEAD_SIZE_MAX ? AHEAD_BLOCKS : 0;
        for (int32_t m = 0; m < rows; m += t.rows, t.ahead = 0) {
            t.rows = QR_MIN(rows - m, (int32_t)CPU_ATTENTION_ROWS);
            run_row_group(job, kernel, &t, &r, m);
        }
        if (item->partials != NULL) {
            save_partials(job, &r,
                          item->partials + (tile - item->tile0) * job->group * partial_floats(job->head_dim));
            reset_rows(&r, rows);
        }
    }
    for (int32_t m = 0; m < rows && item->partials == NULL; m++)
        write_row(job, item->row0 + m / job->group, (int64_t)item->head * job->group + m % job->group,
                  r.acc + (int64_t)m * job->head_dim, r.sum[m]);
}

/* The rows whose tiles were shared out: the same merges in the same order as run_item's. */
static void merge_split(const attention_job *job, const attention_item *item)
{
    attention_rows r = worker_rows(job, 0);
    int64_t dim = job->head_dim, stride = partial_floats(job->head_dim);
    for (int g = 0; g < job->group; g++) {
        r.max[0] = CPU_ATTENTION_EMPTY;
        r.sum[0] = 0;
        for (int32_t tile = 0; tile < item->merge_tiles; tile++) {
            const float *partial = item->partials + (tile * job->group + g) * stride;
            merge_row(job, r.acc, r.max, r.sum, partial, partial[dim], partial[dim + 1]);
        }
        write_row(job, item->row0, (int64_t)item->head * job->group + g, r.acc, r.sum[0]);
    }
}

static double work_flops(const attention_job *job, int32_t n_heads)
{
    double pairs = 0;
    for (int32_t seq = 0; seq < job->batch->n_seqs; seq++) {
        int32_t keys = job->batch->context_len[seq];
        keys = job->window > 0 ? QR_MIN(keys, job->window) : keys;
        pairs += (double)keys * (job->batch->seq_start[seq + 1] - job->batch->seq_start[seq]);
    }
    return pairs * 4 * n_heads * job->head_dim;
}

void cpu_attention(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor q,
                   int32_t n_heads, float scale, qr_tensor y, void *scratch)
{
    cpu_pool *pool = ((cpu_device *)device)->pool;
    const qr_kv_spec *spec = &kv->specs[layer];
    int threads = cpu_pool_threads(pool);
    size_t capacity = item_capacity(threads, n_heads, batch);
    attention_job job = {.pages = (cpu_pages *)kv,
                         .batch = batch,
                         .table = batch->block_table[kv->group[layer]],
                         .layer = layer,
                         .group = n_heads / spec->n_kv_heads,
                         .head_dim = spec->head_dim,
                         .window = spec->window,
                         .scale = scale * 1.44269504088896340736f,
                         .q = q,
                         .y = y,
                         .items = scratch,
                         .item_max = (int64_t)capacity};
    char *at = (char *)scratch + QR_ROUND_UP(capacity * sizeof(attention_item), (size_t)64);
    job.partials = (float *)(void *)at;
    at += partial_bytes(n_heads, spec->head_dim, batch);
    job.partials_end = (float *)(void *)at;
    job.workers = at;
    job.worker_bytes = worker_bytes(n_heads, spec->head_dim);
    bool tiny = work_flops(&job, n_heads) < INLINE_FLOPS;
    cut_work(&job, tiny ? 1 : threads, spec->n_kv_heads);
    if (tiny)
        for (int64_t i = 0; i < job.item_count; i++)
            run_item(&job, i, 0);
    else
        cpu_pool_run(pool, job.item_count, run_item, &job);
    for (int64_t i = 0; i < job.item_count; i++)
        if (job.items[i].merge_tiles > 0)
            merge_split(&job, &job.items[i]);
}
