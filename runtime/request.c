#include "runtime/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/buffer.h"

static void *copy_of(const void *from, size_t n_items, size_t item_bytes)
{
    void *to = buffer_zeroed(n_items, item_bytes);
    if (n_items) memcpy(to, from, n_items * item_bytes);
    return to;
}

struct request *request_open(const struct service_request *from, int max_tokens)
{
    struct request *r = buffer_zeroed(1, sizeof *r);
    r->from = *from;
    r->max_tokens = max_tokens;
    r->n_choices = r->n_left = from->n_choices ? from->n_choices : 1;
    r->choice = buffer_zeroed((size_t)r->n_choices, sizeof *r->choice);
    r->from.prompt = copy_of(from->prompt, (size_t)from->n_prompt, sizeof *from->prompt);
    r->from.stop_token = copy_of(from->stop_token, (size_t)from->n_stop_tokens, sizeof *from->stop_token);
    char **stop = buffer_zeroed((size_t)from->n_stop, sizeof *stop);
    for (int i = 0; i < from->n_stop; i++) stop[i] = copy_of(from->stop[i], strlen(from->stop[i]) + 1, 1);
    r->from.stop = (const char *const *)stop;
    r->from.sampling.n_prompt = from->n_prompt;
    r->from.sampling.bias =
        copy_of(from->sampling.bias, (size_t)from->sampling.n_bias, sizeof *from->sampling.bias);
    r->usage = (struct service_usage){.n_prompt = from->n_prompt, .exposure = 1, .kv_read_share = 1};
    r->submitted_us = clock_us();
    return r;
}

void request_close(struct request *r)
{
    for (int i = 0; i < r->n_choices; i++) {
        struct choice *c = &r->choice[i];
        if (c->stream) token_stream_close(c->stream);
        stop_close(&c->stop);
        if (c->constraint) c->constraint->table->free(c->constraint);
    }
    for (int i = 0; i < r->from.n_stop; i++) free((char *)r->from.stop[i]);
    free((void *)r->from.stop);
    free((void *)r->from.prompt);
    free((void *)r->from.sampling.bias);
    free((void *)r->from.stop_token);
    free(r->choice);
    free(r);
}

void request_begin(struct request *r, const struct request_tools *t)
{
    for (int i = 0; i < r->n_choices; i++) {
        struct choice *c = &r->choice[i];
        *c = (struct choice){.request = r, .index = i, .sampling = r->from.sampling};
        c->sampling.request = (uint64_t)i;
        c->seq.owner = c;
        if (t->tokenizer) c->stream = token_stream_open(t->tokenizer, !r->from.keep_special);
        stop_open(&c->stop, r->from.stop, r->from.n_stop);
        struct constraint *first = r->choice[0].constraint;
        if (r->from.constraint) c->constraint = i ? first->table->clone(first) : r->from.constraint;
    }
}

enum step_want request_want(const struct choice *c, int vocab)
{
    const struct service_request *r = &c->request->from;
    if (c->constraint || r->want_logits || r->want_prompt) return STEP_WANT_LOGITS;
    if (sampling_is_greedy(&c->sampling)) return STEP_WANT_BEST;
    return sampling_top_suffices(&c->sampling, vocab) ? STEP_WANT_CANDIDATES : STEP_WANT_LOGITS;
}

/* False: the constraint allows nothing more. */
static bool draw(struct choice *c, const struct request_tools *t, const struct engine_output *out,
                 int32_t *token)
{
    const struct seq *q = &c->seq.seq;
    c->sampling.allowed = NULL;
    if (c->constraint) {
        if (!c->constraint->table->fill(c->constraint, t->mask, t->vocab)) return false;
        c->sampling.allowed = t->mask;
    } else if (sampling_is_greedy(&c->sampling)) {
        *token = out->best;
        return true;
    } else if (out->top) {
        *token = sampler_draw_top(t->sampler, &c->sampling, out->top, q->n_tokens);
        return true;
    }
    *token = sampler_draw(t->sampler, &c->sampling, out->logits, q->token, q->n_tokens, q->n_tokens);
    return true;
}

static bool ends_text(const struct choice *c, const struct request_tools *t, int32_t token)
{
    const struct service_request *r = &c->request->from;
    for (int i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_token[i] == token) return true;
    for (int i = 0; i < t->n_eos && !(r->ignore_eos && !c->constraint); i++)
        if (t->eos[i] == token) return true;
    return false;
}

/* False: the logits are no numbers, and the choice is at its end. */
static bool begin_output(const struct choice *c, const struct engine_output *out, struct service_end *end)
{
    *end = (struct service_end){.choice = c->index, .reason = SERVICE_FINISH_STOP, .stop_token = -1};
    if (isfinite(out->best_logit)) return true;
    end->reason = SERVICE_FINISH_FAILED;
    return false;
}

bool request_score(struct choice *c, const struct engine_output *out, struct service_end *end)
{
    const struct service_request *r = &c->request->from;
    int index = out->position + 1;
    if (!begin_output(c, out, end)) return false;
    struct service_prompt_token event = {.id = r->prompt[index], .index = index, .logits = out->logits};
    if (r->sink->prompt) r->sink->prompt(r->user, &event);
    return true;
}

bool request_draw(struct choice *c, const struct request_tools *t, const struct engine_output *out,
                  int32_t *token, struct service_end *end)
{
    struct request *r = c->request;
    if (!begin_output(c, out, end)) return false;
    if (r->from.prompt_only) {
        end->reason = SERVICE_FINISH_LENGTH;
        return false;
    }
    if (!draw(c, t, out, token)) return false;
    if (!r->first_us) r->first_us = clock_us();
    c->n_drawn++;
    if (ends_text(c, t, *token)) {
        end->stop_token = *token;
        return false;
    }
    if (c->constraint) c->constraint->table->accept(c->constraint, *token);
    struct service_token event = {
        .choice = c->index, .id = *token, .index = c->n_drawn - 1, .text = "", .logits = NULL};
    if (r->from.want_logits) event.logits = out->logits;
    if (c->stream) {
        size_t n;
        const char *text = token_stream_push(c->stream, *token, &n);
        for (size_t k = 0; k < n; k++) event.n_chars += (text[k] & 0xc0) != 0x80;
        event.text = stop_push(&c->stop, text, n, &event.n_text);
    }
    if (r->from.sink->token) r->from.sink->token(r->from.user, &event);
    if (c->stop.stopped) {
        end->stop_text = c->stop.found;
        return false;
    }
    end->reason = SERVICE_FINISH_LENGTH;
    return c->n_drawn < r->max_tokens;
}

void request_end(struct choice *c, struct service_end *end)
{
    struct request *r = c->request;
    struct buffer rest = {0};
    end->choice = c->index;
    end->n_tokens = c->n_drawn;
    if (c->stream) {
        size_t n;
        const char *text = token_stream_flush(c->stream, &n);
        text = stop_push(&c->stop, text, n, &n);
        buffer_append(&rest, text, n);
        text = stop_flush(&c->stop, &n);
        buffer_append(&rest, text, n);
        if (c->stop.stopped && end->reason == SERVICE_FINISH_LENGTH) {
            end->reason = SERVICE_FINISH_STOP; /* what was left held a stop string */
            end->stop_text = c->stop.found;
        }
    }
    end->text = rest.n ? rest.bytes : "";
    end->n_text = rest.n;
    c->ended = true;
    r->usage.n_completion += c->n_drawn;
    if (r->from.sink->end) r->from.sink->end(r->from.user, end);
    buffer_free(&rest);
}
