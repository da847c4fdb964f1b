#define _GNU_SOURCE
#include "kernels/cpu/threads.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"

/* Spin limits in rounds of a check and a pause (10 to 50 ns each, by processor). The largest spans the serial
 * pieces of a step and a small all-reduce; the smallest is less than a system call costs. */
enum { SPIN_MIN = 16, SPIN_START = 1024, SPIN_MAX = 8192 };
/* A sleep shorter than this was not worth it: a virtual machine takes 50 to 100 us to wake a core. */
enum { SLEEP_WORTH_US = 200 };

struct waiter {
    int spin_limit;
};

struct worker {
    struct threads *pool;
    pthread_t handle;
    int index;
    struct waiter waiter;
};

/* What the caller writes, what workers write and what both only read live on different cache lines. */
struct threads {
    _Alignas(64) _Atomic int epoch; /* grows by one with every job; futex of the workers */
    _Atomic int sleepers;           /* workers that are, or are about to be, asleep on epoch */
    void (*fn)(void *arg, int thread);
    void *arg;
    bool stop;
    _Alignas(64) _Atomic int running; /* workers not done with this job; futex of the caller */
    _Atomic int caller_sleeps;
    _Alignas(64) int n;
    bool pinned;
    cpu_set_t caller_mask;
    struct waiter caller;
    struct worker workers[];
};

static void futex_wait(_Atomic int *word, int seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic int *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* After a wait that ended in sleep. One that was short all the same should have been spun through: otherwise two threads that
 * each wake late make the other one sleep, too, and every job of a step costs two wake-ups. A long one means that somebody
 * else has the core. */
static void learn(struct waiter *w, int64_t slept_us)
{
    if (slept_us < SLEEP_WORTH_US)
        w->spin_limit = w->spin_limit < SPIN_MAX / 2 ? w->spin_limit * 2 : SPIN_MAX;
    else if (w->spin_limit > SPIN_MIN) w->spin_limit /= 2;
}

/* Spins until *word is no longer `unwanted`; false when the limit was reached. */
static bool spin(_Atomic int *word, int unwanted, struct waiter *w)
{
    for (int i = 0; i < w->spin_limit; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != unwanted) {
            if (w->spin_limit < SPIN_MAX) w->spin_limit *= 2;
            return true;
        }
        pause_core();
    }
    return false;
}

static void wait_for_job(struct threads *t, int seen, struct waiter *w)
{
    if (spin(&t->epoch, seen, w)) return;
    /* Sequentially consistent on both sides: either the caller sees this sleeper, or this sees the new epoch.
     */
    int64_t begun = clock_us();
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->epoch) == seen) futex_wait(&t->epoch, seen);
    atomic_fetch_sub(&t->sleepers, 1);
    learn(w, clock_us() - begun);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct threads *t = w->pool;
    /* The opener counts as job 0; epochs are compared for change only, so that wrapping is harmless. */
    for (int seen = 0;; seen = (int)((unsigned)seen + 1)) {
        wait_for_job(t, seen, &w->waiter);
        if (t->stop) return NULL;
        t->fn(t->arg, w->index);
        if (atomic_fetch_sub(&t->running, 1) == 1 && atomic_load(&t->caller_sleeps))
            futex_wake(&t->running, 1);
    }
}

static void announce(struct threads *t)
{
    atomic_fetch_add(&t->epoch, 1);
    if (atomic_load(&t->sleepers)) futex_wake(&t->epoch, t->n);
}

/* Waits until no worker runs. Unlike a worker's, this word passes through values that mean "not yet". */
static void wait_for_workers(struct threads *t)
{
    struct waiter *w = &t->caller;
    for (int i = 0; i < w->spin_limit; i++) {
        if (atomic_load_explicit(&t->running, memory_order_acquire) == 0) {
            if (w->spin_limit < SPIN_MAX) w->spin_limit *= 2;
            return;
        }
        pause_core();
    }
    int64_t begun = clock_us();
    atomic_store(&t->caller_sleeps, 1);
    for (int left; (left = atomic_load(&t->running)) != 0;) futex_wait(&t->running, left);
    atomic_store(&t->caller_sleeps, 0);
    learn(w, clock_us() - begun);
}

void threads_run(struct threads *t, void (*fn)(void *arg, int thread), void *arg)
{
    if (t->n == 1) {
        fn(arg, 0);
        return;
    }
    ASSERT(atomic_load_explicit(&t->running, memory_order_relaxed) == 0);
    t->fn = fn;
    t->arg = arg;
    atomic_store_explicit(&t->running, t->n - 1, memory_order_relaxed);
    announce(t);
    fn(arg, 0);
    wait_for_workers(t);
}

int threads_count(const struct threads *t) { return t->n; }

int threads_cores(void)
{
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask)) return 1;
    int n = CPU_COUNT(&mask);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

/* The index-th core of a mask as a mask of its own. */
static cpu_set_t core_of(const cpu_set_t *mask, int index)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    index %= CPU_COUNT(mask);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, mask) && index-- == 0) {
            CPU_SET(core, &one);
            break;
        }
    return one;
}

static void pin_all(struct threads *t, int pin_first)
{
    if (pthread_getaffinity_np(pthread_self(), sizeof t->caller_mask, &t->caller_mask)) return;
    if (CPU_COUNT(&t->caller_mask) < 1) return;
    for (int i = 0; i < t->n; i++) {
        cpu_set_t one = core_of(&t->caller_mask, pin_first + i);
        pthread_setaffinity_np(i ? t->workers[i - 1].handle : pthread_self(), sizeof one, &one);
    }
    t->pinned = true;
}

/* Ends the first `n_started` workers and frees the pool. */
static void stop_workers(struct threads *t, int n_started)
{
    t->stop = true;
    announce(t);
    for (int i = 0; i < n_started; i++) pthread_join(t->workers[i].handle, NULL);
    if (t->pinned) pthread_setaffinity_np(pthread_self(), sizeof t->caller_mask, &t->caller_mask);
    free(t);
}

enum status threads_open(struct threads **out, int n, bool pin, int pin_first, struct reason *why)
{
    ASSERT(n >= 1 && n <= THREADS_MAX && pin_first >= 0 && pin_first <= 1 << 20);
    size_t bytes = (sizeof(struct threads) + (size_t)n * sizeof(struct worker) + 63) / 64 * 64;
    struct threads *t = aligned_alloc(64, bytes);
    if (!t) return status_fail(why, STATUS_NO_FIT, "no memory for %d threads", n);
    memset(t, 0, bytes);
    t->n = n;
    t->caller.spin_limit = SPIN_START;
    for (int i = 0; i < n - 1; i++) {
        struct worker *w = &t->workers[i];
        *w = (struct worker){.pool = t, .index = i + 1, .waiter = {SPIN_START}};
        int error = pthread_create(&w->handle, NULL, worker_main, w);
        if (error) {
            stop_workers(t, i);
            return status_fail(why, STATUS_NO_FIT, "cannot start thread %d of %d (%s): lower --threads",
                               i + 2, n, strerror(error));
        }
    }
    if (pin) pin_all(t, pin_first);
    *out = t;
    return STATUS_OK;
}

void threads_close(struct threads *t)
{
    if (t) stop_workers(t, t->n - 1);
}
