// Communicators of the NCCL stand-in, shared by its files.
//
// Ranks find each other through small files in a directory named after the unique id (rendezvous.cpp), so a
// communicator may hold any subset of the job, several may exist at once, and a rank that never comes, dies
// or aborts is seen without its help. Data moves as point-to-point messages on MPI_COMM_WORLD
// (collective.cpp).
#pragma once
#pragma GCC visibility push(default)
#include <nccl.h>
#pragma GCC visibility pop
#include "../cudart/work.h"
#include <atomic>
#include <memory>
#include <string>
#include <vector>

struct ncclComm {
    std::string directory;
    int rank = 0, size = 0;
    int device = 0;
    std::vector<int> world; // MPI rank of each member, known once all have arrived
    std::vector<int> pid;
    std::atomic<int> state{ncclInProgress};
    bool blocking = true;
    std::atomic<bool> aborted{false};
    int tag = 0;           // first of this communicator's MPI tags
    uint64_t sequence = 0; // collectives issued so far
    std::string error;
    double last_look = 0;
};

namespace emu {

// Announces this rank. Non-blocking; fails when the rank is taken or out of range.
ncclResult_t rendezvous_join(ncclComm *c, const ncclUniqueId &id);
// Looks for the others; sets state to ncclSuccess or an error when that is known.
void rendezvous_poll(ncclComm *c);
// Looks whether a member died or aborted; sets state to ncclRemoteError then.
void rendezvous_watch(ncclComm *c);
void rendezvous_leave(ncclComm *c, bool aborting);
ncclResult_t rendezvous_new_id(ncclUniqueId *id);

constexpr int TAG_BASE = 1 << 20, TAGS_PER_COMM = 1 << 10, TAG_COMMS = 1 << 10;

} // namespace emu
