#include "backend/cpu/pack.h"

#include "base/assert.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/format_headers.inc"

/* ---- From the container's blocks, row by row ---- */

typedef struct panel_out {
    uint8_t *panel;
    int r; /* row in the panel */
} panel_out;

/* The unit that block `block` of `size` k lies in. */
static uint8_t *unit_of(panel_out p, cpu_layout layout, int64_t block, int size)
{
    return p.panel + block * size / cpu_layouts[layout].unit * cpu_layouts[layout].bytes;
}

static void put_half(uint8_t *halves, int64_t i, uint16_t half) { memcpy(halves + 2 * i, &half, 2); }

static void write_dense(const qr_weight *w, cpu_layout layout, int64_t row, panel_out p)
{
    float values[CPU_SUPER];
    for (int64_t k = 0; k < w->cols; k++) {
        if (k % CPU_SUPER == 0)
            cpu_weight_stretch(w, row, k, QR_MIN(CPU_SUPER, w->cols - k), values);
        float value = values[k % CPU_SUPER];
        if (layout == CPU_LAYOUT_F32)
            memcpy(p.panel + (k * CPU_PANEL + p.r) * 4, &value, 4);
        else if (layout == CPU_LAYOUT_F16)
            put_half(p.panel, k * CPU_PANEL + p.r, qr_f32_to_f16(value));
        else
            put_half(p.panel, (k / 2 * CPU_PANEL + p.r) * 2 + k % 2, qr_f32_to_bf16(value));
    }
}

static void write_q8_0(const qr_q8_0_block *blocks, int64_t count, panel_out p)
{
    for (int64_t b = 0; b < count; b++) {
        uint8_t *unit = unit_of(p, CPU_LAYOUT_Q8_0, b, 32), *numbers = unit + 64 + b % 2 * 512;
        put_half(unit, b % 2 * CPU_PANEL + p.r, blocks[b].d);
        for (int k = 0; k < 32; k++)
            numbers[k / 4 * 64 + p.r * 4 + k % 4] = (uint8_t)(blocks[b].q[k] + 128);
    }
}

static void write_q5_0(const qr_q5_0_block *blocks, int64_t count, panel_out p)
{
    for (int64_t b = 0; b < count; b++) {
        uint8_t *unit = unit_of(p, CPU_LAYOUT_Q8_0, b, 32), *numbers = unit + 64 + b % 2 * 512;
        uint32_t high;
        memcpy(&high, blocks[b].high, 4);
        put_half(unit, b % 2 * CPU_PANEL + p.r, blocks[b].d);
        for (int k = 0; k < 32; k++) {
            int q = (blocks[b].q[k % 16] >> (k / 16 * 4) & 15) | (int)(high >> k & 1) << 4;
            numbers[k / 4 * 64 + p.r * 4 + k % 4] = (uint8_t)(q - 16 + 128);
        }
    }
}

/* Sixteen bytes of nibbles are spread as they are: byte i holds values i and i + 16, steps s and s + 4. */
static void put_nibbles(uint8_t *numbers, const uint8_t q[16], int r)
{
    for (int i = 0; i < 16; i++)
        numbers[i / 4 * 64 + r * 4 + i % 4] = q[i];
}

static void write_q4_0(const qr_q4_0_block *blocks, int64_t count, panel_out p)
{
    for (int64_t b = 0; b < count; b++) {
        uint8_t *unit = unit_of(p, CPU_LAYOUT_Q4_0, b, 32);
        put_half(unit, b % 2 * CPU_PANEL + p.r, blocks[b].d);
        put_nibbles(unit + 64 + b % 2 * 256, blocks[b].q, p.r);
    }
}

static void write_q4_1(const qr_q4_1_block *blocks, int64_t count, panel_out p)
{
    for (int64_t b = 0; b < count; b++) {
        uint8_t *unit = unit_of(p, CPU_LAYOUT_Q4_1, b, 32);
        put_half(unit, p.r, blocks[b].d);
        put_half(unit, CPU_PANEL + p.r, blocks[b].m);
        put_nibbles(unit + 64, blocks[b].q, p.r);
    }
}

static void write_q4_k(const qr_q4_k_block *blocks, int64_t count, panel_out p)
{
    for (int64_t b = 0; b < count; b++) {
        uint8_t *scales = unit_of(p, CPU_LAYOUT_Q4_K, b, CPU_SUPER);
        put_half(scales, p.r, blocks[b].d);
        put_half(scales, CPU_PANEL + p.r, blocks[b].dmin);
        for (int j = 0; j < 8; j++) {
            int scale, min;
            qr_block_k_scale_min(blocks[b].scales, j, &scale, &min);
            scales[64 + j * CPU_PANEL + p.r] = (uint8_t)scale;
            scales[192 + j * CPU_PANEL + p.r] = (uint8_t)min;
        }
        for (int i = 0; i < 128; i++)
            scales[320 + i / 4 * 64 + p.r * 4 + i % 4] = blocks[b].q[i];
    }
}

/* The 256 values of a block as six-bit numbers in order. */
static void q6_k_numbers(const qr_q6_k_block *block, uint8_t q[256])
{
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *low = block->low + half * 64 + i;
            int high = block->high[half * 32 + i];
            uint8_t *out = q + half * 128 + i;
            out[0] = (uint8_t)((low[0] & 15) | (high & 3) << 4);
            out[32] = (uint8_t)((low[32] & 15) | (high >> 2 & 3) << 4);
            out[64] = (uint8_t)(low[0] >> 4 | (high >> 4 & 3) << 4);
            out[96] = (uint8_t)(low[32] >> 4 | (high >> 6 & 3) << 4);
        }
}

/* Sixteen numbers become four words of nibbles, two steps in the low and two in the high half of each byte, and one word
 * of bit pairs. */
static void put_q6_k_sub(const uint8_t q[16], int r, uint8_t *sub)
{
    uint64_t first, second;
    memcpy(&first, q, 8);
    memcpy(&second, q + 8, 8);
    const uint64_t nibbles = UINT64_C(0x0f0f0f0f0f0f0f0f), pairs = UINT64_C(0x0303030303030303);
    uint64_t low = (first & nibbles) | (second & nibbles) << 4;
    uint64_t a = first >> 4 & pairs, b = second >> 4 & pairs;
    uint32_t high = (uint32_t)a | (uint32_t)(a >> 32) << 2 | (uint32_t)b << 4 | (uint32_t)(b >> 32) << 6;
    memcpy(sub + r * 4, &low, 4);
    memcpy(sub + 64 + r * 4, (const uint8_t *)&low + 4, 4);
    memcpy(sub + 128 + r * 4, &high, 4);
}

static void write_q6_k(const qr_q6_k_block *blocks, int64_t count, panel_out p)
{
    uint8_t q[256];
    for (int64_t b = 0; b < count; b++) {
        uint8_t *unit = unit_of(p, CPU_LAYOUT_Q6_K, b, CPU_SUPER);
        put_half(unit, p.r, blocks[b].d);
        q6_k_numbers(&blocks[b], q);
        for (int j = 0; j < 16; j++) {
            unit[32 + j * CPU_PANEL + p.r] = (uint8_t)blocks[b].scales[j];
            put_q6_k_sub(q + j * 16, p.r, unit + 320 + j * 192);
        }
    }
}

void cpu_pack_panel_generic(const qr_weight *w, cpu_layout layout, int64_t panel, uint8_t *out)
{
    qr_weight parts = *w;
    parts.layout = CPU_LAYOUT_PARTS;
    size_t row_bytes = qr_format_row_bytes(w->format, w->cols);
    int64_t blocks = w->cols / qr_format_get(w->format)->block;
    panel_out p = {.panel = out};
    for (int64_t row = panel * CPU_PANEL; row < QR_MIN((panel + 1) * CPU_PANEL, w->rows); row++, p.r++) {
        const void *from = (const uint8_t *)w->part[QR_PART_DATA].data + (size_t)row * row_bytes;
        switch (w->format) {
        case QR_FORMAT_q8_0: write_q8_0(from, blocks, p); break;
        case QR_FORMAT_q5_0: write_q5_0(from, blocks, p); break;
        case QR_FORMAT_q4_0: write_q4_0(from, blocks, p); break;
        case QR_FORMAT_q4_1: write_q4_1(from, blocks, p); break;
        case QR_FORMAT_q4_k: write_q4_k(from, blocks, p); break;
        case QR_FORMAT_q6_k: write_q6_k(from, blocks, p); break;
        default: write_dense(&parts, layout, row, p);
        }
    }
}

/* ---- Random numbers ---- */

/* The sum of four bytes less its mean is close to normal: two such numbers from 64 random bits. */
#define NORMAL_SIGMA 147.8f
static int normal_int(uint64_t bits)
{
    return (int)(bits & 255) + (int)(bits >> 8 & 255) + (int)(bits >> 16 & 255) + (int)(bits >> 24 & 255) -
           510;
}

static int normal_clamped(uint64_t bits, float sigma, int low, int high)
{
    int value = (int)((float)normal_int(bits) * (sigma / NORMAL_SIGMA) + 1024.5f) - 1024;
    return QR_MIN(QR_MAX(value, low), high);
}

/* Deviation of the weights, as checkpoints have it. */
static const float dummy_sigma = 0.02f;

static void dummy_dense(cpu_layout layout, int64_t numbers, uint64_t *state, uint8_t *out)
{
    for (int64_t i = 0; i < numbers; i++) {
        float value = (float)normal_int(qr_rng_next(state)) * (dummy_sigma / NORMAL_SIGMA);
        if (layout == CPU_LAYOUT_F32)
            memcpy(out + 4 * i, &value, 4);
        else
            put_half(out, i, layout == CPU_LAYOUT_F16 ? qr_f32_to_f16(value) : qr_f32_to_bf16(value));
    }
}

static void fill_halves(uint8_t *out, int count, float value)
{
    for (int i = 0; i < count; i++)
        put_half(out, i, qr_f32_to_f16(value));
}

static void dummy_scales(cpu_layout layout, uint8_t *out)
{
    switch (layout) {
    case CPU_LAYOUT_Q8_0: fill_halves(out, 16, dummy_sigma / 42); break;
    case CPU_LAYOUT_Q4_0: fill_halves(out, 16, dummy_sigma / 2.5f); break;
    case CPU_LAYOUT_Q4_1:
        fill_halves(out, 16, dummy_sigma / 2.5f);
        fill_halves(out + 32, 16, -8 * dummy_sigma / 2.5f);
        break;
    case CPU_LAYOUT_Q4_K:
        fill_halves(out, 16, dummy_sigma / 2.5f / 32);
        fill_halves(out + 32, 16, dummy_sigma / 2.5f / 4);
        memset(out + 64, 32, 256);
        break;
    default: fill_halves(out, 16, dummy_sigma / 18.5f / 32); memset(out + 32, 32, 256);
    }
}

static uint8_t dummy_byte(cpu_layout layout, uint64_t bits)
{
    if (layout == CPU_LAYOUT_Q8_0)
        return (uint8_t)(normal_clamped(bits, 42, -127, 127) + 128);
    if (layout == CPU_LAYOUT_Q6_K)
        return (uint8_t)bits;
    return (uint8_t)(normal_clamped(bits, 2.5f, -8, 7) + 8) |
           (uint8_t)(normal_clamped(bits >> 32, 2.5f, -8, 7) + 8) << 4;
}

static uint64_t dummy_state(const qr_weight *w, int64_t panel, uint64_t seed)
{
    uint64_t state = seed;
    for (const char *c = w->name; c != NULL && *c != '\0'; c++)
        state = (state ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
    state ^= (uint64_t)panel * UINT64_C(0x9e3779b97f4a7c15);
    (void)qr_rng_next(&state);
    return state;
}

void cpu_pack_panel_dummy(const qr_weight *w, cpu_layout layout, int64_t panel, uint64_t seed, uint8_t *out)
{
    qr_weight shape = {.rows = w->rows, .cols = w->cols, .layout = layout};
    cpu_panels at = cpu_panels_of(&shape);
    const cpu_layout_traits *traits = &cpu_layouts[layout];
    uint64_t state = dummy_state(w, panel, seed);
    if (traits->scale_bytes == 0) {
        dummy_dense(layout, at.units * traits->bytes / (layout == CPU_LAYOUT_F32 ? 4 : 2), &state, out);
        return;
    }
    for (int64_t unit = 0; unit < at.units; unit++, out += traits->bytes) {
        dummy_scales(layout, out);
        for (int i = traits->scale_bytes; i < traits->bytes; i++)
            out[i] = dummy_byte(layout, qr_rng_next(&state));
    }
}
