/* KV pages. A layer's memory is [block][K of all heads, then V of all heads]; a head's K in a block lies
 * [key group][head_dim][lanes], so that the scores of `lanes` keys come from whole vectors, and its V
 * [key][head_dim]. Private to kv.c and attention.c. Thread: the engine thread and the pool within an op. */
#ifndef QR_BACKEND_CPU_KV_H
#define QR_BACKEND_CPU_KV_H

#include "backend/cpu/vector.h"

typedef struct cpu_pages {
    cpu_kv base;                       /* first */
    const cpu_vector_kernels *kernels; /* whose key_lanes the layout has */
    size_t item_bytes;
} cpu_pages;

/* K of a head in a block; its V lies kv_heads heads further. */
static inline char *cpu_pages_head(const cpu_pages *pages, int layer, int64_t block, int64_t head, bool value)
{
    const qr_kv_spec *spec = &pages->base.base.specs[layer];
    int64_t heads = spec->n_kv_heads, per_head = (int64_t)spec->head_dim * pages->base.base.block_size;
    int64_t index = (block * 2 * heads + (value ? heads : 0) + head) * per_head;
    return (char *)pages->base.pages[layer] + (size_t)index * pages->item_bytes;
}

#endif
