/* select.c - which pages the new row reads: ALGORITHM.md step 2.
 *
 *   score_jh = (q_h . c_j + alpha |q_h| . u_j) * attention_scale,   c = (max + min) / 2,  u = (max - min) / 2
 *            = q' . (min_j | max_j),
 *   q' = ((q_h - alpha |q_h|) / 2 | (q_h + alpha |q_h|) / 2) * attention_scale
 *
 * so a page summary is a key of width 2E and the tile primitives score it. Of summaries with codes the two
 * products are sums of integers, with the query in eight bits too: exact, whatever the instruction set.
 *
 * The group's scores become one per page (max, mean, or softmax over the candidate pages per head, then the
 * mean over heads). The page of the new position and the first n_sink pages are chosen whatever they score,
 * then the best others until n_select are chosen; with SCORE_GROUP_RECENT the last ones, and nothing is scored.
 *
 * Two passes: scores, a task being a stretch of 256 pages of one kv head of one span, kv heads of a stretch one after
 * the other because their summaries lie side by side; then one task a kv head and span for reducing and choosing.
 * A softmax is taken stretch by stretch where the scores are still at hand: e^(score - m) with the stretch's own
 * maximum m, and their sum; the second pass multiplies each stretch by e^(m - M) / L. Choosing is linear: scores
 * become integers of the same order, the n-th largest is found by fixing its bits from the top (32 counts over the
 * list), ties go to lower pages.
 *
 * Scratch: (n_decode, Kr, G, stride) f32, the first row of a group ends as keys; then (n_decode, Kr, stretches, G, 2)
 * f32, maximum and sum. */
#include <limits.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { SCORE_PAGES = 256 };

struct select {
    const struct tile *tile;
    int32_t *pages, *count;
    float *score, *ml;
    const float *q;
    const struct kv_layer *kv;
    const struct batch *b;
    const struct dims *m;
    int stretches; /* tasks of the first pass per span and kv head */
};

static size_t score_stride(const struct dims *m)
{
    return (size_t)(m->C / m->P + TILE_COLS - 1) / TILE_COLS * TILE_COLS;
}

size_t cpu_select_scratch_bytes(struct device *d, const struct dims *m)
{
    (void)d;
    size_t stretches = (score_stride(m) + SCORE_PAGES - 1) / SCORE_PAGES;
    return (size_t)m->max_spans * (size_t)m->Qr * (score_stride(m) + 2 * stretches) * sizeof(float);
}

/* Whether the span's pages are scored at all. */
static bool scores_pages(const struct decode_span *s, struct candidates c)
{
    return !c.all && s->group != SCORE_GROUP_RECENT;
}

static enum dtype summary_dtype(const struct dims *m)
{
    return m->summary == SUMMARY_F32 ? DTYPE_F32 : m->summary == SUMMARY_F16 ? DTYPE_F16 : DTYPE_BF16;
}

static void bound_query(float *w, const float *q, float alpha, float scale, int E)
{
    for (int e = 0; e < E; e++) {
        float x = q[e], width = alpha * fabsf(x);
        w[e] = (x - width) * 0.5f * scale;
        w[E + e] = (x + width) * 0.5f * scale;
    }
}

/* Summaries of the 64 (or fewer) candidates from `first` of the score task: rows of the cache, zero rows up
 * to 64, and where they have codes their scales. Returns how many there are; 0 behind the last task or
 * candidate. */
struct tile_rows {
    const char *row[TILE_COLS];
    int n_runs; /* of pages in one block, whose scales lie side by side */
    struct {
        const char *scales;
        int n;
    } run[TILE_COLS];
};

static int tile_rows(const struct select *a, struct tile_rows *to, int task, int first)
{
    const struct dims *m = a->m;
    int kv_head = task % m->Kr, at = task / m->Kr;
    first += at % a->stretches * SCORE_PAGES;
    if (at >= a->b->n_decode * a->stretches) return 0;
    const struct decode_span *s = &a->b->host_decode[at / a->stretches];
    struct candidates c = candidates_of(s, a->kv, m);
    if (!scores_pages(s, c) || first >= c.n) return 0;
    const int32_t *blocks = span_blocks(a->b, m, s->slot);
    int n = c.n - first < TILE_COLS ? c.n - first : TILE_COLS;
    int per_block = m->B / m->P, page = (c.first + first) % per_block;
    const int32_t *block = blocks + (c.first + first) / per_block;
    to->n_runs = 0;
    for (int j = 0; j < n; page = 0, block++) {
        const char *record = kv_layer_block(a->kv, m, *block),
                   *row = record + kv_summary_offset(m, kv_head, page);
        int run = per_block - page < n - j ? per_block - page : n - j;
        size_t stride = m->summary_stride;
        for (int i = 0; i < run; i++) to->row[j + i] = row + (size_t)i * stride;
        to->run[to->n_runs].scales = record + kv_scales_offset(m, kv_head, page);
        to->run[to->n_runs++].n = run;
        j += run;
    }
    for (int j = n; j < TILE_COLS; j++) to->row[j] = tile_zero_row;
    return n;
}

/* The group's queries in eight bits. The scale takes in that of attention. */
static void code_queries(const struct select *a, struct tile_codes *to, const float *q)
{
    const struct dims *m = a->m;
    int E = m->E, half = m->summary == SUMMARY_Q4 ? E / 2 : E, parts = E / half;
    int padded = (half + TILE_CODE_PAD - 1) / TILE_CODE_PAD * TILE_CODE_PAD;
    to->type = m->summary;
    to->n_q = m->G;
    to->E = E;
    to->length = parts * padded;
    for (int i = 0; i < m->G; i++, q += E) {
        float scale = a->tile->largest(q, E) / 127;
        to->scale[i] = scale * m->attention_scale;
        to->sum[i] = 0;
        memset(to->q[i], 0, (size_t)to->length);
        memset(to->abs[i], 0, (size_t)to->length);
        for (int p = 0; p < parts && scale > 0; p++)
            to->sum[i] +=
                a->tile->code(to->q[i] + p * padded, to->abs[i] + p * padded, q + p * half, half, scale);
    }
}

/* Scores of n summaries from their codes: score (G,stride). Prefetches the n_next at `next`. */
static void score_codes(const struct select *a, float *score, const struct tile_codes *q, float alpha,
                        const struct tile_rows *rows, int n, const struct tile_rows *next, int n_next)
{
    int32_t c[TILE_MAX_G * TILE_COLS], u[TILE_MAX_G * TILE_COLS];
    uint32_t scales[TILE_COLS];
    for (int r = 0; n_next > 0 && r < next->n_runs; r++)
        for (int at = 0; at < next->run[r].n * SUMMARY_SCALES_BYTES; at += 64)
            __builtin_prefetch(next->run[r].scales + at);
    int padded = (n + 7) / 8 * 8;
    for (int r = 0, j = 0; r < rows->n_runs; j += rows->run[r++].n)
        memcpy(&scales[j], rows->run[r].scales, (size_t)rows->run[r].n * SUMMARY_SCALES_BYTES);
    for (int j = n; j < padded; j++) scales[j] = 0;
    a->tile->code_dots(c, u, q, rows->row, n_next > 0 ? next->row : NULL, padded);
    a->tile->code_scores(score, score_stride(a->m), c, u, q, scales, alpha, padded);
}

/* score (G,stride) of n pages become weights; ml (G,2). */
static void weigh_stretch(const struct select *a, float *score, float *ml, int n)
{
    float factor[TILE_MAX_G];
    int padded = (n + 15) / 16 * 16;
    for (int h = 0; h < a->m->G; h++) {
        for (int j = n; j < padded; j++) score[(size_t)h * score_stride(a->m) + (size_t)j] = -INFINITY;
        ml[2 * h] = -INFINITY;
        ml[2 * h + 1] = 0;
    }
    a->tile->weigh(score, score_stride(a->m), a->m->G, padded, 1, ml, factor);
}

/* Scores of up to SCORE_PAGES candidates for the heads of the group. While a tile is scored the next one is
 * prefetched, at the end that of the next task, which most likely is this thread's too. */
static void score_task(void *arg, int task, int thread)
{
    const struct select *a = arg;
    const struct dims *m = a->m;
    (void)thread;
    int kv_head = task % m->Kr, stretch = task / m->Kr % a->stretches, span = task / m->Kr / a->stretches,
        E = m->E;
    const struct decode_span *s = &a->b->host_decode[span];
    struct tile_rows rows[2];
    int n = tile_rows(a, &rows[0], task, 0), n_scores = 0;
    if (n == 0) return;

    union {
        float bound[TILE_MAX_G * 2 * TILE_MAX_E];
        struct tile_codes codes;
    } w;
    size_t row = (size_t)(s->row0 + s->n_rows - 1);
    const float *q = a->q + (row * (size_t)m->Qr + (size_t)(kv_head * m->G)) * (size_t)E;
    if (summary_has_codes(m)) code_queries(a, &w.codes, q);
    for (int h = 0; h < m->G && !summary_has_codes(m); h++)
        bound_query(w.bound + h * 2 * E, q + h * E, s->alpha, m->attention_scale, E);
    int at = span * m->Kr + kv_head;
    float *score = a->score + (size_t)at * (size_t)m->G * score_stride(m) + stretch * SCORE_PAGES;
    for (int first = 0, i = 0; n > 0; first += TILE_COLS, i ^= 1) {
        bool last = first + TILE_COLS >= SCORE_PAGES;
        int next = last ? tile_rows(a, &rows[i ^ 1], task + 1, 0)
                        : tile_rows(a, &rows[i ^ 1], task, first + TILE_COLS);
        if (summary_has_codes(m))
            score_codes(a, score + first, &w.codes, s->alpha, &rows[i], n, &rows[i ^ 1], next);
        else
            a->tile->dots(score + first, score_stride(m), w.bound, (size_t)(2 * E), m->G, rows[i].row,
                          next ? rows[i ^ 1].row : NULL, 0, (n + 3) / 4 * 4, 2 * E, summary_dtype(m));
        n_scores += n;
        n = last ? 0 : next;
    }
    if (s->group == SCORE_GROUP_SOFTMAX)
        weigh_stretch(a, score, a->ml + (size_t)(at * a->stretches + stretch) * (size_t)(2 * m->G), n_scores);
}

/* ml (stretches,G,2) to what makes the weights of all stretches shares of one: the maximum's place takes the factor
 * of the stretch and head. */
static void share_out(float *ml, int n_stretches, int G)
{
    for (int h = 0; h < G; h++) {
        float m = -INFINITY, l = 0;
        for (int s = 0; s < n_stretches; s++) m = fmaxf(m, ml[2 * (s * G + h)]);
        for (int s = 0; s < n_stretches; s++) {
            float *at = ml + 2 * (s * G + h);
            at[0] = m == -INFINITY ? 1 : expf(at[0] - m);
            l += at[0] * at[1];
        }
        for (int s = 0; s < n_stretches; s++) ml[2 * (s * G + h)] /= l;
    }
}

/* score (G,stride) of n pages: the first row becomes the group's score. */
static void reduce_softmax(const struct select *a, float *score, float *ml, int n)
{
    size_t stride = score_stride(a->m);
    int G = a->m->G, n_stretches = (n + SCORE_PAGES - 1) / SCORE_PAGES;
    share_out(ml, n_stretches, G);
    for (int s = 0; s < n_stretches; s++) {
        int from = s * SCORE_PAGES, width = n - from < SCORE_PAGES ? n - from : SCORE_PAGES;
        float sum[SCORE_PAGES] = {0}, factor[TILE_MAX_G];
        const char *head[TILE_MAX_G];
        for (int h = 0; h < G; h++) {
            head[h] = (const char *)(score + (size_t)h * stride + from);
            factor[h] = ml[2 * (s * G + h)];
        }
        a->tile->values(sum, 0, factor, 0, 1, head, 0, NULL, 0, G, width, DTYPE_F32);
        memcpy(score + from, sum, (size_t)width * sizeof *sum);
    }
}

static void reduce_group(const struct select *a, float *score, float *ml, int n, enum score_group group)
{
    size_t stride = score_stride(a->m);
    if (group == SCORE_GROUP_SOFTMAX) {
        reduce_softmax(a, score, ml, n);
        return;
    }
    for (int h = 1; h < a->m->G; h++) {
        const float *s = score + (size_t)h * stride;
        if (group == SCORE_GROUP_MAX)
            for (int j = 0; j < n; j++) score[j] = s[j] > score[j] ? s[j] : score[j];
        else
            for (int j = 0; j < n; j++) score[j] += s[j];
    }
}

/* The n-th largest of key (padded, a multiple of 16), n >= 1. */
static int32_t nth_largest(const struct tile *tile, const int32_t *key, int padded, int n)
{
    /* Bits of the answer from the top, over keys offset to unsigned order. */
    uint32_t found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t candidate = found | 1u << bit;
        int at_least = tile->count_at_least(key, padded, (int32_t)(candidate ^ 0x80000000u));
        if (at_least >= n) found = candidate;
        if (at_least == n) break; /* exactly the n largest: nothing left to tell apart */
    }
    return (int32_t)(found ^ 0x80000000u);
}

/* The sink pages and the last ones, at least one of these. */
static int choose_recent(int32_t *page, struct candidates c, int n_sink)
{
    int sinks = n_sink > c.first ? n_sink - c.first : 0, n = 0;
    if (sinks > c.n) sinks = c.n;
    int recent = c.n_select - sinks > 1 ? c.n_select - sinks : 1;
    if (recent > c.n - sinks) recent = c.n - sinks;
    for (int j = 0; j < sinks; j++) page[n++] = c.first + j;
    for (int j = c.n - recent; j < c.n; j++) page[n++] = c.first + j;
    return n;
}

/* Task: (span, kv head). */
static void choose_task(void *arg, int task, int thread)
{
    const struct select *a = arg;
    const struct dims *m = a->m;
    (void)thread;
    const struct decode_span *s = &a->b->host_decode[task / m->Kr];
    struct candidates c = candidates_of(s, a->kv, m);
    int32_t *page = a->pages + (size_t)task * (size_t)(m->C / m->P);
    if (c.all) {
        for (int j = 0; j < c.n; j++) page[j] = c.first + j;
        a->count[task] = c.n;
        return;
    }
    if (s->group == SCORE_GROUP_RECENT) {
        a->count[task] = choose_recent(page, c, s->n_sink);
        return;
    }
    float *score = a->score + (size_t)task * (size_t)m->G * score_stride(m);
    int32_t *key = (int32_t *)(void *)score;
    reduce_group(a, score, a->ml + (size_t)(task * a->stretches * 2 * m->G), c.n, (enum score_group)s->group);
    int padded = (c.n + 15) / 16 * 16, n_forced = 0;
    a->tile->order(key, score, c.n);
    for (int j = c.n; j < padded; j++) key[j] = INT_MIN;
    for (int j = 0; j < c.n - 1 && c.first + j < s->n_sink; j++, n_forced++) key[j] = INT_MAX;
    key[c.n - 1] = INT_MAX;
    n_forced++;
    int n = c.n_select > n_forced ? c.n_select : n_forced;
    int32_t limit = nth_largest(a->tile, key, padded, n);
    int above = limit == INT_MAX ? 0 : a->tile->count_at_least(key, padded, limit + 1);
    a->tile->take_above(page, n, key, c.first, limit, n - above);
    a->count[task] = n;
}

void cpu_select(struct device *d, int32_t *pages, int32_t *count, const float *q, const struct kv_layer *kv,
                const struct batch *b, void *scratch, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && m->G <= TILE_MAX_G && b->n_decode <= m->max_spans);
    if (b->n_decode == 0) return;
    int most = 0;
    for (int i = 0; i < b->n_decode; i++) {
        struct candidates c = candidates_of(&b->host_decode[i], kv, m);
        if (scores_pages(&b->host_decode[i], c) && c.n > most) most = c.n;
    }
    float *ml = (float *)scratch + (size_t)b->n_decode * (size_t)m->Qr * score_stride(m);
    struct select a = {tile_of(cpu_isa_of(d)),
                       pages,
                       count,
                       scratch,
                       ml,
                       q,
                       kv,
                       b,
                       m,
                       (most + SCORE_PAGES - 1) / SCORE_PAGES};
    if (most > 0) cpu_parallel(d, score_task, &a, b->n_decode * m->Kr * a.stretches);
    cpu_parallel(d, choose_task, &a, b->n_decode * m->Kr);
}
