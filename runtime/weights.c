/* weights.c - names, shapes and slices of every parameter, once, as a walk over them all; checking, carving
 * and loading are three visitors of that walk, so that they cannot disagree. Names are those of the published
 * Hugging Face checkpoints of the families in arch.c. */
#include "runtime/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"
#include "runtime/noise.h"

/* One parameter of a checkpoint and where its part goes. A matrix goes to rows [to_row, to_row+n_rows) of
 * `matrix`; a vector's elements [from_row, from_row+n_rows) go to vector[to_row ...]. */
struct part {
    char name[96];
    int n_dims;
    int64_t shape[2];
    struct matrix *matrix; /* with `total_rows` x n_cols, or ... */
    float **vector;        /* ... f32 of total_rows elements */
    int total_rows;
    int from_row, n_rows, to_row;
    int from_col, n_cols;
    bool keep; /* false: only checked, this rank holds nothing of it (biases added by rank 0) */
};

struct visitor {
    enum status (*visit)(struct visitor *v, const struct part *p);
    const struct tensors *tensors; /* NULL: random weights */
    struct reason *why;
    struct arena *arena;
    const enum dtype *matrix_dtype; /* of all matrices; NULL: as stored */
    enum dtype random_dtype;        /* what random weights are stored in */
    const struct ops *op;
    struct device *device;
    bool progress;
    int64_t done_bytes, total_bytes, started_us, told_us;
    float *staging; /* vectors, converted to f32 on the host */
    struct noise noise;
    bool *used; /* (tensors_count) */
};

#define VISIT(...)                                                                                           \
    do {                                                                                                     \
        struct part part_ = __VA_ARGS__;                                                                     \
        snprintf(part_.name, sizeof part_.name, "%s%s", prefix, suffix);                                     \
        enum status status_ = v->visit(v, &part_);                                                           \
        if (status_ != STATUS_OK) return status_;                                                            \
    } while (0)

static enum status matrix_part(struct visitor *v, const char *prefix, const char *suffix, struct matrix *m,
                               int64_t rows, int64_t cols, int total_rows, int from_row, int n_rows,
                               int to_row, int from_col, int n_cols)
{
    VISIT({.n_dims = 2,
           .shape = {rows, cols},
           .matrix = m,
           .total_rows = total_rows,
           .from_row = from_row,
           .n_rows = n_rows,
           .to_row = to_row,
           .from_col = from_col,
           .n_cols = n_cols,
           .keep = true});
    return STATUS_OK;
}

static enum status vector_part(struct visitor *v, const char *prefix, const char *suffix, float **to,
                               int64_t n, int total_rows, int from_row, int n_rows, int to_row, bool keep)
{
    VISIT({.n_dims = 1,
           .shape = {n},
           .vector = to,
           .total_rows = total_rows,
           .from_row = from_row,
           .n_rows = n_rows,
           .to_row = to_row,
           .keep = keep});
    return STATUS_OK;
}

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        enum status try_ = (call);                                                                           \
        if (try_ != STATUS_OK) return try_;                                                                  \
    } while (0)

static enum status walk_attention(struct layer_weights *w, const struct arch *a, const struct shard *s,
                                  struct visitor *v, const char *prefix)
{
    int E = a->head_dim, D = a->hidden;
    int q_rows = s->n_score * E, kv_rows = s->n_kv * E, rows = q_rows + 2 * kv_rows;
    int q0 = s->score_first * E, kv0 = s->kv_first * E;
    int64_t h_rows = (int64_t)a->n_heads * E, k_rows = (int64_t)a->n_kv_heads * E;
    TRY(vector_part(v, prefix, "input_layernorm.weight", &w->attn_norm, D, D, 0, D, 0, true));
    TRY(matrix_part(v, prefix, "self_attn.q_proj.weight", &w->qkv, h_rows, D, rows, q0, q_rows, 0, 0, D));
    TRY(matrix_part(v, prefix, "self_attn.k_proj.weight", &w->qkv, k_rows, D, rows, kv0, kv_rows, q_rows, 0,
                    D));
    TRY(matrix_part(v, prefix, "self_attn.v_proj.weight", &w->qkv, k_rows, D, rows, kv0, kv_rows,
                    q_rows + kv_rows, 0, D));
    if (a->qkv_bias) {
        TRY(vector_part(v, prefix, "self_attn.q_proj.bias", &w->qkv_bias, h_rows, rows, q0, q_rows, 0, true));
        TRY(vector_part(v, prefix, "self_attn.k_proj.bias", &w->qkv_bias, k_rows, rows, kv0, kv_rows, q_rows,
                        true));
        TRY(vector_part(v, prefix, "self_attn.v_proj.bias", &w->qkv_bias, k_rows, rows, kv0, kv_rows,
                        q_rows + kv_rows, true));
    }
    if (a->qk_norm) {
        TRY(vector_part(v, prefix, "self_attn.q_norm.weight", &w->q_norm, E, E, 0, E, 0, true));
        TRY(vector_part(v, prefix, "self_attn.k_norm.weight", &w->k_norm, E, E, 0, E, 0, true));
    }
    TRY(matrix_part(v, prefix, "self_attn.o_proj.weight", &w->o, D, h_rows, D, 0, D, 0, s->head_first * E,
                    s->n_heads * E));
    if (a->o_bias)
        TRY(vector_part(v, prefix, "self_attn.o_proj.bias", &w->o_bias, D, D, 0, D, 0, s->rank == 0));
    return STATUS_OK;
}

static enum status walk_mlp(struct layer_weights *w, const struct arch *a, const struct shard *s,
                            struct visitor *v, const char *prefix)
{
    int D = a->hidden, F = a->ffn, f = s->n_ffn, f0 = s->ffn_first;
    TRY(vector_part(v, prefix, "post_attention_layernorm.weight", &w->mlp_norm, D, D, 0, D, 0, true));
    TRY(matrix_part(v, prefix, "mlp.gate_proj.weight", &w->gate_up, F, D, 2 * f, f0, f, 0, 0, D));
    TRY(matrix_part(v, prefix, "mlp.up_proj.weight", &w->gate_up, F, D, 2 * f, f0, f, f, 0, D));
    TRY(matrix_part(v, prefix, "mlp.down_proj.weight", &w->down, D, F, D, 0, D, 0, f0, f));
    if (a->mlp_bias) {
        TRY(vector_part(v, prefix, "mlp.gate_proj.bias", &w->gate_up_bias, F, 2 * f, f0, f, 0, true));
        TRY(vector_part(v, prefix, "mlp.up_proj.bias", &w->gate_up_bias, F, 2 * f, f0, f, f, true));
        TRY(vector_part(v, prefix, "mlp.down_proj.bias", &w->down_bias, D, D, 0, D, 0, s->rank == 0));
    }
    return STATUS_OK;
}

static enum status walk(struct weights *w, const struct arch *a, const struct shard *s, struct visitor *v)
{
    int D = a->hidden, V = a->vocab;
    TRY(matrix_part(v, "model.", "embed_tokens.weight", &w->embed, V, D, s->n_vocab, s->vocab_first,
                    s->n_vocab, 0, 0, D));
    for (int l = 0; l < a->n_layers; l++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "model.layers.%d.", l);
        TRY(walk_attention(&w->layer[l], a, s, v, prefix));
        TRY(walk_mlp(&w->layer[l], a, s, v, prefix));
    }
    TRY(vector_part(v, "model.", "norm.weight", &w->final_norm, D, D, 0, D, 0, true));
    if (!a->tied_head)
        TRY(matrix_part(v, "", "lm_head.weight", &w->head, V, D, s->n_vocab, s->vocab_first, s->n_vocab, 0, 0,
                        D));
    return STATUS_OK;
}

/* The walk over a whole model, on no rank in particular. */
static enum status walk_whole(const struct arch *a, struct visitor *v)
{
    struct weights w = {.layer = calloc((size_t)a->n_layers, sizeof *w.layer)};
    if (!w.layer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the table of %d layers", a->n_layers);
    struct shard s;
    shard_make(&s, 0, 1, a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
    enum status status = walk(&w, a, &s, v);
    free(w.layer);
    return status;
}

static enum status visit_check(struct visitor *v, const struct part *p)
{
    const struct tensor *t;
    return tensors_require(v->tensors, p->name, p->n_dims, p->shape, &t, v->why);
}

/* The first part of a fused matrix decides its type; a later part of another type widens it to f32. */
static enum status visit_types(struct visitor *v, const struct part *p)
{
    if (!p->matrix) return STATUS_OK;
    enum dtype dtype = v->matrix_dtype ? *v->matrix_dtype
                       : v->tensors    ? tensors_find(v->tensors, p->name)->dtype
                                       : v->random_dtype;
    if (p->matrix->n == 0) *p->matrix = (struct matrix){.dtype = dtype, .n = p->total_rows, .k = p->n_cols};
    if (p->matrix->dtype != dtype) p->matrix->dtype = DTYPE_F32;
    return STATUS_OK;
}

static enum status visit_carve(struct visitor *v, const struct part *p)
{
    /* Fused parts are visited in order of to_row: the first carves for all. */
    if (!p->keep || p->to_row != 0) return STATUS_OK;
    if (p->matrix)
        p->matrix->data = arena_carve(
            v->arena, v->op->matrix_bytes(v->device, p->matrix->dtype, p->matrix->n, p->matrix->k));
    else *p->vector = arena_carve(v->arena, (size_t)p->total_rows * sizeof(float));
    return STATUS_OK;
}

static void tell_progress(struct visitor *v)
{
    progress_tick();
    int64_t now = clock_us();
    if (!v->progress || now - v->told_us < 1000000) return;
    v->told_us = now;
    double seconds = (double)(now - v->started_us) * 1e-6, rate = (double)v->done_bytes / seconds;
    LOG_INFO("loading weights: %.1f of %.1f GB, %.2f GB/s, %.0f s to go", (double)v->done_bytes * 1e-9,
             (double)v->total_bytes * 1e-9, rate * 1e-9, (double)(v->total_bytes - v->done_bytes) / rate);
}

/* Bytes of the checkpoint that this part reads. */
static int64_t part_bytes(const struct part *p, const struct tensor *t)
{
    return (int64_t)p->n_rows * (p->matrix ? p->n_cols : 1) * (int64_t)dtype_bytes(t->dtype);
}

static enum status visit_sum(struct visitor *v, const struct part *p)
{
    if (p->keep) v->total_bytes += part_bytes(p, tensors_find(v->tensors, p->name));
    return STATUS_OK;
}

static float element(const struct tensor *t, size_t i)
{
    const char *at = (const char *)t->data + i * dtype_bytes(t->dtype);
    uint16_t half;
    float f;
    if (t->dtype == DTYPE_F32) {
        memcpy(&f, at, 4);
        return f;
    }
    memcpy(&half, at, 2);
    return t->dtype == DTYPE_BF16 ? dtype_f32_from_bf16(half) : dtype_f32_from_f16(half);
}

static void load_vector(struct visitor *v, const struct part *p, const struct tensor *t)
{
    for (int i = 0; i < p->n_rows; i++) v->staging[i] = element(t, (size_t)(p->from_row + i));
    v->op->upload(v->device, *p->vector + p->to_row, v->staging, (size_t)p->n_rows * sizeof(float));
    v->op->sync(v->device); /* the staging buffer is used again at once */
}

/* Asks for the bytes of `n` rows, only those this rank keeps: a column shard is a piece of every row. */
static void ask_for_rows(const struct part *p, const char *at, int n, size_t row_bytes, size_t size)
{
    if (p->n_cols == p->shape[1]) {
        tensors_advise(at, (size_t)n * row_bytes, TENSORS_SOON);
        return;
    }
    for (int i = 0; i < n; i++)
        tensors_advise(at + (size_t)i * row_bytes, (size_t)p->n_cols * size, TENSORS_SOON);
}

/* About 16 MiB at a time: reading ahead of the next chunk overlaps with the copy of this one. */
static void load_matrix(struct visitor *v, const struct part *p, const struct tensor *t)
{
    size_t stride = (size_t)p->shape[1], size = dtype_bytes(t->dtype), row_bytes = stride * size;
    const char *src = (const char *)t->data + ((size_t)p->from_row * stride + (size_t)p->from_col) * size;
    int chunk = (int)((16u << 20) / row_bytes);
    chunk = chunk < 64 ? 64 : chunk / 64 * 64;
    if (p->n_cols < p->shape[1]) tensors_advise(t->data, t->bytes, TENSORS_PIECES);
    for (int row = 0, n; row < p->n_rows; row += n) {
        int left = p->n_rows - row;
        n = left < chunk ? left : chunk;
        const char *at = src + (size_t)row * row_bytes, *next = at + (size_t)n * row_bytes;
        if (row == 0) ask_for_rows(p, at, n, row_bytes, size);
        if (n < left) ask_for_rows(p, next, left - n < chunk ? left - n : chunk, row_bytes, size);
        v->op->matrix_put(v->device, p->matrix, p->to_row + row, n, at, t->dtype, stride);
        v->done_bytes += (int64_t)n * p->n_cols * (int64_t)size;
        tell_progress(v);
    }
    tensors_advise(src, ((size_t)(p->n_rows - 1) * stride + (size_t)p->n_cols) * size, TENSORS_DONE);
}

static enum status visit_load(struct visitor *v, const struct part *p)
{
    if (!p->keep || p->n_rows == 0) return STATUS_OK;
    const struct tensor *t = tensors_find(v->tensors, p->name);
    if (p->matrix) {
        load_matrix(v, p, t);
    } else {
        load_vector(v, p, t);
        v->done_bytes += part_bytes(p, t);
    }
    return STATUS_OK;
}

enum status weights_check(const struct arch *a, const struct tensors *t, struct reason *why)
{
    struct visitor v = {.visit = visit_check, .tensors = t, .why = why};
    return walk_whole(a, &v);
}

static enum status visit_mark(struct visitor *v, const struct part *p)
{
    v->used[tensors_find(v->tensors, p->name) - tensors_at(v->tensors, 0)] = true;
    return STATUS_OK;
}

/* Published folders hold them beside what is used: frequencies that config.json implies, a head that is the
 * embedding's. */
static bool is_known(const struct arch *a, const char *name)
{
    static const char frequencies[] = "rotary_emb.inv_freq";
    size_t n = strlen(name), n_end = sizeof frequencies - 1;
    return (n >= n_end && strcmp(name + n - n_end, frequencies) == 0) ||
           (a->tied_head && strcmp(name, "lm_head.weight") == 0);
}

int weights_unused(const struct arch *a, const struct tensors *t, const struct tensor **first)
{
    int n_unused = 0;
    struct visitor v = {.visit = visit_mark, .tensors = t};
    v.used = calloc((size_t)tensors_count(t), sizeof *v.used);
    if (!v.used) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the table of %d tensors", tensors_count(t));
    walk_whole(a, &v);
    *first = NULL;
    for (int i = 0; i < tensors_count(t); i++) {
        const struct tensor *x = tensors_at(t, i);
        if (v.used[i] || is_known(a, x->name)) continue;
        if (n_unused++ == 0) *first = x;
    }
    free(v.used);
    return n_unused;
}

void weights_carve(struct weights *w, struct arena *arena, const struct arch *a, const struct shard *s,
                   const struct tensors *t, struct device *d, const enum dtype *matrix_dtype)
{
    *w = (struct weights){.layer = calloc((size_t)a->n_layers, sizeof *w->layer)};
    if (!w->layer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the table of %d layers", a->n_layers);
    struct visitor v = {.visit = visit_types,
                        .tensors = t,
                        .arena = arena,
                        .op = device_ops(d),
                        .device = d,
                        .matrix_dtype = matrix_dtype,
                        .random_dtype = a->dtype};
    walk(w, a, s, &v);
    v.visit = visit_carve;
    walk(w, a, s, &v);
    if (a->tied_head) w->head = w->embed;
}

void weights_load(struct weights *w, struct device *d, const struct arch *a, const struct shard *s,
                  const struct tensors *t, bool progress)
{
    size_t longest = (size_t)(a->hidden > a->ffn ? a->hidden : a->ffn);
    size_t heads = (size_t)a->n_heads * (size_t)a->head_dim;
    if (heads > longest) longest = heads;
    struct visitor v = {.tensors = t, .op = device_ops(d), .device = d, .progress = progress};
    v.staging = v.op->host_alloc(d, longest * sizeof(float));
    if (!v.staging) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for a staging buffer");
    v.started_us = v.told_us = clock_us();
    v.visit = visit_sum;
    walk(w, a, s, &v);
    v.visit = visit_load;
    walk(w, a, s, &v);
    v.op->sync(d);
    v.op->host_free(d, v.staging, longest * sizeof(float));
    double seconds = (double)(clock_us() - v.started_us) * 1e-6;
    if (progress)
        LOG_DEBUG("weights: %.2f GB in %.1f s, %.2f GB/s", (double)v.total_bytes * 1e-9, seconds,
                  (double)v.total_bytes * 1e-9 / seconds);
}

enum { RANDOM_ROWS = 1024 }; /* at a time */

/* Norm weights are 1, biases 0. A matrix's elements have deviation 1/sqrt(inputs), the embedding's 1, so that
 * activations keep their size from layer to layer. */
static enum status visit_randomize(struct visitor *v, const struct part *p)
{
    if (!p->keep || p->n_rows == 0) return STATUS_OK;
    if (!p->matrix) {
        float value = strstr(p->name, "bias") ? 0 : 1;
        for (int i = 0; i < p->n_rows; i++) v->staging[i] = value;
        v->op->upload(v->device, *p->vector + p->to_row, v->staging, (size_t)p->n_rows * sizeof(float));
        v->op->sync(v->device);
        return STATUS_OK;
    }
    float scale = strstr(p->name, "embed_tokens") ? 1 : 1 / sqrtf((float)p->shape[1]);
    for (int row = 0, n; row < p->n_rows; row += n) {
        n = p->n_rows - row < RANDOM_ROWS ? p->n_rows - row : RANDOM_ROWS;
        const float *from = noise_row(&v->noise, p->name, p->from_row + row) + p->from_col;
        size_t count = (size_t)(n - 1) * NOISE_ROW + (size_t)p->n_cols;
        for (size_t i = 0; i < count; i++) v->staging[i] = from[i] * scale;
        v->op->matrix_put(v->device, p->matrix, p->to_row + row, n, v->staging, DTYPE_F32, NOISE_ROW);
        progress_tick();
    }
    return STATUS_OK;
}

void weights_randomize(struct weights *w, struct device *d, const struct arch *a, const struct shard *s)
{
    size_t heads = (size_t)a->n_heads * (size_t)a->head_dim,
           longest = (size_t)(a->hidden > a->ffn ? a->hidden : a->ffn);
    size_t extra = (size_t)RANDOM_ROWS * NOISE_ROW + (heads > longest ? heads : longest);
    struct visitor v = {.visit = visit_randomize, .op = device_ops(d), .device = d};
    noise_open(&v.noise, extra);
    v.staging = v.op->host_alloc(d, extra * sizeof(float));
    if (!v.staging) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for random weights");
    walk(w, a, s, &v);
    v.op->sync(d);
    v.op->host_free(d, v.staging, extra * sizeof(float));
    noise_close(&v.noise);
}

void weights_close(struct weights *w)
{
    free(w->layer);
    *w = (struct weights){0};
}
