/* quire bench rows: several measurements in one engine, for tables.
 *
 *   step:B:IN:OUT      B sequences decode together: milliseconds a step and tokens a second while all of them do
 *   load:N:IN:OUT      N requests at once, from the first submission to the last token
 *   first:IN[:TURNS]   a prompt of IN tokens alone: milliseconds to its first token, the median of TURNS
 *   long:IN:OUT        one long prompt: seconds to the first token, tokens a second from there
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/bench.h"

enum { NUMBERS_MAX = 3, TURNS_DEFAULT = 5, TURNS_MAX = 100 };

typedef struct row {
    const char *text; /* as it was given */
    size_t text_bytes;
    int32_t number[NUMBERS_MAX];
    int count;
} row;

typedef struct row_kind {
    const char *name;
    int numbers_min, numbers_max;
    qr_status (*run)(bench *b, const row *r, qr_json *out, qr_error *err);
} row_kind;

/* Prompts of one process differ from row to row. */
static int next_index(int count)
{
    static int next;
    next += count;
    return next - count;
}

static bench_batch batch_of(int32_t count, int32_t input, int32_t output)
{
    return (bench_batch){.first_index = next_index(count), .count = count, .input = input, .output = output};
}

static qr_status run_step(bench *b, const row *r, qr_json *out, qr_error *err)
{
    bench_batch batch = batch_of(r->number[0], r->number[1], r->number[2]);
    bench_times times;
    qr_status status = bench_run(b, &batch, &times, err);
    if (status != QR_OK)
        return status;
    qr_engine_stats after = bench_stats(b);
    if (times.tokens_together == 0)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "--rows %.*s: the first sequence ended before the last began: a longer OUT is needed",
                       (int)r->text_bytes, r->text);
    double rate = (double)times.tokens_together / times.together_s;
    bench_put(out, "ms_per_step", 1e3 * r->number[0] / rate);
    bench_put(out, "tokens_per_s", rate);
    bench_put(out, "steps", (double)times.tokens_together / r->number[0]);
    bench_put_share(b, out, &times.prefilled, &after);
    return QR_OK;
}

static qr_status run_load(bench *b, const row *r, qr_json *out, qr_error *err)
{
    bench_batch batch = batch_of(r->number[0], r->number[1], r->number[2]);
    bench_times times;
    qr_engine_stats before = bench_stats(b);
    qr_status status = bench_run(b, &batch, &times, err);
    if (status != QR_OK)
        return status;
    qr_engine_stats after = bench_stats(b);
    bench_put(out, "elapsed_s", times.total_s);
    bench_put(out, "output_tokens_per_s", (double)times.tokens / times.total_s);
    bench_put(out, "first_token_p50_s", times.first_p50_s);
    bench_put_share(b, out, &before, &after);
    return QR_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static qr_status run_first(bench *b, const row *r, qr_json *out, qr_error *err)
{
    double ms[TURNS_MAX];
    int turns = r->count > 1 ? QR_MIN(r->number[1], TURNS_MAX) : TURNS_DEFAULT;
    qr_status status = QR_OK;
    for (int i = -1; i < turns && status == QR_OK; i++) { /* the first warms up */
        bench_batch batch = batch_of(1, r->number[0], 2);
        bench_times times;
        status = bench_run(b, &batch, &times, err);
        if (i >= 0)
            ms[i] = 1e3 * times.first_p50_s;
    }
    if (status != QR_OK)
        return status;
    qsort(ms, (size_t)turns, sizeof(double), compare_doubles);
    bench_put(out, "first_token_ms", ms[turns / 2]);
    bench_put(out, "first_token_min_ms", ms[0]);
    return QR_OK;
}

static qr_status run_long(bench *b, const row *r, qr_json *out, qr_error *err)
{
    bench_batch batch = batch_of(1, r->number[0], r->number[1]);
    bench_times times;
    qr_status status = bench_run(b, &batch, &times, err);
    if (status != QR_OK)
        return status;
    qr_engine_stats after = bench_stats(b);
    bench_put(out, "first_token_s", times.first_p50_s);
    bench_put(out, "tokens_per_s",
              times.together_s > 0 ? (double)times.tokens_together / times.together_s : 0);
    bench_put_share(b, out, &times.prefilled, &after);
    return QR_OK;
}

static const row_kind kinds[] = {
    {"step", 3, 3, run_step}, {"load", 3, 3, run_load}, {"first", 1, 2, run_first}, {"long", 2, 2, run_long}};

static qr_status bad_row(const row *r, qr_error *err)
{
    return qr_fail(
        err, QR_INVALID_ARGUMENT,
        "--rows: step:B:IN:OUT, load:N:IN:OUT, first:IN[:TURNS] or long:IN:OUT is expected, got '%.*s'",
        (int)r->text_bytes, r->text);
}

/* The kind of a row, its numbers read; NULL with *err. */
static const row_kind *read_row(row *r, qr_error *err)
{
    const row_kind *kind = NULL;
    size_t name = strcspn(r->text, ":, ");
    for (size_t i = 0; i < QR_COUNT_OF(kinds); i++)
        if (strlen(kinds[i].name) == name && memcmp(r->text, kinds[i].name, name) == 0)
            kind = &kinds[i];
    const char *at = r->text + QR_MIN(name, r->text_bytes), *end = r->text + r->text_bytes;
    while (at < end && *at == ':' && r->count < NUMBERS_MAX) {
        char *after;
        long value = strtol(at + 1, &after, 10);
        if (after == at + 1 || value < 1 || value > 10000000)
            break;
        r->number[r->count++] = (int32_t)value;
        at = after;
    }
    if (kind != NULL && at == end && r->count >= kind->numbers_min && r->count <= kind->numbers_max)
        return kind;
    bad_row(r, err);
    return NULL;
}

static qr_status run_row(bench *b, row *r, qr_error *err)
{
    const row_kind *kind = read_row(r, err);
    if (kind == NULL)
        return err->status;
    qr_json *out = qr_json_new_object();
    uint64_t start = qr_clock_ns();
    qr_status status = kind->run(b, r, out, err);
    bench_put(out, "took_s", (double)(qr_clock_ns() - start) / 1e9);
    char key[64];
    size_t bytes = QR_MIN(r->text_bytes, sizeof(key) - 1);
    memcpy(key, r->text, bytes);
    key[bytes] = '\0';
    if (status == QR_OK)
        qr_json_set(b->result, key, out);
    else
        qr_json_free(out);
    return status;
}

qr_status bench_rows(bench *b, qr_error *err)
{
    qr_status status = QR_OK;
    const char *text = b->options->bench_rows;
    if (text == NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT,
                       "--rows is expected, as in --rows step:1:1024:128,first:2048");
    bench_batch warm = batch_of(8, 256, 16); /* what kernels take at their first use */
    bench_times times;
    status = bench_run(b, &warm, &times, err);
    while (*text != '\0' && status == QR_OK) {
        row r = {.text = text, .text_bytes = strcspn(text, ",")};
        status = run_row(b, &r, err);
        text += r.text_bytes;
        text += *text == ',';
    }
    if (b->limits != NULL) {
        qr_json_set(b->result, "limits", b->limits);
        b->limits = NULL;
    }
    return status;
}
