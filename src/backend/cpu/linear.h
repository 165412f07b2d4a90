/* Matrix products on the CPU: packed weight layouts, the forms that activations are brought into, and the table
 * of kernels of an instruction set. Private to backend/cpu/.
 *
 * Layout. Sixteen rows of a weight (a panel) lie interleaved, so that one broadcast activation feeds sixteen
 * outputs: 4 bytes of k for each row side by side (8-bit; two nibbles, a step of 4 k in the low and one in the
 * high ones), 2 BF16 (a k pair), one F16 or F32. A panel is one run of units of whole cache lines, each the scales of its
 * blocks and then their numbers: scales in a place of their own would be a second stream, and cost a third of the
 * read bandwidth (Zen 4: 23 against 33 GB/s a core). The last panel is padded. All instruction sets read
 * the same layouts.
 *
 * Numerics. An output is one chain: exact int32 sums within a block of K, then one float accumulator that takes the
 * blocks in order (dense: one fused multiply-add a k, or a k pair). That chain does not depend on the number of
 * rows, on the tile an output falls into, or on the thread, so decode, chunk and recompute agree to the bit. Weights
 * are used as the format defines them, never re-rounded; activations are rounded to 8 bits a block of 32 for
 * block formats, to BF16 for BF16 weights where the CPU has a BF16 dot product, and not at all otherwise.
 * The generic kernels multiply dequantised weights with F32 activations: they are the reference.
 * Thread: as cpu.h.
 */
#ifndef QR_BACKEND_CPU_LINEAR_H
#define QR_BACKEND_CPU_LINEAR_H

#include "backend/cpu/cpu.h"

enum { CPU_PANEL = 16, CPU_BLOCK = 32, CPU_SUPER = 256 };

/* qr_weight.layout. CPU_LAYOUT_PARTS: as the container has it, read through the format's dequant_row. */
typedef enum cpu_layout {
    CPU_LAYOUT_PARTS,
    CPU_LAYOUT_F32,
    CPU_LAYOUT_F16,
    CPU_LAYOUT_BF16,
    CPU_LAYOUT_Q8_0, /* 2 blocks: d of each, then 8 steps of [16][4] bytes q + 128 each */
    CPU_LAYOUT_Q4_0, /* 2 blocks: d of each, then 4 x [16][4] bytes: step s (low), s + 4 (high), value d (q - 8) */
    CPU_LAYOUT_Q4_1, /* d, m, then as Q4_0, value d q + m */
    CPU_LAYOUT_Q4_K, /* d, dmin, 8 sub-block scales and minima as bytes; sub-blocks 2j (low) and 2j + 1 (high) */
    CPU_LAYOUT_Q6_K, /* d, 16 sub-block scales; per 16 k: 2 x 64 bytes of nibbles, 64 bytes of high bit pairs */
    CPU_LAYOUT_COUNT
} cpu_layout;

typedef struct cpu_layout_traits {
    const char *name;
    int unit;        /* k in a unit: a block or two */
    int scale_bytes; /* of a unit: they come first */
    int bytes;       /* of a unit, with its numbers */
} cpu_layout_traits;
extern const cpu_layout_traits cpu_layouts[CPU_LAYOUT_COUNT];

/* Where things are in a packed weight. */
typedef struct cpu_panels {
    const uint8_t *data;
    size_t panel_bytes;
    int64_t units; /* along K; the last may be half used */
    int64_t rows;  /* of the weight: the last panel may have fewer than CPU_PANEL */
} cpu_panels;
size_t cpu_panel_bytes(cpu_layout layout, int64_t cols);
cpu_panels cpu_panels_of(const qr_weight *weight);
static inline int64_t cpu_panel_count(int64_t rows) { return (rows + CPU_PANEL - 1) / CPU_PANEL; }

/* ---- Activations ---- */

typedef enum cpu_form {
    CPU_FORM_F32,  /* float [cols] */
    CPU_FORM_BF16, /* BF16 [cols], even */
    CPU_FORM_Q8,   /* a record of int8, see cpu_block */
    CPU_FORM_COUNT
} cpu_form;

/* A row as int8 in blocks of 32 with what every block format needs beside it, so that weights of different formats
 * share it: q[cols], padded to 64 bytes, then a cpu_block for each block. */
typedef struct cpu_block {
    float d;      /* x = d q */
    float ds;     /* d * (sum of q): takes a minimum along */
    int32_t c128; /* -128 * (sum of q): takes the offset of unsigned weights off */
    int32_t c32;  /* -32 * (sum of the first 16 q) */
} cpu_block;
/* Sums of a NaN's or an infinity's integers may leave the range: they wrap. */
static inline int32_t cpu_times(int32_t factor, int32_t sum)
{
    return (int32_t)((uint32_t)factor * (uint32_t)sum);
}
static inline int64_t cpu_record_blocks(int64_t cols)
{
    return (cols + 63) / 64 * 64;
} /* byte offset of the blocks */

/* Rows of x in one form. */
typedef struct cpu_rows {
    const uint8_t *data;
    int64_t row_bytes; /* between rows */
    int64_t cols;
} cpu_rows;

/* ---- Kernels ---- */

/* y[i][j] = x[i] . w[j] for `rows` rows from row0 and `panels` panels from panel0 on; y points at the first of them.
 * Only columns of the weight are written. */
typedef struct cpu_tile {
    const cpu_rows *x;
    int64_t row0, rows;
    const qr_weight *weight;
    cpu_panels w;
    int64_t panel0, panels;
    float *y;
    int64_t y_stride; /* floats between rows */
} cpu_tile;
typedef void (*cpu_tile_kernel)(const cpu_tile *tile);

/* Rows are cut into tiles of nearly equal size, at most `most`: 8 rows are 4 + 4, not 6 + 2. */
static inline int64_t cpu_tile_rows(int64_t left, int64_t most)
{
    if (left <= most)
        return left; /* a division costs as much as a block */
    int64_t tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* Panels that a kernel works on side by side at most: chunks are multiples of it. */
static inline int64_t cpu_panel_group(cpu_layout layout) { return layout >= CPU_LAYOUT_Q8_0 ? 2 : 4; }

typedef struct cpu_linear_kernels {
    const char *name;
    cpu_form form[CPU_LAYOUT_COUNT];
    cpu_tile_kernel tile[CPU_LAYOUT_COUNT];                          /* NULL: the layout is not used */
    void (*quantize)(const float *x, int64_t cols, uint8_t *record); /* cols: a multiple of 32 */
    void (*to_bf16)(const float *x, int64_t cols, uint16_t *y);
    void (*silu_mul)(const float *gate, const float *up, float *y,
                     int64_t n); /* y = gate / (1 + e^-gate) * up */
} cpu_linear_kernels;

extern const cpu_linear_kernels cpu_linear_generic, cpu_linear_avx2, cpu_linear_avx512,
    cpu_linear_avx512_bf16;
const cpu_linear_kernels *cpu_linear_for(cpu_isa isa, bool bf16);

/* ---- Entries of the backend table ---- */
qr_status cpu_weight_prepare(qr_device *device, qr_weight *weight, const qr_prepare_options *options,
                             qr_error *err);
void cpu_weight_release(qr_device *device, qr_weight *weight);
size_t cpu_weight_prepared_bytes(const qr_device *device, const qr_weight *weight,
                                 const qr_prepare_options *options);
qr_status cpu_vector_prepare(qr_device *device, const qr_weight *weight, const float **out, qr_error *err);
size_t cpu_linear_scratch_bytes(const qr_device *device, int64_t rows, int64_t cols);
void cpu_linear(qr_device *device, qr_tensor x, const qr_weight *const *w, const float *const *bias,
                int count, qr_tensor *y, void *scratch);
void cpu_linear_swiglu(qr_device *device, qr_tensor x, const qr_weight *gate, const qr_weight *up,
                       qr_tensor y, void *scratch);

/* Row `row` of a prepared weight, dequantised: cols floats. */
void cpu_weight_row(const cpu_device *device, const qr_weight *weight, int64_t row, float *out);

#endif
