/* Model configuration from GGUF metadata: keys "<architecture>.*" as ggml's docs/gguf.md names them. What
 * the metadata leaves open (biases, QK norm, tied output) shows in which tensors are there. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "loader/config_read.h"
#include "loader/gguf.h"

typedef struct reader {
    const qr_weights *weights;
    const qr_gguf *gguf;
    const char *file;
    qr_model_config *config;
    qr_error *err;
    qr_status status; /* the first error; later reads do nothing */
    char key[160];    /* the last key made */
} reader;

static const char *make_key(reader *r, const char *name)
{
    snprintf(r->key, sizeof(r->key), "%s.%s", r->config->architecture, name);
    return r->key;
}

static void fail(reader *r, qr_status status, const char *what)
{
    if (r->status == QR_OK)
        r->status = qr_fail(r->err, status, "%s: %s: %s", r->file, r->key, what);
}

#define REQUIRED INT64_MIN

/* A number, or a list per layer whose items are all equal (architectures that mix them are not served). */
static bool load_uniform(reader *r, int64_t *value)
{
    if (qr_gguf_i64(r->gguf, r->key, value))
        return true;
    int64_t count = qr_gguf_array_count(r->gguf, r->key);
    if (count < 1 || count > QR_CONFIG_LAYERS_MAX)
        return false;
    int32_t *items = qr_calloc((size_t)count, sizeof(*items));
    bool ok = qr_gguf_i32_array(r->gguf, r->key, items, count);
    for (int64_t i = 1; i < count && ok; i++)
        ok = items[i] == items[0];
    *value = items[0];
    qr_free(items);
    return ok;
}

static int64_t read_int(reader *r, const char *name, int64_t fallback, int64_t low, int64_t high)
{
    int64_t value;
    make_key(r, name);
    if (!qr_gguf_has(r->gguf, r->key)) {
        if (fallback == REQUIRED)
            fail(r, QR_BAD_FILE, "is missing");
        return fallback;
    }
    if (!load_uniform(r, &value)) {
        fail(r, QR_UNSUPPORTED, "must be an integer, or the same for every layer");
        return low;
    }
    if (value < low || value > high) {
        char what[120];
        snprintf(what, sizeof(what), "%" PRId64 " is not in %" PRId64 " .. %" PRId64, value, low, high);
        fail(r, QR_BAD_FILE, what);
        return low;
    }
    return value;
}

static double read_number(reader *r, const char *name, double fallback)
{
    double value = fallback;
    make_key(r, name);
    if (qr_gguf_has(r->gguf, r->key) && (!qr_gguf_f64(r->gguf, r->key, &value) || !isfinite(value)))
        fail(r, QR_BAD_FILE, "must be a number");
    return value;
}

static bool has_tensor(const reader *r, const char *name)
{
    return qr_weights_find(r->weights, name) != NULL;
}

static void read_architecture(reader *r)
{
    qr_str name;
    snprintf(r->key, sizeof(r->key), "general.architecture");
    if (!qr_gguf_str(r->gguf, r->key, &name) || name.len == 0 ||
        name.len >= sizeof(r->config->architecture) || memchr(name.data, 0, name.len) != NULL)
        fail(r, QR_BAD_FILE, "is missing or not a short string");
    else
        snprintf(r->config->architecture, sizeof(r->config->architecture), "%.*s", (int)name.len, name.data);
}

static void read_sizes(reader *r)
{
    qr_model_config *c = r->config;
    c->n_layers = (int32_t)read_int(r, "block_count", REQUIRED, 1, QR_CONFIG_LAYERS_MAX);
    c->hidden = (int32_t)read_int(r, "embedding_length", REQUIRED, 1, QR_CONFIG_WIDTH_MAX);
    c->intermediate = (int32_t)read_int(r, "feed_forward_length", REQUIRED, 1, QR_CONFIG_WIDTH_MAX);
    c->n_heads = (int32_t)read_int(r, "attention.head_count", REQUIRED, 1, QR_CONFIG_HEADS_MAX);
    c->n_kv_heads = (int32_t)read_int(r, "attention.head_count_kv", c->n_heads, 1, QR_CONFIG_HEADS_MAX);
    c->context = read_int(r, "context_length", REQUIRED, 1, QR_CONFIG_CONTEXT_MAX);
    c->norm_eps = (float)read_number(r, "attention.layer_norm_rms_epsilon", 1e-5);
    if (r->status != QR_OK)
        return;
    c->head_dim = (int32_t)read_int(r, "attention.key_length", c->hidden / c->n_heads, 2, 4096);
    int64_t value_length = read_int(r, "attention.value_length", c->head_dim, 1, 4096);
    if (value_length != c->head_dim)
        fail(r, QR_UNSUPPORTED, "differs from attention.key_length");
    int64_t rotary = read_int(r, "rope.dimension_count", c->head_dim, 2, c->head_dim);
    c->rotary_fraction = (float)rotary / (float)c->head_dim;
    c->sliding_window = read_int(r, "attention.sliding_window", 0, 0, QR_CONFIG_CONTEXT_MAX);
}

static void read_vocab(reader *r)
{
    const qr_weights_entry *embedding = qr_weights_find(r->weights, "token_embd.weight");
    snprintf(r->key, sizeof(r->key), "token_embd.weight");
    if (embedding == NULL || embedding->n_dims != 2 || embedding->shape[0] < 1 ||
        embedding->shape[0] > QR_CONFIG_VOCAB_MAX)
        fail(r, QR_BAD_FILE, "the tensor is missing, or not [vocabulary, hidden]");
    else
        r->config->vocab = (int32_t)embedding->shape[0];
}

static void read_yarn(reader *r)
{
    qr_rope_config *c = &r->config->rope;
    c->beta_fast = read_number(r, "rope.scaling.yarn_beta_fast", 32);
    c->beta_slow = read_number(r, "rope.scaling.yarn_beta_slow", 1);
    /* ggml multiplies this factor with the computed one; ours replaces it. */
    double attn_factor = read_number(r, "rope.scaling.attn_factor", 1);
    if (attn_factor != 1 && c->factor > 1)
        c->attention_factor = attn_factor * (1 + 0.1 * log(c->factor));
}

static void read_rope(reader *r)
{
    qr_rope_config *c = &r->config->rope;
    c->theta = read_number(r, "rope.freq_base", 10000);
    c->factor = read_number(r, "rope.scale_linear", 0); /* files of 2023 */
    if (c->factor > 1)
        c->kind = QR_ROPE_LINEAR;
    qr_str type;
    if (!qr_gguf_str(r->gguf, make_key(r, "rope.scaling.type"), &type))
        return;
    if (qr_str_equals(type, "none"))
        c->kind = QR_ROPE_DEFAULT;
    else if (qr_str_equals(type, "linear"))
        c->kind = QR_ROPE_LINEAR;
    else if (qr_str_equals(type, "yarn"))
        c->kind = QR_ROPE_YARN;
    else
        fail(r, QR_UNSUPPORTED, "this rope scaling is not supported");
    c->factor = read_number(r, "rope.scaling.factor", 1);
    c->original_max_position =
        read_int(r, "rope.scaling.original_context_length", r->config->context, 0, QR_CONFIG_CONTEXT_MAX);
    if (c->original_max_position == 0)
        c->original_max_position = r->config->context;
    if (c->kind == QR_ROPE_YARN)
        read_yarn(r);
}

/* ---- Token ids ------------------------------------------------------------------------------------- */

static int64_t read_id(reader *r, const char *key)
{
    int64_t id;
    return qr_gguf_i64(r->gguf, key, &id) ? id : -1;
}

/* Chat models end a turn with other tokens than the one the file names: the known spellings, where the
 * vocabulary marks them as control tokens (generation_config.json lists them for the same checkpoints). */
static void find_turn_ends(reader *r)
{
    static const char *const spellings[] = {"<|eot_id|>",    "<|im_end|>",      "<|eom_id|>",   "<|end|>",
                                            "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"};
    enum { CONTROL = 3 };
    int64_t count = qr_gguf_array_count(r->gguf, "tokenizer.ggml.tokens");
    if (count < 1 || count > QR_CONFIG_VOCAB_MAX)
        return;
    qr_str *tokens = qr_calloc((size_t)count, sizeof(*tokens));
    int32_t *types = qr_calloc((size_t)count, sizeof(*types));
    bool ok = qr_gguf_str_array(r->gguf, "tokenizer.ggml.tokens", tokens, count) &&
              qr_gguf_i32_array(r->gguf, "tokenizer.ggml.token_type", types, count);
    for (int64_t i = 0; ok && i < count; i++)
        for (size_t k = 0; types[i] == CONTROL && k < QR_COUNT_OF(spellings); k++)
            if (qr_str_equals(tokens[i], spellings[k]))
                qr_config_add_eos(r->config, i);
    qr_free(tokens);
    qr_free(types);
}

static void read_ids(reader *r)
{
    int64_t bos = read_id(r, "tokenizer.ggml.bos_token_id");
    r->config->bos = bos >= 0 && bos < r->config->vocab ? (int32_t)bos : -1;
    qr_config_add_eos(r->config, read_id(r, "tokenizer.ggml.eos_token_id"));
    qr_config_add_eos(r->config, read_id(r, "tokenizer.ggml.eot_token_id"));
    qr_config_add_eos(r->config, read_id(r, "tokenizer.ggml.eom_token_id"));
    find_turn_ends(r);
}

/* ---- What the tensors tell ------------------------------------------------------------------------- */

static void read_from_tensors(reader *r)
{
    qr_model_config *c = r->config;
    c->attention_bias = has_tensor(r, "blk.0.attn_q.bias");
    c->attention_output_bias = has_tensor(r, "blk.0.attn_output.bias");
    c->mlp_bias = has_tensor(r, "blk.0.ffn_gate.bias");
    c->qk_norm = has_tensor(r, "blk.0.attn_q_norm.weight");
    c->tied_embeddings = !has_tensor(r, "output.weight");
}

/* general.file_type is llama.cpp's count of what most tensors are. */
static void read_file_type(reader *r)
{
    enum { ALL_F32 = 0, MOSTLY_BF16 = 32 };
    uint64_t type;
    if (!qr_gguf_u64(r->gguf, "general.file_type", &type))
        return; /* the dtype is taken from the tensors */
    r->config->dtype_said = true;
    r->config->dtype = type == ALL_F32 ? QR_DTYPE_F32 : type == MOSTLY_BF16 ? QR_DTYPE_BF16 : QR_DTYPE_F16;
}

/* Sampling hints as generation_config.json would say them. */
static void read_sampling(reader *r, qr_arena *arena)
{
    static const char *const names[][2] = {{"general.sampling.temp", "temperature"},
                                           {"general.sampling.top_k", "top_k"},
                                           {"general.sampling.top_p", "top_p"},
                                           {"general.sampling.min_p", "min_p"},
                                           {"general.sampling.penalty_repeat", "repetition_penalty"}};
    qr_buf text = {0};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        double value;
        if (!qr_gguf_f64(r->gguf, names[i][0], &value))
            continue;
        qr_buf_printf(&text, "%s\"%s\":", text.len > 0 ? "," : "{", names[i][1]);
        qr_json_append_number(&text, (double)(float)value);
    }
    if (text.len > 0) {
        qr_buf_append_char(&text, '}');
        r->config->generation_config_json = qr_arena_strndup(arena, text.data, text.len);
    }
    qr_buf_release(&text);
}

qr_status qr_gguf_config_read(const qr_weights *weights, const qr_gguf *gguf, const char *file,
                              qr_arena *arena, qr_model_config *config, qr_error *err)
{
    reader r = {.weights = weights, .gguf = gguf, .file = file, .config = config, .err = err};
    read_architecture(&r);
    if (r.status == QR_OK)
        read_sizes(&r);
    if (r.status == QR_OK) {
        read_vocab(&r);
        read_rope(&r);
        read_ids(&r);
        read_from_tensors(&r);
        read_file_type(&r);
        read_sampling(&r, arena);
    }
    snprintf(config->activation, sizeof(config->activation), "silu");
    /* Converters for these architectures permute Q and K so that pairs are neighbours. */
    config->rope_interleaved =
        strcmp(config->architecture, "llama") == 0 || strcmp(config->architecture, "mistral") == 0;
    return r.status;
}
