/* group.h - what is behind a struct comm: one table of functions per transport. Only comm/ includes this. */
#ifndef RETRO_COMM_GROUP_H
#define RETRO_COMM_GROUP_H

#include <mpi.h>

#include "comm/comm.h"

struct comm_table {
    void (*reserve)(struct comm *c, size_t n_f32);
    void (*all_reduce)(struct comm *c, float *buffer, size_t n, void *stream);
    void (*gather)(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts);
    void (*close)(struct comm *c);
};

struct comm {
    const struct comm_table *table;
    int rank, size;
    MPI_Comm mpi;    /* of the group; owned unless it is the world's */
    size_t reserved; /* elements of an all-reduce at most; 0 before comm_reserve */
    /* On rank 0, (size) each: bytes of the ranks in a gather and where they go; a gather allocates nothing.
     */
    int *gather_n, *gather_at;
    char description[64];
    void *state; /* of the transport */
};

/* A group without a transport yet: a constructor must follow. comm_open does both; tests choose. */
struct comm *comm_alloc(int rank, int size);
/* Constructors; each fills table, description and state. */
void self_open(struct comm *c);
void mpi_open(struct comm *c, bool first_on_host);
void shm_open_group(struct comm *c);

/* MPI_Gatherv in bytes; shared by the transports that run under MPI. */
void mpi_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts);
/* Ends the job with the MPI error's text when `rc` is one. `what` names the call. */
void mpi_check(int rc, const char *what);

#endif
