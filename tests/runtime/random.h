/* random.h - repeatable numbers for tests: xorshift64* (Vigna 1402.6246). */
#ifndef RETRO_TESTS_RUNTIME_RANDOM_H
#define RETRO_TESTS_RUNTIME_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state; /* not 0 */
};

static inline uint64_t random_bits(struct random *r)
{
    uint64_t x = r->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    r->state = x;
    return x * 0x2545f4914f6cdd1du;
}

/* In low..high, both included. */
static inline int random_int(struct random *r, int low, int high)
{
    return low + (int)((random_bits(r) >> 33) % (uint64_t)(high - low + 1));
}

static inline double random_real(struct random *r) { return (double)(random_bits(r) >> 11) * 0x1p-53; }

#endif
