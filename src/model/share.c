/* Tensor parallelism: the share of a checkpoint that a rank has, by the dimensions that a row of the table names. */
#include <string.h>

#include "base/mem.h"
#include "model/net.h"

/* Rows of the vocabulary are dealt out in such pieces, so that products stay aligned. */
enum { VOCAB_STEP = 8 };

typedef struct share {
    int64_t begin, count;
} share;

static share part_of(int64_t all, int rank, int ranks, int64_t step)
{
    int64_t begin = all * rank / ranks / step * step;
    int64_t end = rank == ranks - 1 ? all : all * (rank + 1) / ranks / step * step;
    return (share){begin, end - begin};
}

/* Fewer key-value heads than ranks: neighbours have the same one. */
static share kv_share(const qr_net *net)
{
    const qr_model_config *c = net->config;
    int64_t heads = net->own.n_kv_heads;
    int64_t first =
        c->n_kv_heads >= net->ranks ? heads * net->rank : (int64_t)net->rank * c->n_kv_heads / net->ranks;
    return (share){first * c->head_dim, heads * c->head_dim};
}

static share share_of(const qr_net *net, qr_dim dim, int64_t all)
{
    switch (dim) {
    case QR_DIM_KV: return kv_share(net);
    case QR_DIM_Q:
    case QR_DIM_FF: return part_of(all, net->rank, net->ranks, 1);
    case QR_DIM_VOCAB: return part_of(all, net->rank, net->ranks, VOCAB_STEP);
    case QR_DIM_ONE:
    case QR_DIM_HIDDEN:
    case QR_DIM_HEAD: break; /* every rank has them whole */
    }
    return (share){0, all};
}

qr_status qr_net_share_config(qr_net *net, qr_error *err)
{
    const qr_model_config *c = net->config;
    int ranks = net->ranks;
    net->own = *c;
    if (ranks == 1)
        return QR_OK;
    if (c->n_heads % ranks != 0)
        return qr_fail(err, QR_UNSUPPORTED, "tensor parallelism: %d ranks cannot share %d query heads", ranks,
                       c->n_heads);
    if (c->n_kv_heads % ranks != 0 && ranks % c->n_kv_heads != 0)
        return qr_fail(err, QR_UNSUPPORTED,
                       "tensor parallelism: %d ranks cannot share or repeat %d key-value heads", ranks,
                       c->n_kv_heads);
    if (c->intermediate % ranks != 0)
        return qr_fail(err, QR_UNSUPPORTED,
                       "tensor parallelism: %d ranks cannot share an intermediate size of %d", ranks,
                       c->intermediate);
    if (c->vocab < VOCAB_STEP * ranks)
        return qr_fail(err, QR_UNSUPPORTED,
                       "tensor parallelism: %d ranks are too many for a vocabulary of %d", ranks, c->vocab);
    net->own.n_heads = c->n_heads / ranks;
    net->own.n_kv_heads = QR_MAX(1, c->n_kv_heads / ranks);
    net->own.intermediate = c->intermediate / ranks;
    return QR_OK;
}

static qr_status cuts_a_block(const net_tensor *tensor, int64_t count, int ranks, qr_error *err)
{
    const qr_format_traits *format = qr_format_get(tensor->weight.format);
    return qr_fail(err, QR_UNSUPPORTED,
                   "tensor parallelism: %s: %d ranks share its %lld columns by %lld, which are not whole "
                   "blocks of %d (%s)",
                   tensor->name, ranks, (long long)tensor->cols, (long long)count, format->block,
                   format->name);
}

qr_status qr_net_share_tensor(const qr_net *net, net_tensor *tensor, qr_error *err)
{
    const qr_arch_row *row = tensor->row;
    qr_weight *w = &tensor->weight;
    const qr_format_traits *format = qr_format_get(w->format);
    share rows = {0, w->rows}, cols = {0, w->cols};
    if (row->shard == QR_SHARD_ROWS)
        rows = share_of(net, row->rows, w->rows);
    if (row->shard == QR_SHARD_COLS)
        cols = share_of(net, row->cols, w->cols);
    if (cols.count < w->cols && (cols.begin % format->block != 0 || cols.count % format->block != 0))
        return cuts_a_block(tensor, cols.count, net->ranks, err);
    if (tensor->entry != NULL) {
        tensor->row_stride = tensor->entry->bytes / (size_t)w->rows;
        size_t rows_at = (size_t)rows.begin * tensor->row_stride;
        size_t cols_at = (size_t)(cols.begin / format->block) * (size_t)format->bytes;
        w->part[QR_PART_DATA] = (qr_weight_part){tensor->entry->data + rows_at + cols_at,
                                                 (size_t)rows.count * tensor->row_stride - cols_at};
    }
    w->row_begin = rows.begin;
    w->rows_all = w->rows;
    w->rows = rows.count;
    w->cols = cols.count;
    return QR_OK;
}

/* ---- Rows that the file has apart ---- */

qr_status qr_net_cut(net_tensor *tensor, qr_weight *weight, qr_error *err)
{
    if (weight->cols == tensor->cols || tensor->entry == NULL)
        return QR_OK;
    size_t row = qr_format_row_bytes(weight->format, weight->cols), bytes = row * (size_t)weight->rows;
    uint8_t *cut = qr_pages_map(bytes, false);
    if (cut == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "%s: the system refuses %zu bytes for a rank's columns",
                       weight->name, bytes);
    const uint8_t *from = weight->part[QR_PART_DATA].data;
    for (int64_t i = 0; i < weight->rows; i++)
        memcpy(cut + (size_t)i * row, from + (size_t)i * tensor->row_stride, row);
    weight->part[QR_PART_DATA] = (qr_weight_part){cut, bytes};
    tensor->cut = cut;
    tensor->cut_bytes = bytes;
    return QR_OK;
}

void qr_net_uncut(net_tensor *tensor)
{
    if (tensor->cut != NULL)
        qr_pages_unmap(tensor->cut, tensor->cut_bytes);
    tensor->cut = NULL;
}
