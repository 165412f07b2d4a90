#include "server/limits.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>

#include "base/hash.h"
#include "base/mem.h"

#define KIB ((int64_t)1024)
#define MIB ((int64_t)1024 * 1024)

void qr_server_options_init(qr_server_options *options)
{
    *options = (qr_server_options){
        .host = "127.0.0.1",
        .port = 8000,
        .generation_config = "auto",
        .response_role = "assistant",
        .tool_call_parser = "auto",
        .reasoning_parser = "auto",
        .handle_signals = true,
        .access_log = true,
    };
}

/* One row a number: where it is, what zero means, what is allowed. */
typedef struct limit_row {
    const char *name;
    size_t offset;
    bool is_size; /* size_t, else int32_t */
    int64_t fallback, min, max;
} limit_row;

#define SIZE_ROW(field, fallback, min, max)                                  \
    {                                                                        \
#field, offsetof(qr_server_options, field), true, fallback, min, max \
    }
#define INT_ROW(field, fallback, min, max)                                    \
    {                                                                         \
#field, offsetof(qr_server_options, field), false, fallback, min, max \
    }

static const limit_row limit_rows[] = {
    INT_ROW(connections_max, 1024, 1, 1 << 20),
    INT_ROW(connections_per_address_max, 512, 1, 1 << 20),
    SIZE_ROW(header_bytes_max, 32 * KIB, KIB, 16 * MIB),
    INT_ROW(header_count_max, 100, 8, 10000),
    SIZE_ROW(body_bytes_max, 16 * MIB, KIB, 1024 * MIB),
    SIZE_ROW(body_bytes_total_max, 256 * MIB, KIB, 1024 * 1024 * MIB),
    SIZE_ROW(stream_pending_bytes_max, MIB, 4 * KIB, 1024 * MIB),
    INT_ROW(prompts_max, 1024, 1, 1 << 20),
    INT_ROW(n_max, 128, 1, 16384),
    INT_ROW(stop_max, 64, 1, 4096),
    INT_ROW(header_timeout_ms, 10 * 1000, 10, 3600 * 1000),
    INT_ROW(body_timeout_ms, 60 * 1000, 10, 24 * 3600 * 1000),
    INT_ROW(idle_timeout_ms, 75 * 1000, 10, 24 * 3600 * 1000),
    INT_ROW(write_timeout_ms, 30 * 1000, 10, 24 * 3600 * 1000),
    INT_ROW(peer_timeout_ms, 20 * 1000, 1000, 24 * 3600 * 1000),
    INT_ROW(health_generate_timeout_ms, 20 * 1000, 10, 3600 * 1000),
    INT_ROW(drain_timeout_ms, 30 * 1000, -1, 24 * 3600 * 1000),
    INT_ROW(stats_interval_ms, 10 * 1000, -1, 24 * 3600 * 1000),
};

static qr_status limit_fill(qr_server_options *options, const limit_row *row, qr_error *err)
{
    char *at = (char *)options + row->offset;
    int64_t value;
    if (row->is_size) {
        size_t stored;
        memcpy(&stored, at, sizeof(stored));
        value = stored > (size_t)INT64_MAX ? INT64_MAX : (int64_t)stored;
    } else {
        int32_t stored;
        memcpy(&stored, at, sizeof(stored));
        value = stored;
    }
    if (value == 0)
        value = row->fallback;
    if (value < row->min || value > row->max)
        return qr_fail(err, QR_INVALID_ARGUMENT, "server: %s: %lld is not between %lld and %lld", row->name,
                       (long long)value, (long long)row->min, (long long)row->max);
    if (row->is_size)
        memcpy(at, &(size_t){(size_t)value}, sizeof(size_t));
    else
        memcpy(at, &(int32_t){(int32_t)value}, sizeof(int32_t));
    return QR_OK;
}

qr_status qr_limits_fill(qr_server_options *options, qr_error *err)
{
    for (size_t i = 0; i < QR_COUNT_OF(limit_rows); i++) {
        qr_status status = limit_fill(options, &limit_rows[i], err);
        if (status != QR_OK)
            return status;
    }
    if (options->port < 0 || options->port > 65535)
        return qr_fail(err, QR_INVALID_ARGUMENT, "server: port: %d is not between 0 and 65535",
                       options->port);
    if (strcmp(options->generation_config, "auto") != 0 && strcmp(options->generation_config, "vllm") != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "server: generation_config: \"%s\" is neither auto nor vllm",
                       options->generation_config);
    for (size_t i = 0; i < options->api_key_count; i++) {
        if (options->api_keys[i] == NULL || options->api_keys[i][0] == '\0')
            return qr_fail(err, QR_INVALID_ARGUMENT, "server: api_keys: key %zu is empty", i);
    }
    return QR_OK;
}

void qr_limits_fit_files(qr_server_options *options)
{
    const int64_t reserve = 64; /* the engine's, the log's, the model's files */
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    if (limit.rlim_cur < limit.rlim_max) {
        rlim_t wanted = (rlim_t)(options->connections_max + reserve);
        if (limit.rlim_cur < wanted) {
            limit.rlim_cur = QR_MIN(wanted, limit.rlim_max);
            (void)setrlimit(RLIMIT_NOFILE, &limit);
            (void)getrlimit(RLIMIT_NOFILE, &limit);
        }
    }
    int64_t room = limit.rlim_cur > INT32_MAX ? INT32_MAX : (int64_t)limit.rlim_cur - reserve;
    if (room < options->connections_max)
        options->connections_max = (int32_t)QR_MAX(room, 8);
}

void qr_peer_counts_init(qr_peer_counts *peers) { qr_u64_map_init(&peers->counts, 64); }

void qr_peer_counts_release(qr_peer_counts *peers) { qr_u64_map_release(&peers->counts); }

uint64_t qr_peer_key(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)address;
        return qr_hash64(&v4->sin_addr, sizeof(v4->sin_addr), 4);
    }
    if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)address;
        if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
            return qr_hash64(&v6->sin6_addr.s6_addr[12], 4, 4);
        return qr_hash64(&v6->sin6_addr, 8, 6);
    }
    return 1;
}

bool qr_peer_counts_add(qr_peer_counts *peers, uint64_t key, int32_t max)
{
    uint64_t count = 0;
    (void)qr_u64_map_get(&peers->counts, key, &count);
    if (count >= (uint64_t)max)
        return false;
    qr_u64_map_set(&peers->counts, key, count + 1);
    return true;
}

void qr_peer_counts_remove(qr_peer_counts *peers, uint64_t key)
{
    uint64_t count = 0;
    if (!qr_u64_map_get(&peers->counts, key, &count))
        return;
    if (count <= 1)
        (void)qr_u64_map_remove(&peers->counts, key);
    else
        qr_u64_map_set(&peers->counts, key, count - 1);
}
