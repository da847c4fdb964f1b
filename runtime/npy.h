/* npy.h - writes a float32 matrix row by row as a NumPy .npy file (format 1.0, C order, little endian). */
#ifndef RETRO_NPY_H
#define RETRO_NPY_H

#include <stdint.h>
#include <stdio.h>

#include "runtime/base/status.h"

struct npy {
    FILE *file;
    const char *flag, *path; /* the option that named the file, for errors; borrowed */
    int64_t rows, cols, written;
};

enum status npy_open(struct npy *n, const char *flag, const char *path, int64_t rows, int64_t cols,
                     struct reason *why);
enum status npy_write_row(struct npy *n, const float *row, struct reason *why);
/* IO when fewer or more than `rows` were written, or the disk is full. */
enum status npy_close(struct npy *n, struct reason *why);

#endif
