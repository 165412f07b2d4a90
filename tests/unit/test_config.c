// links: qr_loader
/* Configurations: both spellings of config.json, GGUF metadata, and one line for what is wrong with them. */
#include "loader/config.h"
#include "support/cmocka.h"
#include "support/loader_images.h"

static qr_error error;
static temp_dir dir;
static qr_arena arena;
static qr_model_config config;

static int begin(void **state)
{
    (void)state;
    temp_dir_init(&dir);
    qr_arena_init(&arena, 4096);
    memset(&error, 0, sizeof(error));
    return 0;
}

static int end(void **state)
{
    (void)state;
    temp_dir_release(&dir);
    qr_arena_release(&arena);
    return 0;
}

#define LLAMA_SIZES                                                                                  \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
    "\"vocab_size\":100,\"max_position_embeddings\":256"
#define LLAMA(more) "{\"architectures\":[\"LlamaForCausalLM\"]," LLAMA_SIZES more "}"

/* Reads config.json made of `text`, with overrides. */
static qr_status read_over(const char *text, const char *overrides)
{
    temp_dir_write_text(&dir, "config.json", text);
    qr_weights *w;
    assert_int_equal(qr_weights_open_empty(dir.path, &w, &error), QR_OK);
    qr_status status = qr_config_read(w, overrides, &arena, &config, &error);
    qr_weights_close(w);
    return status;
}

static qr_status read_text(const char *text) { return read_over(text, NULL); }

static void assert_read(const char *text)
{
    if (read_text(text) != QR_OK)
        fail_msg("%s", error.message);
}

static void assert_refused(const char *text, qr_status status, const char *message)
{
    assert_int_equal(read_text(text), status);
    assert_int_equal(error.status, status);
    if (strstr(error.message, message) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, message);
}

/* ---- Hugging Face ---------------------------------------------------------------------------------- */

static void llama_takes_transformers_defaults(void **state)
{
    (void)state;
    assert_read(LLAMA(""));
    assert_string_equal(config.architecture, "LlamaForCausalLM");
    assert_int_equal(config.n_layers, 2);
    assert_int_equal(config.n_kv_heads, 4);
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.context, 256);
    assert_int_equal(config.rope.kind, QR_ROPE_DEFAULT);
    assert_true(config.rope.theta == 10000 && config.rotary_fraction == 1 && config.norm_eps == 1e-6f);
    assert_false(config.tied_embeddings || config.attention_bias || config.mlp_bias || config.qk_norm);
    assert_false(config.rope_interleaved || config.dtype_said);
    assert_int_equal(config.sliding_window, 0);
    assert_string_equal(config.activation, "silu");
    assert_int_equal(config.bos, -1);
    assert_int_equal(config.eos_count, 0);
    assert_string_equal(config.generation_config_json, "{}");
    assert_null(config.quant_method);
}

static void transformers_4_spells_rope_beside_the_sizes(void **state)
{
    (void)state;
    assert_read(LLAMA(
        ",\"rope_theta\":500000.0,\"torch_dtype\":\"bfloat16\",\"head_dim\":24,\"rms_norm_eps\":1e-05,"
        "\"tie_word_embeddings\":true,\"num_key_value_heads\":2,\"bos_token_id\":1,\"eos_token_id\":[2,5],"
        "\"rope_scaling\":{\"factor\":8.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
        "\"original_max_position_embeddings\":128,\"rope_type\":\"llama3\"}"));
    assert_int_equal(config.rope.kind, QR_ROPE_LLAMA3);
    assert_true(config.rope.theta == 500000 && config.rope.factor == 8);
    assert_true(config.rope.low_freq_factor == 1 && config.rope.high_freq_factor == 4);
    assert_int_equal(config.rope.original_max_position, 128);
    assert_int_equal(config.dtype, QR_DTYPE_BF16);
    assert_true(config.dtype_said && config.tied_embeddings);
    assert_int_equal(config.head_dim, 24);
    assert_int_equal(config.n_kv_heads, 2);
    assert_int_equal(config.eos_count, 2);
    assert_int_equal(config.eos[1], 5);
    assert_int_equal(config.bos, 1);
}

static void transformers_5_spells_rope_in_rope_parameters(void **state)
{
    (void)state;
    assert_read(
        LLAMA(",\"dtype\":\"float16\",\"rope_parameters\":{\"rope_theta\":1000.0,\"rope_type\":\"linear\","
              "\"factor\":4.0}"));
    assert_int_equal(config.rope.kind, QR_ROPE_LINEAR);
    assert_true(config.rope.theta == 1000 && config.rope.factor == 4);
    assert_int_equal(config.dtype, QR_DTYPE_F16);
    assert_read(LLAMA(",\"rope_parameters\":{\"rope_theta\":1000.0,\"rope_type\":\"default\","
                      "\"partial_rotary_factor\":0.5}"));
    assert_int_equal(config.rope.kind, QR_ROPE_DEFAULT);
    assert_true(config.rotary_fraction == 0.5f);
}

static void the_oldest_spelling_of_rope_scaling_says_type(void **state)
{
    (void)state;
    assert_read(LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}"));
    assert_int_equal(config.rope.kind, QR_ROPE_LINEAR);
    assert_true(config.rope.factor == 2.5);
    assert_read(LLAMA(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"));
    assert_int_equal(config.rope.kind, QR_ROPE_DYNAMIC);
    assert_int_equal(config.rope.original_max_position, 256);
    assert_read(LLAMA(",\"rope_scaling\":null"));
    assert_int_equal(config.rope.kind, QR_ROPE_DEFAULT);
}

static void yarn_has_its_defaults_and_extends_the_context(void **state)
{
    (void)state;
    assert_read(LLAMA(
        ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":256}"));
    assert_int_equal(config.rope.kind, QR_ROPE_YARN);
    assert_true(config.rope.beta_fast == 32 && config.rope.beta_slow == 1 &&
                config.rope.attention_factor == 0);
    assert_true(config.rope.truncate);
    assert_int_equal(config.context, 1024);
    assert_read(
        LLAMA(",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2.0,\"beta_fast\":16,\"beta_slow\":2,"
              "\"attention_factor\":0.75,\"mscale\":1,\"mscale_all_dim\":0.5,\"truncate\":false}"));
    assert_true(config.rope.beta_fast == 16 && config.rope.beta_slow == 2 &&
                config.rope.attention_factor == 0.75);
    assert_true(config.rope.mscale == 1 && config.rope.mscale_all_dim == 0.5 && !config.rope.truncate);
    assert_int_equal(config.rope.original_max_position, 256);
    assert_int_equal(config.context, 256); /* no original length was said: nothing to extend from */
}

static void llama_biases_are_switches(void **state)
{
    (void)state;
    assert_read(LLAMA(",\"attention_bias\":true"));
    assert_true(config.attention_bias && config.attention_output_bias && !config.mlp_bias);
    assert_read(LLAMA(",\"mlp_bias\":true"));
    assert_true(!config.attention_bias && config.mlp_bias);
}

static void mistral_slides_in_every_layer(void **state)
{
    (void)state;
    assert_read("{\"architectures\":[\"MistralForCausalLM\"]," LLAMA_SIZES ",\"sliding_window\":8,"
                "\"num_key_value_heads\":2,\"attention_bias\":true}");
    assert_int_equal(config.sliding_window, 8);
    assert_int_equal(config.sliding_first_layer, 0);
    assert_null(config.layer_sliding);
    assert_false(config.attention_bias); /* not a switch of this family */
    assert_read("{\"architectures\":[\"MistralForCausalLM\"]," LLAMA_SIZES ",\"sliding_window\":null,"
                "\"num_key_value_heads\":2}");
    assert_int_equal(config.sliding_window, 0);
    assert_read("{\"model_type\":\"mistral\"," LLAMA_SIZES ",\"num_key_value_heads\":null}");
    assert_int_equal(config.sliding_window, 4096);
    assert_int_equal(config.n_kv_heads, 4);
    assert_string_equal(config.architecture, "MistralForCausalLM");
}

#define QWEN2(more) \
    "{\"architectures\":[\"Qwen2ForCausalLM\"]," LLAMA_SIZES ",\"num_key_value_heads\":2" more "}"

static void qwen2_has_biases_and_slides_only_when_switched_on(void **state)
{
    (void)state;
    assert_read(QWEN2(",\"sliding_window\":16,\"use_sliding_window\":false,\"max_window_layers\":1"));
    assert_true(config.attention_bias && !config.attention_output_bias);
    assert_int_equal(config.sliding_window, 0);
    assert_int_equal(config.sliding_first_layer, 0);
    assert_read(QWEN2(",\"sliding_window\":16,\"use_sliding_window\":true,\"max_window_layers\":1"));
    assert_int_equal(config.sliding_window, 16);
    assert_int_equal(config.sliding_first_layer, 1);
    assert_read(
        QWEN2(",\"sliding_window\":16,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
              "\"full_attention\"]"));
    assert_non_null(config.layer_sliding);
    assert_int_equal(config.layer_sliding[0], 1);
    assert_int_equal(config.layer_sliding[1], 0);
}

static void qwen3_has_qk_norm_and_a_head_size_of_its_own(void **state)
{
    (void)state;
    assert_read("{\"architectures\":[\"Qwen3ForCausalLM\"]," LLAMA_SIZES ",\"num_key_value_heads\":2}");
    assert_true(config.qk_norm && !config.attention_bias);
    assert_int_equal(config.head_dim, 128);
}

static void generation_config_adds_ends_and_is_kept(void **state)
{
    (void)state;
    temp_dir_write_text(&dir, "generation_config.json",
                        "{\"eos_token_id\": [7, 5, 500], \"temperature\": 0.6}");
    assert_read(LLAMA(",\"eos_token_id\":5"));
    assert_int_equal(config.eos_count, 2); /* 500 is outside the vocabulary */
    assert_int_equal(config.eos[0], 5);
    assert_int_equal(config.eos[1], 7);
    assert_string_equal(config.generation_config_json, "{\"eos_token_id\":[7,5,500],\"temperature\":0.6}");
    temp_dir_write_text(&dir, "generation_config.json", "[1]");
    assert_refused(LLAMA(""), QR_BAD_FILE, "generation_config.json: not a JSON object but array");
    temp_dir_write_text(&dir, "generation_config.json", "{");
    assert_refused(LLAMA(""), QR_BAD_FILE, "generation_config.json");
}

static void overrides_lie_over_the_file(void **state)
{
    (void)state;
    assert_int_equal(read_over(LLAMA(""),
                               "{\"max_position_embeddings\":512,\"rope_scaling\":{\"type\":\"linear\","
                               "\"factor\":2}}"),
                     QR_OK);
    assert_int_equal(config.context, 512);
    assert_int_equal(config.rope.kind, QR_ROPE_LINEAR);
    assert_int_equal(read_over(LLAMA(""), "[]"), QR_INVALID_ARGUMENT);
    assert_int_equal(read_over(LLAMA(""), "{"), QR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "hf_overrides"));
}

static void quantised_checkpoints_name_their_method(void **state)
{
    (void)state;
    assert_read(LLAMA(",\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4}"));
    assert_string_equal(config.quant_method, "awq");
    assert_read(LLAMA(",\"quantization_config\":{}"));
    assert_string_equal(config.quant_method, "unknown");
}

static void wrong_numbers_are_refused_by_key_and_value(void **state)
{
    (void)state;
#define SIZES(more) "{\"architectures\":[\"LlamaForCausalLM\"]," more "}"
    assert_refused(SIZES("\"hidden_size\":64"), QR_BAD_FILE, "config.json: num_hidden_layers: is missing");
    assert_refused(LLAMA(",\"num_key_value_heads\":3"), QR_BAD_FILE,
                   "4 attention heads are not a multiple of 3");
    assert_refused(LLAMA(",\"num_key_value_heads\":0"), QR_BAD_FILE,
                   "num_key_value_heads: 0 is not in 1 .. 4096");
    assert_refused(LLAMA(",\"num_key_value_heads\":\"x\""), QR_BAD_FILE,
                   "num_key_value_heads: must be an integer");
    assert_refused(LLAMA(",\"head_dim\":7"), QR_BAD_FILE, "head_dim: 7: must be even");
    assert_refused(LLAMA(",\"rms_norm_eps\":-1"), QR_BAD_FILE, "rms_norm_eps: -1: must lie between");
    assert_refused(LLAMA(",\"rope_theta\":0"), QR_BAD_FILE, "rope_theta: 0: must be a number above 1");
    assert_refused(LLAMA(",\"rope_theta\":\"x\""), QR_BAD_FILE, "rope_theta: must be a number");
    assert_refused(LLAMA(",\"partial_rotary_factor\":2"), QR_BAD_FILE, "rotary dimensions: 32");
    assert_refused(LLAMA(",\"rope_scaling\":{\"type\":\"linear\"}"), QR_BAD_FILE, "rope factor: 0");
    assert_refused(LLAMA(",\"rope_scaling\":5"), QR_BAD_FILE, "rope_scaling: must be an object");
    assert_refused(LLAMA(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}"), QR_BAD_FILE,
                   "high_freq_factor");
    assert_refused(LLAMA(",\"attention_bias\":3"), QR_BAD_FILE, "attention_bias: must be true or false");
    assert_refused("{" LLAMA_SIZES "}", QR_BAD_FILE, "architectures: is missing");
    assert_refused("{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":65,\"intermediate_size\":96,"
                   "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":100}",
                   QR_BAD_FILE, "hidden_size 65 is not a multiple of 4");
    assert_refused(
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":99999999,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4}",
        QR_BAD_FILE, "hidden_size: 99999999 is not in 1 .. 1048576");
    assert_refused("[1]", QR_BAD_FILE, "not a JSON object but array");
    assert_refused("{\"a\":", QR_BAD_FILE, "config.json");
    remove(temp_dir_at(&dir, "config.json"));
    qr_weights *w;
    assert_int_equal(qr_weights_open_empty(dir.path, &w, &error), QR_OK);
    assert_int_equal(qr_config_read(w, NULL, &arena, &config, &error), QR_NOT_FOUND);
    qr_weights_close(w);
}

static void what_is_not_served_is_refused_by_name(void **state)
{
    (void)state;
    assert_refused(LLAMA(",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":2}"), QR_UNSUPPORTED,
                   "rope_scaling: rope type \"longrope\" is not supported");
    assert_refused(LLAMA(",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}"),
                   QR_UNSUPPORTED, "per layer type");
    assert_refused(LLAMA(",\"hidden_act\":\"relu\""), QR_UNSUPPORTED,
                   "hidden_act: \"relu\" is not supported");
    assert_refused(LLAMA(",\"dtype\":\"float8\""), QR_UNSUPPORTED, "dtype: \"float8\"");
    assert_refused(QWEN2(",\"layer_types\":[\"full_attention\",\"linear_attention\"]"), QR_UNSUPPORTED,
                   "\"linear_attention\" of layer 1");
    assert_refused(QWEN2(",\"layer_types\":[\"full_attention\"]"), QR_BAD_FILE, "layer_types: must have");
    assert_refused(QWEN2(",\"layer_types\":[\"full_attention\",\"sliding_attention\"]"), QR_BAD_FILE,
                   "no sliding_window is in use");
}

/* ---- GGUF ------------------------------------------------------------------------------------------ */

typedef struct gguf_extra {
    void (*pairs)(qr_buf *image);
    uint32_t pair_count;
    const char *tensors[4]; /* one F32 value each */
} gguf_extra;

/* A llama of hidden 64 with 4 heads, vocabulary 10, and more. */
static const char *write_gguf(const char *arch, const gguf_extra *extra)
{
    qr_buf image = {0};
    char key[128];
    uint32_t tensors = 1;
    while (extra->tensors[tensors - 1] != NULL)
        tensors++;
    put_gguf_head(&image, 3, tensors, 6 + extra->pair_count);
    put_gguf_text(&image, "general.architecture", arch);
    static const struct {
        const char *name;
        uint32_t value;
    } sizes[] = {{"block_count", 2},
                 {"embedding_length", 64},
                 {"feed_forward_length", 96},
                 {"attention.head_count", 4},
                 {"context_length", 256}};
    for (size_t i = 0; i < QR_COUNT_OF(sizes); i++) {
        snprintf(key, sizeof(key), "%s.%s", arch, sizes[i].name);
        put_gguf_u32(&image, key, sizes[i].value);
    }
    if (extra->pairs != NULL)
        extra->pairs(&image);
    put_gguf_tensor(&image, "token_embd.weight", 2, 64, 10, 0, 0);
    for (uint32_t i = 0; i + 1 < tensors; i++)
        put_gguf_tensor(&image, extra->tensors[i], 1, 1, 0, 0, 2560 + 32 * i);
    put_gguf_data(&image, 2560 + 32 * tensors);
    temp_dir_write(&dir, "m.gguf", image.data, image.len);
    qr_buf_release(&image);
    return dir.last;
}

static qr_status read_gguf(const char *arch, const gguf_extra *extra, const char *overrides)
{
    qr_weights *w;
    assert_int_equal(qr_weights_open(write_gguf(arch, extra), &w, &error), QR_OK);
    qr_status status = qr_config_read(w, overrides, &arena, &config, &error);
    qr_weights_close(w);
    return status;
}

static void gguf_llama_is_permuted_and_takes_defaults(void **state)
{
    (void)state;
    assert_int_equal(read_gguf("llama", &(gguf_extra){0}, NULL), QR_OK);
    assert_string_equal(config.architecture, "llama");
    assert_true(config.rope_interleaved && config.tied_embeddings);
    assert_int_equal(config.vocab, 10);
    assert_int_equal(config.n_kv_heads, 4);
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.context, 256);
    assert_true(config.rope.theta == 10000 && config.norm_eps == 1e-5f && config.rotary_fraction == 1);
    assert_int_equal(config.dtype, QR_DTYPE_F32); /* what the tensors are */
    assert_int_equal(config.container, QR_CONTAINER_GGUF);
}

static void qwen_pairs(qr_buf *image)
{
    put_gguf_u32(image, "qwen3.attention.head_count_kv", 2);
    put_gguf_u32(image, "qwen3.attention.key_length", 32);
    put_gguf_u32(image, "qwen3.attention.value_length", 32);
    put_gguf_f32(image, "qwen3.rope.freq_base", 1e6f);
    put_gguf_text(image, "qwen3.rope.scaling.type", "yarn");
    put_gguf_f32(image, "qwen3.rope.scaling.factor", 4);
    put_gguf_u32(image, "qwen3.rope.scaling.original_context_length", 64);
    put_gguf_u32(image, "general.file_type", 7);
    put_gguf_u32(image, "tokenizer.ggml.eos_token_id", 3);
    put_gguf_u32(image, "tokenizer.ggml.eot_token_id", 4);
    put_gguf_f32(image, "general.sampling.temp", 0.5f);
}

static void gguf_keys_and_tensors_make_the_config(void **state)
{
    (void)state;
    assert_int_equal(
        read_gguf(
            "qwen3",
            &(gguf_extra){qwen_pairs, 11, {"output.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_q.bias"}},
            NULL),
        QR_OK);
    assert_false(config.rope_interleaved || config.tied_embeddings || config.attention_output_bias);
    assert_true(config.qk_norm && config.attention_bias);
    assert_int_equal(config.n_kv_heads, 2);
    assert_int_equal(config.head_dim, 32);
    assert_int_equal(config.rope.kind, QR_ROPE_YARN);
    assert_true(config.rope.factor == 4 && config.rope.theta == 1e6 && config.rope.beta_fast == 32);
    assert_int_equal(config.rope.original_max_position, 64);
    assert_int_equal(config.dtype, QR_DTYPE_F16);
    assert_int_equal(config.eos_count, 2);
    assert_int_equal(config.eos[1], 4);
    assert_string_equal(config.generation_config_json, "{\"temperature\":0.5}");
}

static void turn_end_pairs(qr_buf *image)
{
    static const char *const tokens[] = {"a", "<|im_end|>", "<|eot_id|>"};
    put_gguf_array(image, "tokenizer.ggml.tokens", 8, 3);
    for (int i = 0; i < 3; i++)
        put_gguf_string(image, tokens[i]);
    put_gguf_array(image, "tokenizer.ggml.token_type", 5, 3);
    put_u32(image, 1), put_u32(image, 1), put_u32(image, 3);
    put_gguf_u32(image, "tokenizer.ggml.eos_token_id", 0);
    put_gguf_u32(image, "tokenizer.ggml.bos_token_id", UINT32_MAX);
}

static void gguf_turn_ends_are_found_among_control_tokens(void **state)
{
    (void)state;
    assert_int_equal(read_gguf("llama", &(gguf_extra){turn_end_pairs, 4, {NULL}}, NULL), QR_OK);
    assert_int_equal(config.eos_count, 2); /* <|im_end|> is ordinary text here */
    assert_int_equal(config.eos[0], 0);
    assert_int_equal(config.eos[1], 2);
    assert_int_equal(config.bos, -1);
}

static void gguf_overrides_are_few(void **state)
{
    (void)state;
    assert_int_equal(
        read_gguf("llama", &(gguf_extra){0}, "{\"rope_theta\":5000,\"max_position_embeddings\":99}"), QR_OK);
    assert_true(config.rope.theta == 5000);
    assert_int_equal(config.context, 99);
    assert_int_equal(read_gguf("llama", &(gguf_extra){0}, "{\"hidden_size\":5}"), QR_UNSUPPORTED);
    assert_non_null(strstr(error.message, "hf_overrides: hidden_size"));
}

static void bad_pairs(qr_buf *image) { put_gguf_u32(image, "llama.attention.head_count_kv", 3); }
static void longrope_pairs(qr_buf *image) { put_gguf_text(image, "llama.rope.scaling.type", "longrope"); }
static void value_pairs(qr_buf *image) { put_gguf_u32(image, "llama.attention.value_length", 8); }
static void list_pairs(qr_buf *image)
{
    put_gguf_array(image, "llama.attention.head_count_kv", 5, 2);
    put_u32(image, 2), put_u32(image, 4);
}
static void equal_list_pairs(qr_buf *image)
{
    put_gguf_array(image, "llama.attention.head_count_kv", 5, 2);
    put_u32(image, 2), put_u32(image, 2);
}

static void wrong_gguf_metadata_is_refused(void **state)
{
    (void)state;
    static const struct {
        void (*pairs)(qr_buf *image);
        qr_status status;
        const char *message;
    } cases[] = {
        {bad_pairs, QR_BAD_FILE, "4 attention heads are not a multiple of 3"},
        {longrope_pairs, QR_UNSUPPORTED, "llama.rope.scaling.type: this rope scaling"},
        {value_pairs, QR_UNSUPPORTED, "llama.attention.value_length: differs"},
        {list_pairs, QR_UNSUPPORTED, "llama.attention.head_count_kv: must be an integer, or the same"}};
    for (size_t i = 0; i < QR_COUNT_OF(cases); i++) {
        assert_int_equal(read_gguf("llama", &(gguf_extra){cases[i].pairs, 1, {NULL}}, NULL), cases[i].status);
        if (strstr(error.message, cases[i].message) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", error.message, cases[i].message);
    }
    assert_int_equal(read_gguf("llama", &(gguf_extra){equal_list_pairs, 1, {NULL}}, NULL), QR_OK);
    assert_int_equal(config.n_kv_heads, 2);
}

#define WITH_DIR(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DIR(llama_takes_transformers_defaults),
        WITH_DIR(transformers_4_spells_rope_beside_the_sizes),
        WITH_DIR(transformers_5_spells_rope_in_rope_parameters),
        WITH_DIR(the_oldest_spelling_of_rope_scaling_says_type),
        WITH_DIR(yarn_has_its_defaults_and_extends_the_context),
        WITH_DIR(llama_biases_are_switches),
        WITH_DIR(mistral_slides_in_every_layer),
        WITH_DIR(qwen2_has_biases_and_slides_only_when_switched_on),
        WITH_DIR(qwen3_has_qk_norm_and_a_head_size_of_its_own),
        WITH_DIR(generation_config_adds_ends_and_is_kept),
        WITH_DIR(overrides_lie_over_the_file),
        WITH_DIR(quantised_checkpoints_name_their_method),
        WITH_DIR(wrong_numbers_are_refused_by_key_and_value),
        WITH_DIR(what_is_not_served_is_refused_by_name),
        WITH_DIR(gguf_llama_is_permuted_and_takes_defaults),
        WITH_DIR(gguf_keys_and_tensors_make_the_config),
        WITH_DIR(gguf_turn_ends_are_found_among_control_tokens),
        WITH_DIR(gguf_overrides_are_few),
        WITH_DIR(wrong_gguf_metadata_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
