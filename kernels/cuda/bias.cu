/* bias.cu - y (n_rows,n) f32 += bias (n) f32 in every row: the second half of cuda_linear.
 *
 * Few families have biases, so this is a pass of its own. A thread takes four neighbouring columns; rows as
 * in silu_mul.cu. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 256, GRID_ROWS = 65535 };

static __global__ void add_bias(float *y, const float *bias, int n_rows, int n)
{
    int i = ((int)blockIdx.x * THREADS + (int)threadIdx.x) * 4;
    bool whole = n % 4 == 0;
    if (i >= n) return;
    float b[4], v[4];
    row_load(b, bias, i, n, whole);
    for (int row = blockIdx.y; row < n_rows; row += gridDim.y) {
        row_load(v, y + (size_t)row * n, i, n, whole);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] += b[j];
        row_store(y + (size_t)row * n, i, n, whole, v);
    }
}

extern "C" void cuda_add_bias(struct device *d, float *y, const float *bias, int n_rows, int n)
{
    ASSERT(n_rows > 0 && n > 0);
    dim3 grid((n + THREADS * 4 - 1) / (THREADS * 4), n_rows < GRID_ROWS ? n_rows : GRID_ROWS);
    add_bias<<<grid, THREADS, 0, cuda_of(d)->stream>>>(y, bias, n_rows, n);
    cuda_check_launch("add_bias");
}
