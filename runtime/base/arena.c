#define _GNU_SOURCE
#include "runtime/base/arena.h"

#include <stdint.h>
#include <sys/mman.h>

#include "runtime/base/die.h"

void arena_count(struct arena *a) { *a = (struct arena){.capacity_bytes = SIZE_MAX / 2}; }

bool arena_open(struct arena *a, size_t capacity_bytes)
{
    *a = (struct arena){.capacity_bytes = capacity_bytes};
    if (capacity_bytes == 0) return true;
    void *p = mmap(NULL, capacity_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    madvise(p, capacity_bytes, MADV_HUGEPAGE); /* advice only: 4 KiB pages are right too, a little slower */
    a->base = p;
    return true;
}

void arena_wrap(struct arena *a, void *base, size_t capacity_bytes)
{
    *a = (struct arena){.base = base, .capacity_bytes = capacity_bytes, .borrowed = true};
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

void arena_close(struct arena *a)
{
    if (a->base && !a->borrowed) munmap(a->base, a->capacity_bytes);
    *a = (struct arena){.sealed = true};
}
