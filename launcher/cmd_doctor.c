/* cmd_doctor.c - `retro doctor`: is this a place to run on? Every rank looks and measures, rank 0 compares. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/doctor.h"
#include "runtime/base/die.h"

/* 16 bytes to 16 MiB; 8 KiB is one row of a model with 2048 hidden dimensions. */
static const size_t sizes[DOCTOR_SIZES] = {4, 2048, 16384, 262144, 4194304};

struct doctor {
    const struct options *o;
    const struct comm_world *w;
    struct doctor_facts mine, *all; /* all: rank 0 */
    struct doctor_transport transport[DOCTOR_TRANSPORTS_MAX];
    int n_transports;
    struct doctor_report report;
};

/* ------------------------------------------------------------------------------------------ printing */
static void print_lines(const struct doctor_report *r, int from)
{
    for (int i = from; i < r->n_lines; i++)
        printf("%-5s %-15s %s\n", doctor_verdict_name(r->line[i].verdict), r->line[i].name, r->line[i].text);
}

static void print_transport(const struct doctor_transport *t)
{
    printf("\nall-reduce, %s\n%12s %12s %12s %12s %10s %10s\n", t->name, "bytes", "us", "10%", "90%", "GB/s",
           "bus GB/s");
    for (int s = 0; s < DOCTOR_SIZES; s++) {
        const struct bench_reduce *m = &t->timing[s];
        printf("%12lld %12.1f %12.1f %12.1f %10.2f %10.2f%s\n", (long long)t->bytes[s], m->us, m->us_low,
               m->us_high, m->gb_s, m->bus_gb_s, m->right ? "" : "  WRONG");
    }
}

/* ------------------------------------------------------------------------------------------ all-reduces */
/* Times a group on the device that its ranks have open, and judges its sums. */
static void time_group(struct doctor *p, struct comm *c, struct device *d)
{
    const struct ops *op = device_ops(d);
    struct doctor_transport *t = &p->transport[p->n_transports++];
    size_t most = sizes[DOCTOR_SIZES - 1];
    snprintf(t->name, sizeof t->name, "%s", comm_describe(c));
    comm_reserve(c, most);
    float *buffer = op->mem_alloc(d, most * sizeof(float)), *host = op->host_alloc(d, most * sizeof(float));
    if (!buffer || !host) DIE(EXIT_CODE_MEMORY, NULL, "no memory for an all-reduce of %zu elements", most);
    for (int s = 0; s < DOCTOR_SIZES; s++) {
        t->bytes[s] = (int64_t)(sizes[s] * sizeof(float));
        bench_reduce_run(c, d, buffer, host, sizes[s], &t->timing[s]);
    }
    op->mem_free(d, buffer, most * sizeof(float));
    op->host_free(d, host, most * sizeof(float));
    comm_close(c);
    if (p->w->rank == 0) doctor_judge_all_reduce(&p->report, t);
}

/* The group that a model would use on CPUs, and MPI beside it when that is another one. */
static void time_host_groups(struct doctor *p)
{
    struct reason why;
    struct device *d;
    const struct device_options one = {.n_threads = 1};
    if (p->w->size == 1) return;
    if (device_open(&d, DEVICE_CPU, &one, &why) != STATUS_OK) DIE(EXIT_CODE_BUG, NULL, "%s", why.text);
    time_group(p, comm_open(p->w, p->w->size), d);
    if (p->w->node_size == p->w->size) time_group(p, comm_open_mpi(p->w), d);
    device_close(d);
}

/* The first rank that cannot go on, on rank 0 with its reason; no rank goes on alone. */
static bool everywhere(struct doctor *p, enum status status, const struct reason *why)
{
    if (comm_world_max(status != STATUS_OK) == 0) return true;
    struct outcome {
        enum status status;
        struct reason why;
    } mine = {.status = status}, *all = calloc((size_t)p->w->size, sizeof *all);
    if (!all) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the reasons of %d ranks", p->w->size);
    if (status != STATUS_OK) mine.why = *why;
    comm_world_gather(p->w, &mine, sizeof mine, all);
    for (int i = 0; p->w->rank == 0 && i < p->w->size; i++) {
        if (all[i].status == STATUS_OK) continue;
        doctor_say(&p->report, DOCTOR_FAIL, "NCCL", "rank %d: %s", i, all[i].why.text);
        break;
    }
    free(all);
    return false;
}

/* Where every rank has a GPU of its own. Ranks that cannot connect end the job as a model's start would. */
static void time_nccl(struct doctor *p)
{
    struct reason why;
    struct device *d = NULL;
    const struct device_options mine = {.ordinal = p->w->node_rank};
    bool apart = p->w->rank != 0 || doctor_gpus_apart(p->all, p->w->size);
    if (p->w->size == 1 || comm_world_max(!apart) != 0) return;
    enum status status = device_open(&d, DEVICE_CUDA, &mine, &why);
    if (everywhere(p, status, &why)) {
        struct comm *c = comm_open(p->w, p->w->size);
        if (everywhere(p, comm_use_nccl(c, p->w, p->o->start_timeout, &why), &why)) time_group(p, c, d);
        else comm_close(c);
    }
    device_close(d);
}

/* ------------------------------------------------------------------------------------------ facts */
/* Collective. What every rank found, on rank 0. */
static void find_facts(struct doctor *p)
{
    const struct comm_world *w = p->w;
    int64_t *skew = calloc(2 * (size_t)w->size, sizeof *skew);
    p->all = calloc((size_t)w->size, sizeof *p->all);
    if (!p->all || !skew) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the facts of %d ranks", w->size);
    struct doctor_facts *mine = &p->mine;
    doctor_look(mine, p->o, w);
    comm_route_to_leader(w, mine->interface, sizeof mine->interface, mine->address, sizeof mine->address,
                         &mine->loopback);
    if (p->o->model) doctor_read_file(mine, p->o->model, w);
    comm_world_max(0); /* all at once, as in a step */
    doctor_read_memory(mine);
    comm_world_gather(w, mine, sizeof *mine, p->all);
    comm_clock_skew(w, skew, skew + w->size);
    for (int r = 0; r < w->size && w->rank == 0; r++) {
        p->all[r].skew_us = skew[r];
        p->all[r].round_trip_us = skew[w->size + r];
    }
    free(skew);
}

int cmd_doctor(const struct options *o, const struct comm_world *w)
{
    struct doctor *p = calloc(1, sizeof *p);
    if (!p) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a report");
    p->o = o;
    p->w = w;
    bool prints = w->rank == 0 && !o->json;
    int code = EXIT_CODE_OK, told = 0;
    find_facts(p);
    if (w->rank == 0) doctor_judge(&p->report, p->all, w->size);
    time_host_groups(p);
    if (prints) { /* before NCCL, whose failure may end the job here */
        print_lines(&p->report, 0);
        for (int i = 0; i < p->n_transports; i++) print_transport(&p->transport[i]);
        fflush(stdout);
        told = p->report.n_lines;
    }
    int host_groups = p->n_transports;
    time_nccl(p);
    if (prints) {
        if (p->report.n_lines > told) printf("\n");
        print_lines(&p->report, told);
        if (p->n_transports > host_groups) print_transport(&p->transport[host_groups]);
        printf("\n%s\n", doctor_verdict_name(doctor_worst(&p->report)));
    }
    if (w->rank == 0 && o->json)
        doctor_print_json(&p->report, p->all, w->size, p->transport, p->n_transports);
    if (w->rank == 0 && doctor_worst(&p->report) == DOCTOR_FAIL) code = EXIT_CODE_PEER;
    doctor_close(&p->report);
    free(p->all);
    free(p);
    return comm_world_max(code);
}
