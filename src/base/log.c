#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the sink; lines never interleave */
static atomic_int lowest = QR_LOG_OFF;                    /* read first, without the lock */
static void (*sink_function)(void *user, qr_log_level level, const char *line);
static void *sink_user;

void qr_log_set(qr_log_level level, void (*sink)(void *user, qr_log_level level, const char *line),
                void *user)
{
    pthread_mutex_lock(&mutex);
    sink_function = sink;
    sink_user = user;
    atomic_store(&lowest, sink != NULL ? (int)level : QR_LOG_OFF);
    pthread_mutex_unlock(&mutex);
}

static size_t write_head(char *line, size_t bytes, qr_log_level level, const char *event)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char stamp[32];
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
    int len = snprintf(line, bytes, "ts=%s.%03dZ level=%s event=%s ", stamp, (int)(now.tv_nsec / 1000000),
                       names[level], event);
    return len < 0 ? 0 : (size_t)len < bytes ? (size_t)len : bytes - 1;
}

void qr_log(qr_log_level level, const char *event, const char *format, ...)
{
    if (level >= QR_LOG_OFF || (int)level < atomic_load_explicit(&lowest, memory_order_relaxed))
        return;
    char line[4096]; /* on the stack: the engine logs without touching the heap */
    size_t len = write_head(line, sizeof(line), level, event);
    va_list args;
    va_start(args, format);
    vsnprintf(line + len, sizeof(line) - len, format, args);
    va_end(args);
    len += strlen(line + len);
    while (len > 0 && line[len - 1] == ' ')
        line[--len] = '\0';
    for (char *c = line; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20)
            *c = ' ';
    pthread_mutex_lock(&mutex);
    if (sink_function != NULL)
        sink_function(sink_user, level, line);
    pthread_mutex_unlock(&mutex);
}

static int plain(const char *text)
{
    if (*text == '\0')
        return 0;
    for (const char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c <= 0x20 || *c == '"' || *c == '=' || *c == '\\' || *c == 0x7f)
            return 0;
    return 1;
}

const char *qr_log_quote(const char *text, char *out, unsigned long out_bytes)
{
    if (out_bytes < 3) {
        if (out_bytes > 0)
            out[0] = '\0';
        return out;
    }
    size_t len = strlen(text);
    if (plain(text) && len < out_bytes) {
        memcpy(out, text, len + 1);
        return out;
    }
    size_t at = 0;
    out[at++] = '"';
    for (const char *c = text; *c != '\0' && at + 4 <= out_bytes; c++) {
        if (*c == '"' || *c == '\\')
            out[at++] = '\\';
        out[at++] = (unsigned char)*c < 0x20 || *c == 0x7f ? ' ' : *c;
    }
    out[at++] = '"';
    out[at] = '\0';
    return out;
}
