#include "runtime/plan.h"

#include <math.h>

enum { WINDOW_MAX = 64 }; /* decode began so long ago that the window is open */

double plan_exposure(int window) { return window > 1 ? 1 + 0.17 * pow(window - 1, 0.65) : 1; }

int plan_ranks_most(const struct arch *a)
{
    int most = a->n_heads < a->ffn ? a->n_heads : a->ffn;
    return most < a->vocab ? most : a->vocab;
}

/* ------------------------------------------------------------------------------------------ memory */
void plan_memory_of(const struct plan_setup *s, int rank, struct plan_memory *m)
{
    struct dims d;
    *m = (struct plan_memory){.reserve = s->machine->reserve_bytes,
                              .link = s->n_ranks > 1 ? s->machine->link_reserve_bytes : 0};
    model_plan(&m->model, &d, s->files, rank, s->n_ranks, &s->options);
    m->output_cache = (double)d.n_slots * d.L * (double)d.output_cache_bytes;
    m->masks = (double)d.n_slots * d.L * (double)d.last_loaded_bytes;
    m->summaries = (double)d.n_blocks * d.L * (double)d.summaries_bytes;
    m->total = (double)m->model.total_bytes + m->reserve + m->link;
    m->left = s->machine->memory_bytes > 0 ? s->machine->memory_bytes - m->total : INFINITY;
}

void plan_memory_tightest(const struct plan_setup *s, struct plan_memory *m)
{
    *m = (struct plan_memory){0};
    for (int rank = 0; rank < s->n_ranks; rank++) {
        struct plan_memory one;
        plan_memory_of(s, rank, &one);
        if (rank == 0 || one.total > m->total) *m = one;
    }
}

static bool fits(const struct plan_setup *s, int context, int n_slots)
{
    struct plan_setup other = *s;
    struct plan_memory m;
    other.options.context = context;
    other.options.n_slots = n_slots;
    plan_memory_tightest(&other, &m);
    return m.left >= 0;
}

/* The largest n in 0..most for which it fits; fitting is monotone. */
static int largest(const struct plan_setup *s, int most, bool is_context)
{
    int low = 0, high = most;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        bool ok = is_context ? fits(s, middle, s->options.n_slots) : fits(s, s->options.context, middle);
        if (ok) low = middle;
        else high = middle - 1;
    }
    return low;
}

int plan_context_most(const struct plan_setup *s)
{
    int block = s->options.block_tokens, n = largest(s, 1 << 22, true);
    return n / block * block;
}

int plan_batch_most(const struct plan_setup *s) { return largest(s, 4096, false); }

/* ------------------------------------------------------------------------------------------ time */
static double larger(double a, double b) { return a > b ? a : b; }

static bool is_gemm(enum cost_op op)
{
    return op == COST_QKV || op == COST_O || op == COST_GATE_UP || op == COST_DOWN || op == COST_HEAD;
}

/* Microseconds of one op of a step on one rank, without its launches. */
static double op_us(const struct machine *m, enum cost_op op, const struct cost *c, double rows,
                    const struct dims *d)
{
    const struct cost_item *i = &c->op[op];
    double by_flops = m->flops_s > 0 ? i->flops / (m->flops_s * m->flops_share) * 1e6 : 0;
    if (is_gemm(op)) {
        double rate =
            m->gemm_by_rows.n ? machine_curve_at(&m->gemm_by_rows, rows) : m->read_bytes_s * m->gemm_share;
        return larger(i->bytes / rate * 1e6, by_flops);
    }
    if (op == COST_SELECT || op == COST_ATTEND) {
        bool sparse = c->summaries_bytes > 0;
        const struct curve *measured = sparse && m->sparse_us.n ? &m->sparse_us : &m->dense_us;
        if (measured->n == 0)
            return larger(i->bytes / (m->read_bytes_s * m->attention_share) * 1e6, by_flops);
        double both = c->kv_bytes + c->summaries_bytes; /* measured together, told apart by their bytes */
        return machine_curve_time(measured, both) * i->bytes / both;
    }
    if (m->rest_us.n == 0) return larger(i->traffic / m->read_bytes_s * 1e6, by_flops);
    /* One time for all of these, of another model perhaps; it stands at the norms. */
    double scale = (double)d->L * (d->D + d->Fr) / m->rest_size;
    return op == COST_NORM ? scale * machine_curve_time(&m->rest_us, rows) : 0;
}

void plan_step_of(const struct plan_setup *s, const struct policy *p, int n_seqs, int position,
                  struct plan_step *r)
{
    plan_mixed_step_of(s, p, n_seqs, position, 0, 0, r);
}

void plan_mixed_step_of(const struct plan_setup *s, const struct policy *p, int n_seqs, int position,
                        double prompt_rows, double prompt_keys, struct plan_step *r)
{
    const struct arch *a = &s->files->arch;
    *r = (struct plan_step){0};
    int launches = 0, n_all_reduces = 0;
    double all_reduce_bytes = 0;
    for (int rank = 0; rank < s->n_ranks; rank++) {
        struct shard shard;
        struct dims d;
        struct cost c;
        shard_make(&shard, rank, s->n_ranks, a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
        model_dims(&d, a, &shard, &s->options);
        struct cost_step step = {.policy = p,
                                 .n_seqs = n_seqs,
                                 .position = position,
                                 .n_prompt = position > WINDOW_MAX ? position - WINDOW_MAX : 0,
                                 .prompt_rows = prompt_rows,
                                 .prompt_keys = prompt_keys,
                                 .exposure = plan_exposure(p->kind == POLICY_RETRO ? p->window : 1),
                                 .weights = a->dtype};
        cost_decode(&c, a, &d, &step);
        double rows = (double)n_seqs * policy_rows(p, position, step.n_prompt) + prompt_rows;
        launches = 0;
        for (enum cost_op op = 0; op < COST_OP_COUNT; op++) {
            r->op_us[op] = larger(r->op_us[op], op_us(s->machine, op, &c, rows, &d));
            launches += c.op[op].n_calls;
        }
        n_all_reduces = c.n_all_reduces;
        all_reduce_bytes = c.all_reduce_bytes;
        r->bytes += c.bytes;
        r->flops += c.flops;
    }
    r->all_reduce_us = n_all_reduces * machine_all_reduce_us(s->machine, s->n_ranks, all_reduce_bytes);
    r->launch_us = launches * s->machine->launch_us;
    r->fixed_us = s->machine->step_us;
    r->total_us = r->all_reduce_us + r->launch_us + r->fixed_us;
    for (enum cost_op op = 0; op < COST_OP_COUNT; op++) r->total_us += r->op_us[op];
    r->tokens_per_s = n_seqs * 1e6 / r->total_us;
}
