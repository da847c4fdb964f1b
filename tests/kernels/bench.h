/* bench.h - what the --bench modes of the kernel tests measure against: this machine's streaming read and its
 * multiply-add peak, taken in the same run with the device's own threads. */
#ifndef RETRO_TESTS_KERNELS_BENCH_H
#define RETRO_TESTS_KERNELS_BENCH_H

#include "kernels/kernels.h"

/* GB/s of streaming reads of `sample_bytes` each through `bytes` at `p` by all threads of the device. */
double bench_stream_read(struct device *d, const void *p, size_t bytes, size_t sample_bytes, int passes);

/* GFLOP/s of f32 multiply-adds held in registers, on all threads; the widest vectors this machine has. */
double bench_fma_peak(struct device *d);

/* Tables of cpu_linear beside those two figures. */
void bench_linear(int n_threads);

#endif
