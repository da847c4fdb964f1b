/* arena.h - one block of memory, carved at start-up and then sealed.
 *
 * Invariants: every carve is aligned to ARENA_ALIGN and zeroed; after arena_seal() a carve is an ASSERT;
 * nothing is freed before arena_close(). A first arena in counting mode (base == NULL) adds up the same
 * carves without memory, which is how memplan.c knows the sum before anything is allocated. */
#ifndef RETRO_BASE_ARENA_H
#define RETRO_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct arena {
    char *base; /* NULL while counting */
    size_t used_bytes, capacity_bytes;
    bool sealed, borrowed;
};

#define ARENA_ALIGN ((size_t)256) /* what cuBLAS wants of its operands, and four cache lines */

/* Starts counting: carves return NULL and only add up. */
void arena_count(struct arena *a);
/* Maps `capacity_bytes` of zeroed memory (huge pages advised). Returns false when the system refuses. */
bool arena_open(struct arena *a, size_t capacity_bytes);
/* Carves memory that somebody else owns (a device's): `base` is never touched here and arena_close leaves it
 * alone. */
void arena_wrap(struct arena *a, void *base, size_t capacity_bytes);
/* Next aligned piece, zeroed; NULL in counting mode. ASSERTs on overflow and after arena_seal(). */
void *arena_carve(struct arena *a, size_t bytes);
void arena_seal(struct arena *a);
void arena_close(struct arena *a);

#endif
