#include "runtime/probe.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/base/die.h"

struct sums {
    double used, revised;
    int64_t n_used, n_revised;
};

struct probe {
    struct device *device;
    const struct ops *op;
    const struct dims *m;
    int every;
    int64_t n_steps;
    bool looks; /* at this step */
    struct sums *slot;
    /* Spans of the decode rows as the prompt op takes them, and its output; host copies of both outputs. */
    struct prompt_span *host_span, *span; /* (max_spans) */
    void *dense, *host_dense, *host_out;  /* (rows, Hr*E) act */
    size_t span_bytes, out_bytes;
};

static int rows_max(const struct dims *m)
{
    long long n = (long long)m->max_spans * m->W;
    return n < m->max_rows ? (int)n : m->max_rows;
}

struct probe *probe_open(struct device *d, const struct dims *m, int every)
{
    struct probe *p = calloc(1, sizeof *p);
    if (!p) DIE(EXIT_CODE_MEMORY, NULL, "no memory for --attention-error");
    *p = (struct probe){.device = d, .op = device_ops(d), .m = m, .every = every};
    p->span_bytes = (size_t)m->max_spans * sizeof *p->span;
    p->out_bytes = (size_t)rows_max(m) * (size_t)m->Hr * (size_t)m->E * dtype_bytes(m->act);
    p->slot = calloc((size_t)m->n_slots, sizeof *p->slot);
    p->host_span = p->op->host_alloc(d, p->span_bytes);
    p->host_dense = p->op->host_alloc(d, p->out_bytes);
    p->host_out = p->op->host_alloc(d, p->out_bytes);
    p->span = p->op->mem_alloc(d, p->span_bytes);
    p->dense = p->op->mem_alloc(d, p->out_bytes);
    if (!p->slot || !p->host_span || !p->host_dense || !p->host_out || !p->span || !p->dense)
        DIE(EXIT_CODE_MEMORY, "leave out --attention-error", "no memory to compare attention outputs");
    return p;
}

void probe_close(struct probe *p)
{
    if (!p) return;
    p->op->host_free(p->device, p->host_span, p->span_bytes);
    p->op->host_free(p->device, p->host_dense, p->out_bytes);
    p->op->host_free(p->device, p->host_out, p->out_bytes);
    p->op->mem_free(p->device, p->span, p->span_bytes);
    p->op->mem_free(p->device, p->dense, p->out_bytes);
    free(p->slot);
    free(p);
}

void probe_begin(struct probe *p, const struct batch *b)
{
    p->looks = b->n_decode > 0 && p->n_steps % p->every == 0;
    p->n_steps += b->n_decode > 0;
    if (!p->looks) return;
    for (int i = 0; i < b->n_decode; i++) {
        const struct decode_span *s = &b->host_decode[i];
        p->host_span[i] = (struct prompt_span){s->slot, s->row0, s->n_rows, s->position - s->n_rows + 1};
    }
    p->op->upload(p->device, p->span, p->host_span, (size_t)b->n_decode * sizeof *p->span);
}

static double element(const void *p, size_t i, enum dtype t)
{
    if (t == DTYPE_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return t == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

/* |out - dense| / |dense| of one row, over this rank's heads. */
static double row_error(const struct probe *p, int row)
{
    double apart = 0, size = 0;
    size_t n = (size_t)p->m->Hr * (size_t)p->m->E, at = (size_t)row * n;
    for (size_t i = at; i < at + n; i++) {
        double x = element(p->host_out, i, p->m->act), y = element(p->host_dense, i, p->m->act);
        apart += (x - y) * (x - y);
        size += y * y;
    }
    return size > 0 ? sqrt(apart / size) : 0;
}

void probe_layer(struct probe *p, const void *out, const float *q, const struct kv_layer *kv,
                 const struct batch *b)
{
    if (!p->looks) return;
    struct batch prompts = *b;
    size_t bytes = (size_t)b->n_decode_rows * (size_t)p->m->Hr * (size_t)p->m->E * dtype_bytes(p->m->act);
    prompts.n_decode = prompts.n_decode_rows = 0;
    prompts.n_rows = b->n_decode_rows;
    prompts.n_prompt = b->n_decode;
    prompts.prompt = p->span;
    prompts.host_prompt = p->host_span;
    p->op->attend_prompt(p->device, p->dense, q, kv, &prompts, p->m);
    p->op->download(p->device, p->host_dense, p->dense, bytes);
    p->op->download(p->device, p->host_out, out, bytes);
    p->op->sync(p->device);
    for (int i = 0; i < b->n_decode; i++) {
        const struct decode_span *s = &b->host_decode[i];
        struct sums *sums = &p->slot[s->slot];
        if (kv->layer < s->dense_layers) continue;
        sums->used += row_error(p, s->row0 + s->n_rows - 1);
        sums->n_used++;
        if (s->n_rows == 1) continue;
        sums->revised += row_error(p, s->row0);
        sums->n_revised++;
    }
}

struct probe_errors probe_read(const struct probe *p, int slot)
{
    const struct sums *s = &p->slot[slot];
    return (struct probe_errors){
        .n_rows = s->n_used,
        .used = s->n_used ? s->used / (double)s->n_used : 0,
        .revised = s->n_revised ? s->revised / (double)s->n_revised : 0,
    };
}
