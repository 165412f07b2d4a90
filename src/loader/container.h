/* Inside the loader: how the container parsers fill a qr_weights. Parsers work on bytes in memory, so that
 * fuzz targets run them without files. Thread: one owner until qr_weights_open returns. */
#ifndef QR_LOADER_CONTAINER_H
#define QR_LOADER_CONTAINER_H

#include "base/arena.h"
#include "base/file.h"
#include "base/map.h"
#include "base/vec.h"
#include "loader/gguf.h"
#include "loader/weights.h"

/* A checkpoint may be spread over this many files; far above what exists (DeepSeek: 163). */
#define QR_WEIGHTS_FILES_MAX 10000

struct qr_weights {
    qr_container container;
    char *path;
    qr_arena arena; /* names, shapes */
    QR_VEC(qr_file_map) maps;
    QR_VEC(qr_weights_entry) entries;
    qr_str_map index; /* name -> entry */
    qr_gguf *gguf;    /* of the first file */
};

qr_weights *qr_weights_new(const char *path, qr_container container);

/* Appends an entry (strings must already live in the arena). QR_BAD_FILE when the name is there already. */
qr_status qr_weights_add(qr_weights *weights, const qr_weights_entry *entry, qr_error *err);

/* Number of values; false on overflow or a negative dimension. */
bool qr_weights_shape_count(const int64_t *shape, int n_dims, int64_t *count);
/* "[3, 5]" into out; returns out. */
const char *qr_weights_print_shape(const int64_t *shape, int n_dims, char *out, size_t out_bytes);

/* Adds every tensor of one safetensors file. `file` lives in the arena; data stays mapped. */
qr_status qr_safetensors_parse(qr_weights *weights, const char *file, const uint8_t *data, size_t bytes,
                               qr_error *err);
/* Opens a folder (model.safetensors, or model.safetensors.index.json and its shards). */
qr_status qr_safetensors_open_dir(qr_weights *weights, const char *dir, qr_error *err);

/* Metadata and tensor infos of a GGUF image. The image stays with the caller. */
qr_status qr_gguf_parse(const char *file, const uint8_t *data, size_t bytes, qr_gguf **out, qr_error *err);
/* Adds every tensor of a parsed GGUF. `file` lives in the arena. */
qr_status qr_gguf_add_tensors(qr_weights *weights, const qr_gguf *gguf, const char *file, qr_error *err);
/* Opens a GGUF file and the rest of its split set. */
qr_status qr_gguf_open_set(qr_weights *weights, const char *path, qr_error *err);

/* Maps a file into `weights`, which then owns the mapping. */
qr_status qr_weights_map(qr_weights *weights, const char *path, qr_file_map *map, qr_error *err);

#endif
