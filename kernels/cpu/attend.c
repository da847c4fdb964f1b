/* attend.c - decode attention over the chosen pages: docs/algorithm.md steps 3 and 4 up to the merge.
 *
 *   part(row, split, h) = (m, sum_t e^(s_t - m), sum_t e^(s_t - m) v_t),  s_t = q_h . k_t * attention_scale
 *
 * over the keys t of the split's pages that the row may see: for the new row all of S, for a revised row r
 * the pages with last_loaded < r; in both cases keys <= r and inside the sliding window of r.
 *
 * Threads take splits (struct part) one by one and go through them chunk by chunk. Of a chunk each row of the span
 * computes its scores, then their weights, then adds values, for all heads of the group at once; the new row comes
 * first and brings keys and values to the cache. Rows that attend to nothing in a chunk are skipped there. Keys and values
 * are listed by fours (attention.h); what a row sees of a four in part is copied. Pages lie far apart, so nothing but the
 * program knows what comes next: beside its keys and values the new row prefetches those of the next chunk, and for that
 * a thread takes its next split one ahead.
 *
 * Invariants:
 *  1. A row's part depends on its query, its own mask and the page list; not on other rows, threads or spans.
 *  2. Within a chunk, a row's part is computed from the keys that it reads and nothing else: masked pages
 *     change no bit of it.
 *  3. Keys a row may not see are never multiplied: not later ones, not those left of its window. Slots that
 *     hold nothing are not read at all. */
#include <math.h>
#include <stdatomic.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

/* MAX_CUT: rows of fours that a row sees in part, one at its position and one where its window begins. */
enum { MAX_CHUNK = CHUNK_TOKENS, MAX_FOURS = MAX_CHUNK / 4, MAX_CUT = 6 };

struct attend {
    const struct tile *tile;
    struct part part;
    const float *q;
    const struct kv_layer *kv;
    const int32_t *pages, *count;
    const struct batch *b;
    const struct dims *m;
    int n_splits; /* most of any span */
    int per_block;
    uint64_t inverse; /* of per_block, rounded up, times 2^40: division by a multiplication */
    bool drops;       /* prefetches: cpu_drops_prefetches */
    _Atomic int next;
};

/* A chunk of a kv head's page list, and the attended heads [head,head+n_heads) of the group. */
struct chunk {
    const struct decode_span *span;
    int kv_head, split, head, n_heads;
    int n_pages;
    bool first; /* of its split */
    const int32_t *page;
    const char *four[2 * MAX_FOURS]; /* as they lie: of a page its keys, then its values; zero rows behind */
    const int32_t *last_loaded;      /* of the kv head's pages ... */
    int32_t loaded[MAX_FOURS];       /* ... and of the chunk's, once a revised row asks */
};

/* What a row reads of a chunk: n tokens, as fours of keys and as many of values, filled up with zero rows. Behind them the
 * keys that the new row reads next. */
struct reading {
    int n, n_fours;
    const char *four[2 * MAX_FOURS + TILE_AGAIN_TWICE];
    char cut[2 * 2 * 4 * TILE_MAX_E * sizeof(float)];
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

/* Fours of keys of the chunk's pages: all, or (r >= 0) those of the pages that row r, a revised one, had missed. Without
 * branches, which nobody could foresee. `per_page` is a constant where it counts. */
static inline __attribute__((always_inline)) int list_keys(const struct chunk *c, int r, const char **list,
                                                           const int per_page)
{
    int n = 0;
    for (int j = 0; j < c->n_pages; j++) {
        for (int i = 0; i < per_page; i++) list[n + i] = c->four[2 * per_page * j + i];
        n += r < 0 || c->loaded[j] < r ? per_page : 0;
    }
    return n;
}

/* The same of a row that does not see all tokens of these pages: fours that it sees whole; row[n_cut]: keys of the others
 * that it sees. */
static int list_seen(const struct attend *a, const struct chunk *c, int r, bool missed, const char **list,
                     const char *row[MAX_CUT], int *n_cut)
{
    int P = a->m->P, per_page = P / 4, lo = first_visible(r, a->kv->sliding_window), n = 0;
    size_t row_bytes = (size_t)a->m->E * dtype_bytes(a->m->kv);
    *n_cut = 0;
    for (int j = 0; j < c->n_pages; j++) {
        if (missed && c->loaded[j] >= r) continue;
        for (int i = 0; i < per_page; i++) {
            const char *four = c->four[2 * per_page * j + i];
            int start = c->page[j] * P + 4 * i, from = start < lo ? lo - start : 0,
                to = start + 3 > r ? r - start + 1 : 4;
            if (from == 0 && to == 4) list[n++] = four;
            else
                for (int t = from; t < to; t++) row[(*n_cut)++] = four + (size_t)t * row_bytes;
        }
    }
    return n;
}

/* Copies n keys and their values into fours, two at most, whose columns begin with them. */
static void copy_cut(const struct attend *a, struct reading *to, const char *const *row, int n)
{
    size_t row_bytes = (size_t)a->m->E * dtype_bytes(a->m->kv), values = kv_value_distance(a->m);
    int n_fours = (n + 3) / 4, first = to->n_fours - n_fours;
    for (int t = 0; t < 4 * n_fours; t++)
        for (int v = 0; v < 2; v++) {
            char *four = to->cut + (size_t)(2 * (t / 4) + v) * 4 * row_bytes,
                 *at = four + ROW_ORDER[t % 4] * row_bytes;
            to->four[first + t / 4 + v * to->n_fours] = four;
            if (t < n) memcpy(at, row[t] + (v ? values : 0), row_bytes);
            else memset(at, 0, row_bytes);
        }
}

/* On a Zen 4 attention to chosen pages of 1 KiB takes 22 % less time when of each four fours the last two change places
 * (135M, 32k): the first cache's prefetchers guess less (ROW_ORDER); to all pages it is the same. */
static void change_places(const char **list, int n)
{
    for (int i = 3; i < n; i += 4) {
        const char *last = list[i];
        list[i] = list[i - 1];
        list[i - 1] = last;
    }
}

/* What row r of the span reads of the chunk. */
static void read_row(const struct attend *a, const struct chunk *c, int r, struct reading *to)
{
    int P = a->m->P, n_cut = 0, whole;
    bool is_new = r == c->span->position;
    const char *row[MAX_CUT];
    if (c->page[0] * P >= first_visible(r, a->kv->sliding_window) &&
        (c->page[c->n_pages - 1] + 1) * P - 1 <= r)
        whole = P == 4 ? list_keys(c, is_new ? -1 : r, to->four, 1)
                       : list_keys(c, is_new ? -1 : r, to->four, P / 4);
    else whole = list_seen(a, c, r, !is_new, to->four, row, &n_cut);
    if (is_new) change_places(to->four, whole);
    to->n = 4 * whole + n_cut;
    to->n_fours = (to->n + 3) / 4;
    for (int i = 0; i < whole; i++) to->four[to->n_fours + i] = to->four[i] + kv_value_distance(a->m);
    if (n_cut > 0) copy_cut(a, to, row, n_cut);
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
    size_t page_bytes = 2 * kv_value_distance(m), four_bytes = 4 * (size_t)m->E * dtype_bytes(m->kv);
    size_t head_offset = kv_key_offset(m, c->kv_head, 0);
    int per_page = m->P / 2, n = 0; /* fours of keys and values */
    for (int j = 0; j < c->n_pages; j++) {
        int block = (int)((uint64_t)c->page[j] * a->inverse >> 40), page = c->page[j] - block * a->per_block;
        const char *from = kv_layer_block(a->kv, m, blocks[block]) + head_offset + (size_t)page * page_bytes;
        for (int i = 0; i < per_page; i++, from += four_bytes) c->four[n++] = from;
    }
    while (n < 2 * MAX_FOURS) c->four[n++] = tile_zero_row;
    c->last_loaded = kv_last_loaded(a->kv, m, c->span->slot, c->kv_head, 0);
    if (c->span->n_rows > 1)
        for (int j = 0; j < c->n_pages; j++) __builtin_prefetch(c->last_loaded + c->page[j]);
    return true;
}

/* One row of the span with the chunk. next: what the new row prefetches, or NULL. */
static void attend_row(const struct attend *a, const struct chunk *c, int r, const struct chunk *next)
{
    const struct dims *m = a->m;
    const struct decode_span *s = c->span;
    struct reading in;
    float score[TILE_MAX_G * MAX_CHUNK] __attribute__((aligned(64)));
    read_row(a, c, r, &in);
    if (in.n == 0) return;
    struct tile_asks keys = {0}, values = {0};
    if (next) {
        int per_page = m->P / 4;
        for (int i = 0; i < TILE_AGAIN_TWICE; i++)
            in.four[2 * in.n_fours + i] = next->four[i + i / per_page * per_page];
        keys = (struct tile_asks){next->four, in.four, a->drops};
        values = (struct tile_asks){next->four + in.n_fours, in.four + in.n_fours, a->drops};
    }
    int row = s->row0 + s->n_rows - 1 - (s->position - r), columns = (in.n_fours + 3) / 4 * 16;
    const float *q = a->q + ((size_t)row * (size_t)m->Qr + (size_t)c->head) * (size_t)m->E;
    a->tile->dots_fours(score, MAX_CHUNK, q, (size_t)m->E, c->n_heads, in.four, in.n_fours,
                        next ? &keys : NULL, m->E, m->kv);
    size_t at = part_index(&a->part, m, row, c->split, c->head - m->head_off);
    float *out = a->part.out + at * (size_t)m->E;
    for (int h = 0; h < c->n_heads; h++)
        for (int t = in.n; t < columns; t++) score[h * MAX_CHUNK + t] = -INFINITY;
    float factor[TILE_MAX_G];
    a->tile->weigh(score, MAX_CHUNK, c->n_heads, columns, m->attention_scale, a->part.ml + 2 * at, factor);
    for (int h = 0; h < c->n_heads; h++)
        if (factor[h] != 1) a->tile->scale(out + h * m->E, m->E, factor[h]);
    a->tile->values_fours(out, (size_t)m->E, score, MAX_CHUNK, c->n_heads, in.four + in.n_fours, in.n_fours,
                          next ? &values : NULL, m->E, m->kv);
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

/* The thread's first chunk, which nobody prefetched: ask for all of it at once. */
static void fetch_chunk(const struct attend *a, const struct chunk *c)
{
    size_t bytes = 4 * (size_t)a->m->E * dtype_bytes(a->m->kv);
    for (int i = 0; i < c->n_pages * (a->m->P / 2); i++)
        for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(c->four[i] + line, 0, 1);
}

static void attend_task(void *arg, int task, int thread)
{
    struct attend *a = arg;
    (void)task;
    (void)thread;
    struct chunk chunk[2], *c = &chunk[0], *next = &chunk[1];
    struct cursor at = {0};
    bool more, have = next_chunk(a, &at, c);
    if (have) fetch_chunk(a, c);
    for (; have; have = more) {
        more = next_chunk(a, &at, next);
        if (c->first) clear_parts(a, c);
        /* The new row reads everything and prefetches; the others then find it in the second cache. With no chunk to
         * come it asks for its own rows again. */
        attend_row(a, c, c->span->position, more ? next : c);
        for (int j = 0; j < c->n_pages && c->span->n_rows > 1; j++) c->loaded[j] = c->last_loaded[c->page[j]];
        for (int i = 1; i < c->span->n_rows; i++) attend_row(a, c, c->span->position - i, NULL);
        struct chunk *done = c;
        c = next;
        next = done;
    }
}

void cpu_attend(struct device *d, void *part, const float *q, const struct kv_layer *kv, const int32_t *pages,
                const int32_t *count, const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && m->G <= TILE_MAX_G && m->P <= MAX_CHUNK && m->P % 4 == 0);
    ASSERT(b->n_decode_rows <= decode_rows_max(m));
    if (b->n_decode == 0) return;
    int longest = 0;
    for (int i = 0; i < b->n_decode * m->Kr; i++) longest = count[i] > longest ? count[i] : longest;
    struct attend a = {tile_of(cpu_isa_of(d)),           part_of(part, m), q, kv, pages, count, b, m,
                       .n_splits = splits_of(longest, m)};
    a.drops = cpu_drops_prefetches(d);
    a.per_block = m->B / m->P;
    a.inverse = ((1ull << 40) + (uint64_t)a.per_block - 1) / (uint64_t)a.per_block;
    int items = a.n_splits * b->n_decode * m->Kr, threads = cpu_threads(d);
    cpu_parallel(d, attend_task, &a, threads < items ? threads : items);
}
