/* exp_avx512.h - e^x of 16 scores, for the tile primitives' weights. */
#ifndef RETRO_KERNELS_CPU_EXP_AVX512_H
#define RETRO_KERNELS_CPU_EXP_AVX512_H

#include <immintrin.h>

/* e^v for v <= 0 or so; 0 below -87 and for -inf; error within 2 units in the last place. e^x = 2^n e^r, |r| <= ln2/2;
 * polynomial of Cephes expf. */
static inline __m512 exp_avx512(__m512 x)
{
    __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    __m512 n =
        _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.62e400p-1f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.7f7d1cp-20f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    p = _mm512_scalef_ps(p, n);
    return _mm512_mask_blend_ps(tiny, p, _mm512_setzero_ps()); /* -inf made r NaN: exactly 0 */
}

#endif
