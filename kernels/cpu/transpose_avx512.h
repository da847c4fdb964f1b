/* transpose_avx512.h - 16 x 16 words of 32 bits, rows to columns. */
#ifndef RETRO_KERNELS_CPU_TRANSPOSE_AVX512_H
#define RETRO_KERNELS_CPU_TRANSPOSE_AVX512_H

#include <immintrin.h>

static inline __attribute__((always_inline)) void transpose(__m512i x[16])
{
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* b[i+j]: columns j, j+4, j+8, j+12 of rows i .. i+3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i lo = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88),
                hi = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd);
        __m512i lo2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88);
        __m512i hi2 = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xdd);
        x[j] = _mm512_shuffle_i32x4(lo, lo2, 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(lo, lo2, 0xdd);
        x[j + 4] = _mm512_shuffle_i32x4(hi, hi2, 0x88);
        x[j + 12] = _mm512_shuffle_i32x4(hi, hi2, 0xdd);
    }
}

#endif
