/* KV pages. Blocks go in runs of some 256 tokens: [run][layer][K, then V][head][block of the run]. A head's blocks of a
 * run lie side by side, so that a sequence whose blocks ascend, as they do in a fresh pool, is read in streams (32 GB/s
 * against 12 for 2 KB pieces on a Zen 4 core); all layers of a run are neighbours, so that a short context touches few
 * 2 MB pages (zeroing one takes some 80 us). A head's K in a block lies [key group][head_dim][lanes], so that the
 * scores of `lanes` keys come from whole vectors, and its V [key][head_dim].
 * Private to kv.c and attention.c. Thread: the engine thread and the pool within an op. */
#ifndef QR_BACKEND_CPU_KV_H
#define QR_BACKEND_CPU_KV_H

#include "backend/cpu/vector.h"

typedef struct cpu_pages {
    cpu_kv base;                       /* first; pages[layer]: where the layer lies in run 0 */
    const cpu_vector_kernels *kernels; /* whose key_lanes the layout has */
    size_t item_bytes;
    char *memory;
    size_t memory_bytes, run_bytes;
    int run_shift; /* a run has 1 << run_shift blocks */
} cpu_pages;

/* A head's keys, or values, in a block. */
static inline char *cpu_pages_head(const cpu_pages *pages, int layer, int64_t block, int64_t head, bool value)
{
    const qr_kv *kv = &pages->base.base;
    const qr_kv_spec *spec = &kv->specs[layer];
    int64_t slot = (((value ? spec->n_kv_heads : 0) + head) << pages->run_shift) +
                   (block & ((1 << pages->run_shift) - 1));
    size_t block_bytes = (size_t)spec->head_dim * (size_t)kv->block_size * pages->item_bytes;
    size_t run = (size_t)(block >> pages->run_shift);
    return (char *)pages->base.pages[layer] + run * pages->run_bytes + (size_t)slot * block_bytes;
}

#endif
