/* norm.cu - RMSNorm with the residual addition before it: x += delta; h = x / sqrt(mean(x^2) + eps) * weight
 * (Zhang & Sennrich 2019, arXiv 1910.07467, equation 4). x, delta (T,D) f32, weight (D) f32, h (T,D) act.
 *
 * One block a row; x is read once, kept in registers up to KEPT elements a thread, and what is longer is read
 * again (from cache). Bytes moved: x, delta and weight in, x (when delta is added in place) and h out. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum {
    THREADS = 512,
    CHUNKS = 4, /* fours a thread keeps: rows up to 8192 elements stay in registers */
};

struct row_in {
    float *x;
    const float *delta; /* or NULL */
    bool whole;
    int D;
};

/* The four elements at i of x (+ delta). */
static __device__ __forceinline__ void take(float v[4], const struct row_in &r, int i)
{
    row_load(v, r.x, i, r.D, r.whole);
    if (!r.delta) return;
    float more[4];
    row_load(more, r.delta, i, r.D, r.whole);
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] += more[j];
}

template <typename T>
static __device__ __forceinline__ void give(T *h, const float v[4], const float w[4], float inverse,
                                            const struct row_in &r, int i)
{
    float y[4];
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = v[j] * inverse * w[j];
    row_store(h, i, r.D, r.whole, y);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    norm_rows(T *h, float *x, const float *delta, const float *weight, int D, float eps)
{
    __shared__ float sums[32];
    size_t from = (size_t)blockIdx.x * D;
    struct row_in r = {x + from, delta ? delta + from : NULL, D % 4 == 0, D};
    h += from;
    float kept[CHUNKS][4], w[CHUNKS][4], sum = 0; /* weights set out with x, not after the sum */
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int i = (c * THREADS + (int)threadIdx.x) * 4;
        if (i >= D) break;
        row_load(w[c], weight, i, D, r.whole);
        take(kept[c], r, i);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += kept[c][j] * kept[c][j];
        if (r.delta) row_store(r.x, i, D, r.whole, kept[c]);
    }
    for (int i = (CHUNKS * THREADS + (int)threadIdx.x) * 4; i < D; i += THREADS * 4) {
        float v[4];
        take(v, r, i);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += v[j] * v[j];
        if (r.delta) row_store(r.x, i, D, r.whole, v);
    }
    float inverse = 1.0f / sqrtf(row_block_sum(sum, sums) / (float)D + eps);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int i = (c * THREADS + (int)threadIdx.x) * 4;
        if (i >= D) break;
        give(h, kept[c], w[c], inverse, r, i);
    }
    r.delta = NULL; /* x holds the sum already; each thread reads back what it wrote itself */
    for (int i = (CHUNKS * THREADS + (int)threadIdx.x) * 4; i < D; i += THREADS * 4) {
        float v[4], w_i[4];
        take(v, r, i);
        row_load(w_i, weight, i, D, r.whole);
        give(h, v, w_i, inverse, r, i);
    }
}

extern "C" void cuda_add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight,
                              int n_rows, const struct dims *m)
{
    cudaStream_t stream = cuda_of(d)->stream;
    ASSERT(m->D > 0 && m->act == cuda_of(d)->act);
    if (n_rows == 0) return;
    if (m->act == DTYPE_F32)
        norm_rows<<<n_rows, THREADS, 0, stream>>>((float *)h, x, delta, weight, m->D, m->norm_eps);
    else if (m->act == DTYPE_F16)
        norm_rows<<<n_rows, THREADS, 0, stream>>>((__half *)h, x, delta, weight, m->D, m->norm_eps);
    else norm_rows<<<n_rows, THREADS, 0, stream>>>((__nv_bfloat16 *)h, x, delta, weight, m->D, m->norm_eps);
    cuda_check_launch("norm");
}
