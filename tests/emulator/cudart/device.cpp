// Devices: how many, their properties and attributes, peer access, versions.
//
// Physical devices are numbered from 0; CUDA_VISIBLE_DEVICES (numbers) chooses and orders the visible ones.
// UUID and PCI bus id belong to the physical device, so that a rank-to-GPU mapping can be checked across
// processes.
#include "runtime.h"
#include <algorithm>
#include <sstream>
#include <unistd.h>

namespace emu {

static thread_local int device_now;

static const std::vector<int> &visible()
{
    static const std::vector<int> list = [] {
        int n = (int)std::min<u64>(env_number("EMU_DEVICES", env_number("OMPI_COMM_WORLD_LOCAL_SIZE", 1)),
                                   MAX_DEVICES);
        std::vector<int> v;
        const char *c = getenv("CUDA_VISIBLE_DEVICES");
        if (!c) {
            for (int i = 0; i < n; i++) v.push_back(i);
            return v;
        }
        std::stringstream s(c);
        for (std::string w; std::getline(s, w, ',');) {
            char *e;
            long d = strtol(w.c_str(), &e, 10);
            if (e == w.c_str() || d < 0 || d >= n)
                break; // as CUDA does: the list ends at the first bad entry
            v.push_back((int)d);
        }
        return v;
    }();
    return list;
}

int device_count() { return (int)visible().size(); }
int current_device() { return device_now; }
int device_sms() { return (int)env_number("EMU_SMS", 16); }
int device_capability() { return (int)env_number("EMU_CAPABILITY", 90); }
u64 shared_optin_limit()
{
    switch (device_capability()) { // CUDA programming guide, technical specifications by compute capability
    case 80:
    case 87: return 166912;
    case 86:
    case 89:
    case 120:
    case 121: return 101376;
    default: return 232448;
    }
}

static u32 peers[MAX_DEVICES];
u32 device_peers(int d) { return peers[d] | 1u << d; }

static int attribute(cudaDeviceAttr a)
{
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (int)shared_optin_limit();
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (int)shared_optin_limit() + 1024;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrMultiProcessorCount: return device_sms();
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return device_capability() / 10;
    case cudaDevAttrComputeCapabilityMinor: return device_capability() % 10;
    case cudaDevAttrClockRate: return 1755000;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return 5120;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels: return 1;
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrMemoryPoolsSupported: return 1;
    case cudaDevAttrManagedMemory: return 1;
    default: return 0; // among others: cooperative launch, clusters
    }
}

} // namespace emu

using namespace emu;

static cudaError_t known_device(int d)
{
    return d >= 0 && d < device_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

EMU_API cudaError_t cudaGetDeviceCount(int *n)
{
    *n = device_count();
    return result(*n ? cudaSuccess : cudaErrorNoDevice);
}
EMU_API cudaError_t cudaSetDevice(int d)
{
    if (!device_count()) return result(cudaErrorNoDevice);
    if (known_device(d)) return result(cudaErrorInvalidDevice);
    device_now = d;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return result(known_device(d)); }
EMU_API cudaError_t cudaGetDevice(int *d)
{
    *d = device_now;
    return result(device_count() ? cudaSuccess : cudaErrorNoDevice);
}
EMU_API cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d)
{
    if (known_device(d)) return result(cudaErrorInvalidDevice);
    switch (a) {
    case cudaDevAttrPciBusId: *v = 0x10 + visible()[d]; break;
    default: *v = attribute(a); break;
    }
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d)
{
    if (known_device(d)) return result(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU %d (no hardware)", visible()[d]);
    gethostname(p->uuid.bytes, 12);
    memcpy(p->uuid.bytes + 12, "emu", 3);
    p->uuid.bytes[15] = (char)visible()[d];
    p->totalGlobalMem = memory_total(d);
    p->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    p->sharedMemPerBlockOptin = shared_optin_limit();
    p->sharedMemPerMultiprocessor = shared_optin_limit() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 0x7fffffff;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = device_capability() / 10;
    p->minor = device_capability() % 10;
    p->textureAlignment = 512;
    p->multiProcessorCount = device_sms();
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
    p->pciBusID = 0x10 + visible()[d];
    p->asyncEngineCount = 3;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->streamPrioritiesSupported = p->memoryPoolsSupported = 1;
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaDeviceGetPCIBusId(char *out, int n, int d)
{
    if (known_device(d)) return result(cudaErrorInvalidDevice);
    snprintf(out, n, "0000:%02X:00.0", 0x10 + visible()[d]);
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceGetByPCIBusId(int *d, const char *id)
{
    unsigned domain, bus;
    if (sscanf(id, "%x:%x", &domain, &bus) == 2)
        for (int i = 0; i < device_count(); i++)
            if ((unsigned)visible()[i] + 0x10 == bus) {
                *d = i;
                return result(cudaSuccess);
            }
    return result(cudaErrorInvalidDevice);
}

EMU_API cudaError_t cudaDeviceSynchronize()
{
    int d = current_device();
    {
        Lock hold(runtime_lock());
        if (cudaError_t e = capture_forbids()) return result(e);
    }
    return result(drain_device(d));
}
EMU_API cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

EMU_API cudaError_t cudaDeviceCanAccessPeer(int *can, int d, int peer)
{
    if (known_device(d) || known_device(peer)) return result(cudaErrorInvalidDevice);
    *can = d != peer;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    Lock hold(runtime_lock());
    if (known_device(peer) || peer == device_now) return result(cudaErrorInvalidDevice);
    if (peers[device_now] >> peer & 1) return result(cudaErrorPeerAccessAlreadyEnabled);
    peers[device_now] |= 1u << peer;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    Lock hold(runtime_lock());
    if (!(peers[device_now] >> peer & 1)) return result(cudaErrorPeerAccessNotEnabled);
    peers[device_now] &= ~(1u << peer);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDriverGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaSetDeviceFlags(unsigned) { return result(cudaSuccess); }
EMU_API cudaError_t cudaGetDeviceFlags(unsigned *f)
{
    *f = 0;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return result(cudaSuccess); }
EMU_API cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return result(cudaSuccess); }
EMU_API cudaError_t cudaDeviceGetLimit(size_t *v, cudaLimit limit)
{
    *v = limit == cudaLimitPrintfFifoSize ? 1 << 20 : limit == cudaLimitStackSize ? LOCAL_BYTES : 0;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaCtxResetPersistingL2Cache() { return result(cudaSuccess); }
EMU_API cudaError_t cudaProfilerStart() { return result(cudaSuccess); }
EMU_API cudaError_t cudaProfilerStop() { return result(cudaSuccess); }
