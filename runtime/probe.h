/* probe.h - how far attention outputs are from those over all pages, measured while a model decodes.
 *
 * After a layer's merge the probe computes dense attention of the same queries over the same cache (the op
 * for prompts does that and changes nothing) and compares: the error of a layer's attention alone, not what
 * its inputs have gathered before. The new row's error is the one at the time of use; the oldest row's, in a
 * window above 1, is what is left after its last revision. Only this rank's heads are looked at. Slow: it
 * copies outputs to the host in the middle of a step, so a step with a probe is never captured as a graph. */
#ifndef RETRO_PROBE_H
#define RETRO_PROBE_H

#include "kernels/kernels.h"

struct probe;

/* Looks at one decode step in `every`. Allocates device memory: before the first step. */
struct probe *probe_open(struct device *d, const struct dims *m, int every);
void probe_close(struct probe *p);

/* model_forward calls these: at the start of a step, and after every merge with its output (T,Hr*E). */
void probe_begin(struct probe *p, const struct batch *b);
void probe_layer(struct probe *p, const void *out, const float *q, const struct kv_layer *kv,
                 const struct batch *b);

/* Means over what was looked at of |o - dense| / |dense|, of one slot; layers below dense_layers excluded. */
struct probe_errors {
    int64_t n_rows;       /* new rows, summed over layers */
    double used, revised; /* 0 where nothing was looked at, or nothing is revised */
};
struct probe_errors probe_read(const struct probe *p, int slot);

#endif
