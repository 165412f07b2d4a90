/* Reads the command line and the config file into cli_options, by the table in settings.def. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"

typedef enum setting_kind { STRING, INT, INT64, BYTES, U64, FLOAT, FLAG, UNFLAG, LIST } setting_kind;

typedef struct setting {
    unsigned verbs;
    const char *name;
    setting_kind kind;
    size_t offset;
    const char *value; /* placeholder in --help; NULL for flags */
    const char *help;
} setting;

static const setting settings[] = {
#define SETTING(verbs, name, kind, field, value, help) \
    {verbs, name, kind, offsetof(cli_options, field), value, help},
#include "cli/settings.def"
#undef SETTING
};

void cli_options_init(cli_options *options)
{
    *options = (cli_options){.seed = -1,
                             .bench_prompts = 16,
                             .bench_input = 128,
                             .bench_output = 64,
                             .bench_batch = 1,
                             .bench_iterations = 5,
                             .bench_context = 512};
    qr_model_options_init(&options->model);
    qr_engine_options_init(&options->engine);
    qr_server_options_init(&options->server);
    qr_sampling_params_init(&options->sampling);
    qr_hub_options_init(&options->hub);
    options->sampling.temperature = 0.7f;
    options->sampling.top_p = 0.9f;
    options->sampling.max_tokens = -1;
}

/* ---- Values --------------------------------------------------------------------------------------------------- */

static qr_status bad_value(const setting *s, const char *value, const char *wants, qr_error *err)
{
    return qr_fail(err, QR_INVALID_ARGUMENT, "--%s: %s is expected, got '%s'", s->name, wants, value);
}

/* "8192", "8k", "1M" (1024s, as vLLM's lower-case k is 1000: k = 1000, K = 1024), "4GiB". */
static bool parse_scaled(const char *text, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || errno != 0 || !isfinite(value))
        return false;
    static const struct {
        const char *suffix;
        double factor;
    } units[] = {
        {"", 1},        {"k", 1e3},        {"m", 1e6},    {"g", 1e9},       {"K", 1024},
        {"M", 1048576}, {"G", 1073741824}, {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824},
        {"kB", 1e3},    {"MB", 1e6},       {"GB", 1e9},
    };
    for (size_t i = 0; i < QR_COUNT_OF(units); i++) {
        if (strcmp(end, units[i].suffix) != 0)
            continue;
        value *= units[i].factor;
        if (value != floor(value) || fabs(value) > 9e15)
            return false;
        *out = (int64_t)value;
        return true;
    }
    return false;
}

static qr_status set_number(const setting *s, void *field, const char *value, qr_error *err)
{
    int64_t number = 0;
    if (!parse_scaled(value, &number))
        return bad_value(s, value, "a whole number", err);
    if (s->kind == INT && (number < INT32_MIN || number > INT32_MAX))
        return bad_value(s, value, "a number below 2^31", err);
    if ((s->kind == BYTES || s->kind == U64) && number < 0)
        return bad_value(s, value, "a number that is not negative", err);
    if (s->kind == INT)
        *(int32_t *)field = (int32_t)number;
    else
        *(int64_t *)field = number; /* size_t, uint64_t and int64_t alike */
    return QR_OK;
}

static qr_status set_float(const setting *s, float *field, const char *value, qr_error *err)
{
    char *end = NULL;
    float number = strtof(value, &end);
    if (end == value || *end != '\0' || !isfinite(number))
        return bad_value(s, value, "a number", err);
    *field = number;
    return QR_OK;
}

static qr_status set_flag(const setting *s, bool *field, const char *value, qr_error *err)
{
    bool on = strcmp(value, "true") == 0 || strcmp(value, "1") == 0 || strcmp(value, "yes") == 0 ||
              strcmp(value, "on") == 0;
    bool off = strcmp(value, "false") == 0 || strcmp(value, "0") == 0 || strcmp(value, "no") == 0 ||
               strcmp(value, "off") == 0;
    if (!on && !off)
        return bad_value(s, value, "true or false", err);
    *field = s->kind == UNFLAG ? off : on;
    return QR_OK;
}

static qr_status set_value(cli_options *options, const setting *s, const char *value, qr_error *err)
{
    void *field = (char *)options + s->offset;
    cli_list *list = field;
    switch (s->kind) {
    case STRING: *(const char **)field = value; return QR_OK;
    case INT:
    case INT64:
    case BYTES:
    case U64: return set_number(s, field, value, err);
    case FLOAT: return set_float(s, field, value, err);
    case FLAG:
    case UNFLAG: return set_flag(s, field, value, err);
    case LIST:
        if (list->count == CLI_LIST_MAX)
            return qr_fail(err, QR_INVALID_ARGUMENT, "--%s: given more than %d times", s->name, CLI_LIST_MAX);
        list->items[list->count++] = value;
        return QR_OK;
    }
    return QR_OK;
}

/* ---- Names ---------------------------------------------------------------------------------------------------- */

static bool same_name(const char *given, size_t len, const char *name)
{
    if (strlen(name) != len)
        return false;
    for (size_t i = 0; i < len; i++)
        if ((given[i] == '_' ? '-' : given[i]) != name[i])
            return false;
    return true;
}

static const setting *find_setting(cli_verb verb, const char *name, size_t len)
{
    for (size_t i = 0; i < QR_COUNT_OF(settings); i++)
        if ((settings[i].verbs & (unsigned)verb) != 0 && same_name(name, len, settings[i].name))
            return &settings[i];
    return NULL;
}

/* Levenshtein distance of two short names. */
static int edit_distance(const char *a, size_t a_len, const char *b)
{
    enum { MAX = 48 };
    int row[MAX + 1];
    size_t b_len = strlen(b);
    if (a_len > MAX || b_len > MAX)
        return MAX;
    for (size_t j = 0; j <= b_len; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= a_len; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= b_len; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = QR_MIN(replaced, QR_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_len];
}

/* Options of vLLM that Quire does not take: refused with the reason, or passed over where leaving them out changes no
 * answer. A name that ends in '-' stands for all that begin with it. */
static const struct foreign {
    const char *name;
    const char *refusal; /* NULL: passed over */
    bool has_value;
} foreign_options[] = {
    {"ssl-", "TLS is not served yet: put a proxy in front", true},
    {"tensor-parallel-size", "several devices are not served yet", true},
    {"pipeline-parallel-size", "several devices are not served yet", true},
    {"data-parallel-size", "several replicas in one process are not served", true},
    {"quantization", "read from the checkpoint; AWQ, GPTQ, FP8 and INT8 are not served yet", true},
    {"speculative-config", "speculative decoding is not served yet", true},
    {"enable-lora", "LoRA adapters are not served yet", false},
    {"lora-modules", "LoRA adapters are not served yet", true},
    {"tokenizer", "the tokenizer is the checkpoint's", true},
    {"trust-remote-code", NULL, false},
    {"enable-auto-tool-choice", NULL, false},
    {"enable-reasoning", NULL, false},
    {"enforce-eager", NULL, false},
    {"enable-chunked-prefill", NULL, false},
    {"disable-log-requests", NULL, false},
    {"disable-log-stats", NULL, false},
    {"swap-space", NULL, true},
};

static const struct foreign *find_foreign(const char *name, size_t len)
{
    for (size_t i = 0; i < QR_COUNT_OF(foreign_options); i++) {
        const char *known = foreign_options[i].name;
        size_t known_len = strlen(known);
        bool prefix = known[known_len - 1] == '-' && len > known_len && strncmp(name, known, known_len) == 0;
        if (prefix || same_name(name, len, known))
            return &foreign_options[i];
    }
    return NULL;
}

static qr_status unknown_option(cli_verb verb, const char *name, size_t len, qr_error *err)
{
    int best = (int)len / 2 + 1;
    const char *nearest = edit_distance(name, len, "help") < best ? "help" : NULL;
    best = nearest != NULL ? edit_distance(name, len, "help") : best;
    for (size_t i = 0; i < QR_COUNT_OF(settings); i++) {
        int distance = edit_distance(name, len, settings[i].name);
        if ((settings[i].verbs & (unsigned)verb) == 0 || distance >= best)
            continue;
        best = distance;
        nearest = settings[i].name;
    }
    if (nearest != NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT, "unknown option --%.*s; did you mean --%s?", (int)len, name,
                       nearest);
    return qr_fail(err, QR_INVALID_ARGUMENT, "unknown option --%.*s; see --help", (int)len, name);
}

/* ---- Sources -------------------------------------------------------------------------------------------------- */

typedef struct file_target {
    cli_options *options;
    cli_verb verb;
} file_target;

static qr_status set_from_file(void *user, const char *name, const char *value, qr_error *err)
{
    file_target *target = user;
    if (strcmp(name, "model") == 0) {
        if (target->options->arguments.count == 0)
            target->options->arguments.items[target->options->arguments.count++] = value;
        return QR_OK;
    }
    const setting *s = find_setting(target->verb, name, strlen(name));
    if (s == NULL)
        return unknown_option(target->verb, name, strlen(name), err);
    return set_value(target->options, s, value, err);
}

/* One argument that begins with "--"; *used tells how many of argv it took. */
static qr_status parse_option(cli_options *options, cli_verb verb, int left, char **argv, int *used,
                              qr_error *err)
{
    const char *name = argv[0] + 2;
    const char *equals = strchr(name, '=');
    size_t len = equals != NULL ? (size_t)(equals - name) : strlen(name);
    *used = 1;
    const setting *s = find_setting(verb, name, len);
    const struct foreign *foreign = s == NULL ? find_foreign(name, len) : NULL;
    if (foreign != NULL && foreign->refusal != NULL)
        return qr_fail(err, QR_UNSUPPORTED, "--%.*s: %s", (int)len, name, foreign->refusal);
    if (foreign != NULL) {
        fprintf(stderr, "quire: --%.*s means nothing here and is passed over\n", (int)len, name);
        *used = foreign->has_value && equals == NULL ? 2 : 1;
        return QR_OK;
    }
    if (s == NULL && len > 3 && strncmp(name, "no-", 3) == 0) {
        s = find_setting(verb, name + 3, len - 3);
        if (s != NULL && (s->kind == FLAG || s->kind == UNFLAG) && equals == NULL)
            return set_value(options, s, "false", err);
        s = NULL;
    }
    if (s == NULL)
        return unknown_option(verb, name, len, err);
    if (equals != NULL)
        return set_value(options, s, equals + 1, err);
    if (s->kind == FLAG || s->kind == UNFLAG)
        return set_value(options, s, "true", err);
    if (left < 2)
        return qr_fail(err, QR_INVALID_ARGUMENT, "--%s: a value is expected: --%s %s", s->name, s->name,
                       s->value);
    *used = 2;
    return set_value(options, s, argv[1], err);
}

/* vLLM's short names of run-batch; NULL: it is none. */
static const char *long_name(cli_verb verb, const char *argument)
{
    if (verb != CLI_RUN_BATCH)
        return NULL;
    return strcmp(argument, "-i") == 0 ? "input-file" : strcmp(argument, "-o") == 0 ? "output-file" : NULL;
}

static qr_status set_short(cli_options *options, cli_verb verb, int left, char **argv, int *used,
                           qr_error *err)
{
    const char *name = long_name(verb, argv[0]);
    if (left < 2)
        return qr_fail(err, QR_INVALID_ARGUMENT, "%s: a file is expected", argv[0]);
    *used = 2;
    return set_value(options, find_setting(verb, name, strlen(name)), argv[1], err);
}

static qr_status parse_arguments(cli_options *options, cli_verb verb, int argc, char **argv, qr_error *err)
{
    bool options_end = false;
    for (int i = 0; i < argc;) {
        int used = 1;
        qr_status status = QR_OK;
        if (!options_end && strcmp(argv[i], "--") == 0) {
            options_end = true;
        } else if (!options_end && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            options->help = true;
        } else if (!options_end && strncmp(argv[i], "--", 2) == 0) {
            status = parse_option(options, verb, argc - i, argv + i, &used, err);
        } else if (!options_end && long_name(verb, argv[i]) != NULL) {
            status = set_short(options, verb, argc - i, argv + i, &used, err);
        } else if (options->arguments.count == CLI_LIST_MAX) {
            status = qr_fail(err, QR_INVALID_ARGUMENT, "more than %d arguments", CLI_LIST_MAX);
        } else {
            options->arguments.items[options->arguments.count++] = argv[i];
        }
        if (status != QR_OK)
            return status;
        i += used;
    }
    return QR_OK;
}

static const char *config_file_of(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            return argv[i + 1];
        if (strncmp(argv[i], "--config=", 9) == 0)
            return argv[i] + 9;
    }
    return NULL;
}

/* Names that stand for two values, and lists that other structs point to. */
static qr_status finish(cli_options *options, qr_error *err)
{
    options->engine.enable_prefix_caching = !options->no_prefix_caching;
    options->engine.gpu_memory_utilization = (double)options->gpu_memory_utilization;
    const char *policy = options->scheduling_policy;
    if (policy != NULL && strcmp(policy, "fcfs") != 0 && strcmp(policy, "priority") != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "--scheduling-policy: fcfs or priority is expected, got '%s'", policy);
    options->engine.priority_scheduling = policy != NULL && strcmp(policy, "priority") == 0;
    if (options->seed >= 0) {
        options->engine.seed = (uint64_t)options->seed;
        options->sampling.has_seed = true;
        options->sampling.seed = (uint64_t)options->seed;
    }
    options->sampling.stop = options->stop.items;
    options->sampling.stop_count = options->stop.count;
    return QR_OK;
}

qr_status cli_options_parse(cli_options *options, cli_verb verb, int argc, char **argv, qr_error *err)
{
    /* The file first, so that the command line wins; its lists and MODEL are replaced, not added to. */
    cli_options from_file = *options;
    const char *file = config_file_of(argc, argv);
    qr_status status = QR_OK;
    if (file != NULL)
        status = cli_settings_file_read(file, set_from_file, &(file_target){&from_file, verb}, err);
    if (status != QR_OK)
        return status;
    const char *model_of_file = from_file.arguments.count > 0 ? from_file.arguments.items[0] : NULL;
    *options = from_file;
    options->arguments.count = 0;
    status = parse_arguments(options, verb, argc, argv, err);
    if (status != QR_OK)
        return status;
    if (options->arguments.count == 0 && model_of_file != NULL)
        options->arguments.items[options->arguments.count++] = model_of_file;
    return finish(options, err);
}

void cli_options_print(cli_verb verb)
{
    for (size_t i = 0; i < QR_COUNT_OF(settings); i++) {
        const setting *s = &settings[i];
        if ((s->verbs & (unsigned)verb) == 0)
            continue;
        char left[80];
        snprintf(left, sizeof(left), "--%s%s%s", s->name, s->value != NULL ? " " : "",
                 s->value != NULL ? s->value : "");
        printf("  %-38s %s\n", left, s->help);
    }
}
