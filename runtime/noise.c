#include "runtime/noise.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

/* Steele et al., "Fast splittable pseudorandom number generators" (2014): the finaliser of SplitMix64. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void noise_open(struct noise *n, size_t extra)
{
    *n = (struct noise){.value = malloc((NOISE_PERIOD + extra) * sizeof *n->value), .extra = extra};
    if (!n->value) DIE(EXIT_CODE_MEMORY, NULL, "no memory for random numbers");
    for (size_t i = 0; i < NOISE_PERIOD; i++) /* uniform in +-sqrt(3): deviation 1 */
        n->value[i] = 1.7320508f * ((float)(mix(i) >> 40) * 0x1p-23f - 1);
    for (size_t i = 0; i < extra; i++) n->value[NOISE_PERIOD + i] = n->value[i % NOISE_PERIOD];
}

void noise_close(struct noise *n)
{
    free(n->value);
    *n = (struct noise){0};
}

const float *noise_row(const struct noise *n, const char *name, int64_t row)
{
    uint64_t hash = 0;
    for (; *name; name++) hash = mix(hash ^ (unsigned char)*name);
    return n->value + (hash + (uint64_t)row * NOISE_ROW) % NOISE_PERIOD;
}
