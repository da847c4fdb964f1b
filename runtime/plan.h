/* plan.h - will it fit, and how fast would it be: arithmetic over config.json, no weights, no device of that kind.
 *
 * Memory is counted by the same carving that model_open allocates by (model_plan), so that it cannot drift. A step
 * is the sum over its ops of the larger of bytes over bandwidth and operations over their rate, plus launches,
 * all-reduces and a fixed part (machine.h); where shards are uneven, each op takes as long as on the slowest
 * rank. What it leaves out: the host's work for each sequence of a step, strangers, and ops that overlap. */
#ifndef RETRO_PLAN_H
#define RETRO_PLAN_H

#include "runtime/cost.h"
#include "runtime/machine.h"
#include "runtime/model.h"

struct plan_setup {
    const struct model_files *files;
    const struct machine *machine;
    struct model_options options; /* its device only counts: any that is open, borrowed */
    int n_ranks;
};

struct plan_memory { /* of one rank, bytes */
    struct memplan model;
    double reserve; /* context and workspaces */
    double link;    /* buffers of collectives */
    double summaries, output_cache,
        masks;          /* parts of model.kv_bytes; of model.slots_bytes (masks: last_loaded) */
    double total, left; /* left < 0: does not fit */
};

/* For options.n_slots sequences of options.context tokens. */
void plan_memory_of(const struct plan_setup *s, int rank, struct plan_memory *m);
/* The tightest rank; `left` >= 0: everything fits. A machine that names no memory holds anything. */
void plan_memory_tightest(const struct plan_setup *s, struct plan_memory *m);
/* Largest context of as many sequences, largest number of sequences of that context; 0: not one. */
int plan_context_most(const struct plan_setup *s);
int plan_batch_most(const struct plan_setup *s);

struct plan_step {
    double op_us[COST_OP_COUNT];
    double all_reduce_us, launch_us, fixed_us, total_us;
    double tokens_per_s;
    double bytes, flops; /* of all ranks */
};

/* n_seqs sequences whose newest token is at `position`; `prompt_rows` rows of prompts beside them, each of which sees
 * `prompt_keys` keys on average. */
void plan_mixed_step_of(const struct plan_setup *s, const struct policy *p, int n_seqs, int position,
                        double prompt_rows, double prompt_keys, struct plan_step *r);
/* The same without prompts. */
void plan_step_of(const struct plan_setup *s, const struct policy *p, int n_seqs, int position,
                  struct plan_step *r);

/* Pages loaded and met later over pages loaded, by window: RetroAttention's 1.17 (w = 2) and 1.60 (w = 8). */
double plan_exposure(int window);
/* Numbers of ranks that the model can be split over: 1 .. heads, where every rank has columns and tokens. */
int plan_ranks_most(const struct arch *a);

#endif
