/* arena.h - one block of a device's memory, carved at start-up and then sealed.
 *
 * Invariants: every carve is aligned to ARENA_ALIGN; after arena_seal() a carve is an ASSERT. The memory is never
 * touched here: zeroed or not, it stays as it was given. A first arena in counting mode (base == NULL) adds up the
 * same carves without memory, which is how model_plan knows the sum before anything is allocated. */
#ifndef RETRO_BASE_ARENA_H
#define RETRO_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct arena {
    char *base; /* NULL while counting */
    size_t used_bytes, capacity_bytes;
    bool sealed;
};

#define ARENA_ALIGN ((size_t)256) /* what cuBLAS wants of its operands, and four cache lines */

/* Starts counting: carves return NULL and only add up. */
void arena_count(struct arena *a);
/* Carves memory that the caller keeps; `base` is aligned to ARENA_ALIGN. */
void arena_wrap(struct arena *a, void *base, size_t capacity_bytes);
/* Next aligned piece; NULL in counting mode. ASSERTs on overflow and after arena_seal(). */
void *arena_carve(struct arena *a, size_t bytes);
void arena_seal(struct arena *a);

#endif
