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

/* -ln softmax(logits)[token], summed in double. */
static double surprise(const float *logits, int vocab, int32_t token)
{
    float most = logits[0];
    for (int i = 1; i < vocab; i++)
        if (logits[i] > most) most = logits[i];
    double sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - most);
    return log(sum) + most - logits[token];
}

static enum status run_steps(struct generation *g, const struct eval_request *q, struct eval_result *r,
                             struct npy *dump, struct reason *why)
{
    int vocab = g->step.limits.vocab;
    const struct engine_output *out = generation_prefill(g, STEP_WANT_LOGITS);
    double nll = 0;
    int64_t decode_us = 0;
    for (int i = 0; i < q->n_steps; i++) {
        enum status status = dump->file ? npy_write_row(dump, out->logits, why) : STATUS_OK;
        if (status != STATUS_OK) return status;
        int32_t token = q->greedy ? out->best : q->token[q->n_prompt + i];
        if (r->generated) r->generated[i] = token;
        nll += surprise(out->logits, vocab, token);
        if (!isfinite(nll))
            return status_fail(why, STATUS_BAD_MODEL,
                               "the logits after %d tokens are not finite: is the model's data "
                               "damaged, or its range beyond --kv-dtype?",
                               q->n_prompt + i);
        int64_t begun = clock_us(); /* the step alone: the sums above and the dump are not decode */
        out = generation_feed(g, token, STEP_WANT_LOGITS);
        decode_us += clock_us() - begun;
    }
    r->nll = nll / q->n_steps;
    r->ppl = fmin(exp(r->nll), DBL_MAX); /* JSON has no infinity */
    r->tokens_per_s = q->n_steps / ((double)decode_us * 1e-6);
    return dump->file ? npy_write_row(dump, out->logits, why) : STATUS_OK;
}

enum status eval_run(struct engine *e, const struct eval_request *q, struct eval_result *r,
                     struct reason *why)
{
    *r = (struct eval_result){0};
    struct npy dump = {0};
    enum status status = STATUS_OK, closed;
    if (q->dump_logits)
        status = npy_open(&dump, q->dump_logits, q->n_steps + 1, engine_limits(e)->vocab, why);
    if (status != STATUS_OK) return status;
    if (q->greedy) {
        r->generated = malloc((size_t)q->n_steps * sizeof *r->generated);
        if (!r->generated) DIE(EXIT_CODE_MEMORY, "lower --steps", "no memory for %d tokens", q->n_steps);
    }
    struct generation g;
    generation_open(&g, e, &q->policy, q->token, q->n_prompt, q->n_prompt + q->n_steps, q->prefill_chunk);
    status = run_steps(&g, q, r, &dump, why);
    generation_exposure(&g, &r->exposure);
    generation_close(&g);
    closed = npy_close(&dump, status == STATUS_OK ? why : NULL);
    if (status == STATUS_OK) status = closed;
    if (status != STATUS_OK) {
        free(r->generated);
        r->generated = NULL;
    }
    return status;
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
