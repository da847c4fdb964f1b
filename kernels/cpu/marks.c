/* marks.c - time stamps of the CPU device (its ops have finished when they return, so a clock is the time
 * line), and the places of whole-step graphs, which the CPU does not have. */
#include <time.h>

#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

void cpu_mark(struct device *d, int i)
{
    struct timespec t;
    ASSERT(i >= 0 && i < MARKS_MAX);
    clock_gettime(CLOCK_MONOTONIC, &t);
    cpu_of(d)->mark_us[i] = (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

double cpu_mark_us(struct device *d, int i)
{
    ASSERT(i >= 0 && i < MARKS_MAX);
    return cpu_of(d)->mark_us[i];
}

void cpu_range(struct device *d, const char *name)
{
    (void)d;
    (void)name;
}

bool cpu_graph_launch(struct device *d, uint64_t key)
{
    (void)d;
    (void)key;
    return false;
}

void cpu_graph_end(struct device *d) { (void)d; }
