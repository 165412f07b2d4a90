// links: qr_text qr_base
/* Chat templates against what Jinja2 made of them. The files of templates/ are always there (make.py says what they
 * are); the whole of ../shared/data/chat-templates too where it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/vec.h"
#include "text/jinja_tree.h"

static int64_t recorded_now = 1721995200; /* 2024-07-26 12:00 UTC */

typedef struct lines {
    qr_buf text;
    size_t at;
    qr_json *row;
} lines;

static void open_lines(lines *in, const char *dir, const char *name)
{
    qr_error err = {0};
    char *path = qr_path_join(dir, name);
    *in = (lines){0};
    if (qr_file_read(path, 64u << 20, &in->text, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_free(path);
}

static const qr_json *next_row(lines *in)
{
    qr_error err = {0};
    qr_json_free(in->row);
    in->row = NULL;
    if (in->at >= in->text.len) {
        qr_buf_release(&in->text);
        return NULL;
    }
    const char *end = memchr(in->text.data + in->at, '\n', in->text.len - in->at);
    size_t len = end != NULL ? (size_t)(end - in->text.data) - in->at : in->text.len - in->at;
    if (qr_json_parse(qr_str_make(in->text.data + in->at, len), &qr_json_limits_request, &in->row, &err) !=
        QR_OK)
        fail_msg("%s", err.message);
    in->at += len + 1;
    return in->row;
}

typedef struct tally {
    int rows, wrong;
} tally;

/* want: the text, or NULL where the render must fail. */
static void check(tally *t, const char *name, qr_str source, const qr_jsyntax *syntax, const qr_json *context,
                  const qr_json *want)
{
    qr_error err = {0};
    qr_jinja *jinja = NULL;
    qr_buf out = {0};
    qr_status status = qr_jinja_compile_with(source, syntax, &jinja, &err);
    if (status == QR_OK)
        status = qr_jinja_render(jinja, context, recorded_now, NULL, &out, &err);
    qr_str text = qr_json_string(want);
    bool right = want == NULL ? status != QR_OK && err.message[0] != '\0'
                              : status == QR_OK && qr_str_equal(qr_buf_str(&out), text);
    t->rows++;
    if (!right && t->wrong++ < 5)
        printf("%s\n  want %.*s\n  got  %s\n", name, (int)QR_MIN(text.len, (size_t)2000), text.data,
               status == QR_OK ? out.data : err.message);
    qr_buf_release(&out);
    qr_jinja_free(jinja);
}

static const qr_jsyntax as_transformers = {.trim_blocks = true, .lstrip_blocks = true};

static void checkpoint_templates_render_as_recorded(void **state)
{
    (void)state;
    const char *dir = QR_TESTS_DIR "/golden/templates";
    qr_error err = {0};
    qr_json *contexts = NULL, *sources = qr_json_new_object();
    lines in;
    tally t = {0};
    char *path = qr_path_join(dir, "contexts.json");
    assert_int_equal(qr_json_read_file(path, &contexts, &err), QR_OK);
    qr_free(path);
    open_lines(&in, dir, "templates.jsonl");
    for (const qr_json *row; (row = next_row(&in)) != NULL;)
        qr_json_set(sources, qr_json_cstring(qr_json_get(row, "name"), "?"),
                    qr_json_copy(qr_json_get(row, "template")));
    open_lines(&in, dir, "expected.jsonl");
    for (const qr_json *row; (row = next_row(&in)) != NULL;) {
        const char *name = qr_json_cstring(qr_json_get(row, "template"), "?");
        const qr_json *context = qr_json_get(contexts, qr_json_cstring(qr_json_get(row, "case"), "?"));
        const qr_json *source = qr_json_get(sources, name);
        assert_non_null(context);
        assert_non_null(source);
        check(&t, name, qr_json_string(source), &as_transformers, context, qr_json_get(row, "text"));
    }
    qr_json_free(sources);
    qr_json_free(contexts);
    assert_true(t.rows >= 800);
    assert_int_equal(t.wrong, 0);
}

static void check_cases(const char *name, int rows_min)
{
    lines in;
    tally t = {0};
    open_lines(&in, QR_TESTS_DIR "/golden/templates", name);
    for (const qr_json *row; (row = next_row(&in)) != NULL;) {
        const qr_json *options = qr_json_get(row, "options");
        qr_jsyntax syntax = {.trim_blocks = qr_json_bool(qr_json_get(options, "trim_blocks"), true),
                             .lstrip_blocks = qr_json_bool(qr_json_get(options, "lstrip_blocks"), true)};
        qr_str source = qr_json_string(qr_json_get(row, "template"));
        check(&t, source.data, source, &syntax, qr_json_get(row, "context"), qr_json_get(row, "output"));
    }
    assert_true(t.rows >= rows_min);
    assert_int_equal(t.wrong, 0);
}

static void language_cases_come_out_as_in_jinja2(void **state)
{
    (void)state;
    check_cases("language.jsonl", 150);
}

static void generated_templates_come_out_as_in_jinja2(void **state)
{
    (void)state;
    recorded_now = 1721995509; /* tools/jinja_diff.py's */
    check_cases("generated.jsonl", 700);
    recorded_now = 1721995200;
}

/* ---- ../shared ---- */

static const char *shared_dir(void)
{
    const char *dir = qr_env("QR_SHARED_DIR");
    if (dir == NULL) {
        printf("skipped: QR_SHARED_DIR is not set\n");
        skip();
    }
    return dir;
}

/* The template that a row names: "path", "path#chat_template" or "path#chat_template[name]". */
static bool read_template(const char *data, const char *name, qr_buf *source)
{
    qr_error err = {0};
    const char *hash = strchr(name, '#');
    char *file = hash != NULL ? qr_strndup(name, (size_t)(hash - name)) : qr_strdup(name);
    char *path = qr_path_join(data, file);
    qr_json *json = NULL;
    qr_buf_clear(source);
    bool ok = false;
    if (hash == NULL) {
        ok = qr_file_read(path, 1u << 20, source, &err) == QR_OK;
    } else if (qr_json_read_file(path, &json, &err) == QR_OK) {
        const qr_json *value = qr_json_get(json, "chat_template");
        for (size_t i = 0; qr_json_is(value, QR_JSON_ARRAY) && i < qr_json_count(value); i++)
            if (strstr(hash, qr_json_cstring(qr_json_get(qr_json_at(value, i), "name"), "?")) != NULL)
                qr_buf_append_str(source, qr_json_string(qr_json_get(qr_json_at(value, i), "template")));
        qr_buf_append_str(source, qr_json_string(value));
        ok = source->len > 0;
    }
    qr_json_free(json);
    qr_free(path);
    qr_free(file);
    return ok;
}

static void all_recorded_renderings_of_shared_are_equal(void **state)
{
    (void)state;
    qr_error err = {0};
    qr_json *contexts = NULL;
    qr_buf source = {0}, name = {0};
    lines in;
    tally t = {0};
    char *data = qr_path_join(shared_dir(), "data"), *dir = qr_path_join(data, "chat-templates/goldens");
    char *path = qr_path_join(dir, "contexts.json");
    assert_int_equal(qr_json_read_file(path, &contexts, &err), QR_OK);
    open_lines(&in, dir, "goldens.jsonl");
    for (const qr_json *row; (row = next_row(&in)) != NULL;) {
        qr_str row_name = qr_json_string(qr_json_get(row, "template"));
        if (!qr_str_equal(row_name, qr_buf_str(&name))) {
            qr_buf_clear(&name);
            qr_buf_append_str(&name, row_name);
            assert_true(read_template(data, name.data, &source));
        }
        const qr_json *context = qr_json_get(contexts, qr_json_cstring(qr_json_get(row, "case"), "?"));
        check(&t, name.data, qr_buf_str(&source), &as_transformers, context, qr_json_get(row, "text"));
    }
    printf("%d renderings, %d differ\n", t.rows, t.wrong);
    qr_json_free(contexts);
    qr_buf_release(&source);
    qr_buf_release(&name);
    qr_free(path);
    qr_free(dir);
    qr_free(data);
    assert_int_equal(t.rows, 3380);
    assert_int_equal(t.wrong, 0);
}

static char *rendered(const char *source, const qr_json *context)
{
    qr_error err = {0};
    qr_jinja *jinja = NULL;
    qr_buf out = {0};
    assert_int_equal(qr_jinja_compile_with(qr_str_of(source), &as_transformers, &jinja, &err), QR_OK);
    if (qr_jinja_render(jinja, context, recorded_now, NULL, &out, &err) != QR_OK)
        fail_msg("%s", err.message);
    qr_jinja_free(jinja);
    return out.data;
}

/* Hammer2.1 writes its tools by `tools|string`: in Jinja2, and so in transformers and here, that is Python's way of
 * writing a list, with single quotes; huggingface.js, which made these rows, writes JSON. Nothing else may differ. */
static void check_hammer(const qr_json *row)
{
    const qr_json *data = qr_json_get(row, "data");
    char *got = rendered(qr_json_cstring(qr_json_get(row, "template"), ""), data);
    char *python = rendered("{{ tools|string }}", data), *json = rendered("{{ tools|tojson }}", data);
    char *at = strstr(got, python);
    assert_non_null(at);
    qr_buf text = {0};
    qr_buf_append(&text, got, (size_t)(at - got));
    qr_buf_append_cstr(&text, json);
    qr_buf_append_cstr(&text, at + strlen(python));
    assert_string_equal(text.data, qr_json_string(qr_json_get(row, "target")).data);
    qr_buf_release(&text);
    qr_free(got);
    qr_free(python);
    qr_free(json);
}

static void model_templates_of_huggingface_js_render(void **state)
{
    (void)state;
    lines in;
    tally t = {0};
    char *dir = qr_path_join(shared_dir(), "data/chat-templates/hf-jinja");
    recorded_now = 1752148800; /* 2025-07-10 12:00 UTC */
    open_lines(&in, dir, "e2e.jsonl");
    for (const qr_json *row; (row = next_row(&in)) != NULL;) {
        qr_str source = qr_json_string(qr_json_get(row, "template"));
        const char *name = qr_json_cstring(qr_json_get(row, "name"), "?");
        if (!qr_json_bool(qr_json_get(row, "jinja2_agrees"), true)) {
            assert_string_equal(name, "MadeAgents/Hammer2.1");
            check_hammer(row);
            continue;
        }
        check(&t, name, source, &as_transformers, qr_json_get(row, "data"), qr_json_get(row, "target"));
    }
    recorded_now = 1721995200;
    qr_free(dir);
    printf("%d templates of huggingface.js, %d differ; Hammer2.1's list of tools is Python's, as in Jinja2\n",
           t.rows, t.wrong);
    assert_int_equal(t.rows, 52);
    assert_int_equal(t.wrong, 0);
}

/* The conversations of mistral-common that its own encoder and its templates render alike (the encoder also rewrites
 * arguments and drops old calls in the others): U+2581 stands for a space there, <0x0A> for a newline. */
static void mistral_common_conversations_render_as_its_encoder_does(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"no_tools", "v1"},      {"no_tools", "v2"},
                                           {"no_tools", "v3"},      {"parallel_calls", "v3"},
                                           {"several_calls", "v2"}, {"several_calls", "v3"}};
    qr_error err = {0};
    tally t = {0};
    char *dir = qr_path_join(shared_dir(), "data/chat-templates/mistral-common");
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        qr_buf path = {0}, source = {0}, pieces = {0}, text = {0};
        qr_json *sample = NULL;
        qr_buf_printf(&path, "%s/samples/%s/sample.json", dir, cases[i][0]);
        assert_int_equal(qr_json_read_file(path.data, &sample, &err), QR_OK);
        qr_buf_clear(&path);
        qr_buf_printf(&path, "%s/%s_spm.jinja", dir, cases[i][1]);
        assert_int_equal(qr_file_read(path.data, 1u << 20, &source, &err), QR_OK);
        qr_buf_clear(&path);
        qr_buf_printf(&path, "%s/samples/%s/text_%s.txt", dir, cases[i][0], cases[i][1]);
        assert_int_equal(qr_file_read(path.data, 1u << 20, &pieces, &err), QR_OK);
        for (size_t at = 0; at < pieces.len;) {
            qr_str rest = qr_str_make(pieces.data + at, pieces.len - at);
            bool space = qr_str_starts(rest, QR_STR("\xe2\x96\x81")),
                 newline = qr_str_starts(rest, QR_STR("<0x0A>"));
            qr_buf_append_char(&text, space ? ' ' : newline ? '\n' : rest.data[0]);
            at += space ? 3 : newline ? 6 : 1;
        }
        qr_json_set(sample, "bos_token", qr_json_new_string(QR_STR("<s>")));
        qr_json_set(sample, "eos_token", qr_json_new_string(QR_STR("</s>")));
        qr_json *want = qr_json_new_string(qr_buf_str(&text));
        check(&t, cases[i][0], qr_buf_str(&source), &as_transformers, sample, want);
        qr_json_free(want);
        qr_json_free(sample);
        qr_buf_release(&path);
        qr_buf_release(&source);
        qr_buf_release(&pieces);
        qr_buf_release(&text);
    }
    qr_free(dir);
    assert_int_equal(t.wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checkpoint_templates_render_as_recorded),
        cmocka_unit_test(language_cases_come_out_as_in_jinja2),
        cmocka_unit_test(generated_templates_come_out_as_in_jinja2),
        cmocka_unit_test(all_recorded_renderings_of_shared_are_equal),
        cmocka_unit_test(model_templates_of_huggingface_js_render),
        cmocka_unit_test(mistral_common_conversations_render_as_its_encoder_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
