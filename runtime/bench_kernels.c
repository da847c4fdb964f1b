/* bench_kernels.c - ops alone, through the op table, on all ranks at once. Everything that is read in one sample
 * is read once, so that caches smaller than a model help nobody. */
#include <stdlib.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/bench.h"
#include "runtime/cost.h"
#include "runtime/noise.h"
#include "runtime/stage.h"

const char *bench_matrix_name(enum bench_matrix w)
{
    static const char *const names[BENCH_MATRIX_COUNT] = {"qkv", "o", "gate_up", "down", "head", "all"};
    ASSERT(w < BENCH_MATRIX_COUNT);
    return names[w];
}

static double now_ms(void) { return (double)clock_us() * 1e-3; }

/* At least a microsecond, which the clock cannot tell from none: the matrices of a small model take less. */
static double since_ms(double begun)
{
    double ms = now_ms() - begun;
    return ms > 1e-3 ? ms : 1e-3;
}

static size_t sample_bytes(const struct model *m)
{
    const size_t most = (size_t)256 << 20;
    return (size_t)m->plan.weights_bytes < most ? (size_t)m->plan.weights_bytes : most;
}

static double read_ms(struct model *m, size_t bytes, int times)
{
    double begun = now_ms();
    for (int i = 0; i < times; i++) m->op->read_bytes(m->device, m->memory, bytes);
    m->op->sync(m->device);
    return since_ms(begun);
}

/* GB/s of reading the beginning of the weights, again where once takes less than READ_MS: a launch is no part of it. */
static double read_weights(struct model *m)
{
    const double READ_MS = 2;
    size_t bytes = sample_bytes(m);
    double ms = read_ms(m, bytes, 1);
    int times = ms < READ_MS ? (int)(READ_MS / ms) + 1 : 1;
    if (times > 1) ms = read_ms(m, bytes, times);
    return (double)bytes * times / ms * 1e-6;
}

static double sum_ranks(struct model *m, double x)
{
    int64_t v = (int64_t)(x * 1e6);
    comm_sum_i64(m->comm, &v, 1);
    return (double)v * 1e-6;
}

struct samples {
    double *ms, *read;
    int n;
};

static void samples_open(struct samples *s, int repeat)
{
    *s = (struct samples){.ms = calloc((size_t)repeat, sizeof(double)),
                          .read = calloc((size_t)repeat, sizeof(double))};
    if (!s->ms || !s->read) DIE(EXIT_CODE_MEMORY, "lower --repeat", "no memory for %d times", repeat);
}

static void samples_close(struct samples *s, struct model *m, double bytes, struct bench_rate *r)
{
    *r = (struct bench_rate){.ms = bench_quantile(s->ms, s->n, 0.5)};
    r->gb_s = sum_ranks(m, bytes / r->ms * 1e-6);
    r->read_gb_s = sum_ranks(m, bench_quantile(s->read, s->n, 0.5));
    r->bytes = sum_ranks(m, bytes);
    free(s->ms);
    free(s->read);
}

void bench_read_run(struct model *m, int repeat, struct bench_rate *r)
{
    struct samples s;
    samples_open(&s, repeat);
    double bytes = (double)sample_bytes(m);
    for (; s.n < repeat; s.n++) {
        comm_barrier(m->comm);
        s.read[s.n] = read_weights(m);
    }
    /* Of the same sample as the rate: the middles of times and of rates are not each other's inverse. */
    double middle = bench_quantile(s.read, s.n, 0.5);
    for (int i = 0; i < s.n; i++) s.ms[i] = bytes / middle * 1e-6;
    samples_close(&s, m, bytes, r);
}

/* ------------------------------------------------------------------------------------------ GEMM */
static const struct matrix *matrix_of(const struct model *m, enum bench_matrix which, int layer)
{
    const struct layer_weights *w = &m->weights.layer[layer];
    const struct matrix *of[BENCH_ALL] = {&w->qkv, &w->o, &w->gate_up, &w->down, &m->weights.head};
    return of[which];
}

/* Runs it over all layers (BENCH_ALL: the four of each layer, then the head); returns the bytes of its weights.
 * Logits of more rows than the model has outputs go to the widest scratch; a head that does not fit there is
 * left out. */
static double run_gemm(struct model *m, enum bench_matrix which, int rows)
{
    double bytes = 0;
    enum bench_matrix first = which == BENCH_ALL ? BENCH_QKV : which;
    enum bench_matrix last = which == BENCH_ALL ? BENCH_DOWN : which;
    if (which == BENCH_HEAD &&
        (size_t)rows * (size_t)m->dims.Vr > (size_t)m->dims.max_rows * 2 * (size_t)m->dims.Fr)
        return 0;
    for (int l = 0; l < (which == BENCH_HEAD ? 1 : m->dims.L); l++)
        for (enum bench_matrix i = first; i <= last; i++) {
            const struct matrix *w = matrix_of(m, i, l);
            float *y = i == BENCH_QKV ? m->qkv : i == BENCH_GATE_UP || i == BENCH_HEAD ? m->gate_up : m->y;
            const void *x = i == BENCH_O ? m->attention : i == BENCH_DOWN ? m->act : m->h;
            m->op->linear(m->device, y, x, w, NULL, rows);
            bytes += (double)w->n * w->k * (double)dtype_bytes(w->dtype);
        }
    return which == BENCH_ALL ? bytes + run_gemm(m, BENCH_HEAD, rows) : bytes;
}

void bench_gemm_run(struct model *m, enum bench_matrix which, int rows, int repeat, struct bench_rate *r)
{
    ASSERT(rows <= m->dims.max_rows);
    struct samples s;
    double bytes = run_gemm(m, which, rows);
    samples_open(&s, repeat);
    for (; s.n < repeat; s.n++) {
        comm_barrier(m->comm);
        s.read[s.n] = read_weights(m);
        comm_barrier(m->comm);
        double begun = now_ms();
        run_gemm(m, which, rows);
        m->op->sync(m->device);
        s.ms[s.n] = since_ms(begun);
    }
    samples_close(&s, m, bytes, r);
}

double bench_gemm_peak(struct model *m, int rows, int repeat)
{
    double best = 0;
    ASSERT(rows <= m->dims.max_rows);
    for (enum bench_matrix i = BENCH_QKV; i < BENCH_HEAD; i++)
        for (int k = 0; k < repeat; k++) {
            const struct matrix *w = matrix_of(m, i, 0);
            float *y = i == BENCH_QKV ? m->qkv : i == BENCH_GATE_UP ? m->gate_up : m->y;
            const void *x = i == BENCH_O ? m->attention : i == BENCH_DOWN ? m->act : m->h;
            comm_barrier(m->comm);
            double begun = now_ms();
            m->op->linear(m->device, y, x, w, NULL, rows);
            m->op->sync(m->device);
            double rate = 2.0 * rows * w->n * w->k / since_ms(begun) * 1e3;
            if (rate > best) best = rate;
        }
    return sum_ranks(m, best * 1e-6) * 1e6;
}

/* ------------------------------------------------------------------------------------------ attention */
struct scene { /* one rank's sequences and their way to the device */
    struct model *m;
    struct stage stage;
    struct pages pages;
    struct seq *seq;
    struct step step;
    struct noise noise;
    int n_seqs;
    uint64_t n_steps;
};

static struct step_limits limits_of(const struct dims *d, int vocab)
{
    return (struct step_limits){.n_slots = d->n_slots,
                                .max_rows = d->max_rows,
                                .max_decode = d->max_spans,
                                .max_out = d->max_out,
                                .n_blocks = d->n_blocks,
                                .context = d->C,
                                .block_tokens = d->B,
                                .window = d->W,
                                .vocab = vocab,
                                .n_layers = d->L};
}

static const float *noise_rows(struct scene *s)
{
    return noise_row(&s->noise, "context", (int64_t)s->n_steps++);
}

static void stage_plan(struct scene *s, struct batch *b)
{
    struct reason why;
    if (stage_step(&s->stage, &s->step, b, &why) != STATUS_OK) DIE(EXIT_CODE_BUG, NULL, "%s", why.text);
    stage_upload(&s->stage);
}

static void scene_open(struct scene *s, struct model *m, const struct policy *p, int context, int batch,
                       int capacity)
{
    const struct dims *d = &m->dims;
    struct step_limits limits = limits_of(d, m->arch->vocab);
    *s = (struct scene){.m = m, .n_seqs = batch};
    stage_open(&s->stage, m);
    pages_open(&s->pages, d->n_blocks);
    step_open(&s->step, &limits);
    noise_open(&s->noise, (size_t)d->max_rows * (size_t)(d->Qr + 2 * d->Kr) * (size_t)d->E);
    s->seq = calloc((size_t)batch, sizeof *s->seq);
    int32_t *prompt = calloc((size_t)context, sizeof *prompt);
    if (!s->seq || !prompt) DIE(EXIT_CODE_MEMORY, "lower --contexts", "no host memory for a benchmark");
    for (int i = 0; i < batch; i++) {
        struct seq *q = &s->seq[i];
        seq_open(q, i, p, prompt, context, capacity, d->B);
        while (q->fed < q->n_prompt) {
            struct batch b;
            int left = q->n_prompt - q->fed, n = left < d->max_rows ? left : d->max_rows;
            ASSERT(seq_reserve(q, &s->pages, q->fed + n, d->B) == STATUS_OK);
            step_clear(&s->step, 0);
            step_add_prompt(&s->step, q, n, STEP_WANT_NOTHING);
            stage_plan(s, &b);
            model_fill(m, &b, noise_rows(s));
        }
    }
    free(prompt);
}

static void scene_close(struct scene *s)
{
    for (int i = 0; i < s->n_seqs; i++) seq_close(&s->seq[i], &s->pages);
    free(s->seq);
    pages_close(&s->pages);
    step_close(&s->step);
    stage_close(&s->stage);
    noise_close(&s->noise);
}

/* A decode step without its GEMMs and all-reduces. Milliseconds of select, attend and merge; of all else. */
struct scene_times {
    double attention, rest;
};

static struct scene_times scene_step(struct scene *s)
{
    struct model *m = s->m;
    const struct dims *d = &m->dims;
    const struct ops *op = m->op;
    struct batch b;
    struct scene_times t = {0};
    step_clear(&s->step, 0);
    for (int i = 0; i < s->n_seqs; i++) {
        seq_append_token(&s->seq[i], 0);
        ASSERT(seq_reserve(&s->seq[i], &s->pages, s->seq[i].n_tokens, d->B) == STATUS_OK);
        step_add_decode(&s->step, &s->seq[i], STEP_WANT_BEST);
    }
    stage_plan(s, &b);
    op->upload(m->device, m->qkv, noise_row(&s->noise, "query", 0),
               (size_t)b.n_rows * (size_t)(d->Qr + 2 * d->Kr) * (size_t)d->E * sizeof(float));
    double begun = now_ms(), middle;
    op->embed(m->device, m->x, &b, &m->weights.embed, d);
    op->rope_table(m->device, m->rope, &b, m->inv_freq, m->rope_factor, d);
    for (int l = 0; l < d->L; l++) {
        const struct layer_weights *w = &m->weights.layer[l];
        struct kv_layer kv = model_layer(m, l);
        op->add_norm(m->device, m->h, m->x, m->y, w->attn_norm, b.n_rows, d);
        op->rope_store(m->device, m->q, m->qkv, m->rope, w->q_norm, w->k_norm, &kv, &b, d);
        op->sync(m->device);
        middle = now_ms();
        t.rest += middle - begun;
        op->select(m->device, m->pages, m->page_count, m->q, &kv, &b, m->select_scratch, d);
        op->attend(m->device, m->part, m->q, &kv, m->pages, m->page_count, &b, d);
        op->merge(m->device, m->attention, m->part, &kv, m->pages, m->page_count, m->counters, &b, d);
        op->sync(m->device);
        t.attention += since_ms(middle);
        begun = now_ms();
        op->add_norm(m->device, m->h, m->x, m->y, w->mlp_norm, b.n_rows, d);
        op->silu_mul(m->device, m->act, m->gate_up, b.n_rows, d);
    }
    op->add_norm(m->device, m->h, m->x, m->y, m->weights.final_norm, b.n_out, d);
    op->argmax(m->device, m->best, m->logits, b.n_out, d);
    op->sync(m->device);
    t.rest += now_ms() - begun;
    return t;
}

void bench_attention_run(struct model *m, const struct policy *p, int context, int batch, int repeat,
                         struct bench_attention *r)
{
    struct scene scene;
    struct samples s;
    struct cost c;
    int n_prompt = context > 0 ? context : 1;
    scene_open(&scene, m, p, n_prompt, batch, n_prompt + BENCH_WARMUP + repeat);
    for (int i = 0; i < BENCH_WARMUP; i++) scene_step(&scene);
    samples_open(&s, repeat);
    double *rest = calloc((size_t)repeat, sizeof *rest);
    if (!rest) DIE(EXIT_CODE_MEMORY, "lower --repeat", "no memory for %d times", repeat);
    for (; s.n < repeat; s.n++) {
        comm_barrier(m->comm);
        s.read[s.n] = read_weights(m);
        comm_barrier(m->comm);
        struct scene_times t = scene_step(&scene);
        s.ms[s.n] = t.attention;
        rest[s.n] = t.rest;
    }
    struct cost_step step = {.policy = p,
                             .n_seqs = batch,
                             .position = n_prompt + BENCH_WARMUP + repeat / 2,
                             .n_prompt = n_prompt,
                             .exposure = 1,
                             .weights = bench_weights_dtype(m)};
    cost_decode(&c, m->arch, &m->dims, &step);
    r->rank_bytes = c.kv_bytes + c.summaries_bytes;
    samples_close(&s, m, r->rank_bytes, &r->rate);
    r->rows = scene.step.n_rows;
    r->rest_ms = bench_quantile(rest, repeat, 0.5);
    r->rest_size = (double)m->dims.L * (m->dims.D + m->dims.Fr);
    free(rest);
    scene_close(&scene);
}
