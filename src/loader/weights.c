#include "loader/weights.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "loader/container.h"

qr_weights *qr_weights_new(const char *path, qr_container container)
{
    qr_weights *weights = qr_calloc(1, sizeof(*weights));
    weights->container = container;
    weights->path = qr_strdup(path);
    qr_arena_init(&weights->arena, 64 << 10);
    qr_str_map_init(&weights->index, 256);
    return weights;
}

void qr_weights_close(qr_weights *weights)
{
    if (weights == NULL)
        return;
    qr_gguf_close(weights->gguf);
    for (size_t i = 0; i < weights->maps.count; i++)
        qr_file_map_close(&weights->maps.data[i]);
    QR_VEC_RELEASE(&weights->maps);
    QR_VEC_RELEASE(&weights->entries);
    qr_str_map_release(&weights->index);
    qr_arena_release(&weights->arena);
    qr_free(weights->path);
    qr_free(weights);
}

qr_status qr_weights_add(qr_weights *weights, const qr_weights_entry *entry, qr_error *err)
{
    uint32_t other;
    if (qr_str_map_get(&weights->index, qr_str_of(entry->name), &other))
        return qr_fail(err, QR_BAD_FILE, "%s: tensor %s: is there twice, first in %s", entry->file,
                       entry->name, weights->entries.data[other].file);
    if (weights->entries.count >= UINT32_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: more than %u tensors", entry->file, UINT32_MAX);
    qr_str_map_add(&weights->index, qr_str_of(entry->name), (uint32_t)weights->entries.count);
    QR_VEC_PUSH(&weights->entries, *entry);
    return QR_OK;
}

bool qr_weights_shape_count(const int64_t *shape, int n_dims, int64_t *count)
{
    int64_t product = 1;
    for (int i = 0; i < n_dims; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(product, shape[i], &product))
            return false;
    *count = product;
    return true;
}

const char *qr_weights_print_shape(const int64_t *shape, int n_dims, char *out, size_t out_bytes)
{
    size_t at = (size_t)snprintf(out, out_bytes, "[");
    for (int i = 0; i < n_dims && at < out_bytes; i++)
        at += (size_t)snprintf(out + at, out_bytes - at, "%s%lld", i > 0 ? ", " : "", (long long)shape[i]);
    if (at < out_bytes)
        snprintf(out + at, out_bytes - at, "]");
    return out;
}

qr_status qr_weights_map(qr_weights *weights, const char *path, qr_file_map *map, qr_error *err)
{
    if (weights->maps.count >= QR_WEIGHTS_FILES_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: more than %d files", weights->path, QR_WEIGHTS_FILES_MAX);
    qr_status status = qr_file_map_open(path, map, err);
    if (status == QR_OK)
        QR_VEC_PUSH(&weights->maps, *map);
    return status;
}

static qr_status open_single_safetensors(qr_weights *weights, const char *path, qr_error *err)
{
    qr_file_map map;
    qr_status status = qr_weights_map(weights, path, &map, err);
    if (status != QR_OK)
        return status;
    const char *file = qr_arena_strndup(&weights->arena, path, strlen(path));
    return qr_safetensors_parse(weights, file, map.data, map.bytes, err);
}

/* A folder is Hugging Face's; a file is told by its first bytes, not by its name. */
static qr_status find_container(const char *path, qr_container *container, qr_error *err)
{
    *container = QR_CONTAINER_SAFETENSORS;
    if (qr_file_is_dir(path))
        return QR_OK;
    qr_file_map map;
    qr_status status = qr_file_map_open(path, &map, err);
    if (status != QR_OK)
        return status;
    if (map.bytes >= 4 && memcmp(map.data, "GGUF", 4) == 0)
        *container = QR_CONTAINER_GGUF;
    else if (!qr_str_ends(qr_str_of(path), QR_STR(".safetensors")))
        status =
            qr_fail(err, QR_BAD_FILE, "%s: neither a folder nor a GGUF file (%zu bytes)", path, map.bytes);
    qr_file_map_close(&map);
    return status;
}

qr_status qr_weights_open(const char *path, qr_weights **out, qr_error *err)
{
    qr_container container;
    qr_status status = find_container(path, &container, err);
    if (status != QR_OK)
        return status;
    qr_weights *weights = qr_weights_new(path, container);
    if (container == QR_CONTAINER_GGUF)
        status = qr_gguf_open_set(weights, path, err);
    else if (qr_file_is_dir(path))
        status = qr_safetensors_open_dir(weights, path, err);
    else
        status = open_single_safetensors(weights, path, err);
    if (status != QR_OK) {
        qr_weights_close(weights);
        return status;
    }
    *out = weights;
    return QR_OK;
}

qr_status qr_weights_open_empty(const char *dir, qr_weights **out, qr_error *err)
{
    if (!qr_file_is_dir(dir))
        return qr_fail(err, QR_NOT_FOUND, "%s: not a folder", dir);
    *out = qr_weights_new(dir, QR_CONTAINER_SAFETENSORS);
    return QR_OK;
}

qr_container qr_weights_container(const qr_weights *weights) { return weights->container; }

const char *qr_weights_path(const qr_weights *weights) { return weights->path; }

size_t qr_weights_count(const qr_weights *weights) { return weights->entries.count; }

const qr_weights_entry *qr_weights_at(const qr_weights *weights, size_t index)
{
    QR_ASSERT(index < weights->entries.count);
    return &weights->entries.data[index];
}

const qr_weights_entry *qr_weights_find(const qr_weights *weights, const char *name)
{
    uint32_t index;
    if (!qr_str_map_get(&weights->index, qr_str_of(name), &index))
        return NULL;
    return &weights->entries.data[index];
}

uint64_t qr_weights_bytes(const qr_weights *weights)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < weights->entries.count; i++)
        sum += weights->entries.data[i].bytes;
    return sum;
}

/* Advice only: a kernel that refuses it costs time, not correctness. */
void qr_weights_will_need(const qr_weights *weights)
{
    for (size_t i = 0; i < weights->maps.count; i++)
        if (weights->maps.data[i].bytes > 0)
            (void)madvise((void *)(uintptr_t)weights->maps.data[i].data, weights->maps.data[i].bytes,
                          MADV_WILLNEED);
}

void qr_weights_forget(const qr_weights *weights, const void *data, size_t bytes)
{
    (void)weights;
    /* Whole pages inside the range only: its first and last page may hold a neighbour's values. */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = QR_ROUND_UP((uintptr_t)data, page);
    uintptr_t end = ((uintptr_t)data + bytes) / page * page;
    if (end > begin)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

const struct qr_gguf *qr_weights_gguf(const qr_weights *weights) { return weights->gguf; }
