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
    int n;                       /* of them allowed in this draw and loaded ... */
    int n_all;                   /* ... and the less likely ones that were not loaded */
    double *weight;              /* (vocab) of what was kept, in the order of the draw */
    int32_t *kept;               /* (vocab) */
    int32_t *count;              /* (vocab) all 0 between draws */
};

struct sampler *sampler_open(int vocab)
{
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    s->vocab = vocab;
    s->candidate = malloc((size_t)vocab * sizeof *s->candidate);
    s->weight = malloc((size_t)vocab * sizeof *s->weight);
    s->kept = malloc((size_t)vocab * sizeof *s->kept);
    s->count = calloc((size_t)vocab, sizeof *s->count);
    if (!s->candidate || !s->weight || !s->kept || !s->count)
        DIE(EXIT_CODE_MEMORY, NULL, "no memory for the sampler");
    return s;
}

void sampler_close(struct sampler *s)
{
    if (!s) return;
    free(s->candidate);
    free(s->weight);
    free(s->kept);
    free(s->count);
    free(s);
}

bool sampling_is_greedy(const struct sampling *p)
{
    return (p->temperature == 0 || p->top_k == 1) && p->repetition_penalty == 1 && p->presence_penalty == 0 &&
           p->frequency_penalty == 0 && p->n_bias == 0;
}

bool sampling_top_suffices(const struct sampling *p, int vocab)
{
    return p->top_k > 0 && p->top_k <= TOP_K_MAX && p->top_k < vocab && p->repetition_penalty == 1 &&
           p->presence_penalty == 0 && p->frequency_penalty == 0 && p->n_bias == 0;
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

/* Keskar et al.: once, however often a token occurred, in the prompt too. */
static void penalize_repetition(struct sampler *s, float r, const int32_t *history, int n_history)
{
    for (int i = 0; i < n_history; i++) {
        int32_t t = history[i];
        if (s->count[t]++) continue;
        float *logit = &s->candidate[t].logit;
        *logit = *logit > 0 ? *logit / r : *logit * r;
    }
    for (int i = 0; i < n_history; i++) s->count[history[i]] = 0;
}

/* OpenAI: mu[t] - count[t] * frequency - (count[t] > 0) * presence, of the answer so far. */
static void penalize_answer(struct sampler *s, const struct sampling *p, const int32_t *answer, int n_answer)
{
    for (int i = 0; i < n_answer; i++) s->count[answer[i]]++;
    for (int i = 0; i < n_answer; i++) {
        int32_t t = answer[i];
        if (s->count[t] == 0) continue;
        s->candidate[t].logit -= (float)(s->count[t] * p->frequency_penalty + p->presence_penalty);
        s->count[t] = 0;
    }
}

static void load(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                 int n_history)
{
    struct candidate *c = s->candidate;
    for (int i = 0; i < s->vocab; i++)
        c[i] = (struct candidate){.logit = logits[i] == logits[i] ? logits[i] : -INFINITY, .token = i};
    if (p->repetition_penalty != 1) penalize_repetition(s, (float)p->repetition_penalty, history, n_history);
    if ((p->presence_penalty != 0 || p->frequency_penalty != 0) && n_history > p->n_prompt)
        penalize_answer(s, p, history + p->n_prompt, n_history - p->n_prompt);
    for (int i = 0; i < p->n_bias; i++) c[p->bias[i].token].logit += p->bias[i].bias;
    s->n = s->n_all = s->vocab;
    if (!p->allowed) return;
    s->n = 0;
    for (int i = 0; i < s->vocab; i++)
        if (p->allowed[i / 32] >> i % 32 & 1) c[s->n++] = c[i];
    s->n_all = s->n;
    ASSERT(s->n > 0);
}

static void load_top(struct sampler *s, const struct best *top)
{
    s->n_all = s->vocab;
    for (s->n = 0; s->n < TOP_K_MAX && top[s->n].index >= 0; s->n++)
        s->candidate[s->n] = (struct candidate){top[s->n].value, top[s->n].index};
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
    for (int i = 0; i < s->n; i++) {
        double w = weight_of(p, s->candidate[i].logit, top);
        if (w < p->min_p || w == 0) continue;
        s->kept[n] = s->candidate[i].token;
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
    int left = s->n, most = p->top_k > 0 && p->top_k < s->n ? p->top_k : s->n, taken = 0, n = 0;
    bool cut = p->top_k > 0 && p->top_k <= s->n && s->n_all > most; /* there are less likely ones */
    double mass = 0;
    for (int i = s->n / 2 - 1; i >= 0; i--) sift(s->candidate, s->n, i);
    if (cut)
        while (taken < most) mass += take_best(s, p, top, &left, taken++);
    else
        for (int i = 0; i < s->n; i++) mass += weight_of(p, s->candidate[i].logit, top);
    double limit = p->top_p < 1 ? p->top_p * mass : INFINITY;
    for (; n < most; n++) {
        if (n == taken) take_best(s, p, top, &left, taken++);
        if (n > 0 && (*total >= limit || s->weight[n] < p->min_p || s->weight[n] == 0)) break;
        *total += s->weight[n];
    }
    return n;
}

/* Draws among what was loaded. */
static int32_t draw(struct sampler *s, const struct sampling *p, int position)
{
    struct candidate *c = s->candidate;
    if (p->temperature == 0 || p->top_k == 1) {
        int best = 0;
        for (int i = 1; i < s->n; i++)
            if (c[i].logit > c[best].logit) best = i;
        return c[best].token;
    }
    float top = c[0].logit;
    for (int i = 1; i < s->n; i++) top = c[i].logit > top ? c[i].logit : top;
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

int32_t sampler_draw(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                     int n_history, int position)
{
    load(s, p, logits, history, n_history);
    return draw(s, p, position);
}

int32_t sampler_draw_top(struct sampler *s, const struct sampling *p, const struct best *top, int position)
{
    ASSERT(sampling_top_suffices(p, s->vocab) && !p->allowed);
    load_top(s, top);
    return draw(s, p, position);
}

float sampler_logprobs(int vocab, const float *logits, int32_t token, struct sampler_logprob *top, int n_top)
{
    float best = -INFINITY;
    for (int i = 0; i < vocab; i++) best = logits[i] > best ? logits[i] : best;
    double sum = 0;
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        float logit = logits[i] == logits[i] ? logits[i] : -INFINITY;
        sum += logit == best ? 1 : exp((double)logit - best);
        if (n == n_top && (n == 0 || logit <= top[n - 1].logprob)) continue;
        int at = n < n_top ? n++ : n - 1; /* an insertion: few are wanted, and few of many pass the last */
        for (; at > 0 && logit > top[at - 1].logprob; at--) top[at] = top[at - 1];
        top[at] = (struct sampler_logprob){i, logit};
    }
    double log_sum = best + log(sum);
    for (int i = 0; i < n; i++)
        top[i].logprob = top[i].logprob == best ? (float)-log(sum) : (float)(top[i].logprob - log_sum);
    float logit = logits[token] == logits[token] ? logits[token] : -INFINITY;
    return logit == best ? (float)-log(sum) : (float)(logit - log_sum);
}
