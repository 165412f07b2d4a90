/* The line that vLLM's users look for, every ten seconds while there is something to tell. */
#include "base/clock.h"
#include "base/log.h"
#include "server/state.h"

void qr_stats_line(qr_server *server)
{
    qr_engine_stats now = {.size = sizeof(now)};
    qr_engine_get_stats(server->engine, &now);
    const qr_engine_stats *then = &server->last_stats;
    uint64_t now_ns = qr_clock_ns();
    double seconds = (double)(now_ns - server->last_stats_ns) / 1e9;
    uint64_t prompt = now.prompt_tokens - then->prompt_tokens;
    uint64_t generation = now.generation_tokens - then->generation_tokens;
    uint64_t queries = now.prefix_queries, hits = now.prefix_hits;
    bool active = prompt > 0 || generation > 0 || now.running > 0 || now.waiting > 0;
    /* Once more after the last token, so that the log ends with zeros and not in the middle. */
    if (active || server->last_active)
        qr_log(QR_LOG_INFO, "stats",
               "msg=\"Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f "
               "tokens/s, "
               "Running: %d reqs, Waiting: %d reqs, KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%\"",
               seconds > 0 ? (double)prompt / seconds : 0, seconds > 0 ? (double)generation / seconds : 0,
               now.running, now.waiting, now.kv_usage * 100,
               queries > 0 ? 100 * (double)hits / (double)queries : 0);
    server->last_active = active;
    server->last_stats = now;
    server->last_stats_ns = now_ns;
}
