// links: qr_backend qr_quant qr_tensor qr_base
/* Paged attention of every instruction set against a softmax in double, and against itself to the bit: whole prefill,
 * chunks, single tokens, batches and threads. All pages start as NaN, so a masked row that is read as a value shows. */
#include <math.h>
#include <stdio.h>

#include "backend/backend.h"
#include "backend/cpu/kv.h"
#include "base/cpuid.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/cmocka.h"

enum { SEQS_MAX = 3, ROWS_MAX = 2400 };

typedef struct shape {
    int32_t n_heads, n_kv, dim, window, block_size, seqs;
    int32_t length[SEQS_MAX];
    qr_dtype dtype;
} shape;

/* Queries, keys and values of all sequences, [seq][token][...], and where the outputs go. */
typedef struct world {
    shape s;
    qr_device *device;
    qr_kv *kv;
    qr_ops *ops;
    float *q, *k, *v;
    int32_t stride; /* blocks of a sequence */
    int32_t table[SEQS_MAX * 512];
} world;

static float uniform(uint64_t *rng)
{
    return (float)((double)(qr_rng_next(rng) >> 40) / (double)(1 << 23) - 1);
}
static int32_t between(uint64_t *rng, int32_t low, int32_t high)
{
    return low + (int32_t)(qr_rng_next(rng) % (uint64_t)(high - low + 1));
}

static int32_t longest(const shape *s)
{
    int32_t length = 0;
    for (int32_t i = 0; i < s->seqs; i++)
        length = QR_MAX(length, s->length[i]);
    return length;
}

static float *random_floats(uint64_t *rng, size_t count)
{
    float *x = qr_calloc(count, sizeof(float));
    for (size_t i = 0; i < count; i++)
        x[i] = uniform(rng);
    return x;
}

static size_t q_cols(const shape *s) { return (size_t)s->n_heads * (size_t)s->dim; }
static size_t kv_cols(const shape *s) { return (size_t)s->n_kv * (size_t)s->dim; }

static void world_open(world *w, const shape *s, const char *isa, int threads, uint64_t seed)
{
    qr_error err = {0};
    *w = (world){.s = *s};
    if (qr_device_open(&(qr_device_options){.device = "cpu", .isa = isa, .threads = threads}, &w->device,
                       &err))
        fail_msg("%s", err.message);
    w->stride = (longest(s) + s->block_size - 1) / s->block_size;
    assert_true(w->stride * s->seqs <= (int32_t)QR_COUNT_OF(w->table));
    qr_kv_spec specs[2] = {{.n_kv_heads = 1, .head_dim = 8}, {QR_KV_PAGED, s->n_kv, s->dim, s->window}};
    int32_t n_blocks = w->stride * s->seqs + 1;
    assert_int_equal(qr_kv_open(w->device, specs, 2, n_blocks, s->block_size, s->dtype, &w->kv, &err), QR_OK);
    for (int32_t i = 0; i < w->stride * s->seqs; i++) /* the sequences' blocks alternate, the last first */
        w->table[i] = n_blocks - 1 - (i % w->stride * s->seqs + i / w->stride);
    uint64_t rng = seed;
    size_t tokens = (size_t)longest(s) * SEQS_MAX;
    w->q = random_floats(&rng, tokens * q_cols(s));
    w->k = random_floats(&rng, tokens * kv_cols(s));
    w->v = random_floats(&rng, tokens * kv_cols(s));
    int32_t context[SEQS_MAX] = {longest(s), longest(s), longest(s)};
    qr_batch plan = {.n_tokens = longest(s) * s->seqs, .n_seqs = s->seqs, .context_len = context};
    qr_ops *ops = qr_ops_plan_new(w->device);
    qr_ops_begin(ops, &plan);
    qr_op_attention(ops, 1, qr_op_tensor(ops, plan.n_tokens, (int64_t)q_cols(s)), s->n_heads, 1);
    qr_ops_end(ops, NULL);
    assert_int_equal(qr_ops_open(w->device, w->kv, qr_ops_scratch_peak(ops), &w->ops, &err), QR_OK);
    qr_ops_close(ops);
}

static void poison(world *w)
{
    cpu_pages *pages = (cpu_pages *)w->kv;
    memset(pages->memory, 0xff, pages->memory_bytes); /* NaN in every type */
}

static void world_close(world *w)
{
    qr_ops_close(w->ops);
    qr_kv_close(w->kv);
    qr_device_close(w->device);
    qr_free(w->q);
    qr_free(w->k);
    qr_free(w->v);
}

static qr_tensor matrix(float *data, int64_t rows, size_t cols)
{
    return (qr_tensor){.data = data, .rows = rows, .cols = (int64_t)cols, .row_stride = (int64_t)cols};
}

/* One step: tokens [start[i], start[i] + count[i]) of sequence i; those with count 0 stay out. Writes their outputs
 * into out [seq][token][n_heads dim]. Blocks that no query sees are taken out of the table. */
static void step(world *w, const int32_t *start, const int32_t *count, float *out)
{
    const shape *s = &w->s;
    int32_t positions[ROWS_MAX], seq_of[ROWS_MAX], starts[SEQS_MAX + 1] = {0}, context[SEQS_MAX],
                                                                     which[SEQS_MAX];
    int32_t table[SEQS_MAX * 512], n = 0, rows = 0, length = longest(s);
    size_t total = 0;
    for (int32_t seq = 0; seq < s->seqs; seq++)
        total += (size_t)count[seq];
    float *q = qr_calloc(total * q_cols(s), sizeof(float));
    float *k = qr_calloc(total * kv_cols(s), sizeof(float)),
          *v = qr_calloc(total * kv_cols(s), sizeof(float));
    for (int32_t seq = 0; seq < s->seqs; seq++) {
        if (count[seq] == 0)
            continue;
        which[n] = seq;
        context[n] = start[seq] + count[seq];
        int32_t first = s->window > 0 ? QR_MAX(0, start[seq] - s->window + 1) / s->block_size : 0;
        for (int32_t b = 0; b < w->stride; b++)
            table[n * w->stride + b] =
                b < first || b * s->block_size >= context[n] ? -1 : w->table[seq * w->stride + b];
        for (int32_t i = 0; i < count[seq]; i++, rows++) {
            size_t token = (size_t)(seq * length + start[seq] + i);
            positions[rows] = start[seq] + i;
            seq_of[rows] = n;
            memcpy(q + (size_t)rows * q_cols(s), w->q + token * q_cols(s), q_cols(s) * sizeof(float));
            memcpy(k + (size_t)rows * kv_cols(s), w->k + token * kv_cols(s), kv_cols(s) * sizeof(float));
            memcpy(v + (size_t)rows * kv_cols(s), w->v + token * kv_cols(s), kv_cols(s) * sizeof(float));
        }
        starts[++n] = rows;
    }
    qr_batch batch = {.n_tokens = rows,
                      .n_seqs = n,
                      .positions = positions,
                      .seq_of_row = seq_of,
                      .seq_start = starts,
                      .context_len = context,
                      .block_table = {table, table},
                      .table_stride = w->stride,
                      .block_size = s->block_size,
                      .n_groups = 2};
    qr_ops_begin(w->ops, &batch);
    qr_op_kv_store(w->ops, 1, matrix(k, rows, kv_cols(s)), matrix(v, rows, kv_cols(s)));
    qr_tensor y =
        qr_op_attention(w->ops, 1, matrix(q, rows, q_cols(s)), s->n_heads, 1 / sqrtf((float)s->dim));
    for (int32_t row = 0; row < rows; row++)
        memcpy(out + (size_t)(which[seq_of[row]] * length + positions[row]) * q_cols(s),
               (float *)y.data + row * y.row_stride, q_cols(s) * sizeof(float));
    assert_int_equal(qr_ops_end(w->ops, NULL), QR_OK);
    qr_free(q);
    qr_free(k);
    qr_free(v);
}

static double rounded(float x, qr_dtype dtype)
{
    if (dtype == QR_DTYPE_F16)
        return (double)qr_f16_to_f32(qr_f32_to_f16(x));
    return dtype == QR_DTYPE_BF16 ? (double)qr_bf16_to_f32(qr_f32_to_bf16(x)) : (double)x;
}

/* Largest error of one query's output. */
static double row_error(const world *w, int32_t seq, int32_t token, const float *out)
{
    const shape *s = &w->s;
    static double p[ROWS_MAX];
    int32_t length = longest(s), first = s->window > 0 ? QR_MAX(0, token - s->window + 1) : 0;
    double worst = 0;
    for (int32_t head = 0; head < s->n_heads; head++) {
        int32_t kv = head / (s->n_heads / s->n_kv);
        const float *q = w->q + (size_t)(seq * length + token) * q_cols(s) + (size_t)(head * s->dim);
        double top = -INFINITY, sum = 0;
        for (int32_t j = first; j <= token; j++) {
            const float *k = w->k + (size_t)(seq * length + j) * kv_cols(s) + (size_t)(kv * s->dim);
            p[j] = 0;
            for (int32_t d = 0; d < s->dim; d++)
                p[j] += (double)q[d] * rounded(k[d], s->dtype);
            p[j] /= sqrt(s->dim);
            top = fmax(top, p[j]);
        }
        for (int32_t j = first; j <= token; j++)
            sum += p[j] = exp(p[j] - top);
        for (int32_t d = 0; d < s->dim; d++) {
            double y = 0;
            for (int32_t j = first; j <= token; j++)
                y += p[j] * rounded(w->v[(size_t)(seq * length + j) * kv_cols(s) + (size_t)(kv * s->dim + d)],
                                    s->dtype);
            double diff =
                fabs(y / sum -
                     (double)out[(size_t)(seq * length + token) * q_cols(s) + (size_t)(head * s->dim + d)]);
            if (!(diff <= worst))
                worst = isnan(diff) ? INFINITY : diff;
        }
    }
    return worst;
}

static size_t out_floats(const world *w) { return (size_t)longest(&w->s) * SEQS_MAX * q_cols(&w->s); }

static void run_whole(world *w, float *out)
{
    int32_t start[SEQS_MAX] = {0};
    poison(w);
    step(w, start, w->s.length, out);
}

/* Random chunks, one sequence ahead of another, until all are done. */
static void run_chunks(world *w, uint64_t *rng, int32_t chunk_max, float *out)
{
    int32_t start[SEQS_MAX] = {0}, count[SEQS_MAX];
    poison(w);
    for (;;) {
        int32_t rows = 0;
        for (int32_t seq = 0; seq < w->s.seqs; seq++) {
            int32_t wanted = between(rng, 0, chunk_max);
            count[seq] = QR_MIN(wanted, w->s.length[seq] - start[seq]);
            rows += count[seq];
        }
        int32_t left = 0;
        for (int32_t seq = 0; seq < w->s.seqs; seq++)
            left += w->s.length[seq] - start[seq];
        if (left == 0)
            return;
        if (rows == 0)
            continue;
        step(w, start, count, out);
        for (int32_t seq = 0; seq < w->s.seqs; seq++)
            start[seq] += count[seq];
    }
}

static void print_shape(const shape *s, const char *isa, const char *what)
{
    print_message("%s: heads %d/%d dim %d window %d block %d %s lengths %d %d %d: %s\n", isa, s->n_heads,
                  s->n_kv, s->dim, s->window, s->block_size, qr_dtype_name(s->dtype), s->length[0],
                  s->length[1], s->length[2], what);
}

/* 1: the shape fails. The error bound is some roundings of sums of up to 600 products of numbers below 1. */
static int check_shape(const shape *s, const char *isa, uint64_t seed)
{
    world w, threaded;
    world_open(&w, s, isa, 1, seed);
    world_open(&threaded, s, isa, 3, seed);
    size_t floats = out_floats(&w);
    float *whole = qr_calloc(floats, sizeof(float)), *other = qr_calloc(floats, sizeof(float));
    uint64_t rng = seed + 1;
    int failed = 0;
    run_whole(&w, whole);
    double worst = 0;
    for (int32_t seq = 0; seq < s->seqs; seq++)
        for (int32_t token = 0; token < s->length[seq];
             token += token < 20 || token > s->length[seq] - 12 ? 1 : 37)
            worst = fmax(worst, row_error(&w, seq, token, whole));
    if (!(worst < 4e-6)) {
        print_shape(s, isa, "wrong");
        print_message("    error %g\n", worst);
        failed = 1;
    }
    const int32_t chunk_max[] = {1, 5, 70};
    bool slow =
        strcmp(isa, "generic") == 0 && longest(s) > 100; /* token by token takes minutes under a sanitizer */
    for (size_t i = slow ? 1 : 0; i < QR_COUNT_OF(chunk_max); i++)
        for (int t = 0; t < 2; t++) {
            memset(other, 0, floats * sizeof(float));
            run_chunks(t ? &threaded : &w, &rng, chunk_max[i], other);
            if (memcmp(whole, other, floats * sizeof(float)) != 0) {
                print_shape(s, isa, t ? "chunks on 3 threads differ from whole" : "chunks differ from whole");
                failed = 1;
            }
        }
    memset(other, 0, floats * sizeof(float));
    run_whole(&threaded, other);
    failed |= memcmp(whole, other, floats * sizeof(float)) != 0;
    qr_free(whole);
    qr_free(other);
    world_close(&w);
    world_close(&threaded);
    return failed;
}

static bool machine_has(const char *isa)
{
    const qr_cpu_features *cpu = qr_cpu_detect();
    return strcmp(isa, "avx512") == 0 ? cpu->avx512 && cpu->avx512_vnni
           : strcmp(isa, "avx2") == 0 ? cpu->avx2
                                      : true;
}

static const char *const isas[] = {"generic", "avx2", "avx512"};

static int check_everywhere(const shape *s, uint64_t seed)
{
    int failed = 0;
    for (size_t i = 0; i < QR_COUNT_OF(isas); i++)
        if (machine_has(isas[i]))
            failed += check_shape(s, isas[i], seed);
    return failed;
}

static void usual_shapes_are_right_and_bit_equal_however_they_are_cut(void **state)
{
    (void)state;
    static const shape shapes[] = {
        {9, 3, 64, 0, 16, 2, {290, 40}, QR_DTYPE_F16},   {4, 4, 64, 0, 16, 1, {265}, QR_DTYPE_BF16},
        {8, 2, 128, 0, 16, 1, {270}, QR_DTYPE_F32},      {32, 1, 16, 0, 16, 1, {65}, QR_DTYPE_F16},
        {7, 7, 8, 0, 16, 3, {60, 17, 33}, QR_DTYPE_F32}, {6, 2, 80, 20, 16, 2, {90, 270}, QR_DTYPE_BF16},
        {2, 1, 256, 0, 32, 1, {280}, QR_DTYPE_F16},      {5, 1, 24, 300, 8, 1, {560}, QR_DTYPE_F32},
        {4, 2, 64, 1, 16, 1, {40}, QR_DTYPE_F16},        {8, 8, 96, 0, 512, 1, {530}, QR_DTYPE_F16},
        {60, 1, 8, 0, 16, 1, {30}, QR_DTYPE_F32},        {3, 1, 64, 256, 24, 2, {530, 20}, QR_DTYPE_BF16},
    };
    int failed = 0;
    for (size_t i = 0; i < QR_COUNT_OF(shapes); i++)
        failed += check_everywhere(&shapes[i], 100 + i);
    assert_int_equal(failed, 0);
}

static void odd_shapes_are_right_and_bit_equal_however_they_are_cut(void **state)
{
    (void)state;
    uint64_t rng = 7;
    int failed = 0;
    for (int i = 0; i < 16; i++) {
        static const int32_t dims[] = {8, 16, 40, 64, 72, 2, 18, 36, 100, 130},
                             blocks[] = {8, 16, 16, 24, 40, 128};
        shape s = {.n_kv = between(&rng, 1, 4),
                   .dim = dims[between(&rng, 0, (int32_t)QR_COUNT_OF(dims) - 1)],
                   .window = between(&rng, 0, 1) ? between(&rng, 1, 100) : 0,
                   .block_size = blocks[between(&rng, 0, (int32_t)QR_COUNT_OF(blocks) - 1)],
                   .seqs = between(&rng, 1, SEQS_MAX),
                   .dtype = (qr_dtype)between(&rng, 0, 2)};
        s.n_heads = s.n_kv * between(&rng, 1, 7);
        for (int32_t seq = 0; seq < s.seqs; seq++)
            s.length[seq] = between(&rng, 1, 120) + (between(&rng, 0, 3) == 0 ? 200 : 0);
        failed += check_everywhere(&s, 1000 + (uint64_t)i);
    }
    assert_int_equal(failed, 0);
}

static void a_float_beyond_float16_is_stored_as_the_largest(void **state)
{
    (void)state;
    for (size_t i = 0; i < QR_COUNT_OF(isas); i++) {
        if (!machine_has(isas[i]))
            continue;
        shape s = {1, 1, 8, 0, 16, 1, {1}, QR_DTYPE_F16};
        world w;
        world_open(&w, &s, isas[i], 1, 3);
        float out[SEQS_MAX * 8] = {0};
        w.v[0] = 1e30f;
        w.v[1] = -1e30f;
        run_whole(&w, out);
        assert_true(out[0] == 65504 && out[1] == -65504);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usual_shapes_are_right_and_bit_equal_however_they_are_cut),
        cmocka_unit_test(odd_shapes_are_right_and_bit_equal_however_they_are_cut),
        cmocka_unit_test(a_float_beyond_float16_is_stored_as_the_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
