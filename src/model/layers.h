/* Weights and layers that architectures share. A projection is qr_layer_linear_sum or one of the fused calls below, so
 * that adapters and tensor parallelism have one place to come in: no architecture file knows the rank. Shapes are those
 * of a rank's share: its heads, its columns of the gated half.
 * Thread: as model.h.
 */
#ifndef QR_MODEL_LAYERS_H
#define QR_MODEL_LAYERS_H

#include "backend/ops.h"
#include "loader/config.h"

typedef struct qr_attention_weights {
    qr_weight q, k, v, o; /* [n_heads d, hidden] [n_kv_heads d, hidden] x 2, [hidden, n_heads d] */
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* NULL: none */
    const float *q_norm, *k_norm;                   /* [d]; NULL: none */
} qr_attention_weights;

typedef struct qr_mlp_weights {
    qr_weight gate, up, down;                     /* [intermediate, hidden] x 2, [hidden, intermediate] */
    const float *gate_bias, *up_bias, *down_bias; /* NULL: none */
} qr_mlp_weights;

/* y = x W^T + bias into y [T, N]: back to the residual stream, over the columns of W that all ranks have together. */
void qr_layer_linear_sum(qr_ops *ops, const qr_weight *weight, const float *bias, qr_tensor x, qr_tensor y);
/* Causal self-attention with rope, grouped queries, and the norms and biases that the weights have:
 * h [T, hidden] -> out [T, hidden]. Stores the rows' keys and values. */
void qr_layer_attention(qr_ops *ops, const qr_model_config *config, const qr_rope_table *rope,
                        const qr_attention_weights *w, int layer, qr_tensor h, qr_tensor out);
/* down(act(gate(h)) * up(h)): h [T, hidden] -> out [T, hidden]. */
void qr_layer_mlp(qr_ops *ops, const qr_model_config *config, const qr_mlp_weights *w, qr_tensor h,
                  qr_tensor out);
/* Keeps only the rows whose logits are wanted (in the last layer, once its keys and values are stored). */
void qr_layer_keep_logit_rows(qr_ops *ops, qr_tensor *x, qr_tensor *delta);

#endif
