/* read_bytes.c - reads memory with wide loads and nothing else: the rate that bounds every op of a decode step.
 *
 * Software prefetch only made this slower where it was tried (Zen 4, 31 to 33 GB/s on two cores). */
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *p, size_t n)
{
    __m512i s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_si512();
    for (size_t i = 0; i + 256 <= n; i += 256)
        for (int j = 0; j < 4; j++) s[j] = _mm512_add_epi64(s[j], _mm512_loadu_si512(p + i + j * 64));
    /* Not _mm512_reduce_add_epi64, which adds signed numbers: these overflow. */
    uint64_t lane[8], sum = 0;
    _mm512_storeu_si512(lane, _mm512_add_epi64(_mm512_add_epi64(s[0], s[1]), _mm512_add_epi64(s[2], s[3])));
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}
#endif

static uint64_t sum_portable(const char *p, size_t n)
{
    uint64_t s[8] = {0};
    for (size_t i = 0; i + 64 <= n; i += 64) {
        uint64_t line[8];
        memcpy(line, p + i, 64);
        for (int j = 0; j < 8; j++) s[j] += line[j];
    }
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

static uint64_t sum_lines(const char *p, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return sum_avx512(p, n);
#endif
    return sum_portable(p, n);
}

struct read {
    const char *p;
    size_t lines, n_tasks;
};

static void read_task(void *arg, int task, int thread)
{
    const struct read *r = arg;
    (void)thread;
    size_t from = r->lines * (size_t)task / r->n_tasks, to = r->lines * ((size_t)task + 1) / r->n_tasks;
    volatile uint64_t sum = sum_lines(r->p + from * 64, (to - from) * 64);
    (void)sum;
}

void cpu_read_bytes(struct device *d, const void *p, size_t bytes)
{
    struct read r = {p, bytes / 64, (size_t)cpu_threads(d)};
    cpu_parallel(d, read_task, &r, cpu_threads(d));
}
