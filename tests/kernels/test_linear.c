// links: qr_backend qr_quant qr_tensor
#include "support/cmocka.h"

#include <math.h>
#include <string.h>

#include "backend/cpu/linear.h"
#include "backend/cpu/pack.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/format_headers.inc"

/* Products are compared with a dot product in double of exactly the numbers that the kernel multiplies: weights as the
 * format defines them, activations as their form rounds them. What is left is the rounding of the float chain. */

static const char *const isas[] = {"generic", "avx2", "avx512"};
static const qr_format formats[] = {QR_FORMAT_f32,  QR_FORMAT_f16,  QR_FORMAT_bf16, QR_FORMAT_q8_0,
                                    QR_FORMAT_q4_0, QR_FORMAT_q4_1, QR_FORMAT_q4_k, QR_FORMAT_q6_k,
                                    QR_FORMAT_q5_0, QR_FORMAT_q5_1, QR_FORMAT_q5_k};

static float normal(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(qr_rng_next(state) >> 40) / 16777216.0f - 0.5f;
    return sum;
}

/* Random bytes make a legal block of every format once its half-precision scales are sane. */
static void random_block(qr_format format, uint8_t *block, uint64_t *state)
{
    int bytes = qr_format_get(format)->bytes;
    for (int i = 0; i < bytes; i++)
        block[i] = (uint8_t)qr_rng_next(state);
    uint16_t d = qr_f32_to_f16(normal(state) * 0.01f), m = qr_f32_to_f16(normal(state) * 0.05f);
    float value = normal(state);
    switch (format) {
    case QR_FORMAT_f32: memcpy(block, &value, 4); break;
    case QR_FORMAT_f16:
        d = qr_f32_to_f16(value);
        memcpy(block, &d, 2);
        break;
    case QR_FORMAT_bf16:
        d = qr_f32_to_bf16(value);
        memcpy(block, &d, 2);
        break;
    case QR_FORMAT_q6_k: memcpy(block + offsetof(qr_q6_k_block, d), &d, 2); break;
    case QR_FORMAT_q4_1:
    case QR_FORMAT_q5_1:
    case QR_FORMAT_q4_k:
    case QR_FORMAT_q5_k:
        memcpy(block + 2, &m, 2);
        memcpy(block, &d, 2);
        break;
    default: memcpy(block, &d, 2);
    }
}

static qr_weight random_weight(qr_format format, int64_t rows, int64_t cols, uint64_t seed)
{
    size_t bytes = (size_t)rows * qr_format_row_bytes(format, cols);
    uint8_t *data = qr_alloc(bytes);
    uint64_t state = seed;
    for (size_t at = 0; at < bytes; at += (size_t)qr_format_get(format)->bytes)
        random_block(format, data + at, &state);
    return (qr_weight){.format = format,
                       .rows = rows,
                       .cols = cols,
                       .name = "test",
                       .part = {{.data = data, .bytes = bytes}}};
}

static qr_tensor random_rows(int64_t rows, int64_t cols, uint64_t seed)
{
    float *data = qr_alloc((size_t)(rows * cols) * sizeof *data);
    for (int64_t i = 0; i < rows * cols; i++)
        data[i] = normal(&seed) * (i % 97 == 0 ? 20.0f : 1.0f);
    return (qr_tensor){.data = data, .dtype = QR_DTYPE_F32, .rows = rows, .cols = cols, .row_stride = cols};
}

static cpu_device *open_isa(const char *isa, int threads)
{
    qr_device *device = NULL;
    qr_device_options options = {.device = "cpu", .isa = isa, .threads = threads};
    return qr_device_open(&options, &device, NULL) == QR_OK ? (cpu_device *)device : NULL;
}

static qr_dtype dtype_of(qr_format format)
{
    return format == QR_FORMAT_f16 ? QR_DTYPE_F16 : format == QR_FORMAT_bf16 ? QR_DTYPE_BF16 : QR_DTYPE_F32;
}

static qr_weight prepared(cpu_device *device, const qr_weight *from)
{
    qr_weight w = *from;
    qr_prepare_options options = {.compute = dtype_of(from->format)};
    qr_error err;
    assert_int_equal(qr_weight_prepare(&device->base, &w, &options, &err), QR_OK);
    assert_int_equal(w.packed_bytes, qr_weight_prepared_bytes(&device->base, from, &options));
    return w;
}

static void run_linear(cpu_device *device, qr_tensor x, const qr_weight *w, const float *bias, float *out)
{
    size_t bytes = qr_backend_cpu.linear_scratch_bytes(&device->base, x.rows, x.cols);
    void *scratch = qr_pages_map(bytes + 64, false);
    qr_tensor y = {.data = out, .rows = x.rows, .cols = w->rows, .row_stride = w->rows};
    qr_backend_cpu.linear(&device->base, x, &w, &bias, 1, &y, scratch);
    qr_pages_unmap(scratch, bytes + 64);
}

/* x as the kernels see it. */
static void rounded_row(const cpu_device *device, const qr_weight *w, const float *x, double *out)
{
    const cpu_linear_kernels *kernels = device->linear;
    cpu_form form = kernels->form[w->layout];
    _Alignas(64) static uint8_t record[65536];
    if (form == CPU_FORM_Q8)
        kernels->quantize(x, w->cols, record);
    const cpu_block *blocks = (const cpu_block *)(record + cpu_record_blocks(w->cols));
    for (int64_t k = 0; k < w->cols; k++)
        out[k] = form == CPU_FORM_Q8     ? (double)blocks[k / 32].d * (int8_t)record[k]
                 : form == CPU_FORM_BF16 ? qr_bf16_to_f32(qr_f32_to_bf16(x[k]))
                                         : x[k];
}

static void check_outputs(const cpu_device *device, const qr_weight *parts, const qr_weight *w, qr_tensor x,
                          const float *y)
{
    double *row = qr_alloc((size_t)w->cols * sizeof *row);
    float *weight = qr_alloc((size_t)w->cols * sizeof *weight);
    size_t row_bytes = qr_format_row_bytes(parts->format, w->cols);
    for (int64_t i = 0; i < x.rows; i++) {
        rounded_row(device, w, (const float *)x.data + i * x.row_stride, row);
        for (int64_t j = 0; j < w->rows; j++) {
            qr_format_get(parts->format)
                ->dequant_row((const uint8_t *)parts->part[0].data + (size_t)j * row_bytes, weight, w->cols);
            double sum = 0, size = 0;
            for (int64_t k = 0; k < w->cols; k++) {
                sum += row[k] * weight[k];
                size += fabs(row[k] * weight[k]);
            }
            if (!(fabs(y[i * w->rows + j] - sum) <= 1e-6 * size + 1e-30))
                fail_msg("%s %s: [%d x %d] row %d of %d, output %d: %g, should be %g",
                         device->base.description, qr_format_get(parts->format)->name, (int)w->rows,
                         (int)w->cols, (int)i, (int)x.rows, (int)j, (double)y[i * w->rows + j], sum);
        }
    }
    qr_free(row);
    qr_free(weight);
}

static void release(cpu_device *device, qr_weight *w) { qr_weight_release(&device->base, w); }

static void check_shape(cpu_device *device, qr_format format, int64_t n, int64_t cols, int64_t rows)
{
    qr_weight parts = random_weight(format, n, cols, (uint64_t)(n * 131 + cols));
    qr_weight w = prepared(device, &parts);
    qr_tensor x = random_rows(rows, cols, (uint64_t)(rows + 7));
    float *y = qr_alloc((size_t)(rows * n) * sizeof *y);
    run_linear(device, x, &w, NULL, y);
    check_outputs(device, &parts, &w, x, y);
    qr_free(y);
    qr_free(x.data);
    release(device, &w);
    qr_free((void *)parts.part[0].data);
}

static void test_every_format_matches_a_dot_product_in_double(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 256}, {15, 512}, {16, 256}, {50, 768}, {97, 1024}};
    static const int64_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 13};
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 2);
        for (size_t f = 0; device != NULL && f < QR_COUNT_OF(formats); f++)
            for (size_t s = 0; s < QR_COUNT_OF(shapes); s++)
                for (size_t r = 0; r < QR_COUNT_OF(rows); r++)
                    check_shape(device, formats[f], shapes[s][0], shapes[s][1], rows[r]);
        if (device != NULL)
            qr_device_close(&device->base);
    }
}

static void test_odd_widths_work_in_dense_formats_and_blocks_of_32(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 1);
        if (device == NULL)
            continue;
        for (int f = 0; f < 3; f++)
            for (int64_t cols = 1; cols < 70; cols += cols < 8 ? 1 : 13)
                check_shape(device, formats[f], 37, cols, 5);
        for (int f = 3; f < 6; f++)
            for (int64_t cols = 32; cols < 300; cols += 32)
                check_shape(device, formats[f], 37, cols, 5);
        qr_device_close(&device->base);
    }
}

/* The contract that everything above relies on. */
static void check_bits(cpu_device *one, cpu_device *three, qr_format format)
{
    enum { N = 210, K = 768, ROWS = 131 };
    qr_weight parts = random_weight(format, N, K, 5), w1 = prepared(one, &parts),
              w3 = prepared(three, &parts);
    qr_tensor x = random_rows(ROWS, K, 6);
    float *all = qr_alloc(ROWS * N * sizeof *all), *some = qr_alloc(ROWS * N * sizeof *some);
    run_linear(one, x, &w1, NULL, all);
    run_linear(three, x, &w3, NULL, some);
    assert_memory_equal(all, some, ROWS * N * sizeof *all);
    for (int64_t rows = 1; rows < 40; rows += rows < 9 ? 1 : 10)
        for (int64_t row = 0; row + rows <= ROWS; row += rows) {
            qr_tensor part = {.data = (float *)x.data + row * K, .rows = rows, .cols = K, .row_stride = K};
            run_linear(row % 2 == 0 ? one : three, part, row % 2 == 0 ? &w1 : &w3, NULL, some);
            assert_memory_equal(all + row * N, some, (size_t)(rows * N) * sizeof *all);
        }
    qr_free(all);
    qr_free(some);
    qr_free(x.data);
    release(one, &w1);
    release(three, &w3);
    qr_free((void *)parts.part[0].data);
}

static void test_a_row_has_the_same_bits_in_every_batch_and_on_any_number_of_threads(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *one = open_isa(isas[isa], 1), *three = open_isa(isas[isa], 3);
        for (size_t f = 0; one != NULL && f < QR_COUNT_OF(formats); f++)
            check_bits(one, three, formats[f]);
        if (one != NULL) {
            qr_device_close(&one->base);
            qr_device_close(&three->base);
        }
    }
}

static void test_packed_rows_read_back_as_the_format_defines_them(void **state)
{
    (void)state;
    enum { N = 35, K = 512 };
    float want[K], got[K];
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 2);
        for (size_t f = 0; device != NULL && f < QR_COUNT_OF(formats); f++) {
            qr_weight parts = random_weight(formats[f], N, K, 9), w = prepared(device, &parts);
            for (int64_t row = 0; row < N; row++) {
                cpu_weight_row(device, &w, row, got);
                size_t at = (size_t)row * qr_format_row_bytes(formats[f], K);
                qr_format_get(formats[f])->dequant_row((const uint8_t *)parts.part[0].data + at, want, K);
                assert_memory_equal(got, want, sizeof want);
            }
            release(device, &w);
            qr_free((void *)parts.part[0].data);
        }
        if (device != NULL)
            qr_device_close(&device->base);
    }
}

static void test_matrices_that_share_x_equal_each_alone_and_take_their_bias(void **state)
{
    (void)state;
    enum { K = 256, ROWS = 9 };
    static const qr_format mix[3] = {QR_FORMAT_q4_k, QR_FORMAT_q6_k, QR_FORMAT_bf16};
    static const int64_t n[3] = {40, 16, 7};
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 2);
        if (device == NULL)
            continue;
        qr_weight parts[3], w[3];
        const qr_weight *weights[3] = {&w[0], &w[1], &w[2]};
        float bias[40], y[3][ROWS * 40], alone[ROWS * 40];
        const float *biases[3] = {bias, NULL, bias};
        qr_tensor outs[3], x = random_rows(ROWS, K, 3);
        for (int i = 0; i < 40; i++)
            bias[i] = (float)i;
        for (int i = 0; i < 3; i++) {
            parts[i] = random_weight(mix[i], n[i], K, (uint64_t)i);
            w[i] = prepared(device, &parts[i]);
            outs[i] = (qr_tensor){.data = y[i], .rows = ROWS, .cols = n[i], .row_stride = n[i]};
        }
        size_t bytes = qr_backend_cpu.linear_scratch_bytes(&device->base, ROWS, K);
        void *scratch = qr_pages_map(bytes, false);
        qr_backend_cpu.linear(&device->base, x, weights, biases, 3, outs, scratch);
        for (int i = 0; i < 3; i++) {
            run_linear(device, x, &w[i], NULL, alone);
            for (int64_t at = 0; biases[i] != NULL && at < ROWS * n[i]; at++)
                alone[at] += bias[at % n[i]];
            assert_memory_equal(alone, y[i], (size_t)(ROWS * n[i]) * sizeof(float));
            release(device, &w[i]);
            qr_free((void *)parts[i].part[0].data);
        }
        qr_pages_unmap(scratch, bytes);
        qr_free(x.data);
        qr_device_close(&device->base);
    }
}

static void check_swiglu(cpu_device *device, qr_format gate_format, qr_format up_format, int64_t rows)
{
    enum { N = 200, K = 256 };
    qr_weight gate_parts = random_weight(gate_format, N, K, 1), up_parts = random_weight(up_format, N, K, 2);
    qr_weight gate = prepared(device, &gate_parts), up = prepared(device, &up_parts);
    qr_tensor x = random_rows(rows, K, 4);
    size_t count = (size_t)(rows * N), bytes = qr_backend_cpu.linear_scratch_bytes(&device->base, rows, K);
    float *g = qr_alloc(count * 4), *u = qr_alloc(count * 4), *fused = qr_alloc(count * 4);
    run_linear(device, x, &gate, NULL, g);
    run_linear(device, x, &up, NULL, u);
    void *scratch = qr_pages_map(bytes, false);
    qr_tensor y = {.data = fused, .rows = rows, .cols = N, .row_stride = N};
    qr_backend_cpu.linear_swiglu(&device->base, x, &gate, &up, y, scratch);
    for (size_t i = 0; i < count; i++) {
        double want = (double)g[i] / (1 + exp(-(double)g[i])) * (double)u[i];
        /* e^x in floats is off by as much as x is. */
        assert_true(fabs(fused[i] - want) <= 5e-7 * (1 + fabs(g[i])) * fabs(want) + 1e-30);
    }
    qr_pages_unmap(scratch, bytes);
    qr_free(g);
    qr_free(u);
    qr_free(fused);
    qr_free(x.data);
    release(device, &gate);
    release(device, &up);
    qr_free((void *)gate_parts.part[0].data);
    qr_free((void *)up_parts.part[0].data);
}

static void test_the_fused_gated_half_equals_its_parts(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 2);
        for (int64_t rows = 1; device != NULL && rows < 100; rows = rows * 3 + 1) {
            check_swiglu(device, QR_FORMAT_q4_1, QR_FORMAT_q4_1, rows);
            check_swiglu(device, QR_FORMAT_q4_k, QR_FORMAT_f32, rows);
        }
        if (device != NULL)
            qr_device_close(&device->base);
    }
}

static void test_dense_weights_are_held_in_the_dtype_asked_for(void **state)
{
    (void)state;
    enum { N = 20, K = 64 };
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 1);
        if (device == NULL)
            continue;
        qr_weight parts = random_weight(QR_FORMAT_f32, N, K, 1), w = parts;
        qr_prepare_options options = {.compute = QR_DTYPE_BF16};
        assert_int_equal(qr_weight_prepare(&device->base, &w, &options, NULL), QR_OK);
        float row[K];
        cpu_weight_row(device, &w, 19, row);
        for (int k = 0; k < K; k++)
            assert_true(row[k] ==
                        qr_bf16_to_f32(qr_f32_to_bf16(((const float *)parts.part[0].data)[19 * K + k])));
        release(device, &w);
        qr_free((void *)parts.part[0].data);
        qr_device_close(&device->base);
    }
}

static void test_dummy_weights_follow_the_seed_and_look_like_a_checkpoint(void **state)
{
    (void)state;
    enum { N = 64, K = 512 };
    cpu_device *device = open_isa("auto", 2);
    float a[K], b[K];
    for (size_t f = 0; f < QR_COUNT_OF(formats); f++) {
        qr_weight one = {.format = formats[f], .rows = N, .cols = K, .name = "w"}, same = one, other = one;
        qr_prepare_options options = {.compute = dtype_of(formats[f]), .dummy_seed = 11}, next = options;
        next.dummy_seed = 12;
        assert_int_equal(qr_weight_prepare(&device->base, &one, &options, NULL), QR_OK);
        assert_int_equal(qr_weight_prepare(&device->base, &same, &options, NULL), QR_OK);
        assert_int_equal(qr_weight_prepare(&device->base, &other, &next, NULL), QR_OK);
        assert_memory_equal(one.packed, same.packed, one.packed_bytes);
        assert_true(memcmp(one.packed, other.packed, one.packed_bytes) != 0);
        double sum = 0, squares = 0;
        for (int64_t row = 0; row < N; row++) {
            cpu_weight_row(device, &one, row, a);
            for (int k = 0; k < K; k++) {
                sum += (double)a[k];
                squares += (double)a[k] * (double)a[k];
            }
        }
        assert_true(fabs(sum / (N * K)) < 0.002);
        double sigma = sqrt(squares / (N * K));
        if (!(sigma > 0.01 && sigma < 0.04))
            fail_msg("%s: deviation %g", qr_format_get(formats[f])->name, sigma);
        cpu_weight_row(device, &one, 3, a);
        cpu_weight_row(device, &one, 20, b);
        assert_true(memcmp(a, b, sizeof a) != 0);
        release(device, &one);
        release(device, &same);
        release(device, &other);
    }
    qr_device_close(&device->base);
}

static void test_a_weight_shorter_than_its_shape_is_refused_with_the_numbers(void **state)
{
    (void)state;
    cpu_device *device = open_isa("auto", 1);
    qr_weight parts = random_weight(QR_FORMAT_q8_0, 4, 64, 1), w = parts;
    w.part[0].bytes -= 1;
    qr_error err;
    qr_prepare_options options = {.compute = QR_DTYPE_F32};
    assert_int_equal(qr_weight_prepare(&device->base, &w, &options, &err), QR_BAD_FILE);
    assert_non_null(strstr(err.message, "has 271 bytes"));
    w = parts;
    w.cols = 63;
    assert_int_equal(qr_weight_prepare(&device->base, &w, &options, &err), QR_UNSUPPORTED);
    qr_free((void *)parts.part[0].data);
    qr_device_close(&device->base);
}

static void test_activations_that_are_not_numbers_do_not_crash(void **state)
{
    (void)state;
    enum { N = 33, K = 256 };
    for (size_t isa = 0; isa < QR_COUNT_OF(isas); isa++) {
        cpu_device *device = open_isa(isas[isa], 1);
        for (size_t f = 0; device != NULL && f < QR_COUNT_OF(formats); f++) {
            qr_weight parts = random_weight(formats[f], N, K, 1), w = prepared(device, &parts);
            qr_tensor x = random_rows(3, K, 2);
            float y[3 * N], clean[3 * N];
            run_linear(device, x, &w, NULL, clean);
            ((float *)x.data)[K + 5] = NAN;
            ((float *)x.data)[2 * K + 50] = INFINITY;
            run_linear(device, x, &w, NULL, y);
            assert_memory_equal(y, clean, N * sizeof *y); /* other rows do not notice */
            qr_free(x.data);
            release(device, &w);
            qr_free((void *)parts.part[0].data);
        }
        if (device != NULL)
            qr_device_close(&device->base);
    }
}

static void test_an_unknown_or_absent_isa_is_refused(void **state)
{
    (void)state;
    qr_device *device = NULL;
    qr_error err;
    qr_device_options options = {.device = "cpu", .isa = "sse9"};
    assert_int_equal(qr_device_open(&options, &device, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "sse9"));
    assert_null(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_format_matches_a_dot_product_in_double),
        cmocka_unit_test(test_odd_widths_work_in_dense_formats_and_blocks_of_32),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_every_batch_and_on_any_number_of_threads),
        cmocka_unit_test(test_packed_rows_read_back_as_the_format_defines_them),
        cmocka_unit_test(test_matrices_that_share_x_equal_each_alone_and_take_their_bias),
        cmocka_unit_test(test_the_fused_gated_half_equals_its_parts),
        cmocka_unit_test(test_dense_weights_are_held_in_the_dtype_asked_for),
        cmocka_unit_test(test_dummy_weights_follow_the_seed_and_look_like_a_checkpoint),
        cmocka_unit_test(test_a_weight_shorter_than_its_shape_is_refused_with_the_numbers),
        cmocka_unit_test(test_activations_that_are_not_numbers_do_not_crash),
        cmocka_unit_test(test_an_unknown_or_absent_isa_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
