// Arithmetic on f16, bf16 and the packed pairs f16x2, bf16x2, u16x2, s16x2, with one rounding per result;
// mixed forms that accumulate 16-bit factors in f32 (fma.rn.f32.bf16 and its kin).
#include "lanes.h"
#include "numeric.h"

namespace emu {

namespace {

enum Op : u8 { ADD, SUB, MUL, FMA, MIN, MAX, ABS, NEG };

struct Half {
    static double read(u16 v) { return half_to_float(v); }
    static u16 write(double v) { return double_to_half(v, Round::Nearest); }
};
struct Brain {
    static double read(u16 v) { return bf16_to_float(v); }
    static u16 write(double v) { return double_to_bf16(v, Round::Nearest); }
};

constexpr int SAT = 1, RELU = 2, PROPAGATE = 4, FLUSH = 8; // Inst::imm

template <class F> u16 element(const Inst &i, u16 a, u16 b, u16 c)
{
    bool na = (a & 0x7fff) != 0 && std::isnan(F::read(a)), nb = std::isnan(F::read(b));
    switch (i.sub) {
    case ABS: return na ? 0x7fff : (u16)(a & 0x7fff);
    case NEG: return na ? 0x7fff : (u16)(a ^ 0x8000);
    case MIN:
    case MAX: {
        if (na || nb) return (na && nb) || (i.imm & PROPAGATE) ? 0x7fff : na ? b : a;
        double x = F::read(a), y = F::read(b);
        if (x == y) return ((a & 0x8000) != 0) == (i.sub == MAX) ? b : a;
        return (x > y) == (i.sub == MAX) ? a : b;
    }
    default: break;
    }
    double x = F::read(a), y = F::read(b), r;
    if (i.sub == ADD) r = fma_odd(x, 1.0, y);
    else if (i.sub == SUB) r = fma_odd(x, 1.0, -y);
    else if (i.sub == MUL) r = x * y;
    else r = fma_odd(x, y, F::read(c));
    if (i.imm & SAT) r = r > 0 ? std::min(r, 1.0) : 0;
    if ((i.imm & RELU) && r <= 0) r = 0;
    u16 v = F::write(r);
    if ((i.imm & FLUSH) && !(v & 0x7c00)) v &= 0x8000;
    return v;
}

template <class F, bool PAIR> void floats(Warp &w, const Inst &i, u32 mask)
{
    const u32 *a = w.slot<u32>(i.a), *b = w.slot<u32>(i.b), *c = w.slot<u32>(i.c);
    u32 *d = w.slot<u32>(i.d);
    each_lane(mask, [&](int l) {
        u32 r = element<F>(i, (u16)a[l], (u16)b[l], (u16)c[l]);
        if (PAIR) r |= (u32)element<F>(i, (u16)(a[l] >> 16), (u16)(b[l] >> 16), (u16)(c[l] >> 16)) << 16;
        d[l] = r;
    });
}

template <bool SIGN> void integers(Warp &w, const Inst &i, u32 mask)
{
    map2<u32, u32, u32>(w, i, mask, [&](u32 a, u32 b) {
        u32 r = 0;
        for (int k = 0; k < 32; k += 16) {
            s32 x = SIGN ? (s32)(s16)(a >> k) : (s32)(u16)(a >> k),
                y = SIGN ? (s32)(s16)(b >> k) : (s32)(u16)(b >> k);
            s32 v = i.sub == ADD   ? x + y
                    : i.sub == SUB ? x - y
                    : i.sub == MIN ? std::min(x, y)
                                   : std::max(x, y);
            r |= (u32)(u16)v << k;
        }
        return r;
    });
}

// f32 result from 16-bit first operands: add, sub, fma. flag: bf16
void mixed(Warp &w, const Inst &i, u32 mask)
{
    const u32 *a = w.slot<u32>(i.a), *b = w.slot<u32>(i.b);
    const float *fb = w.slot<float>(i.b), *c = w.slot<float>(i.c);
    auto wide = [&](u32 v) { return i.flag ? bf16_to_float((u16)v) : half_to_float((u16)v); };
    write_lanes(w.slot<float>(i.d), mask, [&](int l) {
        if (i.sub == FMA) return std::fma(wide(a[l]), wide(b[l]), c[l]);
        return i.sub == ADD ? wide(a[l]) + fb[l] : wide(a[l]) - fb[l];
    });
}

} // namespace

bool decode_packed(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    static const std::map<std::string, std::pair<int, Op>> known = {
        {"add", {2, ADD}}, {"sub", {2, SUB}}, {"mul", {2, MUL}}, {"fma", {3, FMA}},
        {"min", {2, MIN}}, {"max", {2, MAX}}, {"abs", {1, ABS}}, {"neg", {1, NEG}}};
    auto it = known.find(op);
    if (it == known.end()) return false;
    auto types = d.types();
    Ty t = types.back(), e = type_element(t);
    bool mix = types.size() == 2 && types[0] == Ty::F32 && (t == Ty::F16 || t == Ty::BF16);
    bool ints = t == Ty::U16x2 || t == Ty::S16x2;
    if (!ints && e != Ty::F16 && e != Ty::BF16) return false;
    operands(d, i, 4, 4, it->second.first);
    i.sub = it->second.second;
    i.imm = (d.has("sat") ? SAT : 0) | (d.has("relu") ? RELU : 0) | (d.has("NaN") ? PROPAGATE : 0) |
            (d.has("ftz") ? FLUSH : 0);
    i.flag = e == Ty::BF16;
    if (mix) {
        if (op != "fma" && op != "add" && op != "sub") d.fail("mixed precision");
        i.fn = mixed;
    } else if (ints) {
        if (i.sub == MUL || i.sub >= FMA + 3) d.fail("16-bit integer pair");
        i.fn = t == Ty::S16x2 ? integers<true> : integers<false>;
    } else if (e == Ty::F16) {
        i.fn = type_packed(t) ? floats<Half, true> : floats<Half, false>;
    } else {
        i.fn = type_packed(t) ? floats<Brain, true> : floats<Brain, false>;
    }
    return true;
}

} // namespace emu
