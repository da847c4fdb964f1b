/* service_tool.c - drives runtime/service.h on any number of ranks for the tests and measurements in
 * tests/serve.
 *
 *   [mpirun -n R] service_tool NAME=NUMBER... -- [options of `retro generate`]
 *       slots=4 context=256 rows=0 queue=1000 blocks=0 growth=0 cache=1 (sched_cache) swap=0 (bytes)
 *       drain_after_ms=0 drain_ms=0: service_drain that long after the start, if not 0
 *
 * Standard input (rank 0): one JSON object a line, a request: prompt (ids), policy, window, kv_budget,
 * max_tokens, temperature, top_k, seed, n, stop, stop_ids, ignore_eos, priority; delay_ms (submitted that
 * long after the start, by a second thread), cancel_after (tokens of choice 0 until the sink cancels it),
 * cancel_ms (the second thread cancels it so long after its submission). Without delay_ms it is there before
 * the first step. Standard output: one JSON object a request, in the order of the input, then one with the
 * statistics. */
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "launcher/boot.h"
#include "launcher/session.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/service.h"

struct job {
    json_t *line, *result, *choices;
    struct service_request request;
    int32_t *prompt, stop_token[SERVICE_STOPS_MAX];
    const char *stop[SERVICE_STOPS_MAX];
    struct service *service;
    uint64_t id;
    int64_t delay_us, cancel_us, submitted_us, last_us, gap_us, least_gap_us; /* gaps between tokens */
    int cancel_after;
    bool submitted, cancelled;
};

struct world {
    struct service *service;
    struct job *job;
    int n_jobs, n_open;
    int drain_after_ms, drain_ms;
    pthread_mutex_t lock;
};
static struct world all = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int number(const json_t *o, const char *name, int otherwise)
{
    const json_t *v = json_object_get(o, name);
    return v ? (int)json_integer_value(v) : otherwise;
}

static double real(const json_t *o, const char *name, double otherwise)
{
    const json_t *v = json_object_get(o, name);
    return v ? json_number_value(v) : otherwise;
}

static void on_token(void *user, const struct service_token *t)
{
    struct job *j = user;
    json_t *c = json_array_get(j->choices, (size_t)t->choice);
    json_array_append_new(json_object_get(c, "ids"), json_integer(t->id));
    struct buffer text = {0};
    buffer_append_string(&text, json_string_value(json_object_get(c, "text")));
    buffer_append(&text, t->text, t->n_text);
    json_object_set_new(c, "text", json_stringn_nocheck(text.bytes ? text.bytes : "", text.n));
    buffer_free(&text);
    int64_t now = clock_us();
    if (j->last_us && now - j->last_us > j->gap_us) j->gap_us = now - j->last_us;
    if (j->last_us && (!j->least_gap_us || now - j->last_us < j->least_gap_us))
        j->least_gap_us = now - j->last_us;
    j->last_us = now;
    if (t->choice == 0 && j->cancel_after && t->index + 1 == j->cancel_after)
        service_cancel(j->service, j->id);
}

static void on_end(void *user, const struct service_end *e)
{
    struct job *j = user;
    json_t *c = json_array_get(j->choices, (size_t)e->choice);
    struct buffer text = {0};
    buffer_append_string(&text, json_string_value(json_object_get(c, "text")));
    buffer_append(&text, e->text, e->n_text);
    json_object_set_new(c, "text", json_stringn_nocheck(text.bytes ? text.bytes : "", text.n));
    buffer_free(&text);
    ASSERT(!json_object_get(c, "reason")); /* one end a choice */
    json_object_set_new(c, "reason", json_string(service_finish_name(e->reason)));
    json_object_set_new(c, "n_tokens", json_integer(e->n_tokens));
    json_object_set_new(c, "stop_token", json_integer(e->stop_token));
    if (e->stop_text) json_object_set_new(c, "stop_text", json_string(e->stop_text));
}

static void close_job(struct job *j)
{
    pthread_mutex_lock(&all.lock);
    bool last = --all.n_open == 0;
    pthread_mutex_unlock(&all.lock);
    if (last) service_drain(j->service, 60);
}

static void on_done(void *user, const struct service_usage *u)
{
    struct job *j = user;
    ASSERT(!json_object_get(j->result, "usage")); /* one done a request */
    json_object_set_new(
        j->result, "usage",
        json_pack("{si si si sI sI sf sf si sI sI sI sI sI sI sI}", "prompt", u->n_prompt, "completion",
                  u->n_completion, "cached", u->n_cached, "pages_loaded", (json_int_t)u->pages_loaded,
                  "pages_met", (json_int_t)u->pages_met, "exposure", u->exposure, "kv_read_share",
                  u->kv_read_share, "preempted", u->n_preempted, "queue_us", (json_int_t)u->queue_us,
                  "prefill_us", (json_int_t)u->prefill_us, "decode_us", (json_int_t)u->decode_us, "first_us",
                  (json_int_t)u->first_us, "total_us", (json_int_t)u->total_us, "least_gap_us",
                  (json_int_t)j->least_gap_us, "gap_us", (json_int_t)j->gap_us));
    close_job(j);
}

static const struct service_sink sink = {.token = on_token, .end = on_end, .done = on_done};

static enum policy_kind kind_of(const char *name, enum policy_kind otherwise)
{
    for (int k = 0; name && k < POLICY_KIND_COUNT; k++)
        if (strcmp(name, policy_kind_name((enum policy_kind)k)) == 0) return (enum policy_kind)k;
    return otherwise;
}

static void read_job(struct job *j, json_t *line, const struct session *s, struct service *service)
{
    const json_t *prompt = json_object_get(line, "prompt"), *stop = json_object_get(line, "stop"),
                 *ids = json_object_get(line, "stop_ids");
    j->line = line;
    j->service = service;
    j->prompt = buffer_zeroed(json_array_size(prompt), sizeof *j->prompt);
    for (size_t i = 0; i < json_array_size(prompt); i++)
        j->prompt[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    for (size_t i = 0; i < json_array_size(stop) && i < SERVICE_STOPS_MAX; i++)
        j->stop[i] = json_string_value(json_array_get(stop, i));
    for (size_t i = 0; i < json_array_size(ids) && i < SERVICE_STOPS_MAX; i++)
        j->stop_token[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    struct policy p = s->policy;
    p.kind = kind_of(json_string_value(json_object_get(line, "policy")), p.kind);
    p.window = p.kind == POLICY_RETRO ? number(line, "window", p.window) : 1;
    p.kv_budget = real(line, "kv_budget", p.kv_budget);
    struct sampling sampling = {.top_p = 1, .repetition_penalty = 1};
    sampling.temperature = real(line, "temperature", 0);
    sampling.top_k = number(line, "top_k", 0);
    sampling.seed = (uint64_t)number(line, "seed", 0);
    j->request = (struct service_request){
        .prompt = j->prompt,
        .n_prompt = (int)json_array_size(prompt),
        .policy = p,
        .sampling = sampling,
        .n_choices = number(line, "n", 1),
        .max_tokens = number(line, "max_tokens", 16),
        .ignore_eos = json_is_true(json_object_get(line, "ignore_eos")),
        .stop_token = j->stop_token,
        .n_stop_tokens = (int)json_array_size(ids),
        .stop = j->stop,
        .n_stop = (int)json_array_size(stop),
        .priority = number(line, "priority", 0),
        .sink = &sink,
        .user = j,
    };
    j->delay_us = (int64_t)number(line, "delay_ms", 0) * 1000;
    j->cancel_us = (int64_t)number(line, "cancel_ms", 0) * 1000;
    j->cancel_after = number(line, "cancel_after", 0);
    j->result = json_object();
    j->choices = json_array();
    json_object_set_new(j->result, "choices", j->choices);
    for (int i = 0; i < j->request.n_choices; i++)
        json_array_append_new(j->choices, json_pack("{s[] ss}", "ids", "text", ""));
}

static void submit(struct job *j)
{
    struct reason why;
    j->submitted = true;
    j->submitted_us = clock_us();
    enum status status = service_submit(j->service, &j->request, &j->id, &why);
    if (status == STATUS_OK) return;
    json_object_set_new(j->result, "refused", json_string(status_text(status)));
    json_object_set_new(j->result, "why", json_string(why.text));
    close_job(j);
}

/* The second thread: arrivals and cancellations by the clock. */
static void *arrive(void *unused)
{
    (void)unused;
    int64_t began = clock_us();
    for (bool left = true; left;) {
        left = false;
        for (int i = 0; i < all.n_jobs; i++) {
            struct job *j = &all.job[i];
            int64_t now = clock_us();
            if (!j->submitted && now - began >= j->delay_us) submit(j);
            if (j->submitted && j->cancel_us && !j->cancelled && now - j->submitted_us >= j->cancel_us) {
                service_cancel(j->service, j->id);
                j->cancelled = true;
            }
            left = left || !j->submitted || (j->cancel_us && !j->cancelled);
        }
        if (all.drain_after_ms && clock_us() - began >= (int64_t)all.drain_after_ms * 1000) {
            service_drain(all.service, all.drain_ms * 1e-3);
            all.drain_after_ms = 0;
        }
        left = left || all.drain_after_ms;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        struct service_stats stats;
        service_stats(all.service, &stats);
    }
    return NULL;
}

static void print_stats(struct service *service)
{
    struct service_stats t;
    service_stats(service, &t);
    json_t *o = json_pack("{si si si si si sI sI sI sI sI sI sI sI sI sI}", "running", t.n_running, "waiting",
                          t.n_waiting, "blocks", t.n_blocks, "blocks_free", t.n_blocks_free, "blocks_cached",
                          t.n_blocks_cached, "requests", (json_int_t)t.n_requests, "prompt_tokens",
                          (json_int_t)t.prompt_tokens, "generation_tokens", (json_int_t)t.generation_tokens,
                          "preemptions", (json_int_t)t.preemptions, "rows_prompt",
                          (json_int_t)t.rows[ROW_PROMPT], "rows_new", (json_int_t)t.rows[ROW_NEW],
                          "rows_revised", (json_int_t)t.rows[ROW_REVISED], "steps", (json_int_t)t.n_steps,
                          "step_us", (json_int_t)t.step_us, "hits", (json_int_t)t.prefix_hits);
    json_dumpf(o, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(o);
}

static void lead(struct session *s, struct service_options *o)
{
    struct reason why;
    if (service_open(&all.service, s->engine, o, &why) != STATUS_OK)
        DIE(EXIT_CODE_OPTION, NULL, "%s", why.text);
    json_t *lines = json_array(), *line;
    json_error_t error;
    while ((line = json_loadf(stdin, JSON_DISABLE_EOF_CHECK, &error))) json_array_append_new(lines, line);
    all.n_jobs = all.n_open = (int)json_array_size(lines);
    all.job = buffer_zeroed((size_t)all.n_jobs, sizeof *all.job);
    for (int i = 0; i < all.n_jobs; i++)
        read_job(&all.job[i], json_array_get(lines, (size_t)i), s, all.service);
    for (int i = 0; i < all.n_jobs; i++)
        if (all.job[i].delay_us == 0) submit(&all.job[i]);
    pthread_t thread;
    ASSERT(pthread_create(&thread, NULL, arrive, NULL) == 0);
    if (all.n_jobs) service_run(all.service);
    pthread_join(thread, NULL);
    for (int i = 0; i < all.n_jobs; i++) {
        json_dumpf(all.job[i].result, stdout, JSON_COMPACT);
        printf("\n");
        json_decref(all.job[i].result);
        free(all.job[i].prompt);
    }
    print_stats(all.service);
    service_close(all.service);
    free(all.job);
    json_decref(lines);
}

struct setting {
    const char *name;
    int value;
};

static bool read_setting(struct setting *settings, size_t n, const char *word)
{
    const char *value = strchr(word, '=');
    for (size_t i = 0; value && i < n; i++)
        if (strlen(settings[i].name) == (size_t)(value - word) &&
            strncmp(settings[i].name, word, (size_t)(value - word)) == 0) {
            settings[i].value = atoi(value + 1);
            return true;
        }
    return false;
}

int main(int argc, char **argv)
{
    struct comm_world w;
    struct options o;
    struct session s;
    struct reason why;
    struct setting settings[] = {{"slots", 4},          {"context", 256}, {"rows", 0},  {"queue", 1000},
                                 {"blocks", 0},         {"growth", 0},    {"cache", 1}, {"swap", 0},
                                 {"drain_after_ms", 0}, {"drain_ms", 0}};
    int first = 1;
    for (; first < argc && strcmp(argv[first], "--") != 0; first++)
        if (!read_setting(settings, sizeof settings / sizeof *settings, argv[first]))
            DIE(EXIT_CODE_OPTION, NULL, "%s: no such setting", argv[first]);
    int slots = settings[0].value, context = settings[1].value;
    boot_open(&w, 60);
    log_set_level(LOG_LEVEL_WARN);
    enum status status = options_parse(&o, CMD_GENERATE, argc, argv, first + 1, &why);
    if (status != STATUS_OK) DIE(EXIT_CODE_OPTION, NULL, "%s", why.text);
    status = session_prepare(&s, &o, &w, &why);
    status = session_agree(&s, status, &context, &why);
    s.kv_tokens = settings[4].value * o.block_size;
    s.room.swap_bytes = settings[7].value;
    if (status == STATUS_OK) status = session_load(&s, context, slots, &why);
    if (status != STATUS_OK) DIE(status_exit_code(status), NULL, "%s", why.text);
    struct tokenizer *tokenizer = NULL;
    if (w.rank == 0 && tokenizer_open(&tokenizer, o.model, &why) != STATUS_OK) tokenizer = NULL;
    struct service_options so = {.tokenizer = tokenizer,
                                 .eos = s.files.arch.eos,
                                 .n_eos = s.files.arch.n_eos,
                                 .max_queue = settings[3].value,
                                 .max_batch_tokens = settings[2].value,
                                 .growth = settings[5].value,
                                 .prefix_cache = (enum sched_cache)settings[6].value};
    all.drain_after_ms = settings[8].value;
    all.drain_ms = settings[9].value;
    if (w.rank == 0) lead(&s, &so);
    else engine_follow(s.engine);
    session_close(&s);
    tokenizer_close(tokenizer);
    options_close(&o);
    return boot_close(EXIT_CODE_OK);
}
