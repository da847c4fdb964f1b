// Collectives of the NCCL stand-in as pieces of stream work over MPI point-to-point messages.
#pragma once
#include "comm.h"

namespace emu {

enum class What { AllReduce, AllGather, ReduceScatter, Broadcast, Reduce, Send, Recv };

struct Call {
    What what;
    const void *send;
    void *recv;
    size_t count; // elements, of the send buffer for AllGather, of the receive buffer for ReduceScatter
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer; // root, or the other side of Send and Recv
    ncclComm *comm;
};

size_t type_size(ncclDataType_t t);
// A group of calls that make progress together; one call outside of a group.
WorkMake collective_work(std::vector<Call> calls);

} // namespace emu
