/* The memory plan of an engine: what it will take, in numbers, before anything is taken. `quire inspect` prints it
 * and qr_engine_open follows it to the byte. Thread: any. */
#ifndef QR_ENGINE_PLAN_H
#define QR_ENGINE_PLAN_H

#include "base/json.h"
#include "engine/runner.h"
#include "engine/scheduler.h"

typedef struct qr_rank_plan { /* what a rank's device holds */
    qr_net_memory weights;
    uint64_t block_bytes; /* of a KV block, all layers */
    uint64_t kv_bytes;
    uint64_t scratch_bytes;   /* activations and logits of the largest step */
    uint64_t available_bytes; /* memory there was when planning */
} qr_rank_plan;

typedef struct qr_engine_plan {
    qr_engine_options options; /* with every default filled in */
    qr_scheduler_options scheduler;
    qr_runner_options runner;
    int64_t max_model_len;
    int32_t blocks_per_sequence; /* that one of max_model_len tokens holds at most */
    uint64_t bookkeeping_bytes;  /* block pool, sampler, step arenas: once */
    int ranks;
    qr_rank_plan rank[QR_RANKS_MAX]; /* all with as many KV blocks as the tightest can hold */
} qr_engine_plan;

/* nets: one per rank of the team. `loaded`: the weights are in memory already, so that available memory does not count
 * them. Fills *plan also when it returns QR_OUT_OF_MEMORY. Errors: QR_INVALID_ARGUMENT names the option. */
qr_status qr_engine_plan_make(const qr_team *team, qr_net *const *nets, const qr_net_options *net_options,
                              const qr_engine_options *options, bool loaded, qr_engine_plan *plan,
                              qr_error *err);
/* One line of the log for each rank. */
void qr_engine_plan_log(const qr_engine_plan *plan, const char *event, const qr_team *team);
/* As a JSON object; owned by the caller. Memory is rank 0's; with several ranks all of them stand in "ranks". */
qr_json *qr_engine_plan_json(const qr_engine_plan *plan, const qr_team *team);

#endif
