/* failure.h - tells the first cause of a lost job: one line on the terminal, one JSON object in a file.
 *
 * {"time", "kind", "rank", "host", "phase", "step", "layer", "op", "error", "exit_code", "told_by", and "ranks":
 * [{"rank", "host", "phase", "step", "layer", "op", "silent_s"}]}; step, layer and op only inside a step. */
#ifndef RETRO_LAUNCHER_FAILURE_H
#define RETRO_LAUNCHER_FAILURE_H

#include "comm/heartbeat.h"
#include "runtime/options.h"

/* Rank 0: whether --failure-file could be written here; leaves nothing behind. */
enum status failure_check(const struct options *o, struct reason *why);

/* Finds the file by the options; rank 0 removes what an earlier run left there. */
void failure_open(const struct options *o, const struct comm_world *w);

/* For struct heartbeat_options. */
void failure_record(const struct cause *c, const struct watch *w, bool first_hand);
void failure_print(const struct cause *c);

#endif
