// f32 and f64 arithmetic in all roundings, transcendental functions, conversions, f16 and bf16 arithmetic.
//
// References: long double (64-bit significand) rounded to the target by searching the neighbouring values, so
// they share no code with the emulator.
#include "check.h"
#include <functional>

enum Mode { RN, RZ, RM, RP };

// The value of the given float-like grid that rounding 'v' must give: 'below' and 'above' are its neighbours.
static long double choose(long double v, long double below, long double above, bool below_even, Mode m)
{
    if (v == below) return below;
    if (v == above) return above;
    if (m == RZ) m = v > 0 ? RM : RP;
    if (m == RM) return below;
    if (m == RP) return above;
    long double a = v - below, b = above - v;
    return a < b || (a == b && below_even) ? below : above;
}

// Value of a 16-bit pattern: sign, 'exp_bits' exponent bits, the rest fraction.
static long double decode16(u16 h, int exp_bits)
{
    int frac = 15 - exp_bits, bias = (1 << (exp_bits - 1)) - 1, e = (h >> frac) & ((1 << exp_bits) - 1);
    long double m = h & ((1 << frac) - 1);
    long double v = e ? std::ldexp(m + (1 << frac), e - bias - frac) : std::ldexp(m, 1 - bias - frac);
    return h & 0x8000 ? -v : v;
}
static u16 round16(long double v, int exp_bits, Mode m)
{
    u16 inf = (u16)(((1 << exp_bits) - 1) << (15 - exp_bits));
    if (v != v) return 0x7fff;
    u16 sign = std::signbit(v) ? 0x8000 : 0;
    long double a = std::fabs(v);
    if (m == RM) m = sign ? RP : RZ; // on magnitudes, away from zero is up
    else if (m == RP) m = sign ? RZ : RP;
    u16 lo = 0, hi = inf; // largest pattern with value <= a
    while (hi - lo > 1) {
        u16 mid = (u16)((lo + hi) / 2);
        (decode16(mid, exp_bits) <= a ? lo : hi) = mid;
    }
    if (decode16(lo, exp_bits) == a) return sign | lo;
    if (std::isinf(a)) return sign | inf;
    long double below = decode16(lo, exp_bits),
                above = decode16((u16)(lo + 1), exp_bits); // of inf: the next power of two
    bool up = m == RP || (m == RN && (a - below > above - a || (a - below == above - a && (lo & 1))));
    return sign | (u16)(lo + up);
}
static float round32(long double v, Mode m)
{
    if (v != v || std::isinf(v) || v == 0) return (float)v;
    float near = (float)v; // to nearest or overflow
    float below = near, above = near;
    if ((long double)near > v) below = std::nextafterf(near, -INFINITY);
    if ((long double)near < v) above = std::nextafterf(near, INFINITY);
    if (m == RN) return near;
    return (float)choose(v, below, above, true, m);
}
static float ftz(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

static void arithmetic()
{
#define FL2(op, expr)                                                                                        \
    check2<float, float, float>(op, PTX2(op " %0,%1,%2;", float, "f", float, "f", float, "f"),               \
                                [](float a, float b) -> float { return expr; })
    FL2("add.rn.f32", a + b);
    FL2("sub.rn.f32", a - b);
    FL2("mul.rn.f32", a * b);
    FL2("div.rn.f32", a / b);
    FL2("add.ftz.f32", ftz(ftz(a) + ftz(b)));
    FL2("mul.ftz.f32", ftz(ftz(a) * ftz(b)));
    FL2("mul.rz.f32", round32((long double)a * b, RZ));
    FL2("mul.rm.f32", round32((long double)a * b, RM));
    FL2("mul.rp.f32", round32((long double)a * b, RP));
    FL2("add.sat.f32", a + b != a + b ? 0.0f : std::min(1.0f, std::max(0.0f, a + b)) + 0.0f);
    FL2("min.f32", a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? a : b) : std::min(a, b));
    FL2("max.f32", a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? b : a) : std::max(a, b));
    FL2("max.NaN.f32", a != a || b != b ? NAN : a == b ? (std::signbit(a) ? b : a) : std::max(a, b));
    FL2("copysign.f32", std::copysign(b, a));
    FL2("div.full.f32", a / b);
    check3<float, float, float, float>(
        "fma.rn.f32", PTX3("fma.rn.f32 %0,%1,%2,%3;", float, "f", float, "f", float, "f", float, "f"),
        [](float a, float b, float c) { return std::fma(a, b, c); });
    check2<double, double, double>("add.rn.f64",
                                   PTX2("add.rn.f64 %0,%1,%2;", double, "d", double, "d", double, "d"),
                                   [](double a, double b) { return a + b; });
#define FL_FUSED(name, text, expr)                                                                           \
    check3<float, float, float, float>(                                                                      \
        name, PTX3("{.reg .f32 t; " text "}", float, "f", float, "f", float, "f", float, "f"),               \
        [](float a, float b, float c) { return expr; })
    FL_FUSED("mul, add", "mul.f32 t,%1,%2; add.f32 %0,t,%3;", std::fma(a, b, c));
    FL_FUSED("mul, sub", "mul.f32 t,%1,%2; sub.f32 %0,t,%3;", std::fma(a, b, -c));
    FL_FUSED("mul, sub from", "mul.f32 t,%1,%2; sub.f32 %0,%3,t;", std::fma(-a, b, c));
    FL_FUSED("mul.rn, add", "mul.rn.f32 t,%1,%2; add.f32 %0,t,%3;", a * b + c);
    FL_FUSED("mul, add.rn", "mul.f32 t,%1,%2; add.rn.f32 %0,t,%3;", a * b + c);
    FL_FUSED("mul, other, add", "mul.f32 t,%1,%2; mov.f32 t,%2; add.f32 %0,t,%3;", b + c);
    FL_FUSED("mul, factor changed, add",
             "{.reg .f32 x; mov.f32 x,%1; mul.f32 t,x,%2; mov.f32 x,%3; add.f32 %0,t,x;}", a * b + c);
    check3<double, double, double, double>(
        "fma.rn.f64", PTX3("fma.rn.f64 %0,%1,%2,%3;", double, "d", double, "d", double, "d", double, "d"),
        [](double a, double b, double c) { return std::fma(a, b, c); });
#define FL1(op, expr, tol)                                                                                   \
    check1<float, float>(                                                                                    \
        op, PTX1(op " %0,%1;", float, "f", float, "f"), [](float a) -> float { return expr; }, tol)
    FL1("abs.f32", std::fabs(a), 0);
    FL1("neg.f32", -a, 0);
    FL1("sqrt.rn.f32", std::sqrt(a), 0);
    FL1("rcp.rn.f32", 1 / a, 0);
    FL1("rcp.rz.f32", a == 0 || std::isinf(a) ? 1 / a : round32(1.0L / a, RZ), 0);
    FL1("ex2.approx.f32", std::exp2((double)a), 2);
    FL1("ex2.approx.ftz.f32", ftz((float)std::exp2((double)ftz(a))), 2);
    FL1("lg2.approx.f32", std::log2((double)a), 1);
    FL1("rsqrt.approx.f32", 1 / std::sqrt((double)a), 1);
    FL1("rcp.approx.ftz.f32", ftz(1 / ftz(a)), 1);
    FL1("sin.approx.f32", std::sin((double)a), 1);
    FL1("cos.approx.f32", std::cos((double)a), 1);
    FL1("tanh.approx.f32", std::tanh((double)a), 1);
    check1<u32, float>(
        "testp.subnormal",
        [] __device__(float a) {
            u32 d;
            asm volatile("{ .reg .pred p; testp.subnormal.f32 p, %1; selp.u32 %0, 1, 0, p; }"
                         : "=r"(d)
                         : "f"(a));
            return d;
        },
        [](float a) { return (u32)(std::fpclassify(a) == FP_SUBNORMAL); });
}

static void conversions()
{
#define TO16(op, bits, mode)                                                                                 \
    check1<u16, float>(op, PTX1(op " %0,%1;", u16, "h", float, "f"),                                         \
                       [](float a) { return round16(a, bits, mode); })
    TO16("cvt.rn.bf16.f32", 8, RN);
    TO16("cvt.rz.bf16.f32", 8, RZ);
    TO16("cvt.rn.f16.f32", 5, RN);
    TO16("cvt.rz.f16.f32", 5, RZ);
    TO16("cvt.rm.f16.f32", 5, RM);
    TO16("cvt.rp.f16.f32", 5, RP);
    check1<u16, float>("cvt.rn.relu.bf16.f32", PTX1("cvt.rn.relu.bf16.f32 %0,%1;", u16, "h", float, "f"),
                       [](float a) { return a != a   ? (u16)0x7fff
                                            : a <= 0 ? (u16)0
                                                     : round16(a, 8, RN); });
#define TOPAIR(op, bits, mode)                                                                               \
    check2<u32, float, float>(                                                                               \
        op, PTX2(op " %0,%1,%2;", u32, "r", float, "f", float, "f"),                                         \
        [](float a, float b) { return (u32)round16(a, bits, mode) << 16 | round16(b, bits, mode); })
    TOPAIR("cvt.rn.bf16x2.f32", 8, RN);
    TOPAIR("cvt.rn.f16x2.f32", 5, RN);
    TOPAIR("cvt.rz.f16x2.f32", 5, RZ);
    check1<float, u16>("cvt.f32.f16", PTX1("cvt.f32.f16 %0,%1;", float, "f", u16, "h"), [](u16 a) {
        return (a & 0x7c00) != 0x7c00 ? (float)decode16(a, 5)
               : a & 0x3ff            ? NAN
               : a & 0x8000           ? -INFINITY
                                      : INFINITY;
    });
    check1<float, u16>("mov shifted bf16",
                       PTX1("{ .reg .b16 z; mov.u16 z, 0; mov.b32 %0, {z, %1}; }", float, "f", u16, "h"),
                       [](u16 a) { return as<float>((u64)a << 16); });
    check1<u32, float>("cvt.rna.tf32.f32", PTX1("cvt.rna.tf32.f32 %0,%1;", u32, "r", float, "f"),
                       [](float a) {
                           u32 u = (u32)raw(a);
                           if (a != a) return 0x7fffffffu;
                           return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
                       });
#define TOINT(T, c, op, lo, hi, fn)                                                                          \
    check1<T, float>(op, PTX1(op " %0,%1;", T, c, float, "f"), [](float a) -> T {                            \
        double r = fn((double)a);                                                                            \
        return a != a    ? (sizeof(T) == 8 ? (T)(1ull << 63) : (T)0)                                         \
               : r >= hi ? std::numeric_limits<T>::max()                                                     \
               : r < lo  ? std::numeric_limits<T>::min()                                                     \
                         : (T)r;                                                                              \
    })
    TOINT(s32, "r", "cvt.rzi.s32.f32", -2147483648.0, 2147483648.0, std::trunc);
    TOINT(s32, "r", "cvt.rni.s32.f32", -2147483648.0, 2147483648.0, std::nearbyint);
    TOINT(s32, "r", "cvt.rmi.s32.f32", -2147483648.0, 2147483648.0, std::floor);
    TOINT(s32, "r", "cvt.rpi.s32.f32", -2147483648.0, 2147483648.0, std::ceil);
    TOINT(u32, "r", "cvt.rzi.u32.f32", 0.0, 4294967296.0, std::trunc);
    TOINT(s64, "l", "cvt.rzi.s64.f32", -9223372036854775808.0, 9223372036854775808.0, std::trunc);
    check1<float, s32>("cvt.rn.f32.s32", PTX1("cvt.rn.f32.s32 %0,%1;", float, "f", s32, "r"),
                       [](s32 a) { return (float)a; });
    check1<float, u32>("cvt.rn.f32.u32", PTX1("cvt.rn.f32.u32 %0,%1;", float, "f", u32, "r"),
                       [](u32 a) { return (float)a; });
    check1<float, u64>("cvt.rn.f32.u64", PTX1("cvt.rn.f32.u64 %0,%1;", float, "f", u64, "l"),
                       [](u64 a) { return (float)a; });
    check1<float, s64>("cvt.rz.f32.s64", PTX1("cvt.rz.f32.s64 %0,%1;", float, "f", s64, "l"),
                       [](s64 a) { return round32(a, RZ); });
    check1<float, double>("cvt.rn.f32.f64", PTX1("cvt.rn.f32.f64 %0,%1;", float, "f", double, "d"),
                          [](double a) { return (float)a; });
    check1<double, float>("cvt.f64.f32", PTX1("cvt.f64.f32 %0,%1;", double, "d", float, "f"),
                          [](float a) { return (double)a; });
    check1<float, float>("cvt.rni.f32.f32", PTX1("cvt.rni.f32.f32 %0,%1;", float, "f", float, "f"),
                         [](float a) { return std::nearbyint(a); });
    check1<float, float>("cvt.sat.f32.f32", PTX1("cvt.sat.f32.f32 %0,%1;", float, "f", float, "f"),
                         [](float a) {
                             return a != a ? 0 : a > 1 ? 1 : a > 0 ? a : 0;
                         });
    check1<u16, s32>("cvt.rn.f16.s32", PTX1("cvt.rn.f16.s32 %0,%1;", u16, "h", s32, "r"),
                     [](s32 a) { return round16(a, 5, RN); });
    check1<s32, u32>("cvt.s32.s8", PTX1("cvt.s32.s8 %0,%1;", s32, "r", u32, "r"),
                     [](u32 a) { return (s32)(s8)a; });
    check1<u64, s32>("cvt.s64.s32", PTX1("cvt.s64.s32 %0,%1;", u64, "l", s32, "r"),
                     [](s32 a) { return (u64)(s64)a; });
    check1<u32, s32>("cvt.sat.u8.s32", PTX1("cvt.sat.u8.s32 %0,%1;", u32, "r", s32, "r"),
                     [](s32 a) { return (u32)std::min(std::max(a, 0), 255); });
    check1<u32, u64>("cvt.u32.u64", PTX1("cvt.u32.u64 %0,%1;", u32, "r", u64, "l"),
                     [](u64 a) { return (u32)a; });
    check1<u64, u32>("cvt.u64.u16",
                     PTX1("{ .reg .b16 t; cvt.u16.u32 t, %1; cvt.u64.u16 %0, t; }", u64, "l", u32, "r"),
                     [](u32 a) { return (u64)(u16)a; });
}

// Two 16-bit values at once; long double holds every sum and product of 16-bit values exactly where it
// matters: exponents more than 63 apart are checked against the tie rule by round16 through the sticky term.
static long double value16(u16 h, int bits)
{
    u16 inf = (u16)(((1 << bits) - 1) << (15 - bits));
    if ((h & 0x7fff) > inf) return NAN;
    if ((h & 0x7fff) == inf) return h & 0x8000 ? -INFINITY : INFINITY;
    return decode16(h, bits);
}
template <int bits, class F> u32 pairwise(u32 a, u32 b, u32 c, F f)
{
    u32 r = 0;
    for (int k = 0; k < 32; k += 16)
        r |= (u32)round16(
                 f(value16((u16)(a >> k), bits), value16((u16)(b >> k), bits), value16((u16)(c >> k), bits)),
                 bits, RN)
             << k;
    return r;
}
// bf16 inputs of moderate exponents, so that long double sums are exact
static void packed()
{
    using L = long double;
#define PAIR(op, tail, bits, mask, expr)                                                                     \
    check3<u32, u32, u32, u32>(                                                                              \
        op,                                                                                                  \
        [] __device__(u32 a, u32 b, u32 c) {                                                                 \
            u32 d;                                                                                           \
            a = (a & mask) | 0x38003800, b = (b & mask) | 0x38003800, c = (c & mask) | 0x38003800;           \
            asm volatile(op " %0,%1,%2" tail ";" : "=r"(d) : "r"(a), "r"(b), "r"(c));                        \
            return d;                                                                                        \
        },                                                                                                   \
        [](u32 a, u32 b, u32 c) {                                                                            \
            a = (a & mask) | 0x38003800, b = (b & mask) | 0x38003800, c = (c & mask) | 0x38003800;           \
            return pairwise<bits>(a, b, c, [](L x, L y, L z) -> L {                                          \
                (void)z;                                                                                     \
                return expr;                                                                                 \
            });                                                                                              \
        })
    PAIR("fma.rn.bf16x2", ",%3", 8, 0x87ff87ffu, x * y + z);
    PAIR("fma.rn.f16x2", ",%3", 5, 0xbfffbfffu, x * y + z);
    PAIR("add.f16x2", "", 5, 0xbfffbfffu, x + y);
    PAIR("sub.f16x2", "", 5, 0xbfffbfffu, x - y);
    PAIR("mul.f16x2", "", 5, 0xbfffbfffu, x * y);
    PAIR("max.bf16x2", "", 8, 0x87ff87ffu, std::max(x, y));
    PAIR("min.f16x2", "", 5, 0xbfffbfffu, std::min(x, y));
    check3<u16, u16, u16, u16>(
        "fma.rn.f16", PTX3("fma.rn.f16 %0,%1,%2,%3;", u16, "h", u16, "h", u16, "h", u16, "h"),
        [](u16 a, u16 b, u16 c) { return round16(value16(a, 5) * value16(b, 5) + value16(c, 5), 5, RN); });
    check1<u32, u32>("neg.bf16x2", PTX1("neg.bf16x2 %0,%1;", u32, "r", u32, "r"), [](u32 a) {
        u32 r = 0;
        for (int k = 0; k < 32; k += 16)
            r |= (u32)(value16((u16)(a >> k), 8) != value16((u16)(a >> k), 8) ? 0x7fff
                                                                              : ((a >> k & 0xffff) ^ 0x8000))
                 << k;
        return r;
    });
}

int main()
{
    arithmetic();
    conversions();
    packed();
    return finish("floating");
}
