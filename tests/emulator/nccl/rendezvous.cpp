// How the ranks of a communicator find each other: one file per rank in a directory in shared memory.
#include "comm.h"
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <mpi.h>
#include <random>
#include <sys/stat.h>
#include <unistd.h>

namespace emu {

static const char MAGIC[] = "emulated-nccl";

static std::string base_directory()
{
    const char *t = getenv("EMU_NCCL_DIR");
    if (t) return t;
    return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
}

ncclResult_t rendezvous_new_id(ncclUniqueId *id)
{
    std::random_device r;
    memset(id, 0, sizeof *id);
    uint64_t nonce = (uint64_t)r() << 32 | r();
    snprintf(id->internal, sizeof id->internal, "%s-%016llx", MAGIC, (unsigned long long)nonce);
    return ncclSuccess;
}

static std::string member_path(const ncclComm *c, int rank)
{
    return c->directory + "/rank" + std::to_string(rank);
}

static int my_world_rank()
{
    int on = 0, r = 0;
    MPI_Initialized(&on);
    if (on) MPI_Comm_rank(MPI_COMM_WORLD, &r);
    return r;
}

// A name all ranks of one node agree on for the GPU this process uses.
static std::string device_identity(int device)
{
    char bus[32] = "";
    cudaDeviceGetPCIBusId(bus, sizeof bus, device);
    return bus;
}

ncclResult_t rendezvous_join(ncclComm *c, const ncclUniqueId &id)
{
    if (strncmp(id.internal, MAGIC, sizeof MAGIC - 1) || !memchr(id.internal, 0, sizeof id.internal)) {
        c->error = "the unique id was not made by ncclGetUniqueId";
        return ncclInvalidArgument;
    }
    c->directory = base_directory() + "/" + id.internal;
    uint64_t nonce = strtoull(id.internal + sizeof MAGIC, nullptr, 16);
    c->tag = TAG_BASE + (int)(nonce % TAG_COMMS) * TAGS_PER_COMM;
    if (mkdir(c->directory.c_str(), 0700) && errno != EEXIST) {
        c->error = "cannot make " + c->directory;
        return ncclSystemError;
    }
    std::string temporary = c->directory + "/new" + std::to_string(getpid()) + "." + std::to_string(c->rank);
    FILE *f = fopen(temporary.c_str(), "w");
    if (!f) return ncclSystemError;
    fprintf(f, "%d %d %d %s\n", c->size, my_world_rank(), getpid(), device_identity(c->device).c_str());
    fclose(f);
    // link fails when another process already took this rank
    int bad = link(temporary.c_str(), member_path(c, c->rank).c_str());
    unlink(temporary.c_str());
    if (bad) {
        c->error = "rank " + std::to_string(c->rank) + " is already taken";
        return ncclInvalidUsage;
    }
    return ncclSuccess;
}

void rendezvous_poll(ncclComm *c)
{
    if (c->state != ncclInProgress) return;
    std::vector<int> world(c->size), pid(c->size);
    std::vector<std::string> device(c->size);
    for (int r = 0; r < c->size; r++) {
        FILE *f = fopen(member_path(c, r).c_str(), "r");
        if (!f) return; // not here yet
        int size = 0;
        char bus[64] = "";
        int n = fscanf(f, "%d %d %d %63s", &size, &world[r], &pid[r], bus);
        fclose(f);
        if (n != 4) return;
        device[r] = bus;
        if (size != c->size) {
            c->error =
                "ranks disagree about the size: " + std::to_string(size) + " and " + std::to_string(c->size);
            c->state = ncclInvalidArgument;
            return;
        }
    }
    for (int a = 0; a < c->size; a++)
        for (int b = 0; b < a; b++)
            if (device[a] == device[b]) { // as the real NCCL
                c->error = "Duplicate GPU detected : rank " + std::to_string(b) + " and rank " +
                           std::to_string(a) + " both on CUDA device " + device[a];
                c->state = ncclInvalidUsage;
                return;
            }
    c->world = world;
    c->pid = pid;
    c->state = ncclSuccess;
}

void rendezvous_watch(ncclComm *c)
{
    if (c->state != ncclSuccess) return;
    double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    if (now - c->last_look < 0.005) return;
    c->last_look = now;
    for (int r = 0; r < c->size; r++) {
        if (r == c->rank) continue;
        bool gone = kill(c->pid[r], 0) && errno == ESRCH;
        if (!gone) { // a killed child that nobody has waited for yet is still listed, as a zombie
            char path[64], state = 0;
            snprintf(path, sizeof path, "/proc/%d/stat", c->pid[r]);
            if (FILE *f = fopen(path, "r")) {
                if (fscanf(f, "%*d (%*[^)]) %c", &state) == 1) gone = state == 'Z' || state == 'X';
                fclose(f);
            }
        }
        bool aborted = access((member_path(c, r) + ".aborted").c_str(), F_OK) == 0;
        if (gone || aborted) {
            c->error = "rank " + std::to_string(r) + (gone ? " has died" : " has aborted");
            c->state = ncclRemoteError;
            return;
        }
    }
}

// The last one out removes the directory.
void rendezvous_leave(ncclComm *c, bool aborting)
{
    if (c->directory.empty()) return;
    if (aborting) {
        if (FILE *f = fopen((member_path(c, c->rank) + ".aborted").c_str(), "w")) fclose(f);
    }
    if (FILE *f = fopen((member_path(c, c->rank) + ".left").c_str(), "w")) fclose(f);
    int left = 0;
    for (int r = 0; r < c->size; r++) left += access((member_path(c, r) + ".left").c_str(), F_OK) == 0;
    if (left < c->size) return;
    if (DIR *d = opendir(c->directory.c_str())) {
        while (dirent *e = readdir(d))
            if (e->d_name[0] != '.') unlink((c->directory + "/" + e->d_name).c_str());
        closedir(d);
    }
    rmdir(c->directory.c_str());
}

} // namespace emu
