/* embed.cu - x (T,D) f32 = embedding rows of the step's tokens; zero where another rank holds the row.
 *
 * One block a row; a thread takes four neighbouring elements at a time. The table is row-major (Vr,D) and is
 * read once per row of the step. Limits: none beyond those of struct dims. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 256 };

template <typename T>
static __global__ void embed_rows(float *x, const int32_t *token, const T *table, int D, int vocab_first,
                                  int Vr)
{
    int64_t r = (int64_t)token[blockIdx.x] - vocab_first;
    bool here = r >= 0 && r < Vr, whole = D % 4 == 0;
    const T *from = table + (here ? r : 0) * D;
    float *to = x + (size_t)blockIdx.x * D;
    for (int i = threadIdx.x * 4; i < D; i += THREADS * 4) {
        float v[4] = {0, 0, 0, 0};
        if (here) row_load(v, from, i, D, whole);
        row_store(to, i, D, whole, v);
    }
}

extern "C" void cuda_embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
                           const struct dims *m)
{
    cudaStream_t stream = cuda_of(d)->stream;
    ASSERT(table->k == m->D && table->n >= m->Vr && table->dtype < DTYPE_COUNT);
    if (b->n_rows == 0) return;
    if (table->dtype == DTYPE_F32)
        embed_rows<<<b->n_rows, THREADS, 0, stream>>>(x, b->token, (const float *)table->data, m->D,
                                                      m->vocab_first, m->Vr);
    else if (table->dtype == DTYPE_F16)
        embed_rows<<<b->n_rows, THREADS, 0, stream>>>(x, b->token, (const __half *)table->data, m->D,
                                                      m->vocab_first, m->Vr);
    else
        embed_rows<<<b->n_rows, THREADS, 0, stream>>>(x, b->token, (const __nv_bfloat16 *)table->data, m->D,
                                                      m->vocab_first, m->Vr);
    cuda_check_launch("embed");
}
