/* test_ops.c - the ops that are neither products nor attention, each against its formula in double, on the
 * device of --device: memory, embed, rope_table, add_norm, gather, silu_mul, argmax, top_k, convert; and the trace. */
#define _GNU_SOURCE
#include <unistd.h>

#include "kernels/trace.h"
#include "tests/kernels/guard.h"
#include "tests/kernels/staged.h"

static const int sizes[] = {1, 2, 3, 7, 8, 16, 31, 64, 65, 512, 4099};
enum { SIZES = 11, ISAS = 4 };
static const enum cpu_isa isas[ISAS] = {CPU_ISA_PORTABLE, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AMX};

/* One rounding of a two-byte type, relative; 0 for f32. */
static double rounding(enum dtype t) { return t == DTYPE_F32 ? 0 : t == DTYPE_BF16 ? 0x1p-8 : 0x1p-11; }

static float *random_floats(size_t n, uint64_t seed, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_float(&seed) * scale;
    return x;
}

static void memory_is_zero_aligned_and_moved(void **state)
{
    (void)state;
    if (staged_cuda) skip(); /* cuda_device.c */
    struct device *d = cpu_device(CPU_ISA_AUTO, 1, DTYPE_F32);
    const struct ops *ops = device_ops(d);
    static const size_t bytes[] = {0, 1, 255, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5000000};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        size_t n = bytes[i];
        unsigned char *a = ops->mem_alloc(d, n), *b = ops->host_alloc(d, n);
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal((uintptr_t)a % 256, 0);
        for (size_t j = 0; j < n; j++) assert_true(a[j] == 0 && b[j] == 0);
        for (size_t j = 0; j < n; j++) b[j] = (unsigned char)(j * 31 + 1);
        ops->upload(d, a, b, n);
        ops->fill(d, b, 0x5a, n);
        for (size_t j = 0; j < n; j++) assert_true(b[j] == 0x5a);
        ops->download(d, b, a, n);
        ops->sync(d);
        for (size_t j = 0; j < n; j++) assert_true(b[j] == (unsigned char)(j * 31 + 1));
        ops->fill(d, a, 0, n);
        ops->copy(d, a, b, n);
        assert_memory_equal(a, b, n);
        ops->mem_free(d, a, n);
        ops->host_free(d, b, n);
    }
    assert_null(ops->mem_alloc(d, SIZE_MAX / 2));
    assert_null(ops->mem_alloc(d, SIZE_MAX));
    ops->mem_free(d, NULL, 0);
    assert_null(ops->stream(d));
    assert_string_equal(ops->name, "cpu");
    device_close(d);
}

static void embed_gathers_this_ranks_rows(void **state)
{
    (void)state;
    enum { V = 67, FIRST = 1000 };
    static const int32_t token[] = {1000, 1066, 999, 1067,      1031,      1032,
                                    0,    1001, -1,  INT32_MAX, INT32_MIN, 1065};
    enum { T = sizeof token / sizeof *token };
    for (int threads = 1; threads <= staged_threads(); threads++)
        for (enum dtype t = 0; t < DTYPE_COUNT; t++)
            for (int i = 0; i < SIZES; i++) {
                struct device *d = staged_device(CPU_ISA_AUTO, threads, DTYPE_F32);
                const struct ops *ops = device_ops(d);
                struct dims m = {.D = sizes[i], .Vr = V, .vocab_first = FIRST};
                struct batch b = {.n_rows = T, .token = token};
                size_t D = (size_t)m.D;
                float *weights = random_floats(V * D, (uint64_t)i, 2);
                struct matrix w = {malloc(ops->matrix_bytes(d, t, V, m.D)), t, V, m.D};
                ops->matrix_put(d, &w, 0, V, weights, DTYPE_F32, D);
                struct guard g;
                float *x = guard_open(&g, T * D * sizeof *x);
                ops->embed(d, x, &b, &w, &m);
                for (size_t r = 0; r < T; r++)
                    for (size_t j = 0; j < D; j++) {
                        int64_t row = (int64_t)token[r] - FIRST;
                        uint32_t rounded = 0;
                        if (row >= 0 && row < V) set_element(&rounded, 0, t, weights[(size_t)row * D + j]);
                        assert_true(x[r * D + j] == element(&rounded, 0, t));
                    }
                guard_close(&g);
                free(weights);
                free(w.data);
                device_close(d);
            }
}

static void rope_table_rounds_the_angle_to_f32(void **state)
{
    (void)state;
    static const int32_t position[] = {0, 1, 2, 63, 4095, 131071, 1 << 20};
    enum { T = sizeof position / sizeof *position };
    struct device *d = staged_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    for (int E = 2; E <= 130; E += 32) {
        struct dims m = {.E = E};
        struct batch b = {.n_rows = T, .position = position};
        float inv_freq[65], factor = 1.25f;
        for (int i = 0; i < E / 2; i++) inv_freq[i] = (float)pow(10000, -2.0 * i / E);
        struct guard g;
        float *table = guard_open(&g, (size_t)T * (size_t)E * sizeof *table);
        device_ops(d)->rope_table(d, table, &b, inv_freq, factor, &m);
        for (int r = 0; r < T; r++)
            for (int i = 0; i < E / 2; i++) {
                float angle = (float)position[r] * inv_freq[i];
                const float *got = table + (r * (E / 2) + i) * 2;
                assert_true(close_to(got[0], cos(angle) * 1.25, 2e-7));
                assert_true(close_to(got[1], sin(angle) * 1.25, 2e-7));
            }
        guard_close(&g);
    }
    device_close(d);
}

/* Elements of h (n_rows,D) that are wrong for rows x + delta. */
static int wrong_norms(const void *h, const float *x, const float *delta, const float *weight, int n_rows,
                       const struct dims *m)
{
    int wrong = 0;
    size_t D = (size_t)m->D;
    for (int i = 0; i < n_rows; i++) {
        size_t at = (size_t)i * D;
        double squares = 0;
        for (size_t j = 0; j < D; j++) {
            double v = delta ? x[at + j] + delta[at + j] : x[at + j]; /* the f32 sum is the stored x */
            squares += v * v;
        }
        double inverse = 1 / sqrt(squares / m->D + m->norm_eps);
        for (size_t j = 0; j < D; j++) {
            double v = delta ? x[at + j] + delta[at + j] : x[at + j], want = v * inverse * weight[j];
            double tolerance =
                fabs(want) * (1e-6 + rounding(m->act)) + (m->act == DTYPE_F16 ? 0x1p-24 : 1e-37);
            wrong += !close_to(element(h, at + j, m->act), want, tolerance);
        }
    }
    return wrong;
}

static void check_norms(struct device *d, int D, int T, enum dtype act, bool with_delta)
{
    const struct ops *ops = device_ops(d);
    struct dims m = {.D = D, .norm_eps = 1e-5f, .act = act};
    size_t n = (size_t)T * (size_t)D;
    float *x0 = random_floats(n, 1, 3), *delta = with_delta ? random_floats(n, 2, 2) : NULL;
    float *weight = random_floats((size_t)D, 3, 1);
    struct guard gx, gh;
    float *x = guard_open_skewed(&gx, n * sizeof *x, 1);
    void *h = guard_open(&gh, n * dtype_bytes(act));
    memcpy(x, x0, n * sizeof *x);
    ops->add_norm(d, h, x, delta, weight, T, &m);
    assert_int_equal(wrong_norms(h, x0, delta, weight, T, &m), 0);
    for (size_t i = 0; i < n; i++) assert_true(x[i] == (delta ? x0[i] + delta[i] : x0[i]));
    /* The same row gives the same bits alone. */
    size_t row_bytes = (size_t)D * dtype_bytes(act);
    memcpy(x, x0, n * sizeof *x);
    struct guard g1;
    void *one = guard_open(&g1, row_bytes);
    for (int r = 0; r < T; r += 1 + T / 5) {
        size_t at = (size_t)r * (size_t)D;
        ops->add_norm(d, one, x + at, delta ? delta + at : NULL, weight, 1, &m);
        assert_memory_equal(one, (char *)h + (size_t)r * row_bytes, row_bytes);
    }
    if (D > 1 && act == DTYPE_F32) {
        x0[0] += 1; /* the comparison must notice (one element alone is normed to its sign) */
        assert_true(wrong_norms(h, x0, delta, weight, T, &m) > 0);
    }
    guard_close_skewed(&gx, 1);
    guard_close(&gh);
    guard_close(&g1);
    free(x0);
    free(delta);
    free(weight);
}

static void norms_are_right(void **state)
{
    (void)state;
    static const int rows[] = {1, 3, 7, 65};
    for (int threads = 1; threads <= staged_threads(); threads++) {
        for (enum dtype act = 0; act < DTYPE_COUNT; act++) {
            struct device *d = staged_device(CPU_ISA_AUTO, threads, act);
            for (int i = 0; i < SIZES; i++)
                for (int r = 0; r < 4; r++)
                    for (int delta = 0; delta < 2; delta++) check_norms(d, sizes[i], rows[r], act, delta);
            device_close(d);
        }
    }
}

/* Any order, and rows that come twice. */
static void gathered_rows_are_copies(void **state)
{
    (void)state;
    enum { T = 9, OUT = 5 };
    int32_t row[OUT] = {T - 1, 0, T / 2, T - 1, 3};
    struct batch b = {.n_rows = T, .n_out = OUT, .out_row = row};
    struct device *d = staged_device(CPU_ISA_AUTO, 1, DTYPE_F32);
    for (int i = 0; i < SIZES; i++) {
        size_t n = (size_t)sizes[i], row_bytes = n * sizeof(float);
        struct guard g;
        float *from = random_floats(T * n, 7, 1), *to = guard_open(&g, OUT * row_bytes);
        device_ops(d)->gather(d, to, from, row_bytes, &b);
        for (int r = 0; r < OUT; r++)
            assert_memory_equal(to + (size_t)r * n, from + (size_t)row[r] * n, row_bytes);
        guard_close(&g);
        free(from);
    }
    device_close(d);
}

static double silu(double g, double u) { return g / (1 + exp(-g)) * u; }

static int wrong_silu(const void *out, const float *gate_up, int T, const struct dims *m)
{
    int wrong = 0;
    size_t F = (size_t)m->Fr;
    for (size_t r = 0; r < (size_t)T; r++)
        for (size_t i = 0; i < F; i++) {
            double want = silu(gate_up[r * 2 * F + i], gate_up[r * 2 * F + F + i]);
            double tolerance =
                fabs(want) * (1e-6 + rounding(m->act)) + (m->act == DTYPE_F16 ? 0x1p-24 : 1e-36);
            wrong += !close_to(element(out, r * F + i, m->act), want, tolerance);
        }
    return wrong;
}

static void silu_is_right(void **state)
{
    (void)state;
    static const int rows[] = {1, 3, 7, 31};
    for (int k = 0; k < ISAS; k++)
        for (int threads = 1; threads <= staged_threads(); threads++) {
            for (enum dtype act = 0; act < DTYPE_COUNT; act++) {
                struct device *d = staged_device(isas[k], threads, act);
                if (!d) break;
                for (int i = 0; i < SIZES * 4; i++) {
                    struct dims m = {.Fr = sizes[i / 4], .act = act};
                    int T = rows[i % 4];
                    size_t n = (size_t)T * (size_t)m.Fr;
                    float *gate_up = random_floats(2 * n, (uint64_t)i, 20);
                    struct guard g, g1;
                    void *out = guard_open(&g, n * dtype_bytes(act));
                    void *one = guard_open(&g1, (size_t)m.Fr * dtype_bytes(act));
                    device_ops(d)->silu_mul(d, out, gate_up, T, &m);
                    assert_int_equal(wrong_silu(out, gate_up, T, &m), 0);
                    device_ops(d)->silu_mul(d, one, gate_up + (size_t)(T - 1) * 2 * (size_t)m.Fr, 1, &m);
                    assert_memory_equal(one, (char *)out + (size_t)(T - 1) * g1.bytes, g1.bytes);
                    gate_up[m.Fr] += 0.5f; /* the comparison must notice another `up` */
                    if (act == DTYPE_F32) assert_int_equal(wrong_silu(out, gate_up, T, &m), 1);
                    guard_close(&g);
                    guard_close(&g1);
                    free(gate_up);
                }
                device_close(d);
            }
        }
}

/* Far from zero: no overflow may turn a finite product into infinity or NaN. */
static void silu_extremes(void **state)
{
    (void)state;
    static const float gate[] = {0,   -0.0f,  87,      88.5f,     89,   103,  104,   1e4f,   1e30f,
                                 -87, -88,    -89,     -103,      -104, -105, -1e4f, -1e30f, INFINITY,
                                 NAN, 1e-30f, -1e-30f, 0x1p-149f, -1,   1,    17,    -17};
    enum { N = sizeof gate / sizeof *gate };
    for (int k = 0; k < ISAS; k++) {
        struct device *d = staged_device(isas[k], 1, DTYPE_F32);
        if (!d) continue;
        struct dims m = {.Fr = N};
        float gate_up[2 * N], out[N];
        for (int i = 0; i < N; i++) gate_up[i] = gate[i], gate_up[N + i] = 1.5f;
        device_ops(d)->silu_mul(d, out, gate_up, 1, &m);
        for (int i = 0; i < N; i++) {
            double want = silu(gate[i], 1.5);
            if (isnan(want)) assert_true(isnan(out[i]));
            else if (isinf(want)) assert_true(isinf(out[i]) && out[i] > 0);
            else assert_true(close_to(out[i], want, fabs(want) * 1e-6 + 3e-36));
        }
        device_close(d);
    }
}

static void argmax_prefers_the_lower_index(void **state)
{
    (void)state;
    struct device *d = staged_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    for (int i = 0; i < SIZES; i++) {
        enum { ROWS = 9 };
        int V = sizes[i];
        size_t n = (size_t)V;
        struct dims m = {.Vr = V};
        float *logits = random_floats(ROWS * n, (uint64_t)V, 100);
        int32_t want[ROWS];
        for (size_t r = 0; r < ROWS; r++) {
            float *x = logits + r * n;
            if (r == 1)
                for (size_t j = 0; j < n; j++) x[j] = -3; /* all tied */
            if (r == 2) x[n - 1] = 200, x[n / 2] = 200;
            if (r == 3) x[n / 2] = INFINITY, x[0] = NAN;
            if (r == 4)
                for (size_t j = 0; j < n; j++) x[j] = -INFINITY;
            if (r == 5)
                for (size_t j = 0; j < n; j++) x[j] = NAN;
            if (r == 6) x[n - 1] = 200;
            if (r == 7)
                for (size_t j = 0; j < n; j++) x[j] = j % 2 ? 0.0f : -0.0f;
            want[r] = -1;
            for (size_t j = 0; j < n; j++)
                if (want[r] < 0 ? !isnan(x[j]) : x[j] > x[want[r]]) want[r] = (int32_t)j;
            if (want[r] < 0) want[r] = 0;
        }
        struct guard g;
        struct best *best = guard_open(&g, ROWS * sizeof *best);
        device_ops(d)->argmax(d, best, logits, ROWS, &m);
        for (size_t r = 0; r < ROWS; r++) {
            assert_int_equal(best[r].index, want[r]);
            assert_memory_equal(&best[r].value, &logits[r * n + (size_t)want[r]], 4);
        }
        guard_close(&g);
        free(logits);
    }
    device_close(d);
}

static bool better(const float *x, int a, int b)
{
    float va = isnan(x[a]) ? -INFINITY : x[a], vb = isnan(x[b]) ? -INFINITY : x[b];
    return va != vb ? va > vb : a < b;
}

/* By selection, one after another: nothing that the op does. */
static void top_k_is_a_sorted_prefix(void **state)
{
    (void)state;
    struct device *d = staged_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    static const int widths[] = {1, 3, 7, 31, 63, 64, 65, 80, 512, 4099};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        enum { ROWS = 9 };
        int V = widths[w];
        size_t n = (size_t)V;
        struct dims m = {.Vr = V};
        float *logits = random_floats(ROWS * n, (uint64_t)V, 100);
        for (size_t j = 0; j < n; j++) {
            logits[n + j] = -3;                 /* all tied */
            logits[2 * n + j] = (float)(j % 5); /* ties across the last place */
            logits[3 * n + j] = (float)j;       /* every one is a new best */
            logits[4 * n + j] = -(float)j;      /* none is */
            logits[5 * n + j] = j % 3 ? NAN : logits[5 * n + j];
            logits[6 * n + j] = j % 2 ? -INFINITY : INFINITY;
            logits[7 * n + j] = j % 2 ? 0.0f : -0.0f;
        }
        struct guard g;
        struct best *top = guard_open(&g, ROWS * TOP_K_MAX * sizeof *top);
        device_ops(d)->top_k(d, top, logits, ROWS, &m);
        for (size_t r = 0; r < ROWS; r++) {
            const float *x = logits + r * n;
            bool *taken = calloc(n, sizeof *taken);
            for (int i = 0; i < TOP_K_MAX; i++) {
                const struct best *got = &top[r * TOP_K_MAX + (size_t)i];
                int want = -1;
                for (int j = 0; j < V; j++)
                    if (!taken[j] && (want < 0 || better(x, j, want))) want = j;
                assert_int_equal(got->index, want);
                if (want >= 0) taken[want] = true;
                float value = want < 0 || isnan(x[want]) ? -INFINITY : x[want];
                assert_memory_equal(&got->value, &value, 4);
            }
            free(taken);
        }
        guard_close(&g);
        free(logits);
    }
    device_close(d);
}

static void convert_rounds_once(void **state)
{
    (void)state;
    struct device *d = staged_device(CPU_ISA_AUTO, 3, DTYPE_F32);
    static const size_t counts[] = {0, 1, 3, 7, 31, 65, 4099, 16384, 16385, 70001};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (enum dtype t = DTYPE_F16; t <= DTYPE_BF16; t++) {
            size_t n = counts[c];
            float *x = random_floats(n + 1, n, 1e4f);
            if (n > 3) x[0] = INFINITY, x[1] = NAN, x[2] = 1e-6f, x[3] = -1e30f;
            struct guard narrow, wide;
            uint16_t *h = guard_open(&narrow, n * 2);
            float *f = guard_open(&wide, n * 4);
            device_ops(d)->convert(d, h, t, x, DTYPE_F32, n);
            device_ops(d)->convert(d, f, DTYPE_F32, h, t, n);
            for (size_t i = 0; i < n; i++) {
                uint16_t want = t == DTYPE_BF16 ? dtype_bf16_from_f32(x[i]) : dtype_f16_from_f32(x[i]);
                float back = t == DTYPE_BF16 ? dtype_f32_from_bf16(want) : dtype_f32_from_f16(want);
                if (isnan(x[i])) { /* any NaN: the GPU has one of its own */
                    assert_true(isnan(element(h, i, t)) && isnan(f[i]));
                    continue;
                }
                assert_int_equal(h[i], want);
                assert_memory_equal(&f[i], &back, 4);
            }
            guard_close(&narrow);
            guard_close(&wide);
            free(x);
        }
    device_close(d);
}

/* A step that swaps sequences moves thousands of pieces before anything is waited for. */
static void a_trace_holds_any_number_of_transfers(void **state)
{
    (void)state;
    enum { N = MARKS_MAX / 2 + 3 };
    char path[] = "/tmp/retro-trace-XXXXXX", text[4096];
    int file = mkstemp(path), n_events = 0;
    assert_true(file >= 0 && close(file) == 0);
    struct device *d;
    struct device_options o = {.n_threads = 1};
    struct reason why;
    assert_int_equal(device_open(&d, staged_cuda ? DEVICE_CUDA : DEVICE_CPU, &o, &why), STATUS_OK);
    const char *name = device_ops(d)->name;
    assert_int_equal(trace_device_open(&d, d, path, 0, &why), STATUS_OK);
    const struct ops *ops = device_ops(d);
    assert_string_equal(ops->name, name);
    char *to = ops->mem_alloc(d, 1);
    for (int i = 0; i < N; i++) ops->upload(d, to, &why, 1);
    ops->sync(d);
    ops->mem_free(d, to, 1);
    device_close(d);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(text, sizeof text, f)) n_events += strstr(text, "\"name\":\"upload\"") != NULL;
    assert_int_equal(n_events, N);
    fclose(f);
    unlink(path);
}

static void description_names_what_runs(void **state)
{
    (void)state;
    if (staged_cuda) skip();
    struct device *d = cpu_device(CPU_ISA_PORTABLE, 2, DTYPE_F32);
    assert_string_equal(device_describe(d), "portable, 2 threads");
    device_close(d);
    d = cpu_device(CPU_ISA_PORTABLE, 1, DTYPE_F32);
    assert_string_equal(device_describe(d), "portable, 1 thread");
    device_close(d);
}

int main(int argc, char **argv)
{
    staged_arguments(&argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zero_aligned_and_moved),
        cmocka_unit_test(embed_gathers_this_ranks_rows),
        cmocka_unit_test(rope_table_rounds_the_angle_to_f32),
        cmocka_unit_test(norms_are_right),
        cmocka_unit_test(gathered_rows_are_copies),
        cmocka_unit_test(silu_is_right),
        cmocka_unit_test(silu_extremes),
        cmocka_unit_test(argmax_prefers_the_lower_index),
        cmocka_unit_test(top_k_is_a_sorted_prefix),
        cmocka_unit_test(convert_rounds_once),
        cmocka_unit_test(a_trace_holds_any_number_of_transfers),
        cmocka_unit_test(description_names_what_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
