/* logfmt log: one event a line, `ts=... level=info event=... key=value ...`. Silent until a sink is set
 * (the library never prints by itself); the CLI sets stderr. Thread: any. */
#ifndef QR_BASE_LOG_H
#define QR_BASE_LOG_H

typedef enum qr_log_level { QR_LOG_DEBUG, QR_LOG_INFO, QR_LOG_WARN, QR_LOG_ERROR, QR_LOG_OFF } qr_log_level;

/* level: the lowest that is written. sink gets whole lines without the newline. */
void qr_log_set(qr_log_level level, void (*sink)(void *user, qr_log_level level, const char *line),
                void *user);

/* event is a word; format gives the rest, already as key=value pairs; quote text values with
 * qr_log_quote. */
void qr_log(qr_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* text as a logfmt value, quoted when needed, cut to fit; returns out. */
const char *qr_log_quote(const char *text, char *out, unsigned long out_bytes);

#endif
