/* qr_hub_pull: settings, then what the hub says the repository holds, then the files that are missing. */
#include "loader/hub.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"

#define ATTEMPTS_MAX   5
#define INFO_BYTES_MAX (16u << 20)

/* ---- Settings -------------------------------------------------------------------------------------- */

void qr_hub_options_init(qr_hub_options *options) { *options = (qr_hub_options){.size = sizeof(*options)}; }

typedef struct settings {
    char *endpoint, *token, *cache_dir;
    bool offline;
} settings;

/* $HF_HOME, or ~/.cache/huggingface; caller frees. */
static char *hf_home(void)
{
    if (qr_env("HF_HOME") != NULL)
        return qr_strdup(qr_env("HF_HOME"));
    if (qr_env("XDG_CACHE_HOME") != NULL)
        return qr_path_join(qr_env("XDG_CACHE_HOME"), "huggingface");
    return qr_path_join(qr_env("HOME") != NULL ? qr_env("HOME") : ".", ".cache/huggingface");
}

static char *read_token_file(const char *home)
{
    char *path =
        qr_env("HF_TOKEN_PATH") != NULL ? qr_strdup(qr_env("HF_TOKEN_PATH")) : qr_path_join(home, "token");
    qr_buf text = {0};
    char *token = NULL;
    if (qr_file_read(path, 4096, &text, NULL) == QR_OK) {
        size_t len = text.len > 0 ? strcspn(text.data, " \t\r\n") : 0;
        token = len > 0 ? qr_strndup(text.data, len) : NULL;
    }
    qr_buf_release(&text);
    qr_free(path);
    return token;
}

static bool is_true(const char *value)
{
    static const char *const words[] = {"1", "on", "yes", "true"};
    for (size_t i = 0; value != NULL && i < QR_COUNT_OF(words); i++)
        if (strcasecmp(value, words[i]) == 0)
            return true;
    return false;
}

static qr_status read_settings(const qr_hub_options *options, settings *s, qr_error *err)
{
    char *home = hf_home();
    const char *endpoint = options->endpoint != NULL ? options->endpoint : qr_env("HF_ENDPOINT");
    const char *token = options->token != NULL ? options->token : qr_env("HF_TOKEN");
    const char *cache = options->cache_dir != NULL ? options->cache_dir : qr_env("HF_HUB_CACHE");
    s->endpoint = qr_strdup(endpoint != NULL ? endpoint : "https://huggingface.co");
    for (size_t len = strlen(s->endpoint); len > 0 && s->endpoint[len - 1] == '/'; len--)
        s->endpoint[len - 1] = 0;
    s->token = token != NULL ? qr_strdup(token) : read_token_file(home);
    s->cache_dir = cache != NULL ? qr_strdup(cache) : qr_path_join(home, "hub");
    s->offline = options->offline || is_true(qr_env("HF_HUB_OFFLINE"));
    qr_free(home);
    if (strncmp(s->endpoint, "http://", 7) != 0 && strncmp(s->endpoint, "https://", 8) != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "hub: endpoint \"%.100s\" is not an http(s) URL",
                       s->endpoint);
    for (const char *p = s->token; p != NULL && *p != 0; p++)
        if ((unsigned char)*p <= 32 || (unsigned char)*p >= 127) /* would end up inside a header */
            return qr_fail(err, QR_INVALID_ARGUMENT, "hub: the token holds a space or a control character");
    return QR_OK;
}

static void release_settings(settings *s)
{
    qr_free(s->endpoint);
    qr_free(s->token);
    qr_free(s->cache_dir);
}

/* ---- A pull ---------------------------------------------------------------------------------------- */

typedef struct pull {
    const qr_hub_options *options;
    settings settings;
    qr_hub_name name;
    const char *revision;
    qr_hub_cache cache;
    qr_hub_repo repo;
    qr_hub_http *http;
    qr_error *err;
} pull;

/* An HTTP code that is not success, as one line. */
static qr_status http_error(pull *p, const char *file, long code)
{
    const char *repo = p->name.repo;
    switch (code) {
    case 401:
        return qr_fail(p->err, QR_DENIED, "%s: the hub answers 401: no such repository, or a private one: %s",
                       repo, p->settings.token != NULL ? "the token does not open it" : "set HF_TOKEN");
    case 403:
        return qr_fail(p->err, QR_DENIED,
                       "%s: the hub answers 403: accept the model's conditions on its page with the "
                       "account of HF_TOKEN",
                       repo);
    case 404:
        return qr_fail(p->err, QR_NOT_FOUND, "%s: not found at %s: %s, revision %s", repo,
                       p->settings.endpoint, file != NULL ? file : "the repository", p->revision);
    case 429: return qr_fail(p->err, QR_BUSY, "%s: the hub answers 429: too many requests, try later", repo);
    default:
        return qr_fail(p->err, QR_NETWORK, "%s: %s answers %ld for %s", repo, p->settings.endpoint, code,
                       file != NULL ? file : "the repository");
    }
}

/* 0.1, 0.2, ... 1.6 s */
static void pause_before(int attempt)
{
    int64_t ms = 100 << QR_MIN(attempt - 1, 4);
    struct timespec wait = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&wait, NULL);
}

static bool worth_retrying(qr_status status, const qr_hub_reply *reply)
{
    return status == QR_NETWORK || (status == QR_OK && (reply->code >= 500 || reply->code == 429));
}

static qr_status fetch_info(pull *p)
{
    qr_buf path = {0}, body = {0};
    qr_buf_printf(&path, "/api/models/%s/revision/", p->name.repo);
    for (const char *c = p->revision; *c != 0; c++) /* a branch may hold a slash, which is one name here */
        qr_buf_append_cstr(&path, *c == '/' ? "%2F" : (char[2]){*c, 0});
    qr_buf_append_cstr(&path, "?blobs=true");
    qr_hub_reply reply = {0};
    qr_status status = QR_NETWORK;
    for (int attempt = 0; attempt < 3; attempt++) {
        if (attempt > 0)
            pause_before(attempt);
        qr_buf_clear(&body);
        status = qr_hub_http_get(p->http, path.data, INFO_BYTES_MAX, &body, &reply, p->err);
        if (!worth_retrying(status, &reply) || (status == QR_NETWORK && reply.code == 0))
            break; /* without a connection the next attempt will fail as well */
    }
    if (status == QR_OK && reply.code != 200)
        status = http_error(p, NULL, reply.code);
    if (status == QR_OK)
        status = qr_hub_repo_parse(qr_buf_str(&body), p->name.repo, &p->repo, p->err);
    qr_buf_release(&body);
    qr_buf_release(&path);
    return status;
}

static char *resolve_path(const pull *p, const char *file)
{
    qr_buf path = {0};
    qr_buf_printf(&path, "/%s/resolve/%s/", p->name.repo, p->repo.commit);
    qr_hub_append_escaped(&path, file);
    return qr_buf_detach(&path, NULL);
}

/* Etag and size, where the repository's description did not say them. */
static qr_status fetch_file_info(pull *p, qr_hub_file *file)
{
    char *path = resolve_path(p, file->path);
    qr_hub_reply reply;
    qr_status status = qr_hub_http_head(p->http, path, &reply, p->err);
    qr_free(path);
    if (status != QR_OK)
        return status;
    if (reply.code >= 400)
        return http_error(p, file->path, reply.code);
    if (!qr_hub_word_safe(qr_str_of(reply.etag)))
        return qr_fail(p->err, QR_BAD_FILE, "%s: %s: the hub says no usable ETag", p->name.repo, file->path);
    file->etag = qr_strdup(reply.etag);
    file->size = reply.size;
    if (strlen(reply.etag) == 64)
        snprintf(file->sha256, sizeof(file->sha256), "%.64s", reply.etag);
    return QR_OK;
}

/* ---- One file -------------------------------------------------------------------------------------- */

static qr_status check_room(pull *p, const qr_hub_file *file, int64_t have)
{
    struct statvfs info;
    if (file->size < 0 || statvfs(p->cache.folder, &info) != 0)
        return QR_OK;
    uint64_t room = (uint64_t)info.f_bavail * info.f_frsize;
    if ((uint64_t)(file->size - have) > room)
        return qr_fail(p->err, QR_IO_ERROR, "%s: %s needs %lld bytes more, the disk has %llu free",
                       p->cache.folder, file->path, (long long)(file->size - have), (unsigned long long)room);
    return QR_OK;
}

static int64_t file_size(int fd)
{
    struct stat info;
    return fstat(fd, &info) == 0 ? (int64_t)info.st_size : -1;
}

/* Appends to the open file until it is whole. A broken line is tried again from where it broke, as long as
 * attempts make progress. */
static qr_status download_into(pull *p, const qr_hub_file *file, int fd)
{
    char *path = resolve_path(p, file->path);
    qr_hub_reply reply = {0};
    qr_status status = QR_OK;
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        int64_t have = file_size(fd);
        if (file->size >= 0 && have > file->size) { /* of something else: begin again */
            have = 0;
            if (ftruncate(fd, 0) != 0)
                break;
        }
        if (have == file->size)
            break;
        if (attempt > 0)
            pause_before(attempt);
        lseek(fd, have, SEEK_SET);
        qr_hub_transfer transfer = {.path = path,
                                    .fd = fd,
                                    .begin = have,
                                    .size = file->size,
                                    .what = file->path,
                                    .progress = p->options->progress,
                                    .progress_user = p->options->progress_user};
        status = qr_hub_http_download(p->http, &transfer, &reply, p->err);
        if (file_size(fd) > have)
            attempt = 0;
        if (status == QR_OK && reply.code == 416) /* nothing lies there: what we have is of another file */
            (void)!ftruncate(fd, 0);
        else if (!worth_retrying(status, &reply))
            break;
    }
    if (status == QR_OK && reply.code >= 400)
        status = http_error(p, file->path, reply.code);
    qr_free(path);
    return status;
}

static qr_status check_hash(pull *p, const qr_hub_file *file, const char *path)
{
    if (file->sha256[0] == 0)
        return QR_OK;
    enum { STEP = 16 << 20 };
    qr_file_map map;
    qr_status status = qr_file_map_open(path, &map, p->err);
    if (status != QR_OK)
        return status;
    qr_sha256 sha;
    uint8_t digest[32];
    char hex[65];
    qr_sha256_init(&sha);
    for (size_t at = 0; at < map.bytes; at += STEP)
        qr_sha256_update(&sha, map.data + at, QR_MIN((size_t)STEP, map.bytes - at));
    qr_sha256_final(&sha, digest);
    qr_sha256_hex(digest, hex);
    qr_file_map_close(&map);
    if (strcasecmp(hex, file->sha256) == 0)
        return QR_OK;
    return qr_fail(p->err, QR_BAD_FILE,
                   "%s: %s: sha256 is %.16s..., the hub says %.16s...; the download was removed",
                   p->name.repo, file->path, hex, file->sha256);
}

/* blobs/ETAG.incomplete -> blobs/ETAG, checked. The lock is held. */
static qr_status complete_blob(pull *p, const qr_hub_file *file, const char *part, const char *blob)
{
    int fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return qr_fail(p->err, QR_IO_ERROR, "%s: cannot open: %s", part, strerror(errno));
    qr_status status = check_room(p, file, file_size(fd));
    if (status == QR_OK)
        status = download_into(p, file, fd);
    int64_t have = file_size(fd);
    if (close(fd) != 0 && status == QR_OK)
        status = qr_fail(p->err, QR_IO_ERROR, "%s: cannot write: %s", part, strerror(errno));
    if (status == QR_OK && file->size >= 0 && have != file->size)
        status = qr_fail(p->err, QR_NETWORK, "%s: %s: broke off at %lld of %lld bytes; pull again to go on",
                         p->name.repo, file->path, (long long)have, (long long)file->size);
    if (status != QR_OK)
        return status;
    status = check_hash(p, file, part);
    if (status == QR_BAD_FILE)
        (void)unlink(part);
    if (status == QR_OK && rename(part, blob) != 0)
        status = qr_fail(p->err, QR_IO_ERROR, "%s: cannot rename: %s", part, strerror(errno));
    return status;
}

static qr_status pull_blob(pull *p, const qr_hub_file *file)
{
    char *blob = qr_hub_cache_blob(&p->cache, file->etag, false);
    char *part = qr_hub_cache_blob(&p->cache, file->etag, true);
    int lock = -1;
    qr_status status = QR_OK;
    if (!qr_file_exists(blob))
        status = qr_hub_cache_lock(&p->cache, file->etag, &lock, p->err);
    if (status == QR_OK && !qr_file_exists(blob)) /* who held the lock may have brought it */
        status = complete_blob(p, file, part, blob);
    qr_hub_cache_unlock(lock);
    qr_free(blob);
    qr_free(part);
    return status;
}

static qr_status pull_file(pull *p, qr_hub_file *file)
{
    char *path = qr_hub_cache_file(&p->cache, p->repo.commit, file->path);
    bool there = qr_file_exists(path);
    qr_free(path);
    if (there)
        return QR_OK;
    qr_status status = file->etag == NULL ? fetch_file_info(p, file) : QR_OK;
    if (status == QR_OK)
        status = pull_blob(p, file);
    if (status == QR_OK)
        status = qr_hub_cache_link(&p->cache, p->repo.commit, file->path, file->etag, p->err);
    return status;
}

/* ---- The whole ------------------------------------------------------------------------------------- */

static char *result_path(const pull *p)
{
    return p->repo.main_file != NULL ? qr_hub_cache_file(&p->cache, p->repo.commit, p->repo.main_file)
                                     : qr_hub_cache_snapshot(&p->cache, p->repo.commit);
}

static qr_status pull_online(pull *p, char **path)
{
    qr_status status = qr_hub_http_open(p->settings.endpoint, p->settings.token, &p->http, p->err);
    if (status == QR_OK)
        status = fetch_info(p);
    if (status == QR_OK)
        status = qr_hub_repo_choose(&p->repo, &p->name, p->err);
    char *blobs = qr_path_join(p->cache.folder, "blobs");
    if (status == QR_OK)
        status = qr_dir_create(blobs, p->err);
    qr_free(blobs);
    for (size_t i = 0; i < p->repo.files.count && status == QR_OK; i++)
        if (p->repo.files.data[i].wanted)
            status = pull_file(p, &p->repo.files.data[i]);
    if (status == QR_OK)
        status = qr_hub_cache_set_ref(&p->cache, p->revision, p->repo.commit, p->err);
    if (status == QR_OK)
        *path = result_path(p);
    return status;
}

/* What the cache has of the revision, if it can be opened as a model. */
static qr_status pull_cached(pull *p, char **path)
{
    qr_hub_repo_release(&p->repo);
    char *commit = qr_hub_cache_commit(&p->cache, p->revision);
    if (commit == NULL)
        return qr_fail(p->err, QR_NOT_FOUND,
                       "%s: offline (HF_HUB_OFFLINE), and revision %s is not in the cache %s", p->name.repo,
                       p->revision, p->cache.root);
    qr_status status = qr_hub_cache_list(&p->cache, commit, &p->repo, p->err);
    qr_free(commit);
    if (status == QR_OK && qr_hub_repo_choose(&p->repo, &p->name, NULL) != QR_OK)
        status = qr_fail(p->err, QR_NOT_FOUND,
                         "%s: offline, and the cache %s has not all of it: pull it with a network",
                         p->name.repo, p->cache.root);
    if (status == QR_OK)
        *path = result_path(p);
    return status;
}

static qr_status pull_either(pull *p, char **path)
{
    if (p->settings.offline)
        return pull_cached(p, path);
    qr_status status = pull_online(p, path);
    if (status != QR_NETWORK || p->repo.commit != NULL)
        return status;
    /* The hub cannot be reached: a copy that is already here serves as well. */
    qr_error first = p->err != NULL ? *p->err : (qr_error){0};
    if (pull_cached(p, path) == QR_OK) {
        char quoted[200];
        qr_log(QR_LOG_WARN, "hub_unreachable", "repo=%s using=cache error=%s", p->name.repo,
               qr_log_quote(first.message, quoted, sizeof(quoted)));
        return QR_OK;
    }
    if (p->err != NULL)
        *p->err = first;
    return status;
}

qr_status qr_hub_pull(const qr_hub_options *given, char **path, qr_error *err)
{
    qr_hub_options options;
    qr_hub_options_init(&options);
    memcpy(&options, given, QR_MIN(given->size, sizeof(options)));
    pull p = {
        .options = &options, .revision = options.revision != NULL ? options.revision : "main", .err = err};
    if (options.repo == NULL)
        return qr_fail(err, QR_INVALID_ARGUMENT, "hub: no repository given");
    if (!qr_hub_path_safe(qr_str_of(p.revision)))
        return qr_fail(err, QR_INVALID_ARGUMENT, "hub: revision \"%.100s\" is not a branch, tag or commit",
                       p.revision);
    qr_status status = qr_hub_name_parse(options.repo, &p.name, err);
    if (status != QR_OK)
        return status;
    status = read_settings(&options, &p.settings, err);
    qr_hub_cache_init(&p.cache, p.settings.cache_dir, p.name.repo);
    if (status == QR_OK)
        status = pull_either(&p, path);
    qr_hub_http_close(p.http);
    qr_hub_cache_release(&p.cache);
    qr_hub_repo_release(&p.repo);
    qr_hub_name_release(&p.name);
    release_settings(&p.settings);
    return status;
}
