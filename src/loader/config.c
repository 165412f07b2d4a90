#include "loader/config.h"

#include <math.h>

#include "base/file.h"
#include "base/mem.h"
#include "loader/config_read.h"
#include "loader/gguf.h"

void qr_config_add_eos(qr_model_config *config, int64_t id)
{
    if (id < 0 || id >= config->vocab || config->eos_count == QR_EOS_MAX)
        return;
    for (int32_t i = 0; i < config->eos_count; i++)
        if (config->eos[i] == id)
            return;
    config->eos[config->eos_count++] = (int32_t)id;
}

static qr_status bad(const char *file, const char *key, double value, const char *why, qr_error *err)
{
    return qr_fail(err, QR_BAD_FILE, "%s: %s: %g: %s", file, key, value, why);
}

static qr_status check_rope(const qr_model_config *config, const char *file, qr_error *err)
{
    const qr_rope_config *rope = &config->rope;
    if (!(rope->theta > 1) || !isfinite(rope->theta)) /* the frequencies are powers of 1 / theta */
        return bad(file, "rope_theta", rope->theta, "must be a number above 1", err);
    if (rope->kind > QR_ROPE_DEFAULT && (!(rope->factor >= 1) || rope->factor > 1e6))
        return bad(file, "rope factor", rope->factor, "must lie in 1 .. 1e6", err);
    if (rope->kind == QR_ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor &&
          isfinite(rope->high_freq_factor)))
        return bad(file, "rope high_freq_factor", rope->high_freq_factor, "must be above low_freq_factor > 0",
                   err);
    if (rope->kind == QR_ROPE_YARN &&
        !(rope->beta_slow > 0 && rope->beta_fast >= rope->beta_slow && isfinite(rope->beta_fast) &&
          rope->attention_factor >= 0 && isfinite(rope->attention_factor)))
        return bad(file, "rope beta_fast", rope->beta_fast, "must be at least beta_slow > 0", err);
    if (rope->original_max_position < 0 || rope->original_max_position > QR_CONFIG_CONTEXT_MAX)
        return bad(file, "original_max_position_embeddings", (double)rope->original_max_position,
                   "out of range", err);
    int rotary = (int)(config->head_dim * config->rotary_fraction);
    if (!(config->rotary_fraction > 0 && config->rotary_fraction <= 1) || rotary < 2 || rotary % 2 != 0)
        return bad(file, "rotary dimensions", rotary, "must be even and at most head_dim", err);
    return QR_OK;
}

qr_status qr_config_check(const qr_model_config *config, const char *file, qr_error *err)
{
    if (config->n_heads % config->n_kv_heads != 0)
        return qr_fail(err, QR_BAD_FILE, "%s: %d attention heads are not a multiple of %d key-value heads",
                       file, config->n_heads, config->n_kv_heads);
    if (config->head_dim < 2 || config->head_dim > 4096 || config->head_dim % 2 != 0)
        return bad(file, "head_dim", config->head_dim, "must be even, 2 .. 4096", err);
    if (!(config->norm_eps > 0 && config->norm_eps < 1))
        return bad(file, "rms_norm_eps", (double)config->norm_eps, "must lie between 0 and 1", err);
    if (config->sliding_window < 0 || config->sliding_window > QR_CONFIG_CONTEXT_MAX)
        return bad(file, "sliding_window", (double)config->sliding_window, "out of range", err);
    return check_rope(config, file, err);
}

/* ---- Hugging Face folders -------------------------------------------------------------------------- */

/* Puts the members of `overrides` over those of the config, as transformers' config.update() does. */
static qr_status merge_overrides(qr_json *json, const char *overrides, qr_error *err)
{
    if (overrides == NULL || overrides[0] == 0)
        return QR_OK;
    qr_json *over;
    qr_status status = qr_json_parse(qr_str_of(overrides), &qr_json_limits_file, &over, err);
    if (status != QR_OK) {
        qr_error_prefix(err, "hf_overrides");
        return status;
    }
    if (!qr_json_is(over, QR_JSON_OBJECT)) {
        status = qr_fail(err, QR_INVALID_ARGUMENT, "hf_overrides: must be a JSON object");
    } else {
        for (void *it = qr_json_iter(over); it != NULL; it = qr_json_iter_next(over, it))
            qr_json_set(json, qr_json_iter_key(it).data, qr_json_copy(qr_json_iter_value(it)));
    }
    qr_json_free(over);
    return status;
}

static qr_status read_object(const char *path, qr_json **out, qr_error *err)
{
    qr_json *json;
    qr_status status = qr_json_read_file(path, &json, err);
    if (status != QR_OK) {
        if (status == QR_INVALID_ARGUMENT && err != NULL) /* broken JSON in a checkpoint is a broken file */
            err->status = QR_BAD_FILE;
        return status == QR_INVALID_ARGUMENT ? QR_BAD_FILE : status;
    }
    if (!qr_json_is(json, QR_JSON_OBJECT)) {
        status = qr_fail(err, QR_BAD_FILE, "%s: not a JSON object but %s", path,
                         qr_json_type_name(qr_json_typeof(json)));
        qr_json_free(json);
        return status;
    }
    *out = json;
    return QR_OK;
}

/* eos_token_id (a number or a list) and the text itself. */
static qr_status read_generation_config(const char *path, qr_arena *arena, qr_model_config *config,
                                        qr_error *err)
{
    if (!qr_file_exists(path))
        return QR_OK;
    qr_json *json;
    qr_status status = read_object(path, &json, err);
    if (status != QR_OK)
        return status;
    const qr_json *eos = qr_json_get(json, "eos_token_id");
    qr_config_add_eos(config, qr_json_int(eos, -1));
    for (size_t i = 0; i < qr_json_count(eos); i++)
        qr_config_add_eos(config, qr_json_int(qr_json_at(eos, i), -1));
    qr_buf text = {0};
    qr_json_write(json, 0, &text);
    config->generation_config_json = qr_arena_strndup(arena, text.data, text.len);
    qr_buf_release(&text);
    qr_json_free(json);
    return QR_OK;
}

/* Without torch_dtype, the checkpoint is what most of its bytes are. */
static qr_dtype guess_dtype(const qr_weights *weights)
{
    uint64_t bytes[3] = {0}; /* F32, BF16, others */
    for (size_t i = 0; i < qr_weights_count(weights); i++) {
        const qr_weights_entry *entry = qr_weights_at(weights, i);
        int kind = entry->format == QR_FORMAT_f32 ? 0 : entry->format == QR_FORMAT_bf16 ? 1 : 2;
        bytes[kind] += entry->bytes;
    }
    if (bytes[0] > bytes[1] && bytes[0] > bytes[2])
        return QR_DTYPE_F32;
    return bytes[1] > bytes[2] ? QR_DTYPE_BF16 : QR_DTYPE_F16;
}

static qr_status read_folder(const char *dir, const char *overrides, qr_arena *arena, qr_model_config *config,
                             qr_error *err)
{
    char *path = qr_path_join(dir, "config.json");
    char *generation = qr_path_join(dir, "generation_config.json");
    qr_json *json = NULL;
    qr_status status = read_object(path, &json, err);
    if (status == QR_OK)
        status = merge_overrides(json, overrides, err);
    if (status == QR_OK)
        status = qr_hf_config_read(json, path, arena, config, err);
    if (status == QR_OK)
        status = read_generation_config(generation, arena, config, err);
    if (status == QR_OK)
        status = qr_config_check(config, path, err);
    qr_json_free(json);
    qr_free(path);
    qr_free(generation);
    return status;
}

/* ---- GGUF ------------------------------------------------------------------------------------------ */

static qr_status read_gguf(const qr_weights *weights, const char *overrides, qr_arena *arena,
                           qr_model_config *config, qr_error *err)
{
    const char *file = qr_weights_path(weights);
    qr_status status = qr_gguf_config_read(weights, qr_weights_gguf(weights), file, arena, config, err);
    qr_json *json = qr_json_new_object();
    if (status == QR_OK)
        status = merge_overrides(json, overrides, err);
    if (status == QR_OK)
        status = qr_hf_config_override(json, file, config, err);
    if (status == QR_OK)
        status = qr_config_check(config, file, err);
    qr_json_free(json);
    return status;
}

/* The folder of a single .safetensors file; caller frees. */
static char *folder_of(const char *path)
{
    if (qr_file_is_dir(path))
        return qr_strdup(path);
    const char *base = qr_path_basename(path);
    return base == path ? qr_strdup(".") : qr_strndup(path, (size_t)(base - path));
}

qr_status qr_config_read(const qr_weights *weights, const char *overrides, qr_arena *arena,
                         qr_model_config *config, qr_error *err)
{
    qr_model_config read = {.container = qr_weights_container(weights),
                            .rope = {.kind = QR_ROPE_DEFAULT, .theta = 10000, .truncate = true},
                            .rotary_fraction = 1,
                            .norm_eps = 1e-6f,
                            .bos = -1,
                            .generation_config_json = "{}"};
    qr_status status;
    if (read.container == QR_CONTAINER_GGUF) {
        status = read_gguf(weights, overrides, arena, &read, err);
    } else {
        char *dir = folder_of(qr_weights_path(weights));
        status = read_folder(dir, overrides, arena, &read, err);
        qr_free(dir);
    }
    if (status != QR_OK)
        return status;
    if (!read.dtype_said && qr_weights_count(weights) > 0)
        read.dtype = guess_dtype(weights);
    *config = read;
    return QR_OK;
}
