/* cmd_bench.c - `retro bench decode | prefill | kernels | allreduce`: options to runs of runtime/bench, each
 * measurement printed when it is there, as a table row or as one JSON object a line. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/bench.h"

static const int BENCH_CONTEXT_MAX = 1 << 24;

static void print_line(json_t *j)
{
    ASSERT(j);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(8));
    ASSERT(text);
    puts(text);
    fflush(stdout);
    free(text);
    json_decref(j);
}

static const char *model_name(const struct options *o) { return o->model ? o->model : "1B shape"; }

static int largest(const struct option_ints *v)
{
    int most = 0;
    for (int i = 0; i < v->n; i++) most = v->value[i] > most ? v->value[i] : most;
    return most;
}

/* From options to a loaded session. Without --model it is the 1B shape, whose weights can only be random. */
struct bench {
    struct options options;
    struct session session;
};

/* Collective; `context` and `n_slots` are what rank 0 found in the options. */
static enum status bench_open(struct bench *b, const struct options *o, const struct comm_world *w,
                              enum status status, int context, int n_slots, struct reason *why)
{
    b->options = *o;
    if (!o->model) b->options.random_weights = true;
    struct reason later;
    enum status prepared = session_prepare(&b->session, &b->options, w, status == STATUS_OK ? why : &later);
    if (status == STATUS_OK) status = prepared;
    status = session_agree(&b->session, status, &context, why);
    if (status != STATUS_OK) return status;
    status = session_load(&b->session, context, n_slots, why);
    if (status != STATUS_OK) session_fail(w, status, why);
    return status;
}

/* ------------------------------------------------------------------------------------------ decode */
static void print_decode_head(const struct session *s)
{
    printf("%s, %s, %d rank%s, %s KV, page %d\n\n", model_name(s->options), device_describe(s->model->device),
           s->world.size, s->world.size == 1 ? "" : "s", dtype_name(s->model->dims.kv), s->model->dims.P);
    printf(
        "| context | batch | policy    | window | budget |      t/s | step ms |  10%% - 90%%       | floor "
        "ms "
        "| floor/step | exposure |\n"
        "|--------:|------:|-----------|-------:|-------:|---------:|--------:|------------------|---------:"
        "|-----------:|---------:|\n");
    fflush(stdout);
}

static json_t *common_json(const struct session *s, const char *test)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:s, s:i}", "test", test, "model", model_name(s->options),
                     "device", device_describe(s->model->device), "ranks", s->world.size, "threads",
                     s->threads, "kv_dtype", dtype_name(s->model->dims.kv), "page_size", s->model->dims.P);
}

static void print_decode(const struct session *s, int context, int batch, const struct bench_decode *r)
{
    const struct policy *p = &s->policy;
    if (!s->options->json) {
        char budget[16]; /* a fraction, or whole tokens */
        if (p->kv_budget_tokens > 0) snprintf(budget, sizeof budget, "%d", p->kv_budget_tokens);
        else snprintf(budget, sizeof budget, "%.3f", p->kv_budget);
        printf("| %7d | %5d | %-9s | %6d | %6s | %8.2f | %7.3f | %7.3f - %6.3f | %8.3f | %10.2f | %8.2f |\n",
               context, batch, policy_kind_name(p->kind), p->window, budget, r->tokens_per_s, r->step_ms,
               r->step_ms_low, r->step_ms_high, r->floor_ms, r->floor_ms / r->step_ms, r->exposure);
        fflush(stdout);
        return;
    }
    json_t *j = common_json(s, "decode");
    json_t *more = json_pack(
        "{s:i, s:i, s:s, s:i, s:f, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "context",
        context, "batch", batch, "policy", policy_kind_name(p->kind), "window", p->window, "kv_budget",
        p->kv_budget, "kv_budget_tokens", p->kv_budget_tokens, "tokens", s->options->bench_tokens,
        "tokens_per_s", r->tokens_per_s, "step_ms", r->step_ms, "step_ms_p10", r->step_ms_low, "step_ms_p90",
        r->step_ms_high, "floor_ms", r->floor_ms, "bytes", r->bytes, "read_gb_s", r->read_rate * 1e-9,
        "exposure", r->exposure, "kv_read_share", r->kv_read_share);
    json_object_update(j, more);
    json_decref(more);
    print_line(j);
}

int cmd_bench_decode(const struct options *o, const struct comm_world *w)
{
    struct bench b;
    struct reason why;
    struct option_ints contexts, batches;
    enum status status = options_ints(&contexts, "contexts", o->contexts, 0, BENCH_CONTEXT_MAX, &why);
    if (status == STATUS_OK) status = options_ints(&batches, "batches", o->batches, 1, 4096, &why);
    int context = 0, n_slots = 1;
    if (status == STATUS_OK) {
        context = largest(&contexts) + 1 + BENCH_WARMUP + o->bench_tokens;
        n_slots = largest(&batches);
    }
    status = bench_open(&b, o, w, status, context, n_slots, &why);
    struct session *s = &b.session;
    if (status == STATUS_OK && w->rank != 0) engine_follow(s->engine);
    if (status == STATUS_OK && w->rank == 0) {
        if (!o->json) print_decode_head(s);
        for (int i = 0; i < contexts.n; i++)
            for (int k = 0; k < batches.n; k++) {
                struct bench_decode r;
                bench_decode_run(s->engine, s->model, &s->policy, contexts.value[i], batches.value[k],
                                 o->bench_tokens, &r);
                print_decode(s, contexts.value[i], batches.value[k], &r);
            }
    }
    session_close(s);
    return status_exit_code(status);
}

/* ------------------------------------------------------------------------------------------ prefill */
static void print_prefill(const struct session *s, int n, double gemm_flops, const struct bench_prefill *r)
{
    if (!s->options->json) {
        printf("| %7d | %9.1f | %9.2f | %9.2f | %10.2f |\n", n, r->tokens_per_s, r->ms, r->floor_ms,
               r->floor_ms / r->ms);
        fflush(stdout);
        return;
    }
    json_t *j = common_json(s, "prefill");
    json_t *more =
        json_pack("{s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "length", n, "chunk",
                  s->model->options.prefill_chunk, "tokens_per_s", r->tokens_per_s, "ms", r->ms, "floor_ms",
                  r->floor_ms, "flops", r->flops, "gemm_gflop_s", gemm_flops * 1e-9, "bytes", r->bytes);
    json_object_update(j, more);
    json_decref(more);
    print_line(j);
}

int cmd_bench_prefill(const struct options *o, const struct comm_world *w)
{
    struct bench b;
    struct reason why;
    struct option_ints lengths;
    enum status status = options_ints(&lengths, "lengths", o->lengths, 1, BENCH_CONTEXT_MAX, &why);
    status = bench_open(&b, o, w, status, status == STATUS_OK ? largest(&lengths) : 1, 1, &why);
    struct session *s = &b.session;
    double gemm_flops = 0;
    if (status == STATUS_OK) {
        int rows = s->model->options.prefill_chunk;
        gemm_flops = bench_gemm_peak(s->model, rows, o->repeat);
    }
    if (status == STATUS_OK && w->rank != 0) engine_follow(s->engine);
    if (status == STATUS_OK && w->rank == 0) {
        if (!o->json)
            printf("%s, %s, %d rank%s; GEMM of %d rows: %.1f GFLOP/s\n\n"
                   "|  length |       t/s |        ms |  floor ms | floor/time |\n"
                   "|--------:|----------:|----------:|----------:|-----------:|\n",
                   model_name(o), device_describe(s->model->device), w->size, w->size == 1 ? "" : "s",
                   s->model->options.prefill_chunk, gemm_flops * 1e-9);
        for (int i = 0; i < lengths.n; i++) {
            struct bench_prefill r;
            bench_prefill_run(s->engine, s->model, lengths.value[i], o->repeat, gemm_flops, &r);
            print_prefill(s, lengths.value[i], gemm_flops, &r);
        }
    }
    session_close(s);
    return status_exit_code(status);
}

/* ------------------------------------------------------------------------------------------ kernels */
static void print_rate(const struct session *s, const char *test, const char *what, json_t *more,
                       const struct bench_rate *r)
{
    if (s->world.rank != 0) {
        json_decref(more);
        return;
    }
    if (s->options->json) {
        json_t *j = common_json(s, test);
        json_object_update(j, more);
        json_t *rate = json_pack("{s:f, s:f, s:f, s:f, s:f}", "ms", r->ms, "bytes", r->bytes, "gb_s", r->gb_s,
                                 "read_gb_s", r->read_gb_s, "ratio", r->gb_s / r->read_gb_s);
        json_object_update(j, rate);
        json_decref(rate);
        print_line(j);
    } else {
        printf("| %-9s | %-28s | %9.3f | %8.2f | %8.2f | %5.2f |\n", test, what, r->ms, r->gb_s, r->read_gb_s,
               r->gb_s / r->read_gb_s);
        fflush(stdout);
    }
    json_decref(more);
}

static void bench_gemms(const struct session *s, const struct option_ints *rows)
{
    for (int i = 0; i < rows->n; i++)
        for (enum bench_matrix which = 0; which < BENCH_MATRIX_COUNT; which++) {
            struct bench_rate r;
            char what[64];
            bench_gemm_run(s->model, which, rows->value[i], s->options->repeat, &r);
            if (r.bytes <= 0) continue;
            snprintf(what, sizeof what, "%s, %d row%s", bench_matrix_name(which), rows->value[i],
                     rows->value[i] == 1 ? "" : "s");
            print_rate(s, "gemm", what,
                       json_pack("{s:s, s:i}", "matrix", bench_matrix_name(which), "rows", rows->value[i]),
                       &r);
        }
}

static void bench_attentions(const struct session *s, const struct option_ints *contexts,
                             const struct option_ints *batches)
{
    struct policy dense = s->policy;
    dense.kind = POLICY_DENSE;
    dense.window = 1;
    for (int i = 0; i < contexts->n; i++)
        for (int k = 0; k < batches->n; k++)
            for (int sparse = 0; sparse < 1 + (s->policy.kind != POLICY_DENSE); sparse++) {
                const struct policy *p = sparse ? &s->policy : &dense;
                struct bench_attention r;
                char what[64];
                bench_attention_run(s->model, p, contexts->value[i], batches->value[k], s->options->repeat,
                                    &r);
                snprintf(what, sizeof what, "%s w=%d, %d x %d", policy_kind_name(p->kind), p->window,
                         batches->value[k], contexts->value[i]);
                print_rate(s, "attention", what,
                           json_pack("{s:s, s:i, s:f, s:i, s:i, s:i, s:i, s:f, s:f, s:f}", "policy",
                                     policy_kind_name(p->kind), "window", p->window, "kv_budget",
                                     p->kv_budget, "kv_budget_tokens", p->kv_budget_tokens, "context",
                                     contexts->value[i], "batch", batches->value[k], "rows", r.rows,
                                     "rank_bytes", r.rank_bytes, "rest_ms", r.rest_ms, "rest_size",
                                     r.rest_size),
                           &r.rate);
            }
}

int cmd_bench_kernels(const struct options *o, const struct comm_world *w)
{
    struct bench b;
    struct reason why;
    struct option_ints contexts, batches, rows;
    enum status status = options_ints(&contexts, "contexts", o->contexts, 0, BENCH_CONTEXT_MAX, &why);
    if (status == STATUS_OK) status = options_ints(&batches, "batches", o->batches, 1, 4096, &why);
    if (status == STATUS_OK) status = options_ints(&rows, "rows", o->row_counts, 1, 512, &why);
    int context = 1, n_slots = 1;
    if (status == STATUS_OK) {
        context = largest(&contexts) + 1 + BENCH_WARMUP + o->repeat;
        if (context < largest(&rows)) context = largest(&rows);
        n_slots = largest(&batches);
    }
    status = bench_open(&b, o, w, status, context, n_slots, &why);
    struct session *s = &b.session;
    if (status == STATUS_OK) {
        struct bench_rate r;
        if (w->rank == 0 && !o->json)
            printf("%s, %s, %d rank%s\n\n"
                   "| test      | what                         |        ms |     GB/s |  reading | ratio |\n"
                   "|-----------|------------------------------|----------:|---------:|---------:|------:|\n",
                   model_name(o), device_describe(s->model->device), w->size, w->size == 1 ? "" : "s");
        bench_read_run(s->model, o->repeat, &r);
        print_rate(s, "read", "streaming read", json_object(), &r);
        bench_gemms(s, &rows);
        bench_attentions(s, &contexts, &batches);
    }
    session_close(s);
    return status_exit_code(status);
}

/* ------------------------------------------------------------------------------------------ all-reduce */
static void print_reduce(const struct options *o, const struct comm *c, const struct device *d, int bytes,
                         const struct bench_reduce *r)
{
    if (comm_rank(c) != 0) return;
    if (o->json)
        print_line(json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:b}", "test", "allreduce",
                             "device", device_describe(d), "group", comm_describe(c), "ranks", comm_size(c),
                             "bytes", bytes, "us", r->us, "us_p10", r->us_low, "us_p90", r->us_high, "gb_s",
                             r->gb_s, "bus_gb_s", r->bus_gb_s, "right", r->right));
    else
        printf("| %9d | %10.2f | %9.2f - %9.2f | %8.3f | %8.3f | %s |\n", bytes, r->us, r->us_low, r->us_high,
               r->gb_s, r->bus_gb_s, r->right ? "right" : "WRONG");
    fflush(stdout);
}

static enum status bench_sizes(const struct options *o, const struct comm_world *w, struct device *d,
                               const struct option_ints *sizes, bool *right, struct reason *why)
{
    const struct ops *op = device_ops(d);
    size_t most = (size_t)largest(sizes) / sizeof(float);
    struct comm *c = comm_open(w, w->size);
    enum status status = o->device == DEVICE_CUDA ? comm_use_nccl(c, w, o->start_timeout, why) : STATUS_OK;
    if (status != STATUS_OK) {
        comm_close(c);
        return status;
    }
    comm_reserve(c, most);
    float *buffer = op->mem_alloc(d, most * sizeof(float)), *host = op->host_alloc(d, most * sizeof(float));
    if (!buffer || !host) DIE(EXIT_CODE_MEMORY, "lower --sizes", "no memory for an all-reduce");
    if (w->rank == 0 && !o->json)
        printf("%s, %s\n\n"
               "|     bytes |         us |       10%% - 90%%       |     GB/s | bus GB/s | sums  |\n"
               "|----------:|-----------:|-----------------------|---------:|---------:|-------|\n",
               device_describe(d), comm_describe(c));
    for (int i = 0; i < sizes->n; i++) {
        struct bench_reduce r;
        bench_reduce_run(c, d, buffer, host, (size_t)sizes->value[i] / sizeof(float), &r);
        print_reduce(o, c, d, sizes->value[i], &r);
        *right = *right && r.right;
    }
    op->mem_free(d, buffer, most * sizeof(float));
    op->host_free(d, host, most * sizeof(float));
    comm_close(c);
    return STATUS_OK;
}

int cmd_bench_allreduce(const struct options *o, const struct comm_world *w)
{
    struct reason why;
    struct option_ints sizes;
    struct device *d;
    bool right = true;
    enum status status = options_ints(&sizes, "sizes", o->sizes, 4, 1 << 30, &why);
    for (int i = 0; status == STATUS_OK && i < sizes.n; i++)
        if (sizes.value[i] % (int)sizeof(float) != 0)
            status = status_fail(&why, STATUS_BAD_OPTION, "--sizes: %d is no whole number of float32",
                                 sizes.value[i]);
    if (status == STATUS_OK && o->tp != OPTIONS_UNSET && o->tp != w->size)
        status = status_fail(&why, STATUS_BAD_OPTION, "--tp %d: %d rank%s started; start with mpirun -n %d",
                             o->tp, w->size, w->size == 1 ? " was" : "s were", o->tp);
    struct device_options options = {.n_threads = 1, .ordinal = w->node_rank};
    if (status == STATUS_OK) status = device_open(&d, (enum device_kind)o->device, &options, &why);
    if (status != STATUS_OK) return session_fail(w, status, &why);
    status = bench_sizes(o, w, d, &sizes, &right, &why);
    device_close(d);
    if (status != STATUS_OK) return session_fail(w, status, &why);
    return right ? EXIT_CODE_OK : EXIT_CODE_BUG;
}
