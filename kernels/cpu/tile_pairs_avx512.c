/* tile_pairs_avx512.c - dots, weigh and values of attention with products of bf16 in pairs (vdpbf16ps), for a
 * device that multiplies bf16 activations so (linear.h). Queries and weights are not rounded to bf16 but split in two
 * such numbers, the second being what the first leaves: 16 bits of their 24. Sums are f32.
 *
 * A word of 32 bits is a pair: two neighbouring elements of a key, or one element of two neighbouring values.
 * Rows are loaded first, whatever the order of the sums (rows_avx512.h). */
#include <immintrin.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/exp_avx512.h"
#include "kernels/cpu/rows_avx512.h"

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum {
    LINE = 32, /* elements of a cache line */
    DOT_QUERIES = 6,
    VALUE_QUERIES = 5, /* done together: their sums stay in registers */
    DOT_TOKENS = 8     /* keys done together */
};

/* The k-th of n groups to take: 0 1 3 2 of each four. */
INLINE int zigzag(int k, int n) { return k < n / 4 * 4 ? k ^ (k >> 1 & 1) : k; }

/* The first n of a line's elements, zeros behind. */
INLINE __m512i line_of(const char *p, int n)
{
    return loaded(n >= LINE ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(n > 0 ? (1u << n) - 1 : 0, p));
}

/* x[v][k] = the line v < NL of n elements at row[k] + offset. Asks for as much at `ahead`, if that is not NULL. */
INLINE void four_rows(__m512i x[2][4], const char *const *row, size_t offset, const char *const *ahead,
                      size_t ahead_offset, int n, const int NL)
{
    UNROLL for (int r = 0; r < 4; r++) UNROLL for (int v = 0; v < NL; v++)
    {
        if (ahead) _mm_prefetch(ahead[r] + ahead_offset + v * 64, _MM_HINT_T2);
        x[v][ROW_ORDER[r]] = line_of(row[ROW_ORDER[r]] + offset + v * 64, n - v * LINE);
    }
}

INLINE __m512 add_pairs(__m512 sum, __m512i a, __m512i b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

INLINE __m512 widen(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* x of a, then b, in two bf16: x is about part[0] + part[1]. */
INLINE void split(__m512i part[2], __m512 a, __m512 b)
{
    part[0] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(part[0])));
    b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(part[0], 1)));
    part[1] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

/* Lanes 0 + 1 and 2 + 3 of a, then of b. */
INLINE __m512 add_lanes(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Products of NQ queries with 4 * NB rows. */
INLINE void dots_block(float *s, size_t s_stride, const __m512i *q, size_t q_stride, const char *const *row,
                       const char *const *ahead, int width, const int NQ, const int NB)
{
    __m512 a[DOT_QUERIES][DOT_TOKENS / 4];
    UNROLL for (int i = 0; i < NQ; i++) UNROLL for (int b = 0; b < NB; b++) a[i][b] = _mm512_setzero_ps();
    for (int at = 0; at < width; at += 2 * LINE, q += 16) {
        __m512i y[DOT_TOKENS / 4][2][4];
        UNROLL for (int b = 0; b < NB; b++)
        {
            __m512i x[2][4];
            four_rows(x, row + 4 * b, (size_t)at * 2, ahead ? ahead + 4 * b : NULL, (size_t)at * 2,
                      width - at, 2);
            turn_words(y[b][0], x[0]);
            turn_words(y[b][1], x[1]);
        }
        UNROLL for (int j = 0; j < 16; j++) UNROLL for (int i = 0; i < NQ; i++)
        {
            __m512i w = q[(size_t)i * q_stride + (size_t)j];
            UNROLL for (int b = 0; b < NB; b++) a[i][b] = add_pairs(a[i][b], y[b][j / 8][j % 4], w);
        }
    }
    /* The four lanes of a sum added are the products of its four rows. */
    UNROLL for (int i = 0; i < NQ; i++)
    {
        __m512 t = add_lanes(a[i][0], NB == 2 ? a[i][1] : a[i][0]);
        t = add_lanes(t, t);
        float *to = s + (size_t)i * s_stride;
        if (NB == 2) _mm256_storeu_ps(to, _mm512_castps512_ps256(t));
        else _mm_storeu_ps(to, _mm512_castps512_ps128(t));
    }
}

INLINE void dots_queries(float *s, size_t s_stride, const __m512i *q, size_t q_stride, const char *const *row,
                         const char *const *ahead, int c0, int c1, int width, const int NQ)
{
    int n = (c1 - c0) / DOT_TOKENS, c = c0 + n * DOT_TOKENS;
    for (int k = 0; k < n; k++) {
        int at = c0 + zigzag(k, n) * DOT_TOKENS, next = c0 + k * DOT_TOKENS;
        dots_block(s + at, s_stride, q, q_stride, row + at, ahead ? ahead + next : NULL, width, NQ, 2);
    }
    if (c < c1) dots_block(s + c, s_stride, q, q_stride, row + c, ahead ? ahead + c : NULL, width, NQ, 1);
}

INLINE __mmask16 lanes_of(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* A query as dots_block multiplies it: of each line four vectors for its first part, then four for the second, word
 * 4 L + j in all of lane L of vector j. */
static void spread(__m512i *to, const float *q, int lines, int width)
{
    for (int v = 0; v < lines; v++, q += LINE, width -= LINE) {
        __m512i part[2];
        split(part, _mm512_maskz_loadu_ps(lanes_of(width), q),
              _mm512_maskz_loadu_ps(lanes_of(width - 16), q + 16));
        for (int k = 0; k < 2; k++, to += 4) {
            to[0] = _mm512_shuffle_epi32(part[k], _MM_PERM_AAAA);
            to[1] = _mm512_shuffle_epi32(part[k], _MM_PERM_BBBB);
            to[2] = _mm512_shuffle_epi32(part[k], _MM_PERM_CCCC);
            to[3] = _mm512_shuffle_epi32(part[k], _MM_PERM_DDDD);
        }
    }
}

/* Queries of n that are done together: blocks of about equal height, none above `most`. */
static int height(int n, int most)
{
    int blocks = (n + most - 1) / most;
    return (n + blocks - 1) / blocks;
}

static void dots(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const char *const *row,
                 const char *const *ahead, int c0, int c1, int width, enum dtype type)
{
    __m512i x[DOT_QUERIES * 8 * (TILE_MAX_E / LINE)];
    int lines = (width + 2 * LINE - 1) / (2 * LINE) * 2;
    size_t stride = (size_t)lines * 8;
    (void)type;
    while (n_q > 0) {
        int n = height(n_q, DOT_QUERIES);
        for (int i = 0; i < n; i++) spread(x + (size_t)i * stride, q + (size_t)i * q_stride, lines, width);
        switch (n) {
        case 1: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 1); break;
        case 2: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 2); break;
        case 3: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 3); break;
        case 4: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 4); break;
        case 5: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 5); break;
        default: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, 6); break;
        }
        s += (size_t)n * s_stride;
        q += (size_t)n * q_stride;
        n_q -= n;
        ahead = NULL; /* once is enough */
    }
}

/* Where weigh() leaves the weights of rows t and t + 1, their second parts 16 words on: scores of LINE rows become as
 * many words. */
INLINE int words_at(int t) { return t / LINE * LINE + t % LINE / 2; }

/* One of `values`' blocks: NQ outputs of NL lines from o on, the last line with `tail` elements. Sums lie in
 * registers as unpacking leaves the elements: eights, the lower halves in one vector, the upper in the other. */
INLINE void values_rows(__m512 a[VALUE_QUERIES][2][2], const uint32_t *p, size_t p_stride,
                        const char *const *row, size_t byte_offset, const char *const *ahead,
                        size_t ahead_offset, int tail, const int NQ, const int NL)
{
    __m512i x[2][4];
    four_rows(x, row, byte_offset, ahead, ahead_offset, (NL - 1) * LINE + tail, NL);
    UNROLL for (int pair = 0; pair < 2; pair++)
    {
        __m512i y[2][2];
        UNROLL for (int v = 0; v < NL; v++)
        {
            y[v][0] = _mm512_unpacklo_epi16(x[v][2 * pair], x[v][2 * pair + 1]);
            y[v][1] = _mm512_unpackhi_epi16(x[v][2 * pair], x[v][2 * pair + 1]);
        }
        UNROLL for (int i = 0; i < NQ; i++)
        {
            UNROLL for (int part = 0; part < 2; part++)
            {
                __m512i w = _mm512_set1_epi32((int)p[(size_t)i * p_stride + (size_t)(16 * part + pair)]);
                UNROLL for (int v = 0; v < NL; v++)
                {
                    a[i][v][0] = add_pairs(a[i][v][0], y[v][0], w);
                    a[i][v][1] = add_pairs(a[i][v][1], y[v][1], w);
                }
            }
        }
    }
}

INLINE void values_block(float *o, size_t o_stride, const uint32_t *p, size_t p_stride,
                         const char *const *row, size_t byte_offset, const char *const *ahead,
                         size_t ahead_offset, int t0, int t1, int tail, const int NQ, const int NL)
{
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512 a[VALUE_QUERIES][2][2];
    UNROLL for (int i = 0; i < NQ; i++) UNROLL for (int v = 0; v < NL; v++)
    {
        const float *at = o + (size_t)i * o_stride + v * LINE;
        int n = v < NL - 1 ? LINE : tail;
        __m512 lo = _mm512_maskz_loadu_ps(lanes_of(n), at),
               hi = _mm512_maskz_loadu_ps(lanes_of(n - 16), at + 16);
        a[i][v][0] = _mm512_shuffle_f32x4(lo, hi, 0x88);
        a[i][v][1] = _mm512_shuffle_f32x4(lo, hi, 0xdd);
    }
    int groups = (t1 - t0) / 4, t = t0 + groups * 4;
    for (int k = 0; k < groups; k++) {
        int at = t0 + zigzag(k, groups) * 4, next = t0 + k * 4;
        values_rows(a, p + words_at(at), p_stride, row + at, byte_offset, ahead ? ahead + next : NULL,
                    ahead_offset, tail, NQ, NL);
    }
    if (t < t1) {
        const char *rest[4];
        for (int k = 0; k < 4; k++) rest[k] = t + k < t1 ? row[t + k] + byte_offset : tile_zero_row;
        values_rows(a, p + words_at(t), p_stride, rest, 0, ahead ? ahead + t : NULL, ahead_offset, tail, NQ,
                    NL);
    }
    UNROLL for (int i = 0; i < NQ; i++) UNROLL for (int v = 0; v < NL; v++)
    {
        float *at = o + (size_t)i * o_stride + v * LINE;
        int n = v < NL - 1 ? LINE : tail;
        __m512d lo = _mm512_castps_pd(a[i][v][0]), hi = _mm512_castps_pd(a[i][v][1]);
        _mm512_mask_storeu_ps(at, lanes_of(n), _mm512_castpd_ps(_mm512_permutex2var_pd(lo, first, hi)));
        _mm512_mask_storeu_ps(at + 16, lanes_of(n - 16),
                              _mm512_castpd_ps(_mm512_permutex2var_pd(lo, second, hi)));
    }
}

INLINE void values_queries(float *o, size_t o_stride, const uint32_t *p, size_t p_stride,
                           const char *const *row, size_t byte_offset, const char *const *ahead, int t0,
                           int t1, int E, const int NQ)
{
    for (int e = 0; e < E; e += 2 * LINE) {
        size_t at = (size_t)e * 2;
        int n = E - e;
        if (n >= 2 * LINE)
            values_block(o + e, o_stride, p, p_stride, row, byte_offset + at, ahead, at, t0, t1, LINE, NQ, 2);
        else if (n > LINE)
            values_block(o + e, o_stride, p, p_stride, row, byte_offset + at, ahead, at, t0, t1, n - LINE, NQ,
                         2);
        else values_block(o + e, o_stride, p, p_stride, row, byte_offset + at, ahead, at, t0, t1, n, NQ, 1);
    }
}

static void values(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                   const char *const *row, size_t byte_offset, const char *const *ahead, int t0, int t1,
                   int E, enum dtype type)
{
    const uint32_t *pairs = (const uint32_t *)(const void *)p;
    (void)type;
    while (n_q > 0) {
        int n = height(n_q, VALUE_QUERIES);
        switch (n) {
        case 1: values_queries(o, o_stride, pairs, p_stride, row, byte_offset, ahead, t0, t1, E, 1); break;
        case 2: values_queries(o, o_stride, pairs, p_stride, row, byte_offset, ahead, t0, t1, E, 2); break;
        case 3: values_queries(o, o_stride, pairs, p_stride, row, byte_offset, ahead, t0, t1, E, 3); break;
        case 4: values_queries(o, o_stride, pairs, p_stride, row, byte_offset, ahead, t0, t1, E, 4); break;
        default: values_queries(o, o_stride, pairs, p_stride, row, byte_offset, ahead, t0, t1, E, 5); break;
        }
        o += (size_t)n * o_stride;
        pairs += (size_t)n * p_stride;
        ahead = NULL; /* once is enough */
        n_q -= n;
    }
}

static void weigh(float *s, size_t s_stride, int n_q, int n, float scale, float *ml, float *factor)
{
    const __m512 f = _mm512_set1_ps(scale);
    for (int i = 0; i < n_q; i++, s += s_stride, ml += 2) {
        __m512 top = _mm512_set1_ps(ml[0]), sum = _mm512_setzero_ps();
        for (int c = 0; c < n; c += 16) top = _mm512_max_ps(_mm512_mul_ps(_mm512_loadu_ps(s + c), f), top);
        float m = _mm512_reduce_max_ps(top);
        factor[i] = tile_move(ml, m);
        const __m512 shift = _mm512_set1_ps(m > -INFINITY ? -m : 0);
        for (int c = 0; c < n; c += LINE) {
            __m512 a = exp_avx512(_mm512_fmadd_ps(_mm512_loadu_ps(s + c), f, shift)), b = _mm512_setzero_ps();
            if (c + 16 < n) b = exp_avx512(_mm512_fmadd_ps(_mm512_loadu_ps(s + c + 16), f, shift));
            __m512i part[2];
            split(part, a, b);
            _mm512_storeu_si512(s + c, part[0]);
            _mm512_storeu_si512(s + c + 16, part[1]);
            sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        }
        ml[1] += _mm512_reduce_add_ps(sum);
    }
}

const struct tile_products tile_pairs_avx512 = {.dots = dots, .weigh = weigh, .values = values};
