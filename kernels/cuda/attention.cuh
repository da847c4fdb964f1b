/* attention.cuh - what the attention ops of the CUDA device share: places in the paged cache, who attends to
 * what, and the partial results between attend and merge.
 *
 * Kernels get struct dims, kv_layer and batch by value; everything that changes from step to step (lengths,
 * page lists, block tables, spans) they read from device memory, so that a captured graph can be replayed. A
 * decode span with n_rows = 0 is padding of such a graph: every op passes over it. Launch shapes come from
 * host integers and are upper bounds; a block without work ends at once.
 *
 * Rows of a span and heads of a group are numbered together: query i*n_heads + h is head h of row i. */
#ifndef RETRO_KERNELS_CUDA_ATTENTION_CUH
#define RETRO_KERNELS_CUDA_ATTENTION_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <limits.h>
#include <math.h>

#include "kernels/cuda/cuda.h"

enum {
    ATTENTION_MAX_E = HEAD_DIM_MAX,
    ATTENTION_MAX_G = GROUP_MAX,
    SPLIT_STEP = 64,   /* a split is a multiple of these tokens of the list ... */
    SPLIT_LEAST = 128, /* ... and at least these: less is not worth its partial results */
    SPLITS_MAX = 128,  /* of a list */
    /* Bytes of shared memory that every GPU from sm_80 on gives a block; sm_86, sm_89 and sm_120 no more. */
    SHARED_MOST = 99 << 10,
};

/* --- elements of a type known at run time --- */

static __device__ __forceinline__ float element(const char *p, size_t i, enum dtype type)
{
    if (type == DTYPE_F32) return reinterpret_cast<const float *>(p)[i];
    if (type == DTYPE_BF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(p)[i]);
    return __half2float(reinterpret_cast<const __half *>(p)[i]);
}

static __device__ __forceinline__ void put_element(char *p, size_t i, float v, enum dtype type)
{
    if (type == DTYPE_F32) reinterpret_cast<float *>(p)[i] = v;
    else if (type == DTYPE_BF16) reinterpret_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
    else reinterpret_cast<__half *>(p)[i] = __float2half_rn(v);
}

static __device__ __forceinline__ int type_bytes(enum dtype type) { return type == DTYPE_F32 ? 4 : 2; }

/* --- sums and maxima over a warp, in all lanes --- */

static __device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
static __device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int step = 16; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* --- the paged cache --- */

static __device__ __forceinline__ const int32_t *span_blocks(const struct batch &b, const struct dims &m,
                                                             int slot)
{
    return b.block_table + (size_t)slot * (size_t)(m.C / m.B);
}

/* Where a page of a sequence lies. */
struct page_place {
    char *block; /* this layer's part of the block */
    int page;    /* within the block */
};

static __device__ __forceinline__ struct page_place
page_place_of(const struct kv_layer &kv, const int32_t *blocks, int page, const struct dims &m)
{
    int per_block = m.B / m.P, block = page / per_block;
    return {kv.blocks + (size_t)blocks[block] * m.layer_bytes, page - block * per_block};
}
static __device__ __forceinline__ size_t values_distance(const struct dims &m) /* from a key to its value */
{
    return (size_t)m.P * (size_t)(m.E * type_bytes(m.kv));
}
static __device__ __forceinline__ char *page_keys(struct page_place at, const struct dims &m, int kv_head)
{
    return at.block + (size_t)(kv_head * (m.B / m.P) + at.page) * 2 * values_distance(m);
}
static __device__ __forceinline__ char *page_summary(struct page_place at, const struct dims &m, int kv_head)
{
    return at.block + m.kv_bytes + (size_t)kv_head * m.summary_head_bytes +
           (size_t)at.page * m.summary_stride;
}
static __host__ __device__ inline bool has_codes(const struct dims &m) { return m.summary >= SUMMARY_Q8; }
/* Of a summary with codes: the two scales. */
static __device__ __forceinline__ char *page_scales(struct page_place at, const struct dims &m, int kv_head)
{
    return at.block + m.kv_bytes + (size_t)kv_head * m.summary_head_bytes +
           (size_t)(m.B / m.P) * m.summary_stride + (size_t)at.page * SUMMARY_SCALES_BYTES;
}
/* last_loaded of a page of the sequence in `slot`. */
static __device__ __forceinline__ int32_t *page_last_loaded(const struct kv_layer &kv, const struct dims &m,
                                                            int slot, int kv_head, int page)
{
    return reinterpret_cast<int32_t *>(kv.slots + (size_t)slot * m.slot_bytes + m.output_cache_bytes) +
           ((size_t)kv_head * (size_t)(m.C / m.P) + (size_t)page);
}

/* --- who sees what --- */

/* Attended heads of a kv head: scored heads [first, first+n), n = 0 when this rank attends none of them. */
static __device__ __forceinline__ int attended_heads(const struct dims &m, int kv_head, int *first)
{
    int lo = max(kv_head * m.G, m.head_off), hi = min((kv_head + 1) * m.G, m.head_off + m.Hr);
    *first = lo;
    return max(hi - lo, 0);
}

/* Keys that the query at position r may see: [first, r]. */
static __device__ __forceinline__ int first_visible(int r, int sliding_window)
{
    return sliding_window && r >= sliding_window ? r - sliding_window + 1 : 0;
}

/* The pages a span's new row may read in this layer: [first, first+n), and whether it reads them all. */
struct candidates {
    int first, n, n_select;
    bool all;
};

static __device__ __forceinline__ struct candidates
candidates_of(const struct decode_span &s, const struct kv_layer &kv, const struct dims &m)
{
    struct candidates c;
    c.first = first_visible(s.position, kv.sliding_window) / m.P;
    c.n = s.position / m.P - c.first + 1;
    c.n_select = kv.sliding_window ? s.n_select[1] : s.n_select[0];
    c.all = kv.layer < s.dense_layers || c.n_select == 0 || c.n_select >= c.n;
    return c;
}

/* Most candidate pages of any span whose position is at most max_position: for launch shapes. */
static inline int candidates_most(const struct batch *b, const struct kv_layer *kv, const struct dims *m)
{
    int pages = b->max_position / m->P + 1;
    int window = kv->sliding_window ? (kv->sliding_window + m->P - 2) / m->P + 1 : pages;
    return window < pages ? window : pages;
}

/* Most queries of any decode span with one kv head: for launch shapes. */
static inline int queries_most(const struct batch *b, const struct dims *m)
{
    int rows = m->W < b->n_decode_rows ? m->W : b->n_decode_rows;
    return rows * (m->G < m->Hr ? m->G : m->Hr);
}

/* --- partial results of decode attention ---
 *
 * A page list is cut into splits of equal length, a multiple of SPLIT_STEP tokens, in a way that depends on
 * the length of the list alone. There are as many of them as it takes for one long sequence with Kr kv heads
 * to occupy a GPU of 100 to 150 multiprocessors, and never so many that the results of the splits (out and
 * ml) weigh against the keys and values. */
struct part {
    float *out; /* (rows, splits, Hr, E) sum of e^(score - m) * value; not written where m = -inf */
    float *ml;  /* (rows, splits, Hr, 2) m, then the sum of e^(score - m); m = -inf: nothing was attended */
    int splits; /* at most, for C tokens */
};

static __host__ __device__ inline int splits_most(int n_tokens, int Kr)
{
    int most = 256 / Kr, fine = (n_tokens + SPLIT_LEAST - 1) / SPLIT_LEAST;
    most = most < 16 ? 16 : most > SPLITS_MAX ? SPLITS_MAX : most;
    return fine < most ? fine : most;
}
/* Pages of each split of a list, the last one excepted. */
static __device__ __forceinline__ int split_pages(int n_pages, const struct dims &m)
{
    int most = splits_most(n_pages * m.P, m.Kr), tokens = (n_pages * m.P + most - 1) / most;
    tokens = max((tokens + SPLIT_STEP - 1) / SPLIT_STEP * SPLIT_STEP, (int)SPLIT_LEAST);
    return (tokens + m.P - 1) / m.P;
}
static inline int decode_rows_max(const struct dims *m)
{
    long long n = (long long)m->max_spans * m->W;
    return n < m->max_rows ? (int)n : m->max_rows;
}
static inline struct part part_of(const void *memory, const struct dims *m)
{
    struct part p = {(float *)memory, NULL, splits_most(m->C, m->Kr)};
    p.ml = p.out + (size_t)decode_rows_max(m) * (size_t)p.splits * (size_t)m->Hr * (size_t)m->E;
    return p;
}
static __device__ __forceinline__ size_t part_index(const struct part &p, const struct dims &m, int row,
                                                    int split, int head)
{
    return ((size_t)row * (size_t)p.splits + (size_t)split) * (size_t)m.Hr + (size_t)head;
}

/* Head widths with a tensor-core form of attention. */
static inline bool tensor_width(int E) { return E == 64 || E == 80 || E == 96 || E == 128; }

/* Opts a kernel into more than 48 KiB of shared memory. */
template <typename K> static void allow_shared(K *kernel, size_t bytes)
{
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
               "asking for shared memory");
}

#endif
