/* qr_batch: one step's work as flat arrays; qr_kv_spec: what a layer keeps per token.
 *
 * A batch holds n_seqs sequences; the rows (tokens) of a sequence are contiguous and their positions
 * consecutive. There is no prefill or decode batch: a sequence has 1..chunk rows. Built by engine/batch.c in
 * the step arena, read by models and backends. Thread: immutable while a step runs.
 */
#ifndef QR_BACKEND_BATCH_H
#define QR_BACKEND_BATCH_H

#include <stdint.h>

typedef enum qr_kv_kind { QR_KV_PAGED } qr_kv_kind; /* later: latent, state, none */

typedef struct qr_kv_spec {
    qr_kv_kind kind;
    int32_t n_kv_heads, head_dim;
    int32_t window; /* 0: the whole context; else a query at position p sees (p - window, p] */
} qr_kv_spec;

/* Layers with equal windows share a group, and a group has one block table per sequence. */
#define QR_KV_GROUPS_MAX 2

typedef struct qr_batch {
    int32_t n_tokens; /* rows, > 0 */
    int32_t n_seqs;
    const int32_t *token_ids; /* [n_tokens] */
    const int32_t *positions; /* [n_tokens] absolute */
    const int32_t
        *source_row; /* [n_tokens] -1: the id stands in token_ids; else it is what the step before draws
                                 * for this logit row of its own (backends with step_wait). NULL: all -1 */
    const int32_t *seq_of_row;  /* [n_tokens] */
    const int32_t *seq_start;   /* [n_seqs + 1] first row of each sequence */
    const int32_t *context_len; /* [n_seqs] tokens whose KV is there after this step: last position + 1 */
    int32_t n_groups;
    const int32_t
        *block_table[QR_KV_GROUPS_MAX]; /* [n_seqs][table_stride] block ids; -1: out of the window */
    int32_t table_stride;
    int32_t block_size; /* tokens in a block */
    int32_t n_logit_rows;
    const int32_t *logit_rows; /* [n_logit_rows] rows whose logits are wanted, ascending */
} qr_batch;

#endif
