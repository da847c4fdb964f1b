/* cost.h - what one decode step moves and computes on one rank, op by op: arithmetic on sizes, no measurement.
 *
 * `bytes` counts what must come from memory (weights once for all rows, keys and values and summaries that the
 * policy reads, logits written once): the numerator of every memory floor. `traffic` adds activations, which
 * caches may hold. `flops` counts a multiply and an add as two. What attention reads follows the counters of
 * kernels.h exactly (a test compares them); which pages a revised row meets depends on the text, so their
 * share is a parameter. */
#ifndef RETRO_COST_H
#define RETRO_COST_H

#include "runtime/arch.h"
#include "runtime/policy.h"

enum cost_op {
    COST_EMBED,
    COST_NORM, /* all norms of a step, with the residual additions */
    COST_QKV,
    COST_ROPE_STORE,
    COST_SELECT,
    COST_ATTEND, /* with merge */
    COST_O,
    COST_GATE_UP,
    COST_SILU,
    COST_DOWN,
    COST_HEAD, /* the last layer's rows put together, final norm, LM head, argmax */
    COST_OP_COUNT
};

const char *cost_op_name(enum cost_op op);

struct cost_item {
    int n_calls; /* op launches in a step */
    double bytes, traffic, flops;
};

struct cost {
    struct cost_item op[COST_OP_COUNT];
    int n_all_reduces;
    double all_reduce_bytes; /* of one: f32 rows of the hidden size; the last layer's are fewer */
    double weights_bytes, kv_bytes, summaries_bytes, logits_bytes, bytes; /* of `bytes` in all */
    double traffic, flops;
};

/* n sequences in the same state: the newest token of each at `position`. */
struct cost_step {
    const struct policy *policy;
    int n_seqs, position;
    int n_prompt; /* tokens before the first that decode computed: they are never revised */
    /* Prompts whose chunks share the step: rows in all, and how many keys each of them sees on average. */
    double prompt_rows, prompt_keys;
    double exposure;    /* (pages loaded + pages met later) / pages loaded; 1 without revision */
    enum dtype weights; /* as stored on the device */
};

void cost_decode(struct cost *c, const struct arch *a, const struct dims *m, const struct cost_step *s);

/* Of a prompt of n tokens, all ranks. */
double cost_prefill_flops(const struct arch *a, int n);
/* Matrices that one pass over the model reads on one rank. */
double cost_weights_bytes(const struct dims *m, enum dtype weights);

#endif
