/* model.h - a loaded shard of a model and the one forward pass over it.
 *
 * Three nouns: arch (numbers), weights (read-only), and here the state (paged cache, output cache, counters)
 * and scratch of one step. model_open carves everything from one device allocation; model_forward allocates
 * nothing, looks at no family name and at no device: it calls ops in order and two all-reduces a layer. */
#ifndef RETRO_MODEL_H
#define RETRO_MODEL_H

#include "comm/comm.h"
#include "kernels/kernels.h"
#include "runtime/arch.h"
#include "runtime/memplan.h"
#include "runtime/probe.h"
#include "runtime/shard.h"
#include "runtime/tensors.h"
#include "runtime/weights.h"

/* A model folder, opened and checked, nothing loaded. */
struct model_files {
    struct arch arch;
    struct tensors *tensors; /* NULL: the weights are random numbers */
};

enum status model_files_open(struct model_files *f, const char *dir, struct reason *why);
/* Only config.json is read: a model of that shape with random weights. `dir` NULL: the 1B shape of
 * configs/shapes. */
enum status model_files_imagine(struct model_files *f, const char *dir, struct reason *why);
/* Warns in one line of tensors in the folder that the model does not use. */
void model_files_warn(const struct model_files *f);
void model_files_close(struct model_files *f);

struct model_options {
    struct device *device; /* opened by the caller; the model closes it, also when model_open fails */
    enum dtype act;        /* what GEMMs read; as the device was opened with */
    int n_slots;           /* sequences on the device at once */
    int context;           /* most tokens of one sequence; rounded up to whole blocks */
    int prefill_chunk;     /* most prompt rows in a step */
    int max_rows;          /* most rows in a step; 0: a prompt chunk and every sequence's decode rows */
    int64_t swap_bytes;    /* host memory of this rank for interrupted sequences; 0: none */
    int page_tokens, block_tokens;
    int window;    /* largest w of any sequence */
    int kv_tokens; /* that the cache holds, rounded up to blocks; 0: n_slots * context */
    enum dtype kv;
    enum summary_type summary; /* of pages; one with codes, or that of kv */
    enum dtype all_reduce;     /* f32, or bf16 to exchange half the bytes */
    bool graphs;               /* replay decode steps, where the device can */
    bool progress;             /* tell how loading goes */
    int node_ranks;            /* ranks that share this host's memory */
    const char *size_flags;    /* what a refusal for memory says to lower, "--contexts or --batches" */
};

struct model {
    const struct arch *arch; /* borrowed from model_files */
    struct shard shard;
    struct dims dims;
    const struct ops *op;
    struct device *device;
    struct comm *comm;   /* borrowed */
    struct probe *probe; /* NULL, or measures attention outputs (probe.h); borrowed */
    bool graphs;         /* decode steps are padded to few shapes and replayed */
    struct weights weights;
    struct memplan plan;
    struct model_options options;
    void *memory; /* the one device allocation */
    size_t memory_bytes;

    int n_host_blocks, n_host_slots; /* records that the swap space holds: the same on all ranks */

    /* State. */
    char *pool;        /* n_blocks blocks, layer after layer */
    char *slots;       /* n_slots slot records */
    int64_t *counters; /* (n_slots, COUNTER_COUNT) */
    float *inv_freq;   /* (E/2) */
    float rope_factor;

    /* Scratch of one step. */
    float *x;            /* (T, D) residual stream */
    void *h;             /* (T, D) act: normed x */
    float *qkv;          /* (T, (Qr+2Kr)*E) */
    float *q;            /* (T, Qr, E) */
    float *rope;         /* (T, E/2, 2) */
    int32_t *pages;      /* (n_decode, Kr, C/P) */
    int32_t *page_count; /* (n_decode, Kr) */
    void *select_scratch;
    void *part;          /* partial attention outputs */
    void *attention;     /* (T, Hr*E) act */
    float *x_out;        /* (n_out, D): x and attention of the rows whose logits are wanted */
    void *attention_out; /* (n_out, Hr*E) act */
    float *y;            /* (T, D) what o_proj and down_proj add */
    float *gate_up;      /* (T, 2*Fr) */
    void *act;           /* (T, Fr) act */
    float *logits;       /* (n_out, Vr) */
    struct best *best;   /* (n_out) */
    struct best *top;    /* (n_out, TOP_K_MAX) */
    void *narrow;        /* (T, D) bf16: what all-reduces in bf16 exchange; NULL: they are f32 */
};

/* The sizes of one rank's shard. */
void model_dims(struct dims *m, const struct arch *a, const struct shard *s, const struct model_options *o);

/* What model_open would allocate on that rank, by the same carving; nothing is allocated. o->device is borrowed and
 * may be of any kind. */
void model_plan(struct memplan *plan, struct dims *dims, const struct model_files *files, int rank,
                int n_ranks, const struct model_options *o);

/* Loads this rank's shard. `files` stays open and owned by the caller as long as the model. Does not fit in
 * memory: NO_FIT with one line; every rank of `comm` returns the same status. */
enum status model_open(struct model **out, const struct model_files *files, struct comm *comm,
                       const struct model_options *o, struct reason *why);
void model_close(struct model *m);

/* One step over the rows of `b`: new keys and values, output cache and counters in the state; logits and best
 * of b->out_row in scratch. Every rank of the group calls it with the same plan. */
void model_forward(struct model *m, const struct batch *b);

/* One layer's view of the pools. */
struct kv_layer model_layer(const struct model *m, int layer);

/* Stores random keys and values of the batch's prompt rows in all layers, for benchmarks; `random` (host)
 * holds T*(Qr+2Kr)*E numbers of deviation 1. */
void model_fill(struct model *m, const struct batch *b, const float *random);

#endif
