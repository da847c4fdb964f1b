#include "runtime/eval.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/npy.h"

struct run {
    struct engine *engine;
    const struct eval_request *q;
    struct eval_result *result;
    struct pages pages;
    struct seq seq[EVAL_POLICIES_MAX];
    int32_t next[EVAL_POLICIES_MAX]; /* the token to feed */
    int n_same[EVAL_POLICIES_MAX], n_right[EVAL_POLICIES_MAX];
    struct step step;
    uint64_t n_steps;
    float *dense; /* (vocab) the dense sequence's logits of the prediction at hand ... */
    float *p;     /* (vocab) ... their probabilities ... */
    double dense_lse;
    int32_t dense_best; /* ... and the likeliest token */
    struct npy logits, steps;
    float *row; /* (EVAL_STEP_COUNT * n_policies) of dump_steps */
};

/* ln sum e^logits, summed in double; p (vocab), where not NULL, becomes e^(logits - that). */
static double log_sum_exp(const float *logits, int vocab, float *p)
{
    float most = logits[0];
    for (int i = 1; i < vocab; i++)
        if (logits[i] > most) most = logits[i];
    double sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - most);
    double lse = log(sum) + most;
    if (p)
        for (int i = 0; i < vocab; i++) p[i] = (float)exp((double)logits[i] - lse);
    return lse;
}

/* KL(dense || this): sum p_dense (logit_dense - logit) - lse_dense + lse. */
static double divergence(const struct run *r, const float *logits, double lse)
{
    double sum = 0;
    for (int i = 0; i < r->step.limits.vocab; i++) sum += (double)r->p[i] * ((double)r->dense[i] - logits[i]);
    return fmax(sum - r->dense_lse + lse, 0);
}

/* Takes prediction `at` (0 .. n_steps-1) of policy i and decides which token it is fed. */
static enum status observe(struct run *r, int i, int at, const struct engine_output *out, struct reason *why)
{
    const struct eval_request *q = r->q;
    struct eval_result *to = &r->result[i];
    int vocab = r->step.limits.vocab;
    bool is_dense = q->compare && i == 0;
    int32_t token = r->next[i] = q->greedy ? out->best : q->token[q->n_prompt + at];
    if (to->generated) to->generated[at] = token;
    double lse = log_sum_exp(out->logits, vocab, is_dense ? r->p : NULL), nll = lse - out->logits[token],
           kl = 0;
    if (is_dense) {
        memcpy(r->dense, out->logits, (size_t)vocab * sizeof(float));
        r->dense_lse = lse;
        r->dense_best = out->best;
    } else if (q->compare) {
        kl = divergence(r, out->logits, lse);
    }
    bool same = q->compare && out->best == r->dense_best;
    to->nll += nll;
    to->kl += kl;
    r->n_same[i] += same;
    r->n_right[i] += out->best == token;
    float *row = r->row + EVAL_STEP_COUNT * i;
    row[EVAL_STEP_NLL] = (float)nll;
    row[EVAL_STEP_KL] = (float)kl;
    row[EVAL_STEP_SAME] = same;
    row[EVAL_STEP_RIGHT] = out->best == token;
    if (!isfinite(nll))
        return status_fail(why, STATUS_BAD_MODEL,
                           "the logits after %d tokens are not finite: is the model's data "
                           "damaged, or its range beyond --kv-dtype?",
                           q->n_prompt + at);
    return i == q->first && r->logits.file ? npy_write_row(&r->logits, out->logits, why) : STATUS_OK;
}

/* Room for the tokens of sequence i; the pool was sized for all of them. */
static void reserve(struct run *r, int i, int n_tokens)
{
    ASSERT(seq_reserve(&r->seq[i], &r->pages, n_tokens, r->step.limits.block_tokens) == STATUS_OK);
}

static enum status prefill(struct run *r, int i, struct reason *why)
{
    const struct eval_request *q = r->q;
    struct seq *s = &r->seq[i];
    struct engine_result out = {0};
    seq_open(s, i, &q->policy[i], q->token, q->n_prompt, q->n_prompt + q->n_steps,
             r->step.limits.block_tokens);
    while (s->fed < s->n_prompt) {
        int left = s->n_prompt - s->fed, n = left < q->prefill_chunk ? left : q->prefill_chunk;
        reserve(r, i, s->fed + n);
        step_clear(&r->step, r->n_steps++);
        step_add_prompt(&r->step, s, n, n == left ? STEP_WANT_LOGITS : STEP_WANT_NOTHING);
        engine_step(r->engine, &r->step, &out);
    }
    return observe(r, i, 0, out.output, why);
}

/* Feeds every sequence its next token. */
static void decode(struct run *r, struct engine_result *out)
{
    step_clear(&r->step, r->n_steps++);
    for (int i = 0; i < r->q->n_policies; i++) {
        seq_append_token(&r->seq[i], r->next[i]);
        reserve(r, i, r->seq[i].n_tokens);
        step_add_decode(&r->step, &r->seq[i], STEP_WANT_LOGITS);
    }
    engine_step(r->engine, &r->step, out);
}

static enum status run_steps(struct run *r, struct reason *why)
{
    const struct eval_request *q = r->q;
    enum status status = STATUS_OK;
    int64_t decode_us = 0;
    for (int i = 0; i < q->n_policies && status == STATUS_OK; i++) status = prefill(r, i, why);
    for (int at = 0; at < q->n_steps && status == STATUS_OK; at++) {
        struct engine_result out;
        if (r->steps.file) status = npy_write_row(&r->steps, r->row, why);
        if (status != STATUS_OK) return status;
        int64_t begun = clock_us(); /* the step alone: sums over logits and dumps are not decode */
        decode(r, &out);
        decode_us += clock_us() - begun;
        for (int i = 0; i < q->n_policies && status == STATUS_OK && at + 1 < q->n_steps; i++)
            status = observe(r, i, at + 1, &out.output[i], why);
        if (status == STATUS_OK && at + 1 == q->n_steps && r->logits.file)
            status = npy_write_row(&r->logits, out.output[q->first].logits, why);
    }
    for (int i = 0; i < q->n_policies && status == STATUS_OK; i++) {
        struct eval_result *to = &r->result[i];
        to->nll /= q->n_steps;
        to->kl /= q->n_steps;
        to->top = (double)r->n_same[i] / q->n_steps;
        to->right = (double)r->n_right[i] / q->n_steps;
        to->ppl = fmin(exp(to->nll), DBL_MAX); /* JSON has no infinity */
        to->tokens_per_s = q->n_steps / ((double)decode_us * 1e-6);
        generation_exposure(r->engine, i, &to->exposure);
    }
    return status;
}

static void *need(size_t n, size_t bytes)
{
    void *p = calloc(n, bytes);
    if (!p) DIE(EXIT_CODE_MEMORY, "lower --steps", "no memory for an evaluation");
    return p;
}

static void open_run(struct run *r)
{
    const struct step_limits *l = engine_limits(r->engine);
    pages_open(&r->pages, l->n_blocks);
    step_open(&r->step, l);
    r->dense = need((size_t)l->vocab, sizeof(float));
    r->p = need((size_t)l->vocab, sizeof(float));
    r->row = need(EVAL_STEP_COUNT * (size_t)r->q->n_policies, sizeof(float));
    for (int i = 0; i < r->q->n_policies && r->q->greedy; i++)
        r->result[i].generated = need((size_t)r->q->n_steps, sizeof(int32_t));
}

static void close_run(struct run *r)
{
    for (int i = 0; i < r->q->n_policies; i++) seq_close(&r->seq[i], &r->pages);
    pages_check(&r->pages);
    ASSERT(r->pages.n_free == r->pages.n_blocks);
    pages_close(&r->pages);
    step_close(&r->step);
    free(r->dense);
    free(r->p);
    free(r->row);
}

enum status eval_run(struct engine *e, const struct eval_request *q, struct eval_result *result,
                     struct reason *why)
{
    struct run r = {.engine = e, .q = q, .result = result};
    const struct step_limits *l = engine_limits(e);
    ASSERT(q->n_policies > 0 && q->n_policies <= EVAL_POLICIES_MAX && q->n_policies <= l->n_slots);
    memset(result, 0, (size_t)q->n_policies * sizeof *result);
    enum status status = STATUS_OK;
    if (q->dump_logits)
        status = npy_open(&r.logits, "--dump-logits", q->dump_logits, q->n_steps + 1, l->vocab, why);
    if (status == STATUS_OK && q->dump_steps)
        status = npy_open(&r.steps, "--dump-steps", q->dump_steps, q->n_steps,
                          EVAL_STEP_COUNT * q->n_policies, why);
    if (status == STATUS_OK) {
        open_run(&r);
        status = run_steps(&r, why);
        close_run(&r);
    }
    struct npy *file[] = {&r.logits, &r.steps};
    for (int i = 0; i < 2; i++) {
        enum status closed = npy_close(file[i], status == STATUS_OK ? why : NULL);
        if (status == STATUS_OK) status = closed;
    }
    if (status != STATUS_OK) eval_close(result, q->n_policies);
    return status;
}

void eval_close(struct eval_result *result, int n_policies)
{
    for (int i = 0; i < n_policies; i++) {
        free(result[i].generated);
        result[i].generated = NULL;
    }
}

enum status eval_read_tokens(const char *path, int vocab, int32_t **tokens, int *n_tokens, struct reason *why)
{
    FILE *f = fopen(path, "r");
    if (!f) return status_fail(why, STATUS_BAD_OPTION, "--tokens %s: %s", path, strerror(errno));
    int32_t *ids = NULL;
    int n = 0, capacity = 0, c = getc(f);
    enum status status = STATUS_OK;
    while (status == STATUS_OK) {
        while (c != EOF && isspace(c)) c = getc(f);
        if (c == EOF) break;
        long value = 0;
        int digits = 0;
        for (; c >= '0' && c <= '9'; c = getc(f), digits++)
            if (value <= INT32_MAX) value = value * 10 + (c - '0');
        if (digits == 0 || (c != EOF && !isspace(c)))
            status =
                status_fail(why, STATUS_BAD_INPUT, "--tokens %s: entry %d is not a token id", path, n + 1);
        else if (value >= vocab)
            status = status_fail(why, STATUS_BAD_INPUT, "--tokens %s: entry %d is %ld, the vocabulary has %d",
                                 path, n + 1, value, vocab);
        if (n == capacity) {
            capacity = capacity ? capacity * 2 : 4096;
            ids = realloc(ids, (size_t)capacity * sizeof *ids);
            if (!ids) DIE(EXIT_CODE_MEMORY, NULL, "no memory for %d token ids", capacity);
        }
        ids[n++] = (int32_t)value;
    }
    if (status == STATUS_OK && ferror(f))
        status = status_fail(why, STATUS_IO, "--tokens %s: %s", path, strerror(errno));
    fclose(f);
    if (status != STATUS_OK) {
        free(ids);
        return status;
    }
    *tokens = ids;
    *n_tokens = n;
    return STATUS_OK;
}
