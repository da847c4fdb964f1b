/* top_k.c - the TOP_K_MAX largest logits of each row, largest first, equal ones by lower index. A row is one
 * task: a heap keeps the best so far with the worst of them on top, and sixteen logits at a time are compared
 * with that one, which after a few thousand logits hardly any exceeds. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { LANES = 16 };

struct call {
    struct best *top;
    const float *logits;
    int n;
};

static bool worse(struct best a, struct best b)
{
    return a.value != b.value ? a.value < b.value : a.index > b.index;
}

/* Puts v where h[i] was in the heap h[0..n): none is better than its children. */
static void sift(struct best *h, int n, int i, struct best v)
{
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && worse(h[child + 1], h[child])) child++;
        if (!worse(h[child], v)) break;
        h[i] = h[child];
    }
    h[i] = v;
}

static void top_of_row(void *arg, int row, int thread)
{
    (void)thread;
    const struct call *c = arg;
    const float *x = c->logits + (size_t)row * (size_t)c->n;
    struct best *h = c->top + (size_t)row * TOP_K_MAX;
    int k = c->n < TOP_K_MAX ? c->n : TOP_K_MAX, i = k;
    for (int j = 0; j < k; j++) h[j] = (struct best){isnan(x[j]) ? -INFINITY : x[j], j};
    for (int j = k; j < TOP_K_MAX; j++) h[j] = (struct best){-INFINITY, -1};
    for (int j = k / 2 - 1; j >= 0; j--) sift(h, k, j, h[j]);
    while (i < c->n) {
        int end = i + LANES <= c->n ? i + LANES : c->n;
        bool any = false;
        if (end - i == LANES)
            for (int l = 0; l < LANES; l++) any |= x[i + l] > h[0].value;
        else any = true;
        for (; any && i < end; i++)
            if (x[i] > h[0].value) sift(h, k, 0, (struct best){x[i], i}); /* not when equal or NaN */
        i = end;
    }
    for (int n = k - 1; n > 0; n--) { /* the worst goes to the end */
        struct best last = h[n];
        h[n] = h[0];
        sift(h, n, 0, last);
    }
}

void cpu_top_k(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m)
{
    ASSERT(m->Vr > 0);
    struct call c = {top, logits, m->Vr};
    cpu_parallel(d, top_of_row, &c, n_out);
}
