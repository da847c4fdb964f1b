/* test_cpu_linear.c - matrix_put and linear against a double reference; batch invariance; --bench: speed. */
#include "tests/kernels/bench.h"
#include "tests/kernels/guard.h"
#include "tests/kernels/sample.h"

static const enum cpu_isa isas[] = {CPU_ISA_PORTABLE, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AMX};
enum { ISAS = 4 };

struct world {
    struct device *d;
    const struct ops *ops;
    int n, k, rows;
    enum dtype dtype, act;
    struct matrix w;
    struct guard w_guard, y_guard, x_guard;
    void *weights; /* (n,k) plain, in dtype */
    void *x;       /* (rows,k) act */
    float *y, *bias;
    double *want, *spread; /* (rows,n): the exact sum, and the root of the sum of the terms' squares */
};

static void world_open(struct world *s, struct device *d, int n, int k, int rows, enum dtype dtype,
                       enum dtype act)
{
    uint64_t seed = (uint64_t)n * 7919 + (uint64_t)k;
    size_t un = (size_t)n, uk = (size_t)k, ur = (size_t)rows;
    *s = (struct world){
        .d = d, .ops = device_ops(d), .n = n, .k = k, .rows = rows, .dtype = dtype, .act = act};
    s->weights = calloc(un * uk, dtype_bytes(dtype));
    for (size_t i = 0; i < un * uk; i++) set_element(s->weights, i, dtype, random_float(&seed));
    /* The packed memory begins as NaN everywhere: what put leaves out, in pads too, must never reach a
     * result. */
    s->w = (struct matrix){guard_open(&s->w_guard, s->ops->matrix_bytes(s->d, dtype, n, k)), dtype, n, k};
    memset(s->w.data, 0xff, s->ops->matrix_bytes(s->d, dtype, n, k));
    s->ops->matrix_put(d, &s->w, 0, n, s->weights, dtype, uk);
    s->x = guard_open_skewed(&s->x_guard, ur * uk * dtype_bytes(act), 1);
    for (size_t i = 0; i < ur * uk; i++) set_element(s->x, i, act, random_float(&seed));
    s->bias = calloc(un, sizeof(float));
    for (size_t i = 0; i < un; i++) s->bias[i] = random_float(&seed);
    s->y = guard_open_skewed(&s->y_guard, ur * un * sizeof(float), 3);
}

static void world_expect(struct world *s)
{
    size_t n = (size_t)s->n, k = (size_t)s->k, rows = (size_t)s->rows;
    double *w = malloc(n * k * sizeof *w), *x = malloc(rows * k * sizeof *x);
    for (size_t i = 0; i < n * k; i++) w[i] = element(s->weights, i, s->dtype);
    for (size_t i = 0; i < rows * k; i++) x[i] = element(s->x, i, s->act);
    s->want = calloc(rows * n, sizeof(double));
    s->spread = calloc(rows * n, sizeof(double));
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0, squares = 0;
            for (size_t i = 0; i < k; i++) {
                double term = x[r * k + i] * w[j * k + i];
                sum += term;
                squares += term * term;
            }
            s->want[r * n + j] = sum;
            s->spread[r * n + j] = sqrt(squares);
        }
    free(w);
    free(x);
}

static void world_close(struct world *s)
{
    guard_close(&s->w_guard);
    guard_close_skewed(&s->x_guard, 1);
    guard_close_skewed(&s->y_guard, 3);
    free(s->weights);
    free(s->bias);
    free(s->want);
    free(s->spread);
}

/* Elements outside the tolerance. Terms of random signs make partial sums of about `spread`, each of the k
 * roundings is at most half a unit of that, 2^-24, and they add up like a random walk; eight times that is
 * allowed. A lost product is about 1/sqrt(k) of the spread: seen for every k here. */
static int wrong_elements(const struct world *s, const float *bias)
{
    int wrong = 0;
    for (size_t i = 0; i < (size_t)s->rows * (size_t)s->n; i++) {
        double b = bias ? bias[i % (size_t)s->n] : 0;
        double tolerance = 8 * sqrt(s->k + 1.0) * 0x1p-24 * (s->spread[i] + fabs(b));
        wrong += !close_to(s->y[i], s->want[i] + b, tolerance);
    }
    return wrong;
}

static void check_case(struct device *d, int n, int k, int rows, enum dtype dtype, enum dtype act)
{
    struct world s;
    world_open(&s, d, n, k, rows, dtype, act);
    world_expect(&s);
    for (int with_bias = 0; with_bias < 2; with_bias++) {
        const float *bias = with_bias ? s.bias : NULL;
        s.ops->linear(d, s.y, s.x, &s.w, bias, rows);
        int wrong = wrong_elements(&s, bias);
        if (wrong)
            print_error("%s: n %d k %d rows %d %s act %s bias %d: %d wrong\n", device_describe(d), n, k, rows,
                        dtype_name(dtype), dtype_name(act), with_bias, wrong);
        assert_int_equal(wrong, 0);
        memset(s.y, 0xff, (size_t)rows * (size_t)n * sizeof(float));
    }
    world_close(&s);
}

static void every_shape_is_right(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 3, 7, 31, 32, 33, 64, 65};
    for (int i = 0; i < ISAS; i++)
        for (int threads = 1; threads <= 3; threads++) {
            struct device *d = cpu_device(isas[i], threads, DTYPE_F32);
            if (!d) break;
            for (int n = 0; n < 9; n++)
                for (int k = 0; k < 9; k++)
                    for (enum dtype t = 0; t < DTYPE_COUNT; t++)
                        if (in_sample(i + threads + n + k + (int)t))
                            check_case(d, sizes[n], sizes[k], 1 + (n * 9 + k) % 19, t, DTYPE_F32);
            device_close(d);
        }
}

static void large_shapes_are_right(void **state)
{
    (void)state;
    static const struct {
        int n, k, rows;
    } cases[] = {{4099, 65, 3},   {65, 4099, 7},  {4099, 1, 1},   {1, 4099, 31},
                 {4099, 4099, 1}, {33, 513, 31},  {33, 1025, 65}, {257, 512, 17},
                 {31, 2051, 513}, {7, 511, 1025}, {576, 1536, 2}};
    for (int i = 0; i < ISAS; i++) {
        struct device *d = cpu_device(isas[i], 2, DTYPE_F32);
        if (!d) continue;
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (enum dtype t = 0; t < DTYPE_COUNT; t++)
                if (in_sample(i + (int)c + (int)t))
                    check_case(d, cases[c].n, cases[c].k, cases[c].rows, t, DTYPE_F32);
        device_close(d);
    }
}

static void two_byte_activations_are_right(void **state)
{
    (void)state;
    static const struct {
        int n, k, rows;
    } cases[] = {{65, 31, 1},     {33, 64, 1},  {65, 1031, 7},  {7, 65, 31},    {33, 1026, 31},
                 {99, 4098, 513}, {99, 96, 33}, {15, 1056, 47}, {99, 4128, 513}};
    for (int i = 0; i < ISAS; i++)
        for (enum dtype act = DTYPE_F16; act <= DTYPE_BF16; act++) {
            struct device *d = cpu_device(isas[i], 2, act);
            if (!d) break;
            for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
                for (enum dtype t = 0; t < DTYPE_COUNT; t++)
                    if (in_sample(i + (int)act + (int)c + (int)t))
                        check_case(d, cases[c].n, cases[c].k, cases[c].rows, t, act);
            device_close(d);
        }
}

/* y of `rows` rows at once must be the bits of each row alone with one thread. */
static void check_invariance(enum cpu_isa isa, int n, int k, enum dtype dtype, enum dtype act,
                             const int *counts, int n_counts)
{
    int most = counts[n_counts - 1];
    struct device *one = cpu_device(isa, 1, act);
    if (!one) return;
    struct world s;
    world_open(&s, one, n, k, most, dtype, act);
    float *alone = malloc((size_t)most * (size_t)n * sizeof *alone);
    for (int r = 0; r < most; r++)
        s.ops->linear(one, alone + (size_t)r * (size_t)n,
                      (char *)s.x + (size_t)r * (size_t)k * dtype_bytes(act), &s.w, s.bias, 1);
    for (int threads = 1; threads <= 3; threads++) {
        struct device *d = cpu_device(isa, threads, act);
        for (int c = 0; c < n_counts; c++) {
            size_t bytes = (size_t)counts[c] * (size_t)n * sizeof *alone;
            memset(s.y, 0xff, bytes);
            s.ops->linear(d, s.y, s.x, &s.w, s.bias, counts[c]);
            assert_memory_equal(s.y, alone, bytes);
        }
        device_close(d);
    }
    free(alone);
    world_close(&s);
    device_close(one);
}

static void results_do_not_depend_on_rows_or_threads(void **state)
{
    (void)state;
    static const int counts[] = {1,  2,  3,  4,  5,  6,  7,  8,   9,   10,  11, 12,
                                 13, 14, 15, 16, 17, 31, 64, 300, 512, 513, 530};
    static const int borders[] = {24, 25, 36, 48, 49, 65, 96, 97, 514}; /* of bands and tiles */
    static const struct {
        int n, k;
        enum dtype act;
        const int *counts;
        int n_counts;
    } cases[] = {{99, 1301, DTYPE_F32, counts, 23},  {320, 64, DTYPE_F32, counts, 23},
                 {99, 1302, DTYPE_BF16, counts, 23}, {99, 1301, DTYPE_BF16, counts, 23},
                 {99, 2053, DTYPE_F32, borders, 9},  {99, 4102, DTYPE_BF16, borders, 9},
                 {99, 1312, DTYPE_BF16, counts, 23}, {48, 4128, DTYPE_BF16, borders, 9}};
    for (int i = 0; i < ISAS; i++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (enum dtype t = 0; t < DTYPE_COUNT; t++)
                if (in_sample(i + (int)c + (int)t))
                    check_invariance(isas[i], cases[c].n, cases[c].k, t, cases[c].act, cases[c].counts,
                                     cases[c].n_counts);
}

/* An identity as input reads the weights back through the product itself. */
static void put_converts_and_places_every_element(void **state)
{
    (void)state;
    enum { N = 71, K = 37, STRIDE = 41 };
    struct device *d = cpu_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    const struct ops *ops = device_ops(d);
    uint64_t seed = 3;
    for (enum dtype from = 0; from < DTYPE_COUNT; from++)
        for (enum dtype to = 0; to < DTYPE_COUNT; to++)
            for (int cut = 0; cut <= N; cut += 5) {
                size_t bytes = ops->matrix_bytes(d, to, N, K);
                struct guard guard, y_guard;
                struct matrix w = {guard_open(&guard, bytes), to, N, K};
                float *y = guard_open(&y_guard, (size_t)K * N * sizeof *y), eye[K * K] = {0};
                unsigned char raw[N * STRIDE * 4 + 1], *src = raw + 1; /* unaligned on purpose */
                memset(w.data, 0xff, bytes);
                for (size_t i = 0; i < (size_t)N * STRIDE; i++) {
                    uint32_t element_bytes = 0;
                    set_element(&element_bytes, 0, from, random_float(&seed) * 3);
                    memcpy(src + i * dtype_bytes(from), &element_bytes, dtype_bytes(from));
                }
                ops->matrix_put(d, &w, 0, cut, src, from, STRIDE);
                ops->matrix_put(d, &w, cut, N - cut, src + (size_t)cut * STRIDE * dtype_bytes(from), from,
                                STRIDE);
                for (int i = 0; i < K; i++) eye[i * K + i] = 1;
                ops->linear(d, y, eye, &w, NULL, K);
                for (size_t r = 0; r < N; r++)
                    for (size_t i = 0; i < K; i++) {
                        uint32_t aligned = 0, want = 0;
                        memcpy(&aligned, src + (r * STRIDE + i) * dtype_bytes(from), dtype_bytes(from));
                        set_element(&want, 0, to, (float)element(&aligned, 0, from));
                        assert_true(y[i * N + r] == (float)element(&want, 0, to));
                    }
                guard_close(&guard);
                guard_close(&y_guard);
            }
    device_close(d);
}

static void special_values_pass_through(void **state)
{
    (void)state;
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (int i = 0; i < ISAS; i++) {
        struct device *d = cpu_device(isas[i], 1, DTYPE_F32);
        if (!d) continue;
        for (int t = 0; t < 3; t++) {
            /* Output 0 has an infinity, 1 a NaN, 2 is finite; subnormal products of f32 are kept. */
            float weights[3][3] = {{1, INFINITY, 1}, {1, NAN, 1}, {1, 2, 3}}, x[3] = {1, 0x1p-130f, 1}, y[3];
            struct matrix w = {malloc(device_ops(d)->matrix_bytes(d, types[t], 3, 3)), types[t], 3, 3};
            device_ops(d)->matrix_put(d, &w, 0, 3, weights, DTYPE_F32, 3);
            device_ops(d)->linear(d, y, x, &w, NULL, 1);
            assert_true(isinf(y[0]) && isnan(y[1]) && y[2] == 4);
            x[0] = x[2] = 0;
            device_ops(d)->linear(d, y, x, &w, NULL, 1);
            assert_true(y[2] == 0x1p-129f);
            free(w.data);
        }
        device_close(d);
    }
}

static void no_rows_write_nothing(void **state)
{
    (void)state;
    struct device *d = cpu_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    struct world s;
    world_open(&s, d, 33, 7, 1, DTYPE_BF16, DTYPE_F32);
    s.ops->linear(d, s.y, s.x, &s.w, NULL, 0);
    for (int i = 0; i < 33; i++) assert_true(dtype_f32_bits(s.y[i]) == GUARD_CANARY);
    world_close(&s);
    device_close(d);
}

/* The harness must notice one wrong weight, one lost product, one unwritten element and one write past the
 * end. */
static void harness_catches_faults(void **state)
{
    (void)state;
    struct device *d = cpu_device(CPU_ISA_AUTO, 2, DTYPE_F32);
    struct world s;
    world_open(&s, d, 65, 4099, 3, DTYPE_BF16, DTYPE_F32);
    world_expect(&s);
    s.ops->linear(d, s.y, s.x, &s.w, NULL, 3);
    assert_int_equal(wrong_elements(&s, NULL), 0);
    float saved = s.y[64 + 65];
    s.y[64 + 65] = NAN;
    assert_int_equal(wrong_elements(&s, NULL), 1);
    s.y[64 + 65] = saved + 1e-2f;
    assert_int_equal(wrong_elements(&s, NULL), 1);
    s.y[64 + 65] = saved;
    ((float *)s.x)[4099 + 4098] = 0; /* one product of every output of row 1 */
    s.ops->linear(d, s.y, s.x, &s.w, NULL, 3);
    assert_true(wrong_elements(&s, NULL) > 50);
    uint32_t past;
    memcpy(&past, s.y + 3 * 65, 4);
    s.y[3 * 65] = 1;
    assert_false(guard_intact(&s.y_guard));
    memcpy(s.y + 3 * 65, &past, 4);
    world_close(&s);
    device_close(d);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench_linear(argc > 2 ? atoi(argv[2]) : 0);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_is_right),
        cmocka_unit_test(large_shapes_are_right),
        cmocka_unit_test(two_byte_activations_are_right),
        cmocka_unit_test(results_do_not_depend_on_rows_or_threads),
        cmocka_unit_test(put_converts_and_places_every_element),
        cmocka_unit_test(special_values_pass_through),
        cmocka_unit_test(no_rows_write_nothing),
        cmocka_unit_test(harness_catches_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
