// Device printf and assert text: reads strings and packed arguments through the checked address spaces.
#pragma once
#include "warp.h"

namespace emu {

std::string device_string(Warp &w, int lane, u64 address);
// printf with the argument block nvcc builds: every argument at its natural alignment.
std::string device_format(Warp &w, int lane, u64 format, u64 arguments);

} // namespace emu
