/* linear_few.cu - y = x W^T (+ bias) for up to 16 rows of a 16-bit type: a decode step's products, which are bound by
 * reading W. W (n,k) row-major, x (rows,k), y (rows,n) f32; products in the tensor cores, sums in f32.
 *
 * A block is 16 outputs for all rows; its warps share k, AHEAD windows of 32 in turn. In a window lane (g, t) reads
 * elements 8t .. 8t+7 of weight rows g and g+8 and of the row g of x, 16 bytes each. An mma sums over k in whatever order
 * both factors have, so these eight serve as the pairs 2t and 2t+8 of two of them and nothing is moved between lanes. The
 * warps' sums are added in order.
 *
 * Invariants: a row's bits depend on the row and on W: not on the rows beside it. Limits: k a multiple of 8; matrices
 * of at most FEW_BYTES. Bytes moved: W once; x once for every 16 outputs, from the second block on out of L2.
 *
 * Why not for all: on an H200, 1 and 8 rows of bf16, in a graph, microseconds of this and of cuBLAS: 960 x 576 2.2 and 3.5,
 * 3072 x 576 2.9 and 3.8, 576 x 1536 4.0 and 4.7, 8192 x 1024 6.1 and 6.3; but 6144 x 4096 18 and 15, 28672 x 4096 67
 * and 56. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

enum {
    WARPS = 16,
    THREADS = WARPS * 32,
    OUTPUTS = 16,
    AHEAD = 2, /* windows of a warp on their way at once: 4 KiB of weights, or 64 KiB of a block */
    FEW_BYTES = 16 << 20,
};

/* The eight elements at e of a row, zeros past its end. */
template <typename T> static __device__ __forceinline__ uint4 piece(const T *row, int e, bool valid)
{
    return valid ? *reinterpret_cast<const uint4 *>(row + e) : uint4{0, 0, 0, 0};
}
template <typename T> static __device__ __forceinline__ uint4 weights(const T *row, int e, bool valid)
{
    return valid ? __ldcs(reinterpret_cast<const uint4 *>(row + e)) : uint4{0, 0, 0, 0};
}

/* GROUPS: of eight rows. */
template <typename T, int GROUPS>
static __global__ void __launch_bounds__(THREADS)
    linear_few(float *y, const T *x, const T *w, const float *bias, int n, int k, int n_rows)
{
    __shared__ float sums[WARPS][GROUPS * 8][OUTPUTS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int first = (int)blockIdx.x * OUTPUTS;
    const T *w_row[2] = {w + (size_t)min(first + g, n - 1) * (size_t)k,
                         w + (size_t)min(first + g + 8, n - 1) * (size_t)k};
    float c[GROUPS][4] = {};
    for (int from = warp * AHEAD * 32; from < k; from += WARPS * AHEAD * 32) {
        uint4 a[AHEAD][2], b[AHEAD][GROUPS];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int e = from + u * 32 + t * 8;
            a[u][0] = weights(w_row[0], e, e < k);
            a[u][1] = weights(w_row[1], e, e < k);
#pragma unroll
            for (int i = 0; i < GROUPS; i++)
                b[u][i] = piece(x + (size_t)(i * 8 + g) * (size_t)k, e, e < k && i * 8 + g < n_rows);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const uint32_t low[4] = {a[u][0].x, a[u][1].x, a[u][0].y, a[u][1].y},
                           high[4] = {a[u][0].z, a[u][1].z, a[u][0].w, a[u][1].w};
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
                mma<T>(c[i], low, b[u][i].x, b[u][i].y);
                mma<T>(c[i], high, b[u][i].z, b[u][i].w);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[warp][i * 8 + t * 2 + j % 2][g + j / 2 * 8] = c[i][j];
    __syncthreads(); /* every warp's sums are there */
    int row = threadIdx.x / OUTPUTS, out = first + (int)threadIdx.x % OUTPUTS;
    if (row >= n_rows || out >= n) return;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += sums[i][row][threadIdx.x % OUTPUTS];
    y[(size_t)row * (size_t)n + (size_t)out] = bias ? sum + bias[out] : sum;
}

template <typename T>
static void launch(float *y, const void *x, const struct matrix *w, const float *bias, int n_rows,
                   cudaStream_t stream)
{
    unsigned blocks = (unsigned)((w->n + OUTPUTS - 1) / OUTPUTS);
    const T *from = (const T *)x, *weights = (const T *)w->data;
    if (n_rows <= 8)
        linear_few<T, 1><<<blocks, THREADS, 0, stream>>>(y, from, weights, bias, w->n, w->k, n_rows);
    else linear_few<T, 2><<<blocks, THREADS, 0, stream>>>(y, from, weights, bias, w->n, w->k, n_rows);
}

extern "C" bool cuda_linear_few(struct device *d, float *y, const void *x, const struct matrix *w,
                                const float *bias, int n_rows)
{
    if (n_rows > 16 || w->dtype == DTYPE_F32 || w->k % 8 || (size_t)w->n * (size_t)w->k * 2 > FEW_BYTES)
        return false;
    ASSERT((uintptr_t)x % 16 == 0 && (uintptr_t)w->data % 16 == 0);
    cudaStream_t stream = cuda_of(d)->stream;
    if (w->dtype == DTYPE_BF16) launch<__nv_bfloat16>(y, x, w, bias, n_rows, stream);
    else launch<__half>(y, x, w, bias, n_rows, stream);
    cuda_check_launch("linear");
    return true;
}
