/* cmd_generate.c - `retro generate`: a prompt, or a dialogue on a terminal, to streamed text; one summary
 * line on standard error. Rank 0 tokenizes, samples and prints; the other ranks follow its steps. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/commands.h"
#include "launcher/session.h"
#include "launcher/text.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"
#include "runtime/buffer.h"
#include "runtime/chat.h"
#include "runtime/generation.h"
#include "runtime/sampler.h"
#include "runtime/stop.h"

/* What rank 0 keeps from the options to the last character. */
struct run {
    struct session *s;
    const struct options *o;
    struct tokenizer *tokenizer;
    struct chat_template chat;
    struct sampling sampling;
    struct token_list prompt;
    struct recording recording;
    bool dialogue;
};

struct outcome {
    int n_tokens;
    const char *finish; /* "stop", "end of text", "max-tokens", "context"; NULL: logits that are no numbers */
    double seconds, first_s;
    struct exposure exposure;
};

enum { TURNS_MAX = 1024 };

struct dialogue {
    struct chat_message message[TURNS_MAX]; /* contents are owned */
    int n;
};

/* A recording brings its tokens: what says which ones to generate would be ignored. A config file may say it. */
static enum status check_replay(const struct options *o, struct reason *why)
{
    const struct {
        bool typed;
        const char *flag;
    } moot[] = {
        {o->typed.chat, "chat"},
        {o->typed.system, "system"},
        {o->typed.max_tokens, "max-tokens"},
        {o->typed.max_context, "max-context"},
        {o->typed.stop, "stop"},
        {o->typed.ignore_eos, "ignore-eos"},
        {o->typed.temperature, "temperature"},
        {o->typed.top_k, "top-k"},
        {o->typed.top_p, "top-p"},
        {o->typed.min_p, "min-p"},
        {o->typed.repetition_penalty, "repetition-penalty"},
        {o->typed.seed, "seed"},
    };
    for (size_t i = 0; i < sizeof moot / sizeof *moot; i++)
        if (moot[i].typed)
            return status_fail(why, STATUS_BAD_OPTION,
                               "--%s and --replay: the recording's tokens are executed; leave one out",
                               moot[i].flag);
    return STATUS_OK;
}

static enum status check_options(const struct options *o, struct reason *why)
{
    if ((o->prompt != NULL) + (o->prompt_file != NULL) + (o->replay != NULL) > 1)
        return status_fail(why, STATUS_BAD_OPTION, "--prompt, --prompt-file and --replay: give one of them");
    if (o->system && !o->chat) return status_fail(why, STATUS_BAD_OPTION, "--system: needs --chat");
    if (o->record && o->replay)
        return status_fail(why, STATUS_BAD_OPTION, "--record and --replay: give one of them");
    if (o->replay) return check_replay(o, why);
    if (o->temperature == 0 && (o->given.top_p || o->given.min_p || o->given.top_k))
        LOG_WARN("--top-k, --top-p and --min-p have no effect at temperature 0");
    for (int i = 0; i < o->stop.n_items; i++)
        if (!o->stop.item[i][0]) return status_fail(why, STATUS_BAD_OPTION, "--stop: an empty text");
    return STATUS_OK;
}

/* A tokenizer may know added tokens for which the model has no embedding. */
static enum status check_ids(const struct run *r, struct reason *why)
{
    int vocab = r->s->files.arch.vocab;
    for (size_t i = 0; i < r->prompt.n_ids; i++)
        if (r->prompt.ids[i] >= vocab)
            return status_fail(
                why, STATUS_BAD_INPUT,
                "token %zu of the prompt has id %d, the model's vocabulary has %d: leave it out", i + 1,
                r->prompt.ids[i], vocab);
    return STATUS_OK;
}

/* The prompt's text by the options; malloc'd. */
static enum status read_prompt(const struct options *o, char **text, size_t *n, struct reason *why)
{
    if (o->prompt_file) return text_read_file(o->prompt_file, text, n, why);
    if (!o->prompt || strcmp(o->prompt, "-") == 0)
        return text_read_stream(stdin, "standard input", text, n, why);
    *text = strdup(o->prompt);
    if (!*text) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the prompt");
    *n = strlen(*text);
    return STATUS_OK;
}

static enum status encode_messages(struct run *r, const struct chat_message *messages, int n,
                                   struct reason *why)
{
    char *text;
    enum status status = chat_render(&r->chat, messages, n, &text, why);
    if (status != STATUS_OK) return status;
    r->prompt.n_ids = 0;
    status = tokenizer_encode(r->tokenizer, text, strlen(text), false, &r->prompt, why);
    free(text);
    return status == STATUS_OK ? check_ids(r, why) : status;
}

static enum status encode_prompt(struct run *r, struct reason *why)
{
    char *text = NULL;
    size_t n = 0;
    progress_op(PROGRESS_ASKS);
    enum status status = read_prompt(r->o, &text, &n, why);
    progress_op("tokenize");
    if (status != STATUS_OK) return status;
    if (r->o->chat && strlen(text) != n) {
        status = status_fail(why, STATUS_BAD_INPUT, "a chat message cannot hold a NUL byte");
    } else if (r->o->chat) {
        struct chat_message messages[2] = {{"system", r->o->system}, {"user", text}};
        int first = r->o->system ? 0 : 1;
        status = encode_messages(r, messages + first, 2 - first, why);
    } else {
        status = tokenizer_encode(r->tokenizer, text, n, true, &r->prompt, why);
    }
    free(text);
    if (status == STATUS_OK) status = check_ids(r, why);
    if (status == STATUS_OK && r->prompt.n_ids == 0)
        status = status_fail(why, STATUS_BAD_INPUT,
                             "the prompt is empty and the model has no begin-of-text token");
    return status;
}

/* How many tokens the sequence may hold, and the context to open the engine with. */
static enum status size_context(const struct run *r, int *context, struct reason *why)
{
    int limit = r->s->files.arch.context, wanted;
    if (r->o->max_context != OPTIONS_UNSET) {
        if (r->o->max_context > limit)
            return status_fail(why, STATUS_TOO_LONG, "--max-context %d: the model's limit is %d",
                               r->o->max_context, limit);
        limit = r->o->max_context;
    }
    if (r->dialogue) {
        wanted = limit < 8192 || r->o->max_context != OPTIONS_UNSET ? limit : 8192;
    } else {
        if (r->prompt.n_ids >= (size_t)limit)
            return status_fail(
                why, STATUS_TOO_LONG, "the prompt has %zu tokens, the context limit is %d: shorten it%s",
                r->prompt.n_ids, limit, r->o->max_context != OPTIONS_UNSET ? " or raise --max-context" : "");
        long sum = (long)r->prompt.n_ids + r->o->max_tokens;
        if (sum > limit)
            LOG_WARN("--max-tokens %d: only %zu fit into the context of %d", r->o->max_tokens,
                     (size_t)limit - r->prompt.n_ids, limit);
        wanted = sum < limit ? (int)sum : limit;
    }
    *context = wanted;
    return STATUS_OK;
}

static enum status prepare(struct run *r, int *context, struct reason *why)
{
    const struct options *o = r->o;
    enum status status = check_options(o, why);
    if (status != STATUS_OK) return status;
    r->sampling = (struct sampling){.temperature = o->temperature,
                                    .top_k = o->top_k,
                                    .top_p = o->top_p,
                                    .min_p = o->min_p,
                                    .repetition_penalty = o->repetition_penalty,
                                    .seed = (uint64_t)o->seed};
    r->dialogue = o->chat && !o->prompt && !o->prompt_file && isatty(STDIN_FILENO);
    if (!o->chat && !o->prompt && !o->prompt_file && !o->replay && isatty(STDIN_FILENO))
        return status_fail(why, STATUS_BAD_OPTION,
                           "--prompt TEXT is missing (or --prompt-file, --chat, standard input)");
    if (o->replay) {
        struct step_limits limits;
        status = record_read_limits(o->replay, &limits, why);
        if (status == STATUS_OK) *context = limits.context;
        return status;
    }
    status = tokenizer_open(&r->tokenizer, o->model, why);
    if (status == STATUS_OK && o->chat) status = chat_open(&r->chat, o->model, why);
    if (status == STATUS_OK && !r->dialogue) status = encode_prompt(r, why);
    if (status == STATUS_OK) status = size_context(r, context, why);
    return status;
}

static bool is_end(const struct run *r, int32_t token)
{
    const struct arch *a = &r->s->files.arch;
    if (r->o->ignore_eos) return false;
    for (int i = 0; i < a->n_eos; i++)
        if (token == a->eos[i]) return true;
    return a->n_eos == 0 && token == tokenizer_eos(r->tokenizer);
}

/* Prints what is certain; `answer` collects it for the dialogue. */
static void emit(const char *text, size_t n, struct buffer *answer)
{
    fwrite(text, 1, n, stdout);
    fflush(stdout);
    if (answer) buffer_append(answer, text, n);
}

static void print_text(struct stop_filter *stop, const char *text, size_t n, struct buffer *answer)
{
    size_t n_out;
    const char *out = stop_push(stop, text, n, &n_out);
    emit(out, n_out, answer);
}

/* What the engine must bring of a step for the next token to be drawn. */
static enum step_want wanted(const struct run *r, int vocab)
{
    if (sampling_is_greedy(&r->sampling)) return STEP_WANT_BEST;
    return sampling_top_suffices(&r->sampling, vocab) ? STEP_WANT_CANDIDATES : STEP_WANT_LOGITS;
}

static int32_t next_token(const struct run *r, struct sampler *sampler, const struct engine_output *out,
                          const struct seq *s)
{
    if (out->top) return sampler_draw_top(sampler, &r->sampling, out->top, s->n_tokens);
    if (out->logits)
        return sampler_draw(sampler, &r->sampling, out->logits, s->token, s->n_tokens, s->n_tokens);
    return out->best;
}

/* Decode loop: sample, print, feed. */
static void decode(struct run *r, struct generation *g, const struct engine_output *out, struct outcome *done,
                   struct buffer *answer)
{
    enum step_want want = wanted(r, g->step.limits.vocab);
    struct sampler *sampler = want == STEP_WANT_BEST ? NULL : sampler_open(g->step.limits.vocab);
    struct token_stream *stream = token_stream_open(r->tokenizer, true);
    struct stop_filter stop;
    stop_open(&stop, (const char *const *)r->o->stop.item, r->o->stop.n_items);
    size_t n;
    const char *text;
    done->finish = "max-tokens";
    for (;;) {
        if (!isfinite(out->best_logit)) { /* then every token drawn is as good as another */
            done->finish = NULL;
            break;
        }
        int32_t token = next_token(r, sampler, out, &g->seq);
        if (done->n_tokens++ == 0) done->first_s = (double)(clock_us() - g->started_us) * 1e-6;
        if (is_end(r, token)) {
            done->finish = "end of text";
            break;
        }
        text = token_stream_push(stream, token, &n);
        print_text(&stop, text, n, answer);
        if (stop.stopped || done->n_tokens == r->o->max_tokens) break;
        if (g->seq.n_tokens + 1 >= g->seq.capacity) {
            done->finish = "context";
            break;
        }
        out = generation_feed(g, token, want);
    }
    text = token_stream_flush(stream, &n);
    print_text(&stop, text, n, answer);
    text = stop_flush(&stop, &n);
    emit(text, n, answer);
    if (stop.stopped) done->finish = "stop";
    stop_close(&stop);
    token_stream_close(stream);
    sampler_close(sampler);
}

static enum status run_once(struct run *r, int capacity, struct outcome *done, struct buffer *answer,
                            struct reason *why)
{
    struct generation g;
    *done = (struct outcome){0};
    generation_open(&g, r->s->engine, &r->s->policy, r->prompt.ids, (int)r->prompt.n_ids, capacity,
                    r->o->prefill_chunk);
    g.recording = r->o->record ? &r->recording : NULL;
    const struct engine_output *out = generation_prefill(&g, wanted(r, g.step.limits.vocab));
    decode(r, &g, out, done, answer);
    done->seconds = (double)(clock_us() - g.prefilled_us) * 1e-6;
    generation_exposure(g.engine, g.seq.slot, &done->exposure);
    int n_tokens = g.seq.n_tokens;
    generation_close(&g);
    if (done->finish) return STATUS_OK;
    return status_fail(why, STATUS_BAD_MODEL, "the logits after %d tokens are " ENGINE_NOT_FINITE, n_tokens);
}

static void tell(const struct run *r, const struct outcome *d)
{
    fprintf(stderr,
            "\n%d tokens after %zu, %.1f tokens/s, first token %.3f s, %s window %d: exposure %.3f, kv read "
            "%.1f %%, "
            "finished: %s\n",
            d->n_tokens, r->prompt.n_ids, d->n_tokens > 1 ? (d->n_tokens - 1) / d->seconds : 0.0, d->first_s,
            policy_kind_name(r->s->policy.kind), r->s->policy.window, d->exposure.exposure,
            100 * d->exposure.kv_read_share, d->finish);
}

/* One turn: the user's line, taken, and the model's answer join the messages. */
static enum status run_turn(struct run *r, struct dialogue *d, char *line, int context, struct reason *why)
{
    d->message[d->n++] = (struct chat_message){"user", line};
    enum status status = encode_messages(r, d->message, d->n, why);
    if (status == STATUS_OK && r->prompt.n_ids + 1 >= (size_t)context)
        status = status_fail(why, STATUS_TOO_LONG,
                             "the dialogue fills the context of %d tokens: start again, or "
                             "with a larger --max-context",
                             context);
    if (status != STATUS_OK) return status;
    struct outcome done;
    struct buffer answer = {0};
    status = run_once(r, context, &done, &answer, why);
    d->message[d->n++] = (struct chat_message){"assistant", buffer_take(&answer)};
    if (status == STATUS_OK) tell(r, &done);
    return status;
}

/* Turns of a conversation on a terminal until end of input. */
static enum status run_dialogue(struct run *r, int context, struct reason *why)
{
    struct dialogue d = {.n = 0};
    struct buffer system = {0};
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    enum status status = STATUS_OK;
    if (r->o->system) {
        buffer_append_string(&system, r->o->system);
        d.message[d.n++] = (struct chat_message){"system", buffer_take(&system)};
    }
    while (status == STATUS_OK && d.n + 2 <= TURNS_MAX &&
           (fputs("> ", stderr), (n = getline(&line, &capacity, stdin)) >= 0)) {
        if (n > 0 && line[n - 1] == '\n') line[--n] = 0;
        if (n == 0) continue;
        if (strlen(line) != (size_t)n) {
            status = status_fail(why, STATUS_BAD_INPUT, "a chat message cannot hold a NUL byte");
            break;
        }
        status = run_turn(r, &d, line, context, why);
        line = NULL; /* the message's now */
        capacity = 0;
    }
    free(line);
    for (int i = 0; i < d.n; i++) free((char *)d.message[i].content);
    return status;
}

static enum status run_replay(struct run *r, struct reason *why)
{
    long steps, differ, first;
    enum status status = record_open(&r->recording, r->o->replay, engine_limits(r->s->engine), why);
    if (status == STATUS_OK)
        status = record_replay(&r->recording, r->s->engine, &steps, &differ, &first, why);
    if (status != STATUS_OK) return status;
    if (differ == 0) printf("%ld steps, every result has the same bits\n", steps);
    else printf("%ld steps, %ld differ, the first is step %ld\n", steps, differ, first);
    return STATUS_OK;
}

static enum status lead(struct run *r, int context, struct reason *why)
{
    struct outcome done;
    if (r->o->replay) return run_replay(r, why);
    enum status status = STATUS_OK;
    if (r->o->record) status = record_create(&r->recording, r->o->record, engine_limits(r->s->engine), why);
    if (status != STATUS_OK) return status;
    if (r->dialogue) {
        status = run_dialogue(r, context, why);
    } else {
        status = run_once(r, context, &done, NULL, why);
        if (status == STATUS_OK) tell(r, &done);
    }
    if (r->o->record) {
        enum status closed = record_close(&r->recording, status == STATUS_OK ? why : NULL);
        if (status == STATUS_OK) status = closed;
    }
    return status;
}

int cmd_generate(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    struct run r = {.s = &s, .o = o};
    int context = 0;
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK && w->rank == 0) status = prepare(&r, &context, &why);
    status = session_agree(&s, status, &context, &why);
    if (status == STATUS_OK) {
        status = session_load(&s, context, 1, &why);
        if (status == STATUS_OK && w->rank != 0) engine_follow(s.engine);
        if (status == STATUS_OK && w->rank == 0) status = lead(&r, context, &why);
        if (status != STATUS_OK) session_fail(w, status, &why);
    }
    session_close(&s);
    token_list_free(&r.prompt);
    chat_close(&r.chat);
    tokenizer_close(r.tokenizer);
    return status_exit_code(status);
}
