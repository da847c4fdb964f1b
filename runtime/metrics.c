#include "runtime/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/api.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

enum { BUCKETS = 22 };

/* Upper bounds in microseconds: 1, 2.5, 5 times powers of ten from 1 ms to 10000 s; the last is without bound. */
static const int64_t bound_us[BUCKETS - 1] = {
    1000,     2500,      5000,      10000,     25000,      50000,          100000,
    250000,   500000,    1000000,   2500000,   5000000,    1000000ll * 10, 25000000,
    50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000,     10000000000};

struct histogram {
    atomic_llong bucket[BUCKETS], sum_us;
};

enum { CODES = 12 };
static const int codes[CODES] = {200, 400, 401, 404, 405, 413, 429, 499, 500, 503, 408, 0}; /* 0: any other */

struct metrics {
    char *model;
    int n_ranks;
    int64_t opened_us;
    struct histogram time[METRICS_TIME_COUNT];
    atomic_llong code[CODES];
    pthread_mutex_t lock; /* of the source */
    bool (*read)(void *user, int rank, struct metrics_rank *out);
    void *user;
};

struct metrics *metrics_open(const char *model, int n_ranks)
{
    struct metrics *m = buffer_zeroed(1, sizeof *m);
    struct buffer name = {0};
    /* A label's value: backslash, quote and line end are escaped. */
    for (const char *c = model; *c; c++) {
        if (*c == '\\' || *c == '"') buffer_append(&name, "\\", 1);
        if (*c == '\n') buffer_append_string(&name, "\\n");
        else buffer_append(&name, c, 1);
    }
    m->model = buffer_take(&name);
    m->n_ranks = n_ranks;
    m->opened_us = clock_us();
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

void metrics_close(struct metrics *m)
{
    if (!m) return;
    pthread_mutex_destroy(&m->lock);
    free(m->model);
    free(m);
}

void metrics_observe(struct metrics *m, enum metrics_time what, int64_t us)
{
    struct histogram *h = &m->time[what];
    int i = 0;
    while (i < BUCKETS - 1 && us > bound_us[i]) i++;
    atomic_fetch_add_explicit(&h->bucket[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
}

void metrics_count_http(struct metrics *m, int code)
{
    int i = 0;
    while (i < CODES - 1 && codes[i] != code) i++;
    atomic_fetch_add_explicit(&m->code[i], 1, memory_order_relaxed);
}

void metrics_ranks(struct metrics *m, bool (*read)(void *user, int rank, struct metrics_rank *out),
                   void *user)
{
    pthread_mutex_lock(&m->lock);
    m->read = read;
    m->user = user;
    pthread_mutex_unlock(&m->lock);
}

static bool read_rank(struct metrics *m, int rank, struct metrics_rank *out)
{
    *out = (struct metrics_rank){-1, -1, -1};
    pthread_mutex_lock(&m->lock);
    bool known = m->read && m->read(m->user, rank, out);
    pthread_mutex_unlock(&m->lock);
    return known;
}

double metrics_oldest_heartbeat(struct metrics *m, int *rank)
{
    double oldest = -1;
    *rank = 0;
    for (int r = 0; r < m->n_ranks; r++) {
        struct metrics_rank one;
        if (!read_rank(m, r, &one) || one.heartbeat_age_s <= oldest) continue;
        oldest = one.heartbeat_age_s;
        *rank = r;
    }
    return oldest;
}

/* ---- text */

static void line(struct buffer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(struct buffer *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *at = buffer_reserve(out, 512);
    int n = vsnprintf(at, 512, format, args);
    out->n += (size_t)(n < 511 ? n : 511);
    va_end(args);
}

static void head(struct buffer *out, const char *name, const char *type, const char *help)
{
    line(out, "# HELP retro:%s %s\n# TYPE retro:%s %s\n", name, help, name, type);
}

static void number(struct metrics *m, struct buffer *out, const char *name, const char *type,
                   const char *help, double v)
{
    head(out, name, type, help);
    line(out, "retro:%s{model_name=\"%s\"} %.17g\n", name, m->model, v);
}

/* One line of several of a name, told apart by one more label. */
static void labelled(struct metrics *m, struct buffer *out, const char *name, const char *label,
                     const char *value, double v)
{
    line(out, "retro:%s{model_name=\"%s\",%s=\"%s\"} %.17g\n", name, m->model, label, value, v);
}

static void histogram(struct metrics *m, struct buffer *out, const char *name, const char *help,
                      const struct histogram *h)
{
    char le[32], bucket[64];
    int64_t total = 0;
    head(out, name, "histogram", help);
    snprintf(bucket, sizeof bucket, "%s_bucket", name);
    for (int i = 0; i < BUCKETS; i++) {
        total += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        if (i < BUCKETS - 1) snprintf(le, sizeof le, "%g", (double)bound_us[i] * 1e-6);
        else snprintf(le, sizeof le, "+Inf");
        labelled(m, out, bucket, "le", le, (double)total);
    }
    line(out, "retro:%s_sum{model_name=\"%s\"} %.17g\n", name, m->model,
         (double)atomic_load_explicit(&h->sum_us, memory_order_relaxed) * 1e-6);
    line(out, "retro:%s_count{model_name=\"%s\"} %lld\n", name, m->model, (long long)total);
}

static void write_requests(struct metrics *m, const struct service_stats *s, struct buffer *out)
{
    static const char *const names[METRICS_TIME_COUNT] = {
        "time_to_first_token_seconds", "inter_token_latency_seconds",  "e2e_request_latency_seconds",
        "request_queue_time_seconds",  "request_prefill_time_seconds", "request_decode_time_seconds"};
    static const char *const help[METRICS_TIME_COUNT] = {
        "From arrival to the first token.",        "Between two tokens of a choice.",
        "From arrival to the last token.",         "From arrival to the first step.",
        "From the first step to the first token.", "From the first token to the last."};
    number(m, out, "num_requests_running", "gauge", "Sequences in the batch.", s->n_running);
    number(m, out, "num_requests_waiting", "gauge", "Sequences that wait for a place.", s->n_waiting);
    number(m, out, "num_requests_swapped", "gauge", "Sequences that were interrupted and will go on.",
           s->n_preempted);
    number(m, out, "num_preemptions_total", "counter", "Interruptions of a sequence.",
           (double)s->preemptions);
    number(m, out, "prompt_tokens_total", "counter", "Prompt tokens computed.", (double)s->prompt_tokens);
    number(m, out, "generation_tokens_total", "counter", "Tokens drawn.", (double)s->generation_tokens);
    head(out, "request_success_total", "counter", "Choices that ended, by reason.");
    for (int f = 0; f < SERVICE_FINISH_COUNT; f++)
        labelled(m, out, "request_success_total", "finished_reason",
                 service_finish_name((enum service_finish)f), (double)s->n_finished[f]);
    for (int t = 0; t < METRICS_TIME_COUNT; t++) histogram(m, out, names[t], help[t], &m->time[t]);
}

static double blocks_used(const struct service_stats *s)
{
    return s->n_blocks ? 1 - (double)s->n_blocks_free / s->n_blocks : 0;
}

static void write_cache(struct metrics *m, const struct service_stats *s, struct buffer *out)
{
    number(m, out, "kv_cache_usage_perc", "gauge", "Share of the KV blocks in use, 0 to 1.", blocks_used(s));
    number(m, out, "kv_blocks", "gauge", "KV blocks in all.", s->n_blocks);
    number(m, out, "kv_blocks_free", "gauge", "KV blocks that nothing holds.", s->n_blocks_free);
    number(m, out, "kv_blocks_cached", "gauge", "KV blocks that only the prefix cache holds.",
           s->n_blocks_cached);
    number(m, out, "kv_block_tokens", "gauge", "Tokens of a KV block.", s->block_tokens);
    number(m, out, "prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache.",
           (double)s->prefix_queries);
    number(m, out, "prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache.",
           (double)s->prefix_hits);
}

static void write_attention(struct metrics *m, const struct service_stats *s, struct buffer *out)
{
    static const char *const kinds[ROW_KIND_COUNT] = {"prompt", "new", "revised"};
    double exposure =
        s->pages_loaded ? (double)(s->pages_loaded + s->pages_met) / (double)s->pages_loaded : 1;
    number(m, out, "pages_loaded_total", "counter", "Pages that sparse decode read, of choices that ended.",
           (double)s->pages_loaded);
    number(m, out, "pages_revised_total", "counter",
           "Pages that an older query met later, of choices that ended.", (double)s->pages_met);
    number(m, out, "exposure", "gauge", "(loaded + met later) / loaded.", exposure);
    head(out, "rows_total", "counter", "Rows of all steps, by kind.");
    for (int k = 0; k < ROW_KIND_COUNT; k++)
        labelled(m, out, "rows_total", "kind", kinds[k], (double)s->rows[k]);
}

static void write_steps(struct metrics *m, const struct service_stats *s, struct buffer *out)
{
    char le[32];
    int64_t total = 0, now = clock_us();
    head(out, "step_seconds", "histogram", "Time of a step, all ranks of a replica together.");
    for (int i = 0; i < SERVICE_STEP_BUCKETS; i++) {
        total += s->step_bucket[i];
        if (i < SERVICE_STEP_BUCKETS - 1) snprintf(le, sizeof le, "%g", 1e-4 * (double)(1 << i));
        else snprintf(le, sizeof le, "+Inf");
        labelled(m, out, "step_seconds_bucket", "le", le, (double)total);
    }
    line(out, "retro:step_seconds_sum{model_name=\"%s\"} %.17g\n", m->model, (double)s->step_us * 1e-6);
    line(out, "retro:step_seconds_count{model_name=\"%s\"} %lld\n", m->model, (long long)total);
    number(m, out, "step_age_seconds", "gauge",
           "How long the oldest step in progress takes already; 0 when idle.",
           s->step_began_us ? (double)(now - s->step_began_us) * 1e-6 : 0);
}

static void write_replicas(struct metrics *m, struct front *f, struct buffer *out)
{
    enum { RUNNING, WAITING, TOKENS, STEPS, USAGE, LISTS };
    static const struct {
        const char *name, *type, *help;
    } lists[LISTS] = {
        [RUNNING] = {"replica_requests_running", "gauge", "Sequences in the batch of a replica."},
        [WAITING] = {"replica_requests_waiting", "gauge", "Sequences that wait for a place in it."},
        [TOKENS] = {"replica_generation_tokens_total", "counter", "Tokens drawn from a replica."},
        [STEPS] = {"replica_steps_total", "counter", "Steps of a replica."},
        [USAGE] = {"replica_kv_cache_usage_perc", "gauge", "Share of a replica's KV blocks in use, 0 to 1."},
    };
    number(m, out, "replicas", "gauge", "Copies of the model.", front_replicas(f));
    for (int i = 0; i < LISTS; i++) {
        head(out, lists[i].name, lists[i].type, lists[i].help);
        for (int r = 0; r < front_replicas(f); r++) {
            struct service_stats s;
            char name[16];
            front_replica_stats(f, r, &s);
            const double v[LISTS] = {[RUNNING] = s.n_running,
                                     [WAITING] = s.n_waiting,
                                     [TOKENS] = (double)s.generation_tokens,
                                     [STEPS] = (double)s.n_steps,
                                     [USAGE] = blocks_used(&s)};
            snprintf(name, sizeof name, "%d", r);
            labelled(m, out, lists[i].name, "replica", name, v[i]);
        }
    }
}

static void write_ranks(struct metrics *m, struct buffer *out)
{
    static const struct {
        const char *name, *type, *help;
    } lists[3] = {
        {"rank_heartbeat_age_seconds", "gauge", "Since a rank last said that it lives."},
        {"rank_allreduce_seconds_total", "counter", "What a rank spent in all-reduces."},
        {"rank_steps_total", "counter", "Steps that a rank finished."},
    };
    number(m, out, "ranks", "gauge", "Ranks of the job.", m->n_ranks);
    for (int i = 0; i < 3; i++) {
        bool begun = false;
        for (int r = 0; r < m->n_ranks; r++) {
            struct metrics_rank one;
            char name[16];
            if (!read_rank(m, r, &one)) continue;
            double v = i == 0 ? one.heartbeat_age_s : i == 1 ? one.allreduce_s : (double)one.steps;
            if (v < 0) continue;
            if (!begun) head(out, lists[i].name, lists[i].type, lists[i].help);
            begun = true;
            snprintf(name, sizeof name, "%d", r);
            labelled(m, out, lists[i].name, "rank", name, v);
        }
    }
}

static void write_process(struct metrics *m, int n_streams, struct buffer *out)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%*s %ld", &pages) != 1) pages = 0;
        fclose(f);
    }
    number(m, out, "http_streams", "gauge", "Requests for generation that are being answered.", n_streams);
    number(m, out, "resident_memory_bytes", "gauge", "Resident memory of rank 0.",
           (double)pages * (double)sysconf(_SC_PAGESIZE));
    number(m, out, "uptime_seconds", "gauge", "Since the server was opened.",
           (double)(clock_us() - m->opened_us) * 1e-6);
    head(out, "http_responses_total", "counter", "Responses by status code; 499: the client went away.");
    for (int i = 0; i < CODES; i++) {
        char code[16];
        snprintf(code, sizeof code, "%d", codes[i]);
        labelled(m, out, "http_responses_total", "code", codes[i] ? code : "other",
                 (double)atomic_load_explicit(&m->code[i], memory_order_relaxed));
    }
}

void metrics_write(struct metrics *m, struct front *f, int n_streams, struct buffer *out)
{
    struct service_stats s;
    front_stats(f, &s);
    write_requests(m, &s, out);
    write_cache(m, &s, out);
    write_attention(m, &s, out);
    write_steps(m, &s, out);
    write_replicas(m, f, out);
    write_ranks(m, out);
    write_process(m, n_streams, out);
}
