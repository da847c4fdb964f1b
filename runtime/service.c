#include "runtime/service.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/generation.h"
#include "runtime/request.h"

enum { PRIORITY_MAX = 100, PRIORITY_US = 10000000 };

struct service {
    struct engine *engine;
    struct step_limits limits;
    struct sched sched;
    struct step step;
    struct request_tools tools;
    int32_t *eos;
    int max_queue;
    struct request *live; /* all requests that the engine's thread knows */

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    struct request *inbox, **inbox_end;
    uint64_t *cancel;
    size_t n_cancel, cancel_capacity;
    uint64_t last_id;
    int n_queued;
    bool draining;
    int64_t deadline_us; /* of the drain */

    atomic_int n_seqs; /* service_load */
    _Atomic int64_t n_tokens;

    struct service_stats now; /* the engine's thread alone */
    pthread_mutex_t stats_lock;
    struct service_stats published;
};

const char *service_finish_name(enum service_finish f)
{
    static const char *const names[SERVICE_FINISH_COUNT] = {"stop", "length", "cancelled", "shutdown",
                                                            "failed"};
    ASSERT(f < SERVICE_FINISH_COUNT);
    return names[f];
}

enum status service_open(struct service **out, struct engine *e, const struct service_options *o,
                         struct reason *why)
{
    const struct step_limits *l = engine_limits(e);
    int rows = o->max_batch_tokens ? o->max_batch_tokens : l->max_rows;
    if (rows > l->max_rows || rows <= l->n_slots * l->window)
        return status_fail(
            why, STATUS_BAD_OPTION,
            "--max-batch-tokens %d: a step takes at least %d rows (sequences x window + 1) and at "
            "most %d",
            rows, l->n_slots * l->window + 1, l->max_rows);
    struct service *s = buffer_zeroed(1, sizeof *s);
    s->engine = e;
    s->limits = *l;
    s->max_queue = o->max_queue;
    struct sched_options so = {.max_rows = rows, .growth = o->growth, .cache = o->prefix_cache};
    sched_open(&s->sched, l, &so);
    step_open(&s->step, l);
    s->eos = buffer_zeroed((size_t)o->n_eos, sizeof *s->eos);
    if (o->n_eos) memcpy(s->eos, o->eos, (size_t)o->n_eos * sizeof *s->eos);
    s->tools = (struct request_tools){
        .tokenizer = o->tokenizer,
        .sampler = sampler_open(l->vocab),
        .eos = s->eos,
        .n_eos = o->n_eos,
        .vocab = l->vocab,
        .mask = buffer_zeroed(((size_t)l->vocab + 31) / 32, sizeof(uint32_t)),
    };
    s->inbox_end = &s->inbox;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->stats_lock, NULL);
    s->now.block_tokens = l->block_tokens;
    s->now.n_blocks = s->now.n_blocks_free = l->n_blocks;
    s->published = s->now;
    *out = s;
    return STATUS_OK;
}

/* ------------------------------------------------------------------------------------------ any thread */
static enum status check_request(const struct service *s, const struct service_request *r, int *max_tokens,
                                 struct reason *why)
{
    const struct step_limits *l = &s->limits;
    if (r->n_prompt < 1) return status_fail(why, STATUS_BAD_INPUT, "the prompt is empty");
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= l->vocab)
            return status_fail(why, STATUS_BAD_INPUT,
                               "token %d of the prompt is %d, the model's vocabulary has %d", i, r->prompt[i],
                               l->vocab);
    if (r->n_prompt >= l->context)
        return status_fail(why, STATUS_TOO_LONG, "the prompt has %d tokens, the context limit is %d",
                           r->n_prompt, l->context);
    const char *fault = step_policy_fault(&r->policy, l);
    if (fault) return status_fail(why, STATUS_BAD_INPUT, "%s is out of bounds", fault);
    if (r->n_choices < 0 || r->n_choices > SERVICE_CHOICES_MAX)
        return status_fail(why, STATUS_BAD_INPUT, "n is %d, at most %d choices", r->n_choices,
                           SERVICE_CHOICES_MAX);
    if (r->n_stop < 0 || r->n_stop > SERVICE_STOPS_MAX || r->n_stop_tokens < 0 ||
        r->n_stop_tokens > SERVICE_STOPS_MAX)
        return status_fail(why, STATUS_BAD_INPUT, "at most %d stop texts and stop tokens", SERVICE_STOPS_MAX);
    for (int i = 0; i < r->n_stop; i++)
        if (!r->stop[i][0]) return status_fail(why, STATUS_BAD_INPUT, "a stop text is empty");
    if (r->max_tokens < 0 || r->priority < -PRIORITY_MAX || r->priority > PRIORITY_MAX)
        return status_fail(why, STATUS_BAD_INPUT,
                           "max_tokens is negative or the priority is not in -%d .. %d", PRIORITY_MAX,
                           PRIORITY_MAX);
    int room = l->context - r->n_prompt;
    *max_tokens = r->max_tokens && r->max_tokens < room ? r->max_tokens : room;
    if (r->prompt_only) *max_tokens = 1;
    if (sched_blocks(&s->sched, r->n_prompt + *max_tokens - 1) > l->n_blocks)
        return status_fail(why, STATUS_NO_PAGES,
                           "%d prompt and %d new tokens need more than all %d KV blocks of %d tokens",
                           r->n_prompt, *max_tokens, l->n_blocks, l->block_tokens);
    return STATUS_OK;
}

enum status service_submit(struct service *s, const struct service_request *from, uint64_t *id,
                           struct reason *why)
{
    int max_tokens = 0;
    enum status status = check_request(s, from, &max_tokens, why);
    if (status != STATUS_OK) return status;
    struct request *r = request_open(from, max_tokens);
    r->queued = true;
    pthread_mutex_lock(&s->lock);
    if (s->draining) status = status_fail(why, STATUS_DRAINING, "the server is shutting down");
    else if (s->n_queued >= s->max_queue)
        status = status_fail(why, STATUS_QUEUE_FULL, "%d requests wait already", s->n_queued);
    if (status == STATUS_OK) {
        *id = r->id = ++s->last_id;
        s->n_queued++;
        r->n_tokens = from->n_prompt;
        atomic_fetch_add(&s->n_seqs, r->n_choices);
        atomic_fetch_add(&s->n_tokens, r->n_tokens);
        *s->inbox_end = r;
        s->inbox_end = &r->next;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
    if (status != STATUS_OK) request_close(r);
    return status;
}

void service_load(struct service *s, struct service_load *out)
{
    pthread_mutex_lock(&s->lock);
    out->n_queued = s->n_queued;
    pthread_mutex_unlock(&s->lock);
    out->n_seqs = atomic_load(&s->n_seqs);
    out->n_tokens = atomic_load(&s->n_tokens);
}

void service_cancel(struct service *s, uint64_t id)
{
    pthread_mutex_lock(&s->lock);
    if (s->n_cancel == s->cancel_capacity) {
        s->cancel_capacity = 2 * s->cancel_capacity + 16;
        s->cancel = buffer_realloc(s->cancel, s->cancel_capacity, sizeof *s->cancel);
    }
    s->cancel[s->n_cancel++] = id;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void service_drain(struct service *s, double seconds)
{
    int64_t deadline = clock_us() + (int64_t)(seconds * 1e6);
    pthread_mutex_lock(&s->lock);
    if (!s->draining || deadline < s->deadline_us) s->deadline_us = deadline;
    s->draining = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void service_stats(struct service *s, struct service_stats *out)
{
    pthread_mutex_lock(&s->stats_lock);
    *out = s->published;
    pthread_mutex_unlock(&s->stats_lock);
}

/* ------------------------------------------------------------------------------------------ engine's thread
 */
/* With the lock that readers take, which it gives up. */
static void publish_locked(struct service *s)
{
    struct service_stats *now = &s->now;
    now->n_running = s->sched.n_running;
    now->n_waiting = s->sched.n_waiting;
    now->n_preempted = s->sched.n_swapped;
    now->n_blocks_free = s->sched.pages.n_free;
    now->n_blocks_cached = s->sched.pages.n_idle;
    now->preemptions = s->sched.n_preempted;
    now->prefix_queries = s->sched.n_looked_up;
    now->prefix_hits = s->sched.n_found;
    s->published = *now;
    pthread_mutex_unlock(&s->stats_lock);
}

/* A reader that holds the lock makes this moment's numbers wait for the next step's: a step never waits. */
static void publish(struct service *s)
{
    if (pthread_mutex_trylock(&s->stats_lock) == 0) publish_locked(s);
}

/* No step follows that would make up for it. */
static void publish_last(struct service *s)
{
    pthread_mutex_lock(&s->stats_lock);
    publish_locked(s);
}

static void leave_queue(struct service *s, struct request *r)
{
    if (!r->queued) return;
    r->queued = false;
    pthread_mutex_lock(&s->lock);
    s->n_queued--;
    pthread_mutex_unlock(&s->lock);
}

static void begin_request(struct service *s, struct request *r)
{
    request_begin(r, &s->tools);
    s->now.n_requests++;
    for (int i = 0; i < r->n_choices; i++) {
        struct choice *c = &r->choice[i];
        c->seq.key = r->submitted_us - (int64_t)r->from.priority * PRIORITY_US;
        c->seq.limit = r->from.n_prompt + r->max_tokens - 1;
        c->seq.priority = r->from.priority;
        c->seq.leader = i ? &r->choice[0].seq : NULL;
        c->seq.want = request_want(c, s->limits.vocab);
        c->seq.prompt_out = r->from.want_prompt && i == 0;
        sched_add(&s->sched, &c->seq, &r->from.policy, r->from.prompt, r->from.n_prompt);
    }
    r->next = s->live;
    s->live = r;
}

/* The last choice has ended: the sink hears it and the request is gone. */
static void finish_request(struct service *s, struct request *r)
{
    struct request **at = &s->live;
    while (*at != r) at = &(*at)->next;
    *at = r->next;
    leave_queue(s, r);
    atomic_fetch_sub(&s->n_tokens, r->n_tokens);
    struct exposure x;
    generation_exposure_of(s->engine, r->counters, &x);
    struct service_usage *u = &r->usage;
    int64_t now = clock_us();
    u->pages_loaded = x.pages_loaded;
    u->pages_met = x.pages_met;
    u->exposure = x.exposure;
    u->kv_read_share = x.kv_read_share;
    u->queue_us = (r->admitted_us ? r->admitted_us : now) - r->submitted_us;
    if (r->first_us) {
        u->prefill_us = r->first_us - r->admitted_us;
        u->first_us = r->first_us - r->submitted_us;
        u->decode_us = now - r->first_us;
    }
    u->total_us = now - r->submitted_us;
    r->from.sink->done(r->from.user, u);
    request_close(r);
}

/* Gives everything of a choice back, tells its end, and the request's with the last one. */
static void finish_choice(struct service *s, struct choice *c, struct service_end *end)
{
    struct request *r = c->request;
    int64_t counters[COUNTER_COUNT];
    if (c->seq.state == SCHED_RUNNING && c->seq.seq.fed > c->seq.seq.n_prompt) {
        engine_counters(s->engine, c->seq.seq.slot, counters);
        for (int i = 0; i < COUNTER_COUNT; i++) r->counters[i] += counters[i];
        s->now.pages_loaded += counters[COUNTER_PAGES_LOADED];
        s->now.pages_met += counters[COUNTER_PAGES_MET];
    }
    r->usage.n_preempted += c->seq.n_preempted;
    if (c->index == 0 && c->seq.n_cached > 0) r->usage.n_cached = c->seq.n_cached;
    sched_remove(&s->sched, &c->seq);
    atomic_fetch_sub(&s->n_seqs, 1);
    request_end(c, end);
    s->now.n_finished[end->reason]++;
    if (--r->n_left == 0) finish_request(s, r);
}

static void abort_request(struct service *s, struct request *r, enum service_finish reason)
{
    for (int i = 0, n = r->n_choices, left = r->n_left; i < n && left > 0; i++) {
        struct choice *c = &r->choice[i];
        if (c->ended) continue;
        left--; /* with the last one `r` is gone */
        struct service_end end = {.reason = reason, .stop_token = -1};
        finish_choice(s, c, &end);
    }
}

static void cancel_request(struct service *s, uint64_t id)
{
    for (struct request *r = s->live; r; r = r->next)
        if (r->id == id) {
            abort_request(s, r, SERVICE_FINISH_CANCELLED);
            return;
        }
}

/* New requests and cancellations; sleeps while there is nothing else to do. False: drained. */
static bool intake(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->inbox && s->n_cancel == 0 && !s->draining && !s->live) pthread_cond_wait(&s->wake, &s->lock);
    struct request *inbox = s->inbox;
    uint64_t *cancel = s->cancel;
    size_t n_cancel = s->n_cancel;
    s->inbox = NULL;
    s->inbox_end = &s->inbox;
    s->cancel = NULL;
    s->n_cancel = s->cancel_capacity = 0;
    s->now.draining = s->draining;
    int64_t deadline = s->deadline_us;
    pthread_mutex_unlock(&s->lock);
    for (struct request *next; inbox; inbox = next) {
        next = inbox->next;
        begin_request(s, inbox);
    }
    for (size_t i = 0; i < n_cancel; i++) cancel_request(s, cancel[i]);
    free(cancel);
    if (!s->now.draining) return true;
    while (s->live && clock_us() >= deadline) abort_request(s, s->live, SERVICE_FINISH_SHUTDOWN);
    return s->live != NULL;
}

static void count_step(struct service *s, int64_t took_us)
{
    struct service_stats *now = &s->now;
    for (int i = 0; i < s->step.n_seqs; i++) {
        const struct step_seq *q = &s->step.seq[i];
        if (q->kind == ROW_PROMPT) {
            now->rows[ROW_PROMPT] += q->n_rows;
            now->prompt_tokens += q->n_rows;
        } else {
            now->rows[ROW_NEW]++;
            now->rows[ROW_REVISED] += q->n_rows - 1;
        }
    }
    now->n_steps++;
    now->step_us += took_us;
    int bucket = 0;
    while (bucket < SERVICE_STEP_BUCKETS - 1 && took_us > (int64_t)100 << bucket) bucket++;
    now->step_bucket[bucket]++;
}

static void deliver(struct service *s, const struct engine_result *result)
{
    int over = -1; /* the sequence whose choice ended last */
    for (int i = 0; i < result->n_outputs; i++) {
        const struct engine_output *out = &result->output[i];
        if (out->seq == over) continue;
        struct choice *c = s->sched.planned[out->seq]->owner;
        struct service_end end;
        int32_t token;
        int drawn = c->n_drawn;
        bool in_prompt = out->position + 1 < c->seq.seq.n_prompt;
        bool goes_on =
            in_prompt ? request_score(c, out, &end) : request_draw(c, &s->tools, out, &token, &end);
        s->now.generation_tokens += c->n_drawn - drawn;
        c->request->n_tokens += c->n_drawn - drawn;
        atomic_fetch_add(&s->n_tokens, c->n_drawn - drawn);
        if (!goes_on && end.reason == SERVICE_FINISH_FAILED && s->now.n_finished[SERVICE_FINISH_FAILED] == 0)
            LOG_ERROR("the logits of a request are " ENGINE_NOT_FINITE
                      " Told once: metrics count the others");
        if (!goes_on) {
            over = out->seq;
            finish_choice(s, c, &end);
        } else if (!in_prompt) sched_append(&s->sched, &c->seq, token);
    }
}

static void execute(struct service *s)
{
    struct engine_result result;
    int64_t began = clock_us();
    for (int i = 0; i < s->step.n_seqs; i++) {
        struct choice *c = s->sched.planned[i]->owner;
        leave_queue(s, c->request);
        if (!c->request->admitted_us) c->request->admitted_us = began;
    }
    s->now.step_began_us = began;
    publish(s);
    engine_step(s->engine, &s->step, &result);
    s->now.step_began_us = 0;
    s->now.last_step_us = clock_us();
    count_step(s, s->now.last_step_us - began);
    sched_executed(&s->sched, &s->step);
    deliver(s, &result);
    publish(s);
}

void service_run(struct service *s)
{
    while (intake(s)) {
        if (sched_plan(&s->sched, &s->step)) execute(s);
        else ASSERT(!s->live); /* whoever is there makes progress */
        if (!s->live) {
            sched_check(&s->sched);
            publish_last(s);
        }
    }
    publish_last(s);
}

void service_close(struct service *s)
{
    if (!s) return;
    service_drain(s, 0);
    while (intake(s)) {
    }
    sched_close(&s->sched);
    step_close(&s->step);
    sampler_close(s->tools.sampler);
    free(s->tools.mask);
    free(s->eos);
    free(s->cancel);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->stats_lock);
    free(s);
}
