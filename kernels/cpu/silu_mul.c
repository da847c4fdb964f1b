/* silu_mul.c - out (T,Fr) act = gate * sigmoid(gate) * up, gate_up (T,2*Fr) in rows [gate | up].
 * A task is a run of columns of one row. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/silu.h"

enum { RUN = 512, ALONE = 4096 /* elements that one thread computes sooner than it wakes others */ };

static void mul(float *out, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

const struct silu_table silu_portable = {.mul = mul};

struct call {
    const struct silu_table *table;
    const struct tile *tile;
    void *out;
    const float *gate_up;
    int Fr, runs;
    enum dtype act;
};

static void run_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int row = task / c->runs, first = task % c->runs * RUN, n = c->Fr - first < RUN ? c->Fr - first : RUN;
    const float *gate = c->gate_up + (size_t)row * 2 * (size_t)c->Fr + (size_t)first, *up = gate + c->Fr;
    size_t at = (size_t)row * (size_t)c->Fr + (size_t)first;
    if (c->act == DTYPE_F32) {
        c->table->mul((float *)c->out + at, gate, up, n);
    } else {
        float y[RUN];
        c->table->mul(y, gate, up, n);
        c->tile->narrow((char *)c->out + at * dtype_bytes(c->act), y, n, c->act);
    }
}

void cpu_silu_mul(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m)
{
    struct call c = {cpu_of(d)->silu, tile_of(cpu_isa_of(d)),  out,   gate_up,
                     m->Fr,           (m->Fr + RUN - 1) / RUN, m->act};
    int n_tasks = n_rows * c.runs;
    if ((long long)n_rows * m->Fr <= ALONE)
        for (int task = 0; task < n_tasks; task++) run_task(&c, task, 0);
    else cpu_parallel(d, run_task, &c, n_tasks);
}
