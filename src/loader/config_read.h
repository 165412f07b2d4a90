/* Inside the loader: the two readers behind qr_config_read and the checks that both end with.
 * Thread: one owner. */
#ifndef QR_LOADER_CONFIG_READ_H
#define QR_LOADER_CONFIG_READ_H

#include "base/json.h"
#include "loader/config.h"

/* Parsed files of a Hugging Face folder; `file` names config.json in messages. */
qr_status qr_hf_config_read(const qr_json *json, const char *file, qr_arena *arena, qr_model_config *config,
                            qr_error *err);
/* Only the keys that make sense over a GGUF's metadata; others are refused by name. */
qr_status qr_hf_config_override(const qr_json *json, const char *file, qr_model_config *config,
                                qr_error *err);
qr_status qr_gguf_config_read(const qr_weights *weights, const struct qr_gguf *gguf, const char *file,
                              qr_arena *arena, qr_model_config *config, qr_error *err);

/* What every config must fulfil before it sizes anything. */
qr_status qr_config_check(const qr_model_config *config, const char *file, qr_error *err);
/* Adds an end-of-sequence id once; ids out of the vocabulary are ignored (some files say -1), and so are
 * those beyond QR_EOS_MAX. */
void qr_config_add_eos(qr_model_config *config, int64_t id);

/* Ranges of numbers from files. */
#define QR_CONFIG_LAYERS_MAX  2048
#define QR_CONFIG_HEADS_MAX   4096
#define QR_CONFIG_WIDTH_MAX   (1 << 20) /* hidden, intermediate */
#define QR_CONFIG_VOCAB_MAX   (1 << 24)
#define QR_CONFIG_CONTEXT_MAX ((int64_t)1 << 31)

#endif
