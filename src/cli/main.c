/* quire: the verbs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"

typedef struct verb_row {
    const char *name;
    cli_verb verb;
    int (*run)(cli_options *options);
    const char *arguments;
    const char *summary;
    const char *example;
} verb_row;

static const verb_row verbs[] = {
    {"serve", CLI_SERVE, cli_serve, "MODEL", "serve a model over OpenAI's API, with a chat page at /",
     "quire serve ./SmolLM2-135M-Instruct.Q4_1.gguf --port 8000"},
    {"run", CLI_RUN, cli_run, "MODEL [\"prompt\"]", "answer one prompt, or chat when none is given",
     "quire run ./model \"Why is the sky blue?\" --temperature 0"},
    {"inspect", CLI_INSPECT, cli_inspect, "MODEL",
     "show architecture, formats and the exact memory plan, without loading",
     "quire inspect HuggingFaceTB/SmolLM2-135M-Instruct --max-model-len 2048"},
    {"tokenize", CLI_TOKENIZE, cli_tokenize, "MODEL TEXT...",
     "show the token ids of a text (or the text of ids: --decode)", "quire tokenize ./model \"Hello world\""},
    {"template", CLI_TEMPLATE, cli_template, "MODEL [FILE]",
     "show the prompt that the chat template makes of a request",
     "echo '[{\"role\":\"user\",\"content\":\"Hi\"}]' | quire template ./model"},
    {"bench", CLI_BENCH, cli_bench,
     "limits | throughput MODEL | latency MODEL | rows MODEL | online MODEL | perplexity MODEL",
     "measure, next to this machine's limits",
     "quire bench throughput ./model --num-prompts 32 --input-len 128 --output-len 64"},
    {"run-batch", CLI_RUN_BATCH, cli_run_batch, "-i IN.jsonl -o OUT.jsonl MODEL",
     "answer an OpenAI batch file; restartable",
     "quire run-batch -i requests.jsonl -o answers.jsonl ./model"},
    {"pull", CLI_PULL, cli_pull, "ORG/NAME", "download a model from the Hugging Face hub",
     "quire pull ORG/NAME"},
};

static void print_usage(FILE *to)
{
    fprintf(to, "quire %s: LLM inference in one small program\n\nusage: quire VERB [arguments] [options]\n\n",
            qr_version());
    for (size_t i = 0; i < QR_COUNT_OF(verbs); i++)
        fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fputs("\nMODEL is a folder with a Hugging Face checkpoint, a .gguf file, or ORG/NAME on the hub.\n"
          "quire VERB --help shows a verb's options; quire --version the version.\n",
          to);
}

static void print_verb_help(const verb_row *row)
{
    printf("quire %s %s\n    %s\n\nexample:\n    %s\n\noptions:\n", row->name, row->arguments, row->summary,
           row->example);
    cli_options_print(row->verb);
}

static void log_to_stderr(void *user, int level, const char *line)
{
    (void)user;
    (void)level;
    fprintf(stderr, "%s\n", line);
}

/* serve logs what happens; the other verbs only what is wrong. */
static qr_status start_log(const cli_options *options, cli_verb verb, qr_error *err)
{
    static const char *const names[] = {"debug", "info", "warn", "error", "off"};
    int level = verb == CLI_SERVE ? 1 : 2;
    for (int i = 0; options->log_level != NULL; i++) {
        if (i == (int)QR_COUNT_OF(names))
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "--log-level: debug, info, warn, error or off is expected, got '%s'",
                           options->log_level);
        if (strcmp(options->log_level, names[i]) == 0) {
            level = i;
            break;
        }
    }
    qr_log_to(level, log_to_stderr, NULL);
    return QR_OK;
}

static int run_verb(const verb_row *row, int argc, char **argv)
{
    static cli_options options; /* large, and its strings are borrowed until the end */
    qr_error err = {0};
    cli_options_init(&options);
    if (cli_options_parse(&options, row->verb, argc, argv, &err) != QR_OK)
        return cli_fail(row->name, &err);
    if (options.help) {
        print_verb_help(row);
        return 0;
    }
    if (start_log(&options, row->verb, &err) != QR_OK)
        return cli_fail(row->name, &err);
    return row->run(&options);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("quire %s\n", qr_version());
        return 0;
    }
    for (size_t i = 0; i < QR_COUNT_OF(verbs); i++)
        if (strcmp(name, verbs[i].name) == 0)
            return run_verb(&verbs[i], argc - 2, argv + 2);
    fprintf(stderr, "quire: no such verb: %s\n\n", name);
    print_usage(stderr);
    return 2;
}
