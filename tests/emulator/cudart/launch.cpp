// Kernel launches: limits of the device, arguments, attributes, occupancy.
#include "runtime.h"
#include <algorithm>

using namespace emu;

namespace emu {

static u64 serial;

static cudaError_t check_limits(const void *handle, const FunctionText &t, const Kernel &k, dim3 g, dim3 b,
                                size_t dynamic_bytes)
{
    u64 threads = (u64)b.x * b.y * b.z;
    if (!threads || threads > 1024 || b.x > 1024 || b.y > 1024 || b.z > 64)
        return cudaErrorInvalidConfiguration;
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (t.max_threads && threads > t.max_threads) return cudaErrorLaunchOutOfResources; // __launch_bounds__
    int allowed = kernel_limits(handle).max_dynamic;
    u64 total = k.shared_bytes + dynamic_bytes;
    if (allowed < 0 ? total > 49152 : (dynamic_bytes > (u64)allowed || total > shared_optin_limit()))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

cudaError_t prepare_launch(const void *handle, dim3 g, dim3 b, void **args, size_t dynamic_bytes, int device,
                           Make *make)
{
    const FunctionText *t = find_kernel_text(handle);
    if (!t) return cudaErrorInvalidDeviceFunction;
    Kernel *k = find_kernel(handle, device);
    if (!k) return cudaErrorInvalidDeviceFunction;
    if (cudaError_t e = check_limits(handle, *t, *k, g, b, dynamic_bytes)) return e;
    auto l = std::make_shared<Launch>();
    l->kernel = k;
    l->device = device;
    l->peers = device_peers(device);
    u32 grid[] = {g.x, g.y, g.z}, block[] = {b.x, b.y, b.z};
    std::copy(grid, grid + 3, l->grid);
    std::copy(block, block + 3, l->block);
    l->dynamic_bytes = dynamic_bytes;
    l->shared_bytes = k->shared_bytes;
    if (k->uses_dynamic) l->shared_bytes = align_up(k->shared_bytes, k->dynamic_align) + dynamic_bytes;
    l->params.resize(t->param_bytes);
    for (size_t i = 0; i < t->params.size(); i++)
        memcpy(&l->params[t->params[i].offset], args[i], t->params[i].bytes);
    *make = [l]() -> Step {
        return [l] {
            Launch now = *l;
            now.serial = ++serial;
            run_launch(now);
            return true;
        };
    };
    return cudaSuccess;
}

} // namespace emu

static cudaError_t launch(const void *handle, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s)
{
    Lock hold(runtime_lock());
    if (sticky_error()) return result(sticky_error());
    CUstream_st *st = stream_of(s);
    if (!st) return result(cudaErrorInvalidResourceHandle);
    if (st->device != current_device()) return result(cudaErrorInvalidResourceHandle);
    Make make;
    cudaError_t e = prepare_launch(handle, g, b, args, shared, st->device, &make);
    if (e == cudaSuccess) e = stream_submit(s, NodeKind::Kernel, std::move(make));
    return result(e);
}

EMU_API cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared,
                                     cudaStream_t s)
{
    return launch(f, g, b, args, shared, s);
}
EMU_API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **args, size_t shared,
                                       cudaStream_t s)
{
    return launch((const void *)k, g, b, args, shared, s);
}
EMU_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args)
{
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension ||
            c->attrs[i].id == cudaLaunchAttributeCooperative) {
            complain("launch attribute %d (cluster or cooperative) is not covered", (int)c->attrs[i].id);
            return result(cudaErrorNotSupported);
        }
    return launch(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream);
}
// Blocks run one after another, so a grid barrier could never complete.
EMU_API cudaError_t cudaLaunchCooperativeKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t)
{
    complain("cooperative launches are not covered");
    return result(cudaErrorNotSupported);
}

EMU_API cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute a, int v)
{
    Lock hold(runtime_lock());
    if (!find_kernel_text(f)) return result(cudaErrorInvalidDeviceFunction);
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        Kernel *k = find_kernel(f, current_device());
        if (!k) return result(cudaErrorInvalidDeviceFunction);
        if (v < 0 || v + k->shared_bytes > shared_optin_limit()) return result(cudaErrorInvalidValue);
        kernel_limits(f).max_dynamic = v;
    } else if (a != cudaFuncAttributePreferredSharedMemoryCarveout) {
        return result(cudaErrorInvalidValue);
    }
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaFuncSetCacheConfig(const void *, cudaFuncCache) { return result(cudaSuccess); }

// numRegs is not known from PTX: 0. ptxas tells it.
EMU_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *f)
{
    Lock hold(runtime_lock());
    const FunctionText *t = find_kernel_text(f);
    Kernel *k = t ? find_kernel(f, current_device()) : nullptr;
    if (!k) return result(cudaErrorInvalidDeviceFunction);
    memset(a, 0, sizeof *a);
    a->sharedSizeBytes = k->shared_bytes;
    a->localSizeBytes = k->entry->local_bytes;
    a->maxThreadsPerBlock = t->max_threads ? (int)t->max_threads : 1024;
    a->ptxVersion = a->binaryVersion = device_capability();
    int max = kernel_limits(f).max_dynamic;
    a->maxDynamicSharedSizeBytes = max >= 0 ? max : (int)(49152 - k->shared_bytes);
    return result(cudaSuccess);
}

// By threads and shared memory only: registers are not known here.
EMU_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads,
                                                                           size_t dynamic_bytes, unsigned)
{
    Lock hold(runtime_lock());
    const FunctionText *t = find_kernel_text(f);
    Kernel *k = t ? find_kernel(f, current_device()) : nullptr;
    if (!k) return result(cudaErrorInvalidDeviceFunction);
    if (threads < 1) return result(cudaErrorInvalidValue);
    *n = 0;
    if (check_limits(f, *t, *k, dim3(1), dim3((unsigned)threads), dynamic_bytes) == cudaSuccess) {
        u64 per_block = k->shared_bytes + dynamic_bytes + 1024; // 1 KiB is the system's
        u64 by_shared = (shared_optin_limit() + 1024) / per_block;
        u64 by_threads = 2048 / align_up(threads, 32);
        *n = (int)std::min<u64>({by_shared, by_threads, 32});
    }
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads,
                                                                  size_t dynamic_bytes)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, dynamic_bytes, 0);
}
EMU_API cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, const void *f, int blocks, int)
{
    Lock hold(runtime_lock());
    Kernel *k = find_kernel(f, current_device());
    if (!k || blocks < 1) return result(cudaErrorInvalidValue);
    u64 each = (shared_optin_limit() + 1024) / blocks, used = k->shared_bytes + 1024;
    *bytes = each > used ? each - used : 0;
    return result(cudaSuccess);
}
