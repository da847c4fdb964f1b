/* test_threads.c - the CPU device's threads: each runs once a job, results are seen, tasks are dealt
 * contiguously, sleepers wake, pins are kept and undone. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

#include "kernels/cpu/cpu.h"
#include "runtime/base/clock.h"
#include "tests/kernels/guard.h"

static struct threads *open_threads(int n, bool pin, int first)
{
    struct threads *t = NULL;
    struct reason why;
    assert_int_equal(threads_open(&t, n, pin, first, &why), STATUS_OK);
    assert_int_equal(threads_count(t), n);
    return t;
}

static void sleep_us(long us)
{
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

struct tally {
    int runs[64]; /* plain memory: what workers wrote must be seen by the caller */
    pthread_t who[64];
    const int *input; /* and the other way round */
    int seen[64];
};

static void count_run(void *arg, int thread)
{
    struct tally *t = arg;
    t->runs[thread]++;
    t->who[thread] = pthread_self();
    t->seen[thread] = *t->input;
}

static void each_thread_runs_once_a_job(void **state)
{
    (void)state;
    for (int n = 1; n <= 9; n++) {
        struct threads *t = open_threads(n, false, 0);
        int input = 0;
        struct tally tally = {.input = &input};
        for (int job = 1; job <= 300; job++) {
            input = job * 7;
            threads_run(t, count_run, &tally);
            for (int i = 0; i < n; i++) {
                assert_int_equal(tally.runs[i], job);
                assert_int_equal(tally.seen[i], job * 7);
            }
            /* Some jobs follow at once, some find spinning threads, some find sleeping ones. */
            if (job % 50 == 0) sleep_us(3000);
            else if (job % 7 == 0) sleep_us(20);
        }
        assert_int_equal(tally.runs[n], 0);
        assert_true(pthread_equal(tally.who[0], pthread_self()));
        for (int i = 1; i < n; i++)
            for (int j = 0; j < i; j++) assert_false(pthread_equal(tally.who[i], tally.who[j]));
        threads_close(t);
    }
}

static void many_short_jobs(void **state)
{
    (void)state;
    struct threads *t = open_threads(3, false, 0);
    int input = 0;
    struct tally tally = {.input = &input};
    for (int job = 0; job < 20000; job++) threads_run(t, count_run, &tally);
    for (int i = 0; i < 3; i++) assert_int_equal(tally.runs[i], 20000);
    threads_close(t);
}

struct dealt {
    int n;
    _Atomic int times[4100];
    int thread_of[4100];
    _Atomic int last[8]; /* the thread's previous task */
};

static void take_task(void *arg, int task, int thread)
{
    struct dealt *d = arg;
    atomic_fetch_add(&d->times[task], 1);
    d->thread_of[task] = thread;
    int previous = atomic_exchange(&d->last[thread], task);
    assert_true(previous == -1 || previous == task - 1); /* contiguous, ascending */
}

static void tasks_are_dealt_once_and_evenly(void **state)
{
    (void)state;
    static const int counts[] = {0, 1, 2, 3, 4, 5, 7, 31, 65, 4099};
    for (int n = 1; n <= 5; n++) {
        struct device *d = cpu_device(CPU_ISA_PORTABLE, n, DTYPE_F32);
        assert_int_equal(cpu_threads(d), n);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            static struct dealt dealt;
            memset(&dealt, 0, sizeof dealt);
            for (int i = 0; i < 8; i++) dealt.last[i] = -1;
            cpu_parallel(d, take_task, &dealt, counts[c]);
            int held[8] = {0};
            for (int i = 0; i < counts[c]; i++) {
                assert_int_equal(dealt.times[i], 1);
                assert_true(dealt.thread_of[i] >= 0 && dealt.thread_of[i] < n);
                held[dealt.thread_of[i]]++;
            }
            for (int i = 0; i < n && counts[c] > 1; i++)
                assert_true(held[i] == counts[c] / n || held[i] == (counts[c] + n - 1) / n);
            for (int i = counts[c]; i < 4100; i++) assert_int_equal(dealt.times[i], 0);
        }
        device_close(d);
    }
}

/* A caller that waits for a slow worker must sleep, not burn its core: the worker may need it. */
static void slow_task(void *arg, int thread)
{
    (void)arg;
    if (thread == 1) sleep_us(200000);
}

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double process_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void long_waits_sleep(void **state)
{
    (void)state;
    struct threads *t = open_threads(3, false, 0);
    double c0 = thread_seconds();
    int64_t t0 = clock_us();
    threads_run(t, slow_task, NULL);
    assert_true(clock_us() - t0 >= 200000); /* it did wait */
    assert_true(thread_seconds() - c0 < 0.05);
    /* Idle workers sleep too. */
    double p0 = process_seconds();
    sleep_us(300000);
    assert_true(process_seconds() - p0 < 0.1);
    threads_close(t);
}

static long times_slept(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_nvcsw;
}

static void spin_a_little(void *arg, int thread)
{
    int64_t *job = arg; /* odd jobs are longer here, even ones there, as tasks that do not divide evenly */
    for (int64_t until = clock_us() + ((*job + thread) % 2 ? 30 : 10); clock_us() < until;) continue;
}

static void sleep_in_worker(void *arg, int thread)
{
    (void)arg;
    if (thread) sleep_us(3000);
}

/* Long pauses and long jobs teach the threads to sleep; jobs of a step's lengths must teach them to spin again. Strangers on the cores
 * can spoil a try. */
static void short_jobs_end_sleeping(void **state)
{
    (void)state;
    enum { JOBS = 500, TRIES = 8 };
    if (threads_cores() < 2) skip();
    long least = 2L * JOBS;
    for (int try = 0; try < TRIES && least > JOBS / 5; try++) {
        struct threads *t = open_threads(2, true, 0);
        for (int i = 0; i < 20; i++) {
            threads_run(t, sleep_in_worker, NULL);
            sleep_us(3000);
        }
        for (int64_t i = 0; i < JOBS; i++) threads_run(t, spin_a_little, &i);
        long begun = times_slept();
        for (int64_t i = 0; i < JOBS; i++) threads_run(t, spin_a_little, &i);
        long slept = times_slept() - begun;
        least = slept < least ? slept : least;
        threads_close(t);
    }
    print_message("%d jobs of 30 us: %ld sleeps\n", JOBS, least);
    assert_true(least <= JOBS / 5);
}

static void record_core(void *arg, int thread)
{
    cpu_set_t mask;
    assert_int_equal(pthread_getaffinity_np(pthread_self(), sizeof mask, &mask), 0);
    int *core = (int *)arg + thread;
    *core = -1;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &mask)) *core = *core == -1 ? i : -2;
}

static void pins_follow_the_mask_and_are_undone(void **state)
{
    (void)state;
    cpu_set_t before, after;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    int cores[CPU_SETSIZE], n_cores = 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &before)) cores[n_cores++] = i;
    assert_int_equal(threads_cores(), n_cores > THREADS_MAX ? THREADS_MAX : n_cores);
    for (int first = 0; first < 3; first++) {
        struct threads *t = open_threads(3, true, first);
        int core[3];
        threads_run(t, record_core, core);
        for (int i = 0; i < 3; i++) assert_int_equal(core[i], cores[(first + i) % n_cores]);
        threads_close(t);
        assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
        assert_true(CPU_EQUAL(&before, &after));
    }
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    struct device *d = NULL;
    struct reason why;
    struct device_options o = {.n_threads = THREADS_MAX + 1};
    assert_int_equal(device_open(&d, DEVICE_CPU, &o, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "--threads"));
    o.n_threads = -1;
    assert_int_equal(device_open(&d, DEVICE_CPU, &o, &why), STATUS_BAD_OPTION);
    assert_null(d);
}

/* A job that runs a task twice, or never, must be seen by the tally above. */
static void harness_catches_a_lost_task(void **state)
{
    (void)state;
    static struct dealt dealt;
    for (int i = 0; i < 8; i++) dealt.last[i] = -1;
    for (int task = 0; task < 5; task++)
        if (task != 3) {
            dealt.last[0] = task - 1;
            take_task(&dealt, task, 0);
        }
    int lost = 0;
    for (int i = 0; i < 5; i++) lost += dealt.times[i] != 1;
    assert_int_equal(lost, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_thread_runs_once_a_job),
        cmocka_unit_test(many_short_jobs),
        cmocka_unit_test(tasks_are_dealt_once_and_evenly),
        cmocka_unit_test(long_waits_sleep),
        cmocka_unit_test(short_jobs_end_sleeping),
        cmocka_unit_test(pins_follow_the_mask_and_are_undone),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(harness_catches_a_lost_task),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
