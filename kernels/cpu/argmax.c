/* argmax.c - value and index of the largest logit of each row; the lower index wins a tie. A row is one task:
 * the largest of 16 lanes first, then the first place that holds it. NaN is never the largest unless nothing
 * else is there; then index 0 is returned. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { LANES = 16 };

struct call {
    struct best *best;
    const float *logits;
    int n;
};

static void best_of_row(void *arg, int row, int thread)
{
    (void)thread;
    const struct call *c = arg;
    const float *x = c->logits + (size_t)row * (size_t)c->n;
    float top[LANES];
    int i = 0, at = 0;
    for (int l = 0; l < LANES; l++) top[l] = -INFINITY;
    for (; i + LANES <= c->n; i += LANES)
        for (int l = 0; l < LANES; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (int l = 0; i + l < c->n; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (int l = 1; l < LANES; l++)
        if (top[l] > top[0]) top[0] = top[l];
    while (at < c->n && !(x[at] == top[0])) at++;
    if (at == c->n) at = 0;
    c->best[row] = (struct best){x[at], at};
}

void cpu_argmax(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m)
{
    ASSERT(m->Vr > 0);
    struct call c = {best, logits, m->Vr};
    cpu_parallel(d, best_of_row, &c, n_out);
}
