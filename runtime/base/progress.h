/* progress.h - where this process is, in words that another thread may read at any time.
 *
 * The main thread says what it does: the phase, and inside a step the layer and the op. The heartbeat of
 * comm/ reads it, so that a rank which dies or hangs can be named with its last word. A phase that does not
 * change its count for long hangs; which of many waiting ranks is to blame is the one with the lowest step
 * and count, because all ranks run the same ops of a step in the same order.
 *
 * Cost: three relaxed stores an op, by one thread. Like the log prefix, it is one per process. */
#ifndef RETRO_BASE_PROGRESS_H
#define RETRO_BASE_PROGRESS_H

#include <stdatomic.h>
#include <stdint.h>

/* In the order in which a start runs through them; ranks in the lowest one are those the others wait for. */
enum progress_phase {
    PROGRESS_BOOT,    /* the process starts, MPI gathers the ranks */
    PROGRESS_PREPARE, /* rank 0 reads options, files and the prompt, the others wait */
    PROGRESS_DEVICE,  /* opening the device, planning memory */
    PROGRESS_LOAD,    /* reading weights */
    PROGRESS_CONNECT, /* control channel, collectives of the device */
    PROGRESS_IDLE,    /* ready: rank 0 decides, the others wait for it */
    PROGRESS_STEP,    /* inside a step */
    PROGRESS_CLOSE,   /* ending in order */
    PROGRESS_PHASE_COUNT
};

/* The op of one who waits for a person, as long as that takes. */
#define PROGRESS_ASKS "prompt"

struct progress {
    _Atomic int phase, layer; /* layer -1: not in one */
    _Atomic uint64_t step;    /* how many began */
    _Atomic uint64_t count;   /* grows with every sign of progress; begins at 0 with each phase and step */
    _Atomic(const char *) op; /* a literal, or NULL */
    _Atomic int64_t allreduce_us; /* spent in all-reduces on the host so far */
};

extern struct progress progress_here;

void progress_enter(enum progress_phase phase);
/* The phase STEP of the next step. */
void progress_step(void);
const char *progress_phase_name(enum progress_phase phase);

/* A sign of life inside a phase, for example a piece of a file that was read. */
static inline void progress_tick(void)
{
    uint64_t n = atomic_load_explicit(&progress_here.count, memory_order_relaxed);
    atomic_store_explicit(&progress_here.count, n + 1, memory_order_relaxed);
}

/* `op` begins in the current layer. `op` is a literal. */
static inline void progress_op(const char *op)
{
    atomic_store_explicit(&progress_here.op, op, memory_order_relaxed);
    progress_tick();
}

static inline void progress_layer(int layer)
{
    atomic_store_explicit(&progress_here.layer, layer, memory_order_relaxed);
}

#endif
