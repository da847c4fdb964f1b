/* attention_bench.h - `test_attention --bench [threads [isa [megabytes]]]`: see attention_bench.c. */
#ifndef RETRO_TESTS_ATTENTION_BENCH_H
#define RETRO_TESTS_ATTENTION_BENCH_H

int attention_bench(int argc, char **argv);

#endif
