/* pages.h - which block belongs to whom. Integers only; never looks inside a block.
 *
 * A block holds B tokens of all layers (kernels.h). Blocks are counted by reference so that several sequences
 * can share the blocks of a common prefix.
 *
 * Invariants (pages_check): a block is on the free list exactly when its count is 0; the free list holds each
 * free block once; free + used == n_blocks; a kept block has a reference. Allocation takes the most recently freed block (its memory is
 * warm). */
#ifndef RETRO_PAGES_H
#define RETRO_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

struct pages {
    int n_blocks, n_free;
    int n_idle;         /* blocks that are kept and that nobody else refers to */
    int32_t *free_list; /* (n_blocks), the first n_free are free, last one is next */
    int32_t *n_refs;    /* (n_blocks) */
    bool *kept;         /* (n_blocks) one of the references is the prefix cache's */
};

void pages_open(struct pages *p, int n_blocks);
void pages_close(struct pages *p);

/* Takes n free blocks, each with one reference, or none at all (NO_PAGES). */
enum status pages_alloc(struct pages *p, int n, int32_t *out_blocks);
void pages_share(struct pages *p, int32_t block);   /* one more reference to a block in use */
void pages_release(struct pages *p, int32_t block); /* one less; free at 0 */
void pages_keep(struct pages *p, int32_t block);    /* the prefix cache's reference to a block in use; once */
void pages_unkeep(struct pages *p, int32_t block);  /* and the end of it */

/* ASSERTs every invariant; O(n_blocks). */
void pages_check(const struct pages *p);

#endif
