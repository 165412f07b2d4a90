/* Inside the loader: the parts of qr_hub_pull. hub.c holds the order of things; hub_http.c speaks HTTP through
 * libcurl, opened at run time; hub_repo.c decides which files of a repository are wanted; hub_cache.c knows
 * the standard cache layout:
 *
 *     CACHE/models--ORG--NAME/refs/REVISION           the commit that a branch or tag meant last
 *     CACHE/models--ORG--NAME/blobs/ETAG              contents (ETAG.incomplete while it comes)
 *     CACHE/models--ORG--NAME/snapshots/COMMIT/FILE   symbolic links into blobs
 *     CACHE/.locks/models--ORG--NAME/ETAG.lock        flock() while a blob is written
 *
 * Thread: one owner per pull.
 */
#ifndef QR_LOADER_HUB_H
#define QR_LOADER_HUB_H

#include "base/status.h"
#include "base/str.h"
#include "base/vec.h"

/* ---- What is asked for ----------------------------------------------------------------------------- */

typedef struct qr_hub_name {
    char *repo;  /* "ORG/NAME" */
    char *quant; /* of ORG/NAME:QUANT, or NULL */
    char *file;  /* of ORG/NAME/FILE.gguf, or NULL */
} qr_hub_name;

qr_status qr_hub_name_parse(const char *text, qr_hub_name *name, qr_error *err);
void qr_hub_name_release(qr_hub_name *name);

/* ---- Files of a repository ------------------------------------------------------------------------- */

typedef struct qr_hub_file {
    char *path;      /* within the repository; checked: relative, no "..", no backslash */
    char *etag;      /* names the blob; NULL until known */
    char sha256[65]; /* of large files; "" when the hub says none */
    int64_t size;    /* -1: not said */
    bool wanted;
} qr_hub_file;

typedef struct qr_hub_repo {
    char *commit; /* 40 hex digits */
    QR_VEC(qr_hub_file) files;
    char *main_file; /* the .gguf to open, or NULL: the folder */
} qr_hub_repo;

/* Reads the answer of /api/models/REPO/revision/REV?blobs=true. */
qr_status qr_hub_repo_parse(qr_str json, const char *repo_name, qr_hub_repo *repo, qr_error *err);
/* Marks the wanted files; sets main_file for GGUF. */
qr_status qr_hub_repo_choose(qr_hub_repo *repo, const qr_hub_name *name, qr_error *err);
void qr_hub_repo_release(qr_hub_repo *repo);
/* True for names that may become a path below a folder of ours. */
bool qr_hub_path_safe(qr_str path);
bool qr_hub_word_safe(qr_str word); /* letters, digits, '.', '_', '-'; no leading '.' */

/* ---- Cache ----------------------------------------------------------------------------------------- */

typedef struct qr_hub_cache {
    char *root;   /* CACHE */
    char *folder; /* CACHE/models--ORG--NAME */
    char *locks;  /* CACHE/.locks/models--ORG--NAME */
} qr_hub_cache;

void qr_hub_cache_init(qr_hub_cache *cache, const char *root, const char *repo);
void qr_hub_cache_release(qr_hub_cache *cache);
/* The commit that `revision` names in the cache; NULL when unknown. Caller frees. */
char *qr_hub_cache_commit(const qr_hub_cache *cache, const char *revision);
qr_status qr_hub_cache_set_ref(const qr_hub_cache *cache, const char *revision, const char *commit,
                               qr_error *err);
char *qr_hub_cache_snapshot(const qr_hub_cache *cache, const char *commit);               /* caller frees */
char *qr_hub_cache_file(const qr_hub_cache *cache, const char *commit, const char *path); /* caller frees */
char *qr_hub_cache_blob(const qr_hub_cache *cache, const char *etag, bool incomplete);    /* caller frees */
/* snapshots/COMMIT/PATH -> blobs/ETAG. */
qr_status qr_hub_cache_link(const qr_hub_cache *cache, const char *commit, const char *path, const char *etag,
                            qr_error *err);
/* Takes the blob's lock, waiting for whoever holds it; *fd goes to qr_hub_cache_unlock. */
qr_status qr_hub_cache_lock(const qr_hub_cache *cache, const char *etag, int *fd, qr_error *err);
void qr_hub_cache_unlock(int fd);
/* The files of a snapshot, for choosing offline: `repo` gets their paths. */
qr_status qr_hub_cache_list(const qr_hub_cache *cache, const char *commit, qr_hub_repo *repo, qr_error *err);

/* ---- HTTP ------------------------------------------------------------------------------------------ */

typedef struct qr_hub_http qr_hub_http;

typedef struct qr_hub_reply {
    long code;      /* HTTP status of the last answer */
    char etag[129]; /* X-Linked-Etag, else ETag; quotes and W/ removed; "" when none */
    int64_t size;   /* X-Linked-Size, else Content-Length; -1: not said */
} qr_hub_reply;

/* Opens libcurl. token may be NULL; it is sent to the host of `endpoint` only. */
qr_status qr_hub_http_open(const char *endpoint, const char *token, qr_hub_http **out, qr_error *err);
void qr_hub_http_close(qr_hub_http *http);
/* path begins with '/' and is percent-encoded. Errors: QR_NETWORK (no connection, broken off). An HTTP error is
 * not a failure here: look at reply->code. */
qr_status qr_hub_http_get(qr_hub_http *http, const char *path, size_t bytes_max, qr_buf *body,
                          qr_hub_reply *reply, qr_error *err);
qr_status qr_hub_http_head(qr_hub_http *http, const char *path, qr_hub_reply *reply, qr_error *err);

typedef struct qr_hub_transfer {
    const char *path; /* of the URL */
    int fd;           /* written at its end; cut to nothing when the server sends all from the beginning */
    int64_t begin;    /* bytes that are there already */
    int64_t size;     /* expected in all; -1: not known. More is refused. */
    const char *what; /* for progress */
    qr_progress_fn progress;
    void *progress_user;
} qr_hub_transfer;
qr_status qr_hub_http_download(qr_hub_http *http, const qr_hub_transfer *transfer, qr_hub_reply *reply,
                               qr_error *err);

/* Appends text with everything but unreserved characters and '/' percent-encoded. */
void qr_hub_append_escaped(qr_buf *out, const char *text);

#endif
