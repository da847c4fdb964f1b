// Every rank sends what another needs and receives in rank order; reductions run over the contributions in
// rank order in f32 (f64 and integers in their own type), rounded once, so all ranks get the same bits. A
// real ring rounds to the element type at every hop: compare bf16 sums with a tolerance.
#include "collective.h"
#include "../ptx/numeric.h"
#include <algorithm>
#include <cstring>
#include <mpi.h>
#include <stdexcept>

namespace emu {

size_t type_size(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 0;
    }
}

namespace {

template <class T> T combine(ncclRedOp_t op, T a, T b)
{
    switch (op) {
    case ncclProd: return (T)(a * b);
    case ncclMax: return std::max(a, b);
    case ncclMin: return std::min(a, b);
    default: return (T)(a + b);
    }
}

// Reduces 'parts' (rank order) into 'to'. Read and write convert between storage and accumulator.
template <class T, class A, class R, class W>
void reduce_as(const std::vector<const uint8_t *> &parts, uint8_t *to, size_t n, ncclRedOp_t op, R read,
               W write)
{
    for (size_t i = 0; i < n; i++) {
        T v;
        memcpy(&v, parts[0] + i * sizeof(T), sizeof v);
        A s = read(v);
        for (size_t p = 1; p < parts.size(); p++) {
            memcpy(&v, parts[p] + i * sizeof(T), sizeof v);
            s = combine<A>(op, s, read(v));
        }
        if (op == ncclAvg) s = (A)(s / (A)parts.size());
        v = write(s);
        memcpy(to + i * sizeof(T), &v, sizeof v);
    }
}
template <class T>
void reduce_plain(const std::vector<const uint8_t *> &parts, uint8_t *to, size_t n, ncclRedOp_t op)
{
    auto same = [](T v) { return v; };
    reduce_as<T, T>(parts, to, n, op, same, same);
}

void reduce(const std::vector<const uint8_t *> &parts, uint8_t *to, size_t n, ncclDataType_t t,
            ncclRedOp_t op)
{
    switch (t) {
    case ncclInt8: return reduce_plain<int8_t>(parts, to, n, op);
    case ncclUint8: return reduce_plain<uint8_t>(parts, to, n, op);
    case ncclInt32: return reduce_plain<int32_t>(parts, to, n, op);
    case ncclUint32: return reduce_plain<uint32_t>(parts, to, n, op);
    case ncclInt64: return reduce_plain<int64_t>(parts, to, n, op);
    case ncclUint64: return reduce_plain<uint64_t>(parts, to, n, op);
    case ncclFloat32: return reduce_plain<float>(parts, to, n, op);
    case ncclFloat64: return reduce_plain<double>(parts, to, n, op);
    case ncclFloat16: return reduce_as<u16, float>(parts, to, n, op, half_to_float, float_to_half_nearest);
    default: return reduce_as<u16, float>(parts, to, n, op, bf16_to_float, float_to_bf16_nearest);
    }
}

// A call on its way. The tag separates it from other calls between the same ranks: all count the collectives
// of a communicator as they start, so these must run in one order everywhere (one stream per communicator, as
// Retro does). Send and Recv rely on MPI's order between two ranks.
class Running {
  public:
    Running(const Call &c) : call(c), bytes(c.count * type_size(c.type)) {}

    bool step()
    {
        ncclComm &c = *call.comm;
        if (finished) return true;
        if (c.aborted || (c.state != ncclSuccess && c.state != ncclInProgress)) return abandon();
        if (c.state == ncclInProgress) {
            rendezvous_poll(&c);
            if (c.state != ncclSuccess) return false;
        }
        if (!started) start();
        int done = 1;
        if (!requests.empty()) MPI_Testall((int)requests.size(), requests.data(), &done, MPI_STATUSES_IGNORE);
        if (!done) {
            rendezvous_watch(&c);
            return false;
        }
        finish();
        return finished = true;
    }

  private:
    Call call;
    int tag = 0;
    size_t bytes;
    bool started = false, finished = false;
    std::vector<MPI_Request> requests;
    std::vector<uint8_t>
        outgoing; // a snapshot: the buffer may be overwritten in place while others still receive
    std::vector<std::vector<uint8_t>> incoming;

    bool abandon()
    {
        for (auto &r : requests) {
            if (r == MPI_REQUEST_NULL) continue;
            MPI_Cancel(&r);
            MPI_Request_free(&r);
        }
        requests.clear();
        // buffers of requests that could not be cancelled must outlive them
        new std::vector<uint8_t>(std::move(outgoing));
        new std::vector<std::vector<uint8_t>>(std::move(incoming));
        return finished = true;
    }

    void send(int to, const uint8_t *p, size_t n)
    {
        requests.emplace_back();
        MPI_Isend(p, (int)n, MPI_BYTE, call.comm->world[to], tag, MPI_COMM_WORLD, &requests.back());
    }
    void receive(int from, size_t n)
    {
        incoming[from].resize(n);
        requests.emplace_back();
        MPI_Irecv(incoming[from].data(), (int)n, MPI_BYTE, call.comm->world[from], tag, MPI_COMM_WORLD,
                  &requests.back());
    }

    void start()
    {
        started = true;
        ncclComm &c = *call.comm;
        bool pair = call.what == What::Send || call.what == What::Recv;
        tag = c.tag + (pair ? TAGS_PER_COMM - 1 : (int)(c.sequence++ % (TAGS_PER_COMM - 1)));
        int me = c.rank, n = c.size;
        incoming.resize(n);
        requests.reserve(2 * n);
        bool scatter = call.what == What::ReduceScatter;
        bool sends = call.what != What::Recv && (call.what != What::Broadcast || me == call.peer);
        if (bytes * (scatter ? n : 1) > 0x7fffffff)
            throw std::runtime_error("emulator: NCCL message above 2 GiB");
        if (sends) {
            size_t total = scatter ? bytes * n : bytes;
            const uint8_t *p = work_read(call.send, total, "NCCL");
            if (total) outgoing.assign(p, p + total);
        }
        for (int r = 0; r < n; r++) {
            if (r == me && call.what != What::Send && call.what != What::Recv) continue;
            switch (call.what) {
            case What::AllReduce:
            case What::AllGather:
                send(r, outgoing.data(), bytes);
                receive(r, bytes);
                break;
            case What::ReduceScatter:
                send(r, outgoing.data() + r * bytes, bytes);
                receive(r, bytes);
                break;
            case What::Broadcast:
                if (me == call.peer) send(r, outgoing.data(), bytes);
                if (r == call.peer) receive(r, bytes);
                break;
            case What::Reduce:
                if (me == call.peer) receive(r, bytes);
                if (r == call.peer) send(r, outgoing.data(), bytes);
                break;
            case What::Send:
                if (r == call.peer) send(r, outgoing.data(), bytes);
                break;
            case What::Recv:
                if (r == call.peer) receive(r, bytes);
                break;
            }
        }
    }

    void finish()
    {
        int me = call.comm->rank, n = call.comm->size;
        if (!bytes || call.what == What::Send || (call.what == What::Reduce && me != call.peer)) return;
        size_t total = call.what == What::AllGather ? bytes * n : bytes;
        uint8_t *to = work_write(call.recv, total, "NCCL");
        const uint8_t *own = outgoing.data() + (call.what == What::ReduceScatter ? me * bytes : 0);
        std::vector<const uint8_t *> parts;
        for (int r = 0; r < n; r++) parts.push_back(r == me ? own : incoming[r].data());
        switch (call.what) {
        case What::AllReduce:
        case What::ReduceScatter:
        case What::Reduce: reduce(parts, to, call.count, call.type, call.op); break;
        case What::AllGather:
            for (int r = 0; r < n; r++) memcpy(to + r * bytes, parts[r], bytes);
            break;
        case What::Broadcast: memmove(to, me == call.peer ? own : parts[call.peer], bytes); break;
        default: memcpy(to, incoming[call.peer].data(), bytes); break;
        }
    }
};

} // namespace

WorkMake collective_work(std::vector<Call> calls)
{
    return [calls]() -> WorkStep {
        auto list = std::make_shared<std::vector<Running>>(calls.begin(), calls.end());
        return [list] {
            bool all = true;
            for (auto &r : *list) all &= r.step();
            return all;
        };
    };
}

} // namespace emu
