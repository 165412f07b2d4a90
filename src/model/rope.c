#include "model/rope.h"

#include <math.h>

#include "base/mem.h"

static const double two_pi = 6.283185307179586476925;

int32_t qr_rope_dims(const qr_model_config *config)
{
    return (int32_t)((float)config->head_dim * config->rotary_fraction) / 2 * 2;
}

/* Llama 3.1: long waves are stretched by the factor, short ones kept, those between interpolated. */
static double llama3_frequency(const qr_rope_config *rope, double inv_freq)
{
    double old = (double)rope->original_max_position, wavelength = two_pi / inv_freq;
    if (wavelength < old / rope->high_freq_factor)
        return inv_freq;
    if (wavelength > old / rope->low_freq_factor)
        return inv_freq / rope->factor;
    double smooth =
        (old / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * inv_freq / rope->factor + smooth * inv_freq;
}

/* YaRN (arXiv 2309.00071): the dimension that turns `rotations` times within the original context. */
static double yarn_dimension(const qr_rope_config *rope, double rotations, double dims)
{
    return dims * log((double)rope->original_max_position / (rotations * two_pi)) / (2 * log(rope->theta));
}

typedef struct yarn_range {
    double low, high;
} yarn_range;

static yarn_range yarn_find(const qr_rope_config *rope, int32_t dims)
{
    yarn_range range = {yarn_dimension(rope, rope->beta_fast, dims),
                        yarn_dimension(rope, rope->beta_slow, dims)};
    if (rope->truncate) {
        range.low = floor(range.low);
        range.high = ceil(range.high);
    }
    range.low = fmax(range.low, 0);
    range.high = fmin(range.high, dims - 1);
    if (range.low == range.high)
        range.high += 0.001;
    return range;
}

static double yarn_frequency(const qr_rope_config *rope, yarn_range range, int32_t pair, double inv_freq)
{
    double ramp = fmin(fmax((pair - range.low) / (range.high - range.low), 0), 1);
    return inv_freq / rope->factor * ramp + inv_freq * (1 - ramp);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double yarn_attention_factor(const qr_rope_config *rope)
{
    if (rope->attention_factor > 0)
        return rope->attention_factor;
    if (rope->mscale != 0 && rope->mscale_all_dim != 0)
        return yarn_mscale(rope->factor, rope->mscale) / yarn_mscale(rope->factor, rope->mscale_all_dim);
    return yarn_mscale(rope->factor, 1);
}

static qr_status check(const qr_model_config *config, qr_error *err)
{
    const qr_rope_config *rope = &config->rope;
    if (qr_rope_dims(config) < 2)
        return qr_fail(err, QR_BAD_FILE, "config: rope: %d of %d head dimensions rotate; 2 at least",
                       qr_rope_dims(config), config->head_dim);
    if (rope->kind == QR_ROPE_NONE || rope->kind == QR_ROPE_DYNAMIC)
        return qr_fail(err, QR_UNSUPPORTED,
                       "config: rope type \"%s\" is not served yet (default, linear, llama3, yarn are)",
                       rope->kind == QR_ROPE_NONE ? "none" : "dynamic");
    if (!(rope->theta > 1))
        return qr_fail(err, QR_BAD_FILE, "config: rope_theta: must be above 1, got %g", rope->theta);
    if (rope->kind != QR_ROPE_DEFAULT && !(rope->factor >= 1))
        return qr_fail(err, QR_BAD_FILE, "config: rope scaling factor: must be at least 1, got %g",
                       rope->factor);
    bool needs_original = rope->kind == QR_ROPE_LLAMA3 || rope->kind == QR_ROPE_YARN;
    if (needs_original && rope->original_max_position < 1)
        return qr_fail(err, QR_BAD_FILE, "config: rope: original_max_position_embeddings is missing");
    if (rope->kind == QR_ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor))
        return qr_fail(err, QR_BAD_FILE,
                       "config: rope llama3: low_freq_factor %g must be below high_freq_factor %g",
                       rope->low_freq_factor, rope->high_freq_factor);
    if (rope->kind == QR_ROPE_YARN && !(rope->beta_slow > 0 && rope->beta_fast > 0))
        return qr_fail(err, QR_BAD_FILE, "config: rope yarn: beta_fast %g and beta_slow %g must be positive",
                       rope->beta_fast, rope->beta_slow);
    return QR_OK;
}

qr_status qr_rope_make(const qr_model_config *config, const float *freq_factors, qr_arena *arena,
                       qr_rope_table *table, qr_error *err)
{
    qr_status status = check(config, err);
    if (status != QR_OK)
        return status;
    const qr_rope_config *rope = &config->rope;
    int32_t dims = qr_rope_dims(config);
    float *inv_freq = QR_ARENA_ARRAY(arena, float, (size_t)dims / 2);
    yarn_range range = rope->kind == QR_ROPE_YARN ? yarn_find(rope, dims) : (yarn_range){0};
    for (int32_t i = 0; i < dims / 2; i++) {
        double frequency = 1 / pow(rope->theta, (double)(2 * i) / dims);
        switch (rope->kind) {
        case QR_ROPE_LINEAR: frequency /= rope->factor; break;
        case QR_ROPE_LLAMA3: frequency = llama3_frequency(rope, frequency); break;
        case QR_ROPE_YARN: frequency = yarn_frequency(rope, range, i, frequency); break;
        default: break;
        }
        inv_freq[i] = (float)(freq_factors != NULL ? frequency / freq_factors[i] : frequency);
    }
    *table = (qr_rope_table){.inv_freq = inv_freq,
                             .rotary_dim = dims,
                             .scale = rope->kind == QR_ROPE_YARN ? (float)yarn_attention_factor(rope) : 1.0f,
                             .interleaved = config->rope_interleaved};
    return QR_OK;
}
