// Integer arithmetic: add, sub, mul, mad (lo, hi, wide, sat, carry), div, rem, min, max, abs, neg, sad, dp4a,
// dp2a.
#include "lanes.h"
#include <limits>

namespace emu {

namespace {

template <class T> using Unsigned = std::make_unsigned_t<T>;
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, s32, u32>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, s64, u64>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

enum Op : int { ADD, SUB, MUL, MULHI, DIV, REM, MIN, MAX, ABS, NEG };

template <class T, int op> T apply(T a, T b)
{
    using U = Unsigned<T>;
    if constexpr (op == ADD) return (T)((U)a + (U)b);
    if constexpr (op == SUB) return (T)((U)a - (U)b);
    if constexpr (op == MUL) return (T)((u64)(U)a * (u64)(U)b);
    if constexpr (op == MULHI) return (T)(((Wide<T>)a * (Wide<T>)b) >> (8 * sizeof(T)));
    if constexpr (op == DIV) { // x/0 is unspecified in PTX; hardware gives all ones
        if (!b) return (T) ~(U)0;
        if (std::is_signed_v<T> && b == (T)-1) return (T)(0 - (U)a);
        return a / b;
    }
    if constexpr (op == REM) {
        if (!b) return a;
        if (std::is_signed_v<T> && b == (T)-1) return 0;
        return a % b;
    }
    if constexpr (op == MIN) return a < b ? a : b;
    if constexpr (op == MAX) return a > b ? a : b;
    if constexpr (op == ABS) return a < 0 ? (T)(0 - (U)a) : a;
    if constexpr (op == NEG) return (T)(0 - (U)a);
    return 0;
}

template <class T, int op> void binary(Warp &w, const Inst &i, u32 m)
{
    map2<T, T, T>(w, i, m, [](T a, T b) { return apply<T, op>(a, b); });
}
template <class T, int op> void unary(Warp &w, const Inst &i, u32 m)
{
    map1<T, T>(w, i, m, [](T a) { return apply<T, op>(a, (T)0); });
}
template <class T> void mad_low(Warp &w, const Inst &i, u32 m)
{
    map3<T, T, T, T>(w, i, m, [](T a, T b, T c) { return apply<T, ADD>(apply<T, MUL>(a, b), c); });
}
template <class T> void mad_high(Warp &w, const Inst &i, u32 m)
{
    map3<T, T, T, T>(w, i, m, [](T a, T b, T c) { return apply<T, ADD>(apply<T, MULHI>(a, b), c); });
}
template <class T> void mul_wide(Warp &w, const Inst &i, u32 m)
{
    map2<Wide<T>, T, T>(w, i, m, [](T a, T b) { return (Wide<T>)a * (Wide<T>)b; });
}
template <class T> void mad_wide(Warp &w, const Inst &i, u32 m)
{
    using U = Unsigned<Wide<T>>;
    map3<Wide<T>, T, T, Wide<T>>(
        w, i, m, [](T a, T b, Wide<T> c) { return (Wide<T>)((U)((Wide<T>)a * (Wide<T>)b) + (U)c); });
}
s32 clamp32(s64 v)
{
    return (s32)std::min<s64>(std::max<s64>(v, std::numeric_limits<s32>::min()),
                              std::numeric_limits<s32>::max());
}
void add_sat(Warp &w, const Inst &i, u32 m)
{
    map2<s32, s32, s32>(w, i, m, [](s32 a, s32 b) { return clamp32((s64)a + b); });
}
void sub_sat(Warp &w, const Inst &i, u32 m)
{
    map2<s32, s32, s32>(w, i, m, [](s32 a, s32 b) { return clamp32((s64)a - b); });
}
template <class T> void sad(Warp &w, const Inst &i, u32 m)
{
    map3<T, T, T, T>(w, i, m, [](T a, T b, T c) {
        T diff = a > b ? apply<T, SUB>(a, b) : apply<T, SUB>(b, a);
        return apply<T, ADD>(c, diff);
    });
}

// Carry chain. sub: 0 add, 1 subtract, 2 multiply low and add, 3 multiply high and add; flag: takes carry in;
// vec != 0: writes carry out.
template <class T> void carry_op(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a), *b = w.slot<T>(i.b), *c = w.slot<T>(i.c);
    u32 carry = w.carry;
    T r[LANES];
    for (int l = 0; l < LANES; l++) {
        unsigned __int128 x = a[l], y = b[l], in = i.flag ? w.carry >> l & 1 : 0, v;
        if (i.sub == 1) {
            v = x - y - in;
        } else {
            if (i.sub >= 2) {
                x = i.sub == 2 ? (T)(x * y) : (T)((x * y) >> (8 * sizeof(T)));
                y = c[l];
            }
            v = x + y + in;
        }
        r[l] = (T)v;
        u32 out = (u32)(v >> (8 * sizeof(T))) & 1;
        if (i.vec && (mask >> l & 1)) carry = (carry & ~(1u << l)) | out << l;
    }
    w.carry = carry;
    write_lanes(w.slot<T>(i.d), mask, [&](int l) { return r[l]; });
}

// sub bit 0: first operand signed, bit 1: second; imm 4: four bytes, 2: two halves with the low or high byte
// pair
void dot(Warp &w, const Inst &i, u32 mask)
{
    bool sa = i.sub & 1, sb = i.sub & 2;
    map3<u32, u32, u32, u32>(w, i, mask, [&](u32 a, u32 b, u32 c) {
        for (int k = 0; k < i.imm; k++) {
            s32 x, y;
            if (i.imm == 4) {
                x = sa ? (s32)(s8)(a >> 8 * k) : (s32)(u8)(a >> 8 * k);
                y = sb ? (s32)(s8)(b >> 8 * k) : (s32)(u8)(b >> 8 * k);
            } else {
                x = sa ? (s32)(s16)(a >> 16 * k) : (s32)(u16)(a >> 16 * k);
                int at = 8 * k + (i.flag ? 16 : 0);
                y = sb ? (s32)(s8)(b >> at) : (s32)(u8)(b >> at);
            }
            c += (u32)(x * y);
        }
        return c;
    });
}

template <class T> Handler h_add() { return binary<T, ADD>; }
template <class T> Handler h_sub() { return binary<T, SUB>; }
template <class T> Handler h_mul() { return binary<T, MUL>; }
template <class T> Handler h_mulhi() { return binary<T, MULHI>; }
template <class T> Handler h_div() { return binary<T, DIV>; }
template <class T> Handler h_rem() { return binary<T, REM>; }
template <class T> Handler h_min() { return binary<T, MIN>; }
template <class T> Handler h_max() { return binary<T, MAX>; }
template <class T> Handler h_abs() { return unary<T, ABS>; }
template <class T> Handler h_neg() { return unary<T, NEG>; }
template <class T> Handler h_mad() { return mad_low<T>; }
template <class T> Handler h_madhi() { return mad_high<T>; }
template <class T> Handler h_sad() { return sad<T>; }

Handler wide_handler(Ty t, bool add)
{
    switch (t) {
    case Ty::S16: return add ? mad_wide<s16> : mul_wide<s16>;
    case Ty::U16: return add ? mad_wide<u16> : mul_wide<u16>;
    case Ty::S32: return add ? mad_wide<s32> : mul_wide<s32>;
    default: return add ? mad_wide<u32> : mul_wide<u32>;
    }
}

bool decode_carry(Decoder &d, Inst &i, const std::string &op, Ty t)
{
    bool in = op == "addc" || op == "subc" || op == "madc";
    if (!in && !d.has("cc")) return false;
    bool mad = op == "mad" || op == "madc";
    operands(d, i, slot_width(t), slot_width(t), mad ? 3 : 2);
    if (!mad) i.c = i.b;
    i.sub = mad ? (d.has("hi") ? 3 : 2) : op == "sub" || op == "subc" ? 1 : 0;
    if (i.sub == 3 && type_signed(t)) d.fail("signed mad.hi with carry");
    i.flag = in;
    i.vec = d.has("cc");
    i.fn = slot_width(t) == 8 ? carry_op<u64> : carry_op<u32>;
    return true;
}

} // namespace

bool decode_int(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    static const std::map<std::string, int> known = {
        {"add", 2},  {"sub", 2},  {"mul", 2},  {"mad", 3},  {"div", 2},   {"rem", 2},
        {"min", 2},  {"max", 2},  {"abs", 1},  {"neg", 1},  {"sad", 3},   {"addc", 2},
        {"subc", 2}, {"madc", 3}, {"dp4a", 3}, {"dp2a", 3}, {"mul24", 2}, {"mad24", 3}};
    auto it = known.find(op);
    if (it == known.end()) return false;
    auto types = d.types();
    Ty t = types.back();
    if (type_float(t) || type_packed(t)) return false;
    int n = it->second, width = slot_width(t);
    if (op == "dp4a" || op == "dp2a") {
        operands(d, i, 4, 4, 3);
        i.sub = (types[0] == Ty::S32 ? 1 : 0) | (t == Ty::S32 ? 2 : 0);
        i.imm = op == "dp4a" ? 4 : 2;
        i.flag = d.has("hi");
        i.fn = dot;
        return true;
    }
    if (decode_carry(d, i, op, t)) return true;
    if (d.has("wide")) {
        int out = type_bytes(t) == 4 ? 8 : 4;
        operands(d, i, out, width, n, n == 3 ? out : 0);
        i.fn = wide_handler(t, n == 3);
        return true;
    }
    bool hi = d.has("hi");
    operands(d, i, width, width, n);
    if (d.has("sat")) {
        if (t != Ty::S32 || (op != "add" && op != "sub")) d.fail("saturation");
        i.fn = op == "add" ? add_sat : sub_sat;
        return true;
    }
    if (op == "mul24" || op == "mad24") d.fail("24-bit multiply");
    i.fn = op == "add"   ? EMU_INT_HANDLER(t, h_add)
           : op == "sub" ? EMU_INT_HANDLER(t, h_sub)
           : op == "mul" ? (hi ? EMU_INT_HANDLER(t, h_mulhi) : EMU_INT_HANDLER(t, h_mul))
           : op == "mad" ? (hi ? EMU_INT_HANDLER(t, h_madhi) : EMU_INT_HANDLER(t, h_mad))
           : op == "div" ? EMU_INT_HANDLER(t, h_div)
           : op == "rem" ? EMU_INT_HANDLER(t, h_rem)
           : op == "min" ? EMU_INT_HANDLER(t, h_min)
           : op == "max" ? EMU_INT_HANDLER(t, h_max)
           : op == "abs" ? EMU_INT_HANDLER(t, h_abs)
           : op == "neg" ? EMU_INT_HANDLER(t, h_neg)
                         : EMU_INT_HANDLER(t, h_sad);
    return true;
}

} // namespace emu
