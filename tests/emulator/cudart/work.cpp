#include "work.h"
#include "runtime.h"

namespace emu {

cudaError_t work_submit(cudaStream_t stream, WorkMake make)
{
    Lock hold(runtime_lock());
    return result(stream_submit(stream, NodeKind::Library, std::move(make)));
}

static u8 *device_range(const void *p, size_t n, const char *who, const char *verb)
{
    if (!n) return nullptr;
    bool device, pinned;
    u8 *q = copy_pointer(p, n, &device, &pinned);
    if (q && (device || (pinned && memory_find((u64)p)->holds((u64)p, n)))) return q;
    char line[200];
    Allocation *m = memory_before((u64)p);
    if (device && m)
        snprintf(line, sizeof line,
                 "emulator: %s %s %zu bytes at %p, which is %lld bytes into an allocation of %llu", who, verb,
                 n, p, (long long)((u64)p - m->base), (unsigned long long)m->bytes);
    else
        snprintf(line, sizeof line, "emulator: %s %s %zu bytes at %p, which is not device memory", who, verb,
                 n, p);
    throw Fault(line, FAULT_ADDRESS);
}

const u8 *work_read(const void *p, size_t n, const char *who)
{
    u8 *q = device_range(p, n, who, "reads");
    if (q && options().uninit) {
        Allocation *m = memory_find((u64)p);
        for (size_t k = 0; k < n; k++)
            if (!m->written[(u64)p - m->base + k])
                throw Fault(std::string("emulator: ") + who +
                                " reads device memory that was never written, byte " + std::to_string(k) +
                                " of an operand",
                            FAULT_ADDRESS);
    }
    return q;
}

u8 *work_write(const void *p, size_t n, const char *who)
{
    u8 *q = device_range(p, n, who, "writes");
    if (q) memory_mark_written((u64)p, n);
    return q;
}

bool work_is_device(const void *p, size_t n)
{
    Lock hold(runtime_lock());
    bool device, pinned;
    return copy_pointer(p, n, &device, &pinned) && device;
}

void work_pump()
{
    Lock hold(runtime_lock());
    pump();
}
void work_lock() { runtime_lock().lock(); }
void work_unlock() { runtime_lock().unlock(); }

} // namespace emu
