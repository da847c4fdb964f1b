/* sample.h - RETRO_KERNEL_SAMPLE=N: of a test with very many cases one in N is run, by the sum of the case's parameters,
 * so that each value of each of them comes up. For suites where all of them take too long (sanitize). */
#ifndef RETRO_TESTS_KERNELS_SAMPLE_H
#define RETRO_TESTS_KERNELS_SAMPLE_H

#include <stdbool.h>
#include <stdlib.h>

static inline bool in_sample(int sum)
{
    const char *n = getenv("RETRO_KERNEL_SAMPLE");
    return !n || atoi(n) <= 1 || sum % atoi(n) == 0;
}

#endif
