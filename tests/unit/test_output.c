/* Stop strings and published text: pure matching, and random texts cut into tokens at every place. */
#include <stdio.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/output.h"
#include "support/cmocka.h"

static qr_stop_match find(const char *text, size_t from, const char *a, const char *b)
{
    qr_str strings[2] = {qr_str_of(a), qr_str_of(b)};
    qr_stop_strings stops = {strings, b != NULL ? 2 : 1};
    return qr_stop_find(&stops, text, strlen(text), from);
}

static void a_stop_string_is_found_where_it_begins(void **state)
{
    (void)state;
    qr_stop_match m = find("one two three", 0, "two", NULL);
    assert_int_equal(m.index, 0);
    assert_int_equal(m.begin, 4);
    assert_int_equal(m.end, 7);
    assert_int_equal(find("one two three", 0, "tow", NULL).index, -1);
    assert_int_equal(find("", 0, "x", NULL).index, -1);
}

static void only_matches_that_end_in_new_text_count(void **state)
{
    (void)state;
    assert_int_equal(find("stop here", 4, "stop", NULL).index, -1); /* complete before the new text */
    assert_int_equal(find("stop here", 3, "stop", NULL).index, 0);  /* its last byte is new */
    assert_int_equal(find("stop stop", 4, "stop", NULL).begin, 5);
}

static void the_earliest_of_several_wins_then_the_first_listed(void **state)
{
    (void)state;
    assert_int_equal(find("a b c", 0, "c", "b").index, 1);
    assert_int_equal(find("abc", 0, "abc", "ab").index, 0);
    assert_int_equal(find("abc", 0, "ab", "abc").index, 0);
}

static size_t held(const char *text, const char *a, const char *b)
{
    qr_str strings[2] = {qr_str_of(a), qr_str_of(b)};
    qr_stop_strings stops = {strings, b != NULL ? 2 : 1};
    return qr_stop_held(&stops, text, strlen(text));
}

static void text_that_may_become_a_stop_string_is_held_back(void **state)
{
    (void)state;
    assert_int_equal(held("hello <|", "<|end|>", NULL), 2);
    assert_int_equal(held("hello <|x", "<|end|>", NULL), 0);
    assert_int_equal(held("aaa", "aab", NULL), 2);
    assert_int_equal(held("ab", "abcd", "bcd"), 2); /* the longest */
    assert_int_equal(held("xb", "abcd", "bcd"), 1);
    assert_int_equal(held("", "abc", NULL), 0);
    assert_int_equal(held("done", "done", NULL), 0); /* whole ones are found, not held */
}

/* Whatever the cuts: what is published before the end is a prefix of the final text, and never reaches into the match. */
static void any_cutting_publishes_the_same_text(void **state)
{
    (void)state;
    uint64_t random = 99;
    for (int round = 0; round < 20000; round++) {
        char text[48], stop_a[6], stop_b[6];
        int length = 1 + (int)(qr_rng_next(&random) % 40);
        for (int i = 0; i < length; i++)
            text[i] = (char)('a' + qr_rng_next(&random) % 3);
        int length_a = 1 + (int)(qr_rng_next(&random) % 5), length_b = 1 + (int)(qr_rng_next(&random) % 5);
        for (int i = 0; i < 5; i++) {
            stop_a[i] = (char)('a' + qr_rng_next(&random) % 3);
            stop_b[i] = (char)('a' + qr_rng_next(&random) % 3);
        }
        qr_str strings[2] = {{stop_a, (size_t)length_a}, {stop_b, (size_t)length_b}};
        qr_stop_strings stops = {strings, 2};
        size_t count = 0, published = 0;
        qr_stop_match match = {.index = -1};
        while (count < (size_t)length && match.index < 0) {
            size_t before = count;
            count = QR_MIN(count + 1 + qr_rng_next(&random) % 4, (size_t)length);
            match = qr_stop_find(&stops, text, count, before);
            if (match.index < 0) {
                size_t shown = count - qr_stop_held(&stops, text, count);
                assert_true(shown >= published);
                published = shown;
            }
        }
        if (match.index >= 0 && match.begin < published)
            fail_msg("%.*s: published %zu bytes, the stop string %.*s begins at %zu", length, text, published,
                     (int)strings[match.index].len, strings[match.index].data, match.begin);
    }
}

static void sorted_lists_are_searched(void **state)
{
    (void)state;
    const int32_t ids[] = {-3, 1, 5, 9};
    qr_id_list list = {ids, 4}, empty = {NULL, 0};
    for (int i = 0; i < 4; i++)
        assert_true(qr_id_list_has(&list, ids[i]));
    assert_false(qr_id_list_has(&list, 2));
    assert_false(qr_id_list_has(&list, 10));
    assert_false(qr_id_list_has(&empty, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_string_is_found_where_it_begins),
        cmocka_unit_test(only_matches_that_end_in_new_text_count),
        cmocka_unit_test(the_earliest_of_several_wins_then_the_first_listed),
        cmocka_unit_test(text_that_may_become_a_stop_string_is_held_back),
        cmocka_unit_test(any_cutting_publishes_the_same_text),
        cmocka_unit_test(sorted_lists_are_searched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
