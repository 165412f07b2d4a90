/* A fake of quire.h's engine for tests of the server: no model, a byte tokenizer, one thread that gives each running
 * request a token a step. What a request says is a function of its prompt alone, so streamed and whole replies can be
 * compared. Included by one file of a test program. */
#ifndef QR_TESTS_FAKE_ENGINE_H
#define QR_TESTS_FAKE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "quire.h"

#define FAKE_TOKENS_MAX   8192
#define FAKE_REQUESTS_MAX 256
#define FAKE_EOS          256
#define FAKE_VOCAB        257

struct qr_tokenizer {
    int unused;
};
struct qr_model {
    qr_tokenizer tokenizer;
};

typedef struct fake_sample {
    int32_t ids[FAKE_TOKENS_MAX];
    char text[FAKE_TOKENS_MAX + 1];
    qr_logprob rows[FAKE_TOKENS_MAX * 4];
    size_t made, seen; /* tokens made by the thread; handed out by the poller */
    qr_finish finish;
    bool finish_seen;
    int32_t stop_string;
} fake_sample;

struct qr_request {
    struct qr_engine *engine;
    void *user;
    int n, columns;
    size_t max_tokens;
    bool cancelled, failed, failed_seen, ignore_eos;
    char stop[64];
    int32_t prompt[4096];
    size_t prompt_count;
    char *script; /* what it says, of its own */
    fake_sample *samples;
};

struct qr_engine {
    pthread_mutex_t mutex;
    pthread_t thread;
    bool closing, draining;
    int news_fd;
    qr_request *requests[FAKE_REQUESTS_MAX];
    _Atomic size_t capacity;     /* requests accepted at once; then QR_BUSY */
    _Atomic int step_us;         /* time of a step */
    _Atomic int step_tokens;     /* of each sample in a step */
    _Atomic bool healthy, stuck; /* stuck: no token comes */
    _Atomic uint64_t cancels, submitted;
};
struct qr_poller {
    qr_engine *engine;
};

/* What a test may set while no request runs: what every request says, how many bytes an event carries at most, the
 * checkpoint's chat template, and what the prompt ends in. */
static const char *fake_script, *fake_template, *fake_prompt_end;
static size_t fake_event_bytes;
static bool fake_echo; /* a chat request says what its last message says */

static inline const char *fake_text(const qr_request *request)
{
    if (request->script != NULL)
        return request->script;
    if (fake_script != NULL)
        return fake_script;
    return "Once upon a time there was a small engine that could. \xC3\xA9t\xC3\xA9! ";
}

static inline int32_t fake_next(const qr_request *request, int sample, size_t at)
{
    const char *text = fake_text(request);
    size_t len = strlen(text);
    if (!request->ignore_eos && at >= len)
        return FAKE_EOS;
    return (unsigned char)text[(at + (size_t)sample) % len];
}

static inline void fake_make(qr_request *request, int index)
{
    fake_sample *sample = &request->samples[index];
    if (sample->finish != QR_FINISH_NONE)
        return;
    if (request->cancelled) {
        sample->finish = QR_FINISH_ABORT;
        return;
    }
    if (request->max_tokens == 0) {
        sample->finish = QR_FINISH_LENGTH;
        return;
    }
    int32_t id = fake_next(request, index, sample->made);
    if (id == FAKE_EOS) {
        sample->finish = QR_FINISH_STOP;
        return;
    }
    for (int c = 0; c < request->columns; c++)
        sample->rows[sample->made * (size_t)request->columns + (size_t)c] = (qr_logprob){
            .token = c == 0 ? id : 'a' + c - 1, .rank = c == 0 ? 1 : c, .logprob = -0.25f * (float)(c + 1)};
    sample->ids[sample->made] = id;
    sample->text[sample->made++] = (char)id;
    sample->text[sample->made] = '\0';
    size_t stop = strlen(request->stop);
    if (stop > 0 && sample->made >= stop && strcmp(sample->text + sample->made - stop, request->stop) == 0) {
        sample->finish = QR_FINISH_STOP;
        sample->stop_string = 0;
    } else if (sample->made >= request->max_tokens) {
        sample->finish = QR_FINISH_LENGTH;
    }
}

static void *fake_main(void *user)
{
    qr_engine *engine = user;
    for (;;) {
        pthread_mutex_lock(&engine->mutex);
        bool closing = engine->closing, news = false;
        for (size_t i = 0; i < FAKE_REQUESTS_MAX && !engine->stuck; i++) {
            qr_request *request = engine->requests[i];
            for (int s = 0; request != NULL && s < request->n; s++)
                for (int token = 0; token < engine->step_tokens; token++)
                    fake_make(request, s);
            news = news || request != NULL;
        }
        pthread_mutex_unlock(&engine->mutex);
        uint64_t one = 1;
        if (news)
            (void)!write(engine->news_fd, &one, sizeof(one));
        if (closing)
            return NULL;
        nanosleep(&(struct timespec){0, engine->step_us * 1000L}, NULL);
    }
}

static inline qr_engine *fake_engine_new(void)
{
    qr_engine *engine = calloc(1, sizeof(*engine));
    pthread_mutex_init(&engine->mutex, NULL);
    engine->news_fd = eventfd(0, EFD_NONBLOCK);
    engine->capacity = FAKE_REQUESTS_MAX;
    engine->step_us = 200;
    engine->step_tokens = 1;
    engine->healthy = true;
    pthread_create(&engine->thread, NULL, fake_main, engine);
    return engine;
}

static inline void fake_engine_free(qr_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->closing = true;
    pthread_mutex_unlock(&engine->mutex);
    pthread_join(engine->thread, NULL);
    close(engine->news_fd);
    pthread_mutex_destroy(&engine->mutex);
    free(engine);
}

static inline size_t fake_live(qr_engine *engine)
{
    size_t live = 0;
    pthread_mutex_lock(&engine->mutex);
    for (size_t i = 0; i < FAKE_REQUESTS_MAX; i++)
        live += engine->requests[i] != NULL;
    pthread_mutex_unlock(&engine->mutex);
    return live;
}

/* ---- quire.h --------------------------------------------------------------------------------------- */

const char *qr_version(void) { return QR_VERSION; }
void qr_string_free(char *string) { free(string); }
void qr_ids_free(int32_t *ids) { free(ids); }
const char *qr_finish_name(qr_finish finish)
{
    static const char *const names[] = {NULL, "stop", "length", "abort", "error"};
    return names[finish];
}

void qr_sampling_params_init(qr_sampling_params *p)
{
    *p = (qr_sampling_params){.size = sizeof(*p),
                              .n = 1,
                              .temperature = 1,
                              .top_p = 1,
                              .repetition_penalty = 1,
                              .max_tokens = 16,
                              .logprobs = -1,
                              .prompt_logprobs = -1,
                              .detokenize = true,
                              .skip_special_tokens = true};
}
qr_status qr_sampling_params_check(const qr_sampling_params *p, qr_error *err)
{
    (void)p;
    (void)err;
    return QR_OK;
}
void qr_request_options_init(qr_request_options *options)
{
    *options =
        (qr_request_options){.size = sizeof(*options), .add_special_tokens = true, .parse_special = true};
    qr_sampling_params_init(&options->sampling);
}
void qr_encode_options_init(qr_encode_options *options)
{
    *options =
        (qr_encode_options){.size = sizeof(*options), .add_special_tokens = true, .parse_special = true};
}

qr_status qr_tokenizer_encode(const qr_tokenizer *tokenizer, const char *text, size_t bytes,
                              const qr_encode_options *options, int32_t **ids, size_t *count, qr_error *err)
{
    (void)tokenizer;
    (void)options;
    (void)err;
    *ids = malloc((bytes + 1) * sizeof(**ids));
    for (size_t i = 0; i < bytes; i++)
        (*ids)[i] = (unsigned char)text[i];
    *count = bytes;
    return QR_OK;
}
qr_status qr_tokenizer_decode(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip,
                              char **text, size_t *bytes, qr_error *err)
{
    (void)tokenizer;
    (void)skip;
    (void)err;
    *text = malloc(count + 1);
    for (size_t i = 0; i < count; i++)
        (*text)[i] = (char)ids[i];
    (*text)[count] = '\0';
    *bytes = count;
    return QR_OK;
}
const char *qr_tokenizer_chat_template(const qr_tokenizer *tokenizer)
{
    (void)tokenizer;
    return fake_template;
}
/* No token is special here. */
int32_t qr_tokenizer_find(const qr_tokenizer *tokenizer, const char *token, size_t bytes)
{
    (void)tokenizer;
    return bytes == 1 ? (unsigned char)token[0] : -1;
}
size_t qr_tokenizer_piece(const qr_tokenizer *tokenizer, int32_t id, char *out, size_t out_max)
{
    (void)tokenizer;
    if (out_max > 0)
        out[0] = (char)id;
    return 1;
}
int32_t qr_tokenizer_bos(const qr_tokenizer *tokenizer)
{
    (void)tokenizer;
    return -1;
}
const char *qr_tokenizer_token(const qr_tokenizer *tokenizer, int32_t id, bool *special)
{
    static char spelling[2];
    (void)tokenizer;
    *special = false;
    spelling[0] = (char)id;
    return spelling;
}
/* The prompt is the last message's content, then fake_prompt_end and the answer's prefix. */
qr_status qr_template_render(const qr_tokenizer *tokenizer, const char *json, size_t bytes, char **text,
                             size_t *text_bytes, qr_error *err)
{
    qr_json *request = NULL;
    (void)tokenizer;
    qr_status status = qr_json_parse(qr_str_make(json, bytes), &qr_json_limits_request, &request, err);
    if (status != QR_OK)
        return status;
    const qr_json *messages = qr_json_get(request, "messages");
    qr_str content =
        qr_json_string(qr_json_get(qr_json_at(messages, qr_json_count(messages) - 1), "content"));
    qr_buf prompt = {0};
    qr_buf_append_str(&prompt, content);
    qr_buf_append_cstr(&prompt, fake_prompt_end != NULL ? fake_prompt_end : "");
    qr_buf_append_str(&prompt, qr_json_string(qr_json_get(request, "answer_prefix")));
    *text = strndup(prompt.data != NULL ? prompt.data : "", prompt.len);
    *text_bytes = prompt.len;
    qr_buf_release(&prompt);
    qr_json_free(request);
    return QR_OK;
}

const qr_tokenizer *qr_model_tokenizer(const qr_model *model) { return &model->tokenizer; }
int32_t qr_model_vocab_size(const qr_model *model)
{
    (void)model;
    return FAKE_VOCAB;
}
const char *qr_model_generation_config(const qr_model *model)
{
    (void)model;
    return "{\"eos_token_id\":[256],\"temperature\":0.6,\"top_k\":7}";
}
const char *qr_model_fingerprint(const qr_model *model)
{
    (void)model;
    return "fake";
}
int64_t qr_engine_max_model_len(const qr_engine *engine)
{
    (void)engine;
    return 4096;
}
void qr_engine_drain(qr_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->draining = true;
    pthread_mutex_unlock(&engine->mutex);
}
void qr_engine_get_stats(const qr_engine *engine, qr_engine_stats *stats)
{
    *stats = (qr_engine_stats){
        .size = sizeof(*stats), .healthy = engine->healthy, .running = 1, .generation_tokens = 10};
}
size_t qr_engine_metrics(const qr_engine *engine, qr_metric **out)
{
    static const double bounds[2] = {0.5, 1};
    static const uint64_t buckets[3] = {1, 2, 3};
    static const qr_metric rows[] = {
        {.name = "vllm:num_requests_running",
         .help = "Running.",
         .label = "",
         .type = QR_METRIC_GAUGE,
         .value = 2},
        {.name = "vllm:request_success",
         .help = "Done.",
         .label = "finished_reason=\"stop\"",
         .type = QR_METRIC_COUNTER,
         .value = 5},
        {.name = "vllm:request_success",
         .help = "Done.",
         .label = "finished_reason=\"abort\"",
         .type = QR_METRIC_COUNTER,
         .value = 1},
        {.name = "vllm:time_to_first_token_seconds",
         .help = "TTFT.",
         .label = "",
         .type = QR_METRIC_HISTOGRAM,
         .value = 4.25,
         .count = 6,
         .bounds = bounds,
         .buckets = buckets,
         .bound_count = 2},
    };
    (void)engine;
    *out = malloc(sizeof(rows));
    memcpy(*out, rows, sizeof(rows));
    return sizeof(rows) / sizeof(rows[0]);
}
void qr_metrics_free(qr_metric *metrics) { free(metrics); }
void qr_engine_reset_prefix_cache(qr_engine *engine) { (void)engine; }

qr_status qr_poller_open(qr_engine *engine, qr_poller **out, qr_error *err)
{
    (void)err;
    *out = calloc(1, sizeof(**out));
    (*out)->engine = engine;
    return QR_OK;
}
void qr_poller_close(qr_poller *poller) { free(poller); }
int qr_poller_fd(const qr_poller *poller) { return poller->engine->news_fd; }

static inline void fake_prompt(qr_request *request, const qr_request_options *options)
{
    char *text = NULL;
    size_t bytes = options->text_bytes;
    if (options->chat_json != NULL)
        (void)qr_template_render(NULL, options->chat_json, options->chat_json_bytes, &text, &bytes, NULL);
    const char *source = text != NULL ? text : options->text;
    size_t count = options->token_ids != NULL ? options->token_count : bytes;
    request->prompt_count = count < 4096 ? count : 4096;
    for (size_t i = 0; i < request->prompt_count; i++)
        request->prompt[i] = options->token_ids != NULL ? options->token_ids[i] : (unsigned char)source[i];
    if (fake_echo && text != NULL) { /* without the answer's prefix and the template's end */
        const char *end = fake_prompt_end != NULL ? strstr(text, fake_prompt_end) : NULL;
        request->script = end != NULL ? strndup(text, (size_t)(end - text)) : strdup(text);
    }
    request->failed = source != NULL && bytes >= 4 && memcmp(source, "fail", 4) == 0;
    free(text);
}

qr_status qr_request_submit(qr_engine *engine, qr_poller *poller, const qr_request_options *options,
                            qr_request **out, qr_error *err)
{
    (void)poller;
    pthread_mutex_lock(&engine->mutex);
    size_t slot = FAKE_REQUESTS_MAX, live = 0;
    for (size_t i = 0; i < FAKE_REQUESTS_MAX; i++) {
        live += engine->requests[i] != NULL;
        slot = engine->requests[i] == NULL ? i : slot;
    }
    bool draining = engine->draining;
    if (draining || live >= engine->capacity) {
        pthread_mutex_unlock(&engine->mutex);
        return qr_fail(err, draining ? QR_CLOSED : QR_BUSY, "engine: %s",
                       draining ? "draining" : "the queue is full");
    }
    qr_request *request = calloc(1, sizeof(*request));
    request->engine = engine;
    request->user = options->user;
    request->n = options->sampling.n;
    request->columns = options->sampling.logprobs < 0 ? 0 : options->sampling.logprobs + 1;
    request->ignore_eos = options->sampling.ignore_eos;
    request->max_tokens = options->sampling.max_tokens < 0 || options->sampling.max_tokens > FAKE_TOKENS_MAX
                              ? FAKE_TOKENS_MAX
                              : (size_t)options->sampling.max_tokens;
    if (options->sampling.stop_count > 0)
        (void)snprintf(request->stop, sizeof(request->stop), "%s", options->sampling.stop[0]);
    request->samples = calloc((size_t)request->n, sizeof(*request->samples));
    for (int i = 0; i < request->n; i++)
        request->samples[i].stop_string = -1;
    fake_prompt(request, options);
    engine->requests[slot] = request;
    engine->submitted++;
    pthread_mutex_unlock(&engine->mutex);
    *out = request;
    return QR_OK;
}

void qr_request_cancel(qr_request *request)
{
    pthread_mutex_lock(&request->engine->mutex);
    request->cancelled = true;
    request->engine->cancels++;
    pthread_mutex_unlock(&request->engine->mutex);
}

void qr_request_release(qr_request *request)
{
    qr_engine *engine = request->engine;
    pthread_mutex_lock(&engine->mutex);
    for (size_t i = 0; i < FAKE_REQUESTS_MAX; i++) {
        if (engine->requests[i] == request)
            engine->requests[i] = NULL;
    }
    pthread_mutex_unlock(&engine->mutex);
    free(request->samples);
    free(request->script);
    free(request);
}

static inline bool fake_event(qr_request *request, int index, qr_event *event)
{
    fake_sample *sample = &request->samples[index];
    *event = (qr_event){
        .request = request, .user = request->user, .sample = index, .stop_token = -1, .stop_string = -1};
    if (request->failed) {
        event->finish = QR_FINISH_ERROR;
        event->status = QR_INVALID_ARGUMENT;
        event->message = "template: line 1: failed on purpose";
        bool fresh = !request->failed_seen;
        request->failed_seen = true;
        return fresh;
    }
    /* Whole characters only, as the engine promises. */
    size_t ready = sample->made;
    if (sample->finish == QR_FINISH_NONE)
        ready = sample->seen + qr_utf8_complete_prefix(sample->text + sample->seen, ready - sample->seen);
    if (fake_event_bytes > 0 && ready > sample->seen + fake_event_bytes) {
        ready = sample->seen + fake_event_bytes;
        while (((unsigned char)sample->text[ready] & 0xC0) == 0x80)
            ready++;
    }
    bool finished = sample->finish != QR_FINISH_NONE && ready == sample->made;
    if (ready == sample->seen && (!finished || sample->finish_seen))
        return false;
    event->token_ids = sample->ids + sample->seen;
    event->token_count = event->text_bytes = ready - sample->seen;
    event->text = sample->text + sample->seen;
    if (request->columns > 0)
        event->logprobs = sample->rows + sample->seen * (size_t)request->columns;
    sample->seen = ready;
    event->finish = finished ? sample->finish : QR_FINISH_NONE;
    event->stop_string = finished ? sample->stop_string : -1;
    sample->finish_seen = finished;
    return true;
}

size_t qr_poller_poll(qr_poller *poller, qr_event *events, size_t events_max, int timeout_ms)
{
    qr_engine *engine = poller->engine;
    uint64_t news;
    size_t count = 0;
    (void)timeout_ms;
    (void)!read(engine->news_fd, &news, sizeof(news));
    pthread_mutex_lock(&engine->mutex);
    for (size_t i = 0; i < FAKE_REQUESTS_MAX; i++) {
        qr_request *request = engine->requests[i];
        for (int s = 0; request != NULL && s < request->n; s++)
            while (count < events_max && fake_event(request, s, &events[count]))
                count++;
    }
    pthread_mutex_unlock(&engine->mutex);
    return count;
}

qr_sample_view qr_request_sample(const qr_request *request, int32_t index)
{
    const fake_sample *sample = &request->samples[index];
    return (qr_sample_view){.token_ids = sample->ids,
                            .token_count = sample->seen,
                            .text = sample->text,
                            .text_bytes = sample->seen,
                            .logprobs = request->columns > 0 ? sample->rows : NULL,
                            .logprob_columns = (size_t)request->columns,
                            .finish = sample->finish_seen ? sample->finish : QR_FINISH_NONE};
}

const char *qr_request_prefix_text(const qr_request *request, size_t *bytes)
{
    (void)request;
    *bytes = 0;
    return "";
}

qr_request_facts qr_request_describe(const qr_request *request)
{
    return (qr_request_facts){.id = "fake",
                              .seed = 42,
                              .prompt_ids = request->prompt,
                              .prompt_count = request->prompt_count,
                              .cached_count = request->prompt_count / 2};
}

#endif
