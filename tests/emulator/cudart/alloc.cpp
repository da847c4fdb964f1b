// Allocation of device, pinned and managed memory, pointer queries, variables.
#include "runtime.h"
#include <cstdlib>

using namespace emu;

EMU_API cudaError_t cudaMalloc(void **p, size_t n)
{
    Lock hold(runtime_lock());
    if (!device_count()) return result(cudaErrorNoDevice);
    if (!p) return result(cudaErrorInvalidValue);
    *p = nullptr;
    if (cudaError_t e = capture_forbids()) return result(e);
    if (!n) return result(cudaSuccess);
    *p = (void *)memory_alloc(current_device(), n);
    return result(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}

// Waits for the device first, as the real one does.
EMU_API cudaError_t cudaFree(void *p)
{
    if (!p) return result(cudaSuccess);
    Lock hold(runtime_lock());
    if (cudaError_t e = capture_forbids()) return result(e);
    Allocation *a = memory_find((u64)p);
    if (!a || a->base != (u64)p) return result(cudaErrorInvalidValue);
    if (a->managed) {
        drain_device(current_device());
        memory_remove_host(p);
        free(p);
        return result(cudaSuccess);
    }
    if (a->device < 0) return result(cudaErrorInvalidValue);
    drain_device(a->device);
    return result(memory_free((u64)p) ? cudaSuccess : cudaErrorInvalidValue);
}

// The memory is there at once; stream order only delays the free.
EMU_API cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s)
{
    Lock hold(runtime_lock());
    CUstream_st *st = stream_of(s);
    if (!st) return result(cudaErrorInvalidResourceHandle);
    if (st->capture) {
        complain("cudaMallocAsync inside a capture is not covered");
        return result(cudaErrorNotSupported);
    }
    *p = n ? (void *)memory_alloc(st->device, n) : nullptr;
    return result(*p || !n ? cudaSuccess : cudaErrorMemoryAllocation);
}
EMU_API cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    Lock hold(runtime_lock());
    if (!p) return result(cudaSuccess);
    Allocation *a = memory_find((u64)p);
    if (!a || a->base != (u64)p || a->device < 0) return result(cudaErrorInvalidValue);
    return result(stream_submit(s, NodeKind::Library, [p]() -> Step {
        return [p] {
            memory_free((u64)p);
            return true;
        };
    }));
}

static cudaError_t host_alloc(void **p, size_t n, bool managed)
{
    Lock hold(runtime_lock());
    if (!device_count()) return result(cudaErrorNoDevice);
    *p = nullptr;
    if (cudaError_t e = capture_forbids()) return result(e);
    if (!n) return result(cudaSuccess);
    *p = aligned_alloc(4096, align_up(n, 4096));
    if (!*p) return result(cudaErrorMemoryAllocation);
    memset(*p, 0xff, n);
    memory_add_host(*p, n, managed);
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaMallocHost(void **p, size_t n) { return host_alloc(p, n, false); }
EMU_API cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return host_alloc(p, n, false); }
EMU_API cudaError_t cudaMallocManaged(void **p, size_t n, unsigned) { return host_alloc(p, n, true); }
EMU_API cudaError_t cudaFreeHost(void *p)
{
    if (!p) return result(cudaSuccess);
    Lock hold(runtime_lock());
    Allocation *a = memory_find((u64)p);
    if (!a || a->base != (u64)p || a->device >= 0 || a->managed) return result(cudaErrorInvalidValue);
    for (int d = 0; d < device_count(); d++) drain_device(d);
    memory_remove_host(p);
    free(p);
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaHostRegister(void *p, size_t n, unsigned)
{
    Lock hold(runtime_lock());
    if (!p || !n) return result(cudaErrorInvalidValue);
    if (memory_find((u64)p)) return result(cudaErrorHostMemoryAlreadyRegistered);
    memory_add_host(p, n, false);
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaHostUnregister(void *p)
{
    Lock hold(runtime_lock());
    for (int d = 0; d < device_count(); d++) drain_device(d);
    return result(memory_remove_host(p) ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}
EMU_API cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    Lock hold(runtime_lock());
    Allocation *a = memory_find((u64)host);
    if (!a || a->device >= 0) return result(cudaErrorInvalidValue);
    *device = host;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaHostGetFlags(unsigned *flags, void *)
{
    *flags = cudaHostAllocPortable | cudaHostAllocMapped;
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    Lock hold(runtime_lock());
    memset(a, 0, sizeof *a);
    Allocation *m = memory_find((u64)p);
    a->type = !m               ? cudaMemoryTypeUnregistered
              : m->device >= 0 ? cudaMemoryTypeDevice
              : m->managed     ? cudaMemoryTypeManaged
                               : cudaMemoryTypeHost;
    a->device = m && m->device >= 0 ? m->device : current_device();
    a->devicePointer = m ? (void *)p : nullptr;
    a->hostPointer = m && m->device >= 0 ? nullptr : (void *)p;
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    Lock hold(runtime_lock());
    if (!device_count()) return result(cudaErrorNoDevice);
    int d = current_device();
    *total = memory_total(d);
    *available = *total - memory_used(d);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaGetSymbolAddress(void **p, const void *symbol)
{
    Lock hold(runtime_lock());
    *p = (void *)find_variable(symbol, current_device(), nullptr);
    return result(*p ? cudaSuccess : cudaErrorInvalidSymbol);
}
EMU_API cudaError_t cudaGetSymbolSize(size_t *n, const void *symbol)
{
    Lock hold(runtime_lock());
    u64 bytes = 0;
    if (!find_variable(symbol, current_device(), &bytes)) return result(cudaErrorInvalidSymbol);
    *n = bytes;
    return result(cudaSuccess);
}

// Pools: one default pool per device that never holds anything back.
EMU_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int d)
{
    *pool = (cudaMemPool_t)(u64)(0x1000 + d);
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int d)
{
    return cudaDeviceGetDefaultMemPool(pool, d);
}
EMU_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *)
{
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return result(cudaSuccess); }
