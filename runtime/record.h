/* record.h - steps with the digests of their results in a file, and back.
 *
 * A recording makes a run repeatable without its prompt, sampler or timing: replay executes the same plans
 * and names the first step whose result differs in a bit. It does not hold the model or the options that
 * plans leave open (--page-size, --kv-dtype, the number of ranks): with others the results differ, and that
 * is all that is said. Damaged files are refused with one line before the damaged step is executed.
 *
 * File: "RETROREC", u32 version, the limits (12 x i32), then frames: u32 length, u32 CRC-32, a packed
 * StepRecord (comm/retro.proto). Numbers are little endian. */
#ifndef RETRO_RECORD_H
#define RETRO_RECORD_H

#include <stdio.h>

#include "runtime/engine.h"
#include "runtime/wire.h"

struct recording {
    FILE *file;
    const char *path; /* borrowed */
    struct wire wire;
    long n_steps;
    enum status status; /* first failure while writing */
};

enum status record_create(struct recording *r, const char *path, const struct step_limits *limits,
                          struct reason *why);
/* Failures are kept in r->status and told by record_close. */
void record_write(struct recording *r, const struct step *s, const struct engine_result *result);
enum status record_close(struct recording *r, struct reason *why);

/* Opens for replay: the limits of the run that made it must fit those of `e` (same vocabulary, layers and
 * block size; the engine may be larger). */
enum status record_open(struct recording *r, const char *path, const struct step_limits *limits,
                        struct reason *why);
/* Limits stored in a recording, so that an engine of the right size can be opened. */
enum status record_read_limits(const char *path, struct step_limits *limits, struct reason *why);
/* Executes everything; *n_differ steps had another result, *first_differ is the first (-1: none). */
enum status record_replay(struct recording *r, struct engine *e, long *n_steps, long *n_differ,
                          long *first_differ, struct reason *why);

#endif
