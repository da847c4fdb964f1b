/* linear_avx2.c - tiles of y = x W^T with AVX2 and FMA.
 *
 * Sixteen registers hold the sums of 2 rows of a block, or of 6 rows of half a block. The halves follow each
 * other: the second finds its lines in the cache, and each fetches half of the lines that are wanted next. */
#include <immintrin.h>

#include "kernels/cpu/linear.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { ROWS = 6, ONCE_ROWS = 2, ONCE_AHEAD = 8192 /* bytes, as for few rows in linear_avx512.c */ };

INLINE __m256i lanes_of(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE void begin(__m256 a[ROWS][4], const struct linear_tile *t, int v0, const int R, const int V)
{
    UNROLL for (int i = 0; i < R; i++) UNROLL for (int v = 0; v < V; v++) a[i][v] =
        t->first ? _mm256_setzero_ps()
                 : _mm256_maskload_ps(t->y + (size_t)i * t->y_stride + (v0 + v) * 8,
                                      lanes_of(t->lanes - (v0 + v) * 8));
}

INLINE void end(__m256 a[ROWS][4], const struct linear_tile *t, int v0, const int R, const int V)
{
    UNROLL for (int v = 0; v < V; v++)
    {
        __m256i on = lanes_of(t->lanes - (v0 + v) * 8);
        UNROLL for (int i = 0; i < R; i++)
        {
            __m256 y = a[i][v];
            if (t->bias) y = _mm256_add_ps(y, _mm256_maskload_ps(t->bias + (v0 + v) * 8, on));
            _mm256_maskstore_ps(t->y + (size_t)i * t->y_stride + (v0 + v) * 8, on, y);
        }
    }
}

/* Vector v of the widened weights of one input. */
INLINE __m256 bf16_even(const char *w, int v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)(w + v * 32)), 16));
}
INLINE __m256 bf16_odd(const char *w, int v)
{
    return _mm256_and_ps(_mm256_loadu_ps((const float *)w + v * 8),
                         _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}
INLINE __m256 f16_vector(const char *w, int v)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w + v * 16)));
}
INLINE __m256 f32_vector(const char *w, int v) { return _mm256_loadu_ps((const float *)w + v * 8); }

/* Of the half that begins with vector v0; w has `lines` lines. */
INLINE const char *ahead_of(const struct linear_tile *t, int lines, int v0)
{
    return t->ahead + (v0 ? lines / 2 * t->ahead_step : 0);
}

INLINE void fetch(const char **ahead, int step, const char *w, int lines, const int V)
{
    for (int i = 0; i < lines; i++, *ahead += step / 2)
        if (V == 4) _mm_prefetch(w + i * LINEAR_LINE + ONCE_AHEAD, _MM_HINT_T0);
        else _mm_prefetch(*ahead, _MM_HINT_T1);
}

typedef __m256 widen_function(const char *w, int v);

INLINE void multiply(__m256 a[ROWS][4], const float *x, const char *w, widen_function *widen, int v0,
                     const int R, const int V)
{
    if (V == 4) {
        __m256 b[ROWS];
        UNROLL for (int i = 0; i < R; i++) b[i] = _mm256_broadcast_ss(x + i);
        UNROLL for (int v = 0; v < V; v++)
        {
            __m256 f = widen(w, v0 + v);
            UNROLL for (int i = 0; i < R; i++) a[i][v] = _mm256_fmadd_ps(b[i], f, a[i][v]);
        }
    } else {
        __m256 f[4];
        UNROLL for (int v = 0; v < V; v++) f[v] = widen(w, v0 + v);
        UNROLL for (int i = 0; i < R; i++)
        {
            __m256 b = _mm256_broadcast_ss(x + i);
            UNROLL for (int v = 0; v < V; v++) a[i][v] = _mm256_fmadd_ps(b, f[v], a[i][v]);
            /* Row after row, in place: gcc 12 otherwise mixes the rows and spills a third of the sums. */
            UNROLL for (int v = 0; v < V; v++) __asm__("" : "+x"(a[i][v]));
        }
    }
}

INLINE void bf16_part(const struct linear_tile *t, int v0, const int R, const int V)
{
    __m256 a[ROWS][4];
    begin(a, t, v0, R, V);
    const char *w = t->w, *ahead = ahead_of(t, t->k, v0);
    const float *x = t->x;
    for (int i = 0; i < t->k; i += 2, w += 128, x += 2 * linear_x_stride(R)) {
        fetch(&ahead, t->ahead_step, w, 2, V);
        multiply(a, x, w, bf16_even, v0, R, V);
        multiply(a, x + linear_x_stride(R), w, bf16_odd, v0, R, V);
    }
    end(a, t, v0, R, V);
}

INLINE void f16_part(const struct linear_tile *t, int v0, const int R, const int V)
{
    __m256 a[ROWS][4];
    begin(a, t, v0, R, V);
    const char *w = t->w, *ahead = ahead_of(t, t->k, v0);
    const float *x = t->x;
    for (int i = 0; i < t->k; i++, w += 64, x += linear_x_stride(R)) {
        fetch(&ahead, t->ahead_step, w, 1, V);
        multiply(a, x, w, f16_vector, v0, R, V);
    }
    end(a, t, v0, R, V);
}

INLINE void f32_part(const struct linear_tile *t, int v0, const int R, const int V)
{
    __m256 a[ROWS][4];
    begin(a, t, v0, R, V);
    const char *w = t->w, *ahead = ahead_of(t, 2 * t->k, v0);
    const float *x = t->x;
    for (int i = 0; i < t->k; i++, w += 128, x += linear_x_stride(R)) {
        fetch(&ahead, t->ahead_step, w, 2, V);
        multiply(a, x, w, f32_vector, v0, R, V);
    }
    end(a, t, v0, R, V);
}

/* The row count must be a constant for the accumulators to live in registers. */
#define HALVES(name, rows) name##_part(t, 0, rows, 2), name##_part(t, 2, rows, 2)
#define BY_ROWS(name)                                                                                        \
    static void tile_##name(const struct linear_tile *t)                                                     \
    {                                                                                                        \
        switch (t->rows) {                                                                                   \
        case 1: name##_part(t, 0, 1, 4); break;                                                              \
        case 2: name##_part(t, 0, 2, 4); break;                                                              \
        case 3: HALVES(name, 3); break;                                                                      \
        case 4: HALVES(name, 4); break;                                                                      \
        case 5: HALVES(name, 5); break;                                                                      \
        default: HALVES(name, 6); break;                                                                     \
        }                                                                                                    \
    }

BY_ROWS(bf16)
BY_ROWS(f16)
BY_ROWS(f32)

const struct linear_table linear_avx2 = {
    .rows = ROWS,
    .once_rows = ONCE_ROWS,
    .tile = {[DTYPE_F32] = tile_f32, [DTYPE_F16] = tile_f16, [DTYPE_BF16] = tile_bf16},
};
