#include "runtime/base/arena.h"

#include <stdint.h>

#include "runtime/base/die.h"

void arena_count(struct arena *a) { *a = (struct arena){.capacity_bytes = SIZE_MAX / 2}; }

void arena_wrap(struct arena *a, void *base, size_t capacity_bytes)
{
    *a = (struct arena){.base = base, .capacity_bytes = capacity_bytes};
}

void *arena_carve(struct arena *a, size_t bytes)
{
    ASSERT(!a->sealed);
    ASSERT(bytes <= a->capacity_bytes);
    size_t size = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    ASSERT(size <= a->capacity_bytes - a->used_bytes);
    void *p = a->base ? a->base + a->used_bytes : NULL;
    a->used_bytes += size;
    return p;
}

void arena_seal(struct arena *a) { a->sealed = true; }
