/* sched.h - which rows the next step computes: continuous batching. Integers only.
 *
 *   sched_add --> WAITING --admit--> RUNNING --sched_remove--> gone
 *                    ^  \             |   ^
 *                    |   `- dropped --+   | resumed
 *                    +--- SWAPPED <-------+--'      (sched_remove also takes waiting and swapped ones)
 *
 * One order for everything: the key, then arrival. It never changes, and no request can be overtaken for ever,
 * because a key is a time (service.c: arrival, moved by ten seconds for each step of priority).
 *
 * Admission, from the front: a sequence needs a slot, and free blocks for the tokens it has and `growth` more,
 * beside those that every running sequence needs to grow by as much (never more than its limit). Cached blocks
 * that nobody uses count as free. The first that does not fit keeps the ones behind it waiting. One of higher
 * priority interrupts running ones of lower priority to fit.
 *
 * A step takes every running sequence's decode rows, and prompt chunks, front first, for the rest of the rows.
 * Blocks are taken in that order; when none is free, cached ones are evicted, then the last running sequence is
 * interrupted, at worst the one itself that asks. Interrupted in its prompt, it starts again (dropped; its full
 * blocks may be in the cache). Later, its records go out to host memory (SWAPPED) and come back; when there is
 * no room it is dropped too, and resumes by decoding the tokens that it has. Either way it continues with the
 * bits that it would have had (unless it began on decoded blocks, SCHED_CACHE_TURNS, and was dropped: then its
 * prompt is computed densely).
 *
 * Why it cannot deadlock: the first sequence in order can always go on. Running, it gets every block that the
 * others hold, and its limit fits into all blocks (checked when it is added); waiting, it is at the front, no
 * one passes it, and those that run end one after another, as the first of them always can.
 *
 * Choices of one request share the prompt's blocks: while the first of them computes the prompt, the others
 * wait; then each takes its full blocks and a copy of the last one. */
#ifndef RETRO_SCHED_H
#define RETRO_SCHED_H

#include "runtime/prefix.h"
#include "runtime/step.h"

enum sched_state { SCHED_WAITING, SCHED_RUNNING, SCHED_SWAPPED, SCHED_STATE_COUNT };

enum sched_cache { SCHED_CACHE_OFF, SCHED_CACHE_ON, SCHED_CACHE_TURNS, SCHED_CACHE_COUNT };

struct sched_seq { /* zero to begin with */
    struct seq seq;
    enum sched_state state;
    enum step_want want; /* of the rows that a token is drawn from */
    bool prompt_out;     /* STEP_WANT_LOGITS of all prompt rows: the cache is not asked, all are computed */
    int limit;           /* tokens it may hold at most, prompt included */
    int64_t key;         /* lower comes first */
    int priority;        /* higher may interrupt lower */
    uint64_t arrival;
    struct sched_seq
        *leader;            /* added before, with the same prompt, or NULL; NULL again when that is removed */
    bool leads;             /* somebody's leader */
    struct sched_seq *next; /* in the waiting order */
    void *owner;            /* the caller's */

    int n_cached;    /* prompt tokens that were in the cache at its first admission; -1 before */
    int n_preempted; /* how often it was interrupted */
    int n_rows;      /* of the plan being made */
    int n_told;      /* prompt_out: rows that gave their logits; they need not when the prompt starts again */
    int n_published; /* its blocks that are in the cache, or equal to some there */
    struct prefix_place chain;
    bool published;      /* chain is good: more may be published */
    int32_t *host_block; /* swapped: (n_host) records in host memory, of the blocks in order; room for all */
    int n_host, host_slot;
};

struct sched_options {
    int max_rows; /* of a step; 0: as many as the limits allow */
    int growth;   /* tokens that admission leaves every sequence to grow by; 0: 256 */
    enum sched_cache cache;
};

struct sched {
    struct pages pages;
    struct prefix prefix;
    struct pages host; /* blocks of the swap space; n_blocks 0: none */
    struct step_limits limits;
    struct sched_options options;
    uint64_t n_arrived, n_planned;
    struct sched_seq *waiting;  /* and swapped, in order */
    struct sched_seq **running; /* (n_slots) by slot */
    struct sched_seq **planned; /* (n_slots) of the last plan, as step->seq */
    struct sched_seq **order;   /* (n_slots) running ones, first in order first; while planning */
    int n_order;
    int *host_slots, n_host_slots; /* free ones */
    int32_t *returning;            /* host blocks whose records come in with the last plan ... */
    int n_returning;
    int *slots_returning, n_slots_returning; /* ... and host slots: free once it was executed */
    int n_running, n_waiting, n_swapped;
    int64_t n_preempted, n_looked_up,
        n_found; /* interruptions; prompt tokens looked for, found in the cache */
};

void sched_open(struct sched *s, const struct step_limits *limits, const struct sched_options *o);
/* Every sequence must have been removed. */
void sched_close(struct sched *s);

/* Blocks that `n_tokens` tokens need. */
int sched_blocks(const struct sched *s, int n_tokens);

/* A new sequence; q->want, limit, key, priority, leader and owner are set. The limit must fit into all blocks
 * and the context. */
void sched_add(struct sched *s, struct sched_seq *q, const struct policy *p, const int32_t *prompt,
               int n_prompt);
/* Finished or cancelled, in whatever state, between plans: all that it holds is free when this returns (what
 * the cache keeps of it can be evicted). */
void sched_remove(struct sched *s, struct sched_seq *q);
/* The token that was drawn for a running sequence and is to be fed next. */
void sched_append(struct sched *s, struct sched_seq *q, int32_t token);

/* Plans the next step into `step` (opened with the limits). False: there is nothing to compute. */
bool sched_plan(struct sched *s, struct step *step);
/* The plan was executed: what it computed may be published, before tokens are appended. */
void sched_executed(struct sched *s, const struct step *step);

/* ASSERTs every invariant, between plans; for tests and when idle. */
void sched_check(const struct sched *s);

#endif
