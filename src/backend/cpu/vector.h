/* The CPU's ops that are not matrix products: norms, activations, rope, KV pages and attention. cpu.c puts the
 * cpu_* functions into its backend table; cpu_vector_for() gives the kernels of an instruction set, chosen once
 * when the device opens (device->vector). Private to backend/cpu/.
 *
 * Determinism: a row's result depends on that row alone. Sums run in lanes of a fixed number and are folded in one
 * order; exp, sin and cos are polynomials of ours, not libm's. Each instruction set has its own bits.
 * Thread: the engine thread; rows are shared out to the pool when the work is worth a wake-up.
 */
#ifndef QR_BACKEND_CPU_VECTOR_H
#define QR_BACKEND_CPU_VECTOR_H

#include "backend/cpu/cpu.h"

/* Rows of a tile of attention that one kernel call handles at most, and keys in a tile: both are part of the
 * numerics only through CPU_ATTENTION_TILE (the walk over keys restarts at its multiples). */
enum { CPU_ATTENTION_ROWS = 6, CPU_ATTENTION_TILE = 256 };
#define CPU_ATTENTION_EMPTY (-1e30f) /* the maximum of no scores: finite, so that differences are defined */

/* One tile of keys for up to CPU_ATTENTION_ROWS query rows (rows = queries x heads of one KV group).
 * K lies as [key group][head_dim][lanes], V as [key][head_dim], both in blocks (pages) of block_size keys. */
typedef struct cpu_attention_tile {
    const void *const *k_blocks; /* [blocks of the tile] pages of this KV head */
    const void *const
        *v_blocks; /* the same; with `ahead` set, v_blocks = k_blocks + blocks, then `ahead` more */
    int32_t ahead; /* > 0: pages come from memory; prefetch so many blocks ahead */
    int32_t start; /* slot of the tile's first key in the first block */
    int32_t block_size, head_dim;
    int32_t rows;
    const float *q; /* [rows][head_dim], scaled by softmax scale x log2(e) */
    const int32_t *first,
        *last;        /* [rows] keys seen: tile offsets [first, last), first < last unless nothing is seen */
    float *scores;    /* [rows][CPU_ATTENTION_TILE] scratch, 64-byte aligned */
    float *out;       /* [rows][head_dim]: sum of 2^(score - max) x value */
    float *max, *sum; /* [rows]; of a row that sees nothing: CPU_ATTENTION_EMPTY and 0 */
} cpu_attention_tile;

typedef void (*cpu_attention_kernel)(const cpu_attention_tile *tile);

typedef struct cpu_vector_kernels {
    const char *name;
    void (*rmsnorm)(const float *x, const float *w, float eps, int64_t n, float *y);
    void (*add)(float *x, const float *y, int64_t n);
    void (*add_rmsnorm)(float *x, const float *delta, const float *w, float eps, int64_t n, float *y);
    /* gate = act(gate) * up */
    void (*silu_mul)(float *gate, const float *up, int64_t n);
    void (*gelu_mul)(float *gate, const float *up, int64_t n);
    void (*gelu_tanh_mul)(float *gate, const float *up, int64_t n);
    /* cs: rotary/2 cosines, then rotary/2 sines */
    void (*rope_halves)(float *x, const float *cs, int32_t rotary);
    void (*rope_pairs)(float *x, const float *cs, int32_t rotary);
    void (*to_f16)(const float *x, uint16_t *y, int64_t n); /* saturates at +-65504 */
    void (*to_bf16)(const float *x, uint16_t *y, int64_t n);
    cpu_attention_kernel
        attention[3];  /* by qr_dtype of the KV cache; head_dim and block_size multiples of 8 */
    int32_t key_lanes; /* keys side by side in a K page that these kernels read */
    /* acc = acc 2^(acc_max - m) + part 2^(part_max - m) with m the larger maximum */
    void (*attention_merge)(float *acc, float *acc_max, float *acc_sum, const float *part, float part_max,
                            float part_sum, int32_t head_dim);
    void (*scale)(float *y, const float *x, float factor, int64_t n);
} cpu_vector_kernels;

extern const cpu_vector_kernels cpu_vector_generic, cpu_vector_avx2, cpu_vector_avx512;
const cpu_vector_kernels *cpu_vector_for(cpu_isa isa);

/* ---- The ops of the backend table (contracts in backend/ops.h) ---- */
void cpu_embed(qr_device *device, const qr_weight *table, const int32_t *ids, qr_tensor y);
void cpu_rmsnorm(qr_device *device, qr_tensor x, const float *w, float eps, qr_tensor y);
void cpu_add(qr_device *device, qr_tensor x, qr_tensor y);
void cpu_add_rmsnorm(qr_device *device, qr_tensor x, qr_tensor delta, const float *w, float eps, qr_tensor y);
void cpu_act_mul(qr_device *device, qr_tensor gate, qr_tensor up, qr_activation activation);
void cpu_head_norm(qr_device *device, qr_tensor x, int32_t head_dim, const float *w, float eps);
qr_status cpu_rope_prepare(qr_device *device, qr_rope_table *table, int64_t positions, qr_error *err);
void cpu_rope_release(qr_device *device, qr_rope_table *table);
void cpu_rope(qr_device *device, qr_tensor x, int32_t head_dim, const qr_rope_table *table,
              const int32_t *positions);
qr_status cpu_kv_open(qr_device *device, const qr_kv_spec *specs, int n_layers, int32_t n_blocks,
                      int32_t block_size, qr_dtype dtype, qr_kv **out, qr_error *err);
void cpu_kv_close(qr_kv *kv);
void cpu_kv_store(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor k, qr_tensor v);
size_t cpu_attention_scratch_bytes(const qr_device *device, int32_t n_heads, int32_t head_dim,
                                   const qr_batch *batch);
void cpu_attention(qr_device *device, qr_kv *kv, int layer, const qr_batch *batch, qr_tensor q,
                   int32_t n_heads, float scale, qr_tensor y, void *scratch);
void cpu_gather(qr_device *device, qr_tensor x, const int32_t *rows, qr_tensor y);

#endif
