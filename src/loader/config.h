/* qr_model_config: the union of what architectures need, read from config.json (both spellings: rope_theta,
 * rope_scaling, torch_dtype; and transformers 5's rope_parameters, dtype) or from GGUF metadata.
 *
 * Differences between relatives are fields here; an architecture file reads fields, nothing tests the
 * architecture's name elsewhere. Every number is range-checked on reading (QR_BAD_FILE: file, key, value).
 * Thread: immutable after reading.
 */
#ifndef QR_LOADER_CONFIG_H
#define QR_LOADER_CONFIG_H

#include "base/arena.h"
#include "base/status.h"
#include "loader/weights.h"
#include "tensor/dtype.h"

typedef enum qr_rope_kind {
    QR_ROPE_NONE,
    QR_ROPE_DEFAULT,
    QR_ROPE_LINEAR,
    QR_ROPE_LLAMA3,
    QR_ROPE_YARN,
    QR_ROPE_DYNAMIC
} qr_rope_kind;

typedef struct qr_rope_config {
    qr_rope_kind kind;
    double theta;
    double factor;                            /* linear, llama3, yarn, dynamic */
    double low_freq_factor, high_freq_factor; /* llama3 */
    int64_t original_max_position;            /* llama3, yarn; 0: not said */
    double beta_fast, beta_slow, attention_factor, mscale,
        mscale_all_dim; /* yarn; attention_factor 0: computed */
    bool truncate;      /* yarn; default true */
    const float *
        freq_factors; /* GGUF rope_freqs.weight (per pair, divides the frequency), or NULL; set by the model */
} qr_rope_config;

#define QR_EOS_MAX 8

typedef struct qr_model_config {
    char architecture
        [64]; /* HF architectures[0] ("LlamaForCausalLM") or GGUF general.architecture ("llama") */
    qr_container container;
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    int32_t hidden, intermediate, vocab;
    int64_t context; /* max_position_embeddings */
    float norm_eps;
    qr_rope_config rope;
    bool rope_interleaved; /* pairs (2i, 2i+1): GGUF's permuted Llama Q and K; else halves (i, i + d/2) */
    float rotary_fraction; /* partial_rotary_factor; 1 by default */
    bool tied_embeddings;  /* the output head is the embedding (when no separate one is in the file) */
    bool attention_bias;   /* biases on q, k, v (Qwen2; Llama's attention_bias adds o's too) */
    bool attention_output_bias;
    bool mlp_bias;
    bool qk_norm;                 /* RMS norm of each head of q and k (Qwen3) */
    int64_t sliding_window;       /* 0: none; tokens that a query sees, itself included */
    int32_t sliding_first_layer;  /* layers >= this slide (Qwen2's max_window_layers); 0 by default */
    const uint8_t *layer_sliding; /* per layer 0/1 from layer_types, or NULL */
    char activation[16];          /* "silu", "gelu", "gelu_tanh" */
    qr_dtype dtype;               /* the checkpoint's torch_dtype; F16 for quantised GGUF */
    bool dtype_said;
    int32_t bos;             /* -1: none */
    int32_t eos[QR_EOS_MAX]; /* from config and generation_config */
    int32_t eos_count;
    const char *generation_config_json; /* generation_config.json as read, or "{}" */
    const char
        *quant_method; /* quantization_config.quant_method, or NULL: the model refuses what it cannot run */
} qr_model_config;

/* overrides: a JSON object merged over config.json, or NULL. Memory of the config comes from `arena`. */
qr_status qr_config_read(const qr_weights *weights, const char *overrides, qr_arena *arena,
                         qr_model_config *config, qr_error *err);

#endif
