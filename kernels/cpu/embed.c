/* embed.c - embedding rows of the step's tokens, gathered from the packed matrix (which may also be the LM
 * head). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "runtime/base/die.h"

struct call {
    float *x;
    const struct batch *b;
    const struct matrix *table;
    const struct dims *m;
};

static void embed_row(void *arg, int row, int thread)
{
    (void)thread;
    const struct call *c = arg;
    const struct matrix *w = c->table;
    float *x = c->x + (size_t)row * (size_t)w->k;
    int64_t r = (int64_t)c->b->token[row] - c->m->vocab_first;
    if (r < 0 || r >= c->m->Vr) {
        memset(x, 0, (size_t)w->k * sizeof(float));
        return;
    }
    const char *block =
        (const char *)w->data + (size_t)(r / LINEAR_BLOCK) * linear_block_bytes(w->dtype, w->k);
    int lane = (int)(r % LINEAR_BLOCK);
    size_t bytes = dtype_bytes(w->dtype);
    for (int i = 0; i < w->k; i++)
        x[i] = linear_widen(block + linear_index(w->dtype, lane, i) * bytes, w->dtype);
}

void cpu_embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
               const struct dims *m)
{
    ASSERT(table->k == m->D && table->n >= m->Vr);
    struct call c = {x, b, table, m};
    cpu_parallel(d, embed_row, &c, b->n_rows);
}
