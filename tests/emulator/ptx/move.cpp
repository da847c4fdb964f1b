// mov (also packing and unpacking vectors), selp, slct.
#include "decode.h"
#include "warp.h"
#include <chrono>

namespace emu {

template <class S> static void move(Warp &w, const Inst &i, u32 mask)
{
    const S *s = w.slot<S>(i.a);
    S *d = w.slot<S>(i.d);
    if (mask == ALL_LANES) memmove(d, s, sizeof(S) * LANES);
    else
        for (int l = 0; l < LANES; l++) d[l] = mask >> l & 1 ? s[l] : d[l];
}

// Lanes of different slot widths; 'imm' is the mask of bits that survive.
template <class From, class To> static void move_resize(Warp &w, const Inst &i, u32 mask)
{
    const From *s = w.slot<From>(i.a);
    write_lanes(w.slot<To>(i.d), mask, [&](int l) { return (To)((u64)s[l] & (u64)i.imm); });
}

static void move_pred(Warp &w, const Inst &i, u32 mask)
{
    u32 v = w.pred(i.a);
    write_pred(w, i.d, mask, i.flag ? ~v : v);
}

static void move_clock(Warp &w, const Inst &i, u32 mask)
{
    u64 t = i.sub == 2 ? (u64)std::chrono::steady_clock::now().time_since_epoch().count() : w.warp_insts;
    if (i.wide) write_lanes(w.slot<u64>(i.d), mask, [&](int) { return t; });
    else write_lanes(w.slot<u32>(i.d), mask, [&](int) { return (u32)t; });
}

// Vector of elements to one register; 'sub' is the element's bytes.
template <class Whole, class Part> static void pack(Warp &w, const Inst &i, u32 mask)
{
    const u32 *from = &w.frame().func->ext[i.ext];
    int shift = i.sub * 8;
    u64 keep = (1ull << shift) - 1;
    write_lanes(w.slot<Whole>(i.d), mask, [&](int l) {
        u64 v = 0;
        for (int k = 0; k < i.vec; k++) v |= ((u64)w.slot<Part>(from[k])[l] & keep) << (shift * k);
        return (Whole)v;
    });
}

template <class Whole, class Part> static void unpack(Warp &w, const Inst &i, u32 mask)
{
    const u32 *to = &w.frame().func->ext[i.ext];
    Whole s[LANES]; // a destination may be the source
    memcpy(s, w.slot<Whole>(i.a), sizeof s);
    int shift = i.sub * 8;
    u64 keep = (1ull << shift) - 1;
    for (int k = 0; k < i.vec; k++)
        write_lanes(w.slot<Part>(to[k]), mask,
                    [&](int l) { return (Part)((u64)s[l] >> (shift * k) & keep); });
}

static void decode_vector_move(Decoder &d, Inst &i, bool packing)
{
    const Operand &vec = d.arg(packing ? 1 : 0), &one = d.arg(packing ? 0 : 1);
    int n = (int)vec.parts.size(), whole;
    u32 s = packing ? d.dest_any(one, 8, whole) : d.source_any(one, 8, whole);
    int bytes = type_bytes(d.types().back());
    if (n < 2 || bytes > 8 || (bytes == 8) != (whole == 8)) d.fail("unexpected vector mov");
    int part = bytes / n == 8 ? 8 : 4;
    (packing ? i.d : i.a) = s;
    std::vector<u32> slots;
    for (auto &x : vec.parts) slots.push_back(packing ? d.source(x, part) : d.dest(x, part));
    i.ext = d.func.ext.size();
    d.func.ext.insert(d.func.ext.end(), slots.begin(), slots.end());
    i.vec = (u8)n;
    i.sub = (u8)(bytes / n);
    if (packing) i.fn = whole == 8 ? pack<u64, u32> : pack<u32, u32>;
    else i.fn = whole == 8 ? unpack<u64, u32> : unpack<u32, u32>;
}

template <class S> static void select(Warp &w, const Inst &i, u32 mask)
{
    const S *a = w.slot<S>(i.a), *b = w.slot<S>(i.b);
    u32 p = w.pred(i.c);
    if (i.flag) p = ~p;
    write_lanes(w.slot<S>(i.d), mask, [&](int l) { return p >> l & 1 ? a[l] : b[l]; });
}

// sub: the condition is a float
template <class S> static void select_sign(Warp &w, const Inst &i, u32 mask)
{
    const S *a = w.slot<S>(i.a), *b = w.slot<S>(i.b);
    const u32 *c = w.slot<u32>(i.c);
    write_lanes(w.slot<S>(i.d), mask, [&](int l) {
        bool yes = i.sub ? bits_as<float>(c[l]) >= 0 : (s32)c[l] >= 0;
        return yes ? a[l] : b[l];
    });
}

bool decode_move(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    if (op == "selp" || op == "slct") {
        auto t = d.types();
        int width = slot_width(t[0]);
        i.d = d.dest(d.arg(0), width);
        i.a = d.source(d.arg(1), width);
        i.b = d.source(d.arg(2), width);
        if (op == "selp") {
            i.c = d.predicate(d.arg(3), i.flag);
            i.fn = width == 8 ? select<u64> : select<u32>;
        } else {
            i.c = d.source(d.arg(3), 4);
            i.sub = t[1] == Ty::F32;
            i.fn = width == 8 ? select_sign<u64> : select_sign<u32>;
        }
        return true;
    }
    if (op != "mov") return false;
    Ty t = d.types().back();
    if (t == Ty::Pred) {
        i.d = d.predicate_dest(d.arg(0));
        i.a = d.predicate(d.arg(1), i.flag);
        i.fn = move_pred;
        return true;
    }
    if (d.arg(0).kind == Operand::Vector || d.arg(1).kind == Operand::Vector) {
        decode_vector_move(d, i, d.arg(1).kind == Operand::Vector);
        return true;
    }
    int to, from;
    i.d = d.dest_any(d.arg(0), slot_width(t), to);
    const Operand &o = d.arg(1);
    if (o.kind == Operand::Special &&
        (o.name == "%clock" || o.name == "%clock64" || o.name == "%globaltimer" ||
         o.name == "%globaltimer_lo" || o.name == "%clock_hi")) {
        i.sub = o.name[1] == 'g' ? 2 : 1;
        i.wide = to == 8;
        i.fn = move_clock;
        return true;
    }
    i.a = d.source_any(o, to, from);
    i.imm = (s64)(type_bytes(t) == 8 ? ~0ull : (1ull << (8 * type_bytes(t))) - 1);
    bool narrow =
        type_bytes(t) < 4 && o.kind != Operand::Reg; // an immediate such as -1 for a 16-bit register
    if (to == from && !narrow) i.fn = to == 8 ? move<u64> : move<u32>;
    else if (to == 8) i.fn = from == 8 ? move_resize<u64, u64> : move_resize<u32, u64>;
    else i.fn = from == 8 ? move_resize<u64, u32> : move_resize<u32, u32>;
    return true;
}

} // namespace emu
