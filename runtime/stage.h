/* stage.h - a step plan on its way to the device: host arrays, their device copies, and the mirrored block
 * tables.
 *
 * Every rank holds the same mirror: which blocks each slot's sequence has and with which policy it runs. A
 * step only carries what is new (step.h). Host arrays are memory from which the device may copy
 * asynchronously; they are not touched again before the step's result is there. */
#ifndef RETRO_STAGE_H
#define RETRO_STAGE_H

#include "runtime/model.h"
#include "runtime/step.h"
#include "runtime/swap.h"

struct stage_arrays {
    int32_t *token, *position, *slot; /* (max_rows) */
    int32_t *out_row;                 /* (max_out) */
    struct decode_span *decode;       /* (max_spans) */
    struct prompt_span *prompt;       /* (n_slots) */
};

struct stage {
    struct model *model;
    size_t bytes;        /* of one set of arrays */
    void *host, *device; /* the arrays, same layout on both sides */
    struct stage_arrays h, d;
    int32_t *table_host, *table_device; /* (n_slots, C/B) */
    struct policy *policy;              /* (n_slots) of the sequence in the slot */
    int *n_blocks;                      /* (n_slots) entries of the slot's table that are set */
    struct swap swap;
};

void stage_open(struct stage *s, struct model *m);
void stage_close(struct stage *s);

/* Applies what the step brings (moves, fresh slots, new blocks) and fills the host arrays; `b` is borrowed until the
 * next call. With model.graphs, decode steps are padded to few shapes (shape.h). BAD_INPUT when a row's
 * position has no block or a slot is not in use: a plan that does not fit the mirror. */
enum status stage_step(struct stage *s, const struct step *step, struct batch *b, struct reason *why);
/* The host arrays to the device: the first work of a step, and part of what is captured. */
void stage_upload(struct stage *s);

#endif
