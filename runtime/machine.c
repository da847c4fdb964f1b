#include "runtime/machine.h"

#include <errno.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

#define GIB ((double)(1 << 30))
#define MIB ((double)(1 << 20))
#define LINK_SHARE 0.8 /* of a link's bandwidth that an all-reduce reaches */

/* Memory as nvidia-smi shows it; bandwidth and bf16 rates (dense) of NVIDIA's data sheets; where every number is
 * from: docs/planning.md. */
static const struct device_row {
    const char *name;
    double memory_mib, tb_s, tflops, nvlink_gb_s;
} devices[] = {
    {"h100", 81559, 3.35, 989, 450},
    {"h200", 143771, 4.8, 989, 450},
    {"a100", 81920, 2.039, 312, 300},
    {"b200", 183359, 8.0, 2250, 900},
};

static const struct link_row {
    const char *name;
    double base_us, rank_us, gb_s; /* gb_s 0: the device's NVLink */
} links[] = {
    {"nvlink", 8, 1.35, 0},
    {"infiniband", 22, 1.35, 50},
};

void machine_curve_add(struct curve *c, double x, double y)
{
    if (c->n == MACHINE_POINTS) return;
    int i = c->n++;
    for (; i > 0 && c->x[i - 1] > x; i--) {
        c->x[i] = c->x[i - 1];
        c->y[i] = c->y[i - 1];
    }
    c->x[i] = x;
    c->y[i] = y;
}

double machine_curve_at(const struct curve *c, double x)
{
    ASSERT(c->n > 0);
    if (x <= c->x[0]) return c->y[0];
    for (int i = 1; i < c->n; i++)
        if (x <= c->x[i])
            return c->y[i - 1] + (c->y[i] - c->y[i - 1]) * (x - c->x[i - 1]) / (c->x[i] - c->x[i - 1]);
    return c->y[c->n - 1];
}

double machine_curve_time(const struct curve *c, double x)
{
    double last = c->x[c->n - 1];
    return x > last && last > 0 ? c->y[c->n - 1] * x / last : machine_curve_at(c, x);
}

double machine_all_reduce_us(const struct machine *m, int n_ranks, double bytes)
{
    if (n_ranks == 1) return 0;
    if (m->all_reduce_us.n > 0) return machine_curve_time(&m->all_reduce_us, bytes);
    return m->link_base_us + m->link_rank_us * (n_ranks - 1) +
           2.0 * (n_ranks - 1) / n_ranks * bytes / m->link_bytes_s * 1e6;
}

void machine_measure(struct machine *m, struct device *d, int n_ranks)
{
    const struct ops *op = device_ops(d);
    const size_t bytes = (size_t)256 << 20;
    void *p = op->mem_alloc(d, bytes);
    if (!p) DIE(EXIT_CODE_MEMORY, "name a machine file instead of cpu", "no memory to measure with");
    op->fill(d, p, 1, bytes); /* untouched pages are one page of zeros */
    int64_t best = INT64_MAX, until = clock_us() + 200000;
    while (clock_us() < until) {
        int64_t begun = clock_us(), took;
        op->read_bytes(d, p, bytes);
        op->sync(d);
        took = clock_us() - begun;
        best = took < best ? took : best;
    }
    op->mem_free(d, p, bytes);
    *m = (struct machine){.memory_bytes = (double)op->mem_available(d) / n_ranks,
                          .read_bytes_s = (double)bytes * 1e6 / (double)(best > 0 ? best : 1) / n_ranks,
                          .gemm_share = 0.85,
                          .attention_share = 0.85,
                          .flops_share = 1,
                          .launch_us = 5,
                          .link_base_us = 2,
                          .link_rank_us = 2,
                          .link_bytes_s = 5e9};
    snprintf(m->name, sizeof m->name, "cpu");
    snprintf(m->link, sizeof m->link, "shared memory");
}

/* ------------------------------------------------------------------------------------------ files */
struct number_field {
    const char *name;
    size_t offset;
};
#define FIELD(name)                                                                                          \
    {                                                                                                        \
#name, offsetof(struct machine, name)                                                                \
    }
static const struct number_field fields[] = {
    FIELD(memory_bytes),
    FIELD(reserve_bytes),
    FIELD(read_bytes_s),
    FIELD(flops_s),
    FIELD(gemm_share),
    FIELD(attention_share),
    FIELD(flops_share),
    FIELD(launch_us),
    FIELD(step_us),
    FIELD(link_base_us),
    FIELD(link_rank_us),
    FIELD(link_bytes_s),
    FIELD(link_reserve_bytes),
};

static enum status read_object(struct machine *m, const json_t *j, const char *file, struct reason *why)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value)
    {
        if (strcmp(key, "name") == 0 && json_is_string(value)) {
            snprintf(m->name, sizeof m->name, "%s", json_string_value(value));
            continue;
        }
        size_t i = 0;
        while (i < sizeof fields / sizeof *fields && strcmp(fields[i].name, key) != 0) i++;
        if (i == sizeof fields / sizeof *fields || !json_is_number(value) || json_number_value(value) < 0)
            return status_fail(
                why, STATUS_BAD_OPTION,
                "%s: %s: not a field of a machine with a number at least 0; see docs/planning.md", file, key);
        *(double *)((char *)m + fields[i].offset) = json_number_value(value);
    }
    if (m->read_bytes_s > 0) return STATUS_OK;
    return status_fail(why, STATUS_BAD_OPTION, "%s: read_bytes_s is missing", file);
}

static double number(const json_t *j, const char *key) { return json_number_value(json_object_get(j, key)); }

/* A line of `retro bench kernels --json`; rates there are sums over the ranks. */
static void read_line(struct machine *m, const json_t *j)
{
    const char *test = json_string_value(json_object_get(j, "test"));
    double ranks = number(j, "ranks"), rate = number(j, "gb_s") * 1e9 / (ranks > 0 ? ranks : 1);
    if (!test) return;
    if (strcmp(test, "read") == 0) {
        m->read_bytes_s = rate;
    } else if (strcmp(test, "gemm") == 0) {
        const char *matrix = json_string_value(json_object_get(j, "matrix"));
        if (matrix && strcmp(matrix, "all") == 0)
            machine_curve_add(&m->gemm_by_rows, number(j, "rows"), rate);
    } else if (strcmp(test, "attention") == 0) {
        const char *policy = json_string_value(json_object_get(j, "policy"));
        bool dense = policy && strcmp(policy, "dense") == 0;
        /* Time and bytes of one rank: shards may be uneven. */
        machine_curve_add(dense ? &m->dense_us : &m->sparse_us, number(j, "rank_bytes"),
                          number(j, "ms") * 1e3);
        machine_curve_add(&m->rest_us, number(j, "rows"), number(j, "rest_ms") * 1e3);
        m->rest_size = number(j, "rest_size");
    } else if (strcmp(test, "allreduce") == 0) {
        machine_curve_add(&m->all_reduce_us, number(j, "bytes"), number(j, "us"));
    }
}

enum status machine_parse(struct machine *m, const char *text, const char *file, struct reason *why)
{
    *m = (struct machine){.gemm_share = 1, .attention_share = 1, .flops_share = 1, .link_bytes_s = 1e10};
    snprintf(m->name, sizeof m->name, "%s", file);
    snprintf(m->link, sizeof m->link, "of the file");
    json_error_t error;
    json_t *whole = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (json_is_object(whole) && !json_object_get(whole, "test")) {
        enum status status = read_object(m, whole, file, why);
        json_decref(whole);
        return status;
    }
    json_decref(whole);
    for (int line = 1; *text; line++) {
        size_t n = strcspn(text, "\n");
        json_t *j = n ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &error) : NULL;
        if (n && !json_is_object(j)) {
            json_decref(j);
            return status_fail(why, STATUS_BAD_OPTION,
                               "%s:%d: neither a machine nor a line of retro bench kernels --json", file,
                               line);
        }
        if (j) read_line(m, j);
        json_decref(j);
        text += n + (text[n] == '\n');
    }
    if (m->read_bytes_s > 0 && m->gemm_by_rows.n > 0 && m->dense_us.n > 0) return STATUS_OK;
    return status_fail(
        why, STATUS_BAD_OPTION,
        "%s: has no lines of read, gemm and attention: make it with retro bench kernels --json", file);
}

static enum status read_file(char **text, const char *file, struct reason *why)
{
    enum { BYTES_MAX = 1 << 22 };
    FILE *f = fopen(file, "r");
    if (!f)
        return status_fail(
            why, STATUS_BAD_OPTION,
            "%s: neither h100, h200, a100, b200, cpu (link: nvlink, infiniband) nor a file: %s", file,
            strerror(errno));
    *text = calloc(1, BYTES_MAX + 1);
    if (!*text) DIE(EXIT_CODE_MEMORY, NULL, "no memory to read %s", file);
    size_t n = fread(*text, 1, BYTES_MAX, f);
    bool bad = ferror(f) || !feof(f);
    fclose(f);
    if (!bad && n > 0) return STATUS_OK;
    free(*text);
    return status_fail(why, STATUS_BAD_OPTION, "%s: cannot be read, is empty or has more than 4 MiB", file);
}

static void take_link(struct machine *m, const struct link_row *l, double nvlink_gb_s)
{
    snprintf(m->link, sizeof m->link, "%s", l->name);
    m->link_base_us = l->base_us;
    m->link_rank_us = l->rank_us;
    m->link_bytes_s = (l->gb_s > 0 ? l->gb_s : nvlink_gb_s > 0 ? nvlink_gb_s : 450) * LINK_SHARE * 1e9;
    m->link_reserve_bytes = 0.5 * GIB;
    m->all_reduce_us.n = 0;
}

static enum status find_link(struct machine *m, const char *name, double nvlink_gb_s, struct reason *why)
{
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (strcmp(links[i].name, name) == 0) {
            take_link(m, &links[i], nvlink_gb_s);
            return STATUS_OK;
        }
    char *text;
    struct machine other = {.read_bytes_s = 1};
    enum status status = read_file(&text, name, why);
    if (status != STATUS_OK) return status;
    json_error_t error;
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(j))
        status = status_fail(why, STATUS_BAD_OPTION, "%s: not one JSON object with link_base_us, ...", name);
    else status = read_object(&other, j, name, why);
    if (status == STATUS_OK && !(other.link_bytes_s > 0))
        status = status_fail(why, STATUS_BAD_OPTION, "%s: link_bytes_s is missing", name);
    json_decref(j);
    free(text);
    if (status != STATUS_OK) return status;
    snprintf(m->link, sizeof m->link, "%s", name);
    m->link_base_us = other.link_base_us;
    m->link_rank_us = other.link_rank_us;
    m->link_bytes_s = other.link_bytes_s;
    m->link_reserve_bytes = other.link_reserve_bytes;
    m->all_reduce_us.n = 0;
    return STATUS_OK;
}

enum status machine_find(struct machine *m, const char *name, const char *link, struct reason *why)
{
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        const struct device_row *d = &devices[i];
        if (strcmp(d->name, name) != 0) continue;
        *m = (struct machine){.memory_bytes = d->memory_mib * MIB,
                              .reserve_bytes = 0.55 * GIB,
                              .read_bytes_s = d->tb_s * 1e12,
                              .flops_s = d->tflops * 1e12,
                              .gemm_share = 0.85,
                              .attention_share = 0.85,
                              .flops_share = 0.5,
                              .launch_us = 3.3,
                              .step_us = 150};
        snprintf(m->name, sizeof m->name, "%s", name);
        return find_link(m, link ? link : "nvlink", d->nvlink_gb_s, why);
    }
    char *text;
    enum status status = read_file(&text, name, why);
    if (status != STATUS_OK) return status;
    status = machine_parse(m, text, name, why);
    free(text);
    return status == STATUS_OK && link ? find_link(m, link, 0, why) : status;
}
