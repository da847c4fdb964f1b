/* staged.c - host pointers in front of the CUDA device; see the header. */
#include "staged.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/device.h"

enum { BUFFERS_MAX = 24, PAD = 256 };

struct buffer {
    const void *host;
    void *out; /* host, or NULL: must not change */
    char *device;
    size_t bytes;
};

struct staged {
    struct device base;
    struct device *inner;
    const struct ops *op;
    size_t pad; /* canary behind each buffer; 0 where bounds are exact */
    struct buffer buffer[BUFFERS_MAX];
    int n_buffers;
    struct buffer part, scratch; /* host: NULL */
};

static struct staged *staged_of(struct device *d) { return (struct staged *)d; }

static char *allocate(struct staged *s, size_t bytes)
{
    char *p = s->op->mem_alloc(s->inner, bytes + s->pad);
    assert_non_null(p);
    s->op->fill(s->inner, p, 0xff, bytes + s->pad);
    return p;
}

static void check_pad(struct staged *s, const struct buffer *b)
{
    unsigned char pad[PAD];
    if (s->pad == 0) return;
    s->op->download(s->inner, pad, b->device + b->bytes, PAD);
    s->op->sync(s->inner);
    for (int i = 0; i < PAD; i++)
        if (pad[i] != 0xff) fail_msg("byte %d behind a buffer of %zu was overwritten", i, b->bytes);
}

static void *stage(struct staged *s, const void *host, void *out, size_t bytes)
{
    if (!host) return NULL;
    assert_true(s->n_buffers < BUFFERS_MAX);
    struct buffer *b = &s->buffer[s->n_buffers++];
    *b = (struct buffer){host, out, allocate(s, bytes), bytes};
    if (bytes) s->op->upload(s->inner, b->device, host, bytes);
    return b->device;
}

/* The device's copy of `bytes` at `host`, to be read or written; NULL stays NULL. */
static void *input(struct staged *s, const void *host, size_t bytes) { return stage(s, host, NULL, bytes); }
static void *output(struct staged *s, void *host, size_t bytes) { return stage(s, host, host, bytes); }

/* After the op: outputs come back, inputs are compared. */
static void finish(struct staged *s)
{
    char *back[BUFFERS_MAX];
    for (int i = 0; i < s->n_buffers; i++) {
        const struct buffer *b = &s->buffer[i];
        back[i] = b->out ? b->out : malloc(b->bytes + 1);
        assert_non_null(back[i]);
        if (b->bytes) s->op->download(s->inner, back[i], b->device, b->bytes);
    }
    s->op->sync(s->inner);
    for (int i = 0; i < s->n_buffers; i++) {
        const struct buffer *b = &s->buffer[i];
        check_pad(s, b);
        s->op->mem_free(s->inner, b->device, b->bytes + s->pad);
        if (b->out) continue;
        assert_memory_equal(back[i], b->host, b->bytes);
        free(back[i]);
    }
    s->n_buffers = 0;
}

/* Memory that stays on the device, full of NaN again. */
static void *kept(struct staged *s, struct buffer *b, size_t bytes)
{
    if (b->device && b->bytes != bytes) {
        s->op->mem_free(s->inner, b->device, b->bytes + s->pad);
        b->device = NULL;
    }
    if (!b->device) *b = (struct buffer){NULL, NULL, allocate(s, bytes), bytes};
    s->op->fill(s->inner, b->device, 0xff, bytes + s->pad);
    return b->device;
}

/* Bytes of the rows of the step that have `width` elements of a type. */
static size_t rows_bytes(int rows, int width, enum dtype t)
{
    return (size_t)rows * (size_t)width * dtype_bytes(t);
}

static struct batch stage_batch(struct staged *s, const struct batch *b, const struct dims *m)
{
    struct batch t = *b;
    size_t rows = (size_t)b->n_rows * sizeof(int32_t);
    t.token = input(s, b->token, rows);
    t.position = input(s, b->position, rows);
    t.slot = input(s, b->slot, rows);
    t.decode = input(s, b->decode, (size_t)b->n_decode * sizeof *b->decode);
    t.prompt = input(s, b->prompt, (size_t)b->n_prompt * sizeof *b->prompt);
    t.out_row = input(s, b->out_row, (size_t)b->n_out * sizeof(int32_t));
    if (b->block_table)
        t.block_table = input(s, b->block_table, (size_t)(m->n_slots * (m->C / m->B)) * sizeof(int32_t));
    return t;
}

/* Which of the pools the op may write. */
enum written { NEITHER, BLOCKS, BOTH };

static struct kv_layer stage_layer(struct staged *s, const struct kv_layer *kv, enum written written,
                                   const struct dims *m)
{
    struct kv_layer t = *kv;
    size_t l = (size_t)kv->layer;
    t.blocks =
        stage(s, kv->blocks, written == NEITHER ? NULL : kv->blocks, (size_t)m->n_blocks * m->layer_bytes);
    t.slots = stage(s, kv->slots, written == BOTH ? kv->slots : NULL,
                    (size_t)m->n_slots * m->slot_bytes - l * m->slot_layer_bytes);
    return t;
}

static struct matrix stage_matrix(struct staged *s, const struct matrix *w, bool written)
{
    struct matrix t = *w;
    t.data = stage(s, w->data, written ? w->data : NULL, s->op->matrix_bytes(s->inner, w->dtype, w->n, w->k));
    return t;
}

static size_t list_bytes(const struct batch *b, const struct dims *m)
{
    return (size_t)(b->n_decode * m->Kr) * (size_t)(m->C / m->P) * sizeof(int32_t);
}

static size_t matrix_bytes(struct device *d, enum dtype dtype, int n, int k)
{
    return staged_of(d)->op->matrix_bytes(staged_of(d)->inner, dtype, n, k);
}

static void matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src,
                       enum dtype src_dtype, size_t src_stride)
{
    struct staged *s = staged_of(d);
    struct matrix t = stage_matrix(s, w, true);
    s->op->matrix_put(s->inner, &t, row0, n_rows, src, src_dtype, src_stride);
    finish(s);
}

static void embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
                  const struct dims *m)
{
    struct staged *s = staged_of(d);
    struct batch tb = stage_batch(s, b, m);
    struct matrix t = stage_matrix(s, table, false);
    s->op->embed(s->inner, output(s, x, rows_bytes(b->n_rows, m->D, DTYPE_F32)), &tb, &t, m);
    finish(s);
}

static void rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                       float factor, const struct dims *m)
{
    struct staged *s = staged_of(d);
    struct batch tb = stage_batch(s, b, m);
    s->op->rope_table(s->inner, output(s, table, rows_bytes(b->n_rows, m->E, DTYPE_F32)), &tb,
                      input(s, inv_freq, rows_bytes(1, m->E / 2, DTYPE_F32)), factor, m);
    finish(s);
}

static void add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                     const struct dims *m)
{
    struct staged *s = staged_of(d);
    size_t bytes = rows_bytes(n_rows, m->D, DTYPE_F32);
    s->op->add_norm(s->inner, output(s, h, rows_bytes(n_rows, m->D, m->act)), output(s, x, bytes),
                    input(s, delta, bytes), input(s, weight, rows_bytes(1, m->D, DTYPE_F32)), n_rows, m);
    finish(s);
}

static void gather(struct device *d, void *to, const void *from, size_t row_bytes, const struct batch *b)
{
    struct staged *s = staged_of(d);
    struct batch tb = {.n_out = b->n_out,
                       .out_row = input(s, b->out_row, (size_t)b->n_out * sizeof *b->out_row)};
    s->op->gather(s->inner, output(s, to, (size_t)b->n_out * row_bytes),
                  input(s, from, (size_t)b->n_rows * row_bytes), row_bytes, &tb);
    finish(s);
}

static void linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                   int n_rows)
{
    struct staged *s = staged_of(d);
    struct matrix t = stage_matrix(s, w, false);
    s->op->linear(s->inner, output(s, y, rows_bytes(n_rows, w->n, DTYPE_F32)),
                  input(s, x, rows_bytes(n_rows, w->k, w->dtype)), &t,
                  input(s, bias, rows_bytes(1, w->n, DTYPE_F32)), n_rows);
    finish(s);
}

static void rope_store(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                       const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                       const struct dims *m)
{
    struct staged *s = staged_of(d);
    struct batch tb = stage_batch(s, b, m);
    struct kv_layer t = stage_layer(s, kv, BLOCKS, m);
    size_t head = rows_bytes(1, m->E, DTYPE_F32);
    s->op->rope_store(s->inner, output(s, q, rows_bytes(b->n_rows, m->Qr * m->E, DTYPE_F32)),
                      input(s, qkv, rows_bytes(b->n_rows, (m->Qr + 2 * m->Kr) * m->E, DTYPE_F32)),
                      input(s, rope, rows_bytes(b->n_rows, m->E, DTYPE_F32)), input(s, q_norm, head),
                      input(s, k_norm, head), &t, &tb, m);
    finish(s);
}

static size_t select_scratch_bytes(struct device *d, const struct dims *m)
{
    return staged_of(d)->op->select_scratch_bytes(staged_of(d)->inner, m);
}

static void select_pages(struct device *d, int32_t *pages, int32_t *count, const float *q,
                         const struct kv_layer *kv, const struct batch *b, void *scratch,
                         const struct dims *m)
{
    struct staged *s = staged_of(d);
    (void)scratch;
    struct batch tb = stage_batch(s, b, m);
    struct kv_layer t = stage_layer(s, kv, NEITHER, m);
    s->op->select(s->inner, output(s, pages, list_bytes(b, m)),
                  output(s, count, (size_t)(b->n_decode * m->Kr) * sizeof *count),
                  input(s, q, rows_bytes(b->n_rows, m->Qr * m->E, DTYPE_F32)), &t, &tb,
                  kept(s, &s->scratch, s->op->select_scratch_bytes(s->inner, m)), m);
    finish(s);
    check_pad(s, &s->scratch);
}

static size_t attend_part_bytes(struct device *d, const struct dims *m)
{
    return staged_of(d)->op->attend_part_bytes(staged_of(d)->inner, m);
}

static void attend(struct device *d, void *part, const float *q, const struct kv_layer *kv,
                   const int32_t *pages, const int32_t *count, const struct batch *b, const struct dims *m)
{
    struct staged *s = staged_of(d);
    (void)part;
    struct batch tb = stage_batch(s, b, m);
    struct kv_layer t = stage_layer(s, kv, NEITHER, m);
    s->op->attend(s->inner, kept(s, &s->part, s->op->attend_part_bytes(s->inner, m)),
                  input(s, q, rows_bytes(b->n_rows, m->Qr * m->E, DTYPE_F32)), &t,
                  input(s, pages, list_bytes(b, m)),
                  input(s, count, (size_t)(b->n_decode * m->Kr) * sizeof *count), &tb, m);
    finish(s);
    check_pad(s, &s->part);
}

static void merge(struct device *d, void *out, const void *part, const struct kv_layer *kv,
                  const int32_t *pages, const int32_t *count, int64_t *counters, const struct batch *b,
                  const struct dims *m)
{
    struct staged *s = staged_of(d);
    (void)part;
    struct batch tb = stage_batch(s, b, m);
    struct kv_layer t = stage_layer(s, kv, BOTH, m);
    s->op->merge(s->inner, output(s, out, rows_bytes(b->n_rows, m->Hr * m->E, m->act)), s->part.device, &t,
                 input(s, pages, list_bytes(b, m)),
                 input(s, count, (size_t)(b->n_decode * m->Kr) * sizeof *count),
                 output(s, counters, (size_t)(m->n_slots * COUNTER_COUNT) * sizeof *counters), &tb, m);
    finish(s);
}

static void attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                          const struct batch *b, const struct dims *m)
{
    struct staged *s = staged_of(d);
    struct batch tb = stage_batch(s, b, m);
    struct kv_layer t = stage_layer(s, kv, NEITHER, m);
    s->op->attend_prompt(s->inner, output(s, out, rows_bytes(b->n_rows, m->Hr * m->E, m->act)),
                         input(s, q, rows_bytes(b->n_rows, m->Qr * m->E, DTYPE_F32)), &t, &tb, m);
    finish(s);
}

static void silu_mul(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m)
{
    struct staged *s = staged_of(d);
    s->op->silu_mul(s->inner, output(s, out, rows_bytes(n_rows, m->Fr, m->act)),
                    input(s, gate_up, rows_bytes(n_rows, 2 * m->Fr, DTYPE_F32)), n_rows, m);
    finish(s);
}

static void argmax(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m)
{
    struct staged *s = staged_of(d);
    s->op->argmax(s->inner, output(s, best, (size_t)n_out * sizeof *best),
                  input(s, logits, rows_bytes(n_out, m->Vr, DTYPE_F32)), n_out, m);
    finish(s);
}

static void top_k(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m)
{
    struct staged *s = staged_of(d);
    s->op->top_k(s->inner, output(s, top, (size_t)n_out * TOP_K_MAX * sizeof *top),
                 input(s, logits, rows_bytes(n_out, m->Vr, DTYPE_F32)), n_out, m);
    finish(s);
}

static void convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n)
{
    struct staged *s = staged_of(d);
    s->op->convert(s->inner, output(s, out, n * dtype_bytes(to)), to, input(s, in, n * dtype_bytes(from)),
                   from, n);
    finish(s);
}

static const struct ops staged_ops = {
    .name = "staged",
    .matrix_bytes = matrix_bytes,
    .matrix_put = matrix_put,
    .embed = embed,
    .rope_table = rope_table,
    .add_norm = add_norm,
    .gather = gather,
    .linear = linear,
    .rope_store = rope_store,
    .select_scratch_bytes = select_scratch_bytes,
    .select = select_pages,
    .attend_part_bytes = attend_part_bytes,
    .attend = attend,
    .merge = merge,
    .attend_prompt = attend_prompt,
    .silu_mul = silu_mul,
    .argmax = argmax,
    .top_k = top_k,
    .convert = convert,
};

static void close_device(struct device *d)
{
    struct staged *s = staged_of(d);
    if (s->part.device) s->op->mem_free(s->inner, s->part.device, s->part.bytes + s->pad);
    if (s->scratch.device) s->op->mem_free(s->inner, s->scratch.device, s->scratch.bytes + s->pad);
    device_close(s->inner);
    free(s);
}

struct device *staged_open(struct device *inner)
{
    struct staged *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->inner = inner;
    s->op = device_ops(inner);
    s->pad = strstr(device_describe(inner), "emulated") ? 0 : PAD;
    s->base = (struct device){.ops = &staged_ops, .close = close_device};
    snprintf(s->base.description, sizeof s->base.description, "%.100s", device_describe(inner));
    return &s->base;
}

bool staged_cuda;

void staged_arguments(int *argc, char **argv)
{
    int n = 1;
    for (int i = 1; i < *argc; i++) {
        if (!strcmp(argv[i], "--device") && i + 1 < *argc) staged_cuda = !strcmp(argv[++i], "cuda");
        else if (!strcmp(argv[i], "--only") && i + 1 < *argc) cmocka_set_test_filter(argv[++i]);
        else argv[n++] = argv[i];
    }
    *argc = n;
}

int staged_threads(void) { return staged_cuda ? 1 : 3; }

struct device *staged_device(enum cpu_isa isa, int n_threads, enum dtype act)
{
    struct device *d = NULL;
    struct reason why;
    struct device_options o = {.n_threads = n_threads, .isa = isa, .act = act};
    if (staged_cuda && isa != CPU_ISA_AUTO && isa != CPU_ISA_PORTABLE) return NULL;
    if (device_open(&d, staged_cuda ? DEVICE_CUDA : DEVICE_CPU, &o, &why) == STATUS_OK)
        return staged_cuda ? staged_open(d) : d;
    if (staged_cuda) fail_msg("%s", why.text);
    assert_true(isa >= CPU_ISA_AVX2);
    print_message("not checked: %s\n", why.text);
    return NULL;
}
