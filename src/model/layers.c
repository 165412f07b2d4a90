#include "model/layers.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"

void qr_layer_linear_sum(qr_ops *ops, const qr_weight *weight, const float *bias, qr_tensor x, qr_tensor y)
{
    qr_op_linear_sum(ops, x, weight, bias, y);
}

void qr_layer_attention(qr_ops *ops, const qr_model_config *config, const qr_rope_table *rope,
                        const qr_attention_weights *w, int layer, qr_tensor h, qr_tensor out)
{
    size_t mark = qr_ops_mark(ops);
    qr_tensor qkv[3]; /* [T, n_heads d], [T, n_kv_heads d] x 2 */
    qr_op_linear(ops, h, (const qr_weight *const[]){&w->q, &w->k, &w->v},
                 (const float *const[]){w->q_bias, w->k_bias, w->v_bias}, 3, qkv);
    const qr_head_norms norms = {.q = w->q_norm, .k = w->k_norm, .eps = config->norm_eps};
    qr_op_rope_store(ops, layer, qkv, &norms, rope);
    float scale = 1.0f / sqrtf((float)config->head_dim);
    qr_tensor mixed = qr_op_attention(ops, layer, qkv[0], config->n_heads, scale); /* [T, n_heads d] */
    qr_layer_linear_sum(ops, &w->o, w->o_bias, mixed, out);
    qr_ops_release(ops, mark);
}

static qr_activation activation_of(const qr_model_config *config)
{
    if (strcmp(config->activation, "gelu") == 0)
        return QR_ACT_GELU;
    return strcmp(config->activation, "gelu_tanh") == 0 ? QR_ACT_GELU_TANH : QR_ACT_SILU;
}

void qr_layer_mlp(qr_ops *ops, const qr_model_config *config, const qr_mlp_weights *w, qr_tensor h,
                  qr_tensor out)
{
    size_t mark = qr_ops_mark(ops);
    qr_activation activation = activation_of(config);
    qr_tensor gated; /* [T, intermediate] */
    if (activation == QR_ACT_SILU && w->gate_bias == NULL && w->up_bias == NULL) {
        gated = qr_op_linear_swiglu(ops, h, &w->gate, &w->up);
    } else {
        qr_tensor both[2];
        qr_op_linear(ops, h, (const qr_weight *const[]){&w->gate, &w->up},
                     (const float *const[]){w->gate_bias, w->up_bias}, 2, both);
        qr_op_act_mul(ops, both[0], both[1], activation);
        gated = both[0];
    }
    qr_layer_linear_sum(ops, &w->down, w->down_bias, gated, out);
    qr_ops_release(ops, mark);
}

void qr_layer_keep_logit_rows(qr_ops *ops, qr_tensor *x, qr_tensor *delta)
{
    const qr_batch *batch = qr_ops_batch(ops);
    QR_ASSERT(batch->n_logit_rows <= batch->n_tokens);
    if (batch->n_logit_rows == batch->n_tokens)
        return;
    *x = qr_op_gather(ops, *x, batch->logit_rows, batch->n_logit_rows);
    *delta = qr_op_gather(ops, *delta, batch->logit_rows, batch->n_logit_rows);
}
