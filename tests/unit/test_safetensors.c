// links: qr_loader
/* safetensors: what is read, and one line for everything that can be wrong with a file. */
#include "loader/container.h"
#include "support/cmocka.h"
#include "support/loader_images.h"

static qr_error error;

static qr_buf image; /* of the last parse */

/* Parses an image made of header and data; the caller closes what it asked for. */
static qr_status parse(const char *header, size_t data_bytes, qr_weights **out)
{
    qr_buf_clear(&image);
    put_safetensors(&image, header, data_bytes);
    qr_weights *weights = qr_weights_new("test", QR_CONTAINER_SAFETENSORS);
    memset(&error, 0, sizeof(error));
    qr_status status =
        qr_safetensors_parse(weights, "f.safetensors", (const uint8_t *)image.data, image.len, &error);
    if (out != NULL && status == QR_OK)
        *out = weights;
    else
        qr_weights_close(weights);
    return status;
}

static int release_image(void **state)
{
    (void)state;
    qr_buf_release(&image);
    return 0;
}

static void assert_refused(const char *header, size_t data_bytes, const char *message)
{
    assert_int_equal(parse(header, data_bytes, NULL), QR_BAD_FILE);
    assert_int_equal(error.status, QR_BAD_FILE);
    if (strstr(error.message, message) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, message);
    assert_non_null(strstr(error.message, "f.safetensors"));
}

static void tensors_are_found_by_name_with_shape_and_bytes(void **state)
{
    (void)state;
    qr_weights *w;
    assert_int_equal(parse("{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                           "\"i\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[20,28]}}   ",
                           28, &w),
                     QR_OK);
    assert_int_equal(qr_weights_count(w), 3);
    const qr_weights_entry *b = qr_weights_find(w, "b");
    assert_int_equal(b->format, QR_FORMAT_bf16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 12);
    assert_int_equal(b->data[0], 8); /* the data counts up */
    assert_string_equal(b->file, "f.safetensors");
    assert_string_equal(b->dtype_name, "BF16");
    const qr_weights_entry *i = qr_weights_find(w, "i");
    assert_int_equal(i->format, QR_FORMAT_NONE);
    assert_int_equal(i->n_dims, 0);
    assert_null(qr_weights_find(w, "c"));
    assert_int_equal(qr_weights_bytes(w), 28);
    qr_weights_close(w);
}

static void names_are_unescaped(void **state)
{
    (void)state;
    qr_weights *w;
    assert_int_equal(
        parse("{\"a\\u00e9\\\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, &w), QR_OK);
    assert_non_null(qr_weights_find(w, "a\xc3\xa9\""));
    qr_weights_close(w);
}

static void an_empty_tensor_takes_no_bytes(void **state)
{
    (void)state;
    qr_weights *w;
    assert_int_equal(parse("{\"e\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[0,0]},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                           4, &w),
                     QR_OK);
    assert_int_equal(qr_weights_find(w, "e")->bytes, 0);
    qr_weights_close(w);
    assert_int_equal(parse("{}", 0, NULL), QR_OK);
}

static void a_short_or_lying_header_length_is_refused(void **state)
{
    (void)state;
    qr_weights *w = qr_weights_new("test", QR_CONTAINER_SAFETENSORS);
    uint8_t bytes[16] = {9, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    assert_int_equal(qr_safetensors_parse(w, "f", bytes, 7, &error), QR_BAD_FILE);
    assert_int_equal(qr_safetensors_parse(w, "f", bytes, 16, &error), QR_BAD_FILE);
    assert_non_null(strstr(error.message, "header of 9 bytes in a file of 16"));
    memset(bytes, 0xff, 8);
    assert_int_equal(qr_safetensors_parse(w, "f", bytes, 16, &error), QR_BAD_FILE);
    bytes[0] = 0;
    memset(bytes, 0, 8);
    assert_int_equal(qr_safetensors_parse(w, "f", bytes, 16, &error), QR_BAD_FILE); /* an empty header */
    qr_weights_close(w);
}

static void data_outside_the_file_overlapping_or_with_holes_is_refused(void **state)
{
    (void)state;
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
                   "lie outside the 4 bytes");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "lie outside");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "lie outside");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                   "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                   12, "tensor b: begins at byte 4 of the data, but the one before ends at 8");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                   "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
                   12, "leaving a hole after 4");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 9,
                   "9 bytes of data, but its tensors end at 4");
    assert_refused("{}", 1, "1 bytes of data");
}

static void shapes_must_fit_their_bytes_and_64_bits(void **state)
{
    (void)state;
    assert_refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
                   "8 bytes, but [3] F16 needs 6");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
                   "impossible shape [4294967296, 4294967296]");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1152921504606846976],\"data_offsets\":[0,0]}}", 0,
                   "impossible shape");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,0]}}", 0,
                   "impossible shape [-1]");
    assert_refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "impossible shape");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
                   "more than 8 dimensions");
}

static void mistyped_missing_and_unknown_fields_name_the_tensor(void **state)
{
    (void)state;
    assert_refused("{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
                   "tensor a: unknown dtype \"F33\"");
    assert_refused("{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
                   "tensor a: dtype is not a string");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":\"x\",\"data_offsets\":[0,4]}}", 4,
                   "tensor a: shape is not");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4,
                   "tensor a: shape is not");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
                   "data_offsets is not");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
                   "data_offsets is not");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
                   "tensor a: needs dtype, shape and data_offsets");
    assert_refused("{\"a\":[]}", 4, "tensor a: not an object");
    assert_refused("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "name is empty");
    assert_refused("{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "holds NUL");
}

static void a_tensor_that_is_there_twice_is_refused(void **state)
{
    (void)state;
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                   "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                   8, "tensor a: is there twice");
}

static void broken_json_is_refused_with_its_place(void **state)
{
    (void)state;
    assert_refused("{\"a\":", 0, "tensor a");
    assert_refused("[]", 0, "safetensors header");
    assert_refused("{} x", 0, "safetensors header");
    assert_refused("{\"a\":{\"dtype\":\"F32\"", 0, "tensor a");
    assert_refused("", 0, "safetensors header");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_found_by_name_with_shape_and_bytes),
        cmocka_unit_test(names_are_unescaped),
        cmocka_unit_test(an_empty_tensor_takes_no_bytes),
        cmocka_unit_test(a_short_or_lying_header_length_is_refused),
        cmocka_unit_test(data_outside_the_file_overlapping_or_with_holes_is_refused),
        cmocka_unit_test(shapes_must_fit_their_bytes_and_64_bits),
        cmocka_unit_test(mistyped_missing_and_unknown_fields_name_the_tensor),
        cmocka_unit_test(a_tensor_that_is_there_twice_is_refused),
        cmocka_unit_test(broken_json_is_refused_with_its_place),
    };
    return cmocka_run_group_tests(tests, NULL, release_image);
}
