// Bit operations: and, or, xor, not, cnot, shifts, funnel shift, lop3, bfe, bfi, bfind, brev, popc, clz,
// prmt, bmsk, fns; and logic on predicates.
#include "lanes.h"

namespace emu {

namespace {

enum Op { AND, OR, XOR, NOT, CNOT };

template <class T, int op> void logic(Warp &w, const Inst &i, u32 m)
{
    if constexpr (op == NOT) map1<T, T>(w, i, m, [](T a) { return (T)~a; });
    else if constexpr (op == CNOT) map1<T, T>(w, i, m, [](T a) { return (T)(a == 0); });
    else map2<T, T, T>(w, i, m, [](T a, T b) { return (T)(op == AND ? a & b : op == OR ? a | b : a ^ b); });
}
template <class T> Handler h_and() { return logic<T, AND>; }
template <class T> Handler h_or() { return logic<T, OR>; }
template <class T> Handler h_xor() { return logic<T, XOR>; }
template <class T> Handler h_not() { return logic<T, NOT>; }
template <class T> Handler h_cnot() { return logic<T, CNOT>; }

// sub: AND, OR, XOR, NOT; flag negates a, wide negates b
void logic_pred(Warp &w, const Inst &i, u32 m)
{
    u32 a = w.pred(i.a), b = i.sub == NOT ? 0 : w.pred(i.b);
    if (i.flag) a = ~a;
    if (i.wide) b = ~b;
    write_pred(w, i.d, m, i.sub == AND ? a & b : i.sub == OR ? a | b : i.sub == XOR ? a ^ b : ~a);
}

template <class T> void shift_left(Warp &w, const Inst &i, u32 m)
{
    map2<T, T, u32>(w, i, m, [](T a, u32 n) { return n >= 8 * sizeof(T) ? (T)0 : (T)((u64)a << n); });
}
template <class T> void shift_right(Warp &w, const Inst &i, u32 m)
{
    map2<T, T, u32>(w, i, m, [](T a, u32 n) {
        u32 bits = 8 * sizeof(T);
        if (std::is_signed_v<T>) return (T)(a >> (n >= bits ? bits - 1 : n));
        return n >= bits ? (T)0 : (T)(a >> n);
    });
}
template <class T> Handler h_shl() { return shift_left<std::make_unsigned_t<T>>; }
template <class T> Handler h_shr() { return shift_right<T>; }

// flag: left; sub: 1 wrap, 0 clamp
void funnel(Warp &w, const Inst &i, u32 m)
{
    map3<u32, u32, u32, u32>(w, i, m, [&](u32 lo, u32 hi, u32 n) {
        u64 v = (u64)hi << 32 | lo;
        n = i.sub ? n & 31 : std::min(n, 32u);
        return i.flag ? (n == 32 ? lo : (u32)((v << n) >> 32)) : (u32)(v >> n);
    });
}

void lop3(Warp &w, const Inst &i, u32 m)
{
    u32 k[8];
    for (int b = 0; b < 8; b++) k[b] = i.sub >> b & 1 ? ~0u : 0;
    map3<u32, u32, u32, u32>(w, i, m, [&](u32 a, u32 b, u32 c) {
        return (~a & ~b & ~c & k[0]) | (~a & ~b & c & k[1]) | (~a & b & ~c & k[2]) | (~a & b & c & k[3]) |
               (a & ~b & ~c & k[4]) | (a & ~b & c & k[5]) | (a & b & ~c & k[6]) | (a & b & c & k[7]);
    });
}

template <class T> void extract(Warp &w, const Inst &i, u32 m)
{
    using U = std::make_unsigned_t<T>;
    constexpr u32 bits = 8 * sizeof(T);
    map3<T, T, u32, u32>(w, i, m, [](T v, u32 pos, u32 len) {
        U a = (U)v;
        pos &= 255;
        len &= 255;
        if (!len) return (T)0;
        u32 top = std::min(pos + len - 1, bits - 1);
        bool sign = std::is_signed_v<T> && (a >> top & 1);
        U r = pos >= bits ? 0 : a >> pos;
        u32 keep = std::min(len, pos >= bits ? 0 : bits - pos);
        if (keep < bits) {
            U low = ((U)1 << keep) - 1;
            r &= low;
            if (sign) r |= ~low;
        }
        return (T)r;
    });
}
template <class T> void insert(Warp &w, const Inst &i, u32 mask)
{
    const T *a = w.slot<T>(i.a), *b = w.slot<T>(i.b);
    const u32 *pos = w.slot<u32>(i.c), *len = w.slot<u32>(i.e);
    write_lanes(w.slot<T>(i.d), mask, [&](int l) {
        u32 p = pos[l] & 255, n = len[l] & 255, bits = 8 * sizeof(T);
        T field = n >= bits ? ~(T)0 : (((T)1 << n) - 1);
        field = p >= bits ? 0 : field << p;
        T v = p >= bits ? 0 : a[l] << p;
        return (T)((b[l] & ~field) | (v & field));
    });
}
// flag: shiftamt
template <class T> void find_top(Warp &w, const Inst &i, u32 m)
{
    using U = std::make_unsigned_t<T>;
    map1<u32, T>(w, i, m, [&](T v) {
        U a = std::is_signed_v<T> && v < 0 ? (U)~v : (U)v;
        if (!a) return ~0u;
        u32 r = 63 - (u32)__builtin_clzll((u64)a);
        return i.flag ? (u32)(8 * sizeof(T)) - 1 - r : r;
    });
}
template <class T> void reverse(Warp &w, const Inst &i, u32 m)
{
    map1<T, T>(w, i, m, [](T a) {
        T r = 0;
        for (u32 k = 0; k < 8 * sizeof(T); k++) r |= (a >> k & 1) << (8 * sizeof(T) - 1 - k);
        return r;
    });
}
template <class T> void count_ones(Warp &w, const Inst &i, u32 m)
{
    map1<u32, T>(w, i, m, [](T a) { return (u32)__builtin_popcountll(a); });
}
template <class T> void count_zeros(Warp &w, const Inst &i, u32 m)
{
    map1<u32, T>(w, i, m, [](T a) {
        return a ? (u32)__builtin_clzll(a) - (64 - 8 * (u32)sizeof(T)) : 8 * (u32)sizeof(T);
    });
}

enum Permute { GENERIC, F4E, B4E, RC8, ECL, ECR, RC16 };

u32 permute_selector(int mode, u32 c)
{
    u32 n = c & 3;
    switch (mode) {
    case F4E: return (n + 3) << 12 | (n + 2) << 8 | (n + 1) << 4 | n;
    case B4E: return ((n + 5) & 7) << 12 | ((n + 6) & 7) << 8 | ((n + 7) & 7) << 4 | n;
    case RC8: return n * 0x1111;
    case ECL: return 0x3000 | std::max(n, 2u) << 8 | std::max(n, 1u) << 4 | n;
    case ECR: return n << 12 | std::min(n, 2u) << 8 | std::min(n, 1u) << 4;
    case RC16: return n & 1 ? 0x3232 : 0x1010;
    default: return c;
    }
}
void permute(Warp &w, const Inst &i, u32 m)
{
    map3<u32, u32, u32, u32>(w, i, m, [&](u32 a, u32 b, u32 c) {
        u64 v = (u64)b << 32 | a;
        u32 sel = permute_selector(i.sub, c), r = 0;
        for (int k = 0; k < 4; k++) {
            u32 s = sel >> 4 * k & 15;
            u32 byte = (u32)(v >> 8 * (s & 7)) & 255;
            if (s & 8) byte = byte & 128 ? 255 : 0;
            r |= byte << 8 * k;
        }
        return r;
    });
}
// flag: clamp
void bit_mask(Warp &w, const Inst &i, u32 m)
{
    map2<u32, u32, u32>(w, i, m, [&](u32 p, u32 n) {
        if (!i.flag) p &= 31, n &= 31;
        if (p >= 32) return 0u;
        return (n >= 32 ? ~0u : (1u << n) - 1) << p;
    });
}
// n-th set bit
void find_nth(Warp &w, const Inst &i, u32 m)
{
    map3<u32, u32, u32, s32>(w, i, m, [](u32 mask, u32 base, s32 n) {
        if (n == 0) return mask >> (base & 31) & 1 ? base : ~0u;
        int step = n > 0 ? 1 : -1, left = n > 0 ? n : -n;
        for (int k = (int)base; k >= 0 && k < 32; k += step)
            if (mask >> k & 1 && --left == 0) return (u32)k;
        return ~0u;
    });
}

bool decode_logic(Decoder &d, Inst &i, const std::string &op, Ty t)
{
    int which = op == "and"    ? AND
                : op == "or"   ? OR
                : op == "xor"  ? XOR
                : op == "not"  ? NOT
                : op == "cnot" ? CNOT
                               : -1;
    if (which < 0) return false;
    bool one = which >= NOT;
    if (t == Ty::Pred) {
        i.d = d.predicate_dest(d.arg(0));
        i.a = d.predicate(d.arg(1), i.flag);
        if (!one) i.b = d.predicate(d.arg(2), i.wide);
        i.sub = (u8)which;
        i.fn = logic_pred;
        return true;
    }
    operands(d, i, slot_width(t), slot_width(t), one ? 1 : 2);
    Ty u = type_bytes(t) == 2 ? Ty::U16 : type_bytes(t) == 8 ? Ty::U64 : Ty::U32;
    i.fn = which == AND   ? EMU_INT_HANDLER(u, h_and)
           : which == OR  ? EMU_INT_HANDLER(u, h_or)
           : which == XOR ? EMU_INT_HANDLER(u, h_xor)
           : which == NOT ? EMU_INT_HANDLER(u, h_not)
                          : EMU_INT_HANDLER(u, h_cnot);
    return true;
}

} // namespace

bool decode_bits(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    auto types = d.types();
    Ty t = types.empty() ? Ty::B32 : types.back();
    int width = slot_width(t);
    bool wide = width == 8;
    if (decode_logic(d, i, op, t)) return true;
    if (op == "shl" || op == "shr") {
        operands(d, i, width, width, 2, 4);
        i.fn = op == "shl" ? EMU_INT_HANDLER(t, h_shl) : EMU_INT_HANDLER(t, h_shr);
    } else if (op == "shf") {
        operands(d, i, 4, 4, 3);
        i.flag = d.has("l");
        i.sub = d.has("wrap");
        i.fn = funnel;
    } else if (op == "lop3") {
        if (d.args() != 5) d.fail("lop3 with a predicate");
        operands(d, i, 4, 4, 3);
        i.sub = (u8)d.arg(4).imm;
        i.fn = lop3;
    } else if (op == "bfe") {
        i.d = d.dest(d.arg(0), width);
        i.a = d.source(d.arg(1), width);
        i.b = d.source(d.arg(2), 4);
        i.c = d.source(d.arg(3), 4);
        i.fn = t == Ty::S32   ? extract<s32>
               : t == Ty::U32 ? extract<u32>
               : t == Ty::S64 ? extract<s64>
                              : extract<u64>;
    } else if (op == "bfi") {
        i.d = d.dest(d.arg(0), width);
        i.a = d.source(d.arg(1), width);
        i.b = d.source(d.arg(2), width);
        i.c = d.source(d.arg(3), 4);
        i.e = d.source(d.arg(4), 4);
        i.fn = wide ? insert<u64> : insert<u32>;
    } else if (op == "bfind") {
        i.flag = d.has("shiftamt");
        operands(d, i, 4, width, 1);
        i.fn = t == Ty::S32   ? find_top<s32>
               : t == Ty::S64 ? find_top<s64>
               : wide         ? find_top<u64>
                              : find_top<u32>;
    } else if (op == "brev") {
        operands(d, i, width, width, 1);
        i.fn = wide ? reverse<u64> : reverse<u32>;
    } else if (op == "popc" || op == "clz") {
        operands(d, i, 4, width, 1);
        i.fn = op == "popc" ? (wide ? count_ones<u64> : count_ones<u32>)
               : wide       ? count_zeros<u64>
                            : count_zeros<u32>;
    } else if (op == "prmt") {
        operands(d, i, 4, 4, 3);
        i.sub = (u8)d.one_of({"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"});
        i.fn = permute;
    } else if (op == "bmsk") {
        operands(d, i, 4, 4, 2);
        i.flag = d.has("clamp");
        i.fn = bit_mask;
    } else if (op == "fns") {
        operands(d, i, 4, 4, 3);
        i.fn = find_nth;
    } else {
        return false;
    }
    return true;
}

} // namespace emu
