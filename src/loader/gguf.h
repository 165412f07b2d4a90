/* GGUF (the file format of ggml, spec docs/gguf.md of its repository), versions 2 and 3, little-endian.
 * Metadata only; tensors come through weights.h. Strings and arrays are views into the mapping.
 * Thread: immutable after open. */
#ifndef QR_LOADER_GGUF_H
#define QR_LOADER_GGUF_H

#include "base/status.h"
#include "base/str.h"

typedef struct qr_gguf qr_gguf;

/* Scalars: false when the key is absent; a wrong type is also false (use qr_gguf_has to tell). */
bool qr_gguf_has(const qr_gguf *gguf, const char *key);
bool qr_gguf_u64(const qr_gguf *gguf, const char *key, uint64_t *value); /* any non-negative integer type */
bool qr_gguf_i64(const qr_gguf *gguf, const char *key, int64_t *value);
bool qr_gguf_f64(const qr_gguf *gguf, const char *key, double *value); /* any number type */
bool qr_gguf_bool(const qr_gguf *gguf, const char *key, bool *value);
bool qr_gguf_str(const qr_gguf *gguf, const char *key, qr_str *value);
/* Arrays: element count, or -1 when absent or of another element type. */
int64_t qr_gguf_array_count(const qr_gguf *gguf, const char *key);
/* Fills `out` with count views; the caller allocates count items (bounded by the file's size). */
bool qr_gguf_str_array(const qr_gguf *gguf, const char *key, qr_str *out, int64_t count);
bool qr_gguf_f32_array(const qr_gguf *gguf, const char *key, float *out, int64_t count);
bool qr_gguf_i32_array(const qr_gguf *gguf, const char *key, int32_t *out, int64_t count);
/* Iteration, for inspect: key and a short printable value (arrays as "[n x type]"). */
size_t qr_gguf_count(const qr_gguf *gguf);
qr_str qr_gguf_key_at(const qr_gguf *gguf, size_t index);
void qr_gguf_print_value(const qr_gguf *gguf, size_t index, qr_buf *out);

/* Metadata without tensors' data checks: for tokenizer-only files (vocab ggufs have no tensors). */
qr_status qr_gguf_open(const char *path, qr_gguf **out, qr_error *err);
void qr_gguf_close(qr_gguf *gguf);

#endif
