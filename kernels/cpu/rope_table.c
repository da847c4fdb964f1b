/* rope_table.c - cos and sin of f32(position) * inv_freq, each times `factor`, for every row of the step.
 *
 * The angle is rounded to f32 before the functions see it, as in the published implementations: at position p
 * its error is up to p * 2^-24, and matching that error matters more than removing it. */
#include <math.h>

#include "kernels/cpu/cpu.h"

struct call {
    float *table;
    const int32_t *position;
    const float *inv_freq;
    float factor;
    int half;
};

static void row_angles(void *arg, int row, int thread)
{
    (void)thread;
    const struct call *c = arg;
    float *to = c->table + (size_t)row * (size_t)c->half * 2, position = (float)c->position[row];
    for (int i = 0; i < c->half; i++) {
        float angle = position * c->inv_freq[i];
        to[2 * i] = cosf(angle) * c->factor;
        to[2 * i + 1] = sinf(angle) * c->factor;
    }
}

void cpu_rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                    float factor, const struct dims *m)
{
    struct call c = {table, b->position, inv_freq, factor, m->E / 2};
    cpu_parallel(d, row_angles, &c, b->n_rows);
}
