/* step.h - the plan of one step: a ragged batch of rows from several sequences. Integers only.
 *
 * A row is (sequence, position, kind): a prompt token, the new token, or a revised older token. Rows of one
 * sequence are consecutive positions, so a plan is a list of sequences with a first position and tokens;
 * decode sequences come first. Rank 0 plans, wire.c packs it, every rank executes it (engine.c). */
#ifndef RETRO_STEP_H
#define RETRO_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/policy.h"
#include "runtime/seq.h"

enum row_kind { ROW_PROMPT, ROW_NEW, ROW_REVISED, ROW_KIND_COUNT };

/* What rank 0 needs of a sequence's last row, or of a prompt's last rows: the most likely token alone, all logits, or
 * the TOP_K_MAX largest. */
enum step_want { STEP_WANT_NOTHING, STEP_WANT_BEST, STEP_WANT_LOGITS, STEP_WANT_CANDIDATES, STEP_WANT_COUNT };

struct step_seq {
    int32_t slot;
    enum row_kind kind; /* ROW_PROMPT, or ROW_NEW: then all rows but the last are revised */
    int32_t position, n_rows;
    int32_t row0; /* first row in step.token */
    bool fresh;   /* the slot starts a new sequence with `policy` */
    struct policy policy;
    int32_t first_block, n_blocks; /* new entries of the slot's block table ... */
    int32_t block0;                /* ... from step.block[block0] on */
    enum step_want want;
    int32_t n_out; /* of so many last rows: 0 with NOTHING, above 1 only of a prompt with LOGITS */
};

/* Limits that every plan obeys; the same on all ranks (from struct dims). */
struct step_limits {
    int n_slots, max_rows, max_decode, max_out, n_blocks, context, block_tokens, window, vocab, n_layers;
    int n_host_blocks, n_host_slots; /* records that fit into the pool in host memory; may be 0, both */
};

/* A record that moves before the rows are computed: out to host memory, from block to block, in from host
 * memory. All that go out go first, so that what they leave can be used in the same step. */
enum step_move_kind {
    STEP_MOVE_BLOCK_OUT, /* from a block to a host block */
    STEP_MOVE_SLOT_OUT,  /* from a slot (its record and counters) to a host slot */
    STEP_MOVE_BLOCK_COPY,
    STEP_MOVE_BLOCK_IN,
    STEP_MOVE_SLOT_IN, /* the slot is fresh in this step */
    STEP_MOVE_KIND_COUNT
};

struct step_move {
    enum step_move_kind kind;
    int32_t from, to;
};

struct step {
    uint64_t id;
    int n_seqs, n_rows, n_blocks;
    struct step_seq *seq;   /* (n_slots) */
    int32_t *token;         /* (max_rows) */
    int32_t *block;         /* (max_blocks); one that several sequences share comes several times */
    struct step_move *move; /* (max_moves) */
    int n_moves, max_moves, max_blocks;
    struct step_limits limits;
};

void step_open(struct step *s, const struct step_limits *limits);
void step_close(struct step *s);
void step_clear(struct step *s, uint64_t id);

/* Adds the decode rows of a sequence: revised ones by its policy, then the next token to be fed, a drawn one.
 * ASSERTs that no prompt was added before. */
void step_add_decode(struct step *s, struct seq *q, enum step_want want);
/* Adds the next n_rows prompt tokens; `want` applies to the last. */
void step_add_prompt(struct step *s, struct seq *q, int n_rows, enum step_want want);
/* The prompt tokens added last, with STEP_WANT_LOGITS: it applies to the last n_out. */
void step_want_rows(struct step *s, int n_out);
/* Moves out are put before all others. */
void step_add_move(struct step *s, enum step_move_kind kind, int32_t from, int32_t to);
/* Kind of a row, 0 .. n_rows-1. */
enum row_kind step_row_kind(const struct step_seq *q, int row);

/* Which field of a policy is out of bounds, or NULL. */
const char *step_policy_fault(const struct policy *p, const struct step_limits *l);
/* Checks a plan that came from outside against the limits: BAD_INPUT with the field. */
enum status step_validate(const struct step *s, struct reason *why);
/* Does a valid plan continue what the ranks hold? n_set (n_slots) is how many entries of each slot's block
 * table are set; brought up to date. BAD_INPUT when blocks are missing in between or behind; n_set is then as
 * it was. */
enum status step_continue(const struct step *s, int *n_set, struct reason *why);

#endif
