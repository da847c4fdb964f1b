/* mpi_replicas.c - every rank is a replica with the same weights: what rank 0 gets from the others' engines has the bits of
 * its own one's, for everything that a plan may want, and moves and counters happen where they should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>

#include "runtime/pages.h"
#include "runtime/sched.h"
#include "tests/runtime/random.h"
#include "tests/runtime/tiny_engine.h"

static struct comm_world world;
static struct comm *leaders;
static struct ctl *front;
static struct tiny_engine tiny;

static void same_outputs(const struct engine_result *a, const struct engine_result *b)
{
    assert_int_equal(a->n_outputs, b->n_outputs);
    for (int i = 0; i < a->n_outputs; i++) {
        const struct engine_output *p = &a->output[i], *q = &b->output[i];
        assert_int_equal(p->seq, q->seq);
        assert_int_equal(p->best, q->best);
        assert_memory_equal(&p->best_logit, &q->best_logit, sizeof p->best_logit);
        assert_true(!p->logits == !q->logits && !p->top == !q->top);
        if (p->logits) assert_memory_equal(p->logits, q->logits, TINY_VOCAB * sizeof *p->logits);
        if (p->top) assert_memory_equal(p->top, q->top, TOP_K_MAX * sizeof *p->top);
    }
}

/* Sequences that come and go, of every policy, in fewer blocks than they would like: chunks, revisions, and moves to and
 * from host memory. The same plans to this rank's engine and to the replica's. */
static void run_both(struct engine *here, struct engine *there, unsigned seed)
{
    enum { SEQS = 8, PROMPT = 200, TOKENS = 330, STEPS = 2500 };
    static struct sched_seq q[SEQS];
    static int32_t prompt[SEQS][PROMPT];
    struct step_limits limits = *engine_limits(here);
    struct sched_options o = {.growth = 1, .cache = SCHED_CACHE_ON};
    struct sched s;
    struct step step;
    int left = SEQS, wanted[STEP_WANT_COUNT] = {0}, moves = 0, n_told = 0;
    struct random random = {seed};
    assert_memory_equal(&limits, engine_limits(there), sizeof limits);
    assert_true(engine_token_bytes(here) == engine_token_bytes(there));
    assert_true(engine_summary_bytes(here) == engine_summary_bytes(there));
    limits.n_blocks = TOKENS / TINY_BLOCK + 1;
    sched_open(&s, &limits, &o);
    step_open(&step, &limits);
    for (int i = 0; i < SEQS; i++) {
        struct policy p = {.kind = (enum policy_kind)(i % POLICY_KIND_COUNT),
                           .window = i % POLICY_KIND_COUNT == POLICY_RETRO ? 3 : 1,
                           .kv_budget = 0.3,
                           .dense_layers = 1,
                           .score_alpha = 0.2f,
                           .sink_pages = 1};
        int n = random_int(&random, 1, PROMPT);
        for (int k = 0; k < n; k++) prompt[i][k] = random_int(&random, 0, TINY_VOCAB - 1);
        q[i] =
            (struct sched_seq){.want = (enum step_want)(1 + i % (STEP_WANT_COUNT - 1)),
                               .prompt_out = i % 2 == 0 && i % (STEP_WANT_COUNT - 1) == STEP_WANT_LOGITS - 1,
                               .limit = random_int(&random, n + 1, TOKENS),
                               .key = i,
                               .priority = i};
        sched_add(&s, &q[i], &p, prompt[i], n);
    }
    for (int k = 0; k < STEPS && left > 0; k++) {
        struct engine_result a, b;
        assert_true(sched_plan(&s, &step));
        moves += step.n_moves;
        engine_step(here, &step, &a);
        engine_step(there, &step, &b);
        same_outputs(&a, &b);
        sched_executed(&s, &step);
        for (int i = 0; i < a.n_outputs; i++) {
            struct sched_seq *c = s.planned[a.output[i].seq];
            n_told += a.output[i].position + 1 < c->seq.n_prompt;
            if (a.output[i].position + 1 < c->seq.n_prompt) continue;
            wanted[c->want]++;
            if (c->seq.n_tokens < c->limit) {
                sched_append(&s, c, a.output[i].best);
                continue;
            }
            int64_t mine[COUNTER_COUNT], theirs[COUNTER_COUNT];
            engine_counters(here, c->seq.slot, mine);
            engine_counters(there, c->seq.slot, theirs);
            assert_memory_equal(mine, theirs, sizeof mine);
            sched_remove(&s, c);
            left--;
        }
        sched_check(&s);
    }
    assert_int_equal(left, 0);
    assert_true(wanted[STEP_WANT_BEST] > 0 && wanted[STEP_WANT_LOGITS] > 0 &&
                wanted[STEP_WANT_CANDIDATES] > 0);
    assert_true(n_told > 0 && moves > 0 && s.n_preempted > 0);
    sched_close(&s);
    step_close(&step);
}

static void remote_engines_give_the_same_bits(void **state)
{
    (void)state;
    tiny_engine_open(&tiny, &world);
    front = ctl_open(leaders, 30);
    if (world.rank != 0) {
        engine_lead(tiny.engine, front);
    } else {
        for (int r = 1; r < world.size; r++) {
            struct engine *there = engine_open_remote(front, r);
            run_both(tiny.engine, there, (unsigned)r);
            engine_close(there);
        }
        if (world.size == 1) { /* no replica: at least two engines side by side */
            struct tiny_engine other;
            tiny_engine_open(&other, &world);
            run_both(tiny.engine, other.engine, 1);
            tiny_engine_close(&other);
        }
    }
    ctl_close(front);
    tiny_engine_close(&tiny);
}

int main(void)
{
    comm_world_open(&world, true);
    if (world.size > 1) die_set_hook(comm_world_abort);
    leaders = comm_open_leaders(&world, 1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(remote_engines_give_the_same_bits)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed && world.size > 1) comm_world_abort(1); /* the others wait for plans */
    comm_close(leaders);
    comm_world_close();
    return failed;
}
