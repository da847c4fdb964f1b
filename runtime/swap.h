/* swap.h - the pool in host memory where interrupted sequences wait, and the moves of records in a step.
 *
 * A host block holds all layers of a block, a host slot one slot record and the slot's counters; which belongs to
 * whom is the scheduler's business (sched.h). Its size is fixed at start and counted with the model's memory;
 * every rank holds the same number of records, each of its own shard. Transfers are issued in order on the
 * device's stream: a record that goes out and one that comes into its place need no wait in between. */
#ifndef RETRO_SWAP_H
#define RETRO_SWAP_H

#include "runtime/model.h"
#include "runtime/step.h"

struct swap {
    struct model *model;
    char *blocks, *slots; /* (model->n_host_blocks), (model->n_host_slots) records */
};

void swap_open(struct swap *s, struct model *m);
void swap_close(struct swap *s);
/* The step's moves that go out (before anything else of the step), and the others (before its rows). */
void swap_out(struct swap *s, const struct step *step);
void swap_in(struct swap *s, const struct step *step);

#endif
