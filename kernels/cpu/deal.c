/* deal.c - items of unequal length dealt to threads one by one, as each becomes free.
 *
 * cpu_parallel() gives each thread a fixed range, which suits items of one length. Attention items differ,
 * and a thread may lose its core for a while; so here the next item goes to whoever asks. Results do not
 * depend on it. */
#include <stdatomic.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"

struct deal {
    void (*fn)(void *arg, int item, int thread);
    void *arg;
    int n;
    _Atomic int next;
};

static void deal_task(void *arg, int task, int thread)
{
    struct deal *d = arg;
    (void)task;
    for (;;) {
        int item = atomic_fetch_add_explicit(&d->next, 1, memory_order_relaxed);
        if (item >= d->n) return;
        d->fn(d->arg, item, thread);
    }
}

void cpu_deal(struct device *d, void (*fn)(void *arg, int item, int thread), void *arg, int n)
{
    struct deal deal = {fn, arg, n, 0};
    int threads = cpu_threads(d) < n ? cpu_threads(d) : n;
    cpu_parallel(d, deal_task, &deal, threads);
}
