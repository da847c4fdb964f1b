// What a kernel moved: bytes its lanes asked for, 32-byte sectors its warps requested, distinct sectors
// touched.
//
// "Requested" counts sectors per warp instruction, as the profiler's l1tex sector counters do before any
// cache. "Distinct" counts each sector once per launch: what an infinite cache would fetch from memory.
#pragma once
#include "types.h"
#include <string>
#include <unordered_map>
#include <memory>

namespace emu {

struct Traffic {
    u64 accesses = 0; // warp instructions
    u64 bytes = 0;
    u64 sectors = 0;
    u64 distinct = 0;
    void add(const Traffic &o)
    {
        accesses += o.accesses;
        bytes += o.bytes;
        sectors += o.sectors;
        distinct += o.distinct;
    }
};

struct KernelStats {
    Traffic load, store, atomic;
    u64 shared_bytes = 0;
    u64 barriers = 0;
    u64 warp_insts = 0, lane_insts = 0;
    void add(const KernelStats &o);
};

// Which sectors of global memory a launch touched.
class SectorSet {
  public:
    void clear()
    {
        pages.clear();
        last_key = ~0ull;
    }
    // True when the sector had not been touched in this way.
    bool touch(u64 sector, bool write);
    void merge(const SectorSet &o, Traffic &load, Traffic &store);

  private:
    struct Page {
        u64 bits[2][64] = {}; // 4096 sectors, read and written
    };
    std::unordered_map<u64, std::unique_ptr<Page>> pages;
    u64 last_key = ~0ull;
    Page *last = nullptr;
    Page *page(u64 key);
};

// Counts one warp access; addresses of active lanes.
void count_access(Traffic &t, SectorSet *set, const u64 *address, u32 mask, int bytes, bool write);
void write_stats(const std::string &kernel, u64 serial, const u32 *grid, const u32 *block, u64 shared_bytes,
                 double seconds, const KernelStats &s);

} // namespace emu
