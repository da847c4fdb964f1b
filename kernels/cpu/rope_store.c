/* rope_store.c - q and k heads normed and rotated, k and v written to their pages, page summaries recomputed.
 *
 *   y = x / sqrt(mean(x^2) + eps) * weight                      only with q_norm, k_norm
 *   z_i = y_i cos - y_(i+E/2) sin,   z_(i+E/2) = y_(i+E/2) cos + y_i sin
 *
 * A task is one kv head (with its group of q heads) of the rows of one span that fall into one stretch of
 * whole pages; so every touched page belongs to one task, which writes its keys and then takes min and max
 * over all keys of the page that the sequence has, as stored (kernels.h says what codes are made of them). A
 * sequence has at most one span in a step. What lies in a page past the sequence's newest position is never looked at. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { STRETCH_TOKENS = 64 };

struct rope_store {
    const struct tile *tile;
    float *q;
    const float *qkv, *rope, *q_norm, *k_norm;
    const struct kv_layer *kv;
    const struct batch *b;
    const struct dims *m;
    int stretch; /* tokens, whole pages */
};

/* A run of rows of one sequence with consecutive positions. */
struct rows {
    int slot, row0, n_rows, position0;
};

static struct rows span_rows(const struct batch *b, int span)
{
    if (span < b->n_decode) {
        const struct decode_span *s = &b->host_decode[span];
        return (struct rows){s->slot, s->row0, s->n_rows, s->position - s->n_rows + 1};
    }
    const struct prompt_span *s = &b->host_prompt[span - b->n_decode];
    return (struct rows){s->slot, s->row0, s->n_rows, s->position0};
}

static int stretches_of(struct rows r, int stretch)
{
    return (r.position0 + r.n_rows - 1) / stretch - r.position0 / stretch + 1;
}

static void norm_rope(float *z, const float *x, const float *weight, const float *rope, const struct dims *m)
{
    int half = m->E / 2;
    float y[TILE_MAX_E];
    if (weight) {
        float sum = 0;
        for (int e = 0; e < m->E; e++) sum += x[e] * x[e];
        float f = 1 / sqrtf(sum / (float)m->E + m->norm_eps);
        for (int e = 0; e < m->E; e++) y[e] = x[e] * f * weight[e];
        x = y;
    }
    for (int i = 0; i < half; i++) {
        float c = rope[2 * i], s = rope[2 * i + 1];
        z[i] = x[i] * c - x[i + half] * s;
        z[i + half] = x[i + half] * c + x[i] * s;
    }
}

/* x (n) as codes in [low, top], in x itself; returns the scale, a bf16. */
static uint16_t quantize(float *x, int n, float low, float top)
{
    float most = 0;
    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    uint16_t stored = dtype_bf16_from_f32(most / top);
    float scale = dtype_f32_from_bf16(stored);
    for (int i = 0; i < n; i++) {
        float code = scale > 0 ? x[i] / scale : 0;
        code = code < top ? code : top;
        code = code > low ? code : low;
        x[i] = (code + 0x1.8p23f) - 0x1.8p23f; /* the nearest integer, ties to even */
    }
    return stored;
}

/* Middle c (E) and half-width u (E) of a page as codes. */
static void store_codes(char *codes, char *scales, float *c, float *u, const struct dims *m)
{
    int E = m->E, half = E / 2;
    bool q8 = m->summary == SUMMARY_Q8;
    uint16_t scale[2] = {quantize(c, E, q8 ? -127 : -7, q8 ? 127 : 7), quantize(u, E, 0, q8 ? 127 : 15)};
    for (int e = 0; e < E && q8; e++) {
        codes[e] = (char)(int)c[e];
        codes[E + e] = (char)(int)u[e];
    }
    for (int e = 0; e < half && !q8; e++) {
        codes[e] = (char)(((int)c[e] + 8) | ((int)c[half + e] + 8) << 4);
        codes[half + e] = (char)((int)u[e] | (int)u[half + e] << 4);
    }
    memcpy(scales, scale, sizeof scale);
}

/* The page's summary from its first n keys; scales are apart from it where it has codes. */
static void summarize(const struct tile *tile, char *summary, char *scales, const char *keys, int n,
                      const struct dims *m)
{
    float lo[TILE_MAX_E], hi[TILE_MAX_E], k[TILE_MAX_E];
    size_t row_bytes = (size_t)m->E * dtype_bytes(m->kv);
    enum dtype type = m->summary == SUMMARY_F32   ? DTYPE_F32
                      : m->summary == SUMMARY_F16 ? DTYPE_F16
                                                  : DTYPE_BF16;
    tile->widen(lo, keys, m->E, m->kv);
    memcpy(hi, lo, (size_t)m->E * sizeof(float));
    for (int t = 1; t < n; t++) {
        tile->widen(k, keys + (size_t)t * row_bytes, m->E, m->kv);
        for (int e = 0; e < m->E; e++) {
            lo[e] = k[e] < lo[e] ? k[e] : lo[e];
            hi[e] = k[e] > hi[e] ? k[e] : hi[e];
        }
    }
    if (summary_has_codes(m)) {
        for (int e = 0; e < m->E; e++) {
            float middle = (hi[e] + lo[e]) * 0.5f, width = (hi[e] - lo[e]) * 0.5f;
            lo[e] = middle;
            hi[e] = width;
        }
        store_codes(summary, scales, lo, hi, m);
        return;
    }
    tile->narrow(summary, lo, m->E, type);
    tile->narrow(summary + m->summary_bytes / 2, hi, m->E, type);
}

/* Rows i0 .. i1-1 of a span, whose positions lie in one stretch. */
static void store_rows(const struct rope_store *a, struct rows s, int i0, int i1, int kv_head)
{
    const struct dims *m = a->m;
    const int32_t *blocks = span_blocks(a->b, m, s.slot);
    int newest = s.position0 + s.n_rows - 1, E = m->E;
    float k[TILE_MAX_E];
    for (int i = i0; i < i1; i++) {
        size_t row = (size_t)(s.row0 + i);
        const float *from = a->qkv + row * (size_t)(m->Qr + 2 * m->Kr) * (size_t)E;
        const float *rope = a->rope + row * (size_t)E;
        for (int h = kv_head * m->G; h < (kv_head + 1) * m->G; h++)
            norm_rope(a->q + (row * (size_t)m->Qr + (size_t)h) * (size_t)E, from + (size_t)h * (size_t)E,
                      a->q_norm, rope, m);
        int position = s.position0 + i;
        char *key = kv_layer_block(a->kv, m, blocks[position / m->B]);
        key += kv_key_offset(m, kv_head, position % m->B);
        norm_rope(k, from + (size_t)(m->Qr + kv_head) * (size_t)E, a->k_norm, rope, m);
        a->tile->narrow(key, k, E, m->kv);
        a->tile->narrow(key + kv_value_distance(m), from + (size_t)(m->Qr + m->Kr + kv_head) * (size_t)E, E,
                        m->kv);
    }
    for (int page = (s.position0 + i0) / m->P; page <= (s.position0 + i1 - 1) / m->P; page++) {
        struct page_place at = page_place_of(a->kv, blocks, page, m);
        int n = newest - page * m->P + 1 < m->P ? newest - page * m->P + 1 : m->P;
        summarize(a->tile, at.block + kv_summary_offset(m, kv_head, at.page),
                  at.block + kv_scales_offset(m, kv_head, at.page), page_keys(at, m, kv_head), n, m);
    }
}

/* Task: (span, stretch, kv head), spans one after the other. */
static void rope_store_task(void *arg, int task, int thread)
{
    const struct rope_store *a = arg;
    (void)thread;
    int kv_head = task % a->m->Kr, at = task / a->m->Kr, span = 0;
    struct rows s = span_rows(a->b, 0);
    while (at >= stretches_of(s, a->stretch)) {
        at -= stretches_of(s, a->stretch);
        s = span_rows(a->b, ++span);
    }
    int from = (s.position0 / a->stretch + at) * a->stretch, to = from + a->stretch;
    int end = s.position0 + s.n_rows;
    store_rows(a, s, from > s.position0 ? from - s.position0 : 0, (to < end ? to : end) - s.position0,
               kv_head);
}

void cpu_rope_store(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                    const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                    const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && m->E % 2 == 0);
    int pages = STRETCH_TOKENS / m->P;
    struct rope_store a = {tile_of(cpu_isa_of(d)),        q, qkv, rope, q_norm, k_norm, kv, b, m,
                           (pages < 1 ? 1 : pages) * m->P};
    int n = 0;
    for (int span = 0; span < b->n_decode + b->n_prompt; span++)
        n += stretches_of(span_rows(b, span), a.stretch);
    if (n > 0) cpu_parallel(d, rope_store_task, &a, n * m->Kr);
}
