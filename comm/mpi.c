/* mpi.c - the world of ranks, and all-reduce over MPI between hosts.
 *
 * The all-reduce is a reduce-scatter (each rank sums its slice of everyone's buffer, in rank order) followed
 * by an all-gather: 2n bytes a rank, the same bits everywhere, whatever algorithm MPI would have chosen for
 * its own sum. */
#include <limits.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

struct mpi_state {
    char *send, *receive; /* (size * slice) f32 each */
    size_t slice;         /* elements of one rank's part at most */
};

void mpi_check(int rc, const char *what)
{
    if (rc == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int n = 0;
    MPI_Error_string(rc, text, &n);
    DIE(EXIT_CODE_PEER, NULL, "%s failed: %.*s", what, n, text);
}

void comm_world_open(struct comm_world *w, bool launched)
{
    *w = (struct comm_world){.rank = 0, .size = 1, .node_rank = 0, .node_size = 1};
    if (gethostname(w->host, sizeof w->host - 1) != 0) strcpy(w->host, "unknown");
    if (!launched) return;
    int provided;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        DIE(EXIT_CODE_PEER, "does `mpirun -n 2 hostname` work here?", "MPI_Init_thread failed");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &w->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &w->size);
    MPI_Comm node;
    mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, w->rank, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    MPI_Comm_rank(node, &w->node_rank);
    MPI_Comm_size(node, &w->node_size);
    MPI_Comm_free(&node);
}

static bool mpi_running(void)
{
    int begun = 0, ended = 0;
    MPI_Initialized(&begun);
    if (begun) MPI_Finalized(&ended);
    return begun && !ended;
}

int comm_world_max(int value)
{
    int most = value;
    if (mpi_running())
        mpi_check(MPI_Allreduce(&value, &most, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD), "MPI_Allreduce");
    return most;
}

/* Waits for the values of all others; how many did not come. */
static int collect_values(const struct comm_world *w, int *value, MPI_Request *request, double limit_s)
{
    int n_missing = w->size - 1, here = 0;
    for (int r = 1; r < w->size; r++)
        mpi_check(MPI_Irecv(&value[r], 1, MPI_INT, r, 0, MPI_COMM_WORLD, &request[r]), "MPI_Irecv");
    for (int64_t until = clock_us() + (int64_t)(limit_s * 1e6); n_missing > 0 && clock_us() < until;) {
        for (int r = 1; r < w->size; r++) {
            if (request[r] == MPI_REQUEST_NULL) continue;
            mpi_check(MPI_Test(&request[r], &here, MPI_STATUS_IGNORE), "MPI_Test");
            n_missing -= here != 0;
        }
        if (n_missing > 0) usleep(500);
    }
    return n_missing;
}

int comm_world_meet(const struct comm_world *w, int value, double limit_s)
{
    if (w->size == 1) return value;
    if (w->rank != 0) {
        mpi_check(MPI_Send(&value, 1, MPI_INT, 0, 0, MPI_COMM_WORLD), "MPI_Send");
    } else {
        int *values = malloc((size_t)w->size * sizeof *values);
        MPI_Request *request = malloc((size_t)w->size * sizeof *request);
        if (!values || !request) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the start");
        if (collect_values(w, values, request, limit_s) > 0) {
            char missing[256];
            size_t n = 0;
            for (int r = 1; r < w->size && n + 8 < sizeof missing; r++)
                if (request[r] != MPI_REQUEST_NULL)
                    n += (size_t)snprintf(missing + n, sizeof missing - n, "%s%d", n ? "," : "", r);
            DIE(EXIT_CODE_PEER, "was it stopped, or does the file system of --log-dir hang there?",
                "rank %s started MPI and did not come further within %.0f s", missing, limit_s);
        }
        for (int r = 1; r < w->size; r++)
            if (values[r] > value) value = values[r];
        free(values);
        free(request);
    }
    mpi_check(MPI_Bcast(&value, 1, MPI_INT, 0, MPI_COMM_WORLD), "MPI_Bcast");
    return value;
}

void comm_world_close(void)
{
    if (mpi_running()) MPI_Finalize();
}

enum { ABORT_S = 5 };
static volatile sig_atomic_t leave_code;

static void leave(int unused)
{
    (void)unused;
    _exit(leave_code);
}

void comm_world_abort(int exit_code)
{
    /* MPI_Abort may wait for a host that is gone. */
    signal(SIGALRM, leave);
    leave_code = exit_code;
    alarm(ABORT_S);
    if (mpi_running()) MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

void mpi_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts)
{
    ASSERT(n_bytes <= INT_MAX);
    size_t at = 0;
    for (int r = 0; c->rank == 0 && r < c->size; r++) {
        c->gather_at[r] = (int)at;
        at += counts[r];
        ASSERT(at <= INT_MAX);
        c->gather_n[r] = (int)counts[r];
    }
    mpi_check(MPI_Gatherv(mine, (int)n_bytes, MPI_BYTE, all, c->gather_n, c->gather_at, MPI_BYTE, 0, c->mpi),
              "MPI_Gatherv");
    /* A sender may return from the gather with bytes still queued, which move only while it is inside MPI; it would
     * go to sleep on the control channel with them (98 KiB of logits over TCP: rank 0 waited for ever). */
    mpi_check(MPI_Barrier(c->mpi), "MPI_Barrier");
}

static void mpi_reserve(struct comm *c, size_t n_f32)
{
    struct mpi_state *s = c->state;
    free(s->send);
    free(s->receive);
    s->slice = (n_f32 + (size_t)c->size - 1) / (size_t)c->size;
    ASSERT(s->slice <= INT_MAX / sizeof(float));
    s->send = malloc(s->slice * (size_t)c->size * sizeof(float));
    s->receive = malloc(s->slice * (size_t)c->size * sizeof(float));
    if (!s->send || !s->receive)
        DIE(EXIT_CODE_MEMORY, "lower --prefill-chunk", "no memory for the all-reduce buffer");
}

static void mpi_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream)
{
    (void)stream;
    struct mpi_state *s = c->state;
    size_t slice = (n + (size_t)c->size - 1) / (size_t)c->size, size = dtype_bytes(dtype);
    int slice_bytes = (int)(slice * size);
    ASSERT(slice <= s->slice);
    memcpy(s->send, buffer, n * size);
    memset(s->send + n * size, 0, (slice * (size_t)c->size - n) * size);
    mpi_check(MPI_Alltoall(s->send, slice_bytes, MPI_BYTE, s->receive, slice_bytes, MPI_BYTE, c->mpi),
              "MPI_Alltoall of an all-reduce");
    sum_ranks(s->receive, s->receive, slice, c->size, 0, slice, dtype);
    mpi_check(MPI_Allgather(s->receive, slice_bytes, MPI_BYTE, s->send, slice_bytes, MPI_BYTE, c->mpi),
              "MPI_Allgather of an all-reduce");
    memcpy(buffer, s->send, n * size);
}

static void mpi_close(struct comm *c)
{
    struct mpi_state *s = c->state;
    free(s->send);
    free(s->receive);
    free(s);
}

static const struct comm_table mpi_table = {
    .reserve = mpi_reserve, .all_reduce = mpi_all_reduce, .gather = mpi_gather, .close = mpi_close};

void mpi_open(struct comm *c, bool first_on_host)
{
    c->table = &mpi_table;
    c->state = calloc(1, sizeof(struct mpi_state));
    if (!c->state) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a group of ranks");
    int leaders = first_on_host, hosts = 0;
    mpi_check(MPI_Allreduce(&leaders, &hosts, 1, MPI_INT, MPI_SUM, c->mpi), "MPI_Allreduce");
    snprintf(c->description, sizeof c->description, "%d ranks on %d host%s by MPI", c->size, hosts,
             hosts == 1 ? "" : "s");
}
