#include "cli/batch_lanes.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define RETRY_MS   100
#define READ_BYTES ((size_t)64 << 10)

qr_status batch_lane_open(batch_lane *lane, int *server_end, qr_error *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
        return qr_fail(err, QR_IO_ERROR, "batch: no more sockets: %s", strerror(errno));
    *lane = (batch_lane){.fd = ends[0]};
    *server_end = ends[1];
    return QR_OK;
}

void batch_lane_close(batch_lane *lane)
{
    if (lane->fd >= 0)
        close(lane->fd);
    lane->fd = -1;
    qr_buf_release(&lane->out);
    qr_buf_release(&lane->in);
}

void batch_lane_post(batch_lane *lane, size_t line, const char *path, qr_str body)
{
    lane->busy = true;
    lane->line = line;
    lane->sent = 0;
    qr_buf_clear(&lane->out);
    qr_buf_clear(&lane->in);
    qr_buf_printf(&lane->out,
                  "POST %s HTTP/1.1\r\nHost: batch\r\nContent-Type: application/json\r\n"
                  "X-Request-Id: batch-%zu\r\nContent-Length: %zu\r\n\r\n",
                  path, line, body.len);
    qr_buf_append_str(&lane->out, body);
}

/* ---- One lane ---- */

static bool lane_send(batch_lane *lane)
{
    while (lane->sent < lane->out.len) {
        ssize_t sent = send(lane->fd, lane->out.data + lane->sent, lane->out.len - lane->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN;
        lane->sent += (size_t)sent;
    }
    return true;
}

static bool lane_receive(batch_lane *lane)
{
    for (;;) {
        qr_buf_reserve(&lane->in, READ_BYTES);
        ssize_t got = recv(lane->fd, lane->in.data + lane->in.len, READ_BYTES, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EAGAIN;
        if (got == 0)
            return false;
        lane->in.len += (size_t)got;
    }
}

/* The reply, once its head and Content-Length bytes are there: unstreamed replies of our server always have it. */
static bool lane_reply(const batch_lane *lane, batch_reply *reply)
{
    static const char length_name[] = "\r\nContent-Length: ";
    qr_str in = qr_buf_str(&lane->in);
    ptrdiff_t end = qr_str_find(in, QR_STR("\r\n\r\n"), 0);
    if (end < 0 || !qr_str_starts(in, QR_STR("HTTP/1.1 ")))
        return false;
    ptrdiff_t length = qr_str_find(qr_str_make(in.data, (size_t)end), qr_str_of(length_name), 0);
    size_t bytes = length >= 0 ? strtoul(in.data + length + sizeof(length_name) - 1, NULL, 10) : 0;
    if (in.len - (size_t)end - 4 < bytes)
        return false;
    *reply = (batch_reply){.line = lane->line,
                           .status = (int)strtol(in.data + 9, NULL, 10),
                           .body = qr_str_make(in.data + end + 4, bytes)};
    return true;
}

static void lane_again(batch_lane *lane)
{
    lane->retry_at_ns = qr_clock_ns() + (uint64_t)RETRY_MS * 1000000;
    lane->sent = 0;
    qr_buf_clear(&lane->in);
}

static qr_status lane_turn(batch_lane *lane, short events, batch_reply_fn on_reply, void *user, qr_error *err)
{
    bool open = (events & POLLOUT) == 0 || lane_send(lane);
    if (open && (events & (POLLIN | POLLHUP | POLLERR)) != 0)
        open = lane_receive(lane);
    batch_reply reply;
    if (lane->busy && lane_reply(lane, &reply)) {
        if (reply.status == 429) {
            lane_again(lane);
        } else {
            lane->busy = false;
            qr_status status = on_reply(user, &reply, err);
            if (status != QR_OK)
                return status;
        }
    }
    if (open)
        return QR_OK;
    bool lost = lane->busy;
    batch_lane_close(lane); /* an idle one: the server's idle time-out */
    return lost ? qr_fail(err, QR_CLOSED, "batch: the server hung up on line %zu", lane->line + 1) : QR_OK;
}

/* ---- All of them ---- */

static struct pollfd wanted(batch_lane *lane, uint64_t now, int *timeout_ms)
{
    if (lane->retry_at_ns > now) {
        *timeout_ms = QR_MIN(*timeout_ms, RETRY_MS);
        return (struct pollfd){.fd = -1};
    }
    lane->retry_at_ns = 0;
    bool sends = lane->busy && lane->sent < lane->out.len;
    return (struct pollfd){.fd = lane->fd, .events = (short)(sends ? POLLIN | POLLOUT : POLLIN)};
}

qr_status batch_lanes_turn(batch_lane *lanes, size_t count, batch_reply_fn on_reply, void *user,
                           qr_error *err)
{
    struct pollfd *polls = qr_calloc(count, sizeof(*polls));
    int timeout_ms = 1000;
    uint64_t now = qr_clock_ns();
    for (size_t i = 0; i < count; i++)
        polls[i] = wanted(&lanes[i], now, &timeout_ms);
    qr_status status = QR_OK;
    if (poll(polls, count, timeout_ms) > 0) {
        for (size_t i = 0; i < count && status == QR_OK; i++)
            if (polls[i].revents != 0)
                status = lane_turn(&lanes[i], polls[i].revents, on_reply, user, err);
    }
    qr_free(polls);
    return status;
}
