// links: qr_quant
/* Formats: every block format against what the gguf package reads from the same bytes
 * (tests/golden/formats, made by tools/golden/make_formats.py). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "quant/block.h"
#include "quant/format.h"
#include "support/cmocka.h"
#include "tensor/dtype.h"

static void check_golden(qr_format format, const qr_buf *file)
{
    const qr_format_traits *traits = qr_format_get(format);
    int32_t head[3];
    assert_true(file->len > sizeof(head));
    memcpy(head, file->data, sizeof(head));
    assert_int_equal(head[0], traits->block);
    assert_int_equal(head[1], traits->bytes);
    size_t values = (size_t)head[0] * (size_t)head[2], block_bytes = (size_t)head[1] * (size_t)head[2];
    assert_int_equal(file->len, sizeof(head) + block_bytes + values * 4);
    float *out = qr_alloc(values * 4);
    traits->dequant_row(file->data + sizeof(head), out, (int64_t)values);
    const char *want = file->data + sizeof(head) + block_bytes;
    for (size_t i = 0; i < values; i++) {
        float w;
        memcpy(&w, want + i * 4, 4);
        /* numpy may add in another order: allow the last bits, relative to the block's terms. */
        if (fabsf(out[i] - w) > 1e-5f + 1e-5f * fabsf(w))
            fail_msg("%s value %zu: %g, expected %g", traits->name, i, (double)out[i], (double)w);
    }
    qr_free(out);
}

static void every_block_format_reads_as_ggml_does(void **state)
{
    (void)state;
    static const char *const names[] = {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"};
    static const uint32_t types[] = {8, 2, 3, 6, 7, 12, 13, 14};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/golden/formats/%s.bin", QR_TESTS_DIR, names[i]);
        qr_buf file = {0};
        assert_int_equal(qr_file_read(path, 1 << 20, &file, NULL), QR_OK);
        qr_format format = qr_format_by_ggml_type(types[i]);
        assert_int_not_equal(format, QR_FORMAT_NONE);
        check_golden(format, &file);
        qr_buf_release(&file);
    }
}

static void dense_formats_read_every_pattern(void **state)
{
    (void)state;
    for (uint32_t x = 0; x < 65536; x++) {
        uint16_t half = (uint16_t)x;
        float f16, bf16, w16 = qr_f16_to_f32(half), wb = qr_bf16_to_f32(half);
        qr_format_get(QR_FORMAT_f16)->dequant_row(&half, &f16, 1);
        qr_format_get(QR_FORMAT_bf16)->dequant_row(&half, &bf16, 1);
        assert_true(isnan(w16) ? isnan(f16) : memcmp(&f16, &w16, 4) == 0);
        assert_true(isnan(wb) ? isnan(bf16) : memcmp(&bf16, &wb, 4) == 0);
    }
    float f = -0.75f, out;
    qr_format_get(QR_FORMAT_f32)->dequant_row(&f, &out, 1);
    assert_true(out == f);
}

static void formats_are_found_by_both_containers_spelling(void **state)
{
    (void)state;
    assert_int_equal(qr_format_by_hf_dtype("F32", 3), QR_FORMAT_f32);
    assert_int_equal(qr_format_by_hf_dtype("BF16", 4), QR_FORMAT_bf16);
    assert_int_equal(qr_format_by_hf_dtype("F16", 3), QR_FORMAT_f16);
    assert_int_equal(qr_format_by_hf_dtype("", 0), QR_FORMAT_NONE);
    assert_int_equal(qr_format_by_hf_dtype("F3", 2), QR_FORMAT_NONE);
    assert_int_equal(qr_format_by_hf_dtype("I64", 3), QR_FORMAT_NONE);
    assert_int_equal(qr_format_by_ggml_type(0), QR_FORMAT_f32);
    assert_int_equal(qr_format_by_ggml_type(30), QR_FORMAT_bf16);
    assert_int_equal(qr_format_by_ggml_type(10), QR_FORMAT_NONE);
    assert_int_equal(qr_format_by_ggml_type(UINT32_MAX), QR_FORMAT_NONE);
    for (int i = 0; i < QR_FORMAT_COUNT; i++) {
        const qr_format_traits *t = qr_format_get((qr_format)i);
        assert_int_equal(qr_format_by_ggml_type((uint32_t)t->ggml_type), i);
        assert_true(t->block > 0 && t->bytes > 0 && t->name[0] != 0);
    }
}

static void row_bytes_count_whole_blocks(void **state)
{
    (void)state;
    assert_int_equal(qr_format_row_bytes(QR_FORMAT_q4_1, 576), 576 / 32 * 20);
    assert_int_equal(qr_format_row_bytes(QR_FORMAT_q6_k, 512), 420);
    assert_int_equal(qr_format_row_bytes(QR_FORMAT_bf16, 7), 14);
    assert_int_equal(qr_format_row_bytes(QR_FORMAT_q8_0, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_format_reads_as_ggml_does),
        cmocka_unit_test(dense_formats_read_every_pattern),
        cmocka_unit_test(formats_are_found_by_both_containers_spelling),
        cmocka_unit_test(row_bytes_count_whole_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
