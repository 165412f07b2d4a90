#include "model/model.h"

#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "model/net.h"
#include "model/rope.h"

/* ---- Binding ---- */

static qr_status check_config(const qr_model_config *config, const qr_arch *arch, qr_error *err)
{
    if (config->quant_method != NULL)
        return qr_fail(err, QR_UNSUPPORTED,
                       "config: quantization_config.quant_method \"%s\" is not served yet",
                       config->quant_method);
    static const char *const activations[] = {"silu", "gelu", "gelu_tanh"};
    bool known = false;
    for (size_t i = 0; i < QR_COUNT_OF(activations); i++)
        known = known || strcmp(config->activation, activations[i]) == 0;
    if (!known)
        return qr_fail(err, QR_UNSUPPORTED, "config: activation \"%s\" is not served", config->activation);
    return arch->check != NULL ? arch->check(config, err) : QR_OK;
}

static bool layer_slides(const qr_model_config *config, int32_t layer)
{
    if (config->sliding_window <= 0)
        return false;
    return config->layer_sliding != NULL ? config->layer_sliding[layer] != 0
                                         : layer >= config->sliding_first_layer;
}

static void make_specs(qr_net *net)
{
    const qr_model_config *config = net->config;
    net->specs = QR_ARENA_ARRAY(&net->arena, qr_kv_spec, (size_t)config->n_layers);
    for (int32_t i = 0; i < config->n_layers; i++) {
        int64_t window =
            layer_slides(config, i) && config->sliding_window < INT32_MAX ? config->sliding_window : 0;
        net->specs[i] = (qr_kv_spec){.kind = QR_KV_PAGED,
                                     .n_kv_heads = net->own.n_kv_heads,
                                     .head_dim = config->head_dim,
                                     .window = (int32_t)window};
    }
}

static qr_status bind(qr_net *net, qr_error *err)
{
    const qr_model_config *config = net->config;
    net->arch = qr_arch_find(config->architecture);
    if (net->arch == NULL)
        return qr_fail(err, QR_UNSUPPORTED, "%s: architecture \"%s\" is not served",
                       qr_weights_path(net->weights), config->architecture);
    qr_status status = check_config(config, net->arch, err);
    if (status == QR_OK)
        status = qr_net_share_config(net, err);
    if (status != QR_OK)
        return status;
    net->model = qr_arena_calloc(&net->arena, 1, net->arch->model_bytes);
    net->layers = qr_arena_calloc(&net->arena, (size_t)config->n_layers, net->arch->layer_bytes);
    make_specs(net);
    status = qr_net_bind_tensors(net, err);
    if (status != QR_OK)
        return status;
    return qr_rope_make(config, net->freq_factors, &net->arena, &net->rope, err);
}

qr_status qr_net_bind(const qr_weights *weights, const qr_model_config *config, int rank, int ranks,
                      qr_net **out, qr_error *err)
{
    QR_ASSERT(rank >= 0 && rank < ranks);
    qr_net *net = qr_calloc(1, sizeof(*net));
    qr_arena_init(&net->arena, (size_t)1 << 16);
    net->weights = weights;
    net->config = config;
    net->rank = rank;
    net->ranks = ranks;
    qr_status status = bind(net, err);
    if (status != QR_OK) {
        qr_net_free(net);
        return status;
    }
    *out = net;
    return QR_OK;
}

void qr_net_free(qr_net *net)
{
    if (net == NULL)
        return;
    if (net->device != NULL) {
        for (size_t i = 0; i < net->tensor_count; i++)
            if (net->tensors[i].matrix != NULL)
                qr_weight_release(net->device, net->tensors[i].matrix);
        for (size_t i = 0; i < net->tensor_count; i++)
            qr_net_uncut(&net->tensors[i]);
        qr_rope_release(net->device, &net->rope);
    }
    qr_arena_release(&net->arena);
    qr_free(net);
}

/* ---- Loading ---- */

static bool is_dense(qr_format format)
{
    return format == QR_FORMAT_f32 || format == QR_FORMAT_f16 || format == QR_FORMAT_bf16;
}

static qr_dtype dtype_of(qr_format format)
{
    return format == QR_FORMAT_f32 ? QR_DTYPE_F32 : format == QR_FORMAT_f16 ? QR_DTYPE_F16 : QR_DTYPE_BF16;
}

static qr_prepare_options prepare_options(const qr_net *net, const net_tensor *tensor,
                                          const qr_net_options *options)
{
    qr_dtype own = is_dense(tensor->weight.format) ? dtype_of(tensor->weight.format) : net->config->dtype;
    return (qr_prepare_options){.compute = options->dtype >= 0 ? (qr_dtype)options->dtype : own,
                                .use_as_embedding = tensor->row->role == QR_ROLE_EMBEDDING,
                                .dummy_seed =
                                    options->dummy_seed != 0 ? options->dummy_seed + (uint64_t)net->rank : 0};
}

static uint64_t tensor_bytes(const net_tensor *tensor)
{
    const qr_weight *w = &tensor->weight;
    return qr_format_row_bytes(w->format, w->cols) * (uint64_t)w->rows;
}

/* Dummy vectors: norms of one, biases of zero, so that activations keep their size. */
static qr_weight dummy_vector(qr_net *net, const net_tensor *tensor)
{
    qr_weight weight = tensor->weight;
    float *ones = QR_ARENA_ARRAY(&net->arena, float, (size_t)weight.cols);
    for (int64_t i = 0; i < weight.cols && strstr(tensor->name, "bias") == NULL; i++)
        ones[i] = 1;
    weight.format = QR_FORMAT_f32;
    weight.part[QR_PART_DATA] = (qr_weight_part){ones, (size_t)weight.cols * sizeof(float)};
    return weight;
}

static qr_status load_tensor(qr_net *net, net_tensor *tensor, const qr_net_options *options, qr_error *err)
{
    if (tensor->vector != NULL) {
        qr_weight weight = options->dummy_seed != 0 ? dummy_vector(net, tensor) : tensor->weight;
        return qr_vector_prepare(net->device, &weight, tensor->vector, err);
    }
    qr_prepare_options prepare = prepare_options(net, tensor, options);
    qr_status status = options->dummy_seed == 0 ? qr_net_cut(tensor, tensor->matrix, err) : QR_OK;
    if (status == QR_OK)
        status = qr_weight_prepare(net->device, tensor->matrix, &prepare, err);
    if (status != QR_OK || tensor->matrix->packed == NULL || tensor->entry == NULL)
        return status;
    qr_net_uncut(tensor);
    const qr_weight_part *read = &tensor->weight.part[QR_PART_DATA];
    qr_weights_forget(net->weights, read->data, read->bytes);
    return QR_OK;
}

qr_status qr_net_load(qr_net *net, qr_device *device, const qr_net_options *options, qr_error *err)
{
    QR_ASSERT(net->device == NULL);
    if (qr_weights_count(net->weights) == 0 && options->dummy_seed == 0)
        return qr_fail(err, QR_NOT_FOUND, "%s: no weights in it", qr_weights_path(net->weights));
    uint64_t total = 0, done = 0;
    for (size_t i = 0; i < net->tensor_count; i++)
        total += tensor_bytes(&net->tensors[i]);
    net->device = device;
    int64_t positions = options->positions > 0 ? options->positions : net->config->context;
    qr_status status = qr_rope_prepare(device, &net->rope, positions, err);
    for (size_t i = 0; i < net->tensor_count && status == QR_OK; i++) {
        status = load_tensor(net, &net->tensors[i], options, err);
        done += tensor_bytes(&net->tensors[i]);
        if (options->progress != NULL)
            options->progress(options->progress_user, "weights", done, total);
    }
    return status;
}

/* ---- Facts ---- */

const qr_model_config *qr_net_config(const qr_net *net) { return net->config; }
const char *qr_net_architecture(const qr_net *net) { return net->arch->name; }
uint64_t qr_net_parameters(const qr_net *net) { return net->parameters; }
int32_t qr_net_vocab(const qr_net *net) { return (int32_t)net->head->rows_all; }
bool qr_net_tied(const qr_net *net) { return net->head == net->embedding; }
size_t qr_net_tensor_count(const qr_net *net) { return net->tensor_count; }

const qr_kv_spec *qr_net_kv_specs(const qr_net *net, int *n_layers)
{
    *n_layers = net->config->n_layers;
    return net->specs;
}

qr_dtype qr_net_kv_dtype(const qr_net *net, const qr_net_options *options)
{
    for (size_t i = 0; i < net->tensor_count; i++) /* a quantised GGUF holds F32 vectors and blocks */
        if (net->tensors[i].matrix != NULL && !is_dense(net->tensors[i].weight.format))
            return QR_DTYPE_F16;
    return options->dtype >= 0 ? (qr_dtype)options->dtype : net->config->dtype;
}

qr_net_tensor qr_net_tensor_at(const qr_net *net, size_t index)
{
    QR_ASSERT(index < net->tensor_count);
    const net_tensor *tensor = &net->tensors[index];
    return (qr_net_tensor){.entry = tensor->entry,
                           .is_matrix = tensor->matrix != NULL,
                           .rows = tensor->rows,
                           .cols = tensor->cols,
                           .prepared = tensor->matrix};
}

void qr_net_plan(const qr_net *net, const qr_device *device, const qr_net_options *options,
                 qr_net_memory *memory)
{
    int64_t positions = options->positions > 0 ? options->positions : net->config->context;
    *memory = (qr_net_memory){.copied_bytes = qr_rope_bytes(device, &net->rope, positions)};
    for (size_t i = 0; i < net->tensor_count; i++) {
        const net_tensor *tensor = &net->tensors[i];
        if (tensor->vector != NULL) {
            memory->copied_bytes += (uint64_t)tensor->weight.cols * sizeof(float);
            memory->read_bytes += (uint64_t)tensor->weight.cols * sizeof(float);
            continue;
        }
        qr_prepare_options prepare = prepare_options(net, tensor, options);
        uint64_t copied = qr_weight_prepared_bytes(device, &tensor->weight, &prepare);
        uint64_t bytes = copied > 0 ? copied : tensor_bytes(tensor);
        if (copied > 0 || tensor->weight.cols < tensor->cols) /* columns of it do not lie side by side */
            memory->copied_bytes += bytes;
        else
            memory->mapped_bytes += bytes;
        /* Of an embedding that is not the head too, a token reads one row. */
        bool one_row = tensor->matrix == net->embedding && net->head != net->embedding;
        memory->read_bytes += one_row ? bytes / (uint64_t)tensor->weight.rows : bytes;
    }
}

/* ---- Running ---- */

qr_tensor qr_net_forward(const qr_net *net, qr_ops *ops)
{
    qr_arch_model m = {.config = &net->own, .rope = &net->rope, .model = net->model, .layers = net->layers};
    return net->arch->forward(&m, ops);
}

static qr_tensor rows_from(qr_tensor hidden, int32_t first, int64_t count)
{
    qr_tensor rows = hidden;
    rows.rows = count;
    if (hidden.data != NULL)
        rows.data = (char *)hidden.data + (size_t)(first * hidden.row_stride) * qr_dtype_bytes(hidden.dtype);
    return rows;
}

const float *qr_net_logits(const qr_net *net, qr_ops *ops, qr_tensor hidden, int32_t first, int32_t count)
{
    QR_ASSERT(first >= 0 && count > 0 && first + count <= hidden.rows);
    return qr_op_logits(ops, rows_from(hidden, first, count), net->head);
}

void qr_net_draw(const qr_net *net, qr_ops *ops, qr_tensor hidden, const qr_draw *draws, int32_t first,
                 int32_t count, bool last)
{
    QR_ASSERT(first >= 0 && count > 0 && first + count <= hidden.rows);
    qr_op_draw(ops, rows_from(hidden, first, last ? hidden.rows - first : count), net->head, draws, first,
               count);
}

static size_t plan_step(const qr_net *net, qr_ops *ops, const qr_batch *batch, int32_t logit_rows)
{
    qr_ops_begin(ops, batch);
    qr_tensor hidden = qr_net_forward(net, ops);
    if (logit_rows > 0)
        qr_net_logits(net, ops, hidden, 0, logit_rows);
    qr_ops_end(ops, NULL);
    return qr_ops_scratch_peak(ops);
}

size_t qr_net_scratch_bytes(const qr_net *net, qr_device *device, const qr_net_step *step)
{
    QR_ASSERT(step->n_tokens > 0 && step->n_seqs > 0 && step->context_max > 0);
    int32_t seqs = QR_MIN(step->n_seqs, step->n_tokens);
    int32_t *context = qr_calloc((size_t)seqs, sizeof(*context));
    for (int32_t i = 0; i < seqs; i++)
        context[i] = step->context_max;
    qr_batch batch = {.n_tokens = step->n_tokens,
                      .n_seqs = seqs,
                      .context_len = context,
                      .block_size = step->block_size,
                      .n_logit_rows = QR_MIN(step->n_logit_rows, step->n_tokens)};
    qr_ops *ops = qr_ops_plan_new(device);
    int32_t slice = QR_MIN(step->max_logit_rows, batch.n_logit_rows);
    size_t bytes = plan_step(net, ops, &batch, slice);
    /* When all rows give logits nothing is gathered; one row fewer takes more. */
    if (batch.n_logit_rows == batch.n_tokens && batch.n_tokens > 1) {
        batch.n_logit_rows--;
        bytes = QR_MAX(bytes, plan_step(net, ops, &batch, QR_MIN(slice, batch.n_logit_rows)));
    }
    qr_ops_close(ops);
    qr_free(context);
    return bytes;
}
