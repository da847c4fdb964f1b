#include "stats.h"
#include "options.h"
#include <algorithm>
#include <cstdio>

namespace emu {

void KernelStats::add(const KernelStats &o)
{
    load.add(o.load);
    store.add(o.store);
    atomic.add(o.atomic);
    shared_bytes += o.shared_bytes;
    barriers += o.barriers;
    warp_insts += o.warp_insts;
    lane_insts += o.lane_insts;
}

SectorSet::Page *SectorSet::page(u64 key)
{
    if (key == last_key) return last;
    auto &p = pages[key];
    if (!p) p = std::make_unique<Page>();
    last_key = key;
    return last = p.get();
}

bool SectorSet::touch(u64 sector, bool write)
{
    u64 &w = page(sector >> 12)->bits[write][sector >> 6 & 63], bit = 1ull << (sector & 63);
    bool fresh = !(w & bit);
    w |= bit;
    return fresh;
}

// Takes over another worker's set; the counts grow by what was not here yet.
void SectorSet::merge(const SectorSet &o, Traffic &load, Traffic &store)
{
    for (auto &kv : o.pages) {
        Page *p = page(kv.first);
        for (int write = 0; write < 2; write++)
            for (int i = 0; i < 64; i++) {
                u64 fresh = kv.second->bits[write][i] & ~p->bits[write][i];
                p->bits[write][i] |= fresh;
                (write ? store : load).distinct += __builtin_popcountll(fresh);
            }
    }
}

void count_access(Traffic &t, SectorSet *set, const u64 *address, u32 mask, int bytes, bool write)
{
    u64 seen[LANES * 2];
    int n = 0;
    each_lane(mask, [&](int l) {
        u64 first = address[l] / 32, last = (address[l] + bytes - 1) / 32;
        for (u64 s = first; s <= last; s++)
            if (!n || seen[n - 1] != s) seen[n++] = s;
    });
    if (!std::is_sorted(seen, seen + n)) std::sort(seen, seen + n);
    n = (int)(std::unique(seen, seen + n) - seen);
    t.accesses++;
    t.bytes += (u64)count_lanes(mask) * bytes;
    t.sectors += n;
    if (set)
        for (int i = 0; i < n; i++) set->touch(seen[i], write);
}

static void print_traffic(FILE *f, const char *name, const Traffic &t)
{
    fprintf(f,
            ", \"%s\": {\"accesses\": %llu, \"bytes\": %llu, \"sectors\": %llu, \"distinct_sectors\": %llu}",
            name, (unsigned long long)t.accesses, (unsigned long long)t.bytes, (unsigned long long)t.sectors,
            (unsigned long long)t.distinct);
}

void write_stats(const std::string &kernel, u64 serial, const u32 *g, const u32 *b, u64 shared_bytes,
                 double seconds, const KernelStats &s)
{
    // ranks of one job append whole lines to the same file
    static FILE *f = fopen(options().stats.c_str(), "a");
    if (!f) return;
    fprintf(f, "{\"kernel\": \"%s\", \"launch\": %llu, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u]",
            kernel.c_str(), (unsigned long long)serial, g[0], g[1], g[2], b[0], b[1], b[2]);
    print_traffic(f, "load", s.load);
    print_traffic(f, "store", s.store);
    print_traffic(f, "atomic", s.atomic);
    fprintf(f, ", \"shared_bytes_moved\": %llu, \"shared_per_block\": %llu, \"barriers\": %llu",
            (unsigned long long)s.shared_bytes, (unsigned long long)shared_bytes,
            (unsigned long long)s.barriers);
    fprintf(f, ", \"warp_insts\": %llu, \"lane_insts\": %llu, \"seconds\": %.6f}\n",
            (unsigned long long)s.warp_insts, (unsigned long long)s.lane_insts, seconds);
    fflush(f);
}

} // namespace emu
