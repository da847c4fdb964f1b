/* doctor_gpus.c - the GPUs of every rank, the libraries for them, and who else is on them.
 *
 * What this build would use comes from its own CUDA runtime; drivers, free memory and other processes from nvidia-smi,
 * which needs no context on the GPU. A host without it is one line that says so, not a failure. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "launcher/doctor.h"
#include "runtime/base/die.h"

#define MIB ((int64_t)1 << 20)
#define MINE_MIB 1024 /* memory in use of which no process is shown: what a driver takes for itself is less */

/* nvidia-smi on a GPU that has fallen off the bus may never answer. */
#define SMI "timeout 20 nvidia-smi --format=csv,noheader,nounits "

#ifdef RETRO_HAVE_CUDA
static const bool has_cuda = true;
#else
static const bool has_cuda = false;
#endif

/* ------------------------------------------------------------------------------------------ looking */
static void print_version(char text[16], int version)
{
    text[0] = 0;
    if (version > 0) snprintf(text, 16, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

/* The next field of a line of CSV; the last takes what is left. */
static const char *field(char **rest, bool last)
{
    char *start = *rest, *comma = last ? NULL : strstr(start, ", ");
    *rest = comma ? comma + 2 : start + strlen(start);
    if (comma) *comma = 0;
    return start;
}

/* MiB as bytes; -1 for "[N/A]". */
static int64_t mib_of(const char *text)
{
    char *end;
    long long n = strtoll(text, &end, 10);
    return end == text ? -1 : n * MIB;
}

static void read_gpu(struct doctor_smi *s, char *line)
{
    if (s->n_gpus == DOCTOR_GPUS_MAX) return;
    struct doctor_smi_gpu *g = &s->gpu[s->n_gpus++];
    snprintf(s->driver, sizeof s->driver, "%s", field(&line, false));
    g->number = atoi(field(&line, false));
    snprintf(g->uuid, sizeof g->uuid, "%s", field(&line, false));
    g->total = mib_of(field(&line, false));
    g->used = mib_of(field(&line, false));
    g->free = mib_of(field(&line, false));
    snprintf(g->name, sizeof g->name, "%s", field(&line, true));
}

static void read_holder(struct doctor_smi *s, char *line)
{
    if (s->n_holders == DOCTOR_HOLDERS_MAX) return;
    struct doctor_holder *h = &s->holder[s->n_holders++];
    snprintf(h->uuid, sizeof h->uuid, "%s", field(&line, false));
    h->pid = atoi(field(&line, false));
    h->bytes = mib_of(field(&line, false));
    snprintf(h->name, sizeof h->name, "%s", field(&line, true));
}

/* False, with a problem, when nvidia-smi is not there or fails. */
static bool ask(struct doctor_smi *s, const char *command, void (*take)(struct doctor_smi *, char *line))
{
    char line[512], first[64] = "";
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (!first[0]) snprintf(first, sizeof first, "%.63s", line);
        if (strstr(line, ", ")) take(s, line);
    }
    int status = f ? pclose(f) : -1, code = status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == 0) return true;
    s->n_gpus = s->n_holders = 0;
    if (code == 127) snprintf(s->problem, sizeof s->problem, "nvidia-smi is not on PATH");
    else if (code == 124) snprintf(s->problem, sizeof s->problem, "nvidia-smi does not answer");
    else
        snprintf(s->problem, sizeof s->problem, "nvidia-smi fails: %s", first[0] ? first : "it says nothing");
    return false;
}

void doctor_look_at_gpus(struct doctor_facts *f)
{
    f->has_cuda = has_cuda;
    device_find_gpu(&f->gpu, f->node_rank);
    print_version(f->cuda, f->gpu.runtime);
    print_version(f->blas, f->gpu.blas);
    print_version(f->nccl, comm_nccl_version());
    if (f->node_rank != 0) return;
    if (ask(&f->smi,
            SMI "--query-gpu=driver_version,index,uuid,memory.total,memory.used,memory.free,name 2>&1",
            read_gpu))
        ask(&f->smi, SMI "--query-compute-apps=gpu_uuid,pid,used_memory,process_name 2>&1", read_holder);
}

/* ------------------------------------------------------------------------------------------ judging */
/* Driver and libraries: the same ones everywhere, and the driver new enough for the runtime. */
static void judge_versions(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    doctor_judge_same(r, all, n, "CUDA runtime", offsetof(struct doctor_facts, cuda), DOCTOR_FAIL);
    doctor_judge_same(r, all, n, "cuBLAS", offsetof(struct doctor_facts, blas), DOCTOR_FAIL);
    doctor_judge_same(r, all, n, "NCCL", offsetof(struct doctor_facts, nccl), DOCTOR_FAIL);
    int first = -1;
    bool good = true;
    for (int i = 0; i < n && good; i++) {
        char here[16], there[16];
        const struct device_gpu *g = &all[i].gpu;
        if (g->driver == 0) continue; /* no driver at all: said with the GPUs */
        if (first < 0) first = i;
        print_version(here, g->driver);
        print_version(there, all[first].gpu.driver);
        /* A runtime runs on every driver of its major version. */
        if (g->driver / 10000 < g->runtime / 10000) {
            doctor_say(r, DOCTOR_FAIL, "CUDA driver",
                       "rank %d on %s: it knows CUDA up to %s, this build needs %s: update the driver", i,
                       all[i].host, here, all[i].cuda);
            good = false;
        } else if (g->driver != all[first].gpu.driver) {
            doctor_say(r, DOCTOR_WARN, "CUDA driver",
                       "CUDA up to %s on rank %d (%s), up to %s on rank %d (%s)", there, first,
                       all[first].host, here, i, all[i].host);
            good = false;
        }
    }
    if (!good || first < 0) return;
    char text[16];
    print_version(text, all[first].gpu.driver);
    doctor_say(r, DOCTOR_OK, "CUDA driver", "CUDA up to %s%s", text, n > 1 ? " on every rank" : "");
}

/* nvidia-smi's number of the driver, over hosts that have one. */
static void judge_drivers(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    int first = -1;
    for (int i = 0; i < n; i++) {
        if (!all[i].smi.driver[0]) continue;
        if (first < 0) first = i;
        if (strcmp(all[first].smi.driver, all[i].smi.driver) == 0) continue;
        doctor_say(r, DOCTOR_WARN, "GPU driver", "%s has %s, %s has %s: use the same everywhere",
                   all[first].host, all[first].smi.driver, all[i].host, all[i].smi.driver);
        return;
    }
    if (first >= 0) doctor_say(r, DOCTOR_OK, "GPU driver", "%s", all[first].smi.driver);
}

/* The first rank whose GPU is not there (*other -1) or is also that of rank *other; -1: none. */
static int misplaced(const struct doctor_facts *all, int n, int *other)
{
    for (int i = 0; i < n; i++) {
        *other = -1;
        if (all[i].gpu.n_visible == 0) return i;
        for (int k = 0; k < i; k++)
            if (strcmp(all[i].gpu.uuid, all[k].gpu.uuid) == 0) {
                *other = k;
                return i;
            }
    }
    return -1;
}

bool doctor_gpus_apart(const struct doctor_facts *all, int n)
{
    int other;
    return misplaced(all, n, &other) < 0;
}

/* Each rank has a GPU of its own, and they are alike. */
static void judge_places(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    int other, bad = misplaced(all, n, &other), tight = 0;
    enum doctor_verdict verdict = all[0].wants_gpu ? DOCTOR_FAIL : DOCTOR_WARN;
    const struct device_gpu *first = &all[0].gpu;
    if (bad >= 0 && other < 0)
        doctor_say(r, verdict, "GPUs", "rank %d on %s has none (%s): --device cpu only", bad, all[bad].host,
                   all[bad].gpu.problem);
    else if (bad >= 0)
        doctor_say(r, verdict, "GPUs",
                   "ranks %d and %d on %s would share one of %d, %s: for --device cuda start at most one "
                   "rank per GPU",
                   other, bad, all[bad].host, all[bad].gpu.n_visible, all[bad].gpu.uuid);
    if (bad >= 0) return;
    for (int i = 1; i < n; i++) {
        if (all[i].gpu.memory_bytes < all[tight].gpu.memory_bytes) tight = i;
        if (strcmp(all[i].gpu.name, first->name) == 0) continue;
        doctor_say(r, DOCTOR_WARN, "GPUs", "rank %d has %s, rank 0 %s: the slowest sets the pace", i,
                   all[i].gpu.name, first->name);
        return;
    }
    doctor_say(r, DOCTOR_OK, "GPUs", "%s%s, sm_%d, at least %.1f GiB", n > 1 ? "one a rank: " : "",
               first->name, first->capability, (double)all[tight].gpu.memory_bytes / (double)(1 << 30));
}

/* Appends; what does not fit is cut off. */
static void add(char *text, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void add(char *text, size_t bytes, const char *format, ...)
{
    size_t n = strlen(text);
    va_list ap;
    va_start(ap, format);
    vsnprintf(text + n, bytes - n, format, ap);
    va_end(ap);
}

static void print_bytes(char text[32], int64_t bytes)
{
    if (bytes < 0) snprintf(text, 32, "unknown");
    else snprintf(text, 32, "%.1f GiB", (double)bytes / (double)(1 << 30));
}

/* One line a GPU: memory, identity, and who holds it. */
static void judge_users(struct doctor_report *r, const struct doctor_facts *f)
{
    const struct doctor_smi *s = &f->smi;
    for (int g = 0; g < s->n_gpus; g++) {
        const struct doctor_smi_gpu *gpu = &s->gpu[g];
        char users[256] = "", free_text[32], total[32];
        for (int h = 0; h < s->n_holders; h++) {
            const struct doctor_holder *p = &s->holder[h];
            char held[32];
            if (strcmp(p->uuid, gpu->uuid) != 0) continue;
            print_bytes(held, p->bytes);
            add(users, sizeof users, "%s%d %.40s (%s)", users[0] ? ", " : "", p->pid, p->name, held);
        }
        bool unseen = !users[0] && gpu->used > MINE_MIB * MIB;
        print_bytes(free_text, gpu->free);
        print_bytes(total, gpu->total);
        doctor_say(r, users[0] || unseen ? DOCTOR_WARN : DOCTOR_OK, "GPU users",
                   "%s: GPU %d, %.60s, %s, %s free of %s%s%s", f->host, gpu->number, gpu->name, gpu->uuid,
                   free_text, total,
                   users[0] ? ", held by process "
                   : unseen ? ", in use by processes that are not shown here"
                            : ", nobody else on it",
                   users);
    }
}

void doctor_judge_gpus(struct doctor_report *r, const struct doctor_facts *all, int n)
{
    if (!all[0].has_cuda)
        doctor_say(r, all[0].wants_gpu ? DOCTOR_FAIL : DOCTOR_OK, "CUDA",
                   "not in this build; --device cpu only");
    else {
        judge_versions(r, all, n);
        judge_places(r, all, n);
    }
    judge_drivers(r, all, n);
    bool quiet = false;
    for (int i = 0; i < n; i++) {
        if (all[i].node_rank != 0) continue;
        judge_users(r, &all[i]);
        if (!all[i].smi.problem[0] || quiet || !all[i].has_cuda) continue;
        quiet = true; /* the other hosts have the same trouble, as a rule */
        doctor_say(r, all[i].gpu.n_visible > 0 ? DOCTOR_WARN : DOCTOR_OK, "GPU users",
                   "%s: %s: who holds GPUs is not known", all[i].host, all[i].smi.problem);
    }
}
