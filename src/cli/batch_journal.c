#include "cli/batch_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

static const char record_begin[] = "{\"line\":", record_middle[] = ",\"output\":";

static qr_status io_failed(const char *path, const char *what, qr_error *err)
{
    return qr_fail(err, QR_IO_ERROR, "%s: %s: %s", path, what, strerror(errno));
}

static qr_status write_all(int fd, const char *path, const char *bytes, size_t count, qr_error *err)
{
    while (count > 0) {
        ssize_t wrote = write(fd, bytes, count);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return io_failed(path, "write", err);
        bytes += wrote;
        count -= (size_t)wrote;
    }
    return QR_OK;
}

/* ---- Reading back ---- */

/* One line without its newline; false: not a whole record. */
static bool take_record(batch_journal *journal, qr_str text, uint64_t offset)
{
    qr_json *json = NULL;
    if (!qr_str_starts(text, qr_str_of(record_begin)) ||
        qr_json_parse(text, &qr_json_limits_file, &json, NULL) != QR_OK)
        return false;
    int64_t line = qr_json_int(qr_json_get(json, "line"), -1);
    ptrdiff_t middle = qr_str_find(text, qr_str_of(record_middle), 0);
    bool whole = line >= 0 && (uint64_t)line < journal->lines && middle > 0 &&
                 qr_json_is(qr_json_get(json, "output"), QR_JSON_OBJECT);
    qr_json_free(json);
    if (!whole)
        return false;
    batch_place *place = &journal->outputs[line];
    journal->done += place->bytes == 0;
    size_t begin = (size_t)middle + sizeof(record_middle) - 1;
    *place = (batch_place){offset + begin, text.len - begin - 1};
    return true;
}

static qr_status read_back(batch_journal *journal, qr_str header, qr_error *err)
{
    qr_file_map map;
    qr_status status = qr_file_map_open(journal->path, &map, err);
    if (status != QR_OK)
        return status;
    const char *data = (const char *)map.data;
    for (size_t at = 0; at < map.bytes;) {
        const char *end = memchr(data + at, '\n', map.bytes - at);
        if (end == NULL)
            break;
        qr_str text = qr_str_make(data + at, (size_t)(end - data) - at);
        if (at == 0 && !qr_str_equal(text, header)) {
            status = qr_fail(err, QR_INVALID_ARGUMENT,
                             "%s: left by a run with another input, model or option: remove it to begin anew",
                             journal->path);
            break;
        }
        if (at > 0 && !take_record(journal, text, at))
            break; /* what follows was not synced: it is made again */
        at += text.len + 1;
        journal->bytes = at;
    }
    qr_file_map_close(&map);
    return status;
}

/* ---- Life ---- */

static qr_status begin(batch_journal *journal, qr_str header, qr_error *err)
{
    if (flock(journal->fd, LOCK_EX | LOCK_NB) != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "%s: another run is writing it", journal->path);
    qr_status status = read_back(journal, header, err);
    if (status != QR_OK)
        return status;
    if (ftruncate(journal->fd, (off_t)journal->bytes) != 0 || lseek(journal->fd, 0, SEEK_END) < 0)
        return io_failed(journal->path, "truncate", err);
    if (journal->bytes > 0)
        return QR_OK;
    qr_buf line = {0};
    qr_buf_append_str(&line, header);
    qr_buf_append_char(&line, '\n');
    status = write_all(journal->fd, journal->path, line.data, line.len, err);
    journal->bytes = line.len;
    qr_buf_release(&line);
    return status == QR_OK ? batch_journal_sync(journal, err) : status;
}

qr_status batch_journal_open(batch_journal *journal, const char *output, qr_str header, size_t lines,
                             qr_error *err)
{
    qr_buf path = {0};
    qr_buf_printf(&path, "%s.partial", output);
    *journal = (batch_journal){.path = qr_buf_detach(&path, NULL), .lines = lines};
    journal->outputs = qr_calloc(lines + 1, sizeof(*journal->outputs));
    journal->fd = open(journal->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    qr_status status = journal->fd >= 0 ? begin(journal, header, err) : io_failed(journal->path, "open", err);
    if (status != QR_OK)
        batch_journal_close(journal);
    return status;
}

void batch_journal_close(batch_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    qr_free(journal->path);
    qr_free(journal->outputs);
    *journal = (batch_journal){.fd = -1};
}

qr_status batch_journal_add(batch_journal *journal, size_t line, qr_str output, qr_error *err)
{
    QR_ASSERT(line < journal->lines && journal->outputs[line].bytes == 0);
    qr_buf record = {0};
    qr_buf_printf(&record, "%s%zu%s", record_begin, line, record_middle);
    batch_place place = {journal->bytes + record.len, output.len};
    qr_buf_append_str(&record, output);
    qr_buf_append_str(&record, QR_STR("}\n"));
    qr_status status = write_all(journal->fd, journal->path, record.data, record.len, err);
    if (status == QR_OK) {
        journal->bytes += record.len;
        journal->outputs[line] = place;
        journal->done++;
    }
    qr_buf_release(&record);
    return status;
}

qr_status batch_journal_sync(batch_journal *journal, qr_error *err)
{
    return fdatasync(journal->fd) == 0 ? QR_OK : io_failed(journal->path, "sync", err);
}

/* ---- The output ---- */

static bool write_outputs(const batch_journal *journal, const qr_file_map *map, FILE *file)
{
    for (size_t i = 0; i < journal->lines; i++) {
        const batch_place *place = &journal->outputs[i];
        if (fwrite(map->data + place->offset, 1, place->bytes, file) != place->bytes ||
            fputc('\n', file) == EOF)
            return false;
    }
    return fflush(file) == 0 && fsync(fileno(file)) == 0;
}

/* So that the name, too, outlives a power cut. */
static void sync_folder(const char *path)
{
    char *folder = qr_strdup(path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = '\0';
    int fd = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    qr_free(folder);
}

qr_status batch_journal_finish(batch_journal *journal, const char *output, qr_error *err)
{
    QR_ASSERT(journal->done == journal->lines);
    qr_file_map map;
    qr_status status = qr_file_map_open(journal->path, &map, err);
    if (status != QR_OK)
        return status;
    qr_buf temporary = {0};
    qr_buf_printf(&temporary, "%s.tmp", output);
    FILE *file = fopen(temporary.data, "we");
    bool written = file != NULL && write_outputs(journal, &map, file);
    if (file != NULL)
        written = fclose(file) == 0 && written;
    if (!written || rename(temporary.data, output) != 0)
        status = io_failed(output, "write", err);
    qr_file_map_close(&map);
    qr_buf_release(&temporary);
    if (status != QR_OK)
        return status;
    sync_folder(output);
    (void)unlink(journal->path);
    return QR_OK;
}
