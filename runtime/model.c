#include "runtime/model.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/base/hostmem.h"
#include "runtime/base/progress.h"

enum status model_files_open(struct model_files *f, const char *dir, struct reason *why)
{
    *f = (struct model_files){0};
    enum status status = arch_load(&f->arch, dir, why);
    if (status == STATUS_OK) status = tensors_open(&f->tensors, dir, why);
    if (status == STATUS_OK) status = weights_check(&f->arch, f->tensors, why);
    if (status != STATUS_OK) model_files_close(f);
    return status;
}

void model_files_warn(const struct model_files *f)
{
    const struct tensor *first;
    int n = f->tensors ? weights_unused(&f->arch, f->tensors, &first) : 0;
    if (n > 0)
        LOG_WARN("%d tensor%s of the model folder %s not used, first %.120s: does config.json belong to the "
                 "weights?",
                 n, n == 1 ? "" : "s", n == 1 ? "is" : "are", first->name);
}

/* configs/shapes/1b, so that `retro bench` needs no folder. */
static const char default_shape[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 2048, \"intermediate_size\": 8192, "
    "\"num_hidden_layers\": 16, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, "
    "\"vocab_size\": 32768, \"max_position_embeddings\": 131072, \"rms_norm_eps\": 1e-05, "
    "\"rope_theta\": 500000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, "
    "\"torch_dtype\": \"bfloat16\"}";

enum status model_files_imagine(struct model_files *f, const char *dir, struct reason *why)
{
    *f = (struct model_files){0};
    return dir ? arch_load(&f->arch, dir, why)
               : arch_parse(&f->arch, default_shape, strlen(default_shape), "the 1B shape", why);
}

void model_files_close(struct model_files *f)
{
    tensors_close(f->tensors);
    *f = (struct model_files){0};
}

/* Rows of a step that give logits at least, however few sequences there are: a prompt whose tokens' log-probabilities
 * are wanted goes on by so many. */
enum { PROMPT_OUT = 64 };

void model_dims(struct dims *m, const struct arch *a, const struct shard *s, const struct model_options *o)
{
    int context = (o->context + o->block_tokens - 1) / o->block_tokens * o->block_tokens;
    int64_t all = (int64_t)o->n_slots * (context / o->block_tokens);
    int64_t wanted = ((int64_t)o->kv_tokens + o->block_tokens - 1) / o->block_tokens;
    int64_t n_blocks = o->kv_tokens ? wanted : all; /* more than all serve as a larger prefix cache */
    *m = (struct dims){
        .L = a->n_layers,
        .D = a->hidden,
        .E = a->head_dim,
        .G = a->n_heads / a->n_kv_heads,
        .Kr = s->n_kv,
        .Qr = s->n_score,
        .Hr = s->n_heads,
        .Fr = s->n_ffn,
        .Vr = s->n_vocab,
        .head_off = s->head_first - s->score_first,
        .vocab_first = s->vocab_first,
        .P = o->page_tokens,
        .B = o->block_tokens,
        .W = o->window,
        .C = context,
        .n_slots = o->n_slots,
        .n_blocks = n_blocks < INT32_MAX ? (int)n_blocks : INT32_MAX,
        .max_rows = o->max_rows ? o->max_rows : o->prefill_chunk + o->n_slots * o->window,
        .max_spans = o->n_slots,
        .act = o->act,
        .kv = o->kv,
        .summary = o->summary,
        .norm_eps = (float)a->norm_eps,
        .attention_scale = 1.0f / sqrtf((float)a->head_dim),
        .kv_owner = s->kv_owner,
    };
    m->max_out = m->n_slots > PROMPT_OUT ? m->n_slots : PROMPT_OUT;
    if (m->max_out > m->max_rows) m->max_out = m->max_rows;
    kernels_layout(m);
}

static void carve_state(struct model *m, struct arena *a)
{
    const struct dims *d = &m->dims;
    size_t before = a->used_bytes;
    m->pool = arena_carve(a, (size_t)d->n_blocks * d->block_bytes);
    m->plan.kv_bytes = (int64_t)(a->used_bytes - before);
    before = a->used_bytes;
    m->slots = arena_carve(a, (size_t)d->n_slots * d->slot_bytes);
    m->counters = arena_carve(a, (size_t)d->n_slots * COUNTER_COUNT * sizeof(int64_t));
    m->inv_freq = arena_carve(a, (size_t)d->E / 2 * sizeof(float));
    m->plan.slots_bytes = (int64_t)(a->used_bytes - before);
}

static void carve_scratch(struct model *m, struct arena *a)
{
    const struct dims *d = &m->dims;
    size_t before = a->used_bytes, rows = (size_t)d->max_rows, f32 = sizeof(float), act = dtype_bytes(d->act);
    size_t lists = (size_t)d->max_spans * (size_t)d->Kr;
    m->x = arena_carve(a, rows * (size_t)d->D * f32);
    m->h = arena_carve(a, rows * (size_t)d->D * act);
    m->qkv = arena_carve(a, rows * (size_t)(d->Qr + 2 * d->Kr) * (size_t)d->E * f32);
    m->q = arena_carve(a, rows * (size_t)d->Qr * (size_t)d->E * f32);
    m->rope = arena_carve(a, rows * (size_t)d->E * f32);
    m->pages = arena_carve(a, lists * (size_t)(d->C / d->P) * sizeof(int32_t));
    m->page_count = arena_carve(a, lists * sizeof(int32_t));
    m->select_scratch = arena_carve(a, m->op->select_scratch_bytes(m->device, d));
    m->part = arena_carve(a, m->op->attend_part_bytes(m->device, d));
    m->attention = arena_carve(a, rows * (size_t)d->Hr * (size_t)d->E * act);
    m->x_out = arena_carve(a, (size_t)d->max_out * (size_t)d->D * f32);
    m->attention_out = arena_carve(a, (size_t)d->max_out * (size_t)d->Hr * (size_t)d->E * act);
    m->y = arena_carve(a, rows * (size_t)d->D * f32);
    m->gate_up = arena_carve(a, rows * 2 * (size_t)d->Fr * f32);
    m->act = arena_carve(a, rows * (size_t)d->Fr * act);
    m->logits = arena_carve(a, (size_t)d->max_out * (size_t)d->Vr * f32);
    m->best = arena_carve(a, (size_t)d->max_out * sizeof(struct best));
    m->top = arena_carve(a, (size_t)d->max_out * TOP_K_MAX * sizeof(struct best));
    if (m->options.all_reduce == DTYPE_BF16 && comm_size(m->comm) > 1)
        m->narrow = arena_carve(a, rows * (size_t)d->D * dtype_bytes(DTYPE_BF16));
    m->plan.scratch_bytes = (int64_t)(a->used_bytes - before);
}

static void carve(struct model *m, struct arena *a, const struct model_files *files)
{
    weights_close(&m->weights);
    weights_carve(&m->weights, a, &files->arch, &m->shard, files->tensors, m->device,
                  m->op->mixed_types ? NULL : &m->dims.act);
    m->plan.weights_bytes = (int64_t)a->used_bytes;
    carve_state(m, a);
    carve_scratch(m, a);
    m->plan.total_bytes = (int64_t)a->used_bytes;
}

/* The whole group fits or nobody starts: the tightest rank decides. */
static enum status check_fit(struct model *m, const struct model_options *o, struct reason *why)
{
    int64_t available = m->op->mem_available(m->device) / (o->node_ranks > 0 ? o->node_ranks : 1);
    int64_t host = hostmem_available() / (o->node_ranks > 0 ? o->node_ranks : 1);
    if (strcmp(m->op->name, "cpu") == 0) available -= o->swap_bytes; /* both take the host's memory */
    int64_t slack = available - m->plan.total_bytes, least = slack;
    if (slack > host - o->swap_bytes) least = slack = host - o->swap_bytes;
    comm_min_i64(m->comm, &least, 1);
    if (least >= 0) return STATUS_OK;
    double gib = 1.0 / (1 << 30);
    int64_t tokens = (int64_t)m->dims.n_blocks * m->dims.B,
            over = -least / (m->plan.kv_bytes / tokens + 1) + 1;
    if (slack >= 0)
        return status_fail(why, STATUS_NO_FIT,
                           "another rank needs %.2f GiB more than its host has free: lower "
                           "%s, or start more ranks",
                           (double)-least * gib, o->size_flags);
    char fewer[128] = ""; /* where the weights alone are too much, more ranks are all that helps */
    if (over < tokens)
        snprintf(fewer, sizeof fewer, "take %lld tokens off %s, or ", (long long)over, o->size_flags);
    else if (m->plan.weights_bytes < slack + m->plan.total_bytes)
        snprintf(fewer, sizeof fewer, "lower %s, or ", o->size_flags);
    return status_fail(why, STATUS_NO_FIT,
                       "needs %.2f GiB on a rank (weights %.2f, KV %.2f for %lld tokens, scratch %.2f) and "
                       "%.2f of swap space, %.2f GiB free: %sstart more ranks",
                       (double)m->plan.total_bytes * gib, (double)m->plan.weights_bytes * gib,
                       (double)m->plan.kv_bytes * gib, (long long)tokens,
                       (double)(m->plan.scratch_bytes + m->plan.slots_bytes) * gib,
                       (double)o->swap_bytes * gib, (double)(slack + m->plan.total_bytes) * gib, fewer);
}

/* How many records the swap space of every rank holds: the tightest rank decides, so that rank 0 can name
 * them. */
static void size_swap(struct model *m, int64_t bytes)
{
    const struct dims *d = &m->dims;
    int64_t slots = 2 * (int64_t)d->n_slots,
            slot_bytes = (int64_t)(d->slot_bytes + COUNTER_COUNT * sizeof(int64_t));
    int64_t n = (bytes - slots * slot_bytes) / (int64_t)d->block_bytes;
    if (n > INT_MAX) n = INT_MAX;
    comm_min_i64(m->comm, &n, 1);
    m->n_host_blocks = n > 0 ? (int)n : 0;
    m->n_host_slots = n > 0 ? (int)slots : 0;
}

static void fill_constants(struct model *m)
{
    float *inv_freq = m->op->host_alloc(m->device, (size_t)m->dims.E / 2 * sizeof(float));
    if (!inv_freq) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for rope frequencies");
    arch_rope_frequencies(m->arch, inv_freq, &m->rope_factor);
    m->op->upload(m->device, m->inv_freq, inv_freq, (size_t)m->dims.E / 2 * sizeof(float));
    m->op->sync(m->device);
    m->op->host_free(m->device, inv_freq, (size_t)m->dims.E / 2 * sizeof(float));
}

void model_plan(struct memplan *plan, struct dims *dims, const struct model_files *files, int rank,
                int n_ranks, const struct model_options *o)
{
    const struct arch *a = &files->arch;
    struct model m = {.arch = a, .device = o->device, .op = device_ops(o->device)};
    struct arena arena;
    shard_make(&m.shard, rank, n_ranks, a->n_heads, a->n_kv_heads, a->ffn, a->vocab);
    model_dims(&m.dims, a, &m.shard, o);
    arena_count(&arena);
    carve(&m, &arena, files);
    weights_close(&m.weights);
    *plan = m.plan;
    *dims = m.dims;
}

enum status model_open(struct model **out, const struct model_files *files, struct comm *comm,
                       const struct model_options *o, struct reason *why)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the model struct");
    m->arch = &files->arch;
    m->comm = comm;
    shard_make(&m->shard, comm_rank(comm), comm_size(comm), m->arch->n_heads, m->arch->n_kv_heads,
               m->arch->ffn, m->arch->vocab);
    m->options = *o;
    m->device = o->device;
    m->op = device_ops(m->device);
    m->graphs = o->graphs && m->op->graphs;
    model_dims(&m->dims, m->arch, &m->shard, o);

    struct arena arena;
    arena_count(&arena);
    carve(m, &arena, files);
    enum status status = check_fit(m, o, why);
    if (status == STATUS_OK) {
        m->memory_bytes = arena.used_bytes;
        m->memory = m->op->mem_alloc(m->device, m->memory_bytes);
        if (!m->memory)
            status = status_fail(why, STATUS_NO_FIT,
                                 "the system refused %.2f GiB although it seemed free: close other "
                                 "programs or start more ranks",
                                 (double)m->memory_bytes / (1 << 30));
        int64_t got = m->memory != NULL;
        comm_min_i64(comm, &got, 1); /* here too nobody goes on alone */
        if (!got && m->memory)
            status = status_fail(why, STATUS_NO_FIT, "the system of another rank refused its memory");
    }
    if (status != STATUS_OK) {
        model_close(m);
        return status;
    }
    size_swap(m, o->swap_bytes);
    arena_wrap(&arena, m->memory, m->memory_bytes);
    carve(m, &arena, files);
    arena_seal(&arena);
    progress_enter(PROGRESS_LOAD);
    if (files->tensors) weights_load(&m->weights, m->device, m->arch, &m->shard, files->tensors, o->progress);
    else weights_randomize(&m->weights, m->device, m->arch, &m->shard);
    fill_constants(m);
    *out = m;
    return STATUS_OK;
}

void model_close(struct model *m)
{
    if (!m) return;
    if (m->memory) m->op->mem_free(m->device, m->memory, m->memory_bytes);
    weights_close(&m->weights);
    device_close(m->device);
    free(m);
}

static void all_reduce(struct model *m, float *buffer, int n_rows)
{
    size_t n = (size_t)n_rows * (size_t)m->dims.D;
    if (m->narrow) m->op->convert(m->device, m->narrow, DTYPE_BF16, buffer, DTYPE_F32, n);
    progress_op("all_reduce");
    m->op->range(m->device, "all_reduce");
    if (m->narrow) comm_all_reduce(m->comm, m->narrow, n, DTYPE_BF16, m->op->stream(m->device));
    else comm_all_reduce(m->comm, buffer, n, DTYPE_F32, m->op->stream(m->device));
    m->op->range(m->device, NULL);
    if (m->narrow) m->op->convert(m->device, buffer, DTYPE_F32, m->narrow, DTYPE_BF16, n);
}

struct kv_layer model_layer(const struct model *m, int layer)
{
    return (struct kv_layer){
        .blocks = m->pool + pool_layer_offset(&m->dims, layer),
        .slots = m->slots + (size_t)layer * m->dims.slot_layer_bytes,
        .layer = layer,
        .sliding_window = m->arch->slides[layer] ? m->arch->sliding_window : 0,
    };
}

void model_fill(struct model *m, const struct batch *b, const float *random)
{
    const struct dims *d = &m->dims;
    m->op->upload(m->device, m->qkv, random,
                  (size_t)b->n_rows * (size_t)(d->Qr + 2 * d->Kr) * (size_t)d->E * sizeof(float));
    m->op->rope_table(m->device, m->rope, b, m->inv_freq, m->rope_factor, d);
    for (int l = 0; l < d->L; l++) {
        struct kv_layer kv = model_layer(m, l);
        m->op->rope_store(m->device, m->q, m->qkv, m->rope, m->weights.layer[l].q_norm,
                          m->weights.layer[l].k_norm, &kv, b, d);
    }
    m->op->sync(m->device);
}

/* Runs an op and says so first, for the one who asks what a rank that hangs was doing. */
#define RUN(name, ...) (progress_op(#name), op->name(__VA_ARGS__))

/* docs/algorithm.md, "One decode step", for all rows of the batch at once. In the last layer, once keys and values are
 * stored and the output cache is up to date, only rows whose logits are wanted go on. */
void model_forward(struct model *m, const struct batch *b)
{
    const struct ops *op = m->op;
    const struct dims *dims = &m->dims;
    const struct weights *w = &m->weights;
    struct device *d = m->device;
    int T = b->n_rows;

    if (m->probe) probe_begin(m->probe, b);
    RUN(embed, d, m->x, b, &w->embed, dims); /* x (T,D): this rank's vocabulary rows */
    all_reduce(m, m->x, T);
    RUN(rope_table, d, m->rope, b, m->inv_freq, m->rope_factor, dims); /* rope (T,E/2,2) */
    const float *delta = NULL;                                         /* what the last sub-layer adds to x */
    float *x = m->x;
    void *attention = m->attention;

    for (int l = 0; l < dims->L; l++) {
        progress_layer(l);
        const struct layer_weights *lw = &w->layer[l];
        struct kv_layer kv = model_layer(m, l);
        RUN(add_norm, d, m->h, m->x, delta, lw->attn_norm, T, dims); /* h (T,D) */
        RUN(linear, d, m->qkv, m->h, &lw->qkv, lw->qkv_bias, T);     /* qkv (T,(Qr+2Kr)*E) */
        /* Step 1 of docs/algorithm.md: q; K, V and summaries of every row. */
        RUN(rope_store, d, m->q, m->qkv, m->rope, lw->q_norm, lw->k_norm, &kv, b, dims);
        if (b->n_decode > 0) {
            RUN(select, d, m->pages, m->page_count, m->q, &kv, b, m->select_scratch, dims); /* step 2 */
            RUN(attend, d, m->part, m->q, &kv, m->pages, m->page_count, b, dims);           /* steps 3, 4 */
            /* The rest of step 4, and step 5. */
            RUN(merge, d, m->attention, m->part, &kv, m->pages, m->page_count, m->counters, b, dims);
            if (m->probe) probe_layer(m->probe, m->attention, m->q, &kv, b);
        }
        bool last = l == dims->L - 1;
        if (last && b->n_out == 0) break;
        if (b->n_prompt > 0) RUN(attend_prompt, d, m->attention, m->q, &kv, b, dims);
        if (last) {
            RUN(gather, d, m->x_out, m->x, (size_t)dims->D * sizeof(float), b);
            RUN(gather, d, m->attention_out, m->attention,
                (size_t)dims->Hr * (size_t)dims->E * dtype_bytes(dims->act), b);
            x = m->x_out;
            attention = m->attention_out;
            T = b->n_out;
        }
        RUN(linear, d, m->y, attention, &lw->o, lw->o_bias, T); /* y (T,D): this rank's heads, step 6 */
        all_reduce(m, m->y, T);
        RUN(add_norm, d, m->h, x, m->y, lw->mlp_norm, T, dims);              /* x += y; h (T,D) */
        RUN(linear, d, m->gate_up, m->h, &lw->gate_up, lw->gate_up_bias, T); /* (T,2*Fr) */
        RUN(silu_mul, d, m->act, m->gate_up, T, dims);                       /* (T,Fr) */
        RUN(linear, d, m->y, m->act, &lw->down, lw->down_bias, T); /* y (T,D): this rank's columns */
        all_reduce(m, m->y, T);
        delta = m->y;
    }
    progress_layer(-1);
    if (b->n_out == 0) return;
    RUN(add_norm, d, m->h, x, delta, w->final_norm, T, dims); /* h (n_out,D) */
    RUN(linear, d, m->logits, m->h, &w->head, NULL, T);       /* (n_out,Vr) */
    RUN(argmax, d, m->best, m->logits, b->n_out, dims);
    if (b->top) RUN(top_k, d, m->top, m->logits, b->n_out, dims);
}
