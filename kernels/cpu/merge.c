/* merge.c - parts into outputs, revised outputs into the cache, the mask and the counters: docs/algorithm.md steps
 * 4 and 5.
 *
 *   a row's parts:   m = max_s m_s,  l = sum_s e^(m_s - m) l_s,
 *                    O = sum_s e^(m_s - m) O_s / l,  lse = m + ln l
 *   a revised row:   with the cached (O', lse'): n = max(lse', lse), a = e^(lse' - n), c = e^(lse - n),
 *                    O <- (a O' + c O) / (a + c),  lse <- n + ln(a + c)
 *
 * Splits are added in ascending order. A revised row that attended to nothing keeps its cached output to the
 * bit. One task is one attended head of a span, or what its kv head's last_loaded says and then becomes: so nothing is
 * shared but the counters, which are added with relaxed atomics (sums of integers do not depend on the order). */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { MAX_SPLITS = 512 }; /* of a list: 16 of each size, and sizes double */

struct merge {
    const struct tile *tile;
    char *out;
    struct part part;
    const struct kv_layer *kv;
    const int32_t *pages, *count;
    int64_t *counters;
    const struct batch *b;
    const struct dims *m;
};

/* o (E) and the returned lse of one row and head from its parts; lse = -inf and o = 0 where it attended to
 * nothing. */
static float combine_parts(const struct merge *a, float *o, int row, int n_splits, int head)
{
    const char *part[MAX_SPLITS];
    float weight[MAX_SPLITS], m = -INFINITY, l = 0;
    int n = 0;
    for (int s = 0; s < n_splits; s++) {
        float ms = a->part.ml[2 * part_index(&a->part, a->m, row, s, head)];
        m = ms > m ? ms : m;
    }
    memset(o, 0, (size_t)a->m->E * sizeof(float));
    if (m == -INFINITY) return m;
    for (int s = 0; s < n_splits; s++) {
        size_t at = part_index(&a->part, a->m, row, s, head);
        if (a->part.ml[2 * at] == -INFINITY) continue;
        weight[n] = expf(a->part.ml[2 * at] - m);
        l += weight[n] * a->part.ml[2 * at + 1];
        part[n++] = (const char *)(a->part.out + at * (size_t)a->m->E);
    }
    a->tile->values(o, 0, weight, 0, 1, part, n, a->m->E);
    a->tile->scale(o, a->m->E, 1 / l);
    return m + logf(l);
}

/* Folds a supplement into a cached output. */
static float fold(float *o, const float *cached, float lse, float cached_lse, int E)
{
    if (lse == -INFINITY) {
        memcpy(o, cached, (size_t)E * sizeof(float));
        return cached_lse;
    }
    float n = fmaxf(lse, cached_lse), a = expf(cached_lse - n), c = expf(lse - n), inverse = 1 / (a + c);
    for (int e = 0; e < E; e++) o[e] = (a * cached[e] + c * o[e]) * inverse;
    return n + logf(a + c);
}

/* Marks the n pages as loaded, the latest of which may not be full. Returns how many pages the revised rows met. */
static int64_t mark_pages(int32_t *last_loaded, const struct decode_span *s, const int32_t *page, int n,
                          int P)
{
    int64_t met = 0;
    int oldest = s->position - s->n_rows + 1;
    for (int j = 0; j < n && s->n_rows == 1; j++) last_loaded[page[j]] = s->position;
    /* No branch on what is found: it cannot be guessed. */
    for (int j = 0; j < n && s->n_rows > 1; j++) {
        int start = page[j] * P, from = last_loaded[page[j]] + 1;
        from = from > start ? from : start;
        from = from > oldest ? from : oldest;
        met += s->position > from ? s->position - from : 0;
        last_loaded[page[j]] = s->position;
    }
    return met;
}

/* The same where a row sees the newest `window` keys alone. */
static int64_t mark_window(int32_t *last_loaded, const struct decode_span *s, const int32_t *page, int n,
                           int P, int window)
{
    int64_t met = 0;
    int oldest = s->position - s->n_rows + 1;
    for (int j = 0; j < n; j++) {
        int start = page[j] * P, end = start + P - 1 < s->position ? start + P - 1 : s->position;
        int from = last_loaded[page[j]] + 1, to = s->position - 1;
        from = from > start ? from : start;
        from = from > oldest ? from : oldest;
        to = to < end + window - 1 ? to : end + window - 1;
        met += to >= from ? to - from + 1 : 0;
        last_loaded[page[j]] = s->position;
    }
    return met;
}

/* Counts what the span did with this kv head, then marks its pages as loaded. */
static void close_pages(const struct merge *a, const struct decode_span *s, int kv_head, const int32_t *page,
                        int n)
{
    const struct dims *m = a->m;
    int window = a->kv->sliding_window, lo = first_visible(s->position, window);
    int32_t *last_loaded = kv_last_loaded(a->kv, m, s->slot, kv_head, 0);
    int64_t met = window ? mark_window(last_loaded, s, page, n, m->P, window)
                         : mark_pages(last_loaded, s, page, n, m->P);
    /* Pages are whole but for the first, of which the window may begin later, and the last, which may not be full. */
    int64_t read = (int64_t)n * m->P;
    if (n > 0 && lo > page[0] * m->P) read -= lo - page[0] * m->P;
    if (n > 0 && (page[n - 1] + 1) * m->P > s->position + 1)
        read -= (page[n - 1] + 1) * m->P - s->position - 1;
    if (!m->kv_owner) return;
    int64_t *counter = a->counters + (size_t)s->slot * COUNTER_COUNT, add[COUNTER_COUNT] = {0};
    struct candidates c = candidates_of(s, a->kv, m);
    if (a->kv->layer >= s->dense_layers) {
        add[COUNTER_PAGES_LOADED] = n;
        add[COUNTER_PAGES_MET] = met;
    }
    add[COUNTER_TOKENS_READ] = read;
    add[COUNTER_TOKENS_DENSE] = s->position - lo + 1;
    add[COUNTER_SUMMARIES_READ] = c.all || s->group == SCORE_GROUP_RECENT ? 0 : c.n;
    for (int i = 0; i < COUNTER_COUNT; i++) __atomic_fetch_add(&counter[i], add[i], __ATOMIC_RELAXED);
}

static void merge_head(const struct merge *a, const struct decode_span *s, int head, int n_splits)
{
    const struct dims *m = a->m;
    float o[TILE_MAX_E];
    for (int i = 0; i < s->n_rows; i++) {
        int r = s->position - s->n_rows + 1 + i;
        float *cached = cache_out(a->kv, m, s->slot, r, head),
              *cached_lse = cache_lse(a->kv, m, s->slot, r, head);
        float lse = combine_parts(a, o, s->row0 + i, n_splits, head);
        if (r < s->position) lse = fold(o, cached, lse, *cached_lse, m->E);
        if (s->keep) {
            memcpy(cached, o, (size_t)m->E * sizeof(float));
            *cached_lse = lse;
        }
        size_t at = ((size_t)(s->row0 + i) * (size_t)m->Hr + (size_t)head) * (size_t)m->E;
        a->tile->narrow(a->out + at * dtype_bytes(m->act), o, m->E, m->act);
    }
}

/* Task: (span, kv head, 1 + G); the first one of a kv head for its pages, which takes longest. */
static void merge_task(void *arg, int task, int thread)
{
    const struct merge *a = arg;
    const struct dims *m = a->m;
    (void)thread;
    int list = task / (1 + m->G), h = task % (1 + m->G) - 1, kv_head = list % m->Kr, n_pages = a->count[list],
        first;
    const struct decode_span *s = &a->b->host_decode[list / m->Kr];
    if (h < 0) close_pages(a, s, kv_head, a->pages + (size_t)list * (size_t)(m->C / m->P), n_pages);
    else if (h < attended_heads(m, kv_head, &first))
        merge_head(a, s, first - m->head_off + h, splits_of(n_pages, m));
}

void cpu_merge(struct device *d, void *out, const void *part, const struct kv_layer *kv, const int32_t *pages,
               const int32_t *count, int64_t *counters, const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && part_of(part, m).splits <= MAX_SPLITS);
    struct merge a = {tile_of(cpu_isa_of(d)), out, part_of(part, m), kv, pages, count, counters, b, m};
    if (b->n_decode > 0) cpu_parallel(d, merge_task, &a, b->n_decode * m->Kr * (1 + m->G));
}
