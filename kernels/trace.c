#include "kernels/trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef RETRO_HAVE_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

#include "kernels/device.h"
#include "runtime/base/die.h"

enum {
    RANGES_MAX = MARKS_MAX / 2
}; /* without a wait: 13 ops and 2 all-reduces in each of 512 layers, and more */

struct trace_device {
    struct device base;
    struct ops ops; /* trace_ops, with the inner device's properties */
    struct device *inner;
    const struct ops *op;
    FILE *file;
    int rank, n_ranges;
    bool open, any; /* a range of range() is open; an event was written */
    const char *name[RANGES_MAX];
};

static struct trace_device *trace_of(struct device *d) { return (struct trace_device *)d; }

/* What was issued is done: its marks can be read. */
static void flush(struct trace_device *t)
{
    for (int i = 0; i < t->n_ranges; i++) {
        double from = t->op->mark_us(t->inner, 2 * i), to = t->op->mark_us(t->inner, 2 * i + 1);
        fprintf(t->file, "%s\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"dur\":%.3f}",
                t->any ? "," : "", t->name[i], t->rank, from, to - from);
        t->any = true;
    }
    t->n_ranges = 0;
}

static void begin(struct trace_device *t, const char *name)
{
    if (t->n_ranges == RANGES_MAX) { /* a step that moves many blocks to or from the swap space */
        t->op->sync(t->inner);
        flush(t);
    }
#ifdef RETRO_HAVE_CUDA
    nvtxRangePushA(name);
#endif
    t->name[t->n_ranges] = name;
    t->op->mark(t->inner, 2 * t->n_ranges);
}

static void end(struct trace_device *t)
{
    t->op->mark(t->inner, 2 * t->n_ranges + 1);
    t->n_ranges++;
#ifdef RETRO_HAVE_CUDA
    nvtxRangePop();
#endif
}

/* ------------------------------------------------------------------------------------------ passed on
 * untimed */

static void *mem_alloc(struct device *d, size_t bytes)
{
    return trace_of(d)->op->mem_alloc(trace_of(d)->inner, bytes);
}

static void mem_free(struct device *d, void *p, size_t bytes)
{
    trace_of(d)->op->mem_free(trace_of(d)->inner, p, bytes);
}

static void *host_alloc(struct device *d, size_t bytes)
{
    return trace_of(d)->op->host_alloc(trace_of(d)->inner, bytes);
}

static void host_free(struct device *d, void *p, size_t bytes)
{
    trace_of(d)->op->host_free(trace_of(d)->inner, p, bytes);
}

static void copy(struct device *d, void *dst, const void *src, size_t bytes)
{
    trace_of(d)->op->copy(trace_of(d)->inner, dst, src, bytes);
}

static void fill(struct device *d, void *dst, int byte, size_t bytes)
{
    trace_of(d)->op->fill(trace_of(d)->inner, dst, byte, bytes);
}

static void sync_stream(struct device *d)
{
    trace_of(d)->op->sync(trace_of(d)->inner);
    flush(trace_of(d));
}

static int64_t mem_available(struct device *d) { return trace_of(d)->op->mem_available(trace_of(d)->inner); }

static void *stream(struct device *d) { return trace_of(d)->op->stream(trace_of(d)->inner); }

static void read_bytes(struct device *d, const void *p, size_t bytes)
{
    trace_of(d)->op->read_bytes(trace_of(d)->inner, p, bytes);
}

static void mark(struct device *d, int i) { trace_of(d)->op->mark(trace_of(d)->inner, i); }

static double mark_us(struct device *d, int i) { return trace_of(d)->op->mark_us(trace_of(d)->inner, i); }

static size_t matrix_bytes(struct device *d, enum dtype dtype, int n, int k)
{
    return trace_of(d)->op->matrix_bytes(trace_of(d)->inner, dtype, n, k);
}

static void matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                       enum dtype src_dtype, size_t src_stride)
{
    trace_of(d)->op->matrix_put(trace_of(d)->inner, w, row0, n_rows, src_host, src_dtype, src_stride);
}

static size_t select_scratch_bytes(struct device *d, const struct dims *m)
{
    return trace_of(d)->op->select_scratch_bytes(trace_of(d)->inner, m);
}

static size_t attend_part_bytes(struct device *d, const struct dims *m)
{
    return trace_of(d)->op->attend_part_bytes(trace_of(d)->inner, m);
}

/* ------------------------------------------------------------------------------------------ timed */

static void range(struct device *d, const char *name)
{
    if (name) begin(trace_of(d), name);
    else end(trace_of(d));
}

/* One op: its name, its parameters after the device, and how they are passed on. */
#define TIMED(op_name, parameters, arguments)                                                                \
    static void timed_##op_name parameters                                                                   \
    {                                                                                                        \
        struct trace_device *t = trace_of(d);                                                                \
        d = t->inner;                                                                                        \
        begin(t, #op_name);                                                                                  \
        t->op->op_name arguments;                                                                            \
        end(t);                                                                                              \
    }

TIMED(upload, (struct device * d, void *dst, const void *src_host, size_t bytes), (d, dst, src_host, bytes))
TIMED(download, (struct device * d, void *dst_host, const void *src, size_t bytes), (d, dst_host, src, bytes))
TIMED(embed,
      (struct device * d, float *x, const struct batch *b, const struct matrix *table, const struct dims *m),
      (d, x, b, table, m))
TIMED(rope_table,
      (struct device * d, float *table, const struct batch *b, const float *inv_freq, float factor,
       const struct dims *m),
      (d, table, b, inv_freq, factor, m))
TIMED(add_norm,
      (struct device * d, void *h, float *x, const float *delta, const float *weight, int n_rows,
       const struct dims *m),
      (d, h, x, delta, weight, n_rows, m))
TIMED(gather, (struct device * d, void *to, const void *from, size_t row_bytes, const struct batch *b),
      (d, to, from, row_bytes, b))
TIMED(linear,
      (struct device * d, float *y, const void *x, const struct matrix *w, const float *bias, int n_rows),
      (d, y, x, w, bias, n_rows))
TIMED(rope_store,
      (struct device * d, float *q, const float *qkv, const float *rope, const float *q_norm,
       const float *k_norm, const struct kv_layer *kv, const struct batch *b, const struct dims *m),
      (d, q, qkv, rope, q_norm, k_norm, kv, b, m))
TIMED(select,
      (struct device * d, int32_t *pages, int32_t *count, const float *q, const struct kv_layer *kv,
       const struct batch *b, void *scratch, const struct dims *m),
      (d, pages, count, q, kv, b, scratch, m))
TIMED(attend,
      (struct device * d, void *part, const float *q, const struct kv_layer *kv, const int32_t *pages,
       const int32_t *count, const struct batch *b, const struct dims *m),
      (d, part, q, kv, pages, count, b, m))
TIMED(merge,
      (struct device * d, void *out, const void *part, const struct kv_layer *kv, const int32_t *pages,
       const int32_t *count, int64_t *counters, const struct batch *b, const struct dims *m),
      (d, out, part, kv, pages, count, counters, b, m))
TIMED(attend_prompt,
      (struct device * d, void *out, const float *q, const struct kv_layer *kv, const struct batch *b,
       const struct dims *m),
      (d, out, q, kv, b, m))
TIMED(silu_mul, (struct device * d, void *out, const float *gate_up, int n_rows, const struct dims *m),
      (d, out, gate_up, n_rows, m))
TIMED(argmax, (struct device * d, struct best *best, const float *logits, int n_out, const struct dims *m),
      (d, best, logits, n_out, m))
TIMED(top_k, (struct device * d, struct best *top, const float *logits, int n_out, const struct dims *m),
      (d, top, logits, n_out, m))
TIMED(convert, (struct device * d, void *out, enum dtype to, const void *in, enum dtype from, size_t n),
      (d, out, to, in, from, n))

static bool graph_launch(struct device *d, uint64_t key)
{
    (void)d;
    (void)key;
    return false; /* op by op, so that each can be timed */
}

static void graph_end(struct device *d) { (void)d; }

static const struct ops trace_ops = {
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .upload = timed_upload,
    .download = timed_download,
    .copy = copy,
    .fill = fill,
    .sync = sync_stream,
    .mem_available = mem_available,
    .stream = stream,
    .read_bytes = read_bytes,
    .mark = mark,
    .mark_us = mark_us,
    .range = range,
    .graph_launch = graph_launch,
    .graph_end = graph_end,
    .matrix_bytes = matrix_bytes,
    .matrix_put = matrix_put,
    .embed = timed_embed,
    .rope_table = timed_rope_table,
    .add_norm = timed_add_norm,
    .gather = timed_gather,
    .linear = timed_linear,
    .rope_store = timed_rope_store,
    .select_scratch_bytes = select_scratch_bytes,
    .select = timed_select,
    .attend_part_bytes = attend_part_bytes,
    .attend = timed_attend,
    .merge = timed_merge,
    .attend_prompt = timed_attend_prompt,
    .silu_mul = timed_silu_mul,
    .argmax = timed_argmax,
    .top_k = timed_top_k,
    .convert = timed_convert,
};

static void close_device(struct device *d)
{
    struct trace_device *t = trace_of(d);
    flush(t);
    fprintf(t->file, "\n]\n");
    if (ferror(t->file) | fclose(t->file))
        LOG_WARN("--trace: the file could not be written whole (disk full?)");
    device_close(t->inner);
    free(t);
}

enum status trace_device_open(struct device **out, struct device *inner, const char *path, int rank,
                              struct reason *why)
{
    struct trace_device *t = calloc(1, sizeof *t);
    if (!t) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the trace");
    t->inner = inner;
    t->op = device_ops(inner);
    t->rank = rank;
    t->file = fopen(path, "w");
    if (!t->file) {
        free(t);
        return status_fail(why, STATUS_BAD_OPTION, "--trace %s: %s", path, strerror(errno));
    }
    fprintf(t->file, "[");
    t->ops = trace_ops;
    t->ops.name = t->op->name; /* the same memory and weights, or other times would be told */
    t->ops.mixed_types = t->op->mixed_types;
    t->base = (struct device){.ops = &t->ops, .close = close_device};
    snprintf(t->base.description, sizeof t->base.description, "%.140s, traced", device_describe(inner));
    *out = &t->base;
    return STATUS_OK;
}
