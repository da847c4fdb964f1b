// From PTX addresses to host pointers: state spaces, bounds, alignment, and the optional checks on every
// access.
#include "warp.h"

namespace emu {

static const char *verb(Access a)
{
    return a == Access::Read ? "load" : a == Access::Write ? "store" : "atomic";
}

static void check_align(Warp &w, u64 a, int bytes, Access access, int lane)
{
    if (a & (u64)(bytes - 1)) w.fault(lane, std::string("misaligned ") + verb(access), FAULT_MISALIGNED, a);
}

[[noreturn]] static void global_fault(Warp &w, int lane, u64 a, int bytes, Access access)
{
    std::string s =
        std::string("global ") + verb(access) + " of " + std::to_string(bytes) + " bytes out of bounds";
    Allocation *m = memory_before(a);
    if (m && a - m->base > m->bytes + (1 << 20)) m = nullptr; // too far to be what was meant
    if (m) {
        char t[120];
        snprintf(t, sizeof t, " (%lld bytes into an allocation of %llu)", (long long)(a - m->base),
                 (unsigned long long)m->bytes);
        s += t;
    } else if (!memory_is_device(a)) {
        s += a < 65536 ? " (null pointer)" : " (host memory that is not pinned, or a wild pointer)";
    }
    w.fault(lane, s, FAULT_ADDRESS, a);
}

static void check_written(Warp &w, Allocation &m, u64 a, int bytes, Access access, int lane)
{
    u8 *v = &m.written[a - m.base];
    if (access == Access::Write) {
        memset(v, 1, bytes);
        return;
    }
    for (int k = 0; k < bytes; k++)
        if (!v[k]) w.fault(lane, "load of global memory that was never written", FAULT_ADDRESS, a + k);
}

static u8 *global_pointer(Warp &w, u64 a, int bytes, Access access, int lane)
{
    Allocation *m = w.worker->find(a, bytes);
    if (!m) global_fault(w, lane, a, bytes, access);
    const Launch &l = *w.block->launch;
    if (m->device >= 0 && m->device != l.device && !(l.peers >> m->device & 1))
        w.fault(lane,
                "memory of device " + std::to_string(m->device) + " used on device " +
                    std::to_string(l.device) + " without peer access",
                FAULT_ADDRESS, a);
    if (!m->written.empty()) check_written(w, *m, a, bytes, access, lane);
    return m->host(a);
}

static u8 *shared_pointer(Warp &w, u64 a, int bytes, Access access, int lane, bool plain)
{
    if (a + bytes > w.block->launch->shared_bytes)
        w.fault(lane,
                std::string("shared ") + verb(access) + " out of bounds: offset " + std::to_string(a) +
                    " of " + std::to_string(w.block->launch->shared_bytes) + " bytes",
                FAULT_ADDRESS, a);
    Worker &k = *w.worker;
    if (options().race)
        k.race.access(w, lane, (u32)a, bytes,
                      access == Access::Atomic || !plain ? RaceCheck::Atomic
                      : access == Access::Write          ? RaceCheck::Write
                                                         : RaceCheck::Read);
    if (options().uninit) {
        if (access == Access::Write) {
            memset(&k.shared_written[a], 1, bytes);
        } else {
            for (int b = 0; b < bytes; b++)
                if (!k.shared_written[a + b])
                    w.fault(lane, "load of shared memory that was never written", FAULT_ADDRESS, a + b);
        }
    }
    return w.block->shared + a;
}

static u8 *local_pointer(Warp &w, u64 a, int bytes, Access access, int lane)
{
    if (a + bytes > LOCAL_BYTES)
        w.fault(lane, std::string("local ") + verb(access) + " out of bounds", FAULT_ADDRESS, a);
    return w.local + (u64)lane * LOCAL_STRIDE + a;
}

static u8 *param_pointer(Warp &w, u64 a, int bytes, Access access, int lane)
{
    Frame &f = w.frame();
    const Launch &l = *w.block->launch;
    if (f.func->text->entry && a < f.func->text->param_bytes) {
        if (access != Access::Read || a + bytes > l.params.size())
            w.fault(lane, std::string("kernel parameter ") + verb(access) + " out of bounds", FAULT_ADDRESS,
                    a);
        return (u8 *)l.params.data() + a;
    }
    if (a + bytes > f.func->param_bytes) w.fault(lane, "parameter access out of bounds", FAULT_ADDRESS, a);
    return f.params + lane * f.func->param_bytes + a;
}

u8 *resolve_one(Warp &w, Space space, u64 a, int bytes, Access access, int lane, bool checked)
{
    if (checked) check_align(w, a, bytes, access, lane);
    switch (space) {
    case Space::Shared: return shared_pointer(w, a, bytes, access, lane, checked);
    case Space::Local: return local_pointer(w, a, bytes, access, lane);
    case Space::Param: return param_pointer(w, a, bytes, access, lane);
    case Space::Const:
        if (access != Access::Read) w.fault(lane, "store to constant memory", FAULT_ADDRESS, a);
        return global_pointer(w, a, bytes, access, lane);
    case Space::Global: return global_pointer(w, a, bytes, access, lane);
    default: break;
    }
    u64 off = address_untag(a);
    switch (address_tag(a)) {
    case 0: return global_pointer(w, a, bytes, access, lane);
    case TAG_SHARED: return shared_pointer(w, off, bytes, access, lane, checked);
    case TAG_LOCAL: return local_pointer(w, off, bytes, access, lane);
    case TAG_PARAM: {
        const Launch &l = *w.block->launch;
        if (access == Access::Read && off + bytes <= l.params.size()) return (u8 *)l.params.data() + off;
        break;
    }
    default: break;
    }
    w.fault(lane, std::string("generic ") + verb(access) + " through an address of no space", FAULT_ADDRESS,
            a);
}

static void count_global(Warp &w, const u64 *address, u32 mask, int bytes, Access access)
{
    Worker &k = *w.worker;
    Traffic &t = access == Access::Read    ? k.stats.load
                 : access == Access::Write ? k.stats.store
                                           : k.stats.atomic;
    count_access(t, &k.sectors, address, mask, bytes, access != Access::Read);
}

void resolve(Warp &w, const Inst &i, u32 mask, int bytes, Access access, u8 **p)
{
    u64 a[LANES];
    if (i.wide) {
        const u64 *s = w.slot<u64>(i.a);
        for (int l = 0; l < LANES; l++) a[l] = s[l] + (u64)i.imm;
    } else {
        const u32 *s = w.slot<u32>(i.a);
        for (int l = 0; l < LANES; l++) a[l] = (u32)(s[l] + (u32)i.imm);
    }
    if (mask != ALL_LANES) {
        u64 first = a[lowest_lane(mask)];
        for (int l = 0; l < LANES; l++) a[l] = mask >> l & 1 ? a[l] : first;
    }
    u64 lo = a[0], hi = a[0], any = 0;
    for (int l = 0; l < LANES; l++) {
        lo = a[l] < lo ? a[l] : lo;
        hi = a[l] > hi ? a[l] : hi;
        any |= a[l];
    }
    if (any & (u64)(bytes - 1)) each_lane(mask, [&](int l) { check_align(w, a[l], bytes, access, l); });
    const Options &o = options();
    Space space = i.space;
    if (space == Space::Generic && !(hi >> TAG_SHIFT)) space = Space::Global; // all lanes: tag 0
    if (space == Space::Generic && lo >> TAG_SHIFT == TAG_SHARED && hi >> TAG_SHIFT == TAG_SHARED) {
        space = Space::Shared;
        for (int l = 0; l < LANES; l++) a[l] = address_untag(a[l]);
        lo = address_untag(lo);
        hi = address_untag(hi);
    }
    // fast paths: the whole warp inside one object and no per-byte check wanted
    if (space == Space::Shared) {
        w.worker->stats.shared_bytes += (u64)count_lanes(mask) * bytes;
        if (!o.race && !o.uninit && hi + bytes <= w.block->launch->shared_bytes) {
            for (int l = 0; l < LANES; l++) p[l] = w.block->shared + a[l];
            return;
        }
    } else if (space == Space::Global || space == Space::Const) {
        if (space == Space::Global && !o.stats.empty()) count_global(w, a, mask, bytes, access);
        Allocation *m = w.worker->find(lo, bytes);
        if (m && m->holds(hi, bytes) && m->device == w.block->launch->device && m->written.empty() &&
            !(space == Space::Const && access != Access::Read)) {
            for (int l = 0; l < LANES; l++) p[l] = m->host(a[l]);
            return;
        }
    } else if (space == Space::Param && lo == hi && lo < w.frame().func->text->param_bytes &&
               w.frame().func->text->entry) {
        u8 *q = param_pointer(w, lo, bytes, access, lowest_lane(mask));
        for (int l = 0; l < LANES; l++) p[l] = q;
        return;
    }
    each_lane(mask, [&](int l) {
        if (space == Space::Shared) p[l] = shared_pointer(w, a[l], bytes, access, l, i.cached);
        else p[l] = resolve_one(w, space, a[l], bytes, access, l);
    });
}

} // namespace emu
