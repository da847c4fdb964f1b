// libnccl.so.2: the API. See comm.h for how it works and README.md for what it covers.
#include "collective.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mpi.h>
#include <unistd.h>

using namespace emu;

namespace {

thread_local int group_depth;
thread_local std::vector<std::pair<cudaStream_t, Call>> group_calls;
thread_local std::vector<ncclComm *> group_joins;
thread_local std::string last_error;

ncclResult_t fail(ncclResult_t r, const std::string &why)
{
    last_error = why;
    const char *debug = getenv("NCCL_DEBUG");
    if (debug && *debug) fprintf(stderr, "emulated NCCL: %s\n", why.c_str());
    return r;
}

void nap() { usleep(100); }

// Waits for a communicator whose creation blocks.
ncclResult_t wait_ready(ncclComm *c)
{
    while (c->state == ncclInProgress) {
        rendezvous_poll(c);
        if (c->state == ncclInProgress) nap();
    }
    return c->state == ncclSuccess ? ncclSuccess : fail((ncclResult_t)c->state.load(), c->error);
}

ncclResult_t create(ncclComm_t *out, int size, const ncclUniqueId &id, int rank, bool blocking)
{
    if (!out || size < 1 || rank < 0 || rank >= size)
        return fail(ncclInvalidArgument, "rank or size out of range");
    *out = nullptr;
    int mpi = 0;
    MPI_Initialized(&mpi);
    if (!mpi && size > 1) return fail(ncclInvalidUsage, "more than one rank, and MPI is not initialised");
    auto *c = new ncclComm;
    c->rank = rank;
    c->size = size;
    c->blocking = blocking;
    cudaGetDevice(&c->device);
    if (ncclResult_t r = rendezvous_join(c, id)) {
        std::string why = c->error;
        delete c;
        return fail(r, why);
    }
    *out = c;
    if (group_depth) {
        group_joins.push_back(c);
        return ncclSuccess;
    }
    if (!blocking) {
        rendezvous_poll(c);
        return c->state == ncclSuccess ? ncclSuccess : ncclInProgress;
    }
    return wait_ready(c);
}

ncclResult_t flush(cudaStream_t s, std::vector<Call> calls)
{
    if (calls.empty()) return ncclSuccess;
    cudaError_t e = work_submit(s, collective_work(std::move(calls)));
    if (e != cudaSuccess) return fail(ncclUnhandledCudaError, cudaGetErrorString(e));
    return ncclSuccess;
}

ncclResult_t issue(const Call &c, cudaStream_t s)
{
    if (!c.comm) return fail(ncclInvalidArgument, "no communicator");
    if (c.comm->aborted) return fail(ncclInvalidUsage, "communicator was aborted");
    if (c.comm->state == ncclInProgress) rendezvous_poll(c.comm);
    if (c.comm->state == ncclInProgress && !group_depth)
        return fail(ncclInvalidUsage, "communicator is not ready: poll ncclCommGetAsyncError first");
    if (c.comm->state != ncclSuccess && c.comm->state != ncclInProgress)
        return fail((ncclResult_t)c.comm->state.load(), c.comm->error);
    if (!type_size(c.type)) return fail(ncclInvalidArgument, "data type is not covered");
    if (c.op < ncclSum || c.op > ncclAvg) return fail(ncclInvalidArgument, "reduction is not covered");
    if (c.peer < 0 || c.peer >= c.comm->size) return fail(ncclInvalidArgument, "root or peer out of range");
    int device;
    cudaGetDevice(&device);
    if (device != c.comm->device) return fail(ncclInvalidUsage, "communicator belongs to another device");
    if (group_depth) {
        group_calls.emplace_back(s, c);
        return ncclSuccess;
    }
    return flush(s, {c});
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) { return rendezvous_new_id(id); }

ncclResult_t ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank)
{
    return create(c, size, id, rank, true);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    return create(c, size, id, rank, !config || config->blocking != 0);
}

// Non-blocking communicators make progress here.
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state)
{
    if (!c || !state) return ncclInvalidArgument;
    if (c->state == ncclInProgress) rendezvous_poll(c);
    else rendezvous_watch(c);
    work_pump();
    *state = (ncclResult_t)c->state.load();
    if (*state != ncclSuccess && *state != ncclInProgress) last_error = c->error;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    if (!c) return ncclInvalidArgument;
    return ncclSuccess;
}
// The object itself stays: work on streams may still look at it.
ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    if (!c) return ncclSuccess;
    if (c->aborted) return fail(ncclInvalidArgument, "communicator was aborted");
    c->aborted = true;
    rendezvous_leave(c, false);
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    if (!c) return ncclSuccess;
    c->aborted = true; // collectives under way end at their next step, with nothing written
    rendezvous_leave(c, true);
    work_pump();
    return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t c, int *n)
{
    *n = c->size;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t c, int *r)
{
    *r = c->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(ncclComm_t c, int *d)
{
    *d = c->device;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart()
{
    group_depth++;
    return ncclSuccess;
}
// Calls of a group make progress together, per stream.
ncclResult_t ncclGroupEnd()
{
    if (!group_depth) return fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth) return ncclSuccess;
    auto calls = std::move(group_calls);
    auto joins = std::move(group_joins);
    group_calls.clear();
    group_joins.clear();
    bool pending = false;
    for (auto *c : joins) {
        if (!c->blocking) {
            pending = true;
        } else if (ncclResult_t r = wait_ready(c)) {
            return r;
        }
    }
    while (!calls.empty()) {
        cudaStream_t s = calls[0].first;
        std::vector<Call> mine;
        std::vector<std::pair<cudaStream_t, Call>> rest;
        for (auto &c : calls) {
            if (c.first == s) mine.push_back(c.second);
            else rest.push_back(c);
        }
        if (ncclResult_t r = flush(s, mine)) return r;
        calls = std::move(rest);
    }
    return pending ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op,
                           ncclComm_t c, cudaStream_t s)
{
    return issue({What::AllReduce, send, recv, n, t, op, 0, c}, s);
}
ncclResult_t ncclAllGather(const void *send, void *recv, size_t n, ncclDataType_t t, ncclComm_t c,
                           cudaStream_t s)
{
    return issue({What::AllGather, send, recv, n, t, ncclSum, 0, c}, s);
}
ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op,
                               ncclComm_t c, cudaStream_t s)
{
    return issue({What::ReduceScatter, send, recv, n, t, op, 0, c}, s);
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t n, ncclDataType_t t, int root, ncclComm_t c,
                           cudaStream_t s)
{
    return issue({What::Broadcast, send, recv, n, t, ncclSum, root, c}, s);
}
ncclResult_t ncclBcast(void *buffer, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s)
{
    return ncclBroadcast(buffer, buffer, n, t, root, c, s);
}
ncclResult_t ncclReduce(const void *send, void *recv, size_t n, ncclDataType_t t, ncclRedOp_t op, int root,
                        ncclComm_t c, cudaStream_t s)
{
    return issue({What::Reduce, send, recv, n, t, op, root, c}, s);
}
ncclResult_t ncclSend(const void *send, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return issue({What::Send, send, nullptr, n, t, ncclSum, peer, c}, s);
}
ncclResult_t ncclRecv(void *recv, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t s)
{
    return issue({What::Recv, nullptr, recv, n, t, ncclSum, peer, c}, s);
}

const char *ncclGetErrorString(ncclResult_t r)
{
    switch (r) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
    }
}
const char *ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

} // extern "C"
