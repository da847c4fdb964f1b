/* cmd_batch.c - `retro batch`: a file of requests to a file of results, continued where it was interrupted. Rank 0
 * reads, schedules and writes; the other ranks follow its steps. */
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/commands.h"
#include "launcher/serving.h"
#include "launcher/signals.h"
#include "launcher/text.h"
#include "runtime/base/die.h"
#include "runtime/batch.h"
#include "runtime/batch_file.h"

static bool on_terminal(const struct options *o)
{
    return o->log_level >= LOG_LEVEL_INFO && isatty(STDERR_FILENO);
}

/* The first signal that asks for the end; a second one does not come here. */
static atomic_bool interrupted;

static void on_signal(void *user, int signal)
{
    const struct options *o = user;
    atomic_store(&interrupted, true);
    if (on_terminal(o)) fputs("\r\x1b[K", stderr); /* over the progress line */
    LOG_INFO("signal %d: no new requests; those being computed have %g s; a second signal ends at once",
             signal, o->drain);
}

static bool is_interrupted(void) { return atomic_load(&interrupted); }

/* Prompts given to the service for each sequence of the engine: one that is computed and one that waits, so that a
 * place never stays empty for want of a line. */
enum { IN_FLIGHT = 2 };

/* Input and --errors are neither each other nor what the run makes beside --output. */
static enum status check_files(const struct options *o, struct reason *why)
{
    static const char *const ends[] = {"", ".tmp", ".journal", ".journal.tmp"};
    const char *const path[] = {o->batch_input, o->batch_errors}, *const flag[] = {"--input", "--errors"};
    char made[PATH_MAX];
    for (int i = 0; i < 2 && path[i]; i++)
        for (int k = 0; k < 4; k++) {
            snprintf(made, sizeof made, "%s%s", o->batch_output, ends[k]);
            if (batch_file_same(path[i], made))
                return status_fail(why, STATUS_BAD_OPTION, "%s %s: the run writes %s itself: choose another",
                                   flag[i], path[i], made);
        }
    for (int k = 0; k < 2 && o->batch_errors; k++) {
        snprintf(made, sizeof made, "%s%s", o->batch_errors, ends[k]);
        if (batch_file_same(o->batch_input, made))
            return status_fail(why, STATUS_BAD_OPTION, "--input and --errors: one file");
    }
    return STATUS_OK;
}

static enum status check_options(const struct options *o, struct reason *why)
{
    if (!o->batch_input)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--input FILE is missing: requests, one JSON object a line");
    if (!o->batch_output || !o->batch_output[0])
        return status_fail(why, STATUS_BAD_OPTION, "--output FILE is missing: where the results go");
    if (o->batch_errors && batch_file_same(o->batch_errors, o->batch_output))
        return status_fail(
            why, STATUS_BAD_OPTION,
            "--errors and --output: one file; leave --errors out to have bad lines among the results");
    /* What a turn finds would depend on which lines were done before it, and a continued run has others. */
    if ((enum sched_cache)o->prefix_cache == SCHED_CACHE_TURNS)
        return status_fail(
            why, STATUS_BAD_OPTION,
            "--prefix-cache turns: results would depend on their order; batch takes on or off");
    return check_files(o, why);
}

/* What is read of the model folder: its small files where they are there, and a sample of the weights. */
static enum status digest_model(const struct session *s, char hex[2 * SHA256_BYTES + 1], struct reason *why)
{
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja"};
    struct sha256 hash;
    uint8_t digest[SHA256_BYTES];
    tensors_digest(s->files.tensors, digest);
    sha256_open(&hash);
    sha256_update(&hash, digest, sizeof digest);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[PATH_MAX], *text;
        size_t n;
        snprintf(path, sizeof path, "%s/%s", s->options->model, names[i]);
        if (access(path, F_OK) != 0) continue; /* whoever needs it has refused the model already */
        enum status status = text_read_file(path, &text, &n, why);
        if (status != STATUS_OK) return status;
        sha256_update(&hash, names[i], strlen(names[i]) + 1);
        sha256_update(&hash, &n, sizeof n);
        sha256_update(&hash, text, n);
        free(text);
    }
    sha256_digest(&hash, digest);
    sha256_hex(digest, 8, hex);
    return STATUS_OK;
}

static void set(json_t *settings, const char *flag, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void set(json_t *settings, const char *flag, const char *format, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    json_object_set_new(settings, flag, json_string(text));
}

/* What decides about the results beside the input: a batch continues only with the same. */
static enum status collect_settings(const struct session *s, const struct serving *v, int context,
                                    json_t **out, struct reason *why)
{
    static const char *const groups[] = {"max", "mean", "softmax"}, *const summaries[] = {"auto", "keys",
                                                                                          "q8", "q4"};
    const struct policy *p = &s->policy;
    const struct options *o = s->options;
    char model[2 * SHA256_BYTES + 1];
    enum status status = digest_model(s, model, why);
    if (status != STATUS_OK) return status;
    json_t *j = *out = json_object();
    set(j, "--model", "%s", model);
    set(j, "--served-model-name", "%s", v->model);
    set(j, "--errors", "%s", o->batch_errors ? "a file" : "none");
    set(j, "--device", "%s", o->device == DEVICE_CPU ? "cpu" : "cuda");
    set(j, "--act-dtype", "%s",
        dtype_name(session_act(o, s->files.arch.dtype))); /* auto differs by processor */
    set(j, "--kv-dtype", "%s", dtype_name((enum dtype)o->kv_dtype));
    set(j, "--all-reduce-dtype", "%s", o->all_reduce_dtype == 0 ? "f32" : "bf16");
    set(j, "--max-context", "%d", context);
    set(j, "--policy", "%s", policy_kind_name(p->kind));
    set(j, "--window", "%d", p->window);
    set(j, "--max-window", "%d", o->max_window);
    set(j, "--kv-budget", "%g", p->kv_budget);
    set(j, "--kv-budget-tokens", "%d", p->kv_budget_tokens);
    set(j, "--page-size", "%d", o->page_size);
    set(j, "--summary", "%s", summaries[o->summary]);
    set(j, "--dense-layers", "%d", p->dense_layers);
    set(j, "--score-alpha", "%g", p->score_alpha);
    set(j, "--score-group", "%s", groups[p->score_group]);
    set(j, "--sink-pages", "%d", p->sink_pages);
    return STATUS_OK;
}

static enum status open_batch(struct batch_work *b, const struct session *s, const struct serving *v,
                              int context, struct reason *why)
{
    const struct options *o = s->options;
    struct batch_paths paths = {
        .input = o->batch_input, .output = o->batch_output, .errors = o->batch_errors};
    json_t *settings = NULL;
    /* A line that fits into the context fits: a run that continues with another cache refuses no other lines. */
    if (o->kv_tokens != OPTIONS_UNSET && o->kv_tokens < context)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--kv-tokens %d: a line may have --max-context %d tokens: raise the one or lower "
                           "the other",
                           o->kv_tokens, context);
    enum status status = collect_settings(s, v, context, &settings, why);
    if (status == STATUS_OK) status = batch_open(b, &paths, settings, why);
    json_decref(settings);
    if (status != STATUS_OK) return status;
    if (b->journal.n_lost > 0)
        LOG_WARN("%s: %" PRId64
                 " bytes behind the last whole record were cut off; their lines are computed again",
                 b->journal.path, b->journal.n_lost);
    LOG_INFO("%s: %" PRId64 " requests, %" PRId64 " are done", o->batch_input, b->input.facts.n_requests,
             b->journal.complete ? b->input.facts.n_requests : b->journal.n_records);
    return STATUS_OK;
}

/* All lines have their record. */
static enum status publish(struct batch_work *b, const struct batch_progress *p, struct reason *why)
{
    enum status status = batch_journal_publish(&b->journal, why);
    if (status != STATUS_OK) return status;
    char bad[PATH_MAX + 80] = "", speed[80] = "";
    const char *where = b->journal.errors ? b->journal.errors : b->journal.output;
    if (p->n_errors) snprintf(bad, sizeof bad, ", %" PRId64 " bad in %s", p->n_errors, where);
    if (p->n_tokens)
        snprintf(speed, sizeof speed, "; %" PRId64 " tokens in %.1f s, %.1f tokens/s", p->n_tokens,
                 p->seconds, (double)p->n_tokens / p->seconds);
    LOG_INFO("done: %" PRId64 " results in %s%s%s", p->n_requests - p->n_errors, b->journal.output, bad,
             speed);
    return STATUS_OK;
}

static enum status lead(struct batch_work *b, struct session *s, struct serving *v, int context, int *code,
                        struct reason *why)
{
    const struct options *o = s->options;
    struct batch_progress progress;
    enum status status = serving_open(v, s, context, INT_MAX, why);
    if (status != STATUS_OK) return status;
    struct batch_run_options run = {.api = v->api,
                                    .front = v->front,
                                    .n_in_flight = IN_FLIGHT * o->max_seqs * s->n_replicas,
                                    .drain_s = o->drain,
                                    .interrupted = is_interrupted,
                                    .terminal = on_terminal(o)};
    status = batch_run(b, &run, &progress, why);
    if (status != STATUS_OK) return status;
    if (batch_left(b) == 0) return publish(b, &progress, why);
    *code = EXIT_CODE_INTERRUPTED;
    LOG_INFO("interrupted: %" PRId64 " of %" PRId64
             " done and on the disk; run the same command again to go on",
             progress.n_done, progress.n_requests);
    return STATUS_OK;
}

int cmd_batch(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    struct serving v = {0};
    struct batch_work b = {.input.fd = -1, .journal.fd = -1};
    int context = 0, code = EXIT_CODE_OK;
    signals_open(w->rank == 0 ? on_signal : NULL, (void *)o);
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is an error of the write */
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK && w->rank == 0) status = check_options(o, &why);
    if (status == STATUS_OK && w->rank == 0) status = serving_prepare(&v, &s, &context, &why);
    if (status == STATUS_OK && w->rank == 0) status = open_batch(&b, &s, &v, context, &why);
    if (status == STATUS_OK && w->rank == 0 && batch_left(&b) == 0) {
        /* Nothing to compute: no rank loads the model. */
        struct batch_progress p = {.n_requests = b.input.facts.n_requests, .n_errors = b.journal.n_errors};
        context = 0;
        if (b.journal.complete) LOG_INFO("%s: complete", o->batch_output);
        else status = publish(&b, &p, &why);
    }
    status = session_agree(&s, status, &context, &why);
    if (status == STATUS_OK && context > 0) {
        serving_size(&s);
        status = session_load(&s, context, o->max_seqs, &why);
        if (status == STATUS_OK && w->rank != 0) session_follow(&s);
        if (status == STATUS_OK && w->rank == 0) status = lead(&b, &s, &v, context, &code, &why);
        if (status != STATUS_OK) session_fail(w, status, &why);
    }
    signals_close();
    serving_close(&v);
    session_close(&s);
    batch_close(&b);
    return status == STATUS_OK ? code : status_exit_code(status);
}
