/* nccl.c - all-reduce between GPUs: one NCCL communicator for the group, on the device's compute stream.
 *
 * Start: every rank tells that it has come this far (comm_arrive), the places are compared, rank 0's unique
 * id travels over MPI, and the communicator is made without blocking, looked at until it is ready. So a rank
 * that is late, hung or on a GPU that another rank has is one line with its name and never a silent wait.
 *
 * The communicator stays non-blocking: a call may return "in progress", and the next one waits until it is
 * not. A peer that dies makes NCCL's kernel wait for ever, so the host never waits for the stream alone
 * (comm_wait): it looks at the asynchronous error meanwhile, aborts the communicator and ends the job.
 *
 * Bits: NCCL sums in an order of its own. With ring and tree algorithms every element is summed in one place
 * and then handed out, so all ranks hold the same bits, and for one library version, topology and number of
 * elements they repeat from run to run. They may differ from the rank order of the CPU transports, and the
 * order of an element may change with the number of elements (rows) beside it; not so with two ranks, whose
 * one addition has one result. All-reduces may be captured into a CUDA graph. */
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/group.h"
#include "comm/probe.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/uuid.h"

enum { LOOK_US = 1000 }; /* between two looks at the asynchronous error */

struct nccl_state {
    ncclComm_t nccl;
    double timeout_s;
    /* What this transport stands on: it gathers, and is closed with it. */
    const struct comm_table *host_table;
    void *host_state;
};

/* Where a rank computes. */
struct place {
    unsigned char uuid[UUID_BYTES];
    int ordinal, n_gpus;
    char name[64], host[64];
};

static _Noreturn void fail(struct nccl_state *s, ncclResult_t r, const char *what)
{
    char text[256];
    snprintf(text, sizeof text, "%s", ncclGetLastError(s->nccl));
    if (s->nccl) ncclCommAbort(s->nccl); /* frees what its kernels wait for, here and at the peers */
    DIE(EXIT_CODE_PEER, "see the first line of the other ranks; NCCL_DEBUG=INFO tells more",
        "NCCL: %s failed: %s%s%s", what, ncclGetErrorString(r), text[0] ? ": " : "", text);
}

/* Waits until a call that went on in the background is done. */
static void settle(struct nccl_state *s, ncclResult_t r, const char *what)
{
    int64_t deadline = clock_us() + (int64_t)(s->timeout_s * 1e6);
    while (r == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(s->nccl, &r);
        if (asked != ncclSuccess) r = asked;
        if (r != ncclInProgress) break;
        if (clock_us() > deadline) {
            ncclCommAbort(s->nccl);
            DIE(EXIT_CODE_PEER,
                "NCCL_DEBUG=INFO on all ranks tells which connection; --start-timeout waits longer",
                "NCCL: %s is not done after %.0f s although every rank takes part", what, s->timeout_s);
        }
        sched_yield();
    }
    if (r != ncclSuccess) fail(s, r, what);
}

static void nccl_reserve(struct comm *c, size_t n_f32)
{
    (void)c; /* in place, in NCCL's own buffers */
    (void)n_f32;
}

static void nccl_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream)
{
    struct nccl_state *s = c->state;
    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    settle(s,
           ncclAllReduce(buffer, buffer, n, dtype == DTYPE_F32 ? ncclFloat32 : ncclBfloat16, ncclSum, s->nccl,
                         stream),
           "an all-reduce");
}

/* Ends the job when a collective on the stream has failed. */
static void look(struct nccl_state *s)
{
    ncclResult_t r = ncclSuccess, asked = ncclCommGetAsyncError(s->nccl, &r);
    if (asked != ncclSuccess) r = asked;
    if (r != ncclSuccess && r != ncclInProgress) fail(s, r, "an all-reduce of the step");
}

static void nccl_wait(struct comm *c, void *stream)
{
    struct nccl_state *s = c->state;
    int64_t next_look = clock_us() + LOOK_US;
    while (cudaStreamQuery(stream) == cudaErrorNotReady) {
        if (clock_us() >= next_look) {
            look(s);
            next_look = clock_us() + LOOK_US;
        }
        sched_yield();
    }
    /* Done, but perhaps because it was given up; an error of the GPU is what the caller's own wait reports.
     */
    look(s);
}

static void nccl_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts)
{
    mpi_gather(c, mine, n_bytes, all, counts);
}

static void nccl_close(struct comm *c)
{
    struct nccl_state *s = c->state;
    ncclResult_t r = ncclCommFinalize(s->nccl);
    settle(s, r, "the end of the communicator");
    ncclCommDestroy(s->nccl);
    c->table = s->host_table;
    c->state = s->host_state;
    free(s);
    c->table->close(c);
}

static const struct comm_table nccl_table = {.reserve = nccl_reserve,
                                             .all_reduce = nccl_all_reduce,
                                             .wait = nccl_wait,
                                             .gather = nccl_gather,
                                             .close = nccl_close};

static struct place my_place(const struct comm_world *w)
{
    struct place p = {.ordinal = -1};
    struct cudaDeviceProp gpu;
    cudaError_t error = cudaGetDevice(&p.ordinal);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&gpu, p.ordinal);
    if (error == cudaSuccess) error = cudaGetDeviceCount(&p.n_gpus);
    if (error != cudaSuccess)
        DIE(EXIT_CODE_PEER, "see nvidia-smi on this host", "CUDA: asking for the GPU's identity failed: %s",
            cudaGetErrorString(error));
    memcpy(p.uuid, &gpu.uuid, sizeof p.uuid);
    snprintf(p.name, sizeof p.name, "%.63s", gpu.name);
    snprintf(p.host, sizeof p.host, "%s", w->host);
    return p;
}

/* Over all ranks of the world, replicas too; the same verdict on each, since all see the same list. */
static enum status compare_places(const struct comm_world *w, struct reason *why)
{
    struct place mine = my_place(w), *all = calloc((size_t)w->size, sizeof *all);
    if (!all) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the places of %d ranks", w->size);
    mpi_check(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, MPI_COMM_WORLD),
              "MPI_Allgather of the GPUs");
    enum status status = STATUS_OK;
    for (int r = 0; r < w->size; r++) {
        const struct place *p = &all[r];
        char uuid[UUID_TEXT];
        uuid_print(uuid, p->uuid);
        if (w->rank == 0) LOG_DEBUG("rank %d: GPU %d of %s, %s, %s", r, p->ordinal, p->host, p->name, uuid);
        for (int other = 0; other < r && status == STATUS_OK; other++)
            if (memcmp(p->uuid, all[other].uuid, sizeof p->uuid) == 0)
                status = status_fail(
                    why, STATUS_BAD_OPTION,
                    "ranks %d and %d have the same GPU: %s (number %d of the %d that rank %d "
                    "sees on %s): start at most one rank per GPU of a host",
                    other, r, uuid, all[other].ordinal, all[other].n_gpus, other, all[other].host);
    }
    free(all);
    return status;
}

int comm_nccl_version(void)
{
    int version = 0;
    return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

enum status comm_use_nccl(struct comm *c, const struct comm_world *w, double timeout_s, struct reason *why)
{
    if (w->size == 1) return STATUS_OK;
    comm_arrive(c, "nccl_init", timeout_s);
    enum status status = compare_places(w, why);
    if (status != STATUS_OK || c->size == 1) return status;

    struct nccl_state *s = calloc(1, sizeof *s);
    if (!s) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a group of ranks");
    *s = (struct nccl_state){.timeout_s = timeout_s, .host_table = c->table, .host_state = c->state};
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    ncclResult_t r = c->rank == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
    if (r != ncclSuccess) fail(s, r, "making a unique id");
    comm_bcast(c, &id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    r = ncclCommInitRankConfig(&s->nccl, c->size, id, c->rank, &config);
    settle(s, r, "connecting the ranks");
    comm_arrive(c, "nccl_ready", timeout_s);

    int version = comm_nccl_version();
    snprintf(c->description, sizeof c->description, "%d ranks by NCCL %d.%d.%d", c->size, version / 10000,
             version / 100 % 100, version % 100);
    c->table = &nccl_table;
    c->state = s;
    return STATUS_OK;
}
