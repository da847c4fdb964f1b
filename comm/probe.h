/* probe.h - what `retro doctor` asks of MPI and of the collectives. Collective over the world unless said. */
#ifndef RETRO_COMM_PROBE_H
#define RETRO_COMM_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "comm/comm.h"

/* One line with MPI's name and version; not collective. `bytes` of text. */
void comm_mpi_version(char *text, size_t bytes);

/* As the library gives it, 22703 for 2.27.3; 0 in a build without NCCL. Not collective. */
int comm_nccl_version(void);

/* A group of all ranks that goes through MPI even where shared memory would do. */
struct comm *comm_open_mpi(const struct comm_world *w);

/* How far each rank's wall clock is ahead of rank 0's, by the exchange with the shortest round trip of several:
 * on rank 0 (size) microseconds each, untouched elsewhere. An offset is right to half its round trip. */
void comm_clock_skew(const struct comm_world *w, int64_t *skew_us, int64_t *round_trip_us);

/* Through which interface and from which address this rank would reach rank 0's host; "" for none, and on rank 0's
 * own host. `loopback`: the way leads to this host itself although rank 0 is elsewhere. */
void comm_route_to_leader(const struct comm_world *w, char *interface, size_t interface_bytes, char *address,
                          size_t address_bytes, bool *loopback);

/* Gathers `bytes` of every rank to rank 0, in rank order. */
void comm_world_gather(const struct comm_world *w, const void *mine, size_t bytes, void *all);

#endif
