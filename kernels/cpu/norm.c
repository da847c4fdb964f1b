/* norm.c - RMSNorm with the residual addition before it: x += delta; h = x / sqrt(mean(x^2) + eps) * weight
 * (Zhang & Sennrich 2019, arXiv 1910.07467, equation 4).
 *
 * A row is one task. Squares are summed in LANES partial sums, then pairwise: a fixed order that any vector
 * width keeps, since the compiler may not reassociate. */
#include <math.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"

enum {
    LANES = 16,
    RUN = 512,   /* elements that are narrowed at once */
    ALONE = 8192 /* elements that one thread norms sooner than it wakes others: about 2 us */
};

struct call {
    const struct tile *tile;
    void *h;
    float *x;
    const float *delta, *weight;
    int D;
    float eps;
    enum dtype act;
};

static float sum_squares(const float *x, int n)
{
    float s[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) s[l] += x[i + l] * x[i + l];
    for (int l = 0; i + l < n; l++) s[l] += x[i + l] * x[i + l];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

static void scale_row(const struct call *c, int row, const float *x)
{
    float inverse = 1.0f / sqrtf(sum_squares(x, c->D) / (float)c->D + c->eps);
    size_t bytes = dtype_bytes(c->act);
    char *h = (char *)c->h + (size_t)row * (size_t)c->D * bytes;
    if (c->act == DTYPE_F32) {
        for (int i = 0; i < c->D; i++) ((float *)h)[i] = x[i] * inverse * c->weight[i];
        return;
    }
    for (int first = 0; first < c->D; first += RUN) {
        float y[RUN];
        int n = c->D - first < RUN ? c->D - first : RUN;
        for (int i = 0; i < n; i++) y[i] = x[first + i] * inverse * c->weight[first + i];
        c->tile->narrow(h + (size_t)first * bytes, y, n, c->act);
    }
}

static void norm_row(void *arg, int row, int thread)
{
    (void)thread;
    const struct call *c = arg;
    float *x = c->x + (size_t)row * (size_t)c->D;
    if (c->delta) {
        const float *delta = c->delta + (size_t)row * (size_t)c->D;
        for (int i = 0; i < c->D; i++) x[i] += delta[i];
    }
    scale_row(c, row, x);
}

void cpu_add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                  const struct dims *m)
{
    struct call c = {.tile = tile_of(cpu_isa_of(d)),
                     .h = h,
                     .x = x,
                     .delta = delta,
                     .weight = weight,
                     .D = m->D,
                     .eps = m->norm_eps,
                     .act = m->act};
    if ((long long)n_rows * m->D <= ALONE)
        for (int i = 0; i < n_rows; i++) norm_row(&c, i, 0);
    else cpu_parallel(d, norm_row, &c, n_rows);
}
