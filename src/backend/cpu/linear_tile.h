/* What the tile kernels of all instruction sets share: where outputs go, and fetching ahead. Private to backend/cpu/.
 * Thread: as cpu.h. */
#ifndef QR_BACKEND_CPU_LINEAR_TILE_H
#define QR_BACKEND_CPU_LINEAR_TILE_H

#include "backend/cpu/linear.h"
#include "backend/cpu/unroll.h"
#include "base/mem.h"

/* Where output (row of the tile, first column of the panel) goes. */
static inline float *cpu_tile_at(const cpu_tile *t, int64_t row, int64_t panel)
{
    return t->y + row * t->y_stride + (panel - t->panel0) * CPU_PANEL;
}

/* While a kernel works on some panels it fetches the next ones into L2, a few lines a block of K, spread evenly over the
 * tiles of rows: memory is read at the pace of the arithmetic. (Few rows need none of it: their products wait for
 * memory, and the loads run ahead by themselves.) Zen 4, one core, Q8_0 with 8 rows: 248 GOP/s without, 326 with. */
typedef struct cpu_ahead {
    const uint8_t *next;
    int64_t step;  /* bytes a call; 0: nothing to fetch */
    int64_t calls; /* in a tile */
} cpu_ahead;

/* For `panels` panels from `panel` on, in tiles of up to rows_max rows that make `calls` calls. It may run past the tile:
 * a thread's next chunk follows the one it has. */
static inline cpu_ahead cpu_ahead_of(const cpu_tile *t, int64_t panel, int64_t panels, int64_t rows_max,
                                     int64_t calls)
{
    cpu_ahead ahead = {.next = t->w.data + (size_t)panel * t->w.panel_bytes, .calls = QR_MAX(calls, 1)};
    panels = QR_MIN(panels, cpu_panel_count(t->w.rows) - panel);
    if (panels > 0) {
        int64_t tiles = t->rows <= rows_max ? 1 : (t->rows + rows_max - 1) / rows_max,
                all = tiles * ahead.calls;
        int64_t lines = panels * (int64_t)t->w.panel_bytes / 64;
        ahead.step = (lines + all - 1) / all * 64;
    }
    return ahead;
}

static inline __attribute__((always_inline)) void cpu_fetch_ahead(cpu_ahead *ahead)
{
    for (int64_t i = 0; i < ahead->step; i += 64)
        __builtin_prefetch(ahead->next + i, 0, 2); /* into L2 */
    ahead->next += ahead->step;
}

#endif
