// Copies and fills between host and device, checked for direction and bounds; on streams in stream order.
//
// A pageable source of an asynchronous copy is read at the call, a pinned one when the copy runs. A copy to
// pageable memory returns only when it is done. That is what the CUDA documentation promises at least.
#include "runtime.h"

using namespace emu;

namespace emu {

u8 *copy_pointer(const void *p, size_t n, bool *device, bool *pinned)
{
    *device = memory_is_device((u64)p);
    Allocation *a = memory_find((u64)p);
    *pinned = a && !*device;
    if (*device) return a && a->holds((u64)p, n) ? a->host((u64)p) : nullptr;
    return (u8 *)p;
}

} // namespace emu

namespace {

struct Side {
    const void *address;
    u8 *at;
    bool device, pinned;
};

Side side(const void *p, size_t n)
{
    Side s{p, nullptr, false, false};
    s.at = copy_pointer(p, n, &s.device, &s.pinned);
    return s;
}

cudaError_t check_direction(const Side &to, const Side &from, cudaMemcpyKind kind)
{
    if (!to.at || !from.at) return cudaErrorInvalidValue;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) return cudaSuccess;
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    // pinned memory may stand for either side, pageable and device memory only for their own
    if (to.device ? !to_device : to_device && !to.pinned) return cudaErrorInvalidValue;
    if (from.device ? !from_device : from_device && !from.pinned) return cudaErrorInvalidValue;
    return cudaSuccess;
}

// Rows of 'width' bytes. The pointers are looked up again when the copy runs: memory may be gone by then.
cudaError_t submit_copy(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                        size_t rows, cudaMemcpyKind kind, cudaStream_t stream, bool *pageable_target)
{
    *pageable_target = false;
    if (!width || !rows) return cudaSuccess;
    size_t to_bytes = to_pitch * (rows - 1) + width, from_bytes = from_pitch * (rows - 1) + width;
    Side t = side(to, to_bytes), f = side(from, from_bytes);
    if (cudaError_t e = check_direction(t, f, kind)) return e;
    CUstream_st *s = stream_of(stream);
    if (!s) return cudaErrorInvalidResourceHandle;
    *pageable_target = !t.device && !t.pinned;
    std::shared_ptr<std::vector<u8>> staged;
    if (!f.device && !f.pinned && !s->capture)
        staged = std::make_shared<std::vector<u8>>(f.at, f.at + from_bytes);
    return stream_submit(stream, NodeKind::Copy, [=]() -> Step {
        return [=] {
            Side a = side(to, to_bytes), b = side(from, from_bytes);
            if (!a.at || !b.at)
                throw Fault("emulator: a copy runs after its device memory was freed", FAULT_ADDRESS);
            const u8 *source = staged ? staged->data() : b.at;
            if (options().uninit && b.device) {
                Allocation *m = memory_find((u64)from);
                for (size_t r = 0; r < rows; r++)
                    for (size_t k = 0; k < width; k++)
                        if (!m->written[(u64)from - m->base + r * from_pitch + k])
                            throw Fault("emulator: a copy reads device memory that was never written, byte " +
                                            std::to_string(r * from_pitch + k) + " of its source",
                                        FAULT_ADDRESS);
            }
            for (size_t r = 0; r < rows; r++) memmove(a.at + r * to_pitch, source + r * from_pitch, width);
            if (a.device)
                for (size_t r = 0; r < rows; r++) memory_mark_written((u64)to + r * to_pitch, width);
            return true;
        };
    });
}

cudaError_t copy_async(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h,
                       cudaMemcpyKind kind, cudaStream_t s)
{
    bool wait;
    CUstream_st *st;
    {
        Lock hold(runtime_lock());
        if (cudaError_t e = submit_copy(to, tp, from, fp, w, h, kind, s, &wait)) return result(e);
        st = stream_of(s);
        if (st->capture) wait = false;
    }
    return result(wait ? drain_stream(st) : cudaSuccess);
}

cudaError_t copy_sync(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h,
                      cudaMemcpyKind kind)
{
    CUstream_st *st;
    {
        Lock hold(runtime_lock());
        if (cudaError_t e = capture_forbids()) return result(e);
        bool wait;
        if (cudaError_t e = submit_copy(to, tp, from, fp, w, h, kind, nullptr, &wait)) return result(e);
        st = stream_of(nullptr);
    }
    return result(drain_stream(st));
}

cudaError_t submit_set(void *p, size_t pitch, int value, size_t width, size_t rows, cudaStream_t s)
{
    Lock hold(runtime_lock());
    if (!width || !rows) return cudaSuccess;
    size_t bytes = pitch * (rows - 1) + width;
    Side t = side(p, bytes);
    if (!t.at || (!t.device && !t.pinned)) return cudaErrorInvalidValue;
    return stream_submit(s, NodeKind::Set, [=]() -> Step {
        return [=] {
            Side a = side(p, bytes);
            if (!a.at)
                throw Fault("emulator: a memset runs after its device memory was freed", FAULT_ADDRESS);
            for (size_t r = 0; r < rows; r++) {
                memset(a.at + r * pitch, value, width);
                if (a.device) memory_mark_written((u64)p + r * pitch, width);
            }
            return true;
        };
    });
}

} // namespace

EMU_API cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k)
{
    return copy_sync(d, n, s, n, n, 1, k);
}
EMU_API cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st)
{
    return copy_async(d, n, s, n, n, 1, k, st);
}
EMU_API cudaError_t cudaMemcpy2D(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                 cudaMemcpyKind k)
{
    if (w > dp || w > sp) return result(cudaErrorInvalidPitchValue);
    return copy_sync(d, dp, s, sp, w, h, k);
}
EMU_API cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                      cudaMemcpyKind k, cudaStream_t st)
{
    if (w > dp || w > sp) return result(cudaErrorInvalidPitchValue);
    return copy_async(d, dp, s, sp, w, h, k, st);
}
EMU_API cudaError_t cudaMemcpyPeer(void *d, int, const void *s, int, size_t n)
{
    return copy_sync(d, n, s, n, n, 1, cudaMemcpyDeviceToDevice);
}
EMU_API cudaError_t cudaMemcpyPeerAsync(void *d, int, const void *s, int, size_t n, cudaStream_t st)
{
    return copy_async(d, n, s, n, n, 1, cudaMemcpyDeviceToDevice, st);
}
EMU_API cudaError_t cudaMemset(void *p, int v, size_t n)
{
    return result(submit_set(p, n, v, n, 1, nullptr));
}
EMU_API cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s)
{
    return result(submit_set(p, n, v, n, 1, s));
}
EMU_API cudaError_t cudaMemset2D(void *p, size_t pitch, int v, size_t w, size_t h)
{
    return result(submit_set(p, pitch, v, w, h, nullptr));
}
EMU_API cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int v, size_t w, size_t h, cudaStream_t s)
{
    return result(submit_set(p, pitch, v, w, h, s));
}

// Address inside a variable, or an error.
static cudaError_t symbol_range(const void *symbol, size_t n, size_t offset, u8 **p)
{
    Lock hold(runtime_lock());
    u64 bytes = 0, a = find_variable(symbol, current_device(), &bytes);
    if (!a) return cudaErrorInvalidSymbol;
    if (offset > bytes || n > bytes - offset) return cudaErrorInvalidValue;
    *p = (u8 *)a + offset;
    return cudaSuccess;
}
EMU_API cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *s, size_t n, size_t offset,
                                       cudaMemcpyKind k)
{
    u8 *p;
    if (cudaError_t e = symbol_range(symbol, n, offset, &p)) return result(e);
    return cudaMemcpy(p, s, n, k);
}
EMU_API cudaError_t cudaMemcpyFromSymbol(void *d, const void *symbol, size_t n, size_t offset,
                                         cudaMemcpyKind k)
{
    u8 *p;
    if (cudaError_t e = symbol_range(symbol, n, offset, &p)) return result(e);
    return cudaMemcpy(d, p, n, k);
}
EMU_API cudaError_t cudaMemcpyToSymbolAsync(const void *symbol, const void *s, size_t n, size_t offset,
                                            cudaMemcpyKind k, cudaStream_t st)
{
    u8 *p;
    if (cudaError_t e = symbol_range(symbol, n, offset, &p)) return result(e);
    return cudaMemcpyAsync(p, s, n, k, st);
}
EMU_API cudaError_t cudaMemcpyFromSymbolAsync(void *d, const void *symbol, size_t n, size_t offset,
                                              cudaMemcpyKind k, cudaStream_t st)
{
    u8 *p;
    if (cudaError_t e = symbol_range(symbol, n, offset, &p)) return result(e);
    return cudaMemcpyAsync(d, p, n, k, st);
}
