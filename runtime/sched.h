/* sched.h - which rows the next step computes: continuous batching. Integers only.
 *
 * Sequences wait in one order (key, then arrival) and are admitted from its front while slots and blocks
 * last; each step then takes every admitted sequence's decode rows and fills what is left of the row budget
 * with prompt chunks, front first.
 *
 * Admission keeps the blocks that admitted sequences may still grow to: a sequence is let in only when the
 * free blocks cover its own limit and the growth of all others, so that nobody can run out on the way. */
#ifndef RETRO_SCHED_H
#define RETRO_SCHED_H

#include "runtime/step.h"

enum sched_state { SCHED_WAITING, SCHED_RUNNING, SCHED_STATE_COUNT };

struct sched_seq { /* zero to begin with */
    struct seq seq;
    enum sched_state state;
    enum step_want want; /* of the rows that a token is drawn from */
    int limit;           /* tokens it may hold at most, prompt included */
    int64_t key;         /* lower comes first */
    uint64_t arrival;
    struct sched_seq *next; /* in the waiting order */
    void *owner;            /* the caller's */
};

struct sched {
    struct pages pages;
    struct step_limits limits;
    int max_rows; /* of a step */
    uint64_t n_arrived, n_planned;
    struct sched_seq *waiting;  /* in order */
    struct sched_seq **running; /* (n_slots) by slot */
    struct sched_seq **planned; /* (n_slots) of the last plan, as step->seq */
    struct sched_seq **order;   /* (n_slots) scratch */
    int n_running, n_waiting;
};

/* max_rows 0: as many as the limits allow. */
void sched_open(struct sched *s, const struct step_limits *limits, int max_rows);
/* Every sequence must have been removed. */
void sched_close(struct sched *s);

/* Blocks that `n_tokens` tokens need. */
int sched_blocks(const struct sched *s, int n_tokens);

/* A new sequence; q->want, limit, key and owner are set. The limit must fit into all blocks and the context.
 */
void sched_add(struct sched *s, struct sched_seq *q, const struct policy *p, const int32_t *prompt,
               int n_prompt);
/* Finished or cancelled, in whatever state: all that it holds is free when this returns. */
void sched_remove(struct sched *s, struct sched_seq *q);
/* The token that was drawn for a running sequence and is to be fed next. */
void sched_append(struct sched *s, struct sched_seq *q, int32_t token);

/* Plans the next step into `step` (opened with the limits). False: there is nothing to compute. */
bool sched_plan(struct sched *s, struct step *step);

/* ASSERTs every invariant; for tests and when idle. */
void sched_check(const struct sched *s);

#endif
