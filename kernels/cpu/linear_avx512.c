/* linear_avx512.c - tiles of y = x W^T with AVX-512: two vectors of outputs, up to 12 rows in registers.
 *
 * bf16 weights are widened exactly (a shift for even inputs, a mask for odd ones) and multiplied in f32.
 * Activations that are bf16 themselves may go through vdpbf16ps (pairs): twice as many products a cycle on Zen 4
 * and 5, half as many on Emerald Rapids. device.c decides. */
#include <immintrin.h>

#include "kernels/cpu/linear.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Rows: 24 accumulators, and 8 registers for weights, mask and broadcasts. Two blocks side by side for few
 * rows were no faster at 2 to 6 rows and a tenth slower at one (Zen 4): the second stream costs more than the
 * broadcasts it saves. */
enum { ROWS = 12, FEW_ROWS = 4, FEW_AHEAD = 8192 };

INLINE __mmask16 lanes_of(const struct linear_tile *t, int v)
{
    int n = t->lanes - v * 16;
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* No load where none is needed: one with no lane on waits for its line all the same. */
INLINE void begin(__m512 a[ROWS][2], const struct linear_tile *t, const int R)
{
    if (t->first) {
        UNROLL for (int i = 0; i < R; i++) a[i][0] = a[i][1] = _mm512_setzero_ps();
        return;
    }
    __mmask16 on0 = lanes_of(t, 0), on1 = lanes_of(t, 1);
    UNROLL for (int i = 0; i < R; i++)
    {
        a[i][0] = _mm512_maskz_loadu_ps(on0, t->y + (size_t)i * t->y_stride);
        a[i][1] = _mm512_maskz_loadu_ps(on1, t->y + (size_t)i * t->y_stride + 16);
    }
}

INLINE void end(__m512 a[ROWS][2], const struct linear_tile *t, const int R)
{
    __mmask16 on0 = lanes_of(t, 0), on1 = lanes_of(t, 1);
    if (t->bias) {
        __m512 bias0 = _mm512_maskz_loadu_ps(on0, t->bias), bias1 = _mm512_maskz_loadu_ps(on1, t->bias + 16);
        UNROLL for (int i = 0; i < R; i++)
        {
            a[i][0] = _mm512_add_ps(a[i][0], bias0);
            a[i][1] = _mm512_add_ps(a[i][1], bias1);
        }
    }
    UNROLL for (int i = 0; i < R; i++)
    {
        _mm512_mask_storeu_ps(t->y + (size_t)i * t->y_stride, on0, a[i][0]);
        _mm512_mask_storeu_ps(t->y + (size_t)i * t->y_stride + 16, on1, a[i][1]);
    }
}

/* The next `lines` lines of `ahead`. Into the second-level cache where arithmetic fills the window: the few misses that
 * the first level can have under way are too few for memory then. Few rows wait for memory and have little else to do:
 * their own weights, into the first level (on Emerald Rapids 1.7 times at 4 rows; on Zen 4 it makes no difference). */
INLINE void fetch(const char **ahead, int step, const char *w, int lines, const int R)
{
    for (int i = 0; i < lines; i++, *ahead += step)
        if (R <= FEW_ROWS) _mm_prefetch(w + i * LINEAR_LINE + FEW_AHEAD, _MM_HINT_T0);
        else _mm_prefetch(*ahead, _MM_HINT_T1);
}

INLINE void multiply(__m512 a[ROWS][2], const float *x, __m512 w0, __m512 w1, const int R)
{
    UNROLL for (int i = 0; i < R; i++)
    {
        __m512 b = _mm512_set1_ps(x[i]);
        a[i][0] = _mm512_fmadd_ps(b, w0, a[i][0]);
        a[i][1] = _mm512_fmadd_ps(b, w1, a[i][1]);
    }
}

INLINE void tile_bf16_rows(const struct linear_tile *t, const int R)
{
    __m512 a[ROWS][2];
    begin(a, t, R);
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    const char *w = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (int i = 0; i < t->k; i += 2, w += 128, x += 2 * linear_x_stride(R)) {
        __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64);
        fetch(&ahead, t->ahead_step, w, 2, R);
        multiply(a, x, _mm512_castsi512_ps(_mm512_slli_epi32(w0, 16)),
                 _mm512_castsi512_ps(_mm512_slli_epi32(w1, 16)), R);
        multiply(a, x + linear_x_stride(R), _mm512_castsi512_ps(_mm512_and_si512(w0, odd)),
                 _mm512_castsi512_ps(_mm512_and_si512(w1, odd)), R);
    }
    end(a, t, R);
}

INLINE void tile_pairs_rows(const struct linear_tile *t, const int R)
{
    __m512 a[ROWS][2];
    begin(a, t, R);
    const char *w = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (int i = 0; i < t->k; i += 2, w += 128, x += linear_x_stride(R)) {
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 64);
        fetch(&ahead, t->ahead_step, w, 2, R);
        UNROLL for (int r = 0; r < R; r++)
        {
            __m512bh b = (__m512bh)_mm512_set1_ps(x[r]); /* a word of two inputs, moved and not looked at */
            a[r][0] = _mm512_dpbf16_ps(a[r][0], w0, b);
            a[r][1] = _mm512_dpbf16_ps(a[r][1], w1, b);
        }
    }
    end(a, t, R);
}

INLINE void tile_f16_rows(const struct linear_tile *t, const int R)
{
    __m512 a[ROWS][2];
    begin(a, t, R);
    const char *w = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (int i = 0; i < t->k; i++, w += 64, x += linear_x_stride(R)) {
        fetch(&ahead, t->ahead_step, w, 1, R);
        multiply(a, x, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)w)),
                 _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + 32))), R);
    }
    end(a, t, R);
}

INLINE void tile_f32_rows(const struct linear_tile *t, const int R)
{
    __m512 a[ROWS][2];
    begin(a, t, R);
    const char *w = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (int i = 0; i < t->k; i++, w += 128, x += linear_x_stride(R)) {
        fetch(&ahead, t->ahead_step, w, 2, R);
        multiply(a, x, _mm512_loadu_ps(w), _mm512_loadu_ps(w + 64), R);
    }
    end(a, t, R);
}

/* The row count must be a constant for the accumulators to live in registers. */
#define BY_ROWS(name)                                                                                        \
    static void name(const struct linear_tile *t)                                                            \
    {                                                                                                        \
        switch (t->rows) {                                                                                   \
        case 1: name##_rows(t, 1); break;                                                                    \
        case 2: name##_rows(t, 2); break;                                                                    \
        case 3: name##_rows(t, 3); break;                                                                    \
        case 4: name##_rows(t, 4); break;                                                                    \
        case 5: name##_rows(t, 5); break;                                                                    \
        case 6: name##_rows(t, 6); break;                                                                    \
        case 7: name##_rows(t, 7); break;                                                                    \
        case 8: name##_rows(t, 8); break;                                                                    \
        case 9: name##_rows(t, 9); break;                                                                    \
        case 10: name##_rows(t, 10); break;                                                                  \
        case 11: name##_rows(t, 11); break;                                                                  \
        default: name##_rows(t, 12); break;                                                                  \
        }                                                                                                    \
    }

BY_ROWS(tile_bf16)
BY_ROWS(tile_pairs)
BY_ROWS(tile_f16)
BY_ROWS(tile_f32)

const struct linear_table linear_avx512 = {
    .rows = ROWS,
    .once_rows = ROWS,
    .tile = {[DTYPE_F32] = tile_f32, [DTYPE_F16] = tile_f16, [DTYPE_BF16] = tile_bf16},
    .pairs = tile_pairs,
};
