/* tile_codes_avx512.c - tile primitives of choosing pages with AVX-512 (F, BW, VL, DQ, VNNI): sums of codes and what is
 * done with the keys that the scores become. */
#include <immintrin.h>

#include "kernels/cpu/attention.h"

#define INLINE static inline __attribute__((always_inline))

static inline __mmask16 lanes_below(int n) { return (__mmask16)((1u << n) - 1); }

int tile_avx512_count_at_least(const int32_t *key, int n, int32_t limit)
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

int tile_avx512_list_between(int32_t *list, int room, int *over, const int32_t *key, int n, int32_t low,
                             int32_t high)
{
    const __m512i l = _mm512_set1_epi32(low), h = _mm512_set1_epi32(high);
    int count = 0, above = 0;
    for (int i = 0; i < n; i += 16) {
        __m512i x = _mm512_loadu_si512(key + i);
        uint32_t up = _mm512_cmpgt_epi32_mask(x, h), in = _mm512_cmpge_epi32_mask(x, l) & ~up;
        /* The register form: the one to memory is a hundred times slower on Zen 4. */
        __m512i taken = _mm512_maskz_compress_epi32((__mmask16)in, x);
        if (count + 16 <= room) _mm512_storeu_si512(list + count, taken);
        else if (count < room) _mm512_mask_storeu_epi32(list + count, lanes_below(room - count), taken);
        count += __builtin_popcount(in);
        above += __builtin_popcount(up);
    }
    *over = above;
    return count;
}

void tile_avx512_take_above(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit,
                            int n_ties)
{
    const __m512i l = _mm512_set1_epi32(limit), step = _mm512_set1_epi32(16);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int i = 0, taken = 0; taken < n_taken; i += 16, at = _mm512_add_epi32(at, step)) {
        __m512i x = _mm512_loadu_si512(key + i);
        uint32_t in = _mm512_cmpgt_epi32_mask(x, l), tie = _mm512_cmpeq_epi32_mask(x, l);
        for (; tie && n_ties > 0; n_ties--, tie &= tie - 1) in |= tie & -tie;
        __m512i chosen = _mm512_maskz_compress_epi32((__mmask16)in, at);
        int more = __builtin_popcount(in);
        /* What lies behind the chosen is overwritten by the next ones: a masked store takes far longer. */
        if (taken + 16 <= n_taken) _mm512_storeu_si512(index + taken, chosen);
        else _mm512_mask_storeu_epi32(index + taken, lanes_below(more), chosen);
        taken += more;
    }
}

INLINE __m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE __m512i high_nibbles(__m512i x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }

enum { TWICE = TILE_AHEAD * 3 / 4, THRICE = TILE_AHEAD / 2 }; /* runs ahead */
enum { CODE_Q = 4 }; /* queries at once: two chains and two registers of codes each, beside eight of pages */

/* x[j]: words j, j + 4, j + 8, j + 12 of 64 bytes of four rows, those of the same place side by side. */
INLINE void turn(__m512i x[4], const char *const *row, int offset)
{
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        int k = ROW_ORDER[i];
        r[k] = _mm512_loadu_si512(row[k] + offset);
        __asm__ volatile("" : "+v"(r[k])); /* keeps the order */
    }
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

/* Codes to ask for while others are multiplied, NULL for none: asked for all at once they keep the loads waiting. `ahead` are
 * those of a run far ahead, into the second cache; twice and thrice those of nearer ones, there once more in case they were
 * dropped; `next` those of the next run, into the first, as the loads alone do not hide the second's latency. */
struct asked {
    const char *ahead, *twice, *thrice, *next;
};

INLINE void ask(const struct asked *a, size_t at)
{
    if (a->ahead) _mm_prefetch(a->ahead + at, _MM_HINT_T2);
    if (a->twice) _mm_prefetch(a->twice + at, _MM_HINT_T2);
    if (a->thrice) _mm_prefetch(a->thrice + at, _MM_HINT_T2);
    if (a->next) _mm_prefetch(a->next + at, _MM_HINT_T0);
}

/* Codes and scales of run[i], or NULL when it is not one of those before `last`. */
INLINE const char *ask_run(const struct tile_run *run, int i, const struct tile_run *last)
{
    if (last - run <= i) return NULL;
    _mm_prefetch(run[i].scales, _MM_HINT_T2);
    return run[i].codes;
}

/* sum[i]: of the products of 64 bytes of eight pages with query i, the quarters' neighbours added: quarters 0 and 1 the
 * first four pages. begin: which four are loaded first. Asks for 512 bytes from ask_at on. */
INLINE void eight_pages(__m512i sum[CODE_Q], const char *const *row, int offset, const __m512i w[][4][2],
                        const int begin, const struct asked *asked, size_t ask_at, const int NQ)
{
    __m512i x[2][4], a[CODE_Q][2];
    turn(x[begin], row + 4 * begin, offset);
    turn(x[!begin], row + 4 * !begin, offset);
#pragma GCC unroll 4
    for (int i = 0; i < NQ; i++) a[i][0] = a[i][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i low[2], high[2];
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            low[g] = low_nibbles(x[g][j]);
            high[g] = high_nibbles(x[g][j]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < NQ; i++)
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) a[i][g] = _mm512_dpbusd_epi32(a[i][g], low[g], w[i][j][0]);
        for (size_t line = 0; line < 128; line += 64) ask(asked, ask_at + 128 * (size_t)j + line);
#pragma GCC unroll 4
        for (int i = 0; i < NQ; i++)
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) a[i][g] = _mm512_dpbusd_epi32(a[i][g], high[g], w[i][j][1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < NQ; i++) sum[i] = add_quarters(a[i][0], a[i][1]);
}

/* Scores (NQ,s_stride) of 16 pages of width 64 or 128 with queries i0 .., of which the first n are written. */
INLINE void score_pages(float *s, size_t s_stride, const struct tile_codes *q, int i0, const char *const *row,
                        const void *scales, int n, __m512 alpha, const __m512i w[2][CODE_Q][4][2],
                        const struct asked *asked, const int E, const int NQ)
{
    __m512i sum[2][2][CODE_Q], pair = _mm512_loadu_si512(scales);
#pragma GCC unroll 2
    for (int v = 0; v < E / 64; v++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            eight_pages(sum[v][half], row + 8 * half, 64 * v, w[v], half, asked, 512 * (size_t)(2 * v + half),
                        NQ);
    __m512 scale_c = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    __m512 scale_u = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
    scale_u = _mm512_mul_ps(scale_u, alpha);
#pragma GCC unroll 4
    for (int i = 0; i < NQ; i++) {
        __m512i middle, width;
        if (E == 64) { /* quarters are middle, half-width, middle, ... */
            middle = _mm512_shuffle_i32x4(sum[0][0][i], sum[0][1][i], 0x88);
            width = _mm512_shuffle_i32x4(sum[0][0][i], sum[0][1][i], 0xdd);
        } else {
            middle = add_quarters(sum[0][0][i], sum[0][1][i]);
            width = add_quarters(sum[1][0][i], sum[1][1][i]);
        }
        /* codes of the middle are stored plus 8 */
        middle = _mm512_sub_epi32(middle, _mm512_set1_epi32(8 * q->sum[i0 + i]));
        __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(middle), scale_c);
        x = _mm512_add_ps(x, _mm512_mul_ps(_mm512_cvtepi32_ps(width), scale_u));
        x = _mm512_mul_ps(x, _mm512_set1_ps(q->scale[i0 + i]));
        float *to = s + (size_t)(i0 + i) * s_stride;
        if (n == TILE_RUN) _mm512_storeu_ps(to, x);
        else _mm512_mask_storeu_ps(to, lanes_below(n), x);
    }
}

/* Queries [i0,i0+NQ) with the pages of the runs. */
INLINE void score_queries(float *s, size_t s_stride, const struct tile_codes *q, int i0,
                          const struct tile_run *run, int n_runs, int n_ahead, float alpha, const int E,
                          const int NQ)
{
    __m512i w[2][CODE_Q][4][2];
    for (int i = 0; i < NQ; i++) {
        turn_query(w[0][i], q->q[i0 + i], q->abs[i0 + i], E);
        if (E == 128) turn_query(w[1][i], q->abs[i0 + i], q->abs[i0 + i], E);
    }
    const struct tile_run *end = run + n_runs, *ahead = run + TILE_AHEAD, *last = end + n_ahead;
    while (run < end) {
        struct asked asked = {0};
        if (run->n == TILE_RUN) {
            if (ahead <= run + TILE_AHEAD && ahead < last) {
                asked.ahead = ahead->codes;
                _mm_prefetch(ahead++->scales, _MM_HINT_T2);
            }
            if (q->drops) {
                asked.twice = ask_run(run, TWICE, last);
                asked.thrice = ask_run(run, THRICE, last);
            } else if (run + 1 < last) {
                asked.next = run[1].codes;
                _mm_prefetch(run[1].scales, _MM_HINT_T0);
            }
            const char *row[TILE_RUN];
#pragma GCC unroll 16 /* then they are no memory, but part of the loads */
            for (int j = 0; j < TILE_RUN; j++) row[j] = run->codes + j * E;
            score_pages(s, s_stride, q, i0, row, run->scales, TILE_RUN, _mm512_set1_ps(alpha), w, &asked, E,
                        NQ);
            run++;
            s += TILE_RUN;
        } else {
            struct tile_pages page;
            for (; ahead <= run + TILE_AHEAD && ahead < last; ahead++) tile_prefetch_run(ahead, (size_t)E);
            int n = tile_take_runs(&page, &run, end, (size_t)E);
            score_pages(s, s_stride, q, i0, page.row, page.scales, n, _mm512_set1_ps(alpha), w, &asked, E,
                        NQ);
            s += n;
        }
    }
}

INLINE void score_q4(float *s, size_t s_stride, const struct tile_codes *q, const struct tile_run *run,
                     int n_runs, int n_ahead, float alpha, const int E)
{
    int i = 0;
    for (; i + 4 <= q->n_q; i += 4) {
        score_queries(s, s_stride, q, i, run, n_runs, n_ahead, alpha, E, 4);
        n_ahead = -n_runs; /* once is enough: no run is left to ask for */
    }
    if (q->n_q - i == 3) score_queries(s, s_stride, q, i, run, n_runs, n_ahead, alpha, E, 3);
    else if (q->n_q - i == 2) score_queries(s, s_stride, q, i, run, n_runs, n_ahead, alpha, E, 2);
    else if (q->n_q - i == 1) score_queries(s, s_stride, q, i, run, n_runs, n_ahead, alpha, E, 1);
}

void tile_avx512_code_scores(float *s, size_t s_stride, const struct tile_codes *q,
                             const struct tile_run *run, int n_runs, int n_ahead, float alpha)
{
    if (q->type == SUMMARY_Q4 && q->E == 64) score_q4(s, s_stride, q, run, n_runs, n_ahead, alpha, 64);
    else if (q->type == SUMMARY_Q4 && q->E == 128) score_q4(s, s_stride, q, run, n_runs, n_ahead, alpha, 128);
    else tile_avx2_code_scores(s, s_stride, q, run, n_runs, n_ahead, alpha);
}
