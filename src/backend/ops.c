#include "backend/ops.h"

#include <string.h>

#include "backend/backend.h"
#include "base/assert.h"
#include "base/mem.h"

enum { SCRATCH_ALIGN = 64 };

struct qr_ops {
    qr_device *device;
    const qr_backend *backend;
    qr_kv *kv;
    const qr_batch *batch;
    char *scratch; /* a stack; NULL while planning */
    size_t capacity, used, peak;
    bool planning, only_draws;
    uint64_t bytes, flops;
    uint64_t kv_tokens[QR_KV_GROUPS_MAX],
        kv_pairs[QR_KV_GROUPS_MAX]; /* KV rows read, query-key pairs of a layer */
};

/* ---- Execution ---- */

static void fail_group(qr_ops *ops)
{
    if (ops->device->ranks > 1)
        ops->backend->group_fail(ops->device);
}

qr_status qr_ops_open(qr_device *device, qr_kv *kv, size_t scratch_bytes, qr_ops **out, qr_error *err)
{
    scratch_bytes = QR_ROUND_UP(QR_MAX(scratch_bytes, (size_t)SCRATCH_ALIGN), (size_t)SCRATCH_ALIGN);
    void *scratch = device->backend->scratch_open(device, scratch_bytes, err);
    if (scratch == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "scratch: %zu bytes: the device has not as much memory",
                       scratch_bytes);
    qr_ops *ops = qr_calloc(1, sizeof(*ops));
    *ops = (qr_ops){.device = device,
                    .backend = device->backend,
                    .kv = kv,
                    .scratch = scratch,
                    .capacity = scratch_bytes};
    *out = ops;
    return QR_OK;
}

qr_ops *qr_ops_plan_new(qr_device *device)
{
    qr_ops *ops = qr_calloc(1, sizeof(*ops));
    *ops = (qr_ops){.device = device, .backend = device->backend, .capacity = SIZE_MAX / 2, .planning = true};
    return ops;
}

void qr_ops_close(qr_ops *ops)
{
    if (ops == NULL)
        return;
    if (ops->scratch != NULL)
        ops->backend->scratch_close(ops->device, ops->scratch, ops->capacity);
    qr_free(ops);
}

size_t qr_ops_scratch_peak(const qr_ops *ops) { return ops->peak; }

/* What attention reads and multiplies in one layer of each group, from the batch alone. */
static void count_kv(qr_ops *ops, const qr_batch *batch)
{
    for (int group = 0; group < QR_KV_GROUPS_MAX; group++)
        ops->kv_tokens[group] = ops->kv_pairs[group] = 0;
    if (ops->kv == NULL)
        return;
    int32_t windows[QR_KV_GROUPS_MAX] = {0};
    int count = qr_kv_groups(ops->kv->specs, ops->kv->n_layers, windows);
    for (int group = 0; group < count; group++) {
        for (int32_t seq = 0; seq < batch->n_seqs; seq++) {
            int64_t rows = batch->seq_start[seq + 1] - batch->seq_start[seq], len = batch->context_len[seq];
            int64_t seen = windows[group] > 0 ? QR_MIN(len, windows[group] + rows - 1) : len;
            int64_t pairs = windows[group] > 0 ? QR_MIN(len - rows / 2, windows[group]) : len - rows / 2;
            ops->kv_tokens[group] += (uint64_t)seen;
            ops->kv_pairs[group] += (uint64_t)(pairs * rows);
        }
    }
}

void qr_ops_begin(qr_ops *ops, const qr_batch *batch)
{
    QR_ASSERT(batch->n_tokens > 0 && batch->n_seqs > 0 && ops->batch == NULL);
    if (ops->backend->step_batch != NULL)
        batch = ops->backend->step_batch(ops->device, ops->planning ? NULL : ops->kv, batch, ops->only_draws);
    ops->batch = batch;
    ops->used = 0;
    ops->bytes = ops->flops = 0;
    if (ops->planning)
        return;
    QR_ASSERT(ops->kv == NULL || batch->block_size == ops->kv->block_size);
    count_kv(ops, batch);
    ops->backend->step_begin(ops->device, ops->kv, batch);
}

qr_status qr_ops_launch(qr_ops *ops, qr_error *err)
{
    QR_ASSERT(ops->batch != NULL);
    ops->batch = NULL;
    if (ops->planning)
        return QR_OK;
    if (ops->backend->step_work != NULL)
        ops->backend->step_work(ops->device, ops->bytes, ops->flops);
    qr_status status = ops->backend->step_end(ops->device, err);
    if (status == QR_OK && ops->device->broken)
        status = qr_fail(err, QR_DEVICE_FAILED, "%s: step: broken for a test", ops->device->description);
    if (status != QR_OK)
        fail_group(ops);
    return status;
}

qr_status qr_ops_wait(qr_ops *ops, qr_error *err)
{
    if (ops->planning || ops->backend->step_wait == NULL)
        return QR_OK;
    qr_status status = ops->backend->step_wait(ops->device, err);
    if (status != QR_OK)
        fail_group(ops);
    return status;
}

qr_status qr_ops_end(qr_ops *ops, qr_error *err)
{
    qr_status launched = qr_ops_launch(ops, err);
    qr_status waited = qr_ops_wait(ops, launched == QR_OK ? err : NULL);
    return launched != QR_OK ? launched : waited;
}

bool qr_device_runs_ahead(const qr_device *device) { return device->backend->step_wait != NULL; }

void qr_ops_times(const qr_ops *ops, uint64_t *begin_ns, uint64_t *end_ns)
{
    *begin_ns = *end_ns = 0;
    if (ops->backend->step_times != NULL)
        ops->backend->step_times(ops->device, begin_ns, end_ns);
}

const qr_batch *qr_ops_batch(const qr_ops *ops) { return ops->batch; }
size_t qr_ops_mark(const qr_ops *ops) { return ops->used; }

void qr_ops_release(qr_ops *ops, size_t mark)
{
    QR_ASSERT(mark <= ops->used);
    ops->used = mark;
}

void qr_ops_work(const qr_ops *ops, uint64_t *bytes, uint64_t *flops)
{
    *bytes = ops->bytes;
    *flops = ops->flops;
}

/* ---- Scratch ---- */

static void *scratch_take(qr_ops *ops, size_t bytes)
{
    bytes = QR_ROUND_UP(bytes, (size_t)SCRATCH_ALIGN);
    QR_ASSERT(bytes <= ops->capacity - ops->used); /* the plan is exact: a step that needs more is a bug */
    void *memory = ops->planning ? NULL : ops->scratch + ops->used;
    ops->used += bytes;
    ops->peak = QR_MAX(ops->peak, ops->used);
    return memory;
}

static qr_tensor take_tensor(qr_ops *ops, int64_t rows, int64_t cols, qr_dtype dtype)
{
    QR_ASSERT(rows >= 0 && cols > 0);
    size_t bytes = 0;
    QR_ASSERT(qr_size_mul((size_t)rows, (size_t)cols * qr_dtype_bytes(dtype), &bytes));
    return (qr_tensor){
        .data = scratch_take(ops, bytes), .dtype = dtype, .rows = rows, .cols = cols, .row_stride = cols};
}

qr_tensor qr_op_tensor(qr_ops *ops, int64_t rows, int64_t cols)
{
    return take_tensor(ops, rows, cols, ops->backend->activation);
}

static bool same_shape(qr_tensor a, qr_tensor b) { return a.rows == b.rows && a.cols == b.cols; }

static bool is_activation(qr_tensor x)
{
    return (x.dtype == QR_DTYPE_F32 || x.dtype == QR_DTYPE_BF16) && x.row_stride >= x.cols && x.cols > 0;
}

static void count_weight(qr_ops *ops, const qr_weight *w, int64_t rows)
{
    if (rows == 0)
        return;
    size_t bytes = w->packed_bytes;
    for (int part = 0; w->packed == NULL && part < QR_PART_COUNT; part++)
        bytes += w->part[part].bytes;
    ops->bytes += bytes;
    ops->flops += 2 * (uint64_t)rows * (uint64_t)w->rows * (uint64_t)w->cols;
}

/* ---- Ops ---- */

/* A device that is lost comes to no meeting: the others wait until its step ends. */
static bool meets(const qr_ops *ops, qr_tensor x)
{
    return ops->device->ranks > 1 && !ops->device->broken && !ops->planning && x.rows > 0;
}

static void sum_ranks(qr_ops *ops, qr_tensor x)
{
    QR_ASSERT(x.row_stride == x.cols);
    if (meets(ops, x))
        ops->backend->all_reduce(ops->device, x);
}

qr_tensor qr_op_embed(qr_ops *ops, const qr_weight *table)
{
    const qr_batch *batch = ops->batch;
    qr_tensor y = take_tensor(ops, batch->n_tokens, table->cols, QR_DTYPE_F32);
    if (!ops->planning)
        ops->backend->embed(ops->device, table, batch->token_ids, y);
    sum_ranks(ops, y);
    return y;
}

qr_tensor qr_op_rmsnorm(qr_ops *ops, qr_tensor x, const float *w, float eps)
{
    QR_ASSERT(is_activation(x));
    qr_tensor y = qr_op_tensor(ops, x.rows, x.cols);
    if (!ops->planning && x.rows > 0)
        ops->backend->rmsnorm(ops->device, x, w, eps, y);
    return y;
}

void qr_op_add(qr_ops *ops, qr_tensor x, qr_tensor y)
{
    QR_ASSERT(is_activation(x) && is_activation(y) && same_shape(x, y));
    if (!ops->planning && x.rows > 0)
        ops->backend->add(ops->device, x, y);
}

qr_tensor qr_op_add_rmsnorm(qr_ops *ops, qr_tensor x, qr_tensor y, const float *w, float eps)
{
    QR_ASSERT(is_activation(x) && is_activation(y) && same_shape(x, y));
    qr_tensor out = qr_op_tensor(ops, x.rows, x.cols);
    if (!ops->planning && x.rows > 0)
        ops->backend->add_rmsnorm(ops->device, x, y, w, eps, out);
    return out;
}

/* Room for x in the form that the products want, only while they run. */
static void *linear_scratch(qr_ops *ops, qr_tensor x)
{
    return scratch_take(ops, ops->backend->linear_scratch_bytes(ops->device, x.rows, x.cols));
}

static void run_linear(qr_ops *ops, qr_tensor x, const qr_weight *const *weights, const float *const *biases,
                       int count, qr_tensor *y)
{
    for (int i = 0; i < count; i++) {
        QR_ASSERT(weights[i]->cols == x.cols && y[i].cols == weights[i]->rows && y[i].rows == x.rows);
        count_weight(ops, weights[i], x.rows);
    }
    size_t mark = ops->used;
    void *scratch = linear_scratch(ops, x);
    if (!ops->planning && x.rows > 0)
        ops->backend->linear(ops->device, x, weights, biases, count, y, scratch);
    ops->used = mark;
}

void qr_op_linear(qr_ops *ops, qr_tensor x, const qr_weight *const *weights, const float *const *biases,
                  int count, qr_tensor *y)
{
    QR_ASSERT(is_activation(x) && count > 0 && count <= QR_LINEAR_MAX);
    for (int i = 0; i < count; i++)
        y[i] = qr_op_tensor(ops, x.rows, weights[i]->rows);
    run_linear(ops, x, weights, biases, count, y);
}

void qr_op_linear_into(qr_ops *ops, qr_tensor x, const qr_weight *weight, const float *bias, qr_tensor y)
{
    QR_ASSERT(is_activation(x) && is_activation(y));
    run_linear(ops, x, &weight, &bias, 1, &y);
}

void qr_op_linear_sum(qr_ops *ops, qr_tensor x, const qr_weight *weight, const float *bias, qr_tensor y)
{
    qr_op_linear_into(ops, x, weight, ops->device->rank == 0 ? bias : NULL, y);
    sum_ranks(ops, y);
}

qr_tensor qr_op_linear_swiglu(qr_ops *ops, qr_tensor x, const qr_weight *gate, const qr_weight *up)
{
    QR_ASSERT(is_activation(x) && gate->cols == x.cols && up->cols == x.cols && gate->rows == up->rows);
    qr_tensor y = qr_op_tensor(ops, x.rows, gate->rows);
    count_weight(ops, gate, x.rows);
    count_weight(ops, up, x.rows);
    size_t mark = ops->used;
    void *scratch = linear_scratch(ops, x);
    if (!ops->planning && x.rows > 0)
        ops->backend->linear_swiglu(ops->device, x, gate, up, y, scratch);
    ops->used = mark;
    return y;
}

void qr_op_act_mul(qr_ops *ops, qr_tensor gate, qr_tensor up, qr_activation activation)
{
    QR_ASSERT(is_activation(gate) && is_activation(up) && same_shape(gate, up));
    if (!ops->planning && gate.rows > 0)
        ops->backend->act_mul(ops->device, gate, up, activation);
}

void qr_op_head_norm(qr_ops *ops, qr_tensor x, int32_t head_dim, const float *w, float eps)
{
    QR_ASSERT(is_activation(x) && head_dim > 0 && x.cols % head_dim == 0);
    if (!ops->planning && x.rows > 0)
        ops->backend->head_norm(ops->device, x, head_dim, w, eps);
}

void qr_op_rope(qr_ops *ops, qr_tensor x, int32_t head_dim, const qr_rope_table *table)
{
    QR_ASSERT(is_activation(x) && head_dim > 0 && x.cols % head_dim == 0 && table->rotary_dim <= head_dim);
    QR_ASSERT(x.rows == ops->batch->n_tokens);
    if (!ops->planning)
        ops->backend->rope(ops->device, x, head_dim, table, ops->batch->positions);
}

void qr_op_kv_store(qr_ops *ops, int layer, qr_tensor k, qr_tensor v)
{
    QR_ASSERT(is_activation(k) && is_activation(v) && same_shape(k, v) && k.rows == ops->batch->n_tokens);
    if (ops->planning)
        return;
    const qr_kv_spec *spec = &ops->kv->specs[layer];
    QR_ASSERT(layer >= 0 && layer < ops->kv->n_layers &&
              k.cols == (int64_t)spec->n_kv_heads * spec->head_dim);
    ops->backend->kv_store(ops->device, ops->kv, layer, ops->batch, k, v);
}

void qr_op_rope_store(qr_ops *ops, int layer, const qr_tensor qkv[3], const qr_head_norms *norms,
                      const qr_rope_table *table)
{
    if (ops->planning)
        return;
    QR_ASSERT(layer >= 0 && layer < ops->kv->n_layers);
    const int32_t head_dim = ops->kv->specs[layer].head_dim;
    if (ops->backend->rope_store != NULL) {
        QR_ASSERT(is_activation(qkv[0]) && qkv[0].rows == ops->batch->n_tokens &&
                  qkv[0].cols % head_dim == 0);
        QR_ASSERT(same_shape(qkv[1], qkv[2]) && qkv[1].rows == qkv[0].rows && table->rotary_dim <= head_dim);
        ops->backend->rope_store(ops->device, ops->kv, layer, ops->batch, qkv, norms, table);
        return;
    }
    if (norms->q != NULL)
        qr_op_head_norm(ops, qkv[0], head_dim, norms->q, norms->eps);
    if (norms->k != NULL)
        qr_op_head_norm(ops, qkv[1], head_dim, norms->k, norms->eps);
    qr_op_rope(ops, qkv[0], head_dim, table);
    qr_op_rope(ops, qkv[1], head_dim, table);
    qr_op_kv_store(ops, layer, qkv[1], qkv[2]);
}

qr_tensor qr_op_attention(qr_ops *ops, int layer, qr_tensor q, int32_t n_heads, float scale)
{
    QR_ASSERT(is_activation(q) && n_heads > 0 && q.cols % n_heads == 0 && q.rows == ops->batch->n_tokens);
    int32_t head_dim = (int32_t)(q.cols / n_heads);
    qr_tensor y = qr_op_tensor(ops, q.rows, q.cols);
    size_t mark = ops->used;
    void *scratch =
        scratch_take(ops, ops->backend->attention_scratch_bytes(ops->device, n_heads, head_dim, ops->batch));
    if (!ops->planning) {
        const qr_kv_spec *spec = &ops->kv->specs[layer];
        QR_ASSERT(layer >= 0 && layer < ops->kv->n_layers && spec->head_dim == head_dim);
        QR_ASSERT(n_heads % spec->n_kv_heads == 0);
        int group = ops->kv->group[layer];
        ops->bytes += ops->kv_tokens[group] * (uint64_t)spec->n_kv_heads * (uint64_t)head_dim * 2 *
                      qr_dtype_bytes(ops->kv->dtype);
        ops->flops += 4 * ops->kv_pairs[group] * (uint64_t)q.cols;
        ops->backend->attention(ops->device, ops->kv, layer, ops->batch, q, n_heads, scale, y, scratch);
    }
    ops->used = mark;
    return y;
}

qr_tensor qr_op_gather(qr_ops *ops, qr_tensor x, const int32_t *rows, int32_t count)
{
    QR_ASSERT(is_activation(x) && count >= 0);
    qr_tensor y = take_tensor(ops, count, x.cols, x.dtype);
    if (!ops->planning && count > 0)
        ops->backend->gather(ops->device, x, rows, y);
    return y;
}

/* F32 [x.rows, vocab]. All ranks take the same memory first: a backend may reckon with equal places. */
static qr_tensor head_logits(qr_ops *ops, qr_tensor x, const qr_weight *head)
{
    qr_tensor logits = take_tensor(ops, x.rows, QR_MAX(head->rows, head->rows_all), QR_DTYPE_F32);
    if (ops->device->ranks == 1) {
        run_linear(ops, x, &head, &(const float *){NULL}, 1, &logits);
        return logits;
    }
    size_t mark = ops->used;
    qr_tensor own = take_tensor(ops, x.rows, head->rows, QR_DTYPE_F32);
    run_linear(ops, x, &head, &(const float *){NULL}, 1, &own);
    if (meets(ops, own))
        ops->backend->all_gather(ops->device, own, head->row_begin, logits);
    ops->used = mark;
    return logits;
}

const float *qr_op_logits(qr_ops *ops, qr_tensor x, const qr_weight *head)
{
    qr_tensor logits = head_logits(ops, x, head);
    return ops->planning || ops->backend->logits == NULL ? logits.data
                                                         : ops->backend->logits(ops->device, logits);
}

/* ---- Draws ---- */

bool qr_device_draws(const qr_device *device, int32_t vocab)
{
    return device->backend->draws != NULL && device->backend->draws(device, vocab);
}

void qr_ops_promise_draws(qr_ops *ops) { ops->only_draws = true; }

void qr_op_draw(qr_ops *ops, qr_tensor x, const qr_weight *head, const qr_draw *draws, int32_t first,
                int32_t count)
{
    QR_ASSERT(ops->backend->draw != NULL && !ops->planning && count > 0 && count <= x.rows);
    qr_tensor logits = head_logits(ops, x, head);
    ops->backend->draw(ops->device, logits, draws, first, count);
}

int32_t qr_ops_drawn(const qr_ops *ops, int32_t row) { return ops->backend->drawn(ops->device, row); }
const float *qr_ops_drawn_logits(const qr_ops *ops, int32_t row)
{
    return ops->backend->drawn_logits(ops->device, row);
}
