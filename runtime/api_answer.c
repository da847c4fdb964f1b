/* api_answer.c - what a client hears of a request: collected into one response, or as server-sent events (HTML's
 * event stream, one "data:" line and an empty line each), in OpenAI's objects. A stream that the shutdown cuts off ends
 * with an error event and without [DONE]. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/die.h"
#include "runtime/engine.h"
#include "runtime/utf8.h"

struct written { /* one choice */
    struct buffer text;
    /* Log-probabilities as JSON list items. Chat: all in `content`. Completions: one list each. */
    struct buffer content, token, logprob, top, offset;
    int n_tokens;
    int n_chars; /* of the text so far and what a stop string holds back of it, for the offsets */
    bool begun;
    struct buffer end; /* "finish_reason" and "stop_reason" as JSON fields */
};

struct api_answer {
    const struct api *api;
    const struct api_request *r;
    char *id;
    int64_t created;
    struct buffer head;     /* of an event, up to the number of its choice */
    struct written *choice; /* (n_prompts * n) */
    int **offset; /* (n_prompts) where each token of the prompt begins in its text, with echo and logprobs */
    int n_left;   /* prompts that are not done */
    bool cut, failed;           /* by the shutdown; its logits were no numbers */
    bool repeatable;            /* nothing measured is written */
    struct service_usage usage; /* sums */
    double kv_read;             /* sum of share * tokens */
};

static bool is_chat(const struct api_answer *w) { return w->r->endpoint == API_CHAT; }

static int chars_of(const char *text, size_t n)
{
    int chars = 0;
    for (size_t i = 0; i < n; i++) chars += (text[i] & 0xc0) != 0x80;
    return chars;
}

/* ---- log-probabilities */

/* A token's bytes; the name of a special token. *owned is to be freed. */
static const char *bytes_of(const struct api_answer *w, int32_t id, size_t *n, char **owned)
{
    const char *bytes = tokenizer_bytes(w->api->o.tokenizer, id, n);
    *owned = NULL;
    if (bytes) return bytes;
    if (tokenizer_decode(w->api->o.tokenizer, &id, 1, false, owned, n, NULL) == STATUS_OK) return *owned;
    *n = 0;
    return "";
}

/* JSON knows no infinity; OpenAI writes the same number. */
static double written_logprob(float logprob) { return isfinite(logprob) ? (double)logprob : -9999.0; }

static void write_chat_logprob(const struct api_answer *w, struct buffer *out, int32_t id, float logprob)
{
    size_t n;
    char *owned;
    const char *bytes = bytes_of(w, id, &n, &owned);
    api_write_format(out, "{\"token\": ");
    api_write_text(out, bytes, n);
    api_write_format(out, ", \"logprob\": %.8g, \"bytes\": [", written_logprob(logprob));
    for (size_t i = 0; i < n; i++) api_write_format(out, i ? ", %d" : "%d", (unsigned char)bytes[i]);
    api_write_format(out, "]");
    free(owned);
}

static void comma(struct buffer *b)
{
    if (b->n) buffer_append(b, ", ", 2);
}

static void add_chat_logprobs(const struct api_answer *w, struct written *c, int32_t id, float logprob,
                              const struct sampler_logprob *top, int n_top)
{
    comma(&c->content);
    write_chat_logprob(w, &c->content, id, logprob);
    api_write_format(&c->content, ", \"top_logprobs\": [");
    for (int i = 0; i < n_top; i++) {
        if (i) buffer_append(&c->content, ", ", 2);
        write_chat_logprob(w, &c->content, top[i].token, top[i].logprob);
        buffer_append(&c->content, "}", 1);
    }
    api_write_format(&c->content, "]}");
}

/* Completions name alternatives by their text: a piece of a character is written as OpenAI writes it, "bytes:\xe2\x80",
 * or several of them would be one name; so is the text of a more likely one (the byte token of a letter). */
static void write_completion_token(const struct api_answer *w, struct buffer *out, int32_t id, bool taken)
{
    size_t n;
    char *owned;
    const char *bytes = bytes_of(w, id, &n, &owned);
    if (!taken && utf8_valid_prefix(bytes, n) == n) api_write_text(out, bytes, n);
    else {
        api_write_format(out, "\"bytes:");
        for (size_t i = 0; i < n; i++) api_write_format(out, "\\\\x%02x", (unsigned char)bytes[i]);
        api_write_format(out, "\"");
    }
    free(owned);
}

/* Has an alternative before it the text of top[i]? */
static bool is_taken(const struct api_answer *w, const struct sampler_logprob *top, int i)
{
    size_t n, m;
    char *mine, *other;
    const char *text = bytes_of(w, top[i].token, &n, &mine);
    bool taken = false;
    for (int k = 0; k < i && !taken; k++) {
        const char *before = bytes_of(w, top[k].token, &m, &other);
        taken = n == m && memcmp(text, before, n) == 0;
        free(other);
    }
    free(mine);
    return taken;
}

static void add_completion_token(const struct api_answer *w, struct written *c, int32_t id, int offset)
{
    comma(&c->token);
    write_completion_token(w, &c->token, id, false);
    comma(&c->offset);
    api_write_format(&c->offset, "%d", offset);
    comma(&c->logprob);
    comma(&c->top);
}

static void add_completion_logprobs(const struct api_answer *w, struct written *c, int32_t id, int offset,
                                    float logprob, const struct sampler_logprob *top, int n_top)
{
    add_completion_token(w, c, id, offset);
    api_write_format(&c->logprob, "%.8g", written_logprob(logprob));
    buffer_append(&c->top, "{", 1);
    for (int i = 0; i < n_top; i++) {
        if (i) buffer_append(&c->top, ", ", 2);
        write_completion_token(w, &c->top, top[i].token, is_taken(w, top, i));
        api_write_format(&c->top, ": %.8g", written_logprob(top[i].logprob));
    }
    buffer_append(&c->top, "}", 1);
}

enum { TOP_MAX = 20 };
static int count_top(const struct api_answer *w)
{
    return w->r->n_top < w->api->o.vocab ? w->r->n_top : w->api->o.vocab;
}

static void add_logprobs(const struct api_answer *w, struct written *c, const struct service_token *t)
{
    struct sampler_logprob top[TOP_MAX];
    int n_top = count_top(w);
    float logprob = sampler_logprobs(w->api->o.vocab, t->logits, t->id, top, n_top);
    if (is_chat(w)) add_chat_logprobs(w, c, t->id, logprob, top, n_top);
    else add_completion_logprobs(w, c, t->id, c->n_chars, logprob, top, n_top);
}

/* Where tokens begin in their text, in characters; returns how many it has. */
static int find_offsets(const struct api_answer *w, const struct token_list *l, bool skip_special,
                        int *offset)
{
    struct token_stream *stream = token_stream_open(w->api->o.tokenizer, skip_special);
    int at = 0;
    for (size_t i = 0; i < l->n_ids; i++) {
        size_t n;
        offset[i] = at;
        const char *text = token_stream_push(stream, l->ids[i], &n);
        at += chars_of(text, n);
    }
    size_t n;
    const char *text = token_stream_flush(stream, &n);
    at += chars_of(text, n);
    token_stream_close(stream);
    return at;
}

/* The text that is echoed is the client's: special tokens are in it if they came as text, but begin-of-text and a space
 * that the tokenizer added are not. */
static int *prompt_offsets(const struct api_answer *w, int prompt, int n_chars)
{
    const struct token_list *l = &w->r->prompt[prompt];
    int *offset = buffer_zeroed(l->n_ids, sizeof *offset);
    int more = find_offsets(w, l, !w->r->keep_special, offset) - n_chars;
    if (more != 0 && !w->r->keep_special) more = find_offsets(w, l, false, offset) - n_chars;
    for (size_t i = 0; i < l->n_ids; i++) {
        offset[i] = offset[i] > more ? offset[i] - more : 0;
        if (offset[i] > n_chars) offset[i] = n_chars;
    }
    return offset;
}

/* Nothing predicts the first token. */
static void begin_prompt_logprobs(struct api_answer *w, int prompt)
{
    struct written *c = &w->choice[prompt * w->r->n];
    w->offset[prompt] = prompt_offsets(w, prompt, c->n_chars);
    for (int i = 0; i < w->r->n; i++, c++) {
        add_completion_token(w, c, w->r->prompt[prompt].ids[0], w->offset[prompt][0]);
        buffer_append_string(&c->logprob, "null");
        buffer_append_string(&c->top, "null");
    }
}

void api_answer_prompt(struct api_answer *w, int prompt, const struct service_prompt_token *t)
{
    struct sampler_logprob top[TOP_MAX];
    int n_top = count_top(w), offset = w->offset[prompt][t->index];
    float logprob = sampler_logprobs(w->api->o.vocab, t->logits, t->id, top, n_top);
    struct written *c = &w->choice[prompt * w->r->n];
    for (int i = 0; i < w->r->n; i++, c++) add_completion_logprobs(w, c, t->id, offset, logprob, top, n_top);
}

/* The lists so far as the value of "logprobs", and empty again. */
static void write_logprobs(const struct api_answer *w, struct written *c, struct buffer *out)
{
    if (w->r->n_top < 0) {
        api_write_format(out, "null");
        return;
    }
    if (is_chat(w)) {
        api_write_format(out, "{\"content\": [");
        buffer_append(out, c->content.bytes, c->content.n);
        api_write_format(out, "], \"refusal\": null}");
    } else {
        struct buffer *list[] = {&c->token, &c->logprob, &c->top, &c->offset};
        static const char *const name[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
        for (int i = 0; i < 4; i++) {
            api_write_format(out, "%s\"%s\": ", i ? ", " : "{", name[i]);
            if (i == 2 && w->r->n_top == 0) { /* no alternatives were asked for */
                api_write_format(out, "null");
                continue;
            }
            buffer_append(out, "[", 1);
            buffer_append(out, list[i]->bytes, list[i]->n);
            buffer_append(out, "]", 1);
        }
        buffer_append(out, "}", 1);
        c->token.n = c->logprob.n = c->top.n = c->offset.n = 0;
    }
    c->content.n = 0;
}

/* ---- the whole */

struct api_answer *api_answer_open(const struct api *a, const struct api_request *r, const char *id,
                                   int64_t created)
{
    struct api_answer *w = buffer_zeroed(1, sizeof *w);
    w->api = a;
    w->r = r;
    w->created = created;
    w->n_left = r->n_prompts;
    w->choice = buffer_zeroed((size_t)(r->n_prompts * r->n), sizeof *w->choice);
    w->id = strdup(id);
    if (!w->id) DIE(EXIT_CODE_MEMORY, NULL, "no memory for an answer");
    api_write_format(&w->head, "\"id\": \"%.100s\", \"object\": \"%s\", \"created\": %lld, \"model\": ", id,
                     !is_chat(w) ? "text_completion"
                     : r->stream ? "chat.completion.chunk"
                                 : "chat.completion",
                     (long long)created);
    api_write_text(&w->head, a->model, strlen(a->model));
    for (int i = 0; r->echo && i < r->n_prompts * r->n; i++) {
        const char *text = r->prompt_text[i / r->n];
        buffer_append_string(&w->choice[i].text, text);
        w->choice[i].n_chars = chars_of(text, strlen(text));
    }
    if (!r->echo || r->n_top < 0) return w;
    w->offset = buffer_zeroed((size_t)r->n_prompts, sizeof *w->offset);
    for (int p = 0; p < r->n_prompts; p++) begin_prompt_logprobs(w, p);
    return w;
}

void api_answer_leave_out_measured(struct api_answer *w) { w->repeatable = true; }

void api_answer_close(struct api_answer *w)
{
    if (!w) return;
    for (int i = 0; i < w->r->n_prompts * w->r->n; i++) {
        struct written *c = &w->choice[i];
        buffer_free(&c->text);
        buffer_free(&c->content);
        buffer_free(&c->token);
        buffer_free(&c->logprob);
        buffer_free(&c->top);
        buffer_free(&c->offset);
        buffer_free(&c->end);
    }
    for (int p = 0; w->offset && p < w->r->n_prompts; p++) free(w->offset[p]);
    free(w->offset);
    buffer_free(&w->head);
    free(w->choice);
    free(w->id);
    free(w);
}

static void write_counts(struct buffer *out, int n_prompt, int n_completion)
{
    api_write_format(out, "\"prompt_tokens\": %d, \"completion_tokens\": %d, \"total_tokens\": %d", n_prompt,
                     n_completion, n_prompt + n_completion);
}

/* ---- events */

/* One event of one choice: text (a delta, and the role first) and, at its end, why. */
static void write_event(struct api_answer *w, int i, const char *text, size_t n, bool role,
                        struct buffer *out)
{
    struct written *c = &w->choice[i];
    api_write_format(out, "data: {");
    buffer_append(out, w->head.bytes, w->head.n);
    api_write_format(out, ", \"choices\": [{\"index\": %d, ", i);
    if (is_chat(w)) {
        api_write_format(out, "\"delta\": {%s", role ? "\"role\": \"assistant\", " : "");
        if (c->end.n == 0 || n > 0) {
            api_write_format(out, "\"content\": ");
            api_write_text(out, text, n);
        }
        api_write_format(out, "}");
    } else {
        api_write_format(out, "\"text\": ");
        api_write_text(out, text, n);
    }
    api_write_format(out, ", \"logprobs\": ");
    if (role || (is_chat(w) ? c->content.n : c->token.n) == 0) api_write_format(out, "null");
    else write_logprobs(w, c, out);
    buffer_append(out, ", ", 2);
    if (c->end.n) buffer_append(out, c->end.bytes, c->end.n);
    else api_write_format(out, "\"finish_reason\": null");
    buffer_append_string(out, "}]");
    if (w->r->continuous_usage) { /* of this choice */
        int n_prompt = (int)w->r->prompt[i / w->r->n].n_ids;
        buffer_append_string(out, ", \"usage\": {");
        write_counts(out, n_prompt, c->n_tokens);
        buffer_append_string(out, "}");
    } else if (w->r->include_usage) buffer_append_string(out, ", \"usage\": null");
    buffer_append_string(out, "}\n\n");
}

static void begin(struct api_answer *w, int i, struct buffer *out)
{
    struct written *c = &w->choice[i];
    if (c->begun || !w->r->stream) return;
    c->begun = true;
    if (is_chat(w)) write_event(w, i, "", 0, true, out);
    else if (w->r->echo) write_event(w, i, c->text.bytes, c->text.n, false, out);
}

void api_answer_token(struct api_answer *w, int prompt, const struct service_token *t, struct buffer *out)
{
    int i = prompt * w->r->n + t->choice;
    struct written *c = &w->choice[i];
    begin(w, i, out);
    c->n_tokens = t->index + 1;
    if (w->r->n_top >= 0) add_logprobs(w, c, t);
    c->n_chars += t->n_chars;
    if (!w->r->stream) buffer_append(&c->text, t->text, t->n_text);
    else if (t->n_text > 0 || w->r->n_top >= 0) write_event(w, i, t->text, t->n_text, false, out);
}

void api_answer_end(struct api_answer *w, int prompt, const struct service_end *e, struct buffer *out)
{
    int i = prompt * w->r->n + e->choice;
    struct written *c = &w->choice[i];
    if (e->reason != SERVICE_FINISH_STOP && e->reason != SERVICE_FINISH_LENGTH) {
        if (e->reason == SERVICE_FINISH_FAILED) w->failed = true;
        else w->cut = true;
        return;
    }
    begin(w, i, out);
    c->n_tokens = e->n_tokens;
    if (!w->r->stream) buffer_append(&c->text, e->text, e->n_text);
    else if (is_chat(w) && e->n_text) write_event(w, i, e->text, e->n_text, false, out);
    api_write_format(&c->end, "\"finish_reason\": \"%s\", \"stop_reason\": ", service_finish_name(e->reason));
    if (e->stop_text) api_write_text(&c->end, e->stop_text, strlen(e->stop_text));
    else if (e->stop_token >= 0) api_write_format(&c->end, "%d", e->stop_token);
    else api_write_format(&c->end, "null");
    if (w->r->stream) write_event(w, i, e->text, is_chat(w) ? 0 : e->n_text, false, out);
}

static void write_usage(const struct api_answer *w, struct buffer *out)
{
    const struct service_usage *u = &w->usage;
    double exposure =
        u->pages_loaded ? (double)(u->pages_loaded + u->pages_met) / (double)u->pages_loaded : 1;
    buffer_append_string(out, "\"usage\": {");
    write_counts(out, u->n_prompt, u->n_completion);
    buffer_append_string(out, ", ");
    if (!w->repeatable)
        api_write_format(out, "\"prompt_tokens_details\": {\"cached_tokens\": %d}, ", u->n_cached);
    api_write_format(out,
                     "\"retro\": {\"exposure\": %.6g, \"pages_loaded\": %lld, \"pages_met\": %lld, "
                     "\"kv_read_share\": %.6g",
                     exposure, (long long)u->pages_loaded, (long long)u->pages_met,
                     u->n_completion ? w->kv_read / u->n_completion : 1.0);
    if (!w->repeatable)
        api_write_format(out,
                         ", \"preempted\": %d, \"queue_ms\": %.3f, \"prefill_ms\": %.3f, \"decode_ms\": %.3f",
                         u->n_preempted, (double)u->queue_us * 1e-3, (double)u->prefill_us * 1e-3,
                         (double)u->decode_us * 1e-3);
    api_write_format(out, "}}");
}

/* False when the answer is not whole. */
static bool is_whole(const struct api_answer *w, struct api_error *e)
{
    if (w->failed) api_error_set(e, 500, "not_finite", NULL, "the model's logits are " ENGINE_NOT_FINITE);
    else if (w->cut)
        api_error_set(e, 503, "shutting_down", NULL, "the server is shutting down: the answer was cut off");
    return !w->failed && !w->cut;
}

bool api_answer_done(struct api_answer *w, int prompt, const struct service_usage *u, struct buffer *out)
{
    struct service_usage *sum = &w->usage;
    (void)prompt;
    sum->n_prompt += u->n_prompt;
    sum->n_completion += u->n_completion;
    sum->n_cached += u->n_cached;
    sum->pages_loaded += u->pages_loaded;
    sum->pages_met += u->pages_met;
    sum->n_preempted += u->n_preempted;
    w->kv_read += u->kv_read_share * u->n_completion;
    /* Several prompts run side by side: the slowest counts. */
    if (u->queue_us > sum->queue_us) sum->queue_us = u->queue_us;
    if (u->prefill_us > sum->prefill_us) sum->prefill_us = u->prefill_us;
    if (u->decode_us > sum->decode_us) sum->decode_us = u->decode_us;
    if (--w->n_left > 0) return false;
    if (!w->r->stream) return true;
    struct api_error e;
    if (!is_whole(w, &e)) {
        api_write_format(out, "data: ");
        api_error_write(&e, out);
        api_write_format(out, "\n\n");
        return true;
    }
    if (w->r->include_usage) {
        api_write_format(out, "data: {");
        buffer_append(out, w->head.bytes, w->head.n);
        api_write_format(out, ", \"choices\": [], ");
        write_usage(w, out);
        api_write_format(out, "}\n\n");
    }
    api_write_format(out, "data: [DONE]\n\n");
    return true;
}

bool api_answer_write(struct api_answer *w, struct buffer *out, struct api_error *e)
{
    ASSERT(w->n_left == 0);
    if (!is_whole(w, e)) return false;
    buffer_append(out, "{", 1);
    buffer_append(out, w->head.bytes, w->head.n);
    api_write_format(out, ", \"choices\": [");
    for (int i = 0; i < w->r->n_prompts * w->r->n; i++) {
        struct written *c = &w->choice[i];
        api_write_format(out, "%s{\"index\": %d, ", i ? ", " : "", i);
        if (is_chat(w)) api_write_format(out, "\"message\": {\"role\": \"assistant\", \"content\": ");
        else api_write_format(out, "\"text\": ");
        api_write_text(out, c->text.bytes, c->text.n);
        if (is_chat(w)) api_write_format(out, ", \"refusal\": null}");
        api_write_format(out, ", \"logprobs\": ");
        write_logprobs(w, c, out);
        buffer_append(out, ", ", 2);
        buffer_append(out, c->end.bytes, c->end.n);
        buffer_append(out, "}", 1);
    }
    api_write_format(out, "], ");
    write_usage(w, out);
    buffer_append(out, "}", 1);
    return true;
}
