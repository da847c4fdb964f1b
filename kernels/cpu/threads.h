/* threads.h - the threads of one rank of the CPU device: persistent, dealt statically, waiting adaptively.
 *
 * threads_run() runs one function on every thread and returns when all are done; the caller is thread 0.
 * There is one caller at a time and no nesting.
 *
 * Waiting. A waiting thread spins for a while, because the next piece of work is usually microseconds away,
 * and then sleeps on a futex, because a thread that spins on a core that somebody else needs (a rank beside
 * us, a stranger) stops the very thread it waits for. Each waiter learns how long to spin: spinning that paid
 * doubles its limit, and so does a sleep so short that spinning would have paid; a longer one halves it.
 *
 * States of a worker: asleep or spinning on `epoch` -> running (epoch changed) -> counted out of `running` ->
 * waiting. Invariants: `running` is 0 outside threads_run(); everything written before threads_run() is seen
 * by all threads, and everything they wrote is seen by the caller after it. */
#ifndef RETRO_KERNELS_CPU_THREADS_H
#define RETRO_KERNELS_CPU_THREADS_H

#include <stdbool.h>

#include "runtime/base/status.h"

struct threads;

enum { THREADS_MAX = 1024 };

/* Cores this process may run on (its affinity mask), at least 1. */
int threads_cores(void);

/* Starts n-1 threads; n in 1..THREADS_MAX. pin: thread i is bound to core (pin_first + i) modulo the cores of
 * the process's mask, in ascending order of their numbers; the caller too, until threads_close(). A mask that
 * cannot be set is not an error: the threads then float. NO_FIT when a thread cannot be started. */
enum status threads_open(struct threads **out, int n, bool pin, int pin_first, struct reason *why);
void threads_close(struct threads *t); /* NULL allowed; by the thread that opened */
int threads_count(const struct threads *t);

/* fn(arg, thread) once on each thread. */
void threads_run(struct threads *t, void (*fn)(void *arg, int thread), void *arg);

#endif
