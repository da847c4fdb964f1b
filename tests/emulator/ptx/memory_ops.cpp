// ld, st, cvta, isspacep and the hints that do nothing here (prefetch, fences, cache policies).
#include "decode.h"
#include "warp.h"

namespace emu {

// One element: T in memory, S in the register slot (sign- or zero-extended).
template <class T, class S> static void load(Warp &w, const Inst &i, u32 mask)
{
    u8 *p[LANES];
    resolve(w, i, mask, sizeof(T) * i.vec, Access::Read, p);
    const u32 *dest = &w.frame().func->ext[i.ext];
    for (int k = 0; k < i.vec; k++) {
        S *d = w.slot<S>(dest[k]);
        if (mask == ALL_LANES) {
            for (int l = 0; l < LANES; l++) {
                T v;
                memcpy(&v, p[l] + k * sizeof(T), sizeof v);
                d[l] = (S)v;
            }
        } else {
            each_lane(mask, [&](int l) {
                T v;
                memcpy(&v, p[l] + k * sizeof(T), sizeof v);
                d[l] = (S)v;
            });
        }
    }
}

template <class T, class S> static void store(Warp &w, const Inst &i, u32 mask)
{
    u8 *p[LANES];
    resolve(w, i, mask, sizeof(T) * i.vec, Access::Write, p);
    const u32 *from = &w.frame().func->ext[i.ext];
    for (int k = 0; k < i.vec; k++) {
        const S *s = w.slot<S>(from[k]);
        each_lane(mask, [&](int l) {
            T v = (T)s[l];
            memcpy(p[l] + k * sizeof(T), &v, sizeof v);
        });
    }
}

template <class S> static Handler load_for(Ty t)
{
    bool sign = type_signed(t);
    switch (type_bytes(t)) {
    case 1: return sign ? load<s8, S> : load<u8, S>;
    case 2: return sign ? load<s16, S> : load<u16, S>;
    case 4: return sign ? load<s32, S> : load<u32, S>;
    default: return load<u64, S>;
    }
}

template <class S> static Handler store_for(Ty t)
{
    switch (type_bytes(t)) {
    case 1: return store<u8, S>;
    case 2: return store<u16, S>;
    case 4: return store<u32, S>;
    default: return store<u64, S>;
    }
}

static void nothing(Warp &, const Inst &, u32) {}

static void trap(Warp &w, const Inst &, u32 mask) { w.fault(lowest_lane(mask), "trap instruction executed"); }

// sub: the tag; flag: from generic to the space
static void convert_address(Warp &w, const Inst &i, u32 mask)
{
    const u64 *s = w.slot<u64>(i.b);
    u64 tag = i.sub;
    if (i.flag) write_lanes(w.slot<u64>(i.d), mask, [&](int l) { return tag ? address_untag(s[l]) : s[l]; });
    else write_lanes(w.slot<u64>(i.d), mask, [&](int l) { return tag ? address_tagged(tag, s[l]) : s[l]; });
}

static void is_space(Warp &w, const Inst &i, u32 mask)
{
    const u64 *s = w.slot<u64>(i.b);
    write_pred(w, i.d, mask, gather_mask([&](int l) { return address_tag(s[l]) == i.sub; }));
}

static int tag_of(Space s)
{
    switch (s) {
    case Space::Shared: return TAG_SHARED;
    case Space::Local: return TAG_LOCAL;
    case Space::Param: return TAG_PARAM;
    default: return 0;
    }
}

void elements(Decoder &d, Inst &i, const Operand &o, int preferred, int &width, bool dest)
{
    const std::vector<Operand> one = {o};
    const auto &list = o.kind == Operand::Vector ? o.parts : one;
    std::vector<u32> slots;
    width = 0;
    for (auto &x : list) { // all elements have one width; a sink takes the others'
        int w = 0;
        if (x.kind == Operand::Sink) continue;
        u32 s = dest ? d.dest_any(x, preferred, w) : d.source_any(x, preferred, w);
        (void)s;
        if (width && w != width) d.fail("vector elements of different widths");
        width = w;
    }
    if (!width) width = preferred;
    for (auto &x : list) slots.push_back(dest ? d.dest(x, width) : d.source(x, width));
    i.ext = d.func.ext.size();
    d.func.ext.insert(d.func.ext.end(), slots.begin(), slots.end());
    i.vec = (u8)list.size();
}

bool decode_memory(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    static const char *hints[] = {"membar",        "fence",          "prefetch", "prefetchu",
                                  "nanosleep",     "griddepcontrol", "pmevent",  "discard",
                                  "applypriority", "createpolicy",   "brkpt",    "setmaxnreg"};
    for (const char *h : hints) {
        if (op != h) continue;
        if (op == "createpolicy") // a policy is only a hint to the cache: its value is never used
            d.func.ext.push_back(0);
        i.fn = nothing;
        return true;
    }
    if (op == "trap") {
        i.fn = trap;
        return true;
    }
    if (op == "cvta" || op == "isspacep") {
        Space s = d.space_word();
        i.sub = (u8)tag_of(s);
        if (op == "cvta") {
            i.flag = d.has("to");
            i.d = d.dest(d.arg(0), 8);
            i.b = d.source(d.arg(1), 8);
            i.fn = convert_address;
        } else {
            i.d = d.predicate_dest(d.arg(0));
            i.b = d.source(d.arg(1), 8);
            i.fn = is_space;
        }
        return true;
    }
    bool ld = op == "ld" || op == "ldu", st = op == "st";
    if (!ld && !st) return false;
    auto types = d.types();
    if (types.empty() || type_bytes(types.back()) > 8) d.fail("unexpected type");
    Ty t = types.back();
    i.space = d.space_word();
    i.cached =
        !(d.has("volatile") || d.has("relaxed") || d.has("acquire") || d.has("release") || d.has("mmio"));
    // blocks that talk through global memory keep the sequential order
    if (!i.cached && i.space != Space::Shared) d.kernel.order_matters = true;
    int width;
    elements(d, i, d.arg(ld ? 0 : 1), slot_width(t), width, ld);
    d.memory(d.arg(ld ? 1 : 0), i);
    if (ld) i.fn = width == 8 ? load_for<u64>(t) : load_for<u32>(t);
    else i.fn = width == 8 ? store_for<u64>(t) : store_for<u32>(t);
    return true;
}

} // namespace emu
