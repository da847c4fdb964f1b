/* tile_avx2.c - tile primitives of attention with AVX2, FMA and F16C. */
#include <immintrin.h>
#include <limits.h>
#include <math.h>

#include "kernels/cpu/attention.h"

#define vec __m256
#define LANES 8
#define BLOCK 2
#define BLOCK_Q 6
#define DOT_Q 3
#define PREFETCH _MM_HINT_T2 /* a chunk ahead is more than the first cache holds */
#define vec_zero _mm256_setzero_ps
#define vec_set1 _mm256_set1_ps
#define vec_load _mm256_loadu_ps
#define vec_store _mm256_storeu_ps
#define vec_fma _mm256_fmadd_ps
#define vec_mul _mm256_mul_ps
#define vec_add _mm256_add_ps
#define vec_max _mm256_max_ps

static inline float vec_reduce_max(vec v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static inline __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec vec_load_n(const float *p, int n) { return _mm256_maskload_ps(p, lanes_below(n)); }
static inline void vec_store_n(float *p, vec v, int n) { _mm256_maskstore_ps(p, lanes_below(n), v); }

static inline vec widen_half(__m128i h, enum dtype type)
{
    return type == DTYPE_BF16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))
                              : _mm256_cvtph_ps(h);
}

static inline vec vec_widen(const char *p, enum dtype type)
{
    if (type == DTYPE_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    return widen_half(_mm_loadu_si128((const __m128i *)(const void *)p), type);
}

static inline vec vec_widen_n(const char *p, int n, enum dtype type)
{
    if (type == DTYPE_F32) return _mm256_maskload_ps((const float *)(const void *)p, lanes_below(n));
    uint16_t h[8] = {0}; /* no masked load of two-byte elements before AVX-512 */
    memcpy(h, p, 2 * (size_t)n);
    return widen_half(_mm_loadu_si128((const __m128i *)(const void *)h), type);
}

/* The low halves of eight words, each below 65536. */
static inline __m128i low_halves(__m256i x)
{
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0xd8));
}

static inline void vec_narrow(char *p, vec v, enum dtype type)
{
    if (type == DTYPE_F32) {
        _mm256_storeu_ps((float *)(void *)p, v);
        return;
    }
    __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16), quiet;
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    if (type == DTYPE_BF16) {
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        u = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    } else {
        u = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        quiet = _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi32(0x8000)), _mm256_set1_epi32(0x7e00));
    }
    _mm_storeu_si128((__m128i *)(void *)p, low_halves(_mm256_blendv_epi8(u, quiet, nan)));
}

/* e^x = 2^n e^r, |r| <= ln2/2; polynomial of Cephes expf. */
static inline vec vec_exp(vec x)
{
    vec tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    vec n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0x1.62e400p-1f), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0x1.7f7d1cp-20f), r);
    vec p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
    return _mm256_andnot_ps(tiny, p); /* below -87 the power above is nonsense: exactly 0 */
}

/* Elements 0, 2, 4, ... and 1, 3, 5, ... of the 2 * LANES at p; of other types than bf16 the first and the
 * second half. The _n forms take n < 2 * LANES and zeros. */
static inline __m256i pairs_at(const char *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
static inline vec even_of(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
static inline vec odd_of(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}
static inline vec vec_even(const char *p, enum dtype type)
{
    return type == DTYPE_BF16 ? even_of(pairs_at(p)) : vec_widen(p, type);
}
static inline vec vec_odd(const char *p, enum dtype type)
{
    return type == DTYPE_BF16 ? odd_of(pairs_at(p))
                              : vec_widen(p + LANES * (type == DTYPE_F32 ? 4 : 2), type);
}
static inline vec vec_even_n(const char *p, int n, enum dtype type)
{
    char whole[2 * LANES * 4] = {0};
    memcpy(whole, p, (size_t)n * dtype_bytes(type));
    return vec_even(whole, type);
}
static inline vec vec_odd_n(const char *p, int n, enum dtype type)
{
    char whole[2 * LANES * 4] = {0};
    memcpy(whole, p, (size_t)n * dtype_bytes(type));
    return vec_odd(whole, type);
}
/* Lanes of a then b, the even ones and the odd ones. */
static inline vec in_order(vec x)
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
}
static inline vec vec_evens(vec a, vec b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
static inline vec vec_odds(vec a, vec b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
/* And back: lanes in order, the lower and the upper half. */
static inline vec vec_low(vec even, vec odd)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd), 0x20);
}
static inline vec vec_high(vec even, vec odd)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd), 0x31);
}

/* The sums of the lanes of four vectors. */
static inline __m128 vec_reduce4(vec a, vec b, vec c, vec d)
{
    vec ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vec cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vec x = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))),
                          _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))));
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

/* 8 x 8 words of 32 bits, rows to columns. */
static inline __attribute__((always_inline)) void transpose(__m256i x[8])
{
    __m256i a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) { /* b[i+j]: columns j and j+4 of rows i .. i+3 */
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        x[j] = _mm256_permute2x128_si256(b[j], b[j + 4], 0x20);
        x[j + 4] = _mm256_permute2x128_si256(b[j], b[j + 4], 0x31);
    }
}

static inline vec half_words(__m256i x, int shift)
{
    return _mm256_cvtph_ps(
        low_halves(_mm256_and_si256(_mm256_srli_epi32(x, shift), _mm256_set1_epi32(0xffff))));
}

/* Two-byte elements move in pairs; a transposed pair is split into its even and odd element. */
static inline __attribute__((always_inline)) void load_keys_type(float *kt, const char *const *row,
                                                                 size_t byte_offset, int n_cols, int n_e,
                                                                 const enum dtype type)
{
    int words = type == DTYPE_F32 ? n_e : n_e / 2;
    for (int c = 0; c < n_cols; c += 8)
        for (int w = 0; w < words; w += 8) {
            int n = words - w < 8 ? words - w : 8;
            __m256i x[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const void *p = row[c + i] + byte_offset + 4 * (size_t)w;
                x[i] = n == 8 ? _mm256_loadu_si256(p) : _mm256_maskload_epi32(p, lanes_below(n));
            }
            transpose(x);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                if (j >= n) break;
                float *to = kt + (size_t)(type == DTYPE_F32 ? w + j : 2 * (w + j)) * TILE_COLS + c;
                if (type == DTYPE_F32) {
                    vec_store(to, _mm256_castsi256_ps(x[j]));
                } else if (type == DTYPE_BF16) {
                    vec_store(to, _mm256_castsi256_ps(_mm256_slli_epi32(x[j], 16)));
                    vec_store(to + TILE_COLS, _mm256_castsi256_ps(_mm256_and_si256(
                                                  x[j], _mm256_set1_epi32((int)0xffff0000u))));
                } else {
                    vec_store(to, half_words(x[j], 0));
                    vec_store(to + TILE_COLS, half_words(x[j], 16));
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

static int count_at_least(const int32_t *key, int n, int32_t limit)
{
    __m256i l = _mm256_set1_epi32(limit);
    int below = 0;
    for (int i = 0; i < n; i += 8) {
        __m256i lt = _mm256_cmpgt_epi32(l, _mm256_loadu_si256((const __m256i *)(const void *)(key + i)));
        below += __builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(lt)));
    }
    return n - below;
}

#include "kernels/cpu/tile_simd.h"

/* Four bits as bytes. */
static inline __m256i low_nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline __m256i high_nibbles(__m256i x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
static inline __m256i code_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline __m256i code_sum(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

/* The sums of the lanes of four vectors. */
static inline __m128i code_reduce4(__m256i a, __m256i b, __m256i c, __m256i d)
{
    __m256i x = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

static inline void code_store2(int32_t *to, __m128i x) { _mm_storel_epi64((__m128i *)(void *)to, x); }

float tile_avx2_largest(const float *x, int n)
{
    const vec magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(INT_MAX));
    vec most = vec_zero();
    for (int e = 0; e < n; e += 8) {
        vec f = n - e < 8 ? vec_load_n(x + e, n - e) : vec_load(x + e);
        most = vec_max(_mm256_and_ps(f, magnitude), most); /* the second one where the first is NaN */
    }
    return vec_reduce_max(most);
}

int32_t tile_avx2_code(int8_t *code, int8_t *abs, const float *x, int n, float scale)
{
    const vec s = vec_set1(scale), top = vec_set1(127), bottom = vec_set1(-127);
    __m256i sum = _mm256_setzero_si256();
    for (int e = 0; e < n; e += 8) {
        vec f = n - e < 8 ? vec_load_n(x + e, n - e) : vec_load(x + e);
        __m256i k = _mm256_cvtps_epi32(vec_max(_mm256_min_ps(_mm256_div_ps(f, s), top), bottom));
        sum = _mm256_add_epi32(sum, k);
        __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(k), _mm256_extracti128_si256(k, 1));
        __m128i byte = _mm_packs_epi16(half, half);
        _mm_storel_epi64((__m128i *)(void *)(code + e), byte);
        _mm_storel_epi64((__m128i *)(void *)(abs + e), _mm_abs_epi8(byte));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_hadd_epi32(four, four);
    return _mm_cvtsi128_si32(_mm_hadd_epi32(four, four));
}

/* Two pages at once, their codes unpacked once for all queries. Sums of 16 bits hold: 8 products of a pair are
 * at most 8 * 2 * 15 * 127. */
INLINE void dots_q4(int32_t *c, int32_t *u, const struct tile_codes *q, const char *const *row,
                    const int segments)
{
    __m256i x[2][4][4]; /* page, segment, low and high codes of the middle, of the half-width */
    int half = q->E / 2;
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
#pragma GCC unroll 4
        for (int s = 0; s < segments; s++) {
            __m256i middle = code_load(row[j] + 32 * s), width = code_load(row[j] + half + 32 * s);
            x[j][s][0] = low_nibbles(middle);
            x[j][s][1] = high_nibbles(middle);
            x[j][s][2] = low_nibbles(width);
            x[j][s][3] = high_nibbles(width);
        }
    for (int i = 0; i < q->n_q; i++) {
        __m256i sum[2][2];
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            const int8_t *at = v ? q->abs[i] : q->q[i];
#pragma GCC unroll 4
            for (int s = 0; s < segments; s++) {
                __m256i q0 = code_load(at + 32 * s), q1 = code_load(at + 32 * (segments + s));
#pragma GCC unroll 2
                for (int j = 0; j < 2; j++) {
                    __m256i y = _mm256_add_epi16(_mm256_maddubs_epi16(x[j][s][2 * v], q0),
                                                 _mm256_maddubs_epi16(x[j][s][2 * v + 1], q1));
                    sum[v][j] = s ? _mm256_add_epi16(sum[v][j], y) : y;
                }
            }
        }
        __m128i both =
            code_reduce4(code_sum(sum[0][0]), code_sum(sum[0][1]), code_sum(sum[1][0]), code_sum(sum[1][1]));
        code_store2(c + i * TILE_COLS, _mm_sub_epi32(both, _mm_set1_epi32(8 * q->sum[i])));
        code_store2(u + i * TILE_COLS, _mm_unpackhi_epi64(both, both));
    }
}

/* A pair of products is at most 2 * 127 * 127: it fits, two pairs do not. */
INLINE void dots_q8(int32_t *c, int32_t *u, const struct tile_codes *q, const char *const *row, int segments)
{
    for (int i = 0; i < q->n_q; i++) {
        __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                          _mm256_setzero_si256()};
        for (int s = 0; s < segments; s++) {
            __m256i qs = code_load(q->q[i] + 32 * s), as = code_load(q->abs[i] + 32 * s);
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                __m256i x = code_load(row[j] + 32 * s), y = code_load(row[j] + q->E + 32 * s);
                x = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(qs, x));
                y = _mm256_maddubs_epi16(y, as);
                sum[j] = _mm256_add_epi32(sum[j], code_sum(x));
                sum[2 + j] = _mm256_add_epi32(sum[2 + j], code_sum(y));
            }
        }
        __m128i both = code_reduce4(sum[0], sum[1], sum[2], sum[3]);
        code_store2(c + i * TILE_COLS, both);
        code_store2(u + i * TILE_COLS, _mm_unpackhi_epi64(both, both));
    }
}

/* c and u (n_q,TILE_COLS) of the pages at row, n of them rounded up to two. */
static void code_dots(int32_t *c, int32_t *u, const struct tile_codes *q, const char *const *row, int n)
{
    int segments = q->length / 32;
    for (int j = 0; j < n; j += 2)
        if (q->type == SUMMARY_Q8) dots_q8(c + j, u + j, q, row + j, segments);
        else if (segments == 2) dots_q4(c + j, u + j, q, row + j, 1); /* the usual head widths */
        else if (segments == 4) dots_q4(c + j, u + j, q, row + j, 2);
        else if (segments == 6) dots_q4(c + j, u + j, q, row + j, 3);
        else dots_q4(c + j, u + j, q, row + j, 4);
}

void tile_avx2_code_scores(float *s, size_t s_stride, const struct tile_codes *q, const struct tile_run *run,
                           int n_runs, int n_ahead, float alpha)
{
    int32_t c[TILE_MAX_G * TILE_COLS], u[TILE_MAX_G * TILE_COLS];
    const struct tile_run *end = run + n_runs, *ahead = run + TILE_AHEAD, *last = end + n_ahead;
    size_t stride = tile_code_stride(q);
    vec a = vec_set1(alpha);
    while (run < end) {
        struct tile_pages page;
        for (; ahead <= run + TILE_AHEAD && ahead < last; ahead++) tile_prefetch_run(ahead, stride);
        int n = tile_take_runs(&page, &run, end, stride);
        code_dots(c, u, q, page.row, n);
        for (int j = 0; j < n; j += 8) {
            __m256i pair = code_load(page.scales + j);
            vec scale_c = even_of(pair), scale_u = vec_mul(odd_of(pair), a);
            for (int i = 0; i < q->n_q; i++) {
                vec x = _mm256_cvtepi32_ps(code_load(c + i * TILE_COLS + j));
                vec y = _mm256_cvtepi32_ps(code_load(u + i * TILE_COLS + j));
                x = vec_mul(vec_add(vec_mul(x, scale_c), vec_mul(y, scale_u)), vec_set1(q->scale[i]));
                float *to = s + (size_t)i * s_stride + j;
                if (n - j < 8) vec_store_n(to, x, n - j);
                else vec_store(to, x);
            }
        }
        s += n;
    }
}

#define vec_sub _mm256_sub_ps

static inline vec vec_times_power(vec x, vec bits)
{
    __m256i power = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power));
}

static inline void vec_store_key(int32_t *key, vec f)
{
    __m256i i = _mm256_castps_si256(vec_add(f, vec_zero()));
    i = _mm256_xor_si256(i, _mm256_srli_epi32(_mm256_srai_epi32(i, 31), 1));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    i = _mm256_blendv_epi8(i, _mm256_set1_epi32(INT_MIN + 1), nan);
    _mm256_storeu_si256((__m256i *)(void *)key, i);
}

#include "kernels/cpu/tile_choose.h"

const struct tile tile_avx2 = {
    .dots = dots,
    .dots_fours = dots_fours,
    .largest = tile_avx2_largest,
    .code = tile_avx2_code,
    .code_scores = tile_avx2_code_scores,
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
    .count_at_least = count_at_least,
    .list_between = tile_list_between,
    .take_above = tile_take_above,
};
