/* heartbeat.h - notices that a rank died, stopped, hangs or lost its network, names the first cause, and ends
 * every rank.
 *
 * Outside the collectives: a thread a rank that makes no MPI call, on sockets of its own whose addresses
 * travelled over MPI at the start. Each rank tells rank 0 four times a second where it is (progress.h) and
 * hears from it as often, over a stream: the end of a process ends its stream at once. The first ranks of the
 * hosts also send each other datagrams, because a link between two hosts may break that neither shares with
 * rank 0. Where datagrams do not pass (a firewall), such a break is only found as a hang.
 *
 * Who decides (watch.c): rank 0, over all others and itself. It records the cause, tells everyone to end,
 * waits until they have, prints the cause last and ends. When rank 0 is the one that is gone, the lowest rank
 * that is left does the same. No rank leaves alone, none stays.
 *
 * States of the thread: beating -> (a cause, or a verdict from rank 0) -> ending, or
 *                       beating -> closing (heartbeat_close: everyone said goodbye) -> closed.
 * A heartbeat costs each rank about 50 us of CPU every 250 ms. One rank alone has none. */
#ifndef RETRO_COMM_HEARTBEAT_H
#define RETRO_COMM_HEARTBEAT_H

#include "comm/comm.h"
#include "comm/watch.h"

struct heartbeat_options {
    double silence_s;  /* without a beat a rank is stopped or cannot be reached */
    double watchdog_s; /* without progress in a step a rank hangs */
    double start_s;    /* without progress while starting, and how long connecting may take */
    /* After the loss of a host: how long mpirun needs to notice by itself, counted from the last word. A rank
     * that ends earlier makes mpirun wait for an answer of the lost host for a quarter of an hour. 0: end. */
    double linger_s;
    int group; /* ranks of a replica */
    /* On the one rank that speaks for the job, from the heartbeat's thread. `record` comes first, while the
     * others still end; `first_hand` is false when this rank only guesses because rank 0 cannot be reached. */
    void (*record)(const struct cause *c, const struct watch *w, bool first_hand);
    void (*print)(const struct cause *c);
};

/* Collective over the world, from the main thread; nothing when it has one rank. Takes over the die hook, and
 * SIGTERM, SIGINT and SIGUSR1 where nobody else handles them: the first two end the job with 128 + their number,
 * SIGUSR1, which mpirun passes on to every rank, with EXIT_CODE_INTERRUPTED. */
void heartbeat_open(const struct comm_world *w, const struct heartbeat_options *o);
/* What rank 0 knows of a rank; any thread, between open and close. False without a heartbeat. */
struct heartbeat_rank {
    double age_s; /* since its last beat came */
    double allreduce_s;
    uint64_t steps; /* that it began */
};
bool heartbeat_rank(int rank, struct heartbeat_rank *out);
/* For signal handlers: this signal came, and ends the rank or not. A launcher that has noticed the loss of a host sends
 * SIGTERM, and kills a second later. False when there is no heartbeat that could end the rank. */
bool heartbeat_signal(int signal, bool ends);
/* Normal end: returns when all ranks are here. False when there was no heartbeat. */
bool heartbeat_close(void);

#endif
