/* Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases on Q, K and V; a window from some layer on when the config
 * switches it on. */
#include "model/arch.h"

typedef struct qwen2_layer {
    const float *attn_norm, *mlp_norm; /* [hidden] */
    qr_attention_weights attn;
    qr_mlp_weights mlp;
} qwen2_layer;

typedef struct qwen2_model {
    qr_weight embed, head; /* [vocab, hidden] */
    const float *norm;     /* [hidden] */
} qwen2_model;

#define MODEL(field) offsetof(qwen2_model, field)
#define LAYER(field) offsetof(qwen2_layer, field)
#define HF(name)     "model.layers.{layer}." name
#define GGUF(name)   "blk.{layer}." name

static const qr_arch_row rows[] = {
    QR_EMBEDDING("model.embed_tokens.weight", "token_embd.weight", MODEL(embed)),
    QR_HEAD("lm_head.weight", "output.weight", MODEL(head)),
    QR_VECTOR("model.norm.weight", "output_norm.weight", MODEL(norm), HIDDEN, NONE, 0),
    QR_VECTOR(HF("input_layernorm.weight"), GGUF("attn_norm.weight"), LAYER(attn_norm), HIDDEN, NONE, 0),
    QR_MATRIX(HF("self_attn.q_proj.weight"), GGUF("attn_q.weight"), LAYER(attn.q), Q, HIDDEN, ROWS),
    QR_MATRIX(HF("self_attn.k_proj.weight"), GGUF("attn_k.weight"), LAYER(attn.k), KV, HIDDEN, ROWS),
    QR_MATRIX(HF("self_attn.v_proj.weight"), GGUF("attn_v.weight"), LAYER(attn.v), KV, HIDDEN, ROWS),
    QR_MATRIX(HF("self_attn.o_proj.weight"), GGUF("attn_output.weight"), LAYER(attn.o), HIDDEN, Q, COLS),
    QR_VECTOR(HF("self_attn.q_proj.bias"), GGUF("attn_q.bias"), LAYER(attn.q_bias), Q, COLS, 0),
    QR_VECTOR(HF("self_attn.k_proj.bias"), GGUF("attn_k.bias"), LAYER(attn.k_bias), KV, COLS, 0),
    QR_VECTOR(HF("self_attn.v_proj.bias"), GGUF("attn_v.bias"), LAYER(attn.v_bias), KV, COLS, 0),
    QR_VECTOR(HF("post_attention_layernorm.weight"), GGUF("ffn_norm.weight"), LAYER(mlp_norm), HIDDEN, NONE,
              0),
    QR_MATRIX(HF("mlp.gate_proj.weight"), GGUF("ffn_gate.weight"), LAYER(mlp.gate), FF, HIDDEN, ROWS),
    QR_MATRIX(HF("mlp.up_proj.weight"), GGUF("ffn_up.weight"), LAYER(mlp.up), FF, HIDDEN, ROWS),
    QR_MATRIX(HF("mlp.down_proj.weight"), GGUF("ffn_down.weight"), LAYER(mlp.down), HIDDEN, FF, COLS),
};

static qr_tensor forward(const qr_arch_model *m, qr_ops *ops)
{
    const qr_model_config *config = m->config;
    const qwen2_model *w = m->model;
    const qwen2_layer *layers = m->layers;
    qr_tensor x = qr_op_embed(ops, &w->embed);           /* [T, hidden] */
    qr_tensor delta = qr_op_tensor(ops, x.rows, x.cols); /* what a block adds to x */
    size_t mark = qr_ops_mark(ops);
    for (int i = 0; i < config->n_layers; i++) {
        const qwen2_layer *layer = &layers[i];
        qr_ops_release(ops, mark);
        qr_tensor h = i == 0 ? qr_op_rmsnorm(ops, x, layer->attn_norm, config->norm_eps)
                             : qr_op_add_rmsnorm(ops, x, delta, layer->attn_norm, config->norm_eps);
        qr_layer_attention(ops, config, m->rope, &layer->attn, i, h, delta);
        if (i == config->n_layers - 1)
            qr_layer_keep_logit_rows(ops, &x, &delta); /* [n_logit_rows, hidden] from here on */
        h = qr_op_add_rmsnorm(ops, x, delta, layer->mlp_norm, config->norm_eps);
        qr_layer_mlp(ops, config, &layer->mlp, h, delta);
    }
    return qr_op_add_rmsnorm(ops, x, delta, w->norm, config->norm_eps);
}

const qr_arch qr_arch_qwen2 = {
    .name = "qwen2",
    .hf_class = "Qwen2ForCausalLM",
    .gguf_name = "qwen2",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .model_bytes = sizeof(qwen2_model),
    .layer_bytes = sizeof(qwen2_layer),
    .forward = forward,
};
