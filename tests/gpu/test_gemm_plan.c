// links: qr_backend qr_quant qr_tensor qr_base
/* How products are cut, without a GPU: every cut offered for many shapes covers all of y, fits shared memory, starts
 * whole clusters, and takes sums over K in the segments that the shape has at every M. */
#include <stdio.h>

#include "backend/cuda/gemm_plan.h"
#include "base/mem.h"

static int failures;
static long plans;

typedef struct shape {
    int32_t n[3], count, k;
    cuda_gemm_out out;
} shape;

static void fail(const cuda_gemm_job *job, const cuda_gemm_plan *p, const char *what)
{
    failures++;
    printf("m %d n %d k %d: split %d, %d groups, %d tokens, %d rows, peers %d %d: %s\n", job->m,
           job->matrix[0].n, job->k, p->cut.split, p->cut.groups, p->cut.tokens, p->cut.rows,
           p->cut.row_peers, p->cut.token_peers, what);
}

static void check_plan(void *context, const cuda_gemm_plan *p)
{
    const cuda_gemm_job *job = context;
    const cuda_gemm_cut *cut = &p->cut;
    int64_t tiles = 0;
    plans++;
    for (int i = 0; i < (job->out == CUDA_GEMM_SWIGLU ? 1 : job->count); i++)
        tiles += (job->matrix[i].n + p->y_rows - 1) / p->y_rows;
    if ((int64_t)p->row_tiles * cut->row_peers < tiles ||
        (int64_t)p->token_tiles * cut->token_peers * cut->tokens < job->m)
        fail(job, p, "tiles do not cover y");
    if (p->shared_bytes > CUDA_GEMM_SHARED_MAX || p->stages < 3 || p->stages > CUDA_GEMM_STAGES_MAX)
        fail(job, p, "shared memory");
    if (p->grid % p->cluster != 0 || p->grid == 0 || p->cluster > 8)
        fail(job, p, "clusters");
    if ((int64_t)p->segments * p->atoms * 64 < job->k)
        fail(job, p, "segments do not cover K");
    if (p->segments != cuda_gemm_segments(cuda_gemm_rows(job), job->k))
        fail(job, p, "segments depend on more than the shape");
    int32_t boxes = p->depth > 1 ? p->depth : cut->rows, peers = cut->token_peers;
    if (boxes % peers != 0 || (p->woven && cut->rows % 16 != 0) || cut->rows % 8 != 0)
        fail(job, p, "uneven shares");
}

int main(void)
{
    static const shape shapes[] = {
        {{4096, 1024, 1024}, 3, 4096, CUDA_GEMM_BF16},
        {{4096}, 1, 4096, CUDA_GEMM_BF16},
        {{14336, 14336}, 2, 4096, CUDA_GEMM_SWIGLU},
        {{4096}, 1, 14336, CUDA_GEMM_BF16},
        {{128256}, 1, 4096, CUDA_GEMM_F32},
        {{576, 192, 192}, 3, 576, CUDA_GEMM_BF16},
        {{1536, 1536}, 2, 576, CUDA_GEMM_SWIGLU},
        {{1000, 1000}, 2, 2048, CUDA_GEMM_SWIGLU},
        {{8}, 1, 64, CUDA_GEMM_F32},
        {{1001}, 1, 1088, CUDA_GEMM_F32},
    };
    static const int32_t sizes[] = {1, 2, 7, 8, 9, 31, 64, 65, 127, 128, 129, 200, 256, 257, 512, 2048, 8192};
    static const cuda_gemm_chip chips[] = {{{132, 66, 30, 15}}, {{132, 66, 32, 16}}, {{114, 57, 28, 14}}};
    for (size_t s = 0; s < QR_COUNT_OF(shapes); s++)
        for (size_t i = 0; i < QR_COUNT_OF(sizes); i++)
            for (size_t c = 0; c < QR_COUNT_OF(chips); c++) {
                cuda_gemm_job job = {
                    .count = shapes[s].count, .m = sizes[i], .k = shapes[s].k, .out = shapes[s].out};
                for (int t = 0; t < shapes[s].count; t++)
                    job.matrix[t].n = shapes[s].n[t];
                long before = plans;
                cuda_gemm_each_plan(&job, &chips[c], check_plan, &job);
                cuda_gemm_plan best = cuda_gemm_choose(&job, &chips[c]);
                if (plans == before || best.stages == 0)
                    fail(&job, &best, "no cut");
            }
    printf("%ld plans, %d failed\n", plans, failures);
    return failures > 0;
}
