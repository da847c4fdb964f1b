/* attend.c - decode attention over the chosen pages: ALGORITHM.md steps 3 and 4 up to the merge.
 *
 *   part(row, split, h) = (m, sum_t e^(s_t - m), sum_t e^(s_t - m) v_t),  s_t = q_h . k_t * attention_scale
 *
 * over the keys t of the split's pages that the row may see: for the new row all of S, for a revised row r
 * the pages with last_loaded < r; in both cases keys <= r and inside the sliding window of r.
 *
 * One task is one split of one kv head of one span (struct part). It goes through the split chunk by chunk:
 * keys are transposed into a tile once for all rows and heads of the group, then the weights of the chunk are
 * computed, then its values are read once. Rows that attend to nothing in a chunk are skipped there.
 *
 * Invariants:
 *  1. A row's part depends on its query, its own mask and the page list; not on other rows, threads or spans.
 *  2. Within a chunk, masked pages change no bit of a row's part: the maximum and the sums pass over them.
 *  3. Keys a row may not see are never multiplied: not later ones, not those left of its window. Slots that
 * hold nothing are not read at all. */
#include <math.h>

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
    int n_tasks, splits; /* splits: most of any span */
};

/* What a row does in a chunk. */
struct row_mask {
    uint64_t pages;  /* bit j: the row reads the chunk's page j */
    int front, back; /* tokens of the first and the last of these that it may not see */
};

struct chunk {
    int n_pages, n_tokens; /* n_tokens up to the new row's position */
    const int32_t *page;
    const char *key[MAX_CHUNK + 16];
    int32_t last_loaded[64];
};

size_t cpu_attend_part_bytes(const struct dims *m)
{
    size_t n = (size_t)decode_rows_max(m) * (size_t)splits_of(m->C / m->P, m) * (size_t)m->Hr;
    return n * ((size_t)m->E + 2) * sizeof(float);
}

static struct row_mask mask_row(const struct chunk *c, int r, bool is_new, int window, int P)
{
    struct row_mask mask = {0, 0, 0};
    int lo = first_visible(r, window);
    for (int j = 0; j < c->n_pages; j++) {
        int start = c->page[j] * P;
        if (start > r || start + P <= lo || (!is_new && c->last_loaded[j] >= r)) continue;
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

/* Rows of the cache, padded with zero rows to a multiple of 16; last_loaded where a revised row asks for it.
 */
static void open_chunk(struct chunk *c, const struct attend *a, const struct decode_span *s, int kv_head)
{
    const struct dims *m = a->m;
    const int32_t *blocks = span_blocks(a->b, m, s->slot);
    size_t row_bytes = (size_t)m->E * dtype_bytes(m->kv);
    c->n_tokens = 0;
    for (int j = 0; j < c->n_pages; j++) {
        struct page_place at = page_place_of(a->kv, blocks, c->page[j], m);
        const char *keys = page_keys(at, m, kv_head);
        int filled = s->position - c->page[j] * m->P + 1;
        if (filled > m->P) filled = m->P;
        for (int t = 0; t < filled; t++) c->key[j * m->P + t] = keys + (size_t)t * row_bytes;
        c->n_tokens = j * m->P + filled;
        if (s->n_rows > 1) c->last_loaded[j] = *page_last_loaded(at, m, kv_head);
    }
    for (int t = c->n_tokens; t % 16; t++) c->key[t] = tile_zero_row;
}

/* Scores of one row in columns [first, first+n) of the tile, as far as its runs touch them in steps of 16. */
static void score_row(const struct attend *a, float *s, const float *q, int n_q, const float *kt, int n_e,
                      const struct row_mask *mask, int first, int n, bool add)
{
    int t0, t1 = 0, done = first;
    while (next_run(mask, a->m->P, &t0, &t1)) {
        int c0 = t0 / 16 * 16, c1 = (t1 + 15) / 16 * 16;
        if (c0 < done) c0 = done;
        if (c1 > first + n) c1 = first + n;
        if (c0 >= c1) continue;
        a->tile->scores(s + first, MAX_CHUNK, q, (size_t)a->m->E, n_q, kt, n_e, c0 - first, c1 - first, add);
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

/* One chunk for some rows of the span, at most MAX_QUERIES queries of n_heads heads from `head` on. */
static void attend_chunk(const struct attend *a, const struct decode_span *s, const struct chunk *c, int row0,
                         int n_rows, int head, int n_heads, int split)
{
    const struct dims *m = a->m;
    float kt[TILE_DEPTH * TILE_COLS] __attribute__((aligned(64)));
    float score[MAX_QUERIES * MAX_CHUNK] __attribute__((aligned(64)));
    struct row_mask mask[MAX_QUERIES];
    size_t values = (size_t)m->B * (size_t)m->E * dtype_bytes(m->kv), element = dtype_bytes(m->kv);
    uint64_t any = 0;
    for (int i = 0; i < n_rows; i++) {
        int r = s->position - s->n_rows + 1 + row0 + i;
        mask[i] = mask_row(c, r, r == s->position, a->kv->sliding_window, m->P);
        any |= mask[i].pages;
    }
    if (!any) return;
    for (int first = 0; first < c->n_tokens; first += TILE_COLS) {
        int n = c->n_tokens - first < TILE_COLS ? (c->n_tokens - first + 15) / 16 * 16 : TILE_COLS;
        for (int e = 0; e < m->E; e += TILE_DEPTH) {
            int n_e = m->E - e < TILE_DEPTH ? m->E - e : TILE_DEPTH;
            a->tile->load_keys(kt, c->key + first, (size_t)e * element, n, n_e, m->kv);
            for (int i = 0; i < n_rows; i++) {
                if (!mask[i].pages) continue;
                const float *q =
                    a->q + ((size_t)(s->row0 + row0 + i) * (size_t)m->Qr + (size_t)head) * (size_t)m->E;
                score_row(a, score + (size_t)i * (size_t)n_heads * MAX_CHUNK, q + e, n_heads, kt, n_e,
                          &mask[i], first, n, e > 0);
            }
        }
    }
    for (int i = 0; i < n_rows; i++) {
        if (!mask[i].pages) continue;
        size_t at = part_index(&a->part, m, s->row0 + row0 + i, split, head - m->head_off);
        float *si = score + (size_t)i * (size_t)n_heads * MAX_CHUNK;
        weigh_row(a, si, n_heads, &mask[i], c->n_tokens, a->part.out + at * (size_t)m->E,
                  a->part.ml + 2 * at);
        int t0, t1 = 0;
        while (next_run(&mask[i], m->P, &t0, &t1))
            a->tile->values(a->part.out + at * (size_t)m->E, (size_t)m->E, si, MAX_CHUNK, n_heads, c->key,
                            values, t0, t1, m->E, m->kv);
    }
}

/* Task: (span, kv head, split), the last splits first, which are the longest. */
static void attend_task(void *arg, int task, int thread)
{
    const struct attend *a = arg;
    const struct dims *m = a->m;
    (void)thread;
    int split = a->splits - 1 - task / (a->b->n_decode * m->Kr);
    int span = task / m->Kr % a->b->n_decode, kv_head = task % m->Kr;
    const struct decode_span *s = &a->b->host_decode[span];
    int n_pages = a->count[span * m->Kr + kv_head], per_chunk = chunk_pages(m);
    int from = split_first_chunk(split) * per_chunk, to = from + split_chunks(split) * per_chunk;
    if (to > n_pages) to = n_pages;
    int head, n_heads = attended_heads(m, kv_head, &head);
    if (from >= n_pages || n_heads == 0) return;

    for (int i = 0; i < s->n_rows; i++) {
        size_t at = part_index(&a->part, m, s->row0 + i, split, head - m->head_off);
        memset(a->part.out + at * (size_t)m->E, 0, (size_t)n_heads * (size_t)m->E * sizeof(float));
        for (int h = 0; h < n_heads; h++) {
            a->part.ml[2 * (at + (size_t)h)] = -INFINITY;
            a->part.ml[2 * (at + (size_t)h) + 1] = 0;
        }
    }
    struct chunk c;
    int group = MAX_QUERIES / n_heads;
    for (; from < to; from += per_chunk) {
        c.page = a->pages + (size_t)(span * m->Kr + kv_head) * (size_t)(m->C / m->P) + from;
        c.n_pages = to - from < per_chunk ? to - from : per_chunk;
        open_chunk(&c, a, s, kv_head);
        for (int row = 0; row < s->n_rows; row += group)
            attend_chunk(a, s, &c, row, s->n_rows - row < group ? s->n_rows - row : group, head, n_heads,
                         split);
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
    struct attend a = {.tile = tile_of(cpu_isa_of(d)),
                       .part = part_of(part, m),
                       .q = q,
                       .kv = kv,
                       .pages = pages,
                       .count = count,
                       .b = b,
                       .m = m,
                       .splits = splits_of(longest, m)};
    cpu_deal(d, attend_task, &a, a.splits * b->n_decode * m->Kr);
}
