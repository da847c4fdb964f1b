#include "runtime/base/progress.h"

#include <stddef.h>

#include "runtime/base/die.h"

struct progress progress_here = {.layer = -1};

void progress_enter(enum progress_phase phase)
{
    progress_layer(-1);
    atomic_store_explicit(&progress_here.op, NULL, memory_order_relaxed);
    atomic_store_explicit(&progress_here.count, 0, memory_order_relaxed);
    /* Last: who sees the new phase sees its count begin. */
    atomic_store_explicit(&progress_here.phase, (int)phase, memory_order_release);
}

void progress_step(void)
{
    uint64_t n = atomic_load_explicit(&progress_here.step, memory_order_relaxed);
    atomic_store_explicit(&progress_here.step, n + 1, memory_order_relaxed);
    progress_enter(PROGRESS_STEP);
}

const char *progress_phase_name(enum progress_phase phase)
{
    static const char *const names[PROGRESS_PHASE_COUNT] = {
        "boot", "prepare", "open_device", "load_weights", "connect", "idle", "step", "close"};
    ASSERT(phase >= 0 && phase < PROGRESS_PHASE_COUNT);
    return names[phase];
}
