/* Inside the model layer: what a qr_net holds. bind.c fills it, model.c loads and runs it. Thread: as model.h. */
#ifndef QR_MODEL_NET_H
#define QR_MODEL_NET_H

#include "base/arena.h"
#include "base/map.h"
#include "model/arch.h"

/* A tensor of the checkpoint and where it goes. */
typedef struct net_tensor {
    const qr_arch_row *row;
    const char *name;              /* arena */
    const qr_weights_entry *entry; /* NULL: a net without weights (load format dummy) */
    int64_t rows, cols;            /* of the whole */
    qr_weight weight;              /* this rank's share; vectors: the source of `*vector` */
    size_t row_stride;             /* bytes between its rows in the file */
    void *cut; /* its rows one after the other, where the file has them apart and the device reads in place */
    size_t cut_bytes;
    qr_weight *matrix; /* in the architecture's struct, or NULL */
    const float **vector;
} net_tensor;

struct qr_net {
    const qr_weights *weights;
    const qr_model_config *config;
    qr_model_config own; /* what the forward sees: this rank's heads and width */
    int rank, ranks;
    const qr_arch *arch;
    qr_arena arena;
    void *model, *layers; /* the architecture's structs */
    net_tensor *tensors;
    size_t tensor_count, tensor_max;
    const qr_weight *embedding, *head;
    const float *freq_factors; /* GGUF's rope_freqs.weight, or NULL */
    qr_kv_spec *specs;         /* [n_layers] */
    qr_rope_table rope;
    uint64_t parameters;
    qr_device *device; /* once loaded */
};

qr_status qr_net_bind_tensors(qr_net *net, qr_error *err);

/* ---- share.c: what a rank has of the whole ---- */

/* Fills net->own; refuses what so many ranks cannot share. */
qr_status qr_net_share_config(qr_net *net, qr_error *err);
/* Cuts tensor->weight, which is the whole in its file, down to the rank's share. */
qr_status qr_net_share_tensor(const qr_net *net, net_tensor *tensor, qr_error *err);
/* Puts the rows of a share whose file has them apart one after the other in memory, as weight->part says then.
 * Nothing to do for others. qr_net_uncut gives the memory back. */
qr_status qr_net_cut(net_tensor *tensor, qr_weight *weight, qr_error *err);
void qr_net_uncut(net_tensor *tensor);

#endif
