// The interpreter loop: fragments, control flow, *.sync collectives, calls.
#include "warp.h"
#include "format.h"

namespace emu {

void Warp::fault(int lane, const std::string &what, int code, u64 address)
{
    const Launch &l = *block->launch;
    char where[400];
    int t = id * LANES + lane, bx = l.block[0], by = l.block[1];
    snprintf(where, sizeof where, " in %s, block (%u,%u,%u), thread (%d,%d,%d) [warp %d lane %d]",
             l.kernel->name.c_str(), block->index[0], block->index[1], block->index[2], t % bx, t / bx % by,
             t / (bx * by), id, lane);
    std::string s = "emulator: " + what;
    if (address) {
        char a[32];
        snprintf(a, sizeof a, ": address 0x%llx", (unsigned long long)address);
        s += a;
    }
    s += where;
    if (at && !frames.empty()) s += "\n    at " + describe(*l.kernel->module, *frame().func, *at);
    throw Fault(s, code);
}

// Constants and special registers of a new frame.
void Warp::fill(const Func &f, u8 *to)
{
    const Launch &l = *block->launch;
    for (auto &c : f.constants) {
        if (c.width == 8) std::fill_n((u64 *)(to + c.slot), LANES, c.value);
        else std::fill_n((u32 *)(to + c.slot), LANES, (u32)c.value);
    }
    for (auto &s : f.specials) {
        u32 *v = (u32 *)(to + s.second);
        for (u32 i = 0; i < LANES; i++) {
            u32 t = id * LANES + i;
            switch (s.first) {
            case Special::TidX: v[i] = t % l.block[0]; break;
            case Special::TidY: v[i] = t / l.block[0] % l.block[1]; break;
            case Special::TidZ: v[i] = t / (l.block[0] * l.block[1]); break;
            case Special::NtidX: v[i] = l.block[0]; break;
            case Special::NtidY: v[i] = l.block[1]; break;
            case Special::NtidZ: v[i] = l.block[2]; break;
            case Special::CtaidX: v[i] = block->index[0]; break;
            case Special::CtaidY: v[i] = block->index[1]; break;
            case Special::CtaidZ: v[i] = block->index[2]; break;
            case Special::NctaidX: v[i] = l.grid[0]; break;
            case Special::NctaidY: v[i] = l.grid[1]; break;
            case Special::NctaidZ: v[i] = l.grid[2]; break;
            case Special::LaneId: v[i] = i; break;
            case Special::WarpId: v[i] = id; break;
            case Special::NwarpId: v[i] = block->warps; break;
            case Special::MaskEq: v[i] = 1u << i; break;
            case Special::MaskLt: v[i] = (1u << i) - 1; break;
            case Special::MaskLe: v[i] = (u32)((2ull << i) - 1); break;
            case Special::MaskGt: v[i] = (u32) ~((2ull << i) - 1); break;
            case Special::MaskGe: v[i] = ~((1u << i) - 1); break;
            case Special::SmId: v[i] = 0; break;
            case Special::NsmId: v[i] = 1; break;
            case Special::GridId: v[i] = (u32)l.serial; break;
            case Special::DynamicSharedBytes: v[i] = (u32)l.dynamic_bytes; break;
            case Special::TotalSharedBytes: v[i] = (u32)l.shared_bytes; break;
            case Special::WarpSize: v[i] = LANES; break;
            case Special::ClusterOne: v[i] = 1; break;
            default: v[i] = 0; break;
            }
        }
    }
}

void Warp::start()
{
    const Func *f = block->launch->kernel->entry;
    frames.clear();
    frames.emplace_back();
    Frame &fr = frames.back();
    fr.func = f;
    fr.regs = regs = arena;
    memset(regs, 0xfb, f->reg_bytes); // a register read before it is written is a recognisable, huge value
    fill(*f, regs);
    fr.params = arena + f->frame_bytes;
    arena_top = fr.params + LANES * f->param_bytes;
    fr.add(0, init);
    live = init;
    carry = 0;
    local_top = f->local_bytes;
    async.clear();
    memset(commits, 0, sizeof commits);
    slices = 0;
    warp_syncs = 0;
    pick_highest = false;
    at = nullptr;
}

void Warp::push(const Func *callee, const Inst &call, u32 mask, u32 resume_pc)
{
    u64 need = callee->frame_bytes + LANES * callee->param_bytes;
    u8 *base = (u8 *)align_up((u64)arena_top, 64);
    if (base + need > arena + ARENA_BYTES || local_top + callee->local_bytes > LOCAL_BYTES)
        fault(lowest_lane(mask), "call stack overflow");
    Frame fr;
    fr.func = callee;
    fr.regs = base;
    fr.params = base + callee->frame_bytes;
    fr.call_mask = mask;
    fr.resume_pc = resume_pc;
    fr.call = &call;
    fr.local_base = local_top;
    memset(base, 0xfb, callee->reg_bytes);
    fill(*callee, base);
    const Frame &from = frame();
    const u32 *e = &from.func->ext[call.ext];
    for (u32 k = 0; k < e[0]; k++) {
        const Object &p = callee->text->params.at(k);
        each_lane(mask, [&](int l) {
            memcpy(fr.params + l * callee->param_bytes + p.offset,
                   from.params + l * from.func->param_bytes + e[1 + k], p.bytes);
        });
    }
    fr.add(0, mask);
    local_top += callee->local_bytes;
    arena_top = base + need;
    frames.push_back(fr);
    regs = base;
}

// Leaves a function whose lanes have all returned; false when it was the kernel itself.
bool Warp::pop()
{
    if (frames.size() == 1) return false;
    Frame done = std::move(frames.back());
    frames.pop_back();
    Frame &to = frame();
    regs = to.regs;
    arena_top = done.regs;
    local_top = done.local_base;
    u32 back = done.call_mask & live;
    const u32 *e = &to.func->ext[done.call->ext];
    e += 1 + e[0];
    for (u32 k = 0; k < e[0]; k++) {
        const Object &p = done.func->text->results.at(k);
        each_lane(back, [&](int l) {
            memcpy(to.params + l * to.func->param_bytes + e[1 + k],
                   done.params + l * done.func->param_bytes + p.offset, p.bytes);
        });
    }
    if (back) to.add(done.resume_pc, back);
    return true;
}

// Index of the fragment to run, after merging those that stand at the same instruction; -1 when none can.
int Warp::pick(Frame &f)
{
    int best = -1;
    for (int i = 0; i < f.n; i++) {
        if (f.frag[i].state != Fragment::Ready) continue;
        if (best < 0 || (pick_highest ? f.frag[i].pc > f.frag[best].pc : f.frag[i].pc < f.frag[best].pc))
            best = i;
    }
    if (best < 0) return -1;
    pick_highest = false;
    for (int i = f.n - 1; i >= 0; i--) {
        if (i == best || f.frag[i].state != Fragment::Ready || f.frag[i].pc != f.frag[best].pc) continue;
        f.frag[best].mask |= f.frag[i].mask;
        f.remove(i);
        if (best == f.n) best = i;
    }
    return best;
}

// Threads that end: they no longer count for collectives that others wait in.
void Warp::leave(u32 lanes)
{
    live &= ~lanes;
    for (auto &fr : frames)
        for (int i = 0; i < fr.n; i++)
            if (fr.frag[i].state == Fragment::AtCollective) fr.frag[i].state = Fragment::Ready;
}

// Executes the collective at pc for the groups that are complete and parks the others. 'mask' are the lanes
// at the instruction whose guard holds, 'active' those at it. True when no lane had to wait, so the caller
// just goes on.
bool Warp::collective(Frame &f, u32 pc, u32 mask, u32 active)
{
    const Inst &i = f.func->code[pc];
    if (mask == ALL_LANES && (i.flag || [&] { // the common case: the whole warp, one member mask
            const u32 *m = slot<u32>(i.e);
            u32 same = ~0u;
            for (int l = 0; l < LANES; l++) same &= m[l];
            return same == ALL_LANES;
        }())) {
        i.fn(*this, i, mask);
        return true;
    }
    u32 here = mask, elsewhere = 0;
    for (int k = f.n - 1; k >= 0; k--) {
        Fragment &g = f.frag[k];
        if (g.state != Fragment::AtCollective) continue;
        if (g.pc == pc) {
            here |= g.mask;
            f.remove(k);
        } else if (i.sub == 0xff && f.func->code[g.pc].sub == 0xff) {
            elsewhere |= g.mask; // bar.warp.sync may be met at different instructions
        }
    }
    const u32 *members = i.flag ? nullptr : slot<u32>(i.e);
    u32 done = 0, released = 0;
    for (u32 left = here; left;) {
        int first = lowest_lane(left);
        u32 member = members ? members[first] : ALL_LANES, same = 0;
        if (!(member >> first & 1)) fault(first, "lane is not in its own member mask");
        each_lane(here | elsewhere, [&](int l) {
            if (!members || members[l] == member) same |= 1u << l;
        });
        u32 need = member & live;
        if ((same & need) == need) {
            i.fn(*this, i, same & here);
            done |= same & here;
            released |= same & elsewhere;
        }
        left &= ~same;
    }
    if (released)
        for (int k = 0; k < f.n; k++) {
            Fragment &g = f.frag[k];
            if (g.state != Fragment::AtCollective || !(g.mask & released)) continue;
            g.state = Fragment::Ready;
            g.pc++;
        }
    u32 go = done | (active & ~mask);
    if (here & ~done) f.add(pc, here & ~done, Fragment::AtCollective);
    if (go) f.add(pc + 1, go);
    return false;
}

void Warp::barrier(const Inst &i, u32 pc, u32 active)
{
    u32 *ids = slot<u32>(i.a);
    int first = lowest_lane(active);
    u32 barrier_id = ids[first], expected = i.b ? slot<u32>(i.b)[first] : 0;
    if (barrier_id > 15) fault(first, "barrier number above 15");
    each_lane(active, [&](int l) {
        if (ids[l] != barrier_id) fault(l, "lanes of one warp name different barriers in one instruction");
    });
    if (expected % LANES) fault(first, "barrier thread count is not a multiple of 32");
    worker->stats.barriers++;
    if (i.sub == 1) { // arrive: does not wait
        block->barriers[barrier_id].arrived += count_lanes(active);
        block->barriers[barrier_id].arrived_warps |= 1u << id;
        frame().add(pc + 1, active);
        return;
    }
    Frame &fr = frame();
    fr.add(pc, active, Fragment::AtBarrier);
    fr.frag[fr.n - 1].barrier = (u16)barrier_id;
    fr.frag[fr.n - 1].expected = expected;
}

void Warp::release(u16 barrier_id, u32 value)
{
    Frame &f = frame();
    for (int k = 0; k < f.n; k++) {
        Fragment &g = f.frag[k];
        if (g.state != Fragment::AtBarrier || g.barrier != barrier_id) continue;
        const Inst &i = f.func->code[g.pc];
        if (i.sub == 2) write_lanes(slot<u32>(i.d), g.mask, [&](int) { return value; });
        else if (i.sub > 2) write_pred(*this, i.d, g.mask, value ? ALL_LANES : 0);
        g.state = Fragment::Ready;
        g.pc++;
    }
}

// vprintf and __assertfail.
void Warp::library_call(const Inst &i, u32 mask)
{
    const Frame &f = frame();
    const u32 *e = &f.func->ext[i.ext];
    auto param = [&](int l, int k, int bytes) {
        u64 v = 0;
        memcpy(&v, f.params + l * f.func->param_bytes + e[1 + k], bytes);
        return v;
    };
    each_lane(mask, [&](int l) {
        if (i.sub == 1) {
            std::string s = device_format(*this, l, param(l, 0, 8), param(l, 1, 8));
            fwrite(s.data(), 1, s.size(), stdout);
        } else {
            std::string what = device_string(*this, l, param(l, 0, 8)),
                        file = device_string(*this, l, param(l, 1, 8));
            fault(l, file + ":" + std::to_string(param(l, 2, 4)) + ": assertion `" + what + "` failed",
                  FAULT_ASSERT);
        }
    });
}

// Branch tables, returns, calls and barriers: false when the lanes simply go on behind the instruction.
bool Warp::leaves_fragment(Frame &f, const Inst &i, u32 pc, u32 m, u32 mask)
{
    if (i.kind == Kind::Call && i.sub) {
        library_call(i, m);
        return false;
    }
    if (mask & ~m) f.add(pc + 1, mask & ~m);
    if (i.kind == Kind::BranchTable) {
        const u32 *index = slot<u32>(i.a);
        auto &table = f.func->tables[i.target];
        for (u32 left = m; left;) {
            int l = lowest_lane(left);
            if (index[l] >= table.size()) fault(l, "branch table index out of range");
            u32 same = 0;
            each_lane(left, [&](int q) { same |= (u32)(index[q] == index[l]) << q; });
            f.add(table[index[l]], same);
            left &= ~same;
        }
    } else if (i.kind == Kind::Return || i.kind == Kind::Exit) {
        if (i.kind == Kind::Exit || frames.size() == 1) leave(m);
    } else if (i.kind == Kind::Call) {
        push(f.func->callees[i.target], i, m, pc + 1);
    } else {
        barrier(i, pc, m);
    }
    return true;
}

Warp::Stop Warp::run()
{
    u32 budget = SLICE_BRANCHES;
    for (;;) {
        Frame *f = &frame();
        if (!f->n) {
            if (!pop()) return Stop::Done;
            continue;
        }
        int k = pick(*f);
        if (k < 0) {
            for (int i = 0; i < f->n; i++)
                if (f->frag[i].state == Fragment::AtBarrier) return Stop::Blocked;
            at = &f->func->code[f->frag[0].pc];
            fault(lowest_lane(f->frag[0].mask),
                  "deadlock: lanes wait at a .sync instruction that others never reach");
        }
        u32 pc = f->frag[k].pc, mask = f->frag[k].mask;
        u32 limit = ~0u; // where the next fragment stands
        for (int i = 0; i < f->n; i++)
            if (f->frag[i].state == Fragment::Ready && f->frag[i].pc > pc)
                limit = std::min(limit, f->frag[i].pc);
        f->remove(k);
        const Inst *code = f->func->code.data();
        for (;;) {
            const Inst &i = code[pc];
            u32 m = mask;
            at = &i;
            if (i.guard != NO_GUARD) {
                u32 p = ((const u32 *)regs)[i.guard];
                m &= i.guard_negated ? ~p : p;
            }
            warp_insts++;
            lane_insts += count_lanes(m);
            if (i.kind == Kind::Plain) {
                if (m) i.fn(*this, i, m);
                pc++;
            } else if (!m) {
                pc++;
            } else if (i.kind == Kind::Branch) {
                u32 stay = mask & ~m;
                bool back = i.target <= pc;
                if (stay) {
                    f->add(pc + 1, stay);
                    f->add(i.target, m);
                    if (back) budget -= budget > 0;
                    mask = 0;
                } else {
                    pc = i.target;
                    if (back) budget -= budget > 0;
                }
                if (!budget) {
                    if (mask) f->add(pc, mask);
                    pick_highest = f->n > 1;
                    return Stop::Slice;
                }
                if (!mask) break;
            } else if (i.kind == Kind::Collective) {
                if (!collective(*f, pc, m, mask)) {
                    mask = 0;
                    break;
                }
                pc++;
            } else if (leaves_fragment(*f, i, pc, m, mask)) {
                mask = 0;
                break;
            } else {
                pc++;
            }
            if (pc >= limit) break;
        }
        if (mask) frame().add(pc, mask);
    }
}

} // namespace emu
