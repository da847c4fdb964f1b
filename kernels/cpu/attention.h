/* attention.h - the attention ops of the CPU device, and the tile primitives that they are built from.
 *
 * The ops (declared below with the op table's signatures) decide what is read: spans, splits, masks, merging.
 * They are written once. What touches many numbers is a *tile primitive*, and exists three times: tile.c (the
 * naive formula), tile_avx2.c and tile_avx512.c (one text, tile_simd.h). `struct tile` is the table of them. With AMX a
 * prompt's products are those of `struct prompt_tiles`; all else is AVX-512's.
 *
 * A tile is rows of the cache (tokens, or page summaries), given by pointers, so that small pages gather as well as large
 * ones. Rows that must not be read point to tile_zero_row. Decode attention gives *fours*: four rows one behind the
 * other, since a page has at least four; a pointer for each row would cost more than it says.
 *
 * Invariants of the primitives, which give the ops theirs:
 *  1. A product of a query and a row has one order of additions, given by the width alone: it depends on
 * neither the column, nor the other queries, nor the number of columns asked for. dots() and dots_fours() have the same,
 * scores() another.
 *  2. values() and values_fours() add rows in the list's order to each output element, one chain. A row with weight 0
 * changes no bit.
 * Primitives of different instruction sets differ in rounding. */
#ifndef RETRO_KERNELS_CPU_ATTENTION_H
#define RETRO_KERNELS_CPU_ATTENTION_H

#include <math.h>

#include "kernels/kernels.h"

enum {
    TILE_COLS = 64,  /* rows of the cache in a tile */
    TILE_DEPTH = 64, /* elements of a row that are transposed at once: 16 KiB of f32, half a small L1 */
    TILE_MAX_E = HEAD_DIM_MAX,
    TILE_MAX_G = GROUP_MAX,
};

/* Queries for summaries with codes, rounded to eight bits: q_e is about scale * code_e. `length` codes a query:
 * Q8 all elements, Q4 the first half of the elements, then the second, each padded with zeros to a multiple of
 * TILE_CODE_PAD. abs holds their magnitudes. */
enum { TILE_CODE_PAD = 32 };
struct tile_codes {
    enum summary_type type;
    int n_q, E, length;
    bool drops; /* prefetches: cpu_drops_prefetches */
    float scale[TILE_MAX_G];
    int32_t sum[TILE_MAX_G]; /* of a query's codes */
    int8_t q[TILE_MAX_G][2 * TILE_MAX_E], abs[TILE_MAX_G][2 * TILE_MAX_E];
};

/* The order in which four rows are loaded, and in which a four's rows are columns. The first cache's prefetchers must not
 * guess what comes next: what they ask for behind the end of a page, or of a block's pages, nobody wants, and it takes the
 * memory's time. They guess when rows are loaded, or asked for into that cache, in ascending order. */
static const int ROW_ORDER[4] = {1, 3, 0, 2};

/* Pages whose summaries have codes and lie one behind the other; scales: pairs of bf16, scale_c in the low half. */
enum { TILE_RUN = 16, TILE_AHEAD = 12 };
struct tile_run {
    const char *codes, *scales;
    int n; /* at most TILE_RUN */
};

/* What to ask memory for while fours are multiplied: with the i-th those of ahead[i], for the first time, and those of
 * again[i + TILE_AGAIN] once more. `drops`: those of again[i + TILE_AGAIN_TWICE], too, because the processor drops what it
 * has no room for (cpu_drops_prefetches). `again` is the call's own list, which goes on behind its end. */
enum { TILE_AGAIN = 8, TILE_AGAIN_TWICE = 20 };
struct tile_asks {
    const char *const *ahead, *const *again;
    bool drops;
};

/* Rows a caller reads instead of slots that hold nothing: zero in every element type, width 2E for summaries.
 */
extern const char tile_zero_row[2 * TILE_MAX_E * sizeof(float)];

struct tile {
    /* s (n_q,s_stride): columns [c0,c1), multiples of 4, become the products of the `width` elements at
     * q (n_q,q_stride) with those at row[c]. Prefetches `width` elements at ahead[c], where ahead is not
     * NULL; the rows are then taken for ones that were prefetched so, and are prefetched again. */
    void (*dots)(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const char *const *row,
                 const char *const *ahead, int c0, int c1, int width, enum dtype type);
    /* s (n_q,s_stride) = the products of the E elements at q (n_q,q_stride) with the rows of four (n): column 4i + r is row
     * ROW_ORDER[r] of four[i]. asks: or NULL. */
    void (*dots_fours)(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q,
                       const char *const *four, int n, const struct tile_asks *asks, int E, enum dtype type);
    /* The largest |x| of x (n), 0 if none is larger; NaN counts as 0. */
    float (*largest)(const float *x, int n);
    /* code (n) = x / scale rounded to even and held to [-127, 127], abs (n) its magnitudes; returns their sum. Up to
     * a multiple of 8 zeros may be written behind. */
    int32_t (*code)(int8_t *code, int8_t *abs, const float *x, int n, float scale);
    /* s (n_q,s_stride) = (c * scale_c + u * (alpha * scale_u)) * q->scale of the pages of n_runs runs, one run after the
     * other; c: the exact sum of q_e * code_e of the middle, u: of abs_e * code_e of the half-width. Up to
     * TILE_CODE_PAD - 1 bytes behind a page's codes are read and count for nothing. Prefetches TILE_AHEAD runs ahead:
     * n_ahead more runs follow, which are not scored. */
    void (*code_scores)(float *s, size_t s_stride, const struct tile_codes *q, const struct tile_run *run,
                        int n_runs, int n_ahead, float alpha);
    /* kt (n_e,TILE_COLS) f32 = the n_e elements at row[c] + byte_offset, c < n_cols (a multiple of 16; the
     * other columns are left alone). n_e is even and at most TILE_DEPTH. */
    void (*load_keys)(float *kt, const char *const *row, size_t byte_offset, int n_cols, int n_e,
                      enum dtype type);
    /* s (n_q,s_stride): columns [c0,c1), multiples of 16, become (add: gain) the products of the n_e elements
     * at q (n_q,q_stride) with kt's columns. */
    void (*scores)(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const float *kt,
                   int n_e, int c0, int c1, bool add);
    /* Scores s (n_q,s_stride) of n columns, a multiple of 16, become weights e^(s * scale - m), 0 where s is
     * -inf. ml (n_q,2): m so far (-inf at first), which becomes the largest of itself and s * scale, and the
     * sum of the weights so far. What was summed with the old m must be multiplied by factor (n_q); the sum
     * is already. */
    void (*weigh)(float *s, size_t s_stride, int n_q, int n, float scale, float *ml, float *factor);
    /* o (n_q,E) += sum over t < n of p[i][t] times the E values of f32 at row[t]. */
    void (*values)(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                   const char *const *row, int n, int E);
    /* The same of the rows of four (n), of any type, p's columns as dots_fours() has them. */
    void (*values_fours)(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                         const char *const *four, int n, const struct tile_asks *asks, int E,
                         enum dtype type);
    /* x (n) *= f */
    void (*scale)(float *x, int n, float f);
    /* x (n) = the n elements at `from`, and back with one rounding as runtime/base/dtype.h does it. */
    void (*widen)(float *x, const char *from, int n, enum dtype type);
    void (*narrow)(char *to, const float *x, int n, enum dtype type);
    /* Of each row of s (n_q,s_stride), n columns, a multiple of 16: m = its largest, then s becomes 2^(s - m), 0 where s is
     * -inf; sum: of these. */
    void (*powers)(float *s, size_t s_stride, int n_q, int n, float *m, float *sum);
    /* key (n, a multiple of 16) = sum over rows i of factor[i] * s (n_q,s_stride) as integers of the same order: NaN is
     * INT_MIN + 1, -0 equal to 0. May be the first row's memory. */
    void (*order)(int32_t *key, const float *s, size_t s_stride, const float *factor, int n_q, int n);
    /* How many of key (n, a multiple of 16) are at least `limit`. */
    int (*count_at_least)(const int32_t *key, int n, int32_t limit);
    /* list = the keys (n, a multiple of 16) from `low` to `high`, the first `room` of them; returns how many there are.
     * over: how many are above `high`. */
    int (*list_between)(int32_t *list, int room, int *over, const int32_t *key, int n, int32_t low,
                        int32_t high);
    /* index (n_taken) = first + j, ascending, of the keys above `limit` and the first n_ties of those equal to it: so
     * many there are. Keys are read up to a multiple of 16. */
    void (*take_above)(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit, int n_ties);
};

/* For weigh(): the maximum of ml (m, sum) becomes m; returns the factor of what was summed so far. */
static inline float tile_move(float *ml, float m)
{
    float f = m == ml[0] || ml[0] == -INFINITY ? 1 : expf(ml[0] - m);
    ml[0] = m;
    ml[1] *= f;
    return f;
}

extern const struct tile tile_portable, tile_avx2, tile_avx512;

/* Bytes from one page's codes to the next one's in a run (dims.summary_stride). */
static inline size_t tile_code_stride(const struct tile_codes *q)
{
    return (size_t)(q->type == SUMMARY_Q8 ? 2 * q->E : q->E);
}

/* Into the second cache: asking for so much in the first one takes half as long again. */
static inline void tile_prefetch_run(const struct tile_run *run, size_t stride)
{
    for (size_t at = 0; at < (size_t)run->n * stride; at += 64) __builtin_prefetch(run->codes + at, 0, 1);
    for (int at = 0; at < run->n * SUMMARY_SCALES_BYTES; at += 64) __builtin_prefetch(run->scales + at, 0, 1);
}

/* The next pages of the runs, at most TILE_RUN, by their codes and scales; zeros behind the last. */
struct tile_pages {
    const char *row[TILE_RUN];
    uint32_t scales[TILE_RUN];
};

/* Takes whole runs, from *run on, as far as they fit. Returns how many pages. */
static inline int tile_take_runs(struct tile_pages *to, const struct tile_run **run,
                                 const struct tile_run *end, size_t stride)
{
    int n = 0;
    for (; *run < end && n + (*run)->n <= TILE_RUN; n += (*run)++->n) {
        for (int j = 0; j < (*run)->n; j++) to->row[n + j] = (*run)->codes + (size_t)j * stride;
        memcpy(&to->scales[n], (*run)->scales, (size_t)(*run)->n * SUMMARY_SCALES_BYTES);
    }
    for (int j = n; j < TILE_RUN; j++) {
        to->row[j] = tile_zero_row;
        to->scales[j] = 0;
    }
    return n;
}

int tile_list_between(int32_t *list, int room, int *over, const int32_t *key, int n, int32_t low,
                      int32_t high);
void tile_take_above(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit, int n_ties);
/* What needs no more than AVX2 serves both; the last are in tile_codes_avx512.c. */
float tile_avx2_largest(const float *x, int n);
int32_t tile_avx2_code(int8_t *code, int8_t *abs, const float *x, int n, float scale);
void tile_avx2_code_scores(float *s, size_t s_stride, const struct tile_codes *q, const struct tile_run *run,
                           int n_runs, int n_ahead, float alpha);
void tile_avx512_code_scores(float *s, size_t s_stride, const struct tile_codes *q,
                             const struct tile_run *run, int n_runs, int n_ahead, float alpha);
int tile_avx512_count_at_least(const int32_t *key, int n, int32_t limit);
int tile_avx512_list_between(int32_t *list, int room, int *over, const int32_t *key, int n, int32_t low,
                             int32_t high);
void tile_avx512_take_above(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit,
                            int n_ties);
const struct tile *tile_of(enum cpu_isa isa);

/* --- what the ops share --- */

/* Attended heads of a kv head: scored heads [first, first+n), empty when this rank attends none of them. */
static inline int attended_heads(const struct dims *m, int kv_head, int *first)
{
    int lo = kv_head * m->G, hi = lo + m->G;
    if (lo < m->head_off) lo = m->head_off;
    if (hi > m->head_off + m->Hr) hi = m->head_off + m->Hr;
    *first = lo;
    return hi > lo ? hi - lo : 0;
}

/* The pages a span's new row may read in this layer: [first, first+n), and whether it reads them all. */
struct candidates {
    int first, n;
    bool all;
    int n_select; /* when not all */
};

static inline struct candidates candidates_of(const struct decode_span *s, const struct kv_layer *kv,
                                              const struct dims *m)
{
    struct candidates c;
    int n_select = s->n_select[kv->sliding_window != 0];
    c.first = page_first_visible(s->position, kv->sliding_window, m->P);
    c.n = s->position / m->P - c.first + 1;
    c.all = kv->layer < s->dense_layers || n_select == 0 || n_select >= c.n;
    c.n_select = n_select;
    return c;
}

/* Keys that the query at position r may see: [first, r]. */
static inline int first_visible(int r, int sliding_window)
{
    return sliding_window && r >= sliding_window ? r - sliding_window + 1 : 0;
}

/* Where a page of a sequence lies. */
struct page_place {
    char *block; /* this layer's part of the block */
    int page;    /* within the block */
};

static inline struct page_place page_place_of(const struct kv_layer *kv, const int32_t *blocks, int page,
                                              const struct dims *m)
{
    int per_block = m->B / m->P;
    return (struct page_place){kv_layer_block(kv, m, blocks[page / per_block]), page % per_block};
}

static inline char *page_keys(struct page_place at, const struct dims *m, int kv_head)
{
    return at.block + kv_key_offset(m, kv_head, 0) + (size_t)at.page * 2 * kv_value_distance(m);
}

static inline const int32_t *span_blocks(const struct batch *b, const struct dims *m, int slot)
{
    return b->block_table + (size_t)slot * (size_t)(m->C / m->B);
}

/* The output cache of a slot: O of the attended head at ring place r % W, and its log-sum-exp. */
static inline float *cache_out(const struct kv_layer *kv, const struct dims *m, int slot, int r, int head)
{
    float *base = (float *)(kv->slots + (size_t)slot * m->slot_bytes);
    return base + ((size_t)(r % m->W) * (size_t)m->Hr + (size_t)head) * (size_t)m->E;
}
static inline float *cache_lse(const struct kv_layer *kv, const struct dims *m, int slot, int r, int head)
{
    float *base = (float *)(kv->slots + (size_t)slot * m->slot_bytes);
    return base + (size_t)m->W * (size_t)m->Hr * (size_t)m->E + (size_t)(r % m->W) * (size_t)m->Hr +
           (size_t)head;
}

/* Partial results of decode attention, carved from `part`: attend() writes them, merge() reads them.
 *
 * A page list is cut into splits, and one task attends to one split. Splits are whole chunks; a chunk is at
 * most CHUNK_TOKENS tokens of the list. The first 16 splits have one chunk, the next 16 two, then four, ...:
 * a function of the place in the list alone, fine enough for threads at short contexts and few enough at long
 * ones. */
enum { CHUNK_TOKENS = 256, SPLITS_PER_SIZE = 16 };

struct part {
    float *out; /* (rows, splits, Hr, E) sum of e^(score - m) * value */
    float *ml;  /* (rows, splits, Hr, 2) m, then the sum of e^(score - m); m = -inf: nothing was attended */
    int splits; /* at most, for C tokens */
};

static inline int chunk_pages(const struct dims *m)
{
    int n = CHUNK_TOKENS / m->P;
    return n < 1 ? 1 : n > 64 ? 64 : n;
}
static inline int split_chunks(int split) { return 1 << split / SPLITS_PER_SIZE; }
static inline int split_first_chunk(int split)
{
    int size = 1 << split / SPLITS_PER_SIZE;
    return SPLITS_PER_SIZE * (size - 1) + split % SPLITS_PER_SIZE * size;
}
static inline int splits_of(int n_pages, const struct dims *m)
{
    int chunks = (n_pages + chunk_pages(m) - 1) / chunk_pages(m), n = 0;
    while (split_first_chunk(n) < chunks) n++;
    return n;
}
static inline int decode_rows_max(const struct dims *m)
{
    long long n = (long long)m->max_spans * m->W;
    return n < m->max_rows ? (int)n : m->max_rows;
}
static inline struct part part_of(const void *memory, const struct dims *m)
{
    struct part p = {.out = (float *)memory, .splits = splits_of(m->C / m->P, m)};
    p.ml = p.out + (size_t)decode_rows_max(m) * (size_t)p.splits * (size_t)m->Hr * (size_t)m->E;
    return p;
}
static inline size_t part_index(const struct part *p, const struct dims *m, int row, int split, int head)
{
    return ((size_t)row * (size_t)p->splits + (size_t)split) * (size_t)m->Hr + (size_t)head;
}

/* Attention of prompts by AMX, for kv bf16 and E a multiple of 32: left operands have 4 bytes an element, right ones 2. */
struct prompt_tiles {
    void (*begin)(void); /* the others: between these two, in the same thread */
    void (*end)(void);
    void (*queries)(char *to, const float *q, int n_q, int E); /* q (n_q,E), a left operand */
    void (*keys)(char *to, const char *const *key,
                 int E); /* TILE_COLS rows, a right operand; so are the values */
    void (*values)(char *to, const char *const *value, int E);
    /* s (queries,TILE_COLS) = products of queries q0 .. q1-1 with keys. Of their neighbours, down and up to a multiple of
     * 16, anything is written. */
    void (*score)(float *s, const char *q, const char *keys, int q0, int q1, int E);
    /* o (queries,E) += weight (queries,TILE_COLS) times values for queries q0 .. q1-1. Their neighbours are read and
     * written as they are. */
    void (*add)(float *o, const float *weight, const char *values, int q0, int q1, int E);
};
extern const struct prompt_tiles attend_prompt_amx;

/* fn(arg, item, thread) for item 0 .. n-1, each dealt in ascending order to the next free thread (deal.c). */
void cpu_deal(struct device *d, void (*fn)(void *arg, int item, int thread), void *arg, int n);

/* --- the ops --- */
void cpu_rope_store(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                    const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                    const struct dims *m);
size_t cpu_select_scratch_bytes(struct device *d, const struct dims *m);
void cpu_select(struct device *d, int32_t *pages, int32_t *count, const float *q, const struct kv_layer *kv,
                const struct batch *b, void *scratch, const struct dims *m);
size_t cpu_attend_part_bytes(struct device *d, const struct dims *m);
void cpu_attend(struct device *d, void *part, const float *q, const struct kv_layer *kv, const int32_t *pages,
                const int32_t *count, const struct batch *b, const struct dims *m);
void cpu_merge(struct device *d, void *out, const void *part, const struct kv_layer *kv, const int32_t *pages,
               const int32_t *count, int64_t *counters, const struct batch *b, const struct dims *m);
void cpu_attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                       const struct batch *b, const struct dims *m);

#endif
