#include "race.h"
#include "warp.h"

namespace emu {

void RaceCheck::begin_block(u64 shared_bytes, std::vector<Warp> &warps)
{
    u64 n = (shared_bytes + 3) / 4;
    if (words.size() < n || base > 0x7fffffff) {
        words.assign(n, Word());
        base = 0;
    }
    u32 newest = base;
    for (auto &w : warps)
        for (u32 t : w.clock.of) newest = std::max(newest, t);
    base = newest + 1;
    for (auto &w : warps) {
        for (auto &t : w.clock.of) t = base - 1; // nothing of this block has been seen
        w.clock.of[w.id] = base;
    }
}

void RaceCheck::join(std::vector<Warp> &warps, u32 set)
{
    Clock all;
    each_lane(set, [&](int i) {
        for (int k = 0; k < MAX_WARPS; k++) all.of[k] = std::max(all.of[k], warps[i].clock.of[k]);
    });
    each_lane(set, [&](int i) {
        warps[i].clock = all;
        warps[i].clock.of[i]++;
    });
}

void RaceCheck::access(Warp &w, int lane, u32 offset, int bytes, How how)
{
    for (u32 a = offset, end = offset + bytes; a < end;) {
        u32 stop = std::min(end, a / 4 * 4 + 4);
        u8 mask = (u8)(((1u << (stop - a)) - 1) << (a & 3));
        word_access(w, lane, a / 4, mask, how);
        a = stop;
    }
}

void RaceCheck::word_access(Warp &w, int lane, u32 word, u8 byte_mask, How how)
{
    Word &s = words[word];
    int reuse = -1;
    for (int k = 0; k < 4; k++) {
        Mark &m = s.mark[k];
        if (m.time < base) {
            reuse = k;
            continue;
        }
        bool mine = m.warp == w.id;
        if (mine && m.lane == lane && m.how == how && m.bytes == byte_mask) reuse = k;
        bool clash = how != m.how ? true : how == Write;
        if (!(m.bytes & byte_mask) || !clash) continue;
        bool apart = mine ? options().race_warp && m.lane != lane && m.time == w.clock.of[w.id] &&
                                m.sync == w.warp_syncs && w.at
                          : m.time > w.clock.of[m.warp];
        if (!apart) continue;
        static const char *names[] = {"", "a read", "a write", "an atomic"};
        std::string other =
            mine ? "lane " + std::to_string(m.lane) + " of the same warp (no __syncwarp between)"
                 : "warp " + std::to_string(m.warp) + " (no barrier between)";
        w.fault(lane, std::string("shared-memory race: ") + names[how] + " at shared offset " +
                          std::to_string(word * 4) + " against " + names[m.how] + " by " + other);
    }
    if (reuse < 0) {
        reuse = s.next;
        s.next = (s.next + 1) & 3;
    }
    s.mark[reuse] = {w.clock.of[w.id], w.warp_syncs, (u8)w.id, (u8)lane, byte_mask, how};
}

} // namespace emu
