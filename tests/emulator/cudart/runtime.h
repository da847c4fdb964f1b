// State of the emulated CUDA runtime, shared by its files.
//
// One lock guards everything; kernels run with it held. It is released while a wait has nothing to run, so
// that other host threads can submit or abort.
#pragma once
#pragma GCC visibility push(default)
#include <cuda_runtime_api.h>
#pragma GCC visibility pop
#include "../ptx/memory.h"
#include "../ptx/options.h"
#include "../ptx/program.h"
#include "../ptx/warp.h"
#include "stream.h"
#include <mutex>

#define EMU_API extern "C" __attribute__((visibility("default")))

namespace emu {

using Lock = std::unique_lock<std::recursive_mutex>;
std::recursive_mutex &runtime_lock();

// Remembers e for cudaGetLastError and returns it; a sticky error from a fault wins over success.
cudaError_t result(cudaError_t e);
// What a failed check does: one report on stderr, then the end of the process, or a sticky error
// (EMU_FAULT=return).
void report_fault(const Fault &f);
cudaError_t sticky_error();
// The call is misused in a way the hardware would let pass or answer vaguely.
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

int device_count();
int current_device();
u32 device_peers(int device);
int device_sms();
int device_capability(); // 80, 90
u64 shared_optin_limit();

// Modules: kernels and variables registered by nvcc's start-up code.
Kernel *find_kernel(const void *handle, int device);
const FunctionText *find_kernel_text(const void *handle);
struct KernelLimits {
    int max_dynamic = -1; // cudaFuncAttributeMaxDynamicSharedMemorySize
};
KernelLimits &kernel_limits(const void *handle);
// Address of a __device__ or __constant__ variable on the device, and its size; 0 when unknown.
u64 find_variable(const void *handle, int device, u64 *bytes);

// Kernel launch checked against the device's limits; *make is what a stream or graph runs.
cudaError_t prepare_launch(const void *handle, dim3 grid, dim3 block, void **args, size_t dynamic_bytes,
                           int device, Make *make);

// Host pointer behind [p, p+n): shadow memory of a device range, p itself for host memory; null when the
// range is not inside one allocation.
u8 *copy_pointer(const void *p, size_t n, bool *device, bool *pinned);

} // namespace emu
