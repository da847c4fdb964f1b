/* bench.c - see bench.h. Every figure is the best of several trials, because strangers on the machine only
 * ever make a trial slower. */
#include "tests/kernels/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Processor time of all threads: for long samples that only compute, where a stranger's slices must not
 * count. */
static double processor_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double low_tenth(double *seconds, int n)
{
    qsort(seconds, (size_t)n, sizeof *seconds, compare);
    return seconds[n / 10];
}

double bench_stream_read(struct device *d, const void *p, size_t bytes, size_t sample_bytes, int passes)
{
    int n = (int)(bytes / sample_bytes);
    double *seconds = malloc((size_t)n * (size_t)passes * sizeof *seconds);
    for (int i = 0; i < n * passes; i++) {
        double t0 = now();
        device_ops(d)->read_bytes(d, (const char *)p + (size_t)(i % n) * sample_bytes, sample_bytes);
        seconds[i] = now() - t0;
    }
    double t = low_tenth(seconds, n * passes);
    free(seconds);
    return (double)sample_bytes / t / 1e9;
}

enum { PEAK_ROUNDS = 1 << 15 };

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void peak_avx512(float *out)
{
    __m512 a[12], b = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(1e-3f);
    for (int i = 0; i < 12; i++) a[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < PEAK_ROUNDS; r++) {
        for (int i = 0; i < 12; i++) a[i] = _mm512_fmadd_ps(a[i], b, c);
    }
    for (int i = 1; i < 12; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    _mm512_storeu_ps(out, a[0]);
}

__attribute__((target("avx2,fma"))) static void peak_avx2(float *out)
{
    __m256 a[12], b = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(1e-3f);
    for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps((float)i);
    for (int r = 0; r < PEAK_ROUNDS; r++) {
        for (int i = 0; i < 12; i++) a[i] = _mm256_fmadd_ps(a[i], b, c);
    }
    for (int i = 1; i < 12; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    _mm256_storeu_ps(out, a[0]);
}
#endif

static void peak_task(void *arg, int task, int thread)
{
    (void)task, (void)thread;
    float out[16];
#if defined(__x86_64__)
    if (*(enum cpu_isa *)arg >= CPU_ISA_AVX512) peak_avx512(out);
    else peak_avx2(out);
#else
    (void)arg;
    out[0] = 0;
#endif
    volatile float keep = out[0];
    (void)keep;
}

double bench_fma_peak(struct device *d)
{
    enum cpu_isa isa = cpu_isa_of(d);
    if (isa == CPU_ISA_PORTABLE) return 0;
    int lanes = isa >= CPU_ISA_AVX512 ? 16 : 8;
    double best = 0;
    for (int i = 0; i < 200; i++) {
        double t0 = now();
        cpu_parallel(d, peak_task, &isa, cpu_threads(d));
        double gf = 2.0 * lanes * 12 * PEAK_ROUNDS * cpu_threads(d) / 1e9 / (now() - t0);
        if (gf > best) best = gf;
    }
    return best;
}

static float noise(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / 16777216.0f - 0.5f;
}

struct shape {
    int n, k, copies;
    const char *name;
};

/* Fills the matrices with one random row set; values do not change the speed, pages touched do. */
static struct matrix *fill_matrices(struct device *d, const struct shape *s, char **memory, size_t *bytes)
{
    const struct ops *ops = device_ops(d);
    struct matrix *w = calloc((size_t)s->copies, sizeof *w);
    size_t each = ops->matrix_bytes(d, DTYPE_BF16, s->n, s->k);
    *bytes = each * (size_t)s->copies;
    *memory = ops->mem_alloc(d, *bytes);
    uint16_t *row = malloc((size_t)s->k * 2);
    uint32_t seed = 1;
    for (int i = 0; i < s->k; i++) row[i] = dtype_bf16_from_f32(noise(&seed));
    for (int c = 0; c < s->copies; c++) {
        w[c] = (struct matrix){*memory + each * (size_t)c, DTYPE_BF16, s->n, s->k};
        ops->matrix_put(d, &w[c], 0, s->n, row, DTYPE_BF16, 0);
    }
    free(row);
    return w;
}

/* One line: products with `rows` rows, and streaming reads of the matrix half the set away. */
static void bench_rows(struct device *d, const struct shape *s, const struct matrix *w, const float *x,
                       float *y, int rows, double peak)
{
    int passes = rows > 16 ? 1 : 4, n = rows > 16 && s->copies > 16 ? 16 : s->copies * passes;
    double *gemm = malloc((size_t)n * sizeof *gemm), *stream = malloc((size_t)n * sizeof *stream);
    size_t bytes = device_ops(d)->matrix_bytes(d, DTYPE_BF16, s->n, s->k);
    for (int i = 0; i < n; i++) {
        double t0 = now(), p0 = processor_now();
        device_ops(d)->linear(d, y, x, &w[i % s->copies], NULL, rows);
        double t1 = now(), p1 = processor_now();
        device_ops(d)->read_bytes(d, w[(i + s->copies / 2) % s->copies].data, bytes);
        gemm[i] = rows > 16 ? (p1 - p0) / cpu_threads(d) : t1 - t0;
        stream[i] = now() - t1;
    }
    double t = low_tenth(gemm, n), gb = (double)bytes / t / 1e9,
           of = (double)bytes / low_tenth(stream, n) / 1e9;
    double gf = 2.0 * rows * s->n * s->k / t / 1e9;
    printf("  rows %3d  %8.3f ms  %6.1f GB/s  %6.1f stream  %4.2f of stream  %6.1f GFLOP/s  %4.2f of peak\n",
           rows, t * 1e3, gb, of, gb / of, gf, peak > 0 ? gf / peak : 0);
    free(gemm);
    free(stream);
}

static void bench_shape(struct device *d, const struct shape *s, double peak)
{
    static const int rows[] = {1, 2, 3, 4, 6, 8, 12, 16, 512};
    char *memory;
    size_t bytes;
    struct matrix *w = fill_matrices(d, s, &memory, &bytes);
    float *x = calloc((size_t)512 * (size_t)s->k, sizeof *x),
          *y = calloc((size_t)512 * (size_t)s->n, sizeof *y);
    uint32_t seed = 2;
    for (size_t i = 0; i < (size_t)512 * (size_t)s->k; i++) x[i] = noise(&seed);
    printf("%s: %d matrices of n %d, k %d, bf16, %zu MiB\n", s->name, s->copies, s->n, s->k, bytes >> 20);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) bench_rows(d, s, w, x, y, rows[i], peak);
    device_ops(d)->mem_free(d, memory, bytes);
    free(w);
    free(x);
    free(y);
}

void bench_linear(int n_threads)
{
    static const struct shape shapes[] = {{2048, 2048, 64, "square"},
                                          {1024, 8192, 32, "deep"},
                                          {3072, 576, 96, "135M gate and up"},
                                          {576, 1536, 192, "135M down"}};
    for (enum cpu_isa isa = CPU_ISA_AUTO; isa <= CPU_ISA_AVX2; isa++) {
        if (isa == CPU_ISA_PORTABLE) continue;
        struct device *d;
        struct device_options o = {.n_threads = n_threads, .isa = isa, .pin = true};
        struct reason why;
        if (device_open(&d, DEVICE_CPU, &o, &why) != STATUS_OK) {
            printf("%s\n", why.text);
            continue;
        }
        double peak = bench_fma_peak(d);
        printf("%s, multiply-add peak %.1f GFLOP/s\n", device_describe(d), peak);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) bench_shape(d, &shapes[i], peak);
        device_close(d);
    }
}
