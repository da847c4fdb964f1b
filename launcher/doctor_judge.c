#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/doctor.h"
#include "runtime/base/die.h"
#include "runtime/buffer.h"

/* From where on a difference is worth a word. SKEW_US: log lines of two hosts cannot be put in order. SLOW: one
 * rank's reading against the fastest. LOW_MEMORY, LOW_FILES: below it a start is likely to fail. */
#define SKEW_US 500000
#define SLOW 0.5
#define LOW_MEMORY ((int64_t)2 << 30)
#define LOW_FILES 256
#define NOTICES_S 30.0

const char *doctor_verdict_name(enum doctor_verdict v)
{
    static const char *const names[DOCTOR_VERDICT_COUNT] = {"ok", "warn", "fail"};
    ASSERT(v >= 0 && v < DOCTOR_VERDICT_COUNT);
    return names[v];
}

void doctor_say(struct doctor_report *r, enum doctor_verdict v, const char *name, const char *format, ...)
{
    r->line = buffer_realloc(r->line, (size_t)r->n_lines + 1, sizeof *r->line);
    struct doctor_line *l = &r->line[r->n_lines++];
    l->verdict = v;
    snprintf(l->name, sizeof l->name, "%s", name);
    va_list ap;
    va_start(ap, format);
    vsnprintf(l->text, sizeof l->text, format, ap);
    va_end(ap);
}

void doctor_judge_same(struct doctor_report *r, const struct doctor_facts *all, int n, const char *name,
                       size_t offset, enum doctor_verdict worst)
{
    const char *first = (const char *)&all[0] + offset;
    for (int i = 1; i < n; i++) {
        const char *other = (const char *)&all[i] + offset;
        if (strcmp(first, other) == 0) continue;
        doctor_say(r, worst, name,
                   "rank 0 on %s has %.100s, rank %d on %s has %.100s: use the same everywhere", all[0].host,
                   first[0] ? first : "none", i, all[i].host, other[0] ? other : "none");
        return;
    }
    doctor_say(r, DOCTOR_OK, name, "%s%s", first[0] ? first : "none", n > 1 ? " on every rank" : "");
}

void doctor_close(struct doctor_report *r)
{
    free(r->line);
    *r = (struct doctor_report){0};
}

enum doctor_verdict doctor_worst(const struct doctor_report *r)
{
    enum doctor_verdict worst = DOCTOR_OK;
    for (int i = 0; i < r->n_lines; i++)
        if (r->line[i].verdict > worst) worst = r->line[i].verdict;
    return worst;
}

static bool same_host(const struct doctor_facts *a, const struct doctor_facts *b)
{
    return strcmp(a->host, b->host) == 0;
}

static int count_hosts(const struct doctor_facts *all, int n)
{
    int hosts = 0;
    for (int i = 0; i < n; i++) hosts += all[i].node_rank == 0;
    return hosts;
}

static void judge_network(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    if (count_hosts(all, n) == 1) {
        doctor_say(r, DOCTOR_OK, "network", "one host: ranks meet in shared memory");
        return;
    }
    for (int i = 1; i < n; i++) {
        if (same_host(&all[0], &all[i]) || all[i].node_rank != 0) continue;
        if (!all[i].interface[0])
            doctor_say(r, DOCTOR_FAIL, "network",
                       "%s has no route to rank 0's host %s: check addresses and routes", all[i].host,
                       all[0].host);
        else if (all[i].loopback)
            doctor_say(r, DOCTOR_FAIL, "network",
                       "%s would reach rank 0's host %s through loopback (%s): both use the same address",
                       all[i].host, all[0].host, all[i].address);
        else
            doctor_say(r, DOCTOR_OK, "network", "%s reaches %s through %s (%s), %.2f ms there and back",
                       all[i].host, all[0].host, all[i].interface, all[i].address,
                       (double)all[i].round_trip_us * 1e-3);
    }
    if (all[0].notices_s > NOTICES_S)
        doctor_say(r, DOCTOR_WARN, "mpirun",
                   "it notices a lost host after %.0f s: export OMPI_MCA_oob_tcp_keepalive_time=3, "
                   "OMPI_MCA_oob_tcp_keepalive_intvl=1 and OMPI_MCA_oob_tcp_keepalive_probes=3",
                   all[0].notices_s);
}

static void judge_clocks(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    int late = 0, early = 0;
    for (int i = 1; i < n; i++) {
        if (all[i].skew_us < all[late].skew_us) late = i;
        if (all[i].skew_us > all[early].skew_us) early = i;
    }
    int64_t apart = all[early].skew_us - all[late].skew_us;
    if (apart > SKEW_US)
        doctor_say(r, DOCTOR_WARN, "clocks", "at most %.3f s apart: %s and %s: run a time service",
                   (double)apart * 1e-6, all[late].host, all[early].host);
    else doctor_say(r, DOCTOR_OK, "clocks", "at most %.3f s apart", (double)apart * 1e-6);
}

static void judge_cores(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    bool good = true;
    int before = r->n_lines;
    for (int i = 0; i < n; i++) {
        const struct doctor_facts *f = &all[i];
        if (f->threads > f->host_cores) {
            good = false;
            doctor_say(r, DOCTOR_WARN, "binding",
                       "rank %d on %s has %d threads for %d cores: lower --threads", i, f->host, f->threads,
                       f->host_cores);
        } else if (f->threads > f->cores) {
            good = false;
            doctor_say(
                r, DOCTOR_WARN, "binding",
                "rank %d on %s has %d threads and may use %d of %d cores: start with mpirun --bind-to none, "
                "or "
                "--map-by slot:PE=%d",
                i, f->host, f->threads, f->cores, f->host_cores, f->threads);
        } else if (f->cores < f->host_cores && f->cores == 1 && f->node_size < f->host_cores) {
            good = false;
            doctor_say(
                r, DOCTOR_WARN, "binding",
                "rank %d on %s is bound to one of %d cores and %d rank%s there: start with mpirun --bind-to "
                "none",
                i, f->host, f->host_cores, f->node_size, f->node_size == 1 ? " is" : "s are");
        }
        if (r->n_lines - before == DOCTOR_LIKE_MAX) break;
    }
    if (good)
        doctor_say(r, DOCTOR_OK, "binding", "%d thread%s a rank, %d cores to run on", all[0].threads,
                   all[0].threads == 1 ? "" : "s", all[0].cores);
    for (int i = 0; i < n; i++) {
        const struct doctor_facts *f = &all[i];
        if (f->node_rank != 0 || f->node_size * f->threads <= f->host_cores || f->yields) continue;
        doctor_say(
            r, DOCTOR_WARN, "oversubscribed",
            "%s has %d cores for %d ranks of %d thread%s: export OMPI_MCA_mpi_yield_when_idle=1 (a sum "
            "between "
            "ranks takes milliseconds without), or start fewer",
            f->host, f->host_cores, f->node_size, f->threads, f->threads == 1 ? "" : "s");
        return;
    }
}

static void judge_huge_pages(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    int at = 0;
    while (at < n && strcmp(all[at].huge, "never") != 0) at++;
    if (at < n)
        doctor_say(r, DOCTOR_WARN, "huge pages",
                   "%s: transparent: never: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes "
                   "large models a little faster",
                   all[at].host);
    else
        doctor_say(r, DOCTOR_OK, "huge pages", "transparent: %s; reserved: %lld",
                   all[0].huge[0] ? all[0].huge : "unknown", (long long)all[0].huge_pages);
}

static void judge_memory(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    int low = 0, slow = 0, fast = 0;
    for (int i = 1; i < n; i++) {
        if (all[i].available < all[low].available) low = i;
        if (all[i].memory_gb_s < all[slow].memory_gb_s) slow = i;
        if (all[i].memory_gb_s > all[fast].memory_gb_s) fast = i;
    }
    doctor_say(r, all[low].available < LOW_MEMORY ? DOCTOR_WARN : DOCTOR_OK, "free memory",
               "at least %.1f GiB (%s)", (double)all[low].available / (1 << 30), all[low].host);
    bool uneven = all[slow].memory_gb_s < SLOW * all[fast].memory_gb_s;
    doctor_say(r, uneven ? DOCTOR_WARN : DOCTOR_OK, "memory speed",
               "%.1f GB/s a rank, all at once; slowest %.1f (rank %d on %s)%s", all[fast].memory_gb_s,
               all[slow].memory_gb_s, slow, all[slow].host, uneven ? ": is it alone on its cores?" : "");
    judge_huge_pages(r, all, n);
}

static void judge_limits(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    bool good = true;
    for (int i = 0; i < n; i++) {
        if (all[i].node_rank != 0) continue;
        if (all[i].memlock >= 0 && all[i].gpu.n_visible > 0) {
            doctor_say(
                r, DOCTOR_WARN, "memlock",
                "%s: %lld KiB: NCCL over InfiniBand needs ulimit -l unlimited (LimitMEMLOCK in slurmd's "
                "unit)",
                all[i].host, (long long)all[i].memlock >> 10);
            good = false;
        }
        if (all[i].files_max >= 0 && all[i].files_max < LOW_FILES + 2 * n) {
            doctor_say(r, DOCTOR_WARN, "open files", "%s: %lld: raise ulimit -n", all[i].host,
                       (long long)all[i].files_max);
            good = false;
        }
    }
    if (!good) return;
    char locked[32] = "unlimited";
    if (all[0].memlock >= 0) snprintf(locked, sizeof locked, "%lld KiB", (long long)all[0].memlock >> 10);
    doctor_say(r, DOCTOR_OK, "limits", "locked memory %s, open files %lld", locked,
               (long long)all[0].files_max);
}

static void judge_files(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    double sum = 0, slowest = 0;
    bool asked = false;
    for (int i = 0; i < n; i++) {
        if (all[i].file_error[0]) {
            doctor_say(r, DOCTOR_FAIL, "model files", "rank %d on %s: %s", i, all[i].host, all[i].file_error);
            return;
        }
        if (all[i].file_gb_s == 0) continue;
        asked = true;
        sum += all[i].file_gb_s;
        if (slowest == 0 || all[i].file_gb_s < slowest) slowest = all[i].file_gb_s;
    }
    if (asked)
        doctor_say(r, DOCTOR_OK, "model files",
                   "%.2f GB/s in all, slowest rank %.2f GB/s, each reading a part of its own", sum, slowest);
    else doctor_say(r, DOCTOR_OK, "model files", "not read: give --model DIR");
}

void doctor_judge(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    doctor_judge_same(r, all, n, "retro", offsetof(struct doctor_facts, version), DOCTOR_FAIL);
    doctor_judge_same(r, all, n, "MPI", offsetof(struct doctor_facts, mpi), DOCTOR_FAIL);
    doctor_judge_gpus(r, all, n);
    judge_network(r, all, n);
    judge_clocks(r, all, n);
    judge_cores(r, all, n);
    judge_memory(r, all, n);
    judge_limits(r, all, n);
    judge_files(r, all, n);
}

void doctor_judge_all_reduce(struct doctor_report *r, const struct doctor_transport *t)
{
    for (int s = 0; s < DOCTOR_SIZES; s++)
        if (!t->timing[s].right) {
            doctor_say(r, DOCTOR_FAIL, "all-reduce", "%s: wrong sums at %lld bytes: do not run models here",
                       t->name, (long long)t->bytes[s]);
            return;
        }
    doctor_say(r, DOCTOR_OK, "all-reduce", "%s: every sum is right", t->name);
}
