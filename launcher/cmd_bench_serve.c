/* cmd_bench_serve.c - `retro bench serve`: runs of runtime/bench_serve against a server, one for each --concurrency. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/bench_serve.h"

enum { TOKENS_MAX = 1 << 24, CONCURRENCY_MAX = 1 << 16 };

static void print_json(const struct bench_load *l, const char *model, int seed, const struct bench_served *r)
{
    json_t *j = json_pack("{s:s, s:s, s:s, s:i, s:i, s:b, s:i}", "test", "serve", "url", l->url, "model_id",
                          model, "num_prompts", l->n_requests, "max_concurrency", l->concurrency,
                          "ignore_eos", l->ignore_eos, "seed", seed);
    ASSERT(j);
    json_object_set_new(j, "request_rate", l->rate > 0 ? json_real(l->rate) : json_string("inf"));
    json_t *sums = json_pack("{s:f, s:i, s:i, s:I, s:I, s:f, s:f, s:f}", "duration", r->duration_s,
                             "completed", r->completed, "failed", r->failed, "total_input_tokens",
                             (json_int_t)r->input_tokens, "total_output_tokens", (json_int_t)r->output_tokens,
                             "request_throughput", r->requests_per_s, "output_throughput", r->output_per_s,
                             "total_token_throughput", r->tokens_per_s);
    json_object_update(j, sums);
    json_decref(sums);
    json_t *limits = json_object();
    for (int m = 0; m < BENCH_METRIC_COUNT; m++) {
        const struct bench_spread *s = &r->spread[m];
        const struct {
            const char *name;
            double value;
        } part[] = {{"mean", s->mean}, {"median", s->median}, {"std", s->std}, {"p99", s->p99}};
        for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
            char name[32];
            snprintf(name, sizeof name, "%s_%s_ms", part[i].name, bench_metric_name((enum bench_metric)m));
            json_object_set_new(j, name, json_real(part[i].value));
        }
        if (l->limit_ms[m] > 0)
            json_object_set_new(limits, bench_metric_name((enum bench_metric)m), json_real(l->limit_ms[m]));
    }
    /* Without limits there is no goodput, and no number that could be taken for it. */
    bool limited = json_object_size(limits) > 0;
    json_object_set_new(j, "request_goodput", limited ? json_real(r->good_per_s) : json_null());
    json_object_set_new(j, "goodput_limits_ms", limits);
    json_t *errors = json_object();
    for (int i = 0; i < r->n_errors; i++)
        json_object_set_new(errors, r->error[i].text, json_integer(r->error[i].n));
    json_object_set_new(j, "errors", errors);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(8));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

static void print_head(const struct bench_load *l, const char *model)
{
    printf("%s at %s, %d requests, ", model, l->url, l->n_requests);
    if (l->rate > 0) printf("%g a second\n\n", l->rate);
    else printf("at once\n\n");
    printf("| concurrency | completed | failed |   req/s |  good/s | output t/s |  total t/s | ms   |      "
           "mean |    "
           "median |       std |       p99 |\n"
           "|------------:|----------:|-------:|--------:|--------:|-----------:|-----------:|------|--------"
           "--:|----"
           "------:|----------:|----------:|\n");
}

static void print_rows(const struct bench_load *l, const struct bench_served *r)
{
    static const char *const name[BENCH_METRIC_COUNT] = {"TTFT", "TPOT", "ITL", "E2EL"};
    bool limited = false;
    char good[32] = "";
    for (int m = 0; m < BENCH_METRIC_COUNT; m++) limited = limited || l->limit_ms[m] > 0;
    if (limited) snprintf(good, sizeof good, "%.3f", r->good_per_s);
    for (int m = 0; m < BENCH_METRIC_COUNT; m++) {
        const struct bench_spread *s = &r->spread[m];
        if (m == 0)
            printf("| %11d | %9d | %6d | %7.3f | %7s | %10.2f | %10.2f |", l->concurrency, r->completed,
                   r->failed, r->requests_per_s, good, r->output_per_s, r->tokens_per_s);
        else printf("| %11s | %9s | %6s | %7s | %7s | %10s | %10s |", "", "", "", "", "", "", "");
        printf(" %-4s | %9.2f | %9.2f | %9.2f | %9.2f |\n", name[m], s->mean, s->median, s->std, s->p99);
    }
}

static void run(struct bench_target *t, const struct options *o, struct bench_load *l, int *completed)
{
    struct bench_served r;
    double duration_s;
    struct bench_request *q = calloc((size_t)l->n_requests, sizeof *q);
    if (!q) DIE(EXIT_CODE_MEMORY, "lower --requests", "no memory for %d requests", l->n_requests);
    bench_serve_run(t, l, q, &duration_s);
    bench_served_sum(&r, l, q, l->n_requests, duration_s);
    if (o->json) print_json(l, bench_target_model(t), o->seed, &r);
    else print_rows(l, &r);
    fflush(stdout);
    for (int i = 0; i < r.n_errors; i++)
        LOG_WARN("concurrency %d: %d failed: %s", l->concurrency, r.error[i].n, r.error[i].text);
    for (int i = 0; i < l->n_requests; i++) bench_request_close(&q[i]);
    free(q);
    *completed += r.completed;
}

static enum status prepare(const struct options *o, struct bench_load *l, struct option_ints *concurrency,
                           struct reason *why)
{
    *l = (struct bench_load){
        .url = o->url,
        .model = o->served_model_name,
        .key = o->api_key.n_items ? o->api_key.item[0] : NULL,
        .n_requests = o->requests,
        .rate = o->request_rate,
        .ignore_eos = o->ignore_eos,
        .timeout_s = o->request_timeout,
    };
    size_t scheme = strncmp(o->url, "http://", 7) == 0 ? 7 : strncmp(o->url, "https://", 8) == 0 ? 8 : 0;
    const char *host = o->url + scheme;
    if (scheme == 0 || strlen(o->url) > 1024 || *host == '\0' || strpbrk(host, "/?#"))
        return status_fail(why, STATUS_BAD_OPTION, "--url %.100s: expected http://host:port, without a path",
                           o->url);
    if (o->api_key.n_items > 1) return status_fail(why, STATUS_BAD_OPTION, "--api-key: a client has one");
    enum status status = options_ints(concurrency, "concurrency", o->concurrency, 1, CONCURRENCY_MAX, why);
    if (status == STATUS_OK)
        status = bench_range_parse(&l->input, "input-tokens", o->input_tokens, TOKENS_MAX, why);
    if (status == STATUS_OK)
        status = bench_range_parse(&l->output, "output-tokens", o->output_tokens, TOKENS_MAX, why);
    if (status == STATUS_OK && o->goodput) status = bench_limits_parse(l->limit_ms, o->goodput, why);
    return status;
}

int cmd_bench_serve(const struct options *o, const struct comm_world *w)
{
    struct bench_load l;
    struct option_ints concurrency;
    struct bench_target *t = NULL;
    struct reason why;
    int completed = 0;
    enum status status = prepare(o, &l, &concurrency, &why);
    if (status == STATUS_OK) status = bench_target_open(&t, &l, &why);
    if (status == STATUS_OK && !o->json) print_head(&l, bench_target_model(t));
    for (int i = 0; status == STATUS_OK && i < concurrency.n; i++) {
        l.concurrency = concurrency.value[i];
        l.seed =
            (uint64_t)o->seed + ((uint64_t)i << 32); /* no run finds the prompts of the one before cached */
        run(t, o, &l, &completed);
    }
    if (status == STATUS_OK && completed == 0)
        status = status_fail(&why, STATUS_PEER, "--url %s: no request was completed", l.url);
    bench_target_close(t);
    return status == STATUS_OK ? EXIT_CODE_OK : session_fail(w, status, &why);
}
