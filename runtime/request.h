/* request.h - one request inside the service: its choices, and how drawn tokens become text. Engine's thread
 * only; service.c owns threads, queue and loop. A choice is a sequence of the scheduler with a sampler's
 * parameters, a text stream, a stop filter and perhaps a constraint. */
#ifndef RETRO_REQUEST_H
#define RETRO_REQUEST_H

#include "runtime/sched.h"
#include "runtime/service.h"
#include "runtime/stop.h"

struct request;

struct choice {
    struct sched_seq seq;
    struct request *request;
    int index, n_drawn;
    struct sampling sampling;
    struct token_stream *stream; /* NULL without a tokenizer */
    struct stop_filter stop;
    struct constraint *constraint; /* owned */
    bool ended;
};

struct request {
    uint64_t id;
    struct service_request from; /* copies of all that it points to */
    struct choice *choice;       /* (n_choices) */
    int n_choices, n_left;
    int max_tokens; /* of a choice: what was asked, cut to the context */
    struct service_usage usage;
    int64_t counters[COUNTER_COUNT];
    int64_t submitted_us, admitted_us, first_us; /* first_us: when the first token was drawn */
    bool queued;                                 /* counts as waiting */
    int64_t n_tokens;                            /* as service_load counts them */
    struct request *next;
};

/* What drawing needs beside the choice. */
struct request_tools {
    const struct tokenizer *tokenizer;
    struct sampler *sampler;
    const int32_t *eos;
    int n_eos, vocab;
    uint32_t *mask; /* ((vocab + 31) / 32) scratch */
};

/* Copies `r`, whose values were checked; takes its constraint. */
struct request *request_open(const struct service_request *r, int max_tokens);
void request_close(struct request *r);
/* Opens the text side of every choice; the constraint goes to the first, clones to the others. */
void request_begin(struct request *r, const struct request_tools *t);
/* What the sequence's last row must give. */
enum step_want request_want(const struct choice *c, int vocab);
/* A row of the prompt whose next token is the prompt's, too: tells the sink. False: the choice is at its end. */
bool request_score(struct choice *c, const struct engine_output *out, struct service_end *end);
/* Draws the next token and tells the sink. True: it is *token and the choice goes on; false: the choice is at
 * its end, for request_end. */
bool request_draw(struct choice *c, const struct request_tools *t, const struct engine_output *out,
                  int32_t *token, struct service_end *end);
/* The last text of a choice that ends as `end` says; tells the sink. */
void request_end(struct choice *c, struct service_end *end);

#endif
