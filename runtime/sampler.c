/* sampler.c - draws without sorting the vocabulary: a heap gives up its largest logits one by one, as many as
 * top-k or top-p keep (a full sort of 49,152 candidates takes longer than a decode step of a small model).
 * Without either, any order does and the draw runs over the ids. */
#include "runtime/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

struct candidate {
    float logit; /* never NaN */
    int32_t token;
};

struct sampler {
    int vocab;
    struct candidate *candidate; /* (vocab) */
    double *weight;              /* (vocab) of what was kept, in the order of the draw */
    int32_t *kept;               /* (vocab) */
    unsigned char *seen;         /* (vocab) */
};

struct sampler *sampler_open(int vocab)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    s->vocab = vocab;
    s->candidate = malloc((size_t)vocab * sizeof *s->candidate);
    s->weight = malloc((size_t)vocab * sizeof *s->weight);
    s->kept = malloc((size_t)vocab * sizeof *s->kept);
    s->seen = calloc((size_t)vocab, 1);
    if (!s->candidate || !s->weight || !s->kept || !s->seen)
        DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    return s;
}

void sampler_close(struct sampler *s)
{
    if (!s) return;
    free(s->candidate);
    free(s->weight);
    free(s->kept);
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
static bool before(struct candidate a, struct candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

/* Restores the heap of c[0..n) below i: no candidate stands before its parent. */
static void sift(struct candidate *c, int n, int i)
{
    if (i >= n) return;
    struct candidate moved = c[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(c[child + 1], c[child])) child++;
        if (!before(c[child], moved)) break;
        c[i] = c[child];
    }
    c[i] = moved;
}

static void load(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                 int n_history)
{
    for (int i = 0; i < s->vocab; i++)
        s->candidate[i] =
            (struct candidate){.logit = logits[i] == logits[i] ? logits[i] : -INFINITY, .token = i};
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

/* exp((logit - top) / temperature): 1 for the most likely, so that min_p is a bound on the weight itself. */
static double weight_of(const struct sampling *p, float logit, float top)
{
    return logit == top ? 1 : exp(((double)logit - top) / p->temperature);
}

/* Everything that min_p leaves, in the order of the ids. */
static int keep_by_weight(struct sampler *s, const struct sampling *p, float top, double *total)
{
    int n = 0;
    for (int i = 0; i < s->vocab; i++) {
        double w = weight_of(p, s->candidate[i].logit, top);
        if (w < p->min_p) continue;
        s->kept[n] = i;
        s->weight[n++] = w;
        *total += w;
    }
    return n;
}

/* Moves the best of the heap c[0..*left) to `rank`; returns its weight. */
static double take_best(struct sampler *s, const struct sampling *p, float top, int *left, int rank)
{
    struct candidate *c = s->candidate;
    s->kept[rank] = c[0].token;
    s->weight[rank] = weight_of(p, c[0].logit, top);
    c[0] = c[--*left];
    sift(c, *left, 0);
    return s->weight[rank];
}

/* The most likely top_k; of these as few as reach top_p of their sum; of these what min_p leaves. Most likely
 * first. */
static int keep_by_rank(struct sampler *s, const struct sampling *p, float top, double *total)
{
    int left = s->vocab, most = p->top_k > 0 && p->top_k < s->vocab ? p->top_k : s->vocab, taken = 0, n = 0;
    double mass = 0;
    for (int i = s->vocab / 2 - 1; i >= 0; i--) sift(s->candidate, s->vocab, i);
    if (most < s->vocab)
        while (taken < most) mass += take_best(s, p, top, &left, taken++);
    else
        for (int i = 0; i < s->vocab; i++) mass += weight_of(p, s->candidate[i].logit, top);
    double limit = p->top_p < 1 ? p->top_p * mass : INFINITY;
    for (; n < most; n++) {
        if (n == taken) take_best(s, p, top, &left, taken++);
        if (n > 0 && (*total >= limit || s->weight[n] < p->min_p)) break;
        *total += s->weight[n];
    }
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
    float top = c[0].logit;
    for (int i = 1; i < s->vocab; i++) top = c[i].logit > top ? c[i].logit : top;
    double total = 0, sum = 0;
    bool ranked = p->top_k > 0 || p->top_p < 1;
    int n = ranked ? keep_by_rank(s, p, top, &total) : keep_by_weight(s, p, top, &total);
    double u = sampler_uniform(p->seed, p->request, (uint64_t)position) * total;
    for (int i = 0; i < n; i++) {
        sum += s->weight[i];
        if (u < sum) return s->kept[i];
    }
    return s->kept[n - 1];
}
