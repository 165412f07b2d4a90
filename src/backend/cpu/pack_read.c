#include "backend/cpu/pack.h"

#include "base/assert.h"
#include "base/mem.h"
#include "quant/block.h"

/* One row of a panel, found by plain index arithmetic: slow and obvious. The packers and kernels are tested
 * against it. */
typedef struct panel_row {
    const uint8_t *panel;
    int r; /* row in the panel */
} panel_row;

static float half_at(const uint8_t *halves, int64_t i)
{
    uint16_t half;
    memcpy(&half, halves + 2 * i, 2);
    return qr_block_half(half);
}

static const uint8_t *unit_at(panel_row p, cpu_layout layout, int64_t k)
{
    return p.panel + k / cpu_layouts[layout].unit * cpu_layouts[layout].bytes;
}

static float read_f32(panel_row p, int64_t k)
{
    float value;
    memcpy(&value, p.panel + (k * CPU_PANEL + p.r) * 4, 4);
    return value;
}

static float read_f16(panel_row p, int64_t k) { return half_at(p.panel, k * CPU_PANEL + p.r); }

static float read_bf16(panel_row p, int64_t k)
{
    uint16_t value;
    memcpy(&value, p.panel + (k / 2 * CPU_PANEL + p.r) * 4 + k % 2 * 2, 2);
    return qr_bf16_to_f32(value);
}

static float read_q8_0(panel_row p, int64_t k)
{
    const uint8_t *unit = unit_at(p, CPU_LAYOUT_Q8_0, k);
    int q = unit[64 + k % 64 / 4 * 64 + p.r * 4 + k % 4] - 128;
    return half_at(unit, k % 64 / 32 * CPU_PANEL + p.r) * (float)q;
}

/* Four bits of step k / 4 in a block of 32. */
static int nibble(const uint8_t *numbers, int r, int64_t k)
{
    int64_t step = k / 4;
    return numbers[step % 4 * 64 + r * 4 + k % 4] >> (step / 4 * 4) & 15;
}

static float read_q4_0(panel_row p, int64_t k)
{
    const uint8_t *unit = unit_at(p, CPU_LAYOUT_Q4_0, k);
    int64_t block = k % 64 / 32;
    return half_at(unit, block * CPU_PANEL + p.r) * (float)(nibble(unit + 64 + block * 256, p.r, k % 32) - 8);
}

static float read_q4_1(panel_row p, int64_t k)
{
    const uint8_t *unit = unit_at(p, CPU_LAYOUT_Q4_1, k);
    return half_at(unit, p.r) * (float)nibble(unit + 64, p.r, k % 32) + half_at(unit, CPU_PANEL + p.r);
}

static float read_q4_k(panel_row p, int64_t k)
{
    const uint8_t *unit = unit_at(p, CPU_LAYOUT_Q4_K, k);
    int64_t sub = k % CPU_SUPER / 32, step = k % 32 / 4;
    int byte = unit[320 + sub / 2 * 512 + step * 64 + p.r * 4 + k % 4];
    float d = half_at(unit, p.r) * (float)unit[64 + sub * CPU_PANEL + p.r];
    float low = half_at(unit, CPU_PANEL + p.r) * (float)unit[192 + sub * CPU_PANEL + p.r];
    return d * (float)(byte >> (sub % 2 * 4) & 15) - low;
}

static float read_q6_k(panel_row p, int64_t k)
{
    const uint8_t *unit = unit_at(p, CPU_LAYOUT_Q6_K, k);
    int64_t sub = k % CPU_SUPER / 16, step = k % 16 / 4, at = p.r * 4 + k % 4;
    const uint8_t *numbers = unit + 320 + sub * 192;
    int low = numbers[step % 2 * 64 + at] >> (step / 2 * 4) & 15, high = numbers[128 + at] >> (step * 2) & 3;
    int scale = (int8_t)unit[32 + sub * CPU_PANEL + p.r];
    return half_at(unit, p.r) * (float)scale * (float)((low | high << 4) - 32);
}

static float (*const readers[CPU_LAYOUT_COUNT])(panel_row, int64_t) = {
    [CPU_LAYOUT_F32] = read_f32,   [CPU_LAYOUT_F16] = read_f16,   [CPU_LAYOUT_BF16] = read_bf16,
    [CPU_LAYOUT_Q8_0] = read_q8_0, [CPU_LAYOUT_Q4_0] = read_q4_0, [CPU_LAYOUT_Q4_1] = read_q4_1,
    [CPU_LAYOUT_Q4_K] = read_q4_k, [CPU_LAYOUT_Q6_K] = read_q6_k,
};

static void parts_stretch(const qr_weight *w, int64_t row, int64_t k0, int64_t n, float *out)
{
    size_t at = (size_t)row * qr_format_row_bytes(w->format, w->cols) + qr_format_row_bytes(w->format, k0);
    qr_format_get(w->format)->dequant_row((const uint8_t *)w->part[QR_PART_DATA].data + at, out, n);
}

void cpu_weight_stretch(const qr_weight *weight, int64_t row, int64_t k0, int64_t n, float *out)
{
    QR_ASSERT(row >= 0 && row < weight->rows && k0 % CPU_SUPER == 0 && k0 + n <= weight->cols);
    if (weight->layout == CPU_LAYOUT_PARTS) {
        parts_stretch(weight, row, k0, n, out);
        return;
    }
    cpu_panels w = cpu_panels_of(weight);
    panel_row p = {.panel = w.data + (size_t)(row / CPU_PANEL) * w.panel_bytes, .r = (int)(row % CPU_PANEL)};
    float (*read)(panel_row, int64_t) = readers[weight->layout];
    for (int64_t k = 0; k < n; k++)
        out[k] = read(p, k0 + k);
}

void cpu_weight_row(const cpu_device *device, const qr_weight *weight, int64_t row, float *out)
{
    (void)device;
    cpu_weight_stretch(weight, row, 0, weight->cols, out);
}
