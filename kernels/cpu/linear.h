/* linear.h - packed weights and the tile primitive of y = x W^T.
 *
 * Weights. n is cut into blocks of LINEAR_BLOCK outputs; the vector lanes run over the outputs of a block, so
 * that one load of weights serves every row and an input needs only a broadcast. Within a block the inputs
 * follow each other:
 *   bf16        (k/2, LINEAR_BLOCK, 2)   two inputs share a 32-bit lane and widen by a shift and a mask; odd k
 *                                        is padded with a zero weight
 *   f16, f32    (k, LINEAR_BLOCK)
 * A block's outputs past n hold whatever the memory held: they are computed in lanes and never stored.
 *
 * Invariant: every output is ONE chain of fused multiply-adds over k in ascending order, then plus bias.
 * Cutting k into pieces and continuing from y keeps the chain, so that all row counts, thread counts and
 * blockings give the same bits. (The portable path has the same chain with separate multiply and add.)
 *
 * Products of bf16 by bf16 in pairs (vdpbf16ps) are another chain of the same kind: two products a step, rounded as
 * the instruction does it, subnormal numbers taken for 0. A device uses them for bf16 activations and weights with
 * even k where they are the faster ones, then for every row count. Products by AMX (linear_amx.c) are a third. */
#ifndef RETRO_KERNELS_CPU_LINEAR_H
#define RETRO_KERNELS_CPU_LINEAR_H

#include <stdbool.h>

#include "kernels/kernels.h"

enum { LINEAR_BLOCK = 32, LINEAR_LINE = 64 /* bytes of a cache line */ };

/* One tile of y: `rows` rows, one block of outputs, `k` inputs. */
struct linear_tile {
    float *y; /* (rows, lanes), row i at y + i * y_stride */
    size_t y_stride;
    int rows, lanes; /* rows <= linear_table.rows; lanes 1..LINEAR_BLOCK */
    const float *x;  /* (k, linear_x_stride(rows)) packed; columns past the rows are not used */
    const char *w;   /* the block at the piece's first input */
    int k;           /* inputs of this piece; even for bf16 (x and w are zero at the pad) */
    /* pairs: x is (k/2, linear_x_stride(rows)) words of two bf16 inputs */
    bool first;        /* start from zero; else from y */
    const float *bias; /* (lanes), added after the last input; or NULL */
    /* Weights wanted soon, to be fetched while these are multiplied: with the i-th line of w the line at
     * ahead + i * ahead_step. A hint, any address will do. */
    const char *ahead;
    int ahead_step;
};

struct linear_table {
    int rows;      /* most rows of a tile */
    int once_rows; /* a tile of up to this many reads its weights once, one of more, half of each line twice */
    void (*tile[DTYPE_COUNT])(const struct linear_tile *t);
    void (*pairs)(const struct linear_tile *t); /* NULL: there is none */
};

struct device;

/* The whole of linear with AMX (linear_amx.c), for bf16 inputs and weights whose k is a multiple of AMX_STEP. */
void linear_amx(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                int n_rows);

extern const struct linear_table linear_portable, linear_avx2, linear_avx512;

/* Floats from one input to the next in a tile's packed x: rows are transposed by fours, but few rows must not
 * crowd the first-level cache. One row is not copied. */
static inline int linear_x_stride(int rows) { return rows <= 2 ? rows : (rows + 3) / 4 * 4; }

/* Inputs as stored: k, padded to even for bf16. */
static inline int linear_k_stored(enum dtype dtype, int k) { return dtype == DTYPE_BF16 ? k + (k & 1) : k; }

static inline size_t linear_block_bytes(enum dtype dtype, int k)
{
    return (size_t)linear_k_stored(dtype, k) * LINEAR_BLOCK * dtype_bytes(dtype);
}

static inline int linear_blocks(int n) { return (n + LINEAR_BLOCK - 1) / LINEAR_BLOCK; }

/* Where the weight of output `lane` of a block and input `i` lies in its block, in elements. */
static inline size_t linear_index(enum dtype dtype, int lane, int i)
{
    if (dtype != DTYPE_BF16) return (size_t)i * LINEAR_BLOCK + (size_t)lane;
    return ((size_t)(i / 2) * LINEAR_BLOCK + (size_t)lane) * 2 + (size_t)(i & 1);
}

/* One element as f32. */
static inline float linear_widen(const char *p, enum dtype dtype)
{
    uint16_t h;
    float f;
    if (dtype == DTYPE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&h, p, sizeof h);
    return dtype == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

static inline const struct linear_table *linear_table_of(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512) return &linear_avx512;
    if (isa == CPU_ISA_AVX2) return &linear_avx2;
#endif
    (void)isa;
    return &linear_portable;
}

#endif
