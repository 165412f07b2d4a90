// links: qr_base
/* base/utf8, hash, map, rng: against published vectors and against plain models. */
#include "support/cmocka.h"

#include <stdio.h>

#include "base/cpuid.h"
#include "base/hash.h"
#include "base/map.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256_blocks.h"
#include "base/utf8.h"

/* ---- UTF-8 ----------------------------------------------------------------------------------------- */

static void every_code_point_encodes_and_decodes(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0x10FFFF; code++) {
        char bytes[4];
        uint32_t back = 0;
        size_t len = qr_utf8_encode(code, bytes);
        assert_int_equal(qr_utf8_decode(bytes, len, &back), len);
        bool surrogate = code >= 0xD800 && code <= 0xDFFF;
        assert_int_equal(back, surrogate ? QR_UTF8_REPLACEMENT : code);
        for (size_t cut = 1; cut < len; cut++) { /* a cut character is neither valid nor ended */
            assert_int_equal(qr_utf8_decode(bytes, cut, &back), 0);
            assert_int_equal(qr_utf8_complete_prefix(bytes, cut), 0);
            assert_int_equal(qr_utf8_invalid_length(bytes, cut), cut);
        }
        assert_int_equal(qr_utf8_complete_prefix(bytes, len), len);
    }
    char bytes[4];
    assert_int_equal(qr_utf8_encode(0x110000, bytes), 3);
    assert_memory_equal(bytes, "\xEF\xBF\xBD", 3);
}

static void ill_formed_sequences_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xC0\xAF",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "\xC3(",
                                      "\xE2\x82(",
                                      "\xF0\x9F\x98("};
    for (size_t i = 0; i < QR_COUNT_OF(bad); i++) {
        uint32_t code;
        assert_int_equal(qr_utf8_decode(bad[i], strlen(bad[i]), &code), 0);
        assert_int_equal(qr_utf8_validate(bad[i], strlen(bad[i])), 0);
    }
    assert_int_equal(qr_utf8_validate("plain ascii then \xE2\x82\xAC and \x80", 26), 25);
    /* Unicode standard, table 3-8: maximal subparts. */
    assert_int_equal(qr_utf8_invalid_length("\xC0\xAF", 2), 1);
    assert_int_equal(qr_utf8_invalid_length("\xE2\x82(", 3), 2);
    assert_int_equal(qr_utf8_invalid_length("\xF0\x9F\x98(", 4), 3);
    assert_int_equal(qr_utf8_invalid_length("\xED\xA0\x80", 3), 1);
}

static void a_stream_is_cut_only_between_characters(void **state)
{
    (void)state;
    const char text[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";
    const size_t expected[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11};
    for (size_t len = 0; len < QR_COUNT_OF(expected); len++)
        assert_int_equal(qr_utf8_complete_prefix(text, len), expected[len]);
    assert_int_equal(qr_utf8_complete_prefix("a\xFF", 2), 2); /* nothing can complete it */
    assert_int_equal(qr_utf8_complete_prefix("\x80\x80\x80\x80", 4), 4);
    assert_int_equal(qr_utf8_complete_prefix("\xE0\x80", 2), 2); /* overlong: ended, invalid */
}

/* ---- SHA-256 --------------------------------------------------------------------------------------- */

static void digest_hex(const void *data, size_t bytes, size_t step, char hex[65])
{
    qr_sha256 sha;
    uint8_t digest[32];
    qr_sha256_init(&sha);
    for (size_t at = 0; at < bytes; at += step)
        qr_sha256_update(&sha, (const char *)data + at, QR_MIN(step, bytes - at));
    qr_sha256_final(&sha, digest);
    qr_sha256_hex(digest, hex);
}

static void sha256_gives_the_published_digests(void **state)
{
    (void)state;
    char hex[65];
    digest_hex("", 0, 1, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    digest_hex("abc", 3, 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    digest_hex(two, strlen(two), 5, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = qr_alloc(1000000);
    memset(million, 'a', 1000000);
    digest_hex(million, 1000000, 997, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    char whole[65];
    for (size_t bytes = 0; bytes < 300; bytes++) {
        digest_hex(million, bytes, 300, whole);
        digest_hex(million, bytes, 1 + bytes % 70, hex);
        assert_string_equal(hex, whole);
    }
    qr_free(million);
}

static void the_sha_instructions_agree_with_plain_c(void **state)
{
    (void)state;
#if defined(__x86_64__)
    if (!qr_cpu_detect()->sha)
        skip(); /* this CPU has no SHA instructions */
    uint64_t seed = 1;
    for (int round = 0; round < 200; round++) {
        uint32_t a[8], b[8];
        uint8_t data[64 * 3];
        for (size_t i = 0; i < sizeof(data); i++)
            data[i] = (uint8_t)qr_rng_next(&seed);
        for (int i = 0; i < 8; i++)
            a[i] = b[i] = (uint32_t)qr_rng_next(&seed);
        qr_sha256_blocks_generic(a, data, 3);
        qr_sha256_blocks_x86(b, data, 3);
        assert_memory_equal(a, b, sizeof(a));
    }
#endif
}

static void the_table_hash_spreads_and_sees_every_byte(void **state)
{
    (void)state;
    uint8_t data[40] = {0};
    for (size_t len = 0; len <= 40; len++) {
        uint64_t base = qr_hash64(data, len, 0);
        assert_int_equal(qr_hash64(data, len, 0), base);
        assert_true(qr_hash64(data, len, 1) != base);
        if (len < 40)
            assert_true(qr_hash64(data, len + 1, 0) != base);
        for (size_t i = 0; i < len; i++) {
            data[i] ^= 1;
            assert_true(qr_hash64(data, len, 0) != base);
            data[i] ^= 1;
        }
    }
    int buckets[256] = {0};
    for (uint32_t i = 0; i < 65536; i++)
        buckets[qr_hash64(&i, sizeof(i), 0) & 255]++;
    for (int i = 0; i < 256; i++)
        assert_in_range(buckets[i], 150, 370); /* mean 256, sigma 16 */
}

static void secrets_compare_without_a_shortcut(void **state)
{
    (void)state;
    assert_true(qr_equal_constant_time("secret", 6, "secret", 6));
    assert_false(qr_equal_constant_time("secres", 6, "secret", 6));
    assert_false(qr_equal_constant_time("secret", 6, "secre", 5));
    assert_false(qr_equal_constant_time("secretsecret", 12, "secret", 6));
    assert_false(qr_equal_constant_time("", 0, "secret", 6));
    assert_false(qr_equal_constant_time("x", 1, "", 0));
    assert_true(qr_equal_constant_time("", 0, "", 0));
}

/* ---- Maps ------------------------------------------------------------------------------------------ */

static void a_string_map_finds_what_was_added(void **state)
{
    (void)state;
    enum { COUNT = 5000 };
    char(*keys)[16] = qr_calloc(COUNT, sizeof(*keys));
    qr_str_map map;
    qr_str_map_init(&map, 10);
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(keys[i], sizeof(keys[i]), "key %u", (unsigned)i);
        assert_true(qr_str_map_add(&map, qr_str_of(keys[i]), i));
    }
    assert_false(qr_str_map_add(&map, QR_STR("key 7"), 99)); /* there already: unchanged */
    uint32_t value = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_true(qr_str_map_get(&map, qr_str_of(keys[i]), &value));
        assert_int_equal(value, i);
    }
    assert_false(qr_str_map_get(&map, QR_STR("key"), &value));
    qr_str_map_set(&map, QR_STR("key 7"), 99);
    assert_true(qr_str_map_get(&map, QR_STR("key 7"), &value));
    assert_int_equal(value, 99);
    assert_true(qr_str_map_add(&map, QR_STR(""), 1)); /* an empty key is a key */
    assert_false(qr_str_map_add(&map, qr_str_of(NULL), 2));
    assert_int_equal(map.count, COUNT + 1);
    qr_str_map_release(&map);
    qr_free(keys);
}

static void an_empty_map_answers_no(void **state)
{
    (void)state;
    qr_str_map strings = {0};
    qr_u64_map numbers = {0};
    uint32_t value;
    uint64_t wide;
    assert_false(qr_str_map_get(&strings, QR_STR("x"), &value));
    assert_false(qr_u64_map_get(&numbers, 1, &wide));
    assert_false(qr_u64_map_remove(&numbers, 1));
    qr_u64_map_set(&numbers, 1, 2);
    assert_true(qr_u64_map_get(&numbers, 1, &wide));
    qr_u64_map_release(&numbers);
    qr_str_map_release(&strings);
}

static void a_number_map_agrees_with_an_array_under_random_use(void **state)
{
    (void)state;
    enum { KEYS = 1000 };
    uint64_t model[KEYS] = {0}; /* 0: absent */
    qr_u64_map map;
    qr_u64_map_init(&map, KEYS);
    uint64_t seed = 42, before = qr_alloc_count();
    for (int step = 1; step < 200000; step++) {
        uint64_t key = qr_rng_next(&seed) % KEYS, value = 0;
        uint64_t spread = key * UINT64_C(0x100000001); /* keys that share low bits */
        switch (qr_rng_next(&seed) % 3) {
        case 0:
            qr_u64_map_set(&map, spread, (uint64_t)step);
            model[key] = (uint64_t)step;
            break;
        case 1:
            assert_int_equal(qr_u64_map_remove(&map, spread), model[key] != 0);
            model[key] = 0;
            break;
        default:
            assert_int_equal(qr_u64_map_get(&map, spread, &value), model[key] != 0);
            assert_int_equal(value, model[key]);
        }
    }
    size_t count = 0;
    for (int i = 0; i < KEYS; i++)
        count += model[i] != 0;
    assert_int_equal(map.count, count);
    assert_int_equal(qr_alloc_count(), before); /* within its expected size it takes no memory */
    qr_u64_map_release(&map);
}

/* ---- Random numbers -------------------------------------------------------------------------------- */

static void philox_gives_the_known_answers(void **state)
{
    (void)state;
    /* Random123's kat_vectors, philox4x32 with 10 rounds. */
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < QR_COUNT_OF(known); i++) {
        uint32_t out[4];
        qr_philox(out, known[i].counter, known[i].key);
        assert_memory_equal(out, known[i].expected, sizeof(out));
    }
}

static void uniform_numbers_depend_on_every_part_of_their_key(void **state)
{
    (void)state;
    double base = qr_rng_uniform(1, 2, 3, QR_RNG_SAMPLE);
    assert_true(base == qr_rng_uniform(1, 2, 3, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(2, 2, 3, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(1 | UINT64_C(1) << 40, 2, 3, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(1, 3, 3, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(1, 2, 4, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(1, 2, 3 | UINT64_C(1) << 40, QR_RNG_SAMPLE));
    assert_true(base != qr_rng_uniform(1, 2, 3, QR_RNG_TEST));
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = qr_rng_uniform(7, 0, i, QR_RNG_TEST);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(sum / 10000 > 0.48 && sum / 10000 < 0.52);
    assert_true(qr_rng_system() != qr_rng_system());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_encodes_and_decodes),
        cmocka_unit_test(ill_formed_sequences_are_refused),
        cmocka_unit_test(a_stream_is_cut_only_between_characters),
        cmocka_unit_test(sha256_gives_the_published_digests),
        cmocka_unit_test(the_sha_instructions_agree_with_plain_c),
        cmocka_unit_test(the_table_hash_spreads_and_sees_every_byte),
        cmocka_unit_test(secrets_compare_without_a_shortcut),
        cmocka_unit_test(a_string_map_finds_what_was_added),
        cmocka_unit_test(an_empty_map_answers_no),
        cmocka_unit_test(a_number_map_agrees_with_an_array_under_random_use),
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(uniform_numbers_depend_on_every_part_of_their_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
