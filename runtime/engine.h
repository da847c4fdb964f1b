/* engine.h - a model on one or many ranks as one thing that executes steps.
 *
 * Rank 0 (the leader) calls engine_step with a plan; it sends the plan to the followers, all ranks run
 * model_forward, and the leader gets the logits of the whole vocabulary. Followers sit in engine_follow until
 * the leader closes. Nothing here decides anything: plans come from generate, eval and the scheduler.
 *
 * Replicas of the model: each is an engine on ranks of its own. Rank 0 of the world drives the others through a
 * second control channel between the leaders, the front: there engine_open_remote makes an engine that has no
 * model and sends each plan to its replica's leader, which sits in engine_lead and sends the results back. */
#ifndef RETRO_ENGINE_H
#define RETRO_ENGINE_H

#include "comm/ctl.h"
#include "runtime/model.h"
#include "runtime/step.h"

struct engine;

/* Collective. The engine borrows all three. */
struct engine *engine_open(struct model *m, struct comm *c, struct ctl *ctl);
/* Rank 0 of the front: the engine of the replica whose leader has that rank in it. Waits until the leader has come to
 * engine_lead. Each such engine may be used on a thread of its own. */
struct engine *engine_open_remote(struct ctl *front, int rank);
/* The leader's close ends engine_follow on the followers. */
void engine_close(struct engine *e);

/* The limits every plan must keep; for step_open and the page table. */
const struct step_limits *engine_limits(const struct engine *e);

/* Bytes of one token's key and value, and of one page's summary, in one layer and kv head. */
double engine_token_bytes(const struct engine *e);
double engine_summary_bytes(const struct engine *e);

/* What to say of an output whose best_logit is not finite: every token drawn would be as good as another. */
#define ENGINE_NOT_FINITE                                                                                    \
    "not finite: is the model's data damaged, or its range beyond --kv-dtype or --act-dtype?"

/* One output: a row that the plan wanted something of, in plan order. */
struct engine_output {
    int seq;      /* index into step->seq */
    int position; /* of the row: what it gives predicts the token behind it */
    int32_t best; /* token with the largest logit; the lower id wins a tie */
    float best_logit;
    const float *logits; /* (vocab) when the plan wanted them, else NULL; borrowed until the next step */
    /* (TOP_K_MAX) the largest logits with their tokens, as kernels.h orders them, when the plan wanted them,
     * else NULL; borrowed likewise. With a smaller vocabulary the last have index -1. */
    const struct best *top;
};

struct engine_result {
    int n_outputs;
    const struct engine_output *output; /* borrowed until the next step */
};

/* Leader, or on a remote engine: executes a plan on all ranks of the replica. */
void engine_step(struct engine *e, const struct step *s, struct engine_result *r);
/* Likewise: counters of one slot, summed over the ranks. */
void engine_counters(struct engine *e, int slot, int64_t counters[COUNTER_COUNT]);
/* Leader, for benchmarks: puts random keys and values (and the summaries that belong to them) where the
 * prompt rows of a plan would put theirs, without computing the prompt. */
void engine_fill(struct engine *e, const struct step *s);
/* Leader, for benchmarks: bytes a second at which all ranks together read 64 MiB of their weights each and do
 * nothing else. One sample of a few milliseconds: take the middle of several. */
double engine_read_rate(struct engine *e);
/* Leader of a replica that another process drives: executes what comes through the front; returns when that closes. */
void engine_lead(struct engine *e, struct ctl *front);
/* Followers: executes what the leader sends; returns when it closes. */
void engine_follow(struct engine *e);

#endif
