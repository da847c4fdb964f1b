/* doctor_json.c - the whole of a `retro doctor` as one object. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/doctor.h"
#include "runtime/base/die.h"

static json_t *bytes_json(int64_t bytes) { return bytes < 0 ? json_null() : json_integer(bytes); }

static json_t *cuda_json(const struct doctor_facts *f)
{
    const struct device_gpu *g = &f->gpu;
    if (!f->has_cuda) return json_null();
    json_t *gpu = json_null();
    if (g->n_visible > 0)
        gpu = json_pack("{s:i, s:s, s:s, s:i, s:I}", "number", g->number, "name", g->name, "uuid", g->uuid,
                        "sm", g->capability, "memory_bytes", (json_int_t)g->memory_bytes);
    return json_pack("{s:i, s:s, s:s, s:s, s:i, s:o, s:s}", "driver_supports", g->driver, "runtime", f->cuda,
                     "cublas", f->blas, "nccl", f->nccl, "gpus_visible", g->n_visible, "gpu", gpu, "problem",
                     g->problem);
}

static json_t *ranks_json(const struct doctor_facts *all, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        const struct doctor_facts *f = &all[i];
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:f, s:f, s:f, s:o}",
                                        "rank", i, "host", f->host, "version", f->version, "mpi", f->mpi,
                                        "interface", f->interface, "address", f->address, "cores", f->cores,
                                        "threads", f->threads, "available_bytes", (json_int_t)f->available,
                                        "clock_skew_s", (double)f->skew_us * 1e-6, "memory_gb_s",
                                        f->memory_gb_s, "file_gb_s", f->file_gb_s, "cuda", cuda_json(f)));
    }
    return list;
}

static json_t *smi_gpus_json(const struct doctor_smi *s)
{
    json_t *list = json_array();
    for (int i = 0; i < s->n_gpus; i++) {
        const struct doctor_smi_gpu *g = &s->gpu[i];
        json_t *users = json_array();
        for (int h = 0; h < s->n_holders; h++)
            if (strcmp(s->holder[h].uuid, g->uuid) == 0)
                json_array_append_new(users,
                                      json_pack("{s:i, s:s, s:o}", "pid", s->holder[h].pid, "name",
                                                s->holder[h].name, "bytes", bytes_json(s->holder[h].bytes)));
        json_array_append_new(list, json_pack("{s:i, s:s, s:s, s:o, s:o, s:o, s:o}", "number", g->number,
                                              "uuid", g->uuid, "name", g->name, "memory_bytes",
                                              bytes_json(g->total), "used_bytes", bytes_json(g->used),
                                              "free_bytes", bytes_json(g->free), "processes", users));
    }
    return list;
}

static json_t *hosts_json(const struct doctor_facts *all, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        const struct doctor_facts *f = &all[i];
        if (f->node_rank != 0) continue;
        json_array_append_new(list, json_pack("{s:s, s:i, s:s, s:o, s:s}", "host", f->host, "ranks",
                                              f->node_size, "gpu_driver", f->smi.driver, "gpus",
                                              smi_gpus_json(&f->smi), "nvidia_smi", f->smi.problem));
    }
    return list;
}

static json_t *transports_json(const struct doctor_transport *t, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        json_t *rows = json_array();
        for (int s = 0; s < DOCTOR_SIZES; s++) {
            const struct bench_reduce *m = &t[i].timing[s];
            json_array_append_new(rows, json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:b}", "bytes",
                                                  (json_int_t)t[i].bytes[s], "us", m->us, "us_p10", m->us_low,
                                                  "us_p90", m->us_high, "gb_s", m->gb_s, "bus_gb_s",
                                                  m->bus_gb_s, "right", m->right));
        }
        json_array_append_new(list, json_pack("{s:s, s:o}", "transport", t[i].name, "sizes", rows));
    }
    return list;
}

void doctor_print_json(const struct doctor_report *r, const struct doctor_facts *all, int n,
                       const struct doctor_transport *t, int n_transports)
{
    json_t *lines = json_array();
    for (int i = 0; i < r->n_lines; i++)
        json_array_append_new(lines,
                              json_pack("{s:s, s:s, s:s}", "verdict", doctor_verdict_name(r->line[i].verdict),
                                        "name", r->line[i].name, "text", r->line[i].text));
    json_t *j = json_pack("{s:s, s:o, s:o, s:o, s:o}", "verdict", doctor_verdict_name(doctor_worst(r)),
                          "lines", lines, "ranks", ranks_json(all, n), "hosts", hosts_json(all, n),
                          "all_reduce", transports_json(t, n_transports));
    ASSERT(j);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}
