/* The tests of Jinja2: what follows `is`. */
#include <string.h>

#include "base/mem.h"
#include "text/jinja_run.h"

#define TEST(name)         static qr_jv test_##name(qr_jrun *run, qr_jv value, const qr_jv *args, const qr_jargs *raw)
#define UNUSED             ((void)run, (void)value, (void)args, (void)raw)
#define ANSWER(expression) (UNUSED, qr_jv_bool(expression))

static bool remainder_is(qr_jrun *run, qr_jv value, qr_jv divisor, int64_t wanted)
{
    qr_jv remainder = qr_jinja_binary(run, QR_JOP_MOD, value, divisor);
    return !qr_jinja_failed(run) && qr_jv_equal(run, remainder, qr_jv_int(wanted));
}

TEST(odd) { return ANSWER(remainder_is(run, value, qr_jv_int(2), 1)); }
TEST(even) { return ANSWER(remainder_is(run, value, qr_jv_int(2), 0)); }
TEST(divisibleby) { return ANSWER(remainder_is(run, value, args[0], 0)); }
TEST(defined) { return ANSWER(value.kind != QR_JV_UNDEFINED); }
TEST(undefined) { return ANSWER(value.kind == QR_JV_UNDEFINED); }
TEST(none) { return ANSWER(value.kind == QR_JV_NONE); }
TEST(boolean) { return ANSWER(value.kind == QR_JV_BOOL); }
TEST(true) { return ANSWER(value.kind == QR_JV_BOOL && value.i != 0); }
TEST(false) { return ANSWER(value.kind == QR_JV_BOOL && value.i == 0); }
TEST(integer) { return ANSWER(value.kind == QR_JV_INT); }
TEST(float) { return ANSWER(value.kind == QR_JV_FLOAT); }
TEST(number) { return ANSWER(qr_jv_is_number(value)); }
TEST(string) { return ANSWER(value.kind == QR_JV_STRING); }
TEST(mapping) { return ANSWER(value.kind == QR_JV_DICT); }
TEST(escaped) { return ANSWER(value.kind == QR_JV_STRING && (value.flag & QR_JV_SAFE)); }
TEST(lower) { return ANSWER(qr_jtext_is(qr_jv_slice(qr_jv_to_str(run, value)), QR_JCLASS_LOWER)); }
TEST(upper) { return ANSWER(qr_jtext_is(qr_jv_slice(qr_jv_to_str(run, value)), QR_JCLASS_UPPER)); }
TEST(in) { return ANSWER(qr_jv_contains(run, args[0], value)); }
TEST(eq) { return ANSWER(qr_jv_compare_op(run, QR_JOP_EQ, value, args[0])); }
TEST(ne) { return ANSWER(qr_jv_compare_op(run, QR_JOP_NE, value, args[0])); }
TEST(lt) { return ANSWER(qr_jv_compare_op(run, QR_JOP_LT, value, args[0])); }
TEST(le) { return ANSWER(qr_jv_compare_op(run, QR_JOP_LE, value, args[0])); }
TEST(gt) { return ANSWER(qr_jv_compare_op(run, QR_JOP_GT, value, args[0])); }
TEST(ge) { return ANSWER(qr_jv_compare_op(run, QR_JOP_GE, value, args[0])); }

/* What has len() and subscripts in Python; an undefined value has both. */
TEST(sequence)
{
    switch (value.kind) {
    case QR_JV_UNDEFINED:
    case QR_JV_STRING:
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_DICT:
    case QR_JV_RANGE: return ANSWER(true);
    default: return ANSWER(false);
    }
}

TEST(iterable)
{
    switch (value.kind) {
    case QR_JV_UNDEFINED:
    case QR_JV_STRING:
    case QR_JV_LIST:
    case QR_JV_TUPLE:
    case QR_JV_DICT:
    case QR_JV_RANGE:
    case QR_JV_VIEW:
    case QR_JV_GENERATOR:
    case QR_JV_LOOP: return ANSWER(true);
    default: return ANSWER(false);
    }
}

TEST(callable)
{
    switch (value.kind) {
    case QR_JV_UNDEFINED:
    case QR_JV_MACRO:
    case QR_JV_FUNCTION:
    case QR_JV_METHOD:
    case QR_JV_JOINER:
    case QR_JV_LOOP: return ANSWER(true);
    default: return ANSWER(false);
    }
}

TEST(sameas)
{
    qr_jv other = args[0];
    bool same = value.kind == other.kind && value.len == other.len;
    if (value.kind != QR_JV_NONE)
        same = same && value.i == other.i;
    return ANSWER(same);
}

static bool knows(qr_jrun *run, qr_jv name, const qr_jfilter *(*find)(qr_str))
{
    return qr_jv_hashable(run, name) && name.kind == QR_JV_STRING && find(qr_jv_slice(name)) != NULL;
}
TEST(filter) { return ANSWER(knows(run, value, qr_jinja_find_filter)); }
TEST(test) { return ANSWER(knows(run, value, qr_jinja_find_test)); }

static const qr_jfilter tests[] = {
    {"odd", test_odd, NULL, 0},
    {"even", test_even, NULL, 0},
    {"divisibleby", test_divisibleby, "num", 1},
    {"defined", test_defined, NULL, 0},
    {"undefined", test_undefined, NULL, 0},
    {"filter", test_filter, NULL, 0},
    {"test", test_test, NULL, 0},
    {"none", test_none, NULL, 0},
    {"boolean", test_boolean, NULL, 0},
    {"false", test_false, NULL, 0},
    {"true", test_true, NULL, 0},
    {"integer", test_integer, NULL, 0},
    {"float", test_float, NULL, 0},
    {"lower", test_lower, NULL, 0},
    {"upper", test_upper, NULL, 0},
    {"string", test_string, NULL, 0},
    {"mapping", test_mapping, NULL, 0},
    {"number", test_number, NULL, 0},
    {"sequence", test_sequence, NULL, 0},
    {"iterable", test_iterable, NULL, 0},
    {"callable", test_callable, NULL, 0},
    {"sameas", test_sameas, "other", 1},
    {"escaped", test_escaped, NULL, 0},
    {"in", test_in, "seq", 1},
    {"==", test_eq, "b", 1},
    {"eq", test_eq, "b", 1},
    {"equalto", test_eq, "b", 1},
    {"!=", test_ne, "b", 1},
    {"ne", test_ne, "b", 1},
    {">", test_gt, "b", 1},
    {"gt", test_gt, "b", 1},
    {"greaterthan", test_gt, "b", 1},
    {">=", test_ge, "b", 1},
    {"ge", test_ge, "b", 1},
    {"<", test_lt, "b", 1},
    {"lt", test_lt, "b", 1},
    {"lessthan", test_lt, "b", 1},
    {"<=", test_le, "b", 1},
    {"le", test_le, "b", 1},
};

const qr_jfilter *qr_jinja_find_test(qr_str name)
{
    for (size_t i = 0; i < QR_COUNT_OF(tests); i++)
        if (qr_str_equals(name, tests[i].name))
            return &tests[i];
    return NULL;
}
