/* A model without the engine: opens a checkpoint on one or several ranks and runs rows of one or more sequences through
 * it, each sequence with blocks of its own. For tests and measurements. Thread: one. */
#ifndef QR_TESTS_NET_RUN_H
#define QR_TESTS_NET_RUN_H

#include "backend/team.h"
#include "model/model.h"

typedef struct net_run_options {
    const char *path, *isa; /* isa NULL: auto */
    const char *device;     /* NULL: cpu */
    int threads;
    int ranks;    /* 0: 1 */
    int dtype;    /* of dense weights; -1: the checkpoint's */
    int kv_dtype; /* -1: auto */
    int32_t context_max, seqs_max, block_size, rows_max;
} net_run_options;

typedef struct net_run {
    net_run_options options;
    qr_weights *weights;
    qr_arena arena;
    qr_model_config config;
    qr_team *team;
    qr_net *nets[QR_RANKS_MAX], *net; /* net: rank 0's */
    qr_kv *kv[QR_RANKS_MAX];
    qr_ops *ops[QR_RANKS_MAX];
    int32_t *tables; /* [groups][seqs_max][table_stride] */
    int32_t table_stride;
    const qr_batch *batch; /* of the step under way */
    float *logits;         /* [rows_max][vocab], of the last net_run_step */
    uint64_t bytes, flops; /* of the last step, rank 0's */
} net_run;

qr_status net_run_open(net_run *run, const net_run_options *options, qr_error *err);
void net_run_close(net_run *run);

/* Tokens [start, start + count) of a sequence, whose ids begin at ids[0] = token `start`. */
typedef struct net_run_rows {
    int32_t seq, start, count;
    const int32_t *ids;
} net_run_rows;
/* One step. all_logits: of every row, else of each sequence's last. Returns the logits [rows][vocab] in run->logits. */
const float *net_run_step(net_run *run, const net_run_rows *rows, int32_t count, bool all_logits);

int32_t net_run_argmax(const float *logits, int32_t vocab);

#endif
