/* metrics.h - what a dashboard wants to know, in Prometheus' text form (version 0.0.4). Reading has no side effect.
 *
 * Times of requests are observed on the engines' threads; counters come from front_stats, summed over the replicas, and
 * a few of them for each.
 * What a rank knows of itself (heartbeat age, seconds in all-reduce) comes through metrics_ranks, for whoever watches
 * the ranks. Names are those that dashboards of other engines use, with the prefix "retro:". */
#ifndef RETRO_METRICS_H
#define RETRO_METRICS_H

#include <stdatomic.h>

#include "runtime/buffer.h"
#include "runtime/front.h"

enum metrics_time {
    METRICS_FIRST_TOKEN,
    METRICS_INTER_TOKEN,
    METRICS_END_TO_END,
    METRICS_QUEUE,
    METRICS_PREFILL,
    METRICS_DECODE,
    METRICS_TIME_COUNT
};

struct metrics;

struct metrics_rank {
    double heartbeat_age_s; /* since the rank last said that it lives; negative: not known */
    double allreduce_s;     /* spent in all-reduces so far; negative: not known */
    int64_t steps;          /* finished so far; negative: not known */
};

struct metrics *metrics_open(const char *model, int n_ranks);
void metrics_close(struct metrics *m);
/* Any thread. */
void metrics_observe(struct metrics *m, enum metrics_time what, int64_t us);
/* HTTP requests by outcome: the status code. Any thread. */
void metrics_count_http(struct metrics *m, int code);
/* The source of what ranks know; called when metrics are read, on any thread. NULL: none. */
void metrics_ranks(struct metrics *m, bool (*read)(void *user, int rank, struct metrics_rank *out),
                   void *user);
/* The oldest heartbeat of all ranks in seconds, -1 when not known; and which rank's. */
double metrics_oldest_heartbeat(struct metrics *m, int *rank);
void metrics_write(struct metrics *m, struct front *f, int n_streams, struct buffer *out);

#endif
