#include "comm/comm.h"

#include <mpi.h>
#include <stdlib.h>

#include "comm/group.h"
#include "runtime/base/die.h"

struct comm *comm_alloc(int rank, int size)
{
    struct comm *c = calloc(1, sizeof *c);
    if (c) c->gather_n = calloc(2 * (size_t)size, sizeof *c->gather_n);
    if (!c || !c->gather_n) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a group of ranks");
    c->gather_at = c->gather_n + size;
    c->rank = rank;
    c->size = size;
    return c;
}

struct comm *comm_open(const struct comm_world *w)
{
    struct comm *c = comm_alloc(w->rank, w->size);
    if (w->size == 1) self_open(c);
    else if (w->node_size == w->size) shm_open_group(c);
    else mpi_open(c, w);
    return c;
}

void comm_close(struct comm *c)
{
    if (!c) return;
    c->table->close(c);
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

const char *comm_describe(const struct comm *c) { return c->description; }

void comm_all_reduce(struct comm *c, float *buffer, size_t n, void *stream)
{
    ASSERT(n <= c->reserved);
    c->table->all_reduce(c, buffer, n, stream);
}

void comm_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts)
{
    c->table->gather(c, mine, n_bytes, all, counts);
}

void comm_barrier(struct comm *c)
{
    if (c->size > 1) mpi_check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier");
}

void comm_bcast(struct comm *c, void *bytes, size_t n)
{
    ASSERT(n <= INT32_MAX);
    if (c->size > 1) mpi_check(MPI_Bcast(bytes, (int)n, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
}

static void reduce_i64(struct comm *c, int64_t *values, int n, MPI_Op op)
{
    if (c->size > 1)
        mpi_check(MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_INT64_T, op, MPI_COMM_WORLD), "MPI_Allreduce");
}

void comm_sum_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_SUM); }

void comm_min_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_MIN); }

void comm_max_i64(struct comm *c, int64_t *values, int n) { reduce_i64(c, values, n, MPI_MAX); }
