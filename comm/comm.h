/* comm.h - collectives between the ranks of a group, behind one small table: self, shm, mpi, nccl.
 *
 * Every rank of the group calls the same collectives in the same order (the step plan sees to that). They
 * return void: a collective that fails cannot be survived by one rank alone and is a DIE with EXIT_CODE_PEER.
 *
 * Invariants:
 *  1. all_reduce gives the same bits on every rank, and from run to run. Between CPUs sums are taken in rank
 *     order; NCCL has its own order, fixed for a number of elements on one set of GPUs (nccl.c).
 *  2. Host collectives (bcast, gather_host, ...) are for start-up and statistics, never inside a step.
 *  3. Nothing allocates after comm_reserve; all_reduce refuses more than what was reserved. */
#ifndef RETRO_COMM_COMM_H
#define RETRO_COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

struct comm; /* context; rank 0 is the leader */

/* The process's place in the world, known before any group exists. comm_world_open initialises MPI only when
 * a launcher started us (`launched`, which launcher/boot.c reads from the environment); a lone process needs
 * none. Call once, from the main thread. */
struct comm_world {
    int rank, size;
    int node_rank, node_size; /* among the ranks of this host */
    char host[64];
};
void comm_world_open(struct comm_world *w, bool launched);
/* Collective over the world: the largest of the ranks' values. */
int comm_world_max(int value);
/* The same before anybody watches: rank 0 DIEs with the names of those that do not come within limit_s. */
int comm_world_meet(const struct comm_world *w, int value, double limit_s);
/* Normal end: all ranks arrive, then MPI is finalised. */
void comm_world_close(void);
/* Abnormal end of the whole job from any rank at any time; used by the die hook. Does not return. */
_Noreturn void comm_world_abort(int exit_code);

/* Collective over the world: opens this rank's tensor-parallel group. The world is dealt into groups
 * (replicas of the model) of n_ranks consecutive ranks each, of which it must be a multiple; the first of a
 * group is its leader, rank 0 of the group. One rank: nothing to exchange; shared memory between ranks of one
 * host, MPI otherwise. */
struct comm *comm_open(const struct comm_world *w, int n_ranks);
/* Collective over the world: all its ranks, or the leaders alone (NULL on the others), as a group for host
 * collectives; nothing is reserved in it. */
struct comm *comm_open_world(const struct comm_world *w);
struct comm *comm_open_leaders(const struct comm_world *w, int n_ranks);
void comm_close(struct comm *c);

/* Collective over the world, when every rank has opened its GPU (the current one of the thread): from now on
 * all_reduce goes over NCCL, on the device's stream. One rank needs none. BAD_OPTION with one line, on every
 * rank, when two ranks of the world have the same GPU; DIEs naming the ranks that did not take part within timeout_s. */
enum status comm_use_nccl(struct comm *c, const struct comm_world *w, double timeout_s, struct reason *why);

/* --- how far a start has come, so that a deadline can name who is missing --- */

/* Tells rank 0 what this rank is doing now (up to 31 characters). Waits for nobody. */
void comm_phase(struct comm *c, const char *name);
/* Collective: comm_phase, then waits until every rank has got there. DIEs with EXIT_CODE_PEER after
 * timeout_s; the line names the ranks that are missing, their hosts and what they said last. */
void comm_arrive(struct comm *c, const char *name, double timeout_s);

/* Collective: makes room for all_reduce of up to n_f32 elements. */
void comm_reserve(struct comm *c, size_t n_f32);

int comm_rank(const struct comm *c);
int comm_size(const struct comm *c);
/* What the world calls a rank of the group: the number that users see. */
int comm_world_rank(const struct comm *c, int rank);
/* "one rank", "2 ranks by shared memory", "8 ranks on 2 hosts by MPI"; borrowed. */
const char *comm_describe(const struct comm *c);

/* In place sum of n f32 or bf16 over the group. bf16 halves the bytes: between CPUs sums are f32 and rounded
 * once, NCCL may round at every hop. `stream` is the device's stream (NULL on the CPU). */
void comm_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream);
/* Before the host waits for a stream with all-reduces on it: returns when its work is done, or ends the job
 * when a collective failed meanwhile (a plain wait would never return). Nothing on the CPU. */
void comm_wait(struct comm *c, void *stream);
/* Uneven gather to rank 0 in host memory: this rank's n_bytes; counts (size) bytes of each rank,
 * displacements implied in rank order; `all` only matters on rank 0. May be used inside a step (logits). */
void comm_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts);

/* Host collectives. */
void comm_barrier(struct comm *c);
void comm_bcast(struct comm *c, void *bytes, size_t n); /* from rank 0 */
void comm_sum_i64(struct comm *c, int64_t *values, int n);
void comm_min_i64(struct comm *c, int64_t *values, int n);
void comm_max_i64(struct comm *c, int64_t *values, int n);

#endif
