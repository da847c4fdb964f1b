// Environment switches of the emulator, read once. README.md lists them.
#pragma once
#include "types.h"

namespace emu {

struct Options {
    u64 seed = 0;               // EMU_SEED: 0 runs streams, blocks and warps in order
    bool race = false;          // EMU_RACE=1: shared-memory races between warps
    bool race_warp = false;     // EMU_RACE=2: also inside a warp (missing __syncwarp)
    bool uninit = false;        // EMU_UNINIT=1: reads of bytes nobody wrote
    bool strict_barrier = true; // EMU_STRICT_BARRIER=0: allow one barrier to be met at different instructions
    bool fault_returns =
        false; // EMU_FAULT=return: a fault becomes a sticky CUDA error instead of ending the process
    bool verbose = false;     // EMU_VERBOSE=1
    std::string stats;        // EMU_STATS=FILE: JSON lines, one per kernel launch
    int threads = 1;          // EMU_THREADS
    u64 max_slices = 1 << 14; // EMU_MAX_SLICES: 65,536 backward branches each, per warp, before "never ends"
};

const Options &options();
u64 env_number(const char *name, u64 otherwise);
// "6GiB", "512MiB", "4096"
u64 env_bytes(const char *name, u64 otherwise);

// xorshift64*, seeded by Options::seed and a stream number
struct Random {
    u64 state;
    explicit Random(u64 stream);
    u64 next();
    u64 below(u64 n) { return next() % n; }
};

} // namespace emu
