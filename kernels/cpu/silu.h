/* silu.h - out = gate * sigmoid(gate) * up on a run of elements, per instruction set. */
#ifndef RETRO_KERNELS_CPU_SILU_H
#define RETRO_KERNELS_CPU_SILU_H

#include "kernels/kernels.h"

/* Every element is computed alike wherever it stands in the run, so that cutting runs elsewhere changes no
 * bit. */
struct silu_table {
    void (*mul)(float *out, const float *gate, const float *up, int n);
};

extern const struct silu_table silu_portable, silu_avx2, silu_avx512;

static inline const struct silu_table *silu_table_of(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512) return &silu_avx512;
    if (isa == CPU_ISA_AVX2) return &silu_avx2;
#endif
    (void)isa;
    return &silu_portable;
}

#endif
