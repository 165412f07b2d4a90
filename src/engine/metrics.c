#include "engine/metrics.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

/* ---- Bucket sets (vLLM v1's) ---- */

static const double samples_bounds[] = {1, 2, 5, 10, 20};
static const double step_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double first_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                      1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
static const double token_bounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                      0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double latency_bounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};

typedef enum bucket_set { NONE, TOKENS, SAMPLES, STEP, FIRST, TOKEN, LATENCY } bucket_set;

static const struct {
    const char *name, *label, *help;
    qr_metric_type type;
    bucket_set buckets;
} rows[QR_METRIC_COUNT] = {
#define X(type_, id, name_, label_, buckets_, help_) \
    [QR_METRIC_##id] = {.name = (name_),             \
                        .label = (label_),           \
                        .help = (help_),             \
                        .type = QR_METRIC_##type_,   \
                        .buckets = (buckets_)},
#include "base/metrics.def"
#undef X
};

static const double *bounds_of(const qr_metrics *m, qr_metric_id id, size_t *count)
{
    switch (rows[id].buckets) {
    case TOKENS: *count = m->token_bound_count; return m->token_bounds;
#define SET(set, array) \
    case set: *count = QR_COUNT_OF(array); return array;
        SET(SAMPLES, samples_bounds)
        SET(STEP, step_bounds)
        SET(FIRST, first_bounds)
        SET(TOKEN, token_bounds)
        SET(LATENCY, latency_bounds)
#undef SET
    case NONE: break;
    }
    *count = 0;
    return NULL;
}

/* ---- Counting ---- */

void qr_metrics_init(qr_metrics *m, int64_t max_model_len)
{
    memset(m, 0, sizeof(*m));
    pthread_mutex_init(&m->mutex, NULL);
    static const double steps[] = {1, 2, 5};
    double power = 1;
    for (size_t i = 0; i < QR_METRIC_BOUNDS_MAX; i++) {
        double bound = steps[i % 3] * power;
        if (bound > (double)max_model_len)
            break;
        m->token_bounds[m->token_bound_count++] = bound;
        power *= i % 3 == 2 ? 10 : 1;
    }
}

void qr_metrics_add_rank(qr_metrics *m, int rank, const char *kind, uint64_t bytes)
{
    QR_ASSERT(m->rank_row_count < QR_METRIC_RANK_ROWS_MAX);
    qr_rank_metric *row = &m->rank_rows[m->rank_row_count++];
    snprintf(row->label, sizeof(row->label), "rank=\"%d\",kind=\"%s\"", rank, kind);
    row->value = (double)bytes;
}

void qr_metrics_release(qr_metrics *m) { pthread_mutex_destroy(&m->mutex); }

void qr_metrics_observe(qr_metrics *m, qr_metric_id id, double value)
{
    size_t count, bucket = 0;
    const double *bounds = bounds_of(m, id, &count);
    while (bucket < count && value > bounds[bucket])
        bucket++;
    m->own.buckets[id][bucket]++;
    m->own.count[id]++;
    m->own.value[id] += value;
}

void qr_metrics_publish(qr_metrics *m)
{
    pthread_mutex_lock(&m->mutex);
    m->published = m->own;
    pthread_mutex_unlock(&m->mutex);
}

/* ---- Reading ---- */

size_t qr_metrics_read(qr_metrics *m, qr_metric **out)
{
    /* The rows, then the values that they point into, then the labels. */
    size_t count = QR_METRIC_RANK_MEMORY + m->rank_row_count;
    size_t rows_bytes = QR_ROUND_UP(count * sizeof(qr_metric), sizeof(double));
    char *memory =
        qr_alloc(rows_bytes + sizeof(qr_metric_values) + sizeof(m->config_label) + sizeof(m->rank_rows));
    qr_metric *metrics = (qr_metric *)(void *)memory;
    qr_metric_values *values = (qr_metric_values *)(void *)(memory + rows_bytes);
    char *label = memory + rows_bytes + sizeof(*values);
    pthread_mutex_lock(&m->mutex);
    *values = m->published;
    pthread_mutex_unlock(&m->mutex);
    memcpy(label, m->config_label, sizeof(m->config_label));
    qr_rank_metric *ranks = (qr_rank_metric *)(void *)(label + sizeof(m->config_label));
    memcpy(ranks, m->rank_rows, sizeof(m->rank_rows));
    for (qr_metric_id id = 0; id < QR_METRIC_RANK_MEMORY; id++) {
        metrics[id] = (qr_metric){.name = rows[id].name,
                                  .help = rows[id].help,
                                  .type = rows[id].type,
                                  .label = id == QR_METRIC_CACHE_CONFIG ? label : rows[id].label,
                                  .value = values->value[id],
                                  .count = values->count[id],
                                  .buckets = values->buckets[id]};
        metrics[id].bounds = bounds_of(m, id, &metrics[id].bound_count);
    }
    for (size_t i = 0; i < m->rank_row_count; i++)
        metrics[QR_METRIC_RANK_MEMORY + i] = (qr_metric){.name = rows[QR_METRIC_RANK_MEMORY].name,
                                                         .help = rows[QR_METRIC_RANK_MEMORY].help,
                                                         .type = rows[QR_METRIC_RANK_MEMORY].type,
                                                         .label = ranks[i].label,
                                                         .value = ranks[i].value};
    *out = metrics;
    return count;
}

void qr_metrics_free(qr_metric *metrics) { qr_free(metrics); }
