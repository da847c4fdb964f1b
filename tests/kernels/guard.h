/* guard.h - buffers with canaries on both sides, random numbers, and the comparison all kernel tests use.
 *
 * A canary is a NaN with a payload no computation makes. guard_check() fails the test when one changed; a
 * buffer begins filled with canaries too, so that an element nobody wrote is seen as NaN by close_to(). */
#ifndef RETRO_TESTS_KERNELS_GUARD_H
#define RETRO_TESTS_KERNELS_GUARD_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum { GUARD_WORDS = 64 };
#define GUARD_CANARY UINT32_C(0x7fc0dead)

struct guard {
    uint32_t *memory;
    size_t bytes; /* of the payload */
};

/* `bytes` of payload, a multiple of 2, 4-aligned but on purpose not 64-aligned when `skew` (words) is given.
 */
static inline void *guard_open_skewed(struct guard *g, size_t bytes, size_t skew)
{
    size_t words = (bytes + 3) / 4 + 2 * GUARD_WORDS + skew;
    g->bytes = bytes;
    g->memory = malloc(words * 4);
    assert_non_null(g->memory);
    for (size_t i = 0; i < words; i++) g->memory[i] = GUARD_CANARY;
    g->memory += skew;
    return g->memory + GUARD_WORDS;
}
static inline void *guard_open(struct guard *g, size_t bytes) { return guard_open_skewed(g, bytes, 0); }

static inline bool guard_intact(const struct guard *g)
{
    const unsigned char *end = (const unsigned char *)(g->memory + GUARD_WORDS) + g->bytes;
    uint32_t canary = GUARD_CANARY;
    for (int i = 0; i < GUARD_WORDS; i++)
        if (g->memory[i] != canary) return false;
    size_t skip = g->bytes % 4; /* the word that the payload ends in */
    for (size_t i = 0; i < GUARD_WORDS * 4 - (skip ? 4 : 0); i++)
        if (end[i] != ((unsigned char *)&canary)[(skip + i) % 4]) return false;
    return true;
}

/* Checks and frees. */
static inline void guard_close_skewed(struct guard *g, size_t skew)
{
    assert_true(guard_intact(g));
    free(g->memory - skew);
}
static inline void guard_close(struct guard *g) { guard_close_skewed(g, 0); }

/* Uniform in [-1, 1); a fixed sequence for a seed on every machine. */
static inline float random_float(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)(*seed >> 40) / 8388608.0f - 1.0f;
}

static inline bool close_to(double got, double want, double tolerance)
{
    return fabs(got - want) <= tolerance;
}

/* Element i of an array of any type, as the exact double. */
static inline double element(const void *p, size_t i, enum dtype dtype)
{
    if (dtype == DTYPE_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return dtype == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}
static inline void set_element(void *p, size_t i, enum dtype dtype, float f)
{
    if (dtype == DTYPE_F32) ((float *)p)[i] = f;
    else ((uint16_t *)p)[i] = dtype == DTYPE_BF16 ? dtype_bf16_from_f32(f) : dtype_f16_from_f32(f);
}

/* The CPU device with an instruction set; NULL (and a line) when this machine does not run it. */
static inline struct device *cpu_device(enum cpu_isa isa, int n_threads, enum dtype act)
{
    struct device *d = NULL;
    struct reason why;
    struct device_options o = {.n_threads = n_threads, .isa = isa, .act = act};
    if (device_open(&d, DEVICE_CPU, &o, &why) == STATUS_OK) return d;
    assert_true(isa >= CPU_ISA_AVX2);
    print_message("not checked: %s\n", why.text);
    return NULL;
}

#endif
