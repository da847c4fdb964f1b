// What the cuBLAS and NCCL stand-ins need from the runtime's: work on streams, and checked access to device
// memory.
#pragma once
#include <cuda_runtime_api.h>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace emu {

using WorkStep = std::function<bool()>; // false: not finished, call again
using WorkMake = std::function<WorkStep()>;

#define EMU_WORK __attribute__((visibility("default")))

// Adds work to a stream or to the graph it is captured into. The step may throw what work_read and work_write
// throw.
EMU_WORK cudaError_t work_submit(cudaStream_t stream, WorkMake make);
// Host pointer behind [p, p+n) of device memory. A range that is not device memory, or not inside one
// allocation, ends the program with a line that names 'who'. Only inside steps, except for scalars.
EMU_WORK const uint8_t *work_read(const void *p, size_t n, const char *who);
EMU_WORK uint8_t *work_write(const void *p, size_t n, const char *who);
EMU_WORK bool work_is_device(const void *p, size_t n);
// Lets queued work run once.
EMU_WORK void work_pump();
// The runtime's lock, held by every step.
EMU_WORK void work_lock();
EMU_WORK void work_unlock();

} // namespace emu
