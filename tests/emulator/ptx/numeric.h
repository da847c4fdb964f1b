// Scalar float conversions with every PTX rounding mode.
#pragma once
#include "types.h"
#include <cmath>

namespace emu {

enum class Round : u8 { Nearest, Zero, Down, Up, Away }; // rn, rz, rm, rp, rna

// Rounds v to a binary format with 'digits' significand bits (hidden one included) and exponents emin..emax,
// by the bits: no double rounding, denormals included. Overflow gives infinity, or the largest finite value
// when the mode rounds towards it or 'saturate' is set.
double round_to_format(double v, int digits, int emin, int emax, Round mode, bool saturate = false);

// clang 14 has no _Float16 on x86 before AVX512-FP16; its storage type converts through F16C just as well
#if defined(__clang__) && defined(__x86_64__)
using half_storage = __fp16;
#else
using half_storage = _Float16;
#endif

inline float half_to_float(u16 h)
{
    half_storage x;
    memcpy(&x, &h, 2);
    return (float)x;
}
inline u16 float_to_half_nearest(float f)
{
    half_storage x = (half_storage)f;
    u16 u;
    memcpy(&u, &x, 2);
    return u;
}
inline float bf16_to_float(u16 b) { return bits_as<float>((u32)b << 16); }
inline u16 float_to_bf16_nearest(float f)
{
    u32 u = bits_as<u32>(f);
    u32 r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (u16)((u & 0x7fffffff) > 0x7f800000 ? 0x7fff : r);
}
u16 double_to_half(double v, Round mode, bool saturate = false);
u16 double_to_bf16(double v, Round mode, bool saturate = false);

inline float flush(float x)
{
    return (bits_as<u32>(x) & 0x7f800000) ? x : bits_as<float>(bits_as<u32>(x) & 0x80000000);
}

// a*b+c of 16-bit operands with the rounding bits of the exact result kept (round to odd in double), so that
// a second rounding to f16 or bf16 is the correct one.
double fma_odd(double a, double b, double c);

} // namespace emu
