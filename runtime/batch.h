/* batch.h - a file of requests through the service to a file of results; continues where it was interrupted.
 *
 * Two threads: the engine's sits in front_run (with replicas it has one for each), batch_run has one of its own that reads lines, submits them, and
 * writes what has finished to the journal (batch_journal.h). Lines are read only as the service takes them, so
 * memory holds the requests in flight and 16 bytes a line, however long the file.
 *
 * Invariants:
 *  1. A line's record depends on the input file, the settings and the line alone: ids come from the file's hash and
 *     the line's number, the seed of a line without one from its custom_id, "created" is the time of the file's last
 *     change, and nothing that was measured is in it. So a run that was killed and continued leaves the very files
 *     that an undisturbed one leaves.
 *  2. A result counts as done once it is on the disk: the journal is synchronised once a second and at the end.
 *  3. What drain or a failure cuts off leaves no record: that line is computed again. */
#ifndef RETRO_BATCH_H
#define RETRO_BATCH_H

#include "runtime/api.h"
#include "runtime/batch_input.h"
#include "runtime/batch_journal.h"
#include "runtime/front.h"

struct batch_work {
    struct batch_input input;
    struct batch_journal journal;
};

struct batch_paths {
    const char *input, *output, *errors; /* errors NULL: bad lines are among the output's */
};

/* Opens input and journal; no model is needed, so a refusal comes at once. `settings` as in batch_identity. */
enum status batch_open(struct batch_work *b, const struct batch_paths *paths, const json_t *settings,
                       struct reason *why);
void batch_close(struct batch_work *b);
/* Lines that have no record yet. */
int64_t batch_left(const struct batch_work *b);

struct batch_run_options {
    struct api *api;
    struct front *front;
    int n_in_flight;           /* prompts given to the service at a time */
    double drain_s;            /* what an interruption leaves to requests in flight */
    bool (*interrupted)(void); /* true from some time on: stop */
    bool terminal;             /* the progress line overwrites itself */
};

/* ------------------------------------------------------------------------------------------ progress */
struct batch_progress {
    int64_t n_requests, n_done, n_errors; /* of the whole batch */
    int64_t n_here, n_tokens;             /* finished by this process; tokens it generated */
    double seconds;                       /* since this process began with the first line */
};
/* On the engine's thread; returns when no request is left in the service, which is then drained: all lines have
 * their record (batch_left is 0), or it was interrupted. Not OK: the input or the journal failed; what was done until
 * then is kept. */
enum status batch_run(struct batch_work *b, const struct batch_run_options *o,
                      struct batch_progress *progress, struct reason *why);
/* "120 of 1000 done, 3 bad, 812.4 tokens/s, 0:12:30 left"; without what cannot be known yet. */
void batch_progress_format(const struct batch_progress *p, char *text, size_t text_bytes);

#endif
