// links: qr_kv
/* Prefix keys: what enters the hash chain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/hash.h"
#include "kv/prefix_key.h"

static const int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static void the_layout_of_a_key_is_what_the_header_says(void **state)
{
    (void)state;
    qr_prefix_key root, key;
    qr_prefix_key_root(&root, 0x0102030405060708u);
    uint8_t text[17 + 8];
    memcpy(text, "quire prefix root", 17);
    for (int i = 0; i < 8; i++)
        text[17 + i] = (uint8_t)(8 - i);
    qr_prefix_key expected;
    qr_sha256 sha;
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, text, sizeof(text));
    qr_sha256_final(&sha, expected.bytes);
    assert_memory_equal(root.bytes, expected.bytes, 32);

    const uint8_t tail[] = {3, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c', 2, 0, 0,
                            0, 0, 0, 0, 0, 1, 0, 0, 0,   2,   0,   0, 0};
    qr_prefix_key_next(&key, &root, ids, 2, "abc", 3);
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, root.bytes, 32);
    qr_sha256_update(&sha, tail, sizeof(tail));
    qr_sha256_final(&sha, expected.bytes);
    assert_memory_equal(key.bytes, expected.bytes, 32);
}

static void seed_parent_tokens_and_salt_all_change_a_key(void **state)
{
    (void)state;
    qr_prefix_key root, other_root, a, b;
    qr_prefix_key_root(&root, 0);
    qr_prefix_key_root(&other_root, 1);
    qr_prefix_key_next(&a, &root, ids, 4, NULL, 0);
    qr_prefix_key_next(&b, &other_root, ids, 4, NULL, 0);
    assert_false(qr_prefix_key_equal(&a, &b));
    qr_prefix_key_next(&b, &root, ids + 1, 4, NULL, 0);
    assert_false(qr_prefix_key_equal(&a, &b));
    qr_prefix_key_next(&b, &root, ids, 4, "s", 1);
    assert_false(qr_prefix_key_equal(&a, &b));
    qr_prefix_key_next(&b, &root, ids, 4, NULL, 0);
    assert_true(qr_prefix_key_equal(&a, &b));
}

static void a_salt_reaches_later_blocks_through_the_chain(void **state)
{
    (void)state;
    qr_prefix_key root, plain[2], salted[2];
    qr_prefix_key_root(&root, 0);
    qr_prefix_keys_extend(plain, 0, 2, &root, ids, 4, NULL, 0);
    qr_prefix_keys_extend(salted, 0, 2, &root, ids, 4, "salt", 4);
    assert_false(qr_prefix_key_equal(&plain[1], &salted[1]));
    qr_prefix_key next;
    qr_prefix_key_next(&next, &salted[0], ids + 4, 4, NULL, 0);
    assert_true(qr_prefix_key_equal(&next, &salted[1]));
}

static void extending_in_parts_gives_the_same_chain(void **state)
{
    (void)state;
    qr_prefix_key root, whole[4], parts[4];
    qr_prefix_key_root(&root, 9);
    qr_prefix_keys_extend(whole, 0, 4, &root, ids, 2, "x", 1);
    qr_prefix_keys_extend(parts, 0, 1, &root, ids, 2, "x", 1);
    qr_prefix_keys_extend(parts, 1, 3, &root, ids, 2, "x", 1);
    qr_prefix_keys_extend(parts, 3, 4, &root, ids, 2, "x", 1);
    assert_memory_equal(whole, parts, sizeof(whole));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_layout_of_a_key_is_what_the_header_says),
        cmocka_unit_test(seed_parent_tokens_and_salt_all_change_a_key),
        cmocka_unit_test(a_salt_reaches_later_blocks_through_the_chain),
        cmocka_unit_test(extending_in_parts_gives_the_same_chain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
