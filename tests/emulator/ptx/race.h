// Shared-memory race check: happens-before between the warps of a block, by vector clocks.
//
// Barriers join the clocks of the warps that take part. Every 4-byte word keeps its last four accesses; two
// accesses to the same byte by different warps conflict when one is a plain write and the older is not before
// the younger. Reports are exact (no false alarm for barrier-synchronised code); with more than four accesses
// between barriers an old one may be forgotten, so an alarm can be missed. Order through atomics is not
// modelled: atomics conflict with plain accesses only.
#pragma once
#include "types.h"
#include <vector>

namespace emu {

struct Warp;

constexpr int MAX_WARPS = 32;

struct Clock {
    u32 of[MAX_WARPS] = {};
};

class RaceCheck {
  public:
    enum How : u8 { Read = 1, Write = 2, Atomic = 3 };

    void begin_block(u64 shared_bytes, std::vector<Warp> &warps);
    // Joins the clocks of the warps in the set and moves each of them on.
    void join(std::vector<Warp> &warps, u32 set);
    void access(Warp &w, int lane, u32 offset, int bytes, How how);

  private:
    struct Mark {
        u32 time = 0; // 0: none
        u32 sync = 0; // warp_syncs of the warp, for races inside it
        u8 warp = 0, lane = 0, bytes = 0;
        How how = Read;
    };
    struct Word {
        Mark mark[4];
        u8 next = 0;
    };
    std::vector<Word> words;
    u32 base = 0; // marks older than this belong to earlier blocks

    void word_access(Warp &w, int lane, u32 word, u8 byte_mask, How how);
};

} // namespace emu
