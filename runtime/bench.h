/* bench.h - what `retro bench` measures. Every figure stands beside a floor that was measured in the same run with
 * the same threads: bytes that must move over the rate of reading and doing nothing else (engine_read_rate).
 *
 * Times are the middle of several, because strangers share the machine. Contexts are filled with random keys and
 * values by the op that stores real ones, so that summaries belong to their keys; they may be longer than the
 * model's positions, which changes no time. Decode feeds one and the same token again and again, so that a step
 * chooses about the pages that the step before it chose, as text does. */
#ifndef RETRO_BENCH_H
#define RETRO_BENCH_H

#include "runtime/engine.h"

/* Steps before the measured ones: caches fill, the window opens, threads learn how long to wait. */
enum { BENCH_WARMUP = 8 };

/* Bytes of all ranks in one decode step; `position` is that of the newest token. */
double bench_step_bytes(const struct model *m, const struct policy *p, int n_seqs, int position,
                        int n_prompt);
/* Rows of weights as stored: what cost.h wants to know. */
enum dtype bench_weights_dtype(const struct model *m);

struct bench_decode {
    double step_ms, step_ms_low, step_ms_high; /* middle, first and ninth tenth */
    double tokens_per_s;                       /* by the middle step */
    double bytes, read_rate, floor_ms;
    double exposure, kv_read_share; /* as `retro eval` */
};

/* Leader: `n_tokens` steps of `batch` sequences behind `context` tokens each. The engine was opened for that many
 * slots and context + BENCH_WARMUP + n_tokens tokens. */
void bench_decode_run(struct engine *e, const struct model *m, const struct policy *p, int context, int batch,
                      int n_tokens, struct bench_decode *r);

struct bench_prefill {
    double ms, tokens_per_s, flops, bytes, floor_ms;
};

/* Leader: prefill of n tokens in the engine's chunks. gemm_flops: what bench_gemm_peak() gave. */
void bench_prefill_run(struct engine *e, const struct model *m, int n, int repeat, double gemm_flops,
                       struct bench_prefill *r);

/* The rest is called by all ranks together and gives rank 0 the sum over them. */

struct bench_rate {
    double ms, bytes, gb_s, read_gb_s; /* read_gb_s: plain reading just before and after */
};

void bench_read_run(struct model *m, int repeat, struct bench_rate *r);

/* The matrices of a layer, as y = x W^T with `rows` rows, all layers one after the other. */
enum bench_matrix {
    BENCH_QKV,
    BENCH_O,
    BENCH_GATE_UP,
    BENCH_DOWN,
    BENCH_HEAD,
    BENCH_ALL,
    BENCH_MATRIX_COUNT
};
const char *bench_matrix_name(enum bench_matrix w);
void bench_gemm_run(struct model *m, enum bench_matrix which, int rows, int repeat, struct bench_rate *r);
/* The most floating-point operations a second of the layers' GEMMs with `rows` rows. */
double bench_gemm_peak(struct model *m, int rows, int repeat);
/* select, attend and merge of a decode step over all layers, and everything else of it but GEMMs and all-reduces. */
struct bench_attention {
    struct bench_rate rate;
    int rows;
    double rank_bytes; /* of rank 0, whose times these are */
    double rest_ms;
    double rest_size; /* layers * (D + Fr) of rank 0: what the rest grows with */
};
void bench_attention_run(struct model *m, const struct policy *p, int context, int batch, int repeat,
                         struct bench_attention *r);

struct bench_reduce {
    double us, us_low, us_high; /* of one all-reduce: middle, first and ninth tenth; of the slowest rank */
    double gb_s, bus_gb_s;      /* bytes over time; times 2(n-1)/n, what a link carries */
    bool right;                 /* the sums are those expected, on every rank */
};
/* `buffer` is device memory and `host` host memory of n_f32 elements; the group was reserved for as many. */
void bench_reduce_run(struct comm *c, struct device *d, float *buffer, float *host, size_t n_f32,
                      struct bench_reduce *r);

/* Sorts `v` and gives the value at share q of it (0.5: the middle). */
double bench_quantile(double *v, int n, double q);

#endif
