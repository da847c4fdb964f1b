/* tile_avx512.c - tile primitives of attention with AVX-512 (F, BW, VL, DQ, VNNI).
 *
 * Products are f32 multiply-adds of widened elements; tile_pairs_avx512.c has those of bf16 in pairs. */
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/exp_avx512.h"

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
#define vec_exp exp_avx512

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

/* 16 x 16 words of 32 bits, rows to columns. */
static inline __attribute__((always_inline)) void transpose(__m512i x[16])
{
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* b[i+j]: columns j, j+4, j+8, j+12 of rows i .. i+3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i lo = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88),
                hi = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd);
        __m512i lo2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88);
        __m512i hi2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xdd);
        x[j] = _mm512_shuffle_i32x4(lo, lo2, 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(lo, lo2, 0xdd);
        x[j + 4] = _mm512_shuffle_i32x4(hi, hi2, 0x88);
        x[j + 12] = _mm512_shuffle_i32x4(hi, hi2, 0xdd);
    }
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

static int count_at_least(const int32_t *key, int n, int32_t limit)
{
    const __m512i l = _mm512_set1_epi32(limit), one = _mm512_set1_epi32(1);
    __m512i count[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                        _mm512_setzero_si512()};
    int i = 0;
    for (; i + 64 <= n; i += 64)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __mmask16 in = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(key + i + 16 * v), l);
            count[v] = _mm512_mask_add_epi32(count[v], in, count[v], one);
        }
    for (; i < n; i += 16) {
        __mmask16 in = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(key + i), l);
        count[0] = _mm512_mask_add_epi32(count[0], in, count[0], one);
    }
    return _mm512_reduce_add_epi32(
        _mm512_add_epi32(_mm512_add_epi32(count[0], count[1]), _mm512_add_epi32(count[2], count[3])));
}

static void take_above(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit, int n_ties)
{
    const __m512i l = _mm512_set1_epi32(limit), step = _mm512_set1_epi32(16);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int i = 0, taken = 0; taken < n_taken; i += 16, at = _mm512_add_epi32(at, step)) {
        __m512i x = _mm512_loadu_si512(key + i);
        uint32_t in = _mm512_cmpgt_epi32_mask(x, l), tie = _mm512_cmpeq_epi32_mask(x, l);
        for (; tie && n_ties > 0; n_ties--, tie &= tie - 1) in |= tie & -tie;
        /* The register form: the one to memory is a hundred times slower on Zen 4. */
        int more = __builtin_popcount(in);
        _mm512_mask_storeu_epi32(index + taken, lanes_below(more),
                                 _mm512_maskz_compress_epi32((__mmask16)in, at));
        taken += more;
    }
}

INLINE __m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE __m512i high_nibbles(__m512i x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

enum { CODE_Q = 4 }; /* queries at once: two chains and two registers of codes each, beside eight of pages */

/* x[j]: words j, j + 4, j + 8, j + 12 of 64 bytes of four rows, those of the same place side by side. */
INLINE void turn(__m512i x[4], const char *const *row, int offset)
{
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) r[i] = _mm512_loadu_si512(row[i] + offset);
    __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

/* Codes of a query as turn() lays those of pages: w[j] for the low and the high halves of bytes. */
INLINE void turn_query(__m512i w[4][2], const int8_t *low, const int8_t *low_width, const int E)
{
    const __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    for (int high = 0; high < 2; high++) {
        const int8_t *q = low + high * E / 2, *width = low_width + high * E / 2;
        __m512i x = _mm512_loadu_si512(q);
        if (E == 64) { /* middle and half-width share 64 bytes */
            __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)q);
            __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)width);
            x = _mm512_inserti64x4(_mm512_castsi256_si512(c), u, 1);
        }
        for (int j = 0; j < 4; j++)
            w[j][high] = _mm512_permutexvar_epi32(_mm512_add_epi32(at, _mm512_set1_epi32(j)), x);
    }
}

/* Sums of neighbouring quarters, of a then b. */
INLINE __m512i add_quarters(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* sum[i]: of the products of 64 bytes of eight pages with query i, the quarters' neighbours added: quarters 0 and 1 the
 * first four pages. */
INLINE void eight_pages(__m512i sum[CODE_Q], const char *const *row, int offset, const __m512i w[][4][2],
                        const int NQ)
{
    __m512i x[2][4], a[CODE_Q][2];
    turn(x[0], row, offset);
    turn(x[1], row + 4, offset);
#pragma GCC unroll 4
    for (int i = 0; i < NQ; i++) a[i][0] = a[i][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            __m512i low = low_nibbles(x[g][j]), high = high_nibbles(x[g][j]);
#pragma GCC unroll 4
            for (int i = 0; i < NQ; i++) {
                a[i][g] = _mm512_dpbusd_epi32(a[i][g], low, w[i][j][0]);
                a[i][g] = _mm512_dpbusd_epi32(a[i][g], high, w[i][j][1]);
            }
        }
#pragma GCC unroll 4
    for (int i = 0; i < NQ; i++) sum[i] = add_quarters(a[i][0], a[i][1]);
}

/* Queries [i0,i0+NQ) with n pages of width 64 or 128. */
INLINE void code_queries(int32_t *c, int32_t *u, const struct tile_codes *q, int i0, const char *const *row,
                         const char *const *ahead, int n, const int E, const int NQ)
{
    __m512i w[2][CODE_Q][4][2];
    for (int i = 0; i < NQ; i++) {
        turn_query(w[0][i], q->q[i0 + i], q->abs[i0 + i], E);
        if (E == 128) turn_query(w[1][i], q->abs[i0 + i], q->abs[i0 + i], E);
    }
    for (int j = 0; j < n; j += 16) {
        __m512i s[2][2][CODE_Q];
        if (ahead) tile_prefetch(ahead + j, 16, (size_t)E);
#pragma GCC unroll 2
        for (int v = 0; v < E / 64; v++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                eight_pages(s[v][half], row + j + 8 * half, 64 * v, w[v], NQ);
        __mmask16 on = n - j < 16 ? lanes_below(n - j) : 0xffff;
        for (int i = 0; i < NQ; i++) {
            __m512i middle, width;
            if (E == 64) { /* quarters are middle, half-width, middle, ... */
                middle = _mm512_shuffle_i32x4(s[0][0][i], s[0][1][i], 0x88);
                width = _mm512_shuffle_i32x4(s[0][0][i], s[0][1][i], 0xdd);
            } else {
                middle = add_quarters(s[0][0][i], s[0][1][i]);
                width = add_quarters(s[1][0][i], s[1][1][i]);
            }
            /* codes of the middle are stored plus 8 */
            middle = _mm512_sub_epi32(middle, _mm512_set1_epi32(8 * q->sum[i0 + i]));
            _mm512_mask_storeu_epi32(c + (i0 + i) * TILE_COLS + j, on, middle);
            _mm512_mask_storeu_epi32(u + (i0 + i) * TILE_COLS + j, on, width);
        }
    }
}

INLINE void dots_q4(int32_t *c, int32_t *u, const struct tile_codes *q, const char *const *row,
                    const char *const *ahead, int n, const int E)
{
    int i = 0;
    for (; i + 4 <= q->n_q; i += 4, ahead = NULL) code_queries(c, u, q, i, row, ahead, n, E, 4);
    if (q->n_q - i == 3) code_queries(c, u, q, i, row, ahead, n, E, 3);
    else if (q->n_q - i == 2) code_queries(c, u, q, i, row, ahead, n, E, 2);
    else if (q->n_q - i == 1) code_queries(c, u, q, i, row, ahead, n, E, 1);
}

static void code_dots(int32_t *c, int32_t *u, const struct tile_codes *q, const char *const *row,
                      const char *const *ahead, int n)
{
    if (q->type == SUMMARY_Q4 && q->E == 64) dots_q4(c, u, q, row, ahead, n, 64);
    else if (q->type == SUMMARY_Q4 && q->E == 128) dots_q4(c, u, q, row, ahead, n, 128);
    else tile_avx2_code_dots(c, u, q, row, ahead, n);
}

const struct tile tile_avx512 = {
    .dots = dots,
    .largest = tile_avx2_largest,
    .code = tile_avx2_code,
    .code_dots = code_dots,
    .code_scores = tile_avx2_code_scores,
    .load_keys = load_keys,
    .scores = scores,
    .weigh = weigh,
    .values = values,
    .scale = scale_by,
    .widen = widen,
    .narrow = narrow,
    .order = tile_avx2_order,
    .count_at_least = count_at_least,
    .take_above = take_above,
    .pairs = &tile_pairs_avx512,
};
