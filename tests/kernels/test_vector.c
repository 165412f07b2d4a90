// links: qr_backend qr_quant qr_tensor qr_base
/* The row kernels of every instruction set against double arithmetic, at odd sizes; rope at far positions. */
#include <math.h>
#include <stdio.h>

#include "backend/backend.h"
#include "backend/cpu/vector.h"
#include "base/cpuid.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/cmocka.h"

enum { SIZE_MAX_ROW = 1030, GUARD = 16 };
static const int64_t sizes[] = {1, 3, 8, 15, 16, 17, 64, 100, 576, 1000, 1023, SIZE_MAX_ROW};

typedef struct rows {
    float x[SIZE_MAX_ROW + GUARD], y[SIZE_MAX_ROW + GUARD], w[SIZE_MAX_ROW + GUARD], z[SIZE_MAX_ROW + GUARD];
} rows;

static float number(uint64_t *rng, float size)
{
    return size * (float)((double)(qr_rng_next(rng) >> 40) / (double)(1 << 23) - 1);
}

/* Random values, and a guard after the n-th that must not be written. */
static void fill(rows *r, int64_t n, float size, uint64_t seed)
{
    uint64_t rng = seed;
    for (int64_t i = 0; i < SIZE_MAX_ROW + GUARD; i++) {
        r->x[i] = i < n ? number(&rng, size) : 12345;
        r->y[i] = i < n ? number(&rng, size) : 12345;
        r->w[i] = i < n ? number(&rng, 1) : 12345;
        r->z[i] = 12345;
    }
}

static void assert_guard(const float *x, int64_t n)
{
    for (int64_t i = n; i < n + GUARD && i < SIZE_MAX_ROW + GUARD; i++)
        assert_true(x[i] == 12345);
}

static void assert_near(double got, double want, double relative, double absolute)
{
    double error = fabs(got - want), bound = relative * fabs(want) + absolute;
    if (!(error <= bound))
        fail_msg("got %.9g, want %.9g: error %g above %g", got, want, error, bound);
}

typedef void (*kernel_check)(const cpu_vector_kernels *k);

static void on_every_set(kernel_check check)
{
    check(&cpu_vector_generic);
    if (qr_cpu_detect()->avx2)
        check(&cpu_vector_avx2);
    if (qr_cpu_detect()->avx512)
        check(&cpu_vector_avx512);
}

static void check_norms(const cpu_vector_kernels *k)
{
    static rows r;
    for (size_t s = 0; s < QR_COUNT_OF(sizes); s++) {
        int64_t n = sizes[s];
        fill(&r, n, 3, 1 + s);
        double sum = 0, sum_of_both = 0;
        for (int64_t i = 0; i < n; i++) {
            sum += (double)r.x[i] * r.x[i];
            sum_of_both += (double)(r.x[i] + r.y[i]) * (r.x[i] + r.y[i]);
        }
        double inverse = 1 / sqrt(sum / (double)n + 1e-5),
               inverse_of_both = 1 / sqrt(sum_of_both / (double)n + 1e-5);
        k->rmsnorm(r.x, r.w, 1e-5f, n, r.z);
        for (int64_t i = 0; i < n; i++)
            assert_near(r.z[i], r.x[i] * inverse * r.w[i], 1e-6, 1e-30);
        assert_guard(r.z, n);
        float before[SIZE_MAX_ROW];
        memcpy(before, r.x, sizeof(before));
        k->add_rmsnorm(r.x, r.y, r.w, 1e-5f, n, r.z);
        for (int64_t i = 0; i < n; i++) {
            assert_true(r.x[i] == before[i] + r.y[i]);
            assert_near(r.z[i], (double)r.x[i] * inverse_of_both * r.w[i], 1e-6, 1e-30);
        }
        assert_guard(r.x, n);
        assert_guard(r.z, n);
    }
}

static void rms_norm_matches_double_arithmetic(void **state)
{
    (void)state;
    on_every_set(check_norms);
}

static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu(double x) { return x / 2 * (1 + erf(x / sqrt(2))); }
static double gelu_tanh(double x)
{
    return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static void check_activation(void (*kernel)(float *, const float *, int64_t), double (*want)(double),
                             double relative, double absolute)
{
    static rows r;
    for (size_t s = 0; s < QR_COUNT_OF(sizes); s++) {
        int64_t n = sizes[s];
        fill(&r, n, s % 2 ? 3 : 30, 50 + s);
        float before[SIZE_MAX_ROW];
        memcpy(before, r.x, sizeof(before));
        kernel(r.x, r.y, n);
        for (int64_t i = 0; i < n; i++)
            assert_near(r.x[i], want(before[i]) * r.y[i], relative, absolute * fabs((double)r.y[i]));
        assert_guard(r.x, n);
    }
    float edge[16] = {0, -0.0f, 1000, -1000, 88, -88, -104, 1e-30f, -INFINITY, INFINITY, NAN, 3e38f};
    float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    kernel(edge, ones, 16);
    assert_true(edge[0] == 0 && edge[2] == 1000 && fabsf(edge[3]) < 1e-30f && edge[9] == INFINITY &&
                isnan(edge[10]));
    assert_true(edge[11] == 3e38f);
}

static void check_activations(const cpu_vector_kernels *k)
{
    check_activation(k->silu_mul, silu, 5e-6, 0);
    check_activation(k->gelu_mul, gelu, 1e-6, 3e-7 * 30);
    check_activation(k->gelu_tanh_mul, gelu_tanh, 3e-5, 1e-9);
}

static void activations_match_double_arithmetic(void **state)
{
    (void)state;
    on_every_set(check_activations);
}

static void check_conversions(const cpu_vector_kernels *k)
{
    static rows r;
    uint16_t half[SIZE_MAX_ROW + GUARD], brain[SIZE_MAX_ROW + GUARD];
    for (size_t s = 0; s < QR_COUNT_OF(sizes); s++) {
        int64_t n = sizes[s];
        fill(&r, n, s % 3 == 0 ? 70000 : s % 3 == 1 ? 1e-6f : 1, 90 + s);
        memset(half, 0x55, sizeof(half));
        memset(brain, 0x55, sizeof(brain));
        k->to_f16(r.x, half, n);
        k->to_bf16(r.x, brain, n);
        for (int64_t i = 0; i < n; i++) {
            float limited = fminf(fmaxf(r.x[i], -65504), 65504);
            assert_int_equal(half[i], qr_f32_to_f16(limited));
            assert_int_equal(brain[i], qr_f32_to_bf16(r.x[i]));
        }
        assert_true(half[n] == 0x5555 && brain[n] == 0x5555);
    }
}

static void conversions_round_to_nearest_even_and_saturate(void **state)
{
    (void)state;
    on_every_set(check_conversions);
}

/* ---- Ops over a device: rows, threads, rope ---- */

static qr_tensor tensor(float *data, int64_t n_rows, int64_t cols, int64_t stride)
{
    return (qr_tensor){.data = data, .rows = n_rows, .cols = cols, .row_stride = stride};
}

static qr_device *open_device(const char *isa, int threads)
{
    qr_device *device = NULL;
    qr_error err = {0};
    if (qr_device_open(&(qr_device_options){.device = "cpu", .isa = isa, .threads = threads}, &device,
                       &err) != QR_OK)
        fail_msg("%s", err.message);
    return device;
}

/* Every position must turn as in double arithmetic, also where a float product of position and frequency is off. */
static void check_rope(bool interleaved, int32_t dim, int32_t rotary)
{
    float inv_freq[64];
    for (int32_t i = 0; i < rotary / 2; i++)
        inv_freq[i] = (float)pow(500000, -2.0 * i / rotary);
    qr_rope_table table = {
        .inv_freq = inv_freq, .rotary_dim = rotary, .scale = 1.25f, .interleaved = interleaved};
    qr_device *device = open_device("auto", 2);
    assert_int_equal(qr_rope_prepare(device, &table, 262144, NULL), QR_OK);
    int32_t positions[] = {0, 1, 7, 131071, 262143, 7, 4096};
    enum { HEADS = 2 };
    float x[7 * HEADS * 128], before[7 * HEADS * 128];
    uint64_t rng = 5;
    for (size_t i = 0; i < QR_COUNT_OF(x); i++)
        before[i] = x[i] = number(&rng, 1);
    device->backend->rope(device, tensor(x, 7, HEADS * dim, HEADS * 128), dim, &table, positions);
    for (int row = 0; row < 7; row++)
        for (int head = 0; head < HEADS; head++)
            for (int32_t i = 0; i < rotary / 2; i++) {
                int32_t a = row * HEADS * 128 + head * dim + (interleaved ? 2 * i : i),
                        b = a + (interleaved ? 1 : rotary / 2);
                double angle = (double)positions[row] * (double)inv_freq[i];
                double c = 1.25 * cos(angle), s = 1.25 * sin(angle);
                assert_near(x[a], before[a] * c - before[b] * s, 0, 4e-7);
                assert_near(x[b], before[b] * c + before[a] * s, 0, 4e-7);
            }
    for (int row = 0; row < 7; row++)
        for (int32_t i = rotary; i < dim; i++)
            assert_true(x[row * HEADS * 128 + i] == before[row * HEADS * 128 + i]);
    qr_rope_release(device, &table);
    qr_device_close(device);
}

static void rope_turns_pairs_by_position_times_frequency(void **state)
{
    (void)state;
    check_rope(false, 64, 64);
    check_rope(true, 64, 64);
    check_rope(false, 128, 32);
    check_rope(true, 24, 24);
    check_rope(false, 10, 6);
}

static void rows_are_the_same_alone_and_among_many_threads(void **state)
{
    (void)state;
    enum { ROWS = 300, COLS = 333 };
    qr_device *one = open_device("auto", 1), *three = open_device("auto", 3);
    float *x = qr_calloc(ROWS * COLS, sizeof(float)), *y = qr_calloc(ROWS * COLS, sizeof(float));
    float *a = qr_calloc(ROWS * COLS, sizeof(float)), *b = qr_calloc(ROWS * COLS, sizeof(float)), w[COLS];
    uint64_t rng = 11;
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = number(&rng, 2);
    for (int i = 0; i < COLS; i++)
        w[i] = number(&rng, 1);
    for (int row = 0; row < ROWS; row++)
        one->backend->rmsnorm(one, tensor(x + row * COLS, 1, COLS, COLS), w, 1e-6f,
                              tensor(a + row * COLS, 1, COLS, COLS));
    three->backend->rmsnorm(three, tensor(x, ROWS, COLS, COLS), w, 1e-6f, tensor(b, ROWS, COLS, COLS));
    assert_memory_equal(a, b, ROWS * COLS * sizeof(float));
    memcpy(y, x, ROWS * COLS * sizeof(float));
    three->backend->act_mul(three, tensor(b, ROWS, COLS, COLS), tensor(y, ROWS, COLS, COLS), QR_ACT_SILU);
    for (int row = 0; row < ROWS; row++)
        one->backend->act_mul(one, tensor(a + row * COLS, 1, COLS, COLS),
                              tensor(x + row * COLS, 1, COLS, COLS), QR_ACT_SILU);
    assert_memory_equal(a, b, ROWS * COLS * sizeof(float));
    int32_t ids[] = {299, 0, 17};
    three->backend->gather(three, tensor(x, ROWS, COLS, COLS), ids, tensor(b, 3, COLS, COLS));
    for (int i = 0; i < 3; i++)
        assert_memory_equal(b + i * COLS, x + ids[i] * COLS, COLS * sizeof(float));
    qr_free(x);
    qr_free(y);
    qr_free(a);
    qr_free(b);
    qr_device_close(one);
    qr_device_close(three);
}

static void head_norm_norms_each_head(void **state)
{
    (void)state;
    qr_device *device = open_device("auto", 1);
    float x[2 * 24], w[8], before[2 * 24];
    uint64_t rng = 3;
    for (int i = 0; i < 48; i++)
        before[i] = x[i] = number(&rng, 4);
    for (int i = 0; i < 8; i++)
        w[i] = number(&rng, 1);
    device->backend->head_norm(device, tensor(x, 2, 24, 24), 8, w, 1e-6f);
    for (int head = 0; head < 6; head++) {
        double sum = 0;
        for (int i = 0; i < 8; i++)
            sum += (double)before[head * 8 + i] * before[head * 8 + i];
        for (int i = 0; i < 8; i++)
            assert_near(x[head * 8 + i], before[head * 8 + i] * w[i] / sqrt(sum / 8 + 1e-6), 1e-6, 0);
    }
    qr_device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_matches_double_arithmetic),
        cmocka_unit_test(activations_match_double_arithmetic),
        cmocka_unit_test(conversions_round_to_nearest_even_and_saturate),
        cmocka_unit_test(rope_turns_pairs_by_position_times_frequency),
        cmocka_unit_test(rows_are_the_same_alone_and_among_many_threads),
        cmocka_unit_test(head_norm_norms_each_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
