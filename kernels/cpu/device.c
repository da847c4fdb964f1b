/* device.c - opens the CPU device: threads, instruction set, op table. */
#include <stdio.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/silu.h"
#include "runtime/base/die.h"

static const struct ops cpu_ops = {
    .name = "cpu",
    .mixed_types = true,
    .mem_alloc = cpu_mem_alloc,
    .mem_free = cpu_mem_free,
    .host_alloc = cpu_mem_alloc,
    .host_free = cpu_mem_free,
    .upload = cpu_transfer,
    .download = cpu_transfer,
    .copy = cpu_transfer,
    .fill = cpu_fill,
    .sync = cpu_sync,
    .mem_available = cpu_mem_available,
    .stream = cpu_stream,
    .read_bytes = cpu_read_bytes,
    .mark = cpu_mark,
    .mark_us = cpu_mark_us,
    .range = cpu_range,
    .graph_launch = cpu_graph_launch,
    .graph_end = cpu_graph_end,
    .matrix_bytes = cpu_matrix_bytes,
    .matrix_put = cpu_matrix_put,
    .embed = cpu_embed,
    .rope_table = cpu_rope_table,
    .add_norm = cpu_add_norm,
    .gather = cpu_gather,
    .linear = cpu_linear,
    .rope_store = cpu_rope_store,
    .select_scratch_bytes = cpu_select_scratch_bytes,
    .select = cpu_select,
    .attend_part_bytes = cpu_attend_part_bytes,
    .attend = cpu_attend,
    .merge = cpu_merge,
    .attend_prompt = cpu_attend_prompt,
    .silu_mul = cpu_silu_mul,
    .argmax = cpu_argmax,
    .top_k = cpu_top_k,
    .convert = cpu_convert,
};

static const char *const isa_names[CPU_ISA_COUNT] = {"auto", "portable", "AVX2", "AVX-512", "AMX"};

#if defined(__x86_64__)
/* __builtin_cpu_supports does not know "f16c" with every compiler; the operating system's part is AVX2's. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* Tiles of bf16, and the kernel's leave to use their registers, which a process has to ask for. */
static bool has_amx(void)
{
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static enum cpu_isa best_isa(void)
{
#if defined(__x86_64__)
    /* What the vector files are compiled with (CMakeLists.txt), all of it. */
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    if (avx2 && avx512 && has_amx()) return CPU_ISA_AMX;
    return avx2 && avx512 ? CPU_ISA_AVX512 : avx2 ? CPU_ISA_AVX2 : CPU_ISA_PORTABLE;
#else
    return CPU_ISA_PORTABLE;
#endif
}

/* AMX is 16 times as fast as widening to f32. vdpbf16ps is twice as fast on AMD's processors that have it (Zen 4, Zen 5),
 * half as fast on Intel's that were measured (Emerald Rapids). By the maker and not by a measurement at start: the two
 * round differently, and a run must give the same bits again. */
bool cpu_fast_pairs(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa == CPU_ISA_AUTO) isa = best_isa();
    return isa == CPU_ISA_AMX || (linear_table_of(isa)->pairs && __builtin_cpu_is("amd"));
#else
    (void)isa;
    return false;
#endif
}

/* By the model, since nothing says so: measured on a Zen 4 (docs/benchmarks.md, "Prefetches that are dropped"). Zen 5, where
 * asking again into the first cache was measured to help, is left at that. */
static bool drops_prefetches(void)
{
#if defined(__x86_64__)
    enum { ZEN3_AND_4 = 0x19 };
    unsigned a, b, c, d;
    if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return false;
    return (a >> 8 & 15) + (a >> 20 & 255) == ZEN3_AND_4;
#else
    return false;
#endif
}

int cpu_threads(const struct device *d) { return threads_count(((const struct cpu_device *)d)->threads); }

enum cpu_isa cpu_isa_of(const struct device *d) { return ((const struct cpu_device *)d)->isa; }

bool cpu_drops_prefetches(const struct device *d) { return ((const struct cpu_device *)d)->drops_prefetches; }

struct job {
    void (*fn)(void *arg, int task, int thread);
    void *arg;
    int n_tasks, n_threads;
};

static void run_share(void *arg, int thread)
{
    const struct job *j = arg;
    int end = cpu_share(j->n_tasks, thread + 1, j->n_threads);
    for (int task = cpu_share(j->n_tasks, thread, j->n_threads); task < end; task++)
        j->fn(j->arg, task, thread);
}

void cpu_parallel(struct device *d, void (*fn)(void *arg, int task, int thread), void *arg, int n_tasks)
{
    struct threads *t = cpu_of(d)->threads;
    struct job job = {fn, arg, n_tasks, threads_count(t)};
    if (n_tasks <= 1 || job.n_threads == 1)
        for (int task = 0; task < n_tasks; task++) fn(arg, task, 0);
    else threads_run(t, run_share, &job);
}

static void close_device(struct device *d)
{
    struct cpu_device *c = cpu_of(d);
    threads_close(c->threads);
    free(c->pack);
    free(c);
}

enum status cpu_device_open(struct device **out, const struct device_options *o, struct reason *why)
{
    if (o->n_threads < 0 || o->n_threads > THREADS_MAX)
        return status_fail(why, STATUS_BAD_OPTION, "--threads %d: give 1 to %d, or 0 for all cores",
                           o->n_threads, THREADS_MAX);
    ASSERT(o->isa < CPU_ISA_COUNT && o->act < DTYPE_COUNT);
    enum cpu_isa best = best_isa();
    if (o->isa > best)
        return status_fail(why, STATUS_BAD_OPTION, "this processor does not run %s: the best here is %s",
                           isa_names[o->isa], isa_names[best]);
    struct cpu_device *c = calloc(1, sizeof *c);
    if (!c) return status_fail(why, STATUS_NO_FIT, "no memory for the CPU device");
    int n = o->n_threads ? o->n_threads : threads_cores();
    enum status s = threads_open(&c->threads, n, o->pin, o->pin_first, why);
    if (s != STATUS_OK) {
        free(c);
        return s;
    }
    c->isa = o->isa == CPU_ISA_AUTO ? best : o->isa;
    c->act = o->act;
    c->drops_prefetches = drops_prefetches();
    c->linear = linear_table_of(c->isa);
    c->silu = silu_table_of(c->isa);
    bool bf16_products = c->act == DTYPE_BF16 && cpu_fast_pairs(c->isa);
    c->pairs = bf16_products && c->isa != CPU_ISA_AMX;
    c->base = (struct device){.ops = &cpu_ops, .close = close_device};
    snprintf(c->base.description, sizeof c->base.description, "%s%s, %d thread%s", isa_names[c->isa],
             bf16_products ? " with bf16 products" : "", n, n == 1 ? "" : "s");
    *out = &c->base;
    return STATUS_OK;
}
