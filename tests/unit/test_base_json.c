// links: qr_base
/* base/json and base/json_scan: one text, two readers, many ways to be wrong. */
#include "support/cmocka.h"

#include <math.h>
#include <stdio.h>

#include "base/json.h"
#include "base/json_prepare.h"
#include "base/json_scan.h"
#include "base/mem.h"
#include "base/rng.h"

static qr_json *parse(const char *text)
{
    qr_json *json = NULL;
    qr_error err = {0};
    if (qr_json_parse(qr_str_of(text), &qr_json_limits_request, &json, &err) != QR_OK)
        fail_msg("%s", err.message);
    return json;
}

static qr_status refusal(const char *text, const char *part)
{
    qr_json *json = NULL;
    qr_error err = {0};
    qr_status status = qr_json_parse(qr_str_of(text), &qr_json_limits_request, &json, &err);
    assert_int_not_equal(status, QR_OK);
    assert_null(json);
    if (strstr(err.message, part) == NULL)
        fail_msg("`%s` is not in `%s`", part, err.message);
    return status;
}

static void assert_writes(const qr_json *json, int indent, const char *expected)
{
    qr_buf out = {0};
    qr_json_write(json, indent, &out);
    assert_string_equal(out.data, expected);
    qr_buf_release(&out);
}

/* ---- Trees ----------------------------------------------------------------------------------------- */

static void a_tree_is_read_by_key_index_and_order(void **state)
{
    (void)state;
    qr_json *json = parse("{\"z\": [1, 2.5, \"x\\u00e9\", true, null], \"a\": {\"k\": -3}, \"whole\": 4.0}");
    const qr_json *list = qr_json_get(json, "z");
    assert_int_equal(qr_json_count(list), 5);
    assert_int_equal(qr_json_int(qr_json_at(list, 0), 9), 1);
    assert_true(qr_json_number(qr_json_at(list, 1), 9) == 2.5);
    assert_int_equal(qr_json_int(qr_json_at(list, 1), 9), 9);
    assert_true(qr_str_equals(qr_json_string(qr_json_at(list, 2)), "x\xC3\xA9"));
    assert_true(qr_json_bool(qr_json_at(list, 3), false));
    assert_true(qr_json_is(qr_json_at(list, 4), QR_JSON_NULL));
    assert_null(qr_json_at(list, 5));
    assert_null(qr_json_get(list, "z"));
    assert_null(qr_json_get(NULL, "z"));
    assert_int_equal(qr_json_int(qr_json_get(qr_json_get(json, "a"), "k"), 0), -3);
    assert_int_equal(qr_json_int(qr_json_get(json, "whole"), 0), 4);
    assert_null(qr_json_string(json).data);
    assert_string_equal(qr_json_cstring(NULL, "fallback"), "fallback");
    assert_string_equal(qr_json_type_name(qr_json_typeof(json)), "object");
    static const char *const keys[] = {"z", "a", "whole"};
    size_t at = 0;
    for (void *it = qr_json_iter(json); it != NULL; it = qr_json_iter_next(json, it)) {
        assert_true(qr_str_equals(qr_json_iter_key(it), keys[at++]));
        assert_non_null(qr_json_iter_value(it));
    }
    assert_int_equal(at, 3);
    qr_json_free(json);
    qr_json_free(NULL);
}

static void bad_text_is_refused_with_its_place(void **state)
{
    (void)state;
    assert_int_equal(refusal("{\"a\": 1,\n \"b\": }", "line 2"), QR_INVALID_ARGUMENT);
    refusal("", "JSON");
    refusal("[1, 2", "JSON");
    refusal("{\"a\": 1} trailing", "end of file");
    refusal("{\"a\": 1, \"a\": 2}", "duplicate");
    refusal("\"nul \\u0000 inside\"", "u0000");
    refusal("\"\xFF\"", "decode");
    refusal("[1e999]", "real number overflow");
    refusal("\"\\ud8", "JSON");
    refusal("[NaN]", "JSON");
    qr_json *json = NULL;
    qr_error err;
    assert_int_equal(qr_json_parse(qr_str_make("-1\0", 3), &qr_json_limits_request, &json, &err),
                     QR_INVALID_ARGUMENT);
    assert_string_equal(err.message, "JSON: NUL byte at offset 2");
}

static void costs_are_bounded_before_memory_is_taken(void **state)
{
    (void)state;
    qr_json *json = NULL;
    qr_error err;
    qr_buf text = {0};
    for (int i = 0; i < 65; i++)
        qr_buf_append_char(&text, '[');
    assert_int_equal(refusal(text.data, "nested 65 deep, more than the limit of 64"), QR_LIMIT_EXCEEDED);
    qr_buf_clear(&text);
    qr_buf_append_char(&text, '[');
    for (int i = 0; i < 20000; i++)
        qr_buf_append_cstr(&text, "{},");
    qr_buf_append_cstr(&text, "{}]");
    qr_json_limits limits = qr_json_limits_request;
    limits.values_max = 10000;
    assert_int_equal(qr_json_parse(qr_buf_str(&text), &limits, &json, &err), QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "values, more than the limit of 10000"));
    limits = qr_json_limits_request;
    limits.memory_max = 1000000; /* jansson needs some 250 bytes for each empty object */
    assert_int_equal(qr_json_parse(qr_buf_str(&text), &limits, &json, &err), QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "limit of 1000000 bytes of memory"));
    limits.memory_max = 20000000;
    assert_int_equal(qr_json_parse(qr_buf_str(&text), &limits, &json, &err), QR_OK);
    assert_int_equal(qr_json_count(json), 20001);
    qr_json_free(json);
    limits.bytes_max = 100;
    assert_int_equal(qr_json_parse(qr_buf_str(&text), &limits, &json, &err), QR_LIMIT_EXCEEDED);
    qr_buf_release(&text);
}

static void what_checkpoints_hold_is_repaired(void **state)
{
    (void)state;
    qr_json *json = parse("[\"\\ud800 \\uDFFFx \\ud83d\\ude00 \\\\ud800\", 1000000000000000019884624838656, "
                          "-18446744073709551615, 9223372036854775807, -9223372036854775808]");
    assert_true(qr_str_equals(qr_json_string(qr_json_at(json, 0)),
                              "\xEF\xBF\xBD \xEF\xBF\xBDx \xF0\x9F\x98\x80 \\ud800"));
    assert_true(fabs(qr_json_number(qr_json_at(json, 1), 0) / 1e30 - 1) < 1e-14);
    assert_true(fabs(qr_json_number(qr_json_at(json, 2), 0) / -18446744073709551615.0 - 1) < 1e-13);
    assert_true(qr_json_int(qr_json_at(json, 3), 0) == INT64_MAX);
    assert_true(qr_json_int(qr_json_at(json, 4), 0) == INT64_MIN);
    qr_json_free(json);
    qr_json_limits limits = qr_json_limits_file;
    assert_int_equal(qr_json_parse(QR_STR("{\"a\":1,\"a\":2}"), &limits, &json, NULL), QR_OK);
    assert_int_equal(qr_json_int(qr_json_get(json, "a"), 0), 2); /* the last one wins */
    qr_json_free(json);
    refusal("[9223372036854775808, 01]", "JSON"); /* the repair does not hide other faults */
}

static void a_tree_is_built_copied_and_written(void **state)
{
    (void)state;
    qr_json *object = qr_json_new_object(), *list = qr_json_new_array();
    qr_json_push(list, qr_json_new_int(-5));
    qr_json_push(list, qr_json_new_real(0.1));
    qr_json_push(list, qr_json_new_real(NAN));
    qr_json_push(list, qr_json_new_bool(false));
    qr_json_push(list, qr_json_new_string(QR_STR("a\xFF\xC3(\0b")));
    qr_json_set(object, "list", list);
    qr_json_set(object, "none", qr_json_new_null());
    qr_json_set(object, "empty", qr_json_new_object());
    const char *compact =
        "{\"list\":[-5,0.1,null,false,\"a\xEF\xBF\xBD\xEF\xBF\xBD(\\u0000b\"],\"none\":null,"
        "\"empty\":{}}";
    assert_writes(object, 0, compact);
    qr_json *copy = qr_json_copy(object);
    qr_json_set(object, "none", qr_json_new_int(1));
    assert_writes(copy, 0, compact);
    qr_json_free(copy);
    qr_json_free(object);
    object = parse("{\"a\":[1,[]],\"b\":{}}");
    assert_writes(object, 2, "{\n  \"a\": [\n    1,\n    []\n  ],\n  \"b\": {}\n}");
    qr_json_free(object);
}

static void numbers_are_written_as_short_as_they_read_back(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0.0"},         {-0.0, "-0.0"},      {1, "1.0"},
                 {0.1, "0.1"},       {1e300, "1e+300"},   {1.5, "1.5"},
                 {INFINITY, "null"}, {-INFINITY, "null"}, {123456, "123456.0"}};
    qr_buf out = {0};
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        qr_buf_clear(&out);
        qr_json_append_number(&out, cases[i].value);
        assert_string_equal(out.data, cases[i].text);
    }
    uint64_t seed = 3;
    for (int i = 0; i < 10000; i++) {
        uint64_t bits = qr_rng_next(&seed);
        double value;
        memcpy(&value, &bits, sizeof(value));
        if (!isfinite(value))
            continue;
        qr_buf_clear(&out);
        qr_json_append_number(&out, value);
        assert_true(strtod(out.data, NULL) == value);
    }
    qr_buf_release(&out);
}

static void strings_are_escaped_and_mended(void **state)
{
    (void)state;
    qr_buf out = {0};
    qr_json_append_string(&out, QR_STR("q\"b\\n\nt\tc\x01"
                                       "d\x7f\xE2\x82\xAC/\xE2\x82"));
    assert_string_equal(out.data, "\"q\\\"b\\\\n\\nt\\tc\\u0001d\x7f\xE2\x82\xAC/\xEF\xBF\xBD\"");
    qr_buf_clear(&out);
    qr_json_append_string(&out, qr_str_of(NULL));
    assert_string_equal(out.data, "\"\"");
    for (int c = 0; c < 256; c++) { /* every byte goes out and comes back */
        char text[3] = {'<', (char)c, '>'};
        qr_json *back = NULL;
        qr_buf_clear(&out);
        qr_json_append_string(&out, qr_str_make(text, 3));
        if (c == 0)
            continue; /* jansson refuses NUL, and we want that */
        assert_int_equal(qr_json_parse(qr_buf_str(&out), &qr_json_limits_request, &back, NULL), QR_OK);
        if (c < 0x80)
            assert_true(qr_str_equal(qr_json_string(back), qr_str_make(text, 3)));
        else
            assert_true(qr_str_equals(qr_json_string(back), "<\xEF\xBF\xBD>"));
        qr_json_free(back);
    }
    qr_buf_release(&out);
}

static void files_are_read_with_their_name_in_the_error(void **state)
{
    (void)state;
    qr_json *json = NULL;
    qr_error err;
    char path[] = "/tmp/quire-json-XXXXXX";
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    fputs("\xEF\xBB\xBF{\"a\": 1}", file);
    fclose(file);
    assert_int_equal(qr_json_read_file(path, &json, &err), QR_OK);
    assert_int_equal(qr_json_int(qr_json_get(json, "a"), 0), 1);
    qr_json_free(json);
    file = fopen(path, "w");
    fputs("{\"a\": }", file);
    fclose(file);
    assert_int_equal(qr_json_read_file(path, &json, &err), QR_INVALID_ARGUMENT);
    assert_memory_equal(err.message, path, strlen(path));
    remove(path);
    assert_int_equal(qr_json_read_file(path, &json, &err), QR_NOT_FOUND);
}

/* ---- Scanner --------------------------------------------------------------------------------------- */

static void the_scanner_pulls_values_in_order(void **state)
{
    (void)state;
    qr_json_scan scan;
    qr_str key, text;
    bool escaped, flag;
    int64_t integer;
    double number;
    qr_json_scan_init(&scan,
                      QR_STR(" { \"a\" : [ -12 , 1.5e2 , true , null ] , \"b\\n\" : \"x\\ty\", \"c\":{} } "));
    assert_int_equal(qr_json_scan_peek(&scan), '{');
    assert_true(qr_json_scan_object(&scan));
    assert_true(qr_json_scan_key(&scan, &key) && qr_str_equals(key, "a"));
    assert_true(qr_json_scan_array(&scan));
    assert_true(qr_json_scan_item(&scan));
    assert_int_equal(qr_json_scan_peek(&scan), '0');
    assert_true(qr_json_scan_int(&scan, &integer) && integer == -12);
    assert_true(qr_json_scan_item(&scan) && qr_json_scan_number(&scan, &number) && number == 150);
    assert_true(qr_json_scan_item(&scan) && qr_json_scan_bool(&scan, &flag) && flag);
    assert_true(qr_json_scan_item(&scan) && qr_json_scan_null(&scan));
    assert_false(qr_json_scan_item(&scan));
    assert_true(qr_json_scan_key(&scan, &key) && qr_str_equals(key, "b\\n"));
    assert_true(qr_json_scan_string(&scan, &text, &escaped) && escaped && qr_str_equals(text, "x\\ty"));
    assert_true(qr_json_scan_key(&scan, &key) && qr_json_scan_raw(&scan, &text) && qr_str_equals(text, "{}"));
    assert_false(qr_json_scan_key(&scan, &key));
    assert_false(scan.failed);
    assert_true(qr_json_scan_end(&scan));
}

static bool scans(const char *text)
{
    qr_json_scan scan;
    qr_json_scan_init(&scan, qr_str_of(text));
    return qr_json_scan_skip(&scan) && qr_json_scan_end(&scan);
}

static void the_scanner_accepts_and_refuses_what_the_grammar_does(void **state)
{
    (void)state;
    static const char *const good[] = {"{}",
                                       "[]",
                                       "[[],{}]",
                                       "0",
                                       "-0",
                                       "1.5",
                                       "1e5",
                                       "1E+5",
                                       "\"\\u12aF\"",
                                       "{\"a\":{\"b\":[1,2,{\"c\":null}]}}",
                                       "\xEF\xBB\xBF[1]",
                                       "  true "};
    static const char *const bad[] = {
        "",    "{",     "[1,]", "[,1]",      "{\"a\"}", "{\"a\":}", "{\"a\":1,}",  "{a:1}", "01",
        "1.",  ".5",    "1e",   "-",         "+1",      "\"\\x\"",  "\"\\u12g4\"", "\"",    "\"\n\"",
        "tru", "[1 2]", "[1}",  "{\"a\":1]", "1 2",     "\"\x80\"", "nul",         "[1,2"};
    for (size_t i = 0; i < QR_COUNT_OF(good); i++)
        if (!scans(good[i]))
            fail_msg("refused: %s", good[i]);
    for (size_t i = 0; i < QR_COUNT_OF(bad); i++)
        if (scans(bad[i]))
            fail_msg("accepted: %s", bad[i]);
    char deep[200];
    memset(deep, '[', 64);
    memset(deep + 64, ']', 64);
    deep[128] = '\0';
    assert_true(scans(deep));
    memset(deep, '[', 65);
    memset(deep + 65, ']', 65);
    deep[130] = '\0';
    assert_false(scans(deep));
}

static void a_scanner_error_names_line_and_column(void **state)
{
    (void)state;
    qr_json_scan scan;
    qr_error err;
    qr_str key;
    qr_json_scan_init(&scan, QR_STR("{\n  \"a\" 1}"));
    assert_true(qr_json_scan_object(&scan));
    assert_false(qr_json_scan_key(&scan, &key));
    assert_false(qr_json_scan_skip(&scan)); /* failed for good */
    assert_int_equal(qr_json_scan_error(&scan, "t.json", &err), QR_INVALID_ARGUMENT);
    assert_string_equal(err.message, "t.json: line 2, column 7: expected ':'");
}

static void scanned_numbers_are_exact_and_bounded(void **state)
{
    (void)state;
    static const char *const ints[] = {
        "9223372036854775808", "-9223372036854775809", "99999999999999999999999", "1.0", "1e3", "\"1\""};
    int64_t integer;
    double number;
    qr_json_scan scan;
    for (size_t i = 0; i < QR_COUNT_OF(ints); i++) {
        qr_json_scan_init(&scan, qr_str_of(ints[i]));
        assert_false(qr_json_scan_int(&scan, &integer));
    }
    qr_json_scan_init(&scan, QR_STR("-9223372036854775808"));
    assert_true(qr_json_scan_int(&scan, &integer) && integer == INT64_MIN);
    static const char *const reals[] = {"-12.345678710937500",
                                        "1e-320",
                                        "0.1",
                                        "123456789012345678901234567890",
                                        "2.2250738585072011e-308",
                                        "9007199254740993",
                                        "1e22",
                                        "1e23",
                                        "-0"};
    for (size_t i = 0; i < QR_COUNT_OF(reals); i++) {
        qr_json_scan_init(&scan, qr_str_of(reals[i]));
        assert_true(qr_json_scan_number(&scan, &number));
        assert_true(number == strtod(reals[i], NULL));
    }
    char wide[200];
    memset(wide, '1', sizeof(wide) - 1);
    wide[sizeof(wide) - 1] = '\0';
    qr_json_scan_init(&scan, qr_str_of(wide));
    assert_true(qr_json_scan_number(&scan, &number) && number == strtod(wide, NULL));
    qr_json_scan_init(&scan, QR_STR("1e400"));
    assert_false(qr_json_scan_number(&scan, &number));
    qr_json_scan_init(&scan, QR_STR("1e99999999999999999999"));
    assert_false(qr_json_scan_number(&scan, &number));
}

static void unescaping_agrees_with_the_tree(void **state)
{
    (void)state;
    static const char *const raws[] = {"plain",          "\\\"\\\\\\/\\b\\f\\n\\r\\t",
                                       "\\u00e9\\u20AC", "\\ud83d\\ude00",
                                       "\\ud83dx",       "\\ude00\\ud83d",
                                       "a\\u0041",       "\\ud83d\\u0041"};
    for (size_t i = 0; i < QR_COUNT_OF(raws); i++) {
        qr_buf quoted = {0}, out = {0};
        qr_buf_printf(&quoted, "\"%s\"", raws[i]);
        qr_json *json = parse(quoted.data);
        qr_json_scan_unescape(qr_str_of(raws[i]), &out);
        assert_true(qr_str_equal(qr_buf_str(&out), qr_json_string(json)));
        qr_json_free(json);
        qr_buf_release(&quoted);
        qr_buf_release(&out);
    }
    qr_buf out = {0};
    qr_json_scan_unescape(QR_STR("bad \\q \\u12"), &out); /* not from the scanner: passed through */
    assert_string_equal(out.data, "bad \\q \\u12");
    qr_buf_release(&out);
}

/* Random mutations of a good text: both readers must agree on whether it is JSON. */
static void the_scanner_and_the_tree_agree_on_mutated_texts(void **state)
{
    (void)state;
    const char *seed_text =
        "{\"a\":[1,-2.5e3,true,null,\"x\\n\\u00e9\"],\"b\":{\"c\":[],\"d\":{}},\"e\":\"\xC3\xA9\"}";
    const char alphabet[] = "{}[]:,\"\\0-1.eE+tfnu \xC3\xA9";
    qr_json_limits limits = qr_json_limits_request;
    limits.allow_duplicates = true;
    uint64_t seed = 2024;
    int accepted = 0;
    for (int round = 0; round < 20000; round++) {
        char text[128];
        size_t len = strlen(seed_text);
        memcpy(text, seed_text, len + 1);
        for (uint64_t edits = 1 + qr_rng_next(&seed) % 2; edits > 0; edits--)
            text[qr_rng_next(&seed) % len] = alphabet[qr_rng_next(&seed) % (sizeof(alphabet) - 1)];
        qr_json *json = NULL;
        bool tree_ok = qr_json_parse(qr_str_make(text, len), &limits, &json, NULL) == QR_OK;
        text[len] = '\0';
        if (tree_ok != scans(text))
            fail_msg("round %d: the tree says %d: %s", round, tree_ok, text);
        accepted += tree_ok;
        qr_json_free(json);
    }
    assert_true(accepted > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_is_read_by_key_index_and_order),
        cmocka_unit_test(bad_text_is_refused_with_its_place),
        cmocka_unit_test(costs_are_bounded_before_memory_is_taken),
        cmocka_unit_test(what_checkpoints_hold_is_repaired),
        cmocka_unit_test(a_tree_is_built_copied_and_written),
        cmocka_unit_test(numbers_are_written_as_short_as_they_read_back),
        cmocka_unit_test(strings_are_escaped_and_mended),
        cmocka_unit_test(files_are_read_with_their_name_in_the_error),
        cmocka_unit_test(the_scanner_pulls_values_in_order),
        cmocka_unit_test(the_scanner_accepts_and_refuses_what_the_grammar_does),
        cmocka_unit_test(a_scanner_error_names_line_and_column),
        cmocka_unit_test(scanned_numbers_are_exact_and_bounded),
        cmocka_unit_test(unescaping_agrees_with_the_tree),
        cmocka_unit_test(the_scanner_and_the_tree_agree_on_mutated_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
