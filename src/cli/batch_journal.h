/* The journal of a batch run: what makes it restartable. One line a finished request, whole and synced before it counts;
 * a run that was killed goes on from it, and the finished output is put together from it and renamed into place.
 *
 *     {"quire_batch":1,"input":"<sha256>","run":"<what else decides the results>"}
 *     {"line":17,"output":{...}}        in the order in which requests end
 *
 * Thread: one at a time. */
#ifndef QR_CLI_BATCH_JOURNAL_H
#define QR_CLI_BATCH_JOURNAL_H

#include "base/status.h"
#include "base/str.h"

typedef struct batch_place {
    uint64_t offset;
    size_t bytes; /* 0: not there yet */
} batch_place;

typedef struct batch_journal {
    char *path;
    int fd;
    uint64_t bytes;
    batch_place *outputs; /* [lines]: where each line's output object lies in the file */
    size_t lines, done;
} batch_journal;

/* Opens or begins `output`.partial for an input of `lines` lines. `header` is its first line, without the newline: a
 * journal with another one is refused (QR_INVALID_ARGUMENT), as is one that another process has open. A torn end is
 * cut off. */
qr_status batch_journal_open(batch_journal *journal, const char *output, qr_str header, size_t lines,
                             qr_error *err);
/* Appends; not safe from a power cut before batch_journal_sync. */
qr_status batch_journal_add(batch_journal *journal, size_t line, qr_str output, qr_error *err);
qr_status batch_journal_sync(batch_journal *journal, qr_error *err);
/* Writes all outputs in the order of the input, each a line, to `output`: whole or not at all. Then removes the
 * journal. All lines must be done. */
qr_status batch_journal_finish(batch_journal *journal, const char *output, qr_error *err);
void batch_journal_close(batch_journal *journal);

#endif
