// Transcendental and reciprocal instructions: ex2, lg2, sin, cos, tanh, rcp, rsqrt, sqrt; testp.
//
// The .approx forms are computed in double and rounded once, so they are more exact than the hardware's. ex2 alone is off
// by a unit in the last place for about half of its arguments, so that code does not take 2^(almost nothing) for 1.
#include "lanes.h"
#include "numeric.h"

namespace emu {

namespace {

enum Op : u8 { EX2, LG2, SIN, COS, TANH, RCP, RSQRT, SQRT };

double function(int op, double x)
{
    switch (op) {
    case EX2: return std::exp2(x);
    case LG2: return std::log2(x);
    case SIN: return std::sin(x);
    case COS: return std::cos(x);
    case TANH: return std::tanh(x);
    case RCP: return 1 / x;
    case RSQRT: return 1 / std::sqrt(x);
    default: return std::sqrt(x);
    }
}

// glibc's is within 0.51 ulp and three times as fast as the double one; whole numbers stay exact, as on hardware.
float approximate_ex2(float x)
{
    float r = exp2f(x);
    bool up = bits_as<u32>(x) * 2654435769u >> 31;
    return up && std::isnormal(r) && x != std::trunc(x) ? bits_as<float>(bits_as<u32>(r) + 1) : r;
}

float one_float(const Inst &i, float x)
{
    if (i.flag) x = flush(x);
    float r;
    if (i.sub == EX2 && !i.vec) r = approximate_ex2(x);
    else if (i.vec) r = (float)round_to_format(function(i.sub, x), 24, -126, 127, (Round)i.vec);
    else r = (float)function(i.sub, x);
    return i.flag ? flush(r) : r;
}

void on_float(Warp &w, const Inst &i, u32 mask)
{
    const float *a = w.slot<float>(i.a);
    float *d = w.slot<float>(i.d);
    if (i.sub == RCP && !i.vec && !i.flag) return write_lanes(d, mask, [&](int l) { return 1.0f / a[l]; });
    if (i.sub == SQRT && !i.vec && !i.flag)
        return write_lanes(d, mask, [&](int l) { return std::sqrt(a[l]); });
    each_lane(mask, [&](int l) { d[l] = one_float(i, a[l]); });
}

void on_double(Warp &w, const Inst &i, u32 mask)
{
    const double *a = w.slot<double>(i.a);
    double *d = w.slot<double>(i.d);
    each_lane(mask, [&](int l) { d[l] = function(i.sub, a[l]); });
}

// imm: 0 f16, 1 bf16; wide: a pair
void on_half(Warp &w, const Inst &i, u32 mask)
{
    auto one = [&](u16 v) {
        double x = i.imm ? bf16_to_float(v) : half_to_float(v), r = function(i.sub, x);
        return i.imm ? double_to_bf16(r, Round::Nearest) : double_to_half(r, Round::Nearest);
    };
    const u32 *a = w.slot<u32>(i.a);
    u32 *d = w.slot<u32>(i.d);
    each_lane(mask, [&](int l) {
        u32 r = one((u16)a[l]);
        if (i.wide) r |= (u32)one((u16)(a[l] >> 16)) << 16;
        d[l] = r;
    });
}

enum Test : u8 { NONE, FINITE, INFINITE, NUMBER, NAN_, NORMAL, SUBNORMAL };

template <class T> void test_property(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a);
    write_pred(w, i.d, mask, gather_mask([&](int l) {
                   int c = std::fpclassify(a[l]);
                   switch (i.sub) {
                   case FINITE: return c != FP_NAN && c != FP_INFINITE;
                   case INFINITE: return c == FP_INFINITE;
                   case NUMBER: return c != FP_NAN;
                   case NAN_: return c == FP_NAN;
                   case NORMAL: return c == FP_NORMAL;
                   default: return c == FP_SUBNORMAL;
                   }
               }));
}

} // namespace

bool decode_math(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    static const std::map<std::string, Op> known = {{"ex2", EX2},     {"lg2", LG2},   {"sin", SIN},
                                                    {"cos", COS},     {"tanh", TANH}, {"rcp", RCP},
                                                    {"rsqrt", RSQRT}, {"sqrt", SQRT}};
    auto types = d.types();
    if (op == "testp") {
        i.sub = (u8)d.one_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
        bool f = types.back() == Ty::F32;
        i.d = d.predicate_dest(d.arg(0));
        i.a = d.source(d.arg(1), f ? 4 : 8);
        i.fn = f ? test_property<float> : test_property<double>;
        return true;
    }
    auto it = known.find(op);
    if (it == known.end()) return false;
    Ty t = types.back(), e = type_element(t);
    int width = t == Ty::F64 ? 8 : 4;
    operands(d, i, width, width, 1);
    i.sub = it->second;
    i.flag = d.has("ftz");
    i.vec = (u8)d.one_of({"rz", "rm", "rp"});
    if (t == Ty::F64) {
        if (i.vec) d.fail("directed rounding in f64");
        i.fn = on_double;
    } else if (e == Ty::F16 || e == Ty::BF16) {
        i.imm = e == Ty::BF16;
        i.wide = type_packed(t);
        i.fn = on_half;
    } else {
        i.fn = on_float;
    }
    return true;
}

} // namespace emu
