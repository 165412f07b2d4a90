/* Finding an architecture's tensors in a checkpoint: every name of the table, every shape, and nothing else. */
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "model/net.h"

static const char layer_mark[] = "{layer}";

static bool is_gguf(const qr_net *net) { return net->config->container == QR_CONTAINER_GGUF; }
static bool has_weights(const qr_net *net) { return qr_weights_count(net->weights) > 0; }

static const char *row_name(const qr_net *net, const qr_arch_row *row)
{
    return is_gguf(net) ? row->gguf : row->hf;
}

static bool is_per_layer(const qr_arch_row *row) { return strstr(row->hf, layer_mark) != NULL; }

static int64_t dim_value(const qr_model_config *c, qr_dim dim)
{
    switch (dim) {
    case QR_DIM_ONE: return 1;
    case QR_DIM_VOCAB: return c->vocab;
    case QR_DIM_HIDDEN: return c->hidden;
    case QR_DIM_Q: return (int64_t)c->n_heads * c->head_dim;
    case QR_DIM_KV: return (int64_t)c->n_kv_heads * c->head_dim;
    case QR_DIM_FF: return c->intermediate;
    case QR_DIM_HEAD: return c->head_dim;
    }
    return 0;
}

static bool config_says(const qr_model_config *config, size_t when)
{
    return when == 0 || *(const bool *)((const char *)config + when - 1);
}

/* "model.layers.{layer}.x" -> "model.layers.3.x"; the table's names are short. */
static const char *expand_name(qr_net *net, const char *pattern, int32_t layer)
{
    char name[192];
    const char *mark = strstr(pattern, layer_mark);
    if (mark == NULL)
        return pattern;
    int len = snprintf(name, sizeof(name), "%.*s%d%s", (int)(mark - pattern), pattern, layer,
                       mark + sizeof(layer_mark) - 1);
    QR_ASSERT(len > 0 && (size_t)len < sizeof(name));
    return qr_arena_strndup(&net->arena, name, (size_t)len);
}

static qr_status wrong_shape(const net_tensor *tensor, qr_error *err)
{
    const qr_weights_entry *entry = tensor->entry;
    char shape[QR_WEIGHTS_DIMS_MAX * 24 + 1] = "";
    for (int i = 0; i < entry->n_dims; i++)
        snprintf(shape + strlen(shape), sizeof(shape) - strlen(shape), "%s%lld", i > 0 ? ", " : "",
                 (long long)entry->shape[i]);
    if (tensor->row->role == QR_ROLE_VECTOR)
        return qr_fail(err, QR_BAD_FILE, "%s: %s: shape [%s]; the config needs [%lld]", entry->file,
                       entry->name, shape, (long long)tensor->cols);
    return qr_fail(err, QR_BAD_FILE, "%s: %s: shape [%s]; the config needs [%lld, %lld]", entry->file,
                   entry->name, shape, (long long)tensor->rows, (long long)tensor->cols);
}

static qr_status check_entry(const net_tensor *tensor, qr_error *err)
{
    const qr_weights_entry *entry = tensor->entry;
    bool vector = tensor->row->role == QR_ROLE_VECTOR;
    if (entry->format == QR_FORMAT_NONE)
        return qr_fail(err, QR_UNSUPPORTED, "%s: %s: type %s is not served", entry->file, entry->name,
                       entry->dtype_name);
    bool same =
        vector ? entry->n_dims == 1 && entry->shape[0] == tensor->cols
               : entry->n_dims == 2 && entry->shape[0] == tensor->rows && entry->shape[1] == tensor->cols;
    if (!same)
        return wrong_shape(tensor, err);
    if (vector && qr_format_get(entry->format)->block != 1)
        return qr_fail(err, QR_UNSUPPORTED, "%s: %s: a vector in %s; F32, F16 and BF16 are served",
                       entry->file, entry->name, entry->dtype_name);
    return QR_OK;
}

/* Without weights in the folder (dummy), matrices are as wide as the config's dtype. */
static qr_format dense_format(qr_dtype dtype)
{
    return dtype == QR_DTYPE_F32 ? QR_FORMAT_f32 : dtype == QR_DTYPE_F16 ? QR_FORMAT_f16 : QR_FORMAT_bf16;
}

static qr_status place(qr_net *net, net_tensor *tensor, int32_t layer, qr_error *err)
{
    const qr_arch_row *row = tensor->row;
    char *base = layer < 0 ? net->model : (char *)net->layers + (size_t)layer * net->arch->layer_bytes;
    const qr_weights_entry *entry = tensor->entry;
    tensor->weight = (qr_weight){.format = entry != NULL ? entry->format : dense_format(net->config->dtype),
                                 .rows = tensor->rows,
                                 .cols = tensor->cols,
                                 .name = tensor->name};
    if (entry != NULL)
        tensor->weight.part[QR_PART_DATA] = (qr_weight_part){entry->data, entry->bytes};
    qr_status status = qr_net_share_tensor(net, tensor, err);
    if (status != QR_OK)
        return status;
    net->parameters += (uint64_t)tensor->rows * (uint64_t)tensor->cols;
    if (row->role == QR_ROLE_VECTOR) {
        tensor->vector = (const float **)(void *)(base + row->offset);
        return QR_OK;
    }
    tensor->matrix = (qr_weight *)(void *)(base + row->offset);
    *tensor->matrix = tensor->weight;
    if (row->role == QR_ROLE_EMBEDDING)
        net->embedding = tensor->matrix;
    if (row->role == QR_ROLE_HEAD)
        net->head = tensor->matrix;
    return QR_OK;
}

/* A GGUF file has a separate head when it holds one; a folder when its config does not tie it. */
static bool wants_head(const qr_net *net, const char *name)
{
    if (is_gguf(net) && has_weights(net))
        return qr_weights_find(net->weights, name) != NULL;
    return !net->config->tied_embeddings;
}

static qr_status bind_row(qr_net *net, const qr_arch_row *row, int32_t layer, qr_error *err)
{
    const char *name = expand_name(net, row_name(net, row), layer);
    if (!config_says(net->config, row->when) || (row->role == QR_ROLE_HEAD && !wants_head(net, name)))
        return QR_OK;
    QR_ASSERT(net->tensor_count < net->tensor_max);
    net_tensor *tensor = &net->tensors[net->tensor_count];
    *tensor = (net_tensor){.row = row,
                           .name = name,
                           .entry = qr_weights_find(net->weights, name),
                           .rows = dim_value(net->config, row->rows),
                           .cols = dim_value(net->config, row->cols)};
    if (tensor->entry == NULL && has_weights(net))
        return qr_fail(err, QR_BAD_FILE, "%s: %s: the tensor is missing (%s needs it)",
                       qr_weights_path(net->weights), name, net->arch->name);
    qr_status status = tensor->entry != NULL ? check_entry(tensor, err) : QR_OK;
    if (status != QR_OK)
        return status;
    net->tensor_count++;
    return place(net, tensor, layer, err);
}

/* ---- What is left over ---- */

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* Tensors that checkpoints carry and no one reads: rotary buffers of old transformers, the head that the config ties
 * (transformers drops it too), and GGUF's rope_freqs, which bind_freq_factors takes. */
static bool is_ignored(const qr_net *net, const char *name)
{
    if (ends_with(name, "rotary_emb.inv_freq") || strcmp(name, "rope_freqs.weight") == 0)
        return true;
    return !is_gguf(net) && net->config->tied_embeddings && strcmp(name, "lm_head.weight") == 0;
}

static qr_status refuse_unknown(const qr_net *net, qr_error *err)
{
    qr_str_map known;
    qr_str_map_init(&known, net->tensor_count);
    for (size_t i = 0; i < net->tensor_count; i++)
        qr_str_map_add(&known, qr_str_of(net->tensors[i].name), (uint32_t)i);
    qr_status status = QR_OK;
    for (size_t i = 0; i < qr_weights_count(net->weights) && status == QR_OK; i++) {
        const qr_weights_entry *entry = qr_weights_at(net->weights, i);
        uint32_t index = 0;
        if (!qr_str_map_get(&known, qr_str_of(entry->name), &index) && !is_ignored(net, entry->name))
            status =
                qr_fail(err, QR_BAD_FILE, "%s: %s: unknown tensor; %s with this config has none of this name",
                        entry->file, entry->name, net->arch->name);
    }
    qr_str_map_release(&known);
    return status;
}

/* GGUF's per-pair divisors of the rotary frequencies (Llama 3.1's scaling, computed by the converter). */
static qr_status bind_freq_factors(qr_net *net, qr_error *err)
{
    const qr_weights_entry *entry = is_gguf(net) ? qr_weights_find(net->weights, "rope_freqs.weight") : NULL;
    if (entry == NULL)
        return QR_OK;
    int64_t pairs = (int64_t)((float)net->config->head_dim * net->config->rotary_fraction) / 2;
    if (entry->format != QR_FORMAT_f32 || entry->n_dims != 1 || entry->shape[0] != pairs)
        return qr_fail(err, QR_BAD_FILE, "%s: rope_freqs.weight: %s with %lld items; needs F32 with %lld",
                       entry->file, entry->dtype_name, (long long)entry->shape[0], (long long)pairs);
    float *factors = QR_ARENA_ARRAY(&net->arena, float, (size_t)pairs);
    memcpy(factors, entry->data, (size_t)pairs * sizeof(float));
    for (int64_t i = 0; i < pairs; i++)
        if (!(factors[i] > 0))
            return qr_fail(err, QR_BAD_FILE, "%s: rope_freqs.weight: item %lld is %g, must be positive",
                           entry->file, (long long)i, (double)factors[i]);
    net->freq_factors = factors;
    return QR_OK;
}

qr_status qr_net_bind_tensors(qr_net *net, qr_error *err)
{
    const qr_arch *arch = net->arch;
    net->tensor_max = arch->row_count * (size_t)(net->config->n_layers + 1);
    net->tensors = QR_ARENA_ARRAY(&net->arena, net_tensor, net->tensor_max);
    for (size_t i = 0; i < arch->row_count; i++) {
        const qr_arch_row *row = &arch->rows[i];
        int32_t first = is_per_layer(row) ? 0 : -1, end = is_per_layer(row) ? net->config->n_layers : 0;
        for (int32_t layer = first; layer < end; layer++) {
            qr_status status = bind_row(net, row, layer, err);
            if (status != QR_OK)
                return status;
        }
    }
    QR_ASSERT(net->embedding != NULL);
    if (net->head == NULL)
        net->head = net->embedding;
    qr_status status = refuse_unknown(net, err);
    return status == QR_OK ? bind_freq_factors(net, err) : status;
}
