/* GGUF tensors as weights entries: type, shape, size, offset and overlap checks; split sets. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "loader/container.h"
#include "loader/gguf_image.h"

/* ggml's tensor types: values and bytes of a block. Those that no format of ours reads are listed so that a
 * file which holds one can be inspected; the number is the position. 0 values: no such type (any more). */
static const struct {
    const char *name;
    uint16_t block, bytes;
} ggml_types[] = {[0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
                  [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
                  [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
                  [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
                  [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
                  [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
                  [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
                  [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
                  [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
                  [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
                  [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17}};

/* Bytes of the tensor's data, or a reason why there can be none. */
static const char *tensor_bytes(const qr_gguf_tensor *tensor, const int64_t *shape, size_t *bytes)
{
    if (tensor->type >= QR_COUNT_OF(ggml_types) || ggml_types[tensor->type].block == 0)
        return "unknown type";
    int64_t count;
    if (!qr_weights_shape_count(shape, tensor->n_dims, &count))
        return "impossible shape";
    int64_t block = ggml_types[tensor->type].block;
    if (shape[tensor->n_dims - 1] % block != 0)
        return "rows are not whole blocks";
    if (!qr_size_mul((size_t)(count / block), ggml_types[tensor->type].bytes, bytes))
        return "impossible shape";
    return NULL;
}

static qr_status check_place(const qr_gguf *gguf, const qr_gguf_tensor *tensor, size_t bytes, qr_error *err)
{
    size_t room = gguf->bytes - gguf->data_at;
    if (tensor->offset % gguf->alignment != 0)
        return qr_fail(err, QR_BAD_FILE, "%s: tensor %.*s: offset %" PRIu64 " is not aligned to %zu",
                       gguf->file, (int)QR_MIN(tensor->name.len, 64), tensor->name.data, tensor->offset,
                       gguf->alignment);
    if (tensor->offset > room || bytes > room - tensor->offset)
        return qr_fail(
            err, QR_BAD_FILE,
            "%s: tensor %.*s: offset %" PRIu64 ", %zu bytes, but the file has %zu bytes of data (truncated?)",
            gguf->file, (int)QR_MIN(tensor->name.len, 64), tensor->name.data, tensor->offset, bytes, room);
    return QR_OK;
}

static qr_status add_tensor(qr_weights *weights, const qr_gguf *gguf, const char *file,
                            const qr_gguf_tensor *tensor, qr_error *err)
{
    qr_weights_entry entry = {.file = file, .n_dims = tensor->n_dims};
    char shape[128];
    for (int i = 0; i < tensor->n_dims; i++)
        entry.shape[i] = tensor->shape[i] > INT64_MAX ? -1 : (int64_t)tensor->shape[i];
    const char *what = tensor_bytes(tensor, entry.shape, &entry.bytes);
    if (what != NULL)
        return qr_fail(err, QR_BAD_FILE, "%s: tensor %.*s: %s: type %u, shape %s", gguf->file,
                       (int)QR_MIN(tensor->name.len, 64), tensor->name.data, what, tensor->type,
                       qr_weights_print_shape(entry.shape, entry.n_dims, shape, sizeof(shape)));
    qr_status status = check_place(gguf, tensor, entry.bytes, err);
    if (status != QR_OK)
        return status;
    entry.name = qr_arena_strndup(&weights->arena, tensor->name.data, tensor->name.len);
    entry.dtype_name = ggml_types[tensor->type].name;
    entry.format = qr_format_by_ggml_type(tensor->type);
    entry.data = gguf->data + gguf->data_at + tensor->offset;
    return qr_weights_add(weights, &entry, err);
}

static int compare_data(const void *a, const void *b)
{
    const qr_weights_entry *const *x = a, *const *y = b;
    if ((*x)->data != (*y)->data)
        return (*x)->data < (*y)->data ? -1 : 1;
    return (*x)->bytes < (*y)->bytes ? -1 : (*x)->bytes > (*y)->bytes;
}

/* Holes are padding; sharing bytes is not allowed. */
static qr_status check_overlap(const qr_weights *weights, size_t first, qr_error *err)
{
    size_t count = weights->entries.count - first;
    const qr_weights_entry **sorted = qr_calloc(count + 1, sizeof(*sorted));
    for (size_t i = 0; i < count; i++)
        sorted[i] = &weights->entries.data[first + i];
    qsort(sorted, count, sizeof(*sorted), compare_data);
    qr_status status = QR_OK;
    for (size_t i = 1; i < count && status == QR_OK; i++)
        if (sorted[i]->data < sorted[i - 1]->data + sorted[i - 1]->bytes)
            status = qr_fail(err, QR_BAD_FILE, "%s: tensors %.80s and %.80s overlap", sorted[i]->file,
                             sorted[i - 1]->name, sorted[i]->name);
    qr_free(sorted);
    return status;
}

qr_status qr_gguf_add_tensors(qr_weights *weights, const qr_gguf *gguf, const char *file, qr_error *err)
{
    size_t first = weights->entries.count;
    for (size_t i = 0; i < gguf->tensors.count; i++) {
        qr_status status = add_tensor(weights, gguf, file, &gguf->tensors.data[i], err);
        if (status != QR_OK)
            return status;
    }
    return check_overlap(weights, first, err);
}

/* ---- Split sets ------------------------------------------------------------------------------------ */

#define SPLIT_TAIL_BYTES 20 /* "-00001-of-00003.gguf" */

/* NAME-00001-of-00003.gguf with its number replaced; NULL when the name has another form. Caller frees. */
static char *split_path(const char *path, unsigned number, unsigned count)
{
    char expected[32];
    size_t len = strlen(path);
    snprintf(expected, sizeof(expected), "-00001-of-%05u.gguf", count);
    if (len < SPLIT_TAIL_BYTES || strcmp(path + len - SPLIT_TAIL_BYTES, expected) != 0)
        return NULL;
    char *out = qr_strdup(path);
    snprintf(expected, sizeof(expected), "-%05u-of-%05u.gguf", number, count);
    memcpy(out + len - SPLIT_TAIL_BYTES, expected, SPLIT_TAIL_BYTES);
    return out;
}

/* Maps and parses part `number` (from 0); *count is read from part 0 and must be the same in the others. */
static qr_status open_part(qr_weights *weights, const char *path, uint64_t number, uint64_t *count,
                           qr_error *err)
{
    qr_file_map map;
    qr_status status = qr_weights_map(weights, path, &map, err);
    if (status != QR_OK)
        return status;
    qr_gguf *gguf;
    status = qr_gguf_parse(path, map.data, map.bytes, &gguf, err);
    if (status != QR_OK)
        return status;
    uint64_t split_no = 0, split_count = 1;
    qr_gguf_u64(gguf, "split.no", &split_no);
    qr_gguf_u64(gguf, "split.count", &split_count);
    if (split_count == 0) /* ggml writes 0 for "not split" */
        split_count = 1;
    if (number == 0)
        *count = split_count;
    if (split_no != number || split_count != *count)
        status = qr_fail(err, QR_BAD_FILE,
                         "%s: says it is part %" PRIu64 " of %" PRIu64 ", needed is part %" PRIu64
                         " of %" PRIu64 " (a split set opens by its first file)",
                         path, split_no + 1, split_count, number + 1, *count);
    else if (split_count > QR_WEIGHTS_FILES_MAX)
        status = qr_fail(err, QR_BAD_FILE, "%s: split.count: %" PRIu64 " files", path, split_count);
    else
        status =
            qr_gguf_add_tensors(weights, gguf, qr_arena_strndup(&weights->arena, path, strlen(path)), err);
    if (number == 0 && status == QR_OK)
        weights->gguf = gguf;
    else
        qr_gguf_close(gguf);
    return status;
}

qr_status qr_gguf_open_set(qr_weights *weights, const char *path, qr_error *err)
{
    uint64_t count = 1, tensors;
    qr_status status = open_part(weights, path, 0, &count, err);
    for (uint64_t i = 1; i < count && status == QR_OK; i++) {
        char *part = split_path(path, (unsigned)i + 1, (unsigned)count);
        if (part == NULL)
            return qr_fail(err, QR_BAD_FILE,
                           "%s: split.count is %" PRIu64 ", but the name does not end in -00001-of-%05u.gguf",
                           path, count, (unsigned)count);
        status = open_part(weights, part, i, &count, err);
        qr_free(part);
    }
    if (status == QR_OK && count > 1 && qr_gguf_u64(weights->gguf, "split.tensors.count", &tensors) &&
        tensors != weights->entries.count)
        status = qr_fail(err, QR_BAD_FILE, "%s: split.tensors.count is %" PRIu64 ", its files hold %zu", path,
                         tensors, weights->entries.count);
    return status;
}
