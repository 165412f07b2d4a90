// links: qr_backend qr_quant qr_tensor qr_base
/* Scratch, planning, accounting, KV groups and devices: what ops.c and backend.c do themselves. */
#include <stdio.h>

#include "backend/backend.h"
#include "base/mem.h"
#include "support/cmocka.h"

static qr_device *open_device(int threads)
{
    qr_device *device = NULL;
    assert_int_equal(
        qr_device_open(&(qr_device_options){.device = "auto", .threads = threads}, &device, NULL), QR_OK);
    return device;
}

static void unknown_devices_and_thread_counts_are_refused(void **state)
{
    (void)state;
    qr_device *device = NULL;
    qr_error err = {0};
    assert_int_equal(qr_device_open(&(qr_device_options){.device = "tpu"}, &device, &err), QR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "tpu"));
    assert_int_equal(qr_device_open(&(qr_device_options){.threads = -1}, &device, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "-1"));
    assert_int_equal(qr_device_open(&(qr_device_options){.isa = "mmx"}, &device, &err), QR_INVALID_ARGUMENT);
    assert_null(device);
    qr_device_close(NULL);
}

static void a_device_describes_itself(void **state)
{
    (void)state;
    qr_device *device = open_device(2);
    assert_string_equal(qr_device_name(device), "cpu");
    assert_non_null(strstr(qr_device_describe(device), "2 threads"));
    assert_int_equal(qr_device_block_size(device), 16);
    assert_int_equal(qr_device_batched_tokens(device), 512);
    assert_true(qr_device_memory_available(device, 1) > 0);
    qr_device_close(device);
}

static void layers_are_grouped_by_window(void **state)
{
    (void)state;
    qr_kv_spec specs[4] = {{.window = 0}, {.window = 8}, {.window = 0}, {.window = 8}};
    int32_t windows[QR_KV_GROUPS_MAX] = {-1, -1};
    assert_int_equal(qr_kv_groups(specs, 4, windows), 2);
    assert_int_equal(windows[0], 0);
    assert_int_equal(windows[1], 8);
    assert_int_equal(qr_kv_groups(specs, 1, windows), 1);
    specs[3].window = 9;
    assert_int_equal(qr_kv_groups(specs, 4, windows), -1);
}

static void kv_bytes_and_groups_follow_the_specs(void **state)
{
    (void)state;
    qr_kv_spec specs[2] = {{.n_kv_heads = 3, .head_dim = 64}, {.n_kv_heads = 1, .head_dim = 8, .window = 4}};
    assert_int_equal(qr_kv_block_bytes(specs, 2, 16, QR_DTYPE_F16), 2 * 16 * 2 * (3 * 64 + 8));
    assert_int_equal(qr_kv_block_bytes(specs, 1, 8, QR_DTYPE_F32), 2 * 8 * 4 * 3 * 64);
    qr_device *device = open_device(1);
    qr_kv *kv = NULL;
    qr_error err = {0};
    assert_int_equal(qr_kv_open(device, specs, 2, 3, 12, QR_DTYPE_F16, &kv, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "12"));
    specs[0].n_kv_heads = 1 << 20;
    specs[0].head_dim = 4096;
    assert_int_equal(qr_kv_open(device, specs, 2, INT32_MAX, 16, QR_DTYPE_F32, &kv, &err), QR_OUT_OF_MEMORY);
    specs[0] = (qr_kv_spec){.n_kv_heads = 3, .head_dim = 64};
    assert_int_equal(qr_kv_open(device, specs, 2, 3, 16, QR_DTYPE_F16, &kv, &err), QR_OK);
    assert_int_equal(qr_kv_group_of(kv, 0), 0);
    assert_int_equal(qr_kv_group_of(kv, 1), 1);
    qr_kv_close(kv);
    qr_kv_close(NULL);
    qr_device_close(device);
}

/* A tiny step with every op that takes scratch; the same code plans and runs. */
typedef struct tiny_step {
    qr_weight embed, matrix;
    const float *norm;
    float numbers[4 * 32], vector[32];
} tiny_step;

static void tiny_open(tiny_step *t, qr_device *device)
{
    for (int i = 0; i < 4 * 32; i++)
        t->numbers[i] = (float)(i % 11) - 5;
    for (int i = 0; i < 32; i++)
        t->vector[i] = 1;
    qr_weight weight = {.format = QR_FORMAT_f32,
                        .rows = 4,
                        .cols = 32,
                        .part = {{t->numbers, sizeof(t->numbers)}},
                        .name = "w"};
    qr_weight norm = {.format = QR_FORMAT_f32,
                      .rows = 1,
                      .cols = 32,
                      .part = {{t->vector, sizeof(t->vector)}},
                      .name = "n"};
    t->embed = t->matrix = weight;
    qr_prepare_options options = {.compute = QR_DTYPE_F32, .use_as_embedding = true};
    assert_int_equal(qr_weight_prepare(device, &t->embed, &options, NULL), QR_OK);
    options.use_as_embedding = false;
    assert_int_equal(qr_weight_prepare(device, &t->matrix, &options, NULL), QR_OK);
    assert_int_equal(qr_vector_prepare(device, &norm, &t->norm, NULL), QR_OK);
}

static qr_tensor tiny_run(const tiny_step *t, qr_ops *ops)
{
    qr_tensor x = qr_op_embed(ops, &t->embed);
    size_t mark = qr_ops_mark(ops);
    qr_tensor h = qr_op_rmsnorm(ops, x, t->norm, 1e-6f), y[2];
    qr_op_linear(ops, h, (const qr_weight *const[]){&t->matrix, &t->matrix},
                 (const float *const[]){NULL, t->vector}, 2, y);
    qr_ops_release(ops, mark);
    return qr_op_gather(ops, x, (const int32_t[]){2, 0}, 2);
}

static void a_plan_is_exactly_what_a_step_takes(void **state)
{
    (void)state;
    qr_device *device = open_device(1);
    tiny_step t;
    tiny_open(&t, device);
    int32_t ids[3] = {3, 0, 2}, positions[3] = {0, 1, 2};
    qr_batch batch = {.n_tokens = 3, .n_seqs = 1, .token_ids = ids, .positions = positions};
    qr_ops *plan = qr_ops_plan_new(device), *ops = NULL;
    qr_ops_begin(plan, &batch);
    tiny_run(&t, plan);
    assert_int_equal(qr_ops_end(plan, NULL), QR_OK);
    size_t bytes = qr_ops_scratch_peak(plan);
    assert_true(bytes >= 3 * 32 * 4 * 2 + 3 * 4 * 4 * 2 && bytes % 64 == 0);
    qr_ops_close(plan);

    assert_int_equal(qr_ops_open(device, NULL, bytes, &ops, NULL), QR_OK);
    qr_ops_begin(ops, &batch);
    assert_ptr_equal(qr_ops_batch(ops), &batch);
    qr_tensor y = tiny_run(&t, ops);
    assert_int_equal(qr_ops_scratch_peak(ops), bytes);
    assert_true((uintptr_t)y.data % 64 == 0);
    assert_int_equal(y.rows, 2);
    assert_memory_equal(y.data, t.numbers + 2 * 32, 32 * sizeof(float)); /* row 2 has id 2 */
    assert_memory_equal((float *)y.data + 32, t.numbers + 3 * 32, 32 * sizeof(float));
    uint64_t moved = 0, flops = 0;
    qr_ops_work(ops, &moved, &flops);
    assert_int_equal(flops, 2 * (2 * 3 * 4 * 32));
    assert_true(moved >= 2 * 4 * 32 * 4);
    assert_int_equal(qr_ops_end(ops, NULL), QR_OK);
    qr_ops_begin(ops, &batch); /* a new step starts at nothing */
    qr_ops_work(ops, &moved, &flops);
    assert_int_equal(moved + flops + qr_ops_mark(ops), 0);
    qr_ops_end(ops, NULL);
    qr_ops_close(ops);
    qr_weight_release(device, &t.embed);
    qr_weight_release(device, &t.matrix);
    qr_device_close(device);
}

static void steps_take_no_heap_memory(void **state)
{
    (void)state;
    qr_device *device = open_device(2);
    tiny_step t;
    tiny_open(&t, device);
    int32_t ids[3] = {3, 0, 2}, positions[3] = {0, 1, 2};
    qr_batch batch = {.n_tokens = 3, .n_seqs = 1, .token_ids = ids, .positions = positions};
    qr_ops *ops = NULL;
    assert_int_equal(qr_ops_open(device, NULL, 1 << 16, &ops, NULL), QR_OK);
    uint64_t before = qr_alloc_count();
    for (int i = 0; i < 3; i++) {
        qr_ops_begin(ops, &batch);
        tiny_run(&t, ops);
        qr_ops_end(ops, NULL);
    }
    assert_int_equal(qr_alloc_count(), before);
    qr_ops_close(ops);
    qr_weight_release(device, &t.embed);
    qr_weight_release(device, &t.matrix);
    qr_device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_devices_and_thread_counts_are_refused),
        cmocka_unit_test(a_device_describes_itself),
        cmocka_unit_test(layers_are_grouped_by_window),
        cmocka_unit_test(kv_bytes_and_groups_follow_the_specs),
        cmocka_unit_test(a_plan_is_exactly_what_a_step_takes),
        cmocka_unit_test(steps_take_no_heap_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
