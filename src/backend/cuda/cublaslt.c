/* The library's interface is declared here as far as it is used, so that building needs none of its headers. */
#include "backend/cuda/cublaslt.h"

#include <dlfcn.h>
#include <string.h>

#include "base/mem.h"

enum {
    TYPE_F32 = 0,
    TYPE_BF16 = 14,
    COMPUTE_F32 = 68,
    OP_TRANSPOSE = 1,
    DESC_TRANSPOSE_A = 3,
    PREFER_WORKSPACE = 1
};

typedef struct algorithm {
    uint64_t data[8];
} algorithm;

typedef struct heuristic {
    algorithm chosen;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} heuristic;

struct cuda_cublaslt {
    void *handle, *library, *workspace;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale_type);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t stride);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*choose)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted,
                  heuristic *out, int *count);
    int (*multiply)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
                    void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                    const algorithm *chosen, void *workspace, size_t workspace_bytes, cudaStream_t stream);
};

struct cuda_cublaslt_product {
    cuda_cublaslt *library;
    void *desc, *weight, *x, *y;
    heuristic choice[CUDA_CUBLASLT_CHOICES];
    int choices;
};

static bool find(cuda_cublaslt *l, void *to, const char *name)
{
    void *symbol = dlsym(l->library, name);
    memcpy(to, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static bool find_all(cuda_cublaslt *l)
{
    return find(l, &l->create, "cublasLtCreate") && find(l, &l->destroy, "cublasLtDestroy") &&
           find(l, &l->desc_create, "cublasLtMatmulDescCreate") &&
           find(l, &l->desc_destroy, "cublasLtMatmulDescDestroy") &&
           find(l, &l->desc_set, "cublasLtMatmulDescSetAttribute") &&
           find(l, &l->layout_create, "cublasLtMatrixLayoutCreate") &&
           find(l, &l->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
           find(l, &l->preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(l, &l->preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(l, &l->preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(l, &l->choose, "cublasLtMatmulAlgoGetHeuristic") && find(l, &l->multiply, "cublasLtMatmul");
}

cuda_cublaslt *cuda_cublaslt_open(void *workspace)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    cuda_cublaslt *l = qr_calloc(1, sizeof(*l));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && l->library == NULL; i++)
        l->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    l->workspace = workspace;
    if (l->library != NULL && find_all(l) && l->create(&l->handle) == 0)
        return l;
    l->handle = NULL;
    cuda_cublaslt_close(l);
    return NULL;
}

void cuda_cublaslt_close(cuda_cublaslt *l)
{
    if (l == NULL)
        return;
    if (l->handle != NULL)
        l->destroy(l->handle);
    if (l->library != NULL)
        dlclose(l->library);
    qr_free(l);
}

/* In the library's words, columns first: y [n][m] = weight [k][n], transposed, times x [k][m]. */
static bool describe(cuda_cublaslt_product *p, const cuda_gemm_job *job)
{
    cuda_cublaslt *l = p->library;
    const cuda_gemm_matrix *matrix = &job->matrix[0];
    int transpose = OP_TRANSPOSE, y_type = job->out == CUDA_GEMM_F32 ? TYPE_F32 : TYPE_BF16;
    uint64_t m = (uint64_t)job->m, n = (uint64_t)matrix->n, k = (uint64_t)job->k;
    return l->desc_create(&p->desc, COMPUTE_F32, TYPE_F32) == 0 &&
           l->desc_set(p->desc, DESC_TRANSPOSE_A, &transpose, sizeof(transpose)) == 0 &&
           l->layout_create(&p->weight, TYPE_BF16, k, n, job->k) == 0 &&
           l->layout_create(&p->x, TYPE_BF16, k, m, job->x_stride) == 0 &&
           l->layout_create(&p->y, y_type, n, m, matrix->y_stride) == 0;
}

cuda_cublaslt_product *cuda_cublaslt_plan(cuda_cublaslt *l, const cuda_gemm_job *job)
{
    cuda_cublaslt_product *p = qr_calloc(1, sizeof(*p));
    p->library = l;
    void *preference = NULL;
    size_t workspace = CUDA_CUBLASLT_WORKSPACE;
    bool ok = describe(p, job) && l->preference_create(&preference) == 0 &&
              l->preference_set(preference, PREFER_WORKSPACE, &workspace, sizeof(workspace)) == 0 &&
              l->choose(l->handle, p->desc, p->weight, p->x, p->y, p->y, preference, CUDA_CUBLASLT_CHOICES,
                        p->choice, &p->choices) == 0;
    if (preference != NULL)
        l->preference_destroy(preference);
    if (ok && p->choices > 0)
        return p;
    cuda_cublaslt_free(p);
    return NULL;
}

void cuda_cublaslt_free(cuda_cublaslt_product *p)
{
    if (p == NULL)
        return;
    if (p->desc != NULL)
        p->library->desc_destroy(p->desc);
    void *layouts[] = {p->weight, p->x, p->y};
    for (int i = 0; i < 3; i++)
        if (layouts[i] != NULL)
            p->library->layout_destroy(layouts[i]);
    qr_free(p);
}

int cuda_cublaslt_choices(const cuda_cublaslt_product *p) { return p->choices; }

int cuda_cublaslt_run(cuda_cublaslt_product *p, int choice, cudaStream_t stream, const cuda_gemm_job *job)
{
    const float one = 1, zero = 0;
    void *y = job->matrix[0].y;
    return p->library->multiply(p->library->handle, p->desc, &one, job->matrix[0].weight, p->weight, job->x,
                                p->x, &zero, y, p->y, y, p->y, &p->choice[choice].chosen,
                                p->library->workspace, CUDA_CUBLASLT_WORKSPACE, stream);
}
