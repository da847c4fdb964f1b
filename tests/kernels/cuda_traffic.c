/* cuda_traffic.c - bytes that the kernels of a decode step must move and what they do move, counted by the
 * emulator, and the floor that attention and scores are held to.
 *
 *   EMU_STATS=FILE tests/emulator/run build build/tests/cuda_kernels_traffic [--markdown]
 *
 * "Must" is what the kernel's formula names, each byte once: its inputs and outputs, partial results and
 * scratch included where it hands them on. "Memory" is distinct 32-byte sectors of the launch: what caches of
 * any size have to fetch and write back. "Requests" is sectors of every warp access, before any cache: what
 * is read again shows here. One line a kernel and shape; the shapes are shards of real models. On hardware
 * nothing is counted and the tests are skipped. */
#include "tests/kernels/guard.h"
#include "tests/kernels/staged.h"

static const double allowed = 1.05;
static bool markdown;
static const char *stats_path;

struct traffic {
    double load, store, requested; /* bytes */
    char kernel[64];
};

struct shape {
    const char *name;
    int E, G, Kr, P, context, rows;
    double budget;
};

static const struct shape shapes[] = {
    {"70B, 1 of 8 GPUs, 32k", 128, 8, 1, 16, 32768, 2, 0.15},
    {"8B, 1 GPU, 8k", 128, 4, 8, 16, 8192, 2, 0.15},
    {"8B, 1 GPU, 8k, page 4, w 8", 128, 4, 8, 4, 8192, 8, 0.15},
    {"135M, 1 GPU, 8k", 64, 3, 3, 16, 8192, 2, 0.15},
    {"135M, 1 GPU, 8k, page 8", 64, 3, 3, 8, 8192, 2, 0.15},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

struct bench {
    const struct shape *s;
    struct dims m;
    struct device *d;
    const struct ops *op;
    struct kv_layer kv;
    struct decode_span span;
    struct batch b;
    float *q;
    void *part, *scratch, *out;
    int32_t *pages, *count;
    int64_t *counters;
    int n_selected; /* pages of each list */
    int n_splits;
    FILE *stats;
};

static void *upload(struct bench *k, const void *host, size_t bytes)
{
    void *p = k->op->mem_alloc(k->d, bytes);
    assert_non_null(p);
    if (host) k->op->upload(k->d, p, host, bytes);
    k->op->sync(k->d);
    return p;
}

static void fill_pool(struct bench *k, char *pool)
{
    const struct dims *m = &k->m;
    uint64_t seed = 5;
    for (int i = 0; i < m->n_blocks; i++) {
        uint16_t *record = (uint16_t *)(void *)(pool + (size_t)i * m->block_bytes);
        for (size_t j = 0; j < (m->kv_bytes + m->summaries_bytes) / 2; j++)
            record[j] = dtype_bf16_from_f32(random_float(&seed));
    }
}

static void bench_open(struct bench *k, const struct shape *s)
{
    struct reason why;
    struct device_options o = {.act = DTYPE_BF16};
    *k = (struct bench){.s = s};
    if (device_open(&k->d, DEVICE_CUDA, &o, &why) != STATUS_OK) fail_msg("%s", why.text);
    k->op = device_ops(k->d);
    struct dims *m = &k->m;
    *m = (struct dims){.L = 1,
                       .D = 64,
                       .E = s->E,
                       .G = s->G,
                       .Kr = s->Kr,
                       .Qr = s->G * s->Kr,
                       .Hr = s->G * s->Kr,
                       .P = s->P,
                       .B = 64,
                       .W = s->rows,
                       .C = s->context,
                       .n_slots = 1,
                       .n_blocks = s->context / 64,
                       .max_rows = s->rows,
                       .max_spans = 1,
                       .max_out = 1,
                       .act = DTYPE_BF16,
                       .kv = DTYPE_BF16,
                       .summary = SUMMARY_BF16,
                       .attention_scale = 1 / sqrtf((float)s->E),
                       .kv_owner = true};
    kernels_layout(m);
    int pages = s->context / s->P;
    k->n_selected = (int)ceil(s->budget * pages);
    k->span = (struct decode_span){.n_rows = s->rows,
                                   .position = s->context - 1,
                                   .n_select = {k->n_selected},
                                   .n_sink = 1,
                                   .alpha = 0.2f,
                                   .group = SCORE_GROUP_SOFTMAX,
                                   .keep = 1};
    size_t pool_bytes = (size_t)m->n_blocks * m->block_bytes, n_q = (size_t)(s->rows * m->Qr * m->E);
    char *pool = calloc(1, pool_bytes);
    fill_pool(k, pool);
    int32_t *table = calloc((size_t)m->n_blocks, sizeof *table);
    for (int i = 0; i < m->n_blocks; i++) table[i] = (i * 37 + 11) % m->n_blocks;
    float *q = calloc(n_q, sizeof *q);
    uint64_t seed = 9;
    for (size_t i = 0; i < n_q; i++) q[i] = random_float(&seed);
    char *slot = calloc(1, m->slot_bytes); /* every page is new to every row: the most that can move */
    memset(slot + m->output_cache_bytes, 0xff, m->last_loaded_bytes);
    k->kv = (struct kv_layer){upload(k, pool, pool_bytes), upload(k, slot, m->slot_bytes), 0, 0};
    free(slot);
    k->q = upload(k, q, n_q * sizeof *q);
    k->b = (struct batch){.n_rows = s->rows,
                          .n_decode = 1,
                          .n_decode_rows = s->rows,
                          .max_position = k->span.position,
                          .block_table = upload(k, table, (size_t)m->n_blocks * sizeof *table),
                          .decode = upload(k, &k->span, sizeof k->span),
                          .host_decode = &k->span};
    k->part = upload(k, NULL, k->op->attend_part_bytes(k->d, m));
    k->scratch = upload(k, NULL, k->op->select_scratch_bytes(k->d, m));
    k->out = upload(k, NULL, n_q * sizeof(float));
    k->pages = upload(k, NULL, (size_t)(m->Kr * pages) * sizeof(int32_t));
    k->count = upload(k, NULL, (size_t)m->Kr * sizeof(int32_t));
    k->counters = upload(k, NULL, COUNTER_COUNT * sizeof(int64_t));
    free(pool);
    free(table);
    free(q);
    k->stats = fopen(stats_path, "a+"); /* the emulator makes it at the first launch only */
    assert_non_null(k->stats);
    fseek(k->stats, 0, SEEK_END);
}

static double number(const char *line, const char *group, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": {", group);
    const char *at = strstr(line, quoted);
    assert_non_null(at);
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    at = strstr(at, quoted);
    assert_non_null(at);
    return strtod(at + strlen(quoted), NULL);
}

/* The next launch that the emulator wrote down. */
static struct traffic next_launch(struct bench *k)
{
    char line[4096];
    struct traffic t = {0};
    if (!fgets(line, sizeof line, k->stats)) fail_msg("EMU_STATS holds no line for this launch");
    const char *name = strstr(line, "\"kernel\": \"");
    assert_non_null(name);
    sscanf(name + 11, "%63[^\"]", t.kernel);
    t.load = 32 * number(line, "load", "distinct_sectors");
    t.store = 32 * (number(line, "store", "distinct_sectors") + number(line, "atomic", "distinct_sectors"));
    t.requested = 32 * (number(line, "load", "sectors") + number(line, "store", "sectors") +
                        number(line, "atomic", "sectors"));
    return t;
}

/* One line, and the floor. `again`: bytes that blocks read again by design (from L2). */
static void report(struct bench *k, const char *kernel, double must, double again, bool held)
{
    struct traffic t = next_launch(k);
    if (!strstr(t.kernel, kernel)) fail_msg("expected a launch of %s, found %s", kernel, t.kernel);
    double memory = t.load + t.store;
    printf(markdown ? "| %s | %s | %.1f | %.1f | %.3f | %.1f |\n"
                    : "%-28s %-14s %10.1f %10.1f %6.3f %10.1f\n",
           k->s->name, kernel, must / 1024, memory / 1024, memory / must, t.requested / 1024);
    fflush(stdout);
    if (held && memory > allowed * must)
        fail_msg("%s moves %.0f bytes, the floor is %.0f", kernel, memory, must);
    if (held && t.requested > allowed * (must + again))
        fail_msg("%s asks for %.0f bytes; each once and what is read again by design is %.0f", kernel,
                 t.requested, must + again);
}

static void close_bench(struct bench *k)
{
    fclose(k->stats);
    device_close(k->d); /* with the process goes the rest */
}

/* As attention.cuh cuts a list. */
static int splits_of(const struct bench *k)
{
    int tokens = k->n_selected * k->s->P, most = 256 / k->s->Kr, fine = (tokens + 127) / 128;
    most = most < 16 ? 16 : most > 128 ? 128 : most;
    most = fine < most ? fine : most;
    int each = (tokens + most - 1) / most;
    each = (each + 63) / 64 * 64 < 128 ? 128 : (each + 63) / 64 * 64;
    int pages = (each + k->s->P - 1) / k->s->P;
    return (k->n_selected + pages - 1) / pages;
}

static void step(struct bench *k)
{
    const struct shape *s = k->s;
    const struct dims *m = &k->m;
    double Kr = s->Kr, G = s->G, E = s->E, rows = s->rows, pages = s->context / s->P,
           selected = k->n_selected;
    double table = 4.0 * s->context / 64, heads = Kr * G;

    k->op->select(k->d, k->pages, k->count, k->q, &k->kv, &k->b, k->scratch, m);
    k->op->sync(k->d);
    report(k, "score", Kr * (pages * (double)m->summary_bytes + G * E * 4 + pages * G * 4) + table,
           Kr * (pages / 64 + 1) * (G * E * 4 + 8 * 256) + Kr * pages / 32 * 64,
           true); /* 256: a warp's lookups */
    report(k, "choose", Kr * (pages * G * 4 + pages / 64 * G * 8 + selected * 4),
           Kr * (32 * 512 + pages / 64 * G * 8 + selected * 32),
           true); /* 32: a page of the list is a sector's write */

    int splits = splits_of(k);
    double parts = Kr * G * rows * splits * (E + 2) * 4, queries = heads * rows * E * 4;
    k->op->attend(k->d, k->part, k->q, &k->kv, k->pages, k->count, &k->b, m);
    k->op->sync(k->d);
    report(k, "attend", Kr * selected * (s->P * E * 4 + 4 + 4) + queries + parts + table,
           splits * queries + Kr * selected * 64 + Kr * splits * 4 * 512, true); /* 512: a warp's lookups */
    k->op->merge(k->d, k->out, k->part, &k->kv, k->pages, k->count, k->counters, &k->b, m);
    k->op->sync(k->d);
    report(k, "merge",
           parts + heads * ((rows - 1) * 2 + 1) * (E + 1) * 4 + heads * rows * E * 2 + Kr * selected * 12 +
               table,
           0, false);
}

/* The other ops of a decode step: a 70B model's shard of 1/8. */
static void dense_ops(struct bench *k)
{
    enum { D = 8192, F = 3584, V = 16032, T = 2 };
    struct dims m = k->m;
    m.D = D;
    m.Fr = F;
    m.Vr = V;
    int32_t token[T] = {5, 16000}, row = 1;
    struct batch b = {.n_rows = T,
                      .n_out = 1,
                      .token = upload(k, token, sizeof token),
                      .out_row = upload(k, &row, sizeof row)};
    struct matrix table = {upload(k, NULL, (size_t)V * D * 2), DTYPE_BF16, V, D};
    float *x = upload(k, NULL, T * D * 4), *delta = upload(k, NULL, T * D * 4),
          *weight = upload(k, NULL, D * 4);
    float *gate_up = upload(k, NULL, T * 2 * F * 4), *logits = upload(k, NULL, V * 4);
    void *h = upload(k, NULL, T * D * 2);
    struct best *best = upload(k, NULL, sizeof *best);
    k->op->embed(k->d, x, &b, &table, &m);
    k->op->add_norm(k->d, h, x, delta, weight, T, &m);
    k->op->gather(k->d, delta, x, D * sizeof(float), &b);
    k->op->silu_mul(k->d, h, gate_up, T, &m);
    k->op->argmax(k->d, best, logits, 1, &m);
    k->op->sync(k->d);
    report(k, "embed_rows", T * D * (2 + 4.0), 0, true);
    report(k, "norm_rows", T * D * (4 + 4 + 4 + 2.0) + D * 4, (T - 1) * D * 4.0, true);
    report(k, "gather_rows", D * (4 + 4.0), 0, true);
    report(k, "silu_mul", T * F * (8 + 2.0), 0, true);
    report(k, "argmax_rows", V * 4.0, 0, true);
}

/* Rope, the write of keys and values, and the summaries of the touched pages; then a prompt chunk. */
static void store_and_prompt(struct bench *k)
{
    const struct shape *s = k->s;
    struct dims m = k->m;
    double E = s->E, rows = s->rows, width = (s->G + 2.0) * s->Kr * E, heads = s->G * s->Kr;
    float *qkv = upload(k, NULL, (size_t)(rows * width) * 4), *rope = upload(k, NULL, (size_t)(rows * E) * 4);
    k->op->rope_store(k->d, k->q, qkv, rope, NULL, NULL, &k->kv, &k->b, &m);
    k->op->sync(k->d);
    /* in: qkv, angles, the page's other keys; out: q, keys, values, the summary */
    report(k, "rope_store",
           rows * width * 4 + rows * E * 4 + s->Kr * (s->P - rows) * E * 2 + rows * heads * E * 4 +
               rows * s->Kr * E * 4 + s->Kr * E * 4,
           0, false);

    enum { CHUNK = 64 };
    struct prompt_span span = {0, 0, CHUNK, s->context / 4 - CHUNK};
    size_t n_q = (size_t)(CHUNK * heads * E);
    float *q = upload(k, NULL, n_q * 4);
    struct batch b = k->b;
    b.n_decode = b.n_decode_rows = 0;
    b.n_rows = CHUNK;
    b.n_prompt = 1;
    b.prompt = upload(k, &span, sizeof span);
    b.host_prompt = &span;
    k->op->attend_prompt(k->d, upload(k, NULL, n_q * 2), q, &k->kv, &b, &m);
    k->op->sync(k->d);
    report(k, "attend_prompt", n_q * (4.0 + 2) + s->Kr * (s->context / 4) * E * 4 + s->context / 4 / 64 * 4,
           0, false);
}

static void the_step_is_at_the_floor(void **state)
{
    (void)state;
    if (!stats_path) skip();
    if (markdown)
        printf("| shape | kernel | must, KiB | memory, KiB | ratio | requests, KiB "
               "|\n|---|---|---|---|---|---|\n");
    for (int i = 0; i < SHAPES; i++) {
        struct bench k;
        bench_open(&k, &shapes[i]);
        step(&k);
        if (i == 0) store_and_prompt(&k);
        if (i == 0) dense_ops(&k);
        close_bench(&k);
    }
}

int main(int argc, char **argv)
{
    staged_arguments(&argc, argv);
    staged_cuda = true;
    markdown = argc > 1 && !strcmp(argv[1], "--markdown");
    stats_path = getenv("EMU_STATS");
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_step_is_at_the_floor)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
