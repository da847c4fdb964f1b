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

/* Rows of dots() that were asked for a tile ahead are asked for again, into the first cache, so many rows before they are
 * needed: of what was asked for some is not there, and what is waits in the second cache, whose latency the loads alone
 * do not hide. Measured in docs/benchmarks.md, "Why attention stops where it does". */
enum { AGAIN = 4 * TILE_AGAIN };

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

/* What to ask for with one four (struct tile_asks); ahead is NULL for nothing, twice where nothing is dropped. */
struct ask {
    const char *ahead, *again, *twice;
};

INLINE struct ask ask_of(const struct tile_asks *asks, int i)
{
    if (!asks) return (struct ask){NULL, NULL, NULL};
    return (struct ask){asks->ahead[i], asks->again[i + TILE_AGAIN],
                        asks->drops ? asks->again[i + TILE_AGAIN_TWICE] : NULL};
}

/* Ask for the lines that begin in bytes [at,at+n) of the four, `at` a multiple of n. What is asked for again is asked for in
 * the order of loads, from which the first cache's prefetchers guess as well. */
INLINE void ask_ahead(struct ask a, size_t at, const size_t n)
{
    if (!a.ahead || (n < 64 && at % 64)) return;
#pragma GCC unroll 4
    for (size_t line = 0; line < n; line += 64) _mm_prefetch(a.ahead + at + line, PREFETCH);
}
INLINE void ask_again(struct ask a, size_t at, const size_t n)
{
    if (!a.ahead || (n < 64 && at % 64)) return;
    if (a.twice)
#pragma GCC unroll 2
        for (size_t line = 0; line < n; line += 64) {
            _mm_prefetch(a.twice + at + line, PREFETCH);
            _mm_prefetch(a.again + at + line, PREFETCH);
        }
    else
#pragma GCC unroll 2
        for (size_t line = 0; line < n; line += 64) _mm_prefetch(a.again + at + line, _MM_HINT_T0);
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
 * and, for the first cache, at `soon`, or for `asked`: all at once would keep the loads waiting. */
INLINE void dots_block(float *s, size_t s_stride, const float *q, size_t q_stride, const char *const k[4],
                       const char *const *ahead, const char *const *soon, struct ask asked, int width,
                       const enum dtype type, const int NQ)
{
    vec a[DOT_Q][4];
    const size_t row_bytes = (size_t)width * (type == DTYPE_F32 ? 4 : 2),
                 step = 2 * LANES * (type == DTYPE_F32 ? 4 : 2);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) a[i][r] = vec_zero();
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
        for (int r = 0; r < 4; r++) ask_again(asked, ROW_ORDER[r] * row_bytes + at, step);
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
        ask_ahead(asked, 4 * at, 4 * step);
    }
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
        _mm_storeu_ps(s + (size_t)i * s_stride, vec_reduce4(a[i][0], a[i][1], a[i][2], a[i][3]));
}

/* What queries are multiplied with: rows one by one, or (four) fours. */
struct dot_rows {
    const char *const *row, *const *ahead;
    int c0, c1;
    const char *const *four;
    int n;
    const struct tile_asks *asks;
};

INLINE void dots_queries(float *s, size_t s_stride, const float *q, size_t q_stride,
                         const struct dot_rows *rows, bool ask, int width, const enum dtype type,
                         const int NQ, const bool FOURS)
{
    if (FOURS) {
        size_t bytes = (size_t)width * (type == DTYPE_F32 ? 4 : 2);
        for (int i = 0; i < rows->n; i++, s += 4) {
            const char *from = rows->four[i],
                       *k[4] = {from + ROW_ORDER[0] * bytes, from + ROW_ORDER[1] * bytes,
                                from + ROW_ORDER[2] * bytes, from + ROW_ORDER[3] * bytes};
            dots_block(s, s_stride, q, q_stride, k, NULL, NULL, ask_of(ask ? rows->asks : NULL, i), width,
                       type, NQ);
        }
        return;
    }
    const char *const *ahead = ask ? rows->ahead : NULL;
    for (int c = rows->c0; c < rows->c1; c += 4)
        dots_block(s + c, s_stride, q, q_stride, rows->row + c, ahead ? ahead + c : NULL,
                   ahead && c + AGAIN < rows->c1 ? rows->row + c + AGAIN : NULL, ask_of(NULL, 0), width, type,
                   NQ);
}

INLINE void dots_type(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q,
                      const struct dot_rows *rows, int width, const enum dtype type, const bool FOURS)
{
    float x[DOT_Q * 2 * TILE_MAX_E] __attribute__((aligned(64)));
    int blocks = (width + 2 * LANES - 1) / (2 * LANES);
    size_t stride = (size_t)blocks * 2 * LANES;
    for (bool ask = true; n_q > 0; ask = false) { /* once is enough */
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
        case 1: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 1, FOURS); break;
        case 2: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 2, FOURS); break;
        case 3: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 3, FOURS); break;
#if DOT_Q > 3
        case 4: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 4, FOURS); break;
        case 5: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 5, FOURS); break;
        case 6: dots_queries(s, s_stride, x, stride, rows, ask, width, type, 6, FOURS); break;
#endif
        }
        s += (size_t)n * s_stride;
        q += (size_t)n * q_stride;
        n_q -= n;
    }
}

static void dots(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const char *const *row,
                 const char *const *ahead, int c0, int c1, int width, enum dtype type)
{
    struct dot_rows rows = {.row = row, .ahead = ahead, .c0 = c0, .c1 = c1};
    if (type == DTYPE_F32) dots_type(s, s_stride, q, q_stride, n_q, &rows, width, DTYPE_F32, false);
    else if (type == DTYPE_BF16) dots_type(s, s_stride, q, q_stride, n_q, &rows, width, DTYPE_BF16, false);
    else dots_type(s, s_stride, q, q_stride, n_q, &rows, width, DTYPE_F16, false);
}

static void dots_fours(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q,
                       const char *const *four, int n, const struct tile_asks *asks, int E, enum dtype type)
{
    struct dot_rows rows = {.four = four, .n = n, .asks = asks};
    if (type == DTYPE_F32) dots_type(s, s_stride, q, q_stride, n_q, &rows, E, DTYPE_F32, true);
    else if (type == DTYPE_BF16) dots_type(s, s_stride, q, q_stride, n_q, &rows, E, DTYPE_BF16, true);
    else dots_type(s, s_stride, q, q_stride, n_q, &rows, E, DTYPE_F16, true);
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

/* a += the values at r times the weights p of a row: NV vectors, or one of `tail` elements. */
INLINE void add_values(vec a[BLOCK_Q][BLOCK], const char *r, const float *p, size_t p_stride, int tail,
                       const enum dtype type, const int NQ, const int NV)
{
    const size_t step = (size_t)LANES * (type == DTYPE_F32 ? 4 : 2);
    vec x[BLOCK];
    if (NV == 1) x[0] = tail == LANES ? vec_widen(r, type) : vec_widen_n(r, tail, type);
#pragma GCC unroll 2
    for (int v = 0; v + 2 <= NV; v += 2) {
        x[v] = vec_even(r + (size_t)v * step, type);
        x[v + 1] = vec_odd(r + (size_t)v * step, type);
    }
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++) {
        vec w = vec_set1(p[(size_t)i * p_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) a[i][v] = vec_fma(w, x[v], a[i][v]);
    }
}

/* NQ outputs of NV vectors from element e of E on: BLOCK of them, or one of `tail` elements. BLOCK vectors are pairs of
 * even and odd elements while they are summed, so that a load of bf16 widens to two by one instruction each. */
INLINE void values_block(float *o, size_t o_stride, const float *p, size_t p_stride, const char *const *list,
                         int n, const struct tile_asks *asks, int e, int E, int tail, const enum dtype type,
                         const int NQ, const int NV, const bool FOURS)
{
    vec a[BLOCK_Q][BLOCK];
    const size_t bytes = type == DTYPE_F32 ? 4 : 2, width = NV * LANES * bytes;
    size_t row_bytes = (size_t)E * bytes, offset = (size_t)e * bytes;
    bool whole = tail == LANES;
    o += e;
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
    const size_t order[4] = {ROW_ORDER[0] * row_bytes, ROW_ORDER[1] * row_bytes, ROW_ORDER[2] * row_bytes,
                             ROW_ORDER[3] * row_bytes};
    for (int t = 0; t < n; t++) {
        const char *from = list[t] + offset;
        if (!FOURS) {
            add_values(a, from, p + t, p_stride, tail, type, NQ, NV);
            continue;
        }
        struct ask asked = ask_of(asks, t);
#pragma GCC unroll 1 /* or what is added up does not stay in registers */
        for (size_t r = 0; r < 4; r++) {
            add_values(a, from + order[r], p + 4 * t + r, p_stride, tail, type, NQ, NV);
            ask_ahead(asked, 4 * offset + r * width, width);
            ask_again(asked, offset + order[r], width);
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

INLINE void values_queries(float *o, size_t o_stride, const float *p, size_t p_stride,
                           const char *const *list, int n, const struct tile_asks *asks, int E,
                           const enum dtype type, const int NQ, const bool FOURS)
{
    int e = 0;
    for (; e + BLOCK * LANES <= E; e += BLOCK * LANES)
        values_block(o, o_stride, p, p_stride, list, n, asks, e, E, LANES, type, NQ, BLOCK, FOURS);
    for (; e + LANES <= E; e += LANES)
        values_block(o, o_stride, p, p_stride, list, n, asks, e, E, LANES, type, NQ, 1, FOURS);
    if (e < E) values_block(o, o_stride, p, p_stride, list, n, asks, e, E, E - e, type, NQ, 1, FOURS);
}

INLINE void values_type(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                        const char *const *list, int n, const struct tile_asks *asks, int E,
                        const enum dtype type, const bool FOURS)
{
    while (n_q > 0) {
        int height = block_height(n_q);
        switch (height) {
        case 1: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 1, FOURS); break;
        case 2: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 2, FOURS); break;
        case 3: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 3, FOURS); break;
        case 4: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 4, FOURS); break;
        case 5: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 5, FOURS); break;
        default: values_queries(o, o_stride, p, p_stride, list, n, asks, E, type, 6, FOURS); break;
        }
        o += (size_t)height * o_stride;
        p += (size_t)height * p_stride;
        asks = NULL; /* once is enough */
        n_q -= height;
    }
}

static void values(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                   const char *const *row, int n, int E)
{
    values_type(o, o_stride, p, p_stride, n_q, row, n, NULL, E, DTYPE_F32, false);
}

static void values_fours(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                         const char *const *four, int n, const struct tile_asks *asks, int E, enum dtype type)
{
    if (type == DTYPE_F32) values_type(o, o_stride, p, p_stride, n_q, four, n, asks, E, DTYPE_F32, true);
    else if (type == DTYPE_BF16)
        values_type(o, o_stride, p, p_stride, n_q, four, n, asks, E, DTYPE_BF16, true);
    else values_type(o, o_stride, p, p_stride, n_q, four, n, asks, E, DTYPE_F16, true);
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
