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
    int64_t rows, cols;
    qr_weight weight;  /* vectors: the source of `*vector` */
    qr_weight *matrix; /* in the architecture's struct, or NULL */
    const float **vector;
} net_tensor;

struct qr_net {
    const qr_weights *weights;
    const qr_model_config *config;
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

#endif
