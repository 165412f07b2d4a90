/* Opening checkpoints: qr_model_open, _inspect, qr_tokenizer_open. */
#include "engine/open.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "loader/gguf.h"

/* ---- Tokenizers ---- */

static int32_t vocab_id(const qr_gguf *gguf, const char *key)
{
    uint64_t id;
    return qr_gguf_u64(gguf, key, &id) && id <= INT32_MAX ? (int32_t)id : -1;
}

static int vocab_flag(const qr_gguf *gguf, const char *key)
{
    bool flag;
    return qr_gguf_bool(gguf, key, &flag) ? flag : -1;
}

static qr_str vocab_str(const qr_gguf *gguf, const char *key)
{
    qr_str text = {"", 0};
    qr_gguf_str(gguf, key, &text);
    return text;
}

static qr_str *vocab_strings(const qr_gguf *gguf, const char *key, int32_t *count, qr_arena *arena)
{
    int64_t items = qr_gguf_array_count(gguf, key);
    if (items <= 0 || items > INT32_MAX)
        return NULL;
    qr_str *strings = qr_arena_alloc(arena, (size_t)items * sizeof(qr_str));
    if (!qr_gguf_str_array(gguf, key, strings, items))
        return NULL;
    *count = (int32_t)items;
    return strings;
}

/* The arrays of a GGUF vocabulary; QR_NOT_FOUND when the file has none. */
static qr_status read_vocab(const qr_gguf *gguf, const char *path, qr_arena *arena, qr_vocab *vocab,
                            qr_error *err)
{
    memset(vocab, 0, sizeof(*vocab));
    vocab->model = vocab_str(gguf, "tokenizer.ggml.model");
    vocab->tokens = vocab_strings(gguf, "tokenizer.ggml.tokens", &vocab->token_count, arena);
    if (vocab->model.len == 0 || vocab->tokens == NULL)
        return qr_fail(err, QR_NOT_FOUND, "%s: no vocabulary (tokenizer.ggml.tokens)", path);
    size_t count = (size_t)vocab->token_count;
    float *scores = qr_arena_alloc(arena, count * sizeof(float));
    int32_t *types = qr_arena_alloc(arena, count * sizeof(int32_t));
    vocab->scores =
        qr_gguf_f32_array(gguf, "tokenizer.ggml.scores", scores, vocab->token_count) ? scores : NULL;
    vocab->types =
        qr_gguf_i32_array(gguf, "tokenizer.ggml.token_type", types, vocab->token_count) ? types : NULL;
    vocab->merges = vocab_strings(gguf, "tokenizer.ggml.merges", &vocab->merge_count, arena);
    vocab->pre = vocab_str(gguf, "tokenizer.ggml.pre");
    vocab->bos = vocab_id(gguf, "tokenizer.ggml.bos_token_id");
    vocab->eos = vocab_id(gguf, "tokenizer.ggml.eos_token_id");
    vocab->eot = vocab_id(gguf, "tokenizer.ggml.eot_token_id");
    vocab->unk = vocab_id(gguf, "tokenizer.ggml.unknown_token_id");
    vocab->pad = vocab_id(gguf, "tokenizer.ggml.padding_token_id");
    vocab->add_bos = vocab_flag(gguf, "tokenizer.ggml.add_bos_token");
    vocab->add_eos = vocab_flag(gguf, "tokenizer.ggml.add_eos_token");
    vocab->add_space_prefix = vocab_flag(gguf, "tokenizer.ggml.add_space_prefix");
    vocab->remove_extra_whitespaces = vocab_flag(gguf, "tokenizer.ggml.remove_extra_whitespaces");
    vocab->chat_template = vocab_str(gguf, "tokenizer.chat_template");
    return QR_OK;
}

static qr_status tokenizer_from_gguf(const qr_gguf *gguf, const char *path, qr_tokenizer **out, qr_error *err)
{
    qr_arena arena;
    qr_arena_init(&arena, 1 << 16);
    qr_vocab vocab;
    qr_status status = read_vocab(gguf, path, &arena, &vocab, err);
    if (status == QR_OK)
        status = qr_text_tokenizer_from_vocab(&vocab, path, out, err);
    qr_arena_release(&arena);
    return status;
}

qr_status qr_tokenizer_open(const char *path, qr_tokenizer **out, qr_error *err)
{
    if (qr_file_is_dir(path))
        return qr_text_tokenizer_from_dir(path, out, err);
    qr_gguf *gguf;
    qr_status status = qr_gguf_open(path, &gguf, err);
    if (status != QR_OK)
        return status;
    status = tokenizer_from_gguf(gguf, path, out, err);
    qr_gguf_close(gguf);
    return status;
}

/* The tokenizer is read on a thread of its own while the weights are prepared. */
typedef struct tokenizer_load {
    const qr_weights *weights;
    qr_tokenizer *tokenizer;
    qr_status status;
    qr_error error;
    pthread_t thread;
    bool started;
} tokenizer_load;

static void *tokenizer_load_run(void *arg)
{
    tokenizer_load *load = arg;
    const char *path = qr_weights_path(load->weights);
    const qr_gguf *gguf = qr_weights_gguf(load->weights);
    load->status = gguf != NULL ? tokenizer_from_gguf(gguf, path, &load->tokenizer, &load->error)
                                : qr_text_tokenizer_from_dir(path, &load->tokenizer, &load->error);
    return NULL;
}

static void tokenizer_load_begin(tokenizer_load *load, const qr_weights *weights)
{
    load->weights = weights;
    load->started = pthread_create(&load->thread, NULL, tokenizer_load_run, load) == 0;
    if (!load->started)
        tokenizer_load_run(load);
}

/* A checkpoint without a tokenizer is not an error: prompts are token ids then. */
static qr_status tokenizer_load_end(tokenizer_load *load, qr_tokenizer **out, qr_error *err)
{
    if (load->started)
        pthread_join(load->thread, NULL);
    load->started = false;
    if (load->status == QR_OK)
        *out = load->tokenizer;
    if (load->status == QR_OK || load->status == QR_NOT_FOUND)
        return QR_OK;
    if (err != NULL)
        *err = load->error;
    return load->status;
}

/* ---- Facts ---- */

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void collect_end_ids(qr_model *model)
{
    int32_t found[QR_EOS_MAX + 8];
    int count = 0;
    for (int32_t i = 0; i < model->config.eos_count; i++)
        found[count++] = model->config.eos[i];
    if (model->tokenizer != NULL)
        count += qr_tokenizer_end_ids(model->tokenizer, found + count, (int)QR_COUNT_OF(found) - count);
    qsort(found, (size_t)count, sizeof(int32_t), compare_ids);
    for (int i = 0; i < count; i++)
        if (model->end_id_count < QR_END_IDS_MAX &&
            (model->end_id_count == 0 || model->end_ids[model->end_id_count - 1] != found[i]))
            model->end_ids[model->end_id_count++] = found[i];
}

/* generation_config.json with eos_token_id as the full list of end ids. */
static void write_generation_config(qr_model *model)
{
    qr_json *json = NULL;
    const char *text = model->config.generation_config_json;
    if (text == NULL || qr_json_parse(qr_str_of(text), &qr_json_limits_file, &json, NULL) != QR_OK ||
        !qr_json_is(json, QR_JSON_OBJECT)) {
        if (json != NULL)
            qr_json_free(json);
        json = qr_json_new_object();
    }
    qr_json *ends = qr_json_new_array();
    for (int32_t i = 0; i < model->end_id_count; i++)
        qr_json_push(ends, qr_json_new_int(model->end_ids[i]));
    qr_json_set(json, "eos_token_id", ends);
    qr_buf buf = {0};
    qr_json_write(json, 0, &buf);
    model->generation_config = qr_buf_detach(&buf, NULL);
    qr_json_free(json);
}

/* Names, shapes and formats of all tensors; not their contents, which would have to be read. */
static void write_fingerprint(qr_model *model)
{
    qr_sha256 sha;
    qr_sha256_init(&sha);
    char line[512];
    for (size_t i = 0; i < qr_weights_count(model->weights); i++) {
        const qr_weights_entry *entry = qr_weights_at(model->weights, i);
        int n = snprintf(line, sizeof(line), "%s %s %lld %lld %zu\n", entry->name, entry->dtype_name,
                         (long long)entry->shape[0], (long long)(entry->n_dims > 1 ? entry->shape[1] : 0),
                         entry->bytes);
        qr_sha256_update(&sha, line, (size_t)QR_MIN(n, (int)sizeof(line) - 1));
    }
    const qr_model_config *c = &model->config;
    int n = snprintf(line, sizeof(line), "%s %s dtype %d rope %d %g %g heads %d %d %d eps %g window %lld",
                     QR_VERSION, __VERSION__, model->net_options.dtype, (int)c->rope.kind, c->rope.theta,
                     c->rope.factor, c->n_heads, c->n_kv_heads, c->head_dim, (double)c->norm_eps,
                     (long long)c->sliding_window);
    qr_sha256_update(&sha, line, (size_t)QR_MIN(n, (int)sizeof(line) - 1));
    uint8_t digest[32];
    qr_sha256_final(&sha, digest);
    char hex[65];
    qr_sha256_hex(digest, hex);
    int ranks = qr_team_ranks(model->team);
    n = snprintf(model->fingerprint, sizeof(model->fingerprint), "quire-%s %s %s %.12s", QR_VERSION,
                 qr_net_architecture(model->nets[0]), qr_device_describe(qr_team_device(model->team, 0)),
                 hex);
    if (ranks > 1 && n > 0 && (size_t)n < sizeof(model->fingerprint))
        snprintf(model->fingerprint + n, sizeof(model->fingerprint) - (size_t)n, " tensor-parallel %d",
                 ranks);
}

/* ---- Models ---- */

void qr_model_options_init(qr_model_options *options)
{
    *options = (qr_model_options){
        .size = sizeof(*options), .dtype = "auto", .device = "auto", .isa = "auto", .load_format = "auto"};
}

static qr_status read_options(const qr_model_options *from, qr_model_options *o, qr_net_options *net,
                              qr_error *err)
{
    qr_model_options_init(o);
    memcpy(o, from, QR_MIN(from->size, sizeof(*o)));
    if (o->path == NULL || o->path[0] == '\0')
        return qr_fail(err, QR_INVALID_ARGUMENT, "model: no path given");
    if (o->tensor_parallel_size < 0 || o->tensor_parallel_size > QR_RANKS_MAX)
        return qr_fail(err, QR_INVALID_ARGUMENT, "model: tensor_parallel_size must be 1 to %d, got %d",
                       QR_RANKS_MAX, o->tensor_parallel_size);
    *net = (qr_net_options){.dtype = -1, .progress = o->progress, .progress_user = o->progress_user};
    if (o->dtype != NULL && strcmp(o->dtype, "auto") != 0) {
        net->dtype = qr_dtype_parse(o->dtype);
        if (net->dtype != QR_DTYPE_F32 && net->dtype != QR_DTYPE_F16 && net->dtype != QR_DTYPE_BF16)
            return qr_fail(err, QR_INVALID_ARGUMENT,
                           "model: dtype must be auto, float32, float16 or bfloat16, got %s", o->dtype);
    }
    if (o->load_format != NULL && strcmp(o->load_format, "dummy") == 0)
        net->dummy_seed = o->dummy_seed != 0 ? o->dummy_seed : 1;
    else if (o->load_format != NULL && strcmp(o->load_format, "auto") != 0)
        return qr_fail(err, QR_INVALID_ARGUMENT, "model: load_format must be auto or dummy, got %s",
                       o->load_format);
    return QR_OK;
}

/* The plan of the engine that is to come: whoever cannot fit is told before the weights are read. */
static qr_status plan_ahead(const qr_model *model, const qr_model_options *o, qr_error *err)
{
    qr_engine_plan plan;
    if (o->engine_options == NULL)
        return QR_OK;
    qr_status status = qr_engine_plan_make(model->team, model->nets, &model->net_options, o->engine_options,
                                           false, &plan, err);
    if (status == QR_OK)
        qr_engine_plan_log(&plan, "memory_plan", model->team);
    return status;
}

static qr_status bind_nets(qr_model *model, int ranks, qr_error *err)
{
    qr_status status = QR_OK;
    for (int i = 0; i < ranks && status == QR_OK; i++)
        status = qr_net_bind(model->weights, &model->config, i, ranks, &model->nets[i], err);
    return status;
}

/* Weights mapped, config read, names and shapes bound, devices opened: all that a plan needs. */
static qr_status open_unloaded(qr_model *model, const qr_model_options *o, tokenizer_load *load,
                               qr_error *err)
{
    int ranks = QR_MAX(o->tensor_parallel_size, 1);
    qr_status status = qr_weights_open(o->path, &model->weights, err);
    if (status == QR_NOT_FOUND && model->net_options.dummy_seed != 0 && qr_file_is_dir(o->path))
        status = qr_weights_open_empty(o->path, &model->weights, err); /* config.json alone will do */
    if (status != QR_OK)
        return status;
    tokenizer_load_begin(load, model->weights);
    if ((status = qr_config_read(model->weights, o->hf_overrides, &model->arena, &model->config, err)) !=
            QR_OK ||
        (status = bind_nets(model, ranks, err)) != QR_OK)
        return status;
    const qr_device_options device = {.device = o->device, .isa = o->isa, .threads = o->threads};
    return qr_team_open(&device, ranks, &model->team, err);
}

/* On the rank's thread. Progress is rank 0's: the others are as far. */
static qr_status load_rank(void *arg, int rank, qr_error *err)
{
    qr_model *model = arg;
    qr_net_options options = model->net_options;
    if (rank > 0)
        options.progress = NULL;
    return qr_net_load(model->nets[rank], qr_team_device(model->team, rank), &options, err);
}

static qr_model *model_new(void)
{
    qr_model *model = qr_calloc(1, sizeof(*model));
    qr_arena_init(&model->arena, 1 << 14);
    return model;
}

qr_status qr_model_open(const qr_model_options *options, qr_model **out, qr_error *err)
{
    qr_model_options o;
    qr_model *model = model_new();
    tokenizer_load load = {.status = QR_NOT_FOUND};
    qr_status status = read_options(options, &o, &model->net_options, err);
    if (status == QR_OK)
        status = open_unloaded(model, &o, &load, err);
    if (status == QR_OK)
        status = plan_ahead(model, &o, err);
    if (status == QR_OK)
        status = qr_team_run(model->team, load_rank, model, err);
    qr_status text_status = tokenizer_load_end(&load, &model->tokenizer, status == QR_OK ? err : NULL);
    if (status == QR_OK)
        status = text_status;
    if (status != QR_OK) {
        qr_model_close(model);
        return status;
    }
    collect_end_ids(model);
    write_generation_config(model);
    write_fingerprint(model);
    char quoted[200];
    qr_log(QR_LOG_INFO, "model_open", "path=%s architecture=%s device=%s ranks=%d",
           qr_log_quote(o.path, quoted, sizeof(quoted)), qr_net_architecture(model->nets[0]),
           qr_device_name(qr_team_device(model->team, 0)), qr_team_ranks(model->team));
    *out = model;
    return QR_OK;
}

void qr_model_close(qr_model *model)
{
    if (model == NULL)
        return;
    if (model->tokenizer != NULL)
        qr_tokenizer_close(model->tokenizer);
    for (int i = 0; i < QR_RANKS_MAX; i++)
        qr_net_free(model->nets[i]);
    qr_team_close(model->team);
    if (model->weights != NULL)
        qr_weights_close(model->weights);
    qr_free(model->generation_config);
    qr_arena_release(&model->arena);
    qr_free(model);
}

const qr_tokenizer *qr_model_tokenizer(const qr_model *model) { return model->tokenizer; }
qr_tokenizer *qr_model_tokenizer_mutable(qr_model *model) { return model->tokenizer; }
int32_t qr_model_vocab_size(const qr_model *model) { return qr_net_vocab(model->nets[0]); }
int64_t qr_model_context_length(const qr_model *model) { return model->config.context; }
const char *qr_model_generation_config(const qr_model *model) { return model->generation_config; }
const char *qr_model_fingerprint(const qr_model *model) { return model->fingerprint; }

/* ---- Inspect ---- */

static void put_str(qr_json *object, const char *key, const char *text)
{
    qr_json_set(object, key, qr_json_new_string(qr_str_of(text)));
}

static void put_int(qr_json *object, const char *key, int64_t value)
{
    qr_json_set(object, key, qr_json_new_int(value));
}

static qr_json *formats_json(const qr_net *net)
{
    qr_json *formats = qr_json_new_object();
    int64_t tensors[QR_FORMAT_COUNT] = {0}, bytes[QR_FORMAT_COUNT] = {0};
    for (size_t i = 0; i < qr_net_tensor_count(net); i++) {
        qr_net_tensor tensor = qr_net_tensor_at(net, i);
        if (tensor.entry == NULL || tensor.entry->format < 0 || tensor.entry->format >= QR_FORMAT_COUNT)
            continue;
        tensors[tensor.entry->format]++;
        bytes[tensor.entry->format] += (int64_t)tensor.entry->bytes;
    }
    for (int f = 0; f < QR_FORMAT_COUNT; f++) {
        if (tensors[f] == 0)
            continue;
        qr_json *row = qr_json_new_object();
        put_int(row, "tensors", tensors[f]);
        put_int(row, "bytes", bytes[f]);
        qr_json_set(formats, qr_format_get((qr_format)f)->name, row);
    }
    return formats;
}

static qr_json *config_json(const qr_model_config *c)
{
    static const char *const ropes[] = {"none", "default", "linear", "llama3", "yarn", "dynamic"};
    qr_json *json = qr_json_new_object();
    put_int(json, "layers", c->n_layers);
    put_int(json, "hidden", c->hidden);
    put_int(json, "intermediate", c->intermediate);
    put_int(json, "heads", c->n_heads);
    put_int(json, "kv_heads", c->n_kv_heads);
    put_int(json, "head_dim", c->head_dim);
    put_int(json, "vocab", c->vocab);
    put_int(json, "context", c->context);
    put_str(json, "rope", ropes[c->rope.kind]);
    qr_json_set(json, "rope_theta", qr_json_new_real(c->rope.theta));
    put_int(json, "sliding_window", c->sliding_window);
    qr_json_set(json, "tied_embeddings", qr_json_new_bool(c->tied_embeddings));
    return json;
}

static qr_json *tokenizer_json(const qr_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return qr_json_new_null();
    qr_json *json = qr_json_new_object();
    put_int(json, "vocab", qr_tokenizer_vocab_size(tokenizer));
    put_int(json, "bos", qr_tokenizer_bos(tokenizer));
    put_int(json, "eos", qr_tokenizer_eos(tokenizer));
    qr_json_set(json, "chat_template", qr_json_new_bool(qr_tokenizer_chat_template(tokenizer) != NULL));
    return json;
}

static char *inspect_json(const qr_model *model, const qr_engine_plan *plan)
{
    qr_json *json = qr_json_new_object();
    put_str(json, "path", qr_weights_path(model->weights));
    put_str(json, "container",
            qr_weights_container(model->weights) == QR_CONTAINER_GGUF ? "gguf" : "safetensors");
    put_str(json, "architecture", qr_net_architecture(model->nets[0]));
    put_int(json, "parameters", (int64_t)qr_net_parameters(model->nets[0]));
    put_int(json, "weights_bytes", (int64_t)qr_weights_bytes(model->weights));
    put_str(json, "device", qr_device_describe(qr_team_device(model->team, 0)));
    put_int(json, "tensor_parallel_size", qr_team_ranks(model->team));
    qr_json_set(json, "formats", formats_json(model->nets[0]));
    qr_json_set(json, "config", config_json(&model->config));
    qr_json_set(json, "tokenizer", tokenizer_json(model->tokenizer));
    qr_json_set(json, "plan", qr_engine_plan_json(plan, model->team));
    qr_buf buf = {0};
    qr_json_write(json, 0, &buf);
    qr_json_free(json);
    return qr_buf_detach(&buf, NULL);
}

qr_status qr_model_inspect(const qr_model_options *options, const qr_engine_options *engine_options,
                           char **json, qr_error *err)
{
    qr_model_options o;
    qr_model *model = model_new();
    tokenizer_load load = {.status = QR_NOT_FOUND};
    qr_engine_plan plan;
    qr_status status = read_options(options, &o, &model->net_options, err);
    if (status == QR_OK)
        status = open_unloaded(model, &o, &load, err);
    qr_status text_status = tokenizer_load_end(&load, &model->tokenizer, status == QR_OK ? err : NULL);
    if (status == QR_OK)
        status = text_status;
    if (status == QR_OK) {
        status = qr_engine_plan_make(model->team, model->nets, &model->net_options, engine_options, false,
                                     &plan, err);
        if (status == QR_OK || status == QR_OUT_OF_MEMORY)
            *json = inspect_json(model, &plan);
    }
    qr_model_close(model);
    return status;
}
