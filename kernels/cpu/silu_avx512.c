/* silu_avx512.c - gate * sigmoid(gate) * up with AVX-512.
 *
 * e^x = 2^n * e^r with n = round(x / ln 2) and r in [-ln2/2, ln2/2], reduced with a two-part ln 2 and
 * evaluated by the Taylor polynomial of degree 7 (truncation below 2^-27 relative). Overflow gives infinity,
 * so that very negative gates give zero; NaN stays NaN. */
#include <immintrin.h>

#include "kernels/cpu/silu.h"

static inline __m512 exp_ps(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f),
                      _mm512_min_ps(_mm512_set1_ps(104.0f), x)); /* NaN: second operand */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8 /* nearest, quiet */);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static void mul(float *out, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += 16) {
        __mmask16 on = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 g = _mm512_maskz_loadu_ps(on, gate + i);
        __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g));
        __m512 y = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        _mm512_mask_storeu_ps(out + i, on, _mm512_mul_ps(y, _mm512_maskz_loadu_ps(on, up + i)));
    }
}

const struct silu_table silu_avx512 = {.mul = mul};
