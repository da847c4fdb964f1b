#include "memory.h"
#include "options.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

namespace {

constexpr u64 WINDOW = 1ull << 38; // address range per device, far above any configured size
constexpr u64 GRAIN = 512;         // alignment of allocations; the gap after each is at least this

struct Device {
    u64 used = 0;
    std::map<u64, u64> free_by_offset; // offset -> length
};

struct Table {
    u64 base = 0; // reserved range
    u8 *shadow = nullptr;
    u64 device_bytes;
    Device dev[MAX_DEVICES];
    std::map<u64, Allocation> all;
    u64 version = 1;

    Table()
    {
        device_bytes = std::min(env_bytes("EMU_DEVICE_MEMORY", 16ull << 30), WINDOW / 2);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *r = mmap(nullptr, WINDOW * MAX_DEVICES, PROT_NONE, flags, -1, 0);
        void *s = mmap(nullptr, WINDOW * MAX_DEVICES, PROT_NONE, flags, -1, 0);
        if (r == MAP_FAILED || s == MAP_FAILED) {
            perror("emulator: cannot reserve the address range of device memory");
            _exit(97);
        }
        base = (u64)r;
        shadow = (u8 *)s;
        for (auto &d : dev) d.free_by_offset[GRAIN] = WINDOW - GRAIN;
    }
};

Table &table()
{
    static Table *t = new Table; // never destroyed: kernels may run from other destructors
    return *t;
}

u64 round_up(u64 v, u64 g) { return (v + g - 1) / g * g; }

} // namespace

u64 memory_alloc(int device, u64 bytes)
{
    Table &t = table();
    Device &d = t.dev[device];
    if (bytes > t.device_bytes || d.used + bytes > t.device_bytes) return 0;
    u64 take = round_up(std::max<u64>(bytes, 1), GRAIN) + GRAIN;
    for (auto it = d.free_by_offset.begin(); it != d.free_by_offset.end(); ++it) {
        if (it->second < take) continue;
        u64 off = it->first, left = it->second - take;
        d.free_by_offset.erase(it);
        if (left) d.free_by_offset[off + take] = left;
        Allocation a;
        a.base = t.base + WINDOW * device + off;
        a.bytes = bytes;
        a.shift = (s64)((u64)t.shadow - t.base);
        a.device = device;
        u8 *p = a.host(a.base);
        u64 page = 4096, from = (u64)p / page * page, to = round_up((u64)p + take, page);
        if (mprotect((void *)from, to - from, PROT_READ | PROT_WRITE)) return 0;
        memset(p, 0xff, bytes);
        if (options().uninit) a.written.assign(bytes, 0);
        d.used += bytes;
        t.version++;
        u64 address = a.base;
        t.all[address] = std::move(a);
        return address;
    }
    return 0;
}

bool memory_free(u64 address)
{
    Table &t = table();
    auto it = t.all.find(address);
    if (it == t.all.end() || it->second.device < 0) return false;
    Allocation &a = it->second;
    Device &d = t.dev[a.device];
    u64 off = address - t.base - WINDOW * a.device, take = round_up(std::max<u64>(a.bytes, 1), GRAIN) + GRAIN;
    u64 page = 4096, from = round_up((u64)a.host(address), page),
        to = (u64)a.host(address + take) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
    d.used -= a.bytes;
    auto [f, ok] = d.free_by_offset.emplace(off, take);
    (void)ok;
    auto next = std::next(f);
    if (next != d.free_by_offset.end() && f->first + f->second == next->first) {
        f->second += next->second;
        d.free_by_offset.erase(next);
    }
    if (f != d.free_by_offset.begin()) {
        auto prev = std::prev(f);
        if (prev->first + prev->second == f->first) {
            prev->second += f->second;
            d.free_by_offset.erase(f);
        }
    }
    t.all.erase(it);
    t.version++;
    return true;
}

void memory_add_host(void *p, u64 bytes, bool managed)
{
    Table &t = table();
    Allocation a;
    a.base = (u64)p;
    a.bytes = bytes;
    a.managed = managed;
    if (options().uninit) a.written.assign(bytes, 1); // the host may write it without our knowing
    t.all[a.base] = std::move(a);
    t.version++;
}

bool memory_remove_host(void *p)
{
    Table &t = table();
    auto it = t.all.find((u64)p);
    if (it == t.all.end() || it->second.device >= 0) return false;
    t.all.erase(it);
    t.version++;
    return true;
}

Allocation *memory_before(u64 a)
{
    auto &all = table().all;
    auto it = all.upper_bound(a);
    return it == all.begin() ? nullptr : &std::prev(it)->second;
}

Allocation *memory_find(u64 a)
{
    Allocation *m = memory_before(a);
    return m && a < m->end() ? m : nullptr;
}

u64 memory_used(int device) { return table().dev[device].used; }
u64 memory_total(int) { return table().device_bytes; }
u64 memory_version() { return table().version; }

bool memory_is_device(u64 a)
{
    Table &t = table();
    return a >= t.base && a < t.base + WINDOW * MAX_DEVICES;
}

void memory_mark_written(u64 a, u64 n)
{
    if (!options().uninit || !n) return;
    Allocation *m = memory_find(a);
    if (m && m->holds(a, n)) memset(&m->written[a - m->base], 1, n);
}

static struct sigaction previous_action;

static void on_segv(int sig, siginfo_t *info, void *context)
{
    u64 a = (u64)info->si_addr;
    if (memory_is_device(a)) {
        char line[160];
        int n = snprintf(line, sizeof line,
                         "emulator: host access to device memory at 0x%llx: copy it with cudaMemcpy first\n",
                         (unsigned long long)a);
        if (write(2, line, n) < 0) _exit(97);
        _exit(97);
    }
    if (previous_action.sa_flags & SA_SIGINFO) return previous_action.sa_sigaction(sig, info, context);
    if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN)
        return previous_action.sa_handler(sig);
    signal(SIGSEGV, SIG_DFL);
}

void memory_catch_host_access()
{
    struct sigaction s = {};
    s.sa_sigaction = on_segv;
    s.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &s, &previous_action);
}

} // namespace emu
