/* sum.c - the sum over ranks of arrays that lie side by side, in rank order: what an all-reduce between CPUs
 * computes.
 *
 * Every element is added up in f32 in the order of the ranks and rounded once to its type, so its bits depend
 * neither on the array's length nor on which rank computes it. `out` may be the first rank's array. */
#include <string.h>

#include "comm/group.h"
#include "runtime/base/die.h"

enum { RUN = 512 }; /* elements held in f32 while the ranks' two-byte elements are added */

static void sum_f32(float *out, const float *in, size_t stride, int n_ranks, size_t n)
{
    if (out != in) memcpy(out, in, n * sizeof *out);
    for (int r = 1; r < n_ranks; r++) {
        const float *other = in + (size_t)r * stride;
        for (size_t i = 0; i < n; i++) out[i] += other[i];
    }
}

static void sum_bf16(uint16_t *out, const uint16_t *in, size_t stride, int n_ranks, size_t n)
{
    float sum[RUN];
    for (size_t at = 0; at < n; at += RUN) {
        size_t run = n - at < RUN ? n - at : RUN;
        for (size_t i = 0; i < run; i++) sum[i] = dtype_f32_from_bf16(in[at + i]);
        for (int r = 1; r < n_ranks; r++) {
            const uint16_t *other = in + (size_t)r * stride + at;
            for (size_t i = 0; i < run; i++) sum[i] += dtype_f32_from_bf16(other[i]);
        }
        for (size_t i = 0; i < run; i++) out[at + i] = dtype_bf16_from_f32(sum[i]);
    }
}

void sum_ranks(void *out, const void *in, size_t stride, int n_ranks, size_t first, size_t n,
               enum dtype dtype)
{
    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    if (dtype == DTYPE_F32) sum_f32(out, (const float *)in + first, stride, n_ranks, n);
    else sum_bf16(out, (const uint16_t *)in + first, stride, n_ranks, n);
}
