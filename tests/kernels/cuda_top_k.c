/* cuda_top_k.c - top_k and convert on the GPU beside the CPU's, which test_ops.c holds to their definitions:
 * the same bits, and canaries behind every output. */
#include "tests/kernels/guard.h"

static struct device *cuda, *cpu;
static const struct ops *op;

static int open_devices(void **state)
{
    (void)state;
    struct reason why;
    struct device_options o = {.n_threads = 1};
    if (device_open(&cuda, DEVICE_CUDA, &o, &why) != STATUS_OK) {
        print_error("%s\n", why.text);
        return -1;
    }
    cpu = cpu_device(CPU_ISA_PORTABLE, 1, DTYPE_F32);
    op = device_ops(cuda);
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    device_close(cuda);
    device_close(cpu);
    return 0;
}

/* n bytes of payload in device memory between canaries of 256 bytes. */
static char *device_guard(size_t n)
{
    char *p = op->mem_alloc(cuda, n + 512);
    assert_non_null(p);
    op->fill(cuda, p, 0xa5, n + 512);
    return p + 256;
}

/* Copies the payload to `to`; the canaries must be whole. */
static void device_take(void *to, char *p, size_t n)
{
    unsigned char *all = malloc(n + 512);
    op->download(cuda, all, p - 256, n + 512);
    op->sync(cuda);
    for (size_t i = 0; i < 256; i++) assert_true(all[i] == 0xa5 && all[256 + n + i] == 0xa5);
    memcpy(to, all + 256, n);
    free(all);
    op->mem_free(cuda, p - 256, n + 512);
}

static void fill_row(float *x, int n, int kind, uint64_t *seed)
{
    for (int i = 0; i < n; i++) {
        float r = random_float(seed);
        x[i] = kind == 0   ? r * 100
               : kind == 1 ? -3                /* all tied */
               : kind == 2 ? (float)(i % 5)    /* ties across the last place */
               : kind == 3 ? (float)i          /* the largest at the end */
               : kind == 4 ? -(float)i         /* ... at the beginning */
               : kind == 5 ? (i % 3 ? NAN : r) /* NaN is -inf */
               : kind == 6 ? (i % 2 ? -INFINITY : INFINITY)
               : kind == 7 ? (i % 2 ? 0.0f : -0.0f) /* equal */
               : kind == 8
                   ? (i % 1024 < 40 ? 50 + r : r) /* few threads hold the largest, too many to gather */
                   : ldexpf(r, (int)(i % 60) - 30);
    }
}

static void top_k_gives_the_bits_of_the_cpu(void **state)
{
    (void)state;
    enum { ROWS = 10 };
    static const int widths[] = {1, 3, 7, 31, 63, 64, 65, 1023, 1025, 4099, 60001};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        int n = widths[w];
        size_t bytes = ROWS * (size_t)n * sizeof(float), out = ROWS * TOP_K_MAX * sizeof(struct best);
        struct dims m = {.Vr = n};
        uint64_t seed = (uint64_t)n;
        float *x = malloc(bytes);
        struct best *want = malloc(out), *got = malloc(out);
        for (int r = 0; r < ROWS; r++) fill_row(x + (size_t)r * (size_t)n, n, r, &seed);
        float *logits = op->mem_alloc(cuda, bytes);
        char *top = device_guard(out);
        op->upload(cuda, logits, x, bytes);
        op->top_k(cuda, (struct best *)top, logits, ROWS, &m);
        device_take(got, top, out);
        device_ops(cpu)->top_k(cpu, want, x, ROWS, &m);
        for (int i = 0; i < ROWS * TOP_K_MAX; i++)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("width %d, row %d, place %d: %g at %d, the CPU has %g at %d", n, i / TOP_K_MAX,
                         i % TOP_K_MAX, (double)got[i].value, got[i].index, (double)want[i].value,
                         want[i].index);
        op->mem_free(cuda, logits, bytes);
        free(x);
        free(want);
        free(got);
    }
}

static void convert_gives_the_bits_of_the_cpu(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 3, 7, 31, 65, 1023, 1024, 4099};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (enum dtype t = DTYPE_F16; t <= DTYPE_BF16; t++) {
            size_t n = counts[c];
            uint64_t seed = n;
            float *x = malloc(n * 4), *back = malloc(n * 4), *back_want = malloc(n * 4);
            uint16_t *got = malloc(n * 2), *want = malloc(n * 2);
            for (size_t i = 0; i < n; i++) x[i] = ldexpf(random_float(&seed), (int)(i % 50) - 30);
            if (n > 3) x[0] = INFINITY, x[1] = -0.0f, x[2] = -1e30f;
            float *in = op->mem_alloc(cuda, n * 4);
            char *narrow = device_guard(n * 2), *wide = device_guard(n * 4);
            op->upload(cuda, in, x, n * 4);
            op->convert(cuda, narrow, t, in, DTYPE_F32, n);
            op->convert(cuda, wide, DTYPE_F32, narrow, t, n);
            device_take(got, narrow, n * 2);
            device_take(back, wide, n * 4);
            device_ops(cpu)->convert(cpu, want, t, x, DTYPE_F32, n);
            device_ops(cpu)->convert(cpu, back_want, DTYPE_F32, want, t, n);
            assert_memory_equal(got, want, n * 2);
            assert_memory_equal(back, back_want, n * 4);
            op->mem_free(cuda, in, n * 4);
            free(x);
            free(back);
            free(back_want);
            free(got);
            free(want);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(top_k_gives_the_bits_of_the_cpu),
        cmocka_unit_test(convert_gives_the_bits_of_the_cpu),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
