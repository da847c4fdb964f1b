/* cpu.h - the CPU device: its context, how ops share work between threads, and the ops that are not
 * attention.
 *
 * An op cuts its work into tasks whose results do not depend on how they are dealt: that, and one fixed order
 * of every sum, is what makes results independent of the number of threads (kernels.h, invariant 1). The
 * instruction set is chosen once, in device_open; it changes roundings, never meaning. */
#ifndef RETRO_KERNELS_CPU_CPU_H
#define RETRO_KERNELS_CPU_CPU_H

#include "kernels/cpu/threads.h"
#include "kernels/device.h"

struct linear_table; /* linear.h */
struct silu_table;   /* silu.h */

struct cpu_device {
    struct device base;
    struct threads *threads;
    enum cpu_isa isa; /* never AUTO */
    enum dtype act;
    bool drops_prefetches;
    bool pairs; /* bf16 activations and weights are multiplied in pairs (linear.h) */
    const struct linear_table *linear;
    const struct silu_table *silu;
    float *pack; /* scratch of cpu_linear, pack_floats long; grows in matrix_put, so not in a step */
    size_t pack_floats;
    double mark_us[MARKS_MAX];
};

static inline struct cpu_device *cpu_of(struct device *d) { return (struct cpu_device *)d; }

int cpu_threads(const struct device *d);
enum cpu_isa cpu_isa_of(const struct device *d);
/* Whether the processor forgets prefetches that it has no room for, as a Zen 4 does: asking again helps. */
bool cpu_drops_prefetches(const struct device *d);

/* fn(arg, task, thread) for task 0 .. n_tasks-1, each thread a contiguous range (cpu_share) in ascending
 * order; the caller is thread 0. Returns when all are done. One task, or one thread, runs without waking
 * anybody. */
void cpu_parallel(struct device *d, void (*fn)(void *arg, int task, int thread), void *arg, int n_tasks);

/* First of the n items that thread t of n_threads gets; its last is before cpu_share(n, t + 1, n_threads). */
static inline int cpu_share(int n, int t, int n_threads) { return (int)((long long)n * t / n_threads); }

/* Makes the scratch of cpu_linear large enough for k inputs. */
void cpu_linear_reserve(struct device *d, int k);

/* --- the ops that are not attention; the table's signatures --- */
void *cpu_mem_alloc(struct device *d, size_t bytes);
void cpu_mem_free(struct device *d, void *p, size_t bytes);
int64_t cpu_mem_available(struct device *d);
void cpu_transfer(struct device *d, void *dst, const void *src, size_t bytes);
void cpu_fill(struct device *d, void *dst, int byte, size_t bytes);
void cpu_sync(struct device *d);
void *cpu_stream(struct device *d);
void cpu_read_bytes(struct device *d, const void *p, size_t bytes);
void cpu_mark(struct device *d, int i);
double cpu_mark_us(struct device *d, int i);
void cpu_range(struct device *d, const char *name);
bool cpu_graph_launch(struct device *d, uint64_t key);
void cpu_graph_end(struct device *d);
size_t cpu_matrix_bytes(struct device *d, enum dtype dtype, int n, int k);
void cpu_matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                    enum dtype src_dtype, size_t src_stride);
void cpu_embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
               const struct dims *m);
void cpu_rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                    float factor, const struct dims *m);
void cpu_add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                  const struct dims *m);
void cpu_gather(struct device *d, void *to, const void *from, size_t row_bytes, const struct batch *b);
void cpu_linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                int n_rows);
void cpu_silu_mul(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m);
void cpu_argmax(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m);
void cpu_top_k(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m);
void cpu_convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n);

#endif
