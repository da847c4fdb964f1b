#include "runtime/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

struct candidate {
    float logit;
    int32_t token;
    double weight;
};

struct sampler {
    int vocab;
    struct candidate *candidate; /* (vocab) */
    unsigned char *seen;         /* (vocab) */
};

struct sampler *sampler_open(int vocab)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    s->vocab = vocab;
    s->candidate = malloc((size_t)vocab * sizeof *s->candidate);
    s->seen = calloc((size_t)vocab, 1);
    if (!s->candidate || !s->seen) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    return s;
}

void sampler_close(struct sampler *s)
{
    if (!s) return;
    free(s->candidate);
    free(s->seen);
    free(s);
}

bool sampling_is_greedy(const struct sampling *p)
{
    return (p->temperature == 0 || p->top_k == 1) && p->repetition_penalty == 1;
}

/* splitmix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit. */
static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double sampler_uniform(uint64_t seed, uint64_t request, uint64_t position)
{
    return (double)(mix(mix(mix(seed) + request) + position) >> 11) * 0x1p-53;
}

/* Most likely first; the lower id first among equals, so that the order is one on every machine. */
static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

static void load(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                 int n_history)
{
    for (int i = 0; i < s->vocab; i++) s->candidate[i] = (struct candidate){.logit = logits[i], .token = i};
    if (p->repetition_penalty == 1) return;
    float r = (float)p->repetition_penalty;
    for (int i = 0; i < n_history; i++) {
        int32_t t = history[i];
        if (s->seen[t]) continue;
        s->seen[t] = 1;
        s->candidate[t].logit = logits[t] > 0 ? logits[t] / r : logits[t] * r;
    }
    for (int i = 0; i < n_history; i++) s->seen[history[i]] = 0;
}

/* How many of the sorted candidates stay; weights become exp((logit - max) / temperature). */
static int truncate_candidates(struct sampler *s, const struct sampling *p, double *total)
{
    struct candidate *c = s->candidate;
    int n = p->top_k > 0 && p->top_k < s->vocab ? p->top_k : s->vocab;
    *total = 0;
    for (int i = 0; i < n; i++)
        *total += c[i].weight = exp(((double)c[i].logit - c[0].logit) / p->temperature);
    if (p->top_p < 1) {
        double sum = 0, limit = p->top_p * *total;
        int kept = 0;
        while (kept < n && (kept == 0 || sum < limit)) sum += c[kept++].weight;
        n = kept;
        *total = sum;
    }
    /* The most likely weighs 1, so min_p is a bound on the weight itself. */
    while (n > 1 && c[n - 1].weight < p->min_p) *total -= c[--n].weight;
    return n;
}

int32_t sampler_draw(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                     int n_history, int position)
{
    load(s, p, logits, history, n_history);
    struct candidate *c = s->candidate;
    if (p->temperature == 0 || p->top_k == 1) {
        int best = 0;
        for (int i = 1; i < s->vocab; i++)
            if (c[i].logit > c[best].logit) best = i;
        return best;
    }
    qsort(c, (size_t)s->vocab, sizeof *c, by_logit);
    double total, sum = 0;
    int n = truncate_candidates(s, p, &total);
    double u = sampler_uniform(p->seed, p->request, (uint64_t)position) * total;
    for (int i = 0; i < n; i++) {
        sum += c[i].weight;
        if (u < sum) return c[i].token;
    }
    return c[n - 1].token;
}
