/* attention_bench.c - how near attend and select come to a streaming read, and how fast prompts are attended
 * to.
 *
 * The cache has as many layers as make it larger than any processor cache (400 MB, or the third argument),
 * filled with random keys and values; one round runs an op once for each layer, as a decode step does. GB/s
 * count the bytes of keys and values (attend) or page summaries (select) that the op must read; the streaming
 * read reads the same memory with the same device. Medians. With --device cuda everything but the fill runs
 * on the GPU, and a round's time includes its launches. */
#include "attention_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "runtime/base/die.h"
#include "staged.h"

enum { ROUNDS = 9 };

static double cache_bytes = 4e8;

struct shape {
    const char *name;
    int E, G, Kr;
};

struct bench {
    struct dims m;
    struct device *device;
    const struct ops *op;
    char *pool, *slots;
    size_t pool_bytes;
    char *image; /* the slot's record in host memory */
    float *q, *out;
    int32_t *table, *pages, *count;
    int64_t *counters;
    void *part, *scratch;
    struct decode_span span;
    struct prompt_span prompt;
    struct batch b;
    struct decode_span *on_device; /* span, then prompt, where the device reads them */
    struct prompt_span *prompt_on_device;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static struct kv_layer layer(const struct bench *k, int l)
{
    return (struct kv_layer){k->pool + pool_layer_offset(&k->m, l),
                             k->slots + (size_t)l * k->m.slot_layer_bytes, l, 0};
}

enum what { STREAM, SELECT, ATTEND, MERGE, PROMPT };

static double seconds(struct bench *k, enum what what)
{
    double t[ROUNDS];
    for (int i = 0; i < (what == PROMPT ? 3 : ROUNDS); i++) {
        double start = now();
        if (what == STREAM) k->op->read_bytes(k->device, k->pool, k->pool_bytes);
        for (int l = 0; l < k->m.L && what != STREAM; l++) {
            struct kv_layer kv = layer(k, l);
            if (what == SELECT)
                k->op->select(k->device, k->pages, k->count, k->q, &kv, &k->b, k->scratch, &k->m);
            if (what == ATTEND)
                k->op->attend(k->device, k->part, k->q, &kv, k->pages, k->count, &k->b, &k->m);
            if (what == MERGE)
                k->op->merge(k->device, k->out, k->part, &kv, k->pages, k->count, k->counters, &k->b, &k->m);
            if (what == PROMPT) k->op->attend_prompt(k->device, k->out, k->q, &kv, &k->b, &k->m);
        }
        k->op->sync(k->device);
        t[i] = now() - start;
    }
    qsort(t, what == PROMPT ? 3 : ROUNDS, sizeof *t, by_size);
    return t[what == PROMPT ? 1 : ROUNDS / 2];
}

static void *memory(struct bench *k, size_t bytes)
{
    void *p = k->op->mem_alloc(k->device, bytes);
    ASSERT(p);
    return p;
}

static void open_bench(struct bench *k, const struct shape *s, int context, int P, int threads,
                       enum cpu_isa isa)
{
    struct dims *m = &k->m;
    *k = (struct bench){0};
    *m = (struct dims){.D = 64,
                       .E = s->E,
                       .G = s->G,
                       .Kr = s->Kr,
                       .Qr = s->G * s->Kr,
                       .Hr = s->G * s->Kr,
                       .Fr = 1,
                       .Vr = 1,
                       .P = P,
                       .B = 64,
                       .W = 8,
                       .C = context,
                       .n_slots = 1,
                       .n_blocks = context / 64,
                       .max_rows = 512,
                       .max_spans = 1,
                       .max_out = 1,
                       .kv = DTYPE_BF16,
                       .summary = P == 4 ? SUMMARY_Q4 : SUMMARY_BF16,
                       .kv_owner = true};
    size_t token = (size_t)(4 * s->E * s->Kr);
    m->L = (int)(cache_bytes / (double)(token * (size_t)context));
    if (m->L < 1) m->L = 1;
    m->attention_scale = 1 / sqrtf((float)s->E);
    kernels_layout(m);
    struct device_options o = {.n_threads = threads, .isa = isa};
    struct reason why;
    if (device_open(&k->device, staged_cuda ? DEVICE_CUDA : DEVICE_CPU, &o, &why) != STATUS_OK)
        DIE(EXIT_CODE_OPTION, NULL, "%s", why.text);
    k->op = device_ops(k->device);
    k->pool_bytes = (size_t)m->n_blocks * m->block_bytes;
    k->pool = memory(k, k->pool_bytes);
    k->slots = memory(k, m->slot_bytes);
    k->q = memory(k, 512 * (size_t)(m->Qr * m->E) * sizeof(float));
    k->out = memory(k, 512 * (size_t)(m->Qr * m->E) * sizeof(float));
    k->table = memory(k, (size_t)m->n_blocks * sizeof(int32_t));
    k->pages = memory(k, (size_t)(m->Kr * (context / P)) * sizeof(int32_t));
    k->count = memory(k, (size_t)m->Kr * sizeof(int32_t));
    k->counters = memory(k, COUNTER_COUNT * sizeof(int64_t));
    k->part = memory(k, k->op->attend_part_bytes(k->device, m));
    k->scratch = memory(k, k->op->select_scratch_bytes(k->device, m));
    k->on_device = memory(k, sizeof k->span);
    k->prompt_on_device = memory(k, sizeof k->prompt);
    k->image = calloc(1, m->slot_bytes);
    uint16_t *pool = calloc(1, k->pool_bytes);
    size_t n_q = 512 * (size_t)(m->Qr * m->E);
    float *q = calloc(n_q, sizeof *q);
    int32_t *table = calloc((size_t)m->n_blocks, sizeof *table);
    ASSERT(k->image && pool && q && table);
    uint32_t x = 1;
    for (size_t i = 0; i < k->pool_bytes / 2; i++) {
        x = x * 1664525 + 1013904223;
        pool[i] = dtype_bf16_from_f32((float)(int32_t)x * 0x1p-31f);
    }
    for (size_t i = 0; i < n_q; i++) q[i] = (float)(int32_t)(x = x * 1664525 + 1013904223) * 0x1p-31f;
    for (int i = 0; i < m->n_blocks; i++) table[i] = m->n_blocks - 1 - i;
    k->op->upload(k->device, k->pool, pool, k->pool_bytes);
    k->op->upload(k->device, k->q, q, n_q * sizeof *q);
    k->op->upload(k->device, k->table, table, (size_t)m->n_blocks * sizeof *table);
    k->op->sync(k->device);
    free(pool);
    free(q);
    free(table);
    k->b = (struct batch){.n_rows = 1,
                          .n_decode = 1,
                          .n_decode_rows = 1,
                          .block_table = k->table,
                          .max_position = context - 1,
                          .decode = k->on_device,
                          .host_decode = &k->span,
                          .prompt = k->prompt_on_device,
                          .host_prompt = &k->prompt};
}

static void close_bench(struct bench *k)
{
    const struct dims *m = &k->m;
    k->op->mem_free(k->device, k->pool, k->pool_bytes);
    k->op->mem_free(k->device, k->slots, m->slot_bytes);
    k->op->mem_free(k->device, k->q, 512 * (size_t)(m->Qr * m->E) * sizeof(float));
    k->op->mem_free(k->device, k->out, 512 * (size_t)(m->Qr * m->E) * sizeof(float));
    k->op->mem_free(k->device, k->table, (size_t)m->n_blocks * sizeof(int32_t));
    k->op->mem_free(k->device, k->pages, (size_t)(m->Kr * (m->C / m->P)) * sizeof(int32_t));
    k->op->mem_free(k->device, k->count, (size_t)m->Kr * sizeof(int32_t));
    k->op->mem_free(k->device, k->counters, COUNTER_COUNT * sizeof(int64_t));
    k->op->mem_free(k->device, k->part, k->op->attend_part_bytes(k->device, m));
    k->op->mem_free(k->device, k->scratch, k->op->select_scratch_bytes(k->device, m));
    k->op->mem_free(k->device, k->on_device, sizeof k->span);
    k->op->mem_free(k->device, k->prompt_on_device, sizeof k->prompt);
    free(k->image);
    device_close(k->device);
}

/* A page that the step reads was loaded by the step before with 83 %; the longer ago, the rarer. So a window
 * of 2 meets 0.17 pages for each page loaded and a window of 8 meets 0.63: the exposures 1.17 and 1.6 of the
 * algorithm's authors. */
static void mark_pages(struct bench *k)
{
    const struct dims *m = &k->m;
    uint32_t x = 7;
    for (int l = 0; l < m->L; l++)
        for (int j = 0; j < m->Kr * (m->C / m->P); j++) {
            struct kv_layer kv = {NULL, k->image + (size_t)l * m->slot_layer_bytes, l, 0};
            double u = (double)((x = x * 1664525 + 1013904223) >> 8) * 0x1p-24;
            int age = 1;
            while (age < 8 && u < 0.17 / (1 + 0.4 * (age - 1))) age++;
            *kv_last_loaded(&kv, m, 0, 0, j) = m->C - 1 - age;
        }
    k->op->upload(k->device, k->slots, k->image, m->slot_bytes);
    k->op->upload(k->device, k->on_device, &k->span, sizeof k->span);
    k->op->sync(k->device);
}

/* One line: a span of `rows` rows that reads a share `budget` of the pages. */
static void bench_decode(struct bench *k, int rows, double budget, double stream)
{
    const struct dims *m = &k->m;
    int pages = m->C / m->P, n = (int)ceil(budget * pages);
    k->span = (struct decode_span){.n_rows = rows,
                                   .position = m->C - 1,
                                   .n_select = {n < pages ? n : 0},
                                   .n_sink = 1,
                                   .alpha = 0.2f,
                                   .group = SCORE_GROUP_SOFTMAX};
    k->b.n_rows = k->b.n_decode_rows = rows;
    mark_pages(k);
    double select = seconds(k, SELECT), attend = seconds(k, ATTEND);
    double read = (double)m->L * m->Kr * (n < pages ? n : pages) * m->P * m->E * 4 / 1e9;
    double scored = n < pages ? (double)m->L * m->Kr * pages * (double)m->summary_bytes / 1e9 : 0;
    double merge = seconds(k, MERGE);
    printf("  page %2d  rows %d  budget %.2f  attend %7.1f us/layer %6.1f GB/s (%.2f)  select %7.1f us/layer "
           "%6.1f GB/s"
           " (%.2f)  merge %6.1f us/layer\n",
           m->P, rows, budget, attend / m->L * 1e6, read / attend, read / attend / stream,
           select / m->L * 1e6, scored / select, scored / select / stream, merge / m->L * 1e6);
}

static void bench_prompt(struct bench *k, int position0)
{
    const struct dims *m = &k->m;
    int L = m->L;
    k->m.L = 1;
    k->b.n_decode = k->b.n_decode_rows = 0;
    k->b.n_prompt = 1;
    k->b.n_rows = 512;
    k->prompt = (struct prompt_span){0, 0, 512, position0};
    k->op->upload(k->device, k->prompt_on_device, &k->prompt, sizeof k->prompt);
    k->op->sync(k->device);
    double t = seconds(k, PROMPT), keys = 512.0 * position0 + 512.0 * 513 / 2;
    printf("  prompt of 512 rows at %5d: %8.2f ms/layer, %6.1f GFLOP/s\n", position0, t * 1e3,
           4 * keys * m->Qr * m->E / t / 1e9);
    k->m.L = L;
    k->b.n_prompt = 0;
    k->b.n_decode = 1;
}

int attention_bench(int argc, char **argv)
{
    static const struct shape shapes[] = {{"135M (E 64, 3 kv heads, G 3)", 64, 3, 3},
                                          {"1B (E 64, 8 kv heads, G 4)", 64, 4, 8},
                                          {"8B (E 128, 8 kv heads, G 4)", 128, 4, 8}};
    int threads = argc > 0 ? atoi(argv[0]) : 0;
    enum cpu_isa isa = argc > 1 ? (enum cpu_isa)atoi(argv[1]) : CPU_ISA_AUTO;
    if (argc > 2) cache_bytes = 1e6 * atof(argv[2]);
    /* One case alone: shape, context, page size; 0 is all. */
    int only_shape = argc > 3 ? atoi(argv[3]) : 0, only_context = argc > 4 ? atoi(argv[4]) : 0;
    int only_page = argc > 5 ? atoi(argv[5]) : 0;
    for (int s = 0; s < (int)(sizeof shapes / sizeof *shapes); s++)
        for (int context = 8192; context <= 32768; context *= 4) {
            for (int P = 16; P >= 4; P /= 4) {
                if ((only_shape && only_shape != s + 1) || (only_context && only_context != context))
                    continue;
                if (only_page && only_page != P) continue;
                struct bench k;
                open_bench(&k, &shapes[s], context, P, threads, isa);
                double stream = (double)k.pool_bytes / 1e9 / seconds(&k, STREAM);
                if (P == 16 || only_page)
                    printf("%s, context %d, %d layers, %s\n", shapes[s].name, context, k.m.L,
                           device_describe(k.device));
                printf("  streaming read %.1f GB/s\n", stream);
                static const int rows[] = {1, 2, 8};
                for (int r = 0; r < 3; r++) bench_decode(&k, rows[r], 1, stream);
                for (int r = 0; r < 3; r++) bench_decode(&k, rows[r], P == 4 ? 0.197 : 0.15, stream);
                if (P == 16) bench_prompt(&k, 0);
                if (P == 16) bench_prompt(&k, context - 512);
                close_bench(&k);
            }
        }
    return 0;
}
