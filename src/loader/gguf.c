/* GGUF metadata: header, key-value pairs, tensor infos. Layout (ggml's docs/gguf.md): magic "GGUF", version
 * u32, tensor count u64, pair count u64, pairs, tensor infos, padding to general.alignment, data. A string is
 * u64 length and bytes; an array is u32 element type, u64 count, elements. Nothing is copied: values are
 * read from the image on request, after this file has walked and checked all of it once. */
#include "loader/gguf.h"

#include <inttypes.h>

#include "loader/container.h"
#include "loader/gguf_image.h"

#define KEY_BYTES_MAX  65535 /* the format's limit */
#define NAME_BYTES_MAX 1024  /* of a tensor; ggml itself allows 63 */

static const uint8_t scalar_bytes[] = {
    [QR_GGUF_U8] = 1,  [QR_GGUF_I8] = 1,  [QR_GGUF_U16] = 2,  [QR_GGUF_I16] = 2,    [QR_GGUF_U32] = 4,
    [QR_GGUF_I32] = 4, [QR_GGUF_F32] = 4, [QR_GGUF_BOOL] = 1, [QR_GGUF_STRING] = 0, [QR_GGUF_ARRAY] = 0,
    [QR_GGUF_U64] = 8, [QR_GGUF_I64] = 8, [QR_GGUF_F64] = 8};

static const char *const type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};

/* A cursor over the image; `at` never passes `bytes`. */
typedef struct reader {
    const uint8_t *data;
    size_t bytes, at;
} reader;

static bool take(reader *r, size_t bytes, const uint8_t **out)
{
    if (bytes > r->bytes - r->at)
        return false;
    *out = r->data + r->at;
    r->at += bytes;
    return true;
}

static bool take_u32(reader *r, uint32_t *value)
{
    const uint8_t *p;
    if (!take(r, 4, &p))
        return false;
    memcpy(value, p, 4);
    return true;
}

static bool take_u64(reader *r, uint64_t *value)
{
    const uint8_t *p;
    if (!take(r, 8, &p))
        return false;
    memcpy(value, p, 8);
    return true;
}

static bool take_string(reader *r, qr_str *value)
{
    uint64_t len;
    const uint8_t *p;
    if (!take_u64(r, &len) || len > r->bytes - r->at || !take(r, (size_t)len, &p))
        return false;
    *value = qr_str_make((const char *)p, (size_t)len);
    return true;
}

/* ---- Values ---------------------------------------------------------------------------------------- */

/* Passes over `count` elements of a type that is not an array. */
static bool skip_elements(reader *r, uint32_t type, uint64_t count)
{
    const uint8_t *p;
    if (type == QR_GGUF_STRING) {
        qr_str ignored;
        for (uint64_t i = 0; i < count; i++)
            if (!take_string(r, &ignored))
                return false;
        return true;
    }
    size_t bytes;
    if (__builtin_mul_overflow(count, (uint64_t)scalar_bytes[type], &bytes))
        return false;
    return take(r, bytes, &p);
}

#define NESTING_MAX 4

/* Passes over an array's elements; arrays of arrays keep their remaining counts on a small stack. */
static const char *skip_array(reader *r, uint32_t *type, uint64_t *count)
{
    uint64_t left[NESTING_MAX];
    int depth = 0;
    bool first = true;
    do {
        uint32_t element;
        uint64_t n;
        if (!take_u32(r, &element) || !take_u64(r, &n))
            return "cut off";
        if (element >= QR_GGUF_TYPE_COUNT)
            return "an array of unknown type";
        if (first) {
            *type = element;
            *count = n;
            first = false;
        }
        if (element == QR_GGUF_ARRAY && n > 0) {
            if (depth == NESTING_MAX)
                return "arrays nested too deeply";
            left[depth++] = n;
            continue;
        }
        if (element != QR_GGUF_ARRAY && !skip_elements(r, element, n))
            return "cut off";
        while (depth > 0 && --left[depth - 1] == 0)
            depth--;
    } while (depth > 0);
    return NULL;
}

static const char *read_value(reader *r, qr_gguf_pair *pair)
{
    if (!take_u32(r, &pair->type))
        return "cut off";
    if (pair->type >= QR_GGUF_TYPE_COUNT)
        return "unknown value type";
    pair->value = r->data + r->at;
    pair->count = 1;
    if (pair->type == QR_GGUF_ARRAY) {
        const char *what = skip_array(r, &pair->element, &pair->count);
        /* The elements begin after their type and count. */
        pair->value += 12;
        return what;
    }
    return skip_elements(r, pair->type, 1) ? NULL : "cut off";
}

static qr_status parse_pairs(qr_gguf *gguf, reader *r, uint64_t count, qr_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        qr_gguf_pair pair = {0};
        if (!take_string(r, &pair.key) || pair.key.len == 0 || pair.key.len > KEY_BYTES_MAX)
            return qr_fail(err, QR_BAD_FILE, "%s: key %" PRIu64 " of %" PRIu64 ": cut off or too long",
                           gguf->file, i, count);
        const char *what = read_value(r, &pair);
        if (what != NULL)
            return qr_fail(err, QR_BAD_FILE, "%s: key %.*s (%" PRIu64 " of %" PRIu64 "): %s (type %u)",
                           gguf->file, (int)QR_MIN(pair.key.len, 64), pair.key.data, i, count, what,
                           pair.type);
        if (!qr_str_map_add(&gguf->index, pair.key, (uint32_t)gguf->pairs.count))
            return qr_fail(err, QR_BAD_FILE, "%s: key %.*s: is there twice", gguf->file,
                           (int)QR_MIN(pair.key.len, 64), pair.key.data);
        QR_VEC_PUSH(&gguf->pairs, pair);
    }
    return QR_OK;
}

/* ---- Tensor infos ---------------------------------------------------------------------------------- */

static qr_status parse_tensors(qr_gguf *gguf, reader *r, uint64_t count, qr_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        qr_gguf_tensor tensor = {0};
        uint32_t n_dims = 0;
        if (!take_string(r, &tensor.name) || tensor.name.len == 0 || tensor.name.len > NAME_BYTES_MAX ||
            memchr(tensor.name.data, 0, tensor.name.len) != NULL || !take_u32(r, &n_dims))
            return qr_fail(err, QR_BAD_FILE, "%s: tensor %" PRIu64 " of %" PRIu64 ": cut off, or a bad name",
                           gguf->file, i, count);
        if (n_dims == 0 || n_dims > 4)
            return qr_fail(err, QR_BAD_FILE, "%s: tensor %.*s: %u dimensions", gguf->file,
                           (int)QR_MIN(tensor.name.len, 64), tensor.name.data, n_dims);
        tensor.n_dims = (int)n_dims;
        bool whole = true;
        for (uint32_t d = 0; d < n_dims; d++) /* the file has the innermost first */
            whole = whole && take_u64(r, &tensor.shape[n_dims - 1 - d]);
        if (!whole || !take_u32(r, &tensor.type) || !take_u64(r, &tensor.offset))
            return qr_fail(err, QR_BAD_FILE, "%s: tensor %.*s: its description is cut off", gguf->file,
                           (int)QR_MIN(tensor.name.len, 64), tensor.name.data);
        QR_VEC_PUSH(&gguf->tensors, tensor);
    }
    return QR_OK;
}

static qr_status find_data(qr_gguf *gguf, size_t at, qr_error *err)
{
    uint64_t alignment = 32;
    if (qr_gguf_has(gguf, "general.alignment") && !qr_gguf_u64(gguf, "general.alignment", &alignment))
        return qr_fail(err, QR_BAD_FILE, "%s: general.alignment: not an integer", gguf->file);
    if (alignment == 0 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0)
        return qr_fail(err, QR_BAD_FILE,
                       "%s: general.alignment: %" PRIu64 " is not a power of two up to 1 MiB", gguf->file,
                       alignment);
    gguf->alignment = (size_t)alignment;
    size_t data_at = QR_ROUND_UP(at, gguf->alignment);
    /* A file without tensors may end without padding. */
    gguf->data_at = QR_MIN(data_at, gguf->bytes);
    return QR_OK;
}

static qr_status parse_header(qr_gguf *gguf, reader *r, uint64_t *tensor_count, uint64_t *pair_count,
                              qr_error *err)
{
    uint32_t magic = 0, version = 0;
    if (!take_u32(r, &magic) || magic != 0x46554747u) /* "GGUF" */
        return qr_fail(err, QR_BAD_FILE, "%s: not a GGUF file", gguf->file);
    if (!take_u32(r, &version) || !take_u64(r, tensor_count) || !take_u64(r, pair_count))
        return qr_fail(err, QR_BAD_FILE, "%s: cut off in the header: %zu bytes", gguf->file, gguf->bytes);
    if (version != 2 && version != 3)
        return qr_fail(err, QR_UNSUPPORTED, "%s: GGUF version %u%s; 2 and 3 are read", gguf->file, version,
                       (version & 0xffff) == 0 ? " (a big-endian file)" : "");
    /* The smallest pair takes 13 bytes, the smallest tensor info 33: bounds what the walk may allocate. */
    size_t left = r->bytes - r->at;
    if (*pair_count > left / 13 || *tensor_count > left / 33)
        return qr_fail(err, QR_BAD_FILE,
                       "%s: %" PRIu64 " keys and %" PRIu64 " tensors in %zu bytes (truncated?)", gguf->file,
                       *pair_count, *tensor_count, gguf->bytes);
    return QR_OK;
}

qr_status qr_gguf_parse(const char *file, const uint8_t *data, size_t bytes, qr_gguf **out, qr_error *err)
{
    qr_gguf *gguf = qr_calloc(1, sizeof(*gguf));
    gguf->file = qr_strdup(file);
    gguf->data = data;
    gguf->bytes = bytes;
    qr_str_map_init(&gguf->index, 64);
    reader r = {data, bytes, 0};
    uint64_t tensor_count = 0, pair_count = 0;
    qr_status status = parse_header(gguf, &r, &tensor_count, &pair_count, err);
    if (status == QR_OK)
        status = parse_pairs(gguf, &r, pair_count, err);
    if (status == QR_OK)
        status = parse_tensors(gguf, &r, tensor_count, err);
    if (status == QR_OK)
        status = find_data(gguf, r.at, err);
    if (status != QR_OK) {
        qr_gguf_close(gguf);
        return status;
    }
    *out = gguf;
    return QR_OK;
}

qr_status qr_gguf_open(const char *path, qr_gguf **out, qr_error *err)
{
    qr_file_map map;
    qr_status status = qr_file_map_open(path, &map, err);
    if (status != QR_OK)
        return status;
    qr_gguf *gguf;
    status = qr_gguf_parse(path, map.data, map.bytes, &gguf, err);
    if (status != QR_OK) {
        qr_file_map_close(&map);
        return status;
    }
    gguf->map = map;
    *out = gguf;
    return QR_OK;
}

void qr_gguf_close(qr_gguf *gguf)
{
    if (gguf == NULL)
        return;
    if (gguf->map.data != NULL)
        qr_file_map_close(&gguf->map);
    QR_VEC_RELEASE(&gguf->pairs);
    QR_VEC_RELEASE(&gguf->tensors);
    qr_str_map_release(&gguf->index);
    qr_free(gguf->file);
    qr_free(gguf);
}

/* ---- Reading --------------------------------------------------------------------------------------- */

static const qr_gguf_pair *find_pair(const qr_gguf *gguf, const char *key)
{
    uint32_t index;
    return qr_str_map_get(&gguf->index, qr_str_of(key), &index) ? &gguf->pairs.data[index] : NULL;
}

bool qr_gguf_has(const qr_gguf *gguf, const char *key) { return find_pair(gguf, key) != NULL; }

#define LOAD(type, value)                     \
    do {                                      \
        type loaded_;                         \
        memcpy(&loaded_, p, sizeof(loaded_)); \
        (value) = loaded_;                    \
    } while (0)

/* An integer of any width as sign and magnitude bits; false for other types. */
static bool load_int(const uint8_t *p, uint32_t type, int64_t *value, bool *over_i64)
{
    *over_i64 = false;
    switch (type) {
    case QR_GGUF_U8: *value = p[0]; return true;
    case QR_GGUF_I8: LOAD(int8_t, *value); return true;
    case QR_GGUF_U16: LOAD(uint16_t, *value); return true;
    case QR_GGUF_I16: LOAD(int16_t, *value); return true;
    case QR_GGUF_U32: LOAD(uint32_t, *value); return true;
    case QR_GGUF_I32: LOAD(int32_t, *value); return true;
    case QR_GGUF_I64: LOAD(int64_t, *value); return true;
    case QR_GGUF_U64:
        LOAD(int64_t, *value);
        *over_i64 = *value < 0;
        return true;
    default: return false;
    }
}

bool qr_gguf_u64(const qr_gguf *gguf, const char *key, uint64_t *value)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    int64_t i;
    bool over;
    if (pair == NULL || !load_int(pair->value, pair->type, &i, &over) || (i < 0 && !over))
        return false;
    *value = (uint64_t)i;
    return true;
}

bool qr_gguf_i64(const qr_gguf *gguf, const char *key, int64_t *value)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    int64_t i;
    bool over;
    if (pair == NULL || !load_int(pair->value, pair->type, &i, &over) || over)
        return false;
    *value = i;
    return true;
}

static bool load_number(const uint8_t *p, uint32_t type, double *value)
{
    int64_t i;
    bool over;
    if (type == QR_GGUF_F32)
        LOAD(float, *value);
    else if (type == QR_GGUF_F64)
        LOAD(double, *value);
    else if (load_int(p, type, &i, &over))
        *value = over ? (double)(uint64_t)i : (double)i;
    else
        return false;
    return true;
}

bool qr_gguf_f64(const qr_gguf *gguf, const char *key, double *value)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    return pair != NULL && load_number(pair->value, pair->type, value);
}

bool qr_gguf_bool(const qr_gguf *gguf, const char *key, bool *value)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    if (pair == NULL || pair->type != QR_GGUF_BOOL)
        return false;
    *value = pair->value[0] != 0;
    return true;
}

/* Strings were checked by the walk, so their lengths hold. */
static qr_str load_string(const uint8_t *p)
{
    uint64_t len;
    memcpy(&len, p, 8);
    return qr_str_make((const char *)p + 8, (size_t)len);
}

bool qr_gguf_str(const qr_gguf *gguf, const char *key, qr_str *value)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    if (pair == NULL || pair->type != QR_GGUF_STRING)
        return false;
    *value = load_string(pair->value);
    return true;
}

int64_t qr_gguf_array_count(const qr_gguf *gguf, const char *key)
{
    const qr_gguf_pair *pair = find_pair(gguf, key);
    if (pair == NULL || pair->type != QR_GGUF_ARRAY || pair->count > INT64_MAX)
        return -1;
    return (int64_t)pair->count;
}

/* The array `key` when it has exactly `count` elements. */
static const qr_gguf_pair *find_array(const qr_gguf *gguf, const char *key, int64_t count)
{
    return count >= 0 && qr_gguf_array_count(gguf, key) == count ? find_pair(gguf, key) : NULL;
}

bool qr_gguf_str_array(const qr_gguf *gguf, const char *key, qr_str *out, int64_t count)
{
    const qr_gguf_pair *pair = find_array(gguf, key, count);
    if (pair == NULL || pair->element != QR_GGUF_STRING)
        return false;
    const uint8_t *p = pair->value;
    for (int64_t i = 0; i < count; i++) {
        out[i] = load_string(p);
        p += 8 + out[i].len;
    }
    return true;
}

bool qr_gguf_f32_array(const qr_gguf *gguf, const char *key, float *out, int64_t count)
{
    const qr_gguf_pair *pair = find_array(gguf, key, count);
    if (pair == NULL || (pair->element != QR_GGUF_F32 && pair->element != QR_GGUF_F64))
        return false;
    for (int64_t i = 0; i < count; i++) {
        double value = 0;
        load_number(pair->value + (size_t)i * scalar_bytes[pair->element], pair->element, &value);
        out[i] = (float)value;
    }
    return true;
}

bool qr_gguf_i32_array(const qr_gguf *gguf, const char *key, int32_t *out, int64_t count)
{
    const qr_gguf_pair *pair = find_array(gguf, key, count);
    if (pair == NULL)
        return false;
    for (int64_t i = 0; i < count; i++) {
        int64_t value;
        bool over;
        if (pair->element == QR_GGUF_BOOL)
            value = pair->value[i] != 0;
        else if (!load_int(pair->value + (size_t)i * scalar_bytes[pair->element], pair->element, &value,
                           &over) ||
                 over || value < INT32_MIN || value > INT32_MAX)
            return false;
        out[i] = (int32_t)value;
    }
    return true;
}

size_t qr_gguf_count(const qr_gguf *gguf) { return gguf->pairs.count; }

qr_str qr_gguf_key_at(const qr_gguf *gguf, size_t index)
{
    return index < gguf->pairs.count ? gguf->pairs.data[index].key : (qr_str){NULL, 0};
}

/* At most 60 bytes of a string, control characters and quotes as '?', never inside a UTF-8 character. */
static void print_string(qr_str text, qr_buf *out)
{
    size_t len = QR_MIN(text.len, 60);
    while (len > 0 && len < text.len && ((uint8_t)text.data[len] & 0xc0) == 0x80)
        len--;
    for (size_t i = 0; i < len; i++)
        qr_buf_append_char(out, (uint8_t)text.data[i] < 32 || text.data[i] == 127 ? '?' : text.data[i]);
    if (len < text.len)
        qr_buf_append_cstr(out, "...");
}

void qr_gguf_print_value(const qr_gguf *gguf, size_t index, qr_buf *out)
{
    if (index >= gguf->pairs.count)
        return;
    const qr_gguf_pair *pair = &gguf->pairs.data[index];
    double number;
    int64_t i;
    bool over;
    if (pair->type == QR_GGUF_ARRAY)
        qr_buf_printf(out, "[%" PRIu64 " x %s]", pair->count, type_names[pair->element]);
    else if (pair->type == QR_GGUF_STRING)
        print_string(load_string(pair->value), out);
    else if (pair->type == QR_GGUF_BOOL)
        qr_buf_append_cstr(out, pair->value[0] != 0 ? "true" : "false");
    else if (load_int(pair->value, pair->type, &i, &over))
        qr_buf_printf(out, over ? "%" PRIu64 : "%" PRId64, i);
    else if (load_number(pair->value, pair->type, &number))
        qr_buf_printf(out, "%g", number);
}
