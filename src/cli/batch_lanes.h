/* The client side of a batch run: requests to the server in this process over socket pairs ("lanes"), so that a line of
 * a batch file is read, bounded, refused and answered by the code that serves /v1. One request a lane at a time.
 * Thread: the batch's own; the other ends belong to the server's. */
#ifndef QR_CLI_BATCH_LANES_H
#define QR_CLI_BATCH_LANES_H

#include <stdbool.h>

#include "base/status.h"
#include "base/str.h"

typedef struct batch_lane {
    int fd; /* -1: closed */
    bool busy;
    size_t line;
    qr_buf out; /* the request; sent as far as `sent` */
    size_t sent;
    qr_buf in;            /* the reply so far */
    uint64_t retry_at_ns; /* the server was full: send again then; 0: no */
} batch_lane;

/* A pair; *server_end is the other one. */
qr_status batch_lane_open(batch_lane *lane, int *server_end, qr_error *err);
void batch_lane_close(batch_lane *lane);
void batch_lane_post(batch_lane *lane, size_t line, const char *path, qr_str body);

/* A reply that is complete; the body is borrowed from the lane until the next call. */
typedef struct batch_reply {
    size_t line;
    int status;
    qr_str body;
} batch_reply;
typedef qr_status (*batch_reply_fn)(void *user, const batch_reply *reply, qr_error *err);
/* Waits, sends, receives; calls on_reply for each reply that has come (the lane is free then). 429 is sent again a
 * little later and not told. Errors: on_reply's, QR_CLOSED when the server hung up on a request. */
qr_status batch_lanes_turn(batch_lane *lanes, size_t count, batch_reply_fn on_reply, void *user,
                           qr_error *err);

#endif
