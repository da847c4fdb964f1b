#include "runtime/front.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"

enum { MASK_BITS = 64, PLACES_PER_BLOCK = 4 };

/* A beginning of prompts that ends with a whole block, and who was given one: bit replica % MASK_BITS. */
struct place {
    uint64_t hash, replicas;
};

struct front {
    struct service **service; /* (n) */
    pthread_t *thread;        /* (n), not of [0] */
    int n;
    struct step_limits limits; /* of each */
    int max_queue;
    pthread_mutex_t lock; /* of choosing: two requests at once would find the same replica empty */
    int *known;           /* (n) scratch of choosing */
    struct place *place;  /* (n_places), by hash; NULL: no prefix cache, or one replica */
    size_t n_places;      /* a power of two */
};

enum status front_open(struct front **out, struct engine *const *engine, int n,
                       const struct service_options *o, struct reason *why)
{
    struct front *f = buffer_zeroed(1, sizeof *f);
    struct service_options each = *o;
    enum status status = STATUS_OK;
    each.max_queue = INT_MAX;
    f->service = buffer_zeroed((size_t)n, sizeof *f->service);
    f->thread = buffer_zeroed((size_t)n, sizeof *f->thread);
    f->known = buffer_zeroed((size_t)n, sizeof *f->known);
    f->limits = *engine_limits(engine[0]);
    f->max_queue = o->max_queue;
    pthread_mutex_init(&f->lock, NULL);
    for (; f->n < n && status == STATUS_OK; f->n += status == STATUS_OK)
        status = service_open(&f->service[f->n], engine[f->n], &each, why);
    if (status != STATUS_OK) {
        front_close(f);
        return status;
    }
    if (n > 1 && o->prefix_cache != SCHED_CACHE_OFF) {
        f->n_places = 1;
        while (f->n_places < (size_t)f->limits.n_blocks * (size_t)n * PLACES_PER_BLOCK) f->n_places *= 2;
        f->place = buffer_zeroed(f->n_places, sizeof *f->place);
    }
    *out = f;
    return STATUS_OK;
}

void front_close(struct front *f)
{
    if (!f) return;
    for (int r = 0; r < f->n; r++) service_close(f->service[r]);
    pthread_mutex_destroy(&f->lock);
    free(f->service);
    free(f->thread);
    free(f->known);
    free(f->place);
    free(f);
}

/* ------------------------------------------------------------------------------------------ who gets a request */
/* The hash of a beginning from that of the one a block shorter (the finaliser of MurmurHash3 over each token). */
static uint64_t extend(uint64_t hash, const int32_t *token, int n)
{
    for (int i = 0; i < n; i++) {
        hash ^= (uint64_t)(uint32_t)token[i] + 1;
        hash *= 0xff51afd7ed558ccdull;
        hash ^= hash >> 33;
        hash *= 0xc4ceb9fe1a85ec53ull;
        hash ^= hash >> 33;
    }
    return hash;
}

/* Tokens at the beginning of a prompt that each replica (n) was given before. */
static void remember(struct front *f, const struct service_request *r)
{
    uint64_t hash = 0, left = ~(uint64_t)0;
    int block = f->limits.block_tokens;
    memset(f->known, 0, (size_t)f->n * sizeof *f->known);
    for (int at = 0; f->place && left && at + block <= r->n_prompt; at += block) {
        hash = extend(hash, r->prompt + at, block);
        const struct place *p = &f->place[hash & (f->n_places - 1)];
        left &= p->hash == hash ? p->replicas : 0;
        for (int i = 0; left && i < f->n; i++)
            if (left >> i % MASK_BITS & 1) f->known[i] = at + block;
    }
}

static void learn(struct front *f, const struct service_request *r, int replica)
{
    uint64_t hash = 0;
    int block = f->limits.block_tokens;
    for (int at = 0; f->place && at + block <= r->n_prompt; at += block) {
        hash = extend(hash, r->prompt + at, block);
        struct place *p = &f->place[hash & (f->n_places - 1)];
        if (p->hash != hash) *p = (struct place){.hash = hash};
        p->replicas |= (uint64_t)1 << replica % MASK_BITS;
    }
}

/* With the lock held; *n_queued: requests that wait anywhere. */
static int choose(struct front *f, const struct service_request *r, int *n_queued)
{
    int best = 0, best_waits = 0;
    int64_t best_tokens = 0;
    remember(f, r);
    *n_queued = 0;
    for (int i = 0; i < f->n; i++) {
        struct service_load l;
        service_load(f->service[i], &l);
        *n_queued += l.n_queued;
        int over = l.n_seqs + (r->n_choices ? r->n_choices : 1) - f->limits.n_slots,
            waits = over > 0 ? over : 0;
        int64_t tokens = l.n_tokens + r->n_prompt - f->known[i];
        if (i > 0 && (waits > best_waits || (waits == best_waits && tokens >= best_tokens))) continue;
        best = i;
        best_waits = waits;
        best_tokens = tokens;
    }
    return best;
}

/* ------------------------------------------------------------------------------------------ any thread */
enum status front_submit(struct front *f, const struct service_request *r, uint64_t *id, struct reason *why)
{
    int n_queued;
    enum status status;
    pthread_mutex_lock(&f->lock);
    int replica = choose(f, r, &n_queued);
    if (n_queued >= f->max_queue)
        status = status_fail(why, STATUS_QUEUE_FULL, "%d requests wait already", n_queued);
    else status = service_submit(f->service[replica], r, id, why);
    if (status == STATUS_OK) learn(f, r, replica);
    pthread_mutex_unlock(&f->lock);
    if (status == STATUS_OK) *id = *id * (uint64_t)f->n + (uint64_t)replica;
    return status;
}

void front_cancel(struct front *f, uint64_t id)
{
    service_cancel(f->service[front_replica_of(f, id)], id / (uint64_t)f->n);
}

void front_drain(struct front *f, double seconds)
{
    for (int r = 0; r < f->n; r++) service_drain(f->service[r], seconds);
}

/* ------------------------------------------------------------------------------------------ running */
static void *run_one(void *service)
{
    service_run(service);
    return NULL;
}

void front_run(struct front *f)
{
    for (int r = 1; r < f->n; r++)
        if (pthread_create(&f->thread[r], NULL, run_one, f->service[r]) != 0)
            DIE(EXIT_CODE_MEMORY, "raise ulimit -u", "no thread for replica %d", r);
    service_run(f->service[0]);
    for (int r = 1; r < f->n; r++) pthread_join(f->thread[r], NULL);
}

/* ------------------------------------------------------------------------------------------ statistics */
int front_replicas(const struct front *f) { return f->n; }
int front_max_queue(const struct front *f) { return f->max_queue; }

int front_replica_of(const struct front *f, uint64_t id) { return (int)(id % (uint64_t)f->n); }

void front_replica_stats(struct front *f, int replica, struct service_stats *out)
{
    service_stats(f->service[replica], out);
}

static void add(struct service_stats *sum, const struct service_stats *s)
{
    sum->n_running += s->n_running;
    sum->n_waiting += s->n_waiting;
    sum->n_preempted += s->n_preempted;
    sum->n_blocks += s->n_blocks;
    sum->n_blocks_free += s->n_blocks_free;
    sum->n_blocks_cached += s->n_blocks_cached;
    sum->n_requests += s->n_requests;
    for (int i = 0; i < SERVICE_FINISH_COUNT; i++) sum->n_finished[i] += s->n_finished[i];
    sum->prompt_tokens += s->prompt_tokens;
    sum->generation_tokens += s->generation_tokens;
    sum->prefix_queries += s->prefix_queries;
    sum->prefix_hits += s->prefix_hits;
    sum->preemptions += s->preemptions;
    sum->pages_loaded += s->pages_loaded;
    sum->pages_met += s->pages_met;
    for (int i = 0; i < ROW_KIND_COUNT; i++) sum->rows[i] += s->rows[i];
    sum->n_steps += s->n_steps;
    sum->step_us += s->step_us;
    for (int i = 0; i < SERVICE_STEP_BUCKETS; i++) sum->step_bucket[i] += s->step_bucket[i];
    if (s->last_step_us > sum->last_step_us) sum->last_step_us = s->last_step_us;
    if (s->step_began_us && (!sum->step_began_us || s->step_began_us < sum->step_began_us))
        sum->step_began_us = s->step_began_us;
    sum->draining |= s->draining;
}

void front_stats(struct front *f, struct service_stats *out)
{
    service_stats(f->service[0], out);
    for (int r = 1; r < f->n; r++) {
        struct service_stats one;
        service_stats(f->service[r], &one);
        add(out, &one);
    }
}
