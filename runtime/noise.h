/* noise.h - random-looking numbers for benchmarks: weights and context of a model whose files are not at hand.
 *
 * One table of uniform numbers of deviation 1, repeated without end; a row of a matrix begins at a place that
 * its name and number give. So element (row, column) of a named matrix is the same whatever part of it a rank
 * holds, and filling memory costs about as much as copying. Not for anything that needs independent numbers: the
 * rows of a matrix are shifted copies of each other. */
#ifndef RETRO_NOISE_H
#define RETRO_NOISE_H

#include <stddef.h>
#include <stdint.h>

struct noise {
    float *value; /* (NOISE_PERIOD + extra): the first `extra` again at the end */
    size_t extra;
};

#define NOISE_PERIOD ((size_t)1 << 20)
#define NOISE_ROW 61 /* elements from where one row begins to where the next does */

/* Runs of up to `extra` elements may be read from any place. */
void noise_open(struct noise *n, size_t extra);
void noise_close(struct noise *n);
/* Where row `row` of the matrix `name` begins: rows row .. row+m-1 are at NOISE_ROW elements from each other. */
const float *noise_row(const struct noise *n, const char *name, int64_t row);

#endif
