/* Builders of small safetensors and GGUF images, and a folder that removes itself: for tests of the loader. */
#ifndef QR_TESTS_SUPPORT_LOADER_IMAGES_H
#define QR_TESTS_SUPPORT_LOADER_IMAGES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/str.h"

/* ---- A temporary folder ---------------------------------------------------------------------------- */

typedef struct temp_dir {
    char path[64];
    char last[256]; /* what temp_dir_at returned last */
} temp_dir;

static inline void temp_dir_init(temp_dir *dir)
{
    snprintf(dir->path, sizeof(dir->path), "/tmp/quire-test-XXXXXX");
    if (mkdtemp(dir->path) == NULL)
        abort();
}

static inline const char *temp_dir_at(temp_dir *dir, const char *name)
{
    snprintf(dir->last, sizeof(dir->last), "%s/%s", dir->path, name);
    return dir->last;
}

static inline const char *temp_dir_write(temp_dir *dir, const char *name, const void *data, size_t bytes)
{
    if (qr_file_write(temp_dir_at(dir, name), data, bytes, NULL) != QR_OK)
        abort();
    return dir->last;
}

static inline const char *temp_dir_write_text(temp_dir *dir, const char *name, const char *text)
{
    return temp_dir_write(dir, name, text, strlen(text));
}

static inline void temp_dir_release(temp_dir *dir)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", dir->path);
    if (system(command) != 0)
        abort();
}

/* ---- Little-endian pieces -------------------------------------------------------------------------- */

static inline void put_u32(qr_buf *out, uint32_t value) { qr_buf_append(out, &value, 4); }
static inline void put_u64(qr_buf *out, uint64_t value) { qr_buf_append(out, &value, 8); }
static inline void put_f32(qr_buf *out, float value) { qr_buf_append(out, &value, 4); }
static inline void put_zeros(qr_buf *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        qr_buf_append_char(out, 0);
}

/* ---- safetensors ----------------------------------------------------------------------------------- */

/* header length, header, `data_bytes` bytes counting up from 0 */
static inline void put_safetensors(qr_buf *out, const char *header, size_t data_bytes)
{
    put_u64(out, strlen(header));
    qr_buf_append_cstr(out, header);
    for (size_t i = 0; i < data_bytes; i++)
        qr_buf_append_char(out, (char)i);
}

/* ---- GGUF ------------------------------------------------------------------------------------------ */

static inline void put_gguf_head(qr_buf *out, uint32_t version, uint64_t tensors, uint64_t pairs)
{
    qr_buf_append_cstr(out, "GGUF");
    put_u32(out, version);
    put_u64(out, tensors);
    put_u64(out, pairs);
}
static inline void put_gguf_string(qr_buf *out, const char *text)
{
    put_u64(out, strlen(text));
    qr_buf_append_cstr(out, text);
}
static inline void put_gguf_key(qr_buf *out, const char *key, uint32_t type)
{
    put_gguf_string(out, key);
    put_u32(out, type);
}
static inline void put_gguf_u32(qr_buf *out, const char *key, uint32_t value)
{
    put_gguf_key(out, key, 4);
    put_u32(out, value);
}
static inline void put_gguf_f32(qr_buf *out, const char *key, float value)
{
    put_gguf_key(out, key, 6);
    put_f32(out, value);
}
static inline void put_gguf_text(qr_buf *out, const char *key, const char *value)
{
    put_gguf_key(out, key, 8);
    put_gguf_string(out, value);
}
static inline void put_gguf_array(qr_buf *out, const char *key, uint32_t element, uint64_t count)
{
    put_gguf_key(out, key, 9);
    put_u32(out, element);
    put_u64(out, count);
}
/* dims innermost first, as in the file; n_dims 1 or 2 */
static inline void put_gguf_tensor(qr_buf *out, const char *name, uint32_t n_dims, uint64_t d0, uint64_t d1,
                                   uint32_t type, uint64_t offset)
{
    put_gguf_string(out, name);
    put_u32(out, n_dims);
    put_u64(out, d0);
    if (n_dims > 1)
        put_u64(out, d1);
    put_u32(out, type);
    put_u64(out, offset);
}
/* padding to 32, then `data_bytes` bytes counting up from 0 */
static inline void put_gguf_data(qr_buf *out, size_t data_bytes)
{
    put_zeros(out, (32 - out->len % 32) % 32);
    for (size_t i = 0; i < data_bytes; i++)
        qr_buf_append_char(out, (char)i);
}

/* tests/../../shared, or NULL: the test then skips. */
static inline const char *shared_path(char *out, size_t bytes, const char *name)
{
    const char *root = qr_env("QR_SHARED_DIR");
    if (root == NULL)
        return NULL;
    snprintf(out, bytes, "%s/%s", root, name);
    return access(out, R_OK) == 0 ? out : NULL;
}

#endif
