/* The engine's numbers: gauges, counters and histograms of base/metrics.def.
 *
 * The engine thread counts in a private copy and publishes it once a step under a mutex, so that a reader's copy
 * is consistent. Thread: qr_metrics_{set,add,observe,publish} by the engine thread, _read by any.
 */
#ifndef QR_ENGINE_METRICS_H
#define QR_ENGINE_METRICS_H

#include <pthread.h>
#include <stdint.h>

#include "quire.h"

typedef enum qr_metric_id {
#define X(type, id, name, label, buckets, help) QR_METRIC_##id,
#include "base/metrics.def"
#undef X
    QR_METRIC_COUNT
} qr_metric_id;

#define QR_METRIC_BOUNDS_MAX 40

typedef struct qr_metric_values {
    double value[QR_METRIC_COUNT];
    uint64_t count[QR_METRIC_COUNT];
    uint64_t buckets[QR_METRIC_COUNT][QR_METRIC_BOUNDS_MAX + 1];
} qr_metric_values;

/* Rows of QR_METRIC_RANK_MEMORY, whose labels depend on the model. */
#define QR_METRIC_RANK_ROWS_MAX 48
typedef struct qr_rank_metric {
    char label[40]; /* rank="0",kind="kv" */
    double value;
} qr_rank_metric;

typedef struct qr_metrics {
    qr_metric_values own; /* engine thread */
    pthread_mutex_t mutex;
    qr_metric_values published;                /* under mutex */
    double token_bounds[QR_METRIC_BOUNDS_MAX]; /* 1, 2, 5, 10, ... up to the longest sequence */
    size_t token_bound_count;
    char config_label[256];                            /* of vllm:cache_config_info */
    qr_rank_metric rank_rows[QR_METRIC_RANK_ROWS_MAX]; /* immutable once open */
    size_t rank_row_count;
} qr_metrics;

void qr_metrics_init(qr_metrics *metrics, int64_t max_model_len);
void qr_metrics_release(qr_metrics *metrics);

static inline void qr_metrics_set(qr_metrics *m, qr_metric_id id, double value) { m->own.value[id] = value; }
static inline void qr_metrics_add(qr_metrics *m, qr_metric_id id, double value) { m->own.value[id] += value; }
void qr_metrics_add_rank(qr_metrics *metrics, int rank, const char *kind, uint64_t bytes);
void qr_metrics_observe(qr_metrics *metrics, qr_metric_id id, double value);
void qr_metrics_publish(qr_metrics *metrics);
/* *out is one allocation, freed by qr_metrics_free. */
size_t qr_metrics_read(qr_metrics *metrics, qr_metric **out);

#endif
