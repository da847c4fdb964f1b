/* bench_serve.h - load on a running server and what its clients then see: `retro bench serve`.
 *
 * One thread sends streaming POST /v1/completions to any server of OpenAI's API that also has POST /tokenize (Retro and
 * vLLM do) and takes the time of every event. Prompts are token ids drawn from those of an English text, so no two
 * requests share a beginning that a prefix cache could use, and no tokenizer is needed here.
 *
 * Fields and definitions are those of vLLM's `bench serve`:
 *   ttft   request sent to first event with a choice
 *   itl    from one such event to the next, of all requests together
 *   tpot   (e2el - ttft) / (output tokens - 1), of answers of two tokens and more
 *   e2el   request sent to last event with a choice
 *   std    of the population; percentiles between the two nearest values
 * A request that waits for its turn under `concurrency` is not sent yet: that wait is in no metric. Answers count with
 * the tokens that the server's usage says. */
#ifndef RETRO_BENCH_SERVE_H
#define RETRO_BENCH_SERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

enum bench_metric { BENCH_TTFT, BENCH_TPOT, BENCH_ITL, BENCH_E2EL, BENCH_METRIC_COUNT };
const char *bench_metric_name(enum bench_metric m); /* "ttft" */

struct bench_range {
    int low, high; /* each value in between is as likely */
};

struct bench_load {
    const char *url;   /* http://host:port, without a path */
    const char *model; /* NULL: the first that /v1/models names */
    const char *key;   /* NULL: none is sent */
    int n_requests, concurrency;
    double rate; /* requests a second, a Poisson process; 0: as soon as concurrency allows */
    struct bench_range input, output;
    bool ignore_eos;
    uint64_t seed;
    int timeout_s;                       /* of one request */
    double limit_ms[BENCH_METRIC_COUNT]; /* of a good request; 0: none */
};

/* One request as a client saw it. */
struct bench_request {
    double ttft_ms, e2el_ms;
    double *itl_ms; /* (n_itl), owned */
    int n_itl, itl_capacity, n_input, n_output;
    char error[160]; /* "" when it completed; begins with the HTTP status or says what broke */
};

struct bench_spread {
    double mean, median, std, p99;
};

enum { BENCH_ERRORS_MAX = 8 };

struct bench_served {
    int completed, failed;
    long input_tokens, output_tokens; /* of completed requests */
    double duration_s;
    double requests_per_s, good_per_s, output_per_s, tokens_per_s;
    struct bench_spread spread[BENCH_METRIC_COUNT]; /* ms; zeros where nothing was measured */
    struct {
        const char *text; /* borrowed from the requests */
        int n;
    } error[BENCH_ERRORS_MAX]; /* the first kinds that came; `failed` counts all */
    int n_errors;
};

/* "ttft:200,tpot:50" into limit_ms; BAD_OPTION names what is wrong. Blanks divide as well as commas. */
enum status bench_limits_parse(double limit_ms[BENCH_METRIC_COUNT], const char *text, struct reason *why);
/* "512" or "100..900", in 1..most, for the option `flag`. */
enum status bench_range_parse(struct bench_range *r, const char *flag, const char *text, int most,
                              struct reason *why);

/* Adds up requests that took duration_s together; they stay as they are. */
void bench_served_sum(struct bench_served *r, const struct bench_load *l, const struct bench_request *q,
                      int n, double duration_s);

/* The server as a run needs it: its model's name and token ids to draw prompts from. PEER: nobody answers there;
 * BAD_OPTION: it refuses. Caller closes, also after a failure. */
struct bench_target;
enum status bench_target_open(struct bench_target **out, const struct bench_load *l, struct reason *why);
void bench_target_close(struct bench_target *t);
const char *bench_target_model(const struct bench_target *t);

/* Sends everything and waits for it. q: n_requests zeroed requests, closed by the caller. */
void bench_serve_run(struct bench_target *t, const struct bench_load *l, struct bench_request *q,
                     double *duration_s);
void bench_request_close(struct bench_request *q);

#endif
