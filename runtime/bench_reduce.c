/* bench_reduce.c - one all-reduce of a given size: right, and how long it takes. Called by all ranks together. */
#include "kernels/kernels.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/bench.h"

enum { SAMPLES = 15, VALUES = 101, COUNT_MOST = 50 };

/* Small whole numbers: their sums are exact in any order. */
static float value_of(int rank, size_t i) { return (float)((i * 31 + (size_t)rank * 7) % VALUES); }

static bool check(struct comm *c, struct device *d, float *buffer, float *host, size_t n)
{
    const struct ops *op = device_ops(d);
    for (size_t i = 0; i < n; i++) host[i] = value_of(comm_rank(c), i);
    op->upload(d, buffer, host, n * sizeof *host);
    comm_all_reduce(c, buffer, n, DTYPE_F32, op->stream(d));
    op->download(d, host, buffer, n * sizeof *host);
    op->sync(d);
    int64_t right = 1;
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (int r = 0; r < comm_size(c); r++) sum += value_of(r, i);
        right = right && host[i] == sum;
    }
    comm_min_i64(c, &right, 1);
    return right;
}

/* Microseconds of one all-reduce, `count` of them one after the other. */
static double sample(struct comm *c, struct device *d, float *buffer, size_t n, int count)
{
    const struct ops *op = device_ops(d);
    op->fill(d, buffer, 0, n * sizeof *buffer); /* zeros stay zeros however often they are summed */
    op->sync(d);
    comm_barrier(c);
    int64_t begun = clock_us();
    for (int i = 0; i < count; i++) comm_all_reduce(c, buffer, n, DTYPE_F32, op->stream(d));
    op->sync(d);
    return (double)(clock_us() - begun) / count;
}

static double slowest(struct comm *c, double us)
{
    int64_t ns = (int64_t)(us * 1e3);
    comm_max_i64(c, &ns, 1);
    return (double)ns * 1e-3;
}

void bench_reduce_run(struct comm *c, struct device *d, float *buffer, float *host, size_t n_f32,
                      struct bench_reduce *r)
{
    double us[SAMPLES];
    r->right = check(c, d, buffer, host, n_f32);
    double first = slowest(c, sample(c, d, buffer, n_f32, 4)); /* all ranks repeat alike */
    int count = first < 2000 ? (int)(2000 / (first + 1)) : 1;  /* about 2 ms a sample */
    if (count > COUNT_MOST) count = COUNT_MOST; /* a lucky first one must not make the others long */
    for (int i = 0; i < SAMPLES; i++) us[i] = sample(c, d, buffer, n_f32, count < 1 ? 1 : count);
    r->us = slowest(c, bench_quantile(us, SAMPLES, 0.5));
    r->us_low = slowest(c, bench_quantile(us, SAMPLES, 0.1));
    r->us_high = slowest(c, bench_quantile(us, SAMPLES, 0.9));
    double bytes = (double)n_f32 * sizeof(float), ranks = comm_size(c);
    r->gb_s = bytes / r->us * 1e-3;
    r->bus_gb_s = r->gb_s * 2 * (ranks - 1) / ranks;
}
