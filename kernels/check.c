#include "kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "runtime/base/die.h"

enum { ALLOCATIONS_MAX = 64 };

struct twin { /* one allocation on both devices */
    char *a, *b;
    size_t bytes;
    bool host; /* host memory: one and the same */
};

struct check_device {
    struct device base;
    struct device *a, *b; /* reference, tested */
    const struct ops *oa, *ob;
    struct twin twin[ALLOCATIONS_MAX];
    int n_twins;
    struct check_report report;
};

static struct check_device *check_of(struct device *d) { return (struct check_device *)d; }

/* The tested device's counterpart of a pointer of the reference; NULL stays NULL. */
static void *twin_of(const struct check_device *c, const void *p)
{
    if (!p) return NULL;
    for (int i = 0; i < c->n_twins; i++) {
        const struct twin *t = &c->twin[i];
        if ((const char *)p >= t->a && (const char *)p < t->a + t->bytes)
            return t->b + ((const char *)p - t->a);
    }
    ASSERT(!"a pointer of no allocation");
    return NULL;
}

/* ------------------------------------------------------------------------------------------ comparing */

static float value_at(const char *p, size_t i, enum dtype t)
{
    uint16_t h;
    float f;
    if (t == DTYPE_F32) {
        memcpy(&f, p + i * 4, 4);
        return f;
    }
    memcpy(&h, p + i * 2, 2);
    return t == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

/* One rounding of the type, relative to the value; sums in another order move an element by this much of the
 * row's largest. */
static double relative_step(enum dtype t)
{
    return t == DTYPE_F32 ? 2e-6 : t == DTYPE_F16 ? 0x1p-10 : 0x1p-7;
}

static void *fetch(struct device *d, const struct ops *op, const void *p, size_t bytes)
{
    void *host = malloc(bytes ? bytes : 1);
    if (!host) DIE(EXIT_CODE_MEMORY, NULL, "no memory to compare %zu bytes", bytes);
    op->download(d, host, p, bytes);
    op->sync(d);
    return host;
}

static void note(struct check_device *c, const char *op, const char *what, int layer, size_t i, double x,
                 double y, double excess)
{
    struct check_report *r = &c->report;
    if (excess > r->worst) {
        r->worst = excess;
        snprintf(r->worst_op, sizeof r->worst_op, "%s", op);
    }
    if (excess <= 1 || r->failed) return;
    r->failed = true;
    snprintf(r->first, sizeof r->first,
             "op %s, %s, layer %d, element %zu: %s gives %.9g, %s gives %.9g (%.3g tolerances)", op, what,
             layer, i, c->oa->name, x, c->ob->name, y, excess);
}

/* Compares n values in rows of `width` and makes the tested ones equal to the reference's. Sums in another order may
 * move an element by 1e-4 of the row's largest value; `more` is allowed besides. */
static void compare_within(struct check_device *c, const char *op, const char *what, int layer, const void *p,
                           size_t n, size_t width, enum dtype t, double more)
{
    size_t bytes = n * dtype_bytes(t);
    if (n == 0) return;
    char *x = fetch(c->a, c->oa, p, bytes), *y = fetch(c->b, c->ob, twin_of(c, p), bytes);
    for (size_t row = 0; row < n; row += width) {
        size_t end = row + width < n ? row + width : n;
        double largest = 0;
        for (size_t i = row; i < end; i++) largest = fmax(largest, fabs((double)value_at(x, i, t)));
        for (size_t i = row; i < end; i++) {
            double vx = value_at(x, i, t), vy = value_at(y, i, t);
            double limit = 1.5 * relative_step(t) * fabs(vx) + 1e-4 * largest + more + 1e-30;
            bool same = memcmp(x + i * dtype_bytes(t), y + i * dtype_bytes(t), dtype_bytes(t)) == 0;
            note(c, op, what, layer, i, vx, vy,
                 same                           ? 0
                 : isfinite(vx) && isfinite(vy) ? fabs(vx - vy) / limit
                                                : 1e9);
        }
    }
    c->report.n_values += (int64_t)n;
    c->ob->upload(c->b, twin_of(c, p), x, bytes);
    c->ob->sync(c->b);
    free(x);
    free(y);
}

static void compare(struct check_device *c, const char *op, const char *what, int layer, const void *p,
                    size_t n, size_t width, enum dtype t)
{
    compare_within(c, op, what, layer, p, n, width, t, 0);
}

/* Integers must be equal. */
static void compare_ints(struct check_device *c, const char *op, const char *what, int layer, const void *p,
                         size_t n)
{
    int32_t *x = fetch(c->a, c->oa, p, n * sizeof *x), *y = fetch(c->b, c->ob, twin_of(c, p), n * sizeof *y);
    for (size_t i = 0; i < n; i++) note(c, op, what, layer, i, x[i], y[i], x[i] == y[i] ? 0 : 1e9);
    c->report.n_values += (int64_t)n;
    free(x);
    free(y);
}

/* ------------------------------------------------------------------------------------------ memory */

static void add_twin(struct check_device *c, struct twin t)
{
    ASSERT(c->n_twins < ALLOCATIONS_MAX);
    c->twin[c->n_twins++] = t;
}

static void *mem_alloc(struct device *d, size_t bytes)
{
    struct check_device *c = check_of(d);
    struct twin t = {
        .a = c->oa->mem_alloc(c->a, bytes), .b = c->ob->mem_alloc(c->b, bytes), .bytes = bytes ? bytes : 1};
    if (t.a && t.b) {
        add_twin(c, t);
        return t.a;
    }
    if (t.a) c->oa->mem_free(c->a, t.a, bytes);
    if (t.b) c->ob->mem_free(c->b, t.b, bytes);
    return NULL;
}

static void mem_free(struct device *d, void *p, size_t bytes)
{
    struct check_device *c = check_of(d);
    for (int i = 0; i < c->n_twins; i++) {
        if (c->twin[i].a != p) continue;
        c->oa->mem_free(c->a, c->twin[i].a, bytes);
        c->ob->mem_free(c->b, c->twin[i].b, bytes);
        c->twin[i] = c->twin[--c->n_twins];
        return;
    }
    ASSERT(!p);
}

/* Memory that the tested device can read asynchronously serves the reference as well. */
static void *host_alloc(struct device *d, size_t bytes)
{
    return check_of(d)->ob->host_alloc(check_of(d)->b, bytes);
}

static void host_free(struct device *d, void *p, size_t bytes)
{
    check_of(d)->ob->host_free(check_of(d)->b, p, bytes);
}

static void upload(struct device *d, void *dst, const void *src_host, size_t bytes)
{
    struct check_device *c = check_of(d);
    if (bytes == 0) return;
    c->oa->upload(c->a, dst, src_host, bytes);
    c->ob->upload(c->b, twin_of(c, dst), src_host, bytes);
}

static void download(struct device *d, void *dst_host, const void *src, size_t bytes)
{
    check_of(d)->oa->download(check_of(d)->a, dst_host, src, bytes);
}

static void copy(struct device *d, void *dst, const void *src, size_t bytes)
{
    struct check_device *c = check_of(d);
    if (bytes == 0) return;
    c->oa->copy(c->a, dst, src, bytes);
    c->ob->copy(c->b, twin_of(c, dst), twin_of(c, src), bytes);
}

static void fill(struct device *d, void *dst, int byte, size_t bytes)
{
    struct check_device *c = check_of(d);
    if (bytes == 0) return;
    c->oa->fill(c->a, dst, byte, bytes);
    c->ob->fill(c->b, twin_of(c, dst), byte, bytes);
}

static void sync(struct device *d)
{
    check_of(d)->oa->sync(check_of(d)->a);
    check_of(d)->ob->sync(check_of(d)->b);
}

static int64_t mem_available(struct device *d)
{
    struct check_device *c = check_of(d);
    int64_t a = c->oa->mem_available(c->a), b = c->ob->mem_available(c->b);
    return (a < b ? a : b) / 2; /* both may be the same memory */
}

static void *stream(struct device *d)
{
    (void)d;
    return NULL;
}

/* Nothing to compare. */
static void read_bytes(struct device *d, const void *p, size_t bytes)
{
    check_of(d)->oa->read_bytes(check_of(d)->a, p, bytes);
}

static void mark(struct device *d, int i) { check_of(d)->oa->mark(check_of(d)->a, i); }

static double mark_us(struct device *d, int i) { return check_of(d)->oa->mark_us(check_of(d)->a, i); }

static void range(struct device *d, const char *name)
{
    (void)d;
    (void)name;
}

/* ------------------------------------------------------------------------------------------ weights */

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Room for either device's element order. */
static size_t matrix_bytes(struct device *d, enum dtype dtype, int n, int k)
{
    struct check_device *c = check_of(d);
    return larger(c->oa->matrix_bytes(c->a, dtype, n, k), c->ob->matrix_bytes(c->b, dtype, n, k));
}

static struct matrix twin_matrix(const struct check_device *c, const struct matrix *w)
{
    struct matrix t = *w;
    t.data = twin_of(c, w->data);
    return t;
}

static void matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                       enum dtype src_dtype, size_t src_stride)
{
    struct check_device *c = check_of(d);
    struct matrix t = twin_matrix(c, w);
    c->oa->matrix_put(c->a, w, row0, n_rows, src_host, src_dtype, src_stride);
    c->ob->matrix_put(c->b, &t, row0, n_rows, src_host, src_dtype, src_stride);
}

/* ------------------------------------------------------------------------------------------ the step */

static struct batch twin_batch(const struct check_device *c, const struct batch *b)
{
    struct batch t = *b;
    t.token = twin_of(c, b->token);
    t.position = twin_of(c, b->position);
    t.slot = twin_of(c, b->slot);
    t.decode = twin_of(c, b->decode);
    t.prompt = twin_of(c, b->prompt);
    t.out_row = twin_of(c, b->out_row);
    t.block_table = twin_of(c, b->block_table);
    return t;
}

static struct kv_layer twin_layer(const struct check_device *c, const struct kv_layer *kv)
{
    struct kv_layer t = *kv;
    t.blocks = twin_of(c, kv->blocks);
    t.slots = twin_of(c, kv->slots);
    return t;
}

static void embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
                  const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct matrix tt = twin_matrix(c, table);
    c->oa->embed(c->a, x, b, table, m);
    c->ob->embed(c->b, twin_of(c, x), &tb, &tt, m);
    c->report.n_ops++;
    compare(c, "embed", "x", 0, x, (size_t)b->n_rows * (size_t)m->D, (size_t)m->D, DTYPE_F32);
}

static void rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                       float factor, const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    c->oa->rope_table(c->a, table, b, inv_freq, factor, m);
    c->ob->rope_table(c->b, twin_of(c, table), &tb, twin_of(c, inv_freq), factor, m);
    c->report.n_ops++;
    compare(c, "rope_table", "cos and sin", 0, table, (size_t)b->n_rows * (size_t)m->E, (size_t)m->E,
            DTYPE_F32);
}

static void add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                     const struct dims *m)
{
    struct check_device *c = check_of(d);
    size_t n = (size_t)n_rows * (size_t)m->D;
    c->oa->add_norm(c->a, h, x, delta, weight, n_rows, m);
    c->ob->add_norm(c->b, twin_of(c, h), twin_of(c, x), twin_of(c, delta), twin_of(c, weight), n_rows, m);
    c->report.n_ops++;
    compare(c, "add_norm", "x", 0, x, n, (size_t)m->D, DTYPE_F32);
    compare(c, "add_norm", "h", 0, h, n, (size_t)m->D, m->act);
}

static void gather(struct device *d, void *to, const void *from, size_t row_bytes, const struct batch *b)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    c->oa->gather(c->a, to, from, row_bytes, b);
    c->ob->gather(c->b, twin_of(c, to), twin_of(c, from), row_bytes, &tb);
    c->report.n_ops++;
    compare_ints(c, "gather", "words", 0, to, (size_t)b->n_out * row_bytes / sizeof(int32_t));
}

static void linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                   int n_rows)
{
    struct check_device *c = check_of(d);
    struct matrix tw = twin_matrix(c, w);
    c->oa->linear(c->a, y, x, w, bias, n_rows);
    c->ob->linear(c->b, twin_of(c, y), twin_of(c, x), &tw, twin_of(c, bias), n_rows);
    c->report.n_ops++;
    compare(c, "linear", "y", 0, y, (size_t)n_rows * (size_t)w->n, (size_t)w->n, DTYPE_F32);
}

/* Value i of a page's summary with codes: the middle (E), then the half-width (E). */
static double coded_value(const char *summary, const char *scales, int i, const struct dims *m)
{
    int half = m->E / 2, e = i % m->E, width = i >= m->E;
    uint16_t scale[2];
    memcpy(scale, scales, sizeof scale);
    int code =
        m->summary == SUMMARY_Q8
            ? (signed char)summary[i]
            : ((unsigned char)summary[width * half + e % half] >> (e < half ? 0 : 4) & 15) - (width ? 0 : 8);
    return code * (double)dtype_f32_from_bf16(scale[width]);
}

/* Codes of keys that differ by a rounding may differ by one. */
static void compare_codes(struct check_device *c, int layer, const char *record, const struct dims *m)
{
    const char *from = record + m->kv_bytes;
    char *x = fetch(c->a, c->oa, from, m->summaries_bytes),
         *y = fetch(c->b, c->ob, twin_of(c, from), m->summaries_bytes);
    for (int head = 0; head < m->Kr; head++)
        for (int page = 0; page < m->B / m->P; page++) {
            size_t at = kv_summary_offset(m, head, page) - m->kv_bytes;
            size_t scales = kv_scales_offset(m, head, page) - m->kv_bytes;
            for (int i = 0; i < 2 * m->E; i++) {
                uint16_t step;
                memcpy(&step, x + scales + (i >= m->E ? 2 : 0), sizeof step);
                double vx = coded_value(x + at, x + scales, i, m), vy = coded_value(y + at, y + scales, i, m);
                double limit = 1.01 * (double)dtype_f32_from_bf16(step) + 0x1p-7 * fabs(vx) + 1e-30;
                note(c, "rope_store", "page summaries", layer, at * 2 + (size_t)i, vx, vy,
                     vx == vy       ? 0
                     : isfinite(vy) ? fabs(vx - vy) / limit
                                    : 1e9);
            }
        }
    c->report.n_values += (int64_t)m->Kr * (m->B / m->P) * 2 * m->E;
    c->ob->upload(c->b, twin_of(c, from), x, m->summaries_bytes);
    c->ob->sync(c->b);
    free(x);
    free(y);
}

/* Keys, values and summaries of every block that the step's rows lie in. */
static void compare_touched_blocks(struct check_device *c, const struct kv_layer *kv, const struct batch *b,
                                   const struct dims *m)
{
    size_t table = (size_t)(m->C / m->B);
    int32_t *blocks = fetch(c->a, c->oa, b->block_table, (size_t)m->n_slots * table * sizeof *blocks);
    int32_t *slot = fetch(c->a, c->oa, b->slot, (size_t)b->n_rows * sizeof *slot);
    int32_t *position = fetch(c->a, c->oa, b->position, (size_t)b->n_rows * sizeof *position);
    size_t pages = (size_t)m->Kr * (size_t)(m->B / m->P);
    enum dtype summary = m->summary == SUMMARY_F32   ? DTYPE_F32
                         : m->summary == SUMMARY_F16 ? DTYPE_F16
                                                     : DTYPE_BF16;
    for (int i = 0, last = -1; i < b->n_rows; i++) {
        int block = blocks[(size_t)slot[i] * table + (size_t)(position[i] / m->B)];
        if (block == last) continue;
        last = block;
        char *record = kv_layer_block(kv, m, block);
        compare(c, "rope_store", "keys and values", kv->layer, record,
                (size_t)m->Kr * 2 * (size_t)m->B * (size_t)m->E, (size_t)m->E, m->kv);
        if (summary_has_codes(m)) compare_codes(c, kv->layer, record, m);
        else
            compare(c, "rope_store", "page summaries", kv->layer, record + m->kv_bytes,
                    pages * m->summary_bytes / dtype_bytes(summary), (size_t)m->E, summary);
    }
    free(blocks);
    free(slot);
    free(position);
}

/* Tensor cores take queries rounded to the cache's type, too, and with sharp attention that moves outputs by
 * any amount: so the check goes on with rounded queries on both sides. */
static void round_queries(struct check_device *c, float *q, const struct batch *b, const struct dims *m)
{
    size_t n = (size_t)b->n_rows * (size_t)m->Qr * (size_t)m->E;
    if (m->kv == DTYPE_F32 || n == 0) return;
    float *x = fetch(c->a, c->oa, q, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = m->kv == DTYPE_BF16 ? dtype_f32_from_bf16(dtype_bf16_from_f32(x[i]))
                                   : dtype_f32_from_f16(dtype_f16_from_f32(x[i]));
    upload(&c->base, q, x, n * sizeof *x);
    sync(&c->base);
    free(x);
}

static void rope_store(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                       const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                       const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct kv_layer tk = twin_layer(c, kv);
    c->oa->rope_store(c->a, q, qkv, rope, q_norm, k_norm, kv, b, m);
    c->ob->rope_store(c->b, twin_of(c, q), twin_of(c, qkv), twin_of(c, rope), twin_of(c, q_norm),
                      twin_of(c, k_norm), &tk, &tb, m);
    c->report.n_ops++;
    compare(c, "rope_store", "q", kv->layer, q, (size_t)b->n_rows * (size_t)m->Qr * (size_t)m->E,
            (size_t)m->E, DTYPE_F32);
    round_queries(c, q, b, m);
    compare_touched_blocks(c, kv, b, m);
}

static size_t select_scratch_bytes(struct device *d, const struct dims *m)
{
    struct check_device *c = check_of(d);
    return larger(c->oa->select_scratch_bytes(c->a, m), c->ob->select_scratch_bytes(c->b, m));
}

static size_t attend_part_bytes(struct device *d, const struct dims *m)
{
    struct check_device *c = check_of(d);
    return larger(c->oa->attend_part_bytes(c->a, m), c->ob->attend_part_bytes(c->b, m));
}

/* Tensor cores take weights rounded to the cache's type: half a step of each, so the output moves by no more than
 * that of the largest value attended to, however much of the values cancels out. */
static double weights_rounded(struct check_device *c, const struct kv_layer *kv, const struct batch *b,
                              const struct dims *m)
{
    if (m->kv == DTYPE_F32) return 0;
    double largest = 0;
    size_t table = (size_t)(m->C / m->B), n = (size_t)m->B * (size_t)m->E;
    int32_t *blocks = fetch(c->a, c->oa, b->block_table, (size_t)m->n_slots * table * sizeof *blocks);
    for (int i = 0; i < b->n_decode + b->n_prompt; i++) {
        const struct decode_span *d = &b->host_decode[i];
        const struct prompt_span *p = &b->host_prompt[i - b->n_decode];
        bool decode = i < b->n_decode;
        int slot = decode ? d->slot : p->slot, newest = decode ? d->position : p->position0 + p->n_rows - 1;
        for (int k = 0; k <= newest / m->B; k++) {
            char *record = kv_layer_block(kv, m, blocks[(size_t)slot * table + (size_t)k]);
            int held = newest + 1 - k * m->B < m->B ? newest + 1 - k * m->B : m->B;
            for (int g = 0; g < m->Kr; g++) {
                char *kv_head =
                    fetch(c->a, c->oa, record + kv_key_offset(m, g, 0), 2 * n * dtype_bytes(m->kv));
                for (int t = 0; t < held; t++) {
                    const char *v = kv_head + kv_key_offset(m, 0, t) + kv_value_distance(m);
                    for (size_t e = 0; e < (size_t)m->E; e++)
                        largest = fmax(largest, fabs((double)value_at(v, e, m->kv)));
                }
                free(kv_head);
            }
        }
    }
    free(blocks);
    return largest * (m->kv == DTYPE_F16 ? 0x1p-12 : 0x1p-9);
}

/* Lists may differ where two pages are nearly tied: they are counted, their lengths must agree, and both
 * devices go on with the reference's. */
static void compare_lists(struct check_device *c, int32_t *pages, int32_t *count, int layer,
                          const struct batch *b, const struct dims *m)
{
    size_t lists = (size_t)b->n_decode * (size_t)m->Kr, stride = (size_t)(m->C / m->P);
    compare_ints(c, "select", "number of pages", layer, count, lists);
    int32_t *n = fetch(c->a, c->oa, count, lists * sizeof *n);
    for (size_t i = 0; i < lists && !c->report.failed; i++) {
        size_t bytes = (size_t)n[i] * sizeof(int32_t);
        int32_t *x = fetch(c->a, c->oa, pages + i * stride, bytes);
        int32_t *y = fetch(c->b, c->ob, twin_of(c, pages + i * stride), bytes);
        c->report.n_page_lists++;
        c->report.n_page_lists_differ += memcmp(x, y, bytes) != 0;
        c->ob->upload(c->b, twin_of(c, pages + i * stride), x, bytes);
        c->ob->sync(c->b);
        free(x);
        free(y);
    }
    free(n);
}

static void select_pages(struct device *d, int32_t *pages, int32_t *count, const float *q,
                         const struct kv_layer *kv, const struct batch *b, void *scratch,
                         const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct kv_layer tk = twin_layer(c, kv);
    c->oa->select(c->a, pages, count, q, kv, b, scratch, m);
    c->ob->select(c->b, twin_of(c, pages), twin_of(c, count), twin_of(c, q), &tk, &tb, twin_of(c, scratch),
                  m);
    c->report.n_ops++;
    compare_lists(c, pages, count, kv->layer, b, m);
}

/* Its parts are each device's own; merge is where the results can be compared. */
static void attend(struct device *d, void *part, const float *q, const struct kv_layer *kv,
                   const int32_t *pages, const int32_t *count, const struct batch *b, const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct kv_layer tk = twin_layer(c, kv);
    c->oa->attend(c->a, part, q, kv, pages, count, b, m);
    c->ob->attend(c->b, twin_of(c, part), twin_of(c, q), &tk, twin_of(c, pages), twin_of(c, count), &tb, m);
}

static void merge(struct device *d, void *out, const void *part, const struct kv_layer *kv,
                  const int32_t *pages, const int32_t *count, int64_t *counters, const struct batch *b,
                  const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct kv_layer tk = twin_layer(c, kv);
    c->oa->merge(c->a, out, part, kv, pages, count, counters, b, m);
    c->ob->merge(c->b, twin_of(c, out), twin_of(c, part), &tk, twin_of(c, pages), twin_of(c, count),
                 twin_of(c, counters), &tb, m);
    c->report.n_ops++;
    double rounded = weights_rounded(c, kv, b, m);
    compare_within(c, "attend and merge", "out", kv->layer, out,
                   (size_t)b->n_decode_rows * (size_t)m->Hr * (size_t)m->E, (size_t)m->E, m->act, rounded);
    for (int i = 0; i < b->n_decode; i++) {
        size_t slot = (size_t)b->host_decode[i].slot;
        if (b->host_decode[i].keep)
            compare_within(c, "attend and merge", "output cache", kv->layer, kv->slots + slot * m->slot_bytes,
                           (size_t)m->W * (size_t)m->Hr * (size_t)(m->E + 1), (size_t)m->E, DTYPE_F32,
                           rounded);
        compare_ints(c, "attend and merge", "counters", kv->layer, counters + slot * COUNTER_COUNT,
                     2 * COUNTER_COUNT);
    }
}

static void attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                          const struct batch *b, const struct dims *m)
{
    struct check_device *c = check_of(d);
    struct batch tb = twin_batch(c, b);
    struct kv_layer tk = twin_layer(c, kv);
    size_t width = (size_t)m->Hr * (size_t)m->E;
    c->oa->attend_prompt(c->a, out, q, kv, b, m);
    c->ob->attend_prompt(c->b, twin_of(c, out), twin_of(c, q), &tk, &tb, m);
    c->report.n_ops++;
    compare_within(c, "attend_prompt", "out", kv->layer,
                   (char *)out + (size_t)b->n_decode_rows * width * dtype_bytes(m->act),
                   (size_t)(b->n_rows - b->n_decode_rows) * width, (size_t)m->E, m->act,
                   weights_rounded(c, kv, b, m));
}

static void silu_mul(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m)
{
    struct check_device *c = check_of(d);
    c->oa->silu_mul(c->a, out, gate_up, n_rows, m);
    c->ob->silu_mul(c->b, twin_of(c, out), twin_of(c, gate_up), n_rows, m);
    c->report.n_ops++;
    compare(c, "silu_mul", "out", 0, out, (size_t)n_rows * (size_t)m->Fr, (size_t)m->Fr, m->act);
}

static void argmax(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m)
{
    struct check_device *c = check_of(d);
    c->oa->argmax(c->a, best, logits, n_out, m);
    c->ob->argmax(c->b, twin_of(c, best), twin_of(c, logits), n_out, m);
    c->report.n_ops++;
    compare_ints(c, "argmax", "value bits and index", 0, best, 2 * (size_t)n_out);
}

static void top_k(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m)
{
    struct check_device *c = check_of(d);
    c->oa->top_k(c->a, top, logits, n_out, m);
    c->ob->top_k(c->b, twin_of(c, top), twin_of(c, logits), n_out, m);
    c->report.n_ops++;
    compare_ints(c, "top_k", "value bits and indices", 0, top, 2 * (size_t)n_out * TOP_K_MAX);
}

static void convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n)
{
    struct check_device *c = check_of(d);
    c->oa->convert(c->a, out, to, in, from, n);
    c->ob->convert(c->b, twin_of(c, out), to, twin_of(c, in), from, n);
    c->report.n_ops++;
    compare(c, "convert", "out", 0, out, n, n, to);
}

static bool graph_launch(struct device *d, uint64_t key)
{
    (void)d;
    (void)key;
    return false; /* op by op, so that each can be compared */
}

static void graph_end(struct device *d) { (void)d; }

static const struct ops check_ops = {
    .name = "check",
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .upload = upload,
    .download = download,
    .copy = copy,
    .fill = fill,
    .sync = sync,
    .mem_available = mem_available,
    .stream = stream,
    .read_bytes = read_bytes,
    .mark = mark,
    .mark_us = mark_us,
    .range = range,
    .graph_launch = graph_launch,
    .graph_end = graph_end,
    .matrix_bytes = matrix_bytes,
    .matrix_put = matrix_put,
    .embed = embed,
    .rope_table = rope_table,
    .add_norm = add_norm,
    .gather = gather,
    .linear = linear,
    .rope_store = rope_store,
    .select_scratch_bytes = select_scratch_bytes,
    .select = select_pages,
    .attend_part_bytes = attend_part_bytes,
    .attend = attend,
    .merge = merge,
    .attend_prompt = attend_prompt,
    .silu_mul = silu_mul,
    .argmax = argmax,
    .top_k = top_k,
    .convert = convert,
};

static void close_device(struct device *d)
{
    struct check_device *c = check_of(d);
    device_close(c->a);
    device_close(c->b);
    free(c);
}

struct device *check_device_open(struct device *reference, struct device *tested)
{
    struct check_device *c = calloc(1, sizeof *c);
    if (!c) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the check");
    c->a = reference;
    c->b = tested;
    c->oa = device_ops(reference);
    c->ob = device_ops(tested);
    c->base = (struct device){.ops = &check_ops, .close = close_device};
    snprintf(c->base.description, sizeof c->base.description, "%.70s against %.70s",
             device_describe(reference), device_describe(tested));
    return &c->base;
}

const struct check_report *check_device_report(const struct device *d)
{
    return &((const struct check_device *)d)->report;
}
