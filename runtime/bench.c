#include "runtime/bench.h"

#include <stdlib.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/cost.h"
#include "runtime/generation.h"

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(double *v, int n, double q)
{
    ASSERT(n > 0);
    qsort(v, (size_t)n, sizeof *v, compare);
    double at = q * (n - 1);
    int i = (int)at;
    return i + 1 < n ? v[i] + (at - i) * (v[i + 1] - v[i]) : v[i];
}

static void *need(void *p)
{
    if (!p) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for a benchmark");
    return p;
}

enum dtype bench_weights_dtype(const struct model *m) { return m->weights.layer[0].gate_up.dtype; }

/* Each rank's share as model_open made it there. */
static void rank_dims(const struct model *m, int rank, struct dims *d)
{
    struct shard s;
    const struct arch *a = m->arch;
    shard_make(&s, rank, comm_size(m->comm), a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
    model_dims(d, a, &s, &m->options);
}

double bench_step_bytes(const struct model *m, const struct policy *p, int n_seqs, int position, int n_prompt)
{
    double bytes = 0;
    for (int rank = 0; rank < comm_size(m->comm); rank++) {
        struct dims d;
        struct cost c;
        rank_dims(m, rank, &d);
        struct cost_step s = {.policy = p,
                              .n_seqs = n_seqs,
                              .position = position,
                              .n_prompt = n_prompt,
                              .exposure = 1,
                              .weights = bench_weights_dtype(m)};
        cost_decode(&c, m->arch, &d, &s);
        bytes += c.bytes;
    }
    return bytes;
}

/* ------------------------------------------------------------------------------------------ decode */
struct world { /* the sequences of one cell */
    struct engine *engine;
    struct pages pages;
    struct seq *seq;
    struct step step;
    int n_seqs, block_tokens;
    uint64_t n_steps;
};

static void world_open(struct world *w, struct engine *e, const struct policy *p, int context, int batch,
                       int capacity)
{
    const struct step_limits *l = engine_limits(e);
    ASSERT(batch <= l->n_slots && capacity <= l->context);
    *w = (struct world){.engine = e, .n_seqs = batch, .block_tokens = l->block_tokens};
    pages_open(&w->pages, l->n_blocks);
    step_open(&w->step, l);
    w->seq = need(calloc((size_t)batch, sizeof *w->seq));
    int32_t *prompt =
        need(calloc((size_t)context, sizeof *prompt)); /* ids do not matter: nothing computes them */
    for (int i = 0; i < batch; i++) seq_open(&w->seq[i], i, p, prompt, context, capacity, l->block_tokens);
    free(prompt);
}

static void world_close(struct world *w)
{
    for (int i = 0; i < w->n_seqs; i++) seq_close(&w->seq[i], &w->pages);
    free(w->seq);
    pages_close(&w->pages);
    step_close(&w->step);
}

static void world_fill(struct world *w)
{
    const struct step_limits *l = engine_limits(w->engine);
    for (int i = 0; i < w->n_seqs; i++) {
        struct seq *q = &w->seq[i];
        while (q->fed < q->n_prompt) {
            int left = q->n_prompt - q->fed, n = left < l->max_rows ? left : l->max_rows;
            ASSERT(seq_reserve(q, &w->pages, q->fed + n, w->block_tokens) == STATUS_OK);
            step_clear(&w->step, w->n_steps++);
            step_add_prompt(&w->step, q, n, STEP_WANT_NOTHING);
            engine_fill(w->engine, &w->step);
        }
    }
}

static double world_step(struct world *w)
{
    struct engine_result r;
    step_clear(&w->step, w->n_steps++);
    for (int i = 0; i < w->n_seqs; i++) {
        struct seq *q = &w->seq[i];
        seq_append_token(q, (int32_t)(i % engine_limits(w->engine)->vocab));
        ASSERT(seq_reserve(q, &w->pages, q->n_tokens, w->block_tokens) == STATUS_OK);
        step_add_decode(&w->step, q, STEP_WANT_BEST);
    }
    int64_t begun = clock_us();
    engine_step(w->engine, &w->step, &r);
    return (double)(clock_us() - begun) * 1e-3;
}

/* Steps and samples of plain reading in turn, so that what strangers take is taken from both. */
static void measure_steps(struct world *w, int n, double *ms, double *rate)
{
    for (int i = 0; i < BENCH_WARMUP; i++) world_step(w);
    engine_read_rate(w->engine); /* finds out how long a sample has to be */
    for (int i = 0; i < n; i++) {
        rate[i] = engine_read_rate(w->engine);
        ms[i] = world_step(w);
    }
}

void bench_decode_run(struct engine *e, const struct model *m, const struct policy *p, int context, int batch,
                      int n_tokens, struct bench_decode *r)
{
    struct world w;
    struct exposure x;
    double *ms = need(malloc((size_t)n_tokens * sizeof *ms)),
           *rate = need(malloc((size_t)n_tokens * sizeof *rate));
    int n_prompt = context > 0 ? context : 1;
    world_open(&w, e, p, n_prompt, batch, n_prompt + BENCH_WARMUP + n_tokens);
    world_fill(&w);
    measure_steps(&w, n_tokens, ms, rate);
    generation_exposure(e, 0, &x);
    world_close(&w);
    *r = (struct bench_decode){.exposure = x.exposure, .kv_read_share = x.kv_read_share};
    for (int i = 0; i < n_tokens; i++)
        r->bytes += bench_step_bytes(m, p, batch, n_prompt + BENCH_WARMUP + i, n_prompt) / n_tokens;
    r->read_rate = bench_quantile(rate, n_tokens, 0.5);
    r->floor_ms = r->bytes / r->read_rate * 1e3;
    r->step_ms = bench_quantile(ms, n_tokens, 0.5);
    r->step_ms_low = bench_quantile(ms, n_tokens, 0.1);
    r->step_ms_high = bench_quantile(ms, n_tokens, 0.9);
    r->tokens_per_s = batch * 1e3 / r->step_ms;
    free(ms);
    free(rate);
}

/* ------------------------------------------------------------------------------------------ prefill */
void bench_prefill_run(struct engine *e, const struct model *m, int n, int repeat, double gemm_flops,
                       struct bench_prefill *r)
{
    int vocab = engine_limits(e)->vocab, chunk = m->options.prefill_chunk, n_chunks = (n + chunk - 1) / chunk;
    struct policy dense = {.kind = POLICY_DENSE, .window = 1, .kv_budget = 1};
    int32_t *prompt = need(malloc((size_t)n * sizeof *prompt));
    double *ms = need(malloc((size_t)repeat * sizeof *ms)),
           *rate = need(malloc((size_t)repeat * sizeof *rate));
    for (int i = 0; i < n; i++) prompt[i] = (int32_t)((i * 7919LL + 1) % vocab);
    for (int i = -1; i < repeat; i++) { /* one to warm up */
        struct generation g;
        generation_open(&g, e, &dense, prompt, n, n, chunk);
        int64_t begun = clock_us();
        generation_prefill(&g, STEP_WANT_BEST);
        if (i >= 0) ms[i] = (double)(clock_us() - begun) * 1e-3;
        if (i >= 0) rate[i] = engine_read_rate(e);
        generation_close(&g);
    }
    *r = (struct bench_prefill){.ms = bench_quantile(ms, repeat, 0.5),
                                .flops = cost_prefill_flops(m->arch, n)};
    r->tokens_per_s = n * 1e3 / r->ms;
    for (int rank = 0; rank < comm_size(m->comm); rank++) {
        struct dims d;
        rank_dims(m, rank, &d);
        r->bytes += n_chunks * cost_weights_bytes(&d, bench_weights_dtype(m));
    }
    double by_bytes = r->bytes / bench_quantile(rate, repeat, 0.5), by_flops = r->flops / gemm_flops;
    r->floor_ms = 1e3 * (by_bytes > by_flops ? by_bytes : by_flops);
    free(ms);
    free(rate);
    free(prompt);
}
