// f32 and f64 arithmetic: add, sub, mul, fma, div, min, max, abs, neg, copysign, with ftz, sat and all
// roundings.
//
// A sum of a product, both f32 without a rounding, is one multiply-add: ptxas is free to fuse them and does, and code
// that relies on the product's own rounding must say mul.rn.
//
// Round-to-nearest runs as plain lane loops; the directed modes switch the host's rounding mode around them
// (this file is compiled with -frounding-math -ffp-contract=off).
#include "lanes.h"
#include "numeric.h"
#include <cfenv>

namespace emu {

namespace {

enum Op : int { ADD, SUB, MUL, FMA, FMS, FNMA, DIV }; // FMS: ab - c, FNMA: c - ab

template <class T, int op> inline T apply(T a, T b, T c)
{
    if constexpr (op == ADD) return a + b;
    if constexpr (op == SUB) return a - b;
    if constexpr (op == MUL) return a * b;
    if constexpr (op == DIV) return a / b;
    if constexpr (op == FMS) return std::fma(a, b, -c);
    if constexpr (op == FNMA) return std::fma(-a, b, c);
    return std::fma(a, b, c);
}

// NVIDIA's arithmetic returns one NaN pattern.
inline float canonical(float x) { return x != x ? bits_as<float>(0x7fffffffu) : x; }
inline double canonical(double x) { return x != x ? bits_as<double>((u64)0xfff8000000000000ull) : x; }

template <class T, int op, bool FTZ, bool SAT> void arithmetic(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a), *b = w.slot<T>(i.b), *c = w.slot<T>(i.c);
    write_lanes(w.slot<T>(i.d), mask, [&](int l) {
        T x = a[l], y = b[l], z = op == FMA || op == FMS || op == FNMA ? c[l] : T(0);
        if constexpr (FTZ) x = flush(x), y = flush(y), z = flush(z);
        T r = canonical(apply<T, op>(x, y, z));
        if constexpr (FTZ) r = flush(r);
        if constexpr (SAT) r = r > T(0) ? (r < T(1) ? r : T(1)) : T(0); // NaN becomes +0
        return r;
    });
}

// sub: fesetround value of a directed mode; the arithmetic handler is reached through a table.
using Plain = void (*)(Warp &, const Inst &, u32);
template <Plain f> __attribute__((noinline)) void directed(Warp &w, const Inst &i, u32 mask)
{
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    fesetround(modes[i.sub]);
    f(w, i, mask);
    fesetround(FE_TONEAREST);
}

template <int op> Handler float_handler(bool ftz, bool sat, int mode)
{
    if (mode) {
        if (sat)
            return ftz ? directed<arithmetic<float, op, true, true>>
                       : directed<arithmetic<float, op, false, true>>;
        return ftz ? directed<arithmetic<float, op, true, false>>
                   : directed<arithmetic<float, op, false, false>>;
    }
    if (sat) return ftz ? arithmetic<float, op, true, true> : arithmetic<float, op, false, true>;
    return ftz ? arithmetic<float, op, true, false> : arithmetic<float, op, false, false>;
}
template <int op> Handler double_handler(int mode)
{
    return mode ? directed<arithmetic<double, op, false, false>> : arithmetic<double, op, false, false>;
}

// imm bit 0: ftz, bit 1: NaN propagates, bit 2: compare magnitudes and xor the signs
template <class T, bool MAX> void extreme(Warp &w, const Inst &i, u32 mask)
{
    bool ftz = i.imm & 1, propagate = i.imm & 2;
    const T *a = w.slot<T>(i.a), *b = w.slot<T>(i.b), *c = w.slot<T>(i.c);
    auto two = [&](T x, T y) {
        bool nx = x != x, ny = y != y;
        T r;
        if (x == y) r = (std::signbit(x) == MAX) ? y : x; // +0 is above -0
        else r = MAX ? (x > y ? x : y) : (x < y ? x : y);
        if (nx) r = y;
        if (ny) r = x;
        if ((nx && ny) || (propagate && (nx || ny))) r = canonical(T(NAN));
        return r;
    };
    write_lanes(w.slot<T>(i.d), mask, [&](int l) {
        T x = a[l], y = b[l], z = c[l];
        if constexpr (sizeof(T) == 4)
            if (ftz) x = flush(x), y = flush(y), z = flush(z);
        T r = two(x, y);
        return i.sub == 3 ? two(r, z) : r;
    });
}

// sub: 0 abs, 1 neg; imm bit 0: ftz
template <class T> void sign_op(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a);
    write_lanes(w.slot<T>(i.d), mask, [&](int l) {
        T x = a[l];
        if constexpr (sizeof(T) == 4)
            if (i.imm & 1) x = flush(x);
        return i.sub ? -x : std::fabs(x);
    });
}
template <class T> void copy_sign(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a), *b = w.slot<T>(i.b);
    write_lanes(w.slot<T>(i.d), mask, [&](int l) { return std::copysign(b[l], a[l]); });
}

} // namespace

// An f32 add or sub as a multiply-add, when one of its operands is a product.
static bool fuse(Decoder &d, Inst &i, bool subtract)
{
    for (int k = 1; k <= 2; k++) {
        const Statement *mul = d.product(d.arg(k));
        if (!mul || mul->has("ftz") != d.has("ftz")) continue;
        i.d = d.dest(d.arg(0), 4);
        i.a = d.source(mul->args[1], 4);
        i.b = d.source(mul->args[2], 4);
        i.c = d.source(d.arg(3 - k), 4);
        bool ftz = d.has("ftz"), sat = d.has("sat");
        i.fn = !subtract ? float_handler<FMA>(ftz, sat, 0)
               : k == 1  ? float_handler<FMS>(ftz, sat, 0)
                         : float_handler<FNMA>(ftz, sat, 0);
        return true;
    }
    return false;
}

bool decode_float(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    static const std::map<std::string, int> known = {{"add", 2}, {"sub", 2}, {"mul", 2},     {"fma", 3},
                                                     {"mad", 3}, {"div", 2}, {"min", 2},     {"max", 2},
                                                     {"abs", 1}, {"neg", 1}, {"copysign", 2}};
    auto it = known.find(op);
    if (it == known.end()) return false;
    auto types = d.types();
    Ty t = types.back();
    if ((t != Ty::F32 && t != Ty::F64) || types.size() > 1) return false;
    bool f = t == Ty::F32, ftz = d.has("ftz"), sat = d.has("sat");
    int width = f ? 4 : 8, n = it->second;
    if (f && (op == "add" || op == "sub") && !d.has("rn") && !d.one_of({"rz", "rm", "rp"}) &&
        fuse(d, i, op == "sub"))
        return true;
    bool three = (op == "min" || op == "max") && d.args() == 4;
    operands(d, i, width, width, three ? 3 : n);
    i.sub = (u8)d.one_of({"rz", "rm", "rp"});
    int mode = i.sub;
    i.imm = (ftz ? 1 : 0) | (d.has("NaN") ? 2 : 0);
    if (op == "add") i.fn = f ? float_handler<ADD>(ftz, sat, mode) : double_handler<ADD>(mode);
    if (op == "sub") i.fn = f ? float_handler<SUB>(ftz, sat, mode) : double_handler<SUB>(mode);
    if (op == "mul") i.fn = f ? float_handler<MUL>(ftz, sat, mode) : double_handler<MUL>(mode);
    if (op == "fma" || op == "mad") i.fn = f ? float_handler<FMA>(ftz, sat, mode) : double_handler<FMA>(mode);
    if (op == "div") i.fn = f ? float_handler<DIV>(ftz, sat, mode) : double_handler<DIV>(mode);
    if (op == "min" || op == "max") {
        if (d.has("xorsign")) d.fail("xorsign");
        i.sub = three ? 3 : 2;
        if (op == "min") i.fn = f ? extreme<float, false> : extreme<double, false>;
        if (op == "max") i.fn = f ? extreme<float, true> : extreme<double, true>;
    }
    if (op == "abs" || op == "neg") {
        i.sub = op == "neg";
        i.fn = f ? sign_op<float> : sign_op<double>;
    }
    if (op == "copysign") i.fn = f ? copy_sign<float> : copy_sign<double>;
    return true;
}

} // namespace emu
