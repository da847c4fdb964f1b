/* gather.cu - rows of a step put together: those whose logits are wanted.
 *
 * One block a row, which is read and written once; in words of 16 bytes where rows consist of these. */
#include "kernels/cuda/cuda.h"

enum { THREADS = 256 };

template <typename Word>
static __global__ void gather_rows(Word *to, const Word *from, const int32_t *row, size_t n)
{
    to += blockIdx.x * n;
    from += (size_t)row[blockIdx.x] * n;
    for (size_t i = threadIdx.x; i < n; i += THREADS) to[i] = from[i];
}

extern "C" void cuda_gather(struct device *d, void *to, const void *from, size_t row_bytes,
                            const struct batch *b)
{
    cudaStream_t stream = cuda_of(d)->stream;
    ASSERT(row_bytes % sizeof(int) == 0);
    if (b->n_out == 0) return;
    if (((uintptr_t)to | (uintptr_t)from | row_bytes) % sizeof(uint4) == 0)
        gather_rows<<<b->n_out, THREADS, 0, stream>>>((uint4 *)to, (const uint4 *)from, b->out_row,
                                                      row_bytes / sizeof(uint4));
    else
        gather_rows<<<b->n_out, THREADS, 0, stream>>>((int *)to, (const int *)from, b->out_row,
                                                      row_bytes / sizeof(int));
    cuda_check_launch("gather");
}
