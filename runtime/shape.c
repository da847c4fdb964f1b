#include "runtime/shape.h"

#include "runtime/base/die.h"

enum { POSITIONS_LEAST = 256 }; /* below it a launch for 256 tokens costs what one for fewer does */

int shape_size(int index)
{
    if (index == 0) return 1;
    return index % 2 ? 1 << (index + 1) / 2 : 3 << (index / 2 - 1);
}

int shape_index(int n)
{
    ASSERT(n >= 1 && n <= 1 << 29);
    int i = 0;
    while (shape_size(i) < n) i++;
    return i;
}

static int least(int a, int b) { return a < b ? a : b; }

void shape_round(struct batch *b, const struct dims *m)
{
    ASSERT(b->n_decode > 0 && b->n_prompt == 0 && b->n_rows == b->n_decode_rows);
    int spans = shape_index(b->n_decode), rows = shape_index(b->n_rows);
    int out = b->n_out > 0 ? shape_index(b->n_out) : -1;
    int tokens = b->max_position + 1,
        positions = shape_index(tokens < POSITIONS_LEAST ? POSITIONS_LEAST : tokens);
    int64_t most_rows = (int64_t)m->max_spans * m->W;
    if (most_rows > m->max_rows) most_rows = m->max_rows;
    b->n_decode = least(shape_size(spans), m->max_spans);
    b->n_rows = b->n_decode_rows = least(shape_size(rows), (int)most_rows);
    if (out >= 0) b->n_out = least(shape_size(out), m->max_out);
    b->max_position = least(shape_size(positions), m->C) - 1;
    b->shape = 1 + ((uint64_t)spans | (uint64_t)rows << 8 | (uint64_t)(out + 1) << 16 |
                    (uint64_t)positions << 24 | (uint64_t)b->top << 32);
}
