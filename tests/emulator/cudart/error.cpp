// Error state, fault reports, error names, the lock.
#include "runtime.h"
#include <cstdarg>
#include <map>
#include <unistd.h>

namespace emu {

std::recursive_mutex &runtime_lock()
{
    static auto *m = new std::recursive_mutex;
    return *m;
}

static thread_local cudaError_t last_error = cudaSuccess;
static std::atomic<int> sticky{cudaSuccess};

cudaError_t sticky_error() { return (cudaError_t)sticky.load(); }

cudaError_t result(cudaError_t e)
{
    if (e == cudaSuccess) e = sticky_error();
    if (e != cudaSuccess) last_error = e;
    return e;
}

void report_fault(const Fault &f)
{
    fflush(stdout);
    fprintf(stderr, "%s\n", f.what());
    fflush(nullptr);
    if (!options().fault_returns) _exit(97);
    sticky = f.cuda_error;
    drop_all_work();
}

void complain(const char *format, ...)
{
    char line[1024];
    va_list a;
    va_start(a, format);
    vsnprintf(line, sizeof line, format, a);
    va_end(a);
    fprintf(stderr, "emulator: %s\n", line);
}

// Before main: a host read of device memory must be reported from the start.
__attribute__((constructor)) static void install_handler() { memory_catch_host_access(); }

static const std::map<int, std::pair<const char *, const char *>> &error_texts()
{
    static const std::map<int, std::pair<const char *, const char *>> t = {
#define E(name, text)                                                                                        \
    {                                                                                                        \
        name, { #name, text }                                                                                \
    }
        E(cudaSuccess, "no error"),
        E(cudaErrorInvalidValue, "invalid argument"),
        E(cudaErrorMemoryAllocation, "out of memory"),
        E(cudaErrorInitializationError, "initialization error"),
        E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
        E(cudaErrorInvalidSymbol, "invalid device symbol"),
        E(cudaErrorInvalidDevicePointer, "invalid device pointer"),
        E(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
        E(cudaErrorMissingConfiguration, "launch without a configuration"),
        E(cudaErrorInvalidDeviceFunction, "invalid device function"),
        E(cudaErrorNoDevice, "no CUDA-capable device is detected"),
        E(cudaErrorInvalidDevice, "invalid device ordinal"),
        E(cudaErrorInvalidResourceHandle, "invalid resource handle"),
        E(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
        E(cudaErrorNotReady, "device not ready"),
        E(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
        E(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
        E(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
        E(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
        E(cudaErrorPeerAccessNotEnabled, "peer access has not been enabled"),
        E(cudaErrorAssert, "device-side assert triggered"),
        E(cudaErrorHostMemoryAlreadyRegistered,
          "part or all of the requested memory range is already mapped"),
        E(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
        E(cudaErrorMisalignedAddress, "misaligned address"),
        E(cudaErrorLaunchFailure, "unspecified launch failure"),
        E(cudaErrorNotPermitted, "operation not permitted"),
        E(cudaErrorNotSupported, "operation not supported"),
        E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
        E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
        E(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
        E(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
        E(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
        E(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
        E(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing blocking stream"),
        E(cudaErrorStreamCaptureWrongThread,
          "attempt to terminate a thread-local capture sequence from another thread"),
        E(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
        E(cudaErrorGraphExecUpdateFailure, "the graph update was not performed"),
        E(cudaErrorUnknown, "unknown error"),
#undef E
    };
    return t;
}

} // namespace emu

using namespace emu;

EMU_API cudaError_t cudaGetLastError()
{
    cudaError_t e = last_error;
    last_error = sticky_error(); // a sticky error stays
    return e;
}
EMU_API cudaError_t cudaPeekAtLastError() { return last_error; }
EMU_API const char *cudaGetErrorName(cudaError_t e)
{
    auto it = error_texts().find(e);
    return it == error_texts().end() ? "unrecognized error code" : it->second.first;
}
EMU_API const char *cudaGetErrorString(cudaError_t e)
{
    auto it = error_texts().find(e);
    return it == error_texts().end() ? "unrecognized error code" : it->second.second;
}
