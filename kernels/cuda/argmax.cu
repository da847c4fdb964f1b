/* argmax.cu - value and index of the largest logit of each row; the lower index wins a tie. NaN is never the
 * largest unless nothing else is there; then index 0 is returned.
 *
 * One block a row: logits (n_out,Vr) f32 are read once. A single row of a large vocabulary therefore runs on
 * one SM; it is read at one SM's rate, which for 128k logits is a few microseconds. */
#include <math_constants.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 1024 };

struct found {
    float value;
    int index; /* INT32_MAX: nothing yet */
};

static __device__ __forceinline__ void keep_better(struct found *a, float value, int index)
{
    if (value > a->value || (value == a->value && index < a->index)) *a = {value, index};
}

static __device__ __forceinline__ void best_of_warp(struct found *a)
{
#pragma unroll
    for (int step = 16; step; step /= 2) {
        float value = __shfl_xor_sync(0xffffffffu, a->value, step);
        int index = __shfl_xor_sync(0xffffffffu, a->index, step);
        keep_better(a, value, index);
    }
}

static __global__ void __launch_bounds__(THREADS) argmax_rows(struct best *best, const float *logits, int n)
{
    __shared__ struct found of_warp[THREADS / 32];
    const float *x = logits + (size_t)blockIdx.x * n;
    struct found a = {-CUDART_INF_F, INT32_MAX};
    bool whole = n % 4 == 0;
    for (int i = threadIdx.x * 4; i < n; i += THREADS * 4) {
        float v[4];
        row_load(v, x, i, n, whole);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < n) keep_better(&a, v[j], i + j);
    }
    best_of_warp(&a);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = a;
    __syncthreads(); /* every warp's best is there */
    if (threadIdx.x >= 32) return;
    a = of_warp[threadIdx.x];
    best_of_warp(&a);
    if (threadIdx.x > 0) return;
    if (a.index == INT32_MAX) a.index = 0;
    best[blockIdx.x].value = x[a.index]; /* a -0 or NaN as it stands there */
    best[blockIdx.x].index = a.index;
}

extern "C" void cuda_argmax(struct device *d, struct best *best, const float *logits, int n_out,
                            const struct dims *m)
{
    ASSERT(m->Vr > 0);
    if (n_out == 0) return;
    argmax_rows<<<n_out, THREADS, 0, cuda_of(d)->stream>>>(best, logits, m->Vr);
    cuda_check_launch("argmax");
}
