#include "runtime.h"
#include <algorithm>
#include <chrono>
#include <pthread.h>
#include <set>
#include <unistd.h>

namespace emu {

namespace {

struct Streams {
    std::set<CUstream_st *> all;
    CUstream_st legacy[MAX_DEVICES], per_thread[MAX_DEVICES];
    std::set<Capture *> captures;
    u64 next_id = 1;
    Random random{77};
    Streams()
    {
        for (int d = 0; d < MAX_DEVICES; d++) {
            legacy[d].device = per_thread[d].device = d;
            legacy[d].legacy = true;
            all.insert(&legacy[d]);
            all.insert(&per_thread[d]);
        }
    }
};
Streams &streams()
{
    static Streams *s = new Streams; // outlives every static destructor
    return *s;
}

bool ready(const CUstream_st::Op &o)
{
    return std::all_of(o.waits.begin(), o.waits.end(), [](const Position &p) { return p.reached(); });
}

// Runs the first op of the stream; true when it finished.
bool advance(CUstream_st *s)
{
    Step step = std::move(s->queue.front().step); // a host function may submit to this very queue
    bool done = step();
    CUstream_st::Op &op = s->queue.front();
    if (!done) {
        op.step = std::move(step);
        return false;
    }
    s->progress->done = op.number;
    s->queue.pop_front();
    return true;
}

std::vector<CUstream_st *> runnable()
{
    std::vector<CUstream_st *> r;
    for (auto *s : streams().all)
        if (!s->queue.empty() && ready(s->queue.front())) r.push_back(s);
    std::sort(r.begin(), r.end(), [](auto *a, auto *b) { return a->id < b->id; });
    return r;
}

// Tries streams in random order (or in order without a seed) until one op finishes.
bool run_one(CUstream_st *wanted = nullptr)
{
    auto list = runnable();
    if (options().seed)
        for (size_t i = list.size(); i > 1; i--) std::swap(list[i - 1], list[streams().random.below(i)]);
    // the stream that is waited for first (seed 1, 5, ...) or last (3, 7, ...), see README.md
    if (wanted && options().seed % 2) {
        bool first = options().seed % 4 == 1;
        std::stable_partition(list.begin(), list.end(), [&](auto *s) { return (s == wanted) == first; });
    }
    for (auto *s : list)
        if (!s->queue.empty() && ready(s->queue.front()) && advance(s)) return true;
    return false;
}

thread_local bool inside; // work that submits work must not recurse into the scheduler
struct Inside {
    bool before = inside;
    Inside() { inside = true; }
    ~Inside() { inside = before; }
};

} // namespace

void drop_all_work()
{
    for (auto *s : streams().all) {
        s->queue.clear();
        s->progress->done = s->issued;
    }
}

void pump()
{
    if (inside || sticky_error()) return;
    Inside guard;
    try {
        if (!options().seed) {
            while (run_one()) {
            }
            return;
        }
        // most seeds leave all work to the waits; 2, 6, ... run some of it as time passes
        bool more = options().seed % 4 == 2;
        while (more && streams().random.below(2)) more = run_one();
    } catch (const Fault &f) {
        report_fault(f);
    }
}

cudaError_t run_until(const std::function<bool()> &reached, CUstream_st *wanted)
{
    if (inside) return reached() ? cudaSuccess : cudaErrorNotPermitted;
    int idle = 0;
    while (!sticky_error()) {
        {
            Lock hold(runtime_lock());
            if (reached()) return cudaSuccess;
            Inside guard;
            try {
                if (run_one(wanted)) {
                    idle = 0;
                    continue;
                }
            } catch (const Fault &f) {
                report_fault(f);
                continue;
            }
        }
        usleep(++idle < 20 ? 5 : 100); // only collectives of other ranks can be missing
    }
    return sticky_error();
}

cudaError_t drain_stream(CUstream_st *s)
{
    Position p = s->end();
    return run_until([p] { return p.reached(); }, s);
}

cudaError_t drain_device(int device)
{
    std::vector<Position> ends;
    for (auto *s : streams().all)
        if (s->device == device) ends.push_back(s->end());
    return run_until(
        [ends] { return std::all_of(ends.begin(), ends.end(), [](auto &p) { return p.reached(); }); },
        nullptr);
}

CUstream_st *stream_of(cudaStream_t s)
{
    if (!s || s == cudaStreamLegacy) return &streams().legacy[current_device()];
    if (s == cudaStreamPerThread) return &streams().per_thread[current_device()];
    return streams().all.count(s) ? s : nullptr;
}

cudaError_t capture_forbids()
{
    for (auto *c : streams().captures) {
        bool mine = c->thread == pthread_self();
        if (c->mode == cudaStreamCaptureModeRelaxed) continue;
        if (c->mode == cudaStreamCaptureModeThreadLocal && !mine) continue;
        c->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

static cudaError_t capture_submit(CUstream_st *s, NodeKind kind, Make make)
{
    Capture *c = s->capture;
    if (c->invalid) return cudaErrorStreamCaptureInvalidated;
    Node n{kind, std::move(make), s->tail};
    c->graph->nodes.push_back(std::move(n));
    s->tail = {(int)c->graph->nodes.size() - 1};
    return cudaSuccess;
}

cudaError_t stream_submit(cudaStream_t handle, NodeKind kind, Make make)
{
    CUstream_st *s = stream_of(handle);
    if (!s) return cudaErrorInvalidResourceHandle;
    if (s->capture) return capture_submit(s, kind, std::move(make));
    if (sticky_error()) return sticky_error();
    CUstream_st::Op op{make(), std::move(s->next_waits), ++s->issued};
    s->next_waits.clear();
    bool blocking = !(s->flags & cudaStreamNonBlocking);
    if (s->legacy) { // the default stream waits for all blocking streams ...
        for (auto *o : streams().all) {
            if (o == s || o->device != s->device || (o->flags & cudaStreamNonBlocking)) continue;
            if (o->capture) {
                o->capture->invalid = true;
                s->issued--;
                return cudaErrorStreamCaptureImplicit;
            }
            op.waits.push_back(o->end());
        }
    } else if (blocking) { // ... and they for it
        op.waits.push_back(streams().legacy[s->device].end());
    }
    s->queue.push_back(std::move(op));
    pump();
    return sticky_error();
}

} // namespace emu

using namespace emu;

EMU_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    Lock hold(runtime_lock());
    auto *s = new CUstream_st;
    s->device = current_device();
    s->flags = flags;
    s->priority = priority;
    s->id = streams().next_id++;
    streams().all.insert(s);
    *out = s;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return cudaStreamCreateWithPriority(s, flags, 0);
}
EMU_API cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }

EMU_API cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    Lock hold(runtime_lock());
    if (!s || !streams().all.count(s) || s == cudaStreamLegacy || s == cudaStreamPerThread)
        return result(cudaErrorInvalidResourceHandle);
    cudaError_t e = drain_stream(s);
    streams().all.erase(s);
    delete s;
    return result(e);
}

EMU_API cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    CUstream_st *s;
    {
        Lock hold(runtime_lock());
        s = stream_of(handle);
        if (!s) return result(cudaErrorInvalidResourceHandle);
        if (s->capture) {
            s->capture->invalid = true;
            return result(cudaErrorStreamCaptureUnsupported);
        }
    }
    return result(drain_stream(s));
}

EMU_API cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    Lock hold(runtime_lock());
    CUstream_st *s = stream_of(handle);
    if (!s) return result(cudaErrorInvalidResourceHandle);
    if (s->capture) return result(cudaErrorStreamCaptureUnsupported);
    {
        Inside guard; // polling lets time pass: at least one op runs
        try {
            if (!guard.before) run_one();
        } catch (const Fault &f) {
            report_fault(f);
        }
    }
    if (sticky_error()) return result(sticky_error());
    return s->end().reached() ? result(cudaSuccess) : cudaErrorNotReady;
}

EMU_API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t e, unsigned)
{
    Lock hold(runtime_lock());
    CUstream_st *s = stream_of(handle);
    if (!s || !e) return result(cudaErrorInvalidResourceHandle);
    if (e->capture && !streams().captures.count(e->capture)) e->capture = nullptr; // that capture has ended
    if (e->capture) { // fork: the stream joins the event's capture
        if (s->capture && s->capture != e->capture) return result(cudaErrorStreamCaptureMerge);
        if (!s->capture) {
            if (s->legacy) return result(cudaErrorStreamCaptureImplicit);
            s->capture = e->capture;
            s->tail.clear();
            e->capture->streams.push_back(s);
        }
        for (int t : e->tail)
            if (std::find(s->tail.begin(), s->tail.end(), t) == s->tail.end()) s->tail.push_back(t);
        return result(cudaSuccess);
    }
    if (s->capture) return result(cudaErrorStreamCaptureIsolation);
    if (e->recorded) s->next_waits.push_back(e->at);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned *flags)
{
    Lock hold(runtime_lock());
    CUstream_st *p = stream_of(s);
    if (!p) return result(cudaErrorInvalidResourceHandle);
    *flags = p->flags;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority)
{
    Lock hold(runtime_lock());
    CUstream_st *p = stream_of(s);
    if (!p) return result(cudaErrorInvalidResourceHandle);
    *priority = p->priority;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long *id)
{
    Lock hold(runtime_lock());
    CUstream_st *p = stream_of(s);
    if (!p) return result(cudaErrorInvalidResourceHandle);
    *id = p->id;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *data)
{
    Lock hold(runtime_lock());
    return result(stream_submit(s, NodeKind::Host, [=]() -> Step {
        return [=] {
            fn(data);
            return true;
        };
    }));
}
EMU_API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t fn, void *data, unsigned)
{
    Lock hold(runtime_lock());
    return result(stream_submit(s, NodeKind::Host, [=]() -> Step {
        return [=] {
            fn(s, cudaSuccess, data);
            return true;
        };
    }));
}

EMU_API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    Lock hold(runtime_lock());
    CUstream_st *s = stream_of(handle);
    if (!s) return result(cudaErrorInvalidResourceHandle);
    if (s->legacy) return result(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return result(cudaErrorIllegalState);
    auto *c = new Capture;
    c->mode = mode;
    c->origin = s;
    c->thread = pthread_self();
    c->id = streams().next_id++;
    c->streams.push_back(s);
    s->capture = c;
    s->tail.clear();
    streams().captures.insert(c);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out)
{
    Lock hold(runtime_lock());
    *out = nullptr;
    CUstream_st *s = stream_of(handle);
    if (!s || !s->capture) return result(cudaErrorIllegalState);
    Capture *c = s->capture;
    if (c->origin != s) return result(cudaErrorStreamCaptureUnmatched);
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != pthread_self())
        return result(cudaErrorStreamCaptureWrongThread);
    // every node must lie before the origin's end: otherwise a forked stream was not joined
    std::set<int> before(s->tail.begin(), s->tail.end());
    for (int k = (int)c->graph->nodes.size(); k-- > 0;)
        if (before.count(k))
            for (int a : c->graph->nodes[k].after) before.insert(a);
    cudaError_t e = c->invalid                               ? cudaErrorStreamCaptureInvalidated
                    : before.size() < c->graph->nodes.size() ? cudaErrorStreamCaptureUnjoined
                                                             : cudaSuccess;
    for (auto *t : c->streams) {
        t->capture = nullptr;
        t->tail.clear();
    }
    if (e == cudaSuccess) *out = c->graph.release();
    streams().captures.erase(c);
    delete c; // events recorded in it notice by its absence from the set
    return result(e);
}

EMU_API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    Lock hold(runtime_lock());
    CUstream_st *s = stream_of(handle);
    if (!s) return result(cudaErrorInvalidResourceHandle);
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode)
{
    static thread_local cudaStreamCaptureMode now = cudaStreamCaptureModeGlobal;
    std::swap(*mode, now);
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    *e = new CUevent_st;
    (*e)->flags = flags;
    return result(cudaSuccess);
}
EMU_API cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EMU_API cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    Lock hold(runtime_lock());
    if (!e) return result(cudaErrorInvalidResourceHandle);
    delete e; // pending records hold their own time cell
    return result(cudaSuccess);
}

EMU_API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t handle)
{
    Lock hold(runtime_lock());
    CUstream_st *s = stream_of(handle);
    if (!s || !e) return result(cudaErrorInvalidResourceHandle);
    if (s->capture) {
        e->capture = s->capture;
        e->tail = s->tail;
        return result(cudaSuccess);
    }
    e->capture = nullptr;
    e->recorded = true;
    auto time = std::make_shared<double>(0);
    e->time_ms = time;
    cudaError_t r = stream_submit(handle, NodeKind::Empty, [time]() -> Step {
        return [time] {
            *time =
                std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
                    .count();
            return true;
        };
    });
    e->at = s->end();
    return result(r);
}
EMU_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned)
{
    return cudaEventRecord(e, s);
}

EMU_API cudaError_t cudaEventQuery(cudaEvent_t e)
{
    Lock hold(runtime_lock());
    if (!e) return result(cudaErrorInvalidResourceHandle);
    if (e->capture && streams().captures.count(e->capture)) return result(cudaErrorCapturedEvent);
    {
        Inside guard;
        try {
            if (!guard.before && e->recorded && !e->at.reached()) run_one();
        } catch (const Fault &f) {
            report_fault(f);
        }
    }
    if (sticky_error()) return result(sticky_error());
    return !e->recorded || e->at.reached() ? result(cudaSuccess) : cudaErrorNotReady;
}
EMU_API cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    Position p;
    {
        Lock hold(runtime_lock());
        if (!e) return result(cudaErrorInvalidResourceHandle);
        if (e->capture && streams().captures.count(e->capture)) return result(cudaErrorCapturedEvent);
        if (!e->recorded) return result(cudaSuccess);
        p = e->at;
    }
    return result(run_until([p] { return p.reached(); }, nullptr));
}
EMU_API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    Lock hold(runtime_lock());
    if (!a || !b || !a->recorded || !b->recorded || (a->flags & cudaEventDisableTiming) ||
        (b->flags & cudaEventDisableTiming))
        return result(cudaErrorInvalidResourceHandle);
    if (!a->at.reached() || !b->at.reached()) return cudaErrorNotReady;
    *ms = (float)(*b->time_ms - *a->time_ms);
    return result(cudaSuccess);
}
