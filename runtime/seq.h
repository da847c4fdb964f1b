/* seq.h - one sequence as rank 0 keeps it: its tokens, blocks, policy and how far it was fed.
 *
 *      seq_open        step_add_prompt                  step_add_decode
 *   ---------> PROMPT -----------------> DECODE <--+  ---- seq_close ----> gone
 *                 ^-- while fed < n_prompt --'
 *
 * Invariants (seq_check): fed <= n_tokens <= capacity; the blocks cover what was fed. Decode begins at
 * position n_prompt: rows before it are never revised. Memory for tokens and blocks is sized at open. */
#ifndef RETRO_SEQ_H
#define RETRO_SEQ_H

#include <stdint.h>

#include "runtime/pages.h"
#include "runtime/policy.h"

struct seq {
    int slot; /* row of the block table and slot record on the device */
    struct policy policy;
    int32_t *token; /* (capacity) prompt, then what was generated or fed */
    int n_tokens, n_prompt, capacity;
    int fed; /* tokens whose rows were planned: after that step keys and values of [0, fed) are in the cache
              */
    int32_t *block; /* (capacity / B, rounded up) */
    int n_blocks;
    int n_announced; /* blocks that the ranks' tables already hold */
    bool opened;     /* the ranks know the slot belongs to this sequence */
};

/* Takes a copy of the prompt (n_prompt >= 1). `capacity` tokens is the most it can grow to. */
void seq_open(struct seq *s, int slot, const struct policy *p, const int32_t *prompt, int n_prompt,
              int capacity, int block_tokens);
/* Frees its memory and gives its blocks back. */
void seq_close(struct seq *s, struct pages *pages);
void seq_append_token(struct seq *s, int32_t token);
/* Makes sure that blocks for tokens [0, n_tokens) exist. NO_PAGES leaves it as it was. */
enum status seq_reserve(struct seq *s, struct pages *pages, int n_tokens, int block_tokens);
void seq_check(const struct seq *s, int block_tokens);

#endif
