/* What several verbs share: finding and opening a model, running one request, printing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/cli.h"

int cli_fail(const char *verb, const qr_error *err)
{
    fprintf(stderr, "quire %s: %s\n", verb,
            err->message[0] != '\0' ? err->message : qr_status_text(err->status));
    return err->status == QR_INVALID_ARGUMENT ? 2 : 1;
}

void cli_human_bytes(uint64_t bytes, char *out, size_t out_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < QR_COUNT_OF(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(out, out_bytes, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
}

/* One line that is redrawn at most ten times a second, only on a terminal. user: const char * label or NULL. */
void cli_progress_bar(void *user, const char *what, uint64_t done, uint64_t total)
{
    static uint64_t last_ns;
    const char *label = user;
    bool whole = total > 0 && done >= total;
    uint64_t now = qr_clock_ns();
    if (!isatty(STDERR_FILENO) || (!whole && now - last_ns < 100000000))
        return;
    last_ns = now;
    char have[32], all[32];
    cli_human_bytes(done, have, sizeof(have));
    cli_human_bytes(total, all, sizeof(all));
    int filled = total > 0 ? (int)((double)done * 30.0 / (double)total) : 0;
    filled = QR_MIN(filled, 30);
    fprintf(stderr, "\r%s%s%-24.24s [%.*s%*s] %s / %s\033[K", label != NULL ? label : "",
            label != NULL ? " " : "", what, filled, "##############################", 30 - filled, "", have,
            total > 0 ? all : "?");
    if (whole)
        fputs("\r\033[K", stderr);
    fflush(stderr);
}

/* "ORG/NAME", with an optional ":QUANT" or "/FILE.gguf" that the hub verb understands. */
static bool looks_like_repo(const char *name)
{
    const char *slash = strchr(name, '/');
    return slash != NULL && slash != name && slash[1] != '\0' && name[0] != '.' && name[0] != '/' &&
           name[0] != '~';
}

qr_status cli_model_path(const cli_options *options, char **path, qr_error *err)
{
    if (options->arguments.count == 0)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "a MODEL is expected: a folder, a .gguf file or ORG/NAME; see --help");
    const char *name = options->arguments.items[0];
    if (qr_file_exists(name) || !looks_like_repo(name)) {
        if (!qr_file_exists(name))
            return qr_fail(err, QR_NOT_FOUND, "model: no such folder or file: %s", name);
        *path = qr_strdup(name);
        return QR_OK;
    }
    qr_hub_options hub = options->hub;
    hub.repo = name;
    hub.progress = cli_progress_bar;
    return qr_hub_pull(&hub, path, err);
}

/* --chat-template takes a file, or a template given in full (it has a brace then). */
static qr_status apply_chat_template(const cli_options *options, qr_tokenizer *tokenizer, qr_error *err)
{
    if (options->chat_template == NULL)
        return QR_OK;
    if (tokenizer == NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT, "--chat-template: this model has no tokenizer");
    qr_buf source = {0};
    qr_status status = QR_OK;
    if (strchr(options->chat_template, '{') != NULL)
        qr_buf_append_cstr(&source, options->chat_template);
    else
        status = qr_file_read(options->chat_template, 4 << 20, &source, err);
    if (status == QR_OK)
        status = qr_tokenizer_set_chat_template(tokenizer, source.data != NULL ? source.data : "", err);
    qr_buf_release(&source);
    return status;
}

qr_status cli_model_open(cli_options *options, qr_model **model, qr_error *err)
{
    char *path = NULL;
    qr_status status = cli_model_path(options, &path, err);
    if (status != QR_OK)
        return status;
    qr_model_options model_options = options->model;
    model_options.path = path;
    model_options.progress = cli_progress_bar;
    model_options.progress_user = (void *)(uintptr_t) "loading";
    model_options.engine_options = &options->engine;
    status = qr_model_open(&model_options, model, err);
    qr_string_free(path);
    if (status != QR_OK)
        return status;
    status = apply_chat_template(options, qr_model_tokenizer_mutable(*model), err);
    if (status != QR_OK) {
        qr_model_close(*model);
        *model = NULL;
    }
    return status;
}

qr_status cli_tokenizer_open(const cli_options *options, qr_tokenizer **tokenizer, qr_error *err)
{
    char *path = NULL;
    qr_status status = cli_model_path(options, &path, err);
    if (status != QR_OK)
        return status;
    status = qr_tokenizer_open(path, tokenizer, err);
    qr_string_free(path);
    if (status != QR_OK)
        return status;
    status = apply_chat_template(options, *tokenizer, err);
    if (status != QR_OK) {
        qr_tokenizer_close(*tokenizer);
        *tokenizer = NULL;
    }
    return status;
}

qr_status cli_generate(qr_engine *engine, qr_poller *poller, const qr_request_options *request,
                       cli_text_fn on_text, void *user, qr_finish *finish, qr_error *err)
{
    qr_request *running = NULL;
    qr_status status = qr_request_submit(engine, poller, request, &running, err);
    if (status != QR_OK)
        return status;
    qr_finish end = QR_FINISH_NONE;
    while (end == QR_FINISH_NONE) {
        qr_event events[16];
        size_t count = qr_poller_poll(poller, events, QR_COUNT_OF(events), -1);
        for (size_t i = 0; i < count; i++) {
            if (on_text != NULL && events[i].text_bytes > 0)
                on_text(user, events[i].text, events[i].text_bytes);
            end = events[i].finish;
            if (end == QR_FINISH_ERROR)
                status = qr_fail(err, events[i].status, "%s", events[i].message);
        }
    }
    qr_request_release(running);
    if (finish != NULL)
        *finish = end;
    return status;
}

void cli_default_served_names(cli_options *options)
{
    if (options->served_names.count > 0)
        return;
    const char *given = options->arguments.items[0];
    char *name = qr_strdup(qr_path_basename(given));
    size_t len = strlen(name);
    if (qr_file_exists(given)) {
        if (len > 5 && strcmp(name + len - 5, ".gguf") == 0)
            name[len - 5] = '\0';
        options->served_names.items[options->served_names.count++] = name;
    } else {
        qr_free(name);
    }
    options->served_names.items[options->served_names.count++] = given;
}

/* ---- JSON as a table ------------------------------------------------------------------------------------------ */

static void print_scalar(qr_str key, const qr_json *value)
{
    char human[40];
    if (qr_json_is(value, QR_JSON_INT) && qr_str_ends(key, QR_STR("bytes"))) {
        cli_human_bytes((uint64_t)qr_json_int(value, 0), human, sizeof(human));
        printf("%s (%lld)\n", human, (long long)qr_json_int(value, 0));
        return;
    }
    if (qr_json_is(value, QR_JSON_REAL)) {
        printf("%.4g\n", qr_json_number(value, 0));
        return;
    }
    qr_buf text = {0};
    if (qr_json_is(value, QR_JSON_STRING))
        qr_buf_append_str(&text, qr_json_string(value));
    else
        qr_json_write(value, 0, &text);
    printf("%.*s\n", (int)text.len, text.data != NULL ? text.data : "");
    qr_buf_release(&text);
}

/* Walks with a stack of its own: depth is bounded by the parser's limit. */
static void print_tree(const qr_json *root)
{
    enum { DEPTH_MAX = 64 };
    struct {
        const qr_json *object;
        void *iter;
    } stack[DEPTH_MAX];
    int depth = 0;
    stack[0].object = root;
    stack[0].iter = qr_json_iter(root);
    while (depth >= 0) {
        void *iter = stack[depth].iter;
        if (iter == NULL) {
            depth--;
            continue;
        }
        stack[depth].iter = qr_json_iter_next(stack[depth].object, iter);
        qr_str key = qr_json_iter_key(iter);
        const qr_json *value = qr_json_iter_value(iter);
        bool section = qr_json_is(value, QR_JSON_OBJECT) && qr_json_count(value) > 0 && depth + 1 < DEPTH_MAX;
        printf("%*s%-*.*s%s", depth * 2, "", section ? 0 : 30 - depth * 2, (int)key.len, key.data,
               section ? "\n" : " ");
        if (!section) {
            print_scalar(key, value);
            continue;
        }
        depth++;
        stack[depth].object = value;
        stack[depth].iter = qr_json_iter(value);
    }
}

qr_status cli_print_json(const char *json, bool raw, qr_error *err)
{
    qr_json *root = NULL;
    qr_status status = qr_json_parse(qr_str_of(json), &qr_json_limits_file, &root, err);
    if (status != QR_OK)
        return status;
    if (raw || !qr_json_is(root, QR_JSON_OBJECT)) {
        qr_buf text = {0};
        qr_json_write(root, 2, &text);
        printf("%s\n", text.data);
        qr_buf_release(&text);
    } else {
        print_tree(root);
    }
    qr_json_free(root);
    return QR_OK;
}
