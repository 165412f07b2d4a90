/* What of quire.h belongs to no object: version, strings, the log. */
#include "base/log.h"
#include "base/mem.h"
#include "quire.h"

const char *qr_version(void) { return QR_VERSION; }

void qr_string_free(char *string) { qr_free(string); }

/* quire.h shows levels as int so that it needs no enum of base/. */
static void (*public_sink)(void *user, int level, const char *line);

static void forward_line(void *user, qr_log_level level, const char *line)
{
    public_sink(user, (int)level, line);
}

void qr_log_to(int level, void (*sink)(void *user, int level, const char *line), void *user)
{
    qr_log_set(QR_LOG_OFF, NULL, NULL); /* nobody is in the old sink afterwards */
    public_sink = sink;
    if (sink != NULL && level < QR_LOG_OFF)
        qr_log_set(level < QR_LOG_DEBUG ? QR_LOG_DEBUG : (qr_log_level)level, forward_line, user);
}
