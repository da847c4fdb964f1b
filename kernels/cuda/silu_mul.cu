/* silu_mul.cu - out (T,Fr) act = gate * sigmoid(gate) * up; gate_up (T,2*Fr) f32 in rows [gate | up].
 *
 * A thread takes four neighbouring columns of a row; blocks tile the columns (x) and the rows (y, in turns
 * where there are more than a grid may have). Bytes moved: gate_up in, out out. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 256, GRID_ROWS = 65535 };

template <typename T> static __global__ void silu_mul(T *out, const float *gate_up, int n_rows, int Fr)
{
    int i = ((int)blockIdx.x * THREADS + (int)threadIdx.x) * 4;
    bool whole = Fr % 4 == 0;
    if (i >= Fr) return;
    for (int row = blockIdx.y; row < n_rows; row += gridDim.y) {
        const float *from = gate_up + (size_t)row * 2 * Fr;
        float gate[4], up[4];
        row_load(gate, from, i, Fr, whole);
        row_load(up, from + Fr, i, Fr, whole);
#pragma unroll
        for (int j = 0; j < 4; j++) gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
        row_store(out + (size_t)row * Fr, i, Fr, whole, gate);
    }
}

extern "C" void cuda_silu_mul(struct device *d, void *out, const float *gate_up, int n_rows,
                              const struct dims *m)
{
    cudaStream_t stream = cuda_of(d)->stream;
    ASSERT(m->act == cuda_of(d)->act);
    if (n_rows == 0 || m->Fr == 0) return;
    dim3 grid((m->Fr + THREADS * 4 - 1) / (THREADS * 4), n_rows < GRID_ROWS ? n_rows : GRID_ROWS);
    if (m->act == DTYPE_F32) silu_mul<<<grid, THREADS, 0, stream>>>((float *)out, gate_up, n_rows, m->Fr);
    else if (m->act == DTYPE_F16)
        silu_mul<<<grid, THREADS, 0, stream>>>((__half *)out, gate_up, n_rows, m->Fr);
    else silu_mul<<<grid, THREADS, 0, stream>>>((__nv_bfloat16 *)out, gate_up, n_rows, m->Fr);
    cuda_check_launch("silu_mul");
}
