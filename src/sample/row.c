#include "sample/row.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

#define LANES 4
typedef float f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t i32x4 __attribute__((vector_size(16), aligned(4), may_alias));

static inline f32x4 splat(float x) { return (f32x4){x, x, x, x}; }

static inline f32x4 select(i32x4 mask, f32x4 yes, f32x4 no)
{
    return (f32x4)((mask & (i32x4)yes) | (~mask & (i32x4)no));
}

/* exp(x) for x <= 0 (anything below -87 gives 0): 2^n times a degree-6 polynomial on [-ln2/2, ln2/2]
 * (Taylor coefficients; relative error below 2e-7). NaN gives 0. */
static inline f32x4 exp_negative(f32x4 x)
{
    const f32x4 log2e = splat(1.44269504f), round = splat(12582912.0f); /* 1.5 * 2^23: adds and rounds */
    i32x4 tiny = ~(x >= splat(-87.0f));
    x = select(tiny, splat(0.0f), x);
    f32x4 shifted = x * log2e + round;
    f32x4 n = shifted - round;
    f32x4 r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
    f32x4 p = splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    i32x4 exponent = ((i32x4)shifted - (i32x4)round + 127) << 23;
    return select(tiny, splat(0.0f), p * (f32x4)exponent);
}

static inline float add_lanes(f32x4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

static inline f32x4 load(const float *at) { return *(const f32x4 *)at; }

/* The last values of a row, padded with -inf. */
static inline f32x4 load_tail(const float *at, int32_t count)
{
    f32x4 v = splat(-INFINITY);
    memcpy(&v, at, (size_t)count * sizeof(float));
    return v;
}

void row_copy(const float *from, float *to, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        to[i] = from[i] == from[i] ? from[i] : -INFINITY;
}

float row_max(const float *row, int32_t count)
{
    f32x4 best = splat(-INFINITY);
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        f32x4 v = load(row + i);
        best = select(v > best, v, best);
    }
    if (i < count) {
        f32x4 v = load_tail(row + i, count - i);
        best = select(v > best, v, best);
    }
    float max = best[0];
    for (int lane = 1; lane < LANES; lane++)
        max = best[lane] > max ? best[lane] : max;
    return max;
}

int32_t row_argmax(const float *row, int32_t count)
{
    float max = row_max(row, count);
    if (!(max > -INFINITY))
        return -1;
    int32_t i = 0;
    while (row[i] != max)
        i++;
    return i;
}

double row_exp(const float *row, int32_t count, float shift, float scale, float *out, double *block_sums)
{
    double total = 0;
    for (int32_t begin = 0; begin < count; begin += ROW_BLOCK) {
        int32_t end = QR_MIN(begin + ROW_BLOCK, count);
        f32x4 sum = splat(0);
        int32_t i = begin;
        for (; i + LANES <= end; i += LANES) {
            f32x4 e = exp_negative((load(row + i) - splat(shift)) * splat(scale));
            *(f32x4 *)(out + i) = e;
            sum += e;
        }
        if (i < end) {
            f32x4 e = exp_negative((load_tail(row + i, end - i) - splat(shift)) * splat(scale));
            memcpy(out + i, &e, (size_t)(end - i) * sizeof(float));
            sum += e;
        }
        block_sums[begin / ROW_BLOCK] = (double)add_lanes(sum);
        total += block_sums[begin / ROW_BLOCK];
    }
    return total;
}

double row_log_sum_exp(const float *row, int32_t count, float max)
{
    double total = 0;
    for (int32_t begin = 0; begin < count; begin += ROW_BLOCK) {
        int32_t end = QR_MIN(begin + ROW_BLOCK, count);
        f32x4 sum = splat(0);
        int32_t i = begin;
        for (; i + LANES <= end; i += LANES)
            sum += exp_negative(load(row + i) - splat(max));
        if (i < end)
            sum += exp_negative(load_tail(row + i, end - i) - splat(max));
        total += (double)add_lanes(sum);
    }
    return (double)max + log(total);
}

int32_t row_count_greater(const float *row, int32_t count, float value)
{
    i32x4 greater = {0};
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES)
        greater -= load(row + i) > splat(value);
    if (i < count)
        greater -= load_tail(row + i, count - i) > splat(value);
    int32_t total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += greater[lane];
    return total;
}
