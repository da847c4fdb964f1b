/* cmd_doctor.c - `retro doctor`: is this a place to run on? Every rank looks and measures, rank 0 compares. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/doctor.h"
#include "runtime/base/die.h"

/* 16 bytes to 16 MiB; 8 KiB is one row of a model with 2048 hidden dimensions. */
static const size_t sizes[DOCTOR_SIZES] = {4, 2048, 16384, 262144, 4194304};

static void time_group(struct comm *c, struct doctor_transport *t)
{
    snprintf(t->name, sizeof t->name, "%s", comm_describe(c));
    comm_reserve(c, sizes[DOCTOR_SIZES - 1]);
    for (int s = 0; s < DOCTOR_SIZES; s++) comm_time_all_reduce(c, sizes[s], &t->timing[s]);
    comm_close(c);
}

/* The group that a model would use, and MPI beside it when that is another one. */
static int time_transports(const struct comm_world *w, struct doctor_transport t[2])
{
    if (w->size == 1) return 0;
    time_group(comm_open(w, w->size), &t[0]);
    if (w->node_size != w->size) return 1;
    time_group(comm_open_mpi(w), &t[1]);
    return 2;
}

static enum doctor_verdict worst_of(const struct doctor_report *r)
{
    enum doctor_verdict worst = DOCTOR_OK;
    for (int i = 0; i < r->n_lines; i++)
        if (r->line[i].verdict > worst) worst = r->line[i].verdict;
    return worst;
}

static double speed(const struct comm_timing *t) { return (double)t->bytes * 1e-3 / t->median_us; }

static void print_text(const struct doctor_report *r, const struct doctor_transport *t, int n_transports)
{
    for (int i = 0; i < r->n_lines; i++)
        printf("%-5s %-15s %s\n", doctor_verdict_name(r->line[i].verdict), r->line[i].name, r->line[i].text);
    for (int i = 0; i < n_transports; i++) {
        printf("\nall-reduce, %s\n%12s %12s %12s %10s\n", t[i].name, "bytes", "median us", "worst us",
               "GB/s");
        for (int s = 0; s < DOCTOR_SIZES; s++) {
            const struct comm_timing *m = &t[i].timing[s];
            printf("%12lld %12.1f %12.1f %10.2f\n", (long long)m->bytes, m->median_us, m->worst_us, speed(m));
        }
    }
    printf("\n%s\n", doctor_verdict_name(worst_of(r)));
}

static json_t *ranks_json(const struct doctor_facts *all, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        const struct doctor_facts *f = &all[i];
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:f, s:f, s:f}",
                                        "rank", i, "host", f->host, "version", f->version, "mpi", f->mpi,
                                        "driver", f->driver, "interface", f->interface, "address", f->address,
                                        "cores", f->cores, "threads", f->threads, "available_bytes",
                                        (json_int_t)f->available, "clock_skew_s", (double)f->skew_us * 1e-6,
                                        "memory_gb_s", f->memory_gb_s, "file_gb_s", f->file_gb_s));
    }
    return list;
}

static json_t *transports_json(const struct doctor_transport *t, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        json_t *rows = json_array();
        for (int s = 0; s < DOCTOR_SIZES; s++) {
            const struct comm_timing *m = &t[i].timing[s];
            json_array_append_new(rows, json_pack("{s:I, s:f, s:f, s:f, s:b}", "bytes", (json_int_t)m->bytes,
                                                  "median_us", m->median_us, "worst_us", m->worst_us, "gb_s",
                                                  speed(m), "correct", m->correct));
        }
        json_array_append_new(list, json_pack("{s:s, s:o}", "transport", t[i].name, "sizes", rows));
    }
    return list;
}

static void print_json(const struct doctor_report *r, const struct doctor_facts *all, int n,
                       const struct doctor_transport *t, int n_transports)
{
    json_t *lines = json_array();
    for (int i = 0; i < r->n_lines; i++)
        json_array_append_new(lines,
                              json_pack("{s:s, s:s, s:s}", "verdict", doctor_verdict_name(r->line[i].verdict),
                                        "name", r->line[i].name, "text", r->line[i].text));
    json_t *j = json_pack("{s:s, s:o, s:o, s:o}", "verdict", doctor_verdict_name(worst_of(r)), "lines", lines,
                          "ranks", ranks_json(all, n), "all_reduce", transports_json(t, n_transports));
    ASSERT(j);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

/* Collective. What every rank found, on rank 0. */
static struct doctor_facts *find_facts(const struct options *o, const struct comm_world *w)
{
    struct doctor_facts mine, *all = calloc((size_t)w->size, sizeof *all);
    int64_t *skew = calloc(2 * (size_t)w->size, sizeof *skew);
    if (!all || !skew) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the facts of %d ranks", w->size);
    doctor_look(&mine, o, w);
    comm_route_to_leader(w, mine.interface, sizeof mine.interface, mine.address, sizeof mine.address,
                         &mine.loopback);
    if (o->model) doctor_read_file(&mine, o->model, w);
    comm_world_max(0); /* all at once, as in a step */
    doctor_read_memory(&mine);
    comm_world_gather(w, &mine, sizeof mine, all);
    comm_clock_skew(w, skew, skew + w->size);
    for (int r = 0; r < w->size && w->rank == 0; r++) {
        all[r].skew_us = skew[r];
        all[r].round_trip_us = skew[w->size + r];
    }
    free(skew);
    return all;
}

int cmd_doctor(const struct options *o, const struct comm_world *w)
{
    struct doctor_report report = {.n_lines = 0};
    struct doctor_transport transport[2];
    struct doctor_facts *all = find_facts(o, w);
    int n_transports = time_transports(w, transport), code = EXIT_CODE_OK;
    if (w->rank == 0) {
        doctor_judge(&report, all, w->size);
        doctor_judge_all_reduce(&report, transport, n_transports);
        if (o->json) print_json(&report, all, w->size, transport, n_transports);
        else print_text(&report, transport, n_transports);
        if (worst_of(&report) == DOCTOR_FAIL) code = EXIT_CODE_PEER;
    }
    free(all);
    return comm_world_max(code);
}
