// links: qr_loader
/* GGUF: metadata of every type, tensor infos, and one line for everything that can be wrong with a file. */
#include "loader/container.h"
#include "loader/gguf_image.h"
#include "support/cmocka.h"
#include "support/loader_images.h"

static qr_error error;

static qr_status parse(const qr_buf *image, qr_gguf **out)
{
    memset(&error, 0, sizeof(error));
    return qr_gguf_parse("f.gguf", (const uint8_t *)image->data, image->len, out, &error);
}

static void assert_says(const char *message)
{
    if (strstr(error.message, message) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, message);
    assert_non_null(strstr(error.message, "f.gguf"));
}

/* Parses, expects a refusal, frees the image. */
static void assert_refused(qr_buf *image, qr_status status, const char *message)
{
    qr_gguf *gguf;
    assert_int_equal(parse(image, &gguf), status);
    assert_says(message);
    qr_buf_release(image);
}

/* The same for what is found when tensors are added. */
static void assert_tensors_refused(qr_buf *image, const char *message)
{
    qr_gguf *gguf;
    assert_int_equal(parse(image, &gguf), QR_OK);
    qr_weights *weights = qr_weights_new("f.gguf", QR_CONTAINER_GGUF);
    assert_int_equal(qr_gguf_add_tensors(weights, gguf, "f.gguf", &error), QR_BAD_FILE);
    assert_says(message);
    qr_weights_close(weights);
    qr_gguf_close(gguf);
    qr_buf_release(image);
}

static void put_every_type(qr_buf *image)
{
    put_gguf_head(image, 3, 0, 14);
    put_gguf_key(image, "u8", 0), qr_buf_append(image, "\xff", 1);
    put_gguf_key(image, "i8", 1), qr_buf_append(image, "\xff", 1);
    put_gguf_key(image, "u16", 2), qr_buf_append(image, "\xff\xff", 2);
    put_gguf_key(image, "i16", 3), qr_buf_append(image, "\xfe\xff", 2);
    put_gguf_u32(image, "u32", UINT32_MAX);
    put_gguf_key(image, "i32", 5), put_u32(image, (uint32_t)-3);
    put_gguf_f32(image, "f32", 1.5f);
    put_gguf_key(image, "bool", 7), qr_buf_append(image, "\x01", 1);
    put_gguf_text(image, "str", "text");
    put_gguf_key(image, "u64", 10), put_u64(image, UINT64_MAX);
    put_gguf_key(image, "i64", 11), put_u64(image, (uint64_t)-4);
    double d = -2.5;
    put_gguf_key(image, "f64", 12), qr_buf_append(image, &d, 8);
    put_gguf_array(image, "strs", 8, 2), put_gguf_string(image, "x"), put_gguf_string(image, "");
    put_gguf_array(image, "ints", 5, 3), put_u32(image, 1), put_u32(image, (uint32_t)-2), put_u32(image, 3);
}

static void every_value_type_is_read(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_every_type(&image);
    qr_gguf *g;
    assert_int_equal(parse(&image, &g), QR_OK);
    uint64_t u;
    int64_t i;
    double f;
    bool b;
    qr_str s;
    assert_true(qr_gguf_u64(g, "u8", &u) && u == 255);
    assert_true(qr_gguf_i64(g, "i8", &i) && i == -1);
    assert_false(qr_gguf_u64(g, "i8", &u)); /* negative */
    assert_true(qr_gguf_u64(g, "u16", &u) && u == 65535);
    assert_true(qr_gguf_i64(g, "i16", &i) && i == -2);
    assert_true(qr_gguf_u64(g, "u32", &u) && u == UINT32_MAX);
    assert_true(qr_gguf_i64(g, "i32", &i) && i == -3);
    assert_true(qr_gguf_f64(g, "f32", &f) && f == 1.5);
    assert_true(qr_gguf_bool(g, "bool", &b) && b);
    assert_true(qr_gguf_str(g, "str", &s) && qr_str_equals(s, "text"));
    assert_true(qr_gguf_u64(g, "u64", &u) && u == UINT64_MAX);
    assert_false(qr_gguf_i64(g, "u64", &i)); /* does not fit */
    assert_true(qr_gguf_f64(g, "u64", &f) && f == 18446744073709551615.0);
    assert_true(qr_gguf_i64(g, "i64", &i) && i == -4);
    assert_true(qr_gguf_f64(g, "f64", &f) && f == -2.5);
    assert_true(qr_gguf_has(g, "f64") && !qr_gguf_has(g, "f6"));
    assert_false(qr_gguf_str(g, "u32", &s));
    assert_false(qr_gguf_bool(g, "u8", &b));
    assert_false(qr_gguf_u64(g, "none", &u));
    qr_gguf_close(g);
    qr_buf_release(&image);
}

static void arrays_are_read_by_element_type_and_exact_count(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_every_type(&image);
    qr_gguf *g;
    assert_int_equal(parse(&image, &g), QR_OK);
    qr_str strs[2];
    int32_t ints[3];
    float floats[3];
    assert_int_equal(qr_gguf_array_count(g, "strs"), 2);
    assert_int_equal(qr_gguf_array_count(g, "str"), -1);
    assert_true(qr_gguf_str_array(g, "strs", strs, 2));
    assert_true(qr_str_equals(strs[0], "x") && strs[1].len == 0);
    assert_true(qr_gguf_i32_array(g, "ints", ints, 3));
    assert_int_equal(ints[1], -2);
    assert_false(qr_gguf_i32_array(g, "ints", ints, 2));
    assert_false(qr_gguf_i32_array(g, "strs", ints, 2));
    assert_false(qr_gguf_f32_array(g, "ints", floats, 3));
    assert_false(qr_gguf_str_array(g, "ints", strs, 3));
    qr_gguf_close(g);
    qr_buf_release(&image);
}

static void metadata_prints_for_inspect(void **state)
{
    (void)state;
    qr_buf image = {0}, out = {0};
    put_every_type(&image);
    qr_gguf *g;
    assert_int_equal(parse(&image, &g), QR_OK);
    assert_int_equal(qr_gguf_count(g), 14);
    for (size_t i = 0; i < qr_gguf_count(g); i++) {
        qr_gguf_print_value(g, i, &out);
        qr_buf_append_char(&out, ' ');
    }
    assert_string_equal(out.data, "255 -1 65535 -2 4294967295 -3 1.5 true text 18446744073709551615 -4 -2.5 "
                                  "[2 x string] [3 x i32] ");
    assert_true(qr_str_equals(qr_gguf_key_at(g, 8), "str"));
    assert_int_equal(qr_gguf_key_at(g, 99).len, 0);
    qr_buf_release(&out);
    qr_gguf_close(g);
    qr_buf_release(&image);
}

static void nested_arrays_are_passed_over_to_a_depth(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_gguf_head(&image, 3, 0, 2);
    put_gguf_array(&image, "nested", 9, 2);
    put_u32(&image, 0), put_u64(&image, 2), qr_buf_append(&image, "ab", 2);
    put_u32(&image, 8), put_u64(&image, 1), put_gguf_string(&image, "z");
    put_gguf_u32(&image, "after", 7);
    qr_gguf *g;
    uint64_t u;
    assert_int_equal(parse(&image, &g), QR_OK);
    assert_int_equal(qr_gguf_array_count(g, "nested"), 2);
    assert_true(qr_gguf_u64(g, "after", &u) && u == 7);
    qr_gguf_close(g);
    qr_buf_release(&image);

    put_gguf_head(&image, 3, 0, 1);
    put_gguf_array(&image, "deep", 9, 1);
    for (int i = 0; i < 50; i++)
        put_u32(&image, 9), put_u64(&image, 1);
    assert_refused(&image, QR_BAD_FILE, "key deep (0 of 1): arrays nested too deeply");
}

static void every_truncation_of_the_metadata_is_refused(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_every_type(&image);
    for (size_t len = 0; len < image.len; len++) {
        qr_gguf *g;
        uint8_t *cut = qr_alloc(len); /* its own allocation, so that a sanitizer sees a read beyond it */
        memcpy(cut, image.data, len);
        assert_int_not_equal(qr_gguf_parse("f.gguf", cut, len, &g, &error), QR_OK);
        qr_free(cut);
    }
    qr_buf_release(&image);
}

static void bad_headers_are_refused(void **state)
{
    (void)state;
    qr_buf image = {0};
    qr_buf_append_cstr(&image, "GGUX");
    put_zeros(&image, 20);
    assert_refused(&image, QR_BAD_FILE, "not a GGUF file");
    put_gguf_head(&image, 1, 0, 0);
    assert_refused(&image, QR_UNSUPPORTED, "GGUF version 1; 2 and 3 are read");
    put_gguf_head(&image, 3u << 24, 0, 0);
    assert_refused(&image, QR_UNSUPPORTED, "big-endian");
    put_gguf_head(&image, 3, 0, UINT64_MAX);
    assert_refused(&image, QR_BAD_FILE, "18446744073709551615 keys");
    put_gguf_head(&image, 3, UINT64_MAX / 2, 0);
    assert_refused(&image, QR_BAD_FILE, "tensors in 24 bytes");
}

static void bad_keys_and_types_are_refused(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_gguf_head(&image, 3, 0, 2);
    put_gguf_u32(&image, "a", 1), put_gguf_u32(&image, "a", 2);
    assert_refused(&image, QR_BAD_FILE, "key a: is there twice");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_key(&image, "a", 13), put_u64(&image, 0);
    assert_refused(&image, QR_BAD_FILE, "key a (0 of 1): unknown value type (type 13)");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_array(&image, "a", 99, 0);
    assert_refused(&image, QR_BAD_FILE, "an array of unknown type");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_array(&image, "a", 4, UINT64_MAX / 2);
    assert_refused(&image, QR_BAD_FILE, "key a (0 of 1): cut off");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_array(&image, "a", 10, UINT64_MAX / 8 + 2); /* the byte count wraps */
    assert_refused(&image, QR_BAD_FILE, "cut off");
    put_gguf_head(&image, 3, 0, 1);
    put_u64(&image, UINT64_MAX);
    put_zeros(&image, 16);
    assert_refused(&image, QR_BAD_FILE, "key 0 of 1: cut off or too long");
}

static void tensors_come_with_pytorch_shapes(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_gguf_head(&image, 2, 2, 0);
    put_gguf_tensor(&image, "q", 2, 64, 3, 8, 0); /* Q8_0: 3 rows of 64 */
    put_gguf_tensor(&image, "n", 1, 5, 0, 0, 224);
    put_gguf_data(&image, 224 + 20);
    qr_gguf *g;
    assert_int_equal(parse(&image, &g), QR_OK);
    qr_weights *w = qr_weights_new("f.gguf", QR_CONTAINER_GGUF);
    assert_int_equal(qr_gguf_add_tensors(w, g, "f.gguf", &error), QR_OK);
    const qr_weights_entry *q = qr_weights_find(w, "q"), *n = qr_weights_find(w, "n");
    assert_int_equal(q->shape[0], 3);
    assert_int_equal(q->shape[1], 64);
    assert_int_equal(q->format, QR_FORMAT_q8_0);
    assert_int_equal(q->bytes, 3 * 2 * 34);
    assert_int_equal(q->data[1], 1);
    assert_int_equal(n->n_dims, 1);
    assert_int_equal(n->data[0], 224);
    qr_weights_close(w);
    qr_gguf_close(g);
    qr_buf_release(&image);
}

static void put_one_tensor(qr_buf *image, uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type,
                           uint64_t offset, size_t data_bytes)
{
    put_gguf_head(image, 3, 1, 0);
    put_gguf_tensor(image, "t", n_dims, d0, d1, type, offset);
    put_gguf_data(image, data_bytes);
}

static void bad_tensors_are_refused_with_their_values(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_one_tensor(&image, 2, 32, 4, 0, 0, 500);
    assert_tensors_refused(&image, "tensor t: offset 0, 512 bytes, but the file has 500 bytes of data");
    put_one_tensor(&image, 2, 32, 4, 0, 1ull << 63, 512);
    assert_tensors_refused(&image, "tensor t: offset 9223372036854775808");
    put_one_tensor(&image, 2, 32, 4, 0, 8, 600);
    assert_tensors_refused(&image, "offset 8 is not aligned to 32");
    put_one_tensor(&image, 2, 33, 4, 8, 0, 600);
    assert_tensors_refused(&image, "rows are not whole blocks: type 8, shape [4, 33]");
    put_one_tensor(&image, 1, 4, 0, 4, 0, 600);
    assert_tensors_refused(&image, "unknown type: type 4");
    put_one_tensor(&image, 1, 4, 0, UINT32_MAX, 0, 600);
    assert_tensors_refused(&image, "unknown type");
    put_one_tensor(&image, 2, 1ull << 32, 1ull << 32, 0, 0, 600);
    assert_tensors_refused(&image, "impossible shape: type 0, shape [4294967296, 4294967296]");
    put_one_tensor(&image, 1, UINT64_MAX, 0, 0, 0, 600);
    assert_tensors_refused(&image, "impossible shape");
    put_one_tensor(&image, 1, 1ull << 62, 0, 0, 0, 600);
    assert_tensors_refused(&image, "impossible shape");
}

static void overlapping_and_repeated_tensors_are_refused(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_gguf_head(&image, 3, 2, 0);
    put_gguf_tensor(&image, "a", 1, 9, 0, 0, 0);
    put_gguf_tensor(&image, "b", 1, 8, 0, 0, 32);
    put_gguf_data(&image, 64);
    assert_tensors_refused(&image, "tensors a and b overlap");
    put_gguf_head(&image, 3, 2, 0);
    put_gguf_tensor(&image, "a", 1, 8, 0, 0, 0);
    put_gguf_tensor(&image, "a", 1, 8, 0, 0, 32);
    put_gguf_data(&image, 64);
    assert_tensors_refused(&image, "tensor a: is there twice");
}

static void bad_tensor_infos_and_alignment_are_refused(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_one_tensor(&image, 0, 1, 0, 0, 0, 64);
    assert_refused(&image, QR_BAD_FILE, "tensor t: 0 dimensions");
    put_one_tensor(&image, 7, 1, 0, 0, 0, 64);
    assert_refused(&image, QR_BAD_FILE, "tensor t: 7 dimensions");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_u32(&image, "general.alignment", 24);
    assert_refused(&image, QR_BAD_FILE, "general.alignment: 24 is not a power of two");
    put_gguf_head(&image, 3, 0, 1);
    put_gguf_text(&image, "general.alignment", "x");
    assert_refused(&image, QR_BAD_FILE, "general.alignment: not an integer");
}

static void another_alignment_moves_the_data(void **state)
{
    (void)state;
    qr_buf image = {0};
    put_gguf_head(&image, 3, 1, 1);
    put_gguf_u32(&image, "general.alignment", 128);
    put_gguf_tensor(&image, "t", 1, 2, 0, 0, 128);
    put_zeros(&image, (128 - image.len % 128) % 128 + 128);
    put_f32(&image, 3.5f), put_f32(&image, 4.5f);
    qr_gguf *g;
    assert_int_equal(parse(&image, &g), QR_OK);
    qr_weights *w = qr_weights_new("f.gguf", QR_CONTAINER_GGUF);
    assert_int_equal(qr_gguf_add_tensors(w, g, "f.gguf", &error), QR_OK);
    float values[2];
    memcpy(values, qr_weights_find(w, "t")->data, 8);
    assert_true(values[0] == 3.5f && values[1] == 4.5f);
    qr_weights_close(w);
    qr_gguf_close(g);
    qr_buf_release(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_type_is_read),
        cmocka_unit_test(arrays_are_read_by_element_type_and_exact_count),
        cmocka_unit_test(metadata_prints_for_inspect),
        cmocka_unit_test(nested_arrays_are_passed_over_to_a_depth),
        cmocka_unit_test(every_truncation_of_the_metadata_is_refused),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_keys_and_types_are_refused),
        cmocka_unit_test(tensors_come_with_pytorch_shapes),
        cmocka_unit_test(bad_tensors_are_refused_with_their_values),
        cmocka_unit_test(overlapping_and_repeated_tensors_are_refused),
        cmocka_unit_test(bad_tensor_infos_and_alignment_are_refused),
        cmocka_unit_test(another_alignment_moves_the_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
