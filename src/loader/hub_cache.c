/* The standard cache layout (hub.h), so that downloads of other programs are found and theirs find ours. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "loader/hub.h"

static char *make_path(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *make_path(const char *format, ...)
{
    qr_buf out = {0};
    va_list args;
    va_start(args, format);
    qr_buf_vprintf(&out, format, args);
    va_end(args);
    return qr_buf_detach(&out, NULL);
}

void qr_hub_cache_init(qr_hub_cache *cache, const char *root, const char *repo)
{
    const char *slash = strchr(repo, '/');
    qr_buf folder = {0};
    qr_buf_printf(&folder, "models--%.*s--%s", (int)(slash - repo), repo, slash + 1);
    cache->root = qr_strdup(root);
    cache->folder = qr_path_join(root, folder.data);
    cache->locks = make_path("%s/.locks/%s", root, folder.data);
    qr_buf_release(&folder);
}

void qr_hub_cache_release(qr_hub_cache *cache)
{
    qr_free(cache->root);
    qr_free(cache->folder);
    qr_free(cache->locks);
    *cache = (qr_hub_cache){0};
}

static qr_status create_parent(const char *path, qr_error *err)
{
    char *dir = qr_strndup(path, (size_t)(strrchr(path, '/') - path));
    qr_status status = qr_dir_create(dir, err);
    qr_free(dir);
    return status;
}

/* ---- Commits and paths ----------------------------------------------------------------------------- */

char *qr_hub_cache_commit(const qr_hub_cache *cache, const char *revision)
{
    char *snapshot = qr_hub_cache_snapshot(cache, revision); /* a revision may be a commit itself */
    bool is_commit = strlen(revision) == 40 && qr_file_is_dir(snapshot);
    qr_free(snapshot);
    if (is_commit)
        return qr_strdup(revision);
    char *path = make_path("%s/refs/%s", cache->folder, revision);
    qr_buf text = {0};
    char *commit = NULL;
    if (qr_file_read(path, 256, &text, NULL) == QR_OK) {
        while (text.len > 0 && (text.data[text.len - 1] == '\n' || text.data[text.len - 1] == ' '))
            text.len--;
        if (qr_hub_word_safe(qr_buf_str(&text)))
            commit = qr_strndup(text.data, text.len);
    }
    qr_buf_release(&text);
    qr_free(path);
    return commit;
}

qr_status qr_hub_cache_set_ref(const qr_hub_cache *cache, const char *revision, const char *commit,
                               qr_error *err)
{
    if (strcmp(revision, commit) == 0)
        return QR_OK;
    char *path = make_path("%s/refs/%s", cache->folder, revision);
    qr_status status = create_parent(path, err);
    if (status == QR_OK)
        status = qr_file_write(path, commit, strlen(commit), err);
    qr_free(path);
    return status;
}

char *qr_hub_cache_snapshot(const qr_hub_cache *cache, const char *commit)
{
    return make_path("%s/snapshots/%s", cache->folder, commit);
}

char *qr_hub_cache_file(const qr_hub_cache *cache, const char *commit, const char *path)
{
    return make_path("%s/snapshots/%s/%s", cache->folder, commit, path);
}

char *qr_hub_cache_blob(const qr_hub_cache *cache, const char *etag, bool incomplete)
{
    return make_path("%s/blobs/%s%s", cache->folder, etag, incomplete ? ".incomplete" : "");
}

/* ---- Links ----------------------------------------------------------------------------------------- */

/* Where a file system has no symbolic links the blob itself moves into the snapshot. */
static qr_status link_or_move(const qr_hub_cache *cache, const char *target, const char *file,
                              const char *etag, qr_error *err)
{
    if (symlink(target, file) == 0 || errno == EEXIST)
        return QR_OK;
    char *blob = qr_hub_cache_blob(cache, etag, false);
    qr_status status = QR_OK;
    if (rename(blob, file) != 0)
        status =
            qr_fail(err, QR_IO_ERROR, "%s: cannot link or move the download here: %s", file, strerror(errno));
    qr_free(blob);
    return status;
}

qr_status qr_hub_cache_link(const qr_hub_cache *cache, const char *commit, const char *path, const char *etag,
                            qr_error *err)
{
    char *file = qr_hub_cache_file(cache, commit, path);
    qr_buf target = {0};
    qr_buf_append_cstr(&target, "../../");
    for (const char *p = path; *p != 0; p++) /* one more for each folder inside the snapshot */
        if (*p == '/')
            qr_buf_append_cstr(&target, "../");
    qr_buf_printf(&target, "blobs/%s", etag);
    qr_status status = create_parent(file, err);
    if (status == QR_OK) {
        if (!qr_file_exists(file)) /* a dangling link of an interrupted cleaning counts as absent */
            (void)unlink(file);
        status = link_or_move(cache, target.data, file, etag, err);
    }
    qr_buf_release(&target);
    qr_free(file);
    return status;
}

/* ---- Locks ----------------------------------------------------------------------------------------- */

qr_status qr_hub_cache_lock(const qr_hub_cache *cache, const char *etag, int *fd, qr_error *err)
{
    qr_status status = qr_dir_create(cache->locks, err);
    if (status != QR_OK)
        return status;
    char *path = make_path("%s/%s.lock", cache->locks, etag);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (*fd < 0) {
        status = qr_fail(err, QR_IO_ERROR, "%s: cannot open: %s", path, strerror(errno));
    } else if (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        qr_log(QR_LOG_INFO, "hub_wait", "lock=%s reason=\"another process downloads this file\"", path);
        while (flock(*fd, LOCK_EX) != 0 && errno == EINTR)
            continue;
    }
    qr_free(path);
    return status;
}

void qr_hub_cache_unlock(int fd)
{
    if (fd >= 0)
        close(fd); /* gives the lock back */
}

/* ---- What a snapshot holds ------------------------------------------------------------------------- */

/* Adds the entries of one folder; folders inside go onto the list of those to visit. */
static void list_folder(const char *root, const char *prefix, qr_hub_repo *repo, qr_hub_repo *folders)
{
    char *path = make_path("%s/%s", root, prefix);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        char *name = make_path("%s%s", prefix, entry->d_name);
        char *full = qr_path_join(root, name);
        struct stat info;
        bool there = stat(full, &info) == 0; /* a link to a blob that is gone does not count */
        qr_free(full);
        qr_hub_file file = {.path = name, .size = there ? (int64_t)info.st_size : -1};
        if (there && S_ISDIR(info.st_mode)) {
            file.path = make_path("%s/", name);
            qr_free(name);
            QR_VEC_PUSH(&folders->files, file);
        } else if (there) {
            QR_VEC_PUSH(&repo->files, file);
        } else {
            qr_free(name);
        }
    }
    if (dir != NULL)
        closedir(dir);
    qr_free(path);
}

qr_status qr_hub_cache_list(const qr_hub_cache *cache, const char *commit, qr_hub_repo *repo, qr_error *err)
{
    enum { FOLDERS_MAX = 1000 };
    char *root = qr_hub_cache_snapshot(cache, commit);
    qr_hub_repo folders = {0};
    qr_status status = QR_OK;
    list_folder(root, "", repo, &folders);
    for (size_t i = 0; i < folders.files.count && status == QR_OK; i++) {
        if (i == FOLDERS_MAX)
            status = qr_fail(err, QR_LIMIT_EXCEEDED, "%s: more than %d folders", root, FOLDERS_MAX);
        else
            list_folder(root, folders.files.data[i].path, repo, &folders);
    }
    repo->commit = qr_strdup(commit);
    qr_hub_repo_release(&folders);
    qr_free(root);
    return status;
}
