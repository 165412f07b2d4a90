#include "backend/cuda/gemm_plan.h"

#include <string.h>

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t cuda_gemm_rows(const cuda_gemm_job *job)
{
    int64_t rows = 0;
    for (int i = 0; i < job->count; i++)
        rows += job->matrix[i].n;
    return rows;
}

/* Few rows: 132 processors are fed by cutting K, at every M alike. */
int32_t cuda_gemm_segments(int64_t rows, int32_t k) { return rows <= 4096 && k >= 1024 ? 2 : 1; }

/* A stage of 16 to 48 KB: long rows for the memory's sake, stages enough to cover its latency. */
static bool cut_stages(cuda_gemm_plan *p)
{
    int32_t atom = p->atom_bytes, spare = CUDA_GEMM_OVERRUN;
    int32_t exchange = p->segments > 1 ? 128 * 4 * p->blocks * p->tokens / 2 : 0;
    spare = exchange > spare ? exchange : spare;
    p->depth = 28 * 1024 / atom;
    p->depth = p->depth < 1 ? 1 : p->depth > 8 ? 8 : p->depth;
    p->depth = p->depth > p->atoms ? p->atoms : p->depth;
    int32_t room = CUDA_GEMM_SHARED_MAX - CUDA_GEMM_HEAD_BYTES - spare;
    p->stages = room / (p->depth * atom);
    p->stages = p->stages > CUDA_GEMM_STAGES_MAX ? CUDA_GEMM_STAGES_MAX : p->stages;
    p->shared_bytes = CUDA_GEMM_HEAD_BYTES + p->stages * p->depth * atom + spare;
    return p->stages >= 2;
}

bool cuda_gemm_cut(const cuda_gemm_job *job, int sm_count, cuda_gemm_split split, int32_t blocks,
                   int32_t tokens, int32_t rows, cuda_gemm_plan *p)
{
    bool swiglu = job->out == CUDA_GEMM_SWIGLU;
    *p = (cuda_gemm_plan){.split = split, .blocks = blocks, .tokens = tokens, .rows = rows};
    p->segments = cuda_gemm_segments(cuda_gemm_rows(job), job->k);
    p->atoms = (int32_t)divide_up(divide_up(job->k, 64), p->segments);
    bool inside = split == CUDA_SPLIT_INSIDE;
    p->parts = swiglu || inside ? 2 : 1;
    p->part_rows = (inside ? blocks : swiglu ? 2 : 2 * blocks) * rows;
    p->tile_rows = p->part_rows;
    p->atom_bytes = 128 * (p->parts * p->part_rows + (inside ? 2 : 1) * tokens);
    if ((p->segments > 1) != (split != CUDA_SPLIT_NONE) || (swiglu && (blocks != 2 || inside)))
        return false;
    int count = swiglu ? 1 : job->count;
    for (int i = 0; i < count; i++)
        p->row_tiles += (int32_t)divide_up(job->matrix[i].n, p->tile_rows);
    p->token_tiles = (int32_t)divide_up(job->m, tokens);
    int32_t cluster = split == CUDA_SPLIT_CLUSTER ? 2 : 1;
    int64_t tiles = (int64_t)p->row_tiles * p->token_tiles, at_once = sm_count / cluster;
    p->grid = (int32_t)(tiles < at_once ? tiles : at_once) * cluster;
    return cut_stages(p);
}

/* Cycles of the slowest block: tiles in a row, each the longer of its products and its bytes. */
static double block_cycles(const cuda_gemm_plan *p, int sm_count)
{
    int32_t cluster = p->split == CUDA_SPLIT_CLUSTER ? 2 : 1;
    double waves = (double)divide_up((int64_t)p->row_tiles * p->token_tiles, sm_count / cluster);
    double n = p->tokens, product = n / 2 > 16 + n / 4 ? n / 2 : 16 + n / 4;
    double products = 4 * 2 * p->blocks * product, bytes = p->atom_bytes / 40.0;
    return waves * (p->atoms * (products > bytes ? products : bytes) + 1500);
}

/* The weights' bytes at the memory's rate bound every cut alike; below that bound the even one wins. */
static double model_cycles(const cuda_gemm_job *job, const cuda_gemm_plan *p, int sm_count)
{
    double cycles = block_cycles(p, sm_count), bound = (double)cuda_gemm_rows(job) * job->k * 2 / 1750;
    double joining = p->split == CUDA_SPLIT_CLUSTER ? 3000 : 0;
    return (cycles > bound ? cycles : bound) + 0.1 * cycles + joining;
}

cuda_gemm_plan cuda_gemm_choose(const cuda_gemm_job *job, int sm_count)
{
    cuda_gemm_plan best = {.stages = 0}, plan;
    double least = 0;
    int32_t enough = 8;
    while (enough < job->m && enough < 128)
        enough *= 2;
    for (int split = CUDA_SPLIT_NONE; split <= CUDA_SPLIT_CLUSTER; split++)
        for (int32_t blocks = 1; blocks <= 2; blocks++)
            for (int32_t tokens = enough > 64 ? enough / 2 : enough; tokens <= enough; tokens *= 2)
                for (int32_t rows = 8; rows <= 64; rows += 8) {
                    if (!cuda_gemm_cut(job, sm_count, (cuda_gemm_split)split, blocks, tokens, rows, &plan))
                        continue;
                    double cycles = model_cycles(job, &plan, sm_count);
                    if (best.stages == 0 || cycles < least) {
                        best = plan;
                        least = cycles;
                    }
                }
    return best;
}
