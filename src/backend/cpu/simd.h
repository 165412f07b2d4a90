/* One vector of floats, spelled the same for each instruction set: AVX-512 (16 lanes), AVX2 + FMA + F16C (8), and
 * GCC vector types for anything else (4 lanes, unfused multiply and add). The file that includes it is compiled for
 * its set (cmake/flags.cmake); kernels in vector_body.h are written once on top.
 * Private to backend/cpu/. Thread: any.
 */
#ifndef QR_BACKEND_CPU_SIMD_H
#define QR_BACKEND_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tensor/dtype.h"

#define SIMD_INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__)
#include <immintrin.h>
#define SIMD_NAME avx512
#define SIMD_NONE 0
enum { VF = 16 };
typedef __m512 vf;

SIMD_INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
SIMD_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
SIMD_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
SIMD_INLINE __mmask16 vf_first(int64_t n) { return (__mmask16)((1u << n) - 1); }
SIMD_INLINE vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_first(n), p); }
SIMD_INLINE void vf_store_n(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, vf_first(n), x); }
SIMD_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
SIMD_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SIMD_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SIMD_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
SIMD_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b when either is NaN */
SIMD_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); } /* b when either is NaN */
SIMD_INLINE float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }
SIMD_INLINE float vf_top(vf x) { return _mm512_reduce_max_ps(x); }
/* Lanes [from, to) of x, -inf elsewhere. */
SIMD_INLINE vf vf_keep(vf x, int32_t from, int32_t to)
{
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 in = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(from)) &
                   _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(to));
    return _mm512_mask_blend_ps(in, _mm512_set1_ps(-INFINITY), x);
}
/* p 2^n for integral n, which may leave the range of floats. */
SIMD_INLINE vf vf_scale2(vf p, vf n) { return _mm512_scalef_ps(p, n); }
SIMD_INLINE vf vf_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
SIMD_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__AVX2__)
#include <immintrin.h>
#define SIMD_NAME avx2
#define SIMD_NONE 0
enum { VF = 8 };
typedef __m256 vf;

SIMD_INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
SIMD_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
SIMD_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
SIMD_INLINE __m256i vf_first(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SIMD_INLINE vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
SIMD_INLINE void vf_store_n(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), x); }
SIMD_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
SIMD_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SIMD_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SIMD_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
SIMD_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
SIMD_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
SIMD_INLINE float vf_sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SIMD_INLINE float vf_top(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
SIMD_INLINE vf vf_keep(vf x, int32_t from, int32_t to)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane),
                                     _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x, _mm256_castsi256_ps(in));
}
SIMD_INLINE vf vf_scale2(vf p, vf n)
{
    /* In two steps, since 2^n itself may be a subnormal or infinite. */
    __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(n, _mm256_set1_ps(256)));
    __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half),
            bias = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
SIMD_INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SIMD_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SIMD_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else
#define SIMD_NAME generic
#define SIMD_NONE 1
enum { VF = 4 };
typedef float vf __attribute__((vector_size(16)));

SIMD_INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
SIMD_INLINE vf vf_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof(x));
    return x;
}
SIMD_INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof(x)); }
SIMD_INLINE vf vf_load_n(const float *p, int64_t n)
{
    vf x = vf_set(0);
    memcpy(&x, p, (size_t)n * sizeof(float));
    return x;
}
SIMD_INLINE void vf_store_n(float *p, vf x, int64_t n) { memcpy(p, &x, (size_t)n * sizeof(float)); }
SIMD_INLINE vf vf_add(vf a, vf b) { return a + b; }
SIMD_INLINE vf vf_sub(vf a, vf b) { return a - b; }
SIMD_INLINE vf vf_mul(vf a, vf b) { return a * b; }
SIMD_INLINE vf vf_div(vf a, vf b) { return a / b; }
SIMD_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
SIMD_INLINE vf vf_max(vf a, vf b)
{
    for (int i = 0; i < VF; i++)
        b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
}
SIMD_INLINE vf vf_min(vf a, vf b)
{
    for (int i = 0; i < VF; i++)
        b[i] = a[i] < b[i] ? a[i] : b[i];
    return b;
}
SIMD_INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
SIMD_INLINE float vf_top(vf x)
{
    float top = x[0];
    for (int i = 1; i < VF; i++)
        top = top > x[i] ? top : x[i];
    return top;
}
SIMD_INLINE vf vf_keep(vf x, int32_t from, int32_t to)
{
    for (int i = 0; i < VF; i++)
        x[i] = i >= from && i < to ? x[i] : -INFINITY;
    return x;
}
SIMD_INLINE vf vf_scale2(vf p, vf n)
{
    for (int i = 0; i < VF; i++) {
        int whole = n[i] == n[i] ? (int)n[i] : 0, half = whole >> 1; /* NaN: p is NaN too */
        uint32_t a = (uint32_t)(half + 127) << 23, b = (uint32_t)(whole - half + 127) << 23;
        float fa, fb;
        memcpy(&fa, &a, 4);
        memcpy(&fb, &b, 4);
        p[i] = p[i] * fa * fb;
    }
    return p;
}
SIMD_INLINE vf vf_round(vf x)
{
    vf magic = vf_set(12582912.0f); /* 1.5 x 2^23: |x| < 2^22 rounds to the nearest integer, ties to even */
    return (x + magic) - magic;
}
SIMD_INLINE vf vf_load_f16(const uint16_t *p)
{
    vf x;
    for (int i = 0; i < VF; i++)
        x[i] = qr_f16_to_f32(p[i]);
    return x;
}
SIMD_INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf x;
    for (int i = 0; i < VF; i++)
        x[i] = qr_bf16_to_f32(p[i]);
    return x;
}
SIMD_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    for (int i = 0; i < VF; i++)
        p[i] = qr_f32_to_f16(x[i]);
}
#endif

/* 2^x: x = n + f with |f| <= 1/2, a polynomial of degree 6 in f (its own minimax error 2.0e-9, 7.9e-8 in floats),
 * exact at integers. Below -160 and at -inf: 0; above 160: inf; NaN stays NaN. */
SIMD_INLINE vf vf_exp2(vf x)
{
    x = vf_min(vf_set(160), vf_max(vf_set(-160), x));
    vf n = vf_round(x), f = vf_sub(x, n);
    vf p = vf_set(0x1.41fbbcp-13f);
    p = vf_fma(p, f, vf_set(0x1.5f3e52p-10f));
    p = vf_fma(p, f, vf_set(0x1.3b2d4cp-7f));
    p = vf_fma(p, f, vf_set(0x1.c6aee8p-5f));
    p = vf_fma(p, f, vf_set(0x1.ebfbdcp-3f));
    p = vf_fma(p, f, vf_set(0x1.62e430p-1f));
    p = vf_fma(p, f, vf_set(1));
    return vf_scale2(p, n);
}

#define SIMD_LOG2E 1.44269504088896340736f

/* 1 / (1 + e^-x) */
SIMD_INLINE vf vf_sigmoid(vf x)
{
    return vf_div(vf_set(1), vf_add(vf_set(1), vf_exp2(vf_mul(x, vf_set(-SIMD_LOG2E)))));
}

#endif
