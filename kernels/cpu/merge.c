/* merge.c - parts into outputs, revised outputs into the cache, the mask and the counters: ALGORITHM.md steps
 * 4 and 5.
 *
 *   a row's parts:   m = max_s m_s,  l = sum_s e^(m_s - m) l_s,
 *                    O = sum_s e^(m_s - m) O_s / l,  lse = m + ln l
 *   a revised row:   with the cached (O', lse'): n = max(lse', lse), a = e^(lse' - n), c = e^(lse - n),
 *                    O <- (a O' + c O) / (a + c),  lse <- n + ln(a + c)
 *
 * Splits are added in ascending order. A revised row that attended to nothing keeps its cached output to the
 * bit. One task is one kv head of one span: it reads and then sets that head's last_loaded, so nothing is
 * shared but the counters, which are added with relaxed atomics (sums of integers do not depend on the
 * order). */
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
    a->tile->values(o, 0, weight, 0, 1, part, 0, NULL, 0, n, a->m->E, DTYPE_F32);
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

/* Counts what the span did with this kv head, then marks its pages as loaded. */
static void close_pages(const struct merge *a, const struct decode_span *s, int kv_head, const int32_t *page,
                        int n)
{
    const struct dims *m = a->m;
    int window = a->kv->sliding_window, oldest = s->position - s->n_rows + 1;
    int lo = first_visible(s->position, window);
    int32_t *last_loaded = kv_last_loaded(a->kv, m, s->slot, kv_head, 0);
    int64_t met = 0, read = 0;
    for (int j = 0; j < n; j++) {
        int start = page[j] * m->P, end = start + m->P - 1 < s->position ? start + m->P - 1 : s->position;
        read += end - (start > lo ? start : lo) + 1;
        /* Revised rows that have not met the page and may see a key of it: `from` to `to`. No branch on what is
         * found: it cannot be guessed. */
        int seen = last_loaded[page[j]], from = seen + 1 > start ? seen + 1 : start, to = s->position - 1;
        from = from < oldest ? oldest : from;
        if (window && to > end + window - 1) to = end + window - 1;
        int more = to - from + 1;
        met += more & ~(more >> 31);
        last_loaded[page[j]] = s->position;
    }
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

static void merge_task(void *arg, int task, int thread)
{
    const struct merge *a = arg;
    const struct dims *m = a->m;
    (void)thread;
    int span = task / m->Kr, kv_head = task % m->Kr;
    const struct decode_span *s = &a->b->host_decode[span];
    int n_pages = a->count[span * m->Kr + kv_head], n_splits = splits_of(n_pages, m);
    int first, n_heads = attended_heads(m, kv_head, &first);
    float o[TILE_MAX_E];
    for (int i = 0; i < s->n_rows; i++) {
        int r = s->position - s->n_rows + 1 + i;
        for (int h = first - m->head_off; h < first - m->head_off + n_heads; h++) {
            float *cached = cache_out(a->kv, m, s->slot, r, h),
                  *cached_lse = cache_lse(a->kv, m, s->slot, r, h);
            float lse = combine_parts(a, o, s->row0 + i, n_splits, h);
            if (r < s->position) lse = fold(o, cached, lse, *cached_lse, m->E);
            if (s->keep) {
                memcpy(cached, o, (size_t)m->E * sizeof(float));
                *cached_lse = lse;
            }
            size_t at = ((size_t)(s->row0 + i) * (size_t)m->Hr + (size_t)h) * (size_t)m->E;
            a->tile->narrow(a->out + at * dtype_bytes(m->act), o, m->E, m->act);
        }
    }
    close_pages(a, s, kv_head, a->pages + (size_t)task * (size_t)(m->C / m->P), n_pages);
}

void cpu_merge(struct device *d, void *out, const void *part, const struct kv_layer *kv, const int32_t *pages,
               const int32_t *count, int64_t *counters, const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && part_of(part, m).splits <= MAX_SPLITS);
    struct merge a = {tile_of(cpu_isa_of(d)), out, part_of(part, m), kv, pages, count, counters, b, m};
    if (b->n_decode > 0) cpu_parallel(d, merge_task, &a, b->n_decode * m->Kr);
}
