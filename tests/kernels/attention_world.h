/* attention_world.h - a paged cache with sequences in it, steps of random rows, and what the attention ops
 * must do to them, written in double precision from docs/algorithm.md.
 *
 * A test adds spans to a step and runs it. Every op is then compared with the reference, every element; and
 * memory that the op must not touch (other slots, unwritten slots full of NaN, space behind every output) is
 * compared with a copy. The reference keeps its own state (last_loaded, output cache) from step to step; keys
 * and values it reads back from the cache after having compared them with what should have been stored. The
 * page list it takes from select() after having checked it.
 *
 * On the CUDA device queries are rounded to the cache's type before they are attended with, since tensor
 * cores take them so; what the rounding of weights may do to an output is bounded by the values it weighs. */
#ifndef RETRO_TESTS_ATTENTION_WORLD_H
#define RETRO_TESTS_ATTENTION_WORLD_H

#include "kernels/kernels.h"

struct world_config {
    int E, G, Kr, Hr, head_off, P, B, W, C, n_slots;
    int sliding_window; /* 0: none */
    enum dtype kv, act;
    enum cpu_isa isa;
    int n_threads;
    bool norms;              /* RMSNorm of q and k heads */
    bool fixed_rows;         /* a position's q, k, v are the same in every step */
    bool stale;              /* unwritten slots hold large finite numbers instead of NaN */
    bool unowned;            /* replicated kv heads: another rank counts */
    bool no_prompt;          /* leave attend_prompt out: for long contexts */
    float key_scale;         /* 0: 1 */
    int loud_pages;          /* of so many pages the first 16 have keys 16 times as large; 0: none */
    enum summary_type codes; /* SUMMARY_Q8 or Q4; else summaries are of the keys' type */
    uint64_t seed;
};

enum { WORLD_MAX_SPANS = 8, WORLD_MAX_ROWS = 1024 };

struct world {
    struct world_config c;
    struct dims m;
    struct device *device;
    const struct ops *op;
    struct kv_layer kv;
    char *pool, *slots, *pool_before, *slots_before;
    int32_t *block_table;
    int64_t *counters;
    float *q_norm, *k_norm;
    uint64_t random;
    int step;
    double weight_rounding; /* of attention weights, relative: tensor cores take them in the cache's type */

    /* The sequences. */
    int *n_tokens, *first_decode;  /* (n_slots) */
    double *out_cache, *lse_cache; /* (n_slots, C, Hr, E), (n_slots, C, Hr): by position, never dropped */
    double *bound_cache;           /* of out_cache: weighted magnitudes of the values */
    int32_t *last_loaded;          /* (n_slots, C/P, Kr) */
    int64_t *expected_counters;

    /* The step. */
    struct batch b;
    struct decode_span decode[WORLD_MAX_SPANS];
    struct prompt_span prompt[WORLD_MAX_SPANS];
    int32_t position[WORLD_MAX_ROWS], slot[WORLD_MAX_ROWS];
    float *qkv, *rope, *q, *out, *out_before; /* out: (T,Hr*E) of act, then canaries */
    int32_t *pages, *count;
    void *part, *scratch;
    size_t out_bytes;
};

void world_open(struct world *w, const struct world_config *c);
void world_close(struct world *w);

uint64_t world_random(struct world *w);
int world_below(struct world *w, int n); /* 0 .. n-1 */

void world_begin(struct world *w);
/* New token of the slot and n_rows-1 revised ones; the other fields of `how` are taken over. */
void world_add_decode(struct world *w, int slot, int n_rows, const struct decode_span *how);
void world_add_prompt(struct world *w, int slot, int n_rows);
/* Runs all ops of the step. `check`: compares with the reference. */
void world_run(struct world *w, bool check);
/* Most rows that a decode step of this slot may have. */
int world_rows_of(const struct world *w, int slot);

/* Element i of the output of a row, as double. */
double world_out(const struct world *w, int row, int i);
double world_key(const struct world *w, int slot, int position, int kv_head, int e);
double world_value(const struct world *w, int slot, int position, int kv_head, int e);
/* Attention of q (E) f32 over positions with seen[t], t < n: o (E), returns lse. bound (E), or NULL: the same
 * over the values' magnitudes. */
double world_attend(const struct world *w, double *o, double *bound, const float *q, int slot, int kv_head,
                    const bool *seen, int n);
const int32_t *world_pages(const struct world *w, int span, int kv_head, int *n);

#endif
