/* attention_expect.c - what each attention op must compute, in double precision, naively; see the header. */
#include "attention_expect.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define NEAR(got, expected, tolerance, ...)                                                                  \
    do {                                                                                                     \
        double got_ = (got), expected_ = (expected), tolerance_ = (tolerance);                               \
        if (!(fabs(got_ - expected_) <= tolerance_)) {                                                       \
            print_error(__VA_ARGS__);                                                                        \
            fail_msg(": got %.9g, expected %.9g, tolerance %.3g", got_, expected_, tolerance_);              \
        }                                                                                                    \
    } while (0)

static void *array(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

/* Half a unit in the last place of the type, relative. */
static double epsilon(enum dtype t) { return t == DTYPE_F32 ? 0x1p-24 : t == DTYPE_BF16 ? 0x1p-8 : 0x1p-11; }

static char *block_of(const struct world *w, int slot, int position)
{
    return kv_layer_block(&w->kv, &w->m, w->block_table[slot * (w->m.C / w->m.B) + position / w->m.B]);
}

/* The head's vector after norm and rope, and the largest magnitude in it. */
static double rotate(const struct world *w, double *z, const float *x, const float *weight, const float *rope)
{
    int E = w->m.E, half = E / 2;
    double y[512], sum = 0, top = 0;
    for (int e = 0; e < E; e++) sum += (double)x[e] * (double)x[e];
    double f = weight ? 1 / sqrt(sum / E + (double)w->m.norm_eps) : 1;
    for (int e = 0; e < E; e++) y[e] = (double)x[e] * f * (weight ? (double)weight[e] : 1);
    for (int i = 0; i < half; i++) {
        double c = (double)rope[2 * i], s = (double)rope[2 * i + 1];
        z[i] = y[i] * c - y[i + half] * s;
        z[i + half] = y[i + half] * c + y[i] * s;
    }
    for (int e = 0; e < E; e++) top = fmax(top, fabs(y[e]));
    return top;
}

/* Marks bytes as allowed to differ from the copy: the copy takes what is there now. */
static void allow(const struct world *w, const char *at, size_t bytes)
{
    memcpy(w->pool_before + (at - w->pool), at, bytes);
}

void expect_untouched(const struct world *w, bool slots_too)
{
    const struct dims *m = &w->m;
    assert_memory_equal(w->pool, w->pool_before, (size_t)m->n_blocks * m->block_bytes);
    if (slots_too) assert_memory_equal(w->slots, w->slots_before, (size_t)m->n_slots * m->slot_bytes);
}

/* The stored codes of a page's summary: middle c and half-width u (E), unscaled, and the two scales. */
static void read_codes(const struct world *w, int slot, int page, int kv_head, int *c, int *u,
                       double scale[2])
{
    const struct dims *m = &w->m;
    const char *block = block_of(w, slot, page * m->P);
    const unsigned char *at =
        (const unsigned char *)block + kv_summary_offset(m, kv_head, page % (m->B / m->P));
    uint16_t stored[2];
    memcpy(stored, block + kv_scales_offset(m, kv_head, page % (m->B / m->P)), sizeof stored);
    for (int i = 0; i < 2; i++) scale[i] = (double)dtype_f32_from_bf16(stored[i]);
    for (int e = 0; e < m->E; e++) {
        int half = m->E / 2, byte = e % half, shift = e < half ? 0 : 4;
        bool q8 = m->summary == SUMMARY_Q8;
        c[e] = q8 ? (signed char)at[e] : (at[byte] >> shift & 15) - 8;
        u[e] = q8 ? at[m->E + e] : at[half + byte] >> shift & 15;
    }
}

/* x (E) against codes: the scale is that of the largest, each code the nearest in [low, top]. */
static void expect_codes(const double *x, const int *code, double scale, int E, int low, int top)
{
    double most = 0;
    for (int e = 0; e < E; e++) most = fmax(most, fabs(x[e]));
    NEAR(scale, most / top, most / top * 0x1p-8 + 1e-40, "scale of a summary");
    for (int e = 0; e < E; e++) {
        assert_true(code[e] >= low && code[e] <= top);
        NEAR(code[e] * scale, x[e], scale * 0.501 + fabs(x[e]) * 0x1p-8 + 1e-38 * top, "code of element %d",
             e);
    }
}

static void expect_summary_codes(const struct world *w, int slot, int page, int last, int kv_head)
{
    const struct dims *m = &w->m;
    double c[512], u[512], scale[2];
    int code_c[512], code_u[512];
    for (int e = 0; e < m->E; e++) {
        double lo = INFINITY, hi = -INFINITY;
        for (int t = page * m->P; t <= last; t++) {
            lo = fmin(lo, world_key(w, slot, t, kv_head, e));
            hi = fmax(hi, world_key(w, slot, t, kv_head, e));
        }
        c[e] = (hi + lo) / 2;
        u[e] = (hi - lo) / 2;
    }
    read_codes(w, slot, page, kv_head, code_c, code_u, scale);
    bool q8 = m->summary == SUMMARY_Q8;
    expect_codes(c, code_c, scale[0], m->E, q8 ? -127 : -7, q8 ? 127 : 7);
    expect_codes(u, code_u, scale[1], m->E, 0, q8 ? 127 : 15);
    char *block = block_of(w, slot, page * m->P);
    allow(w, block + kv_summary_offset(m, kv_head, page % (m->B / m->P)), m->summary_stride);
    allow(w, block + kv_scales_offset(m, kv_head, page % (m->B / m->P)), SUMMARY_SCALES_BYTES);
}

/* The summary of a page: min and max of its keys up to `newest`. */
static void expect_summary(const struct world *w, int slot, int page, int newest, int kv_head)
{
    const struct dims *m = &w->m;
    char *at = block_of(w, slot, page * m->P) + kv_summary_offset(m, kv_head, page % (m->B / m->P));
    int last = page * m->P + m->P - 1 < newest ? page * m->P + m->P - 1 : newest;
    if (summary_has_codes(m)) {
        expect_summary_codes(w, slot, page, last, kv_head);
        return;
    }
    for (int e = 0; e < m->E; e++) {
        double lo = INFINITY, hi = -INFINITY, got[2];
        for (int t = page * m->P; t <= last; t++) {
            lo = fmin(lo, world_key(w, slot, t, kv_head, e));
            hi = fmax(hi, world_key(w, slot, t, kv_head, e));
        }
        for (int i = 0; i < 2; i++) {
            const char *p = at + (size_t)i * m->summary_bytes / 2;
            uint16_t h;
            float f;
            memcpy(&h, p + 2 * (m->summary == SUMMARY_F32 ? 0 : e), 2);
            memcpy(&f, p + 4 * (m->summary == SUMMARY_F32 ? e : 0), 4);
            got[i] = m->summary == SUMMARY_F32   ? (double)f
                     : m->summary == SUMMARY_F16 ? (double)dtype_f32_from_f16(h)
                                                 : (double)dtype_f32_from_bf16(h);
        }
        if (got[0] != lo || got[1] != hi)
            fail_msg("summary of slot %d page %d kv head %d element %d: [%g, %g], keys lie in [%g, %g]", slot,
                     page, kv_head, e, got[0], got[1], lo, hi);
    }
    allow(w, at, m->summary_bytes);
}

static void expect_row_stored(const struct world *w, int row)
{
    const struct dims *m = &w->m;
    int slot = w->slot[row], position = w->position[row], E = m->E, width = (m->Qr + 2 * m->Kr) * E;
    const float *x = w->qkv + row * width, *rope = w->rope + row * E;
    double z[512];
    for (int h = 0; h < m->Qr; h++) {
        double top = rotate(w, z, x + h * E, w->q_norm, rope);
        for (int e = 0; e < E; e++)
            NEAR(w->q[(row * m->Qr + h) * E + e], z[e], top * 2e-6, "q of row %d head %d element %d", row, h,
                 e);
    }
    for (int g = 0; g < m->Kr; g++) {
        double top = rotate(w, z, x + (m->Qr + g) * E, w->k_norm, rope);
        for (int e = 0; e < E; e++) {
            double v = (double)x[(m->Qr + m->Kr + g) * E + e];
            NEAR(world_key(w, slot, position, g, e), z[e], top * 2e-6 + fabs(z[e]) * epsilon(m->kv) + 3e-8,
                 "key of slot %d position %d kv head %d element %d", slot, position, g, e);
            NEAR(world_value(w, slot, position, g, e), v, fabs(v) * epsilon(m->kv) + 3e-8,
                 "value of slot %d position %d kv head %d element %d", slot, position, g, e);
        }
        size_t bytes = (size_t)E * dtype_bytes(m->kv);
        char *key = block_of(w, slot, position) + kv_key_offset(m, g, position % m->B);
        allow(w, key, bytes);
        allow(w, key + kv_value_distance(m), bytes);
    }
}

void expect_rope_store(const struct world *w)
{
    for (int row = 0; row < w->b.n_rows; row++) expect_row_stored(w, row);
    for (int row = 0; row < w->b.n_rows; row++)
        for (int g = 0; g < w->m.Kr; g++)
            expect_summary(w, w->slot[row], w->position[row] / w->m.P, w->n_tokens[w->slot[row]] - 1, g);
    expect_untouched(w, true);
}

/* A page's score for a head from its stored codes and the head's query rounded to eight bits. */
static double score_of_codes(const struct world *w, const struct decode_span *s, int page, int kv_head,
                             const float *q)
{
    int c[512], u[512], E = w->m.E;
    double scale[2], x = 0, y = 0;
    float most = 0;
    read_codes(w, s->slot, page, kv_head, c, u, scale);
    for (int e = 0; e < E; e++) most = fmaxf(most, fabsf(q[e]));
    float step = most / 127;
    for (int e = 0; e < E; e++) {
        double code = step > 0 ? (double)nearbyintf(q[e] / step) : 0;
        x += code * c[e];
        y += fabs(code) * u[e];
    }
    return (x * scale[0] + (double)s->alpha * y * scale[1]) * (double)step;
}

/* Group scores of pages [first,first+n), as docs/algorithm.md has them, from the keys themselves or, where
 * summaries have codes, from these. */
static void page_scores(const struct world *w, double *score, const struct decode_span *s, int kv_head,
                        int first, int n)
{
    const struct dims *m = &w->m;
    int E = m->E, row = s->row0 + s->n_rows - 1;
    double *head = array((size_t)(n * m->G) * sizeof(double));
    for (int j = 0; j < n; j++) {
        double c[512], u[512];
        int from = (first + j) * m->P, to = from + m->P - 1 < s->position ? from + m->P - 1 : s->position;
        for (int e = 0; e < E; e++) {
            double lo = INFINITY, hi = -INFINITY;
            for (int t = from; t <= to; t++) {
                lo = fmin(lo, world_key(w, s->slot, t, kv_head, e));
                hi = fmax(hi, world_key(w, s->slot, t, kv_head, e));
            }
            c[e] = (hi + lo) / 2;
            u[e] = (hi - lo) / 2;
        }
        for (int h = 0; h < m->G; h++) {
            const float *q = w->q + (row * m->Qr + kv_head * m->G + h) * E;
            double x = 0;
            for (int e = 0; e < E; e++)
                x += (double)q[e] * c[e] + (double)s->alpha * fabs((double)q[e]) * u[e];
            if (summary_has_codes(m)) x = score_of_codes(w, s, first + j, kv_head, q);
            head[h * n + j] = x * (double)m->attention_scale;
        }
    }
    if (s->group == SCORE_GROUP_RECENT) { /* the later, the better */
        for (int j = 0; j < n; j++) score[j] = first + j;
        free(head);
        return;
    }
    for (int j = 0; j < n; j++) score[j] = s->group == SCORE_GROUP_MAX ? -INFINITY : 0;
    for (int h = 0; h < m->G; h++) {
        double top = -INFINITY, sum = 0;
        for (int j = 0; j < n; j++) top = fmax(top, head[h * n + j]);
        for (int j = 0; j < n; j++) sum += exp(head[h * n + j] - top);
        for (int j = 0; j < n; j++) {
            double x = head[h * n + j];
            if (s->group == SCORE_GROUP_MAX) score[j] = fmax(score[j], x);
            else score[j] += (s->group == SCORE_GROUP_MEAN ? x : exp(x - top) / sum) / m->G;
        }
    }
    free(head);
}

static void expect_list(const struct world *w, int span, int kv_head)
{
    const struct dims *m = &w->m;
    const struct decode_span *s = &w->decode[span];
    int window = w->kv.sliding_window, n,
        oldest = window && s->position >= window ? s->position - window + 1 : 0;
    const int32_t *page = world_pages(w, span, kv_head, &n);
    int first = oldest / m->P, last = s->position / m->P, candidates = last - first + 1;
    int wanted = s->n_select[window != 0], forced = 0;
    bool *in = array((size_t)candidates);
    for (int i = 0; i < n; i++) {
        assert_in_range(page[i], first, last);
        if (i) assert_true(page[i] > page[i - 1]);
        in[page[i] - first] = true;
    }
    if (w->kv.layer < s->dense_layers || wanted == 0 || wanted >= candidates) {
        assert_int_equal(n, candidates);
        free(in);
        return;
    }
    double *score = array((size_t)candidates * sizeof(double)), worst_in = INFINITY, best_out = -INFINITY;
    page_scores(w, score, s, kv_head, first, candidates);
    for (int j = 0; j < candidates; j++) {
        bool must = first + j == last || first + j < s->n_sink;
        forced += must;
        if (must) assert_true(in[j]);
        else if (in[j]) worst_in = fmin(worst_in, score[j]);
        else best_out = fmax(best_out, score[j]);
    }
    assert_int_equal(n, wanted > forced ? wanted : forced);
    double slack = s->group == SCORE_GROUP_SOFTMAX ? 1e-4 * fabs(best_out) + 1e-30 : 2e-5;
    if (best_out > worst_in + slack)
        fail_msg("span %d kv head %d: a page scores %.9g and was left out, one with %.9g was chosen", span,
                 kv_head, best_out, worst_in);
    free(in);
    free(score);
}

void expect_select(const struct world *w)
{
    for (int i = 0; i < w->b.n_decode; i++)
        for (int g = 0; g < w->m.Kr; g++) expect_list(w, i, g);
    expect_untouched(w, true);
}

/* `bound`: the magnitudes that rounded weights multiply. */
static double tolerance(const struct world *w, double expected, double bound)
{
    return 4e-5 + fabs(expected) * (w->m.act == DTYPE_F32 ? 0 : 1.01 * epsilon(w->m.act)) +
           1.01 * w->weight_rounding * bound;
}

/* What a row and head must hold after the step: o (E), its bound (E) and the returned lse, folded into the
 * reference's cache. */
static double fold_expected(struct world *w, double *o, double *bound, const struct decode_span *s, int span,
                            int r, int h)
{
    const struct dims *m = &w->m;
    int head = h + m->head_off, g = head / m->G, n, row = s->row0 + s->n_rows - 1 - (s->position - r),
        E = m->E;
    int window = w->kv.sliding_window;
    const int32_t *page = world_pages(w, span, g, &n);
    bool *seen = array((size_t)s->position + 1), any = false;
    for (int i = 0; i < n; i++)
        for (int t = page[i] * m->P; t < (page[i] + 1) * m->P && t <= r; t++) {
            bool mine =
                r == s->position || w->last_loaded[(s->slot * (m->C / m->P) + page[i]) * m->Kr + g] < r;
            seen[t] = mine && (!window || t > r - window);
            any |= seen[t];
        }
    size_t at = ((size_t)(s->slot * m->C + r) * (size_t)m->Hr + (size_t)h) * (size_t)E;
    double *cached = w->out_cache + at, *cached_bound = w->bound_cache + at;
    double *cached_lse = w->lse_cache + (size_t)(s->slot * m->C + r) * (size_t)m->Hr + h;
    double lse =
        any ? world_attend(w, o, bound, w->q + (row * m->Qr + head) * E, s->slot, g, seen, s->position + 1)
            : 0;
    if (r < s->position && any) {
        double top = fmax(*cached_lse, lse), a = exp(*cached_lse - top), c = exp(lse - top);
        for (int e = 0; e < E; e++) {
            o[e] = (a * cached[e] + c * o[e]) / (a + c);
            bound[e] = (a * cached_bound[e] + c * bound[e]) / (a + c);
        }
        lse = top + log(a + c);
    } else if (r < s->position) {
        memcpy(o, cached, (size_t)E * sizeof(double));
        memcpy(bound, cached_bound, (size_t)E * sizeof(double));
        lse = *cached_lse;
    }
    memcpy(cached, o, (size_t)E * sizeof(double));
    memcpy(cached_bound, bound, (size_t)E * sizeof(double));
    *cached_lse = lse;
    free(seen);
    return lse;
}

static void expect_row_merged(struct world *w, int span, int r)
{
    const struct dims *m = &w->m;
    const struct decode_span *s = &w->decode[span];
    int row = s->row0 + s->n_rows - 1 - (s->position - r), E = m->E;
    size_t entry = (size_t)s->slot * m->slot_bytes;
    for (int h = 0; h < m->Hr; h++) {
        double o[512], bound[512], lse = fold_expected(w, o, bound, s, span, r, h);
        for (int e = 0; e < E; e++)
            NEAR(world_out(w, row, h * E + e), o[e], tolerance(w, o[e], bound[e]),
                 "step %d slot %d position %d (row of %d) head %d element %d", w->step, s->slot, s->position,
                 r, h, e);
        size_t at = entry + ((size_t)(r % m->W) * (size_t)m->Hr + (size_t)h) * (size_t)E * sizeof(float);
        size_t lse_at = entry + (size_t)(m->W * m->Hr * E + r % m->W * m->Hr + h) * sizeof(float);
        if (s->keep) {
            float cached;
            for (int e = 0; e < E; e++) {
                memcpy(&cached, w->slots + at + (size_t)e * sizeof(float), sizeof cached);
                NEAR(cached, o[e], 4e-5 + 1.01 * w->weight_rounding * bound[e],
                     "cached output of slot %d position %d head %d", s->slot, r, h);
            }
            memcpy(&cached, w->slots + lse_at, sizeof cached);
            NEAR(cached, lse, 4e-5 + 1e-6 * fabs(lse), "cached lse of slot %d position %d head %d", s->slot,
                 r, h);
            memcpy(w->slots_before + at, w->slots + at, (size_t)E * sizeof(float));
            memcpy(w->slots_before + lse_at, w->slots + lse_at, sizeof(float));
        }
    }
    size_t bytes = (size_t)(m->Hr * E) * dtype_bytes(m->act);
    memcpy((char *)w->out_before + (size_t)row * bytes, (char *)w->out + (size_t)row * bytes, bytes);
}

/* Counters and last_loaded of one kv head. */
static void close_expected(struct world *w, int span, int g)
{
    const struct dims *m = &w->m;
    const struct decode_span *s = &w->decode[span];
    int n, window = w->kv.sliding_window;
    const int32_t *page = world_pages(w, span, g, &n);
    int64_t add[COUNTER_COUNT] = {0};
    int lo = window && s->position >= window ? s->position - window + 1 : 0;
    int candidates = s->position / m->P - lo / m->P + 1, wanted = s->n_select[window != 0];
    for (int i = 0; i < n; i++) {
        int32_t *mark = &w->last_loaded[(s->slot * (m->C / m->P) + page[i]) * m->Kr + g];
        for (int t = page[i] * m->P; t < (page[i] + 1) * m->P; t++)
            add[COUNTER_TOKENS_READ] += t >= lo && t <= s->position;
        for (int r = s->position - s->n_rows + 1; r < s->position; r++) {
            bool sees = false;
            for (int t = page[i] * m->P; t < (page[i] + 1) * m->P; t++)
                sees |= t <= r && (!window || t > r - window);
            add[COUNTER_PAGES_MET] += sees && *mark < r;
        }
        *mark = s->position;
        char *at = (char *)kv_last_loaded(&w->kv, m, s->slot, g, page[i]);
        int32_t got;
        memcpy(&got, at, sizeof got);
        assert_int_equal(got, s->position);
        memcpy(w->slots_before + (at - w->slots), at, sizeof got);
    }
    if (m->kv_owner) {
        int64_t *counter = w->expected_counters + s->slot * COUNTER_COUNT;
        bool counted = w->kv.layer >= s->dense_layers, all = !counted || wanted == 0 || wanted >= candidates;
        if (counted) counter[COUNTER_PAGES_LOADED] += n;
        if (counted) counter[COUNTER_PAGES_MET] += add[COUNTER_PAGES_MET];
        counter[COUNTER_TOKENS_READ] += add[COUNTER_TOKENS_READ];
        counter[COUNTER_TOKENS_DENSE] += s->position - lo + 1;
        counter[COUNTER_SUMMARIES_READ] += all || s->group == SCORE_GROUP_RECENT ? 0 : candidates;
    }
}

void expect_merge(struct world *w)
{
    const struct dims *m = &w->m;
    for (int i = 0; i < w->b.n_decode; i++) {
        const struct decode_span *s = &w->decode[i];
        for (int r = s->position - s->n_rows + 1; r <= s->position; r++) expect_row_merged(w, i, r);
        for (int g = 0; g < m->Kr; g++) close_expected(w, i, g);
    }
    expect_untouched(w, true);
    assert_memory_equal(w->out, w->out_before, w->out_bytes + 256);
    assert_memory_equal(w->counters, w->expected_counters,
                        (size_t)m->n_slots * COUNTER_COUNT * sizeof(int64_t));
}

void expect_attend_prompt(const struct world *w)
{
    const struct dims *m = &w->m;
    int E = m->E, window = w->kv.sliding_window;
    bool *seen = array((size_t)m->C);
    for (int i = 0; i < w->b.n_prompt; i++) {
        const struct prompt_span *s = &w->prompt[i];
        for (int row = s->row0; row < s->row0 + s->n_rows; row++) {
            int r = w->position[row];
            for (int t = 0; t <= r; t++) seen[t] = !window || t > r - window;
            for (int h = 0; h < m->Hr; h++) {
                double o[512], bound[512];
                int head = h + m->head_off;
                world_attend(w, o, bound, w->q + (row * m->Qr + head) * E, s->slot, head / m->G, seen, r + 1);
                for (int e = 0; e < E; e++)
                    NEAR(world_out(w, row, h * E + e), o[e], tolerance(w, o[e], bound[e]),
                         "prompt of slot %d position %d head %d element %d", s->slot, r, h, e);
            }
            size_t bytes = (size_t)(m->Hr * E) * dtype_bytes(m->act);
            memcpy((char *)w->out_before + (size_t)row * bytes, (char *)w->out + (size_t)row * bytes, bytes);
        }
    }
    free(seen);
    expect_untouched(w, true);
    assert_memory_equal(w->out, w->out_before, w->out_bytes + 256);
}
