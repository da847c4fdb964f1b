/* bench_served.c - what the requests of a run add up to, and the limits that make one good. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/bench.h"
#include "runtime/bench_serve.h"

const char *bench_metric_name(enum bench_metric m)
{
    static const char *const name[BENCH_METRIC_COUNT] = {"ttft", "tpot", "itl", "e2el"};
    ASSERT(m < BENCH_METRIC_COUNT);
    return name[m];
}

enum status bench_limits_parse(double limit_ms[BENCH_METRIC_COUNT], const char *text, struct reason *why)
{
    static const char blanks[] = ", ";
    for (const char *at = text + strspn(text, blanks); *at; at += strspn(at, blanks)) {
        size_t length = strcspn(at, blanks), name = strcspn(at, ":");
        int m = 0;
        while (m < BENCH_METRIC_COUNT &&
               !(strlen(bench_metric_name(m)) == name && strncmp(bench_metric_name(m), at, name) == 0))
            m++;
        /* Gaps between events belong to no request as one number. */
        if (name >= length || m == BENCH_METRIC_COUNT || m == BENCH_ITL)
            return status_fail(
                why, STATUS_BAD_OPTION,
                "--goodput %.*s: expected ttft:MS, tpot:MS or e2el:MS, with commas between them", (int)length,
                at);
        char *end;
        double ms = strtod(at + name + 1, &end);
        if (end != at + length || end == at + name + 1 || isspace((unsigned char)at[name + 1]) ||
            !isfinite(ms) || ms <= 0)
            return status_fail(why, STATUS_BAD_OPTION, "--goodput %.*s: expected milliseconds above 0",
                               (int)length, at);
        if (limit_ms[m] > 0)
            return status_fail(why, STATUS_BAD_OPTION, "--goodput: %s is given twice", bench_metric_name(m));
        limit_ms[m] = ms;
        at += length;
    }
    return STATUS_OK;
}

/* A whole number at the beginning of `text`; where it ends, or NULL. */
static const char *number(const char *text, int most, int *value)
{
    char *end;
    if (!isdigit((unsigned char)*text)) return NULL;
    errno = 0;
    long v = strtol(text, &end, 10);
    *value = (int)v;
    return errno || v < 1 || v > most ? NULL : end;
}

enum status bench_range_parse(struct bench_range *r, const char *flag, const char *text, int most,
                              struct reason *why)
{
    const char *at = number(text, most, &r->low);
    r->high = r->low;
    if (at && strncmp(at, "..", 2) == 0) at = number(at + 2, most, &r->high);
    if (!at || *at || r->high < r->low)
        return status_fail(why, STATUS_BAD_OPTION, "--%s %s: expected N or LOW..HIGH in 1..%d", flag, text,
                           most);
    return STATUS_OK;
}

static void spread(struct bench_spread *s, double *v, int n)
{
    *s = (struct bench_spread){0};
    if (n == 0) return;
    double squares = 0;
    for (int i = 0; i < n; i++) s->mean += v[i] / n;
    for (int i = 0; i < n; i++) squares += (v[i] - s->mean) * (v[i] - s->mean);
    s->std = sqrt(squares / n);
    s->median = bench_quantile(v, n, 0.5);
    s->p99 = bench_quantile(v, n, 0.99);
}

static void count_error(struct bench_served *r, const char *text)
{
    int i = 0;
    while (i < r->n_errors && strcmp(r->error[i].text, text) != 0) i++;
    if (i == BENCH_ERRORS_MAX) return;
    if (i == r->n_errors) r->error[r->n_errors++].text = text;
    r->error[i].n++;
}

static double tpot(const struct bench_request *q) { return (q->e2el_ms - q->ttft_ms) / (q->n_output - 1); }

/* An answer of one token has no time per token, so no limit of it can be broken. */
static bool is_good(const struct bench_load *l, const struct bench_request *q)
{
    const double *limit = l->limit_ms;
    return (limit[BENCH_TTFT] <= 0 || q->ttft_ms <= limit[BENCH_TTFT]) &&
           (limit[BENCH_TPOT] <= 0 || q->n_output < 2 || tpot(q) <= limit[BENCH_TPOT]) &&
           (limit[BENCH_E2EL] <= 0 || q->e2el_ms <= limit[BENCH_E2EL]);
}

void bench_served_sum(struct bench_served *r, const struct bench_load *l, const struct bench_request *q,
                      int n, double duration_s)
{
    *r = (struct bench_served){.duration_s = duration_s};
    int n_v[BENCH_METRIC_COUNT] = {0}, most = n, n_good = 0, n_itl = 0;
    for (int i = 0; i < n; i++) n_itl += q[i].n_itl;
    if (most < n_itl) most = n_itl;
    double *v = malloc(BENCH_METRIC_COUNT * ((size_t)most + 1) * sizeof *v), *of[BENCH_METRIC_COUNT];
    if (!v) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for a benchmark");
    for (int m = 0; m < BENCH_METRIC_COUNT; m++) of[m] = v + (size_t)m * ((size_t)most + 1);
    for (int i = 0; i < n; i++) {
        if (q[i].error[0]) {
            r->failed++;
            count_error(r, q[i].error);
            continue;
        }
        r->completed++;
        r->input_tokens += q[i].n_input;
        r->output_tokens += q[i].n_output;
        n_good += is_good(l, &q[i]);
        of[BENCH_TTFT][n_v[BENCH_TTFT]++] = q[i].ttft_ms;
        of[BENCH_E2EL][n_v[BENCH_E2EL]++] = q[i].e2el_ms;
        if (q[i].n_output > 1) of[BENCH_TPOT][n_v[BENCH_TPOT]++] = tpot(&q[i]);
        for (int k = 0; k < q[i].n_itl; k++) of[BENCH_ITL][n_v[BENCH_ITL]++] = q[i].itl_ms[k];
    }
    for (int m = 0; m < BENCH_METRIC_COUNT; m++) spread(&r->spread[m], of[m], n_v[m]);
    if (duration_s > 0) {
        r->requests_per_s = r->completed / duration_s;
        r->good_per_s = n_good / duration_s;
        r->output_per_s = (double)r->output_tokens / duration_s;
        r->tokens_per_s = (double)(r->input_tokens + r->output_tokens) / duration_s;
    }
    free(v);
}
