/* shape.h - decode steps of few shapes, so that what one launched can be replayed for the next (CUDA graphs).
 *
 * The numbers of spans, rows and outputs of a step, and the position that launch shapes are made for, are
 * rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ...: two sizes an octave. What is added does nothing: spans without
 * rows, rows of no span, outputs nobody reads. Integers only. */
#ifndef RETRO_SHAPE_H
#define RETRO_SHAPE_H

#include "kernels/kernels.h"

/* Which of the sizes 1, 2, 3, 4, 6, 8, ... is the first that is not below n >= 1, and that size. */
int shape_index(int n);
int shape_size(int index);

/* Rounds the counts and max_position of a step with decode spans alone, within dims, and gives it its shape:
 * equal for two steps that launch the same work, never 0. */
void shape_round(struct batch *b, const struct dims *m);

#endif
