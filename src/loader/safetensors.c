/* safetensors: 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}},
 * then the data, which the tensors must cover without overlap or holes (the format's own rule). */
#include <limits.h>
#include <stdlib.h>

#include "base/json_scan.h"
#include "loader/container.h"

/* The reference implementation's limit. */
#define HEADER_BYTES_MAX 100000000u

/* Every dtype of the format: those without a weight format of ours can still be listed and checked. */
static const struct {
    const char *name;
    int bits;
} dtypes[] = {{"F32", 32}, {"F16", 16},    {"BF16", 16},   {"BOOL", 8},    {"U8", 8},
              {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
              {"U16", 16}, {"I32", 32},    {"U32", 32},    {"F64", 64},    {"I64", 64},
              {"U64", 64}, {"C64", 64},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}};

typedef struct file_info {
    qr_weights *weights;
    const char *file;
    const uint8_t *data; /* the data section */
    size_t bytes;        /* of it */
    qr_buf name;         /* the current tensor's name, unescaped */
    qr_error *err;
} file_info;

static int dtype_bits(qr_str dtype)
{
    for (size_t i = 0; i < QR_COUNT_OF(dtypes); i++)
        if (qr_str_equals(dtype, dtypes[i].name))
            return dtypes[i].bits;
    return 0;
}

static qr_status tensor_error(file_info *info, const char *what)
{
    return qr_fail(info->err, QR_BAD_FILE, "%s: tensor %s: %s", info->file, info->name.data, what);
}

static bool read_shape(qr_json_scan *scan, qr_weights_entry *entry, bool *too_many)
{
    *too_many = false;
    if (!qr_json_scan_array(scan))
        return false;
    entry->n_dims = 0;
    while (qr_json_scan_item(scan)) {
        int64_t value;
        if (!qr_json_scan_int(scan, &value))
            return false;
        if (entry->n_dims == QR_WEIGHTS_DIMS_MAX) {
            *too_many = true;
            return false;
        }
        entry->shape[entry->n_dims++] = value;
    }
    return !scan->failed;
}

static bool read_offsets(qr_json_scan *scan, int64_t offsets[2])
{
    int count = 0;
    if (!qr_json_scan_array(scan))
        return false;
    while (qr_json_scan_item(scan))
        if (count == 2 || !qr_json_scan_int(scan, &offsets[count++]))
            return false;
    return !scan->failed && count == 2;
}

typedef struct tensor_fields {
    qr_str dtype;
    int64_t offsets[2];
    bool has_dtype, has_shape, has_offsets;
} tensor_fields;

/* Reads {dtype, shape, data_offsets}. */
static qr_status read_fields(file_info *info, qr_json_scan *scan, qr_weights_entry *entry,
                             tensor_fields *fields)
{
    qr_str key;
    bool escaped, too_many;
    if (!qr_json_scan_object(scan))
        return tensor_error(info, "not an object");
    while (qr_json_scan_key(scan, &key)) {
        if (qr_str_equals(key, "dtype")) {
            if (!qr_json_scan_string(scan, &fields->dtype, &escaped))
                return tensor_error(info, "dtype is not a string");
            fields->has_dtype = true;
        } else if (qr_str_equals(key, "shape")) {
            if (!read_shape(scan, entry, &too_many))
                return tensor_error(info,
                                    too_many ? "more than 8 dimensions" : "shape is not a list of integers");
            fields->has_shape = true;
        } else if (qr_str_equals(key, "data_offsets")) {
            if (!read_offsets(scan, fields->offsets))
                return tensor_error(info, "data_offsets is not [begin, end]");
            fields->has_offsets = true;
        } else if (!qr_json_scan_skip(scan)) {
            break;
        }
    }
    if (scan->failed)
        return tensor_error(info, scan->message);
    if (!fields->has_dtype || !fields->has_shape || !fields->has_offsets)
        return tensor_error(info, "needs dtype, shape and data_offsets");
    return QR_OK;
}

/* Checks that the bytes said are inside the file and are what dtype and shape need. */
static qr_status check_tensor(file_info *info, const qr_weights_entry *entry, const tensor_fields *fields)
{
    char shape[128];
    qr_weights_print_shape(entry->shape, entry->n_dims, shape, sizeof(shape));
    int bits = dtype_bits(fields->dtype);
    if (bits == 0)
        return qr_fail(info->err, QR_BAD_FILE, "%s: tensor %s: unknown dtype \"%.*s\"", info->file,
                       info->name.data, (int)QR_MIN(fields->dtype.len, 32), fields->dtype.data);
    int64_t count, total;
    if (!qr_weights_shape_count(entry->shape, entry->n_dims, &count) ||
        __builtin_mul_overflow(count, (int64_t)bits, &total) || total % 8 != 0)
        return qr_fail(info->err, QR_BAD_FILE, "%s: tensor %s: impossible shape %s", info->file,
                       info->name.data, shape);
    int64_t begin = fields->offsets[0], end = fields->offsets[1];
    if (begin < 0 || end < begin || (uint64_t)end > info->bytes)
        return qr_fail(
            info->err, QR_BAD_FILE,
            "%s: tensor %s: data_offsets [%lld, %lld] lie outside the %zu bytes of data (truncated?)",
            info->file, info->name.data, (long long)begin, (long long)end, info->bytes);
    if (end - begin != total / 8)
        return qr_fail(info->err, QR_BAD_FILE, "%s: tensor %s: %lld bytes, but %s %.*s needs %lld",
                       info->file, info->name.data, (long long)(end - begin), shape, (int)fields->dtype.len,
                       fields->dtype.data, (long long)(total / 8));
    return QR_OK;
}

static qr_status read_tensor(file_info *info, qr_json_scan *scan, qr_str raw_name)
{
    qr_buf_clear(&info->name);
    qr_json_scan_unescape(raw_name, &info->name);
    if (info->name.len == 0 || strlen(info->name.data) != info->name.len)
        return qr_fail(info->err, QR_BAD_FILE, "%s: a tensor's name is empty or holds NUL", info->file);
    qr_weights_entry entry = {.file = info->file};
    tensor_fields fields = {0};
    qr_status status = read_fields(info, scan, &entry, &fields);
    if (status == QR_OK)
        status = check_tensor(info, &entry, &fields);
    if (status != QR_OK)
        return status;
    qr_arena *arena = &info->weights->arena;
    entry.name = qr_arena_strndup(arena, info->name.data, info->name.len);
    entry.dtype_name = qr_arena_strndup(arena, fields.dtype.data, fields.dtype.len);
    entry.format = qr_format_by_hf_dtype(fields.dtype.data, fields.dtype.len);
    entry.data = info->data + fields.offsets[0];
    entry.bytes = (size_t)(fields.offsets[1] - fields.offsets[0]);
    return qr_weights_add(info->weights, &entry, info->err);
}

static int compare_data(const void *a, const void *b)
{
    const qr_weights_entry *const *x = a, *const *y = b;
    if ((*x)->data != (*y)->data)
        return (*x)->data < (*y)->data ? -1 : 1;
    return (*x)->bytes < (*y)->bytes ? -1 : (*x)->bytes > (*y)->bytes;
}

/* The tensors of this file, in order of their data, must follow each other to the file's end. */
static qr_status check_coverage(file_info *info, size_t first)
{
    size_t count = info->weights->entries.count - first;
    const qr_weights_entry **sorted = qr_calloc(count + 1, sizeof(*sorted));
    for (size_t i = 0; i < count; i++)
        sorted[i] = &info->weights->entries.data[first + i];
    qsort(sorted, count, sizeof(*sorted), compare_data);
    qr_status status = QR_OK;
    const uint8_t *at = info->data;
    for (size_t i = 0; i < count && status == QR_OK; i++) {
        const qr_weights_entry *entry = sorted[i];
        if (entry->data != at)
            status =
                qr_fail(info->err, QR_BAD_FILE, "%s: tensor %s: begins at byte %lld of the data, %s %lld",
                        info->file, entry->name, (long long)(entry->data - info->data),
                        entry->data < at ? "but the one before ends at" : "leaving a hole after",
                        (long long)(at - info->data));
        at = entry->data + entry->bytes;
    }
    if (status == QR_OK && at != info->data + info->bytes)
        status = qr_fail(info->err, QR_BAD_FILE, "%s: %zu bytes of data, but its tensors end at %lld",
                         info->file, info->bytes, (long long)(at - info->data));
    qr_free(sorted);
    return status;
}

static qr_status parse_header(file_info *info, qr_str header)
{
    qr_json_scan scan;
    qr_json_scan_init(&scan, header);
    qr_str key;
    qr_status status = QR_OK;
    if (qr_json_scan_object(&scan)) {
        while (status == QR_OK && qr_json_scan_key(&scan, &key)) {
            if (qr_str_equals(key, "__metadata__"))
                qr_json_scan_skip(&scan);
            else
                status = read_tensor(info, &scan, key);
        }
    }
    if (!scan.failed && status == QR_OK)
        qr_json_scan_end(&scan);
    if (!scan.failed || status != QR_OK)
        return status;
    qr_json_scan_error(&scan, info->file, info->err);
    qr_error_prefix(info->err, "safetensors header");
    if (info->err != NULL)
        info->err->status = QR_BAD_FILE;
    return QR_BAD_FILE;
}

qr_status qr_safetensors_parse(qr_weights *weights, const char *file, const uint8_t *data, size_t bytes,
                               qr_error *err)
{
    if (bytes < 8)
        return qr_fail(err, QR_BAD_FILE, "%s: %zu bytes are too few for a safetensors file", file, bytes);
    uint64_t header_bytes;
    memcpy(&header_bytes, data, 8);
    if (header_bytes > HEADER_BYTES_MAX || header_bytes > bytes - 8)
        return qr_fail(err, QR_BAD_FILE, "%s: header of %llu bytes in a file of %zu (limit %u)", file,
                       (unsigned long long)header_bytes, bytes, HEADER_BYTES_MAX);
    file_info info = {.weights = weights,
                      .file = file,
                      .data = data + 8 + header_bytes,
                      .bytes = bytes - 8 - (size_t)header_bytes,
                      .err = err};
    size_t first = weights->entries.count;
    qr_status status = parse_header(&info, qr_str_make((const char *)data + 8, (size_t)header_bytes));
    if (status == QR_OK)
        status = check_coverage(&info, first);
    qr_buf_release(&info.name);
    return status;
}

/* ---- Folders and shards ---------------------------------------------------------------------------- */

/* Maps and parses dir/name. */
static qr_status open_shard(qr_weights *weights, const char *dir, const char *name, qr_error *err)
{
    char *path = qr_path_join(dir, name);
    qr_file_map map;
    qr_status status = qr_weights_map(weights, path, &map, err);
    if (status == QR_OK) {
        const char *file = qr_arena_strndup(&weights->arena, path, strlen(path));
        status = qr_safetensors_parse(weights, file, map.data, map.bytes, err);
    }
    qr_free(path);
    return status;
}

typedef struct index_item {
    qr_str tensor, shard; /* raw slices of the index file's text */
} index_item;

typedef struct shard_index {
    const char *path;
    QR_VEC(index_item) items;
} shard_index;

/* Fills items with weight_map's pairs. */
static qr_status parse_index(shard_index *index, qr_str text, qr_error *err)
{
    qr_json_scan scan;
    qr_json_scan_init(&scan, text);
    qr_str key;
    bool found = false, escaped;
    qr_json_scan_object(&scan);
    while (qr_json_scan_key(&scan, &key)) {
        if (!qr_str_equals(key, "weight_map")) {
            qr_json_scan_skip(&scan);
            continue;
        }
        found = true;
        index_item item;
        qr_json_scan_object(&scan);
        while (qr_json_scan_key(&scan, &item.tensor))
            if (qr_json_scan_string(&scan, &item.shard, &escaped))
                QR_VEC_PUSH(&index->items, item);
    }
    if (!scan.failed)
        qr_json_scan_end(&scan);
    if (scan.failed) {
        qr_json_scan_error(&scan, index->path, err);
        if (err != NULL)
            err->status = QR_BAD_FILE;
        return QR_BAD_FILE;
    }
    if (!found || index->items.count == 0)
        return qr_fail(err, QR_BAD_FILE, "%s: no weight_map", index->path);
    return QR_OK;
}

/* A shard is a file beside its index: a path in its name could read anything. */
static bool shard_name_ok(qr_str name)
{
    return name.len > 0 && name.len < 256 && memchr(name.data, '/', name.len) == NULL &&
           memchr(name.data, '\\', name.len) == NULL && memchr(name.data, 0, name.len) == NULL &&
           !qr_str_starts(name, QR_STR("."));
}

static qr_status open_shards(qr_weights *weights, const char *dir, const shard_index *index, qr_error *err)
{
    qr_str_map seen;
    qr_str_map_init(&seen, 64);
    qr_status status = QR_OK;
    for (size_t i = 0; i < index->items.count && status == QR_OK; i++) {
        qr_str shard = index->items.data[i].shard;
        if (!shard_name_ok(shard)) {
            status = qr_fail(err, QR_BAD_FILE, "%s: weight_map: \"%.*s\" is not the name of a file beside it",
                             index->path, (int)QR_MIN(shard.len, 64), shard.data);
        } else if (qr_str_map_add(&seen, shard, 0)) {
            char name[256];
            memcpy(name, shard.data, shard.len);
            name[shard.len] = 0;
            status = open_shard(weights, dir, name, err);
            if (status == QR_NOT_FOUND)
                status = qr_fail(err, QR_NOT_FOUND, "%s: names %s, which is not there", index->path, name);
        }
    }
    qr_str_map_release(&seen);
    return status;
}

/* Each tensor must lie in the shard that the index names. */
static qr_status check_index(const qr_weights *weights, const shard_index *index, qr_error *err)
{
    qr_buf name = {0};
    qr_status status = QR_OK;
    for (size_t i = 0; i < index->items.count && status == QR_OK; i++) {
        const index_item *item = &index->items.data[i];
        qr_buf_clear(&name);
        qr_json_scan_unescape(item->tensor, &name);
        const qr_weights_entry *entry = qr_weights_find(weights, name.data != NULL ? name.data : "");
        if (entry == NULL || !qr_str_equals(item->shard, qr_path_basename(entry->file)))
            status = qr_fail(err, QR_BAD_FILE, "%s: tensor %s: not in %.*s", index->path, name.data,
                             (int)item->shard.len, item->shard.data);
    }
    qr_buf_release(&name);
    return status;
}

static qr_status open_index(qr_weights *weights, const char *dir, const char *path, qr_error *err)
{
    qr_buf text = {0};
    shard_index index = {.path = path};
    qr_status status = qr_file_read(path, HEADER_BYTES_MAX, &text, err);
    if (status == QR_OK)
        status = parse_index(&index, qr_buf_str(&text), err);
    if (status == QR_OK)
        status = open_shards(weights, dir, &index, err);
    if (status == QR_OK)
        status = check_index(weights, &index, err);
    QR_VEC_RELEASE(&index.items);
    qr_buf_release(&text);
    return status;
}

qr_status qr_safetensors_open_dir(qr_weights *weights, const char *dir, qr_error *err)
{
    char *single = qr_path_join(dir, "model.safetensors");
    char *index = qr_path_join(dir, "model.safetensors.index.json");
    qr_status status;
    if (qr_file_exists(single))
        status = open_shard(weights, dir, "model.safetensors", err);
    else if (qr_file_exists(index))
        status = open_index(weights, dir, index, err);
    else
        status = qr_fail(err, QR_NOT_FOUND,
                         "%s: no weights: neither model.safetensors nor model.safetensors.index.json", dir);
    qr_free(single);
    qr_free(index);
    return status;
}
