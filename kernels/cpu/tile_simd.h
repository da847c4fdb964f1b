/* tile_simd.h - tile primitives of attention over a vector type; included once by tile_avx2.c and once by
 * tile_avx512.c, which define before it:
 *
 *   vec, LANES          a vector of f32 and how many it holds
 *   BLOCK               vectors beside each other in a block of accumulators
 *   BLOCK_Q             queries below each other
 *   vec_zero vec_set1 vec_load vec_store vec_fma vec_mul vec_add vec_max vec_reduce_max
 *   vec_load_n(p, n), vec_store_n(p, v, n)           the first n lanes, the others zero, untouched in memory
 *   vec_widen(p, type), vec_widen_n(p, n, type)      LANES elements of a type as f32
 *   vec_narrow(p, v, type)                           LANES elements, rounded as dtype.h does it
 *   vec_exp(v)          e^v for v <= 0 or so; 0 below -87; error within 2 units in the last place
 *   vec_reduce4(a, b, c, d)                          the sums of the lanes of each
 *   vec_even(p, type), vec_odd(p, type)              of 2 * LANES elements: every other one of bf16, else halves
 *   vec_even_n(p, n, type), vec_odd_n(p, n, type)    the same of n elements and zeros
 *   vec_evens(a, b), vec_odds(a, b)                  lanes 0, 2, ... and 1, 3, ... of a then b
 *   vec_low(even, odd), vec_high(even, odd)          and back: lanes in order, the lower and the upper half
 *   load_keys, PREFETCH (a hint)
 *
 * What the compiler must see as constants (how many accumulators live in registers) are arguments of
 * always-inlined functions. */
#define INLINE static inline __attribute__((always_inline))

/* Rows that were asked for a chunk ahead are asked for again, into the first cache, so many rows before they are needed:
 * of what was asked for some is not there, and what is waits in the second cache, whose latency the loads alone do not
 * hide. Measured in docs/benchmarks.md, "Why attention stops where it does". */
enum { AGAIN = 32 };

/* 2 * LANES elements in order, in *a then *b, become what vec_even and vec_odd take of such a row; and back. */
INLINE void vec_part(vec *a, vec *b, const enum dtype type)
{
    if (type != DTYPE_BF16) return;
    vec even = vec_evens(*a, *b), odd = vec_odds(*a, *b);
    *a = even;
    *b = odd;
}
INLINE void vec_join(vec *a, vec *b, const enum dtype type)
{
    if (type != DTYPE_BF16) return;
    vec low = vec_low(*a, *b), high = vec_high(*a, *b);
    *a = low;
    *b = high;
}

/* Asks for the lines that begin in bytes [at,at+n) of four rows, where `row` is not NULL; `at` is a multiple of n. */
INLINE void ask_rows(const char *const *row, size_t at, const size_t n, const bool soon)
{
    if (!row || (n < 64 && at % 64)) return;
#pragma GCC unroll 2
    for (size_t line = 0; line < n; line += 64)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            if (soon) _mm_prefetch(row[r] + at + line, _MM_HINT_T0);
            else _mm_prefetch(row[r] + at + line, PREFETCH);
}

/* Products of NQ queries with four rows: sums per lane, then over the lanes. q: blocks of 2 * LANES elements
 * as vec_even and vec_odd take them from a row, zeros behind the last. Between the products it asks for the rows at `ahead`
 * and, for the first cache, at `soon`: all at once would keep the loads waiting. */
INLINE void dots_block(float *s, size_t s_stride, const float *q, size_t q_stride, const char *const *row,
                       const char *const *ahead, const char *const *soon, int width, const enum dtype type,
                       const int NQ)
{
    vec a[DOT_Q][4];
    const size_t step = 2 * LANES * (type == DTYPE_F32 ? 4 : 2);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) a[i][r] = vec_zero();
    const char *k[4] = {row[0], row[1], row[2], row[3]};
    size_t at = 0;
    for (; width > 0; width -= 2 * LANES, at += step, q += 2 * LANES) {
        vec x[4];
        bool whole = width >= 2 * LANES;
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            x[r] = whole ? vec_even(k[r] + at, type) : vec_even_n(k[r] + at, width, type);
#pragma GCC unroll 8
        for (int i = 0; i < NQ; i++) {
            vec w = vec_load(q + (size_t)i * q_stride);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) a[i][r] = vec_fma(w, x[r], a[i][r]);
        }
        ask_rows(soon, at, step, true);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            x[r] = whole ? vec_odd(k[r] + at, type) : vec_odd_n(k[r] + at, width, type);
#pragma GCC unroll 8
        for (int i = 0; i < NQ; i++) {
            vec w = vec_load(q + (size_t)i * q_stride + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) a[i][r] = vec_fma(w, x[r], a[i][r]);
        }
        ask_rows(ahead, at, step, false);
    }
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
        _mm_storeu_ps(s + (size_t)i * s_stride, vec_reduce4(a[i][0], a[i][1], a[i][2], a[i][3]));
}

INLINE void dots_queries(float *s, size_t s_stride, const float *q, size_t q_stride, const char *const *row,
                         const char *const *ahead, int c0, int c1, int width, const enum dtype type,
                         const int NQ)
{
    for (int c = c0; c < c1; c += 4)
        dots_block(s + c, s_stride, q, q_stride, row + c, ahead ? ahead + c : NULL,
                   ahead && c + AGAIN < c1 ? row + c + AGAIN : NULL, width, type, NQ);
}

INLINE void dots_type(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q,
                      const char *const *row, const char *const *ahead, int c0, int c1, int width,
                      const enum dtype type)
{
    float x[DOT_Q * 2 * TILE_MAX_E] __attribute__((aligned(64)));
    int blocks = (width + 2 * LANES - 1) / (2 * LANES);
    size_t stride = (size_t)blocks * 2 * LANES;
    while (n_q > 0) {
        int n = (n_q + DOT_Q - 1) / DOT_Q;
        n = (n_q + n - 1) / n;
        for (int i = 0; i < n; i++)
            for (int e = 0; e < width; e += 2 * LANES) {
                const float *from = q + (size_t)i * q_stride + e;
                float *to = x + (size_t)i * stride + e;
                int left = width - e;
                vec lo = left >= LANES ? vec_load(from) : vec_load_n(from, left);
                vec hi = left >= 2 * LANES ? vec_load(from + LANES)
                         : left > LANES    ? vec_load_n(from + LANES, left - LANES)
                                           : vec_zero();
                vec_part(&lo, &hi, type);
                vec_store(to, lo);
                vec_store(to + LANES, hi);
            }
        switch (n) {
        case 1: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 1); break;
        case 2: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 2); break;
        case 3: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 3); break;
#if DOT_Q > 3
        case 4: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 4); break;
        case 5: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 5); break;
        case 6: dots_queries(s, s_stride, x, stride, row, ahead, c0, c1, width, type, 6); break;
#endif
        }
        s += (size_t)n * s_stride;
        q += (size_t)n * q_stride;
        n_q -= n;
        ahead = NULL; /* once is enough */
    }
}

static void dots(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const char *const *row,
                 const char *const *ahead, int c0, int c1, int width, enum dtype type)
{
    if (type == DTYPE_F32) dots_type(s, s_stride, q, q_stride, n_q, row, ahead, c0, c1, width, DTYPE_F32);
    else if (type == DTYPE_BF16)
        dots_type(s, s_stride, q, q_stride, n_q, row, ahead, c0, c1, width, DTYPE_BF16);
    else dots_type(s, s_stride, q, q_stride, n_q, row, ahead, c0, c1, width, DTYPE_F16);
}

/* Scores of NQ queries with NV vectors of columns. One chain per accumulator: NQ * NV of them hide the
 * latency. */
INLINE void scores_block(float *s, size_t s_stride, const float *q, size_t q_stride, const float *kt, int n_e,
                         bool add, const int NQ, const int NV)
{
    vec a[BLOCK_Q][BLOCK];
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++)
            a[i][v] = add ? vec_load(s + (size_t)i * s_stride + v * LANES) : vec_zero();
    for (int e = 0; e < n_e; e++) {
        vec k[BLOCK];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) k[v] = vec_load(kt + e * TILE_COLS + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < NQ; i++) {
            vec qe = vec_set1(q[(size_t)i * q_stride + (size_t)e]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) a[i][v] = vec_fma(qe, k[v], a[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) vec_store(s + (size_t)i * s_stride + v * LANES, a[i][v]);
}

INLINE void scores_queries(float *s, size_t s_stride, const float *q, size_t q_stride, const float *kt,
                           int n_e, int c0, int c1, bool add, const int NQ)
{
    int c = c0;
    for (; c + BLOCK * LANES <= c1; c += BLOCK * LANES)
        scores_block(s + c, s_stride, q, q_stride, kt + c, n_e, add, NQ, BLOCK);
    for (; c < c1; c += LANES) scores_block(s + c, s_stride, q, q_stride, kt + c, n_e, add, NQ, 1);
}

/* How many queries of n are done together: blocks of about equal height, none above BLOCK_Q. */
INLINE int block_height(int n)
{
    int blocks = (n + BLOCK_Q - 1) / BLOCK_Q;
    return (n + blocks - 1) / blocks;
}

static void scores(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const float *kt,
                   int n_e, int c0, int c1, bool add)
{
    while (n_q > 0) {
        int n = block_height(n_q);
        switch (n) {
        case 1: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 1); break;
        case 2: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 2); break;
        case 3: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 3); break;
        case 4: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 4); break;
        case 5: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 5); break;
        default: scores_queries(s, s_stride, q, q_stride, kt, n_e, c0, c1, add, 6); break;
        }
        s += (size_t)n * s_stride;
        q += (size_t)n * q_stride;
        n_q -= n;
    }
}

static void weigh(float *s, size_t s_stride, int n_q, int n, float scale, float *ml, float *factor)
{
    vec f = vec_set1(scale);
    for (int i = 0; i < n_q; i++, s += s_stride, ml += 2) {
        vec top = vec_set1(ml[0]), sum = vec_zero();
        for (int c = 0; c < n; c += LANES) top = vec_max(vec_mul(vec_load(s + c), f), top);
        float m = vec_reduce_max(top);
        factor[i] = tile_move(ml, m);
        vec shift = vec_set1(m > -INFINITY ? -m : 0);
        for (int c = 0; c < n; c += LANES) {
            vec x = vec_exp(vec_fma(vec_load(s + c), f, shift));
            vec_store(s + c, x);
            sum = vec_add(sum, x);
        }
        ml[1] += _mm_cvtss_f32(vec_reduce4(sum, vec_zero(), vec_zero(), vec_zero()));
    }
}

/* NQ outputs of NV vectors from element e on: BLOCK of them, or one of `tail` elements. BLOCK vectors are pairs of even
 * and odd elements while they are summed, so that a load of bf16 widens to two by one instruction each. */
INLINE void values_block(float *o, size_t o_stride, const float *p, size_t p_stride, const char *const *row,
                         size_t byte_offset, const char *const *ahead, size_t ahead_offset, int t0, int t1,
                         int tail, const enum dtype type, const int NQ, const int NV)
{
    vec a[BLOCK_Q][BLOCK];
    bool whole = tail == LANES;
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float *at = o + (size_t)i * o_stride + v * LANES;
            a[i][v] = whole ? vec_load(at) : vec_load_n(at, tail);
        }
#pragma GCC unroll 2
        for (int v = 0; v + 2 <= NV; v += 2) vec_part(&a[i][v], &a[i][v + 1], type);
    }
    size_t step = (size_t)LANES * (type == DTYPE_F32 ? 4 : 2);
    for (int t = t0; t < t1; t++) {
        const char *r = row[t] + byte_offset;
        if (ahead)
#pragma GCC unroll 4
            for (size_t line = 0; line < NV * step; line += 64)
                _mm_prefetch(ahead[t] + ahead_offset + line, PREFETCH);
        if (ahead && t + AGAIN < t1)
#pragma GCC unroll 4
            for (size_t line = 0; line < NV * step; line += 64)
                _mm_prefetch(row[t + AGAIN] + byte_offset + line, _MM_HINT_T0);
        vec x[BLOCK];
        if (NV == 1) x[0] = whole ? vec_widen(r, type) : vec_widen_n(r, tail, type);
#pragma GCC unroll 2
        for (int v = 0; v + 2 <= NV; v += 2) {
            x[v] = vec_even(r + (size_t)v * step, type);
            x[v + 1] = vec_odd(r + (size_t)v * step, type);
        }
#pragma GCC unroll 8
        for (int i = 0; i < NQ; i++) {
            vec w = vec_set1(p[(size_t)i * p_stride + (size_t)t]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) a[i][v] = vec_fma(w, x[v], a[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
#pragma GCC unroll 2
        for (int v = 0; v + 2 <= NV; v += 2) vec_join(&a[i][v], &a[i][v + 1], type);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float *at = o + (size_t)i * o_stride + v * LANES;
            if (whole) vec_store(at, a[i][v]);
            else vec_store_n(at, a[i][v], tail);
        }
    }
}

INLINE void values_queries(float *o, size_t o_stride, const float *p, size_t p_stride, const char *const *row,
                           size_t byte_offset, const char *const *ahead, int t0, int t1, int E,
                           const enum dtype type, const int NQ)
{
    size_t bytes = type == DTYPE_F32 ? 4 : 2;
    int e = 0;
    for (; e + BLOCK * LANES <= E; e += BLOCK * LANES)
        values_block(o + e, o_stride, p, p_stride, row, byte_offset + (size_t)e * bytes, ahead,
                     (size_t)e * bytes, t0, t1, LANES, type, NQ, BLOCK);
    for (; e + LANES <= E; e += LANES)
        values_block(o + e, o_stride, p, p_stride, row, byte_offset + (size_t)e * bytes, ahead,
                     (size_t)e * bytes, t0, t1, LANES, type, NQ, 1);
    if (e < E)
        values_block(o + e, o_stride, p, p_stride, row, byte_offset + (size_t)e * bytes, ahead,
                     (size_t)e * bytes, t0, t1, E - e, type, NQ, 1);
}

INLINE void values_type(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                        const char *const *row, size_t byte_offset, const char *const *ahead, int t0, int t1,
                        int E, const enum dtype type)
{
    while (n_q > 0) {
        int n = block_height(n_q);
        switch (n) {
        case 1: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 1); break;
        case 2: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 2); break;
        case 3: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 3); break;
        case 4: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 4); break;
        case 5: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 5); break;
        default: values_queries(o, o_stride, p, p_stride, row, byte_offset, ahead, t0, t1, E, type, 6); break;
        }
        o += (size_t)n * o_stride;
        p += (size_t)n * p_stride;
        ahead = NULL; /* once is enough */
        n_q -= n;
    }
}

static void values(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                   const char *const *row, size_t byte_offset, const char *const *ahead, int t0, int t1,
                   int E, enum dtype type)
{
    if (type == DTYPE_F32)
        values_type(o, o_stride, p, p_stride, n_q, row, byte_offset, ahead, t0, t1, E, DTYPE_F32);
    else if (type == DTYPE_BF16)
        values_type(o, o_stride, p, p_stride, n_q, row, byte_offset, ahead, t0, t1, E, DTYPE_BF16);
    else values_type(o, o_stride, p, p_stride, n_q, row, byte_offset, ahead, t0, t1, E, DTYPE_F16);
}

static void scale_by(float *x, int n, float f)
{
    vec vf = vec_set1(f);
    int i = 0;
    for (; i + LANES <= n; i += LANES) vec_store(x + i, vec_mul(vec_load(x + i), vf));
    if (i < n) vec_store_n(x + i, vec_mul(vec_load_n(x + i, n - i), vf), n - i);
}

static void widen(float *x, const char *from, int n, enum dtype type)
{
    size_t bytes = dtype_bytes(type);
    int i = 0;
    for (; i + LANES <= n; i += LANES) vec_store(x + i, vec_widen(from + (size_t)i * bytes, type));
    if (i < n) vec_store_n(x + i, vec_widen_n(from + (size_t)i * bytes, n - i, type), n - i);
}

static void narrow(char *to, const float *x, int n, enum dtype type)
{
    size_t bytes = dtype_bytes(type);
    int i = 0;
    for (; i + LANES <= n; i += LANES) vec_narrow(to + (size_t)i * bytes, vec_load(x + i), type);
    if (i < n) {
        char rest[LANES * 4];
        vec_narrow(rest, vec_load_n(x + i, n - i), type);
        memcpy(to + (size_t)i * bytes, rest, (size_t)(n - i) * bytes);
    }
}
