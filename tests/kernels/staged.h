/* staged.h - the CUDA device behind host pointers, so that one test serves both devices.
 *
 * Every op takes host memory. What it may read or write is copied to device memory of exactly that size, the
 * op runs, outputs are copied back, and inputs are compared with what they were. On the
 * emulator the exact size is the check (a byte past an end is an error); on hardware a canary follows each
 * buffer. The parts between attend and merge, and scratch memory, stay on the device and begin as NaN.
 *
 *   test_... [--device cuda] [--only PATTERN] [--bench ...]     what the programs of these tests take */
#ifndef RETRO_TESTS_KERNELS_STAGED_H
#define RETRO_TESTS_KERNELS_STAGED_H

#include "kernels/kernels.h"

/* Takes the device; its memory ops are not there. */
struct device *staged_open(struct device *inner);

/* --- which device a test program runs on --- */
extern bool staged_cuda; /* --device cuda */
/* Reads and removes `--device NAME` and `--only PATTERN` (of test names, for cmocka). */
void staged_arguments(int *argc, char **argv);
/* Thread counts worth testing: 3, or 1 on CUDA. */
int staged_threads(void);
/* The device under test; NULL (and a line) when this machine does not run the instruction set, and for any
 * but AUTO and PORTABLE on CUDA. */
struct device *staged_device(enum cpu_isa isa, int n_threads, enum dtype act);

#endif
