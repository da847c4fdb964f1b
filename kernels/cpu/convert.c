/* convert.c - elements of one type as another, rounded once: f32 to a two-byte type and back. A task is a run
 * of elements; there is no vector form, because only an all-reduce in bf16 converts, and that is bound by
 * what it exchanges. */
#include "kernels/cpu/cpu.h"
#include "runtime/base/die.h"

enum { RUN = 1 << 14 }; /* elements of a task: 64 KiB of f32, some 10 us */

struct call {
    char *out;
    const char *in;
    enum dtype to, from;
    size_t n;
};

static void convert_run(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    size_t first = (size_t)task * RUN, n = c->n - first < RUN ? c->n - first : RUN;
    const float *f_in = (const float *)c->in + first;
    const uint16_t *h_in = (const uint16_t *)c->in + first;
    float *f_out = (float *)c->out + first;
    uint16_t *h_out = (uint16_t *)c->out + first;
    if (c->to == DTYPE_BF16)
        for (size_t i = 0; i < n; i++) h_out[i] = dtype_bf16_from_f32(f_in[i]);
    else if (c->to == DTYPE_F16)
        for (size_t i = 0; i < n; i++) h_out[i] = dtype_f16_from_f32(f_in[i]);
    else if (c->from == DTYPE_BF16)
        for (size_t i = 0; i < n; i++) f_out[i] = dtype_f32_from_bf16(h_in[i]);
    else
        for (size_t i = 0; i < n; i++) f_out[i] = dtype_f32_from_f16(h_in[i]);
}

void cpu_convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n)
{
    struct call c = {out, in, to, from, n};
    ASSERT((to == DTYPE_F32) != (from == DTYPE_F32) && n <= (size_t)INT32_MAX * RUN);
    cpu_parallel(d, convert_run, &c, (int)((n + RUN - 1) / RUN));
}
