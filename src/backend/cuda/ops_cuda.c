/* The ops: tensors to rows, and a launch each. */
#include "backend/cuda/cuda.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

static cuda_rows rows_of(qr_tensor x)
{
    return (cuda_rows){
        .data = x.data, .stride = x.row_stride, .rows = (int32_t)x.rows, .cols = (int32_t)x.cols};
}

void cuda_embed(qr_device *base, const qr_weight *table, const int32_t *ids, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    (void)ids; /* the batch's: in device memory already */
    if (!cuda_idle(device))
        cuda_check(device,
                   cuda_launch_embed(device->stream, table->packed, (int32_t)table->row_begin,
                                     (int32_t)table->rows, &device->step.view, rows_of(y)),
                   "embed");
}

void cuda_rmsnorm(qr_device *base, qr_tensor x, const float *w, float eps, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_rmsnorm(device->stream, rows_of(x), w, eps, rows_of(y)), "rmsnorm");
}

void cuda_add(qr_device *base, qr_tensor x, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_add(device->stream, rows_of(x), rows_of(y)), "add");
}

void cuda_add_rmsnorm(qr_device *base, qr_tensor x, qr_tensor delta, const float *w, float eps, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device,
                   cuda_launch_add_rmsnorm(device->stream, rows_of(x), rows_of(delta), w, eps, rows_of(y)),
                   "add_rmsnorm");
}

/* ---- Products ---- */

size_t cuda_linear_scratch_bytes(const qr_device *device, int64_t rows, int64_t cols)
{
    (void)device;
    (void)rows;
    (void)cols;
    return 0;
}

static cuda_gemm_job product(qr_tensor x, cuda_gemm_out out, int count)
{
    return (cuda_gemm_job){.count = count,
                           .m = (int32_t)x.rows,
                           .k = (int32_t)x.cols,
                           .x = x.data,
                           .x_stride = x.row_stride,
                           .out = out};
}

static cuda_gemm_matrix matrix_of(const qr_weight *w, const float *bias, qr_tensor y)
{
    return (cuda_gemm_matrix){
        .weight = w->packed, .bias = bias, .y = y.data, .y_stride = y.row_stride, .n = (int32_t)w->rows};
}

void cuda_linear(qr_device *base, qr_tensor x, const qr_weight *const *w, const float *const *bias, int count,
                 qr_tensor *y, void *scratch)
{
    (void)scratch;
    cuda_device *device = cuda_of(base);
    cuda_gemm_job job = product(x, y[0].dtype == QR_DTYPE_F32 ? CUDA_GEMM_F32 : CUDA_GEMM_BF16, count);
    for (int i = 0; i < count; i++)
        job.matrix[i] = matrix_of(w[i], bias[i], y[i]);
    if (!cuda_idle(device))
        cuda_check(device, cuda_gemm(device->stream, &job), "linear");
}

void cuda_linear_swiglu(qr_device *base, qr_tensor x, const qr_weight *gate, const qr_weight *up, qr_tensor y,
                        void *scratch)
{
    (void)scratch;
    cuda_device *device = cuda_of(base);
    cuda_gemm_job job = product(x, CUDA_GEMM_SWIGLU, 2);
    job.matrix[0] = matrix_of(gate, NULL, y);
    job.matrix[1] = matrix_of(up, NULL, y);
    if (!cuda_idle(device))
        cuda_check(device, cuda_gemm(device->stream, &job), "linear_swiglu");
}

void cuda_act_mul(qr_device *base, qr_tensor gate, qr_tensor up, qr_activation activation)
{
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_act_mul(device->stream, rows_of(gate), rows_of(up), (int)activation),
                   "act_mul");
}

void cuda_gather(qr_device *base, qr_tensor x, const int32_t *rows, qr_tensor y)
{
    cuda_device *device = cuda_of(base);
    QR_ASSERT(rows == device->step.batch.logit_rows);
    if (!cuda_idle(device))
        cuda_check(device,
                   cuda_launch_gather(device->stream, rows_of(x), device->step.view.logit_rows, rows_of(y),
                                      (int)qr_dtype_bytes(x.dtype)),
                   "gather");
}

/* ---- Positions ---- */

typedef struct prepared_rope {
    float *cos_sin;
    int64_t positions;
} prepared_rope;

size_t cuda_rope_bytes(const qr_rope_table *table, int64_t positions)
{
    return (size_t)positions * (size_t)(table->rotary_dim / 2) * 2 * sizeof(float);
}

qr_status cuda_rope_prepare(qr_device *base, qr_rope_table *table, int64_t positions, qr_error *err)
{
    cuda_device *device = cuda_of(base);
    int32_t half = table->rotary_dim / 2;
    float *inv_freq = NULL;
    prepared_rope *rope = qr_calloc(1, sizeof(*rope));
    rope->positions = positions;
    cudaError_t error = cudaMalloc((void **)&rope->cos_sin, cuda_rope_bytes(table, positions));
    if (error == cudaSuccess)
        error = cudaMalloc((void **)&inv_freq, (size_t)half * sizeof(float));
    if (error == cudaSuccess)
        error = cudaMemcpy(inv_freq, table->inv_freq, (size_t)half * sizeof(float), cudaMemcpyHostToDevice);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize();
    if (error == cudaSuccess)
        error =
            cuda_launch_rope_table(device->stream, inv_freq, half, positions, table->scale, rope->cos_sin);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(device->stream);
    cudaFree(inv_freq);
    if (error != cudaSuccess) {
        cudaFree(rope->cos_sin);
        qr_free(rope);
        return cuda_fail(device, QR_OUT_OF_MEMORY, error, "rotary table", err);
    }
    table->prepared = rope;
    return QR_OK;
}

void cuda_rope_release(qr_device *device, qr_rope_table *table)
{
    prepared_rope *rope = table->prepared;
    if (rope == NULL)
        return;
    cudaStreamSynchronize(cuda_of(device)->stream);
    cudaFree(rope->cos_sin);
    qr_free(rope);
    table->prepared = NULL;
}

static cuda_rope rope_of(const qr_rope_table *table)
{
    const prepared_rope *prepared = table->prepared;
    return (cuda_rope){.cos_sin = prepared->cos_sin,
                       .rotary = table->rotary_dim,
                       .positions = (int32_t)prepared->positions,
                       .interleaved = table->interleaved};
}

void cuda_rope_apply(qr_device *base, qr_tensor x, int32_t head_dim, const qr_rope_table *table,
                     const int32_t *positions)
{
    (void)positions;
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device,
                   cuda_launch_rope(device->stream, rows_of(x), head_dim, rope_of(table),
                                    device->step.view.positions),
                   "rope");
}

void cuda_head_norm(qr_device *base, qr_tensor x, int32_t head_dim, const float *w, float eps)
{
    cuda_device *device = cuda_of(base);
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_head_norm(device->stream, rows_of(x), head_dim, w, eps), "head_norm");
}

/* ---- Pages ---- */

void cuda_kv_store(qr_device *base, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor k, qr_tensor v)
{
    (void)batch;
    cuda_device *device = cuda_of(base);
    cuda_store_job job = {.k = rows_of(k), .v = rows_of(v), .pages = cuda_kv_layer((cuda_kv *)kv, layer)};
    if (!cuda_idle(device))
        cuda_check(device, cuda_launch_kv_store(device->stream, &device->step.view, &job), "kv_store");
}

void cuda_rope_store(qr_device *base, qr_kv *kv, int layer, const qr_batch *batch, const qr_tensor qkv[3],
                     const qr_head_norms *norms, const qr_rope_table *table)
{
    cuda_device *device = cuda_of(base);
    const int32_t head_dim = kv->specs[layer].head_dim;
    cuda_rope_store_job job = {.q = rows_of(qkv[0]),
                               .k = rows_of(qkv[1]),
                               .v = rows_of(qkv[2]),
                               .pages = cuda_kv_layer((cuda_kv *)kv, layer),
                               .q_norm = norms->q,
                               .k_norm = norms->k,
                               .eps = norms->eps,
                               .rope = rope_of(table)};
    if (cuda_idle(device))
        return;
    if (cuda_rope_store_fits(&job)) {
        cuda_check(device, cuda_launch_rope_store(device->stream, &device->step.view, &job), "rope_store");
        return;
    }
    if (norms->q != NULL)
        cuda_head_norm(base, qkv[0], head_dim, norms->q, norms->eps);
    if (norms->k != NULL)
        cuda_head_norm(base, qkv[1], head_dim, norms->k, norms->eps);
    cuda_rope_apply(base, qkv[0], head_dim, table, batch->positions);
    cuda_rope_apply(base, qkv[1], head_dim, table, batch->positions);
    cuda_kv_store(base, kv, layer, batch, qkv[1], qkv[2]);
}

size_t cuda_attention_scratch_bytes(const qr_device *base, int32_t n_heads, int32_t head_dim,
                                    const qr_batch *batch)
{
    ((cuda_device *)base)->n_heads = n_heads; /* planned before any step: what tiles are cut by */
    int64_t splits = 0;
    for (int32_t i = 0; i < batch->n_seqs; i++)
        splits += (batch->context_len[i] + CUDA_SPLIT - 1) / CUDA_SPLIT;
    return (size_t)QR_MIN(splits, CUDA_PARTIALS_MAX) * cuda_decode_partial_bytes(n_heads, head_dim);
}

void cuda_attention(qr_device *base, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor q,
                    int32_t n_heads, float scale, qr_tensor y, void *scratch)
{
    (void)batch;
    cuda_device *device = cuda_of(base);
    const cuda_step_view *view = &device->step.view;
    cuda_attention_job job = {.q = rows_of(q),
                              .y = rows_of(y),
                              .n_heads = n_heads,
                              .scale = (float)((double)scale * 1.4426950408889634),
                              .pages = cuda_kv_layer((cuda_kv *)kv, layer),
                              .partials = scratch,
                              .sm_count = device->sm_count};
    if (cuda_idle(device))
        return;
    if (!cuda_attention_fits(n_heads, &job.pages)) {
        cuda_check(device, cuda_launch_attention_any(device->stream, view, &job), "attention");
        return;
    }
    if (view->prefill_tiles > 0)
        cuda_check(device, cuda_launch_prefill(device->stream, view, &job), "attention (prefill)");
    if (view->has_decode)
        cuda_check(device, cuda_launch_decode(device->stream, view, &job), "attention (decode)");
}
