/* group.h - what is behind a struct comm: one table of functions per transport. Only comm/ includes this. */
#ifndef RETRO_COMM_GROUP_H
#define RETRO_COMM_GROUP_H

#include <mpi.h>

#include "comm/comm.h"

struct comm_table {
    void (*reserve)(struct comm *c, size_t n_f32);
    void (*all_reduce)(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream);
    void (*wait)(struct comm *c, void *stream); /* NULL: nothing happens on a stream */
    void (*gather)(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts);
    void (*close)(struct comm *c);
};

/* What a rank told last about its start (phase.c). */
struct comm_phase {
    char host[64], name[32];
};

struct comm {
    const struct comm_table *table;
    int rank, size;
    int first, stride; /* the ranks are first, first + stride, ... of the world */
    MPI_Comm mpi;      /* of the group; owned unless it is the world's */
    size_t reserved;   /* elements of an all-reduce at most; 0 before comm_reserve */
    /* On rank 0, (size) each: bytes of the ranks in a gather and where they go; a gather allocates nothing.
     */
    int *gather_n, *gather_at;
    struct comm_phase *phase; /* (size) the hosts on every rank; the phases on rank 0, as far as they came */
    struct comm_phase_note *note; /* this rank's message about it */
    char description[64];
    void *state; /* of the transport */
};

/* A group without a transport yet: a constructor must follow. comm_open does both; tests choose. */
struct comm *comm_alloc(int rank, int size);
/* Constructors; each fills table, description and state. */
void self_open(struct comm *c);
void mpi_open(struct comm *c, bool first_on_host);
void shm_open_group(struct comm *c);
/* At the end of a broken job, on any thread: no object of a group that was still being made stays behind. */
void shm_forget_name(void);

/* Collective: everyone learns the hosts. */
void phase_open(struct comm *c, const char *host);
void phase_close(struct comm *c);

/* out[i] = sum over ranks, in their order, of element first + i of the arrays of `dtype` that lie `stride`
 * elements apart in `in`; f32 inside, rounded once. */
void sum_ranks(void *out, const void *in, size_t stride, int n_ranks, size_t first, size_t n,
               enum dtype dtype);

/* MPI_Gatherv in bytes; shared by the transports that run under MPI. */
void mpi_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts);
/* Ends the job with the MPI error's text when `rc` is one. `what` names the call. */
void mpi_check(int rc, const char *what);

#endif
