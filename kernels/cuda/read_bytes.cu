/* read_bytes.cu - reads memory with 16-byte loads and nothing else: the rate that bounds every op of a decode
 * step. Threads stride over the whole range; the sum goes nowhere, but the compiler may not know that. */
#include "kernels/cuda/cuda.h"

enum { THREADS = 512, BLOCKS_PER_SM = 4, LOADS = 4 };

static __global__ void __launch_bounds__(THREADS) read_all(const uint4 *p, size_t n, bool keep)
{
    size_t stride = (size_t)gridDim.x * THREADS, i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    unsigned sum = 0;
    for (; i + (LOADS - 1) * stride < n; i += LOADS * stride) {
        uint4 v[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) v[j] = __ldcs(p + i + j * stride);
#pragma unroll
        for (int j = 0; j < LOADS; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += stride) sum += p[i].x;
    if (keep) ((unsigned *)p)[0] = sum; /* never: the caller's memory stays as it is */
}

extern "C" void cuda_read_bytes(struct device *d, const void *p, size_t bytes)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT((uintptr_t)p % sizeof(uint4) == 0);
    read_all<<<c->n_sms * BLOCKS_PER_SM, THREADS, 0, c->stream>>>((const uint4 *)p, bytes / sizeof(uint4),
                                                                  false);
    cuda_check_launch("read_bytes");
}
