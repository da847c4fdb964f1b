/* The scheduler against a device made of integers. A cell is one token's place in a block: it holds a hash of
 * all tokens up to it and how often it was revised. Executing a plan checks, for every row, all cells that the
 * row would read: whatever was shared, copied, moved to host memory, evicted or overwritten wrongly is seen at
 * the row that reads it. Thousands of random requests arrive, are cancelled, and end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "random.h"
#include "runtime/base/die.h"
#include "runtime/sched.h"

enum {
    B = 4,
    SLOTS = 5,
    BLOCKS = 20,
    CONTEXT = 64,
    WINDOW = 4,
    HOST_BLOCKS = 22,
    HOST_SLOTS = 3,
    JOBS_MAX = 64
};

struct cell {
    uint64_t hash;
    int revised; /* how often it was written again; -1: prompt */
};

struct record { /* what a slot holds */
    uint64_t job;
    int fed;
};

struct job {
    struct sched_seq q;
    uint64_t id;
    bool used;
    int n_new;                       /* tokens it draws until it ends */
    int n_told;                      /* rows of its prompt that gave logits */
    int revised_at_hit[CONTEXT + 1]; /* of cells that another sequence wrote; -2: none */
};

struct device {
    struct step_limits limits;
    struct cell block[BLOCKS][B], host_block[HOST_BLOCKS][B];
    struct record slot[SLOTS], host_slot[HOST_SLOTS];
    int table[SLOTS][CONTEXT / B], n_set[SLOTS];
    uint64_t id[SLOTS];
};

struct world {
    struct device d;
    struct sched s;
    struct step step;
    struct job job[JOBS_MAX];
    struct random random;
    uint64_t n_jobs;
    long n_done, n_cancelled, n_steps, n_rows, n_shared, n_told;
    int64_t now;
    bool turns, tells; /* tells: some prompts' logits are wanted */
};

static const struct step_limits limits = {.n_slots = SLOTS,
                                          .max_rows = 40,
                                          .max_decode = SLOTS,
                                          .max_out = SLOTS + 3,
                                          .n_blocks = BLOCKS,
                                          .context = CONTEXT,
                                          .block_tokens = B,
                                          .window = WINDOW,
                                          .vocab = 1000,
                                          .n_layers = 2,
                                          .n_host_blocks = HOST_BLOCKS,
                                          .n_host_slots = HOST_SLOTS};

static int below(struct world *w, int n) { return random_int(&w->random, 0, n - 1); }

static uint64_t hash_token(uint64_t h, int32_t token)
{
    return (h ^ (uint64_t)(token + 1)) * 0x9e3779b97f4a7c15u;
}

static struct cell *cell_at(struct device *d, int slot, int position)
{
    return &d->block[d->table[slot][position / B]][position % B];
}

static void move(struct device *d, const struct step_move *m)
{
    switch (m->kind) {
    case STEP_MOVE_BLOCK_OUT: memcpy(d->host_block[m->to], d->block[m->from], sizeof d->block[0]); break;
    case STEP_MOVE_SLOT_OUT: d->host_slot[m->to] = d->slot[m->from]; break;
    case STEP_MOVE_BLOCK_COPY: memcpy(d->block[m->to], d->block[m->from], sizeof d->block[0]); break;
    case STEP_MOVE_BLOCK_IN: memcpy(d->block[m->to], d->host_block[m->from], sizeof d->block[0]); break;
    case STEP_MOVE_SLOT_IN: d->slot[m->to] = d->host_slot[m->from]; break;
    default: fail();
    }
}

/* All cells before `position` that a row there reads. */
static void check_read(struct world *w, struct job *j, int slot, int position)
{
    const struct seq *a = &j->q.seq;
    int window = a->policy.kind == POLICY_RETRO ? a->policy.window : 1;
    uint64_t hash = 0;
    for (int i = 0; i < position; i++) {
        const struct cell *c = cell_at(&w->d, slot, i);
        hash = hash_token(hash, a->token[i]);
        assert_true(c->hash == hash);
        if (i >= a->n_prompt) { /* decoded here: revised by every step in which it was in the window */
            int newest = position - 1 < i + window - 1 ? position - 1 : i + window - 1;
            assert_int_equal(c->revised, newest - i);
        } else if (!w->turns) {
            assert_int_equal(c->revised, -1);
        } else { /* perhaps another's decoded token: it may not change any more */
            if (j->revised_at_hit[i] == -2) j->revised_at_hit[i] = c->revised;
            assert_int_equal(j->revised_at_hit[i], c->revised);
        }
    }
}

static void execute_rows(struct world *w, struct job *j, const struct step_seq *q)
{
    struct device *d = &w->d;
    const struct seq *a = &j->q.seq;
    int last = q->position + q->n_rows - 1;
    check_read(w, j, q->slot, q->kind == ROW_PROMPT ? q->position : last);
    uint64_t hash = 0;
    for (int i = 0; i <= last; i++) {
        hash = hash_token(hash, a->token[i]);
        if (i < q->position) continue;
        struct cell *c = cell_at(d, q->slot, i);
        assert_int_equal(w->step.token[q->row0 + i - q->position], a->token[i]);
        assert_int_equal(w->s.pages.n_refs[d->table[q->slot][i / B]], 1); /* nobody else's is written */
        *c = (struct cell){hash, q->kind == ROW_PROMPT ? -1 : i == last ? 0 : c->revised + 1};
        j->revised_at_hit[i] = -1;
    }
    if (q->kind == ROW_NEW) {
        if (last == a->n_prompt) assert_int_equal(d->slot[q->slot].fed, -1); /* as a fresh slot is */
        else assert_true(d->slot[q->slot].job == j->id && d->slot[q->slot].fed == last);
        d->slot[q->slot] = (struct record){j->id, last + 1};
    }
}

static void execute(struct world *w)
{
    struct device *d = &w->d;
    struct reason why;
    if (step_validate(&w->step, &why) != STATUS_OK) fail_msg("%s", why.text);
    if (step_continue(&w->step, d->n_set, &why) != STATUS_OK) fail_msg("%s", why.text);
    int at = 0;
    for (; at < w->step.n_moves && w->step.move[at].kind <= STEP_MOVE_SLOT_OUT; at++)
        move(d, &w->step.move[at]);
    for (int i = 0; i < w->step.n_seqs; i++) {
        const struct step_seq *q = &w->step.seq[i];
        for (int k = 0; k < q->n_blocks; k++)
            d->table[q->slot][q->first_block + k] = w->step.block[q->block0 + k];
        if (q->fresh) d->slot[q->slot] = (struct record){0, -1};
    }
    for (; at < w->step.n_moves; at++) move(d, &w->step.move[at]);
    for (int i = 0; i < w->step.n_seqs; i++) execute_rows(w, w->s.planned[i]->owner, &w->step.seq[i]);
    w->n_rows += w->step.n_rows;
    w->n_steps++;
}

static struct policy random_policy(struct world *w)
{
    struct policy p = {.kind = (enum policy_kind)below(w, POLICY_KIND_COUNT), .window = 1, .kv_budget = 0.5};
    if (p.kind == POLICY_RETRO) p.window = 1 + below(w, WINDOW);
    return p;
}

/* Prompts come from few beginnings, so that they share some blocks and not others. */
static int make_prompt(struct world *w, int32_t *prompt)
{
    int n = 1 + below(w, 40), family = below(w, 3), same = below(w, 40);
    for (int i = 0; i < n; i++) prompt[i] = i < same ? 10 * family + i % 7 : below(w, 1000);
    return n;
}

/* What a sequence says is a function of its tokens, so that turns come again. */
static int32_t draw(const struct seq *a)
{
    return (int32_t)((unsigned)(a->token[a->n_tokens - 1] * 31 + a->n_tokens) % 50);
}

static struct job *free_job(struct world *w)
{
    for (int i = 0; i < JOBS_MAX; i++)
        if (!w->job[i].used) return &w->job[i];
    return NULL;
}

static void add(struct world *w, const struct policy *p, const int32_t *prompt, int n, int n_new,
                int priority, struct job *leader)
{
    struct job *j = free_job(w);
    if (!j) return;
    memset(j, 0, sizeof *j);
    for (int i = 0; i <= CONTEXT; i++) j->revised_at_hit[i] = -2;
    j->used = true;
    j->id = ++w->n_jobs;
    j->n_new = n_new;
    j->q.owner = j;
    j->q.limit = n + n_new - 1;
    j->q.priority = priority;
    j->q.key = w->now - priority * 50;
    j->q.prompt_out = w->tells && !leader && below(w, 5) == 0;
    j->q.want = j->q.prompt_out ? STEP_WANT_LOGITS : STEP_WANT_BEST;
    j->q.leader = leader ? &leader->q : NULL;
    sched_add(&w->s, &j->q, p, prompt, n);
}

static void arrive(struct world *w)
{
    int32_t prompt[CONTEXT];
    int n = make_prompt(w, prompt), room = CONTEXT - n, n_new = 1 + below(w, room < 30 ? room : 30);
    struct policy p = random_policy(w);
    struct job *old = &w->job[below(w, JOBS_MAX)];
    if (w->turns && old->used && old->q.seq.n_tokens < CONTEXT - 8 && below(w, 2)) { /* its next turn */
        n = old->q.seq.n_tokens;
        memcpy(prompt, old->q.seq.token, (size_t)n * sizeof *prompt);
        p = old->q.seq.policy;
        n_new = 1 + below(w, CONTEXT - n);
    }
    int priority = below(w, 8) ? 0 : below(w, 5) - 2, choices = below(w, 6) ? 1 : 2 + below(w, 4);
    struct job *leader = free_job(w);
    if (!leader) return;
    add(w, &p, prompt, n, n_new, priority, NULL);
    for (int i = 1; i < choices; i++) add(w, &p, prompt, n, 1 + below(w, n_new), priority, leader);
}

static void end(struct world *w, struct job *j, bool cancelled)
{
    w->n_shared += j->q.n_cached > 0;
    sched_remove(&w->s, &j->q);
    j->used = false;
    ++*(cancelled ? &w->n_cancelled : &w->n_done);
}

static void cancel_one(struct world *w)
{
    struct job *j = &w->job[below(w, JOBS_MAX)];
    if (j->used) end(w, j, true);
    sched_check(&w->s);
}

/* The rows that give logits of a sequence: of a prompt where they are wanted each one once and in order, whatever
 * interrupts it; false when none of them predicts a new token. */
static bool check_outputs(struct world *w, struct job *j, const struct step_seq *q)
{
    const struct seq *a = &j->q.seq;
    int last = q->position + q->n_rows - 1;
    for (int i = last - q->n_out + 1; i <= last && i < a->n_prompt - 1; i++) {
        assert_true(j->q.prompt_out);
        assert_int_equal(i, j->n_told++);
        w->n_told++;
    }
    if (last < a->n_prompt - 1 || q->n_out == 0) return false;
    if (j->q.prompt_out) assert_int_equal(j->n_told, a->n_prompt - 1);
    assert_int_equal(a->fed, a->n_tokens);
    return true;
}

static bool step_once(struct world *w)
{
    w->now += 1 + below(w, 5);
    bool some = sched_plan(&w->s, &w->step);
    if (!some) return false;
    execute(w);
    sched_executed(&w->s, &w->step);
    struct sched_seq *planned[SLOTS];
    memcpy(planned, w->s.planned, sizeof planned);
    for (int i = 0; i < w->step.n_seqs; i++) {
        struct job *j = planned[i]->owner;
        if (!check_outputs(w, j, &w->step.seq[i])) continue;
        if (--j->n_new == 0) end(w, j, false);
        else sched_append(&w->s, &j->q, draw(&j->q.seq));
    }
    sched_check(&w->s);
    return true;
}

static void simulate(enum sched_cache cache, const struct step_limits *l, int n_requests, uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    w->random = (struct random){seed};
    w->turns = cache == SCHED_CACHE_TURNS;
    w->tells = true;
    struct sched_options o = {
        .cache = cache, .growth = 1 + (int)(seed % 4), .max_rows = SLOTS * WINDOW + 1 + (int)(seed % 19)};
    sched_open(&w->s, l, &o);
    step_open(&w->step, l);
    while (w->n_jobs < (uint64_t)n_requests) {
        for (int n = below(w, 3); n > 0; n--) arrive(w);
        if (below(w, 20) == 0) cancel_one(w);
        step_once(w);
    }
    long left = 200000; /* everybody comes to an end */
    while (step_once(w)) assert_true(--left > 0);
    for (int i = 0; i < JOBS_MAX; i++) assert_false(w->job[i].used);
    assert_int_equal(w->n_done + w->n_cancelled, w->n_jobs);
    assert_int_equal(w->s.pages.n_free + w->s.pages.n_idle, l->n_blocks);
    if (cache == SCHED_CACHE_OFF) assert_int_equal(w->s.pages.n_idle, 0);
    else assert_true(w->n_shared > n_requests / 20);
    assert_true(w->n_told > n_requests);
    assert_true(w->s.n_preempted > n_requests / 100);
    print_message("%llu sequences (%ld cancelled), %ld steps, %ld rows, %lld interruptions, %lld of %lld "
                  "prompt tokens cached\n",
                  (unsigned long long)w->n_jobs, w->n_cancelled, w->n_steps, w->n_rows,
                  (long long)w->s.n_preempted, (long long)w->s.n_found, (long long)w->s.n_looked_up);
    step_close(&w->step);
    sched_close(&w->s);
    free(w);
}

static void thousands_of_requests(void **state)
{
    (void)state;
    for (int cache = 0; cache < SCHED_CACHE_COUNT; cache++)
        for (uint64_t seed = 1; seed <= 6; seed++)
            simulate((enum sched_cache)cache, &limits, 2000, seed * 7919);
}

static void without_swap_space(void **state)
{
    (void)state;
    struct step_limits l = limits;
    l.n_host_blocks = l.n_host_slots = 0;
    for (int cache = 0; cache < SCHED_CACHE_TURNS; cache++) /* turns need it to resume to the same bits */
        for (uint64_t seed = 1; seed <= 3; seed++) simulate((enum sched_cache)cache, &l, 2000, seed * 104729);
}

/* Requests of higher priority never stop coming; the low one is still served, once it has waited for the
 * difference of their keys. */
static void low_priority_is_served(void **state)
{
    (void)state;
    struct world *w = calloc(1, sizeof *w);
    w->random = (struct random){5};
    sched_open(&w->s, &limits, &(struct sched_options){.growth = 8});
    step_open(&w->step, &limits);
    int32_t prompt[30] = {0};
    struct policy p = {.kind = POLICY_DENSE, .window = 1, .kv_budget = 1};
    for (int i = 0; i < SLOTS + 3; i++) add(w, &p, prompt, 30, 20, 2, NULL);
    add(w, &p, prompt, 30, 20, -2, NULL);
    struct job *low = &w->job[SLOTS + 3];
    uint64_t id = low->id;
    int n_steps = 0;
    while (low->used && low->id == id && n_steps++ < 2000) {
        step_once(w);
        int n_waiting = 0;
        for (int i = 0; i < JOBS_MAX; i++) n_waiting += w->job[i].used;
        while (n_waiting++ < SLOTS + 4) add(w, &p, prompt, 30, 20, 2, NULL);
    }
    assert_true(n_steps > 50 && n_steps < 2000); /* it waited, and was served */
    while (step_once(w)) {
    }
    step_close(&w->step);
    sched_close(&w->s);
    free(w);
}

/* A higher priority takes slots and blocks from a lower one, which comes back. */
static void higher_priority_interrupts(void **state)
{
    (void)state;
    struct world *w = calloc(1, sizeof *w);
    sched_open(&w->s, &limits, &(struct sched_options){0});
    step_open(&w->step, &limits);
    int32_t prompt[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct policy p = {.kind = POLICY_RETRO, .window = 3, .kv_budget = 0.5};
    for (int i = 0; i < SLOTS; i++) add(w, &p, prompt, 8, 9, 0, NULL);
    for (int i = 0; i < 4; i++) step_once(w);
    assert_int_equal(w->s.n_running, SLOTS);
    add(w, &p, prompt, 8, 2, 1, NULL);
    step_once(w);
    assert_true(w->job[SLOTS].q.state == SCHED_RUNNING && w->s.n_swapped == 1);
    assert_int_equal(w->job[SLOTS - 1].q.state, SCHED_SWAPPED); /* the last one that came */
    while (step_once(w)) {
    }
    assert_int_equal(w->n_done, SLOTS + 1);
    step_close(&w->step);
    sched_close(&w->s);
    free(w);
}

/* Choices: one computes the prompt; the others take its full blocks and copy the last. */
static void choices_share_their_prompt(void **state)
{
    (void)state;
    for (int cache = 0; cache < SCHED_CACHE_COUNT; cache++) {
        struct world *w = calloc(1, sizeof *w);
        sched_open(&w->s, &limits, &(struct sched_options){.cache = (enum sched_cache)cache, .growth = 1});
        step_open(&w->step, &limits);
        int32_t prompt[15] = {1, 2, 3};
        struct policy p = {.kind = POLICY_RETRO, .window = 2, .kv_budget = 0.5};
        for (int i = 0; i < SLOTS; i++) add(w, &p, prompt, 15, 6, 0, i ? &w->job[0] : NULL);
        step_once(w);
        assert_int_equal(w->n_rows, 15);
        step_once(w); /* one decode step with one row, and the others' last prompt token */
        assert_int_equal(w->n_rows, 15 + 1 + SLOTS - 1);
        assert_int_equal(w->s.pages.n_blocks - w->s.pages.n_free, 3 + SLOTS);
        while (step_once(w)) {
        }
        assert_int_equal(w->n_done, SLOTS);
        step_close(&w->step);
        sched_close(&w->s);
        free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousands_of_requests),      cmocka_unit_test(without_swap_space),
        cmocka_unit_test(low_priority_is_served),     cmocka_unit_test(higher_priority_interrupts),
        cmocka_unit_test(choices_share_their_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
