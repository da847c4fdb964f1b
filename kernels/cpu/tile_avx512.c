/* tile_avx512.c - tile primitives of attention with AVX-512 (F, BW, VL, DQ, VNNI).
 *
 * Products are f32 multiply-adds of widened elements. vdpbf16ps would save nothing: on a Zen 4 a product of 16 bits of a
 * query, two such instructions, takes as long, and on the Intel servers we measured it is half as fast. */
#include <immintrin.h>
#include <limits.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/transpose_avx512.h"

#define vec __m512
#define LANES 16
#define BLOCK 4
#define BLOCK_Q 6
#define DOT_Q 6
#define PREFETCH _MM_HINT_T2 /* a chunk ahead is more than the first cache holds */
#define vec_zero _mm512_setzero_ps
#define vec_set1 _mm512_set1_ps
#define vec_load _mm512_loadu_ps
#define vec_store _mm512_storeu_ps
#define vec_fma _mm512_fmadd_ps
#define vec_mul _mm512_mul_ps
#define vec_add _mm512_add_ps
#define vec_max _mm512_max_ps
#define vec_reduce_max _mm512_reduce_max_ps

static inline __mmask16 lanes_below(int n) { return (__mmask16)((1u << n) - 1); }
static inline vec vec_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(lanes_below(n), p); }
static inline void vec_store_n(float *p, vec v, int n) { _mm512_mask_storeu_ps(p, lanes_below(n), v); }

static inline vec widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

static inline vec vec_widen(const char *p, enum dtype type)
{
    if (type == DTYPE_F32) return _mm512_loadu_ps(p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return type == DTYPE_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

static inline vec vec_widen_n(const char *p, int n, enum dtype type)
{
    if (type == DTYPE_F32) return _mm512_maskz_loadu_ps(lanes_below(n), p);
    __m256i h = _mm256_maskz_loadu_epi16(lanes_below(n), p);
    return type == DTYPE_BF16 ? widen_bf16(h) : _mm512_cvtph_ps(h);
}

static inline void vec_narrow(char *p, vec v, enum dtype type)
{
    if (type == DTYPE_F32) {
        _mm512_storeu_ps(p, v);
        return;
    }
    __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16), quiet;
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m256i h;
    if (type == DTYPE_BF16) { /* not vcvtneps2bf16, which takes subnormal numbers for 0 */
        __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        u = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        h = _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, u, quiet));
    } else {
        quiet = _mm512_or_si512(_mm512_and_si512(high, _mm512_set1_epi32(0x8000)), _mm512_set1_epi32(0x7e00));
        h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        h = _mm256_mask_blend_epi16(nan, h, _mm512_cvtepi32_epi16(quiet));
    }
    _mm256_storeu_si256((__m256i *)(void *)p, h);
}

/* e^x = 2^n e^r, |r| <= ln2/2; polynomial of Cephes expf. */
static inline vec vec_exp(vec x)
{
    __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
    vec r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.62e400p-1f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.7f7d1cp-20f), r);
    vec p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    p = _mm512_scalef_ps(p, n);
    return _mm512_mask_blend_ps(tiny, p, _mm512_setzero_ps()); /* -inf made r NaN: exactly 0 */
}

/* Elements 0, 2, 4, ... and 1, 3, 5, ... of the 2 * LANES at p; of other types than bf16 the first and the
 * second half. The _n forms take n < 2 * LANES and zeros. */
static inline vec even_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
static inline vec odd_of(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
}
static inline vec vec_even(const char *p, enum dtype type)
{
    return type == DTYPE_BF16 ? even_of(_mm512_loadu_si512(p)) : vec_widen(p, type);
}
static inline vec vec_odd(const char *p, enum dtype type)
{
    if (type == DTYPE_BF16) return odd_of(_mm512_loadu_si512(p));
    return vec_widen(p + LANES * (type == DTYPE_F32 ? 4 : 2), type);
}
static inline vec vec_even_n(const char *p, int n, enum dtype type)
{
    if (type == DTYPE_BF16) return even_of(_mm512_maskz_loadu_epi16((1u << n) - 1, p));
    return vec_widen_n(p, n < LANES ? n : LANES, type);
}
static inline vec vec_odd_n(const char *p, int n, enum dtype type)
{
    if (type == DTYPE_BF16) return odd_of(_mm512_maskz_loadu_epi16((1u << n) - 1, p));
    return vec_widen_n(p + LANES * (type == DTYPE_F32 ? 4 : 2), n > LANES ? n - LANES : 0, type);
}
/* Lanes of a then b, the even ones and the odd ones. */
static inline vec vec_evens(vec a, vec b)
{
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, at, b);
}
static inline vec vec_odds(vec a, vec b)
{
    const __m512i at = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, at, b);
}
/* And back: lanes in order, the lower and the upper half. */
static inline vec vec_low(vec even, vec odd)
{
    const __m512i at = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(even, at, odd);
}
static inline vec vec_high(vec even, vec odd)
{
    const __m512i at = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(even, at, odd);
}

/* The sums of the lanes of four vectors. */
static inline __m128 vec_reduce4(vec a, vec b, vec c, vec d)
{
    vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vec x = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                          _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}

/* Two-byte elements move in pairs; a transposed pair is split into its even and odd element. */
static inline __attribute__((always_inline)) void load_keys_type(float *kt, const char *const *row,
                                                                 size_t byte_offset, int n_cols, int n_e,
                                                                 const enum dtype type)
{
    int words = type == DTYPE_F32 ? n_e : n_e / 2;
    for (int c = 0; c < n_cols; c += 16)
        for (int w = 0; w < words; w += 16) {
            int n = words - w < 16 ? words - w : 16;
            __m512i x[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                const char *p = row[c + i] + byte_offset + 4 * (size_t)w;
                x[i] = n == 16 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(lanes_below(n), p);
            }
            transpose(x);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) {
                if (j >= n) break;
                float *to = kt + (size_t)(type == DTYPE_F32 ? w + j : 2 * (w + j)) * TILE_COLS + c;
                if (type == DTYPE_F32) {
                    vec_store(to, _mm512_castsi512_ps(x[j]));
                } else if (type == DTYPE_BF16) {
                    vec_store(to, _mm512_castsi512_ps(_mm512_slli_epi32(x[j], 16)));
                    vec_store(to + TILE_COLS, _mm512_castsi512_ps(_mm512_and_si512(
                                                  x[j], _mm512_set1_epi32((int)0xffff0000u))));
                } else {
                    vec_store(to, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x[j])));
                    vec_store(to + TILE_COLS,
                              _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x[j], 16))));
                }
            }
        }
}

static void load_keys(float *kt, const char *const *row, size_t byte_offset, int n_cols, int n_e,
                      enum dtype type)
{
    if (type == DTYPE_F32) load_keys_type(kt, row, byte_offset, n_cols, n_e, DTYPE_F32);
    else if (type == DTYPE_BF16) load_keys_type(kt, row, byte_offset, n_cols, n_e, DTYPE_BF16);
    else load_keys_type(kt, row, byte_offset, n_cols, n_e, DTYPE_F16);
}

#include "kernels/cpu/tile_simd.h"

#define vec_sub _mm512_sub_ps

static inline vec vec_times_power(vec x, vec bits)
{
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), power));
}

static inline void vec_store_key(int32_t *key, vec f)
{
    __m512i i = _mm512_castps_si512(vec_add(f, vec_zero()));
    i = _mm512_xor_si512(i, _mm512_srli_epi32(_mm512_srai_epi32(i, 31), 1));
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    _mm512_storeu_si512(key, _mm512_mask_mov_epi32(i, nan, _mm512_set1_epi32(INT_MIN + 1)));
}

#include "kernels/cpu/tile_choose.h"

const struct tile tile_avx512 = {
    .dots = dots,
    .dots_fours = dots_fours,
    .largest = tile_avx2_largest,
    .code = tile_avx2_code,
    .code_scores = tile_avx512_code_scores,
    .load_keys = load_keys,
    .scores = scores,
    .weigh = weigh,
    .values = values,
    .values_fours = values_fours,
    .scale = scale_by,
    .widen = widen,
    .narrow = narrow,
    .powers = powers,
    .order = order,
    .count_at_least = tile_avx512_count_at_least,
    .list_between = tile_avx512_list_between,
    .take_above = tile_avx512_take_above,
};
