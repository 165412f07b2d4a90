/* Limits of the server: defaults filled in, ranges checked, connections counted by address.
 * Thread: I/O. */
#ifndef QR_SERVER_LIMITS_H
#define QR_SERVER_LIMITS_H

#include <sys/socket.h>

#include "base/map.h"
#include "base/status.h"
#include "server/server.h"

/* Replaces zeros by the defaults, in place. Errors: QR_INVALID_ARGUMENT names the option and its value. */
qr_status qr_limits_fill(qr_server_options *options, qr_error *err);
/* Lowers connections_max to what the process may open. */
void qr_limits_fit_files(qr_server_options *options);

/* How many connections each peer address holds. IPv6 peers count by their /64. */
typedef struct qr_peer_counts {
    qr_u64_map counts;
} qr_peer_counts;

void qr_peer_counts_init(qr_peer_counts *peers);
void qr_peer_counts_release(qr_peer_counts *peers);
uint64_t qr_peer_key(const struct sockaddr *address);
/* false (and nothing counted) when the peer holds `max` already. */
bool qr_peer_counts_add(qr_peer_counts *peers, uint64_t key, int32_t max);
void qr_peer_counts_remove(qr_peer_counts *peers, uint64_t key);

#endif
