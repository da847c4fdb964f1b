/* hostmem.h - how much memory this process may still take. */
#ifndef RETRO_BASE_HOSTMEM_H
#define RETRO_BASE_HOSTMEM_H

#include <stdint.h>

/* Bytes: the least of the kernel's MemAvailable and what this process's cgroup (v1 or v2) and those above it leave;
 * their page cache counts as free. */
int64_t hostmem_available(void);

/* How many processes of this host the kernel has killed for lack of memory since it booted; 0 when it does not
 * tell. */
int64_t hostmem_oom_kills(void);

#endif
