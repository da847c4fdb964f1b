/* memplan.h - how much memory one rank needs, summed by model.c in a counting pass before anything is
 * allocated. */
#ifndef RETRO_MEMPLAN_H
#define RETRO_MEMPLAN_H

#include <stdint.h>

struct memplan {
    int64_t weights_bytes; /* this rank's parameters */
    int64_t kv_bytes;      /* blocks: keys, values, page summaries */
    int64_t slots_bytes;   /* output caches, last_loaded, counters */
    int64_t scratch_bytes; /* activations of one step, page lists, logits */
    int64_t total_bytes;
};

#endif
