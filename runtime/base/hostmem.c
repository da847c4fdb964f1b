#include "runtime/base/hostmem.h"

#include <stdio.h>
#include <string.h>

/* The number after `key` in a file of "key number" lines (or the file's only number for key ""); -1 when
 * absent. */
static int64_t read_number(const char *path, const char *key)
{
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    char line[256];
    long long value = -1;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        if (sscanf(line + strlen(key), "%lld", &value) != 1)
            value = -1; /* cgroup v2 says "max" for no limit */
        break;
    }
    fclose(f);
    return value;
}

/* The names of a kind of cgroup. Version 1 has a hierarchy for memory alone. */
struct cgroups {
    const char *root, *controller; /* controller "": the line of version 2 */
    const char *limit, *usage, *stat, *cache_key;
};
static const struct cgroups versions[] = {
    {"/sys/fs/cgroup", "", "memory.max", "memory.current", "memory.stat", "file "},
    {"/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat",
     "total_cache "},
};

static int64_t limit_left(const struct cgroups *c, const char *group)
{
    char limit_file[600], usage_file[600], stat_file[600];
    snprintf(limit_file, sizeof limit_file, "%s%s/%s", c->root, group, c->limit);
    snprintf(usage_file, sizeof usage_file, "%s%s/%s", c->root, group, c->usage);
    snprintf(stat_file, sizeof stat_file, "%s%s/%s", c->root, group, c->stat);
    int64_t limit = read_number(limit_file, ""), usage = read_number(usage_file, "");
    if (limit < 0 || usage < 0) return INT64_MAX;
    int64_t cache = read_number(stat_file, c->cache_key); /* page cache gives way to us */
    return limit - usage + (cache > 0 ? cache : 0);
}

/* This process's group, "/slurm/job_7"; "" when it is the root, not told or too long. Lines are "4:memory:/group", of
 * version 2 "0::/group"; a container may show a group that it has no folder for, which then says nothing. */
static void own_group(const struct cgroups *c, char *group, size_t bytes)
{
    char line[512];
    group[0] = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *controller = strchr(line, ':'), *path = controller ? strchr(controller + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        if (strcmp(controller + 1, c->controller) == 0 && strcmp(path, "/") != 0 && strlen(path) < bytes)
            strcpy(group, path);
    }
    if (f) fclose(f);
}

int64_t hostmem_available(void)
{
    int64_t available = read_number("/proc/meminfo", "MemAvailable:");
    available = available < 0 ? INT64_MAX : available * 1024;
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        char group[512];
        own_group(&versions[i], group, sizeof group);
        for (;;) { /* its own limit and those of all above it */
            int64_t left = limit_left(&versions[i], group);
            if (left < available) available = left;
            if (!group[0]) break;
            *strrchr(group, '/') = 0;
        }
    }
    return available > 0 ? available : 0;
}

int64_t hostmem_oom_kills(void)
{
    int64_t n = read_number("/proc/vmstat", "oom_kill ");
    return n > 0 ? n : 0;
}
