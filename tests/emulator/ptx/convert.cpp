// cvt between all integer and float types, with every rounding, sat, relu, satfinite and the packed 16-bit
// forms.
#include "lanes.h"
#include "numeric.h"
#include <cfenv>

namespace emu {

namespace {

struct Conversion {
    Ty to, from;
    Round round = Round::Nearest;
    bool to_integral = false; // rni, rzi, ...: round to an integral value
    bool ftz = false, sat = false, relu = false, finite = false;
};

u64 sign_extend(u64 v, int bytes)
{
    int s = 64 - 8 * bytes;
    return (u64)((s64)(v << s) >> s);
}
u64 truncate(u64 v, int bytes) { return bytes == 8 ? v : v & ((1ull << 8 * bytes) - 1); }

double read_float(u64 v, Ty t)
{
    switch (t) {
    case Ty::F16: return half_to_float((u16)v);
    case Ty::BF16: return bf16_to_float((u16)v);
    case Ty::F64: return bits_as<double>(v);
    default: return bits_as<float>((u32)v);
    }
}

double integral(double x, Round r)
{
    switch (r) {
    case Round::Zero: return std::trunc(x);
    case Round::Down: return std::floor(x);
    case Round::Up: return std::ceil(x);
    default: return std::nearbyint(x);
    }
}

u64 write_float(double x, const Conversion &c)
{
    if (c.sat) x = x > 0 ? std::min(x, 1.0) : 0;      // NaN becomes 0
    if (c.relu) x = std::isnan(x) || x > 0 ? x : 0.0; // -0 becomes +0
    switch (c.to) {
    case Ty::F16: return double_to_half(x, c.round, c.finite);
    case Ty::BF16: return double_to_bf16(x, c.round, c.finite);
    case Ty::F64: return bits_as<u64>(x);
    case Ty::TF32:
        if (std::isnan(x)) return 0x7fffffff;
        return bits_as<u32>((float)round_to_format(x, 11, -126, 127, c.round, c.finite));
    default: {
        float f =
            std::isnan(x) ? bits_as<float>(0x7fffffffu) : (float)round_to_format(x, 24, -126, 127, c.round);
        return bits_as<u32>(c.ftz ? flush(f) : f);
    }
    }
}

u64 float_to_int(double x, const Conversion &c)
{
    int n = type_bytes(c.to);
    bool sign = type_signed(c.to);
    if (std::isnan(x)) return n == 8 ? 1ull << 63 : 0; // as the hardware does
    double r = integral(x, c.round);
    double hi = std::ldexp(1.0, 8 * n - (sign ? 1 : 0)), lo = sign ? -hi : 0;
    if (r >= hi) return truncate(sign ? (1ull << (8 * n - 1)) - 1 : ~0ull, n);
    if (r < lo) return sign ? sign_extend(1ull << (8 * n - 1), n) : 0;
    return sign ? (u64)(s64)r : (u64)r;
}

// 64-bit integers do not fit a double: round in one step through the host's rounding mode.
u64 int_to_float(u64 v, bool sign, const Conversion &c)
{
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
    if (c.to == Ty::F32 || c.to == Ty::F64) {
        fesetround(modes[(int)c.round]);
        volatile s64 sv = (s64)v;
        volatile u64 uv = v;
        u64 r;
        if (c.to == Ty::F32) r = bits_as<u32>(sign ? (float)sv : (float)uv);
        else r = bits_as<u64>(sign ? (double)sv : (double)uv);
        fesetround(FE_TONEAREST);
        return r;
    }
    return write_float(sign ? (double)(s64)v : (double)v, c);
}

u64 int_to_int(u64 v, bool from_signed, const Conversion &c)
{
    int n = type_bytes(c.to);
    bool sign = type_signed(c.to);
    if (c.sat) {
        __int128 x = from_signed ? (__int128)(s64)v : (__int128)v;
        __int128 hi = ((__int128)1 << (8 * n - (sign ? 1 : 0))) - 1, lo = sign ? -hi - 1 : 0;
        v = (u64)(s64)std::min(std::max(x, lo), hi);
    }
    return sign ? sign_extend(v, n) : truncate(v, n);
}

u64 convert(u64 v, const Conversion &c)
{
    if (type_float(c.from)) {
        double x = read_float(v, c.from);
        if (c.ftz && c.from == Ty::F32) x = flush((float)x);
        if (!type_float(c.to) && c.to != Ty::TF32) return float_to_int(x, c);
        if (c.to_integral) x = integral(x, c.round);
        return write_float(x, c);
    }
    int n = type_bytes(c.from);
    bool sign = type_signed(c.from);
    v = sign ? sign_extend(v, n) : truncate(v, n);
    return type_float(c.to) ? int_to_float(v, sign, c) : int_to_int(v, sign, c);
}

Conversion unpack(const Inst &i)
{
    Conversion c;
    c.to = (Ty)(i.imm & 255);
    c.from = (Ty)(i.imm >> 8 & 255);
    c.round = (Round)(i.imm >> 16 & 15);
    c.to_integral = i.imm >> 20 & 1;
    c.ftz = i.imm >> 21 & 1;
    c.sat = i.imm >> 22 & 1;
    c.relu = i.imm >> 23 & 1;
    c.finite = i.imm >> 24 & 1;
    return c;
}

// The general path. imm: the conversion.
template <class From, class To> void any_to_any(Warp &w, const Inst &i, u32 mask)
{
    Conversion c = unpack(i);
    const From *a = w.slot<From>(i.a);
    To *d = w.slot<To>(i.d);
    each_lane(mask, [&](int l) { d[l] = (To)convert(a[l], c); });
}

// Pairs: a is the upper half, b the lower one.
void to_pair(Warp &w, const Inst &i, u32 mask)
{
    Conversion c = unpack(i);
    const u32 *a = w.slot<u32>(i.a), *b = w.slot<u32>(i.b);
    u32 *d = w.slot<u32>(i.d);
    each_lane(mask, [&](int l) { d[l] = (u32)convert(a[l], c) << 16 | (u32)convert(b[l], c); });
}

// The forms of hot loops, as lane loops without branches.
void to_bf16x2(Warp &w, const Inst &i, u32 mask)
{
    const float *a = w.slot<float>(i.a), *b = w.slot<float>(i.b);
    write_lanes(w.slot<u32>(i.d), mask,
                [&](int l) { return (u32)float_to_bf16_nearest(a[l]) << 16 | float_to_bf16_nearest(b[l]); });
}
void to_bf16(Warp &w, const Inst &i, u32 mask)
{
    const float *a = w.slot<float>(i.a);
    write_lanes(w.slot<u32>(i.d), mask, [&](int l) { return (u32)float_to_bf16_nearest(a[l]); });
}
void from_bf16(Warp &w, const Inst &i, u32 mask)
{
    const u32 *a = w.slot<u32>(i.a);
    write_lanes(w.slot<u32>(i.d), mask, [&](int l) { return a[l] << 16; });
}
void from_half(Warp &w, const Inst &i, u32 mask)
{
    const u32 *a = w.slot<u32>(i.a);
    write_lanes(w.slot<float>(i.d), mask, [&](int l) { return half_to_float((u16)a[l]); });
}
template <class From, class To, class FromSlot, class ToSlot> void resize(Warp &w, const Inst &i, u32 mask)
{
    const FromSlot *a = w.slot<FromSlot>(i.a);
    write_lanes(w.slot<ToSlot>(i.d), mask, [&](int l) { return (ToSlot)(To)(From)a[l]; });
}
void s32_to_f32(Warp &w, const Inst &i, u32 mask)
{
    const s32 *a = w.slot<s32>(i.a);
    write_lanes(w.slot<float>(i.d), mask, [&](int l) { return (float)a[l]; });
}

Handler special_case(const Conversion &c, int from, int to)
{
    bool plain = !c.ftz && !c.sat && !c.relu && !c.finite && !c.to_integral;
    if (!plain) return nullptr;
    bool near = c.round == Round::Nearest;
    if (near && c.from == Ty::F32 && c.to == Ty::BF16) return to_bf16;
    if (c.from == Ty::BF16 && c.to == Ty::F32) return from_bf16;
    if (c.from == Ty::F16 && c.to == Ty::F32) return from_half;
    if (near && c.from == Ty::S32 && c.to == Ty::F32) return s32_to_f32;
    if (from == 4 && to == 8 && c.from == Ty::U32 && !type_float(c.to)) return resize<u32, u64, u32, u64>;
    if (from == 4 && to == 8 && c.from == Ty::S32 && c.to == Ty::S64) return resize<s32, s64, u32, u64>;
    if (from == 8 && to == 4 && !type_float(c.from) && (c.to == Ty::U32 || c.to == Ty::S32))
        return resize<u64, u32, u64, u32>;
    if (from == 4 && to == 4 && c.from == Ty::U16 && c.to == Ty::U32) return resize<u16, u32, u32, u32>;
    if (from == 4 && to == 4 && c.from == Ty::U32 && c.to == Ty::U16) return resize<u32, u16, u32, u32>;
    return nullptr;
}

} // namespace

bool decode_convert(Decoder &d, Inst &i)
{
    if (d.st->words[0] != "cvt") return false;
    auto types = d.types();
    if (types.size() < 2) d.fail("conversion between types outside the covered ones"); // e4m3x2 and others
    Conversion c;
    bool pair = type_packed(types[0]);
    c.to = type_element(types[0]);
    c.from = types[1];
    int r = d.one_of({"rn", "rz", "rm", "rp", "rna"}), ri = d.one_of({"rni", "rzi", "rmi", "rpi"});
    if (d.has("rs")) d.fail("stochastic rounding");
    bool narrow_int = type_float(c.from) && !type_float(c.to) && c.to != Ty::TF32;
    c.round = r ? (Round)(r - 1) : ri ? (Round)(ri - 1) : narrow_int ? Round::Zero : Round::Nearest;
    c.to_integral = ri && type_float(c.to);
    c.ftz = d.has("ftz");
    c.sat = d.has("sat");
    c.relu = d.has("relu");
    c.finite = d.has("satfinite");
    i.imm = (s64)c.to | (s64)c.from << 8 | (s64)c.round << 16 | (s64)c.to_integral << 20 | (s64)c.ftz << 21 |
            (s64)c.sat << 22 | (s64)c.relu << 23 | (s64)c.finite << 24;
    if (pair) {
        operands(d, i, 4, 4, 2);
        bool fast = c.to == Ty::BF16 && c.from == Ty::F32 && c.round == Round::Nearest && !c.relu &&
                    !c.finite && !c.sat;
        i.fn = fast ? to_bf16x2 : to_pair;
        return true;
    }
    int to, from;
    i.d = d.dest_any(d.arg(0), slot_width(c.to), to);
    i.a = d.source_any(d.arg(1), slot_width(c.from), from);
    if ((i.fn = special_case(c, from, to))) return true;
    if (from == 8) i.fn = to == 8 ? any_to_any<u64, u64> : any_to_any<u64, u32>;
    else i.fn = to == 8 ? any_to_any<u32, u64> : any_to_any<u32, u32>;
    return true;
}

} // namespace emu
