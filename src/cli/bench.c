/* quire bench: limits, throughput, latency, rows, online, perplexity; each as a table or JSON, next to the measured limit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "cli/bench.h"

static qr_status finish(bench *b, qr_error *err)
{
    qr_buf text = {0};
    qr_json_write(b->result, 2, &text);
    qr_buf_append_char(&text, '\n');
    qr_status status = QR_OK;
    if (b->options->output_file != NULL)
        status = qr_file_write(b->options->output_file, text.data, text.len, err);
    if (status == QR_OK)
        status = cli_print_json(text.data, b->options->json, err);
    qr_buf_release(&text);
    return status;
}

/* ---- limits --------------------------------------------------------------------------------------------------- */

static qr_status bench_limits(bench *b, qr_error *err)
{
    char *json = NULL;
    const qr_model_options *model = &b->options->model;
    qr_status status = qr_bench_limits(model->device, model->threads, b->options->refresh, &json, err);
    if (status == QR_OK)
        status = qr_json_parse(qr_str_of(json), &qr_json_limits_file, &b->result, err);
    qr_string_free(json);
    return status;
}

/* The limits of the device with these threads, for shares: of a CPU the best of the page and load sizes. */
static void read_limits(bench *b)
{
    const qr_model_options *model = &b->options->model;
    char *json = NULL;
    qr_json *limits = NULL;
    if (qr_bench_limits(model->device, model->threads, false, &json, NULL) == QR_OK &&
        qr_json_parse(qr_str_of(json), &qr_json_limits_file, &limits, NULL) == QR_OK) {
        double best = qr_json_number(qr_json_get(limits, "read_gb_per_s"), 0);
        const qr_json *read = qr_json_get(limits, "read");
        for (void *it = qr_json_iter(read); it != NULL; it = qr_json_iter_next(read, it))
            best = QR_MAX(best, qr_json_number(qr_json_get(qr_json_iter_value(it), "all_threads"), 0));
        b->read_limit = best * 1e9;
        b->flop_limit = qr_json_number(qr_json_get(limits, "bf16_tflop_per_s"), 0) * 1e12;
    }
    b->limits = limits;
    qr_string_free(json);
}

/* ---- Requests of random ids ------------------------------------------------------------------------------------ */

qr_status bench_submit(bench *b, const bench_batch *batch, int index, int32_t *ids, qr_request **request,
                       qr_error *err)
{
    uint64_t state = (uint64_t)index + 1;
    int32_t vocab = qr_model_vocab_size(b->model);
    for (int i = 0; i < batch->input; i++)
        ids[i] = (int32_t)(qr_rng_next(&state) % (uint64_t)vocab);
    qr_request_options o;
    qr_request_options_init(&o);
    o.token_ids = ids;
    o.token_count = (size_t)batch->input;
    o.sampling.temperature = 0;
    o.sampling.max_tokens = batch->output;
    o.sampling.ignore_eos = true;
    o.sampling.detokenize = false;
    return qr_request_submit(b->engine, b->poller, &o, request, err);
}

qr_engine_stats bench_stats(bench *b)
{
    qr_engine_stats stats = {.size = sizeof(stats)};
    qr_engine_get_stats(b->engine, &stats);
    return stats;
}

int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

qr_status bench_run(bench *b, const bench_batch *batch, bench_times *times, qr_error *err)
{
    int count = batch->count;
    qr_request **requests = qr_calloc((size_t)count, sizeof(*requests));
    double *first = qr_calloc((size_t)count, sizeof(*first));
    int32_t *ids = qr_calloc((size_t)batch->input, sizeof(*ids));
    qr_status status = QR_OK;
    uint64_t start = qr_clock_ns(), last_first = start, end = start;
    uint64_t together = 0, tokens_seen = 0;
    int submitted = 0, open = 0, started = 0;
    bool ended = false;
    for (; submitted < count && status == QR_OK; submitted++)
        status = bench_submit(b, batch, batch->first_index + submitted, ids, &requests[submitted], err);
    open = status == QR_OK ? submitted : submitted - 1;
    *times = (bench_times){0};
    while (open > 0 && status == QR_OK) {
        qr_event events[64];
        size_t got = qr_poller_poll(b->poller, events, QR_COUNT_OF(events), -1);
        end = qr_clock_ns();
        for (size_t i = 0; i < got; i++) {
            if (events[i].token_count > 0 &&
                qr_request_sample(events[i].request, 0).token_count == events[i].token_count)
                started++;
            times->tokens += events[i].token_count;
            times->tokens_together += started == count && !ended ? events[i].token_count : 0;
            if (events[i].finish == QR_FINISH_ERROR)
                status = qr_fail(err, events[i].status, "%s", events[i].message);
            open -= events[i].finish != QR_FINISH_NONE;
            ended = ended || events[i].finish != QR_FINISH_NONE;
        }
        if (started == count && times->prefilled.size == 0) {
            times->prefilled = bench_stats(b);
            times->tokens_together = 0;
            together = end;
        }
        if (!ended && together != 0) {
            times->together_s = (double)(end - together) / 1e9;
            tokens_seen = times->tokens_together;
        }
    }
    times->tokens_together = tokens_seen;
    uint64_t decoded_after = 0;
    for (int i = 0; i < count && status == QR_OK; i++) {
        qr_request_facts facts = qr_request_describe(requests[i]);
        first[i] = (double)(facts.first_token_ns - start) / 1e9;
        last_first = QR_MAX(last_first, facts.first_token_ns);
        decoded_after++; /* each request's first token is not decode */
    }
    for (int i = 0; i < count; i++)
        if (requests[i] != NULL)
            qr_request_release(requests[i]);
    qsort(first, (size_t)count, sizeof(*first), bench_compare);
    times->total_s = (double)(end - start) / 1e9;
    times->first_p50_s = first[count / 2];
    times->first_max_s = first[count - 1];
    times->decode_s = (double)(end - last_first) / 1e9;
    times->tokens_decode = times->tokens - decoded_after;
    qr_free(requests);
    qr_free(first);
    qr_free(ids);
    return status;
}

void bench_put(qr_json *object, const char *key, double value)
{
    qr_json_set(object, key, qr_json_new_real(value));
}

void bench_put_settings(bench *b)
{
    const cli_options *options = b->options;
    qr_json *result = b->result;
    qr_json_set(result, "model", qr_json_new_string(qr_str_of(options->arguments.items[0])));
    qr_json_set(result, "fingerprint", qr_json_new_string(qr_str_of(qr_model_fingerprint(b->model))));
    qr_json_set(result, "input_len", qr_json_new_int(options->bench_input));
    qr_json_set(result, "output_len", qr_json_new_int(options->bench_output));
}

void bench_put_share(bench *b, qr_json *result, const qr_engine_stats *before, const qr_engine_stats *after)
{
    double seconds = (double)(after->step_ns_total - before->step_ns_total) / 1e9;
    if (seconds <= 0)
        return;
    double bytes = (double)(after->bytes_moved_total - before->bytes_moved_total) / seconds;
    double flops = (double)(after->flops_total - before->flops_total) / seconds;
    bench_put(result, "read_gb_per_s", bytes / 1e9);
    bench_put(result, "gflop_per_s", flops / 1e9);
    if (b->read_limit > 0) {
        bench_put(result, "read_limit_gb_per_s", b->read_limit / 1e9);
        bench_put(result, "share_of_read_limit_percent", 100 * bytes / b->read_limit);
    }
    if (b->flop_limit > 0)
        bench_put(result, "share_of_flop_limit_percent", 100 * flops / b->flop_limit);
    double busy = (double)(after->device_busy_ns_total - before->device_busy_ns_total) / 1e9;
    double idle = (double)(after->device_idle_ns_total - before->device_idle_ns_total) / 1e9;
    if (busy > 0)
        bench_put(result, "device_idle_percent", 100 * idle / (busy + idle));
}

static qr_status bench_throughput(bench *b, qr_error *err)
{
    const cli_options *options = b->options;
    bench_batch one = {
        .first_index = 1 << 20, .count = 1, .input = options->bench_input, .output = options->bench_output};
    bench_batch all = one;
    all.first_index = 0;
    all.count = options->bench_prompts;
    bench_times warm, times;
    qr_status status = bench_run(b, &one, &warm, err);
    qr_engine_stats before = bench_stats(b);
    if (status == QR_OK)
        status = bench_run(b, &all, &times, err);
    if (status != QR_OK)
        return status;
    qr_engine_stats after = bench_stats(b);
    double input = (double)options->bench_prompts * options->bench_input;
    bench_put_settings(b);
    qr_json_set(b->result, "num_prompts", qr_json_new_int(options->bench_prompts));
    bench_put(b->result, "elapsed_s", times.total_s);
    bench_put(b->result, "requests_per_s", options->bench_prompts / times.total_s);
    bench_put(b->result, "output_tokens_per_s", (double)times.tokens / times.total_s);
    bench_put(b->result, "total_tokens_per_s", ((double)times.tokens + input) / times.total_s);
    bench_put(b->result, "first_token_p50_s", times.first_p50_s);
    bench_put(b->result, "first_token_max_s", times.first_max_s);
    bench_put_share(b, b->result, &before, &after);
    return QR_OK;
}

static qr_status bench_latency(bench *b, qr_error *err)
{
    const cli_options *options = b->options;
    bench_batch batch = {.first_index = 1 << 20,
                         .count = options->bench_batch,
                         .input = options->bench_input,
                         .output = options->bench_output};
    bench_times times;
    qr_status status = bench_run(b, &batch, &times, err); /* warm-up */
    double *prefill = qr_calloc((size_t)options->bench_iterations, sizeof(double));
    double *decode = qr_calloc((size_t)options->bench_iterations, sizeof(double));
    qr_engine_stats after = {0};
    for (int i = 0; i < options->bench_iterations && status == QR_OK; i++) {
        batch.first_index = i * options->bench_batch;
        status = bench_run(b, &batch, &times, err);
        prefill[i] = (double)options->bench_batch * options->bench_input / times.first_max_s;
        decode[i] = times.decode_s > 0 ? (double)times.tokens_decode / times.decode_s : 0;
        after = bench_stats(b);
    }
    if (status == QR_OK) {
        size_t n = (size_t)options->bench_iterations;
        qsort(prefill, n, sizeof(double), bench_compare);
        qsort(decode, n, sizeof(double), bench_compare);
        bench_put_settings(b);
        qr_json_set(b->result, "batch_size", qr_json_new_int(options->bench_batch));
        bench_put(b->result, "prefill_tokens_per_s_median", prefill[n / 2]);
        bench_put(b->result, "decode_tokens_per_s_median", decode[n / 2]);
        bench_put(b->result, "decode_tokens_per_s_max", decode[n - 1]);
        bench_put(b->result, "decode_ms_per_step_median",
                  decode[n / 2] > 0 ? 1e3 * options->bench_batch / decode[n / 2] : 0);
        bench_put_share(b, b->result, &times.prefilled, &after); /* of the last repeat's decode steps */
    }
    qr_free(prefill);
    qr_free(decode);
    return status;
}

/* ---- perplexity ------------------------------------------------------------------------------------------------ */

/* As llama-perplexity counts: windows of `context` tokens that begin with BOS when the model has one; the second half
 * of each window is scored. */
static qr_status score_windows(bench *b, const int32_t *ids, size_t count, int32_t bos, qr_error *err)
{
    size_t window = (size_t)b->options->bench_context;
    size_t windows = count / window;
    if (b->options->bench_chunks > 0)
        windows = QR_MIN(windows, (size_t)b->options->bench_chunks);
    if (windows == 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "perplexity: the text has %zu tokens, one window needs %zu",
                       count, window);
    int32_t *part = qr_calloc(window, sizeof(*part));
    float *logprobs = qr_calloc(window, sizeof(*logprobs));
    double sum = 0, squares = 0;
    uint64_t scored = 0, start = qr_clock_ns();
    qr_status status = QR_OK;
    for (size_t w = 0; w < windows && status == QR_OK; w++) {
        memcpy(part, ids + w * window, window * sizeof(*part));
        if (bos >= 0)
            part[0] = bos;
        status = qr_score(b->engine, part, window, logprobs, err);
        for (size_t i = window / 2; i < window && status == QR_OK; i++, scored++) {
            sum -= (double)logprobs[i];
            squares += (double)logprobs[i] * (double)logprobs[i];
        }
    }
    qr_free(part);
    qr_free(logprobs);
    if (status != QR_OK)
        return status;
    double mean = sum / (double)scored;
    double deviation = sqrt(QR_MAX(squares / (double)scored - mean * mean, 0) / (double)scored);
    bench_put(b->result, "perplexity", exp(mean));
    bench_put(b->result, "perplexity_error", exp(mean) * deviation);
    qr_json_set(b->result, "tokens_scored", qr_json_new_int((int64_t)scored));
    qr_json_set(b->result, "context", qr_json_new_int((int64_t)window));
    qr_json_set(b->result, "chunks", qr_json_new_int((int64_t)windows));
    bench_put(b->result, "elapsed_s", (double)(qr_clock_ns() - start) / 1e9);
    return QR_OK;
}

static qr_status bench_perplexity(bench *b, qr_error *err)
{
    const qr_tokenizer *tokenizer = qr_model_tokenizer(b->model);
    if (b->options->text_file == NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT, "perplexity: --text-file FILE is expected");
    if (tokenizer == NULL)
        return qr_fail(err, QR_UNSUPPORTED, "perplexity: this model has no tokenizer");
    qr_buf text = {0};
    qr_encode_options encode;
    qr_encode_options_init(&encode);
    encode.add_special_tokens = false;
    int32_t *ids = NULL;
    size_t count = 0;
    qr_status status = qr_file_read(b->options->text_file, 256u << 20, &text, err);
    if (status == QR_OK)
        status = qr_tokenizer_encode(tokenizer, text.data, text.len, &encode, &ids, &count, err);
    if (status == QR_OK) {
        qr_json_set(b->result, "model", qr_json_new_string(qr_str_of(b->options->arguments.items[0])));
        /* A checkpoint that does not begin texts with BOS is not scored with one. */
        int32_t *empty = NULL;
        size_t special = 0;
        qr_tokenizer_encode(tokenizer, "", 0, NULL, &empty, &special, NULL);
        int32_t bos = special > 0 && empty[0] == qr_tokenizer_bos(tokenizer) ? empty[0] : -1;
        qr_ids_free(empty);
        status = score_windows(b, ids, count, bos, err);
    }
    qr_ids_free(ids);
    qr_buf_release(&text);
    return status;
}

/* ---- The verb --------------------------------------------------------------------------------------------------- */

static qr_status check_numbers(const cli_options *options, qr_error *err)
{
    const struct {
        const char *name;
        int32_t value;
    } numbers[] = {
        {"num-prompts", options->bench_prompts},  {"input-len", options->bench_input},
        {"output-len", options->bench_output},    {"batch-size", options->bench_batch},
        {"num-iters", options->bench_iterations}, {"context", options->bench_context},
    };
    for (size_t i = 0; i < QR_COUNT_OF(numbers); i++)
        if (numbers[i].value < 1 || numbers[i].value > 10000000)
            return qr_fail(err, QR_INVALID_ARGUMENT, "--%s must be between 1 and 10000000, got %d",
                           numbers[i].name, numbers[i].value);
    return QR_OK;
}

static qr_status with_engine(bench *b, qr_status (*measure)(bench *, qr_error *), qr_error *err)
{
    qr_status status = check_numbers(b->options, err);
    if (status == QR_OK && measure != bench_online)
        read_limits(b); /* before the engine takes the device's memory */
    if (status == QR_OK)
        status = cli_model_open(b->options, &b->model, err);
    b->options->engine.enable_prefix_caching = false; /* repeats must not hit */
    if (status == QR_OK)
        status = qr_engine_open(b->model, &b->options->engine, &b->engine, err);
    if (status == QR_OK)
        status = qr_poller_open(b->engine, &b->poller, err);
    if (status == QR_OK) {
        b->result = qr_json_new_object();
        status = measure(b, err);
    }
    if (b->poller != NULL)
        qr_poller_close(b->poller);
    qr_engine_close(b->engine);
    qr_model_close(b->model);
    qr_json_free(b->limits);
    return status;
}

int cli_bench(cli_options *options)
{
    qr_error err = {0};
    bench b = {.options = options};
    cli_list *arguments = &options->arguments;
    const char *what = arguments->count > 0 ? arguments->items[0] : "";
    if (arguments->count > 0) /* MODEL becomes the first argument, as for the other verbs */
        memmove(arguments->items, arguments->items + 1, --arguments->count * sizeof(arguments->items[0]));

    qr_status status;
    if (strcmp(what, "limits") == 0)
        status = bench_limits(&b, &err);
    else if (strcmp(what, "throughput") == 0)
        status = with_engine(&b, bench_throughput, &err);
    else if (strcmp(what, "online") == 0)
        status = with_engine(&b, bench_online, &err);
    else if (strcmp(what, "latency") == 0)
        status = with_engine(&b, bench_latency, &err);
    else if (strcmp(what, "rows") == 0)
        status = with_engine(&b, bench_rows, &err);
    else if (strcmp(what, "perplexity") == 0)
        status = with_engine(&b, bench_perplexity, &err);
    else
        status =
            qr_fail(&err, QR_INVALID_ARGUMENT,
                    "limits, throughput, latency, rows, online or perplexity is expected, got '%s'", what);
    if (status == QR_OK)
        status = finish(&b, &err);
    qr_json_free(b.result);
    return status == QR_OK ? 0 : cli_fail("bench", &err);
}
