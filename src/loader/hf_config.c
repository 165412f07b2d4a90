/* config.json of transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters, dtype). */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "loader/config_read.h"

/* What a family's configuration class in transformers assumes when a key is absent, and what its model
 * does without a key that says so. Unknown families get the first row's defaults; the model layer decides
 * whether it can run them. */
typedef struct family {
    const char *model_type;
    const char *architecture;
    int64_t context;
    int64_t sliding_window;   /* when the key is absent */
    bool window_needs_switch; /* use_sliding_window, max_window_layers */
    bool uses_layer_types;
    bool qkv_bias; /* always there */
    bool reads_attention_bias, reads_mlp_bias;
    bool qk_norm;
    int32_t head_dim; /* when the key is absent; 0: hidden / heads */
    int32_t kv_heads; /* when the key is absent; 0: as many as heads */
} family;

static const family families[] = {
    {"llama", "LlamaForCausalLM", 2048, 0, false, false, false, true, true, false, 0, 0},
    {"mistral", "MistralForCausalLM", 131072, 4096, false, false, false, false, false, false, 0, 8},
    {"qwen2", "Qwen2ForCausalLM", 32768, 4096, true, true, true, false, false, false, 0, 32},
    {"qwen3", "Qwen3ForCausalLM", 32768, 4096, true, true, false, true, false, true, 128, 32},
};

typedef struct reader {
    const qr_json *json;
    const char *file;
    const family *family;
    qr_model_config *config;
    qr_error *err;
    qr_status status; /* the first error; later reads do nothing */
} reader;

static void fail(reader *r, qr_status status, const char *key, const char *what)
{
    if (r->status == QR_OK)
        r->status = qr_fail(r->err, status, "%s: %s: %s", r->file, key, what);
}

/* null counts as absent, as in transformers. */
static const qr_json *find(const qr_json *object, const char *key)
{
    const qr_json *value = qr_json_get(object, key);
    return qr_json_is(value, QR_JSON_NULL) ? NULL : value;
}

#define REQUIRED INT64_MIN

static int64_t read_int(reader *r, const char *key, int64_t fallback, int64_t low, int64_t high)
{
    const qr_json *value = find(r->json, key);
    if (value == NULL) {
        if (fallback == REQUIRED)
            fail(r, QR_BAD_FILE, key, "is missing");
        return fallback;
    }
    int64_t out = qr_json_int(value, INT64_MIN);
    if (out < low || out > high) {
        char what[120];
        snprintf(what, sizeof(what), out == INT64_MIN ? "must be an integer" : "%lld is not in %lld .. %lld",
                 (long long)out, (long long)low, (long long)high);
        fail(r, QR_BAD_FILE, key, what);
        return low;
    }
    return out;
}

static double read_number(reader *r, const qr_json *object, const char *key, double fallback)
{
    const qr_json *value = find(object, key);
    if (value == NULL)
        return fallback;
    double out = qr_json_number(value, NAN);
    if (!isfinite(out))
        fail(r, QR_BAD_FILE, key, "must be a number");
    return out;
}

static bool read_bool(reader *r, const qr_json *object, const char *key, bool fallback)
{
    const qr_json *value = find(object, key);
    if (value == NULL)
        return fallback;
    if (!qr_json_is(value, QR_JSON_BOOL))
        fail(r, QR_BAD_FILE, key, "must be true or false");
    return qr_json_bool(value, fallback);
}

/* ---- Family, sizes --------------------------------------------------------------------------------- */

static void read_architecture(reader *r)
{
    const char *name = qr_json_cstring(qr_json_at(find(r->json, "architectures"), 0), NULL);
    const char *type = qr_json_cstring(find(r->json, "model_type"), "");
    r->family = &families[0];
    for (size_t i = 0; i < QR_COUNT_OF(families); i++)
        if (name != NULL ? strcmp(name, families[i].architecture) == 0
                         : strcmp(type, families[i].model_type) == 0)
            r->family = &families[i];
    if (name == NULL && strcmp(r->family->model_type, type) == 0)
        name = r->family->architecture;
    if (name == NULL || name[0] == 0 || strlen(name) >= sizeof(r->config->architecture))
        fail(r, QR_BAD_FILE, "architectures", "is missing or too long");
    else
        snprintf(r->config->architecture, sizeof(r->config->architecture), "%s", name);
}

static void read_sizes(reader *r)
{
    qr_model_config *c = r->config;
    c->n_layers = (int32_t)read_int(r, "num_hidden_layers", REQUIRED, 1, QR_CONFIG_LAYERS_MAX);
    c->n_heads = (int32_t)read_int(r, "num_attention_heads", REQUIRED, 1, QR_CONFIG_HEADS_MAX);
    int64_t kv_heads = r->family->kv_heads != 0 ? r->family->kv_heads : c->n_heads;
    /* A null means "as many as heads" in every family; only an absent key takes the class' default. */
    if (qr_json_is(qr_json_get(r->json, "num_key_value_heads"), QR_JSON_NULL))
        kv_heads = c->n_heads;
    c->n_kv_heads = (int32_t)read_int(r, "num_key_value_heads", kv_heads, 1, QR_CONFIG_HEADS_MAX);
    c->hidden = (int32_t)read_int(r, "hidden_size", REQUIRED, 1, QR_CONFIG_WIDTH_MAX);
    c->intermediate = (int32_t)read_int(r, "intermediate_size", REQUIRED, 1, QR_CONFIG_WIDTH_MAX);
    c->vocab = (int32_t)read_int(r, "vocab_size", REQUIRED, 1, QR_CONFIG_VOCAB_MAX);
    c->context = read_int(r, "max_position_embeddings", r->family->context, 1, QR_CONFIG_CONTEXT_MAX);
    if (r->status != QR_OK)
        return;
    int64_t head_dim = r->family->head_dim;
    if (head_dim == 0 || qr_json_is(qr_json_get(r->json, "head_dim"), QR_JSON_NULL)) {
        head_dim = c->hidden / c->n_heads;
        if (find(r->json, "head_dim") == NULL && c->hidden % c->n_heads != 0) {
            r->status =
                qr_fail(r->err, QR_BAD_FILE, "%s: hidden_size %d is not a multiple of %d attention heads",
                        r->file, c->hidden, c->n_heads);
            return;
        }
    }
    c->head_dim = (int32_t)read_int(r, "head_dim", head_dim, 2, 4096);
}

/* ---- Rope ------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    qr_rope_kind kind;
} rope_kinds[] = {{"default", QR_ROPE_DEFAULT}, {"none", QR_ROPE_DEFAULT}, {"linear", QR_ROPE_LINEAR},
                  {"llama3", QR_ROPE_LLAMA3},   {"yarn", QR_ROPE_YARN},    {"dynamic", QR_ROPE_DYNAMIC}};

static bool read_rope_kind(reader *r, const qr_json *rope, const char *where)
{
    const qr_json *value = find(rope, "rope_type");
    if (value == NULL)
        value = find(rope, "type");
    const char *name = qr_json_cstring(value, value == NULL ? "default" : "");
    for (size_t i = 0; i < QR_COUNT_OF(rope_kinds); i++)
        if (strcmp(rope_kinds[i].name, name) == 0) {
            r->config->rope.kind = rope_kinds[i].kind;
            return true;
        }
    char what[120];
    snprintf(what, sizeof(what), "rope type \"%.40s\" is not supported", name);
    fail(r, QR_UNSUPPORTED, where, what);
    return false;
}

static void read_rope_scaling(reader *r, const qr_json *rope, const char *where)
{
    qr_rope_config *c = &r->config->rope;
    if (!read_rope_kind(r, rope, where) || c->kind == QR_ROPE_DEFAULT)
        return;
    c->factor = read_number(r, rope, "factor", 0);
    /* The key beside the dictionary wins over the one inside, as in transformers. */
    const qr_json *original = find(r->json, "original_max_position_embeddings");
    bool said = original != NULL || find(rope, "original_max_position_embeddings") != NULL;
    if (original == NULL)
        original = find(rope, "original_max_position_embeddings");
    c->original_max_position = said ? qr_json_int(original, -1) : r->config->context;
    if (c->kind == QR_ROPE_LLAMA3) {
        c->low_freq_factor = read_number(r, rope, "low_freq_factor", 0);
        c->high_freq_factor = read_number(r, rope, "high_freq_factor", 0);
    } else if (c->kind == QR_ROPE_YARN) {
        if (c->factor == 0 && c->original_max_position > 0)
            c->factor = (double)r->config->context / (double)c->original_max_position;
        c->beta_fast = read_number(r, rope, "beta_fast", 32);
        c->beta_slow = read_number(r, rope, "beta_slow", 1);
        c->attention_factor = read_number(r, rope, "attention_factor", 0);
        c->mscale = read_number(r, rope, "mscale", 0);
        c->mscale_all_dim = read_number(r, rope, "mscale_all_dim", 0);
        c->truncate = read_bool(r, rope, "truncate", true);
        /* Qwen's recipe adds the dictionary and leaves max_position_embeddings as it was. */
        double extended = (double)c->original_max_position * c->factor;
        if (said && extended > (double)r->config->context && extended <= (double)QR_CONFIG_CONTEXT_MAX)
            r->config->context = (int64_t)extended;
    }
}

static void read_rope(reader *r)
{
    qr_rope_config *c = &r->config->rope;
    const char *where = "rope_parameters";
    const qr_json *rope = find(r->json, where);
    if (rope == NULL)
        rope = find(r->json, where = "rope_scaling");
    if (rope != NULL && !qr_json_is(rope, QR_JSON_OBJECT)) {
        fail(r, QR_BAD_FILE, where, "must be an object");
        return;
    }
    for (void *it = qr_json_iter(rope); it != NULL; it = qr_json_iter_next(rope, it))
        if (qr_json_is(qr_json_iter_value(it), QR_JSON_OBJECT)) {
            fail(r, QR_UNSUPPORTED, where, "rope parameters per layer type are not supported");
            return;
        }
    c->theta = read_number(r, r->json, "rope_theta", c->theta);
    c->theta = read_number(r, rope, "rope_theta", c->theta);
    double fraction = read_number(r, r->json, "partial_rotary_factor", r->config->rotary_fraction);
    r->config->rotary_fraction = (float)read_number(r, rope, "partial_rotary_factor", fraction);
    if (rope != NULL && r->status == QR_OK)
        read_rope_scaling(r, rope, where);
}

/* ---- Attention, activation, ids -------------------------------------------------------------------- */

static void read_layer_types(reader *r, qr_arena *arena)
{
    qr_model_config *c = r->config;
    const qr_json *types = find(r->json, "layer_types");
    if (types == NULL || !r->family->uses_layer_types)
        return;
    if (qr_json_count(types) != (size_t)c->n_layers) {
        fail(r, QR_BAD_FILE, "layer_types", "must have num_hidden_layers items");
        return;
    }
    uint8_t *sliding = QR_ARENA_ARRAY(arena, uint8_t, (size_t)c->n_layers);
    for (int32_t i = 0; i < c->n_layers; i++) {
        const char *type = qr_json_cstring(qr_json_at(types, (size_t)i), "");
        sliding[i] = strcmp(type, "sliding_attention") == 0;
        if (!sliding[i] && strcmp(type, "full_attention") != 0) {
            char what[120];
            snprintf(what, sizeof(what), "\"%.40s\" of layer %d is not supported", type, i);
            fail(r, QR_UNSUPPORTED, "layer_types", what);
        }
        if (sliding[i] && c->sliding_window == 0)
            fail(r, QR_BAD_FILE, "layer_types", "has sliding_attention, but no sliding_window is in use");
    }
    c->layer_sliding = sliding;
}

static void read_attention(reader *r, qr_arena *arena)
{
    const family *f = r->family;
    qr_model_config *c = r->config;
    bool bias = f->reads_attention_bias && read_bool(r, r->json, "attention_bias", false);
    c->attention_bias = f->qkv_bias || bias;
    c->attention_output_bias = bias;
    c->mlp_bias = f->reads_mlp_bias && read_bool(r, r->json, "mlp_bias", false);
    c->qk_norm = f->qk_norm;
    if (f->sliding_window == 0)
        return;
    /* A null window means none; only an absent key takes the class' default. */
    if (!qr_json_is(qr_json_get(r->json, "sliding_window"), QR_JSON_NULL))
        c->sliding_window = read_int(r, "sliding_window", f->sliding_window, 1, QR_CONFIG_CONTEXT_MAX);
    if (f->window_needs_switch) {
        if (!read_bool(r, r->json, "use_sliding_window", false))
            c->sliding_window = 0;
        c->sliding_first_layer = (int32_t)read_int(r, "max_window_layers", 28, 0, INT32_MAX);
    }
    read_layer_types(r, arena);
    if (c->sliding_window == 0)
        c->sliding_first_layer = 0;
}

static void read_activation(reader *r)
{
    static const char *const spellings[][2] = {{"silu", "silu"},
                                               {"swish", "silu"},
                                               {"gelu", "gelu"},
                                               {"gelu_pytorch_tanh", "gelu_tanh"},
                                               {"gelu_new", "gelu_tanh"}};
    const qr_json *value = find(r->json, "hidden_act");
    const char *name = qr_json_cstring(value, value == NULL ? "silu" : "");
    for (size_t i = 0; i < QR_COUNT_OF(spellings); i++)
        if (strcmp(name, spellings[i][0]) == 0) {
            snprintf(r->config->activation, sizeof(r->config->activation), "%s", spellings[i][1]);
            return;
        }
    char what[120];
    snprintf(what, sizeof(what), "\"%.40s\" is not supported", name);
    fail(r, QR_UNSUPPORTED, "hidden_act", what);
}

static void read_dtype(reader *r)
{
    const qr_json *value = find(r->json, "dtype");
    if (value == NULL)
        value = find(r->json, "torch_dtype");
    if (value == NULL)
        return;
    int dtype = qr_dtype_parse(qr_json_cstring(value, ""));
    if (dtype != QR_DTYPE_F32 && dtype != QR_DTYPE_F16 && dtype != QR_DTYPE_BF16) {
        char what[120];
        snprintf(what, sizeof(what), "\"%.40s\" is not float32, float16 or bfloat16",
                 qr_json_cstring(value, ""));
        fail(r, QR_UNSUPPORTED, "dtype", what);
        return;
    }
    r->config->dtype = (qr_dtype)dtype;
    r->config->dtype_said = true;
}

static void read_ids(reader *r)
{
    const qr_json *eos = find(r->json, "eos_token_id");
    const qr_json *bos = find(r->json, "bos_token_id");
    qr_config_add_eos(r->config, qr_json_int(eos, -1));
    for (size_t i = 0; i < qr_json_count(eos); i++)
        qr_config_add_eos(r->config, qr_json_int(qr_json_at(eos, i), -1));
    int64_t id = qr_json_int(bos, -1);
    r->config->bos = id >= 0 && id < r->config->vocab ? (int32_t)id : -1;
}

qr_status qr_hf_config_read(const qr_json *json, const char *file, qr_arena *arena, qr_model_config *config,
                            qr_error *err)
{
    reader r = {.json = json, .file = file, .config = config, .err = err};
    read_architecture(&r);
    read_sizes(&r);
    read_rope(&r);
    if (r.status != QR_OK)
        return r.status;
    config->norm_eps = (float)read_number(&r, json, "rms_norm_eps", 1e-6);
    read_attention(&r, arena);
    read_activation(&r);
    read_dtype(&r);
    read_ids(&r);
    config->tied_embeddings = read_bool(&r, json, "tie_word_embeddings", false);
    const qr_json *quantization = find(json, "quantization_config");
    if (quantization != NULL) {
        qr_str method = qr_json_string(qr_json_get(quantization, "quant_method"));
        config->quant_method =
            method.data != NULL ? qr_arena_strndup(arena, method.data, method.len) : "unknown";
    }
    return r.status;
}

qr_status qr_hf_config_override(const qr_json *json, const char *file, qr_model_config *config, qr_error *err)
{
    static const char *const known[] = {"max_position_embeddings",
                                        "rope_theta",
                                        "rope_scaling",
                                        "rope_parameters",
                                        "rms_norm_eps",
                                        "sliding_window",
                                        "partial_rotary_factor",
                                        "original_max_position_embeddings"};
    for (void *it = qr_json_iter(json); it != NULL; it = qr_json_iter_next(json, it)) {
        bool found = false;
        for (size_t i = 0; i < QR_COUNT_OF(known); i++)
            found = found || qr_str_equals(qr_json_iter_key(it), known[i]);
        if (!found)
            return qr_fail(err, QR_UNSUPPORTED,
                           "hf_overrides: %.64s: cannot be set over a GGUF file's metadata",
                           qr_json_iter_key(it).data);
    }
    reader r = {.json = json, .file = file, .config = config, .err = err};
    config->context = read_int(&r, "max_position_embeddings", config->context, 1, QR_CONFIG_CONTEXT_MAX);
    config->norm_eps = (float)read_number(&r, json, "rms_norm_eps", (double)config->norm_eps);
    if (qr_json_is(qr_json_get(json, "sliding_window"), QR_JSON_NULL))
        config->sliding_window = 0;
    else
        config->sliding_window =
            read_int(&r, "sliding_window", config->sliding_window, 1, QR_CONFIG_CONTEXT_MAX);
    read_rope(&r);
    return r.status;
}
