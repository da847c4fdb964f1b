// Run-time state: a warp with its frames and divergent fragments, a block, and the worker that runs blocks.
//
// The lanes of a warp that are at the same instruction form a fragment. The runnable fragment with the lowest
// instruction index goes first, and fragments that meet merge; this reconverges structured code at once.
// Invariants: the fragments of a frame are disjoint; a lane is in the fragments of the top frame, or in the
// call_mask of lower ones, or has exited.
#pragma once
#include "memory.h"
#include "options.h"
#include "program.h"
#include "race.h"
#include "stats.h"
#include <atomic>
#include <deque>

namespace emu {

struct Block;
struct Worker;

// Raised by every check; carries the whole message. It ends the launch.
struct Fault : std::runtime_error {
    int cuda_error;
    Fault(const std::string &what, int error) : std::runtime_error(what), cuda_error(error) {}
};
// cudaErrorIllegalAddress, cudaErrorMisalignedAddress, cudaErrorAssert, cudaErrorLaunchFailure,
// cudaErrorLaunchTimeout
enum FaultCode {
    FAULT_ADDRESS = 700,
    FAULT_MISALIGNED = 716,
    FAULT_ASSERT = 710,
    FAULT_LAUNCH = 719,
    FAULT_TIMEOUT = 702
};

struct Fragment {
    enum State : u8 { Ready, AtCollective, AtBarrier };
    u32 pc = 0, mask = 0;
    State state = Ready;
    u16 barrier = 0;
    u32 expected = 0; // threads the barrier names, 0 for all
};

struct Frame {
    const Func *func = nullptr;
    u8 *regs = nullptr;
    u8 *params = nullptr; // lane-major parameter area of functions and call sequences
    u32 call_mask = 0, resume_pc = 0;
    const Inst *call = nullptr;
    u64 local_base = 0;
    int n = 0;
    Fragment frag[LANES];

    void add(u32 pc, u32 mask, Fragment::State state = Fragment::Ready)
    {
        frag[n].pc = pc;
        frag[n].mask = mask;
        frag[n].state = state;
        n++;
    }
    void remove(int i) { frag[i] = frag[--n]; }
};

// One cp.async instruction of a warp; lanes leave it as their waits let them land.
struct AsyncCopy {
    u32 mask;
    u16 bytes;
    u16 source_bytes[LANES];
    u32 shared[LANES];
    u64 global[LANES];
    u32 group[LANES]; // commit count of the lane when it was issued
    const Inst *at;
};

constexpr u64 LOCAL_BYTES = 128 << 10;          // per lane
constexpr u64 LOCAL_STRIDE = LOCAL_BYTES + 192; // keeps equal offsets of the lanes out of one cache set
constexpr u64 ARENA_BYTES = 32 << 20;           // frames of one warp, touched only as far as needed
constexpr u32 SLICE_BRANCHES = 65536;

struct Warp {
    enum class Stop { Done, Blocked, Slice };

    u8 *regs = nullptr; // top frame's slots
    Block *block = nullptr;
    Worker *worker = nullptr;
    int id = 0;
    u32 init = 0, live = 0;
    u32 carry = 0; // condition code of add.cc and its kin, one bit per lane
    const Inst *at = nullptr;
    std::vector<Frame> frames;
    u8 *arena = nullptr, *arena_top = nullptr, *local = nullptr;
    u64 local_top = 0;
    std::deque<AsyncCopy> async;
    u32 commits[LANES];
    u64 lane_insts = 0, warp_insts = 0, slices = 0;
    bool pick_highest = false;
    Clock clock; // race check
    u32 warp_syncs = 0;

    template <class T> T *slot(u32 offset) { return (T *)(regs + offset); }
    u32 &pred(u32 offset) { return *(u32 *)(regs + offset); }
    Frame &frame() { return frames.back(); }

    void start();
    Stop run();
    // Lets the lanes at a barrier go on; 'value' is bar.red's result (a count, or 0/1).
    void release(u16 barrier, u32 value);
    [[noreturn]] void fault(int lane, const std::string &what, int code = FAULT_LAUNCH, u64 address = 0);

  private:
    int pick(Frame &f);
    void push(const Func *callee, const Inst &call, u32 mask, u32 resume_pc);
    bool pop();
    void leave(u32 lanes);
    bool collective(Frame &f, u32 pc, u32 mask, u32 active);
    bool leaves_fragment(Frame &f, const Inst &i, u32 pc, u32 m, u32 mask);
    void barrier(const Inst &i, u32 pc, u32 active);
    void library_call(const Inst &i, u32 mask);
    void fill(const Func &f, u8 *at);
};

struct Launch {
    Kernel *kernel = nullptr;
    u32 grid[3], block[3];
    u64 dynamic_bytes = 0, dynamic_start = 0, shared_bytes = 0;
    std::vector<u8> params;
    int device = 0;
    u32 peers = ~0u; // devices whose memory this one may touch
    u64 serial = 0;
};

struct BarrierState {
    u32 arrived = 0; // threads that used bar.arrive
    u32 arrived_warps = 0;
};

struct Block {
    const Launch *launch = nullptr;
    u32 index[3];
    int threads = 0, warps = 0;
    u8 *shared = nullptr;
    BarrierState barriers[16];
};

// Runs blocks one after another. Holds everything that must not be shared between host threads.
struct Worker {
    Worker();
    ~Worker();
    Worker(const Worker &) = delete;
    Block block;
    std::vector<Warp> warp;
    std::vector<u8> shared;
    std::vector<u8> shared_written; // EMU_UNINIT
    const Launch *launch = nullptr;
    Allocation *recent = nullptr; // last allocation hit
    KernelStats stats;
    SectorSet sectors;
    RaceCheck race;

    void begin(const Launch &l);
    void run_block(u64 index);
    // The allocation that holds [a, a+n), or null.
    Allocation *find(u64 a, u64 n)
    {
        if (recent && recent->holds(a, n)) return recent;
        Allocation *m = memory_find(a);
        if (!m || !m->holds(a, n)) return nullptr;
        return recent = m;
    }

  private:
    bool try_release();
    [[noreturn]] void barrier_deadlock();
};

enum class Access : u8 { Read, Write, Atomic };

// Host pointers for the lanes of a memory instruction after all checks. 'bytes' is the whole access of one
// lane. Inactive lanes get no pointer.
void resolve(Warp &w, const Inst &i, u32 mask, int bytes, Access access, u8 **pointer);
// The same for one address in a known space (cp.async, ldmatrix).
u8 *resolve_one(Warp &w, Space space, u64 address, int bytes, Access access, int lane, bool checked = true);

// Runs the grid. Throws Fault.
void run_launch(const Launch &l);

// Applies f to each active lane: d[lane] = f(lane). The full warp is one loop the compiler can vectorise.
template <class D, class F> inline void write_lanes(D *d, u32 mask, F f)
{
    D t[LANES];
    for (int l = 0; l < LANES; l++) t[l] = f(l);
    if (mask == ALL_LANES) {
        memcpy(d, t, sizeof t);
    } else {
        for (int l = 0; l < LANES; l++) d[l] = mask >> l & 1 ? t[l] : d[l];
    }
}
// Builds a predicate mask from f(lane) for all lanes.
template <class F> inline u32 gather_mask(F f)
{
    u32 r = 0;
    for (int l = 0; l < LANES; l++) r |= (u32)(f(l) ? 1u : 0u) << l;
    return r;
}
inline void write_pred(Warp &w, u32 offset, u32 mask, u32 value)
{
    u32 &p = w.pred(offset);
    p = (p & ~mask) | (value & mask);
}

} // namespace emu
