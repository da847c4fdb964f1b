/* memory.c - memory of the CPU device and transfers.
 *
 * Device memory is the process's own: mapped in whole pages, zero, with 2 MiB pages advised, which saves a
 * few percent of streaming bandwidth and nearly all TLB misses of gathered pages. Nothing is touched here, so
 * that a page lands on the NUMA node of the thread that first writes it. */
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"
#include "runtime/base/hostmem.h"

static const size_t HUGE = (size_t)2 << 20, PAGE = 4096;

static size_t mapped_bytes(size_t bytes)
{
    size_t unit = bytes >= HUGE ? HUGE : PAGE;
    return bytes == 0 ? unit : (bytes + unit - 1) / unit * unit;
}

void *cpu_mem_alloc(struct device *d, size_t bytes)
{
    (void)d;
    if (bytes > (size_t)1 << 62) return NULL;
    size_t size = mapped_bytes(bytes), slack = size >= HUGE ? HUGE : 0;
    char *p = mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (slack) { /* huge pages need their alignment: give back what lies around it */
        size_t skip = (HUGE - (uintptr_t)p % HUGE) % HUGE;
        if (skip) munmap(p, skip);
        if (slack - skip) munmap(p + skip + size, slack - skip);
        p += skip;
        madvise(p, size, MADV_HUGEPAGE); /* advice: a kernel without it changes nothing but speed */
    }
    return p;
}

void cpu_mem_free(struct device *d, void *p, size_t bytes)
{
    (void)d;
    if (p) ASSERT(munmap(p, mapped_bytes(bytes)) == 0);
}

void cpu_transfer(struct device *d, void *dst, const void *src, size_t bytes)
{
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

void cpu_fill(struct device *d, void *dst, int byte, size_t bytes)
{
    (void)d;
    if (bytes) memset(dst, byte, bytes);
}

/* Ops have finished when they return. */
void cpu_sync(struct device *d) { (void)d; }

void *cpu_stream(struct device *d)
{
    (void)d;
    return NULL;
}

int64_t cpu_mem_available(struct device *d)
{
    (void)d;
    return hostmem_available();
}
