/* eval.h - the measuring run: a dense prefill, then teacher-forced (or greedy) decode steps with their
 * statistics, for one policy or for several beside each other.
 *
 * Several policies are several sequences over the same tokens: one batch, so weights are read once for all. A
 * dense sequence among them is what the others are compared with, exactly and without a file of logits. */
#ifndef RETRO_EVAL_H
#define RETRO_EVAL_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/generation.h"

enum { EVAL_POLICIES_MAX = 18 };

/* What dump_steps holds of each policy and prediction. */
enum eval_step {
    EVAL_STEP_NLL,   /* of the token that was fed */
    EVAL_STEP_KL,    /* compare: KL(dense || this) */
    EVAL_STEP_SAME,  /* compare: 1 when the likeliest token is dense's */
    EVAL_STEP_RIGHT, /* 1 when the likeliest token is the one that was fed */
    EVAL_STEP_COUNT
};

struct eval_request {
    struct policy policy[EVAL_POLICIES_MAX]; /* sequence i runs in slot i */
    int n_policies;
    int first;            /* the policy that dump_logits is about */
    bool compare;         /* policy 0 is dense, the others are compared with it; not with greedy */
    const int32_t *token; /* n_prompt + n_steps of them; greedy: n_prompt */
    int n_prompt, n_steps;
    bool greedy;
    const char *dump_logits, *dump_steps; /* paths or NULL */
    int prefill_chunk;
};

/* Of one policy. */
struct eval_result {
    double nll;   /* mean over the n_steps fed tokens of -ln p(token | everything before), nats */
    double ppl;   /* exp(nll) */
    double kl;    /* compare: mean of KL(dense || this) over the same predictions, nats */
    double top;   /* compare: share of predictions whose likeliest token is dense's */
    double right; /* share of predictions whose likeliest token was fed */
    struct exposure exposure;
    double tokens_per_s; /* decode steps only; of each sequence, all running beside each other */
    int32_t *generated;  /* greedy: (n_steps), malloc'd, eval_close frees; else NULL */
};

/* Fills result (n_policies). Row i of dump_logits (n_steps+1, vocab), and the probability of the i-th fed
 * token, come from the logits after i fed tokens: row 0 is the prediction after the prompt. dump_steps
 * (n_steps, n_policies * EVAL_STEP_COUNT). */
enum status eval_run(struct engine *e, const struct eval_request *q, struct eval_result *result,
                     struct reason *why);
void eval_close(struct eval_result *result, int n_policies);

/* Reads whitespace-separated ids in 0..vocab-1 from a file. *tokens is malloc'd. */
enum status eval_read_tokens(const char *path, int vocab, int32_t **tokens, int *n_tokens,
                             struct reason *why);

#endif
