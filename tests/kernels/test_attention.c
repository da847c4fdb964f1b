/* test_attention.c - the attention ops against the reference of attention_world.h, for every instruction set
 * that this machine runs or on the CUDA device, and the properties that hold to the bit.
 *
 *   test_attention [--device cuda]            all tests
 *   test_attention [--device cuda] --bench    GB/s of attend and select beside a streaming read
 *                                             (attention_bench.c) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention_bench.h"
#include "attention_world.h"
#include "sample.h"
#include "staged.h"

/* Odd shapes: uneven heads, replicated kv heads (Hr < Qr), heads that split a group, every page size. */
static const struct world_config shapes[] = {
    {.E = 64,
     .G = 4,
     .Kr = 2,
     .Hr = 2,
     .head_off = 1,
     .P = 8,
     .B = 64,
     .W = 4,
     .C = 512,
     .n_slots = 3,
     .kv = DTYPE_BF16,
     .unowned = true,
     .stale = true},
    {.E = 64, .G = 3, .Kr = 2, .P = 16, .B = 64, .W = 4, .C = 512, .n_slots = 3, .kv = DTYPE_F32},
    {.E = 2,
     .G = 1,
     .Kr = 1,
     .P = 4,
     .B = 32,
     .W = 2,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_F32,
     .stale = true},
    {.E = 6,
     .G = 5,
     .Kr = 3,
     .P = 8,
     .B = 32,
     .W = 8,
     .C = 512,
     .n_slots = 3,
     .kv = DTYPE_BF16,
     .norms = true},
    {.E = 80,
     .G = 2,
     .Kr = 2,
     .P = 32,
     .B = 128,
     .W = 3,
     .C = 640,
     .n_slots = 2,
     .kv = DTYPE_F16,
     .stale = true},
    {.E = 96,
     .G = 7,
     .Kr = 1,
     .P = 16,
     .B = 32,
     .W = 2,
     .C = 384,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .act = DTYPE_BF16},
    {.E = 128,
     .G = 8,
     .Kr = 1,
     .P = 4,
     .B = 64,
     .W = 8,
     .C = 320,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .norms = true},
    {.E = 64,
     .G = 4,
     .Kr = 2,
     .Hr = 3,
     .head_off = 2,
     .P = 16,
     .B = 64,
     .W = 2,
     .C = 512,
     .n_slots = 2,
     .kv = DTYPE_F16,
     .sliding_window = 100},
    {.E = 40,
     .G = 1,
     .Kr = 3,
     .P = 4,
     .B = 32,
     .W = 5,
     .C = 512,
     .n_slots = 3,
     .kv = DTYPE_F32,
     .sliding_window = 37,
     .stale = true},
    {.E = 256,
     .G = 2,
     .Kr = 1,
     .P = 16,
     .B = 64,
     .W = 4,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .act = DTYPE_BF16,
     .sliding_window = 16},
    {.E = 64,
     .G = 3,
     .Kr = 3,
     .P = 4,
     .B = 64,
     .W = 2,
     .C = 640,
     .n_slots = 3,
     .kv = DTYPE_BF16,
     .codes = SUMMARY_Q4,
     .stale = true},
    {.E = 6,
     .G = 2,
     .Kr = 2,
     .P = 4,
     .B = 4,
     .W = 3,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_F32,
     .codes = SUMMARY_Q4},
    {.E = 128,
     .G = 4,
     .Kr = 1,
     .P = 8,
     .B = 32,
     .W = 2,
     .C = 512,
     .n_slots = 2,
     .kv = DTYPE_F16,
     .codes = SUMMARY_Q4,
     .sliding_window = 70},
    {.E = 256,
     .G = 2,
     .Kr = 1,
     .P = 4,
     .B = 32,
     .W = 2,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .codes = SUMMARY_Q4,
     .stale = true},
    {.E = 64,
     .G = 4,
     .Kr = 2,
     .Hr = 3,
     .head_off = 2,
     .P = 8,
     .B = 64,
     .W = 4,
     .C = 512,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .codes = SUMMARY_Q8},
    {.E = 80,
     .G = 7,
     .Kr = 1,
     .P = 4,
     .B = 16,
     .W = 2,
     .C = 320,
     .n_slots = 2,
     .kv = DTYPE_F32,
     .codes = SUMMARY_Q8,
     .stale = true},
    {.E = 2,
     .G = 1,
     .Kr = 3,
     .P = 16,
     .B = 32,
     .W = 2,
     .C = 512,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .codes = SUMMARY_Q8,
     .sliding_window = 100},
    /* More queries than a tile of 64, and as many. */
    {.E = 64, .G = 9, .Kr = 1, .P = 32, .B = 32, .W = 8, .C = 256, .n_slots = 2, .kv = DTYPE_BF16},
    {.E = 128,
     .G = 16,
     .Kr = 1,
     .P = 16,
     .B = 64,
     .W = 9,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_F16,
     .act = DTYPE_F16,
     .sliding_window = 70},
    {.E = 80,
     .G = 4,
     .Kr = 1,
     .P = 4,
     .B = 8,
     .W = 16,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_BF16,
     .act = DTYPE_BF16},
    {.E = 96,
     .G = 1,
     .Kr = 2,
     .P = 8,
     .B = 64,
     .W = 1,
     .C = 256,
     .n_slots = 2,
     .kv = DTYPE_F16,
     .norms = true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static bool runs(enum cpu_isa isa)
{
    struct device *d;
    if (staged_cuda) return isa == CPU_ISA_PORTABLE;
    struct device_options o = {.n_threads = 1, .isa = isa};
    struct reason why;
    if (device_open(&d, DEVICE_CPU, &o, &why) != STATUS_OK) return false;
    device_close(d);
    return true;
}

static struct decode_span random_policy(struct world *w, int slot)
{
    struct decode_span s = {.alpha = 1, .keep = w->m.W > 1, .n_sink = world_below(w, 3)};
    int pages = w->n_tokens[slot] / w->m.P + 1;
    int n_select = 1 + world_below(w, pages > 1 ? pages / 2 + 1 : 1);
    if (world_below(w, 8) == 0) n_select = 0;
    s.n_select[0] = s.n_select[1] = n_select;
    s.alpha = world_below(w, 2) ? 1.0f : 0.2f;
    s.group = world_below(w, SCORE_GROUP_COUNT);
    s.dense_layers = world_below(w, 10) == 0;
    return s;
}

/* One step in which every slot may get a prompt chunk or a decode span. */
static void random_step(struct world *w)
{
    world_begin(w);
    for (int slot = 0; slot < w->m.n_slots; slot++) {
        int room = w->m.C - w->n_tokens[slot];
        bool started = w->n_tokens[slot] > w->first_decode[slot];
        if (room < 1 || w->n_tokens[slot] == 0 || (!started && world_below(w, 3))) continue;
        if (world_below(w, 6) == 0) continue;
        struct decode_span how = random_policy(w, slot);
        int rows = how.keep ? 1 + world_below(w, world_rows_of(w, slot)) : 1;
        /* A row that was not there to be revised in the last step may still be: its cache entry is there. */
        world_add_decode(w, slot, rows, &how);
    }
    for (int slot = 0; slot < w->m.n_slots; slot++) {
        int room = w->m.C - w->n_tokens[slot];
        if (w->n_tokens[slot] > w->first_decode[slot] || room < 2) continue;
        bool decoded = false;
        for (int i = 0; i < w->b.n_decode; i++) decoded |= w->decode[i].slot == slot;
        int most = room / 2 < 150 ? room / 2 : 150;
        if (!decoded) world_add_prompt(w, slot, 1 + world_below(w, most));
    }
    world_run(w, true);
}

static void check_steps(enum cpu_isa isa)
{
    if (!runs(isa)) skip();
    int steps = staged_cuda ? 16 : 40; /* the emulator takes its time */
    for (int i = 0; i < N_SHAPES; i++) {
        struct world w;
        struct world_config c = shapes[i];
        if (!in_sample(i + (int)isa)) continue;
        c.isa = isa;
        c.seed = (uint64_t)i + 1;
        c.n_threads = 1 + i % 3;
        world_open(&w, &c);
        for (int step = 0; step < steps; step++) random_step(&w);
        world_close(&w);
    }
}

static void test_steps_portable(void **state)
{
    (void)state;
    check_steps(CPU_ISA_PORTABLE);
}

static void test_steps_avx2(void **state)
{
    (void)state;
    check_steps(CPU_ISA_AVX2);
}

static void test_steps_avx512(void **state)
{
    (void)state;
    check_steps(CPU_ISA_AVX512);
}

static void test_steps_amx(void **state)
{
    (void)state;
    check_steps(CPU_ISA_AMX);
}

/* A step with empty spans, and one row at position 0. */
static void test_first_token(void **state)
{
    (void)state;
    struct world w;
    struct world_config c = shapes[0];
    world_open(&w, &c);
    world_begin(&w);
    world_run(&w, true);
    struct decode_span how = {.n_select = {3, 3}, .keep = 1};
    for (int i = 0; i < 20; i++) {
        world_begin(&w);
        world_add_decode(&w, 1, world_rows_of(&w, 1), &how);
        world_run(&w, true);
    }
    world_close(&w);
}

/* A context of n tokens whose prompt nobody attends to. */
static void open_long(struct world *w, struct world_config c, int n)
{
    c.n_slots = 1;
    c.n_threads = 2;
    c.seed = 5;
    c.no_prompt = true;
    world_open(w, &c);
    while (w->n_tokens[0] < n) {
        world_begin(w);
        world_add_prompt(w, 0, n - w->n_tokens[0] < WORLD_MAX_ROWS ? n - w->n_tokens[0] : WORLD_MAX_ROWS);
        world_run(w, false);
    }
}

static void decode_long(struct world *w, int n_select, enum score_group group)
{
    struct decode_span how = {
        .n_select = {n_select}, .n_sink = 1, .alpha = 0.2f, .keep = w->m.W > 1, .group = group};
    int rows = world_rows_of(w, 0);
    world_begin(w);
    world_add_decode(w, 0, rows < 2 ? rows : 2, &how);
    world_run(w, true);
}

/* Several splits of every size, thousands of tokens; with many kv heads splits of more pages than CUDA looks up at once,
 * twice over (attend.cu: WINDOW). */
static void test_long_context(void **state)
{
    (void)state;
    static const struct world_config configs[] = {
        {.E = 32, .G = 2, .Kr = 1, .P = 4, .B = 64, .W = 2, .C = 11008, .kv = DTYPE_F32},
        {.E = 64, .G = 2, .Kr = 1, .P = 16, .B = 64, .W = 2, .C = 11008, .kv = DTYPE_BF16},
        {.E = 64, .G = 1, .Kr = 16, .P = 4, .B = 64, .W = 2, .C = 16960, .kv = DTYPE_BF16},
    };
    for (int i = 0; i < 3; i++) {
        struct world w;
        open_long(&w, configs[i], configs[i].C - 450);
        static const int selected[] = {0, 3, 150, 0, 1000};
        for (int step = i < 2 ? 0 : 2; step < 5; step++) decode_long(&w, selected[step], SCORE_GROUP_SOFTMAX);
        world_close(&w);
    }
}

/* More pages than any scratch holds at once. */
static void test_many_pages(void **state)
{
    (void)state;
    static const int selected[] = {1, 4099, 19000};
    for (int G = 2; G <= 4; G += 2) { /* CUDA: more scores than choose reads itself with 4 */
        struct world w;
        struct world_config c = {
            .E = 2, .G = G, .Kr = 1, .P = 4, .B = 64, .W = 1, .C = 84032, .kv = DTYPE_BF16};
        open_long(&w, c, 83900);
        for (int i = 0; i < 3; i++)
            for (enum score_group group = 0; group < SCORE_GROUP_COUNT; group++)
                decode_long(&w, selected[i], group);
        world_close(&w);
    }
}

/* Scores that deceive a sample of them: of 8192 pages only those score high that the CPU device looks at first
 * (select.c: one vector in 16). */
static void test_deceived_sample(void **state)
{
    (void)state;
    static const int selected[] = {300, 2000, 7000};
    struct world w;
    struct world_config c = {
        .E = 2, .G = 2, .Kr = 1, .P = 4, .B = 64, .W = 1, .C = 32832, .kv = DTYPE_BF16, .loud_pages = 256};
    open_long(&w, c, 32760);
    for (int i = 0; i < 3; i++) decode_long(&w, selected[i], SCORE_GROUP_MAX);
    for (int i = 0; i < 3; i++) decode_long(&w, selected[i], SCORE_GROUP_SOFTMAX);
    world_close(&w);
}

/* A row's output after its window has passed is attention over the union of the pages that its steps loaded.
 */
static void test_union(void **state)
{
    (void)state;
    struct world_config c = {.E = 16,
                             .G = 2,
                             .Kr = 2,
                             .P = 4,
                             .B = 32,
                             .W = 5,
                             .C = 512,
                             .n_slots = 1,
                             .kv = DTYPE_F32,
                             .fixed_rows = true,
                             .key_scale = 2,
                             .seed = 3};
    struct world w;
    world_open(&w, &c);
    int n_pages = w.m.C / w.m.P, Kr = w.m.Kr, prompt = 90, end = 400;
    bool *loaded = calloc((size_t)(w.m.C * Kr * n_pages), 1); /* (position, Kr, page) */
    bool *seen = calloc((size_t)w.m.C, 1);
    world_begin(&w);
    world_add_prompt(&w, 0, prompt);
    world_run(&w, false);
    while (w.n_tokens[0] < end) {
        struct decode_span how = random_policy(&w, 0);
        how.n_select[0] = 3 + world_below(&w, 4);
        how.dense_layers = 0;
        world_begin(&w);
        int rows = world_rows_of(&w, 0);
        world_add_decode(&w, 0, rows, &how);
        world_run(&w, false);
        int p = w.n_tokens[0] - 1, n;
        for (int g = 0; g < Kr; g++) {
            const int32_t *page = world_pages(&w, 0, g, &n);
            for (int r = p - rows + 1; r <= p; r++)
                for (int i = 0; i < n; i++) loaded[(r * Kr + g) * n_pages + page[i]] = true;
        }
        int r = p - rows + 1; /* the oldest row */
        for (int h = 0; h < w.m.Qr; h++) {
            double o[16];
            int g = h / w.m.G;
            for (int t = 0; t <= r; t++) seen[t] = loaded[(r * Kr + g) * n_pages + t / w.m.P];
            world_attend(&w, o, NULL, w.q + h * w.m.E, 0, g, seen, r + 1);
            for (int e = 0; e < w.m.E; e++) assert_float_equal(world_out(&w, 0, h * w.m.E + e), o[e], 3e-5);
        }
    }
    free(loaded);
    free(seen);
    world_close(&w);
}

/* --- to the bit --- */

struct trace {
    float *out;
    size_t n;
};

static void trace_rows(struct trace *t, const struct world *w, int row0, int n_rows)
{
    size_t width = (size_t)(w->m.Hr * w->m.E), n = (size_t)n_rows * width;
    t->out = realloc(t->out, (t->n + n) * sizeof(float));
    assert_non_null(t->out);
    memcpy(t->out + t->n, w->out + (size_t)row0 * width, n * sizeof(float));
    t->n += n;
}

static void assert_same(struct trace *a, struct trace *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->out, b->out, a->n * sizeof(float));
    free(a->out);
    free(b->out);
    *a = *b = (struct trace){0};
}

/* Slot 0 of a world: a prompt in chunks, then decode steps; other slots may be busy beside it. */
static struct trace play(struct world_config c, int chunk, int rows, const struct decode_span *how, bool busy)
{
    struct world w;
    struct trace t = {0};
    c.fixed_rows = true;
    world_open(&w, &c);
    while (w.n_tokens[0] < 230) {
        int n = 230 - w.n_tokens[0] < chunk ? 230 - w.n_tokens[0] : chunk;
        world_begin(&w);
        if (busy) world_add_prompt(&w, 1, 3);
        world_add_prompt(&w, 0, n);
        world_run(&w, false);
        trace_rows(&t, &w, busy ? 3 : 0, n);
    }
    for (int i = 0; i < 20; i++) {
        int n = world_rows_of(&w, 0) < rows ? world_rows_of(&w, 0) : rows;
        world_begin(&w);
        if (busy) world_add_decode(&w, 1, world_rows_of(&w, 1), how);
        int row0 = w.b.n_rows;
        world_add_decode(&w, 0, n, how);
        world_run(&w, false);
        trace_rows(&t, &w, row0 + n - 1, 1);
    }
    world_close(&w);
    return t;
}

static void check_bits(enum cpu_isa isa)
{
    if (!runs(isa)) skip();
    for (int i = 0; i < N_SHAPES; i++) {
        struct world_config c = shapes[i];
        if (!staged_cuda && c.W * c.G > 64) continue; /* nothing new on a CPU */
        if (c.act != DTYPE_F32) c.act = DTYPE_F32;
        if (c.C < 256 || c.n_slots < 2) continue;
        if (!in_sample(i + (int)isa)) continue;
        c.isa = isa;
        c.seed = 11;
        c.n_threads = 1;
        struct decode_span retro = {
            .n_select = {5, 3}, .n_sink = 1, .alpha = 0.2f, .keep = 1, .group = SCORE_GROUP_SOFTMAX};
        struct decode_span all = retro, dense = {.dense_layers = 1, .keep = 0};
        all.n_select[0] = all.n_select[1] = 100000;
        struct trace base = play(c, 64, c.W, &retro, false), other;
        for (int threads = 2; threads <= staged_threads(); threads++) {
            c.n_threads = threads;
            other = play(c, 64, c.W, &retro, false);
            assert_int_equal(base.n, other.n);
            assert_memory_equal(base.out, other.out, base.n * sizeof(float));
            free(other.out);
        }
        other = play(c, 230, c.W, &retro, true); /* another chunking, other sequences beside it */
        assert_int_equal(base.n, other.n);
        assert_memory_equal(base.out, other.out, base.n * sizeof(float));
        free(other.out);
        other = play(c, 7, c.W, &retro, false);
        assert_same(&base, &other);
        base = play(c, 64, 1, &dense, false); /* a budget of 1 is dense attention, for every window */
        other = play(c, 64, c.W, &all, true);
        assert_same(&base, &other);
    }
}

static void test_bits_portable(void **state)
{
    (void)state;
    check_bits(CPU_ISA_PORTABLE);
}

static void test_bits_avx2(void **state)
{
    (void)state;
    check_bits(CPU_ISA_AVX2);
}

static void test_bits_avx512(void **state)
{
    (void)state;
    check_bits(CPU_ISA_AVX512);
}

static void test_bits_amx(void **state)
{
    (void)state;
    check_bits(CPU_ISA_AMX);
}

/* A row's output does not depend on how many older rows its span has; neither does a revised row's. */
static void test_rows_alone(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        struct world a, b;
        struct world_config c = shapes[i];
        c.fixed_rows = true;
        c.seed = 21;
        if (c.W < 3) continue;
        world_open(&a, &c);
        world_open(&b, &c);
        struct decode_span how = {.n_select = {4, 3}, .alpha = 1, .keep = 1};
        struct world *both[] = {&a, &b};
        for (int k = 0; k < 2; k++) {
            struct world *w = both[k];
            world_begin(w);
            world_add_prompt(w, 0, 100);
            world_run(w, false);
            for (int step = 0; step < 6; step++) {
                int rows = world_rows_of(w, 0);
                if (step == 5) rows = k ? 2 : rows;
                world_begin(w);
                world_add_decode(w, 0, rows, &how);
                world_run(w, false);
            }
        }
        size_t row = (size_t)(a.m.Hr * a.m.E) * dtype_bytes(c.act);
        assert_memory_equal((char *)a.out + (size_t)(a.b.n_rows - 2) * row, b.out, 2 * row);
        world_close(&a);
        world_close(&b);
    }
}

/* Equal pages: the lower ones are chosen. */
static void test_ties(void **state)
{
    (void)state;
    for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa < CPU_ISA_COUNT; isa++) {
        if (!runs(isa)) continue;
        struct world w;
        struct world_config c = {.E = 64,
                                 .G = 3,
                                 .Kr = 1,
                                 .P = 8,
                                 .B = 32,
                                 .W = 1,
                                 .C = 1024,
                                 .n_slots = 1,
                                 .kv = DTYPE_BF16,
                                 .isa = isa,
                                 .key_scale = 1e-30f,
                                 .seed = 1};
        world_open(&w, &c);
        while (w.n_tokens[0] < 900) {
            world_begin(&w);
            world_add_prompt(&w, 0, 100);
            memset(w.qkv, 0, 100 * 5 * 64 * sizeof(float));
            world_run(&w, false);
        }
        for (int group = 0; group < SCORE_GROUP_RECENT; group++) {
            struct decode_span how = {.n_select = {20}, .n_sink = 3, .alpha = 1, .group = group};
            world_begin(&w);
            world_add_decode(&w, 0, 1, &how);
            world_run(&w, false);
            int n;
            const int32_t *page = world_pages(&w, 0, 0, &n);
            assert_int_equal(n, 20);
            for (int i = 0; i < 19; i++) assert_int_equal(page[i], i);
            assert_int_equal(page[19], w.decode[0].position / 8);
        }
        world_close(&w);
    }
}

int main(int argc, char **argv)
{
    staged_arguments(&argc, argv);
    if (argc > 1 && !strcmp(argv[1], "--bench")) return attention_bench(argc - 2, argv + 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_portable),  cmocka_unit_test(test_steps_avx2),
        cmocka_unit_test(test_steps_avx512),    cmocka_unit_test(test_steps_amx),
        cmocka_unit_test(test_first_token),     cmocka_unit_test(test_union),
        cmocka_unit_test(test_rows_alone),      cmocka_unit_test(test_ties),
        cmocka_unit_test(test_bits_portable),   cmocka_unit_test(test_bits_avx2),
        cmocka_unit_test(test_bits_avx512),     cmocka_unit_test(test_bits_amx),
        cmocka_unit_test(test_long_context),    cmocka_unit_test(test_many_pages),
        cmocka_unit_test(test_deceived_sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
