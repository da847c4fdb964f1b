#include "numeric.h"

namespace emu {

double round_to_format(double v, int digits, int emin, int emax, Round mode, bool saturate)
{
    if (v == 0 || std::isnan(v) || (std::isinf(v) && !saturate)) return v;
    bool minus = std::signbit(v);
    double a = std::fabs(v), largest = std::ldexp(2.0 - std::ldexp(1.0, 1 - digits), emax);
    if (std::isinf(a)) return minus ? -largest : largest;
    int e = std::ilogb(a);
    double unit = std::ldexp(1.0, std::max(e, emin) - digits + 1); // exact power of two
    double q = a / unit, low = std::floor(q), rest = q - low;      // q < 2^digits: all exact
    bool up = false;
    switch (mode) {
    case Round::Nearest: up = rest > 0.5 || (rest == 0.5 && std::fmod(low, 2) == 1); break;
    case Round::Away: up = rest >= 0.5; break;
    case Round::Zero: break;
    case Round::Down: up = minus && rest > 0; break;
    case Round::Up: up = !minus && rest > 0; break;
    }
    double r = (low + up) * unit;
    if (r > largest) {
        bool towards = mode == Round::Zero || (mode == Round::Down && !minus) || (mode == Round::Up && minus);
        r = towards || saturate ? largest : INFINITY;
    }
    return minus ? -r : r;
}

u16 double_to_half(double v, Round mode, bool saturate)
{
    if (std::isnan(v)) return 0x7fff;
    return float_to_half_nearest((float)round_to_format(v, 11, -14, 15, mode, saturate));
}

u16 double_to_bf16(double v, Round mode, bool saturate)
{
    if (std::isnan(v)) return 0x7fff;
    return (u16)(bits_as<u32>((float)round_to_format(v, 8, -126, 127, mode, saturate)) >> 16);
}

double fma_odd(double a, double b, double c)
{
    double p = a * b; // exact: 22 significand bits
    double s = p + c;
    if (!std::isfinite(s)) return s;
    double back = s - p, error = (p - (s - back)) + (c - back);
    if (error != 0 &&
        !(bits_as<u64>(s) & 1)) // exact result lies between s and its neighbour in error's direction
        s = std::nextafter(s, error > 0 ? INFINITY : -INFINITY);
    return s;
}

} // namespace emu
