/* quire serve MODEL: takes the port, loads, listens. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"

typedef struct serve_ready {
    uint64_t started_ns;
    const char *name;
    bool page;
} serve_ready;

static void print_ready(void *user, const char *host, int port)
{
    const serve_ready *ready = user;
    double seconds = (double)(qr_clock_ns() - ready->started_ns) / 1e9;
    bool v6 = strchr(host, ':') != NULL;
    fprintf(stderr, "quire serves %s on http://%s%s%s:%d (ready in %.2f s)%s\n", ready->name, v6 ? "[" : "",
            host, v6 ? "]" : "", port, seconds, ready->page ? "; the chat page is at /" : "");
}

static void *end_with_stdin(void *unused)
{
    char bytes[64];
    while (read(STDIN_FILENO, bytes, sizeof(bytes)) > 0)
        continue;
    kill(getpid(), SIGKILL);
    return unused;
}

/* A supervisor killed by SIGKILL cannot stop its server, but the kernel closes its end of the pipe. Unlike
 * PR_SET_PDEATHSIG this has no window before the first instruction and does not depend on the thread that forked. */
static qr_status follow_stdin(qr_error *err)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_with_stdin, NULL) != 0)
        return qr_fail(err, QR_OUT_OF_MEMORY, "--exit-with-stdin: no thread for it");
    pthread_detach(thread);
    return QR_OK;
}

/* One key a line; the file's text lives as long as the process. */
static qr_status read_api_keys(cli_options *options, qr_error *err)
{
    const char *from_environment =
        qr_env("QUIRE_API_KEY") != NULL ? qr_env("QUIRE_API_KEY") : qr_env("VLLM_API_KEY");
    if (from_environment != NULL && options->api_keys.count < CLI_LIST_MAX)
        options->api_keys.items[options->api_keys.count++] = from_environment;
    if (options->api_key_file == NULL)
        return QR_OK;
    qr_buf text = {0};
    qr_status status = qr_file_read(options->api_key_file, 64 << 10, &text, err);
    if (status != QR_OK)
        return status;
    size_t before = options->api_keys.count;
    for (char *rest = text.data, *line; rest != NULL && (line = strsep(&rest, "\r\n")) != NULL;) {
        if (*line == '\0')
            continue;
        if (options->api_keys.count == CLI_LIST_MAX)
            return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: more than %d keys", options->api_key_file,
                           CLI_LIST_MAX);
        options->api_keys.items[options->api_keys.count++] = line;
    }
    if (options->api_keys.count == before)
        return qr_fail(err, QR_INVALID_ARGUMENT, "%s: no key in it", options->api_key_file);
    return QR_OK;
}

static qr_status serve(cli_options *options, qr_server *server, serve_ready *ready, qr_error *err)
{
    qr_model *model = NULL;
    qr_engine *engine = NULL;
    qr_status status = cli_model_open(options, &model, err);
    if (status == QR_OK)
        status = qr_engine_open(model, &options->engine, &engine, err);
    if (status == QR_OK) {
        ready->name = options->served_names.items[0];
        status = qr_server_run(server, engine, model, err);
    }
    qr_engine_close(engine);
    qr_model_close(model);
    return status;
}

int cli_serve(cli_options *options)
{
    qr_error err = {0};
    serve_ready ready = {.started_ns = qr_clock_ns(), .page = !options->server.no_chat_page};
    if (options->arguments.count != 1) {
        qr_fail(&err, QR_INVALID_ARGUMENT,
                "one MODEL is expected: a folder, a .gguf file or ORG/NAME; see quire serve --help");
        return cli_fail("serve", &err);
    }
    if (read_api_keys(options, &err) != QR_OK || (options->exit_with_stdin && follow_stdin(&err) != QR_OK))
        return cli_fail("serve", &err);
    cli_default_served_names(options);
    options->server.api_keys = options->api_keys.items;
    options->server.api_key_count = options->api_keys.count;
    options->server.served_names = options->served_names.items;
    options->server.served_name_count = options->served_names.count;
    options->server.allowed_origins = options->allowed_origins.items;
    options->server.allowed_origin_count = options->allowed_origins.count;
    options->server.allowed_hosts = options->allowed_hosts.items;
    options->server.allowed_host_count = options->allowed_hosts.count;
    options->server.model_root = options->arguments.items[0];
    options->server.on_ready = print_ready;
    options->server.on_ready_user = &ready;

    qr_server *server = NULL;
    qr_status status = qr_server_open(&options->server, &server, &err);
    if (status == QR_OK)
        status = serve(options, server, &ready, &err);
    qr_server_close(server);
    return status == QR_OK ? 0 : cli_fail("serve", &err);
}
