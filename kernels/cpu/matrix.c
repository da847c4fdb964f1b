/* matrix.c - weights from host memory into the packed layout of linear.h, by the threads that will read them,
 * so that first-touched pages lie near those threads. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "runtime/base/die.h"

size_t cpu_matrix_bytes(struct device *d, enum dtype dtype, int n, int k)
{
    (void)d;
    ASSERT(n > 0 && k > 0);
    return (size_t)linear_blocks(n) * linear_block_bytes(dtype, k);
}

struct put {
    struct matrix *w;
    const char *src;
    enum dtype src_dtype;
    size_t src_stride;
    int row0, row1, n_threads;
};

static uint16_t narrow(float f, enum dtype to)
{
    return to == DTYPE_BF16 ? dtype_bf16_from_f32(f) : dtype_f16_from_f32(f);
}

/* Inputs [i0,i1) of one row. */
static void put_span(const struct put *p, char *block, int lane, const char *src, int i0, int i1)
{
    enum dtype to = p->w->dtype, from = p->src_dtype;
    size_t bytes = dtype_bytes(to), src_bytes = dtype_bytes(from);
    for (int i = i0; i < i1; i++) {
        char *at = block + linear_index(to, lane, i) * bytes;
        const char *x = src + (size_t)i * src_bytes;
        if (from == to) {
            memcpy(at, x, bytes);
        } else {
            float f = linear_widen(x, from);
            uint16_t h = to == DTYPE_F32 ? 0 : narrow(f, to);
            memcpy(at, to == DTYPE_F32 ? (const void *)&f : (const void *)&h, bytes);
        }
    }
}

/* Any types, sixteen inputs of all rows of a block at a time: whole cache lines are read and written. */
static void put_any(const struct put *p, char *block, int lane0, int lanes, const char *src)
{
    const struct matrix *w = p->w;
    size_t stride = p->src_stride * dtype_bytes(p->src_dtype), bytes = dtype_bytes(w->dtype);
    for (int i = 0; i < w->k; i += 16)
        for (int lane = 0; lane < lanes; lane++)
            put_span(p, block, lane0 + lane, src + (size_t)lane * stride, i, w->k - i < 16 ? w->k : i + 16);
    if (linear_k_stored(w->dtype, w->k) > w->k)
        for (int lane = lane0; lane < lane0 + lanes; lane++)
            memset(block + linear_index(w->dtype, lane, w->k) * bytes, 0, bytes);
}

/* bf16 to bf16, by far the most common: pairs of inputs move as one word. Sixteen pairs of all rows of a
 * block at a time, as above. */
static void put_pairs(const struct put *p, char *block, int lane0, int lanes, const char *src)
{
    int pairs = p->w->k / 2;
    size_t stride = p->src_stride * 2;
    for (int first = 0; first < pairs; first += 16) {
        int end = first + 16 < pairs ? first + 16 : pairs;
        for (int lane = 0; lane < lanes; lane++) {
            const char *from = src + (size_t)lane * stride;
            for (int i = first; i < end; i++)
                memcpy(block + ((size_t)i * LINEAR_BLOCK + (size_t)(lane0 + lane)) * 4, from + (size_t)i * 4,
                       4);
        }
    }
    if (p->w->k & 1)
        for (int lane = 0; lane < lanes; lane++) {
            char *to = block + ((size_t)pairs * LINEAR_BLOCK + (size_t)(lane0 + lane)) * 4;
            memcpy(to, src + (size_t)lane * stride + (size_t)pairs * 4, 2);
            memset(to + 2, 0, 2);
        }
}

static void put_blocks(void *arg, int task, int thread)
{
    (void)thread;
    const struct put *p = arg;
    const struct matrix *w = p->w;
    int blocks = linear_blocks(w->n), end = cpu_share(blocks, task + 1, p->n_threads);
    for (int block = cpu_share(blocks, task, p->n_threads); block < end; block++) {
        int row0 = block * LINEAR_BLOCK, row1 = row0 + LINEAR_BLOCK;
        if (row0 < p->row0) row0 = p->row0;
        if (row1 > p->row1) row1 = p->row1;
        if (row0 >= row1) continue;
        char *to = (char *)w->data + (size_t)block * linear_block_bytes(w->dtype, w->k);
        size_t row_bytes = p->src_stride * dtype_bytes(p->src_dtype);
        const char *src = p->src + (size_t)(row0 - p->row0) * row_bytes;
        bool pairs = w->dtype == DTYPE_BF16 && p->src_dtype == DTYPE_BF16;
        (pairs ? put_pairs : put_any)(p, to, row0 % LINEAR_BLOCK, row1 - row0, src);
    }
}

void cpu_matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                    enum dtype src_dtype, size_t src_stride)
{
    ASSERT(row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n && w->data);
    struct put p = {w, src_host, src_dtype, src_stride, row0, row0 + n_rows, cpu_threads(d)};
    cpu_linear_reserve(d, w->k);
    cpu_parallel(d, put_blocks, &p, p.n_threads);
}
