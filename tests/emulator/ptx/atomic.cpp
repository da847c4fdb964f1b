// atom and red on global, shared and generic addresses: every operation and type, lanes in ascending order.
#include "lanes.h"
#include "numeric.h"

namespace emu {

namespace {

enum Op : u8 { NONE, ADD, MIN, MAX, AND, OR, XOR, EXCH, CAS, INC, DEC };

float add_float(float a, float b)
{
    float r = a + b;
    return r != r ? bits_as<float>(0x7fffffffu) : r;
}

u16 half_op(int op, bool brain, u16 a, u16 b)
{
    double x = brain ? bf16_to_float(a) : half_to_float(a), y = brain ? bf16_to_float(b) : half_to_float(b),
           r;
    if (op == ADD) r = fma_odd(x, 1.0, y);
    else r = (x != x) ? y : (y != y) ? x : op == MIN ? std::min(x, y) : std::max(x, y);
    return brain ? double_to_bf16(r, Round::Nearest) : double_to_half(r, Round::Nearest);
}

template <class T> T int_op(int op, T old, T b, T c)
{
    using U = std::make_unsigned_t<T>;
    switch (op) {
    case ADD: return (T)((U)old + (U)b);
    case MIN: return std::min(old, b);
    case MAX: return std::max(old, b);
    case AND: return old & b;
    case OR: return old | b;
    case XOR: return old ^ b;
    case EXCH: return b;
    case CAS: return old == b ? c : old;
    case INC: return (U)old >= (U)b ? 0 : old + 1;
    default: return old == 0 || (U)old > (U)b ? b : old - 1;
    }
}

u64 combine(int op, Ty t, u64 old, u64 b, u64 c)
{
    switch (t) {
    case Ty::F32: return bits_as<u32>(add_float(bits_as<float>((u32)old), bits_as<float>((u32)b)));
    case Ty::F64: return bits_as<u64>(bits_as<double>(old) + bits_as<double>(b));
    case Ty::F16: return half_op(op, false, (u16)old, (u16)b);
    case Ty::BF16: return half_op(op, true, (u16)old, (u16)b);
    case Ty::F16x2:
    case Ty::BF16x2: {
        bool brain = t == Ty::BF16x2;
        return half_op(op, brain, (u16)old, (u16)b) |
               (u32)half_op(op, brain, (u16)(old >> 16), (u16)(b >> 16)) << 16;
    }
    case Ty::S32: return (u32)int_op<s32>(op, (s32)old, (s32)b, (s32)c);
    case Ty::S64: return (u64)int_op<s64>(op, (s64)old, (s64)b, (s64)c);
    case Ty::U64:
    case Ty::B64: return int_op<u64>(op, old, b, c);
    case Ty::B16: return int_op<u16>(op, (u16)old, (u16)b, (u16)c);
    default: return int_op<u32>(op, (u32)old, (u32)b, (u32)c);
    }
}

// sub: operation; e: Ty; ext: value slots; d: destination when flag; c: third operand of cas
template <class S> void atomic(Warp &w, const Inst &i, u32 mask)
{
    Ty t = (Ty)i.e;
    int n = type_bytes(t);
    u8 *p[LANES];
    resolve(w, i, mask, n * i.vec, Access::Atomic, p);
    const u32 *from = &w.frame().func->ext[i.ext];
    each_lane(mask, [&](int l) {
        for (int k = 0; k < i.vec; k++) {
            u64 old = 0;
            memcpy(&old, p[l] + k * n, n);
            u64 now = combine(i.sub, t, old, w.slot<S>(from[k])[l], i.c ? w.slot<S>(i.c)[l] : 0);
            memcpy(p[l] + k * n, &now, n);
            if (i.flag) w.slot<S>(i.d)[l] = (S)old;
        }
    });
}

} // namespace

bool decode_atomic(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    bool returns = op == "atom";
    if (!returns && op != "red") return false;
    if (d.has("async")) d.fail("asynchronous reduction");
    Ty t = d.types().back();
    i.space = d.space_word();
    i.sub = (u8)d.one_of({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
    i.e = (u32)t;
    i.cached = false;
    i.flag = returns;
    if (!i.sub || type_bytes(t) > 8) d.fail("unexpected atomic");
    if ((t == Ty::F32 || t == Ty::F64) && i.sub != ADD) d.fail("float atomic other than add");
    if (i.space != Space::Shared) d.kernel.order_matters = true;
    int width;
    size_t at = returns ? 1 : 0;
    if (returns && d.arg(0).kind == Operand::Vector) d.fail("atom with a vector result");
    elements(d, i, d.arg(at + 1), slot_width(t), width, false);
    if (returns) i.d = d.dest(d.arg(0), width);
    d.memory(d.arg(at), i);
    if (i.sub == CAS) i.c = d.source(d.arg(at + 2), width);
    i.fn = width == 8 ? atomic<u64> : atomic<u32>;
    return true;
}

} // namespace emu
