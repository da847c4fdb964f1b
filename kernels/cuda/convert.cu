/* convert.cu - elements of one type as another, rounded once: f32 to a two-byte type and back. Bytes moved:
 * each element in and out once, four at a time where the arrays are aligned (those of the arena are). */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 256 };

template <typename To, typename From>
static __global__ void __launch_bounds__(THREADS) convert(To *out, const From *in, size_t n)
{
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= n) return;
    if (i + 4 <= n) {
        row_four<From> from = *reinterpret_cast<const row_four<From> *>(in + i);
        row_four<To> to;
#pragma unroll
        for (int j = 0; j < 4; j++) row_narrow(&to.v[j], row_widen(from.v[j]));
        *reinterpret_cast<row_four<To> *>(out + i) = to;
        return;
    }
    for (size_t j = i; j < n; j++) row_narrow(out + j, row_widen(in[j]));
}

template <typename To, typename From>
static void launch(struct device *d, void *out, const void *in, size_t n)
{
    convert<<<(unsigned)((n + THREADS * 4 - 1) / (THREADS * 4)), THREADS, 0, cuda_of(d)->stream>>>(
        (To *)out, (const From *)in, n);
}

extern "C" void cuda_convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from,
                             size_t n)
{
    ASSERT((to == DTYPE_F32) != (from == DTYPE_F32) && n < (size_t)INT32_MAX * THREADS);
    ASSERT((uintptr_t)out % 16 == 0 && (uintptr_t)in % 16 == 0);
    if (n == 0) return;
    if (to == DTYPE_BF16) launch<__nv_bfloat16, float>(d, out, in, n);
    else if (to == DTYPE_F16) launch<__half, float>(d, out, in, n);
    else if (from == DTYPE_BF16) launch<float, __nv_bfloat16>(d, out, in, n);
    else launch<float, __half>(d, out, in, n);
    cuda_check_launch("convert");
}
