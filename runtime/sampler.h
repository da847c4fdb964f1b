/* sampler.h - from logits to a token, on rank 0 only.
 *
 * Order: repetition penalty, temperature, top-k, top-p, min-p, draw. The random number is a hash of (seed,
 * request, position), so a token depends on nothing else: not on the batch, the ranks, or a pause in between.
 */
#ifndef RETRO_SAMPLER_H
#define RETRO_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

struct sampling {
    double temperature;        /* 0: greedy */
    int top_k;                 /* 0: off */
    double top_p;              /* 1: off */
    double min_p;              /* 0: off */
    double repetition_penalty; /* 1: off; Keskar et al. 1909.05858 */
    uint64_t seed, request;
};

struct sampler; /* scratch for one vocabulary */

struct sampler *sampler_open(int vocab);
void sampler_close(struct sampler *s);

/* True when the largest logit decides and nothing else is needed: the engine's `best` is the answer. */
bool sampling_is_greedy(const struct sampling *p);

/* Draws the token for `position`. logits (vocab) are not changed; history is what the penalty looks at. */
int32_t sampler_draw(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                     int n_history, int position);

/* Uniform in [0, 1), 53 bits; the hash that the draw uses. */
double sampler_uniform(uint64_t seed, uint64_t request, uint64_t position);

#endif
