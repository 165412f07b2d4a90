/* qr_team: the devices that compute one model together, its ranks, each driven by a thread of its own (rank 0 by the
 * caller's). A team of one is the plain case: no thread, no collective.
 *
 * Every rank runs the same ops in the same order on its share of the model; the ops that need the others' numbers
 * (qr_op_embed, qr_op_linear_sum, qr_op_logits, qr_op_draw) meet inside the backend. A rank that fails inside a step ends
 * the waiting of all others, and the team is of no use afterwards.
 * Thread: qr_team_run by one thread at a time; a second caller waits.
 */
#ifndef QR_BACKEND_TEAM_H
#define QR_BACKEND_TEAM_H

#include "backend/ops.h"

#define QR_RANKS_MAX 16

typedef struct qr_team qr_team;

/* Opens `ranks` devices of one kind: CPU ranks share the threads of `options`, GPUs count up from the one it names.
 * Errors: QR_INVALID_ARGUMENT (count), QR_UNSUPPORTED (a backend that works alone, no access between two GPUs), and
 * those of qr_device_open. */
qr_status qr_team_open(const qr_device_options *options, int ranks, qr_team **out, qr_error *err);
void qr_team_close(qr_team *team); /* NULL is allowed */
int qr_team_ranks(const qr_team *team);
qr_device *qr_team_device(const qr_team *team, int rank);

/* Calls task(arg, rank, err) on every rank's thread and waits for all. Of several that fail, the status and message are
 * those of the one that did not fail because of another ("rank 1: ..." when there are several). */
typedef qr_status (*qr_rank_task)(void *arg, int rank, qr_error *err);
qr_status qr_team_run(qr_team *team, qr_rank_task task, void *arg, qr_error *err);

#endif
