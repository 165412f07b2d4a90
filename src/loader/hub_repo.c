/* Which repository, and which of its files. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "loader/hub.h"

/* ---- Names ----------------------------------------------------------------------------------------- */

bool qr_hub_word_safe(qr_str word)
{
    if (word.len == 0 || word.len > 200 || word.data[0] == '.')
        return false;
    for (size_t i = 0; i < word.len; i++)
        if (!isalnum((unsigned char)word.data[i]) && strchr("._-", word.data[i]) == NULL)
            return false;
    return true;
}

bool qr_hub_path_safe(qr_str path)
{
    if (path.len == 0 || path.len > 1024)
        return false;
    size_t begin = 0;
    for (size_t i = 0; i <= path.len; i++) {
        if (i < path.len && path.data[i] != '/') {
            if ((unsigned char)path.data[i] < 32 || path.data[i] == '\\')
                return false;
            continue;
        }
        qr_str part = qr_str_make(path.data + begin, i - begin);
        if (part.len == 0 || qr_str_equals(part, ".") || qr_str_equals(part, ".."))
            return false;
        begin = i + 1;
    }
    return true;
}

/* ORG/NAME, ORG/NAME:QUANT, ORG/NAME/FOLDER/FILE.gguf */
qr_status qr_hub_name_parse(const char *text, qr_hub_name *name, qr_error *err)
{
    const char *slash = strchr(text, '/');
    size_t tail = slash != NULL ? strcspn(slash + 1, "/:") : 0;
    const char *rest = slash != NULL ? slash + 1 + tail : text;
    qr_hub_name out = {0};
    if (slash == NULL || !qr_hub_word_safe(qr_str_make(text, (size_t)(slash - text))) ||
        !qr_hub_word_safe(qr_str_make(slash + 1, tail)))
        goto fail;
    if (*rest == ':' && !qr_hub_word_safe(qr_str_of(rest + 1)))
        goto fail;
    if (*rest == '/' &&
        (!qr_hub_path_safe(qr_str_of(rest + 1)) || !qr_str_ends(qr_str_of(rest), QR_STR(".gguf"))))
        goto fail;
    out.repo = qr_strndup(text, (size_t)(rest - text));
    if (*rest == ':')
        out.quant = qr_strdup(rest + 1);
    else if (*rest == '/')
        out.file = qr_strdup(rest + 1);
    *name = out;
    return QR_OK;
fail:
    return qr_fail(err, QR_INVALID_ARGUMENT,
                   "hub: \"%.100s\" is not ORG/NAME, ORG/NAME:QUANT or ORG/NAME/FILE.gguf", text);
}

void qr_hub_name_release(qr_hub_name *name)
{
    qr_free(name->repo);
    qr_free(name->quant);
    qr_free(name->file);
    *name = (qr_hub_name){0};
}

/* ---- The hub's description of a repository --------------------------------------------------------- */

static bool is_hex(qr_str text, size_t len)
{
    for (size_t i = 0; i < text.len; i++)
        if (!isxdigit((unsigned char)text.data[i]))
            return false;
    return text.len == len;
}

static qr_status parse_sibling(const qr_json *json, const char *repo_name, qr_hub_repo *repo, qr_error *err)
{
    qr_str path = qr_json_string(qr_json_get(json, "rfilename"));
    if (!qr_hub_path_safe(path))
        return qr_fail(err, QR_BAD_FILE, "%s: the hub lists a file with an unsafe name: \"%.*s\"", repo_name,
                       (int)QR_MIN(path.len, 80), path.data != NULL ? path.data : "");
    const qr_json *lfs = qr_json_get(json, "lfs");
    qr_str sha256 = qr_json_string(qr_json_get(lfs, "sha256"));
    qr_str blob = qr_json_string(qr_json_get(json, "blobId"));
    qr_hub_file file = {.size = qr_json_int(qr_json_get(json, "size"), -1)};
    if (lfs != NULL)
        file.size = qr_json_int(qr_json_get(lfs, "size"), file.size);
    if (is_hex(sha256, 64)) {
        memcpy(file.sha256, sha256.data, 64);
        blob = sha256; /* large files are named by their contents' hash */
    }
    if (qr_hub_word_safe(blob) && file.size >= 0)
        file.etag = qr_strndup(blob.data, blob.len);
    file.path = qr_strndup(path.data, path.len);
    QR_VEC_PUSH(&repo->files, file);
    return QR_OK;
}

qr_status qr_hub_repo_parse(qr_str text, const char *repo_name, qr_hub_repo *repo, qr_error *err)
{
    qr_json *json;
    qr_status status = qr_json_parse(text, &qr_json_limits_request, &json, err);
    if (status != QR_OK) {
        qr_error_prefix(err, "%s: the hub's answer", repo_name);
        return status == QR_INVALID_ARGUMENT ? QR_BAD_FILE : status;
    }
    qr_str commit = qr_json_string(qr_json_get(json, "sha"));
    const qr_json *siblings = qr_json_get(json, "siblings");
    if (!is_hex(commit, 40) || !qr_json_is(siblings, QR_JSON_ARRAY))
        status = qr_fail(err, QR_BAD_FILE, "%s: the hub's answer has no commit and file list", repo_name);
    else
        repo->commit = qr_strndup(commit.data, commit.len);
    for (size_t i = 0; i < qr_json_count(siblings) && status == QR_OK; i++)
        status = parse_sibling(qr_json_at(siblings, i), repo_name, repo, err);
    qr_json_free(json);
    return status;
}

void qr_hub_repo_release(qr_hub_repo *repo)
{
    for (size_t i = 0; i < repo->files.count; i++) {
        qr_free(repo->files.data[i].path);
        qr_free(repo->files.data[i].etag);
    }
    QR_VEC_RELEASE(&repo->files);
    qr_free(repo->commit);
    qr_free(repo->main_file);
    *repo = (qr_hub_repo){0};
}

/* ---- Choice ---------------------------------------------------------------------------------------- */

static qr_hub_file *find_file(qr_hub_repo *repo, const char *path)
{
    for (size_t i = 0; i < repo->files.count; i++)
        if (strcmp(repo->files.data[i].path, path) == 0)
            return &repo->files.data[i];
    return NULL;
}

/* Shards are model-00001-of-00003.safetensors; other weights (consolidated, adapters) are not for us. */
static bool is_shard(const char *path)
{
    unsigned number, count;
    int end = 0;
    return sscanf(path, "model-%5u-of-%5u.safetensors%n", &number, &count, &end) == 2 && end > 0 &&
           path[end] == 0;
}

static bool want_safetensors(qr_hub_repo *repo)
{
    static const char *const small[] = {
        "config.json",     "generation_config.json",  "tokenizer.json",     "tokenizer_config.json",
        "tokenizer.model", "special_tokens_map.json", "added_tokens.json",  "vocab.json",
        "merges.txt",      "chat_template.jinja",     "chat_template.json", "preprocessor_config.json"};
    qr_hub_file *single = find_file(repo, "model.safetensors");
    qr_hub_file *index = find_file(repo, "model.safetensors.index.json");
    if (single == NULL && index == NULL)
        return false;
    for (size_t i = 0; i < QR_COUNT_OF(small); i++) {
        qr_hub_file *file = find_file(repo, small[i]);
        if (file != NULL)
            file->wanted = true;
    }
    if (single != NULL) {
        single->wanted = true;
        return true;
    }
    index->wanted = true;
    for (size_t i = 0; i < repo->files.count; i++)
        repo->files.data[i].wanted = repo->files.data[i].wanted || is_shard(repo->files.data[i].path);
    return true;
}

static bool is_model_gguf(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    return qr_str_ends(qr_str_of(path), QR_STR(".gguf")) && strncmp(base, "mmproj", 6) != 0;
}

/* Whether the file's name has `quant` as a word of its own: "m-Q4_K_M.gguf", "m.q8_0-00001-of-00002.gguf". */
static bool has_quant(const char *path, const char *quant)
{
    size_t len = strlen(quant);
    for (const char *p = path; *p != 0; p++)
        if ((p == path || strchr("-._/", p[-1]) != NULL) && strncasecmp(p, quant, len) == 0 &&
            (p[len] == '.' || p[len] == '-' || p[len] == '/'))
            return true;
    return false;
}

/* The first file of the wanted format by name, or NULL; split sets are chosen by their first file. */
static qr_hub_file *find_gguf(qr_hub_repo *repo, const char *quant)
{
    qr_hub_file *best = NULL;
    for (size_t i = 0; i < repo->files.count; i++) {
        qr_hub_file *file = &repo->files.data[i];
        if (!is_model_gguf(file->path) || (quant != NULL && !has_quant(file->path, quant)))
            continue;
        if (best == NULL || strcmp(file->path, best->path) < 0)
            best = file;
    }
    return best;
}

/* NAME-00001-of-00003.gguf wants its siblings too. */
static void want_split(qr_hub_repo *repo, const char *path)
{
    enum { TAIL = 20 }; /* "-00001-of-00003.gguf" */
    size_t len = strlen(path);
    unsigned number, count;
    for (size_t i = 0; i < repo->files.count; i++) {
        qr_hub_file *file = &repo->files.data[i];
        if (strcmp(file->path, path) == 0)
            file->wanted = true;
        if (len <= TAIL || sscanf(path + len - TAIL, "-%5u-of-%5u.gguf", &number, &count) != 2)
            continue;
        if (strlen(file->path) == len && strncmp(file->path, path, len - TAIL + 1) == 0 &&
            strcmp(file->path + len - 14, path + len - 14) == 0) /* "-of-00003.gguf" */
            file->wanted = true;
    }
}

static qr_status choose_gguf(qr_hub_repo *repo, const qr_hub_name *name, qr_error *err)
{
    static const char *const preferred[] = {"Q4_K_M", "Q8_0", "Q4_1", "Q4_0"};
    qr_hub_file *file = NULL;
    if (name->file != NULL)
        file = find_file(repo, name->file);
    else if (name->quant != NULL)
        file = find_gguf(repo, name->quant);
    else
        for (size_t i = 0; i < QR_COUNT_OF(preferred) && file == NULL; i++)
            file = find_gguf(repo, preferred[i]);
    if (file == NULL && name->file == NULL && name->quant == NULL)
        file = find_gguf(repo, NULL);
    if (file == NULL && (name->file != NULL || name->quant != NULL))
        return qr_fail(err, QR_NOT_FOUND, "%s: has no GGUF file %s", name->repo,
                       name->file != NULL ? name->file : name->quant);
    if (file == NULL)
        return qr_fail(err, QR_NOT_FOUND,
                       "%s: has neither model.safetensors (or its shards) nor GGUF files, of %zu files",
                       name->repo, repo->files.count);
    want_split(repo, file->path);
    repo->main_file = qr_strdup(file->path);
    return QR_OK;
}

qr_status qr_hub_repo_choose(qr_hub_repo *repo, const qr_hub_name *name, qr_error *err)
{
    if (name->quant == NULL && name->file == NULL && want_safetensors(repo))
        return QR_OK;
    return choose_gguf(repo, name, err);
}
