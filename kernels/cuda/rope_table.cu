/* rope_table.cu - cos and sin of f32(position) * inv_freq, each times `factor`: table (T,E/2,2) f32.
 *
 * One thread an angle. The product is rounded to f32 before the functions see it, as on the CPU (there is
 * why), so it must not be contracted into what follows. sincosf is the accurate one: angles reach the context
 * length, far beyond what the hardware's approximation is good for; its reduction of large angles uses a few
 * words of stack. */
#include "kernels/cuda/cuda.h"

enum { THREADS = 128 };

static __global__ void angles(float2 *table, const int32_t *position, const float *inv_freq, float factor,
                              int half, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float s, c;
    sincosf(__fmul_rn((float)position[i / half], inv_freq[i % half]), &s, &c);
    table[i] = make_float2(c * factor, s * factor);
}

extern "C" void cuda_rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                                float factor, const struct dims *m)
{
    int64_t n = (int64_t)b->n_rows * (m->E / 2);
    ASSERT(m->E % 2 == 0);
    if (n == 0) return;
    angles<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, cuda_of(d)->stream>>>(
        (float2 *)table, b->position, inv_freq, factor, m->E / 2, n);
    cuda_check_launch("rope_table");
}
