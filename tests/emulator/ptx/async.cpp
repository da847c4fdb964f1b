// cp.async: copies from global to shared memory that land only when the thread waits for them.
//
// The source is read at the wait, too: code that reads the destination early, or changes the source after
// issuing, sees it. Bounds and alignment are checked at issue. Bytes beyond the given source size become
// zero.
#include "lanes.h"

namespace emu {

namespace {

// a, imm: destination; b and ext: source; c: source-size slot, 0 for all; d: ignore-src predicate; e: bytes
void issue(Warp &w, const Inst &i, u32 mask)
{
    AsyncCopy c;
    c.mask = mask;
    c.bytes = (u16)i.e;
    c.at = &i;
    const u32 *dst = w.slot<u32>(i.a);
    const u64 *dst8 = w.slot<u64>(i.a), *src = w.slot<u64>(i.b);
    s64 src_offset = (s64)(s32)w.frame().func->ext[i.ext];
    u64 from[LANES];
    u32 reading = 0;
    each_lane(mask, [&](int l) {
        c.shared[l] = (u32)((i.wide ? dst8[l] : dst[l]) + (u64)i.imm);
        c.global[l] = src[l] + (u64)src_offset;
        u32 n = i.c ? w.slot<u32>(i.c)[l] : i.e;
        if (i.d) n = (w.pred(i.d) >> l & 1) ? 0 : n; // ignore-src
        if (n > i.e) w.fault(l, "cp.async with a source size above the copy size");
        c.source_bytes[l] = (u16)n;
        c.group[l] = w.commits[l];
        resolve_one(w, Space::Shared, c.shared[l], (int)i.e, Access::Write, l);
        if (c.global[l] & (i.e - 1)) w.fault(l, "misaligned cp.async source", FAULT_MISALIGNED, c.global[l]);
        from[l] = c.global[l];
        if (n) reading |= 1u << l;
        for (u32 k = 0; k < n; k++) // byte ranges need not be powers of two
            if (k == 0 || k == n - 1) resolve_one(w, Space::Global, c.global[l] + k, 1, Access::Read, l);
    });
    if (!options().stats.empty() && reading)
        count_access(w.worker->stats.load, &w.worker->sectors, from, reading, (int)i.e, false);
    w.async.push_back(c);
}

void land(Warp &w, AsyncCopy &c, u32 lanes)
{
    each_lane(lanes, [&](int l) {
        u8 *p = resolve_one(w, Space::Shared, c.shared[l], c.bytes, Access::Write, l);
        if (c.source_bytes[l]) {
            Allocation *m = w.worker->find(c.global[l], c.source_bytes[l]);
            if (!m) w.fault(l, "cp.async source out of bounds", FAULT_ADDRESS, c.global[l]);
            memcpy(p, m->host(c.global[l]), c.source_bytes[l]);
        }
        memset(p + c.source_bytes[l], 0, c.bytes - c.source_bytes[l]);
        w.worker->stats.shared_bytes += c.bytes;
    });
    c.mask &= ~lanes;
}

void commit(Warp &w, const Inst &, u32 mask)
{
    each_lane(mask, [&](int l) { w.commits[l]++; });
}

// flag: wait_all; imm: groups that may stay in flight
void wait(Warp &w, const Inst &i, u32 mask)
{
    for (auto &c : w.async) {
        u32 lanes = 0;
        each_lane(c.mask & mask, [&](int l) {
            bool due = i.flag || (s64)c.group[l] < (s64)w.commits[l] - i.imm;
            lanes |= (u32)due << l;
        });
        if (lanes) land(w, c, lanes);
    }
    while (!w.async.empty() && !w.async.front().mask) w.async.pop_front();
}

} // namespace

bool decode_async(Decoder &d, Inst &i)
{
    if (d.st->words[0] != "cp" || !d.has("async")) return false;
    if (d.has("bulk") || d.has("mbarrier")) d.fail("bulk and mbarrier copies");
    if (d.has("commit_group")) {
        i.fn = commit;
        return true;
    }
    if (d.has("wait_group") || d.has("wait_all")) {
        i.flag = d.has("wait_all");
        i.imm = i.flag ? 0 : (s64)d.arg(0).imm;
        i.fn = wait;
        return true;
    }
    bool hint = false; // a cache-policy operand comes last
    for (auto &w : d.st->words) hint |= w == "L2::cache_hint";
    size_t n = d.args() - (hint ? 1 : 0);
    Inst source;
    d.memory(d.arg(1), source);
    if (!source.wide) d.fail("32-bit source address");
    d.memory(d.arg(0), i);
    i.b = source.a;
    i.ext = d.func.ext.size();
    d.func.ext.push_back((u32)(s32)source.imm);
    i.e = (u32)d.arg(2).imm;
    if (i.e != 4 && i.e != 8 && i.e != 16) d.fail("copy size");
    if (d.has("cg") && i.e != 16) d.fail("cp.async.cg copies 16 bytes");
    if (n > 3) {
        const Operand &o = d.arg(3);
        bool pred = o.kind == Operand::Reg && d.func.body.regs[o.reg].type == Ty::Pred, negate = false;
        if (pred) {
            i.d = d.predicate(o, negate);
            if (negate) d.fail("negated ignore-src");
        } else {
            i.c = d.source(o, 4);
        }
    }
    i.fn = issue;
    return true;
}

} // namespace emu
