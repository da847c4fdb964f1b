/* select.c - which pages the new row reads: docs/algorithm.md step 2.
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
 * Two passes: scores, in stretches of 256 pages of one kv head of one span, of which each thread has a share; the kv
 * heads of a stretch are close in it, because their summaries lie side by side. Then one task a kv head and span for
 * reducing and choosing.
 * A softmax is taken stretch by stretch where the scores are still at hand: 2^(score - m) of scores times 1 / ln 2,
 * with the stretch's own maximum m, and their sum; the second pass multiplies each stretch by 2^(m - M) / L. Choosing
 * is linear: scores become integers of the same order, a sample of them brackets the n-th largest, those within the
 * bracket are listed, and bisection finds it there; ties go to lower pages.
 *
 * Scratch: (n_decode, Kr, G, stride) f32, the first row of a group ends as keys; then twice (n_decode, Kr, G, stretches)
 * f32, maxima and sums. */
#include <limits.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

/* Of MIN_SAMPLED keys or more a sample is taken; fewer are bisected at once. */
enum { SCORE_PAGES = 256, MIN_SAMPLED = 2048, SAMPLE = 512 };

static const float LOG2_E = 0x1.715476p+0f;

struct select {
    const struct tile *tile;
    int32_t *pages, *count;
    float *score, *top, *sum;
    const float *q;
    const struct kv_layer *kv;
    const struct batch *b;
    const struct dims *m;
    bool drops;              /* prefetches: cpu_drops_prefetches */
    int stretches, n_shares; /* stretches per span and kv head; tasks of the first pass */
};

static size_t score_stride(const struct dims *m)
{
    return (size_t)(m->C / m->P + TILE_COLS - 1) / TILE_COLS * TILE_COLS;
}

/* From one head's stretches to the next one's; a multiple of 16. */
static size_t stretch_stride(const struct dims *m) { return (score_stride(m) / SCORE_PAGES + 16) / 16 * 16; }

size_t cpu_select_scratch_bytes(struct device *d, const struct dims *m)
{
    (void)d;
    return (size_t)m->max_spans * (size_t)m->Qr * (score_stride(m) + 2 * stretch_stride(m)) * sizeof(float);
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

/* A stretch of a kv head's candidates, and how the thread's share goes on: stretches [index,end) of this kv head, then
 * those of the next one. */
struct stretch {
    const struct decode_span *s;
    int span, kv_head, index, end;
    int from, to; /* the share, in stretches of all kv heads */
    struct candidates all;
};

/* The share's next stretch; false at its end. At first index = end, kv_head = -1 and span that of `from`. */
static bool next_stretch(const struct select *a, struct stretch *at)
{
    int Kr = a->m->Kr, per_span = a->stretches * Kr;
    for (at->index++; at->index >= at->end;) {
        if (++at->kv_head == Kr) {
            at->kv_head = 0;
            at->span++;
        }
        int before = at->span * per_span;
        if (before >= at->to) return false;
        at->s = &a->b->host_decode[at->span];
        at->all = candidates_of(at->s, a->kv, a->m);
        int n = scores_pages(at->s, at->all) ? (at->all.n + SCORE_PAGES - 1) / SCORE_PAGES : 0;
        int lo = at->from > before ? at->from - before : 0,
            hi = at->to - before < per_span ? at->to - before : per_span;
        at->index = (lo - at->kv_head + Kr - 1) / Kr;
        at->end = (hi - at->kv_head + Kr - 1) / Kr;
        if (at->end > n) at->end = n;
    }
    return true;
}

static int stretch_page(const struct stretch *at) { return at->all.first + at->index * SCORE_PAGES; }
static int stretch_pages(const struct stretch *at)
{
    int left = at->all.n - at->index * SCORE_PAGES;
    return left < SCORE_PAGES ? left : SCORE_PAGES;
}

/* Runs of the summaries of the stretch's pages, at most `most` runs. Returns how many. */
static int list_runs(const struct select *a, struct tile_run *run, int most, const struct stretch *at)
{
    const struct dims *m = a->m;
    int per_block = m->B / m->P, page = stretch_page(at), n = stretch_pages(at), n_runs = 0;
    const int32_t *block = span_blocks(a->b, m, at->s->slot) + page / per_block;
    size_t codes = kv_summary_offset(m, at->kv_head, 0), scales = kv_scales_offset(m, at->kv_head, 0);
    for (page %= per_block; n > 0 && n_runs < most; page = 0, block++) {
        const char *record = kv_layer_block(a->kv, m, *block);
        for (int length; n > 0 && page < per_block && n_runs < most; page += length, n -= length) {
            length = per_block - page < n ? per_block - page : n;
            length = length < TILE_RUN ? length : TILE_RUN;
            run[n_runs++] = (struct tile_run){record + codes + (size_t)page * m->summary_stride,
                                              record + scales + (size_t)page * SUMMARY_SCALES_BYTES, length};
        }
    }
    return n_runs;
}

/* The group's queries in eight bits. */
static void code_queries(const struct select *a, struct tile_codes *to, const float *q, float scale_all)
{
    const struct dims *m = a->m;
    int E = m->E, half = m->summary == SUMMARY_Q4 ? E / 2 : E, parts = E / half;
    int padded = (half + TILE_CODE_PAD - 1) / TILE_CODE_PAD * TILE_CODE_PAD;
    to->type = m->summary;
    to->drops = a->drops;
    to->n_q = m->G;
    to->E = E;
    to->length = parts * padded;
    for (int i = 0; i < m->G; i++, q += E) {
        float scale = a->tile->largest(q, E) / 127;
        to->scale[i] = scale * scale_all;
        to->sum[i] = 0;
        memset(to->q[i], 0, (size_t)to->length);
        memset(to->abs[i], 0, (size_t)to->length);
        for (int p = 0; p < parts && scale > 0; p++)
            to->sum[i] +=
                a->tile->code(to->q[i] + p * padded, to->abs[i] + p * padded, q + p * half, half, scale);
    }
}

/* The group's queries as the summaries need them. */
union queries {
    float bound[TILE_MAX_G * 2 * TILE_MAX_E];
    struct tile_codes codes;
};

static void prepare_queries(const struct select *a, union queries *to, const struct stretch *at)
{
    const struct dims *m = a->m;
    size_t row = (size_t)(at->s->row0 + at->s->n_rows - 1);
    const float *q = a->q + (row * (size_t)m->Qr + (size_t)(at->kv_head * m->G)) * (size_t)m->E;
    float scale = m->attention_scale * (at->s->group == SCORE_GROUP_SOFTMAX ? LOG2_E : 1);
    if (summary_has_codes(m)) code_queries(a, &to->codes, q, scale);
    for (int h = 0; h < m->G && !summary_has_codes(m); h++)
        bound_query(to->bound + h * 2 * m->E, q + h * m->E, at->s->alpha, scale, m->E);
}

/* Scores of the stretch from codes; what the next one (or NULL) begins with is prefetched. */
static void score_codes(const struct select *a, float *score, const struct tile_codes *q,
                        const struct stretch *at, const struct stretch *next)
{
    struct tile_run run[SCORE_PAGES + TILE_AHEAD];
    int n = list_runs(a, run, SCORE_PAGES, at), n_ahead = next ? list_runs(a, run + n, TILE_AHEAD, next) : 0;
    a->tile->code_scores(score, score_stride(a->m), q, run, n, n_ahead, at->s->alpha);
}

/* Summaries of the at most TILE_COLS pages from the stretch's `first` on: rows of the cache, zero rows up to TILE_COLS. */
static int list_rows(const struct select *a, const char **row, const struct stretch *at, int first)
{
    const struct dims *m = a->m;
    const int32_t *blocks = span_blocks(a->b, m, at->s->slot);
    int per_block = m->B / m->P, page = stretch_page(at) + first, n = stretch_pages(at) - first;
    n = n < 0 ? 0 : n < TILE_COLS ? n : TILE_COLS;
    for (int j = 0; j < n; j++, page++)
        row[j] = kv_layer_block(a->kv, m, blocks[page / per_block]) +
                 kv_summary_offset(m, at->kv_head, page % per_block);
    for (int j = n; j < TILE_COLS; j++) row[j] = tile_zero_row;
    return n;
}

/* The same from bounds. */
static void score_bounds(const struct select *a, float *score, const float *q, const struct stretch *at,
                         const struct stretch *next)
{
    const struct dims *m = a->m;
    const char *rows[2][TILE_COLS];
    int n = list_rows(a, rows[0], at, 0), more;
    for (int first = 0, i = 0; n > 0; first += TILE_COLS, i ^= 1, n = more) {
        more = list_rows(a, rows[i ^ 1], at, first + TILE_COLS);
        if (more == 0 && next) list_rows(a, rows[i ^ 1], next, 0);
        a->tile->dots(score + first, score_stride(m), q, (size_t)(2 * m->E), m->G, rows[i], rows[i ^ 1], 0,
                      (n + 3) / 4 * 4, 2 * m->E, summary_dtype(m));
    }
}

static void score_stretch(const struct select *a, const union queries *q, const struct stretch *at,
                          const struct stretch *next)
{
    const struct dims *m = a->m;
    size_t group = (size_t)(at->span * m->Kr + at->kv_head) * (size_t)m->G, stride = score_stride(m);
    float *score = a->score + group * stride + at->index * SCORE_PAGES;
    if (summary_has_codes(m)) score_codes(a, score, &q->codes, at, next);
    else score_bounds(a, score, q->bound, at, next);
    if (at->s->group != SCORE_GROUP_SOFTMAX) return;

    float top[TILE_MAX_G], sum[TILE_MAX_G];
    int n = stretch_pages(at), padded = (n + 15) / 16 * 16;
    for (int h = 0; h < m->G; h++)
        for (int j = n; j < padded; j++) score[(size_t)h * stride + (size_t)j] = -INFINITY;
    a->tile->powers(score, stride, m->G, padded, top, sum);
    for (int h = 0; h < m->G; h++) {
        size_t to = (group + (size_t)h) * stretch_stride(m) + (size_t)at->index;
        a->top[to] = top[h];
        a->sum[to] = sum[h];
    }
}

/* Task: a thread's share. Within a span it is gone through by kv heads, so that queries are prepared once. */
static void score_share(void *arg, int task, int thread)
{
    const struct select *a = arg;
    union queries q;
    int n = a->b->n_decode * a->stretches * a->m->Kr, span = -1, kv_head = -1;
    struct stretch at = {.from = cpu_share(n, task, a->n_shares), .to = cpu_share(n, task + 1, a->n_shares)},
                   next;
    (void)thread;
    at.span = at.from / (a->stretches * a->m->Kr);
    at.kv_head = -1;
    for (bool more = next_stretch(a, &at); more; at = next) {
        next = at;
        more = next_stretch(a, &next);
        if (at.span != span || at.kv_head != kv_head) prepare_queries(a, &q, &at);
        span = at.span;
        kv_head = at.kv_head;
        score_stretch(a, &q, &at, more ? &next : NULL);
    }
}

/* The stretches' maxima become what makes their weights shares of one. */
static void share_out(const struct select *a, float *top, const float *sum, int n_stretches)
{
    size_t stride = stretch_stride(a->m);
    float unused[2][TILE_MAX_G];
    int padded = (n_stretches + 15) / 16 * 16;
    for (int h = 0; h < a->m->G; h++)
        for (int s = n_stretches; s < padded; s++) top[(size_t)h * stride + (size_t)s] = -INFINITY;
    a->tile->powers(top, stride, a->m->G, padded, unused[0], unused[1]);
    for (int h = 0; h < a->m->G; h++) {
        float *share = top + (size_t)h * stride, l = 0;
        for (int s = 0; s < n_stretches; s++) l += share[s] * sum[(size_t)h * stride + (size_t)s];
        a->tile->scale(share, n_stretches, 1 / l);
    }
}

/* The scores (G,stride) of n pages become the group's, as keys. */
static void reduce_group(const struct select *a, int32_t *key, float *score, int list, int n,
                         enum score_group group)
{
    const struct dims *m = a->m;
    size_t stride = score_stride(m), at = (size_t)(list * m->G) * stretch_stride(m);
    float factor[TILE_MAX_G];
    if (group == SCORE_GROUP_SOFTMAX)
        share_out(a, a->top + at, a->sum + at, (n + SCORE_PAGES - 1) / SCORE_PAGES);
    for (int h = 1; h < m->G && group == SCORE_GROUP_MAX; h++) {
        const float *s = score + (size_t)h * stride;
        for (int j = 0; j < n; j++) score[j] = s[j] > score[j] ? s[j] : score[j];
    }
    for (int from = 0; from < n; from += SCORE_PAGES) {
        int width = n - from < SCORE_PAGES ? n - from : SCORE_PAGES;
        for (int h = 0; h < m->G; h++)
            factor[h] = group == SCORE_GROUP_SOFTMAX
                            ? a->top[at + (size_t)h * stretch_stride(m) + (size_t)(from / SCORE_PAGES)]
                            : 1;
        a->tile->order(key + from, score + from, stride, factor, group == SCORE_GROUP_MAX ? 1 : m->G,
                       (width + 15) / 16 * 16);
    }
}

/* A limit of which at least n of key (padded, a multiple of 16) are reached, and of the next integer fewer, or exactly n:
 * low <= limit <= high, where low is known to be reached by n. */
static int32_t bisect(const struct tile *tile, const int32_t *key, int padded, int n, int32_t low,
                      int32_t high)
{
    while (low < high) {
        int32_t middle = (int32_t)(((int64_t)low + high + 1) >> 1);
        int at_least = tile->count_at_least(key, padded, middle);
        if (at_least >= n) low = middle;
        else high = middle - 1;
        if (at_least == n) break; /* exactly the n largest: nothing left to tell apart */
    }
    return low;
}

/* The same of many keys, 1 <= n <= padded; above: how many are above the limit. list: room for `room` keys, at least
 * as many as there are but for padding. */
static int32_t nth_largest(const struct tile *tile, const int32_t *key, int padded, int n, int *above,
                           int32_t *list, int room)
{
    int32_t low = INT_MIN, high = INT_MAX;
    if (padded >= MIN_SAMPLED) {
        /* SAMPLE / 16 vectors; their n-th largest is off by less than a sixteenth of all, or the bracket fails. */
        int vectors = padded / 16;
        for (int i = 0; i < SAMPLE / 16; i++)
            memcpy(list + 16 * i, key + (long long)vectors * i / (SAMPLE / 16) * 16, 16 * sizeof *key);
        int rank = (int)((long long)n * SAMPLE / padded), margin = SAMPLE / 16;
        if (rank + margin <= SAMPLE) low = bisect(tile, list, SAMPLE, rank + margin, INT_MIN, INT_MAX);
        if (rank - margin >= 1) high = bisect(tile, list, SAMPLE, rank - margin, low, INT_MAX);
        int over, listed = tile->list_between(list, room, &over, key, padded, low, high);
        if (over < n && over + listed >= n && listed + 15 <= room) {
            int end = (listed + 15) / 16 * 16;
            for (int j = listed; j < end; j++) list[j] = INT_MIN;
            int32_t limit = bisect(tile, list, end, n - over, low, high);
            *above = over + (limit == INT_MAX ? 0 : tile->count_at_least(list, end, limit + 1));
            return limit;
        }
    }
    int32_t limit = bisect(tile, key, padded, n, INT_MIN, INT_MAX);
    *above = limit == INT_MAX ? 0 : tile->count_at_least(key, padded, limit + 1);
    return limit;
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
    reduce_group(a, key, score, task, c.n, (enum score_group)s->group);
    int padded = (c.n + 15) / 16 * 16, n_forced = 0, above;
    for (int j = c.n; j < padded; j++) key[j] = INT_MIN;
    for (int j = 0; j < c.n - 1 && c.first + j < s->n_sink; j++, n_forced++) key[j] = INT_MAX;
    key[c.n - 1] = INT_MAX;
    n_forced++;
    int n = c.n_select > n_forced ? c.n_select : n_forced;
    int32_t limit = nth_largest(a->tile, key, padded, n, &above, page, m->C / m->P); /* pages come later */
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
    float *top = (float *)scratch + (size_t)b->n_decode * (size_t)m->Qr * score_stride(m);
    struct select a = {tile_of(cpu_isa_of(d)),
                       pages,
                       count,
                       scratch,
                       top,
                       top + (size_t)b->n_decode * (size_t)m->Qr * stretch_stride(m),
                       q,
                       kv,
                       b,
                       m,
                       .drops = cpu_drops_prefetches(d),
                       .stretches = (most + SCORE_PAGES - 1) / SCORE_PAGES};
    int stretches = b->n_decode * m->Kr * a.stretches;
    a.n_shares = stretches < cpu_threads(d) ? stretches : cpu_threads(d);
    if (most > 0) cpu_parallel(d, score_share, &a, a.n_shares);
    cpu_parallel(d, choose_task, &a, b->n_decode * m->Kr);
}
