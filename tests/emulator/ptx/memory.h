// Device memory of the emulated GPUs, and the pinned host memory that kernels may address.
//
// A device pointer lies in an address range that is reserved but never mapped (PROT_NONE), so a host access
// to it faults; the bytes live in a shadow range at a constant distance. Every allocation has exact bounds:
// bytes after its end, although mapped in the shadow, are out of bounds. Fresh memory holds 0xff bytes (NaN
// in every float type). Pinned host memory is addressed at its own place.
#pragma once
#include "types.h"
#include <map>
#include <vector>

namespace emu {

struct Allocation {
    u64 base = 0, bytes = 0;
    s64 shift = 0;   // host pointer = address + shift
    int device = -1; // -1: pinned host memory
    bool managed = false;
    std::vector<u8> written; // one byte per byte, only with EMU_UNINIT=1

    u64 end() const { return base + bytes; }
    bool holds(u64 a, u64 n) const { return a >= base && n <= bytes && a - base <= bytes - n; }
    u8 *host(u64 a) const { return (u8 *)(a + (u64)shift); }
};

constexpr int MAX_DEVICES = 16;

// Returns the device address, 0 when the device has not that much left.
u64 memory_alloc(int device, u64 bytes);
bool memory_free(u64 address);
void memory_add_host(void *p, u64 bytes, bool managed);
bool memory_remove_host(void *p);
// The allocation that holds address a, or null.
Allocation *memory_find(u64 a);
// The last allocation that starts at or before a, or null.
Allocation *memory_before(u64 a);
u64 memory_used(int device);
u64 memory_total(int device);
// True for an address inside the reserved device ranges, allocated or not.
bool memory_is_device(u64 a);
void memory_mark_written(u64 a, u64 n);
// Increases at every change of the allocation table; caches compare it.
u64 memory_version();
// Puts a line on stderr when the process faults on a device address, then lets the default action happen.
void memory_catch_host_access();

} // namespace emu
