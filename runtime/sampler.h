/* sampler.h - from logits to a token, on rank 0 only.
 *
 * Order: repetition penalty, presence and frequency penalty, bias, allowed tokens, temperature, top-k, top-p,
 * min-p, draw. The random number is a hash of (seed, request, position), so a token depends on nothing else:
 * not on the batch, the ranks, or a pause in between. Log-probabilities are those of the model itself: of the
 * logits before all of this. */
#ifndef RETRO_SAMPLER_H
#define RETRO_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Added to one token's logit. */
struct sampling_bias {
    int32_t token;
    float bias;
};

struct sampling {
    double temperature;        /* 0: greedy */
    int top_k;                 /* 0: off */
    double top_p;              /* 1: off */
    double min_p;              /* 0: off */
    double repetition_penalty; /* 1: off; Keskar et al. 1909.05858 */
    double presence_penalty;   /* taken off once from tokens of the answer so far; 0: off; OpenAI's formula */
    double frequency_penalty;  /* taken off once for every time that they came; 0: off */
    int n_prompt;              /* of the history: what comes after is the answer */
    const struct sampling_bias *bias; /* (n_bias), borrowed */
    int n_bias;
    const uint32_t *allowed; /* bit t % 32 of word t / 32: token t may be drawn; NULL: all; borrowed */
    uint64_t seed, request;
};

struct sampler; /* scratch for one vocabulary */

struct sampler *sampler_open(int vocab);
void sampler_close(struct sampler *s);

/* True when the largest logit decides and nothing else is needed: the engine's `best` is the answer. It looks
 * at everything but `allowed`, which changes from step to step. */
bool sampling_is_greedy(const struct sampling *p);

/* Draws the token for `position`. logits (vocab) are not changed; history is what the penalties look at. At
 * least one token must be allowed. */
int32_t sampler_draw(struct sampler *s, const struct sampling *p, const float *logits, const int32_t *history,
                     int n_history, int position);

/* True when the TOP_K_MAX largest logits decide: sampler_draw_top then draws what sampler_draw would. It
 * looks at everything but `allowed`. */
bool sampling_top_suffices(const struct sampling *p, int vocab);
/* `top` (TOP_K_MAX) as engine_output has it; `p` must not restrict the tokens (allowed). */
int32_t sampler_draw_top(struct sampler *s, const struct sampling *p, const struct best *top, int position);

struct sampler_logprob {
    int32_t token;
    float logprob; /* natural; -INFINITY where the logit is -inf or NaN */
};

/* Natural log of the softmax of `logits` (vocab) at `token`, and the n_top most likely tokens, best first,
 * the lower id first among equals. n_top <= vocab. */
float sampler_logprobs(int vocab, const float *logits, int32_t token, struct sampler_logprob *top, int n_top);

/* Uniform in [0, 1), 53 bits; the hash that the draw uses. */
double sampler_uniform(uint64_t seed, uint64_t request, uint64_t position);

#endif
