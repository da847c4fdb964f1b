/* dtype.h - element types and their exact conversions on the host.
 *
 * Rounding is to nearest, ties to even, everywhere; NaN stays NaN. Nothing here is a hot path: kernels have
 * their own vector forms that must agree with these to the bit. */
#ifndef RETRO_BASE_DTYPE_H
#define RETRO_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_COUNT };

static inline size_t dtype_bytes(enum dtype t) { return t == DTYPE_F32 ? 4 : 2; }

static inline const char *dtype_name(enum dtype t)
{
    return t == DTYPE_F32 ? "f32" : t == DTYPE_F16 ? "f16" : "bf16";
}

static inline float dtype_f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t dtype_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static inline float dtype_f32_from_bf16(uint16_t h) { return dtype_f32_from_bits((uint32_t)h << 16); }

static inline uint16_t dtype_bf16_from_f32(float f)
{
    uint32_t u = dtype_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40); /* NaN: keep it quiet */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static inline float dtype_f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 0x1f) return dtype_f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0)
        return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f; /* zero and subnormals, exact */
    return dtype_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t dtype_f16_from_f32(float f)
{
    uint32_t u = dtype_f32_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds past 65504 */
    if (a < 0x38800000u) {                                  /* subnormal: let the f32 adder round at 2^-24 */
        float scaled = dtype_f32_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (dtype_f32_bits(scaled) - 0x3f000000u));
    }
    a += 0xfffu + (a >> 13 & 1);
    return (uint16_t)(sign | ((a >> 13) - (112u << 10)));
}

#endif
