#include "backend/cuda/gemm_plan.h"

#include <string.h>

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static double larger(double a, double b) { return a > b ? a : b; }

int64_t cuda_gemm_rows(const cuda_gemm_job *job)
{
    int64_t rows = 0;
    for (int i = 0; i < job->count; i++)
        rows += job->matrix[i].n;
    return rows;
}

/* Few rows: all processors are kept busy by cutting K, at every M alike. */
int32_t cuda_gemm_segments(int64_t rows, int32_t k) { return rows <= 4096 && k >= 1024 ? 2 : 1; }

/* Stages of some 28 KB: long pieces of rows for the memory's sake, and enough of them to cover its latency. */
static bool plan_stages(cuda_gemm_plan *p)
{
    const cuda_gemm_cut *cut = &p->cut;
    int32_t products = cut->split == CUDA_GEMM_INSIDE ? 1 : cut->groups;
    int32_t overrun = 128 * (products * 64 - cut->rows); /* what products read past the last stage */
    int32_t spare = cut->tokens >= CUDA_GEMM_STAGED_TOKENS ? cut->groups * 64 * 128 : 0;
    if (cut->split == CUDA_GEMM_INSIDE)
        p->exchange_bytes = 128 * 4 * cut->tokens / 2;
    if (cut->split == CUDA_GEMM_CLUSTER)
        p->exchange_bytes = cut->groups * 128 * 4 * cut->tokens / 4;
    spare += p->exchange_bytes;
    spare = overrun > spare ? overrun : spare;
    int32_t peers = cut->row_peers > cut->token_peers ? cut->row_peers : cut->token_peers;
    p->depth = 32 * 1024 / p->atom_bytes / peers * peers;
    p->depth = p->depth > 8 ? 8 : p->depth;
    if (p->depth > p->atoms || p->depth < 1)
        p->depth = 1;
    int32_t room = CUDA_GEMM_SHARED_MAX - CUDA_GEMM_HEAD_BYTES - spare;
    p->stages = room / (p->depth * p->atom_bytes);
    p->stages = p->stages > CUDA_GEMM_STAGES_MAX ? CUDA_GEMM_STAGES_MAX : p->stages;
    p->shared_bytes = CUDA_GEMM_HEAD_BYTES + p->stages * p->depth * p->atom_bytes + spare;
    if (p->depth == 1 && (cut->rows % ((p->woven ? 16 : 8) * cut->token_peers) != 0 ||
                          cut->tokens % (8 * cut->row_peers) != 0))
        return false; /* what peers fetch for each other is in whole groups of rows */
    return p->stages >= 3;
}

static bool cut_fits(const cuda_gemm_plan *p)
{
    const cuda_gemm_cut *cut = &p->cut;
    int32_t products = cut->split == CUDA_GEMM_INSIDE ? 1 : cut->groups;
    if ((p->segments > 1) != (cut->split != CUDA_GEMM_WHOLE) || p->cluster > 8)
        return false;
    if (cut->split == CUDA_GEMM_INSIDE && cut->groups != 2)
        return false;
    if (cut->split == CUDA_GEMM_CLUSTER && cut->tokens < 16)
        return false;
    if ((cut->split == CUDA_GEMM_TURNS) != (cut->tokens == CUDA_GEMM_TURN_TOKENS))
        return false;
    if (cut->tokens > 128 && cut->groups != 2)
        return false; /* whose registers the larger group of warps takes */
    if (cut->rows <= (products - 1) * 64 || cut->rows > products * 64)
        return false;
    return cut->rows % ((p->woven ? 16 : 8) * cut->token_peers) == 0 &&
           cut->tokens % (8 * cut->row_peers) == 0;
}

bool cuda_gemm_plan_for(const cuda_gemm_job *job, const cuda_gemm_chip *chip, const cuda_gemm_cut *cut,
                        cuda_gemm_plan *p)
{
    *p = (cuda_gemm_plan){.cut = *cut, .woven = job->out == CUDA_GEMM_SWIGLU};
    p->segments = cuda_gemm_segments(cuda_gemm_rows(job), job->k);
    p->atoms = (int32_t)divide_up(divide_up(job->k, 64), p->segments);
    p->cluster = (cut->split == CUDA_GEMM_CLUSTER ? 2 : 1) * cut->row_peers * cut->token_peers;
    if (!cut_fits(p))
        return false;
    p->parts = cut->split == CUDA_GEMM_INSIDE ? 2 : 1;
    p->y_rows = p->woven ? cut->rows / 2 : cut->rows;
    p->atom_bytes = 128 * p->parts * (cut->rows + cut->tokens);
    int32_t row_tiles = 0;
    for (int i = 0; i < (p->woven ? 1 : job->count); i++)
        row_tiles += (int32_t)divide_up(job->matrix[i].n, p->y_rows);
    p->row_tiles = (int32_t)divide_up(row_tiles, cut->row_peers);
    p->token_tiles = (int32_t)divide_up(divide_up(job->m, cut->tokens), cut->token_peers);
    int32_t at_once = chip->clusters[p->cluster == 1 ? 0 : p->cluster == 2 ? 1 : p->cluster == 4 ? 2 : 3];
    int64_t tiles = (int64_t)p->row_tiles * p->token_tiles;
    p->grid = (int32_t)(tiles < at_once ? tiles : at_once) * p->cluster;
    return p->grid > 0 && plan_stages(p);
}

/* ---- Choosing: numbers fitted to an H100's times of many cuts (bench/gpu/gemm_bench.cu cuts) ---- */

static double tiles_in_all(const cuda_gemm_plan *p)
{
    return (double)p->row_tiles * p->token_tiles * p->cluster;
}
static double atoms_of_tile(const cuda_gemm_plan *p)
{
    return p->cut.split == CUDA_GEMM_TURNS ? 2 * p->atoms : p->atoms;
}

/* Cycles, at some 1.7 GHz, of the slowest block: per 16 numbers of K its products or what they read and the copies
 * write in shared memory (128 bytes a cycle), whichever takes longer; then the way out. */
static double block_cycles(const cuda_gemm_plan *p)
{
    const cuda_gemm_cut *cut = &p->cut;
    double products = cut->groups, leave = 1000 + products * cut->tokens * 4;
    double multiply = products * larger(cut->tokens / 2.0, 16);
    double shared = (products * (2048 + 32 * cut->tokens) + p->atom_bytes / 4.0) / 128;
    double waves = (double)divide_up((int64_t)tiles_in_all(p), p->grid);
    if (cut->split == CUDA_GEMM_CLUSTER)
        leave += products * cut->tokens * 16;
    return waves * (4.4 * atoms_of_tile(p) * larger(multiply, shared) + leave);
}

/* Of the L2 cache, which gives some 4000 bytes a cycle. */
static double l2_cycles(const cuda_gemm_plan *p)
{
    const cuda_gemm_cut *cut = &p->cut;
    double rows = (double)cut->rows / cut->token_peers, tokens = (double)cut->tokens / cut->row_peers;
    return tiles_in_all(p) * atoms_of_tile(p) * p->parts * 128 * (rows + tokens) / 4000;
}

static double model_cycles(const cuda_gemm_job *job, const cuda_gemm_plan *p)
{
    double block = block_cycles(p), l2 = l2_cycles(p),
           memory = (double)cuda_gemm_rows(job) * job->k * 2 / 1750;
    double joining = p->cut.split == CUDA_GEMM_INSIDE || p->cut.split == CUDA_GEMM_CLUSTER ? 600 : 0;
    return larger(larger(block, l2), memory) + 0.15 * (block + l2) + joining + 500 * (p->cluster - 1);
}

static void each_peers(const cuda_gemm_job *job, const cuda_gemm_chip *chip, cuda_gemm_cut cut,
                       void (*use)(void *, const cuda_gemm_plan *), void *context)
{
    static const int8_t peers[][2] = {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}};
    cuda_gemm_plan plan;
    for (size_t i = 0; i < sizeof(peers) / sizeof(peers[0]); i++) {
        cut.row_peers = peers[i][0];
        cut.token_peers = peers[i][1];
        if ((cut.token_peers == 1 || job->m > cut.tokens) && cuda_gemm_plan_for(job, chip, &cut, &plan))
            use(context, &plan);
    }
}

void cuda_gemm_each_plan(const cuda_gemm_job *job, const cuda_gemm_chip *chip,
                         void (*use)(void *, const cuda_gemm_plan *), void *context)
{
    static const int16_t sizes[] = {8, 16, 32, 64, 128, CUDA_GEMM_TURN_TOKENS, 256};
    int32_t most = 8;
    while (most < job->m && most < 256)
        most *= 2;
    int32_t least = most > 64 ? most / 2 : most;
    for (int split = CUDA_GEMM_WHOLE; split <= CUDA_GEMM_TURNS; split++)
        for (int32_t groups = 1; groups <= 2; groups++)
            for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
                for (int32_t rows = 8; rows <= 128 && sizes[i] >= least && sizes[i] <= most; rows += 8) {
                    cuda_gemm_cut cut = {
                        .split = (cuda_gemm_split)split, .groups = groups, .tokens = sizes[i], .rows = rows};
                    each_peers(job, chip, cut, use, context);
                }
}

typedef struct best_plan {
    const cuda_gemm_job *job;
    cuda_gemm_plan plan;
    double cycles;
} best_plan;

static void keep_better(void *context, const cuda_gemm_plan *plan)
{
    best_plan *best = context;
    double cycles = model_cycles(best->job, plan);
    if (best->plan.stages == 0 || cycles < best->cycles) {
        best->plan = *plan;
        best->cycles = cycles;
    }
}

cuda_gemm_plan cuda_gemm_choose(const cuda_gemm_job *job, const cuda_gemm_chip *chip)
{
    best_plan best = {.job = job};
    cuda_gemm_each_plan(job, chip, keep_better, &best);
    return best.plan;
}
