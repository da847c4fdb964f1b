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

static int64_t limit_left(const char *limit_file, const char *usage_file, const char *stat_file,
                          const char *cache_key)
{
    int64_t limit = read_number(limit_file, ""), usage = read_number(usage_file, "");
    if (limit < 0 || usage < 0) return INT64_MAX;
    int64_t cache = read_number(stat_file, cache_key); /* page cache gives way to us */
    return limit - usage + (cache > 0 ? cache : 0);
}

int64_t hostmem_available(void)
{
    int64_t available = read_number("/proc/meminfo", "MemAvailable:");
    available = available < 0 ? INT64_MAX : available * 1024;
    int64_t v2 = limit_left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                            "/sys/fs/cgroup/memory.stat", "file ");
    int64_t v1 = limit_left("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                            "/sys/fs/cgroup/memory/memory.stat", "total_cache ");
    if (v2 < available) available = v2;
    if (v1 < available) available = v1;
    return available;
}

int64_t hostmem_oom_kills(void)
{
    int64_t n = read_number("/proc/vmstat", "oom_kill ");
    return n > 0 ? n : 0;
}
