#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher/boot.h"
#include "launcher/doctor.h"
#include "launcher/session.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/hostmem.h"

/* Enough to be past the caches, little beside what a rank holds; a quarter of a second on one core. */
enum { MEMORY_MIB = 512, FILE_MIB = 128, THREADS_MAX = 256 };

static int64_t limit_of(int what)
{
    struct rlimit l;
    if (getrlimit((__rlimit_resource_t)what, &l) != 0 || l.rlim_cur == RLIM_INFINITY) return -1;
    return (int64_t)l.rlim_cur;
}

/* The word in brackets: "always [madvise] never". */
static void look_at_huge_pages(struct doctor_facts *f)
{
    char line[128] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (file && fgets(line, sizeof line, file) && strchr(line, '['))
        sscanf(strchr(line, '[') + 1, "%15[^]]", f->huge);
    if (file) fclose(file);
    file = fopen("/proc/sys/vm/nr_hugepages", "r");
    long long n = 0;
    if (file && fscanf(file, "%lld", &n) == 1) f->huge_pages = n;
    if (file) fclose(file);
}

void doctor_look(struct doctor_facts *f, const struct options *o, const struct comm_world *w)
{
    *f = (struct doctor_facts){.node_rank = w->node_rank, .node_size = w->node_size};
    snprintf(f->host, sizeof f->host, "%s", w->host);
    snprintf(f->version, sizeof f->version, "%s", RETRO_VERSION);
    comm_mpi_version(f->mpi, sizeof f->mpi);
    cpu_set_t set;
    f->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    f->host_cores = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    f->threads = session_threads(o, w);
    f->yields = boot_yields();
    f->notices_s = boot_mpirun_notices_s();
    f->memlock = limit_of(RLIMIT_MEMLOCK);
    f->files_max = limit_of(RLIMIT_NOFILE);
    f->available = hostmem_available();
    look_at_huge_pages(f);
    f->wants_gpu = o->device == DEVICE_CUDA;
    doctor_look_at_gpus(f);
}

/* ---- the model folder */

static bool largest_weights(const char *dir, char *path, size_t bytes, int64_t *size)
{
    DIR *d = opendir(dir);
    if (!d) return false;
    *size = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char candidate[4096];
        struct stat s;
        const char *dot = strrchr(e->d_name, '.');
        if (!dot || strcmp(dot, ".safetensors") != 0) continue;
        snprintf(candidate, sizeof candidate, "%s/%s", dir, e->d_name);
        if (stat(candidate, &s) != 0 || s.st_size <= *size) continue;
        *size = s.st_size;
        snprintf(path, bytes, "%s", candidate);
    }
    closedir(d);
    if (*size == 0) errno = 0; /* the folder is there */
    return *size > 0;
}

void doctor_read_file(struct doctor_facts *f, const char *dir, const struct comm_world *w)
{
    enum { CHUNK = 4 << 20 };
    char path[4096];
    int64_t size;
    int file = -1;
    if (largest_weights(dir, path, sizeof path, &size)) file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        snprintf(f->file_error, sizeof f->file_error, "%.100s: %.50s", dir,
                 errno ? strerror(errno) : "holds no *.safetensors that can be read");
        return;
    }
    char *buffer = malloc(CHUNK);
    if (!buffer) DIE(EXIT_CODE_MEMORY, NULL, "no memory to read a file");
    int64_t part = size / w->size, from = part * w->rank, most = (int64_t)FILE_MIB << 20, got = 0;
    if (part > most) part = most;
    /* Otherwise this is the speed of the page cache. */
    posix_fadvise(file, from, part, POSIX_FADV_DONTNEED);
    int64_t begun = clock_us();
    while (got < part) {
        ssize_t n = pread(file, buffer, part - got < CHUNK ? (size_t)(part - got) : CHUNK, from + got);
        if (n <= 0) break;
        got += n;
    }
    f->file_gb_s = (double)got * 1e-3 / (double)(clock_us() - begun + 1);
    if (got < part)
        snprintf(f->file_error, sizeof f->file_error, "%.100s: read stopped: %.40s", path, strerror(errno));
    free(buffer);
    close(file);
}

/* ---- memory */

struct reader {
    pthread_t thread;
    const uint64_t *from;
    size_t n;
    uint64_t sum;
};

static void *read_part(void *argument)
{
    struct reader *r = argument;
    for (size_t i = 0; i < r->n; i++) r->sum += r->from[i];
    return NULL;
}

static double read_once(const uint64_t *all, size_t n, int n_threads)
{
    struct reader reader[THREADS_MAX];
    size_t part = n / (size_t)n_threads;
    int64_t begun = clock_us();
    int started = 0;
    for (int t = 0; t < n_threads; t++) {
        reader[t] = (struct reader){.from = all + (size_t)t * part, .n = part};
        if (t == 0) continue;
        if (pthread_create(&reader[t].thread, NULL, read_part, &reader[t]) != 0) break;
        started = t;
    }
    read_part(&reader[0]);
    for (int t = 1; t <= started; t++) pthread_join(reader[t].thread, NULL);
    return (double)(part * (size_t)(started + 1) * sizeof *all) * 1e-3 / (double)(clock_us() - begun + 1);
}

void doctor_read_memory(struct doctor_facts *f)
{
    int64_t bytes = (int64_t)MEMORY_MIB << 20, share = f->available / (4 * f->node_size);
    if (share < bytes) bytes = share;
    size_t n = (size_t)bytes / sizeof(uint64_t);
    uint64_t *all = mmap(NULL, n * sizeof *all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return;
    memset(all, 1, n * sizeof *all); /* untouched pages are one page of zeros */
    int n_threads = f->threads < THREADS_MAX ? f->threads : THREADS_MAX;
    for (int i = 0; i < 3; i++) {
        double speed = read_once(all, n, n_threads);
        if (speed > f->memory_gb_s) f->memory_gb_s = speed;
    }
    munmap(all, n * sizeof *all);
}
