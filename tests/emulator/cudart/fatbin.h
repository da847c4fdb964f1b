// Fat binaries as nvcc embeds them: finds PTX entries and decompresses them.
#pragma once
#include "../ptx/types.h"
#include <vector>

namespace emu {

struct PtxEntry {
    int capability; // 80, 90
    std::string text;
};

// Throws std::runtime_error with what to do when the binary holds PTX in a form that cannot be read.
std::vector<PtxEntry> fatbin_ptx(const void *wrapper);

} // namespace emu
