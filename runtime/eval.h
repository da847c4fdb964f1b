/* eval.h - the measuring run: a dense prefill, then teacher-forced (or greedy) decode steps with their
 * statistics. */
#ifndef RETRO_EVAL_H
#define RETRO_EVAL_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/generation.h"

struct eval_request {
    struct policy policy;
    const int32_t *token; /* n_prompt + n_steps of them; greedy: n_prompt */
    int n_prompt, n_steps;
    bool greedy;
    const char *dump_logits; /* path or NULL */
    int prefill_chunk;
};

struct eval_result {
    double nll; /* mean over the n_steps fed tokens of -ln p(token | everything before), nats */
    double ppl; /* exp(nll) */
    struct exposure exposure;
    double tokens_per_s; /* decode steps only */
    int32_t *generated;  /* greedy: (n_steps), malloc'd, caller frees; else NULL */
};

/* Row i of the dump, and the probability of the i-th fed token, come from the logits after i fed tokens: row
 * 0 is the prediction after the prompt. */
enum status eval_run(struct engine *e, const struct eval_request *q, struct eval_result *r,
                     struct reason *why);

/* Reads whitespace-separated ids in 0..vocab-1 from a file. *tokens is malloc'd. */
enum status eval_read_tokens(const char *path, int vocab, int32_t **tokens, int *n_tokens,
                             struct reason *why);

#endif
