/* trace.h - a device that times every op of another one.
 *
 * Marks are taken on the device's own time line (CUDA events, a clock on the CPU) and read when the step has
 * been waited for, so tracing adds no wait inside a step; only one with more than MARKS_MAX / 2 ops and transfers
 * (many moves of swapped sequences) waits for these on the way. Output: Chrome's trace event format
 * (chrome://tracing, Perfetto), one process per rank. With CUDA every op is also an NVTX range for Nsight. */
#ifndef RETRO_KERNELS_TRACE_H
#define RETRO_KERNELS_TRACE_H

#include "kernels/kernels.h"

/* Takes `inner`; closing the result closes it and completes the file. `rank` becomes the process id of the
 * events. BAD_OPTION when the file cannot be written. */
enum status trace_device_open(struct device **out, struct device *inner, const char *path, int rank,
                              struct reason *why);

#endif
