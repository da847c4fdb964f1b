// Warp collectives: shfl.sync, vote.sync, match.sync, redux.sync, elect.sync, bar.warp.sync, activemask.
//
// The interpreter loop calls a handler once every live lane of the member mask has arrived; 'mask' is those
// lanes.
#include "lanes.h"

namespace emu {

namespace {

enum Mode : u8 { UP = 1, DOWN, BFLY, IDX };

void shuffle(Warp &w, const Inst &i, u32 mask)
{
    u32 a[LANES], from[LANES], in_range = 0;
    memcpy(a, w.slot<u32>(i.a), sizeof a);
    const u32 *b = w.slot<u32>(i.b), *c = w.slot<u32>(i.c);
    for (int l = 0; l < LANES; l++) {
        int bv = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
        int top = (l & segment) | (clamp & ~segment), bottom = l & segment, j;
        bool ok;
        switch (i.sub) {
        case UP: j = l - bv, ok = j >= top; break;
        case DOWN: j = l + bv, ok = j <= top; break;
        case BFLY: j = l ^ bv, ok = j <= top; break;
        default: j = bottom | (bv & ~segment), ok = j <= top; break;
        }
        from[l] = ok ? j : l;
        in_range |= (u32)ok << l;
    }
    if (mask != ALL_LANES)
        each_lane(mask, [&](int l) {
            if (!(mask >> from[l] & 1))
                w.fault(l, "shfl.sync reads lane " + std::to_string(from[l]) + ", which does not take part");
        });
    write_lanes(w.slot<u32>(i.d), mask, [&](int l) { return a[from[l]]; });
    if (i.d2) write_pred(w, i.d2, mask, in_range);
}

enum Vote : u8 { ALL = 1, ANY, UNI, BALLOT };

void vote(Warp &w, const Inst &i, u32 mask)
{
    u32 p = w.pred(i.a);
    if (i.wide) p = ~p;
    p &= mask;
    if (i.sub == BALLOT) return write_lanes(w.slot<u32>(i.d), mask, [&](int) { return p; });
    bool r = i.sub == ALL ? p == mask : i.sub == ANY ? p != 0 : p == mask || !p;
    write_pred(w, i.d, mask, r ? ALL_LANES : 0);
}

template <class S, bool all> void match(Warp &w, const Inst &i, u32 mask)
{
    S a[LANES];
    memcpy(a, w.slot<S>(i.a), sizeof a);
    u32 *d = w.slot<u32>(i.d), every = 0;
    each_lane(mask, [&](int l) {
        u32 same = 0;
        each_lane(mask, [&](int k) { same |= (u32)(a[k] == a[l]) << k; });
        if (all && same == mask) every = ALL_LANES;
        d[l] = all ? (same == mask ? mask : 0) : same;
    });
    if (all && i.d2) write_pred(w, i.d2, mask, every);
}

enum Reduce : u8 { ADD = 1, MIN, MAX, AND, OR, XOR };

void reduce(Warp &w, const Inst &i, u32 mask)
{
    const u32 *a = w.slot<u32>(i.a);
    bool first = true, sign = i.wide;
    u32 r = 0;
    each_lane(mask, [&](int l) {
        u32 v = a[l];
        bool less = sign ? (s32)v < (s32)r : v < r;
        switch (first ? (u8)0 : i.sub) {
        case 0: r = v; break;
        case ADD: r += v; break;
        case MIN: r = less ? v : r; break;
        case MAX: r = less ? r : v; break;
        case AND: r &= v; break;
        case OR: r |= v; break;
        default: r ^= v; break;
        }
        first = false;
    });
    write_lanes(w.slot<u32>(i.d), mask, [&](int) { return r; });
}

void elect(Warp &w, const Inst &i, u32 mask)
{
    u32 leader = lowest_lane(mask);
    write_lanes(w.slot<u32>(i.d), mask, [&](int) { return leader; });
    if (i.d2) write_pred(w, i.d2, mask, 1u << leader);
}

void sync_warp(Warp &w, const Inst &, u32) { w.warp_syncs++; }

void active_mask(Warp &w, const Inst &i, u32 mask)
{
    write_lanes(w.slot<u32>(i.d), mask, [&](int) { return mask; });
}

} // namespace

bool decode_collective(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    if (op == "activemask") {
        i.d = d.dest(d.arg(0), 4);
        i.fn = active_mask;
        return true;
    }
    bool shfl = op == "shfl", is_vote = op == "vote", is_match = op == "match", redux = op == "redux",
         is_elect = op == "elect", bar = op == "bar" && d.has("warp");
    if (!shfl && !is_vote && !is_match && !redux && !is_elect && !bar) return false;
    if (!d.has("sync")) d.fail("the form without .sync");
    i.kind = Kind::Collective;
    i.e = d.source(d.arg(d.args() - 1), 4); // member mask
    if (bar) {
        i.sub = 0xff;
        i.fn = sync_warp;
        return true;
    }
    const Operand &dest = d.arg(0);
    if (!dest.parts.empty()) i.d2 = d.predicate_dest(dest.parts[0]);
    if (is_vote) {
        i.sub = (u8)d.one_of({"all", "any", "uni", "ballot"});
        i.d = i.sub == BALLOT ? d.dest(dest, 4) : d.predicate_dest(dest);
        i.a = d.predicate(d.arg(1), i.wide);
        i.fn = vote;
        return true;
    }
    i.d = d.dest(dest, 4);
    if (shfl) {
        i.sub = (u8)d.one_of({"up", "down", "bfly", "idx"});
        i.a = d.source(d.arg(1), 4);
        i.b = d.source(d.arg(2), 4);
        i.c = d.source(d.arg(3), 4);
        i.fn = shuffle;
    } else if (is_match) {
        int width = slot_width(d.types().back());
        i.a = d.source(d.arg(1), width);
        bool all = d.has("all");
        i.fn = width == 8 ? (all ? match<u64, true> : match<u64, false>)
               : all      ? match<u32, true>
                          : match<u32, false>;
    } else if (redux) {
        if (type_float(d.types().back())) d.fail("float redux");
        i.a = d.source(d.arg(1), 4);
        i.sub = (u8)d.one_of({"add", "min", "max", "and", "or", "xor"});
        i.wide = d.types().back() == Ty::S32;
        i.fn = reduce;
    } else {
        i.fn = elect;
    }
    return true;
}

} // namespace emu
