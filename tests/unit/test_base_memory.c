// links: qr_base
/* base/status, mem, arena, str, vec, list: the things everything else stands on. */
#include "support/cmocka.h"

#include "base/arena.h"
#include "base/list.h"
#include "base/mem.h"
#include "base/status.h"
#include "base/str.h"
#include "base/utf8.h"
#include "base/vec.h"

static void a_failure_fills_the_callers_error(void **state)
{
    (void)state;
    qr_error err;
    assert_int_equal(qr_fail(&err, QR_BAD_FILE, "%s: %d of %d", "x.gguf", 3, 7), QR_BAD_FILE);
    assert_int_equal(err.status, QR_BAD_FILE);
    assert_string_equal(err.message, "x.gguf: 3 of 7");
    assert_int_equal(qr_fail(NULL, QR_BUSY, "nobody listens"), QR_BUSY);
    qr_error_prefix(&err, "loading %s", "it");
    assert_string_equal(err.message, "loading it: x.gguf: 3 of 7");
    assert_int_equal(err.status, QR_BAD_FILE);
    qr_error_prefix(NULL, "nobody");
}

static void an_error_message_is_one_line_and_never_half_a_character(void **state)
{
    (void)state;
    qr_error err;
    qr_fail(&err, QR_IO_ERROR, "%s", "two\nlines\tand\x01 more");
    assert_string_equal(err.message, "two lines and  more");
    char text[600];
    for (size_t i = 0; i < sizeof(text) - 3; i += 3)
        memcpy(text + i, "\xE2\x82\xAC", 4);
    for (size_t shift = 0; shift < 3; shift++) {
        qr_fail(&err, QR_IO_ERROR, "%.*s%s", (int)shift, "ab", text);
        size_t len = strlen(err.message);
        assert_true(len > 245 && len < sizeof(err.message));
        assert_int_equal(qr_utf8_validate(err.message, len), len);
    }
    qr_fail(&err, QR_IO_ERROR, "again: %s", err.message); /* its own message as an argument */
    assert_memory_equal(err.message, "again: ab", 9);
}

static void every_status_has_a_name_a_text_and_an_http_code(void **state)
{
    (void)state;
#define X(name, code, http, text)                          \
    assert_string_equal(qr_status_name(QR_##name), #name); \
    assert_string_equal(qr_status_text(QR_##name), text);  \
    assert_int_equal(qr_status_http(QR_##name), http);     \
    assert_int_equal(QR_##name, code);
    QR_STATUS_MAP(X)
#undef X
    assert_string_equal(qr_status_name((qr_status)999), "UNKNOWN");
    assert_int_equal(qr_status_http((qr_status)-1), 500);
}

static void sizes_multiply_and_add_without_overflow(void **state)
{
    (void)state;
    size_t out = 7;
    assert_true(qr_size_mul(6, 7, &out));
    assert_int_equal(out, 42);
    assert_false(qr_size_mul(SIZE_MAX / 2, 3, &out));
    assert_false(qr_size_add(SIZE_MAX, 1, &out));
    assert_int_equal(QR_ROUND_UP(65, 64), 128);
}

static void the_heap_counts_its_calls(void **state)
{
    (void)state;
    uint64_t before = qr_alloc_count();
    char *text = qr_strndup("hello world", 5);
    int *zeroed = qr_calloc(10, sizeof(int));
    text = qr_realloc(text, 100);
    assert_string_equal(text, "hello");
    assert_int_equal(zeroed[9], 0);
    assert_int_equal(qr_alloc_count() - before, 3);
    void *none = qr_alloc(0);
    assert_non_null(none);
    qr_free(none);
    qr_free(text);
    qr_free(zeroed);
    qr_free(NULL);
}

static void pages_are_zero_and_aligned_and_refused_when_absurd(void **state)
{
    (void)state;
    size_t bytes = ((size_t)5 << 20) + 123;
    unsigned char *pages = qr_pages_map(bytes, true);
    assert_non_null(pages);
    assert_int_equal((uintptr_t)pages % ((size_t)2 << 20), 0);
    assert_int_equal(pages[0] | pages[bytes - 1], 0);
    pages[bytes - 1] = 1;
    qr_pages_unmap(pages, bytes);
    pages = qr_pages_map(100, true); /* too small for a huge page */
    assert_non_null(pages);
    qr_pages_unmap(pages, 100);
    assert_null(qr_pages_map(0, false));
    assert_null(qr_pages_map(SIZE_MAX - 100, true));
    assert_null(qr_pages_map((size_t)1 << 62, false));
    qr_pages_unmap(NULL, 0);
}

static void an_arena_keeps_its_chunks_over_a_reset(void **state)
{
    (void)state;
    qr_arena arena;
    qr_arena_init(&arena, 4096);
    for (int round = 0; round < 3; round++) {
        uint64_t before = qr_alloc_count();
        for (int i = 0; i < 200; i++) {
            unsigned char *part = qr_arena_alloc(&arena, (size_t)i * 7 + 1);
            assert_int_equal((uintptr_t)part % 64, 0);
            memset(part, i, (size_t)i * 7 + 1);
        }
        unsigned char *large = qr_arena_alloc(&arena, 100000);
        memset(large, 1, 100000);
        if (round > 0)
            assert_int_equal(qr_alloc_count(), before);
        qr_arena_reset(&arena);
    }
    int *numbers = QR_ARENA_ARRAY(&arena, int, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(numbers[i], 0);
    assert_string_equal(qr_arena_strndup(&arena, "abcdef", 3), "abc");
    qr_arena_release(&arena);
    assert_null(arena.first);
}

static void arena_parts_never_overlap(void **state)
{
    (void)state;
    qr_arena arena;
    qr_arena_init(&arena, 256);
    unsigned char *parts[64];
    for (int i = 0; i < 64; i++) {
        parts[i] = qr_arena_alloc(&arena, (size_t)(i * 37 % 500) + 1);
        memset(parts[i], i, (size_t)(i * 37 % 500) + 1);
    }
    for (int i = 0; i < 64; i++)
        for (int b = 0; b <= i * 37 % 500; b++)
            assert_int_equal(parts[i][b], i);
    qr_arena_release(&arena);
}

static void slices_compare_and_search(void **state)
{
    (void)state;
    qr_str text = QR_STR("hello, world");
    assert_true(qr_str_equals(text, "hello, world"));
    assert_false(qr_str_equal(text, QR_STR("hello")));
    assert_true(qr_str_starts(text, QR_STR("hello")));
    assert_false(qr_str_starts(QR_STR("he"), QR_STR("hello")));
    assert_true(qr_str_ends(text, QR_STR("world")));
    assert_false(qr_str_ends(text, QR_STR("hello")));
    assert_int_equal(qr_str_find(text, QR_STR("o"), 0), 4);
    assert_int_equal(qr_str_find(text, QR_STR("o"), 5), 8);
    assert_int_equal(qr_str_find(text, QR_STR("xyz"), 0), -1);
    assert_int_equal(qr_str_find(text, QR_STR("o"), 100), -1);
    assert_int_equal(qr_str_find(text, QR_STR(""), 3), 3);
    assert_true(qr_str_equal(qr_str_of(NULL), QR_STR("")));
}

static void a_buffer_grows_and_stays_terminated(void **state)
{
    (void)state;
    qr_buf buf = {0};
    for (int i = 0; i < 1000; i++)
        qr_buf_printf(&buf, "%d,", i);
    assert_int_equal(buf.len, 3890);
    assert_int_equal(strlen(buf.data), buf.len);
    qr_buf_clear(&buf);
    assert_string_equal(buf.data, "");
    char *long_text = qr_alloc(5001);
    memset(long_text, 'x', 5000);
    long_text[5000] = '\0';
    qr_buf_printf(&buf, "<%s>", long_text);
    assert_int_equal(buf.len, 5002);
    assert_int_equal(buf.data[5001], '>');
    qr_free(long_text);
    qr_buf_append_char(&buf, 'c');
    qr_buf_append_str(&buf, QR_STR("str"));
    size_t len = 0;
    char *bytes = qr_buf_detach(&buf, &len);
    assert_string_equal(bytes + 5002, "cstr");
    assert_int_equal(len, 5006);
    assert_null(buf.data);
    qr_free(bytes);
    bytes = qr_buf_detach(&buf, &len); /* an empty buffer still gives a string */
    assert_string_equal(bytes, "");
    qr_free(bytes);
    qr_buf_release(&buf);
}

static void a_vector_grows(void **state)
{
    (void)state;
    QR_VEC(int) ids = {0};
    for (int i = 0; i < 1000; i++)
        QR_VEC_PUSH(&ids, i);
    assert_int_equal(ids.count, 1000);
    assert_int_equal(ids.data[999], 999);
    QR_VEC_RELEASE(&ids);
    assert_null(ids.data);
}

typedef struct item {
    int value;
    qr_list node;
} item;

static void a_list_links_and_unlinks_anywhere(void **state)
{
    (void)state;
    qr_list head;
    item items[4];
    qr_list_init(&head);
    assert_true(qr_list_empty(&head));
    for (int i = 0; i < 4; i++) {
        items[i].value = i;
        qr_list_push_back(&head, &items[i].node);
    }
    qr_list_remove(&items[1].node);
    qr_list_remove(&items[1].node); /* an unlinked node points to itself: harmless */
    qr_list_push_front(&head, &items[1].node);
    const int expected[] = {1, 0, 2, 3};
    int at = 0;
    for (qr_list *node = head.next; node != &head; node = node->next)
        assert_int_equal(QR_LIST_ITEM(node, item, node)->value, expected[at++]);
    assert_int_equal(at, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_fills_the_callers_error),
        cmocka_unit_test(an_error_message_is_one_line_and_never_half_a_character),
        cmocka_unit_test(every_status_has_a_name_a_text_and_an_http_code),
        cmocka_unit_test(sizes_multiply_and_add_without_overflow),
        cmocka_unit_test(the_heap_counts_its_calls),
        cmocka_unit_test(pages_are_zero_and_aligned_and_refused_when_absurd),
        cmocka_unit_test(an_arena_keeps_its_chunks_over_a_reset),
        cmocka_unit_test(arena_parts_never_overlap),
        cmocka_unit_test(slices_compare_and_search),
        cmocka_unit_test(a_buffer_grows_and_stays_terminated),
        cmocka_unit_test(a_vector_grows),
        cmocka_unit_test(a_list_links_and_unlinks_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
