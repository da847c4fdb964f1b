/* check.h - two op tables side by side: a device that runs every op on two others and compares what they
 * write.
 *
 * The first difference beyond rounding is kept with op, layer, element and both values. After each op the
 * reference's results are copied over the tested ones, so that a difference is the op's own and does not add
 * up over a step. Memory: both devices hold every allocation; the pointers that callers see are the
 * reference's. The reference must be a CPU device. Slow, and never used but by `retro check`. */
#ifndef RETRO_KERNELS_CHECK_H
#define RETRO_KERNELS_CHECK_H

#include "kernels/kernels.h"

struct check_report {
    int n_ops;                             /* op calls compared */
    int64_t n_values;                      /* values compared */
    int n_page_lists, n_page_lists_differ; /* page selections; near-tied pages may differ by rounding */
    double worst;                          /* largest difference seen, in tolerances: 1 is the limit */
    char worst_op[32];
    bool failed;
    char first[256]; /* one line: the first difference */
};

/* Takes both devices (opened with the same activation type); closing the result closes them. */
struct device *check_device_open(struct device *reference, struct device *tested);
const struct check_report *check_device_report(const struct device *d);

#endif
