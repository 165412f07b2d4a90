/* What the files of quire bench share: an open engine, batches of random prompts, shares of the measured limits.
 * Private to cli/bench*.c. Thread: the main thread. */
#ifndef QR_CLI_BENCH_H
#define QR_CLI_BENCH_H

#include "base/json.h"
#include "cli/cli.h"

typedef struct bench {
    cli_options *options;
    qr_model *model;
    qr_engine *engine;
    qr_poller *poller;
    qr_json *limits;               /* of the device (qr_bench_limits), or NULL */
    double read_limit, flop_limit; /* bytes and operations a second, or 0 when they were not measured */
    qr_json *result;
} bench;

typedef struct bench_batch {
    int first_index; /* of the prompts: equal indices are equal prompts */
    int count, input, output;
} bench_batch;

typedef struct bench_times {
    double total_s, first_p50_s, first_max_s, decode_s; /* decode_s: from the last first token to the end */
    uint64_t tokens, tokens_decode;                     /* tokens_decode: those made in decode_s */
    double together_s;                                  /* from the last first token to the first end */
    uint64_t tokens_together;                           /* made in together_s: steps of all sequences */
    qr_engine_stats prefilled;                          /* when every request had its first token */
} bench_times;

/* One request of the batch: random ids, the same for the same index; ids: room for the prompt. */
qr_status bench_submit(bench *b, const bench_batch *batch, int index, int32_t *ids, qr_request **request,
                       qr_error *err);
/* Submits the batch's requests at once and waits for all. */
qr_status bench_run(bench *b, const bench_batch *batch, bench_times *times, qr_error *err);
qr_engine_stats bench_stats(bench *b);
int bench_compare(const void *a, const void *b); /* doubles, for qsort */
void bench_put_settings(bench *b);
void bench_put(qr_json *object, const char *key, double value);
/* What the steps between two stats had to move and do a second, as shares of the limits; the device's idle time. */
void bench_put_share(bench *b, qr_json *result, const qr_engine_stats *before, const qr_engine_stats *after);

/* bench_online.c: requests that arrive at a rate, and how many of them were served in time. */
qr_status bench_online(bench *b, qr_error *err);

/* bench_rows.c: the rows of --rows in one engine. */
qr_status bench_rows(bench *b, qr_error *err);

#endif
