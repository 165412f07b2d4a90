/* Files: read-only mappings, small whole reads, paths. Thread: any. */
#ifndef QR_BASE_FILE_H
#define QR_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"

typedef struct qr_file_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t bytes;
    uint64_t device, inode; /* identity */
} qr_file_map;

/* Maps a regular file read-only (MAP_PRIVATE). Errors: QR_NOT_FOUND, QR_IO_ERROR. */
qr_status qr_file_map_open(const char *path, qr_file_map *map, qr_error *err);
void qr_file_map_close(qr_file_map *map);

/* Reads a whole file of at most `bytes_max` into buf (appended). Errors also QR_LIMIT_EXCEEDED. */
qr_status qr_file_read(const char *path, size_t bytes_max, qr_buf *buf, qr_error *err);
/* Writes to `path`.tmp-PID and renames: never half a file. */
qr_status qr_file_write(const char *path, const void *data, size_t bytes, qr_error *err);

bool qr_file_exists(const char *path);
bool qr_file_is_dir(const char *path);
/* Joins with one slash; caller frees (qr_free). */
char *qr_path_join(const char *dir, const char *name);
const char *qr_path_basename(const char *path);
/* mkdir -p. */
qr_status qr_dir_create(const char *path, qr_error *err);
/* The environment is read here and nowhere else. NULL when unset or empty. */
const char *qr_env(const char *name);
/* $XDG_CACHE_HOME/quire or ~/.cache/quire; caller frees. */
char *qr_cache_dir(void);

#endif
