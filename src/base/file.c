#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static qr_status fail_errno(qr_error *err, const char *path, const char *what)
{
    int code = errno;
    qr_status status = code == ENOENT || code == ENOTDIR ? QR_NOT_FOUND : QR_IO_ERROR;
    return qr_fail(err, status, "%s: %s: %s", path, what, strerror(code));
}

/* Opens a regular file for reading; *bytes and the identity come from the open descriptor. */
static qr_status open_regular(const char *path, int *fd, struct stat *info, qr_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us before the check */
    if (*fd < 0)
        return fail_errno(err, path, "cannot open");
    qr_status status = QR_OK;
    if (fstat(*fd, info) != 0)
        status = fail_errno(err, path, "cannot stat");
    else if (S_ISDIR(info->st_mode))
        status = qr_fail(err, QR_IO_ERROR, "%s: is a folder, not a file", path);
    else if (!S_ISREG(info->st_mode))
        status = qr_fail(err, QR_IO_ERROR, "%s: is not a regular file", path);
    if (status != QR_OK)
        close(*fd);
    return status;
}

qr_status qr_file_map_open(const char *path, qr_file_map *map, qr_error *err)
{
    int fd = -1;
    struct stat info;
    qr_status status = open_regular(path, &fd, &info, err);
    if (status != QR_OK)
        return status;
    void *data = NULL;
    if (info.st_size > 0) {
        data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = fail_errno(err, path, "cannot map");
            goto done;
        }
    }
    *map = (qr_file_map){
        .data = data,
        .bytes = (size_t)info.st_size,
        .device = (uint64_t)info.st_dev,
        .inode = (uint64_t)info.st_ino,
    };
done:
    close(fd);
    return status;
}

void qr_file_map_close(qr_file_map *map)
{
    if (map->data != NULL)
        munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (qr_file_map){0};
}

/* Also serves /proc and /sys, whose files state a size of 0 or 4096: it reads to the end, not to st_size. */
static qr_status read_to_end(int fd, const char *path, size_t bytes_max, qr_buf *buf, qr_error *err)
{
    size_t start = buf->len;
    for (;;) {
        qr_buf_reserve(buf, 16384);
        ssize_t got = read(fd, buf->data + buf->len, buf->capacity - buf->len - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_errno(err, path, "cannot read");
        buf->len += (size_t)got;
        buf->data[buf->len] = '\0';
        if (buf->len - start > bytes_max)
            return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: larger than the limit of %zu bytes", path, bytes_max);
        if (got == 0)
            return QR_OK;
    }
}

qr_status qr_file_read(const char *path, size_t bytes_max, qr_buf *buf, qr_error *err)
{
    int fd = -1;
    struct stat info;
    qr_status status = open_regular(path, &fd, &info, err);
    if (status != QR_OK)
        return status;
    if ((uint64_t)info.st_size > bytes_max) {
        status = qr_fail(err, QR_LIMIT_EXCEEDED, "%s: %lld bytes, more than the limit of %zu", path,
                         (long long)info.st_size, bytes_max);
        goto done;
    }
    size_t start = buf->len;
    qr_buf_reserve(buf, (size_t)info.st_size + 1);
    status = read_to_end(fd, path, bytes_max, buf, err);
    if (status != QR_OK) {
        buf->len = start;
        buf->data[start] = '\0';
    }
done:
    close(fd);
    return status;
}

static bool write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t put = write(fd, data, bytes);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        data += put;
        bytes -= (size_t)put;
    }
    return true;
}

qr_status qr_file_write(const char *path, const void *data, size_t bytes, qr_error *err)
{
    qr_buf temporary = {0};
    qr_buf_printf(&temporary, "%s.tmp-%ld", path, (long)getpid());
    qr_status status = QR_OK;
    int fd = open(temporary.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = fail_errno(err, path, "cannot create");
        goto done;
    }
    if (!write_all(fd, data, bytes))
        status = fail_errno(err, path, "cannot write");
    if (close(fd) != 0 && status == QR_OK)
        status = fail_errno(err, path, "cannot write");
    if (status == QR_OK && rename(temporary.data, path) != 0)
        status = fail_errno(err, path, "cannot rename into place");
    if (status != QR_OK)
        unlink(temporary.data);
done:
    qr_buf_release(&temporary);
    return status;
}

bool qr_file_exists(const char *path) { return access(path, F_OK) == 0; }

bool qr_file_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *qr_path_join(const char *dir, const char *name)
{
    size_t len = strlen(dir);
    while (len > 1 && dir[len - 1] == '/')
        len--;
    qr_buf path = {0};
    qr_buf_append(&path, dir, len);
    if (len > 0 && dir[len - 1] != '/')
        qr_buf_append_char(&path, '/');
    qr_buf_append_cstr(&path, name);
    return qr_buf_detach(&path, NULL);
}

const char *qr_path_basename(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

qr_status qr_dir_create(const char *path, qr_error *err)
{
    char *partial = qr_strdup(path);
    qr_status status = QR_OK;
    for (char *at = partial; status == QR_OK && *at != '\0';) {
        at += strspn(at, "/");
        at += strcspn(at, "/");
        char kept = *at;
        *at = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST && !qr_file_is_dir(partial))
            status = fail_errno(err, partial, "cannot create the folder");
        *at = kept;
    }
    if (status == QR_OK && !qr_file_is_dir(path))
        status = qr_fail(err, QR_IO_ERROR, "%s: exists and is not a folder", path);
    qr_free(partial);
    return status;
}

const char *qr_env(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

char *qr_cache_dir(void)
{
    const char *base = qr_env("XDG_CACHE_HOME");
    if (base != NULL && base[0] == '/') /* the specification: a relative path is ignored */
        return qr_path_join(base, "quire");
    const char *home = qr_env("HOME");
    return qr_path_join(home != NULL ? home : "/tmp", ".cache/quire");
}
