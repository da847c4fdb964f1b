/* generation.h - one sequence from prompt to end, driven step by step on the leader.
 *
 * The prompt goes through in chunks, then one decode step a token. Used by generate and eval, which differ
 * only in where the next token comes from. */
#ifndef RETRO_GENERATION_H
#define RETRO_GENERATION_H

#include "runtime/engine.h"
#include "runtime/record.h"

struct generation {
    struct engine *engine;
    struct pages pages;
    struct seq seq;
    struct step step;
    int chunk;
    struct recording *recording;               /* every step goes there when not NULL; borrowed */
    int64_t n_steps, started_us, prefilled_us; /* prefilled_us: when the prompt's logits were there */
};

/* Room for `capacity` tokens in the engine's slot 0; `prompt` is copied. */
void generation_open(struct generation *g, struct engine *e, const struct policy *p, const int32_t *prompt,
                     int n_prompt, int capacity, int chunk);
void generation_close(struct generation *g);
/* Executes all prompt chunks; the output is the prediction after the prompt. */
const struct engine_output *generation_prefill(struct generation *g, enum step_want want);
/* Feeds the next token through a decode step; the output predicts the one after it. */
const struct engine_output *generation_feed(struct generation *g, int32_t token, enum step_want want);

/* What decode read, of engine_counters(). */
struct exposure {
    int64_t pages_loaded, pages_met;
    double exposure;      /* (loaded + met later) / loaded; 1 when nothing was selected */
    double kv_read_share; /* bytes of keys, values and summaries read over what dense decode reads */
};
/* Of the sequence in that slot; leader. */
void generation_exposure(struct engine *e, int slot, struct exposure *x);
void generation_exposure_of(const struct engine *e, const int64_t counters[COUNTER_COUNT],
                            struct exposure *x);

#endif
