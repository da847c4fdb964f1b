/* cuda_device.c - what only the CUDA device has: its memory, weights through the two staging buffers, cuBLAS
 * products, graphs that are captured once and replayed. The ops that both devices have are tested by the
 * test_*.c files with --device cuda. */
#include "tests/kernels/guard.h"
#include "tests/kernels/staged.h"

static struct device *open_cuda(enum dtype act)
{
    struct device *d = NULL;
    struct reason why;
    struct device_options o = {.act = act};
    if (device_open(&d, DEVICE_CUDA, &o, &why) != STATUS_OK) fail_msg("%s", why.text);
    return d;
}

static void memory_is_zero_aligned_and_moved(void **state)
{
    (void)state;
    static const size_t bytes[] = {0, 1, 255, 4096, 4097, 5000000};
    struct device *d = open_cuda(DTYPE_BF16);
    const struct ops *ops = device_ops(d);
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        size_t n = bytes[i];
        unsigned char *a = ops->mem_alloc(d, n), *c = ops->mem_alloc(d, n), *b = ops->host_alloc(d, n);
        assert_true(a && b && c);
        assert_int_equal((uintptr_t)a % 256, 0);
        for (size_t j = 0; j < n; j++) assert_int_equal(b[j], 0);
        memset(b, 1, n);
        ops->download(d, b, a, n);
        ops->sync(d);
        for (size_t j = 0; j < n; j++) assert_int_equal(b[j], 0);
        for (size_t j = 0; j < n; j++) b[j] = (unsigned char)(j * 31 + 1);
        ops->upload(d, a, b, n);
        ops->fill(d, c, 0x5a, n);
        ops->sync(d);
        ops->download(d, b, c, n);
        ops->sync(d);
        for (size_t j = 0; j < n; j++) assert_int_equal(b[j], 0x5a);
        ops->copy(d, c, a, n);
        ops->download(d, b, c, n);
        ops->sync(d);
        for (size_t j = 0; j < n; j++) assert_int_equal(b[j], (unsigned char)(j * 31 + 1));
        ops->mem_free(d, a, n);
        ops->mem_free(d, c, n);
        ops->host_free(d, b, n);
    }
    int64_t before = ops->mem_available(d);
    assert_true(before > 0);
    assert_null(ops->mem_alloc(d, (size_t)before * 4));
    ops->mem_free(d, NULL, 0);
    assert_non_null(ops->stream(d));
    assert_string_equal(ops->name, "cuda");
    device_close(d);
}

/* More rows than both staging buffers hold, in every pair of types: a buffer filled again before its copy is
 * done shows as a row in another's place. */
static void weights_pass_through_two_buffers(void **state)
{
    (void)state;
    enum { K = 4096, STRIDE = K + 24 };
    for (enum dtype from = 0; from < DTYPE_COUNT; from++)
        for (enum dtype to = 0; to < DTYPE_COUNT; to++) {
            int n = (3 << 24) / (int)(K * dtype_bytes(to)) + 7;
            size_t stride = from == to ? K : STRIDE, bytes = (size_t)n * stride * dtype_bytes(from);
            struct device *d = open_cuda(to);
            const struct ops *ops = device_ops(d);
            char *memory = malloc(bytes + 1), *src = memory + 1; /* unaligned on purpose */
            for (size_t row = 0; row < (size_t)n; row++)
                for (size_t i = 0; i < stride; i++) {
                    uint32_t value = 0;
                    set_element(&value, 0, from, (float)(int)((row * 7 + i) % 251) - 125);
                    memcpy(src + (row * stride + i) * dtype_bytes(from), &value, dtype_bytes(from));
                }
            size_t w_bytes = ops->matrix_bytes(d, to, n, K);
            struct matrix w = {ops->mem_alloc(d, w_bytes), to, n, K};
            ops->matrix_put(d, &w, 0, 5, src, from, stride);
            ops->matrix_put(d, &w, 5, n - 5, src + 5 * stride * dtype_bytes(from), from, stride);
            memset(memory, 0xff, bytes + 1); /* the caller may drop it as soon as put returns */
            char *back = malloc(w_bytes);
            ops->download(d, back, w.data, w_bytes);
            ops->sync(d);
            for (size_t row = 0; row < (size_t)n; row++)
                for (size_t i = 0; i < K; i++) {
                    double got = element(back, row * K + i, to), want = (double)((row * 7 + i) % 251) - 125;
                    if (got != want) fail_msg("row %zu element %zu: got %g, expected %g", row, i, got, want);
                }
            ops->mem_free(d, w.data, w_bytes);
            device_close(d);
            free(back);
            free(memory);
        }
}

/* y against sums in double; the order of cuBLAS's sums is its own. */
static void check_linear(enum dtype t, int n, int k, int rows, bool with_bias)
{
    struct device *d = staged_device(CPU_ISA_AUTO, 1, t);
    const struct ops *ops = device_ops(d);
    uint64_t seed = (uint64_t)(n * 7919 + k);
    size_t un = (size_t)n, uk = (size_t)k, ur = (size_t)rows;
    void *weights = calloc(un * uk, dtype_bytes(t)), *x = calloc(ur * uk, dtype_bytes(t));
    float *bias = calloc(un, sizeof *bias);
    for (size_t i = 0; i < un * uk; i++) set_element(weights, i, t, random_float(&seed));
    for (size_t i = 0; i < ur * uk; i++) set_element(x, i, t, random_float(&seed));
    for (size_t i = 0; i < un; i++) bias[i] = random_float(&seed);
    struct guard w_guard, y_guard;
    struct matrix w = {guard_open(&w_guard, un * uk * dtype_bytes(t)), t, n, k};
    float *y = guard_open(&y_guard, ur * un * sizeof *y);
    ops->matrix_put(d, &w, 0, n, weights, t, uk);
    ops->linear(d, y, x, &w, with_bias ? bias : NULL, rows);
    for (size_t r = 0; r < ur; r++)
        for (size_t j = 0; j < un; j++) {
            double sum = with_bias ? bias[j] : 0, squares = sum * sum;
            for (size_t i = 0; i < uk; i++) {
                double term = element(x, r * uk + i, t) * element(weights, j * uk + i, t);
                sum += term;
                squares += term * term;
            }
            double tolerance = 8 * sqrt(k + 1.0) * 0x1p-24 * sqrt(squares);
            if (!close_to(y[r * un + j], sum, tolerance))
                fail_msg("n %d k %d rows %d %s, row %zu output %zu: got %.9g, expected %.9g", n, k, rows,
                         dtype_name(t), r, j, (double)y[r * un + j], sum);
        }
    guard_close(&w_guard);
    guard_close(&y_guard);
    free(weights);
    free(x);
    free(bias);
    device_close(d);
}

static void products_are_right(void **state)
{
    (void)state;
    static const struct {
        int n, k, rows;
    } cases[] = {{1, 1, 1},
                 {3, 7, 1},
                 {7, 3, 3},
                 {31, 65, 7},
                 {65, 31, 1},
                 {4099, 65, 3},
                 {65, 4099, 2},
                 {128, 64, 31},
                 /* linear_few: k a multiple of 8, ends inside windows, blocks and groups of rows */
                 {1, 8, 1},
                 {17, 24, 8},
                 {31, 40, 9},
                 {33, 1032, 16},
                 {65, 4104, 3},
                 {48, 2080, 17}};
    for (enum dtype t = 0; t < DTYPE_COUNT; t++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            check_linear(t, cases[i].n, cases[i].k, cases[i].rows, i % 2);
}

/* A row of x gives the same bits alone, among others and in any place, up to the 16 rows that do not go to cuBLAS. */
static void rows_do_not_change_each_other(void **state)
{
    (void)state;
    enum { N = 40, K = 1096, ROWS = 16 };
    struct device *d = staged_device(CPU_ISA_AUTO, 1, DTYPE_BF16);
    const struct ops *ops = device_ops(d);
    uint64_t seed = 5;
    uint16_t *weights = calloc(N * K, sizeof *weights), *x = calloc(ROWS * K, sizeof *x);
    for (size_t i = 0; i < N * K; i++) set_element(weights, i, DTYPE_BF16, random_float(&seed));
    for (size_t i = 0; i < ROWS * K; i++) set_element(x, i, DTYPE_BF16, random_float(&seed));
    struct guard w_guard, y_guard, one_guard;
    struct matrix w = {guard_open(&w_guard, N * K * 2), DTYPE_BF16, N, K};
    float *y = guard_open(&y_guard, ROWS * N * sizeof *y), *one = guard_open(&one_guard, N * sizeof *one);
    ops->matrix_put(d, &w, 0, N, weights, DTYPE_BF16, K);
    for (int rows = 1; rows <= ROWS; rows += 5) {
        ops->linear(d, y, x, &w, NULL, rows);
        for (int r = 0; r < rows; r++) {
            ops->linear(d, one, x + r * K, &w, NULL, 1);
            assert_memory_equal(y + r * N, one, N * sizeof *one);
        }
    }
    guard_close(&w_guard);
    guard_close(&y_guard);
    guard_close(&one_guard);
    free(weights);
    free(x);
    device_close(d);
}

/* A step of one key runs, is captured, is replayed; what it reads from memory may change between replays. */
static void graphs_replay(void **state)
{
    (void)state;
    enum { N = 4099 };
    struct device *d = open_cuda(DTYPE_F32);
    const struct ops *ops = device_ops(d);
    struct dims m = {.Vr = N};
    float *logits = ops->mem_alloc(d, N * sizeof(float)), *host = ops->host_alloc(d, N * sizeof(float));
    struct best *best = ops->mem_alloc(d, sizeof *best), got;
    for (int step = 0; step < 200; step++) {
        uint64_t key = 1 + (uint64_t)(step % 3 ? 0 : step); /* every third key is new: places are used up */
        for (int i = 0; i < N; i++) host[i] = -(float)i;
        host[(step * 37) % N] = 5;
        ops->upload(d, logits, host, N * sizeof(float));
        if (!ops->graph_launch(d, key)) {
            ops->argmax(d, best, logits, 1, &m);
            ops->graph_end(d);
        }
        ops->download(d, &got, best, sizeof got);
        ops->sync(d);
        assert_int_equal(got.index, (step * 37) % N);
    }
    ops->mem_free(d, logits, N * sizeof(float));
    ops->mem_free(d, best, sizeof *best);
    ops->host_free(d, host, N * sizeof(float));
    device_close(d);
}

int main(int argc, char **argv)
{
    staged_arguments(&argc, argv);
    staged_cuda = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zero_aligned_and_moved),
        cmocka_unit_test(weights_pass_through_two_buffers),
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(rows_do_not_change_each_other),
        cmocka_unit_test(graphs_replay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
