/* The decision over the ranks' last words: every cause, which of several wins, and what must not be one. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "comm/watch.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"

#define S 1000000ll /* one second */

enum { RANKS = 4 }; /* on hosts a, a, b, c */

static struct watch w;
static struct cause c;
static struct beat now_of[RANKS];
static int64_t now;
static bool mute[RANKS];

static const struct watch_limits limits = {
    .silent_us = 5 * S, .hung_us = 8 * S, .start_us = 60 * S, .interval_us = S / 4, .group = RANKS};

static int set_up(void **state)
{
    (void)state;
    static const char *const host[RANKS] = {"a", "a", "b", "c"};
    watch_open(&w, 0, RANKS, &limits);
    now = 100 * S;
    for (int r = 0; r < RANKS; r++) {
        strcpy(w.rank[r].host, host[r]);
        mute[r] = false;
        now_of[r] = (struct beat){
            .phase = PROGRESS_IDLE, .layer = -1, .deaf_to = -1, .step = 7, .available_mib = 10000};
        watch_heard(&w, r, &now_of[r], now);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    watch_close(&w);
    return 0;
}

/* Time goes on beat by beat; true as soon as there is a cause. */
static bool run_for(double seconds)
{
    for (int64_t end = now + (int64_t)(seconds * S); now < end;) {
        now += S / 4;
        for (int r = 0; r < RANKS; r++)
            if (!mute[r]) watch_heard(&w, r, &now_of[r], now);
        if (watch_decide(&w, now, &c)) return true;
    }
    return false;
}

static void step(int rank, uint64_t count, int layer, const char *op)
{
    struct beat *b = &now_of[rank];
    b->phase = PROGRESS_STEP;
    b->step = 8;
    b->count = count;
    b->layer = layer;
    snprintf(b->op, sizeof b->op, "%s", op);
}

static void assert_cause(enum cause_kind kind, int rank, const char *words)
{
    if (c.kind != kind || c.rank != rank || !strstr(c.text, words))
        fail_msg("%s of rank %d: %s", watch_cause_name(c.kind), c.rank, c.text);
    assert_string_equal(c.host, w.rank[rank].host);
}

static void report(int rank, int exit_code, int by_signal, const char *text)
{
    struct watch_report *p = &w.rank[rank].report;
    *p = (struct watch_report){.there = true, .exit_code = exit_code, .signal = by_signal};
    snprintf(p->text, sizeof p->text, "%s", text);
}

static void idle_is_fine(void **state)
{
    (void)state;
    assert_false(run_for(1000));
}

static void progress_is_fine(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        for (int r = 0; r < RANKS; r++) step(r, (uint64_t)i + 1, i, "attend");
        assert_false(run_for(6));
    }
}

static void a_dead_rank(void **state)
{
    (void)state;
    step(2, 31, 4, "attend");
    assert_false(run_for(1));
    w.rank[2].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_DIED, 2, "rank 2 on b died in step 8, layer 4, attend: killed, or crashed");
    assert_int_equal(c.exit_code, EXIT_CODE_PEER);
}

/* What follows from a death arrives first. */
static void a_death_is_stronger_than_what_follows(void **state)
{
    (void)state;
    report(1, EXIT_CODE_PEER, 0, "MPI_Alltoall failed");
    assert_false(watch_decide(&w, now, &c));
    w.rank[3].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_DIED, 3, "rank 3 on c died");
}

static void a_peer_error_alone(void **state)
{
    (void)state;
    report(1, EXIT_CODE_PEER, 0, "MPI_Alltoall failed");
    assert_true(run_for(1));
    assert_cause(CAUSE_PEER, 1, "MPI_Alltoall failed");
    assert_int_equal(c.exit_code, EXIT_CODE_PEER);
}

static void an_error_keeps_its_code(void **state)
{
    (void)state;
    report(2, EXIT_CODE_MEMORY, 0, "no memory for x");
    w.rank[2].lost = true;
    w.rank[1].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_ERROR, 2, "no memory for x");
    assert_int_equal(c.exit_code, EXIT_CODE_MEMORY);
}

static void a_signal(void **state)
{
    (void)state;
    report(1, 143, 15, "");
    w.rank[1].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_SIGNAL, 1, "signal 15 (Terminated)");
    assert_int_equal(c.exit_code, 143);
}

/* A launcher ends the others when one has died, and its signals may be told first. */
static void a_death_is_stronger_than_the_signals_after_it(void **state)
{
    (void)state;
    report(0, 143, 15, "");
    report(2, 143, 15, "");
    w.rank[1].lost = true;
    assert_true(run_for(1));
    assert_int_equal(c.kind, CAUSE_DIED);
    assert_int_equal(c.rank, 1);
}

static void out_of_memory(void **state)
{
    (void)state;
    w.rank[1].lost = true;
    mute[1] = true;
    now_of[0].oom_kills = 1;
    assert_true(run_for(1));
    assert_cause(CAUSE_DIED, 1, "killed by the kernel, its host is out of memory");
    tear_down(NULL);
    set_up(NULL);
    now_of[3].available_mib = 20; /* nobody else is on its host */
    assert_false(run_for(1));
    w.rank[3].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_DIED, 3, "almost no memory left");
    tear_down(NULL);
    set_up(NULL);
    now_of[2].oom_kills = 5; /* on another host: says nothing */
    w.rank[1].lost = true;
    assert_true(run_for(1));
    assert_cause(CAUSE_DIED, 1, "killed, or crashed");
}

static void a_stopped_rank(void **state)
{
    (void)state;
    assert_false(run_for(1));
    mute[2] = true;
    w.rank[2].answers = true;
    assert_false(run_for(4.9));
    assert_true(run_for(1));
    assert_cause(CAUSE_STOPPED, 2, "does not respond");
}

static void a_stopped_neighbour(void **state)
{
    (void)state;
    mute[1] = true; /* of rank 0's own host: no network lies between */
    assert_true(run_for(6));
    assert_cause(CAUSE_STOPPED, 1, "the process is stopped");
}

static void an_unreachable_host(void **state)
{
    (void)state;
    mute[3] = true;
    assert_false(run_for(4.75));
    now_of[2].deaf_to = 3;
    assert_true(run_for(1));
    assert_cause(CAUSE_UNREACHABLE, 3, "rank 3 on c cannot be reached");
    assert_true(c.silent_us > 5 * S && c.silent_us < 6 * S);
}

static void the_own_network(void **state)
{
    (void)state;
    mute[2] = mute[3] = true;
    assert_true(run_for(6));
    assert_cause(CAUSE_UNREACHABLE, 0, "host a (rank 0) lost its network");
}

static void a_link_between_others(void **state)
{
    (void)state;
    now_of[3].deaf_to = 2;
    report(2, EXIT_CODE_PEER, 0, "MPI_Allgather failed");
    assert_true(run_for(1));
    assert_cause(CAUSE_LINK, 3, "rank 3 on c and rank 2 on b do not hear each other");
    assert_int_equal(c.other, 2);
}

/* A follower's table holds rank 0 alone: what rank 0 does not hear is not the follower's to judge. */
static void a_follower_judges_rank_0_only(void **state)
{
    (void)state;
    w.self = 2;
    now_of[0].deaf_to = 3;
    mute[1] = mute[3] = true;
    w.rank[1].heard_us = w.rank[3].heard_us = 0;
    assert_false(run_for(20));
    mute[0] = true;
    assert_true(run_for(6));
    assert_cause(CAUSE_UNREACHABLE, 0, "ranks 0,1 on a cannot be reached");
}

/* Everybody waits in the all-reduce of layer 3 but rank 2, which has not come out of layer 2. */
static void the_one_that_hangs(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) step(r, 40, 3, "all_reduce");
    step(2, 33, 2, "linear");
    assert_false(run_for(7.9));
    assert_true(run_for(1));
    assert_cause(CAUSE_HUNG, 2, "rank 2 on b made no progress in step 8, layer 2, linear");
}

static void a_follower_that_never_begins(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) step(r, 2, -1, "all_reduce");
    now_of[3] = (struct beat){.phase = PROGRESS_IDLE, .layer = -1, .deaf_to = -1, .step = 7};
    assert_true(run_for(9));
    assert_cause(CAUSE_HUNG, 3, "rank 3 on c made no progress in idle");
}

static void an_op_that_computes_may_take_longer(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) step(r, 40, 3, "all_reduce");
    step(2, 33, 2, "attend_prompt");
    for (int i = 0; i < 76; i++) {
        now_of[2].cpu_us += S / 2;
        for (int r = 0; r < RANKS; r++) now_of[r].cpu_us += S; /* a wait may spin, that is no work */
        assert_false(run_for(1));
    }
    assert_true(run_for(10));
    assert_cause(CAUSE_HUNG, 2, "attend_prompt");
}

static void all_wait_together(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) step(r, 40, 3, "all_reduce");
    assert_true(run_for(9));
    assert_cause(CAUSE_HUNG, 0, "every rank waits there: a collective does not finish");
    tear_down(NULL);
    set_up(NULL);
    for (int r = 0; r < RANKS; r++) step(r, 40, 3, "all_reduce");
    now_of[3].thread_state = 't';
    assert_true(run_for(9));
    assert_cause(CAUSE_HUNG, 3, "its main thread is stopped");
}

static void a_late_start(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) now_of[r].phase = PROGRESS_CONNECT;
    now_of[1].phase = PROGRESS_LOAD;
    now_of[1].thread_state = 'D';
    assert_false(run_for(59));
    now_of[1].count++; /* a piece of a file was read */
    assert_false(run_for(59));
    assert_true(run_for(2));
    assert_cause(CAUSE_START, 1, "rank 1 on a made no progress in load_weights");
    assert_non_null(strstr(c.text, "file system"));
}

/* Rank 0 reads a prompt from a person while the others wait for it; then files, from a file system that hangs. */
static void preparing_takes_its_time(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++) now_of[r].phase = PROGRESS_PREPARE;
    strcpy(now_of[0].op, PROGRESS_ASKS);
    assert_false(run_for(10000));
    now_of[0].op[0] = 0;
    now_of[0].count++;
    assert_false(run_for(59));
    for (int r = 1; r < RANKS; r++) now_of[r].cpu_us = 50 * S; /* MPI_Bcast spins */
    assert_true(run_for(2));
    assert_cause(CAUSE_START, 0, "rank 0 on a made no progress in prepare");
}

/* Rank 0 may take its time: who reads its output may be slow. */
static void ends_in_order(void **state)
{
    (void)state;
    for (int r = 1; r < RANKS; r++) {
        w.rank[r].closed = true;
        mute[r] = true;
    }
    now_of[0].phase = PROGRESS_CLOSE;
    assert_false(run_for(100));
}

/* After a long idle time rank 0 ends; a follower does not. */
static void a_late_end(void **state)
{
    (void)state;
    assert_false(run_for(1000));
    now_of[0].phase = now_of[1].phase = PROGRESS_CLOSE;
    w.rank[3].closed = true;
    mute[3] = true;
    assert_false(run_for(7));
    now_of[1].count++;
    assert_true(run_for(2));
    assert_cause(CAUSE_HUNG, 2, "rank 2 on b made no progress in idle");
    assert_non_null(strstr(c.text, "the others wait for it"));
}

static void a_suspicion_may_pass(void **state)
{
    (void)state;
    mute[2] = true;
    assert_false(run_for(5));
    now += S / 8;
    assert_false(watch_decide(&w, now, &c));
    assert_true(w.suspected_us > 0);
    mute[2] = false;
    assert_false(run_for(1));
    assert_int_equal(w.suspected_us, 0);
}

/* Replicas run steps of their own: one is idle while the other works. */
static void replicas_are_apart(void **state)
{
    (void)state;
    w.limits.group = 2;
    for (int i = 0; i < 10; i++) {
        step(0, (uint64_t)i + 1, 1, "linear");
        step(1, (uint64_t)i + 1, 1, "linear");
        assert_false(run_for(4));
    }
    step(2, 3, 0, "all_reduce");
    step(3, 2, 0, "linear");
    now_of[0].phase = now_of[1].phase = PROGRESS_IDLE;
    assert_true(run_for(9));
    assert_cause(CAUSE_HUNG, 3, "linear");
}

/* But they start together: a replica that waits for the other one is not to blame. */
static void replicas_start_together(void **state)
{
    (void)state;
    w.limits.group = 2;
    for (int r = 0; r < 4; r++) now_of[r].phase = PROGRESS_LOAD;
    assert_false(run_for(1));
    now_of[0].phase = now_of[1].phase = now_of[2].phase = PROGRESS_CONNECT;
    assert_true(run_for(60));
    assert_cause(CAUSE_START, 3, "load_weights");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(idle_is_fine),
        TEST(progress_is_fine),
        TEST(a_dead_rank),
        TEST(a_death_is_stronger_than_what_follows),
        TEST(a_death_is_stronger_than_the_signals_after_it),
        TEST(a_peer_error_alone),
        TEST(an_error_keeps_its_code),
        TEST(a_signal),
        TEST(out_of_memory),
        TEST(a_stopped_rank),
        TEST(a_stopped_neighbour),
        TEST(an_unreachable_host),
        TEST(the_own_network),
        TEST(a_link_between_others),
        TEST(a_follower_judges_rank_0_only),
        TEST(the_one_that_hangs),
        TEST(a_follower_that_never_begins),
        TEST(an_op_that_computes_may_take_longer),
        TEST(all_wait_together),
        TEST(a_late_start),
        TEST(preparing_takes_its_time),
        TEST(ends_in_order),
        TEST(a_late_end),
        TEST(a_suspicion_may_pass),
        TEST(replicas_are_apart),
        TEST(replicas_start_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
