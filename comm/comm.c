#include "comm/comm.h"

#include <mpi.h>
#include <stdlib.h>

#include "comm/group.h"
#include "comm/probe.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"

struct comm *comm_alloc(int rank, int size)
{
    struct comm *c = calloc(1, sizeof *c);
    if (c) c->gather_n = calloc(2 * (size_t)size, sizeof *c->gather_n);
    if (!c || !c->gather_n) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a group of ranks");
    c->gather_at = c->gather_n + size;
    c->rank = rank;
    c->size = size;
    c->stride = 1;
    c->mpi = MPI_COMM_WORLD;
    return c;
}

/* How many ranks of the group are on this host, and this rank's place among them. */
static void find_neighbours(const struct comm *c, int *node_rank, int *node_size)
{
    MPI_Comm node;
    mpi_check(MPI_Comm_split_type(c->mpi, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    MPI_Comm_rank(node, node_rank);
    MPI_Comm_size(node, node_size);
    MPI_Comm_free(&node);
}

struct comm *comm_open(const struct comm_world *w, int n_ranks)
{
    ASSERT(n_ranks > 0 && w->size % n_ranks == 0);
    struct comm *c = comm_alloc(w->rank % n_ranks, n_ranks);
    c->first = w->rank - c->rank;
    if (n_ranks < w->size)
        mpi_check(MPI_Comm_split(MPI_COMM_WORLD, w->rank / n_ranks, w->rank, &c->mpi), "MPI_Comm_split");
    int node_rank = 0, node_size = 1;
    if (n_ranks > 1) find_neighbours(c, &node_rank, &node_size);
    if (n_ranks == 1) self_open(c);
    else if (node_size == n_ranks) shm_open_group(c);
    else mpi_open(c, node_rank == 0);
    phase_open(c, w->host);
    return c;
}

/* Host collectives over `c`, whose ranks may share hosts with each other in any way. */
static struct comm *open_plain(struct comm *c, const struct comm_world *w)
{
    int node_rank = 0, node_size = 1;
    if (c->size > 1) find_neighbours(c, &node_rank, &node_size);
    if (c->size == 1) self_open(c);
    else mpi_open(c, node_rank == 0);
    phase_open(c, w->host);
    return c;
}

struct comm *comm_open_world(const struct comm_world *w)
{
    return open_plain(comm_alloc(w->rank, w->size), w);
}

struct comm *comm_open_leaders(const struct comm_world *w, int n_ranks)
{
    ASSERT(n_ranks > 0 && w->size % n_ranks == 0);
    bool leads = w->rank % n_ranks == 0;
    MPI_Comm mpi = MPI_COMM_WORLD;
    if (n_ranks > 1)
        mpi_check(MPI_Comm_split(MPI_COMM_WORLD, leads ? 0 : MPI_UNDEFINED, w->rank, &mpi), "MPI_Comm_split");
    if (!leads) return NULL;
    struct comm *c = comm_alloc(w->rank / n_ranks, w->size / n_ranks);
    c->stride = n_ranks;
    c->mpi = mpi;
    return open_plain(c, w);
}

#ifndef RETRO_HAVE_CUDA
int comm_nccl_version(void) { return 0; }

enum status comm_use_nccl(struct comm *c, const struct comm_world *w, double timeout_s, struct reason *why)
{
    (void)c;
    (void)w;
    (void)timeout_s;
    return status_fail(why, STATUS_BAD_OPTION, "this program was built without NCCL: use --device cpu");
}
#endif

void comm_close(struct comm *c)
{
    if (!c) return;
    c->table->close(c);
    phase_close(c);
    if (c->mpi != MPI_COMM_WORLD) MPI_Comm_free(&c->mpi);
    free(c->gather_n);
    free(c);
}

void comm_reserve(struct comm *c, size_t n_f32)
{
    c->table->reserve(c, n_f32);
    c->reserved = n_f32;
}

int comm_rank(const struct comm *c) { return c->rank; }

int comm_size(const struct comm *c) { return c->size; }

int comm_world_rank(const struct comm *c, int rank) { return c->first + rank * c->stride; }

const char *comm_describe(const struct comm *c) { return c->description; }

void comm_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream)
{
    ASSERT(n <= c->reserved);
    int64_t began = clock_us();
    c->table->all_reduce(c, buffer, n, dtype, stream);
    if (stream) return; /* only queued: the device takes its time later */
    atomic_fetch_add_explicit(&progress_here.allreduce_us, clock_us() - began, memory_order_relaxed);
}

void comm_wait(struct comm *c, void *stream)
{
    if (c->table->wait) c->table->wait(c, stream);
}

void comm_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts)
{
    c->table->gather(c, mine, n_bytes, all, counts);
}

void comm_barrier(struct comm *c)
{
    if (c->size > 1) mpi_check(MPI_Barrier(c->mpi), "MPI_Barrier");
}

void comm_bcast(struct comm *c, void *bytes, size_t n)
{
    ASSERT(n <= INT32_MAX);
    if (c->size > 1) mpi_check(MPI_Bcast(bytes, (int)n, MPI_BYTE, 0, c->mpi), "MPI_Bcast");
}

static void reduce_i64(struct comm *c, int64_t *values, int n, MPI_Op op)
{
    if (c->size > 1)
        mpi_check(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_INT64_T, op, c->mpi), "MPI_Allreduce");
}

void comm_sum_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_SUM); }

void comm_min_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_MIN); }

void comm_max_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_MAX); }
