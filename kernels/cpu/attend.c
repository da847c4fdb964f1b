/* attend.c - decode attention over the chosen pages: ALGORITHM.md steps 3 and 4 up to the merge.
 *
 *   part(row, split, h) = (m, sum_t e^(s_t - m), sum_t e^(s_t - m) v_t),  s_t = q_h . k_t * attention_scale
 *
 * over the keys t of the split's pages that the row may see: for the new row all of S, for a revised row r
 * the pages with last_loaded < r; in both cases keys <= r and inside the sliding window of r.
 *
 * Threads take splits (struct part) one by one and go through them chunk by chunk: keys are transposed into a
 * tile once for all rows and heads of the group, then the weights of the chunk are computed, then its values
 * are read once. Rows that attend to nothing in a chunk are skipped there. Pages lie far apart, so nothing
 * but the program knows what comes next: beside each key and value the one at the same place of the next
 * chunk is prefetched, and for that a thread takes its next split one ahead.
 *
 * Invariants:
 *  1. A row's part depends on its query, its own mask and the page list; not on other rows, threads or spans.
 *  2. Within a chunk, masked pages change no bit of a row's part: the maximum and the sums pass over them.
 *  3. Keys a row may not see are never multiplied: not later ones, not those left of its window. Slots that
 *     hold nothing are not read at all. */
#include <math.h>
#include <stdatomic.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { MAX_QUERIES = 64, MAX_CHUNK = 256 };

struct attend {
    const struct tile *tile;
    struct part part;
    const float *q;
    const struct kv_layer *kv;
    const int32_t *pages, *count;
    const struct batch *b;
    const struct dims *m;
    int n_splits; /* most of any span */
    _Atomic int next;
};

/* What a row does in a chunk. */
struct row_mask {
    uint64_t pages;  /* bit j: the row reads the chunk's page j */
    int front, back; /* tokens of the first and the last of these that it may not see */
};

/* A chunk of a kv head's page list, and the attended heads [head,head+n_heads) of the group. */
struct chunk {
    const struct decode_span *span;
    int kv_head, split, head, n_heads;
    int n_pages, n_tokens; /* n_tokens up to the new row's position */
    bool first;            /* of its split */
    const int32_t *page;
    const char *key[MAX_CHUNK]; /* rows of the cache; zero rows from n_tokens on */
    int32_t *last_loaded[64];
};

/* Where a thread is: chunks [from,to) pages of `list`. */
struct cursor {
    const struct decode_span *span;
    const int32_t *list;
    int kv_head, split, head, n_heads, from, to;
    bool first;
};

size_t cpu_attend_part_bytes(struct device *d, const struct dims *m)
{
    (void)d;
    size_t n = (size_t)decode_rows_max(m) * (size_t)splits_of(m->C / m->P, m) * (size_t)m->Hr;
    return n * ((size_t)m->E + 2) * sizeof(float);
}

static struct row_mask mask_row(const struct chunk *c, int r, bool is_new, int window, int P)
{
    struct row_mask mask = {0, 0, 0};
    int lo = first_visible(r, window);
    for (int j = 0; j < c->n_pages; j++) {
        int start = c->page[j] * P;
        if (start > r || start + P <= lo || (!is_new && *c->last_loaded[j] >= r)) continue;
        if (!mask.pages) mask.front = start < lo ? lo - start : 0;
        mask.back = start + P - 1 > r ? start + P - 1 - r : 0;
        mask.pages |= (uint64_t)1 << j;
    }
    return mask;
}

/* Next run of tokens [*t0,*t1) of the mask at or after token *t1; false at the end. */
static bool next_run(const struct row_mask *mask, int P, int *t0, int *t1)
{
    int from = (*t1 + P - 1) / P;
    uint64_t left = from >= 64 ? 0 : mask->pages >> from << from;
    if (!left) return false;
    int first = __builtin_ctzll(left);
    uint64_t gap = ~(left >> first);
    int n = gap ? __builtin_ctzll(gap) : 64;
    *t0 = first * P;
    *t1 = (first + n) * P;
    if (first == __builtin_ctzll(mask->pages)) *t0 += mask->front;
    if (first + n == 64 - __builtin_clzll(mask->pages)) *t1 -= mask->back;
    return true;
}

/* Takes splits until one has something to read; false when none is left. Splits go from the last to the
 * first: the long ones come early. */
static bool next_split(struct attend *a, struct cursor *at)
{
    const struct dims *m = a->m;
    int heads = a->b->n_decode * m->Kr, per_chunk = chunk_pages(m);
    for (;;) {
        int item = atomic_fetch_add_explicit(&a->next, 1, memory_order_relaxed);
        if (item >= a->n_splits * heads) return false;
        int list = item % heads, n_pages = a->count[list];
        at->split = a->n_splits - 1 - item / heads;
        at->span = &a->b->host_decode[list / m->Kr];
        at->kv_head = list % m->Kr;
        at->n_heads = attended_heads(m, at->kv_head, &at->head);
        at->list = a->pages + (size_t)list * (size_t)(m->C / m->P);
        at->from = split_first_chunk(at->split) * per_chunk;
        at->to = at->from + split_chunks(at->split) * per_chunk;
        if (at->to > n_pages) at->to = n_pages;
        at->first = true;
        if (at->from < at->to && at->n_heads > 0) return true;
    }
}

/* The chunk at the cursor, which moves on; false at the end of all work. */
static bool next_chunk(struct attend *a, struct cursor *at, struct chunk *c)
{
    const struct dims *m = a->m;
    if (at->from >= at->to && !next_split(a, at)) return false;
    c->span = at->span;
    c->kv_head = at->kv_head;
    c->split = at->split;
    c->head = at->head;
    c->n_heads = at->n_heads;
    c->first = at->first;
    c->page = at->list + at->from;
    c->n_pages = at->to - at->from < chunk_pages(m) ? at->to - at->from : chunk_pages(m);
    at->from += c->n_pages;
    at->first = false;

    const int32_t *blocks = span_blocks(a->b, m, c->span->slot);
    size_t row_bytes = (size_t)m->E * dtype_bytes(m->kv);
    c->n_tokens = 0;
    for (int j = 0; j < c->n_pages; j++) {
        struct page_place place = page_place_of(a->kv, blocks, c->page[j], m);
        const char *keys = page_keys(place, m, c->kv_head);
        int filled = c->span->position - c->page[j] * m->P + 1;
        if (filled > m->P) filled = m->P;
        for (int t = 0; t < filled; t++) c->key[j * m->P + t] = keys + (size_t)t * row_bytes;
        c->n_tokens = j * m->P + filled;
        if (c->span->n_rows > 1) {
            c->last_loaded[j] = page_last_loaded(place, m, c->kv_head);
            __builtin_prefetch(c->last_loaded[j]);
        }
    }
    for (int t = c->n_tokens; t < MAX_CHUNK; t++) c->key[t] = tile_zero_row;
    return true;
}

/* Scores of one row with tokens [first,first+n) of the chunk, as far as its runs reach, in steps of 4. */
static void score_row(const struct attend *a, const struct chunk *c, float *s, const float *q,
                      const struct row_mask *mask, int first, int n, const char *const *next)
{
    int t0, t1 = 0, done = first;
    while (next_run(mask, a->m->P, &t0, &t1)) {
        int c0 = t0 / 4 * 4, c1 = (t1 + 3) / 4 * 4;
        if (c0 < done) c0 = done;
        if (c1 > first + n) c1 = first + n;
        if (c0 >= c1) continue;
        a->tile->dots(s, MAX_CHUNK, q, (size_t)a->m->E, c->n_heads, c->key, next, c0, c1, a->m->E, a->m->kv);
        done = c1;
    }
}

/* Scores become weights: -inf outside the row's runs, then the part's maximum moves and what it held is
 * scaled. */
static void weigh_row(const struct attend *a, float *s, int n_q, const struct row_mask *mask, int n_tokens,
                      float *out, float *ml)
{
    int n = (n_tokens + 15) / 16 * 16;
    for (int i = 0; i < n_q; i++) {
        float *si = s + (size_t)i * MAX_CHUNK, *o = out + (size_t)i * (size_t)a->m->E;
        int t0, t1 = 0, done = 0;
        while (next_run(mask, a->m->P, &t0, &t1)) {
            for (int t = done; t < t0; t++) si[t] = -INFINITY;
            done = t1;
        }
        for (int t = done; t < n; t++) si[t] = -INFINITY;
        float m = a->tile->scale_max(si, n, a->m->attention_scale);
        if (m <= ml[2 * i]) {
            m = ml[2 * i];
        } else if (ml[2 * i] > -INFINITY) {
            float f = expf(ml[2 * i] - m);
            a->tile->scale(o, a->m->E, f);
            ml[2 * i + 1] *= f;
        }
        ml[2 * i] = m;
        ml[2 * i + 1] += a->tile->exp_sum(si, n, m);
    }
}

/* Some rows of the chunk's span, at most MAX_QUERIES queries. `next`: rows to prefetch, or NULL. */
static void attend_rows(const struct attend *a, const struct chunk *c, int row0, int n_rows,
                        const char *const *next)
{
    const struct dims *m = a->m;
    const struct decode_span *s = c->span;
    float score[MAX_QUERIES * MAX_CHUNK] __attribute__((aligned(64)));
    struct row_mask mask[MAX_QUERIES];
    size_t element = dtype_bytes(m->kv), values = (size_t)m->B * (size_t)m->E * element;
    size_t row_scores = (size_t)c->n_heads * MAX_CHUNK;
    for (int i = 0; i < n_rows; i++) {
        int r = s->position - s->n_rows + 1 + row0 + i;
        mask[i] = mask_row(c, r, r == s->position, a->kv->sliding_window, m->P);
    }
    /* A tile of keys serves all rows while it is in the first cache. The new row comes first: it walks over
     * all tokens and prefetches. */
    for (int first = 0; first < c->n_tokens; first += TILE_COLS)
        for (int i = n_rows - 1; i >= 0; i--) {
            size_t q = (size_t)(s->row0 + row0 + i) * (size_t)m->Qr + (size_t)c->head;
            score_row(a, c, score + (size_t)i * row_scores, a->q + q * (size_t)m->E, &mask[i], first,
                      TILE_COLS, i == n_rows - 1 ? next : NULL);
        }
    for (int i = n_rows - 1; i >= 0; i--) {
        if (!mask[i].pages) continue;
        size_t at = part_index(&a->part, m, s->row0 + row0 + i, c->split, c->head - m->head_off);
        float *si = score + (size_t)i * row_scores, *out = a->part.out + at * (size_t)m->E;
        weigh_row(a, si, c->n_heads, &mask[i], c->n_tokens, out, a->part.ml + 2 * at);
        int t0, t1 = 0;
        while (next_run(&mask[i], m->P, &t0, &t1))
            a->tile->values(out, (size_t)m->E, si, MAX_CHUNK, c->n_heads, c->key, values, next, t0, t1, m->E,
                            m->kv);
        next = NULL;
    }
}

static void clear_parts(const struct attend *a, const struct chunk *c)
{
    const struct dims *m = a->m;
    for (int i = 0; i < c->span->n_rows; i++) {
        size_t at = part_index(&a->part, m, c->span->row0 + i, c->split, c->head - m->head_off);
        memset(a->part.out + at * (size_t)m->E, 0, (size_t)c->n_heads * (size_t)m->E * sizeof(float));
        for (int h = 0; h < c->n_heads; h++) {
            a->part.ml[2 * (at + (size_t)h)] = -INFINITY;
            a->part.ml[2 * (at + (size_t)h) + 1] = 0;
        }
    }
}

static void attend_task(void *arg, int task, int thread)
{
    struct attend *a = arg;
    (void)task;
    (void)thread;
    struct chunk chunk[2], *c = &chunk[0], *next = &chunk[1];
    struct cursor at = {0};
    bool more, have = next_chunk(a, &at, c);
    for (; have; have = more) {
        more = next_chunk(a, &at, next);
        if (c->first) clear_parts(a, c);
        int n_rows = c->span->n_rows, group = MAX_QUERIES / c->n_heads;
        for (int last = n_rows; last > 0; last -= group) {
            int row = last > group ? last - group : 0;
            attend_rows(a, c, row, last - row, more && last == n_rows ? next->key : NULL);
        }
        struct chunk *done = c;
        c = next;
        next = done;
    }
}

void cpu_attend(struct device *d, void *part, const float *q, const struct kv_layer *kv, const int32_t *pages,
                const int32_t *count, const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && m->G <= TILE_MAX_G && m->P <= MAX_CHUNK);
    ASSERT(b->n_decode_rows <= decode_rows_max(m));
    if (b->n_decode == 0) return;
    int longest = 0;
    for (int i = 0; i < b->n_decode * m->Kr; i++) longest = count[i] > longest ? count[i] : longest;
    struct attend a = {
        tile_of(cpu_isa_of(d)), part_of(part, m), q, kv, pages, count, b, m, splits_of(longest, m), 0};
    int items = a.n_splits * b->n_decode * m->Kr, threads = cpu_threads(d);
    cpu_parallel(d, attend_task, &a, threads < items ? threads : items);
}
