// links: qr_text qr_base
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/mem.h"
#include "text/jinja.h"

typedef struct example {
    const char *source, *want; /* want of a failing one: a part of the message */
} example;

static const char context_text[] = "{\"s\": \"h\xc3\xa9llo\", \"n\": 7, \"f\": 2.5, \"lst\": [3, 1, 2], "
                                   "\"d\": {\"a\": 1, \"items\": 2, \"_x\": 3}, "
                                   "\"none_v\": null, \"m\": [{\"role\": \"user\", \"n\": 1}, {\"role\": "
                                   "\"bot\", \"n\": 2}], \"yes\": true}";

static qr_status render(const char *source, const qr_jinja_limits *limits, qr_buf *out, qr_error *err)
{
    qr_json *context = NULL;
    qr_jinja *jinja = NULL;
    assert_int_equal(qr_json_parse(qr_str_of(context_text), &qr_json_limits_request, &context, err), QR_OK);
    qr_status status = qr_jinja_compile(qr_str_of(source), &jinja, err);
    if (status == QR_OK)
        status = qr_jinja_render(jinja, context, 1721995509, limits, out, err);
    qr_jinja_free(jinja);
    qr_json_free(context);
    return status;
}

static void check_all(const example *examples, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        qr_buf out = {0};
        qr_error err = {0};
        qr_status status = render(examples[i].source, NULL, &out, &err);
        if (status != QR_OK)
            fail_msg("%s: %s", examples[i].source, err.message);
        if (strcmp(out.data, examples[i].want) != 0)
            fail_msg("%s\n  want %s\n  got  %s", examples[i].source, examples[i].want, out.data);
        qr_buf_release(&out);
    }
}

static void check_failures(const example *examples, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        qr_buf out = {0};
        qr_error err = {0};
        qr_buf_append_cstr(&out, "kept");
        qr_status status = render(examples[i].source, NULL, &out, &err);
        if (status != QR_INVALID_ARGUMENT || strstr(err.message, examples[i].want) == NULL)
            fail_msg("%s\n  want error %s\n  got  %d %s", examples[i].source, examples[i].want, (int)status,
                     err.message);
        assert_string_equal(out.data, "kept");
        qr_buf_release(&out);
    }
}
#define CHECK(examples)    check_all(examples, QR_COUNT_OF(examples))
#define FAILURES(examples) check_failures(examples, QR_COUNT_OF(examples))

static void values_print_as_python_prints_them(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ 1e-7 }} {{ 0.1 + 0.2 }}",
         "True None 1.0 1e+20 1e-07 0.30000000000000004"},
        {"{{ [1, 'a', none, (1,), {'k': \"it's\"}] }}", "[1, 'a', None, (1,), {'k': \"it's\"}]"},
        {"{{ 'a\\nb' }}|{{ ['a\\nb\\t\\u00e9\\x07'] }}", "a\nb|['a\\nb\\t\xc3\xa9\\x07']"},
        {"{{ d }} {{ undefined_name }}|{{ [undefined_name] }}", "{'a': 1, 'items': 2, '_x': 3} |[Undefined]"},
        {"{{ range(3) }} {{ namespace(a=1) }} {{ d.keys() }}",
         "range(0, 3) <Namespace {'a': 1}> dict_keys(['a', 'items', '_x'])"},
    };
    CHECK(examples);
}

static void arithmetic_has_pythons_meaning(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }}",
         "3 -4 2 3.5 1024 0.5"},
        {"{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ -7.5 // 2 }} {{ 7.5 % -2 }}", "64 4 -4.0 -0.5"},
        {"{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ 'a' in 'abc' }} {{ 1 in lst }} {{ 5 not in lst }}",
         "True False True True True"},
        {"{{ 'ab' * 3 }} {{ [1] * 2 + [n] }} {{ true + 1 }} {{ 1 ~ 'a' ~ none }}",
         "ababab [1, 1, 7] 2 1aNone"},
        {"{{ 'x' if n > 5 else 'y' }}{{ 'z' if false }} {{ 0 or 'd' }} {{ 1 and 'e' }} {{ not none_v }}",
         "x d e True"},
    };
    static const example failures[] = {
        {"{{ 'a' + 1 }}", "can only concatenate str (not \"int\") to str"},
        {"{{ 1 + 'a' }}", "unsupported operand type(s) for +: 'int' and 'str'"},
        {"{{ 1 // 0 }}", "integer division or modulo by zero"},
        {"{{ 9223372036854775807 + 1 }}", "beyond 64 bits"},
        {"{{ 1 < 'a' }}", "'<' not supported between instances of 'int' and 'str'"},
    };
    CHECK(examples);
    FAILURES(failures);
}

static void whitespace_control_follows_jinja2(void **state)
{
    (void)state;
    static const example examples[] = {
        {"a\n  {% if yes %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
        {"a {%- if yes -%} b {%- endif %} c", "ab c"},
        {"a\n  {%+ if yes %}b{% endif +%}\nc", "a\n  b\nc"},
        {"x {#- c -#} y{# d #}\nz", "xyz"},
        {"{% raw %}{{ no }}\n{% endraw %}\n.", "{{ no }}\n."},
        {"  {{- n -}}  .\r\n{{ n }}\r", "7.\n7"},
    };
    CHECK(examples);
}

static void loops_know_where_they_are(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{% for x in lst %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
         "1/3,2/3,3/3"},
        {"{% for x in lst if x > 1 %}{{ loop.index0 }}{{ x }}{{ loop.nextitem }};{% endfor %}", "032;12;"},
        {"{% for x in lst %}{{ loop.previtem }}<{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}>{% endfor %}",
         "<aTrue>3<bTrue>1<aTrue>"},
        {"{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "a=1;items=2;_x=3;"},
        {"{% for x in [] %}a{% else %}none{% endfor %}", "none"},
        {"{% for x in lst %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% "
         "endif %}{% endfor %}",
         "32"},
        {"{% for x in [1, [2, [3]]] recursive %}{{ loop.depth }}:{% if x is iterable %}{{ loop(x) }}{% else "
         "%}{{ x }}{% endif %} {% endfor %}",
         "1:1 1:2:2 2:3:3   "},
        {"{% for x in lst %}a{% set y %}lost{% break %}{% endset %}{% endfor %}", "a"},
        {"{% set ns = namespace(stop=false) %}{% for x in lst if not ns.stop %}{{ x }}{% set ns.stop = true "
         "%}{% endfor %}",
         "3"},
    };
    static const example failures[] = {
        {"{% for x in none_v %}{% endfor %}", "'NoneType' object is not iterable"},
        {"{% for a, b in [[1]] %}{% endfor %}", "not enough values to unpack (expected 2, got 1)"},
        {"{% for loop in lst %}{% endfor %}", "Can't assign to special loop variable"},
        {"{% break %}", "'break' outside loop"},
    };
    CHECK(examples);
    FAILURES(failures);
}

static void scopes_follow_jinja2(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{% set x = 1 %}{% for i in lst %}{% set x = i %}{% endfor %}{{ x }}", "1"},
        {"{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}", "2"},
        {"{% for i in [1, 2] %}{{ n }}{% set n = i %}{{ n }};{% endfor %}{{ n }}", "71;72;7"},
        {"{% set n %}{{ n }}!{% endset %}{{ n }}", "!"},
        {"{% with a = n, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "7"},
        {"{% macro f() %}{{ later }}{% endmacro %}{% set later = 3 %}{{ f() }}", "3"},
        {"{% set ns = namespace(a=0) %}{% for i in lst %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
         "6"},
        {"{% set a, b = 1, 2 %}{{ a }}{{ b }}{% filter upper %}x{{ s }}{% endfilter %}", "12XH\xc3\x89LLO"},
        {"{% generation %}{{ s }}{% set q = 1 %}{% endgeneration %}{{ q }}", "h\xc3\xa9llo"},
    };
    CHECK(examples);
}

static void macros_bind_their_arguments(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{% macro f(a, b='x', c=b) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c=2) }} {{ "
         "f(b=3) }}",
         "1xx 1x2 33"},
        {"{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, z=3) }}", "(1, 2){'z': 3}"},
        {"{% macro f(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) f(4) %}{{ y }}!{% endcall %}", "<4!>"},
        {"{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "3210"},
        {"{% macro f(a) %}{{ a }}{% endmacro %}{{ f(*[5]) }}{{ f(**{'a': 6}) }}{{ f.name }}{{ f.arguments }}",
         "56f('a',)"},
    };
    static const example failures[] = {
        {"{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "takes not more than 1 argument(s)"},
        {"{% macro f(a) %}{% endmacro %}{{ f(zz=2) }}", "takes no keyword argument 'zz'"},
        {"{% macro f(a) %}{{ a.b }}{% endmacro %}{{ f() }}", "parameter 'a' was not provided"},
        {"{% macro f(a=1, b) %}{% endmacro %}", "non-default argument follows default argument"},
        {"{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", ""},
    };
    CHECK(examples);
    check_failures(failures, 4);
    qr_buf out = {0};
    qr_error err = {0};
    assert_int_equal(render(failures[4].source, NULL, &out, &err), QR_LIMIT_EXCEEDED);
    qr_buf_release(&out);
}

static void attributes_are_those_of_the_sandbox(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{{ d.a }}{{ d['items'] }}{{ d.items is callable }}{{ d.zz is defined }}{{ d['zz'] is defined }}",
         "12TrueFalseFalse"},
        {"{{ m[-1].role }}{{ m[5] is defined }}{{ s[1] }}{{ s[-1] }}{{ s[1:3] }}{{ s[::-1] }}{{ lst[:2] }}{{ "
         "lst[::-1] }}",
         "botFalse\xc3\xa9o\xc3\xa9loll\xc3\xa9h[3, 1][2, 1, 3]"},
        {"{{ lst.append }}{{ lst.append is defined }}{{ s.__class__ is defined }}", "FalseFalse"},
        {"{{ d.get('a') }}{{ d.get('b') }}{{ d.get('b', 5) }}{{ d.keys()|list }}",
         "1None5['a', 'items', '_x']"},
        {"{{ s.upper() }}{{ 'a,b'.split(',') }}{{ ' x '.strip() }}{{ 'abc'.startswith(('x', 'a')) }}",
         "H\xc3\x89LLO['a', 'b']xTrue"},
    };
    static const example failures[] = {
        {"{{ lst.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."},
        {"{{ d.update({}) }}", "access to attribute 'update' of 'dict' object is unsafe."},
        {"{{ d.zz.y }}", "'dict object' has no attribute 'zz'"},
        {"{{ nope.y }}", "'nope' is undefined"},
        {"{{ m[9].y }}", "list object has no element 9"},
        {"{{ n() }}", "'int' object is not callable"},
    };
    CHECK(examples);
    FAILURES(failures);
}

static void filters_and_tests_work(void **state)
{
    (void)state;
    static const example examples[] = {
        {"{{ m|map(attribute='role')|join(', ') }} {{ m|selectattr('n', 'gt', 1)|list|length }}",
         "user, bot 1"},
        {"{{ lst|sort }}{{ lst|sort(reverse=true)|first }}{{ lst|max }}{{ lst|sum }}{{ lst|reverse|list }}",
         "[1, 2, 3]336[2, 1, 3]"},
        {"{{ d|tojson }}{{ d|tojson(indent=1) }}{{ [s]|tojson(ensure_ascii=true) }}",
         "{\"a\": 1, \"items\": 2, \"_x\": 3}{\n \"a\": 1,\n \"items\": 2,\n \"_x\": 3\n}[\"h\\u00e9llo\"]"},
        {"{{ '42'|int + 1 }}{{ 'x'|int(5) }}{{ '0x1f'|int(base=16) }}{{ '1.5'|float }}{{ 2.567|round(2) }}",
         "435311.52.57"},
        {"{{ none_v|default('d') }}{{ none_v|default('d', true) }}{{ zz|d(1) }}", "Noned1"},
        {"{{ 'a b-c'|title }}{{ 'X'|lower }}{{ ' t '|trim }}{{ 'a\\nb'|indent(2) }}", "A B-Cxta\n  b"},
        {"{{ '<a>'|e }}{{ '<a>'|safe }}{{ ('<a>'|e) + '<b>' }}", "&lt;a&gt;<a>&lt;a&gt;&lt;b&gt;"},
        {"{% for g in m|groupby('role') %}{{ g.grouper }}:{{ g.list|length }} {% endfor %}", "bot:1 user:1 "},
        {"{{ '%s-%03d' % ('a', 5) }}{{ '%(x)s'|format(x=1) }}{{ '{0}{k:>3}'.format(1, k=2) }}", "a-00511  2"},
        {"{{ 3 is odd }}{{ 4 is divisibleby 2 }}{{ s is string }}{{ d is mapping }}{{ lst is sequence }}{{ 1 "
         "is sameas 1 }}",
         "TrueTrueTrueTrueTrueTrue"},
        {"{{ ('a<b'|safe).replace('b', true) }}{{ '{:04}|{:<3}|{:3}|{}'.format('x', 'y', true, true) }}",
         "a<Truex000|y  |  1|True"},
        {"{{ strftime_now('%d %B %Y %H:%M') }}", "26 July 2024 12:05"},
    };
    static const example failures[] = {
        {"{{ 1|nope }}", "line 1, column 6: No filter named 'nope'."},
        {"{% if yes %}{{ 1|nope }}{% endif %}", "No filter named 'nope' found."},
        {"{{ 1 is nope }}", "No test named 'nope'."},
        {"{{ lst|map('upper')|tojson }}", "Object of type generator is not JSON serializable"},
        {"{{ raise_exception('not like this') }}", "raise_exception: not like this"},
        {"{{ range(1000000) }}", "Range too big"},
        {"{{ '{:+}'.format('x') }}", "not allowed in a string format specifier"},
        {"{{ none_v|length }}", "object of type 'NoneType' has no len()"},
    };
    CHECK(examples);
    FAILURES(failures);
}

static void a_broken_template_is_refused_with_line_and_column(void **state)
{
    (void)state;
    static const example failures[] = {
        {"a\n{{ b c }}", "template: line 2, column 6: expected token 'end of print statement', got 'c'"},
        {"{% if x %}", "Unexpected end of template. Jinja was looking for 'elif'."},
        {"{% endfor %}", "Encountered unknown tag 'endfor'."},
        {"\xc3\xa9{{ 'a }}", "line 1, column 5: unexpected char '"},
        {"{{ (1 }}", "unexpected '}', expected ')'"},
        {"{# never", "Missing end of comment tag"},
        {"{% raw %}", "Missing end of raw directive"},
        {"{{ }}", "Expected an expression, got 'end of print statement'"},
        {"{% set 1 = 2 %}", "can't assign to 'const'"},
        {"{% include 'x' %}", "'include' is not supported"},
        {"{{ 99999999999999999999 }}", "integers beyond 64 bits"},
        {"{{ 'a\xff' }}", "not valid UTF-8"},
        {"{{ f(a=1, 2) }}", "invalid syntax for function call expression"},
        {"{{ \"\\N{BULLET}\" }}", "this escape in a string is not supported"},
    };
    FAILURES(failures);
}

static void deep_nesting_is_refused_not_crashed(void **state)
{
    (void)state;
    static const char *const parts[][3] = {{"(", "1", ")"},   {"[", "", "]"},       {"-", "1", ""},
                                           {"not ", "1", ""}, {"(1 if ", "1", ")"}, {"x.", "y", ""}};
    for (size_t i = 0; i < QR_COUNT_OF(parts); i++) {
        qr_buf source = {0}, out = {0};
        qr_error err = {0};
        qr_buf_append_cstr(&source, "{{ ");
        for (int k = 0; k < 5000; k++)
            qr_buf_append_cstr(&source, parts[i][0]);
        qr_buf_append_cstr(&source, parts[i][1]);
        for (int k = 0; k < 5000; k++)
            qr_buf_append_cstr(&source, parts[i][2]);
        qr_buf_append_cstr(&source, " }}");
        qr_status status = render(source.data, NULL, &out, &err);
        if (i == 3) /* a chain of `not` is no nesting */
            assert_int_equal(status, QR_OK);
        else
            assert_int_equal(status, QR_INVALID_ARGUMENT);
        qr_buf_release(&source);
        qr_buf_release(&out);
    }
    qr_buf blocks = {0}, out = {0};
    qr_error err = {0};
    for (int k = 0; k < 3000; k++)
        qr_buf_append_cstr(&blocks, "{% if yes %}");
    assert_int_equal(render(blocks.data, NULL, &out, &err), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "nested deeper"));
    qr_buf_release(&blocks);
    qr_buf_release(&out);
}

static void limits_stop_what_does_not_end(void **state)
{
    (void)state;
    const qr_jinja_limits limits = {.steps_max = 200000,
                                    .depth_max = 500,
                                    .output_bytes_max = 10000,
                                    .memory_bytes_max = 1 << 20,
                                    .time_ns_max = UINT64_C(10000000000)};
    static const example examples[] = {
        {"{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "steps"},
        {"{% for i in range(90000) %}{{ s }}{% endfor %}", "bytes of output"},
        {"{{ ('x' * 100000000)|length }}", "bytes of values"},
        {"{% set ns = namespace(v=[]) %}{% for i in range(90000) %}{% set ns.v = [ns.v] %}{% endfor %}{{ "
         "ns.v }}",
         ""},
        {"{% set ns = namespace(v='ab') %}{% for i in range(99) %}{% set ns.v = ns.v ~ ns.v %}{% endfor %}",
         "bytes"},
        {"{{ '%0999999999d' % n }}", "too big"},
        {"{{ lst * 999999999 }}", ""},
    };
    for (size_t i = 0; i < QR_COUNT_OF(examples); i++) {
        qr_buf out = {0};
        qr_error err = {0};
        qr_status status = render(examples[i].source, &limits, &out, &err);
        if (i == 5)
            assert_int_equal(status, QR_INVALID_ARGUMENT);
        else
            assert_int_equal(status, QR_LIMIT_EXCEEDED);
        if (strstr(err.message, examples[i].want) == NULL)
            fail_msg("%s: %s", examples[i].source, err.message);
        assert_int_equal(out.len, 0);
        qr_buf_release(&out);
    }
    const qr_jinja_limits short_time = {.steps_max = UINT64_MAX / 2,
                                        .depth_max = 500,
                                        .output_bytes_max = 10000,
                                        .memory_bytes_max = 1 << 30,
                                        .time_ns_max = 20000000};
    qr_buf out = {0};
    qr_error err = {0};
    assert_int_equal(render(examples[0].source, &short_time, &out, &err), QR_LIMIT_EXCEEDED);
    assert_non_null(strstr(err.message, "takes longer than 0.02 s"));
    qr_buf_release(&out);
}

static void a_string_built_in_a_loop_stays_linear(void **state)
{
    (void)state;
    qr_buf out = {0};
    qr_error err = {0};
    const qr_jinja_limits limits = {.steps_max = 5000000,
                                    .depth_max = 500,
                                    .output_bytes_max = 1 << 20,
                                    .memory_bytes_max = 8 << 20,
                                    .time_ns_max = UINT64_C(10000000000)};
    assert_int_equal(
        render("{% set ns = namespace(v='') %}{% for i in range(90000) %}{% set ns.v = ns.v + 'abcd' %}"
               "{% endfor %}{{ ns.v|length }}",
               &limits, &out, &err),
        QR_OK);
    assert_string_equal(out.data, "360000");
    qr_buf_release(&out);
}

static void a_loop_over_content_is_found(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        bool parts;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", false},
        {"{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}", true},
        {"{% for m in messages %}{% set c = m.content %}{% if c is not string %}{% for p in c %}{% endfor "
         "%}{% endif %}{% endfor %}",
         true},
        {"{% macro r(content) %}{% for p in content %}{% endfor %}{% endmacro %}", true},
        {"{% for m in messages %}{% for t in m.tool_calls %}{% endfor %}{% endfor %}", false},
    };
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        qr_jinja *jinja = NULL;
        assert_int_equal(qr_jinja_compile(qr_str_of(cases[i].source), &jinja, NULL), QR_OK);
        assert_int_equal(qr_jinja_takes_parts(jinja, NULL), cases[i].parts);
        qr_jinja_free(jinja);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_print_as_python_prints_them),
        cmocka_unit_test(arithmetic_has_pythons_meaning),
        cmocka_unit_test(whitespace_control_follows_jinja2),
        cmocka_unit_test(loops_know_where_they_are),
        cmocka_unit_test(scopes_follow_jinja2),
        cmocka_unit_test(macros_bind_their_arguments),
        cmocka_unit_test(attributes_are_those_of_the_sandbox),
        cmocka_unit_test(filters_and_tests_work),
        cmocka_unit_test(a_broken_template_is_refused_with_line_and_column),
        cmocka_unit_test(deep_nesting_is_refused_not_crashed),
        cmocka_unit_test(limits_stop_what_does_not_end),
        cmocka_unit_test(a_string_built_in_a_loop_stays_linear),
        cmocka_unit_test(a_loop_over_content_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
