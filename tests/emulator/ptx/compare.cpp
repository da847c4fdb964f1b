// setp and set, for integers, f32, f64, f16, bf16 and their pairs.
#include "lanes.h"
#include "numeric.h"

namespace emu {

namespace {

enum Cmp : u8 { EQ = 1, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NANC };

int compare_word(const Decoder &d)
{
    static const std::map<std::string, int> names = {
        {"eq", EQ},   {"ne", NE},   {"lt", LT},   {"le", LE},   {"gt", GT},   {"ge", GE},
        {"lo", LT},   {"ls", LE},   {"hi", GT},   {"hs", GE},   {"equ", EQU}, {"neu", NEU},
        {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NANC}};
    auto it = names.find(d.st->words.at(1));
    if (it == names.end()) d.fail("unknown comparison");
    return it->second;
}

template <class T, int c> inline bool holds(T a, T b)
{
    if constexpr (c == EQ) return a == b;
    if constexpr (c == NE) return a < b || a > b; // false for NaN
    if constexpr (c == LT) return a < b;
    if constexpr (c == LE) return a <= b;
    if constexpr (c == GT) return a > b;
    if constexpr (c == GE) return a >= b;
    if constexpr (c == EQU) return !(a < b || a > b);
    if constexpr (c == NEU) return a != b;
    if constexpr (c == LTU) return !(a >= b);
    if constexpr (c == LEU) return !(a > b);
    if constexpr (c == GTU) return !(a <= b);
    if constexpr (c == GEU) return !(a < b);
    if constexpr (c == NUM) return a == a && b == b;
    return a != a || b != b;
}

template <class T> using Compare = u32 (*)(const SlotOf<T> *, const SlotOf<T> *, bool);

template <class T, int c> u32 compare_lanes(const SlotOf<T> *a, const SlotOf<T> *b, bool ftz)
{
    if constexpr (sizeof(T) == 4 && std::is_floating_point_v<T>)
        if (ftz)
            return gather_mask([&](int l) { return holds<T, c>(flush(get<T>(a[l])), flush(get<T>(b[l]))); });
    (void)ftz;
    return gather_mask([&](int l) { return holds<T, c>(get<T>(a[l]), get<T>(b[l])); });
}

template <class T> u32 compare_by(int c, const SlotOf<T> *a, const SlotOf<T> *b, bool ftz)
{
    static const Compare<T> table[] = {nullptr,
                                       compare_lanes<T, EQ>,
                                       compare_lanes<T, NE>,
                                       compare_lanes<T, LT>,
                                       compare_lanes<T, LE>,
                                       compare_lanes<T, GT>,
                                       compare_lanes<T, GE>,
                                       compare_lanes<T, EQU>,
                                       compare_lanes<T, NEU>,
                                       compare_lanes<T, LTU>,
                                       compare_lanes<T, LEU>,
                                       compare_lanes<T, GTU>,
                                       compare_lanes<T, GEU>,
                                       compare_lanes<T, NUM>,
                                       compare_lanes<T, NANC>};
    return table[c](a, b, ftz);
}

// 16-bit floats are widened first; 'half' 0 or 1 picks the element of a pair.
u32 compare_half(int c, const u32 *a, const u32 *b, bool brain, int half)
{
    u32 x[LANES], y[LANES];
    for (int l = 0; l < LANES; l++) {
        u16 p = (u16)(a[l] >> 16 * half), q = (u16)(b[l] >> 16 * half);
        x[l] = bits_as<u32>(brain ? bf16_to_float(p) : half_to_float(p));
        y[l] = bits_as<u32>(brain ? bf16_to_float(q) : half_to_float(q));
    }
    return compare_by<float>(c, x, y, false);
}

u32 combine(int op, u32 r, u32 c) { return op == 1 ? r & c : op == 2 ? r | c : op == 3 ? r ^ c : r; }

// vec: comparison; sub: combination with predicate c (flag: negated); imm: Ty; wide: ftz
u32 result(Warp &w, const Inst &i, int half)
{
    bool ftz = i.wide;
    const u32 *a = w.slot<u32>(i.a), *b = w.slot<u32>(i.b);
    const u64 *a8 = w.slot<u64>(i.a), *b8 = w.slot<u64>(i.b);
    switch ((Ty)i.imm) {
    case Ty::S16: return compare_by<s16>(i.vec, a, b, false);
    case Ty::U16:
    case Ty::B16: return compare_by<u16>(i.vec, a, b, false);
    case Ty::S32: return compare_by<s32>(i.vec, a, b, false);
    case Ty::S64: return compare_by<s64>(i.vec, a8, b8, false);
    case Ty::U64:
    case Ty::B64: return compare_by<u64>(i.vec, a8, b8, false);
    case Ty::F32: return compare_by<float>(i.vec, a, b, ftz);
    case Ty::F64: return compare_by<double>(i.vec, a8, b8, false);
    case Ty::F16:
    case Ty::F16x2: return compare_half(i.vec, a, b, false, half);
    case Ty::BF16:
    case Ty::BF16x2: return compare_half(i.vec, a, b, true, half);
    default: return compare_by<u32>(i.vec, a, b, false);
    }
}

void set_predicate(Warp &w, const Inst &i, u32 mask)
{
    u32 c = i.sub ? w.pred(i.c) ^ (i.flag ? ALL_LANES : 0) : 0;
    u32 r = result(w, i, 0);
    bool pair = type_packed((Ty)i.imm);
    if (i.d2) write_pred(w, i.d2, mask, combine(i.sub, pair ? result(w, i, 1) : ~r, c));
    write_pred(w, i.d, mask, combine(i.sub, r, c));
}

// e: Ty of the result
void set_value(Warp &w, const Inst &i, u32 mask)
{
    u32 c = i.sub ? w.pred(i.c) ^ (i.flag ? ALL_LANES : 0) : 0;
    u32 r = combine(i.sub, result(w, i, 0), c), yes = ~0u, hi = 0;
    Ty t = (Ty)i.e;
    if (t == Ty::F32) yes = 0x3f800000;
    if (t == Ty::F16 || t == Ty::F16x2) yes = 0x3c00;
    if (t == Ty::BF16 || t == Ty::BF16x2) yes = 0x3f80;
    if (t == Ty::U16 || t == Ty::S16) yes = 0xffff;
    bool pair = type_packed((Ty)i.imm);
    if (pair) {
        hi = combine(i.sub, result(w, i, 1), c);
        if (!type_packed(t)) yes = 0xffff; // set.u32.f16x2 style masks
    }
    write_lanes(w.slot<u32>(i.d), mask,
                [&](int l) { return (r >> l & 1 ? yes : 0) | (hi >> l & 1 ? yes << 16 : 0); });
}

} // namespace

bool decode_compare(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    if (op != "setp" && op != "set") return false;
    auto types = d.types();
    Ty t = types.back();
    int width = slot_width(t);
    i.vec = (u8)compare_word(d);
    i.sub = (u8)d.one_of({"and", "or", "xor"});
    i.imm = (s64)t;
    i.wide = d.has("ftz");
    if (op == "setp") {
        i.d = d.predicate_dest(d.arg(0));
        if (!d.arg(0).parts.empty()) i.d2 = d.predicate_dest(d.arg(0).parts[0]);
        i.fn = set_predicate;
    } else {
        i.d = d.dest(d.arg(0), 4);
        i.e = (u32)types[0];
        i.fn = set_value;
    }
    i.a = d.source(d.arg(1), width);
    i.b = d.source(d.arg(2), width);
    if (i.sub) i.c = d.predicate(d.arg(3), i.flag);
    return true;
}

} // namespace emu
