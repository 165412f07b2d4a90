// links: qr_text qr_base
/* Chat templates from the shell: `bench_template time FILE.jinja CONTEXT.json [N]` times renders of the engine,
 * `bench_template chat TOKENIZER REQUEST.json [N]` whole chat requests (JSON in, prompt out);
 * `bench_template cases` reads one JSON object a line from stdin ({"template", "context", "options", "now"})
 * and writes one a line ({"output"} or {"error"}): tools/jinja_diff.py compares those with Jinja2. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "text/chat.h"
#include "text/jinja_tree.h"

static void answer(const char *key, qr_str text)
{
    qr_buf line = {0};
    qr_buf_printf(&line, "{\"%s\": ", key);
    qr_json_append_string(&line, text);
    qr_buf_append_cstr(&line, "}");
    puts(line.data);
    qr_buf_release(&line);
}

static void run_case(qr_str line)
{
    qr_error err = {0};
    qr_json *json = NULL;
    qr_jinja *jinja = NULL;
    qr_buf out = {0};
    qr_status status = qr_json_parse(line, &qr_json_limits_request, &json, &err);
    if (status == QR_OK) {
        const qr_json *options = qr_json_get(json, "options");
        qr_jsyntax syntax = {.trim_blocks = qr_json_bool(qr_json_get(options, "trim_blocks"), true),
                             .lstrip_blocks = qr_json_bool(qr_json_get(options, "lstrip_blocks"), true)};
        status = qr_jinja_compile_with(qr_json_string(qr_json_get(json, "template")), &syntax, &jinja, &err);
    }
    if (status == QR_OK)
        status = qr_jinja_render(jinja, qr_json_get(json, "context"),
                                 qr_json_int(qr_json_get(json, "now"), 0), NULL, &out, &err);
    if (status == QR_OK)
        answer("output", qr_buf_str(&out));
    else
        answer("error", qr_str_of(err.message));
    qr_buf_release(&out);
    qr_jinja_free(jinja);
    qr_json_free(json);
}

static int run_cases(void)
{
    char *line = NULL;
    size_t capacity = 0;
    for (ssize_t len; (len = getline(&line, &capacity, stdin)) > 0;)
        run_case(qr_str_make(line, (size_t)len));
    free(line);
    return 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int time_renders(const char *template_path, const char *context_path, int count)
{
    qr_error err = {0};
    qr_buf source = {0}, out = {0};
    qr_jinja *jinja = NULL;
    qr_json *context = NULL;
    if (qr_file_read(template_path, 1 << 20, &source, &err) != QR_OK ||
        qr_json_read_file(context_path, &context, &err) != QR_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    uint64_t start = qr_clock_ns();
    if (qr_jinja_compile(qr_buf_str(&source), &jinja, &err) != QR_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    uint64_t compile_ns = qr_clock_ns() - start, *times = qr_calloc((size_t)count, sizeof(uint64_t));
    for (int i = 0; i < count; i++) {
        qr_buf_clear(&out);
        start = qr_clock_ns();
        if (qr_jinja_render(jinja, context, 0, NULL, &out, &err) != QR_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        times[i] = qr_clock_ns() - start;
    }
    qsort(times, (size_t)count, sizeof(uint64_t), by_value);
    printf("{\"compile_us\": %.1f, \"render_us_median\": %.2f, \"render_us_min\": %.2f, \"bytes\": %zu}\n",
           (double)compile_ns / 1e3, (double)times[count / 2] / 1e3, (double)times[0] / 1e3, out.len);
    qr_free(times);
    qr_buf_release(&source);
    qr_buf_release(&out);
    qr_jinja_free(jinja);
    qr_json_free(context);
    return 0;
}

static int time_chats(const char *tokenizer_path, const char *request_path, int count)
{
    qr_error err = {0};
    qr_tokenizer *tokenizer = NULL;
    qr_json *request = NULL;
    qr_buf out = {0};
    if (qr_text_tokenizer_from_dir(tokenizer_path, &tokenizer, &err) != QR_OK ||
        qr_json_read_file(request_path, &request, &err) != QR_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    uint64_t *times = qr_calloc((size_t)count, sizeof(uint64_t));
    for (int i = 0; i < count; i++) {
        qr_buf_clear(&out);
        uint64_t start = qr_clock_ns();
        if (qr_chat_render(tokenizer, request, 0, &out, &err) != QR_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        times[i] = qr_clock_ns() - start;
    }
    qsort(times, (size_t)count, sizeof(uint64_t), by_value);
    printf("{\"chat_us_median\": %.2f, \"chat_us_min\": %.2f, \"bytes\": %zu}\n",
           (double)times[count / 2] / 1e3, (double)times[0] / 1e3, out.len);
    qr_free(times);
    qr_buf_release(&out);
    qr_json_free(request);
    qr_tokenizer_close(tokenizer);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "cases") == 0)
        return run_cases();
    if (argc >= 4 && strcmp(argv[1], "time") == 0)
        return time_renders(argv[2], argv[3], argc > 4 ? atoi(argv[4]) : 1000);
    if (argc >= 4 && strcmp(argv[1], "chat") == 0)
        return time_chats(argv[2], argv[3], argc > 4 ? atoi(argv[4]) : 1000);
    fprintf(
        stderr,
        "usage: bench_template cases | time FILE.jinja CONTEXT.json [N] | chat TOKENIZER REQUEST.json [N]\n");
    return 2;
}
