#include "backend/cpu/linear.h"

#include "backend/cpu/pack.h"
#include "base/mem.h"

/* The reference: weights dequantised a stretch of K at a time, F32 activations, sums in sixteen lanes that are folded
 * in one order. It reads every layout, and the container's own blocks, so any format works on any CPU. */
enum { STRETCH = 1024, LANES = 16 };

static float fold(const float *lanes)
{
    float sum[LANES / 2];
    for (int i = 0; i < LANES / 2; i++)
        sum[i] = lanes[i] + lanes[i + LANES / 2];
    for (int width = LANES / 4; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            sum[i] += sum[i + width];
    return sum[0];
}

static float dot(const float *a, const float *b, int64_t n)
{
    float lanes[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES)
        for (int i = 0; i < LANES; i++)
            lanes[i] += a[k + i] * b[k + i];
    for (int i = 0; k < n; k++, i++)
        lanes[i] += a[k] * b[k];
    return fold(lanes);
}

static void output_column(const cpu_tile *tile, int64_t row_of_weight, float *y)
{
    _Alignas(64) float w[STRETCH];
    for (int64_t k = 0; k < tile->weight->cols; k += STRETCH) {
        int64_t n = QR_MIN(STRETCH, tile->weight->cols - k);
        cpu_weight_stretch(tile->weight, row_of_weight, k, n, w);
        for (int64_t i = 0; i < tile->rows; i++) {
            const float *x = (const float *)(tile->x->data + (tile->row0 + i) * tile->x->row_bytes) + k;
            float part = dot(x, w, n);
            y[i * tile->y_stride] = k == 0 ? part : y[i * tile->y_stride] + part;
        }
    }
}

void cpu_tile_parts(const cpu_tile *tile)
{
    int64_t first = tile->panel0 * CPU_PANEL;
    int64_t end = QR_MIN(first + tile->panels * CPU_PANEL, tile->weight->rows);
    for (int64_t row = first; row < end; row++)
        output_column(tile, row, tile->y + (row - first));
}

const cpu_linear_kernels cpu_linear_generic = {
    .name = "generic",
    .tile = {cpu_tile_parts, cpu_tile_parts, cpu_tile_parts, cpu_tile_parts, cpu_tile_parts, cpu_tile_parts,
             cpu_tile_parts, cpu_tile_parts, cpu_tile_parts},
};
