/* cmd_plan.c - `retro plan`: memory of each rank, what fits, time of a decode step and where it goes, and where sparse
 * reading pays, from config.json and a machine's numbers. Loads no weights and needs no device of that kind. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/plan.h"

static const double GIB = 1 << 30;

#define COMPARED                                                                                             \
    POLICY_STREAMING /* dense, quest, retro, those before it: side by side unless --policy names one */

struct plan {
    const struct options *o;
    struct model_files files;
    struct machine machine;
    struct policy policy;
    struct plan_setup setup;
    struct option_ints contexts, batches;
};

static struct policy policy_like(const struct plan *p, enum policy_kind kind)
{
    struct policy q = p->policy;
    q.kind = kind;
    q.window = kind == POLICY_RETRO ? p->o->window : 1;
    return q;
}

static enum status open_plan(struct plan *p, int started, struct reason *why)
{
    const struct options *o = p->o;
    enum status status = STATUS_OK;
    if (!o->model)
        status = status_fail(why, STATUS_BAD_OPTION, "--model DIR is missing: a folder with config.json");
    if (status == STATUS_OK) status = options_policy(o, &p->policy, why);
    if (status == STATUS_OK)
        status = options_ints(&p->contexts, "contexts", o->plan_contexts, 1, 1 << 24, why);
    if (status == STATUS_OK) status = options_ints(&p->batches, "batches", o->plan_batches, 1, 4096, why);
    if (status == STATUS_OK) status = model_files_imagine(&p->files, o->model, why);
    struct device_options all = {.n_threads = 0}; /* only asked for sizes, and how fast it reads */
    if (status == STATUS_OK) status = device_open(&p->setup.options.device, DEVICE_CPU, &all, why);
    int n_ranks = o->tp == OPTIONS_UNSET ? started : o->tp;
    if (status == STATUS_OK && strcmp(o->machine, "cpu") == 0)
        machine_measure(&p->machine, p->setup.options.device, n_ranks);
    else if (status == STATUS_OK) status = machine_find(&p->machine, o->machine, o->link, why);
    int most = status == STATUS_OK ? plan_ranks_most(&p->files.arch) : 1;
    if (status == STATUS_OK && n_ranks > most)
        status = status_fail(why, STATUS_BAD_OPTION, "--tp %d: this model can be split over 1 to %d ranks",
                             n_ranks, most);
    if (status != STATUS_OK) return status;
    if (p->policy.dense_layers > p->files.arch.n_layers) p->policy.dense_layers = p->files.arch.n_layers;
    for (int i = 0; i < p->contexts.n; i++)
        if (p->contexts.value[i] > p->files.arch.context)
            LOG_WARN("--contexts %d: the model's own limit is %d, generate and serve refuse more",
                     p->contexts.value[i], p->files.arch.context);
    if (o->given.policy && !o->json)
        LOG_WARN("--policy %s chooses among the lines of --json: this table has dense, quest and retro",
                 policy_kind_name(p->policy.kind));
    bool gpu = p->machine.flops_s > 0; /* the others read the weights as stored */
    p->setup.files = &p->files;
    p->setup.machine = &p->machine;
    p->setup.n_ranks = n_ranks;
    p->setup.options =
        (struct model_options){.device = p->setup.options.device,
                               .act = gpu ? p->files.arch.dtype : session_act(o, p->files.arch.dtype),
                               .page_tokens = o->page_size,
                               .block_tokens = o->block_size,
                               .window = o->json && o->given.policy ? p->policy.window : o->window,
                               .kv = (enum dtype)o->kv_dtype,
                               .summary = options_summary(o),
                               .prefill_chunk = o->prefill_chunk};
    return STATUS_OK;
}

static void set_cell(struct plan *p, int context, int batch)
{
    p->setup.options.context = context;
    p->setup.options.n_slots = batch;
    p->setup.options.prefill_chunk = p->o->prefill_chunk < context ? p->o->prefill_chunk : context;
}

/* ------------------------------------------------------------------------------------------ JSON */
static json_t *memory_json(const struct plan_memory *m)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "weights_bytes",
                     (json_int_t)m->model.weights_bytes, "kv_bytes", (json_int_t)m->model.kv_bytes,
                     "slots_bytes", (json_int_t)m->model.slots_bytes, "scratch_bytes",
                     (json_int_t)m->model.scratch_bytes, "summaries_bytes", m->summaries,
                     "output_cache_bytes", m->output_cache, "masks_bytes", m->masks, "reserve_bytes",
                     m->reserve, "link_bytes", m->link, "total_bytes", m->total);
}

static json_t *step_json(const struct plan_step *r)
{
    json_t *j = json_object();
    for (enum cost_op op = 0; op < COST_OP_COUNT; op++)
        json_object_set_new(j, cost_op_name(op), json_real(r->op_us[op]));
    json_object_set_new(j, "all_reduce", json_real(r->all_reduce_us));
    json_object_set_new(j, "launch", json_real(r->launch_us));
    json_object_set_new(j, "fixed", json_real(r->fixed_us));
    return j;
}

static void print_cell_json(struct plan *p, int context, int batch, const struct policy *q)
{
    struct plan_memory m;
    struct plan_step r;
    plan_memory_tightest(&p->setup, &m);
    plan_step_of(&p->setup, q, batch, context - 1, &r);
    json_t *j = memory_json(&m), *ranks = json_array();
    for (int rank = 0; rank < p->setup.n_ranks; rank++) {
        struct plan_memory one;
        plan_memory_of(&p->setup, rank, &one);
        json_array_append_new(ranks, memory_json(&one));
    }
    json_t *more = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:i, s:f, s:i, s:b, s:i, s:i, s:f, s:f, s:f, s:f}", "model",
        p->o->model, "machine", p->machine.name, "link", p->machine.link, "tp", p->setup.n_ranks, "tp_max",
        plan_ranks_most(&p->files.arch), "context", context, "batch", batch, "policy",
        policy_kind_name(q->kind), "window", q->window, "kv_budget", q->kv_budget, "kv_budget_tokens",
        q->kv_budget_tokens, "fits", m.left >= 0, "largest_context",
        p->machine.memory_bytes > 0 ? plan_context_most(&p->setup) : 0, "largest_batch",
        p->machine.memory_bytes > 0 ? plan_batch_most(&p->setup) : 0, "step_us", r.total_us, "tokens_per_s",
        r.tokens_per_s, "step_bytes", r.bytes, "step_flops", r.flops);
    ASSERT(j && more);
    json_object_update(j, more);
    json_decref(more);
    json_object_set_new(j, "parts_us", step_json(&r));
    json_object_set_new(j, "ranks", ranks);
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(10));
    ASSERT(text);
    puts(text);
    free(text);
    json_decref(j);
}

/* ------------------------------------------------------------------------------------------ text */
static void print_memory(struct plan *p, int context, int batch)
{
    printf("memory of a rank, GiB    weights       KV  of it summaries  output cache  scratch  context, link "
           "   total\n");
    struct plan_memory last = {0};
    for (int rank = 0, first = 0; rank <= p->setup.n_ranks; rank++) {
        struct plan_memory m = {0};
        if (rank < p->setup.n_ranks) plan_memory_of(&p->setup, rank, &m);
        if (rank > 0 && (rank == p->setup.n_ranks || m.total != last.total)) { /* ranks alike are one line */
            char who[32];
            snprintf(who, sizeof who, first == rank - 1 ? "rank %d" : "ranks %d to %d", first, rank - 1);
            printf("  %-20s %9.2f %8.2f %16.2f %13.2f %8.2f %14.2f %8.2f\n", who,
                   (double)last.model.weights_bytes / GIB, (double)last.model.kv_bytes / GIB,
                   last.summaries / GIB, last.output_cache / GIB, (double)last.model.scratch_bytes / GIB,
                   (last.reserve + last.link) / GIB, last.total / GIB);
            first = rank;
        }
        last = m;
    }
    if (p->machine.memory_bytes <= 0) return;
    struct plan_memory tight;
    plan_memory_tightest(&p->setup, &tight);
    printf("  %s: %.2f of %.2f GiB; at most %d tokens for %d sequences, or %d sequences of %d tokens\n",
           tight.left >= 0 ? "fits" : "DOES NOT FIT", tight.total / GIB, p->machine.memory_bytes / GIB,
           plan_context_most(&p->setup), batch, plan_batch_most(&p->setup), context);
}

static void print_steps(struct plan *p, int context, int batch)
{
    static const struct part {
        const char *name;
        enum cost_op op[4];
        int n;
    } parts[] = {{"GEMM", {COST_QKV, COST_O, COST_GATE_UP, COST_DOWN}, 4},
                 {"LM head", {COST_HEAD}, 1},
                 {"select", {COST_SELECT}, 1},
                 {"attend", {COST_ATTEND}, 1},
                 {"norm, rope, silu", {COST_EMBED, COST_NORM, COST_ROPE_STORE, COST_SILU}, 4}};
    struct plan_step r[COMPARED];
    for (enum policy_kind k = 0; k < COMPARED; k++) {
        struct policy q = policy_like(p, k);
        plan_step_of(&p->setup, &q, batch, context - 1, &r[k]);
    }
    printf("a decode step, us          dense     quest  retro w=%d\n", p->o->window);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        printf("  %-20s", parts[i].name);
        for (enum policy_kind k = 0; k < COMPARED; k++) {
            double us = 0;
            for (int n = 0; n < parts[i].n; n++) us += r[k].op_us[parts[i].op[n]];
            printf(" %9.1f", us);
        }
        printf("\n");
    }
    printf("  %-20s %9.1f %9.1f %9.1f\n", "all-reduce", r[0].all_reduce_us, r[1].all_reduce_us,
           r[2].all_reduce_us);
    printf("  %-20s %9.1f %9.1f %9.1f\n", "launches, fixed", r[0].launch_us + r[0].fixed_us,
           r[1].launch_us + r[1].fixed_us, r[2].launch_us + r[2].fixed_us);
    printf("  %-20s %9.1f %9.1f %9.1f\n", "in all", r[0].total_us, r[1].total_us, r[2].total_us);
    printf("tokens/s               %9.1f %9.1f %9.1f   (%.1f a sequence with retro)\n", r[0].tokens_per_s,
           r[1].tokens_per_s, r[2].tokens_per_s, r[2].tokens_per_s / batch);
}

/* Where sparse reading pays: gain of retro over dense, and the most that the bytes allow. */
static void print_regime(struct plan *p)
{
    static const int contexts[] = {2048, 8192, 32768, 131072}, batches[] = {1, 4, 16, 64};
    struct policy dense = policy_like(p, POLICY_DENSE), retro = policy_like(p, POLICY_RETRO);
    printf("\nretro w=%d over dense, and the ceiling of bytes alone; - does not fit\n  batch x context",
           p->o->window);
    for (int i = 0; i < 4; i++) printf(" %14d", contexts[i]);
    for (int k = 0; k < 4; k++) {
        printf("\n  %15d", batches[k]);
        for (int i = 0; i < 4; i++) {
            struct plan_memory m;
            struct plan_step a, b;
            set_cell(p, contexts[i], batches[k]);
            plan_memory_tightest(&p->setup, &m);
            plan_step_of(&p->setup, &dense, batches[k], contexts[i] - 1, &a);
            plan_step_of(&p->setup, &retro, batches[k], contexts[i] - 1, &b);
            char cell[32] = "-";
            if (m.left >= 0)
                snprintf(cell, sizeof cell, "%.2f of %.2f", a.total_us / b.total_us, a.bytes / b.bytes);
            printf(" %14s", cell);
        }
    }
    printf("\n");
}

static void print_rules(const struct plan *p)
{
    int most = plan_ranks_most(&p->files.arch), K = p->files.arch.n_kv_heads;
    printf("\n--tp 1 to %d; even shares of the %d kv heads at", most, K);
    for (int n = 1; n <= most; n++)
        if (n <= K ? K % n == 0 : n % K == 0 && p->files.arch.n_heads % n == 0) printf(" %d", n);
    printf("; above %d kv heads are replicated\n", K);
    printf("checked at start: --kv-budget excludes --kv-budget-tokens; --page-size is 4, 8, 16 or 32 and "
           "divides "
           "--block-size; only retro has a --window; --summary q8 and q4 exclude --score-alpha 1; dense, "
           "quest and retro, any budget and window mix in "
           "one batch\n");
}

int cmd_plan(const struct options *o, const struct comm_world *w)
{
    struct plan p = {.o = o};
    struct reason why;
    enum status status = open_plan(&p, w->size, &why);
    if (status != STATUS_OK) {
        device_close(p.setup.options.device);
        return session_fail(w, status, &why);
    }
    if (!o->json) {
        printf("%s: %d rank%s of %s, link %s; %s weights, %s KV, page %d, budget ", o->model, p.setup.n_ranks,
               p.setup.n_ranks == 1 ? "" : "s", p.machine.name, p.machine.link,
               dtype_name(p.files.arch.dtype), dtype_name(p.setup.options.kv), o->page_size);
        if (p.policy.kv_budget_tokens > 0) printf("%d tokens\n", p.policy.kv_budget_tokens);
        else printf("%.3f\n", p.policy.kv_budget);
    }
    for (int i = 0; i < p.contexts.n; i++)
        for (int k = 0; k < p.batches.n; k++) {
            int context = p.contexts.value[i], batch = p.batches.value[k];
            set_cell(&p, context, batch);
            if (!o->json) {
                printf("\n%d sequence%s of %d tokens\n", batch, batch == 1 ? "" : "s", context);
                print_memory(&p, context, batch);
                print_steps(&p, context, batch);
                continue;
            }
            for (enum policy_kind kind = 0; kind < POLICY_KIND_COUNT; kind++) {
                struct policy q = policy_like(&p, kind);
                if (o->given.policy ? kind == p.policy.kind : kind < COMPARED)
                    print_cell_json(&p, context, batch, &q);
            }
        }
    if (!o->json) {
        print_regime(&p);
        print_rules(&p);
    }
    device_close(p.setup.options.device);
    model_files_close(&p.files);
    return EXIT_CODE_OK;
}
