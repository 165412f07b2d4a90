/* The row kernels, once for every instruction set: vector_generic.c, vector_avx2.c and vector_avx512.c include this
 * file. All of them are bound by reading and writing their rows (F32, L1 or L2), not by arithmetic.
 * Private to backend/cpu/. Thread: any.
 */
#include "backend/cpu/simd.h"
#include "backend/cpu/vector.h"

/* Calls body for whole vectors, then for the rest with a count: LOAD and STORE mean both. */
#define SIMD_EACH(n, i, left) for (int64_t i = 0, left = (n); left > 0; i += VF, left -= VF)

SIMD_INLINE vf load_some(const float *p, int64_t left)
{
    return left >= VF ? vf_load(p) : vf_load_n(p, left);
}

SIMD_INLINE void store_some(float *p, vf x, int64_t left)
{
    if (left >= VF)
        vf_store(p, x);
    else
        vf_store_n(p, x, left);
}

/* Sum of squares in four vectors of lanes, folded pairwise. */
SIMD_INLINE float sum_squares(const float *x, int64_t n)
{
    vf sum[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + 4 * VF <= n; i += 4 * VF)
        for (int j = 0; j < 4; j++) {
            vf a = vf_load(x + i + j * VF);
            sum[j] = vf_fma(a, a, sum[j]);
        }
    for (; i < n; i += VF) {
        vf a = load_some(x + i, n - i);
        sum[0] = vf_fma(a, a, sum[0]);
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

SIMD_INLINE void norm_row(const float *x, const float *w, float eps, int64_t n, float *y)
{
    vf inverse = vf_set(1.0f / sqrtf(sum_squares(x, n) / (float)n + eps));
    SIMD_EACH(n, i, left)
    store_some(y + i, vf_mul(vf_mul(load_some(x + i, left), inverse), load_some(w + i, left)), left);
}

static void row_rmsnorm(const float *x, const float *w, float eps, int64_t n, float *y)
{
    norm_row(x, w, eps, n, y);
}

static void row_add(float *x, const float *y, int64_t n)
{
    SIMD_EACH(n, i, left)
    store_some(x + i, vf_add(load_some(x + i, left), load_some(y + i, left)), left);
}

static void row_add_rmsnorm(float *x, const float *delta, const float *w, float eps, int64_t n, float *y)
{
    row_add(x, delta, n);
    norm_row(x, w, eps, n, y);
}

static void row_silu_mul(float *gate, const float *up, int64_t n)
{
    SIMD_EACH(n, i, left)
    {
        vf g = load_some(gate + i, left);
        store_some(gate + i, vf_mul(vf_mul(g, vf_sigmoid(g)), load_some(up + i, left)), left);
    }
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(2 ...) */
static void row_gelu_tanh_mul(float *gate, const float *up, int64_t n)
{
    SIMD_EACH(n, i, left)
    {
        vf g = load_some(gate + i, left);
        vf cubic = vf_fma(vf_mul(vf_mul(g, g), g), vf_set(0.044715f), g);
        vf act = vf_mul(g, vf_sigmoid(vf_mul(cubic, vf_set(1.5957691216057308f))));
        store_some(gate + i, vf_mul(act, load_some(up + i, left)), left);
    }
}

/* x/2 (1 + erf(x / sqrt 2)); erfc by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. */
SIMD_INLINE vf gelu(vf x)
{
    vf z = vf_mul(vf_max(x, vf_sub(vf_set(0), x)), vf_set(0.70710678118654752f));
    vf t = vf_div(vf_set(1), vf_fma(z, vf_set(0.3275911f), vf_set(1)));
    vf p = vf_fma(t, vf_set(1.061405429f), vf_set(-1.453152027f));
    p = vf_fma(p, t, vf_set(1.421413741f));
    p = vf_fma(p, t, vf_set(-0.284496736f));
    p = vf_fma(p, t, vf_set(0.254829592f));
    vf erfc = vf_mul(vf_mul(p, t), vf_exp2(vf_mul(vf_mul(z, z), vf_set(-SIMD_LOG2E))));
    /* relu(x) - |x| erfc(|x| / sqrt 2) / 2 holds for both signs; erfc is 0 long before 100 */
    vf relu = vf_max(vf_set(0), x), size = vf_min(vf_set(100), vf_max(x, vf_sub(vf_set(0), x)));
    return vf_sub(relu, vf_mul(vf_mul(size, vf_set(0.5f)), erfc));
}

static void row_gelu_mul(float *gate, const float *up, int64_t n)
{
    SIMD_EACH(n, i, left)
    store_some(gate + i, vf_mul(gelu(load_some(gate + i, left)), load_some(up + i, left)), left);
}

/* (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + rotary / 2) */
static void head_rope_halves(float *x, const float *cs, int32_t rotary)
{
    int32_t half = rotary / 2;
    const float *sines = cs + half;
    SIMD_EACH(half, i, left)
    {
        vf a = load_some(x + i, left), b = load_some(x + half + i, left);
        vf c = load_some(cs + i, left), s = load_some(sines + i, left);
        store_some(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)), left);
        store_some(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)), left);
    }
}

/* The same for pairs (2i, 2i + 1); plain C, which the compiler shuffles into vectors. */
static void head_rope_pairs(float *x, const float *cs, int32_t rotary)
{
    int32_t half = rotary / 2;
    const float *sines = cs + half;
    for (int32_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cs[i] - b * sines[i];
        x[2 * i + 1] = b * cs[i] + a * sines[i];
    }
}

static void row_to_f16(const float *x, uint16_t *y, int64_t n)
{
    vf top = vf_set(65504), bottom = vf_set(-65504);
    int64_t i = 0;
    for (; i + VF <= n; i += VF)
        vf_store_f16(y + i, vf_min(top, vf_max(bottom, vf_load(x + i))));
    if (i < n) {
        uint16_t rest[VF];
        vf_store_f16(rest, vf_min(top, vf_max(bottom, vf_load_n(x + i, n - i))));
        memcpy(y + i, rest, (size_t)(n - i) * sizeof(*y));
    }
}

static void row_to_bf16(const float *x, uint16_t *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = qr_f32_to_bf16(x[i]);
}

static void row_scale(float *y, const float *x, float factor, int64_t n)
{
    vf f = vf_set(factor);
    SIMD_EACH(n, i, left)
    store_some(y + i, vf_mul(load_some(x + i, left), f), left);
}
