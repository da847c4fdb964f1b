/* row.cuh - rows of f32 four elements at a time, activations stored in their type, and sums over a block.
 *
 * Rows of n elements lie one after another, so a row starts 16-aligned only when n is a multiple of 4.
 * `whole` says so, the same for all threads: then four elements are one access. Else they are up to four
 * accesses, and those past the row's end are zero (loads) or left out (stores).
 *
 * Sums are in a fixed order that depends on the number of threads alone, never on the row or the grid. */
#ifndef RETRO_KERNELS_CUDA_ROW_CUH
#define RETRO_KERNELS_CUDA_ROW_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ float row_widen(float v) { return v; }
static __device__ __forceinline__ float row_widen(__half v) { return __half2float(v); }
static __device__ __forceinline__ float row_widen(__nv_bfloat16 v) { return __bfloat162float(v); }

static __device__ __forceinline__ void row_narrow(float *to, float v) { *to = v; }
static __device__ __forceinline__ void row_narrow(__half *to, float v) { *to = __float2half_rn(v); }
static __device__ __forceinline__ void row_narrow(__nv_bfloat16 *to, float v)
{
    *to = __float2bfloat16_rn(v);
}

/* Four elements as one access: 16 bytes of f32, 8 of the two-byte types. */
template <typename T> struct alignas(4 * sizeof(T)) row_four {
    T v[4];
};

template <typename T>
static __device__ __forceinline__ void row_load(float out[4], const T *row, int i, int n, bool whole)
{
    if (whole) {
        row_four<T> four = *reinterpret_cast<const row_four<T> *>(row + i);
#pragma unroll
        for (int j = 0; j < 4; j++) out[j] = row_widen(four.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) out[j] = i + j < n ? row_widen(row[i + j]) : 0.0f;
    }
}

template <typename T>
static __device__ __forceinline__ void row_store(T *row, int i, int n, bool whole, const float in[4])
{
    if (whole) {
        row_four<T> four;
#pragma unroll
        for (int j = 0; j < 4; j++) row_narrow(&four.v[j], in[j]);
        *reinterpret_cast<row_four<T> *>(row + i) = four;
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < n) row_narrow(row + i + j, in[j]);
    }
}

/* The sum of v over the block's threads (a multiple of 32), in all of them. `shared` holds 32 floats and is
 * free again after the caller's next barrier. */
static __device__ __forceinline__ float row_block_sum(float v, float *shared)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (lane == 0) shared[warp] = v;
    __syncthreads(); /* every warp's sum is there */
    v = lane < n_warps ? shared[lane] : 0.0f;
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

#endif
