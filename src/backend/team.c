#include "backend/team.h"

#include <pthread.h>
#include <stdio.h>

#include "backend/backend.h"
#include "base/assert.h"
#include "base/gate.h"
#include "base/mem.h"

typedef struct team_rank {
    qr_team *team;
    int rank;
    qr_device *device;
    pthread_t thread;
    bool started;
    qr_status status; /* of the last task */
    qr_error error;
} team_rank;

struct qr_team {
    int count;
    team_rank ranks[QR_RANKS_MAX];
    pthread_mutex_t mutex; /* one task at a time */
    qr_gate go, done;      /* opened for a task, and by the last to finish it */
    atomic_int left;       /* ranks beside 0 that have not finished it */
    qr_rank_task task;     /* NULL: end */
    void *arg;
};

static void run_task(team_rank *me)
{
    const qr_backend *backend = me->device->backend;
    if (backend->use != NULL)
        backend->use(me->device);
    me->error = (qr_error){0};
    me->status = me->team->task(me->team->arg, me->rank, &me->error);
}

static void *rank_main(void *arg)
{
    team_rank *me = arg;
    qr_team *team = me->team;
    for (uint32_t seen = 0;; seen++) {
        qr_gate_wait(&team->go, seen);
        if (team->task == NULL)
            return NULL;
        run_task(me);
        if (atomic_fetch_sub(&team->left, 1) == 1)
            qr_gate_open(&team->done);
    }
}

/* The first that failed by itself; else the first that gave up. */
static qr_status team_status(const qr_team *team, qr_error *err)
{
    const team_rank *failed = NULL;
    for (int i = team->count - 1; i >= 0; i--) {
        const team_rank *rank = &team->ranks[i];
        if (rank->status != QR_OK &&
            (failed == NULL || failed->status == QR_CANCELLED || rank->status != QR_CANCELLED))
            failed = rank;
    }
    if (failed == NULL)
        return QR_OK;
    if (err != NULL && failed->error.message[0] != '\0') {
        *err = failed->error;
        if (team->count > 1)
            qr_error_prefix(err, "rank %d", failed->rank);
    }
    return failed->status == QR_CANCELLED ? QR_DEVICE_FAILED : failed->status;
}

qr_status qr_team_run(qr_team *team, qr_rank_task task, void *arg, qr_error *err)
{
    pthread_mutex_lock(&team->mutex);
    team->task = task;
    team->arg = arg;
    atomic_store(&team->left, team->count - 1);
    uint32_t seen = qr_gate_count(&team->done);
    if (team->count > 1)
        qr_gate_open(&team->go);
    run_task(&team->ranks[0]);
    if (team->count > 1)
        qr_gate_wait(&team->done, seen);
    qr_status status = team_status(team, err);
    pthread_mutex_unlock(&team->mutex);
    return status;
}

/* ---- Opening ---- */

static qr_status open_devices(qr_team *team, const qr_device_options *options, qr_error *err)
{
    qr_device_options own = *options;
    own.ranks = team->count;
    for (int i = 0; i < team->count; i++) {
        own.rank = i;
        qr_status status = qr_device_open(&own, &team->ranks[i].device, err);
        if (status != QR_OK && i > 0)
            qr_error_prefix(err, "rank %d of %d", i, team->count);
        if (status != QR_OK)
            return status;
        if (i == 0 && qr_device_is_auto(options->device))
            own.device = qr_device_name(team->ranks[0].device); /* all of one kind */
    }
    return QR_OK;
}

static qr_status start_threads(qr_team *team, qr_error *err)
{
    for (int i = 1; i < team->count; i++) {
        team_rank *rank = &team->ranks[i];
        if (pthread_create(&rank->thread, NULL, rank_main, rank) != 0)
            return qr_fail(err, QR_OUT_OF_MEMORY, "the system gives no thread for rank %d", i);
        rank->started = true;
    }
    return QR_OK;
}

static qr_status join_group(qr_team *team, qr_error *err)
{
    if (team->count == 1)
        return QR_OK;
    qr_device *devices[QR_RANKS_MAX];
    for (int i = 0; i < team->count; i++)
        devices[i] = team->ranks[i].device;
    const qr_backend *backend = devices[0]->backend;
    if (backend->group_open == NULL)
        return qr_fail(err, QR_UNSUPPORTED, "device: %s: %d ranks; it works alone", backend->name,
                       team->count);
    return backend->group_open(devices, team->count, err);
}

qr_status qr_team_open(const qr_device_options *options, int ranks, qr_team **out, qr_error *err)
{
    if (ranks < 1 || ranks > QR_RANKS_MAX)
        return qr_fail(err, QR_INVALID_ARGUMENT, "tensor_parallel_size: must be 1 to %d, got %d",
                       QR_RANKS_MAX, ranks);
    qr_team *team = qr_calloc(1, sizeof(*team));
    team->count = ranks;
    pthread_mutex_init(&team->mutex, NULL);
    for (int i = 0; i < ranks; i++)
        team->ranks[i] = (team_rank){.team = team, .rank = i};
    qr_status status = open_devices(team, options, err);
    if (status == QR_OK)
        status = join_group(team, err);
    if (status == QR_OK)
        status = start_threads(team, err);
    if (status != QR_OK) {
        qr_team_close(team);
        return status;
    }
    *out = team;
    return QR_OK;
}

void qr_team_close(qr_team *team)
{
    if (team == NULL)
        return;
    team->task = NULL;
    qr_gate_open(&team->go);
    for (int i = 0; i < team->count; i++)
        if (team->ranks[i].started)
            pthread_join(team->ranks[i].thread, NULL);
    for (int i = 0; i < team->count; i++)
        qr_device_close(team->ranks[i].device);
    pthread_mutex_destroy(&team->mutex);
    qr_free(team);
}

int qr_team_ranks(const qr_team *team) { return team->count; }

qr_device *qr_team_device(const qr_team *team, int rank)
{
    QR_ASSERT(rank >= 0 && rank < team->count);
    return team->ranks[rank].device;
}
