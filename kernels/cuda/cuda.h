/* cuda.h - the CUDA device's context and what its files share. Only kernels/cuda/ includes this.
 *
 * One stream per device: ops, transfers and collectives are issued on it in order. Launchers check the
 * launch, not the execution; an error of a kernel surfaces at the next sync and ends the job with the name of
 * what was waited for. Only the runtime API is used (no driver API, no NVRTC), linked dynamically. Compiles
 * as C11 and as CUDA C++. */
#ifndef RETRO_KERNELS_CUDA_CUDA_H
#define RETRO_KERNELS_CUDA_CUDA_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define _Noreturn [[noreturn]]
extern "C" {
#endif
#include "kernels/device.h"
#include "runtime/base/die.h"

enum {
    CUDA_STAGING_BYTES = 16 << 20, /* of each of two pinned buffers: long enough to reach PCIe's full rate */
    CUDA_WORKSPACE_BYTES = 32 << 20, /* what cuBLAS recommends for sm_90; fixed, so that results repeat */
    CUDA_GRAPHS = 64, /* shapes of a decode step in use at once: one a batch size, and some more */
};

struct cuda_graph { /* graph.c */
    uint64_t key;
    int64_t last_use;     /* 0: the place is free */
    cudaGraphExec_t exec; /* NULL: seen once, not captured yet */
};

struct cuda_device {
    struct device base;
    int ordinal, n_sms;
    enum dtype act;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *workspace;
    /* Weight loading: two pinned buffers used in turn, each free again when its event has passed. */
    char *staging[2];
    cudaEvent_t staged[2];
    int next_staging;
    /* marks.c */
    cudaEvent_t *mark, anchor[2];
    double anchor_us; /* time of anchor[0] */
    bool anchor_moves;
    /* graph.c */
    struct cuda_graph graph[CUDA_GRAPHS], *capturing;
    int64_t graph_uses;
};

static inline struct cuda_device *cuda_of(struct device *d) { return (struct cuda_device *)d; }

/* Ends the job when `error` is one; `what` says what was being done. */
void cuda_check(cudaError_t error, const char *what);
/* After a launch: a bad configuration shows here, at its launcher. */
void cuda_check_launch(const char *kernel);

/* Free what these files keep in the context. */
void cuda_marks_close(struct cuda_device *c);
void cuda_graph_close(struct cuda_device *c);

/* The ops, with the signatures of the table. */
void cuda_mark(struct device *d, int i);
double cuda_mark_us(struct device *d, int i);
void cuda_range(struct device *d, const char *name);
void cuda_read_bytes(struct device *d, const void *p, size_t bytes);
bool cuda_graph_launch(struct device *d, uint64_t key);
void cuda_graph_end(struct device *d);
size_t cuda_matrix_bytes(struct device *d, enum dtype dtype, int n, int k);
void cuda_matrix_put(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                     enum dtype src_dtype, size_t src_stride);
void cuda_linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                 int n_rows);
/* The same for a decode step's few rows (linear_few.cu); false where it has no form for the shape. */
bool cuda_linear_few(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                     int n_rows);
void cuda_add_bias(struct device *d, float *y, const float *bias, int n_rows, int n);
void cuda_embed(struct device *d, float *x, const struct batch *b, const struct matrix *table,
                const struct dims *m);
void cuda_rope_table(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                     float factor, const struct dims *m);
void cuda_add_norm(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                   const struct dims *m);
void cuda_gather(struct device *d, void *to, const void *from, size_t row_bytes, const struct batch *b);
void cuda_rope_store(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                     const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                     const struct dims *m);
size_t cuda_select_scratch_bytes(struct device *d, const struct dims *m);
void cuda_select(struct device *d, int32_t *pages, int32_t *count, const float *q, const struct kv_layer *kv,
                 const struct batch *b, void *scratch, const struct dims *m);
size_t cuda_attend_part_bytes(struct device *d, const struct dims *m);
void cuda_attend(struct device *d, void *part, const float *q, const struct kv_layer *kv,
                 const int32_t *pages, const int32_t *count, const struct batch *b, const struct dims *m);
void cuda_merge(struct device *d, void *out, const void *part, const struct kv_layer *kv,
                const int32_t *pages, const int32_t *count, int64_t *counters, const struct batch *b,
                const struct dims *m);
void cuda_attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                        const struct batch *b, const struct dims *m);
void cuda_silu_mul(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m);
void cuda_argmax(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m);
void cuda_top_k(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m);
void cuda_convert(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n);

#ifdef __cplusplus
}
#endif
#endif
