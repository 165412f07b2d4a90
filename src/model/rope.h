/* Rotary frequencies of a config: transformers' formulas (modeling_rope_utils) for default, linear, llama3 and yarn,
 * and GGUF's per-pair divisors. Thread: any. */
#ifndef QR_MODEL_ROPE_H
#define QR_MODEL_ROPE_H

#include "backend/ops.h"
#include "loader/config.h"

/* freq_factors: [rotary_dim / 2] that divide the frequencies, or NULL. Fills everything but `prepared`; the
 * frequencies come from `arena`. Errors: QR_UNSUPPORTED (dynamic), QR_BAD_FILE (numbers that make no sense). */
qr_status qr_rope_make(const qr_model_config *config, const float *freq_factors, qr_arena *arena,
                       qr_rope_table *table, qr_error *err);

/* Even number of dimensions of a head that rotate. */
int32_t qr_rope_dims(const qr_model_config *config);

#endif
