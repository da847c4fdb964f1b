// Blocks and grids: the order in which warps run, barriers, spreading blocks over host threads.
//
// Warps of a block run one at a time until they wait. Blocks run one after another on a worker; a kernel
// without global atomics may use several workers, since then no block may depend on another. With a seed the
// order of blocks and warps is shuffled.
#include "warp.h"
#include <chrono>
#include <mutex>
#include <numeric>
#include <sys/mman.h>
#include <thread>

namespace emu {

static u8 *reserve(u64 bytes)
{
    void *p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Fault("emulator: the host has no address space left for warps", FAULT_LAUNCH);
    return (u8 *)p;
}

Worker::Worker() = default;

Worker::~Worker()
{
    for (auto &w : warp) {
        munmap(w.arena, ARENA_BYTES);
        munmap(w.local, LANES * LOCAL_STRIDE);
    }
}

void Worker::begin(const Launch &l)
{
    launch = &l;
    block.launch = &l;
    block.threads = l.block[0] * l.block[1] * l.block[2];
    block.warps = (block.threads + LANES - 1) / LANES;
    while ((int)warp.size() < block.warps) {
        Warp w;
        w.id = (int)warp.size();
        w.arena = reserve(ARENA_BYTES);
        w.local = reserve(LANES * LOCAL_STRIDE);
        warp.push_back(std::move(w));
    }
    shared.resize(l.shared_bytes + 128);
    block.shared = (u8 *)align_up((u64)shared.data(), 64);
    for (auto &w : warp) {
        w.block = &block;
        w.worker = this;
    }
    recent = nullptr;
    stats = KernelStats();
    sectors.clear();
}

// Completes every barrier that has all its threads; true when a warp can go on.
bool Worker::try_release()
{
    u32 live = 0;
    for (int i = 0; i < block.warps; i++) live += count_lanes(warp[i].live);
    bool any = false;
    for (u16 id = 0; id < 16; id++) {
        BarrierState &b = block.barriers[id];
        u32 waiting = 0, expected = 0, votes = 0, set = b.arrived_warps;
        const Inst *first = nullptr;
        Warp *other = nullptr;
        for (int k = 0; k < block.warps; k++) {
            Warp &w = warp[k];
            if (w.frames.empty()) continue;
            Frame &f = w.frame();
            for (int q = 0; q < f.n; q++) {
                Fragment &g = f.frag[q];
                if (g.state != Fragment::AtBarrier || g.barrier != id) continue;
                const Inst &i = f.func->code[g.pc];
                waiting += count_lanes(g.mask);
                expected = std::max(expected, g.expected);
                set |= 1u << k;
                if (i.sub >= 2) {
                    u32 p = w.pred(i.e);
                    votes += count_lanes(g.mask & (i.flag ? ~p : p));
                }
                if (!first) first = &i;
                if (first != &i) other = &w;
            }
        }
        if (!waiting) continue;
        u32 want = expected ? expected : live;
        if (waiting + b.arrived < want) continue;
        if (other && !expected && id == 0 && options().strict_barrier) {
            other->at = nullptr;
            other->fault(0, "threads of one block wait at different __syncthreads(): a barrier in divergent "
                            "code; one is at " +
                                describe(*launch->kernel->module, *other->frame().func, *first));
        }
        if (options().race) race.join(warp, set);
        for (int k = 0; k < block.warps; k++) {
            if (warp[k].frames.empty()) continue;
            Warp &w = warp[k];
            u32 value = votes;
            if (first->sub == 3) value = votes == waiting;
            w.release(id, value);
        }
        b = BarrierState();
        any = true;
    }
    return any;
}

void Worker::barrier_deadlock()
{
    std::string s = "barrier can never complete:";
    Warp *at = nullptr;
    for (int k = 0; k < block.warps; k++) {
        Warp &w = warp[k];
        if (!w.live) continue;
        Frame &f = w.frame();
        for (int q = 0; q < f.n; q++) {
            char line[160];
            const Fragment &g = f.frag[q];
            if (g.state == Fragment::AtBarrier)
                snprintf(line, sizeof line, "\n    warp %d lanes %08x wait at barrier %u for %s%.0u threads",
                         k, g.mask, g.barrier, g.expected ? "" : "all", g.expected);
            else
                snprintf(line, sizeof line,
                         "\n    warp %d lanes %08x wait at a .sync instruction for other lanes", k, g.mask);
            s += line;
            if (!at) at = &w, w.at = &f.func->code[f.frag[q].pc];
        }
    }
    at->fault(lowest_lane(at->live), s);
}

void Worker::run_block(u64 number)
{
    const Launch &l = *launch;
    block.index[0] = number % l.grid[0];
    block.index[1] = number / l.grid[0] % l.grid[1];
    block.index[2] = (u32)(number / ((u64)l.grid[0] * l.grid[1]));
    memset(block.shared, 0xff, l.shared_bytes);
    if (options().uninit) shared_written.assign(l.shared_bytes, 0);
    for (auto &b : block.barriers) b = BarrierState();
    int order[MAX_WARPS];
    std::iota(order, order + block.warps, 0);
    if (options().seed) {
        Random r(l.serial * 1000003 + number);
        for (int i = block.warps - 1; i > 0; i--) std::swap(order[i], order[r.below(i + 1)]);
    }
    for (int i = 0; i < block.warps; i++) {
        int n = block.threads - i * LANES;
        warp[i].init = n >= LANES ? ALL_LANES : (1u << n) - 1;
        warp[i].start();
    }
    for (size_t i = block.warps; i < warp.size(); i++) warp[i].live = 0, warp[i].frames.clear();
    if (options().race) race.begin_block(l.shared_bytes, warp);
    bool done[MAX_WARPS] = {}, blocked[MAX_WARPS] = {};
    for (int left = block.warps; left;) {
        bool ran = false;
        for (int k = 0; k < block.warps; k++) {
            int i = order[k];
            if (done[i] || blocked[i]) continue;
            ran = true;
            switch (warp[i].run()) {
            case Warp::Stop::Done:
                done[i] = true;
                left--;
                break;
            case Warp::Stop::Blocked: blocked[i] = true; break;
            case Warp::Stop::Slice:
                if (++warp[i].slices > options().max_slices)
                    warp[i].fault(
                        0, "runs for ever: spinning on another block, or an endless loop (EMU_MAX_SLICES)",
                        FAULT_TIMEOUT);
                break;
            }
        }
        if (try_release())
            for (auto &b : blocked) b = false; // the released ones; others block again at once
        else if (!ran) barrier_deadlock();
    }
    for (int i = 0; i < block.warps; i++) {
        stats.warp_insts += warp[i].warp_insts;
        stats.lane_insts += warp[i].lane_insts;
        warp[i].warp_insts = warp[i].lane_insts = 0;
    }
}

static std::vector<std::unique_ptr<Worker>> workers;
static u64 total_lane_insts;
static double total_seconds;

// At exit with EMU_VERBOSE=1: the interpreter's speed.
struct SpeedReport {
    ~SpeedReport()
    {
        if (options().verbose && total_seconds > 0)
            fprintf(stderr, "emulator: %.1f M lane instructions in %.3f s, %.0f M/s\n",
                    (double)total_lane_insts / 1e6, total_seconds,
                    (double)total_lane_insts / 1e6 / total_seconds);
    }
};

void run_launch(const Launch &l)
{
    static SpeedReport report;
    auto begin = std::chrono::steady_clock::now();
    u64 blocks = (u64)l.grid[0] * l.grid[1] * l.grid[2];
    u64 n = l.kernel->order_matters ? 1 : std::min<u64>(options().threads, blocks);
    if (blocks * l.block[0] * l.block[1] * l.block[2] < 2048) n = 1; // not worth a thread
    while (workers.size() < n) workers.push_back(std::make_unique<Worker>());
    std::vector<u64> order;
    if (options().seed) {
        order.resize(blocks);
        std::iota(order.begin(), order.end(), 0);
        Random r(l.serial);
        for (u64 i = blocks - 1; i > 0; i--) std::swap(order[i], order[r.below(i + 1)]);
    }
    std::atomic<u64> next{0};
    std::atomic<bool> stop{false};
    std::mutex lock;
    std::unique_ptr<Fault> failure;
    auto body = [&](Worker &w) {
        try {
            w.begin(l);
            for (u64 k; !stop && (k = next++) < blocks;) w.run_block(order.empty() ? k : order[k]);
        } catch (const Fault &f) {
            std::lock_guard<std::mutex> hold(lock);
            if (!failure) failure = std::make_unique<Fault>(f);
            stop = true;
        }
    };
    std::vector<std::thread> threads;
    for (u64 t = 1; t < n; t++) threads.emplace_back([&, t] { body(*workers[t]); });
    body(*workers[0]);
    for (auto &t : threads) t.join();
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    KernelStats s = workers[0]->stats;
    for (u64 t = 1; t < n; t++) s.add(workers[t]->stats);
    total_lane_insts += s.lane_insts;
    total_seconds += seconds;
    if (!options().stats.empty()) {
        SectorSet all;
        for (u64 t = 0; t < n; t++) all.merge(workers[t]->sectors, s.load, s.store);
        write_stats(l.kernel->name, l.serial, l.grid, l.block, l.shared_bytes, seconds, s);
    }
    if (failure) throw *failure;
}

} // namespace emu
