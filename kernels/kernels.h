/* kernels.h - the table of ops: everything that must look inside a tensor. It exists twice, cpu/ and cuda/.
 *
 * One forward pass (runtime/model.c) calls these in order; it never knows which device runs. Pointers named
 * below are device memory unless a comment says host. Ops and transfers are issued in order on the device's
 * one stream; they return void, because a kernel that cannot run is a DIE and wrong arguments are an ASSERT.
 *
 * Dimension letters, the same everywhere (r: this tensor-parallel rank's share):
 *   T  rows of the step        D  hidden size         E  head width
 *   G  query heads per kv head (H / K)                Kr kv heads held
 *   Qr heads scored, Kr * G    Hr query heads attended (Qr unless kv heads are replicated)
 *   Fr MLP columns             Vr vocabulary rows
 *   P  tokens per page         B  tokens per block, a multiple of P
 *   W  largest window          C  most tokens of a sequence, a multiple of B
 *
 * Invariants every implementation keeps, each a test:
 *  1. Batch invariance: what an op computes for one row depends on that row and the state it reads, to the
 *     bit; never on the number of rows, their order, the number of threads or the other sequences of the step.
 *  2. Sums over the hidden size and over keys are f32 (or better), in a fixed order.
 *  3. A page list is ascending; equal scores prefer the lower page. Reading all pages by list or without
 *     gives the same bits, so budget 1 is dense attention exactly.
 *  4. Nothing allocates after device_open and the first step; scratch is carved by the caller.
 *  5. No op writes outside the shapes given here (canaries in the tests).
 *
 * Memory layout of the paged cache. The pool has n_blocks blocks of B tokens, layer after layer: what a step reads of a
 * layer lies close together, in few pages of the address translation. Of layer l and block i, at (l * n_blocks + i) *
 * layer_bytes:
 *   keys and values   (Kr, B/P, 2, P, E) in dims.kv  K then V of each page, P consecutive tokens: what is read
 *                                                   together lies together, however small the page
 *   page summaries    (Kr, summary_head_bytes)      of each page, a function of its keys alone (enum summary_type)
 * A *slot record* holds what is one sequence's own, so that others may share its blocks, per layer:
 *   output cache      O (W, Hr, E) f32, then lse (W, Hr) f32; position r lives at ring index r % W
 *   last_loaded       (Kr, C/P) int32               newest position whose step read the page; -1 at first
 * (The ring has one entry more than the w-1 that are needed: in the step that computes position p the row
 * leaving the window is still read while p is written.) */
#ifndef RETRO_KERNELS_KERNELS_H
#define RETRO_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/base/uuid.h"

/* How the scores of a kv head's query heads become one. RECENT: no scores, the later page is the better
 * (StreamingLLM's choice, Xiao et al. 2309.17453); reads no summaries. */
enum score_group {
    SCORE_GROUP_MAX,
    SCORE_GROUP_MEAN,
    SCORE_GROUP_SOFTMAX,
    SCORE_GROUP_RECENT,
    SCORE_GROUP_COUNT
};

/* How page summaries are stored, of the element-wise min and max of a page's keys.
 * F32, F16, BF16: min (E), then max (E); F32 with f32 keys, else the keys' own two-byte type, in which they are
 * exact; (B/P) summaries of a kv head one after another.
 * Q8, Q4: codes of the middle c = (max + min) / 2 and half-width u = (max - min) / 2, which bound nothing: scores
 * with alpha = 1 need the others. First the codes of all pages, then the scales (B/P, 2) bf16 of c and u.
 *   scale = bf16(largest |x| / top), code = x / scale rounded to even and held to [-top, top]; scale 0: codes 0
 *   Q8   top 127: c (E) int8, then u (E) in 0..127
 *   Q4   top 7: (E/2) bytes of c + 8, then top 15: (E/2) bytes of u; element i in the low, i + E/2 in the high
 *        four bits of byte i */
enum summary_type { SUMMARY_F32, SUMMARY_F16, SUMMARY_BF16, SUMMARY_Q8, SUMMARY_Q4, SUMMARY_TYPE_COUNT };
enum { SUMMARY_SCALES_BYTES = 4 };

/* Sizes that do not change after start-up; filled by runtime/model.c, then kernels_layout() completes it. */
struct dims {
    int L, D, E, G, Kr, Qr, Hr, Fr, Vr;
    int head_off; /* attended heads are scored heads head_off .. head_off+Hr-1; q head h belongs to kv head h
                     / G */
    int vocab_first; /* first token id of this rank's embedding rows */
    int P, B, W, C;
    int n_slots;    /* sequences that can be on the device at once */
    int n_blocks;   /* in the pool */
    int max_rows;   /* T at most */
    int max_spans;  /* decode spans in a step at most */
    int max_out;    /* rows with logits at most */
    enum dtype act; /* what GEMMs read: f32 or bf16 on the CPU (--act-dtype), the weights' type on CUDA */
    enum dtype kv;
    enum summary_type summary;
    float norm_eps, attention_scale; /* 1/sqrt(E) */
    bool kv_owner;                   /* this rank counts its kv heads in counters */
    /* Filled by kernels_layout(): */
    size_t summary_bytes;      /* of one page and kv head, scales included: what scoring it reads */
    size_t summary_stride;     /* from one page's (codes) to the next's */
    size_t summary_head_bytes; /* of all pages of a block for one kv head */
    size_t kv_bytes, summaries_bytes, layer_bytes; /* of one layer of a block; 64-aligned */
    size_t block_bytes;                            /* of all layers of a block */
    size_t output_cache_bytes, last_loaded_bytes,
        slot_layer_bytes; /* of one layer in a slot record; 64-aligned */
    size_t slot_bytes;    /* one slot record */
};

void kernels_layout(struct dims *m);

/* What one sequence does in a step. Decode: rows row0 .. row0+n_rows-1 have positions position-n_rows+1 ..
 * position; the last is new, the others are revised. */
struct decode_span {
    int32_t slot, row0, n_rows, position;
    int32_t dense_layers; /* layers below it read all pages */
    int32_t n_select[2];  /* pages to read in a sparse layer: [0] full attention, [1] sliding layers; 0: all
                             visible */
    int32_t n_sink;       /* first pages always chosen while visible */
    int32_t group;        /* enum score_group */
    float alpha;          /* 1: Quest's bound */
    int32_t keep;         /* store O and lse of the rows in the output cache (a window above 1) */
};

/* Prompt: rows row0 .. have positions position0 ..; dense causal attention over everything before them. */
struct prompt_span {
    int32_t slot, row0, n_rows, position0;
};

/* The plan of one step on the device. Counts are host integers; arrays are device memory. */
struct batch {
    int n_rows, n_decode, n_prompt, n_out;
    int n_decode_rows; /* decode rows come first: rows 0 .. n_decode_rows-1 */
    int max_position;  /* no position is larger; host knowledge for launch shapes */
    bool top;          /* the largest logits of each output row are wanted (top_k) */
    /* Steps with the same shape (not 0) launch the same work: counts and max_position are rounded up to few
     * values (runtime/shape.h). Spans past the real ones have n_rows 0, rows past them belong to no span. */
    uint64_t shape;
    const int32_t *token;             /* (T) */
    const int32_t *position;          /* (T) */
    const int32_t *slot;              /* (T) */
    const struct decode_span *decode; /* (n_decode) */
    const struct prompt_span *prompt; /* (n_prompt) */
    const int32_t *out_row;           /* (n_out) rows whose logits are wanted */
    const int32_t *block_table;       /* (n_slots, C/B) place in the pool of each block of each sequence */
    /* The same spans in host memory, borrowed for the call, for loops on the host side of a launcher. */
    const struct decode_span *host_decode;
    const struct prompt_span *host_prompt;
};

/* One layer's view of the pools. */
struct kv_layer {
    char *blocks;       /* the layer's part of the pool; block i at blocks + i * dims.layer_bytes */
    char *slots;        /* slot-record base + layer offset; slot s at slots + s * dims.slot_bytes */
    int layer;          /* 0-based, against decode_span.dense_layers */
    int sliding_window; /* 0, or how many tokens a query sees, itself included */
};

/* What decode attention did, per slot, summed over layers and owned kv heads: int64 (n_slots, COUNTER_COUNT).
 */
enum counter {
    COUNTER_PAGES_LOADED, /* pages of S, layers >= dense_layers */
    COUNTER_PAGES_MET, /* sum of |U_r| of revised rows, counting pages with a key the row may see, same layers
                        */
    COUNTER_TOKENS_READ, /* keys (with values) read by decode, all layers: of the pages read, what the new row sees */
    COUNTER_TOKENS_DENSE,   /* keys that dense decode reads for the same steps (visible keys) */
    COUNTER_SUMMARIES_READ, /* page summaries read for scoring */
    COUNTER_COUNT
};

/* A weight matrix y = x W^T: n outputs, k inputs. The device owns the element order behind `data`. */
struct matrix {
    void *data;
    enum dtype dtype;
    int n, k;
};

struct device; /* context: threads (cpu) or stream, handles (cuda) */

/* What attention is computed for, on every device: elements of a head, query heads of a kv head, and the product. */
#define HEAD_DIM_MAX 256
#define GROUP_MAX 64
#define GROUP_ELEMENTS_MAX 12288

/* value and index of the largest logit of a row; the lower index wins a tie */
struct best {
    float value;
    int32_t index; /* within this rank's shard */
};

/* What top_k gives at most: the largest --top-k that is drawn from candidates instead of all logits. */
#define TOP_K_MAX 64

struct ops {
    const char *name; /* "cpu" or "cuda" */
    bool mixed_types; /* linear takes weights of another type than its activations */
    bool graphs;      /* steps of one shape are replayed: graph_launch may be true */

    /* --- memory: all of it before the first step --- */
    void *(*mem_alloc)(struct device *d, size_t bytes); /* zeroed, 256-aligned; NULL when refused */
    void (*mem_free)(struct device *d, void *p, size_t bytes);
    void *(*host_alloc)(struct device *d,
                        size_t bytes); /* zeroed host memory that uploads may read asynchronously */
    void (*host_free)(struct device *d, void *p, size_t bytes);
    void (*upload)(struct device *d, void *dst, const void *src_host, size_t bytes);
    void (*download)(struct device *d, void *dst_host, const void *src, size_t bytes); /* ready after sync */
    void (*copy)(struct device *d, void *dst, const void *src, size_t bytes);          /* device to device */
    void (*fill)(struct device *d, void *dst, int byte, size_t bytes);
    void (*sync)(struct device *d);
    int64_t (*mem_available)(
        struct device *d);             /* bytes that mem_alloc may still get (the host's, or the GPU's) */
    void *(*stream)(struct device *d); /* for collectives; NULL on the CPU */
    /* Reads 64-byte lines of device memory and forgets them, as fast as this device can (retro bench). */
    void (*read_bytes)(struct device *d, const void *p, size_t bytes);

    /* --- time (trace.c) --- */
    /* Marks this moment of the device's time line as i, 0 <= i < MARKS_MAX; in microseconds of its own clock
     * after a sync. */
    void (*mark)(struct device *d, int i);
    double (*mark_us)(struct device *d, int i);
    /* Begins a named range of work that is not one op (NULL ends it); only a tracing device does anything. */
    void (*range)(struct device *d, const char *name);

    /* --- whole steps (CUDA graphs; the CPU runs ops as they come) --- */
    /* True: the step of this shape was replayed and there is nothing to issue. False: issue its ops, then
     * graph_end. */
    bool (*graph_launch)(struct device *d, uint64_t key);
    void (*graph_end)(struct device *d);

    /* --- weights --- */
    size_t (*matrix_bytes)(struct device *d, enum dtype dtype, int n, int k);
    /* Rows row0..row0+n_rows-1 from host memory (any dtype, converted with one rounding), row i at
     * src + i*src_stride elements; unaligned src allowed. Columns are all k of the matrix. */
    void (*matrix_put)(struct device *d, struct matrix *w, int row0, int n_rows, const void *src_host,
                       enum dtype src_dtype, size_t src_stride);

    /* --- the step, in the order of the forward pass --- */
    /* x (T,D) f32 = embedding rows of the tokens; zero where the token is not in [vocab_first,
     * vocab_first+Vr). */
    void (*embed)(struct device *d, float *x, const struct batch *b, const struct matrix *table,
                  const struct dims *m);
    /* table (T,E/2,2) f32: cos and sin of f32(position)*inv_freq, each times `factor`. Once per step. */
    void (*rope_table)(struct device *d, float *table, const struct batch *b, const float *inv_freq,
                       float factor, const struct dims *m);
    /* x (T,D) f32 += delta (T,D) f32 when delta is not NULL; h (T,D) act = x / rms(x) * weight (D) f32.
     * Zhang & Sennrich 1910.07467. */
    void (*add_norm)(struct device *d, void *h, float *x, const float *delta, const float *weight, int n_rows,
                     const struct dims *m);
    /* to (n_out) = rows b->out_row of from (T), row_bytes each, a multiple of 4: the rows whose logits are
     * wanted, with which the last layer ends. */
    void (*gather)(struct device *d, void *to, const void *from, size_t row_bytes, const struct batch *b);
    /* y (n_rows,n) f32 = x (n_rows,k) act times W^T, plus bias (n) f32 when not NULL. */
    void (*linear)(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                   int n_rows);
    /* qkv (T, (Qr+2Kr)*E) f32 in rows [q heads | k heads | v heads]. Optional RMSNorm of each q and k head
     * with q_norm, k_norm (E) f32 (Qwen3) or NULL. Rope (half-split pairs i, i+E/2) of q and k at the rows'
     * positions. q (T,Qr,E) f32 out. k and v go to their pages in dims.kv; then the summaries of all pages
     * touched are recomputed exactly from the stored keys at positions <= the newest of that sequence in the
     * step. A page whose first token is written for the first time is not assumed to be clean. */
    void (*rope_store)(struct device *d, float *q, const float *qkv, const float *rope, const float *q_norm,
                       const float *k_norm, const struct kv_layer *kv, const struct batch *b,
                       const struct dims *m);
    /* ALGORITHM step 2 for every decode span and kv head, with the span's last row's query:
     * pages (n_decode,Kr,C/P) int32 ascending, count (n_decode,Kr) int32. Candidates are the pages with a key
     * visible to the new row; a span that reads all (dense layer, n_select 0 or >= candidates) gets the full
     * ascending list and reads no summaries. scratch: select_scratch_bytes(). */
    size_t (*select_scratch_bytes)(struct device *d, const struct dims *m);
    void (*select)(struct device *d, int32_t *pages, int32_t *count, const float *q,
                   const struct kv_layer *kv, const struct batch *b, void *scratch, const struct dims *m);
    /* ALGORITHM steps 3 and 4, up to the merge: for every decode span, kv head and its rows: attention of the
     * new row over S and of revised rows over U_r = {j in S : last_loaded_j < r}, keys <= the row's position
     * (and inside the sliding window). Each page is read once for all rows and heads of the group. `part` is
     * opaque to the caller: partial outputs and log-sum-exps, attend_part_bytes(). */
    size_t (*attend_part_bytes)(struct device *d, const struct dims *m);
    void (*attend)(struct device *d, void *part, const float *q, const struct kv_layer *kv,
                   const int32_t *pages, const int32_t *count, const struct batch *b, const struct dims *m);
    /* Combines the parts; folds them into the cached (O, lse) of revised rows; stores O and lse of all rows
     * where span.keep; sets last_loaded of S to the span's position; adds to counters (n_slots,COUNTER_COUNT)
     * int64. out (T,Hr*E) act: rows of decode spans only. */
    void (*merge)(struct device *d, void *out, const void *part, const struct kv_layer *kv,
                  const int32_t *pages, const int32_t *count, int64_t *counters, const struct batch *b,
                  const struct dims *m);
    /* Prompt rows: causal attention over all earlier keys of the sequence (inside the sliding window);
     * out (T,Hr*E) act: rows of prompt spans only. */
    void (*attend_prompt)(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                          const struct batch *b, const struct dims *m);
    /* gate_up (T,2*Fr) f32 in rows [gate | up]; out (T,Fr) act = gate * sigmoid(gate) * up. */
    void (*silu_mul)(struct device *d, void *out, const float *gate_up, int n_rows, const struct dims *m);
    /* best (n_out) of logits (n_out,Vr) f32. */
    void (*argmax)(struct device *d, struct best *best, const float *logits, int n_out, const struct dims *m);
    /* top (n_out,TOP_K_MAX): the largest logits of each row, largest first, equal ones by lower index. NaN
     * counts as -inf. Places past Vr hold -inf and index -1. */
    void (*top_k)(struct device *d, struct best *top, const float *logits, int n_out, const struct dims *m);
    /* out (n) of type `to` = in (n) of type `from`, rounded once; one of them is f32. 16-aligned. For
     * all-reduces in two bytes. */
    void (*convert)(struct device *d, void *out, enum dtype to, const void *in, enum dtype from, size_t n);
};

#define MARKS_MAX 16384

enum device_kind { DEVICE_CPU, DEVICE_CUDA, DEVICE_KIND_COUNT };

/* Instruction set of the CPU paths. AUTO takes the best that this machine runs. */
enum cpu_isa { CPU_ISA_AUTO, CPU_ISA_PORTABLE, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AMX, CPU_ISA_COUNT };

/* Whether this machine's processor multiplies bf16 by bf16 faster with `isa` than it widens to f32. */
bool cpu_fast_pairs(enum cpu_isa isa);

struct device_options {
    int n_threads;    /* CPU; 0: the cores this process may run on */
    enum cpu_isa isa; /* CPU */
    bool pin;      /* CPU: bind threads to cores of the process's mask, the first to core `pin_first` of it */
    int pin_first; /* CPU: ranks that share a mask give their threads different cores: local rank * threads */
    enum dtype act; /* CPU: dims.act, what GEMMs read; f32 is 0 */
    int ordinal;    /* CUDA device */
};

/* The GPU that `device_open` would take for `ordinal`, and the libraries for it, without opening anything. Versions are
 * major * 10000 + minor * 100 + patch; 0: unknown, or a build without CUDA. */
struct device_gpu {
    int driver, runtime, blas; /* the newest CUDA that the driver knows; libcudart's; cuBLAS's */
    int n_visible, number;     /* GPUs that this process sees; which of them it would take */
    int capability;            /* 90: sm_90 */
    int64_t memory_bytes;
    char name[64], uuid[UUID_TEXT];
    char problem[128]; /* why n_visible is 0, in the runtime's words; "" else */
};
void device_find_gpu(struct device_gpu *g, int ordinal);

/* Opens a device. BAD_OPTION with one line when this build or machine has none of that kind. */
enum status device_open(struct device **out, enum device_kind kind, const struct device_options *o,
                        struct reason *why);
void device_close(struct device *d);
const struct ops *device_ops(const struct device *d);
/* "AVX-512, 2 threads" or "NVIDIA H100, sm_90": for the start-up line; borrowed. */
const char *device_describe(const struct device *d);

/* Typed places in the records; used by both devices and by tests. */
static inline char *kv_layer_block(const struct kv_layer *kv, const struct dims *m, int block)
{
    return kv->blocks + (size_t)block * m->layer_bytes;
}
/* Where a layer begins in the pool. */
static inline size_t pool_layer_offset(const struct dims *m, int layer)
{
    return (size_t)layer * (size_t)m->n_blocks * m->layer_bytes;
}
/* From a key to its value. */
static inline size_t kv_value_distance(const struct dims *m)
{
    return (size_t)m->P * (size_t)m->E * dtype_bytes(m->kv);
}
/* The key of a token of the block, 0 <= token < B. */
static inline size_t kv_key_offset(const struct dims *m, int kv_head, int token)
{
    size_t page = (size_t)kv_head * (size_t)(m->B / m->P) + (size_t)(token / m->P);
    return page * 2 * kv_value_distance(m) + (size_t)(token % m->P) * (size_t)m->E * dtype_bytes(m->kv);
}
static inline size_t kv_summary_offset(const struct dims *m, int kv_head, int page_in_block)
{
    return m->kv_bytes + (size_t)kv_head * m->summary_head_bytes + (size_t)page_in_block * m->summary_stride;
}
static inline bool summary_has_codes(const struct dims *m) { return m->summary >= SUMMARY_Q8; }
/* Of a summary with codes: the two scales. */
static inline size_t kv_scales_offset(const struct dims *m, int kv_head, int page_in_block)
{
    return m->kv_bytes + (size_t)kv_head * m->summary_head_bytes + (size_t)(m->B / m->P) * m->summary_stride +
           (size_t)page_in_block * SUMMARY_SCALES_BYTES;
}
/* last_loaded of a page of the sequence in `slot`. */
static inline int32_t *kv_last_loaded(const struct kv_layer *kv, const struct dims *m, int slot, int kv_head,
                                      int page)
{
    char *record = kv->slots + (size_t)slot * m->slot_bytes + m->output_cache_bytes;
    return (int32_t *)(void *)record + (size_t)kv_head * (size_t)(m->C / m->P) + (size_t)page;
}
/* First page with a key visible to position p, and the page of p itself. */
static inline int page_first_visible(int position, int sliding_window, int page_tokens)
{
    return sliding_window && position >= sliding_window ? (position - sliding_window + 1) / page_tokens : 0;
}

#endif
