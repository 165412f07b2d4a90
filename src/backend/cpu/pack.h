/* Reading packed weights back and writing them: pack.c plans and runs it, pack_read.c decodes, pack_avx2.c is the
 * fast path of loading. Private to backend/cpu/. Thread: any, on different panels.
 */
#ifndef QR_BACKEND_CPU_PACK_H
#define QR_BACKEND_CPU_PACK_H

#include "backend/cpu/linear.h"

/* n values of row `row` from column k0, a multiple of CPU_SUPER, on. Every layout. */
void cpu_weight_stretch(const qr_weight *weight, int64_t row, int64_t k0, int64_t n, float *out);

/* Writes panel `panel` of `weight` in `layout` from its parts; `out` is zeroed memory. */
typedef void (*cpu_pack_panel)(const qr_weight *weight, cpu_layout layout, int64_t panel, uint8_t *out);
void cpu_pack_panel_generic(const qr_weight *weight, cpu_layout layout, int64_t panel, uint8_t *out);
void cpu_pack_panel_avx2(const qr_weight *weight, cpu_layout layout, int64_t panel, uint8_t *out);
/* Seeded random numbers instead: normal for dense layouts, with the spread of normal ones for blocks. They depend on
 * seed, the weight's name and the panel alone. */
void cpu_pack_panel_dummy(const qr_weight *weight, cpu_layout layout, int64_t panel, uint64_t seed,
                          uint8_t *out);

/* Gives back the memory of all packed weights. */
void cpu_regions_close(cpu_device *device);

/* The generic tile kernel: for CPU_LAYOUT_PARTS on every instruction set. */
void cpu_tile_parts(const cpu_tile *tile);

#endif
