/* attend_prompt.c - causal attention of prompt rows over all earlier keys of their sequence.
 *
 *   out(r, h) = sum_t softmax_t(q_rh . k_t * attention_scale) v_t,   first_visible(r) <= t <= r
 *
 * A task is a block of consecutive rows of one span with one kv head's group. It walks over the keys in tiles
 * of 64 positions (multiples of 64 in the sequence, wherever the prompt was cut), with a running maximum and
 * sum per query: the tile's keys are transposed and its values widened once for all queries of the block, or both are
 * made operands of AMX tiles (attend_prompt_amx.c). The longest tasks go first.
 *
 * Invariants: a row's result depends on its query and its keys only: the tiles are the same for every
 * chunking of the prompt, and a tile that a row does not see is skipped for it. Within a tile that it sees in
 * part, keys that it may not see have weight 0 and finite values; slots past the newest row of the block are
 * not read. */
#include <math.h>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum {
    BLOCK_QUERIES = 192,
    BLOCK_FLOATS = GROUP_ELEMENTS_MAX,
    ROOM_FLOATS = BLOCK_FLOATS + 15 * TILE_MAX_E, /* AMX takes queries by sixteens */
};

struct prompt {
    const struct tile *tile;
    char *out;
    const float *q;
    const struct kv_layer *kv;
    const struct batch *b;
    const struct dims *m;
    int block_rows;
    const struct prompt_tiles *amx; /* or NULL */
};

/* State of one task. Queries are numbered row by row, n_heads of a row beside each other. */
struct block {
    int row0, n_rows, position0, n_heads;
    const int32_t *table;
    float q[BLOCK_FLOATS], o[ROOM_FLOATS]; /* (queries, E) */
    float score[BLOCK_QUERIES * TILE_COLS];
    float ml[2 * BLOCK_QUERIES]; /* running maximum and sum of each query */
    float factor[BLOCK_QUERIES];
    const char *key[TILE_COLS], *value[TILE_COLS];
    union {
        struct {
            float kt[TILE_DEPTH * TILE_COLS], v[TILE_COLS * TILE_MAX_E];
        };
        struct { /* operands of attend_prompt_amx.c */
            char amx_q[ROOM_FLOATS * 4], amx_k[TILE_COLS * TILE_MAX_E * 2], amx_v[TILE_COLS * TILE_MAX_E * 2];
        };
    };
} __attribute__((aligned(64)));

/* Keys base .. base+n-1: pointers to them, and their values, widened but for AMX. Tokens of a page lie side by
 * side. */
static void load_tile(const struct prompt *a, struct block *k, int kv_head, int base, int n)
{
    const struct dims *m = a->m;
    size_t row_bytes = (size_t)m->E * dtype_bytes(m->kv);
    for (int t = 0; t < n;) {
        int in_page = (base + t) % m->P, run = m->P - in_page < n - t ? m->P - in_page : n - t;
        const char *block = kv_layer_block(a->kv, m, k->table[(base + t) / m->B]);
        const char *key = block + kv_key_offset(m, kv_head, (base + t) % m->B);
        if (!a->amx) a->tile->widen(k->v + t * m->E, key + kv_value_distance(m), run * m->E, m->kv);
        for (int end = t + run; t < end; t++, key += row_bytes) {
            k->key[t] = key;
            k->value[t] = a->amx ? key + kv_value_distance(m) : (const char *)(k->v + t * m->E);
        }
    }
    for (int t = n; t < TILE_COLS; t++) k->key[t] = k->value[t] = tile_zero_row;
}

/* score: products of n_q queries from `first` on with the first n keys of the tile, a multiple of 16. */
static void score_keys(const struct prompt *a, struct block *k, int first, int n_q, int n)
{
    const struct dims *m = a->m;
    if (a->amx) {
        a->amx->keys(k->amx_k, k->key, m->E);
        a->amx->score(k->score, k->amx_q, k->amx_k, first, first + n_q, m->E);
        return;
    }
    for (int e = 0; e < m->E; e += TILE_DEPTH) {
        int n_e = m->E - e < TILE_DEPTH ? m->E - e : TILE_DEPTH;
        a->tile->load_keys(k->kt, k->key, (size_t)e * dtype_bytes(m->kv), n, n_e, m->kv);
        a->tile->scores(k->score + first * TILE_COLS, TILE_COLS, k->q + first * m->E + e, (size_t)m->E, n_q,
                        k->kt, n_e, 0, n, e > 0);
    }
}

/* Their outputs += what is in `score` by now times the first n values. */
static void add_values(const struct prompt *a, struct block *k, int first, int n_q, int n)
{
    const struct dims *m = a->m;
    if (a->amx) {
        a->amx->values(k->amx_v, k->value, m->E);
        a->amx->add(k->o, k->score, k->amx_v, first, first + n_q, m->E);
    } else {
        a->tile->values(k->o + first * m->E, (size_t)m->E, k->score + first * TILE_COLS, TILE_COLS, n_q,
                        k->value, n, m->E);
    }
}

/* Rows [i0,i1) of the block see keys base .. base+63; n_cols of these may be read. */
static void attend_tile(const struct prompt *a, struct block *k, int kv_head, int base, int n_cols, int i0,
                        int i1)
{
    const struct dims *m = a->m;
    int padded = a->amx ? TILE_COLS : (n_cols + 15) / 16 * 16, first = i0 * k->n_heads,
        n_q = (i1 - i0) * k->n_heads;
    load_tile(a, k, kv_head, base, n_cols);
    score_keys(a, k, first, n_q, padded);
    for (int i = first; i < first + n_q; i++) {
        float *s = k->score + i * TILE_COLS;
        int r = k->position0 + i / k->n_heads;
        for (int t = 0; t < first_visible(r, a->kv->sliding_window) - base; t++) s[t] = -INFINITY;
        for (int t = r - base + 1; t < padded; t++) s[t] = -INFINITY;
    }
    a->tile->weigh(k->score + first * TILE_COLS, TILE_COLS, n_q, padded, m->attention_scale,
                   k->ml + 2 * first, k->factor + first);
    for (int i = first; i < first + n_q; i++)
        if (k->factor[i] != 1) a->tile->scale(k->o + i * m->E, m->E, k->factor[i]);
    add_values(a, k, first, n_q, n_cols);
}

static void attend_block(const struct prompt *a, struct block *k, int kv_head, int head)
{
    const struct dims *m = a->m;
    int n_q = k->n_rows * k->n_heads, last = k->position0 + k->n_rows - 1, window = a->kv->sliding_window;
    for (int i = 0; i < n_q; i++) {
        size_t row = (size_t)(k->row0 + i / k->n_heads), h = (size_t)(head + i % k->n_heads);
        memcpy(k->q + i * m->E, a->q + (row * (size_t)m->Qr + h) * (size_t)m->E,
               (size_t)m->E * sizeof(float));
        k->ml[2 * i] = -INFINITY;
        k->ml[2 * i + 1] = 0;
    }
    memset(k->o, 0, (size_t)(n_q * m->E) * sizeof(float));
    if (a->amx) {
        a->amx->begin();
        a->amx->queries(k->amx_q, k->q, n_q, m->E);
    }
    for (int base = first_visible(k->position0, window) / TILE_COLS * TILE_COLS; base <= last;
         base += TILE_COLS) {
        int i0 = base > k->position0 ? base - k->position0 : 0, i1 = k->n_rows;
        while (first_visible(k->position0 + i1 - 1, window) >= base + TILE_COLS) i1--;
        attend_tile(a, k, kv_head, base, last - base + 1 < TILE_COLS ? last - base + 1 : TILE_COLS, i0, i1);
    }
    if (a->amx) a->amx->end();
    for (int i = 0; i < n_q; i++) {
        float *o = k->o + i * m->E;
        a->tile->scale(o, m->E, 1 / k->ml[2 * i + 1]);
        size_t at = (size_t)(k->row0 + i / k->n_heads) * (size_t)m->Hr +
                    (size_t)(head - m->head_off + i % k->n_heads);
        a->tile->narrow(a->out + at * (size_t)m->E * dtype_bytes(m->act), o, m->E, m->act);
    }
}

/* Task: (span, block of rows from the last, kv head). */
static void prompt_task(void *arg, int task, int thread)
{
    const struct prompt *a = arg;
    (void)thread;
    int kv_head = task % a->m->Kr, at = task / a->m->Kr, head;
    const struct prompt_span *s = a->b->host_prompt;
    while (at >= (s->n_rows + a->block_rows - 1) / a->block_rows) {
        at -= (s->n_rows + a->block_rows - 1) / a->block_rows;
        s++;
    }
    struct block k;
    k.n_heads = attended_heads(a->m, kv_head, &head);
    if (k.n_heads == 0) return;
    int end = s->n_rows - at * a->block_rows, from = end > a->block_rows ? end - a->block_rows : 0;
    k.row0 = s->row0 + from;
    k.n_rows = end - from;
    k.position0 = s->position0 + from;
    k.table = span_blocks(a->b, a->m, s->slot);
    attend_block(a, &k, kv_head, head);
}

void cpu_attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                       const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= TILE_MAX_E && m->G <= TILE_MAX_G && m->G * m->E <= BLOCK_FLOATS);
    struct prompt a = {tile_of(cpu_isa_of(d)), out, q, kv, b, m, 0, NULL};
#if defined(__x86_64__)
    if (cpu_isa_of(d) == CPU_ISA_AMX && m->kv == DTYPE_BF16 && m->E % AMX_STEP == 0)
        a.amx = &attend_prompt_amx;
#endif
    int queries = BLOCK_FLOATS / m->E < BLOCK_QUERIES ? BLOCK_FLOATS / m->E : BLOCK_QUERIES, n = 0;
    a.block_rows = queries / m->G;
    for (int i = 0; i < b->n_prompt; i++) n += (b->host_prompt[i].n_rows + a.block_rows - 1) / a.block_rows;
    if (n > 0) cpu_deal(d, prompt_task, &a, n * m->Kr);
}
