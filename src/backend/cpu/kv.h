/* KV pages. A layer's memory is [K, then V][head][block]: a head's blocks lie side by side, so that a sequence whose
 * blocks ascend, as they do in a fresh pool, is read as one stream (32 GB/s against 12 for 2 KB pieces on a Zen 4
 * core). A head's K in a block lies [key group][head_dim][lanes], so that the scores of `lanes` keys come from
 * whole vectors, and its V [key][head_dim].
 * Private to kv.c and attention.c. Thread: the engine thread and the pool within an op. */
#ifndef QR_BACKEND_CPU_KV_H
#define QR_BACKEND_CPU_KV_H

#include "backend/cpu/vector.h"

typedef struct cpu_pages {
    cpu_kv base;                       /* first */
    const cpu_vector_kernels *kernels; /* whose key_lanes the layout has */
    size_t item_bytes;
} cpu_pages;

static inline char *cpu_pages_head(const cpu_pages *pages, int layer, int64_t block, int64_t head, bool value)
{
    const qr_kv *kv = &pages->base.base;
    const qr_kv_spec *spec = &kv->specs[layer];
    int64_t run = (value ? spec->n_kv_heads : 0) + head;
    size_t index = (size_t)(run * kv->n_blocks + block) * (size_t)spec->head_dim * (size_t)kv->block_size;
    return (char *)pages->base.pages[layer] + index * pages->item_bytes;
}

#endif
