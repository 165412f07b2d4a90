/* The command line: one verb, one file. Everything goes through quire.h and server/server.h.
 * Thread: the main thread. */
#ifndef QR_CLI_CLI_H
#define QR_CLI_CLI_H

#include "base/status.h"
#include "base/str.h"
#include "quire.h"
#include "server/server.h"

#define CLI_LIST_MAX 32

typedef struct cli_list {
    const char *items[CLI_LIST_MAX];
    size_t count;
} cli_list;

/* Everything that settings.def can set, with the defaults of cli_options_init. Strings are borrowed from argv or
 * from the config file's text, which lives as long as the process. */
typedef struct cli_options {
    cli_list arguments; /* positional: MODEL first */
    const char *config_file;
    const char *log_level;
    bool help;

    qr_model_options model;
    qr_engine_options engine;
    qr_server_options server;
    qr_sampling_params sampling;
    qr_hub_options hub;

    bool no_prefix_caching;
    float gpu_memory_utilization;
    const char *scheduling_policy;
    const char *deterministic;
    const char *chat_template; /* a file, or the template itself */
    cli_list served_names;
    cli_list api_keys;
    const char *api_key_file;
    bool exit_with_stdin;
    cli_list allowed_origins, allowed_hosts;

    const char *system_prompt;
    bool raw;
    bool json;
    bool no_special;
    bool decode;
    cli_list stop;
    int64_t seed; /* -1: none given */

    int32_t bench_prompts, bench_input, bench_output, bench_batch, bench_iterations, bench_context,
        bench_chunks;
    float bench_rate, bench_first_ms, bench_between_ms; /* 0: at once, no limit */
    const char *text_file;
    const char *bench_rows;
    const char *output_file;
    bool refresh;

    const char *batch_input, *batch_output, *batch_model;
} cli_options;

typedef enum cli_verb {
    CLI_SERVE = 1 << 0,
    CLI_RUN = 1 << 1,
    CLI_INSPECT = 1 << 2,
    CLI_TOKENIZE = 1 << 3,
    CLI_TEMPLATE = 1 << 4,
    CLI_BENCH = 1 << 5,
    CLI_PULL = 1 << 6,
    CLI_RUN_BATCH = 1 << 7,
} cli_verb;

/* options.c */
void cli_options_init(cli_options *options);
/* Reads --config first, then argv over it. Errors: QR_INVALID_ARGUMENT, with the nearest name for an unknown one. */
qr_status cli_options_parse(cli_options *options, cli_verb verb, int argc, char **argv, qr_error *err);
void cli_options_print(cli_verb verb); /* the part of --help that settings.def gives */

/* settings_file.c: `key: value` lines or a JSON object; calls set for each pair. text stays alive. */
typedef qr_status (*cli_set_fn)(void *user, const char *name, const char *value, qr_error *err);
qr_status cli_settings_file_read(const char *path, cli_set_fn set, void *user, qr_error *err);

/* common.c */
/* A folder or .gguf file as it is; ORG/NAME from the hub. *path is freed by qr_string_free. */
qr_status cli_model_path(const cli_options *options, char **path, qr_error *err);
/* Opens the model of options->arguments[0], with a progress bar on a terminal and --chat-template applied. */
qr_status cli_model_open(cli_options *options, qr_model **model, qr_error *err);
qr_status cli_tokenizer_open(const cli_options *options, qr_tokenizer **tokenizer, qr_error *err);
/* Runs one request to its end. on_text may be NULL. */
typedef void (*cli_text_fn)(void *user, const char *text, size_t bytes);
qr_status cli_generate(qr_engine *engine, qr_poller *poller, const qr_request_options *request,
                       cli_text_fn on_text, void *user, qr_finish *finish, qr_error *err);
void cli_progress_bar(void *user, const char *what, uint64_t done, uint64_t total);
/* Prints a JSON text as a readable table: objects as sections, *_bytes in units. */
qr_status cli_print_json(const char *json, bool raw, qr_error *err);
/* Without --served-model-name: clients may use the file's name, or MODEL as it was given. */
void cli_default_served_names(cli_options *options);
int cli_fail(const char *verb, const qr_error *err); /* prints and returns the exit code */
void cli_human_bytes(uint64_t bytes, char *out, size_t out_bytes);

/* One function a verb; each returns the exit code. */
int cli_serve(cli_options *options);
int cli_run(cli_options *options);
int cli_inspect(cli_options *options);
int cli_tokenize(cli_options *options);
int cli_template(cli_options *options);
int cli_bench(cli_options *options);
int cli_pull(cli_options *options);
int cli_run_batch(cli_options *options);

#endif
