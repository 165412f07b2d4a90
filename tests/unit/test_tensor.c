// links: qr_tensor
/* Element types: names, sizes, conversions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "support/cmocka.h"
#include "tensor/dtype.h"

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static void every_half_survives_the_way_to_float_and_back(void **state)
{
    (void)state;
    for (uint32_t x = 0; x < 65536; x++) {
        float f = qr_f16_to_f32((uint16_t)x);
        uint16_t back = qr_f32_to_f16(f);
        if (isnan(f))
            assert_true((back & 0x7c00) == 0x7c00 && (back & 0x3ff) != 0);
        else
            assert_int_equal(back, x);
    }
}

static void a_half_is_sign_exponent_and_mantissa(void **state)
{
    (void)state;
    for (uint32_t x = 0; x < 0x7c00; x++) { /* the definition, in double */
        int exponent = (int)(x >> 10);
        double mantissa = (double)(x & 0x3ff);
        double want = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
        assert_true((double)qr_f16_to_f32((uint16_t)x) == want);
        assert_true((double)qr_f16_to_f32((uint16_t)(x | 0x8000)) == -want);
    }
    assert_true(qr_f16_to_f32(0x7c00) == INFINITY);
    assert_true(qr_f16_to_f32(0xfc00) == -INFINITY);
    assert_true(isnan(qr_f16_to_f32(0x7e00)));
}

/* The nearest of the two halves around f, ties to the even one. */
static void float_to_half_rounds_to_nearest_even(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < 200000; i++) {
        uint32_t x = (uint32_t)qr_rng_next(&seed) % 0x7bff; /* a finite half and its successor */
        double low = (double)qr_f16_to_f32((uint16_t)x), high = (double)qr_f16_to_f32((uint16_t)(x + 1));
        double middle = (low + high) / 2;
        float f = float_of(bits_of((float)low) + (uint32_t)(qr_rng_next(&seed) % 0x2001));
        if (i % 4 == 0)
            f = (float)middle;
        if ((double)f > high)
            f = (float)high;
        uint16_t want =
            (double)f < middle || ((double)f == middle && x % 2 == 0) ? (uint16_t)x : (uint16_t)(x + 1);
        assert_int_equal(qr_f32_to_f16(f), want);
        assert_int_equal(qr_f32_to_f16(-f), want | 0x8000);
    }
}

static void half_overflow_underflow_and_nan_have_their_patterns(void **state)
{
    (void)state;
    assert_int_equal(qr_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(qr_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(qr_f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(qr_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(qr_f32_to_f16(0x1p-25f), 0);        /* a tie: to even */
    assert_int_equal(qr_f32_to_f16(0x1.000002p-25f), 1); /* above the tie */
    assert_int_equal(qr_f32_to_f16(-0.0f), 0x8000);
    assert_true(isnan(qr_f16_to_f32(qr_f32_to_f16(NAN))));
    assert_true(isnan(qr_f16_to_f32(qr_f32_to_f16(float_of(0x7f800001)))));
}

static void bfloat16_rounds_to_nearest_even_and_keeps_nan(void **state)
{
    (void)state;
    assert_int_equal(qr_f32_to_bf16(1.0f), 0x3f80);
    assert_int_equal(qr_f32_to_bf16(float_of(0x3f808000)), 0x3f80); /* tie, even below */
    assert_int_equal(qr_f32_to_bf16(float_of(0x3f818000)), 0x3f82); /* tie, even above */
    assert_int_equal(qr_f32_to_bf16(float_of(0x3f808001)), 0x3f81);
    assert_int_equal(qr_f32_to_bf16(float_of(0x7f7fffff)), 0x7f80); /* the largest float rounds to infinity */
    assert_true(isnan(qr_bf16_to_f32(qr_f32_to_bf16(float_of(0x7f800001)))));
    for (uint32_t x = 0; x < 65536; x++)
        if (!isnan(qr_bf16_to_f32((uint16_t)x)))
            assert_int_equal(qr_f32_to_bf16(qr_bf16_to_f32((uint16_t)x)), x);
}

static void dtype_names_parse_in_their_spellings(void **state)
{
    (void)state;
    for (int i = 0; i < QR_DTYPE_COUNT; i++)
        assert_int_equal(qr_dtype_parse(qr_dtype_name((qr_dtype)i)), i);
    assert_int_equal(qr_dtype_parse("half"), QR_DTYPE_F16);
    assert_int_equal(qr_dtype_parse("float"), QR_DTYPE_F32);
    assert_int_equal(qr_dtype_parse("torch.bfloat16"), QR_DTYPE_BF16);
    assert_int_equal(qr_dtype_parse("float8"), -1);
    assert_int_equal(qr_dtype_parse("fp8"), QR_DTYPE_F8_E4M3);
    assert_int_equal(qr_dtype_parse(""), -1);
    assert_int_equal(qr_dtype_parse(NULL), -1);
    assert_int_equal(qr_dtype_bytes(QR_DTYPE_F8_E4M3), 1);
    assert_int_equal(qr_dtype_bytes(QR_DTYPE_F32), 4);
    assert_int_equal(qr_dtype_bytes(QR_DTYPE_BF16), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_survives_the_way_to_float_and_back),
        cmocka_unit_test(a_half_is_sign_exponent_and_mantissa),
        cmocka_unit_test(float_to_half_rounds_to_nearest_even),
        cmocka_unit_test(half_overflow_underflow_and_nan_have_their_patterns),
        cmocka_unit_test(bfloat16_rounds_to_nearest_even_and_keeps_nan),
        cmocka_unit_test(dtype_names_parse_in_their_spellings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
