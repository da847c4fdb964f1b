/* attention_world.c - the paged cache of the tests and the steps run on it; see the header. */
#include "attention_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "attention_expect.h"
#include "staged.h"

static const int canary_bytes = 256;

uint64_t world_random(struct world *w)
{
    uint64_t z = w->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int world_below(struct world *w, int n) { return (int)(world_random(w) % (uint64_t)n); }

static float unit(struct world *w) { return (float)(world_random(w) >> 40) * 0x1p-23f - 1; }

static float noise(struct world *w) { return (unit(w) + unit(w) + unit(w)) * 1.0f; }

static void *zeroed(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

static void set_dims(struct world *w)
{
    const struct world_config *c = &w->c;
    struct dims *m = &w->m;
    *m = (struct dims){
        .L = 1, .D = 8, .E = c->E, .G = c->G, .Kr = c->Kr, .Qr = c->Kr * c->G, .Fr = 8, .Vr = 8};
    m->Hr = c->Hr ? c->Hr : m->Qr;
    m->head_off = c->head_off;
    m->P = c->P;
    m->B = c->B;
    m->W = c->W;
    m->C = c->C;
    m->n_slots = c->n_slots;
    m->n_blocks = c->n_slots * (c->C / c->B);
    m->max_rows = WORLD_MAX_ROWS;
    m->max_spans = WORLD_MAX_SPANS;
    m->max_out = 1;
    m->act = c->act;
    m->kv = c->kv;
    m->summary = c->kv == DTYPE_F32 ? SUMMARY_F32 : c->kv == DTYPE_F16 ? SUMMARY_F16 : SUMMARY_BF16;
    if (c->codes) m->summary = c->codes;
    m->norm_eps = 1e-5f;
    m->attention_scale = 1 / sqrtf((float)c->E);
    m->kv_owner = !c->unowned;
    kernels_layout(m);
}

/* The pool holds NaN (or a large number: a minimum ignores NaN) wherever nothing was written; last_loaded is
 * -1. Blocks are dealt in random order. */
static void fill_pool(struct world *w)
{
    const struct dims *m = &w->m;
    memset(w->pool, w->c.stale ? 0x7b : 0xff, (size_t)m->n_blocks * m->block_bytes);
    memset(w->slots, 0xff, (size_t)m->n_slots * m->slot_bytes);
    for (int i = 0; i < m->n_blocks; i++) w->block_table[i] = i;
    for (int i = m->n_blocks - 1; i > 0; i--) {
        int j = world_below(w, i + 1);
        int32_t t = w->block_table[i];
        w->block_table[i] = w->block_table[j];
        w->block_table[j] = t;
    }
}

void world_open(struct world *w, const struct world_config *c)
{
    *w = (struct world){.c = *c, .random = c->seed * 977 + 1};
    if (w->c.key_scale == 0) w->c.key_scale = 1;
    set_dims(w);
    const struct dims *m = &w->m;
    w->device = staged_device(c->isa, c->n_threads ? c->n_threads : 1, c->act);
    assert_non_null(w->device);
    w->op = device_ops(w->device);
    bool tensor = staged_cuda && (c->E == 64 || c->E == 80 || c->E == 96 || c->E == 128);
    w->weight_rounding = !tensor || c->kv == DTYPE_F32 ? 0 : c->kv == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;

    size_t slots = (size_t)m->n_slots, rows = WORLD_MAX_ROWS, E = (size_t)m->E, Hr = (size_t)m->Hr;
    w->pool = zeroed((size_t)m->n_blocks * m->block_bytes);
    w->pool_before = zeroed((size_t)m->n_blocks * m->block_bytes);
    w->slots = zeroed(slots * m->slot_bytes);
    w->slots_before = zeroed(slots * m->slot_bytes);
    w->block_table = zeroed((size_t)m->n_blocks * sizeof(int32_t));
    w->kv = (struct kv_layer){w->pool, w->slots, 0, c->sliding_window};
    fill_pool(w);
    w->counters = zeroed(slots * COUNTER_COUNT * sizeof(int64_t));
    w->expected_counters = zeroed(slots * COUNTER_COUNT * sizeof(int64_t));
    w->n_tokens = zeroed(slots * sizeof(int));
    w->first_decode = zeroed(slots * sizeof(int));
    w->out_cache = zeroed(slots * (size_t)m->C * Hr * E * sizeof(double));
    w->bound_cache = zeroed(slots * (size_t)m->C * Hr * E * sizeof(double));
    w->lse_cache = zeroed(slots * (size_t)m->C * Hr * sizeof(double));
    size_t marks = slots * (size_t)(m->C / m->P * m->Kr);
    w->last_loaded = zeroed(marks * sizeof(int32_t));
    memset(w->last_loaded, 0xff, marks * sizeof(int32_t));
    if (c->norms) {
        w->q_norm = zeroed(E * sizeof(float));
        w->k_norm = zeroed(E * sizeof(float));
        for (int e = 0; e < m->E; e++) {
            w->q_norm[e] = 1 + 0.3f * unit(w);
            w->k_norm[e] = 1 + 0.3f * unit(w);
        }
    }
    w->qkv = zeroed(rows * (size_t)(m->Qr + 2 * m->Kr) * E * sizeof(float));
    w->rope = zeroed(rows * E * sizeof(float));
    w->q = zeroed(rows * (size_t)m->Qr * E * sizeof(float) + (size_t)canary_bytes);
    w->out_bytes = rows * Hr * E * sizeof(float);
    w->out = zeroed(w->out_bytes + (size_t)canary_bytes);
    w->out_before = zeroed(w->out_bytes + (size_t)canary_bytes);
    w->pages =
        zeroed((size_t)(WORLD_MAX_SPANS * m->Kr * (m->C / m->P)) * sizeof(int32_t) + (size_t)canary_bytes);
    w->count = zeroed((size_t)(WORLD_MAX_SPANS * m->Kr) * sizeof(int32_t) + (size_t)canary_bytes);
    w->part = zeroed(w->op->attend_part_bytes(w->device, m) + (size_t)canary_bytes);
    w->scratch = zeroed(w->op->select_scratch_bytes(w->device, m) + (size_t)canary_bytes);
    w->b.block_table = w->block_table;
    w->b.position = w->position;
    w->b.slot = w->slot;
    w->b.decode = w->b.host_decode = w->decode;
    w->b.prompt = w->b.host_prompt = w->prompt;
}

void world_close(struct world *w)
{
    device_close(w->device);
    void *all[] = {w->pool,
                   w->pool_before,
                   w->slots,
                   w->slots_before,
                   w->block_table,
                   w->counters,
                   w->n_tokens,
                   w->first_decode,
                   w->out_cache,
                   w->bound_cache,
                   w->lse_cache,
                   w->last_loaded,
                   w->expected_counters,
                   w->q_norm,
                   w->k_norm,
                   w->qkv,
                   w->rope,
                   w->q,
                   w->out,
                   w->pages,
                   w->count,
                   w->out_before,
                   w->part,
                   w->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

void world_begin(struct world *w)
{
    w->b.n_rows = w->b.n_decode = w->b.n_prompt = w->b.n_decode_rows = w->b.max_position = 0;
    w->step++;
}

/* Random numbers that are the same for a position in every step (fixed_rows), whatever else the batch holds.
 */
static void fill_row(struct world *w, int row)
{
    const struct dims *m = &w->m;
    uint64_t saved = w->random;
    w->random = w->c.seed * 1000003 + (uint64_t)w->slot[row] * 7919 + (uint64_t)w->position[row] * 104729;
    if (!w->c.fixed_rows) w->random += (uint64_t)w->step * 15485863;
    int width = (m->Qr + 2 * m->Kr) * m->E;
    bool loud = w->c.loud_pages && w->position[row] / m->P % w->c.loud_pages < 16;
    for (int i = 0; i < width; i++) {
        bool key = i >= m->Qr * m->E && i < (m->Qr + m->Kr) * m->E;
        w->qkv[row * width + i] = noise(w) * (key ? w->c.key_scale * (loud ? 16 : 1) : 1);
    }
    for (int i = 0; i < m->E / 2; i++) {
        double angle = w->position[row] * pow(10000, -2.0 * i / m->E);
        w->rope[row * m->E + 2 * i] = (float)cos(angle);
        w->rope[row * m->E + 2 * i + 1] = (float)sin(angle);
    }
    w->random = saved;
}

static int add_rows(struct world *w, int slot, int n_rows, int position0)
{
    int row0 = w->b.n_rows;
    assert_true(row0 + n_rows <= WORLD_MAX_ROWS && position0 >= 0 && position0 + n_rows <= w->m.C);
    for (int i = 0; i < n_rows; i++) {
        w->slot[row0 + i] = slot;
        w->position[row0 + i] = position0 + i;
        fill_row(w, row0 + i);
    }
    w->b.n_rows += n_rows;
    if (position0 + n_rows - 1 > w->b.max_position) w->b.max_position = position0 + n_rows - 1;
    return row0;
}

int world_rows_of(const struct world *w, int slot)
{
    int n = w->n_tokens[slot] - w->first_decode[slot] + 1;
    return n < w->m.W ? n : w->m.W;
}

void world_add_decode(struct world *w, int slot, int n_rows, const struct decode_span *how)
{
    assert_true(w->b.n_decode < WORLD_MAX_SPANS && w->b.n_prompt == 0 && n_rows <= world_rows_of(w, slot));
    struct decode_span *s = &w->decode[w->b.n_decode++];
    *s = *how;
    s->slot = slot;
    s->n_rows = n_rows;
    s->position = w->n_tokens[slot];
    s->row0 = add_rows(w, slot, n_rows, s->position - n_rows + 1);
    w->b.n_decode_rows = w->b.n_rows;
    w->n_tokens[slot]++;
}

void world_add_prompt(struct world *w, int slot, int n_rows)
{
    assert_true(w->b.n_prompt < WORLD_MAX_SPANS && w->first_decode[slot] == w->n_tokens[slot]);
    struct prompt_span *s = &w->prompt[w->b.n_prompt++];
    *s = (struct prompt_span){slot, 0, n_rows, w->n_tokens[slot]};
    s->row0 = add_rows(w, slot, n_rows, s->position0);
    w->n_tokens[slot] += n_rows;
    w->first_decode[slot] = w->n_tokens[slot];
}

static void save(struct world *w)
{
    const struct dims *m = &w->m;
    memcpy(w->pool_before, w->pool, (size_t)m->n_blocks * m->block_bytes);
    memcpy(w->slots_before, w->slots, (size_t)m->n_slots * m->slot_bytes);
}

static void round_queries(struct world *w)
{
    for (int i = 0; i < w->b.n_rows * w->m.Qr * w->m.E; i++)
        w->q[i] = w->m.kv == DTYPE_BF16 ? dtype_f32_from_bf16(dtype_bf16_from_f32(w->q[i]))
                                        : dtype_f32_from_f16(dtype_f16_from_f32(w->q[i]));
}

void world_run(struct world *w, bool check)
{
    const struct dims *m = &w->m;
    const struct ops *op = w->op;
    size_t q_bytes = (size_t)w->b.n_rows * (size_t)(m->Qr * m->E) * sizeof(float);
    size_t list = (size_t)(m->C / m->P * m->Kr * w->b.n_decode), heads = (size_t)(m->Kr * w->b.n_decode);
    memset((char *)w->q + q_bytes, 0xff, (size_t)canary_bytes);
    memset(w->pages + list, 0xff, (size_t)canary_bytes);
    memset(w->count + heads, 0xff, (size_t)canary_bytes);
    memset((char *)w->part + op->attend_part_bytes(w->device, m), 0xff, (size_t)canary_bytes);
    memset((char *)w->scratch + op->select_scratch_bytes(w->device, m), 0xff, (size_t)canary_bytes);
    memset(w->out, 0xff, w->out_bytes + (size_t)canary_bytes);
    memset(w->out_before, 0xff, w->out_bytes + (size_t)canary_bytes);

    if (check) save(w);
    op->rope_store(w->device, w->q, w->qkv, w->rope, w->q_norm, w->k_norm, &w->kv, &w->b, m);
    if (check) expect_rope_store(w);
    if (w->weight_rounding > 0) round_queries(w);
    if (check) save(w);
    op->select(w->device, w->pages, w->count, w->q, &w->kv, &w->b, w->scratch, m);
    if (check) expect_select(w);
    op->attend(w->device, w->part, w->q, &w->kv, w->pages, w->count, &w->b, m);
    if (check) expect_untouched(w, true);
    op->merge(w->device, w->out, w->part, &w->kv, w->pages, w->count, w->counters, &w->b, m);
    if (check) expect_merge(w);
    if (!w->c.no_prompt) op->attend_prompt(w->device, w->out, w->q, &w->kv, &w->b, m);
    if (check && !w->c.no_prompt) expect_attend_prompt(w);

    const unsigned char *ends[] = {(unsigned char *)w->q + q_bytes, (unsigned char *)(w->pages + list),
                                   (unsigned char *)(w->count + heads),
                                   (unsigned char *)w->part + op->attend_part_bytes(w->device, m),
                                   (unsigned char *)w->scratch + op->select_scratch_bytes(w->device, m)};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        for (int j = 0; j < canary_bytes; j++)
            if (ends[i][j] != 0xff) fail_msg("canary %zu behind an output was overwritten at byte %d", i, j);
}

static double cache_element(const struct world *w, int slot, int position, int kv_head, size_t distance,
                            int e)
{
    const struct dims *m = &w->m;
    int block = w->block_table[slot * (m->C / m->B) + position / m->B];
    const char *p = kv_layer_block(&w->kv, m, block) + kv_key_offset(m, kv_head, position % m->B) + distance;
    size_t i = (size_t)e;
    if (m->kv == DTYPE_F32) return ((const float *)(const void *)p)[i];
    uint16_t h = ((const uint16_t *)(const void *)p)[i];
    return m->kv == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

double world_key(const struct world *w, int slot, int position, int kv_head, int e)
{
    return cache_element(w, slot, position, kv_head, 0, e);
}

double world_value(const struct world *w, int slot, int position, int kv_head, int e)
{
    return cache_element(w, slot, position, kv_head, kv_value_distance(&w->m), e);
}

double world_out(const struct world *w, int row, int i)
{
    size_t at = (size_t)row * (size_t)(w->m.Hr * w->m.E) + (size_t)i;
    if (w->m.act == DTYPE_F32) return w->out[at];
    uint16_t h = ((const uint16_t *)(const void *)w->out)[at];
    return w->m.act == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

const int32_t *world_pages(const struct world *w, int span, int kv_head, int *n)
{
    *n = w->count[span * w->m.Kr + kv_head];
    return w->pages + (size_t)(span * w->m.Kr + kv_head) * (size_t)(w->m.C / w->m.P);
}

double world_attend(const struct world *w, double *o, double *bound, const float *q, int slot, int kv_head,
                    const bool *seen, int n)
{
    double m = -INFINITY, l = 0, *s = zeroed((size_t)n * sizeof(double));
    for (int t = 0; t < n; t++) {
        if (!seen[t]) continue;
        for (int e = 0; e < w->m.E; e++) s[t] += (double)q[e] * world_key(w, slot, t, kv_head, e);
        s[t] *= (double)w->m.attention_scale;
        m = fmax(m, s[t]);
    }
    for (int e = 0; e < w->m.E; e++) o[e] = 0;
    for (int e = 0; e < w->m.E && bound; e++) bound[e] = 0;
    for (int t = 0; t < n; t++) {
        if (!seen[t]) continue;
        double p = exp(s[t] - m);
        l += p;
        for (int e = 0; e < w->m.E; e++) {
            double v = world_value(w, slot, t, kv_head, e);
            o[e] += p * v;
            if (bound) bound[e] += p * fabs(v);
        }
    }
    for (int e = 0; e < w->m.E && l > 0; e++) {
        o[e] /= l;
        if (bound) bound[e] /= l;
    }
    free(s);
    return m + log(l);
}
