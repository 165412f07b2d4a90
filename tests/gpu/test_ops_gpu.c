// links: qr_sample qr_model qr_backend qr_loader qr_quant qr_tensor qr_base
/* Every op of the GPU backend against a reference in double, on the numbers that it was given (BF16), and the promises
 * about bits: a row of attention or of a product is the same in any company. With --time, how long the large ones take.
 * Ends with 77 where there is no GPU. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/ops.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "sample/sampler.h"

static int failures, checks;
static uint64_t rng = 1;

static void report(bool ok, const char *what, double error)
{
    checks++;
    failures += !ok;
    printf("%-64s %10.3g  %s\n", what, error, ok ? "ok" : "FAILED");
}

static float normal(void)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(qr_rng_next(&rng) >> 40) * 0x1p-24f;
    return sum - 6;
}

static uint16_t *random_bf16(size_t count, float scale)
{
    uint16_t *x = qr_calloc(count, 2);
    for (size_t i = 0; i < count; i++)
        x[i] = qr_f32_to_bf16(normal() * scale);
    return x;
}

static float *random_f32(size_t count, float scale, float base)
{
    float *x = qr_calloc(count, 4);
    for (size_t i = 0; i < count; i++)
        x[i] = base + normal() * scale;
    return x;
}

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static size_t bytes_of(qr_tensor t)
{
    return (size_t)t.rows * (size_t)t.row_stride * qr_dtype_bytes(t.dtype);
}
static void put(qr_tensor t, const void *data)
{
    must(cudaMemcpy(t.data, data, bytes_of(t), cudaMemcpyHostToDevice), "copy in");
    must(cudaDeviceSynchronize(), "copy in"); /* the device's stream does not wait for the last piece */
}

/* As doubles. */
static double *get(qr_tensor t)
{
    size_t count = (size_t)t.rows * (size_t)t.row_stride;
    void *raw = qr_calloc(count, qr_dtype_bytes(t.dtype));
    double *out = qr_calloc(count, sizeof(double));
    must(cudaDeviceSynchronize(), "synchronise");
    must(cudaMemcpy(raw, t.data, bytes_of(t), cudaMemcpyDeviceToHost), "copy out");
    for (size_t i = 0; i < count; i++)
        out[i] = t.dtype == QR_DTYPE_F32 ? (double)((float *)raw)[i]
                                         : (double)qr_bf16_to_f32(((uint16_t *)raw)[i]);
    qr_free(raw);
    return out;
}

/* |a - b| / |b|; NaN never passes. */
static double distance(const double *a, const double *b, size_t count)
{
    double above = 0, below = 0;
    for (size_t i = 0; i < count; i++) {
        above += (a[i] - b[i]) * (a[i] - b[i]);
        below += b[i] * b[i];
    }
    return sqrt(above / (below > 0 ? below : 1));
}

static void compare(const char *what, qr_tensor y, const double *want, double limit)
{
    double *got = get(y);
    double error = distance(got, want, (size_t)y.rows * (size_t)y.cols);
    report(error <= limit, what, error);
    qr_free(got);
}

/* ---- A device with one layer of pages ---- */

typedef struct rig {
    qr_device *device;
    qr_kv *kv;
    qr_ops *ops;
    qr_batch batch;
    int32_t *memory;
    int32_t n_seqs, rows_max, blocks_per_seq, block_size;
    int32_t lens[1024]; /* tokens of each sequence so far */
} rig;

static void rig_open(rig *r, qr_device *device, qr_kv_spec spec, int32_t n_heads, int32_t n_seqs,
                     int32_t context, int32_t block_size, qr_dtype dtype)
{
    *r = (rig){.device = device, .n_seqs = n_seqs, .block_size = block_size};
    r->blocks_per_seq = (context + block_size - 1) / block_size;
    r->rows_max = n_seqs * context;
    qr_error err = {0};
    if (qr_kv_open(device, &spec, 1, r->blocks_per_seq * n_seqs, block_size, dtype, &r->kv, &err) != QR_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    int32_t *contexts = qr_calloc((size_t)n_seqs, 4);
    for (int i = 0; i < n_seqs; i++)
        contexts[i] = context;
    qr_batch plan = {.n_tokens = QR_MIN(r->rows_max, 16384), .n_seqs = n_seqs, .context_len = contexts};
    qr_ops *planned = qr_ops_plan_new(device);
    qr_ops_begin(planned, &plan);
    qr_tensor q = qr_op_tensor(planned, plan.n_tokens, (int64_t)n_heads * spec.head_dim);
    qr_op_tensor(planned, 2 * plan.n_tokens, (int64_t)spec.n_kv_heads * spec.head_dim);
    qr_op_attention(planned, 0, q, n_heads, 1);
    qr_ops_end(planned, NULL);
    if (qr_ops_open(device, r->kv, qr_ops_scratch_peak(planned), &r->ops, &err) != QR_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    qr_ops_close(planned);
    qr_free(contexts);
}

static void rig_close(rig *r)
{
    qr_ops_close(r->ops);
    qr_kv_close(r->kv);
    qr_free(r->memory);
}

/* A step that adds counts[i] rows to sequence i. Blocks are dealt out from the back. */
static void rig_begin(rig *r, const int32_t *counts)
{
    qr_free(r->memory);
    int32_t total = 0, seqs = 0;
    for (int i = 0; i < r->n_seqs; i++) {
        total += counts[i];
        seqs += counts[i] > 0;
    }
    int32_t *m = r->memory =
        qr_calloc((size_t)total * 6 + (size_t)seqs * (3 + (size_t)r->blocks_per_seq) + 1, 4);
    int32_t *ids = m, *positions = ids + total, *source = positions + total, *seq_of = source + total;
    int32_t *logit_rows = seq_of + total, *context = logit_rows + total, *start = context + seqs;
    int32_t *table = start + seqs + 1, row = 0, seq = 0;
    for (int i = 0; i < r->n_seqs; i++) {
        if (counts[i] == 0)
            continue;
        start[seq] = row;
        for (int j = 0; j < counts[i]; j++, row++) {
            positions[row] = r->lens[i] + j;
            seq_of[row] = seq;
            logit_rows[row] = row;
            source[row] = -1;
        }
        r->lens[i] += counts[i];
        context[seq] = r->lens[i];
        for (int b = 0; b < r->blocks_per_seq; b++)
            table[seq * r->blocks_per_seq + b] = r->blocks_per_seq * r->n_seqs - 1 - (b * r->n_seqs + i);
        seq++;
    }
    start[seqs] = row;
    r->batch = (qr_batch){.n_tokens = total,
                          .n_seqs = seqs,
                          .token_ids = ids,
                          .positions = positions,
                          .source_row = source,
                          .seq_of_row = seq_of,
                          .seq_start = start,
                          .context_len = context,
                          .n_groups = 1,
                          .block_table = {table},
                          .table_stride = r->blocks_per_seq,
                          .block_size = r->block_size,
                          .n_logit_rows = total,
                          .logit_rows = logit_rows};
    qr_ops_begin(r->ops, &r->batch);
}

static void rig_end(rig *r)
{
    qr_error err = {0};
    if (qr_ops_end(r->ops, &err) != QR_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
}

/* ---- Attention ---- */

typedef struct attention_case {
    const char *name;
    int32_t n_heads, kv_heads, dim, window, block_size;
    qr_dtype dtype;
    int32_t context; /* of the longest sequence */
} attention_case;

/* The nearest e4m3 number, ties to even. */
static double nearest_e4m3(double x)
{
    double size = fabs(x);
    if (size >= 448)
        return copysign(448, x);
    int exponent;
    frexp(size, &exponent); /* size < 2^exponent */
    double step = ldexp(1, QR_MAX(exponent - 1, -6) - 3);
    return copysign(nearbyint(size / step) * step, x);
}

static double kv_number(uint16_t x, qr_dtype dtype)
{
    float f = qr_bf16_to_f32(x);
    if (dtype == QR_DTYPE_F8_E4M3)
        return nearest_e4m3((double)f);
    return dtype == QR_DTYPE_F16 ? (double)qr_f16_to_f32(qr_f32_to_f16(f)) : (double)f;
}

/* Row `p` of a sequence whose keys and values are k, v [context][kv_heads * dim]. */
static void reference_row(const attention_case *c, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                          int p, double *out)
{
    int width = c->kv_heads * c->dim, group = c->n_heads / c->kv_heads;
    int first = c->window > 0 ? QR_MAX(0, p - c->window + 1) : 0;
    double *weights = qr_calloc((size_t)p + 1, sizeof(double));
    for (int h = 0; h < c->n_heads; h++) {
        double top = -INFINITY, sum = 0;
        for (int t = first; t <= p; t++) {
            double dot = 0;
            for (int d = 0; d < c->dim; d++)
                dot += (double)qr_bf16_to_f32(q[h * c->dim + d]) *
                       kv_number(k[t * width + h / group * c->dim + d], c->dtype);
            weights[t] = dot / sqrt(c->dim);
            top = QR_MAX(top, weights[t]);
        }
        for (int t = first; t <= p; t++)
            sum += weights[t] = exp(weights[t] - top);
        for (int d = 0; d < c->dim; d++) {
            double value = 0;
            for (int t = first; t <= p; t++)
                value += weights[t] * kv_number(v[t * width + h / group * c->dim + d], c->dtype);
            out[h * c->dim + d] = value / sum;
        }
    }
    qr_free(weights);
}

/* Rows [r0, r0 + n) of every sequence in one step; y of all rows in order, as the device's bits. */
static uint16_t *attend(rig *r, const attention_case *c, const int32_t *counts, const int32_t *from,
                        uint16_t **q, uint16_t **k, uint16_t **v)
{
    int qw = c->n_heads * c->dim, kw = c->kv_heads * c->dim, total = 0, row = 0;
    for (int i = 0; i < r->n_seqs; i++)
        total += counts[i];
    rig_begin(r, counts);
    qr_tensor tq = qr_op_tensor(r->ops, total, qw), tk = qr_op_tensor(r->ops, total, kw),
              tv = qr_op_tensor(r->ops, total, kw);
    uint16_t *hq = qr_calloc((size_t)total * (size_t)qw, 2), *hk = qr_calloc((size_t)total * (size_t)kw, 2),
             *hv = qr_calloc((size_t)total * (size_t)kw, 2);
    for (int i = 0; i < r->n_seqs; row += counts[i], i++) {
        memcpy(hq + (size_t)row * (size_t)qw, q[i] + (size_t)from[i] * (size_t)qw,
               (size_t)(counts[i] * qw) * 2);
        memcpy(hk + (size_t)row * (size_t)kw, k[i] + (size_t)from[i] * (size_t)kw,
               (size_t)(counts[i] * kw) * 2);
        memcpy(hv + (size_t)row * (size_t)kw, v[i] + (size_t)from[i] * (size_t)kw,
               (size_t)(counts[i] * kw) * 2);
    }
    put(tq, hq);
    put(tk, hk);
    put(tv, hv);
    qr_op_kv_store(r->ops, 0, tk, tv);
    qr_tensor y = qr_op_attention(r->ops, 0, tq, c->n_heads, 1.0f / sqrtf((float)c->dim));
    must(cudaDeviceSynchronize(), "attention");
    uint16_t *out = qr_calloc((size_t)total * (size_t)qw, 2);
    must(cudaMemcpy(out, y.data, (size_t)total * (size_t)qw * 2, cudaMemcpyDeviceToHost), "copy out");
    rig_end(r);
    qr_free(hq);
    qr_free(hk);
    qr_free(hv);
    return out;
}

enum { SEQS = 3 };

/* Leaves NaN in all pages, as sequences before may have. */
static void poison(rig *r, const attention_case *c)
{
    const uint16_t nan = 0x7fc0;
    int32_t counts[SEQS];
    size_t count = (size_t)r->n_seqs * (size_t)c->context * (size_t)(c->kv_heads * c->dim);
    uint16_t *x = qr_calloc(count, 2);
    for (size_t i = 0; i < count; i++)
        x[i] = nan;
    for (int i = 0; i < r->n_seqs; i++)
        counts[i] = c->context;
    rig_begin(r, counts);
    qr_tensor k = qr_op_tensor(r->ops, r->batch.n_tokens, (int64_t)c->kv_heads * c->dim);
    put(k, x);
    qr_op_kv_store(r->ops, 0, k, k);
    rig_end(r);
    memset(r->lens, 0, sizeof(r->lens));
    qr_free(x);
}

/* Whole prompts in one step, in chunks, and token by token at the end: all the same bits, near the reference. */
static void check_attention(qr_device *device, const attention_case *c)
{
    const attention_case exact = {.n_heads = c->n_heads,
                                  .kv_heads = c->kv_heads,
                                  .dim = c->dim,
                                  .window = c->window,
                                  .dtype = QR_DTYPE_F32};
    const int32_t lens[SEQS] = {c->context, 37, 300}, tails[SEQS] = {5, 3, 45}, zero[SEQS] = {0};
    int qw = c->n_heads * c->dim, kw = c->kv_heads * c->dim;
    uint16_t *q[SEQS], *k[SEQS], *v[SEQS];
    for (int i = 0; i < SEQS; i++) {
        q[i] = random_bf16((size_t)(lens[i] * qw), 1.5f);
        k[i] = random_bf16((size_t)(lens[i] * kw), 1);
        v[i] = random_bf16((size_t)(lens[i] * kw), 1);
    }
    qr_kv_spec spec = {.n_kv_heads = c->kv_heads, .head_dim = c->dim, .window = c->window};
    rig whole, parts;
    rig_open(&whole, device, spec, c->n_heads, SEQS, c->context, c->block_size, c->dtype);
    rig_open(&parts, device, spec, c->n_heads, SEQS, c->context, c->block_size, c->dtype);
    poison(&whole, c);
    poison(&parts, c);
    uint16_t *all = attend(&whole, c, lens, zero, q, k, v);
    double *want = qr_calloc((size_t)qw, sizeof(double)), *got = qr_calloc((size_t)qw, sizeof(double)),
           worst = 0, loss = 0;
    for (int i = 0, base = 0; i < SEQS; base += lens[i], i++)
        for (int p = 0; p < lens[i]; p += p < lens[i] - 40 ? lens[i] / 30 : 1) {
            reference_row(c, q[i] + (size_t)(p * qw), k[i], v[i], p, want);
            for (int d = 0; d < qw; d++)
                got[d] = (double)qr_bf16_to_f32(all[(size_t)(base + p) * (size_t)qw + (size_t)d]);
            double error = distance(got, want, (size_t)qw);
            worst = error > worst || error != error ? error : worst;
            if (c->dtype != QR_DTYPE_F8_E4M3 || p % 8 != 0)
                continue;
            reference_row(&exact, q[i] + (size_t)(p * qw), k[i], v[i], p, want);
            loss = QR_MAX(loss, distance(got, want, (size_t)qw));
        }
    char what[128];
    snprintf(what, sizeof(what), "attention %s: prefill", c->name);
    report(worst < 8e-3, what, worst);
    if (c->dtype == QR_DTYPE_F8_E4M3)
        report(loss < 0.12, "  and what 8 bits lose, of the worst row", loss);
    /* chunks: the first tails[i] short of the end in two steps, then one token a step */
    int32_t from[SEQS] = {0}, counts[SEQS];
    long different = 0;
    for (int stage = 0; stage < 2 + 45; stage++) {
        int total = 0;
        for (int i = 0; i < SEQS; i++) {
            int32_t left = lens[i] - from[i], body = lens[i] - tails[i];
            counts[i] = stage == 0 ? body / 3 : stage == 1 ? body - body / 3 : QR_MIN(left, 1);
            total += counts[i];
        }
        if (total == 0)
            break;
        uint16_t *some = attend(&parts, c, counts, from, q, k, v);
        for (int i = 0, base = 0, row = 0; i < SEQS;
             base += lens[i], row += counts[i], from[i] += counts[i], i++)
            different += memcmp(some + (size_t)row * (size_t)qw, all + (size_t)(base + from[i]) * (size_t)qw,
                                (size_t)(counts[i] * qw) * 2) != 0;
        qr_free(some);
    }
    snprintf(what, sizeof(what), "attention %s: chunks and decode, other bits", c->name);
    report(different == 0, what, (double)different);
    rig_close(&whole);
    rig_close(&parts);
    for (int i = 0; i < SEQS; i++) {
        qr_free(q[i]);
        qr_free(k[i]);
        qr_free(v[i]);
    }
    qr_free(all);
    qr_free(want);
    qr_free(got);
}

/* ---- Products ---- */

static qr_weight make_weight(qr_device *device, int64_t n, int64_t k, uint16_t **data)
{
    *data = random_bf16((size_t)(n * k), 0.05f);
    qr_weight w = {.format = QR_FORMAT_bf16, .rows = n, .cols = k, .name = "test"};
    w.part[QR_PART_DATA] = (qr_weight_part){*data, (size_t)(n * k) * 2};
    qr_error err = {0};
    if (qr_weight_prepare(device, &w, &(qr_prepare_options){.compute = QR_DTYPE_BF16}, &err) != QR_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    return w;
}

static double dot(const uint16_t *a, const uint16_t *b, int64_t k)
{
    double sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += (double)qr_bf16_to_f32(a[i]) * (double)qr_bf16_to_f32(b[i]);
    return sum;
}

/* m rows through q, k, v like matrices with a bias, a gated pair, and F32 logits; rows of M = m against M = 1. */
static void check_products(qr_device *device, int64_t m, int64_t n, int64_t k)
{
    static const int32_t one = 1;
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 1, .head_dim = 64}, 1, 1, 64, 32, QR_DTYPE_BF16);
    qr_ops_close(r.ops);
    qr_error err = {0};
    if (qr_ops_open(device, r.kv, (size_t)(m * (k + 6 * n) * 8 + (1 << 20)), &r.ops, &err) != QR_OK)
        exit(1);
    uint16_t *x = random_bf16((size_t)(m * k), 1), *data[2];
    qr_weight w[2] = {make_weight(device, n, k, &data[0]), make_weight(device, n, k, &data[1])};
    float *bias = random_f32((size_t)n, 1, 0);
    const float *device_bias = NULL;
    qr_weight vector = {.format = QR_FORMAT_f32, .rows = 1, .cols = n, .name = "bias"};
    vector.part[QR_PART_DATA] = (qr_weight_part){bias, (size_t)n * 4};
    qr_vector_prepare(device, &vector, &device_bias, &err);
    rig_begin(&r, &one);
    qr_tensor tx = qr_op_tensor(r.ops, m, k), y[2];
    put(tx, x);
    qr_op_linear(r.ops, tx, (const qr_weight *const[]){&w[0], &w[1]},
                 (const float *const[]){device_bias, NULL}, 2, y);
    qr_tensor gated = qr_op_linear_swiglu(r.ops, tx, &w[0], &w[1]);
    double *got[3] = {get(y[0]), get(y[1]), get(gated)}, error[3] = {0}, norm[3] = {0};
    const float *logits = qr_op_logits(r.ops, tx, &w[1]);
    double logit_error = 0, logit_norm = 0;
    for (int64_t i = 0; i<m; i += m> 40 ? 7 : 1)
        for (int64_t j = 0; j<n; j += n> 500 ? 13 : 1) {
            double a = dot(x + i * k, data[0] + j * k, k), b = dot(x + i * k, data[1] + j * k, k);
            double want[3] = {a + (double)bias[j], b, a / (1 + exp(-a)) * b};
            for (int t = 0; t < 3; t++) {
                error[t] += pow(got[t][i * n + j] - want[t], 2);
                norm[t] += want[t] * want[t];
            }
            logit_error += pow((double)logits[i * n + j] - b, 2);
            logit_norm += b * b;
        }
    char what[128];
    static const char *const names[3] = {"with bias", "second matrix", "swiglu"};
    for (int t = 0; t < 3; t++) {
        snprintf(what, sizeof(what), "product %lldx%lldx%lld: %s", (long long)m, (long long)n, (long long)k,
                 names[t]);
        report(sqrt(error[t] / norm[t]) < 5e-3, what, sqrt(error[t] / norm[t]));
    }
    snprintf(what, sizeof(what), "product %lldx%lldx%lld: F32 logits", (long long)m, (long long)n,
             (long long)k);
    report(sqrt(logit_error / logit_norm) < 1e-4, what, sqrt(logit_error / logit_norm));
    long different = 0;
    float *all = qr_calloc((size_t)(m * n), 4);
    memcpy(all, logits, (size_t)(m * n) * 4);
    for (int64_t i = 0; i < m; i += QR_MAX(1, m / 5)) {
        qr_tensor row = tx;
        row.data = (char *)tx.data + i * k * 2;
        row.rows = 1;
        if (k % 8 == 0) {
            const float *single = qr_op_logits(r.ops, row, &w[1]);
            different += memcmp(single, all + i * n, (size_t)n * 4) != 0;
        }
    }
    snprintf(what, sizeof(what), "product %lldx%lldx%lld: rows alone, other bits", (long long)m, (long long)n,
             (long long)k);
    report(different == 0, what, (double)different);
    rig_end(&r);
    rig_close(&r);
    for (int i = 0; i < 2; i++)
        qr_weight_release(device, &w[i]);
    qr_free(all);
}

/* ---- Rows ---- */

static void check_rows(qr_device *device, int64_t rows, int64_t cols, int32_t dim)
{
    static const int32_t one = 1;
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 1, .head_dim = 64}, 1, 1, 64, 32, QR_DTYPE_BF16);
    qr_ops_close(r.ops);
    qr_error err = {0};
    if (qr_ops_open(device, r.kv, (size_t)(rows * cols * 64 + (1 << 20)), &r.ops, &err) != QR_OK)
        exit(1);
    size_t count = (size_t)(rows * cols);
    float *x = random_f32(count, 2, 0), *w = random_f32((size_t)cols, 0.3f, 1);
    uint16_t *delta = random_bf16(count, 1), *up = random_bf16(count, 1);
    const float *dw = NULL;
    qr_weight vector = {.format = QR_FORMAT_f32, .rows = 1, .cols = cols, .name = "norm"};
    vector.part[QR_PART_DATA] = (qr_weight_part){w, (size_t)cols * 4};
    qr_vector_prepare(device, &vector, &dw, &err);
    rig_begin(&r, &one);
    qr_tensor tx = qr_op_tensor(r.ops, rows, 2 * cols), td = qr_op_tensor(r.ops, rows, cols),
              tu = qr_op_tensor(r.ops, rows, cols);
    tx = (qr_tensor){.data = tx.data, .dtype = QR_DTYPE_F32, .rows = rows, .cols = cols, .row_stride = cols};
    put(tx, x);
    put(td, delta);
    put(tu, up);
    double *want = qr_calloc(count, sizeof(double)), *sum = qr_calloc(count, sizeof(double));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < rows; i++) {
            double squares = 0;
            for (int64_t j = 0; j < cols; j++) {
                sum[i * cols + j] =
                    (double)x[i * cols + j] + pass * (double)qr_bf16_to_f32(delta[i * cols + j]);
                squares += sum[i * cols + j] * sum[i * cols + j];
            }
            for (int64_t j = 0; j < cols; j++)
                want[i * cols + j] = sum[i * cols + j] / sqrt(squares / (double)cols + 1e-5) * (double)w[j];
        }
        qr_tensor y =
            pass == 0 ? qr_op_rmsnorm(r.ops, tx, dw, 1e-5f) : qr_op_add_rmsnorm(r.ops, tx, td, dw, 1e-5f);
        char what[128];
        snprintf(what, sizeof(what), "%s %lldx%lld", pass == 0 ? "rmsnorm" : "add_rmsnorm", (long long)rows,
                 (long long)cols);
        compare(what, y, want, 4e-3);
        if (pass == 1)
            compare("  and its sum", tx, sum, 1e-6);
    }
    for (size_t i = 0; i < count; i++)
        want[i] = sum[i] + (double)qr_bf16_to_f32(delta[i]);
    qr_op_add(r.ops, tx, td);
    compare("add", tx, want, 1e-6);
    for (int act = 0; act < 3; act++) {
        put(td, delta);
        for (size_t i = 0; i < count; i++) {
            double g = (double)qr_bf16_to_f32(delta[i]), u = (double)qr_bf16_to_f32(up[i]);
            double a = act == 0   ? g / (1 + exp(-g))
                       : act == 1 ? g / 2 * (1 + erf(g / sqrt(2)))
                                  : g / 2 * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
            want[i] = a * u;
        }
        qr_op_act_mul(r.ops, td, tu, (qr_activation)act);
        compare(act == 0 ? "act_mul silu" : act == 1 ? "act_mul gelu" : "act_mul gelu_tanh", td, want, 4e-3);
    }
    if (cols % dim == 0) {
        put(td, delta);
        for (size_t h = 0; h < count / (size_t)dim; h++) {
            double squares = 0;
            for (int d = 0; d < dim; d++)
                squares += pow((double)qr_bf16_to_f32(delta[h * (size_t)dim + (size_t)d]), 2);
            for (int d = 0; d < dim; d++)
                want[h * (size_t)dim + (size_t)d] =
                    (double)qr_bf16_to_f32(delta[h * (size_t)dim + (size_t)d]) / sqrt(squares / dim + 1e-6) *
                    (double)w[d];
        }
        qr_op_head_norm(r.ops, td, dim, dw, 1e-6f);
        compare("head_norm", td, want, 4e-3);
    }
    rig_end(&r);
    rig_close(&r);
}

static void check_rope(qr_device *device, bool interleaved, int32_t dim, int32_t rotary)
{
    enum { ROWS = 50, HEADS = 3 };
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 1, .head_dim = dim}, HEADS, 1, 128, 32, QR_DTYPE_BF16);
    float inv_freq[256];
    for (int i = 0; i < rotary / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / (float)rotary);
    qr_rope_table table = {
        .inv_freq = inv_freq, .rotary_dim = rotary, .scale = 1.25f, .interleaved = interleaved};
    qr_error err = {0};
    if (qr_rope_prepare(device, &table, 256, &err) != QR_OK)
        exit(1);
    size_t count = (size_t)(ROWS * HEADS * dim);
    uint16_t *x = random_bf16(count, 1);
    int32_t rows = ROWS;
    r.lens[0] = 60;
    rig_begin(&r, &rows);
    qr_tensor t = qr_op_tensor(r.ops, ROWS, HEADS * dim);
    put(t, x);
    double *want = qr_calloc(count, sizeof(double));
    for (size_t i = 0; i < count; i++)
        want[i] = (double)qr_bf16_to_f32(x[i]);
    for (int i = 0; i < ROWS * HEADS; i++)
        for (int p = 0; p < rotary / 2; p++) {
            double *a = want + i * dim + (interleaved ? 2 * p : p),
                   *b = want + i * dim + (interleaved ? 2 * p + 1 : p + rotary / 2);
            double angle = (60 + i / HEADS) * (double)inv_freq[p], c = cos(angle) * 1.25,
                   s = sin(angle) * 1.25, u = *a, v = *b;
            *a = u * c - v * s;
            *b = v * c + u * s;
        }
    qr_op_rope(r.ops, t, dim, &table);
    compare(interleaved ? "rope, pairs" : "rope, halves", t, want, 4e-3);
    rig_end(&r);
    qr_rope_release(device, &table);
    rig_close(&r);
}

typedef struct rope_case {
    const char *name;
    int32_t dim, rotary;
    qr_dtype dtype;
    bool interleaved, norms;
} rope_case;

/* q after norms, rotation and store, and attention over what was stored: at once or op by op. */
static void position_heads(rig *r, const rope_case *c, bool at_once, const uint16_t *x, const float *norm,
                           const qr_rope_table *table, uint16_t *out)
{
    enum { ROWS = 50 };
    const int32_t rows = ROWS;
    const size_t width = (size_t)c->dim;
    r->lens[0] = 0;
    rig_begin(r, &rows);
    qr_tensor qkv[3] = {qr_op_tensor(r->ops, ROWS, 3 * c->dim), qr_op_tensor(r->ops, ROWS, c->dim),
                        qr_op_tensor(r->ops, ROWS, c->dim)};
    put(qkv[0], x);
    put(qkv[1], x + ROWS * 3 * width);
    put(qkv[2], x + ROWS * 4 * width);
    if (at_once) {
        qr_op_rope_store(r->ops, 0, qkv, &(qr_head_norms){.q = norm, .k = norm, .eps = 1e-6f}, table);
    } else {
        for (int i = 0; i < 2 && norm != NULL; i++)
            qr_op_head_norm(r->ops, qkv[i], c->dim, norm, 1e-6f);
        qr_op_rope(r->ops, qkv[0], c->dim, table);
        qr_op_rope(r->ops, qkv[1], c->dim, table);
        qr_op_kv_store(r->ops, 0, qkv[1], qkv[2]);
    }
    qr_tensor y = qr_op_attention(r->ops, 0, qkv[0], 3, 0.5f);
    must(cudaDeviceSynchronize(), "rope_store");
    must(cudaMemcpy(out, qkv[0].data, ROWS * 3 * width * 2, cudaMemcpyDeviceToHost), "copy out");
    must(cudaMemcpy(out + ROWS * 3 * width, y.data, ROWS * 3 * width * 2, cudaMemcpyDeviceToHost),
         "copy out");
    rig_end(r);
}

/* The fused op against its parts: the same bits, but where what norms and rotation give is no longer rounded to BF16
 * in between. */
static void check_rope_store(qr_device *device, const rope_case *c)
{
    const size_t count = 50 * 6 * (size_t)c->dim;
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 1, .head_dim = c->dim}, 3, 1, 64, 32, c->dtype);
    float inv_freq[256], *w = random_f32((size_t)c->dim, 0.1f, 1);
    for (int i = 0; i < c->rotary / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / (float)c->rotary);
    qr_rope_table table = {
        .inv_freq = inv_freq, .rotary_dim = c->rotary, .scale = 1, .interleaved = c->interleaved};
    qr_weight vector = {.format = QR_FORMAT_f32, .rows = 1, .cols = c->dim, .name = "norm"};
    vector.part[QR_PART_DATA] = (qr_weight_part){w, (size_t)c->dim * 4};
    const float *norm = NULL;
    qr_error err = {0};
    if (qr_rope_prepare(device, &table, 64, &err) != QR_OK ||
        (c->norms && qr_vector_prepare(device, &vector, &norm, &err) != QR_OK))
        exit(1);
    uint16_t *x = random_bf16(count, 1), *got = qr_calloc(count, 2), *want = qr_calloc(count, 2);
    position_heads(&r, c, false, x, norm, &table, want);
    position_heads(&r, c, true, x, norm, &table, got);
    double above = 0, below = 0;
    for (size_t i = 0; i < count; i++) {
        double a = (double)qr_bf16_to_f32(got[i]), b = (double)qr_bf16_to_f32(want[i]);
        above += (a - b) * (a - b);
        below += b * b;
    }
    char what[128];
    snprintf(what, sizeof(what), "rope_store, %s", c->name);
    report(sqrt(above / below) <= (c->norms || c->dtype != QR_DTYPE_BF16 ? 7e-3 : 0), what,
           sqrt(above / below));
    qr_rope_release(device, &table);
    rig_close(&r);
    qr_free(x);
    qr_free(got);
    qr_free(want);
    qr_free(w);
}

/* ---- Draws ---- */

/* Rows of logits drawn on the device and by sample/sampler.h from the same numbers: the same ids but where the draw
 * falls within rounding of a border. */
static void check_draws(qr_device *device, int32_t vocab, float scale)
{
    enum { ROWS = 96, WIDTH = 64 };
    static const int32_t one = 1;
    static const struct {
        const char *name;
        float temperature, top_p, min_p;
        int32_t top_k;
    } kinds[] = {{"greedy", 0, 1, 0, 0},       {"plain", 1, 1, 0, 0},
                 {"min-p", 0.8f, 1, 0.05f, 0}, {"top-k", 1.2f, 1, 0, 40},
                 {"top-p", 0.9f, 0.8f, 0, 0},  {"top-k and top-p", 0.7f, 0.9f, 0.01f, 100},
                 {"top-k 1", 1, 1, 0, 1}};
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 1, .head_dim = 64}, 1, 1, 64, 32, QR_DTYPE_BF16);
    qr_ops_close(r.ops);
    qr_error err = {0};
    if (qr_ops_open(device, r.kv, (size_t)ROWS * (size_t)vocab * 9 + (1 << 20), &r.ops, &err) != QR_OK)
        exit(1);
    uint16_t *data, *x = random_bf16(ROWS * WIDTH, scale);
    qr_weight head = make_weight(device, vocab, WIDTH, &data);
    qr_sampler_scratch *scratch = qr_sampler_scratch_new(vocab, 0);
    for (size_t kind = 0; kind < QR_COUNT_OF(kinds); kind++) {
        qr_draw draws[ROWS];
        float *logits = qr_calloc((size_t)ROWS * (size_t)vocab, 4);
        for (int i = 0; i < ROWS; i++)
            draws[i] = (qr_draw){.temperature = kinds[kind].temperature,
                                 .top_p = kinds[kind].top_p,
                                 .min_p = kinds[kind].min_p,
                                 .top_k = kinds[kind].top_k,
                                 .uniform = qr_rng_uniform(7, (uint32_t)kind, (uint64_t)i, QR_RNG_SAMPLE),
                                 .to_host = i == 50};
        rig_begin(&r, &one);
        qr_tensor tx = qr_op_tensor(r.ops, ROWS, WIDTH);
        put(tx, x);
        memcpy(logits, qr_op_logits(r.ops, tx, &head), (size_t)ROWS * (size_t)vocab * 4);
        qr_op_draw(r.ops, tx, &head, draws, 0, ROWS);
        rig_end(&r);
        int different = 0;
        for (int i = 0; i < ROWS; i++) {
            qr_sampler_params params = {.temperature = kinds[kind].temperature,
                                        .top_p = kinds[kind].top_p,
                                        .min_p = kinds[kind].min_p,
                                        .top_k = kinds[kind].top_k,
                                        .seed = 7,
                                        .logprobs = -1,
                                        .vocab = vocab};
            qr_sampler_input input = {.params = &params,
                                      .logits = logits + (size_t)i * (size_t)vocab,
                                      .count = i,
                                      .sample = (uint32_t)kind};
            if (i == 50)
                different +=
                    100 * (memcmp(qr_ops_drawn_logits(r.ops, i), input.logits, (size_t)vocab * 4) != 0);
            else
                different += qr_sample(&input, scratch, NULL) != qr_ops_drawn(r.ops, i);
        }
        char what[128];
        snprintf(what, sizeof(what), "draws, %d ids x %.1f: %s, other ids of %d", vocab, (double)scale,
                 kinds[kind].name, ROWS);
        report(different <= (kinds[kind].temperature > 0 ? 1 : 0), what, different);
        qr_free(logits);
    }
    qr_sampler_scratch_free(scratch);
    qr_weight_release(device, &head);
    rig_close(&r);
}

/* ---- Times ---- */

/* Random keys and values for the tokens that a sequence has so far. */
static void fill(rig *r, int32_t width)
{
    enum { ROWS = 4096 };
    uint16_t *x = random_bf16((size_t)(ROWS + 64) * (size_t)width, 1);
    int32_t *counts = qr_calloc((size_t)r->n_seqs, 4), *lens = qr_calloc((size_t)r->n_seqs, 4);
    memcpy(lens, r->lens, (size_t)r->n_seqs * 4);
    memset(r->lens, 0, sizeof(r->lens));
    for (int i = 0; i < r->n_seqs; i++)
        while (r->lens[i] < lens[i]) {
            counts[i] = QR_MIN(ROWS, lens[i] - r->lens[i]);
            rig_begin(r, counts);
            qr_tensor k = qr_op_tensor(r->ops, counts[i], width), v = qr_op_tensor(r->ops, counts[i], width);
            put(k, x);
            put(v, x + 7 * i % 64 * width);
            qr_op_kv_store(r->ops, 0, k, v);
            rig_end(r);
            counts[i] = 0;
        }
    qr_free(x);
    qr_free(counts);
    qr_free(lens);
}

static void time_decode(qr_device *device, int32_t seqs, int32_t context, qr_dtype dtype)
{
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 8, .head_dim = 128}, 32, seqs, context, 32, dtype);
    int32_t *counts = qr_calloc((size_t)seqs, 4);
    for (int i = 0; i < seqs; i++) {
        counts[i] = 1;
        r.lens[i] = context - 1;
    }
    fill(&r, 1024);
    rig_begin(&r, counts);
    qr_tensor q = qr_op_tensor(r.ops, seqs, 32 * 128);
    uint16_t *x = random_bf16((size_t)seqs * 4096, 1);
    put(q, x);
    size_t mark = qr_ops_mark(r.ops);
    uint64_t best = UINT64_MAX;
    for (int turn = 0; turn < 6; turn++) {
        cudaDeviceSynchronize();
        uint64_t begin = qr_clock_ns();
        for (int i = 0; i < 20; i++) {
            qr_op_attention(r.ops, 0, q, 32, 0.088f);
            qr_ops_release(r.ops, mark);
        }
        cudaDeviceSynchronize();
        best = QR_MIN(best, qr_clock_ns() - begin);
    }
    double us = (double)best / 20e3,
           bytes = (double)seqs * context * 8 * 128 * 2 * (double)qr_dtype_bytes(dtype);
    printf("decode attention, %s, %d x %d tokens: %.1f us, %.2f TB/s\n", qr_dtype_name(dtype), seqs, context,
           us, bytes / us / 1e6);
    rig_end(&r);
    rig_close(&r);
}

/* rows after `before` tokens that are in the pages already */
static void time_prefill(qr_device *device, int32_t before, int32_t rows)
{
    rig r;
    rig_open(&r, device, (qr_kv_spec){.n_kv_heads = 8, .head_dim = 128}, 32, 1, before + rows, 32,
             QR_DTYPE_BF16);
    r.lens[0] = before + rows;
    fill(&r, 1024);
    r.lens[0] = before;
    rig_begin(&r, &rows);
    qr_tensor q = qr_op_tensor(r.ops, rows, 32 * 128);
    uint16_t *x = random_bf16((size_t)rows * 4096, 1);
    put(q, x);
    size_t mark = qr_ops_mark(r.ops);
    uint64_t best = UINT64_MAX;
    for (int turn = 0; turn < 5; turn++) {
        cudaDeviceSynchronize();
        uint64_t begin = qr_clock_ns();
        for (int i = 0; i < 4; i++) {
            qr_op_attention(r.ops, 0, q, 32, 0.088f);
            qr_ops_release(r.ops, mark);
        }
        cudaDeviceSynchronize();
        best = QR_MIN(best, qr_clock_ns() - begin);
    }
    double us = (double)best / 4e3, flops = 4.0 * rows * (before + rows / 2.0) * 4096;
    printf("prefill attention, %d tokens after %d: %.1f us, %.0f TFLOP/s\n", rows, before, us,
           flops / us / 1e6);
    rig_end(&r);
    rig_close(&r);
    qr_free(x);
}

int main(int argc, char **argv)
{
    qr_device *device;
    qr_error err = {0};
    if (qr_device_open(&(qr_device_options){.device = "cuda"}, &device, &err) != QR_OK) {
        printf("skipped: %s\n", err.message);
        return 77;
    }
    printf("%s, %.1f GB available\n", qr_device_describe(device),
           (double)qr_device_memory_available(device, 1) / 1e9);
    static const attention_case cases[] = {
        {"32/8 heads of 128", 32, 8, 128, 0, 32, QR_DTYPE_BF16, 700},
        {"8/1 heads of 128", 8, 1, 128, 0, 64, QR_DTYPE_BF16, 700},
        {"4/4 heads of 128, F16", 4, 4, 128, 0, 32, QR_DTYPE_F16, 700},
        {"9/3 heads of 64", 9, 3, 64, 0, 32, QR_DTYPE_BF16, 700},
        {"14/2 heads of 64, F16", 14, 2, 64, 0, 96, QR_DTYPE_F16, 700},
        {"8/2 heads of 128, window 100", 8, 2, 128, 100, 32, QR_DTYPE_BF16, 700},
        {"8/4 heads of 64, window 333", 8, 4, 64, 333, 32, QR_DTYPE_BF16, 700},
        {"4/2 heads of 24, blocks of 8", 4, 2, 24, 0, 8, QR_DTYPE_BF16, 700},
        {"4/2 heads of 128, F32", 4, 2, 128, 50, 16, QR_DTYPE_F32, 700},
        {"24/2 heads of 64, F16", 24, 2, 64, 0, 32, QR_DTYPE_F16, 700},
        {"2/1 heads of 256", 2, 1, 256, 0, 32, QR_DTYPE_BF16, 700},
        {"8/2 heads of 128, 3,000 tokens", 8, 2, 128, 0, 32, QR_DTYPE_BF16, 3000},
        {"14/2 heads of 64, 5,000 tokens", 14, 2, 64, 0, 64, QR_DTYPE_F16, 5000},
        {"8/1 heads of 128, window 1,000 of 3,000", 8, 1, 128, 1000, 32, QR_DTYPE_BF16, 3000},
        {"32/8 heads of 128, F8", 32, 8, 128, 0, 32, QR_DTYPE_F8_E4M3, 700},
        {"9/3 heads of 64, F8, 3,000 tokens", 9, 3, 64, 0, 64, QR_DTYPE_F8_E4M3, 3000},
        {"8/2 heads of 128, F8, window 100", 8, 2, 128, 100, 32, QR_DTYPE_F8_E4M3, 700},
        {"4/2 heads of 24, F8, blocks of 8", 4, 2, 24, 0, 8, QR_DTYPE_F8_E4M3, 700},
    };
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++)
        check_attention(device, &cases[i]);
    static const int64_t products[][3] = {{1, 256, 256},    {3, 96, 172},     {8, 1024, 4096},
                                          {17, 576, 576},   {64, 4096, 1024}, {65, 200, 64},
                                          {130, 512, 2048}, {300, 1536, 576}, {5, 7, 15},
                                          {1543, 384, 256}, {4101, 200, 192}};
    for (size_t i = 0; i < QR_COUNT_OF(products); i++)
        check_products(device, products[i][0], products[i][1], products[i][2]);
    check_rows(device, 5, 4096, 128);
    check_rows(device, 3, 576, 64);
    check_rows(device, 4, 14336, 128);
    check_rows(device, 2, 172, 4);
    check_rope(device, false, 128, 128);
    check_rope(device, true, 64, 32);
    static const rope_case ropes[] = {
        {"heads of 128", 128, 128, QR_DTYPE_BF16, false, false},
        {"heads of 128, norms", 128, 128, QR_DTYPE_BF16, false, true},
        {"heads of 64, 32 in pairs, F16", 64, 32, QR_DTYPE_F16, true, false},
        {"heads of 64, 32 in pairs, norms", 64, 32, QR_DTYPE_F16, true, true},
        {"heads of 80, 20 of them, F32, norms", 80, 20, QR_DTYPE_F32, false, true},
        {"heads of 12, 6 of them", 12, 6, QR_DTYPE_BF16, false, true},
    };
    for (size_t i = 0; i < QR_COUNT_OF(ropes); i++)
        check_rope_store(device, &ropes[i]);
    check_draws(device, 32000, 3);
    check_draws(device, 128256, 8);
    check_draws(device, 1000, 0.5f);
    if (argc > 1 && strcmp(argv[1], "--time") == 0) {
        static const int32_t decodes[][2] = {{1, 1100},   {8, 1100},   {32, 1100}, {128, 1100},
                                             {256, 1100}, {1, 100000}, {16, 16384}};
        for (size_t i = 0; i < QR_COUNT_OF(decodes); i++)
            time_decode(device, decodes[i][0], decodes[i][1], QR_DTYPE_BF16);
        for (size_t i = 0; i < QR_COUNT_OF(decodes); i++)
            time_decode(device, decodes[i][0], decodes[i][1], QR_DTYPE_F8_E4M3);
        for (int32_t rows = 128; rows <= 8192; rows *= 4)
            time_prefill(device, 0, rows);
        time_prefill(device, 0, 8192);
        time_prefill(device, 90000, 8192);
        time_prefill(device, 30000, 64);
    }
    qr_device_close(device);
    printf("%d checks, %d failed\n", checks, failures);
    return failures > 0;
}
