/* service.h - the engine as a service: requests from any thread, continuous batching, results to sinks.
 *
 * One thread of rank 0 (the engine's thread: the process's main thread, but for a remote engine) sits in service_run
 * and executes steps; any thread may submit, cancel, drain or read statistics, and none of these waits for a step. Results
 * reach the request's sink by calls on the engine's thread: they must be short and must not wait (hand bytes
 * to another thread). What a sink is given is borrowed for the call.
 *
 *   service_submit -> queued -> admitted -> prompt chunks -> decode -> finish (each choice) -> done (once)
 *                        \----------\------------\------------\-- service_cancel, drain's deadline
 *
 * Invariants: every accepted request gets exactly one finish a choice and then exactly one done, whatever
 * happens; after done its id means nothing. A choice's tokens depend on its prompt, policy, sampling and
 * constraint alone: not on the batch beside it, on preemption or on arrival (random numbers are keyed by
 * seed, choice and position). Which ranks follow is the engine's business: followers sit in engine_follow. */
#ifndef RETRO_SERVICE_H
#define RETRO_SERVICE_H

#include "runtime/constraint.h"
#include "runtime/engine.h"
#include "runtime/policy.h"
#include "runtime/sampler.h"
#include "runtime/sched.h"
#include "runtime/tokenizer.h"

struct service;

struct service_options {
    const struct tokenizer *tokenizer; /* borrowed; NULL: no text, only ids */
    const int32_t *eos;                /* (n_eos) tokens that end a text; copied */
    int n_eos;
    int max_queue;        /* requests that wait at most; more are refused with QUEUE_FULL */
    int max_batch_tokens; /* rows of a step at most; 0: what the engine takes */
    enum sched_cache prefix_cache;
    int growth; /* sched_options.growth; 0: its default */
};

enum status service_open(struct service **out, struct engine *e, const struct service_options *o,
                         struct reason *why);
/* Not while service_run runs. Requests that are left finish as SERVICE_FINISH_SHUTDOWN. */
void service_close(struct service *s);

/* ------------------------------------------------------------------------------------------ results */
enum service_finish {
    SERVICE_FINISH_STOP,      /* end-of-text token, stop token, stop string, or the constraint is satisfied */
    SERVICE_FINISH_LENGTH,    /* max_tokens or the context is full */
    SERVICE_FINISH_CANCELLED, /* service_cancel */
    SERVICE_FINISH_SHUTDOWN,  /* the drain's deadline passed, or service_close */
    SERVICE_FINISH_FAILED,    /* the logits are no numbers */
    SERVICE_FINISH_COUNT
};
const char *
service_finish_name(enum service_finish f); /* "stop", "length", "cancelled", "shutdown", "failed" */

/* One token of a choice. A token that ends the text (end-of-text, stop token) is counted but not told. */
struct service_token {
    int choice;
    int32_t id;
    int index;        /* 0 for the choice's first token */
    const char *text; /* what became certain with it: whole characters, nothing of a stop string; often "" */
    size_t n_text;
    int n_chars;         /* characters that the token completed, those held back for a stop string too */
    const float *logits; /* (vocab) as the model gave them (sampler_logprobs), when wanted; else NULL */
};

/* A token of the prompt but its first, from the second on and in order, before any choice begins. */
struct service_prompt_token {
    int32_t id;
    int index;           /* in the prompt */
    const float *logits; /* (vocab) that predict it */
};

struct service_end {
    int choice;
    enum service_finish reason;
    int32_t stop_token;    /* the token that ended it, or -1 */
    const char *stop_text; /* the stop string that ended it, or NULL */
    const char *text;      /* the rest of the text that was held back */
    size_t n_text;
    int n_tokens; /* of this choice, the ending token included */
};

struct service_usage {
    int n_prompt, n_completion; /* tokens; n_completion over all choices */
    int n_cached;               /* prompt tokens of the first choice that were in the prefix cache */
    int64_t pages_loaded, pages_met;
    double exposure;      /* (loaded + met later) / loaded; 1 when nothing was selected */
    double kv_read_share; /* bytes of keys, values and summaries read by decode over what dense reads */
    int n_preempted;      /* how often a choice was interrupted and resumed */
    /* Microseconds: waiting, prompt of the first choice, from its first token to the end; from submission to
     * the first token and to the end. What did not happen is 0. */
    int64_t queue_us, prefill_us, decode_us, first_us, total_us;
};

struct service_sink {
    void (*token)(void *user, const struct service_token *t); /* may be NULL */
    void (*end)(void *user, const struct service_end *e);     /* may be NULL */
    void (*done)(void *user, const struct service_usage *u);  /* last call: `user` is free again */
    /* May be NULL; where want_prompt asks for it. */
    void (*prompt)(void *user, const struct service_prompt_token *t);
};

/* ------------------------------------------------------------------------------------------ requests */
enum { SERVICE_STOPS_MAX = 16, SERVICE_CHOICES_MAX = 128 };

/* Everything is copied by service_submit, but the constraint, which is taken when the request is accepted. */
struct service_request {
    const int32_t *prompt; /* (n_prompt), at least one */
    int n_prompt;
    struct policy policy;
    struct sampling sampling; /* request (the choice's number), n_prompt and allowed are set by the service */
    int n_choices;            /* 0 means 1; they share the prompt's blocks */
    int max_tokens;           /* of each choice; 0: to the end of the context */
    bool ignore_eos;
    const int32_t *stop_token; /* (n_stop_tokens) beside end-of-text, at most SERVICE_STOPS_MAX */
    int n_stop_tokens;
    const char *const *stop; /* (n_stop) texts, not empty, at most SERVICE_STOPS_MAX */
    int n_stop;
    bool keep_special; /* special tokens are text too */
    bool want_logits;
    bool want_prompt;              /* logits of the prompt's tokens, too; it is then computed as a whole */
    bool prompt_only;              /* no token is drawn, whatever max_tokens is */
    int priority;                  /* higher first, -100 .. 100; each step is worth ten seconds of waiting */
    struct constraint *constraint; /* or NULL */
    const struct service_sink *sink;
    void *user;
};

/* From any thread. OK: *id names the request, the sink will hear of it (perhaps before this returns).
 * BAD_INPUT, TOO_LONG (prompt against context), NO_PAGES (needs more than all KV blocks), QUEUE_FULL,
 * DRAINING: nothing happened, `why` has the line. */
enum status service_submit(struct service *s, const struct service_request *r, uint64_t *id,
                           struct reason *why);
/* What the service has to do, for whoever chooses among several: sequences and tokens (prompts, and what was drawn so
 * far) of all requests that were accepted and are not done; requests that never ran. From any thread, at once. */
struct service_load {
    int n_queued, n_seqs;
    int64_t n_tokens;
};
void service_load(struct service *s, struct service_load *out);
/* From any thread, sinks included: before the next step all that the request holds is free; its sink hears
 * end(CANCELLED) and done on the engine's thread. An id that is over or unknown is ignored. */
void service_cancel(struct service *s, uint64_t id);

/* ------------------------------------------------------------------------------------------ running */
/* The loop on the engine's thread; sleeps when idle. Returns when a drain is complete. */
void service_run(struct service *s);
/* From any thread (not from a signal handler): no request is accepted any more; those that are there have
 * `seconds` to finish, then they end as SHUTDOWN and service_run returns. Calling again can only shorten. */
void service_drain(struct service *s, double seconds);

/* ------------------------------------------------------------------------------------------ statistics */
#define SERVICE_STEP_BUCKETS 20

struct service_stats {
    int n_running, n_waiting, n_preempted; /* sequences now: in the batch, waiting, out in host memory */
    int n_blocks, n_blocks_free, n_blocks_cached; /* cached: held by the prefix cache alone */
    int block_tokens;
    int64_t n_requests, n_finished[SERVICE_FINISH_COUNT]; /* requests accepted; choices by how they ended */
    int64_t prompt_tokens, generation_tokens;             /* computed (not from the cache); drawn */
    int64_t prefix_queries, prefix_hits;                  /* prompt tokens looked up, found */
    int64_t preemptions;
    int64_t pages_loaded, pages_met; /* of choices that ended */
    int64_t rows[ROW_KIND_COUNT];
    int64_t n_steps, step_us;
    int64_t step_bucket[SERVICE_STEP_BUCKETS]; /* steps that took at most 2^i * 100 us, the last: longer */
    int64_t last_step_us;                      /* clock_us() when a step last ended; 0 before the first */
    int64_t step_began_us;                     /* clock_us() when the step in progress began; 0 when idle */
    bool draining;
};
/* From any thread, at once: what was true after the last step (and step_began_us of now). */
void service_stats(struct service *s, struct service_stats *out);

#endif
