#include "runtime/generation.h"

#include "runtime/base/clock.h"
#include "runtime/base/die.h"

void generation_open(struct generation *g, struct engine *e, const struct policy *p, const int32_t *prompt,
                     int n_prompt, int capacity, int chunk)
{
    const struct step_limits *l = engine_limits(e);
    *g = (struct generation){.engine = e, .chunk = chunk, .started_us = clock_us()};
    pages_open(&g->pages, l->n_blocks);
    seq_open(&g->seq, 0, p, prompt, n_prompt, capacity, l->block_tokens);
    step_open(&g->step, l);
}

void generation_close(struct generation *g)
{
    if (!g->engine) return;
    seq_close(&g->seq, &g->pages);
    pages_check(&g->pages);
    ASSERT(g->pages.n_free == g->pages.n_blocks);
    pages_close(&g->pages);
    step_close(&g->step);
    *g = (struct generation){0};
}

static void reserve(struct generation *g, int n_tokens)
{
    /* The pool was sized for the capacity of this one sequence. */
    ASSERT(seq_reserve(&g->seq, &g->pages, n_tokens, g->step.limits.block_tokens) == STATUS_OK);
    step_clear(&g->step, (uint64_t)g->n_steps++);
}

static void execute(struct generation *g, struct engine_result *r)
{
    engine_step(g->engine, &g->step, r);
    if (g->recording) record_write(g->recording, &g->step, r);
}

const struct engine_output *generation_prefill(struct generation *g, enum step_want want)
{
    struct engine_result r = {0};
    while (g->seq.fed < g->seq.n_prompt) {
        int left = g->seq.n_prompt - g->seq.fed, n = left < g->chunk ? left : g->chunk;
        reserve(g, g->seq.fed + n);
        step_add_prompt(&g->step, &g->seq, n, n == left ? want : STEP_WANT_NOTHING);
        execute(g, &r);
    }
    g->prefilled_us = clock_us();
    return r.n_outputs ? r.output : NULL;
}

const struct engine_output *generation_feed(struct generation *g, int32_t token, enum step_want want)
{
    struct engine_result r;
    seq_append_token(&g->seq, token);
    reserve(g, g->seq.n_tokens);
    step_add_decode(&g->step, &g->seq, want);
    execute(g, &r);
    return r.n_outputs ? r.output : NULL;
}

void generation_exposure_of(const struct engine *e, const int64_t c[COUNTER_COUNT], struct exposure *x)
{
    double token = engine_token_bytes(e), summary = engine_summary_bytes(e);
    double read = (double)c[COUNTER_TOKENS_READ] * token + (double)c[COUNTER_SUMMARIES_READ] * summary;
    double dense = (double)c[COUNTER_TOKENS_DENSE] * token;
    *x = (struct exposure){
        .pages_loaded = c[COUNTER_PAGES_LOADED],
        .pages_met = c[COUNTER_PAGES_MET],
        .exposure = c[COUNTER_PAGES_LOADED] ? (double)(c[COUNTER_PAGES_LOADED] + c[COUNTER_PAGES_MET]) /
                                                  (double)c[COUNTER_PAGES_LOADED]
                                            : 1,
        .kv_read_share = dense > 0 ? read / dense : 1,
    };
}

void generation_exposure(struct engine *e, int slot, struct exposure *x)
{
    int64_t c[COUNTER_COUNT];
    engine_counters(e, slot, c);
    generation_exposure_of(e, c, x);
}
